"""Calls recover or report an accurate error if a server, a client or a process has a fault."""

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


def without_retries(client: redis.Redis, namespace: str = "default", *, ttl: float | None = None) -> SessionCache:
    """A cache with one shard that does not retry a failed call."""
    return sends_once(SessionCache(client, namespace, ttl=ttl, options=StoreOptions(shards=1)))


@pytest.fixture
async def full(real_server):
    """A store on a server that is out of memory until the test ends."""
    client = real_server.client()
    cache = without_retries(client, "full")
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    await client.config_set("maxmemory", "1")
    yield store
    await client.config_set("maxmemory", "0")


async def test_a_full_server_still_serves_reads(full):
    assert ids_of(await full.load_session(FullGraph())) == ["a", "c"]
    assert ids_of(await full.load_session(ActivePath())) == ["c"]
    assert (await full.load_head()).head_revision == 1
    assert (await full.load_node("a")).node_id == "a"
    assert await full.load_session_meta() is None


async def test_a_full_server_still_runs_vacuum_and_gc(full):
    assert (await full.vacuum()).removed_node_count == 1
    assert (await full.gc_unreachable()).root_count == 1


@pytest.mark.parametrize("write", ["append", "meta", "tombstone", "input"])
async def test_a_write_refused_by_a_full_server_changes_nothing(write, full, real_server):
    before = await snapshot(real_server.client())
    calls = {
        "append": lambda: full.commit_runtime_state(commit(1, append("d", parent="c"))),
        "meta": lambda: full.save_session_meta(META),
        "tombstone": lambda: full.tombstone_nodes(["c"]),
        "input": lambda: full.enqueue_input("x"),
    }
    with pytest.raises(BackendError, match="OOM"):
        await calls[write]()
    assert await snapshot(real_server.client()) == before


@pytest.mark.parametrize("denied", ["rpush", "hset", "zadd", "pexpireat"])
async def test_a_commit_that_may_be_half_written_has_an_unknown_outcome(denied, real_server):
    admin = real_server.client()
    body = HydratedSessionCheckpoint(tool_state=tools("one"))
    cache = without_retries(admin, "acl")
    first = await cache.session("chat").commit_runtime_state(commit(None, append("a"), checkpoint=body))
    await admin.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~*", "+@all", f"-{denied}")
    limited = without_retries(real_server.client(username="half", password="pw"), "acl")
    sent = commit(1, append("b", parent="a"), checkpoint=HydratedSessionCheckpoint(tool_state=tools("two")))
    try:
        await limited.session("chat").load_session(FullGraph())
        with pytest.raises(OutcomeUnknown, match="user_script"):
            await limited.session("chat").commit_runtime_state(sent)
    finally:
        await admin.execute_command("ACL", "DELUSER", "half")
    # The retry is acknowledged only if the whole commit was written.
    try:
        again = await cache.session("chat").commit_runtime_state(sent)
    except Corrupt:
        return
    assert again.head_revision == first.head_revision + 1
    read = await without_retries(admin, "acl").session("chat").load_session(FullGraph())
    assert ids_of(read) == ["a", "b"]


@pytest.mark.parametrize("settings", [{"retry_on_error": [LostConnection]}, {"retry_on_timeout": True}])
async def test_a_lost_commit_of_a_client_that_retries_itself_has_an_unknown_outcome(settings, proxy):
    client = redis.Redis.from_url(proxy.url, **settings)
    store = without_retries(client).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))

    await proxy.refuse()  # only new connections
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown):
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
    await client.aclose()


async def test_a_lost_read_is_a_backend_error(proxy):
    client = redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0))
    store = without_retries(client).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(BackendError):
        await store.load_node("a")
    await client.aclose()


async def test_a_commit_without_a_free_connection_is_reported_as_not_applied(real_server):
    pool = redis.BlockingConnectionPool.from_url(real_server.url, max_connections=1, timeout=0.05)
    client = redis.Redis(connection_pool=pool)
    store = without_retries(client).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    busy = asyncio.create_task(client.blpop("nothing", timeout=60))
    while not (await real_server.client().info("clients"))["blocked_clients"]:  # noqa: ASYNC110 - the server's event
        await asyncio.sleep(0.001)
    with pytest.raises(BackendError):
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
    await real_server.client().rpush("nothing", "x")
    await busy
    await pool.aclose()


async def test_a_given_client_is_refused_in_a_forked_child(real_server):
    store = SessionCache(real_server.client()).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    process = os.getpid
    try:
        os.getpid = lambda: process() + 1  # like in a child, because forking a test run is unsafe
        with pytest.raises(BackendError, match="forked"):
            await store.load_session(FullGraph())
    finally:
        os.getpid = process


def test_a_cache_from_a_url_serves_one_event_loop_after_another():
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
async def without_replicas(real_server):
    """A raw client of a server that requires a replica for writes and has none."""
    client = real_server.client()
    await client.config_resetstat()
    await client.config_set("min-replicas-to-write", "1")
    yield client
    await client.config_set("min-replicas-to-write", "0")


async def test_a_commit_refused_for_too_few_replicas_changes_nothing(without_replicas):
    before = await snapshot(without_replicas)
    with pytest.raises(BackendError, match="NOREPLICAS"):
        await without_retries(without_replicas, "replicas").session("chat").commit_runtime_state(commit())
    assert await snapshot(without_replicas) == before == {}


async def test_a_commit_refused_for_too_few_replicas_is_retried_until_it_is_accepted(without_replicas):
    store = SessionCache(without_replicas, "replicas", options=StoreOptions(call_timeout=60)).session("chat")
    committing = asyncio.create_task(store.commit_runtime_state(commit(None, append("a"))))
    while "errorstat_NOREPLICAS" not in await without_replicas.info("errorstats"):
        assert not committing.done()
    await without_replicas.config_set("min-replicas-to-write", "0")
    result = await committing
    assert (result.head_revision, result.replayed) == (1, False)


async def test_meta_saved_with_a_ttl_does_not_expire_a_session_without_a_ttl(client):
    await without_retries(client, ttl=100).session("chat").save_session_meta(META)
    await without_retries(client).session("chat").commit_runtime_state(commit(None, append("a")))
    assert [await client.pttl(key) for key in await client.keys("*chat")] == [-1, -1, -1]


async def test_a_session_that_is_created_again_has_another_epoch(client):
    cache = without_retries(client)
    epochs = set()
    for _ in range(2):
        await client.flushall()
        await without_retries(client).session("chat").commit_runtime_state(commit(None, append("a")))
        (head,) = await client.keys("*head:chat")
        epochs.add((await client.hget(head, "facts")).split()[1])
        await asyncio.sleep(0.002)
    assert len(epochs) == 2
    assert (await cache.session("chat").load_session(FullGraph())).head_revision == 1


async def test_an_upload_keeps_its_grace_period_after_a_session_releases_it(client):
    cache = without_retries(client)
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


async def test_size_limits_include_usage_rows_and_meta(client):
    cache = SessionCache(client, options=StoreOptions(shards=1, max_commit_bytes=1000))
    rows = [TokenLedgerEntry("s" * 2000, "m", TokenUsage(1))]
    with pytest.raises(CommitTooLarge):
        await cache.session("chat").commit_runtime_state(commit(None, append("a"), usage_deltas=rows))
    with pytest.raises(CommitTooLarge):
        await cache.session("chat").save_session_meta(SessionMeta("chat", "n" * 2000, "now", "m"))


async def test_maintenance_that_stops_halfway_reports_its_progress(real_server):
    client = real_server.client()
    store = without_retries(client).session("chat")
    ids = [f"n{at}" for at in range(1500)]
    await store.commit_runtime_state(commit(None, append(*ids)))
    run, calls = store._namespace.run_durably, []

    async def second_fails(call, *more):
        calls.append(call)
        if len(calls) == 2:
            raise BackendError("OOM")
        return await run(call, *more)

    store._namespace.run_durably = second_fails
    with pytest.raises(OutcomeUnknown, match="1000 of 1500"):
        await store.tombstone_nodes(ids)


async def test_update_commits_on_the_revision_that_it_read(open_cache):
    """Two writers that specify no revision still make one chain."""

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


async def test_update_raises_an_unknown_outcome_with_its_commit(proxy, through_proxy):
    store = sends_once(through_proxy()).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown) as caught:
        await store.update(lambda read: commit(None, append("b", parent=read.graph.leaf_node_id)))
    assert (await store.commit_runtime_state(caught.value.commit)).replayed
    assert ids_of(await store.load_session(FullGraph())) == ["a", "b"]
