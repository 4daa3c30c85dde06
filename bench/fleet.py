"""Does anything grow with the number of sessions? A hundred thousand of 20 nodes that share a tool state of 50 KB."""

from __future__ import annotations

from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import bare, commits, workload
from bench.measure import Contender, Times, interleaved
from bench.report import Row
from lash_redis import SessionCache, SessionPickerInfo, StoreOptions, ToolState

PAGE = 100
PAGES_TIMED = 20
ROUNDS = 400
LATEST = 100
"""Sessions that take turns where commits are timed."""


async def measured(client: redis.Redis, *, quick: bool) -> list[Row]:
    few, count = 500, 5_000 if quick else 100_000
    await client.flushall()  # what was measured before has let go of blobs, which would expire meanwhile
    cache = SessionCache(client, "fleet")
    tools = workload.tool_state(50 * 1024)
    fleet, plain = _Fleet(cache), await _plain(client)
    await fleet.grow(few, tools)
    at_first = await _commits(fleet, plain)
    await cache.gc()
    size, records = await _used(client), fleet.record_bytes
    started = perf_counter()
    await fleet.grow(count - few, tools)
    growing = perf_counter() - started
    beyond = (await _used(client) - size - (fleet.record_bytes - records)) / (count - few)
    at_last = await _commits(fleet, plain)
    return [
        Row(
            f"memory of a session among {count:,} with a shared tool state, beyond its records",
            f"{beyond:,.0f} bytes",
            f"records {fleet.record_bytes / count:,.0f} bytes",
            beyond,
            2048,
            " bytes",
            {"sessions": count, "seconds": growing},
        ),
        await _expiring(client, 500 if quick else 5_000, tools),
        _flat(f"commit of 2 nodes among {count:,} sessions / among {few:,}, both over bare", at_first, at_last),
        *await _pages(cache, count),
        *await _maintenance(cache, count),
    ]


class _Fleet:
    """Sessions of 20 nodes, made in one commit each; the last ones stay at hand."""

    def __init__(self, cache: SessionCache) -> None:
        self._cache = cache
        self.made = 0
        self.record_bytes = 0
        self.latest: list[workload.Session] = []

    async def grow(self, count: int, tools: ToolState) -> None:
        for number in range(self.made, self.made + count):
            session = workload.Session(self._cache, f"session-{number:07d}")
            nodes = workload.line(0, 20, None)
            self.record_bytes += sum(len(workload.packed(node)) for node in nodes)
            await session.begin(tools, nodes, states=False)
            self.latest = [*self.latest[1 - LATEST :], session]
        self.made += count


async def _plain(client: redis.Redis) -> list[bare.Session]:
    """As many bare sessions as ours take turns, so that neither side's are all in the processor's cache."""
    packed = msgpack.packb(workload.tool_state().to_msgpack())
    sessions = [bare.Session(client, f"fleet-{number}", packed) for number in range(LATEST)]
    for session in sessions:
        await session.begin(workload.line(0, 20, None))
    return sessions


async def _used(client: redis.Redis) -> int:
    return int((await client.info("memory"))["used_memory"])


async def _commits(fleet: _Fleet, plain: list[bare.Session]) -> Times:
    turns = cycle(plain)

    def make() -> tuple[bare.Session, list[Any]]:
        session = next(turns)
        return session, session.turn()

    async def run(made: tuple[bare.Session, list[Any]]) -> None:
        await made[0].commit(made[1])

    return await interleaved({"ours": commits.ours(fleet.latest), "bare": Contender(run, make)}, ROUNDS)


def _flat(what: str, first: Times, last: Times) -> Row:
    ratios = [times.ratio("ours", "bare") for times in (first, last)]
    texts = [f"{times.percentile('ours', 50):,.0f} / {times.percentile('ours', 99):,.0f} µs" for times in (first, last)]
    return Row(what, texts[1], texts[0], ratios[1] / ratios[0], 1.1, numbers={"first": ratios[0], "last": ratios[1]})


async def _expiring(client: redis.Redis, count: int, tools: ToolState) -> Row:
    """The same with a ttl: deadlines of keys, holds and the catalogue's second list come on top."""
    fleet = _Fleet(SessionCache(client, "expiring-fleet", ttl=86_400, options=StoreOptions(shards=1)))
    await fleet.grow(100, tools)
    size, records = await _used(client), fleet.record_bytes
    await fleet.grow(count, tools)
    beyond = (await _used(client) - size - (fleet.record_bytes - records)) / count
    text = f"records {fleet.record_bytes / (count + 100):,.0f} bytes"
    return Row("the same with a ttl, in one shard", f"{beyond:,.0f} bytes", text, beyond, unit=" bytes")


async def _pages(cache: SessionCache, count: int) -> list[Row]:
    """Every page by a list of its own, as a service makes them, then all in one pass."""
    took: list[float] = []
    last: SessionPickerInfo | None = None
    listed = 0
    while True:
        started = perf_counter()
        page = [info async for info in cache.sessions(limit=PAGE, after=last)]
        took.append((perf_counter() - started) * 1e3)
        listed += len(page)
        if len(page) < PAGE:
            break
        last = page[-1]
    assert listed == count, f"{listed} of {count} listed"
    first, final = (median(part) for part in (took[:PAGES_TIMED], took[-PAGES_TIMED - 1 : -1]))
    started = perf_counter()
    passed = len([info.session_id async for info in cache.sessions()])
    seconds = perf_counter() - started
    assert passed == count
    started = perf_counter()
    assert not [info async for info in cache.sessions(parent="nobody")]
    filtering = perf_counter() - started
    return [
        Row(
            f"list page of {PAGE} of {count:,}: the last {PAGES_TIMED} / the first {PAGES_TIMED}",
            f"{final:.1f} ms",
            f"{first:.1f} ms",
            final / first,
            1.1,
            numbers={"pages": len(took)},
        ),
        Row(f"all {count:,} in one pass", f"{seconds:.1f} s", "", seconds / count * 1e6, unit=" µs a line"),
        Row(
            f"one parent's children among {count:,}",
            f"{filtering:.2f} s",
            "",
            filtering / count * 1e6,
            unit=" µs an entry",
        ),
    ]


async def _maintenance(cache: SessionCache, count: int) -> list[Row]:
    rows = []
    started = perf_counter()
    report = await cache.audit()
    seconds = perf_counter() - started
    assert report.problem_count == 0, report.problems[:3]
    assert report.session_count == count
    rows.append(
        Row(f"audit of {count:,} sessions", f"{seconds:.1f} s", "", seconds / count * 1e6, unit=" µs a session")
    )
    took = []
    for number in range(0, count, max(1, count // 200)):
        started = perf_counter()
        assert (await cache.delete(f"session-{number:07d}")).existed
        took.append((perf_counter() - started) * 1e6)
    rows.append(Row("delete of a session", f"{median(took):,.0f} µs", "", median(took), unit=" µs"))
    started = perf_counter()
    await cache.gc()
    seconds = perf_counter() - started
    rows.append(Row("gc of the namespace after it", f"{seconds * 1e3:,.0f} ms", "", seconds * 1e3, unit=" ms"))
    return rows
