"""The two file formats, the turns in them, and what a session holds once some turns are played.

A chat is a line `{"id", "messages": [...]}` of OpenAI chat messages. A tree has messages
`{"id", "parent_id", "role", "text", "lang"}`, parents before children.

A message is stored as a `Conversation` record whose parts say what it says: its text, its tool calls, its tool result.
What no part says (its role, `lang`, a null content, fields we do not know) stands under the record's key `source`, so
that `message_of` gives back the message that was read, whatever it held. A tool's answer is the assistant's side of
the conversation, so its role is "Assistant": "User" is what people said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lash_redis._validate import require_id
from lash_redis.cli.input import Input, InputError
from lash_redis.errors import InvalidRecord
from lash_redis.models import (
    HydratedSessionCheckpoint,
    PersistedTurnState,
    PluginSessionSnapshot,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
)
from lash_redis.models.components import PluginArtifact, PluginSnapshotEntry, PluginSnapshotMeta
from lash_redis.models.json_values import check_json

Message = dict[str, Any]
Format = Literal["chat", "tree"]

SHIPPED = Path(__file__).with_name("conversation.jsonl")

_TEXT_FIELD: Mapping[Format, str] = {"chat": "content", "tree": "text"}
_ROLES = {"user": "User", "prompter": "User", "system": "System", "developer": "System"}
_CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_ANSWERING = ("tool", "function")
_TREE_ROLES = ("system", "user", "prompter", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one worker is given: a place in a conversation and what is said there; of the session only its name."""

    session_id: str
    number: int
    """From 0; also the revision that the turns before it have made."""
    format: Format
    node_ids: Sequence[str]
    messages: Sequence[Message]
    parent: str | None = None
    """Tree: the node to go on from."""
    tools: ToolState | None = None
    """With the first turn only; later ones keep what is stored."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A line of a file. `parents[i]` is the index of the message before message `i`, None for a root."""

    id: str
    format: Format
    messages: Sequence[Message]
    parents: Sequence[int | None] = field(repr=False)
    model: str = ""
    """What the line says of it; "" where it says nothing."""

    def node_id(self, index: int) -> str:
        """A chat's messages have no ids: `m0`, `m1`, ..."""
        return f"m{index}" if self.format == "chat" else str(self.messages[index]["id"])

    def parent_id(self, index: int) -> str | None:
        above = self.parents[index]
        return None if above is None else self.node_id(above)

    def turns(self, session_id: str, tools: ToolState | None = None) -> list[Turn]:
        tools = named_tools(self) if tools is None else tools
        return [
            Turn(
                session_id=session_id,
                number=number,
                format=self.format,
                node_ids=[self.node_id(index) for index in span],
                messages=[self.messages[index] for index in span],
                parent=self.parent_id(span[0]) if self.format == "tree" else None,
                tools=None if number else tools,
            )
            for number, span in enumerate(self._spans())
        ]

    def turn_count(self) -> int:
        return len(self._spans())

    def _spans(self) -> list[range]:
        """Tree: each message. Chat: a user's message and all up to the next; what precedes the first belongs to it."""
        if self.format == "tree":
            return [range(index, index + 1) for index in range(len(self.messages))]
        users = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        starts = [0, *users[1:]]
        return [range(start, end) for start, end in zip(starts, [*starts[1:], len(self.messages)], strict=True)]

    def leaves(self) -> list[int]:
        """The messages that nothing follows."""
        inner = set(self.parents)
        return [index for index in range(len(self.messages)) if index not in inner]

    def path(self, index: int | None) -> list[int]:
        """From the root to message `index`."""
        path = []
        while index is not None:
            path.append(index)
            index = self.parents[index]
        return path[::-1]


# Reading


def read_conversations(paths: Sequence[Path]) -> list[Conversation]:
    """Every conversation of the files, in order. An id met again gets `~2`, `~3` and so on.

    Raises:
        InputError: names file, line and field.
    """
    found: dict[str, Conversation] = {}
    for path in paths:
        for conversation in conversations_in(path, Input(path).lines()):
            name, again = conversation.id, 1
            while name in found:
                again += 1
                name = f"{conversation.id}~{again}"
            found[name] = replace(conversation, id=name)
    if not found:
        raise InputError(paths[-1], None, "", "holds no conversation")
    return list(found.values())


def conversations_in(path: Path, lines: Iterable[bytes]) -> Iterator[Conversation]:
    """The conversations of a file's lines, one at a time; ids may come again.

    Raises:
        InputError: names file, line and field; those before it were good.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _conversation(_parsed(path, number, line))
        except InvalidRecord as error:
            raise InputError(path, number, error.field, error.reason) from error


def _parsed(path: Path, line: int | None, data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise InputError(path, line, "", f"is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        at = line if line is not None else error.lineno
        raise InputError(path, at, "", f"is not JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(path, line, "", f"is not JSON that can be read: {error}") from error


def _conversation(line: Any) -> Conversation:
    if not isinstance(line, dict):
        raise InvalidRecord("line", f"expected a JSON object, got {_kind(line)}")
    name, model = require_id("id", line.get("id")), line.get("model")
    messages = line.get("messages")
    if not isinstance(messages, list):
        raise InvalidRecord("messages", f"expected a list, got {_kind(messages)}")
    if not messages:
        raise InvalidRecord("messages", "is empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRecord(f"messages[{index}]", f"expected a JSON object, got {_kind(message)}")
        check_json(message, f"messages[{index}]")
    model = model if isinstance(model, str) else ""
    if any("parent_id" in message for message in messages):
        return Conversation(name, "tree", messages, _tree_parents(messages), model)
    for index, message in enumerate(messages):
        _check_chat_message(message, f"messages[{index}]")
    return Conversation(name, "chat", messages, [None, *range(len(messages) - 1)], model)


def _tree_parents(messages: Sequence[Message]) -> list[int | None]:
    places: dict[str, int] = {}
    parents: list[int | None] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        own, parent = require_id(f"{where}.id", message.get("id")), message.get("parent_id")
        if own in places:
            raise InvalidRecord(f"{where}.id", f"{own!r} is that of messages[{places[own]}] too")
        if parent is not None and not (isinstance(parent, str) and parent in places):
            raise InvalidRecord(f"{where}.parent_id", f"{parent!r} is no message before this one")
        _check_role(message, where, _TREE_ROLES)
        if not isinstance(message.get("text"), str):
            raise InvalidRecord(f"{where}.text", f"expected a string, got {_kind(message.get('text'))}")
        parents.append(None if parent is None else places[parent])
        places[own] = index
    return parents


def _check_chat_message(message: Message, where: str) -> None:
    _check_role(message, where, _CHAT_ROLES)
    content, calls = message.get("content"), message.get("tool_calls")
    if content is not None and not isinstance(content, str | list):
        raise InvalidRecord(f"{where}.content", f"expected a string, a list or null, got {_kind(content)}")
    if calls is not None and not isinstance(calls, list):
        raise InvalidRecord(f"{where}.tool_calls", f"expected a list, got {_kind(calls)}")
    for at, call in enumerate(calls or ()):
        if not isinstance(call, dict):
            raise InvalidRecord(f"{where}.tool_calls[{at}]", f"expected a JSON object, got {_kind(call)}")


def _check_role(message: Message, where: str, known: Sequence[str]) -> None:
    if message.get("role") not in known:
        expected = f"{', '.join(known[:-1])} or {known[-1]}"
        raise InvalidRecord(f"{where}.role", f"expected {expected}, got {message.get('role')!r}")


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string", "bool": "a boolean"}
    return names.get(type(value).__name__, "a number")


def read_tools(path: Path) -> ToolState:
    """An OpenAI list of tools (`[{"type": "function", "function": {"name", ...}}]`) as a tool state.

    Raises:
        InputError: names file and field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(path, None, "", error.strerror or str(error)) from error
    tools = _parsed(path, None, data)
    if not isinstance(tools, list):
        raise InputError(path, None, "", f"expected a list of tools, got {_kind(tools)}")
    entries: dict[str, ToolStateEntry] = {}
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise InputError(path, None, f"[{index}].function.name", "expected the name of a tool")
        if name in entries:
            raise InputError(path, None, f"[{index}].function.name", f"{name!r} is there twice")
        try:
            check_json(function, f"[{index}].function")
        except InvalidRecord as error:
            raise InputError(path, None, error.field, error.reason) from error
        entries[name] = ToolStateEntry(function, "plugins")
    return ToolState(generation=1, tools=entries)


def named_tools(conversation: Conversation) -> ToolState:
    """The tools a conversation calls, by their names alone: what is known of them where no file tells."""
    names = {
        part["tool_name"]
        for index in range(len(conversation.messages))
        for part in record_of(conversation.format, "", conversation.messages[index])["parts"]
        if part.get("tool_name")
    }
    return ToolState(generation=1, tools={name: ToolStateEntry({"name": name}, "plugins") for name in sorted(names)})


# A message as a record, and back


def record_of(format: Format, node_id: str, message: Message) -> dict[str, Any]:  # noqa: A002 (the word of the file)
    """The body of a `Conversation` event that says `message`."""
    source = dict(message)
    parts: list[dict[str, Any]] = []

    def part(kind: str, content: str, **more: str) -> None:
        part_id = f"{node_id}.p{len(parts)}"
        parts.append({"id": part_id, "kind": kind, "content": content, **more, "prune_state": "Intact"})

    text = message.get(_TEXT_FIELD[format])
    if format == "chat" and message["role"] in _ANSWERING:
        named = {"tool_call_id": message.get("tool_call_id"), "tool_name": message.get("name")}
        said = {key: value for key, value in named.items() if isinstance(value, str)}
        part("ToolResult", text if isinstance(text, str) else _list_text(text), **said)
        for key, name in (("tool_call_id", "tool_call_id"), ("name", "tool_name")):
            if name in said:
                del source[key]
        if isinstance(text, str):
            del source["content"]
    elif isinstance(text, str):
        part("Text", text)
        del source[_TEXT_FIELD[format]]
    elif text:
        part("Text", _list_text(text))
    if format == "chat" and message.get("tool_calls"):
        calls = message["tool_calls"]
        for call in calls:
            function = call.get("function") if isinstance(call.get("function"), dict) else {}
            named = {"tool_call_id": call.get("id"), "tool_name": function.get("name")}
            said = {key: value for key, value in named.items() if isinstance(value, str)}
            arguments = function.get("arguments")
            part("ToolCall", arguments if isinstance(arguments, str) else canonical(arguments), **said)
        if _calls_of(parts) == calls:
            del source["tool_calls"]
    role = _ROLES.get(message["role"], "Assistant")
    return {"id": node_id, "role": role, "parts": parts, "source": source}


def message_of(format: Format, record: Mapping[str, Any]) -> Message:  # noqa: A002
    """The message that `record` was made of."""
    message: Message = {}
    parts = record.get("parts", [])
    for part in parts:
        if part.get("kind") == "ToolResult":
            message["content"] = part.get("content")
            message |= {
                key: part[name]
                for key, name in (("tool_call_id", "tool_call_id"), ("name", "tool_name"))
                if name in part
            }
        elif part.get("kind") == "Text":
            message[_TEXT_FIELD[format]] = part.get("content")
    if calls := _calls_of(parts):
        message["tool_calls"] = calls
    return {**message, **record.get("source", {})}


def _calls_of(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "id": part.get("tool_call_id"),
            "type": "function",
            "function": {"name": part.get("tool_name"), "arguments": part.get("content")},
        }
        for part in parts
        if part.get("kind") == "ToolCall"
    ]


def _list_text(content: Any) -> str:
    """What can be read of a content that is a list of parts."""
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n\n".join(text for text in texts if isinstance(text, str))


def canonical(value: Any) -> str:
    """Equal for what is the same JSON, and for nothing else (1, 1.0 and true differ)."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


# What a session holds beside its messages


def tokens(messages: Sequence[Message]) -> int:
    """A count that is easy to repeat: a token is four characters."""
    return sum(len(canonical(message)) for message in messages) // 4


@dataclass(frozen=True, slots=True)
class Progress:
    """A session's components after some turns. Each turn's values are made from the ones before, as they were read."""

    turns: int = 0
    usage: TokenUsage = field(default_factory=TokenUsage)
    digest: str = ""
    """Chained over the turns; the plugin snapshot holds it."""
    image: bytes = b""
    """Chained over the turns; the execution state."""

    @classmethod
    def read(cls, checkpoint: HydratedSessionCheckpoint | None) -> Progress:
        if checkpoint is None:
            return cls()
        plugins = checkpoint.plugin_snapshot.plugins if checkpoint.plugin_snapshot else {}
        state = plugins["replay"].meta.state if "replay" in plugins else None
        return cls(
            turns=checkpoint.turn_state.turn_index,
            usage=checkpoint.turn_state.token_usage,
            digest=str(state.get("digest", "")) if isinstance(state, dict) else "",
            image=checkpoint.execution_state or b"",
        )

    def after(self, deltas: Sequence[TokenLedgerEntry], messages: Sequence[Message]) -> Progress:
        said = canonical(list(messages)).encode()
        usage = self.usage
        for delta in deltas:
            usage += delta.usage
        return Progress(
            turns=self.turns + 1,
            usage=usage,
            digest=hashlib.sha256(self.digest.encode() + said).hexdigest(),
            image=hashlib.shake_256(self.image + said).digest(1024),
        )

    def turn_state(self) -> PersistedTurnState:
        return PersistedTurnState(turn_index=self.turns, token_usage=self.usage)

    def plugin_snapshot(self) -> PluginSessionSnapshot:
        meta = PluginSnapshotMeta("replay", "1", self.turns, {"turns": self.turns, "digest": self.digest})
        artifact = PluginArtifact("digest", bytes.fromhex(self.digest))
        return PluginSessionSnapshot({"replay": PluginSnapshotEntry(meta, (artifact,))})


def usage_deltas(heard: Sequence[Message], said: Sequence[Message]) -> list[TokenLedgerEntry]:
    """What a turn that says `said` after `heard` is booked as: the model's share, and that of its tools if any."""
    answers = [message for message in said if message["role"] == "assistant"]
    results = [message for message in said if message["role"] in _ANSWERING]
    asked = [message for message in said if message["role"] not in ("assistant", *_ANSWERING)]
    output = tokens(answers)
    deltas = [TokenLedgerEntry("turn", "replay", TokenUsage(tokens(asked) + 1, output, tokens(heard), output // 4))]
    if results:
        deltas.append(TokenLedgerEntry("tools", "replay", TokenUsage(tokens(results) + 1)))
    return deltas
