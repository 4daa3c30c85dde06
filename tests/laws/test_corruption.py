"""If stored bytes are damaged, each operation returns correct data or names the damaged key.

`UNNOTICED` lists the exceptions and their reasons.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio

from lash_redis import (
    ActivePath,
    Append,
    Corrupt,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    MissingBlob,
    PersistedSessionConfig,
    PersistedSessionRead,
    PluginSessionSnapshot,
    RedisSessionStore,
    RuntimeCommit,
    SessionCache,
    SessionMeta,
    SessionNodeRecord,
    StoreError,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
)
from tests.support.builders import holds
from tests.support.servers import Server, Snapshot, snapshot

PREFIX = b"lash2:{damage:0}:"
FACTS = (
    "revision", "epoch", "length", "live", "jumps", "dead", "ids", "bytes", "leaf", "usage", "loose", "deadline",
    "hold", "committed", "users", "first", "high", "low",
)  # fmt: skip
TOOLS = ToolState(7, {"look": ToolStateEntry({"name": "look"}, "plugins")})
PLUGINS = PluginSessionSnapshot({})
STATE = bytes(range(256))
META = SessionMeta("chat", "name", "then", "m", "/")
LEDGER = [("turn", "m", 111, 2, 0, 0), ("plugin", "m", 5, 0, 0, 9)]


USERS = "abxefg"
"""The nodes that are messages of a user. The node ids of the twin are capital letters."""


def event_of(node_id: str) -> Any:
    if node_id.lower() not in USERS:
        return {"text": f"this is {node_id}"}
    parts = [{"kind": "Text", "content": f"this is {node_id}"}]
    return {"Conversation": {"id": node_id, "role": "User", "parts": parts}}


def record(node_id: str, parent: str | None) -> SessionNodeRecord:
    return SessionNodeRecord(node_id, parent, "t", EventPayload(event_of(node_id)))


async def write_session(store: RedisSessionStore, ids: str, state: bytes) -> None:
    """Write the paths a-b-c and a-d-e with the leaf e. x is tombstoned and vacuumed, y is only tombstoned."""
    a, b, c, x, y, d, e = ids
    checkpoint = HydratedSessionCheckpoint(tool_state=TOOLS, plugin_snapshot=PLUGINS, execution_state=state)
    ledger = [TokenLedgerEntry(source, model, TokenUsage(*counters)) for source, model, *counters in LEDGER]
    graph = Append([record(a, None), record(b, a), record(c, b), record(x, a)], c)
    await store.commit_runtime_state(RuntimeCommit(store.session_id, graph=graph, commit_id=f"{ids} first"))
    graph = Append([record(y, b), record(d, a), record(e, d)], e)
    await store.commit_runtime_state(
        RuntimeCommit(
            store.session_id, 1, graph=graph, checkpoint=checkpoint, usage_deltas=ledger, commit_id=f"{ids} second"
        )
    )
    await store.tombstone_nodes([x])
    await store.vacuum()
    await store.tombstone_nodes([y])
    await store.save_session_meta(SessionMeta(store.session_id, "name", "then", "m", "/"))


# What each operation returns without damage


def _content(read: PersistedSessionRead | None) -> Any:
    """Every part of a read, with every node decoded."""
    assert read is not None
    assert read.checkpoint is not None
    nodes = [(node.node_id, node.parent_node_id, node.event()) for node in read.graph.nodes]
    checkpoint = read.checkpoint
    return (
        (read.session_id, read.head_revision, read.commit_id, nodes),
        (checkpoint.tool_state, checkpoint.plugin_snapshot, checkpoint.execution_state),
        [(row.source, row.model, *_counters(row)) for row in read.token_ledger],
    )


def _counters(row: TokenLedgerEntry) -> tuple[int, ...]:
    usage = row.usage
    return usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens


def _expected(*nodes: tuple[str, str | None]) -> Any:
    shown = [(node_id, parent, event_of(node_id)) for node_id, parent in nodes]
    return ("chat", 2, "abcxyde second", shown), (TOOLS, PLUGINS, STATE), LEDGER


async def full(store: RedisSessionStore, _raw: Any) -> None:
    nodes = (("a", None), ("b", "a"), ("c", "b"), ("d", "a"), ("e", "d"))
    assert _content(await store.load_session(FullGraph())) == _expected(*nodes)


async def path(store: RedisSessionStore, _raw: Any) -> None:
    assert _content(await store.load_session(ActivePath())) == _expected(("a", None), ("d", "a"), ("e", "d"))


async def path_to_c(store: RedisSessionStore, _raw: Any) -> None:
    assert _content(await store.load_session(ActivePath("c"))) == _expected(("a", None), ("b", "a"), ("c", "b"))


async def node(store: RedisSessionStore, _raw: Any) -> None:
    for node_id, parent in (("a", None), ("b", "a"), ("e", "d")):
        found = await store.load_node(node_id)
        assert found is not None
        assert (found.node_id, found.parent_node_id, found.event()) == (node_id, parent, event_of(node_id))
    assert await store.load_node("y") is None


async def head(store: RedisSessionStore, _raw: Any) -> None:
    found = await store.load_head()
    assert found is not None
    ledger = [(row.source, row.model, *_counters(row)) for row in found.token_ledger]
    assert (found.session_id, found.head_revision, found.commit_id) == ("chat", 2, "abcxyde second")
    assert (found.leaf_node_id, found.graph_node_count, ledger) == ("e", 5, LEDGER)


async def meta(store: RedisSessionStore, _raw: Any) -> None:
    assert await store.load_session_meta() == META


async def tool_state_holders(raw: redis.asyncio.Redis) -> dict[int, int]:
    """The number of holders of the tool state by deadline, without holds that ended long ago."""
    seen = await holds(raw, PREFIX + b"blob:" + REFS["tool_state"].encode())
    return {hold: count for hold, count in seen.items() if hold != 1}


async def commit(store: RedisSessionStore, raw: redis.asyncio.Redis) -> None:
    checkpoint = HydratedSessionCheckpoint(
        tool_state_ref=REFS["tool_state"],
        plugin_snapshot_ref=REFS["plugin_snapshot"],
        execution_state_ref=REFS["execution_state"],
    )
    usage = [TokenLedgerEntry("turn", "m", TokenUsage(1))]
    graph = Append([record("f", "e"), record("g", "c")], "f")
    result = await store.commit_runtime_state(
        RuntimeCommit(  # it leaves nothing out, so that it does not read the head first
            "chat", 2, PersistedSessionConfig(), graph, checkpoint, usage, builds_on="abcxyde second"
        )
    )
    assert result.head_revision == 3
    assert await raw.lrange(PREFIX + b"jumps:chat", -1, -1) == [b"8:2"]
    assert await raw.hget(PREFIX + b"nodes:chat", "f") == b"7u"
    assert b"0 112 2 0 0" in await raw.hvals(PREFIX + b"head:chat")
    assert await tool_state_holders(raw) == {0: 2}
    assert sorted(await raw.hkeys(PREFIX + b"state:chat")) == [b"p", b"x"]


async def tombstone(store: RedisSessionStore, raw: redis.asyncio.Redis) -> None:
    await store.tombstone_nodes(["c", "e"])
    dead = await raw.hgetall(PREFIX + b"dead:chat")
    assert (dead.get(b"2"), dead.get(b"6")) == (b"c", b"e")


async def vacuum(store: RedisSessionStore, raw: redis.asyncio.Redis) -> None:
    assert (await store.vacuum()).removed_node_count == 1
    assert await raw.lindex(PREFIX + b"log:chat", 4) == b""
    assert not await raw.hexists(PREFIX + b"nodes:chat", "y")


async def gc(store: RedisSessionStore, raw: redis.asyncio.Redis) -> None:
    blobs = await raw.keys("*:blob:*")
    report = await store.gc_unreachable()
    assert (report.root_count, report.retained_blob_count, report.deleted_blob_count) == (1, 4, 0)
    assert await raw.keys("*:blob:*") == blobs


async def listing(_store: RedisSessionStore, raw: redis.asyncio.Redis) -> None:
    """The line of a damaged session contains its fault. The other session is listed without one."""
    cache = SessionCache(raw, "damage", options=StoreOptions(shards=1))
    try:
        lines = {line.session_id: line async for line in cache.sessions()}
    except Corrupt as error:
        if error.kind in ("sessions", "expiries"):
            raise
        pytest.fail(f"nothing is listed: {error!r}")
    assert set(lines) == {"chat", "twin"}
    assert (lines["twin"].fault, lines["twin"].user_message_count) == (None, 3)
    line = lines["chat"]
    if line.fault is not None:
        named = re.search(r"lash2:\{damage:0\}:\w+:chat(?=: )", line.fault)
        family = re.match(r"\w+(?=: is gone)", line.fault)
        raise Corrupt("listing", named[0] if named else f"{PREFIX.decode()}{family and family[0]}:chat", line.fault)
    assert (line.head_revision, line.user_message_count, line.first_user_message) == (2, 3, "this is a")
    assert (line.cwd, line.last_commit_ms) == ("/", await raw.zscore(PREFIX + b"sessions", "chat"))


async def touch(store: RedisSessionStore, raw: redis.asyncio.Redis) -> None:
    assert await store.touch(ttl=1_000)
    lifetimes = [
        await raw.pttl(PREFIX + family + b":chat")
        for family in (b"head", b"log", b"nodes", b"jumps", b"dead", b"state")
    ]
    assert all(900_000 < left <= 1_000_000 for left in lifetimes)
    seconds, _ = await raw.time()
    assert 999_000 < await raw.zscore(PREFIX + b"expiries", "chat") - 1000 * seconds < 1_061_000


async def delete(_store: RedisSessionStore, raw: redis.asyncio.Redis) -> None:
    """A damaged session can be deleted."""
    report = await SessionCache(raw, "damage", options=StoreOptions(shards=1)).delete("chat")
    left = {key for key in await raw.keys("*") if key.endswith(b":chat")}
    assert left == ({PREFIX + b"head:chat"} if report.closed else set())
    assert await raw.zscore(PREFIX + b"sessions", "chat") is None
    if report.closed:
        assert (report.existed, report.node_count, report.released_blob_count) == (True, 5, 3)
        assert await raw.hkeys(PREFIX + b"head:chat") == [b"deleted"]
        assert await tool_state_holders(raw) == {0: 1}


READS = (full, path, path_to_c, node, head, meta, listing)
WRITES = (commit, tombstone, vacuum, gc, touch, delete)
OPERATIONS = {operation.__name__: operation for operation in (*READS, *WRITES)}
REFS: dict[str, Any] = {}
SOUND: dict[str, Snapshot] = {}


# Damages: each takes the stored keys and one of them, and changes that one

Stored = dict[bytes, tuple[bytes, Any, bool]]
Damage = Callable[[Stored, bytes], None]


def _change(stored: Stored, key: bytes, change: Callable[[Any], Any]) -> None:
    kind, value, lasting = stored[key]
    stored[key] = (kind, change(value), lasting)


def deleted(stored: Stored, key: bytes) -> None:
    del stored[key]


def retyped(stored: Stored, key: bytes) -> None:
    """Store a value of another type. `expiries` and `orphans` are absent here and are created."""
    is_string = key in stored and stored[key][0] == b"string"
    stored[key] = (b"list", [b"x"], False) if is_string else (b"string", b"another type", False)


def emptied(stored: Stored, key: bytes) -> None:
    _change(stored, key, lambda value: [(each[0], b"") if isinstance(each, tuple) else b"" for each in value])


def halved(stored: Stored, key: bytes) -> None:
    _change(stored, key, lambda value: value[: len(value) // 2])


def cut_short(stored: Stored, key: bytes) -> None:
    def half(value: bytes) -> bytes:
        return value[: len(value) // 2]

    _change(stored, key, lambda value: [(e[0], half(e[1])) if isinstance(e, tuple) else half(e) for e in value])


def swapped(stored: Stored, key: bytes) -> None:
    stored[key] = stored[key.replace(b":chat", b":twin")]


def flipped(at: int, place: float, *, name: bool = False) -> Damage:
    """Flip one bit of the `at`-th element or of its name. `place` is between 0, its first byte, and 1, its last."""

    def flip(value: bytes) -> bytes:
        position = round(place * (len(value) - 1))
        return value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :] if value else b"\1"

    def change(value: list[Any]) -> list[Any]:
        out = list(value)
        each = out[at]
        if isinstance(each, bytes):
            out[at] = flip(each)
        else:
            out[at] = (flip(each[0]), each[1]) if name else (each[0], flip(each[1]))
        return out

    return lambda stored, key: _change(stored, key, change)


def field_flipped(field: bytes, place: float, *, name: bool = False) -> Damage:
    def damage(stored: Stored, key: bytes) -> None:
        at = next(at for at, (known, _) in enumerate(stored[key][1]) if known.startswith(field))
        flipped(at, place, name=name)(stored, key)

    return damage


def fact_flipped(at: int) -> Damage:
    """Change the last digit of one of the head's numbers by one bit."""

    def damage(stored: Stored, key: bytes) -> None:
        def change(value: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
            fields = dict(value)
            facts = fields[b"facts"].split(b" ")
            facts[at] = facts[at][:-1] + bytes([facts[at][-1] ^ 1])
            return list({**fields, b"facts": b" ".join(facts)}.items())

        _change(stored, key, change)

    return damage


def _damages() -> Iterator[tuple[str, bytes, Damage]]:
    """Yield the name, the key and the function of each damage."""
    for family in ("head", "log", "nodes", "jumps", "dead", "state"):
        key = PREFIX + family.encode() + b":chat"
        for damage in (deleted, retyped, emptied, halved, cut_short, swapped):
            # Halving the only tombstone equals `deleted`. Swapping changes no jumps, because the twin has the same.
            if (family, damage) not in (("dead", halved), ("jumps", swapped)):
                yield f"{family} {damage.__name__}", key, damage
    for field in (b"refs", b"body", b"receipts", b"meta", b"u"):
        for place in (0.0, 0.5, 1.0):
            yield f"head {field.decode()} flipped {place}", PREFIX + b"head:chat", field_flipped(field, place)
    for at, fact in enumerate(FACTS):
        yield f"head fact {fact} flipped", PREFIX + b"head:chat", fact_flipped(at)
    for at in (0, 2, 6):
        for place in (0.0, 0.02, 0.2, 0.5, 1.0):
            yield f"log record {at} flipped {place}", PREFIX + b"log:chat", flipped(at, place)
    for at in (0, 1, -1):
        yield f"nodes value {at} flipped", PREFIX + b"nodes:chat", flipped(at, 1.0)
        yield f"nodes name {at} flipped", PREFIX + b"nodes:chat", flipped(at, 0.0, name=True)
    for at in (0, 1, -1):
        for place in (0.0, 0.5, 1.0):
            yield f"jumps element {at} flipped {place}", PREFIX + b"jumps:chat", flipped(at, place)
    yield "dead position flipped", PREFIX + b"dead:chat", flipped(0, 0.0, name=True)
    yield "dead id flipped", PREFIX + b"dead:chat", flipped(0, 0.0)
    for field in (b"p", b"x"):
        for place in (0.0, 0.5, 1.0):
            yield f"state {field.decode()} flipped {place}", PREFIX + b"state:chat", field_flipped(field, place)
        yield f"state {field.decode()} renamed", PREFIX + b"state:chat", field_flipped(field, 0.0, name=True)
    yield (
        "state with a field too many",
        PREFIX + b"state:chat",
        lambda stored, key: _change(stored, key, lambda value: [*value, (b"z", b"\0z")]),
    )
    for place in (33, 66):  # the kinds of the private components, the tool state's is at 0
        yield f"head kind {place} flipped", PREFIX + b"head:chat", field_flipped(b"refs", place / 98)
    for component in ("tool_state",):
        for damage in (deleted, retyped, emptied, cut_short):
            yield f"{component} blob {damage.__name__}", component.encode(), damage
        for place in (0.0, 0.5, 1.0):
            yield f"{component} blob content flipped {place}", component.encode(), field_flipped(b"c", place)
        yield f"{component} blob holders flipped", component.encode(), field_flipped(b"0", 1.0)
        yield f"{component} blob hold flipped", component.encode(), field_flipped(b"0", 1.0, name=True)
    yield "sessions deleted", PREFIX + b"sessions", deleted
    for family in (b"sessions", b"expiries", b"orphans"):
        yield f"{family.decode()} retyped", PREFIX + family, retyped


DAMAGES = {name: (key, damage) for name, key, damage in _damages()}

READS_OF_THE_HEAD = {"full", "path", "path_to_c", "head"}
UNNOTICED: dict[str, set[str]] = {
    # The head stores numbers as digits without a checksum, because scripts add to them. The count of receipts stops
    # the commit here; it would not after revision 32.
    "head fact revision flipped": {*READS_OF_THE_HEAD, "listing"},
    "head fact live flipped": {"head", "delete"},
    # The number of user messages and the time of the last commit are stored nowhere else. For `first`, the list checks
    # only that the node is a user's message.
    "head fact users flipped": {"listing"},
    "head fact committed flipped": {"listing"},
    "head fact first flipped": {"listing"},
    "head u flipped 1.0": {*READS_OF_THE_HEAD, "commit"},
    # A commit decodes only the rows that it adds to. Reads notice that two rows have the same place.
    "head u flipped 0.0": {"commit"},
    # The deadline is in the past, so the written key expires at once. The next read reports it.
    "head fact deadline flipped": {"tombstone"},
    # Receipts have no checksum. The last one no longer matches `builds_on`, so the commit is refused as a conflict. If
    # an older one is damaged, a retry is not recognised.
    "head receipts flipped 0.5": {"commit"},
    # Scripts do not decode the body, which names the session. The commit is refused as a conflict by `builds_on`.
    "head swapped": {"commit"},
    # Scripts do not decode the manifest. A commit with the correct ref of a private component finds another ref in the
    # head and no blob for its own.
    "head refs flipped 0.5": {"commit"},
    "head refs flipped 1.0": {"commit"},
    # Commits only count the fields of `state`. Reads and audits check their names.
    "state p renamed": {"commit"},
    "state x renamed": {"commit"},
    # A blob stores how many sessions hold it and not which, so only an audit notices a wrong count or a wrong time.
    # Delete notices a missing hold and not a surplus one.
    "head fact hold flipped": {"commit"},
    "tool_state blob holders flipped": {"commit", "delete"},
    "tool_state blob hold flipped": {"commit"},
    # A line of the list decodes one record without knowing its id.
    "log swapped": {"listing"},
    # The list reads the catalogue. The next commit of the session adds its entry again.
    "sessions deleted": {"listing"},
    # The index has a count and no checksum. If another id replaces one, that id is unknown.
    "nodes swapped": {"path_to_c", "node", "commit", "tombstone"},
    "nodes name 0 flipped": {"node"},
    # A path ends at the position of the tombstone, and the hidden record is not read. The node that lost its tombstone
    # is found. A read of the whole graph notices the damage.
    "dead position flipped": {"path", "node"},
}
"""For each damage, the operations that do not notice it or report something else."""


async def restore(raw: redis.asyncio.Redis, stored: Stored) -> None:
    """Replace the content of the database by these keys."""
    await raw.flushall()
    async with raw.pipeline(transaction=False) as pipe:
        for key, (kind, value, _) in stored.items():
            match kind:
                case b"hash":
                    pipe.execute_command("HSET", key, *(part for pair in value for part in pair))
                case b"list":
                    pipe.rpush(key, *value)
                case b"zset":
                    pipe.zadd(key, dict(value))
                case b"string":
                    pipe.set(key, value)
        await pipe.execute()


@pytest.fixture
async def sound(server: Server) -> Snapshot:
    """The keys of two intact sessions of the same shape in one shard."""
    if server.name not in SOUND:
        SOUND[server.name] = await _sound(server)
    return SOUND[server.name]


async def _sound(server: Server) -> Snapshot:
    cache = SessionCache(server.client(), "damage", options=StoreOptions(shards=1))
    await write_session(cache.session("chat"), "abcxyde", STATE)
    await write_session(cache.session("twin"), "ABCXYDE", STATE[::-1])
    read = await cache.session("chat").load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    for component in ("tool_state", "plugin_snapshot", "execution_state"):
        REFS[component] = getattr(read.checkpoint, f"{component}_ref")
    return await snapshot(server.client())


async def outcome(
    operation: Callable[[RedisSessionStore, Any], Awaitable[None]], raw: redis.asyncio.Redis, stored: Stored, key: bytes
) -> tuple[str, Any]:
    """The result of an operation on these keys: `right`, `noticed`, or the kind of failure."""
    await restore(raw, stored)
    before = None if operation in READS else await snapshot(raw)
    cache = SessionCache(raw, "damage", options=StoreOptions(shards=1))
    try:
        await operation(cache.session("chat"), raw)
    except (AssertionError, pytest.fail.Exception) as error:
        return "wrong data", str(error).splitlines()[:1]
    except StoreError as error:
        if before is not None and await snapshot(raw) != before:
            return "a refused operation wrote", error
        if isinstance(error, Corrupt):
            # If two keys contradict each other, either may be named.
            found = error.key.encode()
            of_the_session = found.startswith(PREFIX) and found.endswith(b":chat") and b"blob:" not in key
            named = (found == key or of_the_session) and error.kind and error.reason
            return ("noticed" if named else "another key", error)
        if isinstance(error, MissingBlob) and b"blob:" + error.ref.encode() in key:
            return "noticed", error
        return "another error", error
    except Exception as error:  # noqa: BLE001 (an unexpected error is a result to report)
        return "a foreign error", error
    return "right", None


async def test_every_operation_returns_correct_data_without_damage(server: Server, sound: Snapshot) -> None:
    for operation in OPERATIONS.values():
        assert await outcome(operation, server.client(), sound, b"") == ("right", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
async def test_every_operation_on_damaged_data_is_correct_or_names_the_key(
    server: Server, sound: Snapshot, name: str
) -> None:
    key, damage = DAMAGES[name]
    if not key.startswith(PREFIX):
        key = PREFIX + b"blob:" + REFS[key.decode()].encode()
    stored = dict(sound)
    damage(stored, key)
    assert stored != sound
    raw, wrong = server.client(), {}
    for operation_name, operation in OPERATIONS.items():
        ended, detail = await outcome(operation, raw, stored, key)
        if ended not in ("right", "noticed"):
            wrong[operation_name] = (ended, detail)
    assert set(wrong) == UNNOTICED.get(name, set()), wrong
