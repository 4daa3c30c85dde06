"""Agents and user interfaces of Pydantic AI continue a conversation on another worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    InMemoryConversationStore,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.ui.vercel_ai import VercelAIAdapter
from pydantic_ai.ui.vercel_ai.request_types import RegenerateMessage, SubmitMessage, TextUIPart, UIMessage

from lash_redis.integrations.pydantic_ai import LashConversationStore
from tests.support.conversations import (
    texts_of,
)


def weather_agent(model: Any) -> Agent[None, str]:
    agent = Agent(model)

    @agent.tool_plain
    def weather(city: str) -> str:
        return f"{city}: rain"

    return agent


def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool once for each question, then answer with the number of messages that were sent."""
    if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
        return ModelResponse(parts=[TextPart(f"after {len(messages)} messages")])
    return ModelResponse(parts=[ToolCallPart("weather", {"city": "Oslo"})])


@pytest.mark.parametrize("model", [TestModel(), FunctionModel(scripted)], ids=["test", "function"])
async def test_an_agent_continues_its_conversation_on_another_worker(open_store, model):
    oracle, agent = InMemoryConversationStore(), weather_agent(model)
    for turn in range(3):
        store = open_store()
        conversation = await store.load("c1") or Conversation(conversation_id="c1")
        assert (len(conversation.messages) > 0) == (turn > 0)
        result = await agent.run(f"question {turn}", conversation=conversation)
        entries = await store.save(result, scope="alice" if turn == 0 else None)
        assert [entry.message for entry in entries] == result.new_messages()
        loaded = await open_store().load("c1", scope="alice")
        assert loaded.messages == result.all_messages()
        assert loaded.usage == result.usage
        assert loaded.revision == result.conversation.revision
        result.conversation.revision = None
    await oracle.save(replace(loaded, revision=None))
    assert (await oracle.load("c1")).messages == loaded.messages


async def test_a_run_on_the_last_messages_extends_the_whole_conversation(conversations, open_store):
    agent = weather_agent(FunctionModel(scripted))
    await conversations.save(await agent.run("first", conversation=Conversation(conversation_id="c1")))
    recent = await open_store().load("c1", limit=1)
    result = await agent.run("second", conversation=recent)
    assert len(await conversations.save(result)) == 4
    loaded = await conversations.load("c1")
    assert len(loaded.messages) == 8
    assert loaded.messages[-1].parts[0].content == "after 4 messages"


async def test_a_paused_run_is_resumed_on_another_worker(open_store):
    agent = Agent(FunctionModel(scripted), output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def weather(city: str) -> str:
        return f"{city}: rain"

    paused = await agent.run("weather?", conversation=Conversation(conversation_id="c1"))
    assert isinstance(paused.output, DeferredToolRequests)
    await open_store().save(paused)
    conversation = await open_store().load("c1")
    answers = conversation.deferred_tool_requests.build_results(approve_all=True)
    result = await agent.run(conversation=conversation, deferred_tool_results=answers)
    assert result.output.startswith("after")
    await open_store().save(result)
    loaded = await open_store().load("c1")
    assert loaded.deferred_tool_requests is None
    assert loaded.messages == result.all_messages()


def vercel_request(conversation_id: str, text: str, message_id: str, **more: Any) -> SubmitMessage:
    message = UIMessage(id=message_id, role="user", parts=[TextUIPart(text=text)])
    return SubmitMessage(id=conversation_id, messages=[message], **more)


async def streamed(store: LashConversationStore, asked: Any, scope: str | None = "alice") -> str:
    adapter = VercelAIAdapter(
        agent=weather_agent(FunctionModel(stream_function=scripted_stream)),
        run_input=asked,
        conversation_store=store,
        conversation_scope=scope,
        sdk_version=6,
    )
    return "".join([event async for event in adapter.encode_stream(adapter.run_stream())])


async def scripted_stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    yield f"after {len(messages)} "
    yield "messages"


async def test_a_ui_adapter_keeps_the_conversation_in_the_store(conversations, open_store):
    await streamed(conversations, vercel_request("c1", "one", "m1"))
    stream = await streamed(open_store(), vercel_request("c1", "two", "m2"))
    entries = await open_store().load_entries("c1", scope="alice")
    assert texts_of(await conversations.load("c1")) == ["one", "after 1 messages", "two", "after 3 messages"]
    assert "data-conversation-saved" in stream
    assert entries[-1].id in stream
    last = UIMessage(id="m2", role="user", parts=[TextUIPart(text="two")])
    again = RegenerateMessage(trigger="regenerate-message", id="c1", messages=[last])
    await streamed(open_store(), again)
    assert texts_of(await conversations.load("c1")) == ["one", "after 1 messages", "two", "after 3 messages"]
    assert (await conversations.read_record("c1")).branches == [entries[-1].id]
    refused = await streamed(open_store(), vercel_request("c1", "three", "m3"), scope="bob")
    assert "was not found" in refused
    assert len(await conversations.load_entries("c1")) == 4
    assert [record.conversation_id for record in await conversations.list_conversations(scope="alice")] == ["c1"]
