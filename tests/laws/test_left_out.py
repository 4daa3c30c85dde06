"""A commit keeps what it leaves out: no caller overwrites a turn or loses state by forgetting an argument."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from lash_redis import (
    KEEP,
    SEEN,
    ActivePath,
    Append,
    BackendError,
    CommitIdReused,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    InvalidRecord,
    OutcomeUnknown,
    PersistedSessionConfig,
    PersistedTurnState,
    RuntimeCommit,
    SessionGone,
    StoreOptions,
    Unchanged,
)
from lash_redis.protocol.heads import NO_HEAD
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, chain, commit, ids_of, node, plugins, tools, used
from tests.support.proxy import Action, on
from tests.support.sending import sends_once

CONFIG = PersistedSessionConfig(provider_id="p", configured_model="gpt-5", context_window=9)
STATE = HydratedSessionCheckpoint(
    turn_state=PersistedTurnState(turn_index=7),
    tool_state=tools(),
    plugin_snapshot=plugins(),
    plugin_snapshot_revision=3,
    execution_state=b"image",
)


def rich(*ids: str) -> RuntimeCommit:
    return RuntimeCommit("chat", 0, CONFIG, append(*ids), STATE)


async def stored(store):
    read = await store.load_session(FullGraph())
    checkpoint = read.checkpoint
    return (
        read.config,
        checkpoint.turn_state.turn_index,
        checkpoint.tool_state,
        checkpoint.plugin_snapshot,
        checkpoint.plugin_snapshot_revision,
        checkpoint.execution_state,
        read.graph.leaf_node_id,
    )


RICH = (CONFIG, 7, tools(), plugins(), 3, b"image")


# The expected revision


def comparing_nothing(basis_of):
    async def careless(commit, seen, reader):
        if commit.expected_head_revision is SEEN:
            commit = replace(commit, expected_head_revision=None)
        return await basis_of(commit, seen, reader)

    return careless


COMPARES_NOTHING = Python("session.store:basis_of", comparing_nothing, "reads SEEN as None")


@broken_by(COMPARES_NOTHING)
async def test_a_handle_that_saw_no_revision_expects_a_new_session(store, open_cache):
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a")))
    with pytest.raises(HeadRevisionConflict) as refused:
        await open_cache().session("chat").commit_runtime_state(RuntimeCommit("chat", graph=append("b", parent="a")))
    assert (refused.value.expected, refused.value.actual) == (0, 1)


@broken_by(COMPARES_NOTHING)
async def test_a_commit_builds_on_the_revision_that_its_handle_saw_last(store, open_cache):
    other = open_cache().session("chat")
    assert (await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a")))).head_revision == 1
    assert (await store.commit_runtime_state(RuntimeCommit("chat", graph=append("b", parent="a")))).head_revision == 2
    await other.load_session(ActivePath())
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("c", parent="b")))
    with pytest.raises(HeadRevisionConflict) as refused:
        await other.commit_runtime_state(RuntimeCommit("chat", graph=append("d", parent="b")))
    assert (refused.value.expected, refused.value.actual) == (2, 3)
    await other.load_head()
    assert (await other.commit_runtime_state(RuntimeCommit("chat", graph=append("d", parent="c")))).head_revision == 4


async def test_a_refused_commit_does_not_change_what_the_handle_saw(store, open_cache):
    other = open_cache().session("chat")
    await store.commit_runtime_state(rich("a"))
    await other.load_session(FullGraph())
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("b", parent="a")))
    for _ in range(2):
        with pytest.raises(HeadRevisionConflict):
            await other.commit_runtime_state(RuntimeCommit("chat", config=CONFIG))
        with pytest.raises(HeadRevisionConflict):
            await other.commit_runtime_state(RuntimeCommit("chat", 1))


async def test_a_session_that_is_gone_is_not_started_again_by_a_handle_that_saw_it(store, open_cache):
    await store.commit_runtime_state(rich("a"))
    await open_cache(deletion_marker_ttl=0).delete("chat")
    with pytest.raises(SessionGone):
        await store.commit_runtime_state(RuntimeCommit("chat", usage_deltas=[used(input=1)]))
    assert await store.load_session(FullGraph()) is None


async def test_none_compares_nothing(store, open_cache):
    await store.commit_runtime_state(rich("a"))
    other = open_cache().session("chat")
    assert (await other.commit_runtime_state(commit(None, append("b", parent="a")))).head_revision == 2


@pytest.mark.parametrize("value", [KEEP, "1", -1, True, 2**63, 1.0])
async def test_a_wrong_revision_is_refused_by_its_name(value, store):
    with pytest.raises(InvalidRecord) as refused:
        await store.commit_runtime_state(RuntimeCommit("chat", value))
    assert refused.value.field == "RuntimeCommit.expected_head_revision"


# The values that stay


def forgetting(basis_of):
    async def forgetful(commit, seen, reader):
        return replace(await basis_of(commit, seen, reader), head=NO_HEAD)

    return forgetful


FORGETS = Python("session.store:basis_of", forgetting, "takes nothing from the head")


@broken_by(FORGETS)
@pytest.mark.parametrize("sees", ["its own commit", "a load", "a path", "a head", "nothing"])
async def test_what_a_commit_leaves_out_stays(sees, store, open_cache):
    await store.commit_runtime_state(rich("a", "b"))
    handle, expected = (store if sees == "its own commit" else open_cache().session("chat")), SEEN
    if sees == "a load":
        await handle.load_session(FullGraph())
    elif sees == "a path":
        await handle.load_session(ActivePath())
    elif sees == "a head":
        await handle.load_head()
    elif sees == "nothing":
        expected = 1
    result = await handle.commit_runtime_state(RuntimeCommit("chat", expected, usage_deltas=[used(input=5)]))
    assert (result.head_revision, result.manifest.turn_state.turn_index) == (2, 7)
    await handle.commit_runtime_state(RuntimeCommit("chat", graph=append("c", parent="b")))
    assert await stored(store) == (*RICH, "c")
    assert (await store.load_head()).token_ledger == (used(input=5),)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"config": PersistedSessionConfig(configured_model="other")}, RICH[1:]),
        ({"checkpoint": HydratedSessionCheckpoint()}, (0, None, None, None, None)),
    ],
    ids=["config", "checkpoint"],
)
async def test_a_value_that_is_given_replaces_the_whole_value(given, left, store):
    await store.commit_runtime_state(rich("a"))
    await store.commit_runtime_state(RuntimeCommit("chat", **given))
    config, *rest, leaf = await stored(store)
    assert (config.configured_model, leaf) == ("other" if "config" in given else "gpt-5", "a")
    assert tuple(rest) == left


@broken_by(
    Lua("commit", "if mark == 126 then return facts.leaf or -1 end", "if mark == 126 then return -1 end"),
)
async def test_a_leaf_that_is_left_out_stays_even_if_it_is_tombstoned(store):
    await store.commit_runtime_state(rich("a", "b"))
    await store.commit_runtime_state(RuntimeCommit("chat"))
    assert ids_of(await store.load_session(ActivePath())) == ["a", "b"]
    await store.tombstone_nodes(["b"])
    await store.commit_runtime_state(RuntimeCommit("chat", usage_deltas=[used(input=1)]))
    assert (await store.load_head()).leaf_node_id == "b"
    with pytest.raises(InvalidLeaf):
        await store.load_session(ActivePath())


async def test_a_first_commit_has_the_default_of_what_it_leaves_out(store):
    await store.commit_runtime_state(RuntimeCommit("chat"))
    assert await stored(store) == (PersistedSessionConfig(), 0, None, None, None, None, None)


async def test_the_leaf_of_an_append_is_its_last_node_unless_it_is_given(store):
    await store.commit_runtime_state(RuntimeCommit("chat", graph=Append(chain("a", "b"))))
    assert (await store.load_head()).leaf_node_id == "b"
    await store.commit_runtime_state(RuntimeCommit("chat", graph=Append([node("c", "a")], "b")))
    assert (await store.load_head()).leaf_node_id == "b"
    await store.commit_runtime_state(RuntimeCommit("chat", graph=Append(())))
    assert (await store.load_head()).leaf_node_id == "b"
    with pytest.raises(InvalidLeaf):
        await store.commit_runtime_state(RuntimeCommit("chat", graph=Append([node("d", "b")], None)))


@broken_by(
    Lua("replace", "plan.leaf = facts.leaf or -1", "plan.leaf = -1"),
)
async def test_a_commit_of_many_usage_rows_keeps_what_it_leaves_out(store):
    """More than 500 rows are committed by replace.lua."""
    await store.commit_runtime_state(rich("a"))
    rows = [used(source=f"s{number}", input=1) for number in range(501)]
    await store.commit_runtime_state(RuntimeCommit("chat", usage_deltas=rows))
    assert await stored(store) == (*RICH, "a")
    assert ids_of(await store.load_session(ActivePath())) == ["a"]


async def test_lenient_checks_keep_what_is_left_out(lenient):
    await lenient.commit_runtime_state(rich("a"))
    await lenient.commit_runtime_state(RuntimeCommit("chat", graph=Unchanged("unknown")))
    await lenient.commit_runtime_state(RuntimeCommit("chat", usage_deltas=[used(input=1)]))
    assert await stored(lenient) == (*RICH, "unknown")


def unguarded(basis_of):
    async def overwriting(commit, seen, reader):
        basis = await basis_of(commit, seen, reader)
        return replace(basis, commit=replace(basis.commit, expected_head_revision=None, builds_on=None))

    return overwriting


@broken_by(Python("session.store:basis_of", unguarded, "writes back values of an older revision"))
@pytest.mark.parametrize("is_known", [True, False])
async def test_a_commit_that_compares_nothing_keeps_values_of_the_revision_it_replaces(is_known, store, open_cache):
    """Another worker changes the checkpoint between the read of the values and the commit."""
    await store.commit_runtime_state(rich("a"))
    handle, rivals = open_cache().session("chat"), [HydratedSessionCheckpoint(execution_state=b"new")]
    if is_known:
        await handle.load_session(FullGraph())
    publish = handle._publisher.publish

    async def overtaken(*args):
        if rivals:
            await store.commit_runtime_state(RuntimeCommit("chat", checkpoint=rivals.pop()))
        return await publish(*args)

    handle._publisher.publish = overtaken
    result = await handle.commit_runtime_state(RuntimeCommit("chat", None, usage_deltas=[used(input=1)]))
    assert result.head_revision == 3
    assert (await stored(store))[5] == b"new"


async def test_commits_that_compare_nothing_succeed_however_many_there_are_at_once(store, open_cache):
    await store.commit_runtime_state(rich("a"))
    handles = [open_cache().session("chat") for _ in range(16)]
    turns = [RuntimeCommit("chat", None, usage_deltas=[used(input=1)]) for _ in handles]
    await asyncio.gather(*(handle.commit_runtime_state(turn) for handle, turn in zip(handles, turns, strict=True)))
    assert (await store.load_head()).token_ledger == (used(input=16),)
    assert await stored(store) == (*RICH, "a")


async def test_values_of_one_head_are_not_committed_on_another(store, open_cache):
    """The handle reads revision 1, and the revision that it names is made by another worker before its commit."""
    await store.commit_runtime_state(rich("a"))
    handle, rivals = open_cache().session("chat"), [HydratedSessionCheckpoint(execution_state=b"new")]
    publish = handle._publisher.publish

    async def overtaken(*args):
        await store.commit_runtime_state(RuntimeCommit("chat", checkpoint=rivals.pop()))
        return await publish(*args)

    handle._publisher.publish = overtaken
    with pytest.raises(HeadRevisionConflict):
        await handle.commit_runtime_state(RuntimeCommit("chat", 2, usage_deltas=[used(input=1)]))
    assert (await stored(store))[5] == b"new"


async def test_a_commit_that_other_commits_always_precede_reports_the_time_and_that_nothing_was_written(
    store, open_cache, monkeypatch
):
    await store.commit_runtime_state(rich("a"))
    monkeypatch.setattr(StoreOptions, "contention_seconds", 0.2)
    handle = open_cache().session("chat")
    publish, mine = handle._publisher.publish, [used(input=1)]

    async def overtaken(*args):
        await store.commit_runtime_state(RuntimeCommit("chat", graph=Unchanged("a")))
        return await publish(*args)

    handle._publisher.publish = overtaken
    with pytest.raises(BackendError) as raised:
        await handle.commit_runtime_state(RuntimeCommit("chat", None, usage_deltas=mine))
    expected = "session 'chat': other commits came first for 0.2 seconds; nothing was written, retry later"
    assert expected in str(raised.value)
    assert (await store.load_head()).token_ledger == ()


# Retries


def reading_values(meaning):
    def resolved(prepared, config, manifest):
        given = replace(prepared.commit, config=prepared.head.config, checkpoint=HydratedSessionCheckpoint())
        prepared.commit, kept = given, prepared.commit
        found = meaning(prepared, config, manifest)
        prepared.commit = kept
        return found

    return resolved


@broken_by(Python("protocol.commands.prepared_commit:_meaning", reading_values, "hashes the values that stay"))
async def test_a_retry_is_recognised_after_the_values_that_stay_have_changed(store, open_cache):
    await store.commit_runtime_state(rich("a"))
    turn = RuntimeCommit("chat", 1, graph=append("b", parent="a"))
    first = await store.commit_runtime_state(turn)
    changed = HydratedSessionCheckpoint(execution_state=b"new")
    await store.commit_runtime_state(RuntimeCommit("chat", config=PersistedSessionConfig(), checkpoint=changed))
    for handle in (store, open_cache().session("chat")):
        again = await handle.commit_runtime_state(turn)
        assert (again.replayed, again.head_revision) == (True, first.head_revision)


async def test_a_retry_by_another_worker_is_recognised_without_a_revision(store, open_cache):
    turn = RuntimeCommit("chat", graph=append("a"))
    await store.commit_runtime_state(turn)
    again = await open_cache().session("chat").commit_runtime_state(turn)
    assert (again.replayed, again.head_revision) == (True, 1)


async def test_a_value_that_is_given_is_another_meaning_than_a_value_that_stays(store):
    await store.commit_runtime_state(rich("a"))
    turn = RuntimeCommit("chat", 1)
    await store.commit_runtime_state(turn)
    for given in ({"config": CONFIG}, {"checkpoint": STATE}, {"graph": Unchanged("a")}, {"graph": Append(())}):
        with pytest.raises(CommitIdReused):
            await store.commit_runtime_state(replace(turn, **given))


async def test_a_lost_reply_is_settled_by_the_same_commit(proxy, through_proxy):
    store = sends_once(through_proxy()).session("chat")
    await store.commit_runtime_state(rich("a"))
    turn = RuntimeCommit("chat", graph=append("b", parent="a"))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown):
        await store.commit_runtime_state(turn)
    again = await store.commit_runtime_state(turn)
    assert (again.replayed, again.head_revision, again.manifest.turn_state.turn_index) == (True, 2, 7)
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("c", parent="b")))
    assert await stored(store) == (*RICH, "c")


# Cost and faults


async def test_a_commit_takes_one_round_trip_if_its_handle_knows_the_head(proxy, through_proxy):
    store, other = through_proxy().session("chat"), through_proxy().session("chat")
    await store.commit_runtime_state(rich("a"))
    trips = []
    await other.load_head()
    for handle, expected in ((store, SEEN), (store, None), (other, 3)):
        with proxy.measure() as seen:
            await handle.commit_runtime_state(RuntimeCommit("chat", expected))
        trips.append(seen.round_trips)
    assert trips == [1, 1, 2]


async def test_update_binds_a_revision_that_is_left_out_to_the_read(store, open_cache):
    await store.commit_runtime_state(rich("a"))
    rival, shown = open_cache().session("chat"), []
    await rival.load_head()

    async def turn(read):
        shown.append(read.head_revision)
        if len(shown) == 1:
            await rival.commit_runtime_state(RuntimeCommit("chat", usage_deltas=[used(input=1)]))
        return RuntimeCommit("chat", graph=append(f"n{len(shown)}", parent="a"))

    assert (await store.update(turn)).head_revision == 3
    assert shown == [1, 2]
    assert await stored(store) == (*RICH, "n2")


async def test_a_stored_value_that_is_unreadable_is_never_kept(store, client):
    await store.commit_runtime_state(rich("a"))
    (head,) = [key for key in await client.keys("*") if b":head:" in key]
    body = await client.hget(head, "body")
    await client.hset(head, "body", body[:-1] + b"\xff")
    with pytest.raises(Corrupt):
        await store.commit_runtime_state(RuntimeCommit("chat", 1, builds_on="unknown"))
    assert await client.hget(head, "body") == body[:-1] + b"\xff"


# JSON


def test_json_leaves_out_what_a_commit_leaves_out():
    turn = RuntimeCommit("chat", commit_id="c")
    assert turn.to_json() == {"session_id": "chat", "usage_deltas": [], "commit_id": "c"}
    assert RuntimeCommit.from_json(turn.to_json()) == turn
    explicit = RuntimeCommit("chat", None, CONFIG, Append((), None), HydratedSessionCheckpoint(), commit_id="c")
    assert explicit.to_json()["expected_head_revision"] is None
    assert RuntimeCommit.from_json(explicit.to_json()) == explicit
    assert Append(()).to_json() == {"Append": {"nodes": []}}
    assert Append.from_json({"Append": {"nodes": [node("a").to_json()]}}) == Append((node("a"),), "a")
