"""The two formats of conversation files, their turns, and the components of a session after some turns.

A chat is a line `{"id", "messages": [...]}` of OpenAI chat messages. A tree has messages
`{"id", "parent_id", "role", "text", "lang"}`, parents before children.

A message is stored as `models/chat_messages.py` encodes it. So `message_of` returns exactly the message that was read.
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
from lash_redis.models.chat_messages import (
    canonical_json,
    check_chat_message,
    decode_message,
    encode_message,
)
from lash_redis.models.components import PluginArtifact, PluginSnapshotEntry, PluginSnapshotMeta
from lash_redis.models.json_values import check_json

Message = dict[str, Any]
Format = Literal["chat", "tree"]

SHIPPED = Path(__file__).with_name("conversation.jsonl")

_TEXT_FIELD: Mapping[Format, str] = {"chat": "content", "tree": "text"}
_ANSWERING = ("tool", "function")
_TREE_ROLES = ("system", "user", "prompter", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """The job of one worker: the messages to append, and where. The worker must load the session itself."""

    session_id: str
    number: int
    """From 0; also the revision after the turns before it."""
    format: Format
    node_ids: Sequence[str]
    messages: Sequence[Message]
    parent: str | None = None
    """Tree: the node to continue from."""
    tools: ToolState | None = None
    """Only for the first turn; later turns keep the stored tool state."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A line of a file. `parents[i]` is the index of the parent of message `i`, None for a root."""

    id: str
    format: Format
    messages: Sequence[Message]
    parents: Sequence[int | None] = field(repr=False)
    model: str = ""
    """The line's model; "" if it names none."""

    def node_id(self, index: int) -> str:
        """Return the id of a message; `m0`, `m1`, ... for a chat, whose messages have no ids."""
        return f"m{index}" if self.format == "chat" else str(self.messages[index]["id"])

    def parent_id(self, index: int) -> str | None:
        above = self.parents[index]
        return None if above is None else self.node_id(above)

    def turns(self, session_id: str, tools: ToolState | None = None) -> list[Turn]:
        """Divide the conversation into turns. Without `tools`, the tool state has the names of the called tools."""
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

    def _spans(self) -> list[range]:
        """Return the messages of each turn. In a tree, each message is a turn.

        In a chat, a turn begins at a user message and ends before the next. Messages before the first one belong to it.
        """
        if self.format == "tree":
            return [range(index, index + 1) for index in range(len(self.messages))]
        users = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        starts = [0, *users[1:]]
        return [range(start, end) for start, end in zip(starts, [*starts[1:], len(self.messages)], strict=True)]

    def leaves(self) -> list[int]:
        """Return the messages without children."""
        inner = set(self.parents)
        return [index for index in range(len(self.messages)) if index not in inner]

    def path(self, index: int | None) -> list[int]:
        """Return the path from the root to message `index`."""
        path = []
        while index is not None:
            path.append(index)
            index = self.parents[index]
        return path[::-1]


# Reading


def read_conversations(paths: Sequence[Path]) -> list[Conversation]:
    """Read every conversation of the files, in order. A repeated id gets the suffix `~2`, `~3` and so on.

    Raises:
        InputError: names file, line and field.
    """
    found: dict[str, Conversation] = {}
    for path in paths:
        for conversation in conversations_in(path, Input(path).lines()):
            name, number = conversation.id, 1
            while name in found:
                number += 1
                name = f"{conversation.id}~{number}"
            found[name] = replace(conversation, id=name)
    if not found:
        raise InputError(paths[-1], None, "", "contains no conversation")
    return list(found.values())


def conversations_in(path: Path, lines: Iterable[bytes]) -> Iterator[Conversation]:
    """Yield the conversations of a file's lines. Ids may repeat.

    Raises:
        InputError: a line is invalid; names file, line and field. The conversations before it are valid.
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
        raise InputError(path, line, "", f"is JSON that cannot be decoded: {error}") from error


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
        check_chat_message(message, f"messages[{index}]")
    return Conversation(name, "chat", messages, [None, *range(len(messages) - 1)], model)


def _tree_parents(messages: Sequence[Message]) -> list[int | None]:
    places: dict[str, int] = {}
    parents: list[int | None] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        own, parent = require_id(f"{where}.id", message.get("id")), message.get("parent_id")
        if own in places:
            raise InvalidRecord(f"{where}.id", f"{own!r} is also the id of messages[{places[own]}]")
        if parent is not None and not (isinstance(parent, str) and parent in places):
            raise InvalidRecord(f"{where}.parent_id", f"expected the id of an earlier message or null, got {parent!r}")
        _check_role(message, where, _TREE_ROLES)
        if not isinstance(message.get("text"), str):
            raise InvalidRecord(f"{where}.text", f"expected a string, got {_kind(message.get('text'))}")
        parents.append(None if parent is None else places[parent])
        places[own] = index
    return parents


def _check_role(message: Message, where: str, known: Sequence[str]) -> None:
    if message.get("role") not in known:
        expected = f"{', '.join(known[:-1])} or {known[-1]}"
        raise InvalidRecord(f"{where}.role", f"expected {expected}, got {message.get('role')!r}")


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string", "bool": "a boolean"}
    return names.get(type(value).__name__, "a number")


def read_tools(path: Path) -> ToolState:
    """Read an OpenAI list of tools (`[{"type": "function", "function": {"name", ...}}]`) as a tool state.

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
            raise InputError(path, None, f"[{index}].function.name", f"expected the name of a tool, got {name!r}")
        if name in entries:
            raise InputError(path, None, f"[{index}].function.name", f"{name!r} occurs twice; names must be unique")
        try:
            check_json(function, f"[{index}].function")
        except InvalidRecord as error:
            raise InputError(path, None, error.field, error.reason) from error
        entries[name] = ToolStateEntry(function, "plugins")
    return ToolState(generation=1, tools=entries)


def named_tools(conversation: Conversation) -> ToolState:
    """Return a tool state with the names of the tools that a conversation calls, used if no file defines the tools."""
    names = {
        part["tool_name"]
        for index in range(len(conversation.messages))
        for part in record_of(conversation.format, "", conversation.messages[index])["parts"]
        if part.get("tool_name")
    }
    return ToolState(generation=1, tools={name: ToolStateEntry({"name": name}, "plugins") for name in sorted(names)})


# A message as a record, and back


def record_of(format: Format, node_id: str, message: Message) -> dict[str, Any]:  # noqa: A002 (the field's name)
    """Encode a message as the body of a `Conversation` event."""
    return encode_message(message, node_id, _TEXT_FIELD[format])


def message_of(format: Format, record: Mapping[str, Any]) -> Message:  # noqa: A002
    """Decode the message that `record_of` encoded."""
    return decode_message(record, _TEXT_FIELD[format])


# The components and the usage of a session


def tokens(messages: Sequence[Message]) -> int:
    """Return a reproducible number of tokens: one for each four characters."""
    return sum(len(canonical_json(message)) for message in messages) // 4


@dataclass(frozen=True, slots=True)
class Progress:
    """A session's components after some turns. Each turn computes its values from the values that it read."""

    turns: int = 0
    usage: TokenUsage = field(default_factory=TokenUsage)
    digest: str = ""
    """A hash chained over the turns, stored in the plugin snapshot."""
    image: bytes = b""
    """A hash chained over the turns, stored as the execution state."""

    @classmethod
    def read(cls, checkpoint: HydratedSessionCheckpoint | None) -> Progress:
        """Decode the progress from a stored checkpoint."""
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
        """Return the progress after a turn with these messages and this usage."""
        added = canonical_json(list(messages)).encode()
        usage = self.usage
        for delta in deltas:
            usage += delta.usage
        return Progress(
            turns=self.turns + 1,
            usage=usage,
            digest=hashlib.sha256(self.digest.encode() + added).hexdigest(),
            image=hashlib.shake_256(self.image + added).digest(1024),
        )

    def turn_state(self) -> PersistedTurnState:
        return PersistedTurnState(turn_index=self.turns, token_usage=self.usage)

    def plugin_snapshot(self) -> PluginSessionSnapshot:
        meta = PluginSnapshotMeta("replay", "1", self.turns, {"turns": self.turns, "digest": self.digest})
        artifact = PluginArtifact("digest", bytes.fromhex(self.digest))
        return PluginSessionSnapshot({"replay": PluginSnapshotEntry(meta, (artifact,))})


def usage_deltas(earlier: Sequence[Message], added: Sequence[Message]) -> list[TokenLedgerEntry]:
    """Return the usage of a turn that adds messages after earlier ones: a row for the model, and one for its tools."""
    answers = [message for message in added if message["role"] == "assistant"]
    results = [message for message in added if message["role"] in _ANSWERING]
    asked = [message for message in added if message["role"] not in ("assistant", *_ANSWERING)]
    output = tokens(answers)
    deltas = [TokenLedgerEntry("turn", "replay", TokenUsage(tokens(asked) + 1, output, tokens(earlier), output // 4))]
    if results:
        deltas.append(TokenLedgerEntry("tools", "replay", TokenUsage(tokens(results) + 1)))
    return deltas
