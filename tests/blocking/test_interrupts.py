"""An exception of a signal handler ends a waiting call. Its coroutine is cancelled and cleaned up."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lash_redis.blocking import BlockingSessionCache
from tests.blocking.test_threads import opened
from tests.support.blocking import connections, wait_until
from tests.support.builders import append, commit

__all__ = ["opened"]

Opened = Callable[..., BlockingSessionCache]


class Alarm(Exception):
    """What the signal handler raises."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `Alarm` in the block after some seconds."""

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(Alarm):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_claim_does_not_get_the_lease_later(opened: Opened) -> None:
    cache = opened()
    held = cache.session("chat").acquire_lease("first", ttl=60.0)
    with alarm(0.1):
        cache.session("chat").acquire_lease("second", wait=60.0)
    held.release()
    until = time.monotonic() + 1.5  # a claim that waits tries again within a second
    while time.monotonic() < until:
        assert cache.session("chat").load_lease() is None
        time.sleep(0.02)


def test_an_interrupted_watch_ends_its_connection(opened: Opened, url: str) -> None:
    cache = opened()
    store = cache.session("chat")
    store.commit_runtime_state(commit(0, append("a")))
    before = connections(url)
    revisions = store.watch()
    with alarm(0.2):
        next(revisions)
    wait_until(lambda: connections(url) == before)
    with pytest.raises(StopIteration):
        next(revisions)


def test_an_interrupted_function_of_update_writes_nothing(opened: Opened) -> None:
    cache = opened()
    store = cache.session("chat")

    def turn(read: Any) -> Any:
        time.sleep(60)

    with alarm(0.1):
        store.update(turn)
    assert store.load_head() is None
    assert store.update(lambda read: commit(None, append("a"))).head_revision == 1


def test_an_interrupted_coroutine_ends_its_cleanup_first(opened: Opened) -> None:
    """Its caller gets the exception after the cleanup."""
    cache = opened()
    done: list[str] = []

    async def turn(read: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            done.append("cleaned up")

    with alarm(0.1):
        cache.session("chat").update(turn)
    assert done == ["cleaned up"]


def test_an_interrupt_in_a_block_leaves_its_context_managers(opened: Opened) -> None:
    store = opened().session("chat")
    with alarm(0.2), store.acquire_lease() as lease, lease.renewing():
        time.sleep(60)
    assert store.load_lease() is None
