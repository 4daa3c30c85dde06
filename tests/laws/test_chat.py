"""Chats: messages come back exactly as given, appends of several workers follow one another, a retry is stored once."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from lash_redis import (
    Append,
    BackendError,
    EventPayload,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidRecord,
    NodeIdCollision,
    OutcomeUnknown,
    OwnerMismatch,
    PersistedSessionConfig,
    PluginPayload,
    ReplaceFull,
    RuntimeCommit,
    SessionDeleted,
    SessionGone,
    SessionNodeRecord,
    SessionUsageReport,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    UsageTotals,
)
from tests.support.breaking import Python, broken_by
from tests.support.builders import commit
from tests.support.proxy import Action, on
from tests.support.sending import sends_once
from tests.unit.test_chat_messages import MESSAGES


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def texts(messages) -> list[str]:
    return [message["content"] for message in messages]


async def numbered(chat, count: int, size: int = 1) -> None:
    for first in range(0, count, size):
        await chat.append(*(user(f"t{at}", id=f"m{at}") for at in range(first, min(first + size, count))))


# Messages


def dropping_vendor_fields(decode):
    return lambda record, text_field: {name: decode(record, text_field).get(name) for name in ("role", text_field)}


@broken_by(Python("chat:decode_message", dropping_vendor_fields, "drops the other fields"))
async def test_every_message_is_returned_exactly_as_it_was_given_with_an_id(chat, open_cache):
    given = list(MESSAGES.values())
    added = await chat.append(*given)
    found = await open_cache().chat("chat").messages()
    assert found == added == [{**message, "id": each["id"]} for message, each in zip(given, added, strict=True)]
    assert len({message["id"] for message in added}) == len(given)
    assert all("id" not in message for message in given)


async def test_a_message_keeps_the_id_that_it_has(chat):
    assert await chat.append(user("a", id="m1"), assistant("b", id="m2")) == await chat.messages()
    assert [message["id"] for message in await chat.messages()] == ["m1", "m2"]


async def test_a_chat_that_does_not_exist_has_no_messages(chat):
    assert (await chat.messages(), await chat.messages(limit=3), await chat.branches()) == ([], [], [])
    assert await chat.usage() == SessionUsageReport()
    assert await chat.append() == []
    assert await chat.store.load_head() is None


async def test_messages_are_records_of_the_contract_for_lists_and_other_runtimes(chat, cache):
    await chat.append({"role": "system", "content": "be kind"}, user("hi"), assistant("hello"))
    (line,) = [info async for info in cache.sessions()]
    assert (line.first_user_message, line.user_message_count) == ("hi", 1)
    read = await cache.session("chat").load_session(FullGraph())
    assert [(message["role"], message["parts"][0]["content"]) for message in read.graph.read_model().messages] == [
        ("System", "be kind"),
        ("User", "hi"),
        ("Assistant", "hello"),
    ]


async def test_messages_of_other_runtimes_are_converted_and_other_nodes_are_skipped(chat, store):
    events = [
        EventPayload({"Conversation": {"id": "x", "role": "User", "parts": [{"kind": "Text", "content": "hi"}]}}),
        PluginPayload("notes", {}),
        EventPayload({"Conversation": {"id": "t", "role": "User", "parts": [], "origin": {"transient": True}}}),
        EventPayload({"Conversation": {"id": "x", "role": "Assistant", "parts": []}}),
    ]
    nodes = [SessionNodeRecord(f"n{at}", f"n{at - 1}" if at else None, "t", event) for at, event in enumerate(events)]
    await store.commit_runtime_state(RuntimeCommit("chat", graph=Append(nodes)))
    await chat.append(assistant("hello", id="m1"))
    expected = [user("hi", id="n0"), assistant("", id="n3"), assistant("hello", id="m1")]
    assert await chat.messages() == expected
    for limit in range(1, 6):
        assert await chat.messages(limit=limit) == expected[-limit:]
        assert await chat.messages(limit=limit, before="m1") == expected[:-1][-limit:]


async def test_pages_of_messages_follow_one_another(chat):
    await numbered(chat, 23, size=5)
    before, pages = None, []
    while page := await chat.messages(limit=4, before=before):
        pages.insert(0, page)
        before = page[0]["id"]
    assert [len(page) for page in pages] == [3, 4, 4, 4, 4, 4]
    assert texts(message for page in pages for message in page) == [f"t{at}" for at in range(23)]
    assert texts(await chat.messages(before="m3")) == ["t0", "t1", "t2"]
    assert await chat.messages(before="m0") == []


async def first_page_only(path, before, leaf):
    return await path.load(100, before, leaf=leaf)


@broken_by(Python("session.path_items:PathItems._all", lambda _: first_page_only, "returns what one round trip brings"))
async def test_a_chat_of_any_length_is_read_whole(open_cache):
    for count in (99, 100, 101, 250):
        chat = open_cache().chat(f"chat-{count}")
        await numbered(chat, count, size=count)
        assert texts(await chat.messages()) == [f"t{at}" for at in range(count)]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda chat: chat.append("hi"), "messages[0]"),
        (lambda chat: chat.append(user("a"), {"role": "human", "content": "x"}), "messages[1].role"),
        (lambda chat: chat.append(user("a", id="")), "messages[0].id"),
        (lambda chat: chat.append(user("a", id=7)), "messages[0].id"),
        (lambda chat: chat.append(user("a", id="x"), user("b", id="x")), "messages[1].id"),
        (lambda chat: chat.append(user("a"), after="nope"), "after"),
        (lambda chat: chat.append(user("a"), after=7), "after"),
        (lambda chat: chat.append(user("a"), usage=["x"]), "usage[0]"),
        (lambda chat: chat.append(user("a"), usage=TokenUsage(1)), "usage"),
        (lambda chat: chat.append([user("a")]), "messages[0]"),
        (lambda chat: chat.append(usage=[TokenLedgerEntry("s", "m", TokenUsage(1))], after="m1"), "after"),
        (lambda chat: chat.messages(limit=0), "limit"),
        (lambda chat: chat.messages(limit="1"), "limit"),
        (lambda chat: chat.edit("nope", user("a")), "message_id"),
        (lambda chat: chat.edit("m1", {"content": "a"}), "message.role"),
        (lambda chat: chat.edit("plugin", user("a")), "message_id"),
        (lambda chat: chat.rewind("nope"), "message_id"),
        (lambda chat: chat.rewind(7), "message_id"),
    ],
)
async def test_a_wrong_argument_is_refused_by_its_name_and_nothing_is_stored(call, field, chat, store, keyspace):
    plugin = SessionNodeRecord("plugin", "m1", "t", PluginPayload("p", {}))
    await chat.append(user("one", id="m1"))
    await chat.store.commit_runtime_state(RuntimeCommit("chat", graph=Append([plugin], "m1")))
    before = await keyspace()
    with pytest.raises(InvalidRecord) as refused:
        await call(chat)
    assert refused.value.field == field
    assert await keyspace() == before


# Several workers


def overwriting(commit_runtime_state):
    async def careless(self, made, **more):
        return await commit_runtime_state(self, RuntimeCommit(made.session_id, None, graph=made.graph), **more)

    return careless


@broken_by(
    Python("session.store:RedisSessionStore.commit_runtime_state", overwriting, "appends to the message it saw last")
)
async def test_appends_of_several_workers_follow_one_another_each_whole(open_cache):
    async def worker(name: str) -> None:
        chat = open_cache().chat("chat")
        for turn in range(5):
            await chat.append(user(f"{name}{turn}"), assistant(f"{name}{turn}"))

    await asyncio.gather(*map(worker, "abcdef"))
    found = texts(await open_cache().chat("chat").messages())
    assert len(found) == 60
    assert found[::2] == found[1::2]
    for name in "abcdef":
        assert [text for text in found[::2] if text[0] == name] == [f"{name}{turn}" for turn in range(5)]


@asynccontextmanager
async def at_once(*_):
    yield


@broken_by(Python("session.queues:Queues.turn", lambda _: at_once, "lets tasks commit at the same time"))
@pytest.mark.parametrize("handles", [1, 50])
async def test_appends_of_one_process_follow_one_another_in_the_order_of_their_calls(handles, cache):
    chats = [cache.chat("chat") for _ in range(handles)]
    await asyncio.gather(*(chats[at % handles].append(user(f"t{at}")) for at in range(100)))
    assert texts(await chats[0].messages()) == [f"t{at}" for at in range(100)]


async def test_a_failed_or_cancelled_append_does_not_hold_up_the_next(cache):
    chat, other = cache.chat("chat"), cache.chat("chat")
    await chat.append(user("a", id="m1"))
    with pytest.raises(NodeIdCollision):
        await chat.append(user("b", id="m1"))
    waiting = [asyncio.create_task(other.append(user(f"t{at}"))) for at in range(5)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    await asyncio.wait(waiting)
    assert texts(await chat.messages()) == ["a", "t0", "t1", "t3", "t4"]


async def test_an_append_waits_in_the_queue_of_its_process_for_a_bounded_time(open_cache, monkeypatch):
    monkeypatch.setattr(StoreOptions, "contention_seconds", 0.1)
    chat = open_cache().chat("chat")
    async with chat._appender.turn():
        with pytest.raises(BackendError):
            await chat.append(user("a"))
    assert await chat.messages() == []
    await chat.append(user("b"))


async def test_an_append_keeps_the_state_of_the_session(chat, store):
    config, state = PersistedSessionConfig(configured_model="m"), HydratedSessionCheckpoint(execution_state=b"x")
    await store.commit_runtime_state(commit(0, config=config, checkpoint=state))
    await chat.append(user("a"))
    read = await store.load_session(FullGraph())
    assert (read.config, read.checkpoint.execution_state) == (config, b"x")


async def test_an_append_that_never_comes_first_ends_with_the_conflict(open_cache, monkeypatch):
    rival = open_cache().chat("chat")
    await rival.append(user("rival"))
    monkeypatch.setattr(StoreOptions, "contention_seconds", 0.2)
    chat = open_cache().chat("chat")
    make = chat.store.commit_runtime_state

    async def late(made):
        await rival.append(user("rival"))
        return await make(made)

    chat.store.commit_runtime_state = late
    with pytest.raises(HeadRevisionConflict):
        await chat.append(user("mine"))
    assert set(texts(await rival.messages())) == {"rival"}


async def test_a_chat_whose_last_message_is_tombstoned_names_the_way_out(chat, store):
    await numbered(chat, 3)
    await store.tombstone_nodes(["m2"])
    with pytest.raises(InvalidRecord, match="rewind"):
        await chat.append(user("x"))
    with pytest.raises(InvalidRecord):
        await chat.append(user("x"), after="m2")
    await chat.rewind("m1")
    await chat.append(user("x"))
    assert texts(await chat.messages()) == ["t0", "t1", "x"]


# Owners


async def test_a_chat_is_read_and_written_only_by_its_owner(cache):
    ann, bob, trusted = cache.chat("chat", "ann"), cache.chat("chat", owner="bob"), cache.chat("chat")
    await ann.append(user("mine", id="m1"))
    assert (await bob.messages(), await bob.branches(), (await bob.usage()).entry_count) == ([], [], 0)
    for call in (
        lambda: bob.append(user("x")),
        lambda: bob.append(user("mine", id="m1")),
        lambda: bob.append(user("mine", id="m1"), after="m1"),
        lambda: bob.edit("m1", user("x")),
        lambda: bob.edit("nope", user("x")),
        lambda: bob.rewind("m1"),
        lambda: bob.set_title("x"),
        lambda: bob.delete(),
    ):
        with pytest.raises(OwnerMismatch):
            await call()
    await trusted.append(user("seen by all"))
    await ann.set_title("Trip")
    assert texts(await ann.messages()) == texts(await trusted.messages()) == ["mine", "seen by all"]
    assert [(info.title, info.owner) async for info in cache.sessions(owner="ann")] == [("Trip", "ann")]
    assert [info async for info in cache.sessions(owner="bob")] == []


# Retries


async def refusing(_chat, _addition, collision, **_):
    raise collision


@broken_by(Python("session.appender:Appender._settle", lambda _: refusing, "takes every retry for a collision"))
async def test_messages_with_ids_that_are_sent_again_are_stored_once(chat, open_cache):
    spent = [TokenLedgerEntry("turn", "m", TokenUsage(5, 7))]
    first = await chat.append(user("a", id="m1"), assistant("b", id="m2"), usage=spent)
    for handle in (chat, open_cache().chat("chat")):
        assert await handle.append(user("a", id="m1"), assistant("b", id="m2"), usage=spent) == first
    for at in range(40):
        await chat.append(user(f"later {at}"))
    assert await chat.append(user("a", id="m1"), assistant("b", id="m2"), usage=spent) == first
    assert texts(await chat.messages())[:3] == ["a", "b", "later 0"]
    assert (await chat.usage()).usage == UsageTotals.of(TokenUsage(5, 7))


async def keeping_the_tip(_chat, _addition, collision, **_):
    raise collision


@broken_by(Python("session.appender:Appender._settle", lambda _: keeping_the_tip, "uses what the handle saw last"))
async def test_a_message_that_a_replacement_dropped_is_stored_again_with_its_usage(chat, store, open_cache):
    spent = [TokenLedgerEntry("turn", "m", TokenUsage(5, 7))]
    await chat.append(user("a", id="m1"))
    await chat.append(user("b", id="m2"), usage=spent)
    for handle in (chat, open_cache().chat("chat")):
        read = await store.load_session(FullGraph())
        await store.commit_runtime_state(RuntimeCommit("chat", graph=ReplaceFull(read.graph.first(1))))
        await handle.append(user("b", id="m2"), usage=spent)
    assert texts(await chat.messages()) == ["a", "b"]
    assert (await chat.usage()).usage == UsageTotals.of(TokenUsage(15, 21))


async def accepting(*_, **__):
    pass


@broken_by(Python("session.appender:Appender._settle", lambda _: accepting, "takes any content for a retry"))
@pytest.mark.parametrize(
    "again",
    [
        [user("other", id="m1")],
        [assistant("a", id="m1")],
        [user("a", id="m1", name="ann")],
        [user("a", id="m1"), user("new", id="m2")],
        [user("new", id="m2"), user("a", id="m1")],
        [user("hidden", id="m0")],
    ],
)
async def test_an_id_with_other_content_is_a_collision_and_nothing_is_stored(again, chat, store):
    await chat.append(user("hidden", id="m0"), user("a", id="m1"))
    await store.tombstone_nodes(["m0"])
    with pytest.raises(NodeIdCollision):
        await chat.append(*again)
    assert (await store.load_head()).graph_node_count == 1


async def test_an_append_whose_reply_is_lost_is_stored_once(proxy, through_proxy):
    chat = through_proxy().chat("chat")
    await chat.append(user("a"))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    await chat.append(user("b"), assistant("c"))
    assert texts(await chat.messages()) == ["a", "b", "c"]


async def test_an_append_of_unknown_outcome_is_settled_by_the_same_ids(proxy, through_proxy):
    chat = sends_once(through_proxy()).chat("chat")
    await chat.append(user("a"))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown):
        await chat.append(user("b", id="m2"))
    await chat.append(user("b", id="m2"))
    assert texts(await chat.messages()) == ["a", "b"]


# Branches


async def test_an_edit_is_a_new_branch_beside_the_message(chat, open_cache):
    await numbered(chat, 4)
    new = await chat.edit("m2", user("edited", id="m2"))
    assert new == user("edited", id=new["id"])
    assert new["id"] not in ("m0", "m1", "m2", "m3")
    assert texts(await chat.messages()) == ["t0", "t1", "edited"]
    assert await chat.branches() == ["m3", new["id"]]
    first = await open_cache().chat("chat").edit("m0", user("other start"))
    assert texts(await chat.messages()) == ["other start"]
    assert await chat.branches() == ["m3", new["id"], first["id"]]


async def test_a_rewind_continues_at_any_message_of_any_branch(chat, open_cache):
    await numbered(chat, 4)
    new = await chat.edit("m2", user("edited"))
    other = open_cache().chat("chat")
    await other.rewind("m3")
    assert texts(await chat.messages()) == ["t0", "t1", "t2", "t3"]
    await other.rewind("m0")
    await other.append(user("again", id="m9"))
    await chat.append(user("behind"))
    assert texts(await chat.messages()) == ["t0", "again", "behind"]
    assert (await chat.branches())[:2] == ["m3", new["id"]]


async def test_an_append_after_a_message_is_a_branch(chat):
    await numbered(chat, 3)
    await chat.append(user("left"), assistant("down"), after="m0")
    assert texts(await chat.messages()) == ["t0", "left", "down"]
    await chat.append(user("t3"), after="m2")
    assert texts(await chat.messages()) == ["t0", "t1", "t2", "t3"]
    assert len(await chat.branches()) == 2


async def test_the_last_message_of_every_branch_is_listed_once(chat):
    await numbered(chat, 3)
    tips = ["m2"]
    for parent in ("m0", "m1", "m0"):
        (message,) = await chat.append(user("x"), after=parent)
        tips.append(message["id"])
    assert await chat.branches() == tips
    for tip in tips:
        await chat.rewind(tip)
        path = await chat.messages()
        assert path[-1]["id"] == tip
    assert all(above["id"] != below["id"] for above, below in pairwise(path))


# The end of a chat


async def test_a_new_or_expired_chat_has_no_message_to_continue_from(chat, open_cache):
    for handle in (chat, open_cache().chat("chat")):
        with pytest.raises(InvalidRecord) as refused:
            await handle.append(user("x"), after="m1")
        assert refused.value.field == "after"
    await chat.append(user("a", id="m1"))
    await open_cache(deletion_marker_ttl=0).delete("chat")
    with pytest.raises(SessionGone):
        await chat.append(assistant("late answer"))
    for call in (lambda: chat.append(user("x"), after="m1"), lambda: chat.edit("m1", user("x"))):
        with pytest.raises(InvalidRecord):
            await call()
    assert await chat.messages() == []
    await chat.append(user("new"))
    assert texts(await chat.messages()) == ["new"]


async def test_a_deleted_chat_refuses_late_appends(chat, open_cache):
    other = open_cache().chat("chat")
    await chat.append(user("a"))
    await other.messages()
    assert (await chat.delete()).existed
    for handle in (chat, other):
        with pytest.raises(SessionDeleted):
            await handle.append(user("late"))
    assert await chat.messages() == []


async def test_a_handle_that_read_that_a_chat_is_gone_begins_a_new_one(chat, open_cache):
    for read in (chat.messages, lambda: chat.messages(limit=2)):
        await chat.append(user("a"))
        await open_cache(deletion_marker_ttl=0).delete("chat")
        assert await read() == []
        await chat.append(user("b"))
        assert texts(await chat.messages()) == ["b"]
        await open_cache(deletion_marker_ttl=0).delete("chat")
        assert await chat.messages() == []


async def test_usage_is_the_sum_of_what_was_appended(chat):
    for model in ("gpt-5", "gpt-5", "small"):
        await chat.append(assistant("x"), usage=[TokenLedgerEntry("turn", model, TokenUsage(10, 2, 1))])
    await chat.append(usage=[TokenLedgerEntry("tools", "none", TokenUsage(1))])
    report = await chat.usage()
    assert report.usage == UsageTotals.of(TokenUsage(31, 6, 3))
    assert {row.model: row.usage.input_tokens for row in report.by_source_model} == {
        "gpt-5": 20,
        "small": 10,
        "none": 1,
    }
    assert len(await chat.messages()) == 3


# Cost


async def test_a_handle_that_knows_the_last_message_appends_in_one_round_trip(proxy, through_proxy):
    await through_proxy().chat("chat").append(user("a", id="m1"))
    chat, new, trips = through_proxy().chat("chat"), through_proxy().chat("chat"), []
    await new.store.load_session_meta()
    await chat.store.load_session_meta()  # the first call of a cache also checks the layout
    for call in (
        lambda: chat.append(user("b")),
        lambda: chat.append(user("c"), assistant("d")),
        lambda: chat.rewind("m1"),
        lambda: chat.append(user("e")),
        lambda: chat.messages(limit=2),
        lambda: chat.messages(),
        lambda: chat.usage(),
        lambda: new.messages(limit=2),
        lambda: new.append(user("f")),
    ):
        with proxy.measure() as seen:
            await call()
        trips.append(seen.round_trips)
    assert trips == [2, 1, 1, 1, 1, 1, 1, 1, 1]
