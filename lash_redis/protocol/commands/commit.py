"""The call of a commit, with the refs that the client expects in the head, and the reply of the script."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lash_redis._validate import is_ref
from lash_redis.errors import (
    BackendError,
    CommitIdReused,
    HeadRevisionConflict,
    InputNotPending,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    LeaseLost,
    MissingBlob,
    NodeIdCollision,
    NodesTombstoned,
    SessionExists,
    SessionGone,
    StoreError,
)
from lash_redis.models import (
    BlobRef,
    HydratedSessionCheckpoint,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionMeta,
)
from lash_redis.options import KEEP, BlobProfile, StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import RefsMoved, ScriptCall, refs_moved, status
from lash_redis.protocol.commands.lease import fence_of
from lash_redis.protocol.commands.lifecycle import encoded_meta
from lash_redis.protocol.commands.prepared_commit import PreparedCommit
from lash_redis.protocol.commands.streams import fence_of_stream
from lash_redis.protocol.component_refs import COMPONENTS, NO_REFS, ComponentRefs
from lash_redis.protocol.heads import tag_of
from lash_redis.protocol.inputs import input_field
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.ledger import ledger_key
from lash_redis.protocol.sums import Sum


@dataclass(frozen=True, slots=True)
class SendWhole:
    """A request to prepare a replacement without a log, and to send the whole graph.

    The stored log differs from the prefix that the replacement keeps, or the added nodes were refused. The script then
    checks the whole graph, and accepts it or refuses it for its own reason.
    """

    refusal: StoreError | None
    """Why the script refused the added nodes, or None. The caller raises it if the whole graph is over a limit."""


def carried_refs(commit: RuntimeCommit) -> ComponentRefs:
    """Return the refs in a commit, as a guess at the refs of the head that it builds on.

    It is used if nothing better is known.
    """
    if commit.checkpoint is KEEP:
        return NO_REFS
    refs = (getattr(commit.checkpoint, f"{name}_ref") for name in COMPONENTS)
    return ComponentRefs.guessed([ref if is_ref(ref) else None for ref in refs])


def carried(checkpoint: HydratedSessionCheckpoint | None) -> HydratedSessionCheckpoint:
    """Return the checkpoint with the refs of its components and without their bodies."""
    if checkpoint is None:
        return HydratedSessionCheckpoint()
    return HydratedSessionCheckpoint(
        turn_state=checkpoint.turn_state,
        tool_state_ref=checkpoint.tool_state_ref,
        plugin_snapshot_ref=checkpoint.plugin_snapshot_ref,
        plugin_snapshot_revision=checkpoint.plugin_snapshot_revision,
        execution_state_ref=checkpoint.execution_state_ref,
    )


_FIRST_BLOB: Final = 13
"""The index of the first blob in the KEYS of a commit."""
CHUNK: Final = 500
"""The largest number of nodes or usage rows that `commit.lua` takes. `replace.lua` takes more, in chunks."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The initial content of a session that must be new, in addition to its first commit.

    An imported session begins at the `revision` of its source, with the earlier receipts and the time of the commit.
    """

    meta: SessionMeta | None = None
    """The meta record; None for none."""
    revision: int | None = None
    """The revision of the commit at its source; None for a session that is not imported."""
    committed_ms: int = 0
    """The time of the commit at its source, in ms since 1970."""
    history: bytes = b""
    """The receipts before the commit, as stored in a head."""
    meaning: bytes = b""
    """The meaning in the receipt of the commit at its source; empty for the meaning that is computed here."""

    def args(self, options: StoreOptions) -> tuple[Any, Any, Any, Any]:
        """Return the arguments `origin`, `history`, `meta` and `parent` of `replace.lua`."""
        meta = b"" if self.meta is None else encoded_meta(self.meta, options)
        parent = "" if self.meta is None else self.meta.parent_session_id or ""
        return ("new" if self.revision is None else f"{self.revision} {self.committed_ms}", self.history, meta, parent)


@dataclass(frozen=True, slots=True)
class BlobsMissing:
    """A request to send the commit again with the bytes of these blobs, which are not stored."""

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
    owner: str = "",
) -> CommitCall:
    """Build the call of `commit.lua`, or of `replace.lua` for a commit that `commit.lua` does not make.

    `before` contains the refs that the client expects in the head. `known` contains the keys of blobs that it expects
    to be stored; their bytes are not sent. `own_ttl_ms` becomes the session's own ttl, 0 for no expiry. With an
    `origin`, the session must be new. `sharded` means that the server is a cluster. `owner` is the one that the session
    is expected to have, empty for none.
    """
    commit = prepared.commit
    after = _after(prepared, before)
    acquired, kept, released = _moved_holds(before, after)
    expected = prepared.expected
    is_faulty = prepared.fault is not None
    count = 0 if is_faulty else len(prepared.ids)
    less_sum = Sum() if prepared.kept is None else prepared.kept.less_sum
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
        "" if is_faulty else prepared.users,
        int(sharded),
        fence_of(commit.lease),
        fence_of(commit.releases),
        b"%d %d %d %d %d %d" % (*prepared.run, *less_sum),
        *_private_contents(prepared, before, after, options.blob_profile),
    ]
    is_usual = (
        prepared.delta != "replace"
        and not is_faulty
        and origin is None
        and options.graph_checks == "strict"
        and max(count, len(prepared.rows)) <= CHUNK
    )
    if not is_usual:
        args += [
            "faulty" if is_faulty else prepared.delta if prepared.kept is None else prepared.kept.claim,
            options.graph_checks,
            *(("", "", "", "") if origin is None else origin.args(options)),
            b"" if prepared.seen is None else b"%d %d" % prepared.seen,
        ]
    args += [keys.access, owner, len(commit.consumes), fence_of_stream(commit.finishes)]
    blobs = [keys.blob(ref) for ref in (*acquired, *kept, *released)]
    for ref, key in zip((*acquired, *kept), blobs, strict=False):
        args.append(b"" if key in known else prepared.content(ref, options.blob_profile))
    args += _values(prepared)
    args += map(input_field, commit.consumes)
    script = scripts.COMMIT if is_usual else scripts.REPLACE
    events = keys.streams if commit.finishes is None else keys.stream(commit.finishes.generation_id).events
    return CommitCall(ScriptCall(script, [*keys.written(owner), keys.streams, events, *blobs], args), after)


def _moved_holds(
    before: ComponentRefs, after: ComponentRefs
) -> tuple[Sequence[BlobRef], Sequence[BlobRef], Sequence[BlobRef]]:
    """Return the blobs that the new head acquires, those that it keeps, and those that it releases."""
    wanted, present = after.held, before.held
    if wanted == present:
        return (), wanted, ()
    return (
        [ref for ref in wanted if ref not in present],
        [ref for ref in wanted if ref in present],
        [ref for ref in present if ref not in wanted],
    )


def _values(prepared: PreparedCommit) -> list[Any]:
    """Return the usage rows and the nodes as arguments. Nodes with a structural fault are not sent."""
    values = [row[0] for row in prepared.rows]
    for row in prepared.rows:
        values += row[1:]
    if prepared.fault is None:
        values += prepared.ids
        values += prepared.links
        values += prepared.records
        if prepared.kept is not None:
            values += prepared.kept.dropped
    return values


def _after(prepared: PreparedCommit, before: ComponentRefs) -> ComponentRefs:
    """Return the refs of the head after the commit.

    An unchanged component keeps its kind. A new one is private if it is not the tool state and its body is sent.
    Otherwise it is held.
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
    """Return the content of each component that can be private; empty if the script stores nothing for it."""
    sent = []
    for at in range(1, len(COMPONENTS)):
        ref = after.refs[at]
        is_new = after.kinds[at] == "p" and (ref, "p") != (before.refs[at], before.kinds[at])
        sent.append(prepared.content(ref, profile) if ref is not None and is_new else b"")
    return sent


def reply(
    call: ScriptCall, prepared: PreparedCommit, keys: SessionKeys, reply: Any
) -> RuntimeCommitResult | RefsMoved | BlobsMissing | SendWhole:
    """Decode the reply: the result, or the change to make before the commit is sent again.

    Raises:
        StoreError: the script refused the commit; nothing was written.
    """
    commit = prepared.commit
    match status(call, reply, keys):
        case "committed" | "replayed" as word:
            return RuntimeCommitResult(
                head_revision=int(reply[2]),
                checkpoint_ref=prepared.checkpoint_ref,
                manifest=prepared.head.checkpoint,
                replayed=word == "replayed",
                commit_id=commit.commit_id,
            )
        case "refs":
            return refs_moved(keys, reply)
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
            gone = actual == 0 and (prepared.expected or commit.builds_on)
            return (SessionGone if gone else HeadRevisionConflict)(prepared.expected, actual)
        case "gone":
            return SessionGone(prepared.expected, int(reply[2]))
        case "hidden":
            return NodesTombstoned(prepared.expected, int(reply[2]), reply[3])
        case "exists":
            return SessionExists(prepared.expected, int(reply[2]))
        case "reused":
            return CommitIdReused(commit.session_id, commit.commit_id)
        case "faulty" if prepared.fault is not None:
            return prepared.fault
        case "unpending":
            return InputNotPending(commit.session_id, commit.consumes[reply[2]])
        case "collision":
            return NodeIdCollision(prepared.ids[reply[2]])
        case "parent":
            node = prepared.nodes[reply[2]]
            return InvalidParent(node.node_id, node.parent_node_id)
        case "leaf":
            return InvalidLeaf(prepared.head.leaf_node_id)
        case "overflow":
            row, counter = prepared.rows[reply[2]], _COUNTERS[reply[3]]
            source, model = ledger_key(row[0])
            return InvalidRecord(
                "RuntimeCommit.usage_deltas", f"{counter} of source {source!r}, model {model!r} would exceed 64 bits"
            )
    return BackendError(f"unexpected reply {word!r} of the script commit")


_COUNTERS: Final = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")


def missing_blob(prepared: PreparedCommit, ref: BlobRef) -> MissingBlob:
    """Return the error for a ref that the commit refers to and that is not stored."""
    return MissingBlob(ref, COMPONENTS[prepared.refs.index(ref)])
