"""A lease has one holder at a time, a token, a generation that counts holders, and a deadline by the server's clock."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lash_redis import (
    BackendError,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidRecord,
    Lease,
    LeaseBusy,
    LeaseInfo,
    LeaseLost,
    OutcomeUnknown,
    RuntimeCommit,
    SessionBindingMismatch,
    SessionDeleted,
    SessionEvicted,
    SessionStoreCreateRequest,
    StoreError,
)
from lash_redis.models import LeaseClaim
from lash_redis.session.lease import HeldLease
from lash_redis.session.leasing import Leasing
from tests.laws.test_watch import until
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit, facts_of, ids_of, key_of, tools
from tests.support.proxy import Action, on


async def expire_lease(client, session_id: str = "chat") -> None:
    """Put the deadline of the stored lease into the past."""
    head = await key_of(client, "head", session_id)
    generation, _, rest = (await client.hget(head, "lease")).split(b" ", 2)
    await client.hset(head, "lease", b" ".join((generation, b"1000", rest)))


async def stored_lease(client, session_id: str = "chat") -> bytes:
    return await client.hget(await key_of(client, "head", session_id), "lease")


# Acquiring


async def test_the_first_lease_of_a_session_has_generation_1_and_the_callers_token(store, client):
    seconds, micros = await client.time()
    lease = await store.acquire_lease("worker", ttl=2000.0, token="mine")
    assert (lease.owner, lease.token, lease.generation, lease.displaced) == ("worker", "mine", 1, None)
    assert seconds + micros / 1e6 + 1999.9 < lease.deadline < seconds + micros / 1e6 + 2100
    assert 1900 < lease.remaining <= 2000


async def test_a_lease_can_be_acquired_before_and_after_the_first_commit(store):
    assert (await (await store.acquire_lease("a")).release()) is None
    await store.commit_runtime_state(commit(None, append("a")))
    assert (await store.acquire_lease("b")).generation == 2
    assert ids_of(await store.load_session(FullGraph())) == ["a"]


@broken_by(Lua("acquire", "not (is_again or is_own and reenters)", "false"))
async def test_acquiring_the_lease_of_another_owner_raises_lease_busy(store, keyspace):
    lease = await store.acquire_lease("first", ttl=60)
    before = await keyspace()
    with pytest.raises(LeaseBusy) as busy:
        await store.acquire_lease("second")
    error = busy.value
    assert (error.session_id, error.owner, error.generation, error.deadline) == ("chat", "first", 1, lease.deadline)
    assert await keyspace() == before


@broken_by(Lua("acquire", "is_again and lease.generation or", "false or"))
async def test_a_claim_sent_twice_is_one_claim(store, client):
    first = await store.acquire_lease("worker", token="mine")
    second = await store.acquire_lease("worker", token="mine")
    assert (second.generation, second.token) == (first.generation, first.token)
    await expire_lease(client)
    await store.acquire_lease("other", token="theirs")
    assert (await store.acquire_lease("other", token="theirs")).generation == 2


@broken_by(Lua("acquire", "'lease', write_lease(generation, deadline, token, owner)",
               "'lease', write_lease(generation, deadline, is_live and lease.token or token, owner)"))  # fmt: skip
async def test_re_entering_a_lease_returns_a_new_token_and_invalidates_the_old_one(store):
    old = await store.acquire_lease("worker", ttl=60)
    new = await store.acquire_lease("worker", ttl=1, reenter=True)
    assert (new.generation, new.displaced) == (2, None)
    assert new.token != old.token
    assert new.deadline >= old.deadline
    with pytest.raises(LeaseLost) as lost:
        await old.renew()
    assert lost.value.reason == "taken"
    with pytest.raises(LeaseLost):
        await old.release()
    with pytest.raises(LeaseLost):
        await store.commit_runtime_state(commit(None, append("a"), lease=old))
    await store.commit_runtime_state(commit(None, append("a"), lease=new))


@broken_by(
    Lua("acquire", "add64(lease and lease.generation or '0', '1')", "'1'"),
    Lua("release", "write_lease(lease.generation, 0, '', request)", "write_lease('0', 0, '', request)"),
)
async def test_every_new_holder_increments_the_generation_across_commits_and_vacuum(store, open_cache, client):
    for generation in range(1, 4):
        lease = await store.acquire_lease(f"worker-{generation}")
        assert lease.generation == generation
        await lease.release()
    await store.commit_runtime_state(
        commit(None, append("a", "b"), checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
    )
    assert (await store.acquire_lease("x")).generation == 4
    await store.tombstone_nodes(["a"])
    await store.vacuum()
    await store.gc_unreachable()
    await expire_lease(client)
    elsewhere = open_cache().session("chat")
    assert (await elsewhere.acquire_lease("y")).generation == 5


@broken_by(Lua("acquire", "lapsed and {'lapsed'", "false and {'lapsed'"))
async def test_acquiring_an_expired_lease_returns_its_previous_holder(store, client):
    await store.acquire_lease("dead worker", ttl=60)
    await expire_lease(client)
    lease = await store.acquire_lease("next")
    assert lease.displaced == LeaseInfo("dead worker", 1, 1.0)
    again = await store.acquire_lease("next", reenter=True)
    assert again.displaced is None
    await again.release()
    assert (await store.acquire_lease("third")).displaced is None


@broken_by(Lua("acquire", "lease.deadline > now", "true"))
async def test_an_expired_lease_can_be_acquired(store):
    await store.acquire_lease("first", ttl=0.05)
    await asyncio.sleep(0.1)
    assert (await store.acquire_lease("second")).generation == 2


async def test_exactly_one_of_many_concurrent_first_claims_succeeds(open_cache):
    caches = [open_cache() for _ in range(4)]
    claims = [
        cache.session("chat").acquire_lease(f"w{at}-{task}") for at, cache in enumerate(caches) for task in (1, 2)
    ]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["Lease"] + ["LeaseBusy"] * 7


async def test_a_waiting_worker_acquires_the_lease_when_it_is_released(store, open_cache):
    lease = await store.acquire_lease("first")
    waiting = asyncio.create_task(open_cache().session("chat").acquire_lease("second", wait=20.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await lease.release()
    assert (await waiting).generation == 2


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("",), "owner"), ((7,), "owner"), (("w", 0), "ttl"), (("w", float("nan")), "ttl"), (("w", True), "ttl"),
        (("w", 1e12), "ttl"),
    ],
)  # fmt: skip
async def test_an_invalid_claim_is_refused_by_its_field_and_writes_nothing(arguments, field, store, keyspace):
    with pytest.raises(InvalidRecord) as refused:
        await store.acquire_lease(*arguments)
    assert refused.value.field == field
    assert await keyspace() == {}


@pytest.mark.parametrize("token", ["", "a b", "é", "x" * 129, "a\n"])
async def test_a_token_must_be_visible_ascii(token, store):
    with pytest.raises(InvalidRecord, match="token"):
        await store.acquire_lease("w", token=token)


async def test_a_number_too_long_to_print_is_refused_by_its_field(store):
    lease, huge = await store.acquire_lease("worker"), 10**5_000
    for field, call in (
        ("ttl", lambda: store.acquire_lease("worker", huge)),
        ("wait", lambda: store.acquire_lease("worker", wait=huge)),
        ("ttl", lambda: lease.renew(huge)),
        ("every", lambda: lease.renewing(huge).__aenter__()),
        ("poll", lambda: anext(store.watch(poll=huge))),
        ("since", lambda: anext(store.watch(since=-huge))),
    ):
        with pytest.raises(InvalidRecord) as caught:
            await call()
        assert caught.value.field == field


@pytest.mark.parametrize("owner", ["host name with blanks", "a\nb", "ünïcode ✓", "7 8 9", "x" * 60_000])
async def test_any_text_is_a_valid_owner(owner, store, client):
    lease = await store.acquire_lease(owner)
    with pytest.raises(LeaseBusy) as busy:
        await store.acquire_lease("other")
    assert busy.value.owner == owner
    await lease.renew()
    await store.commit_runtime_state(commit(None, append("a"), lease=lease))
    assert (await store.load_lease()).owner == owner
    await lease.release()


# Renewing and releasing


@broken_by(Lua("renew", "write_lease(lease.generation, deadline", "write_lease(lease.generation, lease.deadline"))
async def test_renewing_changes_only_the_deadline(store):
    lease = await store.acquire_lease("worker", ttl=5)
    token, deadline = lease.token, lease.deadline
    assert await lease.renew(ttl=100) is lease
    assert (lease.token, lease.generation) == (token, 1)
    assert deadline + 90 < lease.deadline < deadline + 200
    assert (await store.load_lease()).deadline == lease.deadline


@broken_by(Lua("renew", "math.max(lease.deadline, now + ttl)", "now + ttl"))
async def test_renewing_with_a_shorter_ttl_does_not_shorten_the_lease(store):
    lease = await store.acquire_lease("worker", ttl=100)
    deadline = lease.deadline
    await lease.renew(ttl=1)
    assert lease.deadline == deadline


@broken_by(Lua("renew", "return lease.deadline <= now and 'expired' or nil", "return nil"))
async def test_an_expired_lease_cannot_be_renewed(store, keyspace, client):
    lease = await store.acquire_lease("worker")
    await expire_lease(client)
    before = await keyspace()
    with pytest.raises(LeaseLost) as lost:
        await lease.renew()
    assert (lost.value.session_id, lost.value.owner, lost.value.reason) == ("chat", "worker", "expired")
    assert await keyspace() == before


@broken_by(Lua("release", "if lease.token ~= token or lease.owner ~= owner then return 'taken' end", ""))
async def test_a_late_release_does_not_release_the_lease_of_a_successor(store, keyspace, client):
    stale = await store.acquire_lease("first")
    await expire_lease(client)
    held = await store.acquire_lease("second")
    before = await keyspace()
    for _ in range(2):
        with pytest.raises(LeaseLost) as lost:
            await stale.release()
        assert lost.value.reason == "taken"
    assert await keyspace() == before
    await held.renew()


async def test_a_second_release_is_refused(store):
    lease = await store.acquire_lease("worker")
    await lease.release()
    assert lease.remaining == 0
    for again in (lease.release, lease.renew):
        with pytest.raises(LeaseLost) as lost:
            await again()
        assert lost.value.reason == "released"


@broken_by(Lua("release", "lease.owner == request", "false"))
async def test_a_release_whose_reply_is_lost_succeeds(proxy, through_proxy):
    cache = through_proxy()
    await cache.preload()
    store = cache.session("chat")
    lease = await store.acquire_lease("worker")
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    await lease.release()
    assert await store.load_lease() is None
    with pytest.raises(LeaseLost):
        await lease.release()
    assert (await store.acquire_lease("other")).displaced is None


async def test_renewing_with_the_token_and_another_owner_is_refused(store):
    lease = await store.acquire_lease("worker", token="known")
    foreign = Lease("chat", "other", "known", 1, 0.0)
    with pytest.raises(LeaseLost):
        await store.adopt_lease(foreign).renew()
    await lease.renew()


async def test_a_with_block_releases_its_lease_on_success_and_on_error(store):
    async with await store.acquire_lease("first"):
        assert (await store.load_lease()).owner == "first"
    with pytest.raises(ZeroDivisionError):
        async with await store.acquire_lease("second"):
            raise ZeroDivisionError
    assert await store.load_lease() is None
    assert (await store.acquire_lease("third")).generation == 3


async def test_a_with_block_that_lost_its_lease_does_not_release_a_successors_lease(store, client):
    async with await store.acquire_lease("first"):
        await expire_lease(client)
        held = await store.acquire_lease("second")
    await held.renew()


# Inspecting


async def test_load_lease_changes_nothing_and_returns_an_expired_lease(store, keyspace, client):
    assert await store.load_lease() is None
    await store.acquire_lease("worker")
    await expire_lease(client)
    before = await keyspace()
    assert await store.load_lease() == LeaseInfo("worker", 1, 1.0)
    assert await keyspace() == before


# Commits under a lease


@broken_by(Lua("commit", "if why then return {'lost'", "if false then return {'lost'"))
@pytest.mark.parametrize("how", ["expired", "taken", "released", "gone"])
async def test_a_commit_whose_lease_is_lost_is_refused_and_changes_nothing(how, store, client, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    lease = await store.acquire_lease("worker")
    if how == "released":
        await lease.release()
    elif how == "gone":
        await client.hdel(await key_of(client, "head"), "lease")
    else:
        await expire_lease(client)
    if how == "taken":
        await store.acquire_lease("other")
    before = await keyspace()
    with pytest.raises(LeaseLost) as lost:
        await store.commit_runtime_state(commit(1, append("b", parent="a"), lease=lease))
    assert (lost.value.owner, lost.value.reason, lost.value.revision) == ("worker", how, None)
    assert await keyspace() == before


@broken_by(Lua("commit", "or lease.generation ~= generation and 'taken' or nil", ""))
async def test_a_commit_with_another_generation_of_its_lease_is_refused(store):
    lease = await store.acquire_lease("worker")
    await store.commit_runtime_state(commit(None, append("a"), lease=lease))
    lease.generation += 1
    with pytest.raises(LeaseLost):
        await store.commit_runtime_state(commit(1, append("b", parent="a"), lease=lease))


async def test_a_commit_under_a_lease_leaves_the_lease_unchanged(store, client):
    lease = await store.acquire_lease("worker")
    before = await stored_lease(client)
    await store.commit_runtime_state(commit(None, append("a"), lease=lease))
    with pytest.raises(HeadRevisionConflict):
        await store.commit_runtime_state(commit(7, append("b", parent="a"), lease=lease))
    assert await stored_lease(client) == before


async def test_a_lease_neither_bypasses_the_revision_check_nor_blocks_other_commits(store):
    lease = await store.acquire_lease("worker")
    await store.commit_runtime_state(commit(None, append("a")))
    with pytest.raises(HeadRevisionConflict):
        await store.commit_runtime_state(commit(0, append("b"), lease=lease))
    await store.commit_runtime_state(commit(1, append("b", parent="a")))


async def test_a_lost_lease_is_reported_before_a_replay_with_the_replayed_revision(store, client):
    lease = await store.acquire_lease("worker")
    made = commit(None, append("a"), lease=lease)
    await store.commit_runtime_state(made)
    await store.commit_runtime_state(commit(1, append("b", parent="a")))
    assert (await store.commit_runtime_state(made)).replayed
    await expire_lease(client)
    with pytest.raises(LeaseLost) as lost:
        await store.commit_runtime_state(made)
    assert (lost.value.reason, lost.value.revision) == ("expired", 1)


async def test_a_retry_without_the_lease_of_the_commit_is_a_replay(store):
    made = commit(None, append("a"), lease=await store.acquire_lease("worker"))
    await store.commit_runtime_state(made)
    again = replace(made, lease=None)
    assert (await store.commit_runtime_state(again)).replayed


@broken_by(Lua("commit", "local frees = is_claim(held_lease, releases)", "local frees = false"))
async def test_a_commit_can_release_its_lease(store):
    lease = await store.acquire_lease("worker")
    await store.commit_runtime_state(commit(None, append("a"), releases=lease))
    assert await store.load_lease() is None
    assert (await store.acquire_lease("next")).generation == 2


async def test_a_refused_commit_does_not_release_its_lease(store):
    lease = await store.acquire_lease("worker")
    with pytest.raises(HeadRevisionConflict):
        await store.commit_runtime_state(commit(7, append("a"), releases=lease))
    await lease.renew()


@broken_by(Lua("commit", "if frees then", "if held_lease then"))
async def test_a_commit_that_releases_a_lost_lease_does_not_affect_its_successor(store, client):
    stale = await store.acquire_lease("first")
    await expire_lease(client)
    held = await store.acquire_lease("second")
    await store.commit_runtime_state(commit(None, append("a"), releases=stale))
    await held.renew()


async def test_a_replayed_commit_releases_its_lease(store):
    first = commit(None, append("a"))
    await store.commit_runtime_state(first)
    lease = await store.acquire_lease("worker")
    again = replace(first, releases=lease)
    assert (await store.commit_runtime_state(again)).replayed
    assert await store.load_lease() is None
    assert (await store.commit_runtime_state(again)).replayed


async def test_a_replay_whose_release_fails_reports_that_the_commit_was_made(store, monkeypatch):
    first = commit(None, append("a"))
    await store.commit_runtime_state(first)
    again = replace(first, releases=await store.acquire_lease("worker"))
    with monkeypatch.context() as patch:
        patch.setattr(Leasing, "release", _unreachable)
        with pytest.raises(OutcomeUnknown, match="1 commit was made before"):
            await store.commit_runtime_state(again)
    assert (await store.commit_runtime_state(again)).replayed
    assert await store.load_lease() is None


async def test_a_commit_accepts_only_one_lease_and_only_of_its_session(store, open_cache):
    lease = await store.acquire_lease("worker")
    with pytest.raises(InvalidRecord, match="releases"):
        await store.commit_runtime_state(commit(None, append("a"), lease=lease, releases=lease))
    with pytest.raises(InvalidRecord, match=r"RuntimeCommit\.lease"):
        await store.commit_runtime_state(commit(None, append("a"), lease="worker"))
    other = open_cache().session("other")
    for name in ("lease", "releases"):
        with pytest.raises(SessionBindingMismatch):
            await other.commit_runtime_state(commit(None, append("a"), session_id="other", **{name: lease}))


# The session of a lease


async def test_commits_and_touches_leave_the_lease_unchanged(store, client):
    lease = await store.acquire_lease("worker")
    before = await stored_lease(client)
    await store.commit_runtime_state(commit(None, append("a")))
    await store.touch(ttl=100)
    await store.commit_runtime_state(commit(1, append("b", parent="a"), lease=lease))
    assert await stored_lease(client) == before


async def test_a_session_with_only_a_lease_does_not_exist_yet_and_expires(store, cache, client):
    await store.acquire_lease("worker", ttl=60)
    assert await store.load_session(FullGraph()) is None
    assert await store.load_head() is None
    assert [info async for info in cache.sessions()] == []
    assert await store.touch() is False
    assert 86_000_000 < await client.pttl(await key_of(client, "head")) < 86_600_000
    await cache.create(SessionStoreCreateRequest("chat"))
    assert await client.pttl(await key_of(client, "head")) == -1
    assert (await store.load_lease()).owner == "worker"


@broken_by(
    Lua("renew", "if holder.is_alone then redis.call('PEXPIREAT', head, expires) end", ""),
    Lua("renew", "math.max(deadline + remains,", "math.max(deadline,"),
)
async def test_a_head_with_only_a_lease_expires_one_day_after_its_longest_renewal(store, client):
    lease = await store.acquire_lease("worker", ttl=60)
    head = await key_of(client, "head")
    for ttl, lives in ((4_000, 90_400_000), (1, 90_400_000), (8_000, 94_400_000)):
        await client.pexpire(head, 9_000)
        await lease.renew(ttl)
        assert lives - 60_000 < await client.pttl(head) <= lives


@broken_by(
    Lua("renew", "if holder.is_alone then", "if true then"),
    Lua("renew", "is_alone = not (facts or stored[3] or stored[6])", "is_alone = not facts"),
    Lua("renew", "is_alone = not (facts or stored[3] or stored[6])", "is_alone = not stored[3]"),
)
async def test_renewing_a_lease_sets_no_deadline_on_a_session_without_one(cache, client):
    created = await cache.create(SessionStoreCreateRequest("created"))
    written = cache.session("written")
    await written.commit_runtime_state(commit(None, append("a"), session_id="written"))
    for store in (created, written):
        await (await store.acquire_lease("worker", ttl=60)).renew(100)
        assert await client.pttl(await key_of(client, "head", store.session_id)) == -1


async def test_leases_of_a_deleted_session_raise_session_deleted(store, cache):
    await store.commit_runtime_state(commit(None, append("a")))
    lease = await store.acquire_lease("worker")
    await cache.delete("chat")
    made = commit(1, append("b"), lease=lease)
    for call in (
        lease.renew,
        lease.release,
        lambda: store.acquire_lease("other"),
        lambda: store.commit_runtime_state(made),
    ):
        with pytest.raises(SessionDeleted):
            await call()


async def test_a_session_recreated_after_deletion_starts_at_generation_1(open_cache):
    cache = open_cache(deletion_marker_ttl=0)
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    await (await store.acquire_lease("a")).release()
    await (await store.acquire_lease("b")).release()
    await cache.delete("chat")
    assert (await store.acquire_lease("c")).generation == 1


@broken_by(Python("session.leasing:Leasing._outlive", lambda _: _do_nothing, "touches nothing"))
async def test_acquiring_and_renewing_a_lease_extend_the_deadline_of_its_session(open_cache, client):
    store = open_cache(ttl=60).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    await client.pexpire(await key_of(client, "head"), 30_000)
    before = (await facts_of(client))["deadline"]
    await asyncio.sleep(0.01)
    lease = await store.acquire_lease("worker", ttl=600)
    assert await client.pttl(await key_of(client, "head")) > 500_000
    acquired = (await facts_of(client))["deadline"]
    await asyncio.sleep(0.01)
    await lease.renew()
    assert before < acquired < (await facts_of(client))["deadline"]


@broken_by(
    Lua("commit", "not frees and held_lease, now)", "false, now)"),
    Lua("touch", "default_ttl, lease, now)", "default_ttl, false, now)"),
)
async def test_a_session_with_a_short_ttl_does_not_expire_before_its_lease(cache, client):
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a")), ttl=60)
    lease = await store.acquire_lease("worker", ttl=600)
    assert await client.pttl(await key_of(client, "log")) > 500_000
    await store.commit_runtime_state(commit(1, append("b", parent="a"), lease=lease))
    assert await client.pttl(await key_of(client, "head")) > 500_000
    assert await store.touch()
    assert await client.pttl(await key_of(client, "head")) > 500_000
    with pytest.raises(LeaseBusy):
        await cache.session("chat").acquire_lease("other")
    await store.commit_runtime_state(commit(2, append("c", parent="b"), releases=lease))
    assert await client.pttl(await key_of(client, "head")) <= 60_000


@broken_by(Python("session.leasing:Leasing._outlive", lambda _: _do_nothing, "touches nothing"))
async def test_a_session_with_only_meta_does_not_expire_before_its_lease(cache, client):
    store = await cache.create(SessionStoreCreateRequest("chat"), ttl=60)
    lease = await store.acquire_lease("worker", ttl=600)
    assert await client.pttl(await key_of(client, "head")) > 500_000
    await store.save_session_meta(await store.load_session_meta())
    assert await client.pttl(await key_of(client, "head")) > 500_000
    await client.pexpire(await key_of(client, "head"), 30_000)
    await lease.renew()
    assert await client.pttl(await key_of(client, "head")) > 500_000


async def _do_nothing(*arguments):
    return None


@pytest.mark.parametrize("family", ["log", "nodes", "head"])
async def test_acquiring_a_lease_of_a_session_with_a_missing_key_is_refused(family, store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    key = await key_of(client, family)
    await client.delete(key)
    with pytest.raises(SessionEvicted) as evicted:
        await store.acquire_lease("worker")
    assert evicted.value.key == key.decode()


@broken_by(Lua("commit", "if held_lease == nil then", "if false then"))
@pytest.mark.parametrize(
    "planted", [b"", b"x", b"-1 5 t o", b"1 5", b"9223372036854775808 5 t o", b"1 9999999999999999 t o", b"1.5 5 t o"]
)
async def test_an_undecodable_lease_is_corrupt_and_never_overwritten(planted, store, client, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    lease = await store.acquire_lease("worker")
    await client.hset(await key_of(client, "head"), "lease", planted)
    before = await keyspace()
    made = commit(1, append("b", parent="a"))
    for call in (
        lambda: store.acquire_lease("other"),
        lease.renew,
        lease.release,
        lambda: store.commit_runtime_state(replace(made, lease=lease)),
        lambda: store.commit_runtime_state(made),
    ):
        with pytest.raises(Corrupt, match="lease"):
            await call()
    assert await keyspace() == before


async def test_generations_count_up_to_the_maximum_and_never_wrap(store, client, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    head = await key_of(client, "head")
    await client.hset(head, "lease", b"9007199254740993 0  ")
    assert (await store.acquire_lease("w")).generation == 9007199254740994
    await client.hset(head, "lease", b"9223372036854775807 0  ")
    before = await keyspace()
    with pytest.raises(Corrupt, match="counted further"):
        await store.acquire_lease("w")
    assert await keyspace() == before


# Copies and other processes


async def test_a_lease_can_be_sent_as_json_and_adopted_by_another_process(store, open_cache):
    lease = await store.acquire_lease("worker", ttl=60)
    text = json.dumps(lease.to_json())
    sent = Lease.from_json(json.loads(text))
    with pytest.raises(InvalidRecord, match="adopt_lease"):
        await sent.renew()
    elsewhere = open_cache().session("chat")
    adopted = elsewhere.adopt_lease(sent)
    await elsewhere.commit_runtime_state(commit(None, append("a"), lease=sent))
    await adopted.renew()
    await adopted.release()
    with pytest.raises(SessionBindingMismatch):
        open_cache().session("other").adopt_lease(sent)


async def test_an_adopted_lease_can_be_renewed_in_the_background_and_released(store, open_cache):
    sent = Lease.from_json((await store.acquire_lease("worker", ttl=60)).to_json())
    adopted = open_cache().session("chat").adopt_lease(sent)
    async with adopted.renewing():
        assert adopted.remaining > 50
    await adopted.release()
    with pytest.raises(LeaseLost) as lost:
        async with adopted.renewing():
            pass
    assert lost.value.reason == "released"


async def test_a_copied_lease_keeps_its_store_and_a_pickled_lease_does_not(store):
    lease = await store.acquire_lease("worker", ttl=60)
    made = commit(None, append("a"), lease=lease)
    for same in (copy.copy(lease), copy.deepcopy(lease), copy.deepcopy(made).lease):
        await same.renew()
    unknown = OutcomeUnknown("commit: lost")
    unknown.commit = made
    for sent in (pickle.loads(pickle.dumps(lease)), pickle.loads(pickle.dumps(unknown)).commit.lease):
        assert (sent.to_json(), sent.remaining) == (lease.to_json(), 0)
        await store.adopt_lease(sent).renew()


async def test_adopting_an_invalid_lease_is_refused_by_its_field(store):
    lease = await store.acquire_lease("worker", ttl=60)
    claim = LeaseClaim("chat", "worker", lease.token, lease.generation, lease.deadline)
    for wrong, field in ((claim, "lease"), (None, "lease"), (replace(lease, ttl=-1.0), "lease.ttl")):
        with pytest.raises(InvalidRecord) as caught:
            store.adopt_lease(wrong)
        assert caught.value.field == field


async def test_the_json_and_repr_of_a_commit_omit_its_lease(store):
    made = commit(None, append("a"), lease=await store.acquire_lease("worker", token="secret"))
    assert "secret" not in json.dumps(made.to_json())
    assert RuntimeCommit.from_json(made.to_json()).lease is None
    assert "secret" not in repr(made)


def test_lease_errors_survive_pickling():
    for error in (LeaseBusy("s", "o", 3, 1.5), LeaseLost("s", "o", "taken", 7)):
        sent = pickle.loads(pickle.dumps(error))
        assert (type(sent), vars(sent), str(sent)) == (type(error), vars(error), str(error))


# Renewing in the background


@pytest.mark.slow
async def test_a_renewing_block_keeps_its_lease_beyond_the_ttl(store, client):
    async with await store.acquire_lease("worker", ttl=6) as lease:
        deadline = lease.deadline
        async with lease.renewing():
            await until(lambda: _is_past(client, deadline), "the first deadline")
            await store.commit_runtime_state(commit(None, append("a"), lease=lease))
        assert lease.remaining > 0
    assert await store.load_lease() is None


async def _is_past(client, deadline: float) -> bool:
    seconds, micros = await client.time()
    return seconds + micros / 1e6 > deadline


async def test_a_renewing_block_raises_lease_lost_when_its_lease_is_taken(store):
    lease = await store.acquire_lease("worker", ttl=60)
    reached: list[str] = []

    async def work() -> None:
        async with lease.renewing(every=0.05):
            reached.append("the block")
            await asyncio.sleep(60)
            reached.append("the end")

    working = asyncio.create_task(work())
    await until(lambda: reached)
    held = await store.acquire_lease("worker", ttl=60, reenter=True)
    with pytest.raises(LeaseLost) as lost:
        await working
    assert (lost.value.reason, reached) == ("taken", ["the block"])
    await held.renew()
    assert asyncio.current_task().cancelling() == 0


@pytest.fixture
def failed_renewals(monkeypatch) -> list[Exception]:
    """The errors of renewals, so that a block continues until one has failed."""
    failed: list[Exception] = []
    extend = HeldLease._extend

    async def noted(self, *given):
        try:
            return await extend(self, *given)
        except StoreError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(HeldLease, "_extend", noted)
    return failed


async def test_a_renewing_block_raises_session_deleted_when_its_session_is_deleted(store, cache, failed_renewals):
    await store.commit_runtime_state(commit(None, append("a")))
    lease = await store.acquire_lease("worker", ttl=60)

    async def work() -> None:
        async with lease.renewing(every=0.05):
            await cache.delete("chat")
            await until(lambda: failed_renewals, "a failed renewal")

    with pytest.raises(SessionDeleted):
        await work()


async def test_a_renewing_block_raises_corrupt_when_its_lease_becomes_undecodable(store, client, failed_renewals):
    await store.commit_runtime_state(commit(None, append("a")))
    lease = await store.acquire_lease("worker", ttl=60)

    async def work() -> None:
        async with lease.renewing(every=0.05):
            await client.hset(await key_of(client, "head"), "lease", b"nonsense")
            await until(lambda: failed_renewals, "a failed renewal")

    with pytest.raises(Corrupt):
        await work()


@broken_by(Python("session.lease:HeldLease._extend", lambda _: _unreachable, "never reaches the server"))
async def test_a_renewing_block_moves_the_deadline_of_its_lease(store):
    lease = await store.acquire_lease("worker", ttl=60)
    deadline = lease.deadline
    async with lease.renewing(every=0.05):
        await until(lambda: _is_extended(store, deadline + 0.2), "renewals")


async def _is_extended(store, deadline: float) -> bool:
    return (await store.load_lease()).deadline > deadline


async def _unreachable(lease, ttl=None):
    raise BackendError("unreachable")


async def test_a_renewing_block_raises_lease_lost_when_renewals_fail_until_the_deadline(store, monkeypatch):
    lease = await store.acquire_lease("worker", ttl=0.3)
    monkeypatch.setattr(HeldLease, "_extend", _unreachable)
    with pytest.raises(LeaseLost) as lost:
        async with lease.renewing():
            await asyncio.sleep(20)
    assert lost.value.reason == "expired"


async def test_a_renewing_block_propagates_errors_and_cancellation_unchanged(store):
    lease = await store.acquire_lease("worker", ttl=60)
    with pytest.raises(ZeroDivisionError):
        async with lease.renewing():
            raise ZeroDivisionError
    task = asyncio.create_task(_hold(lease))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert [each for each in asyncio.all_tasks() if "_keep" in repr(each)] == []


async def _hold(lease):
    async with lease.renewing():
        await asyncio.sleep(20)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_renewing_block_ends_when_a_cancellation_is_swallowed(is_lost, store, monkeypatch):
    """Before Python 3.12, `asyncio.wait_for` swallows a cancellation that arrives when its task completes."""
    lease = await store.acquire_lease("worker", ttl=60)
    reached = asyncio.Event()

    async def renew(lease, ttl=None):
        reached.set()
        if is_lost:
            raise LeaseLost("chat", "worker", "taken")
        await _swallow_cancellation()

    monkeypatch.setattr(HeldLease, "_extend", renew)
    async with asyncio.timeout(30):
        async with lease.renewing(0.01):
            await (_swallow_cancellation() if is_lost else reached.wait())
    assert asyncio.current_task().cancelling() == 0


async def _swallow_cancellation():
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(600)


@pytest.mark.parametrize("every", [0, -1, 0.2, "x", float("nan")])
async def test_a_renewal_interval_must_be_positive_and_at_most_a_third_of_the_ttl(every, store):
    lease = await store.acquire_lease("worker", ttl=0.5)
    with pytest.raises(InvalidRecord, match="every"):
        async with lease.renewing(every=every):
            pass


# Random orders of operations


@dataclass
class Model:
    """The expected state of the lease of one session."""

    generation: int = 0
    holder: Lease | None = None
    is_live: bool = False
    revision: int = 0

    def accepts(self, lease: Lease) -> bool:
        return self.is_live and self.holder is not None and self.holder.token == lease.token


CLAIMS = ["acquire", "acquire again", "re-enter"]
OTHERS = ["renew", "release", "expire", "commit", "commit and release", "plain commit"]
STEPS = st.tuples(st.sampled_from(CLAIMS + OTHERS), st.integers(0, 2), st.integers(0, 7))
SESSIONS = count()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=5, max_size=30))
async def test_leases_match_a_model_in_any_order_of_operations(cache, client, steps):
    name = f"model-{next(SESSIONS)}"
    store, model, leases = cache.session(name), Model(), list[Lease]()
    for step, worker, which in steps:
        owner = f"worker {worker}"
        lease = leases[-1 - which % len(leases)] if leases else None
        if step == "expire":
            if model.is_live:
                await expire_lease(client, name)
                model.is_live = False
        elif step in CLAIMS or lease is None:
            again = step == "acquire again" and lease is not None
            token = lease.token if again else None
            owner, reenter = lease.owner if again else owner, step == "re-enter"
            is_again = again and model.accepts(lease)
            if model.is_live and not is_again and not (reenter and model.holder.owner == owner):
                with pytest.raises(LeaseBusy) as busy:
                    await store.acquire_lease(owner, token=token, reenter=reenter)
                assert (busy.value.owner, busy.value.generation) == (model.holder.owner, model.generation)
                assert busy.value.is_own is (model.holder.owner == owner)
                continue
            got = await store.acquire_lease(owner, token=token, reenter=reenter)
            model.generation += 0 if is_again else 1
            displaced = model.holder.owner if model.holder is not None and not model.is_live else None
            assert (got.generation, got.displaced and got.displaced.owner) == (model.generation, displaced)
            model.holder, model.is_live = got, True
            leases.append(got)
        elif step in ("renew", "release"):
            if not model.accepts(lease):
                with pytest.raises(LeaseLost):
                    await getattr(lease, step)()
                continue
            await getattr(lease, step)()
            if step == "release":
                model.holder, model.is_live = None, False
        else:
            named = {"commit": {"lease": lease}, "commit and release": {"releases": lease}, "plain commit": {}}[step]
            made = commit(model.revision, session_id=name, **named)
            if step == "commit" and not (model.accepts(lease) and lease.generation == model.generation):
                with pytest.raises(LeaseLost):
                    await store.commit_runtime_state(made)
                continue
            assert (await store.commit_runtime_state(made)).head_revision == model.revision + 1
            model.revision += 1
            is_holders = model.holder is not None and model.holder.token == lease.token
            if step == "commit and release" and is_holders and lease.generation == model.generation:
                model.holder, model.is_live = None, False
        shown = await store.load_lease()
        assert (shown and shown.owner) == (model.holder and model.holder.owner)
