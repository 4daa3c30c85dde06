"""How long do contenders take in one run, in random order, and what do they cost the server and the wire?"""

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
    """`make` prepares one operation, perhaps by awaiting something, and is not timed; `run` does it and is."""

    run: Callable[..., Awaitable[object]]
    make: Callable[[], Any] | None = None

    async def made(self) -> tuple[Any, ...]:
        if self.make is None:
            return ()
        argument = self.make()
        return (await argument if isawaitable(argument) else argument,)


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds by contender; the same index is the same round."""

    by_name: Mapping[str, list[float]]

    def percentile(self, name: str, percent: float) -> float:
        ordered = sorted(self.by_name[name])
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def ratio(self, ours: str, other: str) -> float:
        """The median of the rounds' ratios: what both suffered in a round cancels out."""
        return median(self.ratios(ours, other))

    def ratios(self, ours: str, other: str) -> list[float]:
        return [a / b for a, b in zip(self.by_name[ours], self.by_name[other], strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles; of a single value, that value three times."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def percentiles(taken: Sequence[float]) -> tuple[float, float]:
    """p50 and p99; of a single value, that value."""
    cut = quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else [taken[0]] * 99
    return cut[49], cut[98]


def in_turn(contenders: Sequence[Contender]) -> Contender:
    """The contenders one after the other: one contender."""
    turns = cycle(contenders)

    async def make() -> tuple[Contender, tuple[Any, ...]]:
        contender = next(turns)
        return contender, await contender.made()

    async def run(made: tuple[Contender, tuple[Any, ...]]) -> None:
        await made[0].run(*made[1])

    return Contender(run, make)


async def rounds_within(contenders: Mapping[str, Contender], seconds: float, *, least: int = 12) -> int:
    """How many rounds of the contenders fit into `seconds`, warm-up included; at most 1,500."""
    took = float("inf")
    for _ in range(3):
        started = perf_counter()
        for contender in contenders.values():
            await contender.run(*await contender.made())
        took = min(took, perf_counter() - started)
    return max(least, min(1500, int(seconds / took / 1.1)))


async def interleaved(contenders: Mapping[str, Contender], rounds: int) -> Times:
    """Every contender once a round, in an order that changes from round to round; the first tenth is thrown away."""
    dice = random.Random(rounds)
    warm = max(3, rounds // 10)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    gc.collect()
    gc.freeze()
    for turn in range(warm + rounds):
        dice.shuffle(order)
        for name in order:
            contender = contenders[name]
            arguments = await contender.made()
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
    """Per operation: µs that commands ran (`time`), µs of processor the server used (`cpu`), commands by name.

    `inside`: of the time of a script, what its commands took.
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
    """What `repeats` operations cost the server, by INFO. Nothing else may run on it meanwhile."""
    operations = [await contender.made() for _ in range(repeats)]
    before, started = await _commandstats(client), await _processor(client)
    for arguments in operations:
        await contender.run(*arguments)
    cpu, after = await _processor(client) - started, await _commandstats(client)
    calls = {name: after[name][0] - before.get(name, (0, 0))[0] for name in after}
    spent = {name: after[name][1] - before.get(name, (0, 0))[1] for name in after}
    # A script's time holds that of its commands, EXEC's that of the transaction: count them once.
    script = spent.get("evalsha", 0)
    rest = sum(spent.values()) - spent.get("exec", 0) - script
    by_name = {name: count / repeats for name, count in sorted(calls.items()) if count}
    return ServerCost((script or rest) / repeats, cpu / repeats, by_name, rest / repeats if script else 0.0)


async def server_costs(
    client: redis.Redis, contenders: Mapping[str, Contender], repeats: int, blocks: int
) -> dict[str, list[ServerCost]]:
    """Alternating blocks of `repeats` operations of one contender each, in random order."""
    dice = random.Random(blocks)
    costs: dict[str, list[ServerCost]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(blocks):
        dice.shuffle(order)
        for name in order:
            costs[name].append(await server_cost(client, contenders[name], repeats))
    return costs


# The wire


@dataclass(slots=True)
class Wire:
    """A relay before a server that counts what passes: a round trip is a turn from asking to answering."""

    round_trips: int = 0
    up: int = 0
    down: int = 0
    lose: int = 0
    """The answer of this turn from now on (1: the next) is lost, and its connection with it; 0: none is."""
    heard: list[bytes] | None = field(default=None, repr=False)
    """What was asked, a request for each turn, while there is a list to keep it in. One connection at a time."""
    _asking: bool = field(default=False, repr=False)

    def reset(self) -> None:
        self.round_trips = self.up = self.down = 0
        self._asking = False

    async def _asked(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with closing(target):
            while data := await source.read(1 << 20):
                self.up += len(data)
                if self.heard is not None:
                    if self._asking and self.heard:
                        self.heard[-1] += data
                    else:
                        self.heard.append(data)
                self._asking = True
                target.write(data)

    async def _answered(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with closing(target):
            while data := await source.read(1 << 20):
                self.down += len(data)
                self.round_trips += self._asking
                if self._asking and self.lose:
                    self.lose -= 1
                    if self.lose == 0:
                        self._asking = False
                        break
                self._asking = False
                target.write(data)


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[tuple[str, Wire]]:
    """The URL of a relay to `url`, and its counts."""
    wire, parts = Wire(), urlsplit(url)
    tasks: set[asyncio.Future[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if parts.scheme == "unix":
            answers, asks = await asyncio.open_unix_connection(unquote(parts.path), limit=1 << 24)
        else:
            answers, asks = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
        both = asyncio.gather(wire._asked(reader, asks), wire._answered(answers, writer))
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
    """`wire_to` on a loop of its own, for clients that block theirs."""
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
    """Per operation: turns from asking to answering, bytes, what the server did."""

    round_trips: float
    up: float
    down: float
    server: ServerCost

    @property
    def commands(self) -> float:
        """All that the server executed, commands inside scripts included."""
        return sum(self.server.calls.values())


async def traffic(client: redis.Redis, wire: Wire, contender: Contender, repeats: int, warm: int = 1) -> Traffic:
    """What one operation of a contender behind `wire` costs, after `warm` that do not count.

    Nothing else may pass there, or run on the server.
    """
    for _ in range(warm):
        await contender.run(*await contender.made())
    wire.reset()
    cost = await server_cost(client, contender, repeats)
    return Traffic(wire.round_trips / repeats, wire.up / repeats, wire.down / repeats, cost)
