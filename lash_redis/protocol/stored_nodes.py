"""The nodes of a read: records of a log that are decoded when they are accessed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, repeat
from operator import itemgetter
from threading import Lock
from time import perf_counter
from typing import Any, overload

from lash_redis.models import SessionNodeRecord
from lash_redis.models.lineage import NodeSequence
from lash_redis.protocol.nodes import (
    DECODING,
    beginning_of,
    decode_node,
    decode_node_accessed,
    decode_payload,
    hand_over,
    is_accessed,
    set_stored,
)


class _Shelf:
    """Records that several reads of a log share. It only grows, and at its end: what a read sees of it is a prefix."""

    __slots__ = ("beginnings", "nodes", "places", "records")

    def __init__(self, records: list[bytes], places: list[int] | None) -> None:
        self.records = records
        self.places = places
        """The positions in the log, ascending; None where the first record is at 0 and none is left out."""
        self.nodes: list[SessionNodeRecord | None] = []
        """The decoded nodes; may end before the records do."""
        self.beginnings: tuple[int, int, set[bytes]] = 0, 0, set()
        """What so many first bytes are of so many of the first records, from the last `may_hold`."""

    def may_hold(self, beginning: bytes) -> bool:
        """Whether a record begins like this. O(1) but for the first time with such a length."""
        with _GROWING:
            length, count, known = self.beginnings
            if length != len(beginning):
                length, count, known = len(beginning), 0, set()
            if count < len(self.records):
                known.update(map(itemgetter(slice(0, length)), self.records[count:]))
            self.beginnings = length, len(self.records), known
            return beginning in known

    def pieces(self, ranges: Iterable[tuple[int, int]]) -> _Shelf:
        """Those records alone, on a shelf of their own."""
        records: list[bytes] = []
        places: list[int] = []
        nodes: list[SessionNodeRecord | None] = []
        for start, stop in ranges:
            records += self.records[start:stop]
            places += range(start, stop) if self.places is None else self.places[start:stop]
            decoded = self.nodes[start:stop]
            nodes += decoded
            nodes += [None] * (stop - start - len(decoded))
        shelf = _Shelf(records, None if _is_whole(places) else places)
        shelf.nodes = nodes
        return shelf

    def agrees(self, at: int, records: Sequence[bytes], places: Sequence[int]) -> bool:
        """Whether what stands from index `at` on is `records` at `places`, as far as both go."""
        count = min(len(self.records) - at, len(records))
        known = range(at, at + count) if self.places is None else self.places[at : at + count]
        return self.records[at : at + count] == records[:count] and list(known) == places[:count]

    def grow(self, records: list[bytes], places: list[int]) -> None:
        if not records:
            return
        count = len(self.records)
        if self.places is None and not (places[0] == count and places[-1] == count + len(places) - 1):
            self.places = list(range(count))
        if self.places is not None:
            self.places += places
        self.records += records


def _is_whole(places: Sequence[int]) -> bool:
    return not places or places[-1] == len(places) - 1


_GROWING = Lock()
"""Two threads may bring one read up to date at once."""


class StoredNodes(NodeSequence):
    """The nodes of a read: an immutable sequence that decodes a record when it is accessed.

    Equal to any sequence of equal records. A record that does not match its checksum raises `Corrupt` on access.
    `places` are the records' positions in the log, ascending; without, the first is at 0 and none is left out.
    """

    __slots__ = ("_count", "_key", "_shelf")

    def __init__(self, records: Sequence[bytes], key: str, places: Sequence[int] | None = None) -> None:
        whole = places is None or _is_whole(places)
        self._shelf = _Shelf(list(records), None if whole or places is None else list(places))
        self._key = key
        self._count = len(records)

    @classmethod
    def _of(cls, shelf: _Shelf, count: int, key: str) -> StoredNodes:
        nodes = cls.__new__(cls)
        nodes._shelf, nodes._count, nodes._key = shelf, count, key
        return nodes

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SessionNodeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SessionNodeRecord]: ...
    def __getitem__(self, index: int | slice) -> SessionNodeRecord | Sequence[SessionNodeRecord]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(self._count)))
        count = self._count
        if not -count <= index < count:
            raise IndexError("there are not so many nodes")
        shelf = self._shelf
        nodes = shelf.nodes if len(shelf.nodes) >= count else self._decoded()
        at = index if index >= 0 else index + count
        node = nodes[at]
        if node is None:
            places = shelf.places
            node = self._published(at, decode_node(shelf.records[at], self._key, at if places is None else places[at]))
        return node

    def _published(self, at: int, decoded: SessionNodeRecord) -> SessionNodeRecord:
        """The one node of a record: `decoded`, unless another thread decoded it first."""
        nodes = self._shelf.nodes
        with DECODING:
            node = nodes[at]
            if node is None:
                node = nodes[at] = decoded
        return node

    def __iter__(self) -> Iterator[SessionNodeRecord]:
        """A caller that accessed the payload of a node and asks for the next node will access that payload, too."""
        nodes, records, places, key = self._decoded(), self._shelf.records, self._shelf.places, self._key
        decode: Callable[[bytes, str, int], SessionNodeRecord] = decode_node
        for at in range(self._count):
            node = nodes[at]
            if node is None:
                decoded = decode(records[at], key, at if places is None else places[at])
                node = self._published(at, decoded)
                yield node
                if decode is decode_node_accessed and node is decoded:
                    continue
            else:
                if decode is decode_node_accessed:
                    hand_over(node)
                yield node
            decode = decode_node_accessed if is_accessed(node) else decode_node

    def decode_some(self, start: int, until: float) -> int:
        """`decode_some` up to a time of `perf_counter`."""
        nodes, records, places, key = self._decoded(), self._shelf.records, self._shelf.places, self._key
        for at in range(start, self._count):
            node = nodes[at]
            if node is None:
                self._published(at, decode_node(records[at], key, at if places is None else places[at], ahead=True))
            else:
                decode_payload(node)
            if perf_counter() >= until:
                return at + 1
        return self._count

    def _decoded(self) -> list[SessionNodeRecord | None]:
        shelf = self._shelf
        if len(shelf.nodes) < self._count:
            with DECODING:
                shelf.nodes += [None] * (len(shelf.records) - len(shelf.nodes))
        return shelf.nodes

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredNodes) and not self._accessed() and not other._accessed():
            return self._records() == other._records() or super().__eq__(other)
        return super().__eq__(other)

    __hash__ = NodeSequence.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        places = self._shelf.places
        return _revived, (self._records(), self._key, places and places[: self._count], self._accessed())

    def _accessed(self) -> dict[int, SessionNodeRecord]:
        """By their index, the nodes whose payload a caller accessed, and may have changed since."""
        nodes = self._shelf.nodes[: self._count]
        return {at: node for at, node in enumerate(nodes) if node is not None and is_accessed(node)}

    def _records(self) -> list[bytes]:
        records = self._shelf.records
        return records if len(records) == self._count else records[: self._count]

    # What only a refresh asks for

    def place(self, index: int) -> int:
        """The position in the log of the node at `index`, from 0."""
        return index if self._shelf.places is None else self._shelf.places[index]

    def index_of(self, place: int) -> int | None:
        """Where the node is whose record is at `place` of the log, if it is among these."""
        places = self._shelf.places
        if places is None:
            return place if 0 <= place < self._count else None
        index = bisect_left(places, place, 0, self._count)
        return index if index < self._count and places[index] == place else None

    def record(self, index: int) -> bytes:
        return self._shelf.records[index]

    def pieces(self, ranges: Sequence[tuple[int, int]]) -> StoredNodes:
        """The nodes from each start up to each stop, ascending; what is decoded need not be decoded again."""
        if ranges and ranges[0][0] == 0 and len(ranges) == 1:
            return self if ranges[0][1] == self._count else self._of(self._shelf, ranges[0][1], self._key)
        return self._of(self._shelf.pieces(ranges), sum(stop - start for start, stop in ranges), self._key)

    def extended(self, records: list[bytes], places: list[int]) -> StoredNodes:
        """These and more, at `places` behind the last of them. O(records), unless these were extended otherwise before.

        Then what comes of it stands on a copy.
        """
        if not records:
            return self
        with _GROWING:
            shelf = self._shelf
            if not shelf.agrees(self._count, records, places):
                shelf = shelf.pieces([(0, self._count)])
            known = len(shelf.records) - self._count
            shelf.grow(records[known:], places[known:])
        return self._of(shelf, self._count + len(records), self._key)

    # What only a replacement asks for

    @property
    def key(self) -> str:
        return self._key

    @property
    def records(self) -> Sequence[bytes]:
        """The nodes' records, and perhaps those behind them of longer sequences that share them."""
        return self._shelf.records

    def first(self, count: int) -> StoredNodes:
        return self.pieces([(0, count)])

    def has_id(self, node_id: str) -> bool:
        beginning = beginning_of(node_id)
        if beginning is None or not self._shelf.may_hold(beginning):
            return False
        return any(map(bytes.startswith, self._records(), repeat(beginning)))

    def accessed(self, count: int) -> Iterator[tuple[int, SessionNodeRecord]]:
        """Those of the first `count` nodes whose payload a caller has accessed, and may have changed in place."""
        nodes = self._shelf.nodes[:count]
        for at in compress(range(count), nodes):
            node = nodes[at]
            if node is not None and is_accessed(node):
                yield at, node

    def differing(self, other: StoredNodes, count: int) -> Sequence[int]:
        """Which of the first `count` records differ from those of `other`."""
        if self._shelf is other._shelf:
            return ()
        pairs = zip(self._shelf.records[:count], other._shelf.records[:count], strict=True)
        return [at for at, (mine, theirs) in enumerate(pairs) if mine != theirs]


def decode_some(nodes: Sequence[SessionNodeRecord], start: int, seconds: float) -> int:
    """Decode nodes of a read from `start` on with their payloads, and stop after some seconds.

    The payloads do not count as accessed.

    Returns:
        The index to continue from. A single node may take longer than `seconds`.

    Raises:
        Corrupt: a record is damaged.
    """
    until = perf_counter() + seconds
    if isinstance(nodes, StoredNodes):
        return nodes.decode_some(start, until)
    for at in range(start, len(nodes)):
        decode_payload(nodes[at])
        if perf_counter() >= until:
            return at + 1
    return len(nodes)


def _revived(
    records: Sequence[bytes], key: str, places: Sequence[int] | None, read: Mapping[int, SessionNodeRecord]
) -> StoredNodes:
    """What was pickled; the nodes that were accessed as they were then."""
    nodes = StoredNodes(records, key, places)
    decoded = nodes._decoded()
    for at, node in read.items():
        set_stored(node.payload, None)
        decoded[at] = node
    return nodes
