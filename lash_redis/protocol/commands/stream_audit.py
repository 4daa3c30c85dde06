"""The commands of an audit of streams, and of their list: the records of a session, and the events of each stream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lash_redis.errors import Corrupt
from lash_redis.models import AuditProblem, StreamInfo
from lash_redis.protocol.commands.calls import Command
from lash_redis.protocol.commands.streams import STATES, StreamRead, decode_event, tag_of_token
from lash_redis.protocol.keys import SessionKeys, StreamKeys
from lash_redis.protocol.numbers import decode_number

TOLERANCE_MS: Final = 250
"""Tolerated difference between the expiry of events and their record: PTTL and TIME read the clock separately."""

_RECORD: Final = re.compile(rb"([rfx]) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+) ([01]) (\S+)").fullmatch


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """The record of a stream, as `lua/include/streams.lua` describes it."""

    read: StreamRead
    """What it shows, without events."""
    expires_ms: int
    """When the stream expires, in ms since 1970 by the server's clock."""


def decode_record(stored: bytes, now_ms: int, key: str) -> StreamRecord:
    """Decode a record.

    Raises:
        Corrupt: it is unreadable; names `key`, that of the session's streams.
    """
    found = _RECORD(stored)
    try:
        if found is None:
            raise ValueError(f"got {stored[:100]!r}")
        last, kept, size, deadline, keep = (decode_number(found[at]) for at in range(2, 7))
    except ValueError as error:
        raise Corrupt("streams", key, f"a record is unreadable: {error}") from error
    state = "lost" if found[1] == b"r" and deadline <= now_ms else STATES[found[1]]
    tag = tag_of_token(found[8].decode(errors="replace"))
    read = StreamRead(state, last, kept, size, deadline, now_ms, found[7] == b"1", tag, last, ())
    return StreamRecord(read, deadline + keep)


def list_read(keys: SessionKeys) -> list[Command]:
    """Read the records of a session's streams. Both replies are for `list_reply`."""
    return [("HGETALL", keys.streams), ("TIME",)]


def list_reply(keys: SessionKeys, fields: Mapping[bytes, bytes], time: Sequence[Any]) -> list[StreamInfo]:
    """Return the streams of a session, the one that ends or ended last first.

    Raises:
        Corrupt: a record is unreadable.
    """
    now = _milliseconds(time)
    found = []
    for generation, stored in fields.items():
        if generation:
            record = decode_record(stored, now, keys.streams)
            if record.expires_ms > now:
                found.append(record.read.info(generation.decode()))
    return sorted(found, key=lambda info: (-info.deadline, info.generation_id))


def _milliseconds(time: Sequence[Any]) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000


def names_read(keys: SessionKeys) -> list[Command]:
    return [("HKEYS", keys.streams), ("PTTL", keys.streams)]


def names_reply(keys: SessionKeys, names: Sequence[bytes], left_ms: int) -> tuple[list[str], list[AuditProblem]]:
    """Return the generations that have a record, and the problems of the key of the records."""
    problems = []
    if left_ms == -1:
        problems.append(AuditProblem("deadline", keys.streams, "never expires, but streams do"))
    return [name.decode(errors="replace") for name in names if name], problems


def stream_read(keys: StreamKeys) -> list[Command]:
    """Read one stream at one moment."""
    return [
        ("HGET", keys.streams, keys.generation_id),
        ("LRANGE", keys.events, 0, -1),
        ("PTTL", keys.events),
        ("TIME",),
    ]


def stream_reply(keys: StreamKeys, replies: Sequence[Any]) -> list[AuditProblem]:
    """Check every invariant of a stream."""
    stored, events, left, time = replies
    now = _milliseconds(time)
    if stored is None:
        reason = "evicted: has events, but the stream has no record"
        return [AuditProblem("streams", keys.streams, reason)] if events else []
    try:
        record = decode_record(stored, now, keys.streams)
        return list(_of_events(keys, record, events, left, now)) if record.expires_ms > now else []
    except Corrupt as error:
        return [AuditProblem(error.kind, error.key, error.reason)]


def _of_events(
    keys: StreamKeys, record: StreamRecord, events: Sequence[bytes], left: int, now: int
) -> Iterator[AuditProblem]:
    read = record.read
    if len(events) != read.kept:
        evicted = "evicted: " if not events else ""
        yield AuditProblem("events", keys.events, f"{evicted}has {len(events)} events, the record counts {read.kept}")
        return
    if sum(map(len, events)) != read.stored_bytes:
        yield AuditProblem("events", keys.events, f"has {sum(map(len, events))} bytes, not {read.stored_bytes}")
    for number, event in enumerate(events, read.dropped + 1):
        decode_event(event, number, keys.events)
    if events and (left == -1 or abs(now + left - record.expires_ms) > TOLERANCE_MS):
        expiry = "never" if left == -1 else f"at {now + left}"
        yield AuditProblem("deadline", keys.events, f"expires {expiry}, the stream at {record.expires_ms}")
