"""The connections to one server: which of them a request takes, and when they are opened.

Requests of different kinds take different connections (see `Lane`), so that a lease does not wait behind thirty
megabytes of messages, or behind a WAIT.
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
"""A request of more bytes leaves the lane of the small ones."""
LARGE_CONNECTIONS: Final = 8
"""Connections to one server for large transfers at most."""

PING: Final = pack([("PING",)])


class Lanes:
    """All connections to one server, at most `limit`.

    `open_` makes a connection. One without traffic for `idle_limit` seconds (0: never) is probed before it is used, and
    given up if it does not answer within `reply_timeout`.
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
        """Where a request of `size` bytes goes."""
        if lane is Lane.SMALL and size <= LARGE_BYTES:
            return self._small
        return self._waiting if lane is Lane.WAITING else self._large

    @property
    def lines(self) -> list[Line]:
        """The place of every connection."""
        return [line for group in {self._small, self._large, self._waiting} for line in group.lines]

    def drop(self, connection: Connection) -> None:
        """Use a connection no more."""
        for line in self.lines:
            if line.connection is connection:
                line.connection = None


class Group:
    """The lines of one lane. `limit` bounds their number."""

    def __init__(self, lanes: Lanes, limit: int) -> None:
        self.lines: list[Line] = []
        self.turns = asyncio.Semaphore(limit)
        """Held by each request that makes the server block its connection: no other request waits behind it."""
        self._lanes = lanes
        self._limit = limit

    def pick(self) -> Line:
        """An idle line; else another one, up to the limit; else the least loaded."""
        lines = self.lines
        if self._limit == 1 and lines:
            return lines[0]
        best = min(lines, key=_load, default=None)
        if best is None or (best.load and len(lines) < self._limit):
            best = Line(self._lanes)
            lines.append(best)
        return best

    async def wait_for_turn(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self.turns.acquire()
        except TimeoutError:
            raise OutOfTime(f"{self._lanes.address}: all {self._limit} connections for waits were in use") from None


class Line:
    """A place for one connection: opened when it is first needed, and again after it was lost."""

    __slots__ = ("_lanes", "_opening", "connection", "users")

    def __init__(self, lanes: Lanes) -> None:
        self.connection: Connection | None = None
        self.users = 0
        """Requests that took this line and have not ended."""
        self._lanes = lanes
        self._opening: asyncio.Future[Connection] | None = None

    @property
    def load(self) -> int:
        """Requests whose replies are to come on this line, those of cancelled callers included."""
        return max(self.users, self.connection.in_flight) if self.connection else self.users

    @property
    def is_idle(self) -> bool:
        """Whether the connection had no traffic for so long that it has to be probed."""
        connection, limit = self.connection, self._lanes.idle_limit
        if not limit or connection is None or connection.in_flight:
            return False
        return asyncio.get_running_loop().time() - connection.used_at >= limit

    async def opened(self, deadline: float) -> Connection:
        """The connection of this line. All who need it wait for one attempt to open it.

        Raises:
            OutOfTime: it was not ready at the deadline.
            redis.exceptions.RedisError: as `Dialer.open` raises it.
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
            raise OutOfTime(f"no connection to {self._lanes.address} was ready before the call's time was up") from None
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
        """Whether an idle connection is alive: a firewall may have dropped it in silence."""
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
    """How many of a node's connections are for small requests, large ones and those that wait; 0: they share."""
    if limit < 3:
        return 1, limit - 1, 0
    large = min(LARGE_CONNECTIONS, (limit - 1) // 2)
    return 1, large, limit - 1 - large
