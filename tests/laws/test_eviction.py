"""Methods name the key that a session lost to eviction. A full server refuses a write without any change."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from lash_redis import (
    ActivePath,
    Append,
    BackendError,
    Corrupt,
    FullGraph,
    HydratedSessionCheckpoint,
    ReplaceFull,
    SessionEvicted,
    SessionMeta,
    SessionStoreCreateRequest,
    StoreError,
)
from lash_redis.models import SessionCheckpoint
from lash_redis.protocol.packing import pack, pack_record
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, blob_keys, chain, commit, key_of, plugins, replace_full, tools
from tests.support.servers import snapshot

STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")
FAMILIES = ("head", "log", "nodes", "jumps", "dead", "state")
UPLOADS = {
    "plugin_snapshot_ref": pack_record(plugins(), "plugins"),
    "execution_state_ref": pack(b"1", "execution"),
}


async def full_session(cache, states: HydratedSessionCheckpoint = STATES) -> SessionCheckpoint:
    """Create a session with every kind of key."""
    store = await cache.create(SessionStoreCreateRequest("chat"))
    await store.commit_runtime_state(commit(None, append("a", "b"), checkpoint=states))
    result = await store.commit_runtime_state(commit(1, append("c", parent="a"), checkpoint=states))
    await store.tombstone_nodes(["b"])
    return result.manifest


def carried(manifest: SessionCheckpoint) -> HydratedSessionCheckpoint:
    return HydratedSessionCheckpoint(
        tool_state_ref=manifest.tool_state_ref,
        plugin_snapshot_ref=manifest.plugin_snapshot_ref,
        execution_state_ref=manifest.execution_state_ref,
    )


Method = Callable[..., Awaitable[object]]
METHODS: dict[str, Method] = {
    "load the graph": lambda cache, _: cache.session("chat").load_session(FullGraph()),
    "load the path": lambda cache, _: cache.session("chat").load_session(ActivePath()),
    "load a path": lambda cache, _: cache.session("chat").load_session(ActivePath("a")),
    "load a page": lambda cache, _: cache.session("chat").load_session(ActivePath(limit=1)),
    "load the head": lambda cache, _: cache.session("chat").load_head(),
    "load the checkpoint": lambda cache, _: cache.session("chat").load_checkpoint(),
    "load a node": lambda cache, _: cache.session("chat").load_node("a"),
    "load an unknown node": lambda cache, _: cache.session("chat").load_node("zzz"),
    "load the meta": lambda cache, _: cache.session("chat").load_session_meta(),
    "save the meta": lambda cache, _: cache.session("chat").save_session_meta(SessionMeta("chat", "n", "t", "m")),
    "enqueue an input": lambda cache, _: cache.session("chat").enqueue_input("x"),
    "load the inputs": lambda cache, _: cache.session("chat").pending_inputs(),
    "create": lambda cache, _: cache.create(SessionStoreCreateRequest("chat")),
    "tombstone": lambda cache, _: cache.session("chat").tombstone_nodes(["c"]),
    "tombstone an unknown node": lambda cache, _: cache.session("chat").tombstone_nodes(["zzz"]),
    "vacuum": lambda cache, _: cache.session("chat").vacuum(),
    "collect garbage": lambda cache, _: cache.session("chat").gc_unreachable(),
    "touch": lambda cache, _: cache.session("chat").touch(),
    "fork": lambda cache, _: cache.fork("chat", "new"),
    "commit": lambda cache, manifest: cache.session("chat").commit_runtime_state(
        commit(2, append("d", parent="c"), checkpoint=carried(manifest))
    ),
    "commit on any revision": lambda cache, manifest: cache.session("chat").commit_runtime_state(
        commit(None, append("d", parent="c"), checkpoint=carried(manifest))
    ),
}
COMPONENT_METHODS = (
    *("load the graph", "load the path", "load a path", "load a page", "load the checkpoint", "touch", "fork"),
)
"""The methods that return components or extend their lifetime. A commit raises `MissingBlob` instead."""


@broken_by(
    Lua("node", "if wrong then return refuse(session, wrong) end", ""),
    Lua("tombstone", "if wrong then return refuse(session, wrong) end", "facts = facts or nil"),
    Python("protocol.commands.reads:_check_sizes", lambda _: lambda *_: None, "counts nothing"),
)
@pytest.mark.parametrize("family", FAMILIES)
async def test_every_method_names_the_evicted_key_of_a_session(family, open_cache, client, keyspace):
    manifest = await full_session(open_cache())
    lost = await key_of(client, family)
    await client.delete(lost)
    before = await keyspace()
    for name, method in METHODS.items():
        with pytest.raises(SessionEvicted) as refused:
            await method(open_cache(), manifest)
        assert refused.value.key == lost.decode(), name
        assert refused.value.kind == family, name
        assert await keyspace() == before, name


@pytest.mark.parametrize("component", ["tool_state", "plugin_snapshot", "execution_state"])
async def test_methods_that_use_components_name_the_evicted_blob(component, open_cache, client, keyspace):
    def cache_of_one_shard():
        return open_cache(shards=1)

    uploads = {name: await cache_of_one_shard().put_blob(data) for name, data in UPLOADS.items()}
    manifest = await full_session(cache_of_one_shard(), HydratedSessionCheckpoint(tool_state=tools(), **uploads))
    assert len(await blob_keys(client)) == 3
    ref = getattr(manifest, f"{component}_ref")
    (lost,) = [key for key in await blob_keys(client) if key.endswith(ref.encode())]
    await client.delete(lost)
    before = await keyspace()
    for name in COMPONENT_METHODS:
        with pytest.raises(SessionEvicted) as refused:
            await METHODS[name](cache_of_one_shard(), manifest)
        assert refused.value.key == lost.decode(), name
        assert await keyspace() == before, name
    with pytest.raises(StoreError, match=ref):
        await METHODS["commit"](cache_of_one_shard(), manifest)
    assert await keyspace() == before


BROKEN_STATES = {
    "extra field": {"p": b"\0p", "x": b"\0x", "y": b"\0y"},
    "missing field": {"x": b"\0x"},
}


@broken_by(
    Lua("commit", "(facts.private > 0 or adds_state) and", "false and"),
    Lua("replace", "(facts.private > 0 or adds_state) and", "false and"),
    Lua("touch", "or mismatch('state', 'HLEN', state, facts.private)", ""),
    Lua("refresh", "or mismatch('state', 'HLEN', state, facts.private)", ""),
    Python("protocol.commands.reads:_check_sizes", lambda _: lambda *_: None, "counts nothing"),
)
@pytest.mark.parametrize("damage", ["gone", *BROKEN_STATES])
async def test_methods_report_a_state_key_that_does_not_match_the_head(damage, open_cache, client, keyspace):
    manifest = await full_session(open_cache())
    held = await open_cache().session("chat").load_session(FullGraph())
    state = await key_of(client, "state")
    await client.delete(state)
    if damage != "gone":
        await client.hset(state, mapping=BROKEN_STATES[damage])
    before = await keyspace()
    replacement = commit(2, replace_full("x"), checkpoint=carried(manifest))
    methods: dict[str, Method] = {
        **{name: METHODS[name] for name in ("load the graph", "load the path", "load the head", "commit", "touch")},
        "replace": lambda cache, _: cache.session("chat").commit_runtime_state(replacement),
        "replace the components": lambda cache, _: cache.session("chat").commit_runtime_state(
            commit(2, append("d", parent="c"), checkpoint=STATES)
        ),
        "refresh": lambda cache, _: cache.session("chat").refresh(held),
    }
    for name, method in methods.items():
        with pytest.raises(SessionEvicted if damage == "gone" else Corrupt) as refused:
            await method(open_cache(), manifest)
        assert (refused.value.kind, refused.value.key) == ("state", state.decode()), name
        assert await keyspace() == before, name
    (problem,) = (await open_cache(role="auditor").audit()).problems
    assert (problem.kind, problem.key) == ("state", state.decode())
    assert problem.reason.startswith("evicted: is gone") == (damage == "gone")


async def test_a_cache_with_the_bytes_of_an_evicted_blob_reads_and_stores_them_again(open_cache, client):
    cache = open_cache()
    manifest = await full_session(cache)
    for blob in await blob_keys(client):
        await client.delete(blob)
    read = await cache.session("chat").load_session(FullGraph())
    assert read.checkpoint.execution_state == b"1"
    await cache.session("chat").commit_runtime_state(commit(2, append("d", parent="c"), checkpoint=carried(manifest)))
    read = await open_cache().session("chat").load_session(FullGraph())
    assert (read.checkpoint.tool_state, read.checkpoint.execution_state) == (tools(), b"1")
    assert (await open_cache(role="auditor").audit()).problem_count == 0


# A full server


WRITES: dict[str, Method] = {
    "a first commit": lambda cache, _: cache.session("new").commit_runtime_state(
        commit(None, append("z"), session_id="new")
    ),
    "a commit": METHODS["commit"],
    "create": lambda cache, _: cache.create(SessionStoreCreateRequest("another")),
    "save the meta": METHODS["save the meta"],
    "tombstone": METHODS["tombstone"],
    "touch": METHODS["touch"],
    "fork": METHODS["fork"],
    "upload": lambda cache, _: cache.put_blob(b"bytes"),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_full_server_refuses_a_write_with_oom_and_changes_nothing(name, real_server, full, open_real_cache):
    manifest, cache = await full_session(open_real_cache()), open_real_cache(ttl=100)
    await cache.session("chat").load_head()  # reads the layout, so that only the tested write can fail
    client = real_server.client()
    before = await snapshot(client)
    await full()
    with pytest.raises(BackendError, match="OOM"):
        await WRITES[name](cache, manifest)
    assert await snapshot(client) == before


@broken_by(Lua("replace", "call('HSET', head, 'refs', before)\n", ""))
async def test_a_replacement_that_drops_nodes_changes_nothing_on_a_full_server(real_server, full, open_real_cache):
    store, client = open_real_cache().session("chat"), real_server.client()
    nodes = [*chain("a", "b", "c", "d"), *chain("e", parent="b")]
    await store.commit_runtime_state(commit(None, Append(nodes, "e"), checkpoint=STATES))
    read, before = await store.load_session(FullGraph()), await snapshot(client)
    made = commit(1, ReplaceFull(read.graph.first(3).append_event({})), checkpoint=STATES)
    await full()
    with pytest.raises(BackendError, match="OOM"):
        await store.commit_runtime_state(made)
    assert await snapshot(client) == before
    await client.config_set("maxmemory", 0)
    assert (await store.commit_runtime_state(made)).replayed is False
    assert (await store.load_session(FullGraph())).graph == made.graph.graph


@broken_by(
    Lua(
        "replace",
        "if drops > 0 then\n  --",
        "if replaced then call('UNLINK', log, nodes, jumps, dead) end\nif drops > 0 then\n  --",
    )
)
async def test_a_replacement_of_the_whole_graph_changes_nothing_on_a_full_server(real_server, full, open_real_cache):
    cache, client = open_real_cache(), real_server.client()
    made = commit(2, replace_full("x", "y"), checkpoint=carried(await full_session(cache)))
    before = await snapshot(client)
    await full()
    with pytest.raises(BackendError, match="OOM"):
        await cache.session("chat").commit_runtime_state(made)
    assert await snapshot(client) == before


async def test_sessions_can_be_read_listed_and_deleted_on_a_full_server(full, open_real_cache, real_server):
    await full_session(open_real_cache())
    await full()
    cache = open_real_cache()
    assert (await cache.session("chat").load_session(FullGraph())).head_revision == 2
    assert [info.session_id async for info in cache.sessions()] == ["chat"]
    report = await cache.delete("chat")
    assert (report.existed, report.closed) == (True, True)
    assert await cache.session("chat").load_session(FullGraph()) is None


# Eviction under load


@pytest.fixture
async def small_server(real_server):
    """The client of a server that evicts random keys above 5 MB of data."""
    admin = real_server.client()
    await admin.config_set("maxmemory-policy", "allkeys-random")
    await admin.config_set("maxmemory", (await admin.info("memory"))["used_memory"] + 5_000_000)
    yield admin
    await admin.config_set("maxmemory", 0)
    await admin.config_set("maxmemory-policy", "noeviction")


@pytest.mark.slow
async def test_a_read_under_eviction_is_correct_or_raises_a_typed_error(small_server, open_real_cache):
    """Every part of a session contains the session's name and revision, so the test detects a mixture."""
    dice = random.Random(7)
    revisions: dict[str, int] = {}
    counts = {"right": 0, "absent": 0, "evicted": 0, "written": 0, "refused": 0}
    writer = open_real_cache()
    for step in range(8000):
        name = f"s{dice.randrange(400)}"
        if dice.random() < 0.5:
            revision = revisions.get(name, 0)
            label = f"{name} {revision + 1} "
            state = HydratedSessionCheckpoint(tool_state=tools(label), execution_state=label.encode() * 40)
            parent = f"n{revision - 1}b" if revision else None
            nodes = chain(f"n{revision}a", f"n{revision}b", parent=parent, text="x" * 900)
            made = commit(revision, Append(nodes, nodes[-1].node_id), session_id=name, checkpoint=state)
            try:
                await writer.session(name).commit_runtime_state(made)
                revisions[name] = revision + 1
                counts["written"] += 1
            except SessionEvicted:
                await writer.delete(name)
                revisions.pop(name, None)
                counts["refused"] += 1
            except StoreError:  # the whole session was evicted: the next commit creates it
                revisions.pop(name, None)
                counts["refused"] += 1
        else:
            scope = FullGraph() if dice.random() < 0.5 else ActivePath()
            try:
                read = await open_real_cache(blob_cache_bytes=0).session(name).load_session(scope)
            except SessionEvicted:
                counts["evicted"] += 1
                continue
            if read is None:
                counts["absent"] += 1
                continue
            revision = revisions[name]
            assert read.head_revision == revision
            assert [node.node_id for node in read.graph.nodes] == [f"n{at}{x}" for at in range(revision) for x in "ab"]
            assert read.checkpoint.execution_state == f"{name} {revision} ".encode() * 40
            assert read.checkpoint.tool_state == tools(f"{name} {revision} ")
            counts["right"] += 1
        if step % 50 == 0:
            await asyncio.sleep(0)
    assert (await small_server.info("stats"))["evicted_keys"] > 100
    assert min(counts["right"], counts["evicted"], counts["written"]) > 50, counts


async def test_a_log_evicted_between_the_two_round_trips_of_a_path_read_is_reported(open_cache, client, monkeypatch):
    await full_session(open_cache())
    cache = open_cache()
    store = cache.session("chat")
    lost, read, trips = await key_of(client, "log"), cache.shared.read, []

    async def losing(trip, **how):
        trips.append(trip)
        if len(trips) == 2:
            await client.delete(lost)
        return await read(trip, **how)

    monkeypatch.setattr(cache.shared, "read", losing)
    with pytest.raises(SessionEvicted) as refused:
        await store.load_session(ActivePath())
    assert refused.value.key == lost.decode()
