"""Build commits in few words, and read the keys of a session without code of this package."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.asyncio

from lash_redis import (
    Append,
    EventPayload,
    GraphCommitDelta,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PersistedSessionRead,
    PluginSessionSnapshot,
    ReplaceFull,
    RuntimeCommit,
    SessionGraph,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
    Unchanged,
)
from lash_redis.models import PluginSnapshotEntry, PluginSnapshotMeta

FACTS = (
    "revision", "epoch", "length", "live", "jumps", "dead", "ids", "bytes", "leaf", "usage", "loose", "deadline",
    "hold", "committed", "users", "first", "high", "low",
)  # fmt: skip
FAMILIES = ("head", "log", "nodes", "jumps", "dead")


def node(node_id: str, parent: str | None = None, *, text: str = "hello", timestamp: str = "t") -> SessionNodeRecord:
    return SessionNodeRecord(node_id, parent, timestamp, EventPayload({"Conversation": {"id": node_id, "text": text}}))


def chain(*ids: str, parent: str | None = None, text: str = "hello", timestamp: str = "t") -> list[SessionNodeRecord]:
    """Each node is the child of the one before it."""
    parents = (parent, *ids)[: len(ids)]
    return [node(each, above, text=text, timestamp=timestamp) for each, above in zip(ids, parents, strict=True)]


def append(*ids: str, parent: str | None = None, text: str = "hello") -> Append:
    return Append(chain(*ids, parent=parent, text=text), ids[-1])


def replace_full(*ids: str) -> ReplaceFull:
    return ReplaceFull(SessionGraph(chain(*ids), ids[-1] if ids else None))


EMPTY = Unchanged()


def commit(
    expected: int | None = None, graph: GraphCommitDelta = EMPTY, *, session_id: str = "chat", **more: Any
) -> RuntimeCommit:
    """A commit that leaves nothing out: by default it resets the config and the checkpoint, and removes the leaf."""
    whole: dict[str, Any] = {"config": PersistedSessionConfig(), "checkpoint": HydratedSessionCheckpoint()}
    return RuntimeCommit(session_id=session_id, expected_head_revision=expected, graph=graph, **{**whole, **more})


def used(
    source: str = "turn",
    model: str = "m",
    *,
    input: int = 0,  # noqa: A002 - the counters keep their names
    output: int = 0,
    cached: int = 0,
    reasoning: int = 0,
) -> TokenLedgerEntry:
    return TokenLedgerEntry(source, model, TokenUsage(input, output, cached, reasoning))


def tools(text: str = "search the web") -> ToolState:
    return ToolState(1, {"search": ToolStateEntry({"description": text}, "plugins")})


def plugins(state: Any = "notes") -> PluginSessionSnapshot:
    return PluginSessionSnapshot({"p": PluginSnapshotEntry(PluginSnapshotMeta("p", "1", 1, state))})


def ids_of(read: PersistedSessionRead | None) -> list[str]:
    assert read is not None
    return [each.node_id for each in read.graph.nodes]


def numbered(count: int) -> Sequence[str]:
    """Ids of equal length, so that records that contain them have equal length."""
    return [f"n{at:06}" for at in range(count)]


async def key_of(client: redis.asyncio.Redis, family: str, session_id: str = "chat") -> bytes:
    """The only key of this family and session."""
    (key,) = [key for key in await client.keys("*") if key.endswith(f":{family}:{session_id}".encode())]
    return bytes(key)


async def blob_keys(client: redis.asyncio.Redis) -> list[bytes]:
    return sorted(await client.keys("lash2:*:blob:*"))


async def holders(client: redis.asyncio.Redis) -> list[int]:
    """The number of holders of each stored blob, ascending."""
    return sorted([sum((await holds(client, key)).values()) for key in await blob_keys(client)])


async def holds(client: redis.asyncio.Redis, blob: bytes | str) -> dict[int, int]:
    """How many sessions hold a blob until which time (ms; 0: without end)."""
    return {int(field): int(count) for field, count in (await client.hgetall(blob)).items() if field.isdigit()}


async def facts_of(client: redis.asyncio.Redis, session_id: str = "chat") -> dict[str, int]:
    stored = await client.hget(await key_of(client, "head", session_id), "facts")
    return dict(zip(FACTS, map(int, stored.split()), strict=True))


async def let_all_expire(client: redis.asyncio.Redis, within: float) -> None:
    """Check that every key expires within so many seconds, except the layout; then let them expire at once."""
    for key in set(await client.keys("*")) - {b"lash1:layout:laws"}:
        assert 0 < await client.pttl(key) <= within * 1000, key
        await client.pexpire(key, 1)
    while await client.keys("*") != [b"lash1:layout:laws"]:  # noqa: ASYNC110 - no event reports an expiry
        await asyncio.sleep(0.002)


async def plant_fact(client: redis.asyncio.Redis, name: str, value: object) -> None:
    """Overwrite one number in the head."""
    head = await key_of(client, "head")
    stored = (await client.hget(head, "facts")).split()
    stored[FACTS.index(name)] = str(value).encode()
    await client.hset(head, "facts", b" ".join(stored))
