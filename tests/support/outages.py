"""Faults of one server under load: it is killed, loses its scripts, or fails over.

Each function injects one fault repeatedly and returns a row of the fault table.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import redis.asyncio

from lash_redis import Append, FullGraph, ReplaceFull, SessionCache, SessionGraph, StoreError
from lash_redis.embedded import EmbeddedServer
from tests.support import workers
from tests.support.accounts import SHARED, Row, looking_at, settle_accounts
from tests.support.groups import Member
from tests.support.proxy import Proxy
from tests.support.servers import Kind
from tests.support.workers import NAMESPACE, Crew, Way, Work, Worker, answers

# Without a fault


async def compete(
    url: str, server: str, way: Way, *, count: int, turns: int, model_seconds: float
) -> tuple[Row, float]:
    """Let `count` workers take turns of one session at once; return the row and the turns per second."""
    row = Row(f"{count} workers on one session, {way.__name__}", server)
    async with Crew() as crew, looking_at(url) as (client, cache):
        hired = await crew.hire_all(count, url, model_seconds=model_seconds)
        began = monotonic()
        for worker in hired:
            worker.order(workers.take_turns, SHARED, way, turns)
        await answers(hired)
        speed = count * turns / (monotonic() - began)
        return await settle_accounts(row, crew, client, cache), speed


async def fork_under_load(url: str, server: str, *, processes: int, turns: int) -> Row:
    """Fork a worker. It and its children take turns at once on the cache that it opened before."""
    row = Row("os.fork of a worker, all on the cache made before", server, runs=processes)
    async with Crew() as crew, looking_at(url) as (client, cache):
        worker = await crew.hire(url)
        await worker.do(workers.send_once)  # a reply that reaches another process fails a turn
        await worker.do(workers.fork_processes, SHARED, processes, turns)
        return await settle_accounts(row, crew, client, cache)


# A server


async def flush_scripts(url: str, server: str, *, count: int, turns: int) -> Row:
    """Send SCRIPT FLUSH repeatedly while workers take turns."""
    row = Row("SCRIPT FLUSH all the time", server)
    async with Crew() as crew, looking_at(url) as (client, cache):
        hired = await crew.hire_all(count, url)
        for _ in range(turns):
            for worker in hired:
                worker.order(workers.take_turns, SHARED, workers.by_update, 1)
            answering = asyncio.ensure_future(answers(hired))
            while not answering.done():  # at least once in each round
                await client.script_flush()
                row.runs += 1
                await asyncio.sleep(0.001)
            await answering
        return await settle_accounts(row, crew, client, cache)


@asynccontextmanager
async def taking_turns(
    hired: Sequence[Worker], own: Sequence[str], turns: int, *, is_shared: bool = True
) -> AsyncIterator[None]:
    """Every second worker shares a session through `update`; the others build on their last write in their own session.

    Each takes its last turn after the block, so that a worker whose base was lost gets the error.
    """
    tasks = [
        (worker, SHARED, workers.by_update) if is_shared and at % 2 else (worker, session, workers.by_own_head)
        for at, (worker, session) in enumerate(zip(hired, own, strict=True))
    ]
    for worker, session, way in tasks:
        worker.order(workers.take_turns, session, way, turns - 1)
    yield
    await answers(hired)
    for worker, session, way in tasks:
        await worker.do(workers.take_turns, session, way, 1)


@asynccontextmanager
async def one_server(kind: Kind, fsync: str | None) -> AsyncIterator[Member]:
    """A server that keeps its port and, with `fsync`, its data when it is killed and restarted."""
    with tempfile.TemporaryDirectory(prefix="lash-faults-") as directory:
        options = {"repl-diskless-sync-delay": "0", **({"appendfsync": fsync} if fsync else {})}
        server = EmbeddedServer(Path(directory) if fsync else None, binary=kind.binary, options=options, port=0)
        await asyncio.to_thread(server.start)
        try:
            server.port = int(server.url.rpartition(":")[2])
            member = Member(server, name=kind.name)
            await asyncio.to_thread(member.start)
            yield member
        finally:
            await asyncio.to_thread(server.stop)


async def kill_server(kind: Kind, fsync: str | None, *, kills: int, count: int, turns: int) -> Row:
    """Kill the server under load and restart it. `fsync` is that of its append-only file; None: it has no such file."""
    kept = f"append-only file, fsync {fsync}" if fsync else "nothing persisted"
    row = Row(f"kill -9 of the server and a new start, {kept}", kind.name)
    async with one_server(kind, fsync) as member, Crew() as crew, looking_at(member.url) as (client, cache):
        hired = await crew.hire_all(count, member.url)
        async with taking_turns(hired, [worker.name for worker in hired], turns, is_shared=fsync is not None):
            for number in range(kills):
                await crew.reaches(count * turns * (number + 1) // (kills + 2))
                await asyncio.to_thread(member.kill)
                await asyncio.to_thread(member.start)
                row.runs += 1
        return await settle_accounts(row, crew, client, cache, chains=[SHARED, *(worker.name for worker in hired)])


# A failover that loses a commit


async def commit_revision(work: Work, session: str, turn: str) -> tuple[str, int]:
    """Take a turn on this worker's last write; return its name and revision."""
    await workers.by_own_head(work, work.cache.session(session), turn)
    return turn, work.heads[session][0]


async def go_on_by_append(work: Work, session: str) -> None:
    """Take the next turn on the revision that this worker wrote last."""
    await commit_revision(work, session, "next")


async def go_on_by_replacing(work: Work, session: str) -> None:
    """Replace the whole session by one node, from what the worker knows of it."""
    revision, builds_on, _ = work.heads[session]
    made = await work.answer("summary", session, (revision, builds_on, None))
    assert isinstance(made.graph, Append)
    graph = ReplaceFull(SessionGraph(made.graph.nodes, made.graph.leaf_node_id))
    await work.cache.session(session).commit_runtime_state(replace(made, graph=graph))


async def turns_of(work: Work, session: str) -> tuple[int, list[str]]:
    read = await work.cache.session(session).load_session(FullGraph())
    assert read is not None
    return read.head_revision, [node.event()["turn"] for node in read.graph.nodes]


@dataclass(frozen=True)
class Story:
    """The outcome for a worker that built on a revision which a failover lost, and the session afterwards."""

    acknowledged: tuple[int, int]
    """The revisions of the lost turn and of the turn that replaced it."""
    seen: StoreError | None
    stands: tuple[int, list[str]]
    in_the_end: tuple[int, list[str]]
    """After the worker has loaded and decided again."""


async def lose_a_revision(kind: Kind, go_on: Callable[[Work, str], Awaitable[None]]) -> Story:
    """A primary acknowledges revision 7 and dies before it has replicated it; the replica is promoted, another worker
    commits its own revision 7; then `go_on` is what the first worker does next."""
    async with (
        one_server(kind, None) as primary,
        one_server(kind, None) as replica,
        Proxy(primary.url) as address,
        Crew() as crew,
    ):
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        first = await crew.hire(address.url)
        for number in range(1, 7):
            await first.do(commit_revision, SHARED, f"turn{number}")
        log = SessionCache(redis.asyncio.Redis(), NAMESPACE).layout.session(SHARED).log
        async with asyncio.timeout(workers.PATIENCE):
            while replica.ask("LLEN", log) != 6:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.005)
        replica.ask("REPLICAOF", "127.0.0.1", 1)  # no server listens there, so it receives nothing
        _, lost = await first.do(commit_revision, SHARED, "turn7")
        await asyncio.to_thread(primary.kill)
        replica.ask("REPLICAOF", "NO", "ONE")
        await address.lead_to(replica.url)
        second = await crew.hire(address.url)
        _, took = await second.do(commit_revision, SHARED, "another7")
        seen = None
        try:
            await first.do(go_on, SHARED)
        except StoreError as error:
            seen = error
        stands = await second.do(turns_of, SHARED)
        await first.do(workers.take, SHARED, workers.by_own_head, "turn8")
        return Story((lost, took), seen, stands, await second.do(turns_of, SHARED))
