"""Replacing a graph by one that grew from it: which log is known to be stored, and how much of it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from lash_redis.errors import Corrupt
from lash_redis.models import SessionNodeRecord
from lash_redis.models.lineage import Base, Lineage
from lash_redis.protocol.heads import Facts
from lash_redis.protocol.nodes import first_changed, mark_of, timeless_part
from lash_redis.protocol.steps import Steps, chunks
from lash_redis.protocol.stored_nodes import StoredNodes
from lash_redis.protocol.sums import Run, Sum


@dataclass(frozen=True, slots=True, eq=False)
class StoredLog(Base):
    """A log as a store read or wrote it, all of its nodes live and in order. Immutable."""

    nodes: StoredNodes
    size: int
    """Bytes of all records."""
    epoch: int
    """The identity of the log. Another log may have the same revision and commit id."""
    sum: Sum

    @classmethod
    def of(cls, nodes: StoredNodes, facts: Facts) -> StoredLog | None:
        """Return the log of a head with these facts; None unless `nodes` are all of it and all links are positions."""
        if facts.loose or not len(nodes) == facts.length == facts.live == facts.ids:
            return None
        return cls(nodes, facts.bytes, facts.epoch, Sum(facts.high, facts.low))

    def __len__(self) -> int:
        return len(self.nodes)

    def extended(self, records: list[bytes], run: Run) -> StoredLog:
        """Return this log with `records` appended, whose sums are `run`. O(records)."""
        count = len(self)
        nodes = self.nodes.extended(records, [*range(count, count + len(records))])
        return replace(self, nodes=nodes, size=self.size + sum(map(len, records)), sum=self.sum.plus(run, count))

    def kept_by(self, nodes: Sequence[SessionNodeRecord], lineage: Lineage) -> Steps[Kept | None]:
        """Count how many of the first `nodes` encode to exactly the records of this log, timestamps included; in steps.

        None if fewer than half of the records are kept, because the script checks each dropped one. None also if the
        ids of the dropped nodes take more bytes than the records that are kept.
        """
        count, total = (yield from self._common(nodes, lineage)), len(self)
        if count == 0 or count < total - count:
            return None
        log, key = self.nodes, self.nodes.key
        try:
            dropped = [log[at].node_id for at in range(count, total)]
            run = yield from Run.of_in_steps(timeless_part(log.record(at), key, at) for at in range(count, total))
        except Corrupt:  # a whole replacement overwrites the damaged record
            return None
        less = sum(len(log.record(at)) for at in range(count, total))
        if sum(len(node_id.encode()) for node_id in dropped) > self.size - less:
            return None
        return Kept(self, count, less, Sum().plus(run, count), dropped)

    def _common(self, nodes: Sequence[SessionNodeRecord], lineage: Lineage) -> Steps[int]:
        """Count how many nodes this log and `nodes` have in common, from the first on.

        A stored node whose payload no caller has accessed is unchanged. Any other node may have been changed in place,
        so it is packed again and compared.
        """
        most, kept, records = min(len(self), len(nodes)), 0, self.nodes.records
        if isinstance(lineage.base, StoredLog):
            stored = lineage.base.nodes
            kept = min(lineage.kept, most)
            accessed = dict(stored.accessed(kept))
            others = (at for at in self.nodes.differing(stored, kept) if at not in accessed)
            other = next(others, kept)
            changed = yield from _first_changed(records, accessed.items(), were_read=True)
            if other < kept or changed is not None:
                return other if changed is None else min(other, changed)
        made = ((at, nodes[at]) for at in range(kept, most))
        changed = yield from _first_changed(records, made, were_read=False)
        return most if changed is None else changed


def _first_changed(records: Sequence[bytes], nodes: Iterable[tuple[int, Any]], *, were_read: bool) -> Steps[int | None]:
    """`first_changed` in steps."""
    for chunk in chunks(nodes):
        changed = first_changed(records, chunk, were_read=were_read)
        if changed is not None:
            return changed
        yield
    return None


class TombstonesSeen(NamedTuple):
    """Which tombstones of a log a client has seen. Their number only grows while the log has the same epoch."""

    epoch: int
    hidden: int
    """The number of nodes that were tombstoned, those included that were freed since."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The part of a log that a replacement keeps: its first `count` nodes."""

    log: StoredLog
    count: int
    less: int
    """Bytes of the dropped records."""
    less_sum: Sum
    """The share of the dropped nodes in the log's sum."""
    dropped: Sequence[str] = ()
    """The ids of the dropped nodes."""

    @property
    def sum(self) -> Sum:
        """The sum of the kept nodes."""
        return self.log.sum.minus(self.less_sum)

    @property
    def claim(self) -> bytes:
        """The `delta` of a commit that keeps these nodes. By it the script identifies the log and drops the others."""
        log = self.log
        numbers = log.epoch, len(log), log.size, len(self.dropped), self.less
        mark = mark_of(log.nodes.record(len(log) - 1)) + log.sum.low.to_bytes(4, "big")
        return b"extend %d %d %d %d %d %b" % (*numbers, mark)


@dataclass(frozen=True, slots=True, eq=False)
class PartOfLog(Base):
    """The log of a read that does not contain all of it: of a path, or of a session with tombstones."""

    key: str
    """The key of the log."""
    epoch: int
    """The identity of the log."""
    hidden: int
    """The number of nodes that had been tombstoned before the read."""


class KnownLogs:
    """The newest log that this process knows to be stored, for each base that a commit's graph grew from.

    A log stays in memory only while a graph of its base does. So a long-lived client keeps no session's nodes.
    """

    def __init__(self) -> None:
        self._logs: WeakKeyDictionary[Base, dict[str, StoredLog]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._logs)

    def newest(self, base: Base, key: str) -> StoredLog | None:
        """Return the newest log at `key` that grew from `base`, which may be the base itself; None if none is known."""
        log = self._logs.get(base, {}).get(key)
        if log is None and isinstance(base, StoredLog) and base.nodes.key == key:
            return base
        return log

    def tombstones_seen(self, base: Base, key: str) -> TombstonesSeen | None:
        """Return the tombstones that a graph of `base` has seen of the log at `key`; None if that is unknown."""
        log = self.newest(base, key)
        if log is not None:
            return TombstonesSeen(log.epoch, 0)
        return TombstonesSeen(base.epoch, base.hidden) if isinstance(base, PartOfLog) and base.key == key else None

    def learn(self, base: Base, log: StoredLog) -> None:
        """Remember the log that a commit left. It must not be `base` itself, which would then keep itself in memory."""
        self._logs.setdefault(base, {})[log.nodes.key] = log
