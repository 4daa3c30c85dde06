"""How long does a refresh of a read take compared with one HMGET, the least request that detects a change?

Another process commits, and the only reader of a session refreshes its read. `alone`: a commit of 2 nodes without new
components, one round trip. `whole`: a commit with a new plugin snapshot and execution state, 12 KB. The small session
has 10 nodes at first. Both sessions grow by 2 nodes each round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

import redis.asyncio as redis

from bench import workload
from bench.measure import Contender, Wire, interleaved, server_costs, wire_to
from bench.report import Row, server_rows, time_row
from lash_redis import FullGraph, PersistedSessionRead, RuntimeCommit, SessionCache, connect

NAMESPACE = "bench-refresh"
SIZES = (10, 10_000)


class Reader:
    """A process that keeps a read of a session to which another process commits."""

    def __init__(self, writer: SessionCache, reader: SessionCache, session_id: str, *, states: bool) -> None:
        self.session = workload.Session(writer, session_id)
        self.store = reader.session(session_id)
        self.states = states

    async def begin(self, count: int) -> None:
        await self.session.begin(workload.tool_state(), workload.chain(0, count, None), states=self.states)
        self.read = await self.store.load_session(FullGraph())

    def turn(self) -> RuntimeCommit:
        return self.session.turn(states=self.states)

    async def fall_behind(self) -> PersistedSessionRead:
        await self.session.commit(self.turn())
        assert self.read is not None
        return self.read

    async def refresh(self, read: PersistedSessionRead) -> None:
        self.read = await self.store.refresh(read)

    async def refresh_unchanged(self) -> PersistedSessionRead | None:
        assert self.read is not None
        return await self.store.refresh(self.read)

    async def load(self) -> PersistedSessionRead | None:
        return await self.store.load_session(FullGraph())


async def measure(client: redis.Redis, url: str, *, quick: bool) -> list[Row]:
    async with AsyncExitStack() as opened:
        caches = [await opened.enter_async_context(connect(url, namespace=NAMESPACE)) for _ in range(5)]
        return await _measure(client, url, caches.pop(), iter(caches), quick=quick)


async def _measure(
    client: redis.Redis, url: str, writer: SessionCache, caches: Iterator[SessionCache], *, quick: bool
) -> list[Row]:
    rounds = 60 if quick else 400
    alone = {count: Reader(writer, next(caches), f"alone-{count}", states=False) for count in SIZES}
    whole = {count: Reader(writer, next(caches), f"whole-{count}", states=True) for count in SIZES}
    for readers in (alone, whole):
        for count, each in readers.items():
            await each.begin(count)

    head = writer.layout.session("alone-10000").head
    contenders = {
        "same": Contender(alone[10_000].refresh_unchanged),
        "small": Contender(alone[10].refresh_unchanged),
        "hmget": Contender(lambda: client.hmget(head, "facts", "refs", "body")),
    }
    times = await interleaved(contenders, rounds * 5)
    rows = [
        time_row("refresh, nothing new, 10,000 nodes / one HMGET", times, "same", "hmget", 1.0),
        time_row("refresh, nothing new, 10,000 nodes / 10 nodes", times, "same", "small"),
    ]
    costs = await server_costs(client, contenders, repeats=50, blocks=5 if quick else 20)
    rows += server_rows("refresh, nothing new, 10,000 nodes / one HMGET", costs, "same", "hmget")

    for what, readers in (("2 new nodes", alone), ("a whole turn", whole)):
        both = {f"{count}": Contender(each.refresh, each.fall_behind) for count, each in readers.items()}
        both["load"] = Contender(readers[10_000].load)
        times = await interleaved(both, rounds)
        rows.append(time_row(f"refresh after {what}, 10,000 nodes / 10 nodes", times, "10000", "10", 1.2))
        rows.append(time_row(f"refresh after {what}, 10,000 nodes / full load", times, "10000", "load"))
    return rows + await _wire_rows(url, writer)


async def _wire_rows(url: str, writer: SessionCache) -> list[Row]:
    rows = []
    async with wire_to(url) as (relay, wire), connect(relay, namespace=NAMESPACE) as cache:
        for count in SIZES:
            reader = Reader(writer, cache, f"wired-{count}", states=False)
            await reader.begin(count)
            await reader.refresh_unchanged()
            wire.reset()
            await reader.refresh_unchanged()
            rows.append(_round_trip_row(f"refresh, nothing new, {count:,} nodes", wire))
            behind = await reader.fall_behind()
            wire.reset()
            await reader.refresh(behind)
            rows.append(_round_trip_row(f"refresh after 2 new nodes of 650 bytes, {count:,} nodes", wire))
    return rows


def _round_trip_row(what: str, wire: Wire) -> Row:
    numbers = {"up": wire.up, "down": wire.down}
    text = f"{wire.up:,} bytes up, {wire.down:,} down"
    return Row(f"round trips: {what}", text, "", wire.round_trips, 1, "", numbers)
