"""Read the settings of a synchronous client that the caller made, for connections of this package."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import redis
from redis import connection as blocking
from redis.asyncio import connection as own
from redis.cluster import RedisCluster
from redis.sentinel import SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from lash_redis.errors import InvalidRecord
from lash_redis.transport.backend import Connector
from lash_redis.transport.connectors import SETTINGS, GivenCluster, GivenSentinel, Own, refuse_replicas
from lash_redis.transport.dialer import Dialer, Where
from lash_redis.transport.given import GivenNode
from lash_redis.transport.node import OwnNode
from lash_redis.transport.topology import OneServer, Topology

PLAIN: Final = (blocking.Connection, SentinelManagedConnection)
ENCRYPTED: Final = (blocking.SSLConnection, SentinelManagedSSLConnection)
UNIX: Final = (blocking.UnixDomainSocketConnection,)

UNLIMITED: Final = 2**31
"""The `max_connections` of a pool of redis-py whose caller gave none."""
IGNORED: Final = frozenset({"encoding", "encoding_errors", "max_connections", "driver_info", "legacy_responses"})
"""Settings of a given async client that mean nothing for connections of this package."""
TLS: Final = frozenset(name for name in inspect.signature(own.SSLConnection.__init__).parameters if name[:4] == "ssl_")
"""The settings of TLS that connections of this package have."""


class LikeClient(Own):
    """One server, with the settings of a synchronous `Redis`."""

    def __init__(self, client: redis.Redis) -> None:
        pool = client.connection_pool
        settings = {**pool.connection_kwargs, "max_connections": pool.max_connections}
        self._dialer = _dialer(pool.connection_class, settings)
        self._where: Where
        if issubclass(pool.connection_class, UNIX):
            self._where = {"path": settings["path"]}
        else:
            self._where = {"host": settings.get("host", "localhost"), "port": int(settings.get("port", 6379))}

    async def open(self) -> Topology:
        return OneServer(OwnNode(self._dialer, self._where))


class LikeFake(Own):
    """The server of a synchronous client of fakeredis, for tests."""

    def __init__(self, client: redis.Redis) -> None:
        known = client.connection_pool.connection_kwargs
        names = ("db", "host", "lua_modules", "port", "server", "server_type", "version")
        self._settings = {name: known[name] for name in names if known.get(name) is not None}

    async def open(self) -> Topology:
        from fakeredis import FakeAsyncRedis

        return OneServer(GivenNode(FakeAsyncRedis(**self._settings), address="fakeredis", is_own=True))


def like(client: object) -> Connector:
    """Return a connector that connects as a synchronous client of the caller does. No I/O.

    Raises:
        InvalidRecord: it is not a synchronous client of redis-py, or it has a setting that cannot be adopted.
    """
    if isinstance(client, RedisCluster):
        return GivenCluster(client, _cluster_dialer(client))
    if not isinstance(client, redis.Redis):
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        remedy = "; for an asynchronous client use lash_redis.SessionCache" if "asyncio" in kind else ""
        raise InvalidRecord("client", f"expected a redis.Redis or redis.RedisCluster, got {kind}{remedy}")
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        if not pool.is_master:
            raise InvalidRecord("client", "is of Sentinel.slave_for, but replicas take no writes; use master_for")
        return GivenSentinel(pool, _dialer)
    if pool.connection_class.__module__.partition(".")[0] == "fakeredis":
        return LikeFake(client)
    return LikeClient(client)


def _cluster_dialer(client: RedisCluster) -> Dialer:
    """Return a dialer with the settings of the connections of a synchronous `RedisCluster`."""
    refuse_replicas(client)
    if client.user_on_connect_func is not None:
        raise _unsupported("redis_connect_func")
    node: Any = client.get_default_node()  # type: ignore[no-untyped-call]
    kind: type = node.redis_connection.connection_pool.connection_class if node else blocking.Connection
    settings = {**client.nodes_manager.connection_kwargs, "redis_connect_func": None}
    return _dialer(kind, settings)


def _dialer(kind: type, settings: Mapping[str, Any]) -> Dialer:
    """Return a dialer with the settings of a synchronous connection.

    Raises:
        InvalidRecord: the connections have a class, a function or a check of their own, which would be lost.
    """
    if kind not in (*PLAIN, *ENCRYPTED, *UNIX, getattr(blocking, "CacheProxyConnection", None)):
        raise InvalidRecord(
            "client", f"has connections of the class {kind.__module__}.{kind.__qualname__}; pass a URL, or a client "
            "with connections of redis-py"
        )  # fmt: skip
    if settings.get("redis_connect_func") is not None:
        raise _unsupported("redis_connect_func")
    is_encrypted = kind in ENCRYPTED
    for name, value in settings.items():
        if is_encrypted and name.startswith("ssl_") and name not in TLS and value:
            raise _unsupported(name)
    taken = {
        name: value
        for name, value in settings.items()
        if (name in SETTINGS - IGNORED or (is_encrypted and name in TLS)) and value is not None
    }
    if not isinstance(taken.get("socket_keepalive_options", {}), Mapping):  # a mark of redis-py for its defaults
        del taken["socket_keepalive_options"]
    if kind in UNIX:
        for name in ("socket_keepalive", "socket_keepalive_options"):
            taken.pop(name, None)
    limit = settings.get("max_connections")
    if limit is not None and limit < UNLIMITED:
        taken["max_connections"] = limit
    if is_encrypted:
        return Dialer(own.SSLConnection, taken)
    return Dialer(own.UnixDomainSocketConnection if kind in UNIX else own.Connection, taken)


def _unsupported(name: str) -> InvalidRecord:
    return InvalidRecord("client", f"has the setting {name!r}, which connections of this cache cannot have; pass a URL")
