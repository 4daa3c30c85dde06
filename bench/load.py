"""What came through in a stretch of time, and what did it take of the server?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from time import monotonic
from typing import Any

import redis

from bench import report

_READS = ("hgetall", "lrange", "hget", "hlen", "llen", "hmget", "exists", "get", "multi")


@dataclass(frozen=True, slots=True)
class Line:
    """One operation, by so many of those who asked for it at once."""

    operation: str
    askers: str
    count: int
    a_second: float
    p50_us: float
    p99_us: float
    busy: float
    """Share of one core that the server used."""
    server_us: float
    """Processor time of the server for one operation, I/O included."""
    command_us: float
    """Time that commands ran; by the clock, so that where other processes take the core it may be the longer one."""
    up: float = 0.0
    down: float = 0.0
    """Bytes of one operation, where they were counted."""

    @property
    def held(self) -> float:
        """How many a second a full core would hold at that price."""
        return 1e6 / self.server_us

    def cells(self) -> list[str]:
        traffic = f"{self.up / 1e3:,.1f} / {self.down / 1e3:,.1f}" if self.up else ""
        return [
            self.operation,
            f"{self.count} {self.askers}",
            f"{self.a_second:,.0f}",
            f"{self.p50_us:,.0f} / {self.p99_us:,.0f}",
            f"{self.busy:.0%}",
            f"{self.server_us:,.0f}",
            f"{self.command_us:,.0f}",
            f"{self.held:,.0f}",
            traffic,
        ]


def table(lines: Sequence[Line]) -> str:
    titles = ["what", "asked by", "a second", "p50 / p99 µs", "server busy", "server µs each", "command µs each"]
    titles += ["a full core would hold a second", "KB up / down"]
    return report.markdown([titles, *(line.cells() for line in lines)])


@dataclass(slots=True)
class Meter:
    """What a server used while it was `running`: seconds by the clock, of its processor, and of its commands."""

    client: redis.Redis
    seconds: float = 0.0
    processor: float = 0.0
    commands: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    """Of each command that clients sent."""

    @contextmanager
    def running(self) -> Iterator[None]:
        before, processor, started = self._stats(), self._used(), monotonic()
        yield
        self.seconds += monotonic() - started
        self.processor += self._used() - processor
        after = self._stats()
        spent = {name: row["usec"] - before.get(name, {"usec": 0})["usec"] for name, row in after.items()}
        # A script's time holds that of its commands; of a transaction they are counted one by one, and not by EXEC.
        scripts = spent.get("evalsha", 0)
        self.commands += (scripts or sum(spent.get(name, 0) for name in _READS)) / 1e6
        for name, row in after.items():
            self.calls[name] = self.calls.get(name, 0) + row["calls"] - before.get(name, {"calls": 0})["calls"]

    @property
    def busy(self) -> float:
        return self.processor / self.seconds

    def line(self, operation: str, askers: str, count: int, taken: Sequence[float], **traffic: float) -> Line:
        """Of operations that took these µs each while it was running."""
        p50, p99 = percentiles(taken)
        done = len(taken)
        each = (self.processor / done * 1e6, self.commands / done * 1e6)
        return Line(operation, askers, count, done / self.seconds, p50, p99, self.busy, *each, **traffic)

    def _used(self) -> float:
        used: Any = self.client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    def _stats(self) -> Mapping[str, Any]:
        stats: Any = self.client.info("commandstats")
        return {name.removeprefix("cmdstat_"): row for name, row in stats.items()}


def percentiles(taken: Sequence[float]) -> tuple[float, float]:
    """p50 and p99; of nothing 0, of a single value that value."""
    if len(taken) < 2:
        return (taken[0] if taken else 0.0,) * 2
    cut = quantiles(taken, n=100, method="inclusive")
    return cut[49], cut[98]
