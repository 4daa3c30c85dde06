"""How many bytes does a session take with all that is its own, does a turn leave behind, and does a commit log?

Sessions of one shard that share their tool state take turns of two messages and 12 KB of new state. What a turn
replaced stays for `blob_grace`: `gc` shows how much that is. What a commit adds to the append-only file is what it
sends to each replica, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from bench import memory, report, workload
from lash_redis import SessionCache, StoreOptions
from lash_redis.embedded import EmbeddedServer

LENGTHS = (20, 100)
"""Messages after which a session is weighed."""

WARM = 500
"""Turns after which scripts, buffers and Lua's heap are as large as they get."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes of memory, and of the append-only file."""

    sessions: dict[str, float]
    """Of a session, by the number of its messages."""
    records: dict[str, float]
    """Of these, what the messages themselves take at least."""
    tools: float
    """Of a tool state, once in each shard."""
    replaced: float
    """That each turn leaves behind, for `blob_grace`."""
    logged: float
    """That each commit adds to the append-only file."""


def table(stored: Stored) -> str:
    lines = [["bytes", ""]]
    for length, size in stored.sessions.items():
        lines.append([f"a session of {length} messages ({stored.records[length]:,.0f} of records)", f"{size:,.0f}"])
    lines.append(["a tool state, once in a shard", f"{stored.tools:,.0f}"])
    lines.append(["left behind by a turn, for `blob_grace`", f"{stored.replaced:,.0f}"])
    lines.append(["logged by a commit, and sent to each replica", f"{stored.logged:,.0f}"])
    return report.markdown(lines)


async def stored(binary: Path | None, sessions: int) -> Stored:
    kept = {"auto-aof-rewrite-percentage": "0"}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        EmbeddedServer(Path(folder), binary=binary, options=kept) as server,
    ):
        async with redis.from_url(server.url) as client:
            return await _stored(client, SessionCache(client, "stored", options=StoreOptions(shards=1)), sessions)


async def _stored(client: redis.Redis, cache: SessionCache, count: int) -> Stored:
    tools = workload.tool_state()
    warm = workload.Session(SessionCache(client, "warm"), "warm")
    await warm.begin(tools, workload.line(0, 2, None))
    await _take([warm] * WARM)
    first = workload.Session(cache, "first")
    await first.begin(tools, workload.line(0, 2, None), states=False)
    shared = await memory.usage(client, "lash2:{stored:*:blob:*")
    before = await _used(client)
    sessions = [workload.Session(cache, f"{number}") for number in range(count)]
    for session in sessions:
        session.tool_ref = first.tool_ref
    took: dict[str, float] = {}
    records: dict[str, float] = {}
    raw = replaced = logged = 0.0
    for length in LENGTHS:
        turns = [session for _ in range((length - sessions[0].nodes) // 2) for session in sessions]
        at = await _logged(client)
        raw += await _take(turns)
        logged = (await _logged(client) - at) / len(turns)
        full = await _used(client)
        await cache.gc()
        took[str(length)], records[str(length)] = (await _used(client) - before) / count, raw / count
        replaced = (full - await _used(client)) / len(turns)
    return Stored(took, records, shared, replaced, logged)


async def _take(turns: Sequence[workload.Session]) -> int:
    raw = 0
    for session in turns:
        commit = session.turn()
        raw += workload.record_bytes(commit)
        await session.take(commit)
    return raw


async def _used(client: redis.Redis) -> int:
    return int((await client.info("memory"))["used_memory"])


async def _logged(client: redis.Redis) -> int:
    told: Any = await client.info("persistence")
    assert not told["aof_rewrite_in_progress"]
    return int(told["aof_current_size"])
