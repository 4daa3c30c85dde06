"""A value of a subclass of str, int or float is stored as the value that `json.dumps` writes, or refused by name.

Members of a `str` Enum are the common case: `str()` and f-strings write their names instead of their values.
"""

from __future__ import annotations

import json
from enum import Enum, IntEnum
from typing import Any

import pytest

from lash_redis import (
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    ModeTurnOptions,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginPayload,
    PluginSessionSnapshot,
    RuntimeCommit,
    SessionGraph,
    SessionMeta,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
)
from lash_redis.models import PluginSnapshotEntry, PluginSnapshotMeta, fast_packing, json_values, message_text, wire
from tests.support.breaking import Python, broken_by


class Word(str, Enum):  # noqa: UP042 - the members of this spelling print as their names
    """Texts of the tests as members whose names differ from them."""

    CONVERSATION = "Conversation"
    ROLE = "role"
    USER = "user"
    USER_RECORD = "User"
    KEY = "k"
    KIND = "kind"
    MODEL = "gpt"


class Level(IntEnum):
    ONE = 1


class Whole(int):
    def __repr__(self) -> str:
        return "whole"

    def __int__(self) -> int:
        return 7


class Real(float):
    def __repr__(self) -> str:
        return "real"

    def __float__(self) -> float:
        return 7.0


class Quoted(str):
    """A text that prints differently, and equals only itself."""

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return "quoted"

    def __eq__(self, other: object) -> bool:
        return self is other


VALUES = (Word.USER, Level.ONE, Whole(5), Real(0.5), Quoted("plain"), {Word.KEY: 1}, {Quoted("q"): [Level.ONE]})
STORED = ("user", 1, 5, 0.5, "plain", {"k": 1}, {"q": [1]})
"""The values of `VALUES` as JSON."""

PRINTS_MEMBERS = Python(
    "models.json_values:plain_text",
    lambda plain: lambda value: value if type(value) is str else str(value),
    "stores the text that a member prints",
)


@pytest.fixture(params=["fast", "plain"], autouse=True)
def packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with both packers, if the extra `fast` is installed."""
    if request.param == "plain":
        monkeypatch.setattr(fast_packing, "pack_json", lambda value: None)
        monkeypatch.setattr(fast_packing, "pack_record", lambda tree: None)
        monkeypatch.setattr(wire, "fragment_of", lambda value: None)


def exactly(value: Any) -> str:
    """Text by which two values are equal only if they are equal values of equal plain types."""
    return repr(json.loads(json.dumps(value)))


@broken_by(PRINTS_MEMBERS)
async def test_a_value_of_a_subclass_is_read_as_json_dumps_writes_it(store):
    value, stored = list(VALUES), list(STORED)
    plugin = PluginSnapshotEntry(PluginSnapshotMeta("p", "1", 1, value))
    nodes = [
        SessionNodeRecord("a", None, "t", EventPayload({"x": value})),
        SessionNodeRecord("b", "a", "t", PluginPayload("p", [value])),
    ]
    checkpoint = HydratedSessionCheckpoint(
        turn_state=PersistedTurnState(mode_turn_options=ModeTurnOptions("m", value)),
        tool_state=ToolState(1, {"look": ToolStateEntry({"x": value}, "s")}),
        plugin_snapshot=PluginSessionSnapshot({"p": plugin}),
    )
    await store.commit_runtime_state(RuntimeCommit("chat", graph=Append(nodes), checkpoint=checkpoint))
    read = await store.load_session(FullGraph())
    found = [
        read.graph.nodes[0].event()["x"],
        read.graph.nodes[1].plugin_body()[0],
        read.checkpoint.turn_state.mode_turn_options.payload,
        read.checkpoint.tool_state.tools["look"].manifest["x"],
        read.checkpoint.plugin_snapshot.plugins["p"].meta.state,
    ]
    assert list(map(repr, found)) == [repr(stored)] * 5
    assert exactly(value) == repr(stored)


@broken_by(PRINTS_MEMBERS)
async def test_a_text_field_of_a_subclass_is_read_as_its_value(store):
    commit = RuntimeCommit(
        "chat",
        config=PersistedSessionConfig(Word.MODEL, Word.MODEL, 1, Word.KIND, {Word.KIND: Word.KEY}, Word.MODEL),
        graph=Append([SessionNodeRecord("a", None, Word.KEY, PluginPayload(Word.KIND, 1))]),
        checkpoint=HydratedSessionCheckpoint(
            tool_state=ToolState(1, {Word.KEY: ToolStateEntry({}, Word.KIND)}),
            plugin_snapshot=PluginSessionSnapshot(
                {Word.KEY: PluginSnapshotEntry(PluginSnapshotMeta(Word.KEY, Word.KEY))}
            ),
        ),
        usage_deltas=[
            TokenLedgerEntry(Word.KEY, Word.MODEL, TokenUsage(1)),
            TokenLedgerEntry("k", "gpt", TokenUsage(2)),
        ],
    )
    await store.commit_runtime_state(commit)
    await store.save_session_meta(SessionMeta("chat", Word.KEY, Word.KEY, Word.MODEL, Word.KEY))
    read = await store.load_session(FullGraph())
    config, (node,) = read.config, read.graph.nodes
    assert config == PersistedSessionConfig("gpt", "gpt", 1, "kind", {"kind": "k"}, "gpt")
    assert (repr(node.timestamp), repr(node.payload.plugin_type)) == ("'k'", "'kind'")
    assert (
        repr(list(read.checkpoint.tool_state.tools)) == repr(list(read.checkpoint.plugin_snapshot.plugins)) == "['k']"
    )
    assert read.token_ledger == (TokenLedgerEntry("k", "gpt", TokenUsage(3)),)
    assert await store.load_session_meta() == SessionMeta("chat", "k", "k", "gpt", "k")


EVENTS = [
    {"Conversation": {"id": "a", "role": Word.USER, "content": "hi"}},
    {"Conversation": {"id": "a", "role": Word.USER_RECORD, "parts": [{"kind": "Text", "content": "hi"}]}},
    {Word.CONVERSATION: {"id": "a", Word.ROLE: "user", "content": "hi"}},
    {Quoted("Conversation"): {"id": "a", "role": Quoted("user"), "content": "hi"}},
]


@broken_by(
    Python(
        "models.node:field_of",
        lambda _: lambda value, key: value.get(key) if isinstance(value, dict) else None,
        "searches keys by their hash",
    )
)
async def test_a_user_message_counts_before_and_after_it_is_stored(cache, open_cache):
    for place, event in enumerate(EVENTS):
        store = cache.session(f"chat-{place}")
        graph = SessionGraph((SessionNodeRecord("a", None, "t", EventPayload(event)),), "a")
        await store.commit_runtime_state(RuntimeCommit(store.session_id, graph=Append(graph.nodes)))
        read = await store.load_session(FullGraph())
        (line,) = [line async for line in cache.sessions() if line.session_id == store.session_id]
        assert (graph.user_message_count(), read.graph.user_message_count(), line.user_message_count) == (1, 1, 1)
        assert (graph.first_user_message(), read.graph.first_user_message(), line.first_user_message) == ("hi",) * 3
        assert message_text(graph.read_model().messages[0]) == "hi"
    assert list((await open_cache(role="auditor").audit()).problems) == []


async def test_a_chat_message_whose_role_is_an_enum_member_is_stored_with_its_value(chat):
    added = await chat.append({"role": Word.USER, "content": "hi", Word.KEY: Level.ONE, "id": "m1"})
    assert repr(sorted(added[0].items())) == "[('content', 'hi'), ('id', 'm1'), ('k', 1), ('role', 'user')]"
    assert await chat.messages() == added == [{"role": "user", "content": "hi", "k": 1, "id": "m1"}]
    assert await chat.append({"role": "user", "content": "hi", "k": 1, "id": "m1"}) == added
    graph = SessionGraph().append_message({"role": Word.USER, "content": "hi", "id": Word.KEY})
    assert (graph.leaf_node_id, graph.user_message_count()) == ("k", 1)


async def test_two_keys_of_one_text_are_refused(store):
    node = SessionNodeRecord("a", None, "t", EventPayload({"k": 1, Quoted("k"): 2}))
    with pytest.raises(InvalidRecord, match="its key 'k' occurs twice") as caught:
        await store.commit_runtime_state(RuntimeCommit("chat", graph=Append([node])))
    assert caught.value.field == "RuntimeCommit.graph.nodes[0].payload.event"


async def test_an_id_of_a_subclass_is_refused_by_name(cache, store):
    """Ids are parts of keys, and an f-string would write the name of a member."""
    for field, call in {
        "session_id": lambda: cache.session(Word.KEY),
        "owner": lambda: cache.session("chat", owner=Word.KEY),
    }.items():
        with pytest.raises(InvalidRecord) as caught:
            call()
        assert (caught.value.field, "expected a string, got Word" in str(caught.value)) == (field, True)
    node = SessionNodeRecord(Word.KEY, None, "t", EventPayload(1))
    with pytest.raises(InvalidRecord) as caught:
        await store.commit_runtime_state(RuntimeCommit("chat", graph=Append([node], "k")))
    assert caught.value.field == "RuntimeCommit.graph.nodes[0].node_id"


def test_a_check_of_json_returns_plain_types_only():
    checked = json_values.check_json([*VALUES, {"deep": list(VALUES)}], "value")
    assert repr(checked) == repr([*STORED, {"deep": list(STORED)}])
