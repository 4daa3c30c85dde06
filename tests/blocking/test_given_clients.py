"""A synchronous client of the caller is the configuration of a cache, which opens connections of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import fakeredis
import pytest
import redis
import redis.asyncio
from redis.cluster import ClusterNode, LoadBalancingStrategy, RedisCluster
from redis.credentials import CredentialProvider
from redis.sentinel import Sentinel

from lash_redis import FullGraph, InvalidRecord, SessionCache, StoreOptions
from lash_redis.blocking import BlockingSessionCache
from lash_redis.transport.blocking_clients import like
from tests.support.blocking import loop_threads
from tests.support.builders import append, commit, ids_of
from tests.support.groups import Cluster, SentinelGroup
from tests.support.secured import Certificates, TlsServer, tls_kind
from tests.support.servers import require

NAME = "given-client"


def work(cache: BlockingSessionCache) -> None:
    """Make calls from several threads, then close the cache."""
    with cache:
        store = cache.session("chat")
        store.commit_runtime_state(commit(0, append("a")))
        assert ids_of(store.load_session(FullGraph())) == ["a"]
        threads = [threading.Thread(target=cache.chat(f"c{at}").messages) for at in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with store.acquire_lease("worker") as lease:
            assert lease.remaining > 0
    assert loop_threads() == []


def names_of(url: str, **more: Any) -> list[str]:
    with redis.Redis.from_url(url, **more) as admin:
        return [each["name"] for each in admin.client_list()]


def test_a_client_is_neither_used_nor_closed(url: str) -> None:
    client = redis.Redis.from_url(url, client_name=NAME, db=3, decode_responses=True)
    before = dict(client.connection_pool.connection_kwargs)
    cache = BlockingSessionCache(client)
    assert cache.chat("chat").append({"role": "user", "content": "x"})
    assert names_of(url).count(NAME) >= 1
    assert client.connection_pool.connection_kwargs == before
    cache.close()
    assert NAME not in names_of(url)
    assert client.ping()
    assert client.dbsize() > 0, "the cache used another database"
    client.close()


def test_a_unix_socket_is_taken_over(url: str) -> None:
    with redis.Redis(unix_socket_path=url.removeprefix("unix://")) as client:
        work(BlockingSessionCache(client))


def test_a_user_with_a_password_and_a_credential_provider_are_taken_over(url: str) -> None:
    class Provider(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return "chats", "secret"

    with redis.Redis.from_url(url) as admin:
        admin.execute_command("ACL", "SETUSER", "chats", "reset", "on", ">secret", "~*", "&*", "+@all")
        for settings in ({"username": "chats", "password": "secret"}, {"credential_provider": Provider()}):
            admin.flushall()
            with redis.Redis(unix_socket_path=url.removeprefix("unix://"), **settings) as client:
                cache = BlockingSessionCache(client)
                cache.chat("chat").append({"role": "user", "content": "x"})
                users = {each["user"] for each in admin.client_list()}
                assert "chats" in users
                cache.close()


def test_timeouts_and_the_number_of_connections_are_taken_over() -> None:
    client = redis.Redis(port=1, socket_timeout=1.5, socket_connect_timeout=0.5, max_connections=7, protocol=3)
    connector: Any = like(client)
    dialer = connector._dialer
    assert (dialer.reply_timeout, dialer.connect_timeout, dialer.limit) == (1.5, 0.5, 7)
    assert dialer._settings["protocol"] == 3
    unlimited: Any = like(redis.Redis(connection_pool=redis.ConnectionPool(port=1)))
    assert 1 <= unlimited._dialer.limit <= 100


def test_tls_is_taken_over(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.node.user_properties.append(("server", tls_kind().name))
    require(tls_kind())
    certificates = Certificates(tmp_path)
    server = TlsServer(certificates, certificates.issue("127.0.0.1"))
    server.start()
    try:
        host, port = server.address.split(":")
        parameters = dict(parse_qsl(certificates.query().removeprefix("?")))
        client = redis.Redis(host=host, port=int(port), ssl=True, **parameters)  # type: ignore[arg-type]
        work(BlockingSessionCache(client))
        refused = BlockingSessionCache(redis.Redis(host=host, port=int(port), ssl=True))
        with refused, pytest.raises(Exception, match="certificate"):
            refused.chat("chat").messages()
    finally:
        server.stop()


def test_a_cluster_client_is_taken_over(cluster: Cluster) -> None:
    nodes = [ClusterNode("127.0.0.1", node.port) for node in cluster.nodes]
    with RedisCluster(startup_nodes=nodes, client_name=NAME) as client:
        cache = BlockingSessionCache(client)
        for at in range(20):
            cache.chat(f"c{at}").append({"role": "user", "content": "x"})
        assert sum(NAME in names_of(node.url) for node in cluster.primaries()) == 3
        cache.close()
        work(BlockingSessionCache(client, "another"))
        refused = RedisCluster(startup_nodes=nodes, load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN)
        with pytest.raises(InvalidRecord, match="stale replicas"):
            BlockingSessionCache(refused)
        refused.close()


def test_a_client_of_sentinel_is_taken_over(sentinels: SentinelGroup) -> None:
    addresses = [("127.0.0.1", sentinel.port) for sentinel in sentinels.sentinels]
    manager = Sentinel(addresses, sentinel_kwargs={"password": sentinels.sentinel_password})
    client = manager.master_for(sentinels.SERVICE, password=sentinels.password, client_name=NAME)
    work(BlockingSessionCache(client))
    with pytest.raises(InvalidRecord, match="master_for"):
        BlockingSessionCache(manager.slave_for(sentinels.SERVICE))
    for each in (client, *manager.sentinels):
        each.close()


def test_a_client_of_fakeredis_leads_to_its_server() -> None:
    server = fakeredis.FakeServer()
    work(BlockingSessionCache(fakeredis.FakeRedis(server=server)))
    assert fakeredis.FakeRedis(server=server).dbsize() > 0
    named = fakeredis.FakeRedis(host="named", port=7)
    work(BlockingSessionCache(named))
    assert named.dbsize() > 0


class MyConnection(redis.Connection):
    """A connection with behavior of its own."""


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (redis.asyncio.Redis(), "use lash_redis.SessionCache"),
        ("redis://localhost", "expected a redis.Redis or redis.RedisCluster, got builtins.str"),
        (None, "got builtins.NoneType"),
        (redis.Redis(redis_connect_func=print), "redis_connect_func"),
        (redis.Redis(connection_pool=redis.ConnectionPool(connection_class=MyConnection)), "MyConnection"),
        (redis.Redis(ssl=True, ssl_ocsp_expected_cert="x"), "ssl_ocsp_expected_cert"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_client_whose_settings_cannot_be_taken_over_is_refused_by_name(client: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord, match=reason):
        BlockingSessionCache(client)


def test_an_async_cache_names_the_blocking_one_for_a_synchronous_client() -> None:
    with pytest.raises(InvalidRecord, match=r"lash_redis\.blocking\.BlockingSessionCache"):
        SessionCache(redis.Redis())  # type: ignore[arg-type]


def test_options_are_checked_as_in_the_async_cache() -> None:
    with pytest.raises(InvalidRecord, match="namespace"):
        BlockingSessionCache(redis.Redis(), "{")
    with pytest.raises(InvalidRecord, match="options"):
        BlockingSessionCache(redis.Redis(), options=3)  # type: ignore[arg-type]
    assert BlockingSessionCache(redis.Redis(), ttl=5, options=StoreOptions(shards=2)).options.shards == 2
