"""`lash-redis import --from redis-session` and `langchain`: store the histories that other libraries keep in a Redis.

A history is read, what the session lacks of it is added, and both sides are read again and compared. So an interrupted
import can be run again, and a later run adds what the old application has written meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from lash_redis.cache import SessionCache
from lash_redis.cli.bar import progress_bar
from lash_redis.cli.connection import opened
from lash_redis.cli.output import UNFIT, USAGE, CommandError
from lash_redis.errors import BackendError, HeadRevisionConflict, InvalidRecord, OutcomeUnknown, StoreError
from lash_redis.integrations.import_chunks import chunks_of
from lash_redis.models import Append, EventPayload, ImportReport, RuntimeCommit, SessionNodeRecord
from lash_redis.models.chat_messages import canonical_json, record_of_chat_message
from lash_redis.models.import_counts import ImportCounts
from lash_redis.models.node import NodePayload, new_message_id, timestamp_now
from lash_redis.session.appender import chained
from lash_redis.session.store import RedisSessionStore

WINDOW = 16
"""Maximum number of sessions in flight."""

Items = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Library:
    """Where a library keeps its histories, and how a session gets one."""

    before: str
    """What comes before the session id in the name of a key."""
    after: str
    """What comes behind the session id."""
    decode: Callable[[Sequence[bytes]], Items]
    """Decodes the elements of a list into items, the oldest first. It raises ValueError for an invalid element."""
    target: Callable[[SessionCache, str], Target]
    """Returns the session with an id."""

    @property
    def pattern(self) -> str:
        """The pattern of SCAN that matches its keys."""
        return f"{_literal(self.before)}*{_literal(self.after)}"

    def session_id(self, key: bytes) -> str:
        """Return the session id in the name of a key. It raises ValueError if that is no UTF-8."""
        return key.decode().removeprefix(self.before).removesuffix(self.after)


@dataclass(frozen=True, slots=True)
class Target:
    """The session that gets a history."""

    store: RedisSessionStore
    read: Callable[[], Awaitable[Items]]
    payload: Callable[[dict[str, Any], str, str], NodePayload]
    """Encodes an item for a node, with the node's id and the place of the item for errors."""

    def nodes(self, items: Items) -> list[SessionNodeRecord]:
        """Return a node without a parent for each item."""
        now, nodes = timestamp_now(), []
        for at, item in enumerate(items):
            node_id = new_message_id()
            nodes.append(SessionNodeRecord(node_id, None, now, self.payload(item, node_id, f"items[{at}]")))
        return nodes


def redis_session(prefix: str | None) -> Library:
    """The lists of `RedisSession` of the OpenAI Agents SDK. `prefix` is its `key_prefix`."""
    try:
        from lash_redis.integrations.openai_agents import LashSession
        from lash_redis.integrations.openai_agents.items import payload_of_item
    except ModuleNotFoundError as error:
        text = "--from redis-session needs the OpenAI Agents SDK: pip install 'lash-redis[openai-agents]'"
        raise CommandError(USAGE, text) from error

    def target(cache: SessionCache, session_id: str) -> Target:
        session = LashSession(session_id, cache)
        return Target(session.store, session.get_items, payload_of_item)

    return Library(f"{'agents:session' if prefix is None else prefix}:", ":messages", _objects, target)


def langchain(prefix: str | None) -> Library:
    """The lists of `RedisChatMessageHistory` of langchain-community, the newest first. `prefix` is its `key_prefix`."""
    try:
        from langchain_core.messages import convert_to_openai_messages, messages_from_dict
    except ModuleNotFoundError as error:
        raise CommandError(USAGE, "--from langchain needs langchain-core: pip install langchain-core") from error

    def decode(elements: Sequence[bytes]) -> Items:
        values = _objects(elements[::-1])
        try:
            messages: Any = convert_to_openai_messages(messages_from_dict(values))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"an element is no message of LangChain: {error!r}") from error
        return list(messages)

    def target(cache: SessionCache, session_id: str) -> Target:
        chat = cache.chat(session_id)

        async def read() -> Items:
            return [{key: value for key, value in each.items() if key != "id"} for each in await chat.messages()]

        return Target(chat.store, read, _payload_of_message)

    return Library("message_store:" if prefix is None else prefix, "", decode, target)


def _payload_of_message(message: dict[str, Any], message_id: str, where: str) -> EventPayload:
    return EventPayload({"Conversation": record_of_chat_message(message, message_id)})


def _objects(elements: Sequence[bytes]) -> Items:
    values = []
    for at, element in enumerate(elements):
        try:
            value = json.loads(element)
        except RecursionError as error:
            raise InvalidRecord(f"element {at}", f"is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InvalidRecord(f"element {at}", f"expected a JSON object, got {type(value).__name__}")
        values.append(value)
    return values


def keys_with_prefix(client: redis.Redis, prefix: str, kind: str) -> AsyncIterator[bytes]:
    """Yield the names of the keys of a type that begin with a text."""
    return client.scan_iter(f"{_literal(prefix)}*", 1000, kind)


def _literal(text: str) -> str:
    """Escape a text for a pattern of SCAN."""
    return re.sub(r"([*?\[\]\\^-])", r"\\\1", text)


async def import_histories(url: str, namespace: str, library: Library, source: str, ttl: float | None) -> ImportReport:
    """Store every history of the library on the server `source` as a session with the history's id.

    Raises:
        CommandError: the source cannot be read, or has no history.
        BackendError, OutcomeUnknown: the target failed; run the import again.
    """
    try:
        client = redis.Redis.from_url(source)
    except ValueError as error:
        raise CommandError(USAGE, f"the source's URL is invalid: {error}") from error
    async with client, opened(url, namespace, ttl=ttl) as cache:
        try:
            return await _Import(library, client, cache).run()
        except RedisError as error:
            raise CommandError(USAGE, f"the source cannot be read: {error}") from error


class _Import:
    """The progress of an import."""

    def __init__(self, library: Library, source: redis.Redis, cache: SessionCache) -> None:
        self._library, self._source, self._cache = library, source, cache
        self._counts = ImportCounts()

    async def run(self) -> ImportReport:
        pattern = self._library.pattern
        keys = [key async for key in self._source.scan_iter(pattern, 1000, "list")]
        if not keys:
            raise CommandError(UNFIT, f"no list on the source matches {pattern!r}; check its database and --prefix")
        free = asyncio.Semaphore(WINDOW)
        with progress_bar() as bar:
            bar.start("sessions", len(keys))

            async def one(key: bytes) -> None:
                async with free:
                    await self._one(key)
                bar.advance()

            try:
                async with asyncio.TaskGroup() as tasks:
                    for key in sorted(keys):
                        tasks.create_task(one(key))
            except* (BackendError, OutcomeUnknown, RedisError) as failures:
                raise failures.exceptions[0] from None
        return self._counts.report()

    async def _one(self, key: bytes) -> None:
        try:
            has_added = await self._copy(key)
        except (BackendError, OutcomeUnknown):
            raise
        except (StoreError, ValueError) as error:
            self._counts.fail(key.decode(errors="replace"), error)
        else:
            self._counts.add(is_present=not has_added)

    async def _copy(self, key: bytes) -> bool:
        """Add to the session what it lacks of a history, and compare both sides. Return whether anything was added.

        Nothing is added behind what another client, such as a second import, has added meanwhile.

        Raises:
            ValueError: the history is invalid, the session has other items, or either changed meanwhile.
        """
        target = self._library.target(self._cache, self._library.session_id(key))
        head = await target.store.load_head()
        revision, leaf = (0, None) if head is None else (head.head_revision, head.leaf_node_id)
        wanted, stored = await self._read(key), await target.read()
        if not _is_equal(wanted[: len(stored)], stored):
            raise ValueError("the session exists already, with other items")
        for chunk in chunks_of(wanted[len(stored) :], lambda item: len(canonical_json(item))):
            nodes = chained(target.nodes(chunk), leaf)
            try:
                made = await target.store.commit_runtime_state(
                    RuntimeCommit(target.store.session_id, revision, graph=Append(nodes))
                )
            except HeadRevisionConflict as error:
                raise ValueError("the session changed during the import; run it again") from error
            revision, leaf = made.head_revision, nodes[-1].node_id
        if not _is_equal(await self._read(key), await target.read()):
            raise ValueError("the history changed during the import; run it again")
        return len(wanted) > len(stored)

    async def _read(self, key: bytes) -> Items:
        elements: Any = await self._source.lrange(key, 0, -1)
        return self._library.decode(elements)


def _is_equal(one: Items, other: Items) -> bool:
    return canonical_json(one) == canonical_json(other)
