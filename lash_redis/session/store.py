"""The store of one session: the methods that a runtime calls. `protocol/commands/` builds calls and decodes replies."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from inspect import isawaitable
from typing import Any, Final, NoReturn, TypeVar
from uuid import uuid4
from weakref import ref as weak

from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from lash_redis._validate import require_id, require_ids, require_int, require_type
from lash_redis.errors import (
    BackendError,
    Corrupt,
    HeadRevisionConflict,
    InvalidLeaf,
    InvalidRecord,
    NodesTombstoned,
    OutcomeUnknown,
    OwnerMismatch,
    SessionBindingMismatch,
    SessionDeleted,
    SessionEvicted,
    SessionExists,
    StoreError,
)
from lash_redis.models import (
    BlobRef,
    DeleteReport,
    FullGraph,
    GcReport,
    HydratedSessionCheckpoint,
    LeaseInfo,
    PendingInput,
    PersistedSessionRead,
    ReplaceFull,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionGraph,
    SessionHeadMeta,
    SessionMeta,
    SessionNodeRecord,
    SessionReadScope,
    StreamClaim,
    StreamEvent,
    StreamInfo,
    TombstoneReport,
    VacuumReport,
)
from lash_redis.options import KEEP, SEEN, Durability, Keep, StoreOptions, own_ttl_ms, require_durability
from lash_redis.protocol import commands
from lash_redis.protocol.commands.estimates import is_larger
from lash_redis.protocol.commands.prepared_commit import prepare_in_steps
from lash_redis.protocol.component_refs import NO_REFS
from lash_redis.session.basis import Basis, basis_of
from lash_redis.session.contention import repeated_after_conflicts
from lash_redis.session.in_flight import LARGE_BYTES
from lash_redis.session.inputs import Inputs
from lash_redis.session.lease import Lease
from lash_redis.session.leasing import Leasing
from lash_redis.session.maintenance import Maintenance
from lash_redis.session.meta import MetaWriter
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.publish import Publisher
from lash_redis.session.reader import MAX_ATTEMPTS, Reader
from lash_redis.session.seen import Seen
from lash_redis.session.stream import StreamWriter, held_for_commit
from lash_redis.session.streams import Streams
from lash_redis.session.watch import PATIENCE, POLL, SessionWatch
from lash_redis.transport.failures import Earlier
from lash_redis.transport.turns import in_turns

log = logging.getLogger("lash_redis")

ENCODE_SECONDS: Final = 0.02
"""The time that a commit is encoded before other tasks run.

Small commits take far less, so they are sent in the order of their calls. Of large ones, one at a time is encoded.
"""

Answer = TypeVar("Answer")


class RedisSessionStore:
    """The `RuntimePersistence` of one session. `SessionCache.session` makes it, without I/O.

    A handle is cheap, so an application can make one for every request. It remembers the head that it saw last: its
    revision, commit, config, checkpoint, component refs and owner. A commit after a load or a commit therefore takes
    one round trip. Any number of handles can share a session.

    A handle with an `owner` uses only the sessions of that owner. Another's session reads as absent, and every write to
    it raises `OwnerMismatch`. A handle without an owner is a trusted caller, and uses every session.
    """

    def __init__(self, namespace: Namespace, session_id: str, owner: str | None = None) -> None:
        self._namespace = namespace
        self._owner = None if owner is None else require_id("owner", owner)
        self._keys = namespace.layout.session(require_id("session_id", session_id), owner)
        self._reader = Reader(namespace, self._keys)
        self._leasing = Leasing(namespace, self._keys, self.touch)
        self._publisher = Publisher(namespace, self._reader, self._leasing)
        self._maintenance = Maintenance(namespace, self._reader)
        self._meta = MetaWriter(namespace, self._reader)
        self._inputs = Inputs(namespace, self._reader)
        self._streams = Streams(namespace, self._keys)
        self._last = Seen()
        self._commits = 0

    @property
    def session_id(self) -> str:
        return self._keys.session_id

    @property
    def owner(self) -> str | None:
        """The owner whose sessions the handle uses; None for a trusted caller."""
        return self._owner

    def __repr__(self) -> str:
        owner = "" if self._owner is None else f", owner={self._owner!r}"
        return f"RedisSessionStore({self.session_id!r}, namespace={self._namespace.layout.namespace!r}{owner})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RedisSessionStore holds connections and cannot be pickled: pass the session id to the other process, "
            "and call session(session_id) on a cache of its own"
        )

    # Reads

    async def load_session(self, scope: SessionReadScope, *, decode: bool = False) -> PersistedSessionRead | None:
        """Load the session at one revision; None if it has no head.

        `FullGraph()` returns every live node in insertion order, and the head's leaf as it is stored. `ActivePath()`
        returns the nodes from the root to the head's leaf, `ActivePath(x)` those to `x` (none if `x` is unknown or
        tombstoned). Treat reads as immutable. Nodes, config, ledger and components are decoded when they are accessed.

        `ActivePath(limit=20)` returns a page: the last 20 nodes of the path. `ActivePath(limit=20, before=x)` returns
        the last 20 before node `x`. The leaf of a page's graph is its last node. `read.is_partial` means that the path
        has earlier nodes; the next page is the one before `read.graph.nodes[0].node_id`.

        One round trip if this process has the tool state cached, else two. An active path takes two. O(nodes returned).
        A page of up to 500 nodes takes one, and a larger one takes two. The cost of a page does not depend on the
        length of the path. In some sessions the client cuts the page out of the whole path, in at most five round
        trips: if more than 1,000 branches begin behind its first node; if more than 1,000 tombstones are not vacuumed;
        if nodes were vacuumed and more than 1,000 nodes of the path follow `before`; if nodes are linked by id only.
        With `StoreOptions.slide_on_load` a `touch` follows, which takes one more.

        Accessing many payloads in a row blocks the event loop: 1 MB of small messages for 6 to 10 ms, 1 MB of table
        rows for about 13 ms. With `decode` all nodes are decoded before the method returns. Other tasks then run every
        2 ms, or after a node that takes longer. In total, small messages take up to 1.4 times as long that way, and
        table rows the same time.

        Raises:
            UnsupportedReadScope: `scope` is neither a `FullGraph` nor an `ActivePath`.
            InvalidLeaf: `scope` is an `ActivePath` to the head's leaf, which is tombstoned (with strict checks).
            InvalidRecord: a field of `scope` is invalid. `before` is unknown, tombstoned, or not on the path.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing. A node's record, the
                config, the ledger and a private component are verified when they are decoded. If one is damaged,
                accessing it raises Corrupt.

        Source: RuntimePersistence::load_session.
        """
        return await self._seen(await self._ask(lambda reader: reader.load(scope, decode=decode)))

    async def _ask(self, question: Callable[[Reader], Awaitable[Answer | None]]) -> Answer | None:
        """Read from a replica if `read_from` is "replica". If that fails or finds nothing, read from the primary."""
        if self._namespace.options.read_from == "replica":
            # A replica may be stale, so the primary decides.
            with suppress(Corrupt, InvalidLeaf, InvalidRecord, BackendError):
                answer = await question(Reader(self._namespace.replicas, self._keys))
                if answer is not None:
                    return answer
        return await question(self._reader)

    async def refresh(self, read: PersistedSessionRead) -> PersistedSessionRead | None:
        """Return what `load_session(read.scope)` would return now, but fetch only what is new; None without a head.

        If nothing is new it returns `read` itself. That takes one round trip of a few hundred bytes for any size of
        session. Up to 64 new nodes arrive in the same round trip, more in a second one. Components that this process
        does not have take one more, as in `load_session`. Nodes that `read` has decoded stay decoded.

        It reloads the session if `read` is no longer a prefix of it: the graph was replaced, the session was deleted
        and created again, or a failover lost commits. It also reloads if the path now contains nodes that `read` does
        not have, if nodes were tombstoned and vacuumed since, or if nodes are linked by id only. For a read without an
        origin (see `PersistedSessionRead`) it loads the full graph. With `StoreOptions.slide_on_load` a `touch`
        follows.

        A page keeps its first node and gets the new nodes at its end, so it may exceed its limit. It is loaded again by
        its scope if the path no longer contains all of it. A page with `before` is loaded again after any change.

        Raises:
            SessionBindingMismatch: `read` is of another session.
            InvalidLeaf, Corrupt, SessionEvicted: as `load_session` would.
        """
        require_type("read", read, PersistedSessionRead)
        if read.session_id != self.session_id:
            raise SessionBindingMismatch(self.session_id, read.session_id)
        return await self._seen(await self._reader.refresh(read))

    async def _seen(self, read: PersistedSessionRead | None) -> PersistedSessionRead | None:
        if read is None:
            return None
        origin = commands.reads.origin_of(read)
        assert origin is not None
        self._last = Seen.of(origin.head, weak(read.graph.lineage.base))
        if not self._namespace.options.slide_on_load:
            return read
        try:
            return read if await self.touch() else None  # it expired between the two calls
        except (SessionDeleted, OwnerMismatch):  # it was deleted since, and perhaps begun by another owner
            return None
        except SessionEvicted:
            return read  # complete, thanks to blobs cached here; but an incomplete session is not kept alive

    async def load_head(self) -> SessionHeadMeta | None:
        """Load the head without graph and components; None if there is none, or if the session is another owner's.

        One round trip, O(rows of the ledger).

        Raises:
            Corrupt, SessionEvicted: the head is damaged, or missing while other keys of the session remain.
        """
        head = await self._ask(Reader.head)
        return None if head is None else self._seen_head(head)

    def _seen_head(self, head: commands.reads.StoredHead) -> SessionHeadMeta:
        seen = Seen.of(head)
        self._last = replace(seen, base=self._last.base) if seen.head == self._last.head else seen
        return head.meta()

    async def load_checkpoint(self) -> tuple[SessionHeadMeta, HydratedSessionCheckpoint] | None:
        """Load the head and the checkpoint with its components, without the graph; None if there is no head.

        None also if the session is another owner's. Treat both as immutable. The components are decoded when they are
        accessed. One round trip if this process has the tool state cached, else two. The cost does not depend on the
        nodes.

        Raises:
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing.
        """
        found = await self._ask(Reader.checkpoint)
        if found is None:
            return None
        checkpoint = found.read().checkpoint
        assert checkpoint is not None
        return self._seen_head(found.stored.head), checkpoint

    async def load_node(self, node_id: str) -> SessionNodeRecord | None:
        """Load a live node, on the active path or not; None if it is unknown or tombstoned.

        None also if the session does not exist, or is another owner's. One round trip.

        Raises:
            InvalidRecord: the id is invalid; nothing was sent.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing.

        Source: RuntimePersistence::load_node.
        """
        return await self._reader.node(node_id)

    async def load_nodes(self, ids: Sequence[str]) -> list[SessionNodeRecord | None]:
        """Load live nodes, on the active path or not, in the order of `ids`; None for an unknown or tombstoned id.

        All are None if the session is another owner's. An id may occur more than once. One round trip per 500 ids, or
        for fewer of them in the middle of a log of more than 10,000 nodes. The nodes of one round trip are of one
        revision; those of several may be of several.

        Raises:
            InvalidRecord: an id is invalid; the error names it. Nothing was sent.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing.
        """
        return await self._reader.nodes(require_ids("ids", ids))

    async def require_owner(self) -> None:
        """Refuse a session that is not this handle's owner's. One round trip; none for a handle without an owner.

        Raises:
            OwnerMismatch: the session is another owner's.
        """
        if self._owner is not None and await self._reader.is_foreign():
            raise OwnerMismatch(self.session_id, self._owner)

    async def load_session_meta(self) -> SessionMeta | None:
        """Load the meta record; None if there is none, or if the session is another owner's. One round trip.

        Raises:
            Corrupt, SessionEvicted: the record is damaged, or the head is missing while other keys remain.

        Source: RuntimePersistence::load_session_meta.
        """
        return await self._ask(Reader.meta)

    async def watch(
        self, since: commands.watching.Since = None, *, poll: float = POLL, patience: float = PATIENCE
    ) -> AsyncGenerator[int, None]:
        """Yield the head's revision whenever the head's commit is not the one seen last.

        No revision is missed, across reconnects and failovers, but one yield may stand for several commits. After a
        failover that lost a commit, a revision may be yielded again, or a lower one. Changes of meta, tombstones and
        touches are not reported. The watch waits for a session that does not exist yet.

        `since` is the head that the caller has seen: the result of a load, of `load_head` or of a commit, or a revision
        (0: any head is new). A revision alone does not identify its commit: if a failover gave the same revision to
        another commit, that commit counts as seen. With None, the watch yields what follows its own first poll.

        A revision is known a fraction of a millisecond after its commit. If its message was not published (the writer's
        account may not publish) or was lost (the connection died silently), it is known within `poll` seconds. A watch
        takes one connection of its own. It sends two commands to check the head, after a commit and every `poll`
        seconds. For many sessions use `SessionCache.watch`.

        Leaving the loop ends the watch. Closing the iterator (`aclose`, or `contextlib.aclosing`) ends it immediately.

        Raises:
            SessionDeleted: the session was deleted, now or earlier.
            SessionGone: the session existed and does not now: it expired, was evicted, or was lost in a failover.
            Corrupt, SessionEvicted: the head is unreadable, or missing while other keys of the session remain.
            BackendError: the server refused, or an outage outlasted `patience` seconds. Watch again, with the last
                revision as `since`.
        """
        async with SessionWatch(self._namespace, poll=poll, patience=patience) as watch:
            watch.add(self.session_id, since, owner=self._owner)
            async for change in watch:
                if change.ended is not None:
                    raise change.ended
                yield change.revision

    # Writes

    async def commit_runtime_state(
        self, commit: RuntimeCommit, *, ttl: float | Keep | None = KEEP, durability: Durability | None = None
    ) -> RuntimeCommitResult:
        """Publish the next revision atomically, and restart the session's ttl. A refusal writes nothing.

        A commit that is sent again, by any worker, returns the result of the first attempt with `replayed=True`. That
        holds while it is among the session's last 32 commits. Later its revision is refused. With
        `expected_head_revision=None`, which overwrites any head without a comparison, it is then applied again.

        A commit that leaves out `expected_head_revision` builds on the revision that this handle saw last: by a load, a
        refresh, `load_head` or a commit. If tasks share a handle, one may build on what another saw; prefer `update`.
        What else a commit leaves out stays as it is stored. With `expected_head_revision=None` the stored values stay,
        too: if another commit comes in between, this one reads them again.

        One round trip if this handle knows the head (after a load or a commit, or if the commit contains all of it). A
        second one if it does not, or if a blob turns out not to be stored. The cost grows with the commit, not with the
        session.

        `ttl` becomes the session's own: seconds from its last commit or touch until it expires, None for never. Without
        it the session keeps its own ttl, or that of the cache. A retry does not change the ttl, which is no part of the
        commit's meaning.

        A commit without `builds_on` whose expected revision is the one that this handle saw last builds on the commit
        that was seen.

        A `ReplaceFull` sends only the nodes behind the stored ones that it keeps, and the ids of those it drops. Its
        graph must have grown, by its own methods (`append_*`, `with_leaf`, `first`), out of a read of this session or
        out of a graph that this cache committed to it. It still counts as a replacement, also for a retry. Nodes that a
        caller accessed or made may have been changed in place. They are compared, about 2 µs each, and from the first
        that differs all are sent. The limits of `StoreOptions` count what is sent. Every other graph is sent whole: one
        that was put together by hand, and one that keeps less than half of the stored nodes. In a second round trip,
        so is a graph of another log than the stored one, or of a log with tombstones.

        Other tasks run while a large commit is encoded. Do not change its records until the call returns. A commit of
        more than 64 KiB waits while others have `StoreOptions.max_bytes_in_flight` bytes in flight.

        A commit with `finishes` ends the stream in its own round trip. If the producer has not sent all events yet,
        they are sent in a round trip before.

        `durability` (default: `StoreOptions.durability`) waits for replicas or the disk in the same round trip. The
        commit stays applied if the confirmation does not arrive in time, and the result's `durable` is then False.

        Raises:
            SessionBindingMismatch: the commit is for another session.
            OwnerMismatch: the session is another owner's.
            SessionDeleted: the session was deleted.
            LeaseLost: the commit carries a lease that is no longer held.
            InvalidRecord, CommitTooLarge: the commit cannot be stored as it is.
            HeadRevisionConflict, SessionGone: the head is not the one that the commit was built on. Load, and make a
                new commit.
            NodesTombstoned: a replacement's graph was read before nodes were tombstoned, which it would bring back.
            SessionExists: the session has documents, and therefore no graph.
            CommitIdReused: the commit id was used for other content.
            NodeIdCollision, InvalidParent, InvalidLeaf: the nodes do not fit the stored graph.
            MissingBlob: a component is named by a ref that is not stored.
            InputNotPending: an input that the commit consumes is not pending.
            Corrupt, SessionEvicted: the stored session is damaged or incomplete.
            BackendError: the server refused or could not be reached, or other commits came first: of a commit that
                compares nothing, for `StoreOptions.contention_seconds`. Nothing was written; retry later.
            OutcomeUnknown: the reply was lost. Send the same commit again. If more than 32 other commits displaced its
                receipt before this call could retry, the stored nodes decide whether it was applied. They cannot if
                the commit adds no node, or if others have dropped nodes since; then it stays unknown.

        Source: RuntimePersistence::commit_runtime_state.
        """
        require_type("commit", commit, RuntimeCommit)
        if commit.session_id != self.session_id:
            raise SessionBindingMismatch(self.session_id, commit.session_id)
        own_ttl, options = own_ttl_ms(ttl), self._namespace.options
        if require_durability("durability", durability) is not None:
            options = replace(options, durability=durability)
        if commit.finishes is None:
            result = await self._commit_on_basis(commit, own_ttl, options)
        else:
            async with held_for_commit(commit.finishes):
                result = await self._commit_on_basis(commit, own_ttl, options)
        await self._collect_if_due()
        return result

    async def _commit_on_basis(
        self, commit: RuntimeCommit, own_ttl: int | None, options: StoreOptions
    ) -> RuntimeCommitResult:
        """Make a commit on the head that it names, or on any head if it compares nothing."""
        basis = await basis_of(commit, self._last, self._reader)
        try:
            return await self._commit(basis, own_ttl, options)
        except HeadRevisionConflict as conflict:
            if not basis.is_implied or isinstance(conflict, NodesTombstoned | SessionExists):
                raise
        return await self._commit_on_any(commit, own_ttl, options)

    async def _commit_on_any(
        self, commit: RuntimeCommit, own_ttl: int | None, options: StoreOptions
    ) -> RuntimeCommitResult:
        """Make a commit that compares nothing, on the head that it reads; repeat it if another commit comes between.

        Raises:
            BackendError: other commits came first for `StoreOptions.contention_seconds`.
        """
        retrying = repeated_after_conflicts(options.contention_seconds, NodesTombstoned)
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._commit(await basis_of(commit, Seen(), self._reader), own_ttl, options)
        except RetryError as error:
            raise BackendError(
                f"session {self.session_id!r}: other commits came first for {options.contention_seconds:g} seconds; "
                "nothing was written, retry later"
            ) from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _commit(self, basis: Basis, own_ttl: int | None, options: StoreOptions) -> RuntimeCommitResult:
        commit, seen = basis.commit, basis.seen
        builds_on_seen = (commit.expected_head_revision, commit.builds_on) == seen.head
        base = seen.base() if seen.base is not None and builds_on_seen else None
        if isinstance(commit.graph, ReplaceFull):
            require_type("RuntimeCommit.graph.graph", commit.graph.graph, SessionGraph)
            base = commit.graph.graph.lineage.base
        log = None if base is None else self._namespace.logs.newest(base, self._keys.log)
        flight = self._namespace.in_flight.flight()
        try:
            await flight.begin(partial(is_larger, commit, LARGE_BYTES))
            prepared = await in_turns(
                prepare_in_steps(commit, options, self._namespace.written, log, basis.head), ENCODE_SECONDS
            )
            if isinstance(commit.graph, ReplaceFull) and base is not None:
                prepared.seen = self._namespace.logs.tombstones_seen(base, self._keys.log)
            await flight.take(prepared.size())
            try:
                published = await self._publisher.publish(prepared, seen, options, own_ttl, flight)
            except OutcomeUnknown:
                self._last = replace(self._last, unsettled=prepared.fingerprint())
                raise
        finally:
            flight.end()
        self._last = published.seen
        if commit.finishes is not None:
            with continuing(1, "commit was made"):
                await self._streams.finish_after_commit(commit.finishes, is_finished=published.is_finished)
        return published.result

    async def begin(
        self,
        commit: RuntimeCommit,
        origin: commands.commit.Origin,
        blobs: Mapping[str, bytes],
        *,
        options: StoreOptions,
        ttl: float | Keep | None = KEEP,
    ) -> RuntimeCommitResult:
        """Publish the first commit of a session, for a fork or an import.

        `blobs` are the bytes of the components that the commit names by ref.

        Raises:
            SessionExists: the session exists already; nothing was written.
            Everything else that `commit_runtime_state` raises.
        """
        flight = self._namespace.in_flight.flight()
        try:
            await flight.begin(partial(is_larger, commit, LARGE_BYTES))
            prepared = await in_turns(prepare_in_steps(commit, options, self._namespace.written), ENCODE_SECONDS)
            prepared.bodies = {**prepared.bodies, **{BlobRef(ref): data for ref, data in blobs.items()}}
            prepared.meaning = origin.meaning or prepared.meaning
            await flight.take(prepared.size())
            published = await self._publisher.publish(prepared, self._last, options, own_ttl_ms(ttl), flight, origin)
        finally:
            flight.end()
        self._last = published.seen
        return published.result

    async def _collect_if_due(self) -> None:
        every = self._namespace.options.gc_policy.auto_run_every_commits
        self._commits += 1
        if every and self._commits % every == 0:
            try:
                await self.gc_unreachable()
            except StoreError:
                # The commit is applied. Blobs that were not collected now are collected the next time, or expire.
                log.warning("garbage collection after a commit of session %r failed", self.session_id, exc_info=True)

    async def update(
        self,
        fn: Callable[[PersistedSessionRead | None], RuntimeCommit | Awaitable[RuntimeCommit]],
        *,
        since: PersistedSessionRead | None = None,
        attempts: int = 8,
        ttl: float | Keep | None = KEEP,
        durability: Durability | None = None,
    ) -> RuntimeCommitResult:
        """Load the session, call `fn` with the read, and commit what it returns; after a conflict refresh and repeat.

        `fn` is called once per attempt and must return a new commit each time: a refused commit is not sent again. It
        gets None before the first commit, and also if the session is gone (it expired, was evicted or lost) although
        `since` was passed. Its commit then starts a new session, without meta or a ttl of its own. A commit whose
        `expected_head_revision` is left out or None builds on the read that `fn` got.

        There are at most `attempts` attempts, with random exponential pauses from 10 ms. Make expensive calls, such as
        a model call, before `update` or under a lease, not in `fn`.

        The first attempt loads the session, or refreshes `since`, a read that the caller still has. Each further one
        refreshes the read before. A process that keeps the read of its last turn therefore makes the next one in two
        round trips. A conflict costs only what the other workers wrote, for any length of the session. `fn` gets a
        read of the same scope as `since` (an active path, for example), or of the full graph without `since`.

        Raises:
            SessionBindingMismatch: `since` or the commit is of another session.
            HeadRevisionConflict: the conflict of the last attempt.
            OutcomeUnknown: send the error's `commit` again with `commit_runtime_state`. Calling `update` again could
                store the turn twice.
            Everything else that `refresh`, `commit_runtime_state` and `fn` raise. These errors are not retried.
        """
        if not callable(fn):
            raise InvalidRecord("fn", f"expected a function, got {type(fn).__name__}")
        if since is not None:
            require_type("since", since, PersistedSessionRead)
        retrying = AsyncRetrying(
            stop=stop_after_attempt(require_int("attempts", attempts, 1)),
            wait=wait_random_exponential(multiplier=0.01, max=self._namespace.options.retry_max_delay),
            retry=retry_if_exception_type(HeadRevisionConflict) & retry_if_not_exception_type(SessionExists),
            reraise=True,
        )
        read, refused = since, dict[str, HeadRevisionConflict]()
        scope = FullGraph() if since is None else since.scope
        async for attempt in retrying:
            with attempt:
                if read is None:
                    read = await self._seen(await self._reader.load(scope))
                else:
                    read = await self.refresh(read)
                made = fn(read)
                commit = await made if isawaitable(made) else made
                require_type("the result of fn", commit, RuntimeCommit)
                if commit.commit_id in refused:
                    raise refused[commit.commit_id]
                if commit.expected_head_revision is None or commit.expected_head_revision is SEEN:
                    revision, builds_on = (0, None) if read is None else (read.head_revision, read.commit_id)
                    commit = replace(commit, expected_head_revision=revision, builds_on=commit.builds_on or builds_on)
                try:
                    return await self.commit_runtime_state(commit, ttl=ttl, durability=durability)
                except HeadRevisionConflict as conflict:
                    refused[commit.commit_id] = conflict
                    raise
                except OutcomeUnknown as error:
                    error.commit = commit
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    # Pending input

    async def enqueue_input(
        self, item: Any, input_id: str | None = None, *, durability: Durability | None = None
    ) -> PendingInput:
        """Store what a user sent while a turn was running, until a commit consumes it.

        Inputs are pending in the order of the calls. A commit that names their ids in `RuntimeCommit.consumes` consumes
        them, all or none, so that each is answered once. An input that a worker read before it died stays pending.

        `item` is any JSON. `input_id` identifies the input; without one it is made here. The same id with the same item
        is one input: a call that is sent again returns the input as it is stored. After a commit has consumed it, the
        call adds nothing, and returns it with `enqueued_at` None. That holds for the last 128 consumed inputs of the
        session.

        It needs no lease, and does not change the head's revision or the session's deadline. Inputs expire and are
        deleted with their session. A session without a commit begins with its first input: it belongs to the handle's
        owner, is listed, and has the cache's ttl from the last input on. Forks and exports have no pending inputs. A
        watch does not report inputs. `durability` (default: `StoreOptions.durability`) waits for replicas or the disk,
        and the result's `durable` reports whether they confirmed the input. One round trip; two for a trusted caller
        that does not know the owner of a session without a commit.

        Raises:
            InvalidRecord: the item is not JSON, or the id is invalid; the error names it.
            CommitTooLarge: the item is over `StoreOptions.max_pending_input_bytes`.
            InputsFull: the session has 128 pending inputs, or too many bytes of them. Nothing was written.
            InputIdReused: another input has this id. Nothing was written.
            OwnerMismatch, SessionDeleted: the session is another owner's, or was deleted; nothing was written.
            Corrupt, SessionEvicted: the session is damaged or incomplete; nothing was written.
            OutcomeUnknown: the reply was lost; call again with the error's `input_id`.
        """
        durability = require_durability("durability", durability) or self._namespace.options.durability
        pending, owner = await self._inputs.enqueue(item, input_id, self._expected_owner, durability)
        self._remember_owner(owner)
        return pending

    async def pending_inputs(self) -> list[PendingInput]:
        """Load the inputs that no commit has consumed, the first one first; empty if there are none.

        Empty also if the session is another owner's. One round trip, O(rows of the ledger + pending inputs).

        Raises:
            Corrupt, SessionEvicted: an input or the head is damaged, or a key of the session is missing.
        """
        return await self._inputs.pending()

    async def save_session_meta(self, meta: SessionMeta) -> None:
        """Replace the meta record. The head and its revision do not change. One round trip.

        Raises:
            SessionBindingMismatch: the record is for another session.
            InvalidRecord: a field cannot be stored; the error names it.
            OwnerMismatch, SessionDeleted: the session is another owner's, or was deleted; nothing was written.
            OutcomeUnknown: the reply was lost; call again.

        Source: RuntimePersistence::save_session_meta.
        """
        require_type("meta", meta, SessionMeta)
        if meta.session_id != self.session_id:
            raise SessionBindingMismatch(self.session_id, meta.session_id)
        self._remember_owner(await self._meta.save(meta, self._expected_owner))

    async def create_meta(self, meta: SessionMeta, ttl: float | Keep | None) -> None:
        """Write the meta record if there is none."""
        self._remember_owner(await self._meta.create(meta, self._expected_owner, own_ttl_ms(ttl)))

    async def set_title(self, title: str) -> None:
        """Rename the session: change the `session_name` of its meta record, and nothing else.

        Without a meta record one is made, with the title and the time. A concurrent `save_session_meta` is not lost:
        the script compares the stored record with the one that the client read, and after a change the client reads
        again. Two round trips.

        Raises:
            InvalidRecord: the title cannot be stored.
            OwnerMismatch, SessionDeleted: the session is another owner's, or was deleted; nothing was written.
            OutcomeUnknown: the reply was lost; call again.
        """
        require_type("title", title, str)
        self._remember_owner(await self._meta.rename(title, self._expected_owner))

    @property
    def _expected_owner(self) -> str:
        """The owner that the session is expected to have; empty for none."""
        return self._keys.access or self._last.owner

    def _remember_owner(self, owner: str) -> None:
        self._last = replace(self._last, owner=owner)

    async def touch(self, *, ttl: float | Keep | None = KEEP) -> bool:
        """Restart the session's ttl, as a commit does; False if the session does not exist.

        The head, the revision and the place in the catalogue do not change. `ttl` becomes the session's own, in
        seconds; None for never. One round trip if this handle knows the refs that the head holds, else two.

        Raises:
            OwnerMismatch, SessionDeleted: the session is another owner's, or was deleted; its deadline does not change.
            SessionEvicted, Corrupt: a key of it is missing or unreadable; its deadline does not change.
            OutcomeUnknown: the reply was lost; call again, the operation is idempotent.
        """
        own_ttl = own_ttl_ms(ttl)
        namespace = self._namespace
        for _ in range(MAX_ATTEMPTS):
            call = commands.lifecycle.touch_call(
                self._keys,
                self._last.components or NO_REFS,
                self._expected_owner,
                namespace.ttl_ms,
                namespace.options,
                own_ttl_ms=own_ttl,
            )
            outcome = commands.lifecycle.touch_reply(call, self._keys, await namespace.run(call))
            if not isinstance(outcome, commands.calls.RefsMoved):
                return outcome
            self._last = replace(self._last, components=outcome.refs, owner=outcome.owner)
        raise self._contended("touch")

    # Turns in flight

    def stream(
        self,
        generation_id: str,
        ttl: float = 30.0,
        keep: float = 120.0,
        max_events: int = 2048,
        max_bytes: int = 16 * 1024 * 1024,
    ) -> StreamWriter:
        """Return the producer of a stream: `async with store.stream("gen-1") as out`, then `await out.send(data)`.

        A generation is one attempt to produce an answer. Its stream has one producer and is never used again, so give
        each attempt a new id. Any number of processes follow it. The session need not exist, and a commit neither needs
        nor changes a stream, unless it names it in `RuntimeCommit.finishes`.

        `ttl`: seconds without a sign of life until the stream counts as lost. The block gives signs of life by itself,
        three within a ttl. A lost stream stays lost. `keep`: seconds for which the stream can be followed after its
        end. `max_events` and `max_bytes` bound what is stored: the oldest events are dropped, and a follower that has
        not read them gets `StreamGap`. A session can have 64 streams, those that ended and are kept included.

        Entering and leaving the block take one round trip each. Streams have deadlines of their own: the ttl of the
        session does not change them. A deletion of the session removes them; forks and exports do not copy them.

        Raises:
            InvalidRecord: an argument is invalid.

        Entering the block raises:
            StreamBusy: the generation has a stream: it is being produced, or ended less than `keep` seconds ago.
            CommitTooLarge: the session has 64 streams.
            OwnerMismatch, SessionDeleted, SessionEvicted, Corrupt: as a commit does.
            OutcomeUnknown: the reply was lost; use a new generation id.
        """
        return self._streams.stream(generation_id, ttl, keep, max_events, max_bytes)

    def follow(
        self, generation_id: str, after: str | None = None, wait: float = 0.0
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of a stream that follow a cursor, then those that are sent meanwhile, until it finishes.

        Each event is yielded once and in order, across reconnects and failovers, by any process. `after` is the
        `cursor` of the last event that the caller has; None begins with the first one. `wait`: seconds for which the
        follower waits for a stream that does not exist yet, or does not have that cursor yet. A malformed argument is
        refused by this call, everything else when the iteration begins.

        All followers of a cache share one connection for each server. A message on it triggers one read for all
        followers of a stream. If messages are lost, a poll finds events within 3 s. The process keeps the last 1,024
        events or 1 MB of a stream for its followers. One that is further behind reads from the server.

        Leaving the loop ends the follower. Closing the iterator (`aclose`, or `contextlib.aclosing`) ends it
        immediately.

        Raises:
            InvalidRecord: `after` is no cursor, or one of another stream, or of an event that was not sent. Another
                argument is invalid.
            StreamGone: the generation has no stream, or expired while it was followed. Also if the session is another
                owner's.
            StreamGap: events after the cursor were dropped, and this process does not have them; `oldest` is the cursor
                to continue from.
            StreamFailed: the producer raised an error, or is lost. All of its events were yielded before.
            SessionDeleted: the session was deleted.
            Corrupt, SessionEvicted: an event is damaged, or a key of the stream is missing.
            BackendError: the server was unreachable for 60 s, or for the time of a call; follow again.
        """
        return self._streams.follow(generation_id, after, wait)

    async def request_stop(self, generation_id: str) -> bool:
        """Ask the producer of a stream to stop; False if there is no running stream. One round trip.

        The producer's `StreamWriter.stop_requested` becomes True within a fraction of a second, in any process. The
        request ends nothing by itself: the producer has to leave its block. It is kept with the stream, so a producer
        that cannot be reached gets it later.

        Raises:
            OwnerMismatch, SessionDeleted: the session is another owner's, or was deleted.
            OutcomeUnknown: the reply was lost; call again, the operation is idempotent.
        """
        return await self._streams.request_stop(generation_id)

    async def finish_stream(self, claim: StreamClaim) -> None:
        """Finish a stream whose turn is stored already. One round trip; none if it has ended in this process.

        A commit with `RuntimeCommit.finishes` does that by itself. A stream that was lost or has ended stays as it is.

        Raises:
            InvalidRecord, SessionBindingMismatch: the claim is invalid, or is of another session.
            BackendError, OutcomeUnknown: the server was unreachable; call again.
        """
        await self._streams.finish(claim)

    async def load_stream(self, generation_id: str) -> StreamInfo | None:
        """Load the state of a stream; None if it is unknown, expired or deleted, or the session is another owner's.

        One round trip.

        Raises:
            Corrupt, SessionEvicted: the stream is damaged, or one of its keys is missing.
        """
        return await self._streams.load(generation_id)

    # Leases

    async def acquire_lease(
        self,
        owner: str | None = None,
        ttl: float = 30.0,
        *,
        token: str | None = None,
        wait: float = 0.0,
        reenter: bool = False,
    ) -> Lease:
        """Acquire the exclusive right to work on the session for `ttl` seconds.

        Only one worker at a time then pays for a turn, such as for a model call.

        Each call is a claim of its own, also of an owner that holds the lease. `owner` names the worker for others; by
        default a name is made for the call. `token` identifies the claim and is made by default. Acquiring again with
        the same owner and token while the lease is held is one claim. `wait`: seconds during which attempts begin while
        another claim holds the lease, with random pauses.

        `reenter=True` is for a worker that restarted: it takes over the lease that the same owner holds, with a new
        token and generation. The former token becomes invalid. `owner` must then be a name that only this worker uses.

        A call that is cancelled holds no lease: it releases what it acquired, and waits for that for 2 s at most. If it
        was given a `token`, the caller may hold the lease already, so it stays held. Ask again with that token.

        The generation is one higher for each new holder, whether the lease was released or expired. It is kept as long
        as the session. In a session without any commit it is forgotten a day after the last lease.

        A held lease keeps its session alive: a session that would expire first is touched, and no commit or touch makes
        it expire earlier, however short the ttl. One round trip.

        Raises:
            LeaseBusy: another claim holds the lease; the error has the owner and the deadline.
            OwnerMismatch: the session is not that of the handle's owner (a user or tenant, not the lease's owner).
            SessionDeleted, SessionEvicted, Corrupt: the session was deleted, or is incomplete or damaged.
            OutcomeUnknown: the reply was lost; call again with the same arguments and the error's `token`.
        """
        return await self._leasing.acquire(owner, ttl, token, wait, reenter=reenter)

    def adopt_lease(self, lease: Lease) -> Lease:
        """Bind a lease from another process (`Lease.from_json`) to this store, to renew and release it. No I/O.

        Raises:
            SessionBindingMismatch: the lease is of another session.
        """
        return self._leasing.adopt(lease)

    async def load_lease(self) -> LeaseInfo | None:
        """Load who holds the session's lease, or held it until it expired; None if it is free. One round trip.

        None also if the session is another owner's. Use it for display only. Whether a worker may write is decided when
        its commit is checked.

        Raises:
            Corrupt: the stored lease is unreadable.
        """
        return await self._leasing.load()

    async def delete(
        self, *, reusable: bool = False, builds_on: str | None = None, durability: Durability | None = None
    ) -> DeleteReport:
        """Delete this session. See `SessionCache.delete`."""
        require_type("reusable", reusable, bool)
        if builds_on is not None:
            require_id("builds_on", builds_on)
        namespace, request, earlier = self._namespace, uuid4().hex, Earlier()
        generations: Sequence[str] = ()
        durability = require_durability("durability", durability) or namespace.options.durability
        for _ in range(MAX_ATTEMPTS):
            call = commands.lifecycle.delete_call(
                self._keys,
                self._last.components or NO_REFS,
                self._expected_owner,
                request,
                namespace.options,
                generations=generations,
                sharded=namespace.sharded,
                reusable=reusable,
                builds_on=builds_on,
            )
            reply, durable = await namespace.run_durably(call, durability, earlier)
            outcome = commands.lifecycle.delete_reply(call, self._keys, reply)
            if isinstance(outcome, DeleteReport):
                self._last = Seen()
                if durability is not None and (earlier.maybe_applied or not outcome.existed):
                    durable = await namespace.confirm(self._keys, durability)
                return replace(outcome, durable=durable)
            self._last = replace(self._last, components=outcome.refs, owner=outcome.owner)
            generations = outcome.generations
        raise self._contended("delete")

    def _contended(self, verb: str) -> BackendError:
        return BackendError(
            f"session {self.session_id!r} changed during each of {MAX_ATTEMPTS} attempts to {verb} it; retry later"
        )

    async def tombstone_nodes(self, ids: Sequence[str], *, durability: Durability | None = None) -> TombstoneReport:
        """Hide nodes from every read; their bytes stay until `vacuum`.

        Unknown and already hidden ids are skipped. The head, its revision and the leaf do not change. Hiding a node of
        the active path truncates the path there. One round trip per 1,000 ids.

        A failover can undo what only a lost primary had. `durability` (default: `StoreOptions.durability`) waits for
        replicas or the disk in the same round trip. The report's `durable` is False if that was not confirmed in time.

        Raises:
            OwnerMismatch: the session is another owner's; nothing was hidden.
            Corrupt: an index entry points outside the log; nothing of that chunk was hidden.
            OutcomeUnknown: the reply was lost; call again, the operation is idempotent.

        Source: RuntimePersistence::tombstone_nodes.
        """
        durability = require_durability("durability", durability) or self._namespace.options.durability
        return await self._maintenance.tombstone(require_ids("ids", ids), durability)

    async def vacuum(self) -> VacuumReport:
        """Free the records of tombstoned nodes, and return how many were freed.

        One round trip reads the positions of all tombstones, branches and nodes, in about 0.5 µs each. Then one script
        frees up to 500 tombstones, fewer in a log of more than 10,000 nodes: each holds the server for about 10 ms.
        Between two of them other clients work, and the session is sound. A call that ends early has freed some nodes,
        and the next call frees the others.

        Their ids can then be used again, except those that a live node names as its parent.

        Raises:
            OwnerMismatch: the session is another owner's; nothing was freed.
            BackendError: the graph was replaced during each of 8 reads; nothing was freed.
            OutcomeUnknown: the reply was lost; call again for the rest. Freed nodes are not counted twice.

        Source: RuntimePersistence::vacuum.
        """
        return await self._maintenance.vacuum()

    async def gc_unreachable(self) -> GcReport:
        """Delete the blobs of this session's shard that no session holds.

        `root_count` is 1 if the session has a head. `retained_blob_count` counts its manifest and the distinct blobs
        that it holds. Both are 0 if the session does not exist, or belongs to another owner than the handle's. The
        blobs of the shard are collected in these cases, too. The holder counts decide, without a scan. It is safe while
        commits are in flight. Three round trips, and two more for every 500 blobs.

        Raises:
            Corrupt: the head cannot be read; nothing was deleted.
            OutcomeUnknown: the reply was lost, or a later step failed; call again for the rest.

        Source: RuntimePersistence::gc_unreachable.
        """
        return await self._maintenance.collect()
