"""Faults of workers and servers while streams are produced and followed, and inputs enqueued and answered.

Each function injects one fault repeatedly and returns a row of the fault tables of streams or inputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import lash_redis
from lash_redis import FullGraph, SessionCache, StoreOptions
from lash_redis.protocol.keys import Layout
from tests.support import producing
from tests.support.boundaries import Moment, at
from tests.support.groups import Cluster, Member, SentinelGroup
from tests.support.outages import one_server
from tests.support.proxy import Action, Proxy
from tests.support.servers import Kind
from tests.support.stream_accounts import Followed, InputRow, Produced, StreamRow
from tests.support.workers import NAMESPACE, PATIENCE, Crew, Worker

SESSION = "s"
EVENTS = 6
SHORT_TTL = 0.6
"""Seconds. Short, because the stream of a killed or frozen producer has to be lost."""
LONG_TTL = 60.0
"""Seconds. Longer than any outage here, so that no stream is lost."""


async def produced_by(crew: Crew, cache: SessionCache, session: str, generation: str) -> Produced:
    """What the journal of the producer contains, and the state that is stored."""
    lines = [(word, what) for word, name, what in crew.journal() if name == generation]
    words = {word for word, _ in lines}
    info = await cache.session(session).load_stream(generation)
    return Produced(
        confirmed=max((int(what) for word, what in lines if word == "acknowledged"), default=0),
        began_to_finish="finishing" in words,
        has_finished="finished" in words,
        state="StreamGone" if info is None else info.state,
    )


# Faults at each command. Each stream has a session of its own, because a session has at most 64 streams.


@dataclass
class Field:
    """One server behind a proxy, and a cache that reaches the server directly."""

    crew: Crew
    proxy: Proxy
    cache: SessionCache

    async def hit(self, nth: int, action: Action, worker: Worker, *order: Any) -> tuple[bool, asyncio.Task[Any]]:
        """Send an order, and return when its `nth` command got `action`, or when it has ended before.

        Returns whether there was such a command, and the task that waits for the worker's answer.
        """
        hit = asyncio.Event()
        self.proxy.on_command = at(nth, action, hit.set)
        worker.order(*order)
        answering = asyncio.create_task(worker.answer())
        hitting = asyncio.create_task(hit.wait())
        await asyncio.wait([answering, hitting], return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
        hitting.cancel()
        if hit.is_set() and action in (Action.HOLD_REPLY, Action.HALF_REPLY):
            async with asyncio.timeout(PATIENCE):
                await self.proxy.holding()
        return hit.is_set(), answering


Fault = Callable[[Field, int, Moment, str], Awaitable[bool]]
"""Injects the fault at a command; returns whether there was such a command."""


async def kill_producer(field: Field, nth: int, moment: Moment, generation: str) -> bool:
    victim = await field.crew.hire(field.proxy.url)
    held = {Moment.BEFORE: Action.CUT_BEFORE, Moment.EXECUTED: Action.HOLD_REPLY, Moment.HALFWAY: Action.HALF_REPLY}
    order = (producing.produce_noting, generation, generation, EVENTS, SHORT_TTL, 0.0)
    is_hit, answering = await field.hit(nth, held[moment], victim, *order)
    victim.kill()
    field.proxy.release()
    await asyncio.gather(answering, return_exceptions=True)  # the worker is dead
    return is_hit


async def cut_producer(field: Field, nth: int, moment: Moment, generation: str) -> bool:
    victim = await field.crew.hire(field.proxy.url)
    order = (producing.produce_noting, generation, generation, EVENTS, LONG_TTL, 0.0)
    is_hit, answering = await field.hit(nth, moment.cut, victim, *order)
    field.proxy.release()
    await answering
    victim.kill()
    return is_hit


async def freeze_producer(field: Field, nth: int, moment: Moment, generation: str) -> bool:
    """Freeze the producer until its stream is lost, then resume it."""
    victim = await field.crew.hire(field.proxy.url)
    order = (producing.produce_noting, generation, generation, EVENTS, SHORT_TTL, 0.0)
    is_hit, answering = await field.hit(nth, Action.HOLD_REPLY, victim, *order)
    victim.freeze()
    field.proxy.release()
    await asyncio.sleep(SHORT_TTL + 0.2)
    victim.thaw()
    await answering
    victim.kill()
    return is_hit


async def at_each_command_of_a_producer(
    fault: str, kind: Kind, url: str, what: Fault, *, moments: tuple[Moment, ...] = tuple(Moment), every: int = 1
) -> StreamRow:
    """Inject a fault at each command of a producer, or at one in `every`. Two followers reach the server directly."""
    row = StreamRow(fault, kind.name)
    async with _field(url) as field:
        nth = 1
        while True:
            hits = []
            for moment in moments:
                generation = f"{what.__name__}-{moment.name}{nth}"
                following = [
                    asyncio.create_task(
                        producing.follow_to_the_end(field.cache.session(generation), generation, PATIENCE)
                    )
                    for _ in range(2)
                ]
                hits.append(await what(field, nth, moment, generation))
                row.runs += hits[-1]
                if await field.cache.session(generation).load_stream(generation) is None:  # the fault came before it
                    for task in following:
                        task.cancel()
                    await asyncio.gather(*following, return_exceptions=True)
                    continue
                followed = list(await asyncio.gather(*following))
                row.settle(await produced_by(field.crew, field.cache, generation, generation), followed)
            if not any(hits):
                row.errors = field.crew.errors()
                return row
            nth += every


async def at_each_command_of_a_follower(kind: Kind, url: str, *, every: int = 1) -> StreamRow:
    """Cut the connection of a follower at each of its commands, while the producer reaches the server directly."""
    row = StreamRow("follower's connection cut at each command, in three moments", kind.name)
    async with _field(url) as field:
        nth, producer, is_over = 1, await field.crew.hire(url), False
        while not is_over:
            is_over = True
            for moment in Moment:
                generation = f"follower-{moment.name}{nth}"
                follower = await field.crew.hire(field.proxy.url)
                order = (producing.produce_noting, generation, generation, EVENTS, LONG_TTL, 0.02)
                producer.order(*order)
                following = (producing.follow_noting, generation, generation, PATIENCE)
                is_hit, answering = await field.hit(nth, moment.cut, follower, *following)
                field.proxy.release()
                followed: Followed = await answering
                await producer.answer()
                follower.kill()
                row.runs += is_hit
                row.settle(await produced_by(field.crew, field.cache, generation, generation), [followed])
                is_over = is_over and not is_hit
            nth += every
        row.errors = field.crew.errors()
    return row


@asynccontextmanager
async def _field(url: str) -> AsyncIterator[Field]:
    async with (
        Proxy(url) as proxy,
        Crew() as crew,
        lash_redis.connect(url, namespace=NAMESPACE) as cache,
    ):
        await cache.preload()
        yield Field(crew, proxy, cache)


# Faults of servers under load


@dataclass(frozen=True)
class Site:
    """Where workers run, and what fails there."""

    url: str
    fail: Callable[[], Awaitable[None]]


@asynccontextmanager
async def killed_server(kind: Kind) -> AsyncIterator[Site]:
    """A server that persists, and that each fault kills and restarts."""
    async with one_server(kind, "always") as member:

        async def fail() -> None:
            await asyncio.to_thread(member.kill)
            await asyncio.to_thread(member.start)

        yield Site(member.url, fail)


@asynccontextmanager
async def failing_group(group: Cluster | SentinelGroup, *, freeze: bool) -> AsyncIterator[Site]:
    """A group of which each fault kills the primary, or freezes it until another has taken over."""
    await asyncio.to_thread(group.start)

    def primary() -> Member:
        if isinstance(group, SentinelGroup):
            return group.primary
        return group.primary_of(Layout(NAMESPACE, StoreOptions().shards).session(SESSION).head)

    async def fail() -> None:
        failed = primary()
        await asyncio.to_thread(failed.freeze if freeze else failed.kill)
        await asyncio.to_thread(group.wait_for_failover, failed)
        if isinstance(group, SentinelGroup):
            await asyncio.to_thread(group.wait_until_followed)
        await asyncio.to_thread(group.heal)

    try:
        yield Site(group.url, fail)
    finally:
        await asyncio.to_thread(group.stop)


async def stream_under(
    fault: str, kind: Kind, place: AbstractAsyncContextManager[Site], *, times: int, count: int, events: int
) -> StreamRow:
    """Let `count` producers and as many followers work while a site fails. No stream may be lost."""
    row = StreamRow(fault, kind.name)
    async with place as site, Crew() as crew, lash_redis.connect(site.url, namespace=NAMESPACE) as cache:
        producers, followers = await crew.hire_all(count, site.url), await crew.hire_all(count, site.url)
        for number, (producer, follower) in enumerate(zip(producers, followers, strict=True)):
            producer.order(producing.produce_noting, SESSION, f"gen{number}", events, LONG_TTL, 0.005)
            follower.order(producing.follow_noting, SESSION, f"gen{number}", PATIENCE)
        for number in range(times):
            await crew.reaches(count * events * (number + 1) // (times + 1))
            await site.fail()
            row.runs += 1
        for number, (producer, follower) in enumerate(zip(producers, followers, strict=True)):
            await producer.answer()
            row.settle(await produced_by(crew, cache, SESSION, f"gen{number}"), [await follower.answer()])
        row.errors = crew.errors()
    return row


async def inputs_under(
    fault: str,
    kind: Kind,
    place: AbstractAsyncContextManager[Site],
    *,
    times: int,
    count: int,
    inputs: int,
    kills_workers: bool = False,
) -> InputRow:
    """Let `count` workers enqueue inputs and as many answer them while a site fails, or while answering workers die."""
    row = InputRow(fault, kind.name)
    async with place as site, Crew() as crew, lash_redis.connect(site.url, namespace=NAMESPACE) as cache:
        asking, answering = await crew.hire_all(count, site.url), await crew.hire_all(count, site.url)
        for worker in asking:
            worker.order(producing.enqueue_noting, SESSION, inputs, 0.005)
        for worker in answering:
            worker.order(producing.answer_until, SESSION, count * inputs)
        for number in range(times):
            await crew.reaches(count * inputs * (number + 1) // (times + 1))
            if kills_workers:
                answering.pop(0).kill()
                answering.append(await crew.hire(site.url))
                answering[-1].order(producing.answer_until, SESSION, count * inputs)
            else:
                await site.fail()
            row.runs += 1
        for worker in [*asking, *answering]:
            await worker.answer()
        read = await cache.session(SESSION).load_session(FullGraph())
        assert read is not None
        row.settle(crew.told("acknowledged"), [node.event()["turn"] for node in read.graph.nodes])
        row.errors = crew.errors()
    return row
