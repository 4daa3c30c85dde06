"""Three primaries against one server: what an operation costs on each, how work falls on them, what a client waits for.

Three cannot be faster than one on a machine of two cores. So each node's core is filled alone, by what was recorded on
the cluster; eight workers take turns of many sessions by Zipf's law, which shows how these fall on the nodes; from both
follows what three cores would hold. What a client waits for is measured on both in turn, while nobody else asks.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import redis as blocking
import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode

from bench import commits, load, recorded, report, workload
from bench.load import Line, Meter
from bench.measure import Contender, Times, interleaved, wire_to
from bench.recorded import Recording, Target
from bench.workers import crowd_name, weights, working
from lash_redis import FullGraph, RedisSessionStore, SessionCache, StoreOptions, connect
from lash_redis.embedded import EmbeddedServer
from lash_redis.protocol.keys import SLOTS, Layout, slot

PRIMARIES = 3
WORKERS = 8
DEFAULT_SHARDS = StoreOptions().shards
CONNECTIONS = 8
"""That fill one server's core."""
PATIENCE = 30.0
"""Seconds in which a cluster must be one."""
SESSIONS, TURNS = 48, 32
TIMED = 24
"""Sessions that take turns where one client is timed: some of them on every node."""
OPERATIONS = ("commit", "resume by another")
ONE, NODE, SAFE = "to one server", "to node", "to one with log and replica"
"""Who is asked."""
WAITS = ("resume", "resume, nothing at hand", "refresh", "commit")
"""In this order: commits change what a refresh would find."""


@contextmanager
def three(binary: Path | None = None) -> Iterator[list[str]]:
    """The URLs of primaries without replicas that share the slots evenly (Redis 7 or newer)."""
    options = {"cluster-enabled": "yes", "cluster-announce-ip": "127.0.0.1"}
    with ExitStack() as ending:
        urls: list[str] = []
        bus: list[int] = []
        for place in range(PRIMARIES):
            its_own = _free_port()
            server = EmbeddedServer(binary=binary, port=0, options={**options, "cluster-port": str(its_own)})
            ending.enter_context(server)
            first, last = place * SLOTS // PRIMARIES, (place + 1) * SLOTS // PRIMARIES - 1
            with blocking.Redis.from_url(server.url) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                for other, its_bus in zip(urls, bus, strict=True):
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", urlsplit(other).port, its_bus)
            urls.append(server.url)
            bus.append(its_own)
        _wait_until(lambda: all(map(_is_whole, urls)), "a cluster")
        yield urls


@contextmanager
def safe(binary: Path | None = None) -> Iterator[str]:
    """The URL of a server that has the scripts, an append-only file synced every second, and a replica."""
    kept = {"auto-aof-rewrite-percentage": "0"}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        EmbeddedServer(Path(folder), binary=binary, port=0, options=kept) as primary,
        EmbeddedServer(binary=binary, port=0) as replica,
        blocking.Redis.from_url(replica.url) as client,
    ):
        client.execute_command("REPLICAOF", *_address(primary.url))
        _wait_until(lambda: client.info("replication")["master_link_status"] == "up", "a replica to follow")
        asyncio.run(_preload(primary.url))
        yield primary.url


async def _preload(url: str) -> None:
    async with connect(url) as cache:
        await cache.preload()


def _wait_until(well: Callable[[], bool], what: str) -> None:
    deadline = monotonic() + PATIENCE
    while not well():
        assert monotonic() < deadline, f"waited in vain for {what}"
        sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _is_whole(url: str) -> bool:
    with blocking.Redis.from_url(url) as client:
        told: Any = client.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in told and b"cluster_known_nodes:%d" % PRIMARIES in told


def url_of(urls: Sequence[str]) -> str:
    return "redis+cluster://" + ",".join(urlsplit(url).netloc for url in urls)


@dataclass(frozen=True, slots=True)
class Comparison:
    lines: list[Line]
    """Each operation on one server, on each node alone, on a server with a log and a replica, on all nodes at once."""
    shares: list[float]
    """Of the crowd's turns, by node."""
    expected: list[float]
    """The same on paper."""
    waits: dict[str, dict[str, float]]
    """µs of one client on an idle server and an idle cluster, by operation; and the ratio of the rounds."""

    def held(self) -> dict[str, tuple[float, float]]:
        """By operation: how many a second one core, and three cores of the cluster, would hold as the crowd falls."""
        found = {}
        for operation in OPERATIONS:
            asked = {line.askers: line.held for line in self.lines if line.operation == operation}
            nodes = [asked[f"{NODE} {place}"] for place in range(1, PRIMARIES + 1)]
            found[operation] = (asked[ONE], min(held / share for held, share in zip(nodes, self.shares, strict=True)))
        return found


def compared(binary: Path | None, *, rounds: int, seconds: float, crowd: int, exponent: float) -> Comparison:
    """`rounds` of what was recorded, a crowd for `seconds`, and a hundred timed operations a round."""
    with three(binary) as urls, EmbeddedServer(binary=binary, port=0) as one, safe(binary) as followed:
        recordings = asyncio.run(recordings_of(urls))
        alone = asyncio.run(recorded.recorded(one.url, SESSIONS, TURNS))
        targets = [Target(one.url, alone, ONE)]
        for place, (url, recording) in enumerate(zip(urls, recordings, strict=True), 1):
            targets.append(Target(url, recording, f"{NODE} {place}"))
        targets.append(Target(followed, alone, SAFE))
        lines: list[Line] = []
        for operation in OPERATIONS:
            lines += recorded.played(targets, operation, CONNECTIONS, rounds)
            lines.append(recorded.at_once(targets[1:-1], operation, CONNECTIONS, rounds))
        shares = _shares(urls, seconds, crowd, exponent)
        waits = asyncio.run(_waits(one.url, url_of(urls), rounds * 100))
    return Comparison(lines, shares, by_node(Layout("crowd", DEFAULT_SHARDS), PRIMARIES, crowd, exponent), waits)


async def recordings_of(urls: Sequence[str], sessions: int = SESSIONS, turns: int = TURNS) -> list[Recording]:
    """What a client of the cluster sends to each node."""
    async with AsyncExitStack() as stack:
        wires, mapped = [], {}
        for url in urls:
            relay, wire = await stack.enter_async_context(wire_to(url))
            wires.append(wire)
            mapped[_address(url)] = _address(relay)
        client = redis.RedisCluster(
            startup_nodes=[ClusterNode(*_address(url)) for url in urls],
            address_remap=lambda address: mapped.get(address, address),
        )
        await stack.enter_async_context(client)
        caches = (SessionCache(client, "recorded"), SessionCache(client, "recorded"))
        return await recorded.recordings(*caches, wires, sessions, turns)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


# How work falls on nodes


def by_node(layout: Layout, nodes: int, sessions: int, exponent: float) -> list[float]:
    """The share of a crowd's turns that each node gets, where nodes have equal parts of the slots."""
    falling = [0.0] * nodes
    for place, weight in _by_slot(layout, sessions, exponent).items():
        falling[((place + 1) * nodes - 1) // SLOTS] += weight
    return [weight / sum(falling) for weight in falling]


@cache
def _by_slot(layout: Layout, sessions: int, exponent: float) -> dict[int, float]:
    falling = [0.0] * layout.shards
    for rank, weight in enumerate(weights(sessions, exponent)):
        falling[layout.shard_of(crowd_name(rank))] += weight
    return {slot(layout.tag(shard)): weight for shard, weight in enumerate(falling)}


def _shares(urls: Sequence[str], seconds: float, sessions: int, exponent: float) -> list[float]:
    """The same by what the nodes were asked."""
    with ExitStack() as ending:
        clients = [ending.enter_context(blocking.Redis.from_url(url)) for url in urls]
        workers = ending.enter_context(working(url_of(urls), WORKERS, "crowd"))
        meters = [Meter(client) for client in clients]
        with ExitStack() as running:
            for meter in meters:
                running.enter_context(meter.running())
            workers.start("crowd", sessions=sessions, seconds=seconds, exponent=exponent)()
    asked = [meter.calls["evalsha"] for meter in meters]
    return [calls / sum(asked) for calls in asked]


# What a client waits for


async def _waits(one: str, cluster: str, rounds: int) -> dict[str, dict[str, float]]:
    tools = workload.tool_state()
    found: dict[str, dict[str, Contender]] = {operation: {} for operation in WAITS}
    async with AsyncExitStack() as stack:
        for side, url in {"one": one, "cluster": cluster}.items():
            warm = await stack.enter_async_context(connect(url, namespace="waits"))
            nothing = StoreOptions(blob_cache_bytes=0)
            cold = await stack.enter_async_context(connect(url, namespace="waits", options=nothing))
            sessions = [await commits.begun(warm, f"{number}", tools, recorded.NODES) for number in range(TIMED)]
            seen = [await session.store.load_session(FullGraph()) for session in sessions]
            found["resume"][side] = _in_turn(warm, lambda store, _: store.load_session(FullGraph()), seen)
            found["resume, nothing at hand"][side] = _in_turn(
                cold, lambda store, _: store.load_session(FullGraph()), seen
            )
            found["refresh"][side] = _in_turn(warm, lambda store, read: store.refresh(read), seen)
            found["commit"][side] = commits.ours(sessions)
        return {operation: _wait(await interleaved(sides, rounds)) for operation, sides in found.items()}


def _in_turn(
    cache: SessionCache, asked: Callable[[RedisSessionStore, Any], Awaitable[Any]], seen: list[Any]
) -> Contender:
    """One session after the other, by a handle that is new."""
    turns = cycle(enumerate(seen))

    async def run() -> None:
        number, read = next(turns)
        await asked(cache.session(f"{number}"), read)

    return Contender(run)


def _wait(times: Times) -> dict[str, float]:
    p50 = {f"{name}_us": times.percentile(name, 50) for name in ("one", "cluster")}
    return {**p50, "ratio": times.ratio("cluster", "one")}


# Tables


def table(found: Comparison) -> str:
    held = [
        [operation, f"{one:,.0f}", f"{cores:,.0f}", f"{cores / one:.2f}"]
        for operation, (one, cores) in found.held().items()
    ]
    waits = [
        [operation, f"{each['one_us']:,.0f}", f"{each['cluster_us']:,.0f}", f"{each['ratio']:.2f}"]
        for operation, each in found.waits.items()
    ]
    shares = [[f"{share:.1%}" for share in part] for part in (found.shares, found.expected)]
    nodes = [f"node {place + 1}" for place in range(PRIMARIES)]
    return "\n\n".join(
        [
            load.table(found.lines),
            report.markdown([["the crowd's turns", *nodes], ["measured", *shares[0]], ["on paper", *shares[1]]]),
            report.markdown([["a second", "one core holds", "three would hold", "ratio"], *held]),
            report.markdown([["idle, one client, p50 µs", "one server", "three primaries", "ratio"], *waits]),
        ]
    )
