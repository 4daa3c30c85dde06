"""Fixtures of all tests: a server of each kind, a raw client for its stored bytes, and a summary per server."""

from __future__ import annotations

import gc
import signal
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

pytest.register_assert_rewrite("tests.support")  # before its import: a failed check of tests/support shows the values

from lash_redis import Chat, RedisSessionStore, SessionCache, StoreOptions
from lash_redis.acl import Role
from lash_redis.blocking import BlockingSessionCache
from lash_redis.embedded import EmbeddedServer
from lash_redis.transport.backend import Backend
from tests.support import selection
from tests.support.as_async import as_async, synchronous
from tests.support.browser import headless_chromium
from tests.support.groups import Cluster, RunningGroups, SentinelGroup
from tests.support.paths import DATA
from tests.support.postgres import new_database, running_postgres
from tests.support.proxy import Proxy
from tests.support.servers import Kind, RunningServers, Server, Snapshot, every, require, snapshot, table

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMESPACE = "laws"


@pytest.fixture(scope="session")
def _running() -> Iterator[RunningServers]:
    servers = RunningServers()
    yield servers
    servers.stop()


@pytest.fixture(autouse=True)
async def _closed_caches(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Close the connections of every cache of the test; over a cluster or Sentinel a cache opens its own."""
    made: WeakSet[Backend] = WeakSet()
    begin = Backend.__init__

    def begun(self: Backend, *args: Any) -> None:
        begin(self, *args)
        made.add(self)

    monkeypatch.setattr(Backend, "__init__", begun)
    yield
    for backend in made:
        await backend.close()


@asynccontextmanager
async def _served(request: pytest.FixtureRequest, running: RunningServers) -> AsyncIterator[Server]:
    kind: Kind = request.param
    request.node.user_properties.append(("server", kind.name))
    require(kind)
    server = running.emptied(kind)
    try:
        yield server
    finally:
        await server.close_clients()


@pytest.fixture(params=every(), ids=lambda kind: kind.name)
async def server(request: pytest.FixtureRequest, _running: RunningServers) -> AsyncIterator[Server]:
    """An empty server of each kind, including groups."""
    async with _served(request, _running) as served:
        yield served


@pytest.fixture(params=[kind for kind in table() if kind.real], ids=lambda kind: kind.name)
async def real_server(request: pytest.FixtureRequest, _running: RunningServers) -> AsyncIterator[Server]:
    """An empty server of each kind that is a process, for tests of sockets, server time, memory and CPU."""
    async with _served(request, _running) as served:
        yield served


@pytest.fixture(scope="session")
def _groups() -> Iterator[RunningGroups]:
    groups = RunningGroups()
    yield groups
    groups.stop()


@pytest.fixture
def cluster(request: pytest.FixtureRequest, _groups: RunningGroups) -> Iterator[Cluster]:
    """An empty cluster whose members a test may kill, freeze and move slots between; it is repaired after the test."""
    yield from _groups.lent(request, Cluster)


@pytest.fixture
def sentinels(request: pytest.FixtureRequest, _groups: RunningGroups) -> Iterator[SentinelGroup]:
    """An empty primary with replicas under Sentinel, on the same terms as `cluster`."""
    yield from _groups.lent(request, SentinelGroup)


@pytest.fixture
async def client(server: Server) -> redis.asyncio.Redis:
    """A raw client of `server`. It reads the stored bytes without code of this package."""
    return server.client()


@pytest.fixture
async def keyspace(client: redis.asyncio.Redis) -> Callable[[], Awaitable[Snapshot]]:
    """`await keyspace()` returns every key of `server` with its type, its value and whether it has a deadline."""

    async def seen() -> Snapshot:
        return await snapshot(client)

    return seen


@pytest.fixture
async def proxy(real_server: Server) -> AsyncIterator[Proxy]:
    """A proxy in front of `real_server`; connect with `real_server.client(url=proxy.url)`."""
    async with Proxy(real_server.url) as running:
        yield running


@pytest.fixture
def open_cache(server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[..., SessionCache]]:
    """`open_cache()` returns a cache on a new client, which the server cannot distinguish from another process.

    All caches use one namespace. On a server that is a process, the client has only the rights of an account of
    `lash_redis.acl`: `role`, by default `runner` on Valkey and `loader` elsewhere. Takes `ttl` and the fields of
    `StoreOptions`. With `--client=blocking` it is a blocking cache behind an interface of coroutines.
    """

    blocking: list[BlockingSessionCache] = []

    def opened(
        *, ttl: float | None = None, namespace: str = NAMESPACE, role: Role | None = None, **options: Any
    ) -> SessionCache:
        role = role or ("runner" if server.kind.product == "Valkey" else "loader")
        client = server.account(namespace, role)
        if role == "runner":
            options.setdefault("allow_eval", not server.kind.real)
        if selection.is_blocking(request.config):
            made = BlockingSessionCache(
                synchronous(server, client), namespace, ttl=ttl, options=StoreOptions(**options)
            )
            blocking.append(made)
            return as_async(made)
        return SessionCache(client, namespace, ttl=ttl, options=StoreOptions(**options))

    yield opened
    for made in blocking:
        made.close()


@pytest.fixture
async def cache(open_cache: Callable[..., SessionCache]) -> SessionCache:
    return open_cache()


@pytest.fixture
async def store(cache: SessionCache) -> RedisSessionStore:
    return cache.session("chat")


@pytest.fixture
async def other(open_cache: Callable[..., SessionCache]) -> RedisSessionStore:
    """The same session through a cache of its own, as in another process."""
    return open_cache().session("chat")


@pytest.fixture
async def chat(cache: SessionCache) -> Chat:
    return cache.chat("chat")


@pytest.fixture
async def lenient(open_cache: Callable[..., SessionCache]) -> RedisSessionStore:
    """The same session with `graph_checks="lenient"`, as in the first lash store."""
    return open_cache(graph_checks="lenient").session("chat")


@pytest.fixture
def through_proxy(real_server: Server, proxy: Proxy) -> Callable[..., SessionCache]:
    """`through_proxy()` returns a cache whose connections lead through `proxy` and whose client does not retry.

    Takes the fields of `StoreOptions`.
    """

    def opened(**options: Any) -> SessionCache:
        client = real_server.client(url=proxy.url, retry=Retry(NoBackoff(), 0))
        return SessionCache(client, NAMESPACE, options=StoreOptions(**options))

    return opened


@pytest.fixture
def open_real_cache(real_server: Server) -> Callable[..., SessionCache]:
    """`open_cache` on `real_server`. All caches share one client, because each connection takes server memory."""
    client = real_server.client()

    def opened(*, ttl: float | None = None, **options: Any) -> SessionCache:
        return SessionCache(client, "laws", ttl=ttl, options=StoreOptions(**options))

    return opened


@pytest.fixture
async def full(real_server: Server) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """`await full()` sets `maxmemory` to 1 with `noeviction`; the limit is removed after the test."""
    admin = real_server.client()

    async def fill() -> None:
        await admin.config_set("maxmemory-policy", "noeviction")
        await admin.config_set("maxmemory", 1)

    yield fill
    await admin.config_set("maxmemory", 0)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture
def database(_postgres: str) -> str:
    """The URL of a new database of PostgreSQL."""
    return new_database(_postgres)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with headless_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedServer]:
    """An embedded server, shared by the tests of a module."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def url(embedded: EmbeddedServer) -> str:
    """The URL of `embedded`, emptied."""
    with redis.Redis.from_url(embedded.url) as client:
        client.flushall()
    return embedded.url


def pytest_addoption(parser: pytest.Parser) -> None:
    selection.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a background job; children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    selection.check_options(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deselected = [item for item in items if not selection.is_selected(item)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        left_out = set(deselected)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if item.get_closest_marker("leaks"):
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Collect what a test leaves open on purpose, so that no later test gets the warnings. Its event loop has ended."""
    if item.get_closest_marker("leaks"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a line for each server with its results, for one that is missing or not selected too."""
    outcomes: dict[str, Counter[str]] = {kind.name: Counter() for kind in every()}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, ()):
            name = dict(getattr(report, "user_properties", ())).get("server")  # the report of a failed import has none
            if name in outcomes:
                outcomes[name][outcome] += 1
    terminalreporter.section("servers")
    for kind in every():
        if not selection.is_selected_server(config, kind.name):
            terminalreporter.line(f"{kind.name}: not selected")
            continue
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes[kind.name].items()) or "no tests"
        terminalreporter.line(f"{kind}; {counts}" if kind.missing else f"{kind}: {counts}", red=bool(kind.missing))
    if not DATA.is_dir():
        terminalreporter.line(f"tests marked `samples` were not run: there is no folder {DATA}")
