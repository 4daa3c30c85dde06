"""Publish a commit: send the script call, corrected if necessary, until the reply decides the commit's outcome."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ReferenceType
from weakref import ref as weak

from lash_redis.errors import (
    BackendError,
    CommitTooLarge,
    HeadRevisionConflict,
    InputNotPending,
    LeaseLost,
    OutcomeUnknown,
    StoreError,
)
from lash_redis.models import BlobRef, ReplaceFull, RuntimeCommitResult
from lash_redis.models.lineage import Base
from lash_redis.options import StoreOptions
from lash_redis.protocol import commands
from lash_redis.protocol.commands.prepared_commit import PreparedCommit, first_new_node, log_after, prepare_in_steps
from lash_redis.protocol.component_refs import NO_REFS, ComponentRefs
from lash_redis.protocol.heads import RECEIPTS
from lash_redis.session.in_flight import Flight
from lash_redis.session.leasing import Leasing
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.reader import MAX_ATTEMPTS, Reader
from lash_redis.session.seen import Seen
from lash_redis.transport.failures import Earlier
from lash_redis.transport.turns import in_turns

log = logging.getLogger("lash_redis")


@dataclass(frozen=True, slots=True)
class Published:
    """An applied commit (by this or an earlier attempt), and what the handle knows of the head after it."""

    result: RuntimeCommitResult
    seen: Seen
    is_finished: bool = False
    """Whether the commit finished the stream that it names."""


@dataclass(slots=True)
class _Attempts:
    """One commit in flight: what the next attempt sends, and the outcome of earlier attempts."""

    prepared: PreparedCommit
    before: ComponentRefs
    """The components that the head is expected to have."""
    options: StoreOptions
    owner: str
    """The owner that the session is expected to have; empty for none."""
    own_ttl: int | None
    origin: commands.commit.Origin | None
    flight: Flight
    reported_missing: set[BlobRef] = field(default_factory=set)
    """The blobs that a reply reported as missing. One that is missing again and has no bytes is an error."""
    earlier: Earlier = field(default_factory=Earlier)


def _outcome_behind(refused: InputNotPending, attempts: _Attempts) -> StoreError:
    """Return the error of a commit whose input is not pending.

    If the commit compares no revision, an earlier attempt whose reply was lost may have consumed the input, and later
    commits may have displaced its receipt.
    """
    if not attempts.earlier.maybe_applied or attempts.prepared.expected is not None:
        return refused
    return OutcomeUnknown(
        f"commit: the reply to an earlier attempt was lost, which may have consumed its inputs: {refused}; load the "
        "session to see whether the commit was applied"
    )


class Publisher:
    """Publishes the commits of one session."""

    def __init__(self, namespace: Namespace, reader: Reader, leasing: Leasing) -> None:
        self._namespace = namespace
        self._reader = reader
        self._leasing = leasing
        self._keys = reader.keys

    async def publish(
        self,
        prepared: PreparedCommit,
        seen: Seen,
        options: StoreOptions,
        own_ttl: int | None,
        flight: Flight,
        origin: commands.commit.Origin | None = None,
    ) -> Published:
        """Apply the commit once, or raise the error of its refusal.

        `seen` is what the handle knows. `own_ttl` is the session's own ttl in ms, 0 for never, None to keep it. With an
        `origin` the session must be new. The commit's bytes count in `flight`. One round trip if the head holds the
        components that `seen` names, and the server has the blobs that are sent by ref only. Each correction takes one
        more.

        Raises:
            BackendError: the session changed during each of `MAX_ATTEMPTS` attempts; nothing was written.
            OutcomeUnknown: the reply was lost.
            Everything else that `RedisSessionStore.commit_runtime_state` raises.
        """
        before = commands.commit.carried_refs(prepared.commit) if seen.components is None else seen.components
        before = before if origin is None else NO_REFS
        owner = self._keys.access or seen.owner
        attempts = _Attempts(prepared, before, options, owner, own_ttl, origin, flight)
        for _ in range(MAX_ATTEMPTS):
            made = self._call(attempts)
            reply, durable = await self._namespace.run_durably(made.call, options.durability, attempts.earlier)
            try:
                outcome = commands.commit.reply(made.call, attempts.prepared, self._keys, reply)
            except HeadRevisionConflict as conflict:
                outcome = await self._result_behind(conflict, attempts, seen.epoch)
            except InputNotPending as refused:
                raise _outcome_behind(refused, attempts) from refused
            if isinstance(outcome, RuntimeCommitResult):
                return await self._settle(outcome, made.after, reply, durable, attempts, seen)
            await self._correct(attempts, outcome)
        raise BackendError(
            f"session {self._keys.session_id!r} changed during each of {MAX_ATTEMPTS} attempts to commit; nothing was "
            "written, retry later"
        )

    def _call(self, attempts: _Attempts) -> commands.commit.CommitCall:
        namespace = self._namespace
        return commands.commit.call(
            self._keys,
            attempts.prepared,
            attempts.before,
            namespace.known,
            namespace.ttl_ms,
            attempts.options,
            own_ttl_ms=attempts.own_ttl,
            origin=attempts.origin,
            sharded=namespace.sharded,
            owner=attempts.owner,
        )

    async def _correct(
        self,
        attempts: _Attempts,
        outcome: commands.calls.RefsMoved | commands.commit.BlobsMissing | commands.commit.SendWhole,
    ) -> None:
        """Change what the next attempt sends: it adds what the script's reply reported as missing or moved."""
        match outcome:
            case commands.calls.RefsMoved(refs, owner):
                attempts.before, attempts.owner = refs, self._keys.access or owner  # a new session has no owner yet
            case commands.commit.BlobsMissing(refs):
                await self._supply(attempts, refs)
            case commands.commit.SendWhole(refusal):
                try:
                    prepared, written = attempts.prepared, self._namespace.written
                    await attempts.flight.begin(lambda: True)
                    attempts.prepared = await in_turns(
                        prepare_in_steps(prepared.commit, attempts.options, written, before=prepared.head)
                    )
                    attempts.prepared.seen = prepared.seen
                    await attempts.flight.take(attempts.prepared.size())
                except CommitTooLarge:
                    if refusal is None:
                        raise
                    raise refusal from None

    async def _supply(self, attempts: _Attempts, refs: tuple[BlobRef, ...]) -> None:
        """Add the bytes of blobs that the session's shard lacks.

        Raises:
            MissingBlob: the bytes of one of them are in no shard and not in this process.
        """
        prepared = attempts.prepared
        for ref in refs:
            self._namespace.known.discard(self._keys.blob(ref))
            data = prepared.bodies.get(ref)
            data = await self._namespace.uploaded_blob(ref) if data is None else data
            if data is not None:
                prepared.bodies = {**prepared.bodies, ref: data}
                prepared.contents.pop(ref, None)
            elif ref in attempts.reported_missing:
                raise commands.commit.missing_blob(prepared, ref)
        attempts.reported_missing.update(refs)

    async def _settle(
        self,
        result: RuntimeCommitResult,
        after: ComponentRefs,
        reply: Any,
        durable: bool | None,
        attempts: _Attempts,
        seen: Seen,
    ) -> Published:
        """Remember what the reply shows of the head, the log and the blobs.

        After a replay, also release the lease and confirm the durability, which the script did not do.
        """
        prepared, durability = attempts.prepared, attempts.options.durability
        head = result.head_revision, result.commit_id
        if not result.replayed:
            epoch = int(reply[3])
            now = Seen(after, head, epoch, self._learn(prepared, epoch, seen), attempts.owner, state=prepared.head)
        else:
            is_own = len(reply) > 3 and (
                attempts.earlier.maybe_applied or seen.unsettled == prepared.fingerprint()
            )  # the stored log is then the one that this handle sent
            base = self._learn(prepared, int(reply[3]), seen) if is_own else None
            now = Seen(seen.components, head, base=base, owner=attempts.owner)
            if prepared.commit.releases is not None:
                with suppress(LeaseLost), continuing(1, "commit was made"):  # the first attempt released it
                    await self._leasing.release(prepared.commit.releases)
        for held in after.held:
            self._namespace.known.add(self._keys.blob(held))
            if held in prepared.bodies:
                self._namespace.cached.put(held, prepared.bodies[held])
        if result.replayed and durability is not None:
            durable = await self._namespace.confirm(self._keys, durability)
        is_finished = not result.replayed and reply[4] == 1
        return Published(result if durable is None else replace(result, durable=durable), now, is_finished)

    def _learn(self, prepared: PreparedCommit, epoch: int, seen: Seen) -> ReferenceType[Base] | None:
        """Remember the log after a commit, for the next replacement by a graph with the same base; return that base."""
        delta, base = prepared.commit.graph, None if seen.base is None else seen.base()
        if isinstance(delta, ReplaceFull):
            base = delta.graph.lineage.base
        stored = log_after(prepared, self._keys.log, epoch)
        if base is None or stored is None:
            return None
        self._namespace.logs.learn(base, stored)
        return weak(base)

    async def _result_behind(
        self, conflict: HeadRevisionConflict, attempts: _Attempts, epoch: int | None
    ) -> RuntimeCommitResult:
        """Return the result of an earlier attempt whose reply was lost and whose receipt later commits displaced.

        A stored node that only this commit can have added proves that it was applied. `epoch` is the log's, as the
        handle knew it before the first attempt.

        Raises:
            HeadRevisionConflict: `conflict`; no earlier attempt was applied.
            OutcomeUnknown: the commit adds no such node, or other commits have dropped nodes since.
        """
        prepared, made = attempts.prepared, conflict.expected
        if not attempts.earlier.maybe_applied or made is None or conflict.actual <= made + RECEIPTS:
            raise conflict
        node = first_new_node(prepared)
        if node is not None:
            if await self._reader.node(node.node_id) == node:
                return RuntimeCommitResult(
                    made + 1,
                    prepared.checkpoint_ref,
                    prepared.head.checkpoint,
                    replayed=True,
                    commit_id=prepared.commit.commit_id,
                )
            head, is_indexed = await self._reader.head_and_index(node.node_id)
            if (
                not is_indexed
                and head is not None
                and head.facts.epoch == epoch
                and head.facts.live == head.facts.length
            ):
                raise conflict
        raise OutcomeUnknown(
            f"commit: the reply to an earlier attempt was lost, and later commits displaced its receipt: {conflict}; "
            "load the session to see whether the commit was applied"
        ) from conflict
