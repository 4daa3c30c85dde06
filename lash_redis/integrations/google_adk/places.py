"""How a state is stored: a snapshot, and entries behind it whose deltas it does not contain yet.

A commit adds one entry. It replaces the snapshot if `MIN_REACH` entries are behind it and have as many bytes as the
snapshot, or if `MAX_REACH` are. So a commit writes, on average, twice what it adds and a thousandth of the state. A
reader of the state reads at most twice its bytes and `MIN_REACH` entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from lash_redis.models import (
    Append,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    ReplaceFull,
    RuntimeCommit,
    Unchanged,
)
from lash_redis.options import KEEP, Keep
from lash_redis.session.store import RedisSessionStore

MIN_REACH: Final = 32
MAX_REACH: Final = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """The revision of a stored session, and the number and size of the entries that its snapshot does not contain."""

    revision: int = 0
    commit_id: str | None = None
    leaf: str | None = None
    reach: int = 0
    """The number of last entries whose deltas the snapshot does not contain."""
    size: int = 0
    """The bytes of these entries."""
    snapshot: int = 0
    """The bytes of the snapshot."""

    @classmethod
    def of(cls, read: PersistedSessionRead, reach: int, size: int) -> Self:
        leaf = read.graph.leaf_node_id
        return cls(read.head_revision, read.commit_id, leaf, reach, size, len(snapshot_bytes(read)))

    def is_snapshot_due(self, added: int) -> bool:
        """Whether the commit that adds an entry of so many bytes writes the snapshot."""
        is_small = self.snapshot <= self.size + added
        return self.reach >= MAX_REACH or (self.reach >= MIN_REACH and is_small)


async def commit(
    store: RedisSessionStore,
    place: Place,
    graph: Append | ReplaceFull | Unchanged,
    checkpoint: HydratedSessionCheckpoint | Keep = KEEP,
    ttl: float | Keep | None = KEEP,
) -> Place:
    """Commit to a session whose head is that of `place`, and return the new place, with a `reach` and `size` of 0.

    Raises:
        HeadRevisionConflict: the session has another head; nothing was written.
        Everything else that `RedisSessionStore.commit_runtime_state` raises.
    """
    made = RuntimeCommit(
        store.session_id, place.revision, graph=graph, checkpoint=checkpoint, builds_on=place.commit_id
    )
    result = await store.commit_runtime_state(made, ttl=ttl)
    leaf = graph.nodes[-1].node_id if isinstance(graph, Append) else graph.leaf_node_id
    snapshot = None if isinstance(checkpoint, Keep) else checkpoint.execution_state
    size = place.snapshot if snapshot is None else len(snapshot)
    return Place(result.head_revision, result.commit_id, leaf, snapshot=size)


def snapshot_bytes(read: PersistedSessionRead) -> bytes:
    return (read.checkpoint and read.checkpoint.execution_state) or b""


def snapshot_of(read: PersistedSessionRead) -> dict[str, Any]:
    """Decode the snapshot of a read; empty if it has none."""
    content = snapshot_bytes(read)
    decoded: dict[str, Any] = json.loads(content) if content else {}
    return decoded


def checkpoint_of(snapshot: Mapping[str, Any]) -> HydratedSessionCheckpoint:
    return HydratedSessionCheckpoint(execution_state=json.dumps(snapshot, separators=(",", ":")).encode())
