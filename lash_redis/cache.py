"""A namespace of sessions on one Redis: what its stores share, and the way to get one."""

from __future__ import annotations

import os
import time
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
from lash_redis.errors import InvalidRecord, SessionGone
from lash_redis.listing import PAGE, Listing, first_chunk, place_of
from lash_redis.models import (
    Append,
    AuditReport,
    BlobRef,
    Cursor,
    DeleteReport,
    GcReport,
    RuntimeCommit,
    SessionMeta,
    SessionPickerInfo,
    SessionPolicy,
    SessionStoreCreateRequest,
    Unchanged,
)
from lash_redis.models.json_values import check_json
from lash_redis.options import KEEP, Keep, StoreOptions
from lash_redis.protocol import commands
from lash_redis.protocol.keys import Layout
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.reader import Reader
from lash_redis.session.store import RedisSessionStore
from lash_redis.session.watch import PATIENCE, POLL, SessionWatch
from lash_redis.transport.backend import Connector
from lash_redis.transport.connectors import by_url, given


class SessionCache:
    """The sessions of one namespace, on one client.

    `client` is a `redis.asyncio.Redis` or `RedisCluster` that returns bytes. It is never configured and never closed.
    A `Redis` is used through its own methods: each call takes a connection of its pool, and calls beyond its
    `max_connections` wait. Make it without a retry policy, which makes outcomes unknown. A `RedisCluster` and the
    client of `Sentinel.master_for` are read for their settings, and connections like theirs are opened for this cache.

    `ttl` is the seconds a session outlives its last commit, None for ever. Constructing does no I/O and needs no
    running loop. One cache serves any number of sessions and concurrent tasks; one that `connect` made also any number
    of event loops, and processes forked after it was made.
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
        """Which keys the namespace's sessions have."""
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
        await self.aclose()

    async def aclose(self) -> None:
        """Close what `connect` opened: the connections of this event loop and process, and an embedded server.

        A client that was given stays open.
        """
        await self.shared.close()

    def session(self, session_id: str) -> RedisSessionStore:
        """The store of one session. No I/O; the session need not exist."""
        return RedisSessionStore(self.shared, session_id)

    async def create(self, request: SessionStoreCreateRequest, *, ttl: float | Keep | None = KEEP) -> RedisSessionStore:
        """The store of a session that has meta: written now from `request`, or kept as it is if there is some.

        `ttl` becomes the new session's own: seconds it outlives its last commit or touch, None for ever; without it the
        cache's holds. Idempotent. One round trip. Source: SessionStoreFactory::create_store.

        Raises:
            SessionDeleted: the session was deleted; its id takes no writes for a while.
        """
        require_type("request", request, SessionStoreCreateRequest)
        require_type("SessionStoreCreateRequest.policy", request.policy, SessionPolicy)
        require_type("SessionStoreCreateRequest.policy.model", request.policy.model, str)
        check_json(request.policy.model, "SessionStoreCreateRequest.policy.model")
        if request.parent_session_id is not None:
            require_id("SessionStoreCreateRequest.parent_session_id", request.parent_session_id)
        require_id("SessionStoreCreateRequest.session_id", request.session_id)
        store = self.session(request.session_id)
        meta = _new_meta(request.session_id, request.policy.model, _working_directory(), request.parent_session_id)
        await store.create_meta(meta, ttl)
        return store

    async def fork(
        self, source: str, new_id: str, leaf_node_id: str | None = None, *, ttl: float | Keep | None = KEEP
    ) -> RedisSessionStore:
        """A new session that begins where `source` stands, or stood at `leaf_node_id`; `source` stays untouched.

        The new one has the visible active path to that leaf, the config and all components at revision 1, an empty
        ledger, and `source` as its parent. From then on both go their own ways. The tool state is shared where both ids
        fall into one shard; the other components are copied. O(length of the path): it is read and committed by this
        process.

        Raises:
            SessionExists: there is a session `new_id`, if only its meta.
            SessionDeleted: there was one, and it was deleted.
            SessionGone: there is no head to fork from.
            InvalidLeaf: `leaf_node_id` is unknown or tombstoned.
            OutcomeUnknown: the reply was lost: there may be a session `new_id` now.
        """
        if leaf_node_id is not None:
            require_id("leaf_node_id", leaf_node_id)
        origin, target = self.session(require_id("source", source)), self.session(require_id("new_id", new_id))
        if source == new_id:
            raise InvalidRecord("new_id", "is the id of the source")
        point = await Reader(self.shared, self.layout.session(source)).fork_point(leaf_node_id)
        if point is None:
            raise SessionGone(None, 0, source)
        read, blobs = point
        nodes, leaf = read.graph.nodes, read.graph.leaf_node_id
        commit = RuntimeCommit(
            new_id,
            0,
            config=read.config,
            graph=Append(nodes, leaf) if nodes else Unchanged(None),
            checkpoint=commands.commit.carried(read.checkpoint),
        )
        meta = await origin.load_session_meta()
        model, cwd = (read.config.configured_model, _working_directory()) if meta is None else (meta.model, meta.cwd)
        born = _new_meta(new_id, model, cwd, source)
        options = replace(self.options, max_commit_nodes=None, max_commit_bytes=None)
        await target.begin(commit, commands.commit.Origin(born), blobs, options=options, ttl=ttl)
        return target

    async def delete(self, session_id: str) -> DeleteReport:
        """Remove all of a session at once: its graph, its ledger, its meta, its holds on blobs, its line in the list.

        Its id then takes no writes for `StoreOptions.deletion_marker_ttl`: late writers get `SessionDeleted`. Not so
        where a part of the session was missing or unreadable: there, deleting is how to start it anew. An unknown id,
        or one deleted before, is reported as not existing. Two round trips, O(1): large values are freed in the
        background. Works on a full server.

        Raises:
            OutcomeUnknown: the reply was lost; delete again.
        """
        return await self.session(session_id).delete()

    async def sessions(
        self, *, limit: int | None = None, after: SessionPickerInfo | str | None = None, parent: str | None = None
    ) -> AsyncIterator[SessionPickerInfo]:
        """The namespace's sessions, the most recently committed first; those only created stand at their creation.

        `limit` ends the list after so many lines. `after` begins it behind a line seen before: that line, its `cursor`,
        or the id of its session while that is listed. A session that is committed to while you page moves to the top:
        none is listed twice by one iteration, and what has not moved is never left out (if its parent stays the same).
        `parent` keeps only sessions with that parent; it is looked up in the list itself, at some 100,000 entries a
        second.

        A hundred lines cost three round trips, whatever the sessions hold; a fourth where expired ones turn up, which
        are dropped. Only a session whose first user message was tombstoned has its graph read. A session that cannot be
        read is listed with its `fault`. Bounded in memory; any number of sessions.
        """
        if limit is not None:
            require_int("limit", limit, 0)
        if parent is not None:
            require_id("parent", parent)
        listing = Listing(self.shared, await self._place(after), parent, first_chunk(limit, self.options.shards))
        left = limit
        while left is None or left > 0:
            lines = await listing.lines(PAGE if left is None else min(left, PAGE))
            if lines is None:
                return
            for line in lines:
                yield line
            left = None if left is None else left - len(lines)

    async def _place(self, after: SessionPickerInfo | str | None) -> Cursor | None:
        if after is None:
            return None
        if not isinstance(after, SessionPickerInfo | str):
            raise InvalidRecord("after", f"expected a SessionPickerInfo, its cursor or a session id, got {after!r}")
        if isinstance(after, SessionPickerInfo):
            require_id("after.session_id", after.session_id)
        place = Cursor.parse(after if isinstance(after, str) else after.cursor)
        if place is None:
            place = await place_of(self.shared, require_id("after", after))
            if place is None:
                raise InvalidRecord("after", f"{after!r} is no cursor, nor a session that is listed")
        return place

    def watch(self, *, poll: float = POLL, patience: float = PATIENCE) -> SessionWatch:
        """Watch many sessions at once: `async with cache.watch() as watch`, `watch.add(session_id)`, `async for`.

        One connection of the client, in a cluster one for each server, besides those that its calls use. A revision is
        known a fraction of a millisecond after its commit, and costs no command. Each session is looked at (two
        commands) when it is added, after a reconnect, when its deadline has passed, and `poll` seconds after the last
        time: so also what was not said is found, by a writer who may not publish, or on a connection that died
        silently. After an outage of `patience` seconds the iteration ends with BackendError.
        """
        return SessionWatch(self.shared, poll=poll, patience=patience)

    async def gc(self, progress: Callable[[int, int], None] | None = None) -> GcReport:
        """`RedisSessionStore.gc_unreachable` for every shard: delete the blobs that no session holds.

        Entries of sessions that expired leave the list, too. `progress(done, shards)` is called after each shard.
        `root_count` is the number of sessions listed, `retained_blob_count` that of blobs no session holds and that
        were promised to stay.
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

    async def audit(self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> AuditReport:
        """Hold everything the namespace stores against the laws of storage.

        Every session: its keys against its head, every record and link, marks, counts, receipts, deadlines, its place
        in the catalogue. Every blob: its bytes against its ref, its holders against the heads. `repair` mends counts of
        holders, lets go of blobs that leaked, and lists sessions that the catalogue lost; it never changes what a
        session says, and touches no blob of a shard of which a session cannot be read or is not listed. What it does
        not mend it tells. `progress(done, sessions)` is called after each step.

        Right beside live traffic. Bounded steps: 50 sessions or 4 MiB, 50 blobs; only where holders differ, one script
        looks at all heads of a shard (10 to 15 µs each). The keyspace is SCANned once for every 100,000 sessions, so
        the account needs that right; memory is bounded by them and by the largest session.

        Raises:
            BackendError: SCAN is denied, or the server failed; steps done before stand.
        """
        if type(repair) is not bool:
            raise InvalidRecord("repair", f"expected True or False, got {repair!r}")
        return await Audit(self.shared, repair=repair, progress=require_callable(progress)).run()

    async def preload(self) -> None:
        """Make every script known to the server, for accounts that may not send scripts (`allow_eval=False`).

        To be done again after a restart, a failover or SCRIPT FLUSH. Needs the right to SCRIPT LOAD.
        """
        await self.shared.preload()

    # Blobs

    async def put_blob(self, data: bytes) -> BlobRef:
        """Store bytes under the SHA-256 of them; a commit may then name the ref as one of its components.

        A component's bytes are MessagePack of its record, an execution state's those of a byte string. Held by no
        session, they stay for `StoreOptions.upload_grace` seconds. One round trip.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRecord("data", f"expected bytes, got {type(data).__name__}")
        commands.calls.require_size("the bytes of a blob", len(data), self.options)
        return await self.shared.put_blob(bytes(data))

    async def get_blob(self, ref: str) -> bytes | None:
        """The bytes of a blob, or None if no shard of the namespace has it.

        A blob that `put_blob` stored is one round trip. A tool state lies in the shard of the sessions that hold it,
        which a ref does not tell: a second round trip asks every shard. A plugin snapshot or execution state that a
        commit brought lies with its session, and a manifest in its head: neither is a blob.

        Raises:
            Corrupt: the stored bytes do not hash to `ref`.
        """
        return await self.shared.blob(require_ref("ref", ref))


def connect(
    url: str, *, namespace: str = "default", ttl: float | None = None, options: StoreOptions | None = None
) -> SessionCache:
    """A `SessionCache` on its own connection, closed by `async with` or `aclose`. Nothing connects before an await.

    `redis://`, `rediss://` and `unix://` take the options of `redis.asyncio.from_url`. So do
    `redis+cluster://host:port,host:port` (any nodes of the cluster, which name the others) and
    `redis+sentinel://host:port,host:port/service[/database]`; `rediss+cluster://` and `rediss+sentinel://` use TLS.
    Under Sentinel, user and password are those of the data nodes; those of the sentinels are `?sentinel_username=` and
    `?sentinel_password=`. `?max_connections=` (100) bounds the connections to one server: one for small commands, up to
    8 for large transfers, the others for commits that wait for replicas or the disk. `?socket_connect_timeout=` (3) and
    `?socket_timeout=` (5) are seconds for one connection attempt and for one reply; `StoreOptions.call_timeout` is for
    the whole call. `embedded://[directory]` starts a server of this process at first use and stops it at the end; with
    a directory its data stays. `memory://` is fakeredis in this process: for tests, no durability, no other process.

    Raises:
        InvalidRecord: names the argument that is wrong.
        BackendError: the package behind `embedded://` or `memory://` is not installed.
    """
    return SessionCache(by_url(url), namespace, ttl=ttl, options=options)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed under the process
        return None


def _new_meta(session_id: str, model: str, cwd: str | None, parent: str | None) -> SessionMeta:
    return SessionMeta(session_id, session_id, f"unix:{int(time.time())}", model, cwd, parent)
