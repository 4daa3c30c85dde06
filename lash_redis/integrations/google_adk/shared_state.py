"""The state of an app or of a user, which several sessions change. It is a stored session of its own.

An event is committed to its session first. Its delta is then applied here, exactly once: the state remembers of each
session the last entry whose delta it contains. A session gets its next entry only after the delta of the last one was
applied. So a delta that a worker could not apply is found by comparing the session's last entry with that memory.

When the state gets a new snapshot, the memory is cleared. A session of which it has the last entry gets a note that the
entry is settled.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from tenacity import RetryError

from lash_redis.errors import BackendError, HeadRevisionConflict, SessionDeleted
from lash_redis.integrations.google_adk.places import Place, checkpoint_of, commit, snapshot_of
from lash_redis.models import (
    Append,
    FullGraph,
    PersistedSessionRead,
    PluginPayload,
    ReplaceFull,
    SessionGraph,
    SessionNodeRecord,
)
from lash_redis.models.node import new_message_id, text_at, timestamp_now
from lash_redis.options import Keep
from lash_redis.session.contention import repeated_after_conflicts
from lash_redis.session.namespace import Namespace
from lash_redis.session.store import RedisSessionStore

DELTA: Final = "google_adk.delta"
"""The plugin type of a node with one delta."""
BATCH: Final = 16
"""Sessions that are settled at the same time."""


class StateDiffersError(ValueError):
    """A state has other values than the one that was to be imported."""


class Sessions(Protocol):
    """What a shared state has to know of the sessions that change it."""

    async def is_due(self, session: str, entry: str) -> bool:
        """Whether a stored session has that entry as its last one, and it is not settled.

        Raises:
            SessionNotFoundError: the session does not exist.
        """

    async def settle(self, session: str, entry: str) -> bool:
        """Note in a stored session that the entry is settled. False if a state does not contain its delta yet.

        True if the entry is not the last one any more, or was settled before.
        """


@dataclass(frozen=True, slots=True)
class Change:
    """The delta of one entry."""

    session: str
    """The id of the stored session."""
    entry: str
    """The id of its node."""
    delta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadedState:
    """A shared state at one revision."""

    place: Place = field(default_factory=Place)
    state: dict[str, Any] = field(default_factory=dict)
    applied: dict[str, str] = field(default_factory=dict)
    """By the id of a stored session: the last entry whose delta the state contains, until that entry is settled."""
    is_imported: bool = False
    """Whether imports alone have written it, and no session of this cache."""

    def has(self, change: Change) -> bool:
        return self.applied.get(change.session) == change.entry


class SharedState:
    """The state of one app, or of one user of an app."""

    def __init__(self, store: RedisSessionStore, namespace: Namespace, ttl: float | Keep | None) -> None:
        self.store = store
        self._namespace = namespace
        self._ttl = ttl

    async def load(self) -> LoadedState:
        """Load the state; empty if it was never changed. One round trip, O(state)."""
        return _decode(await self.store.load_session(FullGraph()))

    async def apply(self, change: Change, place: Place | None, sessions: Sessions) -> Place:
        """Apply a change unless it was applied, and return the new place of the state.

        `place` is the one before the entry was committed, so the state of that place cannot contain the change; None if
        it is unknown. One round trip if the state is still at that place, else three or more.

        Raises:
            SessionNotFoundError: the session of the change does not exist any more.
            BackendError: the server was unreachable, or other changes came first for
                `StoreOptions.contention_seconds`. The change is applied when its session is used next.
            OutcomeUnknown: the reply was lost. The change is applied, or will be when its session is used next.
        """
        patience = self._namespace.options.contention_seconds
        async with self._namespace.appends.turn(self.store.session_id, patience):
            if place is not None:
                try:
                    return await self._append(place, change, sessions)
                except (HeadRevisionConflict, SessionDeleted):
                    pass
            retrying = repeated_after_conflicts(patience)
            try:
                return await retrying(self._apply_once, change, sessions)
            except RetryError as error:
                raise BackendError(
                    f"state {self.store.session_id!r}: other changes came first for {patience:g} seconds; the event is "
                    "stored, and its delta is applied when the session is used next"
                ) from error

    async def replace_imported(self, state: dict[str, Any]) -> bool:
        """Store a whole state. It replaces an earlier import, but nothing that a session of this cache has written.

        Return False if the state is stored already. Two round trips.

        Raises:
            StateDiffersError: sessions of this cache have written other values.
            HeadRevisionConflict: the state changed meanwhile; nothing was written.
        """
        loaded = await self.load()
        stored, wanted = (json.dumps(each, sort_keys=True) for each in (loaded.state, state))
        if stored == wanted:  # as texts, because NaN is not equal to itself
            return False
        if loaded.place.revision and not loaded.is_imported:
            raise StateDiffersError("it is stored already, with other values")
        checkpoint = checkpoint_of({"state": state, "applied": {}, "imported": True})
        await commit(self.store, loaded.place, ReplaceFull(SessionGraph()), checkpoint, self._ttl)
        return True

    async def _apply_once(self, change: Change, sessions: Sessions) -> Place:
        loaded = await self.load()
        # The order counts. If the entry is due even after the state was read, the memory of it was not cleared before.
        if loaded.has(change) or not await sessions.is_due(change.session, change.entry):
            return loaded.place
        try:
            return await self._append(loaded.place, change, sessions)
        except SessionDeleted:
            # The state was deleted with its owner's sessions. This session is alive, so the owner has come back.
            await self.store.delete(reusable=True)
            return await self._append(Place(), change, sessions)

    async def _append(self, place: Place, change: Change, sessions: Sessions) -> Place:
        text = json.dumps([change.session, change.entry, change.delta], separators=(",", ":"))
        if place.is_snapshot_due(len(text)):
            return await self._write_snapshot(place, change, sessions)
        payload = PluginPayload(DELTA, {"json": text})
        node = SessionNodeRecord(new_message_id(), place.leaf, timestamp_now(), payload)
        made = await commit(self.store, place, Append([node]), ttl=self._ttl)
        return replace(made, reach=place.reach + 1, size=place.size + len(text))

    async def _write_snapshot(self, place: Place, change: Change, sessions: Sessions) -> Place:
        """Apply a change, and replace all deltas by a snapshot of the state."""
        loaded = await self.load()
        if loaded.place != place:
            raise HeadRevisionConflict(place.revision, loaded.place.revision)
        remembered, applied = list(loaded.applied.items()), dict[str, str]()
        for at in range(0, len(remembered), BATCH):
            batch = remembered[at : at + BATCH]
            settled = await asyncio.gather(*(sessions.settle(*each) for each in batch))
            applied |= {session: entry for (session, entry), done in zip(batch, settled, strict=True) if not done}
        applied[change.session] = change.entry
        checkpoint = checkpoint_of({"state": {**loaded.state, **change.delta}, "applied": applied})
        return await commit(self.store, place, ReplaceFull(SessionGraph()), checkpoint, self._ttl)


def _decode(read: PersistedSessionRead | None) -> LoadedState:
    if read is None:
        return LoadedState()
    snapshot, size = snapshot_of(read), 0
    state, applied = snapshot.get("state", {}), snapshot.get("applied", {})
    deltas = [text for node in read.graph.nodes if (text := text_at(node.plugin_body(), "json")) is not None]
    for text in deltas:
        session, entry, delta = json.loads(text)
        state.update(delta)
        applied.pop(session, None)
        applied[session] = entry
        size += len(text)
    is_imported = snapshot.get("imported", False) and not deltas
    return LoadedState(Place.of(read, len(deltas), size), state, applied, is_imported)
