"""How long does an event take from the producer to its followers, and what does it cost, compared with plain pub/sub?

Plain pub/sub is the least that a careless author does: one PUBLISH for each event, and one connection for each
follower, in one process. It stores nothing, so a follower that reconnects has lost what was sent meanwhile. An event
has 40 bytes of text. In the lines of time, the producer pauses for 6 ms after each event, as a model does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from time import perf_counter
from typing import Any

import redis.asyncio as redis

from bench.measure import Contender, Times, interleaved, server_cost, wire_to
from bench.memory import usage
from bench.report import Row, time_row
from lash_redis import RedisSessionStore, SessionCache, StreamWriter, connect

NAMESPACE = "bench-streams"
PAUSE = 0.006
EVENT = {"type": "response.output_text.delta", "delta": "x" * 40}


class Arrivals:
    """The followers of one stream, and how many of them have the event that was sent last."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._arrived = 0
        self._are_all = asyncio.Event()

    def note(self) -> None:
        self._arrived += 1
        if self._arrived == self.count:
            self._are_all.set()

    async def of(self, send: Callable[[], Awaitable[object]]) -> None:
        """Send an event, and wait until every follower has it."""
        self._arrived = 0
        self._are_all.clear()
        await send()
        await self._are_all.wait()


@asynccontextmanager
async def streaming(writing: SessionCache, reading: SessionCache, name: str, count: int) -> AsyncIterator[Contender]:
    """A producer, and followers of another cache."""
    arrivals = Arrivals(count)

    async def follow(store: RedisSessionStore) -> None:
        async for _ in store.follow("gen", wait=60):
            arrivals.note()

    async with AsyncExitStack() as opened:
        out = await opened.enter_async_context(writing.session(name).stream("gen", max_events=10_000, ttl=600))
        tasks = [asyncio.create_task(follow(reading.session(name))) for _ in range(count)]
        opened.callback(lambda: [task.cancel() for task in tasks])
        await asyncio.sleep(0.5 + count / 500)  # until all have subscribed
        yield Contender(lambda _: arrivals.of(lambda: out.send(EVENT)), lambda: asyncio.sleep(PAUSE))


@asynccontextmanager
async def publishing(url: str, name: str, count: int) -> AsyncIterator[Contender]:
    """The same over plain pub/sub."""
    arrivals = Arrivals(count)
    client = redis.from_url(url, max_connections=count + 2)

    async def follow() -> None:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe(name)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    json.loads(message["data"])
                    arrivals.note()

    tasks = [asyncio.create_task(follow()) for _ in range(count)]
    await asyncio.sleep(0.5 + count / 500)
    try:
        yield Contender(
            lambda _: arrivals.of(lambda: client.publish(name, json.dumps(EVENT))), lambda: asyncio.sleep(PAUSE)
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()


async def measure(client: redis.Redis, url: str, *, quick: bool) -> list[Row]:
    rows = await time_rows(url, url, quick=quick)
    async with connect(url, namespace=NAMESPACE) as cache:
        rows += await _throughput_rows(client, cache, 5_000 if quick else 20_000)
        rows.append(await _memory_row(client, cache))
    return rows + await _cost_rows(client, url)


async def time_rows(url: str, node: str, *, quick: bool) -> list[Row]:
    """Compare streams at `url` with messages that are published to the server `node`."""
    rows = []
    for count, rounds in ((1, 200 if quick else 1000), (1000, 15 if quick else 60)):
        times = await _times(url, node, count, rounds)
        who = "1 follower" if count == 1 else f"all of {count:,} followers"
        rows.append(time_row(f"an event, from send to {who} / plain pub/sub", times, "stream", "publish"))
    return rows


async def _times(url: str, node: str, count: int, rounds: int) -> Times:
    async with (
        connect(url, namespace=NAMESPACE) as writing,
        connect(url, namespace=NAMESPACE) as reading,
        streaming(writing, reading, f"latency-{count}", count) as stream,
        publishing(node, f"bench-streams-{count}", count) as publish,
    ):
        return await interleaved({"stream": stream, "publish": publish}, rounds)


async def _throughput_rows(client: redis.Redis, cache: SessionCache, count: int) -> list[Row]:
    """Send events as fast as possible, in alternating rounds; no follower."""
    taken: dict[str, list[tuple[float, float]]] = {"stream": [], "publish": []}

    async def stream(turn: int) -> None:
        async with cache.session("throughput").stream(f"gen-{turn}", keep=1) as out:
            for _ in range(count):
                await out.send(EVENT)

    async def publish(_: int) -> None:
        for _ in range(count // 10):
            await client.publish("bench-streams", json.dumps(EVENT))

    for turn in range(5):
        for name, run, sent in (("stream", stream, count), ("publish", publish, count // 10)):
            before, began = await _processor(client), perf_counter()
            await run(turn)
            took = perf_counter() - began
            taken[name].append((took / sent * 1e6, (await _processor(client) - before) / sent))
    rows = []
    for at, what in enumerate(("events a second of one producer", "events a second of one server core")):
        ours, other = (median(1e6 / pair[at] for pair in taken[name]) for name in ("stream", "publish"))
        ratio = median(b[at] / a[at] for a, b in zip(taken["stream"], taken["publish"], strict=True))
        numbers = {"ours": ours, "other": other}
        rows.append(
            Row(f"{what}, in full batches / plain pub/sub", f"{ours:,.0f}", f"{other:,.0f}", ratio, numbers=numbers)
        )
    return rows


async def _processor(client: redis.Redis) -> float:
    used = await client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"]) * 1e6


async def _memory_row(client: redis.Redis, cache: SessionCache) -> Row:
    count = 500
    async with cache.session("memory").stream("gen") as out:
        for _ in range(count):
            await out.send(EVENT)
    info = await cache.session("memory").load_stream("gen")
    assert info is not None
    size = await usage(client, f"lash2:{{{NAMESPACE}:*memory*")
    text = f"{size / 1024:,.1f} KiB, events {info.stored_bytes / 1024:,.1f} KiB"
    numbers = {"bytes": size, "events": info.stored_bytes}
    return Row(
        f"memory of a finished stream of {count} events / its events",
        text,
        "",
        size / info.stored_bytes,
        numbers=numbers,
    )


async def _cost_rows(client: redis.Redis, url: str) -> list[Row]:
    """Count what one event costs a producer that sends each in a round trip, and in batches of 10; no follower."""
    rows = []
    async with (
        wire_to(url) as (relay, wire),
        connect(relay, namespace=NAMESPACE) as cache,
        cache.session("cost").stream("gen", ttl=600) as out,
    ):
        await out.flush()
        for batch in (1, 10):
            await asyncio.sleep(0.1)
            contender = Contender(lambda _, batch=batch: _send(out, batch), lambda: asyncio.sleep(PAUSE))
            wire.reset()
            cost = await server_cost(client, contender, 50)
            events = 50 * batch
            calls = sum(cost.calls.values()) / batch
            text = f"{wire.up / events:,.0f} bytes up, {wire.down / events:,.0f} down, {cost.cpu / batch:,.0f} µs"
            numbers: dict[str, Any] = {"up": wire.up / events, "down": wire.down / events, "cpu": cost.cpu / batch}
            what = f"commands of the server for an event, in batches of {batch}"
            rows.append(Row(what, text, "", calls, unit="", numbers=numbers))
    return rows


async def _send(out: StreamWriter, count: int) -> None:
    for _ in range(count):
        await out.send(EVENT)
    await out.flush()
