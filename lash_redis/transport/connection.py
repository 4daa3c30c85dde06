"""One connection to a server: any number of requests in flight, replies in the order of the requests.

The replies of a cancelled request are read and dropped, so the connection stays usable. A reply that does not arrive in
time fails its own request. The connection then accepts no further requests, and closes when the others in flight have
ended. Bytes that are not RESP, and a lost connection, fail every request in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis

from lash_redis.transport.failures import ConnectionLost, NoReply, NotSent, OutOfTime, reply_error

CLOSE_TIMEOUT: Final = 1.0
"""The longest wait, in seconds, until a closed connection has ended."""

_Pending = tuple["asyncio.Future[list[Any]]", int, list[Any], float, float]
"""A request in flight: its future, the number of its replies, the replies so far, its deadline, the time of sending."""


class Connection(asyncio.Protocol):
    """An open and authenticated connection, which takes over the transport of redis-py.

    `on_unusable` is called once, as soon as no further request may be sent: the connection was lost, or a reply is
    late.
    """

    def __init__(self, address: str, on_unusable: Callable[[Connection], None]) -> None:
        self.address = address
        self.is_usable = True
        self._on_unusable = on_unusable
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._reader = hiredis.Reader(replyError=reply_error, errors="replace")
        self._pending: deque[_Pending] = deque()
        self._unwritten: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._kept: Any = None
        self.used_at = self._loop.time()

    def take_over(self, transport: asyncio.Transport, kept: Any) -> None:
        """Read from and write to `transport` from now on. `kept` is an object that must live as long as it."""
        self._transport, self._kept = transport, kept
        transport.set_protocol(self)
        if transport.is_closing():  # it was lost earlier, and only the former protocol was notified
            self.connection_lost(None)

    @property
    def in_flight(self) -> int:
        """The number of requests whose replies have not arrived, cancelled requests included."""
        return len(self._pending)

    # Sending

    def ask(self, wire: bytes, count: int, deadline: float, timeout: float) -> asyncio.Future[list[Any]]:
        """Send packed commands; the future gets their `count` replies, errors included.

        On an idle connection, the bytes are written at once. While requests are in flight, the requests of all tasks
        are joined to one write at the end of the event loop's iteration.

        The future raises:
            NotSent: the connection was unusable already; nothing was sent.
            OutOfTime: `deadline` had passed already; nothing was sent.
            ConnectionLost: the connection ended before all replies had arrived.
            NoReply: `deadline` passed by the event loop's clock, or `timeout` seconds passed.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if not self.is_usable:
            future.set_exception(NotSent(f"the connection to {self.address} has ended"))
            return future
        now = self._loop.time()
        if deadline <= now:
            future.set_exception(OutOfTime(f"the deadline of the call passed before it was sent to {self.address}"))
            return future
        pending = self._pending
        if not pending:
            self._transport.write(wire)
        elif self._unwritten:
            self._unwritten.append(wire)
        else:
            self._unwritten.append(wire)
            self._loop.call_soon(self._write)
        deadline = min(deadline, now + timeout)
        pending.append((future, count, [], deadline, now))
        timer = self._timer
        if timer is None or deadline < timer.when():
            self._time(deadline)
        return future

    def _write(self) -> None:
        wires, self._unwritten = self._unwritten, []
        if wires and not self._transport.is_closing():
            self._transport.write(wires[0] if len(wires) == 1 else b"".join(wires))

    # Receiving

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            gets = reader.gets
            while pending:
                future, count, replies, _, _ = pending[0]
                while len(replies) < count:
                    reply = gets()
                    if reply is False:
                        return
                    if type(reply) is not hiredis.PushNotification:
                        replies.append(reply)
                pending.popleft()
                if not future.done():
                    future.set_result(replies)
        except (hiredis.HiredisError, MemoryError, TypeError, UnicodeError) as error:  # TypeError: an array as a key
            self._fail(ConnectionLost(f"{self.address} sent bytes that are not valid RESP: {error}"))
            return
        self.used_at = self._loop.time()
        self._drop_pushes()
        if not self.is_usable:
            self.close()  # the late replies have arrived, and no other request is in flight

    def _drop_pushes(self) -> None:
        """Read and drop the RESP3 pushes that arrive while no request is in flight. Any other reply is an error."""
        while (reply := self._reader.gets()) is not False:
            if type(reply) is not hiredis.PushNotification:
                self._fail(ConnectionLost(f"{self.address} sent a reply without a request"))
                return

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionLost(f"the connection to {self.address} was lost{f': {error}' if error else ''}"))
        if not self.closed.done():
            self.closed.set_result(None)
        self._kept = None

    # Ending

    def _fail(self, error: Exception) -> None:
        """Fail every request in flight and end the connection."""
        self._retire()
        pending, self._pending = self._pending, deque()
        unwritten = len(self._unwritten)
        self._unwritten.clear()
        for place, (future, *_) in enumerate(pending):
            if not future.done():
                is_written = place < len(pending) - unwritten
                future.set_exception(error if is_written else NotSent(str(error)))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()

    def _retire(self) -> None:
        """Accept no further request."""
        if self.is_usable:
            self.is_usable = False
            self._on_unusable(self)

    def close(self) -> None:
        """End the connection; requests in flight fail with ConnectionLost."""
        self._fail(ConnectionLost(f"the connection to {self.address} was closed"))

    def abandon(self) -> None:
        """Close from any thread, without a task, for a cache that was dropped without being closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for `CLOSE_TIMEOUT` at most."""
        await asyncio.wait([self.closed], timeout=CLOSE_TIMEOUT)

    # Time

    def _time(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Fail the requests whose deadline has passed. The connection then accepts no further request."""
        self._timer = None
        now = self._loop.time()
        late = [each for each in self._pending if each[3] <= now]
        for future, _, _, deadline, sent_at in late:
            if not future.done():
                waited = deadline - sent_at
                future.set_exception(NoReply(f"no reply from {self.address} within {waited:.3g} seconds"))
        waiting = [each[3] for each in self._pending if not each[0].done()]
        if late:
            self._retire()
            if not waiting:
                self.close()
                return
        if self._pending:
            self._time(min(each[3] for each in self._pending if each[3] > now))
