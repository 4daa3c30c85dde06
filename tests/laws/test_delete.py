"""A deletion removes a whole session at once, closes its id for a time, and keeps blobs of other sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lash_redis import (
    DeleteReport,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    MissingBlob,
    SessionDeleted,
    SessionEvicted,
    SessionGone,
    SessionMeta,
    SessionStoreCreateRequest,
    StoreOptions,
)
from tests.support.breaking import Lua, broken_by
from tests.support.builders import append, blob_keys, commit, holders, ids_of, key_of, plugins, tools, used
from tests.support.proxy import Action, on

STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


async def full_session(cache, name: str = "chat"):
    """Create a session with every kind of key."""
    store = await cache.create(SessionStoreCreateRequest(name, parent_session_id="parent"))
    await store.commit_runtime_state(
        commit(None, append("a", "b"), session_id=name, checkpoint=STATES, usage_deltas=[used(input=1)])
    )
    await store.commit_runtime_state(commit(1, append("c", parent="a"), session_id=name, checkpoint=STATES))
    await store.tombstone_nodes(["b"])
    return store


@broken_by(
    Lua(
        "delete", "redis.call('UNLINK', head, log, nodes, jumps, dead, state)", "redis.call('UNLINK', head, log, nodes)"
    ),
    Lua("delete", "'UNLINK', head, log, nodes, jumps, dead, state)", "'UNLINK', head, log, nodes, jumps, dead)"),
    Lua("delete", "facts and whole and facts.private or 0", "0"),
    Lua("delete", "drop_entry(catalogues, entry_of(session, parent), now)", ""),
    Lua("delete", "drop_holder(KEYS[index], facts.hold", "drop_holder(KEYS[index], facts.hold + 1"),
)
async def test_a_deleted_session_leaves_only_its_deletion_marker(open_cache, client):
    cache = open_cache(blob_grace=0.05)
    await full_session(cache)
    assert await cache.delete("chat") == DeleteReport(True, node_count=2, released_blob_count=3, closed=True)
    await cache.gc()
    await asyncio.sleep(0.15)
    head = await key_of(client, "head")
    assert sorted(await client.keys("*")) == sorted([head, b"lash1:layout:laws"])
    assert list(await client.hgetall(head)) == [b"deleted"]
    assert [info async for info in cache.sessions()] == []


async def test_every_handle_reads_a_deleted_session_as_absent(open_cache):
    cache = open_cache()
    old = await full_session(cache)
    await open_cache().delete("chat")
    for store in (old, open_cache().session("chat")):
        assert await store.load_session(FullGraph()) is None
        assert await store.load_head() is None
        assert await store.load_node("a") is None
        assert await store.load_session_meta() is None
        assert await store.pending_inputs() == []
        assert (await store.vacuum()).removed_node_count == 0
        assert (await store.gc_unreachable()).root_count == 0
        await store.tombstone_nodes(["a"])


WRITES: dict[str, Callable[..., Awaitable[object]]] = {
    "a first commit": lambda cache: cache.session("chat").commit_runtime_state(commit(None, append("z"))),
    "a commit that builds on it": lambda cache: cache.session("chat").commit_runtime_state(commit(2, append("z"))),
    "meta": lambda cache: cache.session("chat").save_session_meta(SessionMeta("chat", "n", "t", "m")),
    "an input": lambda cache: cache.session("chat").enqueue_input("x"),
    "create": lambda cache: cache.create(SessionStoreCreateRequest("chat")),
    "a fork to it": lambda cache: cache.fork("other", "chat"),
    "touch": lambda cache: cache.session("chat").touch(),
    "update": lambda cache: cache.session("chat").update(lambda _: commit(None, append("z"))),
}


@broken_by(
    Lua("commit", "if stored.deleted then return {'deleted', session} end", ""),
    Lua("meta", "if stored.deleted then return {'deleted', session} end", ""),
)
async def test_writes_to_a_deleted_id_are_refused_and_change_nothing(open_cache, keyspace):
    cache = open_cache()
    await full_session(cache)
    await full_session(cache, "other")
    await cache.delete("chat")
    before = await keyspace()
    for name, write in WRITES.items():
        with pytest.raises(SessionDeleted) as refused:
            await write(open_cache())
        assert refused.value.session_id == "chat", name
        assert await keyspace() == before, name


async def test_a_commit_sent_before_a_deletion_is_not_replayed_after_it(open_cache):
    cache = open_cache()
    made = commit(None, append("a"))
    await cache.session("chat").commit_runtime_state(made)
    await cache.delete("chat")
    with pytest.raises(SessionDeleted):
        await cache.session("chat").commit_runtime_state(made)


async def test_the_id_is_free_after_the_marker_expires(open_cache, client):
    cache = open_cache(deletion_marker_ttl=0.1, blob_grace=0.01)
    await full_session(cache)
    await cache.delete("chat")
    await asyncio.sleep(0.2)
    assert await client.keys("*") == [b"lash1:layout:laws"]
    with pytest.raises(SessionGone):
        await cache.session("chat").commit_runtime_state(commit(2, append("z")))
    await cache.session("chat").commit_runtime_state(commit(None, append("z")))
    assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["z"]


async def test_without_a_marker_the_id_is_free_at_once(open_cache):
    cache = open_cache(deletion_marker_ttl=0)
    await full_session(cache)
    assert not (await cache.delete("chat")).closed
    await cache.session("chat").commit_runtime_state(commit(None, append("z")))


async def test_the_marker_lasts_a_day_by_default(open_cache, client):
    cache = open_cache()
    await full_session(cache)
    await cache.delete("chat")
    assert 86_390_000 < await client.pttl(await key_of(client, "head")) <= 86_400_000
    assert StoreOptions().deletion_marker_ttl == 86_400


async def test_deleting_twice_or_an_unknown_id_changes_nothing(open_cache, keyspace):
    cache = open_cache()
    await full_session(cache)
    await cache.delete("chat")
    before = await keyspace()
    assert await cache.delete("chat") == DeleteReport()
    assert await cache.delete("never there") == DeleteReport()
    assert await keyspace() == before
    await cache.session("never there").commit_runtime_state(commit(None, session_id="never there"))


async def test_a_session_with_only_meta_can_be_deleted(open_cache, client):
    cache = open_cache()
    await cache.create(SessionStoreCreateRequest("chat"))
    assert await cache.delete("chat") == DeleteReport(True, closed=True)
    with pytest.raises(SessionDeleted):
        await cache.create(SessionStoreCreateRequest("chat"))
    assert [info async for info in cache.sessions()] == []


async def test_a_deletion_keeps_blobs_that_another_session_holds(open_cache, client):
    cache = open_cache(shards=1, blob_grace=0.05)
    await full_session(cache, "chat")
    await full_session(cache, "twin")
    assert (await cache.delete("chat")).released_blob_count == 3
    assert await holders(client) == [1]
    await asyncio.sleep(0.15)
    read = await open_cache(shards=1).session("twin").load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    assert (read.checkpoint.tool_state, read.checkpoint.execution_state) == (tools(), b"1")
    assert len(await blob_keys(client)) == 1


async def test_committing_a_ref_to_a_collected_blob_raises_missing_blob(open_cache):
    cache = open_cache(shards=1, blob_cache_bytes=0)
    store = await full_session(cache)
    read = await store.load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    await cache.delete("chat")
    await cache.gc()
    for name in ("tool_state_ref", "plugin_snapshot_ref", "execution_state_ref"):
        carried = HydratedSessionCheckpoint(**{name: getattr(read.checkpoint, name)})
        with pytest.raises(MissingBlob):
            await cache.session("new").commit_runtime_state(commit(None, session_id="new", checkpoint=carried))


@pytest.mark.parametrize("family", ["head", "log", "nodes", "jumps", "dead", "state", "blob"])
async def test_deleting_a_session_that_lost_a_key_leaves_no_marker(family, open_cache, client):
    cache = open_cache(blob_cache_bytes=0)
    await full_session(cache)
    lost = (await blob_keys(client))[0] if family == "blob" else await key_of(client, family)
    await client.delete(lost)
    with pytest.raises(SessionEvicted):
        await open_cache(blob_cache_bytes=0).session("chat").load_session(FullGraph())
    report = await open_cache().delete("chat")
    assert (report.existed, report.closed) == (True, False)
    store = open_cache().session("chat")
    assert await store.load_session(FullGraph()) is None
    with pytest.raises(SessionGone):
        await store.commit_runtime_state(commit(2, append("z")))
    await open_cache().create(SessionStoreCreateRequest("chat"))
    await store.commit_runtime_state(commit(None, append("z"), checkpoint=STATES))
    assert ids_of(await open_cache().session("chat").load_session(FullGraph())) == ["z"]


async def test_a_session_with_an_unreadable_head_can_be_deleted(open_cache, client):
    for damage in ("facts", "refs", "retyped"):
        cache = open_cache()
        await full_session(cache)
        head = await key_of(client, "head")
        if damage == "retyped":
            await client.delete(head)
            await client.set(head, "x")
        else:
            await client.hset(head, damage, "x")
        report = await open_cache().delete("chat")
        assert (report.existed, report.closed) == (True, False), damage
        for key in cache.layout.session("chat").own:
            assert not await client.exists(key), (damage, key)


async def test_a_deletion_and_a_concurrent_commit_are_serialized(open_cache):
    for _ in range(20):
        cache = open_cache(deletion_marker_ttl=3600)
        name = f"s{_}"
        await full_session(cache, name)
        made = commit(2, append("z", parent="c"), session_id=name)
        outcome, report = await asyncio.gather(
            open_cache().session(name).commit_runtime_state(made), cache.delete(name), return_exceptions=True
        )
        assert isinstance(report, DeleteReport)
        assert report.existed
        assert report.closed
        assert isinstance(outcome, SessionDeleted) or report.node_count == 3
        assert await cache.session(name).load_session(FullGraph()) is None


@pytest.mark.parametrize("session_id", ["", None, 7, "x" * 70_000, "\ud800"])
async def test_an_invalid_session_id_is_refused_and_named(session_id, cache, keyspace):
    with pytest.raises(InvalidRecord, match="session_id"):
        await cache.delete(session_id)
    assert await keyspace() == {}


@pytest.mark.parametrize("ttl", [-1, float("nan"), "day", True])
def test_an_invalid_marker_lifetime_is_refused_and_named(ttl):
    with pytest.raises(InvalidRecord, match=r"options\.deletion_marker_ttl"):
        StoreOptions(deletion_marker_ttl=ttl)


async def test_maintenance_of_an_empty_namespace_writes_nothing(open_cache, keyspace):
    store = open_cache().session("chat")
    assert await open_cache().delete("chat") == DeleteReport()
    assert await open_cache().session("chat").touch() is False
    await store.tombstone_nodes(["a"])
    await store.vacuum()
    await store.gc_unreachable()
    assert await keyspace() == {}


@broken_by(Lua("delete", "if nodes_before then return", "if false then return"))
async def test_a_retried_deletion_reports_what_the_first_attempt_deleted(proxy, through_proxy):
    cache = through_proxy(retry_max_delay=0.01)
    await full_session(cache)
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA", 2)
    assert await cache.delete("chat") == DeleteReport(True, node_count=2, released_blob_count=3, closed=True)
    assert await cache.delete("chat") == DeleteReport()
