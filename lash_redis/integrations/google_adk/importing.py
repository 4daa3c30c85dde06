"""Store the sessions and states of another session service of ADK in a cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import uuid4

from google.adk.sessions import BaseSessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig

from lash_redis.cache import SessionCache
from lash_redis.errors import BackendError, OutcomeUnknown, StoreError
from lash_redis.integrations.google_adk.deltas import Deltas
from lash_redis.integrations.google_adk.entries import (
    Entry,
    StateDelta,
    entry_of_creation,
    entry_of_event,
    node_ids_of,
)
from lash_redis.integrations.google_adk.names import UserNames, stripped
from lash_redis.integrations.google_adk.places import Place
from lash_redis.integrations.google_adk.service import LashSessionService
from lash_redis.integrations.google_adk.session_log import LoadedSession, SessionLog
from lash_redis.integrations.google_adk.shared_state import SharedState
from lash_redis.integrations.google_adk.stores import Stores
from lash_redis.integrations.import_chunks import chunks_of
from lash_redis.models import ImportReport
from lash_redis.models.import_counts import ImportCounts

WINDOW: Final = 16
"""Maximum number of sessions in flight."""
IMPORTED: Final = "imported"
"""The key in the first entry of a session that an import has created."""
WITHOUT_EVENTS: Final = GetSessionConfig(num_recent_events=0)


async def import_sessions(
    source: BaseSessionService,
    cache: SessionCache,
    app_name: str,
    *,
    user_ids: Iterable[str] = (),
    app_state: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Store the sessions of an app, and the states of the app and its users, for `LashSessionService(cache)`.

    The source is not changed. Each session is read from both services afterwards, and compared. A session that is
    stored already is left as it is. One that has the beginning of the source's events, from an earlier import, gets the
    others. One with other events or another state is refused and reported, and so is a state that sessions of this
    cache have written. So an interrupted import can be run again, and a later one adds what was written meanwhile.

    A service lists only users who have sessions. `user_ids` names others whose states are imported. `app_state` is the
    state of an app that may have no session. `progress(done, total)` is called after each session.

    The report counts sessions; a state that was refused is one more failure. Three to five round trips for each
    session, up to 16 sessions at the same time. A session of more than 1,000 events or 8 MiB is stored in parts.

    Raises:
        BackendError, OutcomeUnknown: the server of the cache failed; run the import again.
        Everything that the source raises.
    """
    return await _Import(source, cache, app_name, progress).run(list(user_ids), app_state)


@dataclass(frozen=True, slots=True)
class _Content:
    """What is compared: the JSON of each event and of the session's own state."""

    events: list[str]
    state: str

    @classmethod
    def of(cls, session: Session) -> _Content:
        events = [entry_of_event(event).text() for event in session.events]
        return cls(events, json.dumps(_own_state(session), sort_keys=True))


class _Import:
    """The progress of the import of one app."""

    def __init__(
        self,
        source: BaseSessionService,
        cache: SessionCache,
        app_name: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._source, self._app_name = source, app_name
        self._target, self._stores = LashSessionService(cache), Stores(cache)
        self._deltas = Deltas(self._stores)
        self._progress = progress or (lambda done, total: None)
        self._counts = ImportCounts()
        self._session_count = 0
        """The number of sessions that are done."""

    async def run(self, user_ids: Sequence[str], app_state: Mapping[str, Any] | None) -> ImportReport:
        listed = (await self._source.list_sessions(app_name=self._app_name)).sessions
        keys = [(each.user_id, each.id) for each in listed]
        users = list(dict.fromkeys([*user_ids, *(user for user, _ in keys)]))
        if app_state is None:
            app_state = await self._state_by_session(keys[:1], "app")
        if app_state:
            names = UserNames(self._app_name, users[0] if users else "")
            await self._import_state(f"state of app {self._app_name!r}", self._deltas.app(names), app_state)
        await self._each(users, lambda user: self._user_state(user, keys))
        await self._each(keys, lambda key: self._session(key[0], key[1], len(keys)))
        return self._counts.report()

    async def _each(self, items: Sequence[Any], copy: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        for at in range(0, len(items), WINDOW):
            try:
                async with asyncio.TaskGroup() as tasks:
                    for item in items[at : at + WINDOW]:
                        tasks.create_task(copy(item))
            except* Exception as failures:  # noqa: BLE001 (the first of them is raised, without the group)
                raise failures.exceptions[0] from None

    # States

    async def _user_state(self, user_id: str, keys: Sequence[tuple[str, str]]) -> None:
        try:
            state = await self._source.get_user_state(app_name=self._app_name, user_id=user_id)
        except NotImplementedError:
            state = await self._state_by_session([key for key in keys if key[0] == user_id][:1], "user")
        if state:
            name = f"state of user {user_id!r} of app {self._app_name!r}"
            await self._import_state(name, self._deltas.user(UserNames(self._app_name, user_id)), state)

    async def _import_state(self, name: str, shared: SharedState, state: Mapping[str, Any]) -> None:
        """Store a state of the app or a user. A refusal is reported."""
        try:
            await shared.replace_imported(_plain(state))
        except (BackendError, OutcomeUnknown):
            raise
        except (StoreError, ValueError) as error:
            self._counts.fail(name, error)

    async def _state_by_session(self, keys: Sequence[tuple[str, str]], scope: str) -> dict[str, Any]:
        """Return the state of the app or the user as one of the sessions has it; empty without a session."""
        for user_id, session_id in keys:
            session = await self._source.get_session(
                app_name=self._app_name, user_id=user_id, session_id=session_id, config=WITHOUT_EVENTS
            )
            if session is not None:
                state: dict[str, Any] = getattr(StateDelta.of(session.state), scope)
                return state
        return {}

    # Sessions

    async def _session(self, user_id: str, session_id: str, total: int) -> None:
        name = f"session {session_id!r} of user {user_id!r} of app {self._app_name!r}"
        try:
            has_added = await self._copy(user_id, session_id)
        except (BackendError, OutcomeUnknown):
            raise
        except (StoreError, ValueError) as error:
            self._counts.fail(name, error)
        else:
            if has_added is not None:
                self._counts.add(is_present=not has_added)
        self._session_count += 1
        self._progress(self._session_count, total)

    async def _copy(self, user_id: str, session_id: str) -> bool | None:
        """Store what the cache lacks of a session, and compare both. Return whether anything was stored.

        None if the source does not have the session any more.

        Raises:
            ValueError: the cache has another session of that id, or the source changed meanwhile.
        """
        place: dict[str, Any] = {"app_name": self._app_name, "user_id": user_id, "session_id": session_id}
        session = await self._source.get_session(**place)
        if session is None:
            return None
        names = UserNames(self._app_name, user_id)
        log = SessionLog(self._stores.get(names.session(stripped(session_id)), names.owner))
        wanted = _Content.of(session)
        stored = await log.load()
        if stored is not None and _content_of(stored) == wanted:
            return False
        await self._stores.list_user(names)
        await self._add(log, stored, session, wanted)
        session, found = await asyncio.gather(self._source.get_session(**place), self._target.get_session(**place))
        if session is None or found is None or _Content.of(session) != _Content.of(found):
            raise ValueError("it changed during the import; run it again")
        return True

    async def _add(self, log: SessionLog, stored: LoadedSession | None, session: Session, wanted: _Content) -> None:
        """Append the entries that the stored session lacks."""
        entries = _entries_of(session)
        if stored is not None:
            texts = _content_of(stored).events
            if not stored.entries[0].content.get(IMPORTED) or wanted.events[: len(texts)] != texts:
                raise ValueError("it is stored already, with other events or another state")
            if len(texts) == len(wanted.events):
                raise ValueError("it is stored already, with another state")
            entries = entries[len(stored.entries) :]
        state, place = _own_state(session), Place() if stored is None else stored.place
        for chunk in chunks_of(entries, lambda entry: len(entry.text())):
            place = await log.append_imported(place, chunk, state)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state as its JSON is read.

    Raises:
        InvalidRecord: a value has no form in JSON.
    """
    plain: dict[str, Any] = json.loads(json.dumps(entry_of_creation(state, 0.0).content["state"]))
    return plain


def _own_state(session: Session) -> dict[str, Any]:
    return _plain(StateDelta.of(session.state).session)


def _content_of(stored: LoadedSession) -> _Content:
    events = [entry_of_event(entry.event()).text() for entry in stored.entries[1:]]
    return _Content(events, json.dumps(stored.state, sort_keys=True))


def _entries_of(session: Session) -> list[Entry]:
    """Return the entries of a session: its creation, and its events, with ids of nodes.

    Its state is stored as a whole, so the entry of its creation has none.
    """
    created = session.events[0].timestamp if session.events else session.last_update_time
    creation = entry_of_creation({}, created)
    entries = [replace(creation, content={**creation.content, IMPORTED: True}, node_id=uuid4().hex)]
    ids: dict[str, Iterator[str]] = {}
    for event in session.events:
        entry = entry_of_event(event)
        node_id = next(ids.setdefault(event.id, node_ids_of(entry.event_id)))
        entries.append(replace(entry, node_id=node_id))
    return entries
