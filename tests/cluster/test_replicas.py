"""Reads from replicas may be stale, and missing or damaged data is read from the primary."""

from __future__ import annotations

import asyncio

import pytest

import lash_redis
from lash_redis import (
    ActivePath,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidRecord,
    Replicas,
    SessionCache,
    SessionMeta,
    StoreOptions,
)
from tests.support.builders import append, commit, ids_of
from tests.support.groups import Cluster, Member, SentinelGroup

SAFE = Replicas(2, 5_000)
OPTIONS = StoreOptions(shards=1, read_from="replica", blob_cache_bytes=0)


def reads_of(member: Member) -> int:
    """The number of times that a server has returned a list or a whole hash."""
    stats = member.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("lrange", "hgetall"))


async def commit_session(cache: SessionCache, durability: Replicas = SAFE) -> None:
    state = HydratedSessionCheckpoint(execution_state=b"1")
    await cache.session("chat").save_session_meta(SessionMeta("chat", "n", "t", "m"))
    made = commit(None, append("a"), checkpoint=state)
    assert (await cache.session("chat").commit_runtime_state(made, durability=durability)).durable


async def test_every_read_of_a_session_under_sentinel_uses_a_replica(sentinels: SentinelGroup):
    async with lash_redis.connect(sentinels.url, options=OPTIONS) as cache:
        await commit_session(cache)
        store = cache.session("chat")
        await store.load_head()  # the layout is read from the primary first
        before, of_replicas = reads_of(sentinels.primary), sum(map(reads_of, sentinels.replicas()))
        read = await store.load_session(FullGraph())
        assert (ids_of(read), read.checkpoint.execution_state) == (["a"], b"1")
        assert ids_of(await store.load_session(ActivePath())) == ["a"]
        assert ids_of(await store.load_session(ActivePath(limit=1))) == ["a"]
        assert (await store.load_head()).head_revision == 1
        assert (await store.load_session_meta()).session_name == "n"
        assert reads_of(sentinels.primary) == before
        assert sum(map(reads_of, sentinels.replicas())) > of_replicas


async def test_a_process_that_only_reads_loads_the_layout_from_the_primary_once(sentinels: SentinelGroup):
    async with lash_redis.connect(sentinels.url, options=OPTIONS) as writer:
        await commit_session(writer)
    async with lash_redis.connect(sentinels.url, options=OPTIONS) as cache:
        before = sentinels.primary.info("commandstats").get("cmdstat_get", {}).get("calls", 0)
        for _ in range(5):
            assert (await cache.session("chat").load_head()).head_revision == 1
        assert sentinels.primary.info("commandstats")["cmdstat_get"]["calls"] == before + 1


async def test_every_read_of_a_session_in_a_cluster_uses_a_replica(cluster: Cluster):
    async with lash_redis.connect(cluster.url, options=OPTIONS) as cache:
        await commit_session(cache, Replicas(1, 5_000))
        store = cache.session("chat")
        primary = cluster.primary_of(cache.layout.session("chat").head)
        await store.load_head()
        before, of_replica = reads_of(primary), reads_of(cluster.replica_of(primary))
        assert ids_of(await store.load_session(FullGraph())) == ["a"]
        assert ids_of(await store.load_session(ActivePath())) == ["a"]
        assert ids_of(await store.load_session(ActivePath(limit=1))) == ["a"]
        assert (reads_of(primary), reads_of(cluster.replica_of(primary)) > of_replica) == (before, True)


async def test_a_commit_that_builds_on_a_stale_read_of_a_replica_is_refused(sentinels: SentinelGroup):
    async with lash_redis.connect(sentinels.url, options=OPTIONS) as cache:
        await commit_session(cache)
        store = cache.session("chat")
        primary, replicas = sentinels.primary, sentinels.replicas()
        for replica in replicas:
            replica.ask("REPLICAOF", "127.0.0.1", 1)  # no server listens there
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
        seen = {ids_of(await store.load_session(FullGraph()))[-1] for _ in range(8)}
        read = await store.load_session(FullGraph())
        refreshed = await store.refresh(read)
        with pytest.raises(HeadRevisionConflict):
            await store.commit_runtime_state(commit(read.head_revision, append("c", parent="a")))
        shown = []
        made = commit(2, append("c", parent="b"))
        await store.update(lambda now: shown.append(ids_of(now)) or made, attempts=1)
        for replica in replicas:
            replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        assert seen == {"a"}
        assert ids_of(refreshed) == ["a", "b"]
        assert shown == [["a", "b"]]
        await asyncio.to_thread(sentinels.wait_until_ok)


@pytest.mark.parametrize("how", ["it lacks the session", "it lacks a part", "it is frozen", "it is killed"])
async def test_a_read_falls_back_to_the_primary_if_a_replica_lacks_data_or_is_down(how, sentinels: SentinelGroup):
    url = f"{sentinels.url}?socket_timeout=2"
    async with lash_redis.connect(url, options=OPTIONS) as cache:
        await commit_session(cache)
        store = cache.session("chat")
        await store.load_head()
        primary, replicas = sentinels.primary, sentinels.replicas()
        for replica in replicas:
            match how:
                case "it lacks the session":
                    replica.ask("REPLICAOF", "127.0.0.1", 1)
                    replica.ask("CONFIG", "SET", "replica-read-only", "no")
                    replica.ask("FLUSHALL")
                case "it lacks a part":
                    replica.ask("CONFIG", "SET", "replica-read-only", "no")
                    replica.ask("DEL", cache.layout.session("chat").log)
                case "it is frozen":
                    replica.freeze()
                case "it is killed":
                    replica.kill()
        assert ids_of(await store.load_session(FullGraph())) == ["a"]
        assert (await store.load_head()).head_revision == 1
        for replica in replicas:
            if how == "it is frozen":
                replica.thaw()
            elif how == "it is killed":
                sentinels.restart(replica)
            else:
                replica.ask("CONFIG", "SET", "replica-read-only", "yes")
                replica.ask("REPLICAOF", "NO", "ONE")
                replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        await asyncio.to_thread(sentinels.wait_until_ok)


async def test_corruption_on_the_primary_is_reported(open_cache, client):
    async with open_cache(read_from="replica", shards=1) as cache:  # with separate connections to replicas
        store = cache.session("chat")
        await store.commit_runtime_state(commit(None, append("a")))
        assert ids_of(await store.load_session(FullGraph())) == ["a"]
        await client.delete(cache.layout.session("chat").log)
        with pytest.raises(Corrupt):
            await store.load_session(FullGraph())


async def test_a_server_without_replicas_serves_replica_reads_itself(real_server):
    cache = SessionCache(real_server.client(), options=StoreOptions(read_from="replica"))
    assert await cache.session("chat").load_session(FullGraph()) is None
    await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["a"]


def test_an_unknown_read_source_is_refused():
    with pytest.raises(InvalidRecord, match="read_from"):
        StoreOptions(read_from="unknown")
