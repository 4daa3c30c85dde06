"""An event loop in a thread of its own, which runs the coroutines of blocking callers.

A `LoopThread` starts its thread at the first call, in each process that uses it. A fork pauses the thread, so that the
child gets a loop that is between two callbacks. The child leaves that loop alone, and starts another one.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from queue import Empty
from typing import Any, Final, NoReturn, TypeVar

from lash_redis.blocking.calls import Call
from lash_redis.blocking.running import Running
from lash_redis.errors import BackendError, OutcomeUnknown
from lash_redis.transport.cleanup import GRACE

Result = TypeVar("Result")

CLEANUP_TIMEOUT: Final = 2 * GRACE
"""The longest wait, in seconds, for a cancelled call: `GRACE` for its cleanup, and as long for that cleanup's end."""
EXIT_TIMEOUT: Final = 3.0
"""The longest wait, in seconds, at interpreter exit until connections are closed."""

CLOSED: Final = "this cache was closed"


class LoopThread:
    """Runs coroutines for threads that wait for their results.

    `end` closes what the coroutines opened, after the error that is passed to it. `leave` does the same for what this
    process and loop have, at interpreter exit. Each runs in the loop as its last work. Neither may refer to the object
    that has this `LoopThread`, because dropping that object ends the thread.
    """

    def __init__(
        self,
        name: str,
        end: Callable[[BaseException | None], Coroutine[Any, Any, None]],
        leave: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._name = name
        self._end, self._leave = end, leave
        self._lock = threading.Lock()
        self._running: Running | None = None
        self._is_closed = self._is_exited = False
        _live.add(self)

    # Calls

    def run(self, function: Callable[..., Coroutine[Any, Any, Result]], *args: Any, **named: Any) -> Result:
        """Run a coroutine function in the loop, and wait for its result in this thread. For the errors see `finish`."""
        result: Result = self.finish(Call(function(*args, **named)))
        return result

    def finish(self, call: Call) -> Any:
        """Run a call in the loop, and wait for its result in this thread.

        If this thread is interrupted meanwhile, such as by Ctrl-C, the coroutine is cancelled and its cleanup awaited,
        for `CLEANUP_TIMEOUT` at most. `Call.undo` undoes what the coroutine did before the cancellation reached it.

        Raises:
            BackendError: the cache was closed, or this is the thread of the loop.
            OutcomeUnknown: the cache was closed before the call had ended.
            BaseException: what the coroutine raises, and what interrupts this thread.
        """
        try:
            running = self.started()
        except BaseException:
            call.work.close()
            raise
        try:  # around `submit`, too, because a signal may interrupt this thread as soon as the loop has the call
            is_accepted = running.submit(call)
            while is_accepted and (message := call.receive()) is not call:
                message()  # type: ignore[operator]  # a function, because it is not the call
            if is_accepted and call.error is None:
                return call.result if call.wrap is None else call.wrap(call.result)
        except BaseException:
            self._withdraw(running, call)
            raise
        if not is_accepted:
            self._refuse()
        error, call.error = call.error, None
        assert error is not None
        try:
            if running.is_ending and isinstance(error, asyncio.CancelledError):
                if call.is_open_ended:
                    raise BackendError(CLOSED)
                raise OutcomeUnknown(f"{CLOSED} before the call had ended")
            raise error
        finally:
            del error  # it refers to this frame

    def _withdraw(self, running: Running, call: Call) -> None:
        """Cancel a call, and wait until its cleanup has ended."""
        try:
            if not call.is_done:
                running.cancel(call)
                while call.inbox.get(timeout=CLEANUP_TIMEOUT) is not call:
                    pass
        except Empty:
            return
        if call.undo is not None and call.error is None:
            self.clean_up(running, call.undo(call.result))

    def clean_up(self, running: Running, work: Coroutine[Any, Any, object]) -> None:
        """Run a cleanup in the loop that ran what it cleans up. Wait for it, unless this is the thread of the loop.

        Without an effect if the loop has ended, or if it is that of a parent process.
        """
        if running.process != os.getpid() or running.is_ending:
            work.close()
        elif running.is_current:
            running.hold(work)
        else:
            self.finish(Call(work, is_open_ended=True))

    # Start and end

    def started(self) -> Running:
        """Return the loop of this process. The first call starts it.

        Raises:
            BackendError: the cache was closed, or this is the thread of the loop.
        """
        running = self._running
        if running is None or running.process != os.getpid() or running.is_ending:
            running = self._start()
        if running.is_current:
            raise BackendError(
                "a blocking call from the thread of the cache's event loop would wait for itself; nothing was sent; "
                "call it from another thread"
            )
        return running

    def _start(self) -> Running:
        with self._lock:
            running = self._running
            if self._is_closed or self._is_exited:
                self._refuse()
            if running is None or running.process != os.getpid():
                self._running = running = Running(self._name)
                weakref.finalize(self, running.end, partial(self._end, None)).atexit = False
                running.resume()
            return running

    def _refuse(self) -> NoReturn:
        """Raise the error of a call after the end."""
        if self._is_exited and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()  # this is a daemon thread, which ends with the process
        raise BackendError(CLOSED if self._is_closed else f"{CLOSED}, because the interpreter exits")

    def close(self, after: BaseException | None = None) -> None:
        """Close everything, and end the thread. Idempotent. For `after` see `transport.cleanup.clean_up`."""
        running = self._running
        if running is not None and running.is_current:
            raise BackendError("the thread of the cache's event loop cannot close it; call close from another thread")
        self._is_closed = True
        with self._lock:
            running = self._running
        if running is not None and running.process == os.getpid():
            running.end(partial(self._end, after))
            running.join()
            running.raise_failure()

    # Forks and interpreter exit

    def pause(self) -> None:
        """End the thread for the time of a fork."""
        if self._running is not None:
            self._running.pause()

    def resume(self) -> None:
        """Continue the calls in flight after a fork."""
        if self._running is not None:
            self._running.resume_after_fork()

    def begin_in_child(self) -> None:
        """Leave the loop of the parent process to the parent."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        if self._running is not None:
            self._running.disown()
            self._running = None

    def begin_exit(self) -> Running | None:
        """Close what this process has. Daemon threads that call or wait then wait until the process ends."""
        self._is_exited = True
        running = self._running
        if running is None or running.process != os.getpid():
            return None
        running.end(self._leave, is_exit=True)
        return running


_live: weakref.WeakSet[LoopThread] = weakref.WeakSet()


def _before_fork() -> None:
    for each in list(_live):
        each.pause()


def _after_fork_in_parent() -> None:
    for each in list(_live):
        each.resume()


def _after_fork_in_child() -> None:
    for each in list(_live):
        each.begin_in_child()


def _at_exit() -> None:
    ending = [running for each in list(_live) if (running := each.begin_exit()) is not None]
    for running in ending:
        running.join(EXIT_TIMEOUT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
