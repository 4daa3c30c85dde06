"""Bringing a read up to date: what a session is asked for beyond it, and the read that both make together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias

from lash_redis.errors import Corrupt
from lash_redis.models import ActivePath
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall, status
from lash_redis.protocol.commands.reads import (
    StoredHead,
    StoredRead,
    check_leaf,
    check_path,
    head_reply,
    jump_list,
    positions,
    private_components,
    spans_of,
)
from lash_redis.protocol.heads import RECEIPT_BYTES, tag_of
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.nodes import mark_of
from lash_redis.protocol.stored_nodes import StoredNodes

LIMIT: Final = 64
"""How many new nodes a script hands over. Natively they take a second round trip, which pays from some 200 on; but no
script shall hold the server up for long.
"""

Unmoved: TypeAlias = Literal["same", "far", "other", "absent"]


@dataclass(frozen=True, slots=True)
class Delta:
    """What a read lacks: the head as it is, the ends of log and jumps; how long all keys are, if that is unchecked."""

    fields: Mapping[bytes, bytes]
    records: Sequence[bytes]
    jumps: Sequence[bytes]
    dead: Sequence[bytes]
    """Dead positions; none where they are those that the read knows."""
    state: Mapping[bytes, bytes] | None = None
    """The session's private components; None where they are those that the read knows."""
    sizes: Sequence[int] = ()


def call(keys: SessionKeys, known: StoredRead) -> ScriptCall:
    nodes, facts, dead = known.nodes, known.head.facts, known.dead
    last = None if nodes is None else nodes.index_of(facts.length - 1)
    return ScriptCall(
        scripts.REFRESH,
        keys.own,
        [
            keys.session_id,
            known.head.fields[b"facts"],
            tag_of(known.head.body.commit_id),
            b"" if nodes is None or last is None else mark_of(nodes.record(last)),
            " ".join(map(str, dead)) if len(dead) <= LIMIT else "",
            known.head.components.stored,
            0 if nodes is None else LIMIT,
        ],
    )


def reply(call: ScriptCall, keys: SessionKeys, reply: Any) -> Delta | Unmoved:
    word = status(call, reply, keys)
    if word != "newer":
        return word  # type: ignore[return-value]
    _, _, head, records, jumps, dead, state = reply
    return Delta(_mapping(head), records, jumps, dead, _mapping(state) if state else None)


def _mapping(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def delta_read(keys: SessionKeys, known: StoredRead) -> list[Command]:
    """What `refresh.lua` would hand over, and the last record that is known."""
    facts = known.head.facts
    return [
        ("HGETALL", keys.head),
        ("LRANGE", keys.log, max(facts.length - 1, 0), -1),
        ("LRANGE", keys.jumps, facts.jumps, -1),
        ("HKEYS", keys.dead),
        ("HGETALL", keys.state),
        ("LLEN", keys.log),
        ("HLEN", keys.nodes),
        ("LLEN", keys.jumps),
    ]


def delta_reply(replies: Sequence[Any]) -> Delta:
    fields, records, jumps, dead, state, length, ids, jump_count = replies
    return Delta(fields, records, jumps, dead, state, (length, ids, jump_count, len(dead), len(state)))


def refreshed(keys: SessionKeys, known: StoredRead, delta: Delta) -> StoredRead | None:
    """The read brought up to date; None where it must be loaded anew, which also tells what is wrong, if something is.

    Raises:
        Corrupt, SessionEvicted: the head's, as a load raises them.
    """
    head = head_reply(keys, delta.fields, *delta.sizes)
    nodes = known.nodes
    if head is None or nodes is None:
        return None
    try:
        dead = positions(keys, delta.dead) if delta.dead or head.facts.dead == 0 else known.dead
        log = _Log.grown(known, nodes, head, delta, dead)
        if log is None:
            return None
        check_leaf(keys, head, log.record)
        now = log.path(keys, known, delta.jumps) if isinstance(known.scope, ActivePath) else log.graph(known)
        private = known.private if delta.state is None else private_components(head, delta.state)
        return None if now is None else replace(now, private=private)
    except Corrupt:
        return None


@dataclass(frozen=True, slots=True)
class _Log:
    """A log of which a reader holds some nodes and has just got the end."""

    head: StoredHead
    nodes: StoredNodes
    end: Sequence[bytes]
    start: int
    """Where the end begins."""
    dead: frozenset[int]

    @classmethod
    def grown(
        cls, known: StoredRead, nodes: StoredNodes, head: StoredHead, delta: Delta, dead: frozenset[int]
    ) -> _Log | None:
        """None where the nodes are not part of the log, or cannot be known to be."""
        before, now, end = known.head.facts, head.facts, delta.records
        overlap = before.length + len(end) - now.length
        last = nodes.index_of(before.length - 1)
        if now.epoch != before.epoch or now.length < before.length or overlap not in (0, 1):
            return None
        if overlap and last is not None and end[0] != nodes.record(last):
            return None
        end = end[overlap:]
        # The receipts tell which commits made the log, back to the 32nd; further back the last record must do.
        later = now.revision - before.revision
        shared = head.receipts[: max(0, len(head.receipts) - later * RECEIPT_BYTES)]
        if not known.head.receipts.endswith(shared) or (later == 0 and now.committed != before.committed):
            return None
        if not shared and last is None and before.length > 0:
            return None
        empty = sum(not record for record in end)
        freed = (now.length - now.live - len(dead)) - (before.length - before.live - len(known.dead))
        if freed == empty and now.bytes != before.bytes + sum(map(len, end)):
            return None
        return cls(head, nodes, end, before.length, dead)

    def record(self, at: int) -> bytes | None:
        """What lies at a position; None where it is not held."""
        if at >= self.start:
            return self.end[at - self.start]
        index = self.nodes.index_of(at)
        return None if index is None else self.nodes.record(index)

    def _with(self, pieces: Sequence[tuple[int, int]], places: list[int]) -> StoredNodes:
        return self.nodes.pieces(pieces).extended([self.end[at - self.start] for at in places], places)

    def graph(self, known: StoredRead) -> StoredRead | None:
        facts, held = self.head.facts, self.nodes
        gone = sorted(index for place in self.dead - known.dead if (index := held.index_of(place)) is not None)
        edges = [-1, *gone, len(held)]
        pieces = [(left + 1, right) for left, right in pairwise(edges) if left + 1 < right]
        nodes = self._with(
            pieces, [at for at, record in enumerate(self.end, self.start) if record and at not in self.dead]
        )
        if len(nodes) != facts.live or max(self.dead, default=-1) >= facts.length:
            return None
        return StoredRead(known.scope, self.head, nodes, self.dead)

    def path(self, keys: SessionKeys, known: StoredRead, jumps: Sequence[bytes]) -> StoredRead | None:
        before, now, held = known.head.facts, self.head.facts, self.nodes
        empty = {at for at, record in enumerate(self.end, self.start) if not record}
        hidden = self.dead.union(known.hidden, empty)
        at = now.leaf
        if known.scope != ActivePath():
            if not held:
                return None
            at = held.place(len(held) - 1)
        # One that was hidden and freed since then is in the count alone: it may be any of those that are held.
        unseen = before.length - before.live - len(known.hidden)
        if now.loose or at in hidden or now.length - now.live - len(hidden) != unseen:
            return None
        links = [*known.jumps, *jump_list(keys, jumps, known.jumps[-1][0] if known.jumps else -1)]
        ordered = sorted(hidden)
        spans = spans_of(links, ordered, at)
        pieces: list[tuple[int, int]] = []
        places: list[int] = []
        for start, stop in spans:
            last = min(stop, self.start - 1)
            places += range(max(start, self.start), stop + 1)
            if start > last:
                continue
            left, right = held.index_of(start), held.index_of(last)
            if left is None or right is None or right - left != last - start:
                return None
            if pieces and pieces[-1][1] == left:
                left = pieces.pop()[0]
            pieces.append((left, right + 1))
        read = StoredRead(known.scope, self.head, self._with(pieces, places), self.dead, ordered, links)
        whole = pieces == [(0, len(held))]
        check_path(keys, read, spans, after=held.place(len(held) - 1) if whole else -1)
        return read
