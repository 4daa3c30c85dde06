"""The native commands that read an active path as ranges of the log, and their replies."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, Literal

from lash_redis.errors import Corrupt, InvalidLeaf, SessionEvicted
from lash_redis.models import ActivePath, BlobRef
from lash_redis.protocol.commands.calls import Command
from lash_redis.protocol.commands.reads import (
    Jump,
    StoredHead,
    StoredRead,
    blob_read,
    check_id,
    head_reply,
    positions,
    private_components,
    shared_receipts,
)
from lash_redis.protocol.heads import decode_facts
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.stored_nodes import StoredNodes

SPAN_COST: Final = 7
"""Number of records that take as long as one more LRANGE: 2.3 µs, and 0.35 µs for a record of 650 bytes."""


def path_read(keys: SessionKeys, leaf: str | None) -> list[Command]:
    """Read what determines the path that ends at `leaf` (None: the head's leaf), without the records."""
    commands: list[Command] = [
        ("HGETALL", keys.head),
        ("LRANGE", keys.jumps, 0, -1),
        ("HKEYS", keys.dead),
        ("HGETALL", keys.state),
        ("HLEN", keys.nodes),
        ("LLEN", keys.log),
    ]
    if leaf is not None:
        commands.append(("HGET", keys.nodes, leaf))
    return commands


@dataclass(frozen=True, slots=True)
class PathPlan:
    """The ranges of the log that form an active path or a page of it, root first."""

    head: StoredHead
    scope: ActivePath
    spans: Sequence[tuple[int, int]] = ()
    dead: frozenset[int] = frozenset()
    jumps: Sequence[Jump] = ()
    private: Mapping[str, bytes] = field(default_factory=dict)
    is_partial: bool = False
    """Whether the path has nodes before the first range."""
    last: str | None = None
    """The id that the last node must have, if it is known apart from the leaf of the scope."""
    parts: Sequence[Sequence[bytes]] = ()
    """The records of each range; empty if the client must fetch them."""

    def read(self, nodes: StoredNodes) -> StoredRead:
        """Build the read from the fetched nodes of the path."""
        hidden = set(self.dead)
        is_cut = bool(nodes) and nodes.place(0) > self.spans[0][0]
        if is_cut:
            # The path was cut off at a freed record, which has no tombstone any more.
            hidden.add(max(min(stop, nodes.place(0) - 1) for start, stop in self.spans if start < nodes.place(0)))
        return StoredRead(
            self.scope,
            self.head,
            nodes,
            self.dead,
            sorted(hidden),
            self.jumps,
            self.private,
            is_partial=self.is_partial and not is_cut,
        )

    @property
    def fetched(self) -> Sequence[tuple[int, int]]:
        """The spans, or the one range that covers them all if that takes less time."""
        if len(self.spans) < 2:
            return self.spans
        first, last = self.spans[0][0], self.spans[-1][1]
        needed = sum(stop + 1 - start for start, stop in self.spans)
        if last + 1 - first <= needed + SPAN_COST * (len(self.spans) - 1):
            return [(first, last)]
        return self.spans


def path_plan(
    keys: SessionKeys, leaf: str | None, replies: Sequence[Any], *, strict: bool
) -> PathPlan | Literal["far"] | None:
    """Compute the ranges of the log to fetch; None without a head.

    "far" means that links are by node id, so only the full graph determines the path.

    Raises:
        InvalidLeaf: the head's own leaf is not a live node (only if `strict`).
        SessionEvicted: some of the session's keys are missing, others remain.
        Corrupt: the stored data violates an invariant.
    """
    fields, jumps, dead, state, ids, length, *place = replies
    head = head_reply(keys, fields, length, ids, len(jumps), len(dead), len(state))
    if head is None:
        return None
    facts, private = head.facts, private_components(head, state)
    scope, wanted = ActivePath(leaf), head.body.leaf_node_id if leaf is None else leaf
    if facts.loose:
        return "far"
    hidden, links, at = positions(keys, dead, length), jump_list(keys, jumps), -1
    if wanted is not None and leaf is None:
        at = facts.leaf
        if not 0 <= at < length:
            raise Corrupt("head", keys.head, f"its leaf {wanted!r} is at position {at} of {length}")
        if at in hidden and strict:
            raise InvalidLeaf(wanted)
    elif wanted is not None and place[0] not in (None, b"?"):
        try:
            at = decode_number(place[0].removesuffix(b"u"), high=length - 1)
        except ValueError as error:
            raise Corrupt("nodes", keys.nodes, f"the entry of {wanted!r} is no position in the log: {error}") from error
    return PathPlan(head, scope, spans_of(links, sorted(hidden), at), hidden, links, private)


def jump_list(keys: SessionKeys, jumps: Sequence[bytes], after: int = -1) -> list[Jump]:
    """Decode jumps; raises Corrupt unless their positions ascend and are above `after`."""
    try:
        split = [jump.split(b":") for jump in jumps]
        pairs = [(decode_number(position), decode_number(parent, low=-1)) for position, parent in split]
    except ValueError as error:
        raise Corrupt("jumps", keys.jumps, f"an element is unreadable: {error}") from error
    for position, parent in pairs:
        if parent >= position or position <= after:
            raise Corrupt("jumps", keys.jumps, "its elements do not ascend")
        after = position
    return pairs


def spans_of(jumps: Sequence[Jump], hidden: Sequence[int], at: int) -> list[tuple[int, int]]:
    """Compute the path that ends at position `at` as ranges of the log, root first. A hidden node cuts it off."""
    spans: list[tuple[int, int]] = []
    while at >= 0:
        index = bisect_right(jumps, at, key=itemgetter(0)) - 1
        start, parent = jumps[index] if index >= 0 else (0, -1)
        cut = bisect_right(hidden, at) - 1
        if cut >= 0 and hidden[cut] >= start:
            start, parent = hidden[cut] + 1, -1
        if start <= at:
            spans.append((start, at))
        at = parent
    spans.reverse()
    return spans


def record_read(keys: SessionKeys, plan: PathPlan) -> list[Command]:
    """Read the records of a path."""
    return [("LRANGE", keys.log, start, stop) for start, stop in plan.fetched]


def record_reply(keys: SessionKeys, plan: PathPlan, parts: Sequence[Sequence[bytes]]) -> StoredRead | None:
    """Decode the path from the replies to `record_read`, which are of the plan's revision; as `path_of` does."""
    if len(plan.fetched) < len(plan.spans):
        base, whole = plan.spans[0][0], parts[0]
        parts = [whole[start - base : stop + 1 - base] for start, stop in plan.spans]
    return path_of(keys, plan, parts)


def span_read(keys: SessionKeys, plan: PathPlan, blobs: Sequence[BlobRef]) -> list[Command]:
    """Read the head's identity, the records of a path, and some blobs, in one transaction after the plan was read."""
    return [("HMGET", keys.head, "facts", "receipts"), *record_read(keys, plan), *blob_read(keys, blobs)]


def span_reply(keys: SessionKeys, plan: PathPlan, replies: Sequence[Any]) -> StoredRead | Literal["moved"] | None:
    """Decode the path from the replies to `span_read`, without those of the blobs.

    "moved" means that the records may be of another history than the plan, or disagree with it. The caller then reads
    both in one transaction, which shows whether a record is damaged. None if no record of the path is left.
    """
    if any(isinstance(reply, Corrupt) for reply in replies):
        return "moved"
    (facts, receipts), *parts = replies
    try:
        return record_reply(keys, plan, parts) if _has_same_log(plan.head, facts, receipts or b"") else "moved"
    except Corrupt:
        return "moved"


def _has_same_log(head: StoredHead, stored: bytes | None, receipts: bytes) -> bool:
    """Whether the log of `head` is still stored, perhaps with more nodes, and no node was freed since.

    Raises:
        Corrupt: the stored facts are unreadable.
    """
    if stored is None or stored == head.fields[b"facts"]:
        return stored is not None
    before, now = head.facts, decode_facts(stored, head.keys.head)
    if now.epoch != before.epoch or now.length < before.length or now.freed != before.freed:
        return False
    return bool(shared_receipts(head, now, receipts))


def path_of(keys: SessionKeys, plan: PathPlan, parts: Sequence[Sequence[bytes]]) -> StoredRead | None:
    """Build the read from the records of each range; None if no record of the path is left.

    Raises:
        SessionEvicted: the log is missing.
        Corrupt: jumps and records disagree.
    """
    spans = plan.spans
    if not spans:
        return plan.read(StoredNodes((), keys.log))
    records: list[bytes] = []
    places: list[int] = []
    for (start, stop), part in zip(spans, parts, strict=False):
        if not part:
            raise SessionEvicted("log", keys.log, f"is gone, the head counts {plan.head.facts.length} entries")
        if len(part) != stop + 1 - start:
            raise Corrupt("log", keys.log, f"positions {start} to {stop} hold {len(part)} records")
        records += part
        places += range(start, stop + 1)
    if b"" in records:
        cut = len(records) - records[::-1].index(b"")
        records, places = records[cut:], places[cut:]
    if not records:
        return None
    read = plan.read(StoredNodes(records, keys.log, places))
    check_path(keys, read, spans)
    if plan.last is not None:
        check_id(keys, records[-1], places[-1], plan.last)
    return read


def check_path(keys: SessionKeys, path: StoredRead, spans: Sequence[tuple[int, int]], after: int = -1) -> None:
    """Check that the path ends at its leaf, and that each span begins with a child of the node before it.

    Spans that begin at a position up to `after` were checked before. Raises Corrupt.
    """
    nodes = path.nodes
    if nodes is None:
        return
    if nodes and path.leaf is not None:
        check_id(keys, nodes.record(len(nodes) - 1), nodes.place(len(nodes) - 1), path.leaf)
    for start, _ in spans:
        index = nodes.index_of(start) if start > after else None
        if index and nodes[index].parent_node_id != nodes[index - 1].node_id:
            raise Corrupt("jumps", keys.jumps, f"record {start} is not a child of record {nodes.place(index - 1)}")
