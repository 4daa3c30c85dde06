"""Prepare a commit: check, encode and hash it once, for all attempts to send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal

from lash_redis._validate import is_plain_id, require_id, require_ref, require_type
from lash_redis.errors import (
    CommitTooLarge,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    NodeIdCollision,
    Refused,
)
from lash_redis.models import (
    Append,
    BlobRef,
    EventPayload,
    GraphCommitDelta,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PluginPayload,
    PluginSessionSnapshot,
    ReplaceFull,
    RuntimeCommit,
    SessionCheckpoint,
    SessionGraph,
    SessionNodeRecord,
    TokenLedgerEntry,
    ToolState,
    Unchanged,
    merge_token_ledger,
)
from lash_redis.models.json_values import check_json
from lash_redis.models.lineage import NodeSequence
from lash_redis.options import KEEP, SEEN, BlobProfile, Keep, StoreOptions
from lash_redis.protocol.blob_cache import WrittenTools
from lash_redis.protocol.blobs import encode_blob, ref_of
from lash_redis.protocol.commands.calls import require_size
from lash_redis.protocol.commands.lease import check_leases
from lash_redis.protocol.commands.streams import check_claim
from lash_redis.protocol.component_refs import COMPONENTS, Refs
from lash_redis.protocol.components import fingerprint_of, stored_component
from lash_redis.protocol.heads import NO_HEAD, TAG_BYTES, HeadState, NewHead, encode_body
from lash_redis.protocol.inputs import require_consumed
from lash_redis.protocol.ledger import ledger_field
from lash_redis.protocol.lineage import Kept, StoredLog, TombstonesSeen
from lash_redis.protocol.nodes import encode_node, timeless_before
from lash_redis.protocol.packing import pack, pack_json, pack_record
from lash_redis.protocol.steps import STEP_ITEMS, Steps
from lash_redis.protocol.stored_nodes import StoredNodes
from lash_redis.protocol.sums import Run, Sum

MAX_USAGE_ROWS: Final = 10_000
"""The largest number of distinct (source, model) pairs in one commit. The script reads the row of each pair."""


@dataclass(slots=True)
class PreparedCommit:
    """A commit that is encoded once, for all attempts to send it."""

    commit: RuntimeCommit
    head: NewHead
    """The values of the head that the commit makes."""
    checkpoint_ref: BlobRef
    refs: Refs
    bodies: Mapping[BlobRef, bytes]
    """The logical bytes of components by ref: those that the commit contains, and any that were added later."""
    body: bytes
    meaning: bytes
    rows: Sequence[Sequence[Any]]
    delta: Literal["kept", "unchanged", "append", "replace"]
    leaf: str
    """The leaf in the form of the script."""
    ids: list[str] = field(default_factory=list)
    parents: list[str | None] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    users: str = ""
    """One character for each node: `u` for a user's message, else `-`."""
    nodes: Sequence[SessionNodeRecord] = ()
    fault: Refused | None = None
    """The structural fault of the graph, or None. A retry or a conflict takes precedence over it."""
    run: Run = field(default_factory=Run)
    """The contribution of `nodes` to the sum of a log."""
    log: StoredLog | None = None
    """The log that the client expects to be stored; None if unknown."""
    seen: TombstonesSeen | None = None
    """The tombstones that the graph of a replacement has seen; None if unknown."""
    kept: Kept | None = None
    """The part of `log` that a replacement keeps. `nodes` are then only the nodes that follow it."""
    contents: dict[BlobRef, bytes] = field(default_factory=dict)
    """The stored form of the components that were sent."""

    @property
    def expected(self) -> int | None:
        """The revision that the commit builds on; None to compare nothing."""
        expected = self.commit.expected_head_revision
        assert expected is not SEEN  # the store has replaced it by a revision
        return expected

    def content(self, ref: BlobRef, profile: BlobProfile) -> bytes:
        """Return the stored form of a component; empty bytes if its body is not in `bodies`."""
        content = self.contents.get(ref)
        if content is None:
            data = self.bodies.get(ref)
            content = self.contents[ref] = b"" if data is None else encode_blob(data, profile)
        return content

    def size(self) -> int:
        """Return the size of the head, the nodes, the bodies and the names of the usage rows, in bytes."""
        parts = [self.body, *self.records, *self.bodies.values(), *(row[0] for row in self.rows)]
        return sum(map(len, parts))

    def fingerprint(self) -> bytes:
        """Return a hash of the meaning and of the nodes that are sent, timestamps included."""
        return sha256(b"".join([self.meaning, *self.records])).digest()


def prepare_in_steps(
    commit: RuntimeCommit,
    options: StoreOptions,
    written: WrittenTools,
    log: StoredLog | None = None,
    before: HeadState = NO_HEAD,
) -> Steps[PreparedCommit]:
    """Check, encode and hash a commit. Each node is a step, and is encoded as it is at that moment.

    `log` is the log that the caller expects to be stored. If a replacement begins with nodes of `log`, only the nodes
    after them are encoded. `before` is the head that the commit builds on; it supplies what the commit leaves out. The
    meaning of the commit does not depend on either of them. A tool state that is in `written` is not encoded and hashed
    again. Cost: linear in the bytes that are sent.

    Raises:
        InvalidRecord: a field cannot be stored; the error names it.
        CommitTooLarge: the commit is over a limit of `options`.
        Corrupt: the stored value of a field that the commit leaves out is unreadable.
    """
    _check_fields(commit)
    delta, leaf = commit.graph, _leaf_of(commit.graph, before)
    config = before.config if commit.config is KEEP else commit.config
    config_values = config.to_msgpack("RuntimeCommit.config")
    checkpoint, bodies = _manifest(commit.checkpoint, before, written)
    refs = checkpoint.tool_state_ref, checkpoint.plugin_snapshot_ref, checkpoint.execution_state_ref
    named = checkpoint.to_msgpack("RuntimeCommit.checkpoint")
    manifest = pack(named, "RuntimeCommit.checkpoint")
    checkpoint_ref = ref_of(manifest)
    rows = _usage_rows(commit)
    prepared = PreparedCommit(
        commit=commit,
        head=NewHead(config, checkpoint, leaf),
        checkpoint_ref=checkpoint_ref,
        refs=refs,
        bodies=bodies,
        body=encode_body(commit.session_id, commit.commit_id, leaf, config_values, checkpoint_ref, named, refs),
        meaning=b"",
        rows=rows,
        delta="unchanged" if isinstance(delta, Unchanged) else "kept",
        leaf="~" if _keeps_leaf(delta) else f"={leaf}" if leaf else "",
        log=log,
    )
    if isinstance(delta, Append | ReplaceFull):
        yield from _prepare_nodes(prepared, delta, options)
        if prepared.kept and prepared.fault:
            with suppress(CommitTooLarge):  # if the whole graph is too large, the fault of the part is kept
                return (yield from prepare_in_steps(commit, options, written, before=before))
    prepared.meaning = _meaning(prepared, config_values, manifest)
    require_size("the bytes of a commit", prepared.size(), options)
    return prepared


def _meaning(prepared: PreparedCommit, config: Mapping[str, Any], manifest: bytes) -> bytes:
    """Return the hash by which a retry is recognised. What a commit leaves out counts as left out, not as its value."""
    commit = prepared.commit
    meaning = [
        prepared.delta,
        commit.session_id,
        True if _keeps_leaf(commit.graph) else prepared.head.leaf_node_id,
        None if commit.config is KEEP else config,
        None if commit.checkpoint is KEEP else manifest,
        prepared.rows,
        *_nodes_in_meaning(prepared),
    ]
    if commit.consumes:
        meaning.append({"consumes": sorted(commit.consumes)})
    return sha256(pack(meaning, "RuntimeCommit")).digest()[:TAG_BYTES]


def _keeps_leaf(graph: GraphCommitDelta | Keep) -> bool:
    return graph is KEEP or (isinstance(graph, Append) and graph.leaf_node_id is KEEP)


def _leaf_of(graph: GraphCommitDelta | Keep, before: HeadState) -> str | None:
    """Return the id of the leaf after the commit."""
    if graph is KEEP or graph.leaf_node_id is KEEP:
        return before.leaf_node_id
    return graph.leaf_node_id


def leaves_out(commit: RuntimeCommit) -> bool:
    """Whether the commit leaves out a value of the head, so that the stored one stays."""
    return commit.config is KEEP or commit.checkpoint is KEEP or _keeps_leaf(commit.graph)


def _check_fields(commit: RuntimeCommit) -> None:
    """Check the fields that no encoder checks."""
    require_id("RuntimeCommit.session_id", commit.session_id)
    require_id("RuntimeCommit.commit_id", commit.commit_id)
    if commit.builds_on is not None:
        require_id("RuntimeCommit.builds_on", commit.builds_on)
    require_expected_revision(commit)
    check_leases(commit)
    require_consumed("RuntimeCommit.consumes", commit.consumes)
    check_claim(commit.finishes, commit.session_id)
    if commit.config is not KEEP:
        require_type("RuntimeCommit.config", commit.config, PersistedSessionConfig)
    if commit.checkpoint is not KEEP:
        require_type("RuntimeCommit.checkpoint", commit.checkpoint, HydratedSessionCheckpoint)
    delta = commit.graph
    if delta is KEEP:
        return
    if not isinstance(delta, Unchanged | Append | ReplaceFull):
        raise InvalidRecord(
            "RuntimeCommit.graph", f"expected Unchanged, Append or ReplaceFull, got {type(delta).__name__}"
        )
    if isinstance(delta, ReplaceFull):
        require_type("RuntimeCommit.graph.graph", delta.graph, SessionGraph)
        if delta.graph.is_partial:
            raise InvalidRecord(
                "RuntimeCommit.graph.graph",
                "expected a whole graph, got one that grew out of a page, which would drop the earlier nodes; "
                "use Append, or load the path without a limit",
            )
    if delta.leaf_node_id is not None and delta.leaf_node_id is not KEEP:
        require_id("RuntimeCommit.graph.leaf_node_id", delta.leaf_node_id)


def require_expected_revision(commit: RuntimeCommit) -> None:
    expected = commit.expected_head_revision
    if expected is None or expected is SEEN:
        return
    if type(expected) is not int or not 0 <= expected < 2**63:
        raise InvalidRecord(
            "RuntimeCommit.expected_head_revision", f"expected SEEN, None or 0..2**63-1, got {expected!r}"
        )


def _nodes_in_meaning(prepared: PreparedCommit) -> tuple[int, int, int]:
    """Return the part of a commit's meaning that describes its nodes: their count and the two halves of their sum.

    Kept nodes are included, so that the meaning is the same for a commit that sends only a part of its nodes.
    """
    count, before = (0, Sum()) if prepared.kept is None else (prepared.kept.count, prepared.kept.sum)
    return count + len(prepared.records), *before.plus(prepared.run, count)


def _manifest(
    checkpoint: HydratedSessionCheckpoint | Keep, before: HeadState, written: WrittenTools
) -> tuple[SessionCheckpoint, dict[BlobRef, bytes]]:
    """Return the manifest of the new head, and the bytes of the components that the commit contains."""
    if checkpoint is KEEP:
        return before.checkpoint, {}
    refs, bodies = _components(checkpoint, written)
    return SessionCheckpoint(
        checkpoint.turn_state, refs[0], refs[1], checkpoint.plugin_snapshot_revision, refs[2]
    ), bodies


def _components(checkpoint: HydratedSessionCheckpoint, written: WrittenTools) -> tuple[Refs, dict[BlobRef, bytes]]:
    """Return the refs of the components, and the bytes of those with a body. A body takes precedence over a ref."""
    refs: list[BlobRef | None] = []
    bodies: dict[BlobRef, bytes] = {}
    kinds: tuple[type[Any], ...] = (ToolState, PluginSessionSnapshot, bytes)
    for name, kind in zip(COMPONENTS, kinds, strict=True):
        path = f"RuntimeCommit.checkpoint.{name}"
        value = getattr(checkpoint, name)
        if value is None:
            ref = getattr(checkpoint, f"{name}_ref")
            refs.append(None if ref is None else BlobRef(require_ref(f"{path}_ref", ref)))
            continue
        require_type(path, value, kind)
        stored = stored_component(value)
        if stored is not None:
            ref, data = stored.ref, stored.data
        elif kind is ToolState:
            ref, data = _written_tools(value, path, written)
        else:
            data = pack(value, path) if kind is bytes else pack_record(value, path)
            ref = ref_of(data)
        refs.append(ref)
        bodies[ref] = data
    return tuple(refs), bodies


def _written_tools(tools: ToolState, path: str, written: WrittenTools) -> tuple[BlobRef, bytes]:
    fingerprint = fingerprint_of(tools)
    known = None if fingerprint is None else written.get(fingerprint)
    if known is not None:
        return known
    data = pack_record(tools, path)
    ref = ref_of(data)
    if fingerprint is not None:
        written.put(fingerprint, ref, data)
    return ref, data


def _usage_rows(commit: RuntimeCommit) -> list[list[Any]]:
    if isinstance(commit.usage_deltas, str) or not isinstance(commit.usage_deltas, Sequence):
        got = type(commit.usage_deltas).__name__
        raise InvalidRecord("RuntimeCommit.usage_deltas", f"expected a sequence of TokenLedgerEntry, got {got}")
    for at, entry in enumerate(commit.usage_deltas):
        require_type(f"RuntimeCommit.usage_deltas[{at}]", entry, TokenLedgerEntry)
        entry.to_msgpack(f"RuntimeCommit.usage_deltas[{at}]")
    merged = merge_token_ledger(commit.usage_deltas)
    if len(merged) > MAX_USAGE_ROWS:
        raise CommitTooLarge("the number of usage rows of a commit", len(merged), MAX_USAGE_ROWS)
    return [
        [
            ledger_field(entry),
            entry.usage.input_tokens,
            entry.usage.output_tokens,
            entry.usage.cached_input_tokens,
            entry.usage.reasoning_tokens,
        ]
        for entry in merged
    ]


def _prepare_nodes(prepared: PreparedCommit, delta: Append | ReplaceFull, options: StoreOptions) -> Steps[None]:
    """Encode and link the nodes of a commit, except those that a replacement keeps."""
    if isinstance(delta, ReplaceFull):
        prepared.delta, nodes, where = "replace", delta.graph.nodes, "RuntimeCommit.graph.graph.nodes"
    else:
        prepared.delta, nodes, where = "append", delta.nodes, "RuntimeCommit.graph.nodes"
    if isinstance(nodes, str | bytes) or not isinstance(nodes, Sequence):
        raise InvalidRecord(where, f"expected a sequence of SessionNodeRecord, got {type(nodes).__name__}")
    kept = 0
    if isinstance(delta, ReplaceFull) and prepared.log is not None:
        prepared.kept = yield from prepared.log.kept_by(nodes, delta.graph.lineage)
        kept = 0 if prepared.kept is None else prepared.kept.count
    if options.max_commit_nodes is not None and len(nodes) - kept > options.max_commit_nodes:
        what = "the number of nodes of a commit (StoreOptions.max_commit_nodes)"
        raise CommitTooLarge(what, len(nodes) - kept, options.max_commit_nodes)
    if not isinstance(nodes, tuple | NodeSequence):
        nodes = tuple(nodes)  # some sequences do not support slices
    prepared.nodes = nodes[kept:] if kept else nodes
    places, collision = yield from _encode_nodes(prepared, where, kept)
    orphan = yield from _link_nodes(prepared, places, is_strict=options.graph_checks == "strict")
    leaf, lost = delta.leaf_node_id, None
    if leaf is KEEP:
        pass  # only an Append without nodes
    elif leaf is not None and leaf in places:
        prepared.leaf = f"@{places[leaf]}"
    elif leaf is not None and prepared.delta == "replace" and options.graph_checks == "strict" and not kept:
        lost = InvalidLeaf(leaf)
    prepared.fault = collision or orphan or lost


def _encode_nodes(prepared: PreparedCommit, where: str, kept: int) -> Steps[tuple[dict[str, int], Refused | None]]:
    """Encode `prepared.nodes`. Return the place of each id among them, and the first id that occurs twice."""
    parts: list[bytes] = []
    places: dict[str, int] = {}
    users: list[str] = []
    collision: Refused | None = None
    for at in range(len(prepared.nodes)):
        node, stored = _node_to_send(prepared.nodes, at)
        record, timeless = encode_record(node, f"{where}[{kept + at}]", stored)
        parts.append(timeless)
        prepared.records.append(record)
        prepared.ids.append(node.node_id)
        prepared.parents.append(node.parent_node_id)
        users.append("u" if node.user_message() else "-")
        if places.setdefault(node.node_id, at) != at:
            collision = collision or NodeIdCollision(node.node_id)
        yield
    prepared.users = "".join(users)
    prepared.run = yield from Run.of_in_steps(parts)
    return places, collision


def _link_nodes(prepared: PreparedCommit, places: Mapping[str, int], *, is_strict: bool) -> Steps[Refused | None]:
    """Add the link of each node in the form of the script. Return the fault of the first parent after its child."""
    orphan: Refused | None = None
    for at, parent in enumerate(prepared.parents):
        if parent is None:
            link = "-"
        elif (place := places.get(parent)) is None:
            link = f"={parent}"
        elif place == at - 1:
            link = ""
        else:
            link = f"@{place}"
            if is_strict and place >= at:
                orphan = orphan or InvalidParent(prepared.ids[at], parent)
        prepared.links.append(link)
        if at % STEP_ITEMS == STEP_ITEMS - 1:
            yield
    return orphan


def _node_to_send(nodes: Sequence[SessionNodeRecord], at: int) -> tuple[SessionNodeRecord, bytes | None]:
    """Return the node at an index, and its record if it was read from a store and no caller accessed its payload."""
    if isinstance(nodes, StoredNodes) and (unread := nodes.unread(at)) is not None:
        return unread, nodes.record(at)
    return nodes[at], None


def encode_record(node: SessionNodeRecord, path: str, stored: bytes | None = None) -> tuple[bytes, bytes]:
    """Encode a node. Return its record, and the part that belongs to a commit's meaning (all but the timestamp).

    `stored` is the record from which an unchanged node was decoded; it is not encoded again.

    Raises:
        InvalidRecord: a field cannot be stored; the error names it below `path`.
    """
    require_type(path, node, SessionNodeRecord)
    node_id, parent, timestamp, payload = node.node_id, node.parent_node_id, node.timestamp, node.payload
    if not is_plain_id(node_id):
        require_id(f"{path}.node_id", node_id)
    if parent is not None and not is_plain_id(parent):
        require_id(f"{path}.parent_node_id", parent)
    if type(timestamp) is not str or not timestamp.isascii():
        require_type(f"{path}.timestamp", timestamp, str)
        timestamp = check_json(timestamp, f"{path}.timestamp")
    tag: str | None
    if isinstance(payload, EventPayload):
        tag, value, field_name = None, payload.event, "event"
    elif isinstance(payload, PluginPayload):
        tag, value, field_name = payload.plugin_type, payload.body, "body"
        require_type(f"{path}.payload.plugin_type", tag, str)
        tag = check_json(tag, f"{path}.payload.plugin_type")
    else:
        got = type(payload).__name__
        raise InvalidRecord(f"{path}.payload", f"expected an EventPayload or PluginPayload, got {got}")
    if stored is not None:
        return stored, timeless_before(timestamp, stored)
    return encode_node(node_id, parent, tag, pack_json(value, f"{path}.payload.{field_name}"), timestamp)


def first_new_node(prepared: PreparedCommit) -> SessionNodeRecord | None:
    """Return a node whose presence proves that this commit was applied; None if the commit adds no new node."""
    if prepared.delta == "append":
        return next(iter(prepared.nodes), None)
    if prepared.kept is None:
        return None
    dropped = set(prepared.kept.dropped)
    return next((node for node in prepared.nodes if node.node_id not in dropped), None)


def log_after(prepared: PreparedCommit, key: str, epoch: int) -> StoredLog | None:
    """Return the log of `epoch` at `key` after this commit; None if the log before it is unknown.

    The commit must not be a retry that was answered from its receipt.
    """
    log, kept, delta = prepared.log, prepared.kept, prepared.commit.graph
    if isinstance(delta, ReplaceFull):
        if kept is None:
            log = StoredLog(StoredNodes((), key), 0, epoch, Sum())
        else:
            log = StoredLog(kept.log.nodes.first(kept.count), kept.log.size - kept.less, epoch, kept.sum)
    elif log is None or log.epoch != epoch:
        return None
    return log.extended(prepared.records, prepared.run)
