"""Processes that work on one server at the same time, as the workers of a service do, and what each of them does.

A job is a function of `JOBS`; it gets a cache, its own number and what it is asked for, and answers with JSON values.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic, perf_counter
from typing import Any

from bench import workload
from lash_redis import (
    Append,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionGraph,
    StoreOptions,
    ToolState,
    connect,
)

SESSIONS_EACH = 4
LONGEST, KEPT = 200, 20
"""Messages at which a session of the crowd is compacted, and how many of them it keeps."""


async def begin(cache: SessionCache, number: int, asked: dict[str, Any]) -> list[float]:
    """Sessions of this worker alone, of `nodes` nodes."""
    sessions = [workload.Session(cache, f"worker-{number}-{each}") for each in range(SESSIONS_EACH)]
    for session in sessions:
        await session.begin(workload.tool_state(), workload.line(0, asked["nodes"], None))
    _own.sessions = sessions
    return []


async def commit(cache: SessionCache, number: int, asked: dict[str, Any]) -> list[float]:
    """Turns of this worker's sessions for `seconds`: the µs of each commit."""
    turns = cycle(_own.sessions)

    async def once() -> float:
        session = next(turns)
        made = session.turn()
        started = perf_counter()
        await session.take(made)
        return perf_counter() - started

    return await _for(asked["seconds"], once)


async def resume(cache: SessionCache, number: int, asked: dict[str, Any]) -> list[float]:
    """Full reads of this worker's sessions by fresh handles, for `seconds`: the µs of each."""
    names = cycle(session.store.session_id for session in _own.sessions)

    async def once() -> float:
        store = cache.session(next(names))
        started = perf_counter()
        await store.load_session(FullGraph())
        return perf_counter() - started

    return await _for(asked["seconds"], once)


class _Own:
    """What a worker process keeps from one job to the next."""

    sessions: Sequence[workload.Session] = ()


_own = _Own()


async def _for(seconds: float, once: Callable[[], Awaitable[float]]) -> list[float]:
    end, taken = monotonic() + seconds, []
    while monotonic() < end:
        taken.append(await once() * 1e6)
    return taken


def crowd_name(rank: int) -> str:
    return f"crowd-{rank}"


def weights(sessions: int, exponent: float) -> list[float]:
    """How often each of a crowd takes its turn, by Zipf's law; the first most often."""
    return [1 / rank**exponent for rank in range(1, sessions + 1)]


async def fill(cache: SessionCache, number: int, asked: dict[str, Any]) -> list[float]:
    """Begin every session of a crowd that falls to this one `of` so many workers: the µs of each."""
    tools, taken = workload.tool_state(), []
    for rank in range(number, asked["sessions"], asked["of"]):
        store = cache.session(crowd_name(rank))
        made = _turn(store.session_id, None, tools, f"{number}")
        started = perf_counter()
        await store.commit_runtime_state(made)
        taken.append((perf_counter() - started) * 1e6)
    return taken


async def crowd(cache: SessionCache, number: int, asked: dict[str, Any]) -> list[tuple[float, str, float]]:
    """Turns of sessions drawn by Zipf's law from `sessions`, for `seconds`: seconds since the start, what, its µs.

    A session that is not there, or expired, begins; a conflict is counted, and the turn taken again.
    """
    dice = random.Random(number)
    chances = list(accumulate(weights(asked["sessions"], asked["exponent"])))
    tools = workload.tool_state()
    seen: list[tuple[float, str, float]] = []
    start = monotonic()
    while (now := monotonic() - start) < asked["seconds"]:
        (rank,) = dice.choices(range(asked["sessions"]), cum_weights=chances)
        store = cache.session(crowd_name(rank))
        started = perf_counter()
        read = await store.load_session(FullGraph())
        resumed = perf_counter()
        made = _turn(store.session_id, read, tools, f"{number}-{len(seen):x}")
        sending = perf_counter()
        try:
            await store.commit_runtime_state(made)
        except HeadRevisionConflict:
            seen.append((now, "conflict", 0.0))
            continue
        seen.append((now, "commit" if read else "begin", (perf_counter() - sending) * 1e6))
        if read:
            seen.append((now, "resume", (resumed - started) * 1e6))
    return seen


def _turn(session_id: str, read: PersistedSessionRead | None, tools: ToolState, mark: str) -> RuntimeCommit:
    """Two messages more; one that has grown long keeps its last ones alone."""
    stored = read.graph.nodes if read else ()
    leaf = read.graph.leaf_node_id if read else None
    first = workload.node(len(stored), leaf, f"{mark}.0")
    said = [first, workload.node(len(stored) + 1, first.node_id, f"{mark}.1")]
    graph: Append | ReplaceFull = Append(said, said[-1].node_id)
    if len(stored) >= LONGEST:
        kept = [*stored[-KEPT:]]
        kept[0] = replace(kept[0], parent_node_id=None)
        graph = ReplaceFull(SessionGraph([*kept, *said], said[-1].node_id))
    turn = read.head_revision if read else 0
    checkpoint = HydratedSessionCheckpoint(
        tool_state=None if read else tools,
        tool_state_ref=read.checkpoint.tool_state_ref if read and read.checkpoint else None,
        plugin_snapshot=workload.plugin_snapshot(session_id, turn),
        execution_state=workload.execution_state(session_id, turn),
    )
    return RuntimeCommit(
        session_id=session_id,
        expected_head_revision=turn,
        config=workload.CONFIG,
        graph=graph,
        checkpoint=checkpoint,
        builds_on=read.commit_id if read else None,
    )


JOBS: dict[str, Callable[[SessionCache, int, dict[str, Any]], Awaitable[Any]]] = {
    job.__name__: job for job in (begin, commit, resume, fill, crowd)
}


class Workers:
    """Worker processes; `run` gives the first few of them one job and waits for all of their answers."""

    def __init__(self, url: str, count: int, *settings: Any) -> None:
        """`settings`: namespace, ttl and blob grace of their caches."""
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, url, number, *settings), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def start(self, job: str, count: int | None = None, **asked: Any) -> Callable[[], list[Any]]:
        """What is called to wait for the answers."""
        chosen = self._pipes[:count]
        for pipe in chosen:
            pipe.send((job, asked))
        return lambda: [pipe.recv() for pipe in chosen]

    def stop(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)


@contextmanager
def working(
    url: str, count: int, namespace: str, ttl: float | None = None, blob_grace: float = 60.0
) -> Iterator[Workers]:
    workers = Workers(url, count, namespace, ttl, blob_grace)
    try:
        yield workers
    finally:
        workers.stop()


def _work(pipe: Connection, *settings: Any) -> None:
    asyncio.run(_serve(pipe, *settings))


async def _serve(pipe: Connection, url: str, number: int, namespace: str, ttl: float | None, blob_grace: float) -> None:
    async with connect(url, namespace=namespace, ttl=ttl, options=StoreOptions(blob_grace=blob_grace)) as cache:
        await cache.session("nobody").load_head()
        pipe.send("ready")
        while True:
            try:
                job, asked = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
            pipe.send(await JOBS[job](cache, number, asked))
