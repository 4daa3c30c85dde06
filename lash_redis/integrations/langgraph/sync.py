"""Synchronous calls of a saver: they run in the event loop of a thread of its own, over the same cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final, TypeVar

from lash_redis.blocking.loop_thread import LoopThread
from lash_redis.cache import SessionCache
from lash_redis.session.namespace import Namespace

Result = TypeVar("Result")

END: Final = object()


class SyncCalls:
    """Runs coroutines for callers outside of an event loop."""

    def __init__(self, cache: SessionCache) -> None:
        shared = cache.shared
        self._loops = LoopThread(f"lash_redis-langgraph-{cache.namespace}", partial(_leave, shared), shared.leave)

    def run(self, name: str, function: Callable[..., Coroutine[Any, Any, Result]], *args: Any, **named: Any) -> Result:
        """Run a coroutine function and return its result. `name` is the method to call inside of an event loop."""
        refuse_in_a_loop(name)
        return self._loops.run(function, *args, **named)

    def iterate(self, name: str, items: AsyncIterator[Result]) -> Iterator[Result]:
        """Yield the items of an async iterator."""
        refuse_in_a_loop(name)
        return self._each(items)

    def _each(self, items: AsyncIterator[Result]) -> Iterator[Result]:
        while (item := self._loops.run(_next, items)) is not END:
            yield item


def refuse_in_a_loop(name: str) -> None:
    """Raise RuntimeError in a thread whose event loop runs, because the call would block it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"a synchronous call would block the running event loop; call the saver's {name} instead, and the graph's "
        "ainvoke, astream, aget_state and aupdate_state"
    )


async def _leave(shared: Namespace, _: BaseException | None) -> None:
    await shared.leave()


async def _next(items: AsyncIterator[Any]) -> Any:
    return await anext(items, END)
