"""The nodes of a message graph: one message, event or plugin record each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_hex
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from lash_redis.models.json_values import Fault, refuse
from lash_redis.models.wire import Form, Id, Json, Record, Rule, Unread, decode_fields, encode_fields


@dataclass(frozen=True, slots=True)
class EventPayload(Record, Unread):
    """An event of the conversation, such as a message or a tool call."""

    event: Json
    """A JSON object with one key: `Conversation`, `Tool`, `Mode` or `StateSnapshot`."""

    kind: ClassVar[str] = "event"


@dataclass(frozen=True, slots=True)
class PluginPayload(Record, Unread):
    """A record that a plugin keeps in the graph; it is not part of the conversation."""

    plugin_type: str
    """The kind of record, named by the plugin."""
    body: Json
    """The content of the record as free-form JSON."""

    kind: ClassVar[str] = "plugin"


NodePayload: TypeAlias = EventPayload | PluginPayload

_PAYLOADS: dict[str, type[EventPayload] | type[PluginPayload]] = {"event": EventPayload, "plugin": PluginPayload}


@dataclass(frozen=True, slots=True)
class SessionNodeRecord(Record):
    """One node of the graph. In JSON, the keys of the payload and of the node are in one object."""

    node_id: Id
    """The id of the node, unique in its session."""
    parent_node_id: str | None
    """The id of the parent; None for a root."""
    timestamp: str
    """The time of the node as free text, by convention RFC 3339. The store never parses it."""
    payload: Annotated[NodePayload, Rule.IN_MEMORY]
    """The content of the node: an event, or a record of a plugin."""

    def event(self) -> Any | None:
        return self.payload.event if isinstance(self.payload, EventPayload) else None

    def message(self) -> dict[str, Any] | None:
        """Return the message if this node is a message of the conversation, else None."""
        return inside(self.event(), "Conversation")

    def user_message(self) -> dict[str, Any] | None:
        """Return the message if this node is a user's message, else None."""
        message = self.message()
        return message if text_at(message, "role") in ("User", "user") else None

    def plugin(self) -> PluginPayload | None:
        return self.payload if isinstance(self.payload, PluginPayload) else None

    def plugin_body(self) -> Any | None:
        return self.payload.body if isinstance(self.payload, PluginPayload) else None

    def _encode(self, form: Form) -> Any:
        out = encode_fields(self, form)
        payload = self.payload
        try:
            if not isinstance(payload, EventPayload | PluginPayload):
                refuse(payload, "an EventPayload or PluginPayload")
            out["kind"] = payload.kind
            out.update(encode_fields(payload, form))
        except Fault as fault:
            raise fault.under(".payload") from None
        return out

    @classmethod
    def _decode(cls, value: Any) -> Self:
        own = decode_fields(cls, value)
        kind = value.get("kind")
        payload = _PAYLOADS.get(kind) if isinstance(kind, str) else None
        if payload is None:
            raise Fault("expected 'event' or 'plugin'", ".kind")
        return cls(payload=payload(**decode_fields(payload, value)), **own)


def field_of(value: Any, key: str) -> Any:
    """Return the value at `key` of an object; None if the object lacks the key, or is none.

    Keys are compared by their texts, as they are stored. A subclass of str may have another hash, so that only a search
    finds it.
    """
    if not isinstance(value, dict):
        return None
    found = value.get(key)
    if found is None:
        for name in value:
            if type(name) is not str and isinstance(name, str) and str.__str__(name) == key:
                return value[name]
    return found


def text_at(value: Any, key: str) -> str | None:
    """Return the text at `key` of an object as a plain str; None if there is no text."""
    found = field_of(value, key)
    return str.__str__(found) if isinstance(found, str) else None


def inside(value: Any, *keys: str) -> dict[str, Any] | None:
    """Return the object at the nested `keys`, or None. Events are free-form, so any of the keys may be absent."""
    for key in keys:
        value = field_of(value, key)
    return value if isinstance(value, dict) else None


def is_transient(message: dict[str, Any]) -> bool:
    """Whether a message is marked as one that reads do not show."""
    origin = inside(message, "origin")
    return origin is not None and origin.get("transient") is True


def new_message_id() -> str:
    """Return a random id for a message and its node."""
    return f"m{token_hex(16)}"


def timestamp_now() -> str:
    """Return the present time as RFC 3339 text, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
