"""Follow a stream: what was sent after a cursor, then what is new, until the stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from lash_redis.errors import InvalidRecord, StoreError, StreamGone
from lash_redis.models import StreamEvent
from lash_redis.protocol import commands
from lash_redis.protocol.commands.streams import Place, StreamRead
from lash_redis.protocol.keys import StreamKeys
from lash_redis.session.namespace import Namespace
from lash_redis.session.stream_hub import FollowedStream, StreamHub, hub_of, read_stream
from lash_redis.transport.cleanup import cancellation_count

READ_BYTES: Final = 1024 * 1024
"""About so many bytes of stored events are read in one round trip."""


async def follow(
    namespace: Namespace, keys: StreamKeys, place: Place, wait: float
) -> AsyncGenerator[StreamEvent, None]:
    """`RedisSessionStore.follow`."""
    hub: StreamHub | None = None
    topic: FollowedStream | None = None
    try:
        read = await _read(namespace, keys, place.number)
        if not _is_reached(place, read) and wait > 0:
            hub = hub_of(namespace)
            topic = hub.follow(keys)
            read = await _first(namespace, keys, place, topic, wait) or read
        read = _checked(keys, place, read)
        tag, number = read.tag, place.number
        while True:
            for event in commands.streams.events_of(keys, read):
                number += 1
                yield event
            if number >= read.last and not read.is_running:
                commands.streams.require_finished(keys, read)
                return
            if number < read.last and topic is None:  # still reading what was stored before
                read = await _stored(namespace, keys, tag, number)
                continue
            if topic is None:
                hub = hub_of(namespace)
                topic = hub.follow(keys)
            read = await _next(namespace, keys, topic, tag, number)
    finally:
        if hub is not None and topic is not None:
            hub.leave(topic)


async def _read(namespace: Namespace, keys: StreamKeys, number: int) -> StreamRead | None:
    """Read what follows an event. A follower whose cancellation redis-py swallowed is cancelled afterwards."""
    cancellations = cancellation_count()
    read = await read_stream(namespace, keys, number, READ_BYTES)
    if cancellation_count() > cancellations:
        await asyncio.sleep(0)  # a scope of anyio, which recognises its own cancellations only, cancels again
        raise asyncio.CancelledError
    return read


def _is_reached(place: Place, read: StreamRead | None) -> bool:
    """Whether the stream exists and has the event of the cursor. A cursor of another stream is never reached."""
    return read is not None and (place.tag not in (None, read.tag) or place.number <= read.last)


async def _first(
    namespace: Namespace, keys: StreamKeys, place: Place, topic: FollowedStream, wait: float
) -> StreamRead | None:
    """Wait until the stream has the event of the cursor, for `wait` seconds at most; return the last read."""
    read: StreamRead | None = None
    with suppress(TimeoutError):
        async with asyncio.timeout(wait):
            while True:
                version, latest = topic.window.version, topic.window.latest
                is_missing = not isinstance(latest, StoreError) and not _is_reached(place, latest)
                if not is_missing:  # the follower's own read checks its owner
                    read = await _read(namespace, keys, place.number)
                    if _is_reached(place, read):
                        break
                await topic.wait_beyond(version)
    return read


def _checked(keys: StreamKeys, place: Place, read: StreamRead | None) -> StreamRead:
    """Check the cursor against the first read.

    Raises:
        StreamGone: there is no stream.
        InvalidRecord: the cursor is of another stream, or behind the last event.
        StreamGap: events after the cursor were dropped.
    """
    if read is None:
        raise StreamGone(keys.session_id, keys.generation_id)
    if place.tag is not None:
        after = commands.streams.cursor_of(place.tag, place.number)
        if place.tag != read.tag:
            raise InvalidRecord("after", f"expected a cursor of this stream, got {after!r}, which is of another one")
        if place.number > read.last:
            reason = f"expected a cursor up to {commands.streams.cursor_of(read.tag, read.last)!r}, got {after!r}"
            raise InvalidRecord("after", reason)
    commands.streams.require_no_gap(keys, read, place.number)
    return read


async def _stored(namespace: Namespace, keys: StreamKeys, tag: str, number: int) -> StreamRead:
    """Read from the server what follows an event.

    Raises:
        StreamGone: the stream no longer exists.
        StreamGap: what follows was dropped.
    """
    read = await _read(namespace, keys, number)
    if read is None or read.tag != tag:
        raise StreamGone(keys.session_id, keys.generation_id)
    commands.streams.require_no_gap(keys, read, number)
    return read


async def _next(namespace: Namespace, keys: StreamKeys, topic: FollowedStream, tag: str, number: int) -> StreamRead:
    """Wait for what follows an event: further events, or the end.

    The shared window answers, also with events that the server has dropped since. The server answers if the window
    cannot, once for each change of the window.
    """
    asked: int | None = None
    while True:
        version = topic.window.version
        try:
            read = topic.window.after(tag, number) if version else None
        except LookupError:
            if asked != version:
                asked = version
                read = await _stored(namespace, keys, tag, number)
                if read.events or not read.is_running:
                    return read
                read = None
        if read is not None:
            return read
        await topic.wait_beyond(version)
