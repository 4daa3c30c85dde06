"""Messages of Pydantic AI of every kind, and conversations of them in few words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationStore,
)
from pydantic_ai.messages import (
    BinaryContent,
    BinaryImage,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage

AT = datetime(2026, 11, 28, 9, 30, 0, 123456, tzinfo=UTC)


def user(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text, timestamp=AT)], timestamp=AT)


def answer(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(text)], timestamp=AT, model_name="m", usage=RequestUsage(input_tokens=3))


def request(*parts: Any, **more: Any) -> ModelRequest:
    return ModelRequest(parts=list(parts), **more)


def response(*parts: Any, **more: Any) -> ModelResponse:
    return ModelResponse(parts=list(parts), timestamp=AT, **more)


def prompt(content: Any) -> UserPromptPart:
    return UserPromptPart(content, timestamp=AT)


IMAGE = BinaryImage(data=bytes(range(256)) * 4, media_type="image/png")
CALL = ToolCallPart("weather", {"city": "Oslo"}, tool_call_id="c1")
MESSAGES: dict[str, ModelMessage] = {
    "user": user("hi"),
    "answer": answer("hello"),
    "system and user": request(SystemPromptPart("be kind", timestamp=AT), prompt("hi"), instructions="be brief"),
    "two prompts": request(prompt("a"), prompt("b")),
    "two texts around a call": response(TextPart("a", id="t1"), CALL, TextPart("b")),
    "prompt with an image": request(prompt(["what?", IMAGE, ImageUrl("https://example.com/a.png")])),
    "prompt and an image": request(prompt("what?"), prompt([IMAGE])),
    "empty prompt": request(prompt("")),
    "empty request": request(),
    "empty response": response(),
    "thinking": response(ThinkingPart("hm", signature="s", provider_name="p"), TextPart("so")),
    "call": response(CALL),
    "call with text arguments": response(ToolCallPart("weather", '{"city": "Oslo"}', tool_call_id="c1")),
    "call with damaged arguments": response(ToolCallPart("weather", '{"city": ', tool_call_id="c1")),
    "return": request(ToolReturnPart("weather", {"t": [1, 2.5, None, True]}, tool_call_id="c1", timestamp=AT)),
    "return without a value": request(ToolReturnPart("weather", None, tool_call_id="c1", timestamp=AT)),
    "return with metadata": request(ToolReturnPart("w", "x", tool_call_id="c", metadata={"a": None}, timestamp=AT)),
    "retry": request(ToolReturnPart("w", "again", tool_call_id="c1", timestamp=AT, outcome="retried")),
    "metadata": request(prompt("hi"), metadata={"content": "x", "parts": [], "part_kind": "text", "n": None}),
    "details": answer("x") and response(TextPart("x"), provider_details={"logprobs": [-0.5, 1e300]}),
    "NUL": user("a\0b"),
    "lone surrogate": user("a\ud800b"),
    "lone surrogate in arguments": response(TextPart("x"), ToolCallPart("w", {"a": "\ud800"}, tool_call_id="c")),
    "lone surrogate and an image": request(prompt(["\udfff \U000f0000", IMAGE])),
    "large number": request(prompt("hi"), metadata={"n": 2**70}),
    "megabytes": request(prompt("x"), ToolReturnPart("w", "A" * 3_000_000, tool_call_id="c", timestamp=AT)),
    "a megabyte of a file": request(prompt([BinaryContent(data=b"\xff" * 1_000_000, media_type="application/pdf")])),
}


def talk(conversation_id: str = "c1", *messages: ModelMessage, **more: Any) -> Conversation:
    return Conversation(conversation_id=conversation_id, messages=list(messages), **more)


async def saved(store: ConversationStore, conversation_id: str, *texts: str, scope: str | None = None) -> Conversation:
    """Save a conversation of these questions, each with its answer."""
    messages = [message for text in texts for message in (user(text), answer(f"to {text}"))]
    conversation = talk(conversation_id, *messages)
    await store.save(conversation, scope=scope)
    return conversation


def texts_of(conversation: Conversation | None) -> list[str]:
    assert conversation is not None
    return [part.content for message in conversation.messages for part in message.parts]
