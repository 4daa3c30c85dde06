"""Turns of the event loop: large work runs in short slices, so that other tasks are not held up.

Short work runs at once. All longer work of one event loop shares the slices: in each iteration of the loop it takes
`SLICE_SECONDS`, however many calls are in progress, and the calls take turns.
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
SHORT_SECONDS: Final = 0.001
"""The time that a call works before it waits for a slice. Most commits and reads take less.

A wait takes an iteration of the event loop. If each commit waits, 64 tasks make half of the commits a second.
"""


async def in_turns(steps: Steps[Result], first_seconds: float | None = None) -> Result:
    """Do the steps of some work, and return its result. Other tasks run after each slice.

    `first_seconds` is the time before the first wait; None for `SHORT_SECONDS`.

    What the steps read must not change meanwhile. Each step sees the values of its own moment.
    """
    until = perf_counter() + (SHORT_SECONDS if first_seconds is None else first_seconds)
    turns: Turns | None = None
    try:
        while True:
            if perf_counter() >= until:
                is_new = turns is None
                turns = turns or state_of(Turns, Turns)
                until = await turns.wait(is_new=is_new)
            next(steps)
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
        self._is_scheduled = False
        """Whether `_serve` is scheduled."""
        self._new: deque[asyncio.Future[None]] = deque()
        self._begun: deque[asyncio.Future[None]] = deque()
        self._prefers_new = False

    async def wait(self, *, is_new: bool) -> float:
        """Wait for a slice of a later iteration; return its end."""
        queue = self._new if is_new else self._begun
        turn: asyncio.Future[None] = self._loop.create_future()
        queue.append(turn)
        self._serve_later()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._serve_later()  # the next task gets the slice
            raise
        self._serve_later()
        return perf_counter() + SLICE_SECONDS

    def _serve_later(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Give the slice of the next iteration to a task that waits."""
        self._is_scheduled = False
        self._prefers_new = not self._prefers_new
        for queue in (self._new, self._begun) if self._prefers_new else (self._begun, self._new):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
