"""Watch sessions: report each new revision, across reconnects and failovers.

A `SessionWatch` assigns each session to a `Subscriber`: one connection to the server that publishes on the session's
channel, shared by all sessions of that server. When a subscriber fails, its sessions are assigned to another one.
`protocol/commands/watching.py` decides which revisions are new.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from lash_redis._validate import require_id, seconds_to_ms
from lash_redis.errors import BackendError, StoreError
from lash_redis.protocol import commands
from lash_redis.session.namespace import Namespace
from lash_redis.session.subscriber import Subscriber, WatchedSession
from lash_redis.transport.cleanup import clean_up, end_tasks
from lash_redis.transport.failures import FAILURES, is_passing
from lash_redis.transport.given import end_if_cancelled
from lash_redis.transport.node import Listener

POLL: Final = 30.0
"""Seconds between polls of a head that no message arrived for."""
PATIENCE: Final = 60.0
"""Maximum outage, in seconds, before the watch fails."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """One change that a `SessionWatch` reports: a new revision of a session, or the end of its watch."""

    session_id: str
    revision: int
    """The newest known revision. It may stand for several commits."""
    ended: StoreError | None = None
    """Why the session is no longer watched; None while it is.

    `SessionDeleted`, `SessionGone` (it expired, was evicted, or a failover lost it), `Corrupt` or `SessionEvicted`.
    """


class SessionWatch:
    """Watch many sessions over one connection (in a cluster, one for each server).

    `SessionCache.watch` makes it. It is an async context manager and, inside it, an async iterator of `SessionChange`
    for one consumer at a time. The iterator waits while there is no change, also while no session is watched. Leaving
    the context ends every task, connection and subscription of the watch. Leave it before the cache is closed.

    If the caller passed a client of one server, the watch uses one of its connections, and calls wait for the others. A
    watch that would leave none for calls ends with `InvalidRecord`, which names `client.max_connections`.

    The watch reports a head's revision whenever the head's commit is not the one seen last. Every revision is reported
    at least as "something newer", across reconnects and failovers, unless the session is deleted before the check.
    Commits that arrive faster than the consumer takes them are reported as one change, so a slow consumer costs no
    memory. After a failover that lost a commit, a revision may be reported again, or a lower one. Changes of meta,
    tombstones and touches are not reported.

    The watch waits for a session that does not exist yet. The end of a session is reported once. That session is then
    no longer watched, and the others continue.
    """

    def __init__(self, namespace: Namespace, *, poll: float, patience: float) -> None:
        self.poll = seconds_to_ms("poll", poll) / 1000
        self.patience = seconds_to_ms("patience", patience) / 1000
        self._is_sharded = namespace.sharded
        self._namespace = namespace
        self._sessions: dict[str, WatchedSession] = {}
        self._unassigned: dict[WatchedSession, None] = {}
        self._pending: dict[WatchedSession, None] = {}
        """Sessions with a change that the consumer has not taken, in the order of their first one."""
        self._subscribers: dict[Listener, Subscriber] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_unassigned, self._has_pending = asyncio.Event(), asyncio.Event()
        self._is_open = self._was_open = False
        self._failure_count = 0
        self._failure: BaseException | None = None
        """The failure that an outage is reported with."""
        self._fatal_error: BaseException | None = None
        """What the iteration ends with."""

    def __repr__(self) -> str:
        return f"SessionWatch({len(self._sessions)} sessions, namespace={self._namespace.layout.namespace!r})"

    # Sessions

    def add(self, session_id: str, since: commands.watching.Since = None, *, owner: str | None = None) -> None:
        """Watch a session. A session that is watched already starts again from `since`. No I/O.

        `since` is the head that the caller has seen: the result of a load, of `load_head` or of a commit, or a
        revision (0: any head is new). A revision alone does not identify its commit: if a failover gave the same
        revision to another commit, that commit counts as seen. With None, the watch reports what follows its own first
        poll. A session that existed by `since` and does not exist now has ended. With an `owner`, another's session is
        watched like one that does not exist.

        Raises:
            InvalidRecord: `since` has another type, or is a negative revision.
            SessionBindingMismatch: `since` is of another session.
        """
        mark = commands.watching.mark_of(require_id("session_id", session_id), since)
        keys = self._namespace.layout.session(session_id, None if owner is None else require_id("owner", owner))
        self.remove(session_id)
        session = WatchedSession(keys, mark)
        self._sessions[session_id] = session
        self._unassign(session)

    def remove(self, session_id: str) -> None:
        """Stop watching a session; pending changes of it are dropped. Unknown ids are skipped. No I/O."""
        session = self._sessions.pop(require_id("session_id", session_id), None)
        if session is not None:
            self._pending.pop(session, None)
            self._release(session)

    def _release(self, session: WatchedSession) -> None:
        self._unassigned.pop(session, None)
        if session.subscriber is not None:
            session.subscriber.remove(session)

    # Changes

    def __aiter__(self) -> AsyncIterator[SessionChange]:
        return self

    async def __anext__(self) -> SessionChange:
        """Return the next change; wait for one if there is none.

        Raises:
            BackendError: the server refused, or an outage outlasted `patience`. The watch has ended.
        """
        while not self._pending:
            if self._fatal_error is not None:
                raise self._fatal_error
            if not self._is_open:
                raise StopAsyncIteration
            self._has_pending.clear()
            await self._has_pending.wait()
        session = next(iter(self._pending))
        revision, session.pending_revision = session.pending_revision, None
        if revision is None or session.ended is None:
            del self._pending[session]
        if revision is not None:
            return SessionChange(session.session_id, revision)
        del self._sessions[session.session_id]
        return SessionChange(session.session_id, session.seen.revision if session.seen else 0, session.ended)

    def _report(self, session: WatchedSession) -> None:
        """Make a change of a session available to the consumer, if the session is still watched."""
        if self._sessions.get(session.session_id) is not session:
            return
        if session.pending_revision is not None or session.ended is not None:
            self._pending[session] = None
            self._has_pending.set()
        if session.ended is not None:
            self._release(session)

    # Tasks

    async def __aenter__(self) -> Self:
        if self._was_open:
            raise RuntimeError("a SessionWatch can be entered only once; call SessionCache.watch for another one")
        self._is_open = self._was_open = True
        self._start_task(self._assign_sessions())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop()
        await clean_up(self._end_tasks, "ending a watch", after=error)

    async def aclose(self) -> None:
        """End the watch: all of its tasks, connections and subscriptions, also if the caller is cancelled meanwhile."""
        self._stop()
        await clean_up(self._end_tasks, "ending a watch")

    def _stop(self) -> None:
        """End the iteration."""
        self._is_open = False
        self._has_pending.set()

    async def _end_tasks(self) -> None:
        while self._tasks:
            await end_tasks(list(self._tasks))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """End the iteration with the task's error, and cancel the other tasks."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, (*FAILURES, OSError)):
            refused = BackendError(f"watch: {error}")
            refused.__cause__ = error
            error = refused
        self._fatal_error = self._fatal_error or error
        self._has_pending.set()
        for other in self._tasks:
            other.cancel()

    # Assignment to subscribers

    def _unassign(self, session: WatchedSession) -> None:
        session.subscriber = None
        self._unassigned[session] = None
        self._has_unassigned.set()

    def _reassign(self, sessions: Iterable[WatchedSession], unreachable_since: float) -> None:
        """Assign sessions to another subscriber, because theirs receives no messages of them any more."""
        for session in sessions:
            if session.unreachable_since is None:
                session.unreachable_since = unreachable_since
            self._unassign(session)

    async def _assign_sessions(self) -> None:
        """Assign every unassigned session to a subscriber; after a failure, wait first.

        Raises:
            BackendError: an outage outlasted `patience`.
        """
        while True:
            end_if_cancelled()
            await self._has_unassigned.wait()
            self._has_unassigned.clear()
            while self._unassigned:
                end_if_cancelled()
                await self._try_to_assign()

    async def _try_to_assign(self) -> None:
        clock = asyncio.get_running_loop().time
        until = self._outage_deadline()
        if until is not None and clock() >= until:
            reason = str(self._failure) or type(self._failure).__name__
            raise BackendError(
                f"watch: the server was unreachable for {self.patience:g} s: {reason}; watch again, with the last "
                "revisions as `since`"
            ) from self._failure
        began = clock()
        try:
            async with asyncio.timeout_at(until):
                if until is not None:
                    await asyncio.sleep(self._retry_delay())
                await self._assign_once(rediscover=until is not None)
        except (*FAILURES, StoreError, OSError) as error:
            if not is_passing(error):
                raise
            self._note_failure(error)
            self._reassign(list(self._unassigned), began)

    def _outage_deadline(self) -> float | None:
        """When the outage of the unassigned sessions becomes an error; None if no subscriber of theirs failed."""
        outages = [each.unreachable_since for each in self._unassigned if each.unreachable_since is not None]
        return min(outages) + self.patience if outages else None

    def _retry_delay(self) -> float:
        """Seconds until the next attempt: exponential from 50 ms with full jitter, as for the store's calls."""
        longest = self._namespace.options.retry_max_delay
        return random.uniform(0, min(longest, 0.05 * 2.0 ** min(self._failure_count - 1, 20)))

    def _note_failure(self, error: BaseException) -> None:
        """Count a failure. A timeout does not replace an earlier error, which is more specific."""
        self._failure_count += 1
        if self._failure is None or not isinstance(error, TimeoutError):
            self._failure = error

    async def _assign_once(self, *, rediscover: bool) -> None:
        """Assign all unassigned sessions. `rediscover`: discover the topology first."""
        for session in list(self._unassigned):
            listener = await self._namespace.listener(session.keys.head, again=rediscover)
            rediscover = False
            if session not in self._unassigned:  # it was removed in the meantime
                continue
            subscriber = self._subscribers.get(listener)
            if subscriber is None:
                subscriber = self._subscribers[listener] = self._new_subscriber(listener)
                self._start_task(self._run(subscriber))
            del self._unassigned[session]
            subscriber.add(session)

    def _new_subscriber(self, listener: Listener) -> Subscriber:
        return Subscriber(
            self._namespace,
            listener,
            is_sharded=self._is_sharded,
            poll=self.poll,
            patience=self.patience,
            report=self._report,
            reassign=self._reassign,
        )

    async def _run(self, subscriber: Subscriber) -> None:
        """Run a subscriber until it ends or fails; sessions that it still has are assigned again."""
        try:
            await subscriber.run()
        except (*FAILURES, StoreError, OSError) as error:
            if subscriber.is_sharded and "unknown command" in str(error).lower():
                self._is_sharded = False  # Redis 6.2 has no SSUBSCRIBE; its clusters pass every message to every node
            elif not is_passing(error):
                raise
            if subscriber.has_worked_for(self._namespace.options.retry_max_delay):
                self._failure_count = 0
            self._note_failure(error)
            del self._subscribers[subscriber.listener]
            self._reassign(subscriber.sessions.values(), subscriber.failing_since)
        else:
            del self._subscribers[subscriber.listener]
            for session in subscriber.sessions.values():  # added after its last session had left
                self._unassign(session)
