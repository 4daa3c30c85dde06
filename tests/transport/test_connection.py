"""Every reply on a connection reaches its own request, and a failed request gets an accurate error."""

from __future__ import annotations

import asyncio
import random
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import accumulate
from typing import Any

import pytest
import redis.asyncio as redis

import lash_redis
from lash_redis import BackendError, FullGraph, OutcomeUnknown, RuntimeCommitResult, SessionCache, StoreOptions
from lash_redis.transport.failures import ConnectionLost, NotSent
from lash_redis.transport.request import Request
from tests.support.builders import append, commit, ids_of
from tests.support.proxy import Action, Command, Proxy, on
from tests.support.scripted import (
    OK,
    PATIENCE,
    Scripted,
    backend_of,
    bulk,
    connected,
    echo,
    echoed,
    limit_calls,
    name_of,
    newest_server,
    once_sent,
    sending,
)
from tests.support.servers import RunningServers, Server


@pytest.fixture
def any_server(request: pytest.FixtureRequest, _running: RunningServers) -> Server:
    """One empty server, for tests that do not depend on its kind."""
    return newest_server(request, _running)


async def commit_first(cache: SessionCache, session_id: str) -> Any:
    made = commit(None, append(f"{session_id}.0"), session_id=session_id)
    return await cache.session(session_id).commit_runtime_state(made)


# Replies in pieces

REPLIES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (b":-42\r\n", -42),
    (b"$5\r\n\r\n+a\r\r\n", b"\r\n+a\r"),
    (b"$-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"*0\r\n", []),
    (b"*3\r\n$1\r\na\r\n*2\r\n:1\r\n_\r\n$2\r\nbc\r\n", [b"a", [1, None], b"bc"]),
    (b"%1\r\n$1\r\nk\r\n#t\r\n", {b"k": True}),
    (b"=7\r\ntxt:abc\r\n", b"abc"),
    (b"$3\r\nend\r\n", b"end"),
]
"""A reply of every RESP type, and its decoded value."""

ENDS = list(accumulate(len(wire) for wire, _ in REPLIES))
STREAM = b"".join(wire for wire, _ in REPLIES)
PUSHES = [
    b">1\r\n+note\r\n",
    b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\n$1\r\na\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n",
]


def requests_in_flight(connection: Any, counts: list[int]) -> list[asyncio.Future[list[Any]]]:
    """Requests in flight. Each one expects its count of replies."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    return [connection.ask(b"", count, deadline, PATIENCE) for count in counts]


async def test_replies_cut_at_any_byte_reach_their_own_requests() -> None:
    """A request is answered only after the last byte of its reply has arrived."""
    for cut in range(len(STREAM) + 1):
        connection, _ = connected()
        futures = requests_in_flight(connection, [1] * len(REPLIES))
        connection.data_received(STREAM[:cut])
        assert [future.done() for future in futures] == [end <= cut for end in ENDS]
        connection.data_received(STREAM[cut:])
        assert [future.result() for future in futures] == [[value] for _, value in REPLIES]
        assert connection.is_usable


async def test_the_replies_of_a_pipeline_cut_at_any_two_bytes_stay_together() -> None:
    counts = [2, 1, 4, 3]
    starts = [0, 2, 3, 7]
    values = [value for _, value in REPLIES]
    expected = [values[start : start + count] for start, count in zip(starts, counts, strict=True)]
    for first in range(0, len(STREAM) + 1, 3):
        for second in range(first, len(STREAM) + 1, 5):
            connection, _ = connected()
            futures = requests_in_flight(connection, counts)
            for part in (STREAM[:first], STREAM[first:second], STREAM[second:]):
                connection.data_received(part)
            assert [future.result() for future in futures] == expected


async def test_replies_that_arrive_byte_by_byte_reach_their_own_calls() -> None:
    """The replies to the handshake of the connection arrive byte by byte, too."""
    tokens = [b"%d\r\n$1\r\n" % at for at in range(20)]
    async with Scripted() as server, lash_redis.connect(server.url) as cache, asyncio.timeout(PATIENCE):
        calls = [asyncio.create_task(backend_of(cache).send(echo(token))) for token in tokens]
        link = await server.link()
        for _ in tokens:
            await link.command()
        await link.send_bytewise(b"".join(map(bulk, tokens)))
        assert await asyncio.gather(*calls) == [[token] for token in tokens]
        assert len(server.links) == 1


# Pushes


async def test_pushes_between_replies_are_dropped() -> None:
    """Pushes arrive before, between and after replies and inside of a pipeline, and are cut at any byte."""
    between = [PUSHES[at % 3] + wire for at, (wire, _) in enumerate(REPLIES)]
    stream = b"".join([*between, *PUSHES])
    for cut in range(len(stream) + 1):
        connection, _ = connected()
        futures = requests_in_flight(connection, [1, 3, 1, 5])
        connection.data_received(stream[:cut])
        connection.data_received(stream[cut:])
        assert [value for future in futures for value in future.result()] == [value for _, value in REPLIES]
        assert connection.is_usable


async def test_a_push_without_a_request_in_flight_is_dropped() -> None:
    async with Scripted(echoed) as server, lash_redis.connect(f"{server.url}?protocol=3") as cache:
        assert await backend_of(cache).send(echo(b"one")) == [b"one"]
        link = await server.link()
        for push in PUSHES:
            await link.send_bytewise(push)
            assert await backend_of(cache).send(echo(push)) == [push]
        assert len(server.links) == 1


async def test_pushes_of_a_real_server_do_not_disturb_calls(real_server: Server) -> None:
    """With client tracking, the server pushes every key change on the connection of the calls."""
    async with lash_redis.connect(f"{real_server.url}?protocol=3") as cache:
        await backend_of(cache).send(Request([("CLIENT", "TRACKING", "ON", "BCAST")]))
        await asyncio.gather(*(commit_first(cache, f"s{at}") for at in range(100)))
        heads = await asyncio.gather(*(cache.session(f"s{at}").load_head() for at in range(100)))
        assert [(head.session_id, head.head_revision) for head in heads] == [(f"s{at}", 1) for at in range(100)]


@pytest.mark.parametrize("stray", [b"+stray\r\n", b"-ERR stray\r\n", b">1\r\n+a\r\n$1\r\na\r\n"])
async def test_a_reply_without_a_request_closes_the_connection(stray: bytes) -> None:
    """Otherwise the next call would get the stray reply, and every later reply would be shifted."""
    async with Scripted(echoed) as server, lash_redis.connect(server.url) as cache:
        assert await backend_of(cache).send(echo(b"one")) == [b"one"]
        link = await server.link()
        link.send(stray)
        await link.wait_closed()
        assert await backend_of(cache).send(echo(b"two")) == [b"two"]
        assert len(server.links) == 2


# Missing and invalid replies

INCOMPLETE_RESP = [b"$536870912\r\n"]
INVALID_RESP = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01\x00\xff\r\n", b":abc\r\n", b"$-5\r\n", b"*-5\r\n", b"%-2\r\n",
    b"$99999999999999999999\r\n", b"*4294967296\r\n", b"#x\r\n", b",abc\r\n", b"(12a\r\n", b"%1\r\n*0\r\n+x\r\n",
]  # fmt: skip
READ_AND_COMMIT = pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda cache: cache.session("chat").load_head(), BackendError),
        (lambda cache: commit_first(cache, "chat"), OutcomeUnknown),
    ],
    ids=["read", "commit"],
)


def after_the_layout(data: bytes) -> Callable[[Command], bytes | None]:
    """Answer the commands that check the layout, and answer every other command with `data`."""
    replies = {"SET": OK, "GET": b"$-1\r\n"}
    return lambda command: replies.get(name_of(command), data)


def peak_bytes() -> int:
    """The peak memory use of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@READ_AND_COMMIT
@pytest.mark.parametrize("data", INCOMPLETE_RESP)
async def test_a_huge_reply_that_never_arrives_times_out_without_using_memory(
    data: bytes, call: Callable[[SessionCache], Awaitable[Any]], kind: type[Exception]
) -> None:
    before = peak_bytes()
    options = StoreOptions(call_timeout=1.0)
    async with (
        asyncio.timeout(PATIENCE),
        Scripted(after_the_layout(data)) as server,
        lash_redis.connect(server.url, options=options) as cache,
    ):
        with pytest.raises(kind, match=rf"no reply from {server.address}") as caught:
            await call(cache)
    assert type(caught.value) is kind
    assert peak_bytes() - before < 100_000_000


@pytest.mark.slow
@READ_AND_COMMIT
@pytest.mark.parametrize("data", INVALID_RESP)
async def test_invalid_resp_is_an_error_with_the_address_of_the_server(
    data: bytes, call: Callable[[SessionCache], Awaitable[Any]], kind: type[Exception]
) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    options = StoreOptions(call_timeout=1.0)
    async with (
        asyncio.timeout(PATIENCE),
        Scripted(after_the_layout(data)) as server,
        lash_redis.connect(server.url, options=options) as cache,
    ):
        with pytest.raises(kind, match=f"{server.address} sent bytes that are not valid RESP") as caught:
            await call(cache)
    assert type(caught.value) is kind
    assert unhandled == []


async def test_a_request_past_its_deadline_is_not_sent() -> None:
    """If it were sent, it could be applied after its caller received an error."""
    connection, wire = connected()
    late = connection.ask(b"late", 1, asyncio.get_running_loop().time(), PATIENCE)
    assert late.done()
    assert isinstance(late.exception(), NotSent)
    assert wire.written == []
    assert connection.is_usable


# Lost connections


async def test_only_written_requests_are_reported_as_possibly_applied() -> None:
    """Requests that wait for the end of the event loop's iteration have not left the process."""
    connection, wire = connected()
    written, *waiting = requests_in_flight(connection, [1, 1, 1])
    connection.connection_lost(None)
    assert isinstance(written.exception(), ConnectionLost)
    assert [type(future.exception()) for future in waiting] == [NotSent, NotSent]
    await asyncio.sleep(0)
    assert len(wire.written) == 1


async def with_revisions(cache: SessionCache, count: int) -> list[Any]:
    """Create `count` sessions with 1 to 5 revisions, and return the next commit of each one."""
    names = [f"s{at}" for at in range(count)]

    def turn(at: int, revision: int) -> Any:
        parent = f"{names[at]}.{revision - 1}" if revision else None
        graph = append(f"{names[at]}.{revision}", parent=parent)
        return commit(revision or None, graph, session_id=names[at])

    for at, name in enumerate(names):
        for revision in range(at % 5 + 1):
            await cache.session(name).commit_runtime_state(turn(at, revision))
    return [turn(at, at % 5 + 1) for at in range(count)]


async def expect_stored_once(server: Server, commits: list[Any]) -> None:
    """Check that each session has one revision and one node per turn."""
    async with lash_redis.connect(server.url) as cache:
        for at, each in enumerate(commits):
            read = await cache.session(each.session_id).load_session(FullGraph())
            assert ids_of(read) == [f"s{at}.{number}" for number in range(at % 5 + 2)]
            assert read is not None
            assert read.head_revision == at % 5 + 2


@pytest.mark.parametrize("nth", [1, 25, 50])
async def test_commits_in_flight_are_applied_once_if_the_connection_ends_inside_a_reply(
    nth: int, real_server: Server, proxy: Proxy
) -> None:
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        commits = await with_revisions(cache, 50)
        proxy.on_command, are_sent = once_sent(50, on(Action.HALF_REPLY, "EVALSHA", nth))
        calls = sending(cache, commits)
        await proxy.holding()
        await are_sent.wait()
        assert len(proxy.connections) == 1
        proxy.release()
        results = await asyncio.gather(*calls)
    assert [result.head_revision for result in results] == [at % 5 + 2 for at in range(50)]
    # Commits need not be sent in the order of their calls, so the results do not show which replies were lost.
    assert sum(result.replayed for result in results) == 51 - nth
    await expect_stored_once(real_server, commits)


@pytest.mark.slow
async def test_a_timeout_after_a_lost_connection_reports_whether_the_call_was_sent(
    real_server: Server, proxy: Proxy
) -> None:
    """A sent call raises OutcomeUnknown. A call that had no connection raises BackendError."""
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        commits = await with_revisions(cache, 50)
        limit_calls(cache, 3.0)
        proxy.on_command, are_sent = once_sent(50, on(Action.HALF_REPLY, "EVALSHA", 25))
        calls = sending(cache, commits)
        await proxy.holding()
        await are_sent.wait()
        await proxy.refuse()
        (unsent,) = sending(cache, [commit(None, append("n", text="x" * 100_000), session_id="unsent")])
        proxy.release()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        # Commits need not be sent in the order of their calls, so any 24 may have got their replies.
        assert Counter(map(type, ended)) == {RuntimeCommitResult: 24, OutcomeUnknown: 26}
        assert all(getattr(each, "head_revision", at % 5 + 2) == at % 5 + 2 for at, each in enumerate(ended))
        assert type((await asyncio.gather(unsent, return_exceptions=True))[0]) is BackendError
        await proxy.accept()
        limit_calls(cache, None)
        results = await asyncio.gather(*sending(cache, commits))
        assert await cache.session("unsent").load_head() is None
    assert [result.head_revision for result in results] == [at % 5 + 2 for at in range(50)]
    await expect_stored_once(real_server, commits)


# Cancelled calls


@pytest.mark.slow
async def test_10000_cancelled_calls_among_100000_calls_shift_no_reply(any_server: Server) -> None:
    dice = random.Random(5)
    seen: Counter[str] = Counter()
    url = f"{any_server.url}?client_name=busy"
    async with lash_redis.connect(url) as cache, redis.Redis.from_url(any_server.url) as admin, asyncio.timeout(250):
        backend = backend_of(cache)

        async def cancel(call: Awaitable[Any]) -> Any:
            task = asyncio.ensure_future(call)
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            seen["cancelled"] += isinstance(result, asyncio.CancelledError)
            return result

        async def work(name: str) -> None:
            for at in range(2_000):
                token = f"{name}.{at}".encode()
                if at % 9 == 0:
                    result = await cancel(backend.send(echo(token)))
                    assert result == [token] or isinstance(result, asyncio.CancelledError)
                else:
                    assert await backend.send(echo(token)) == [token]
                if at % 100 == 0:
                    await turn(name, at // 100)

        async def turn(name: str, at: int) -> None:
            made = commit(
                at or None, append(f"{name}.{at}", parent=f"{name}.{at - 1}" if at else None), session_id=name
            )
            await cancel(cache.session(name).commit_runtime_state(made))
            assert (await cache.session(name).commit_runtime_state(made)).head_revision == at + 1

        await commit_first(cache, "first")
        connections = await named(admin, "busy")
        async with asyncio.TaskGroup() as working:
            for at in range(50):
                working.create_task(work(f"w{at}"))
        assert seen["cancelled"] >= 10_000
        assert await backend.send(echo(b"after")) == [b"after"]
        assert await named(admin, "busy") == connections


async def named(admin: redis.Redis, name: str) -> set[Any]:
    """The ids of the connections with this client name."""
    return {client["id"] for client in await admin.client_list() if client["name"] == name}
