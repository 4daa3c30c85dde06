"""The commands of a refresh: fetch what a read lacks, and build the current read from both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias

from lash_redis.errors import Corrupt
from lash_redis.models import ActivePath
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall, mapping, status
from lash_redis.protocol.commands.paths import check_path, jump_list, spans_of
from lash_redis.protocol.commands.reads import (
    StoredHead,
    StoredRead,
    check_leaf,
    head_reply,
    positions,
    private_components,
    shared_receipts,
)
from lash_redis.protocol.heads import tag_of
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.nodes import mark_of
from lash_redis.protocol.stored_nodes import StoredNodes

LIMIT: Final = 64
"""Maximum number of new nodes that the script returns. More are fetched natively, in a second round trip.

A second round trip pays from some 200 nodes on. The limit is lower, so that no script blocks the server for long.
"""

Unmoved: TypeAlias = Literal["same", "far", "other", "absent"]


@dataclass(frozen=True, slots=True)
class Delta:
    """The data that a read lacks: the current head and the new ends of log and jumps.

    `sizes` are the sizes of all keys if the server did not compare them with the head yet.
    """

    fields: Mapping[bytes, bytes]
    records: Sequence[bytes]
    jumps: Sequence[bytes]
    dead: Sequence[bytes]
    """Positions of the tombstones; empty if the read knows them."""
    state: Mapping[bytes, bytes] | None = None
    """The private components; None if the read knows them."""
    sizes: Sequence[int] = ()


def call(keys: SessionKeys, known: StoredRead) -> ScriptCall:
    """Ask the server for what the read `known` lacks."""
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
            keys.access,
            0 if nodes is None else LIMIT,
        ],
    )


def reply(call: ScriptCall, keys: SessionKeys, reply: Any) -> Delta | Unmoved:
    """Return what the read lacks, or the reply word of a script that returned no data."""
    word = status(call, reply, keys)
    if word != "newer":
        return word  # type: ignore[return-value]
    _, _, head, records, jumps, dead, state = reply
    return Delta(mapping(head), records, jumps, dead, mapping(state) if state else None)


def delta_read(keys: SessionKeys, known: StoredRead) -> list[Command]:
    """Read natively what `refresh.lua` would return, and the last record that the read knows."""
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
    """Build the current read from `known` and `delta`. None if the session must be loaded again.

    Loading also reports the fault if stored data is damaged.

    Raises:
        Corrupt, SessionEvicted: the head is damaged, as for a load.
    """
    head = head_reply(keys, delta.fields, *delta.sizes)
    nodes = known.nodes
    if head is None or nodes is None:
        return None
    try:
        dead = positions(keys, delta.dead, head.facts.length) if delta.dead or head.facts.dead == 0 else known.dead
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
    """A log of which a read has some nodes, and whose new end was fetched."""

    head: StoredHead
    nodes: StoredNodes
    end: Sequence[bytes]
    start: int
    """The position at which `end` begins."""
    dead: frozenset[int]

    @classmethod
    def grown(
        cls, known: StoredRead, nodes: StoredNodes, head: StoredHead, delta: Delta, dead: frozenset[int]
    ) -> _Log | None:
        """Join the nodes of a read and the fetched end; None unless the nodes are known to be in the current log."""
        before, now, end = known.head.facts, head.facts, delta.records
        overlap = before.length + len(end) - now.length
        last = nodes.index_of(before.length - 1)
        if now.epoch != before.epoch or now.length < before.length or overlap not in (0, 1):
            return None
        if overlap and last is not None and end[0] != nodes.record(last):
            return None
        end = end[overlap:]
        # The receipts identify the last 32 commits. Older commits are identified by the last record alone.
        shared = shared_receipts(known.head, now, head.receipts)
        if shared is None:
            return None
        if not shared and last is None and before.length > 0:
            return None
        empty = sum(not record for record in end)
        freed = (now.length - now.live - len(dead)) - (before.length - before.live - len(known.dead))
        if freed == empty and now.bytes != before.bytes + sum(map(len, end)):
            return None
        return cls(head, nodes, end, before.length, dead)

    def record(self, at: int) -> bytes | None:
        """Return the record at a position; None if neither the read nor the end has it."""
        if at >= self.start:
            return self.end[at - self.start]
        index = self.nodes.index_of(at)
        return None if index is None else self.nodes.record(index)

    def _with(self, pieces: Sequence[tuple[int, int]], places: list[int]) -> StoredNodes:
        """Return ranges of the read's nodes, followed by the nodes at some positions of the end."""
        return self.nodes.select(pieces).extended([self.end[at - self.start] for at in places], places)

    def graph(self, known: StoredRead) -> StoredRead | None:
        """Build the full graph; None if its number of nodes differs from the head's."""
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
        """Build the active path; None if it needs nodes that neither the read nor the end has.

        A page keeps its beginning. None also if the path no longer contains all of the page.

        Raises:
            Corrupt: jumps and records disagree.
        """
        before, now, held, scope = known.head.facts, self.head.facts, self.nodes, known.scope
        assert isinstance(scope, ActivePath)
        empty = {at for at, record in enumerate(self.end, self.start) if not record}
        hidden = self.dead.union(known.hidden, empty)
        if not held and scope != ActivePath():
            return None
        at = now.leaf if scope.leaf_node_id is None else held.place(len(held) - 1)
        # A node that was tombstoned and freed since then appears only in the counts. It may be any node of the read.
        unseen = before.length - before.live - len(known.hidden)
        if now.loose or at in hidden or now.length - now.live - len(hidden) != unseen:
            return None
        links = [*known.jumps, *jump_list(keys, jumps, known.jumps[-1][0] if known.jumps else -1)]
        ordered = sorted(hidden)
        spans = spans_of(links, ordered, at)
        if scope.is_page:
            first = held.place(0)
            if known.is_partial and dict(links).get(first, first - 1) in hidden:
                return None
            spans = [(max(start, first), stop) for start, stop in spans if stop >= first]
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
        whole = pieces == [(0, len(held))]
        if scope.is_page and not whole:
            return None
        nodes = self._with(pieces, places)
        read = StoredRead(scope, self.head, nodes, self.dead, ordered, links, is_partial=known.is_partial)
        check_path(keys, read, spans, after=held.place(len(held) - 1) if whole else -1)
        return read
