"""A replacement that keeps what is stored is a replacement like any other, for the price of what it adds."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import random
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from lash_redis import (
    ActivePath,
    Append,
    BackendError,
    CommitIdReused,
    Corrupt,
    EventPayload,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    NodeIdCollision,
    OutcomeUnknown,
    PersistedSessionRead,
    PluginPayload,
    RedisSessionStore,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionGraph,
    SessionNodeRecord,
    StoreError,
    Unchanged,
    load_persisted_session_state,
    refresh_persisted_session_state,
)
from lash_redis.protocol.nodes import timeless_part
from lash_redis.protocol.sums import Run, Sum
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import (
    append,
    chain,
    commit,
    facts_of,
    ids_of,
    key_of,
    node,
    numbered,
    plant_fact,
    plugins,
    replace_full,
    tools,
    used,
)
from tests.support.replacing import KEEPS_ANYTHING, KEEPS_NOTHING, TRUSTS_THE_HEAD, Sent, by_hand, edited, full, longer
from tests.support.sending import sends_once
from tests.support.servers import snapshot


def looked_at(read: PersistedSessionRead) -> PersistedSessionRead:
    read.graph.read_model()
    return read


# What it costs


@broken_by(KEEPS_NOTHING)
@pytest.mark.parametrize("look", [looked_at, lambda read: read], ids=["looked at", "unread"])
async def test_a_replacement_that_adds_2_nodes_to_1000_sends_what_an_append_of_them_does(look, store, open_cache):
    ids = numbered(1_000)
    await store.commit_runtime_state(commit(None, append(*ids)))
    worker = open_cache().session("chat")
    sent, read = Sent(worker), look(await full(worker))
    await worker.commit_runtime_state(commit(1, longer(read.graph, *chain("x", "y", parent=ids[-1]))))
    await worker.commit_runtime_state(commit(2, append("p", "q", parent="y")))
    replaced, appended = sent.bytes
    assert replaced - appended < 100 > appended - 400
    assert ids_of(await full(store)) == [*ids, "x", "y", "p", "q"]


@broken_by(KEEPS_NOTHING)
async def test_the_turns_of_a_runtime_send_what_is_new_of_its_graph(store, open_cache):
    await store.commit_runtime_state(commit(None, append(*numbered(100))))
    worker = open_cache().session("chat")
    sent, state = Sent(worker), await load_persisted_session_state(worker)
    assert state is not None
    for turn in range(9):
        for role in ("User", "Assistant"):
            state.session_graph = state.session_graph.append_message({"id": f"{role}{turn}", "role": role, "parts": []})
        state.graph_replace_required = True
        result = await worker.commit_runtime_state(RuntimeCommit.persisted_state(state, [used(input=1)]))
        state.apply_persisted_commit_result(result)
        assert (await full(store)).graph == state.session_graph
        if turn % 3 == 1:
            state.session_graph.read_model()
            await refresh_persisted_session_state(worker, state)
        if turn % 3 == 2:
            state.session_graph = state.session_graph.append_event({"progress": turn})
            progress = Append(state.session_graph.nodes[-1:], state.session_graph.leaf_node_id)
            result = await worker.commit_runtime_state(RuntimeCommit.persisted_state_with_graph_commit(state, progress))
            state.apply_persisted_commit_result(result)
    assert sent.deltas == ["extend", "extend", "extend", "append"] * 3
    assert max(sent.bytes) < 1_500


async def test_a_session_that_is_replaced_from_its_first_commit_on_sends_each_node_once(store):
    sent, graph = Sent(store), SessionGraph()
    for revision in range(5):
        graph = graph.append_event({"z": revision, "a": "x" * 500})
        await store.commit_runtime_state(commit(revision, ReplaceFull(graph)))
    assert sent.deltas == ["replace", *["extend"] * 4]
    assert max(sent.bytes) < 1_200
    assert (await full(store)).graph == graph


@broken_by(KEEPS_NOTHING)
@pytest.mark.parametrize("look", [looked_at, lambda read: read], ids=["looked at", "unread"])
async def test_a_replacement_of_the_last_2_of_1000_nodes_sends_them_alone(look, store, open_cache):
    ids = numbered(1_000)
    await store.commit_runtime_state(commit(None, append(*ids)))
    worker = open_cache().session("chat")
    sent, read = Sent(worker), look(await full(worker))
    replacement = chain(ids[998], "x", parent=ids[997], text="once more")
    await worker.commit_runtime_state(commit(1, edited(read.graph, 998, *replacement)))
    assert (sent.deltas, sent.drops) == (["extend"], [2])
    assert sent.bytes[0] < 1_000
    now = (await full(store)).graph
    assert now == edited(read.graph, 998, *replacement).graph
    assert (await store.load_node(ids[999]), await store.load_node(ids[998])) == (None, replacement[0])


async def test_a_turn_that_is_tried_again_and_again_is_sent_alone(store, open_cache):
    """The graph comes of no read: what it keeps was committed by this process."""
    sent, graph, reader = Sent(store), SessionGraph(), open_cache().session("chat")
    for turn in range(4):
        graph = graph.append_message({"id": f"u{turn}", "role": "User", "parts": ["x" * 500]})
        graph = graph.append_message({"id": f"a{turn}", "role": "Assistant", "parts": ["x" * 500]})
    await store.commit_runtime_state(commit(None, ReplaceFull(graph)))
    for number in range(1, 5):
        replacement = node("a3", "u3", text=f"attempt {number}")
        made = edited(graph, 7, replacement)
        await store.commit_runtime_state(commit(number, made))
        graph = made.graph
        assert (await reader.load_node("a3"), (await full(reader)).graph) == (replacement, graph)
    assert (sent.deltas, sent.drops) == (["replace", *["extend"] * 4], [0, 1, 1, 1, 1])
    assert max(sent.bytes[1:]) < 800


@pytest.mark.parametrize("by", ["method", "hand"])
async def test_a_runtime_that_says_its_last_message_again_sends_it_alone(by, store, open_cache):
    await store.commit_runtime_state(commit(None, append(*numbered(100))))
    worker = open_cache().session("chat")
    sent, state = Sent(worker), await load_persisted_session_state(worker)
    for attempt in range(5):
        if attempt:
            shorter = state.session_graph.first(-1)
            state.session_graph = shorter if by == "method" else by_hand(shorter)
        said = {"id": "answer", "role": "Assistant", "parts": [{"kind": "Text", "content": f"attempt {attempt}"}]}
        state.session_graph, state.graph_replace_required = state.session_graph.append_message(said), True
        state.apply_persisted_commit_result(
            await worker.commit_runtime_state(RuntimeCommit.persisted_state(state, [used(input=1)]))
        )
        assert (await full(store)).graph == state.session_graph
    if by == "method":
        assert (sent.deltas, sent.drops) == (["extend"] * 5, [0, 1, 1, 1, 1])
        assert max(sent.bytes) < 1_500
    else:
        assert sent.deltas == ["extend", *["replace"] * 4]


async def test_more_nodes_than_one_command_takes_are_dropped(store, client):
    ids = numbered(5_200)
    branches = [node(f"b{at}", ids[at]) for at in range(0, 2_600, 2)]
    await store.commit_runtime_state(commit(None, Append([*chain(*ids), *branches], ids[-1])))
    sent, read = Sent(store), await full(store)
    for keeps in (6_400, 5_201, 2_601):
        read = await full(store)
        await store.commit_runtime_state(commit(read.head_revision, edited(read.graph, keeps, node("x", ids[0]))))
        assert (await full(store)).graph == edited(read.graph, keeps, node("x", ids[0])).graph
        facts = await facts_of(client)
        assert (facts["length"], facts["ids"]) == (keeps + 1, keeps + 1)
        assert facts["jumps"] == max(keeps - 5_200, 0) + 1
    assert sent.drops == [100, 1_200, 2_601]


async def test_a_graph_that_keeps_less_than_half_is_sent_whole(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c", "d", "e")))
    sent, read = Sent(store), await full(store)
    await store.commit_runtime_state(commit(1, edited(read.graph, 2, node("x", "b"))))
    assert (sent.deltas, ids_of(await full(store))) == (["replace"], ["a", "b", "x"])


async def test_an_update_that_replaces_sends_what_is_new(store, open_cache):
    await store.commit_runtime_state(commit(None, append(*numbered(50))))
    worker = open_cache().session("chat")
    sent, read = Sent(worker), None
    for name in "xyz":

        def turn(read, name=name):
            return commit(None, longer(read.graph, node(name, read.graph.leaf_node_id)))

        await worker.update(turn, since=read)
        read = await full(store)
    assert sent.deltas == ["extend"] * 3
    assert ids_of(read)[50:] == ["x", "y", "z"]


async def test_a_handle_keeps_no_graph_in_memory(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    read, known = await full(store), store._namespace.logs
    log = weakref.ref(read.graph.lineage.base)
    graph = read.graph.append_event({})
    del read
    await store.commit_runtime_state(commit(1, ReplaceFull(graph)))
    await store.commit_runtime_state(commit(2, append("x", parent=graph.leaf_node_id)))
    newest = weakref.ref(known.newest(graph.lineage.base, await key_in(store)))
    assert (len(newest()), len(known)) == (4, 1)
    del graph
    gc.collect()
    assert (log(), newest(), len(known)) == (None, None, 0)


async def key_in(store: RedisSessionStore) -> str:
    return store._keys.log


@pytest.mark.parametrize("copied", [lambda graph: pickle.loads(pickle.dumps(graph)), copy.deepcopy])
async def test_a_copy_of_a_read_is_no_proof(copied, store):
    """What it holds may have been changed where the copy was made. From its first commit on it is known."""
    await store.commit_runtime_state(commit(None, append("a", "b")))
    sent, read = Sent(store), await full(store)
    graph = copied(read.graph.append_event({}))
    for revision in (1, 2):
        await store.commit_runtime_state(commit(revision, ReplaceFull(graph)))
        assert (await full(store)).graph == graph
        graph = graph.append_event({})
    assert sent.deltas == ["replace", "extend"]


async def test_who_read_before_is_brought_up_to_date_by_what_is_new(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    reader, worker = open_cache().session("chat"), open_cache().session("chat")
    before, read = await full(reader), await full(worker)
    epoch = before._origin.head.facts.epoch
    await worker.commit_runtime_state(commit(1, longer(read.graph, node("c", "b"))))
    now = await reader.refresh(before)
    assert ids_of(now) == ["a", "b", "c"]
    assert now._origin.head.facts.epoch == epoch


# What is stored


def exactly(value: Any) -> str:
    """Tells 1 from 1.0 and True; the order of keys is not stored."""
    return json.dumps(value, sort_keys=True)


async def changed_in_place(store: RedisSessionStore, change: Callable[[Any], None]) -> SessionGraph:
    graph = (await full(store)).graph
    change(graph.nodes[1].payload)
    await store.commit_runtime_state(commit(1, longer(graph, node("x", "c"))))
    return graph


def said(text: Any) -> Callable[[Any], None]:
    def change(payload: EventPayload) -> None:
        payload.event["Conversation"]["text"] = text

    return change


IN_PLACE = {
    "another text": said("goodbye"),
    "another type": said(True),
    "an equal number of another type": said(1.0),
    "something within": lambda payload: payload.event["Conversation"].update(more=[{"a": 1}]),
    "something gone": lambda payload: payload.event["Conversation"].pop("text"),
}


@pytest.mark.parametrize("change", IN_PLACE)
@broken_by(KEEPS_ANYTHING)
async def test_what_was_changed_in_place_in_a_read_is_stored(change, store, open_cache):
    nodes = [node("a"), replace(node("b", "a"), payload=EventPayload({"Conversation": {"text": 1}})), node("c", "b")]
    await store.commit_runtime_state(commit(None, Append(nodes, "c")))
    graph = await changed_in_place(open_cache().session("chat"), IN_PLACE[change])
    stored = (await full(store)).graph.nodes[1].payload
    assert exactly(stored.event) == exactly(graph.nodes[1].payload.event) != exactly(nodes[1].payload.event)


@broken_by(KEEPS_ANYTHING)
async def test_what_was_changed_in_place_in_a_graph_that_was_committed_is_stored(store):
    graph = SessionGraph().append_event({"z": [1], "a": 2}).append_plugin("p", {"z": [1], "a": 2})
    event, body = graph.nodes[0].payload.event, graph.nodes[1].payload.body
    changes = (lambda: event["z"].append(5), lambda: body.update(b=1), lambda: event.update(a=2.0), lambda: None)
    for revision, change in enumerate(changes):
        await store.commit_runtime_state(commit(2 * revision, ReplaceFull(graph)))
        change()
        await store.commit_runtime_state(commit(2 * revision + 1, ReplaceFull(graph)))
        stored = (await full(store)).graph.nodes
        assert [exactly(stored[0].payload.event), exactly(stored[1].payload.body)] == [exactly(event), exactly(body)]


@pytest.mark.parametrize(
    "changed",
    [
        lambda nodes: (replace(nodes[0], timestamp="later"), *nodes[1:]),
        lambda nodes: (nodes[0], replace(nodes[1], payload=PluginPayload("p", nodes[1].payload.event)), nodes[2]),
        lambda nodes: (*nodes[:2], replace(nodes[2], parent_node_id="a")),
        lambda nodes: (nodes[0], node("other", "a"), replace(nodes[2], parent_node_id="other")),
        lambda nodes: (nodes[0], replace(nodes[2], parent_node_id="a"), replace(nodes[1], parent_node_id="c")),
        lambda nodes: nodes[:2],
        lambda nodes: nodes[:0],
    ],
    ids=["timestamp", "kind", "parent", "id", "order", "one less", "none"],
)
async def test_a_graph_that_keeps_only_a_part_takes_the_place_of_the_whole(changed, store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    nodes = changed((await full(store)).graph.nodes)
    nodes = (*nodes, node("x", nodes[-1].node_id if nodes else None))
    await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(nodes, "x"))))
    assert (await full(store)).graph == SessionGraph(nodes, "x")
    assert ids_of(await store.load_session(ActivePath()))[-1] == "x"


async def test_a_shorter_graph_leaves_nothing_of_the_rest(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    sent, graph = Sent(store), (await full(store)).graph
    await store.commit_runtime_state(commit(1, ReplaceFull(graph.first(2))))
    assert ids_of(await full(store)) == ["a", "b"]
    await store.commit_runtime_state(commit(2, append("c", parent="b")))
    assert sent.deltas == ["extend", "append"]


@pytest.mark.parametrize("leaf", ["a", "c"])
async def test_the_graph_that_is_stored_may_take_its_own_place_with_any_leaf(leaf, store, client):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    sent, graph = Sent(store), (await full(store)).graph
    before = await facts_of(client)
    await store.commit_runtime_state(commit(1, ReplaceFull(graph.with_leaf(leaf))))
    read = await full(store)
    assert (read.graph, read.head_revision) == (graph.with_leaf(leaf), 2)
    assert sent.deltas == ["extend"]
    assert {name: value for name, value in (await facts_of(client)).items() if before[name] != value}.keys() <= {
        "revision", "leaf", "committed",
    }  # fmt: skip


async def test_a_path_that_is_all_there_is_can_be_kept_and_a_part_of_it_is_not(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    sent = Sent(store)
    path = await store.load_session(ActivePath())
    await store.commit_runtime_state(commit(1, longer(path.graph, node("d", "c"))))
    await store.commit_runtime_state(commit(2, append("e", parent="a")))
    path = await store.load_session(ActivePath())
    await store.commit_runtime_state(commit(3, longer(path.graph, node("f", "e"))))
    assert ids_of(await full(store)) == ["a", "e", "f"]
    assert sent.deltas == ["extend", "append", "replace"]


# What is dropped

BEHIND = [node("c", "a"), node("d", "c"), node("e", "b")]
"""Behind `a` and `b`, with two branches."""


async def begun_to_be_cut(store: RedisSessionStore, **more: Any) -> SessionGraph:
    said = {"Conversation": {"role": "User", "id": "m", "parts": []}}
    users = [replace(each, payload=EventPayload(said)) for each in chain("a", "b")]
    users += [node(f"z{at}", "b") for at in range(3)]
    graph = SessionGraph((*users, *BEHIND), "e")
    graph = SessionGraph((*graph.nodes, replace(users[1], node_id="u", parent_node_id="e")), "u")
    await store.commit_runtime_state(commit(None, ReplaceFull(graph), **more))
    return (await full(store)).graph


@broken_by(
    Lua("replace", "call('HDEL', nodes, unpack(ARGV, gone", "call('HLEN', nodes) local _ = (unpack(ARGV, gone"),
    Lua("replace", "  call('LTRIM', log, 0, base - 1)", ""),
    Lua("replace", "else call('LTRIM', jumps, 0, cut.jumps - 1) end", "end"),
    Lua("replace", "if cut.jumps == 0 then call('UNLINK', jumps) else", "if cut.jumps > 0 then"),
    Lua("replace", "facts.bytes - less", "facts.bytes"),
    Lua("replace", "facts.users = facts.users - cut.users", ""),
)
async def test_nothing_is_left_of_what_is_dropped(store, cache, open_cache, client):
    graph, sent = await begun_to_be_cut(store), Sent(store)
    for revision, keeps in enumerate((8, 7, 6, 4, 2, 1), 1):
        await store.commit_runtime_state(commit(revision, edited(graph, keeps)), ttl=100)
        graph = (await full(store)).graph
        assert ids_of(await full(open_cache().session("chat"))) == [each.node_id for each in graph.nodes]
        (line,) = [info async for info in cache.sessions()]
        assert (len(graph.nodes), line.user_message_count) == (keeps, graph.user_message_count())
    assert sent.deltas == ["extend"] * 6
    assert (await open_cache(role="auditor").audit()).problems == ()


@broken_by(Lua("replace", "if facts.first >= base then facts.first = -1 end", ""))
async def test_the_first_message_of_a_user_may_be_dropped(store, cache, client):
    def told(name: str, parent: str) -> SessionNodeRecord:
        said = {"role": "User", "id": name, "parts": [{"kind": "Text", "content": f"this is {name}"}]}
        return replace(node(name, parent), payload=EventPayload({"Conversation": said}))

    begun = [*chain("a", "b"), told("c", "b"), told("d", "c")]
    await store.commit_runtime_state(commit(None, Append(begun, "d")))
    graph = (await full(store)).graph
    await store.commit_runtime_state(commit(1, edited(graph, 2, node("x", "b"), told("y", "x"))))
    (line,) = [info async for info in cache.sessions()]
    assert (line.first_user_message, line.user_message_count) == ("this is y", 1)
    assert (await facts_of(client))["first"] == 3


async def test_a_reader_of_what_is_dropped_reads_what_came_instead(store, open_cache):
    graph = await begun_to_be_cut(store)
    reader = open_cache().session("chat")
    reads = [await full(reader), await reader.load_session(ActivePath()), await reader.load_session(ActivePath("d"))]
    await store.commit_runtime_state(commit(1, edited(graph, 6, node("d", "c", text="other"), node("f", "d"))))
    now = [await reader.refresh(read) for read in reads]
    assert ids_of(now[0]) == ["a", "b", "z0", "z1", "z2", "c", "d", "f"]
    assert [ids_of(read) for read in now[1:]] == [["a", "c", "d", "f"], ["a", "c", "d"]]
    assert all(read.graph.find_node("d") == node("d", "c", text="other") for read in now)


@broken_by(Lua("replace", "if drops > 0 or replaces and", "if replaces and"))
async def test_a_path_whose_end_is_dropped_between_two_trips_is_read_again(store, open_cache):
    graph = await begun_to_be_cut(store)
    reader = open_cache().session("chat")
    read, trips = reader._namespace.read, []

    async def between(trip: Any, **more: Any) -> Any:
        trips.append(trip)
        if len(trips) == 2:
            replacement = [node("d", "c", text="other"), node("e", "b", text="other"), node("u", "e", text="other")]
            await store.commit_runtime_state(commit(1, edited(graph, 6, *replacement)))
        return await read(trip, **more)

    reader._namespace.read = between  # type: ignore[method-assign]
    path = await reader.load_session(ActivePath())
    assert (path.head_revision, path.graph.nodes[-1]) == (2, node("u", "e", text="other"))
    assert len(trips) > 2


@broken_by(Lua("replace", "if place ~= base + from + offset - 1 then return nil, {'unlike'} end", ""))
async def test_an_index_that_says_otherwise_than_the_log_is_not_trusted_with_a_part(store, client):
    graph, sent = await begun_to_be_cut(store), Sent(store)
    nodes = await key_of(client, "nodes")
    await client.hset(nodes, mapping={"e": 6, "d": 7})
    await store.commit_runtime_state(commit(1, edited(graph, 6, node("f", "c"))))
    assert sent.deltas == ["extend", "replace"]
    assert {key: int(place.rstrip(b"u")) for key, place in (await client.hgetall(nodes)).items()} == {
        b"a": 0, b"b": 1, b"z0": 2, b"z1": 3, b"z2": 4, b"c": 5, b"f": 6,
    }  # fmt: skip


@broken_by(
    Lua(
        "replace",
        "if not place then return nil, {'corrupt', 'jumps'",
        "if not place then place = 0 end if false then return nil, {'corrupt', 'jumps'",
    )
)
async def test_a_jump_that_is_unreadable_is_told_before_anything_is_dropped(store, client, keyspace):
    graph = await begun_to_be_cut(store)
    await client.lset(await key_of(client, "jumps"), -1, b"?")
    before = await keyspace()
    with pytest.raises(Corrupt) as told:
        await store.commit_runtime_state(commit(1, edited(graph, 6)))
    assert told.value.key == (await key_of(client, "jumps")).decode()
    assert await keyspace() == before


async def test_an_account_that_may_not_drop_is_refused_with_nothing_written(real_server):
    client = real_server.account("laws", "loader")
    admin = real_server.client()
    store = sends_once(SessionCache(client, "laws")).session("chat")
    graph = await begun_to_be_cut(store)
    await admin.execute_command("ACL", "SETUSER", "loader-laws", "-ltrim")
    before = await snapshot(admin)
    with pytest.raises((OutcomeUnknown, BackendError), match="user_script"):
        await store.commit_runtime_state(commit(1, edited(graph, 6, node("f", "c"))))
    assert await snapshot(admin) == before


@broken_by(Lua("replace", "facts.epoch = math.max(facts.epoch + 1, now)", "facts.epoch = facts.epoch + 1"))
async def test_the_log_begins_when_nodes_are_dropped(store, client):
    """So two that each began on one side of a failover are told apart however alike they are."""
    graph = await begun_to_be_cut(store)
    for revision, delta in enumerate([edited(graph, 6), replace_full("x", "y"), edited(graph, 2)], 1):
        await plant_fact(client, "epoch", 1)
        await store.commit_runtime_state(commit(revision, delta))
        seconds, micros = await client.time()
        assert 0 <= seconds * 1000 + micros // 1000 - (await facts_of(client))["epoch"] < 60_000


async def test_ids_that_are_longer_than_what_is_kept_are_not_named(store):
    ids = numbered(20)
    long = [f"{at}{'x' * 5_000}" for at in range(10)]
    await store.commit_runtime_state(commit(None, Append([*chain(*ids), *chain(*long, parent=ids[-1])], long[-1])))
    sent, graph = Sent(store), (await full(store)).graph
    await store.commit_runtime_state(commit(1, edited(graph, 20)))
    assert (sent.deltas, ids_of(await full(store))) == (["replace"], [*ids])
    assert sent.bytes[0] < 5_000


async def test_none_among_the_nodes_is_no_node(store):
    graph = await begun_to_be_cut(store)
    for nodes in ((*graph.nodes[:2], None, *graph.nodes[3:]), (None, *graph.nodes[1:]), (*graph.nodes, None)):
        with pytest.raises(InvalidRecord, match="nodes"):
            await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(nodes, "u"))))


async def test_a_sequence_that_takes_no_slices_is_one_of_nodes(store):
    graph = await begun_to_be_cut(store)
    nodes = deque([*graph.nodes[:6], node("x", "c")])
    await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(nodes, "x"))))
    await store.commit_runtime_state(commit(2, Append(deque([node("y", "x")]), "y")))
    assert ids_of(await full(store))[6:] == ["x", "y"]


@broken_by(Python("protocol.lineage:KnownLogs.learn", lambda _: lambda *_: None, "forgets what it committed"))
async def test_a_handle_for_each_request_sends_what_is_new(open_cache):
    """What is known to be stored is known to the cache, for as long as the graph is held."""
    cache, graph = open_cache(), SessionGraph().append_event({"said": "x" * 500})
    deltas = []
    for revision in range(6):
        handle = cache.session("chat")
        sent = Sent(handle)
        await handle.commit_runtime_state(commit(revision, ReplaceFull(graph)))
        deltas += sent.deltas
        graph = (graph.first(-1) if revision % 2 else graph).append_event({"said": f"{revision}"})
    assert deltas == ["replace", *["extend"] * 5]
    read = await full(cache.session("chat"))
    other = cache.session("other")
    await other.commit_runtime_state(commit(None, ReplaceFull(read.graph), session_id="other"))
    assert (await full(other)).graph == read.graph


@pytest.mark.parametrize(
    "made",
    [lambda graph: SessionGraph(graph.nodes[:6], "c"), lambda graph: graph.first(6)],
    ids=["by hand", "by its method"],
)
async def test_a_record_that_is_damaged_may_be_dropped(made, store, client):
    graph = await begun_to_be_cut(store)
    log = await key_of(client, "log")
    record = await client.lindex(log, 7)
    await client.lset(log, 7, record[:-1] + bytes([record[-1] ^ 1]))
    read, sent = await full(store), Sent(store)
    await store.commit_runtime_state(commit(1, ReplaceFull(made(read.graph))))
    assert (sent.deltas, (await full(store)).graph.nodes) == (["replace"], graph.nodes[:6])


# Tasks that share a read


def reading_again(claim: Any) -> Any:
    """`Kept.claim` of the log as it is when the claim is sent, which is not the one that was compared."""

    def claimed(kept: Any) -> bytes:
        log, shared, key = kept.log, kept.log.nodes._shared, kept.log.nodes.key
        more = shared.records[len(log) :]
        run = Run.of(timeless_part(record, key, 0) for record in more)
        return bytes(claim.fget(replace(kept, log=log.extended(more, run))))

    return property(claimed)


CLAIMS_WHAT_IT_NEVER_COMPARED = Python("protocol.lineage:Kept.claim", reading_again, "reads the log again")

MADE_OF_A_READ: dict[str, Callable[[SessionGraph], SessionGraph]] = {
    "one more": lambda graph: graph.append_event({"by": "the replacement"}),
    "the last one again": lambda graph: graph.first(-1).append_event({"by": "the replacement"}),
    "one less": lambda graph: graph.first(-1),
    "another leaf": lambda graph: graph.with_leaf("a"),
    "the same": lambda graph: graph,
}
RIVALS: dict[str, Callable[[SessionGraph], Append | ReplaceFull]] = {
    "an append": lambda graph: append("b", parent=graph.leaf_node_id),
    "an append of two": lambda graph: append("b", "c", parent=graph.leaf_node_id),
    "a replacement": lambda graph: ReplaceFull(graph.append_event({"by": "the rival"})),
    "a shorter replacement": lambda graph: ReplaceFull(graph.first(-1)),
    "the last one again": lambda graph: ReplaceFull(graph.first(-1).append_event({"by": "the rival"})),
}


def interrupted(store: RedisSessionStore, moment: str, rival: Callable[[], Awaitable[Any]]) -> None:
    """Lets the rival's commit land at this moment of the next commit of `store`."""
    own = copy.copy(store._namespace)  # whose requests are those of this handle alone
    publish, run, attempts = store._publish, own.run_durably, []

    async def publishing(*arguments: Any) -> Any:
        if moment == "when it is prepared":
            await rival()
        return await publish(*arguments)

    async def running(*arguments: Any) -> Any:
        attempts.append(arguments)
        if (moment, len(attempts)) == ("when its first attempt is made", 1):
            await rival()
        answer = await run(*arguments)
        if (moment, len(attempts)) == ("between its attempts", 1):
            await rival()
        return answer

    own.run_durably = running  # type: ignore[method-assign]
    store._publish, store._publisher._namespace = publishing, own  # type: ignore[method-assign]


@pytest.mark.slow
@broken_by(CLAIMS_WHAT_IT_NEVER_COMPARED)
@pytest.mark.parametrize(
    "moment", ["before it", "when it is prepared", "when its first attempt is made", "between its attempts"]
)
async def test_a_replacement_that_lands_last_stores_its_graph_alone(moment, cache, open_cache):
    """Both commits are made of one read. The replacing handle knows no components, so its first attempt is refused."""
    wrong = []
    caches = (cache, open_cache())  # the second does not know what the first committed
    for number, (how, of, of_cache) in enumerate(product(MADE_OF_A_READ, RIVALS, caches)):
        name = f"chat-{number}"
        reader, replacer = cache.session(name), of_cache.session(name)
        await reader.commit_runtime_state(commit(None, append("a", "z"), session_id=name, checkpoint=STATES))
        read = await full(reader)
        made = commit(None, ReplaceFull(MADE_OF_A_READ[how](read.graph)), session_id=name)
        other = commit(1, RIVALS[of](read.graph), session_id=name, checkpoint=read.checkpoint)

        async def rival(reader: RedisSessionStore = reader, other: RuntimeCommit = other) -> None:
            assert (await reader.commit_runtime_state(other)).head_revision == 2

        if moment == "before it":
            await rival()
        interrupted(replacer, moment, rival)
        assert (await replacer.commit_runtime_state(made)).head_revision == 3
        stored = await full(open_cache().session(name))
        if stored.graph != made.graph.graph:
            wrong.append((how, of))
    assert wrong == []
    assert (await open_cache(role="auditor").audit()).problems == ()


@broken_by(CLAIMS_WHAT_IT_NEVER_COMPARED)
async def test_of_two_tasks_that_share_a_read_what_the_later_one_says_is_stored(cache, open_cache):
    """The same without a pause at a chosen moment: both are sent at once."""
    for number, of in enumerate(RIVALS):
        name = f"chat-{number}"
        reader, replacer = cache.session(name), cache.session(name)
        await reader.commit_runtime_state(commit(None, append("a", "z"), session_id=name, checkpoint=STATES))
        read = await full(reader)
        made = commit(None, ReplaceFull(read.graph.append_event({})), session_id=name)
        other = commit(1, RIVALS[of](read.graph), session_id=name, checkpoint=read.checkpoint)
        results = await asyncio.gather(
            reader.commit_runtime_state(other), replacer.commit_runtime_state(made), return_exceptions=True
        )
        assert not isinstance(results[1], BaseException)
        stored = await full(open_cache().session(name))
        if isinstance(results[0], HeadRevisionConflict):
            assert stored.head_revision == 2
        else:
            assert (results[0].head_revision, results[1].head_revision) == (2, 3)
        assert stored.graph == made.graph.graph, of


@broken_by(TRUSTS_THE_HEAD)
async def test_a_graph_of_a_read_that_the_stored_log_has_left_behind_is_sent_whole(cache, open_cache):
    reader, replacer = cache.session("chat"), open_cache().session("chat")
    await reader.commit_runtime_state(commit(None, append("a", "z")))
    read = await full(reader)
    await reader.commit_runtime_state(commit(1, append("b", parent="z")))
    sent, made = Sent(replacer), ReplaceFull(read.graph.append_event({}))
    await replacer.commit_runtime_state(commit(None, made))
    assert sent.deltas == ["extend", "replace"]
    assert (await full(open_cache().session("chat"))).graph == made.graph


def of_that_epoch(committed: Any) -> Any:
    def known(prepared: Any, key: str, epoch: int) -> Any:
        known_before = prepared.log and replace(prepared.log, epoch=epoch)
        return committed(replace(prepared, log=known_before), key, epoch)

    return known


async def restarted(cache: SessionCache, client: Any) -> tuple[RedisSessionStore, SessionGraph]:
    """A store, and the graph that it read before the session was deleted and begun by a commit of the same id."""
    store = cache.session("chat")
    begun = commit(None, Append([replace(node("a"), timestamp="old"), node("b", "a")], "b"), commit_id="c1")
    await store.commit_runtime_state(begun)
    graph = (await full(store)).graph
    await client.delete(*await client.keys("*"))
    restart = replace(begun, graph=Append([replace(node("a"), timestamp="new"), node("b", "a")], "b"))
    await cache.session("chat").commit_runtime_state(restart)
    return store, graph


@broken_by(Python("session.publish:log_after", of_that_epoch, "takes the log for the one that took its place"))
async def test_an_append_to_a_session_that_began_anew_does_not_make_its_log_the_one_that_was_read(cache, client):
    """It came to the same revision by a commit of the same id and size at another time."""
    store, graph = await restarted(cache, client)
    await plant_fact(client, "epoch", graph.lineage.base.epoch + 1)
    await store.commit_runtime_state(commit(1, append("c", parent="b"), builds_on="c1"))
    await store.commit_runtime_state(commit(2, longer(graph, node("c", "b"), node("d", "c"))))
    nodes = (await full(store)).graph.nodes
    assert (nodes[0], [each.node_id for each in nodes]) == (replace(node("a"), timestamp="old"), ["a", "b", "c", "d"])


# What moves no head


@pytest.mark.parametrize("vacuumed", [False, True])
@pytest.mark.parametrize("who", ["this handle", "another process"])
@broken_by(TRUSTS_THE_HEAD)
async def test_nodes_that_were_tombstoned_since_the_read_are_brought_back(who, vacuumed, store, open_cache):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    graph = (await full(store)).graph
    other = store if who == "this handle" else open_cache().session("chat")
    await other.tombstone_nodes(["b", "c"])
    if vacuumed:
        await other.vacuum()
    sent = Sent(store)
    await store.commit_runtime_state(commit(1, longer(graph, node("d", "a"))))
    assert sent.deltas == ["extend", "replace"]
    assert ids_of(await full(store)) == ["a", "b", "c", "d"]
    assert (await store.load_node("b")) == node("b", "a")
    assert (await store.vacuum()).removed_node_count == 0


@broken_by(Lua("replace", "facts.epoch == epoch and ", ""))
async def test_a_session_that_began_anew_by_the_same_commit_is_replaced_whole(cache, client):
    """It came to the same revision by a commit of the same id, and of the same size, at another time."""
    store, graph = await restarted(cache, client)
    await store.commit_runtime_state(commit(1, longer(graph, node("c", "b")), builds_on="c1"))
    assert list((await full(store)).graph.nodes) == [
        replace(node("a"), timestamp="old"),
        node("b", "a"),
        node("c", "b"),
    ]


@broken_by(TRUSTS_THE_HEAD, Lua("replace", "and string.sub(redis.call('LINDEX', log, -1), -4) == mark", ""))
async def test_a_log_that_a_failover_made_another_is_replaced_whole(store, client):
    """The same commit sent again where it was lost, with another timestamp: the head tells no difference."""
    await store.commit_runtime_state(commit(None, Append(chain("a", "b", timestamp="early"), "b")))
    graph = (await full(store)).graph
    log = await key_of(client, "log")
    record = await client.lindex(log, -1)
    await client.lset(log, -1, record[:-4] + bytes(4))
    await store.commit_runtime_state(commit(1, longer(graph, node("c", "b"))))
    assert list((await full(store)).graph.nodes) == [*chain("a", "b", timestamp="early"), node("c", "b")]


async def test_a_record_that_is_damaged_is_told_not_kept(store, client):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    log = await key_of(client, "log")
    record = await client.lindex(log, 0)
    await client.lset(log, 0, record[:-1] + bytes([record[-1] ^ 1]))
    read = await full(store)
    with pytest.raises(Corrupt):
        await store.commit_runtime_state(commit(1, ReplaceFull(by_hand(read.graph))))


async def test_a_record_that_is_damaged_and_was_not_accessed_stays_so_behind_a_replacement(store, client):
    """As behind an append: no commit reads what it keeps, and every read reports it."""
    await store.commit_runtime_state(commit(None, append("a", "b")))
    log = await key_of(client, "log")
    record = await client.lindex(log, 0)
    await client.lset(log, 0, record[:-1] + bytes([record[-1] ^ 1]))
    graph = (await full(store)).graph.append_event({})
    await store.commit_runtime_state(commit(1, ReplaceFull(graph)))
    with pytest.raises(Corrupt, match="record 0 does not match its checksum"):
        list((await full(store)).graph.nodes)


# Retries


ONE_MEANING = Python(
    "protocol.commands.prepared_commit:_nodes_in_meaning",
    lambda _: lambda prepared: (len(prepared.records), *Sum().plus(prepared.run, 0)),
    "takes what is new for the meaning",
)


async def two_who_may_commit(store, open_cache) -> tuple[RedisSessionStore, RedisSessionStore, RuntimeCommit]:
    """One who knows what is stored, one who does not, and a replacement that keeps it."""
    await store.commit_runtime_state(commit(None, append("a", "b")))
    knows, stranger = open_cache().session("chat"), open_cache().session("chat")
    graph = (await full(knows)).graph.append_plugin("p", {"b": 1, "a": 2}).append_event({"é": [1.5, None]})
    return knows, stranger, commit(1, ReplaceFull(graph), checkpoint=STATES, usage_deltas=[used(input=5)])


STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


@pytest.mark.parametrize("keeps", [200, 150, 129, 128, 127])
@pytest.mark.parametrize("first", ["kept", "whole"])
@broken_by(ONE_MEANING)
async def test_a_part_of_it_is_a_retry_too(first, keeps, store, open_cache):
    await store.commit_runtime_state(commit(None, append(*numbered(200))))
    workers = {"kept": open_cache().session("chat"), "whole": open_cache().session("chat")}
    graph = (await full(workers["kept"])).graph
    for _ in range(2):  # the second knows what the first has hashed
        made = commit(1, edited(graph, keeps, node("x", numbered(9)[8])), commit_id="c")
        sends = [(workers["kept"], made), (workers["whole"], RuntimeCommit.from_json(made.to_json()))]
        results = [await worker.commit_runtime_state(each) for worker, each in sends[:: 1 if first == "kept" else -1]]
        assert {result.head_revision for result in results} == {2}
        assert results[1].replayed


@pytest.mark.parametrize("first", ["kept", "whole"])
@broken_by(ONE_MEANING)
async def test_the_same_replacement_is_a_retry_whether_it_was_sent_whole_or_not(first, store, open_cache, keyspace):
    knows, stranger, made = await two_who_may_commit(store, open_cache)
    seen, whole = Sent(knows), RuntimeCommit.from_json(made.to_json())
    sends = [(knows, made), (stranger, whole)] if first == "kept" else [(stranger, whole), (knows, made)]
    result = await sends[0][0].commit_runtime_state(sends[0][1])
    before = await keyspace()
    assert await sends[1][0].commit_runtime_state(sends[1][1]) == replace(result, replayed=True)
    assert await sends[0][0].commit_runtime_state(sends[0][1]) == replace(result, replayed=True)
    assert seen.deltas[0] == "extend"
    assert await keyspace() == before
    read = await full(store)
    assert (read.graph, read.token_ledger, read.head_revision) == (made.graph.graph, (used(input=5),), 2)


async def test_the_same_id_with_another_graph_is_refused_whether_it_was_sent_whole_or_not(store, open_cache):
    knows, stranger, made = await two_who_may_commit(store, open_cache)
    await knows.commit_runtime_state(made)
    others = [
        replace(made, graph=longer(made.graph.graph, node("more"))),
        replace(made, graph=Append(made.graph.graph.nodes[2:], made.graph.leaf_node_id)),
        replace(made, graph=replace_full("a", "b")),
    ]
    for other in others:
        for each in (knows, stranger):
            with pytest.raises(CommitIdReused):
                await each.commit_runtime_state(other)


# Refusals


def of(*nodes: SessionNodeRecord, leaf: str | None) -> Callable[[SessionGraph], SessionGraph]:
    return lambda graph: graph._extended(nodes, leaf)


def instead(*nodes: SessionNodeRecord, leaf: str | None) -> Callable[[SessionGraph], SessionGraph]:
    return lambda graph: graph.first(2)._extended(nodes, leaf)


WRONG = {
    "an id that is kept": (of(node("a", "c"), leaf="a"), NodeIdCollision),
    "an id twice": (of(node("x", "c"), node("x", "c"), leaf="x"), NodeIdCollision),
    "both": (of(node("x", "c"), node("a", "c"), node("x", "c"), leaf="x"), NodeIdCollision),
    "both the other way": (of(node("x", "c"), node("x", "c"), node("a", "c"), leaf="x"), NodeIdCollision),
    "a parent that is unknown": (of(node("x", "c"), node("y", "?"), leaf="y"), InvalidParent),
    "a parent that comes later": (of(node("x", "y"), node("y", "c"), leaf="y"), InvalidParent),
    "two such": (of(node("w", "?"), node("x", "y"), node("y", "c"), leaf="y"), InvalidParent),
    "an id that is kept and a parent": (of(node("x", "?"), node("a", "c"), leaf="a"), NodeIdCollision),
    "a leaf that is unknown": (of(node("x", "c"), leaf="?"), InvalidLeaf),
    "no leaf": (of(node("x", "c"), leaf=None), InvalidLeaf),
    "a parent and no leaf": (of(node("x", "?"), leaf=None), InvalidParent),
    "a parent and an unknown leaf": (of(node("x", "?"), leaf="y"), InvalidLeaf),
    "a parent that is dropped": (instead(node("x", "c"), leaf="x"), InvalidParent),
    "a leaf that is dropped": (instead(node("x", "b"), leaf="c"), InvalidLeaf),
    "an id that is kept, and one that is dropped": (instead(node("c", "b"), node("a", "b"), leaf="c"), NodeIdCollision),
}


def believing(reply):
    return lambda call, prepared, *more: reply(call, replace(prepared, kept=None), *more)


@broken_by(Python("protocol.commands.commit:reply", believing, "believes what a part is refused for"))
async def test_a_graph_is_refused_for_what_is_wrong_with_the_whole_of_it(store, open_cache, keyspace):
    await _refused_alike("a parent and an unknown leaf", store, open_cache, keyspace)


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_does_not_fit_is_refused_as_that_of_a_stranger(wrong, store, open_cache, keyspace):
    await _refused_alike(wrong, store, open_cache, keyspace)


async def _refused_alike(wrong: str, store, open_cache, keyspace) -> None:
    build, error = WRONG[wrong]
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    knows, stranger = open_cache().session("chat"), open_cache().session("chat")
    read, before, refusals = await full(knows), await keyspace(), []
    grown = build(read.graph)
    for each, graph in ((knows, grown), (stranger, by_hand(grown))):
        for expected in (1, 7):
            with pytest.raises(error if expected == 1 else HeadRevisionConflict) as refused:
                await each.commit_runtime_state(commit(expected, ReplaceFull(graph)))
            refusals.append((type(refused.value), str(refused.value)))
    assert refusals[:2] == refusals[2:]
    assert await keyspace() == before
    await knows.commit_runtime_state(commit(1, longer(read.graph, node("d", "c"))))
    assert ids_of(await full(store)) == ["a", "b", "c", "d"]


async def test_of_two_who_keep_the_same_one_wins(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    workers = [open_cache().session("chat") for _ in range(2)]
    reads = [await full(worker) for worker in workers]
    await workers[0].commit_runtime_state(commit(1, longer(reads[0].graph, node("mine", "b"))))
    with pytest.raises(HeadRevisionConflict) as refused:
        await workers[1].commit_runtime_state(commit(1, longer(reads[1].graph, node("yours", "b"))))
    assert (refused.value.expected, refused.value.actual) == (1, 2)
    read = await workers[1].refresh(reads[1])
    await workers[1].commit_runtime_state(commit(2, longer(read.graph, node("yours", "mine"))))
    assert ids_of(await full(store)) == ["a", "b", "mine", "yours"]


async def test_what_is_wrong_with_a_part_is_what_is_wrong_where_the_whole_is_over_a_limit(open_cache):
    store = open_cache(max_commit_nodes=3).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.commit_runtime_state(commit(1, append("d", parent="c")))
    graph, sent = (await full(store)).graph, Sent(store)
    wrong = [
        (node("x", "?"), InvalidParent), (node("y", "y"), InvalidParent), (node("a", "d"), NodeIdCollision),
    ]  # fmt: skip
    for added, error in wrong:
        with pytest.raises(error):
            await store.commit_runtime_state(commit(2, longer(graph, added)))
    with pytest.raises(InvalidLeaf):
        await store.commit_runtime_state(commit(2, ReplaceFull(graph.with_leaf("?"))))
    assert "replace" not in sent.deltas


# The same as whole


def shown(read: PersistedSessionRead | None) -> Any:
    if read is None:
        return None
    nodes = [(each.node_id, each.parent_node_id, each.timestamp, repr(each.payload)) for each in read.graph.nodes]
    return read.head_revision, read.graph.leaf_node_id, nodes, read.token_ledger, read.checkpoint_ref


async def all_that_is_seen(store: RedisSessionStore, ids: Sequence[str]) -> list[Any]:
    seen: list[Any] = []
    for scope in (FullGraph(), ActivePath(), *map(ActivePath, ids)):
        try:
            seen.append(shown(await store.load_session(scope)))
        except StoreError as error:
            seen.append((type(error), str(error).replace(store.session_id, "it")))
    return seen + [await store.load_node(each) for each in ids]


@pytest.mark.slow
@pytest.mark.parametrize("checks", ["strict", "lenient"])
@pytest.mark.parametrize("seed", range(4))
async def test_nobody_sees_whether_a_graph_was_replaced_whole(seed, checks, open_cache):
    """The same walk through two sessions: in one, whoever replaces knows what is stored; in the other, nobody does."""
    dice = random.Random(f"{seed} {checks}")
    cache = open_cache(graph_checks=checks)
    knows, plain = cache.session("chat-1"), open_cache(graph_checks=checks).session("chat-2")
    sent, read, ids = Sent(knows), None, [f"n{at}" for at in range(300)]

    async def both(graph: Any, expected: int | None, commit_id: str) -> None:
        answers = []
        for store in (knows, plain):
            made = commit(expected, graph, session_id=store.session_id, commit_id=commit_id)
            if store is plain:
                made = RuntimeCommit.from_json(made.to_json())
                store = open_cache(graph_checks=checks).session("chat-2")
            try:
                result = await store.commit_runtime_state(made)
                answers.append((result.head_revision, result.replayed))
            except StoreError as error:
                answers.append((type(error), str(error).replace(store.session_id, "it")))
        assert answers[0] == answers[1]

    for step in range(60):
        read = await (knows.load_session(FullGraph()) if read is None else knows.refresh(read))
        graph = SessionGraph() if read is None else read.graph
        if dice.random() < 0.5:
            with suppress(Corrupt):  # lenient checks let a node be its own ancestor
                graph.read_model()
        live = [each.node_id for each in graph.nodes]
        fresh = dice.sample([each for each in ids if each not in live or dice.random() < 0.05], dice.randrange(4))
        added: list[SessionNodeRecord] = []
        for each in fresh:
            parents = [None, *live, *(other.node_id for other in added)] + ["?"] * (dice.random() < 0.1)
            said = {"Conversation": {"role": dice.choice(["User", "Assistant"]), "id": each, "parts": [step]}}
            added.append(SessionNodeRecord(each, dice.choice(parents[-4:]), f"t{step}", EventPayload(said)))
        leaf = dice.choice([*live, *fresh] or [None]) if dice.random() < 0.95 else dice.choice(["?", None])
        revision = 0 if read is None else read.head_revision
        match dice.choice(
            ["replace"] * 6 + ["append", "move", "edit", "edit", "shorter", "hide", "vacuum", "change", "again"]
        ):
            case "replace":
                await both(ReplaceFull(graph._extended(added, leaf)), revision, f"c{step}")
            case "append":
                await both(Append(added, leaf), revision, f"c{step}")
            case "move":
                await both(Unchanged(leaf), revision, f"c{step}")
            case "edit" if live:
                keeps = dice.randrange(len(live) // 2, len(live)) if dice.random() < 0.9 else dice.randrange(len(live))
                again = [replace(graph.nodes[keeps], timestamp=f"t{step}")] * (dice.random() < 0.5)
                replacement = graph.first(keeps)._extended([*again, *added], leaf)
                await both(ReplaceFull(replacement), revision, f"c{step}")
            case "shorter" if dice.random() < 0.5:
                await both(ReplaceFull(graph.first(dice.randrange(len(live) + 1))), revision, f"c{step}")
            case "hide" if live:
                hidden = dice.sample(live, 1)
                await knows.tombstone_nodes(hidden)
                await plain.tombstone_nodes(hidden)
                await both(ReplaceFull(graph._extended(added, leaf)), revision, f"c{step}")
            case "vacuum":
                assert await knows.vacuum() == await plain.vacuum()
            case "change" if live:
                dice.choice(graph.nodes).payload.event["Conversation"]["parts"].append(step)
                await both(ReplaceFull(graph._extended(added, leaf)), revision, f"c{step}")
                read = None
            case "again":
                for _ in range(2):
                    await both(ReplaceFull(graph._extended(added, leaf)), revision, f"c{step}")
        assert await all_that_is_seen(knows, ids[:9]) == await all_that_is_seen(plain, ids[:9])
    assert {"extend", "replace"} <= set(sent.deltas)
    assert any(sent.drops) or checks == "lenient"  # where links are by id alone, nothing is known to be kept
    lines = [info async for info in cache.sessions()]
    assert lines[0].first_user_message == lines[1].first_user_message
    assert lines[0].user_message_count == lines[1].user_message_count > 0
    assert (await open_cache(role="auditor").audit()).problems == ()
