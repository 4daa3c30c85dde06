"""How many commits a second do 64 tasks of one process, and 4 processes with 16 tasks each, make?

`RedisSession` is that of openai-agents, if it is installed. It stores the two messages of each commit, without state.

Each side has its own processes. The parent requests blocks of commits from the sides in random order, one side at a
time. In a block each task makes its commits one after another, all tasks at once, each on a session of its own. The
commits are prepared before the clock starts. A ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from statistics import median
from time import perf_counter_ns, process_time
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import bare, check, commits, workload
from bench.measure import Contender, percentiles
from bench.report import Row
from lash_redis import SessionCache, SessionNodeRecord, StoreOptions, connect

OURS, BARE, PEER = "ours", "bare", "RedisSession"
PLANS = ((1, 64, 1.0), (4, 16, None))
"""Processes, tasks of each, and the least commits a second over bare."""
NODES, TOOLS = 100, workload.tool_state()
BLOCK_SECONDS = 0.1
OPTIONS = StoreOptions(blob_grace=5.0)
"""A short grace, so that replaced components do not fill the server's memory during the run."""


# One process of a side


async def begin(side: str, client: redis.Redis, cache: SessionCache, name: str) -> Contender:
    """Begin a session, and return the contender that commits to it."""
    nodes = workload.chain(0, NODES, None)
    if side == OURS:
        return commits.commits_of([await commits.begin_session(cache, name, TOOLS, NODES)])
    if side == BARE:
        plain = bare.Session(client, name, msgpack.packb(TOOLS.to_msgpack()))
        await plain.begin(nodes)
        return commits.bare_commits_of(plain)
    from agents.extensions.memory.redis_session import RedisSession

    session = RedisSession(name, redis_client=client)
    await session.add_items(messages_of(nodes))
    return Contender(session.add_items, lambda: messages_of(workload.chain(NODES, 2, None)))


def messages_of(nodes: Sequence[SessionNodeRecord]) -> Any:
    return [node.message() for node in nodes]


async def serve(side: str, url: str, number: str, most: str) -> None:
    """Prepare the block that a line of input requests, run it at the next line, and print its times."""
    async with connect(url, namespace="workers", options=OPTIONS) as cache, redis.from_url(url) as client:
        contenders = [await begin(side, client, cache, f"{number}-{task}") for task in range(int(most))]
        gc.collect()
        gc.freeze()
        print('"ready"', flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks, count = json.loads(line)
            prepared = [[await contender.prepare() for _ in range(count)] for contender in contenders[:tasks]]
            gc.collect()
            print('"prepared"', flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            started, used = perf_counter_ns(), process_time()
            blocks = [commit(contender, calls) for contender, calls in zip(contenders, prepared, strict=False)]
            taken = await asyncio.gather(*blocks)
            used = process_time() - used
            print(json.dumps([started, perf_counter_ns(), used, [*chain(*taken)]]), flush=True)


async def commit(contender: Contender, calls: Sequence[tuple[Any, ...]]) -> list[float]:
    taken = []
    for arguments in calls:
        started = perf_counter_ns()
        await contender.run(*arguments)
        taken.append((perf_counter_ns() - started) / 1000)
    return taken


# The parent


class Worker(check.Worker):
    def __init__(self, *arguments: str) -> None:
        command, pipe = [sys.executable, "-m", "bench.workers", *arguments], subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=check.ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def send(self, *request: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")

    def answer(self) -> Any:
        return self._answer()


@dataclass(frozen=True, slots=True)
class Block:
    a_second: float
    processor_us: float
    """Processor time of the worker processes for each commit."""
    calls: Sequence[float]
    """µs of each commit."""


def run_block(workers: Sequence[Worker], tasks: int, count: int) -> Block:
    """Run a block of `count` commits of each task, in all of these processes at once."""
    for request in ((tasks, count), ("run",)):
        for worker in workers:
            worker.send(*request)
        answers = [worker.answer() for worker in workers]
    starts, ends, used, calls = zip(*answers, strict=True)
    taken = [*chain(*calls)]
    return Block(len(taken) / (max(ends) - min(starts)) * 1e9, sum(used) / len(taken) * 1e6, taken)


@contextmanager
def started(url: str, sides: Sequence[str]) -> Iterator[Mapping[str, list[Worker]]]:
    """Start the processes of every side, and wait until they are ready."""
    with ExitStack() as stack:
        workers: dict[str, list[Worker]] = {side: [] for side in sides}
        for side in sides:
            for number in range(max(processes for processes, _, _ in PLANS)):
                most = max(tasks for processes, tasks, _ in PLANS if number < processes)
                workers[side].append(Worker(side, url, f"{side}-{number}", f"{most}"))
                stack.callback(workers[side][-1].close)
        for worker in chain(*workers.values()):
            worker.answer()
        yield workers


def measure(url: str, *, quick: bool) -> list[Row]:
    sides = [OURS, BARE, *[PEER] * bool(find_spec("agents"))]
    with started(url, sides) as workers:
        return [row for plan in PLANS for row in plan_rows(workers, 12 if quick else 30, *plan)]


def plan_rows(
    workers: Mapping[str, Sequence[Worker]], rounds: int, processes: int, tasks: int, least: float | None
) -> Iterator[Row]:
    rng, order = random.Random(rounds), list(workers)
    rate = max(run_block(workers[BARE][:processes], tasks, 2).a_second for _ in range(3))
    count = max(2, int(BLOCK_SECONDS * rate / processes / tasks))
    blocks: dict[str, list[Block]] = {side: [] for side in workers}
    for turn in range(rounds + 1):
        rng.shuffle(order)
        for side in order:
            block = run_block(workers[side][:processes], tasks, count)
            if turn:  # the first round does not count
                blocks[side].append(block)
    for other in order:
        if other == OURS:
            continue
        ratio = median(a.a_second / b.a_second for a, b in zip(blocks[OURS], blocks[other], strict=True))
        texts: list[str] = []
        numbers: dict[str, float] = {}
        for side in (OURS, other):
            p50, p99 = percentiles([*chain(*(block.calls for block in blocks[side]))])
            numbers[side] = median(block.a_second for block in blocks[side])
            processor = median(block.processor_us for block in blocks[side])
            texts.append(f"{numbers[side]:,.0f} a second; {p50:,.0f} / {p99:,.0f} µs; {processor:,.0f} µs of processor")
        asked = f"{processes} process{'es' * (processes > 1)} with {tasks} tasks{' each' * (processes > 1)}"
        budget = least if other == BARE else None
        yield Row(
            f"commits a second, {asked} / {other}", texts[0], texts[1], ratio, budget, numbers=numbers, is_least=True
        )


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
