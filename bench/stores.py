"""How does this package save a turn and resume a session? Its stores, and the interface of all stores of `bench.peers`.

`peer_stores.py` has the stores of other packages. Converting messages to a store's classes is not timed; encoding is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import bare, workload
from lash_redis import (
    Chat,
    EventPayload,
    FullGraph,
    PersistedSessionRead,
    SessionCache,
    SessionNodeRecord,
    StoreOptions,
    connect,
)
from lash_redis.cli.conversations import record_of

TOOLS = workload.tool_state()
TOOLS_JSON = {name: dict(entry.manifest) for name, entry in TOOLS.tools.items()}
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """Two messages, and the state after them: 20 KB of tools (always the same), 4 KB of plugin, 8 KB of execution."""

    number: int
    writer: str
    messages: Sequence[Message]

    def state(self) -> dict[str, Any]:
        """Return the state as JSON values, for the stores that keep state."""
        plugin = workload.plugin_snapshot(self.writer, self.number).plugins["memory"].meta.state
        return {
            "writer": self.writer,
            "tools": TOOLS_JSON,
            "plugin": plugin,
            "execution": workload.execution_state(self.writer, self.number).decode(),
        }


class Worker(ABC):
    """A worker that has one session open. Several workers may have the same session open."""

    @abstractmethod
    async def begin(self, messages: Sequence[Message]) -> None:
        """Begin the session with these messages; not timed."""

    @abstractmethod
    def prepare(self, turn: Turn) -> Any:
        """Return the turn in the store's own classes, built on what this worker read last."""

    @abstractmethod
    async def commit(self, prepared: Any) -> None: ...

    @abstractmethod
    async def resume(self) -> Any:
        """Return everything that is stored, decoded."""

    @abstractmethod
    def texts(self, resumed: Any) -> list[str]: ...

    def writer(self, resumed: Any) -> str | None:
        """Return which worker wrote the state that was resumed; None if the store keeps no state."""
        return None


class Store(ABC):
    """A store, opened once. `worker` opens no connection."""

    name: str
    commits = True
    """Whether its commits and failures are measured. False if another row has those of the same store."""
    keeps_reads = False
    """Whether its worker keeps its read, and another worker commits a turn before each resume."""
    keeps_state = False
    branches = False
    on_redis = True

    @abstractmethod
    def opened(self, url: str) -> Any:
        """Return an asynchronous context in which `worker` may be called."""

    @abstractmethod
    def worker(self, session_id: str) -> Worker: ...


# lash_redis


class LashWorker(Worker):
    def __init__(self, cache: SessionCache, session_id: str) -> None:
        self._session = workload.Session(cache, session_id)

    def _nodes(self, messages: Sequence[Message], writer: str) -> list[SessionNodeRecord]:
        nodes, parent = [], self._session.leaf
        for place, message in enumerate(messages, self._session.nodes):
            name = f"{writer}{place:08x}"
            event = EventPayload({"Conversation": record_of("chat", name, dict(message))})
            nodes.append(SessionNodeRecord(name, parent, "2026-11-22T10:00:00.000Z", event))
            parent = name
        return nodes

    async def begin(self, messages: Sequence[Message]) -> None:
        await self._session.begin(TOOLS, self._nodes(messages, "m"))

    def prepare(self, turn: Turn) -> Any:
        return self._session.turn(self._nodes(turn.messages, turn.writer))

    async def commit(self, prepared: Any) -> None:
        await self._session.commit(prepared)

    async def resume(self) -> PersistedSessionRead:
        read = await self.read()
        for node in read.graph.nodes:
            node.event()
        return read

    async def read(self) -> PersistedSessionRead:
        read = await self._session.store.load_session(FullGraph())
        assert read is not None
        session = self._session
        session.nodes, session.turns, session.leaf = len(read.graph.nodes), read.head_revision, read.graph.leaf_node_id
        session.commit_id = read.commit_id
        session.tool_ref = read.checkpoint and read.checkpoint.tool_state_ref
        return read

    def texts(self, resumed: PersistedSessionRead) -> list[str]:
        return [part["content"] for node in resumed.graph.nodes for part in (node.message() or {}).get("parts", ())]


class UndecodedWorker(LashWorker):
    async def resume(self) -> PersistedSessionRead:
        return await self.read()


class RefreshedWorker(LashWorker):
    """A worker that keeps its read, components included. Another worker commits all turns."""

    def __init__(self, cache: SessionCache, session_id: str) -> None:
        super().__init__(cache, session_id)
        self._other = LashWorker(cache, session_id)
        self._kept: PersistedSessionRead

    async def begin(self, messages: Sequence[Message]) -> None:
        await self._other.begin(messages)
        self._kept = await super().resume()

    async def commit_elsewhere(self, turn: Turn) -> None:
        """Commit this turn by the other worker; not timed."""
        await self._other.commit(self._other.prepare(turn))

    async def resume(self) -> PersistedSessionRead:
        """Refresh the read, and decode the new nodes. The others are decoded already."""
        had = len(self._kept.graph.nodes)
        read = await self._session.store.refresh(self._kept)
        assert read is not None
        for node in read.graph.nodes[had:]:
            node.event()
        self._kept = read
        return read


class LashRedis(Store):
    """A worker that never read the session. With `has_tools` it has the tool state cached."""

    name = "lash_redis"
    keeps_state = branches = True

    def __init__(self, *, has_tools: bool = False) -> None:
        self.options = StoreOptions() if has_tools else StoreOptions(blob_cache_bytes=0)

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with connect(url, namespace="peers", options=self.options) as self._cache:
            yield

    def worker(self, session_id: str) -> LashWorker:
        return LashWorker(self._cache, session_id)


class LashUndecoded(LashRedis):
    name = "lash_redis, messages not decoded"
    commits = False

    def worker(self, session_id: str) -> LashWorker:
        return UndecodedWorker(self._cache, f"undecoded-{session_id}")


class LashRefreshed(LashRedis):
    """A worker that served the session a turn ago. Another worker has committed one turn since."""

    name = "lash_redis, a kept read refreshed"
    commits = False
    keeps_reads = True

    def worker(self, session_id: str) -> LashWorker:
        return RefreshedWorker(self._cache, f"refreshed-{session_id}")


class BareWorker(LashWorker):
    """A worker that stores the same nodes and states without any check."""

    def __init__(self, client: redis.Redis, cache: SessionCache, session_id: str) -> None:
        super().__init__(cache, session_id)
        self._plain = bare.Session(client, session_id, msgpack.packb(TOOLS.to_msgpack()))

    async def begin(self, messages: Sequence[Message]) -> None:
        nodes = self._nodes(messages, "m")
        self._session.nodes, self._session.leaf = len(nodes), nodes[-1].node_id
        await self._plain.begin(nodes)

    def prepare(self, turn: Turn) -> Any:
        return self._plain.turn(self._nodes(turn.messages, turn.writer))

    async def commit(self, prepared: Any) -> None:
        await self._plain.commit(prepared)

    async def resume(self) -> Any:
        replies = await self._plain.read()
        return [msgpack.unpackb(record) for record in replies[1]]


class Bare(Store):
    name = "bare: no checks, encoded in advance"
    keeps_state = True

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with redis.from_url(url) as self._client, connect(url, namespace="bare") as self._cache:
            yield

    def worker(self, session_id: str) -> BareWorker:
        return BareWorker(self._client, self._cache, session_id)


# Chats


class ChatWorker(Worker):
    def __init__(self, cache: SessionCache, session_id: str, limit: int | None, *, is_warm: bool) -> None:
        self._cache, self._session_id, self._limit = cache, session_id, limit
        self._warm = cache.chat(session_id) if is_warm else None

    def _chat(self) -> Chat:
        return self._warm or self._cache.chat(self._session_id)

    async def begin(self, messages: Sequence[Message]) -> None:
        for at in range(0, len(messages), 500):
            await self._chat().append(*map(dict, messages[at : at + 500]))

    def prepare(self, turn: Turn) -> Any:
        return [dict(message) for message in turn.messages]

    async def commit(self, prepared: Any) -> None:
        await self._chat().append(*prepared)

    async def resume(self) -> Any:
        return await self._chat().messages(self._limit)

    def texts(self, resumed: Any) -> list[str]:
        return [message["content"] for message in resumed]


class Chats(Store):
    """Plain chats. A warm worker keeps the handle, any other makes one for each call, as a web request does.

    A resume reads all messages, or the last `limit`.
    """

    name = "lash_redis chat"

    def __init__(self, *, is_warm: bool = True, limit: int | None = None) -> None:
        self._is_warm, self._limit = is_warm, limit

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with connect(url, namespace="chats") as self._cache:
            yield

    def worker(self, session_id: str) -> Worker:
        return ChatWorker(self._cache, session_id, self._limit, is_warm=self._is_warm)
