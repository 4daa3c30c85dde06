"""Writers that compete for sessions during a fault of the servers, and a check of what they stored."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from lash_redis import (
    ActivePath,
    Append,
    BackendError,
    FullGraph,
    HeadRevisionConflict,
    OutcomeUnknown,
    RedisSessionStore,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCache,
    TokenLedgerEntry,
    TokenUsage,
)
from tests.support.builders import chain, ids_of

PATIENCE = 90.0
"""Seconds until a wait fails."""


class Writers:
    """Two writers for each session. Each builds on what it read, and every error is counted."""

    def __init__(self, cache: SessionCache, sessions: Sequence[str]) -> None:
        self._cache = cache
        self.sessions = sessions
        self.acknowledged: defaultdict[str, list[str]] = defaultdict(list)
        """Session → the nodes of its acknowledged commits, in order."""
        self.seen: Counter[str] = Counter()
        """The errors that writers received, by name."""
        self._stop = asyncio.Event()
        self._acknowledged = asyncio.Condition()
        self._numbers = count()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for session in self.sessions * 2:
                tasks.create_task(self._write(session))
            try:
                await self.progress(5)
                yield
            finally:
                self._stop.set()

    async def progress(self, commits: int) -> None:
        """Return when every session has `count` more acknowledged commits."""
        wanted = {session: len(self.acknowledged[session]) + commits for session in self.sessions}
        async with asyncio.timeout(PATIENCE), self._acknowledged:
            for session, number in wanted.items():
                await self._acknowledged.wait_for(lambda s=session, n=number: len(self.acknowledged[s]) >= n)

    async def during(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Run a blocking function while the writers continue."""
        await asyncio.to_thread(action, *arguments)

    async def _write(self, session: str) -> None:
        store = self._cache.session(session)
        while not self._stop.is_set():
            try:
                read = await store.load_session(ActivePath())
                node = f"n{next(self._numbers)}"
                leaf = None if read is None else read.graph.leaf_node_id
                commit = RuntimeCommit(
                    session,
                    0 if read is None else read.head_revision,
                    graph=Append(chain(node, parent=leaf), node),
                    usage_deltas=[TokenLedgerEntry("s", "m", TokenUsage(1))],
                    builds_on=None if read is None else read.commit_id,
                )
                await self._settled(store, commit)
            except (HeadRevisionConflict, BackendError) as error:
                self.seen[type(error).__name__] += 1
            else:
                self.acknowledged[session].append(node)
                async with self._acknowledged:
                    self._acknowledged.notify_all()

    async def _settled(self, store: RedisSessionStore, commit: RuntimeCommit) -> RuntimeCommitResult:
        """Send a commit repeatedly until its outcome is known."""
        was_unknown = False
        while True:
            try:
                return await store.commit_runtime_state(commit)
            except OutcomeUnknown:
                self.seen["OutcomeUnknown"] += 1
                was_unknown = True
            except BackendError:
                if not was_unknown:
                    raise
                self.seen["BackendError"] += 1

    async def lost(self) -> dict[str, int]:
        """Return the acknowledged commits that are not stored, by session.

        Also check that every stored commit is there once, after the commit that it was built on.
        """
        found = {}
        for session in self.sessions:
            read = await self._cache.session(session).load_session(FullGraph())
            stored = [] if read is None else ids_of(read)
            acknowledged = self.acknowledged[session]
            assert len(set(stored)) == len(stored)
            assert len(set(acknowledged)) == len(acknowledged)
            if read is not None:
                path = await self._cache.session(session).load_session(ActivePath())
                assert path is not None
                assert ids_of(path) == stored
                assert read.head_revision == len(stored)
                assert [(row.usage.input_tokens, row.model) for row in read.token_ledger] == [(len(stored), "m")]
            missing = len(set(acknowledged) - set(stored))
            if missing:
                found[session] = missing
        return found
