"""Orders that break the store of a worker in one way and then act. The account must find each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

from lash_redis import (
    Append,
    DeleteReport,
    PendingInput,
    RedisSessionStore,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCache,
    StreamEvent,
    StreamFailed,
    StreamWriter,
    TombstoneReport,
)
from lash_redis.errors import BackendError, Corrupt
from lash_redis.transport.cleanup import end_tasks
from tests.support.chaos import deeds
from tests.support.workers import Work

EVERY = 10
"""Every so many calls are broken."""


def _break(owner: Any, name: str, make: Callable[[Any, Callable[[], bool]], Any]) -> None:
    """Replace a method. `make` gets it, and a function that is true for every tenth call."""
    numbers = count(1)
    setattr(owner, name, make(getattr(owner, name), lambda: next(numbers) % EVERY == 0))


def _break_commits(broken: Callable[[Any, RedisSessionStore, RuntimeCommit, Any], Any]) -> None:
    """Every tenth commit is replaced by `broken(method, store, commit, more)`."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        async def commit_runtime_state(self: RedisSessionStore, commit: RuntimeCommit, **more: Any) -> Any:
            return await (broken(method, self, commit, more) if is_due() else method(self, commit, **more))

        return commit_runtime_state

    _break(RedisSessionStore, "commit_runtime_state", make)


async def lose(work: Work, *arguments: Any) -> int:
    """A commit is acknowledged as durable and not sent."""

    async def lost(method: Any, store: RedisSessionStore, commit: RuntimeCommit, more: Any) -> Any:
        head = await store.load_head()
        revision = 1 if head is None else head.head_revision + 1
        return RuntimeCommitResult(revision, "", None, commit_id=commit.commit_id, durable=True)  # type: ignore[arg-type]

    _break_commits(lost)
    return await deeds.act(work, *arguments)


async def double(work: Work, *arguments: Any) -> int:
    """A commit is applied twice, as two commits."""

    async def doubled(method: Any, store: RedisSessionStore, commit: RuntimeCommit, more: Any) -> Any:
        result = await method(store, commit, **more)
        usage = RuntimeCommit(store.session_id, None, usage_deltas=commit.usage_deltas)
        await method(store, usage)
        return result

    _break_commits(doubled)
    return await deeds.act(work, *arguments)


async def tear(work: Work, *arguments: Any) -> int:
    """Of the nodes of a commit only the first is stored."""

    async def torn(method: Any, store: RedisSessionStore, commit: RuntimeCommit, more: Any) -> Any:
        graph = Append(commit.graph.nodes[:1]) if isinstance(commit.graph, Append) else commit.graph
        return await method(store, replace(commit, graph=graph), **more)

    _break_commits(torn)
    return await deeds.act(work, *arguments)


async def deny(work: Work, *arguments: Any) -> int:
    """A commit is applied, and reported as not applied."""

    async def denied(method: Any, store: RedisSessionStore, commit: RuntimeCommit, more: Any) -> Any:
        await method(store, commit, **more)
        raise BackendError("nothing was applied")

    _break_commits(denied)
    return await deeds.act(work, *arguments)


async def crash(work: Work, *arguments: Any) -> int:
    """A commit raises an exception that is no error of the package."""

    async def crashed(method: Any, store: RedisSessionStore, commit: RuntimeCommit, more: Any) -> Any:
        raise KeyError(commit.commit_id)

    _break_commits(crashed)
    return await deeds.act(work, *arguments)


async def keep_deleted(work: Work, *arguments: Any) -> int:
    """A deletion is acknowledged as durable and not made."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        async def delete(self: RedisSessionStore, **more: Any) -> DeleteReport:
            return DeleteReport(existed=True, closed=True, durable=True)

        return delete

    _break(RedisSessionStore, "delete", make)
    return await deeds.act(work, *arguments)


async def keep_hidden(work: Work, *arguments: Any) -> int:
    """A tombstone is acknowledged as durable and not made."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        async def tombstone_nodes(self: RedisSessionStore, ids: Any, **more: Any) -> TombstoneReport:
            return TombstoneReport(len(ids), durable=True)

        return tombstone_nodes

    _break(RedisSessionStore, "tombstone_nodes", make)
    return await deeds.act(work, *arguments)


async def forget_owners(work: Work, *arguments: Any) -> int:
    """Every handle uses the sessions of every owner."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        def session(self: SessionCache, session_id: str, *, owner: str | None = None) -> RedisSessionStore:
            store: RedisSessionStore = method(self, session_id)
            return store

        return session

    _break(SessionCache, "session", make)
    return await deeds.act(work, *arguments)


async def misread(work: Work, *arguments: Any) -> int:
    """A load reports damage that is not there."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        async def load_session(self: RedisSessionStore, *scope: Any, **more: Any) -> Any:
            if is_due():
                raise Corrupt("head", "key", "is unreadable")
            return await method(self, *scope, **more)

        return load_session

    _break(RedisSessionStore, "load_session", make)
    return await deeds.act(work, *arguments)


async def keep_inputs(work: Work, *arguments: Any) -> int:
    """A commit that consumes inputs leaves them pending."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        async def commit_runtime_state(self: RedisSessionStore, commit: RuntimeCommit, **more: Any) -> Any:
            return await method(self, replace(commit, consumes=()), **more)

        return commit_runtime_state

    _break(RedisSessionStore, "commit_runtime_state", make)
    return await deeds.act(work, *arguments)


async def drop_inputs(work: Work, *arguments: Any) -> int:
    """An input is acknowledged as durable and not stored."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        async def enqueue_input(self: RedisSessionStore, item: Any, input_id: str, **more: Any) -> PendingInput:
            return PendingInput(input_id, item, 0.0, durable=True)

        return enqueue_input

    _break(RedisSessionStore, "enqueue_input", make)
    return await deeds.act(work, *arguments)


def _break_followers(broken: Callable[[AsyncGenerator[StreamEvent, None]], AsyncGenerator[StreamEvent, None]]) -> None:
    """Every follower gets what `broken` makes of its events."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        def follow(self: RedisSessionStore, *arguments: Any, **more: Any) -> AsyncGenerator[StreamEvent, None]:
            return broken(method(self, *arguments, **more))

        return follow

    _break(RedisSessionStore, "follow", make)


async def skip_events(work: Work, *arguments: Any) -> int:
    """A follower does not get every third event."""

    async def broken(events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[StreamEvent, None]:
        async for event in events:
            if event.data % 3:
                yield event

    _break_followers(broken)
    return await deeds.act(work, *arguments)


async def repeat_events(work: Work, *arguments: Any) -> int:
    """A follower gets an event twice."""

    async def broken(events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[StreamEvent, None]:
        async for event in events:
            yield event
            if event.data == 4:
                yield event

    _break_followers(broken)
    return await deeds.act(work, *arguments)


async def swap_events(work: Work, *arguments: Any) -> int:
    """A follower gets two events in the wrong order."""

    async def broken(events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[StreamEvent, None]:
        kept: list[StreamEvent] = []
        async for event in events:
            kept.append(event)
            if event.data != 4:
                while kept:
                    yield kept.pop()

    _break_followers(broken)
    return await deeds.act(work, *arguments)


async def hide_failures(work: Work, *arguments: Any) -> int:
    """A stream that failed ends for its followers as if it had finished."""

    async def broken(events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[StreamEvent, None]:
        with suppress(StreamFailed):
            async for event in events:
                yield event

    _break_followers(broken)
    return await deeds.act(work, *arguments)


async def abandon_streams(work: Work, *arguments: Any) -> int:
    """The end of a stream is acknowledged and not sent."""

    def make(method: Any, is_due: Callable[[], bool]) -> Any:
        async def close(self: StreamWriter, ends: str) -> None:
            await self.flush()
            await end_tasks([self._pump_task] if self._pump_task else [])

        return close

    _break(StreamWriter, "_close", make)
    return await deeds.act(work, *arguments)


TWINS = {
    lose: "durable lost", double: "doubled", tear: "torn", deny: "lied", crash: "wrong error",
    keep_deleted: "durable undone", keep_hidden: "durable undone", forget_owners: "wrong read", misread: "unreadable",
    keep_inputs: "answered twice", drop_inputs: "durable lost", skip_events: "event lost",
    repeat_events: "event doubled", swap_events: "event out of order", hide_failures: "end mistaken",
    abandon_streams: "end lost",
}  # fmt: skip
"""The kind of finding by the breakage."""
