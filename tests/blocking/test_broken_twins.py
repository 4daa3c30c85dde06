"""Each test in `BROKEN` must fail on a blocking client that is broken on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import iscoroutinefunction
from queue import Empty
from typing import Any

import pytest

from lash_redis import StoreError
from lash_redis.blocking.calls import Call
from lash_redis.blocking.twins import END
from tests.blocking import test_forks as forks
from tests.blocking import test_interrupts as interrupts
from tests.blocking import test_threads as threads
from tests.support import blocking
from tests.support.breaking import Python

pytestmark = pytest.mark.slow

opened = threads.opened
cache = forks.cache

PATIENCE = 2.0
"""Seconds after which a test that waits for a broken client fails."""


def does_nothing(_: Any) -> Any:
    return lambda *args: None


def finishes_at_once(_: Any) -> Any:
    async def broken(*_: object) -> None:
        pass

    return broken


def leaves_without_a_word(leave: Any) -> Any:
    async def broken(self: Any, error: Any) -> bool:
        with suppress(StoreError):
            await leave(self, error)
        return False

    return broken


def begins_in_the_thread_of_the_caller(_: Any) -> Any:
    def broken(loops: Any, running: Any, items: Any) -> Any:
        begun = items.__anext__()

        async def step() -> Any:
            try:
                return await begun
            except StopAsyncIteration:
                return END

        return loops.finish(Call(step(), is_open_ended=True))

    return broken


BROKEN: list[tuple[Callable[..., Any], Python]] = [
    (
        forks.test_a_parent_that_closes_ends_its_connections_while_a_child_lives,
        Python("blocking.running:Running.disown", does_nothing, "keeps the connections of the parent"),
    ),
    (
        threads.test_a_lease_that_is_lost_in_a_block_is_raised_at_its_end,
        Python("blocking.contexts:BlockingContext._leave", leaves_without_a_word, "hides the error of the context"),
    ),
    (
        threads.test_calls_work_in_a_running_loop_and_leave_it_alone,
        Python("blocking.twins:next_item", begins_in_the_thread_of_the_caller, "binds iterations to the wrong loop"),
    ),
    (
        interrupts.test_an_interrupted_claim_does_not_get_the_lease_later,
        Python("blocking.loop_thread:LoopThread._withdraw", does_nothing, "cancels nothing"),
    ),
    (
        interrupts.test_a_renewal_whose_beginning_is_interrupted_at_any_line_is_not_left_running,
        Python("blocking.contexts:BlockingContext._abandon", finishes_at_once, "leaves no context after an interrupt"),
    ),
    (
        interrupts.test_a_call_that_is_cancelled_before_its_first_step_ends_at_once,
        Python("blocking.calls:Call.is_begun", lambda _: True, "waits for a coroutine that never runs"),
    ),
    (
        forks.test_a_child_cannot_write_to_a_stream_of_its_parent,
        Python("session.stream:StreamWriter.is_own", lambda _: True, "lets a child write"),
    ),
]


def broken_twin(intact: Callable[..., Any], breakage: Python) -> Callable[..., Any]:
    def broken(patch: pytest.MonkeyPatch) -> None:
        breakage.apply(patch)
        patch.setattr(blocking, "PATIENCE", PATIENCE)

    @wraps(intact)
    def twin(**fixtures: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            broken(patch)
            with pytest.raises((AssertionError, StoreError, Empty, pytest.fail.Exception)):
                intact(**fixtures)

    @wraps(intact)
    async def coroutine_twin(**fixtures: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            broken(patch)
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            with pytest.raises((AssertionError, StoreError, pytest.fail.Exception)):
                await intact(**fixtures)

    return coroutine_twin if iscoroutinefunction(intact) else twin


for intact, breakage in BROKEN:
    globals()[f"{intact.__name__}__broken"] = broken_twin(intact, breakage)
del intact, breakage
