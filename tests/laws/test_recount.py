"""An audit recounts the holders of a blob by all heads of its shard. Other clients may commit meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lash_redis import HydratedSessionCheckpoint, Unchanged
from lash_redis.audit import Audit
from lash_redis.protocol.commands.blob_audit import Miscount, repair_call
from lash_redis.session.namespace import Namespace
from tests.support.breaking import Lua, Python, broken_by, one_by_one
from tests.support.builders import append, blob_keys, commit, holders, holds, tools

STATES = HydratedSessionCheckpoint(tool_state=tools())


async def begin(cache, session_id: str, *, ttl: float | None = None, label: str = "") -> None:
    """Begin a session that holds the tool state of this label."""
    states = HydratedSessionCheckpoint(tool_state=tools(label)) if label else STATES
    turn = commit(None, append("a"), session_id=session_id, checkpoint=states)
    await cache.session(session_id).commit_runtime_state(turn, ttl=ttl)


@pytest.fixture
def before_writing(monkeypatch) -> Callable[..., None]:
    """`before_writing(deed)` calls `deed` once, after an audit counted and before it writes the counts."""
    return lambda deed: _before(monkeypatch, Audit, "_write_counts", deed, lambda *_: True)


@pytest.fixture
def after_listing(monkeypatch) -> Callable[..., None]:
    """`after_listing(deed)` calls `deed` once, after an audit listed the sessions and before it reads their heads."""
    return lambda deed: _before(monkeypatch, Namespace, "read", deed, lambda trip, **_: _reads_heads(trip))


def _reads_heads(trip) -> bool:
    return any(command[0] == "HMGET" and command[2:] == ("facts", "refs") for command in trip)


def _before(
    monkeypatch, owner: type, name: str, deed: Callable[[], Awaitable[object]], is_meant: Callable[..., bool]
) -> None:
    """Call `deed` once, before the first call of that method that is meant."""
    step, calls = getattr(owner, name), []

    async def disturbed(self, *given, **more):
        if is_meant(*given, **more):
            calls.append(name)
            if len(calls) == 1:
                await deed()
        return await step(self, *given, **more)

    monkeypatch.setattr(owner, name, disturbed)


async def audited(open_cache, **more):
    return await open_cache(role="auditor", shards=1).audit(repair=True, **more)


@broken_by(
    Lua("recount", "for from = 1, #each.holds, CHUNK do", "for from = 1, 0 do"),
    Lua("recount", "for from = 1, #each.names, CHUNK do", "for from = 1, 0 do"),
    Lua("recount", "redis.call('PERSIST', blob)", "redis.call('PTTL', blob)"),
)
async def test_a_repair_corrects_wrong_holder_counts_and_keeps_correct_ones(open_cache, client):
    cache = open_cache(shards=1)
    for name in ("one", "two", "three"):
        await begin(cache, name)
    await begin(cache, "timed", ttl=500)
    (blob,) = await blob_keys(client)
    sound = await holds(client, blob)
    (hold,) = [until for until in sound if until]
    assert sound == {0: 3, hold: 1}
    await client.pexpire(blob, 600_000)
    damages = [{"0": 9}, {"0": 1, str(hold): 4, str(hold + 60_000): 2}, {"0": 2}, {str(hold): 2}]
    for damage in damages:
        await client.hset(blob, mapping=damage)
        assert (await open_cache(role="auditor", shards=1).audit()).problem_count == 1
        report = await audited(open_cache)
        assert (report.problem_count, report.repaired_count) == (1, 1)
        assert await holds(client, blob) == sound
        assert await client.pttl(blob) == -1
    await client.hdel(blob, "0", str(hold))
    assert (await audited(open_cache)).repaired_count == 1
    assert await holds(client, blob) == sound
    assert (await open_cache(role="auditor", shards=1).audit()).problems == ()


async def test_a_check_writes_nothing(open_cache, client, keyspace):
    await begin(open_cache(shards=1), "one")
    (blob,) = await blob_keys(client)
    await client.hincrby(blob, "0", 1)
    before = await keyspace()
    assert (await open_cache(role="auditor", shards=1).audit()).problem_count == 1
    assert await keyspace() == before


async def test_a_repair_of_60_blobs_corrects_each(open_cache, client):
    """An audit recounts 50 blobs at once."""
    cache = open_cache(shards=1)
    for number in range(60):
        await begin(cache, f"s{number}", label=f"tool-{number}")
    for blob in await blob_keys(client):
        await client.hincrby(blob, "0", 1)
    assert (await audited(open_cache)).repaired_count == 60
    assert await holders(client) == [1] * 60


async def miscount(client, blob: bytes) -> None:
    """Count a holder too many, in a blob that an upload or an earlier repair has marked. Another is only marked."""
    await client.hincrby(blob, "0", 1)
    await client.hset(blob, "u", 1)


@broken_by(Lua("recount", "if redis.call('HLEN', blob) ~= size then return false end", "do return true end"))
async def test_a_session_begun_before_the_counts_are_written_is_counted(open_cache, client, before_writing):
    cache = open_cache(shards=1)
    for name in ("one", "two"):
        await begin(cache, name)
    (blob,) = await blob_keys(client)
    await miscount(client, blob)
    before_writing(lambda: begin(cache, "three"))
    report = await audited(open_cache)
    assert (report.problem_count, report.repaired_count) == (1, 1)
    assert await holders(client) == [3]


async def test_a_session_that_replaced_another_before_the_counts_are_written_is_counted(
    open_cache, client, before_writing
):
    cache = open_cache(shards=1)
    for name in ("one", "two"):
        await begin(cache, name)
    (blob,) = await blob_keys(client)
    await miscount(client, blob)

    async def replaced() -> None:
        await cache.delete("two")
        await begin(cache, "three")

    before_writing(replaced)
    assert (await audited(open_cache)).repaired_count == 1
    assert await holders(client) == [2]


def without_comparison(reply):
    def believing(shard, refs, sessions, entries, replies, options):
        return reply(shard, refs, sessions, [], replies, options)

    return believing


@broken_by(Python("protocol.commands.blob_audit:recount_reply", without_comparison, "compares no catalogue"))
async def test_a_session_begun_before_the_heads_are_read_is_counted(open_cache, client, after_listing):
    cache = open_cache(shards=1)
    await begin(cache, "one")
    (blob,) = await blob_keys(client)
    await miscount(client, blob)
    after_listing(lambda: begin(cache, "two"))
    assert (await audited(open_cache)).repaired_count == 1
    assert await holders(client) == [2]


async def test_a_session_deleted_before_the_heads_are_read_is_not_counted(open_cache, client, after_listing):
    cache = open_cache(shards=1)
    for name in ("one", "two"):
        await begin(cache, name)
    (blob,) = await blob_keys(client)
    await miscount(client, blob)
    after_listing(lambda: cache.delete("two"))
    assert (await audited(open_cache)).repaired_count == 1
    assert await holders(client) == [1]


@broken_by(Lua("recount", "math.max(now, promised + 1)", "promised"))
async def test_two_repairs_at_once_correct_a_count_once(open_cache, client, before_writing):
    """Between them another session begins, so the second repair finds the count that it read."""
    cache = open_cache(shards=1)
    await begin(cache, "one")
    (blob,) = await blob_keys(client)
    await client.hset(blob, mapping={"0": 2, "u": 1})

    async def repaired() -> None:
        assert (await open_cache(role="auditor", shards=1).audit(repair=True)).repaired_count == 1
        await begin(cache, "two")

    before_writing(repaired)
    await audited(open_cache)
    assert await holders(client) == [2]
    assert (await open_cache(role="auditor", shards=1).audit()).problems == ()


@broken_by(Python("session.namespace:Namespace.read", one_by_one, "reads one command at a time"))
async def test_sessions_that_take_turns_to_hold_a_blob_are_no_problem(open_cache):
    """At each moment the blob has as many holders as heads name it, one or two. Audits have to recount it."""
    cache, names, done = open_cache(shards=1), ("one", "two", "three"), asyncio.Event()
    for name in names:
        await begin(cache, name)

    async def take_turns() -> None:
        while not done.is_set():
            for name in names:
                await hold(cache, name, "mine")
                await hold(cache, name, "other")

    await hold(cache, "one", "mine")
    turns = asyncio.create_task(take_turns())
    for _ in range(20):
        assert (await open_cache(role="auditor", shards=1).audit()).problems == ()
    done.set()
    await turns


async def hold(cache, session_id: str, label: str) -> None:
    """Make the session hold the tool state of this label instead of the one that it held."""
    states = HydratedSessionCheckpoint(tool_state=tools(label))
    turn = commit(None, Unchanged("a"), session_id=session_id, checkpoint=states)
    await cache.session(session_id).commit_runtime_state(turn)


async def test_a_blob_that_sessions_hold_until_thousands_of_times_is_repaired(open_cache, client):
    """The ttl of a session divided by `blob_grace` is the number of times, 43,200 in 30 days."""
    cache = open_cache(shards=1)
    await begin(cache, "one")
    (blob,) = await blob_keys(client)
    times = [4_000_000_000_000 + 60_000 * at for at in range(9_000)]
    await client.hset(blob, mapping={"u": 1, **dict.fromkeys(map(str, times), 1)})
    shard = cache.layout.shard_keys(0)
    ref, fields = bytes.fromhex(blob.decode()[-64:]), await client.hgetall(blob)
    wanted = Miscount(ref, "", fields, dict.fromkeys(times, 2))
    await cache.shared.run(repair_call(shard, [wanted], cache.options))
    assert await holds(client, blob) == dict.fromkeys(times, 2)
    await client.hset(blob, "0", 2)
    assert (await audited(open_cache)).repaired_count == 1
    assert await holds(client, blob) == {0: 1}


@broken_by(Lua("recount", "redis.call('HEXISTS', blob, 'u') == 0", "false"))
async def test_a_blob_that_was_deleted_and_stored_again_before_the_counts_are_written_is_counted(
    open_cache, client, before_writing
):
    """Its fields are those that the audit read, but another session holds it."""
    cache = open_cache(shards=1)
    await begin(cache, "one")
    (blob,) = await blob_keys(client)
    await cache.delete("one")
    await client.hset(blob, "0", 1)
    await client.persist(blob)

    async def replaced() -> None:
        assert (await open_cache(role="auditor", shards=1).audit(repair=True)).repaired_count == 1
        assert (await open_cache(role="auditor", shards=1).gc()).deleted_blob_count == 1
        await begin(cache, "two")

    before_writing(replaced)
    await audited(open_cache)
    assert await holds(client, blob) == {0: 1}
    assert await client.pttl(blob) == -1


async def test_a_blob_without_content_is_reported_once_and_not_repaired(open_cache, client):
    await begin(open_cache(shards=1), "one")
    (blob,) = await blob_keys(client)
    await client.hdel(blob, "c")
    await client.hset(blob, "0", 2)
    report = await audited(open_cache)
    assert [(each.key, each.repaired) for each in report.problems] == [(blob.decode(), False)] * 2
    assert await holds(client, blob) == {0: 2}
