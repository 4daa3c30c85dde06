"""A run: servers behind unreliable proxies, workers with their actors, faults, and the account at the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from lash_redis import Durability, Fsync, FullGraph, Replicas, SessionCache, StoreOptions, connect
from lash_redis.errors import Corrupt
from lash_redis.transport.group import Address
from tests.support.chaos import deeds
from tests.support.chaos.account import Account, Finding, Stored, settle
from tests.support.chaos.checks import Label, ledger_of, problems_of
from tests.support.chaos.deed import Deed
from tests.support.chaos.faults import Interference, Site, is_refusal, next_damage
from tests.support.detours import Detours
from tests.support.groups import Cluster, Member
from tests.support.proxy import Proxy
from tests.support.workers import NAMESPACE, PATIENCE, Crew, Work, Worker

WORKERS = 6
ACTORS = 3
"""Actors in each worker. While one waits for a server that failed, the others continue."""
OPTIONS = StoreOptions(
    shards=8,
    call_timeout=8.0,
    deletion_marker_ttl=3.0,
    blob_grace=1.0,
    upload_grace=5.0,
    blob_cache_bytes=100_000,
    retry_max_delay=0.3,
)
IMPATIENT = replace(OPTIONS, call_timeout=1.0)
"""The options of every second worker. Its calls end before a failover does, so that their outcome is often unknown."""
TIMEOUTS = "socket_timeout=1.5&socket_connect_timeout=1.0"

Acting = Callable[[Work, int, Sequence[str], float, int, Durability], Awaitable[int]]


@dataclass(frozen=True)
class Plan:
    """The settings of a run."""

    seconds: float
    seed: int
    limit: int = 1_000_000
    """The most steps of one actor."""
    workers: int = WORKERS
    act: Acting = deeds.act
    """The order to each worker; a test passes one that breaks the store."""
    has_faults: bool = True


@dataclass
class Outcome:
    """What a run left."""

    name: str
    plan: Plan
    account: Account
    done: Sequence[Deed]
    damages: list[tuple[float, float, str]] = field(default_factory=list)
    """Begin, end and name of each fault of the servers."""

    def history(self, session: str) -> list[str]:
        """The steps in a session, and the faults of the servers, in the order in which they began."""
        since = min((deed.begin for deed in self.done), default=0.0)
        steps = [(deed.begin, deed.line(since)) for deed in self.done if session in (deed.session, deed.made)]
        faults = [
            (begin, f"{begin - since:8.3f} to {end - since:8.3f} {'=' * 20} {name}")
            for begin, end, name in self.damages
        ]
        return [line for _, line in sorted([*steps, *faults])]


def durability_of(site: Site) -> Durability:
    """What a write waits for, so that it survives every fault of a run."""
    if isinstance(site, Member):
        return Fsync(timeout_ms=500)
    return Replicas(1 if isinstance(site, Cluster) else 2, timeout_ms=500)


async def run(site: Site, name: str, plan: Plan) -> Outcome:
    """Let workers act on a running site while it fails; heal it, and settle the account."""
    interference = Interference()
    async with Crew() as crew, _proxies(site, plan.seed, interference) as (url, detours, proxies):
        hired = [
            await crew.hire(url, options=IMPATIENT if at % 2 else OPTIONS, detours=detours)
            for at in range(plan.workers)
        ]
        for at, each in enumerate(hired):
            actors = [f"w{at}-{number}" for number in range(ACTORS)]
            each.order(plan.act, plan.seed, actors, plan.seconds, plan.limit, durability_of(site))
        interference.is_on = plan.has_faults
        end = time.monotonic() + plan.seconds
        damages = await _damages(site, proxies, hired, plan, end) if plan.has_faults else []
        await asyncio.gather(*(_ended(each, end) for each in hired))
        interference.is_on = False
        if not isinstance(site, Member):
            await asyncio.to_thread(site.heal)
        done = _deeds(crew)
    account = await _settled(site, done)
    return Outcome(name, plan, account, done, damages)


async def _ended(each: Any, end: float) -> None:
    await each.answer(max(0.0, end - time.monotonic()) + PATIENCE)


@asynccontextmanager
async def _proxies(
    site: Site, seed: int, interference: Interference
) -> AsyncIterator[tuple[str, Detours, Sequence[Proxy]]]:
    """A proxy in front of every server, and the URL and detours that lead to them."""
    members = [site] if isinstance(site, Member) else site.members
    detours: dict[Address, Address] = {}
    async with AsyncExitStack() as stack:
        proxies = []
        for at, member in enumerate(members):
            proxy = await stack.enter_async_context(Proxy(member.url, counts=False))
            proxy.on_command = interference.of_proxy(random.Random(f"{seed}/proxy{at}"))
            detours["127.0.0.1", member.port] = "127.0.0.1", int(proxy.url.rpartition(":")[2])
            proxies.append(proxy)
        url = proxies[0].url if isinstance(site, Member) else site.url
        yield f"{url}?{TIMEOUTS}", {} if isinstance(site, Member) else detours, proxies


async def _damages(
    site: Site, proxies: Sequence[Proxy], workers: Sequence[Worker], plan: Plan, end: float
) -> list[tuple[float, float, str]]:
    """Damage the servers, one fault after the other, until the time is over. Each fault ends before the next one."""
    dice = random.Random(f"{plan.seed}/faults")
    done: list[tuple[float, float, str]] = []
    while True:
        await asyncio.sleep(min(0.5 + 4.0 * dice.random(), max(0.0, end - time.monotonic())))
        begin = time.monotonic()
        if begin >= end:
            return done
        fate = dice.random()
        if fate < 0.1:
            name = "refuse connections"
            await _refuse(proxies, 1.5 * dice.random())
        elif fate < 0.2:
            name = "freeze worker"
            await _freeze(dice.choice(workers), 4.0 * dice.random())
        else:
            damage = next_damage(site, dice)
            name = damage.__name__
            try:
                await asyncio.to_thread(damage, site, dice)
            except redis.ResponseError as error:
                if not is_refusal(error):
                    raise
                name += " (refused)"
        done.append((begin, time.monotonic(), name))


async def _refuse(proxies: Sequence[Proxy], seconds: float) -> None:
    """Cut every connection, and refuse new ones for a while."""
    for proxy in proxies:
        await proxy.refuse()
    for proxy in proxies:
        await proxy.sever()
    await asyncio.sleep(seconds)
    for proxy in proxies:
        await proxy.accept()


async def _freeze(worker: Worker, seconds: float) -> None:
    """Freeze a worker, for longer than it waits for replies at times."""
    await asyncio.to_thread(worker.freeze)
    await asyncio.sleep(seconds)
    worker.thaw()


def _deeds(crew: Crew) -> list[Deed]:
    """The last record of each step, in the order in which steps began."""
    records = {op: Deed.from_json(text) for _, op, text in crew.journal()}
    return sorted(records.values(), key=lambda deed: deed.begin)


async def _settled(site: Site, done: Sequence[Deed]) -> Account:
    """Read every session without a proxy, and settle the account."""
    sessions = sorted({deed.session for deed in done} | {deed.made for deed in done if deed.made})
    found: list[Finding] = []
    async with connect(site.url, namespace=NAMESPACE, options=OPTIONS) as cache:
        stored = {session: await _stored(cache, session, found) for session in sessions}
        found += await _audited(cache)
    account = settle(done, stored, keeps_all=isinstance(site, Member))
    account.findings += found
    return account


async def _audited(cache: SessionCache) -> list[Finding]:
    """What the audit reports, and whether a second audit reports it again."""
    first = (await cache.audit()).problems
    again = (await cache.audit()).problems if first else ()
    return [
        Finding(
            "audit", each.key, f"{each.kind}: {each.reason}" + ("" if each in again else "; a second audit did not")
        )
        for each in first
    ]


async def _stored(cache: SessionCache, session: str, found: list[Finding]) -> Stored | None:
    try:
        read = await cache.session(session).load_session(FullGraph())
        pending = [each.input_id for each in await cache.session(session).pending_inputs()]
        if read is None:
            return Stored({}, {}, pending=pending) if pending else None
        labels = {node.node_id: Label.of_node(node) for node in read.graph.nodes}
        return Stored(ledger_of(read), labels, problems_of(read), pending)
    except Corrupt as error:
        found.append(Finding("unreadable", session, str(error)))
        return None


# The report

HEADER = (
    "| on | seed | seconds | faults | steps | acknowledged | durable | lost | of them durable | undone "
    "| of them durable | doubled | other findings |\n" + "| --- " * 13 + "|"
)


def row_of(outcome: Outcome) -> str:
    """The row of a run."""
    account, counts = outcome.account, outcome.account.counts
    named = ("lost", "durable lost", "undone", "durable undone", "doubled")
    others = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()) if kind not in named) or "none"
    lost, undone = (counts[kind] + counts[f"durable {kind}"] for kind in ("lost", "undone"))
    numbers = (
        outcome.plan.seed, round(outcome.plan.seconds), len(outcome.damages), account.steps, account.acknowledged,
        account.durable, lost, counts["durable lost"], undone, counts["durable undone"], counts["doubled"],
    )  # fmt: skip
    return f"| {outcome.name} | {' | '.join(f'{each:,}' for each in numbers)} | {others} |"


def damages_of(outcome: Outcome) -> str:
    counts = Counter(name for _, _, name in outcome.damages)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def errors_of(outcome: Outcome) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(outcome.account.errors.items())) or "none"
