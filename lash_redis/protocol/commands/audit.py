"""The commands of an audit: read everything that one session stores at one moment, and check every invariant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, TypeAlias

from lash_redis.errors import Corrupt, SessionEvicted
from lash_redis.models import AuditProblem, SessionMeta, SessionNodeRecord
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall
from lash_redis.protocol.commands.documents import decode_account, require_agreement
from lash_redis.protocol.commands.paths import jump_list
from lash_redis.protocol.commands.reads import StoredHead, full_reply, positions
from lash_redis.protocol.heads import (
    RECEIPT_BYTES,
    RECEIPTS,
    TAG_BYTES,
    decode_facts,
    decode_meta,
    decode_ttl,
    own_receipts,
    tag_of,
)
from lash_redis.protocol.inputs import decode_inputs
from lash_redis.protocol.keys import SessionKeys, ShardKeys
from lash_redis.protocol.leases import decode_lease
from lash_redis.protocol.nodes import decode_node, timeless_part
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.steps import STEP_ITEMS, Steps
from lash_redis.protocol.stored_nodes import StoredNodes
from lash_redis.protocol.sums import Run, Sum

CLOCK_TOLERANCE_MS: Final = 250
"""Tolerated difference between a key's expiry and the head's deadline: PTTL and TIME read the clock separately."""
NAME_BYTES: Final = 100
"""The assumed size of the name of a document."""
ORPHAN_CHUNK: Final = 1000
"""Maximum number of orphans read in one round trip."""

Findings: TypeAlias = Generator[AuditProblem | None, None, None]
"""The problems that a check found, and None after each step."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A session, and what lists it: its catalogue entry, and its owner, empty for none."""

    keys: SessionKeys
    entry: bytes
    owner: str = ""


@dataclass(slots=True)
class Audited:
    """The result of auditing one session: its problems, and the blobs that it holds.

    `holds` counts each ref and the time until which the session holds it.
    """

    problems: list[AuditProblem] = field(default_factory=list)
    holds: Counter[tuple[bytes, int]] = field(default_factory=Counter)
    node_count: int = 0
    private_count: int = 0
    """Components in the session's `state`: blobs whose count is one by construction."""
    is_gone: bool = False
    listing: Listed | None = None
    """How the catalogues should list the session, if one of them differs from the head; else None."""
    wrong_catalogue: str = ""
    """The key of that catalogue."""


def listed_read(shard: ShardKeys) -> Command:
    return ("ZCARD", shard.sessions)


def orphans_read(shard: ShardKeys, at: int) -> Command:
    """Read the refs of the shard's orphans from the rank `at` on."""
    return ("ZRANGE", shard.orphans, at, at + ORPHAN_CHUNK - 1)


def counted_bytes(facts: object, account: object) -> int:
    """Return about the bytes of node records and of names of documents that a head counts.

    0 if it is unreadable, which the audit reports.
    """
    try:
        documents = decode_account(account, "").size * NAME_BYTES if isinstance(account, bytes) else 0
        return documents + (decode_facts(facts, "").bytes if isinstance(facts, bytes) else 0)
    except Corrupt:
        return 0


def owner_read(keys: SessionKeys) -> Command:
    return ("HGET", keys.head, "owner")


def parent_read(keys: SessionKeys) -> Command:
    return ("HGET", keys.head, "parent")


def time_read() -> Command:
    return ("TIME",)


def session_read(listed: Listed) -> list[Command]:
    keys, entry = listed.keys, listed.entry
    owned = keys.shard.catalogue(listed.owner)
    return [
        ("HGETALL", keys.head),
        ("LRANGE", keys.log, 0, -1),
        ("HGETALL", keys.dead),
        ("HGETALL", keys.state),
        ("HGETALL", keys.nodes),
        ("LRANGE", keys.jumps, 0, -1),
        ("ZSCORE", keys.shard.sessions, entry),
        ("ZSCORE", keys.shard.expiries, entry),
        ("ZSCORE", owned.sessions, entry),
        ("ZSCORE", owned.expiries, entry),
        ("HKEYS", keys.documents),
        ("ZRANGE", keys.names, 0, -1),
        ("TIME",),
        *(("PTTL", key) for key in (*keys.own, keys.documents, keys.names)),
    ]


SESSION_READS: Final = 21
"""Number of commands of `session_read`."""


def session_reply(listed: Listed, replies: Sequence[Any]) -> Steps[Audited]:
    """Check every invariant that concerns one session alone, in steps. Faults are reported, never raised."""
    fields, records, dead, state, nodes, jumps, *scores, documents, names, time = replies[:13]
    keys, ttls = listed.keys, replies[13:]
    audited = Audited()
    if b"deleted" in fields or not any((fields, records, nodes, jumps, dead, state, documents, names)):
        audited.is_gone = True
        return audited
    now = int(time[0]) * 1000 + int(time[1]) // 1000
    try:
        meta = _meta(keys, fields)
        decode_lease(fields.get(b"lease"), keys.head)
        decode_ttl(fields.get(b"ttl"), keys.head)
        audited.problems += _of_the_inputs(keys, fields)
        if documents or names or b"documents" in fields:
            audited.problems += _of_the_documents(keys, fields, documents, names, [ttls[0], *ttls[6:]])
        found = yield from full_reply(keys, [fields, records, dead, state, len(nodes), len(jumps)])
        if found is not None:
            head = found.head
            audited.node_count = head.facts.live
            audited.private_count = len(found.private_bytes())
            head.decode_all()
            for ref in head.components.held:
                audited.holds[bytes.fromhex(ref), head.facts.hold] += 1
            assert found.nodes is not None
            audited.problems += _of_the_head(keys, head, fields, meta)
            for problem in chain(
                _of_the_graph(keys, head, records, dead, nodes, jumps),
                _of_the_sum(keys, head, records),
                _of_users(keys, head, nodes, found.nodes),
            ):
                if problem is None:
                    yield
                else:
                    audited.problems.append(problem)
            audited.problems += _of_deadlines(keys, head, now, ttls[:6])
            audited.wrong_catalogue = _wrong_catalogue(listed, head, scores)
            expected = Listed(keys, _entry(keys, fields), head.owner)
            if audited.wrong_catalogue or expected != listed:
                audited.listing = expected
    except Corrupt as error:
        audited.problems.append(problem_of(error))
    return audited


def problem_of(error: Corrupt) -> AuditProblem:
    reason = f"evicted: {error.reason}" if isinstance(error, SessionEvicted) else error.reason
    return AuditProblem(error.kind, error.key, reason)


def _entry(keys: SessionKeys, fields: Mapping[bytes, bytes]) -> bytes:
    parent = fields.get(b"parent")
    return keys.session_id.encode() + (b"" if parent is None else b"\xff" + parent)


def _wrong_catalogue(listed: Listed, head: StoredHead, scores: Sequence[Any]) -> str:
    """Return the key of a catalogue whose entry has other times than the head; empty if there is none."""
    times = [None if score is None else float(score) for score in scores]
    expected = [head.facts.committed, head.facts.hold or None]
    if times[:2] != expected:
        return listed.keys.shard.sessions
    return listed.keys.shard.catalogue(listed.owner).sessions if listed.owner and times[2:] != expected else ""


def _meta(keys: SessionKeys, fields: Mapping[bytes, bytes]) -> SessionMeta | None:
    stored = fields.get(b"meta")
    meta = None if stored is None else decode_meta(stored, keys.head)
    parent = None if meta is None else meta.parent_session_id
    if (fields.get(b"parent") or b"").decode(errors="replace") != (parent or ""):
        raise Corrupt("meta", keys.head, f"its parent {parent!r} is not the one in the head")
    return meta


def _of_the_head(
    keys: SessionKeys, head: StoredHead, fields: Mapping[bytes, bytes], meta: SessionMeta | None
) -> Iterator[AuditProblem]:
    receipts = fields.get(b"receipts", b"")
    kept = min(RECEIPTS, head.facts.revision)
    if len(receipts) != RECEIPT_BYTES * kept:
        yield AuditProblem("head", keys.head, f"{len(receipts)} bytes of receipts at revision {head.facts.revision}")
    elif receipts[-RECEIPT_BYTES:-TAG_BYTES] != tag_of(head.body.commit_id):
        yield AuditProblem("head", keys.head, "its last receipt is not that of its last commit")
    try:
        own_receipts(fields, head.facts.revision, keys.head)
    except Corrupt as error:
        yield problem_of(error)
    if meta is not None and meta.session_id != keys.session_id:
        yield AuditProblem("meta", keys.head, f"it belongs to session {meta.session_id!r}")


def _of_the_inputs(keys: SessionKeys, fields: Mapping[bytes, bytes]) -> Iterator[AuditProblem]:
    try:
        decode_inputs(fields, keys.head)
    except Corrupt as error:
        yield problem_of(error)


def _of_the_documents(
    keys: SessionKeys,
    fields: Mapping[bytes, bytes],
    documents: Sequence[bytes],
    names: Sequence[bytes],
    ttls: Sequence[int],
) -> Iterator[AuditProblem]:
    """Compare the documents and their names with the account in the head, and their expiry with the head's.

    `ttls`: the PTTL of the head, the documents and the names.
    """
    if not fields:
        yield AuditProblem("head", keys.head, "evicted: is gone, documents of the session remain")
        return
    try:
        account = decode_account(fields.get(b"documents"), keys.head)
        require_agreement(keys, account, documents, names)
    except Corrupt as error:
        yield problem_of(error)
    for key, left in zip((keys.documents, keys.names), ttls[1:], strict=True):
        if left != -2 and ((left == -1) != (ttls[0] == -1) or abs(left - ttls[0]) > CLOCK_TOLERANCE_MS):
            yield AuditProblem("deadline", key, f"expires in {left} ms, the head in {ttls[0]} ms (-1: never)")


def _of_the_graph(
    keys: SessionKeys,
    head: StoredHead,
    records: Sequence[bytes],
    dead: Mapping[bytes, bytes],
    nodes: Mapping[bytes, bytes],
    jumps: Sequence[bytes],
) -> Findings:
    placed: dict[str, int] = {}
    for count, (node_id, entry) in enumerate(nodes.items()):
        if count % STEP_ITEMS == 0:
            yield None
        if entry == b"?":
            continue
        try:
            placed[node_id.decode()] = decode_number(entry.removesuffix(b"u"), high=len(records) - 1)
        except ValueError:
            yield AuditProblem("nodes", keys.nodes, f"the entry of {node_id!r} is not a position: {entry!r}")
    links = dict(jump_list(keys, jumps))
    for at, record in enumerate(records):
        yield None
        if not record:
            if at in links and links[at] >= at:
                yield AuditProblem("jumps", keys.jumps, f"the parent of {at} comes after it")
            continue
        node = decode_node(record, keys.log, at)
        if placed.pop(node.node_id, None) != at:
            yield AuditProblem("nodes", keys.nodes, f"the index does not lead to node {node.node_id!r} at {at}")
        if not head.facts.loose:
            yield from _of_a_link(keys, records, at, node, links.get(at, at - 1))
    for name, at in placed.items():
        yield AuditProblem("nodes", keys.nodes, f"the entry of {name!r} leads to no record at {at}")
    for position in positions(keys, dead, len(records)):
        if not records[position]:
            yield AuditProblem("dead", keys.dead, f"{position} is tombstoned and freed")


def _of_a_link(
    keys: SessionKeys, records: Sequence[bytes], at: int, node: SessionNodeRecord, above: int
) -> Iterator[AuditProblem]:
    """Check that the parent by position is the parent that the record names, if that parent is still stored."""
    named = node.parent_node_id
    if above >= at:
        yield AuditProblem("jumps", keys.jumps, f"the parent of {at} comes after it")
    elif above < 0:
        return  # none, or one that is only named
    elif named is None:
        yield AuditProblem("jumps", keys.jumps, f"record {at} has no parent, but its parent position is {above}")
    elif records[above] and decode_node(records[above], keys.log, above).node_id != named:
        yield AuditProblem("jumps", keys.jumps, f"the parent of record {at} is {named!r}, which is not at {above}")


def _of_the_sum(keys: SessionKeys, head: StoredHead, records: Sequence[bytes]) -> Findings:
    """Compare the head's sum of the log with the records. A log with freed nodes is skipped: the sum includes them."""
    if all(records):
        run = yield from Run.of_in_steps(timeless_part(record, keys.log, at) for at, record in enumerate(records))
        if (head.facts.high, head.facts.low) != Sum().plus(run, 0):
            yield AuditProblem("head", keys.head, "its sum of the log is not that of the stored nodes")


def _of_users(keys: SessionKeys, head: StoredHead, index: Mapping[bytes, bytes], nodes: StoredNodes) -> Findings:
    """Compare the marks and counts of user messages with the records."""
    users: dict[str, int] = {}
    marked: set[str] = set()
    for at in range(len(nodes)):
        yield None
        # The decoded node is not kept, so that memory and the work of the garbage collector stay bounded.
        node = decode_node(nodes.record(at), keys.log, nodes.place(at))
        if node.user_message() is not None:
            users[node.node_id] = nodes.place(at)
        if index.get(node.node_id.encode(), b"").endswith(b"u"):
            marked.add(node.node_id)
    if users.keys() != marked:
        yield AuditProblem("nodes", keys.nodes, f"marks {len(marked)} user messages, there are {len(users)}")
    if head.facts.users != len(users):
        yield AuditProblem("head", keys.head, f"counts {head.facts.users} user messages, there are {len(users)}")
    first = min(users.values(), default=-1)
    if head.facts.first != first and not (head.facts.first == -2 and users):
        yield AuditProblem("head", keys.head, f"its first user message is at {first}, not {head.facts.first}")


def _of_deadlines(keys: SessionKeys, head: StoredHead, now: int, ttls: Sequence[int]) -> Iterator[AuditProblem]:
    deadline, hold = head.facts.deadline, head.facts.hold
    if (deadline == 0) != (hold == 0) or hold < deadline:
        yield AuditProblem("head", keys.head, f"it expires at {deadline} but holds until {hold}")
    for key, left in zip(keys.own, ttls, strict=True):
        if left == -2:
            continue
        lasts = left == -1
        if lasts != (deadline == 0) or (not lasts and abs(now + left - deadline) > CLOCK_TOLERANCE_MS):
            expiry = "never" if lasts else f"at {now + left}"
            wanted = "never" if deadline == 0 else f"at {deadline}"
            yield AuditProblem("deadline", key, f"expires {expiry}, the session {wanted}")


def relist_call(listed: Listed) -> ScriptCall:
    return ScriptCall(scripts.RELIST, listed.keys.listed(listed.owner), [listed.keys.session_id, listed.owner])
