"""Messages, records, ids and scopes of any characters are returned exactly as they were stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic_ai import DeferredToolRequests, RunUsage
from pydantic_ai.conversation_store import (
    ConversationEntry,
    ConversationRecord,
)
from pydantic_ai.messages import ModelMessagesTypeAdapter, TextPart

from lash_redis import (
    InvalidRecord,
)
from lash_redis.integrations.pydantic_ai import LashConversationStore
from tests.support.conversations import (
    AT,
    CALL,
    MESSAGES,
    prompt,
    request,
    response,
    saved,
    talk,
    texts_of,
    user,
)


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_message_is_returned_exactly_as_it_was_saved(conversations, open_store, name):
    message = MESSAGES[name]
    await conversations.save(talk("c1", message, message))
    again = await conversations.load("c1")
    again.messages.append(message)
    await conversations.save(again)
    for limit in (None, 3, 5):
        loaded = await open_store().load("c1", limit=limit)
        assert loaded.messages == [message] * 3
        for each in loaded.messages:
            assert repr(each) == repr(loaded.messages[0])
    assert ModelMessagesTypeAdapter.dump_python(loaded.messages, mode="json") == ModelMessagesTypeAdapter.dump_python(
        [message] * 3, mode="json"
    )


async def test_a_record_is_returned_exactly_as_it_was_written(conversations, open_store):
    requests = DeferredToolRequests(calls=[CALL], metadata={"c1": {"why": None}})
    record = ConversationRecord(
        conversation_id="c1",
        head_id=None,
        usage=RunUsage(requests=2, tool_calls=1, input_tokens=2**40, details={"x": 1}),
        deferred_tool_requests=requests,
        scope="alice",
        updated_at=AT,
    )
    await conversations.write_record(record, expected_revision=None)
    assert await open_store().read_record("c1") == record
    entry = ConversationEntry(parent_id=None, message=user("hi"))
    later = replace(record, head_id=entry.id, branches=["b1", "b2"], revision="r2")
    await conversations.write_record(later, new_entries=[entry], expected_revision=record.revision)
    assert await open_store().read_record("c1") == later
    assert await open_store().read_history(entry.id) == [entry]
    assert await conversations.read_entry(entry.id) == entry


async def test_a_record_without_a_head_has_no_history_although_it_has_entries(conversations, open_store):
    one, other = (
        ConversationEntry(parent_id=None, message=user("a")),
        ConversationEntry(parent_id=None, message=user("b")),
    )
    record = ConversationRecord(conversation_id="c1", head_id=None, branches=[one.id])
    await conversations.write_record(record, new_entries=[one], expected_revision=None)
    assert await open_store().read_record("c1") == record
    later = replace(record, branches=[one.id, other.id], revision="r2")
    await conversations.write_record(later, new_entries=[other], expected_revision=record.revision)
    assert await open_store().read_record("c1") == later
    assert (await open_store().load("c1")).messages == []
    for entry in (one, other):
        assert await open_store().read_entry(entry.id, conversation_id="c1") == entry
        branched = await conversations.branch(
            "c1", from_entry=entry.id, expected_revision=(await conversations.read_record("c1")).revision
        )
        assert branched.messages == [entry.message]
    with pytest.raises(LookupError):
        await open_store().read_entry(one.id, conversation_id="c2")


async def test_what_cannot_be_stored_is_refused_by_name_and_nothing_is_written(conversations):
    bad = request(prompt("hi"), metadata={"n": object()})
    with pytest.raises(InvalidRecord) as refused:
        await conversations.save(talk("c1", user("a"), bad))
    assert refused.value.field == "new_entries[1].message"
    assert await conversations.load("c1") is None


async def test_a_message_that_the_sdk_would_not_read_again_is_refused_by_name(conversations):
    conversation = await saved(conversations, "c1", "a")
    conversation.messages.append(response(TextPart(5)))
    with pytest.warns(UserWarning, match="serializ"), pytest.raises(InvalidRecord) as refused:
        await conversations.save(conversation)
    assert refused.value.field == "new_entries[0].message"
    assert texts_of(await conversations.load("c1")) == ["a", "to a"]


async def test_a_conversation_keeps_its_scope(conversations):
    await saved(conversations, "c1", "a", scope="alice")
    record = await conversations.read_record("c1")
    for scope in (None, "bob"):
        with pytest.raises(InvalidRecord, match="scope"):
            await conversations.write_record(
                replace(record, scope=scope, revision="r2"), expected_revision=record.revision
            )
    assert await conversations.read_record("c1") == record


async def test_the_cache_is_required_by_name():
    with pytest.raises(InvalidRecord, match="cache"):
        LashConversationStore("redis://")


ODD = ["", " ", "\0", "a\0b", "\ud800", "\udfff", "{c}", "a:b", "x" * 70_000, "x" * 70_001, "é", "e\u0301", "sha256:"]


async def test_ids_and_scopes_of_any_characters_are_different_conversations(conversations, open_store):
    hashed = conversations.session("").session_id
    names = [*ODD, hashed, conversations.session(hashed).session_id]
    for name in names:
        await saved(conversations, name, f"q {ascii(name)[:20]}{len(name)}", scope=name)
    other = open_store()
    for name in names:
        loaded = await other.load(name, scope=name)
        assert loaded.conversation_id == name
        assert texts_of(loaded)[0] == f"q {ascii(name)[:20]}{len(name)}"
        (record,) = await other.list_conversations(scope=name)
        assert (record.conversation_id, record.scope) == (name, name)
    for name in names:
        assert await other.load(name, scope="another") is None
        await other.delete(name)
    assert await other.list_conversations() == []
