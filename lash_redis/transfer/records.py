"""The line of a session, checked and decoded for an import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lash_redis._validate import MAX_SECONDS, require_id, require_ref
from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.models import (
    Append,
    HydratedSessionCheckpoint,
    RuntimeCommit,
    SessionCheckpoint,
    SessionHead,
    SessionMeta,
    TokenLedgerEntry,
    TokenUsage,
    Unchanged,
)
from lash_redis.options import KEEP, Keep
from lash_redis.protocol import commands
from lash_redis.protocol.blobs import ref_of
from lash_redis.protocol.component_refs import COMPONENTS
from lash_redis.protocol.components import StoredComponent
from lash_redis.protocol.heads import RECEIPT_BYTES, RECEIPTS, TAG_BYTES, tag_of
from lash_redis.protocol.packing import pack
from lash_redis.protocol.steps import Steps
from lash_redis.transfer.lines import (
    BlobSpool,
    DecodedHead,
    Line,
    decode_base64,
    decode_documents,
    decode_head,
    require_same,
)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session's line, checked: the commit that stores it, and what the commit needs."""

    session_id: str
    line: Line
    meta: SessionMeta | None
    ttl: float | Keep | None
    """Seconds; None if the session never expires, KEEP if it has no ttl of its own."""
    owner: str | None = None
    """The owner of the session; None if it has none."""
    commit: RuntimeCommit | None = None
    """None for a session that has only a meta record."""
    origin: commands.commit.Origin | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    """The bytes of the components, by ref."""
    is_lenient: bool = False
    """Whether the graph needs lenient checks."""
    documents: Mapping[bytes, bytes] = field(default_factory=dict)
    """The content of each document by name. A session with documents has no commit."""


def decode_session(line: Line, number: int, spool: BlobSpool) -> Steps[SessionRecord]:
    """Check a session's line, and take its blobs from the spool, in steps. Writes nothing.

    Raises:
        InvalidRecord: the line is not as an export writes it; names the line's `number` and the field.
    """
    where = f"line {number}"
    session_id = require_id(f"{where}.session_id", line.get("session_id"))
    meta = None if line.get("meta") is None else SessionMeta.from_json(line["meta"], f"{where}.meta")
    if meta is not None and meta.session_id != session_id:
        raise InvalidRecord(f"{where}.meta.session_id", f"expected {session_id!r}, got {meta.session_id!r}")
    ttl, owner = _decode_ttl(line, where), line.get("owner")
    if owner is not None:
        require_id(f"{where}.owner", owner)
    if line.get("head") is None:
        if meta is None:
            raise InvalidRecord(where, "has neither head nor meta")
        yield from require_same(meta.to_json(), line["meta"], f"{where}.meta")
        documents: dict[bytes, bytes] = {}
        if line.get("documents") is not None:
            documents = yield from decode_documents(line["documents"], f"{where}.documents")
        return SessionRecord(session_id, line, meta, ttl, owner, documents=documents)
    if line.get("documents") is not None:
        raise InvalidRecord(f"{where}.documents", "expected none in a session with a head")
    decoded = yield from decode_head(line["head"], f"{where}.head")
    head = decoded.head
    if head.session_id != session_id:
        raise InvalidRecord(f"{where}.head.session_id", f"expected {session_id!r}, got {head.session_id!r}")
    manifest = SessionCheckpoint.from_json(line.get("checkpoint"), f"{where}.checkpoint")
    commit_id = require_id(f"{where}.commit_id", line.get("commit_id"))
    receipts = _decode_receipts(line, where, head.head_revision, commit_id)
    committed = line.get("committed_ms")
    if type(committed) is not int or not 0 < committed < 10**14:
        raise InvalidRecord(f"{where}.committed_ms", f"expected ms since 1970, got {committed!r}")
    blobs = _find_blobs(manifest, where, spool)
    yield from require_same(manifest.to_json(), line["checkpoint"], f"{where}.checkpoint")
    if meta is not None:
        yield from require_same(meta.to_json(), line["meta"], f"{where}.meta")
    _check_manifest(manifest, head.checkpoint_ref, blobs, where)
    yield from _check_ledger_and_graph(decoded, where)
    return SessionRecord(
        session_id,
        line,
        meta,
        ttl,
        owner,
        _commit_of(head, manifest, commit_id),
        commands.commit.Origin(
            meta,
            head.head_revision - 1,
            committed,
            history=receipts[:-RECEIPT_BYTES],
            meaning=receipts[-TAG_BYTES:],
        ),
        blobs,
        is_lenient=line.get("links_by_id") is True or not _has_leaf(decoded),
    )


def _decode_ttl(line: Line, where: str) -> float | Keep | None:
    ttl_ms = line.get("ttl_ms")
    if ttl_ms is None:
        return KEEP
    if type(ttl_ms) is not int or not 0 <= ttl_ms <= MAX_SECONDS * 1000:
        raise InvalidRecord(f"{where}.ttl_ms", f"expected ms up to 100 years, 0 for never, or null, got {ttl_ms!r}")
    return None if ttl_ms == 0 else ttl_ms / 1000


def _decode_receipts(line: Line, where: str, revision: int, commit_id: str) -> bytes:
    """Decode the receipts. Their number must fit the revision, and the last must be that of `commit_id`."""
    receipts = decode_base64(f"{where}.receipts", line.get("receipts"))
    expected = RECEIPT_BYTES * min(RECEIPTS, revision)
    if revision < 1 or len(receipts) != expected:
        reason = f"expected {expected} bytes at revision {revision}, got {len(receipts)}"
        raise InvalidRecord(f"{where}.receipts", reason)
    if receipts[-RECEIPT_BYTES:-TAG_BYTES] != tag_of(commit_id):
        raise InvalidRecord(f"{where}.receipts", "expected the last receipt to be that of the commit_id")
    return receipts


def _find_blobs(manifest: SessionCheckpoint, where: str, spool: BlobSpool) -> dict[str, bytes]:
    """Take the blobs that a manifest names from the spool."""
    blobs: dict[str, bytes] = {}
    for name in COMPONENTS:
        ref = getattr(manifest, f"{name}_ref")
        if ref is None:
            continue
        data = spool.get(require_ref(f"{where}.checkpoint.{name}_ref", ref))
        if data is None:
            raise InvalidRecord(f"{where}.checkpoint.{name}_ref", "names a blob that no earlier line contains")
        blobs[ref] = data
    return blobs


def _check_manifest(manifest: SessionCheckpoint, ref: str | None, blobs: dict[str, bytes], where: str) -> None:
    """Check that the manifest hashes to its ref, and that each component decodes."""
    path = f"{where}.checkpoint"
    if ref_of(pack(manifest.to_msgpack(path), path)) != ref:
        raise InvalidRecord(f"{where}.head.checkpoint_ref", "is not the hash of the checkpoint")
    for name in COMPONENTS:
        named = getattr(manifest, f"{name}_ref")
        try:
            if named is not None:
                StoredComponent(name, named, blobs[named], where).value()
        except Corrupt as error:
            raise InvalidRecord(f"{path}.{name}_ref", error.reason) from error


def _check_ledger_and_graph(decoded: DecodedHead, where: str) -> Steps[None]:
    ledger = decoded.head.token_ledger
    if len({(entry.source, entry.model) for entry in ledger}) < len(ledger):
        raise InvalidRecord(f"{where}.head.token_ledger", "has two rows of one source and model")
    if (yield from _has_cycle(decoded.parents)):
        raise InvalidRecord(f"{where}.head.graph", "its parents form a cycle")


def _has_cycle(parents: Mapping[str, str | None]) -> Steps[bool]:
    done: set[str] = set()
    for node_id in parents:
        yield
        path: set[str] = set()
        at: str | None = node_id
        while at is not None and at in parents and at not in done:
            if at in path:
                return True
            path.add(at)
            at = parents[at]
        done |= path
    return False


def _has_leaf(decoded: DecodedHead) -> bool:
    """Whether the leaf is a node of the graph; no leaf belongs to a graph without nodes."""
    leaf = decoded.head.graph.leaf_node_id
    return leaf in decoded.parents if leaf else not decoded.parents


def _commit_of(head: SessionHead, manifest: SessionCheckpoint, commit_id: str) -> RuntimeCommit:
    """Return the commit that stores a session as its first."""
    graph = head.graph
    return RuntimeCommit(
        head.session_id,
        0,
        head.config,
        Append(graph.nodes, graph.leaf_node_id) if graph.nodes else Unchanged(graph.leaf_node_id),
        HydratedSessionCheckpoint(
            turn_state=manifest.turn_state,
            tool_state_ref=manifest.tool_state_ref,
            plugin_snapshot_ref=manifest.plugin_snapshot_ref,
            plugin_snapshot_revision=manifest.plugin_snapshot_revision,
            execution_state_ref=manifest.execution_state_ref,
        ),
        [row for entry in head.token_ledger for row in _usage_rows(entry)],
        commit_id,
    )


def _usage_rows(entry: TokenLedgerEntry) -> Sequence[TokenLedgerEntry]:
    """Return the usage that creates the ledger row `entry`.

    A commit ignores usage of 0 tokens, but keeps a row whose sum becomes 0. So such a row takes two entries.
    """
    if not entry.usage.is_zero():
        return [entry]
    return [replace(entry, usage=TokenUsage(1)), replace(entry, usage=TokenUsage(-1))]
