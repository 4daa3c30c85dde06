"""How do the stores of agent SDKs save a turn and resume a session? Behind the interface of `stores.py`.

Each SDK has a store of this package, the stores that the SDK itself has, and for Pydantic AI a bare GET and SET. This
module needs the packages of `peers-requirements.txt`, which `make bench-peers` installs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import redis.asyncio as redis
from agents.memory import SQLiteSession
from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, DatabaseSessionService, InMemorySessionService, Session
from google.genai import types
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationStore, InMemoryConversationStore
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelRequest, ModelResponse, TextPart
from pydantic_ai.messages import UserPromptPart as Prompt

from bench.peer_stores import LashOpenAI, OpenAI, OpenAIWorker
from bench.stores import Message, Store, Turn, Worker
from lash_redis import connect
from lash_redis.integrations.google_adk import LashSessionService
from lash_redis.integrations.pydantic_ai import LashConversationStore

AT = datetime(2026, 11, 28, tzinfo=UTC)


class OnDisk(Store):
    """A store with an SQLite file."""

    on_redis = False
    folder = ""

    @property
    def path(self) -> str:
        return os.path.join(self.folder, "sessions.db")

    def stored_bytes(self) -> int:
        return sum(entry.stat().st_size for entry in os.scandir(self.folder))


# OpenAI Agents SDK


class OpenAISqlite(OnDisk):
    name = "SQLiteSession"

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as self.folder:
            self._sessions: list[SQLiteSession] = []
            yield
            for session in self._sessions:
                session.close()

    def worker(self, session_id: str) -> Worker:
        self._sessions.append(session := SQLiteSession(session_id, self.path))
        return OpenAIWorker(session, None)


# Pydantic AI


def model_messages(messages: Sequence[Message]) -> list[ModelMessage]:
    return [
        ModelResponse(parts=[TextPart(_text(message))], timestamp=AT)
        if message["role"] == "assistant"
        else ModelRequest(parts=[Prompt(_text(message), timestamp=AT)], timestamp=AT)
        for message in messages
    ]


def _text(message: Message) -> str:
    """Return the text of a message; of a message without one, its JSON, so that it is as long."""
    content = message.get("content")
    return content if isinstance(content, str) and content else str(dict(message))


class PydanticWorker(Worker):
    """A worker that loads a conversation, lets a run add messages to it, and saves it."""

    def __init__(self, store: ConversationStore, conversation_id: str) -> None:
        self._store, self._id = store, conversation_id
        self._conversation = Conversation(conversation_id=conversation_id)

    async def begin(self, messages: Sequence[Message]) -> None:
        self._conversation.messages = model_messages(messages)
        await self._store.save(self._conversation)

    def prepare(self, turn: Turn) -> Any:
        self._conversation.messages.extend(model_messages(turn.messages))

    async def commit(self, prepared: Any) -> None:
        await self._store.save(self._conversation)

    async def resume(self) -> Any:
        found = await self._store.load(self._id)
        assert found is not None
        self._conversation = found
        return found.messages

    def texts(self, resumed: Any) -> list[str]:
        return [part.content for message in resumed for part in message.parts]


class LashPydantic(Store):
    name = "LashConversationStore"

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with connect(url, namespace="conversations") as cache:
            self._store = LashConversationStore(cache)
            yield

    def worker(self, session_id: str) -> Worker:
        return PydanticWorker(self._store, session_id)


class PydanticMemory(Store):
    name = "InMemoryConversationStore"
    on_redis = False

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        self._store = InMemoryConversationStore()
        yield

    def worker(self, session_id: str) -> Worker:
        return PydanticWorker(self._store, session_id)


class BareWorker(Worker):
    """A worker that saves all messages of a conversation as the JSON of one key, without any check."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client, self._key = client, key
        self._messages: list[ModelMessage] = []

    async def begin(self, messages: Sequence[Message]) -> None:
        self._messages = model_messages(messages)
        await self.commit(None)

    def prepare(self, turn: Turn) -> Any:
        self._messages.extend(model_messages(turn.messages))

    async def commit(self, prepared: Any) -> None:
        await self._client.set(self._key, ModelMessagesTypeAdapter.dump_json(self._messages))

    async def resume(self) -> Any:
        self._messages = ModelMessagesTypeAdapter.validate_json(await self._client.get(self._key))
        return self._messages

    def texts(self, resumed: Any) -> list[str]:
        return [part.content for message in resumed for part in message.parts]


class BarePydantic(Store):
    name = "bare SET and GET"

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with redis.from_url(url) as self._client:
            yield

    def worker(self, session_id: str) -> Worker:
        return BareWorker(self._client, f"conversation:{session_id}")


# Google ADK


class AdkWorker(Worker):
    """A worker that has a session loaded. A turn is one event, the first message, with one key of the state."""

    def __init__(self, service: BaseSessionService, session_id: str) -> None:
        self._service = service
        self._names = {"app_name": "app", "user_id": "user", "session_id": session_id}
        self._session: Session | None = None

    async def begin(self, messages: Sequence[Message]) -> None:
        self._session = await self._service.create_session(**self._names, state={"n": 0})
        for number, message in enumerate(messages):
            await self.commit(_event(message, number))

    def prepare(self, turn: Turn) -> Any:
        return _event(turn.messages[0], turn.number)

    async def commit(self, prepared: Any) -> None:
        assert self._session is not None
        await self._service.append_event(self._session, prepared)

    async def resume(self) -> Any:
        self._session = await self._service.get_session(**self._names)
        assert self._session is not None
        return self._session

    def texts(self, resumed: Any) -> list[str]:
        return [event.content.parts[0].text for event in resumed.events]


def _event(message: Message, number: int) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=_text(message))])
    return Event(author="user", content=content, actions=EventActions(state_delta={"n": number}))


class LashAdk(Store):
    name = "LashSessionService"

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        async with connect(url, namespace="adk") as cache:
            self._service = LashSessionService(cache)
            yield

    def worker(self, session_id: str) -> Worker:
        return AdkWorker(self._service, session_id)


class AdkSqlite(OnDisk):
    name = "DatabaseSessionService, SQLite"

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as self.folder:
            async with DatabaseSessionService(f"sqlite+aiosqlite:///{self.path}") as self._service:
                yield

    def worker(self, session_id: str) -> Worker:
        return AdkWorker(self._service, session_id)


class AdkMemory(Store):
    name = "InMemorySessionService"
    on_redis = False

    @asynccontextmanager
    async def opened(self, url: str) -> AsyncIterator[None]:
        self._service = InMemorySessionService()
        yield

    def worker(self, session_id: str) -> Worker:
        return AdkWorker(self._service, session_id)


def stores_of_sdks() -> dict[str, list[Store]]:
    """Return the stores of each SDK, the one of this package first."""
    return {
        "openai-agents": [LashOpenAI(), OpenAI(), OpenAISqlite()],
        "pydantic-ai-slim": [LashPydantic(), BarePydantic(), PydanticMemory()],
        "google-adk": [LashAdk(), AdkSqlite(), AdkMemory()],
    }
