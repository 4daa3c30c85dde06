"""Convert messages between the OpenAI chat format and the records of the contract.

A chat message is encoded and decoded without loss. A record of another runtime is converted as far as possible.

A chat message is a dict with a `role`, such as `{"role": "user", "content": "Hi"}`. A record is the value of a
`Conversation` event: `id`, `role` ("User", "Assistant" or "System") and `parts`. A record that was made from a chat
message also has the key `source`. It contains what the parts do not: the chat role, names, images, vendor fields.
Runtimes that do not know the key ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from lash_redis._validate import require_type
from lash_redis.errors import InvalidRecord
from lash_redis.models.json_values import check_json
from lash_redis.models.node import field_of, text_at

ChatMessage: TypeAlias = dict[str, Any]
"""A message in the OpenAI chat format: any JSON object with a `role` and, usually, a `content`."""

CHAT_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
"""The roles of chat messages."""
RECORD_ROLES: Final = ("User", "Assistant", "System")
"""The roles of records."""
_RECORD_ROLE: Final = {"user": "User", "prompter": "User", "system": "System", "developer": "System"}
_SOURCE_ROLES: Final = {*CHAT_ROLES, *_RECORD_ROLE}
_CHAT_ROLE: Final = {"User": "user", "Assistant": "assistant", "System": "system"}
_RESULT_ROLES: Final = ("tool", "function")
_TEXT_KINDS: Final = ("Text", "Prose", "Code", "Output", "Error")


def check_chat_message(message: Any, where: str) -> ChatMessage:
    """Check the role, the content and the tool calls of a chat message, and return a copy as it is stored.

    The copy has plain types only: a role that is an Enum member becomes its value. See `check_json`.

    Raises:
        InvalidRecord: a field is invalid; `field` is its path, which begins with `where`.
    """
    if not isinstance(message, dict):
        hint = ""
        if hasattr(message, "model_dump"):
            hint = "; pass message.model_dump(exclude_none=True), or convert_to_openai_messages of LangChain"
        elif isinstance(message, list | tuple):
            hint = "; pass the messages one by one, as in append(*messages)"
        raise InvalidRecord(where, f"expected a dict in the OpenAI chat format, got {type(message).__name__}{hint}")
    if not is_chat_message(message):
        expected = f"{', '.join(CHAT_ROLES[:-1])} or {CHAT_ROLES[-1]}"
        raise InvalidRecord(f"{where}.role", f"expected {expected}, got {field_of(message, 'role')!r}")
    plain: ChatMessage = check_json(message, where)
    content, calls = plain.get("content"), plain.get("tool_calls")
    if content is not None and not isinstance(content, str | list):
        raise InvalidRecord(f"{where}.content", f"expected a string, a list or None, got {type(content).__name__}")
    for at, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict | str):
            raise InvalidRecord(f"{where}.content[{at}]", f"expected a dict or a string, got {type(part).__name__}")
    if calls is not None and not isinstance(calls, list):
        raise InvalidRecord(f"{where}.tool_calls", f"expected a list or None, got {type(calls).__name__}")
    for at, call in enumerate(calls or ()):
        if not isinstance(call, dict):
            raise InvalidRecord(f"{where}.tool_calls[{at}]", f"expected a dict, got {type(call).__name__}")
    return plain


def is_chat_message(message: Any) -> bool:
    """Whether a message is in the OpenAI chat format, judged by its role. No other field is checked."""
    return text_at(message, "role") in CHAT_ROLES


def record_of_chat_message(message: ChatMessage, message_id: str) -> dict[str, Any]:
    """Encode a chat message as a record with this id.

    Text, tool calls and tool results become parts. What the parts can express is stored only there. No I/O; linear in
    the size of the message.

    Raises:
        InvalidRecord: the message is not in the chat format; the error names the field.
    """
    return encode_message(check_chat_message(message, "message"), message_id, "content")


def encode_message(message: ChatMessage, message_id: str, text_field: str) -> dict[str, Any]:
    """Encode a message that was checked, with its text under the key `text_field`."""
    source = dict(message)
    parts = _Parts(message_id)
    if message["role"] in _RESULT_ROLES:
        _encode_result(message, source, parts, text_field)
    else:
        _encode_content(message, source, parts, text_field)
        _encode_calls(message, source, parts)
    role = _RECORD_ROLE.get(message["role"], "Assistant")
    record: dict[str, Any] = {"id": message_id, "role": role, "parts": parts.made, "source": source}
    if _decoded(record, text_field) != message:  # such as a tool result without any content
        record |= {"source": message, "source_is_whole": True}
    return record


class _Parts:
    """The parts of a record that is being made."""

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self.made: list[dict[str, Any]] = []

    def add(self, kind: str, content: str, **more: str) -> None:
        part_id = f"{self._message_id}.p{len(self.made)}"
        self.made.append({"id": part_id, "kind": kind, "content": content, **more, "prune_state": "Intact"})


def _encode_result(message: ChatMessage, source: ChatMessage, parts: _Parts, text_field: str) -> None:
    text = message.get(text_field)
    named = {"tool_call_id": message.get("tool_call_id"), "tool_name": message.get("name")}
    names = {key: value for key, value in named.items() if isinstance(value, str)}
    parts.add("ToolResult", text if isinstance(text, str) else _text_of(text), **names)
    if "tool_call_id" in names:
        del source["tool_call_id"]
    if "tool_name" in names:
        del source["name"]
    if isinstance(text, str):
        del source[text_field]


def _encode_content(message: ChatMessage, source: ChatMessage, parts: _Parts, text_field: str) -> None:
    content = message.get(text_field)
    if isinstance(content, str):
        parts.add("Text", content)
        del source[text_field]
    elif content:
        source[text_field] = [_encode_part(part, parts) for part in content]


def _encode_part(part: dict[str, Any] | str, parts: _Parts) -> dict[str, Any] | list[Any] | None:
    """Add one part of a content list. Return what `source` keeps of it, in which its text is left out.

    None: a part of the type `text` that is only a text. An empty list: a string. A list with one dict: the other fields
    of a part with a text. A dict: a part without a text.
    """
    if isinstance(part, str):
        parts.add("Text", part)
        return []
    text, kind = part.get("text"), part.get("type")
    if isinstance(text, str):
        parts.add("Text", text)
        return None if part == {"type": "text", "text": text} else [{key: part[key] for key in part if key != "text"}]
    if kind in ("image_url", "input_image", "image"):
        parts.add("Image", "")
    return part


def _encode_calls(message: ChatMessage, source: ChatMessage, parts: _Parts) -> None:
    calls = message.get("tool_calls")
    if not calls:
        return
    for call in calls:
        kind = call.get("type")
        details = call.get(kind) if isinstance(kind, str) else None
        details = details if isinstance(details, dict) else {}
        named = {"tool_call_id": call.get("id"), "tool_name": details.get("name")}
        names = {key: value for key, value in named.items() if isinstance(value, str)}
        arguments = details.get("input" if kind == "custom" else "arguments")
        parts.add("ToolCall", arguments if isinstance(arguments, str) else canonical_json(arguments), **names)
    if _calls_in(parts.made) == calls:
        del source["tool_calls"]


def chat_message_of_record(record: Mapping[str, Any]) -> ChatMessage:
    """Decode a record as a chat message, without an id.

    A record that `record_of_chat_message` made is decoded to an equal message. A record of another runtime is converted
    as far as the chat format can express it: text, tool calls, tool results. A chat message is returned as it is.

    Raises:
        InvalidRecord: the record is no dict.
    """
    require_type("record", record, dict)
    return decode_message(record, "content")


def decode_message(record: Mapping[str, Any], text_field: str) -> ChatMessage:
    """Decode a record as a message with its text under the key `text_field`."""
    source = record.get("source")
    if type(source) is dict and record.get("role") in RECORD_ROLES and source.get("role") in CHAT_ROLES:
        return _decoded(record, text_field)  # what the next lines decide, too, in twice the time
    if is_chat_message(record):
        return {key: value for key, value in record.items() if key != "id"}
    if text_at(field_of(record, "source"), "role") in _SOURCE_ROLES:  # other runtimes may have a key `source`, too
        return _decoded(record, text_field)
    return _foreign_message(record, _part_objects(record))


def _part_objects(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = record.get("parts")
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _decoded(record: Mapping[str, Any], text_field: str) -> ChatMessage:
    """Decode a record that `record_of_chat_message` made. The dict is new, so a caller may add keys to it."""
    source: ChatMessage = record["source"]
    if record.get("source_is_whole"):
        return dict(source)
    parts = _part_objects(record)
    if len(parts) == 1 and parts[0].get("kind") == "Text" and text_field not in source:
        return {text_field: parts[0].get("content"), **source}
    message: ChatMessage = {}
    for part in parts:
        kind = part.get("kind")
        if kind == "Text":
            message[text_field] = part.get("content")
        elif kind == "ToolCall":
            message.setdefault("tool_calls", []).append(_call_of(part))
        elif kind == "ToolResult":
            message[text_field] = part.get("content")
            names = (("tool_call_id", "tool_call_id"), ("name", "tool_name"))
            message |= {key: part[name] for key, name in names if name in part}
    message |= source
    if isinstance(message.get(text_field), list):
        texts = iter([part.get("content") for part in parts if part.get("kind") == "Text"])
        message[text_field] = [_decode_part(part, texts) for part in message[text_field]]
    return message


def _decode_part(kept: Any, texts: Iterator[Any]) -> Any:
    """Return one part of a content list from what `source` kept of it, and take its text from `texts`."""
    match kept:
        case None:
            return {"type": "text", "text": next(texts, "")}
        case []:
            return next(texts, "")
        case [dict() as others]:
            return {**others, "text": next(texts, "")}
    return kept


def _foreign_message(record: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> ChatMessage:
    """Convert a record that another runtime made."""
    results = [part for part in parts if part.get("kind") == "ToolResult"]
    if results:
        named = {"tool_call_id": results[0].get("tool_call_id"), "name": results[0].get("tool_name")}
        content = "\n\n".join(str(part.get("content", "")) for part in results)
        return {
            "role": "tool",
            "content": content,
            **{key: value for key, value in named.items() if isinstance(value, str)},
        }
    texts = [part["content"] for part in parts if part.get("kind") in _TEXT_KINDS and _is_text(part.get("content"))]
    message: ChatMessage = {
        "role": _CHAT_ROLE.get(text_at(record, "role") or "", "assistant"),
        "content": "\n\n".join(texts),
    }
    if calls := _calls_in(parts):
        message["tool_calls"] = calls
        message["content"] = message["content"] or None
    return message


def parts_of(message: Any) -> Sequence[Any]:
    """Return the parts of a record, or those that a chat message would have as a record; empty if it is neither."""
    parts = field_of(message, "parts")
    if isinstance(parts, list):
        return parts
    if not is_chat_message(message):
        return ()
    try:
        made: list[Any] = encode_message(check_chat_message(message, "message"), "", "content")["parts"]
    except InvalidRecord:
        return ()
    return made


def as_record(message: Any, message_id: str, where: str) -> dict[str, Any]:
    """Return a record with this id: a record as it is, a chat message encoded.

    Raises:
        InvalidRecord: the message is neither; `field` begins with `where`.
    """
    if not isinstance(message, dict):
        raise InvalidRecord(where, f"expected a dict, got {type(message).__name__}")
    if is_chat_message(message):
        plain = check_chat_message(message, where)
        content = {key: value for key, value in plain.items() if key != "id"}
        return encode_message(content, message_id, "content")
    if text_at(message, "role") not in RECORD_ROLES:
        expected = ", ".join((*RECORD_ROLES, *CHAT_ROLES[:-1])) + f" or {CHAT_ROLES[-1]}"
        raise InvalidRecord(f"{where}.role", f"expected {expected}, got {field_of(message, 'role')!r}")
    parts = message.get("parts", None if "content" in message else [])
    if not isinstance(parts, list):
        reason = f"expected a list of parts, got {type(parts).__name__}; or use the OpenAI chat format"
        raise InvalidRecord(f"{where}.parts", reason)
    return {**message, "id": message_id, "parts": parts}


def _calls_in(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_call_of(part) for part in parts if part.get("kind") == "ToolCall"]


def _call_of(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": part.get("tool_call_id"),
        "type": "function",
        "function": {"name": part.get("tool_name"), "arguments": part.get("content")},
    }


def _is_text(content: Any) -> bool:
    return isinstance(content, str) and bool(content.strip())


def _text_of(content: Any) -> str:
    """Return the texts of a content that is a list of parts."""
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n\n".join(text for text in texts if isinstance(text, str))


def canonical_json(value: Any) -> str:
    """Encode a JSON value so that only equal values have equal texts: 1, 1.0 and true differ."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
