"""Assign topics to subscribers: one connection for each server, shared by all topics of that server.

When a subscriber fails, its topics are assigned to another one, until an outage outlasts `patience`.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, ClassVar, Generic

from lash_redis.errors import BackendError, StoreError
from lash_redis.session.namespace import Namespace
from lash_redis.session.subscriber import Subscriber, T
from lash_redis.transport.cleanup import end_if_cancelled, end_tasks
from lash_redis.transport.failures import FAILURES, is_passing
from lash_redis.transport.node import Listener


class Subscriptions(ABC, Generic[T]):
    """The topics that one consumer or one process follows, and the subscribers that they are assigned to."""

    name: ClassVar[str]
    """The method in error messages."""
    remedy: ClassVar[str]
    """What a caller does after an outage."""

    def __init__(self, namespace: Namespace, *, poll: float, patience: float) -> None:
        """`poll`: seconds between polls without a message. `patience`: maximum outage in seconds."""
        self.poll, self.patience = poll, patience
        self._is_sharded = namespace.sharded
        self._namespace = namespace
        self._unassigned: dict[T, None] = {}
        self._subscribers: dict[Listener, Subscriber[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_unassigned = asyncio.Event()
        self._failure_count = 0
        self._failure: BaseException | None = None
        """The failure that an outage is reported with."""

    @abstractmethod
    async def _read(self, topics: Sequence[T]) -> Sequence[Any]:
        """Poll topics; return the result of each, for its `end_poll`."""

    @abstractmethod
    def _report(self, topic: T) -> None:
        """Make a change of a topic available to its consumers."""

    @abstractmethod
    def _fail(self, error: BaseException) -> None:
        """End with an error, which its consumers get."""

    def _release(self, topic: T) -> None:
        """Unsubscribe from a topic."""
        self._unassigned.pop(topic, None)
        if topic.subscriber is not None:
            topic.subscriber.remove(topic)

    # Tasks

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    async def _end_tasks(self) -> None:
        while self._tasks:
            await end_tasks(list(self._tasks))

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Report the task's error, and cancel the other tasks."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, (*FAILURES, OSError)):
            refused = BackendError(f"{self.name}: {error}")
            refused.__cause__ = error
            error = refused
        for other in self._tasks:
            other.cancel()
        self._fail(error)

    # Assignment to subscribers

    def _unassign(self, topic: T) -> None:
        topic.subscriber = None
        self._unassigned[topic] = None
        self._has_unassigned.set()

    def _reassign(self, topics: Iterable[T], unreachable_since: float) -> None:
        """Assign topics to another subscriber, because theirs receives no messages of them any more."""
        for topic in topics:
            if topic.unreachable_since is None:
                topic.unreachable_since = unreachable_since
            self._unassign(topic)

    async def _assign_topics(self) -> None:
        """Assign every unassigned topic to a subscriber; after a failure, wait first.

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
                f"{self.name}: the server was unreachable for {self.patience:g} s: {reason}; {self.remedy}"
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
        """When the outage of the unassigned topics becomes an error; None if no subscriber of theirs failed."""
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
        """Assign all unassigned topics. `rediscover`: discover the topology first."""
        for topic in list(self._unassigned):
            listener = await self._namespace.listener(topic.key, again=rediscover)
            rediscover = False
            if topic not in self._unassigned:  # it was removed in the meantime
                continue
            subscriber = self._subscribers.get(listener)
            if subscriber is None:
                subscriber = self._subscribers[listener] = self._new_subscriber(listener)
                self._start_task(self._run(subscriber))
            del self._unassigned[topic]
            subscriber.add(topic)

    def _new_subscriber(self, listener: Listener) -> Subscriber[T]:
        return Subscriber(
            listener,
            self._read,
            is_sharded=self._is_sharded,
            poll=self.poll,
            patience=self.patience,
            report=self._report,
            reassign=self._reassign,
        )

    async def _run(self, subscriber: Subscriber[T]) -> None:
        """Run a subscriber until it ends or fails; topics that it still has are assigned again."""
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
            self._reassign(subscriber.topics.values(), subscriber.failing_since)
        else:
            del self._subscribers[subscriber.listener]
            for topic in subscriber.topics.values():  # added after its last topic had left
                self._unassign(topic)
