"""The event loop and the thread of one process."""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import threading
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from lash_redis.blocking.calls import Call
from lash_redis.errors import BackendError
from lash_redis.transport.cleanup import GRACE

log = logging.getLogger("lash_redis")

PAUSE_TIMEOUT: Final = 1.0
"""The longest time, in seconds, that a fork waits for the loop, which may wait for a lock of the forking thread."""


Close = Callable[[], Coroutine[Any, Any, object]]


class Running:
    """A loop, its thread, and the calls that wait for it. It does not refer to its `LoopThread`, which may be dropped.

    All methods can be called from any thread, if they do not state something else.
    """

    def __init__(self, name: str) -> None:
        self.process = os.getpid()
        self.is_ending = False
        """Whether the end has begun. No further call is accepted."""
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._calls: set[Call] = set()
        self._held: set[asyncio.Task[Any]] = set()
        self._open: dict[object, Close] = {}
        self._mutex = threading.RLock()  # the collector of garbage may call `end` anywhere
        self._thread: threading.Thread | None = None
        self._thread_id: int | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._is_paused = self._is_over = self._is_exit = False
        self._ended = threading.Event()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the thread of the loop."""
        return self._thread_id == threading.get_ident()

    # Calls

    def submit(self, call: Call) -> bool:
        """Run a call in the loop. False if the loop ends, and the call does not run."""
        self._calls.add(call)
        if self.is_ending or not self.post(self._begin, call):
            self._calls.discard(call)
            call.work.close()
            return False
        if self._thread is None:  # a fork paused it
            self._resume()
        return True

    def cancel(self, call: Call) -> None:
        """Cancel a call, also one whose `submit` was interrupted."""
        self.post(self._cancel, call)
        self._resume()

    def _cancel(self, call: Call) -> None:
        if call.task is not None:
            call.task.cancel()
        if not call.is_begun:  # asyncio ends a task that is cancelled before its first step without running it
            self._calls.discard(call)
            call.cut_off()

    def post(self, function: Callable[..., object], *args: Any) -> bool:
        """Call a function in the thread of the loop. False if the loop was closed."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if self._loop.is_closed():
                return False
            raise
        return True

    def hold(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that the end of the loop cancels first. Only the thread of the loop may call this."""
        task = self._loop.create_task(work)
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        return task

    def note_open(self, opened: object, close: Close) -> None:
        """Close an object at the end of the loop, unless `note_closed` is called before."""
        self._open[opened] = close

    def note_closed(self, opened: object) -> None:
        self._open.pop(opened, None)

    def _begin(self, call: Call) -> None:
        call.task = self._loop.create_task(self._run(call))

    async def _run(self, call: Call) -> None:
        await call.run()
        self._calls.discard(call)
        if not self._is_exit:
            call.inbox.put(call)

    # The thread

    def resume(self) -> None:
        """Start the thread if there is none.

        Raises:
            BackendError: the system starts no thread.
        """
        with self._mutex:
            self._resume()

    def _resume(self) -> None:
        with self._mutex:
            if self._thread is not None or self._is_paused or self._ended.is_set():
                return
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError as error:
                self._thread = None
                raise BackendError(f"the thread of the cache's event loop cannot start: {error}") from error

    def _serve(self) -> None:
        self._thread_id = threading.get_ident()
        while True:
            self._loop.run_forever()
            with self._mutex:
                if self._is_over:
                    break
                if self._is_paused:
                    self._thread_id = self._thread = None
                    return
        self._loop.close()
        for call in list(self._calls):
            if not self._is_exit:
                call.cut_off()
        self._thread_id = None
        self._ended.set()

    def pause(self) -> None:
        """Stop the thread, and return when it has ended, after `PAUSE_TIMEOUT` at the latest."""
        with self._mutex:
            thread = self._thread
            if thread is None or self.is_ending or self.is_current:
                return
            self._is_paused = True
        self.post(self._loop.stop)
        thread.join(PAUSE_TIMEOUT)
        with self._mutex:
            self._is_paused = self._thread is None

    def resume_after_fork(self) -> None:
        """End a pause. The thread starts now if there is work, else at the next call."""
        with self._mutex:
            self._is_paused = False
            if self.is_ending or self._calls or asyncio.all_tasks(self._loop):
                self._resume()

    def disown(self) -> None:
        """Release this process's copies of the connections of its parent process.

        The null device replaces each file. The objects of the parent's loop keep their file numbers, and can neither
        write to a connection nor remove it from the parent's epoll.
        """
        _inherited.append(self)
        files = self._selector.get_map()
        if files is None:
            return
        numbers = [key.fd for key in files.values()]
        if hasattr(self._selector, "fileno"):
            numbers.append(self._selector.fileno())
        null = os.open(os.devnull, os.O_RDWR)
        for number in numbers:
            os.dup2(null, number, inheritable=False)
        os.close(null)

    # The end

    def end(self, work: Callable[[], Coroutine[Any, Any, None]], *, is_exit: bool = False) -> None:
        """Begin the end: close what is open, do the last `work`, and end the thread. Idempotent.

        At interpreter exit, the callers that wait are not answered: they are daemon threads, which end with the
        process.
        """
        if self.process != os.getpid():  # a thread of the parent may have held the mutex during the fork
            return
        with self._mutex:
            if self.is_ending:
                return
            self.is_ending, self._is_exit = True, is_exit
        self.post(self._begin_end, work)
        self._resume()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended."""
        self._ended.wait(timeout)
        thread = self._thread
        if thread is not None and self._ended.is_set():
            thread.join()

    def raise_failure(self) -> None:
        """Raise the error of the last work, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _begin_end(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._finishing = self._loop.create_task(self._finish(work))

    async def _finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            open_ended = [call.task for call in list(self._calls) if call.is_open_ended]  # other threads add calls
            await _end_within_grace([*self._held, *open_ended])
            closing = [self._loop.create_task(close()) for close in list(self._open.values())]
            if closing:
                await asyncio.wait(closing, timeout=GRACE)
            await work()
        except Exception as error:  # noqa: BLE001 - the thread that closes the cache raises it
            self._failure = error
        finally:
            await self._end_calls()

    async def _end_calls(self) -> None:
        """End the calls in flight. Without connections they end at once, or after a pause between two attempts."""
        try:
            tasks = [call.task for call in list(self._calls) if call.task is not None]
            if tasks and not self._is_exit:
                await asyncio.wait(tasks, timeout=GRACE)
            await _end_within_grace(asyncio.all_tasks() - {self._finishing})
            await self._loop.shutdown_asyncgens()
            if not self._is_exit:  # at interpreter exit, these threads have ended
                await self._loop.shutdown_default_executor()
        finally:
            self._is_over = True
            self._loop.stop()


async def _end_within_grace(tasks: Collection[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks, and wait for their end for `GRACE` seconds at most."""
    waited = [task for task in tasks if task is not None]
    for task in waited:
        task.cancel()
    if waited:
        await asyncio.wait(waited, timeout=GRACE)


_inherited: Final[list[Running]] = []
"""The loops of parent processes. They are kept, because a loop that is collected closes its files."""
