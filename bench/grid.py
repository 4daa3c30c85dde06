"""How does each operation go with one thing changed at a time: nodes, sizes, event loop, protocol, tasks, transport?

Each line is one interleaved run of ours, bare and the floor (`stage.py`). What is not said is as in the budgets:
1,000 nodes, 20 KB of tool, 4 KB of plugin and 8 KB of execution state, asyncio, RESP3, one task, a unix socket.
With 64 tasks a time is that of 64 operations at once, divided by 64.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from bench import report
from bench.measure import Times, Traffic, interleaved, rounds_within, spread, traffic, wire_to
from bench.stage import OPERATIONS, REFRESHES, Setting, Stage, Way, way_to
from bench.workload import Sizes
from lash_redis.embedded import EmbeddedServer

SIDES = ("ours", "bare", "floor")
BY_NODES = tuple(operation for operation in OPERATIONS if operation != "listing")
BY_SIZE = ("commit", "full read", "cold read", *REFRESHES)

QUICK_SECONDS, SECONDS = 0.25, 3.0
"""Of one line's rounds."""


@dataclass(frozen=True, slots=True)
class Point:
    """A setting, by the one thing that is changed."""

    dimension: str
    at: str
    setting: Setting
    operations: Sequence[str] = OPERATIONS


def points(*, quick: bool) -> Iterator[Point]:
    yield Point("as in the budgets", "", Setting())
    for nodes in (10, 10_000) if quick else (10, 100, 10_000, 50_000):
        yield Point("nodes", f"{nodes:,}", Setting(nodes=nodes), BY_NODES)
    for kib in (0, 256) if quick else (0, 4, 32, 256):
        yield Point("each component", f"{kib} KB", Setting(sizes=Sizes.of(kib)), BY_SIZE)
    for sessions in (1000,) if quick else (1000, 10_000):
        yield Point("sessions listed", f"{sessions:,}", Setting(sessions=sessions), ("listing",))
    yield Point("event loop", "uvloop", Setting(loop="uvloop"))
    yield Point("protocol", "RESP2", Setting(protocol=2))
    yield Point("tasks at once", "64", Setting(tasks=64))
    yield Point("transport", "TCP", Setting(transport="TCP"))


@dataclass(slots=True)
class Line:
    """What came out of one operation in one setting. `sides` by name: µs, and what passed and was done for each."""

    dimension: str
    at: str
    operation: str
    sides: dict[str, dict[str, float]]
    ratios: dict[str, tuple[float, float, float]]
    """Ours over the other, by the other's name: the quartiles of the rounds."""
    rounds: int
    memory: dict[str, float] = field(default_factory=dict)
    """Bytes of the session read, by side."""

    def cells(self) -> list[str]:
        def both(name: str, per: float = 1, form: str = ",.0f") -> str:
            return " / ".join(f"{self.sides[side][name] / per:{form}}" for side in ("ours", "bare"))

        where = f"{self.dimension} {self.at}".strip()
        times = [f"{self.sides[side]['p50_us']:,.0f} / {self.sides[side]['p99_us']:,.0f}" for side in SIDES]
        stored = " / ".join(f"{size / 1024:,.0f}" for size in self.memory.values())
        return [
            f"{self.operation}; {where}",
            *times,
            *(f"{self.ratios[other][1]:.2f}" for other in ("bare", "floor")),
            both("server_us"),
            both("commands"),
            both("round_trips", form=".1f").replace(".0", ""),
            both("up", 1024, ",.1f"),
            both("down", 1024, ",.1f"),
            stored,
        ]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def table(lines: Sequence[Line]) -> str:
    titles = ["what", *(f"{side} p50 / p99 µs" for side in SIDES), "/ bare", "/ floor"]
    titles += [f"{what}, ours / bare" for what in ("server µs", "commands", "round trips", "KB up", "KB down")]
    return report.markdown([[*titles, "KiB stored, ours / bare"], *(line.cells() for line in lines)])


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """None where it is not installed."""
    if name == "asyncio":
        return asyncio.new_event_loop
    if find_spec(name) is None:
        return None
    import uvloop

    return uvloop.new_event_loop


def measured(binary: Path | None, *, quick: bool, seconds: float | None = None) -> tuple[list[Line], list[str]]:
    """The lines, and what could not be measured here. On a server of its own, emptied before each setting."""
    lines: list[Line] = []
    missing: list[str] = []
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    with EmbeddedServer(binary=binary, port=0) as server:
        for point in points(quick=quick):
            factory = loop_factory(point.setting.loop)
            if factory is None:
                missing.append(f"{point.setting.loop} is not installed: its lines are missing")
                continue
            url = server.url if point.setting.transport == "TCP" else f"unix://{server.socket_path}"
            with asyncio.Runner(loop_factory=factory) as runner:
                lines += runner.run(_lines(url, point, seconds))
    return lines, missing


async def _lines(url: str, point: Point, seconds: float) -> list[Line]:
    setting, query = point.setting, f"?protocol={point.setting.protocol}"
    stage, lines = Stage(setting), []
    async with redis.from_url(url) as direct, wire_to(url) as (relay, wire):
        await direct.flushall()
        async with way_to(url + query, setting.tasks) as way, way_to(relay + query, 1) as wired:
            await stage.set_up(way, point.operations)
            for operation in point.operations:
                times = await _timed(stage, operation, way, seconds)
                counted = stage.contenders(operation, wired)
                warm = stage.writing if operation == "commit" else 1
                costs = {side: await traffic(direct, wire, counted[side], 10, warm) for side in ("ours", "bare")}
                line = _line(point, operation, times, costs)
                if operation == "full read":
                    line.memory = await stage.memory(direct)
                lines.append(line)
    return lines


async def _timed(stage: Stage, operation: str, way: Way, seconds: float) -> Times:
    contenders = stage.contenders(operation, way)
    times = await interleaved(contenders, await rounds_within(contenders, seconds))
    tasks = len(way.sockets)
    return Times({name: [took / tasks for took in taken] for name, taken in times.by_name.items()})


def _line(point: Point, operation: str, times: Times, costs: dict[str, Traffic]) -> Line:
    sides = {}
    for side in SIDES:
        sides[side] = {"p50_us": times.percentile(side, 50), "p99_us": times.percentile(side, 99)}
        if side in costs:
            cost = costs[side]
            sides[side] |= {
                "server_us": cost.server.time,
                "commands": cost.commands,
                "round_trips": cost.round_trips,
                "up": cost.up,
                "down": cost.down,
            }
    ratios = {other: spread(times.ratios("ours", other)) for other in ("bare", "floor")}
    return Line(point.dimension, point.at, operation, sides, ratios, len(times.by_name["ours"]))
