"""Items and batches are returned exactly as they were added, and what is no item is refused."""

from __future__ import annotations

import json

import pytest
from agents.memory import Session, SessionSettings

from lash_redis import (
    EventPayload,
    InvalidRecord,
    PluginPayload,
    RuntimeCommit,
    SessionNodeRecord,
)
from lash_redis.integrations.openai_agents import LashSession
from lash_redis.models import Append
from tests.support.items import ITEMS, nested, user


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
