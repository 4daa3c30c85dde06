"""Watch sessions: report each new revision, across reconnects and failovers.

`Subscriptions` assigns each session to a `Subscriber`: one connection to the server that publishes on the session's
channel, shared by all sessions of that server. `protocol/commands/watching.py` decides which revisions are new.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from lash_redis._validate import require_id, seconds_to_ms
from lash_redis.errors import Corrupt, SessionEvicted, StoreError, fresh
from lash_redis.protocol import commands
from lash_redis.protocol.keys import SessionKeys
from lash_redis.session.namespace import Namespace
from lash_redis.session.subscriber import Subscriber
from lash_redis.session.subscriptions import Subscriptions
from lash_redis.transport.cleanup import clean_up

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


class WatchedSession(commands.watching.WatchState):
    """A watched session: its state, and the subscriber that it is assigned to."""

    __slots__ = ("is_subscribed", "poll_at", "subscriber", "unreachable_since")

    def __init__(self, keys: SessionKeys, since: commands.watching.HeadMark | None) -> None:
        super().__init__(keys, since)
        self.subscriber: Subscriber[WatchedSession] | None = None
        self.is_subscribed = False
        self.poll_at = 0.0
        """When its head is polled next, by the event loop's clock."""
        self.unreachable_since: float | None = None
        """When contact with its server was lost, by the event loop's clock; None after a successful poll."""

    @property
    def session_id(self) -> str:
        return self.keys.session_id

    @property
    def key(self) -> str:
        return self.keys.head

    @property
    def channel(self) -> bytes:
        return self.keys.head.encode()


class SessionWatch(Subscriptions[WatchedSession]):
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

    name: ClassVar[str] = "watch"
    remedy: ClassVar[str] = "watch again, with the last revisions as `since`"

    def __init__(self, namespace: Namespace, *, poll: float, patience: float) -> None:
        poll, patience = (seconds_to_ms("poll", poll) / 1000, seconds_to_ms("patience", patience) / 1000)
        super().__init__(namespace, poll=poll, patience=patience)
        self._sessions: dict[str, WatchedSession] = {}
        self._pending: dict[WatchedSession, None] = {}
        """Sessions with a change that the consumer has not taken, in the order of their first one."""
        self._has_pending = asyncio.Event()
        self._is_open = self._was_open = False
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
                raise fresh(self._fatal_error)
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

    async def _read(self, topics: Sequence[WatchedSession]) -> Sequence[Any]:
        return await read_sessions(self._namespace, topics)

    def _report(self, topic: WatchedSession) -> None:
        """Make a change of a session available to the consumer, if the session is still watched."""
        if self._sessions.get(topic.session_id) is not topic:
            return
        if topic.pending_revision is not None or topic.ended is not None:
            self._pending[topic] = None
            self._has_pending.set()
        if topic.ended is not None:
            self._release(topic)

    def _fail(self, error: BaseException) -> None:
        """End the iteration with an error."""
        self._fatal_error = self._fatal_error or error
        self._has_pending.set()

    # The context

    async def __aenter__(self) -> Self:
        if self._was_open:
            raise RuntimeError("a SessionWatch can be entered only once; call SessionCache.watch for another one")
        self._is_open = self._was_open = True
        self._start_task(self._assign_topics())
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


# Polls


async def read_sessions(
    namespace: Namespace, sessions: Sequence[WatchedSession]
) -> list[commands.watching.HeadPoll | Corrupt]:
    """Poll watched sessions. Two commands for each head, in one round trip."""
    return await _read_heads(namespace, [session.keys for session in sessions])


async def _read_heads(namespace: Namespace, keys: Sequence[SessionKeys]) -> list[commands.watching.HeadPoll | Corrupt]:
    """Read the state of each head. If a head is absent, a second round trip checks for remaining keys."""
    trip = [command for each in keys for command in commands.watching.poll_read(each)]
    replies = await namespace.read(trip, atomic=False, faults=True, is_small=True)
    results = [_poll_result(each, *pair) for each, *pair in zip(keys, replies[::2], replies[1::2], strict=True)]
    absent = [each for each, result in zip(keys, results, strict=True) if _is_absent(result)]
    counts = await namespace.read(
        [commands.watching.remaining_keys_read(each) for each in absent], atomic=False, is_small=True
    )
    for each, remaining in zip(absent, counts, strict=True):
        if remaining:
            results[keys.index(each)] = await _read_head_atomically(namespace, each)
    return results


async def _read_head_atomically(namespace: Namespace, keys: SessionKeys) -> commands.watching.HeadPoll | Corrupt:
    """Read a head and count the other keys at one moment: the session may have started between two round trips."""
    *pair, remaining = await namespace.read(
        [*commands.watching.poll_read(keys), commands.watching.remaining_keys_read(keys)], atomic=True, faults=True
    )
    result = _poll_result(keys, *pair)
    if remaining and _is_absent(result):
        return SessionEvicted("head", keys.head, "is gone, other keys of the session remain")
    return result


def _is_absent(result: commands.watching.HeadPoll | Corrupt) -> bool:
    return isinstance(result, commands.watching.HeadPoll) and result.is_absent


def _poll_result(keys: SessionKeys, fields: Any, left_ms: Any) -> commands.watching.HeadPoll | Corrupt:
    if isinstance(fields, Corrupt):
        return fields
    try:
        return commands.watching.poll_reply(keys, fields, left_ms)
    except Corrupt as error:
        return error
