"""Count what became of the turns of worker processes: a row of the fault table in docs/guarantees/evidence.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack
import redis.asyncio

from lash_redis import FullGraph, SessionCache
from tests.support.workers import NAMESPACE, Crew

HEADER = "| fault | server | runs | acknowledged | lost | doubled | errors the workers saw |\n" + "| --- " * 7 + "|"


SHARED = "chat"
"""The session that workers share."""


@dataclass
class Row:
    """The outcome of turns under one fault."""

    fault: str
    server: str
    runs: int = 0
    """How often the fault was injected."""
    acknowledged: int = 0
    """Turns that the store acknowledged to a worker."""
    lost: int = 0
    """Acknowledged turns that are not stored."""
    doubled: int = 0
    """Turns that are stored more than once."""
    unconfirmed: int = 0
    """Turns that the store reported as stored without confirming the requested durability."""
    landed: int = 0
    """Turns that are stored."""
    paid: int = 0
    """Model calls."""
    errors: Counter[str] = field(default_factory=Counter)
    """The errors that workers received, by type."""

    @property
    def wasted(self) -> int:
        """Model calls whose answer was not stored."""
        return self.paid - self.landed

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {times:,}" for name, times in sorted(self.errors.items())) or "none"
        if self.unconfirmed:
            seen += f"; not confirmed {self.unconfirmed:,}"
        counts = " | ".join(f"{each:,}" for each in (self.runs, self.acknowledged, self.lost, self.doubled))
        return f"| {self.fault} | {self.server} | {counts} | {seen} |"


@asynccontextmanager
async def looking_at(url: str) -> AsyncIterator[tuple[redis.asyncio.Redis, SessionCache]]:
    """A raw client and a cold cache on it."""
    async with redis.asyncio.Redis.from_url(url) as client:
        yield client, SessionCache(client, NAMESPACE)


async def stored_turns(client: Any, cache: SessionCache, session: str) -> list[str]:
    """The turns of a session in stored order, read from the stored bytes."""
    records = await client.lrange(cache.layout.session(session).log, 0, -1)
    return [msgpack.unpackb(record)[3]["turn"] for record in records if record]


async def check_chain(client: Any, cache: SessionCache, session: str) -> None:
    """Check that the session is one chain without branches, and that revision, ledger and state match its length.

    Raises:
        AssertionError: it is not such a chain.
    """
    keys = cache.layout.session(session)
    records = [msgpack.unpackb(record) for record in await client.lrange(keys.log, 0, -1)]
    ids = [record[0] for record in records]
    assert [record[1] for record in records] == [None, *ids][: len(ids)], f"{session} is no chain"
    assert not await client.exists(keys.jumps), f"{session} has a branch"
    read = await cache.session(session).load_session(FullGraph())
    if read is None:
        assert ids == []
        return
    assert [node.node_id for node in read.graph.nodes] == ids
    assert read.head_revision == len(ids)
    assert sum(row.usage.input_tokens for row in read.token_ledger) == len(ids)
    assert read.checkpoint is not None
    last = records[-1][3]["turn"]
    assert read.checkpoint.execution_state == f"{session} {last}".encode()


async def settle_accounts(
    row: Row,
    crew: Crew,
    client: Any,
    cache: SessionCache,
    *,
    chains: Iterable[str] = (SHARED,),
    others: Iterable[str] = (),
) -> Row:
    """Fill `row` from the workers' journals and from what is stored in these sessions.

    Raises:
        AssertionError: one of `chains` is not a chain, or an audit reports a problem.
    """
    chains = list(chains)
    found = set()
    for session in [*chains, *others]:
        turns = Counter(await stored_turns(client, cache, session))
        row.doubled += sum(times > 1 for times in turns.values())
        row.landed += len(turns)
        found |= set(turns)
    told = crew.told("acknowledged")
    row.acknowledged += len(told)
    row.lost += len(set(told) - found)
    row.paid += len(crew.told("paid"))
    row.errors += crew.errors()
    row.unconfirmed += len(crew.told("unconfirmed"))
    for session in chains:
        await check_chain(client, cache, session)
    problems = (await cache.audit()).problems
    assert problems == (), problems
    return row
