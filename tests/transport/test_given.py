"""Clients of the caller: a cache calls the methods of a `Redis` client, and copies the settings of a group client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel
from redis.credentials import CredentialProvider

from lash_redis import FullGraph, HydratedSessionCheckpoint, Replicas, SessionCache
from tests.support.builders import append, commit, ids_of
from tests.support.groups import Cluster, Member, SentinelGroup
from tests.support.proxy import Proxy
from tests.support.scripted import PATIENCE
from tests.support.servers import Server

NAME = "given-client"


async def work(cache: SessionCache) -> None:
    """Make calls of every kind."""
    store = cache.session("chat")
    body = HydratedSessionCheckpoint(execution_state=b"x" * 100_000)
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=body))
    made = commit(1, append("b", parent="a"), checkpoint=body)
    await store.commit_runtime_state(made, durability=Replicas(1, 10))
    await (await store.acquire_lease("worker")).release()
    assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["a", "b"]
    heads = await asyncio.gather(*(cache.session(f"s{at}").load_head() for at in range(30)))
    assert heads == [None] * 30
    await cache.preload()


# One server


class Recorded(redis.Redis):
    """A client that records the name of each command, and whether it was closed."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.asked: Counter[str] = Counter()
        self.was_closed = False

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        self.asked[command[0].split()[0]] += 1
        return await super().execute_command(*command, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        pipeline = super().pipeline(transaction, shard_hint)
        execute_command, execute = pipeline.execute_command, pipeline.execute

        def recorded(*command: Any, **options: Any) -> Any:
            self.asked[command[0].split()[0]] += 1
            return execute_command(*command, **options)

        async def executed(**options: Any) -> Any:
            self.asked.update(["MULTI", "EXEC"] if transaction else [])
            return await execute(**options)

        pipeline.execute_command, pipeline.execute = recorded, executed  # type: ignore[method-assign]
        return pipeline

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        self.was_closed = True
        await super().aclose(close_connection_pool)


async def test_a_given_client_sends_every_command_and_is_neither_configured_nor_closed(proxy: Proxy) -> None:
    """Only the handshake of its connections reaches the server without a call of the client."""
    host, port = proxy.url.removeprefix("redis://").split(":")
    client = Recorded(host=host, port=int(port), client_name=NAME, max_connections=4)
    pool, settings = client.connection_pool, dict(client.connection_pool.connection_kwargs)
    with proxy.measure() as seen:
        async with asyncio.timeout(PATIENCE), SessionCache(client) as cache:
            await work(cache)
    arrived = Counter(name for name in seen.names() if name not in ("CLIENT", "HELLO"))
    assert arrived == client.asked
    assert client.connection_pool is pool
    assert pool.connection_kwargs == settings
    assert proxy.most_at_once <= 4
    assert not client.was_closed
    assert await client.ping()
    await client.aclose()


# Groups


class Provider(CredentialProvider):
    """Credentials that are requested for each connection, as for an account whose password changes."""

    def __init__(self) -> None:
        self.asked = 0

    async def get_credentials_async(self) -> tuple[str, str]:
        self.asked += 1
        return "given", "p@ss/word"


@contextmanager
def account(nodes: list[Member]) -> Iterator[None]:
    """A user `given` on every node."""
    for node in nodes:
        node.ask("ACL", "SETUSER", "given", "on", ">p@ss/word", "~*", "&*", "+@all")
    try:
        yield
    finally:
        for node in nodes:
            node.ask("ACL", "DELUSER", "given")


CREDENTIALS = pytest.mark.parametrize("provided", [False, True], ids=["password", "credential provider"])
PROTOCOL = pytest.mark.parametrize("protocol", [2, 3])


def credentials(provided: bool) -> tuple[dict[str, Any], Provider]:
    provider = Provider()
    named = {"username": "given", "password": "p@ss/word"}
    return ({"credential_provider": provider} if provided else named), provider


def connections(nodes: list[Member]) -> list[dict[str, str]]:
    """The connections to all nodes that carry the client's name."""
    clients = [client for node in nodes for client in node.ask("CLIENT LIST")]
    return [client for client in clients if client["name"] == NAME]


@asynccontextmanager
async def connected_cache(client: Any) -> AsyncIterator[None]:
    """A cache on the client that has made calls of every kind, and is still connected."""
    async with asyncio.timeout(PATIENCE), SessionCache(client) as cache:
        await work(cache)
        yield


def expect_given_settings(found: list[dict[str, str]], protocol: int) -> None:
    assert found
    assert {client["user"] for client in found} == {"given"}
    assert {client.get("resp", str(protocol)) for client in found} == {str(protocol)}  # Redis 6.2 does not report it


@CREDENTIALS
@PROTOCOL
async def test_connections_use_the_settings_of_a_given_cluster_client(
    protocol: int, provided: bool, cluster: Cluster
) -> None:
    """The given client itself opens no connection."""
    nodes = list(cluster.nodes)
    settings, provider = credentials(provided)
    with account(nodes):
        client = redis.RedisCluster("127.0.0.1", nodes[0].port, client_name=NAME, protocol=protocol, **settings)
        async with connected_cache(client):
            found = await asyncio.to_thread(connections, nodes)
            expect_given_settings(found, protocol)
            assert len({client["laddr"] for client in found if "laddr" in client}) > 1
            assert (provider.asked >= len(found)) is provided
            assert client.nodes_manager.nodes_cache == {}
            assert not any(node._connections for node in client.nodes_manager.startup_nodes.values())
        assert await asyncio.to_thread(connections, nodes) == []
        assert await client.ping(target_nodes=redis.RedisCluster.PRIMARIES)
        await client.aclose()


@CREDENTIALS
@PROTOCOL
async def test_connections_use_the_settings_of_a_given_sentinel_client(
    protocol: int, provided: bool, sentinels: SentinelGroup
) -> None:
    """The connection pools of the given client and of its sentinels stay unused."""
    settings, provider = credentials(provided)
    with account(sentinels.nodes):
        manager = Sentinel([("127.0.0.1", each.port) for each in sentinels.sentinels])
        client = manager.master_for("lash", client_name=NAME, protocol=protocol, **settings)
        async with connected_cache(client):
            found = await asyncio.to_thread(connections, sentinels.nodes)
            expect_given_settings(found, protocol)
            assert (provider.asked >= len(found)) is provided
            pools = [client.connection_pool, *(each.connection_pool for each in manager.sentinels)]
            assert not any(pool._available_connections or pool._in_use_connections for pool in pools)
        assert await asyncio.to_thread(connections, sentinels.nodes) == []
        assert await client.ping()
        for opened in (client, *manager.sentinels):
            await opened.aclose()


async def test_the_credential_provider_of_a_given_client_is_called_for_each_connection(real_server: Server) -> None:
    provider = Provider()
    async with real_server.client() as admin:
        await admin.execute_command("ACL", "SETUSER", "given", "on", ">p@ss/word", "~*", "&*", "+@all")
        try:
            client = real_server.client(credential_provider=provider, max_connections=3)
            async with asyncio.timeout(PATIENCE), SessionCache(client) as cache:
                await work(cache)
            assert provider.asked >= 3
        finally:
            await admin.execute_command("ACL", "DELUSER", "given")
