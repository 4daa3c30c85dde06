"""One connection that subscribes to the channels of topics, and polls what is stored about them.

A topic is a watched session, a followed stream, or the stop request of a stream. A message on its channel only triggers
a poll.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Final, Generic, Protocol, TypeVar

from redis import exceptions

from lash_redis.transport.cleanup import cleaned_up, end_if_cancelled, end_tasks
from lash_redis.transport.node import Listener

REPLY_TIMEOUT: Final = 10.0
"""Seconds that a server has to accept a connection, and to confirm a subscription."""
BATCH: Final = 200
"""Topics polled at the same time, and channels subscribed to in one command."""
EXPIRY_RECHECK: Final = 0.05
"""Seconds until the next poll of a topic that still exists although its deadline has passed."""
BURST: Final = 64
"""Messages handled before other tasks run."""


class Topic(Protocol):
    """What a subscriber follows."""

    subscriber: Any
    """The subscriber that the topic is assigned to; None if there is none."""
    is_subscribed: bool
    poll_at: float
    """When it is polled next, by the event loop's clock."""
    unreachable_since: float | None
    """When contact with its server was lost, by the event loop's clock; None after a successful poll."""
    needs_poll: bool
    """Whether the stored state may differ from the one that is known."""

    @property
    def key(self) -> str:
        """A key of the server that publishes on the channel."""
        ...

    @property
    def channel(self) -> bytes: ...

    @property
    def deadline_ms(self) -> int:
        """When the state changes without a message, in ms since 1970 by the server's clock; 0 for never."""
        ...

    @property
    def server_ms(self) -> int | None:
        """The server's clock at the last poll; None if that poll could not compute it."""
        ...

    def on_subscribed(self) -> None: ...

    def on_message(self, message: bytes) -> None: ...

    def begin_poll(self) -> None: ...

    def end_poll(self, result: Any) -> None: ...


T = TypeVar("T", bound=Topic)


class Subscriber(Generic[T]):
    """A pub/sub connection to one server, and the topics whose channels that server publishes on.

    One task writes to the connection and polls, another one reads from it. `run` returns when no topic is left, and
    raises the error that broke the connection. It never reconnects: `Subscriptions` assigns the topics to another
    subscriber.
    """

    def __init__(
        self,
        listener: Listener,
        read: Callable[[Sequence[T]], Awaitable[Sequence[Any]]],
        *,
        is_sharded: bool,
        poll: float,
        patience: float,
        report: Callable[[T], None],
        reassign: Callable[[list[T], float], None],
    ) -> None:
        """`poll` and `patience` are those of `Subscriptions`, in seconds.

        `read` returns the result of a poll for each of at most `BATCH` topics, for `end_poll`. `report` is called after
        each change of a topic. `reassign` is called with topics that this server no longer serves, and with the time
        since when that is so.
        """
        self.listener = listener
        self.topics: dict[bytes, T] = {}
        """The assigned topics, by channel."""
        self.is_sharded = is_sharded
        self._read = read
        self._poll, self._patience = poll, patience
        self._report, self._reassign = report, reassign
        self._subscribe_command, self._unsubscribe_command = (
            ("SSUBSCRIBE", "SUNSUBSCRIBE") if is_sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        )
        self._to_subscribe: dict[bytes, None] = {}
        self._to_unsubscribe: dict[bytes, None] = {}
        self._unsubscribing: list[bytes] = []
        """Channels whose unsubscription was sent and is not confirmed."""
        self._probes: set[bytes] = set()
        """Channels that were subscribed to a second time, to probe a silent connection."""
        self._to_poll: dict[T, None] = {}
        self._poll_heap: list[tuple[float, int, T]] = []
        """Scheduled polls by time. An entry is valid as long as its time is the topic's `poll_at`."""
        self._tie_breakers = count()
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._server_offset_ms = time.time() * 1000 - self._clock() * 1000
        """The server's clock minus the event loop's; an estimate until a topic with a deadline was polled."""
        self._unconfirmed = 0
        """Subscriptions that were sent and are not confirmed."""
        self._subscribed_at = self._received_at = self._clock()
        self._polling_since: float | None = None
        self._working_since: float | None = None

    @property
    def failing_since(self) -> float:
        """When the poll in flight began; now, if there is none."""
        return self._clock() if self._polling_since is None else self._polling_since

    def has_worked_for(self, seconds: float) -> bool:
        """Whether the first successful poll is at least `seconds` ago."""
        return self._working_since is not None and self._clock() - self._working_since >= seconds

    def add(self, topic: T) -> None:
        topic.subscriber, topic.is_subscribed, topic.poll_at = self, False, 0.0
        self.topics[topic.channel] = topic
        self._to_subscribe[topic.channel] = None
        self._wake.set()

    def remove(self, topic: T) -> None:
        self._detach(topic)
        if topic.channel in self.topics:  # of another topic on the same channel
            return
        if topic.channel in self._to_subscribe:
            del self._to_subscribe[topic.channel]
        else:
            self._to_unsubscribe[topic.channel] = None

    def _detach(self, topic: T) -> None:
        topic.subscriber = None
        if self.topics.get(topic.channel) is topic:
            del self.topics[topic.channel]
        self._to_poll.pop(topic, None)
        self._wake.set()

    async def run(self) -> None:
        """Follow the assigned topics until none is left.

        Raises:
            redis.exceptions.RedisError, OSError: the connection failed, or a subscription was not confirmed in time.
            StoreError: a poll failed.
        """
        async with _connection(self.listener) as connection:
            receiving = asyncio.create_task(self._receive_messages(connection))
            receiving.add_done_callback(lambda _: self._wake.set())
            async with cleaned_up(partial(end_tasks, [receiving]), "ending the reader of a subscription"):
                while self.topics:
                    end_if_cancelled()
                    if receiving.done():
                        receiving.result()
                    await self._send_subscriptions(connection)
                    await self._probe_if_silent(connection)
                    await self._poll_due()
                    await self._wait_for_work()

    # Write

    async def _send_subscriptions(self, connection: Any) -> None:
        to_unsubscribe, self._to_unsubscribe = self._to_unsubscribe, {}
        for channels in self._batches(to_unsubscribe):
            self._unsubscribing += channels
            await self._send(connection, self._unsubscribe_command, channels)
        to_subscribe, self._to_subscribe = self._to_subscribe, {}
        for channels in self._batches(to_subscribe):
            await self._subscribe(connection, channels)

    async def _probe_if_silent(self, connection: Any) -> None:
        """Subscribe to one channel again if no message arrived for `poll` seconds. A dead connection does not reply.

        Raises:
            redis.exceptions.TimeoutError: an earlier subscription was not confirmed within `REPLY_TIMEOUT`.
        """
        now = self._clock()
        if self._unconfirmed and now >= max(self._subscribed_at, self._received_at) + REPLY_TIMEOUT:
            raise exceptions.TimeoutError(f"the server did not confirm a subscription within {REPLY_TIMEOUT:g} s")
        if not self._unconfirmed and self.topics and now >= self._received_at + self._poll:
            channel = next(iter(self.topics))
            self._probes.add(channel)
            await self._subscribe(connection, [channel])

    async def _subscribe(self, connection: Any, channels: Sequence[bytes]) -> None:
        self._unconfirmed += len(channels)
        self._subscribed_at = self._clock()
        await self._send(connection, self._subscribe_command, channels)

    async def _send(self, connection: Any, command: str, channels: Sequence[bytes]) -> None:
        if not connection.is_connected:  # redis-py would reconnect silently, without the subscriptions
            raise exceptions.ConnectionError("the connection was closed")
        await connection.send_command(command, *channels, check_health=False)

    def _batches(self, channels: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Split channels by command. SSUBSCRIBE takes channels of one slot only, and those of a shard share a slot."""
        shards: dict[bytes, list[bytes]] = {}
        for channel in channels:
            shard = channel.partition(b"}")[0] if self.is_sharded else b""
            shards.setdefault(shard, []).append(channel)
        for each in shards.values():
            yield from (each[at : at + BATCH] for at in range(0, len(each), BATCH))

    # Poll

    async def _poll_due(self) -> None:
        now = self._clock()
        while self._poll_heap and self._poll_heap[0][0] <= now:
            entry = heappop(self._poll_heap)
            if self._is_valid(entry):
                self._to_poll[entry[2]] = None
        if not self._to_poll:
            return
        topics = list(self._to_poll)
        self._to_poll.clear()
        self._polling_since = now
        async with asyncio.timeout(self._patience):
            await self._poll_topics(topics)
        self._polling_since = None
        now = self._clock()
        self._working_since = self._working_since or now
        for topic in topics:
            if topic.subscriber is not self:
                continue
            topic.unreachable_since = None
            if topic.needs_poll:
                self._to_poll[topic] = None
            if topic.server_ms is not None:
                self._server_offset_ms = topic.server_ms - now * 1000
            self._schedule(topic, now + self._poll)

    async def _poll_topics(self, topics: Sequence[T]) -> None:
        """Poll topics, 200 at the same time, and report what is new."""
        for at in range(0, len(topics), BATCH):
            batch = topics[at : at + BATCH]
            for topic in batch:
                topic.begin_poll()
            results = await self._read(batch)
            for topic, result in zip(batch, results, strict=True):
                if topic.subscriber is self:  # else another subscriber may have polled it since
                    topic.end_poll(result)
                    self._report(topic)

    def _schedule(self, topic: T, poll_at: float) -> None:
        """Schedule the next poll: at `poll_at`, or when the topic should have expired if that is earlier."""
        if topic.deadline_ms:
            expires_at = (topic.deadline_ms - self._server_offset_ms) / 1000 + 0.001
            poll_at = min(poll_at, max(expires_at, self._clock() + EXPIRY_RECHECK))
        if poll_at == topic.poll_at:
            return
        topic.poll_at = poll_at
        if len(self._poll_heap) > 2 * len(self.topics) + BATCH:
            self._poll_heap = [entry for entry in self._poll_heap if self._is_valid(entry)]
            heapify(self._poll_heap)
        heappush(self._poll_heap, (poll_at, next(self._tie_breakers), topic))
        if self._poll_heap[0][2] is topic:
            self._wake.set()

    def _is_valid(self, entry: tuple[float, int, T]) -> bool:
        poll_at, _, topic = entry
        return topic.poll_at == poll_at and topic.subscriber is self

    async def _wait_for_work(self) -> None:
        """Wait until a poll, a probe or a subscription is due, or a message requests a poll."""
        if self._to_poll:
            return
        until = self._received_at + self._poll
        if self._unconfirmed:
            until = max(self._subscribed_at, self._received_at) + REPLY_TIMEOUT
        if self._poll_heap:
            until = min(until, self._poll_heap[0][0])
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        self._wake.clear()

    # Read

    async def _receive_messages(self, connection: Any) -> None:
        for number in count(1):
            end_if_cancelled()
            message = await connection.read_response(timeout=self._poll, disconnect_on_error=False, push_request=True)
            if isinstance(message, list) and len(message) == 3:
                self._received_at = self._clock()
                self._handle(*message)
            if number % BURST == 0:
                await asyncio.sleep(0)

    def _handle(self, kind: bytes, channel: bytes, data: Any) -> None:
        topic = self.topics.get(channel)
        if kind in (b"subscribe", b"ssubscribe"):
            self._on_confirmed(channel, topic)
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            self._on_unsubscribed(channel, topic)
            return
        elif topic is None or not topic.is_subscribed or kind not in (b"message", b"smessage"):
            return
        else:
            topic.on_message(data)
        if topic is not None and topic.needs_poll:
            self._to_poll[topic] = None
            self._wake.set()

    def _on_confirmed(self, channel: bytes, topic: T | None) -> None:
        self._unconfirmed -= 1
        if channel in self._probes:
            self._probes.discard(channel)
        elif topic is not None:
            topic.is_subscribed = True
            topic.on_subscribed()

    def _on_unsubscribed(self, channel: bytes, topic: T | None) -> None:
        if channel in self._unsubscribing:
            self._unsubscribing.remove(channel)
        elif topic is not None:  # the server ended the subscription: the slot moved to another server
            self._detach(topic)
            self._reassign([topic], self._clock())


@asynccontextmanager
async def _connection(listener: Listener) -> AsyncIterator[Any]:
    """Take a connection of the client's pool, and close it at the end. `Listener.turn` has further errors."""
    async with AsyncExitStack() as held:
        async with asyncio.timeout(REPLY_TIMEOUT):
            await held.enter_async_context(listener.turn())
        holder: Any = listener.client.pubsub()
        await held.enter_async_context(cleaned_up(holder.aclose, "closing the connection of a subscription"))
        async with asyncio.timeout(REPLY_TIMEOUT):
            await holder.connect()
        yield holder.connection
