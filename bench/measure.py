"""How long do contenders take in one interleaved run, and what server time and traffic do they cause?"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from inspect import isawaitable
from itertools import cycle
from statistics import median, quantiles
from threading import Thread
from time import perf_counter, perf_counter_ns
from typing import Any
from urllib.parse import unquote, urlsplit

import redis.asyncio as redis


@dataclass(frozen=True, slots=True)
class Contender:
    """An operation. `make` prepares its argument and is not timed; it may be async. `run` is timed."""

    run: Callable[..., Awaitable[object]]
    make: Callable[[], Any] | None = None

    async def prepare(self) -> tuple[Any, ...]:
        if self.make is None:
            return ()
        argument = self.make()
        return (await argument if isawaitable(argument) else argument,)


@dataclass(frozen=True, slots=True)
class Times:
    """The durations in µs of each contender. The index is the round."""

    by_name: Mapping[str, list[float]]

    def percentile(self, name: str, percent: float) -> float:
        ordered = sorted(self.by_name[name])
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def ratio(self, ours: str, other: str) -> float:
        """Return the median of the rounds' ratios. Noise that affects both contenders in a round cancels out."""
        return median(self.ratios(ours, other))

    def ratios(self, ours: str, other: str) -> list[float]:
        return [a / b for a, b in zip(self.by_name[ours], self.by_name[other], strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles; of a single value, that value three times."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def percentiles(taken: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99; of a single value, that value twice."""
    cut = quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else [taken[0]] * 99
    return cut[49], cut[98]


def in_turn(contenders: Sequence[Contender]) -> Contender:
    """Return a contender that runs these in rotation."""
    turns = cycle(contenders)

    async def make() -> tuple[Contender, tuple[Any, ...]]:
        contender = next(turns)
        return contender, await contender.prepare()

    async def run(made: tuple[Contender, tuple[Any, ...]]) -> None:
        await made[0].run(*made[1])

    return Contender(run, make)


async def rounds_within(contenders: Mapping[str, Contender], seconds: float, *, least: int = 12) -> int:
    """Return how many rounds of the contenders fit into `seconds`, warm-up included; from `least` to 1,500."""
    took = float("inf")
    for _ in range(3):
        started = perf_counter()
        for contender in contenders.values():
            await contender.run(*await contender.prepare())
        took = min(took, perf_counter() - started)
    return max(least, min(1500, int(seconds / took / 1.1)))


async def interleaved(contenders: Mapping[str, Contender], rounds: int) -> Times:
    """Run every contender once a round, in random order. One tenth more rounds come first and are not counted."""
    rng = random.Random(rounds)
    warm = max(3, rounds // 10)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    gc.collect()
    gc.freeze()
    for turn in range(warm + rounds):
        rng.shuffle(order)
        for name in order:
            contender = contenders[name]
            arguments = await contender.prepare()
            started = perf_counter_ns()
            result = await contender.run(*arguments)
            took = perf_counter_ns() - started
            del result
            if turn >= warm:
                taken[name].append(took / 1000)
    gc.unfreeze()
    return Times(taken)


# The server's side


@dataclass(frozen=True, slots=True)
class ServerCost:
    """The cost of one operation: time of its commands (`time`) and processor time (`cpu`), both in µs; calls by name.

    `inside` is the part of a script's time that its commands took, in µs.
    """

    time: float
    cpu: float
    calls: Mapping[str, float]
    inside: float = 0.0


async def _commandstats(client: redis.Redis) -> dict[str, tuple[int, int]]:
    stats = await client.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): (row["calls"], row["usec"])
        for name, row in stats.items()
        if name not in ("cmdstat_info", "cmdstat_client|setinfo", "cmdstat_hello")
    }


async def _processor(client: redis.Redis) -> float:
    used = await client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"]) * 1e6


async def server_cost(client: redis.Redis, contender: Contender, repeats: int) -> ServerCost:
    """Measure the mean cost of `repeats` operations by INFO. Nothing else may run on the server at that time."""
    operations = [await contender.prepare() for _ in range(repeats)]
    before, started = await _commandstats(client), await _processor(client)
    for arguments in operations:
        await contender.run(*arguments)
    cpu, after = await _processor(client) - started, await _commandstats(client)
    calls = {name: after[name][0] - before.get(name, (0, 0))[0] for name in after}
    spent = {name: after[name][1] - before.get(name, (0, 0))[1] for name in after}
    # The time of EVALSHA and EXEC includes that of their commands, which must not be counted twice.
    script = spent.get("evalsha", 0)
    rest = sum(spent.values()) - spent.get("exec", 0) - script
    by_name = {name: count / repeats for name, count in sorted(calls.items()) if count}
    return ServerCost((script or rest) / repeats, cpu / repeats, by_name, rest / repeats if script else 0.0)


async def server_costs(
    client: redis.Redis, contenders: Mapping[str, Contender], repeats: int, blocks: int
) -> dict[str, list[ServerCost]]:
    """Measure `blocks` blocks of `repeats` operations of each contender, in random order."""
    rng = random.Random(blocks)
    costs: dict[str, list[ServerCost]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(blocks):
        rng.shuffle(order)
        for name in order:
            costs[name].append(await server_cost(client, contenders[name], repeats))
    return costs


# Traffic


@dataclass(slots=True)
class Wire:
    """The counts of a relay in front of a server. A round trip is a request that a reply follows."""

    round_trips: int = 0
    up: int = 0
    down: int = 0
    lose: int = 0
    """Which reply from now on is lost together with its connection (1: the next one); 0: none."""
    requests: list[bytes] | None = field(default=None, repr=False)
    """The requests, one for each round trip, while this is a list. Only for one connection at a time."""
    _is_asking: bool = field(default=False, repr=False)

    def reset(self) -> None:
        self.round_trips = self.up = self.down = 0
        self._is_asking = False

    async def _forward_requests(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with closing(target):
            while data := await source.read(1 << 20):
                self.up += len(data)
                if self.requests is not None:
                    if self._is_asking and self.requests:
                        self.requests[-1] += data
                    else:
                        self.requests.append(data)
                self._is_asking = True
                target.write(data)

    async def _forward_replies(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with closing(target):
            while data := await source.read(1 << 20):
                self.down += len(data)
                self.round_trips += self._is_asking
                if self._is_asking and self.lose:
                    self.lose -= 1
                    if self.lose == 0:
                        self._is_asking = False
                        break
                self._is_asking = False
                target.write(data)


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[tuple[str, Wire]]:
    """Run a relay to `url`; yield its URL and its counts."""
    wire, parts = Wire(), urlsplit(url)
    tasks: set[asyncio.Future[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if parts.scheme == "unix":
            replies, requests = await asyncio.open_unix_connection(unquote(parts.path), limit=1 << 24)
        else:
            replies, requests = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
        both = asyncio.gather(wire._forward_requests(reader, requests), wire._forward_replies(replies, writer))
        tasks.add(both)
        both.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", wire
    finally:
        server.close()
        links = list(tasks)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)


@contextmanager
def wire_in_thread(url: str) -> Iterator[tuple[str, Wire]]:
    """Run `wire_to` in a thread, for clients that block the event loop."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    relay = wire_to(url)
    try:
        yield asyncio.run_coroutine_threadsafe(relay.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(relay.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True, slots=True)
class Traffic:
    """The mean cost of one operation: round trips, bytes from (`up`) and to (`down`) the client, server time."""

    round_trips: float
    up: float
    down: float
    server: ServerCost

    @property
    def commands(self) -> float:
        """The number of commands that the server executed, those inside scripts included."""
        return sum(self.server.calls.values())


async def traffic(client: redis.Redis, wire: Wire, contender: Contender, repeats: int, warm: int = 1) -> Traffic:
    """Measure the mean cost of an operation whose client connects through `wire`, after `warm` uncounted operations.

    Nothing else may use the relay or the server at that time.
    """
    for _ in range(warm):
        await contender.run(*await contender.prepare())
    wire.reset()
    cost = await server_cost(client, contender, repeats)
    return Traffic(wire.round_trips / repeats, wire.up / repeats, wire.down / repeats, cost)
