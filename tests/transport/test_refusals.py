"""A server that refuses: the error names its address and says what to do, over a URL and over a given client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import lash_redis
from lash_redis import BackendError, SessionCache, StoreError, StoreOptions, acl
from tests.support.builders import append, commit
from tests.support.scripted import PATIENCE, Scripted
from tests.support.secured import Certificates, TlsServer, tls_kind
from tests.support.servers import Server, require

Opened = Callable[..., SessionCache]
GIVEN: list[redis.Redis] = []


async def reads(cache: SessionCache) -> Any:
    return await cache.session("chat").load_head()


async def commits(cache: SessionCache) -> Any:
    return await cache.session("chat").commit_runtime_state(commit(None, append("m1")))


READ_AND_COMMIT = pytest.mark.parametrize("call", [reads, commits])


async def refusal(cache: SessionCache, call: Callable[[SessionCache], Awaitable[Any]] = commits) -> str:
    """The message of a call that fails at once or within its two seconds."""
    async with asyncio.timeout(PATIENCE), cache:
        with pytest.raises(StoreError) as caught:
            await call(cache)
    return str(caught.value)


def by_url(address: str, *, credentials: tuple[str, str] = ("", ""), db: int = 0, tls: bool = False, **options: Any):
    secret = f"{':'.join(credentials)}@" if any(credentials) else ""
    url = f"{'rediss' if tls else 'redis'}://{secret}{address}/{db}?socket_connect_timeout=0.5"
    return lash_redis.connect(url, options=StoreOptions(call_timeout=2, **options))


def given(address: str, *, credentials: tuple[str, str] = ("", ""), db: int = 0, tls: bool = False, **options: Any):
    """A cache over a client that sends nothing twice."""
    host, _, port = address.partition(":")
    username, password = credentials
    client = redis.Redis(
        host=host, port=int(port), db=db, ssl=tls, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0),
        username=username or None, password=password or None,
    )  # fmt: skip
    GIVEN.append(client)
    return SessionCache(client, options=StoreOptions(call_timeout=2, **options))


@pytest.fixture(autouse=True)
async def _closed_clients() -> AsyncIterator[None]:
    """Close the clients that the test gave to caches."""
    yield
    while GIVEN:
        await GIVEN.pop().aclose()


EITHER = pytest.mark.parametrize("opened", [by_url, given])


@pytest.fixture
def address(real_server: Server) -> str:
    return real_server.tcp_url.removeprefix("redis://")


@pytest.fixture
async def admin(real_server: Server) -> AsyncIterator[redis.Redis]:
    """A client that stays connected. At the end the server takes everybody again."""
    async with real_server.client(single_connection_client=True) as client:
        yield client
        for name, value in (("requirepass", ""), ("maxmemory", 0), ("min-replicas-to-write", 0)):
            await client.config_set(name, value)
        await client.execute_command("REPLICAOF", "NO", "ONE")
        await client.execute_command("ACL", "DELUSER", "named")


# Credentials and databases


@READ_AND_COMMIT
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "redis://user:password@host"), (given, "password=")])
async def test_without_a_password_the_error_says_where_to_give_it(
    opened: Opened, remedy: str, call: Callable[..., Any], address: str, admin: redis.Redis
) -> None:
    await admin.config_set("requirepass", "right")
    message = await refusal(opened(address), call)
    assert f"{address} requires a password" in message
    assert remedy in message
    assert "HELLO" not in message, "how the client greets is not the caller's concern"


@READ_AND_COMMIT
@pytest.mark.parametrize("name", ["", "unknown"])
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "write %40 for '@'"), (given, "username= and password=")])
async def test_with_a_wrong_password_the_error_says_what_to_check_and_shows_no_password(
    opened: Opened, remedy: str, name: str, call: Callable[..., Any], address: str, admin: redis.Redis
) -> None:
    await admin.config_set("requirepass", "right")
    message = await refusal(opened(address, credentials=(name, "guess")), call)
    assert f"{address} refused the credentials" in message
    assert remedy in message
    assert "guess" not in message


@READ_AND_COMMIT
@EITHER
async def test_with_a_database_that_the_server_lacks_the_error_says_to_take_a_lower_number(
    opened: Opened, call: Callable[..., Any], address: str, admin: redis.Redis
) -> None:
    message = await refusal(opened(address, db=99), call)
    assert f"{address} has no database 99" in message
    assert "use a lower number" in message


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_address(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[str]:
    """The address of a server that speaks only TLS."""
    request.node.user_properties.append(("server", tls_kind().name))
    require(tls_kind())
    with ExitStack() as ending:
        server = TlsServer(certificates, certificates.issue("127.0.0.1"))
        ending.callback(server.stop)
        server.start()
        yield server.address


@READ_AND_COMMIT
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "use redis://"), (given, "without ssl=True")])
async def test_tls_to_a_plain_port_says_how_to_connect_without(
    opened: Opened, remedy: str, call: Callable[..., Any], address: str
) -> None:
    message = await refusal(opened(address, tls=True), call)
    assert address in message
    assert remedy in message


@READ_AND_COMMIT
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "use rediss://"), (given, "with ssl=True")])
async def test_plain_text_to_a_tls_port_says_how_to_connect_with_tls(
    opened: Opened, remedy: str, call: Callable[..., Any], tls_address: str
) -> None:
    message = await refusal(opened(tls_address), call)
    assert tls_address in message
    assert remedy in message


@EITHER
async def test_a_certificate_of_an_unknown_authority_says_which_setting_names_it(
    opened: Opened, tls_address: str
) -> None:
    message = await refusal(opened(tls_address, tls=True))
    assert tls_address in message
    assert "ssl_ca_certs" in message


async def test_a_certificate_for_another_host_says_to_use_its_name(
    certificates: Certificates, tls_address: str
) -> None:
    port = tls_address.rpartition(":")[2]
    message = await refusal(lash_redis.connect(f"rediss://localhost:{port}{certificates.query()}"))
    assert f"localhost:{port}" in message
    assert "connect by a name that the certificate has" in message


# Scripts and rights


@EITHER
async def test_without_leave_to_send_scripts_the_error_names_the_server_that_lacks_them(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.script_flush()
    message = await refusal(opened(address, allow_eval=False))
    assert f"{address} does not have the script 'commit'" in message
    assert "run SessionCache.preload() or lash-redis preload" in message


@EITHER
async def test_an_account_that_may_not_send_scripts_gets_the_same_remedy(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.script_flush()
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *acl.rules("default", "runner"))
    message = await refusal(opened(address, credentials=("named", "pw")))
    assert f"{address} does not have the script 'commit'" in message
    assert "run SessionCache.preload() or lash-redis preload" in message


@READ_AND_COMMIT
@EITHER
async def test_an_account_of_another_namespace_is_told_how_to_see_the_rights_it_needs(
    opened: Opened, call: Callable[..., Any], address: str, admin: redis.Redis
) -> None:
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *acl.rules("other", "loader"))
    message = await refusal(opened(address, credentials=("named", "pw")), call)
    assert address in message
    assert "lash-redis acl" in message


async def test_an_account_that_lacks_a_command_of_a_script_gets_the_same_remedy(
    address: str, admin: redis.Redis
) -> None:
    rules = [*acl.rules("default", "loader"), "-hset"]
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *rules)
    message = await refusal(by_url(address, credentials=("named", "pw")))
    assert address in message
    assert "lash-redis acl" in message


async def test_preload_by_an_account_that_may_not_load_names_the_server_and_the_rights(
    address: str, admin: redis.Redis
) -> None:
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *acl.rules("default", "runner"))
    message = await refusal(by_url(address, credentials=("named", "pw")), SessionCache.preload)
    assert address in message
    assert "lash-redis acl" in message


# What the server cannot do now


@EITHER
async def test_a_full_server_is_named_with_what_makes_room(opened: Opened, address: str, admin: redis.Redis) -> None:
    await admin.config_set("maxmemory-policy", "noeviction")
    await admin.config_set("maxmemory", 1)
    message = await refusal(opened(address))
    assert f"{address} replied: OOM" in message
    assert "maxmemory" in message.partition("; ")[2]


@EITHER
async def test_a_replica_is_named_with_how_to_reach_its_primary(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    message = await refusal(opened(address))
    assert address in message
    assert "connect to its primary" in message


@EITHER
async def test_a_server_with_too_few_replicas_is_named_with_the_setting(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.config_set("min-replicas-to-write", 1)
    message = await refusal(opened(address))
    assert address in message
    assert "min-replicas-to-write" in message


@EITHER
async def test_a_last_attempt_without_a_reply_does_not_hide_the_reason_of_the_first(opened: Opened) -> None:
    """The server replies that it is a replica, and to nothing that comes after."""
    replies = iter([b"-READONLY You can't write against a read only replica.\r\n"])
    async with Scripted(lambda command: next(replies, None)) as server:
        message = await refusal(opened(server.address), reads)
        assert server.address in message
        assert "connect to its primary" in message


async def test_what_was_refused_stays_a_backend_error_with_its_cause(address: str, admin: redis.Redis) -> None:
    await admin.config_set("requirepass", "right")
    async with asyncio.timeout(PATIENCE), by_url(address) as cache:
        with pytest.raises(BackendError) as caught:
            await reads(cache)
    assert isinstance(caught.value.__cause__, redis.AuthenticationError)
