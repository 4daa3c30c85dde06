"""LashConversationStore keeps conversations of Pydantic AI: exact messages, compare-and-set, branches, forks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic_ai import Agent, DeferredToolRequests, RunUsage
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    BinaryContent,
    BinaryImage,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.ui.vercel_ai import VercelAIAdapter
from pydantic_ai.ui.vercel_ai.request_types import RegenerateMessage, SubmitMessage, TextUIPart, UIMessage
from pydantic_ai.usage import RequestUsage

from lash_redis import (
    Append,
    Corrupt,
    FullGraph,
    InvalidRecord,
    OutcomeUnknown,
    PluginPayload,
    RuntimeCommit,
    SessionCache,
    SessionDeleted,
    SessionNodeRecord,
)
from lash_redis.integrations.pydantic_ai import LashConversationStore
from lash_redis.session.path_items import PathItems
from tests.support.builders import plugins, tools
from tests.support.proxy import Action, on
from tests.support.sending import sends_once

Opened = Callable[..., SessionCache]

AT = datetime(2026, 11, 28, 9, 30, 0, 123456, tzinfo=UTC)


@pytest.fixture
def conversations(cache: SessionCache) -> LashConversationStore:
    return LashConversationStore(cache)


@pytest.fixture
def open_store(open_cache: Opened) -> Callable[..., LashConversationStore]:
    """`open_store()` returns a store that the server cannot distinguish from that of another process."""
    return lambda **options: LashConversationStore(open_cache(**options))


def user(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text, timestamp=AT)], timestamp=AT)


def answer(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(text)], timestamp=AT, model_name="m", usage=RequestUsage(input_tokens=3))


def request(*parts: Any, **more: Any) -> ModelRequest:
    return ModelRequest(parts=list(parts), **more)


def response(*parts: Any, **more: Any) -> ModelResponse:
    return ModelResponse(parts=list(parts), timestamp=AT, **more)


def prompt(content: Any) -> UserPromptPart:
    return UserPromptPart(content, timestamp=AT)


IMAGE = BinaryImage(data=bytes(range(256)) * 4, media_type="image/png")
CALL = ToolCallPart("weather", {"city": "Oslo"}, tool_call_id="c1")
MESSAGES: dict[str, ModelMessage] = {
    "user": user("hi"),
    "answer": answer("hello"),
    "system and user": request(SystemPromptPart("be kind", timestamp=AT), prompt("hi"), instructions="be brief"),
    "two prompts": request(prompt("a"), prompt("b")),
    "two texts around a call": response(TextPart("a", id="t1"), CALL, TextPart("b")),
    "prompt with an image": request(prompt(["what?", IMAGE, ImageUrl("https://example.com/a.png")])),
    "prompt and an image": request(prompt("what?"), prompt([IMAGE])),
    "empty prompt": request(prompt("")),
    "empty request": request(),
    "empty response": response(),
    "thinking": response(ThinkingPart("hm", signature="s", provider_name="p"), TextPart("so")),
    "call": response(CALL),
    "call with text arguments": response(ToolCallPart("weather", '{"city": "Oslo"}', tool_call_id="c1")),
    "call with damaged arguments": response(ToolCallPart("weather", '{"city": ', tool_call_id="c1")),
    "return": request(ToolReturnPart("weather", {"t": [1, 2.5, None, True]}, tool_call_id="c1", timestamp=AT)),
    "return without a value": request(ToolReturnPart("weather", None, tool_call_id="c1", timestamp=AT)),
    "return with metadata": request(ToolReturnPart("w", "x", tool_call_id="c", metadata={"a": None}, timestamp=AT)),
    "retry": request(ToolReturnPart("w", "again", tool_call_id="c1", timestamp=AT, outcome="retried")),
    "metadata": request(prompt("hi"), metadata={"content": "x", "parts": [], "part_kind": "text", "n": None}),
    "details": answer("x") and response(TextPart("x"), provider_details={"logprobs": [-0.5, 1e300]}),
    "NUL": user("a\0b"),
    "lone surrogate": user("a\ud800b"),
    "lone surrogate in arguments": response(TextPart("x"), ToolCallPart("w", {"a": "\ud800"}, tool_call_id="c")),
    "lone surrogate and an image": request(prompt(["\udfff \U000f0000", IMAGE])),
    "large number": request(prompt("hi"), metadata={"n": 2**70}),
    "megabytes": request(prompt("x"), ToolReturnPart("w", "A" * 3_000_000, tool_call_id="c", timestamp=AT)),
    "a megabyte of a file": request(prompt([BinaryContent(data=b"\xff" * 1_000_000, media_type="application/pdf")])),
}


def talk(conversation_id: str = "c1", *messages: ModelMessage, **more: Any) -> Conversation:
    return Conversation(conversation_id=conversation_id, messages=list(messages), **more)


async def saved(store: ConversationStore, conversation_id: str, *texts: str, scope: str | None = None) -> Conversation:
    """Save a conversation of these questions, each with its answer."""
    messages = [message for text in texts for message in (user(text), answer(f"to {text}"))]
    conversation = talk(conversation_id, *messages)
    await store.save(conversation, scope=scope)
    return conversation


def texts_of(conversation: Conversation | None) -> list[str]:
    assert conversation is not None
    return [part.content for message in conversation.messages for part in message.parts]


# Messages and records


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


# The SDK's own store as oracle


@dataclass
class Both:
    """The SDK's store and the tested one, after the same operations. The ids that the SDK makes are translated."""

    oracle: InMemoryConversationStore
    tested: Callable[[], LashConversationStore]
    ids: dict[str | None, str | None] = field(default_factory=lambda: {None: None})

    async def do(self, call: Callable[[ConversationStore, Callable[[Any], Any]], Awaitable[Any]]) -> tuple[Any, Any]:
        """Run an operation on both, compare the results or the types of the errors, and return the results."""
        expected = await self._result(call, self.oracle, lambda given: given)
        found = await self._result(call, self.tested(), self.ids.__getitem__)
        assert type(found) is type(expected), (expected, found)
        self._compare(expected, found)
        await asyncio.sleep(0.002)  # the list of the server has milliseconds
        return expected, found

    async def _result(self, call: Any, store: ConversationStore, known: Callable[[Any], Any]) -> Any:
        try:
            return await call(store, known)
        except (UserError, LookupError) as error:
            return error

    def _compare(self, expected: Any, found: Any) -> None:
        match expected:
            case Conversation():
                names = ("messages", "usage", "conversation_id", "deferred_tool_requests", "new_message_index")
                assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
                assert (found.revision is None) == (expected.revision is None)
            case ConversationRecord():
                assert [self.ids[each] for each in expected.branches] == found.branches
                assert (self.ids[expected.head_id], self.ids[expected.forked_at]) == (found.head_id, found.forked_at)
                names = ("conversation_id", "usage", "deferred_tool_requests", "scope", "forked_from")
                assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
            case ConversationEntry():
                assert (self.ids[expected.parent_id], expected.message) == (found.parent_id, found.message)
                assert self.ids.setdefault(expected.id, found.id) == found.id
            case list():
                assert len(expected) == len(found)
                for one, other in zip(expected, found, strict=True):
                    self._compare(one, other)


CONVERSATIONS = ("a", "b", "c\0d", "e", "f")
SCOPES = (*(None,) * 7, "alice", "bob")
OPERATIONS = (
    *("begin",) * 2, *("load",) * 2, *("turn",) * 5, "grow", "save_stale", *("rewrite",) * 2, *("branch",) * 4,
    *("fork",) * 2, "list", *("entries",) * 2, "delete",
)  # fmt: skip


class Sequence:
    """A random sequence of operations on both stores, with copies of conversations that have become stale."""

    def __init__(self, both: Both, seed: int) -> None:
        self.both, self.dice = both, random.Random(seed)
        self.held: list[tuple[Conversation, Conversation]] = []
        self.pool = [MESSAGES[name] for name in MESSAGES if "megabyte" not in name]
        self.counts: dict[str, int] = {}

    async def step(self) -> None:
        name = self.dice.choice(OPERATIONS)
        outcome = await getattr(self, name)()
        counted = f"{name}: {type(outcome[0]).__name__}" if outcome else f"{name}: left out"
        self.counts[counted] = self.counts.get(counted, 0) + 1

    def some(self, count: int = 3) -> list[ModelMessage]:
        return self.dice.choices(self.pool, k=self.dice.randrange(count + 1))

    async def begin(self) -> tuple[Any, Any]:
        messages, name, scope = self.some(), self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        usage = RunUsage(requests=self.dice.randrange(9))
        return await self.save((talk(name, *messages, usage=usage), talk(name, *messages, usage=usage)), scope)

    async def save(self, pair: tuple[Conversation, Conversation], scope: str | None) -> tuple[Any, Any]:
        self.held.append(pair)
        pair = deepcopy(pair) if self.dice.random() < 0.2 else pair  # a copy does not know what is stored
        found = await self.both.do(lambda store, _: store.save(pair[store is not self.both.oracle], scope=scope))
        self.both._compare(*pair)
        return found

    async def load(self) -> tuple[Any, Any]:
        name, limit, scope = (
            self.dice.choice(CONVERSATIONS),
            self.dice.choice([None, 0, 1, 3, -1]),
            self.dice.choice(SCOPES),
        )
        pair = await self.both.do(lambda store, _: store.load(name, limit=limit, scope=scope))
        if isinstance(pair[0], Conversation):
            self.held.append(pair)
        return pair

    def pick(self) -> tuple[Conversation, Conversation] | None:
        self.held = self.held[-3:]
        return self.dice.choice(self.held) if self.held else None

    async def turn(self) -> tuple[Any, Any] | None:
        """Load a conversation, or its end, and save it with what a run would add."""
        name, limit = self.dice.choice(CONVERSATIONS), self.dice.choice([None, 2])
        pair = await self.both.do(lambda store, _: store.load(name, limit=limit))
        return None if pair[0] is None else await self.grown(pair)

    async def grow(self) -> tuple[Any, Any] | None:
        pair = self.pick()
        return None if pair is None else await self.grown(pair)

    async def grown(self, pair: tuple[Conversation, Conversation]) -> tuple[Any, Any]:
        messages = self.some()
        requests = self.dice.choice([None, DeferredToolRequests(calls=[CALL])])
        for each in pair:
            each.messages.extend(deepcopy(messages))
            each.usage.incr(RunUsage(requests=1))
            each.deferred_tool_requests = requests
        return await self.save(pair, self.dice.choice(SCOPES))

    async def save_stale(self) -> tuple[Any, Any] | None:
        pair = self.pick()
        return None if pair is None else await self.save(deepcopy(pair), None)

    async def rewrite(self) -> tuple[Any, Any] | None:
        if (pair := self.pick()) is None or not pair[0].messages:
            return None
        at, message = self.dice.randrange(len(pair[0].messages)), self.dice.choice(self.pool)
        for each in pair:
            each.messages[at] = deepcopy(message)
            each.new_message_index = self.dice.choice([each.new_message_index, each.new_message_index])
        return await self.save(pair, None)

    def point(self, record: Any, length: int) -> dict[str, Any]:
        """A point to branch or fork at, that exists or not."""
        if self.dice.random() < 0.5:
            return {"at": self.dice.randrange(-1, length + 2)}
        ids = [each for each in self.both.ids if each is not None]
        recent = [*record.branches, record.head_id] if isinstance(record, ConversationRecord) else []
        known = [each for each in recent if each in self.both.ids and each is not None]
        return {"from_entry": self.dice.choice(known or ids or ["?"])} if ids else {"at": 0}

    async def point_in(self, name: str) -> dict[str, Any]:
        record, _ = await self.both.do(lambda store, _: store.read_record(name))
        entries, _ = await self.both.do(lambda store, _: store.load_entries(name))
        if entries and self.dice.random() < 0.3:
            return {"from_entry": self.dice.choice(entries).id}
        return self.point(record, len(entries or ()))

    async def branch(self) -> tuple[Any, Any]:
        name, scope = self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        point, stale = await self.point_in(name), self.dice.random() < 0.1

        async def call(store: ConversationStore, known: Callable[[Any], Any]) -> Conversation:
            record = await store.read_record(name)
            revision = None if record is None or stale else record.revision
            given = {**point, "from_entry": known(point["from_entry"])} if "from_entry" in point else point
            return await store.branch(name, **given, expected_revision=revision, scope=scope)

        pair = await self.both.do(call)
        if isinstance(pair[0], Conversation):
            self.held.append(pair)
        return pair

    async def fork(self) -> tuple[Any, Any]:
        name, new, scope = self.dice.choice(CONVERSATIONS), self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        point = {} if self.dice.random() < 0.2 else await self.point_in(name)
        source_scope = self.dice.choice(SCOPES)

        async def call(store: ConversationStore, known: Callable[[Any], Any]) -> Conversation:
            given = {**point, "from_entry": known(point["from_entry"])} if "from_entry" in point else point
            return await store.fork(name, **given, new_conversation_id=new, scope=scope, source_scope=source_scope)

        pair = await self.both.do(call)
        if isinstance(pair[0], Conversation):
            self.held.append(pair)
        return pair

    async def list(self) -> tuple[Any, Any]:
        scope, limit = self.dice.choice(SCOPES), self.dice.choice([None, 0, 1, 2, 9, -1])
        return await self.both.do(lambda store, _: store.list_conversations(scope=scope, limit=limit))

    async def entries(self) -> tuple[Any, Any]:
        name, limit, scope = (
            self.dice.choice(CONVERSATIONS),
            self.dice.choice([None, 0, 1, 2]),
            self.dice.choice(SCOPES),
        )
        found = await self.both.do(lambda store, _: store.load_entries(name, limit=limit, scope=scope))
        if found[0]:
            one = self.dice.choice(found[0]).id
            await self.both.do(lambda store, known: store.read_entry(known(one)))
        return found

    async def delete(self) -> tuple[Any, Any]:
        name, scope = self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        return await self.both.do(lambda store, _: store.delete(name, scope=scope))


@pytest.mark.parametrize("seed", range(12))
async def test_random_operations_agree_with_the_store_of_the_sdk(open_store, seed):
    stores = [open_store() for _ in range(1 + seed % 3)]
    sequence = Sequence(Both(InMemoryConversationStore(), lambda: sequence.dice.choice(stores)), seed)
    for _ in range(120):
        await sequence.step()
    assert sequence.counts["turn: list"] > 2
    for name in CONVERSATIONS:
        await sequence.both.do(lambda store, _, name=name: store.load_entries(name))


# Agents and user interfaces


def weather_agent(model: Any) -> Agent[None, str]:
    agent = Agent(model)

    @agent.tool_plain
    def weather(city: str) -> str:
        return f"{city}: rain"

    return agent


def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool once for each question, then answer with the number of messages that were sent."""
    if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
        return ModelResponse(parts=[TextPart(f"after {len(messages)} messages")])
    return ModelResponse(parts=[ToolCallPart("weather", {"city": "Oslo"})])


@pytest.mark.parametrize("model", [TestModel(), FunctionModel(scripted)], ids=["test", "function"])
async def test_an_agent_continues_its_conversation_on_another_worker(open_store, model):
    oracle, agent = InMemoryConversationStore(), weather_agent(model)
    for turn in range(3):
        store = open_store()
        conversation = await store.load("c1") or Conversation(conversation_id="c1")
        assert (len(conversation.messages) > 0) == (turn > 0)
        result = await agent.run(f"question {turn}", conversation=conversation)
        entries = await store.save(result, scope="alice" if turn == 0 else None)
        assert [entry.message for entry in entries] == result.new_messages()
        loaded = await open_store().load("c1", scope="alice")
        assert loaded.messages == result.all_messages()
        assert loaded.usage == result.usage
        assert loaded.revision == result.conversation.revision
        result.conversation.revision = None
    await oracle.save(replace(loaded, revision=None))
    assert (await oracle.load("c1")).messages == loaded.messages


async def test_a_run_on_the_last_messages_extends_the_whole_conversation(conversations, open_store):
    agent = weather_agent(FunctionModel(scripted))
    await conversations.save(await agent.run("first", conversation=Conversation(conversation_id="c1")))
    recent = await open_store().load("c1", limit=1)
    result = await agent.run("second", conversation=recent)
    assert len(await conversations.save(result)) == 4
    loaded = await conversations.load("c1")
    assert len(loaded.messages) == 8
    assert loaded.messages[-1].parts[0].content == "after 4 messages"


async def test_a_paused_run_is_resumed_on_another_worker(open_store):
    agent = Agent(FunctionModel(scripted), output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def weather(city: str) -> str:
        return f"{city}: rain"

    paused = await agent.run("weather?", conversation=Conversation(conversation_id="c1"))
    assert isinstance(paused.output, DeferredToolRequests)
    await open_store().save(paused)
    conversation = await open_store().load("c1")
    answers = conversation.deferred_tool_requests.build_results(approve_all=True)
    result = await agent.run(conversation=conversation, deferred_tool_results=answers)
    assert result.output.startswith("after")
    await open_store().save(result)
    loaded = await open_store().load("c1")
    assert loaded.deferred_tool_requests is None
    assert loaded.messages == result.all_messages()


def vercel_request(conversation_id: str, text: str, message_id: str, **more: Any) -> SubmitMessage:
    message = UIMessage(id=message_id, role="user", parts=[TextUIPart(text=text)])
    return SubmitMessage(id=conversation_id, messages=[message], **more)


async def streamed(store: LashConversationStore, asked: Any, scope: str | None = "alice") -> str:
    adapter = VercelAIAdapter(
        agent=weather_agent(FunctionModel(stream_function=scripted_stream)),
        run_input=asked,
        conversation_store=store,
        conversation_scope=scope,
        sdk_version=6,
    )
    return "".join([event async for event in adapter.encode_stream(adapter.run_stream())])


async def scripted_stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    yield f"after {len(messages)} "
    yield "messages"


async def test_a_ui_adapter_keeps_the_conversation_in_the_store(conversations, open_store):
    await streamed(conversations, vercel_request("c1", "one", "m1"))
    stream = await streamed(open_store(), vercel_request("c1", "two", "m2"))
    entries = await open_store().load_entries("c1", scope="alice")
    assert texts_of(await conversations.load("c1")) == ["one", "after 1 messages", "two", "after 3 messages"]
    assert "data-conversation-saved" in stream
    assert entries[-1].id in stream
    last = UIMessage(id="m2", role="user", parts=[TextUIPart(text="two")])
    again = RegenerateMessage(trigger="regenerate-message", id="c1", messages=[last])
    await streamed(open_store(), again)
    assert texts_of(await conversations.load("c1")) == ["one", "after 1 messages", "two", "after 3 messages"]
    assert (await conversations.read_record("c1")).branches == [entries[-1].id]
    refused = await streamed(open_store(), vercel_request("c1", "three", "m3"), scope="bob")
    assert "was not found" in refused
    assert len(await conversations.load_entries("c1")) == 4
    assert [record.conversation_id for record in await conversations.list_conversations(scope="alice")] == ["c1"]


# Several clients, deletions and lost replies


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


async def test_a_conversation_expires_with_the_ttl_of_its_cache(open_store):
    store = open_store(ttl=0.3)
    stale = await saved(store, "c1", "a")
    await asyncio.sleep(0.4)
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
