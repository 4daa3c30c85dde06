"""Each test in `BROKEN` must fail on a transport that is broken on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import hiredis
import pytest
from redis import exceptions

from lash_redis import StoreError
from lash_redis.transport.failures import NoReply, NotSent
from lash_redis.transport.given import Connections, shared_limit
from lash_redis.transport.request import Lane
from tests.support import scripted
from tests.support.breaking import Python
from tests.support.servers import RunningServers, Server
from tests.transport import test_connection as connections
from tests.transport import test_embedded_directory as directories
from tests.transport import test_given as given
from tests.transport import test_given_watches as given_watches
from tests.transport import test_lanes as lanes
from tests.transport import test_time as times

pytestmark = [pytest.mark.slow, pytest.mark.leaks]

PATIENCE = 2.0
"""Seconds after which a test that waits for a broken transport fails."""


@pytest.fixture
def any_server(request: pytest.FixtureRequest, _running: RunningServers) -> Server:
    return scripted.newest_server(request, _running)


@pytest.fixture
async def real_server(any_server: Server) -> AsyncIterator[Server]:
    """One server is enough, because the breakage is in the client."""
    yield any_server
    await any_server.close_clients()


admin = times.admin
directory = directories.directory


# Ways to break it


def loses_half_a_reply(data_received: Any) -> Any:
    def broken(self: Any, data: bytes) -> None:
        self._reader = hiredis.Reader()
        data_received(self, data)

    return broken


def drops_every_reply(_: Any) -> Any:
    def broken(self: Any) -> None:
        while self._reader.gets() is not False:
            pass

    return broken


def removes_cancelled_requests(ask: Any) -> Any:
    def broken(self: Any, *args: Any) -> Any:
        future = ask(self, *args)

        def forget(ended: Any) -> None:
            for each in [each for each in self._pending if each[0] is ended and ended.cancelled()]:
                self._pending.remove(each)

        future.add_done_callback(forget)
        return future

    return broken


def sends_after_the_deadline(ask: Any) -> Any:
    def broken(self: Any, wire: bytes, count: int, deadline: float, timeout: float) -> Any:
        return ask(self, wire, count, max(deadline, self._loop.time() + 1), timeout)

    return broken


def fails_with(kind: type[Exception]) -> Callable[[Any], Any]:
    def make(fail: Any) -> Any:
        def broken(self: Any, error: Exception) -> None:
            fail(self, kind(str(error)))

        return broken

    return make


def treats_all_as_written(fail: Any) -> Any:
    def broken(self: Any, error: Exception) -> None:
        self._unwritten.clear()
        fail(self, error)

    return broken


def fails_every_call(_: Any) -> Any:
    def broken(self: Any) -> None:
        self._fail(NoReply("no reply"))

    return broken


def uses_one_lane(_: Any) -> Any:
    return lambda self, lane, size: self._small


def puts_waits_into_the_small_lane(group: Any) -> Any:
    return lambda self, lane, size: group(self, Lane.SMALL if lane is Lane.WAITING else lane, size)


def introduces_no_script(_: Any) -> Any:
    async def broken(self: Any, request: Any, *, asking: bool, with_text: bool) -> Any:
        return await self._run_with_text(request, asking=asking, with_text=with_text)

    return broken


def only_waits(_: Any) -> Any:
    return lambda self, group, deadline: group.wait_for_turn(deadline)


def counts_no_watch(_: Any) -> Any:
    return lambda self: nullcontext()


def counts_for_each_cache(_: Any) -> Any:
    return lambda client: Connections(shared_limit(client))


def closes_given_clients(close: Any) -> Any:
    async def broken(self: Any) -> None:
        self._is_own = True
        await close(self)

    return broken


def locks_nothing(_: Any) -> Any:
    return lambda *args: None


def always(answer: bool) -> Callable[[Any], Any]:
    return lambda _: lambda *args: answer


CONNECTION = "transport.connection:Connection"
BROKEN: list[tuple[Callable[..., Awaitable[None]], Python]] = [
    (
        connections.test_replies_cut_at_any_byte_reach_their_own_requests,
        Python(f"{CONNECTION}.data_received", loses_half_a_reply, "loses half a reply"),
    ),
    (
        connections.test_pushes_between_replies_are_dropped,
        Python("transport.connection:hiredis.PushNotification", lambda _: tuple, "treats pushes as replies"),
    ),
    (
        connections.test_a_reply_without_a_request_closes_the_connection,
        Python(f"{CONNECTION}._drop_pushes", drops_every_reply, "drops every reply"),
    ),
    (
        connections.test_a_request_past_its_deadline_is_not_sent,
        Python(f"{CONNECTION}.ask", sends_after_the_deadline, "sends after the deadline"),
    ),
    (
        connections.test_only_written_requests_are_reported_as_possibly_applied,
        Python(f"{CONNECTION}._fail", treats_all_as_written, "treats all as written"),
    ),
    (
        connections.test_10000_cancelled_calls_among_100000_calls_shift_no_reply,
        Python(f"{CONNECTION}.ask", removes_cancelled_requests, "removes cancelled requests"),
    ),
    (
        connections.test_a_timeout_after_a_lost_connection_reports_whether_the_call_was_sent,
        Python("transport.failures:may_be_applied", always(False), "treats nothing as applied"),
    ),
    (
        connections.test_commits_in_flight_are_applied_once_if_the_connection_ends_inside_a_reply,
        Python("transport.backend:is_transient", always(False), "never retries"),
    ),
    (
        times.test_a_timeout_fails_its_own_call_only,
        Python(f"{CONNECTION}._expire", fails_every_call, "fails every call"),
    ),
    (
        times.test_wrong_settings_for_a_group_are_an_error_after_one_attempt,
        Python("transport.backend:is_transient", always(True), "always retries"),
    ),
    (
        times.test_a_call_is_retried_until_the_server_accepts_connections,
        Python("transport.backend:is_transient", always(False), "never retries"),
    ),
    (
        lanes.test_small_calls_overtake_a_large_read,
        Python("transport.lanes:Lanes.group", uses_one_lane, "uses one lane"),
    ),
    (
        lanes.test_calls_of_every_kind_overtake_commits_that_wait_for_replicas,
        Python(
            "transport.lanes:Lanes.group", puts_waits_into_the_small_lane, "puts waits into the lane of small calls"
        ),
    ),
    (
        lanes.test_only_one_of_concurrent_first_commits_is_sent_before_the_script_is_loaded,
        Python("transport.node:Node.introduce", introduces_no_script, "lets none go first"),
    ),
    (
        lanes.test_a_call_that_times_out_while_it_waits_for_a_script_is_not_sent,
        Python("transport.node:Node.introduce", introduces_no_script, "lets none go first"),
    ),
    (
        lanes.test_calls_that_wait_for_a_script_are_not_sent_to_a_frozen_server_one_by_one,
        Python("transport.node:is_no_answer", always(False), "sends the calls that wait to the same server"),
    ),
    (
        lanes.test_calls_that_wait_for_their_turn_are_not_sent_to_a_frozen_server_one_by_one,
        Python("transport.node:OwnNode._wait_for_turn", only_waits, "sends the calls that wait to the same server"),
    ),
    (
        lanes.test_closing_a_cache_distinguishes_sent_calls_from_unsent_calls,
        Python(f"{CONNECTION}._fail", fails_with(NotSent), "reports sent calls as unsent"),
    ),
    (
        given.test_a_given_client_sends_every_command_and_is_neither_configured_nor_closed,
        Python("transport.given:GivenNode.close", closes_given_clients, "closes given clients"),
    ),
    (
        given_watches.test_a_watch_that_would_leave_no_connection_for_calls_is_refused_by_name,
        Python("transport.given:Connections.for_watch", counts_no_watch, "counts no watch"),
    ),
    (
        given_watches.test_caches_on_one_client_share_its_connections,
        Python("transport.given:connections_of", counts_for_each_cache, "counts for each cache"),
    ),
    (
        directories.test_a_second_cache_connects_to_the_server_of_the_first_one,
        Python("embedded:fcntl.flock", locks_nothing, "locks no directory"),
    ),
    (
        directories.test_the_next_call_starts_a_killed_server_again,
        Python("transport.topology:may_be_stale", always(False), "never discovers the server again"),
    ),
]

FAILURES = (AssertionError, StoreError, TimeoutError, exceptions.RedisError, pytest.fail.Exception)


def broken_twin(intact: Callable[..., Awaitable[None]], breakage: Python) -> Callable[..., Awaitable[None]]:
    @wraps(intact)
    async def twin(**fixtures: Any) -> None:
        # The breakage may leave unhandled errors in the loop.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with pytest.MonkeyPatch.context() as patch:
            breakage.apply(patch)
            for module in (scripted, connections, directories, given, given_watches, lanes, times):
                patch.setattr(module, "PATIENCE", PATIENCE)
            with pytest.raises((*FAILURES, ExceptionGroup)) as caught:
                await intact(**fixtures)
        if isinstance(caught.value, ExceptionGroup):
            assert caught.value.split(FAILURES)[1] is None

    return twin


for intact, breakage in BROKEN:
    globals()[f"{intact.__name__}__broken"] = broken_twin(intact, breakage)
del intact, breakage
