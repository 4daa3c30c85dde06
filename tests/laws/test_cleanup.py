"""Leases, watches and connections are released when their holder is cancelled: repeatedly, or by a scope of anyio."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

import lash_redis
from lash_redis import BackendError, LeaseBusy, OutcomeUnknown, SessionCache
from lash_redis.models import LeaseClaim
from lash_redis.session.leasing import Leasing
from lash_redis.transport import cleanup
from lash_redis.transport.backend import Backend
from lash_redis.transport.group import Group
from tests.support.breaking import Python, broken_by
from tests.support.cancelling import WAYS, at_each_step, by_scope, steps, times
from tests.support.proxy import Action, on


def runs_in_the_holders_task(_: Any) -> Any:
    async def broken(work: Any) -> Any:
        task = asyncio.ensure_future(work())
        await task
        return task, None

    return broken


CLEANS_UP_IN_THE_HOLDER = Python("transport.cleanup:run_to_end", runs_in_the_holders_task, "is cancelled with it")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine does not cut a cleanup short."""
    monkeypatch.setattr(cleanup, "GRACE", 60.0)


def tasks_of(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """The tasks that were started since `before`, without the caller's own."""
    return asyncio.all_tasks() - before - {asyncio.current_task()}


async def until(read: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Wait until `read` returns the expected value."""
    async with asyncio.timeout(60):
        while await read() != expected:  # noqa: ASYNC110 - no event reports what another connection changed
            await asyncio.sleep(0.005)


# Leases


@broken_by(
    CLEANS_UP_IN_THE_HOLDER,
    Python("session.leasing:Leasing._withdraw", lambda _: _do_nothing, "keeps what a cancelled call acquired"),
)
async def test_a_lease_is_free_at_once_after_its_holder_was_cancelled_at_any_step(store):
    async def hold() -> None:
        async with await store.acquire_lease(ttl=60):
            await steps(3)

    await store.load_lease()
    for way in WAYS.values():
        async for step in at_each_step(hold, way):
            assert await store.load_lease() is None, step


@broken_by(CLEANS_UP_IN_THE_HOLDER)
async def test_a_renewing_block_that_was_cancelled_at_any_step_leaves_no_task_and_a_free_lease(store):
    async def hold() -> None:
        async with await store.acquire_lease(ttl=60) as lease, lease.renewing():
            await steps(3)

    await store.load_lease()
    before = asyncio.all_tasks()
    async for step in at_each_step(hold, by_scope):
        assert (await store.load_lease(), tasks_of(before)) == (None, set()), step


async def test_a_release_in_a_finally_is_completed_in_a_cancelled_scope(store):
    with anyio.CancelScope() as scope:
        lease = await store.acquire_lease(ttl=60)
        try:
            scope.cancel()
            await anyio.sleep(60)
        finally:
            await lease.release()
    assert await store.load_lease() is None


@broken_by(Python("session.leasing:Leasing._acquire_or_release", lambda _: Leasing._acquire, "leaves the attempt"))
async def test_a_cancelled_call_releases_a_lease_whose_reply_is_late(proxy, through_proxy, open_real_cache):
    cache = through_proxy()
    await cache.preload()
    store, other = cache.session("chat"), open_real_cache().session("chat")
    await store.load_lease()
    proxy.on_command = on(Action.HOLD_REPLY, "EVALSHA")
    call = asyncio.create_task(store.acquire_lease(ttl=60))

    async def is_held() -> bool:
        return await other.load_lease() is not None

    await until(is_held, True)
    call.cancel()
    await steps(5)
    proxy.release()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await other.load_lease() is None


async def test_a_cancelled_call_with_a_token_of_the_caller_does_not_release_the_callers_lease(store):
    lease = await store.acquire_lease("worker", ttl=60, token="mine")
    for step in range(1, 60):
        await times(1)(lambda: store.acquire_lease("worker", ttl=60, token="mine"), step)
    await lease.renew()


async def test_a_cancelled_call_does_not_release_the_lease_of_the_holder(store):
    lease = await store.acquire_lease("worker", ttl=60)

    async def ask() -> None:
        with pytest.raises(LeaseBusy):
            await store.acquire_lease("worker")

    async for _ in at_each_step(ask, times(1)):
        pass
    await lease.renew()


# Watches


@pytest.mark.slow
@broken_by(CLEANS_UP_IN_THE_HOLDER)
async def test_a_watch_that_was_cancelled_at_any_step_leaves_no_task_and_no_connection(real_server):
    client = real_server.client()
    cache = SessionCache(client, "laws")

    async def watch_many() -> None:
        async with cache.watch() as watch:
            watch.add("chat", 0)
            await steps(20)

    async def watch_one() -> None:
        async for _ in cache.session("chat").watch(0):
            raise AssertionError("there is no revision")

    async def watch_one_for_a_moment() -> None:
        with anyio.move_on_after(0.01):
            await watch_one()

    await cache.session("chat").load_head()
    before = asyncio.all_tasks()
    for work, way in product((watch_many, watch_one_for_a_moment), WAYS.values()):
        async for step in at_each_step(work, way):
            assert (tasks_of(before), client.connection_pool._in_use_connections) == (set(), set()), step
    await until(lambda: client.execute_command("PUBSUB", "CHANNELS"), [])


# Connections and servers


@pytest.mark.slow
@broken_by(CLEANS_UP_IN_THE_HOLDER)
async def test_a_cache_that_was_cancelled_at_any_step_closes_its_connections(real_server):
    admin = real_server.client()

    async def use() -> None:
        async with lash_redis.connect(f"{real_server.tcp_url}?client_name=cancelled") as cache:
            await cache.session("chat").load_head()

    before = asyncio.all_tasks()
    for way in WAYS.values():
        async for step in at_each_step(use, way):
            assert tasks_of(before) == set(), step

    async def connections() -> list[Any]:
        return [each for each in await admin.client_list() if each["name"] == "cancelled"]

    await until(connections, [])


@broken_by(CLEANS_UP_IN_THE_HOLDER)
async def test_an_embedded_server_ends_with_a_cancelled_scope():
    with anyio.CancelScope() as scope:
        async with lash_redis.connect("embedded://") as cache:
            await cache.session("chat").load_head()
            server = cache.shared._backend._connector._server
            assert server.running
            scope.cancel()
            await anyio.sleep(60)
    assert not server.running


@broken_by(Python("transport.backend:Backend._close", lambda _: _do_nothing, "closes nothing"))
async def test_a_cache_that_is_closed_while_it_opens_its_server_ends_the_server(monkeypatch):
    cache = lash_redis.connect("embedded://")
    server = cache.shared._backend._connector._server
    start, is_starting, may_start = server.start, threading.Event(), threading.Event()

    def start_later() -> None:
        is_starting.set()
        may_start.wait(60)
        start()

    monkeypatch.setattr(server, "start", start_later)
    opening = asyncio.create_task(cache.session("chat").load_head())
    assert await asyncio.to_thread(is_starting.wait, 60)
    closing = asyncio.create_task(cache.aclose())
    await steps(20)
    may_start.set()
    await closing
    with pytest.raises(BackendError, match="closed"):
        await opening
    assert not server.running


@broken_by(CLEANS_UP_IN_THE_HOLDER)
async def test_connections_to_a_server_that_left_are_closed_though_the_request_is_cancelled():
    class Left:
        address, is_busy, is_closed = "left:6379", False, False

        async def close(self) -> None:
            await steps(5)
            self.is_closed = True

    left = Left()
    group = SimpleNamespace(_members={(("left", 6379), False): left})
    assert not await times(3)(lambda: Group._close_all_but(group, []), 2)
    assert (left.is_closed, group._members) == (True, {})


# Errors and time


def reports_the_cleanup(clean_up: Any) -> Any:
    async def broken(work: Any, what: str, *, after: BaseException | None = None) -> None:
        await clean_up(work, what)

    return broken


async def _unanswered(*arguments: object) -> None:
    raise OutcomeUnknown("no reply")


async def _do_nothing(*arguments: object) -> None:
    return None


@broken_by(Python("session.lease:clean_up", reports_the_cleanup, "raises its own error"))
async def test_an_error_of_a_release_is_raised_alone_and_never_hides_the_error_of_the_block(store, monkeypatch):
    monkeypatch.setattr(Leasing, "release", _unanswered)
    with pytest.raises(ZeroDivisionError):
        async with await store.acquire_lease("first"):
            raise ZeroDivisionError
    with pytest.raises(OutcomeUnknown):
        async with await store.acquire_lease("first", reenter=True):
            pass


@broken_by(Python("transport.backend:clean_up", reports_the_cleanup, "raises its own error"))
async def test_an_error_of_closing_a_cache_does_not_hide_the_error_of_the_block(open_cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "_close", _unanswered)
        with pytest.raises(ZeroDivisionError):
            async with open_cache():
                raise ZeroDivisionError
        with pytest.raises(OutcomeUnknown):
            async with open_cache():
                pass


@broken_by(Python("transport.cleanup:keep_pending", lambda _: lambda cancelled: None, "drops the cancellation"))
async def test_a_cancellation_during_a_cleanup_follows_the_error_of_the_block():
    seen: list[str] = []

    async def work() -> None:
        try:
            async with cleanup.cleaned_up(lambda: steps(5), "waiting"):
                raise ZeroDivisionError
        except ZeroDivisionError:
            seen.append("error")
        await asyncio.sleep(0)
        seen.append("no cancellation")

    assert not await times(1)(work, 3)
    assert seen == ["error"]


@broken_by(CLEANS_UP_IN_THE_HOLDER)
async def test_a_cancellation_during_a_cleanup_without_an_error_is_raised_at_its_end():
    ended: list[bool] = []

    async def work() -> None:
        await cleanup.clean_up(work_of_cleanup, "waiting")

    async def work_of_cleanup() -> None:
        await steps(5)
        ended.append(True)

    task = asyncio.create_task(work())
    await steps(3)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), ended) == (True, [True])


async def test_a_cleanup_that_does_not_end_is_given_up_after_the_grace_period(monkeypatch, caplog):
    monkeypatch.setattr(cleanup, "GRACE", 0.05)
    before = asyncio.all_tasks()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with cleanup.cleaned_up(lambda: asyncio.sleep(60), "waiting for ever"):
            await anyio.sleep(60)
    assert tasks_of(before) == set()
    assert "waiting for ever failed: it did not end within 0.05 s" in caplog.text


@broken_by(Python("transport.cleanup:GRACE", lambda _: 0.0, "leaves it no time"))
async def test_leases_are_released_when_the_event_loop_is_shut_down(url, caplog):
    """`asyncio.run` cancels every task, those of cleanups included, and ends when all of them have ended."""

    async def hold(cache: SessionCache, number: int, is_first_done: asyncio.Event) -> None:
        async with await cache.session(f"chat-{number}").acquire_lease(ttl=60):
            await steps(10 * number)
        is_first_done.set()

    async def serve(is_first_done: asyncio.Event) -> None:
        async with lash_redis.connect(url) as cache, asyncio.TaskGroup() as requests:
            for number in range(20):
                requests.create_task(hold(cache, number, is_first_done))

    async def main() -> None:
        is_first_done = asyncio.Event()
        serving = asyncio.create_task(serve(is_first_done))
        await is_first_done.wait()
        assert not serving.done()

    async def held() -> list[LeaseClaim]:
        async with lash_redis.connect(url) as cache:
            return [each for count in range(20) if (each := await cache.session(f"chat-{count}").load_lease())]

    await asyncio.to_thread(asyncio.run, main())
    assert await held() == []
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelno > logging.DEBUG] == []
