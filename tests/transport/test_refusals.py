"""The error of a server that refuses a call names its address and the remedy, for URLs and for given clients."""

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

pytestmark = pytest.mark.slow

Opened = Callable[..., SessionCache]
GIVEN: list[redis.Redis] = []


async def reads(cache: SessionCache) -> Any:
    return await cache.session("chat").load_head()


async def commits(cache: SessionCache) -> Any:
    return await cache.session("chat").commit_runtime_state(commit(None, append("m1")))


READ_AND_COMMIT = pytest.mark.parametrize("call", [reads, commits])


async def refusal(cache: SessionCache, call: Callable[[SessionCache], Awaitable[Any]] = commits) -> str:
    """The message of a call that fails within its time limit of two seconds."""
    async with asyncio.timeout(PATIENCE), cache:
        with pytest.raises(StoreError) as caught:
            await call(cache)
    return str(caught.value)


def by_url(address: str, *, credentials: tuple[str, str] = ("", ""), db: int = 0, tls: bool = False, **options: Any):
    secret = f"{':'.join(credentials)}@" if any(credentials) else ""
    url = f"{'rediss' if tls else 'redis'}://{secret}{address}/{db}?socket_connect_timeout=0.5"
    return lash_redis.connect(url, options=StoreOptions(call_timeout=1, **options))


def given(address: str, *, credentials: tuple[str, str] = ("", ""), db: int = 0, tls: bool = False, **options: Any):
    """A cache over a given client that does not retry."""
    host, _, port = address.partition(":")
    username, password = credentials
    client = redis.Redis(
        host=host, port=int(port), db=db, ssl=tls, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0),
        username=username or None, password=password or None,
    )  # fmt: skip
    GIVEN.append(client)
    return SessionCache(client, options=StoreOptions(call_timeout=1, **options))


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
    """A client that stays connected. After the test, it removes all restrictions of the server."""
    async with real_server.client(single_connection_client=True) as client:
        yield client
        for name, value in (("requirepass", ""), ("maxmemory", 0), ("min-replicas-to-write", 0)):
            await client.config_set(name, value)
        await client.execute_command("REPLICAOF", "NO", "ONE")
        await client.execute_command("ACL", "DELUSER", "named")


# Credentials and databases


@READ_AND_COMMIT
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "redis://user:password@host"), (given, "password=")])
async def test_the_error_of_a_missing_password_shows_where_to_set_it(
    opened: Opened, remedy: str, call: Callable[..., Any], address: str, admin: redis.Redis
) -> None:
    await admin.config_set("requirepass", "right")
    message = await refusal(opened(address), call)
    assert f"{address} requires a password" in message
    assert remedy in message
    assert "HELLO" not in message, "the error shows a command of the handshake"


@READ_AND_COMMIT
@pytest.mark.parametrize("name", ["", "unknown"])
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "write %40 for '@'"), (given, "username= and password=")])
async def test_the_error_of_a_wrong_password_shows_the_remedy_and_no_password(
    opened: Opened, remedy: str, name: str, call: Callable[..., Any], address: str, admin: redis.Redis
) -> None:
    await admin.config_set("requirepass", "right")
    message = await refusal(opened(address, credentials=(name, "guess")), call)
    assert f"{address} refused the credentials" in message
    assert remedy in message
    assert "guess" not in message


@READ_AND_COMMIT
@EITHER
async def test_the_error_of_a_missing_database_asks_for_a_lower_number(
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
    """The address of a server that accepts only TLS."""
    request.node.user_properties.append(("server", tls_kind().name))
    require(tls_kind())
    with ExitStack() as ending:
        server = TlsServer(certificates, certificates.issue("127.0.0.1"))
        ending.callback(server.stop)
        server.start()
        yield server.address


@READ_AND_COMMIT
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "use redis://"), (given, "without ssl=True")])
async def test_the_error_of_tls_to_a_plain_port_shows_how_to_connect_without_tls(
    opened: Opened, remedy: str, call: Callable[..., Any], address: str
) -> None:
    message = await refusal(opened(address, tls=True), call)
    assert address in message
    assert remedy in message


@READ_AND_COMMIT
@pytest.mark.parametrize(("opened", "remedy"), [(by_url, "use rediss://"), (given, "with ssl=True")])
async def test_the_error_of_plain_text_to_a_tls_port_shows_how_to_connect_with_tls(
    opened: Opened, remedy: str, call: Callable[..., Any], tls_address: str
) -> None:
    message = await refusal(opened(tls_address), call)
    assert tls_address in message
    assert remedy in message


@EITHER
async def test_the_error_of_an_unknown_authority_names_the_setting_for_it(opened: Opened, tls_address: str) -> None:
    message = await refusal(opened(tls_address, tls=True))
    assert tls_address in message
    assert "ssl_ca_certs" in message


async def test_the_error_of_a_certificate_for_another_host_asks_for_its_name(
    certificates: Certificates, tls_address: str
) -> None:
    port = tls_address.rpartition(":")[2]
    message = await refusal(lash_redis.connect(f"rediss://localhost:{port}{certificates.query()}"))
    assert f"localhost:{port}" in message
    assert "connect by a name that the certificate has" in message


# Scripts and permissions


@EITHER
async def test_without_eval_the_error_of_a_missing_script_names_the_server_and_the_remedy(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.script_flush()
    message = await refusal(opened(address, allow_eval=False))
    assert f"{address} does not have the script 'commit'" in message
    assert "run SessionCache.preload() or lash-redis preload" in message


@EITHER
async def test_the_error_of_an_account_that_may_not_load_scripts_names_the_remedy(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.script_flush()
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *acl.rules("default", "runner"))
    message = await refusal(opened(address, credentials=("named", "pw")))
    assert f"{address} does not have the script 'commit'" in message
    assert "run SessionCache.preload() or lash-redis preload" in message


@READ_AND_COMMIT
@EITHER
async def test_the_error_of_an_account_of_another_namespace_names_the_acl_command(
    opened: Opened, call: Callable[..., Any], address: str, admin: redis.Redis
) -> None:
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *acl.rules("other", "loader"))
    message = await refusal(opened(address, credentials=("named", "pw")), call)
    assert address in message
    assert "lash-redis acl" in message


async def test_the_error_of_an_account_that_lacks_a_command_names_the_acl_command(
    address: str, admin: redis.Redis
) -> None:
    rules = [*acl.rules("default", "loader"), "-hset"]
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *rules)
    message = await refusal(by_url(address, credentials=("named", "pw")))
    assert address in message
    assert "lash-redis acl" in message


async def test_the_error_of_preload_without_permission_names_the_acl_command(address: str, admin: redis.Redis) -> None:
    await admin.execute_command("ACL", "SETUSER", "named", "reset", "on", ">pw", *acl.rules("default", "runner"))
    message = await refusal(by_url(address, credentials=("named", "pw")), SessionCache.preload)
    assert address in message
    assert "lash-redis acl" in message


# Servers that cannot write


@EITHER
async def test_the_error_of_a_full_server_names_it_and_the_remedy(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.config_set("maxmemory-policy", "noeviction")
    await admin.config_set("maxmemory", 1)
    message = await refusal(opened(address))
    assert f"{address} replied: OOM" in message
    assert "maxmemory" in message.partition("; ")[2]


@EITHER
async def test_the_error_of_a_replica_names_it_and_refers_to_its_primary(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    message = await refusal(opened(address))
    assert address in message
    assert "connect to its primary" in message


@EITHER
async def test_the_error_of_too_few_replicas_names_the_server_and_the_setting(
    opened: Opened, address: str, admin: redis.Redis
) -> None:
    await admin.config_set("min-replicas-to-write", 1)
    message = await refusal(opened(address))
    assert address in message
    assert "min-replicas-to-write" in message


@EITHER
async def test_a_last_attempt_without_a_reply_does_not_hide_the_first_error(opened: Opened) -> None:
    """The server replies once that it is a replica, and then never again."""
    replies = iter([b"-READONLY You can't write against a read only replica.\r\n"])
    async with Scripted(lambda command: next(replies, None)) as server:
        message = await refusal(opened(server.address), reads)
        assert server.address in message
        assert "connect to its primary" in message


async def test_a_refusal_is_a_backend_error_with_its_cause(address: str, admin: redis.Redis) -> None:
    await admin.config_set("requirepass", "right")
    async with asyncio.timeout(PATIENCE), by_url(address) as cache:
        with pytest.raises(BackendError) as caught:
            await reads(cache)
    assert isinstance(caught.value.__cause__, redis.AuthenticationError)
