"""Calls work over TLS, certificates are verified, and a bad certificate is reported after one attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel

import lash_redis
from lash_redis import BackendError, FullGraph, HydratedSessionCheckpoint, SessionCache, StoreOptions
from tests.support.builders import append, commit, ids_of
from tests.support.scripted import PATIENCE, Scripted, backend_of, echo, echoed, sending
from tests.support.secured import SERVICE, Certificates, Relay, TlsServer, tls_kind
from tests.support.servers import require

Started = Callable[..., TlsServer]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def started(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Started]:
    """`started(*hosts)` is a running server with a certificate for these hosts."""
    request.node.user_properties.append(("server", tls_kind().name))
    require(tls_kind())
    with ExitStack() as ending:

        def start(*hosts: str, not_after: datetime | None = None, **more: Any) -> TlsServer:
            files = certificates.issue(*(hosts or ("127.0.0.1",)), not_after=not_after)
            server = TlsServer(certificates, files, **more)
            ending.callback(server.stop)
            server.start()
            return server

        yield start


async def work(cache: SessionCache) -> None:
    """Commit small and large sessions concurrently, then read them."""
    body = HydratedSessionCheckpoint(execution_state=b"x" * 1_000_000)
    names = [f"s{at}" for at in range(30)]
    firsts = [
        commit(None, append("a"), session_id=name, **({} if at % 10 else {"checkpoint": body}))
        for at, name in enumerate(names)
    ]
    results = await asyncio.gather(*sending(cache, firsts))
    assert [result.head_revision for result in results] == [1] * 30
    reads = await asyncio.gather(*(cache.session(name).load_session(FullGraph()) for name in names))
    assert [ids_of(read) for read in reads] == [["a"]] * 30


async def failure(url: str, call_timeout: float = 8.0) -> str:
    """The error message of the first call."""
    options = StoreOptions(call_timeout=call_timeout)
    async with asyncio.timeout(PATIENCE), lash_redis.connect(url, options=options) as cache:
        with pytest.raises(BackendError) as caught:
            await cache.session("chat").load_head()
    return caught.value.message


# Calls over TLS


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_calls_work_over_tls(host: str, protocol: str, started: Started, certificates: Certificates) -> None:
    server = started("127.0.0.1", "localhost")
    url = f"rediss://{host}:{server.port}{certificates.query(protocol=protocol)}"
    async with asyncio.timeout(PATIENCE), lash_redis.connect(url) as cache:
        await work(cache)


async def test_calls_work_with_a_client_certificate(started: Started, certificates: Certificates) -> None:
    server = started(is_asking=True)
    own = certificates.issue("client.example")
    query = certificates.query(ssl_certfile=own["cert"], ssl_keyfile=own["key"])
    async with asyncio.timeout(PATIENCE), lash_redis.connect(f"rediss://{server.address}{query}") as cache:
        await work(cache)


async def test_commits_in_flight_are_applied_once_if_a_tls_connection_is_killed(
    started: Started, certificates: Certificates
) -> None:
    server = started()
    async with asyncio.timeout(PATIENCE):
        async with lash_redis.connect(f"rediss://{server.address}{certificates.query()}") as cache:
            await cache.session("warm").commit_runtime_state(commit(None, append("a"), session_id="warm"))
            firsts = [commit(None, append("a"), session_id=f"s{at}") for at in range(100)]
            calls = sending(cache, firsts)
            with server.admin() as admin:
                for _ in range(3):
                    await asyncio.sleep(0)
                    admin.client_kill_filter(_type="normal", skipme=True)
            results = await asyncio.gather(*calls)
            assert [result.head_revision for result in results] == [1] * 100


async def test_replies_that_arrive_byte_by_byte_over_tls_reach_their_own_calls(certificates: Certificates) -> None:
    tokens = [b"one", b"two" * 10, b""]
    context = certificates.context("127.0.0.1")
    async with (
        asyncio.timeout(PATIENCE),
        Scripted(context=context) as server,
        lash_redis.connect(server.url + certificates.query()) as cache,
    ):
        calls = [asyncio.create_task(backend_of(cache).send(echo(token))) for token in tokens]
        link = await server.link()
        replies = b"".join([echoed(await link.command()) or b"" for _ in tokens])
        await link.send_bytewise(replies)
        assert await asyncio.gather(*calls) == [[token] for token in tokens]


@pytest.mark.slow
async def test_a_cluster_works_over_tls(started: Started, certificates: Certificates) -> None:
    server = started(is_cluster=True)
    url = f"rediss+cluster://{server.address}{certificates.query()}"
    async with asyncio.timeout(PATIENCE), lash_redis.connect(url) as cache:
        await work(cache)


async def test_sentinel_works_over_tls(started: Started, certificates: Certificates) -> None:
    primary = started()
    sentinel = started(primary=primary.port)
    url = f"rediss+sentinel://{sentinel.address}/{SERVICE}{certificates.query()}"
    async with asyncio.timeout(PATIENCE), lash_redis.connect(url) as cache:
        await work(cache)


@pytest.mark.slow
async def test_given_clients_of_groups_work_over_tls(started: Started, certificates: Certificates) -> None:
    trusted = {"ssl": True, "ssl_ca_certs": certificates.authority}
    primary, cluster = started(), started(is_cluster=True)
    sentinel = started(primary=primary.port)
    manager = Sentinel([("127.0.0.1", sentinel.port)], sentinel_kwargs=trusted)
    clients = [manager.master_for(SERVICE, **trusted), redis.RedisCluster("127.0.0.1", cluster.port, **trusted)]
    async with asyncio.timeout(PATIENCE):
        for client in clients:
            async with SessionCache(client) as cache:
                await work(cache)
            await client.aclose()


# Bad certificates and settings


async def expect_one_attempt(server: TlsServer, url: str, *texts: str) -> None:
    """Check that the error names the address and the cause after at most one connection."""
    relay = Relay(server.port)
    async with relay.listening() as address:
        message = await failure(url.format(address=address))
    for each in (address, *texts):
        assert each in message
    assert relay.count <= 1


SCHEMES = pytest.mark.parametrize(
    "url", ["rediss://{address}", "rediss+cluster://{address}", "rediss+sentinel://{address}/lash"]
)


@SCHEMES
async def test_a_certificate_of_an_unknown_authority_is_not_accepted(url: str, started: Started) -> None:
    await expect_one_attempt(started(), url, "the certificate of", "was not accepted")


@SCHEMES
async def test_a_certificate_for_another_host_is_not_accepted(
    url: str, started: Started, certificates: Certificates
) -> None:
    server = started("other.example")
    await expect_one_attempt(server, url + certificates.query(), "the certificate of", "was not accepted", "127.0.0.1")


async def test_an_expired_certificate_is_not_accepted(started: Started, certificates: Certificates) -> None:
    server = started("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    url = "rediss://{address}" + certificates.query()
    await expect_one_attempt(server, url, "the certificate of", "was not accepted", "expired")


async def test_the_error_of_a_missing_client_certificate_names_the_setting(
    started: Started, certificates: Certificates
) -> None:
    server = started(is_asking=True)
    await expect_one_attempt(server, "rediss://{address}" + certificates.query(), "TLS", "ssl_certfile")


@SCHEMES
@pytest.mark.parametrize("setting", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
async def test_the_error_of_a_missing_tls_file_names_its_setting_and_path(
    setting: str, url: str, started: Started, certificates: Certificates, tmp_path: Path
) -> None:
    own = certificates.issue("client.example")
    files = {"ssl_certfile": own["cert"], "ssl_keyfile": own["key"], setting: str(tmp_path / "none.pem")}
    relay = Relay(started().port)
    async with relay.listening() as address:
        message = await failure(url.format(address=address) + certificates.query(**files))
    assert f"{setting}: there is no file '{tmp_path / 'none.pem'}'" in message
    assert relay.count <= 1


async def test_the_error_of_a_file_without_a_certificate_names_the_settings(started: Started, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("no certificate\n")
    url = f"rediss://{{address}}?ssl_ca_certs={tmp_path / 'empty.pem'}"
    await expect_one_attempt(started(), url, "TLS", "ssl_ca_certs")


@pytest.mark.parametrize("url", ["redis://{}", "redis+cluster://{}", "redis+sentinel://{}/lash"])
async def test_the_error_of_plain_text_to_a_tls_port_names_the_tls_scheme(url: str, started: Started) -> None:
    server = started()
    message = await failure(url.format(server.address), call_timeout=1)
    assert server.address in message
    assert "if it is a TLS port, use rediss" in message


async def test_a_bad_certificate_of_a_primary_under_sentinel_is_reported_with_its_address(
    started: Started, certificates: Certificates
) -> None:
    primary = started("other.example")
    sentinel = started("127.0.0.1", primary=primary.port)
    message = await failure(f"rediss+sentinel://{sentinel.address}/{SERVICE}{certificates.query()}")
    assert f"the certificate of {primary.address} was not accepted" in message
