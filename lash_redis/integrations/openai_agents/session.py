"""The session of the OpenAI Agents SDK on top of the store of one session."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

try:
    from agents.memory import SessionSettings
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the OpenAI Agents SDK is missing: pip install 'lash-redis[openai-agents]'") from error

from lash_redis._validate import require_type
from lash_redis.cache import SessionCache
from lash_redis.errors import HeadRevisionConflict, InvalidParent, InvalidRecord, OutcomeUnknown, SessionDeleted
from lash_redis.integrations.openai_agents.history import cut, grown, item_of_node, rooted, without_expired
from lash_redis.integrations.openai_agents.items import Item, item_of_content, payload_of_item
from lash_redis.models import (
    FullGraph,
    PersistedSessionRead,
    ReplaceFull,
    RuntimeCommit,
    SessionNodeRecord,
)
from lash_redis.models.chat_messages import canonical_json
from lash_redis.models.node import new_message_id, timestamp_now
from lash_redis.protocol.steps import STEP_ITEMS, Steps, at_once
from lash_redis.protocol.stored_nodes import contents_of
from lash_redis.session.appender import Addition, Appender, Tip
from lash_redis.session.path_items import PathItems
from lash_redis.session.store import RedisSessionStore
from lash_redis.transport.turns import in_turns

POP_ATTEMPTS: Final = 64
"""The most attempts of `pop_item` to come before other workers."""


@dataclass(frozen=True, slots=True)
class _View:
    """What `get_items` without a limit returned last: the revision, and the number of items from the end."""

    tip: Tip
    count: int


@dataclass(frozen=True, slots=True)
class CompactionSnapshot:
    """The last items of a session, and their replacement. The SDK's compaction uses it."""

    items: list[Item]
    """The items, oldest first."""
    complete: bool
    """Whether the session has no earlier items."""
    replace_suffix: Callable[[int, list[Item]], Awaitable[bool]]
    """`await replace_suffix(start, output)` replaces `items[start:]`, or returns False if the session has changed."""


class LashSession:
    """The history of one session for `Runner.run(agent, input, session=...)` of the OpenAI Agents SDK.

    It implements the SDK's protocol `Session`. Items are returned exactly as they were added, duplicates included. Each
    `add_items` is stored whole or not at all, behind what other workers have added. The session is one like any other:
    `store` has leases, streams, branches and the rest, and `cache.chat(session_id)` shows its messages.

    A handle is cheap, so an application can make one for every request. No I/O; the session need not exist.
    """

    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        cache: SessionCache,
        *,
        owner: str | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        """With an `owner`, the session is used only if it belongs to that owner (see `SessionCache.session`).

        `session_settings` has the `limit` of `get_items` that are called without one.

        Raises:
            InvalidRecord: an argument has another type; the error names it.
        """
        require_type("cache", cache, SessionCache)
        self.session_id = session_id
        self.session_settings = _settings_of(session_settings)
        self._store = cache.session(session_id, owner=owner)
        self._appender = Appender(self._store, cache.shared, _is_same_item)
        self._path = PathItems(self._store, _items_of)
        self._view: _View | None = None
        self._unsettled: tuple[str, Sequence[SessionNodeRecord]] | None = None
        """The items of an `add_items` whose outcome is unknown, or that was cancelled, as JSON, and their nodes."""

    @property
    def store(self) -> RedisSessionStore:
        """The store of the session."""
        return self._store

    def __repr__(self) -> str:
        return f"LashSession({self.session_id!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a LashSession holds connections and cannot be pickled: pass the session id to the other process, and make "
            "a LashSession on a cache of its own"
        )

    async def get_items(self, limit: int | None = None, *, wrapper: Any = None) -> list[Item]:
        """Return the last `limit` items, or all, oldest first. An empty list if there are none, or `limit` is below 1.

        Without a `limit`, that of `session_settings` holds. One round trip if the session has at most 100 items or a
        limit is given; else two, or three if the session has branches. `wrapper`, the context of the SDK's run, is not
        used.

        Raises:
            InvalidRecord: `limit` is no int; the error names it.
            InvalidLeaf, Corrupt, SessionEvicted: as `RedisSessionStore.load_session` does.
        """
        is_default = limit is None
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if limit is not None:
            require_type("limit", limit, int)
            if limit < 1:
                return []
        read, items = await self._path.load(limit)
        self._appender.tip = Tip.of(read)
        if is_default:
            self._view = _View(self._appender.tip, len(items))
        return items

    async def add_items(self, items: Sequence[Any], *, wrapper: Any = None) -> None:
        """Append items behind what other workers have added: all or none.

        One round trip if no other handle has written since this one read or wrote the session, else two or three. If
        the outcome of a call is unknown, or the call was cancelled, call again with the same items on the same handle:
        they are stored once.
        `wrapper` is not used.

        Raises:
            InvalidRecord: an item is no dict, or has a value that is not JSON; the error names it.
            SessionGone: the session expired or was cleared after this handle used it. The next call begins a new one.
            OutcomeUnknown: the reply was lost.
            Everything else that `Chat.append` raises.
        """
        if not items:
            return
        if isinstance(items, str | dict) or not isinstance(items, Sequence):
            raise InvalidRecord("items", f"expected a list of items, got {type(items).__name__}")
        # A short batch is encoded before it waits, so it contains the items as they are now.
        nodes = at_once(_new_nodes(items)) if len(items) <= STEP_ITEMS else await in_turns(_new_nodes(items))
        text = canonical_json([item_of_node(node) for node in nodes])
        if self._unsettled is not None and self._unsettled[0] == text:
            nodes = list(self._unsettled[1])
        view = self._view
        try:
            async with self._appender.turn():
                await self._appender.add(Addition(nodes))
        except (OutcomeUnknown, CancelledError):
            self._unsettled = text, nodes
            raise
        except InvalidParent as error:
            reason = f"the last item, {error.parent_node_id!r}, was tombstoned; rewind to a live node first"
            raise InvalidRecord("items", reason) from error
        self._unsettled = None
        tip = self._appender.tip
        if view is not None and tip is not None and tip.revision == view.tip.revision + 1:
            self._view = _View(tip, view.count + len(nodes))

    async def pop_item(self, *, wrapper: Any = None) -> Item | None:
        """Remove the last item and return it; None if there is none. Of several callers, each gets another item.

        Two round trips, and one more for each conflict with another worker. The whole session is read, but only its end
        is decoded. `wrapper` is not used.

        Raises:
            HeadRevisionConflict: other workers wrote first, `POP_ATTEMPTS` times; nothing was removed.
            OutcomeUnknown: the reply was lost; load the items to see whether one was removed.
            CommitTooLarge: another branch is attached to what is removed, and the session is over a limit of
                `StoreOptions`; nothing was removed.
            OwnerMismatch, Corrupt, SessionEvicted: as `RedisSessionStore.update` does.
        """
        popped: list[Item] = []
        leaf: str | None = None

        def turn(read: PersistedSessionRead | None) -> RuntimeCommit:
            nonlocal leaf
            path = [] if read is None else read.graph.active_path()
            count = len(path)
            while count and (item := item_of_node(path[count - 1])) is None:
                count -= 1
            if read is None or not count:
                raise _NothingToPopError
            popped[:] = [item] if item is not None else []
            shorter = rooted(cut(read.graph, path, count - 1))
            leaf = shorter.leaf_node_id
            return RuntimeCommit(self.session_id, graph=ReplaceFull(shorter))

        try:
            async with self._appender.turn():
                result = await self._store.update(turn, attempts=POP_ATTEMPTS)
        except _NothingToPopError:
            return None
        self._appender.tip = Tip.after(result, leaf)
        return popped[0]

    async def clear_session(self, *, wrapper: Any = None) -> None:
        """Remove all items and the rest of the session. Its id is usable at once.

        A handle that used the session before gets `SessionGone` from its next `add_items`, instead of adding to the new
        session an answer to a question that is gone. One round trip. `wrapper` is not used.

        Raises:
            OwnerMismatch, BackendError, OutcomeUnknown: as `RedisSessionStore.delete` does. It can be called again.
        """
        await self._store.delete(reusable=True)
        self._appender.tip = self._view = self._unsettled = None

    # Compaction: `OpenAIResponsesCompactionSession` and `EncryptedSession` of the SDK call these by name.

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Callable[[Item], bool] | None = None
    ) -> CompactionSnapshot:
        """Return the last `limit` items, and a function that replaces them by compare-and-set."""
        read = await self._store.load_session(FullGraph())
        path = [] if read is None else read.graph.active_path()
        ends, items = _items_on(path)
        size = min(limit, len(items))
        base = len(items) - size

        async def replace_suffix(start: int, output: list[Item]) -> bool:
            if read is None or not 0 <= start < size:
                return False
            try:
                await self._replace(read, path, ends[base + start], output, prune_prefix)
            except (HeadRevisionConflict, SessionDeleted):
                return False
            return True

        return CompactionSnapshot(items[base:], base == 0, replace_suffix)

    async def _atomic_replace_items(self, items: list[Item]) -> bool:
        """Replace the items that the last `get_items` without a limit returned, and those added by this handle since.

        Raises:
            HeadRevisionConflict: another handle has changed the session since; nothing was replaced. The SDK would
                otherwise drop items that its compaction has not read.
        """
        read = await self._store.load_session(FullGraph())
        view, tip = self._view, Tip.of(read)
        if view is None or view.tip != tip:
            raise HeadRevisionConflict(None if view is None else view.tip.revision, tip.revision)
        if read is None:
            await self.add_items(items)
            return True
        path = read.graph.active_path()
        ends, _ = _items_on(path)
        await self._replace(read, path, ends[len(ends) - view.count] if view.count else len(path), items)
        return True

    async def _replace(
        self,
        read: PersistedSessionRead,
        path: Sequence[SessionNodeRecord],
        start: int,
        output: Sequence[Item],
        is_expired: Callable[[Item], bool] | None = None,
    ) -> None:
        """Replace the nodes of the path from index `start` on, if the session is as it was read."""
        graph = cut(read.graph, path, start)
        if is_expired is not None:
            graph = without_expired(graph, path[:start], is_expired)
        graph = rooted(grown(graph, output))
        commit = RuntimeCommit(self.session_id, read.head_revision, graph=ReplaceFull(graph), builds_on=read.commit_id)
        result = await self._store.commit_runtime_state(commit)
        self._appender.tip, self._view = Tip.after(result, graph.leaf_node_id), None


class _NothingToPopError(Exception):
    """The session has no item."""


def _settings_of(given: SessionSettings | dict[str, Any] | None) -> SessionSettings:
    if given is None:
        return SessionSettings()
    if isinstance(given, dict):
        try:
            return SessionSettings(**given)
        except (TypeError, ValueError) as error:
            raise InvalidRecord("session_settings", str(error)) from None
    require_type("session_settings", given, SessionSettings)
    return given


def _items_of(read: PersistedSessionRead) -> Steps[list[Item]]:
    """Return the items of a read; each node is a step."""
    items = []
    for _, plugin_type, content in contents_of(read.graph.nodes):
        item = item_of_content(plugin_type, content)
        if item is not None:
            items.append(item)
        yield
    return items


def _items_on(path: Sequence[SessionNodeRecord]) -> tuple[list[int], list[Item]]:
    """Return the indexes of the nodes that have an item, and these items."""
    found = [(at, item) for at, node in enumerate(path) if (item := item_of_node(node)) is not None]
    return [at for at, _ in found], [item for _, item in found]


def _new_nodes(items: Sequence[Any]) -> Steps[list[SessionNodeRecord]]:
    """Return a node for each item, without parents; each item is a step."""
    now, nodes = timestamp_now(), []
    for at, item in enumerate(items):
        node_id = new_message_id()
        nodes.append(SessionNodeRecord(node_id, None, now, payload_of_item(item, node_id, f"items[{at}]")))
        yield
    return nodes


def _is_same_item(stored: SessionNodeRecord, added: SessionNodeRecord) -> bool:
    return canonical_json(item_of_node(stored)) == canonical_json(item_of_node(added))
