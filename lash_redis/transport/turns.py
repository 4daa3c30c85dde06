"""Turns of the event loop: large work runs in short slices, so that other tasks are not held up.

All work of one event loop shares the slices. In each iteration of the loop, work takes `SLICE_SECONDS`, however many
calls are in progress. A call that fits into the slice does not wait. Calls that need more time take turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Final, TypeVar

from lash_redis.protocol.steps import Steps
from lash_redis.transport.loop_state import state_of

Result = TypeVar("Result")

SLICE_SECONDS: Final = 0.002
"""The time after which work lets other tasks run. A single step may take longer."""


async def in_turns(steps: Steps[Result]) -> Result:
    """Do the steps of some work, and return its result. Other tasks run after each slice.

    What the steps read must not change meanwhile. Each step sees the values of its own moment.
    """
    turns = state_of(Turns, Turns)
    until = turns.join()
    if until is None:
        until = await turns.wait(is_new=True)
    try:
        while True:
            next(steps)
            if perf_counter() >= until:
                until = await turns.wait(is_new=False)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        steps.close()


class Turns:
    """The slices of one event loop, and the tasks that wait for one.

    New work and work in progress are served alternately, each in the order in which it began to wait. So a short call
    does not wait for all long ones.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until: float | None = None
        """The end of the slice of this iteration; None if no work ran in it."""
        self._is_ending = False
        """Whether `_end` is scheduled."""
        self._new: deque[asyncio.Future[None]] = deque()
        self._begun: deque[asyncio.Future[None]] = deque()
        self._prefers_new = False

    def join(self) -> float | None:
        """Join the slice of this iteration; return its end, or None if its time is over."""
        if self._until is None:
            return self._open()
        return self._until if perf_counter() < self._until else None

    async def wait(self, *, is_new: bool) -> float:
        """Wait for a slice of a later iteration; return its end."""
        queue = self._new if is_new else self._begun
        turn: asyncio.Future[None] = self._loop.create_future()
        queue.append(turn)
        self._end_later()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end_later()  # the next task gets the slice
            raise
        return self._open()

    def _open(self) -> float:
        self._until = perf_counter() + SLICE_SECONDS
        self._end_later()
        return self._until

    def _end_later(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        """End the slice of the iteration before, and give the next one to a task that waits."""
        self._is_ending, self._until = False, None
        self._prefers_new = not self._prefers_new
        for queue in (self._new, self._begun) if self._prefers_new else (self._begun, self._new):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
