"""Each stored number is either sound or damage to every reader of it, to the audit and to the next commit.

An independent client writes each number of each stored field in odd ways. `int` and Lua's `tonumber` accept different
ones of them. A session that loads can be committed to, and no reader raises an error of Python.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from lash_redis import (
    ActivePath,
    Append,
    Corrupt,
    FullGraph,
    HydratedSessionCheckpoint,
    RedisSessionStore,
    RuntimeCommit,
    SessionCache,
    StoreError,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    transfer,
)
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import FACTS, node, tools
from tests.support.builders import commit as whole_commit

PREFIX = b"lash2:{numbers:0}:"
HEAD, NODES, JUMPS, DEAD = (PREFIX + family + b":chat" for family in (b"head", b"nodes", b"jumps", b"dead"))
STATE = b"state"


def odd_forms(number: bytes) -> dict[str, bytes]:
    """Other texts for a number, which scripts never write."""
    return {
        "signed": b"+" + number,
        "minus zero": b"-0",
        "far below zero": b"-12",
        "blank before": b" " + number,
        "newline behind": number + b"\n",
        "underscore": b"0_" + number,
        "leading zero": b"0" + number,
        "hexadecimal": b"0x" + number,
        "fraction": number + b".0",
        "exponent": number + b"e0",
        "empty": b"",
        "other digits": "\u0663".encode(),
        "infinite": b"inf",
        "beyond 64 bits": b"9223372036854775808",
        "thirty digits": b"9" * 30,
    }


async def write_session(store: RedisSessionStore) -> None:
    """Write the path a-b-d, the branch a-c and the tombstone c, with a ttl, a lease, a ledger row and components."""
    checkpoint = HydratedSessionCheckpoint(tool_state=tools(), execution_state=STATE)
    graph = Append([node("a"), node("b", "a"), node("c", "a"), node("d", "b")], "d")
    commit = RuntimeCommit("chat", graph=graph, checkpoint=checkpoint, usage_deltas=[used(3)], commit_id="first")
    await store.commit_runtime_state(commit, ttl=1000.0)
    await store.acquire_lease("worker", ttl=100.0, token="claim")
    await store.tombstone_nodes(["c"])


def used(count: int) -> TokenLedgerEntry:
    return TokenLedgerEntry("turn", "m", TokenUsage(count, count, count, count))


# Readers. Each returns something that the damage cannot change silently, or raises.

Operation = Callable[[SessionCache], Awaitable[Any]]


async def full(cache: SessionCache) -> None:
    assert len((await cache.session("chat").load_session(FullGraph())).graph.nodes) == 3


async def path(cache: SessionCache) -> None:
    assert len((await cache.session("chat").load_session(ActivePath())).graph.nodes) == 3


async def path_to_b(cache: SessionCache) -> None:
    assert len((await cache.session("chat").load_session(ActivePath("b"))).graph.nodes) == 2


async def page(cache: SessionCache) -> None:
    assert len((await cache.session("chat").load_session(ActivePath(limit=3))).graph.nodes) == 3


async def head(cache: SessionCache) -> None:
    assert (await cache.session("chat").load_head()).token_ledger == (used(3),)


async def ledger(cache: SessionCache) -> None:
    assert (await cache.session("chat").load_session(FullGraph())).token_ledger == (used(3),)


async def load_b(cache: SessionCache) -> None:
    assert (await cache.session("chat").load_node("b")).node_id == "b"


async def lease(cache: SessionCache) -> None:
    assert (await cache.session("chat").load_lease()).generation == 1


async def acquire(cache: SessionCache) -> None:
    await cache.session("chat").acquire_lease("worker", ttl=100.0, token="claim")


async def listing(cache: SessionCache) -> None:
    (line,) = [line async for line in cache.sessions()]
    if line.fault is not None:
        raise Corrupt("listing", "", line.fault)


async def export(cache: SessionCache) -> None:
    async for _ in transfer.export_sessions(cache):
        pass


async def commit(cache: SessionCache) -> None:
    """A commit that leaves nothing out, so that no read precedes the script. It releases the tool state."""
    graph = Append([node("e", "b")], "e")
    await cache.session("chat").commit_runtime_state(whole_commit(1, graph, usage_deltas=[used(1)]))


async def touch(cache: SessionCache) -> None:
    await cache.session("chat").touch(ttl=5000.0)


async def vacuum(cache: SessionCache) -> None:
    await cache.session("chat").vacuum()


async def tombstone(cache: SessionCache) -> None:
    await cache.session("chat").tombstone_nodes(["b"])


async def audit(cache: SessionCache) -> None:
    report = await cache.audit()
    if report.problems:
        raise Corrupt("audit", report.problems[0].key, report.problems[0].reason)


HEAD_READERS = (full, path, page, head, commit, touch, audit)
OF_FACTS = (*HEAD_READERS, load_b, listing, acquire, vacuum)
"""Operations that read the facts of a head."""

# Places of numbers: how to replace one, and who reads it

Change = Callable[[redis.asyncio.Redis, Callable[[bytes], bytes]], Awaitable[None]]


def in_field(key: bytes, field: bytes, at: int, separator: bytes = b" ") -> Change:
    """The number at index `at` of a field of a hash."""

    async def change(raw: redis.asyncio.Redis, new: Callable[[bytes], bytes]) -> None:
        (name,) = [name for name in await raw.hkeys(key) if name.startswith(field)]
        parts = (await raw.hget(key, name)).split(separator)
        parts[at] = new(parts[at])
        await raw.hset(key, name, separator.join(parts))

    return change


async def node_entry(raw: redis.asyncio.Redis, new: Callable[[bytes], bytes]) -> None:
    await raw.hset(NODES, b"b", new(await raw.hget(NODES, b"b")))


def in_jump(at: int) -> Change:
    async def change(raw: redis.asyncio.Redis, new: Callable[[bytes], bytes]) -> None:
        parts = (await raw.lindex(JUMPS, -1)).split(b":")
        parts[at] = new(parts[at])
        await raw.lset(JUMPS, -1, b":".join(parts))

    return change


async def dead_field(raw: redis.asyncio.Redis, new: Callable[[bytes], bytes]) -> None:
    ((field, node_id),) = (await raw.hgetall(DEAD)).items()
    await raw.hdel(DEAD, field)
    await raw.hset(DEAD, new(field), node_id)


async def _blob(raw: redis.asyncio.Redis) -> tuple[bytes, bytes]:
    (key,) = await raw.keys(PREFIX + b"blob:*")
    (hold,) = [field for field in await raw.hkeys(key) if field not in (b"c", b"u")]
    return key, hold


async def holder_count(raw: redis.asyncio.Redis, new: Callable[[bytes], bytes]) -> None:
    key, hold = await _blob(raw)
    await raw.hset(key, hold, new(await raw.hget(key, hold)))


async def hold_name(raw: redis.asyncio.Redis, new: Callable[[bytes], bytes]) -> None:
    key, hold = await _blob(raw)
    count = await raw.hget(key, hold)
    await raw.hdel(key, hold)
    await raw.hset(key, new(hold), count)


NUMBERS: dict[str, tuple[Change, tuple[Operation, ...]]] = {
    **{f"fact {name}": (in_field(HEAD, b"facts", at), OF_FACTS) for at, name in enumerate(FACTS)},
    "ttl": (in_field(HEAD, b"ttl", 0), (*HEAD_READERS, load_b, acquire, export)),
    "lease generation": (in_field(HEAD, b"lease", 0), (*HEAD_READERS, lease, acquire)),
    "lease deadline": (in_field(HEAD, b"lease", 1), (*HEAD_READERS, lease, acquire)),
    "nodes entry": (node_entry, (path_to_b, load_b, commit, tombstone, audit)),
    "jump position": (in_jump(0), (path, page, vacuum, audit)),
    "jump parent": (in_jump(1), (path, page, vacuum, audit)),
    "dead position": (dead_field, (full, path, page, vacuum, audit)),
    **{f"ledger {at}": (in_field(HEAD, b"u", at), (head, ledger, commit, audit)) for at in range(5)},
    "holder count": (holder_count, (touch, commit, audit)),
    "hold name": (hold_name, (audit,)),
}

ALLOWED = {("ledger 1", "far below zero"), ("ledger 2", "far below zero"), ("ledger 3", "far below zero")} | {
    ("ledger 4", "far below zero")
}
"""Forms that are sound numbers in their places: counters of the ledger may be negative."""


async def outcome(cache: SessionCache, operation: Operation) -> str:
    try:
        await operation(cache)
    except Corrupt:
        return "damage"
    except AssertionError:
        return "other data"
    except StoreError as error:
        return repr(error)
    return "sound"


def open_cache_of(raw: redis.asyncio.Redis) -> SessionCache:
    return SessionCache(raw, "numbers", options=StoreOptions(shards=1))


async def disagreements(raw: redis.asyncio.Redis, name: str) -> dict[tuple[str, str], str]:
    """Every operation that does not report a number in an odd form as damage."""
    change, operations = NUMBERS[name]
    found = {}
    for form in odd_forms(b"1"):
        if (name, form) in ALLOWED:
            continue
        for operation in operations:
            await raw.flushall()
            await write_session(open_cache_of(raw).session("chat"))
            await change(raw, lambda number, form=form: odd_forms(number)[form])
            ended = await outcome(open_cache_of(raw), operation)
            if ended != "damage":
                found[form, operation.__name__] = ended
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
async def test_a_number_in_an_odd_form_is_damage_to_everyone(server, name):
    assert await disagreements(server.client(), name) == {}


@pytest.mark.slow
@broken_by(
    Python("protocol.numbers:_DIGITS", lambda _: lambda data: True, "reads numbers as `int` does"),
    Lua("commit", "or is_odd(deadline) then return nil", "then return nil"),
    Lua("commit", "if ttl and not is_whole(ttl) then", "if ttl and not tonumber(ttl) then"),
    Lua("commit", "is_int64(a) and", ""),
)
async def test_a_stored_number_that_a_script_refuses_is_damage_to_readers(server):
    for name in ("ttl", "lease deadline", "dead position", "ledger 1"):
        assert await disagreements(server.client(), name) == {}, name


@pytest.mark.slow
@broken_by(Lua("commit", "or is_odd(deadline) or is_odd(hold)", ""), Lua("commit", "or is_odd(bytes)", ""))
async def test_facts_in_an_odd_form_stop_a_commit(server):
    for name in ("fact revision", "fact deadline", "fact bytes"):
        assert await disagreements(server.client(), name) == {}, name


async def test_every_operation_reads_a_sound_session(server):
    for operation in {operation for _, operations in NUMBERS.values() for operation in operations}:
        raw = server.client()
        await raw.flushall()
        await write_session(open_cache_of(raw).session("chat"))
        assert await outcome(open_cache_of(raw), operation) == "sound", operation.__name__


async def test_a_score_that_is_no_time_does_not_stop_a_list(server):
    raw = server.client()
    for score in ("inf", "-inf", "-5", "0.5", "1e300"):
        await raw.flushall()
        await write_session(open_cache_of(raw).session("chat"))
        await raw.zadd(PREFIX + b"sessions", {"chat": score})
        cache = open_cache_of(raw)
        assert [line.session_id async for line in cache.sessions()] == ["chat"]
        assert [line.session_id async for line in cache.sessions(after="chat")] == []
        await commit(cache)
