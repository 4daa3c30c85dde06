"""Orders of worker processes that produce and follow streams."""

from __future__ import annotations

import asyncio

from lash_redis import BackendError, OutcomeUnknown
from tests.support.workers import Work


async def produce(work: Work, session: str, generation: str, count: int, ttl: float, pause: float) -> None:
    """Produce the numbers below `count`, each in a round trip of its own, with a pause after each."""
    async with work.cache.session(session).stream(generation, ttl=ttl) as out:
        for number in range(count):
            await out.send(number)
            await flushed(out)
            await asyncio.sleep(pause)


async def flushed(out: object) -> None:
    """Flush, and flush again while the server is unreachable."""
    while True:
        try:
            await out.flush()  # type: ignore[attr-defined]
        except (BackendError, OutcomeUnknown):
            await asyncio.sleep(0.05)
        else:
            return


async def follow(work: Work, session: str, generation: str, wait: float) -> list[object]:
    return [event.data async for event in work.cache.session(session).follow(generation, wait=wait)]
