"""Watching sessions: subscribe to what their commits say, look at their heads, tell what is news.

A `SessionWatch` gives each of its sessions to a `_Line`: one connection to the server on which the session's channel is
spoken, shared by all sessions that are spoken there. A line that fails ends, and its sessions get another one. What is
news is decided in `protocol/commands/watching.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

import redis.asyncio as redis
from redis import exceptions

from lash_redis._validate import require_id, seconds_to_ms
from lash_redis.errors import BackendError, Corrupt, SessionEvicted, StoreError
from lash_redis.protocol import commands
from lash_redis.protocol.keys import SessionKeys
from lash_redis.session.namespace import Namespace
from lash_redis.transport.failures import FAILURES, is_passing
from lash_redis.transport.given import end_if_cancelled

POLL: Final = 30.0
"""Seconds after which a head is looked at although nothing was said of it."""
PATIENCE: Final = 60.0
"""Seconds for which an outage is borne."""
ANSWER: Final = 10.0
"""Seconds that a server has to take a connection, and to answer a subscription."""
CHUNK: Final = 200
"""Heads looked at, and channels subscribed to, in one go."""
SOON: Final = 0.05
"""Seconds until the next look at a head that is there though its deadline has passed."""
BURST: Final = 64
"""Messages after which other tasks have their turn."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What a `SessionWatch` tells: a session stands at `revision`; or its watch has ended, and why."""

    session_id: str
    revision: int
    """The newest one known; several commits may be told as one."""
    ended: StoreError | None = None
    """`SessionDeleted`, `SessionGone` (it expired, was evicted, or a failover lost it), `Corrupt` or `SessionEvicted`;
    None where the watch goes on."""


class SessionWatch:
    """The sessions that a worker serves, watched over one connection (in a cluster, over one for each server).

    Made by `SessionCache.watch`. An async context manager and, inside it, an async iterator of `SessionChange` for one
    consumer at a time; it waits where there is nothing to tell, also while no session is watched. Leaving it ends every
    task, connection and subscription of it; leave it before the cache is closed. A client of the caller's needs a
    connection more than its other calls take: a pool of one would leave them none.

    Told is a head's revision whenever its commit is not the one seen last: every revision is seen at least as
    "something newer", across reconnects and failovers. Commits that come faster than they are taken are told as one,
    so that a slow consumer costs no memory. After a failover that lost a commit, a revision may come again, or a lower
    one. Meta, tombstones and touches are no news.

    A session that is not there yet is waited for. One that ends is told once, and is watched no more; others go on.
    """

    def __init__(self, namespace: Namespace, *, poll: float, patience: float) -> None:
        self.poll = seconds_to_ms("poll", poll) / 1000
        self.patience = seconds_to_ms("patience", patience) / 1000
        self._is_sharded = namespace.sharded
        self._namespace = namespace
        self._sessions: dict[str, _Session] = {}
        self._homeless: dict[_Session, None] = {}
        self._ready: dict[_Session, None] = {}
        self._lines: dict[redis.Redis, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_place, self._to_tell = asyncio.Event(), asyncio.Event()
        self._is_open = self._was_open = False
        self._failures = 0
        self._trouble: BaseException | None = None
        self._end: BaseException | None = None

    def __repr__(self) -> str:
        return f"SessionWatch({len(self._sessions)} sessions, namespace={self._namespace.layout.namespace!r})"

    # Which sessions

    def add(self, session_id: str, since: commands.watching.Since = None) -> None:
        """Watch a session; one that is watched already begins anew. No I/O.

        `since` is the head that the caller has seen: what a load, a look or a commit answered, or the revision alone
        (0: any head is news). By a revision alone, another commit that a failover gave the same revision passes for
        the one seen. None: what comes after the watch's own first look. A session that was there by `since` and is not
        there any more has ended.

        Raises:
            InvalidRecord, SessionBindingMismatch: `since` is none of these, or of another session.
        """
        mark = commands.watching.mark_of(require_id("session_id", session_id), since)
        self.remove(session_id)
        session = _Session(self._namespace.layout.session(session_id), mark)
        self._sessions[session_id] = session
        self._place(session)

    def remove(self, session_id: str) -> None:
        """Watch a session no more: nothing is told of it from now on. An unknown one is passed over. No I/O."""
        session = self._sessions.pop(require_id("session_id", session_id), None)
        if session is not None:
            self._ready.pop(session, None)
            self._let_go(session)

    def _let_go(self, session: _Session) -> None:
        self._homeless.pop(session, None)
        if session.line is not None:
            session.line.drop(session)

    # What is told

    def __aiter__(self) -> AsyncIterator[SessionChange]:
        return self

    async def __anext__(self) -> SessionChange:
        """The next change.

        Raises:
            BackendError: the server refused, or an outage outlasted `patience`; this watch is at its end.
        """
        while not self._ready:
            if self._end is not None:
                raise self._end
            if not self._is_open:
                raise StopAsyncIteration
            self._to_tell.clear()
            await self._to_tell.wait()
        session = next(iter(self._ready))
        revision, session.news = session.news, None
        if revision is None or session.ended is None:
            del self._ready[session]
        if revision is not None:
            return SessionChange(session.session_id, revision)
        del self._sessions[session.session_id]
        return SessionChange(session.session_id, session.seen.revision if session.seen else 0, session.ended)

    def _tell(self, session: _Session) -> None:
        """Let the consumer know what is new of a session, if it is watched still."""
        if self._sessions.get(session.session_id) is not session:
            return
        if session.news is not None or session.ended is not None:
            self._ready[session] = None
            self._to_tell.set()
        if session.ended is not None:
            self._let_go(session)

    async def _look_at(self, sessions: Sequence[_Session]) -> None:
        """Look at their heads, and tell what is new. Two commands each, one round trip for every 200."""
        for at in range(0, len(sessions), CHUNK):
            part = sessions[at : at + CHUNK]
            for session in part:
                session.begin_look()
            try:
                found = await _heads(self._namespace, [session.keys for session in part])
            except BaseException:
                for session in part:
                    session.lost()
                raise
            for session, look in zip(part, found, strict=True):
                session.looked(look)
                self._tell(session)

    # Beginning and end

    async def __aenter__(self) -> Self:
        if self._was_open:
            raise RuntimeError("a watch is entered once")
        self._is_open = self._was_open = True
        self._start(self._give_homes())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave: nothing of it stays behind, here or on the server."""
        self._is_open = False
        self._to_tell.set()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(list(self._tasks))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._stopped)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, (*FAILURES, OSError)):
            refused = BackendError(f"watch: {error}")
            refused.__cause__ = error
            error = refused
        self._end = self._end or error
        self._to_tell.set()
        for other in self._tasks:
            other.cancel()

    # Which line a session is on

    def _place(self, session: _Session) -> None:
        session.line = None
        self._homeless[session] = None
        self._to_place.set()

    def _lose(self, sessions: Iterable[_Session], since: float) -> None:
        """They are heard no more, for as long as `since`; they need another line."""
        for session in sessions:
            session.lost()
            session.lost_at = since if session.lost_at is None else session.lost_at
            self._place(session)

    async def _give_homes(self) -> None:
        """Give a line to every session without one; after a pause where it lost one."""
        clock = asyncio.get_running_loop().time
        while True:
            end_if_cancelled()
            await self._to_place.wait()
            self._to_place.clear()
            while self._homeless:
                end_if_cancelled()
                lost = [session for session in self._homeless if session.lost_at is not None]
                until = min((session.lost_at or 0 for session in lost), default=None)
                if until is not None:
                    until += self.patience
                    if clock() >= until:
                        reason = str(self._trouble) or type(self._trouble).__name__
                        raise BackendError(f"watch: out of reach for {self.patience:g} s: {reason}") from self._trouble
                began = clock()
                try:
                    async with asyncio.timeout_at(until):
                        if lost:
                            await asyncio.sleep(self._pause())
                        await self._join(again=bool(lost))
                except (*FAILURES, StoreError, OSError) as error:
                    if not is_passing(error):
                        raise
                    self._fail(error)
                    self._lose(list(self._homeless), began)

    def _pause(self) -> float:
        """Seconds until the next attempt: they grow and scatter as those of the store's commands do."""
        longest = self._namespace.options.retry_max_delay
        return random.uniform(0, min(longest, 0.05 * 2.0 ** min(self._failures - 1, 20)))

    def _fail(self, error: BaseException) -> None:
        self._failures += 1
        self._trouble = error if self._trouble is None or not isinstance(error, TimeoutError) else self._trouble

    async def _join(self, *, again: bool) -> None:
        for session in list(self._homeless):
            client = await self._namespace.listener(session.keys.head, again=again)
            again = False
            if session not in self._homeless:
                continue
            line = self._lines.get(client)
            if line is None:
                line = self._lines[client] = _Line(self, client)
                self._start(self._run(line))
            del self._homeless[session]
            line.take(session)

    async def _run(self, line: _Line) -> None:
        try:
            await line.run()
        except (*FAILURES, StoreError, OSError) as error:
            if line.is_sharded and "unknown command" in str(error).lower():
                self._is_sharded = False  # Redis 6.2: its clusters pass every message on to every node
            elif not is_passing(error):
                raise
            if line.has_stood_for(self._namespace.options.retry_max_delay):
                self._failures = 0
            self._fail(error)
            del self._lines[line.client]
            self._lose(line.sessions.values(), line.since)
        else:
            del self._lines[line.client]
            for session in line.sessions.values():  # came while it ended for want of any
                self._place(session)


class _Session(commands.watching.Watched):
    """A watched session, and where it is."""

    __slots__ = ("due", "is_subscribed", "line", "lost_at")

    def __init__(self, keys: SessionKeys, since: commands.watching.HeadMark | None) -> None:
        super().__init__(keys, since)
        self.line: _Line | None = None
        self.is_subscribed = False
        self.due = 0.0
        """When it is looked at next, by the event loop's clock."""
        self.lost_at: float | None = None
        """Since when it could not be followed, by the same clock; None while it can."""

    @property
    def session_id(self) -> str:
        return self.keys.session_id

    @property
    def channel(self) -> bytes:
        return self.keys.head.encode()


class _Line:
    """A connection that listens to one server. It ends when it has no session left, or with the error that broke it.

    One task writes to it and looks at heads, another reads from it. Nothing here connects again by itself.
    """

    def __init__(self, watch: SessionWatch, client: redis.Redis) -> None:
        self.client = client
        self.sessions: dict[bytes, _Session] = {}
        self.is_sharded = watch._is_sharded
        self._watch = watch
        self._subscribe, self._unsubscribe = (
            ("SSUBSCRIBE", "SUNSUBSCRIBE") if self.is_sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        )
        self._joining: dict[bytes, None] = {}
        self._leaving: dict[bytes, None] = {}
        self._left: list[bytes] = []
        """Channels whose end the server has been asked for and has not told."""
        self._beating: set[bytes] = set()
        """Channels subscribed to once more, to hear whether anybody is there."""
        self._to_look: dict[_Session, None] = {}
        self._due: list[tuple[float, int, _Session]] = []
        self._numbers = count()
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._ahead_ms = time.time() * 1000 - self._clock() * 1000
        """The server's clock, less ours; a guess until a head with a deadline is seen."""
        self._unanswered = 0
        self._asked_at = self._heard_at = self._clock()
        self._looking_since: float | None = None
        self._stands_since: float | None = None

    @property
    def since(self) -> float:
        """Since when it has been in trouble, if it is."""
        return self._clock() if self._looking_since is None else self._looking_since

    def has_stood_for(self, seconds: float) -> bool:
        return self._stands_since is not None and self._clock() - self._stands_since >= seconds

    def take(self, session: _Session) -> None:
        session.line, session.is_subscribed, session.due = self, False, 0.0
        self.sessions[session.channel] = session
        self._joining[session.channel] = None
        self._wake.set()

    def drop(self, session: _Session) -> None:
        self._forget(session)
        if session.channel in self._joining:
            del self._joining[session.channel]
        else:
            self._leaving[session.channel] = None

    def _forget(self, session: _Session) -> None:
        session.line = None
        del self.sessions[session.channel]
        self._to_look.pop(session, None)
        self._wake.set()

    async def run(self) -> None:
        async with _connection(self.client) as connection:
            reading = asyncio.create_task(self._read(connection))
            reading.add_done_callback(lambda _: self._wake.set())
            try:
                while self.sessions:
                    end_if_cancelled()
                    if reading.done():
                        reading.result()
                    await self._speak(connection)
                    await self._look()
                    await self._rest()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    # Speaking

    async def _speak(self, connection: Any) -> None:
        """Ask for what is to be heard from now on, and for a sign of life where it has been silent for long."""
        leaving, self._leaving = self._leaving, {}
        for channels in self._chunks(leaving):
            self._left += channels
            await self._send(connection, self._unsubscribe, channels)
        joining, self._joining = self._joining, {}
        for channels in self._chunks(joining):
            await self._ask(connection, channels)
        now = self._clock()
        if self._unanswered and now >= max(self._asked_at, self._heard_at) + ANSWER:
            raise exceptions.TimeoutError(f"a subscription was not answered within {ANSWER:g} s")
        if not self._unanswered and self.sessions and now >= self._heard_at + self._watch.poll:
            channel = next(iter(self.sessions))
            self._beating.add(channel)
            await self._ask(connection, [channel])

    async def _ask(self, connection: Any, channels: Sequence[bytes]) -> None:
        self._unanswered += len(channels)
        self._asked_at = self._clock()
        await self._send(connection, self._subscribe, channels)

    async def _send(self, connection: Any, word: str, channels: Sequence[bytes]) -> None:
        if not connection.is_connected:  # redis-py would connect anew, and nothing would tell that we are deaf
            raise exceptions.ConnectionError("the connection was closed")
        await connection.send_command(word, *channels, check_health=False)

    def _chunks(self, channels: Iterable[bytes]) -> Iterator[list[bytes]]:
        """A sharded subscription takes channels of one slot only, which those of one shard are."""
        shards: dict[bytes, list[bytes]] = {}
        for channel in channels:
            shard = channel.partition(b"}")[0] if self.is_sharded else b""
            shards.setdefault(shard, []).append(channel)
        for each in shards.values():
            yield from (each[at : at + CHUNK] for at in range(0, len(each), CHUNK))

    # Looking

    async def _look(self) -> None:
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            entry = heappop(self._due)
            if self._counts(entry):
                self._to_look[entry[2]] = None
        if not self._to_look:
            return
        sessions = list(self._to_look)
        self._to_look.clear()
        self._looking_since = now
        async with asyncio.timeout(self._watch.patience):
            await self._watch._look_at(sessions)
        self._looking_since = None
        now = self._clock()
        self._stands_since = self._stands_since or now
        for session in sessions:
            if session.line is not self:
                continue
            session.lost_at = None
            if session.must_look:
                self._to_look[session] = None
            if session.server_ms is not None:
                self._ahead_ms = session.server_ms - now * 1000
            self._schedule(session, now + self._watch.poll)

    def _schedule(self, session: _Session, due: float) -> None:
        """Look at it again when it is due, or when it should have expired."""
        if session.deadline_ms:
            expired = (session.deadline_ms - self._ahead_ms) / 1000 + 0.001
            due = min(due, max(expired, self._clock() + SOON))
        if due == session.due:
            return
        session.due = due
        if len(self._due) > 2 * len(self.sessions) + CHUNK:
            self._due = [entry for entry in self._due if self._counts(entry)]
            heapify(self._due)
        heappush(self._due, (due, next(self._numbers), session))
        if self._due[0][2] is session:
            self._wake.set()

    def _counts(self, entry: tuple[float, int, _Session]) -> bool:
        due, _, session = entry
        return session.due == due and session.line is self

    async def _rest(self) -> None:
        """Until there is something to do."""
        if self._to_look:
            return
        until = self._heard_at + self._watch.poll
        if self._unanswered:
            until = max(self._asked_at, self._heard_at) + ANSWER
        if self._due:
            until = min(until, self._due[0][0])
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        self._wake.clear()

    # Reading

    async def _read(self, connection: Any) -> None:
        for number in count(1):
            said = await connection.read_response(
                timeout=self._watch.poll, disconnect_on_error=False, push_request=True
            )
            if isinstance(said, list) and len(said) == 3:
                self._heard_at = self._clock()
                self._hear(*said)
            if number % BURST == 0:
                await asyncio.sleep(0)

    def _hear(self, word: bytes, channel: bytes, message: Any) -> None:
        session = self.sessions.get(channel)
        if word in (b"subscribe", b"ssubscribe"):
            self._unanswered -= 1
            if channel in self._beating:
                self._beating.discard(channel)
            elif session is not None:
                session.is_subscribed = True
                session.subscribed()
        elif word in (b"unsubscribe", b"sunsubscribe"):
            if channel in self._left:
                self._left.remove(channel)
            elif session is not None:  # its slot has moved to another server
                self._forget(session)
                self._watch._lose([session], self._clock())
            return
        elif session is None or not session.is_subscribed or word not in (b"message", b"smessage"):
            return
        else:
            session.heard(message)
            self._watch._tell(session)
            self._schedule(session, session.due)
        if session is not None and session.must_look:
            self._to_look[session] = None
            self._wake.set()


@asynccontextmanager
async def _connection(client: redis.Redis) -> AsyncIterator[Any]:
    """A connection of the client's pool that is closed at the end."""
    holder: Any = client.pubsub()
    try:
        async with asyncio.timeout(ANSWER):
            await holder.connect()
        yield holder.connection
    finally:
        await holder.aclose()


async def _heads(namespace: Namespace, keys: Sequence[SessionKeys]) -> list[commands.watching.Look | Corrupt]:
    """What their heads say; a second round trip where one is not there, to tell whether a part of it is."""
    trip = [command for each in keys for command in commands.watching.look_read(each)]
    replies = await namespace.read(trip, atomic=False, faults=True, is_small=True)
    found = [_found(each, *pair) for each, *pair in zip(keys, replies[::2], replies[1::2], strict=True)]
    absent = [
        each
        for each, look in zip(keys, found, strict=True)
        if isinstance(look, commands.watching.Look) and look.is_absent
    ]
    rests = await namespace.read([commands.watching.rest_read(each) for each in absent], atomic=False, is_small=True)
    for each, rest in zip(absent, rests, strict=True):
        if not rest:
            continue
        # It may have begun between the two trips.
        *pair, rest = await namespace.read(
            [*commands.watching.look_read(each), commands.watching.rest_read(each)], atomic=True, faults=True
        )
        look = _found(each, *pair)
        if rest and isinstance(look, commands.watching.Look) and look.is_absent:
            look = SessionEvicted("head", each.head, "is gone, other keys of the session remain")
        found[keys.index(each)] = look
    return found


def _found(keys: SessionKeys, fields: Any, left_ms: Any) -> commands.watching.Look | Corrupt:
    if isinstance(fields, Corrupt):
        return fields
    try:
        return commands.watching.look_reply(keys, fields, left_ms)
    except Corrupt as error:
        return error
