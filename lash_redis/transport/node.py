"""One server: exchange requests for replies, and remember which scripts the server has."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import redis.asyncio as redis
from redis import exceptions

from lash_redis.protocol.scripts import Script
from lash_redis.transport import remedies
from lash_redis.transport.connection import Connection
from lash_redis.transport.dialer import Dialer, Where, address_of
from lash_redis.transport.failures import NotSent, OutOfTime, first_error, is_no_answer
from lash_redis.transport.lanes import Group, Lanes
from lash_redis.transport.request import Command, Request
from lash_redis.transport.turns import in_turns
from lash_redis.transport.wire import is_long, pack, pack_in_steps


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """What a watch uses of a server."""

    client: redis.Redis
    """A client of redis-py, whose pool the watch takes a connection of."""
    turn: Callable[[], AbstractAsyncContextManager[None]]
    """Makes the context manager in which the watch uses its connection. For the errors see `Connections.for_watch`."""


class Node(ABC):
    """One server, with connections of this package or of a given client."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._known_scripts: set[str] = set()
        self._introducing: dict[str, asyncio.Future[Exception | None]] = {}
        """The SHA-1 of each script whose first call is in flight. The result is its error if there was no answer."""

    @abstractmethod
    async def exchange(self, request: Request, *, asking: bool = False) -> list[Any]:
        """Send a request and return its replies, in one round trip.

        WRONGTYPE errors, and errors of commands after a script, are returned among the replies. With `asking`, ASKING
        is sent first, so that a server that imports the key's slot serves the request.

        Raises:
            redis.exceptions.RedisError: any other error; `failures` classifies it.
        """

    @property
    @abstractmethod
    def listener(self) -> Listener:
        """The client of redis-py for the watches of this server; always the same object."""

    @property
    def is_busy(self) -> bool:
        """Whether requests are in flight or wait for a connection."""
        return False

    def explained(self, error: BaseException) -> str:
        """Return the text of an error of a request to this server, with its address and the remedy."""
        return remedies.explained(error, self.address)

    @abstractmethod
    async def close(self) -> None:
        """Close the connections that this package opened."""

    @abstractmethod
    def abandon(self) -> None:
        """Close the connections without waiting, for a cache that was dropped without being closed."""

    # Scripts

    def knows(self, script: Script) -> bool:
        """Whether the server is known to have the script."""
        return script.sha in self._known_scripts

    def forget_scripts(self) -> None:
        """Forget which scripts the server has, after a lost connection or a NOSCRIPT reply."""
        self._known_scripts.clear()

    async def introduce(self, request: Request, *, asking: bool, with_text: bool) -> list[Any]:
        """Exchange a request whose script the server may not have. Only one such request is in flight at a time.

        Other requests with the same script wait for its reply and then send the SHA-1. Otherwise each concurrent commit
        would be refused with NOSCRIPT, and send all of its bytes again. If the server does not answer, the others are
        not sent to it one after another: they fail too, and their next attempt may choose another server. A request
        that waits for replicas or the disk makes no other request wait. With `with_text`, the server has replied that
        it does not have the script.

        Raises:
            NotSent: the request waited for one that the server did not answer.
            redis.exceptions.RedisError: as `exchange`.
        """
        script = request.script
        assert script is not None
        while (leader := self._introducing.get(script.sha)) is not None:
            try:
                async with asyncio.timeout_at(request.deadline):
                    failure = await asyncio.shield(leader)
            except TimeoutError:
                raise OutOfTime(f"{self.address} did not reply to the first call of the script in time") from None
            if failure is not None:
                raise NotSent(str(failure))
            if script.sha in self._known_scripts:
                return await self.exchange(request, asking=asking)
        introduced: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        if not request.waits:
            self._introducing[script.sha] = introduced
        failure = None
        try:
            replies = await self._run_with_text(request, asking=asking, with_text=with_text)
            self._known_scripts.add(script.sha)
            return replies
        except exceptions.RedisError as error:
            failure = error if is_no_answer(error) else None
            raise
        finally:
            if self._introducing.get(script.sha) is introduced:
                del self._introducing[script.sha]
            introduced.set_result(failure)

    async def _run_with_text(self, request: Request, *, asking: bool, with_text: bool) -> list[Any]:
        """Run a script by its SHA-1, and send its text if that is necessary and allowed."""
        if not (with_text and request.may_send_text):
            try:
                return await self.exchange(request, asking=asking)
            except exceptions.NoScriptError:
                if not request.may_send_text:
                    raise
        return await self.exchange(request.with_text(), asking=asking)


class OwnNode(Node):
    """A server to which this package opens connections. With `replica`, a replica of a cluster answers reads."""

    def __init__(self, dialer: Dialer, where: Where, *, replica: bool = False) -> None:
        super().__init__(address_of(where))
        self.host: str = where.get("host", "")
        self._dialer = dialer
        self._where = where
        self._replica = replica
        self._listener: Listener | None = None
        self._lanes = Lanes(
            self.address,
            self._open,
            limit=dialer.limit,
            idle_limit=dialer.idle_limit,
            reply_timeout=dialer.reply_timeout,
        )
        self._retired: set[Connection] = set()
        self._losses = 0
        """The number of connections that were lost or could not be opened."""
        self._is_closed = False

    async def exchange(self, request: Request, *, asking: bool = False) -> list[Any]:
        if asking and request.script is None and len(request.commands) > 1:
            # While a slot moves, the importing node reports keys that have not arrived yet as absent. It refuses a
            # transaction until all of its keys have arrived.
            request = replace(request, atomic=True)
        commands = _framed(request, asking=asking) if asking or request.atomic else request.commands
        wire = await in_turns(pack_in_steps(commands)) if is_long(commands) else pack(commands)
        group = self._lanes.group(request.lane, len(wire))
        if request.waits:
            await self._wait_for_turn(group, request.deadline)
        line = group.pick()
        line.users += 1
        try:
            connection = line.connection
            if connection is None or line.is_idle:
                connection = await line.opened(request.deadline)
            patience = self._dialer.reply_timeout + request.waits
            replies = await connection.ask(wire, len(commands), request.deadline, patience)
        finally:
            line.users -= 1
            if request.waits:
                group.turns.release()
        if asking:
            del replies[0]
        if request.script is None:
            return self._shaped(request, replies)
        if isinstance(replies[0], Exception):
            raise replies[0]
        return replies

    async def _wait_for_turn(self, group: Group, deadline: float) -> None:
        """Acquire a turn of a lane of requests that wait, such as WAIT, unless the server fails meanwhile.

        Raises:
            NotSent: a connection was lost meanwhile. The next attempt may choose another server.
            OutOfTime: there was no turn before the deadline.
        """
        losses = self._losses
        await group.wait_for_turn(deadline)
        if self._losses != losses:
            group.turns.release()
            raise NotSent(f"a connection to {self.address} was lost while the request waited for its turn")

    def _shaped(self, request: Request, replies: list[Any]) -> list[Any]:
        """Convert the replies of a read as redis-py does, to the same values for both versions of RESP."""
        if request.atomic:
            *queued, executed = replies
            if not isinstance(executed, list):
                raise next(each for each in (*queued, executed) if isinstance(each, Exception))
            replies = executed
        error = first_error(replies)
        if error is not None:
            raise error
        shapes = self._dialer.shapes
        return [
            shapes[command[0]](reply) if command[0] in shapes and not isinstance(reply, Exception) else reply
            for command, reply in zip(request.commands, replies, strict=True)
        ]

    # Connections

    async def _open(self) -> Connection:
        if self._is_closed:
            raise NotSent(f"the connections to {self.address} were closed")
        try:
            return await self._dialer.open(self._where, self._retire, replica=self._replica)
        except exceptions.RedisError:
            self._losses += 1
            raise

    def _retire(self, connection: Connection) -> None:
        """Send no further request on a connection. It closes when the requests in flight have ended."""
        self._losses += 1
        self.forget_scripts()
        self._lanes.drop(connection)
        self._retired.add(connection)
        connection.closed.add_done_callback(lambda _: self._retired.discard(connection))

    @property
    def is_busy(self) -> bool:
        return any(line.load for line in self._lanes.lines)

    @property
    def listener(self) -> Listener:
        """The listener. Its connections are additional to those of `limit`."""
        if self._listener is None:
            self._listener = Listener(self._dialer.client(**self._where), nullcontext)
        return self._listener

    def abandon(self) -> None:
        for connection in (*(line.connection for line in self._lanes.lines), *self._retired):
            if connection is not None:
                connection.abandon()

    async def close(self) -> None:
        """Close all connections. Requests in flight fail, with ConnectionLost if they were sent."""
        self._is_closed = True
        for line in self._lanes.lines:
            await line.close()
        for connection in list(self._retired):
            connection.close()
            await connection.wait_closed()
        if self._listener is not None:
            with suppress(exceptions.RedisError, OSError):  # a lost connection cannot be closed cleanly
                await self._listener.client.aclose()


def _framed(request: Request, *, asking: bool) -> Sequence[Command]:
    """Return the commands of a request with ASKING, MULTI and EXEC around them, as far as it needs them."""
    first: list[Command] = [("ASKING",)] if asking else []
    if request.atomic:
        return [*first, ("MULTI",), *request.commands, ("EXEC",)]
    return [*first, *request.commands]
