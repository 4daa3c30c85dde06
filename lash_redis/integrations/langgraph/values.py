"""How the value of a channel is stored: a list by its elements, so that a list that grows stores what it gained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from os import urandom
from threading import Lock
from typing import Final

from msgpack import Unpacker

from lash_redis.integrations.langgraph import names
from lash_redis.integrations.langgraph.records import Blob, Elements, Inline, Typed, Value

MAX_INLINE_BYTES: Final = 256
MIN_LIST_BYTES: Final = 1024
MIN_ELEMENT_BYTES: Final = 64
"""Minimum mean size of the elements of a list that is stored by its elements. Each costs about 60 bytes more."""
MAX_SEGMENTS: Final = 8
"""A list of more segments is stored again as one. Each edit in the middle of a list adds one."""
MSGPACK: Final = "msgpack"


@dataclass(frozen=True, slots=True)
class Run:
    """Elements in their order, as bytes: what follows the header of a MessagePack array."""

    body: bytes = b""
    ends: tuple[int, ...] = ()
    """Where each element ends."""

    def first(self, count: int) -> Run:
        if count == len(self.ends):
            return self
        return Run(self.body[: self.ends[count - 1]], self.ends[:count]) if count else Run()

    def followed_by(self, elements: Iterable[bytes]) -> Run:
        parts, ends, end = [self.body], [*self.ends], len(self.body)
        for element in elements:
            parts.append(element)
            end += len(element)
            ends.append(end)
        return Run(b"".join(parts), tuple(ends))

    def shared_with(self, body: bytes) -> int:
        """Return how many of these elements another list begins with."""
        if body.startswith(self.body):
            return len(self.ends)
        low, high = 0, len(self.ends) - 1
        while low < high:
            middle = (low + high + 1) // 2
            end = self.ends[middle - 1]
            if body[:end] == self.body[:end]:
                low = middle
            else:
                high = middle - 1
        return low


class PartCache:
    """The parts that this process has seen, up to a number of bytes. Parts never change, so they stay valid."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, bytes], Run] = OrderedDict()
        self._lock = Lock()

    def log(self, session_id: str, log: bytes) -> Run:
        """Return the first elements of a log, as far as they are known."""
        return self._get((session_id, log)) or Run()

    def keep_log(self, session_id: str, log: bytes, run: Run) -> None:
        self._put((session_id, log), run)

    def blob(self, part: bytes) -> bytes | None:
        run = self._get(("", part))
        return None if run is None else run.body

    def keep_blob(self, part: bytes, data: bytes) -> None:
        self._put(("", part), Run(data))

    def elements(self, session_id: str, value: Elements) -> Run | None:
        """Return the elements of a list; None if some are not known."""
        runs = [(self.log(session_id, log), count) for log, count in value.segments]
        if any(len(run.ends) < count for run, count in runs):
            return None
        if len(runs) == 1:
            return runs[0][0].first(runs[0][1])
        joined: list[bytes] = []
        ends: list[int] = []
        end = 0
        for run, count in runs:
            first = run.first(count)
            joined.append(first.body)
            ends += [end + each for each in first.ends]
            end += len(first.body)
        return Run(b"".join(joined), tuple(ends))

    def _get(self, key: tuple[str, bytes]) -> Run | None:
        with self._lock:
            run = self._kept.get(key)
            if run is not None:
                self._kept.move_to_end(key)
            return run

    def _put(self, key: tuple[str, bytes], run: Run) -> None:
        with self._lock:
            former = self._kept.pop(key, None)
            self._bytes += _size(run) - (0 if former is None else _size(former))
            self._kept[key] = run
            while self._bytes > self._max_bytes and self._kept:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= _size(dropped)


def _size(run: Run) -> int:
    return 200 + len(run.body) + 40 * len(run.ends)


@dataclass(slots=True)
class Encoded:
    """A value as it will be stored."""

    value: Value
    parts: dict[bytes, bytes] = field(default_factory=dict)
    """The parts that are new, by name."""
    logs: dict[bytes, Run] = field(default_factory=dict)
    """What the cache may keep once the parts are stored."""


def encode(
    typed: Typed, previous: Value | None, cache: PartCache, session_id: str, *, starts_log: bool = False
) -> Encoded:
    """Encode a value of a channel that had `previous` in the checkpoint before.

    `starts_log`: do not append to a log of the previous value, because another branch has appended to it.
    """
    form, data = typed
    if len(data) <= MAX_INLINE_BYTES:
        return Encoded(Inline(typed))
    header = array_header(data) if form == MSGPACK and len(data) >= MIN_LIST_BYTES else None
    if header is None or len(data) < header[0] * MIN_ELEMENT_BYTES:
        part = names.blob(sha256(form.encode() + b"\0" + data).digest()[:16])
        return Encoded(Blob(form, part), {part: data})
    count, start = header
    return _encoded_list(data[start:], count, previous, cache, session_id, starts_log)


def _encoded_list(
    body: bytes, count: int, previous: Value | None, cache: PartCache, session_id: str, starts_log: bool
) -> Encoded:
    known = cache.elements(session_id, previous) if isinstance(previous, Elements) else None
    shared = min(known.shared_with(body), count) if known is not None else 0
    if known is None or not shared or not isinstance(previous, Elements):
        return _in_new_log((), body, count)
    segments = _cut(previous, shared)
    rest, more = body[known.ends[shared - 1] :], count - shared
    if not more:
        return Encoded(Elements(segments))
    if shared < previous.count or starts_log:
        return _in_new_log((), body, count) if len(segments) >= MAX_SEGMENTS else _in_new_log(segments, rest, more)
    log, size = segments[-1]
    elements = split(rest, more)
    parts = {names.element(log, size + at): element for at, element in enumerate(elements)}
    grown = cache.log(session_id, log).first(size).followed_by(elements)
    return Encoded(Elements((*segments[:-1], (log, size + more))), parts, {log: grown})


def _in_new_log(segments: tuple[tuple[bytes, int], ...], body: bytes, count: int) -> Encoded:
    log, elements = urandom(9), split(body, count)
    parts = {names.element(log, at): element for at, element in enumerate(elements)}
    return Encoded(Elements((*segments, (log, count))), parts, {log: Run().followed_by(elements)})


def _cut(value: Elements, count: int) -> tuple[tuple[bytes, int], ...]:
    segments: list[tuple[bytes, int]] = []
    for log, size in value.segments:
        if count <= 0:
            break
        segments.append((log, min(size, count)))
        count -= size
    return tuple(segments)


def array_header(data: bytes) -> tuple[int, int] | None:
    """Return the number of elements of a MessagePack array, and where the first begins; None for any other value."""
    kind = data[0]
    if 0x91 <= kind <= 0x9F:
        return kind & 0x0F, 1
    if kind == 0xDC:
        return int.from_bytes(data[1:3], "big"), 3
    if kind == 0xDD:
        return int.from_bytes(data[1:5], "big"), 5
    return None


def array(run: Run) -> bytes:
    """Return elements as a MessagePack array."""
    count = len(run.ends)
    if count < 16:
        return bytes([0x90 | count]) + run.body
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big") + run.body
    return b"\xdd" + count.to_bytes(4, "big") + run.body


def split(body: bytes, count: int) -> list[bytes]:
    """Return the bytes of each of `count` MessagePack values."""
    limit = max(len(body), 1)
    unpacker = Unpacker(
        max_buffer_size=limit,
        max_bin_len=limit,
        max_str_len=limit,
        max_array_len=limit,
        max_map_len=limit,
        max_ext_len=limit,
    )
    unpacker.feed(body)
    elements, start = [], 0
    for _ in range(count):
        unpacker.skip()
        end = unpacker.tell()
        elements.append(body[start:end])
        start = end
    return elements
