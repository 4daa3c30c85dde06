"""A replacement that keeps stored nodes has the same effect as any other, and sends only the nodes it adds."""

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
    NodesTombstoned,
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


def accessed(read: PersistedSessionRead) -> PersistedSessionRead:
    read.graph.read_model()
    return read


# Cost


@broken_by(KEEPS_NOTHING)
@pytest.mark.parametrize("access", [accessed, lambda read: read], ids=["accessed", "not accessed"])
async def test_a_replacement_that_adds_2_nodes_to_1000_sends_as_much_as_an_append(access, store, open_cache):
    ids = numbered(1_000)
    await store.commit_runtime_state(commit(None, append(*ids)))
    worker = open_cache().session("chat")
    sent, read = Sent(worker), access(await full(worker))
    await worker.commit_runtime_state(commit(1, longer(read.graph, *chain("x", "y", parent=ids[-1]))))
    await worker.commit_runtime_state(commit(2, append("p", "q", parent="y")))
    replaced, appended = sent.bytes
    assert replaced - appended < 100 > appended - 400
    assert ids_of(await full(store)) == [*ids, "x", "y", "p", "q"]


@broken_by(KEEPS_NOTHING)
async def test_the_turns_of_a_runtime_send_only_new_nodes(store, open_cache):
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


async def test_repeated_replacements_of_a_growing_graph_send_each_node_once(store):
    sent, graph = Sent(store), SessionGraph()
    for revision in range(5):
        graph = graph.append_event({"z": revision, "a": "x" * 500})
        await store.commit_runtime_state(commit(revision, ReplaceFull(graph)))
    assert sent.deltas == ["replace", *["extend"] * 4]
    assert max(sent.bytes) < 1_200
    assert (await full(store)).graph == graph


@broken_by(KEEPS_NOTHING)
@pytest.mark.parametrize("access", [accessed, lambda read: read], ids=["accessed", "not accessed"])
async def test_a_replacement_of_the_last_2_of_1000_nodes_sends_only_those(access, store, open_cache):
    ids = numbered(1_000)
    await store.commit_runtime_state(commit(None, append(*ids)))
    worker = open_cache().session("chat")
    sent, read = Sent(worker), access(await full(worker))
    replacement = chain(ids[998], "x", parent=ids[997], text="once more")
    await worker.commit_runtime_state(commit(1, edited(read.graph, 998, *replacement)))
    assert (sent.deltas, sent.drops) == (["extend"], [2])
    assert sent.bytes[0] < 1_000
    now = (await full(store)).graph
    assert now == edited(read.graph, 998, *replacement).graph
    assert (await store.load_node(ids[999]), await store.load_node(ids[998])) == (None, replacement[0])


async def test_a_repeated_attempt_at_a_turn_sends_only_its_own_node(store, open_cache):
    """The graph was never read: this process has committed the nodes that it keeps."""
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
async def test_a_runtime_that_replaces_its_last_message_sends_only_that_message(by, store, open_cache):
    """Nodes that were copied by hand are sent as a whole."""
    await store.commit_runtime_state(commit(None, append(*numbered(100))))
    worker = open_cache().session("chat")
    sent, state = Sent(worker), await load_persisted_session_state(worker)
    for attempt in range(5):
        if attempt:
            shorter = state.session_graph.first(-1)
            state.session_graph = shorter if by == "method" else by_hand(shorter)
        message = {"id": "answer", "role": "Assistant", "parts": [{"kind": "Text", "content": f"attempt {attempt}"}]}
        state.session_graph, state.graph_replace_required = state.session_graph.append_message(message), True
        state.apply_persisted_commit_result(
            await worker.commit_runtime_state(RuntimeCommit.persisted_state(state, [used(input=1)]))
        )
        assert (await full(store)).graph == state.session_graph
    if by == "method":
        assert (sent.deltas, sent.drops) == (["extend"] * 5, [0, 1, 1, 1, 1])
        assert max(sent.bytes) < 1_500
    else:
        assert sent.deltas == ["extend", *["replace"] * 4]


async def test_a_replacement_can_drop_more_nodes_than_one_command_accepts(store, client):
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


async def test_an_update_with_a_replacement_sends_only_new_nodes(store, open_cache):
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
    newest = weakref.ref(known.newest(graph.lineage.base, await log_key_of(store)))
    assert (len(newest()), len(known)) == (4, 1)
    del graph
    gc.collect()
    assert (log(), newest(), len(known)) == (None, None, 0)


async def log_key_of(store: RedisSessionStore) -> str:
    return store._keys.log


@pytest.mark.parametrize("copied", [lambda graph: pickle.loads(pickle.dumps(graph)), copy.deepcopy])
async def test_a_copied_graph_is_sent_whole_at_its_first_commit(copied, store):
    """The copy may have been changed, so its first commit sends every node."""
    await store.commit_runtime_state(commit(None, append("a", "b")))
    sent, read = Sent(store), await full(store)
    graph = copied(read.graph.append_event({}))
    for revision in (1, 2):
        await store.commit_runtime_state(commit(revision, ReplaceFull(graph)))
        assert (await full(store)).graph == graph
        graph = graph.append_event({})
    assert sent.deltas == ["replace", "extend"]


async def test_a_replacement_that_only_adds_nodes_keeps_the_epoch_of_the_log(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    reader, worker = open_cache().session("chat"), open_cache().session("chat")
    before, read = await full(reader), await full(worker)
    epoch = before._origin.head.facts.epoch
    await worker.commit_runtime_state(commit(1, longer(read.graph, node("c", "b"))))
    now = await reader.refresh(before)
    assert ids_of(now) == ["a", "b", "c"]
    assert now._origin.head.facts.epoch == epoch


# Stored content


def exact_json(value: Any) -> str:
    """Text that differs for 1, 1.0 and True. The order of keys is not stored."""
    return json.dumps(value, sort_keys=True)


async def commit_changed_in_place(store: RedisSessionStore, change: Callable[[Any], None]) -> SessionGraph:
    graph = (await full(store)).graph
    change(graph.nodes[1].payload)
    await store.commit_runtime_state(commit(1, longer(graph, node("x", "c"))))
    return graph


def setting_text(text: Any) -> Callable[[Any], None]:
    def change(payload: EventPayload) -> None:
        payload.event["Conversation"]["text"] = text

    return change


IN_PLACE = {
    "another text": setting_text("goodbye"),
    "another type": setting_text(True),
    "an equal number of another type": setting_text(1.0),
    "a nested value": lambda payload: payload.event["Conversation"].update(more=[{"a": 1}]),
    "a removed key": lambda payload: payload.event["Conversation"].pop("text"),
}


@pytest.mark.parametrize("change", IN_PLACE)
@broken_by(KEEPS_ANYTHING)
async def test_changes_in_place_to_a_read_are_stored(change, store, open_cache):
    nodes = [node("a"), replace(node("b", "a"), payload=EventPayload({"Conversation": {"text": 1}})), node("c", "b")]
    await store.commit_runtime_state(commit(None, Append(nodes, "c")))
    graph = await commit_changed_in_place(open_cache().session("chat"), IN_PLACE[change])
    stored = (await full(store)).graph.nodes[1].payload
    assert exact_json(stored.event) == exact_json(graph.nodes[1].payload.event) != exact_json(nodes[1].payload.event)


@broken_by(KEEPS_ANYTHING)
async def test_changes_in_place_to_a_committed_graph_are_stored(store):
    graph = SessionGraph().append_event({"z": [1], "a": 2}).append_plugin("p", {"z": [1], "a": 2})
    event, body = graph.nodes[0].payload.event, graph.nodes[1].payload.body
    changes = (lambda: event["z"].append(5), lambda: body.update(b=1), lambda: event.update(a=2.0), lambda: None)
    for revision, change in enumerate(changes):
        await store.commit_runtime_state(commit(2 * revision, ReplaceFull(graph)))
        change()
        await store.commit_runtime_state(commit(2 * revision + 1, ReplaceFull(graph)))
        stored = (await full(store)).graph.nodes
        assert [exact_json(stored[0].payload.event), exact_json(stored[1].payload.body)] == [
            exact_json(event),
            exact_json(body),
        ]


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
async def test_a_graph_that_keeps_only_some_nodes_replaces_the_whole_graph(changed, store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    nodes = changed((await full(store)).graph.nodes)
    nodes = (*nodes, node("x", nodes[-1].node_id if nodes else None))
    await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(nodes, "x"))))
    assert (await full(store)).graph == SessionGraph(nodes, "x")
    assert ids_of(await store.load_session(ActivePath()))[-1] == "x"


async def test_a_shorter_graph_removes_the_remaining_nodes(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    sent, graph = Sent(store), (await full(store)).graph
    await store.commit_runtime_state(commit(1, ReplaceFull(graph.first(2))))
    assert ids_of(await full(store)) == ["a", "b"]
    await store.commit_runtime_state(commit(2, append("c", parent="b")))
    assert sent.deltas == ["extend", "append"]


@pytest.mark.parametrize("leaf", ["a", "c"])
async def test_the_stored_graph_can_replace_itself_with_any_leaf(leaf, store, client):
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


async def test_a_path_is_kept_only_when_it_is_the_whole_graph(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    sent = Sent(store)
    path = await store.load_session(ActivePath())
    await store.commit_runtime_state(commit(1, longer(path.graph, node("d", "c"))))
    await store.commit_runtime_state(commit(2, append("e", parent="a")))
    path = await store.load_session(ActivePath())
    await store.commit_runtime_state(commit(3, longer(path.graph, node("f", "e"))))
    assert ids_of(await full(store)) == ["a", "e", "f"]
    assert sent.deltas == ["extend", "append", "replace"]


# Dropped nodes

TAIL = [node("c", "a"), node("d", "c"), node("e", "b")]
"""Nodes after `a` and `b`, on two branches."""


async def graph_to_cut(store: RedisSessionStore, **more: Any) -> SessionGraph:
    message = {"Conversation": {"role": "User", "id": "m", "parts": []}}
    users = [replace(each, payload=EventPayload(message)) for each in chain("a", "b")]
    users += [node(f"z{at}", "b") for at in range(3)]
    graph = SessionGraph((*users, *TAIL), "e")
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
async def test_dropped_nodes_are_removed_from_every_key_and_counter(store, cache, open_cache, client):
    graph, sent = await graph_to_cut(store), Sent(store)
    for revision, keeps in enumerate((8, 7, 6, 4, 2, 1), 1):
        await store.commit_runtime_state(commit(revision, edited(graph, keeps)), ttl=100)
        graph = (await full(store)).graph
        assert ids_of(await full(open_cache().session("chat"))) == [each.node_id for each in graph.nodes]
        (line,) = [info async for info in cache.sessions()]
        assert (len(graph.nodes), line.user_message_count) == (keeps, graph.user_message_count())
    assert sent.deltas == ["extend"] * 6
    assert (await open_cache(role="auditor").audit()).problems == ()


@broken_by(Lua("replace", "if facts.first >= base then facts.first = -1 end", ""))
async def test_dropping_the_first_user_message_updates_the_session_listing(store, cache, client):
    def user_message(name: str, parent: str) -> SessionNodeRecord:
        message = {"role": "User", "id": name, "parts": [{"kind": "Text", "content": f"this is {name}"}]}
        return replace(node(name, parent), payload=EventPayload({"Conversation": message}))

    begun = [*chain("a", "b"), user_message("c", "b"), user_message("d", "c")]
    await store.commit_runtime_state(commit(None, Append(begun, "d")))
    graph = (await full(store)).graph
    await store.commit_runtime_state(commit(1, edited(graph, 2, node("x", "b"), user_message("y", "x"))))
    (line,) = [info async for info in cache.sessions()]
    assert (line.first_user_message, line.user_message_count) == ("this is y", 1)
    assert (await facts_of(client))["first"] == 3


async def test_a_refresh_of_a_read_with_dropped_nodes_returns_their_replacements(store, open_cache):
    graph = await graph_to_cut(store)
    reader = open_cache().session("chat")
    reads = [await full(reader), await reader.load_session(ActivePath()), await reader.load_session(ActivePath("d"))]
    await store.commit_runtime_state(commit(1, edited(graph, 6, node("d", "c", text="other"), node("f", "d"))))
    now = [await reader.refresh(read) for read in reads]
    assert ids_of(now[0]) == ["a", "b", "z0", "z1", "z2", "c", "d", "f"]
    assert [ids_of(read) for read in now[1:]] == [["a", "c", "d", "f"], ["a", "c", "d"]]
    assert all(read.graph.find_node("d") == node("d", "c", text="other") for read in now)


@broken_by(Lua("replace", "if drops > 0 or replaces and", "if replaces and"))
async def test_a_path_read_restarts_when_its_end_is_dropped_between_round_trips(store, open_cache):
    graph = await graph_to_cut(store)
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
async def test_a_graph_is_sent_whole_when_the_index_contradicts_the_log(store, client):
    graph, sent = await graph_to_cut(store), Sent(store)
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
async def test_an_undecodable_jump_is_reported_before_any_node_is_dropped(store, client, keyspace):
    graph = await graph_to_cut(store)
    await client.lset(await key_of(client, "jumps"), -1, b"?")
    before = await keyspace()
    with pytest.raises(Corrupt) as raised:
        await store.commit_runtime_state(commit(1, edited(graph, 6)))
    assert raised.value.key == (await key_of(client, "jumps")).decode()
    assert await keyspace() == before


async def test_an_account_without_permission_to_drop_nodes_writes_nothing(real_server):
    client = real_server.account("laws", "loader")
    admin = real_server.client()
    store = sends_once(SessionCache(client, "laws")).session("chat")
    graph = await graph_to_cut(store)
    await admin.execute_command("ACL", "SETUSER", "loader-laws", "-ltrim")
    before = await snapshot(admin)
    with pytest.raises((OutcomeUnknown, BackendError), match="user_script"):
        await store.commit_runtime_state(commit(1, edited(graph, 6, node("f", "c"))))
    assert await snapshot(admin) == before


@broken_by(Lua("replace", "facts.epoch = math.max(facts.epoch + 1, now)", "facts.epoch = facts.epoch + 1"))
async def test_dropping_nodes_sets_the_epoch_of_the_log_to_the_current_time(store, client):
    """The epoch distinguishes logs of equal content that began on different sides of a failover."""
    graph = await graph_to_cut(store)
    for revision, delta in enumerate([edited(graph, 6), replace_full("x", "y"), edited(graph, 2)], 1):
        await plant_fact(client, "epoch", 1)
        await store.commit_runtime_state(commit(revision, delta))
        seconds, micros = await client.time()
        assert 0 <= seconds * 1000 + micros // 1000 - (await facts_of(client))["epoch"] < 60_000


async def test_a_graph_is_sent_whole_when_the_dropped_ids_are_longer_than_its_nodes(store):
    ids = numbered(20)
    long = [f"{at}{'x' * 5_000}" for at in range(10)]
    await store.commit_runtime_state(commit(None, Append([*chain(*ids), *chain(*long, parent=ids[-1])], long[-1])))
    sent, graph = Sent(store), (await full(store)).graph
    await store.commit_runtime_state(commit(1, edited(graph, 20)))
    assert (sent.deltas, ids_of(await full(store))) == (["replace"], [*ids])
    assert sent.bytes[0] < 5_000


async def test_none_as_a_node_is_refused(store):
    graph = await graph_to_cut(store)
    for nodes in ((*graph.nodes[:2], None, *graph.nodes[3:]), (None, *graph.nodes[1:]), (*graph.nodes, None)):
        with pytest.raises(InvalidRecord, match="nodes"):
            await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(nodes, "u"))))


async def test_nodes_may_be_a_sequence_without_slicing(store):
    graph = await graph_to_cut(store)
    nodes = deque([*graph.nodes[:6], node("x", "c")])
    await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(nodes, "x"))))
    await store.commit_runtime_state(commit(2, Append(deque([node("y", "x")]), "y")))
    assert ids_of(await full(store))[6:] == ["x", "y"]


@broken_by(Python("protocol.lineage:KnownLogs.learn", lambda _: lambda *_: None, "forgets what it committed"))
async def test_a_new_handle_for_each_commit_sends_only_new_nodes(open_cache):
    """As long as the graph exists, the cache of the handles records which of its nodes are stored."""
    cache, graph = open_cache(), SessionGraph().append_event({"text": "x" * 500})
    deltas = []
    for revision in range(6):
        handle = cache.session("chat")
        sent = Sent(handle)
        await handle.commit_runtime_state(commit(revision, ReplaceFull(graph)))
        deltas += sent.deltas
        graph = (graph.first(-1) if revision % 2 else graph).append_event({"text": f"{revision}"})
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
async def test_a_damaged_record_can_be_dropped(made, store, client):
    graph = await graph_to_cut(store)
    log = await key_of(client, "log")
    record = await client.lindex(log, 7)
    await client.lset(log, 7, record[:-1] + bytes([record[-1] ^ 1]))
    read, sent = await full(store), Sent(store)
    await store.commit_runtime_state(commit(1, ReplaceFull(made(read.graph))))
    assert (sent.deltas, (await full(store)).graph.nodes) == (["replace"], graph.nodes[:6])


# Tasks that share a read


def rereading(claim: Any) -> Any:
    """`Kept.claim` of the log at the time of sending, instead of the log that was compared."""

    def claimed(kept: Any) -> bytes:
        log, shared, key = kept.log, kept.log.nodes._shared, kept.log.nodes.key
        more = shared.records[len(log) :]
        run = Run.of(timeless_part(record, key, 0) for record in more)
        return bytes(claim.fget(replace(kept, log=log.extended(more, run))))

    return property(claimed)


CLAIMS_AN_UNCOMPARED_LOG = Python("protocol.lineage:Kept.claim", rereading, "reads the log again")

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


def interrupt(store: RedisSessionStore, moment: str, rival: Callable[[], Awaitable[Any]]) -> None:
    """Make the rival's commit at this moment of the next commit of `store`."""
    own = copy.copy(store._namespace)  # a copy, so that other handles are not affected
    publish, run, attempts = store._publisher.publish, own.run_durably, []

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
    store._publisher.publish, store._publisher._namespace = publishing, own  # type: ignore[method-assign]


@pytest.mark.slow
@broken_by(CLAIMS_AN_UNCOMPARED_LOG)
@pytest.mark.parametrize(
    "moment", ["before it", "when it is prepared", "when its first attempt is made", "between its attempts"]
)
async def test_a_replacement_after_a_concurrent_commit_stores_exactly_its_own_graph(moment, cache, open_cache):
    """Both commits come from one read. The replacing handle has read no components, so its first attempt fails."""
    lost = []
    caches = (cache, open_cache())  # the second does not know what the first committed
    for number, (graph_kind, rival_kind, other_cache) in enumerate(product(MADE_OF_A_READ, RIVALS, caches)):
        name = f"chat-{number}"
        reader, replacer = cache.session(name), other_cache.session(name)
        await reader.commit_runtime_state(commit(None, append("a", "z"), session_id=name, checkpoint=STATES))
        read = await full(reader)
        made = commit(None, ReplaceFull(MADE_OF_A_READ[graph_kind](read.graph)), session_id=name)
        other = commit(1, RIVALS[rival_kind](read.graph), session_id=name, checkpoint=read.checkpoint)

        async def rival(reader: RedisSessionStore = reader, other: RuntimeCommit = other) -> None:
            assert (await reader.commit_runtime_state(other)).head_revision == 2

        if moment == "before it":
            await rival()
        interrupt(replacer, moment, rival)
        assert (await replacer.commit_runtime_state(made)).head_revision == 3
        stored = await full(open_cache().session(name))
        if stored.graph != made.graph.graph:
            lost.append((graph_kind, rival_kind))
    assert lost == []
    assert (await open_cache(role="auditor").audit()).problems == ()


@broken_by(CLAIMS_AN_UNCOMPARED_LOG)
async def test_a_replacement_racing_a_commit_of_the_same_read_stores_its_own_graph(cache, open_cache):
    """Both commits are sent at once, without a pause at a chosen moment."""
    for number, rival_kind in enumerate(RIVALS):
        name = f"chat-{number}"
        reader, replacer = cache.session(name), cache.session(name)
        await reader.commit_runtime_state(commit(None, append("a", "z"), session_id=name, checkpoint=STATES))
        read = await full(reader)
        made = commit(None, ReplaceFull(read.graph.append_event({})), session_id=name)
        other = commit(1, RIVALS[rival_kind](read.graph), session_id=name, checkpoint=read.checkpoint)
        results = await asyncio.gather(
            reader.commit_runtime_state(other), replacer.commit_runtime_state(made), return_exceptions=True
        )
        assert not isinstance(results[1], BaseException)
        stored = await full(open_cache().session(name))
        if isinstance(results[0], HeadRevisionConflict):
            assert stored.head_revision == 2
        else:
            assert (results[0].head_revision, results[1].head_revision) == (2, 3)
        assert stored.graph == made.graph.graph, rival_kind


@broken_by(TRUSTS_THE_HEAD)
async def test_a_graph_of_an_outdated_read_is_sent_whole(cache, open_cache):
    reader, replacer = cache.session("chat"), open_cache().session("chat")
    await reader.commit_runtime_state(commit(None, append("a", "z")))
    read = await full(reader)
    await reader.commit_runtime_state(commit(1, append("b", parent="z")))
    sent, made = Sent(replacer), ReplaceFull(read.graph.append_event({}))
    await replacer.commit_runtime_state(commit(None, made))
    assert sent.deltas == ["extend", "replace"]
    assert (await full(open_cache().session("chat"))).graph == made.graph


def with_any_epoch(committed: Any) -> Any:
    def known(prepared: Any, key: str, epoch: int) -> Any:
        known_before = prepared.log and replace(prepared.log, epoch=epoch)
        return committed(replace(prepared, log=known_before), key, epoch)

    return known


async def recreated(cache: SessionCache, client: Any) -> tuple[RedisSessionStore, SessionGraph]:
    """Return a store, and the graph it read before the session was recreated by a commit of the same id."""
    store = cache.session("chat")
    original = commit(None, Append([replace(node("a"), timestamp="old"), node("b", "a")], "b"), commit_id="c1")
    await store.commit_runtime_state(original)
    graph = (await full(store)).graph
    await client.delete(*await client.keys("*"))
    restart = replace(original, graph=Append([replace(node("a"), timestamp="new"), node("b", "a")], "b"))
    await cache.session("chat").commit_runtime_state(restart)
    return store, graph


@broken_by(Python("session.publish:log_after", with_any_epoch, "accepts the log of another epoch"))
async def test_an_append_to_a_recreated_session_does_not_validate_an_older_read(cache, client):
    """The recreated session has the same revision, the same commit id and the same size."""
    store, graph = await recreated(cache, client)
    await plant_fact(client, "epoch", graph.lineage.base.epoch + 1)
    await store.commit_runtime_state(commit(1, append("c", parent="b"), builds_on="c1"))
    await store.commit_runtime_state(commit(2, longer(graph, node("c", "b"), node("d", "c"))))
    nodes = (await full(store)).graph.nodes
    assert (nodes[0], [each.node_id for each in nodes]) == (replace(node("a"), timestamp="old"), ["a", "b", "c", "d"])


# Changes without a new head


SEES_NO_TOMBSTONE = Lua("replace", "if later > 0 then", "if false then")


@pytest.mark.parametrize("vacuumed", [False, True])
@pytest.mark.parametrize("who", ["this handle", "another process"])
@pytest.mark.parametrize("scope", [FullGraph(), ActivePath()], ids=["graph", "path"])
@pytest.mark.parametrize("has_earlier", [False, True], ids=["the first", "not the first"])
@broken_by(SEES_NO_TOMBSTONE)
async def test_a_replacement_that_would_bring_back_later_tombstones_is_refused(
    who, vacuumed, scope, has_earlier, store, open_cache, keyspace
):
    await store.commit_runtime_state(commit(None, append("a", "b", "c", "x")))
    if has_earlier:
        await store.commit_runtime_state(commit(1, Unchanged("c")))
        await store.tombstone_nodes(["x"])
    expected = 2 if has_earlier else 1
    graph = (await store.load_session(scope)).graph
    other = store if who == "this handle" else open_cache().session("chat")
    await other.tombstone_nodes(["b", "c"])
    if vacuumed:
        await other.vacuum()
    before = await keyspace()
    for replacement in (longer(graph, node("d", "a")), ReplaceFull(graph), ReplaceFull(graph.first(1))):
        for revision in (expected, None):
            with pytest.raises(NodesTombstoned) as refused:
                await store.commit_runtime_state(commit(revision, replacement))
            assert (refused.value.actual, refused.value.count) == (expected, 2)
    assert await keyspace() == before


async def test_a_retry_is_answered_although_nodes_were_tombstoned_since(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    made = commit(1, longer((await full(store)).graph, node("c", "b")))
    await store.commit_runtime_state(made)
    await store.tombstone_nodes(["a"])
    assert (await store.commit_runtime_state(made)).replayed


async def unrefreshed(_reader, read):
    return read


@broken_by(Python("session.reader:Reader.refresh", lambda _: unrefreshed, "keeps the graph of the read"))
@pytest.mark.parametrize("hidden", ["b", "x"], ids=["on the path", "off the path"])
@pytest.mark.parametrize("scope", [FullGraph(), ActivePath()], ids=["graph", "path"])
async def test_update_replaces_the_graph_after_a_refresh_that_saw_the_tombstones(hidden, scope, store, open_cache):
    await store.commit_runtime_state(commit(None, append("a", "b", "x")))
    await store.commit_runtime_state(commit(1, Append([node("y", "a")])))
    read = await store.load_session(scope)
    await open_cache().session("chat").tombstone_nodes([hidden])
    shown = []

    def turn(now):
        shown.append(ids_of(now))
        return commit(None, ReplaceFull(now.graph.append_event({"turn": len(shown)})))

    await store.update(turn, since=read)
    assert len(shown) == 1
    assert hidden not in ids_of(await full(store))


async def test_a_graph_that_was_put_together_by_hand_brings_a_node_back(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    graph = (await full(store)).graph
    await store.tombstone_nodes(["b"])
    await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(tuple(graph.nodes), "b"))))
    assert ids_of(await full(store)) == ["a", "b"]


@broken_by(Lua("replace", "facts.epoch == epoch and ", ""))
async def test_a_replacement_of_a_recreated_session_stores_the_whole_graph(cache, client):
    """The recreated session has the same revision, the same commit id and the same size."""
    store, graph = await recreated(cache, client)
    await store.commit_runtime_state(commit(1, longer(graph, node("c", "b")), builds_on="c1"))
    assert list((await full(store)).graph.nodes) == [
        replace(node("a"), timestamp="old"),
        node("b", "a"),
        node("c", "b"),
    ]


@broken_by(TRUSTS_THE_HEAD, Lua("replace", "and string.sub(redis.call('LINDEX', log, -1), -4) == mark", ""))
async def test_a_replacement_of_a_log_changed_by_a_failover_stores_the_whole_graph(store, client):
    """The lost commit was sent again with another timestamp, which the head does not contain."""
    await store.commit_runtime_state(commit(None, Append(chain("a", "b", timestamp="early"), "b")))
    graph = (await full(store)).graph
    log = await key_of(client, "log")
    record = await client.lindex(log, -1)
    await client.lset(log, -1, record[:-4] + bytes(4))
    await store.commit_runtime_state(commit(1, longer(graph, node("c", "b"))))
    assert list((await full(store)).graph.nodes) == [*chain("a", "b", timestamp="early"), node("c", "b")]


async def test_a_replacement_that_decodes_a_damaged_record_raises_corrupt(store, client):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    log = await key_of(client, "log")
    record = await client.lindex(log, 0)
    await client.lset(log, 0, record[:-1] + bytes([record[-1] ^ 1]))
    read = await full(store)
    with pytest.raises(Corrupt):
        await store.commit_runtime_state(commit(1, ReplaceFull(by_hand(read.graph))))


async def test_a_replacement_keeps_a_damaged_record_that_was_not_accessed(store, client):
    """A commit does not read the records that it keeps. Every read reports the damage."""
    await store.commit_runtime_state(commit(None, append("a", "b")))
    log = await key_of(client, "log")
    record = await client.lindex(log, 0)
    await client.lset(log, 0, record[:-1] + bytes([record[-1] ^ 1]))
    graph = (await full(store)).graph.append_event({})
    await store.commit_runtime_state(commit(1, ReplaceFull(graph)))
    with pytest.raises(Corrupt, match="record 0 does not match its checksum"):
        list((await full(store)).graph.nodes)


# Retries


DIGESTS_NEW_NODES_ONLY = Python(
    "protocol.commands.prepared_commit:_nodes_in_meaning",
    lambda _: lambda prepared: (len(prepared.records), *Sum().plus(prepared.run, 0)),
    "computes the digest of the new nodes only",
)


async def two_handles(store, open_cache) -> tuple[RedisSessionStore, RedisSessionStore, RuntimeCommit]:
    """Return a handle that has read the session, one that has not, and a replacement that keeps all nodes."""
    await store.commit_runtime_state(commit(None, append("a", "b")))
    informed, uninformed = open_cache().session("chat"), open_cache().session("chat")
    graph = (await full(informed)).graph.append_plugin("p", {"b": 1, "a": 2}).append_event({"é": [1.5, None]})
    return informed, uninformed, commit(1, ReplaceFull(graph), checkpoint=STATES, usage_deltas=[used(input=5)])


STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


@pytest.mark.parametrize("keeps", [200, 150, 129, 128, 127])
@pytest.mark.parametrize("first", ["kept", "whole"])
@broken_by(DIGESTS_NEW_NODES_ONLY)
async def test_a_replacement_that_drops_nodes_is_a_retry_whether_sent_whole_or_in_part(first, keeps, store, open_cache):
    await store.commit_runtime_state(commit(None, append(*numbered(200))))
    workers = {"kept": open_cache().session("chat"), "whole": open_cache().session("chat")}
    graph = (await full(workers["kept"])).graph
    for _ in range(2):  # the second round reuses the hashes of the first
        made = commit(1, edited(graph, keeps, node("x", numbered(9)[8])), commit_id="c")
        sends = [(workers["kept"], made), (workers["whole"], RuntimeCommit.from_json(made.to_json()))]
        results = [await worker.commit_runtime_state(each) for worker, each in sends[:: 1 if first == "kept" else -1]]
        assert {result.head_revision for result in results} == {2}
        assert results[1].replayed


@pytest.mark.parametrize("first", ["kept", "whole"])
@broken_by(DIGESTS_NEW_NODES_ONLY)
async def test_a_replacement_that_adds_nodes_is_a_retry_whether_sent_whole_or_in_part(
    first, store, open_cache, keyspace
):
    informed, uninformed, made = await two_handles(store, open_cache)
    seen, whole = Sent(informed), RuntimeCommit.from_json(made.to_json())
    sends = [(informed, made), (uninformed, whole)] if first == "kept" else [(uninformed, whole), (informed, made)]
    result = await sends[0][0].commit_runtime_state(sends[0][1])
    before = await keyspace()
    assert await sends[1][0].commit_runtime_state(sends[1][1]) == replace(result, replayed=True)
    assert await sends[0][0].commit_runtime_state(sends[0][1]) == replace(result, replayed=True)
    assert seen.deltas[0] == "extend"
    assert await keyspace() == before
    read = await full(store)
    assert (read.graph, read.token_ledger, read.head_revision) == (made.graph.graph, (used(input=5),), 2)


async def test_a_commit_id_reused_with_another_graph_is_refused(store, open_cache):
    informed, uninformed, made = await two_handles(store, open_cache)
    await informed.commit_runtime_state(made)
    others = [
        replace(made, graph=longer(made.graph.graph, node("more"))),
        replace(made, graph=Append(made.graph.graph.nodes[2:], made.graph.leaf_node_id)),
        replace(made, graph=replace_full("a", "b")),
    ]
    for other in others:
        for each in (informed, uninformed):
            with pytest.raises(CommitIdReused):
                await each.commit_runtime_state(other)


# Refusals


def extending(*nodes: SessionNodeRecord, leaf: str | None) -> Callable[[SessionGraph], SessionGraph]:
    return lambda graph: graph._extended(nodes, leaf)


def cutting(*nodes: SessionNodeRecord, leaf: str | None) -> Callable[[SessionGraph], SessionGraph]:
    return lambda graph: graph.first(2)._extended(nodes, leaf)


FAULTS = {
    "an id that is kept": (extending(node("a", "c"), leaf="a"), NodeIdCollision),
    "a duplicate id": (extending(node("x", "c"), node("x", "c"), leaf="x"), NodeIdCollision),
    "both": (extending(node("x", "c"), node("a", "c"), node("x", "c"), leaf="x"), NodeIdCollision),
    "both in reverse order": (extending(node("x", "c"), node("x", "c"), node("a", "c"), leaf="x"), NodeIdCollision),
    "a parent that is unknown": (extending(node("x", "c"), node("y", "?"), leaf="y"), InvalidParent),
    "a parent that comes later": (extending(node("x", "y"), node("y", "c"), leaf="y"), InvalidParent),
    "an unknown and a later parent": (
        extending(node("w", "?"), node("x", "y"), node("y", "c"), leaf="y"),
        InvalidParent,
    ),
    "an id that is kept and a parent": (extending(node("x", "?"), node("a", "c"), leaf="a"), NodeIdCollision),
    "a leaf that is unknown": (extending(node("x", "c"), leaf="?"), InvalidLeaf),
    "no leaf": (extending(node("x", "c"), leaf=None), InvalidLeaf),
    "a parent and no leaf": (extending(node("x", "?"), leaf=None), InvalidParent),
    "a parent and an unknown leaf": (extending(node("x", "?"), leaf="y"), InvalidLeaf),
    "a parent that is dropped": (cutting(node("x", "c"), leaf="x"), InvalidParent),
    "a leaf that is dropped": (cutting(node("x", "b"), leaf="c"), InvalidLeaf),
    "an id that is kept, and one that is dropped": (cutting(node("c", "b"), node("a", "b"), leaf="c"), NodeIdCollision),
}


def trusting(reply):
    return lambda call, prepared, *more: reply(call, replace(prepared, kept=None), *more)


@broken_by(Python("protocol.commands.commit:reply", trusting, "trusts the refusal of a part"))
async def test_a_partial_replacement_is_refused_for_the_fault_of_the_whole_graph(store, open_cache, keyspace):
    await _check_same_refusal("a parent and an unknown leaf", store, open_cache, keyspace)


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_invalid_replacement_is_refused_alike_whether_sent_whole_or_in_part(
    fault, store, open_cache, keyspace
):
    await _check_same_refusal(fault, store, open_cache, keyspace)


async def _check_same_refusal(fault: str, store, open_cache, keyspace) -> None:
    build, error = FAULTS[fault]
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    informed, uninformed = open_cache().session("chat"), open_cache().session("chat")
    read, before, refusals = await full(informed), await keyspace(), []
    grown = build(read.graph)
    for each, graph in ((informed, grown), (uninformed, by_hand(grown))):
        for expected in (1, 7):
            with pytest.raises(error if expected == 1 else HeadRevisionConflict) as refused:
                await each.commit_runtime_state(commit(expected, ReplaceFull(graph)))
            refusals.append((type(refused.value), str(refused.value)))
    assert refusals[:2] == refusals[2:]
    assert await keyspace() == before
    await informed.commit_runtime_state(commit(1, longer(read.graph, node("d", "c"))))
    assert ids_of(await full(store)) == ["a", "b", "c", "d"]


async def test_one_of_two_replacements_that_keep_the_same_nodes_conflicts(store, open_cache):
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


async def test_a_partial_replacement_reports_its_fault_when_the_whole_exceeds_a_limit(open_cache):
    store = open_cache(max_commit_nodes=3).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.commit_runtime_state(commit(1, append("d", parent="c")))
    graph, sent = (await full(store)).graph, Sent(store)
    faults = [
        (node("x", "?"), InvalidParent), (node("y", "y"), InvalidParent), (node("a", "d"), NodeIdCollision),
    ]  # fmt: skip
    for added, error in faults:
        with pytest.raises(error):
            await store.commit_runtime_state(commit(2, longer(graph, added)))
    with pytest.raises(InvalidLeaf):
        await store.commit_runtime_state(commit(2, ReplaceFull(graph.with_leaf("?"))))
    assert "replace" not in sent.deltas


# Equal effects of partial and whole replacements


def visible(read: PersistedSessionRead | None) -> Any:
    if read is None:
        return None
    nodes = [(each.node_id, each.parent_node_id, each.timestamp, repr(each.payload)) for each in read.graph.nodes]
    return read.head_revision, read.graph.leaf_node_id, nodes, read.token_ledger, read.checkpoint_ref


async def all_reads(store: RedisSessionStore, ids: Sequence[str]) -> list[Any]:
    seen: list[Any] = []
    for scope in (FullGraph(), ActivePath(), *map(ActivePath, ids)):
        try:
            seen.append(visible(await store.load_session(scope)))
        except StoreError as error:
            seen.append((type(error), str(error).replace(store.session_id, "it")))
    return seen + [await store.load_node(each) for each in ids]


@pytest.mark.slow
@pytest.mark.parametrize("checks", ["strict", "lenient"])
@pytest.mark.parametrize("seed", range(4))
async def test_partial_and_whole_replacements_have_the_same_visible_effects(seed, checks, open_cache):
    """Two sessions get the same random commits: one from a handle with its reads, the other from handles without."""
    dice = random.Random(f"{seed} {checks}")
    cache = open_cache(graph_checks=checks)
    informed, plain = cache.session("chat-1"), open_cache(graph_checks=checks).session("chat-2")
    sent, read, ids = Sent(informed), None, [f"n{at}" for at in range(300)]

    async def both(graph: Any, expected: int | None, commit_id: str) -> None:
        answers = []
        for store in (informed, plain):
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
        read = await (informed.load_session(FullGraph()) if read is None else informed.refresh(read))
        graph = SessionGraph() if read is None else read.graph
        if dice.random() < 0.5:
            with suppress(Corrupt):  # lenient checks allow a node to be its own ancestor
                graph.read_model()
        live = [each.node_id for each in graph.nodes]
        fresh = dice.sample([each for each in ids if each not in live or dice.random() < 0.05], dice.randrange(4))
        added: list[SessionNodeRecord] = []
        for each in fresh:
            parents = [None, *live, *(other.node_id for other in added)] + ["?"] * (dice.random() < 0.1)
            message = {"Conversation": {"role": dice.choice(["User", "Assistant"]), "id": each, "parts": [step]}}
            added.append(SessionNodeRecord(each, dice.choice(parents[-4:]), f"t{step}", EventPayload(message)))
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
                await informed.tombstone_nodes(hidden)
                await plain.tombstone_nodes(hidden)
                read = await informed.refresh(read)
                graph = read.graph
                await both(ReplaceFull(graph._extended(added, leaf)), revision, f"c{step}")
            case "vacuum":
                assert await informed.vacuum() == await plain.vacuum()
            case "change" if live:
                dice.choice(graph.nodes).payload.event["Conversation"]["parts"].append(step)
                await both(ReplaceFull(graph._extended(added, leaf)), revision, f"c{step}")
                read = None
            case "again":
                for _ in range(2):
                    await both(ReplaceFull(graph._extended(added, leaf)), revision, f"c{step}")
        assert await all_reads(informed, ids[:9]) == await all_reads(plain, ids[:9])
    assert {"extend", "replace"} <= set(sent.deltas)
    assert any(sent.drops) or checks == "lenient"  # a graph with links by id is sent whole
    lines = [info async for info in cache.sessions()]
    assert lines[0].first_user_message == lines[1].first_user_message
    assert lines[0].user_message_count == lines[1].user_message_count > 0
    assert (await open_cache(role="auditor").audit()).problems == ()
