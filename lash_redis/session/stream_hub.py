"""The streams that this process follows or produces: their subscriptions, shared by all followers and producers.

There is one hub for each cache and event loop, with one connection for each server. It exists while a stream is
followed or produced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Protocol

from lash_redis.errors import BackendError, Corrupt, Refused, StoreError, fresh
from lash_redis.protocol import commands
from lash_redis.protocol.commands.streams import StreamRead
from lash_redis.protocol.keys import StreamKeys
from lash_redis.protocol.stream_window import StreamWindow
from lash_redis.session.namespace import Namespace
from lash_redis.session.subscriptions import Subscriptions
from lash_redis.transport.loop_state import forget_state, state_of

POLL: Final = 3.0
"""Seconds after which a stream is polled without a message."""
PATIENCE: Final = 60.0
"""Maximum outage, in seconds, before followers fail."""
POLL_BYTES: Final = 64 * 1024
"""About so many bytes of events are read in one poll, so that streams do not wait for each other."""

Poll = StreamRead | StoreError | None


class StreamTopic(Protocol):
    """A topic of the hub."""

    keys: StreamKeys

    @property
    def poll_after(self) -> int | None:
        """The number behind which a poll reads events; None to read the state alone."""
        ...

    def fail(self, error: BaseException) -> None:
        """End with an error, because the subscriptions have ended."""


class _Topic:
    """What the topics of the hub have in common. `keys` are those of a trusted caller."""

    def __init__(self, keys: StreamKeys) -> None:
        self.keys = keys
        self.subscriber: Any = None
        self.is_subscribed = False
        self.poll_at = 0.0
        self.unreachable_since: float | None = None
        self.needs_poll = True
        self.server_ms: int | None = None
        self.deadline_ms = 0

    @property
    def key(self) -> str:
        return self.keys.head

    def on_subscribed(self) -> None:
        self.needs_poll = True

    def on_message(self, message: bytes) -> None:
        self.needs_poll = True

    def begin_poll(self) -> None:
        self.needs_poll = False


class FollowedStream(_Topic):
    """A stream that followers of this process share."""

    def __init__(self, keys: StreamKeys) -> None:
        super().__init__(keys)
        self.window = StreamWindow()
        self.follower_count = 0
        self.failure: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def channel(self) -> bytes:
        return self.keys.events.encode()

    @property
    def poll_after(self) -> int | None:
        return self.window.poll_after

    def end_poll(self, result: Poll) -> None:
        is_changed = self.window.advance(result)
        is_read = isinstance(result, StreamRead)
        self.deadline_ms = result.deadline_ms if isinstance(result, StreamRead) and result.is_running else 0
        self.server_ms = result.now_ms if isinstance(result, StreamRead) else None
        self.needs_poll = self.needs_poll or (is_read and self.window.is_behind)
        if is_changed:
            self._wake_followers()

    def fail(self, error: BaseException) -> None:
        self.failure = error
        self._wake_followers()

    def _wake_followers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_beyond(self, version: int) -> None:
        """Wait until a poll shows a change after this version of the window.

        Raises:
            BackendError: the subscriptions have ended.
        """
        while self.failure is None and self.window.version == version:
            await self._changed.wait()
        if self.failure is not None:
            raise fresh(self.failure)


class StopRequest(_Topic):
    """The stop request of a stream that this process produces."""

    poll_after: int | None = None

    def __init__(self, keys: StreamKeys, tag: str) -> None:
        super().__init__(keys)
        self._tag = tag
        self.is_made = False

    @property
    def channel(self) -> bytes:
        return self.keys.stops.encode()

    def end_poll(self, result: Poll) -> None:
        if isinstance(result, StreamRead) and result.tag == self._tag:
            self.is_made = self.is_made or result.stop_requested

    def fail(self, error: BaseException) -> None:
        """Ignore the error: the replies to the producer's own calls have the request, too."""


class StreamHub(Subscriptions[Any]):
    """The topics of one cache in one event loop."""

    name: ClassVar[str] = "follow"
    remedy: ClassVar[str] = "follow again, with the last cursor as `after`"

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace, poll=POLL, patience=PATIENCE)
        self._followed: dict[bytes, FollowedStream] = {}
        self._stops: set[StopRequest] = set()
        self._assigning: asyncio.Task[None] | None = None

    def follow(self, keys: StreamKeys) -> FollowedStream:
        """Return the topic of a stream for one more follower, who calls `leave` at the end. No I/O."""
        topic = self._followed.get(keys.events.encode())
        if topic is None:
            topic = FollowedStream(self._trusted(keys))
            self._followed[topic.channel] = topic
            self._subscribe(topic)
        topic.follower_count += 1
        return topic

    def leave(self, topic: FollowedStream) -> None:
        """End the subscription to a stream if it has no follower left. No I/O."""
        topic.follower_count -= 1
        if topic.follower_count == 0 and self._followed.get(topic.channel) is topic:
            del self._followed[topic.channel]
            self._unsubscribe(topic)

    def await_stop(self, keys: StreamKeys, tag: str) -> StopRequest:
        """Subscribe to the stop request of a stream, until `forget_stop`. No I/O."""
        topic = StopRequest(self._trusted(keys), tag)
        self._stops.add(topic)
        self._subscribe(topic)
        return topic

    def forget_stop(self, topic: StopRequest) -> None:
        if topic in self._stops:
            self._stops.remove(topic)
            self._unsubscribe(topic)

    def _trusted(self, keys: StreamKeys) -> StreamKeys:
        """Return the keys for polls. A follower checks its owner in a read of its own, and keeps to that stream."""
        return self._namespace.layout.session(keys.session_id).stream(keys.generation_id)

    def _subscribe(self, topic: StreamTopic) -> None:
        self._unassign(topic)
        if self._assigning is None:
            self._assigning = self._start_task(self._assign_topics())

    def _unsubscribe(self, topic: StreamTopic) -> None:
        self._release(topic)
        if not self._followed and not self._stops and self._assigning is not None:
            self._assigning.cancel()
            self._assigning = None

    # The polls

    async def _read(self, topics: Sequence[StreamTopic]) -> Sequence[Poll]:
        polled: list[Any] = await asyncio.gather(*map(self._poll_topic, topics), return_exceptions=True)
        for result in polled:  # every poll has ended, although one failed
            if isinstance(result, BaseException) and not isinstance(result, (Corrupt, Refused)):
                raise result
        return polled

    async def _poll_topic(self, topic: StreamTopic) -> Poll:
        """Poll a stream. An error of the stream is its result.

        Raises:
            BackendError: the server failed.
        """
        try:
            return await read_stream(self._namespace, topic.keys, topic.poll_after, POLL_BYTES)
        except (Corrupt, Refused) as error:
            return error

    def _report(self, topic: StreamTopic) -> None:
        """Do nothing: a topic wakes its followers itself."""

    # The end

    def _fail(self, error: BaseException) -> None:
        """End every topic with an error. The next stream to be followed makes another hub."""
        forget_state(self._namespace, self)
        topics: list[StreamTopic] = [*self._followed.values(), *self._stops]
        self._followed.clear()
        self._stops.clear()
        for topic in topics:
            topic.fail(error)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        super()._on_task_done(task)
        if not self._tasks and not self._followed and not self._stops:
            forget_state(self._namespace, self)  # the hub refers to the namespace, which otherwise is never freed

    async def close(self) -> None:
        """End every topic and every task."""
        self._fail(BackendError("this cache was closed"))
        await self._end_tasks()


def hub_of(namespace: Namespace) -> StreamHub:
    """Return the hub of the running event loop."""
    return state_of(namespace, lambda: StreamHub(namespace))


async def read_stream(namespace: Namespace, keys: StreamKeys, after: int | None, limit: int) -> StreamRead | None:
    """Read the state of a stream, and about `limit` bytes of the events after a number; None if there is no stream.

    Raises:
        SessionDeleted, Corrupt, SessionEvicted: what is stored.
        BackendError: the server failed.
    """
    call = commands.streams.read_call(keys, after, limit)
    reply = await namespace.run(call, writes=False, is_large=limit > POLL_BYTES)
    return commands.streams.read_reply(call, keys, reply)
