"""Items of the OpenAI Agents SDK of every form."""

from __future__ import annotations

from typing import Any


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def answer(text: str, item_id: str = "msg_1") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}', "id": "fc_1"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}

ITEMS: dict[str, dict[str, Any]] = {
    "user": user("hi"),
    "typed user": {"type": "message", **user("hi")},
    "system": {"role": "system", "content": "be kind"},
    "developer": {"role": "developer", "content": "be brief"},
    "answer": answer("hello"),
    "answer with annotations": answer("see [1]") | {"phase": "final_answer"},
    "image": user([{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": "data:,A"}]),
    "user with a file": user([{"type": "input_file", "file_id": "f1", "filename": "a.pdf"}]),
    "empty content": user([]),
    "null content": {"role": "assistant", "content": None},
    "content of another form": {"role": "user", "content": {"odd": 1}},
    "refusal": {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    "call": CALL,
    "call without a name": {"type": "function_call", "call_id": "c1", "arguments": ""},
    "call with odd fields": {"type": "function_call", "call_id": None, "name": 5, "arguments": {"a": 1}},
    "call with a role": {**CALL, "role": "user"},
    "output": OUTPUT,
    "output of parts": {**OUTPUT, "output": [{"type": "input_text", "text": "rain"}]},
    "output that failed": {**OUTPUT, "status": "incomplete", "output": ""},
    "reasoning": {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x" * 200},
    "compaction": {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"},
    "approval": {"type": "mcp_approval_request", "id": "a", "name": "n", "arguments": "{}", "server_label": "s"},
    "computer call": {"type": "computer_call", "action": {"type": "click", "x": 1, "y": 2.5}, "call_id": "c"},
    "reference": {"type": "item_reference", "id": "msg_1"},
    "encrypted envelope": {"__enc__": 1, "v": 1, "kid": "k", "payload": "gAAA"},
    "empty": {},
    "another role": {"role": "tool", "content": "x", "tool_call_id": "c"},
    "NUL": user("a\0b"),
    "lone surrogate": user("a\ud800b"),
    "large number": {"type": "x", "n": 2**70},
    "numbers": {"type": "x", "n": [1, 1.0, True, None, -0.0, 1e300]},
    "keys of this package": {"role": "user", "content": "x", "sdk": "other", "source": {"role": "user"}, "parts": [1]},
    "a type that is a list": {"type": ["message"], **user("hi")},
    "a type that is an object": {"type": {"a": 1}, "role": {}},
    "nested": {"type": "x", "v": nested(255)},
    "nested content": user([nested(250)]),
    "nested message": user("hi", v=nested(246)),
    "nested with a large number": {"type": "x", "v": nested(255), "n": 2**70},
    "megabytes": {**OUTPUT, "output": "A" * 3_000_000},
}  # fmt: skip
