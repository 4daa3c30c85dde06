"""Convert items of the OpenAI Agents SDK to the payloads of nodes and back, without loss.

An item is a dict of OpenAI's Responses API: a message, a function call, its output, reasoning, and more. Messages,
function calls and their outputs become messages of the conversation, so that `Chat`, lists, `lash-redis show` and other
runtimes find them. Every other item becomes a record of a plugin. The id of an item is content: a model may repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from lash_redis.errors import InvalidRecord
from lash_redis.models import EventPayload, PluginPayload
from lash_redis.models.chat_messages import (
    ChatMessage,
    canonical_json,
    check_chat_message,
    decode_message,
    encode_message,
    is_chat_message,
    parts_of,
)
from lash_redis.models.json_values import Fault, canonical, text_of_json
from lash_redis.models.node import inside, is_transient, text_at

Item: TypeAlias = dict[str, Any]
"""An item of OpenAI's Responses API, as the SDK passes it to a session."""

SDK: Final = "openai_agents"
"""The value of the key `sdk` of a message that is an item."""

PLUGIN: Final = "openai_agents.item"
"""The plugin type of a node whose item is not part of the conversation. Its body is `{"item": item}`."""
PLUGIN_TEXT: Final = "openai_agents.json"
"""The plugin type of a node whose item MessagePack cannot represent. Its body is `{"json": text}`."""

ENVELOPE: Final = 6
"""The most levels of nesting that a payload adds to an item."""

ITEM_ROLES: Final = ("user", "assistant", "system", "developer")
"""The roles of messages that are items."""
_CALLS: Final = {
    "function_call": ("ToolCall", "arguments", {"call_id": "tool_call_id", "name": "tool_name"}),
    "function_call_output": ("ToolResult", "output", {"call_id": "tool_call_id"}),
}
"""By the type of an item: the kind of its part, the field with the part's content, and the fields with its names."""


def payload_of_item(item: Any, message_id: str, where: str) -> EventPayload | PluginPayload:
    """Encode an item. `message_id` is the id of the message that it becomes, if it becomes one.

    Raises:
        InvalidRecord: the item is no dict, or a value in it is not JSON, such as NaN; `field` begins with `where`.
    """
    if not isinstance(item, dict):
        hint = "; pass item.model_dump(exclude_unset=True)" if hasattr(item, "model_dump") else ""
        raise InvalidRecord(where, f"expected a dict, got {type(item).__name__}{hint}")
    try:
        plain: Item = canonical(item, 1 + ENVELOPE)
    except Fault as fault:
        text = text_of_json(item)
        if text is None:
            raise fault.at(where) from None
        return PluginPayload(PLUGIN_TEXT, {"json": text})
    record = _record_of(plain, message_id, where)
    if record is None:
        return PluginPayload(PLUGIN, {"item": plain})
    return EventPayload({"Conversation": record})


def _record_of(item: Item, message_id: str, where: str) -> dict[str, Any] | None:
    """Return the message that an item becomes; None if it is not part of the conversation."""
    kind = item.get("type")
    if _is_call(item):
        record = _record_of_call(item, message_id)
    elif kind in (None, "message") and is_chat_message(item):
        try:
            check_chat_message(item, where)
        except InvalidRecord:  # a message of another form is kept as it is
            return None
        record = encode_message(item, message_id, "content")
    else:
        return None
    record["sdk"] = SDK
    return record if canonical_json(_item_of_record(record)) == canonical_json(item) else None


def _is_call(item: Item) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and kind in _CALLS


def _record_of_call(item: Item, message_id: str) -> dict[str, Any]:
    kind, text_field, names = _CALLS[item["type"]]
    source = dict(item)
    part = {"id": f"{message_id}.p0", "kind": kind, "content": "", "prune_state": "Intact"}
    for name, place in {text_field: "content", **names}.items():
        if isinstance(item.get(name), str):
            part[place] = source.pop(name)
    return {"id": message_id, "role": "Assistant", "parts": [part], "source": source}


def item_of_content(plugin_type: str | None, content: Any) -> Item | None:
    """Decode the item of a node from its event (no plugin type) or body; None if the node has no item.

    A message of another writer is an item if it has a text.
    """
    if plugin_type is None:
        record = content.get("Conversation") if type(content) is dict else None
        if type(record) is not dict:  # the event has another form, or types of the caller's own
            record = inside(content, "Conversation")
        if record is None or (record.get("origin") is not None and is_transient(record)):
            return None
        return _item_of_record(record)
    if plugin_type == PLUGIN:
        return inside(content, "item")
    text = text_at(content, "json") if plugin_type == PLUGIN_TEXT else None
    return None if text is None else _object_of_text(text)


def _object_of_text(text: str) -> Item | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # another writer uses the plugin type
        return None
    return value if isinstance(value, dict) else None


def _item_of_record(record: dict[str, Any]) -> Item | None:
    if record.get("sdk") != SDK:
        return _item_of_message(decode_message(record, "content"))
    source = record.get("source")
    if type(source) is dict and _is_call(source):
        return _item_of_call(source, record)
    return decode_message(record, "content")


def _item_of_call(source: Item, record: Mapping[str, Any]) -> Item:
    _, text_field, names = _CALLS[source["type"]]
    part: Item = next((part for part in parts_of(record) if isinstance(part, dict)), {})
    places = {text_field: "content", **names}
    return {**source, **{name: part[place] for name, place in places.items() if name not in source and place in part}}


def _item_of_message(message: ChatMessage) -> Item | None:
    content = message.get("content")
    if message.get("role") not in ITEM_ROLES or not isinstance(content, str) or not content:
        return None
    return {"role": message["role"], "content": content}
