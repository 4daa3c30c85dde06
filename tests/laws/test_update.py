"""`update` commits what a function returns for a read, and never sends a refused commit again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from lash_redis import (
    ActivePath,
    Append,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    InvalidRecord,
    OutcomeUnknown,
    SessionBindingMismatch,
    Unchanged,
)
from lash_redis.protocol import scripts
from tests.support.breaking import Python, broken_by
from tests.support.builders import append, chain, commit, ids_of, numbered
from tests.support.proxy import Action
from tests.support.sending import sends_once


def adding(*names):
    """A function that adds the next of `names` at the leaf, and the reads that it received."""
    received = []

    def turn(read):
        received.append(read)
        parent = None if read is None else read.graph.leaf_node_id
        return commit(None, append(names[len(received) - 1], parent=parent))

    return turn, received


def with_conflicts(turn, writer, *graphs):
    """`turn`, but `writer` commits one of `graphs` after each of the first calls, so that these turns conflict."""
    left = list(graphs)

    async def late(read):
        made = turn(read)
        if left:
            await writer.commit_runtime_state(commit(None, left.pop(0)))
        return made

    return late


async def test_the_function_receives_none_if_the_session_does_not_exist(store):
    turn, received = adding("a")
    result = await store.update(turn)
    assert (received, result.head_revision) == ([None], 1)


async def without_refresh(_store, read):
    return read


@broken_by(Python("session.store:RedisSessionStore.refresh", lambda _: without_refresh, "refreshes nothing"))
async def test_after_a_conflict_the_function_receives_the_refreshed_read(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, received = adding("b", "c", "d")
    writer = open_cache().session("chat")
    result = await store.update(
        with_conflicts(turn, writer, append("x", parent="a"), Append(chain("y", parent="a"), "y")), attempts=3
    )
    assert [ids_of(read) for read in received] == [["a"], ["a", "x"], ["a", "x", "y"]]
    assert ids_of(await store.load_session(ActivePath())) == ["a", "y", "d"]
    assert result.head_revision == 4


async def test_after_the_last_attempt_the_last_conflict_is_raised(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, received = adding("b", "c", "d")
    graphs = [append("x", parent="a"), append("y", parent="x")]
    with pytest.raises(HeadRevisionConflict) as refused:
        await store.update(with_conflicts(turn, open_cache().session("chat"), *graphs), attempts=2)
    assert (refused.value.expected, refused.value.actual, len(received)) == (2, 3, 2)


async def test_a_refused_commit_is_not_sent_again(open_cache):
    """Even if the function returns the same commit for a revision that would accept it."""
    store, writer = open_cache().session("chat"), open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    stale = commit(None, append("b", parent="a"), commit_id="stale")
    sent = []
    send = store.commit_runtime_state

    async def recording(made, **more):
        sent.append(made.commit_id)
        return await send(made, **more)

    store.commit_runtime_state = recording
    with pytest.raises(HeadRevisionConflict) as refused:
        await store.update(with_conflicts(lambda _: stale, writer, append("x", parent="a")), attempts=3)
    assert (refused.value.expected, refused.value.actual) == (1, 2)
    assert sent == ["stale"]
    assert ids_of(await store.load_session(FullGraph())) == ["a", "x"]


async def test_a_session_lost_between_read_and_commit_is_created_again(store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, received = adding("b", "c")

    async def late(read):
        made = turn(read)
        if read is not None:
            await client.flushall()
        return made

    assert (await store.update(late)).head_revision == 1
    assert received[1] is None
    assert ids_of(await store.load_session(FullGraph())) == ["c"]


@broken_by(
    Python("session.reader:Reader.refresh", lambda _: lambda self, read: self.load(read.scope), "loads everything")
)
async def test_a_conflict_transfers_only_what_other_writers_committed(through_proxy, proxy):
    writer = through_proxy().session("chat")
    await writer.commit_runtime_state(commit(None, append(*numbered(5000))))
    store = through_proxy().session("chat")
    turn, received = adding("b", "c")
    read = await store.load_session(FullGraph())
    await store.refresh(read)
    with proxy.measure() as seen:
        await store.update(with_conflicts(turn, writer, append("x", parent="n004999")), since=read)
    assert seen.names() == ["EVALSHA"] * 5  # a refresh and a commit, twice, and the other writer's commit
    assert seen.bytes_received < 2000
    assert received[0] is read
    assert len(received[1].graph.nodes) == 5001


@pytest.mark.parametrize("scope", [FullGraph(), ActivePath()], ids=["full", "path"])
async def test_since_refreshes_the_read_of_the_caller_and_keeps_its_scope(scope, store, open_cache):
    writer = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    read = await store.load_session(scope)
    await writer.commit_runtime_state(commit(1, append("b", parent="a")))
    await writer.commit_runtime_state(commit(2, append("c", parent="a")))
    turn, received = adding("d")
    result = await store.update(turn, since=read)
    assert result.head_revision == 4
    assert [each.scope for each in received] == [scope]
    assert ids_of(received[0]) == (["a", "b", "c"] if scope == FullGraph() else ["a", "c"])
    assert await store.update(lambda read: commit(None, Unchanged(read.graph.leaf_node_id)), since=read)


async def test_a_session_created_again_is_read_with_the_scope_of_since(open_cache):
    store = open_cache(deletion_marker_ttl=0).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    read = await store.load_session(ActivePath())
    await store.delete()
    received = []

    async def turn(read):
        received.append(read)
        if read is None:
            await store.commit_runtime_state(commit(None, append("b")))
            await store.commit_runtime_state(commit(1, append("c")))
            return commit(None, append("d"))
        return commit(None, append("d", parent="c"))

    await store.update(turn, since=read)
    assert [read and read.scope for read in received] == [None, ActivePath()]


async def test_since_must_be_a_read_of_the_same_session(cache, store):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, received = adding("b")
    for wrong in (1, "chat", await store.load_head()):
        with pytest.raises(InvalidRecord, match="since"):
            await store.update(turn, since=wrong)
    other = cache.session("other")
    await other.commit_runtime_state(commit(None, append("x"), session_id="other"))
    with pytest.raises(SessionBindingMismatch):
        await store.update(turn, since=await other.load_session(FullGraph()))
    assert received == []


@pytest.mark.parametrize("fails", ["load", "function"])
async def test_errors_other_than_conflicts_are_not_retried(fails, store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    calls = 0

    def turn(_read):
        nonlocal calls
        calls += 1
        raise ZeroDivisionError

    if fails == "load":
        await client.delete(*[key for key in await client.keys("*") if b":log:" in key])
    with pytest.raises(Corrupt if fails == "load" else ZeroDivisionError):
        await store.update(turn)
    assert calls == (fails == "function")


async def test_an_unknown_outcome_after_a_conflict_contains_the_commit_to_resend(proxy, through_proxy):
    store, writer = sends_once(through_proxy()).session("chat"), through_proxy().session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    turn, _ = adding("b", "c")
    commits = 0

    def dropping(command):
        nonlocal commits
        commits += command[:2] == [b"EVALSHA", scripts.COMMIT.sha.encode()]
        return Action.DROP_REPLY if commits == 3 else Action.PASS

    proxy.on_command = dropping
    with pytest.raises(OutcomeUnknown) as lost:
        await store.update(with_conflicts(turn, writer, append("x", parent="a")))
    proxy.on_command = lambda _: Action.PASS
    assert lost.value.commit.expected_head_revision == 2
    assert (await store.commit_runtime_state(lost.value.commit)).replayed
    assert ids_of(await store.load_session(FullGraph())) == ["a", "x", "c"]


async def test_concurrent_writers_lose_no_turn(open_cache):
    async def work(name):
        store, read = open_cache().session("chat"), None
        for number in range(6):

            def turn(seen, number=number):
                leaf = None if seen is None else seen.graph.leaf_node_id
                return commit(None, append(f"{name}{number}", parent=leaf))

            await store.update(turn, since=read, attempts=100)
            read = await store.load_session(FullGraph()) if number == 2 else read

    await asyncio.gather(*map(work, "abcd"))
    read = await open_cache().session("chat").load_session(ActivePath())
    assert read.head_revision == 24
    assert sorted(ids_of(read)) == [f"{name}{number}" for name in "abcd" for number in range(6)]


async def test_a_commit_with_an_expected_revision_is_sent_unchanged(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a")))
    made = commit(1, append("b", parent="a"), builds_on=None)
    assert (await store.update(lambda _: replace(made))).head_revision == 2
    with pytest.raises(HeadRevisionConflict):
        await store.update(lambda _: commit(1, append("c", parent="a")), attempts=2)
