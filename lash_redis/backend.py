"""The border to redis-py: sends what `commands.py` made, sends it again when that is safe, maps every foreign error.

Sending again is always safe here: a commit is known by its receipt, every other write does nothing the second time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis.asyncio as redis
from redis import exceptions
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from lash_redis.commands import Command, ScriptCall
from lash_redis.connections import Connector
from lash_redis.errors import BackendError, Corrupt, OutcomeUnknown, StoreError
from lash_redis.keys import family_of
from lash_redis.options import StoreOptions

Reply = TypeVar("Reply")

NOT_READY = (
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
)
"""The server answered that it will not do this now: nothing was applied, a little later it may be."""

LOST = (exceptions.ConnectionError, exceptions.TimeoutError)
"""No answer: applied or not, nobody here knows."""

DENIED = (exceptions.AuthenticationError, exceptions.AuthorizationError)
"""Connection errors by descent, but an answer: another attempt gets the same one."""


class Backend:
    """A client, opened before the first command, and how commands are sent on it."""

    def __init__(self, connector: Connector, options: StoreOptions) -> None:
        self._options = options
        self._connector = connector
        self._opening = asyncio.Lock()
        self._client: redis.Redis | None = None

    async def _opened(self) -> redis.Redis:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._connector.open()
        return self._client

    async def close(self) -> None:
        await self._connector.close()

    async def run(self, call: ScriptCall) -> Any:
        """Send a script.

        Raises:
            OutcomeUnknown: every attempt failed and one of them may have been applied.
            BackendError: Redis refused, or no attempt reached it.
        """

        client: Any = self._client or await self._opened()  # redis-py leaves execute_command untyped

        async def send() -> Any:
            arguments = (len(call.keys), *call.keys, *call.args)
            try:
                return await client.execute_command("EVALSHA", call.script.sha, *arguments)
            except exceptions.NoScriptError:
                return await client.execute_command("EVAL", call.script.text, *arguments)

        return await self._attempts(send, writes=True, name=call.script.name)

    async def send(self, commands: Sequence[Command], *, atomic: bool) -> list[Any]:
        """Send native commands in one round trip; `atomic`: as one transaction, so that they see one moment.

        For reads, and for writes that do nothing the second time.

        Raises:
            Corrupt: a key holds another type.
            BackendError: Redis refused or could not be reached.
        """
        if not commands:
            return []
        client: Any = self._client or await self._opened()

        async def send() -> list[Any]:
            if len(commands) == 1:
                try:
                    replies = [await client.execute_command(*commands[0])]
                except exceptions.ResponseError as error:
                    replies = [error]
            else:
                pipeline = client.pipeline(transaction=atomic)
                for command in commands:
                    pipeline.execute_command(*command)
                replies = await pipeline.execute(raise_on_error=False)
            for command, reply in zip(commands, replies, strict=True):
                if isinstance(reply, exceptions.ResponseError):
                    if _is_wrong_type(reply):
                        raise Corrupt(family_of(command[1]), command[1], "holds another type") from reply
                    raise reply
            return replies

        return await self._attempts(send, writes=False, name=str(commands[0][0]))

    async def _attempts(self, send: Callable[[], Awaitable[Reply]], *, writes: bool, name: str) -> Reply:
        fate = _Fate(ambiguous=self._connector.resends)

        async def once() -> Reply:
            try:
                return await send()
            except exceptions.RedisError as error:
                fate.note(error)
                raise

        attempts = self._options.retry_attempts
        try:
            try:
                return await once()
            except exceptions.RedisError as error:
                if attempts == 1 or not _worth_retrying(error):
                    raise
            retrying = AsyncRetrying(
                stop=stop_after_attempt(attempts - 1),
                wait=wait_random_exponential(multiplier=0.01, max=self._options.retry_max_delay),
                retry=retry_if_exception(_worth_retrying),
                reraise=True,
            )
            return await retrying(once)
        except exceptions.RedisError as error:
            raise fate.error(error, writes=writes, name=name) from error


class _Fate:
    """What the failed attempts at one command say about whether it was applied."""

    def __init__(self, *, ambiguous: bool) -> None:
        self._ambiguous = ambiguous
        self._lost = False

    def note(self, error: exceptions.RedisError) -> None:
        if isinstance(error, LOST) and not isinstance(error, NOT_READY + DENIED):
            self._lost = self._lost or self._ambiguous or not _never_sent(error)

    def error(self, error: exceptions.RedisError, *, writes: bool, name: str) -> StoreError:
        text = f"{name}: {str(error) or type(error).__name__}"
        return OutcomeUnknown(text) if writes and self._lost else BackendError(text)


def _is_wrong_type(error: exceptions.ResponseError) -> bool:
    return str(error).startswith("WRONGTYPE")


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, NOT_READY):
        return True
    if isinstance(error, exceptions.ResponseError):
        return str(error).startswith(("BUSY ", "UNBLOCKED"))
    return isinstance(error, LOST) and not isinstance(error, DENIED)


def _never_sent(error: BaseException) -> bool:
    """Whether the failure was to connect, so that the command cannot have left this process."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError | FileNotFoundError | PermissionError | socket.gaierror):
            return True
        cause = cause.__cause__ or cause.__context__
    return str(error).startswith(("Timeout connecting", "Too many connections"))
