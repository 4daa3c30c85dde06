"""Commit: a turn encoded once, sent with the refs that the client expects in the head, and the script's reply."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lash_redis._validate import is_ref
from lash_redis.errors import (
    BackendError,
    CommitIdReused,
    HeadRevisionConflict,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    LeaseLost,
    MissingBlob,
    NodeIdCollision,
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
from lash_redis.options import BlobProfile, StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import RefsMoved, ScriptCall, status
from lash_redis.protocol.commands.lease import fence_of
from lash_redis.protocol.commands.lifecycle import encoded_meta
from lash_redis.protocol.component_refs import COMPONENTS, ComponentRefs
from lash_redis.protocol.heads import decode_components, tag_of
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.ledger import ledger_key
from lash_redis.protocol.prepared_commit import PreparedCommit
from lash_redis.protocol.sums import Sum


@dataclass(frozen=True, slots=True)
class SendWhole:
    """What the replacement would keep is not what is stored, or what it adds does not fit: prepare it without a log.

    Whether it is refused, and why, is for the whole of it to say.
    """

    refusal: StoreError | None
    """Why what it adds does not fit, to be raised where the whole is over a limit."""


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
    acquired, kept, released = _moved_holds(before, after)
    expected = commit.expected_head_revision
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
        ]
    blobs = [keys.blob(ref) for ref in (*acquired, *kept, *released)]
    for ref, key in zip((*acquired, *kept), blobs, strict=False):
        args.append(b"" if key in known else prepared.content(ref, options.blob_profile))
    args += _values(prepared)
    script = scripts.COMMIT if is_usual else scripts.REPLACE
    return CommitCall(ScriptCall(script, [*keys.written, *blobs], args), after)


def _moved_holds(
    before: ComponentRefs, after: ComponentRefs
) -> tuple[Sequence[BlobRef], Sequence[BlobRef], Sequence[BlobRef]]:
    """The blobs that the new head acquires, those that it keeps, and those that it releases."""
    wanted, present = after.held, before.held
    if wanted == present:
        return (), wanted, ()
    return (
        [ref for ref in wanted if ref not in present],
        [ref for ref in wanted if ref in present],
        [ref for ref in present if ref not in wanted],
    )


def _values(prepared: PreparedCommit) -> list[Any]:
    """The usage rows, and the nodes unless a structural fault keeps them from being sent."""
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


def missing_blob(prepared: PreparedCommit, ref: BlobRef) -> MissingBlob:
    return MissingBlob(ref, COMPONENTS[prepared.refs.index(ref)])
