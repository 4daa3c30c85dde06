"""Convert messages of Pydantic AI to the payloads of nodes and back.

A message with texts of the user or of the model becomes a message of the conversation, so that `Chat`, lists,
`lash-redis show` and other runtimes find it. Every other message, such as a tool call, becomes a record of a plugin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from pydantic import ValidationError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserPromptPart,
)
from pydantic_core import PydanticSerializationError

from lash_redis.errors import InvalidRecord
from lash_redis.models import EventPayload, PluginPayload
from lash_redis.models.chat_messages import decode_message, encode_message
from lash_redis.models.json_values import check_json, text_of_json
from lash_redis.models.node import inside, is_transient, text_at

Form: TypeAlias = dict[str, Any]
"""A message as JSON, as the SDK's `ModelMessagesTypeAdapter` writes it."""

SDK: Final = "pydantic_ai"
"""The value of the key `sdk` of a message's record. A chat message cannot set it, because it lies in `source`."""
REST: Final = "pydantic_ai"
"""The key of a chat message that has its form without the texts."""
PLUGIN: Final = "pydantic_ai.message"
"""The plugin type of a node whose message is not part of the conversation. Its body is `{"message": form}`."""
PLUGIN_TEXT: Final = "pydantic_ai.json"
"""The plugin type of a node whose message MessagePack cannot represent. Its body is `{"json": text}`."""

_SPOKEN: Final = {"request": ("user", "user-prompt"), "response": ("assistant", "text")}
"""By the kind of a message: its role in a chat, and the kind of its parts whose texts a chat shows."""


def payload_of_message(message: ModelMessage, node_id: str, where: str) -> EventPayload | PluginPayload:
    """Encode a message for the node with this id, as exactly as the SDK's `ModelMessagesTypeAdapter` does.

    Raises:
        InvalidRecord: the adapter refuses a value in it, or would not read it again; `field` begins with `where`.
    """
    try:
        (given,) = ModelMessagesTypeAdapter.dump_python([message], mode="json")
        _validated(given)
    except (PydanticSerializationError, ValidationError) as error:
        raise InvalidRecord(where, str(error)) from error
    try:
        form: Form = check_json(_shortened(given, message), where)
    except InvalidRecord:
        text = text_of_json(given)
        if text is None:
            raise
        return PluginPayload(PLUGIN_TEXT, {"json": text})
    role, kind = _SPOKEN[form["kind"]]
    texts = [part["content"] for part in form["parts"] if _is_spoken(part, kind)]
    if not texts:
        return PluginPayload(PLUGIN, {"message": form})
    rest = {**form, "parts": [_without_text(part) if _is_spoken(part, kind) else part for part in form["parts"]]}
    content = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    chat = {"role": role, "content": content, REST: rest}
    return EventPayload({"Conversation": {**encode_message(chat, node_id, "content"), "sdk": SDK}})


def _shortened(form: Form, message: ModelMessage) -> Form:
    """Leave out what the adapter adds by itself: optional fields that are None, and counters that are 0.

    They are two thirds of a short message.
    """
    parts = [_without_nones(part, given) for part, given in zip(form["parts"], message.parts, strict=True)]
    short = {**_without_nones(form, message), "parts": parts}
    if "usage" in short:
        short["usage"] = {name: value for name, value in short["usage"].items() if value}
    return short


def _without_nones(form: Form, value: Any) -> Form:
    optional = {field.name for field in fields(value) if field.default is None}
    return {name: given for name, given in form.items() if given is not None or name not in optional}


def _is_spoken(part: Form, kind: str) -> bool:
    return part["part_kind"] == kind and isinstance(part["content"], str)


def _without_text(part: Form) -> Form:
    return {key: part[key] for key in part if key != "content"}


def message_of_content(plugin_type: str | None, content: Any, timestamp: Callable[[], str]) -> ModelMessage | None:
    """Decode the message of a node from its event (no plugin type) or body; None if the node has no message.

    A chat message of another writer becomes a message with its text, at the time that `timestamp`
    returns, the node's.

    Raises:
        ValueError, TypeError, LookupError: the installed SDK does not read the form.
    """
    if plugin_type is None:
        record = inside(content, "Conversation")
        return None if record is None or is_transient(record) else _message_of_chat(record, timestamp)
    if plugin_type == PLUGIN:
        return _validated(inside(content, "message"))
    text = text_at(content, "json") if plugin_type == PLUGIN_TEXT else None
    return None if text is None else _validated(json.loads(text))


def _message_of_chat(record: Mapping[str, Any], timestamp: Callable[[], str]) -> ModelMessage | None:
    chat = decode_message(record, "content")
    rest, content = chat.get(REST), chat.get("content")
    if record.get("sdk") != SDK or not isinstance(rest, dict):
        return _foreign(chat.get("role"), content, timestamp())
    texts = iter([content] if isinstance(content, str) else [part["text"] for part in content or ()])
    parts = [{**part, "content": next(texts, None)} if _lacks_text(part) else part for part in rest["parts"]]
    return _validated({**rest, "parts": parts})


def _lacks_text(part: Form) -> bool:
    return "content" not in part and any(part["part_kind"] == kind for _, kind in _SPOKEN.values())


def _validated(form: Form | None) -> ModelMessage:
    (message,) = ModelMessagesTypeAdapter.validate_python([form])
    return message


def _foreign(role: Any, content: Any, timestamp: str) -> ModelMessage | None:
    if not isinstance(content, str) or not content:
        return None
    try:
        at = datetime.fromisoformat(timestamp)
    except ValueError:  # the time of a node is free text
        at = datetime.fromtimestamp(0, UTC)
    match role:
        case "user":
            return ModelRequest(parts=[UserPromptPart(content, timestamp=at)])
        case "system" | "developer":
            return ModelRequest(parts=[SystemPromptPart(content, timestamp=at)])
        case "assistant":
            return ModelResponse(parts=[TextPart(content)], timestamp=at)
    return None
