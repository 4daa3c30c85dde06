"""A blocking cache behind the interface of the async one, so that one test body runs over both.

Each call runs the blocking method in a thread of its own pool, while the event loop of the test runs.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast

import fakeredis
import redis

from lash_redis import SessionCache
from lash_redis.blocking import BlockingContext, BlockingLease, BlockingSessionCache, BlockingStreamWriter
from lash_redis.blocking.twins import Twin
from tests.support.servers import Server

Result = TypeVar("Result")

_pool = ThreadPoolExecutor(64, thread_name_prefix="test-caller")
_END = object()


async def in_thread(function: Callable[..., Result], *args: Any, **named: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(_pool, partial(function, *args, **named))


def as_async(cache: BlockingSessionCache) -> SessionCache:
    return cast(SessionCache, AsAsync(cache))


def synchronous(server: Server, client: redis.asyncio.Redis) -> redis.Redis:
    """A synchronous client with the settings of an async one."""
    if not server.kind.real:
        return fakeredis.FakeRedis(server=server._fake)
    known = client.connection_pool.connection_kwargs
    return redis.Redis(unix_socket_path=known["path"], username=known["username"], password=known["password"])


class AsAsync:
    """A `Twin` whose methods are coroutine functions again. What it does not have is read from the async object."""

    def __init__(self, blocking: Twin[Any]) -> None:
        self._blocking = blocking

    def __getattr__(self, name: str) -> Any:
        inner = self._blocking._inner
        blocking_name = {"aclose": "close"}.get(name, name)
        static = inspect.getattr_static(type(inner), name, None)
        method = getattr(self._blocking, blocking_name, None) if not name.startswith("_") else None
        if method is None or not callable(method):
            return _wrapped(getattr(inner, name) if method is None else method)
        if inspect.iscoroutinefunction(static):
            return partial(_call, method)
        if inspect.isasyncgenfunction(static):
            return partial(_iterate, method)
        return lambda *args, **named: _wrapped(method(*args, **named))

    def __repr__(self) -> str:
        return repr(self._blocking._inner)

    def __reduce__(self) -> Any:
        return self._blocking._inner.__reduce__()

    async def __aenter__(self) -> AsAsync:
        await in_thread(self._blocking.__enter__)  # type: ignore[attr-defined]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await in_thread(self._blocking.__exit__, kind, error, at)  # type: ignore[attr-defined]

    def __aiter__(self) -> AsAsync:
        return self

    async def __anext__(self) -> Any:
        item = await in_thread(next, self._blocking, _END)
        if item is _END:
            raise StopAsyncIteration
        return item


class _AsAsyncBlock:
    """The block of a blocking context manager, entered and left by `async with`."""

    __slots__ = ()

    async def __aenter__(self) -> Any:
        await in_thread(super().__enter__)  # type: ignore[misc]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await in_thread(super().__exit__, kind, error, at)  # type: ignore[misc]


class AsAsyncLease(_AsAsyncBlock, BlockingLease):
    """A lease whose methods are coroutine functions again. It stays a record that a commit accepts."""

    __slots__ = ()

    async def renew(self, ttl: float | None = None) -> Any:  # type: ignore[override]
        return await in_thread(super().renew, ttl)

    async def release(self) -> None:  # type: ignore[override]
        await in_thread(super().release)

    def renewing(self, every: float | None = None) -> Any:  # type: ignore[override]
        return AsAsyncContext(partial(super().renewing, every))


class AsAsyncWriter(_AsAsyncBlock, BlockingStreamWriter):
    """A producer whose methods are coroutine functions again. It stays a claim that a commit accepts."""

    __slots__ = ()

    async def send(self, data: Any) -> None:  # type: ignore[override]
        await in_thread(super().send, data)

    async def flush(self) -> None:  # type: ignore[override]
        await in_thread(super().flush)


class AsAsyncContext:
    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._context: BlockingContext[Any]

    async def __aenter__(self) -> Any:
        self._context = cast(Any, self._make())
        return await in_thread(self._context.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool:
        return await in_thread(self._context.__exit__, kind, error, at)


def _wrapped(value: Any) -> Any:
    if isinstance(value, Twin):
        return AsAsync(value)
    if isinstance(value, BlockingLease) and not isinstance(value, AsAsyncLease):
        value.__class__ = AsAsyncLease  # the same record
    if isinstance(value, BlockingStreamWriter) and not isinstance(value, AsAsyncWriter):
        value.__class__ = AsAsyncWriter
    return value


async def _call(method: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return _wrapped(await in_thread(method, *args, **named))


async def _iterate(method: Callable[..., Any], *args: Any, **named: Any) -> AsyncIterator[Any]:
    items = method(*args, **named)
    try:
        while (item := await in_thread(next, items, _END)) is not _END:
            yield item
    finally:
        await in_thread(items.close)
