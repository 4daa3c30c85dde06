"""The entries of a stored session of ADK: its creation, and then one for each event. They are nodes with JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from google.adk.events import Event
from google.adk.sessions import State
from pydantic_core import PydanticSerializationError, to_jsonable_python

from lash_redis.errors import InvalidRecord
from lash_redis.integrations.google_adk.names import escape
from lash_redis.models import PersistedSessionRead, PluginPayload
from lash_redis.models.node import text_at
from lash_redis.protocol.steps import Steps
from lash_redis.protocol.stored_nodes import contents_of

CREATION: Final = "google_adk.session"
"""The plugin type of the first node: when and with which state a session was created."""
EVENT: Final = "google_adk.event"
"""The plugin type of a node with an event."""

Delta = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StateDelta:
    """The changes that an event makes to the three states, without prefixes."""

    app: dict[str, Any] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, delta: Delta) -> StateDelta:
        split = cls()
        for key, value in delta.items():
            if key.startswith(State.APP_PREFIX):
                split.app[key.removeprefix(State.APP_PREFIX)] = value
            elif key.startswith(State.USER_PREFIX):
                split.user[key.removeprefix(State.USER_PREFIX)] = value
            elif not key.startswith(State.TEMP_PREFIX):
                split.session[key] = value
        return split

    @property
    def is_shared(self) -> bool:
        """Whether it changes what other sessions share: the state of the app or of the user."""
        return bool(self.app or self.user)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a session."""

    kind: str
    """`CREATION` or `EVENT`."""
    content: dict[str, Any]
    """JSON: the event, or `{"state": ..., "time": ...}`."""
    node_id: str = ""
    reach: int = 0
    """The number of last entries whose deltas the stored snapshot of the state does not contain."""

    @property
    def delta(self) -> StateDelta:
        if self.kind == CREATION:
            return StateDelta.of(self.content["state"])
        return StateDelta.of((self.content.get("actions") or {}).get("state_delta") or {})

    @property
    def time(self) -> float:
        """The time of the event or the creation, in seconds since 1970."""
        return float(self.content["time" if self.kind == CREATION else "timestamp"])

    @property
    def event_id(self) -> str | None:
        return None if self.kind == CREATION else str(self.content["id"])

    def text(self) -> str:
        return json.dumps(self.content, separators=(",", ":"))

    def event(self) -> Event:
        return Event.model_validate(self.content)


def entry_of_event(event: Event) -> Entry:
    """Return the entry of an event, as the SDK's stores save it: without fields that are None.

    A value of its `state_delta` without a form in JSON is stored as the text that the SDK makes of it.

    Raises:
        InvalidRecord: another value of the event has no form in JSON.
    """
    try:
        content = event.model_dump(exclude_none=True, mode="json")
    except PydanticSerializationError as error:
        raise InvalidRecord("event", str(error)) from None
    if event.actions.state_delta:
        with suppress(PydanticSerializationError):  # the SDK's own conversion makes None of NaN
            content["actions"]["state_delta"] = _json_of(event.actions.state_delta)
    return Entry(EVENT, content)


def node_ids_of(event_id: str | None) -> Iterator[str]:
    """Yield the ids of the nodes of events with one id: the SDK may give several events the same one."""
    first = f"event/{escape(event_id or '')}"
    yield first
    for number in count(2):
        yield f"{first}/{number}"


def entry_of_creation(state: Delta, time: float) -> Entry:
    """Return the first entry of a session. `temp:` keys are left out.

    Raises:
        InvalidRecord: a value of the state has no form in JSON.
    """
    kept = {key: value for key, value in state.items() if not key.startswith(State.TEMP_PREFIX)}
    try:
        return Entry(CREATION, {"state": _json_of(kept), "time": time})
    except PydanticSerializationError as error:
        raise InvalidRecord("state", str(error)) from None


def _json_of(state: Delta) -> Any:
    return to_jsonable_python(state, bytes_mode="base64")


def payload_of_entry(entry: Entry, text: str, reach: int, size: int) -> PluginPayload:
    """Encode an entry. `text` is its JSON, `size` the bytes of the last `reach` entries. ASCII, so any text fits."""
    return PluginPayload(entry.kind, {"json": text, "reach": reach, "size": size})


def entry_of_content(node_id: str, plugin_type: str | None, body: Any) -> tuple[Entry, int] | None:
    """Decode an entry and the bytes of the last `reach` entries; None for the node of another writer."""
    if plugin_type not in (CREATION, EVENT):
        return None
    text = text_at(body, "json")
    if text is None:
        return None
    return Entry(plugin_type, json.loads(text), node_id, int(body["reach"])), int(body["size"])


def entries_of(read: PersistedSessionRead) -> Steps[list[tuple[Entry, int]]]:
    """Return the entries of a read; each node is a step."""
    found = []
    for node_id, plugin_type, body in contents_of(read.graph.nodes):
        entry = entry_of_content(node_id, plugin_type, body)
        if entry is not None:
            found.append(entry)
        yield
    return found
