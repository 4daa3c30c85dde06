"""How to get to the servers: over a client that the caller gave, or from a URL."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from lash_redis import topology
from lash_redis.errors import BackendError, InvalidRecord
from lash_redis.topology import LOOK_TIMEOUT, NEVER, Address, Clients, Cluster, Node, OneServer, Sentinels, Topology

if TYPE_CHECKING:
    from fakeredis import FakeServer

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection: a wrong address must not hang a worker. `?socket_connect_timeout=` overrides it."""
REPLY_TIMEOUT = 10.0
"""Seconds to wait for the replies of a round trip. `?socket_timeout=` overrides it."""


SENTINEL_PORT: Final = 26379
PORT: Final = 6379

PLAIN: Final = frozenset(
    {
        "credential_provider", "username", "password", "db", "client_name", "driver_info", "encoding",
        "encoding_errors", "health_check_interval", "max_connections", "protocol", "legacy_responses",
        "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "socket_read_size", "socket_timeout",
    }
)  # fmt: skip
"""The settings of a given client, with those of TLS, that connections of our own to its replicas get."""


UNSAYABLE: Final = frozenset(
    {
        "connection_class", "credential_provider", "decode_responses", "encoder_class", "parser_class",
        "redis_connect_func", "retry",
    }
)  # fmt: skip
"""Settings of which a URL can give but a name, which redis-py then takes for the thing itself."""


@runtime_checkable
class Connector(Protocol):
    """`open` is awaited before the first command of each process and event loop, which closes what it got by itself.

    `close` ends what all of them share.
    """

    @property
    def resends(self) -> bool:
        """Whether the client itself sends a command again, so that a failure does not tell how often it was sent."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether it leads to a cluster, whose channels belong to a slot as keys do."""
        ...

    async def open(self) -> Topology: ...

    async def close(self) -> None: ...


class _Ours:
    """Connections of our own. None of them sends again by itself: `backend.py` is the one place that does."""

    resends = False
    sharded = False

    async def close(self) -> None:
        """Nothing is shared."""


class Given:
    """The caller's own client: used, never configured, never closed."""

    sharded = False

    def __init__(self, client: redis.Redis) -> None:
        settings = client.connection_pool.connection_kwargs
        retry = settings.get("retry")
        # Without a policy of its own a connection still tries once more where it was asked to retry on some errors.
        implied = bool(settings.get("retry_on_error") or settings.get("retry_on_timeout"))
        self.resends = implied if retry is None else getattr(retry, "_retries", 1) != 0
        self._client = client
        self._process = os.getpid()

    async def open(self) -> Topology:
        if self._process != os.getpid():
            raise BackendError("this client was made before the process forked; a child needs a client of its own")
        return await self._open()

    async def _open(self) -> Topology:
        return OneServer(self._client, limit=self._client.connection_pool.max_connections, ours=False)

    async def close(self) -> None:
        """The caller closes it."""


class GivenSentinel(Given):
    """The caller's `Sentinel.master_for`. To replicas it leads by connections of our own, made like its."""

    def __init__(self, client: redis.Redis, pool: SentinelConnectionPool) -> None:
        super().__init__(client)
        kind = SSLConnection if issubclass(pool.connection_class, SSLConnection) else Connection
        self._clients = Clients(kind, {**_plain(pool.connection_kwargs), "max_connections": pool.max_connections})
        self._pool = pool

    async def _open(self) -> Topology:
        primary = Node(self._client, self._pool.max_connections)
        return Sentinels(self._pool.sentinel_manager, self._pool.service_name, self._clients, given=primary)


class GivenCluster(Given):
    """The caller's `RedisCluster`, over its own connections; its own way of sending again is not used."""

    sharded = True

    def __init__(self, client: redis.RedisCluster) -> None:
        self.resends = False
        self._process = os.getpid()
        self._cluster = client
        settings: dict[str, Any] = client.connection_kwargs
        self._clients = Clients(settings["connection_class"], _plain(settings))

    async def _open(self) -> Topology:
        return topology.GivenCluster(self._cluster, self._clients)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in PLAIN or name.startswith("ssl_")}


class ByUrl(_Ours):
    """`redis://`, `rediss://` and `unix://`, with the options that `redis.asyncio.from_url` takes."""

    def __init__(self, url: str) -> None:
        self._clients, self._where = _clients(url)

    async def open(self) -> Topology:
        return OneServer(self._clients.client(**self._where), limit=self._clients.limit, ours=True)


class ByCluster(_Ours):
    """`redis+cluster://`, or `rediss+cluster://` over TLS: any nodes of the cluster; it tells the others."""

    sharded = True

    def __init__(self, url: str) -> None:
        self._seeds, rest = _several(url, PORT)
        if _split(url).path not in ("", "/", "/0"):
            raise InvalidRecord("url", "a cluster has database 0 alone")
        self._clients, _ = _clients(rest)

    async def open(self) -> Topology:
        return Cluster(self._seeds, self._clients)


class BySentinel(_Ours):
    """`redis+sentinel://`: sentinels, and the name of the service whose primary is meant.

    User and password are those of the data nodes; the sentinels' are `?sentinel_username=` and `?sentinel_password=`.
    """

    def __init__(self, url: str) -> None:
        self._sentinels, rest = _several(url, SENTINEL_PORT)
        service, _, db = _split(url).path.strip("/").partition("/")
        if not service or not (db.isdecimal() or not db):
            raise InvalidRecord(
                "url", "redis+sentinel:// takes sentinels, the name of a service, and perhaps a database"
            )
        self._service = unquote(service)
        split = _split(rest)
        query = dict(parse_qsl(split.query))
        self._own = {
            name.removeprefix("sentinel_"): query.pop(name)
            for name in ("sentinel_username", "sentinel_password")
            if name in query
        }
        self._clients, _ = _clients(split._replace(path=f"/{db}", query=urlencode(query)).geturl())

    async def open(self) -> Topology:
        settings = {"socket_timeout": LOOK_TIMEOUT, "socket_connect_timeout": LOOK_TIMEOUT, "retry": NEVER, **self._own}
        manager: Sentinel = Sentinel(self._sentinels, sentinel_kwargs=settings)  # type: ignore[no-untyped-call]
        return Sentinels(manager, self._service, self._clients)


def _split(url: str) -> SplitResult:
    """The parts of a URL; what the standard library says of one that has none may quote a password."""
    try:
        return urlsplit(url)
    except ValueError:
        raise InvalidRecord("url", "has an address that cannot be understood") from None


def _clients(url: str) -> tuple[Clients, dict[str, Any]]:
    """How clients are made by `url`, and where it leads: a host and port, or a path."""
    try:
        settings: dict[str, Any] = {**parse_url(url)}
    except ValueError as error:
        # What the standard library says of an address may quote a password that holds one of /, ? and #.
        told = str(error) if str(error).startswith("Invalid value for") else "has an address that cannot be understood"
        raise InvalidRecord("url", told) from None
    for name in sorted(UNSAYABLE & settings.keys()):
        if isinstance(settings[name], str):
            raise InvalidRecord("url", f"cannot set {name!r}")
    if settings.get("max_connections", 0) < 0:
        raise InvalidRecord("url", "takes a max_connections of at least 0")
    kind: type[AbstractConnection] = settings.pop("connection_class", Connection)
    where: dict[str, Any] = {name: settings.pop(name) for name in ("host", "port", "path") if name in settings}
    if kind is not redis.UnixDomainSocketConnection:
        where = {"host": "localhost", "port": PORT, **where}
    usual = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": REPLY_TIMEOUT}
    try:
        return Clients(kind, {**usual, **settings}), where
    except (TypeError, ValueError, exceptions.RedisError) as error:
        raise InvalidRecord("url", str(error)) from error


def _several(url: str, port: int) -> tuple[list[Address], str]:
    """The addresses that a URL names, and a `redis://` or `rediss://` URL of the first with all its other parts."""
    scheme, _, rest = url.partition("+")
    _, _, rest = rest.partition("://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    secret, at, hosts = rest[:end].rpartition("@")
    addresses = []
    for place, host in enumerate(hosts.split(","), 1):
        name, given = (host[1:].partition("]")[::2]) if host.startswith("[") else host.partition(":")[::2]
        given = given.removeprefix(":")
        if not name or not (given.isdecimal() or not given) or not 0 < int(given or port) < 65_536:
            raise InvalidRecord("url", f"takes host:port,host:port; the {place}. of them is not one")
        addresses.append((name, int(given or port)))
    return addresses, f"{scheme}://{secret}{at}localhost{rest[end:]}"


class Embedded(_Ours):
    """A server process of ours, started when it is first needed."""

    def __init__(self, directory: Path | None) -> None:
        from lash_redis.embedded import EmbeddedServer, wheel_binary

        wheel_binary()
        self._server = EmbeddedServer(directory)

    async def open(self) -> Topology:
        await asyncio.to_thread(self._server.start)
        return await ByUrl(self._server.url).open()

    async def close(self) -> None:
        await asyncio.to_thread(self._server.stop)


class InMemory(_Ours):
    """fakeredis in this process."""

    def __init__(self) -> None:
        self._server: FakeServer | None = None
        if find_spec("fakeredis") is None:
            raise BackendError("memory:// needs fakeredis: pip install 'lash-redis[memory]'")

    async def open(self) -> Topology:
        from fakeredis import FakeAsyncRedis, FakeServer

        self._server = self._server or FakeServer()
        client = FakeAsyncRedis(server=self._server)
        return OneServer(client, limit=client.connection_pool.max_connections, ours=True)


def connector(url: str) -> Connector:
    """What opens `url`. Connects to nothing and starts nothing yet."""
    if not isinstance(url, str):
        raise InvalidRecord("url", f"takes a string, not {type(url).__name__}")
    scheme, _, rest = url.partition("://")
    match scheme:
        case "redis" | "rediss" | "unix":
            return ByUrl(url)
        case "redis+cluster" | "rediss+cluster":
            return ByCluster(url)
        case "redis+sentinel":
            return BySentinel(url)
        case "embedded":
            return Embedded(Path(rest) if rest else None)
        case "memory" if not rest:
            return InMemory()
    known = (
        "redis://, rediss://, unix://, redis+cluster://, rediss+cluster://, redis+sentinel://, embedded://[directory] "
        "or memory://"
    )
    raise InvalidRecord("url", f"takes {known}, not {scheme!r}")


def given(client: object) -> Connector:
    """How to get to the servers of a client that the caller made."""
    checked = checked_client(client)
    if isinstance(checked, redis.RedisCluster):
        return GivenCluster(checked)
    pool = checked.connection_pool
    if isinstance(pool, SentinelConnectionPool) and pool.is_master:
        return GivenSentinel(checked, pool)
    return Given(checked)


def checked_client(client: object) -> redis.Redis | redis.RedisCluster:
    """`client`, if this package can work with it."""
    if isinstance(client, redis.RedisCluster):
        settings = client.connection_kwargs
        if client.read_from_replicas or getattr(client, "load_balancing_strategy", None):
            raise InvalidRecord("client", "was made to read from replicas, where a session may be an earlier one")
    elif isinstance(client, redis.Redis):
        settings = client.connection_pool.connection_kwargs
    else:
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        raise InvalidRecord("client", f"takes a redis.asyncio.Redis or RedisCluster, not {kind}")
    if settings.get("decode_responses"):
        raise InvalidRecord(
            "client", "was made with decode_responses=True, but sessions are bytes; make it with decode_responses=False"
        )
    encoding = settings.get("encoding", "utf-8")
    if str(encoding).lower().replace("_", "-") not in ("utf-8", "utf8"):
        raise InvalidRecord("client", f"was made with encoding={encoding!r}, but ids are UTF-8; leave it out")
    return client
