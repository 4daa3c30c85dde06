"""Several clients, deletions and lost replies lose and double no turn."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
)
from pydantic_ai.exceptions import UserError

from lash_redis import (
    OutcomeUnknown,
    SessionDeleted,
)
from lash_redis.integrations.pydantic_ai import LashConversationStore
from lash_redis.session.path_items import PathItems
from tests.support.conversations import (
    answer,
    saved,
    talk,
    texts_of,
    user,
)
from tests.support.proxy import Action, on
from tests.support.sending import sends_once


async def test_of_several_saves_of_one_revision_exactly_one_is_stored(open_store):
    await saved(open_store(), "c1", "a")
    stores = [open_store() for _ in range(6)]
    loaded = [await store.load("c1") for store in stores]
    for number, conversation in enumerate(loaded):
        conversation.messages += [user(f"q{number}"), answer(f"to q{number}")]
    results = await asyncio.gather(
        *(store.save(each) for store, each in zip(stores, loaded, strict=True)), return_exceptions=True
    )
    (winner,) = [number for number, result in enumerate(results) if isinstance(result, list)]
    assert {type(result) for result in results} == {list, ConversationConflict}
    assert texts_of(await open_store().load("c1")) == ["a", "to a", f"q{winner}", f"to q{winner}"]


async def test_of_several_first_saves_exactly_one_is_stored(open_store):
    calls = [saved(open_store(), "c1", f"q{number}") for number in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results].count(ConversationConflict) == 4
    assert len((await open_store().load("c1")).messages) == 2


async def test_workers_that_load_again_after_a_conflict_lose_no_turn(open_store):
    async def work(name: str) -> None:
        store = open_store()
        for turn in range(5):
            while True:
                conversation = await store.load("c1") or Conversation(conversation_id="c1")
                conversation.messages += [user(f"{name}{turn}"), answer(f"to {name}{turn}")]
                try:
                    await store.save(conversation)
                    break
                except ConversationConflict:
                    continue

    await asyncio.gather(*(work(name) for name in "abc"))
    texts = texts_of(await open_store().load("c1"))
    assert texts[1::2] == [f"to {text}" for text in texts[::2]]
    for name in "abc":
        assert [text for text in texts[::2] if text[0] == name] == [f"{name}{turn}" for turn in range(5)]


async def test_a_conversation_deleted_while_it_is_used_refuses_late_writers_and_is_usable_at_once(open_store):
    store, late = open_store(), open_store()
    await saved(store, "c1", "a")
    stale = await late.load("c1")
    await store.delete("c1")
    assert await late.load("c1") is None
    stale.messages.append(user("late"))
    for _ in range(2):
        with pytest.raises(ConversationConflict):
            await late.save(stale)
        with pytest.raises(UserError):
            await late.branch("c1", at=0, expected_revision=stale.revision)
        record = ConversationRecord(conversation_id="c1", head_id=None)
        with pytest.raises(ConversationConflict):
            await late.write_record(record, expected_revision=stale.revision)
        with pytest.raises(ConversationConflict):
            await late.delete_record("c1", expected_revision=stale.revision)
        if await store.load("c1") is None:
            await saved(store, "c1", "b")
    assert texts_of(await late.load("c1")) == ["b", "to b"]


async def test_a_deletion_beside_a_save_deletes_what_it_read_or_the_save_is_refused(open_store):
    for _ in range(10):
        conversation = await saved(open_store(), "c1", "a")
        conversation.messages.append(user("b"))
        save, deletion = await asyncio.gather(
            open_store().save(conversation), open_store().delete("c1"), return_exceptions=True
        )
        assert deletion is None
        assert isinstance(save, list | ConversationConflict)
        assert await open_store().load("c1") is None


async def test_a_fork_survives_the_deletion_of_its_source_and_the_other_way_round(open_store):
    store = open_store()
    await saved(store, "c1", "a", "b")
    first = await store.load_entries("c1")
    await store.fork("c1", at=2, new_conversation_id="c2")
    await store.delete("c1")
    assert await open_store().load_entries("c2") == first[:2]
    assert await open_store().read_entry(first[1].id) == first[1]
    with pytest.raises(LookupError):
        await open_store().read_entry(first[2].id)
    await open_store().fork("c2", new_conversation_id="c1")
    await store.delete("c2")
    assert await open_store().load_entries("c1") == first[:2]


async def test_a_fork_of_a_conversation_that_is_deleted_meanwhile_is_refused(conversations):
    await saved(conversations, "c1", "a")
    entries = await conversations.load_entries("c1")
    record = ConversationRecord(conversation_id="c2", head_id=entries[-1].id, forked_from="c1")
    await conversations.delete("c1")
    for each in (record, replace(record, forked_from=None), replace(record, conversation_id="c1")):
        with pytest.raises(ConversationConflict):
            await conversations.write_record(each, expected_revision=None)
    assert await conversations.list_conversations() == []


async def test_a_record_with_an_unknown_entry_is_refused(conversations):
    conversation = await saved(conversations, "c1", "a")
    record = await conversations.read_record("c1")
    orphan = ConversationEntry(parent_id="nope", message=user("x"))
    for later, entries in (
        (replace(record, head_id="nope", revision="r2"), []),
        (replace(record, head_id=orphan.id, revision="r3"), [orphan]),
    ):
        with pytest.raises(ConversationConflict):
            await conversations.write_record(later, new_entries=entries, expected_revision=record.revision)
    with pytest.raises(ConversationConflict):
        await conversations.write_record(
            ConversationRecord(conversation_id="c2", head_id=orphan.id), new_entries=[orphan], expected_revision=None
        )
    assert await conversations.read_record("c1") == record
    assert (await conversations.load("c1")).messages == conversation.messages


async def test_an_id_that_the_cache_deleted_for_good_is_refused_until_it_is_deleted_as_reusable(conversations, cache):
    await saved(conversations, "c1", "a")
    await cache.delete("c1")
    with pytest.raises(SessionDeleted):
        await saved(conversations, "c1", "b")
    await cache.delete("c1", reusable=True)
    await saved(conversations, "c1", "b")


@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
async def test_a_lost_reply_changes_nothing(proxy, through_proxy, action):
    store = LashConversationStore(through_proxy())
    conversation = await saved(store, "c1", "a")

    def lose(number: int) -> None:
        proxy.on_command = on(action, "EVALSHA", number)

    lose(1)
    conversation.messages += [user("b"), answer("to b")]
    assert len(await store.save(conversation)) == 2
    lose(1)
    conversation = await store.branch("c1", at=2, expected_revision=conversation.revision)
    lose(1)
    fork = await store.fork("c1", new_conversation_id="c2")
    assert texts_of(fork) == texts_of(await store.load("c1")) == ["a", "to a"]
    for number in (1, 2):
        lose(number)
        await store.delete(f"c{number}")
    assert await store.list_conversations() == []


async def test_after_an_unknown_outcome_a_turn_is_saved_once(proxy, through_proxy):
    store = LashConversationStore(sends_once(through_proxy()))
    await saved(store, "c1", "a")
    for action, texts in ((Action.CUT_BEFORE, ["a", "to a"]), (Action.DROP_REPLY, ["a", "to a", "b"])):
        conversation = await store.load("c1")
        conversation.messages.append(user("b"))
        proxy.on_command = on(action, "EVALSHA")
        with pytest.raises(OutcomeUnknown):
            await store.save(conversation)
        assert texts_of(await store.load("c1")) == texts
    with pytest.raises(ConversationConflict):
        await store.save(conversation)
    assert texts_of(await store.load("c1")) == ["a", "to a", "b"]


async def test_a_history_that_grows_while_it_is_read_is_the_one_of_its_record(conversations, open_store, monkeypatch):
    conversation = talk("c1", *(user(f"q{at}") for at in range(120)))
    await conversations.save(conversation)
    load_whole = PathItems.load_whole

    async def load_after_a_save(*args: Any) -> Any:
        later = replace(conversation, messages=[*conversation.messages, user("late")])
        await open_store().save(later)
        return await load_whole(*args)

    monkeypatch.setattr(PathItems, "load_whole", load_after_a_save)
    loaded = await conversations.load("c1")
    monkeypatch.undo()
    assert (loaded.messages, loaded.revision) == (conversation.messages, conversation.revision)
    assert len((await conversations.load("c1")).messages) == 121
