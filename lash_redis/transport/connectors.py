"""The ways to connect to servers: by a URL, or with a client that the caller made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import redis as synchronous
import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from lash_redis.errors import BackendError, InvalidRecord
from lash_redis.transport import urls
from lash_redis.transport.backend import Connector
from lash_redis.transport.cleanup import clean_up
from lash_redis.transport.cluster import Cluster
from lash_redis.transport.dialer import Dialer
from lash_redis.transport.given import GivenNode, shared_limit
from lash_redis.transport.group import DISCOVERY_TIMEOUT, Address
from lash_redis.transport.node import OwnNode
from lash_redis.transport.sentinel import Sentinels
from lash_redis.transport.topology import OneServer, Topology

if TYPE_CHECKING:
    from fakeredis import FakeServer

SETTINGS: Final = frozenset(
    {
        "client_name", "credential_provider", "db", "driver_info", "encoding", "encoding_errors",
        "health_check_interval", "legacy_responses", "max_connections", "password", "protocol",
        "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "socket_read_size", "socket_timeout",
        "username",
    }
)  # fmt: skip
"""The settings of a given client that this package uses for its own connections, next to the settings of TLS."""


class Own:
    """Connections that this package opens. Only the backend retries; a connection does not."""

    resends = False
    sharded = False

    async def close(self) -> None:
        """Do nothing, because processes and event loops share no resource."""


class ByUrl(Own):
    """One server by `redis://`, `rediss://` or `unix://`, with the options of `redis.asyncio.from_url`."""

    def __init__(self, url: str) -> None:
        parts = urls.read(url)
        if parts.scheme == "unix":
            if parts.path in ("", "/"):
                raise InvalidRecord("url", "expected the path of a socket, as in unix:///run/redis.sock")
            if "@" in parts.path:
                raise InvalidRecord("url", "has an '@' in its path; write %40 for it, and %2F for a '/' in a password")
            self._where: dict[str, Any] = {"path": unquote(parts.path)}
            self._dialer = urls.dialer(parts)
            return
        if len(parts.hosts) > 1:
            raise InvalidRecord("url", "expected one host; for several, use redis+cluster:// or redis+sentinel://")
        ((host, port),) = parts.hosts
        self._where = {"host": host or "localhost", "port": port}
        self._dialer = urls.dialer(parts, database=urls.database(parts.path))

    async def open(self) -> Topology:
        return OneServer(OwnNode(self._dialer, self._where))


class ByCluster(Own):
    """A cluster by `redis+cluster://`, or `rediss+cluster://` over TLS. Any of its nodes can be in the URL."""

    sharded = True

    def __init__(self, url: str) -> None:
        parts = urls.read(url)
        self._seeds = _named(parts)
        if urls.database(parts.path):
            raise InvalidRecord("url", "names a database, but a cluster has only database 0; leave it out")
        self._dialer = urls.dialer(parts)

    async def open(self) -> Topology:
        return Cluster(self._seeds, self._dialer)


class BySentinel(Own):
    """A service by `redis+sentinel://`, or `rediss+sentinel://` over TLS: the sentinels and the name of the service.

    The user and password of the URL are for the data nodes. `?sentinel_username=` and `?sentinel_password=` are for the
    sentinels. TLS is used for both.
    """

    def __init__(self, url: str) -> None:
        parts = urls.read(url, port=urls.SENTINEL_PORT)
        self._sentinels = _named(parts)
        service, _, database = parts.path.strip("/").partition("/")
        if not service or "@" in service:
            raise InvalidRecord(
                "url", "expected a service name after the sentinels, as in redis+sentinel://host/name/0"
            )
        self._service = unquote(service)
        options = dict(parts.options)
        own = {
            name.removeprefix("sentinel_"): options.pop(name)
            for name in ("sentinel_username", "sentinel_password")
            if name in options
        }
        parts = urls.Url(parts.scheme, parts.credentials, parts.hosts, parts.path, options)
        self._dialer = urls.dialer(parts, database=urls.database(database))
        shared = {name: value for name, value in options.items() if name.startswith("ssl_")}
        asked = urls.Url(parts.scheme, own, parts.hosts, parts.path, shared)
        self._sentinel_dialer = urls.dialer(asked, socket_timeout=DISCOVERY_TIMEOUT)

    async def open(self) -> Topology:
        sentinels = [(address, self._sentinel_dialer) for address in self._sentinels]
        return Sentinels(sentinels, self._service, self._dialer)


def _named(parts: urls.Url) -> list[Address]:
    """Return the hosts of a URL in which no host may be empty."""
    for place, (host, _) in enumerate(parts.hosts, 1):
        if not host:
            raise InvalidRecord("url", f"invalid address at position {place}: expected host:port")
    return parts.hosts


class Embedded(Own):
    """A server that this process starts at the first request, and that only forked children share."""

    def __init__(self, directory: Path | None = None) -> None:
        from lash_redis.embedded import EmbeddedServer, wheel_binary

        wheel_binary()
        self._server = EmbeddedServer(directory)

    async def open(self) -> Topology:
        await asyncio.to_thread(self._server.start)
        return await ByUrl(self._server.url).open()

    async def close(self) -> None:
        await asyncio.to_thread(self._server.stop)


class EmbeddedDirectory(Embedded):
    """The server of a directory. The first process to need it runs it, and other processes connect to it.

    `close` ends the server if this process runs it. Another process then takes over. A forked child connects to the
    server that its parent runs.
    """

    async def open(self) -> Topology:
        """Create the directory, and wait for a server that starts and loads its data, for 30 s at most.

        Raises:
            BackendError: the server cannot be started or reached.
        """
        from lash_redis.transport.embedded import DirectoryServer

        await asyncio.to_thread(self._server.make_directory)
        topology = DirectoryServer(self._server, Dialer(redis.UnixDomainSocketConnection, {}))
        try:
            await topology.node(None, inf)
        except BaseException as error:
            await clean_up(topology.close, f"closing the connections to {topology.seeds}", after=error)
            if isinstance(error, exceptions.RedisError):
                raise BackendError(str(error)) from error
            raise
        return topology


class InMemory(Own):
    """A fakeredis server in this process, used through its client like a given client."""

    def __init__(self) -> None:
        self._server: FakeServer | None = None
        if find_spec("fakeredis") is None:
            raise BackendError("memory:// needs fakeredis: pip install 'lash-redis[memory]'")

    async def open(self) -> Topology:
        from fakeredis import FakeAsyncRedis, FakeServer

        self._server = self._server or FakeServer()
        return OneServer(GivenNode(FakeAsyncRedis(server=self._server), address="memory://", is_own=True))


def by_url(url: str) -> Connector:
    """Return the connector of a URL. It neither connects nor starts a server yet.

    Raises:
        InvalidRecord: the URL is invalid. The message quotes no part of it, because a part may contain a password.
        BackendError: the package that `embedded://` or `memory://` needs is not installed.
    """
    if not isinstance(url, str):
        raise InvalidRecord("url", f"expected a string, got {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    match scheme if separator else "":
        case "redis" | "rediss" | "unix":
            return ByUrl(url)
        case "redis+cluster" | "rediss+cluster":
            return ByCluster(url)
        case "redis+sentinel" | "rediss+sentinel":
            return BySentinel(url)
        case "embedded":
            return _embedded(rest)
        case "memory" if not rest:
            return InMemory()
    raise InvalidRecord(
        "url",
        "unknown scheme: expected redis://, rediss://, unix://, redis+cluster://, rediss+cluster://, "
        "redis+sentinel://, rediss+sentinel://, embedded://[directory] or memory://",
    )


def _embedded(rest: str) -> Connector:
    if "?" in rest or "#" in rest:
        raise InvalidRecord("url", "embedded:// has no options; in a directory write %3F for '?', %23 for '#'")
    directory = directory_of(f"embedded://{rest}")
    return Embedded() if directory is None else EmbeddedDirectory(directory)


def directory_of(url: str) -> Path | None:
    """Return the directory of an `embedded://` URL; None for one without a directory, and for another URL.

    Raises:
        InvalidRecord: it names the home directory of an unknown user.
    """
    rest = url.removeprefix("embedded://")
    if rest in ("", url):
        return None
    try:
        directory = Path(unquote(rest))
        return directory.expanduser() if rest.startswith("~") else directory
    except RuntimeError:
        raise InvalidRecord("url", "names the home directory of an unknown user; write %7E for a literal '~'") from None


# With a client of the caller


class Given:
    """A client of the caller. This package uses its methods, and never configures or closes it."""

    sharded = False

    def __init__(self, client: redis.Redis) -> None:
        settings = client.connection_pool.connection_kwargs
        retry = settings.get("retry")
        # A connection without a retry policy still retries once if it was set to retry on some errors.
        implied = bool(settings.get("retry_on_error") or settings.get("retry_on_timeout"))
        self.resends = implied if retry is None else getattr(retry, "_retries", 1) != 0
        self._client = client
        self._process = os.getpid()

    async def open(self) -> Topology:
        if self._process != os.getpid():
            raise BackendError("the client was made before the process forked; make a new client in the child")
        return OneServer(GivenNode(self._client))

    async def close(self) -> None:
        """Do nothing: the caller closes the client."""


class GivenSentinel(Own):
    """The pool of a caller's `Sentinel.master_for`. The cache opens its own connections with the same settings.

    `dialer_of` makes a dialer with the settings of a class of connections. Synchronous clients have the same pools.
    """

    def __init__(self, pool: Any, dialer_of: Callable[[type, Mapping[str, Any]], Dialer]) -> None:
        def addressed(sentinel: Any) -> tuple[Address, Dialer]:
            known = sentinel.connection_pool
            settings = {"socket_timeout": DISCOVERY_TIMEOUT, **known.connection_kwargs}
            return (settings["host"], int(settings["port"])), dialer_of(known.connection_class, settings)

        manager = pool.sentinel_manager
        self._service: str = pool.service_name
        settings = {**pool.connection_kwargs, "max_connections": pool.max_connections}
        self._dialer = dialer_of(pool.connection_class, settings)
        self._sentinels = [addressed(sentinel) for sentinel in manager.sentinels]
        self._minimum_others: int = manager.min_other_sentinels
        self._forced_host: str | None = getattr(manager, "_force_master_ip", None)

    async def open(self) -> Topology:
        return Sentinels(
            self._sentinels,
            self._service,
            self._dialer,
            minimum_others=self._minimum_others,
            forced_host=self._forced_host,
        )


class GivenCluster(Own):
    """A `RedisCluster` of the caller. The cache opens its own connections with the same settings."""

    sharded = True

    def __init__(self, client: Any, dialer: Dialer) -> None:
        self._dialer = dialer
        self._seeds = [(node.host, int(node.port)) for node in client.nodes_manager.startup_nodes.values()]
        self._remap = getattr(client.nodes_manager, "address_remap", None)

    async def open(self) -> Topology:
        return Cluster(self._seeds, self._dialer, self._remap)


def refuse_replicas(client: Any) -> None:
    """Raise InvalidRecord if a client of a cluster may read from replicas."""
    if client.read_from_replicas or getattr(client, "load_balancing_strategy", None):
        raise InvalidRecord(
            "client", "reads from stale replicas; make it without read_from_replicas and load_balancing_strategy"
        )


def _like(kind: type, settings: Mapping[str, Any]) -> Dialer:
    own = {name: value for name, value in settings.items() if name in SETTINGS or name.startswith("ssl_")}
    return Dialer(SSLConnection if issubclass(kind, SSLConnection) else Connection, own)


def given(client: object) -> Connector:
    """Return the connector of a client that the caller made.

    Raises:
        InvalidRecord: it is not a client of `redis.asyncio`, or it would not return the stored bytes.
    """
    checked = checked_client(client)
    if isinstance(checked, redis.RedisCluster):
        settings: dict[str, Any] = checked.connection_kwargs
        return GivenCluster(checked, _like(settings.get("connection_class", Connection), settings))
    pool = checked.connection_pool
    if isinstance(pool, SentinelConnectionPool) and pool.is_master:
        return GivenSentinel(pool, _like)
    return Given(checked)


def _is_synchronous(client: object) -> bool:
    return isinstance(client, synchronous.Redis | synchronous.RedisCluster)


def checked_client(client: object) -> redis.Redis | redis.RedisCluster:
    """Return a client that this package can work with, or raise `InvalidRecord`."""
    if isinstance(client, redis.RedisCluster):
        settings = client.connection_kwargs
        refuse_replicas(client)
    elif isinstance(client, redis.Redis):
        settings = client.connection_pool.connection_kwargs
    else:
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        remedy = "; for it use lash_redis.blocking.BlockingSessionCache" if _is_synchronous(client) else ""
        raise InvalidRecord("client", f"expected a redis.asyncio.Redis or RedisCluster, got {kind}{remedy}")
    if isinstance(client, redis.Redis) and shared_limit(client) < 1:
        raise InvalidRecord(
            "client.max_connections", "expected at least 2 with single_connection_client=True, which keeps one, got 1"
        )
    if settings.get("decode_responses"):
        raise InvalidRecord(
            "client", "was made with decode_responses=True, but sessions are bytes; make it with decode_responses=False"
        )
    encoding = settings.get("encoding", "utf-8")
    if str(encoding).lower().replace("_", "-") not in ("utf-8", "utf8"):
        raise InvalidRecord("client", f"was made with encoding={encoding!r}, but ids are UTF-8; leave it out")
    return client
