"""A page is a part of an active path, of one revision, for a cost that does not depend on the length of the path."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from lash_redis import (
    ActivePath,
    Append,
    Corrupt,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    InvalidRecord,
    PersistedSessionRead,
    PersistedSessionState,
    ReplaceFull,
    RuntimeCommit,
    SessionGraph,
    Unchanged,
    refresh_persisted_session_state,
)
from lash_redis.protocol.commands import pages
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import (
    append,
    chain,
    commit,
    ids_of,
    key_of,
    node,
    numbered,
    plugins,
    tools,
    used,
)

STATES = HydratedSessionCheckpoint(plugin_snapshot=plugins(), execution_state=b"1")


def page(read):
    return ids_of(read), read.is_partial, read.graph.leaf_node_id


async def alphabet(store):
    """`a` to `j` in a line, then `x` and `y` below `c`. The leaf is `j`."""
    await store.commit_runtime_state(commit(None, append(*"abcdefghij"), checkpoint=STATES))
    await store.commit_runtime_state(commit(1, Append(chain("x", "y", parent="c"), "j"), checkpoint=STATES))


async def accessed(store, scope):
    """The payloads of a page, each of which is verified when it is accessed."""
    return [each.payload for each in (await store.load_session(scope)).graph.nodes]


# What a page contains


@broken_by(
    Lua("page", "at - (limit - count) + 1", "at - limit + count"),
    Lua("page", "at = start < following and following - 1 or parent", "at = following"),
    Lua("page", "from > start and from - 1 or parent", "parent"),
)
async def test_a_page_is_the_end_of_the_path_or_what_is_before_a_node(store):
    await alphabet(store)
    for scope, expected in (
        (ActivePath(limit=3), (["h", "i", "j"], True, "j")),
        (ActivePath(limit=3, before="h"), (["e", "f", "g"], True, "g")),
        (ActivePath(limit=3, before="d"), (["a", "b", "c"], False, "c")),
        (ActivePath(limit=3, before="b"), (["a"], False, "a")),
        (ActivePath(limit=3, before="a"), ([], False, None)),
        (ActivePath(before="c"), (["a", "b"], False, "b")),
        (ActivePath(limit=10), ([*"abcdefghij"], False, "j")),
        (ActivePath(limit=2**70), ([*"abcdefghij"], False, "j")),
        (ActivePath("y", limit=1), (["y"], True, "y")),
        (ActivePath("y", limit=3), (["c", "x", "y"], True, "y")),
        (ActivePath("y", limit=2, before="y"), (["c", "x"], True, "x")),
        (ActivePath("y", limit=2, before="x"), (["b", "c"], True, "c")),
        (ActivePath("y", limit=9), ([*"abcxy"], False, "y")),
        (ActivePath("unknown", limit=2), ([], False, "unknown")),
    ):
        assert page(await store.load_session(scope)) == expected, scope


async def test_a_page_has_the_head_the_components_and_the_ledger(store):
    made = commit(None, append("a", "b"), checkpoint=replace(STATES, tool_state=tools()), usage_deltas=[used(input=3)])
    await store.commit_runtime_state(made)
    read = await store.load_session(ActivePath(limit=1))
    whole = await store.load_session(ActivePath())
    assert read.checkpoint == whole.checkpoint
    assert read.checkpoint.execution_state == b"1"
    assert read.token_ledger == (used(input=3),)
    assert (read.head_revision, read.commit_id, read.scope) == (1, made.commit_id, ActivePath(limit=1))


@pytest.mark.parametrize("scope", [ActivePath(limit=1), ActivePath(before="a")])
async def test_a_page_of_a_session_without_a_head_is_none(scope, store):
    assert await store.load_session(scope) is None


@broken_by(
    Lua("page", "if following < 0 or at < following then return {'off', session} end", "if at < 0 then break end"),
    Lua("page", "start, parent = piece_up_to(at)\n    local", "start, parent = 0, -1\n    local"),
)
async def test_a_page_before_what_is_not_on_the_path_is_refused_by_name(store):
    await alphabet(store)
    await store.tombstone_nodes(["e"])
    for scope in (
        ActivePath(before="unknown"),
        ActivePath(before="x"),
        ActivePath(limit=1, before="e"),
        ActivePath(limit=1, before="d"),
        ActivePath("d", limit=1, before="f"),
        ActivePath("unknown", before="a"),
    ):
        with pytest.raises(InvalidRecord) as refused:
            await store.load_session(scope)
        assert refused.value.field == "ActivePath.before"


@broken_by(Lua("page", "if leaf == '' and at >= 0 and is_gone(at) then return {'far', session} end", ""))
async def test_a_page_to_a_leaf_that_is_tombstoned_or_freed_is_an_invalid_leaf(store):
    await alphabet(store)
    await store.tombstone_nodes(["j"])
    for _ in range(2):
        with pytest.raises(InvalidLeaf):
            await store.load_session(ActivePath(limit=2))
        assert page(await store.load_session(ActivePath("i", limit=2))) == (["h", "i"], True, "i")
        await store.vacuum()


@broken_by(
    Lua("page", "return hidden[tomb] + 1, -1", "return start, parent"),
    Lua("page", "earlier >= 0 and not is_gone(earlier) and 1 or 0", "earlier >= 0 and 1 or 0"),
    Lua("page", "if record == '' then return {'off'} end", ""),
)
async def test_a_path_that_ends_at_a_tombstone_is_not_partial_and_ends_there_after_a_vacuum_too(store):
    await alphabet(store)
    await store.commit_runtime_state(commit(2, Append([node("k", "c")], "k"), checkpoint=STATES))
    await store.tombstone_nodes(["c", "f"])
    for _ in range(2):
        assert page(await store.load_session(ActivePath("j", limit=3))) == (["h", "i", "j"], True, "j")
        assert page(await store.load_session(ActivePath("j", limit=4))) == (["g", "h", "i", "j"], False, "j")
        assert page(await store.load_session(ActivePath("j", limit=5))) == (["g", "h", "i", "j"], False, "j")
        assert page(await store.load_session(ActivePath("j", before="h"))) == (["g"], False, "g")
        assert page(await store.load_session(ActivePath("j", before="g"))) == ([], False, None)
        assert page(await store.load_session(ActivePath(limit=1))) == (["k"], False, "k")
        with pytest.raises(InvalidRecord, match=r"ActivePath\.before"):
            await store.load_session(ActivePath("j", before="e"))
        await store.vacuum()


@pytest.mark.parametrize(
    ("field", "scope"),
    [
        ("limit", ActivePath(limit=0)),
        ("limit", ActivePath(limit=True)),
        ("limit", ActivePath(limit=1.0)),  # type: ignore[arg-type]
        ("limit", ActivePath(limit="2")),  # type: ignore[arg-type]
        ("before", ActivePath(before="")),
        ("before", ActivePath(before=1)),  # type: ignore[arg-type]
    ],
)
async def test_a_scope_with_an_invalid_field_is_refused_by_its_name(field, scope, store):
    with pytest.raises(InvalidRecord) as refused:
        await store.load_session(scope)
    assert refused.value.field == f"ActivePath.{field}"


def test_a_scope_without_a_page_has_the_json_that_it_always_had():
    assert ActivePath("a").to_json() == {"ActivePath": {"leaf_node_id": "a"}}
    assert ActivePath.from_json({"ActivePath": {"leaf_node_id": "a"}}) == ActivePath("a")
    scope = ActivePath("a", 20, "m81")
    assert scope.to_json() == {"ActivePath": {"leaf_node_id": "a", "limit": 20, "before": "m81"}}
    assert ActivePath.from_json(scope.to_json()) == scope


@broken_by(
    Python(
        "protocol.commands.pages:_spans_behind",
        lambda real: lambda first, leaf, limit, links: real(first, leaf, limit, [(0, -1)]),
        "takes the end of the log for one line",
    ),
    Python(
        "protocol.commands.pages:_spans_behind",
        lambda real: lambda first, leaf, limit, links: real(first, leaf, limit, [(0, -1), *links[1:]]),
        "takes the jumps that it read for all jumps",
    ),
)
async def test_pages_at_any_leaf_of_a_random_graph_are_the_ends_of_its_path(store, monkeypatch):
    monkeypatch.setattr(pages, "LAST_JUMPS", 2)
    chance = random.Random(16)
    names = numbered(60)
    await store.commit_runtime_state(commit(None, append(names[0])))
    for at, name in enumerate(names[1:], 1):
        parent = names[at - 1] if chance.random() < 0.6 else chance.choice(names[:at])
        leaf = name if chance.random() < 0.8 else chance.choice(names[:at])
        await store.commit_runtime_state(commit(None, Append([node(name, parent)], leaf)))
        path = ids_of(await store.load_session(ActivePath()))
        for limit in (1, 3, 12):
            read = await store.load_session(ActivePath(limit=limit))
            assert (ids_of(read), read.is_partial) == (path[-limit:], len(path) > limit)


# Large sessions


@broken_by(
    Lua("page", "if start <= position then", "if start < position then"),
    Lua("page", "if now.jumps - low >= work then return nil, {'far'} end", "if low < now.jumps then return 0, -1 end"),
)
async def test_a_page_behind_hundreds_of_branches_is_the_same_by_the_script_and_by_a_cut(store, monkeypatch):
    """Each of the nodes `n000002` and so on has a sibling after it in the log, so every node of the path is a jump."""
    ids = numbered(400)
    nodes = [node(ids[0])]
    for above, each in pairwise(ids):
        nodes += [node(f"other-{each}", above), node(each, above)]
    await store.commit_runtime_state(commit(None, Append(nodes, ids[-1])))
    for work in (1000, 100):
        monkeypatch.setattr(pages, "WORK", work)
        assert page(await store.load_session(ActivePath(limit=3))) == ([*ids[-3:]], True, ids[-1])
        assert page(await store.load_session(ActivePath(limit=3, before=ids[50]))) == ([*ids[47:50]], True, ids[49])
        assert page(await store.load_session(ActivePath(before=ids[3]))) == ([*ids[:3]], False, ids[2])
        assert page(await store.load_session(ActivePath(ids[2], limit=2))) == ([*ids[1:3]], True, ids[2])


@broken_by(Python("protocol.commands.paths:path_of", lambda _: lambda *_: None, "always reads the whole path"))
async def test_a_page_of_a_line_is_one_round_trip_and_one_of_1000_nodes_before_another_is_two(proxy, through_proxy):
    cache = through_proxy()
    ids = numbered(1200)
    await cache.session("chat").commit_runtime_state(commit(None, append(*ids)))
    await cache.session("chat").load_session(ActivePath(limit=1, before=ids[1]))  # the first call sends the script
    trips = []
    for scope, expected in (
        (ActivePath(limit=20), ids[1180:]),
        (ActivePath(limit=20, before=ids[100]), ids[80:100]),
        (ActivePath(limit=500), ids[700:]),
        (ActivePath(limit=501), ids[699:]),
        (ActivePath(before=ids[1000]), ids[:1000]),
    ):
        with proxy.measure() as seen:
            read = await cache.session("chat").load_session(scope)
        assert ids_of(read) == [*expected]
        trips.append(seen.round_trips)
    assert trips == [1, 1, 1, 1, 2]


async def test_a_page_moves_as_many_bytes_in_a_long_session_as_in_a_short_one(proxy, through_proxy):
    cache, received = through_proxy(), {}
    for count in (30, 3000):
        session = f"{count:04}"
        made = commit(None, append(*numbered(count)), session_id=session)
        await cache.session(session).commit_runtime_state(made)
        with proxy.measure() as seen:
            await cache.session(session).load_session(ActivePath(limit=20, before=numbered(count)[25]))
        received[count] = seen.bytes_received
    assert received[3000] <= received[30] + 40  # longer numbers


@broken_by(Python("session.reader:Reader._plan", lambda _: plan_in_two_steps, "reads the head in another round trip"))
async def test_a_page_read_during_commits_has_one_revision(open_cache):
    last = 40

    def revision(number):
        state = HydratedSessionCheckpoint(execution_state=f"{number}".encode())
        parent = f"n{number - 1}" if number > 1 else None
        return commit(number - 1, append(f"n{number}", parent=parent), checkpoint=state)

    async def write():
        store = open_cache().session("chat")
        for number in range(2, last + 1):
            await store.commit_runtime_state(revision(number))

    async def read():
        seen, store = 0, open_cache().session("chat")
        while seen < last:
            found = await store.load_session(ActivePath(limit=3))
            seen = found.head_revision
            assert ids_of(found) == [f"n{at}" for at in range(max(1, seen - 2), seen + 1)]
            assert (found.graph.leaf_node_id, found.is_partial) == (f"n{seen}", seen > 3)
            assert found.checkpoint.execution_state == f"{seen}".encode()
            await asyncio.sleep(0)

    await open_cache().session("chat").commit_runtime_state(revision(1))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        tasks.create_task(read())


async def plan_in_two_steps(self, scope):
    """Take the head of the page from one moment, and its nodes from another."""

    async def plan():
        call = pages.call(self._keys, scope)
        return pages.plan(call, self._keys, scope, await self._namespace.run(call, writes=False))

    first = await plan()
    await asyncio.sleep(0.001)
    return self._with_path(replace(await plan(), head=first.head))


# Damage


@broken_by(
    Python("protocol.commands.paths:check_path", lambda _: lambda *_, **__: None, "does not compare the links"),
    Python("protocol.commands.pages:check_id", lambda _: lambda *_: None, "does not compare the node `before`"),
)
async def test_a_page_of_damaged_data_names_the_key(store, client):
    await alphabet(store)
    log, nodes, jumps = [await key_of(client, family) for family in ("log", "nodes", "jumps")]
    stored = await client.lrange(log, 0, -1)

    async def fault(scope):
        with pytest.raises(Corrupt) as refused:
            await accessed(store, scope)
        return refused.value.key.encode()

    await client.lset(log, 9, stored[8])  # the leaf's record is another's
    assert await fault(ActivePath(limit=2)) == log
    await client.lset(log, 9, stored[9])
    await client.lset(log, 7, stored[7][:-1] + b"?")
    assert await fault(ActivePath(limit=3)) == log
    await client.lset(log, 7, stored[7])
    await client.hset(nodes, "g", 4)
    assert await fault(ActivePath(limit=2, before="g")) == log
    await client.hset(nodes, "g", 12)
    assert await fault(ActivePath(limit=2, before="g")) == nodes
    assert await fault(ActivePath("g", limit=2)) == nodes
    await client.hset(nodes, "g", 6)
    await client.lset(jumps, 0, "10:4")  # `x` is a child of `c`, at 2
    assert await fault(ActivePath("y", limit=3)) == jumps
    for unreadable in ("10:", "10:11", ""):
        await client.lset(jumps, 0, unreadable)
        assert await fault(ActivePath("y", limit=3)) == jumps
    await client.lset(jumps, 0, "10:2")
    assert page(await store.load_session(ActivePath("y", limit=3))) == (["c", "x", "y"], True, "y")


async def test_links_by_id_alone_give_pages_too(lenient):
    await lenient.commit_runtime_state(commit(None, append("a", "b", "c")))
    await lenient.commit_runtime_state(commit(1, Append([node("e", "d")], "c")))
    await lenient.commit_runtime_state(commit(2, Append([node("d", "c")], "e")))
    assert page(await lenient.load_session(ActivePath(limit=2))) == (["d", "e"], True, "e")
    assert page(await lenient.load_session(ActivePath(limit=2, before="d"))) == (["b", "c"], True, "c")
    assert page(await lenient.load_session(ActivePath(before="b"))) == (["a"], False, "a")
    with pytest.raises(InvalidRecord, match=r"ActivePath\.before"):
        await lenient.load_session(ActivePath("c", before="d"))


# Refresh


@broken_by(Python("protocol.commands.reads:origin_of", lambda _: lambda _: None, "loads the graph instead"))
async def test_a_refreshed_page_keeps_its_beginning_and_gets_what_is_new(store, open_cache, monkeypatch):
    await alphabet(store)
    read = await store.load_session(ActivePath(limit=3))
    assert await store.refresh(read) is read
    await open_cache().session("chat").commit_runtime_state(commit(2, append("k", "l", parent="j"), checkpoint=STATES))
    loads = []
    monkeypatch.setattr(store._reader, "load", lambda scope, **_: loads.append(scope))
    now = await store.refresh(pickle.loads(pickle.dumps(read)))
    assert page(now) == (["h", "i", "j", "k", "l"], True, "l")
    assert (now.scope, now.head_revision) == (ActivePath(limit=3), 3)
    await open_cache().session("chat").commit_runtime_state(commit(3, append(*numbered(100), parent="l")))
    now = await store.refresh(now)
    assert page(now) == (["h", "i", "j", "k", "l", *numbered(100)], True, "n000099")
    assert loads == []


@broken_by(
    Python(
        "models.head:ActivePath.is_page",
        lambda _: property(lambda scope: scope.before is not None),
        "refreshes a page as a path",
    )
)
async def test_a_page_that_a_refresh_cannot_extend_is_loaded_again(store):
    await alphabet(store)
    read = await store.load_session(ActivePath(limit=3))
    await store.commit_runtime_state(commit(2, Unchanged("y"), checkpoint=STATES))
    assert page(await store.refresh(read)) == (["c", "x", "y"], True, "y")
    await store.commit_runtime_state(commit(3, Unchanged("i"), checkpoint=STATES))
    assert page(await store.refresh(read)) == (["g", "h", "i"], True, "i")
    await store.commit_runtime_state(commit(4, Unchanged("j"), checkpoint=STATES))
    await store.tombstone_nodes(["g"])
    assert page(await store.refresh(read)) == (["h", "i", "j"], False, "j")
    await store.tombstone_nodes(["h"])
    assert page(await store.refresh(read)) == (["i", "j"], False, "j")


async def test_a_page_before_a_node_is_itself_until_the_session_changes_and_then_loaded_again(store):
    await alphabet(store)
    read = await store.load_session(ActivePath(limit=3, before="h"))
    assert await store.refresh(read) is read
    await store.commit_runtime_state(commit(2, append("k", parent="j"), checkpoint=STATES))
    now = await store.refresh(read)
    assert page(now) == (["e", "f", "g"], True, "g")
    assert (now.head_revision, now.scope) == (3, ActivePath(limit=3, before="h"))
    await store.commit_runtime_state(commit(3, Unchanged("y"), checkpoint=STATES))
    with pytest.raises(InvalidRecord, match=r"ActivePath\.before"):
        await store.refresh(now)


async def test_an_update_since_a_page_sees_pages(store):
    await alphabet(store)
    shown = []

    def turn(read):
        shown.append(page(read))
        graph = Append([node("k", read.graph.leaf_node_id)], "k")
        return RuntimeCommit("chat", graph=graph, config=read.config, checkpoint=read.checkpoint)

    await store.update(turn, since=await store.load_session(ActivePath(limit=2)))
    assert shown == [(["i", "j"], True, "j")]
    assert ids_of(await store.load_session(ActivePath())) == [*"abcdefghijk"]


# Commits


def grown_out(graph: SessionGraph) -> list[SessionGraph]:
    message = {"id": "new", "role": "User"}
    return [
        graph,
        graph.append_message(message),
        graph.append_event({}),
        graph.append_plugin("p", 1),
        graph.append_active_read_delta([message], []),
        graph.replace_active_read_state([], []),
        graph.with_leaf("i"),
        graph.with_leaf("unknown").heal_orphaned_leaf(),
        graph.first(1),
        graph.first(1).append_message(message),
        graph.fork_current_path(),
        copy.copy(graph),
        copy.deepcopy(graph),
        replace(graph, leaf_node_id="i"),
        pickle.loads(pickle.dumps(graph)),
        SessionGraph.from_json(graph.to_json()),
    ]


@broken_by(
    Python("models.graph:SessionGraph.fork_current_path", lambda _: lambda self: SessionGraph(self.nodes), "forgets it")
)
async def test_a_replacement_by_a_partial_graph_is_refused_by_name_and_writes_nothing(store, keyspace):
    await alphabet(store)
    read = await store.load_session(ActivePath(limit=3))
    before = await keyspace()
    for graph in grown_out(read.graph):
        with pytest.raises(InvalidRecord, match="use Append, or load the path") as refused:
            await store.commit_runtime_state(commit(2, ReplaceFull(graph)))
        assert refused.value.field == "RuntimeCommit.graph.graph"
    assert await keyspace() == before


async def test_copies_of_a_partial_read_are_partial(store):
    await alphabet(store)
    read = await store.load_session(ActivePath(limit=3))
    for again in (copy.copy(read), copy.deepcopy(read), pickle.loads(pickle.dumps(read)), replace(read, commit_id="x")):
        assert again.is_partial
    assert PersistedSessionRead.from_json(read.to_json()).is_partial
    assert not (await store.load_session(ActivePath())).is_partial
    assert not (await store.load_session(FullGraph())).is_partial


async def test_a_graph_that_was_put_together_of_a_pages_nodes_replaces_the_stored_one(store):
    await alphabet(store)
    read = await store.load_session(ActivePath(limit=3))
    nodes = [replace(read.graph.nodes[0], parent_node_id=None), *read.graph.nodes[1:]]
    await store.commit_runtime_state(commit(2, ReplaceFull(SessionGraph(nodes, read.graph.leaf_node_id))))
    assert ids_of(await store.load_session(FullGraph())) == ["h", "i", "j"]


async def test_a_page_with_the_whole_path_replaces_the_graph_as_the_path_would(store):
    await alphabet(store)
    read = await store.load_session(ActivePath("y", limit=9))
    await store.commit_runtime_state(commit(2, ReplaceFull(read.graph.append_message({"id": "z", "role": "User"}))))
    assert ids_of(await store.load_session(FullGraph())) == [*"abcxyz"]


async def test_an_append_to_a_page_adds_to_the_whole_graph(store):
    await alphabet(store)
    read = await store.load_session(ActivePath(limit=3))
    graph = read.graph.append_message({"id": "k", "role": "User"})
    await store.commit_runtime_state(commit(2, Append(graph.nodes[-1:], graph.leaf_node_id)))
    assert ids_of(await store.load_session(ActivePath())) == [*"abcdefghijk"]


async def test_a_state_of_a_page_replaces_nothing_and_a_refresh_makes_it_whole(store, keyspace):
    await alphabet(store)
    state = PersistedSessionState.from_read(await store.load_session(ActivePath(limit=3)))
    state.session_graph = state.session_graph.append_message({"id": "k", "role": "User"})
    state.graph_replace_required = True
    before = await keyspace()
    for each in (state, copy.deepcopy(state), PersistedSessionState.from_json(state.to_json())):
        with pytest.raises(InvalidRecord, match=r"RuntimeCommit\.graph\.graph"):
            await store.commit_runtime_state(replace(RuntimeCommit.persisted_state(each), session_id="chat"))
    assert await keyspace() == before
    await refresh_persisted_session_state(store, state)
    state.session_graph = state.session_graph.append_message({"id": "k", "role": "User"})
    state.graph_replace_required = True
    await store.commit_runtime_state(RuntimeCommit.persisted_state(state))
    assert ids_of(await store.load_session(FullGraph())) == [*"abcdefghijxyk"]


async def test_a_page_that_leaves_out_the_end_of_a_path_replaces_nothing(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c", "d")))
    for limit in (2, 10, None):
        page = await store.load_session(ActivePath(limit=limit, before="c"))
        assert (ids_of(page), page.is_partial) == (["a", "b"], False)
        for graph in (page.graph, page.graph.append_event({}), pickle.loads(pickle.dumps(page.graph))):
            with pytest.raises(InvalidRecord) as refused:
                await store.commit_runtime_state(commit(1, ReplaceFull(graph)))
            assert refused.value.field == "RuntimeCommit.graph.graph"
        with pytest.raises(InvalidRecord):
            PersistedSessionState.from_read(page)
    assert ids_of(await store.load_session(FullGraph())) == ["a", "b", "c", "d"]
