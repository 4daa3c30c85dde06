"""An exception of a signal handler ends a waiting call. Its coroutine is cancelled and cleaned up."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any

import pytest

import lash_redis.blocking
from lash_redis.blocking import BlockingSessionCache
from lash_redis.blocking.calls import Call
from tests.blocking.test_threads import opened
from tests.support import blocking as support
from tests.support.blocking import connections, wait_until
from tests.support.builders import append, commit

__all__ = ["opened"]

Opened = Callable[..., BlockingSessionCache]


class Alarm(Exception):
    """What the signal handler raises."""


@contextmanager
def alarm() -> Iterator[Callable[[float], object]]:
    """Give the block a function that lets `Alarm` be raised in the main thread so many seconds later."""

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm):
            yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_claim_does_not_get_the_lease_later(opened: Opened) -> None:
    cache = opened()
    held = cache.session("chat").acquire_lease("first", ttl=60.0)
    with alarm() as ring_in:
        ring_in(0.1)
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
    with alarm() as ring_in:
        ring_in(0.2)
        next(revisions)
    wait_until(lambda: connections(url) == before)
    with pytest.raises(StopIteration):
        next(revisions)


def test_an_interrupted_function_of_update_writes_nothing(opened: Opened) -> None:
    cache = opened()
    store = cache.session("chat")

    def turn(read: Any) -> Any:
        ring_in(0.1)
        time.sleep(60)

    with alarm() as ring_in:
        store.update(turn)
    assert store.load_head() is None
    assert store.update(lambda read: commit(None, append("a"))).head_revision == 1


def test_an_interrupted_coroutine_ends_its_cleanup_first(opened: Opened) -> None:
    """Its caller gets the exception after the cleanup."""
    cache = opened()
    done: list[str] = []

    async def turn(read: Any) -> Any:
        try:
            ring_in(0.1)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            done.append("cleaned up")

    with alarm() as ring_in:
        cache.session("chat").update(turn)
    assert done == ["cleaned up"]


def test_an_interrupt_in_a_block_leaves_its_context_managers(opened: Opened) -> None:
    store = opened().session("chat")
    with alarm() as ring_in, store.acquire_lease() as lease, lease.renewing():
        ring_in(0.2)
        time.sleep(60)
    assert store.load_lease() is None


def test_a_call_that_is_cancelled_before_its_first_step_ends_at_once(opened: Opened) -> None:
    """Its thread would otherwise wait four seconds for a cleanup that never begins."""
    running = opened()._loops.started()
    call = Call(asyncio.sleep(60))
    running.post(time.sleep, 0.2)  # so that the loop begins and cancels the call in the same iteration
    running.submit(call)
    running.cancel(call)
    assert call.inbox.get(timeout=support.PATIENCE) is call
    assert isinstance(call.error, asyncio.CancelledError)


PACKAGE = lash_redis.blocking.__path__[0]


@contextmanager
def interrupted_at(line: int) -> Iterator[None]:
    """Raise `Alarm` before the line with this number that the package runs in this thread, counted from 1.

    The garbage collector is off, because it runs finalizers of the package at any line, and Python ignores what they
    raise.
    """

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal line
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            line -= 1
            if line == 0:
                raise Alarm
        return trace

    before = sys.gettrace()
    gc.disable()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        gc.enable()


def interrupted_at_each_line(begin: Callable[[int], object]) -> int:
    """Call `begin` with 1, 2, ... and interrupt it at this line, until it ends first; return the last number."""
    for line in count(1):
        try:
            with interrupted_at(line):
                begin(line)
        except Alarm:
            continue
        return line
    raise AssertionError


unawaited = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
"""Python reports a coroutine whose call was interrupted before it was sent. It has done nothing."""


@unawaited
def test_a_stream_whose_opening_is_interrupted_at_any_line_is_not_left_open(opened: Opened) -> None:
    cache = opened()
    cache.session("chat").load_head()
    last = interrupted_at_each_line(lambda line: cache.session("chat").stream(f"gen-{line}").__enter__())
    assert last > 20
    states = [
        info and info.state for line in range(1, last) for info in [cache.session("chat").load_stream(f"gen-{line}")]
    ]
    assert set(states) == {None, "failed"}
    assert cache.session("chat").load_stream(f"gen-{last}") is not None


@unawaited
def test_a_renewal_whose_beginning_is_interrupted_at_any_line_is_not_left_running(opened: Opened) -> None:
    cache = opened()
    cache.session("chat").load_head()
    last = interrupted_at_each_line(
        lambda line: cache.session(f"chat-{line}").acquire_lease(ttl=3600.0).renewing().__enter__()
    )
    assert last > 40
    running = cache._loops.started()
    wait_until(lambda: len(running._held) == 1)


@unawaited
def test_a_claim_that_is_interrupted_at_any_line_leaves_no_lease(opened: Opened) -> None:
    cache = opened()
    cache.session("chat").load_head()
    last = interrupted_at_each_line(lambda line: cache.session(f"chat-{line}").acquire_lease(ttl=3600.0))
    assert last > 20
    assert [line for line in range(1, last) if cache.session(f"chat-{line}").load_lease() is not None] == []


@unawaited
def test_a_watch_whose_beginning_is_interrupted_at_any_line_leaves_no_connection(opened: Opened, url: str) -> None:
    cache = opened()
    cache.session("chat").load_head()
    before = connections(url)

    def begin(line: int) -> object:
        watch = cache.watch()
        watch.add("chat")
        return watch.__enter__()

    last = interrupted_at_each_line(begin)
    assert last > 20
    wait_until(lambda: connections(url) == before + 1)
