"""Produce a stream: batch events, send them, give signs of life, and end the stream with the block."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

from lash_redis.errors import (
    BackendError,
    CommitTooLarge,
    Corrupt,
    InvalidRecord,
    OutcomeUnknown,
    Refused,
    StoreError,
    StreamBusy,
    StreamFailed,
    fresh,
)
from lash_redis.models import StreamClaim, StreamState
from lash_redis.protocol import commands
from lash_redis.protocol.commands.streams import Behind, Bounds, End, Ended, Sent, tag_of_token
from lash_redis.protocol.keys import SessionKeys, StreamKeys
from lash_redis.protocol.outbox import Outbox
from lash_redis.session.namespace import Namespace
from lash_redis.session.stream_hub import StopRequest, hub_of
from lash_redis.transport.cleanup import clean_up, end_if_cancelled, end_tasks

log = logging.getLogger("lash_redis")

INTERVAL_SECONDS: Final = 0.005
"""The time between the beginnings of two round trips of one stream, unless `flush` is called."""
SIGNS_PER_TTL: Final = 3
"""The number of signs of life within one ttl. With three, a stream outlives one that fails."""
RETRY_SECONDS: Final = 0.2
"""The time until events that could not be sent are sent again."""


class StreamWriter(StreamClaim):
    """The only producer of a stream. `RedisSessionStore.stream` makes it; it is an async context manager.

    The block ends the stream: as finished, or as failed if it raises. Events that were not sent yet are sent before, in
    either case. A task gives signs of life while the block runs. Tasks can share a writer.
    """

    __slots__ = (
        "_bounds", "_broken", "_end", "_hub", "_is_held", "_keys", "_lock", "_namespace", "_outbox", "_process",
        "_pump_task", "_stop", "_stop_requested", "_wake",
    )  # fmt: skip

    def __init__(self, namespace: Namespace, keys: StreamKeys, bounds: Bounds) -> None:
        super().__init__(keys.session_id, keys.generation_id, uuid4().hex, 0)
        self._namespace, self._keys, self._bounds = namespace, keys, bounds
        self._outbox = Outbox(bounds.max_events, bounds.max_bytes)
        self._lock = asyncio.Lock()
        """Held during a round trip, because events are sent in order."""
        self._wake = asyncio.Event()
        self._pump_task: asyncio.Task[None] | None = None
        self._stop: StopRequest | None = None
        self._stop_requested = False
        self._broken: StoreError | None = None
        """Why nothing more can be sent."""
        self._end: End | None = ""
        """How the stream ended; None while it runs, '' before it was opened."""
        self._is_held = False
        """Whether a commit that finishes the stream is in flight."""
        self._process = os.getpid()
        """The process that produces the stream. A child that is forked in the block has a copy of the writer."""

    def __repr__(self) -> str:
        return f"StreamWriter({self.session_id!r}, {self.generation_id!r}, {self.event_count} events)"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as a `StreamClaim`, which another process can finish."""
        return StreamClaim, (self.session_id, self.generation_id, self.token, self.event_count)

    @property
    def stop_requested(self) -> bool:
        """Whether `request_stop` was called. Known within a fraction of a second. It never becomes False again."""
        return self._stop_requested or (self._stop is not None and self._stop.is_made)

    async def send(self, data: Any) -> None:
        """Add an event: any JSON. It is sent with others, after one turn of the event loop and every 5 ms at most.

        It waits for the server only if 500 events or 1 MB are not sent yet. Events are stored once and in order,
        although a reply is lost: a failed round trip is repeated with the same events.

        Raises:
            InvalidRecord: the data is not JSON; the error names the path. The event was not added.
            CommitTooLarge: the event is larger than `max_bytes`. It was not added.
            StreamFailed: the stream was lost: there was no sign of life for its ttl, because this process was frozen
                or the server was unreachable.
            StreamBusy: the stream has ended, with its block or by a commit.
            StreamGone, SessionDeleted, OwnerMismatch, Corrupt, SessionEvicted: the stream no longer exists, or is
                damaged.
            BackendError, OutcomeUnknown: the server was unreachable, and too many events wait. The event is added, and
                it is sent later.
        """
        await self._send(data)

    async def _send(self, data: Any) -> None:
        self._require_open()
        event = commands.streams.encode_event(data, self._outbox.next_number)
        if len(event) > self._bounds.max_bytes:
            raise CommitTooLarge("the bytes of an event (max_bytes)", len(event), self._bounds.max_bytes)
        self._outbox.add(event)
        self._wake.set()
        if self._outbox.is_full:
            await self._flush()

    async def flush(self) -> None:
        """Send all events that were added, and wait until they are stored. One round trip for every 500 events or 1 MB.

        Raises:
            BackendError, OutcomeUnknown: the server was unreachable. The events are sent later; flush again.
            Everything else that `send` raises.
        """
        await self._flush()

    async def _flush(self) -> None:
        self._require_open()
        until = self._outbox.next_number
        while self._outbox.first_unsent < until:
            async with self._lock:
                if self._outbox.first_unsent < until:
                    await self._send_batch()

    @property
    def is_own(self) -> bool:
        """Whether this process produces the stream.

        A child that is forked in the block does not: the server would take its events for retries of its parent's.
        """
        return self._process == os.getpid()

    def _require_open(self) -> None:
        if not self.is_own:
            raise StreamBusy(self.session_id, self.generation_id, "running")
        if self._broken is not None:
            raise fresh(self._broken)
        if self._end is None and not self._is_held:
            return
        if self._end == "":
            raise InvalidRecord("stream", "is not open; use it in `async with store.stream(...) as out`")
        raise StreamBusy(self.session_id, self.generation_id, "failed" if self._end == "x" else "finished")

    # The block

    async def __aenter__(self) -> Self:
        if self._end != "" or self._pump_task is not None:
            raise InvalidRecord("stream", "was entered before; call `store.stream` again, with a new generation id")
        self._process = os.getpid()
        opening = asyncio.create_task(self._open())
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError as error:
            await clean_up(partial(self._withdraw, opening), self._ending, after=error)
            raise
        self._hub = hub_of(self._namespace)
        self._stop = self._hub.await_stop(self._keys, tag_of_token(self.token))
        self._pump_task = asyncio.create_task(self._pump())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await clean_up(partial(self._close, "f" if error is None else "x"), self._ending, after=error)

    @property
    def _ending(self) -> str:
        """The name of the end of the stream, for a log record."""
        return f"ending the stream of generation {self.generation_id!r}, which is lost after its ttl otherwise,"

    async def _open(self) -> None:
        call = commands.streams.open_call(self._keys, self.token, self._bounds, sharded=self._namespace.sharded)
        opened = commands.streams.open_reply(call, self._keys, await self._namespace.run(call))
        self._stop_requested = opened.stop_requested
        self._end = None

    async def _withdraw(self, opening: asyncio.Task[None]) -> None:
        """Wait for the end of the opening, and end the stream unless it certainly was not opened."""
        try:
            await asyncio.wait([opening])
        finally:
            opening.cancel()
        if opening.cancelled() or not isinstance(opening.exception(), Refused | BackendError):
            self._end = None
            with suppress(Refused):
                await self._close("x")

    async def _close(self, ends: End) -> None:
        """Stop giving signs of life, send what was not sent yet, and end the stream. Idempotent."""
        if self._stop is not None:
            self._stop_requested = self.stop_requested
            self._hub.forget_stop(self._stop)
            self._stop = None
        if self._pump_task is not None:
            async with self._lock:  # a round trip in flight ends first
                await end_tasks([self._pump_task])
        if self._broken is not None:
            if self._end is None and ends == "f":
                self._end = "x"
                raise fresh(self._broken)
            return
        async with self._lock:
            while self._end is None:
                await self._send_batch(ends)

    # Round trips

    async def _pump(self) -> None:
        """Send events in the background, and a sign of life if there are none."""
        clock = asyncio.get_running_loop().time
        pause = self._bounds.ttl_ms / 1000 / SIGNS_PER_TTL
        while self._end is None:
            end_if_cancelled()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            await asyncio.sleep(0)  # events of the same turn of the event loop are sent together
            self._wake.clear()
            began, interval = clock(), INTERVAL_SECONDS
            try:
                async with self._lock:
                    if self._end is None:
                        await self._send_batch()
            except (BackendError, OutcomeUnknown) as error:
                log.warning("sending to the stream of generation %r failed, retried: %s", self.generation_id, error)
                interval = min(RETRY_SECONDS, pause)
            except StoreError:
                return  # `_broken` has the error
            if self._outbox.has_unsent:
                self._wake.set()
            await asyncio.sleep(max(0.0, began + interval - clock()))

    async def _send_batch(self, ends: End = "") -> None:
        """Send the next events, or only a sign of life. `ends`: end the stream if these are the last ones.

        The caller holds `_lock`.

        Raises:
            BackendError, OutcomeUnknown: the server was unreachable; send again.
            StoreError: nothing more can be sent. Further calls of the writer raise the same.
        """
        try:
            await self._exchange(ends)
        except (BackendError, OutcomeUnknown):
            raise
        except StoreError as error:
            self._broken = error
            raise

    async def _exchange(self, ends: End) -> None:
        outbox = self._outbox
        first, events, are_last = outbox.batch()
        ends = ends if are_last else ""
        call = commands.streams.send_call(
            self._keys, self.token, first, events, self._bounds, ends, sharded=self._namespace.sharded
        )
        match commands.streams.send_reply(call, self._keys, await self._namespace.run(call)):
            case Sent(last, stop_requested):
                if last >= outbox.next_number:
                    raise Corrupt("streams", self._keys.streams, f"counts {last} events, more than were sent")
                outbox.confirm(last)
                self.event_count = last
                self._stop_requested = self._stop_requested or stop_requested
                self._end = ends or None
            case Behind(last):
                if not outbox.roll_back(last):
                    raise StreamFailed(self.session_id, self.generation_id, "lost")
                self.event_count = last
                log.warning("a failover lost events of generation %r, which are sent again", self.generation_id)
            case Ended(state):
                self._end = self._end_of(state, ends)

    def _end_of(self, state: StreamState, ends: End) -> End:
        """Return how the stream ended, if this writer ended it: an earlier attempt, whose reply was lost.

        Raises:
            StreamFailed, StreamBusy: something else ended it.
        """
        if (state, ends) in (("finished", "f"), ("failed", "x")):
            return ends
        if state in ("failed", "lost"):
            raise StreamFailed(self.session_id, self.generation_id, state)
        raise StreamBusy(self.session_id, self.generation_id, state)

    # Commits

    @asynccontextmanager
    async def held_for_commit(self) -> AsyncIterator[None]:
        """Send all events, and take no other while a commit that finishes the stream is made in the block.

        A stream that cannot be finished any more does not hinder the commit.

        Raises:
            InvalidRecord: the stream was not opened.
            BackendError, OutcomeUnknown: the server was unreachable, so the commit was not sent.
        """
        if self._end == "":
            raise InvalidRecord("finishes", "expected an open stream; use `async with store.stream(...) as out`")
        if self._end is None:
            with suppress(Refused, Corrupt):
                await self._flush()
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    async def finish_after_commit(self, *, is_finished: bool) -> None:
        """Note that a commit finished the stream, or finish it now. The caller is in `held_for_commit`.

        Raises:
            BackendError, OutcomeUnknown: the server was unreachable; call again.
        """
        if is_finished:
            self._end = "f"
        async with self._lock:
            with suppress(Refused, Corrupt):
                while self._end is None and self._broken is None:
                    await self._send_batch("f")
        if self._end is None:
            log.warning("a commit was made, but the stream that it finishes was not: %s", self._broken)
            self._end = "x"


@asynccontextmanager
async def held_for_commit(claim: StreamClaim) -> AsyncIterator[None]:
    """`StreamWriter.held_for_commit`; a claim without its writer needs nothing."""
    if isinstance(claim, StreamWriter) and claim.is_own:
        async with claim.held_for_commit():
            yield
    else:
        yield


async def finish_after_commit(
    namespace: Namespace, keys: SessionKeys, claim: StreamClaim, *, is_finished: bool
) -> None:
    """`StreamWriter.finish_after_commit`, also for a claim without its writer."""
    if isinstance(claim, StreamWriter) and claim.is_own:
        await claim.finish_after_commit(is_finished=is_finished)
    elif not is_finished:
        stream = keys.stream(claim.generation_id)
        call = commands.streams.finish_call(stream, claim, sharded=namespace.sharded)
        reply = await namespace.run(call)
        try:
            outcome = commands.streams.send_reply(call, stream, reply)
        except (Refused, Corrupt) as error:
            log.warning("a commit was made, but the stream that it finishes was not: %s", error)
        else:
            if outcome != Ended("finished") and not isinstance(outcome, Sent):
                log.warning("a commit was made, but the stream that it finishes was not: %s", outcome)
