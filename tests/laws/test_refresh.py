"""A refresh returns the same read as a load, and transfers only what is new."""

from __future__ import annotations

import asyncio
import copy
import pickle
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from lash_redis import (
    ActivePath,
    Append,
    Corrupt,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    PersistedSessionConfig,
    PersistedSessionRead,
    PersistedTurnState,
    RedisSessionStore,
    SessionBindingMismatch,
    SessionCache,
    SessionEvicted,
    SessionGraph,
    StoreError,
    Unchanged,
)
from tests.support.breaking import Lua, Python, broken_by, one_by_one
from tests.support.builders import (
    FAMILIES,
    append,
    blob_keys,
    chain,
    commit,
    ids_of,
    key_of,
    numbered,
    plant_fact,
    plugins,
    replace_full,
    tools,
    used,
)
from tests.support.lost_writes import fail_over, saved

SCOPES = [FullGraph(), ActivePath(), ActivePath("b")]
EVERY_SCOPE = pytest.mark.parametrize("scope", SCOPES, ids=["full", "path", "path to b"])
STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


async def outcome(reading: Awaitable[PersistedSessionRead | None]) -> PersistedSessionRead | type[StoreError] | None:
    try:
        return await reading
    except StoreError as error:
        return type(error)


async def build_session(store: RedisSessionStore) -> None:
    """Store a line of nodes, a branch with a tombstoned node, components and a ledger."""
    await store.commit_runtime_state(commit(None, append("a", "b", "c", "d"), checkpoint=STATES))
    await store.commit_runtime_state(
        commit(1, append("e", "f", parent="c"), checkpoint=STATES, usage_deltas=[used(input=1)])
    )
    await store.tombstone_nodes(["e"])
    await store.commit_runtime_state(commit(2, append("g", "h", parent="d"), checkpoint=STATES))


Change = Callable[[RedisSessionStore], Awaitable[object]]


def committing(*graphs, **fields) -> Change:
    async def change(store: RedisSessionStore) -> None:
        for graph in graphs:
            await store.commit_runtime_state(commit(None, graph, **{"checkpoint": STATES} | fields))

    return change


def in_turn(*changes: Change) -> Change:
    async def change(store: RedisSessionStore) -> None:
        for each in changes:
            await each(store)

    return change


def tombstoning(*ids: str) -> Change:
    return lambda store: store.tombstone_nodes(ids)


def vacuuming(store: RedisSessionStore) -> Awaitable[object]:
    return store.vacuum()


async def deleting(store: RedisSessionStore) -> None:
    await store.delete()


CHANGES: dict[str, Change] = {
    "nodes at the leaf": committing(append("i", "j", parent="h")),
    "two commits": committing(append("i", parent="h"), append("j", parent="i")),
    "a branch": committing(append("i", "j", parent="a")),
    "a branch from a node off the path": committing(append("i", parent="f")),
    "a node off the path": committing(Append(chain("i", parent="a"), "h")),
    "the leaf moved up": committing(Unchanged("d")),
    "the leaf moved to another branch": committing(Unchanged("f")),
    "the leaf moved and back": committing(Unchanged("f"), Unchanged("h")),
    "components": committing(Unchanged("h"), checkpoint=HydratedSessionCheckpoint(execution_state=b"2")),
    "components dropped": committing(Unchanged("h"), checkpoint=HydratedSessionCheckpoint()),
    "the turn": committing(Unchanged("h"), checkpoint=HydratedSessionCheckpoint(PersistedTurnState(turn_index=9))),
    "the config": committing(Unchanged("h"), config=PersistedSessionConfig("p", "another")),
    "the ledger": committing(Unchanged("h"), usage_deltas=[used(input=2), used("other", output=1)]),
    "tombstones": tombstoning("b", "f"),
    "tombstones among new nodes": in_turn(committing(append("i", "j", "k", parent="h")), tombstoning("j")),
    "a tombstoned leaf": tombstoning("h"),
    "old tombstones vacuumed": vacuuming,
    "old tombstones vacuumed, new nodes": in_turn(vacuuming, committing(append("i", parent="h"))),
    "a tombstone vacuumed": in_turn(tombstoning("b"), vacuuming),
    "a tombstone vacuumed, another not": in_turn(tombstoning("b"), vacuuming, tombstoning("g")),
    "new nodes vacuumed": in_turn(committing(append("i", "j", parent="h")), tombstoning("i"), vacuuming),
    "an id used again": in_turn(
        committing(append("i", parent="h"), Unchanged("h")), tombstoning("i"), vacuuming, committing(append("i"))
    ),
    "another graph": committing(replace_full("x", "y")),
    "another graph with the same ids": committing(replace_full("a", "b", "c", "d", "e", "f", "g", "h")),
    "a longer graph": committing(replace_full(*numbered(20))),
    "an empty graph": committing(replace_full()),
    "a hundred nodes": committing(append(*numbered(100), parent="h")),
    "a hundred tombstones": in_turn(committing(append(*numbered(120), parent="h")), tombstoning(*numbered(100))),
    "forty commits": committing(*[Unchanged("h")] * 40),
    "forty commits and a node": committing(*[Unchanged("h")] * 40, append("i", parent="h")),
    "a hundred jumps": committing(*[append(name, parent="a") for name in numbered(70)]),
    "a touch": lambda store: store.touch(ttl=500),
    "a deletion": deleting,
    "a deletion and a new session": in_turn(deleting, committing(append("a", "b", "c", "d"))),
    "nothing": in_turn(),
}


@pytest.mark.slow
@EVERY_SCOPE
@pytest.mark.parametrize("change", CHANGES)
async def test_a_refresh_equals_a_load_after_any_change(change, scope, open_cache):
    cache = open_cache(shards=1, deletion_marker_ttl=0)
    store, writer = cache.session("chat"), open_cache(shards=1, deletion_marker_ttl=0).session("chat")
    await build_session(writer)
    read = await store.load_session(scope)
    before = pickle.dumps(replace(read))
    await CHANGES[change](writer)
    expected = await outcome(open_cache(shards=1).session("chat").load_session(scope))
    refreshed = await outcome(store.refresh(read))
    assert refreshed == expected
    assert pickle.dumps(replace(read)) == before
    if isinstance(refreshed, PersistedSessionRead):
        assert refreshed.scope == scope
        assert refreshed.graph.active_path() == expected.graph.active_path()
        assert await store.refresh(refreshed) is refreshed


async def three_commits(store: RedisSessionStore, scope=FullGraph()):  # noqa: B008 - a record without a field
    """Commit the nodes a to c one by one, and return a read of them."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(2, append("c", parent="b"), checkpoint=STATES))
    return await store.load_session(scope)


@broken_by(
    Python(
        "protocol.commands.refresh:spans_of", lambda spans: lambda jumps, _, at: spans(jumps, (), at), "hides nothing"
    ),
    Python(
        "protocol.commands.refresh:_Log._with",
        lambda _: lambda log, pieces, places: log.nodes,
        "keeps what it has",
    ),
)
async def test_a_refresh_removes_tombstoned_nodes_and_adds_new_nodes(store, open_cache):
    reads = [await three_commits(store), await store.load_session(ActivePath())]
    writer = open_cache().session("chat")
    await writer.tombstone_nodes(["a"])
    await writer.commit_runtime_state(commit(None, append("d", parent="c"), checkpoint=STATES))
    for read in reads:
        assert ids_of(await store.refresh(read)) == ["b", "c", "d"]
        assert ids_of(read) == ["a", "b", "c"]


@broken_by(Python("protocol.commands.refresh:_Log.graph", lambda _: _without_counting, "counts nothing"))
async def test_a_refresh_removes_nodes_that_were_tombstoned_and_vacuumed(store, open_cache):
    read = await three_commits(store)
    writer = open_cache().session("chat")
    await writer.tombstone_nodes(["a"])
    await writer.vacuum()
    assert ids_of(await store.refresh(read)) == ["b", "c"]


def _without_counting(log, known):
    places = [at for at, record in enumerate(log.end, log.start) if record]
    return replace(known, head=log.head, nodes=log._with([(0, len(log.nodes))], places), dead=log.dead)


async def test_a_refresh_detects_a_replacement_of_the_same_size(store, open_cache):
    read = await three_commits(store)
    other = open_cache().session("chat")
    await other.commit_runtime_state(commit(None, replace_full("x", "y", "c"), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["x", "y", "c"]


async def test_a_refresh_reuses_decoded_nodes_and_leaves_the_old_read_unchanged(store, open_cache):
    for scope in (FullGraph(), ActivePath()):
        await store.delete()
        store = open_cache(deletion_marker_ttl=0).session("chat")
        read = await three_commits(store, scope)
        assert read.graph.nodes[0].payload.event["Conversation"]["text"] == "hello"
        await store.commit_runtime_state(commit(None, append("d", parent="c"), checkpoint=STATES))
        refreshed = await store.refresh(read)
        assert refreshed.graph.nodes[0] is read.graph.nodes[0]
        assert refreshed.graph.find_node("d") == refreshed.graph.nodes[3]
        assert read.graph.find_node("d") is None
        assert len(read.graph.nodes) == 3
        with pytest.raises(IndexError):
            read.graph.nodes[3]
        await store.tombstone_nodes(["b"])
        assert (await store.refresh(refreshed)).graph.nodes[-1] is refreshed.graph.nodes[3]
        await store.delete()


# Failovers


@broken_by(
    Lua("refresh", "\n  and tag == string.sub(stored.receipts, -16, -9) then", " then"),
)
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_refresh_detects_another_commit_at_the_same_revision(scope, store, client):
    """The other commit has the same size and the same time in milliseconds."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES))
    read = await store.load_session(scope)
    facts = await client.hget(await key_of(client, "head"), "facts")
    await fail_over(client, before)
    await store.commit_runtime_state(commit(1, append("x", parent="a"), checkpoint=STATES))
    await client.hset(await key_of(client, "head"), "facts", facts)
    assert ids_of(await store.refresh(read)) == ["a", "x"]


def ignoring_receipts(grown):
    def without_receipts(known, nodes, head, delta, dead):
        known = replace(known, head=replace(known.head, fields={**known.head.fields, b"receipts": head.receipts}))
        return grown(known, nodes, replace(head, fields={**head.fields, b"receipts": b""}), delta, dead)

    return staticmethod(without_receipts)


@broken_by(Python("protocol.commands.refresh:_Log.grown", ignoring_receipts, "compares no receipts"))
async def test_a_refresh_reloads_a_history_that_differs_before_the_last_commit(store, client):
    """The last commit of the read is sent again to the new primary, without an expected revision."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES))
    last = commit(None, append("c", parent="a"), checkpoint=STATES)
    await store.commit_runtime_state(last)
    read = await store.load_session(FullGraph())
    await fail_over(client, before)
    await store.commit_runtime_state(commit(1, append("x", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(last)
    await store.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["a", "x", "c", "d"]


@broken_by(Lua("refresh", "if mark ~= '' and ", "if mark == '-' and "))
async def test_a_refresh_detects_a_commit_sent_again_with_another_timestamp(store, client):
    """The receipt of a commit does not cover the timestamps of its nodes."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)

    def sent(timestamp):
        nodes = chain("b", parent="a", timestamp=timestamp)
        return commit(1, Append(nodes, "b"), checkpoint=STATES, commit_id="b")

    await store.commit_runtime_state(sent("12:00"))
    read = await store.load_session(FullGraph())
    await fail_over(client, before)
    await store.commit_runtime_state(sent("12:01"))
    assert [node.timestamp for node in (await store.refresh(read)).graph.nodes] == ["t", "12:01"]
    await store.commit_runtime_state(commit(2, append("c", parent="b"), checkpoint=STATES))
    assert [node.timestamp for node in (await store.refresh(read)).graph.nodes] == ["t", "12:01", "t"]


@broken_by(Lua("refresh", "if mark ~= '' and ", "if mark == '-' and "))
async def test_a_refresh_reloads_after_a_failover_older_than_all_receipts(store, client):
    await check_reload_after_failover(store, client, 34)


async def test_a_refresh_reloads_after_a_failover_with_more_nodes_than_one_reply_returns(store, client):
    await check_reload_after_failover(store, client, 80)


async def test_a_refresh_of_a_path_without_the_last_record_detects_a_failover(store, client):
    """The last record of the log is not on the path."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("y00", "leaf", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(2, Append(chain("off", parent="a"), "leaf"), checkpoint=STATES))
    read = await store.load_session(ActivePath())
    await fail_over(client, before)
    await store.commit_runtime_state(commit(1, append("x00", "leaf", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(2, Append(chain("off", parent="a"), "leaf"), checkpoint=STATES))
    for at in range(40):
        await store.commit_runtime_state(commit(3 + at, Unchanged("leaf"), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["a", "x00", "leaf"]


async def test_a_refresh_detects_a_failover_between_its_two_round_trips(store, client):
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("y00", parent="a"), checkpoint=STATES))
    read = await store.load_session(FullGraph())
    ids = [f"x{at:02}" for at in range(80)]
    await fail_over(client, before)
    for parent, name in zip(["a", *ids], ids, strict=False):
        await store.commit_runtime_state(commit(None, append(name, parent=parent), checkpoint=STATES))
    after_failover = await saved(client)
    await fail_over(client, before)
    await store.commit_runtime_state(commit(1, append("y00", parent="a"), checkpoint=STATES))
    for parent, name in zip(["y00", *ids], ids, strict=False):
        await store.commit_runtime_state(commit(None, append(name, parent=parent), checkpoint=STATES))
    run = store._namespace.run

    async def run_then_fail_over(call, **more):
        reply = await run(call, **more)
        if reply[0] == b"far":
            await fail_over(client, after_failover)
        return reply

    store._namespace.run = run_then_fail_over
    assert ids_of(await store.refresh(read)) == ["a", *ids]


async def check_reload_after_failover(store, client, more):
    """After a failover come `more` commits. Their records are as long as the lost ones."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("y00", parent="a"), checkpoint=STATES))
    read = await store.load_session(FullGraph())
    await fail_over(client, before)
    ids = [f"x{at:02}" for at in range(more)]
    for parent, name in zip(["a", *ids], ids, strict=False):
        await store.commit_runtime_state(commit(None, append(name, parent=parent), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["a", *ids]


async def test_a_refresh_detects_another_timestamp_of_a_node_before_the_last(store, client):
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)

    def sent(timestamp):
        nodes = [*chain("b", parent="a", timestamp=timestamp), *chain("c", parent="b")]
        return commit(1, Append(nodes, "c"), checkpoint=STATES, commit_id="b")

    await store.commit_runtime_state(sent("12:00"))
    read = await store.load_session(FullGraph())
    await fail_over(client, before)
    await store.commit_runtime_state(sent("12:01"))
    assert [node.timestamp for node in (await store.refresh(read)).graph.nodes] == ["t", "12:01", "t"]


async def test_a_second_refresh_detects_another_tombstone_behind_identical_facts(store, client):
    await three_commits(store)
    before = await saved(client)
    last = commit(3, append("d", parent="c"), checkpoint=STATES)
    await store.tombstone_nodes(["a"])
    read = await store.load_session(FullGraph())
    await store.commit_runtime_state(last)
    read = await store.refresh(read)
    assert ids_of(read) == ["b", "c", "d"]
    facts = await client.hget(await key_of(client, "head"), "facts")
    await fail_over(client, before)
    await store.tombstone_nodes(["b"])
    await store.commit_runtime_state(last)
    await client.hset(await key_of(client, "head"), "facts", facts)
    assert ids_of(await store.refresh(read)) == ["a", "c", "d"]


@broken_by(Lua("refresh", "hides = hides or not id", "hides = hides or false"))
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_refresh_restores_a_node_whose_tombstone_a_failover_lost(scope, store, client):
    """The number of tombstones is the same as before the failover."""
    await three_commits(store)
    before = await saved(client)
    await store.tombstone_nodes(["a"])
    read = await store.load_session(scope)
    assert ids_of(read) == ["b", "c"]
    await fail_over(client, before)
    await store.tombstone_nodes(["b"])
    expected = {"full": ["a", "c"], "path": ["c"]}["full" if scope == FullGraph() else "path"]
    assert ids_of(await store.refresh(read)) == expected


# Missing and damaged keys


@broken_by(Lua("refresh", "wrong = wrong or now and torn(now, log, nodes, jumps, dead, state)", ""))
@pytest.mark.parametrize("family", FAMILIES[1:])
async def test_a_refresh_without_a_new_commit_reports_the_missing_key(family, open_cache, client):
    await check_missing_key(family, open_cache, client, moved=False)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_refresh_after_a_new_commit_reports_the_missing_key(family, open_cache, client):
    await check_missing_key(family, open_cache, client, moved=True)


async def test_a_refresh_without_a_new_commit_reports_a_missing_head(open_cache, client):
    await check_missing_key("head", open_cache, client, moved=False)


async def check_missing_key(family, open_cache, client, *, moved):
    store = open_cache().session("chat")
    await build_session(store)
    reads = [await store.load_session(scope) for scope in SCOPES]
    if moved:
        await open_cache().session("chat").commit_runtime_state(commit(3, append("i", parent="h"), checkpoint=STATES))
    lost = await key_of(client, family)
    await client.delete(lost)
    for read in reads:
        with pytest.raises(SessionEvicted) as refused:
            await store.refresh(read)
        assert (refused.value.kind, refused.value.key) == (family, lost.decode())


async def test_a_refresh_of_a_session_without_a_head_returns_none(store, client):
    read = await three_commits(store)
    await client.flushall()
    assert await store.refresh(read) is None
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    read = await store.load_session(FullGraph())
    await store.delete()
    assert await store.refresh(read) is None


async def test_a_refresh_reports_a_missing_new_component(open_cache, client):
    store, writer = open_cache().session("chat"), open_cache().session("chat")
    read = await three_commits(store)
    known = set(await blob_keys(client))
    states = replace(STATES, tool_state=tools("other"))
    await writer.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=states))
    (fresh,) = set(await blob_keys(client)) - known
    await client.delete(fresh)
    with pytest.raises(SessionEvicted) as refused:
        await store.refresh(read)
    assert refused.value.key == fresh.decode()


@pytest.mark.parametrize("place", [0, 3])
async def test_a_refresh_raises_corrupt_on_access_to_a_damaged_new_record(place, store, client):
    """A refresh does not fetch a record again that the read already has."""
    read = await three_commits(store)
    await store.commit_runtime_state(commit(3, append("d", "e", parent="c"), checkpoint=STATES))
    log = await key_of(client, "log")
    record = await client.lindex(log, place)
    await client.lset(log, place, record[:-1] + bytes([record[-1] ^ 1]))
    refreshed = await store.refresh(read)
    if place < 3:  # the read has this record already
        assert [node.payload for node in refreshed.graph.nodes][place] == read.graph.nodes[place].payload
    else:
        with pytest.raises(Corrupt, match="checksum"):
            _ = refreshed.graph.nodes[place].payload


@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
@pytest.mark.parametrize("damage", ["a record too short", "a leaf that is another node", "an invalid jump"])
async def test_a_refresh_reports_the_same_damage_as_a_load(damage, scope, store, client):
    await three_commits(store)
    read = await store.load_session(scope)
    await store.commit_runtime_state(commit(3, append("d", "e", parent="a"), checkpoint=STATES))
    if damage == "a record too short":
        log = await key_of(client, "log")
        await client.lset(log, 3, (await client.lindex(log, 3))[:-1])
    elif damage == "a leaf that is another node":
        await plant_fact(client, "leaf", 3)
    else:
        await client.lset(await key_of(client, "jumps"), -1, "3:9")
    expected = await outcome(store.load_session(scope))
    assert await outcome(store.refresh(read)) == expected
    if (damage, scope) not in {("a record too short", ActivePath()), ("an invalid jump", FullGraph())}:
        assert expected is Corrupt


async def test_a_strict_refresh_refuses_a_leaf_that_lenient_checks_accept(lenient, store):
    await lenient.commit_runtime_state(commit(None, append("a", "b")))
    await lenient.tombstone_nodes(["b"])
    read = await lenient.load_session(ActivePath())
    assert await lenient.refresh(read) is read
    with pytest.raises(InvalidLeaf):
        await store.refresh(read)


# Accepted reads


async def test_a_read_of_another_session_is_refused(cache, store):
    read = await three_commits(store)
    with pytest.raises(SessionBindingMismatch):
        await cache.session("other").refresh(read)


async def test_a_refresh_of_a_read_of_another_namespace_loads_the_session(open_cache, store):
    read = await three_commits(store)
    other = open_cache(namespace="another").session("chat")
    assert await other.refresh(read) is None
    await other.commit_runtime_state(commit(None, append("x")))
    assert ids_of(await other.refresh(read)) == ["x"]


@pytest.mark.parametrize("copied", [
    lambda read: pickle.loads(pickle.dumps(read)), copy.copy, copy.deepcopy,
], ids=["pickled", "copied", "deeply copied"])  # fmt: skip
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_copied_read_is_refreshed_like_its_original(copied, scope, open_cache, client):
    store = open_cache().session("chat")
    read = copied(await three_commits(store, scope))
    again = open_cache().session("chat")
    assert await again.refresh(read) is read
    await store.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=STATES))
    refreshed = await again.refresh(read)
    assert refreshed == await store.load_session(scope)
    assert refreshed.scope == scope


@pytest.mark.parametrize("rebuilt", [
    replace, lambda read: PersistedSessionRead.from_json(read.to_json()),
], ids=["replaced", "from JSON"])  # fmt: skip
async def test_a_read_without_an_origin_is_refreshed_to_the_full_graph(rebuilt, store):
    await three_commits(store)
    await store.commit_runtime_state(commit(3, append("d", parent="a"), checkpoint=STATES))
    read = rebuilt(await store.load_session(ActivePath()))
    assert read.scope == FullGraph()
    assert ids_of(await store.refresh(read)) == ["a", "b", "c", "d"]


async def test_a_refresh_follows_links_by_id(lenient):
    await lenient.commit_runtime_state(commit(None, Append(chain("a", parent="nowhere"), "a")))
    await lenient.commit_runtime_state(commit(1, Append(chain("b", parent="later"), "b")))
    reads = [await lenient.load_session(scope) for scope in SCOPES]
    for read in reads:
        assert await lenient.refresh(read) is read
    await lenient.commit_runtime_state(commit(2, Append(chain("later", parent="a"), "b")))
    assert [ids_of(await lenient.refresh(read)) for read in reads] == [
        ["a", "b", "later"], ["a", "later", "b"], ["a", "later", "b"],
    ]  # fmt: skip
    await lenient.commit_runtime_state(commit(3, Unchanged("a")))
    assert [ids_of(await lenient.refresh(read)) for read in reads] == [
        ["a", "b", "later"], ["a"], ["a", "later", "b"],
    ]  # fmt: skip


async def test_a_refresh_follows_links_by_id_that_are_newer_than_the_read(lenient):
    await lenient.commit_runtime_state(commit(None, append("a")))
    read = await lenient.load_session(ActivePath())
    await lenient.commit_runtime_state(commit(1, Append(chain("b", parent="later"), "b")))
    await lenient.commit_runtime_state(commit(2, Append(chain("later", parent="a"), "b")))
    assert ids_of(await lenient.refresh(read)) == ["a", "later", "b"]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_refresh_returns_the_same_over_both_protocols(protocol, real_server):
    writer = SessionCache(real_server.client(protocol=5 - protocol), "laws").session("chat")
    store = SessionCache(real_server.client(protocol=protocol), "laws").session("chat")
    await build_session(writer)
    reads = [await store.load_session(scope) for scope in SCOPES]
    assert [await store.refresh(read) for read in reads] == reads
    await CHANGES["tombstones among new nodes"](writer)
    for read in reads:
        assert await store.refresh(read) == await writer.load_session(read.scope)


# One revision


@broken_by(Python("session.namespace:Namespace.read", one_by_one, "reads key by key"))
async def test_a_refresh_concurrent_with_commits_returns_one_revision(open_cache):
    """Every fourth commit adds more nodes than one reply of the script returns."""
    last = 40

    def revision(number):
        ids = [f"{number:02}.{at:03}" for at in range(70 if number % 4 == 0 else 1)]
        return commit(
            number - 1,
            append(*ids, parent=(f"{number - 1:02}.{69 if (number - 1) % 4 == 0 else 0:03}" if number > 1 else None)),
            config=PersistedSessionConfig("p", f"model {number}"),
            usage_deltas=[used(input=1)],
            checkpoint=HydratedSessionCheckpoint(execution_state=f"state {number}".encode()),
        )

    async def write():
        store = open_cache().session("chat")
        for number in range(2, last + 1):
            await store.commit_runtime_state(revision(number))

    async def refresh_until_last(scope):
        store = open_cache().session("chat")
        read = await store.load_session(scope)
        while read.head_revision < last:
            read = await store.refresh(read)
            seen = read.head_revision
            assert len(read.graph.nodes) == seen // 4 * 70 + (seen - seen // 4)
            assert read.graph.nodes[-1].node_id == read.graph.leaf_node_id
            assert read.graph.leaf_node_id.startswith(f"{seen:02}.")
            assert read.config.configured_model == f"model {seen}"
            assert read.token_ledger == (used(input=seen),)
            assert read.checkpoint.execution_state == f"state {seen}".encode()
            await asyncio.sleep(0)

    await open_cache().session("chat").commit_runtime_state(revision(1))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        for scope in SCOPES[:2]:
            tasks.create_task(refresh_until_last(scope))


async def test_two_refreshes_of_one_read_are_independent(open_cache, client):
    """A failover between them gives the session two histories."""
    store = open_cache().session("chat")
    read = await three_commits(store)
    before = await saved(client)
    await store.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=STATES))
    one = await store.refresh(read)
    await fail_over(client, before)
    await store.commit_runtime_state(commit(3, append("x", "y", parent="c"), checkpoint=STATES))
    other = await store.refresh(read)
    await store.commit_runtime_state(commit(4, append("z", parent="y"), checkpoint=STATES))
    third = await store.refresh(read)
    assert [ids_of(each) for each in (read, one, other, third)] == [
        ["a", "b", "c"], ["a", "b", "c", "d"], ["a", "b", "c", "x", "y"], ["a", "b", "c", "x", "y", "z"],
    ]  # fmt: skip
    assert [each.graph.node_index("c") for each in (read, one, other, third)] == [2, 2, 2, 2]
    assert [each.graph.node_index("x") for each in (read, one, other, third)] == [None, None, 3, 3]


# Cost


async def long_session(cache: SessionCache, count: int) -> RedisSessionStore:
    """Commit `count` nodes in two commits. The lengths of ids, timestamps and revisions do not depend on `count`."""
    store = cache.session("chat")
    ids = list(numbered(count))
    await store.commit_runtime_state(commit(None, append(*ids[: count // 2]), checkpoint=STATES))
    await store.commit_runtime_state(
        commit(1, append(*ids[count // 2 :], parent=ids[count // 2 - 1]), checkpoint=STATES)
    )
    return store


COUNTS = (10, 10_000)


@broken_by(Lua("refresh", "return {'same', session}", "now.revision = now.revision"))
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_refresh_without_changes_is_one_small_round_trip(scope, through_proxy, proxy, real_server):
    for count in COUNTS:
        await real_server.client().flushall()
        store = await long_session(through_proxy(), count)
        read = await store.load_session(scope)
        await store.refresh(read)
        with proxy.measure() as seen:
            assert await store.refresh(read) is read
        assert (seen.round_trips, seen.names()) == (1, ["EVALSHA"])
        assert seen.bytes_sent < 600
        assert seen.bytes_received < 50


@pytest.mark.slow
@broken_by(Python("session.reader:Reader.refresh", lambda _: lambda self, read: self.load(read.scope), "loads"))
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_refresh_transfers_only_new_nodes_in_one_round_trip(scope, through_proxy, proxy, real_server):
    received = []
    for count in COUNTS:
        await real_server.client().flushall()
        store = await long_session(through_proxy(), count)
        read = await store.load_session(scope)
        await store.refresh(read)
        await store.commit_runtime_state(
            commit(2, append("x", "y", parent=numbered(count)[-1], text="x" * 1000), checkpoint=STATES)
        )
        with proxy.measure() as seen:
            assert ids_of(await store.refresh(read)) == [*numbered(count), "x", "y"]
        assert (seen.round_trips, seen.names()) == (1, ["EVALSHA"])
        received.append(seen.bytes_received)
    assert max(received) - min(received) < 40  # some numbers have more digits
    assert max(received) < 2 * 1000 + 1200


@broken_by(Lua("refresh", "now.length - known.length > limit or", "now.length - known.length > 63 or"))
async def test_64_new_nodes_take_one_round_trip_and_more_take_two(through_proxy, proxy):
    store = await long_session(through_proxy(), 10)
    read = await store.load_session(FullGraph())
    await store.refresh(read)
    ids = [f"x{at}" for at in range(200)]
    for parent, stop, trips in (("n000009", 64, 1), ("x63", 65, 2), ("x64", 200, 2)):
        first = int(parent[1:]) + 1 if parent.startswith("x") else 0
        await store.commit_runtime_state(commit(None, append(*ids[first:stop], parent=parent), checkpoint=STATES))
        with proxy.measure() as seen:
            assert ids_of(await store.refresh(read)) == [*numbered(10), *ids[:stop]]
        assert seen.round_trips == trips


async def test_a_path_cut_by_vacuumed_nodes_is_refreshed_with_one_command(through_proxy, proxy):
    """One vacuumed node is older than the read, and the other one is newer."""
    store = through_proxy().session("chat")
    await three_commits(store)
    await store.tombstone_nodes(["a"])
    await store.vacuum()
    read = await store.load_session(ActivePath())
    await store.commit_runtime_state(commit(3, append("d", "e", parent="c"), checkpoint=STATES))
    await store.commit_runtime_state(commit(4, append("f", parent="c"), checkpoint=STATES))
    await store.tombstone_nodes(["d"])
    await store.vacuum()
    with proxy.measure() as seen:
        refreshed = await store.refresh(read)
    assert ids_of(refreshed) == ["b", "c", "f"]
    assert seen.names() == ["EVALSHA"]


@pytest.mark.slow
@broken_by(Python("protocol.stored_nodes:_SharedRecords.matches", lambda _: lambda *_: False, "copies each time"))
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_hundred_reads_of_one_session_share_its_records(scope, store):
    """A copy of the 3,000 references of a read would take 24 KB."""
    ids = numbered(3000)
    await store.commit_runtime_state(commit(None, append(*ids[:-1]), checkpoint=STATES))
    await store.commit_runtime_state(commit(None, Append(chain("off", parent=ids[0]), ids[-2]), checkpoint=STATES))
    await store.commit_runtime_state(commit(None, append(ids[-1], parent=ids[-2]), checkpoint=STATES))
    reads = [await store.load_session(scope)]
    count = len(reads[0].graph.nodes)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for at in range(100):
            await store.commit_runtime_state(
                commit(None, append(f"x{at}", parent=f"x{at - 1}" if at else ids[-1]), checkpoint=STATES)
            )
            again = await store.refresh(reads[-1])
            reads.append(await store.refresh(reads[-1]))
            assert again == reads[-1]
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert [len(read.graph.nodes) for read in reads] == list(range(count, count + 101))
    assert taken < 100 * 12_000


async def test_a_refresh_fetches_only_components_that_the_read_does_not_contain(through_proxy, proxy):
    """The process caches no blobs."""
    store, writer = through_proxy(blob_cache_bytes=0).session("chat"), through_proxy().session("chat")
    read = await three_commits(writer)
    read = await store.load_session(FullGraph())
    await store.refresh(read)
    states = replace(STATES, execution_state=b"2")
    await writer.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=states))
    with proxy.measure() as seen:
        refreshed = await store.refresh(read)
    assert seen.names() == ["EVALSHA"]
    assert (refreshed.checkpoint.tool_state, refreshed.checkpoint.execution_state) == (tools(), b"2")
    states = replace(states, tool_state=tools("other"))
    await writer.commit_runtime_state(commit(4, append("e", parent="d"), checkpoint=states))
    with proxy.measure() as seen:
        refreshed = await store.refresh(refreshed)
    assert seen.names() == ["EVALSHA", "HGET"]
    assert (refreshed.checkpoint.tool_state, refreshed.checkpoint.execution_state) == (tools("other"), b"2")
    with proxy.measure() as seen:
        assert await store.refresh(refreshed) is refreshed
    assert seen.names() == ["EVALSHA"]


async def test_a_commit_after_a_refresh_is_one_round_trip(through_proxy, proxy):
    """After the refresh, the handle knows the components of the head."""
    writer = through_proxy().session("chat")
    read = await three_commits(writer)
    cache = through_proxy()
    await cache.session("chat").load_head()
    store = cache.session("chat")
    await store.refresh(read)
    with proxy.measure() as seen:
        await store.commit_runtime_state(commit(3, append("d", parent="c")))
    assert seen.names() == ["EVALSHA"]


@broken_by(
    Python("session.store:RedisSessionStore._seen", lambda _: lambda self, read: _unchanged(read), "does not slide")
)
async def test_a_refresh_extends_the_deadline_when_slide_on_load_is_set(open_cache, client):
    store = open_cache(ttl=100, slide_on_load=True).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    read = await store.load_session(FullGraph())
    await client.pexpire(await key_of(client, "log"), 5000)
    assert await store.refresh(read) == read
    assert await client.pttl(await key_of(client, "log")) > 90_000


async def _unchanged(read):
    return read


def test_the_origin_of_a_read_is_not_in_its_repr_json_or_constructor():
    read = PersistedSessionRead("s", 1, PersistedSessionConfig(), SessionGraph())
    assert "_origin" not in repr(read)
    assert "_origin" not in read.to_json()
    with pytest.raises(TypeError):
        PersistedSessionRead("s", 1, PersistedSessionConfig(), SessionGraph(), _origin=1)  # type: ignore[call-arg]
