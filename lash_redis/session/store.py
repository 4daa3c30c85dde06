"""One session's store: sends what `commands.py` makes and brings the replies back."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Literal, NoReturn, TypeVar
from uuid import uuid4
from weakref import ref as weak

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from lash_redis._validate import require_id, require_int, require_type
from lash_redis.errors import (
    BackendError,
    Corrupt,
    HeadRevisionConflict,
    InvalidLeaf,
    InvalidRecord,
    OutcomeUnknown,
    SessionBindingMismatch,
    SessionDeleted,
    SessionEvicted,
    StoreError,
)
from lash_redis.models import (
    BlobRef,
    DeleteReport,
    FullGraph,
    GcReport,
    LeaseInfo,
    PersistedSessionRead,
    ReplaceFull,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionGraph,
    SessionHeadMeta,
    SessionMeta,
    SessionNodeRecord,
    SessionReadScope,
    VacuumReport,
)
from lash_redis.options import KEEP, Durability, Keep, StoreOptions, own_ttl_ms, require_durability
from lash_redis.protocol import commands
from lash_redis.protocol.component_refs import NO_REFS
from lash_redis.protocol.prepared_commit import PreparedCommit, prepare_commit
from lash_redis.session.lease import Lease
from lash_redis.session.leasing import Leasing
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.publish import Publisher
from lash_redis.session.reader import MAX_TURNS, Reader
from lash_redis.session.seen import Seen
from lash_redis.session.watch import PATIENCE, POLL, SessionWatch

log = logging.getLogger("lash_redis")

Answer = TypeVar("Answer")


class RedisSessionStore:
    """`RuntimePersistence` for one session. Made by `SessionCache.session`; making one does no I/O.

    A handle is cheap and may be made for every request. It remembers the refs of the revision it last saw, so that a
    commit after a load (or after a commit) is one round trip; any number of handles may serve one session.
    """

    def __init__(self, namespace: Namespace, session_id: str) -> None:
        self._namespace = namespace
        self._keys = namespace.layout.session(require_id("session_id", session_id))
        self._reader = Reader(namespace, self._keys)
        self._leasing = Leasing(namespace, self._keys, self.touch)
        self._publisher = Publisher(namespace, self._reader, self._leasing)
        self._last = Seen()
        self._commits = 0

    @property
    def session_id(self) -> str:
        return self._keys.session_id

    def __repr__(self) -> str:
        return f"RedisSessionStore({self.session_id!r}, namespace={self._namespace.layout.namespace!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RedisSessionStore holds connections and cannot be pickled: pass the session id to the other process, "
            "and call session(session_id) on a cache of its own"
        )

    # Reads

    async def load_session(self, scope: SessionReadScope, *, decode: bool = False) -> PersistedSessionRead | None:
        """The session at one revision, or None if it has no head.

        `FullGraph()` has every live node in insertion order and the head's leaf verbatim. `ActivePath()` has the nodes
        from the root to the head's leaf, `ActivePath(x)` those to `x` (none if `x` is unknown or tombstoned). Nodes,
        config, ledger and components are decoded when they are accessed. One round trip if this process knows the tool
        state, else two; an active path takes two. O(nodes returned). With `StoreOptions.slide_on_load` a `touch`
        follows: one round trip more.

        Accessing many payloads in a row holds the event loop: 1 MB of small messages for 6 to 10 ms, 1 MB of table rows
        for some 13. With `decode` all nodes are decoded before this returns, and other tasks run every 2 ms, or after a
        node that takes longer. In total small messages then take up to 1.4 times as long, table rows no longer.

        Raises:
            UnsupportedReadScope: `scope` is neither.
            InvalidLeaf: `ActivePath()`, and the head's leaf is tombstoned (with strict checks).
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is gone. A node's record, the
                config, the ledger and a private component are verified when they are decoded: then accessing them
                raises Corrupt.

        Source: RuntimePersistence::load_session.
        """
        return await self._seen(await self._ask(lambda reader: reader.load(scope, decode=decode)))

    async def _ask(self, question: Callable[[Reader], Awaitable[Answer | None]]) -> Answer | None:
        """The answer of a replica where `read_from` asks for one and it has the session whole, else of the primary."""
        if self._namespace.options.read_from == "replica":
            with suppress(Corrupt, InvalidLeaf, BackendError):  # it may be behind, so the primary decides
                answer = await question(Reader(self._namespace.replicas, self._keys))
                if answer is not None:
                    return answer
        return await question(self._reader)

    async def refresh(self, read: PersistedSessionRead) -> PersistedSessionRead | None:
        """What `load_session(read.scope)` would return now, made of `read` and what is new since; None without a head.

        If nothing is new it returns `read` itself. That takes one round trip of a few hundred bytes for any size of
        session. Up to 64 new nodes come in the same round trip, more in a second one. Components that this process
        lacks take one more, as in `load_session`. Nodes that `read` has decoded stay decoded.

        It loads the session again if `read` is no longer a part of it: its graph was replaced, it was deleted and began
        again, or a failover removed commits. It does the same if the path turned to nodes that `read` does not hold, if
        nodes were tombstoned and freed since, and if links are by id alone. For a read without an origin (see
        `PersistedSessionRead`) it loads the full graph. With `StoreOptions.slide_on_load` a `touch` follows.

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
        head, base = origin.head, weak(read.graph.lineage.base)
        self._last = Seen(head.components, (head.facts.revision, head.body.commit_id), head.facts.epoch, base)
        if not self._namespace.options.slide_on_load:
            return read
        try:
            return read if await self.touch() else None  # it expired in between
        except SessionDeleted:
            return None
        except SessionEvicted:
            return read  # whole by what this process had of it; but what is torn is not kept alive

    async def load_head(self) -> SessionHeadMeta | None:
        """Where the session stands, without its graph or components. One round trip, O(rows of the ledger)."""
        head = await self._ask(Reader.head)
        if head is None:
            return None
        seen = head.facts.revision, head.body.commit_id
        base = self._last.base if seen == self._last.head else None
        self._last = Seen(head.components, seen, head.facts.epoch, base)
        return head.meta()

    async def load_node(self, node_id: str) -> SessionNodeRecord | None:
        """A live node, on the active path or not; None if it is unknown or tombstoned. One round trip.

        Source: RuntimePersistence::load_node.
        """
        return await self._reader.node(node_id)

    async def load_session_meta(self) -> SessionMeta | None:
        """The meta record, or None. One round trip. Source: RuntimePersistence::load_session_meta."""
        return await self._ask(Reader.meta)

    async def watch(
        self, since: commands.watching.Since = None, *, poll: float = POLL, patience: float = PATIENCE
    ) -> AsyncGenerator[int, None]:
        """The head's revision, whenever its commit is not the one seen last; several commits may be told as one.

        `since` is the head that the caller has seen: what a load, a look or a commit answered, or the revision alone
        (0: any head is news; but only what was answered tells a revision from one that came round again after a
        failover). None: what comes after this call's own first look. A session that is not there yet is waited for.

        None is missed, across reconnects and failovers; after a failover that lost a commit, a revision may come again,
        or a lower one. Meta, tombstones and touches are no news. A revision is known a fraction of a millisecond after
        its commit; one that was not said (by a writer who may not publish, on a connection that died silently) within
        `poll` seconds. Takes a connection of the client of its own, and two commands every `poll` seconds: for many
        sessions see `SessionCache.watch`.

        Leaving the loop ends it, at once where the iterator is closed (`aclose`, or `contextlib.aclosing`).

        Raises:
            SessionDeleted: the session was deleted, now or before.
            SessionGone: it was there and is not: expired, evicted, or lost in a failover.
            Corrupt, SessionEvicted: its head is unreadable, or gone while other keys of it remain.
            BackendError: the server refused, or an outage outlasted `patience` seconds; watch again, with the last
                revision as `since`.
        """
        async with SessionWatch(self._namespace, poll=poll, patience=patience) as watch:
            watch.add(self.session_id, since)
            async for change in watch:
                if change.ended is not None:
                    raise change.ended
                yield change.revision

    # Writes

    async def commit_runtime_state(
        self, commit: RuntimeCommit, *, ttl: float | Keep | None = KEEP, durability: Durability | None = None
    ) -> RuntimeCommitResult:
        """Publish the next revision, all of it or nothing; the session lives its ttl anew.

        The same commit sent again, by whoever, returns the first attempt's result with `replayed=True` while it is
        among the session's last 32 (later it is refused by its revision, or, with `expected_head_revision=None`, which
        compares nothing and overwrites whatever head there is, applied again). One round trip when this handle knows
        the refs the head holds (after a load or a commit, or when the commit carries them); a second where it does not
        or where a blob turns out not to be stored. Cost grows with the commit, not with the session.

        `ttl` becomes the session's own: seconds it outlives its last commit or touch, None for ever. Without it the
        session keeps its own, or goes by the cache's. It is no part of a commit's meaning: a retry does not change it.

        A commit that names the revision this handle saw last, and no `builds_on`, builds on the commit that was seen.

        A `ReplaceFull` of a graph that grew out of a read of this session, or out of a graph that this cache committed
        to it, by its own methods (`append_*`, `with_leaf`, `first`), sends what comes behind the stored nodes that it
        keeps, and the ids of those it drops. It is a replacement all the same, also to a retry. Nodes that a caller
        accessed or made may have been changed in place and are compared, about 2 µs each; from the first that differs
        on, all are sent. The limits of `StoreOptions` count what is sent. Any other graph is sent whole: one put
        together by hand, one that keeps less than half of the stored nodes, and, in a second round trip, one of another
        log than is stored or of a log with tombstones.

        `durability` (default: that of `StoreOptions`) waits, in the same round trip, until the commit is as safe as it
        says. One that could not be confirmed in time is made all the same: `durable` of the result is then False.

        Raises:
            SessionBindingMismatch: the commit is for another session.
            SessionDeleted: the session was deleted.
            LeaseLost: the lease it was made under is not held any more.
            InvalidRecord, CommitTooLarge: it cannot be stored as it is.
            HeadRevisionConflict, SessionGone: the head is not the one it was built on; load, decide, commit anew.
            CommitIdReused: its id was used for another meaning.
            NodeIdCollision, InvalidParent, InvalidLeaf: its nodes do not fit the graph.
            MissingBlob: it names a component by ref that is not stored.
            Corrupt, SessionEvicted: the session cannot be built upon.
            OutcomeUnknown: the reply was lost; send the same commit again. Where the receipt is gone, too, because more
                than 32 others committed before this call could, a node that it adds settles it; not so one that adds
                none, and where others have dropped nodes since.

        Source: RuntimePersistence::commit_runtime_state.
        """
        require_type("commit", commit, RuntimeCommit)
        if commit.session_id != self.session_id:
            raise SessionBindingMismatch(self.session_id, commit.session_id)
        own_ttl, options = own_ttl_ms(ttl), self._namespace.options
        if require_durability("durability", durability) is not None:
            options = replace(options, durability=durability)
        seen = self._last
        if commit.builds_on is None and seen.head and commit.expected_head_revision == seen.head[0]:
            commit = replace(commit, builds_on=seen.head[1])
        builds_on_seen = (commit.expected_head_revision, commit.builds_on) == seen.head
        base = seen.base() if seen.base is not None and builds_on_seen else None
        if isinstance(commit.graph, ReplaceFull):
            require_type("RuntimeCommit.graph.graph", commit.graph.graph, SessionGraph)
            base = commit.graph.graph.lineage.base
        log = None if base is None else self._namespace.logs.newest(base, self._keys.log)
        prepared = prepare_commit(commit, options, self._namespace.written, log)
        try:
            result = await self._publish(prepared, own_ttl, options)
        except OutcomeUnknown:
            self._last = replace(self._last, unsettled=prepared.fingerprint())
            raise
        await self._collect_if_due()
        return result

    async def begin(
        self,
        commit: RuntimeCommit,
        origin: commands.commit.Origin,
        blobs: Mapping[str, bytes],
        *,
        options: StoreOptions,
        ttl: float | Keep | None = KEEP,
    ) -> RuntimeCommitResult:
        """Publish the commit that a fork or an import begins a session with, if there is no such session.

        `blobs` are the bytes of the components that the commit names by ref.

        Raises:
            SessionExists: there is one.
        """
        prepared = prepare_commit(commit, options, self._namespace.written)
        prepared.bodies = {**prepared.bodies, **{BlobRef(ref): data for ref, data in blobs.items()}}
        prepared.meaning = origin.meaning or prepared.meaning
        return await self._publish(prepared, own_ttl_ms(ttl), options, origin)

    async def _publish(
        self,
        prepared: PreparedCommit,
        own_ttl: int | None,
        options: StoreOptions,
        origin: commands.commit.Origin | None = None,
    ) -> RuntimeCommitResult:
        published = await self._publisher.publish(prepared, self._last, options, own_ttl, origin)
        self._last = published.seen
        return published.result

    async def _collect_if_due(self) -> None:
        every = self._namespace.options.gc_policy.auto_run_every_commits
        self._commits += 1
        if every and self._commits % every == 0:
            try:
                await self.gc_unreachable()
            except StoreError:
                # The commit stands; what could not be collected now is collected the next time or expires.
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
        """The way to write: `fn` makes a commit of what it sees; on a conflict it sees what is new and is asked again.

        `fn` is called once per attempt with the session as it then is, and makes a new commit each time: one that was
        refused is not sent again. It sees None before the first commit, and where the session is gone (it expired, was
        evicted or lost), also behind `since`: its commit then begins it anew, without meta or a ttl of its own. A
        commit without `expected_head_revision` is made to build on what `fn` was shown. Attempts are `attempts` at the
        most, with random exponential pauses from 10 ms; so what is paid for, such as a model call, belongs before
        `update` or under a lease, not into `fn`.

        The first attempt loads the session, or refreshes `since`, a read of it that the caller still has; each further
        one refreshes what the one before saw. So a process that keeps the read of its last turn makes the next in two
        round trips, and a conflict costs what the others wrote, however long the session is. `fn` sees what `since` is
        a read of: its active path, if it is one; without `since`, the full graph.

        Raises:
            SessionBindingMismatch: `since` or the commit is of another session.
            HeadRevisionConflict: the last attempt's, when all lost.
            OutcomeUnknown: its `commit` is the one to send again; calling `update` again could make the turn twice.
            What else `refresh` and `commit_runtime_state` raise, and `fn`: none of it is tried again.
        """
        if not callable(fn):
            raise InvalidRecord("fn", f"expected a function, got {type(fn).__name__}")
        if since is not None:
            require_type("since", since, PersistedSessionRead)
        retrying = AsyncRetrying(
            stop=stop_after_attempt(require_int("attempts", attempts, 1)),
            wait=wait_random_exponential(multiplier=0.01, max=self._namespace.options.retry_max_delay),
            retry=retry_if_exception_type(HeadRevisionConflict),
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
                require_type("the commit that fn made", commit, RuntimeCommit)
                if commit.commit_id in refused:
                    raise refused[commit.commit_id]
                if commit.expected_head_revision is None:
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

    async def save_session_meta(self, meta: SessionMeta) -> None:
        """Replace the meta record; the head and its revision stay. One round trip.

        Raises:
            SessionBindingMismatch: the record is for another session.
            InvalidRecord: names the field that cannot be stored.

        Source: RuntimePersistence::save_session_meta.
        """
        require_type("meta", meta, SessionMeta)
        if meta.session_id != self.session_id:
            raise SessionBindingMismatch(self.session_id, meta.session_id)
        await self._write_meta(meta, "save")

    async def create_meta(self, meta: SessionMeta, ttl: float | Keep | None) -> None:
        """Write the meta record unless there is one."""
        await self._write_meta(meta, "create", own_ttl_ms(ttl))

    async def _write_meta(self, meta: SessionMeta, mode: Literal["save", "create"], own_ttl: int | None = None) -> None:
        namespace = self._namespace
        call = commands.lifecycle.meta_call(
            self._keys, meta, mode, namespace.ttl_ms, namespace.options, own_ttl_ms=own_ttl
        )
        await self._run(call)

    async def touch(self, *, ttl: float | Keep | None = KEEP) -> bool:
        """Let the session live its ttl from now on, as a commit would; False if there is no such session.

        Head, revision and place in the catalogue stay. `ttl` becomes the session's own: seconds, None for ever. One
        round trip when this handle knows the refs the head holds, else two.

        Raises:
            SessionDeleted: the session was deleted.
            SessionEvicted, Corrupt: a part of it is gone or unreadable; its deadline stays.
            OutcomeUnknown: the reply was lost; call again.
        """
        own_ttl = own_ttl_ms(ttl)
        namespace = self._namespace
        for _ in range(MAX_TURNS):
            call = commands.lifecycle.touch_call(
                self._keys, self._last.components or NO_REFS, namespace.ttl_ms, namespace.options, own_ttl_ms=own_ttl
            )
            outcome = commands.lifecycle.touch_reply(call, self._keys, await namespace.run(call))
            if not isinstance(outcome, commands.calls.RefsMoved):
                return outcome
            self._last = replace(self._last, components=outcome.refs)
        raise BackendError(f"session {self.session_id!r} changed under {MAX_TURNS} attempts to touch it")

    # Leases

    async def acquire_lease(
        self, owner: str, ttl: float = 30.0, *, token: str | None = None, wait: float = 0.0
    ) -> Lease:
        """The right to work on the session alone for `ttl` seconds, so that no other worker pays for the same turn.

        `owner` names the worker, as nobody else does; the same owner asking again takes its own lease over, with a new
        token: the former one is worth nothing any more. `token` is made here unless given; asking again with the same
        token, while the lease is held, is one claim. The generation is one higher at each change of hands, whether the
        lease was released or ran out, as long as the session lives; one that nobody ever committed to is forgotten a
        day after its last lease. `wait`: seconds to keep asking while somebody else holds it, with random pauses.

        A held lease keeps its session alive: one that would expire first is touched, and no commit or touch lets it
        end earlier, however short its ttl. One round trip.

        Raises:
            LeaseBusy: somebody else holds it; says who and until when.
            SessionDeleted, SessionEvicted, Corrupt: there is nothing to work on.
            OutcomeUnknown: the reply was lost; asking again with the same owner settles it.
        """
        return await self._leasing.acquire(owner, ttl, token, wait)

    def adopt_lease(self, lease: Lease) -> Lease:
        """A lease that came from elsewhere (`Lease.from_json`), to be renewed and released here. No I/O.

        Raises:
            SessionBindingMismatch: it is another session's.
        """
        return self._leasing.adopt(lease)

    async def load_lease(self) -> LeaseInfo | None:
        """Who holds the session's lease, or held it until its time was up; None if it is free. One round trip.

        For people to look at: who may write is known only to the commit that is checked.
        """
        return await self._leasing.load()

    async def delete(self) -> DeleteReport:
        """`SessionCache.delete` for this session."""
        namespace, request = self._namespace, uuid4().hex
        for _ in range(MAX_TURNS):
            call = commands.lifecycle.delete_call(
                self._keys, self._last.components or NO_REFS, request, namespace.options, sharded=namespace.sharded
            )
            outcome = commands.lifecycle.delete_reply(call, self._keys, await namespace.run(call))
            if isinstance(outcome, DeleteReport):
                self._last = Seen()
                return outcome
            self._last = replace(self._last, components=outcome.refs)
        raise BackendError(f"session {self.session_id!r} changed under {MAX_TURNS} attempts to delete it")

    async def _run(self, call: commands.calls.ScriptCall) -> list[Any]:
        reply: list[Any] = await self._namespace.run(call)
        commands.calls.status(call, reply, self._keys)
        return reply

    async def tombstone_nodes(self, ids: Sequence[str]) -> None:
        """Hide `ids` from every read; their bytes stay until `vacuum`.

        Unknown and already hidden ids are skipped. The head, its revision and the leaf do not change: hiding a node of
        the active path cuts the path there. One round trip per 1,000 ids.

        Raises:
            Corrupt: an entry points outside the log; nothing of that chunk was hidden.
            OutcomeUnknown: the reply was lost; call again, hiding twice is hiding once.

        Source: RuntimePersistence::tombstone_nodes.
        """
        if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
            raise InvalidRecord("ids", f"expected a sequence of node ids, got {type(ids).__name__}")
        for at, node_id in enumerate(ids):
            require_id(f"ids[{at}]", node_id)
        for at in range(0, len(ids), commands.maintenance.TOMBSTONE_CHUNK):
            call = commands.maintenance.tombstone_call(self._keys, ids[at : at + commands.maintenance.TOMBSTONE_CHUNK])
            with continuing(at, f"of {len(ids)} ids were hidden"):
                await self._run(call)

    async def vacuum(self) -> VacuumReport:
        """Free the records of tombstoned nodes; returns how many. One round trip per 500.

        An id may be used again afterwards, unless a live node names it as its parent now: then it stays reserved.

        Raises:
            OutcomeUnknown: the reply was lost; call again for the rest (what was freed is not counted twice).

        Source: RuntimePersistence::vacuum.
        """
        removed, left = 0, 1
        while left:
            with continuing(removed, "nodes were freed"):
                reply = await self._run(commands.maintenance.vacuum_call(self._keys))
            removed, left = removed + reply[2], reply[3]
        return VacuumReport(removed_node_count=removed)

    async def gc_unreachable(self) -> GcReport:
        """Delete the blobs of this session's shard that no session holds.

        `root_count` is 1 if the session has a head; `retained_blob_count` counts its manifest and the distinct blobs
        it holds. Works from holder counts, never by scanning; safe beside commits in flight. Three round trips, and
        two more for every 500 blobs.

        Raises:
            Corrupt: the head cannot be read; nothing was deleted.
            OutcomeUnknown: the reply was lost, or a later step failed; call again for the rest.

        Source: RuntimePersistence::gc_unreachable.
        """
        head = await self._reader.head()
        return GcReport(
            root_count=0 if head is None else 1,
            retained_blob_count=0 if head is None else 1 + len(set(filter(None, head.components.refs))),
            deleted_blob_count=await self._namespace.collect(self._keys.shard),
        )
