"""Read a session: the full graph, one path, or only what is new since an earlier read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from lash_redis._validate import require_id, require_int
from lash_redis.errors import BackendError, Corrupt, InvalidLeaf, OwnerMismatch, UnsupportedReadScope
from lash_redis.models import (
    ActivePath,
    FullGraph,
    PersistedSessionRead,
    SessionGraph,
    SessionMeta,
    SessionNodeRecord,
    SessionReadScope,
)
from lash_redis.protocol import commands
from lash_redis.protocol.components import stored_blobs
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.stored_nodes import decode_some
from lash_redis.session.namespace import Namespace
from lash_redis.session.seen import Seen

MAX_ATTEMPTS: Final = 8
"""Attempts of a read or commit that the session changes during, before it fails."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One stored revision of a session: the head, the graph, and the bytes of the components."""

    stored: commands.reads.StoredRead
    held: Mapping[str, bytes]
    """The bytes of the components that are blobs, by ref."""

    @property
    def components(self) -> dict[str, bytes]:
        """The bytes of every component, by ref."""
        return {**self.held, **self.stored.private_bytes()}

    def read(self) -> PersistedSessionRead:
        return self.stored.shown(self.held)


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """What a fork takes over from its source."""

    read: PersistedSessionRead
    """The path at whose end the fork begins."""
    components: Mapping[str, bytes]
    """The bytes of every component, by ref."""
    owner: str
    """The owner of the source; empty for none."""


class Reader:
    """The reads of one session. Each read keeps its origin (the stored form), which a refresh compares."""

    def __init__(self, namespace: Namespace, keys: SessionKeys) -> None:
        self._namespace = namespace
        self._keys = keys

    @property
    def keys(self) -> SessionKeys:
        return self._keys

    async def head(self) -> commands.reads.StoredHead | None:
        """Return the head, None if there is none. One round trip."""
        trip = commands.reads.head_read(self._keys)
        return commands.reads.head_reply(self._keys, *await self._namespace.read(trip, atomic=True))

    async def is_foreign(self) -> bool:
        """Whether the session belongs to another than the keys' `access`. Damage is not reported. One round trip."""
        trip: list[commands.calls.Command] = [("HMGET", self._keys.head, "owner", "facts")]
        ((owner, facts),) = await self._namespace.read(trip, atomic=False)
        return commands.calls.is_foreign(self._keys, owner, facts)

    async def seen_head(self) -> Seen:
        """Read the head, and return what a commit on it must know. One round trip."""
        head = await self.head()
        return Seen() if head is None else Seen.of(head)

    async def meta(self) -> SessionMeta | None:
        """`RedisSessionStore.load_session_meta`."""
        stored = await self.stored_meta()
        return None if stored is None else stored.meta

    async def stored_meta(self) -> commands.reads.StoredMeta | None:
        """Return the meta record and its stored bytes. One round trip."""
        trip = commands.reads.meta_read(self._keys)
        return commands.reads.meta_reply(self._keys, await self._namespace.read(trip, atomic=True))

    async def nodes(self, ids: Sequence[str]) -> list[SessionNodeRecord | None]:
        """`RedisSessionStore.load_nodes`, with ids that are valid."""
        found: list[SessionNodeRecord | None] = []
        for at in range(0, len(ids), commands.maintenance.NODE_CHUNK):
            chunk = ids[at : at + commands.maintenance.NODE_CHUNK]
            call = commands.maintenance.nodes_call(self._keys, chunk)
            reply = await self._namespace.run(call, writes=False, is_large=True)
            try:
                found += commands.maintenance.nodes_reply(call, self._keys, chunk, reply)
            except OwnerMismatch:
                found += [None] * len(chunk)
        return found

    async def node(self, node_id: str) -> SessionNodeRecord | None:
        """`RedisSessionStore.load_node`."""
        (node,) = await self.nodes([require_id("node_id", node_id)])
        return node

    @property
    def _strict(self) -> bool:
        return self._namespace.options.graph_checks == "strict"

    async def load(self, scope: SessionReadScope, *, decode: bool = False) -> PersistedSessionRead | None:
        """`RedisSessionStore.load_session`, without sliding."""
        read = await self._load(scope)
        if decode and read is not None:
            await _decode(read.graph.nodes)
        return read

    async def _load(self, scope: SessionReadScope) -> PersistedSessionRead | None:
        if isinstance(scope, FullGraph):
            found = await self.snapshot()
            return None if found is None else found.read()
        if not isinstance(scope, ActivePath):
            raise UnsupportedReadScope(scope)
        if scope.leaf_node_id is not None:
            require_id("ActivePath.leaf_node_id", scope.leaf_node_id)
        if scope.limit is not None:
            require_int("ActivePath.limit", scope.limit, 1)
        if scope.before is not None:
            require_id("ActivePath.before", scope.before)
        return await self._path(scope)

    async def snapshot(self) -> Snapshot | None:
        """Return everything that is stored of the session at one revision; None if it has no head.

        Raises:
            BackendError: the session changed during each of `MAX_ATTEMPTS` reads.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key is missing.
        """
        lost: tuple[int, str] | None = None
        for _ in range(MAX_ATTEMPTS):
            stored = commands.reads.full_reply(
                self._keys, await self._at_one_revision(commands.reads.full_read(self._keys))
            )
            if stored is None:
                return None
            head = stored.head
            blobs, missing = await self._namespace.blobs(self._keys, head.components.held)
            if missing is None:
                return Snapshot(stored, blobs)
            # A commit may release a blob between the two round trips. A blob missing twice at one revision is lost.
            if lost == (head.facts.revision, missing.key):
                raise missing
            lost = head.facts.revision, missing.key
        raise BackendError(
            f"session {self._keys.session_id!r} changed during each of {MAX_ATTEMPTS} reads; retry later"
        )

    async def _at_one_revision(self, trip: Sequence[commands.calls.Command]) -> list[Any]:
        """Return the replies to commands that begin with the head, all of one revision.

        A transaction would make the server reply to each command twice. Every write that changes what these commands
        read also changes the head's facts. Equal facts before and after therefore prove that all replies are of one
        revision. If they differ, a transaction follows.
        """
        *replies, facts = await self._namespace.read([*trip, commands.reads.facts_read(self._keys)], atomic=False)
        if facts == replies[0].get(b"facts"):
            return replies
        return await self._namespace.read(trip, atomic=True)

    async def _path(self, scope: ActivePath) -> PersistedSessionRead | None:
        namespace, keys = self._namespace, self._keys
        lost: tuple[int, str] | None = None
        for _ in range(MAX_ATTEMPTS):
            plan = await self._plan(scope)
            if plan is None:
                return None
            if plan == "far":
                break
            known, unknown = namespace.cached_blobs(plan.head.components.held)
            if plan.spans and not plan.parts:
                replies = await namespace.read(commands.paths.span_read(keys, plan, unknown), atomic=True)
                parts, contents = replies[: len(replies) - len(unknown)], replies[len(replies) - len(unknown) :]
                stored = commands.paths.span_reply(keys, plan, parts)
            else:
                contents = await namespace.read(commands.reads.blob_read(keys, unknown), atomic=False)
                stored = commands.paths.path_of(keys, plan, plan.parts)
            if stored is None:
                break
            missing = namespace.take_blobs(keys, unknown, contents, known)
            if missing is None:
                read = stored.shown(known)
                return read if scope.before is None else read.from_origin(replace(stored, nodes=None))
            if lost == (plan.head.facts.revision, missing.key):
                raise missing
            lost = plan.head.facts.revision, missing.key
        return await self._cut_out(scope)

    async def _plan(self, scope: ActivePath) -> commands.paths.PathPlan | Literal["far"] | None:
        """Return the ranges of the log that form a path or a page, as `path_plan` does.

        One round trip. A page at the head's leaf takes a second one if the end of the log does not determine it.
        """
        if scope.limit is not None and scope.leaf_node_id is None and scope.before is None:
            replies = await self._at_one_revision(commands.pages.end_read(self._keys, scope.limit))
            plan = commands.pages.end_plan(self._keys, scope, replies)
            if plan != "other":
                return plan
        if scope.is_page:
            call = commands.pages.call(self._keys, scope)
            reply = await self._namespace.run(call, writes=False, is_large=True)
            try:
                return commands.pages.plan(call, self._keys, scope, reply)
            except OwnerMismatch:
                return None
        leaf = scope.leaf_node_id
        replies = await self._at_one_revision(commands.paths.path_read(self._keys, leaf))
        return commands.paths.path_plan(self._keys, leaf, replies, strict=self._strict)

    async def _cut_out(self, scope: ActivePath) -> PersistedSessionRead | None:
        """Read the whole path and cut a page out of it, or read the full graph and cut a path out of it.

        This is for a path that only ids link, for a page that a script would search for too long, and for a log that
        changed during every attempt to read ranges of it.
        """
        leaf = scope.leaf_node_id
        if scope.is_page:
            whole = await self._path(ActivePath(leaf))
            return None if whole is None else commands.pages.cut_out(whole, scope)
        found = await self.snapshot()
        if found is None:
            return None
        read = found.read()
        graph = read.graph if leaf is None else read.graph.with_leaf(leaf)
        nodes = tuple(graph.active_path())
        if leaf is None and graph.leaf_node_id is not None and not nodes and self._strict:
            raise InvalidLeaf(graph.leaf_node_id)
        path = SessionGraph.from_base(graph.lineage.base, nodes, graph.leaf_node_id, 0)
        stored = replace(found.stored, scope=ActivePath(leaf), nodes=None)
        return replace(read, graph=path).from_origin(stored)

    async def fork_point(self, leaf: str | None) -> ForkPoint | None:
        """Return what a fork takes over, of one revision; None if there is no head.

        Raises:
            InvalidLeaf: `leaf` is unknown or tombstoned.
        """
        missing: Corrupt | None = None
        for _ in range(MAX_ATTEMPTS):
            read = await self.load(ActivePath(leaf))
            if read is None:
                return None
            if leaf is not None and not read.graph.nodes:
                raise InvalidLeaf(leaf)
            stored = commands.reads.origin_of(read)
            assert stored is not None
            blobs, missing = await self._namespace.blobs(self._keys, stored.head.components.held)
            if missing is None:
                return ForkPoint(read, {**blobs, **stored.private_bytes()}, stored.head.owner)
        assert missing is not None
        raise missing

    async def refresh(self, read: PersistedSessionRead) -> PersistedSessionRead | None:
        """`RedisSessionStore.refresh`, without sliding."""
        known = commands.reads.origin_of(read)
        if known is None or known.head.keys != self._keys or (self._strict and _is_cut(read)):
            return await self.load(read.scope)
        keys = known.head.keys  # their names are computed already
        call = commands.refresh.call(keys, known)
        reply = await self._namespace.run(call, writes=False)
        try:
            delta = commands.refresh.reply(call, keys, reply)
        except OwnerMismatch:
            return None
        if delta == "same":
            return read
        if delta == "absent":
            return None
        if delta == "far" and known.nodes is not None and _has_leaf_of_head(known.scope):
            delta = commands.refresh.delta_reply(
                await self._namespace.read(commands.refresh.delta_read(keys, known), atomic=True)
            )
        now = commands.refresh.refreshed(keys, known, delta) if isinstance(delta, commands.refresh.Delta) else None
        if now is None:
            return await self.load(known.scope)
        before, after = known.head.facts, now.head.facts
        # The graph's base also counts tombstones off the path, which a replacement must have seen.
        is_same_log = now.nodes is known.nodes and (after.length, after.live) == (before.length, before.live)
        if is_same_log and after.revision == before.revision:
            return read.from_origin(now)
        graph = read.graph.with_leaf(now.leaf) if is_same_log else now.graph
        known_blobs = stored_blobs(read.checkpoint)
        held = set(now.head.components.held)
        fetched, missing = await self._namespace.blobs(keys, sorted(held - known_blobs.keys()))
        if missing is not None:
            return await self.load(known.scope)
        return now.shown(fetched | {ref: known_blobs[ref] for ref in held & known_blobs.keys()}, graph)


DECODE_SECONDS: Final = 0.002
"""Maximum time that decoding blocks the event loop before other tasks run. A single node may take longer."""


async def _decode(nodes: Sequence[SessionNodeRecord]) -> None:
    """Decode all payloads, in slices between which other tasks run."""
    at = 0
    while at < len(nodes):
        if at:
            await asyncio.sleep(0)
        at = decode_some(nodes, at, DECODE_SECONDS)


def _is_cut(read: PersistedSessionRead) -> bool:
    """Whether `read` is a path to a head's leaf that is not live. Only a store with lenient checks returns one."""
    is_path = isinstance(read.scope, ActivePath) and _has_leaf_of_head(read.scope)
    return is_path and not read.graph.nodes and read.graph.leaf_node_id is not None


def _has_leaf_of_head(scope: SessionReadScope) -> bool:
    """Whether a read of `scope` ends where the head does."""
    return isinstance(scope, FullGraph) or (scope.leaf_node_id is None and scope.before is None)
