"""The bytes of large commits in flight: commits that would exceed the limit wait for each other.

A commit's size is known when it is encoded. So a large commit first waits for its turn: one commit at a time is encoded
or waits for room. All others wait without encoded bytes. They get their turns in the order of their calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from lash_redis.errors import BackendError
from lash_redis.transport.loop_state import state_of

LARGE_BYTES: Final = 64 * 1024
"""The largest size, in bytes, of a commit that neither waits nor counts."""


class BytesInFlight:
    """The limit of one cache, which counts the commits of each event loop.

    `limit`: the largest number of bytes in flight. One commit that is larger is sent alone. `patience`: the longest
    wait of a commit in seconds; None for no limit of time.
    """

    def __init__(self, limit: int, patience: float | None) -> None:
        self._limit = limit
        self._patience = patience

    def flight(self) -> Flight:
        """Return the flight of one commit. Its caller calls `end`, however the commit ends."""
        return Flight(state_of(self, lambda: _Commits(self._limit)), self._patience)


class _Commits:
    """The commits of one event loop: the bytes in flight, and the turn to encode and to wait for room."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.lock = asyncio.Lock()
        self.waiting = 0
        """The number of commits that wait for their turn. A lock that was just released is not locked, but theirs."""
        self._freed: asyncio.Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        return not (self.used or self.waiting or self.lock.locked())

    async def wait_for_room(self, size: int) -> None:
        """Wait until `size` bytes fit, or nothing is in flight. Only the commit that has the turn calls it."""
        while self.used and self.used + size > self.limit:
            self._freed = asyncio.get_running_loop().create_future()
            try:
                await self._freed
            finally:
                self._freed = None

    def free(self, size: int) -> None:
        self.used -= size
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)


class Flight:
    """One commit: whether it has the turn, and its bytes in flight."""

    def __init__(self, commits: _Commits, patience: float | None) -> None:
        self._commits = commits
        self._has_turn = False
        self._size = 0
        self._deadline = None if patience is None else asyncio.get_running_loop().time() + patience
        self._patience = patience

    async def begin(self, is_large: Callable[[], bool]) -> None:
        """Wait until the commit may be encoded. Bytes that it had in flight are given up.

        `is_large` estimates whether it is larger than `LARGE_BYTES`. It is called only while others are in flight.

        Raises:
            BackendError: the wait took longer than the patience; nothing was sent.
        """
        self._free()
        if self._has_turn:
            return
        if self._commits.is_idle:
            await self._commits.lock.acquire()  # it does not wait
            self._has_turn = True
        elif is_large():
            await self._wait_for_turn()

    async def take(self, size: int) -> None:
        """Wait until this many bytes may be in flight, instead of those that the commit had in flight.

        Raises:
            BackendError: as `begin`.
        """
        self._free()
        if size > LARGE_BYTES:
            if not self._has_turn:
                await self._wait_for_turn()
            async with self._patiently():
                await self._commits.wait_for_room(size)
            self._commits.used += size
            self._size = size
        self._end_turn()

    def end(self) -> None:
        """Give up the bytes and the turn."""
        self._free()
        self._end_turn()

    async def _wait_for_turn(self) -> None:
        self._commits.waiting += 1
        try:
            async with self._patiently():
                await self._commits.lock.acquire()
        finally:
            self._commits.waiting -= 1
        self._has_turn = True

    def _end_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._commits.lock.release()

    def _free(self) -> None:
        if self._size:
            self._commits.free(self._size)
            self._size = 0

    @asynccontextmanager
    async def _patiently(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(self._deadline):
                yield
        except TimeoutError:
            raise BackendError(
                f"a large commit waited {self._patience:g} seconds for others of this process, which had "
                f"{self._commits.used} of {self._commits.limit} bytes in flight (StoreOptions.max_bytes_in_flight); "
                "nothing was written, retry later"
            ) from None
