"""The nodes of a read: records of a log that are decoded when they are accessed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, repeat
from operator import itemgetter
from threading import Lock
from typing import Any, overload

from lash_redis.models import PluginPayload, SessionNodeRecord
from lash_redis.models.lineage import NodeSequence
from lash_redis.protocol.nodes import (
    DECODING,
    decode_content,
    decode_node,
    decode_node_accessed,
    decode_payload,
    is_accessed,
    mark_accessed,
    record_prefix,
    set_stored,
)
from lash_redis.protocol.steps import Steps


class _SharedRecords:
    """The records that several reads of a log share. They only grow at the end, and each read uses a prefix of them."""

    __slots__ = ("nodes", "places", "prefixes", "records")

    def __init__(self, records: list[bytes], places: list[int] | None) -> None:
        self.records = records
        self.places = places
        """The records' positions in the log, ascending; None if the first is at 0 and none is left out."""
        self.nodes: list[SessionNodeRecord | None] = []
        """The decoded nodes; may be shorter than `records`."""
        self.prefixes: tuple[int, int, set[bytes]] = 0, 0, set()
        """An index for `has_prefix`: a length, the number of records indexed, and the first bytes of those records."""

    def has_prefix(self, prefix: bytes) -> bool:
        """Whether a record begins with these bytes. O(1), except for the first prefix of another length."""
        with _GROWING:
            length, count, known = self.prefixes
            if length != len(prefix):
                length, count, known = len(prefix), 0, set()
            if count < len(self.records):
                known.update(map(itemgetter(slice(0, length)), self.records[count:]))
            self.prefixes = length, len(self.records), known
            return prefix in known

    def select(self, ranges: Iterable[tuple[int, int]]) -> _SharedRecords:
        """Copy the records of some ranges, each from a start up to a stop, with their decoded nodes."""
        records: list[bytes] = []
        places: list[int] = []
        nodes: list[SessionNodeRecord | None] = []
        for start, stop in ranges:
            records += self.records[start:stop]
            places += range(start, stop) if self.places is None else self.places[start:stop]
            decoded = self.nodes[start:stop]
            nodes += decoded
            nodes += [None] * (stop - start - len(decoded))
        selected = _SharedRecords(records, None if _is_whole(places) else places)
        selected.nodes = nodes
        return selected

    def matches(self, at: int, records: Sequence[bytes], places: Sequence[int]) -> bool:
        """Whether the records from index `at` on equal `records` at `places`, up to the end of the shorter sequence."""
        count = min(len(self.records) - at, len(records))
        known = range(at, at + count) if self.places is None else self.places[at : at + count]
        return self.records[at : at + count] == records[:count] and list(known) == places[:count]

    def grow(self, records: list[bytes], places: list[int]) -> None:
        """Append records at these positions of the log."""
        if not records:
            return
        count = len(self.records)
        if self.places is None and not (places[0] == count and places[-1] == count + len(places) - 1):
            self.places = list(range(count))
        if self.places is not None:
            self.places += places
        self.records += records


def _is_whole(places: Sequence[int]) -> bool:
    """Whether the first position is 0 and none is left out."""
    return not places or places[-1] == len(places) - 1


_GROWING = Lock()
"""Held while records are appended or indexed, because two threads may refresh one read at the same time."""


class StoredNodes(NodeSequence):
    """The nodes of a read: an immutable sequence that decodes a record when a caller accesses it.

    Equal to any sequence of equal nodes. Accessing a record that does not match its checksum raises `Corrupt`.
    `places` are the records' positions in the log, ascending. Without them, the first is at 0 and none is left out.
    """

    __slots__ = ("_count", "_key", "_shared")

    def __init__(self, records: Sequence[bytes], key: str, places: Sequence[int] | None = None) -> None:
        whole = places is None or _is_whole(places)
        self._shared = _SharedRecords(list(records), None if whole or places is None else list(places))
        self._key = key
        self._count = len(records)

    @classmethod
    def _of(cls, shared: _SharedRecords, count: int, key: str) -> StoredNodes:
        nodes = cls.__new__(cls)
        nodes._shared, nodes._count, nodes._key = shared, count, key
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
            raise IndexError(f"node index {index} out of range: the sequence has {count} nodes")
        shared = self._shared
        nodes = shared.nodes if len(shared.nodes) >= count else self._decoded()
        at = index if index >= 0 else index + count
        node = nodes[at]
        if node is None:
            places = shared.places
            node = self._published(at, decode_node(shared.records[at], self._key, at if places is None else places[at]))
        return node

    def _published(self, at: int, decoded: SessionNodeRecord) -> SessionNodeRecord:
        """Publish the decoded node of a record, and return it; or the node that another thread published first."""
        nodes = self._shared.nodes
        with DECODING:
            node = nodes[at]
            if node is None:
                node = nodes[at] = decoded
        return node

    def __iter__(self) -> Iterator[SessionNodeRecord]:
        """Iterate over the nodes, and decode the payload of a node at once if the caller accessed the previous one's.

        Such a caller is likely to access the next payload, too.
        """
        nodes, records, places, key = self._decoded(), self._shared.records, self._shared.places, self._key
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
                    mark_accessed(node)
                yield node
            decode = decode_node_accessed if is_accessed(node) else decode_node

    def decode_in_steps(self) -> Steps[None]:
        """Decode all nodes and payloads; each node is a step."""
        nodes, records, places, key = self._decoded(), self._shared.records, self._shared.places, self._key
        for at in range(self._count):
            node = nodes[at]
            if node is None:
                self._published(at, decode_node(records[at], key, at if places is None else places[at], ahead=True))
            else:
                decode_payload(node)
            yield

    def unread(self, index: int) -> SessionNodeRecord | None:
        """Decode the node at `index` again, and do not keep it. None if a caller accessed its payload.

        A pass over all nodes then leaves no objects for Python's garbage collector to traverse.
        """
        nodes, places = self._shared.nodes, self._shared.places
        kept = nodes[index] if index < len(nodes) else None
        if kept is not None and is_accessed(kept):
            return None
        return decode_node_accessed(self._shared.records[index], self._key, index if places is None else places[index])

    def contents(self) -> Iterator[tuple[str, str | None, Any]]:
        """Yield the id of each node, its plugin type, and its event (no plugin type) or body.

        Each call decodes all records, whether or not their nodes are decoded. So a caller may change what it gets.
        """
        places, key = self._shared.places, self._key
        for at, record in enumerate(self._records()):
            yield decode_content(record, key, at if places is None else places[at])

    def _decoded(self) -> list[SessionNodeRecord | None]:
        """Return the shared list of decoded nodes, extended with None to the number of records."""
        shared = self._shared
        if len(shared.nodes) < self._count:
            with DECODING:
                shared.nodes += [None] * (len(shared.records) - len(shared.nodes))
        return shared.nodes

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredNodes) and not self._accessed() and not other._accessed():
            return self._records() == other._records() or super().__eq__(other)
        return super().__eq__(other)

    __hash__ = NodeSequence.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        places = self._shared.places
        return _unpickled, (self._records(), self._key, places and places[: self._count], self._accessed())

    def _accessed(self) -> dict[int, SessionNodeRecord]:
        """The nodes whose payload a caller accessed and may have changed, by their index."""
        nodes = self._shared.nodes[: self._count]
        return {at: node for at, node in enumerate(nodes) if node is not None and is_accessed(node)}

    def _records(self) -> list[bytes]:
        records = self._shared.records
        return records if len(records) == self._count else records[: self._count]

    # For a refresh

    def place(self, index: int) -> int:
        """Return the position in the log of the node at `index`, from 0."""
        return index if self._shared.places is None else self._shared.places[index]

    def index_of(self, place: int) -> int | None:
        """Return the index of the node at position `place` of the log; None if it is not among these."""
        places = self._shared.places
        if places is None:
            return place if 0 <= place < self._count else None
        index = bisect_left(places, place, 0, self._count)
        return index if index < self._count and places[index] == place else None

    def record(self, index: int) -> bytes:
        return self._shared.records[index]

    def select(self, ranges: Sequence[tuple[int, int]]) -> StoredNodes:
        """Return the nodes of some ascending ranges, each from a start up to a stop. Decoded nodes stay decoded."""
        if ranges and ranges[0][0] == 0 and len(ranges) == 1:
            return self if ranges[0][1] == self._count else self._of(self._shared, ranges[0][1], self._key)
        return self._of(self._shared.select(ranges), sum(stop - start for start, stop in ranges), self._key)

    def extended(self, records: list[bytes], places: list[int]) -> StoredNodes:
        """Return these nodes and those of `records`, at `places` behind the last of these. O(records).

        If these nodes were extended by other records before, the result is built on a copy.
        """
        if not records:
            return self
        with _GROWING:
            shared = self._shared
            if not shared.matches(self._count, records, places):
                shared = shared.select([(0, self._count)])
            known = len(shared.records) - self._count
            shared.grow(records[known:], places[known:])
        return self._of(shared, self._count + len(records), self._key)

    # For a replacement

    @property
    def key(self) -> str:
        return self._key

    @property
    def records(self) -> Sequence[bytes]:
        """The nodes' records, perhaps followed by records of longer sequences that share them."""
        return self._shared.records

    def first(self, count: int) -> StoredNodes:
        return self.select([(0, count)])

    def has_id(self, node_id: str) -> bool:
        """Whether one of the nodes has this id. No record is decoded."""
        prefix = record_prefix(node_id)
        if prefix is None or not self._shared.has_prefix(prefix):
            return False
        return any(map(bytes.startswith, self._records(), repeat(prefix)))

    def accessed(self, count: int) -> Iterator[tuple[int, SessionNodeRecord]]:
        """Yield those of the first `count` nodes whose payload a caller accessed, each with its index."""
        nodes = self._shared.nodes[:count]
        for at in compress(range(count), nodes):
            node = nodes[at]
            if node is not None and is_accessed(node):
                yield at, node

    def differing(self, other: StoredNodes, count: int) -> Sequence[int]:
        """Return the indexes of those of the first `count` records that differ from the records of `other`."""
        if self._shared is other._shared:
            return ()
        pairs = zip(self._shared.records[:count], other._shared.records[:count], strict=True)
        return [at for at, (record, other_record) in enumerate(pairs) if record != other_record]


def decode_in_steps(nodes: Sequence[SessionNodeRecord]) -> Steps[None]:
    """Decode the nodes of a read and their payloads; each node is a step. The payloads do not count as accessed.

    Raises:
        Corrupt: a record is damaged.
    """
    if isinstance(nodes, StoredNodes):
        yield from nodes.decode_in_steps()
        return
    for node in nodes:
        decode_payload(node)
        yield


def _unpickled(
    records: Sequence[bytes], key: str, places: Sequence[int] | None, accessed: Mapping[int, SessionNodeRecord]
) -> StoredNodes:
    """Restore pickled nodes. Nodes that a caller had accessed are restored as they were when they were pickled."""
    nodes = StoredNodes(records, key, places)
    decoded = nodes._decoded()
    for at, node in accessed.items():
        set_stored(node.payload, None)
        decoded[at] = node
    return nodes


def contents_of(nodes: Sequence[SessionNodeRecord]) -> Iterator[tuple[str, str | None, Any]]:
    """Yield the id of each node, its plugin type, and its event (no plugin type) or body."""
    if isinstance(nodes, StoredNodes):
        yield from nodes.contents()
        return
    for node in nodes:
        payload = node.payload
        if isinstance(payload, PluginPayload):
            yield node.node_id, payload.plugin_type, payload.body
        else:
            yield node.node_id, None, payload.event
