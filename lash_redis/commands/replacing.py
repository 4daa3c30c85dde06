"""Replacing a graph by one that begins like it: what is known to be stored, and how much of that a graph keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import ReferenceType, ref

from lash_redis import codec
from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.models import (
    EventPayload,
    PersistedSessionRead,
    PluginPayload,
    ReplaceFull,
    SessionGraph,
    SessionNodeRecord,
)

if TYPE_CHECKING:
    from lash_redis.commands.commit import PreparedCommit

STRIDE: Final = 64
"""Nodes after which it is noted what the hash of a meaning has come to: one that keeps less goes on from there."""

_HASHING: Final = Lock()
"""Two threads may replace graphs of one read at once."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a replacement keeps of a log: its first nodes, and how long their records are together."""

    log: Log
    count: int
    size: int
    dropped: Sequence[str] = ()
    """The ids of the nodes behind them."""

    @property
    def claim(self) -> bytes:
        """The `delta` of a commit that keeps them: how the script knows that log, and what is to stay of it."""
        log = self.log
        numbers = log.epoch, len(log), log.size, len(self.dropped), log.size - self.size
        return b"extend %d %d %d %d %d " % numbers + log.record(len(log) - 1)[: codec.CRC_BYTES]


class Log:
    """The records of a log, all of them live and in order, as a store that read or wrote them knows them.

    Graphs hold it: those that were read, those that grew out of them, those that were committed. A store refers to it
    weakly, so that a handle which is kept keeps no session's nodes in memory.
    """

    __slots__ = ("__weakref__", "_as_made", "_hash", "_hashed", "_hashes", "added", "epoch", "nodes", "size")

    def __init__(self, nodes: codec.StoredNodes, size: int, epoch: int) -> None:
        self.nodes = nodes
        """As they were read."""
        self.epoch = epoch
        """Which log it is: another one may come to the same revision and commit id."""
        self.added: list[bytes] = []
        """The records behind them."""
        self.size = size
        """How many bytes they are together."""
        self._as_made: dict[int, bytes] = {}
        """How nodes pack that were made here: their keys stand in their maker's order, not in the stored one."""
        self._hash, self._hashed = sha256(), 0
        """What `meaning` has come to, after so many nodes."""
        self._hashes = [sha256()]
        """What it was before the first, and after each `STRIDE` of them."""

    def __len__(self) -> int:
        return len(self.nodes) + len(self.added)

    def __reduce__(self) -> tuple[Any, ...]:
        return NoneType, ()  # a copy of a graph in another process, or a deep one, is nobody's proof

    def record(self, at: int) -> bytes:
        count = len(self.nodes)
        return self.nodes.record(at) if at < count else self.added[at - count]

    def add(self, records: Sequence[bytes]) -> None:
        self.added += records
        self.size += sum(map(len, records))

    def kept_by(
        self, nodes: Sequence[SessionNodeRecord], encode: Callable[[Any, str], tuple[bytes, bytes]]
    ) -> Kept | None:
        """How many of the first of `nodes` are what these records say, to the last byte, timestamps included.

        None where that is not even half of the records, of which the script looks at each that is dropped, or where
        naming those takes more than sending what is kept.
        """
        count, total = self._common(nodes, encode), len(self)
        if count == 0 or count < total - count:
            return None
        try:
            dropped = [self._node_id(at) for at in range(count, total)]
        except Corrupt:  # what replaces it mends it
            return None
        size = self.size - sum(len(self.record(at)) for at in range(count, total))
        if sum(len(node_id.encode()) for node_id in dropped) > size:
            return None
        return Kept(self, count, size, dropped)

    def _common(self, nodes: Sequence[SessionNodeRecord], encode: Callable[[Any, str], tuple[bytes, bytes]]) -> int:
        """How many nodes these and `nodes` have in common from the first on.

        A payload may have been changed in place since it was looked at, so each that was looked at, or made here, is
        packed again: 1 to 2 µs each. One whose keys are in another order than the stored one is encoded as for a commit
        the first time.
        """
        for at, node, record in self._doubtful(nodes):
            made = _as_made(node)
            if made is not None and record.endswith(made) and len(record) == len(made) + codec.CRC_BYTES:
                continue
            if made is None or made != self._as_made.get(at):
                try:
                    encoded, _ = encode(node, "")
                except InvalidRecord:
                    return at
                if encoded != record:
                    return at
                if made is not None:
                    self._as_made[at] = made
        return min(len(self), len(nodes))

    def _node_id(self, at: int) -> str:
        count = len(self.nodes)
        if at < count:
            return self.nodes[at].node_id
        return codec.decode_node(self.added[at - count], self.nodes.key, at).node_id

    def _doubtful(self, nodes: Sequence[Any]) -> Iterator[tuple[int, Any, bytes]]:
        yield from self.nodes.doubtful(nodes)
        count = len(self.nodes)
        for at, (node, record) in enumerate(zip(nodes[count:], self.added, strict=False), count):
            yield at, node, record

    def meaning(self, count: int) -> Any:
        """The hash of the first `count` nodes' part of a replacement's meaning, to be updated by the rest of it.

        2 to 4 µs for each node that it has not hashed yet.

        Raises:
            Corrupt: a record does not match its checksum.
        """
        with _HASHING:
            if count < self._hashed:
                stride = count // STRIDE
                return self._hash_on(self._hashes[stride], stride * STRIDE, count)
            while self._hashed < count:
                until = min(count, (self._hashed // STRIDE + 1) * STRIDE)
                self._hash, self._hashed = self._hash_on(self._hash, self._hashed, until), until
                if until % STRIDE == 0:
                    self._hashes.append(self._hash)
            return self._hash.copy()

    def _hash_on(self, begun: Any, start: int, stop: int) -> Any:
        meaning = begun.copy()
        for at in range(start, stop):
            meaning.update(codec.timeless_part(self.record(at), self.nodes.key, at))
        return meaning

    def cut(self, kept: Kept, epoch: int) -> None:
        """Let go of what was dropped; it is the log of another epoch then."""
        count = min(kept.count, len(self.nodes))
        self.nodes, self.added = self.nodes.pieces([(0, count)]), self.added[: kept.count - count]
        self.size, self.epoch = kept.size, epoch
        self._as_made = {at: made for at, made in self._as_made.items() if at < kept.count}
        self._hashes = self._hashes[: kept.count // STRIDE + 1]
        self._hash, self._hashed = self._hashes[-1], (len(self._hashes) - 1) * STRIDE

    def learn(self, former: Log) -> None:
        """Take over what `former` has hashed, where these are its records and perhaps more."""
        count, hashed = len(former.nodes), former._hashed
        grew = self.nodes.grew_from(former.nodes) and hashed <= len(self)
        if grew and all(self.record(at) == former.record(at) for at in range(count, hashed)):
            self._hash, self._hashed, self._hashes = former._hash, hashed, [*former._hashes]


def _as_made(node: object) -> bytes | None:
    """A node packed as it is. None if it cannot be: it may be a record all the same, of values that are like JSON's.

    Equal bytes mean equal values, in their types and their order.
    """
    if not isinstance(node, SessionNodeRecord):
        return None
    payload = node.payload
    if isinstance(payload, EventPayload):
        tag, value = None, payload.event
    elif isinstance(payload, PluginPayload):
        tag, value = payload.plugin_type, payload.body
    else:
        return None
    try:
        return codec.pack_node(node, codec.pack(value, ""), tag)
    except InvalidRecord:
        return None


Followed: TypeAlias = ReferenceType[Log] | None
"""A log for as long as somebody holds a graph of it."""


def followed(read: PersistedSessionRead, former: Log | None = None) -> Followed:
    """The log that was read, where it is live nodes and nothing else; `read.graph` holds it from now on.

    `former`: what was known of it before.
    """
    nodes, facts = read._origin.nodes, read._origin.head.facts
    if nodes is None or facts.loose or not len(nodes) == facts.length == facts.live == facts.ids:
        return None
    log = read.graph._log
    if log is None or log.nodes is not nodes or log.added:
        log = Log(nodes, facts.bytes, facts.epoch)
        if former is not None:
            log.learn(former)
        object.__setattr__(read.graph, "_log", log)
    return ref(log)


def log_of(graph: object, key: str) -> Log | None:
    """The log at `key` that a graph was read from, committed to or grown out of, by whatever handle."""
    log: Log | None = graph._log if isinstance(graph, SessionGraph) else None
    return log if log is not None and log.nodes.key == key else None


def committed(prepared: PreparedCommit, key: str, epoch: int) -> Followed:
    """The log of `epoch` after a commit that was not made before, at `key`; the graph that it put there holds it."""
    log, kept, delta = prepared.log, prepared.kept, prepared.commit.graph
    if kept is not None and kept.dropped:
        kept.log.cut(kept, epoch)
    elif isinstance(delta, ReplaceFull) and kept is None:
        log = Log(codec.StoredNodes((), key), 0, epoch)
    if log is None:
        return None
    log.add(prepared.records)
    if isinstance(delta, ReplaceFull):
        object.__setattr__(delta.graph, "_log", log)
    return ref(log)
