"""The messages of a session as `show`, `tail` and `replay` print them: the role, and each part with its tool call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from lash_redis.cli.output import plain
from lash_redis.models import SessionNodeRecord
from lash_redis.models.chat_messages import parts_of

_STYLES = {"User": "cyan", "Assistant": "green", "System": "yellow"}
_KINDS = {"Text": "text", "Prose": "text", "ToolCall": "tool_call", "ToolResult": "tool_result"}
_VERBS = {"tool_call": "calls", "tool_result": "from"}


def tool_names(nodes: Iterable[SessionNodeRecord]) -> dict[str, str]:
    """Return the name of each called tool by the id of its call. Results often name only the call."""
    return {
        part["tool_call_id"]: part["tool_name"]
        for node in nodes
        for part in parts_of(node.message() or {})
        if isinstance(part, dict)
        and part.get("kind") == "ToolCall"
        and isinstance(part.get("tool_call_id"), str)
        and isinstance(part.get("tool_name"), str)
    }


def message_texts(path: Sequence[SessionNodeRecord]) -> list[dict[str, Any]]:
    """Return the messages of a path: node id, role and parts."""
    names = tool_names(path)
    return [text for node in path if (text := message_text_of(node, names)) is not None]


def message_text_of(node: SessionNodeRecord, names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the message of a node; None if it has none. `names`: see `tool_names`.

    Each part has a `kind` and a `text`. The part of a tool call or result also has the name of the `tool` and the
    `call_id`, as far as they are known.
    """
    message = node.message()
    if message is None:
        return None
    parts = [_part(part, names) for part in parts_of(message) if isinstance(part, dict)]
    shown = [part for part in parts if part["kind"] != "text" or part["text"].strip()]
    return {"node_id": node.node_id, "role": str(message.get("role")), "parts": shown}


def _part(part: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    kind, content = part.get("kind"), part.get("content")
    found = {
        "kind": _KINDS.get(str(kind), str(kind).lower()),
        "text": content if isinstance(content, str) else "",
    }
    if found["kind"] in _VERBS:
        call_id = part.get("tool_call_id")
        tool = part.get("tool_name") or (names.get(call_id) if isinstance(call_id, str) else None)
        found |= {name: str(value) for name, value in (("tool", tool), ("call_id", call_id)) if value}
    return found


# Text for a terminal


def role_of(message: Mapping[str, Any]) -> str:
    """Return the role of a message in title case; "Tool" for one that contains only results of tools."""
    is_answer = message["parts"] and all(part["kind"] == "tool_result" for part in message["parts"])
    return "Tool" if is_answer else str(message["role"]).capitalize()


def summary_of(message: Mapping[str, Any]) -> str:
    """Return the role and all parts of a message in one text."""
    texts = [f"[{title}] {part['text']}" if (title := _title(part)) else part["text"] for part in message["parts"]]
    return f"{role_of(message)}: {' '.join(texts)}"


def message_lines(message: Mapping[str, Any], *, max_lines: int | None = None) -> Group:
    """Format a message for a terminal, with at most `max_lines` lines of each part."""
    role = role_of(message)
    lines: list[Any] = [plain(role, f"bold {_STYLES.get(role, 'magenta')}")]
    for part in message["parts"]:
        text, title = part["text"].strip(), _title(part)
        rows = text.split("\n")
        if max_lines is not None and (len(rows) > max_lines or len(text) > 80 * max_lines):
            text = "\n".join(rows[:max_lines])[: 80 * max_lines].rstrip() + " …"
        body = plain(f"{title}  ", "magenta").append_text(plain(text, "dim")) if title else plain(text)
        lines.append(Padding(body, (0, 0, 0, 2)))
    return Group(*lines, Text())


def _title(part: Mapping[str, Any]) -> str:
    """Return what is printed before the text of a part; "" for plain text."""
    if part["kind"] == "text":
        return ""
    if part["kind"] not in _VERBS:
        return str(part["kind"])
    call_id = f" ({part['call_id']})" if "call_id" in part else ""
    return f"{_VERBS[part['kind']]} {part.get('tool', 'an unnamed tool')}{call_id}"
