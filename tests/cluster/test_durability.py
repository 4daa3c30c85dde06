"""A commit waits for replicas or for the disk, and its result reports whether they confirmed it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lash_redis import (
    Fsync,
    FullGraph,
    HeadRevisionConflict,
    InvalidRecord,
    RedisSessionStore,
    Replicas,
    SessionCache,
    SessionStoreCreateRequest,
    StoreOptions,
)
from lash_redis.embedded import EmbeddedServer
from tests.support.builders import append, commit
from tests.support.groups import SentinelGroup
from tests.support.proxy import Action, Proxy, on
from tests.support.servers import Kind, require, table

REAL = [kind for kind in table() if kind.real]


@pytest.fixture(scope="module", params=REAL, ids=lambda kind: kind.name)
def group(request: pytest.FixtureRequest) -> Iterator[SentinelGroup]:
    """A primary with two replicas. Its sentinels never start a failover."""
    require(request.param)
    with SentinelGroup(request.param, down_after_ms=600_000) as running:
        yield running


@pytest.fixture
async def cache(group: SentinelGroup) -> AsyncIterator[SessionCache]:
    group.flush()
    client = group.client()
    yield SessionCache(client, options=StoreOptions(durability=Replicas(2, 2_000)))
    await client.aclose()


@pytest.fixture
def frozen(group: SentinelGroup) -> Iterator[None]:
    """Both replicas keep their connections and acknowledge nothing."""
    replicas = group.replicas()
    for replica in replicas:
        replica.freeze()
    yield
    for replica in replicas:
        replica.thaw()


async def test_a_commit_that_enough_replicas_confirm_is_durable(cache, group):
    store = cache.session("chat")
    first = await store.commit_runtime_state(commit(None, append("a")))
    assert (first.durable, first.replayed) == (True, False)
    for replica in group.replicas():
        client = redis.asyncio.Redis(port=replica.port)
        assert (await SessionCache(client).session("chat").load_head()).head_revision == 1
        await client.aclose()


@pytest.mark.usefixtures("frozen")
async def test_a_commit_that_replicas_do_not_confirm_is_stored_and_not_durable(cache):
    store = cache.session("chat")
    made = await store.commit_runtime_state(commit(None, append("a")), durability=Replicas(1, 50))
    assert (made.head_revision, made.durable) == (1, False)
    assert (await store.load_session(FullGraph())).head_revision == 1


@pytest.mark.usefixtures("frozen")
async def test_a_retry_that_replicas_do_not_confirm_is_not_durable(cache, group):
    made = commit(None, append("a"))
    await cache.session("chat").commit_runtime_state(made, durability=Replicas(1, 50))
    client = group.client()  # WAIT has nothing to wait for on a connection without writes
    again = await SessionCache(client).session("chat").commit_runtime_state(made, durability=Replicas(1, 50))
    await client.aclose()
    assert (again.replayed, again.durable) == (True, False)


async def test_a_retry_that_replicas_confirm_is_durable(cache):
    made = commit(None, append("a"))
    await cache.session("chat").commit_runtime_state(made)
    again = await cache.session("chat").commit_runtime_state(made)
    assert (again.replayed, again.durable) == (True, True)


async def test_an_input_reports_whether_enough_replicas_confirmed_it(cache, group):
    store = cache.session("chat")
    first = await store.enqueue_input("hello", "i")
    again = await store.enqueue_input("hello", "i")
    assert (first.durable, again.durable, again) == (True, True, first)
    for replica in group.replicas():
        client = redis.asyncio.Redis(port=replica.port)
        assert await SessionCache(client).session("chat").pending_inputs() == [first]
        await client.aclose()
    await store.commit_runtime_state(commit(None, append("a"), consumes=["i"]))
    consumed = await store.enqueue_input("hello", "i")
    assert (consumed.durable, consumed.enqueued_at) == (True, None)


@pytest.mark.usefixtures("frozen")
async def test_an_input_that_replicas_do_not_confirm_is_pending_and_not_durable(cache, group):
    store = cache.session("chat")
    assert (await store.enqueue_input("hello", "i", durability=Replicas(1, 50))).durable is False
    client = group.client()  # WAIT has nothing to wait for on a connection without writes
    again = await SessionCache(client).session("chat").enqueue_input("hello", "i", durability=Replicas(1, 50))
    assert (await SessionCache(client).session("chat").enqueue_input("more")).durable is None
    await client.aclose()
    assert (again.durable, len(await store.pending_inputs())) == (False, 2)


async def test_a_result_without_a_requested_durability_reports_none(group):
    group.flush()
    client = group.client()
    made = await SessionCache(client).session("chat").commit_runtime_state(commit(None, append("a")))
    await client.aclose()
    assert made.durable is None


async def test_waiting_for_replicas_takes_no_further_round_trip(group):
    group.flush()
    async with Proxy(f"redis://127.0.0.1:{group.primary.port}") as proxy:
        client = redis.asyncio.from_url(proxy.url)
        store = SessionCache(client, options=StoreOptions(durability=Replicas(2, 2_000))).session("chat")
        await store.commit_runtime_state(commit(None, append("a")))
        with proxy.measure() as traffic:
            assert (await store.commit_runtime_state(commit(1, append("b", parent="a")))).durable
        await client.aclose()
        assert (traffic.names(), traffic.round_trips) == (["EVALSHA", "WAIT"], 1)


async def test_a_reply_lost_while_waiting_for_replicas_is_settled_by_the_receipt(group):
    group.flush()
    async with Proxy(f"redis://127.0.0.1:{group.primary.port}") as proxy:
        client = redis.asyncio.from_url(proxy.url, retry=Retry(NoBackoff(), 0))
        store = SessionCache(client, options=StoreOptions(durability=Replicas(2, 2_000))).session("chat")
        await store.commit_runtime_state(commit(None, append("a")))
        proxy.on_command = on(Action.DROP_REPLY, "WAIT")
        result = await store.commit_runtime_state(commit(1, append("b", parent="a")))
        assert (result.head_revision, result.replayed, result.durable) == (2, True, True)
        await client.aclose()


async def test_a_commit_that_loads_its_script_waits_for_replicas_too(cache, group):
    client = group.client()
    await client.script_flush()
    await client.aclose()
    assert (await cache.session("chat").commit_runtime_state(commit(None, append("a")))).durable


async def test_a_commit_with_a_durability_on_a_wrong_revision_is_refused(cache):
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    with pytest.raises(HeadRevisionConflict):
        await store.commit_runtime_state(commit(0, append("b")))


async def test_updates_and_forks_wait_for_replicas_too(cache):
    store = await cache.create(SessionStoreCreateRequest("chat"))
    result = await store.update(lambda read: commit(None, append("a")))
    assert result.durable
    await cache.fork("chat", "new")


async def test_each_of_many_concurrent_commits_is_confirmed(cache):
    stores = [cache.session(f"s{at}") for at in range(40)]
    made = [store.commit_runtime_state(commit(None, append("a"), session_id=store.session_id)) for store in stores]
    assert [each.durable for each in await asyncio.gather(*made)] == [True] * 40


# Disks


@pytest.fixture(params=REAL, ids=lambda kind: kind.name)
async def on_disk(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[tuple[Kind, SessionCache]]:
    """A server with an append-only file that is fsynced once a second."""
    require(request.param)
    server = EmbeddedServer(tmp_path / "data", binary=request.param.binary)
    await asyncio.to_thread(server.start)
    async with redis.asyncio.from_url(server.url) as client:
        yield request.param, SessionCache(client, options=StoreOptions(durability=Fsync(timeout_ms=3_000)))
    await asyncio.to_thread(server.stop)


async def test_a_commit_waits_for_the_disk_if_the_server_supports_it(on_disk, caplog):
    kind, cache = on_disk
    confirms = (kind.product, kind.version) >= (
        "Redis",
        (7, 2),
    )  # "Valkey" sorts after "Redis", and every version confirms
    made = commit(None, append("a"))
    with caplog.at_level(logging.WARNING, "lash_redis"):
        result = await cache.session("chat").commit_runtime_state(made)
        again = await cache.session("chat").commit_runtime_state(made)
    assert (result.head_revision, result.durable, again.durable) == (1, confirms, confirms)
    assert ("durable is False" in caplog.text) is not confirms


async def test_a_commit_on_a_server_without_an_append_only_file_is_not_durable(real_server, caplog):
    cache = SessionCache(real_server.client(), options=StoreOptions(durability=Fsync(timeout_ms=50)))
    result = await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    assert (result.head_revision, result.durable) == (1, False)
    assert "durable is False" in caplog.text


async def test_a_commit_on_a_server_without_replicas_is_not_durable(real_server):
    cache = SessionCache(real_server.client(), options=StoreOptions(durability=Replicas(1, 20)))
    result = await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    assert (result.head_revision, result.durable) == (1, False)


# Invalid durabilities


@pytest.mark.parametrize(
    "make",
    [
        lambda: Replicas(0), lambda: Replicas(True), lambda: Replicas(1, 0), lambda: Replicas(1, 5_001),
        lambda: Replicas(1, 1.5), lambda: Fsync(-1), lambda: Fsync(0, 0), lambda: StoreOptions(durability="WAIT"),
    ],
)  # fmt: skip
def test_an_invalid_durability_is_refused(make):
    with pytest.raises(InvalidRecord, match="durability"):
        make()


async def test_a_commit_refuses_a_durability_of_a_wrong_type(store):
    with pytest.raises(InvalidRecord, match="durability"):
        await store.commit_runtime_state(commit(None, append("a")), durability=1)


async def written(cache: SessionCache) -> RedisSessionStore:
    store = cache.session("chat", owner="ann")
    await store.commit_runtime_state(commit(None, append("a", "b")))
    return store


REMOVALS = {
    "tombstones": lambda cache, durability: cache.session("chat").tombstone_nodes(["b"], durability=durability),
    "a deletion": lambda cache, durability: cache.delete("chat", durability=durability),
    "deletions of an owner": lambda cache, durability: cache.delete_owned("ann", durability=durability),
}


@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_removal_that_enough_replicas_confirm_is_durable(removal, cache):
    await written(cache)
    assert (await REMOVALS[removal](cache, None)).durable is True


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_removal_that_replicas_do_not_confirm_is_made_and_not_durable(removal, cache):
    await written(cache)
    assert (await REMOVALS[removal](cache, Replicas(1, 50))).durable is False
    read = await cache.session("chat").load_session(FullGraph())
    assert read is None or [node.node_id for node in read.graph.nodes] == ["a"]


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("removal", ["tombstones", "a deletion"])
async def test_a_repeated_removal_waits_for_the_earlier_one(removal, cache, group):
    """WAIT has nothing to wait for on a connection without writes."""
    await written(cache)
    await REMOVALS[removal](cache, Replicas(1, 50))
    client = group.client()
    again = await REMOVALS[removal](SessionCache(client), Replicas(1, 50))
    await client.aclose()
    assert again.durable is False


async def test_a_repeated_removal_that_replicas_confirm_is_durable(cache):
    await written(cache)
    for _ in range(2):
        assert (await REMOVALS["tombstones"](cache, Replicas(2, 2_000))).durable is True
    for existed in (True, False):
        report = await REMOVALS["a deletion"](cache, Replicas(2, 2_000))
        assert (report.existed, report.durable) == (existed, True)


async def test_a_removal_that_asks_for_no_durability_reports_none(group):
    group.flush()
    client = group.client()
    plain = SessionCache(client)
    await written(plain)
    for removal in ("tombstones", "a deletion"):
        assert (await REMOVALS[removal](plain, None)).durable is None
    with pytest.raises(InvalidRecord):
        await plain.delete("chat", durability=2)
    await client.aclose()
