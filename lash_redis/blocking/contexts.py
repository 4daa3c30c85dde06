"""A context manager over an async one, which a task of the loop holds open."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from lash_redis.blocking.calls import Call
from lash_redis.blocking.loop_thread import LoopThread
from lash_redis.blocking.running import Running
from lash_redis.errors import BackendError

Value = TypeVar("Value", covariant=True)


class BlockingContext(AbstractContextManager[Value], Generic[Value]):
    """Enters an async context manager, and leaves it with what the block raised. It can be entered once.

    One task enters and leaves it, because an async context manager may cancel the task that entered it. It cannot
    cancel the block, which runs in another thread. What ended the task then is raised at the end of the block.
    """

    def __init__(
        self,
        loops: LoopThread,
        make: Callable[[], AbstractAsyncContextManager[Any]],
        wrap: Callable[[Any], Value],
    ) -> None:
        self._loops = loops
        self._make = make
        self._wrap = wrap
        self._running: Running | None = None
        self._task: asyncio.Task[bool]
        self._left: asyncio.Future[BaseException | None]

    def __enter__(self) -> Value:
        if self._running is not None:
            raise RuntimeError("this context manager can be entered only once; call the method that made it again")
        self._running = self._loops.started()
        call = Call(self._enter(self._running), wrap=self._wrap, undo=self._abandon)
        return self._loops.finish(call)  # type: ignore[no-any-return]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        running = self._running
        assert running is not None
        if running.process != os.getpid():  # the block forked, and the parent leaves the context
            return False
        try:
            is_suppressed = self._loops.run(self._leave, error)
        except BackendError:
            if error is not None and running.is_ending:
                return False
            raise
        finally:
            if error is not None:
                error.__traceback__ = at  # without the frames of the task
        return is_suppressed

    async def _enter(self, running: Running) -> Any:
        loop = asyncio.get_running_loop()
        entered: asyncio.Future[Any] = loop.create_future()
        self._left = loop.create_future()
        self._task = running.hold(self._hold(entered))
        try:
            await asyncio.wait([self._task, entered], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        if not entered.done():
            await self._task
        return entered.result()

    async def _hold(self, entered: asyncio.Future[Any]) -> bool:
        """Hold the context open until the caller leaves it. True if the context suppressed the error of the block."""
        async with self._make() as value:
            entered.set_result(value)
            error = await self._left
            if error is None:
                return False
            raise error
        return True

    async def _abandon(self, _: object) -> None:
        """Leave the context of a block that does not begin, because the caller was interrupted."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _leave(self, error: BaseException | None) -> bool:
        if error is None or (isinstance(error, Exception) and not isinstance(error, StopIteration)):
            if not self._left.done():
                self._left.set_result(error)
        else:  # a coroutine cannot raise StopIteration, and KeyboardInterrupt would end the loop
            self._task.cancel()
        await asyncio.wait([self._task])
        if self._task.cancelled():
            if error is not None:
                return False
            raise BackendError(
                "the task that held this context manager open was cancelled, because the cache was closed"
            )
        failure = self._task.exception()
        if failure is None:
            return self._task.result()
        if failure is error:
            return False
        raise failure
