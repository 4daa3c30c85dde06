"""The newest events of a followed stream in this process, which all of its followers share."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lash_redis.errors import StoreError
from lash_redis.protocol.commands.streams import StreamRead

WINDOW_EVENTS: Final = 1024
"""The largest number of events in a window, plus those of one poll."""
WINDOW_BYTES: Final = 1024 * 1024
"""The same in bytes. A follower that is further behind reads from the server."""
CHUNK: Final = 64
"""Events that a follower takes from a window at once."""


class StreamWindow:
    """What the polls of a stream have shown: its state, and its newest events.

    A follower that the window does not serve reads from the server. So a window may be empty, late or of another stream
    of the same generation, and no follower misses an event.
    """

    def __init__(self) -> None:
        self.latest: StreamRead | StoreError | None = None
        """The result of the last poll; None if there was no stream."""
        self.version = 0
        """The number of polls that showed a change."""
        self._base = 0
        """The number of the event before the window."""
        self._events: list[bytes] = []
        self._size = 0

    @property
    def end(self) -> int:
        """The number of the last event that was in the window."""
        return self._base + len(self._events)

    @property
    def poll_after(self) -> int | None:
        """The number behind which the next poll reads events; None to read the state alone."""
        return self.end if isinstance(self.latest, StreamRead) else None

    @property
    def is_behind(self) -> bool:
        """Whether the stream has more events than the window."""
        return isinstance(self.latest, StreamRead) and self.end < self.latest.last

    def advance(self, result: StreamRead | StoreError | None) -> bool:
        """Apply the result of a poll from `poll_after`; return whether it shows a change."""
        before, self.latest = self.latest, result
        if not isinstance(result, StreamRead):
            is_changed = result is not None or before is not None or self.version == 0
        elif not isinstance(before, StreamRead) or before.tag != result.tag or result.dropped > self.end:
            # The first poll, another stream, or a gap. The window begins with the next event.
            self._base, self._events, self._size = result.last, [], 0
            is_changed = True
        else:
            if result.events and result.after == self.end:
                self._extend(result)
            is_changed = bool(result.events) or (before.state, before.last) != (result.state, result.last)
        self.version += is_changed
        return is_changed

    def _extend(self, read: StreamRead) -> None:
        self._events += read.events
        self._size += sum(map(len, read.events))
        drop = max(0, len(self._events) - WINDOW_EVENTS)
        freed = sum(map(len, self._events[:drop]))
        while self._size - freed > WINDOW_BYTES and drop < len(self._events) - len(read.events):
            freed += len(self._events[drop])
            drop += 1
        if drop:
            del self._events[:drop]
            self._base += drop
            self._size -= freed

    def after(self, tag: str, number: int) -> StreamRead | None:
        """Return what follows the event `number` of the stream `tag`: events, or its end; None for nothing new.

        Raises:
            LookupError: the window cannot decide; read from the server.
        """
        latest = self.latest
        if not isinstance(latest, StreamRead) or latest.tag != tag or number < self._base:
            raise LookupError
        at = number - self._base
        events = self._events[at : at + CHUNK]
        if not events and (latest.is_running or number < latest.last):
            return None
        return replace(latest, after=number, events=events)
