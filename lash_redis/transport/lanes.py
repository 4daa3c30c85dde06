"""The connections to one server: which one a request takes, and when each is opened.

Requests of different kinds take different connections (see `Lane`), so that the renewal of a lease does not wait for
30 MB of messages, or for a WAIT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from lash_redis.transport.connection import Connection
from lash_redis.transport.failures import ConnectionLost, NoReply, NotSent, OutOfTime
from lash_redis.transport.request import Lane
from lash_redis.transport.wire import pack

LARGE_BYTES: Final = 64 * 1024
"""The largest size, in bytes, of a request in the lane of small ones."""
LARGE_CONNECTIONS: Final = 8
"""The largest number of connections to one server for large transfers."""

PING: Final = pack([("PING",)])


class Lanes:
    """All connections to one server, at most `limit`.

    `open_` makes a connection. After `idle_limit` seconds without traffic (0: never), a connection is probed before its
    next use. It is given up if it does not answer within `reply_timeout` seconds.
    """

    def __init__(
        self,
        address: str,
        open_: Callable[[], Awaitable[Connection]],
        *,
        limit: int,
        idle_limit: float,
        reply_timeout: float,
    ) -> None:
        self.address = address
        self.open = open_
        self.idle_limit = idle_limit
        self.reply_timeout = reply_timeout
        small, large, waiting = _shares(limit)
        self._small = Group(self, small)
        self._large = Group(self, large) if large else self._small
        self._waiting = Group(self, waiting) if waiting else self._large

    def group(self, lane: Lane, size: int) -> Group:
        """Return the connections for a request of `size` bytes."""
        if lane is Lane.SMALL and size <= LARGE_BYTES:
            return self._small
        return self._waiting if lane is Lane.WAITING else self._large

    @property
    def lines(self) -> list[Line]:
        """The lines of all lanes."""
        return [line for group in {self._small, self._large, self._waiting} for line in group.lines]

    def drop(self, connection: Connection) -> None:
        """Remove a connection, so that no further request takes it."""
        for line in self.lines:
            if line.connection is connection:
                line.connection = None


class Group:
    """The lines of one lane. `limit` bounds their number."""

    def __init__(self, lanes: Lanes, limit: int) -> None:
        self.lines: list[Line] = []
        self.turns = asyncio.Semaphore(limit)
        """The permits of requests, such as WAIT, that block their connection: one for each connection.

        Two of them are never queued on the same connection.
        """
        self._lanes = lanes
        self._limit = limit

    def pick(self) -> Line:
        """Return a line for a request: an idle line, else a new one up to the limit, else the least loaded one."""
        lines = self.lines
        if self._limit == 1 and lines:
            return lines[0]
        best = min(lines, key=_load, default=None)
        if best is None or (best.load and len(lines) < self._limit):
            best = Line(self._lanes)
            lines.append(best)
        return best

    async def wait_for_turn(self, deadline: float) -> None:
        """Acquire a turn, or raise OutOfTime at the deadline."""
        try:
            async with asyncio.timeout_at(deadline):
                await self.turns.acquire()
        except TimeoutError:
            raise OutOfTime(f"{self._lanes.address}: all {self._limit} connections for waits were in use") from None


class Line:
    """One connection of a group. It is opened at the first request, and again after it was lost."""

    __slots__ = ("_lanes", "_opening", "connection", "users")

    def __init__(self, lanes: Lanes) -> None:
        self.connection: Connection | None = None
        self.users = 0
        """The number of requests that took this line and have not ended."""
        self._lanes = lanes
        self._opening: asyncio.Future[Connection] | None = None

    @property
    def load(self) -> int:
        """The number of requests that wait for replies on this line, those of cancelled callers included."""
        return max(self.users, self.connection.in_flight) if self.connection else self.users

    @property
    def is_idle(self) -> bool:
        """Whether the connection had no traffic for `idle_limit` seconds, so that it must be probed."""
        connection, limit = self.connection, self._lanes.idle_limit
        if not limit or connection is None or connection.in_flight:
            return False
        return asyncio.get_running_loop().time() - connection.used_at >= limit

    async def opened(self, deadline: float) -> Connection:
        """Return the connection of this line, opened if necessary. Concurrent callers wait for the same attempt.

        Raises:
            OutOfTime: it was not ready at the deadline.
            redis.exceptions.RedisError: any error of `Dialer.open`.
        """
        if self.is_idle and await self._answers(deadline):
            assert self.connection is not None
            return self.connection
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._lanes.open())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait([opening])
        except TimeoutError:
            raise OutOfTime(
                f"no connection to {self._lanes.address} was ready before the deadline of the call"
            ) from None
        if opening.cancelled():
            raise NotSent(f"the connections to {self._lanes.address} were closed")
        return opening.result()

    def _opened(self, opening: asyncio.Future[Connection]) -> None:
        self._opening = None
        if opening.cancelled() or opening.exception() is not None:
            return
        connection = opening.result()
        if connection.is_usable:
            self.connection = connection

    async def _answers(self, deadline: float) -> bool:
        """Probe an idle connection, which a firewall may have dropped silently; return whether it is alive."""
        assert self.connection is not None
        try:
            await self.connection.ask(PING, 1, deadline, self._lanes.reply_timeout)
        except (ConnectionLost, NoReply, NotSent):
            return False
        return self.connection is not None

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self.connection is not None:
            self.connection.close()


def _load(line: Line) -> int:
    return line.load


def _shares(limit: int) -> tuple[int, int, int]:
    """Return the numbers of connections for small, large and waiting requests. With 0, a lane shares another's."""
    if limit < 3:
        return 1, limit - 1, 0
    large = min(LARGE_CONNECTIONS, (limit - 1) // 2)
    return 1, large, limit - 1 - large
