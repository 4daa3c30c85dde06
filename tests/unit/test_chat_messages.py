"""The conversion of messages between the OpenAI chat format and the records of the contract."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import pytest

from lash_redis import EventPayload, InvalidRecord, SessionGraph, SessionNodeRecord
from lash_redis.models.chat_messages import (
    as_record,
    canonical_json,
    chat_message_of_record,
    check_chat_message,
    parts_of,
    record_of_chat_message,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}

MESSAGES: dict[str, dict[str, Any]] = {
    "a user": {"role": "user", "content": "hi"},
    "empty text": {"role": "user", "content": ""},
    "a name": {"role": "user", "content": "hi", "name": "ann"},
    "no content": {"role": "assistant"},
    "null content": {"role": "assistant", "content": None},
    "empty list": {"role": "user", "content": []},
    "text parts": {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    "text with fields": {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "e"}}]},
    "image": {"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE, {"type": "text", "text": "?"}]},
    "string parts": {"role": "user", "content": ["a", {"type": "text", "text": "b"}, "c"]},
    "text of another type": {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]},
    "text that is no string": {"role": "user", "content": [{"type": "text", "text": 5}]},
    "refusal": {"role": "assistant", "content": None, "refusal": "no"},
    "tool calls": {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
    "tool calls without content": {"role": "assistant", "tool_calls": [CALL]},
    "text and tool calls": {"role": "assistant", "content": "wait", "tool_calls": [CALL]},
    "tool calls with fields": {"role": "assistant", "tool_calls": [{**CALL, "index": 0}]},
    "odd tool calls": {"role": "assistant", "tool_calls": [{}, {"type": 5}, {"function": None}, {"id": 7, **CALL}]},
    "custom tool call": {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "n", "input": "i"}}],
    },
    "empty tool calls": {"role": "assistant", "content": "a", "tool_calls": []},
    "null tool calls": {"role": "assistant", "content": "a", "tool_calls": None},
    "legacy function call": {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    "tool result": {"role": "tool", "content": "42", "tool_call_id": "c1"},
    "tool result with name": {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "search"},
    "tool result of parts": {"role": "tool", "content": [{"type": "text", "text": "42"}], "tool_call_id": "c1"},
    "tool result without content": {"role": "tool", "tool_call_id": "c1"},
    "tool result with null": {"role": "tool", "content": None, "tool_call_id": None},
    "tool result with calls": {"role": "tool", "content": "x", "tool_calls": [CALL]},
    "function result": {"role": "function", "name": "f", "content": "1"},
    "system": {"role": "system", "content": "be kind"},
    "developer": {"role": "developer", "content": "be brief"},
    "vendor fields": {
        "role": "assistant",
        "content": "x",
        "reasoning_content": "hm",
        "parts": [1],
        "source": 2,
        "x": 1.0,
    },
    "numbers": {"role": "user", "content": "x", "n": [1, 1.0, True, None, 2**63, -5]},
    "the mark of a whole source": {"role": "user", "content": "x", "source_is_whole": True},
    "unicode": {"role": "user", "content": "\U0001f600 \x00 é"},
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_chat_message_is_decoded_exactly_as_it_was_encoded(name: str) -> None:
    message = MESSAGES[name]
    check_chat_message(message, "message")
    record = json.loads(json.dumps(record_of_chat_message(message, "m1")))
    assert canonical_json(chat_message_of_record(record)) == canonical_json(message)
    assert (record["id"], record["role"] in ("User", "Assistant", "System")) == ("m1", True)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a user", [("Text", "hi")]),
        ("image", [("Text", "see"), ("Image", ""), ("Text", "?")]),
        ("text and tool calls", [("Text", "wait"), ("ToolCall", '{"q": "x"}')]),
        ("custom tool call", [("ToolCall", "i")]),
        ("tool result", [("ToolResult", "42")]),
        ("tool result of parts", [("ToolResult", "42")]),
    ],
)
def test_other_runtimes_find_text_calls_and_results_in_the_parts(name: str, parts: list[tuple[str, str]]) -> None:
    record = record_of_chat_message(MESSAGES[name], "m1")
    assert [(part["kind"], part["content"]) for part in record["parts"]] == parts
    assert [part["id"] for part in record["parts"]] == [f"m1.p{at}" for at in range(len(parts))]


def test_text_is_stored_once() -> None:
    for name in ("a user", "text parts", "image", "text and tool calls", "tool result with name"):
        record = record_of_chat_message(MESSAGES[name], "m1")
        for part in record["parts"]:
            assert part["content"] == "" or part["content"] not in json.dumps(record["source"])


@pytest.mark.parametrize(
    "part",
    [
        "Long ago",
        {"type": "text", "text": "Long ago"},
        {"type": "output_text", "text": "Long ago", "annotations": [[]]},
    ],
)
def test_the_text_of_a_content_list_is_stored_once(part: Any) -> None:
    message = {"role": "assistant", "content": [part, IMAGE, part, {"type": "refusal", "refusal": "no"}]}
    record = record_of_chat_message(message, "m1")
    assert json.dumps(record).count("Long ago") == 2
    assert chat_message_of_record(record) == message


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"role": "User", "parts": [{"kind": "Text", "content": "a"}, {"kind": "Prose", "content": "b"}]}, "a\n\nb"),
        ({"role": "Assistant", "parts": []}, ""),
        ({"role": "System"}, ""),
        ({"role": "User", "source": {"channel": "slack"}, "parts": [{"kind": "Prose", "content": "a"}]}, "a"),
        ({"role": "User", "source": {"role": 5, "content": [5]}, "parts": [{"kind": "Text", "content": "a"}]}, "a"),
        ({"role": "User", "parts": ["junk", {"kind": "Text", "content": 5}]}, ""),
    ],
)
def test_a_record_of_another_runtime_becomes_its_text(record: dict[str, Any], message: str) -> None:
    found = chat_message_of_record({"id": "x", **record})
    assert found == {"role": record["role"].lower(), "content": message}


def test_calls_and_results_of_another_runtime_are_converted() -> None:
    call = {"kind": "ToolCall", "content": "{}", "tool_call_id": "c1", "tool_name": "f"}
    assert chat_message_of_record({"id": "x", "role": "Assistant", "parts": [call]}) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    result = {"kind": "ToolResult", "content": "1", "tool_call_id": "c1", "tool_name": "f"}
    expected = {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"}
    assert chat_message_of_record({"id": "x", "role": "User", "parts": [result]}) == expected


class Model:
    def model_dump(self) -> dict[str, Any]:
        return {"role": "user"}


class Role(Enum):
    USER = "user"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("hi", "messages[0]"),
        (None, "messages[0]"),
        (Model(), "messages[0]"),
        ({}, "messages[0].role"),
        ({"role": "human", "content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": Role.USER, "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": {"type": "text"}}, "messages[0].content"),
        ({"role": "user", "content": [None]}, "messages[0].content[0]"),
        ({"role": "user", "content": b"x"}, "messages[0].content"),
        ({"role": "user", "content": "x", "at": object()}, "messages[0].at"),
        ({"role": "user", "content": "x", "n": float("nan")}, "messages[0].n"),
        ({"role": "user", "content": "x", 5: 1}, "messages[0]"),
        ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["x"]}, "messages[0].tool_calls[0]"),
    ],
)
def test_what_is_no_chat_message_is_refused_by_its_field(message: Any, field: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        check_chat_message(message, "messages[0]")
    assert refused.value.field == field


def test_a_model_object_is_refused_with_the_call_that_converts_it() -> None:
    with pytest.raises(InvalidRecord, match="model_dump"):
        check_chat_message(Model(), "messages[0]")


def test_a_graph_understands_both_forms_of_a_message_and_refuses_others() -> None:
    graph = SessionGraph().append_message({"role": "user", "content": "hi"})
    graph = graph.append_message({"role": "Assistant", "parts": [{"kind": "Text", "content": "hello"}]})
    assert [message["role"] for message in graph.read_model().messages] == ["User", "Assistant"]
    assert (graph.first_user_message(), graph.user_message_count()) == ("hi", 1)
    for message, field in (
        ({"content": "hi"}, "message.role"),
        ({"role": "User", "content": "hi"}, "message.parts"),
        ("hi", "message"),
    ):
        with pytest.raises(InvalidRecord) as refused:
            graph.append_message(message)  # type: ignore[arg-type]
        assert refused.value.field == field
        for method in (graph.append_active_read_delta, graph.replace_active_read_state):
            with pytest.raises(InvalidRecord) as refused:
                method([message], [])  # type: ignore[list-item]
            assert refused.value.field == field.replace("message", "messages[0]")


def test_a_chat_message_that_was_stored_as_an_event_is_read_as_a_message() -> None:
    event = EventPayload({"Conversation": {"id": "m1", "role": "user", "content": "hi"}})
    graph = SessionGraph([SessionNodeRecord("m1", None, "t", event)], "m1")
    assert (graph.first_user_message(), graph.user_message_count()) == ("hi", 1)
    assert chat_message_of_record(event.event["Conversation"]) == {"role": "user", "content": "hi"}
    assert list(parts_of({"role": "user", "content": 5})) == []


def test_a_record_keeps_its_parts_and_gets_the_id() -> None:
    assert as_record({"role": "User", "parts": [], "origin": None}, "m1", "x") == {
        "id": "m1",
        "role": "User",
        "parts": [],
        "origin": None,
    }
