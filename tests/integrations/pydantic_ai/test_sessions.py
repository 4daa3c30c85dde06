"""A conversation is a session: long histories, lists, owners, ttl, chats and cost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationRecord,
)
from pydantic_ai.messages import (
    ModelRequest,
)

from lash_redis import (
    Append,
    Corrupt,
    FullGraph,
    PluginPayload,
    RuntimeCommit,
    SessionNodeRecord,
)
from lash_redis.integrations.pydantic_ai import LashConversationStore
from tests.support.builders import let_all_expire, plugins, tools
from tests.support.conversations import (
    AT,
    MESSAGES,
    answer,
    saved,
    talk,
    texts_of,
    user,
)

# Long histories and lists


@pytest.mark.slow
async def test_a_long_conversation_is_loaded_branched_and_forked_whole(conversations, open_store):
    messages = [user(f"q{at}") for at in range(620)]
    await conversations.save(talk("c1", *messages))
    for _ in range(2):
        for limit in (None, 1, 99, 100, 101, 499, 500, 501, 619, 620, 621):
            loaded = await open_store().load("c1", limit=limit)
            assert loaded.messages == messages[-(limit or 620) :], limit
        entries = await open_store().load_entries("c1")
        assert [entry.parent_id for entry in entries] == [None, *(entry.id for entry in entries[:-1])]
        for name, at in (("whole", None), ("part", 300)):
            await open_store().fork("c1", at=at, new_conversation_id=name)
            assert await open_store().load_entries(name) == entries[:at]
            await open_store().delete(name)
        # The same again in a session with a branch, whose path is no longer one line.
        loaded = await open_store().load("c1")
        branched = await open_store().branch("c1", at=610, expected_revision=loaded.revision)
        assert branched.messages == messages[:610]
        branched.messages += [user(f"b{at}") for at in range(10)]
        await open_store().save(branched)
        messages = branched.messages
    (tip, _) = (await conversations.read_record("c1")).branches
    assert [entry.message for entry in await open_store().read_history(tip)] == [user(f"q{at}") for at in range(620)]


@pytest.mark.slow
async def test_a_list_is_ordered_by_the_time_of_the_last_save(conversations):
    for number in range(130):
        await conversations.save(talk(f"c{number:03}"), scope="alice" if number % 2 else None)
        await asyncio.sleep(0.001)
    names = [record.conversation_id for record in await conversations.list_conversations()]
    assert names == [f"c{number:03}" for number in reversed(range(130))]
    latest = await conversations.list_conversations(scope="alice", limit=3)
    assert [record.conversation_id for record in latest] == ["c129", "c127", "c125"]
    record = ConversationRecord(conversation_id="old", head_id=None, updated_at=AT)
    await conversations.write_record(record, expected_revision=None)
    assert (await conversations.list_conversations())[-1] == record


# What the cache adds


async def test_a_scope_is_the_owner_of_its_sessions(conversations, cache, open_store):
    for name, scope in (("c1", "alice"), ("c2", "alice"), ("c3", "bob"), ("c4", None)):
        await saved(conversations, name, name, scope=scope)
    await conversations.fork("c1", new_conversation_id="c5")
    await conversations.fork("c1", new_conversation_id="c6", scope="bob")
    assert {info.session_id: info.owner async for info in cache.sessions()} == {
        "c1": "alice", "c2": "alice", "c3": "bob", "c4": None, "c5": "alice", "c6": "bob"
    }  # fmt: skip
    assert [info.session_id async for info in cache.sessions(parent="c1")] == ["c6", "c5"]
    assert await cache.session("c1", owner="bob").load_head() is None
    with pytest.raises(ConversationConflict):
        await saved(open_store(), "c1", "x", scope="bob")
    assert (await cache.delete_owned("alice")).deleted_session_count == 3
    assert [record.conversation_id for record in await conversations.list_conversations()] == ["c6", "c4", "c3"]


async def test_a_conversation_expires_with_the_ttl_of_its_cache(open_store, client):
    store = open_store(ttl=60, blob_grace=0.1)
    stale = await saved(store, "c1", "a")
    await let_all_expire(client, within=61)
    assert await store.load("c1") is None
    assert await store.list_conversations() == []
    with pytest.raises(ConversationConflict):
        await store.save(stale)
    await saved(store, "c1", "b")
    assert texts_of(await store.load("c1")) == ["b", "to b"]


async def test_a_chat_shows_the_texts_of_a_conversation(conversations, cache):
    calls = [MESSAGES["call"], MESSAGES["return"], MESSAGES["thinking"]]
    await conversations.save(talk("c1", user("weather?"), *calls, MESSAGES["two texts around a call"]))
    messages = await cache.chat("c1").messages()
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "weather?"),
        ("assistant", "so"),
        ("assistant", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
    ]
    (info,) = [info async for info in cache.sessions()]
    assert (info.first_user_message, info.user_message_count) == ("weather?", 1)


async def test_messages_of_a_chat_are_part_of_the_conversation(conversations, cache, open_store):
    await saved(conversations, "c1", "a")
    chat, stale = cache.chat("c1"), await conversations.load("c1")
    await chat.append(
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "to b"},
        {"role": "developer", "content": "c"},
    )
    with pytest.raises(ConversationConflict):
        await conversations.save(stale)
    loaded = await conversations.load("c1")
    assert loaded == await open_store().load("c1")
    assert texts_of(loaded) == ["a", "to a", "b", "to b", "c"]
    assert [type(message).__name__ for message in loaded.messages[2:]] == [
        "ModelRequest", "ModelResponse", "ModelRequest"
    ]  # fmt: skip
    assert len((await conversations.load("c1", limit=4)).messages) == 4
    loaded.messages.append(answer("to c"))
    await conversations.save(loaded)
    assert texts_of(await conversations.load("c1")) == ["a", "to a", "b", "to b", "c", "to c"]


@pytest.mark.parametrize(
    "form", [{}, {"kind": "response"}, {"kind": "request", "parts": [{"part_kind": "user-prompt"}]}]
)
async def test_a_chat_message_cannot_pose_as_a_message_of_the_sdk(conversations, cache, form):
    await saved(conversations, "c1", "a")
    await cache.chat("c1").append({"role": "user", "content": "b", "pydantic_ai": form, "sdk": "pydantic_ai"})
    loaded = await conversations.load("c1")
    assert texts_of(loaded) == ["a", "to a", "b"]
    assert isinstance(loaded.messages[-1], ModelRequest)


@pytest.mark.parametrize(
    ("plugin_type", "body"),
    [
        ("pydantic_ai.message", {}),
        ("pydantic_ai.message", {"message": {"kind": "request", "parts": [{"part_kind": "later"}]}}),
        ("pydantic_ai.json", {"json": "{"}),
    ],
)
async def test_a_message_that_the_sdk_does_not_read_is_reported(conversations, plugin_type, body):
    await saved(conversations, "c1", "a")
    head = await conversations.session("c1").load_head()
    node = SessionNodeRecord("later", head.leaf_node_id, "t", PluginPayload(plugin_type, body))
    await conversations.session("c1").commit_runtime_state(RuntimeCommit("c1", 1, graph=Append([node])))
    with pytest.raises(Corrupt, match="does not read node 'later'"):
        await conversations.load("c1")


async def test_a_session_that_is_no_conversation_is_absent_and_is_not_overwritten(conversations, cache):
    await cache.chat("c1").append({"role": "user", "content": "hi"})
    assert await conversations.load("c1") is None
    assert await conversations.list_conversations() == []
    with pytest.raises(ConversationConflict):
        await saved(conversations, "c1", "a")
    await conversations.delete("c1")
    assert len(await cache.chat("c1").messages()) == 1


async def test_a_fork_of_the_cache_is_a_conversation_of_its_own(conversations, cache):
    await saved(conversations, "c1", "a", scope="alice")
    await cache.fork("c1", "c2")
    copy = await conversations.load("c2", scope="alice")
    assert (copy.conversation_id, texts_of(copy)) == ("c2", ["a", "to a"])
    copy.messages.append(user("b"))
    await conversations.save(copy)
    assert len((await conversations.load("c1")).messages) == 2


async def test_the_other_components_of_a_session_stay(conversations):
    conversation = await saved(conversations, "c1", "a")
    store = conversations.session("c1")
    read = await store.load_session(FullGraph())
    state = replace(read.checkpoint, tool_state=tools(), plugin_snapshot=plugins())
    await store.commit_runtime_state(RuntimeCommit("c1", checkpoint=state))
    again = await conversations.load("c1")
    assert again.messages == conversation.messages
    again.messages.append(user("b"))
    await conversations.save(again)
    read = await store.load_session(FullGraph())
    assert (read.checkpoint.tool_state, read.checkpoint.plugin_snapshot) == (tools(), plugins())


async def test_a_record_of_a_later_format_is_reported(conversations):
    await saved(conversations, "c1", "a")
    store = conversations.session("c1")
    read = await store.load_session(FullGraph())
    state = replace(read.checkpoint, execution_state=read.checkpoint.execution_state.replace(b":1", b":2", 1))
    await store.commit_runtime_state(RuntimeCommit("c1", checkpoint=state))
    with pytest.raises(Corrupt, match="format 2"):
        await conversations.load("c1")


# Cost


async def test_an_entry_is_stored_once_for_all_branches(conversations, client):
    text = "a rather long text " * 40
    conversation = await saved(conversations, "c1", text)
    for at in range(3):
        conversation = await conversations.branch("c1", at=2, expected_revision=conversation.revision)
        conversation.messages.append(user(f"branch {at}"))
        await conversations.save(conversation)
    records = await client.lrange(conversations.session("c1")._keys.log, 0, -1)
    assert [record.count(text.encode()) for record in records] == [1, 1, 0, 0, 0]
    assert len((await conversations.read_record("c1")).branches) == 2


@pytest.mark.parametrize("count", [10, 1000])
async def test_a_turn_costs_what_it_adds(count, proxy, through_proxy):
    store = LashConversationStore(through_proxy())
    await store.save(talk("c1", *(user("q" * 100) if at % 2 == 0 else answer("a" * 100) for at in range(count))))
    conversation = await store.load("c1", limit=20)
    conversation.messages += [user("b"), answer("to b")]
    with proxy.measure() as turn:
        await store.save(conversation)
    assert turn.round_trips == 2
    assert turn.bytes_sent < 4_000
    assert turn.bytes_received < 2_500
