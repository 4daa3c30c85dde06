"""Read a session: the full graph, one path, or only what is new since an earlier read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, TypeVar

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
from lash_redis.protocol.heads import decode_meta
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.stored_nodes import decode_in_steps
from lash_redis.session.namespace import Namespace
from lash_redis.session.seen import Seen
from lash_redis.transport.turns import in_turns

Decoded = TypeVar("Decoded")

Plan = TypeVar("Plan", bound="commands.paths.PathPlan | Literal['far', 'other'] | None")
Planned: TypeAlias = "tuple[commands.paths.PathPlan | Literal['far'] | None, commands.reads.StoredRead | None]"

_NONE: Final[Mapping[str, bytes]] = {}

MAX_ATTEMPTS: Final = 8
"""The number of attempts of a read or commit whose session changes during each attempt, before it fails."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One stored revision of a session: the head, the graph, and the bytes of the components."""

    stored: commands.reads.StoredRead
    held: Mapping[str, bytes]
    """The bytes of the components that are blobs, by ref."""
    graph: SessionGraph | None = None
    """The graph, if it is not that of all nodes of `stored`."""

    @property
    def components(self) -> dict[str, bytes]:
        """The bytes of every component, by ref."""
        return {**self.held, **self.stored.private_bytes()}

    def read(self) -> PersistedSessionRead:
        return self.stored.shown(self.held, self.graph)


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """The data of a session that its fork begins with."""

    read: PersistedSessionRead
    """The path at whose end the fork begins."""
    components: Mapping[str, bytes]
    """The bytes of every component, by ref."""
    owner: str
    """The owner of the source; empty for none."""
    meta: SessionMeta | None
    """The meta record of the source; None if it has none."""


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

    async def checkpoint(self) -> Snapshot | None:
        """Return the head and the components without nodes, None if there is no head.

        One round trip, and one for blobs that this process does not have.

        Raises:
            BackendError, Corrupt, SessionEvicted: as `snapshot` does.
        """
        keys = self._keys

        async def decode(replies: Sequence[Any]) -> commands.reads.StoredRead | None:
            return commands.reads.checkpoint_reply(keys, replies)

        for _ in self._attempts():
            stored = await self._at_one_revision(commands.reads.checkpoint_read(keys), decode)
            if stored is None:
                return None
            held = await self._held(stored.head)
            if held is not None:
                return Snapshot(stored, held)
        raise self._changed()

    async def head_and_index(self, node_id: str) -> tuple[commands.reads.StoredHead | None, bool]:
        """Return the head, and whether a node has that id at the same revision, tombstoned or not. One round trip."""
        trip = [*commands.reads.head_read(self._keys), commands.reads.index_read(self._keys, node_id)]
        *replies, entry = await self._namespace.read(trip, atomic=True)
        return commands.reads.head_reply(self._keys, *replies), entry not in (None, commands.reads.NAMED_ONLY)

    async def is_foreign(self) -> bool:
        """Whether the session belongs to another owner than that of the handle. One round trip. Reports no damage."""
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
        while len(found) < len(ids):
            chunk = ids[len(found) : len(found) + commands.maintenance.NODE_CHUNK]
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
            await in_turns(decode_in_steps(read.graph.nodes))
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
        found = await self._path(scope)
        return None if found is None else found.read()

    async def snapshot(self) -> Snapshot | None:
        """Return everything that is stored of the session at one revision; None if it has no head.

        Raises:
            BackendError: the session changed during each of `MAX_ATTEMPTS` reads.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key is missing.
        """
        keys = self._keys
        for _ in self._attempts():
            stored = await self._at_one_revision(
                commands.reads.full_read(keys), lambda replies: in_turns(commands.reads.full_reply(keys, replies))
            )
            if stored is None:
                return None
            held = await self._held(stored.head)
            if held is not None:
                return Snapshot(stored, held)
        raise self._changed()

    def _attempts(self) -> Iterator[int]:
        """Yield the number of each attempt of a read that is repeated if its round trips show different histories.

        No attempt begins after `StoreOptions.contention_seconds`, so that the read is bounded in time.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + self._namespace.options.contention_seconds
        for number in range(MAX_ATTEMPTS):
            if number and clock() >= until:
                return
            yield number

    def _changed(self) -> BackendError:
        return BackendError(
            f"session {self._keys.session_id!r} changed during each of {MAX_ATTEMPTS} reads, or for "
            f"{self._namespace.options.contention_seconds:g} seconds; retry later"
        )

    async def _at_one_revision(
        self, trip: Sequence[commands.calls.Command], decode: Callable[[Sequence[Any]], Awaitable[Decoded]]
    ) -> Decoded:
        """Return the decoded replies to commands that begin with the head, all of one revision.

        A transaction would make the server reply to each command twice. Every write that changes what these commands
        read also changes the head's facts. Equal facts before and after therefore prove that all replies are of one
        revision. If they differ, or if the replies seem damaged, a transaction follows.

        Raises:
            Corrupt, SessionEvicted: the replies of the transaction are damaged.
        """
        namespace = self._namespace
        *replies, facts = await namespace.read(
            [*trip, commands.reads.facts_read(self._keys)], atomic=False, faults=True
        )
        if not any(isinstance(reply, Corrupt) for reply in replies) and facts == replies[0].get(b"facts"):
            with suppress(Corrupt):
                return await decode(replies)
        return await decode(await namespace.read(trip, atomic=True))

    async def _held(
        self, head: commands.reads.StoredHead, known: Mapping[str, bytes] = _NONE
    ) -> dict[str, bytes] | None:
        """Return the bytes of the blobs that a head names, by ref. None if the head was replaced in the meantime.

        `known` are bytes that the caller has. One round trip for the others. If one is missing, a transaction reads the
        blobs again, together with the head. A commit may have released the blob, or a failover may have led to a server
        that never had it. Neither is damage of this head.

        Raises:
            Corrupt, SessionEvicted: this head names a blob that is missing or damaged.
        """
        namespace, keys = self._namespace, self._keys
        held = head.components.held
        have, lack = namespace.cached_blobs([ref for ref in held if ref not in known])
        have |= {ref: known[ref] for ref in held if ref in known}
        if not lack:
            return have
        trip = commands.reads.blob_read(keys, lack)
        with suppress(Corrupt):
            return have | namespace.take_blobs(keys, lack, await namespace.read(trip, atomic=False, faults=True))
        holder, *contents = await namespace.read([commands.reads.holder_read(keys), *trip], atomic=True, faults=True)
        return have | namespace.take_blobs(keys, lack, contents) if commands.reads.is_holder(head, holder) else None

    async def _path(self, scope: ActivePath) -> Snapshot | None:
        """Read a path or a page: first the data that determines its ranges in the log, then the records in them.

        The second round trip may find another history than the first. A path is then read in one transaction, with the
        ranges that were found before; a page is cut out of the whole path.
        """
        doubted: commands.paths.PathPlan | None = None
        for _ in self._attempts():
            plan, stored = await (self._plan(scope) if doubted is None else self._replanned(doubted))
            if plan is None:
                return None
            if plan == "far":
                break
            held: dict[str, bytes] | None = None
            if stored is None and plan.spans and not plan.parts:
                found, held = await self._spans(plan)
                if found == "moved" and not scope.is_page:
                    doubted = plan
                    continue
                stored = None if found == "moved" else found
            elif stored is None:
                stored = commands.paths.path_of(self._keys, plan, plan.parts)
            if stored is None:
                break
            held = await self._held(plan.head) if held is None else held
            if held is not None:
                can_grow = scope.before is None
                return Snapshot(stored, held) if can_grow else Snapshot(replace(stored, nodes=None), held, stored.graph)
        return await self._cut_out(scope)

    async def _plan(self, scope: ActivePath) -> Planned:
        """Return the ranges of the log that form a path or a page, as `path_plan` does, and the path if it was read.

        One round trip. A page at the head's leaf takes a second one if the end of the log does not determine it.
        """
        keys, leaf = self._keys, scope.leaf_node_id
        if scope.limit is not None and leaf is None and scope.before is None:

            async def decode_end(
                replies: Sequence[Any],
            ) -> tuple[commands.paths.PathPlan | Literal["other"] | None, commands.reads.StoredRead | None]:
                return self._with_path(commands.pages.end_plan(keys, scope, replies))

            ended, stored = await self._at_one_revision(commands.pages.end_read(keys, scope.limit), decode_end)
            if ended != "other":
                return ended, stored
        if scope.is_page:
            call = commands.pages.call(keys, scope)
            reply = await self._namespace.run(call, writes=False, is_large=True)
            try:
                return self._with_path(commands.pages.plan(call, keys, scope, reply))
            except OwnerMismatch:
                return None, None

        async def decode_plan(replies: Sequence[Any]) -> commands.paths.PathPlan | Literal["far"] | None:
            return commands.paths.path_plan(keys, leaf, replies, strict=self._strict)

        return await self._at_one_revision(commands.paths.path_read(keys, leaf), decode_plan), None

    def _with_path(self, plan: Plan) -> tuple[Plan, commands.reads.StoredRead | None]:
        """Add the path, if the plan has its records."""
        if isinstance(plan, commands.paths.PathPlan) and plan.parts:
            return plan, commands.paths.path_of(self._keys, plan, plan.parts)
        return plan, None

    async def _spans(
        self, plan: commands.paths.PathPlan
    ) -> tuple[commands.reads.StoredRead | Literal["moved"] | None, dict[str, bytes] | None]:
        """Read the records of a plan, as `span_reply` does, and the blobs of its head; None if one of these is missing.

        One round trip.
        """
        namespace, keys = self._namespace, self._keys
        known, unknown = namespace.cached_blobs(plan.head.components.held)
        replies = await namespace.read(commands.paths.span_read(keys, plan, unknown), atomic=True, faults=True)
        end = len(replies) - len(unknown)
        stored = commands.paths.span_reply(keys, plan, replies[:end])
        with suppress(Corrupt):
            return stored, known | namespace.take_blobs(keys, unknown, replies[end:])
        return stored, None

    async def _replanned(self, doubted: commands.paths.PathPlan) -> Planned:
        """Read what determines a path, and the ranges that an earlier plan had, in one transaction.

        Return the plan, and the path if its ranges are still the same.

        Raises:
            Corrupt, SessionEvicted: the stored data violates an invariant.
        """
        keys, leaf = self._keys, doubted.scope.leaf_node_id
        trip = commands.paths.path_read(keys, leaf)
        replies = await self._namespace.read([*trip, *commands.paths.record_read(keys, doubted)], atomic=True)
        plan = commands.paths.path_plan(keys, leaf, replies[: len(trip)], strict=self._strict)
        if plan is None or plan == "far" or plan.fetched != doubted.fetched:
            return plan, None
        return plan, commands.paths.record_reply(keys, plan, replies[len(trip) :])

    async def _cut_out(self, scope: ActivePath) -> Snapshot | None:
        """Read the whole path and cut a page out of it, or read the full graph and cut a path out of it.

        This is for a path that only ids link, for a page that a script would search for too long, and for a log that
        changed during the attempts to read ranges of it.
        """
        leaf = scope.leaf_node_id
        if scope.is_page:
            whole = await self._path(ActivePath(leaf))
            if whole is None:
                return None
            page = commands.pages.cut_out(whole.read(), scope)
            origin = commands.reads.origin_of(page)
            assert origin is not None
            return Snapshot(origin, whole.held, page.graph)
        found = await self.snapshot()
        if found is None:
            return None
        graph = found.stored.graph if leaf is None else found.stored.graph.with_leaf(leaf)
        nodes = tuple(graph.active_path())
        if leaf is None and graph.leaf_node_id is not None and not nodes and self._strict:
            raise InvalidLeaf(graph.leaf_node_id)
        path = SessionGraph.from_base(graph.lineage.base, nodes, graph.leaf_node_id, 0)
        return Snapshot(replace(found.stored, scope=ActivePath(leaf), nodes=None), found.held, path)

    async def fork_point(self, leaf: str | None) -> ForkPoint | None:
        """Return the data that a fork begins with, at one revision; None if there is no head.

        Raises:
            InvalidLeaf: `leaf` is unknown or tombstoned.
        """
        found = await self._path(ActivePath(leaf))
        if found is None:
            return None
        read, head = found.read(), found.stored.head
        if leaf is not None and not read.graph.nodes:
            raise InvalidLeaf(leaf)
        meta = head.fields.get(b"meta")
        stored_meta = None if meta is None else decode_meta(meta, head.keys.head)
        return ForkPoint(read, found.components, head.owner, stored_meta)

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
        held = await self._held(now.head, stored_blobs(read.checkpoint))
        return await self.load(known.scope) if held is None else now.shown(held, graph)


def _is_cut(read: PersistedSessionRead) -> bool:
    """Whether `read` is a path to a head's leaf that is not live. Only a store with lenient checks returns one."""
    is_path = isinstance(read.scope, ActivePath) and _has_leaf_of_head(read.scope)
    return is_path and not read.graph.nodes and read.graph.leaf_node_id is not None


def _has_leaf_of_head(scope: SessionReadScope) -> bool:
    """Whether a read of `scope` ends where the head does."""
    return isinstance(scope, FullGraph) or (scope.leaf_node_id is None and scope.before is None)
