"""Make LangGraph checkpoints in few words, and count what a thread stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple

from lash_redis import SessionCache
from lash_redis.integrations.langgraph import LashCheckpointSaver


def config(thread_id: str = "thread", ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    configurable: dict[str, Any] = {"thread_id": thread_id, "checkpoint_ns": ns}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint(
    checkpoint_id: str, values: Mapping[str, Any] | None = None, versions: Mapping[str, Any] | None = None
) -> Checkpoint:
    """A checkpoint whose channels have version 1, or the one in `versions`."""
    values = values or {}
    return Checkpoint(
        v=4,
        id=checkpoint_id,
        ts="2026-01-01T00:00:00+00:00",
        channel_values=dict(values),
        channel_versions={**dict.fromkeys(values, 1), **(versions or {})},
        versions_seen={},
        updated_channels=None,
    )


async def put(
    saver: LashCheckpointSaver,
    checkpoint_id: str,
    values: Mapping[str, Any] | None = None,
    *,
    on: RunnableConfig | None = None,
    thread_id: str = "thread",
    ns: str = "",
    version: Any = None,
    **metadata: Any,
) -> RunnableConfig:
    """Put a checkpoint whose channels are all new, on a parent (`on`) or as the first of its namespace."""
    parent = config(thread_id, ns) if on is None else on
    versions = dict.fromkeys(values or {}, version or checkpoint_id)
    made = checkpoint(checkpoint_id, values, versions)
    return await saver.aput(parent, made, {"source": "loop", "step": 0, **metadata}, versions)  # type: ignore[typeddict-item]


async def listed(saver: LashCheckpointSaver, *args: Any, **named: Any) -> list[str]:
    return [found.checkpoint["id"] async for found in saver.alist(*args, **named)]


async def load(saver: LashCheckpointSaver, *args: Any) -> CheckpointTuple:
    found = await saver.aget_tuple(config(*args))
    assert found is not None
    return found


async def part_count(cache: SessionCache, thread_id: str = "thread") -> int:
    return len(await cache.documents(thread_id).part_names())
