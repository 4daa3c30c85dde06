"""A loopback TCP proxy that counts what a client sends to a Redis server, and breaks connections at a chosen command.

It counts:

command     one RESP request, complete; the handshake of a new connection included.
round trip  from the first command that a client sends with no request in flight, to the reply after which none is in
            flight. A pipeline or a transaction is one round trip. A reply that was not delivered completes none.
bytes       of complete requests passed to the server, and of replies (and pushes) delivered to the client.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

Command = list[bytes]

CHUNK = 256 * 1024
MAX_VALUE = 64 * 1024 * 1024
"""Bytes of one request or reply; a connection that exceeds it is closed, and the proxy reports it when it is left."""
MAX_LOG = 10_000


class Action(Enum):
    """What the proxy does with one command."""

    PASS = auto()
    CUT_BEFORE = auto()
    """The command is not passed on. Earlier commands get their replies, then the connection ends."""
    DROP_REPLY = auto()
    """The server executes the command and what was sent with it. The connection ends before its reply.

    In a transaction, choose EXEC."""
    HOLD_REPLY = auto()
    """The reply, and every later one of the connection, waits for `Proxy.release`."""
    HALF_REPLY = auto()
    """Half of the reply is delivered. On `Proxy.release` the connection ends without the rest."""
    HALF_REQUEST = auto()
    """Half of the command is passed on. Earlier commands get their replies, then the connection ends."""


@dataclass(frozen=True)
class Fault:
    """An action with its numbers."""

    action: Action
    seconds: float | None = None
    """How long HOLD_REPLY and HALF_REPLY wait; None until `Proxy.release`."""
    part: float = 0.5
    """The part of the bytes that HALF_REPLY delivers or HALF_REQUEST passes on."""


def on(action: Action, name: str, nth: int = 1) -> Callable[[Command], Action]:
    """Apply `action` to the `nth` command (from 1) called `name`. EVALSHA and EVAL are different names."""
    seen = 0

    def choose(command: Command) -> Action:
        nonlocal seen
        if command[0].upper() != name.upper().encode():
            return Action.PASS
        seen += 1
        return action if seen == nth else Action.PASS

    return choose


SETTING_UP = (b"HELLO", b"CLIENT", b"AUTH")
"""Commands of a client that prepare a connection."""


def nth_of_all(action: Action, nth: int) -> Callable[[Command], Action]:
    """Apply `action` to the nth command (from 1), not counting those that prepare a connection."""
    left = nth

    def choose(command: Command) -> Action:
        nonlocal left
        if command[0].upper() in SETTING_UP:
            return Action.PASS
        left -= 1
        return action if left == 0 else Action.PASS

    return choose


class Death:
    """From the nth command on, a proxy passes nothing on. That command is executed if the action is DROP_REPLY."""

    def __init__(self, action: Action, nth: int) -> None:
        self.action = action
        self.left = nth

    def __call__(self, command: Command) -> Action:
        if command[0].upper() in SETTING_UP:
            return Action.PASS
        self.left -= 1
        if self.left > 0:
            return Action.PASS
        return self.action if self.left == 0 else Action.CUT_BEFORE


@dataclass
class Traffic:
    """Traffic, counted as the module describes. `log` keeps the last 10,000 commands."""

    commands: int = 0
    round_trips: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    log: deque[Command] = field(default_factory=lambda: deque(maxlen=MAX_LOG), repr=False)

    def names(self) -> list[str]:
        """The commands' names in order, in capitals."""
        return [command[0].decode().upper() for command in self.log]


class Proxy:
    """Listens on a free port of 127.0.0.1 inside `async with`; leaving ends every connection and the listener.

    `on_command` is called once for each command, in order. An exception from it ends the connection, and is raised
    again when the proxy is left. Without `counts`, the traffic is not counted, so that memory does not grow.
    """

    def __init__(self, upstream: str, *, counts: bool = True) -> None:
        self._upstream = urlsplit(upstream)
        self._counts = counts
        self._listener: socket.socket | None = None
        self._reservation: socket.socket | None = None
        """A socket that is bound to the port and never listens, so that no other process gets the port meanwhile."""
        self._port = 0
        self._links: set[asyncio.Task[None]] = set()
        self._faults: list[Exception] = []
        self._measuring: list[Traffic] = []
        self._released = asyncio.Event()
        self._held = asyncio.Event()
        self.on_command: Callable[[Command], Action | Fault] = lambda command: Action.PASS
        self.connections: list[Traffic] = []
        """The traffic of each connection, in order of arrival."""
        self.most_at_once = 0
        """The most connections that were open at the same time."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    @contextmanager
    def measure(self) -> Iterator[Traffic]:
        """The traffic of all connections while the block runs."""
        traffic = Traffic()
        self._measuring.append(traffic)
        try:
            yield traffic
        finally:
            self._measuring = [other for other in self._measuring if other is not traffic]

    def release(self) -> None:
        """Deliver every held reply."""
        self._released.set()
        self._released, self._held = asyncio.Event(), asyncio.Event()

    async def holding(self) -> None:
        """Return when a reply is held: the server has executed its command."""
        await self._held.wait()

    async def lead_to(self, upstream: str) -> None:
        """End every open connection; new connections lead to another server."""
        self._upstream = urlsplit(upstream)
        await self.sever()

    async def _hold(self, seconds: float | None) -> None:
        self._held.set()
        if seconds is None:
            await self._released.wait()
        else:
            await asyncio.sleep(seconds)

    async def accept(self) -> None:
        """Accept connections, on the same port as before."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._take)

    async def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED) until `accept`; open ones continue."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def sever(self) -> None:
        """End every open connection."""
        links = list(self._links)
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links)

    async def __aenter__(self) -> Self:
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the listener may share the port
        self._reservation.bind(("127.0.0.1", 0))
        self._port = self._reservation.getsockname()[1]
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.refuse()
        await self.sever()
        if self._reservation is not None:
            self._reservation.close()
        if self._faults and error is None:
            raise self._faults[0]

    def _take(self) -> None:
        """Accept one connection. An asyncio server that is closed at this moment would leave it open."""
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._links.add(task)
        self.most_at_once = max(self.most_at_once, len(self._links))
        task.add_done_callback(self._links.discard)
        task.add_done_callback(lambda _: connection.close())

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)
        link = _Link(self, reader, writer)
        if self._counts:
            self.connections.append(link.traffic)
        try:
            await link.run()
        finally:
            link.close()


class _Link:
    """The connection of one client, and the matching connection to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = reader, writer
        self.server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.traffic = Traffic()
        self.unanswered: deque[Fault] = deque()
        self.all_answered = asyncio.Event()
        self.all_answered.set()
        self.half_a_request = False

    async def run(self) -> None:
        _, to_client = self.client
        try:
            self.server = await self._connect()
        except OSError:
            to_client.close()
            return
        _, to_server = self.server
        flows = [asyncio.create_task(flow) for flow in (self._requests(), self._replies())]
        try:
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for flow in flows:
                flow.cancel()
            to_client.close()
            to_server.close()
            ends = await asyncio.gather(*flows, return_exceptions=True)
            self.proxy._faults += [end for end in ends if isinstance(end, Exception) and not isinstance(end, OSError)]
            for writer in (to_client, to_server):
                with suppress(OSError):
                    await writer.wait_closed()

    def close(self) -> None:
        for _, writer in (self.client, *([self.server] if self.server else [])):
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        upstream = self.proxy._upstream
        if upstream.scheme == "unix":
            return await asyncio.open_unix_connection(unquote(upstream.path), limit=CHUNK)
        return await asyncio.open_connection(upstream.hostname, upstream.port, limit=CHUNK)

    def _counting(self) -> Iterator[Traffic]:
        if self.proxy._counts:
            yield self.traffic
        yield from self.proxy._measuring

    async def _requests(self) -> None:
        (reader, _), (_, to_server) = self.client, self.server
        buffer = bytearray()
        while chunk := await reader.read(CHUNK):
            for request in _values(buffer, chunk):
                command = _words(request)
                chosen = self.proxy.on_command(command)
                fault = chosen if isinstance(chosen, Fault) else Fault(chosen)
                if fault.action in (Action.CUT_BEFORE, Action.HALF_REQUEST):
                    if fault.action is Action.HALF_REQUEST:
                        to_server.write(request[: int(len(request) * fault.part)])
                        await to_server.drain()
                    await self.all_answered.wait()
                    return
                if to_server.is_closing():
                    return
                for traffic in self._counting():
                    traffic.commands += 1
                    traffic.bytes_sent += len(request)
                    traffic.log.append(command)
                self.unanswered.append(fault)
                self.all_answered.clear()
                to_server.write(request)
            self.half_a_request = bool(buffer)
            await to_server.drain()

    async def _replies(self) -> None:
        (_, to_client), (reader, _) = self.client, self.server
        buffer = bytearray()
        dropping = False
        while chunk := await reader.read(CHUNK):
            for reply in _values(buffer, chunk):
                if to_client.is_closing():
                    return
                # A message to a subscriber, or any other push, is not the reply to a command.
                asked = bool(self.unanswered) and (not reply.startswith(b">") or b"subscribe\r\n" in reply[:30])
                fault = self.unanswered[0] if asked else Fault(Action.PASS)
                action = fault.action
                if action is Action.HALF_REPLY and not dropping:
                    to_client.write(reply[: int(len(reply) * fault.part)])
                    await to_client.drain()
                    dropping = True
                if action in (Action.HOLD_REPLY, Action.HALF_REPLY):
                    await self.proxy._hold(fault.seconds)
                dropping = dropping or action is Action.DROP_REPLY
                if asked:
                    self.unanswered.popleft()
                if not dropping:
                    for traffic in self._counting():
                        traffic.bytes_received += len(reply)
                        traffic.round_trips += asked and not self.unanswered and not self.half_a_request
                    to_client.write(reply)
                if not self.unanswered:
                    if dropping:
                        return
                    self.all_answered.set()
            await to_client.drain()


def _values(buffer: bytearray, chunk: bytes) -> Iterator[bytes]:
    """Return the complete RESP values of `buffer` and `chunk`; the remainder stays in `buffer`."""
    buffer += chunk
    while buffer and (end := _end_of_value(buffer)):
        yield bytes(buffer[:end])
        del buffer[:end]
    if len(buffer) > MAX_VALUE:
        raise ValueError(f"a request or reply of more than {MAX_VALUE} bytes")


def _end_of_value(data: bytearray) -> int | None:
    """The end of the RESP2 or RESP3 value (or inline command) at the start of `data`; None if it is incomplete."""
    at, pending = 0, 1
    while pending:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        mark, size = bytes(data[at : at + 1]), data[at + 1 : line_end]
        at = line_end + 2
        pending -= 1
        if mark in (b"$", b"!", b"="):
            at += int(size) + 2 if int(size) >= 0 else 0
        elif mark in (b"*", b"~", b">"):
            pending += max(int(size), 0)
        elif mark == b"%":
            pending += 2 * int(size)
        elif mark == b"|":  # attributes: pairs, then the value they belong to
            pending += 2 * int(size) + 1
    return at if at <= len(data) else None


def _words(request: bytes) -> Command:
    """The words of a request: an array of bulk strings, or a line."""
    if not request.startswith(b"*"):
        return request.split() or [b""]
    words: Command = []
    at = request.index(b"\r\n") + 2
    while at < len(request):
        line_end = request.index(b"\r\n", at)
        start, size = line_end + 2, int(request[at + 1 : line_end])
        words.append(request[start : start + size])
        at = start + size + 2
    return words
