"""Queues of this process, in which writes to one session wait for each other in the order in which they were called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from lash_redis.errors import BackendError


class Queues:
    """One queue for each session and event loop. A queue exists while a task waits in it or has its turn."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, session_id: str, seconds: float) -> AsyncIterator[None]:
        """Wait for the turn of this task, at most so many seconds.

        Raises:
            BackendError: the time is over.
        """
        key = id(asyncio.get_running_loop()), session_id
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = lock = asyncio.Lock()
        try:
            async with asyncio.timeout(seconds):
                await lock.acquire()
        except TimeoutError:
            raise BackendError(
                f"session {session_id!r}: writes of this process were waiting for {seconds:g} seconds; nothing was "
                "written, retry later"
            ) from None
        try:
            yield
        finally:
            lock.release()
