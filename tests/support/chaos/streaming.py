"""The step that produces a stream, follows it meanwhile, and compares what was sent with what arrived."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise

from lash_redis import StreamWriter
from lash_redis.errors import BackendError, OutcomeUnknown
from tests.support import producing
from tests.support.chaos.actor import Actor
from tests.support.chaos.deed import Deed
from tests.support.chaos.plan import Step, is_kept
from tests.support.stream_accounts import Followed

TTL = 10.0
"""Seconds without a sign of life until the stream of a step is lost. Few outages are longer."""
FOLLOWING = 6 * TTL
"""Seconds within which a follower must end after the producer."""


class Failure(Exception):
    """What a producer raises whose stream is to fail."""


async def stream(actor: Actor, step: Step, deed: Deed) -> bool:
    """Produce a stream of numbers, which fails at times, and follow it in this process meanwhile."""
    count, expected = 10 * step.count, "failed" if step.choices[0] < 0.3 else "finished"
    store, followed = actor.store(step), Followed()
    following = asyncio.create_task(producing.follow_to_the_end(store, deed.op, FOLLOWING, followed))
    try:
        with suppress(Failure):
            async with store.stream(deed.op, ttl=TTL) as out:
                await _send(out, count, pause=step.choices[1] / 100)
                if expected == "failed":
                    raise Failure
        await asyncio.wait([following], timeout=FOLLOWING)
        deed.problems += [(kind, text, "") for kind, text in problems_of(step, count, expected, followed)]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return True


async def _send(out: StreamWriter, count: int, pause: float) -> None:
    for number in range(count):
        with suppress(BackendError, OutcomeUnknown):  # the event was added
            await out.send(number)
        if number % 4 == 0:
            await asyncio.sleep(pause)
    await producing.flushed(out)


def problems_of(step: Step, count: int, expected: str, followed: Followed) -> list[tuple[str, str]]:
    """Kind and text of what is wrong with what a follower got of a stream that ended as `expected`.

    A producer that raises and cannot reach the server leaves a stream that is lost instead of failed.
    """
    got, end = followed.numbers, followed.end
    what = f"of {count} events the follower got {got}, and then {end or 'no end'}, expected {expected}"
    found = []
    if len(set(got)) < len(got):
        found.append("event doubled")
    if any(later < earlier for earlier, later in pairwise(got)):
        found.append("event out of order")
    if end in ("finished", "failed") and set(got) != set(range(count)):
        found.append("event lost")
    is_removed = end in ("StreamGone", "SessionDeleted") and not is_kept(step.session)
    if end in ("lost", "StreamGone") and not is_removed and (expected, end) != ("failed", "lost"):
        found.append("end lost")
    elif end not in (expected, "lost", "StreamGone") and not is_removed:
        found.append("end mistaken")
    return [(kind, what) for kind in found]
