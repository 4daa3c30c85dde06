"""The session service of Google's Agent Development Kit (ADK) on top of a cache."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

try:
    from google.adk.errors import StaleSessionError
    from google.adk.errors.already_exists_error import AlreadyExistsError
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events import Event
    from google.adk.platform import time as platform_time
    from google.adk.platform import uuid as platform_uuid
    from google.adk.sessions import BaseSessionService, Session
    from google.adk.sessions.base_session_service import GetSessionConfig, ListSessionsResponse
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the Agent Development Kit is missing: pip install 'lash-redis[google-adk]'") from error

from lash_redis._validate import require_type
from lash_redis.cache import SessionCache
from lash_redis.errors import (
    BackendError,
    Corrupt,
    HeadRevisionConflict,
    NodeIdCollision,
    SessionDeleted,
    SessionGone,
)
from lash_redis.integrations.google_adk.deltas import Deltas
from lash_redis.integrations.google_adk.entries import Entry, entry_of_creation, entry_of_event, node_ids_of
from lash_redis.integrations.google_adk.names import UserNames, stripped, unescape, users_of
from lash_redis.integrations.google_adk.places import Place
from lash_redis.integrations.google_adk.session_log import SessionLog
from lash_redis.integrations.google_adk.sessions import Marker, events_of, load_for, merged, session_of, wanted
from lash_redis.integrations.google_adk.shared_state import LoadedState
from lash_redis.integrations.google_adk.stored_sessions import stored_sessions
from lash_redis.integrations.google_adk.stores import Stores
from lash_redis.listing import prune
from lash_redis.session.store import RedisSessionStore
from lash_redis.transport.turns import in_turns

MAX_ATTEMPTS: Final = 8
BATCH: Final = 16
"""Sessions that are loaded at the same time for a list."""


class LashSessionService(BaseSessionService):
    """Stores the sessions, events and states of ADK agents: `Runner(..., session_service=LashSessionService(cache))`.

    Any process continues a session. An event is appended by compare-and-set: a `Session` that another process has
    continued gets `StaleSessionError`. The states of apps and users are stored with the sessions, and each delta is
    applied to them exactly once, also if a worker dies in between.

    A session belongs to the owner `user_id` (see `SessionCache.session`), and expires with the ttl of the cache.
    One service for each cache is enough.
    """

    def __init__(self, cache: SessionCache) -> None:
        """No I/O.

        Raises:
            InvalidRecord: `cache` is no `SessionCache`.
        """
        require_type("cache", cache, SessionCache)
        self._cache = cache
        self._stores = Stores(cache)
        self._deltas = Deltas(self._stores)

    async def create_session(
        self, *, app_name: str, user_id: str, state: dict[str, Any] | None = None, session_id: str | None = None
    ) -> Session:
        """Create a session. Two round trips, and one or two more if `state` has `app:` or `user:` keys.

        Raises:
            AlreadyExistsError: the user has a session of that id in the app.
            InvalidRecord: an argument cannot be stored; the error names it.
            SessionDeleted: `SessionCache.delete` or `delete_owned` has deleted the id within `deletion_marker_ttl`.
            BackendError: the server was unreachable; nothing was created.
            OutcomeUnknown: the reply was lost; load the session to see whether it was created.
        """
        names = UserNames(app_name, user_id)
        session_id = stripped(session_id or "") or platform_uuid.new_uuid()
        entry = replace(entry_of_creation(state or {}, platform_time.get_time()), node_id=uuid4().hex)
        log = self._log(names, session_id)
        app, user, *_ = await asyncio.gather(
            self._deltas.app(names).load(),
            self._deltas.user(names).load(),
            self._stores.list_user(names),
            self._keep_alive(names),
        )
        try:
            place = await log.append(Place(), entry)
        except HeadRevisionConflict:
            raise AlreadyExistsError(f"Session with id {session_id} already exists.") from None
        places = await self._deltas.apply(names, log.store.session_id, entry, (app.place, user.place))
        delta = entry.delta
        own = {**app.state, **delta.app}, {**user.state, **delta.user}, delta.session
        session = Session(
            app_name=app_name, user_id=user_id, id=session_id, state=merged(*own), last_update_time=entry.time
        )
        Marker(place, *places).put(session)
        return session

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        """Load a session with its events and the merged state; None if there is none.

        One round trip: the session and both states are loaded at the same time. One more if the session has more than
        100 events and all are wanted, if its state needs more events than are wanted, or if `after_timestamp` reaches
        far back. With `num_recent_events` it costs the same in a session of any length.

        Raises:
            Corrupt, SessionEvicted: stored bytes are damaged, or a key is missing.
        """
        names = UserNames(app_name, user_id)
        session_id = stripped(session_id)
        config = config or GetSessionConfig()
        log = self._log(names, session_id)
        loaded, app, user, _ = await asyncio.gather(
            load_for(log, config),
            self._deltas.app(names).load(),
            self._deltas.user(names).load(),
            self._keep_alive(names),
        )
        if loaded is None:
            return None
        try:
            app, user = await self._deltas.with_last(names, log.store.session_id, loaded, app, user)
        except SessionNotFoundError:
            return None
        session = session_of(names, session_id, loaded, app, user)
        session.events = await in_turns(events_of(wanted(loaded.entries, config)))
        return session

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        """Load the sessions of a user, or of all users of an app, with their merged states and without events.

        They are ordered by `last_update_time`, then user and id. A user's sessions are found by the index of the
        owner. The users of an app have an index, too, so the sessions of other apps cost nothing.

        One or two round trips for every 16 sessions; for each user one for the list and one for the state; one for the
        state of the app, and one for its list of users if `user_id` is None.

        Raises:
            Corrupt, SessionEvicted: a session or state is damaged, or a key is missing.
        """
        users = [user_id] if user_id is not None else await self._users(app_name)
        sessions: list[Session] = []
        app: LoadedState | None = None
        for each in users:
            names = UserNames(app_name, each)
            stored = await stored_sessions(self._cache.shared, names.owner, names.session_prefix)
            if not stored:
                continue
            app, user = app or await self._deltas.app(names).load(), await self._deltas.user(names).load()
            ids, found = list(stored), list[Session | None]()
            for at in range(0, len(ids), BATCH):
                loads = (self._load_for_list(names, unescape(name), app, user) for name in ids[at : at + BATCH])
                found += await asyncio.gather(*loads)
            sessions += [session for session in found if session is not None]
            gone = [stored[name] for name, session in zip(ids, found, strict=True) if session is None]
            if gone:
                await prune(self._cache.shared, gone, names.owner)
        sessions.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse(sessions=sessions)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session; nothing if there is none. Its id is usable at once.

        The states of the app and the user stay. A worker that still uses the session gets `SessionNotFoundError`, also
        if a new session has the id. Two round trips; more if its last event changed these states.

        Raises:
            BackendError: the server was unreachable, or events were appended all the time; nothing was deleted.
            OutcomeUnknown: the reply was lost; call again.
        """
        names = UserNames(app_name, user_id)
        log = self._log(names, stripped(session_id))
        for _ in range(MAX_ATTEMPTS):
            try:
                loaded = await log.load(1)
                if loaded is not None and loaded.is_due:
                    await self._deltas.with_last(names, log.store.session_id, loaded, *await self._deltas.load(names))
            except (Corrupt, SessionNotFoundError):
                loaded = None  # a damaged session is deleted as it is
            try:
                await log.store.delete(reusable=True, builds_on=None if loaded is None else loaded.place.commit_id)
            except HeadRevisionConflict:
                continue  # an event was appended, whose delta may not be applied yet
            return
        raise BackendError(f"{log.store!r} changed during each of {MAX_ATTEMPTS} attempts; nothing was deleted")

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Load the state of a user, without the prefix `user:`; empty if there is none. One round trip.

        Raises:
            Corrupt, SessionEvicted: the state is damaged, or a key is missing.
        """
        return (await self._deltas.user(UserNames(app_name, user_id)).load()).state

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event to a session, and apply its `state_delta`. A partial event is returned as it is.

        One round trip, and one more for each of `app:` and `user:` if it has such keys. The same event can be appended
        again after an error: it is stored once.

        Raises:
            StaleSessionError: another process has appended to the session since `session` was loaded.
            SessionNotFoundError: the session does not exist: it was deleted or expired.
            InvalidRecord, CommitTooLarge: the event cannot be stored; the error names the field or the limit.
            BackendError, OutcomeUnknown: the server was unreachable; append the same event again.
        """
        if event.partial:
            return event
        names = UserNames(session.app_name, session.user_id)
        log = self._log(names, session.id)
        await self._keep_alive(names)
        self._apply_temp_state(session, event)
        event = self._trim_temp_delta_state(event)
        entry = entry_of_event(event)
        namespace = self._cache.shared
        async with namespace.appends.turn(log.store.session_id, namespace.options.contention_seconds):
            await self._append(names, log, session, event, entry)
        return event

    def store(self, *, app_name: str, user_id: str, session_id: str) -> RedisSessionStore:
        """Return the store of a session, for leases, streams and watches. No I/O; the session need not exist."""
        names = UserNames(app_name, user_id)
        return self._cache.session(names.session(stripped(session_id)), owner=names.owner)

    # Appending

    async def _append(self, names: UserNames, log: SessionLog, session: Session, event: Event, entry: Entry) -> None:
        """Append an event to the stored session, and then to `session`."""
        try:
            marker = Marker.of(session) or await self._adopt(log, session)
            if marker.is_due:
                marker = await self._settled(names, log, marker)
            appended = await self._append_once(log, marker.session, entry)
            if appended is None:
                await self._rejoin(names, log, session, event, entry, marker)
                return
        except (SessionGone, SessionDeleted):
            raise SessionNotFoundError(f"Session {session.id} not found.") from None
        except HeadRevisionConflict as conflict:
            raise StaleSessionError(
                "The session has been modified in storage since it was loaded. Reload the session before appending "
                "more events."
            ) from conflict
        place, stored = appended
        # The event is stored now, so the session has it, also if its delta cannot be applied yet.
        marker = replace(marker, session=place, is_due=stored.delta.is_shared)
        self._take(session, event, marker)
        if marker.is_due:
            places = await self._deltas.apply(names, log.store.session_id, stored, (marker.app, marker.user))
            Marker(place, *places).put(session)

    async def _append_once(self, log: SessionLog, place: Place, entry: Entry) -> tuple[Place, Entry] | None:
        """Append an event; None if the session has an equal one of its id, so that this is a retry.

        Other events of the same id are kept. So the n-th one gets a node id of its own.

        Raises:
            HeadRevisionConflict: the stored session has entries that `place` does not have; nothing was written.
        """
        for node_id in node_ids_of(entry.event_id):
            entry = replace(entry, node_id=node_id)
            try:
                return await self._append_behind(log, place, entry), entry
            except NodeIdCollision:
                stored = await log.load_entry(node_id)
                if stored is not None and stored.content == entry.content:
                    return None
            except HeadRevisionConflict:
                if not await self._is_stored(log, entry):
                    raise
                return None
        raise AssertionError("unreachable: the ids do not end")

    async def _append_behind(self, log: SessionLog, place: Place, entry: Entry) -> Place:
        """Append an entry behind the leaf of `place`. The session may have got commits that added no entry."""
        for _ in range(MAX_ATTEMPTS):
            try:
                return await log.append(place, entry)
            except SessionGone:
                raise
            except HeadRevisionConflict:
                loaded = await log.load(1)
                if loaded is None or loaded.place.leaf != place.leaf:
                    raise
                place = loaded.place
        raise BackendError(
            f"session {log.store.session_id!r} changed during each of {MAX_ATTEMPTS} attempts; retry later"
        )

    async def _is_stored(self, log: SessionLog, entry: Entry) -> bool:
        for node_id in node_ids_of(entry.event_id):
            stored = await log.load_entry(node_id)
            if stored is None:
                return False
            if stored.content == entry.content:
                return True
        raise AssertionError("unreachable: the ids do not end")

    async def _rejoin(
        self, names: UserNames, log: SessionLog, session: Session, event: Event, entry: Entry, marker: Marker
    ) -> None:
        """Continue after an event that an earlier call stored, if it is the last one and its reply was lost."""
        loaded = await log.load(1)
        if loaded is None or loaded.last.content != entry.content:
            return
        is_behind = loaded.place.leaf != marker.session.leaf
        marker = await self._settled(names, log, replace(marker, session=loaded.place))
        if is_behind:
            self._take(session, event, marker)

    async def _adopt(self, log: SessionLog, session: Session) -> Marker:
        """Return the marker of a session that was not made by this class, if it is the stored one.

        As in the SDK's database service, it is if it has the last stored event, or its time.
        """
        loaded = await log.load(1)
        if loaded is None:
            raise SessionGone(None)
        last_id = session.events[-1].id if session.events else None
        if loaded.last.event_id != last_id and loaded.last.time > session.last_update_time:
            raise HeadRevisionConflict(None, loaded.place.revision)
        return Marker(loaded.place, None, None, is_due=loaded.is_due)

    async def _settled(self, names: UserNames, log: SessionLog, marker: Marker) -> Marker:
        """Apply the last event's delta where it was not applied, if the session has no entry behind the marker's."""
        loaded = await log.load(1)
        if loaded is None:
            raise SessionGone(marker.session.revision)
        if loaded.place.leaf != marker.session.leaf:
            raise HeadRevisionConflict(marker.session.revision, loaded.place.revision)
        app, user = await self._deltas.load(names)
        app, user = await self._deltas.with_last(names, log.store.session_id, loaded, app, user)
        return Marker(loaded.place, app.place, user.place)

    def _take(self, session: Session, event: Event, marker: Marker) -> None:
        """Add an event that is stored to a session."""
        marker.put(session)
        session.last_update_time = event.timestamp
        self._commit_event_to_session(session, event)

    # What is stored

    def _log(self, names: UserNames, session_id: str) -> SessionLog:
        return SessionLog(self._stores.get(names.session(session_id), names.owner))

    async def _keep_alive(self, names: UserNames) -> None:
        """Touch the states and the list entry that this session shares with others, each if that is due."""
        _, _, is_listed = await asyncio.gather(
            self._stores.keep_alive(names.app_state, None),
            self._stores.keep_alive(names.user_state, names.owner),
            self._stores.keep_alive(names.user_entry, users_of(names.app_name)),
        )
        if not is_listed:
            await self._stores.list_user(names)

    async def _users(self, app_name: str) -> list[str]:
        owner = users_of(app_name)
        return [unescape(name) for name in await stored_sessions(self._cache.shared, owner, f"{owner}/")]

    async def _load_for_list(
        self, names: UserNames, session_id: str, app: LoadedState, user: LoadedState
    ) -> Session | None:
        """Load a session without its events; None if it does not exist any more."""
        log = self._log(names, session_id)
        loaded = await log.load(1)
        if loaded is None:
            return None
        try:
            app, user = await self._deltas.with_last(names, log.store.session_id, loaded, app, user)
        except SessionNotFoundError:
            return None
        return session_of(names, session_id, loaded, deepcopy(app), deepcopy(user))
