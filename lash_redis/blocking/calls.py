"""One call of a blocking caller: a coroutine that a loop runs, and the queue in which the caller's thread waits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

Inbox: TypeAlias = "SimpleQueue[Call | Callable[[], object]]"
"""What a waiting thread receives: functions to run, and at the end its call."""

SIGNAL_SECONDS: Final = 0.5
"""The longest time, in seconds, until a waiting thread handles a signal that arrived just before its wait began."""


class Call:
    """A coroutine of a blocking caller, and its outcome.

    A call `is_open_ended` if it waits for an event that may never happen, such as the next change of a watch. `wrap`
    makes what the caller gets of its result. If the caller is interrupted before it has that, and the coroutine
    succeeds nevertheless, `undo` gets the result.
    """

    __slots__ = ("error", "inbox", "is_done", "is_open_ended", "result", "task", "undo", "work", "wrap")

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        *,
        inbox: Inbox | None = None,
        is_open_ended: bool = False,
        wrap: Callable[[Any], Any] | None = None,
        undo: Callable[[Any], Coroutine[Any, Any, object]] | None = None,
    ) -> None:
        self.work = work
        self.inbox: Inbox = SimpleQueue() if inbox is None else inbox
        self.is_open_ended = is_open_ended
        self.is_done = False
        self.wrap = wrap
        self.undo = undo
        self.task: asyncio.Task[None] | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the loop has run a step of the coroutine."""
        return inspect.getcoroutinestate(self.work) != inspect.CORO_CREATED

    def receive(self) -> Call | Callable[[], object]:
        """Wait in the thread of the caller for the next function to run, or for the end of the call.

        Python handles a signal between two instructions, and a signal wakes a thread only from a wait that has begun.
        So the wait is renewed every `SIGNAL_SECONDS`.
        """
        while True:
            try:
                return self.inbox.get(timeout=SIGNAL_SECONDS)
            except Empty:
                continue

    async def run(self) -> None:
        """Run the coroutine, and store its outcome for the thread of the caller."""
        try:
            self.result = await self.work
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self.error = error
        self.is_done = True

    def cut_off(self) -> None:
        """End a call that the loop did not begin before it ended."""
        self.work.close()
        self.error = asyncio.CancelledError()
        self.is_done = True
        self.inbox.put(self)


@dataclass(slots=True)
class Answer:
    """What a function of the caller returned or raised."""

    value: Any = None
    error: Exception | None = None


def asking(inbox: Inbox, function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that runs `function` in the caller's thread, and waits for what it returns.

    If it returns an awaitable, the loop awaits that.
    """

    async def ask(*args: Any) -> Any:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()

        def run() -> None:
            try:
                answer = Answer(function(*args))
            except Exception as error:  # noqa: BLE001 - `ask` raises it in the coroutine
                answer = Answer(error=error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, answered, answer)

        inbox.put(run)
        answer = await answered
        if answer.error is not None:
            raise answer.error
        return await answer.value if inspect.isawaitable(answer.value) else answer.value

    return ask


def notifying(inbox: Inbox, function: Callable[..., object]) -> Callable[..., None]:
    """Return a function that runs `function` in the caller's thread, in the order of the calls, without waiting."""

    def notify(*args: Any) -> None:
        inbox.put(lambda: function(*args))

    return notify


def _settle(answered: asyncio.Future[Answer], answer: Answer) -> None:
    if not answered.done():
        answered.set_result(answer)
