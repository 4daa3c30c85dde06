"""Where a client comes from: given by the caller, or opened by us from a URL and closed again."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import hiredis
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lash_redis.errors import BackendError, InvalidRecord

if TYPE_CHECKING:
    from fakeredis import FakeServer

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection: a wrong address must not hang a worker. `?socket_connect_timeout=` overrides it."""
REPLY_TIMEOUT = 10.0
"""Seconds to wait for a reply. `?socket_timeout=` overrides it."""


@runtime_checkable
class Connector(Protocol):
    """`open` is awaited before the first command of a process and event loop; `close` once, at the end."""

    @property
    def resends(self) -> bool:
        """Whether the client itself sends a command again, so that a failure does not tell how often it was sent."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether it leads to a cluster, whose channels belong to a slot as keys do."""
        ...

    async def open(self) -> redis.Redis: ...

    async def close(self) -> None: ...


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

    async def open(self) -> redis.Redis:
        if self._process != os.getpid():
            raise BackendError("this client was made before the process forked; a child needs a client of its own")
        return self._client

    async def close(self) -> None:
        """The caller closes it."""


class _Opened:
    """A client of our own. It never sends again by itself: `backend.py` is the one place that does."""

    resends = False
    sharded = False

    def __init__(self) -> None:
        self._client: redis.Redis | None = None

    def _connect(self, url: str) -> redis.Redis:
        client = redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=REPLY_TIMEOUT,
        )
        pool = checked_client(client).connection_pool
        kind = pool.connection_class
        pool.connection_class = type(f"Packing{kind.__name__}", (_Packing, kind), {})
        self._client = client
        return client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


class _Packing:
    """Packs a command in C, as redis-py's blocking connections do. In Python, as its asyncio ones do, the 45 arguments
    of a commit take 38 µs instead of 7."""

    def pack_command(self, *args: Any) -> list[bytes]:
        return [hiredis.pack_command(args)]


class ByUrl(_Opened):
    """`redis://`, `rediss://` and `unix://`, with the options that `redis.asyncio.from_url` takes."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        try:
            self._connect(url)  # connects to nothing yet, but knows a wrong URL
        except (ValueError, TypeError) as error:
            raise InvalidRecord("url", str(error)) from error

    async def open(self) -> redis.Redis:
        return self._connect(self._url)


class Embedded(_Opened):
    """A server process of ours, started when it is first needed."""

    def __init__(self, directory: Path | None) -> None:
        from lash_redis.embedded import EmbeddedServer, wheel_binary

        super().__init__()
        wheel_binary()
        self._server = EmbeddedServer(directory)

    async def open(self) -> redis.Redis:
        await asyncio.to_thread(self._server.start)
        return self._connect(self._server.url)

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            await asyncio.to_thread(self._server.stop)


class InMemory(_Opened):
    """fakeredis in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._server: FakeServer | None = None
        if find_spec("fakeredis") is None:
            raise BackendError("memory:// needs fakeredis: pip install 'lash-redis[memory]'")

    async def open(self) -> redis.Redis:
        from fakeredis import FakeAsyncRedis, FakeServer

        self._server = self._server or FakeServer()
        self._client = FakeAsyncRedis(server=self._server)
        return self._client


def connector(url: str) -> Connector:
    """What opens `url`. Connects to nothing and starts nothing yet."""
    if not isinstance(url, str):
        raise InvalidRecord("url", f"takes a string, not {type(url).__name__}")
    scheme, _, rest = url.partition("://")
    match scheme:
        case "redis" | "rediss" | "unix":
            return ByUrl(url)
        case "embedded":
            return Embedded(Path(rest) if rest else None)
        case "memory" if not rest:
            return InMemory()
    known = "redis://, rediss://, unix://, embedded://[directory] or memory://"
    raise InvalidRecord("url", f"takes {known}, not {urlsplit(url)._replace(netloc='', query='').geturl()!r}")


def checked_client(client: object) -> redis.Redis:
    """`client`, if this package can work with it."""
    if not isinstance(client, redis.Redis):
        kind = type(client)
        raise InvalidRecord("client", f"takes a redis.asyncio.Redis, not {kind.__module__}.{kind.__qualname__}")
    if client.connection_pool.connection_kwargs.get("decode_responses"):
        raise InvalidRecord(
            "client", "was made with decode_responses=True, but sessions are bytes; make it with decode_responses=False"
        )
    encoding = client.connection_pool.connection_kwargs.get("encoding", "utf-8")
    if str(encoding).lower().replace("_", "-") not in ("utf-8", "utf8"):
        raise InvalidRecord("client", f"was made with encoding={encoding!r}, but ids are UTF-8; leave it out")
    return client
