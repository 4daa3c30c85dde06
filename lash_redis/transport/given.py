"""A server behind a client that the caller made. This package uses its methods, and never configures or closes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.connection import SSLConnection

from lash_redis.errors import InvalidRecord
from lash_redis.transport import remedies
from lash_redis.transport.dialer import address_of
from lash_redis.transport.failures import NoReply, OutOfTime, first_error, is_wrong_type
from lash_redis.transport.loop_state import state_of
from lash_redis.transport.node import Listener, Node
from lash_redis.transport.request import Request


class Connections:
    """Limits the calls and watches of the caches of one event loop to the connections of a client's pool.

    Each call in flight holds one of the `turns`, and so does each open watch. So redis-py never refuses a connection,
    unless the caller also uses the client for other commands.
    """

    def __init__(self, limit: int) -> None:
        self.turns = asyncio.Semaphore(limit)
        self._limit = limit
        self._watches = asyncio.Semaphore(max(0, limit - 1))

    @asynccontextmanager
    async def for_watch(self) -> AsyncIterator[None]:
        """Reserve a connection for a watch as long as the block runs.

        It waits while calls use all connections, and at most `CLOSING_SECONDS` until another watch ends.

        Raises:
            InvalidRecord: one more watch would leave no connection for calls. A watch makes calls, too.
        """
        if self._limit < 2:
            raise self._too_few()
        try:
            async with asyncio.timeout(CLOSING_SECONDS):
                await self._watches.acquire()
        except TimeoutError:
            raise self._too_few() from None
        try:
            async with self.turns:
                yield
        finally:
            self._watches.release()

    def _too_few(self) -> InvalidRecord:
        return InvalidRecord(
            "client.max_connections",
            f"expected at least {self._limit + 1} for another watch and the calls, got {self._limit}; make "
            "the client with more, or watch many sessions with one SessionCache.watch",
        )


CLOSING_SECONDS: Final = 2.0
"""The time in which a watch that ends gives its connection back. A new watch waits for that."""


def connections_of(client: redis.Redis) -> Connections:
    """Return the connections of a client's pool. All caches of the running event loop share them."""
    return state_of(client.connection_pool, lambda: Connections(shared_limit(client)))


def shared_limit(client: redis.Redis) -> int:
    """Return the number of connections for calls and watches. A `single_connection_client` keeps one for itself."""
    return int(client.connection_pool.max_connections) - bool(client.single_connection_client)


class GivenNode(Node):
    """A server that is reached through a client of redis-py.

    Each request in flight takes one connection of the client. Requests above its `max_connections` wait. A request
    costs as much as a method of redis-py. At the deadline, a call is cancelled and redis-py closes the connection.
    With `is_own`, the client is closed with the node.
    """

    def __init__(self, client: redis.Redis, *, address: str | None = None, is_own: bool = False) -> None:
        settings = {"host": "a given client", **client.connection_pool.connection_kwargs}
        super().__init__(address or address_of(settings))
        self._client: Any = client  # Any, because redis-py leaves execute_command untyped
        self._is_own = is_own
        connections = connections_of(client)
        self._turns = connections.turns
        self._listener = Listener(client, connections.for_watch)
        self._was_answered = False

    @property
    def listener(self) -> Listener:
        return self._listener

    def abandon(self) -> None:
        """Do nothing: redis-py closes a client that is dropped."""

    async def close(self) -> None:
        if self._is_own:
            await self._client.aclose()

    async def exchange(self, request: Request, *, asking: bool = False) -> list[Any]:
        is_sent = False
        try:
            async with asyncio.timeout_at(request.deadline), self._turns:
                is_sent = True
                replies = await self._exchange(request)
        except TimeoutError:
            error = NoReply if is_sent else OutOfTime
            raise error(f"{self.address} did not answer before the deadline of the call") from None
        self._was_answered = True
        return replies

    def explained(self, error: BaseException) -> str:
        pool = self._client.connection_pool
        return remedies.explained_of_given(
            error,
            self.address,
            database=pool.connection_kwargs.get("db") or 0,
            is_encrypted=issubclass(pool.connection_class, SSLConnection),
            was_answered=self._was_answered,
        )

    async def _exchange(self, request: Request) -> list[Any]:
        if len(request.commands) == 1:
            try:
                return [await self._client.execute_command(*request.commands[0])]
            except exceptions.ResponseError as error:
                if request.script is None and is_wrong_type(error):
                    return [error]
                raise
        async with self._client.pipeline(transaction=request.atomic) as pipeline:
            for command in request.commands:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        failure = replies[0] if request.script is not None else first_error(replies)
        if isinstance(failure, Exception):
            raise failure
        return replies
