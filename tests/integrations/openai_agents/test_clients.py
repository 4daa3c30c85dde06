"""Several clients, cleared sessions and lost replies lose and double no item."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis import (
    OutcomeUnknown,
    OwnerMismatch,
    SessionGone,
)
from lash_redis.integrations.openai_agents import LashSession
from tests.support.builders import let_all_expire
from tests.support.items import answer, user
from tests.support.proxy import Action, on
from tests.support.sending import sends_once

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


async def test_a_session_expires_with_the_ttl_of_its_cache(open_cache, client):
    session = LashSession("s1", open_cache(ttl=60, blob_grace=0.1))
    await session.add_items([user("a")])
    await let_all_expire(client, within=61)
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
