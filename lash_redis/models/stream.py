"""The records of a stream: a turn that is being produced, whose events others follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from lash_redis.models.json_values import refuse
from lash_redis.models.lease import Seconds
from lash_redis.models.wire import U64, Id, Json, Record, Shape

StreamState: TypeAlias = Literal["running", "finished", "failed", "lost"]
"""`failed`: the producer raised an error. `lost`: there was no sign of life of it for the stream's ttl."""

_STATES = ("running", "finished", "failed", "lost")


def _state(value: object) -> object:
    return value if value in _STATES else refuse(value, f"one of {', '.join(_STATES)}")


_State = Annotated[StreamState, Shape(lambda value, form: _state(value), _state)]


@dataclass(frozen=True, slots=True)
class StreamEvent(Record):
    """One event of a stream."""

    cursor: str
    """The place of the event in its stream. Pass it as `after` to continue behind the event."""
    data: Json
    """What the producer sent."""


@dataclass(frozen=True, slots=True)
class StreamInfo(Record):
    """The state of a stream."""

    generation_id: Id
    """The generation that the stream belongs to."""
    state: _State
    """`running`, `finished`, `failed` or `lost`."""
    event_count: U64
    """The number of events that were sent."""
    dropped_count: U64
    """The number of the oldest events that were dropped, because the stream exceeded its bounds."""
    stored_bytes: U64
    """The bytes of the events that are stored."""
    stop_requested: bool
    """Whether the producer was asked to stop."""
    cursor: str
    """The cursor of the last event. Followers that begin there get only what is new."""
    deadline: Seconds
    """When a running stream counts as lost, or when the stream ended: seconds since 1970 by the server's clock."""


@dataclass(slots=True, eq=False)
class StreamClaim(Record):
    """A stream that a commit finishes (`RuntimeCommit.finishes`). Only `event_count` changes."""

    session_id: Id
    """The session of the stream."""
    generation_id: Id
    """The generation that the stream belongs to."""
    token: Id = field(repr=False)
    """The secret of the producer. With it any process can continue the stream."""
    event_count: U64
    """The number of events that the server has confirmed."""
