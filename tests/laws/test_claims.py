"""A claim on a lease is identified by its owner and token. An owner's name alone gives no right to a lease."""

from __future__ import annotations

import asyncio
import pickle
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from tenacity import AsyncRetrying, wait_fixed

from lash_redis import InvalidRecord, LeaseBusy, LeaseInfo, LeaseLost, OutcomeUnknown
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit
from tests.support.proxy import Action, on
from tests.support.sending import sends_once


@broken_by(Lua("acquire", "not (is_again or is_own and reenters)", "not is_own"))
async def test_the_owner_of_a_lease_that_asks_again_is_refused(store, open_cache, keyspace):
    lease = await store.acquire_lease("worker", ttl=60)
    before = await keyspace()
    for same in (store, open_cache().session("chat")):
        with pytest.raises(LeaseBusy) as busy:
            await same.acquire_lease("worker", ttl=60)
        assert (busy.value.owner, busy.value.deadline, busy.value.is_own) == ("worker", lease.deadline, True)
    assert await keyspace() == before


@broken_by(Python("protocol.commands.lease:owner_of", lambda _: lambda token: "worker", "names every worker alike"))
async def test_two_requests_without_an_owner_are_two_workers(store):
    async with await store.acquire_lease() as first:
        with pytest.raises(LeaseBusy) as busy:
            await store.acquire_lease()
        assert (busy.value.owner, busy.value.is_own) == (first.owner, False)
    async with await store.acquire_lease() as second:
        assert second.owner != first.owner
        assert first.token not in first.owner


async def test_of_many_requests_of_one_owner_one_at_a_time_holds_the_lease(store):
    running, most = 0, 0

    async def request() -> None:
        nonlocal running, most
        async with await store.acquire_lease("service", wait=30.0):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1

    await asyncio.gather(*(request() for _ in range(5)))
    assert most == 1


@broken_by(
    Lua("acquire", "not (is_again or is_own and reenters)", "not is_again"),
    Lua("acquire", "is_again and lease.generation or", "is_own and lease.generation or"),
)
async def test_a_worker_that_restarted_re_enters_its_lease_with_a_higher_generation(store, open_cache):
    lost = await store.acquire_lease("worker", ttl=60)
    lease = await open_cache().session("chat").acquire_lease("worker", ttl=60, reenter=True)
    assert (lost.generation, lease.generation, lease.displaced) == (1, 2, None)
    with pytest.raises(LeaseLost) as taken:
        await store.commit_runtime_state(commit(None, append("a"), lease=lost))
    assert taken.value.reason == "taken"
    await store.commit_runtime_state(commit(None, append("a"), lease=lease))


@broken_by(Lua("acquire", "is_own and reenters", "reenters"))
async def test_re_entering_does_not_take_over_the_lease_of_another_owner(store):
    lease = await store.acquire_lease("first", ttl=60)
    with pytest.raises(LeaseBusy):
        await store.acquire_lease("second", reenter=True)
    await lease.renew()


async def test_re_entering_a_free_or_expired_lease_acquires_it(store):
    first = await store.acquire_lease("worker", ttl=0.01, reenter=True)
    await asyncio.sleep(0.05)
    second = await store.acquire_lease("worker", reenter=True)
    assert (first.generation, second.generation, second.displaced) == (1, 2, LeaseInfo("worker", 1, first.deadline))


@broken_by(Lua("acquire", "is_again and lease.generation or", "false or"))
async def test_re_entering_twice_with_one_token_is_one_claim(store):
    await store.acquire_lease("worker", ttl=60)
    for _ in range(2):
        assert (await store.acquire_lease("worker", token="new", reenter=True)).generation == 2


async def test_re_entering_needs_an_owner_and_a_bool(store, keyspace):
    for arguments in ({"reenter": True}, {"owner": "worker", "reenter": 1}):
        with pytest.raises(InvalidRecord) as refused:
            await store.acquire_lease(**arguments)
        assert refused.value.field == "reenter"
    assert await keyspace() == {}


@broken_by(Python("errors:LeaseBusy.__str__", lambda _: lambda self: "busy", "names nothing"))
def test_a_busy_lease_names_its_holder_its_end_and_the_remedy():
    held = LeaseBusy("chat", "worker 7", 3, 1_767_225_600.5)
    assert str(held) == (
        "the lease of session 'chat' is held by 'worker 7' until 2026-01-01T00:00:00Z; retry later, or pass `wait`"
    )
    own = pickle.loads(pickle.dumps(LeaseBusy("chat", "worker 7", 3, 1_767_225_600.5, is_own=True)))
    assert own.is_own
    assert str(own) == (f"{held}; if this worker restarted and lost that lease, pass reenter=True to take it over")


async def test_a_lease_that_stays_busy_is_reported_with_the_time_that_the_call_has_waited(store, other):
    await other.acquire_lease("worker 7", ttl=60)
    for wait, remedy in ((0.0, "; retry later, or pass `wait`"), (0.05, "; retry later, or pass a longer `wait`")):
        with pytest.raises(LeaseBusy) as busy:
            await store.acquire_lease("worker 8", wait=wait)
        error = pickle.loads(pickle.dumps(busy.value))
        assert error.waited == wait
        assert str(error).endswith((", still after 0.05 seconds" if wait else "") + remedy)


def forgets_the_token(acquire: Any) -> Any:
    async def broken(self: Any, owner: str | None, ttl: float, token: str | None, *more: Any, **named: Any) -> Any:
        try:
            return await acquire(self, owner, ttl, token, *more, **named)
        except OutcomeUnknown as error:
            error.token = token
            raise

    return broken


@broken_by(
    Python("protocol.commands.lease:owner_of", lambda _: lambda token: uuid4().hex, "makes a name for each call"),
    Python("session.leasing:Leasing.acquire", forgets_the_token, "reports only the caller's own token"),
)
async def test_a_claim_whose_reply_is_lost_is_made_once_by_the_token_of_the_error(proxy, through_proxy):
    cache = sends_once(through_proxy())
    await cache.preload()
    for owner, token in ((None, None), (None, "mine"), ("worker", None), ("worker", "mine")):
        store = cache.session(f"chat of {owner} by {token}")
        await store.load_lease()
        proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
        with pytest.raises(OutcomeUnknown) as unknown:
            await store.acquire_lease(owner, ttl=60, token=token)
        error = pickle.loads(pickle.dumps(unknown.value))
        assert f"token={error.token!r}" in str(error)
        assert token in (None, error.token)
        lease = await store.acquire_lease(owner, ttl=60, token=error.token)
        assert (lease.token, lease.generation, lease.displaced) == (error.token, 1, None)
        await lease.release()


def pauses_too_long(while_busy: Any) -> Any:
    def broken(self: Any, wait: float) -> AsyncRetrying:
        return while_busy(self, wait).copy(wait=wait_fixed(10.0))

    return broken


@broken_by(Python("session.leasing:Leasing._while_busy", pauses_too_long, "pauses for ten seconds"))
async def test_waiting_for_a_lease_ends_with_the_attempt_that_begins_at_the_end_of_wait(open_cache):
    store = open_cache(retry_max_delay=60.0).session("chat")
    await store.acquire_lease(ttl=60)
    for wait in (0.0, 0.3):
        began = monotonic()
        with pytest.raises(LeaseBusy):
            await store.acquire_lease(wait=wait)
        assert wait <= monotonic() - began < wait + 8.0
