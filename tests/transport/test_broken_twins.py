"""Run the laws of the transport against a transport that is broken on purpose: they must fail there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any

import hiredis
import pytest
from redis import exceptions

from lash_redis import StoreError
from lash_redis.transport.failures import NoReply, NotSent
from lash_redis.transport.request import Lane
from tests.support import scripted
from tests.support.breaking import Python
from tests.support.servers import RunningServers, Server
from tests.transport import test_connection as connections
from tests.transport import test_given as given
from tests.transport import test_lanes as lanes
from tests.transport import test_time as times

pytestmark = pytest.mark.slow

PATIENCE = 2.0
"""Seconds after which a law that waits for what a broken transport never does has failed."""


@pytest.fixture
def any_server(request: pytest.FixtureRequest, _running: RunningServers) -> Server:
    return scripted.newest_server(request, _running)


@pytest.fixture
async def real_server(any_server: Server) -> AsyncIterator[Server]:
    """One server is enough here: what is broken is ours."""
    yield any_server
    await any_server.close_clients()


admin = times.admin


# Ways to break it


def forgets_half_a_reply(data_received: Any) -> Any:
    def broken(self: Any, data: bytes) -> None:
        self._reader = hiredis.Reader()
        data_received(self, data)

    return broken


def drops_whatever_comes(_: Any) -> Any:
    def broken(self: Any) -> None:
        while self._reader.gets() is not False:
            pass

    return broken


def forgets_what_was_cancelled(ask: Any) -> Any:
    def broken(self: Any, *args: Any) -> Any:
        future = ask(self, *args)

        def forget(ended: Any) -> None:
            for each in [each for each in self._pending if each[0] is ended and ended.cancelled()]:
                self._pending.remove(each)

        future.add_done_callback(forget)
        return future

    return broken


def sends_at_any_time(ask: Any) -> Any:
    def broken(self: Any, wire: bytes, count: int, deadline: float, timeout: float) -> Any:
        return ask(self, wire, count, max(deadline, self._loop.time() + 1), timeout)

    return broken


def fails_with(kind: type[Exception]) -> Callable[[Any], Any]:
    def make(fail: Any) -> Any:
        def broken(self: Any, error: Exception) -> None:
            fail(self, kind(str(error)))

        return broken

    return make


def takes_all_for_written(fail: Any) -> Any:
    def broken(self: Any, error: Exception) -> None:
        self._unwritten.clear()
        fail(self, error)

    return broken


def fails_every_call(_: Any) -> Any:
    def broken(self: Any) -> None:
        self._fail(NoReply("no reply"))

    return broken


def knows_one_lane(_: Any) -> Any:
    return lambda self, lane, size: self._small


def lets_waits_share(group: Any) -> Any:
    return lambda self, lane, size: group(self, Lane.SMALL if lane is Lane.WAITING else lane, size)


def lets_none_go_first(_: Any) -> Any:
    async def broken(self: Any, request: Any, *, asking: bool, with_text: bool) -> Any:
        return await self._run_with_text(request, asking=asking, with_text=with_text)

    return broken


def closes_any_client(close: Any) -> Any:
    async def broken(self: Any) -> None:
        self._is_own = True
        await close(self)

    return broken


def always(answer: bool) -> Callable[[Any], Any]:
    return lambda _: lambda *args: answer


CONNECTION = "transport.connection:Connection"
BROKEN: list[tuple[Callable[..., Awaitable[None]], Python]] = [
    (
        connections.test_replies_cut_at_any_byte_reach_their_own_requests,
        Python(f"{CONNECTION}.data_received", forgets_half_a_reply, "forgets half a reply"),
    ),
    (
        connections.test_pushes_between_replies_are_dropped,
        Python("transport.connection:hiredis.PushNotification", lambda _: tuple, "takes pushes for replies"),
    ),
    (
        connections.test_a_reply_to_no_request_ends_the_connection,
        Python(f"{CONNECTION}._drop_pushes", drops_whatever_comes, "drops whatever comes"),
    ),
    (
        connections.test_a_request_whose_time_is_up_is_not_sent,
        Python(f"{CONNECTION}.ask", sends_at_any_time, "sends at any time"),
    ),
    (
        connections.test_only_requests_that_were_written_may_have_been_applied,
        Python(f"{CONNECTION}._fail", takes_all_for_written, "takes all for written"),
    ),
    (
        connections.test_ten_thousand_cancellations_among_a_hundred_thousand_calls_shift_no_reply,
        Python(f"{CONNECTION}.ask", forgets_what_was_cancelled, "forgets what was cancelled"),
    ),
    (
        connections.test_a_call_whose_time_ends_after_a_lost_connection_says_whether_it_was_sent,
        Python("transport.failures:may_be_applied", always(False), "takes nothing for applied"),
    ),
    (
        connections.test_fifty_commits_in_flight_on_a_connection_that_ends_inside_of_a_reply_land_once,
        Python("transport.backend:is_transient", always(False), "never tries again"),
    ),
    (
        times.test_a_timeout_fails_its_own_call_and_no_other,
        Python(f"{CONNECTION}._expire", fails_every_call, "fails every call"),
    ),
    (
        times.test_wrong_settings_for_a_group_are_an_error_after_one_attempt,
        Python("transport.backend:is_transient", always(True), "always tries again"),
    ),
    (
        times.test_a_server_that_refuses_for_a_while_is_outlasted,
        Python("transport.backend:is_transient", always(False), "never tries again"),
    ),
    (
        lanes.test_small_calls_overtake_a_large_read,
        Python("transport.lanes:Lanes.group", knows_one_lane, "knows one lane"),
    ),
    (
        lanes.test_calls_of_every_kind_overtake_commits_that_wait_for_replicas,
        Python("transport.lanes:Lanes.group", lets_waits_share, "lets waits share the lane of small calls"),
    ),
    (
        lanes.test_of_concurrent_first_commits_one_sends_its_bytes_before_the_script_is_known,
        Python("transport.node:Node.introduce", lets_none_go_first, "lets none go first"),
    ),
    (
        lanes.test_what_waits_for_a_script_until_its_time_ends_was_not_sent,
        Python("transport.node:Node.introduce", lets_none_go_first, "lets none go first"),
    ),
    (
        lanes.test_a_closed_cache_tells_what_was_sent_from_what_was_not,
        Python(f"{CONNECTION}._fail", fails_with(NotSent), "takes what was sent for unsent"),
    ),
    (
        given.test_a_given_client_is_used_by_its_own_methods_and_neither_configured_nor_closed,
        Python("transport.given:GivenNode.close", closes_any_client, "closes any client"),
    ),
]

FAILURES = (AssertionError, StoreError, TimeoutError, exceptions.RedisError, pytest.fail.Exception)


def broken_twin(law: Callable[..., Awaitable[None]], breakage: Python) -> Callable[..., Awaitable[None]]:
    @wraps(law)
    async def twin(**fixtures: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # of what the breakage leaves
        with pytest.MonkeyPatch.context() as patch:
            breakage.apply(patch)
            for module in (scripted, connections, given, lanes, times):
                patch.setattr(module, "PATIENCE", PATIENCE)
            with pytest.raises((*FAILURES, ExceptionGroup)) as caught:
                await law(**fixtures)
        if isinstance(caught.value, ExceptionGroup):
            assert caught.value.split(FAILURES)[1] is None

    return twin


for law, breakage in BROKEN:
    globals()[f"{law.__name__}__broken"] = broken_twin(law, breakage)
del law, breakage
