"""How long do a turn and each call take with the checkpointers of LangGraph, and what do they send and store?

The graph has one node. Its state is N messages of 500 bytes and 20 KB of tools that do not change. A *turn* adds two
messages: it loads the thread, stores three checkpoints and the writes of the node. A *get* loads the latest checkpoint,
a *list* the latest ten. A *put* stores a checkpoint with one message more than its parent, which has N. The savers take
turns in random order in one run. *Beyond* is what a turn takes more than with `InMemorySaver` in the same round. *CPU*
is the least processor time of a turn in this process, which other work on the machine does not change. A *cold* get is
that of a saver that has seen nothing. It needs the packages of `peers-requirements.txt`:

    .venv-peers/bin/python -m bench.langgraph_turns [--rounds 60] [--postgres URL] [--redis-stack URL] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from time import process_time
from typing import Any

from bench.langgraph_savers import (
    IN_MEMORY,
    OURS,
    HumanMessage,
    Peer,
    add_options,
    graph_of,
    peers,
    place,
    says,
    uuid6,
)
from bench.measure import Contender, Times, interleaved, percentiles, spread

SIZES = (10, 100, 1000)
THREADS = 4
"""Threads that take turns, so that none grows much."""
TURNS = 20
"""Turns of the thread whose storage and traffic are measured."""
TOOLS = {f"tool{number}": {"description": "x" * 380} for number in range(50)}
LISTED = 10


async def begin(saver: Any, thread_id: str, size: int) -> None:
    messages = [HumanMessage("h" * 500) for _ in range(size - 1)]
    await graph_of(saver).ainvoke({"messages": messages, "tools": TOOLS}, place(thread_id))


def turn_of(saver: Any, size: int) -> Contender:
    graph, numbers = graph_of(saver), count()

    async def run(thread_id: str) -> None:
        await graph.ainvoke(says(), place(thread_id))

    return Contender(run, lambda: f"{size}-{next(numbers) % THREADS}")


def get_of(make: Callable[[], Any], size: int) -> Contender:
    async def run(saver: Any) -> None:
        assert await saver.aget_tuple(place(f"{size}-0")) is not None

    return Contender(run, make)


async def list_of(saver: Any, size: int) -> Contender:
    thread = place(f"listed-{size}")
    await begin(saver, f"listed-{size}", size)
    for _ in range(LISTED // 3):
        await graph_of(saver).ainvoke(says(), thread)

    async def run() -> None:
        assert len([each async for each in saver.alist(thread, limit=LISTED)]) == LISTED

    return Contender(run)


async def put_of(saver: Any, size: int) -> Contender:
    """Return a contender that puts checkpoints on one parent, in a thread of its own."""
    await begin(saver, f"put-{size}", size)
    parent = await saver.aget_tuple(place(f"put-{size}"))
    assert parent is not None
    base, values = parent.checkpoint, parent.checkpoint["channel_values"]

    def make() -> tuple[Any, Any]:
        versions = {"messages": saver.get_next_version(base["channel_versions"]["messages"], None)}
        changed = {**values, "messages": [*values["messages"], HumanMessage("h" * 500)]}
        made = {
            **base,
            "id": str(uuid6(clock_seq=-2)),
            "channel_values": changed,
            "channel_versions": {**base["channel_versions"], **versions},
        }
        return made, versions

    async def run(made: tuple[Any, Any]) -> None:
        # A plain text is what a run of another process has, so no saver takes the put for a conflict.
        config = {"configurable": {**parent.config["configurable"], "checkpoint_id": str(base["id"])}}
        await saver.aput(config, made[0], {"source": "loop", "step": 1}, made[1])

    return Contender(run, make)


async def cpu_of_a_turn(saver: Any, size: int) -> float:
    """Return the least processor time of a turn, in ms."""
    turn, taken = turn_of(saver, size), []
    for _ in range(TURNS):
        arguments = await turn.prepare()
        begun = process_time()
        await turn.run(*arguments)
        taken.append(process_time() - begun)
    return min(taken) * 1000


async def kib_of_a_turn(saver: Any, size: int, stored: Callable[[], Awaitable[int]]) -> float:
    """Return the mean KiB that a turn stores."""
    thread_id = f"grown-{size}"
    await begin(saver, thread_id, size)
    graph, before = graph_of(saver), await stored()
    for _ in range(TURNS):
        await graph.ainvoke(says(), place(thread_id))
    return (await stored() - before) / TURNS / 1024


async def sent(peer: Peer, size: int) -> dict[str, Any]:
    """Return the mean round trips and bytes of a turn."""
    if peer.wired is None:
        return {}
    open_wired, wire = peer.wired
    turn = turn_of(await open_wired(), size)
    for _ in range(2 * THREADS):
        await turn.run(*await turn.prepare())
    wire.reset()
    for _ in range(TURNS):
        await turn.run(*await turn.prepare())
    return {"trips": wire.round_trips / TURNS, "up": wire.up / TURNS, "down": wire.down / TURNS}


async def measure(found: list[Peer], rounds: int) -> list[dict[str, Any]]:
    savers = {peer.name: await peer.open() for peer in found}
    cold = next(peer.cold for peer in found if peer.cold is not None)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        for saver in savers.values():
            for number in range(THREADS):
                await begin(saver, f"{size}-{number}", size)
        turns = await interleaved({name: turn_of(saver, size) for name, saver in savers.items()}, rounds)
        gets = {name: get_of(lambda saver=saver: saver, size) for name, saver in savers.items()}
        calls = {
            "get": await interleaved({**gets, "cold": get_of(cold, size)}, rounds),
            "put": await interleaved({name: await put_of(saver, size) for name, saver in savers.items()}, rounds),
            "list": await interleaved({name: await list_of(saver, size) for name, saver in savers.items()}, rounds),
        }
        for peer in found:
            row = row_of(peer.name, size, turns, calls)
            row["cpu"] = await cpu_of_a_turn(savers[peer.name], size)
            row |= await sent(peer, size)
            if peer.stored is not None:
                row["KiB"] = await kib_of_a_turn(savers[peer.name], size, peer.stored)
            rows.append(row)
    return rows


def row_of(name: str, size: int, turns: Times, calls: dict[str, Times]) -> dict[str, Any]:
    pairs = zip(turns.by_name[name], turns.by_name[IN_MEMORY], strict=True)
    made = {
        "saver": name,
        "messages": size,
        "turn": [value / 1000 for value in percentiles(turns.by_name[name])],
        "beyond": spread([(own - memory) / 1000 for own, memory in pairs]),
        **{call: percentiles(times.by_name[name])[0] / 1000 for call, times in calls.items()},
    }
    if name == OURS:
        made["cold"] = percentiles(calls["get"].by_name["cold"])[0] / 1000
    return made


def shown(rows: list[dict[str, Any]]) -> str:
    names = (
        "saver, messages, turn p50 / p99 ms, beyond ms, CPU ms, put ms, get ms, cold get ms, list ms, KiB a turn, "
        "trips, up / down KiB"
    )
    lines = ["| " + names.replace(", ", " | ") + " |", "|---" * 12 + "|"]
    for each in rows:
        turn, beyond = each["turn"], each["beyond"]
        cells = [
            each["saver"],
            str(each["messages"]),
            f"{turn[0]:.1f} / {turn[1]:.1f}",
            f"{beyond[1]:.1f} ({beyond[0]:.1f} to {beyond[2]:.1f})",
            f"{each['cpu']:.1f}",
            f"{each['put']:.2f}",
            f"{each['get']:.2f}",
            f"{each['cold']:.2f}" if "cold" in each else "-",
            f"{each['list']:.1f}",
            f"{each['KiB']:.1f}" if "KiB" in each else "-",
            f"{each['trips']:.1f}" if "trips" in each else "-",
            f"{each['up'] / 1024:.1f} / {each['down'] / 1024:.1f}" if "up" in each else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


async def compare(rounds: int, postgres: str | None, redis_stack: str | None) -> list[dict[str, Any]]:
    async with peers(postgres, redis_stack) as (found, missing):
        for each in missing:
            print(each)
        return await measure(found, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    add_options(parser)
    args = parser.parse_args()
    rows = asyncio.run(compare(args.rounds, args.postgres, args.redis_stack))
    print(shown(rows))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
