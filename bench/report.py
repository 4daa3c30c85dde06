"""How are results, budgets and the machine shown? Tables in Markdown, and JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import redis.asyncio as redis

from bench.measure import ServerCost, Times


@dataclass(slots=True)
class Row:
    """One line of a table: what was measured, both results, the ratio (or a plain value), and its budget."""

    what: str
    ours: str
    other: str
    value: float
    budget: float | None = None
    unit: str = "x"
    numbers: dict[str, Any] = field(default_factory=dict)
    is_least: bool = False
    """Whether the budget is a lower limit instead of an upper one."""

    @property
    def met(self) -> bool | None:
        if self.budget is None:
            return None
        return self.value >= self.budget if self.is_least else self.value <= self.budget

    def cells(self) -> list[str]:
        budget = "" if self.budget is None else f"{'≥' if self.is_least else '≤'} {_plain(self.budget)}{self.unit}"
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        return [self.what, self.ours, self.other, f"{_plain(self.value)}{self.unit}", budget, met]

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def _plain(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 10 and value != int(value) else f"{value:,.0f}"


def time_row(what: str, times: Times, ours: str, other: str, budget: float | None = None) -> Row:
    """Return a row with p50 and p99 of two contenders, and the median of the rounds' ratios."""
    cells = {name: (times.percentile(name, 50), times.percentile(name, 99)) for name in (ours, other)}
    text = {name: f"{p50:,.0f} / {p99:,.0f} µs" for name, (p50, p99) in cells.items()}
    numbers = {
        "ours_p50_us": cells[ours][0],
        "ours_p99_us": cells[ours][1],
        "other_p50_us": cells[other][0],
        "other_p99_us": cells[other][1],
        "rounds": len(times.by_name[ours]),
    }
    return Row(what, text[ours], text[other], times.ratio(ours, other), budget, numbers=numbers)


def server_rows(
    what: str, costs: Mapping[str, Sequence[ServerCost]], ours: str, other: str, budget: float | None = None
) -> list[Row]:
    """Return rows for the time of the commands (INFO commandstats), which has the budget, and for processor time."""
    rows = []
    for kind, limit in (("time", budget), ("cpu", None)):
        mine, theirs = ([getattr(cost, kind) for cost in costs[name]] for name in (ours, other))
        ratio = median(a / b for a, b in zip(mine, theirs, strict=True))
        name = "command time" if kind == "time" else "processor time, I/O included"
        numbers = {"ours_us": median(mine), "other_us": median(theirs)}
        ours_text, other_text = (f"{median(side):,.0f} µs" for side in (mine, theirs))
        rows.append(Row(f"{what}: server, {name}", ours_text, other_text, ratio, limit, numbers=numbers))
    return rows


def table(rows: Sequence[Row]) -> str:
    return markdown(
        [["what", "lash_redis p50 / p99", "baseline", "ratio", "budget", "met"], *(row.cells() for row in rows)]
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of these lines. The first line has the column titles."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    text = [f"| {' | '.join(cells)} |" for cells in padded]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


async def is_valkey(client: redis.Redis) -> bool:
    return "valkey_version" in await client.info("server")


async def header(client: redis.Redis, url: str, *, quick: bool) -> dict[str, Any]:
    server = await client.info("server")
    name = "valkey" if "valkey_version" in server else "redis"
    return {
        "server": f"{name} {server[f'{name}_version']}",
        "transport": "unix socket" if url.startswith("unix:") else "loopback TCP",
        "python": platform.python_version(),
        "redis-py": version_of("redis"),
        "hiredis": version_of("hiredis"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "commit": git_commit(),
        "mode": "quick" if quick else "full",
    }


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """Return the commit of the checkout, with `+` if files differ from it; "none" outside of a checkout."""

    def git(*words: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
