"""The store contract of the lash runtime, and functions that load and refresh a runtime's session state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lash_redis.models import (
    ActivePath,
    FullGraph,
    GcReport,
    PersistedSessionRead,
    PersistedSessionState,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionMeta,
    SessionNodeRecord,
    SessionReadScope,
    TombstoneReport,
    VacuumReport,
)


@runtime_checkable
class RuntimePersistence(Protocol):
    """The contract of a session store. `RedisSessionStore` documents each method.

    Source: lash-core, `store.rs`, 0.1.0-alpha.1.
    """

    async def load_session(self, scope: SessionReadScope) -> PersistedSessionRead | None: ...

    async def load_node(self, node_id: str) -> SessionNodeRecord | None: ...

    async def commit_runtime_state(self, commit: RuntimeCommit) -> RuntimeCommitResult: ...

    async def save_session_meta(self, meta: SessionMeta) -> None: ...

    async def load_session_meta(self) -> SessionMeta | None: ...

    async def tombstone_nodes(self, ids: Sequence[str]) -> TombstoneReport | None: ...

    async def vacuum(self) -> VacuumReport: ...

    async def gc_unreachable(self) -> GcReport: ...


@runtime_checkable
class Refreshing(RuntimePersistence, Protocol):
    """A store that can also refresh a read by fetching only what is new. This is an addition to the contract."""

    @property
    def session_id(self) -> str: ...

    async def refresh(self, read: PersistedSessionRead) -> PersistedSessionRead | None: ...


async def load_persisted_session_state(store: RuntimePersistence) -> PersistedSessionState | None:
    """Load the state of a session with its full graph; None if it has no head."""
    read = await store.load_session(FullGraph())
    return None if read is None else PersistedSessionState.from_read(read)


async def load_persisted_session_state_active_path(
    store: RuntimePersistence, leaf_node_id: str | None = None
) -> PersistedSessionState | None:
    """Load the state of a session with the path to `leaf_node_id` (default: the head's leaf); None without a head.

    A full replacement committed from such a state deletes every other branch.
    """
    read = await store.load_session(ActivePath(leaf_node_id))
    return None if read is None else PersistedSessionState.from_read(read)


async def refresh_persisted_session_state(store: RuntimePersistence, state: PersistedSessionState) -> None:
    """Replace `state` by what is stored, and drop its uncommitted changes. Without a head it stays unchanged.

    Fields that the store does not own stay too: the live provider, session id, turn limit, autonomy and prompt of the
    policy. If `state` comes from a full read, a `Refreshing` store fetches only what is new since that read.
    """
    known = state._read
    if known is not None and isinstance(store, Refreshing) and store.session_id == known.session_id:
        read = await store.refresh(known)
    else:
        read = await store.load_session(FullGraph())
    if read is not None:
        state.adopt(read)
