"""Release resources to the end although their holder is cancelled.

An `await` in a `finally` is not enough. A task can be cancelled again during it, and a cancelled scope of anyio
(Starlette, FastAPI, MCP) cancels every further `await`. So a cleanup runs in a task of its own, and its holder waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

log = logging.getLogger("lash_redis")

GRACE: Final = 2.0
"""Seconds that a cleanup may take after a cancellation reached it. Without one, its own time limits apply."""
REPEAT: Final = 0.1
"""Seconds between two cancellations of a cleanup whose time has ended. A single one can be swallowed."""

Work = Callable[[], Coroutine[Any, Any, object]]


async def clean_up(work: Work, what: str, *, after: BaseException | None = None) -> None:
    """Run `work` to its end, however often this task is cancelled meanwhile; see `run_to_end`.

    `after` is the error that ended the block whose resources are released, and that the caller raises again. A failure
    of `work` is then logged, and a cancellation that arrives meanwhile stays pending. `what` names the work in the log.

    Raises:
        asyncio.CancelledError: this task was cancelled meanwhile, and `after` is None.
        Exception: the failure of `work`, if `after` is None.
    """
    task, cancelled = await run_to_end(work)
    error = TimeoutError(f"it did not end within {GRACE:g} s") if task.cancelled() else task.exception()
    if error is not None and (after or cancelled):
        log.warning("%s failed: %s", what, error, exc_info=error)
    if after is not None:
        if cancelled is not None and not isinstance(after, asyncio.CancelledError):
            keep_pending(cancelled)
    elif cancelled is not None:
        raise cancelled
    elif error is not None:
        raise error


@asynccontextmanager
async def cleaned_up(work: Work, what: str) -> AsyncIterator[None]:
    """Run a block, then `work` to its end. An error of the block takes precedence over a failure of `work`."""
    try:
        yield
    except BaseException as error:
        await clean_up(work, what, after=error)
        raise
    await clean_up(work, what)


async def run_to_end(work: Work) -> tuple[asyncio.Task[object], asyncio.CancelledError | None]:
    """Run `work` in a task of its own; return the task when it has ended, and the first cancellation of the caller.

    After a cancellation, the work has `GRACE` seconds left. Then its task is cancelled. If another cancels that task,
    as the shutdown of an event loop does, `work` is called again. So it must be idempotent.
    """
    clock = asyncio.get_running_loop().time
    until, cancelled = None, None
    task = asyncio.create_task(work())
    while True:
        is_over = until is not None and clock() >= until
        if is_over:
            task.cancel()
        try:
            await asyncio.wait([task], timeout=REPEAT if is_over else until and until - clock())
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            until = until or clock() + GRACE
        if not task.done():
            continue
        if is_over or not task.cancelled():
            return task, cancelled
        until = until or clock() + GRACE
        task = asyncio.create_task(work())


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended. Their results and errors are dropped. Idempotent."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def keep_pending(cancelled: asyncio.CancelledError) -> None:
    """Raise a cancellation that this task received at its next `await`, because another error is raised first."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    task.cancel(*cancelled.args)


def end_if_cancelled() -> None:
    """Raise CancelledError in a task whose cancellation was swallowed.

    redis-py sends in `asyncio.wait_for`, which before Python 3.12 swallows a cancellation once all bytes are sent.
    """
    if cancellation_count():
        raise asyncio.CancelledError


def cancellation_count() -> int:
    """Return how often the current task was cancelled, the cancellations included that were swallowed."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
