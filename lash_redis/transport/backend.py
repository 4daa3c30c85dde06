"""The interface between the store and its servers: one time budget for a call, retries, and the error of a failed call.

A retry is safe. The server recognises a repeated commit by its receipt, and every other write is idempotent. There is
one exception: if another client writes between the two attempts, a repeated meta record or tombstone overwrites it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from math import inf
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from lash_redis.errors import BackendError, OutcomeUnknown, StoreError
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.transport import full_server, remedies
from lash_redis.transport.cleanup import clean_up
from lash_redis.transport.failures import FAILURES, Earlier, NoReply, OutOfTime, is_out_of_memory, is_transient
from lash_redis.transport.loop_state import states_of_the_running_loop
from lash_redis.transport.node import Listener, Node
from lash_redis.transport.request import Command, Lane, Request
from lash_redis.transport.topology import Topology

Result = TypeVar("Result")

SHORTEST_ATTEMPT: Final = 0.02
"""The least time, in seconds, that must be left for a further attempt."""
CLOSING: Final = "closing the connections of a cache"


@runtime_checkable
class Connector(Protocol):
    """Opens the topology of a process: by a URL, or with the settings of a given client."""

    @property
    def resends(self) -> bool:
        """Whether a given client retries a command by itself. Its last error then does not cover all attempts."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether the servers are a cluster, in which a channel belongs to a slot, as a key does."""
        ...

    async def open(self) -> Topology:
        """Make a topology for this process and event loop. The backend closes it."""
        ...

    async def close(self) -> None:
        """Close the resources that all processes and event loops share."""
        ...


class Backend:
    """Sends requests, with one time budget for each call.

    Each process and each event loop has its own topology. On a connection that a forked child shares, a reply would
    reach the process that reads first. A topology ends with its event loop.
    """

    def __init__(self, connector: Connector, options: StoreOptions) -> None:
        self._options = options
        self._connector = connector

    async def send(
        self, request: Request, *, writes: bool = False, earlier: Earlier | None = None, at: Node | None = None
    ) -> list[Any]:
        """Send a request to the server that owns its key, or to the server `at`, and return the replies.

        `writes` means that the outcome is unknown if a reply is lost. `earlier` records whether an attempt that failed
        may have been applied.

        Raises:
            OutcomeUnknown: the request may have been applied: a reply was lost, or a script failed after a write.
            BackendError: the server refused the request, or no attempt succeeded; no write was applied.
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
        """Send an idempotent command without a key to every server; return the replies, those of primaries first."""
        return await self._at_each([command], replicas=True)

    async def preload(self) -> None:
        """Load every script into every server, replicas included, because a replica may be promoted."""
        await self._at_each([("SCRIPT", "LOAD", script.text) for script in scripts.every()], replicas=True)

    async def scan(self, pattern: str, count: int) -> AsyncIterator[list[bytes]]:
        """Yield every key that matches, in batches. A key may occur twice. For maintenance only.

        While a slot moves from one node of a cluster to another, its keys may be missed.
        """
        for node in await self._nodes(replicas=False):
            cursor = b"0"
            while True:
                command = "SCAN", cursor, "MATCH", pattern, "COUNT", count
                ((cursor, keys),) = await self.send(Request([command], lane=Lane.LARGE), at=node)
                yield keys
                if int(cursor) == 0:
                    break

    async def listener(self, key: str, *, again: bool = False) -> Listener:
        """Return what a watch uses of the server that owns `key` and the channel of the same name.

        `again` discovers the topology first, because the last listener failed.
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
        """Retry after a failed attempt; return the first result, or raise the error of the whole call."""
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
            raise attempts.error() from attempts.cause

    # Processes and event loops

    async def topology(self) -> Topology:
        """Return the topology of this process and event loop. The first request opens it."""
        place = self._place()
        if place.topology is None and not place.is_closed:
            async with place.opening:
                if place.topology is None and not place.is_closed:
                    place.topology = await self._connector.open()
                    if place.is_closed:  # by another task, which could not close what was not open yet
                        await clean_up(self._close, CLOSING)
        if place.is_closed or place.topology is None:
            raise BackendError("this cache was closed")
        return place.topology

    def _place(self) -> _Place:
        places = states_of_the_running_loop()
        place: _Place | None = places.get(self)
        if place is None or place.process != os.getpid():
            place = places[self] = _Place()
        return place

    async def close(self, *, after: BaseException | None = None) -> None:
        """Close the topology of this process and event loop, and what all of them share. Later requests fail.

        It runs to its end even if the caller is cancelled. For `after` see `clean_up`.
        """
        self._place().is_closed = True
        await clean_up(self._close, CLOSING, after=after)

    async def leave(self) -> None:
        """Close the topology of this process and event loop, at interpreter exit. Later requests in this loop fail.

        What all processes and event loops share, such as an embedded server, ends by itself at exit.
        """
        place = self._place()
        place.is_closed = True
        if place.topology is not None:
            await place.topology.close()

    async def _close(self) -> None:
        place = self._place()
        try:
            if place.topology is not None:
                await place.topology.close()
        finally:
            await self._connector.close()
        place.topology = None


class _Attempts:
    """The failed attempts of one call, and the error that results from them."""

    def __init__(self, request: Request, first: BaseException, writes: bool, resends: bool, earlier: Earlier) -> None:
        self.cause = first
        """The error that the caller gets: the last one that names a cause other than the deadline."""
        self._first: BaseException | None = first
        self._request = request
        self._asked = request.asked
        self._writes = writes
        self._resends = resends
        self._earlier = earlier
        self._clock = asyncio.get_running_loop().time

    def raise_first(self) -> None:
        """Raise the error of the first attempt, once. That attempt was made before this object existed."""
        first, self._first = self._first, None
        if first is not None:
            raise first

    def note(self, error: BaseException) -> None:
        was_unknown = self._earlier.maybe_applied
        self._earlier.note(error, self._request.script, resends=self._resends)
        if not self._names_only_the_deadline(error, was_unknown=was_unknown):
            self.cause, self._asked = error, self._request.asked

    def _names_only_the_deadline(self, error: BaseException, *, was_unknown: bool) -> bool:
        """Whether an error reports only that the deadline passed, so that an earlier error names the cause better.

        The first lost reply of a write is the cause of its unknown outcome, so it counts as a cause.
        """
        if isinstance(error, NoReply):
            return (was_unknown or not self._writes) and self._left <= 0
        return isinstance(error, OutOfTime)

    def is_worth_another(self, error: BaseException) -> bool:
        return is_transient(error) and not self._request.replica

    @property
    def _left(self) -> float:
        """The time, in seconds, in which a further attempt may begin."""
        return self._request.deadline - self._clock() - SHORTEST_ATTEMPT

    def is_over(self, _: RetryCallState) -> bool:
        return self._left <= 0

    def pause(self, longest: float) -> Callable[[RetryCallState], float]:
        """Return pauses that grow exponentially from 50 ms, with full jitter, and end before the deadline."""
        grown = wait_random_exponential(multiplier=0.05, max=longest)
        return lambda state: min(grown(state), max(0.0, self._left))

    def error(self) -> StoreError:
        """Return the error of the call: `OutcomeUnknown` if an attempt may have written, else `BackendError`."""
        message = remedies.message(self.cause, self._request.name, self._asked)
        return OutcomeUnknown(message) if self._writes and self._earlier.maybe_applied else BackendError(message)


class _Place:
    """The topology of one process in one event loop."""

    def __init__(self) -> None:
        self.is_closed = False
        self.process = os.getpid()
        self.opening = asyncio.Lock()
        self.topology: Topology | None = None

    def __del__(self) -> None:
        """Close the connections of a cache that was dropped without being closed; not in a forked child."""
        if self.topology is not None and self.process == os.getpid():
            self.topology.abandon()
