"""The native commands that read a head, a full graph and a meta record, their replies, and the data of a read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, count
from typing import Any, Final, TypeAlias

from lash_redis.errors import Corrupt, SessionEvicted
from lash_redis.models import (
    ActivePath,
    BlobRef,
    FullGraph,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    SessionGraph,
    SessionHeadMeta,
    SessionMeta,
    SessionReadScope,
    TokenLedgerEntry,
)
from lash_redis.models.head import ReadOrigin
from lash_redis.protocol.blobs import decode_blob
from lash_redis.protocol.commands.calls import Command, is_foreign
from lash_redis.protocol.component_refs import ComponentRefs
from lash_redis.protocol.components import StoredCheckpoint
from lash_redis.protocol.heads import (
    RECEIPT_BYTES,
    Facts,
    HeadBody,
    decode_body,
    decode_components,
    decode_facts,
    decode_meta,
    decode_ttl,
)
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.leases import decode_lease
from lash_redis.protocol.ledger import decode_ledger
from lash_redis.protocol.lineage import PartOfLog, StoredLog
from lash_redis.protocol.nodes import decode_node, is_record_of
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.steps import Steps
from lash_redis.protocol.stored_nodes import StoredNodes

Jump: TypeAlias = tuple[int, int]
"""The position of a node and that of its parent, for a node whose parent is not the node before it."""


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A head as read: all of its fields, and its decoded facts, body and components."""

    keys: SessionKeys
    fields: Mapping[bytes, bytes]
    facts: Facts
    body: HeadBody
    components: ComponentRefs

    @property
    def ledger(self) -> tuple[TokenLedgerEntry, ...]:
        """The ledger.

        Raises:
            Corrupt: a row is unreadable.
        """
        return decode_ledger(self.fields.items(), self.keys.head)

    def meta(self) -> SessionHeadMeta:
        body = self.body
        return SessionHeadMeta(
            session_id=body.session_id,
            head_revision=self.facts.revision,
            config=body.config,
            checkpoint_ref=body.checkpoint_ref,
            leaf_node_id=body.leaf_node_id,
            graph_node_count=self.facts.live,
            token_ledger=self.ledger,
            commit_id=body.commit_id,
        )

    def decode_all(self) -> None:
        """Decode the parts that reads decode on first access. Raises Corrupt if a part is unreadable."""
        for part in (self.body.config, self.body.checkpoint, self.ledger):
            assert part is not None

    @property
    def owner(self) -> str:
        """The owner of the session; empty for none."""
        return self.fields.get(b"owner", b"").decode(errors="replace")

    @property
    def receipts(self) -> bytes:
        return self.fields.get(b"receipts", b"")


@dataclass(frozen=True, slots=True, eq=False)
class StoredRead(ReadOrigin):
    """The stored data that a read was built from. A refresh of the read does not fetch this data again."""

    scope: SessionReadScope
    head: StoredHead
    nodes: StoredNodes | None
    """None for a path that was cut out of a larger read, and for a page with `before`: a refresh cannot extend them."""
    dead: frozenset[int] = frozenset()
    """Positions of nodes that are tombstoned and not yet freed."""
    hidden: Sequence[int] = ()
    """For a path: `dead` and the known positions of freed nodes, ascending."""
    jumps: Sequence[Jump] = ()
    """For a path: all jumps of the session; for a page: those from its first node on, perhaps preceded by others."""
    private: Mapping[str, bytes] = field(default_factory=dict)
    """The stored contents of the private components, by ref."""
    is_partial: bool = False
    """For a page: whether the path has nodes before its first."""

    def private_bytes(self) -> dict[str, bytes]:
        """Decode the private components, by ref. Raises Corrupt if one does not hash to its ref."""
        key = self.head.keys.state
        return {ref: decode_blob(ref, content, key) for ref, content in self.private.items()}

    @property
    def leaf(self) -> str | None:
        scope = self.scope
        if not isinstance(scope, ActivePath):
            return self.head.body.leaf_node_id
        if scope.before is not None:
            return self.nodes[-1].node_id if self.nodes else None
        return self.head.body.leaf_node_id if scope.leaf_node_id is None else scope.leaf_node_id

    @property
    def is_of_one_line(self) -> bool:
        """Whether the whole log is one path, which ends at the head's leaf."""
        facts = self.head.facts
        return not facts.jumps and not facts.loose and facts.live == facts.length == facts.leaf + 1

    @property
    def graph(self) -> SessionGraph:
        """The graph. Its base is the log if its nodes are all of the log."""
        facts, nodes = self.head.facts, () if self.nodes is None else self.nodes
        log = None if self.nodes is None else StoredLog.of(self.nodes, facts)
        if log is not None:
            return SessionGraph.from_base(log, log.nodes, self.leaf)
        part = PartOfLog(self.head.keys.log, facts.epoch, facts.length - facts.live)
        return SessionGraph.from_base(part, nodes, self.leaf, is_partial=self.is_partial or is_followed(self.scope))

    def shown(self, blobs: Mapping[str, bytes], graph: SessionGraph | None = None) -> PersistedSessionRead:
        """Build the read. `blobs` are the bytes of the held components; `graph` is the graph if it exists already."""
        return PersistedSessionRead.from_stored(_Shown(self, blobs, graph)).from_origin(self)


def is_followed(scope: SessionReadScope) -> bool:
    """Whether a read of this scope leaves out the end of a path."""
    return isinstance(scope, ActivePath) and scope.before is not None


def origin_of(read: PersistedSessionRead) -> StoredRead | None:
    """Return the stored data of a read; None for a read that this store did not make."""
    return read._origin if isinstance(read._origin, StoredRead) else None


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """The fields of a `PersistedSessionRead`, each decoded on first access."""

    read: StoredRead
    blobs: Mapping[str, bytes]
    graph: SessionGraph | None

    def load(self, record: PersistedSessionRead, name: str) -> Any:
        value = self._value(name)
        object.__setattr__(record, name, value)
        return value

    def _value(self, name: str) -> Any:
        head, body = self.read.head, self.read.head.body
        match name:
            case "head_revision":
                return head.facts.revision
            case "graph":
                return self.read.graph if self.graph is None else self.graph
            case "checkpoint":
                stored = StoredCheckpoint(body.checkpoint, self.blobs, self.read.private, head.keys)
                return HydratedSessionCheckpoint.from_stored(stored)
            case "token_ledger":
                return head.ledger
        return getattr(body, name)


def shared_receipts(before: StoredHead, now: Facts, receipts: bytes) -> bytes | None:
    """Return the receipts that a later head has of the commits up to `before`; None if it does not descend from it.

    `now` and `receipts` are those of the later head. The result is empty after more commits than a head has receipts.
    """
    later = now.revision - before.facts.revision
    if later < 0 or (later == 0 and now.committed != before.facts.committed):
        return None
    shared = receipts[: max(0, len(receipts) - later * RECEIPT_BYTES)]
    return shared if before.receipts.endswith(shared) else None


def facts_read(keys: SessionKeys) -> Command:
    return ("HGET", keys.head, "facts")


NAMED_ONLY: Final = b"?"
"""The index entry of an id that a node names as its parent, and that no node has."""


def index_read(keys: SessionKeys, node_id: str) -> Command:
    return ("HGET", keys.nodes, node_id)


def head_read(keys: SessionKeys) -> list[Command]:
    return [("HGETALL", keys.head), *size_read(keys)]


def size_read(keys: SessionKeys) -> list[Command]:
    """Read the sizes of the session's other keys: log, nodes, jumps, dead, state."""
    return [
        ("LLEN", keys.log),
        ("HLEN", keys.nodes),
        ("LLEN", keys.jumps),
        ("HLEN", keys.dead),
        ("HLEN", keys.state),
    ]


def head_reply(keys: SessionKeys, fields: Mapping[bytes, bytes], *sizes: int) -> StoredHead | None:
    """Decode a head; None if the session has none, or is another's than the owner for whom the caller acts.

    `sizes` are the numbers of entries of log, nodes, jumps, dead and state. Without them, sizes are not compared.

    Raises:
        SessionEvicted: some of the session's keys are missing, others remain.
        Corrupt: the head violates an invariant.
    """
    facts, body, refs = fields.get(b"facts"), fields.get(b"body"), fields.get(b"refs")
    if is_foreign(keys, fields.get(b"owner"), facts):
        return None
    if facts is None:
        if body is not None:
            raise Corrupt("head", keys.head, "its facts are gone")
        _check_sizes(keys, None, None, sizes)
        return None
    if body is None or refs is None:
        raise Corrupt("head", keys.head, "its body or refs are gone")
    components = decode_components(refs, keys.head)
    head = StoredHead(
        keys,
        fields,
        decode_facts(facts, keys.head),
        decode_body(body, components, keys.head),
        components,
    )
    if head.body.session_id != keys.session_id:
        raise Corrupt("head", keys.head, f"it belongs to session {head.body.session_id!r}")
    if b"ttl" in fields or b"lease" in fields:  # commits read both, and would refuse what is unreadable
        decode_ttl(fields.get(b"ttl"), keys.head)
        decode_lease(fields.get(b"lease"), keys.head)
    rows = sum(name.startswith(b"u") for name in fields)
    if rows != head.facts.usage:
        raise Corrupt("ledger", keys.head, f"{rows} rows, the facts count {head.facts.usage}")
    if sizes:
        _check_sizes(keys, head.facts, components, sizes)
    return head


def _check_sizes(
    keys: SessionKeys, facts: Facts | None, components: ComponentRefs | None, sizes: Sequence[int]
) -> None:
    """Compare the sizes of the keys with what the head counts; without a head, every size must be 0."""
    if facts is None or components is None:
        if any(sizes):
            raise SessionEvicted("head", keys.head, "is gone, other keys of the session remain")
        return
    counted = (facts.length, facts.ids, facts.jumps, facts.dead, components.kinds.count("p"))
    for family, size, expected in zip(("log", "nodes", "jumps", "dead", "state"), sizes, counted, strict=True):
        if size == expected:
            continue
        key = getattr(keys, family)
        if size == 0:
            raise SessionEvicted(family, key, f"is gone, the head counts {expected} entries")
        raise Corrupt(family, key, f"has {size} entries, the head counts {expected}")


def full_read(keys: SessionKeys) -> list[Command]:
    return [
        ("HGETALL", keys.head),
        ("LRANGE", keys.log, 0, -1),
        ("HGETALL", keys.dead),
        ("HGETALL", keys.state),
        ("HLEN", keys.nodes),
        ("LLEN", keys.jumps),
    ]


def checkpoint_read(keys: SessionKeys) -> list[Command]:
    log, nodes, jumps, dead, _ = size_read(keys)
    return [("HGETALL", keys.head), log, nodes, jumps, dead, ("HGETALL", keys.state)]


def checkpoint_reply(keys: SessionKeys, replies: Sequence[Any]) -> StoredRead | None:
    """Decode a head with its private components and without nodes; None without a head.

    Raises:
        SessionEvicted: some of the session's keys are missing, others remain.
        Corrupt: the stored data violates an invariant.
    """
    fields, *sizes, state = replies
    head = head_reply(keys, fields, *sizes, len(state))
    return None if head is None else StoredRead(FullGraph(), head, None, private=private_components(head, state))


def private_components(head: StoredHead, state: Mapping[bytes, bytes]) -> dict[str, bytes]:
    """Return the stored contents of the private components, by ref, from the session's `state`.

    Raises:
        Corrupt: a component that the head names is missing.
    """
    key = head.keys.state
    found: dict[str, bytes] = {}
    for name, ref in head.components.private.items():
        content = state.get(name.encode())
        if content is None:
            raise Corrupt("state", key, f"has no field {name!r}, the head names it")
        found[ref] = content
    return found


def full_reply(keys: SessionKeys, replies: Sequence[Any]) -> Steps[StoredRead | None]:
    """Decode a full graph and compare every count of its head with what was read, in steps; None without a head.

    Raises:
        SessionEvicted: some of the session's keys are missing, others remain.
        Corrupt: the stored data violates an invariant.
    """
    fields, records, dead, state, ids, jumps = replies
    head = head_reply(keys, fields, len(records), ids, jumps, len(dead), len(state))
    if head is None:
        return None
    facts, private = head.facts, private_components(head, state)
    sizes = list(map(len, records))
    size = sum(sizes)
    if size != facts.bytes:
        raise Corrupt("log", keys.log, f"its records have {size} bytes, the head counts {facts.bytes}")
    check_leaf(keys, head, lambda at: records[at])
    if facts.live == facts.length:
        return StoredRead(FullGraph(), head, StoredNodes(records, keys.log), private=private)
    hidden = positions(keys, dead, len(records))
    yield
    for position, node_id in dead.items():
        check_id(keys, records[int(position)], int(position), node_id.decode(errors="replace"))
        yield
    for at in hidden:
        sizes[at] = 0  # the size of a freed record
    places = list(compress(count(), sizes))
    if len(places) != facts.live:
        raise Corrupt("log", keys.log, f"{len(places)} live records, the head counts {facts.live}")
    nodes = StoredNodes(list(compress(records, sizes)), keys.log, places)
    return StoredRead(FullGraph(), head, nodes, hidden, private=private)


def positions(keys: SessionKeys, dead: Iterable[bytes], length: int) -> frozenset[int]:
    """Decode the positions of tombstones; raises Corrupt if one is not a position of a log of this length."""
    try:
        return frozenset(decode_number(position, high=length - 1) for position in dead)
    except ValueError as error:
        raise Corrupt("dead", keys.dead, f"a field is not a position: {error}") from error


def check_leaf(keys: SessionKeys, head: StoredHead, record_at: Callable[[int], bytes | None]) -> None:
    """Compare the head's leaf with the record at its position, if `record_at` returns one.

    Raises:
        Corrupt: the position is outside the log, or its record is another node.
    """
    at, leaf = head.facts.leaf, head.body.leaf_node_id
    if head.facts.loose:
        return
    if at >= head.facts.length or (at < 0) != (leaf is None):
        raise Corrupt("head", keys.head, f"its leaf {leaf!r} is at position {at} of {head.facts.length}")
    record = None if leaf is None else record_at(at)
    if leaf is not None and record:
        check_id(keys, record, at, leaf)


def check_id(keys: SessionKeys, record: bytes, at: int, expected: str) -> None:
    """Raise Corrupt unless the record at position `at` is intact and is the node `expected`."""
    if not is_record_of(record, expected):
        found = decode_node(record, keys.log, at).node_id
        raise Corrupt("log", keys.log, f"expected node {expected!r} at {at}, got {found!r}")


def blob_read(keys: SessionKeys, refs: Sequence[BlobRef]) -> list[Command]:
    return [("HGET", keys.blob(ref), "c") for ref in refs]


def holder_read(keys: SessionKeys) -> Command:
    """Read what shows whether a head that was read before still names the same blobs."""
    return ("HMGET", keys.head, "facts", "refs")


def is_holder(head: StoredHead, reply: Sequence[bytes | None] | Corrupt) -> bool:
    """Whether the reply to `holder_read` shows `head`."""
    return not isinstance(reply, Corrupt) and list(reply) == [head.fields[b"facts"], head.fields[b"refs"]]


def meta_read(keys: SessionKeys) -> list[Command]:
    return [("HMGET", keys.head, "meta", "facts", "refs", "owner"), *size_read(keys)]


@dataclass(frozen=True, slots=True)
class StoredMeta:
    """A meta record and its stored bytes, which a write compares."""

    meta: SessionMeta
    record: bytes


def compare_sizes(keys: SessionKeys, fields: Mapping[bytes, bytes | None], sizes: Sequence[int]) -> bool:
    """Compare the sizes of the keys with the head's `facts` and `refs`. False if the session is another owner's.

    Raises:
        SessionEvicted: some of the session's keys are missing, others remain.
        Corrupt: the head is unreadable, or a key has another size than the head counts.
    """
    facts, refs = fields.get(b"facts"), fields.get(b"refs")
    if is_foreign(keys, fields.get(b"owner"), facts):
        return False
    if facts is None:
        _check_sizes(keys, None, None, sizes)
    else:
        _check_sizes(keys, decode_facts(facts, keys.head), decode_components(refs or b"", keys.head), sizes)
    return True


def meta_reply(keys: SessionKeys, replies: Sequence[Any]) -> StoredMeta | None:
    (meta, facts, refs, owner), *sizes = replies
    is_own = compare_sizes(keys, {b"facts": facts, b"refs": refs, b"owner": owner}, sizes)
    if meta is None or not is_own:
        return None
    record = decode_meta(meta, keys.head)
    if record.session_id != keys.session_id:
        raise Corrupt("meta", keys.head, f"it belongs to session {record.session_id!r}")
    return StoredMeta(record, meta)
