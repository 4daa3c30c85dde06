"""A server that sends the bytes that a test chooses, and a transport without a network.

`Scripted` greets each connection as Redis does. Every other command goes to the test, unless `answer` has a reply.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pytest

from lash_redis import RuntimeCommit, SessionCache
from lash_redis.transport.backend import Backend
from lash_redis.transport.connection import Connection
from lash_redis.transport.request import Request
from tests.support.proxy import CHUNK, Action, Command, _values, _words
from tests.support.servers import RunningServers, Server, every, require

PATIENCE = 30.0
"""Seconds until a test that waits for an event fails. Far more than any test needs."""

OK = b"+OK\r\n"
GREETING: Mapping[str, bytes] = {
    "AUTH": OK,
    "CLIENT": OK,
    "HELLO": b"%1\r\n$5\r\nproto\r\n:3\r\n",
    "READONLY": OK,
    "SELECT": OK,
}

Answer = Callable[[Command], bytes | None]


def bulk(data: bytes) -> bytes:
    """A bulk string as a server sends it."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def echoed(command: Command) -> bytes | None:
    """The reply to ECHO; no other command has one."""
    return bulk(command[1]) if command[0] == b"ECHO" else None


def name_of(command: Command) -> str:
    return command[0].decode().upper()


class Link:
    """A connection that a client opened to a `Scripted`."""

    def __init__(self, server: Scripted, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received: list[Command] = []
        """Every command, the greeting included."""
        self.closed = asyncio.Event()
        """Set when the client has ended the connection."""
        self._server = server
        self._reader, self._writer = reader, writer
        self._unanswered: asyncio.Queue[Command] = asyncio.Queue()

    async def command(self) -> Command:
        """The next command that neither the greeting nor `answer` replied to."""
        async with asyncio.timeout(PATIENCE):
            return await self._unanswered.get()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def send_bytewise(self, data: bytes) -> None:
        """Send byte by byte; the event loop may read each of them before the next one is sent."""
        for at in range(len(data)):
            self._writer.write(data[at : at + 1])
            await self._writer.drain()
            for _ in range(2):
                await asyncio.sleep(0)

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.closed.wait()

    async def serve(self) -> None:
        buffer = bytearray()
        try:
            while chunk := await self._reader.read(CHUNK):
                for request in _values(buffer, chunk):
                    self._take(_words(request))
        except (OSError, ValueError):  # a reset, or bytes that are no command
            pass
        finally:
            self.closed.set()
            self._writer.close()

    def _take(self, command: Command) -> None:
        self.received.append(command)
        reply = self._server.greet(command)
        if reply is None:
            reply = self._server.answer(command)
        if reply is None:
            self._unanswered.put_nowait(command)
        else:
            self.send(reply)


def greet(command: Command) -> bytes | None:
    """The reply to a command with which redis-py begins a connection."""
    return GREETING.get(name_of(command))


class Scripted:
    """Listens on a free port of 127.0.0.1 inside `async with`; leaving ends the listener and every connection."""

    def __init__(
        self,
        answer: Answer = lambda command: None,
        *,
        greet: Answer = greet,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.greet = greet
        self.links: list[Link] = []
        self.most_at_once = 0
        self._context = context
        self._arrived: asyncio.Queue[Link] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"redis{'s' if self._context else ''}://{self.address}"

    async def link(self) -> Link:
        """The next connection that a client opened."""
        async with asyncio.timeout(PATIENCE):
            return await self._arrived.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(self, reader, writer)
        self.links.append(link)
        self._arrived.put_nowait(link)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        await link.serve()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self._port: int = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._listener.close()
        for link in self.links:
            link.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._tasks)
        await self._listener.wait_closed()


class Wire(asyncio.Transport):
    """A transport without a network: it keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_aborted = False
        self._protocol: Any = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        if not self.is_aborted:
            self.is_aborted = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


def connected() -> tuple[Connection, Wire]:
    """A connection that takes requests, and the transport it writes to."""
    connection, wire = Connection("there", lambda _: None), Wire()
    connection.take_over(wire, None)
    return connection, wire


def backend_of(cache: SessionCache) -> Backend:
    return cache.shared._backend


def limit_calls(cache: SessionCache, seconds: float | None) -> None:
    """Set the `call_timeout` of a cache that is in use, so that only calls that must time out are short."""
    backend = backend_of(cache)
    backend._options = replace(backend._options, call_timeout=seconds)


def echo(token: bytes, **more: Any) -> Request:
    """A request (ECHO) whose reply is its argument."""
    return Request([("ECHO", token)], key=token, **more)


def sending(cache: SessionCache, commits: Sequence[RuntimeCommit], **more: Any) -> list[asyncio.Task[Any]]:
    """Start a task for each commit. No task reports an unretrieved error if the test fails first."""
    tasks = [asyncio.create_task(cache.session(each.session_id).commit_runtime_state(each, **more)) for each in commits]
    for task in tasks:
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return tasks


def once_sent(
    count: int, choose: Callable[[Command], Action], name: str = "EVALSHA"
) -> tuple[Callable[[Command], Action], asyncio.Event]:
    """`choose` for a proxy, and an event that is set when `count` commands of this name have arrived there."""
    are_sent, seen = asyncio.Event(), 0

    def counted(command: Command) -> Action:
        nonlocal seen
        seen += name_of(command) == name
        if seen == count:
            are_sent.set()
        return choose(command)

    return counted, are_sent


def newest_server(request: pytest.FixtureRequest, running: RunningServers) -> Server:
    """One empty server, the newest Redis that was found, for tests that do not depend on the server."""
    kind = max(
        (kind for kind in every() if kind.real and not kind.group),
        key=lambda kind: (not kind.missing, kind.product == "Redis", kind.version),
    )
    request.node.user_properties.append(("server", kind.name))
    require(kind)
    return running.emptied(kind)
