"""Ways to cancel a task at a chosen step: once, three times in a row, or by a scope of anyio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio

Work = Callable[[], Awaitable[object]]
Way = Callable[[Work, int], Awaitable[bool]]


def times(count: int) -> Way:
    """Cancel the task of some work `count` times in a row."""

    async def cancel(work: Work, step: int) -> bool:
        task = asyncio.ensure_future(work())
        await steps(step)
        for _ in range(count):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        return not task.cancelled() and task.result() is None

    return cancel


async def by_scope(work: Work, step: int) -> bool:
    """Cancel the scope of anyio around some work. Every further `await` in the scope is cancelled, too."""
    scope = anyio.CancelScope()

    async def scoped() -> bool:
        with scope:
            await work()
            return True
        return False

    task = asyncio.create_task(scoped())
    await steps(step)
    scope.cancel()
    return await task


WAYS = {"once": times(1), "three times": times(3), "by a scope of anyio": by_scope}


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def at_each_step(work: Work, way: Way, limit: int = 20_000) -> AsyncIterator[int]:
    """Run some work again and again, cancelled one step later each time, until it ends before its cancellation.

    Yield the step after each cancelled run.
    """
    for step in range(1, limit):
        if await way(work, step):
            return
        yield step
    raise AssertionError(f"the work did not end within {limit} steps")
