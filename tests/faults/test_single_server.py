"""What a real server, a real client and a real process do when something is wrong with them."""

from __future__ import annotations

import asyncio
import os

import pytest
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection

import lash_redis
from lash_redis import (
    ActivePath,
    BackendError,
    CommitTooLarge,
    Corrupt,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    OutcomeUnknown,
    SessionCache,
    SessionMeta,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
)
from lash_redis.embedded import EmbeddedServer
from tests.support.builders import append, commit, ids_of, tools
from tests.support.proxy import Action, on
from tests.support.sending import sends_once
from tests.support.servers import snapshot

META = SessionMeta("chat", "name", "now", "m")


def once(client: redis.Redis, namespace: str = "default", *, ttl: float | None = None) -> SessionCache:
    """A cache of one shard, in which the first failed attempt of each call is final."""
    return sends_once(SessionCache(client, namespace, ttl=ttl, options=StoreOptions(shards=1)))


@pytest.fixture
async def full(real_server):
    """A cache on a server that takes no more writes, and a way to make room."""
    client = real_server.client()
    cache = once(client, "full")
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    await client.config_set("maxmemory", "1")
    yield store
    await client.config_set("maxmemory", "0")


async def test_a_full_server_still_shows_a_session(full):
    assert ids_of(await full.load_session(FullGraph())) == ["a", "c"]
    assert ids_of(await full.load_session(ActivePath())) == ["c"]
    assert (await full.load_head()).head_revision == 1
    assert (await full.load_node("a")).node_id == "a"
    assert await full.load_session_meta() is None


async def test_a_full_server_still_frees_what_is_dead(full):
    assert (await full.vacuum()).removed_node_count == 1
    assert (await full.gc_unreachable()).root_count == 1


@pytest.mark.parametrize("write", ["append", "meta", "tombstone"])
async def test_a_full_server_refuses_a_write_whole(write, full, real_server):
    before = await snapshot(real_server.client())
    calls = {
        "append": lambda: full.commit_runtime_state(commit(1, append("d", parent="c"))),
        "meta": lambda: full.save_session_meta(META),
        "tombstone": lambda: full.tombstone_nodes(["c"]),
    }
    with pytest.raises(BackendError, match="OOM"):
        await calls[write]()
    assert await snapshot(real_server.client()) == before


@pytest.mark.parametrize("denied", ["rpush", "hset", "zadd", "pexpireat"])
async def test_a_commit_that_may_be_half_written_is_never_called_refused(denied, real_server):
    admin = real_server.client()
    body = HydratedSessionCheckpoint(tool_state=tools("one"))
    cache = once(admin, "acl")
    first = await cache.session("chat").commit_runtime_state(commit(None, append("a"), checkpoint=body))
    await admin.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~*", "+@all", f"-{denied}")
    limited = once(real_server.client(username="half", password="pw"), "acl")
    sent = commit(1, append("b", parent="a"), checkpoint=HydratedSessionCheckpoint(tool_state=tools("two")))
    try:
        await limited.session("chat").load_session(FullGraph())
        with pytest.raises(OutcomeUnknown, match="user_script"):
            await limited.session("chat").commit_runtime_state(sent)
    finally:
        await admin.execute_command("ACL", "DELUSER", "half")
    # Whatever was written, the retry is acknowledged only if all of it was.
    try:
        again = await cache.session("chat").commit_runtime_state(sent)
    except Corrupt:
        return
    assert again.head_revision == first.head_revision + 1
    read = await once(admin, "acl").session("chat").load_session(FullGraph())
    assert ids_of(read) == ["a", "b"]


@pytest.mark.parametrize("settings", [{"retry_on_error": [LostConnection]}, {"retry_on_timeout": True}])
async def test_a_client_that_sends_again_by_itself_leaves_a_lost_commit_unknown(settings, proxy):
    client = redis.Redis.from_url(proxy.url, **settings)
    store = once(client).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))

    await proxy.refuse()  # new connections; the one in use stays
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown):
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
    await client.aclose()


async def test_a_read_that_is_lost_is_a_backend_error(proxy):
    client = redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0))
    store = once(client).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(BackendError):
        await store.load_node("a")
    await client.aclose()


async def test_a_pool_without_a_free_connection_sent_nothing(real_server):
    pool = redis.BlockingConnectionPool.from_url(real_server.url, max_connections=1, timeout=0.05)
    client = redis.Redis(connection_pool=pool)
    store = once(client).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    busy = asyncio.create_task(client.blpop("nothing", timeout=1))
    while not (await real_server.client().info("clients"))["blocked_clients"]:  # noqa: ASYNC110 - no event of ours
        await asyncio.sleep(0.001)
    with pytest.raises(BackendError):
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
    await busy
    await pool.aclose()


async def test_a_given_client_is_refused_in_a_forked_child(real_server):
    store = SessionCache(real_server.client()).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    process = os.getpid
    try:
        os.getpid = lambda: process() + 1  # what a child sees, without the dangers of forking a test run
        with pytest.raises(BackendError, match="forked"):
            await store.load_session(FullGraph())
    finally:
        os.getpid = process


def test_a_cache_of_ours_serves_one_event_loop_after_another():
    with EmbeddedServer() as server:
        cache = lash_redis.connect(server.url)

        async def turn(expected, parent, node_id):
            store = cache.session("chat")
            result = await store.commit_runtime_state(commit(expected, append(node_id, parent=parent)))
            await cache.aclose()
            return result.head_revision

        assert asyncio.run(turn(None, None, "a")) == 1
        assert asyncio.run(turn(1, "a", "b")) == 2


async def test_a_client_with_another_encoding_is_refused():
    with pytest.raises(InvalidRecord, match="encoding"):
        SessionCache(redis.Redis(encoding="latin-1"))


@pytest.fixture
async def lonely(real_server):
    """A raw client of a server that takes writes only where a replica gets them, and that has none."""
    client = real_server.client()
    await client.config_resetstat()
    await client.config_set("min-replicas-to-write", "1")
    yield client
    await client.config_set("min-replicas-to-write", "0")


async def test_a_commit_that_too_few_replicas_would_get_is_refused_whole(lonely):
    before = await snapshot(lonely)
    with pytest.raises(BackendError, match="NOREPLICAS"):
        await once(lonely, "lonely").session("chat").commit_runtime_state(commit())
    assert await snapshot(lonely) == before == {}


async def test_a_commit_waits_for_a_replica_that_comes_back(lonely):
    store = SessionCache(lonely, "lonely", options=StoreOptions(call_timeout=60)).session("chat")
    committing = asyncio.create_task(store.commit_runtime_state(commit(None, append("a"))))
    while "errorstat_NOREPLICAS" not in await lonely.info("errorstats"):
        assert not committing.done()
    await lonely.config_set("min-replicas-to-write", "0")
    result = await committing
    assert (result.head_revision, result.replayed) == (1, False)


async def test_meta_saved_with_a_ttl_does_not_end_a_session_committed_without_one(client):
    await once(client, ttl=100).session("chat").save_session_meta(META)
    await once(client).session("chat").commit_runtime_state(commit(None, append("a")))
    assert [await client.pttl(key) for key in await client.keys("*chat")] == [-1, -1, -1]


async def test_a_session_that_began_anew_has_another_epoch(client):
    cache = once(client)
    epochs = set()
    for _ in range(2):
        await client.flushall()
        await once(client).session("chat").commit_runtime_state(commit(None, append("a")))
        (head,) = await client.keys("*head:chat")
        epochs.add((await client.hget(head, "facts")).split()[1])
        await asyncio.sleep(0.002)
    assert len(epochs) == 2
    assert (await cache.session("chat").load_session(FullGraph())).head_revision == 1


async def test_an_upload_stays_as_long_as_promised_whoever_held_it_in_between(client):
    cache = once(client)
    store = cache.session("chat")
    held = HydratedSessionCheckpoint(execution_state=b"state")
    result = await store.commit_runtime_state(commit(None, append("a"), checkpoint=held))
    ref = result.manifest.execution_state_ref
    assert await cache.put_blob(b"\xc4\x05state") == ref
    await store.commit_runtime_state(commit(1, append("b", parent="a")))
    await store.gc_unreachable()
    (blob,) = await client.keys("*blob:*")
    assert await client.pttl(blob) > 3_000_000
    short = SessionCache(client, options=StoreOptions(shards=1, upload_grace=1.0))
    await short.put_blob(b"\xc4\x05state")
    assert await client.pttl(blob) > 3_000_000


async def test_limits_see_usage_rows_and_meta(client):
    cache = SessionCache(client, options=StoreOptions(shards=1, max_commit_bytes=1000))
    rows = [TokenLedgerEntry("s" * 2000, "m", TokenUsage(1))]
    with pytest.raises(CommitTooLarge):
        await cache.session("chat").commit_runtime_state(commit(None, append("a"), usage_deltas=rows))
    with pytest.raises(CommitTooLarge):
        await cache.session("chat").save_session_meta(SessionMeta("chat", "n" * 2000, "now", "m"))


async def test_maintenance_that_stops_half_way_says_so(real_server):
    client = real_server.client()
    store = once(client).session("chat")
    ids = [f"n{at}" for at in range(1500)]
    await store.commit_runtime_state(commit(None, append(*ids)))
    run, calls = store._namespace.run, []

    async def second_fails(call, *, writes=True):
        calls.append(call)
        if len(calls) == 2:
            raise BackendError("OOM")
        return await run(call, writes=writes)

    store._namespace.run = second_fails
    with pytest.raises(OutcomeUnknown, match="1000 of 1500"):
        await store.tombstone_nodes(ids)


async def test_update_builds_on_what_it_showed_unless_told_otherwise(open_cache):
    """Two writers that never name a revision still make one chain."""

    async def work(name):
        store = open_cache().session("chat")

        def turn(read):
            leaf = None if read is None else read.graph.leaf_node_id
            return commit(None, append(f"{name}{0 if read is None else read.head_revision}", parent=leaf))

        for _ in range(10):
            await store.update(turn, attempts=50)

    await asyncio.gather(work("a"), work("b"))
    read = await open_cache().session("chat").load_session(ActivePath())
    assert read.head_revision == 20
    assert len(read.graph.nodes) == 20


async def test_update_hands_over_the_commit_whose_outcome_is_unknown(proxy, through_proxy):
    store = sends_once(through_proxy()).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown) as caught:
        await store.update(lambda read: commit(None, append("b", parent=read.graph.leaf_node_id)))
    assert (await store.commit_runtime_state(caught.value.commit)).replayed
    assert ids_of(await store.load_session(FullGraph())) == ["a", "b"]
