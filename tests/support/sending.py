"""Caches without retries, for tests of what a single failed attempt means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from lash_redis import SessionCache
from lash_redis.transport.failures import FAILURES


def sends_once(cache: SessionCache) -> SessionCache:
    """Make the first failed attempt of each call of the cache final; return the cache."""
    cache.shared._backend._send_again = report_first
    return cache


async def report_first(attempt: Callable[[], Awaitable[Any]], attempts: Any) -> NoReturn:
    """Replace `Backend._send_again`: raise the error of the first attempt without another one."""
    try:
        attempts.raise_first()
    except FAILURES as error:
        attempts.note(error)
    raise attempts.error() from attempts.cause
