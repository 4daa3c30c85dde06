"""Which nodes a commit accepts, which nodes each read returns, and how tombstones and vacuum remove nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lash_redis import (
    ActivePath,
    Append,
    FullGraph,
    InvalidLeaf,
    InvalidParent,
    NodeIdCollision,
    ReplaceFull,
    SessionGraph,
    SessionNodeRecord,
    Unchanged,
)
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, chain, commit, facts_of, ids_of, key_of, node, numbered, replace_full

IGNORES_TOMBSTONES = Lua(
    "commit", "if facts.dead > 0 and redis.call('HEXISTS', dead, place) == 1 then", "if false then"
)
NO_JUMPS = Lua("commit", "if above ~= at - 1 then plan.jumps", "if false then plan.jumps")
NO_JUMPS_IN_A_REPLACEMENT = Lua("replace", "if above ~= base + index - 1 then plan.jumps", "if false then plan.jumps")


async def path(store, leaf: str | None = None) -> list[str]:
    return ids_of(await store.load_session(ActivePath(leaf)))


async def everything(store) -> list[str]:
    return ids_of(await store.load_session(FullGraph()))


# Ids


@broken_by(Lua("commit", "if entries[index] then return", "if false then return"))
async def test_a_commit_that_reuses_a_stored_node_id_is_refused_with_that_id(store, keyspace):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    before = await keyspace()
    with pytest.raises(NodeIdCollision) as refused:
        await store.commit_runtime_state(commit(1, Append([node("c", "b"), node("a", "c", text="other")], "a")))
    assert refused.value.node_id == "a"
    assert await keyspace() == before
    assert (await store.load_node("a")) == node("a")


@broken_by(
    Lua(
        "tombstone",
        "-- WRITE",
        "for at = 2, #fields, 2 do redis.call('HDEL', nodes, fields[at]) end\nfacts.ids = facts.ids - count",
    )
)
async def test_a_tombstoned_id_cannot_be_reused_until_it_is_vacuumed(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.commit_runtime_state(commit(1, Unchanged("a")))
    await store.tombstone_nodes(["b"])
    again = append("b", parent="a", text="second life")
    with pytest.raises(NodeIdCollision):
        await store.commit_runtime_state(commit(2, again))
    assert (await store.vacuum()).removed_node_count == 1
    await store.commit_runtime_state(commit(2, again))
    assert list((await store.load_session(FullGraph())).graph.nodes) == [node("a"), *again.nodes]


@broken_by(Lua("replace", "if delta == 'faulty' then return {'faulty', session} end", ""))
async def test_a_duplicate_id_within_one_commit_is_refused(store):
    with pytest.raises(NodeIdCollision) as refused:
        await store.commit_runtime_state(commit(None, Append([node("a"), node("b", "a"), node("a", "b")], "b")))
    assert refused.value.node_id == "a"
    assert await store.load_session(FullGraph()) is None


async def test_a_replacement_with_a_duplicate_id_keeps_the_previous_graph(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    with pytest.raises(NodeIdCollision):
        await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph([node("x"), node("x")], "x"))))
    assert await everything(store) == ["a", "b"]


# Parents


@broken_by(Lua("commit", "if not was_empty or index > 0 then return nil, {'parent', index} end", ""))
async def test_a_parent_that_is_not_stored_is_refused(store, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    before = await keyspace()
    with pytest.raises(InvalidParent) as refused:
        await store.commit_runtime_state(commit(1, Append([node("b", "a"), node("c", "elsewhere")], "c")))
    assert (refused.value.node_id, refused.value.parent_node_id) == ("c", "elsewhere")
    assert await keyspace() == before


async def test_a_parent_of_another_session_is_refused(open_cache):
    cache = open_cache(shards=1)
    for chat in ("one", "two"):
        await cache.session(chat).commit_runtime_state(commit(None, append(f"{chat}-a"), session_id=chat))
    with pytest.raises(InvalidParent):
        await cache.session("two").commit_runtime_state(commit(1, append("b", parent="one-a"), session_id="two"))


@broken_by(IGNORES_TOMBSTONES)
async def test_a_tombstoned_parent_is_refused(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.tombstone_nodes(["b"])
    with pytest.raises(InvalidParent) as refused:
        await store.commit_runtime_state(commit(1, append("c", parent="b")))
    assert (refused.value.node_id, refused.value.parent_node_id) == ("c", "b")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("x", "x")],
        [node("x", "y"), node("y")],
        [node("x", "y"), node("y", "x")],
        [*chain("u", "v"), node("w", "w")],
    ],
    ids=["itself", "a later one", "a cycle", "itself after others"],
)
@pytest.mark.parametrize("replaces", [False, True], ids=["append", "replace"])
async def test_a_parent_that_does_not_precede_its_child_is_refused(nodes, replaces, store):
    graph = ReplaceFull(SessionGraph(nodes, nodes[-1].node_id)) if replaces else Append(nodes, nodes[-1].node_id)
    with pytest.raises(InvalidParent):
        await store.commit_runtime_state(commit(None, graph))
    assert await store.load_session(FullGraph()) is None


@broken_by(
    Lua("commit", "if not was_empty or index > 0 then return nil, {'parent'", "if index > 0 then return nil, {'parent'")
)
async def test_only_the_first_node_of_an_empty_graph_may_have_an_unknown_parent(store):
    await store.commit_runtime_state(commit(None, append("a", "b", parent="before-the-store")))
    read = await store.load_session(ActivePath())
    assert list(read.graph.nodes) == chain("a", "b", parent="before-the-store")
    with pytest.raises(InvalidParent):
        await store.commit_runtime_state(commit(1, append("c", parent="before-the-store")))


async def test_only_the_first_node_of_a_replacement_may_have_an_unknown_parent(store):
    await store.commit_runtime_state(commit(None, append("a")))
    orphan = ReplaceFull(SessionGraph([node("x"), node("y", "unknown")], "y"))
    with pytest.raises(InvalidParent):
        await store.commit_runtime_state(commit(1, orphan))
    await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(chain("x", "y", parent="unknown"), "y"))))
    assert await path(store) == ["x", "y"]


@broken_by(
    Lua("replace", "if not is_first and not was_there then", "if not is_first then"),
    Lua("replace", "place == 'dead' or place == 'named'", "place == 'dead'"),
    Lua("replace", "place == 'dead' or place == 'named'", "place == 'named'"),
    Lua("replace", "place == 'dead' or place == 'named'", "true"),
    Lua("replace", "(as.replaces or not place)", "not place"),
    Lua("replace", "if not plan.named[id] and", "if"),
)
async def test_a_replacement_may_list_children_of_tombstoned_nodes_without_their_parent(store, open_cache):
    """The tombstoned node has children on two branches, none of them the first node. Its id stays reserved."""
    begun = [*chain("a", "b", "c"), node("d", "b"), *chain("e", "f", parent="a")]
    await store.commit_runtime_state(commit(None, Append(begun, "f")))
    await store.tombstone_nodes(["b"])
    for revision in (1, 2):  # the first finds a tombstone, the second only a reserved id
        graph = (await store.load_session(FullGraph())).graph
        assert [each.node_id for each in graph.nodes][:5] == ["a", "c", "d", "e", "f"]
        orphan = ReplaceFull(SessionGraph([*graph.nodes, node("y", "elsewhere")], "y"))
        with pytest.raises(InvalidParent):
            await store.commit_runtime_state(commit(revision, orphan))
        repeated = SessionGraph([*graph.nodes, node(f"x{revision}", "c")], f"x{revision}")
        await store.commit_runtime_state(commit(revision, ReplaceFull(repeated)))
        assert (await open_cache().session("chat").load_session(FullGraph())).graph == repeated
        assert [await path(store, leaf) for leaf in ("d", "f")] == [["d"], ["a", "e", "f"]]
        with pytest.raises(NodeIdCollision):
            await store.commit_runtime_state(commit(revision + 1, append("b", parent="a")))
    assert await path(store) == ["c", "x2"]
    assert (await open_cache(role="auditor").audit()).problems == ()


@broken_by(Lua("commit", "if not above then plan.places", "if false then plan.places"))
async def test_the_id_of_an_unknown_parent_is_reserved(store):
    await store.commit_runtime_state(commit(None, append("a", parent="root")))
    with pytest.raises(NodeIdCollision) as refused:
        await store.commit_runtime_state(commit(1, append("root", parent="a")))
    assert refused.value.node_id == "root"


async def test_an_append_after_an_empty_replacement_may_have_an_unknown_parent(store):
    await store.commit_runtime_state(commit(None, append("a")))
    await store.commit_runtime_state(commit(1, replace_full()))
    await store.commit_runtime_state(commit(2, append("b", parent="somewhere")))
    assert await path(store) == ["b"]


# The leaf


@broken_by(
    Lua(
        "commit",
        "if type(place) ~= 'number' then return nil, {'leaf'} end",
        "place = tonumber(place) or -1",
    )
)
async def test_a_leaf_that_is_not_stored_is_refused(store):
    await store.commit_runtime_state(commit(None, append("a")))
    for graph in (Unchanged("x"), Append((), "x"), Append([node("b", "a")], "x")):
        with pytest.raises(InvalidLeaf) as refused:
            await store.commit_runtime_state(commit(1, graph))
        assert refused.value.leaf_node_id == "x"


@broken_by(IGNORES_TOMBSTONES)
async def test_a_leaf_that_is_tombstoned_is_refused(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.tombstone_nodes(["b"])
    for graph in (Unchanged("b"), Append((), "b")):
        with pytest.raises(InvalidLeaf):
            await store.commit_runtime_state(commit(1, graph))
    await store.vacuum()
    with pytest.raises(InvalidLeaf):
        await store.commit_runtime_state(commit(1, Unchanged("b")))


@broken_by(
    Lua("commit", "if count + facts.live > 0 then return nil, {'leaf'} end", ""),
    Lua("replace", "(mark == '=' or live > 0)", "mark == '='"),
)
async def test_a_commit_without_a_leaf_is_refused_while_the_graph_has_nodes(store):
    with pytest.raises(InvalidLeaf):
        await store.commit_runtime_state(commit(None, Append(chain("a"), None)))
    await store.commit_runtime_state(commit(None, append("a")))
    for graph in (Unchanged(), Append((), None), ReplaceFull(SessionGraph(chain("x")))):
        with pytest.raises(InvalidLeaf):
            await store.commit_runtime_state(commit(1, graph))


async def test_a_session_without_nodes_has_no_leaf(store):
    await store.commit_runtime_state(commit(None))
    for scope in (FullGraph(), ActivePath()):
        assert (await store.load_session(scope)).graph == SessionGraph()


@pytest.mark.parametrize("graph", [Unchanged("b"), Append((), "b"), Append([node("d", "c")], "b")])
async def test_the_leaf_may_move_to_any_live_node(graph, store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.commit_runtime_state(commit(1, graph))
    assert (await store.load_head()).leaf_node_id == "b"
    assert await path(store) == ["a", "b"]


# Branches and paths


@broken_by(NO_JUMPS)
async def test_a_path_read_returns_the_ancestors_of_each_leaf_in_a_branching_graph(store):
    #  a - b - c - d
    #       \   \ - g - h
    #        e - f - i
    for expected, graph in enumerate(
        [
            append("a", "b", "c", "d"),
            append("e", "f", parent="b"),
            append("g", "h", parent="c"),
            append("i", parent="f"),
        ]
    ):
        await store.commit_runtime_state(commit(expected, graph))
    assert await everything(store) == ["a", "b", "c", "d", "e", "f", "g", "h", "i"]
    paths = {leaf: "".join(await path(store, leaf)) for leaf in "abcdefghi"}
    assert paths == {
        "a": "a", "b": "ab", "c": "abc", "d": "abcd", "e": "abe", "f": "abef", "g": "abcg", "h": "abcgh", "i": "abefi",
    }  # fmt: skip
    assert await path(store) == ["a", "b", "e", "f", "i"]


@broken_by(NO_JUMPS_IN_A_REPLACEMENT)
async def test_a_commit_may_contain_several_branches_and_roots(store):
    nodes = [node("a"), node("b", "a"), node("c", "a"), node("r"), node("d", "b"), node("s", "r")]
    await store.commit_runtime_state(commit(None, ReplaceFull(SessionGraph(nodes, "d"))))
    assert [await path(store, leaf) for leaf in "dcs"] == [["a", "b", "d"], ["a", "c"], ["r", "s"]]
    assert list((await store.load_session(FullGraph())).graph.nodes) == nodes


async def test_a_zigzag_of_100_branches_is_read_as_one_path(store):
    await store.commit_runtime_state(commit(None, append("root")))
    ids = numbered(200)
    nodes, parent = [], "root"
    for on_path, off_path in zip(ids[::2], ids[1::2], strict=True):
        nodes += [node(on_path, parent), node(off_path, parent)]
        parent = on_path
    await store.commit_runtime_state(commit(1, Append(nodes, parent)))
    assert await path(store) == ["root", *ids[::2]]
    assert await path(store, ids[101]) == ["root", *ids[:100:2], ids[101]]


async def test_full_and_path_reads_agree_on_every_path(store):
    nodes = [node("a"), *chain("b", "c", parent="a"), *chain("d", "e", "f", parent="b"), node("g", "e"), node("h", "a")]
    await store.commit_runtime_state(commit(None, Append(nodes, "g")))
    await store.tombstone_nodes(["d"])
    full = (await store.load_session(FullGraph())).graph
    for leaf in "abcefgh":
        assert await path(store, leaf) == [each.node_id for each in full.with_leaf(leaf).active_path()]


async def test_a_path_read_of_an_unknown_or_tombstoned_leaf_is_empty(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    for leaf in ("x", "b", "chat", "a "):
        read = await store.load_session(ActivePath(leaf))
        assert (ids_of(read), read.graph.leaf_node_id, read.head_revision) == ([], leaf, 1)


async def test_a_path_read_of_another_leaf_leaves_the_head_unchanged(store, keyspace):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    before = await keyspace()
    read = await store.load_session(ActivePath("b"))
    assert (ids_of(read), read.graph.leaf_node_id) == (["a", "b"], "b")
    assert (await store.load_head()).leaf_node_id == "c"
    assert await keyspace() == before


# Replacement


@broken_by(Lua("replace", "if replaced then call('UNLINK', log, nodes, jumps, dead) end", ""))
async def test_a_replacement_removes_every_node_of_the_previous_graph(store, client):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.commit_runtime_state(commit(1, append("d", parent="a")))
    await store.tombstone_nodes(["c"])
    await store.commit_runtime_state(commit(2, replace_full("x", "b")))
    assert await everything(store) == ["x", "b"]
    assert await path(store) == ["x", "b"]
    assert [await store.load_node(each) for each in "acd"] == [None] * 3
    assert (await store.vacuum()).removed_node_count == 0
    assert await client.llen(await key_of(client, "log")) == 2


@broken_by(Lua("replace", "facts.dead, facts.ids, facts.bytes = 0, 0, 0", "facts.ids, facts.bytes = 0, 0"))
async def test_a_replacement_restores_the_tombstoned_nodes_it_lists(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b", "c"])
    await store.commit_runtime_state(commit(1, replace_full("a", "b")))
    assert await everything(store) == ["a", "b"]
    await store.commit_runtime_state(commit(2, append("c", parent="b")))
    assert await everything(store) == ["a", "b", "c"]


async def test_repeated_replacements_leave_only_the_last_graph(store):
    graphs = [append("a", "b"), replace_full("c", "d"), append("x", parent="c"), replace_full("y"), replace_full()]
    seen = []
    for graph in [*graphs, replace_full("a", "z")]:
        await store.commit_runtime_state(commit(None, graph))
        seen.append("".join(await everything(store)))
    assert seen == ["ab", "cd", "cdx", "y", "", "az"]


async def test_an_append_after_a_replacement_resolves_its_parent_in_the_new_graph(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.commit_runtime_state(commit(1, replace_full("c", "a")))
    await store.commit_runtime_state(commit(2, append("d", parent="c")))
    assert await path(store) == ["c", "d"]
    with pytest.raises(InvalidParent):
        await store.commit_runtime_state(commit(3, append("e", parent="b")))


# Tombstones and vacuum


@broken_by(
    Lua("node", "if buried == id then return -1, '' end\n  if buried then", "if false then"),
    Lua("tombstone", "if redis.call('HEXISTS', dead, position) == 0 then", "if false then"),
)
async def test_no_read_returns_tombstoned_nodes(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c", "d")))
    await store.commit_runtime_state(commit(1, append("e", parent="a")))
    await store.tombstone_nodes(["c"])
    assert await everything(store) == ["a", "b", "d", "e"]
    assert await path(store, "d") == ["d"]
    assert await path(store, "b") == ["a", "b"]
    assert await store.load_node("c") is None
    assert (await store.load_head()).graph_node_count == 4
    await store.vacuum()
    assert await everything(store) == ["a", "b", "d", "e"]
    assert await path(store, "d") == ["d"]
    assert await path(store) == ["a", "e"]


@broken_by(Lua("tombstone", "if redis.call('HEXISTS', dead, position) == 0 then", "if true then"))
async def test_tombstoning_a_node_twice_has_no_further_effect(store, keyspace):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    before = await keyspace()
    for ids in (["b"], ["b", "b"], ["unknown"], []):
        await store.tombstone_nodes(ids)
    assert await keyspace() == before
    await store.tombstone_nodes(["c", "c", "b"])
    assert await everything(store) == ["a"]
    assert (await store.vacuum()).removed_node_count == 2


async def test_tombstones_and_vacuum_change_only_the_node_count_of_the_head(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    before = await store.load_head()
    await store.tombstone_nodes(["b"])
    await store.vacuum()
    assert await store.load_head() == replace(before, graph_node_count=2)


async def test_2500_nodes_can_be_tombstoned_and_vacuumed_at_once(store):
    ids = numbered(2_500)
    await store.commit_runtime_state(commit(None, append("root", *ids)))
    await store.commit_runtime_state(commit(1, Unchanged("root")))
    await store.tombstone_nodes(ids)
    assert await everything(store) == ["root"]
    assert (await store.vacuum()).removed_node_count == 2_500
    assert (await store.vacuum()).removed_node_count == 0
    assert await everything(store) == ["root"]
    await store.commit_runtime_state(commit(2, append(*ids, parent="root")))
    assert await path(store) == ["root", *ids]


async def test_tombstones_and_vacuum_do_nothing_in_a_session_without_a_head(store, keyspace):
    await store.tombstone_nodes(["a"])
    assert (await store.vacuum()).removed_node_count == 0
    assert not [key for key in await keyspace() if b":layout:" not in key]


@broken_by(Lua("vacuum", "redis.call('LSET', log, position, '')", "redis.call('LLEN', log)"))
async def test_vacuum_frees_the_bytes_of_tombstoned_nodes(store, client):
    await store.commit_runtime_state(commit(None, append("a", "b", text="x" * 5_000)))
    await store.commit_runtime_state(commit(1, Unchanged("a")))
    await store.tombstone_nodes(["b"])
    await store.vacuum()
    log = await client.lrange(await key_of(client, "log"), 0, -1)
    assert 5_000 < sum(map(len, log)) < 6_000
    assert (await facts_of(client))["bytes"] == sum(map(len, log))


@broken_by(Lua("vacuum", "if reserved then", "if false then"))
async def test_an_id_with_a_live_child_stays_reserved_after_vacuum(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    assert (await store.vacuum()).removed_node_count == 1
    with pytest.raises(NodeIdCollision):
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
    with pytest.raises(InvalidParent):
        await store.commit_runtime_state(commit(1, append("d", parent="b")))
    assert await path(store) == ["c"]


async def test_an_id_with_a_child_on_another_branch_stays_reserved_after_vacuum(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.commit_runtime_state(commit(1, append("c", parent="a")))
    await store.tombstone_nodes(["a", "b"])
    await store.vacuum()
    with pytest.raises(NodeIdCollision):
        await store.commit_runtime_state(commit(2, append("a", parent="c")))
    await store.commit_runtime_state(commit(2, append("b", parent="c")))
    assert await path(store) == ["c", "b"]


async def test_ids_vacuumed_by_one_handle_can_be_reused_by_another(open_cache):
    await open_cache().session("chat").commit_runtime_state(commit(None, append("a", "b")))
    await open_cache().session("chat").tombstone_nodes(["b"])
    await open_cache().session("chat").vacuum()
    await open_cache().session("chat").commit_runtime_state(commit(1, append("b", parent="a")))
    assert await everything(open_cache().session("chat")) == ["a", "b"]


# A head leaf that does not resolve


def lenient_read(plan):
    return lambda keys, leaf, replies, *, strict: plan(keys, leaf, replies, strict=False)


@pytest.mark.parametrize("vacuumed", [False, True])
async def test_a_path_read_of_a_head_with_a_tombstoned_leaf_raises_invalid_leaf(vacuumed, store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.tombstone_nodes(["b"])
    if vacuumed:
        await store.vacuum()
    with pytest.raises(InvalidLeaf) as refused:
        await store.load_session(ActivePath())
    assert refused.value.leaf_node_id == "b"
    read = await store.load_session(FullGraph())
    assert (ids_of(read), read.graph.leaf_node_id) == (["a"], "b")
    assert await path(store, "a") == ["a"]
    await store.commit_runtime_state(commit(1, Unchanged("a")))
    assert await path(store) == ["a"]


@broken_by(Python("protocol.commands.paths:path_plan", lenient_read, "returns an empty path"))
async def test_a_tombstoned_head_leaf_never_reads_as_an_empty_path(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.tombstone_nodes(["b"])
    with pytest.raises(InvalidLeaf):
        await store.load_session(ActivePath())


# Lenient checks


async def paths_in_both_scopes(store, *leaves: str | None) -> list[list[str]]:
    """Return the paths to `leaves`, after checking that both read scopes agree on each."""
    graph = (await store.load_session(FullGraph())).graph
    paths = []
    for leaf in leaves:
        walked = graph if leaf is None else graph.with_leaf(leaf)
        paths.append(await path(store, leaf))
        assert paths[-1] == [each.node_id for each in walked.active_path()]
    return paths


async def test_lenient_checks_accept_any_parent(lenient):
    await lenient.commit_runtime_state(commit(None, append("a")))
    await lenient.commit_runtime_state(commit(1, append("b", "c", parent="nowhere")))
    assert await everything(lenient) == ["a", "b", "c"]
    assert await paths_in_both_scopes(lenient, None, "a", "b") == [["b", "c"], ["a"], ["b"]]


async def test_lenient_checks_accept_a_parent_that_is_committed_later(lenient):
    await lenient.commit_runtime_state(commit(None, append("a")))
    await lenient.commit_runtime_state(commit(1, append("c", parent="b")))
    assert await paths_in_both_scopes(lenient, None) == [["c"]]
    await lenient.commit_runtime_state(commit(2, Append([node("b", "a")], "c")))
    assert await paths_in_both_scopes(lenient, None, "b") == [["a", "b", "c"], ["a", "b"]]


@broken_by(
    Lua(
        "replace",
        "if above >= base + index then above, plan.loose = -1, true end",
        "if above >= base + index then above = -1 end",
    )
)
async def test_lenient_checks_accept_a_parent_later_in_the_batch(lenient):
    await lenient.commit_runtime_state(commit(None, Append([node("c", "b"), node("a"), node("b", "a")], "c")))
    assert await paths_in_both_scopes(lenient, None, "b", "a") == [["a", "b", "c"], ["a", "b"], ["a"]]


async def test_lenient_checks_accept_a_tombstoned_parent(lenient):
    await lenient.commit_runtime_state(commit(None, append("a", "b")))
    await lenient.tombstone_nodes(["b"])
    await lenient.commit_runtime_state(commit(1, append("c", parent="b")))
    assert await paths_in_both_scopes(lenient, None) == [["c"]]
    await lenient.vacuum()
    assert await paths_in_both_scopes(lenient, None) == [["c"]]


async def test_lenient_checks_accept_any_leaf(lenient):
    await lenient.commit_runtime_state(commit(None, append("a", "b")))
    await lenient.commit_runtime_state(commit(1, Unchanged("unknown")))
    read = await lenient.load_session(FullGraph())
    assert (ids_of(read), read.graph.leaf_node_id) == (["a", "b"], "unknown")
    assert await path(lenient) == []
    await lenient.commit_runtime_state(commit(2, Unchanged()))
    read = await lenient.load_session(ActivePath())
    assert (ids_of(read), read.graph.leaf_node_id) == ([], None)
    await lenient.tombstone_nodes(["b"])
    await lenient.commit_runtime_state(commit(3, Unchanged("b")))
    assert (await lenient.load_session(FullGraph())).graph.leaf_node_id == "b"
    assert await path(lenient) == []


async def test_lenient_checks_accept_a_replacement_with_unknown_parents_and_leaf(lenient):
    graph = SessionGraph([node("a"), node("c", "b"), node("b", "x")], "gone")
    await lenient.commit_runtime_state(commit(None, ReplaceFull(graph)))
    read = await lenient.load_session(FullGraph())
    assert (list(read.graph.nodes), read.graph.leaf_node_id) == (list(graph.nodes), "gone")
    assert await paths_in_both_scopes(lenient, None, "a", "b", "c") == [[], ["a"], ["b"], ["b", "c"]]


async def test_lenient_checks_still_refuse_an_id_that_is_in_use(lenient):
    await lenient.commit_runtime_state(commit(None, append("a", "b")))
    await lenient.tombstone_nodes(["b"])
    for graph in (append("a", parent="a"), append("b", parent="a"), Append([node("c"), node("c")], "c")):
        with pytest.raises(NodeIdCollision):
            await lenient.commit_runtime_state(commit(1, graph))


async def test_lenient_checks_accept_a_vacuumed_id_that_still_has_a_child(lenient):
    await lenient.commit_runtime_state(commit(None, append("a", "b", "c")))
    await lenient.tombstone_nodes(["b"])
    await lenient.vacuum()
    await lenient.commit_runtime_state(commit(1, Append([SessionNodeRecord("b", "a", "t", node("b").payload)], "c")))
    assert await paths_in_both_scopes(lenient, None, "b") == [["a", "b", "c"], ["a", "b"]]


async def test_lenient_checks_accept_the_unknown_parent_of_the_first_node_later(lenient):
    await lenient.commit_runtime_state(commit(None, append("b", parent="a")))
    await lenient.commit_runtime_state(commit(1, Append([node("a")], "b")))
    assert await paths_in_both_scopes(lenient, None) == [["a", "b"]]


async def test_a_graph_started_with_lenient_checks_can_be_read_and_extended_strictly(lenient, store):
    await lenient.commit_runtime_state(commit(None, append("a")))
    await lenient.commit_runtime_state(commit(1, append("c", parent="b")))
    await lenient.commit_runtime_state(commit(2, Append([node("b", "a")], "c")))
    assert await paths_in_both_scopes(store, None) == [["a", "b", "c"]]
    await store.commit_runtime_state(commit(3, append("d", parent="c")))
    assert await paths_in_both_scopes(store, None) == [["a", "b", "c", "d"]]


async def test_a_graph_started_with_strict_checks_can_be_extended_leniently(lenient, store):
    await store.commit_runtime_state(commit(None, append("b", parent="a")))
    await lenient.commit_runtime_state(commit(1, Append([node("a")], "b")))
    assert await paths_in_both_scopes(store, None) == [["a", "b"]]
    await store.tombstone_nodes(["a"])
    await store.vacuum()
    assert await paths_in_both_scopes(store, None) == [["b"]]
