"""A watch still reports changes after a server is killed or replaced, and after a slot moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

import lash_redis
from lash_redis import BackendError, OutcomeUnknown, RedisSessionStore, Replicas, SessionCache, SessionWatch
from tests.support.builders import commit
from tests.support.groups import Cluster, SentinelGroup, _Group
from tests.support.servers import require, table

SLOW = 600.0
"""Seconds of `poll` that are longer than any test."""
NAMES = [f"chat-{number}" for number in range(60)]

SHARDING = [kind for kind in table() if kind.real and not kind.missing and kind.version >= (6, 2)]


@pytest.fixture(params=SHARDING, ids=lambda kind: kind.name, scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    require(request.param)
    with Cluster(request.param) as group:
        yield group


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelGroup]:
    with SentinelGroup() as group:
        yield group


@asynccontextmanager
async def opened(group: _Group, *, given: bool) -> AsyncIterator[SessionCache]:
    """A cache on the URL of the group, or on a given client."""
    if not given:
        async with lash_redis.connect(group.url, namespace="laws") as cache:
            yield cache
        return
    client = group.managed() if isinstance(group, SentinelGroup) else group.client()
    try:
        yield SessionCache(client, "laws")
    finally:
        for each in (client, *group.opened(client)):
            await each.aclose()


async def commit_until_stored(store: RedisSessionStore, revision: int, durability: Replicas | None = None) -> None:
    """Commit, and retry until the commit is known to be stored."""
    made = commit(revision - 1, session_id=store.session_id)
    async with asyncio.timeout(30):
        while True:
            try:
                await store.commit_runtime_state(made, durability=durability)
            except (OutcomeUnknown, BackendError):
                await asyncio.sleep(0.05)
            else:
                return


class Followed:
    """A watch of all sessions, and the newest revision that it reported for each."""

    def __init__(self, watch: SessionWatch) -> None:
        self.watch = watch
        self.newest = dict.fromkeys(NAMES, 0)
        self.moved = asyncio.Condition()

    async def follow(self) -> None:
        async for change in self.watch:
            assert change.ended is None, change
            async with self.moved:
                self.newest[change.session_id] = change.revision
                self.moved.notify_all()

    async def reach(self, revision: int) -> None:
        async with asyncio.timeout(30), self.moved:
            await self.moved.wait_for(lambda: set(self.newest.values()) == {revision})


@asynccontextmanager
async def following(cache: SessionCache) -> AsyncIterator[Followed]:
    async with cache.watch(poll=SLOW, patience=30) as watch:
        followed = Followed(watch)
        for name in NAMES:
            watch.add(name, 0)
        task = asyncio.create_task(followed.follow())
        try:
            yield followed
        finally:
            task.cancel()
            (end,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(end, asyncio.CancelledError), repr(end)


async def commit_to_all(cache: SessionCache, revision: int, durability: Replicas | None = None) -> None:
    await asyncio.gather(*(commit_until_stored(cache.session(name), revision, durability) for name in NAMES))


@pytest.mark.parametrize("given", [False, True], ids=["url", "given"])
async def test_a_watch_of_a_cluster_survives_a_killed_primary(given, cluster):
    await asyncio.to_thread(cluster.heal)
    cluster.flush()
    async with opened(cluster, given=given) as cache, following(cache) as followed:
        await commit_to_all(cache, 1, Replicas(1, 5_000))
        await followed.reach(1)
        killed = cluster.primary_of(cache.layout.session(NAMES[0]).head)
        killed.kill()
        await commit_to_all(cache, 2)
        await followed.reach(2)
        await asyncio.to_thread(cluster.wait_for_failover, killed)
        await commit_to_all(cache, 3)
        await followed.reach(3)
        await asyncio.to_thread(cluster.heal)
        await commit_to_all(cache, 4)
        await followed.reach(4)


@pytest.mark.parametrize("given", [False, True], ids=["url", "given"])
async def test_a_watch_of_a_cluster_follows_a_moving_slot(given, cluster):
    await asyncio.to_thread(cluster.heal)
    cluster.flush()
    async with opened(cluster, given=given) as cache, following(cache) as followed:
        await commit_to_all(cache, 1)
        await followed.reach(1)
        head = cache.layout.session(NAMES[0]).head
        source = cluster.primary_of(head)
        target = next(node for node in cluster.primaries() if node is not source)
        slot = cluster.slot_of(head)
        for revision, to in ((2, target), (4, source)):
            moving = asyncio.create_task(asyncio.to_thread(cluster.migrate_slot, slot, to))
            await commit_to_all(cache, revision)
            await moving
            await followed.reach(revision)
            await commit_to_all(cache, revision + 1)
            await followed.reach(revision + 1)
        if cluster.moves_slots_atomically:
            moving = asyncio.create_task(asyncio.to_thread(cluster.migrate_slot_atomically, slot, target))
            await commit_to_all(cache, 6)
            await moving
            await followed.reach(6)
            await commit_to_all(cache, 7)
            await followed.reach(7)


@pytest.mark.parametrize("given", [False, True], ids=["url", "given"])
async def test_a_watch_under_sentinel_survives_a_killed_primary(given, sentinels):
    await asyncio.to_thread(sentinels.heal)
    sentinels.flush()
    async with opened(sentinels, given=given) as cache, following(cache) as followed:
        await commit_to_all(cache, 1, Replicas(2, 5_000))
        await followed.reach(1)
        killed = sentinels.primary
        killed.kill()
        await asyncio.to_thread(sentinels.wait_for_failover, killed)
        await commit_to_all(cache, 2)
        await followed.reach(2)
        await asyncio.to_thread(sentinels.heal)
        await commit_to_all(cache, 3)
        await followed.reach(3)
