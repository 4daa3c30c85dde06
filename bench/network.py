"""What if the server were further off? A relay before it that holds back what passes, each way by half a round trip.

A process of its own: a thread would take turns with the interpreter that is measured. It sleeps until shortly before
something is due and then looks at the clock, where asyncio's timers are whole milliseconds. What comes in while other
bytes wait has a due time of its own: distance, not a narrower line. Nothing is lost, no bandwidth is set, and no
connection starts slowly.
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
"""Bytes that one way of a connection holds back at most; the sender waits then."""
MAX_CONNECTIONS = 256
SLACK = Path("/proc/self/timerslack_ns")
"""How much later than asked for Linux lets a sleep end, for its own convenience: 50 µs unless told otherwise."""
OVERSLEPT_NS = 25_000 if SLACK.exists() else 200_000
"""How much later a sleep does end then; this last part of a wait is spent looking at the clock."""


@contextmanager
def further_off(url: str, rtt_ms: float) -> Iterator[str]:
    """The URL, on loopback, of a relay to `url` (TCP) through which a round trip takes `rtt_ms` longer, or a bit more.

    The relay's own work comes on top: some 40 µs where cores are free, and of large replies 0.5 to 1 ms a MB, as it
    shares two cores with both ends. Who waits longer also goes on colder, as over any network: a commit begun after a
    pause of 0.8 ms takes 0.2 ms longer without a relay, too. It ends with this context, or with this process where that
    is killed.
    """
    if urlsplit(url).hostname is None:
        raise ValueError(f"{url} is not over TCP")
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
    """One end of a connection: what it is to be sent, each piece with the time it is due."""

    def __init__(self, its: socket.socket) -> None:
        its.setblocking(False)
        its.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = its
        self.other: _End
        self.waiting: deque[tuple[int, memoryview]] = deque()
        self.held = 0
        self.full = False
        """Its socket took no more."""
        self.said_all = self.told_all = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def talks(self) -> bool:
        """Whether it is listened to: until it has said all, and while its other end holds back little."""
        return not self.said_all and self.other.held < MAX_WAITING

    def due(self) -> int | None:
        return self.waiting[0][0] if self.waiting and not self.full else None


class _Relay:
    def __init__(self, url: str, rtt_ms: float) -> None:
        parts = urlsplit(url)
        self._server = parts.hostname, parts.port or 6379
        self._half_ns = int(rtt_ms * 1e6 / 2)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._ends: list[_End] = []
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self, lifeline: int) -> None:
        """Until `lifeline`, a pipe, ends."""
        while True:
            listened: list[Any] = [lifeline, self._listener, *(end for end in self._ends if end.talks())]
            full = [end for end in self._ends if end.full]
            heard, roomy, _ = select.select(listened, full, (), self._patience())
            now = perf_counter_ns()
            for end in roomy:
                end.full = False
            for source in heard:
                if source == lifeline:
                    return
                if source is self._listener:
                    self._accept()
                else:
                    self._hear(source, now)
            now = perf_counter_ns()
            for end in [*self._ends]:
                due = end.due()
                if due is not None and due <= now:
                    self._tell(end, now)

    def _patience(self) -> float | None:
        """Seconds to sleep before something is due; 0 where it is too soon to sleep, None where nothing waits."""
        dues = [due for end in self._ends if (due := end.due()) is not None]
        return max(0, min(dues) - perf_counter_ns() - OVERSLEPT_NS) / 1e9 if dues else None

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
        asks, answers = _End(client), _End(server)
        asks.other, answers.other = answers, asks
        self._ends += [asks, answers]

    def _hear(self, end: _End, now: int) -> None:
        try:
            data = end.socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(end)
            return
        end.said_all = not data
        end.other.waiting.append((now + self._half_ns, memoryview(data)))
        end.other.held += len(data)

    def _tell(self, end: _End, now: int) -> None:
        """What is due, as much as its socket takes. An empty piece says that the other end has said all."""
        try:
            while end.waiting and end.waiting[0][0] <= now:
                due, data = end.waiting[0]
                sent = end.socket.send(data) if data else 0
                end.held -= sent
                if sent < len(data):
                    end.waiting[0] = due, data[sent:]
                    continue
                end.waiting.popleft()
                if not data:
                    end.socket.shutdown(socket.SHUT_WR)
                    end.told_all = True
        except BlockingIOError:
            end.full = True
        except OSError:
            self._drop(end)
            return
        if end.told_all and end.other.told_all:
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
