"""How long do calls of the blocking client take compared with the async one and with `redis.Redis`? And of 8 threads?

The bare operations are those of `bare.py`, sent by `redis.Redis`. A resume is a full read of 20 nodes in this process,
with all messages decoded. The threads commit to a session each, and share one client of each kind.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from time import perf_counter, perf_counter_ns
from typing import Any

import msgpack
import redis

from bench import bare, workload
from bench.measure import Times
from bench.report import Row, time_row
from lash_redis import FullGraph, RuntimeCommit, blocking, connect

NAMESPACE = "bench-blocking"
NODES = 20
THREADS = 8

Prepared = Callable[[], Callable[[], object]]
"""Prepares an operation, and returns the function that is timed."""


class Bare(bare.Session):
    """The bare operations over a blocking client."""

    def __init__(self, client: redis.Redis, session_id: str, tools: bytes) -> None:
        super().__init__(client, session_id, tools)  # type: ignore[arg-type]  # it builds arguments alone
        self.blocking = client

    def begin_blocking(self) -> None:
        self.blocking.script_load(bare.COMMIT)
        self.send(self.turn(workload.chain(0, NODES, None)))

    def send(self, arguments: list[Any]) -> object:
        return self.blocking.evalsha(bare.COMMIT_SHA, *arguments)

    def load(self) -> list[Any]:
        pipeline = self.blocking.pipeline(transaction=False)
        for command in self.read_commands():
            pipeline.execute_command(*command)
        return [msgpack.unpackb(record) for record in pipeline.execute()[1]]


class Blocking(workload.Session):
    """A session over the blocking client. `turn` makes its commits."""

    def __init__(self, cache: blocking.BlockingSessionCache, session_id: str) -> None:
        super().__init__(cache, session_id)  # type: ignore[arg-type]  # it uses the id alone
        self.blocking = cache.session(session_id)

    def begin_blocking(self) -> None:
        self.send(self.turn(workload.chain(0, NODES, None)))

    def send(self, commit: RuntimeCommit) -> object:
        return self.blocking.commit_runtime_state(commit)

    def load(self) -> object:
        read = self.blocking.load_session(FullGraph())
        assert read is not None
        return [node.event() for node in read.graph.nodes]


def measure(url: str, *, quick: bool) -> list[Row]:
    rounds = 200 if quick else 1000
    tools = msgpack.packb(workload.tool_state().to_msgpack())
    with ExitStack() as opened:
        client = opened.enter_context(redis.Redis.from_url(url))
        cache = opened.enter_context(blocking.connect(url, namespace=NAMESPACE))
        runner = opened.enter_context(asyncio.Runner())
        async_cache = connect(url, namespace=NAMESPACE)
        opened.callback(lambda: runner.run(async_cache.aclose()))
        ours, plain = Blocking(cache, "blocking"), Bare(client, "blocking", tools)
        ours.begin_blocking()
        plain.begin_blocking()
        coroutines = workload.Session(async_cache, "async")
        runner.run(coroutines.begin(None, workload.chain(0, NODES, None)))

        times = _interleaved(
            {
                "blocking": _sending(ours),
                "bare": _sending(plain),
                "async": lambda: _awaiting(runner, coroutines.commit(coroutines.turn())),
            },
            rounds,
        )
        rows = [
            time_row("commit over the blocking client / async", times, "blocking", "async"),
            time_row("commit over the blocking client / bare over redis.Redis", times, "blocking", "bare"),
        ]
        fixed, fixed_plain = Blocking(cache, "resumed"), Bare(client, "resumed", tools)
        fixed.begin_blocking()
        fixed_plain.begin_blocking()
        store = async_cache.session("resumed")

        async def resume() -> object:
            read = await store.load_session(FullGraph())
            assert read is not None
            return [node.event() for node in read.graph.nodes]

        times = _interleaved(
            {
                "blocking": lambda: fixed.load,
                "bare": lambda: fixed_plain.load,
                "async": lambda: _awaiting(runner, resume()),
            },
            rounds,
        )
        rows += [
            time_row("resume of 20 nodes, decoded, over the blocking client / async", times, "blocking", "async"),
            time_row("the same / bare over redis.Redis", times, "blocking", "bare"),
        ]
        return rows + _thread_rows(cache, client, tools, blocks=5 if quick else 15)


def _sending(session: Blocking | Bare) -> Prepared:
    def prepare() -> Callable[[], object]:
        made: Any = session.turn()
        return lambda: session.send(made)

    return prepare


def _awaiting(runner: asyncio.Runner, work: Any) -> Callable[[], float]:
    """Return a function that runs a coroutine, and returns the µs that it took inside of the loop."""

    async def timed() -> float:
        started = perf_counter_ns()
        await work
        return (perf_counter_ns() - started) / 1000

    return lambda: runner.run(timed())


def _interleaved(contenders: Mapping[str, Prepared], rounds: int) -> Times:
    """`measure.interleaved` for functions. The time of `async` is the one that it returns."""
    rng = random.Random(rounds)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    gc.collect()
    gc.freeze()
    for turn in range(rounds + rounds // 10):
        rng.shuffle(order)
        for name in order:
            run = contenders[name]()
            started = perf_counter_ns()
            result = run()
            took = (perf_counter_ns() - started) / 1000
            if turn >= rounds // 10:
                taken[name].append(float(result) if name == "async" else took)  # type: ignore[arg-type]
    gc.unfreeze()
    return Times(taken)


def _thread_rows(cache: blocking.BlockingSessionCache, client: redis.Redis, tools: bytes, *, blocks: int) -> list[Row]:
    """Commits of 8 threads a second, in blocks of both kinds in turns."""
    each_thread = 40
    number = count()
    rates: dict[str, list[float]] = {"one thread": [], "blocking": [], "bare": []}
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(blocks):
            for name, threads in (("one thread", 1), ("blocking", THREADS), ("bare", THREADS)):
                sessions: list[Blocking | Bare] = [
                    Bare(client, f"t{next(number)}", tools) if name == "bare" else Blocking(cache, f"t{next(number)}")
                    for _ in range(threads)
                ]
                for session in sessions:
                    session.begin_blocking()
                turns = [[session.turn() for _ in range(each_thread)] for session in sessions]
                started = perf_counter()
                list(pool.map(_send_all, sessions, turns))
                rates[name].append(threads * each_thread / (perf_counter() - started))
    both = Times({name: [1e6 / rate for rate in each] for name, each in rates.items()})
    return [
        time_row("time of a commit, 8 threads over one blocking client / 8 threads, bare", both, "blocking", "bare"),
        time_row(
            "time of a commit, 8 threads / 1 thread, both over the blocking client", both, "blocking", "one thread"
        ),
    ]


def _send_all(session: Blocking | Bare, turns: list[Any]) -> None:
    for made in turns:
        session.send(made)
