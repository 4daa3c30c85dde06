"""Concurrent calls overtake slow calls, send each script once, and end when their cache is closed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import lash_redis
from lash_redis import (
    BackendError,
    FullGraph,
    HydratedSessionCheckpoint,
    OutcomeUnknown,
    Replicas,
    RuntimeCommitResult,
    StoreOptions,
)
from lash_redis.transport.backend import Backend
from tests.support.builders import append, commit, ids_of, numbered
from tests.support.proxy import Action, Command, Proxy, on
from tests.support.scripted import PATIENCE, Scripted, bulk, name_of, once_sent, sending
from tests.support.servers import Server

DURABLE = Replicas(1, 5_000)


def firsts(count: int, **more: Any) -> list[Any]:
    """The first commit of each of `count` sessions."""
    return [commit(None, append(f"s{at}.0", **more), session_id=f"s{at}") for at in range(count)]


async def expect_stored_once(server: Server, commits: list[Any]) -> None:
    async with lash_redis.connect(server.url) as cache:
        for each in commits:
            read = await cache.session(each.session_id).load_session(FullGraph())
            assert ids_of(read) == [node.node_id for node in each.graph.nodes]
            assert read is not None
            assert read.head_revision == 1


async def until(claim: Callable[[], Any]) -> None:
    """Wait until a claim about the server is true."""
    async with asyncio.timeout(PATIENCE):
        while not await claim():  # noqa: ASYNC110 - the server's event
            await asyncio.sleep(0.001)


# Slow calls


@pytest.mark.parametrize("limit", [2, 3, 100])
async def test_small_calls_overtake_a_large_read(limit: int, real_server: Server, proxy: Proxy) -> None:
    url = f"{proxy.url}?max_connections={limit}"
    async with asyncio.timeout(PATIENCE), lash_redis.connect(url) as cache:
        store = cache.session("chat")
        ids = numbered(500)
        await store.commit_runtime_state(commit(None, append(*ids, text="x" * 4_000)))
        proxy.on_command = on(Action.HOLD_REPLY, "LRANGE")
        reading = asyncio.create_task(cache.session("chat").load_session(FullGraph()))
        await proxy.holding()
        lease = await store.acquire_lease("worker")
        await lease.renew()
        for revision in range(1, 11):
            made = commit(revision, append(f"m{revision}", parent=f"m{revision - 1}" if revision > 1 else ids[-1]))
            assert (await store.commit_runtime_state(made)).head_revision == revision + 1
        await lease.release()
        assert not reading.done()
        proxy.release()
        read = await reading
        assert read is not None
        assert (read.head_revision, len(read.graph.nodes)) == (1, 500)


async def blocked(admin: Any) -> list[Any]:
    """The ids of the connections that the server blocks."""
    return [client["id"] for client in await admin.client_list() if "b" in client["flags"]]


async def unblock(admin: Any) -> None:
    for client in await blocked(admin):
        await admin.execute_command("CLIENT", "UNBLOCK", client)


async def test_calls_of_every_kind_overtake_commits_that_wait_for_replicas(real_server: Server) -> None:
    """The server has no replica, so the commits wait until the test unblocks them."""
    admin = real_server.client()

    async def are_all_blocked() -> bool:
        return len(await blocked(admin)) == 20

    async with asyncio.timeout(PATIENCE), lash_redis.connect(real_server.url) as cache:
        store = cache.session("other")
        await store.commit_runtime_state(commit(None, append("a"), session_id="other"))
        waiting = sending(cache, firsts(20), durability=DURABLE)
        await until(are_all_blocked)
        await store.commit_runtime_state(commit(1, append("b", parent="a"), session_id="other"))
        large = commit(2, append("c", parent="b", text="x" * 200_000), session_id="other")
        await store.commit_runtime_state(large)
        assert ids_of(await store.load_session(FullGraph())) == ["a", "b", "c"]
        await (await store.acquire_lease("worker")).release()
        assert not any(each.done() for each in waiting)
        await unblock(admin)
        results = await asyncio.gather(*waiting)
        assert [(result.head_revision, result.durable) for result in results] == [(1, False)] * 20


@pytest.mark.slow
async def test_a_first_commit_that_waits_for_replicas_does_not_delay_other_commits(real_server: Server) -> None:
    """The server has no scripts yet, and the first call of a script is sent alone."""
    admin = real_server.client()
    await admin.script_flush()

    async def is_blocked() -> bool:
        return len(await blocked(admin)) == 1

    async with asyncio.timeout(PATIENCE), lash_redis.connect(real_server.url) as cache:
        (waiting,) = sending(cache, firsts(1), durability=DURABLE)
        await until(is_blocked)
        await cache.session("other").commit_runtime_state(commit(None, append("a"), session_id="other"))
        assert not waiting.done()
        await unblock(admin)
        assert (await waiting).durable is False


# Scripts

BIG = 30_000
"""Bytes of each of 64 commits."""


async def test_only_one_of_concurrent_first_commits_is_sent_before_the_script_is_loaded(
    real_server: Server, proxy: Proxy
) -> None:
    await real_server.client().script_flush()
    commits = firsts(64, text="x" * BIG)
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        with proxy.measure() as seen:
            results = await asyncio.gather(*sending(cache, commits))
    scripts = [name for name in seen.names() if name.startswith("EVAL")]
    assert scripts == ["EVALSHA", "EVAL", *["EVALSHA"] * 63]
    assert seen.bytes_sent < 1.5 * 64 * BIG
    assert [(result.head_revision, result.replayed) for result in results] == [(1, False)] * 64
    await expect_stored_once(real_server, commits)


async def test_another_commit_loads_the_script_if_the_first_commit_is_cancelled(
    real_server: Server, proxy: Proxy
) -> None:
    await real_server.client().script_flush()
    commits = firsts(64, text="x" * BIG)
    proxy.on_command = on(Action.HOLD_REPLY, "EVALSHA")
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        with proxy.measure() as seen:
            first, *others = sending(cache, commits)
            await proxy.holding()
            first.cancel()
            await asyncio.wait([first])
            proxy.release()
            results = await asyncio.gather(*others)
    assert seen.bytes_sent < 1.5 * 64 * BIG
    assert [(result.head_revision, result.replayed) for result in results] == [(1, False)] * 63
    await expect_stored_once(real_server, commits[1:])


async def test_a_call_that_times_out_while_it_waits_for_a_script_is_not_sent(
    real_server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls have one deadline. A call with a later one would be tried again after the first one failed."""
    await real_server.client().script_flush()
    proxy.on_command = on(Action.HOLD_REPLY, "EVALSHA")
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        await cache.session("warm").load_head()
        deadline = asyncio.get_running_loop().time() + 0.9
        monkeypatch.setattr(Backend, "_deadline", lambda backend, topology: deadline)
        with proxy.measure() as seen:
            ended = await asyncio.gather(*sending(cache, firsts(10)), return_exceptions=True)
        assert Counter(map(type, ended)) == {OutcomeUnknown: 1, BackendError: 9}
        assert seen.names().count("EVALSHA") + seen.names().count("EVAL") == 1


def sentinel_naming(*primaries: str) -> Scripted:
    """A sentinel that names each of the addresses once, and then the last one for ever."""
    left = list(primaries)

    def answer(command: Command) -> bytes | None:
        if name_of(command) != "SENTINEL":
            return None
        if command[1] == b"SLAVES":
            return b"*0\r\n"
        host, port = (left.pop(0) if len(left) > 1 else left[0]).split(":")
        state = {"name": "lash", "ip": host, "port": port, "flags": "master", "num-other-sentinels": "0"}
        words = [bulk(word.encode()) for pair in state.items() for word in pair]
        return b"*1\r\n*%d\r\n%b" % (len(words), b"".join(words))

    return Scripted(answer)


async def sent_to_a_frozen_server(server: Server, proxy: Proxy, **more: Any) -> int:
    """Make 20 commits at once. The server behind the proxy answers none of them, then the sentinel names `server`.

    Return the number of commits that the proxy received, after a check that each was stored once.
    """
    commits = firsts(20)
    proxy.on_command = lambda command: Action.HOLD_REPLY if name_of(command) == "EVALSHA" else Action.PASS
    addresses = [url.removeprefix("redis://") for url in (proxy.url, server.tcp_url)]
    async with sentinel_naming(*addresses) as sentinel:
        url = f"redis+sentinel://{sentinel.address}/lash?socket_timeout=0.5&max_connections=3"
        async with asyncio.timeout(PATIENCE), lash_redis.connect(url) as cache:
            with proxy.measure() as seen:
                results = await asyncio.gather(*sending(cache, commits, **more))
    assert [result.head_revision for result in results] == [1] * 20
    await expect_stored_once(server, commits)
    return seen.names().count("EVALSHA")


async def test_calls_that_wait_for_a_script_are_not_sent_to_a_frozen_server_one_by_one(
    real_server: Server, proxy: Proxy
) -> None:
    assert await sent_to_a_frozen_server(real_server, proxy) == 1


async def test_calls_that_wait_for_their_turn_are_not_sent_to_a_frozen_server_one_by_one(
    real_server: Server, proxy: Proxy
) -> None:
    """With three connections, one of them is for commits that wait for replicas."""
    assert await sent_to_a_frozen_server(real_server, proxy, durability=Replicas(1, 50)) == 1


async def test_commits_in_flight_during_a_script_flush_are_applied_once(real_server: Server) -> None:
    admin = real_server.client()
    commits = firsts(200, text="x" * 1_000)
    async with asyncio.timeout(PATIENCE), lash_redis.connect(real_server.url) as cache:
        await cache.session("warm").commit_runtime_state(commit(None, append("a"), session_id="warm"))
        results: list[Any] = []
        for start in range(0, 200, 40):
            calls = sending(cache, commits[start : start + 40])
            await admin.script_flush()
            results += await asyncio.gather(*calls)
    assert [(result.head_revision, result.replayed) for result in results] == [(1, False)] * 200
    await expect_stored_once(real_server, commits)


@pytest.mark.parametrize("before", ["first call", "later call"])
async def test_without_eval_the_error_of_a_missing_script_names_the_preload_command(
    before: str, real_server: Server, proxy: Proxy
) -> None:
    admin = real_server.client()
    options = StoreOptions(allow_eval=False)
    (made,) = firsts(1)
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url, options=options) as cache:
        store = cache.session("s0")
        if before == "later call":
            await cache.preload()
            await store.acquire_lease("worker")
        await admin.script_flush()
        with proxy.measure() as seen:
            ended = await asyncio.gather(*sending(cache, [made] * 5), return_exceptions=True)
        assert [type(each) for each in ended] == [BackendError] * 5
        assert all("run SessionCache.preload() or lash-redis preload" in str(each) for each in ended)
        assert "EVAL" not in seen.names()
        assert await store.load_head() is None
        await cache.preload()
        assert (await store.commit_runtime_state(made)).replayed is False


# Close


async def expect_settled(server: Server, commits: list[Any], ended: list[Any]) -> None:
    """Check that results are stored and failures are not, and that a repeated commit is applied once."""
    assert {type(each) for each in ended} <= {RuntimeCommitResult, OutcomeUnknown, BackendError}
    async with lash_redis.connect(server.url) as cache:
        for made, each in zip(commits, ended, strict=True):
            head = await cache.session(made.session_id).load_head()
            if type(each) is not OutcomeUnknown:
                assert (head is not None) == isinstance(each, RuntimeCommitResult)
        results = await asyncio.gather(*sending(cache, commits))
        assert [result.head_revision for result in results] == [1] * len(commits)
    await expect_stored_once(server, commits)


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_commits_in_flight_end_when_their_cache_is_closed(turns: int, real_server: Server) -> None:
    admin = real_server.client()
    body = HydratedSessionCheckpoint(execution_state=b"x" * 100_000)
    commits = [
        commit(None, append(f"s{at}.0"), session_id=f"s{at}", **({} if at % 5 else {"checkpoint": body}))
        for at in range(60)
    ]

    async def are_gone() -> bool:
        return "closing" not in {client["name"] for client in await admin.client_list()}

    cache = lash_redis.connect(f"{real_server.url}?client_name=closing")
    await cache.session("chat").load_head()
    async with asyncio.timeout(PATIENCE):
        calls = sending(cache, commits[:40]) + sending(cache, commits[40:], durability=DURABLE)
        for _ in range(turns):
            await asyncio.sleep(0)
        await cache.aclose()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        await until(are_gone)
    await expect_settled(real_server, commits, ended)


async def test_closing_a_cache_distinguishes_sent_calls_from_unsent_calls(real_server: Server, proxy: Proxy) -> None:
    commits = firsts(30)
    cache = lash_redis.connect(proxy.url)
    await cache.session("warm").commit_runtime_state(commit(None, append("a"), session_id="warm"))
    proxy.on_command, are_sent = once_sent(30, on(Action.HOLD_REPLY, "EVALSHA", 11))
    async with asyncio.timeout(PATIENCE):
        calls = sending(cache, commits)
        await are_sent.wait()
        await proxy.holding()
        await asyncio.wait(calls[:10])
        await cache.aclose()
        late = await asyncio.gather(*sending(cache, firsts(1)), return_exceptions=True)
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in ended] == [RuntimeCommitResult] * 10 + [OutcomeUnknown] * 20
    assert [type(each) for each in late] == [BackendError]
    await expect_settled(real_server, commits, ended)
