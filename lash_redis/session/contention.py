"""Repeat a write that other writers precede, for a bounded time."""

from __future__ import annotations

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from lash_redis.errors import HeadRevisionConflict, SessionExists


def repeated_after_conflicts(
    seconds: float, *final: type[HeadRevisionConflict], reraise: bool = False
) -> AsyncRetrying:
    """Return what repeats a write after each conflict, for `seconds` from its first attempt on.

    Conflicts of the types `final`, and `SessionExists`, end it, because the next attempt would get them again. When the
    time is over it raises tenacity's `RetryError`, or the last conflict with `reraise`.
    """
    return AsyncRetrying(
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.005, max=0.2),
        retry=retry_if_exception_type(HeadRevisionConflict) & retry_if_not_exception_type((SessionExists, *final)),
        reraise=reraise,
    )
