"""A call ends within its time limit with an error that names the cause, or survives a temporary failure."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as redis

import lash_redis
from lash_redis import BackendError, FullGraph, OutcomeUnknown, SessionCache, StoreOptions
from lash_redis.transport.dialer import Dialer
from lash_redis.transport.failures import Unreachable
from tests.support.builders import append, commit, ids_of
from tests.support.proxy import Action, Proxy, on
from tests.support.scripted import PATIENCE, Scripted, backend_of, bulk, echo, limit_calls, once_sent
from tests.support.servers import Server

Call = Callable[[SessionCache], Awaitable[Any]]
Endpoint = Callable[[], AbstractAsyncContextManager[str]]


async def commit_first(cache: SessionCache, session_id: str = "chat") -> Any:
    made = commit(None, append(f"{session_id}.0"), session_id=session_id)
    return await cache.session(session_id).commit_runtime_state(made)


READ_AND_COMMIT = pytest.mark.parametrize(
    "call", [lambda cache: cache.session("chat").load_head(), commit_first], ids=["read", "commit"]
)


# Endpoints that never serve


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """An endpoint that accepts connections and never replies."""
    async with Scripted(greet=lambda command: None) as server:
        yield server.address


@asynccontextmanager
async def full() -> AsyncIterator[str]:
    """An endpoint with a full queue of connections, which does not answer a further connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as opened:
        for _ in range(300):
            waiting = opened.enter_context(socket.socket())
            waiting.settimeout(0.1)
            if waiting.connect_ex(listener.getsockname()) != 0:
                break
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    """A port without a listener."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@asynccontextmanager
async def unnamed() -> AsyncIterator[str]:
    """A host that no name server resolves."""
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        patch.setattr(socket, "getaddrinfo", fail)
        yield "redis.invalid:6379"


@asynccontextmanager
async def closing() -> AsyncIterator[str]:
    """An endpoint that closes each connection immediately."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


CAUSES: dict[Endpoint, str] = {
    silent: "did not answer within 0.2 seconds; is it a Redis server?",
    full: "no answer within 0.2 seconds; check the address and the firewall",
    refusing: "Connection refused; is the server running?",
    unnamed: "Name or service not known",
    closing: "closed the connection before it was ready; if it is a TLS port, use rediss://",
}


@pytest.mark.slow
@READ_AND_COMMIT
@pytest.mark.parametrize(("endpoint", "cause"), CAUSES.items())
async def test_the_error_of_an_unusable_endpoint_names_its_address_and_the_likely_cause(
    endpoint: Endpoint, cause: str, call: Call
) -> None:
    options = StoreOptions(call_timeout=2)
    connect_timeout = 0.2 if "0.2 seconds" in cause else 30
    async with asyncio.timeout(PATIENCE), endpoint() as address:
        url = f"redis://{address}?socket_connect_timeout={connect_timeout}"
        async with lash_redis.connect(url, options=options) as cache:
            with pytest.raises(BackendError) as caught:
                await call(cache)
    assert address in caught.value.message
    assert cause in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "redis+sentinel"])
@pytest.mark.parametrize("endpoint", CAUSES)
async def test_the_error_of_a_call_that_ends_before_its_first_attempt_names_the_address(
    endpoint: Endpoint, scheme: str
) -> None:
    """A connection attempt has its own limit of 3 seconds, and the discovery of a group has 2 seconds."""
    options = StoreOptions(call_timeout=0.5)
    async with asyncio.timeout(PATIENCE), endpoint() as address:
        service = "/lash" if scheme == "redis+sentinel" else ""
        async with lash_redis.connect(f"{scheme}://{address}{service}", options=options) as cache:
            with pytest.raises(BackendError) as caught:
                await commit_first(cache)
    assert address in caught.value.message


async def test_the_error_of_a_missing_unix_socket_names_its_path() -> None:
    options = StoreOptions(call_timeout=0.5)
    async with lash_redis.connect("unix:///nowhere/redis.sock", options=options) as cache:
        with pytest.raises(BackendError, match=r"unix socket /nowhere/redis\.sock.*; is the server running\?"):
            await commit_first(cache)


@pytest.mark.slow
@READ_AND_COMMIT
async def test_the_error_of_tls_to_a_plain_port_names_the_plain_scheme(
    real_server: Server, proxy: Proxy, call: Call
) -> None:
    url = proxy.url.replace("redis://", "rediss://")
    options = StoreOptions(call_timeout=3)
    async with asyncio.timeout(PATIENCE):
        async with lash_redis.connect(f"{url}?socket_connect_timeout=1", options=options) as cache:
            with pytest.raises(BackendError, match="use redis://") as caught:
                await call(cache)
    assert proxy.url.removeprefix("redis://") in caught.value.message


# Permanent errors


@pytest.fixture
async def admin(real_server: Server) -> AsyncIterator[redis.Redis]:
    """A client that stays connected. The server has a user `named` with a password, and no other password."""
    async with real_server.client(single_connection_client=True) as client:
        await client.execute_command("ACL", "SETUSER", "named", "on", ">right", "~*", "+@all")
        yield client
        await client.config_set("requirepass", "")
        await client.execute_command("ACL", "DELUSER", "named")


@READ_AND_COMMIT
@pytest.mark.parametrize(
    ("credentials", "path", "required", "cause"),
    [
        ("named:wrong@", "", "", "refused the credentials"),
        ("nobody:right@", "", "", "refused the credentials"),
        ("", "", "right", "requires a password"),
        (":wrong@", "", "right", "refused the credentials"),
        ("", "/99", "", "has no database 99"),
    ],
)
async def test_wrong_settings_are_an_error_after_one_attempt(
    credentials: str, path: str, required: str, cause: str, call: Call, admin: redis.Redis, proxy: Proxy
) -> None:
    """Retries would delay the error, and a server could lock the account."""
    await admin.config_set("requirepass", required)
    url = proxy.url.replace("://", f"://{credentials}") + path
    async with asyncio.timeout(PATIENCE), lash_redis.connect(url) as cache:
        with pytest.raises(BackendError, match=cause) as caught:
            await call(cache)
    assert proxy.url.removeprefix("redis://") in caught.value.message
    assert len(proxy.connections) == 1


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("redis+cluster://{}", "is not a node of a cluster; use redis://"),
        ("redis+cluster://named:wrong@{}", "refused the credentials"),
        ("redis+sentinel://{}/lash", "is not a sentinel; use redis://"),
        ("redis+sentinel://{}/lash?sentinel_username=named&sentinel_password=wrong", "refused the credentials"),
    ],
)
async def test_wrong_settings_for_a_group_are_an_error_after_one_attempt(
    url: str, cause: str, admin: redis.Redis, proxy: Proxy
) -> None:
    address = proxy.url.removeprefix("redis://")
    async with asyncio.timeout(PATIENCE), lash_redis.connect(url.format(address)) as cache:
        with pytest.raises(BackendError, match=f"{address} {cause}"):
            await commit_first(cache)
    assert len(proxy.connections) == 1


# Temporary failures


async def test_a_call_is_retried_until_the_server_accepts_connections(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, open_ = asyncio.Event(), Dialer.open

    async def watched(*args: Any, **more: Any) -> Any:
        try:
            return await open_(*args, **more)
        except Unreachable:
            failed.set()
            raise

    monkeypatch.setattr(Dialer, "open", watched)
    await proxy.refuse()
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        committing = asyncio.create_task(commit_first(cache))
        await failed.wait()
        await proxy.accept()
        result = await committing
        assert (result.head_revision, result.replayed) == (1, False)
        assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["chat.0"]


@pytest.mark.parametrize(("before", "refused"), [("first call", "SET"), ("later call", "EVALSHA")])
async def test_a_call_is_retried_until_the_server_accepts_writes(
    before: str, refused: str, real_server: Server, proxy: Proxy
) -> None:
    """The server is a replica of a missing primary until it is promoted."""
    admin = real_server.client()
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        if before == "later call":
            await commit_first(cache, "other")
        proxy.on_command, is_repeated = once_sent(2, lambda command: Action.PASS, refused)
        await admin.execute_command("REPLICAOF", "127.0.0.1", 1)
        try:
            committing = asyncio.create_task(commit_first(cache))
            await is_repeated.wait()
        finally:
            await admin.execute_command("REPLICAOF", "NO", "ONE")
        result = await committing
        assert (result.head_revision, result.replayed) == (1, False)
        assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["chat.0"]


async def test_a_call_is_retried_until_the_server_has_a_free_connection(real_server: Server) -> None:
    async with real_server.client(single_connection_client=True) as admin, asyncio.timeout(PATIENCE):
        await admin.config_resetstat()
        (limit,) = (await admin.config_get("maxclients")).values()
        await admin.config_set("maxclients", len(await admin.client_list()))
        async with lash_redis.connect(real_server.url) as cache:
            try:
                committing = asyncio.create_task(commit_first(cache))
                while not (await admin.info("stats"))["rejected_connections"]:  # noqa: ASYNC110 - the server's event
                    await asyncio.sleep(0.001)
            finally:
                await admin.config_set("maxclients", limit)
            assert (await committing).head_revision == 1


# Lost replies


@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.HOLD_REPLY, Action.HALF_REPLY])
async def test_a_retry_settles_the_unknown_outcome_of_a_commit_without_a_reply(action: Action, proxy: Proxy) -> None:
    async with asyncio.timeout(PATIENCE), lash_redis.connect(proxy.url) as cache:
        store = cache.session("chat")
        await commit_first(cache)
        sent = commit(1, append("b", parent="chat.0"))
        await proxy.refuse()
        proxy.on_command = on(action, "EVALSHA")
        limit_calls(cache, 0.5)
        with pytest.raises(OutcomeUnknown, match=proxy.url.removeprefix("redis://")):
            await store.commit_runtime_state(sent)
        proxy.release()
        await proxy.accept()
        limit_calls(cache, None)
        again = await store.commit_runtime_state(sent)
        assert (again.head_revision, again.replayed) == (2, True)


@pytest.mark.slow
async def test_a_timeout_fails_its_own_call_only() -> None:
    """The connection accepts no further calls, delivers the replies in flight, and is closed."""
    async with asyncio.timeout(PATIENCE), Scripted() as server, lash_redis.connect(server.url) as cache:
        now = asyncio.get_running_loop().time()
        deadlines = {b"one": now + PATIENCE, b"late": now + 2.0, b"three": now + PATIENCE}
        requests = [echo(token, deadline=deadline) for token, deadline in deadlines.items()]
        one, late, three = [asyncio.create_task(backend_of(cache).send(request)) for request in requests]
        first = await server.link()
        assert [await first.command() for _ in range(3)] == [[b"ECHO", token] for token in deadlines]
        with pytest.raises(BackendError, match=f"no reply from {server.address}"):
            await late
        assert not one.done()
        assert not three.done()
        four = asyncio.create_task(backend_of(cache).send(echo(b"four")))
        second = await server.link()
        assert await second.command() == [b"ECHO", b"four"]
        second.send(bulk(b"four"))
        assert await four == [b"four"]
        assert not first.closed.is_set()
        first.send(b"".join(map(bulk, deadlines)))
        assert [await one, await three] == [[b"one"], [b"three"]]
        await first.wait_closed()
        assert not second.closed.is_set()


@pytest.mark.parametrize(("call_timeout", "seconds"), [(None, 8.0), (0.5, 0.5), (30.0, 30.0)])
def test_a_call_is_repeated_behind_other_writers_for_as_long_as_it_may_take(call_timeout, seconds):
    assert StoreOptions(call_timeout=call_timeout).contention_seconds == seconds
