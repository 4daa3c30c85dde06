"""Load what an adapter finds on the active path, such as the messages of a chat: the last ones, or all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from lash_redis.errors import InvalidRecord
from lash_redis.models import ActivePath, FullGraph, PersistedSessionRead
from lash_redis.protocol.commands.reads import origin_of
from lash_redis.protocol.steps import Steps
from lash_redis.session.store import RedisSessionStore
from lash_redis.transport.turns import in_turns

SHORT: Final = 100
"""Nodes of a path that are read as one page, in one round trip. A longer path takes more to be read whole."""

Item = TypeVar("Item")


class PathItems(Generic[Item]):
    """The items of a session's active path, oldest first. Not every node has an item."""

    def __init__(self, store: RedisSessionStore, items_of: Callable[[PersistedSessionRead], Steps[list[Item]]]) -> None:
        """`items_of` returns the items of the path that a read contains, in steps."""
        self._store = store
        self._items_of = items_of

    async def load(
        self, limit: int | None = None, before: str | None = None, *, leaf: str | None = None
    ) -> tuple[PersistedSessionRead | None, list[Item]]:
        """Return the last `limit` items, or all, and the read that has the last of them; None if there is no session.

        The path ends at the node `leaf`, by default at the head's leaf. It is empty if `leaf` is unknown.

        `before` returns those before the node with that id. A page costs the same in a session of any length: one round
        trip, two if the path has branched near its end, and further ones if some of its nodes have no item. All items
        take one round trip if the path has at most `SHORT` nodes. Else they take two, or three if the session has
        branches. If this process does not have the tool state cached, it takes one more.

        Raises:
            InvalidRecord: the session exists and `before` is not the id of a node of its path.
            InvalidLeaf, Corrupt, SessionEvicted: as `RedisSessionStore.load_session` does.
        """
        if limit is None:
            return await self._all(before, leaf)
        first = read = await self._store.load_session(ActivePath(leaf, limit, before))
        if first is None:
            return None, []
        found, size = await in_turns(self._items_of(first)), limit
        while len(found) < limit and read is not None and read.is_partial:
            # Some nodes have no item. Read on from the same leaf, because the head may have moved.
            size *= 2
            read = await self._earlier(ActivePath(first.graph.leaf_node_id, size, read.graph.nodes[0].node_id))
            if read is None or read.commit_id != first.commit_id:  # the pages may be of different histories
                first, found = await self._all(before, leaf)
                break
            found = await in_turns(self._items_of(read)) + found
        return first, found[-limit:]

    async def _earlier(self, scope: ActivePath) -> PersistedSessionRead | None:
        """Load a page before a node of the page that was read last; None if the path has no such node any more."""
        try:
            return await self._store.load_session(scope)
        except InvalidRecord:
            return None

    async def _all(self, before: str | None, leaf: str | None) -> tuple[PersistedSessionRead | None, list[Item]]:
        """Return all items of a path, or all before a node, of one revision."""
        read = await self._store.load_session(ActivePath(leaf, SHORT if before is None else None, before))
        if read is not None and read.is_partial:
            read = await self.load_whole(read, leaf)
        return read, [] if read is None else await in_turns(self._items_of(read))

    async def load_whole(self, page: PersistedSessionRead, leaf: str | None) -> PersistedSessionRead | None:
        """Load the path. A session without branches is loaded as a whole graph, which saves a round trip."""
        if _is_of_one_line(page):
            read = await self._store.load_session(FullGraph())
            if read is None or (_is_of_one_line(read) and leaf in (None, read.graph.leaf_node_id)):
                return read
        return await self._store.load_session(ActivePath(leaf))


def _is_of_one_line(read: PersistedSessionRead) -> bool:
    origin = origin_of(read)
    return origin is not None and origin.is_of_one_line
