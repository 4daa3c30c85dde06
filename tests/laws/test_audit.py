"""An audit reports violated storage invariants and nothing else. A repair never changes live data."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgpack
import pytest

from lash_redis import (
    Append,
    AuditReport,
    EventPayload,
    FullGraph,
    GcReport,
    HydratedSessionCheckpoint,
    InvalidRecord,
    Refused,
    SessionMeta,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    Unchanged,
)
from lash_redis.audit import Audit, _Found
from lash_redis.protocol.commands import audit as audit_commands
from lash_redis.protocol.commands.blob_audit import Holding
from tests.support.breaking import Python, broken_by
from tests.support.builders import (
    append,
    blob_keys,
    commit,
    holders,
    ids_of,
    key_of,
    plugins,
    replace_full,
    tools,
    used,
)
from tests.support.builders import node as plain

STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


def message_node(node_id: str, parent: str | None) -> SessionNodeRecord:
    return SessionNodeRecord(node_id, parent, "t", EventPayload({"Conversation": {"id": node_id, "role": "User"}}))


async def uploaded(cache, client) -> HydratedSessionCheckpoint:
    """Three components as blobs. In a namespace of one shard, uploads are in the shard of the session.

    The grace that each upload was promised is removed, so that these blobs expire like any other.
    """
    refs = [await cache.put_blob(msgpack.packb(data)) for data in (plugins().to_msgpack(), b"1")]
    for ref in refs:
        await client.hdel(cache.layout.shard_keys(0).blob(ref), "u")
    return HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot_ref=refs[0], execution_state_ref=refs[1])


async def full_session(cache, name: str = "chat", ttl: float | None = None, states=STATES) -> None:
    """Create a session with every kind of key and a freed node."""
    store = await cache.create(SessionStoreCreateRequest(name, parent_session_id="parent"))
    graph = Append([message_node("a", None), plain("b", "a"), plain("x", "b")], "x")
    await store.commit_runtime_state(commit(None, graph, session_id=name, checkpoint=states), ttl=ttl)
    graph = Append([message_node("c", "a"), plain("d", "c")], "d")
    await store.commit_runtime_state(
        commit(1, graph, session_id=name, checkpoint=states, usage_deltas=[used(input=1)]), ttl=ttl
    )
    await store.tombstone_nodes(["x"])
    await store.vacuum()
    await store.tombstone_nodes(["b"])


async def audit(open_cache, *, repair: bool = False, **options) -> AuditReport:
    return await open_cache(role="auditor", **options).audit(repair=repair)


async def test_an_intact_namespace_has_no_problems(open_cache, keyspace):
    cache = open_cache(shards=4)
    for name, ttl in (("one", None), ("two", 100), ("three", 7)):
        await full_session(cache, name, ttl)
    await cache.fork("one", "four")
    await cache.delete("two")
    await cache.create(SessionStoreCreateRequest("only meta"))
    await cache.session("three").commit_runtime_state(commit(None, replace_full("p", "q"), session_id="three"))
    await cache.put_blob(b"\xc4\x01x")
    before = await keyspace()
    seen: list[tuple[int, int]] = []
    report = await open_cache(role="auditor", shards=4).audit(progress=lambda done, of: seen.append((done, of)))
    assert report.problems == ()
    assert (report.session_count, report.node_count, report.problem_count) == (4, 3 + 2 + 3, 0)
    assert report.blob_count >= 3
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    assert seen == sorted(seen)
    assert await keyspace() == before


async def test_an_audit_of_an_empty_namespace_finds_no_problem_and_writes_nothing(open_cache, keyspace):
    assert await audit(open_cache) == AuditReport()
    assert await keyspace() == {}


Damage = Callable[..., Awaitable[object]]


def fact(place: int, value: str) -> Damage:
    async def damage(client) -> None:
        head = await key_of(client, "head")
        facts = (await client.hget(head, "facts")).split()
        facts[place] = value.encode()
        await client.hset(head, "facts", b" ".join(facts))

    return damage


def at(family: str, change: Callable[..., Awaitable[object]]) -> Damage:
    async def damage(client) -> None:
        await change(client, await key_of(client, family))

    return damage


DAMAGES: dict[str, tuple[str, Damage]] = {
    "a log that is gone": ("log", at("log", lambda client, key: client.delete(key))),
    "a nodes hash that is gone": ("nodes", at("nodes", lambda client, key: client.delete(key))),
    "a jump list that is gone": ("jumps", at("jumps", lambda client, key: client.delete(key))),
    "tombstones that are gone": ("dead", at("dead", lambda client, key: client.delete(key))),
    "a head that is gone": ("head", at("head", lambda client, key: client.delete(key))),
    "a head of another type": ("head", at("head", lambda client, key: client.execute_command("SET", key, "x"))),
    "facts that are gone": ("head", at("head", lambda client, key: client.hdel(key, "facts"))),
    "a damaged record": ("log", at("log", lambda client, key: client.lset(key, 3, b"xxxxyyyy"))),
    "an index entry with another position": ("nodes", at("nodes", lambda client, key: client.hset(key, "d", "0"))),
    "a user's message without its mark": ("nodes", at("nodes", lambda client, key: client.hset(key, "a", "0"))),
    "a jump to another position": ("jumps", at("jumps", lambda client, key: client.lset(key, -1, b"3:1"))),
    "an unreadable lease": ("head", at("head", lambda client, key: client.hset(key, "lease", b"1 x"))),
    "a missing receipt": ("head", at("head", lambda client, key: client.hset(key, "receipts", b"x" * 16))),
    "another receipt": ("head", at("head", lambda client, key: client.hset(key, "receipts", b"x" * 32))),
    "another parent": ("meta", at("head", lambda client, key: client.hset(key, "parent", b"x"))),
    "a damaged meta": ("meta", at("head", lambda client, key: client.hset(key, "meta", b"x"))),
    "a log that does not expire": ("deadline", at("log", lambda client, key: client.persist(key))),
    "a head that expires early": ("deadline", at("head", lambda client, key: client.pexpire(key, 50_000))),
    "a count of live nodes": ("log", fact(3, "9")),
    "a count of user messages": ("head", fact(14, "9")),
    "a first user message": ("head", fact(15, "3")),
    "a hold before the deadline": ("head", fact(12, "5")),
    "a time of the last commit": ("sessions", fact(13, "5")),
    "an entry that is gone": (
        "sessions",
        lambda client: client.eval("return redis.call('DEL', KEYS[1])", 1, b"lash2:{laws:0}:sessions"),
    ),
    "an entry that does not expire": ("sessions", lambda client: client.delete(b"lash2:{laws:0}:expiries")),
}


@broken_by(Python("protocol.commands.audit:_of_the_sum", lambda _: lambda *_: [], "computes no sum"))
@pytest.mark.parametrize("place", [16, 17], ids=["high", "low"])
async def test_a_sum_that_differs_from_that_of_the_log_is_reported(place, store, open_cache, client):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    assert (await audit(open_cache)).problems == ()
    await fact(place, "9")(client)
    problems = (await audit(open_cache)).problems
    assert [(problem.kind, problem.reason) for problem in problems] == [
        ("head", "its sum of the log is not that of the stored nodes")
    ]


@pytest.mark.slow
@broken_by(
    Python("protocol.commands.audit:_of_deadlines", lambda _: lambda *_: [], "checks no deadline"),
    Python("protocol.commands.audit:_of_a_link", lambda _: lambda *_: [], "checks no link"),
    Python("protocol.commands.audit:_of_users", lambda _: lambda *_: [], "checks no mark"),
)
async def test_an_audit_reports_every_kind_of_damage_and_changes_nothing(open_cache, client, keyspace):
    for name, (kind, damage) in DAMAGES.items():
        await client.flushall()
        await full_session(open_cache(shards=1), ttl=1000)
        await full_session(open_cache(shards=1), "sound", ttl=1000)
        await damage(client)
        before = await keyspace()
        report = await audit(open_cache, shards=1)
        assert kind in {problem.kind for problem in report.problems}, (name, report.problems)
        assert not any("sound" in problem.key for problem in report.problems), (name, report.problems)
        assert report.problem_count == len(report.problems) >= 1
        assert report.repaired_count == 0
        assert await keyspace() == before, name


# Without SCAN


@pytest.mark.slow
async def test_an_audit_without_scan_reports_the_same_of_what_the_catalogues_name(open_cache, client, keyspace):
    """The account has no right to SCAN."""
    assert (await open_cache().audit(scan=False)) == AuditReport()
    for name, (_, damage) in {"no damage": ("", asyncio.sleep), **DAMAGES}.items():
        await client.flushall()
        await full_session(open_cache(shards=1), ttl=1000)
        await full_session(open_cache(shards=1), "sound", ttl=1000)
        if name != "no damage":
            await damage(client)
        before = await keyspace()
        report = await open_cache(shards=1).audit(scan=False)
        scanned = await audit(open_cache, shards=1)
        if name == "an entry that is gone":  # the catalogue itself, so no session is known
            assert (report.session_count, scanned.session_count) == (0, 2)
        else:
            assert {(each.kind, each.key) for each in report.problems} == {
                (each.kind, each.key) for each in scanned.problems
            }, name
            assert report.session_count == scanned.session_count == 2, name
        assert await keyspace() == before, name


def repairs_without_scan(recount):
    async def repairing(self, shard, refs):
        self._scans = True
        await recount(self, shard, refs)
        self._scans = False

    return repairing


@broken_by(Python("audit:Audit._recount", repairs_without_scan, "repairs counts without SCAN"))
async def test_a_repair_without_scan_keeps_the_blobs_of_sessions_that_are_not_listed(open_cache, client, keyspace):
    """Only the blobs of such a session show that it exists. An audit with SCAN lists it again."""
    cache = open_cache(shards=1)
    states = await uploaded(cache, client)
    for name in ("listed", "lost"):
        await full_session(cache, name, states=states)
    sound = await keyspace()
    await client.zrem("lash2:{laws:0}:sessions", b"lost\xffparent")
    before = await keyspace()
    report = await open_cache(shards=1).audit(scan=False, repair=True)
    assert report.session_count == 1
    assert {(each.kind, each.repaired) for each in report.problems} == {("blob", False)}
    assert report.problem_count == 3
    assert await keyspace() == before
    assert (await audit(open_cache, shards=1, repair=True)).repaired_count > 0
    assert await keyspace() == sound
    assert (await open_cache(shards=1).audit(scan=False)).problems == ()


async def test_a_repair_without_scan_corrects_the_entry_of_a_listed_session(open_cache, client, keyspace):
    await full_session(open_cache(shards=1), ttl=500)
    sound = await keyspace()
    await client.zadd("lash2:{laws:0}:sessions", {b"chat\xffparent": 5})
    report = await open_cache(shards=1).audit(scan=False, repair=True)
    assert [(each.kind, each.repaired) for each in report.problems] == [("sessions", True)]
    assert await keyspace() == sound


@broken_by(Python("audit:Audit._orphans", lambda _: no_orphans, "does not read the orphans"))
async def test_an_audit_without_scan_checks_the_blobs_that_are_listed_as_orphans(open_cache, client, monkeypatch):
    monkeypatch.setattr(audit_commands, "ORPHAN_CHUNK", 2)
    cache = open_cache(shards=1)
    refs = [await cache.put_blob(bytes([at])) for at in range(5)]
    assert (await open_cache(shards=1).audit(scan=False)).blob_count == 5
    damaged = cache.layout.shard_keys(0).blob(refs[-1])
    await client.hset(damaged, "c", b"\0other")
    (problem,) = (await open_cache(shards=1).audit(scan=False)).problems
    assert (problem.kind, problem.key) == ("blob", damaged)
    await client.zadd("lash2:{laws:0}:orphans", {"no ref": 1})
    (problem,) = (await open_cache(shards=1).audit(scan=False)).problems
    assert (problem.kind, problem.key) == ("orphans", "lash2:{laws:0}:orphans")


async def no_orphans(*_):
    return _Found()


# Blobs


async def test_a_missing_or_damaged_blob_is_reported_and_not_repaired(open_cache, client):
    cache = open_cache(shards=1)
    await full_session(cache, states=await uploaded(cache, client))
    one, two, _ = await blob_keys(client)
    await client.delete(one)
    await client.hset(two, "c", b"\0other bytes")
    report = await audit(open_cache, shards=1)
    assert {problem.key for problem in report.problems} == {one.decode(), two.decode()}
    assert (await audit(open_cache, shards=1, repair=True)).repaired_count == 0


async def test_a_leaked_blob_expires_one_grace_after_the_repair(open_cache, client):
    cache = open_cache(shards=1, blob_grace=0.1)
    states = await uploaded(cache, client)
    await full_session(cache, states=states)
    await full_session(cache, "torn", states=states)
    leaked = {"c": b"\0bytes", "0": 3}
    from hashlib import sha256

    key = f"lash2:{{laws:0}}:blob:{sha256(b'bytes').hexdigest()}"
    await client.hset(key, mapping=leaked)
    unheld = f"lash2:{{laws:0}}:blob:{sha256(b'other').hexdigest()}"
    await client.hset(unheld, mapping={"c": b"\0other"})
    await client.delete(*cache.layout.session("torn").own)
    report = await audit(open_cache, shards=1, repair=True, blob_grace=0.1)
    assert report.repaired_count == report.problem_count == 5
    await asyncio.sleep(0.3)
    assert len(await blob_keys(client)) == 3
    assert await holders(client) == [1, 1, 1]
    assert (await audit(open_cache, shards=1)).problems == ()
    assert await client.exists(key, unheld) == 0


async def test_a_repair_releases_no_blob_while_a_head_is_unreadable(open_cache, client, keyspace):
    """The blobs that this head holds are unknown, so every blob of its shard stays until the session is deleted."""
    cache = open_cache(shards=1)
    states = await uploaded(cache, client)
    await full_session(cache, states=states)
    await full_session(cache, "broken", states=states)
    await client.hdel(await key_of(client, "head", "broken"), "facts")
    before = await keyspace()
    report = await audit(open_cache, shards=1, repair=True)
    assert report.problem_count > 0
    assert report.repaired_count == 0
    assert await keyspace() == before
    await cache.delete("broken")
    assert (await audit(open_cache, shards=1, repair=True)).repaired_count == 3
    assert (await audit(open_cache, shards=1)).problems == ()
    assert await holders(client) == [1, 1, 1]


async def test_a_repair_restores_a_lost_catalogue_and_keeps_all_other_keys(open_cache, client, keyspace):
    cache = open_cache(shards=1)
    for name in ("one", "two"):
        await full_session(cache, name, ttl=500)
    await full_session(cache, "three")
    sound = await keyspace()
    await client.delete("lash2:{laws:0}:sessions", "lash2:{laws:0}:expiries")
    report = await audit(open_cache, shards=1, repair=True)
    assert (report.session_count, report.problem_count, report.repaired_count) == (3, 3, 3)
    assert await keyspace() == sound
    assert (await audit(open_cache, shards=1)).problems == ()


# Concurrent writes


@pytest.mark.slow
async def test_audits_and_repairs_during_writes_find_no_problem_and_lose_no_data(open_cache):
    cache = open_cache(shards=2, blob_grace=0.2, deletion_marker_ttl=0)
    done = asyncio.Event()

    async def worker(number: int) -> None:
        dice = random.Random(number)
        while not done.is_set():
            name = f"s{dice.randrange(12)}"
            store = cache.session(name)
            try:
                match dice.randrange(6):
                    case 0:
                        await cache.delete(name)
                    case 1:
                        await cache.fork(name, f"s{dice.randrange(12)}")
                    case 2:
                        await store.touch(ttl=dice.choice((None, 0.3, 50)))
                    case _:
                        state = HydratedSessionCheckpoint(
                            tool_state=tools(str(dice.randrange(3))), execution_state=str(dice.random()).encode()
                        )
                        read = await store.load_session(FullGraph())
                        leaf = None if read is None else read.graph.leaf_node_id
                        graph = append(str(dice.random()), parent=leaf)
                        revision = 0 if read is None else read.head_revision
                        await store.commit_runtime_state(
                            commit(revision, graph, session_id=name, checkpoint=state),
                            ttl=dice.choice((None, 0.3, 50)),
                        )
            except Refused:
                pass  # another worker was faster

    workers = [asyncio.create_task(worker(number)) for number in range(4)]
    for turn in range(8):
        report = await audit(open_cache, repair=turn % 2 == 1, shards=2, blob_grace=0.2)
        assert report.problems == ()
    done.set()
    await asyncio.gather(*workers)
    async for info in cache.sessions():
        read = await open_cache(shards=2).session(info.session_id).load_session(FullGraph())
        assert info.fault is None
        assert read is None or read.checkpoint.tool_state is not None
    assert (await audit(open_cache, shards=2)).problems == ()


# gc of a whole namespace


async def test_gc_of_a_namespace_collects_every_shard_and_reports_the_kept_blobs(open_cache, client):
    cache = open_cache(shards=4, blob_grace=100)
    for number in range(8):
        await full_session(cache, f"s{number}")
        await cache.session(f"s{number}").commit_runtime_state(
            commit(
                2, Unchanged("d"), session_id=f"s{number}", checkpoint=HydratedSessionCheckpoint(tool_state=tools("b"))
            )
        )
    await cache.put_blob(b"\xc4\x01x")
    ticks: list[tuple[int, int]] = []
    report = await cache.gc(progress=lambda done, of: ticks.append((done, of)))
    used_shards = len({cache.layout.shard_of(f"s{number}") for number in range(8)})
    assert report == GcReport(root_count=8, retained_blob_count=1, deleted_blob_count=used_shards)
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert await cache.gc() == GcReport(root_count=8, retained_blob_count=1)
    for number in range(8):
        read = await open_cache(shards=4).session(f"s{number}").load_session(FullGraph())
        assert ids_of(read) == ["a", "c", "d"]
        assert read.checkpoint.tool_state == tools("b")


async def test_gc_removes_entries_of_expired_sessions(open_cache, client):
    cache = open_cache(shards=1, blob_grace=0.05)
    await full_session(cache, "lasting")
    for number in range(150):
        await cache.session(f"s{number}").commit_runtime_state(commit(None, session_id=f"s{number}"), ttl=0.05)
    await asyncio.sleep(0.2)
    await cache.gc()
    assert await client.zrange("lash2:{laws:0}:sessions", 0, -1) == [b"lasting\xffparent"]


async def test_a_session_with_only_meta_is_audited(open_cache, client):
    cache = open_cache(shards=1)
    store = await cache.create(SessionStoreCreateRequest("chat"))
    await store.save_session_meta(SessionMeta("chat", "n", "t", "m", parent_session_id="p"))
    assert (await audit(open_cache, shards=1)).session_count == 1
    await client.hset(await key_of(client, "head"), "meta", b"x")
    assert (await audit(open_cache, shards=1)).problem_count == 1


# What a repair must not do


def listed(session: Holding) -> Holding:
    return replace(session, entry=b"listed")


async def lose_between_phases(audit_of: Audit, monkeypatch, loss: Callable[[], Awaitable[object]]) -> None:
    """Call `loss` after the audit of the sessions and before the audit of the blobs."""
    audit_blobs = audit_of._blobs

    async def later(shard):
        await loss()
        await audit_blobs(shard)

    monkeypatch.setattr(audit_of, "_blobs", later)


@broken_by(
    Python(
        "protocol.commands.blob_audit:_count",
        lambda count: lambda refs, sessions, *more: count(refs, [listed(each) for each in sessions], *more),
        "takes every session for a listed one",
    )
)
async def test_a_catalogue_lost_during_a_repair_releases_no_blob(open_cache, client, monkeypatch):
    cache = open_cache(shards=1, blob_grace=0.05)
    states = await uploaded(cache, client)
    for name in ("one", "two"):
        await full_session(cache, name, states=states)

    async def loss() -> None:
        await full_session(cache, "late", states=states)
        await client.delete("lash2:{laws:0}:sessions")

    running = Audit(open_cache(role="auditor", shards=1).shared, repair=True, scan=True, progress=None)
    await lose_between_phases(running, monkeypatch, loss)
    await running.run()
    assert await holders(client) == [3, 3, 3]
    await cache.gc()
    await asyncio.sleep(0.15)
    for name in ("one", "two", "late"):
        read = await open_cache(shards=1, blob_cache_bytes=0).session(name).load_session(FullGraph())
        assert read.checkpoint.tool_state == tools()


UNREADABLE: dict[str, Damage] = {
    "a damaged meta": at("head", lambda client, key: client.hset(key, "meta", b"x")),
    "a flipped ref": at("head", lambda client, key: client.hset(key, "refs", b"h" + b"x" * 98)),
    "an unknown kind of ref": at("head", lambda client, key: client.hset(key, "refs", b"x" * 99)),
    "private components that are gone": at("state", lambda client, key: client.delete(key)),
    "a private component that is gone": at("state", lambda client, key: client.hdel(key, "p")),
    "a private component too many": at("state", lambda client, key: client.hset(key, "z", "x")),
    "a damaged private component": at("state", lambda client, key: client.hset(key, "x", b"\0other")),
    "private components of another type": at("state", lambda client, key: client.execute_command("SET", key, "x")),
    "refs that are gone": at("head", lambda client, key: client.hdel(key, "refs")),
    "a nodes hash that is gone": at("nodes", lambda client, key: client.delete(key)),
    "a head that is gone": at("head", lambda client, key: client.delete(key)),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_repair_changes_no_blob_while_a_session_is_unreadable(name, open_cache, client):
    for lost in ((), ("lash2:{laws:0}:sessions", "lash2:{laws:0}:expiries")):
        await client.flushall()
        await full_session(open_cache(shards=1))
        await full_session(open_cache(shards=1), "sound")
        before = {blob: await client.hgetall(blob) for blob in await blob_keys(client)}
        await UNREADABLE[name](client)
        for key in lost:
            await client.delete(key)
        report = await audit(open_cache, shards=1, repair=True)
        assert report.problem_count > 0
        assert {blob: await client.hgetall(blob) for blob in await blob_keys(client)} == before


async def test_an_audit_reports_data_of_other_programs_and_completes(open_cache, client):
    await full_session(open_cache(shards=2), "one")
    await full_session(open_cache(shards=2), "two")
    layout = open_cache(shards=2).layout
    prefix, other = layout.prefix(0), layout.prefix(1)
    blob = (await blob_keys(client))[0]
    for key, value in (("blob:zz", "x"), ("head:\udcff", "x"), ("log:only", "x"), ("orphans", "x")):
        await client.set(prefix.encode() + key.encode(errors="surrogateescape"), value)
    await client.hset(blob, mapping={"0": "abc"})
    await client.zadd(f"{other}sessions", {b"\xff\xfe\xff": "inf", b"unknown": 5})
    for session in ("one", "two"):
        keys = layout.session(session)
        await client.rpush(keys.jumps, "x:y")
        await client.hset(keys.nodes, "d", "xu")
        await client.hset(keys.head, "ttl", "abc")
    report = await audit(open_cache, shards=2)
    assert {problem.key for problem in report.problems} >= {blob.decode()}
    assert report.problem_count >= 5
    assert len([info async for info in open_cache(shards=2).sessions()]) >= 2


async def test_a_repair_extends_a_blob_that_would_expire_before_its_holders(open_cache, client):
    cache = open_cache(shards=1)
    states = await uploaded(cache, client)
    await full_session(cache, states=states)
    await full_session(cache, "timed", ttl=500, states=states)
    one, two, _ = await blob_keys(client)
    await client.pexpire(one, 1500)
    assert (await audit(open_cache, shards=1)).problem_count == 1
    assert (await audit(open_cache, shards=1, repair=True)).repaired_count == 1
    assert await client.pttl(one) == -1
    await open_cache(shards=1).delete("chat")
    await client.pexpire(two, 1500)
    assert (await audit(open_cache, shards=1, repair=True)).repaired_count == 1
    assert (await audit(open_cache, shards=1)).problems == ()
    assert min([await client.pttl(blob) for blob in (one, two)]) > 490_000


async def test_holds_of_clients_with_another_grace_are_not_reported(open_cache):
    cache = open_cache(shards=1, blob_grace=60)
    await cache.session("brief").commit_runtime_state(commit(None, session_id="brief", checkpoint=STATES), ttl=0.05)
    await asyncio.sleep(0.15)
    assert (await audit(open_cache, shards=1, blob_grace=0.01, repair=True)).problems == ()


@pytest.mark.parametrize(("arguments", "field"), [({"repair": "no"}, "repair"), ({"progress": 5}, "progress")])
async def test_invalid_arguments_of_an_audit_are_refused_and_named(arguments, field, open_cache):
    with pytest.raises(InvalidRecord, match=field):
        await open_cache(role="auditor").audit(**arguments)
