"""Conversations that two handles commit in alternating turns are read back unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lash_redis import (
    ActivePath,
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    PersistedTurnState,
    RedisSessionStore,
    RuntimeCommit,
    SessionCache,
    SessionNodeRecord,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
)
from tests.support.paths import DATA
from tests.support.servers import Server

Message = dict[str, Any]


def lines(name: str) -> list[dict[str, Any]]:
    """The conversations of a file."""
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def handles(server: Server) -> list[SessionCache]:
    """Two caches, as of two processes. The namespace has few shards, so that sessions share blobs."""
    return [SessionCache(server.client(), "talk", options=StoreOptions(shards=2)) for _ in range(2)]


def turns_of(messages: list[Message]) -> list[list[Message]]:
    """Split before each message of a user. Messages before the first of them belong to the first turn."""
    turns: list[list[Message]] = [[]]
    for message in messages:
        if message["role"] == "user" and any(before["role"] == "user" for before in turns[-1]):
            turns.append([])
        turns[-1].append(message)
    return turns


def messages_of(read: PersistedSessionRead | None) -> list[Message]:
    assert read is not None
    messages: list[Message] = []
    for node in read.graph.nodes:
        event = node.event()
        assert event is not None
        messages.append(event["Conversation"])
    return messages


async def commit_turns(stores: list[RedisSessionStore], turns: list[list[Message]], tools: ToolState) -> None:
    """Load, continue and commit each turn through the handle that did not commit the turn before."""
    leaf, count = None, 0
    for at, turn in enumerate(turns):
        store = stores[at % 2]
        before = await store.load_session(ActivePath())
        assert (before is None) == (at == 0)
        revision = None if before is None else before.head_revision
        nodes = []
        for message in turn:
            node_id = f"m{count}"
            nodes.append(SessionNodeRecord(node_id, leaf, f"t{count}", EventPayload({"Conversation": message})))
            leaf, count = node_id, count + 1
        result = await store.commit_runtime_state(
            RuntimeCommit(
                store.session_id,
                revision,
                graph=Append(nodes, leaf),
                checkpoint=HydratedSessionCheckpoint(
                    turn_state=PersistedTurnState(turn_index=at + 1),
                    tool_state=tools,
                    execution_state=json.dumps({"turn": at}).encode(),
                ),
                usage_deltas=[TokenLedgerEntry("turn", "m", TokenUsage(input_tokens=len(turn)))],
                builds_on=None if before is None else before.commit_id,
            )
        )
        assert result.head_revision == at + 1


async def check(
    store: RedisSessionStore, turns: list[list[Message]], messages: list[Message], tools: ToolState
) -> None:
    for scope in (FullGraph(), ActivePath()):
        read = await store.load_session(scope)
        assert messages_of(read) == messages
        assert read is not None
        assert read.checkpoint is not None
        assert (read.head_revision, read.checkpoint.turn_state.turn_index) == (len(turns), len(turns))
        assert read.checkpoint.tool_state == tools
        assert read.checkpoint.execution_state == json.dumps({"turn": len(turns) - 1}).encode()
        assert [row.usage.input_tokens for row in read.token_ledger] == [len(messages)]


async def check_conversation(
    caches: list[SessionCache], fresh: SessionCache, name: str, messages: list[Message]
) -> None:
    tools = ToolState(1, {"look": ToolStateEntry({"name": "look", "description": "é"}, "plugins")})
    turns = turns_of(messages)
    assert [message for turn in turns for message in turn] == messages
    await commit_turns([cache.session(name) for cache in caches], turns, tools)
    await check(fresh.session(name), turns, messages, tools)


async def check_tree(caches: list[SessionCache], fresh: SessionCache, name: str, messages: list[Message]) -> None:
    """Commit every message on its own, then compare the path of every leaf with its chain of parents."""
    for at, message in enumerate(messages):
        node = SessionNodeRecord(message["id"], message["parent_id"], "t", EventPayload({"Conversation": message}))
        store = caches[at % 2].session(name)
        await store.commit_runtime_state(RuntimeCommit(name, at or None, graph=Append([node], message["id"])))
    by_id = {message["id"]: message for message in messages}
    parents = {message["parent_id"] for message in messages}
    store = fresh.session(name)
    assert messages_of(await store.load_session(FullGraph())) == messages
    for message in messages:
        if message["id"] not in parents:
            chain, at_id = [], message["id"]
            while at_id is not None:
                chain.append(by_id[at_id])
                at_id = by_id[at_id]["parent_id"]
            assert messages_of(await store.load_session(ActivePath(message["id"]))) == chain[::-1]


OWN_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wie wird das Wetter in Zürich? 🌦"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "look"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": '{"rain": 0.25, "temperature": -3}'},
    {"role": "assistant", "content": "Cold, some rain."},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "Anything else?\n\x00"},
    {"role": "user", "content": "No."},
]
OWN_TREE = [
    {"id": "a", "parent_id": None, "role": "user", "text": "Hello"},
    {"id": "b", "parent_id": "a", "role": "assistant", "text": "Hi"},
    {"id": "c", "parent_id": "a", "role": "assistant", "text": "Hey"},
    {"id": "d", "parent_id": "b", "role": "user", "text": "How are you?"},
    {"id": "e", "parent_id": "c", "role": "user", "text": "What now?"},
    {"id": "f", "parent_id": "b", "role": "user", "text": "Bye"},
    {"id": "g", "parent_id": "e", "role": "assistant", "text": "Nothing"},
]


async def test_a_chat_appended_turn_by_turn_through_two_handles_equals_its_source(server: Server) -> None:
    await check_conversation(handles(server), handles(server)[0], "own", OWN_CHAT)


async def test_the_path_of_every_leaf_is_its_chain_of_parents(server: Server) -> None:
    await check_tree(handles(server), handles(server)[0], "own", OWN_TREE)


@pytest.mark.samples
@pytest.mark.slow
async def test_real_chats_appended_turn_by_turn_through_two_handles_equal_their_source(server: Server) -> None:
    chats, caches, fresh = lines("airline_chats.jsonl"), handles(server), handles(server)[0]
    for chat in chats:
        await check_conversation(caches, fresh, chat["id"], chat["messages"])


@pytest.mark.samples
@pytest.mark.slow
async def test_the_path_of_every_leaf_of_real_trees_is_its_chain_of_parents(server: Server) -> None:
    trees, caches, fresh = lines("message_trees.jsonl"), handles(server), handles(server)[0]
    for tree in trees:
        await check_tree(caches, fresh, tree["id"], tree["messages"])
