"""What is compared, operation by operation: ours, bare and the floor on sessions of the same content.

commit        2 nodes and new plugin and execution states, in turn on sessions that begin with the setting's nodes.
full read     everything of a session of ten branches, its components already in this process.
cold read     the same by a process that keeps no components (`blob_cache_bytes=0`).
path read     the path of 100 nodes (all, in a smaller graph), which lies in ten pieces.
refresh       nothing is new. Bare: one HMGET of the head.
refresh of 2  two nodes and two components are new. Bare: the HMGET, an LRANGE of two and four GETs.
node read     one node by its id. Bare: one HGET, its author having kept the records in a hash as well.
listing       100 lines with each session's first message. Bare: a ZREVRANGE, then 100 HMGETs and LINDEXes.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import bare, commits, floor, memory, reads, workload
from bench.measure import Contender, together
from lash_redis import (
    ActivePath,
    FullGraph,
    PersistedSessionRead,
    RedisSessionStore,
    SessionCache,
    SessionNodeRecord,
    StoreOptions,
    connect,
)

READING, WRITING, LISTED = "grid", "grid-writing", "grid-listed"
READER = "reader"
PAGE = 100
PATH = 100
TURNING = 20
"""Short sessions that take turns in commits, so that none grows out of its setting soon."""

READS = ("full read", "cold read", "path read", "node read")
REFRESHES = ("refresh", "refresh of 2") if hasattr(RedisSessionStore, "refresh") else ()
OPERATIONS = ("commit", *READS, *REFRESHES, "listing")


@dataclass(frozen=True, slots=True)
class Setting:
    """The workload of the budgets, but for what is said otherwise."""

    nodes: int = 1000
    sizes: workload.Sizes = workload.USUAL
    sessions: int = 200
    loop: str = "asyncio"
    protocol: int = 3
    tasks: int = 1
    transport: str = "unix socket"


@dataclass(frozen=True, slots=True)
class Way:
    """Connections of every contender to one address, for so many tasks at once."""

    warm: SessionCache
    cold: SessionCache
    writing: SessionCache
    listed: SessionCache
    client: redis.Redis
    sockets: Sequence[floor.Socket]


@asynccontextmanager
async def way_to(url: str, tasks: int) -> AsyncIterator[Way]:
    async with AsyncExitStack() as stack:

        async def cache(namespace: str, **options: Any) -> SessionCache:
            return await stack.enter_async_context(connect(url, namespace=namespace, options=StoreOptions(**options)))

        sockets = [await floor.Socket.to(url) for _ in range(tasks)]
        for socket in sockets:
            stack.callback(socket.close)
        yield Way(
            await cache(READING),
            await cache(READING, blob_cache_bytes=0),
            await cache(WRITING),
            await cache(LISTED),
            await stack.enter_async_context(redis.from_url(url)),
            sockets,
        )


class Stage:
    """The sessions of one setting. Made by `set_up`; its contenders may go any way to the same server."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._tools = workload.tool_state(setting.sizes.tools) if setting.sizes.tools else None
        self._packed_tools = b"" if self._tools is None else msgpack.packb(self._tools.to_msgpack())
        self._writers: list[workload.Session] = []
        self._bare_writers: dict[str, list[bare.Session]] = {"bare": [], "floor": []}
        self._nodes: list[SessionNodeRecord] = []
        self._plain: bare.Session
        self._before: PersistedSessionRead
        self._now: PersistedSessionRead

    async def set_up(self, way: Way, operations: Sequence[str]) -> None:
        if "commit" in operations:
            await self._make_writers(way)
        if set(operations) & {*READS, *REFRESHES}:
            await self._make_reader(way)
        if "listing" in operations:
            await self._make_listed(way)

    async def _make_writers(self, way: Way) -> None:
        nodes = workload.line(0, self.setting.nodes, None)
        for number in range(max(self.setting.tasks, TURNING if self.setting.nodes <= 100 else 1)):
            writer = workload.Session(way.writing, f"writer-{number}", self.setting.sizes)
            await writer.begin(self._tools, nodes)
            self._writers.append(writer)
            for name, sessions in self._bare_writers.items():
                sessions.append(self._bare(way, f"{name}-{number}"))
                await sessions[-1].begin(nodes)

    async def _make_reader(self, way: Way) -> None:
        total = self.setting.nodes
        path = min(PATH, total)
        self._nodes = workload.forked(total, path, 10 if total > path else 1)
        session = workload.Session(way.warm, READER, self.setting.sizes)
        await session.begin(self._tools, self._nodes)
        self._plain = self._bare(way, READER)
        await self._plain.begin(self._nodes)
        self._before = await _read(session.store)
        await session.take(session.turn())
        await way.client.evalsha(bare.COMMIT_SHA, *self._plain.turn())
        self._now = await _read(session.store)
        records = {node.node_id: workload.packed(node) for node in self._nodes}
        await way.client.hset("bare:records", mapping=records)  # type: ignore[arg-type]

    async def _make_listed(self, way: Way) -> None:
        pipeline = way.client.pipeline(transaction=False)
        for number in range(self.setting.sessions):
            name, nodes = f"listed-{number:06d}", workload.line(0, 2, None)
            await workload.Session(way.listed, name).begin(None, nodes, states=False)
            head = {"revision": 1, "cwd": "", "parent": "", "users": 1}
            pipeline.hset(f"bare:head:{name}", mapping=head)  # type: ignore[arg-type]
            pipeline.rpush(f"bare:log:{name}", *map(workload.packed, nodes))
            pipeline.zadd("bare:sessions", {name: number})
        await pipeline.execute()

    def _bare(self, way: Way, session_id: str) -> bare.Session:
        return bare.Session(way.client, session_id, self._packed_tools, self.setting.sizes)

    @property
    def writing(self) -> int:
        """How many sessions take turns in commits: each handle's first commit may have to ask for the head's refs."""
        return len(self._writers)

    async def memory(self, client: redis.Redis) -> dict[str, float]:
        """Bytes of the session that is read, its components and every key that is there for it alone."""
        return {
            "ours": await memory.usage(client, f"lash2:{{{READING}:*"),
            "bare": await memory.usage(client, f"bare:*:{READER}"),
        }

    def contenders(self, operation: str, way: Way) -> dict[str, Contender]:
        """Each does as many operations at once as `way` has sockets."""
        if operation == "commit":
            return self._committing(way)
        single = self._reading(operation, way)
        read, trips = single["ours"], single["bare"]
        return {
            "ours": together([read] * len(way.sockets)),
            "bare": together([_piping(way.client, trips)] * len(way.sockets)),
            "floor": together([floor.asking(socket, trips) for socket in way.sockets]),
        }

    def _committing(self, way: Way) -> dict[str, Contender]:
        count = len(way.sockets)
        for writer in self._writers:
            writer.store = way.writing.session(writer.store.session_id)
        for session in self._bare_writers["bare"]:
            session.client = way.client
        ours = [commits.ours(self._writers[task::count]) for task in range(count)]
        plain = [_in_turn(map(commits.bared, self._bare_writers["bare"][task::count])) for task in range(count)]
        raw = [
            _in_turn([floor.committing(socket, session) for session in self._bare_writers["floor"][task::count]])
            for task, socket in enumerate(way.sockets)
        ]
        return {"ours": together(ours), "bare": together(plain), "floor": together(raw)}

    def _reading(self, operation: str, way: Way) -> dict[str, Any]:
        """How we do it, and the commands that do it, a list for each round trip."""
        plain = self._plain if operation != "listing" else None
        match operation:
            case "full read" | "cold read":
                cache = way.warm if operation == "full read" else way.cold
                return {"ours": reads.full(cache, READER), "bare": [plain and plain.reading()]}
            case "path read":
                leaf = self._nodes[-1].node_id
                spans = spans_of(self._nodes)
                ours = Contender(lambda: way.warm.session(READER).load_session(ActivePath(leaf)))
                return {"ours": ours, "bare": [plain and plain.reading(spans)]}
            case "refresh":
                return {"ours": self._refreshing(way, self._now), "bare": [[self._head()]]}
            case "refresh of 2":
                tail = plain and plain.reading([(-2, -1)])[1:]
                return {"ours": self._refreshing(way, self._before), "bare": [[self._head(), *(tail or ())]]}
            case "node read":
                node_id = random.Random(1).choice(self._nodes).node_id
                ours = Contender(lambda: way.warm.session(READER).load_node(node_id))
                return {"ours": ours, "bare": [[("HGET", "bare:records", node_id)]]}
            case _:
                return {"ours": Contender(lambda: _page(way.listed)), "bare": self._listing()}

    def _head(self) -> bare.Command:
        return ("HMGET", self._plain.head, "revision", "leaf", "commit", "config", "ref")

    def _refreshing(self, way: Way, read: PersistedSessionRead) -> Contender:
        return Contender(lambda: way.warm.session(READER).refresh(read))

    def _listing(self) -> list[list[bare.Command]]:
        lines: list[bare.Command] = []
        for number in range(self.setting.sessions - PAGE, self.setting.sessions):
            name = f"listed-{number:06d}"
            lines += [("HMGET", f"bare:head:{name}", "revision", "cwd", "parent", "users")]
            lines += [("LINDEX", f"bare:log:{name}", 0)]
        return [[("ZREVRANGE", "bare:sessions", 0, PAGE - 1, "WITHSCORES")], lines]


def spans_of(nodes: Sequence[SessionNodeRecord]) -> list[tuple[int, int]]:
    """The runs of places, first to last, that the path of the last node lies in."""
    places = {node.node_id: place for place, node in enumerate(nodes)}
    place: int | None = len(nodes) - 1
    spans: list[tuple[int, int]] = []
    while place is not None:
        if spans and spans[-1][0] == place + 1:
            spans[-1] = (place, spans[-1][1])
        else:
            spans.append((place, place))
        parent = nodes[place].parent_node_id
        place = None if parent is None else places[parent]
    return spans[::-1]


async def _read(store: RedisSessionStore) -> PersistedSessionRead:
    read = await store.load_session(FullGraph())
    assert read is not None
    return read


async def _page(cache: SessionCache) -> list[object]:
    page: list[object] = [info async for info in cache.sessions(limit=PAGE)]
    assert len(page) == PAGE
    return page


def _piping(client: redis.Redis, trips: Sequence[Sequence[bare.Command]]) -> Contender:
    async def run() -> None:
        for commands in trips:
            if len(commands) == 1:
                await client.execute_command(*commands[0])  # type: ignore[no-untyped-call]
            else:
                await bare.pipelined(client, commands)

    return Contender(run)


def _in_turn(contenders: Any) -> Contender:
    """One of them at a time, each with what it prepared."""
    turns = cycle(list(contenders))

    async def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        contender = next(turns)
        return contender.run, await contender.made()

    async def run(made: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        await made[0](*made[1])

    return Contender(run, make)
