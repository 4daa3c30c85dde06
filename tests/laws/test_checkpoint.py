"""Components are carried by ref, shared by their content, and stored as long as a session refers to them."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest

from lash_redis import (
    ActivePath,
    BlobProfile,
    Corrupt,
    FullGraph,
    GcReport,
    HydratedSessionCheckpoint,
    InvalidRecord,
    MissingBlob,
    PersistedTurnState,
    RuntimeCommit,
    SessionCache,
    SessionEvicted,
    StoreGcPolicy,
)
from lash_redis.protocol.commands import prepared_commit
from lash_redis.protocol.packing import pack, pack_record
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, blob_keys, commit, holders, key_of, plugins, replace_full, tools

Checkpoint = HydratedSessionCheckpoint
UNKNOWN_REF = "0" * 64


async def publish(store, expected: int | None = None, /, **components):
    made = commit(expected, session_id=store.session_id, checkpoint=Checkpoint(**components))
    return await store.commit_runtime_state(made)


async def components(store):
    return (await store.load_session(FullGraph())).checkpoint


# Loading

CHECKPOINT = Checkpoint(
    PersistedTurnState(turn_index=3), tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1"
)


@broken_by(Python("session.store:RedisSessionStore._seen_head", lambda _: lambda _, head: head.meta(), "forgets it"))
async def test_a_checkpoint_is_loaded_without_the_graph(open_cache):
    store = open_cache().session("chat")
    assert await store.load_checkpoint() is None
    await store.commit_runtime_state(commit(0, append("a", "b"), checkpoint=CHECKPOINT))
    other = open_cache().session("chat")
    head, checkpoint = await other.load_checkpoint()
    assert (head.head_revision, head.leaf_node_id, head.graph_node_count) == (1, "b", 2)
    assert (checkpoint.turn_state.turn_index, checkpoint.execution_state) == (3, b"1")
    assert (checkpoint.tool_state, checkpoint.plugin_snapshot) == (tools(), plugins())
    assert checkpoint == await components(open_cache().session("chat"))
    assert await store.load_head() == head
    result = await other.commit_runtime_state(RuntimeCommit("chat", graph=append("c", parent="b")))
    assert result.head_revision == 2
    assert (await store.load_checkpoint())[1] == checkpoint


async def test_the_cost_of_a_checkpoint_does_not_depend_on_the_nodes(proxy, through_proxy):
    cache = through_proxy()
    traffic = []
    for session_id, nodes in (("few", 2), ("many", 400)):
        store = cache.session(session_id)
        graph = append(*(f"n{at}" for at in range(nodes)))
        await store.commit_runtime_state(commit(0, graph, session_id=session_id, checkpoint=CHECKPOINT))
        await store.load_checkpoint()
        with proxy.measure() as measured:
            await store.load_checkpoint()
        traffic.append(measured)
    assert [each.round_trips for each in traffic] == [1, 1]
    assert traffic[1].bytes_received < traffic[0].bytes_received + 50


# Carrying


@broken_by(
    Lua("commit", "ARGV[contents + index], hold, '1')", "'', hold, '1')"),
    Lua("commit", "string.byte(after, 67) ~= 112", "true"),
)
async def test_a_commit_with_only_a_ref_keeps_the_component(open_cache):
    first = (await publish(open_cache().session("chat"), tool_state=tools(), execution_state=b"1")).manifest
    refs = {"tool_state_ref": first.tool_state_ref, "execution_state_ref": first.execution_state_ref}
    second = (await publish(open_cache().session("chat"), 1, plugin_snapshot=plugins(), **refs)).manifest
    assert (second.tool_state_ref, second.execution_state_ref) == (first.tool_state_ref, first.execution_state_ref)
    seen = await components(open_cache().session("chat"))
    assert (seen.tool_state, seen.plugin_snapshot, seen.execution_state) == (tools(), plugins(), b"1")


async def test_a_component_with_neither_body_nor_ref_is_dropped(open_cache):
    store = open_cache().session("chat")
    first = (await publish(store, tool_state=tools(), execution_state=b"1")).manifest
    second = (await publish(store, 1, tool_state_ref=first.tool_state_ref)).manifest
    assert (second.tool_state_ref, second.execution_state_ref) == (first.tool_state_ref, None)
    seen = await components(open_cache().session("chat"))
    assert (seen.tool_state, seen.execution_state) == (tools(), None)


@pytest.fixture
def encoded_paths(monkeypatch):
    """The paths of the records that were encoded since the test began."""
    paths: list[str] = []

    def recorded(record, path):
        paths.append(path)
        return pack_record(record, path)

    monkeypatch.setattr(prepared_commit, "pack_record", recorded)
    return paths


async def test_unchanged_tools_are_encoded_once_per_cache(cache, encoded_paths):
    one, two = cache.session("one"), cache.session("two")
    first = await publish(one, tool_state=tools())
    assert encoded_paths.count("RuntimeCommit.checkpoint.tool_state") == 1
    again = await publish(one, 1, tool_state=tools())
    other = await publish(two, tool_state=tools())
    assert encoded_paths.count("RuntimeCommit.checkpoint.tool_state") == 1
    assert first.manifest.tool_state_ref == again.manifest.tool_state_ref == other.manifest.tool_state_ref
    assert (await components(two)).tool_state == tools()


ENTRY = tools().tools["search"]


@broken_by(
    Python("protocol.commands.prepared_commit:fingerprint_of", lambda _: lambda tools: b"", "treats all tools as equal")
)
@pytest.mark.parametrize(
    "change",
    [
        lambda tools: tools.tools["search"].manifest.update(description="other"),
        lambda tools: tools.tools["search"].manifest.update(flag=True),
        lambda tools: tools.tools["search"].manifest.update(flag=1.0),
        lambda tools: tools.tools["search"].manifest["input_schema"].clear(),
        lambda tools: tools.tools.update(another=ENTRY),
        lambda tools: tools.tools.pop("search"),
    ],
)
async def test_tools_changed_in_place_are_stored_with_their_changes(change, cache):
    store, state = cache.session("chat"), tools()
    state.tools["search"].manifest.update(flag=1, input_schema={"type": "object"})
    await publish(store, tool_state=state)
    change(state)
    expected = state.to_json()
    await publish(store, 1, tool_state=state)
    assert repr((await components(store)).tool_state.to_json()) == repr(expected)


async def test_tools_that_cannot_be_encoded_are_refused_at_every_attempt(store, keyspace):
    state = tools()
    await publish(store, tool_state=state)
    state.tools["search"].manifest["when"] = (1, 2)
    before = await keyspace()
    for _ in range(2):
        with pytest.raises(InvalidRecord) as refused:
            await publish(store, 1, tool_state=state)
        assert refused.value.field == "RuntimeCommit.checkpoint.tool_state.tools['search'].manifest.when"
    assert await keyspace() == before


async def test_components_of_a_read_that_were_not_accessed_are_not_encoded_again(open_cache, encoded_paths):
    await publish(open_cache().session("chat"), tool_state=tools(), plugin_snapshot=plugins())
    store = open_cache().session("chat")
    read = await components(store)
    encoded_paths.clear()
    kept = (await publish(store, 1, tool_state=read.tool_state, plugin_snapshot=read.plugin_snapshot)).manifest
    assert not [path for path in encoded_paths if path.startswith("RuntimeCommit.checkpoint.")]
    assert (kept.tool_state_ref, kept.plugin_snapshot_ref) == (read.tool_state_ref, read.plugin_snapshot_ref)
    other = (await publish(open_cache().session("other"), tool_state=read.tool_state)).manifest
    assert other.tool_state_ref == read.tool_state_ref
    assert (await components(open_cache().session("other"))).tool_state == tools()


async def test_components_of_a_read_changed_in_place_are_stored_with_their_changes(open_cache):
    await publish(open_cache().session("chat"), tool_state=tools(), plugin_snapshot=plugins({"seen": []}))
    store = open_cache().session("chat")
    read = await components(store)
    read.tool_state.tools["search"].manifest["description"] = "other"
    (entry,) = read.plugin_snapshot.plugins.values()
    entry.meta.state["seen"].append(1)
    await publish(store, 1, tool_state=read.tool_state, plugin_snapshot=read.plugin_snapshot)
    seen = await components(open_cache().session("chat"))
    assert seen.tool_state.tools["search"].manifest["description"] == "other"
    assert next(iter(seen.plugin_snapshot.plugins.values())).meta.state == {"seen": [1]}


async def test_a_component_evicted_after_the_read_is_stored_again(open_cache, client):
    await publish(open_cache().session("chat"), tool_state=tools())
    store = open_cache().session("chat")
    read = await components(store)
    (blob,) = await blob_keys(client)
    await client.delete(blob)
    await publish(store, 1, tool_state=read.tool_state)
    assert (await components(open_cache().session("chat"))).tool_state == tools()


async def test_a_body_takes_precedence_over_a_ref(store):
    await publish(store, execution_state=b"1", execution_state_ref=UNKNOWN_REF)
    assert (await components(store)).execution_state == b"1"


@pytest.mark.parametrize("body", [b"", bytes(range(256)), b"x" * 300_000])
async def test_an_execution_state_may_be_any_bytes(body, open_cache):
    result = await publish(open_cache().session("chat"), execution_state=body)
    assert result.manifest.execution_state_ref is not None
    assert (await components(open_cache().session("chat"))).execution_state == body


async def test_equal_components_have_equal_refs_manifests_and_checkpoint_refs(cache):
    one = await publish(cache.session("one"), tool_state=tools(), execution_state=b"1")
    two = await publish(cache.session("two"), tool_state=tools(), execution_state=b"1")
    other = await publish(cache.session("two"), 1, tool_state=tools(), execution_state=b"2")
    assert one.checkpoint_ref == two.checkpoint_ref != other.checkpoint_ref
    assert one.manifest == two.manifest
    assert one.manifest.tool_state_ref == other.manifest.tool_state_ref


async def test_turn_state_and_snapshot_revision_are_not_inherited_from_the_last_commit(store):
    await publish(store, turn_state=PersistedTurnState(turn_index=4), plugin_snapshot_revision=7)
    await publish(store, 1)
    assert await components(store) == Checkpoint()


@broken_by(Lua("commit", "if missing then return nil, missing end", ""))
async def test_a_commit_with_an_unknown_ref_is_refused_with_that_ref(store, keyspace):
    await publish(store, tool_state=tools())
    before = await keyspace()
    for component in ("tool_state", "plugin_snapshot", "execution_state"):
        with pytest.raises(MissingBlob) as refused:
            await publish(store, 1, **{f"{component}_ref": UNKNOWN_REF})
        assert (refused.value.ref, refused.value.component) == (UNKNOWN_REF, component)
        assert await keyspace() == before


async def test_a_ref_of_another_namespace_is_refused(open_cache):
    held = (await publish(open_cache(namespace="one").session("chat"), tool_state=tools())).manifest
    with pytest.raises(MissingBlob):
        await publish(open_cache(namespace="two").session("chat"), tool_state_ref=held.tool_state_ref)


async def test_one_blob_may_be_several_components(store, client):
    ref = (await publish(store, tool_state=tools())).manifest.tool_state_ref
    await publish(store, 1, tool_state_ref=ref, plugin_snapshot_ref=ref, execution_state_ref=ref)
    assert await holders(client) == [1]
    report = await store.gc_unreachable()
    assert report == GcReport(root_count=1, retained_blob_count=2, deleted_blob_count=0)


# Sharing and release


@broken_by(
    Lua("commit", "redis.call('HSET', blob, hold, count + 1)", "redis.call('HSET', blob, hold, count)"),
    Lua("commit", "redis.call('HSET', blob, hold, count + 1)", "redis.call('HSET', blob, hold, count + 2)"),
)
async def test_a_blob_shared_within_a_shard_is_stored_once_and_counts_its_holders(open_cache, client):
    for chat in ("one", "two", "three"):
        await publish(open_cache(shards=1).session(chat), tool_state=tools("x" * 1_000))
    assert await holders(client) == [3]


async def test_a_session_that_keeps_a_blob_counts_as_one_holder(open_cache, client):
    for expected in range(4):
        await publish(open_cache().session("chat"), expected, tool_state=tools())
    assert await holders(client) == [1]


@broken_by(Lua("commit", "redis.call('HSET', blob, hold, count - 1)", "redis.call('HSET', blob, hold, count)"))
async def test_a_blob_released_by_one_session_stays_available_to_another(open_cache, client):
    one, two = (open_cache(shards=1).session(chat) for chat in ("one", "two"))
    for store in (one, two):
        await publish(store, tool_state=tools())
    await publish(one, 1)
    assert await holders(client) == [1]
    assert (await one.gc_unreachable()).deleted_blob_count == 0
    assert (await components(open_cache(shards=1).session("two"))).tool_state == tools()
    await publish(two, 1)
    assert await holders(client) == [0]


@broken_by(
    Lua("gc", "if #doomed > 0 then redis.call('UNLINK', unpack(doomed)) end", ""),
    Lua("gc", "tonumber(due) <= now", "tonumber(due) > now"),
    Lua("commit", "if count > 1 then", "if count > 0 then"),
)
async def test_gc_deletes_blobs_without_holders_and_reports_their_number(store, client):
    await publish(store, tool_state=tools("1"), plugin_snapshot=plugins(), execution_state=b"1")
    await publish(store, 1, tool_state=tools("2"), plugin_snapshot=plugins())
    await publish(store, 2, tool_state=tools("3"), execution_state=b"2")
    assert len(await blob_keys(client)) == 3
    report = await store.gc_unreachable()
    assert report == GcReport(root_count=1, retained_blob_count=3, deleted_blob_count=2)
    assert await holders(client) == [1]
    assert (await store.gc_unreachable()).deleted_blob_count == 0
    seen = await components(store)
    assert (seen.tool_state, seen.execution_state) == (tools("3"), b"2")


async def test_gc_deletes_nothing_while_every_blob_has_a_holder(store):
    assert await store.gc_unreachable() == GcReport(0, 0, 0)
    await publish(store, tool_state=tools())
    assert await store.gc_unreachable() == GcReport(1, 2, 0)
    await publish(store, 1, tool_state=tools(), execution_state=b"1")
    assert await store.gc_unreachable() == GcReport(1, 3, 0)


@broken_by(Lua("gc", "if due and (not stored or is_held(key, now)) then", "if false then"))
async def test_gc_keeps_an_orphaned_blob_that_a_session_holds_again(open_cache, client):
    cache = open_cache(shards=1)
    await publish(cache.session("one"), tool_state=tools())
    await publish(cache.session("one"), 1)
    (blob,) = await blob_keys(client)
    orphans = (await client.keys("*:orphans"))[0]
    await publish(cache.session("two"), tool_state=tools())
    await client.zadd(orphans, {blob[-64:]: 1})
    assert (await cache.session("two").gc_unreachable()).deleted_blob_count == 0
    assert (await components(open_cache(shards=1).session("two"))).tool_state == tools()


async def test_an_orphaned_blob_that_is_held_again_loses_its_expiry(open_cache, client):
    store = open_cache().session("chat")
    await publish(store, tool_state=tools())
    await publish(store, 1)
    (blob,) = await blob_keys(client)
    assert await client.pttl(blob) > 0
    await publish(store, 2, tool_state=tools())
    assert await holders(client) == [1]
    assert await client.pttl(blob) == -1
    assert not await client.zrange(key_of_orphans(blob), 0, -1)


def key_of_orphans(blob: bytes) -> bytes:
    return blob[: blob.index(b"}:") + 2] + b"orphans"


async def test_a_blob_without_holders_expires_after_its_grace_period(open_cache, client):
    store = open_cache(blob_grace=0.05).session("chat")
    await publish(store, tool_state=tools())
    assert len(await blob_keys(client)) == 1
    await publish(store, 1)
    while await blob_keys(client):  # noqa: ASYNC110 - no event reports an expiry
        await asyncio.sleep(0.01)


async def test_gc_stops_at_an_undecodable_head(store, client, keyspace):
    await publish(store, tool_state=tools("1"))
    await publish(store, 1, tool_state=tools("2"))
    await client.hset(await key_of(client, "head"), "body", b"{")
    before = await keyspace()
    with pytest.raises(Corrupt):
        await store.gc_unreachable()
    assert await keyspace() == before


async def test_gc_concurrent_with_commits_never_deletes_a_blob_of_a_head(open_cache):
    caches = [open_cache(shards=1) for _ in range(3)]
    states = [tools("a"), tools("b"), None]

    async def turn(cache, chat):
        for at in range(15):
            await publish(cache.session(chat), tool_state=states[at % 3], execution_state=str(at % 2).encode())

    async def collect():
        for _ in range(30):
            await caches[2].session("one").gc_unreachable()

    await asyncio.gather(turn(caches[0], "one"), turn(caches[1], "two"), collect())
    await caches[2].session("one").gc_unreachable()
    for chat in ("one", "two"):
        seen = await components(open_cache(shards=1).session(chat))
        assert (seen.tool_state, seen.execution_state) == (None, b"0")


async def test_a_handle_runs_gc_after_the_configured_number_of_commits(open_cache, client):
    store = open_cache(gc_policy=StoreGcPolicy(auto_run_every_commits=3)).session("chat")
    stored = []
    for expected in range(6):
        await publish(store, expected, tool_state=tools(str(expected)))
        stored.append(len(await blob_keys(client)))
    assert stored == [1, 2, 1, 2, 3, 1]


# Private components

LARGE = plugins("y" * 5_000)
DROP_FIELDS = "if #drop > 0 then call('HDEL', state, unpack(drop)) end"


async def private(client, session_id: str = "chat") -> dict[bytes, bytes]:
    """The stored fields of the private components of a session. Without components there are none."""
    found = [key for key in await client.keys("*") if key.endswith(f":state:{session_id}".encode())]
    return await client.hgetall(found[0]) if found else {}


async def commit_three_heads(open_cache, client, **more) -> None:
    """Commit three heads: with both components, with one replaced and the other dropped, and with none."""
    states = [{"plugin_snapshot": plugins(), "execution_state": b"1"}, {"execution_state": b"22"}, {}]
    fields = []
    for revision, state in enumerate(states):
        made = commit(revision, checkpoint=Checkpoint(**state), **more)
        await open_cache().session("chat").commit_runtime_state(made)
        fields.append(sorted(await private(client)))
        seen = await components(open_cache().session("chat"))
        assert (seen.plugin_snapshot, seen.execution_state) == (
            state.get("plugin_snapshot"),
            state.get("execution_state"),
        )
    assert fields == [[b"p", b"x"], [b"x"], []]
    assert await blob_keys(client) == await client.keys("*:state:*") == await client.keys("*:orphans") == []


@broken_by(
    Lua("commit", DROP_FIELDS, ""),
    Lua("commit", "drop[1] = 'p'", ""),
    Lua("commit", "set[#set + 2] = 'x', execution", "set[#set + 2] = 'p', execution"),
)
async def test_a_commit_removes_the_private_components_it_replaces_or_drops(open_cache, client):
    await commit_three_heads(open_cache, client)


@broken_by(
    Lua("replace", DROP_FIELDS, ""),
    Lua("replace", "drop[1] = 'p'", ""),
    Lua("replace", "set[#set + 2] = 'x', execution", "set[#set + 2] = 'p', execution"),
)
async def test_a_graph_replacement_removes_the_private_components_it_replaces_or_drops(open_cache, client):
    await commit_three_heads(open_cache, client, graph=replace_full())


@broken_by(Python("protocol.commands.commit:_private_contents", lambda _: all_contents, "sends them always"))
async def test_private_components_already_stored_with_the_head_are_not_sent_again(through_proxy, proxy, real_server):
    body = bytes(range(256)) * 40
    first = (await publish(through_proxy().session("chat"), plugin_snapshot=LARGE, execution_state=body)).manifest
    store = through_proxy().session("chat")
    read = await components(store)
    ways = [
        {"plugin_snapshot_ref": first.plugin_snapshot_ref, "execution_state_ref": first.execution_state_ref},
        {"plugin_snapshot": LARGE, "execution_state": body},
        {"plugin_snapshot": read.plugin_snapshot, "execution_state": read.execution_state},
    ]
    for revision, way in enumerate(ways, 1):
        with proxy.measure() as seen:
            await publish(store, revision, **way)
        assert seen.commands == 1
        assert seen.bytes_sent < 3_000
    cache = SessionCache(real_server.client(), "laws")
    read = await cache.session("chat").load_session(FullGraph())
    assert (read.head_revision, read.checkpoint.plugin_snapshot, read.checkpoint.execution_state) == (4, LARGE, body)


def all_contents(prepared, before, after, profile):
    return [prepared.content(ref, profile) for ref in after.refs[1:]]


@broken_by(
    Lua("commit", "if missing then return nil, missing end", ""),
    Lua("commit", DROP_FIELDS, ""),
)
@pytest.mark.parametrize("component", ["plugin_snapshot", "execution_state"])
async def test_a_private_component_dropped_by_a_commit_is_no_longer_stored(component, open_cache, client, keyspace):
    store, revision = open_cache().session("chat"), 0
    states = {"plugin_snapshot": plugins(), "execution_state": b"1"}
    first = (await publish(store, plugin_snapshot=plugins(), execution_state=b"1")).manifest
    revision = (
        await publish(store, 1, **{name: value for name, value in states.items() if name != component})
    ).head_revision
    ref = getattr(first, f"{component}_ref")
    before = await keyspace()
    for each in (store, open_cache().session("chat")):
        with pytest.raises(MissingBlob) as refused:
            await publish(each, revision, **{f"{component}_ref": ref})
        assert (refused.value.ref, refused.value.component) == (ref, component)
        assert await keyspace() == before
    assert await open_cache().get_blob(ref) is None


async def test_a_private_component_is_accessible_only_to_its_session(open_cache):
    cache = open_cache(shards=1)
    manifest = (await publish(cache.session("one"), execution_state=b"1")).manifest
    assert await cache.get_blob(manifest.execution_state_ref) is None
    with pytest.raises(MissingBlob):
        await publish(cache.session("two"), execution_state_ref=manifest.execution_state_ref)
    assert (await components(cache.session("one"))).execution_state == b"1"


async def test_sessions_with_equal_private_components_store_them_separately(open_cache, client):
    for chat in ("one", "two"):
        await publish(open_cache(shards=1).session(chat), plugin_snapshot=plugins(), execution_state=b"1")
    assert await private(client, "one") == await private(client, "two") != {}
    assert await blob_keys(client) == []
    await publish(open_cache(shards=1).session("one"), 1)
    seen = await components(open_cache(shards=1).session("two"))
    assert (seen.plugin_snapshot, seen.execution_state) == (plugins(), b"1")


async def test_a_private_component_stays_private_when_the_same_bytes_are_uploaded(open_cache, client):
    store = open_cache(shards=1).session("chat")
    ref = (await publish(store, execution_state=b"uploaded")).manifest.execution_state_ref
    assert await open_cache(shards=1).put_blob(UPLOADED) == ref
    await publish(store, 1, execution_state_ref=ref)
    assert await holders(client) == [0]
    assert list(await private(client)) == [b"x"]


async def test_an_uploaded_component_stays_a_blob_when_its_body_is_committed(open_cache, client):
    ref = await open_cache(shards=1).put_blob(UPLOADED)
    for revision, state in enumerate([{"execution_state_ref": ref}, {"execution_state": b"uploaded"}]):
        await publish(open_cache(shards=1).session("chat"), revision, **state)
        assert await holders(client) == [1]
        assert await private(client) == {}
    assert (await components(open_cache(shards=1).session("chat"))).execution_state == b"uploaded"


@broken_by(
    Lua("commit", "add_holder(key, hold, counts[1], now)", ""),
    Lua("commit", "if counts[1] > 0 then drop_holder(key, had, counts[1], counts[2], grace, now, free) end", ""),
)
@pytest.mark.parametrize("component", ["plugin_snapshot", "execution_state"])
async def test_an_upload_counts_its_sessions_and_is_released_when_they_replace_it(component, open_cache, client):
    data = UPLOADED if component == "execution_state" else pack_record(plugins(), "plugins")
    body = {"execution_state": b"2", "plugin_snapshot": plugins("2")}[component]
    cache = open_cache(shards=1, blob_grace=0.02, upload_grace=1)
    ref = await cache.put_blob(data)
    for chat in ("one", "two"):
        await publish(cache.session(chat), **{f"{component}_ref": ref})
    assert await holders(client) == [2]
    assert await private(client, "one") == await private(client, "two") == {}
    await publish(cache.session("one"), 1, **{component: body})
    assert await holders(client) == [1]
    assert len(await private(client, "one")) == 1
    await publish(cache.session("two"), 1)
    assert await holders(client) == [0]
    (blob,) = await blob_keys(client)
    assert 0 < await client.pttl(blob) <= 1_000
    assert getattr(await components(open_cache(shards=1).session("one")), component) == body


async def test_an_upload_on_another_shard_is_copied_to_the_session(open_cache, client):
    cache = open_cache(shards=64)
    ref = await cache.put_blob(UPLOADED)
    (upload,) = await blob_keys(client)
    chat = next(f"s{n}" for n in range(100) if cache.layout.shard_of(f"s{n}") != cache.layout.shard_of(ref))
    await publish(open_cache(shards=64).session(chat), execution_state_ref=ref)
    assert await blob_keys(client) == [upload]
    assert await holders(client) == [0]
    assert list(await private(client, chat)) == [b"x"]
    await client.delete(upload)
    assert (await components(open_cache(shards=64).session(chat))).execution_state == b"uploaded"


@broken_by(Lua("commit", "if facts.private > 0 then redis.call('PEXPIREAT', state, deadline) end", ""))
async def test_the_first_private_component_gets_the_deadline_of_its_session(open_cache, client):
    store = open_cache(ttl=100).session("chat")
    await publish(store)
    await publish(store, 1, execution_state=b"1")
    assert 95_000 < await client.pttl(await key_of(client, "state")) <= 100_000


async def test_the_compact_profile_stores_private_components_in_fewer_bytes(open_cache, client):
    sizes = {}
    for profile in BlobProfile:
        store = open_cache(blob_profile=profile).session(profile.name.lower())
        await publish(store, plugin_snapshot=plugins("x" * 2_000), execution_state=b"x" * 2_000)
        stored = await private(client, store.session_id)
        sizes[profile] = [len(stored[field]) for field in (b"p", b"x")]
        for other in BlobProfile:
            seen = await components(open_cache(blob_profile=other).session(store.session_id))
            assert (seen.plugin_snapshot, seen.execution_state) == (plugins("x" * 2_000), b"x" * 2_000)
    assert max(sizes[BlobProfile.COMPACT]) < 200
    assert min(sizes[BlobProfile.BALANCED]) > 2_000
    assert sizes[BlobProfile.BALANCED] == sizes[BlobProfile.LOW_LATENCY]


# Uploads

UPLOADED = pack(b"uploaded", "uploaded")
"""The stored form of the execution state `b"uploaded"`."""


@pytest.mark.parametrize("shards", [1, 64])
async def test_an_uploaded_blob_can_be_committed_by_its_ref(shards, open_cache):
    donor = open_cache(shards=shards)
    body = (await publish(donor.session("donor"), execution_state=b"uploaded")).manifest.execution_state_ref
    ref = await open_cache(shards=shards).put_blob(UPLOADED)
    assert ref == body
    for chat in ("one", "two", "three"):
        store = open_cache(shards=shards).session(chat)
        await publish(store, execution_state_ref=ref)
        assert (await components(open_cache(shards=shards).session(chat))).execution_state == b"uploaded"


@broken_by(Python("session.namespace:ref_of", lambda ref_of: lambda data: ref_of(data + b" "), "hashes something else"))
async def test_a_ref_is_the_sha256_of_the_bytes_in_every_profile(open_cache):
    data = b"compressible " * 1_000
    refs = [await open_cache(blob_profile=profile).put_blob(data) for profile in BlobProfile]
    assert refs == [sha256(data).hexdigest()] * 3
    assert [await open_cache().get_blob(ref) for ref in refs] == [data] * 3


async def test_every_profile_reads_blobs_of_every_other_profile(open_cache, client):
    large = tools("z" * 9_000)
    refs = set()
    for chat, profile in zip("abc", BlobProfile, strict=True):
        result = await publish(open_cache(blob_profile=profile).session(chat), tool_state=large, execution_state=b"1")
        refs.add(result.manifest.tool_state_ref)
    assert len(refs) == 1
    for chat in "abc":
        for profile in BlobProfile:
            seen = await components(open_cache(blob_profile=profile).session(chat))
            assert (seen.tool_state, seen.execution_state) == (large, b"1")


async def test_the_compact_profile_stores_uploads_in_fewer_bytes(open_cache, client):
    sizes = {}
    for profile in BlobProfile:
        namespace = profile.name.lower()
        await open_cache(namespace=namespace, blob_profile=profile).put_blob(b"x" * 2_000)
        (blob,) = [key for key in await blob_keys(client) if namespace.encode() in key]
        sizes[profile] = await client.hstrlen(blob, "c")
    assert sizes[BlobProfile.COMPACT] < 100
    assert sizes[BlobProfile.BALANCED] == sizes[BlobProfile.LOW_LATENCY] == 2_001


async def test_repeated_uploads_store_one_blob_that_expires_without_a_holder(cache, client):
    refs = {await cache.put_blob(b"bytes") for _ in range(3)}
    assert len(refs) == 1
    assert await holders(client) == [0]
    (blob,) = await blob_keys(client)
    assert await client.pttl(blob) > 0


async def test_uploading_a_held_blob_changes_neither_its_holders_nor_its_expiry(open_cache, client):
    cache = open_cache(shards=1)
    ref = (await publish(cache.session("chat"), tool_state=tools())).manifest.tool_state_ref
    data = await cache.get_blob(ref)
    await open_cache(shards=1).put_blob(data)
    assert await holders(client) == [1]
    (blob,) = await blob_keys(client)
    assert await client.pttl(blob) == -1


async def test_gc_keeps_an_upload_that_is_not_committed_yet(open_cache):
    cache = open_cache(shards=1)
    ref = await cache.put_blob(b"bytes")
    assert (await cache.session("chat").gc_unreachable()).deleted_blob_count == 0
    assert await open_cache(shards=1).get_blob(ref) == b"bytes"


async def test_a_component_can_be_fetched_by_its_ref(open_cache):
    result = await publish(open_cache().session("chat"), tool_state=tools())
    data = await open_cache().get_blob(result.manifest.tool_state_ref)
    assert sha256(data).hexdigest() == result.manifest.tool_state_ref


async def test_get_blob_returns_none_for_an_unknown_ref(cache):
    assert await cache.get_blob(UNKNOWN_REF) is None


@pytest.mark.parametrize("ref", ["", "abc", "G" * 64, "A" * 64, "0" * 63, "0" * 65, "0" * 63 + "\n", None, b"0" * 64])
async def test_get_blob_refuses_an_invalid_ref(ref, cache):
    with pytest.raises(InvalidRecord):
        await cache.get_blob(ref)


async def test_an_empty_upload_is_stored(open_cache):
    ref = await open_cache().put_blob(b"")
    assert await open_cache().get_blob(ref) == b""


# Damage


def without_comparison(_):
    return lambda ref, content, key: content[1:]


@broken_by(Python("session.namespace:decode_blob", without_comparison, "does not compare hashes"))
async def test_bytes_that_do_not_hash_to_their_ref_are_corrupt(open_cache, client):
    ref = (await publish(open_cache().session("chat"), tool_state=tools())).manifest.tool_state_ref
    (blob,) = await blob_keys(client)
    await flip_last_bit(client, blob, "c")
    for scope in (FullGraph(), ActivePath()):
        with pytest.raises(Corrupt) as damaged:
            await open_cache().session("chat").load_session(scope)
        assert (damaged.value.kind, damaged.value.key) == ("blob", blob.decode())
    with pytest.raises(Corrupt):
        await open_cache().get_blob(ref)


@broken_by(Python("protocol.components:decode_blob", without_comparison, "does not compare hashes"))
@pytest.mark.parametrize("field", ["p", "x"])
async def test_private_bytes_that_do_not_hash_to_their_ref_are_corrupt_on_access(field, open_cache, client):
    await publish(open_cache().session("chat"), plugin_snapshot=plugins(), execution_state=b"state")
    state = await key_of(client, "state")
    await flip_last_bit(client, state, field)
    for scope in (FullGraph(), ActivePath()):
        checkpoint = (await open_cache().session("chat").load_session(scope)).checkpoint
        with pytest.raises(Corrupt) as damaged:
            _ = checkpoint.plugin_snapshot if field == "p" else checkpoint.execution_state
        assert damaged.value.key == state.decode()
    with pytest.raises(Corrupt):
        await open_cache().fork("chat", "fork")


async def flip_last_bit(client, key: bytes, field: str) -> None:
    content = await client.hget(key, field)
    await client.hset(key, field, content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("content", [b"", b"\2bytes", b"\1not zlib", b"\0"])
async def test_content_of_an_unknown_encoding_is_corrupt(content, open_cache, client):
    await publish(open_cache().session("chat"), tool_state=tools())
    (blob,) = await blob_keys(client)
    await client.hset(blob, "c", content)
    with pytest.raises(Corrupt):
        await open_cache().session("chat").load_session(FullGraph())


@pytest.mark.parametrize("content", [b"", b"\2bytes", b"\1not zlib", b"\0"])
async def test_private_content_of_an_unknown_encoding_is_corrupt_on_access(content, open_cache, client):
    await publish(open_cache().session("chat"), execution_state=b"state")
    state = await key_of(client, "state")
    await client.hset(state, "x", content)
    read = await open_cache().session("chat").load_session(FullGraph())
    with pytest.raises(Corrupt) as damaged:
        _ = read.checkpoint.execution_state
    assert damaged.value.key == state.decode()


@pytest.mark.parametrize("component", ["plugin_snapshot", "execution_state"])
async def test_a_component_of_another_kind_is_corrupt_on_access(component, open_cache):
    manifest = (await publish(open_cache().session("chat"), tool_state=tools())).manifest
    await publish(open_cache().session("chat"), 1, **{f"{component}_ref": manifest.tool_state_ref})
    with pytest.raises(Corrupt):
        repr(getattr(await components(open_cache().session("chat")), component))


async def test_a_missing_blob_of_the_head_raises_session_evicted(open_cache, client):
    await publish(open_cache().session("chat"), tool_state=tools())
    (blob,) = await blob_keys(client)
    await client.delete(blob)
    for scope in (FullGraph(), ActivePath()):
        with pytest.raises(SessionEvicted) as gone:
            await open_cache().session("chat").load_session(scope)
        assert gone.value.key == blob.decode()


@pytest.mark.parametrize("field", ["0", "u"])
@pytest.mark.parametrize("planted", ["x", "-1", "1.5", "", "1" * 16])
async def test_an_invalid_holder_count_is_corrupt(field, planted, open_cache, client, keyspace):
    await publish(open_cache().session("chat"), tool_state=tools("1"))
    (blob,) = await blob_keys(client)
    await client.hset(blob, field, planted)
    before = await keyspace()
    with pytest.raises(Corrupt) as broken:
        await publish(open_cache().session("chat"), 1, tool_state=tools("2"))
    assert broken.value.key == blob.decode()
    assert await keyspace() == before


async def test_a_read_with_an_empty_path_still_has_its_components(open_cache):
    store = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=Checkpoint(execution_state=b"1")))
    read = await open_cache().session("chat").load_session(ActivePath("unknown"))
    assert (list(read.graph.nodes), read.checkpoint.execution_state) == ([], b"1")


@pytest.mark.parametrize("ref", ["no ref at all", "0" * 64])
async def test_a_ref_next_to_a_body_is_ignored_even_if_it_is_invalid(ref, store):
    checkpoint = HydratedSessionCheckpoint(execution_state=b"body", execution_state_ref=ref)
    result = await store.commit_runtime_state(commit(None, append("a"), checkpoint=checkpoint))
    assert result.manifest.execution_state_ref != ref
    assert (await store.load_session(FullGraph())).checkpoint.execution_state == b"body"
