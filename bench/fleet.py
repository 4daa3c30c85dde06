"""Does any cost grow with the number of sessions? 100,000 sessions of 20 nodes share a tool state of 50 KB."""

from __future__ import annotations

from collections.abc import AsyncIterable
from statistics import median
from time import perf_counter

import msgpack
import redis.asyncio as redis

from bench import bare, commits, workload
from bench.measure import Contender, Times, in_turn, interleaved
from bench.report import Row, is_valkey, time_row
from lash_redis import SessionCache, SessionPickerInfo, ToolState

PAGE, PAGES_TIMED = 100, 20
ROUNDS = 400
OWNED = {"one": 1, "hundred": 100, "many": 10_000}
"""The number of sessions of each owner."""
LATEST = 100
"""Number of sessions that take turns when commits are timed."""


async def measure(client: redis.Redis, *, quick: bool) -> list[Row]:
    few, count = 500, 5_000 if quick else 100_000
    await client.flushall()  # otherwise released blobs of earlier groups would expire during the run
    cache, tools = SessionCache(client, "fleet"), workload.tool_state(50 * 1024)
    fleet, plain = _Fleet(cache), await _begin_bare_sessions(client)
    await fleet.grow(few, tools)
    at_first = await _time_commits(fleet, plain)
    await cache.gc()
    used, records = await _used(client), fleet.record_bytes
    await fleet.grow(count - few, tools)
    beyond = (await _used(client) - used - (fleet.record_bytes - records)) / (count - few)
    at_last = await _time_commits(fleet, plain)
    what = f"memory of a session among {count:,} with a shared tool state, beyond its records"
    records_text = f"records {fleet.record_bytes / count:,.0f} bytes"
    return [
        Row(what, f"{beyond:,.0f} bytes", records_text, beyond, 1638 if await is_valkey(client) else 2970, " bytes"),
        _growth_row(
            f"commit of 2 nodes among {count:,} sessions / among {few:,}, both as ratios to bare", at_first, at_last
        ),
        *await _page_rows(cache, count),
        await _audit_row(cache, count),
        *await _owner_rows(SessionCache(client, "owners")),
    ]


class _Fleet:
    """Sessions of 20 nodes, each made in one commit."""

    def __init__(self, cache: SessionCache) -> None:
        self._cache = cache
        self.made = self.record_bytes = 0
        self.latest: list[workload.Session] = []

    async def grow(self, count: int, tools: ToolState) -> None:
        for number in range(self.made, self.made + count):
            session = workload.Session(self._cache, f"session-{number:07d}")
            nodes = workload.chain(0, 20, None)
            self.record_bytes += sum(len(workload.packed(node)) for node in nodes)
            await session.begin(tools, nodes, states=False)
            self.latest = [*self.latest[1 - LATEST :], session]
        self.made += count


async def _begin_bare_sessions(client: redis.Redis) -> list[bare.Session]:
    """Begin as many bare sessions as take turns on the other side, so that the processor caches neither side."""
    packed = msgpack.packb(workload.tool_state().to_msgpack())
    sessions = [bare.Session(client, f"fleet-{number}", packed) for number in range(LATEST)]
    for session in sessions:
        await session.begin(workload.chain(0, 20, None))
    return sessions


async def _used(client: redis.Redis) -> int:
    return int((await client.info("memory"))["used_memory"])


async def _time_commits(fleet: _Fleet, plain: list[bare.Session]) -> Times:
    bare_commits = in_turn([commits.bare_commits_of(session) for session in plain])
    return await interleaved({"lash_redis": commits.commits_of(fleet.latest), "bare": bare_commits}, ROUNDS)


def _growth_row(what: str, first: Times, last: Times) -> Row:
    ratios = [times.ratio("lash_redis", "bare") for times in (first, last)]
    texts = [
        f"{times.percentile('lash_redis', 50):,.0f} / {times.percentile('lash_redis', 99):,.0f} µs"
        for times in (first, last)
    ]
    return Row(what, texts[1], texts[0], ratios[1] / ratios[0], 1.1, numbers={"first": ratios[0], "last": ratios[1]})


async def _page_rows(cache: SessionCache, count: int) -> list[Row]:
    """Time each page in a call of its own, as a service requests pages, and then all pages in one call."""
    took: list[float] = []
    last: SessionPickerInfo | None = None
    while True:
        started = perf_counter()
        page = [info async for info in cache.sessions(limit=PAGE, after=last)]
        took.append((perf_counter() - started) * 1e3)
        if len(page) < PAGE:
            break
        last = page[-1]
    first, final = (median(part) for part in (took[:PAGES_TIMED], took[-PAGES_TIMED - 1 : -1]))
    what = f"list page of {PAGE} of {count:,}: the last {PAGES_TIMED} / the first {PAGES_TIMED}"
    return [
        Row(what, f"{final:.1f} ms", f"{first:.1f} ms", final / first, 1.1),
        await _listing_row(f"all {count:,} in one pass", cache.sessions(), count, count),
        await _listing_row(f"one parent's children among {count:,}", cache.sessions(parent="unknown"), 0, count),
    ]


async def _listing_row(what: str, sessions: AsyncIterable[SessionPickerInfo], expected: int, count: int) -> Row:
    started = perf_counter()
    listed = [info async for info in sessions]
    seconds = perf_counter() - started
    assert len(listed) == expected, f"expected {expected} sessions, got {len(listed)}"
    return Row(what, f"{seconds:.2f} s", "", seconds / count * 1e6, unit=" µs a session")


async def _owner_rows(cache: SessionCache) -> list[Row]:
    """Compare the first page of 20 of each owner's sessions with the first page of the sessions of all owners."""
    for owner, count in OWNED.items():
        for number in range(count):
            session = workload.Session(cache, f"{owner}-{number:05d}", owner)
            await session.begin(None, workload.chain(0, 2, None), states=False)

    def page(owner: str | None) -> Contender:
        async def run() -> None:
            listed = [info async for info in cache.sessions(owner=owner, limit=20)]
            assert len(listed) == min(20, OWNED.get(owner or "", 20))

        return Contender(run)

    times = await interleaved({"all": page(None), **{owner: page(owner) for owner in OWNED}}, ROUNDS)
    total = sum(OWNED.values())
    return [
        time_row(f"list page of 20 of an owner's {count:,} sessions / of all {total:,}", times, owner, "all")
        for owner, count in OWNED.items()
    ]


async def _audit_row(cache: SessionCache, count: int) -> Row:
    started = perf_counter()
    report = await cache.audit()
    seconds = perf_counter() - started
    assert report.problem_count == 0, report.problems[:3]
    assert report.session_count == count
    return Row(f"audit of {count:,} sessions", f"{seconds:.1f} s", "", seconds / count * 1e6, unit=" µs a session")
