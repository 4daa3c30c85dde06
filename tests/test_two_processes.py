"""Two operating-system processes that commit on one revision at the same moment, a thousand times over."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import redis.asyncio
from builders import holds
from servers import RunningServers, require, table

from lash_redis import (
    Append,
    EventPayload,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    RedisSessionStore,
    RuntimeCommit,
    SessionCache,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
)

ROUNDS = 1_000
CHOSEN = next((kind for kind in table() if kind.real and not kind.missing), next(kind for kind in table() if kind.real))


def compete(url: str, me: int, orders: Connection) -> None:
    """A worker: told `(revision, commit it builds on, leaf)`, it commits on that and says how it went."""
    asyncio.run(_compete(url, me, orders))


async def _compete(url: str, me: int, orders: Connection) -> None:
    client = redis.asyncio.Redis.from_url(url)
    try:
        store = SessionCache(client, "race").session("chat")
        await client.ping()
        orders.send("ready")
        while (order := orders.recv()) is not None:
            orders.send(await _attempt(store, me, *order))
    finally:
        await client.aclose()


async def _attempt(
    store: RedisSessionStore, me: int, revision: int, builds_on: str | None, leaf: str | None
) -> tuple[str, Any]:
    node_id = f"{me}-{revision}"
    node = SessionNodeRecord(node_id, leaf, "t", EventPayload({"by": me}))
    commit = RuntimeCommit(
        "chat",
        revision,
        graph=Append([node], node_id),
        checkpoint=HydratedSessionCheckpoint(execution_state=node_id.encode()),
        usage_deltas=[TokenLedgerEntry(f"worker {me}", "m", TokenUsage(input_tokens=1, cached_input_tokens=revision))],
        builds_on=builds_on,
    )
    try:
        result = await store.commit_runtime_state(commit)
    except HeadRevisionConflict as conflict:
        return "lost", (conflict.expected, conflict.actual)
    return "won", (result.head_revision, result.replayed, commit.commit_id, node_id)


@pytest.fixture
def url(request: pytest.FixtureRequest, _running: RunningServers) -> str:
    request.node.user_properties.append(("server", CHOSEN.name))
    require(CHOSEN)
    return _running.emptied(CHOSEN).url


def test_of_two_processes_on_one_revision_exactly_one_wins_and_the_other_changes_nothing(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=compete, args=(url, me, theirs)) for me, (_, theirs) in enumerate(ends)]
    for worker in workers:
        worker.start()
    pipes = [ours for ours, _ in ends]
    winners: list[int] = []
    nodes: list[str] = []
    commit_id, leaf = None, None
    try:
        assert [pipe.recv() for pipe in pipes] == ["ready", "ready"]
        for revision in range(ROUNDS):
            # Told in turns who comes first, so that neither process wins by its place.
            for pipe in pipes if revision % 2 else pipes[::-1]:
                pipe.send((revision, commit_id, leaf))
            answers = [pipe.recv() for pipe in pipes]
            assert sorted(word for word, _ in answers) == ["lost", "won"], answers
            winner = 0 if answers[0][0] == "won" else 1
            new_revision, replayed, commit_id, leaf = answers[winner][1]
            assert (new_revision, replayed) == (revision + 1, False)
            assert answers[1 - winner][1] == (revision, revision + 1)
            winners.append(winner)
            nodes.append(leaf)
    finally:
        for pipe in pipes:
            pipe.send(None)
        for worker in workers:
            worker.join(10)
            worker.kill()
            worker.join()
            worker.close()
        for ours, theirs in ends:
            ours.close()
            theirs.close()
    assert set(winners) == {0, 1}
    _run(_check(url, winners, nodes))


def _run(doing: Awaitable[None]) -> None:
    async def awaited() -> None:
        await doing

    asyncio.run(awaited())


async def _check(url: str, winners: list[int], nodes: list[str]) -> None:
    """The session is the winners' and nothing else."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        read = await SessionCache(client, "race").session("chat").load_session(FullGraph())
        assert read is not None
        assert read.checkpoint is not None
        assert read.head_revision == ROUNDS
        assert [node.node_id for node in read.graph.nodes] == nodes
        assert [node.parent_node_id for node in read.graph.nodes] == [None, *nodes[:-1]]
        assert [node.event() for node in read.graph.nodes] == [{"by": winner} for winner in winners]
        assert read.checkpoint.execution_state == nodes[-1].encode()
        ledger = {row.source: (row.usage.input_tokens, row.usage.cached_input_tokens) for row in read.token_ledger}
        for me in (0, 1):
            won = [revision for revision, winner in enumerate(winners) if winner == me]
            assert ledger[f"worker {me}"] == (len(won), sum(won))
        blobs = [key async for key in client.scan_iter("lash1:*:blob:*")]
        held = [found for key in blobs if (found := await holds(client, key))]
        assert held == [{0: 1}]
        assert not [key async for key in client.scan_iter("*:jumps:*")]
    finally:
        await client.aclose()
