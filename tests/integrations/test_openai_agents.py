"""LashSession is the history of an OpenAI agent: exact items, atomic batches, no lost and no doubled item."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, Runner, function_tool
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession, Session, SessionSettings, SQLiteSession
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from lash_redis import (
    EventPayload,
    HeadRevisionConflict,
    InvalidRecord,
    OutcomeUnknown,
    OwnerMismatch,
    PluginPayload,
    RuntimeCommit,
    SessionCache,
    SessionGone,
    SessionNodeRecord,
)
from lash_redis.integrations.openai_agents import LashSession
from lash_redis.models import Append
from tests.support.proxy import Action, on
from tests.support.sending import sends_once

Opened = Callable[..., SessionCache]


@pytest.fixture
def session(cache: SessionCache) -> LashSession:
    return LashSession("s1", cache)


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def answer(text: str, item_id: str = "msg_1") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}', "id": "fc_1"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}

ITEMS: dict[str, dict[str, Any]] = {
    "user": user("hi"),
    "typed user": {"type": "message", **user("hi")},
    "system": {"role": "system", "content": "be kind"},
    "developer": {"role": "developer", "content": "be brief"},
    "answer": answer("hello"),
    "answer with annotations": answer("see [1]") | {"phase": "final_answer"},
    "image": user([{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": "data:,A"}]),
    "user with a file": user([{"type": "input_file", "file_id": "f1", "filename": "a.pdf"}]),
    "empty content": user([]),
    "null content": {"role": "assistant", "content": None},
    "content of another form": {"role": "user", "content": {"odd": 1}},
    "refusal": {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    "call": CALL,
    "call without a name": {"type": "function_call", "call_id": "c1", "arguments": ""},
    "call with odd fields": {"type": "function_call", "call_id": None, "name": 5, "arguments": {"a": 1}},
    "call with a role": {**CALL, "role": "user"},
    "output": OUTPUT,
    "output of parts": {**OUTPUT, "output": [{"type": "input_text", "text": "rain"}]},
    "output that failed": {**OUTPUT, "status": "incomplete", "output": ""},
    "reasoning": {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x" * 200},
    "compaction": {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"},
    "approval": {"type": "mcp_approval_request", "id": "a", "name": "n", "arguments": "{}", "server_label": "s"},
    "computer call": {"type": "computer_call", "action": {"type": "click", "x": 1, "y": 2.5}, "call_id": "c"},
    "reference": {"type": "item_reference", "id": "msg_1"},
    "encrypted envelope": {"__enc__": 1, "v": 1, "kid": "k", "payload": "gAAA"},
    "empty": {},
    "another role": {"role": "tool", "content": "x", "tool_call_id": "c"},
    "NUL": user("a\0b"),
    "lone surrogate": user("a\ud800b"),
    "large number": {"type": "x", "n": 2**70},
    "numbers": {"type": "x", "n": [1, 1.0, True, None, -0.0, 1e300]},
    "keys of this package": {"role": "user", "content": "x", "sdk": "other", "source": {"role": "user"}, "parts": [1]},
    "a type that is a list": {"type": ["message"], **user("hi")},
    "a type that is an object": {"type": {"a": 1}, "role": {}},
    "nested": {"type": "x", "v": nested(255)},
    "nested content": user([nested(250)]),
    "nested message": user("hi", v=nested(246)),
    "nested with a large number": {"type": "x", "v": nested(255), "n": 2**70},
    "megabytes": {**OUTPUT, "output": "A" * 3_000_000},
}  # fmt: skip


@pytest.mark.parametrize("name", ITEMS)
async def test_an_item_is_returned_exactly_as_it_was_added(session, open_cache, name):
    await session.add_items([ITEMS[name], ITEMS[name]])
    await session.add_items([ITEMS[name]])
    for limit in (None, 3, 5):
        found = await LashSession("s1", open_cache()).get_items(limit)
        assert [json.dumps(item, sort_keys=True) for item in found] == [json.dumps(ITEMS[name], sort_keys=True)] * 3
    assert await session.pop_item() == ITEMS[name]


async def test_a_session_implements_the_protocol_of_the_sdk(session):
    assert isinstance(session, Session)
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.clear_session()
    await session.add_items([])
    assert await session.store.load_head() is None


async def test_a_limit_returns_the_last_items_in_order(session, cache):
    await session.add_items([user(f"t{at}") for at in range(7)])
    assert [item["content"] for item in await session.get_items(3)] == ["t4", "t5", "t6"]
    assert [len(await session.get_items(limit)) for limit in (1, 7, 8, 0, -1)] == [1, 7, 7, 0, 0]
    for settings in (SessionSettings(limit=2), {"limit": 2}):
        limited = LashSession("s1", cache, session_settings=settings)
        assert [item["content"] for item in await limited.get_items()] == ["t5", "t6"]
        assert len(await limited.get_items(5)) == 5


async def test_a_limit_counts_items_and_not_other_nodes(session):
    await session.add_items([user("a"), user("b")])
    read = await session.store.load_head()
    plugins = [
        SessionNodeRecord(f"x{at}", f"x{at - 1}" if at else read.leaf_node_id, "t", PluginPayload("other", {}))
        for at in range(9)
    ]
    await session.store.commit_runtime_state(RuntimeCommit("s1", graph=Append(plugins)))
    assert await session.get_items(2) == [user("a"), user("b")]
    assert await session.pop_item() == user("b")
    assert await session.get_items() == [user("a")]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("text", "items"),
        ({"role": "user"}, "items"),
        (["text"], "items[0]"),
        ([user("a"), None], "items[1]"),
        ([user("a"), {"type": "x", "n": float("nan")}], "items[1].n"),
        ([{"type": "x", "o": object()}], "items[0].o"),
        ([{"type": "x", "t": (1, 2)}], "items[0].t"),
        ([{"type": "x", "o": {1: "a", "1": "b"}}], "items[0].o"),
        ([{"type": "x", "n": 2**70, "o": [{None: 1}]}], "items[0].n"),
        ([{"type": "x", "v": nested(256)}], "items[0].v" + "[0]" * 249),
    ],
)
async def test_what_is_no_item_is_refused_by_name(session, given, field):
    with pytest.raises(InvalidRecord) as refused:
        await session.add_items(given)
    assert refused.value.field == field
    assert await session.get_items() == []


@pytest.mark.parametrize(
    ("name", "value"), [("session_settings", 5), ("session_settings", {"limit": "x"}), ("cache", "redis://")]
)
async def test_an_argument_of_another_type_is_refused_by_name(cache, name, value):
    with pytest.raises(InvalidRecord) as refused:
        LashSession(**{"session_id": "s1", "cache": cache, name: value})
    assert refused.value.field == name


@pytest.mark.parametrize("limit", ["5", 2.5, True, [1], float("nan")])
async def test_a_limit_that_is_no_whole_number_is_refused_by_name(session, limit):
    await session.add_items([user("a")])
    with pytest.raises(InvalidRecord, match="limit"):
        await session.get_items(limit)


@pytest.mark.parametrize(
    "record",
    [
        {"sdk": "openai_agents", "source": {"type": []}, "parts": [5], "role": "User"},
        {"sdk": "openai_agents", "source": {"type": "function_call"}, "parts": [5, None], "role": "Assistant"},
        {"sdk": "openai_agents", "source": {"role": []}, "parts": 5, "role": {}},
        {"role": "User", "parts": [{"kind": "Text", "content": 5}]},
    ],
)
async def test_a_record_of_another_writer_never_ends_a_read(session, record):
    await session.add_items([user("a")])
    node = SessionNodeRecord(
        "odd", (await session.store.load_head()).leaf_node_id, "t", EventPayload({"Conversation": record})
    )
    await session.store.commit_runtime_state(RuntimeCommit("s1", graph=Append([node])))
    assert (await session.get_items())[0] == user("a")


# The SDK's own store as oracle


@pytest.mark.parametrize("seed", range(12))
async def test_random_operations_agree_with_sqlite_session(open_cache, seed):
    dice, oracle = random.Random(seed), SQLiteSession("s1")
    cache = open_cache()
    session = LashSession("s1", cache)
    pool = [ITEMS[name] for name in ITEMS if name != "megabytes"]
    for step in range(40):
        if seed % 2:
            session = LashSession("s1", cache if step % 3 else open_cache())
        match dice.choice(["add", "add", "add", "get", "get", "pop", "clear"] if step % 10 else ["get"]):
            case "add":
                items = dice.choices(pool, k=dice.randrange(5))
                await oracle.add_items(items)
                await session.add_items(items)
            case "get":
                limit = dice.choice([None, 0, 1, 2, 5, 100])
                assert await session.get_items(limit) == await oracle.get_items(limit), step
            case "pop":
                assert await session.pop_item() == await oracle.pop_item(), step
            case "clear" if dice.random() < 0.3:
                await oracle.clear_session()
                await session.clear_session()
    assert await session.get_items() == await oracle.get_items()
    oracle.close()


# Several clients


async def test_batches_of_many_clients_are_stored_whole_and_in_the_order_of_each_client(open_cache):
    async def add(name: str) -> None:
        session = LashSession("s1", open_cache())
        for turn in range(10):
            await session.add_items([user(f"{name} {turn} {part}") for part in range(3)])

    await asyncio.gather(*(add(f"c{number}") for number in range(6)))
    texts = [item["content"] for item in await LashSession("s1", open_cache()).get_items()]
    batches = [texts[at : at + 3] for at in range(0, len(texts), 3)]
    assert all(batch == [f"{batch[0][:-2]} {part}" for part in range(3)] for batch in batches)
    for number in range(6):
        own = [batch[0] for batch in batches if batch[0].startswith(f"c{number} ")]
        assert own == [f"c{number} {turn} 0" for turn in range(10)]


async def test_each_of_several_callers_pops_another_item(open_cache):
    await LashSession("s1", open_cache()).add_items([user(f"t{at}") for at in range(12)])
    popped = await asyncio.gather(*(LashSession("s1", open_cache()).pop_item() for _ in range(6)))
    rest = await LashSession("s1", open_cache()).get_items()
    assert sorted(item["content"] for item in popped) == sorted(f"t{at}" for at in range(6, 12))
    assert [item["content"] for item in rest] == [f"t{at}" for at in range(6)]


async def test_a_pop_beside_appends_removes_one_item_and_no_other(open_cache):
    session = LashSession("s1", open_cache())
    await session.add_items([user("first")])

    async def add() -> None:
        for at in range(10):
            await LashSession("s1", open_cache()).add_items([user(f"t{at}")])

    _, *popped = await asyncio.gather(add(), *(LashSession("s1", open_cache()).pop_item() for _ in range(4)))
    left = [item["content"] for item in await session.get_items()]
    taken = [item["content"] for item in popped if item is not None]
    assert sorted([*left, *taken]) == sorted(["first", *(f"t{at}" for at in range(10))])


async def test_a_pop_keeps_the_branches_of_a_chat(session, cache):
    chat = cache.chat("s1")
    await session.add_items([user("a"), user("b"), user("c")])
    ids = [message["id"] for message in await chat.messages()]
    await chat.edit(ids[2], {"role": "user", "content": "other c"})
    await chat.rewind(ids[2])
    assert [(await session.pop_item())["content"] for _ in range(2)] == ["c", "b"]
    assert await session.get_items() == [user("a")]
    (branch,) = set(await chat.branches()) - {ids[0]}
    await chat.rewind(branch)
    assert [message["content"] for message in await chat.messages()] == ["a", "b", "other c"]


@pytest.mark.parametrize("empty", ["popped", "compacted"])
async def test_a_path_without_items_leaves_other_branches_as_they_are(session, cache, empty):
    chat = cache.chat("s1")
    await session.add_items([user("a")])
    (first,) = await chat.messages()
    await chat.edit(first["id"], user("other a"))
    if empty == "popped":
        assert await session.pop_item() == user("other a")
    else:
        assert await (await session._get_compaction_snapshot(5)).replace_suffix(0, [])
    assert await session.get_items() == []
    assert await session.pop_item() is None
    for _ in range(2):
        await session.add_items([user("b")])
        assert await session.get_items() == [user("b")]
        assert await session.pop_item() == user("b")
    await chat.rewind(first["id"])
    assert await session.get_items() == [user("a")]


# Clearing


async def test_a_cleared_session_is_usable_at_once_and_refuses_late_items(session, open_cache):
    late = LashSession("s1", open_cache())
    await session.add_items([user("a")])
    assert await late.get_items() == [user("a")]
    await session.clear_session()
    with pytest.raises(SessionGone):
        await late.add_items([answer("to a")])
    await session.add_items([user("b")])
    assert await late.get_items() == [user("b")]
    await session.clear_session()
    await session.add_items([user("b")])
    with pytest.raises(SessionGone):
        await late.add_items([answer("to the former b")])
    assert await late.get_items() == [user("b")]
    await late.add_items([answer("to b")])
    assert await session.get_items() == [user("b"), answer("to b")]


async def test_another_owners_session_reads_as_absent_and_refuses_writes(cache, open_cache):
    await LashSession("s1", cache, owner="alice").add_items([user("a")])
    other = LashSession("s1", open_cache(), owner="bob")
    assert await other.get_items() == []
    assert await other.pop_item() is None
    for write in (other.add_items([user("x")]), other.clear_session()):
        with pytest.raises(OwnerMismatch):
            await write
    assert await LashSession("s1", cache, owner="alice").get_items() == [user("a")]


async def test_a_session_expires_with_the_ttl_of_its_cache(open_cache):
    session = LashSession("s1", open_cache(ttl=0.2))
    await session.add_items([user("a")])
    await asyncio.sleep(0.3)
    assert await session.get_items() == []
    await session.add_items([user("b")])
    assert await session.get_items() == [user("b")]


# Lost replies


@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
async def test_items_whose_reply_is_lost_are_stored_once(proxy, through_proxy, action):
    session = LashSession("s1", through_proxy())
    await session.add_items([user("a")])
    proxy.on_command = on(action, "EVALSHA")
    await session.add_items([user("b"), user("b")])
    proxy.on_command = on(action, "EVALSHA")
    assert await session.pop_item() == user("b")
    assert await session.get_items() == [user("a"), user("b")]
    proxy.on_command = on(action, "EVALSHA")
    await session.clear_session()
    assert await session.get_items() == []


async def test_items_of_unknown_outcome_that_are_added_again_are_stored_once(proxy, through_proxy):
    session = LashSession("s1", sends_once(through_proxy()))
    await session.add_items([user("a")])
    for action in (Action.DROP_REPLY, Action.CUT_BEFORE):
        proxy.on_command = on(action, "EVALSHA")
        with pytest.raises(OutcomeUnknown):
            await session.add_items([user("b")])
        await session.add_items([user("b")])
    assert await session.get_items() == [user("a"), user("b"), user("b")]


async def test_items_of_a_cancelled_call_that_are_added_again_are_stored_once(open_cache):
    cache = open_cache()
    for steps in range(40):
        session = LashSession(f"s{steps}", cache)
        await session.add_items([user("a")])
        call = asyncio.create_task(session.add_items([user("b")]))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        if call.cancelled():
            await session.add_items([user("b")])
        assert await session.get_items() == [user("a"), user("b")], steps


# Other views of the session


async def test_a_chat_shows_the_conversation_of_a_session(session, cache):
    await session.add_items([user("weather?"), ITEMS["reasoning"], CALL, OUTPUT, answer("rain")])
    messages = [
        {key: value for key, value in each.items() if key != "id"} for each in await cache.chat("s1").messages()
    ]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert messages[2] == {"role": "tool", "content": "rain", "tool_call_id": "c1"}
    (info,) = [info async for info in cache.sessions()]
    assert (info.first_user_message, info.user_message_count) == ("weather?", 1)


async def test_messages_of_a_chat_are_items_as_far_as_they_have_a_text(session, cache):
    chat = cache.chat("s1")
    await chat.append(
        user("hi"), {"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": "yes"}
    )
    assert await session.get_items() == [user("hi"), {"role": "assistant", "content": "yes"}]


async def test_a_text_is_stored_once(session, client):
    text = "a rather long text " * 40
    await session.add_items([user(text), answer(text), {**CALL, "arguments": text}, {**OUTPUT, "output": text}])
    records = await client.lrange(session.store._keys.log, 0, -1)
    assert [record.count(text.encode()) for record in records] == [1, 1, 1, 1]


# Compaction


async def test_a_compaction_snapshot_replaces_exactly_what_it_read(session, open_cache):
    await session.add_items([user(f"t{at}") for at in range(6)])
    snapshot = await session._get_compaction_snapshot(4)
    assert ([item["content"] for item in snapshot.items], snapshot.complete) == (["t2", "t3", "t4", "t5"], False)
    assert await snapshot.replace_suffix(1, [user("summary"), ITEMS["compaction"]])
    assert await session.get_items() == [user("t0"), user("t1"), user("t2"), user("summary"), ITEMS["compaction"]]
    assert not await snapshot.replace_suffix(1, [user("again")])
    whole = await session._get_compaction_snapshot(100)
    assert whole.complete
    await LashSession("s1", open_cache()).add_items([user("new")])
    assert not await whole.replace_suffix(0, [user("stale")])
    assert (await session.get_items())[-2:] == [ITEMS["compaction"], user("new")]


async def test_a_replacement_of_the_whole_session_drops_the_old_nodes(session, client):
    await session.add_items([user(f"t{at}") for at in range(6)])
    snapshot = await session._get_compaction_snapshot(100)
    assert await snapshot.replace_suffix(0, [user("summary")])
    assert await session.get_items() == [user("summary")]
    assert await client.llen(session.store._keys.log) == 1
    await session.add_items([user("next")])
    assert await session.get_items() == [user("summary"), user("next")]


async def test_expired_items_at_the_beginning_are_pruned_with_a_replacement(session):
    await session.add_items([user(f"t{at}") for at in range(6)])
    snapshot = await session._get_compaction_snapshot(
        2, prune_prefix=lambda item: item["content"] in ("t0", "t1", "t3")
    )
    assert await snapshot.replace_suffix(0, [user("summary")])
    assert [item["content"] for item in await session.get_items()] == ["t2", "t3", "summary"]


def compacting(session: LashSession, before_reply: Callable[[], Any] | None = None) -> OpenAIResponsesCompactionSession:
    """A compaction session whose model answers with one summary."""

    async def compact(**request: Any) -> Any:
        if before_reply is not None:
            await before_reply()
        return SimpleNamespace(output=[{"type": "compaction", "encrypted_content": "summary"}], usage=None)

    model: Any = SimpleNamespace(responses=SimpleNamespace(compact=compact))
    return OpenAIResponsesCompactionSession("s1", session, client=model, compaction_mode="input")


SUMMARY = {"type": "compaction", "encrypted_content": "summary"}


async def test_a_manual_compaction_replaces_the_history(session):
    compaction = compacting(session)
    await compaction.add_items([user("a"), answer("b")])
    await compaction.run_compaction({"force": True})
    assert await session.get_items() == [SUMMARY]
    await compaction.add_items([user("c")])
    await compaction.run_compaction({"force": True})
    assert await session.get_items() == [SUMMARY]


async def test_a_manual_compaction_loses_no_item_that_it_did_not_read(session, open_cache):
    other = LashSession("s1", open_cache())
    compaction = compacting(session, lambda: other.add_items([user("new")]))
    await compaction.add_items([user("a"), answer("b")])
    with pytest.raises(HeadRevisionConflict):
        await compaction.run_compaction({"force": True})
    assert await session.get_items() == [user("a"), answer("b"), user("new")]


async def test_a_compaction_keeps_items_beyond_the_limit_of_its_read(cache):
    session = LashSession("s1", cache, session_settings={"limit": 2})
    compaction = compacting(session)
    await compaction.add_items([user("a"), answer("b"), user("c")])
    await compaction.run_compaction({"force": True})
    assert await session.get_items(10) == [user("a"), SUMMARY]


async def test_a_run_compacts_by_itself_and_beside_another_client(session, open_cache):
    other = LashSession("s1", open_cache())

    async def rival() -> None:
        await other.add_items([user("rival")])

    for before_reply, left in ((None, [SUMMARY]), (rival, None)):
        compaction = compacting(session, before_reply)
        compaction.should_trigger_compaction = lambda _: True
        agent = Agent("a", model=ScriptedModel([ModelStep(output=[assistant_message("answer")], response_id="r1")]))
        await Runner.run(agent, "question", session=compaction)
        found = await session.get_items()
        if left is None:
            assert [item.get("content") for item in found if item.get("role") == "user"] == ["question", "rival"]
        else:
            assert found == left


async def test_an_encrypted_session_stores_ciphertext(session, client):
    encrypted = EncryptedSession("s1", session, encryption_key="0123456789abcdef0123456789abcdef")
    await encrypted.add_items([user("secret"), answer("also secret")])
    assert await encrypted.get_items() == [user("secret"), answer("also secret")]
    records = await client.lrange(session.store._keys.log, 0, -1)
    assert not any(b"secret" in record for record in records)
    assert await encrypted.pop_item() == answer("also secret")


# Runs


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"rain in {city}"


async def test_a_run_resumes_the_history_of_an_earlier_run(open_cache):
    calls = ScriptedModel(
        [[function_call("weather", {"city": "Oslo"}, call_id="c1")], [assistant_message("It rains.")]]
    )
    first = LashSession("s1", open_cache())
    result = await Runner.run(Agent("a", model=calls, tools=[weather]), "Weather?", session=first)
    assert result.final_output == "It rains."
    model = ScriptedModel([[assistant_message("Still.")]])
    second = LashSession("s1", open_cache())
    await Runner.run(Agent("a", model=model, tools=[weather]), "And now?", session=second)
    sent: Any = model.last_call.input
    assert [item.get("type", item.get("role")) for item in sent] == [
        "user",
        "function_call",
        "function_call_output",
        "message",
        "user",
    ]
    assert sent[2]["output"] == "rain in Oslo"
    assert len(await second.get_items()) == 6


async def test_a_streamed_run_stores_the_same_items(session):
    model = ScriptedModel(
        [[function_call("weather", {"city": "Oslo"}, call_id="c1")], [assistant_message("It rains.")]]
    )
    streamed = Runner.run_streamed(Agent("a", model=model, tools=[weather]), "Weather?", session=session)
    async for _ in streamed.stream_events():
        pass
    found = await session.get_items()
    assert [item.get("type", item.get("role")) for item in found] == [
        "user",
        "function_call",
        "function_call_output",
        "message",
    ]
