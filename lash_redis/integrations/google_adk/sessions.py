"""Make the `Session` objects of ADK out of what is stored, with a marker that has the places of what was read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from google.adk.events import Event
from google.adk.sessions import Session, State
from google.adk.sessions.base_session_service import GetSessionConfig

from lash_redis.integrations.google_adk.entries import EVENT, Entry
from lash_redis.integrations.google_adk.names import UserNames
from lash_redis.integrations.google_adk.places import Place
from lash_redis.integrations.google_adk.session_log import LoadedSession, SessionLog
from lash_redis.integrations.google_adk.shared_state import LoadedState
from lash_redis.protocol.steps import Steps


@dataclass(frozen=True, slots=True)
class Marker:
    """The places of a session and of the states of its app and user when a `Session` was made, which stores it."""

    session: Place
    app: Place | None
    user: Place | None
    is_due: bool = False
    """Whether the delta of the session's last entry may not be applied yet to the states of the app and the user."""

    @classmethod
    def of(cls, session: Session) -> Marker | None:
        text = session._storage_update_marker
        if text is None:
            return None
        *places, is_due = json.loads(text)
        own, app, user = (place and Place(**place) for place in places)
        return cls(own, app, user, is_due)

    def put(self, session: Session) -> None:
        places = [place and asdict(place) for place in (self.session, self.app, self.user)]
        session._storage_update_marker = json.dumps([*places, self.is_due])


async def load_for(log: SessionLog, config: GetSessionConfig) -> LoadedSession | None:
    if config.num_recent_events is not None:
        return await log.load(max(1, config.num_recent_events))
    if config.after_timestamp is not None:
        return await log.load_since(config.after_timestamp)
    return await log.load()


def wanted(entries: Sequence[Entry], config: GetSessionConfig) -> list[Entry]:
    """Return the last events that a config asks for; as the SDK's in-memory service does, those behind the last one
    that is too old."""
    events = [entry for entry in entries if entry.kind == EVENT]
    if config.num_recent_events is not None:
        events = events[len(events) - min(config.num_recent_events, len(events)) :]
    if config.after_timestamp is not None:
        old = [at for at, entry in enumerate(events) if entry.time < config.after_timestamp]
        events = events[old[-1] + 1 :] if old else events
    return events


def events_of(entries: Sequence[Entry]) -> Steps[list[Event]]:
    """Decode events; each is a step."""
    events = []
    for entry in entries:
        events.append(entry.event())
        yield
    return events


def session_of(
    names: UserNames, session_id: str, loaded: LoadedSession, app: LoadedState, user: LoadedState
) -> Session:
    """Return a session without its events."""
    session = Session(
        app_name=names.app_name,
        user_id=names.user_id,
        id=session_id,
        state=merged(app.state, user.state, loaded.state),
        last_update_time=loaded.last.time,
    )
    Marker(loaded.place, app.place, user.place).put(session)
    return session


def merged(app: Mapping[str, Any], user: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **own,
        **{State.APP_PREFIX + key: value for key, value in app.items()},
        **{State.USER_PREFIX + key: value for key, value in user.items()},
    }
