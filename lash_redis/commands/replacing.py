"""Replacing a graph by one that keeps it: what is known to be stored, and whether a graph begins with just that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import ReferenceType, ref

from lash_redis import codec
from lash_redis.errors import InvalidRecord
from lash_redis.models import EventPayload, PersistedSessionRead, PluginPayload, ReplaceFull, SessionNodeRecord

if TYPE_CHECKING:
    from lash_redis.commands.commit import PreparedCommit


class Log:
    """The records of a log, all of them live and in order, as a store that read or wrote them knows them.

    Graphs hold it: those that were read, those that grew out of them, those that were committed. A store refers to it
    weakly, so that a handle which is kept keeps no session's nodes in memory.
    """

    __slots__ = ("__weakref__", "_as_made", "_hash", "_hashed", "added", "epoch", "nodes", "size")

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

    @property
    def claim(self) -> bytes:
        """The `delta` of a commit that extends it."""
        return b"extend %d %d %d " % (self.epoch, len(self), self.size) + self.record(len(self) - 1)[: codec.CRC_BYTES]

    def begins(self, nodes: Sequence[SessionNodeRecord], encode: Callable[[Any, str], tuple[bytes, bytes]]) -> bool:
        """Whether the first of `nodes` are what these records say, to the last byte, timestamps included.

        A payload may have been changed in place since it was looked at, so each that was looked at, or made here, is
        packed again: 1 to 2 µs each. One whose keys are in another order than the stored one is encoded as for a commit
        the first time.
        """
        if not 0 < len(self) <= len(nodes):
            return False
        for at, node, record in self._doubtful(nodes):
            made = _as_made(node)
            if made is not None and record.endswith(made) and len(record) == len(made) + codec.CRC_BYTES:
                continue
            if made is None or made != self._as_made.get(at):
                try:
                    encoded, _ = encode(node, "")
                except InvalidRecord:
                    return False
                if encoded != record:
                    return False
                if made is not None:
                    self._as_made[at] = made
        return True

    def _doubtful(self, nodes: Sequence[SessionNodeRecord]) -> Iterator[tuple[int, SessionNodeRecord, bytes]]:
        yield from self.nodes.doubtful(nodes)
        for at, record in enumerate(self.added, len(self.nodes)):
            yield at, nodes[at], record

    def meaning(self) -> Any:
        """The hash of these nodes' part of a replacement's meaning, to be updated by the rest of it.

        2 to 4 µs for each node that it has not hashed yet.

        Raises:
            Corrupt: a record does not match its checksum.
        """
        for at in range(self._hashed, len(self)):
            self._hash.update(codec.timeless_part(self.record(at), self.nodes.key, at))
            self._hashed = at + 1
        return self._hash.copy()

    def learn(self, former: Log) -> None:
        """Take over what `former` has hashed, where these are its records and perhaps more."""
        count, hashed = len(former.nodes), former._hashed
        grew = self.nodes.grew_from(former.nodes) and hashed <= len(self)
        if grew and all(self.record(at) == former.record(at) for at in range(count, hashed)):
            self._hash, self._hashed = former._hash.copy(), hashed


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


def committed(prepared: PreparedCommit, key: str, epoch: int) -> Followed:
    """The log of `epoch` after a commit that was not made before, at `key`; the graph that it put there holds it."""
    log, delta = prepared.log, prepared.commit.graph
    if log is None and isinstance(delta, ReplaceFull):
        log = Log(codec.StoredNodes((), key), 0, epoch)
    if log is None:
        return None
    log.add(prepared.records)
    if isinstance(delta, ReplaceFull):
        object.__setattr__(delta.graph, "_log", log)
    return ref(log)
