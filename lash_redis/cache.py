"""The entry point: a `SessionCache` has the sessions of one namespace, and `connect` makes it from a URL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import TracebackType
from typing import NoReturn, Self

import redis.asyncio as redis

from lash_redis._validate import (
    require_callable,
    require_id,
    require_int,
    require_namespace,
    require_ref,
    require_type,
    seconds_to_ms,
)
from lash_redis.audit import Audit
from lash_redis.chat import Chat
from lash_redis.errors import InvalidRecord, SessionGone
from lash_redis.listing import PAGE, Listing, cursor_of, first_chunk
from lash_redis.models import (
    Append,
    AuditReport,
    BlobRef,
    Cursor,
    DeleteOwnedReport,
    DeleteReport,
    GcReport,
    RuntimeCommit,
    SessionPickerInfo,
    SessionPolicy,
    SessionStoreCreateRequest,
    Unchanged,
)
from lash_redis.models.json_values import check_json
from lash_redis.options import KEEP, Durability, Keep, StoreOptions, require_durability
from lash_redis.owner_deletion import delete_owned
from lash_redis.protocol import commands
from lash_redis.protocol.keys import Layout
from lash_redis.session.documents import Documents
from lash_redis.session.meta import new_meta
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.reader import Reader
from lash_redis.session.store import RedisSessionStore
from lash_redis.session.watch import PATIENCE, POLL, SessionWatch
from lash_redis.transport.backend import Connector
from lash_redis.transport.connectors import by_url, given


class SessionCache:
    """The sessions of one namespace, on one client.

    `client` is a `redis.asyncio.Redis` or `RedisCluster` that returns bytes. The cache never configures or closes it.
    A `Redis` is used through its own methods: each call takes a connection of its pool, and calls above its
    `max_connections` wait. Make it without a retry policy: a client that resends by itself hides whether a command was
    applied. From a `RedisCluster` and the client of `Sentinel.master_for` the cache only takes the settings, and opens
    connections of its own.

    `ttl` is the time from a session's last commit until it expires, in seconds; None for never. Constructing a cache
    does no I/O and needs no running event loop. One cache serves any number of sessions and concurrent tasks. A cache
    that `connect` made also serves any number of event loops, and processes forked after it was made.
    """

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster | Connector,
        namespace: str = "default",
        *,
        ttl: float | None = None,
        options: StoreOptions | None = None,
    ) -> None:
        options = StoreOptions() if options is None else options
        require_type("options", options, StoreOptions)
        self.ttl = ttl
        self.shared = Namespace(
            client if isinstance(client, Connector) else given(client),
            Layout(require_namespace(namespace), options.shards),
            options,
            0 if ttl is None else seconds_to_ms("ttl", ttl),
        )

    @property
    def namespace(self) -> str:
        return self.shared.layout.namespace

    @property
    def layout(self) -> Layout:
        """The names of the keys in which the namespace's sessions are stored."""
        return self.shared.layout

    @property
    def options(self) -> StoreOptions:
        return self.shared.options

    def __repr__(self) -> str:
        return f"SessionCache(namespace={self.namespace!r}, ttl={self.ttl!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a SessionCache holds connections and cannot be pickled: pass its URL and namespace to the other process, "
            "and call lash_redis.connect there"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.shared.close(after=error)

    async def aclose(self) -> None:
        """Close what `connect` opened: the connections of this event loop and process, and an embedded server.

        If other processes use the server's directory, the next call of one of them starts the next server.
        A client that the caller passed stays open. It closes them also if the caller is cancelled meanwhile. The caller
        then waits for that, for 2 s at most.
        """
        await self.shared.close()

    def session(self, session_id: str, *, owner: str | None = None) -> RedisSessionStore:
        """Return the store of one session. No I/O; the session need not exist.

        With an `owner`, such as a user or a tenant, the store uses the session only if it belongs to that owner.
        Another's session reads as absent, and writes to it raise `OwnerMismatch`. The first commit or write of meta
        makes a new session the owner's. Without an owner the caller is trusted, and the store uses every session.
        """
        return RedisSessionStore(self.shared, session_id, owner)

    def chat(self, session_id: str, owner: str | None = None) -> Chat:
        """Return a chat: the messages of one session in the OpenAI chat format. No I/O; the session need not exist.

        With an `owner`, the chat uses the session only if it belongs to that owner, as `session` does.
        """
        return Chat(self.session(session_id, owner=owner), self.shared)

    def documents(self, session_id: str, *, owner: str | None = None) -> Documents:
        """Return the documents of one session. No I/O; the session need not exist.

        With an `owner`, they are used only if the session belongs to that owner, as in `session`.
        """
        return Documents(self.shared, session_id, owner)

    async def create(
        self,
        request: SessionStoreCreateRequest,
        *,
        owner: str | None = None,
        title: str | None = None,
        cwd: str | None = None,
        ttl: float | Keep | None = KEEP,
    ) -> RedisSessionStore:
        """Write the meta record of a session from `request`, unless it has one, and return the session's store.

        `owner` is the user or tenant to whom the new session belongs, and the store is that owner's (see `session`).
        `title` is the record's `session_name`, by default the id. `cwd` is its working directory, by default none.
        `ttl` becomes the new session's own: seconds from its last commit or touch until it expires, None for never.
        Without it the cache's ttl applies. Idempotent. One round trip.

        Raises:
            InvalidRecord, CommitTooLarge: a field cannot be stored; the error names it.
            OwnerMismatch: the session exists and is not the owner's; nothing was written.
            SessionDeleted: the session was deleted; writes to its id are refused until the deletion marker expires.
            Corrupt, SessionEvicted: the session exists and is damaged or incomplete; nothing was written.
            OutcomeUnknown: the reply was lost; call again.

        Source: SessionStoreFactory::create_store.
        """
        require_type("request", request, SessionStoreCreateRequest)
        require_type("SessionStoreCreateRequest.policy", request.policy, SessionPolicy)
        require_type("SessionStoreCreateRequest.policy.model", request.policy.model, str)
        check_json(request.policy.model, "SessionStoreCreateRequest.policy.model")
        if request.parent_session_id is not None:
            require_id("SessionStoreCreateRequest.parent_session_id", request.parent_session_id)
        require_id("SessionStoreCreateRequest.session_id", request.session_id)
        store = self.session(request.session_id, owner=owner)
        meta = new_meta(
            request.session_id, title, model=request.policy.model, cwd=cwd, parent=request.parent_session_id
        )
        await store.create_meta(meta, ttl)
        return store

    async def fork(
        self,
        source: str,
        new_id: str,
        leaf_node_id: str | None = None,
        *,
        owner: str | None = None,
        ttl: float | Keep | None = KEEP,
    ) -> RedisSessionStore:
        """Create a session from the current state of `source`, or from its path to `leaf_node_id`.

        `source` does not change, and the two sessions are independent afterwards. The new session has the visible
        active path to that leaf, the config and all components at revision 1, an empty ledger, and `source` as its
        parent. The tool state is shared if both ids belong to one shard. The other components are copied. Pending
        inputs are not. O(length of the path): this process reads and commits it.

        With an `owner`, both sessions are that owner's. Without one the caller is trusted, and the new session gets the
        owner of `source`.

        Raises:
            OwnerMismatch: `source` or an existing session `new_id` is not the owner's; nothing was written.
            SessionExists: the session `new_id` exists, even if only its meta record does.
            SessionDeleted: the session `new_id` was deleted.
            SessionGone: `source` has no head.
            InvalidLeaf: `leaf_node_id` is unknown or tombstoned.
            OutcomeUnknown: the reply was lost; check whether the session `new_id` exists.
        """
        if leaf_node_id is not None:
            require_id("leaf_node_id", leaf_node_id)
        origin = self.session(require_id("source", source), owner=owner)
        if owner is not None:
            require_id("owner", owner)
        if source == require_id("new_id", new_id):
            raise InvalidRecord("new_id", "is the id of the source")
        point = await Reader(self.shared, self.layout.session(source, owner)).fork_point(leaf_node_id)
        if point is None:
            await origin.require_owner()
            raise SessionGone(None, 0, source)
        target, read = self.session(new_id, owner=point.owner or None), point.read
        nodes, leaf = read.graph.nodes, read.graph.leaf_node_id
        commit = RuntimeCommit(
            new_id,
            0,
            config=read.config,
            graph=Append(nodes, leaf) if nodes else Unchanged(None),
            checkpoint=commands.commit.carried(read.checkpoint),
        )
        model, cwd = (read.config.configured_model, None)
        if point.meta is not None:
            model, cwd = point.meta.model, point.meta.cwd
        born = new_meta(new_id, model=model, cwd=cwd, parent=source)
        options = replace(self.options, max_commit_nodes=None, max_commit_bytes=None)
        await target.begin(commit, commands.commit.Origin(born), point.components, options=options, ttl=ttl)
        return target

    async def delete(
        self,
        session_id: str,
        *,
        owner: str | None = None,
        reusable: bool = False,
        builds_on: str | None = None,
        durability: Durability | None = None,
    ) -> DeleteReport:
        """Delete a session atomically: its graph, ledger and meta, its holds on blobs, and its place in the list.

        Writes to its id are then refused with `SessionDeleted` for `StoreOptions.deletion_marker_ttl`, so that a late
        writer cannot recreate it. If a key of the session was missing or unreadable, no marker is left, so that the
        session can be started again. An unknown or already deleted id is reported as not existing. Two round trips,
        O(1): the server frees large values in the background. It works on a server whose memory is full.

        With `reusable`, no marker is left, and one is removed. The next session of that id begins at once, for any
        owner. It continues the revisions and the receipts of the deleted one, so a late commit is refused: by its
        revision, as a retry, or by its lease. Generations of leases continue, too. That holds for
        `deletion_marker_ttl`, and as long as the next session if it begins before. A late call that compares nothing
        begins the next session, as any other caller's does: a commit to any revision, meta, an input, a stream.

        With `builds_on`, the id of a commit (`read.commit_id`), the session is deleted only if that commit is its last
        one. So a caller that decides by a read does not delete what another worker has committed since.

        A failover can undo a deletion that only a lost primary had. `durability` (default: `StoreOptions.durability`)
        waits for replicas or the disk in the same round trip. The report's `durable` is False if that was not confirmed
        in time. Delete again until it is True: a further deletion confirms the earlier one while its marker exists.

        Raises:
            OwnerMismatch: the session is another's than `owner`; nothing was deleted.
            HeadRevisionConflict: another commit than `builds_on` is the session's last one; nothing was deleted.
            OutcomeUnknown: the reply was lost; call again.
        """
        store = self.session(session_id, owner=owner)
        return await store.delete(reusable=reusable, builds_on=builds_on, durability=durability)

    async def delete_owned(self, owner: str, *, durability: Durability | None = None) -> DeleteOwnedReport:
        """Delete all sessions of an owner, as `delete` does. Run it again after a failure: it deletes the rest.

        It deletes the sessions that are listed when it begins, 16 at the same time. A session that is created or
        committed to meanwhile may stay, and is then still listed by `sessions(owner=...)`. Run it again until it
        reports 0 deleted sessions. About three round trips for each session. Memory is bounded for any number of
        sessions. `durability` is that of each deletion, as in `delete`.

        Raises:
            InvalidRecord: the owner or the durability is invalid; nothing was sent.
            Corrupt: a catalogue is unusable. What was deleted before stays deleted.
            BackendError: the server failed before the first deletion.
            OutcomeUnknown: a reply was lost, or a later step failed; call again for the rest.
        """
        durability = require_durability("durability", durability) or self.options.durability
        return await delete_owned(self.shared, require_id("owner", owner), durability)

    async def sessions(
        self,
        *,
        owner: str | None = None,
        limit: int | None = None,
        after: SessionPickerInfo | str | None = None,
        parent: str | None = None,
    ) -> AsyncIterator[SessionPickerInfo]:
        """List the namespace's sessions, the most recently committed first.

        A session without a commit is listed at its time of creation. `owner` lists only that owner's sessions. They
        have an index, so the cost does not depend on the sessions of others. `limit` is the maximum number of sessions.
        `after` continues behind an earlier item: that item, its `cursor`, or its session id while it is listed.
        `parent` lists only sessions with that parent. It filters the list itself, at about 100,000 entries a second.

        A session that is committed to during the iteration moves to the top. One iteration lists no session twice, and
        omits none that did not move (if its parent stays the same). A session that cannot be read is listed with its
        `fault`.

        A hundred sessions take three round trips, for any size of the sessions. If some have expired, a fourth one
        removes their entries. The graph is read only if a session's first user message was tombstoned. Memory is
        bounded for any number of sessions.

        Raises:
            InvalidRecord: an argument is invalid, or `after` is a session id that is not listed.
            Corrupt: a catalogue is unusable.
            BackendError: the server refused or could not be reached. Continue after the last item that was yielded.
        """
        if limit is not None:
            require_int("limit", limit, 0)
        if parent is not None:
            require_id("parent", parent)
        if owner is not None:
            require_id("owner", owner)
        chunk = first_chunk(limit, self.options.shards)
        listing = Listing(self.shared, await self._place(after, owner), parent, chunk, owner=owner)
        left = limit
        while left is None or left > 0:
            lines = await listing.lines(PAGE if left is None else min(left, PAGE))
            if lines is None:
                return
            for line in lines:
                yield line
            left = None if left is None else left - len(lines)

    async def _place(self, after: SessionPickerInfo | str | None, owner: str | None) -> Cursor | None:
        if after is None:
            return None
        if not isinstance(after, SessionPickerInfo | str):
            raise InvalidRecord("after", f"expected a SessionPickerInfo, its cursor or a session id, got {after!r}")
        if isinstance(after, SessionPickerInfo):
            require_id("after.session_id", after.session_id)
        place = Cursor.parse(after if isinstance(after, str) else after.cursor)
        if place is None:
            place = await cursor_of(self.shared, require_id("after", after), owner)
            if place is None:
                raise InvalidRecord("after", f"expected a cursor or the id of a listed session, got {after!r}")
        return place

    def watch(self, *, poll: float = POLL, patience: float = PATIENCE) -> SessionWatch:
        """Watch many sessions over one connection: `async with cache.watch() as watch`, `watch.add(id)`, `async for`.

        A revision is known a fraction of a millisecond after its commit, and costs no command. The watch takes one
        connection of its own, in a cluster one for each server.

        The head of each session is polled (two commands) when the session is added, after a reconnect, when its
        deadline has passed, and `poll` seconds after the last poll. That finds revisions whose notification was not
        published (the writer's account may not publish) or was lost (the connection died silently). After an outage of
        `patience` seconds the iteration raises BackendError.
        """
        return SessionWatch(self.shared, poll=poll, patience=patience)

    async def gc(self, progress: Callable[[int, int], None] | None = None) -> GcReport:
        """Delete the blobs that no session holds, in every shard, as `RedisSessionStore.gc_unreachable` does in one.

        It also removes the entries of expired sessions from the catalogues of the shards. The lists of owners keep
        theirs until the owner's next list, or until a write moves an entry of that owner. `progress(done, shards)` is
        called after each shard. `root_count` is the number of listed sessions. `retained_blob_count` is the number of
        blobs that no session holds and whose grace period is not over.

        Raises:
            OutcomeUnknown: a reply was lost, or a later step failed; call again for the rest.
        """
        require_callable(progress)
        deleted = waiting = listed = 0
        for shard in range(self.options.shards):
            keys = self.layout.shard_keys(shard)
            with continuing(deleted, "blobs were deleted"):
                deleted += await self.shared.collect(keys)
                orphans, sessions = await self.shared.read(commands.maintenance.shard_sizes_read(keys), atomic=False)
            waiting, listed = waiting + orphans, listed + sessions
            if progress is not None:
                progress(shard + 1, self.options.shards)
        return GcReport(root_count=listed, retained_blob_count=waiting, deleted_blob_count=deleted)

    async def audit(
        self, *, repair: bool = False, scan: bool = True, progress: Callable[[int, int], None] | None = None
    ) -> AuditReport:
        """Verify everything that the namespace stores against the invariants of the storage layout.

        Of every session it verifies the keys against the head, every record and link, the tombstones, counts, receipts
        and deadlines, and the place in the catalogue. It verifies the events of every stream. Of every blob it verifies
        the bytes against the ref, and the holders against the heads. `progress(done, sessions)` is called after each
        step.

        `scan=False` sends no SCAN, whose replies show the account the names of all keys of the database: the session
        ids and blob hashes of other namespaces, too. Such an audit checks what the catalogues of the shards and the
        lists of orphans name, and what the heads of these sessions name. It cannot find

        - a session that lost its entry in the catalogue of its shard, or what remains of it. The blobs that it holds
          are reported, because they count more holders than the listed heads.
        - a blob that no listed session and no list of orphans names.
        - the lists of owners who own no listed session, and keys that are not of this package.

        With `scan=False`, `repair` corrects the entries of catalogues only, because a session that is not listed may
        hold a blob. The accounts `loader`, `runner` and `checker` of `lash_redis.acl` may call it.

        `repair` corrects the counts of holders, releases leaked blobs, and lists sessions that the catalogue lost. It
        never changes the content of a session. It changes no blob of a shard in which a session is unreadable or not
        listed. The report has every problem that was not repaired.

        It is correct while other clients write. Steps are bounded: 50 sessions or 4 MiB, or 50 blobs. If holders
        differ, one script reads all heads of a shard (5 to 6 µs each). The keyspace is SCANned once for every 100,000
        sessions, which the account must be allowed to (`auditor`). Memory is bounded by these sessions and by the
        largest session.

        Raises:
            BackendError: SCAN is denied, or the server failed; repairs that were made before it stay.
        """
        for name, value in (("repair", repair), ("scan", scan)):
            if type(value) is not bool:
                raise InvalidRecord(name, f"expected True or False, got {value!r}")
        return await Audit(self.shared, repair=repair, scan=scan, progress=require_callable(progress)).run()

    async def preload(self) -> None:
        """Load every script into the servers, for accounts that may not send scripts (`allow_eval=False`).

        Do it again after a restart, a failover or SCRIPT FLUSH. The account needs the right to SCRIPT LOAD.
        """
        await self.shared.preload()

    # Blobs

    async def put_blob(self, data: bytes) -> BlobRef:
        """Store bytes under their SHA-256, and return it as the ref that a commit can name for a component.

        The bytes of a component are the MessagePack of its record; those of an execution state are the MessagePack of a
        byte string. Until a session holds them, they are kept for `StoreOptions.upload_grace` seconds. One round trip.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRecord("data", f"expected bytes, got {type(data).__name__}")
        commands.calls.require_size("the bytes of a blob", len(data), self.options)
        return await self.shared.put_blob(bytes(data))

    async def get_blob(self, ref: str) -> bytes | None:
        """Return the bytes of a blob, or None if no shard of the namespace has it.

        A blob that `put_blob` stored takes one round trip. A tool state is stored in the shard of the sessions that
        hold it. The ref does not contain the shard, so a second round trip reads from every shard. A plugin snapshot or
        an execution state of a commit is stored with its session, and a manifest in its head. Neither is a blob.

        Raises:
            Corrupt: the stored bytes do not hash to `ref`.
        """
        return await self.shared.blob(require_ref("ref", ref))


def connect(
    url: str, *, namespace: str = "default", ttl: float | None = None, options: StoreOptions | None = None
) -> SessionCache:
    """Make a `SessionCache` with connections of its own. `async with` or `aclose` closes them.

    It connects at the first awaited call. The URL schemes:

    `redis://`, `rediss://`, `unix://`: one server, with the options of `redis.asyncio.from_url`.
    `redis+cluster://host:port,host:port`: a cluster. Any of its nodes will do, because it names the others.
    `redis+sentinel://host:port,host:port/service[/database]`: the primary that Sentinel names. User and password are
    those of the data nodes. Those of the sentinels are `?sentinel_username=` and `?sentinel_password=`.
    `rediss+cluster://`, `rediss+sentinel://`: the same over TLS.
    `embedded://`: a server of this process, from the first use to the end. Its data ends with it.
    `embedded:///directory`: a server that keeps its data. The first process to use the directory runs it, and other
    processes of this user connect to it. When that process ends, another one starts the next server.
    `memory://`: fakeredis in this process, for tests. It has no durability, and no other process shares it.

    `?max_connections=` (100) limits the connections to one server: one for small commands, up to 8 for large transfers,
    the others for commits that wait for replicas or the disk. `?socket_connect_timeout=` (3) and `?socket_timeout=` (5)
    are the seconds for one connection attempt and for one reply. `StoreOptions.call_timeout` is for a whole call.

    Raises:
        InvalidRecord: an argument is invalid; the error names it.
        BackendError: the package behind `embedded://` or `memory://` is not installed.
    """
    return SessionCache(by_url(url), namespace, ttl=ttl, options=options)
