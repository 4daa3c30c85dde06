"""What do ten million sessions and 50,000 turns a second need, and what ends first? On paper, from measured figures.

Every line says which figures it comes from: those of `python -m bench.scale --json` (server time, bytes on the wire, of
memory and of the log) and, for what goes through all sessions, of `python -m bench --json`. What is asked for, and what
a server has, are options. A turn is a resume by a worker that has not seen the session, or in the second column a
refresh by one that has; and a commit. Not in it: what TLS, network cards, rewriting the log and new replicas take.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from bench import cluster, report
from bench.workers import weights
from lash_redis import StoreOptions
from lash_redis.options import MAX_SHARDS
from lash_redis.protocol.keys import Layout

HEAD = 100_000
"""Sessions of a crowd that are placed one by one; the many behind them fall evenly."""
TURNS = ("resume by another", "refresh")
"""How a turn begins."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be held, and by what. None of it is measured."""

    sessions: int = 10_000_000
    turns: float = 50_000.0
    """A second."""
    messages: int = 100
    """Of a session."""
    exponent: float = 0.8
    """Of Zipf's law, by which sessions take their turns."""
    memory_gb: float = 64.0
    """That the sessions of one server may take."""
    fill: float = 0.5
    """Share of a server's core that may be in use."""
    gigabits: float = 10.0
    """A second, of a server, each way."""
    replicas: int = 1
    """Of each primary."""
    shards: int = MAX_SHARDS
    grace: float = field(default_factory=lambda: StoreOptions().blob_grace)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. µs and bytes of one operation."""

    server_us: Mapping[str, float]
    """By operation: of a cluster's dearest node where it was asked of one, else of one server."""
    safe_us: float
    """That a log and a replica add to a commit."""
    worker_us: Mapping[str, float]
    """By operation: what one client waits for on an idle cluster, p50; a resume with nothing at hand."""
    up: Mapping[str, float]
    down: Mapping[str, float]
    session_bytes: Mapping[int, float]
    """By the number of messages."""
    tools: float
    replaced: float
    logged: float
    line_us: float | None = None
    """Of each session, where all are listed."""
    audit_us: float | None = None

    @classmethod
    def of(cls, scale: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> Figures:
        """Of a run of `bench.scale`, and the rows of one of `bench`."""
        best: dict[str, Mapping[str, Any]] = {}
        for line in scale["scale"]:
            if line["askers"] == "connections":
                operation = line["operation"]
                best[operation] = max(line, best.get(operation, line), key=lambda each: each["a_second"])
        server = {operation: line["server_us"] for operation, line in best.items()}
        asked = {(line["operation"], line["askers"]): line["server_us"] for line in scale["cluster"]["lines"]}
        for operation in cluster.OPERATIONS:
            server[operation] = max(asked[operation, f"{cluster.NODE} {n}"] for n in range(1, cluster.PRIMARIES + 1))
        added = asked["commit", cluster.SAFE] - asked["commit", cluster.ONE]
        waits = scale["cluster"]["waits"]
        names = {"commit": "commit", "refresh": "refresh", "resume by another": "resume, nothing at hand"}
        worker = {operation: waits[name]["cluster_us"] for operation, name in names.items()}
        stored = scale["stored"]
        found = {row["what"]: row["value"] for row in rows}
        return cls(
            server,
            max(added, 0.0),
            worker,
            {operation: line["up"] for operation, line in best.items()},
            {operation: line["down"] for operation, line in best.items()},
            {int(length): size for length, size in stored["sessions"].items()},
            stored["tools"],
            stored["replaced"],
            stored["logged"],
            _of(found, "in one pass"),
            _of(found, "audit of"),
        )


def _of(found: Mapping[str, float], words: str) -> float | None:
    return next((value for what, value in found.items() if words in what), None)


@cache
def busiest(asked: Asked, primaries: int) -> float:
    """How many times its even share of the turns the busiest primary gets."""
    head = min(asked.sessions, HEAD)
    falling = cluster.by_node(Layout("crowd", asked.shards), primaries, head, asked.exponent)
    weight = sum(weights(head, asked.exponent)) / _all_weights(asked)
    return max(falling) * primaries * weight + 1 - weight


def hottest(asked: Asked) -> float:
    """The share of the turns that the busiest session takes."""
    return 1 / _all_weights(asked)


@cache
def _all_weights(asked: Asked) -> float:
    """Those of the many by an integral: 0.1 per mille beside their sum."""
    head, power = min(asked.sessions, HEAD), 1 - asked.exponent
    tail = math.log(asked.sessions / head) if not power else (asked.sessions**power - head**power) / power
    return sum(weights(head, asked.exponent)) + tail


@dataclass(frozen=True, slots=True)
class Estimate:
    """For one way to begin a turn."""

    asked: Asked
    figures: Figures
    turn: str

    @property
    def turn_us(self) -> float:
        """Of a server's core."""
        return self.figures.server_us[self.turn] + self.figures.server_us["commit"] + self.figures.safe_us

    @property
    def cores(self) -> float:
        return self.asked.turns * self.turn_us / 1e6

    @property
    def session_bytes(self) -> float:
        """By a straight line through the lengths that were weighed."""
        (low, small), *_, (high, large) = sorted(self.figures.session_bytes.items())
        return small + (self.asked.messages - low) * (large - small) / (high - low)

    @property
    def memory(self) -> dict[str, float]:
        """Bytes, without replicas."""
        return {
            "sessions": self.asked.sessions * self.session_bytes,
            "replaced": self.asked.turns * self.asked.grace * self.figures.replaced,
            "tools": self.asked.shards * self.figures.tools,
        }

    @property
    def by_memory(self) -> int:
        """Primaries."""
        return math.ceil(sum(self.memory.values()) / self.asked.memory_gb / 1e9)

    @property
    def by_cores(self) -> int:
        """Primaries of which none is fuller than it may be."""
        fewest = math.ceil(self.cores / self.asked.fill)
        return next(n for n in count(fewest) if self.cores / n * busiest(self.asked, n) <= self.asked.fill)

    @property
    def primaries(self) -> int:
        return max(self.by_memory, self.by_cores)

    @property
    def top(self) -> float:
        """Turns a second of the busiest primary."""
        return self.asked.turns / self.primaries * busiest(self.asked, self.primaries)

    def bits(self, way: Mapping[str, float]) -> float:
        """A second, of the busiest primary."""
        return self.top * 8 * (way[self.turn] + way["commit"])

    @property
    def wait_us(self) -> float:
        """Of a worker, for a turn."""
        return self.figures.worker_us[self.turn] + self.figures.worker_us["commit"]

    def needs(self) -> list[tuple[str, str, str]]:
        """What is needed, how much of it, and what that comes from."""
        asked, figures, memory = self.asked, self.figures, self.memory
        took = figures.server_us
        apiece = ", ".join(f"{took[turn]:.0f} a {turn}" for turn in TURNS)
        total, log = sum(memory.values()), self.top * figures.logged
        traffic = [(way[self.turn] + way["commit"]) / 1e3 for way in (figures.up, figures.down)]
        rate = [self.bits(way) / 1e9 for way in (figures.up, figures.down)]
        return [
            (
                "cores of servers, full",
                f"{self.cores:.1f}",
                f"{took['commit']:.0f} µs a commit, {figures.safe_us:.0f} its log and replica, {apiece}",
            ),
            (
                "memory of the sessions",
                f"{memory['sessions'] / 1e9:,.0f} GB",
                f"{self.session_bytes:,.0f} bytes a session of {asked.messages} messages",
            ),
            (
                f"memory of what turns replaced in {asked.grace:.0f} s",
                f"{memory['replaced'] / 1e9:,.0f} GB",
                f"{figures.replaced:,.0f} bytes a turn",
            ),
            (
                "memory of the tool state, one for all sessions",
                f"{memory['tools'] / 1e6:,.0f} MB",
                f"{figures.tools:,.0f} bytes in each of {asked.shards:,} shards",
            ),
            (
                "memory in all; with replicas",
                f"{total / 1e9:,.0f} GB; {total * (1 + asked.replicas) / 1e9:,.0f} GB",
                f"{asked.replicas} of each primary",
            ),
            (f"primaries by memory, {asked.memory_gb:.0f} GB each", f"{self.by_memory}", "the memory"),
            (
                f"primaries by processor, {asked.fill:.0%} of a core at most",
                f"{self.by_cores}",
                f"the cores; the busiest has {busiest(asked, self.by_cores):.2f} times its even share of the turns",
            ),
            ("servers, with replicas", f"{self.primaries * (1 + asked.replicas)}", "the larger of both"),
            (
                "shards of a primary; sessions of a shard",
                f"{asked.shards / self.primaries:.0f}; {asked.sessions / asked.shards:,.0f}",
                f"{asked.shards:,} shards, a slot each",
            ),
            ("what moves as one: a shard", f"{total / asked.shards / 1e6:,.0f} MB", "the memory"),
            (
                "the busiest primary: turns a second; of its core",
                f"{self.top:,.0f}; {self.top * self.turn_us / 1e6:.0%}",
                f"{busiest(asked, self.primaries):.2f} times the mean: Zipf's law, exponent {asked.exponent}",
            ),
            (
                "its network, in; out",
                "; ".join(f"{each:.2f}" for each in rate) + " Gbit/s",
                "; ".join(f"{each:.1f}" for each in traffic) + " KB a turn",
            ),
            (
                "its log, and the stream to each replica",
                f"{log / 1e6:,.0f} MB/s",
                f"{figures.logged:,.0f} bytes a commit",
            ),
            (
                "calls of workers under way at once",
                f"{asked.turns * self.wait_us / 1e6:,.0f}",
                f"{self.wait_us:,.0f} µs that a turn waits for an idle cluster",
            ),
        ]

    def ends(self) -> dict[str, tuple[float, str]]:
        """What ends: at how many times what was asked, and how much that is."""
        asked, figures = self.asked, self.figures
        room = self.primaries * asked.memory_gb * 1e9 - self.memory["replaced"] - self.memory["tools"]
        sessions = room / self.session_bytes
        found = {"memory": (sessions / asked.sessions, f"{sessions / 1e6:,.1f} million sessions")}
        fuller = max(self.bits(figures.up), self.bits(figures.down))
        apart = hottest(asked) * asked.turns
        for what, times in {
            "the busiest primary's core, all of it": 1e6 / self.turn_us / self.top,
            f"the busiest primary's network of {asked.gigabits:.0f} Gbit/s, the fuller way": asked.gigabits
            * 1e9
            / fuller,
            f"the busiest session ({hottest(asked):.1%} of the turns), its turns without a pause": 1e6
            / self.wait_us
            / apart,
        }.items():
            found[what] = (times, f"{asked.turns * times:,.0f} turns a second")
        return found


def through_all(asked: Asked, figures: Figures) -> list[str]:
    """What goes through all sessions one after the other."""
    told = []
    if figures.line_us is not None:
        told.append(
            f"all sessions listed: {asked.sessions * figures.line_us / 6e7:,.0f} min ({figures.line_us:.0f} µs a line)"
        )
    if figures.audit_us is not None:
        hours = asked.sessions * figures.audit_us / 3.6e9
        told.append(f"all sessions audited by one process: {hours:,.1f} h ({figures.audit_us:.0f} µs a session)")
    return told


def text(asked: Asked, figures: Figures) -> str:
    estimates = [Estimate(asked, figures, turn) for turn in TURNS]
    titles = [f"{turn} + commit" for turn in TURNS]
    cold, warm = (estimate.needs() for estimate in estimates)
    needs = [[what, value, other, source] for (what, value, source), (_, other, _) in zip(cold, warm, strict=True)]
    first, second = (estimate.ends() for estimate in estimates)
    ends = [
        [what, *(f"{times:,.1f} times: {at}" for times, at in (first[what], second[what]))]
        for what in sorted(first, key=lambda what: first[what][0])
    ]
    return "\n\n".join(
        [
            f"{asked.sessions:,} sessions, {asked.turns:,.0f} turns a second:",
            report.markdown([["what", *titles, "from (the first column)"], *needs]),
            "What ends first on these servers, each used to its end, at how many times what was asked:",
            report.markdown([["what ends", *titles], *ends]),
            *through_all(asked, figures),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    wrote = "what `python -m bench.scale --json` wrote (%(default)s, by `make bench-scale`)"
    parser.add_argument("scale", type=Path, nargs="?", default=Path("bench/results/scale.json"), help=wrote)
    parser.add_argument("bench", type=Path, nargs="?", help="what `python -m bench --json` wrote")
    asked_for = {
        "sessions": (int, "that are held"),
        "turns": (float, "a second"),
        "messages": (int, "of a session"),
        "memory_gb": (float, "GB that the sessions of one server may take"),
        "fill": (float, "share of a server's core that may be in use"),
    }
    for name, (kind, what) in asked_for.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=getattr(Asked(), name), help=f"{what} (%(default)s)")
    options = parser.parse_args()
    if not options.scale.is_file():
        parser.error(f"there is no {options.scale}: run `make bench-scale`, which takes five minutes")
    rows = json.loads(options.bench.read_text())["runs"][0]["rows"] if options.bench else ()
    asked = Asked(options.sessions, options.turns, options.messages, memory_gb=options.memory_gb, fill=options.fill)
    print(text(asked, Figures.of(json.loads(options.scale.read_text())["runs"][0], rows)))


if __name__ == "__main__":
    main()
