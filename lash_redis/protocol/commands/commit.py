"""Commit: a turn encoded once, sent with the refs that the client expects in the head, and the script's reply."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal

from lash_redis._validate import is_plain_id, is_ref, require_id, require_ref, require_type
from lash_redis.errors import (
    BackendError,
    CommitIdReused,
    CommitTooLarge,
    HeadRevisionConflict,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    LeaseLost,
    MissingBlob,
    NodeIdCollision,
    Refused,
    SessionExists,
    SessionGone,
    StoreError,
)
from lash_redis.models import (
    Append,
    BlobRef,
    EventPayload,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PluginPayload,
    PluginSessionSnapshot,
    ReplaceFull,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCheckpoint,
    SessionGraph,
    SessionMeta,
    SessionNodeRecord,
    TokenLedgerEntry,
    ToolState,
    Unchanged,
    merge_token_ledger,
)
from lash_redis.models.lineage import NodeSequence
from lash_redis.models.wire import check_json
from lash_redis.options import BlobProfile, StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.blob_cache import WrittenTools
from lash_redis.protocol.blobs import encode_blob, ref_of
from lash_redis.protocol.commands.calls import RefsMoved, ScriptCall, require_size, status
from lash_redis.protocol.commands.lease import check_leases, fence_of
from lash_redis.protocol.commands.lifecycle import encoded_meta
from lash_redis.protocol.component_refs import COMPONENTS, ComponentRefs, Refs
from lash_redis.protocol.components import fingerprint_of, stored_component
from lash_redis.protocol.heads import TAG_BYTES, decode_components, encode_body, tag_of
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.ledger import ledger_field, ledger_key
from lash_redis.protocol.lineage import Kept, StoredLog
from lash_redis.protocol.nodes import encode_node
from lash_redis.protocol.packing import pack, pack_json, pack_record
from lash_redis.protocol.stored_nodes import StoredNodes
from lash_redis.protocol.sums import Run, Sum

MAX_USAGE_ROWS: Final = 10_000
"""Distinct (source, model) pairs of one commit; the script looks each of them up."""


@dataclass(slots=True)
class PreparedCommit:
    """A commit encoded once, however often it has to be sent."""

    commit: RuntimeCommit
    checkpoint: SessionCheckpoint
    checkpoint_ref: BlobRef
    refs: Refs
    bodies: Mapping[BlobRef, bytes]
    """Logical bytes of the components that are at hand, those that came as bodies above all."""
    body: bytes
    meaning: bytes
    rows: Sequence[Sequence[Any]]
    delta: Literal["unchanged", "append", "replace"]
    leaf: str
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    users: str = ""
    """For each node `u` where it is a user's message, else `-`."""
    nodes: Sequence[SessionNodeRecord] = ()
    fault: Refused | None = None
    """What is structurally wrong, raised only if nothing of higher precedence is (a retry, a conflict)."""
    run: Run = field(default_factory=Run)
    """What `nodes` add to the sum of a log."""
    log: StoredLog | None = None
    """What is stored where it is made, as far as that is known."""
    kept: Kept | None = None
    """Of a replacement: what it keeps of `log`. The nodes are then those behind that."""
    contents: dict[BlobRef, bytes] = field(default_factory=dict)
    """The stored form of the components that were sent."""

    def content(self, ref: BlobRef, profile: BlobProfile) -> bytes:
        """The stored form of a component, empty where its bytes are not at hand."""
        content = self.contents.get(ref)
        if content is None:
            data = self.bodies.get(ref)
            content = self.contents[ref] = b"" if data is None else encode_blob(data, profile)
        return content

    def fingerprint(self) -> bytes:
        """A hash of what is sent of the graph, timestamps included."""
        return sha256(b"".join([self.meaning, *self.records])).digest()


@dataclass(frozen=True, slots=True)
class SendWhole:
    """What the replacement would keep is not what is stored, or what it adds does not fit: prepare it without a log.

    Whether it is refused, and why, is for the whole of it to say.
    """

    refusal: StoreError | None
    """Why what it adds does not fit, to be raised where the whole is over a limit."""


def prepare(
    commit: RuntimeCommit, options: StoreOptions, written: WrittenTools, log: StoredLog | None = None
) -> PreparedCommit:
    """Check, encode and hash a commit; of a replacement that begins like `log`, only the nodes behind what it keeps.

    `log`: what is stored where the commit is made, as far as its caller knows; its meaning does not depend on that.
    Tools that are among those `written` are neither encoded nor hashed again.

    Raises:
        InvalidRecord: names the field that cannot be stored.
        CommitTooLarge: over a limit of `options`.
    """
    require_id("RuntimeCommit.session_id", commit.session_id)
    require_id("RuntimeCommit.commit_id", commit.commit_id)
    if commit.builds_on is not None:
        require_id("RuntimeCommit.builds_on", commit.builds_on)
    expected = commit.expected_head_revision
    if expected is not None and (type(expected) is not int or not 0 <= expected < 2**63):
        raise InvalidRecord("RuntimeCommit.expected_head_revision", f"expected None or 0..2**63-1, got {expected!r}")
    check_leases(commit)
    delta = commit.graph
    if not isinstance(delta, Unchanged | Append | ReplaceFull):
        raise InvalidRecord(
            "RuntimeCommit.graph", f"expected Unchanged, Append or ReplaceFull, got {type(delta).__name__}"
        )
    if isinstance(delta, ReplaceFull):
        require_type("RuntimeCommit.graph.graph", delta.graph, SessionGraph)
    require_type("RuntimeCommit.config", commit.config, PersistedSessionConfig)
    require_type("RuntimeCommit.checkpoint", commit.checkpoint, HydratedSessionCheckpoint)
    leaf = delta.leaf_node_id
    if leaf is not None:
        require_id("RuntimeCommit.graph.leaf_node_id", leaf)

    config = commit.config.to_msgpack("RuntimeCommit.config")
    refs, bodies = _components(commit.checkpoint, written)
    checkpoint = SessionCheckpoint(
        turn_state=commit.checkpoint.turn_state,
        tool_state_ref=refs[0],
        plugin_snapshot_ref=refs[1],
        plugin_snapshot_revision=commit.checkpoint.plugin_snapshot_revision,
        execution_state_ref=refs[2],
    )
    named = checkpoint.to_msgpack("RuntimeCommit.checkpoint")
    manifest = pack(named, "RuntimeCommit.checkpoint")
    checkpoint_ref = ref_of(manifest)
    body = encode_body(commit.session_id, commit.commit_id, leaf, config, checkpoint_ref, named, refs)
    rows = _usage_rows(commit)

    prepared = PreparedCommit(
        commit=commit,
        checkpoint=checkpoint,
        checkpoint_ref=checkpoint_ref,
        refs=refs,
        bodies=bodies,
        body=body,
        meaning=b"",
        rows=rows,
        delta="unchanged",
        leaf=f"={leaf}" if leaf else "",
    )
    prepared.log = log
    if not isinstance(delta, Unchanged):
        _prepare_nodes(prepared, delta, options)
        if prepared.kept and prepared.fault:
            with suppress(CommitTooLarge):  # then the part says what is wrong
                return prepare(commit, options, written)
    means = [prepared.delta, commit.session_id, leaf, config, manifest, rows, *_nodes_meant(prepared)]
    prepared.meaning = sha256(pack(means, "RuntimeCommit")).digest()[:TAG_BYTES]

    size = (
        len(body) + sum(map(len, prepared.records)) + sum(map(len, bodies.values())) + sum(len(row[0]) for row in rows)
    )
    require_size("the bytes of a commit", size, options)
    return prepared


def _nodes_meant(prepared: PreparedCommit) -> tuple[int, int, int]:
    """How many nodes the commit puts in place and their sum, by which it is the same however much of them it sends."""
    count, before = (0, Sum()) if prepared.kept is None else (prepared.kept.count, prepared.kept.sum)
    return count + len(prepared.records), *before.plus(prepared.run, count)


def carried_refs(commit: RuntimeCommit) -> ComponentRefs:
    """The refs a commit carries: where nothing better is known, a guess at those of the head it was built on."""
    refs = (getattr(commit.checkpoint, f"{name}_ref") for name in COMPONENTS)
    return ComponentRefs.guessed([ref if is_ref(ref) else None for ref in refs])


def carried(checkpoint: HydratedSessionCheckpoint | None) -> HydratedSessionCheckpoint:
    """The checkpoint with its components named by their refs alone."""
    if checkpoint is None:
        return HydratedSessionCheckpoint()
    return HydratedSessionCheckpoint(
        turn_state=checkpoint.turn_state,
        tool_state_ref=checkpoint.tool_state_ref,
        plugin_snapshot_ref=checkpoint.plugin_snapshot_ref,
        plugin_snapshot_revision=checkpoint.plugin_snapshot_revision,
        execution_state_ref=checkpoint.execution_state_ref,
    )


def _components(checkpoint: HydratedSessionCheckpoint, written: WrittenTools) -> tuple[Refs, dict[BlobRef, bytes]]:
    """The refs of the checkpoint's components, and the bytes of those that come as bodies (a body beats a ref)."""
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
        raise InvalidRecord("RuntimeCommit.usage_deltas", "expected a sequence of TokenLedgerEntry")
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


def _prepare_nodes(prepared: PreparedCommit, delta: Append | ReplaceFull, options: StoreOptions) -> None:
    """Encode the nodes behind those that a replacement keeps."""
    replaces = isinstance(delta, ReplaceFull)
    where = "RuntimeCommit.graph.graph.nodes" if replaces else "RuntimeCommit.graph.nodes"
    nodes = delta.graph.nodes if isinstance(delta, ReplaceFull) else delta.nodes
    if isinstance(nodes, str | bytes) or not isinstance(nodes, Sequence):
        raise InvalidRecord(where, f"expected a sequence of SessionNodeRecord, got {type(nodes).__name__}")
    kept = 0
    if isinstance(delta, ReplaceFull) and prepared.log is not None:
        prepared.kept = prepared.log.kept_by(nodes, delta.graph.lineage)
        kept = 0 if prepared.kept is None else prepared.kept.count
    if options.max_commit_nodes is not None and len(nodes) - kept > options.max_commit_nodes:
        what = "the number of nodes of a commit (StoreOptions.max_commit_nodes)"
        raise CommitTooLarge(what, len(nodes) - kept, options.max_commit_nodes)
    prepared.delta = "replace" if replaces else "append"
    if not isinstance(nodes, tuple | NodeSequence):
        nodes = tuple(nodes)  # some sequences take no slices
    prepared.nodes = nodes = nodes[kept:] if kept else nodes
    parts: list[bytes] = []
    places: dict[str, int] = {}
    users: list[str] = []
    collision: Refused | None = None
    for at, node in enumerate(nodes):
        record, timeless = _encode_node(node, f"{where}[{kept + at}]")
        parts.append(timeless)
        prepared.records.append(record)
        prepared.ids.append(node.node_id)
        users.append("u" if node.user_message() else "-")
        if places.setdefault(node.node_id, at) != at:
            collision = collision or NodeIdCollision(node.node_id)
    prepared.users = "".join(users)
    prepared.run = Run.of(parts)
    strict = options.graph_checks == "strict"
    orphan: Refused | None = None
    for at, node in enumerate(nodes):
        parent = node.parent_node_id
        place = -1 if parent is None else places.get(parent)
        if parent is not None and place is None:
            link = f"={parent}"
        elif parent is None:
            link = "-"
        elif place == at - 1:
            link = ""
        else:
            link = f"@{place}"
            if strict and place is not None and place >= at:
                orphan = orphan or InvalidParent(node.node_id, parent)
        prepared.links.append(link)
    leaf, lost = delta.leaf_node_id, None
    if leaf is not None and leaf in places:
        prepared.leaf = f"@{places[leaf]}"
    elif replaces and strict and leaf is not None and not kept:
        lost = InvalidLeaf(leaf)
    prepared.fault = collision or orphan or lost


def _encode_node(node: SessionNodeRecord, path: str) -> tuple[bytes, bytes]:
    """A node's record, and the part of it that belongs to a commit's meaning (all but the timestamp)."""
    require_type(path, node, SessionNodeRecord)
    node_id, parent, timestamp, payload = node.node_id, node.parent_node_id, node.timestamp, node.payload
    if not is_plain_id(node_id):
        require_id(f"{path}.node_id", node_id)
    if parent is not None and not is_plain_id(parent):
        require_id(f"{path}.parent_node_id", parent)
    if type(timestamp) is not str or not timestamp.isascii():
        require_type(f"{path}.timestamp", timestamp, str)
        check_json(timestamp, f"{path}.timestamp")
    tag: str | None
    if isinstance(payload, EventPayload):
        tag, value, inner = None, payload.event, f"{path}.payload.event"
    elif isinstance(payload, PluginPayload):
        tag, value, inner = payload.plugin_type, payload.body, f"{path}.payload.body"
        require_type(f"{path}.payload.plugin_type", tag, str)
        check_json(tag, f"{path}.payload.plugin_type")
    else:
        raise InvalidRecord(
            f"{path}.payload", f"expected an EventPayload or PluginPayload, got {type(payload).__name__}"
        )
    return encode_node(node_id, parent, tag, pack_json(value, inner), timestamp)


_FIRST_BLOB: Final = 9
"""Where the blobs begin in the keys of a commit."""
CHUNK: Final = 500
"""Nodes or usage rows that `commit.lua` takes at once; `replace.lua` takes more, in chunks."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a session begins with, beside its first commit, where it must be new.

    A session that moves here begins at a `revision` of its own, with the receipts up to it and the time of the commit.
    """

    meta: SessionMeta | None = None
    revision: int | None = None
    committed_ms: int = 0
    history: bytes = b""
    meaning: bytes = b""
    """What the commit's own receipt said where it was made; empty: what it says here."""

    def args(self, options: StoreOptions) -> tuple[Any, Any, Any, Any]:
        """`origin`, `history`, `meta` and `parent` of the script."""
        meta = b"" if self.meta is None else encoded_meta(self.meta, options)
        parent = "" if self.meta is None else self.meta.parent_session_id or ""
        return ("new" if self.revision is None else f"{self.revision} {self.committed_ms}", self.history, meta, parent)


@dataclass(frozen=True, slots=True)
class BlobsMissing:
    """These refs are not stored: send again with their bytes."""

    refs: tuple[BlobRef, ...]


@dataclass(frozen=True, slots=True)
class CommitCall:
    """The call of a commit, and the refs of the head that it makes."""

    call: ScriptCall
    after: ComponentRefs


def call(
    keys: SessionKeys,
    prepared: PreparedCommit,
    before: ComponentRefs,
    known: Container[str],
    ttl_ms: int,
    options: StoreOptions,
    *,
    own_ttl_ms: int | None = None,
    origin: Origin | None = None,
    sharded: bool = False,
) -> CommitCall:
    """`before`: the refs that the client expects in the head. `known`: keys of blobs that it expects to be stored.

    `own_ttl_ms` becomes the session's own ttl, 0 for never. With an `origin` the session must be new. `sharded`: the
    server is a cluster.
    """
    commit = prepared.commit
    after = _after(prepared, before)
    wanted, present = after.held, before.held
    acquired = [] if wanted == present else [ref for ref in wanted if ref not in present]
    kept = wanted if wanted == present else [ref for ref in wanted if ref in present]
    released = [] if wanted == present else [ref for ref in present if ref not in wanted]
    expected = commit.expected_head_revision
    faulty = prepared.fault is not None
    count = 0 if faulty else len(prepared.ids)
    args: list[Any] = [
        commit.session_id,
        "" if expected is None else expected,
        "" if commit.builds_on is None else tag_of(commit.builds_on),
        tag_of(commit.commit_id),
        prepared.meaning,
        before.stored,
        after.stored,
        prepared.body,
        prepared.leaf,
        ttl_ms,
        "" if own_ttl_ms is None else own_ttl_ms,
        options.blob_grace_ms,
        len(acquired),
        len(kept),
        len(prepared.rows),
        count,
        "" if faulty else prepared.users,
        int(sharded),
        fence_of(commit.lease),
        fence_of(commit.releases),
        b"%d %d %d %d %d %d" % (*prepared.run, *(Sum() if prepared.kept is None else prepared.kept.less_sum)),
        *_private_contents(prepared, before, after, options.blob_profile),
    ]
    is_usual = (
        prepared.delta != "replace"
        and not faulty
        and origin is None
        and options.graph_checks == "strict"
        and max(count, len(prepared.rows)) <= CHUNK
    )
    if not is_usual:
        args += [
            "faulty" if faulty else prepared.delta if prepared.kept is None else prepared.kept.claim,
            options.graph_checks,
            *(("", "", "", "") if origin is None else origin.args(options)),
        ]
    blobs = [keys.blob(ref) for ref in (*acquired, *kept, *released)]
    for ref, key in zip((*acquired, *kept), blobs, strict=False):
        args.append(b"" if key in known else prepared.content(ref, options.blob_profile))
    args += [row[0] for row in prepared.rows]
    for row in prepared.rows:
        args += row[1:]
    if not faulty:
        args += prepared.ids
        args += prepared.links
        args += prepared.records
        if prepared.kept is not None:
            args += prepared.kept.dropped
    return CommitCall(
        ScriptCall(
            scripts.COMMIT if is_usual else scripts.REPLACE,
            [*keys.written, *blobs],
            args,
        ),
        after,
    )


def _after(prepared: PreparedCommit, before: ComponentRefs) -> ComponentRefs:
    """What the head will hold.

    A component that stays, stays where it is. Another one is private if it can be and its bytes are at hand.
    """
    if prepared.refs == before.refs:
        return before
    kinds = []
    for at, ref in enumerate(prepared.refs):
        if ref is None:
            kinds.append("-")
        elif ref == before.refs[at]:
            kinds.append(before.kinds[at])
        else:
            kinds.append("p" if at > 0 and ref in prepared.bodies else "h")
    return ComponentRefs.of(prepared.refs, "".join(kinds))


def _private_contents(
    prepared: PreparedCommit, before: ComponentRefs, after: ComponentRefs, profile: BlobProfile
) -> list[bytes]:
    """For each component that can be private its content, empty where the script has nothing to store."""
    sent = []
    for at in range(1, len(COMPONENTS)):
        ref = after.refs[at]
        is_new = after.kinds[at] == "p" and (ref, "p") != (before.refs[at], before.kinds[at])
        sent.append(prepared.content(ref, profile) if ref is not None and is_new else b"")
    return sent


def reply(
    call: ScriptCall, prepared: PreparedCommit, keys: SessionKeys, reply: Any
) -> RuntimeCommitResult | RefsMoved | BlobsMissing | SendWhole:
    """The result, or what to change before the same commit is sent again; raises whatever the script refused it for."""
    commit = prepared.commit
    match status(call, reply, keys):
        case "committed" | "replayed" as word:
            return RuntimeCommitResult(
                head_revision=int(reply[2]),
                checkpoint_ref=prepared.checkpoint_ref,
                manifest=prepared.checkpoint,
                replayed=word == "replayed",
                commit_id=commit.commit_id,
            )
        case "refs":
            return RefsMoved(decode_components(reply[2], keys.head))
        case "missing":
            return BlobsMissing(tuple(BlobRef(call.keys[_FIRST_BLOB + index][-64:]) for index in reply[2:]))
        case "unlike" if prepared.kept:
            return SendWhole(None)
        case "collision" | "parent" | "leaf" as word if prepared.kept:
            return SendWhole(_refusal(word, prepared, reply))
        case word:
            raise _refusal(word, prepared, reply)


def _refusal(word: str, prepared: PreparedCommit, reply: Any) -> StoreError:
    commit = prepared.commit
    match word:
        case "lost" if commit.lease is not None:
            revision = int(reply[3]) if reply[3] else None
            return LeaseLost(commit.session_id, commit.lease.owner, reply[2].decode(), revision)
        case "conflict":
            actual = int(reply[2])
            gone = actual == 0 and (commit.expected_head_revision or commit.builds_on)
            return (SessionGone if gone else HeadRevisionConflict)(commit.expected_head_revision, actual)
        case "exists":
            return SessionExists(commit.expected_head_revision, int(reply[2]))
        case "reused":
            return CommitIdReused(commit.session_id, commit.commit_id)
        case "faulty" if prepared.fault is not None:
            return prepared.fault
        case "collision":
            return NodeIdCollision(prepared.ids[reply[2]])
        case "parent":
            node = prepared.nodes[reply[2]]
            return InvalidParent(node.node_id, node.parent_node_id)
        case "leaf":
            return InvalidLeaf(commit.graph.leaf_node_id)
        case "overflow":
            row, counter = prepared.rows[reply[2]], _COUNTERS[reply[3]]
            source, model = ledger_key(row[0])
            return InvalidRecord(
                "RuntimeCommit.usage_deltas", f"{counter} of source {source!r}, model {model!r} would leave 64 bits"
            )
    return BackendError(f"commit answered {word!r}")


_COUNTERS: Final = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")


def first_new_node(prepared: PreparedCommit) -> SessionNodeRecord | None:
    """A node that tells by being stored that this very commit was applied; None if it adds none that was not there."""
    if prepared.delta == "append":
        return next(iter(prepared.nodes), None)
    if prepared.kept is None:
        return None
    dropped = set(prepared.kept.dropped)
    return next((node for node in prepared.nodes if node.node_id not in dropped), None)


def missing_blob(prepared: PreparedCommit, ref: BlobRef) -> MissingBlob:
    return MissingBlob(ref, COMPONENTS[prepared.refs.index(ref)])


def log_after(prepared: PreparedCommit, key: str, epoch: int) -> StoredLog | None:
    """The log of `epoch` at `key` after a commit that was not made before; None where that is not known."""
    log, kept, delta = prepared.log, prepared.kept, prepared.commit.graph
    if isinstance(delta, ReplaceFull):
        if kept is None:
            log = StoredLog(StoredNodes((), key), 0, epoch, Sum())
        else:
            log = StoredLog(kept.log.nodes.first(kept.count), kept.log.size - kept.less, epoch, kept.sum)
    elif log is None or log.epoch != epoch:
        return None
    return log.extended(prepared.records, prepared.run)
