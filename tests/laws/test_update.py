"""`update`: what a function makes of a session is committed on what it was shown, and nothing that was refused is."""

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
    """A function that adds the next of `names` at the leaf, and the reads that it was shown."""
    shown = []

    def turn(read):
        shown.append(read)
        parent = None if read is None else read.graph.leaf_node_id
        return commit(None, append(names[len(shown) - 1], parent=parent))

    return turn, shown


def overtaken(turn, writer, *graphs):
    """`turn`, before each of whose first commits somebody else makes one of `graphs`."""
    left = list(graphs)

    async def late(read):
        made = turn(read)
        if left:
            await writer.commit_runtime_state(commit(None, left.pop(0)))
        return made

    return late


async def test_the_first_commit_is_made_of_nothing(store):
    turn, shown = adding("a")
    result = await store.update(turn)
    assert (shown, result.head_revision) == ([None], 1)


async def as_it_was(_store, read):
    return read


@broken_by(Python("session.store:RedisSessionStore.refresh", lambda _: as_it_was, "brings nothing up to date"))
async def test_who_lost_sees_what_won_and_builds_on_it(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, shown = adding("b", "c", "d")
    writer = open_cache().session("chat")
    result = await store.update(
        overtaken(turn, writer, append("x", parent="a"), Append(chain("y", parent="a"), "y")), attempts=3
    )
    assert [ids_of(read) for read in shown] == [["a"], ["a", "x"], ["a", "x", "y"]]
    assert ids_of(await store.load_session(ActivePath())) == ["a", "y", "d"]
    assert result.head_revision == 4


async def test_who_lost_every_time_is_told_the_last_conflict(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, shown = adding("b", "c", "d")
    graphs = [append("x", parent="a"), append("y", parent="x")]
    with pytest.raises(HeadRevisionConflict) as refused:
        await store.update(overtaken(turn, open_cache().session("chat"), *graphs), attempts=2)
    assert (refused.value.expected, refused.value.actual, len(shown)) == (2, 3, 2)


async def test_a_commit_that_was_refused_is_not_sent_again(open_cache):
    """Though the function hands it back, on a revision that would take it."""
    store, writer = open_cache().session("chat"), open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    stale = commit(None, append("b", parent="a"), commit_id="stale")
    sent = []
    send = store.commit_runtime_state

    async def noted(made, **more):
        sent.append(made.commit_id)
        return await send(made, **more)

    store.commit_runtime_state = noted
    with pytest.raises(HeadRevisionConflict) as refused:
        await store.update(overtaken(lambda _: stale, writer, append("x", parent="a")), attempts=3)
    assert (refused.value.expected, refused.value.actual) == (1, 2)
    assert sent == ["stale"]
    assert ids_of(await store.load_session(FullGraph())) == ["a", "x"]


async def test_a_session_that_is_lost_meanwhile_begins_anew(store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, shown = adding("b", "c")

    async def late(read):
        made = turn(read)
        if read is not None:
            await client.flushall()
        return made

    assert (await store.update(late)).head_revision == 1
    assert shown[1] is None
    assert ids_of(await store.load_session(FullGraph())) == ["c"]


@broken_by(Python("session.reader:Reader.refresh", lambda _: lambda self, read: self.load(read.scope), "loads"))
async def test_a_conflict_costs_what_the_others_wrote(through_proxy, proxy):
    """Not what the session holds."""
    writer = through_proxy().session("chat")
    await writer.commit_runtime_state(commit(None, append(*numbered(5000))))
    store = through_proxy().session("chat")
    turn, shown = adding("b", "c")
    read = await store.load_session(FullGraph())
    await store.refresh(read)
    with proxy.measure() as seen:
        await store.update(overtaken(turn, writer, append("x", parent="n004999")), since=read)
    assert seen.names() == ["EVALSHA"] * 5  # a refresh and a commit, twice; the other's commit
    assert seen.bytes_received < 2000
    assert shown[0] is read
    assert len(shown[1].graph.nodes) == 5001


@pytest.mark.parametrize("scope", [FullGraph(), ActivePath()], ids=["full", "path"])
async def test_it_begins_at_a_read_that_the_caller_still_has(scope, store, open_cache):
    writer = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    read = await store.load_session(scope)
    await writer.commit_runtime_state(commit(1, append("b", parent="a")))
    await writer.commit_runtime_state(commit(2, append("c", parent="a")))
    turn, shown = adding("d")
    result = await store.update(turn, since=read)
    assert result.head_revision == 4
    assert [each.scope for each in shown] == [scope]
    assert ids_of(shown[0]) == (["a", "b", "c"] if scope == FullGraph() else ["a", "c"])
    assert await store.update(lambda read: commit(None, Unchanged(read.graph.leaf_node_id)), since=read)


async def test_what_began_anew_meanwhile_is_seen_as_it_was_read_before(open_cache):
    store = open_cache(deletion_marker_ttl=0).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    read = await store.load_session(ActivePath())
    await store.delete()
    shown = []

    async def turn(read):
        shown.append(read)
        if read is None:
            await store.commit_runtime_state(commit(None, append("b")))
            await store.commit_runtime_state(commit(1, append("c")))
            return commit(None, append("d"))
        return commit(None, append("d", parent="c"))

    await store.update(turn, since=read)
    assert [read and read.scope for read in shown] == [None, ActivePath()]


async def test_what_it_begins_at_is_a_read_of_this_session(cache, store):
    await store.commit_runtime_state(commit(None, append("a")))
    turn, shown = adding("b")
    for wrong in (1, "chat", await store.load_head()):
        with pytest.raises(InvalidRecord, match="since"):
            await store.update(turn, since=wrong)
    other = cache.session("other")
    await other.commit_runtime_state(commit(None, append("x"), session_id="other"))
    with pytest.raises(SessionBindingMismatch):
        await store.update(turn, since=await other.load_session(FullGraph()))
    assert shown == []


@pytest.mark.parametrize("fails", ["load", "function"])
async def test_whatever_else_fails_is_not_tried_again(fails, store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    asked = 0

    def turn(_read):
        nonlocal asked
        asked += 1
        raise ZeroDivisionError

    if fails == "load":
        await client.delete(*[key for key in await client.keys("*") if b":log:" in key])
    with pytest.raises(Corrupt if fails == "load" else ZeroDivisionError):
        await store.update(turn)
    assert asked == (fails == "function")


async def test_after_a_conflict_too_the_commit_whose_outcome_is_unknown_is_handed_over(proxy, through_proxy):
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
        await store.update(overtaken(turn, writer, append("x", parent="a")))
    proxy.on_command = lambda _: Action.PASS
    assert lost.value.commit.expected_head_revision == 2
    assert (await store.commit_runtime_state(lost.value.commit)).replayed
    assert ids_of(await store.load_session(FullGraph())) == ["a", "x", "c"]


async def test_many_writers_lose_no_turn(open_cache):
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


async def test_a_commit_that_names_its_revision_is_sent_as_it_is(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a")))
    made = commit(1, append("b", parent="a"), builds_on=None)
    assert (await store.update(lambda _: replace(made))).head_revision == 2
    with pytest.raises(HeadRevisionConflict):
        await store.update(lambda _: commit(1, append("c", parent="a")), attempts=2)
