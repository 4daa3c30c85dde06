"""Faults of groups of servers under load: a primary is killed or frozen, slots move.

Each function injects one fault repeatedly and returns a row of the fault table.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import redis.asyncio

from lash_redis import Replicas, StoreOptions, connect
from lash_redis.protocol.keys import Layout
from tests.support.accounts import SHARED, Row, settle_accounts
from tests.support.groups import Cluster, Member, SentinelGroup
from tests.support.outages import taking_turns
from tests.support.workers import NAMESPACE, Crew

LAYOUT = Layout(NAMESPACE, StoreOptions().shards)


@dataclass(frozen=True)
class Field:
    """A group and the workers that take turns on it."""

    group: Cluster | SentinelGroup
    crew: Crew

    @property
    def primary(self) -> Member:
        """The member that currently serves the sessions."""
        return self.group.primary_of(slot_key(SHARED)) if isinstance(self.group, Cluster) else self.group.primary


def slot_key(session: str) -> str:
    return LAYOUT.session(session).head


def neighbours(count: int) -> list[str]:
    """Sessions in the slot of the shared session."""
    slot = Cluster.slot_of(slot_key(SHARED))
    found = (name for name in (f"own{at}" for at in range(100_000)) if Cluster.slot_of(slot_key(name)) == slot)
    return [name for name, _ in zip(found, range(count), strict=False)]


@asynccontextmanager
async def under_load(
    group: Cluster | SentinelGroup, row: Row, *, count: int, turns: int, options: StoreOptions
) -> AsyncIterator[Field]:
    """Run workers on sessions that one server serves. Leaving waits for all turns and fills the row."""
    await asyncio.to_thread(group.start)
    try:
        async with Crew() as crew, connect(group.url, namespace=NAMESPACE) as cache:
            own = neighbours(count)
            hired = await crew.hire_all(count, group.url, options=options)
            field = Field(group, crew)
            async with taking_turns(hired, own, turns):
                yield field
            # A busy machine can cause a further failover. The account must not read a primary that is being replaced.
            await asyncio.to_thread(group.wait_until_ok)
            async with redis.asyncio.Redis.from_url(field.primary.url) as client:
                await settle_accounts(row, crew, client, cache, chains=[SHARED, *own])
    finally:
        await asyncio.to_thread(group.stop)


async def _each_part(field: Field, row: Row, times: int, turns: int, fault: Callable[[], Awaitable[None]]) -> None:
    """Call `fault` `times` times, spread evenly over the turns."""
    for number in range(times):
        await field.crew.reaches(turns * (number + 1) // (times + 2))
        await fault()
        row.runs += 1


def options_for(replicas: int) -> StoreOptions:
    return StoreOptions(durability=Replicas(replicas, 200) if replicas else None)


async def lose_primary(
    group: Cluster | SentinelGroup, *, freeze: bool, times: int, count: int, turns: int, replicas: int = 0
) -> Row:
    """Kill the primary, which restarts as an empty replica, or freeze it until a replica is promoted.

    A frozen primary then continues as a stale primary. `replicas` is the number that a commit waits for."""
    done = "frozen until another has taken over, then resumed" if freeze else "killed (-9)"
    waits = ", asynchronous replication"
    if replicas:
        waits = f", commits wait for {'the replica' if replicas == 1 else f'{replicas} replicas'}"
    where = "cluster" if isinstance(group, Cluster) else "Sentinel"
    row = Row(f"{where}: primary {done}{waits}", group.kind.name)
    async with under_load(group, row, count=count, turns=turns, options=options_for(replicas)) as field:

        async def fault() -> None:
            primary = field.primary
            await asyncio.to_thread(primary.freeze if freeze else primary.kill)
            await asyncio.to_thread(group.wait_for_failover, primary)
            if isinstance(group, SentinelGroup):
                await asyncio.to_thread(group.wait_until_followed)
            await asyncio.to_thread(group.heal)

        await _each_part(field, row, times, count * turns, fault)
    return row


async def move_slot(cluster: Cluster, *, times: int, count: int, turns: int) -> Row:
    """Move the slot of all sessions from primary to primary, key by key."""
    row = Row("cluster: slot migrated key by key", cluster.kind.name)
    async with under_load(cluster, row, count=count, turns=turns, options=StoreOptions()) as field:
        slot = Cluster.slot_of(slot_key(SHARED))

        async def fault() -> None:
            here = field.primary
            to = next(node for node in cluster.primaries() if node is not here)
            await asyncio.to_thread(cluster.migrate_slot, slot, to)

        await _each_part(field, row, times, count * turns, fault)
    return row
