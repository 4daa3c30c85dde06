"""A fork starts with the path and the components of its source. Afterwards the two sessions are independent."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis import (
    ActivePath,
    Append,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    InvalidRecord,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginPayload,
    Refused,
    SessionDeleted,
    SessionGone,
    SessionMeta,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    TokenUsage,
    Unchanged,
)
from lash_redis.transfer import export_sessions, import_sessions
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, blob_keys, commit, holders, ids_of, node, plugins, replace_full, tools, used

CONFIG = PersistedSessionConfig("p", "some-model", 1000, "rlm", {"kind": "rolling_history"}, "large")
STATES = HydratedSessionCheckpoint(
    turn_state=PersistedTurnState(7, TokenUsage(1, 2, 3, 4)),
    tool_state=tools(),
    plugin_snapshot=plugins(),
    plugin_snapshot_revision=5,
    execution_state=bytes(range(256)),
)


async def branching(cache, name: str = "chat"):
    """Create a session with the paths a-b-c and a-d. The leaf is d."""
    store = await cache.create(SessionStoreCreateRequest(name))
    for expected, graph in ((None, append("a", "b", "c")), (1, append("d", parent="a"))):
        made = commit(expected, graph, session_id=name, config=CONFIG, checkpoint=STATES, usage_deltas=[used(input=1)])
        await store.commit_runtime_state(made)
    return store


def component_values(read):
    assert read is not None
    assert read.checkpoint is not None
    checkpoint = read.checkpoint
    return (
        checkpoint.turn_state,
        checkpoint.tool_state,
        checkpoint.plugin_snapshot,
        checkpoint.plugin_snapshot_revision,
        checkpoint.execution_state,
    )


@pytest.mark.parametrize("target", ["chat-2", "x", "chat}", "é", "other"])
async def test_a_fork_has_the_path_and_all_components_of_its_source_in_any_shard(target, open_cache, keyspace):
    source = await branching(open_cache())
    before = await source.load_session(ActivePath())
    stored = {key: value for key, value in (await keyspace()).items() if key.endswith(b":chat")}
    child = await open_cache().fork("chat", target)
    assert child.session_id == target
    read = await open_cache().session(target).load_session(FullGraph())
    assert read is not None
    assert read.graph == before.graph
    assert component_values(read) == component_values(before)
    assert (read.config, read.checkpoint_ref) == (CONFIG, before.checkpoint_ref)
    assert (read.session_id, read.head_revision, read.token_ledger) == (target, 1, ())
    meta = await child.load_session_meta()
    assert meta is not None
    assert (meta.session_id, meta.parent_session_id) == (target, "chat")
    assert {key: value for key, value in (await keyspace()).items() if key.endswith(b":chat")} == stored


@broken_by(Python("session.reader:Reader.fork_point", lambda old: lambda self, _: old(self, None), "forks the leaf"))
async def test_a_fork_at_an_earlier_node_ends_at_that_node(open_cache):
    await branching(open_cache())
    child = await open_cache().fork("chat", "new", leaf_node_id="b")
    read = await child.load_session(FullGraph())
    assert ids_of(read) == ["a", "b"]
    assert read.graph.leaf_node_id == "b"


async def test_blobs_are_shared_within_a_shard_and_copied_between_shards(open_cache, client):
    one = open_cache(shards=1, namespace="one")
    await branching(one)
    before = await blob_keys(client)
    await one.fork("chat", "child")
    assert await blob_keys(client) == before
    assert await holders(client) == [2]
    many = open_cache(namespace="many", shards=64)
    await branching(many)
    other = next(f"s{n}" for n in range(100) if many.layout.shard_of(f"s{n}") != many.layout.shard_of("chat"))
    await many.fork("chat", other)
    assert len(await blob_keys(client)) == len(before) + 2


async def test_changes_to_a_source_and_its_fork_are_independent(open_cache):
    cache = open_cache(shards=1)
    source = await branching(cache)
    child = await cache.fork("chat", "child")
    await child.commit_runtime_state(commit(1, append("e", parent="d"), session_id="child"))
    await source.commit_runtime_state(commit(2, append("f", parent="d"), config=CONFIG))
    assert ids_of(await child.load_session(ActivePath())) == ["a", "d", "e"]
    assert ids_of(await source.load_session(ActivePath())) == ["a", "d", "f"]
    await source.commit_runtime_state(commit(3, replace_full("x")))
    assert ids_of(await child.load_session(ActivePath())) == ["a", "d", "e"]
    await child.tombstone_nodes(["a"])
    assert ids_of(await source.load_session(FullGraph())) == ["x"]


@broken_by(
    Lua("replace", "if #set > 0 then call('HSET', state, unpack(set)) end", ""),
    Lua("replace", "if plugin ~= '' then", "if false then"),
)
@pytest.mark.parametrize("shards", [1, 64])
async def test_forks_and_imports_copy_private_components(shards, open_cache, client):
    cache = open_cache(shards=shards)
    source = await branching(cache)
    before = await source.load_session(FullGraph())
    await cache.fork("chat", "child")
    await import_sessions(open_cache(namespace="other"), [line async for line in export_sessions(cache, ["chat"])])
    states = await client.keys("*:state:*")
    assert len(states) == 3
    stored = [await client.hgetall(key) for key in states]
    assert sorted(stored[0]) == [b"p", b"x"]
    assert stored[0] == stored[1] == stored[2]
    await source.commit_runtime_state(commit(2, append("e", parent="d"), checkpoint=HydratedSessionCheckpoint()))
    await cache.delete("chat")
    for each in (open_cache(shards=shards).session("child"), open_cache(namespace="other").session("chat")):
        assert component_values(await each.load_session(FullGraph())) == component_values(before)


@pytest.mark.parametrize("first", ["chat", "child"])
async def test_deleting_a_source_or_its_fork_keeps_the_other_complete(first, open_cache):
    cache = open_cache(shards=1, blob_grace=0.01)
    await branching(cache)
    await cache.fork("chat", "child")
    await cache.delete(first)
    await asyncio.sleep(0.05)
    await cache.gc()
    other = "child" if first == "chat" else "chat"
    read = await open_cache(shards=1).session(other).load_session(ActivePath())
    assert ids_of(read) == ["a", "d"]
    assert component_values(read)[4] == STATES.execution_state


@broken_by(Lua("replace", "if origin ~= '' and (facts or call('HEXISTS', head, 'meta') == 1) then", "if false then"))
async def test_a_fork_to_an_existing_session_is_refused_and_changes_nothing(open_cache, keyspace):
    cache = open_cache()
    await branching(cache)
    await cache.session("there").commit_runtime_state(commit(None, append("z"), session_id="there"))
    await cache.create(SessionStoreCreateRequest("only meta"))
    before = await keyspace()
    for target in ("there", "only meta"):
        with pytest.raises(Refused, match="exists already"):
            await cache.fork("chat", target)
        assert await keyspace() == before
    await cache.fork("chat", "new")
    with pytest.raises(Refused, match="exists already"):
        await cache.fork("chat", "new")


async def test_a_fork_to_a_deleted_session_is_refused(open_cache):
    cache = open_cache()
    await branching(cache)
    await cache.fork("chat", "new")
    await cache.delete("new")
    with pytest.raises(SessionDeleted):
        await cache.fork("chat", "new")


async def test_a_fork_of_a_missing_session_is_refused_and_names_it(open_cache, keyspace):
    cache = open_cache()
    await cache.create(SessionStoreCreateRequest("only meta"))
    await branching(cache, "gone")
    await cache.delete("gone")
    before = await keyspace()
    for source in ("nowhere", "only meta", "gone"):
        with pytest.raises(SessionGone, match=source):
            await cache.fork(source, "new")
    assert await keyspace() == before


@pytest.mark.parametrize("leaf", ["unknown", "c"])
async def test_a_fork_at_an_unknown_or_tombstoned_node_is_refused(leaf, open_cache, keyspace):
    cache = open_cache()
    store = await branching(cache)
    await store.tombstone_nodes(["c"])
    before = await keyspace()
    with pytest.raises(InvalidLeaf, match=leaf):
        await cache.fork("chat", "new", leaf_node_id=leaf)
    assert await keyspace() == before


async def test_invalid_ids_are_refused_and_named(cache):
    await branching(cache)
    for arguments, field in (
        (("", "new"), "source"), (("chat", ""), "new_id"), (("chat", 7), "new_id"), ((None, "new"), "source"),
        (("chat", "chat"), "new_id"), (("chat", "new", ""), "leaf_node_id"),
    ):  # fmt: skip
        with pytest.raises(InvalidRecord, match=field):
            await cache.fork(*arguments)


async def test_a_fork_of_a_path_cut_by_a_tombstone_equals_the_visible_path(open_cache):
    cache = open_cache()
    store = await branching(cache)
    await store.tombstone_nodes(["a"])
    child = await cache.fork("chat", "new", leaf_node_id="c")
    read = await child.load_session(ActivePath())
    assert ids_of(read) == ["b", "c"]
    assert read.graph == (await store.load_session(ActivePath("c"))).graph
    await child.commit_runtime_state(commit(1, append("d", parent="c"), session_id="new"))


async def test_a_session_without_nodes_can_be_forked(cache):
    await cache.session("chat").commit_runtime_state(commit(None, Unchanged(None), checkpoint=STATES))
    child = await cache.fork("chat", "new")
    read = await child.load_session(FullGraph())
    assert ids_of(read) == []
    assert component_values(read)[4] == STATES.execution_state


async def test_a_fork_follows_lenient_links(open_cache):
    cache = open_cache(graph_checks="lenient")
    store = cache.session("chat")
    nodes = [node("b", "a"), node("a"), SessionNodeRecord("c", "b", "t", PluginPayload("p", {"x": [1]}))]
    await store.commit_runtime_state(commit(None, Append(nodes, "c")))
    child = await cache.fork("chat", "new")
    assert ids_of(await child.load_session(ActivePath())) == ["a", "b", "c"]


async def test_a_fork_inherits_cwd_and_model_and_takes_its_own_ttl(open_cache, client):
    cache = open_cache(ttl=100)
    store = await branching(cache)
    await store.save_session_meta(SessionMeta("chat", "A name", "then", "large", cwd="/somewhere"))
    child = await cache.fork("chat", "new", ttl=900)
    meta = await child.load_session_meta()
    assert (meta.session_name, meta.model, meta.cwd, meta.parent_session_id) == ("new", "large", "/somewhere", "chat")
    assert 895_000 < await client.pttl(cache.layout.session("new").log) <= 900_000


async def test_a_fork_during_commits_contains_exactly_one_source_revision(open_cache):
    cache = open_cache(shards=1)
    store = cache.session("chat")
    state = HydratedSessionCheckpoint(tool_state=tools("0"), execution_state=b"0")
    await store.commit_runtime_state(commit(None, append("n0"), checkpoint=state))

    async def writes() -> None:
        for turn in range(1, 30):
            state = HydratedSessionCheckpoint(tool_state=tools(str(turn)), execution_state=str(turn).encode())
            await store.commit_runtime_state(commit(turn, append(f"n{turn}", parent=f"n{turn - 1}"), checkpoint=state))

    async def forks() -> None:
        for number in range(15):
            child = await open_cache(shards=1).fork("chat", f"fork-{number}")
            read = await child.load_session(FullGraph())
            assert read is not None
            assert read.checkpoint is not None
            assert read.checkpoint.execution_state == str(len(read.graph.nodes) - 1).encode()
            assert read.checkpoint.tool_state == tools(str(len(read.graph.nodes) - 1))

    await asyncio.gather(writes(), forks())
