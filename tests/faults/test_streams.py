"""Under faults, a follower gets every event once and in order, and it mistakes no end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

import lash_redis
from lash_redis import BackendError, OutcomeUnknown, RedisSessionStore, SessionCache, StreamBusy, StreamFailed
from lash_redis.session import stream_hub
from tests.laws.test_streams import Followed, data_of, following, produced, state_of
from tests.laws.test_watch import until
from tests.support import outages, producing, workers
from tests.support.boundaries import Moment, at
from tests.support.groups import Cluster, SentinelGroup
from tests.support.proxy import Proxy
from tests.support.servers import any_real
from tests.support.workers import Crew

LONG = 120.0
"""Seconds that bound a hung test."""
EVENTS = list(range(6))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[SessionCache]:
    async with lash_redis.connect(url, namespace=workers.NAMESPACE) as cache:
        yield cache


async def produce_in_steps(store: RedisSessionStore, generation: str) -> None:
    async with store.stream(generation) as out:
        for number in EVENTS:
            await out.send(number)
            if number % 2:
                await out.flush()


async def commands_of(proxy: Proxy, work: Callable[[], Awaitable[None]]) -> int:
    with proxy.measure() as seen:
        await work()
    return seen.commands


async def at_boundary(proxy: Proxy, nth: int, moment: Moment, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, and cut the connection of the `nth` command that passes the proxy."""
    proxy.on_command = at(nth, moment.cut)
    task = asyncio.ensure_future(work())
    if moment is Moment.HALFWAY:
        holding = asyncio.ensure_future(proxy.holding())
        await asyncio.wait([task, holding], return_when=asyncio.FIRST_COMPLETED, timeout=LONG)
        holding.cancel()
        proxy.release()
    async with asyncio.timeout(LONG):
        await task
    proxy.on_command = at(0, moment.cut)


@pytest.mark.parametrize("moment", Moment)
async def test_a_producer_whose_connection_is_cut_at_any_command_loses_and_doubles_nothing(real_server, proxy, moment):
    async with connected(real_server.url) as direct:
        reader = direct.session("s")

        async def produce(generation: str) -> None:
            async with connected(proxy.url) as cache:
                await produce_in_steps(cache.session("s"), generation)

        count = await commands_of(proxy, lambda: produce("count"))
        assert count >= 6
        for nth in range(1, count + 1):
            generation = f"{moment.name}{nth}"
            async with following(reader, generation, wait=LONG) as followed:
                await at_boundary(proxy, nth, moment, lambda name=generation: produce(name))
                assert await followed.end() is None
            assert followed == EVENTS, generation
            assert await state_of(reader, generation) == "finished"


@pytest.mark.parametrize("moment", Moment)
async def test_a_follower_whose_connection_is_cut_at_any_command_loses_and_doubles_nothing(
    real_server, proxy, moment, monkeypatch
):
    monkeypatch.setattr(stream_hub, "POLL", 600.0)
    async with connected(real_server.url) as direct:
        writer = direct.session("s")

        async def follow(generation: str) -> None:
            async with connected(proxy.url) as cache:
                async with following(cache.session("s"), generation, wait=LONG) as followed:
                    async with writer.stream(generation) as out:
                        for number in EVENTS:
                            await out.send(number)
                            await out.flush()
                            await followed.reach(number + 1)
                    assert await followed.end() is None
                assert followed == EVENTS, generation

        count = await commands_of(proxy, lambda: follow("count"))
        assert count >= 6
        for nth in range(1, count + 1):
            await at_boundary(proxy, nth, moment, lambda name=f"{moment.name}{nth}": follow(name))


async def test_followers_of_a_killed_producer_get_all_events_and_then_the_loss(real_server):
    async with connected(real_server.url) as cache, Crew() as crew:
        worker = await crew.hire(real_server.url)
        store = cache.session("s")
        async with following(store, "gen", wait=LONG) as followed:
            worker.order(producing.produce, "s", "gen", 10_000, 1.0, 0.001)
            await followed.reach(20)
            worker.kill()
            failed = await followed.end()
        assert isinstance(failed, StreamFailed)
        assert failed.state == "lost"
        assert followed == list(range(len(followed)))
        info = await store.load_stream("gen")
        assert info is not None
        assert (info.event_count, info.state) == (len(followed), "lost")
        await produced(store, "again", generation="next")


async def test_a_producer_that_was_frozen_beyond_its_ttl_writes_nothing_behind_its_successor(real_server):
    async with connected(real_server.url) as cache, Crew() as crew:
        worker = await crew.hire(real_server.url)
        store = cache.session("s")
        async with following(store, "gen", wait=LONG) as followed:
            worker.order(producing.produce, "s", "gen", 10_000, 0.5, 0.001)
            await followed.reach(20)
            worker.freeze()
            assert isinstance(await followed.end(), StreamFailed)
        with pytest.raises(StreamBusy):
            await produced(store, "taken over", generation="gen")
        await produced(store, "successor", generation="next")
        worker.thaw()
        with pytest.raises(StreamFailed):
            await worker.answer()
        info = await store.load_stream("gen")
        assert info is not None
        assert info.event_count == len(followed)
        assert await data_of(store, "next") == ["successor"]


async def test_a_full_server_refuses_events_which_are_sent_when_it_has_room(real_server, full):
    admin = real_server.client()
    async with connected(real_server.url) as cache:
        store = cache.session("s")
        async with store.stream("gen") as out:
            await out.send("before")
            await out.flush()
            await full()
            await out.send("meanwhile")
            with pytest.raises(BackendError, match="OOM"):
                await out.flush()
            with pytest.raises(BackendError, match="OOM"):
                await produced(store, generation="other")
            assert (await store.load_stream("gen")).event_count == 1
            await admin.config_set("maxmemory", 0)
            await out.send("after")
        assert await data_of(store, "gen") == ["before", "meanwhile", "after"]


# Servers that restart and fail over


class Numbers:
    """A producer of numbers in a task of its own, and a follower."""

    def __init__(self, followed: Followed) -> None:
        self.followed = followed
        self.is_over = asyncio.Event()
        self.count = 0

    async def produce(self, store: RedisSessionStore) -> None:
        async with store.stream("gen", ttl=LONG, max_events=100_000) as out:
            while not self.is_over.is_set():
                with suppress(BackendError, OutcomeUnknown):
                    await out.send(self.count)
                self.count += 1
                await asyncio.sleep(0.002)
            await producing.flushed(out)

    async def progress(self) -> None:
        """Wait until the follower has something that was sent after this call."""
        known = self.count
        await until(lambda: len(self.followed) > known + 20, f"events after {known}", LONG)


@asynccontextmanager
async def streaming(url: str) -> AsyncIterator[tuple[Numbers, SessionCache]]:
    """Stream numbers during the block; then every number must have arrived once and in order."""
    async with (
        connected(url) as writing,
        connected(url) as reading,
        following(reading.session("s"), "gen", wait=LONG) as followed,
    ):
        numbers = Numbers(followed)
        task = asyncio.create_task(numbers.produce(writing.session("s")))
        await numbers.progress()
        yield numbers, writing
        await numbers.progress()
        numbers.is_over.set()
        await task
        await until(lambda: followed.is_done, "the end of the follower", LONG)
        assert followed.ended is None
    assert followed == list(range(numbers.count))


async def test_a_restarted_server_that_persists_loses_and_doubles_no_event():
    async with outages.one_server(any_real(), "always") as member, streaming(member.url) as (numbers, _):
        for _ in range(2):
            member.kill()
            await asyncio.to_thread(member.start)
            await numbers.progress()


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    with Cluster() as group:
        yield group


@pytest.fixture(scope="module")
def own_sentinels() -> Iterator[SentinelGroup]:
    with SentinelGroup() as group:
        yield group


async def test_a_cluster_that_fails_over_loses_and_doubles_no_event(own_cluster):
    await asyncio.to_thread(own_cluster.heal)
    own_cluster.flush()
    async with streaming(own_cluster.url) as (numbers, cache):
        killed = own_cluster.primary_of(cache.layout.session("s").head)
        killed.kill()
        await asyncio.to_thread(own_cluster.wait_for_failover, killed)
        await numbers.progress()


async def test_a_failover_under_sentinel_loses_and_doubles_no_event(own_sentinels):
    await asyncio.to_thread(own_sentinels.heal)
    own_sentinels.flush()
    async with streaming(own_sentinels.url) as (numbers, _):
        killed = own_sentinels.primary
        killed.kill()
        await asyncio.to_thread(own_sentinels.wait_for_failover, killed)
        await numbers.progress()


async def test_a_moving_slot_loses_and_doubles_no_event(own_cluster):
    await asyncio.to_thread(own_cluster.heal)
    own_cluster.flush()
    async with streaming(own_cluster.url) as (numbers, cache):
        head = cache.layout.session("s").head
        source = own_cluster.primary_of(head)
        target = next(node for node in own_cluster.primaries() if node is not source)
        await asyncio.to_thread(own_cluster.migrate_slot, own_cluster.slot_of(head), target)
        await numbers.progress()
