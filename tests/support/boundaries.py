"""Kill, disconnect or freeze a worker at each boundary between the commands of every public write method.

A boundary is the number of a command (from 1, in the order in which the proxy receives them) and a moment.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256

import redis.asyncio

from lash_redis import (
    ActivePath,
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    RuntimeCommit,
    SessionCache,
    SessionDeleted,
    SessionNodeRecord,
    ToolState,
)
from lash_redis.protocol.packing import pack_record
from tests.support import workers
from tests.support.accounts import Row, looking_at, settle_accounts
from tests.support.builders import tools
from tests.support.proxy import Action, Command, Proxy
from tests.support.workers import At, Crew, Work, Worker, commit_of

LEASE_TTL = workers.PATIENCE
"""Seconds. Longer than any call here, so that no worker on a slow machine loses its lease."""
SHORT_LEASE_TTL = 0.2
"""Seconds. Short, because a frozen worker has to lose its lease."""

_numbers = itertools.count()


class Moment(Enum):
    """The moment of a command, and what the proxy then does to the connection of a worker that is not killed."""

    BEFORE = "the server has not got it"
    EXECUTED = "it is executed, its reply not delivered"
    HALFWAY = "half of its reply is delivered"

    @property
    def cut(self) -> Action:
        cuts = {Moment.BEFORE: Action.CUT_BEFORE, Moment.EXECUTED: Action.DROP_REPLY, Moment.HALFWAY: Action.HALF_REPLY}
        return cuts[self]


# The methods


def tools_of(session: str) -> ToolState:
    """The tools of a session's first turn, which no other session has."""
    return tools(f"search for {session}")


async def two_turns(cache: SessionCache, session: str) -> None:
    at: At = (0, None, None)
    for turn in ("one", "two"):
        commit = commit_of(session, turn, f"{turn}#0", at)
        result = await cache.session(session).commit_runtime_state(commit)
        at = result.head_revision, commit.commit_id, f"{turn}#0"


async def a_branch(cache: SessionCache, session: str) -> None:
    """One turn with two answers. The second is current, and the tools of the first turn were released."""
    first = commit_of(session, "one", "one#0", (0, None, None))
    assert isinstance(first.checkpoint, HydratedSessionCheckpoint)
    first = replace(first, checkpoint=replace(first.checkpoint, tool_state=tools_of(session)))
    await cache.session(session).commit_runtime_state(first)
    nodes = [SessionNodeRecord(f"{turn}#0", "one#0", "t", EventPayload({"turn": turn})) for turn in ("aside", "two")]
    state = HydratedSessionCheckpoint(execution_state=f"{session} two".encode())
    second = RuntimeCommit(session, 1, graph=Append(nodes, "two#0"), checkpoint=state)
    await cache.session(session).commit_runtime_state(second)


async def a_tombstone(cache: SessionCache, session: str) -> None:
    await a_branch(cache, session)
    await cache.session(session).tombstone_nodes(["aside#0"])


async def an_input(cache: SessionCache, session: str) -> None:
    await two_turns(cache, session)
    await cache.session(session).enqueue_input({"turn": "typed"}, f"input of {session}")


@dataclass(frozen=True)
class View:
    """A session as another process reads it."""

    client: redis.asyncio.Redis
    cache: SessionCache
    session: str

    async def turns(self) -> str:
        return await self._turns(self.session, ActivePath())

    async def forked(self) -> str:
        return await self._turns(f"{self.session}-fork", ActivePath())

    async def nodes(self) -> str:
        return await self._turns(self.session, FullGraph())

    async def _turns(self, session: str, scope: FullGraph | ActivePath) -> str:
        read = await self.cache.session(session).load_session(scope)
        return "nothing" if read is None else " ".join(node.event()["turn"].split("@")[0] for node in read.graph.nodes)

    async def inputs(self) -> str:
        pending = await self.cache.session(self.session).pending_inputs()
        return f"{await self.turns()}, {len(pending)} pending"

    async def lifetime(self) -> str:
        """Whether the keys of the session have deadlines."""
        keys = self.cache.layout.session(self.session)
        own = [keys.head, keys.log, keys.nodes, keys.jumps, keys.state]
        return " or ".join(sorted({"ends" if await self.client.pttl(key) > 0 else "for ever" for key in own}))

    async def records(self) -> str:
        kept = await self.client.lrange(self.cache.layout.session(self.session).log, 0, -1)
        return f"{sum(record != b'' for record in kept)} records"

    async def first_tools(self) -> str:
        return await self._blob(pack_record(tools_of(self.session), "tools"))

    async def upload(self) -> str:
        return await self._blob(f"upload of {self.session}".encode())

    async def _blob(self, data: bytes) -> str:
        name = f"*:blob:{sha256(data).hexdigest()}"
        return "stored" if [key async for key in self.client.scan_iter(name, 10_000)] else "not stored"

    async def name(self) -> str:
        meta = await self.cache.session(self.session).load_session_meta()
        return "no meta" if meta is None else meta.session_name

    async def created(self) -> str:
        meta = await self.cache.session(f"{self.session}-new").load_session_meta()
        return "no meta" if meta is None else "meta"

    async def lease(self) -> str:
        info = await self.cache.session(self.session).load_lease()
        if info is None:
            return "free"
        now, _ = await self.client.time()
        return f"held by {info.owner} for {'1000' if info.deadline > now + 500 else '100'} s"


def turn_of(session: str) -> str:
    return f"turn@{session}"


async def by_update(work: Work, session: str) -> None:
    await workers.take(work, session, workers.by_update, turn_of(session))


async def by_commit(work: Work, session: str) -> None:
    await workers.take(work, session, workers.by_commit, turn_of(session))


async def by_lease(work: Work, session: str) -> None:
    await workers.take(work, session, workers.by_lease, turn_of(session))


async def resume(work: Work, session: str) -> None:
    """Take the turn unless it is stored, as the next worker does."""
    read = await work.cache.session(session).load_session(FullGraph())
    assert read is not None
    if turn_of(session) not in [node.event()["turn"] for node in read.graph.nodes]:
        await by_update(work, session)


@dataclass(frozen=True)
class Method:
    """A public write method and the states in which it may leave a session.

    The first state means that nothing was written, the last that everything was."""

    call: Callable[[Work, str], Awaitable[None]]
    given: Callable[[SessionCache, str], Awaitable[None]]
    sees: Callable[[View], Awaitable[str]]
    states: Sequence[str]
    again: Callable[[Work, str], Awaitable[None]] | None = None
    """What the next worker calls to reach the last state. None: the same method."""

    @property
    def name(self) -> str:
        return self.call.__name__

    @property
    def is_a_turn(self) -> bool:
        return self.again is resume


BY_UPDATE, BY_COMMIT, BY_LEASE = TURNS = [
    Method(call, two_turns, View.turns, ("one two", "one two turn"), resume)
    for call in (by_update, by_commit, by_lease)
]
METHODS = (
    *TURNS,
    Method(workers.fork, two_turns, View.forked, ("nothing", "one two"), workers.fork_unless_there),
    Method(workers.delete, two_turns, View.turns, ("one two", "nothing")),
    Method(workers.touch, a_branch, View.lifetime, ("for ever", "ends")),
    Method(workers.tombstone_nodes, a_branch, View.nodes, ("one aside two", "one two")),
    Method(workers.vacuum, a_tombstone, View.records, ("3 records", "2 records")),
    Method(workers.gc_unreachable, a_branch, View.first_tools, ("stored", "not stored")),
    Method(workers.put_blob, two_turns, View.upload, ("not stored", "stored")),
    Method(workers.save_session_meta, two_turns, View.name, ("no meta", "named")),
    Method(workers.enqueue_input, two_turns, View.inputs, ("one two, 0 pending", "one two, 1 pending")),
    Method(workers.answer_inputs, an_input, View.inputs, ("one two, 1 pending", "one two typed, 0 pending")),
    Method(workers.create, two_turns, View.created, ("no meta", "meta")),
    Method(workers.acquire_lease, two_turns, View.lease, ("free", "held by worker for 100 s")),
    Method(
        workers.renew_lease, two_turns, View.lease, ("free", "held by worker for 100 s", "held by worker for 1000 s")
    ),
    Method(workers.release_lease, two_turns, View.lease, ("free", "held by worker for 100 s", "free")),
)


# The faults


def at(nth: int, action: Action, then: Callable[[], None] = lambda: None) -> Callable[[Command], Action]:
    """The `nth` command from now on gets `action`, and `then` is called at that moment."""
    seen = 0

    def choose(command: Command) -> Action:
        nonlocal seen
        seen += 1
        if seen != nth:
            return Action.PASS
        then()
        return action

    return choose


@dataclass
class Field:
    """One server behind a proxy. Victims connect through the proxy, the next worker connects directly."""

    crew: Crew
    proxy: Proxy
    client: redis.asyncio.Redis
    cache: SessionCache
    next: Worker
    forgetful: bool
    chains: list[str]
    others: list[str]

    async def begin(self, method: Method) -> str:
        """Create a session in the state in which the method starts."""
        session = f"{method.name}-{next(_numbers)}"
        await method.given(self.cache, session)
        assert await self.see(method, session) == method.states[0]
        (self.chains if method.is_a_turn else self.others).append(session)
        if self.forgetful:
            await self.client.script_flush()
        return session

    async def see(self, method: Method, session: str) -> str:
        return await method.sees(View(self.client, SessionCache(self.client, workers.NAMESPACE), session))

    async def victim(self, *, lease_ttl: float = LEASE_TTL) -> Worker:
        return await self.crew.hire(self.proxy.url, lease_ttl=lease_ttl)

    async def boundaries(self, method: Method) -> int:
        """Count the commands that the method sends without a fault."""
        session = await self.begin(method)
        victim = await self.victim()
        with self.proxy.measure() as seen:
            await victim.do(method.call, session)
        victim.kill()
        assert await self.see(method, session) == method.states[-1]
        return seen.commands

    async def go_on(self, method: Method, session: str) -> None:
        """Let the next worker complete the method and take a turn."""
        await self.next.do(method.again or method.call, session)
        assert await self.see(method, session) == method.states[-1]
        turn = f"next@{session}"
        if method.call is not workers.delete:
            await self.next.do(workers.take, session, workers.by_update, turn)
            return
        try:
            await self.next.do(workers.take, session, workers.by_update, turn)
        except SessionDeleted:
            return
        raise AssertionError("a late writer wrote to a deleted session")


Sweep = Callable[[Field, Method, int, Moment], Awaitable[None]]


async def kill(field: Field, method: Method, nth: int, moment: Moment) -> None:
    """Kill the worker with SIGKILL; another worker resumes."""
    session = await field.begin(method)
    victim = await field.victim()
    if moment is Moment.BEFORE:
        field.proxy.on_command = at(nth, Action.CUT_BEFORE, victim.kill)
        victim.order(method.call, session)
    else:
        action = Action.HOLD_REPLY if moment is Moment.EXECUTED else Action.HALF_REPLY
        field.proxy.on_command = at(nth, action)
        victim.order(method.call, session)
        async with asyncio.timeout(workers.PATIENCE):
            await field.proxy.holding()
        victim.kill()
        field.proxy.release()
    if await victim.survives():
        raise AssertionError(f"{method.name} has no command {nth}")
    assert await field.see(method, session) in method.states
    await field.go_on(method, session)


async def cut(field: Field, method: Method, nth: int, moment: Moment) -> None:
    """Cut the connection. The worker keeps running, and its own retries settle the outcome."""
    session = await field.begin(method)
    victim = await field.victim()
    field.proxy.on_command = at(nth, moment.cut)
    victim.order(method.call, session)
    if moment is Moment.HALFWAY:
        async with asyncio.timeout(workers.PATIENCE):
            await field.proxy.holding()
        field.proxy.release()
    await victim.answer()
    victim.kill()
    assert await field.see(method, session) == method.states[-1]
    await field.go_on(method, session)


async def freeze(field: Field, method: Method, nth: int, moment: Moment) -> None:
    """Freeze the worker before its reply arrives, until its lease expired and another worker took two turns."""
    session = await field.begin(method)
    victim = await field.victim(lease_ttl=SHORT_LEASE_TTL)
    field.proxy.on_command = at(nth, Action.HOLD_REPLY)
    victim.order(method.call, session)
    async with asyncio.timeout(workers.PATIENCE):
        await field.proxy.holding()
    victim.freeze()
    field.proxy.release()
    await asyncio.sleep(SHORT_LEASE_TTL)
    for number in (1, 2):
        await field.next.do(workers.take, session, workers.by_update, f"next{number}@{session}")
    victim.thaw()
    await victim.answer()
    victim.kill()


async def sweep(
    fault: str,
    server: str,
    url: str,
    what: Sweep,
    *,
    methods: Iterable[Method] = METHODS,
    moments: Iterable[Moment] = tuple(Moment),
    every: int = 1,
    forgetful: bool = False,
) -> Row:
    """Run `what` at every boundary of the methods, or at one in `every`. `forgetful`: the server has no script."""
    row, boundaries = Row(fault, server), itertools.count()
    async with Proxy(url) as proxy, Crew() as crew, looking_at(url) as (client, cache):
        await cache.preload()
        field = Field(crew, proxy, client, cache, await crew.hire(url), forgetful, [], [])
        for method in methods:
            for nth in range(1, await field.boundaries(method) + 1):
                for moment in moments:
                    boundary = next(boundaries)
                    if boundary % every == 0:
                        await what(field, method, nth, moment)
                        row.runs += 1
        return await settle_accounts(row, crew, client, cache, chains=field.chains, others=field.others)
