"""Replacing a graph by one that begins like it: what is known to be stored, and how much of that a graph keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from types import NoneType
from typing import TYPE_CHECKING, Any, Final
from weakref import ReferenceType, ref

from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.models import (
    EventPayload,
    PersistedSessionRead,
    PluginPayload,
    ReplaceFull,
    SessionGraph,
    SessionNodeRecord,
)
from lash_redis.protocol.nodes import is_packed_as, mark_of, pack_node, timeless_part
from lash_redis.protocol.stored_nodes import StoredNodes

if TYPE_CHECKING:
    from lash_redis.commands.commit import PreparedCommit

STRIDE: Final = 64
"""Nodes after which it is noted what the hash of a meaning has come to: one that keeps less goes on from there."""

_SHARING: Final = Lock()
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
        return b"extend %d %d %d %d %d " % numbers + mark_of(log.nodes.record(len(log) - 1))


class Records:
    """Records that several logs begin with, and what has been computed from them.

    They only grow, and only at their end: a log that shares them sees a prefix, which never changes.
    """

    __slots__ = ("__weakref__", "_hash", "_hashed", "_hashes", "as_made", "nodes")

    def __init__(self, nodes: StoredNodes) -> None:
        self.nodes = nodes
        self.as_made: dict[int, bytes] = {}
        """How nodes pack that were made here: their keys stand in their maker's order, not in the stored one."""
        self._hash, self._hashed = sha256(), 0
        """What `meaning` has come to, after so many nodes."""
        self._hashes = [sha256()]
        """What it was before the first, and after each `STRIDE` of them."""

    def first(self, count: int) -> Records:
        """The first `count` of them, which grow by themselves."""
        first = Records(self.nodes.pieces([(0, count)]))
        first.as_made = {at: made for at, made in self.as_made.copy().items() if at < count}
        first._hashes = self._hashes[: count // STRIDE + 1]
        first._hash, first._hashed = first._hashes[-1], (len(first._hashes) - 1) * STRIDE
        return first

    def meaning(self, count: int) -> Any:
        """`Log.meaning`."""
        with _SHARING:
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
            meaning.update(timeless_part(self.nodes.record(at), self.nodes.key, at))
        return meaning

    def learn(self, former: Records) -> None:
        """Take over what `former` has hashed, where these are its records and perhaps more."""
        with _SHARING:
            if self.nodes.grew_from(former.nodes):
                self._hash, self._hashed, self._hashes = former._hash, former._hashed, [*former._hashes]


class Line:
    """What the logs have in common of which each came from the one before it, by a commit.

    A graph of one of them keeps the records of the last in memory, so that a graph put together by hand can be compared
    with them.
    """

    __slots__ = ("__weakref__", "newest")

    def __init__(self, newest: Records) -> None:
        self.newest = newest


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """A log as a store read or wrote it, all of its nodes live and in order. It stays so when the stored one changes.

    Graphs hold it: those that were read, those that grew out of them, those that were committed.
    """

    records: Records
    nodes: StoredNodes
    """The first of `records`."""
    size: int
    """How many bytes their records are together."""
    epoch: int
    """Which log it is: another one may come to the same revision and commit id."""
    line: Line

    @classmethod
    def of(cls, records: Records, size: int, epoch: int) -> Log:
        """One that comes from no other."""
        return cls(records, records.nodes, size, epoch, Line(records))

    def __len__(self) -> int:
        return len(self.nodes)

    def __reduce__(self) -> tuple[Any, ...]:
        return NoneType, ()  # a copy of a graph in another process, or a deep one, is nobody's proof

    def extended(self, records: list[bytes]) -> Log:
        """These and `records` behind them. O(records), unless the shared ones were extended otherwise before."""
        count = len(self)
        with _SHARING:
            shared = self.records if len(self.records.nodes) == count else self.records.first(count)
            nodes = shared.nodes = self.nodes.extended(records, [*range(count, count + len(records))])
            self.line.newest = shared
        return Log(shared, nodes, self.size + sum(map(len, records)), self.epoch, self.line)

    def cut(self, kept: Kept, epoch: int) -> Log:
        """What a commit kept of these; it is the log of another epoch then."""
        records = self.records.first(kept.count)
        return Log(records, records.nodes, kept.size, epoch, self.line)

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
            dropped = [self.nodes[at].node_id for at in range(count, total)]
        except Corrupt:  # what replaces it mends it
            return None
        size = self.size - sum(len(self.nodes.record(at)) for at in range(count, total))
        if sum(len(node_id.encode()) for node_id in dropped) > size:
            return None
        return Kept(self, count, size, dropped)

    def _common(self, nodes: Sequence[SessionNodeRecord], encode: Callable[[Any, str], tuple[bytes, bytes]]) -> int:
        """How many nodes these and `nodes` have in common from the first on.

        A payload may have been changed in place since it was looked at, so each that was looked at, or made here, is
        packed again: 1 to 2 µs each. One whose keys are in another order than the stored one is encoded as for a commit
        the first time.
        """
        as_made = self.records.as_made
        for at, node, record in self.nodes.doubtful(nodes):
            made = _as_made(node)
            if made is not None and is_packed_as(record, made):
                continue
            if made is None or made != as_made.get(at):
                try:
                    encoded, _ = encode(node, "")
                except InvalidRecord:
                    return at
                if encoded != record:
                    return at
                if made is not None:
                    as_made[at] = made
        return min(len(self), len(nodes))

    def meaning(self, count: int) -> Any:
        """The hash of the first `count` nodes' part of a replacement's meaning, to be updated by the rest of it.

        2 to 4 µs for each node that it has not hashed yet.

        Raises:
            Corrupt: a record does not match its checksum.
        """
        return self.records.meaning(count)


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
        return pack_node(node.node_id, node.parent_node_id, tag, value, node.timestamp)
    except InvalidRecord:
        return None


@dataclass(frozen=True, slots=True)
class Followed:
    """A log for as long as somebody holds a graph of it, or of one that it came from and no other has come from since.

    A store refers to its log by this, so that a handle which is kept keeps no session's nodes in memory.
    """

    line: ReferenceType[Line]
    records: ReferenceType[Records]
    count: int
    size: int
    epoch: int

    @classmethod
    def of(cls, log: Log) -> Followed:
        return cls(ref(log.line), ref(log.records), len(log), log.size, log.epoch)

    def __call__(self) -> Log | None:
        line, records = self.line(), self.records()
        if line is None or records is None:
            return None
        return Log(records, records.nodes.pieces([(0, self.count)]), self.size, self.epoch, line)


def followed(read: PersistedSessionRead, former: Log | None = None) -> Followed | None:
    """The log that was read, where it is live nodes and nothing else; `read.graph` holds it from now on.

    `former`: what was known of it before.
    """
    nodes, facts = read._origin.nodes, read._origin.head.facts
    if nodes is None or facts.loose or not len(nodes) == facts.length == facts.live == facts.ids:
        return None
    log: Log | None = read.graph._log
    if log is None or log.nodes is not nodes:
        records = Records(nodes)
        if former is not None:
            records.learn(former.records)
        log = Log.of(records, facts.bytes, facts.epoch)
        object.__setattr__(read.graph, "_log", log)
    return Followed.of(log)


def log_of(graph: object, key: str) -> Log | None:
    """The log at `key` that a graph was read from, committed to or grown out of, by whatever handle."""
    log: Log | None = graph._log if isinstance(graph, SessionGraph) else None
    return log if log is not None and log.nodes.key == key else None


def committed(prepared: PreparedCommit, key: str, epoch: int) -> Followed | None:
    """The log of `epoch` after a commit that was not made before, at `key`; the graph that it put there holds it."""
    log, kept, delta = prepared.log, prepared.kept, prepared.commit.graph
    if kept is not None and kept.dropped:
        log = kept.log.cut(kept, epoch)
    elif isinstance(delta, ReplaceFull) and kept is None:
        log = Log.of(Records(StoredNodes((), key)), 0, epoch)
    if log is None:
        return None
    log = log.extended(prepared.records)
    if isinstance(delta, ReplaceFull):
        object.__setattr__(delta.graph, "_log", log)
    return Followed.of(log)
