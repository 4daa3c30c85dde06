"""Worker processes that a test kills, freezes and disconnects.

A worker executes orders from a pipe, one after the other, through the public API only. Its journal records each model
call, each acknowledged turn and the type of each error. The journal is unbuffered, so it survives a kill -9. The worker
ends when the pipe closes, and so with its owner.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lash_redis import (
    Append,
    EventPayload,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    LeaseBusy,
    LeaseLost,
    OutcomeUnknown,
    PersistedSessionRead,
    RedisSessionStore,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCache,
    SessionMeta,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    StoreError,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
)
from lash_redis.errors import BackendError, SessionExists
from lash_redis.protocol import scripts
from tests.support import processes
from tests.support.detours import Detours, by_detours
from tests.support.sending import sends_once

NAMESPACE = "workers"
TRIES = 40
"""How often a worker restarts a turn, or sends a commit of unknown outcome again."""
PATIENCE = 120.0
"""Seconds that a test waits for a worker's answer."""


At = tuple[int, str | None, str | None]
"""The base of a turn: revision, commit, leaf."""

# In the worker's process


@dataclass
class Work:
    """The state of a worker while it executes an order."""

    name: str
    cache: SessionCache
    journal: int
    model_seconds: float
    lease_ttl: float
    sent: RuntimeCommit | None = None
    """The commit of the current turn, once it exists."""
    done: set[str] = field(default_factory=set)
    heads: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    """By session: the revision, commit and leaf that this worker wrote last."""
    attempts: itertools.count[int] = field(default_factory=itertools.count)
    turns: itertools.count[int] = field(default_factory=itertools.count)

    def note(self, word: str, turn: str, what: str = "") -> None:
        os.write(self.journal, f"{word} {turn} {what}\n".encode())

    def acknowledge(self, turn: str, result: RuntimeCommitResult) -> None:
        """Record that the store acknowledged the turn, or stored it without confirming the requested durability."""
        self.note("unconfirmed" if result.durable is False else "acknowledged", turn)
        self.done.add(turn)

    async def answer(self, turn: str, session: str, at: At, **more: Any) -> RuntimeCommit:
        """Call the model for the turn, and build the commit on `at`."""
        self.note("paid", turn)
        await asyncio.sleep(self.model_seconds)
        node_id = f"{turn}#{self.name}{next(self.attempts)}"
        self.sent = commit_of(session, turn, node_id, at, **more)
        return self.sent


def commit_of(session: str, turn: str, node_id: str, at: At, **more: Any) -> RuntimeCommit:
    """A turn of one node, which counts one token and stores its name in the execution state."""
    revision, builds_on, leaf = at
    return RuntimeCommit(
        session,
        revision,
        graph=Append([SessionNodeRecord(node_id, leaf, "t", EventPayload({"turn": turn}))], node_id),
        checkpoint=HydratedSessionCheckpoint(execution_state=f"{session} {turn}".encode()),
        usage_deltas=[TokenLedgerEntry("turns", "m", TokenUsage(1))],
        builds_on=builds_on,
        **more,
    )


def base_of(read: PersistedSessionRead | None) -> At:
    """The revision, commit and leaf to build on."""
    return (0, None, None) if read is None else (read.head_revision, read.commit_id, read.graph.leaf_node_id)


Way = Callable[[Work, RedisSessionStore, str], Awaitable[None]]


async def by_update(work: Work, store: RedisSessionStore, turn: str) -> None:
    """Take a turn through `update`, as docs/howto/turns.md describes it."""
    work.acknowledge(turn, await store.update(lambda read: work.answer(turn, store.session_id, base_of(read))))


async def by_commit(work: Work, store: RedisSessionStore, turn: str) -> None:
    """Take a turn through a load and a commit, without a retry."""
    read = await store.load_session(FullGraph())
    commit = await work.answer(turn, store.session_id, base_of(read))
    work.acknowledge(turn, await store.commit_runtime_state(commit))


async def by_lease(work: Work, store: RedisSessionStore, turn: str) -> None:
    """Take a turn under a lease, so that no other worker calls the model at the same time.

    A worker takes one turn at a time, so it re-enters a lease that a failed turn has left.
    """
    async with await store.acquire_lease(work.name, work.lease_ttl, wait=PATIENCE / 4, reenter=True) as lease:
        read = await store.load_session(FullGraph())
        commit = await work.answer(turn, store.session_id, base_of(read), lease=lease)
        work.acknowledge(turn, await store.commit_runtime_state(commit))


async def by_own_head(work: Work, store: RedisSessionStore, turn: str) -> None:
    """Take a turn on this worker's last write, without a load, until a conflict."""
    session = store.session_id
    at = work.heads.pop(session, None) or base_of(await store.load_session(FullGraph()))
    commit = await work.answer(turn, session, at)
    result = await store.commit_runtime_state(commit)
    work.acknowledge(turn, result)
    assert isinstance(commit.graph, Append)
    assert commit.graph.leaf_node_id is not None
    work.heads[session] = result.head_revision, commit.commit_id, commit.graph.leaf_node_id


async def take(work: Work, session: str, way: Way, turn: str, tries: int = TRIES) -> bool:
    """Repeat a turn until it is acknowledged. An unknown outcome is settled before the next attempt."""
    store = work.cache.session(session)
    for _ in range(tries):
        work.sent = None
        try:
            await way(work, store, turn)
        except (HeadRevisionConflict, LeaseBusy, LeaseLost, OutcomeUnknown, BackendError) as error:
            work.note("error", turn, type(error).__name__)
            if isinstance(error, LeaseLost) and error.revision is not None:  # lost after the commit was stored
                work.note("acknowledged", turn)
                work.done.add(turn)
            if work.sent and isinstance(error, OutcomeUnknown) and turn not in work.done:
                await settle(work, store, turn, work.sent)
        if turn in work.done:
            return True
        await asyncio.sleep(random.uniform(0, 0.05))
    work.note("given-up", turn)
    return False


async def settle(work: Work, store: RedisSessionStore, turn: str, sent: RuntimeCommit) -> None:
    """Send the same commit again until its outcome is known."""
    for _ in range(TRIES):
        try:
            try:
                work.acknowledge(turn, await store.commit_runtime_state(sent))
            except (HeadRevisionConflict, LeaseLost) as error:
                work.note("error", turn, type(error).__name__)
                if await _is_there(store, sent):
                    work.note("unconfirmed", turn)
                    work.done.add(turn)
            return
        except (OutcomeUnknown, BackendError) as error:
            work.note("error", turn, type(error).__name__)
            await asyncio.sleep(random.uniform(0, 0.1))


async def _is_there(store: RedisSessionStore, sent: RuntimeCommit) -> bool:
    """Whether a commit was stored whose receipt is unavailable: 33 later commits, or its lease was lost."""
    assert isinstance(sent.graph, Append)
    return sent.graph.leaf_node_id is not None and await store.load_node(sent.graph.leaf_node_id) is not None


async def take_turns(work: Work, session: str, way: Way, count: int) -> None:
    for _ in range(count):
        await take(work, session, way, f"{work.name}.{next(work.turns)}")


async def fork(work: Work, session: str) -> None:
    await work.cache.fork(session, f"{session}-fork")


async def fork_unless_there(work: Work, session: str) -> None:
    with suppress(SessionExists):
        await fork(work, session)


async def delete(work: Work, session: str) -> None:
    await work.cache.delete(session)


async def touch(work: Work, session: str) -> None:
    await work.cache.session(session).touch(ttl=1000)


async def tombstone_nodes(work: Work, session: str) -> None:
    await work.cache.session(session).tombstone_nodes(["aside#0"])


async def vacuum(work: Work, session: str) -> None:
    await work.cache.session(session).vacuum()


async def gc_unreachable(work: Work, session: str) -> None:
    await work.cache.session(session).gc_unreachable()


async def put_blob(work: Work, session: str) -> None:
    await work.cache.put_blob(f"upload of {session}".encode())


async def save_session_meta(work: Work, session: str) -> None:
    await work.cache.session(session).save_session_meta(SessionMeta(session, "named", "now", "m"))


async def enqueue_input(work: Work, session: str) -> None:
    await work.cache.session(session).enqueue_input({"turn": "typed"}, f"input of {session}")


async def answer_inputs(work: Work, session: str) -> None:
    """Answer the pending inputs by one turn that consumes them, as docs/howto/pending-input.md describes it."""
    store = work.cache.session(session)
    pending = await store.pending_inputs()
    if pending:
        consumes = [each.input_id for each in pending]
        await store.update(lambda read: commit_of(session, "typed", "typed#0", base_of(read), consumes=consumes))


async def create(work: Work, session: str) -> None:
    await work.cache.create(SessionStoreCreateRequest(f"{session}-new"))


async def acquire_lease(work: Work, session: str) -> None:
    await work.cache.session(session).acquire_lease("worker", 100, reenter=True)


async def renew_lease(work: Work, session: str) -> None:
    lease = await work.cache.session(session).acquire_lease("worker", 100, reenter=True)
    await lease.renew(1000)


async def release_lease(work: Work, session: str) -> None:
    async with await work.cache.session(session).acquire_lease("worker", 100, reenter=True):
        pass


async def send_once(work: Work) -> None:
    """Make the first failed attempt of each call final."""
    sends_once(work.cache)


async def fork_processes(work: Work, session: str, processes: int, turns: int) -> None:
    """Take turns in this process and in `os.fork` children at once, on the cache that was opened before."""
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            _take_turns_in_a_child(work, session, number, turns)
        children.append(child)
    try:
        await take_turns(work, session, by_update, turns)
        for child in children:
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert status == 0, f"a forked child ended with {status}"
    except BaseException:
        for child in children:
            os.kill(child, signal.SIGKILL)
        raise


def _take_turns_in_a_child(work: Work, session: str, number: int, turns: int) -> None:
    work.name = f"{work.name}-{number}"
    status = 1
    try:
        asyncio.run(take_turns(work, session, by_update, turns))
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


@dataclass(frozen=True)
class Setting:
    """The settings of a worker."""

    name: str
    url: str
    journal: Path
    options: StoreOptions
    namespace: str
    model_seconds: float
    lease_ttl: float
    scripts: Mapping[str, scripts.Script]
    """The owner's scripts, so that a store that is broken on purpose is broken in its workers, too."""
    detours: Detours = field(default_factory=dict)
    """The address by which the worker reaches a server, by the server's own address; that one if there is none."""


def _main(setting: Setting, orders: Connection) -> None:
    # The fork server ends with the owner only if no other process keeps its pipe open. The kernel ends a frozen process
    # only if its process group is orphaned.
    os.closerange(3, orders.fileno())
    os.closerange(orders.fileno() + 1, 1024)
    os.setpgid(0, 0)
    for name, script in setting.scripts.items():
        setattr(scripts, name, script)
    try:
        asyncio.run(_obey(setting, orders))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


async def _obey(setting: Setting, orders: Connection) -> None:
    journal = os.open(setting.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with SessionCache(
        by_detours(setting.url, setting.detours), setting.namespace, options=setting.options
    ) as cache:
        await cache.session("nobody").load_head()
        work = Work(setting.name, cache, journal, setting.model_seconds, setting.lease_ttl)
        orders.send((True, None))
        while True:
            order, arguments = orders.recv()
            try:
                orders.send((True, await order(work, *arguments)))
            except StoreError as error:
                orders.send((False, error))
            except Exception:
                orders.send((False, AssertionError(traceback.format_exc())))
                raise


# In the process of the test


class Worker:
    """The handle of a test on one worker."""

    def __init__(self, setting: Setting) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lash_redis"])
        self.setting = setting
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(setting, theirs), name=setting.name, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def name(self) -> str:
        return self.setting.name

    def order(self, what: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Send the order `what(work, *arguments)`; `what` must be a function of a module."""
        self._orders.send((what, arguments))

    async def answer(self, patience: float = PATIENCE) -> Any:
        """Return the result of the order, for which the worker has `patience` seconds.

        Raises:
            StoreError: the order raised it.
            EOFError: the worker is dead.
        """
        async with asyncio.timeout(patience):
            is_well, value = await asyncio.to_thread(self._orders.recv)
        if not is_well:
            raise value
        return value

    async def survives(self) -> bool:
        """Whether the worker answers; False if it is dead."""
        try:
            await self.answer()
        except (EOFError, ConnectionResetError):
            return False
        return True

    def has_answer(self) -> bool:
        return self._orders.poll()

    async def do(self, what: Callable[..., Awaitable[object]], *arguments: object) -> Any:
        self.order(what, *arguments)
        return await self.answer()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        processes.freeze(self.pid)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def _signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        if self._process.is_alive():
            os.killpg(self.pid, signal.SIGKILL)  # and the processes that it forked
        self._process.join()
        self._process.close()
        self._orders.close()

    def journal(self) -> list[tuple[str, str, str]]:
        """Word, turn and error type of each line, or what else the line ends with."""
        if not self.setting.journal.exists():
            return []
        lines = self.setting.journal.read_text().splitlines()
        return [(word, turn, what) for word, turn, what in (line.split(" ", 2) for line in lines)]


class Crew:
    """The workers of a test. All are ended when the block is left."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="lash-workers-")
        self._number = itertools.count()
        self.workers: list[Worker] = []

    async def hire(
        self,
        url: str,
        *,
        model_seconds: float = 0.0,
        lease_ttl: float = 10.0,
        namespace: str = NAMESPACE,
        options: StoreOptions | None = None,
        detours: Detours | None = None,
    ) -> Worker:
        """Start a worker; return when it is connected and waits for orders."""
        name = f"w{next(self._number)}"
        known = {key: value for key, value in vars(scripts).items() if isinstance(value, scripts.Script)}
        journal = Path(self._directory.name, name)
        worker = Worker(
            Setting(
                name, url, journal, options or StoreOptions(), namespace, model_seconds, lease_ttl, known, detours or {}
            )
        )
        self.workers.append(worker)
        await worker.answer()
        return worker

    async def hire_all(self, count: int, url: str, **setting: Any) -> list[Worker]:
        return [await self.hire(url, **setting) for _ in range(count)]

    def journal(self) -> list[tuple[str, str, str]]:
        """The lines of all workers, including dead ones."""
        return [line for worker in self.workers for line in worker.journal()]

    def told(self, word: str) -> list[str]:
        """The turns of which a worker noted `word`: `paid`, `acknowledged`, `unconfirmed`, `given-up`."""
        return [turn for said, turn, _ in self.journal() if said == word]

    def errors(self) -> Counter[str]:
        return Counter(what for word, _, what in self.journal() if word == "error")

    async def reaches(self, count: int) -> None:
        """Return when `count` turns are done, or a worker has an answer, which may be an error."""
        async with asyncio.timeout(PATIENCE):
            while len(self.told("acknowledged")) + len(self.told("unconfirmed")) < count:
                if any(worker.has_answer() for worker in self.workers):
                    return
                await asyncio.sleep(0.005)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.end()
        self._directory.cleanup()


async def answers(workers: Iterable[Worker]) -> list[Any]:
    """Return the answers of all workers."""
    return await asyncio.gather(*(worker.answer() for worker in workers))
