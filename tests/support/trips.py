"""Change what a server stores between two round trips of one call, as a failover or another client does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio

from lash_redis import SessionCache
from tests.support.servers import Snapshot, snapshot

Change = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class State:
    """Everything that a server stores at one moment, and what a sound read of it returns."""

    name: str
    stored: Snapshot
    shown: Any


async def capture(client: redis.asyncio.Redis, name: str, shown: Any) -> State:
    return State(name, await snapshot(client), shown)


async def restore(client: redis.asyncio.Redis, state: State | None) -> None:
    """Make the server store exactly `state`; nothing for None. A promoted replica has such a state at once."""
    wanted = {} if state is None else state.stored
    pipeline = client.pipeline(transaction=False)
    for key in await client.keys("*"):
        pipeline.delete(key)
    for key, stored in wanted.items():
        _write(pipeline, key, *stored)
    await pipeline.execute()


def _write(pipeline: Any, key: bytes, kind: bytes, value: Any, expires: bool) -> None:
    match kind:
        case b"string":
            pipeline.set(key, value)
        case b"hash":
            pipeline.hset(key, mapping=dict(value))
        case b"list":
            pipeline.rpush(key, *value)
        case b"zset":
            pipeline.zadd(key, dict(value))
        case _:
            raise TypeError(f"expected string, hash, list or zset at {key!r}, got {kind!r}")
    if expires:
        pipeline.pexpire(key, 100_000)


class Trips:
    """Counts the round trips of a cache, and makes a change before chosen ones. Use it inside `with`."""

    def __init__(self, cache: SessionCache, change: Callable[[int], Awaitable[object]] | None = None) -> None:
        self.count = 0
        self._cache = cache
        self._change = change
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Trips:
        backend = self._cache.shared._backend
        send = backend.send

        async def counted(request: Any, **how: Any) -> Any:
            self.count += 1
            if self._change is not None:
                await self._change(self.count)
            return await send(request, **how)

        self._patch.setattr(backend, "send", counted)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def before(number: int, change: Change) -> Callable[[int], Awaitable[None]]:
    """Make `change` once, before the trip with this number."""

    async def choose(trip: int) -> None:
        if trip == number:
            await change()

    return choose


def alternating(client: redis.asyncio.Redis, states: Sequence[State]) -> Callable[[int], Awaitable[None]]:
    """Each trip finds the next one of `states`, as if two servers took turns in answering."""

    async def choose(trip: int) -> None:
        await restore(client, states[trip % len(states)])

    return choose
