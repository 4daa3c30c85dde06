"""How many bytes does a session take in Redis beyond its records?"""

from __future__ import annotations

import redis.asyncio as redis

from bench import bare, workload
from bench.report import Row, is_valkey
from lash_redis import FullGraph, SessionCache, StoreOptions


async def usage(client: redis.Redis, pattern: str) -> int:
    """Return the sum of MEMORY USAGE over all matching keys, with every element sampled."""
    keys = [key async for key in client.scan_iter(pattern, count=1000)]
    return sum([await client.memory_usage(key, samples=0) or 0 for key in keys])


async def measure(client: redis.Redis, *, quick: bool) -> list[Row]:
    return [
        await _thousand_nodes_row(client),
        await _hundred_nodes_row(client),
        *await _one_more_rows(client, 100 if quick else 500),
    ]


async def _thousand_nodes_row(client: redis.Redis) -> Row:
    """Measure the keys of a session of 1,000 nodes and 500 turns, without the blobs of its states."""
    session, plain = workload.Session(SessionCache(client, "bench-memory"), "1000"), bare.Session(client, "memory", b"")
    raw = 0
    await plain.begin([])
    for _ in range(500):
        commit = session.turn()
        raw += workload.record_bytes(commit)
        await session.commit(commit)
        await plain.commit(plain.turn())
    ours = await usage(client, "lash2:{bench-memory:*:1000")
    theirs = await usage(client, "bare:*:memory") - sum([await client.memory_usage(blob) or 0 for blob in plain.blobs])
    text = f"{ours / 1024:,.0f} KiB, records {raw / 1024:,.0f} KiB"
    numbers = {"ours": ours, "bare": theirs, "records": raw}
    against = f"bare: {theirs / 1024:,.0f} KiB"
    return Row("memory of 1,000 nodes / their records", text, against, ours / raw, 1.25, numbers=numbers)


async def _hundred_nodes_row(client: redis.Redis) -> Row:
    """Measure sessions of 100 nodes with 4 KB of plugin and 8 KB of execution state, which share one tool state."""
    cache, tools, count = (
        SessionCache(client, "bench-hundred", options=StoreOptions(shards=1)),
        workload.tool_state(),
        50,
    )
    await workload.Session(cache, "first").begin(tools, workload.chain(0, 100, None))
    before = int((await client.info("memory"))["used_memory"])
    for number in range(count):
        await workload.Session(cache, f"{number:02d}").begin(tools, workload.chain(0, 100, None))
    each = (int((await client.info("memory"))["used_memory"]) - before) / count
    return Row("memory of a session of 100 nodes with 12 KB of state", f"{each:,.0f} bytes", "", each, unit=" bytes")


async def _one_more_rows(client: redis.Redis, sessions: int) -> list[Row]:
    """Measure sessions of 20 nodes and 10 turns in one shard, which share a tool state of 50 KB."""
    cache = SessionCache(client, "bench-shared", options=StoreOptions(shards=1))
    first = workload.Session(cache, "first")
    await first.begin(workload.tool_state(50 * 1024), workload.chain(0, 2, None), states=False)
    before, raw = int((await client.info("memory"))["used_memory"]), 0
    for number in range(sessions):
        session = workload.Session(cache, f"one-more-{number:04d}")
        session.tool_ref = first.tool_ref
        for _ in range(10):
            commit = session.turn(states=False)
            raw += workload.record_bytes(commit)
            await session.commit(commit)
    read = await cache.session("one-more-0000").load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    assert read.checkpoint.tool_state is not None
    used = int((await client.info("memory"))["used_memory"]) - before
    keys = await usage(client, "lash2:{bench-shared:*:one-more-*")
    rows, budget = [], 1638 if await is_valkey(client) else 2970
    for how, size in (("used_memory", used), ("MEMORY USAGE", keys)):
        beyond = (size - raw) / sessions
        rows.append(
            Row(
                f"memory of one more session with a shared tool state, beyond its records ({how})",
                f"{size / sessions:,.0f} bytes",
                f"records {raw / sessions:,.0f} bytes",
                beyond,
                budget,
                " bytes",
                {"bytes": size / sessions, "records": raw / sessions, "sessions": sessions},
            )
        )
    return rows
