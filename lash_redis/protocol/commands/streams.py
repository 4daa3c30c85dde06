"""The commands of streams: open, send, stop, read. `lua/include/streams.lua` defines what is stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal

from lash_redis._validate import require_id, require_type
from lash_redis.errors import (
    CommitTooLarge,
    Corrupt,
    InvalidRecord,
    SessionBindingMismatch,
    StreamBusy,
    StreamFailed,
    StreamGap,
    StreamGone,
)
from lash_redis.models import StreamClaim, StreamEvent, StreamInfo, StreamState
from lash_redis.protocol import scripts
from lash_redis.protocol.checksums import crc32
from lash_redis.protocol.commands.calls import MAX_VALUE_BYTES, ScriptCall, status
from lash_redis.protocol.commands.lease import checked_token
from lash_redis.protocol.keys import StreamKeys
from lash_redis.protocol.packing import pack_json
from lash_redis.protocol.unpacking import UNREADABLE, unpack

MAX_STREAMS: Final = 64
"""The largest number of streams of a session, those that ended and are kept included."""
MAX_EVENTS: Final = 1_000_000
"""The largest `max_events`."""

STATES: Final[dict[bytes, StreamState]] = {b"r": "running", b"f": "finished", b"x": "failed", b"l": "lost"}

End = Literal["", "f", "x"]
"""How a call ends a stream: not at all, finished, or failed."""

_CHECKSUM: Final = 4
_CURSOR: Final = re.compile(r"([0-9a-f]{10})-(0|[1-9][0-9]{0,14})").fullmatch


# Events


def encode_event(data: object, number: int) -> bytes:
    """Encode the event with this sequence number: MessagePack, then a CRC-32 that begins with the number.

    Raises:
        InvalidRecord: the data is not JSON; the error names the path to the first such value.
    """
    packed = pack_json(data, "data")
    return packed + crc32(packed, number & 0xFFFFFFFF).to_bytes(_CHECKSUM, "little")


def decode_event(stored: bytes, number: int, key: str) -> Any:
    """Decode an event.

    Raises:
        Corrupt: the bytes are not those of the event with this sequence number.
    """
    packed = stored[:-_CHECKSUM]
    if crc32(packed, number & 0xFFFFFFFF).to_bytes(_CHECKSUM, "little") != stored[-_CHECKSUM:]:
        raise Corrupt("events", key, f"event {number} does not have its checksum")
    try:
        return unpack(packed)
    except UNREADABLE as error:
        raise Corrupt("events", key, f"event {number} is unreadable: {error}") from error


# Cursors


def tag_of_token(token: str) -> str:
    """Return the name of a stream in its cursors. Streams of one generation, at different times, have different ones.

    The name does not reveal the token.
    """
    return sha256(token.encode()).hexdigest()[:10]


def cursor_of(tag: str, number: int) -> str:
    return f"{tag}-{number}"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a stream: behind the event with this number."""

    number: int = 0
    tag: str | None = None
    """The stream that the cursor belongs to; None for the beginning of any stream."""


def place_of(after: object) -> Place:
    """Decode a cursor.

    Raises:
        InvalidRecord: `after` is no cursor of a stream.
    """
    if after is None:
        return Place()
    found = _CURSOR(after) if type(after) is str else None
    if found is None:
        raise InvalidRecord("after", f"expected None or the cursor of a StreamEvent, got {after!r}")
    return Place(int(found[2]), found[1])


# Open, send, stop


@dataclass(frozen=True, slots=True)
class Bounds:
    """The settings of a stream. Times are in ms."""

    ttl_ms: int
    keep_ms: int
    max_events: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A reply: the events up to `last` are stored."""

    last: int
    stop_requested: bool


@dataclass(frozen=True, slots=True)
class Behind:
    """A reply: a failover lost the events after `last`. The producer sends them again."""

    last: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A reply: the stream has ended, and nothing was written."""

    state: StreamState


def open_call(keys: StreamKeys, token: str, bounds: Bounds, *, sharded: bool) -> ScriptCall:
    args = [keys.session_id, keys.generation_id, token, bounds.ttl_ms, bounds.keep_ms, MAX_STREAMS, keys.access]
    return ScriptCall(scripts.STREAM_OPEN, [keys.head, keys.streams, keys.events], [*args, int(sharded)])


def open_reply(call: ScriptCall, keys: StreamKeys, reply: Any) -> Sent:
    """Decode the reply.

    Raises:
        StreamBusy: the generation has a stream.
        CommitTooLarge: the session has too many streams.
        StoreError: what `status` raises.
    """
    match status(call, reply, keys):
        case "busy":
            raise StreamBusy(keys.session_id, keys.generation_id, STATES[reply[2]])
        case "full":
            raise CommitTooLarge("the number of streams of a session", reply[2] + 1, MAX_STREAMS)
    return Sent(reply[2], bool(reply[3]))


def send_call(
    keys: StreamKeys, token: str, first: int, events: Sequence[bytes], bounds: Bounds, ends: End, *, sharded: bool
) -> ScriptCall:
    """Send events, of which the first has the number `first`; none for a sign of life."""
    args = [keys.session_id, keys.generation_id, token, first, bounds.ttl_ms, bounds.max_events, bounds.max_bytes]
    return ScriptCall(
        scripts.STREAM_SEND,
        [keys.head, keys.streams, keys.events],
        [*args, ends, keys.access, int(sharded), *events],
    )


def send_reply(call: ScriptCall, keys: StreamKeys, reply: Any) -> Sent | Behind | Ended:
    """Decode the reply.

    Raises:
        StreamGone: there is no stream: it expired, was evicted or deleted, or a failover lost it.
        StreamBusy: the generation has another producer.
        StoreError: what `status` raises.
    """
    match status(call, reply, keys):
        case "gone":
            raise StreamGone(keys.session_id, keys.generation_id)
        case "taken":
            raise StreamBusy(keys.session_id, keys.generation_id, "running")
        case "behind":
            return Behind(reply[2])
        case "ended":
            return Ended(STATES[reply[2]])
    return Sent(reply[2], bool(reply[3]))


def stop_call(keys: StreamKeys, *, sharded: bool) -> ScriptCall:
    args = [keys.session_id, keys.generation_id, keys.stops, keys.access, int(sharded)]
    return ScriptCall(scripts.STREAM_STOP, [keys.head, keys.streams, keys.events], args)


def stop_reply(call: ScriptCall, keys: StreamKeys, reply: Any) -> bool:
    """Return whether a producer was asked to stop."""
    return status(call, reply, keys) == "stopping"


# Read


@dataclass(frozen=True, slots=True)
class StreamRead:
    """The state of a stream at one moment, and some of its events."""

    state: StreamState
    last: int
    """The number of the last event; 0 for none."""
    kept: int
    stored_bytes: int
    deadline_ms: int
    """When the stream counts as lost, or when it ended, by the server's clock."""
    now_ms: int
    """The server's clock."""
    stop_requested: bool
    tag: str
    after: int
    """The number of the event before `events`."""
    events: Sequence[bytes]

    @property
    def dropped(self) -> int:
        """The number of the last event that was dropped; 0 for none."""
        return self.last - self.kept

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    def info(self, generation_id: str) -> StreamInfo:
        return StreamInfo(
            generation_id=generation_id,
            state=self.state,
            event_count=self.last,
            dropped_count=self.dropped,
            stored_bytes=self.stored_bytes,
            stop_requested=self.stop_requested,
            cursor=cursor_of(self.tag, self.last),
            deadline=self.deadline_ms / 1000,
        )


def read_call(keys: StreamKeys, after: int | None, limit: int) -> ScriptCall:
    """Read the events after a number, about `limit` bytes of them; the state alone if `after` is None."""
    args = [keys.session_id, keys.generation_id, "" if after is None else after, limit, keys.access]
    return ScriptCall(scripts.STREAM_READ, [keys.head, keys.streams, keys.events], args)


def read_reply(call: ScriptCall, keys: StreamKeys, reply: Any) -> StreamRead | None:
    """Decode the reply; None if there is no stream, or if the session is another owner's.

    Raises:
        StoreError: what `status` raises, above all SessionDeleted.
    """
    if status(call, reply, keys) == "absent":
        return None
    _, _, state, last, kept, size, deadline, now, stop, token, *events = reply
    after = call.args[2] or 0
    return StreamRead(
        STATES[state], last, kept, size, deadline, now, bool(stop), tag_of_token(token.decode()), after, events
    )


def events_of(keys: StreamKeys, read: StreamRead) -> list[StreamEvent]:
    """Decode the events of a read.

    Raises:
        Corrupt: the bytes of an event are damaged.
    """
    numbered = enumerate(read.events, read.after + 1)
    return [
        StreamEvent(cursor_of(read.tag, number), decode_event(stored, number, keys.events))
        for number, stored in numbered
    ]


def require_no_gap(keys: StreamKeys, read: StreamRead, number: int) -> None:
    """Raise StreamGap if events after this number were dropped."""
    if number < read.dropped:
        after = cursor_of(read.tag, number) if number else None
        raise StreamGap(keys.session_id, keys.generation_id, cursor_of(read.tag, read.dropped), after)


def require_finished(keys: StreamKeys, read: StreamRead) -> None:
    """Raise StreamFailed if the stream ended without being finished."""
    if read.state != "finished":
        raise StreamFailed(keys.session_id, keys.generation_id, read.state)


# Commits


def check_claim(claim: object, session_id: str) -> None:
    """Check `RuntimeCommit.finishes`.

    Raises:
        InvalidRecord: the claim is invalid.
        SessionBindingMismatch: it is of another session.
    """
    field = "RuntimeCommit.finishes"
    if claim is None:
        return
    require_type(field, claim, StreamClaim)
    assert isinstance(claim, StreamClaim)
    if claim.session_id != session_id:
        raise SessionBindingMismatch(session_id, claim.session_id)
    require_id(f"{field}.generation_id", claim.generation_id)
    checked_token(f"{field}.token", claim.token)
    if type(claim.event_count) is not int or not 0 <= claim.event_count < 10**15:
        raise InvalidRecord(f"{field}.event_count", f"expected 0..10**15-1, got {claim.event_count!r}")


def fence_of_stream(claim: StreamClaim | None) -> str:
    """Encode a claim as an argument of a commit: the number of events, token and generation; '' for none."""
    return "" if claim is None else f"{claim.event_count} {claim.token} {claim.generation_id}"


def finish_call(keys: StreamKeys, claim: StreamClaim, *, sharded: bool) -> ScriptCall:
    """Finish the stream of a claim, without further events."""
    bounds = Bounds(1, 1, MAX_EVENTS, MAX_VALUE_BYTES)
    return send_call(keys, claim.token, claim.event_count + 1, (), bounds, "f", sharded=sharded)
