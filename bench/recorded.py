"""How much does one core of a server hold? What clients asked for is recorded once, then sent again by a bare client.

On a machine of few cores workers fill theirs before the server fills its own. So one process that makes nothing and
decodes nothing keeps 1 to 16 connections busy, each of which asks again when it was answered: where more of them bring
no more through, and the server uses the whole of a core, that is what a core holds.

commit   two messages, 12 KB of new state, 20 KB of tool state by ref; from 100 messages to 196.
resume   everything of a session of 100 messages by a process that keeps its components: one round trip.
resume by another   the same by a process that has the tool state and not the session's own: two.
refresh  of the same, nothing new.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis
import redis as blocking
import redis.asyncio as redis

from bench import workload
from bench.load import Line, Meter
from bench.measure import Wire, wire_to
from lash_redis import FullGraph, SessionCache

OPERATIONS = ("commit", "resume", "resume by another", "refresh")
COUNTS = (1, 2, 4, 8, 16)
NODES, SESSIONS, TURNS = 100, 32, 48


@dataclass(slots=True)
class Trip:
    request: bytes
    replies: int
    """How many commands it is made of, each of which is answered."""
    answer: int = 0
    """Bytes of the answer, where it is always the same and was once looked at: then they are only counted."""

    @classmethod
    def of(cls, request: bytes) -> Trip:
        reader, count = hiredis.Reader(), 0
        reader.feed(request)
        while reader.gets() is not False:
            count += 1
        return cls(request, count)


Operation = list[Trip]


@dataclass(slots=True)
class Recording:
    """What one server was sent: what makes its sessions and, session by session, each operation in its order."""

    beginnings: list[Trip] = field(default_factory=list)
    sessions: list[dict[str, list[Operation]]] = field(default_factory=list)

    def orders(self, operation: str, connections: int) -> list[list[Operation]]:
        """For each connection: its sessions take turns, as often as each was committed to."""
        orders = []
        for place in range(connections):
            share = self.sessions[place::connections]
            times = len(share[0]["commit"]) if share else 0
            queues = [session[operation] * (1 if operation == "commit" else times) for session in share]
            orders.append([each for turn in zip(*queues, strict=True) for each in turn])
        return orders


async def recordings(
    cache: SessionCache, other: SessionCache, wires: Sequence[Wire], sessions: int = SESSIONS, turns: int = TURNS
) -> list[Recording]:
    """By wire: what `cache` and `other`, another process as it were, send through them. One wire hears each session."""
    tools, found = workload.tool_state(), [Recording() for _ in wires]
    await cache.preload()
    for name in ("tools", *map(str, range(sessions))):
        session = workload.Session(cache, name)
        heard = await _listened(wires, session.begin(tools, workload.line(0, NODES, None)))
        for recording, trips in zip(found, heard, strict=True):
            recording.beginnings += [trip for trip in trips if b"EVALSHA" in trip.request[:24]]  # and no greetings
        read = await cache.session(name).load_session(FullGraph())
        assert read is not None
        if name == "tools":  # which both have from now on
            await other.session(name).load_session(FullGraph())
            continue
        made: dict[str, list[Operation]] = {}
        for operation, asked in (
            ("resume", cache.session(name).load_session(FullGraph())),
            ("refresh", cache.session(name).refresh(read)),
            ("resume by another", other.session(name).load_session(FullGraph())),
        ):
            place, trips = _only(await _listened(wires, asked))
            made[operation] = [trips]
        made["commit"] = [_only(await _listened(wires, session.take(session.turn())))[1] for _ in range(turns)]
        found[place].sessions.append(made)
    return found


async def _listened(wires: Sequence[Wire], asked: Any) -> list[list[Trip]]:
    """What each wire hears while something is asked."""
    heard: list[list[bytes]] = [[] for _ in wires]
    for wire, requests in zip(wires, heard, strict=True):
        wire.heard = requests
    await asked
    return [[Trip.of(request) for request in requests] for requests in heard]


def _only(heard: Sequence[list[Trip]]) -> tuple[int, list[Trip]]:
    """The one wire that heard something, and what."""
    (found,) = ((place, trips) for place, trips in enumerate(heard) if trips)
    return found


async def recorded(url: str, sessions: int = SESSIONS, turns: int = TURNS) -> Recording:
    async with wire_to(url) as (relay, wire), redis.from_url(relay) as client:
        caches = (SessionCache(client, "recorded"), SessionCache(client, "recorded"))
        (recording,) = await recordings(*caches, [wire], sessions, turns)
    return recording


# The bare client


class Connection:
    """Sends one order of operations, the next when the last is answered."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(unquote(parts.path))
        else:
            self.socket = socket.create_connection((parts.hostname, parts.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.up = self.down = 0
        self.learns = False
        """Whether each answer is looked at, and its size kept."""
        self.taken: list[float] = []
        """µs of each operation."""
        self.words: set[Any] = set()
        """What scripts answered."""
        self._reader = hiredis.Reader()
        self._buffer = memoryview(bytearray(1 << 20))
        self._order: Iterator[Operation] = iter(())
        self._trips: Iterator[Trip] = iter(())
        self._trip = Trip(b"", 0)
        self._awaited = self._came = 0
        self._started = 0.0

    def start(self, order: Sequence[Operation]) -> bool:
        """Whether there is anything to wait for."""
        self._order = iter(order)
        return self._next()

    def receive(self) -> bool:
        """Take what came; whether there is more to wait for."""
        size = self.socket.recv_into(self._buffer)
        if not size:
            raise ConnectionResetError("the server closed the connection")
        self.down += size
        self._came += size
        if not self._answered(size):
            return True
        if self._send():
            return True
        self.taken.append((perf_counter() - self._started) * 1e6)
        return self._next()

    def _answered(self, size: int) -> bool:
        """Whether the answer is whole, with the last `size` bytes."""
        if self._trip.answer and not self.learns:
            assert self._came <= self._trip.answer, "another answer than the first time"
            return self._came == self._trip.answer
        self._reader.feed(bytes(self._buffer[:size]))
        while self._awaited:
            reply = self._reader.gets()
            if reply is False:
                return False
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            self._awaited -= 1
            if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
                self.words.add(reply[0])
        if self.learns:
            self._trip.answer = self._came
        return True

    def _next(self) -> bool:
        operation = next(self._order, None)
        if operation is None:
            return False
        self._trips, self._started = iter(operation), perf_counter()
        return self._send()

    def _send(self) -> bool:
        trip = next(self._trips, None)
        if trip is None:
            return False
        self._trip, self._awaited, self._came = trip, trip.replies, 0
        self.up += len(trip.request)
        self.socket.sendall(trip.request)
        return True


@contextmanager
def connected(urls: Sequence[str]) -> Iterator[list[Connection]]:
    with ExitStack() as ending:
        connections = [Connection(url) for url in urls]
        for connection in connections:
            ending.callback(connection.socket.close)
        yield connections


def play(connections: Sequence[Connection], orders: Sequence[Sequence[Operation]]) -> None:
    """Each connection its order, all of them at once."""
    with selectors.DefaultSelector() as ready:
        for connection, order in zip(connections, orders, strict=True):
            if connection.start(order):
                ready.register(connection.socket, selectors.EVENT_READ, connection)
        while ready.get_map():
            for key, _ in ready.select():
                if not key.data.receive():
                    ready.unregister(key.fileobj)


def begin(url: str, recording: Recording) -> None:
    """Empty the server, which has the scripts, and make the sessions."""
    with blocking.Redis.from_url(url) as client, connected([url]) as (connection,):
        client.flushall()
        play([connection], [[[trip] for trip in recording.beginnings]])


def learn(url: str, recording: Recording, operation: str) -> None:
    """Look at the answers of reads once."""
    with connected([url]) as (connection,):
        connection.learns = True
        play([connection], [[each for session in recording.sessions for each in session[operation]]])


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what it was sent when it was recorded."""

    url: str
    recording: Recording
    askers: str = "connections"


def played(targets: Sequence[Target], operation: str, connections: int, rounds: int) -> list[Line]:
    """One operation on so many connections to one target after the other, `rounds` times over."""
    with ExitStack() as ending:
        loads = [ending.enter_context(loaded(target, operation, connections)) for target in targets]
        for _ in range(rounds):
            for load in loads:
                load.begin()
                with load.meter.running():
                    play(load.connections, load.orders)
    return [_line(operation, load.target.askers, load.connections, load.meter) for load in loads]


def at_once(targets: Sequence[Target], operation: str, connections: int, rounds: int) -> Line:
    """One operation on all targets at the same time; what the servers used, summed."""
    with ExitStack() as ending:
        loads = [ending.enter_context(loaded(target, operation, connections)) for target in targets]
        everybody = [connection for load in loads for connection in load.connections]
        orders = [order for load in loads for order in load.orders]
        for _ in range(rounds):
            for load in loads:
                load.begin()
            with ExitStack() as running:
                for load in loads:
                    running.enter_context(load.meter.running())
                play(everybody, orders)
        first, *others = loads
        for load in others:
            first.meter.processor += load.meter.processor
            first.meter.commands += load.meter.commands
    return _line(operation, "to all at once", everybody, first.meter)


@dataclass(slots=True)
class Load:
    """One operation on its connections to one target."""

    target: Target
    operation: str
    connections: list[Connection]
    meter: Meter

    @property
    def orders(self) -> list[list[Operation]]:
        return self.target.recording.orders(self.operation, len(self.connections))

    def begin(self) -> None:
        """Each round of commits begins anew; reads find what is there."""
        if self.operation == "commit":
            begin(self.target.url, self.target.recording)


def _line(operation: str, askers: str, connections: Sequence[Connection], meter: Meter) -> Line:
    taken = [took for connection in connections for took in connection.taken]
    if operation == "commit":
        words = set().union(*(connection.words for connection in connections))
        assert words == {b"committed"}, words
    up, down = (sum(getattr(each, way) for each in connections) / len(taken) for way in ("up", "down"))
    return meter.line(operation, askers, len(connections), taken, up=up, down=down)


@contextmanager
def loaded(target: Target, operation: str, connections: int) -> Iterator[Load]:
    with blocking.Redis.from_url(target.url) as client, connected([target.url] * connections) as lines:
        begin(target.url, target.recording)
        if operation != "commit":
            learn(target.url, target.recording, operation)
        yield Load(target, operation, lines, Meter(client))


def by_connections(url: str, recording: Recording, rounds: int, counts: Sequence[int] = COUNTS) -> list[Line]:
    target = Target(url, recording)
    lines: list[Line] = []
    for operation in OPERATIONS:
        for count in counts:
            lines += played([target], operation, count, rounds)
    return lines


FULL = 0.9
"""Share of a core from which it counts as full: the rest is what the kernel and the neighbours take."""


def saturated(lines: Sequence[Line]) -> Mapping[str, Line | None]:
    """By operation: the fewest connections that fill the server's core; None where they do not."""
    return {
        operation: next((line for line in lines if line.operation == operation and line.busy >= FULL), None)
        for operation in dict.fromkeys(line.operation for line in lines)
    }
