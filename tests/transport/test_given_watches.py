"""The watches on a given client use its connections. Calls wait for the others, or the watch is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel

from lash_redis import InvalidRecord, Replicas, SessionCache, SessionWatch
from lash_redis.transport import given as given_module
from tests.support.builders import append, commit
from tests.support.groups import Cluster, SentinelGroup
from tests.support.scripted import PATIENCE
from tests.support.servers import Server

NAME = "given-client"
NEVER = 600.0
"""A `poll` interval longer than any test."""
COUNT = 20
"""Concurrent commits."""

KINDS = pytest.mark.parametrize("kind", ["pool", "blocking pool"])


@asynccontextmanager
async def given_client(server: Server, kind: str, limit: int, **settings: Any) -> AsyncIterator[redis.Redis]:
    """A client with at most `limit` connections. A blocking pool waits for one without end."""
    own = {"max_connections": limit, "client_name": NAME}
    pool: redis.ConnectionPool
    if kind == "pool":
        pool = redis.ConnectionPool.from_url(server.url, **own)
    else:
        pool = redis.BlockingConnectionPool.from_url(server.url, timeout=None, **own)
    client = redis.Redis(connection_pool=pool, **settings)
    try:
        async with asyncio.timeout(PATIENCE):
            yield client
    finally:
        await client.aclose()
        await pool.disconnect()


async def commit_many(cache: SessionCache, name: str = "s") -> None:
    """Make concurrent commits in sessions of their own."""
    sessions = [f"{name}{at}" for at in range(COUNT)]
    made = (cache.session(each).commit_runtime_state(commit(0, append("a"), session_id=each)) for each in sessions)
    assert [result.head_revision for result in await asyncio.gather(*made)] == [1] * COUNT


@asynccontextmanager
async def watching(cache: SessionCache, session: str = "watched") -> AsyncIterator[SessionWatch]:
    """A watch that has reported the present revision of a session."""
    async with cache.watch(poll=NEVER) as watch:
        watch.add(session, 0)
        assert (await anext(watch)).session_id == session
        yield watch


async def begin(cache: SessionCache) -> None:
    await cache.session("watched").commit_runtime_state(commit(0, append("a"), session_id="watched"))


async def connection_count(real_server: Server) -> int:
    async with real_server.client() as admin:
        return sum(each["name"] == NAME for each in await admin.client_list())


@pytest.mark.parametrize("limit", [2, 3])
@KINDS
async def test_commits_next_to_watches_wait_for_the_other_connections(limit, kind, real_server) -> None:
    async with given_client(real_server, kind, limit) as client:
        cache = SessionCache(client)
        await begin(cache)
        async with AsyncExitStack() as open_watches:
            watches = [await open_watches.enter_async_context(watching(cache)) for _ in range(limit - 1)]
            await commit_many(cache)
            assert await connection_count(real_server) <= limit
            await cache.session("watched").commit_runtime_state(
                commit(1, append("b", parent="a"), session_id="watched")
            )
            assert [(await anext(watch)).revision for watch in watches] == [2] * (limit - 1)
        await commit_many(cache, "t")


@pytest.mark.parametrize("limit", [1, 2, 3])
@KINDS
async def test_a_watch_that_would_leave_no_connection_for_calls_is_refused_by_name(
    limit, kind, real_server, monkeypatch
) -> None:
    """The refusal harms neither the open watches nor the calls, and ends when one of the watches is closed."""
    monkeypatch.setattr(given_module, "CLOSING_SECONDS", 0.05)
    async with given_client(real_server, kind, limit) as client:
        cache = SessionCache(client)
        await begin(cache)
        for _ in range(2):
            async with AsyncExitStack() as open_watches:
                for _ in range(limit - 1):
                    await open_watches.enter_async_context(watching(cache))
                for _ in range(2):
                    with pytest.raises(InvalidRecord, match=rf"client\.max_connections: .*{limit + 1}.* got {limit}\b"):
                        async with watching(cache):
                            pass
                with pytest.raises(InvalidRecord, match=r"client\.max_connections"):
                    async with aclosing(cache.session("watched").watch(0)) as revisions:
                        await anext(revisions)
                await cache.session("watched").touch()
        assert len(client.connection_pool._in_use_connections) == 0
        await commit_many(cache)


@KINDS
async def test_a_watch_waits_for_a_connection_that_calls_use(kind, real_server) -> None:
    async with given_client(real_server, kind, 2) as client:
        cache = SessionCache(client)
        await begin(cache)
        await cache.session("watched").load_head()
        calls = [
            cache.session(each).commit_runtime_state(
                commit(0, append("a"), session_id=each), durability=Replicas(1, 300)
            )
            for each in ("one", "two", "three")
        ]
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        async with watching(cache):
            assert [result.durable for result in await asyncio.gather(*waiting)] == [False] * 3


@KINDS
async def test_caches_on_one_client_share_its_connections(kind, real_server, monkeypatch) -> None:
    monkeypatch.setattr(given_module, "CLOSING_SECONDS", 0.05)
    async with given_client(real_server, kind, 2) as client:
        first, second = SessionCache(client, "one"), SessionCache(client, "two")
        await asyncio.gather(commit_many(first), commit_many(second))
        await begin(first)
        async with watching(first):
            with pytest.raises(InvalidRecord, match=r"client\.max_connections"):
                async with watching(second):
                    pass
            await asyncio.gather(commit_many(first, "t"), commit_many(second, "t"))
            assert await connection_count(real_server) <= 2


@KINDS
async def test_a_connection_that_the_client_keeps_for_itself_is_not_used_for_others(kind, real_server) -> None:
    """With `single_connection_client`, redis-py sends single commands on one connection and pipelines on others."""
    async with given_client(real_server, kind, 2, single_connection_client=True) as client:
        await client.initialize()
        cache = SessionCache(client)
        await commit_many(cache)
        heads = await asyncio.gather(*(cache.session(f"s{at}").load_head() for at in range(COUNT)))
        assert [head.head_revision for head in heads] == [1] * COUNT
        with pytest.raises(InvalidRecord, match=r"client\.max_connections"):
            SessionCache(redis.Redis(max_connections=1, single_connection_client=True))


@KINDS
async def test_a_watch_can_follow_one_that_was_left_by_break(kind, real_server) -> None:
    """The connection of the first watch is given back in a task of its own."""
    async with given_client(real_server, kind, 2) as client:
        store = SessionCache(client).session("watched")
        await begin(SessionCache(client))
        for _ in range(10):
            async for revision in store.watch(0, poll=NEVER):
                assert revision == 1
                break


@KINDS
async def test_a_cancelled_watch_gives_its_connection_back(kind, real_server) -> None:
    async with given_client(real_server, kind, 2) as client:
        cache = SessionCache(client)
        await begin(cache)
        for at in range(20):
            task = asyncio.ensure_future(anext(cache.session("watched").watch(1, poll=NEVER)))
            for _ in range(at):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with watching(cache):
            await commit_many(cache)
        assert len(client.connection_pool._in_use_connections) == 0


async def test_watches_on_a_given_cluster_client_use_connections_of_their_own(cluster: Cluster) -> None:
    client = redis.RedisCluster("127.0.0.1", cluster.nodes[0].port, max_connections=1)
    async with asyncio.timeout(PATIENCE), SessionCache(client) as cache:
        await begin(cache)
        async with watching(cache), watching(cache):
            await commit_many(cache)
    await client.aclose()


async def test_watches_on_a_given_sentinel_client_use_connections_of_their_own(sentinels: SentinelGroup) -> None:
    manager = Sentinel([("127.0.0.1", each.port) for each in sentinels.sentinels])
    client = manager.master_for("lash", max_connections=1)
    async with asyncio.timeout(PATIENCE), SessionCache(client) as cache:
        await begin(cache)
        async with watching(cache), watching(cache):
            await commit_many(cache)
    for opened in (client, *manager.sentinels):
        await opened.aclose()
