"""Open connections: redis-py connects and authenticates, then `Connection` takes over the transport.

redis-py implements URLs, TLS, credential providers, client names, databases and both versions of RESP. After the
greeting, redis-py neither reads from the connection nor writes to it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Final, TypeAlias

import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lash_redis.transport import remedies
from lash_redis.transport.connection import Connection
from lash_redis.transport.failures import DENIED, Unreachable, Unusable

Where: TypeAlias = Mapping[str, Any]
"""The address of a server: `host` and `port`, or `path`."""

CONNECT_TIMEOUT: Final = 3.0
"""The time, in seconds, to open, encrypt and authenticate a connection. `?socket_connect_timeout=` overrides it."""
REPLY_TIMEOUT: Final = 5.0
"""The longest wait for a reply, in seconds, before the connection is given up. `?socket_timeout=` overrides it."""
MAX_CONNECTIONS: Final = 100
"""The largest number of connections to one server, watches not counted. `?max_connections=` overrides it."""

NEVER: Final = Retry(NoBackoff(), 0)
UNBOUNDED: Final = 2**31 - 1
PROBE_TIMEOUT: Final = 0.5
"""The time, in seconds, to test whether a port accepts connections, for an error message."""

NO_NOTICES: dict[str, Any] = {}
"""Settings without the maintenance notices of Redis Enterprise, pushes that only the parser of redis-py handles."""
if "maint_notifications_config" in signature(AbstractConnection.__init__).parameters:  # redis-py 7 and later
    from redis.maint_notifications import MaintNotificationsConfig

    NO_NOTICES["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)

FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
"""The settings whose value is a path."""


def address_of(where: Where) -> str:
    """Return the name of a server for messages, without credentials."""
    return f"unix socket {where['path']}" if "path" in where else f"{where.get('host')}:{where.get('port')}"


async def _as_reader(connection: AbstractConnection) -> None:
    """Greet a replica of a cluster so that it answers reads instead of redirecting them to its primary."""
    await connection.on_connect()
    await connection.send_command("READONLY")
    await connection.read_response()


class Dialer:
    """Opens connections with the same settings. No connection retries by itself."""

    def __init__(self, kind: type[AbstractConnection], settings: Mapping[str, Any]) -> None:
        settings = {**settings, **NO_NOTICES, "retry": NEVER}
        self.limit: int = settings.pop("max_connections", None) or MAX_CONNECTIONS
        self.reply_timeout: float = settings.pop("socket_timeout", None) or REPLY_TIMEOUT
        self.connect_timeout: float = settings.pop("socket_connect_timeout", None) or CONNECT_TIMEOUT
        self.idle_limit: float = settings.pop("health_check_interval", None) or 0.0
        self._kind = kind
        self._settings = settings
        self._is_encrypted = issubclass(kind, SSLConnection)
        kind(**settings)  # opens no connection, but raises on a wrong setting
        self.shapes: dict[Any, Any] = dict(self.client().response_callbacks)
        """The functions by which redis-py converts replies, by command name."""

    async def open(self, where: Where, on_unusable: Callable[[Connection], None], *, replica: bool) -> Connection:
        """Open and authenticate a connection. With `replica`, a replica of a cluster answers reads on it.

        Raises:
            Unreachable: no connection could be opened; a later attempt may succeed.
            Unusable: no attempt can succeed, because a setting is wrong.
            redis.exceptions.RedisError: the server refused, for example because it is loading its data.
        """
        connection = Connection(address_of(where), on_unusable)
        # One timeout covers all steps. redis-py would time each write by `wait_for`, which before Python 3.12 may
        # swallow a cancellation.
        dialed = self._kind(
            **self._settings,
            **where,
            socket_timeout=None,
            socket_connect_timeout=None,
            redis_connect_func=_as_reader if replica else None,
        )
        try:
            async with asyncio.timeout(self.connect_timeout):
                await dialed.connect()  # type: ignore[no-untyped-call]
        except (exceptions.RedisError, OSError, ValueError) as error:  # TimeoutError is an OSError
            await dialed.disconnect(nowait=True)
            raise await self._explained(error, where) from error
        except BaseException:
            await dialed.disconnect(nowait=True)
            raise
        # redis-py has read only the replies to its greeting, because a server pushes only what a client subscribed to.
        writer, dialed._reader, dialed._writer = dialed._writer, None, None
        if writer is None:
            raise Unreachable(f"{connection.address} closed the connection at once")
        connection.take_over(writer.transport, writer)  # type: ignore[arg-type]  # it reads, too
        return connection

    def client(self, **where: Any) -> redis.Redis:
        """Return a client of redis-py with the same settings, for the connections of a watch."""
        timeouts = {"socket_timeout": self.reply_timeout, "socket_connect_timeout": self.connect_timeout}
        pool = redis.ConnectionPool(
            connection_class=self._kind, max_connections=UNBOUNDED, **{**self._settings, **timeouts, **where}
        )
        return redis.Redis.from_pool(pool)

    async def _explained(self, error: Exception, where: Where) -> Exception:
        """Return the error to raise, which names the address and the likely cause."""
        address = address_of(where)
        if isinstance(error, DENIED):
            were_given = any(self._settings.get(name) for name in ("username", "password", "credential_provider"))
            if were_given:
                return type(error)(f"{address} refused the credentials: {error}; {remedies.CREDENTIALS_IN_URL}")
            return type(error)(f"{address} requires a password; {remedies.PASSWORD_IN_URL}")
        cause = _cause(error)
        if isinstance(cause, ssl.SSLError):
            return _tls_error(cause, address)
        if isinstance(error, exceptions.ResponseError) and "DB index" in str(error):
            return Unusable(f"{address} has no database {self._settings.get('db')}: {error}; {remedies.DATABASE}")
        if isinstance(error, exceptions.ResponseError | exceptions.BusyLoadingError):
            return error
        missing = self._missing_file()
        if missing is not None and isinstance(cause, FileNotFoundError):
            return Unusable(missing)
        if isinstance(cause, TimeoutError):
            return Unreachable(await self._silence(where, address))
        if isinstance(cause, ConnectionResetError | asyncio.IncompleteReadError) or "closed" in str(error).lower():
            hint = "" if self._is_encrypted or "path" in where else "; if it is a TLS port, use rediss://"
            return Unreachable(f"{address} closed the connection before it was ready{hint}")
        return Unreachable(f"cannot connect to {address}: {_reason(cause)}")

    def _missing_file(self) -> str | None:
        """Return a message about a setting whose file does not exist; None if all exist."""
        for name in FILES:
            path = self._settings.get(name)
            if path and not os.path.exists(path):
                return f"{name}: there is no file {path!r}; check the path"
        return None

    async def _silence(self, where: Where, address: str) -> str:
        """Explain a connection timeout: no server listens, or the server speaks another protocol."""
        limit = f"within {self.connect_timeout:g} seconds"
        if "path" in where or not await _accepts_connections(where):
            return f"cannot connect to {address}: no answer {limit}; check the address and the firewall"
        if self._is_encrypted:
            return f"{address} did not answer the TLS handshake {limit}; if it is a port without TLS, use redis://"
        return f"{address} accepted the connection and did not answer {limit}; is it a Redis server?"


def _cause(error: BaseException) -> BaseException:
    """Return the innermost OSError in the causes of an error; the error itself if there is none."""
    found, each = error, error.__cause__ or error.__context__
    while each is not None:
        if isinstance(each, OSError):
            found = each
        each = each.__cause__ or each.__context__
    return found


def _tls_error(error: ssl.SSLError, address: str) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        verdict = error.verify_message
        remedy = remedies.certificate_remedy(verdict)
        return Unusable(f"the certificate of {address} was not accepted: {verdict}; {remedy}")
    reason = error.reason or str(error)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return Unusable(f"{address} does not speak TLS; if it is a port without TLS, use redis://")
    return Unusable(f"TLS with {address} failed: {reason}; check ssl_ca_certs, ssl_certfile and ssl_keyfile")


def _reason(cause: BaseException) -> str:
    """Return the text of the operating system's error. asyncio joins the failures of several addresses in one text."""
    number = re.search(r"\[Errno (\d+)\]", str(cause))
    if number is None or isinstance(cause, socket.gaierror):
        return str(cause) or type(cause).__name__
    hint = "; is the server running?" if int(number[1]) in (errno.ECONNREFUSED, errno.ENOENT) else ""
    return f"{os.strerror(int(number[1]))}{hint}"


async def _accepts_connections(where: Where) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            _, writer = await asyncio.open_connection(where["host"], where["port"])
    except OSError:
        return False
    writer.close()
    return True
