"""How do the stores of other packages save a turn and resume a session? Behind the interface of `stores.py`.

This module needs the packages of `peers-requirements.txt`, which `make bench-peers` installs. Each store is used as its
documentation shows, with its defaults.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis.asyncio as redis
from agents.extensions.memory.redis_session import RedisSession
from agno.db.base import SessionType
from agno.db.redis import RedisDb
from agno.models.message import Message as AgnoMessage
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session.agent import AgentSession
from langchain_community.chat_message_histories import RedisChatMessageHistory
from langchain_core.messages import convert_to_messages
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from llama_index.core.llms import ChatMessage
from llama_index.storage.chat_store.redis import RedisChatStore

from bench.stores import Bare, LashRedis, LashRefreshed, LashUndecoded, Message, Store, Turn, Worker
from lash_redis import connect
from lash_redis.integrations.openai_agents import LashSession

logging.getLogger("llama_index").setLevel(logging.ERROR)


# Lists of messages


class OpenAIWorker(Worker):
    """A worker with a session of the SDK, as `Runner` uses it: it reads the session, and then adds items to it."""

    def __init__(self, session: Any, limit: int | None) -> None:
        self._session = session
        self._limit = limit

    async def begin(self, messages: Sequence[Message]) -> None:
        for at in range(0, len(messages), 500):
            await self._session.add_items([dict(message) for message in messages[at : at + 500]])

    def prepare(self, turn: Turn) -> Any:
        return [dict(message) for message in turn.messages]

    async def commit(self, prepared: Any) -> None:
        await self._session.add_items(prepared)

    async def resume(self) -> Any:
        return await self._session.get_items(self._limit)

    def texts(self, resumed: Any) -> list[str]:
        return [item["content"] for item in resumed]


class OpenAI(Store):
    """A resume reads all messages, or the last `limit`."""

    name = "openai-agents RedisSession"

    def __init__(self, *, limit: int | None = None) -> None:
        self._limit = limit

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with redis.from_url(url) as self._client:
            yield

    def worker(self, session_id: str) -> Worker:
        return OpenAIWorker(RedisSession(session_id, redis_client=self._client), self._limit)


class LashOpenAI(Store):
    """The session of this package for the same SDK."""

    name = "lash_redis LashSession"

    def __init__(self, *, limit: int | None = None) -> None:
        self._limit = limit

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with connect(url, namespace="agents") as self._cache:
            yield

    def worker(self, session_id: str) -> Worker:
        return OpenAIWorker(LashSession(session_id, self._cache), self._limit)


class LangChainWorker(Worker):
    def __init__(self, history: RedisChatMessageHistory) -> None:
        self._history = history

    async def begin(self, messages: Sequence[Message]) -> None:
        self._history.add_messages(convert_to_messages([dict(message) for message in messages]))

    def prepare(self, turn: Turn) -> Any:
        return convert_to_messages([dict(message) for message in turn.messages])

    async def commit(self, prepared: Any) -> None:
        self._history.add_messages(prepared)

    async def resume(self) -> Any:
        return self._history.messages

    def texts(self, resumed: Any) -> list[str]:
        return [message.content for message in resumed]


class LangChain(Store):
    """Its client blocks. Each history opens a client of its own, so here all share that of the first."""

    name = "langchain-community RedisChatMessageHistory"

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        self._url = url
        self._client = RedisChatMessageHistory("first", url=url).redis_client
        try:
            yield
        finally:
            self._client.close()

    def worker(self, session_id: str) -> Worker:
        history = RedisChatMessageHistory(session_id, url=self._url)
        history.redis_client.close()
        history.redis_client = self._client
        return LangChainWorker(history)


class LlamaIndexWorker(Worker):
    def __init__(self, store: RedisChatStore, session_id: str) -> None:
        self._store, self._session_id = store, session_id

    def _converted(self, messages: Sequence[Message]) -> list[ChatMessage]:
        return [
            ChatMessage(
                role=message["role"],
                content=message.get("content") or "",
                additional_kwargs={key: value for key, value in message.items() if key not in ("role", "content")},
            )
            for message in messages
        ]

    async def begin(self, messages: Sequence[Message]) -> None:
        await self._store.aset_messages(self._session_id, self._converted(messages))

    def prepare(self, turn: Turn) -> Any:
        return self._converted(turn.messages)

    async def commit(self, prepared: Any) -> None:
        for message in prepared:
            await self._store.async_add_message(self._session_id, message)

    async def resume(self) -> Any:
        return await self._store.aget_messages(self._session_id)

    def texts(self, resumed: Any) -> list[str]:
        return [message.content or "" for message in resumed]


class LlamaIndex(Store):
    name = "llama-index RedisChatStore"

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with redis.from_url(url) as client:
            self._store = RedisChatStore(redis_url=url, aredis_client=client)
            yield

    def worker(self, session_id: str) -> Worker:
        return LlamaIndexWorker(self._store, session_id)


# Messages and state


class AgnoWorker(Worker):
    """A turn is what an agent saves: the run, then the session with its state. Both calls block."""

    def __init__(self, database: RedisDb, session_id: str) -> None:
        self._database, self._session_id = database, session_id
        self._runs = 0

    def _run(self, messages: Sequence[Message]) -> tuple[RunOutput, int]:
        own = [
            AgnoMessage(
                role=message["role"], content=message.get("content") or "", tool_calls=message.get("tool_calls")
            )
            for message in messages
        ]
        self._runs += 1
        run = RunOutput(
            run_id=uuid4().hex, agent_id="agent", session_id=self._session_id, messages=own, status=RunStatus.completed
        )
        return run, self._runs

    async def begin(self, messages: Sequence[Message]) -> None:
        for at in range(0, len(messages), 2):
            run, index = self._run(messages[at : at + 2])
            self._database.upsert_run(run, self._session_id, run_index=index)
        await self.commit(self.prepare(Turn(0, "m", messages[:2])))

    def prepare(self, turn: Turn) -> Any:
        state = AgentSession(self._session_id, agent_id="agent", session_data={"session_state": turn.state()})
        return *self._run(turn.messages), state

    async def commit(self, prepared: Any) -> None:
        run, index, session = prepared
        self._database.upsert_run(run, self._session_id, run_index=index)
        self._database.upsert_session(session)

    async def resume(self) -> Any:
        session = self._database.get_session(self._session_id, SessionType.AGENT)
        self._runs = len(session.runs or ())
        return session

    def texts(self, resumed: Any) -> list[str]:
        return [message.content for run in resumed.runs for message in run.messages]

    def writer(self, resumed: Any) -> str | None:
        return str(resumed.session_data["session_state"]["writer"])


class Agno(Store):
    name = "agno RedisDb"
    keeps_state = True

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        self._database = RedisDb(db_url=url)
        try:
            yield
        finally:
            self._database.redis_client.close()

    def worker(self, session_id: str) -> Worker:
        return AgnoWorker(self._database, session_id)


class LangGraphWorker(Worker):
    """A turn is one checkpoint and one write, which is the least. A graph of one node saves three and five."""

    def __init__(self, saver: AsyncSqliteSaver, session_id: str) -> None:
        self._saver = saver
        self._config: Any = {"configurable": {"thread_id": session_id, "checkpoint_ns": ""}}
        self._messages: list[Any] = []

    def _checkpoint(self, turn: Turn) -> tuple[Any, list[Any]]:
        messages = convert_to_messages([dict(message) for message in turn.messages])
        checkpoint = empty_checkpoint()
        version = f"{turn.number + 1:032}.0"
        values = {"messages": [*self._messages, *messages], **turn.state()}
        checkpoint["channel_values"] = values
        checkpoint["channel_versions"] = dict.fromkeys(values, version)
        return checkpoint, messages

    async def begin(self, messages: Sequence[Message]) -> None:
        await self.commit(self.prepare(Turn(0, "m", messages)))

    def prepare(self, turn: Turn) -> Any:
        return self._checkpoint(turn)

    async def commit(self, prepared: Any) -> None:
        checkpoint, messages = prepared
        metadata: Any = {"source": "loop", "step": 1, "parents": {}}
        config = await self._saver.aput(self._config, checkpoint, metadata, checkpoint["channel_versions"])
        await self._saver.aput_writes(config, [("messages", messages)], "task")
        self._config, self._messages = config, checkpoint["channel_values"]["messages"]

    async def resume(self) -> Any:
        thread = self._config["configurable"]["thread_id"]
        found = await self._saver.aget_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ""}})
        assert found is not None
        self._config, self._messages = found.config, found.checkpoint["channel_values"]["messages"]
        return found.checkpoint["channel_values"]

    def texts(self, resumed: Any) -> list[str]:
        return [message.content for message in resumed["messages"]]

    def writer(self, resumed: Any) -> str | None:
        return str(resumed["writer"])


class LangGraphSqlite(Store):
    name = "langgraph-checkpoint-sqlite"
    keeps_state = branches = True
    on_redis = False

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            async with AsyncSqliteSaver.from_conn_string(str(Path(folder, "graph.sqlite"))) as self._saver:
                yield

    def worker(self, session_id: str) -> Worker:
        return LangGraphWorker(self._saver, session_id)


def all_stores() -> list[Store]:
    """Return every store, `lash_redis` first."""
    own: list[Store] = [LashRedis(), LashUndecoded(), LashRefreshed()]
    return [*own, Bare(), OpenAI(), LangChain(), LlamaIndex(), Agno(), LangGraphSqlite()]
