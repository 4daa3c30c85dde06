"""The border to redis-py: sends what `commands.py` made, sends it again when that is safe, maps every foreign error.

Sending again is safe here: a commit is known by its receipt, and every other write done twice in a row is done once.
(Only where another client's write came between the two, a meta record or a tombstone sent again is the later one.)
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis.asyncio as redis
from redis import exceptions
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from lash_redis import scripts
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


FAILURES = (exceptions.RedisError, RuntimeError)
"""What sending raises; a RuntimeError is asyncio's, for a client whose event loop is gone."""

REFUSED_WHOLE = ("-OOM", "-READONLY", "MISCONF", "NOREPLICAS")
"""Errors that a script's first write gets or none of its writes, where redis-py has no class for them."""


NOT_LOADED = (
    "the server does not know the script {!r}, and allow_eval is False: run SessionCache.preload() or "
    "lash-redis preload from an account that may SCRIPT LOAD"
)


class Backend:
    """A client, opened before the first command, and how commands are sent on it.

    A forked child and another event loop get a client of their own: replies on a connection that two of them use would
    go to whoever reads first.
    """

    def __init__(self, connector: Connector, options: StoreOptions) -> None:
        self._options = options
        self._connector = connector
        self._client: redis.Redis | None = None
        self._place: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._opening = asyncio.Lock()

    async def _opened(self) -> Any:  # Any, because redis-py leaves execute_command untyped
        place = os.getpid(), asyncio.get_running_loop()
        if self._place != place:
            self._place, self._client, self._opening = place, None, asyncio.Lock()
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._connector.open()
        return self._client

    async def close(self) -> None:
        await self._connector.close()

    async def run(self, call: ScriptCall, *, writes: bool = True) -> Any:
        """Send a script: its reply.

        Raises:
            OutcomeUnknown: it may have been applied: a reply was lost, or it failed below its `-- WRITE`.
            BackendError: Redis refused, or no attempt reached it.
        """
        client = await self._opened()
        arguments = (len(call.keys), *call.keys, *call.args)

        async def send() -> Any:
            return await _run_script(client, call.script, arguments, allow_eval=self._options.allow_eval)

        return await self._attempts(send, call.script, writes=writes)

    async def run_and_wait(self, call: ScriptCall, wait: Command) -> tuple[Any, Any]:
        """Send a script and, in the same round trip on the same connection, a command that waits for what it wrote.

        The reply of each; for `wait` it may be an error. Raises as `run` does.
        """
        client = await self._opened()
        arguments = (len(call.keys), *call.keys, *call.args)

        async def send() -> tuple[Any, Any]:
            allow_eval = self._options.allow_eval
            return await _run_script_and_wait(client, call.script, arguments, wait, allow_eval=allow_eval)

        return await self._attempts(send, call.script, writes=True)

    async def preload(self) -> None:
        """Make every script known to the server."""
        await self.send([("SCRIPT", "LOAD", script.text) for script in scripts.every()], atomic=False)

    async def send(self, commands: Sequence[Command], *, atomic: bool, faults: bool = False) -> list[Any]:
        """Send native commands in one round trip; `atomic`: as one transaction, so that they see one moment.

        For reads, and for writes that do nothing the second time. `faults`: a `Corrupt` that one of them meets stands
        in the place of its reply.

        Raises:
            Corrupt: a key holds another type.
            BackendError: Redis refused or could not be reached.
        """
        if not commands:
            return []
        client = await self._opened()

        async def send() -> list[Any]:
            replies = await _replies(client, commands, atomic=atomic, allow_eval=self._options.allow_eval)
            for at, (command, reply) in enumerate(zip(commands, replies, strict=True)):
                if not isinstance(reply, exceptions.ResponseError):
                    continue
                if not str(reply).startswith("WRONGTYPE"):
                    raise reply
                fault = Corrupt(family_of(command[1]), command[1], "holds another type")
                if not faults:
                    raise fault from reply
                replies[at] = fault
            return replies

        return await self._attempts(send, str(commands[0][0]), writes=False)

    async def _attempts(
        self, send: Callable[[], Awaitable[Reply]], what: scripts.Script | str, *, writes: bool
    ) -> Reply:
        fate = _Fate(what, writes=writes, ambiguous=self._connector.resends)

        async def once() -> Reply:
            try:
                return await send()
            except FAILURES as error:
                fate.note(error)
                raise

        attempts = self._options.retry_attempts
        try:
            try:
                return await once()
            except FAILURES as error:
                if attempts == 1 or not _worth_retrying(error):
                    raise
            retrying = AsyncRetrying(
                stop=stop_after_attempt(attempts - 1),
                wait=wait_random_exponential(multiplier=0.05, max=self._options.retry_max_delay),
                retry=retry_if_exception(_worth_retrying),
                reraise=True,
            )
            return await retrying(once)
        except FAILURES as error:
            raise fate.error(error) from error


async def _run_script(client: Any, script: scripts.Script, arguments: Sequence[Any], *, allow_eval: bool) -> Any:
    try:
        return await client.execute_command("EVALSHA", script.sha, *arguments)
    except exceptions.NoScriptError as error:
        if not allow_eval:
            raise BackendError(NOT_LOADED.format(script.name)) from error
        return await client.execute_command("EVAL", script.text, *arguments)


async def _run_script_and_wait(
    client: Any, script: scripts.Script, arguments: Sequence[Any], wait: Command, *, allow_eval: bool
) -> tuple[Any, Any]:
    for words in (("EVALSHA", script.sha), ("EVAL", script.text)):
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command(*words, *arguments)
        pipeline.execute_command(*wait)
        reply, waited = await pipeline.execute(raise_on_error=False)
        if not isinstance(reply, exceptions.NoScriptError):
            break
        if not allow_eval:
            raise BackendError(NOT_LOADED.format(script.name)) from reply
    if isinstance(reply, Exception):
        raise reply
    return reply, waited


async def _replies(client: Any, commands: Sequence[Command], *, atomic: bool, allow_eval: bool) -> list[Any]:
    """The replies, errors of single commands among them."""
    if len(commands) == 1:
        try:
            return [await client.execute_command(*commands[0])]
        except exceptions.ResponseError as error:
            return [error]
    pipeline = client.pipeline(transaction=atomic)
    for command in commands:
        pipeline.execute_command(*command)
    try:
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
    except exceptions.ResponseError as error:
        if atomic and _is_out_of_memory(error):
            return await _read_in_script(client, commands, allow_eval=allow_eval)
        raise
    return replies


async def _read_in_script(client: Any, commands: Sequence[Command], *, allow_eval: bool) -> list[Any]:
    """What a transaction would have answered: a full server refuses even reads in one, but not in a script."""
    keys: list[Any] = []
    words: list[Any] = []
    for name, *rest in commands:
        named = len(rest) if name == "EXISTS" else min(1, len(rest))
        keys += rest[:named]
        words += [name, named, len(rest) - named, *rest[named:]]
    try:
        arguments = (len(keys), *keys, "", *words)
        _, _, *replies = await _run_script(client, scripts.READ, arguments, allow_eval=allow_eval)
    except exceptions.ResponseError as error:
        return [error] * len(commands)
    return [
        dict(zip(reply[::2], reply[1::2], strict=True)) if command[0] == "HGETALL" else reply
        for command, reply in zip(commands, replies, strict=True)
    ]


class _Fate:
    """What the failed attempts at one command say about whether it was applied."""

    def __init__(self, what: scripts.Script | str, *, writes: bool, ambiguous: bool) -> None:
        self._what = what
        self._writes = writes
        self._ambiguous = ambiguous
        self._maybe_applied = False

    def note(self, error: BaseException) -> None:
        if isinstance(error, LOST) and not isinstance(error, NOT_READY + DENIED):
            self._maybe_applied = self._maybe_applied or self._ambiguous or not _never_sent(error)
        elif isinstance(error, RuntimeError) or self._failed_while_writing(error):
            self._maybe_applied = True

    def _failed_while_writing(self, error: BaseException) -> bool:
        """Redis does not undo what a script wrote before it failed."""
        line = re.search(r"user_script:(\d+)", str(error))
        if isinstance(self._what, str) or line is None or int(line[1]) < self._what.write_line:
            return False
        if _is_out_of_memory(error) or isinstance(error, exceptions.ReadOnlyError):
            return False
        return not any(word in str(error) for word in REFUSED_WHOLE)

    def error(self, error: BaseException) -> StoreError:
        name = self._what if isinstance(self._what, str) else self._what.name
        text = f"{name}: {'OOM ' if _is_out_of_memory(error) else ''}{str(error) or type(error).__name__}"
        return OutcomeUnknown(text) if self._writes and self._maybe_applied else BackendError(text)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, exceptions.OutOfMemoryError) or "-OOM" in str(error)


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, NOT_READY):
        return True
    if isinstance(error, exceptions.ResponseError):
        return str(error).startswith(("BUSY ", "UNBLOCKED")) or "READONLY" in str(error)
    return isinstance(error, LOST) and not isinstance(error, DENIED)


def _never_sent(error: BaseException) -> bool:
    """Whether the failure was to connect, so that the command cannot have left this process."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError | FileNotFoundError | PermissionError | socket.gaierror):
            return True
        cause = cause.__cause__ or cause.__context__
    return str(error).startswith(("Timeout connecting", "Too many connections", "No connection available"))
