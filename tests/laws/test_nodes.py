"""Nodes are found by their ids, in the order in which the caller asks for them."""

from __future__ import annotations

import pytest

from lash_redis import Append, InvalidRecord, SessionEvicted
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, chain, commit, key_of, node, numbered


@broken_by(
    Lua("node", "for index = ids, #ARGV do", "for index = #ARGV, ids, -1 do"),
    Lua("node", "if buried == id then return -1, '' end", ""),
)
async def test_nodes_are_in_the_order_asked_and_none_where_unknown_or_tombstoned(store):
    nodes = [*chain("a", "b", "c"), node("d", "a", text="off the path")]
    await store.commit_runtime_state(commit(None, Append(nodes, "c")))
    await store.tombstone_nodes(["b"])
    asked = ["d", "b", "a", "unknown", "a"]
    expected = [nodes[3], None, nodes[0], None, nodes[0]]
    assert await store.load_nodes(asked) == expected
    assert await store.load_nodes(tuple(asked)) == expected
    assert [await store.load_node(each) for each in asked] == expected
    await store.vacuum()
    assert await store.load_nodes(asked) == expected
    assert await store.load_nodes([]) == []


async def test_a_session_without_a_head_has_no_node(store, keyspace):
    assert await store.load_nodes(["a", "b"]) == [None, None]
    assert await keyspace() == {}


@broken_by(Python("session.store:require_ids", lambda _: lambda _, ids: list(ids), "checks no id"))
async def test_an_id_that_cannot_exist_is_refused_by_its_place(store):
    for wrong in ("", None, 5, "\ud800"):
        with pytest.raises(InvalidRecord) as refused:
            await store.load_nodes(["a", "b", "c", wrong])
        assert refused.value.field == "ids[3]"
    for wrong in ("ab", b"ab", None, {"a"}, iter("ab")):
        with pytest.raises(InvalidRecord) as refused:
            await store.load_nodes(wrong)
        assert refused.value.field == "ids"


async def test_nodes_are_one_round_trip_up_to_500_and_two_beyond(proxy, through_proxy):
    store = through_proxy().session("chat")
    ids = numbered(501)
    await store.commit_runtime_state(commit(None, append(*ids)))
    await store.load_node("n000000")
    for count, trips in ((1, 1), (500, 1), (501, 2)):
        with proxy.measure() as seen:
            found = await store.load_nodes(ids[:count])
        assert [each.node_id for each in found] == ids[:count]
        assert seen.round_trips == trips


@broken_by(Lua("node", "if wrong then return refuse(session, wrong) end", ""))
async def test_nodes_of_an_incomplete_session_are_an_error_and_not_unknown(store, client):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await client.delete(await key_of(client, "nodes"))
    with pytest.raises(SessionEvicted):
        await store.load_nodes(["a"])
