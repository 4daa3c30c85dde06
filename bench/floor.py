"""How fast could any client be? A socket of asyncio, bytes packed beforehand, replies parsed by hiredis, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from bench import bare
from bench.measure import Contender


class Socket(asyncio.Protocol):
    """One connection; one request at a time, which may be many commands."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[list[Any]]
        self._replies: list[Any] = []
        self._awaited = 0

    @classmethod
    async def to(cls, url: str) -> Socket:
        parts, loop = urlsplit(url), asyncio.get_running_loop()
        if parts.scheme == "unix":
            _, socket = await loop.create_unix_connection(cls, unquote(parts.path))
        else:
            _, socket = await loop.create_connection(cls, parts.hostname or "127.0.0.1", parts.port or 6379)
        if protocol := parse_qs(parts.query).get("protocol"):
            await socket.ask(packed([("HELLO", protocol[0])]), 1)
        return socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while len(self._replies) < self._awaited:
            reply = self._reader.gets()
            if reply is False:
                return
            self._replies.append(reply)
        if not self._answer.done():
            self._answer.set_result(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        if self._awaited and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))

    async def ask(self, request: bytes, replies: int) -> list[Any]:
        self._answer, self._replies, self._awaited = asyncio.get_running_loop().create_future(), [], replies
        self._transport.write(request)
        answers = await self._answer
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise answer
        return answers

    def close(self) -> None:
        self._awaited = 0
        self._transport.close()


def packed(commands: Sequence[bare.Command]) -> bytes:
    return b"".join(hiredis.pack_command(command) for command in commands)


def asking(socket: Socket, trips: Sequence[Sequence[bare.Command]]) -> Contender:
    """The same commands again and again, a request after the other."""
    requests = [(packed(commands), len(commands)) for commands in trips]

    async def run() -> None:
        for request, replies in requests:
            await socket.ask(request, replies)

    return Contender(run)


def committing(socket: Socket, session: bare.Session) -> Contender:
    """Bare's commits: packing them is not timed."""

    async def run(request: bytes) -> None:
        await socket.ask(request, 1)

    return Contender(run, lambda: packed([("EVALSHA", bare.COMMIT_SHA, *session.turn())]))
