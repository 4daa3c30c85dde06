"""Parse URLs strictly: an unknown part is refused, and no message quotes a part of a URL.

A password may contain any character. A message that quoted an address, a path or an option might show a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlencode

import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url

from lash_redis.errors import InvalidRecord
from lash_redis.transport.dialer import Dialer

PORT: Final = 6379
SENTINEL_PORT: Final = 26379

OBJECTS: Final = frozenset(
    {
        "connection_class", "credential_provider", "decode_responses", "encoder_class", "parser_class",
        "redis_connect_func", "retry",
    }
)  # fmt: skip
"""Settings that are objects, which a URL cannot contain."""


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of a URL; all except the path are decoded.

    `repr` shows only the scheme, because any other part may contain the password.
    """

    scheme: str
    credentials: Mapping[str, str]
    """`username` and `password`, if given."""
    hosts: list[tuple[str, int]]
    path: str
    """The path, not decoded, because the name of a service may contain a slash as %2F."""
    options: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<Url {self.scheme}://>"


def read(url: str, *, port: int = PORT) -> Url:
    """Parse a URL of one or several hosts. `port` is the port of a host without one.

    Raises:
        InvalidRecord: a part is invalid. The message names the part, and quotes nothing.
    """
    scheme, _, rest = url.partition("://")
    if "#" in rest:
        raise InvalidRecord("url", "contains '#'; in a password write %23")
    rest, _, query = rest.partition("?")
    if "@" in query:
        raise InvalidRecord("url", "contains '@' after '?'; in a password write %3F for '?', in an option %40 for '@'")
    authority, slash, path = rest.partition("/")
    secret, _, hosts = authority.rpartition("@")
    if scheme == "unix" and hosts:
        raise InvalidRecord("url", "expected unix:///path/to/socket, with three slashes")
    username, has_password, password = secret.partition(":")
    given = {"username": unquote(username), "password": unquote(password) if has_password else ""}
    return Url(
        scheme,
        {name: value for name, value in given.items() if value},
        [] if scheme == "unix" else [_host(each, place, port) for place, each in enumerate(hosts.split(","), 1)],
        slash + path,
        _options(query),
    )


def _host(text: str, place: int, port: int) -> tuple[str, int]:
    if text.startswith("["):
        name, bracket, number = text[1:].partition("]")
        is_whole = bool(bracket) and (not number or number.startswith(":"))
        number = number[1:]
    else:
        name, _, number = text.partition(":")
        is_whole = True
    is_number = number.isascii() and number.isdecimal() and len(number) < 6
    if not is_whole or not (is_number or not number) or not 0 < int(number or port) < 65_536:
        raise InvalidRecord("url", f"invalid address at position {place}: expected host:port")
    return unquote(name), int(number or port)


def _options(query: str) -> dict[str, str]:
    options = {}
    for each in filter(None, query.split("&")):
        name, equals, value = each.partition("=")
        if not equals or not name or not value:
            raise InvalidRecord("url", "contains an option without a value after '?'; in a password write %3F for '?'")
        if unquote(name) in options:
            raise InvalidRecord("url", "contains an option twice after '?'; in a password write %26 for '&'")
        options[unquote(name)] = unquote(value.replace("+", " "))
    return options


def database(path: str) -> int | None:
    """Parse the database number in a path; return None for an empty path.

    Raises:
        InvalidRecord: the path is not a number.
    """
    text = unquote(path).removeprefix("/").removesuffix("/")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidRecord(
            "url", "expected a database number after the host, as in redis://host/0; in a password write %2F for '/'"
        )
    return int(text)


def dialer(url: Url, *, database: int | None = None, **more: Any) -> Dialer:
    """Make a dialer with the credentials and options of a URL.

    Raises:
        InvalidRecord: an option is unknown, or its value is invalid.
    """
    for name in sorted(OBJECTS & url.options.keys()):
        raise InvalidRecord("url", f"cannot set the option {name!r}; pass a client instead")
    settings = _settings(url.options)
    if database is not None:
        if "db" in settings:
            raise InvalidRecord("url", "contains two databases, after the host and as the option db; omit one")
        settings["db"] = database
    for name in ("max_connections", "db", "socket_timeout", "socket_connect_timeout", "health_check_interval"):
        if not settings.get(name, 0) >= 0:  # written so that NaN is refused, too
            raise InvalidRecord("url", f"expected a {name} of at least 0")
    if str(settings.get("protocol", 2)) not in ("2", "3"):  # redis-py 5.3 raises an UnboundLocalError for others
        raise InvalidRecord("url", "expected protocol 2 or 3")
    kind: type[AbstractConnection] = Connection
    if url.scheme.startswith("rediss"):
        kind = SSLConnection
        # Before version 6, redis-py compares the host name with the certificate only if this option is set.
        settings.setdefault("ssl_check_hostname", settings.get("ssl_cert_reqs") != "none")
    elif url.scheme == "unix":
        kind = redis.UnixDomainSocketConnection
    try:
        return Dialer(kind, {**settings, **url.credentials, **more})
    except (TypeError, ValueError, exceptions.RedisError) as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        reason = f"unknown option {unknown[1]!r}" if unknown else str(error)
    raise InvalidRecord("url", reason)  # outside of the handler, so that no error context quotes a part of the URL


def _settings(options: Mapping[str, str]) -> dict[str, Any]:
    """Convert the options to values of their types, by the rules of redis-py."""
    try:
        settings: dict[str, Any] = {**parse_url(f"redis://localhost?{urlencode(options)}")}
    except ValueError as error:
        reason = str(error)
    else:
        return {name: value for name, value in settings.items() if name not in ("host", "port", "connection_class")}
    raise InvalidRecord("url", reason)
