"""The border between the store and its servers: one budget of time for a call, retries, and the error of a failed call.

A retry is safe. A commit is recognised by its receipt, and every other write that is done twice in a row leaves what it
leaves once. Only where another client writes between the two does a repeated meta record or tombstone win over it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from math import inf
from typing import Any, Final, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import redis.asyncio as redis
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from lash_redis.errors import BackendError, OutcomeUnknown, StoreError
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.transport import full_server, remedies
from lash_redis.transport.failures import FAILURES, Earlier, OutOfTime, is_out_of_memory, is_transient
from lash_redis.transport.node import Node
from lash_redis.transport.request import Command, Lane, Request
from lash_redis.transport.topology import Topology

Result = TypeVar("Result")

SHORTEST_ATTEMPT: Final = 0.02
"""Seconds of a call's time below which no further attempt is made."""


@runtime_checkable
class Connector(Protocol):
    """How a process gets to its servers."""

    @property
    def resends(self) -> bool:
        """Whether a given client sends a command again by itself, so that its last error does not tell all."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether it leads to a cluster, whose channels belong to a slot as keys do."""
        ...

    async def open(self) -> Topology:
        """A topology for this process and event loop. The backend closes it."""
        ...

    async def close(self) -> None:
        """End what all processes and event loops share."""
        ...


class Backend:
    """Sends requests, within one budget of time for each call.

    A forked child and another event loop get a topology of their own, because a reply on a shared connection would go
    to the process that reads first. What an event loop has ends with it.
    """

    def __init__(self, connector: Connector, options: StoreOptions) -> None:
        self._options = options
        self._connector = connector

    async def send(
        self, request: Request, *, writes: bool = False, earlier: Earlier | None = None, at: Node | None = None
    ) -> list[Any]:
        """The replies to a request from the server that owns its key, or from the server `at`.

        `writes`: whether a lost reply leaves it unknown what is stored. `earlier` learns whether attempts before the
        one that was answered may have been applied.

        Raises:
            OutcomeUnknown: it may have been applied: a reply was lost, or a script failed after its first write.
            BackendError: the server refused, or no attempt reached it.
        """
        topology = await self.topology()
        if request.deadline == inf:
            request.deadline = self._deadline(topology) + request.waits
        try:
            return await topology.send(request, at)
        except FAILURES as error:
            if request.atomic and is_out_of_memory(error):
                (reply,) = await self.send(full_server.in_script(request))
                return full_server.shaped(request.commands, reply)
            attempts = _Attempts(request, error, writes, self._connector.resends, earlier or Earlier())
        return await self._send_again(lambda: topology.send(request, at), attempts)

    async def everywhere(self, *command: Any) -> list[Any]:
        """The replies of every server, the primaries first, to a command without a key that may be repeated."""
        return await self._at_each([command], replicas=True)

    async def preload(self) -> None:
        """Load every script into every server, replicas among them: one of those may be the primary tomorrow."""
        await self._at_each([("SCRIPT", "LOAD", script.text) for script in scripts.every()], replicas=True)

    async def scan(self, pattern: str, count: int) -> AsyncIterator[list[bytes]]:
        """Every key that matches, in batches; a key may come twice. For maintenance only.

        While slots move from one node of a cluster to another, a key that moves may be missed.
        """
        for node in await self._nodes(replicas=False):
            cursor = b"0"
            while True:
                command = "SCAN", cursor, "MATCH", pattern, "COUNT", count
                ((cursor, keys),) = await self.send(Request([command], lane=Lane.LARGE), at=node)
                yield keys
                if int(cursor) == 0:
                    break

    async def listener(self, key: str, *, again: bool = False) -> redis.Redis:
        """A client of redis-py for the one server that publishes on the channel named like `key`.

        `again`: discover the topology first, because the last listener failed.
        """
        topology = await self.topology()
        if again:
            topology.invalidate()
        return (await topology.node(key, self._deadline(topology))).listener

    def _deadline(self, topology: Topology) -> float:
        return asyncio.get_running_loop().time() + (self._options.call_timeout or topology.call_timeout)

    async def _at_each(self, commands: Sequence[Command], *, replicas: bool) -> list[Any]:
        nodes = await self._nodes(replicas=replicas)
        found = await asyncio.gather(
            *(self.send(Request(commands, lane=Lane.LARGE), at=node) for node in nodes), return_exceptions=True
        )
        replies: list[Any] = []
        for each in found:
            if isinstance(each, BaseException):
                raise each
            replies += each
        return replies

    async def _nodes(self, *, replicas: bool) -> list[Node]:
        topology = await self.topology()
        request = Request([("CLUSTER NODES",)], deadline=self._deadline(topology))

        async def discovered() -> list[Node]:
            return await topology.nodes(request.deadline, replicas=replicas)

        try:
            return await discovered()
        except FAILURES as error:
            attempts = _Attempts(request, error, False, False, Earlier())
        return await self._send_again(discovered, attempts)

    async def _send_again(self, attempt: Callable[[], Awaitable[Result]], attempts: _Attempts) -> Result:
        """The result of the first attempt that succeeds after one that failed; else the error of the whole call."""
        retrying = AsyncRetrying(
            stop=attempts.is_over,
            wait=attempts.pause(self._options.retry_max_delay),
            retry=retry_if_exception(attempts.is_worth_another),
            reraise=True,
        )

        async def once() -> Result:
            try:
                attempts.raise_first()
                return await attempt()
            except FAILURES as error:
                attempts.note(error)
                raise

        try:
            return await retrying(once)
        except FAILURES:
            raise attempts.error() from attempts.told

    # Processes and event loops

    async def topology(self) -> Topology:
        """Where requests of this process and event loop go; opened by the first of them."""
        places = _places_of_the_running_loop()
        place = places.get(self)
        if place is None or place.process != os.getpid():
            place = places[self] = _Place()
        if place.is_closed:
            raise BackendError("this cache was closed")
        if place.topology is None:
            async with place.opening:
                if place.topology is None:
                    place.topology = await self._connector.open()
        return place.topology

    async def close(self) -> None:
        """Close what this process and event loop opened, and what all of them share. From here nothing is sent."""
        places = _places_of_the_running_loop()
        place = places.get(self)
        places[self] = _Place(is_closed=True)
        try:
            if place is not None and place.topology is not None and place.process == os.getpid():
                await place.topology.close()
        finally:
            await self._connector.close()


class _Attempts:
    """The failed attempts of one call, and what they come to."""

    def __init__(self, request: Request, first: BaseException, writes: bool, resends: bool, earlier: Earlier) -> None:
        self.told = first
        """The error that says most: not one that says only that time was up."""
        self._first: BaseException | None = first
        self._request = request
        self._asked = request.asked
        self._writes = writes
        self._resends = resends
        self._earlier = earlier
        self._clock = asyncio.get_running_loop().time

    def raise_first(self) -> None:
        """Raise the error of the attempt that was made before there was a reason to count them."""
        first, self._first = self._first, None
        if first is not None:
            raise first

    def note(self, error: BaseException) -> None:
        self._earlier.note(error, self._request.script, resends=self._resends)
        if not isinstance(error, OutOfTime):
            self.told, self._asked = error, self._request.asked

    def is_worth_another(self, error: BaseException) -> bool:
        return is_transient(error) and not self._request.replica

    @property
    def _left(self) -> float:
        """Seconds of the call's time in which an attempt can still begin."""
        return self._request.deadline - self._clock() - SHORTEST_ATTEMPT

    def is_over(self, _: RetryCallState) -> bool:
        return self._left <= 0

    def pause(self, longest: float) -> Callable[[RetryCallState], float]:
        """Pauses that grow exponentially from 50 ms, with full jitter, and end before the call's time."""
        grown = wait_random_exponential(multiplier=0.05, max=longest)
        return lambda state: min(grown(state), max(0.0, self._left))

    def error(self) -> StoreError:
        """The error that the caller gets."""
        message = remedies.message(self.told, self._request.name, self._asked)
        return OutcomeUnknown(message) if self._writes and self._earlier.maybe_applied else BackendError(message)


class _Place:
    """What one process has in one event loop."""

    def __init__(self, *, is_closed: bool = False) -> None:
        self.is_closed = is_closed
        self.process = os.getpid()
        self.opening = asyncio.Lock()
        self.topology: Topology | None = None

    def __del__(self) -> None:
        """Close the connections of a cache that was dropped without being closed; a forked child leaves them alone."""
        if self.topology is not None and self.process == os.getpid():
            self.topology.abandon()


_PLACES: Final = "_lash_redis_places"


def _places_of_the_running_loop() -> WeakKeyDictionary[Backend, _Place]:
    """Kept by the loop: kept anywhere else, connections would keep the loop alive, because they refer to it."""
    loop = asyncio.get_running_loop()
    places: WeakKeyDictionary[Backend, _Place] | None = getattr(loop, _PLACES, None)
    if places is None:
        places = WeakKeyDictionary()
        setattr(loop, _PLACES, places)
    return places
