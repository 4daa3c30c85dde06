"""The border to redis-py: sends what `commands.py` made, sends it again when that is safe, maps every foreign error.

Sending again is safe here: a commit is known by its receipt, and every other write done twice in a row is done once.
(Only where another client's write came between the two, a meta record or a tombstone sent again is the later one.)
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from lash_redis import scripts
from lash_redis.commands import Command, ScriptCall
from lash_redis.connections import Connector
from lash_redis.errors import BackendError, Corrupt, OutcomeUnknown, StoreError
from lash_redis.keys import family_of
from lash_redis.options import StoreOptions
from lash_redis.topology import DENIED, NOREPLICAS, Closed, NotSent, Topology

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

FAILURES = (exceptions.RedisError, RuntimeError)
"""What sending raises; a RuntimeError is asyncio's, for a client whose event loop is gone."""

REFUSED_WHOLE = ("-OOM", "-READONLY", "MISCONF", NOREPLICAS)
"""Errors that a script's first write gets or none of its writes, where redis-py has no class for them."""


NOT_SENT = (
    "Timeout connecting",
    "Too many connections",
    "No connection available",
    "The previous master is now a slave",
)
"""What redis-py says where it has sent nothing; and, last, in the place of a READONLY to a connection of Sentinel's."""

NOT_LOADED = (
    "the server does not know the script {!r}, and allow_eval is False: run SessionCache.preload() or "
    "lash-redis preload from an account that may SCRIPT LOAD"
)


class Backend:
    """Where commands go, opened before the first of them, and how they are sent there.

    A forked child and another event loop get connections of their own: replies on a connection that two of them use
    would go to whoever reads first. What an event loop has lives and dies with it.
    """

    def __init__(self, connector: Connector, options: StoreOptions) -> None:
        self._options = options
        self._connector = connector

    async def topology(self) -> Topology:
        """Where commands go from this process and event loop."""
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
        """Close what this process and event loop have opened, and what all of them share; from here nothing is sent."""
        places = _places_of_the_running_loop()
        place = places.get(self)
        places[self] = _Place(is_closed=True)
        try:
            if place is not None and place.topology is not None and place.process == os.getpid():
                await place.topology.close()
        finally:
            await self._connector.close()

    async def listener(self, key: str, *, again: bool = False) -> redis.Redis:
        """A client of the one server that speaks on the channel named like `key`.

        `again`: after a failure, which may mean that it is another one by now.
        """
        topology = await self.topology()
        if again:
            topology.doubt()
        return await topology.node(key)

    async def run(self, call: ScriptCall, *, writes: bool = True, earlier: Earlier | None = None) -> Any:
        """Send a script: its reply.

        `earlier` is told what attempts before the one that was answered may have done.

        Raises:
            OutcomeUnknown: it may have been applied: a reply was lost, or it failed below its `-- WRITE`.
            BackendError: Redis refused, or no attempt reached it.
        """
        arguments = (len(call.keys), *call.keys, *call.args)

        async def send(topology: Topology) -> Any:
            return await _run_script(topology, call.script, arguments, allow_eval=self._options.allow_eval)

        return await self._attempts(send, call.script, writes=writes, earlier=earlier)

    async def run_and_wait(self, call: ScriptCall, wait: Command, *, earlier: Earlier | None = None) -> tuple[Any, Any]:
        """Send a script and, in the same round trip on the same connection, a command that waits for what it wrote.

        The reply of each; for `wait` it may be an error. `earlier` and what is raised: as for `run`.
        """
        arguments = (len(call.keys), *call.keys, *call.args)

        async def send(topology: Topology) -> tuple[Any, Any]:
            allow_eval = self._options.allow_eval
            return await _run_script_and_wait(topology, call.script, arguments, wait, allow_eval=allow_eval)

        return await self._attempts(send, call.script, writes=True, earlier=earlier)

    async def everywhere(self, *command: Any) -> list[Any]:
        """The replies of every server to a command that has no key and does nothing the second time."""
        return await self._attempts(lambda topology: topology.everywhere(*command), str(command[0]), writes=False)

    async def preload(self) -> None:
        """Make every script known to every server, replicas among them: one of those may be the primary tomorrow."""
        for script in scripts.every():
            await self.everywhere("SCRIPT", "LOAD", script.text)

    async def scan(self, pattern: str, count: int) -> AsyncIterator[list[bytes]]:
        """Every key that matches, some at a time; a key may come twice. For maintenance only.

        While slots move from one node of a cluster to another, a key that moves may be missed.
        """
        clients: list[Any] = await self._attempts(lambda topology: topology.primaries(), "SCAN", writes=False)
        for client in clients:
            cursor = b"0"
            while True:
                command = "SCAN", cursor, "MATCH", pattern, "COUNT", count

                async def step(_: Topology, client: Any = client, command: Command = command) -> Any:
                    return await client.execute_command(*command)

                cursor, keys = await self._attempts(step, "SCAN", writes=False)
                yield keys
                if int(cursor) == 0:
                    break

    async def send(
        self, commands: Sequence[Command], *, atomic: bool, faults: bool = False, replica: bool = False
    ) -> list[Any]:
        """Send native commands in one round trip; `atomic`: as one transaction, so that they see one moment.

        For reads, and for writes that do nothing the second time. `faults`: a `Corrupt` that one of them meets stands
        in the place of its reply. `replica`: ask a replica, if there is one, and nobody else: its failure is the
        call's.

        Raises:
            Corrupt: a key holds another type.
            BackendError: Redis refused or could not be reached.
        """
        if not commands:
            return []

        async def send(topology: Topology) -> list[Any]:
            if replica:
                replies = await topology.pipeline_of_replica(commands, atomic)
            else:
                replies = await _replies(topology, commands, atomic=atomic, allow_eval=self._options.allow_eval)
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

        return await self._attempts(send, str(commands[0][0]), writes=False, once_only=replica)

    async def _attempts(
        self,
        send: Callable[[Topology], Awaitable[Reply]],
        what: scripts.Script | str,
        *,
        writes: bool,
        once_only: bool = False,
        earlier: Earlier | None = None,
    ) -> Reply:
        fate = _Fate(what, writes=writes, ambiguous=self._connector.resends, earlier=earlier or Earlier())
        topology = await self.topology()

        async def once() -> Reply:
            try:
                return await send(topology)
            except FAILURES as error:
                fate.note(error)
                raise

        attempts = self._options.retry_attempts
        began = time.monotonic()

        def is_over(state: RetryCallState) -> bool:
            return state.attempt_number >= attempts - 1 and not (
                topology.fails_over and time.monotonic() - began < self._options.failover_patience
            )

        try:
            try:
                return await once()
            except FAILURES as error:
                if once_only or attempts == 1 or not _worth_retrying(error):
                    raise
            retrying = AsyncRetrying(
                stop=is_over,
                wait=wait_random_exponential(multiplier=0.05, max=self._options.retry_max_delay),
                retry=retry_if_exception(_worth_retrying),
                reraise=True,
            )
            return await retrying(once)
        except FAILURES as error:
            raise fate.error(error) from error


class _Place:
    """What one process has in one event loop."""

    def __init__(self, *, is_closed: bool = False) -> None:
        self.is_closed = is_closed
        self.process = os.getpid()
        self.opening = asyncio.Lock()
        self.topology: Topology | None = None


_PLACES = "_lash_redis_places"


def _places_of_the_running_loop() -> WeakKeyDictionary[Backend, _Place]:
    """Kept by the loop itself: whoever else kept connections would keep the loop alive, which they refer to."""
    loop = asyncio.get_running_loop()
    places: WeakKeyDictionary[Backend, _Place] | None = getattr(loop, _PLACES, None)
    if places is None:
        places = WeakKeyDictionary()
        setattr(loop, _PLACES, places)
    return places


async def _run_script(topology: Topology, script: scripts.Script, arguments: Sequence[Any], *, allow_eval: bool) -> Any:
    try:
        return await topology.execute("EVALSHA", script.sha, *arguments)
    except exceptions.NoScriptError as error:
        if not allow_eval:
            raise BackendError(NOT_LOADED.format(script.name)) from error
        return await topology.execute("EVAL", script.text, *arguments)


async def _run_script_and_wait(
    topology: Topology, script: scripts.Script, arguments: Sequence[Any], wait: Command, *, allow_eval: bool
) -> tuple[Any, Any]:
    try:
        reply, waited = await topology.together([("EVALSHA", script.sha, *arguments), wait])
    except exceptions.NoScriptError as error:
        if not allow_eval:
            raise BackendError(NOT_LOADED.format(script.name)) from error
        reply, waited = await topology.together([("EVAL", script.text, *arguments), wait])
    return reply, waited


async def _replies(topology: Topology, commands: Sequence[Command], *, atomic: bool, allow_eval: bool) -> list[Any]:
    """The replies, errors of single commands among them."""
    try:
        return await topology.pipeline(commands, atomic)
    except exceptions.ResponseError as error:
        if atomic and _is_out_of_memory(error):
            return await _read_in_script(topology, commands, allow_eval=allow_eval)
        raise


async def _read_in_script(topology: Topology, commands: Sequence[Command], *, allow_eval: bool) -> list[Any]:
    """What a transaction would have answered: a full server refuses even reads in one, but not in a script."""
    keys: list[Any] = []
    words: list[Any] = []
    for name, *rest in commands:
        named = len(rest) if name == "EXISTS" else min(1, len(rest))
        keys += rest[:named]
        words += [name, named, len(rest) - named, *rest[named:]]
    try:
        arguments = (len(keys), *keys, "", *words)
        _, _, *replies = await _run_script(topology, scripts.READ, arguments, allow_eval=allow_eval)
    except exceptions.ResponseError as error:
        return [error] * len(commands)
    return [
        dict(zip(reply[::2], reply[1::2], strict=True)) if command[0] == "HGETALL" else reply
        for command, reply in zip(commands, replies, strict=True)
    ]


@dataclass(slots=True)
class Earlier:
    """Whether an attempt at a command that failed may have been applied all the same."""

    maybe_applied: bool = False


class _Fate:
    """What the failed attempts at one command say about whether it was applied."""

    def __init__(self, what: scripts.Script | str, *, writes: bool, ambiguous: bool, earlier: Earlier) -> None:
        self._what = what
        self._writes = writes
        self._ambiguous = ambiguous
        self._earlier = earlier

    def note(self, error: BaseException) -> None:
        if isinstance(error, LOST) and not isinstance(error, NOT_READY + DENIED):
            self._earlier.maybe_applied = self._earlier.maybe_applied or self._ambiguous or not _never_sent(error)
        elif isinstance(error, RuntimeError) or self._failed_while_writing(error):
            self._earlier.maybe_applied = True

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
        return OutcomeUnknown(text) if self._writes and self._earlier.maybe_applied else BackendError(text)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, exceptions.OutOfMemoryError) or "-OOM" in str(error)


def is_passing(error: BaseException) -> bool:
    """Whether what failed may go well a little later, or elsewhere in a cluster."""
    if isinstance(error, BackendError) and error.__cause__ is not None:
        error = error.__cause__
    return _worth_retrying(error) or isinstance(error, exceptions.MovedError | exceptions.AskError | OSError)


def end_if_cancelled() -> None:
    """For a task of ours that was cancelled and does not know it.

    redis-py sends under `asyncio.wait_for`, which before Python 3.12 swallows a cancellation when all is sent.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, NOT_READY):
        return True
    if isinstance(error, exceptions.ResponseError):
        return str(error).startswith(("BUSY ", "UNBLOCKED")) or any(
            word in str(error) for word in ("READONLY", NOREPLICAS)
        )
    return isinstance(error, LOST) and not isinstance(error, (*DENIED, Closed))


def _never_sent(error: BaseException) -> bool:
    """Whether the command was not executed: it cannot have left this process, or a replica has refused it."""
    if isinstance(error, MasterNotFoundError | exceptions.MaxConnectionsError | NotSent):
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError | FileNotFoundError | PermissionError | socket.gaierror):
            return True
        cause = cause.__cause__ or cause.__context__
    return str(error).startswith(NOT_SENT)
