"""How long does an operation take over a slower network? A relay delays all bytes, each way by half a round trip.

The relay is a process, because a thread would compete with the measured code for the interpreter. It sleeps until
shortly before bytes are due and then polls the clock, because asyncio's timers have a resolution of a millisecond.
Each piece of data has a due time of its own, so the relay adds latency and does not limit bandwidth. It loses
nothing.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any
from urllib.parse import urlsplit

CHUNK = 64 * 1024
MAX_WAITING = 64 * 1024 * 1024
"""Maximum number of delayed bytes for one direction of a connection. Beyond it the relay stops reading."""
MAX_CONNECTIONS = 256
SLACK = Path("/proc/self/timerslack_ns")
"""The file that sets by how much Linux may extend a sleep; the default is 50 µs."""
OVERSLEEP_NS = 25_000 if SLACK.exists() else 200_000
"""How much too late a sleep may end. The relay polls the clock for this last part of a wait."""


@contextmanager
def relay_with_latency(url: str, rtt_ms: float) -> Iterator[str]:
    """Run a relay to `url` (TCP) that makes a round trip `rtt_ms` longer; yield its URL on loopback.

    The relay itself adds about 40 µs if a core is free, and 0.5 to 1 ms for each MB of a reply, because it shares two
    cores with both ends. Waiting also cools the processor's caches, as on any network: a commit after a pause of 0.8 ms
    takes 0.2 ms longer even without a relay. The relay ends with this context, or if this process is killed.
    """
    if urlsplit(url).hostname is None:
        raise ValueError(f"expected the URL of a server on TCP, got {url}")
    command = [sys.executable, "-m", "bench.network", url, str(rtt_ms)]
    where = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=where, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            relay = process.stdout.readline().strip()
            if not relay:
                raise RuntimeError(f"the relay to {url} did not start")
            yield relay
        finally:
            process.kill()


class _End:
    """One end of a connection, and the data to send to it, each piece with the time when it is due."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.other: _End
        self.waiting: deque[tuple[int, memoryview]] = deque()
        self.waiting_bytes = 0
        self.is_full = False
        """Whether the send buffer of the socket is full."""
        self.is_read_closed = self.is_write_closed = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def is_readable(self) -> bool:
        """Whether to read from this end: it has not closed its side, and the other end has few delayed bytes."""
        return not self.is_read_closed and self.other.waiting_bytes < MAX_WAITING

    def due(self) -> int | None:
        return self.waiting[0][0] if self.waiting and not self.is_full else None


class _Relay:
    def __init__(self, url: str, rtt_ms: float) -> None:
        parts = urlsplit(url)
        self._server = parts.hostname, parts.port or 6379
        self._half_ns = int(rtt_ms * 1e6 / 2)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._ends: list[_End] = []
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self, owner_pipe: int) -> None:
        """Relay until the pipe `owner_pipe` is closed."""
        while True:
            sources: list[Any] = [owner_pipe, self._listener, *(end for end in self._ends if end.is_readable())]
            full = [end for end in self._ends if end.is_full]
            readable, writable, _ = select.select(sources, full, (), self._sleep_seconds())
            now = perf_counter_ns()
            for end in writable:
                end.is_full = False
            for source in readable:
                if source == owner_pipe:
                    return
                if source is self._listener:
                    self._accept()
                else:
                    self._receive(source, now)
            now = perf_counter_ns()
            for end in [*self._ends]:
                due = end.due()
                if due is not None and due <= now:
                    self._send_due(end, now)

    def _sleep_seconds(self) -> float | None:
        """Return for how many seconds to sleep: 0 if data is due too soon for a sleep, None if there is no data."""
        dues = [due for end in self._ends if (due := end.due()) is not None]
        return max(0, min(dues) - perf_counter_ns() - OVERSLEEP_NS) / 1e9 if dues else None

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            if len(self._ends) >= 2 * MAX_CONNECTIONS:
                raise ConnectionRefusedError
            server = socket.create_connection(self._server, timeout=5)
        except OSError:
            client.close()
            return
        client_end, server_end = _End(client), _End(server)
        client_end.other, server_end.other = server_end, client_end
        self._ends += [client_end, server_end]

    def _receive(self, end: _End, now: int) -> None:
        try:
            data = end.socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(end)
            return
        end.is_read_closed = not data
        end.other.waiting.append((now + self._half_ns, memoryview(data)))
        end.other.waiting_bytes += len(data)

    def _send_due(self, end: _End, now: int) -> None:
        """Send what is due, as much as the socket accepts. An empty piece means that the other end closed its side."""
        try:
            while end.waiting and end.waiting[0][0] <= now:
                due, data = end.waiting[0]
                sent = end.socket.send(data) if data else 0
                end.waiting_bytes -= sent
                if sent < len(data):
                    end.waiting[0] = due, data[sent:]
                    continue
                end.waiting.popleft()
                if not data:
                    end.socket.shutdown(socket.SHUT_WR)
                    end.is_write_closed = True
        except BlockingIOError:
            end.is_full = True
        except OSError:
            self._drop(end)
            return
        if end.is_write_closed and end.other.is_write_closed:
            self._drop(end)

    def _drop(self, end: _End) -> None:
        self._ends = [each for each in self._ends if each not in (end, end.other)]
        end.socket.close()
        end.other.socket.close()


def main() -> None:
    url, rtt_ms = sys.argv[1:]
    if SLACK.exists():
        SLACK.write_text("1")
    relay = _Relay(url, float(rtt_ms))
    print(relay.url, flush=True)
    relay.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
