"""The events of a producer: those that the server has not confirmed, and the newest of those that it has.

Confirmed events are kept for a while, because a failover can lose them. The producer then sends them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BATCH_EVENTS: Final = 500
"""The largest number of events in one round trip."""
BATCH_BYTES: Final = 1024 * 1024
"""The largest number of bytes in one round trip, except for a single event."""
RETAINED_EVENTS: Final = 1024
"""Confirmed events that are kept."""
RETAINED_BYTES: Final = 1024 * 1024
"""Bytes of confirmed events that are kept."""


class Outbox:
    """Events by sequence number, the first of which is 1."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        """`max_events` and `max_bytes` are those of the stream. No batch exceeds them."""
        self._batch_events = min(BATCH_EVENTS, max_events)
        self._batch_bytes = min(BATCH_BYTES, max_bytes)
        self._events: list[bytes] = []
        self._first = 1
        """The number of the first event that is kept."""
        self._confirmed = 0
        """The number of the last event that the server confirmed."""
        self._unsent_bytes = self._retained_bytes = 0

    @property
    def next_number(self) -> int:
        """The number of the next event."""
        return self._first + len(self._events)

    @property
    def first_unsent(self) -> int:
        return self._confirmed + 1

    @property
    def has_unsent(self) -> bool:
        return self.first_unsent < self.next_number

    @property
    def is_full(self) -> bool:
        """Whether the next batch has its largest size."""
        return self.next_number - self.first_unsent >= self._batch_events or self._unsent_bytes >= self._batch_bytes

    def add(self, event: bytes) -> None:
        self._events.append(event)
        self._unsent_bytes += len(event)

    def batch(self) -> tuple[int, Sequence[bytes], bool]:
        """Return the number of the first unsent event, the next events to send, and whether they are the last."""
        begin = self.first_unsent - self._first
        end, size = begin, 0
        while end < len(self._events) and end - begin < self._batch_events:
            size += len(self._events[end])
            if size > self._batch_bytes and end > begin:
                break
            end += 1
        return self.first_unsent, self._events[begin:end], end == len(self._events)

    def confirm(self, last: int) -> None:
        """Note that the server has all events up to `last`, and drop the oldest of those that it has."""
        for event in self._events[self.first_unsent - self._first : last + 1 - self._first]:
            self._unsent_bytes -= len(event)
            self._retained_bytes += len(event)
        self._confirmed = max(self._confirmed, last)
        retained = self.first_unsent - self._first
        drop = 0
        while drop < retained and (retained - drop > RETAINED_EVENTS or self._retained_bytes > RETAINED_BYTES):
            self._retained_bytes -= len(self._events[drop])
            drop += 1
        if drop:
            del self._events[:drop]
            self._first += drop

    def roll_back(self, last: int) -> bool:
        """Note that the server has only the events up to `last`; return whether the others can be sent again."""
        if last + 1 < self._first:
            return False
        for event in self._events[last + 1 - self._first : self.first_unsent - self._first]:
            self._unsent_bytes += len(event)
            self._retained_bytes -= len(event)
        self._confirmed = last
        return True
