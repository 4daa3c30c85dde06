"""How long does a turn of a LangGraph graph take with each checkpointer, and what does it store?

The graph has one node. Its state is N messages of 500 bytes and 20 KB of tools that do not change. A *turn* adds two
messages: it loads the thread, stores three checkpoints and the writes of the node. A *get* loads the latest checkpoint.
The savers take turns in random order in one run. *Beyond* is what a turn takes more than with `InMemorySaver` in the
same round. *CPU* is the least processor time of a turn in this process, which other work on the machine does not
change. A *cold* get is that of a saver that has seen nothing. It needs the packages of `peers-requirements.txt`:

    .venv-peers/bin/python -m bench.langgraph_turns [--rounds 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from time import process_time
from typing import Annotated, Any, TypedDict

import redis.asyncio as redis

from bench.measure import Contender, Times, Wire, interleaved, percentiles, spread, traffic, wire_to
from lash_redis import connect
from lash_redis.embedded import EmbeddedServer

try:
    from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph import START, StateGraph
    from langgraph.graph.message import add_messages

    from lash_redis.integrations.langgraph import LashCheckpointSaver
except ModuleNotFoundError as missing:
    sys.exit(f"bench.langgraph_turns: {missing}; run it by .venv-peers/bin/python, which `make bench-peers` installs")

SIZES = (10, 100, 1000)
THREADS = 4
"""Threads that take turns, so that none grows much."""
TURNS = 20
"""Turns of the thread whose storage is measured."""
TOOLS = {f"tool{number}": {"description": "x" * 380} for number in range(50)}
OURS = "LashCheckpointSaver"


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    tools: dict[str, Any]


def graph_of(saver: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("model", lambda state: {"messages": [AIMessage("a" * 500)]})
    graph.add_edge(START, "model")
    return graph.compile(checkpointer=saver)


def place(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


async def begin(saver: Any, thread_id: str, size: int) -> None:
    messages = [HumanMessage("h" * 500) for _ in range(size - 1)]
    await graph_of(saver).ainvoke({"messages": messages, "tools": TOOLS}, place(thread_id))


def turn_of(saver: Any, size: int) -> Contender:
    graph, numbers = graph_of(saver), count()

    async def run(thread_id: str) -> None:
        await graph.ainvoke({"messages": [HumanMessage("h" * 500)]}, place(thread_id))

    return Contender(run, lambda: f"{size}-{next(numbers) % THREADS}")


def get_of(make: Callable[[], Any], size: int) -> Contender:
    async def run(saver: Any) -> None:
        assert await saver.aget_tuple(place(f"{size}-0")) is not None

    return Contender(run, make)


@asynccontextmanager
async def savers(url: str, folder: str) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """Yield a cache, and the savers by name."""
    async with connect(url) as cache, AsyncSqliteSaver.from_conn_string(f"{folder}/threads.db") as sqlite:
        yield cache, {"InMemorySaver": InMemorySaver(), OURS: LashCheckpointSaver(cache), "SQLite": sqlite}


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
        await graph.ainvoke({"messages": [HumanMessage("h" * 500)]}, place(thread_id))
    return (await stored() - before) / TURNS / 1024


async def measure(rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with EmbeddedServer(port=0) as server, tempfile.TemporaryDirectory() as folder:
        async with (
            redis.from_url(server.url) as admin,
            wire_to(server.url) as (url, wire),
            savers(server.url, folder) as (cache, every),
            connect(url) as wired,
        ):

            async def in_server() -> int:
                return sum([await admin.memory_usage(key, samples=0) for key in await admin.keys("lash2:*grown*")])

            async def in_files() -> int:
                return sum(entry.stat().st_size for entry in os.scandir(folder))

            for size in SIZES:
                for saver in every.values():
                    for number in range(THREADS):
                        await begin(saver, f"{size}-{number}", size)
                times = await interleaved({name: turn_of(saver, size) for name, saver in every.items()}, rounds)
                makes: dict[str, Callable[[], Any]] = {name: partial(every.get, name) for name in every}
                makes["cold"] = partial(LashCheckpointSaver, cache)
                gets = await interleaved({name: get_of(make, size) for name, make in makes.items()}, rounds)
                rows += [row(name, size, times, gets) for name in every]
                for each in rows[-3:]:
                    each["cpu"] = await cpu_of_a_turn(every[each["saver"]], size)
                rows[-2] |= await counted(wired, admin, wire, size)
                rows[-2]["KiB"] = await kib_of_a_turn(every[OURS], size, in_server)
                rows[-1]["KiB"] = await kib_of_a_turn(every["SQLite"], size, in_files)
    return rows


def row(name: str, size: int, times: Times, gets: Times) -> dict[str, Any]:
    pairs = zip(times.by_name[name], times.by_name["InMemorySaver"], strict=True)
    made = {
        "saver": name,
        "messages": size,
        "turn": [value / 1000 for value in percentiles(times.by_name[name])],
        "beyond": spread([(own - memory) / 1000 for own, memory in pairs]),
        "get": percentiles(gets.by_name[name])[0] / 1000,
    }
    if name == OURS:
        made["cold"] = percentiles(gets.by_name["cold"])[0] / 1000
    return made


async def counted(cache: Any, admin: Any, wire: Wire, size: int) -> dict[str, Any]:
    """Return what a turn and a cold get of this package send."""
    turn = await traffic(admin, wire, turn_of(LashCheckpointSaver(cache), size), TURNS, warm=2 * THREADS)
    cold = await traffic(admin, wire, get_of(partial(LashCheckpointSaver, cache), size), 5)
    return {"trips": turn.round_trips, "up": turn.up, "down": turn.down, "cold trips": cold.round_trips}


def shown(rows: list[dict[str, Any]]) -> str:
    names = (
        "saver, messages, turn p50 / p99 ms, beyond ms, CPU ms, get ms, cold get ms, KiB a turn, trips, up / down KiB"
    )
    lines = ["| " + names.replace(", ", " | ") + " |", "|---" * 10 + "|"]
    for each in rows:
        turn, beyond = each["turn"], each["beyond"]
        cells = [
            each["saver"],
            str(each["messages"]),
            f"{turn[0]:.1f} / {turn[1]:.1f}",
            f"{beyond[1]:.1f} ({beyond[0]:.1f} to {beyond[2]:.1f})",
            f"{each['cpu']:.1f}",
            f"{each['get']:.2f}",
            f"{each['cold']:.2f}, {each['cold trips']:.0f} trips" if "cold" in each else "-",
            f"{each['KiB']:.1f}" if "KiB" in each else "-",
            f"{each['trips']:.1f}" if "trips" in each else "-",
            f"{each['up'] / 1024:.1f} / {each['down'] / 1024:.1f}" if "up" in each else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    rows = asyncio.run(measure(args.rounds))
    print(shown(rows))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
