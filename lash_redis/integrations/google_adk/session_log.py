"""The stored form of one session of ADK: its entries, and its own state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lash_redis.errors import HeadRevisionConflict, NodeIdCollision, SessionGone
from lash_redis.integrations.google_adk.entries import EVENT, Entry, entries_of, entry_of_content, payload_of_entry
from lash_redis.integrations.google_adk.places import Place, checkpoint_of, commit, snapshot_of
from lash_redis.models import (
    Append,
    BlobRef,
    HydratedSessionCheckpoint,
    ModeTurnOptions,
    PersistedTurnState,
    PluginPayload,
    SessionNodeRecord,
    Unchanged,
)
from lash_redis.models.node import text_at, timestamp_now
from lash_redis.options import KEEP, Keep
from lash_redis.session.path_items import PathItems
from lash_redis.session.store import RedisSessionStore

MODE: Final = "google_adk"
"""The execution mode whose options have the id of the settled entry."""
FIRST_PAGE: Final = 32
"""Entries that are read first to find those after a time. Each further page is four times as long."""


@dataclass(frozen=True, slots=True)
class LoadedSession:
    """The last entries of a session, and its own state, at one revision."""

    place: Place
    entries: list[Entry]
    """Oldest first; at least those that the state needs, and the last one."""
    state: dict[str, Any]
    snapshot_ref: BlobRef | None = None
    """The ref of the stored snapshot of the state."""
    settled: str | None = None
    """The node id of an entry whose deltas are known to be applied to all states."""

    @property
    def is_due(self) -> bool:
        """Whether the last entry's deltas to the states of the app and the user may not be applied yet."""
        return self.last.delta.is_shared and self.settled != self.last.node_id

    @property
    def last(self) -> Entry:
        return self.entries[-1]


class SessionLog:
    """The entries of one session. It has no state of its own."""

    def __init__(self, store: RedisSessionStore) -> None:
        self.store = store
        self._path = PathItems(store, entries_of)

    async def load(self, limit: int | None = None) -> LoadedSession | None:
        """Load the last `limit` entries or more, or all; None if the session does not exist.

        One round trip, two if the state needs more entries. All of more than 100 entries take two.

        Raises:
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing.
        """
        while True:
            read, found = await self._path.load(limit)
            if read is None or not found:
                return None
            last, size = found[-1]
            if limit is None or last.reach <= len(found):
                break
            limit = last.reach
        entries = [entry for entry, _ in found]
        state = snapshot_of(read)
        for entry in entries[len(entries) - last.reach :]:
            state.update(entry.delta.session)
        place, checkpoint = Place.of(read, last.reach, size), read.checkpoint
        if checkpoint is None:
            return LoadedSession(place, entries, state)
        settled = text_at(checkpoint.turn_state.mode_turn_options.payload, "settled")
        return LoadedSession(place, entries, state, checkpoint.execution_state_ref, settled)

    async def load_since(self, time: float) -> LoadedSession | None:
        """Load at least the last events whose times are not before `time`; None if the session does not exist."""
        limit = FIRST_PAGE
        while True:
            loaded = await self.load(limit)
            if loaded is None or len(loaded.entries) < limit:
                return loaded
            if any(entry.kind == EVENT and entry.time < time for entry in loaded.entries):
                return loaded
            limit *= 4

    async def load_entry(self, node_id: str) -> Entry | None:
        """Load the entry of a node; None if there is none. One round trip."""
        node = await self.store.load_node(node_id)
        if node is None or not isinstance(node.payload, PluginPayload):
            return None
        found = entry_of_content(node.node_id, node.payload.plugin_type, node.payload.body)
        return None if found is None else found[0]

    async def append(self, place: Place, entry: Entry) -> Place:
        """Append an entry, whose `node_id` is set, to a session whose head is that of `place`; return the new place.

        One round trip if the store knows the head. The cost grows with the entry, not with the session: see `places`.

        Raises:
            HeadRevisionConflict: the session has another head; nothing was written.
            SessionGone: the session does not exist any more; nothing was written.
            NodeIdCollision: the session has a node of that id; nothing was written.
        """
        if entry.node_id == place.leaf:  # a node cannot be its own parent, which the server would refuse first
            raise NodeIdCollision(entry.node_id)
        text = entry.text()
        checkpoint: HydratedSessionCheckpoint | Keep = KEEP
        is_behind = place.reach > 0 or bool(entry.delta.session)
        reach, size = (place.reach + 1, place.size + len(text)) if is_behind else (0, 0)
        if is_behind and place.is_snapshot_due(len(text)):
            loaded = await self.load(place.reach)
            if loaded is None:
                raise SessionGone(place.revision)
            if loaded.place != place:
                raise HeadRevisionConflict(place.revision, loaded.place.revision)
            checkpoint = checkpoint_of({**loaded.state, **entry.delta.session})
            reach = size = 0
        payload = payload_of_entry(entry, text, reach, size)
        node = SessionNodeRecord(entry.node_id, place.leaf, timestamp_now(), payload)
        made = await commit(self.store, place, Append([node]), checkpoint)
        return replace(made, reach=reach, size=size)

    async def append_imported(self, place: Place, entries: Sequence[Entry], state: dict[str, Any]) -> Place:
        """Append entries, whose `node_id`s are set, and replace the session's own state. Return the new place.

        The deltas of the entries count as applied: to `state`, and to the states of the app and the user. One commit.

        Raises:
            As `append` does.
        """
        nodes, parent = [], place.leaf
        for entry in entries:
            payload = payload_of_entry(entry, entry.text(), 0, 0)
            nodes.append(SessionNodeRecord(entry.node_id, parent, timestamp_now(), payload))
            parent = entry.node_id
        checkpoint = replace(checkpoint_of(state), turn_state=_settled(entries[-1].node_id))
        return await commit(self.store, place, Append(nodes), checkpoint)

    async def settle(self, loaded: LoadedSession) -> None:
        """Store that the last entry's deltas are applied. It changes the revision, and restarts the session's ttl.

        Raises:
            HeadRevisionConflict: the session has changed since it was loaded; nothing was written.
        """
        state = _settled(loaded.last.node_id)
        checkpoint = HydratedSessionCheckpoint(state, execution_state_ref=loaded.snapshot_ref)
        await commit(self.store, loaded.place, Unchanged(loaded.place.leaf), checkpoint)


def _settled(node_id: str) -> PersistedTurnState:
    return PersistedTurnState(mode_turn_options=ModeTurnOptions(MODE, {"settled": node_id}))
