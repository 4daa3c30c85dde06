"""A read brought up to date is what a load would be, for the price of what is new."""

from __future__ import annotations

import asyncio
import copy
import pickle
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import redis.asyncio

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

SCOPES = [FullGraph(), ActivePath(), ActivePath("b")]
EVERY_SCOPE = pytest.mark.parametrize("scope", SCOPES, ids=["full", "path", "path to b"])
STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


async def answer(reading: Awaitable[PersistedSessionRead | None]) -> PersistedSessionRead | type[StoreError] | None:
    try:
        return await reading
    except StoreError as error:
        return type(error)


async def furnished(store: RedisSessionStore) -> None:
    """Nodes in a line and a branch, one of them hidden; components; a ledger."""
    await store.commit_runtime_state(commit(None, append("a", "b", "c", "d"), checkpoint=STATES))
    await store.commit_runtime_state(
        commit(1, append("e", "f", parent="c"), checkpoint=STATES, usage_deltas=[used(input=1)])
    )
    await store.tombstone_nodes(["e"])
    await store.commit_runtime_state(commit(2, append("g", "h", parent="d"), checkpoint=STATES))


Change = Callable[[RedisSessionStore], Awaitable[object]]


def made(*graphs, **fields) -> Change:
    async def change(store: RedisSessionStore) -> None:
        for graph in graphs:
            await store.commit_runtime_state(commit(None, graph, **{"checkpoint": STATES} | fields))

    return change


def after(*changes: Change) -> Change:
    async def change(store: RedisSessionStore) -> None:
        for each in changes:
            await each(store)

    return change


def hidden(*ids: str) -> Change:
    return lambda store: store.tombstone_nodes(ids)


def freed(store: RedisSessionStore) -> Awaitable[object]:
    return store.vacuum()


async def deleted(store: RedisSessionStore) -> None:
    await store.delete()


CHANGES: dict[str, Change] = {
    "nodes at the leaf": made(append("i", "j", parent="h")),
    "two commits": made(append("i", parent="h"), append("j", parent="i")),
    "a branch": made(append("i", "j", parent="a")),
    "a branch below what is not on the path": made(append("i", parent="f")),
    "a node off the path": made(Append(chain("i", parent="a"), "h")),
    "the leaf moved up": made(Unchanged("d")),
    "the leaf moved to another branch": made(Unchanged("f")),
    "the leaf moved and back": made(Unchanged("f"), Unchanged("h")),
    "components": made(Unchanged("h"), checkpoint=HydratedSessionCheckpoint(execution_state=b"2")),
    "components dropped": made(Unchanged("h"), checkpoint=HydratedSessionCheckpoint()),
    "the turn": made(Unchanged("h"), checkpoint=HydratedSessionCheckpoint(PersistedTurnState(turn_index=9))),
    "the config": made(Unchanged("h"), config=PersistedSessionConfig("p", "another")),
    "the ledger": made(Unchanged("h"), usage_deltas=[used(input=2), used("other", output=1)]),
    "tombstones": hidden("b", "f"),
    "tombstones below new nodes": after(made(append("i", "j", "k", parent="h")), hidden("j")),
    "a dead leaf": hidden("h"),
    "old tombstones freed": freed,
    "old tombstones freed, new nodes": after(freed, made(append("i", parent="h"))),
    "a tombstone freed": after(hidden("b"), freed),
    "a tombstone freed, another not": after(hidden("b"), freed, hidden("g")),
    "new nodes freed": after(made(append("i", "j", parent="h")), hidden("i"), freed),
    "an id used again": after(made(append("i", parent="h"), Unchanged("h")), hidden("i"), freed, made(append("i"))),
    "another graph": made(replace_full("x", "y")),
    "another graph with the same ids": made(replace_full("a", "b", "c", "d", "e", "f", "g", "h")),
    "a longer graph": made(replace_full(*numbered(20))),
    "an empty graph": made(replace_full()),
    "a hundred nodes": made(append(*numbered(100), parent="h")),
    "a hundred tombstones": after(made(append(*numbered(120), parent="h")), hidden(*numbered(100))),
    "forty commits": made(*[Unchanged("h")] * 40),
    "forty commits and a node": made(*[Unchanged("h")] * 40, append("i", parent="h")),
    "a hundred jumps": made(*[append(name, parent="a") for name in numbered(70)]),
    "a touch": lambda store: store.touch(ttl=500),
    "a deletion": deleted,
    "a deletion and a new begin": after(deleted, made(append("a", "b", "c", "d"))),
    "nothing": after(),
}


@pytest.mark.slow
@EVERY_SCOPE
@pytest.mark.parametrize("change", CHANGES)
async def test_whatever_happened_a_refresh_is_what_a_load_would_be(change, scope, open_cache):
    cache = open_cache(shards=1, deletion_marker_ttl=0)
    store, writer = cache.session("chat"), open_cache(shards=1, deletion_marker_ttl=0).session("chat")
    await furnished(writer)
    read = await store.load_session(scope)
    shown = pickle.dumps(replace(read))
    await CHANGES[change](writer)
    expected = await answer(open_cache(shards=1).session("chat").load_session(scope))
    refreshed = await answer(store.refresh(read))
    assert refreshed == expected
    assert pickle.dumps(replace(read)) == shown
    if isinstance(refreshed, PersistedSessionRead):
        assert refreshed.scope == scope
        assert refreshed.graph.active_path() == expected.graph.active_path()
        assert await store.refresh(refreshed) is refreshed


async def pieces(store: RedisSessionStore, scope=FullGraph()):  # noqa: B008 - a record without a field
    """A read of three commits: a to c."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(2, append("c", parent="b"), checkpoint=STATES))
    return await store.load_session(scope)


@broken_by(
    Python(
        "protocol.commands.refresh:spans_of", lambda spans: lambda jumps, _, at: spans(jumps, (), at), "hides nothing"
    ),
    Python(
        "protocol.commands.refresh:_Log._with", lambda _: lambda log, pieces, places: log.nodes, "keeps what it has"
    ),
)
async def test_what_was_hidden_since_is_gone_and_what_came_is_there(store, open_cache):
    reads = [await pieces(store), await store.load_session(ActivePath())]
    writer = open_cache().session("chat")
    await writer.tombstone_nodes(["a"])
    await writer.commit_runtime_state(commit(None, append("d", parent="c"), checkpoint=STATES))
    for read in reads:
        assert ids_of(await store.refresh(read)) == ["b", "c", "d"]
        assert ids_of(read) == ["a", "b", "c"]


@broken_by(Python("protocol.commands.refresh:_Log.graph", lambda _: _without_counting, "counts nothing"))
async def test_a_node_hidden_and_freed_since_is_gone(store, open_cache):
    read = await pieces(store)
    writer = open_cache().session("chat")
    await writer.tombstone_nodes(["a"])
    await writer.vacuum()
    assert ids_of(await store.refresh(read)) == ["b", "c"]


def _without_counting(log, known):
    places = [at for at, record in enumerate(log.end, log.start) if record]
    return replace(known, head=log.head, nodes=log._with([(0, len(log.nodes))], places), dead=log.dead)


async def test_another_graph_of_the_same_size_is_another_graph(store, open_cache):
    read = await pieces(store)
    other = open_cache().session("chat")
    await other.commit_runtime_state(commit(None, replace_full("x", "y", "c"), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["x", "y", "c"]


async def test_what_was_looked_at_stays_decoded(store, open_cache):
    for scope in (FullGraph(), ActivePath()):
        await store.delete()
        store = open_cache(deletion_marker_ttl=0).session("chat")
        read = await pieces(store, scope)
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


# What a failover takes back


Saved = dict[bytes, bytes]


async def saved(client: redis.asyncio.Redis) -> Saved:
    return {key: await client.dump(key) for key in await client.keys("*")}


async def failed_over(client: redis.asyncio.Redis, to: Saved) -> None:
    """To a replica that had heard of `to` and of nothing since."""
    await client.flushall()
    for key, value in to.items():
        await client.restore(key, 0, value)


@broken_by(
    Lua("refresh", "\n  and tag == string.sub(stored.receipts, -16, -9) then", " then"),
)
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_revision_that_came_round_again_with_another_content_is_read(scope, store, client):
    """Even one that was made in the same millisecond and has as many bytes."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES))
    read = await store.load_session(scope)
    facts = await client.hget(await key_of(client, "head"), "facts")
    await failed_over(client, before)
    await store.commit_runtime_state(commit(1, append("x", parent="a"), checkpoint=STATES))
    await client.hset(await key_of(client, "head"), "facts", facts)
    assert ids_of(await store.refresh(read)) == ["a", "x"]


def trusts_the_mark(grown):
    def without_receipts(known, nodes, head, delta, dead):
        known = replace(known, head=replace(known.head, fields={**known.head.fields, b"receipts": head.receipts}))
        return grown(known, nodes, replace(head, fields={**head.fields, b"receipts": b""}), delta, dead)

    return staticmethod(without_receipts)


@broken_by(Python("protocol.commands.refresh:_Log.grown", trusts_the_mark, "compares no receipts"))
async def test_a_history_that_differs_in_the_middle_is_read_anew(store, client):
    """The reader's last commit was sent again to the new primary, by somebody who expected nothing."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES))
    last = commit(None, append("c", parent="a"), checkpoint=STATES)
    await store.commit_runtime_state(last)
    read = await store.load_session(FullGraph())
    await failed_over(client, before)
    await store.commit_runtime_state(commit(1, append("x", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(last)
    await store.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["a", "x", "c", "d"]


@broken_by(Lua("refresh", "if mark ~= '' and ", "if mark == '-' and "))
async def test_a_commit_sent_again_after_a_failover_with_another_timestamp_is_read(store, client):
    """A commit's meaning does not hold the times of its nodes."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)

    def sent(timestamp):
        nodes = chain("b", parent="a", timestamp=timestamp)
        return commit(1, Append(nodes, "b"), checkpoint=STATES, commit_id="b")

    await store.commit_runtime_state(sent("12:00"))
    read = await store.load_session(FullGraph())
    await failed_over(client, before)
    await store.commit_runtime_state(sent("12:01"))
    assert [node.timestamp for node in (await store.refresh(read)).graph.nodes] == ["t", "12:01"]
    await store.commit_runtime_state(commit(2, append("c", parent="b"), checkpoint=STATES))
    assert [node.timestamp for node in (await store.refresh(read)).graph.nodes] == ["t", "12:01", "t"]


@broken_by(Lua("refresh", "if mark ~= '' and ", "if mark == '-' and "))
async def test_a_history_of_which_no_receipt_is_left_is_read_anew(store, client):
    await forked_long_ago(store, client, 34)


async def test_so_it_is_where_more_came_since_than_a_script_hands_over(store, client):
    await forked_long_ago(store, client, 80)


async def test_so_it_is_where_the_reader_does_not_hold_the_last_record(store, client):
    """A path beside which the log ends."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("y00", "leaf", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(2, Append(chain("off", parent="a"), "leaf"), checkpoint=STATES))
    read = await store.load_session(ActivePath())
    await failed_over(client, before)
    await store.commit_runtime_state(commit(1, append("x00", "leaf", parent="a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(2, Append(chain("off", parent="a"), "leaf"), checkpoint=STATES))
    for at in range(40):
        await store.commit_runtime_state(commit(3 + at, Unchanged("leaf"), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["a", "x00", "leaf"]


async def test_a_failover_between_the_two_trips_of_a_refresh_is_noticed(store, client):
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("y00", parent="a"), checkpoint=STATES))
    read = await store.load_session(FullGraph())
    ids = [f"x{at:02}" for at in range(80)]
    await failed_over(client, before)
    for parent, name in zip(["a", *ids], ids, strict=False):
        await store.commit_runtime_state(commit(None, append(name, parent=parent), checkpoint=STATES))
    after_it = await saved(client)
    await failed_over(client, before)
    await store.commit_runtime_state(commit(1, append("y00", parent="a"), checkpoint=STATES))
    for parent, name in zip(["y00", *ids], ids, strict=False):
        await store.commit_runtime_state(commit(None, append(name, parent=parent), checkpoint=STATES))
    run = store._namespace.run

    async def then_it_fails_over(call, **more):
        reply = await run(call, **more)
        if reply[0] == b"far":
            await failed_over(client, after_it)
        return reply

    store._namespace.run = then_it_fails_over
    assert ids_of(await store.refresh(read)) == ["a", *ids]


async def forked_long_ago(store, client, more):
    """`more` commits after the failover, whose records are as long as those it took back."""
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)
    await store.commit_runtime_state(commit(1, append("y00", parent="a"), checkpoint=STATES))
    read = await store.load_session(FullGraph())
    await failed_over(client, before)
    ids = [f"x{at:02}" for at in range(more)]
    for parent, name in zip(["a", *ids], ids, strict=False):
        await store.commit_runtime_state(commit(None, append(name, parent=parent), checkpoint=STATES))
    assert ids_of(await store.refresh(read)) == ["a", *ids]


async def test_a_commit_sent_again_with_another_time_of_any_node_is_read(store, client):
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    before = await saved(client)

    def sent(timestamp):
        nodes = [*chain("b", parent="a", timestamp=timestamp), *chain("c", parent="b")]
        return commit(1, Append(nodes, "c"), checkpoint=STATES, commit_id="b")

    await store.commit_runtime_state(sent("12:00"))
    read = await store.load_session(FullGraph())
    await failed_over(client, before)
    await store.commit_runtime_state(sent("12:01"))
    assert [node.timestamp for node in (await store.refresh(read)).graph.nodes] == ["t", "12:01", "t"]


async def test_so_it_is_of_one_that_was_known_before_the_last_refresh(store, client):
    await pieces(store)
    before = await saved(client)
    last = commit(3, append("d", parent="c"), checkpoint=STATES)
    await store.tombstone_nodes(["a"])
    read = await store.load_session(FullGraph())
    await store.commit_runtime_state(last)
    read = await store.refresh(read)
    assert ids_of(read) == ["b", "c", "d"]
    facts = await client.hget(await key_of(client, "head"), "facts")
    await failed_over(client, before)
    await store.tombstone_nodes(["b"])
    await store.commit_runtime_state(last)
    await client.hset(await key_of(client, "head"), "facts", facts)
    assert ids_of(await store.refresh(read)) == ["a", "c", "d"]


@broken_by(Lua("refresh", "hides = hides or not id", "hides = hides or false"))
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_tombstone_that_a_failover_took_back_is_taken_back(scope, store, client):
    """Although there are as many of them as before."""
    await pieces(store)
    before = await saved(client)
    await store.tombstone_nodes(["a"])
    read = await store.load_session(scope)
    assert ids_of(read) == ["b", "c"]
    await failed_over(client, before)
    await store.tombstone_nodes(["b"])
    expected = {"full": ["a", "c"], "path": ["c"]}["full" if scope == FullGraph() else "path"]
    assert ids_of(await store.refresh(read)) == expected


# What is broken


@broken_by(Lua("refresh", "wrong = wrong or now and torn(now, log, nodes, jumps, dead, state)", ""))
@pytest.mark.parametrize("family", FAMILIES[1:])
async def test_whatever_key_is_gone_a_refresh_says_which_though_nothing_is_new(family, open_cache, client):
    await says_what_is_gone(family, open_cache, client, moved=False)


@pytest.mark.parametrize("family", FAMILIES)
async def test_whatever_key_is_gone_a_refresh_says_which(family, open_cache, client):
    await says_what_is_gone(family, open_cache, client, moved=True)


async def test_a_refresh_says_that_the_head_is_gone_though_nothing_is_new(open_cache, client):
    await says_what_is_gone("head", open_cache, client, moved=False)


async def says_what_is_gone(family, open_cache, client, *, moved):
    store = open_cache().session("chat")
    await furnished(store)
    reads = [await store.load_session(scope) for scope in SCOPES]
    if moved:
        await open_cache().session("chat").commit_runtime_state(commit(3, append("i", parent="h"), checkpoint=STATES))
    lost = await key_of(client, family)
    await client.delete(lost)
    for read in reads:
        with pytest.raises(SessionEvicted) as refused:
            await store.refresh(read)
        assert (refused.value.kind, refused.value.key) == (family, lost.decode())


async def test_a_session_without_a_head_is_none(store, client):
    read = await pieces(store)
    await client.flushall()
    assert await store.refresh(read) is None
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    read = await store.load_session(FullGraph())
    await store.delete()
    assert await store.refresh(read) is None


async def test_a_new_component_that_is_gone_is_told(open_cache, client):
    store, writer = open_cache().session("chat"), open_cache().session("chat")
    read = await pieces(store)
    known = set(await blob_keys(client))
    states = replace(STATES, tool_state=tools("other"))
    await writer.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=states))
    (fresh,) = set(await blob_keys(client)) - known
    await client.delete(fresh)
    with pytest.raises(SessionEvicted) as refused:
        await store.refresh(read)
    assert refused.value.key == fresh.decode()


@pytest.mark.parametrize("place", [0, 3])
async def test_a_damaged_record_is_corrupt_when_it_is_looked_at(place, store, client):
    """One that is new, and one that was read before; the length is as it was."""
    read = await pieces(store)
    await store.commit_runtime_state(commit(3, append("d", "e", parent="c"), checkpoint=STATES))
    log = await key_of(client, "log")
    record = await client.lindex(log, place)
    await client.lset(log, place, record[:-1] + bytes([record[-1] ^ 1]))
    refreshed = await store.refresh(read)
    if place < 3:  # it is as it was read
        assert [node.payload for node in refreshed.graph.nodes][place] == read.graph.nodes[place].payload
    else:
        with pytest.raises(Corrupt, match="checksum"):
            _ = refreshed.graph.nodes[place].payload


@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
@pytest.mark.parametrize("damage", ["a record too short", "a leaf that is another node", "a jump nowhere"])
async def test_damage_that_a_load_tells_a_refresh_tells(damage, scope, store, client):
    await pieces(store)
    read = await store.load_session(scope)
    await store.commit_runtime_state(commit(3, append("d", "e", parent="a"), checkpoint=STATES))
    if damage == "a record too short":
        log = await key_of(client, "log")
        await client.lset(log, 3, (await client.lindex(log, 3))[:-1])
    elif damage == "a leaf that is another node":
        await plant_fact(client, "leaf", 3)
    else:
        await client.lset(await key_of(client, "jumps"), -1, "3:9")
    expected = await answer(store.load_session(scope))
    assert await answer(store.refresh(read)) == expected
    if (damage, scope) not in {("a record too short", ActivePath()), ("a jump nowhere", FullGraph())}:
        assert expected is Corrupt


async def test_a_leaf_that_lenient_checks_let_pass_is_refused_by_a_strict_store(lenient, store):
    await lenient.commit_runtime_state(commit(None, append("a", "b")))
    await lenient.tombstone_nodes(["b"])
    read = await lenient.load_session(ActivePath())
    assert await lenient.refresh(read) is read
    with pytest.raises(InvalidLeaf):
        await store.refresh(read)


# What a read may be


async def test_a_read_of_another_session_is_refused(cache, store):
    read = await pieces(store)
    with pytest.raises(SessionBindingMismatch):
        await cache.session("other").refresh(read)


async def test_a_read_of_another_namespace_is_read_anew(open_cache, store):
    read = await pieces(store)
    other = open_cache(namespace="another").session("chat")
    assert await other.refresh(read) is None
    await other.commit_runtime_state(commit(None, append("x")))
    assert ids_of(await other.refresh(read)) == ["x"]


@pytest.mark.parametrize("copied", [
    lambda read: pickle.loads(pickle.dumps(read)), copy.copy, copy.deepcopy,
], ids=["pickled", "copied", "deeply copied"])  # fmt: skip
@pytest.mark.parametrize("scope", SCOPES[:2], ids=["full", "path"])
async def test_a_copy_is_refreshed_as_its_original_is(copied, scope, open_cache, client):
    store = open_cache().session("chat")
    read = copied(await pieces(store, scope))
    again = open_cache().session("chat")
    assert await again.refresh(read) is read
    await store.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=STATES))
    refreshed = await again.refresh(read)
    assert refreshed == await store.load_session(scope)
    assert refreshed.scope == scope


@pytest.mark.parametrize("made_anew", [
    replace, lambda read: PersistedSessionRead.from_json(read.to_json()),
], ids=["replaced", "from JSON"])  # fmt: skip
async def test_a_read_that_does_not_know_where_it_came_from_becomes_one_of_the_full_graph(made_anew, store):
    await pieces(store)
    await store.commit_runtime_state(commit(3, append("d", parent="a"), checkpoint=STATES))
    read = made_anew(await store.load_session(ActivePath()))
    assert read.scope == FullGraph()
    assert ids_of(await store.refresh(read)) == ["a", "b", "c", "d"]


async def test_links_by_id_alone_are_told_by_a_load(lenient):
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


async def test_links_that_came_to_be_by_id_alone_are_told_by_a_load(lenient):
    await lenient.commit_runtime_state(commit(None, append("a")))
    read = await lenient.load_session(ActivePath())
    await lenient.commit_runtime_state(commit(1, Append(chain("b", parent="later"), "b")))
    await lenient.commit_runtime_state(commit(2, Append(chain("later", parent="a"), "b")))
    assert ids_of(await lenient.refresh(read)) == ["a", "later", "b"]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_tell_the_same(protocol, real_server):
    writer = SessionCache(real_server.client(protocol=5 - protocol), "laws").session("chat")
    store = SessionCache(real_server.client(protocol=protocol), "laws").session("chat")
    await furnished(writer)
    reads = [await store.load_session(scope) for scope in SCOPES]
    assert [await store.refresh(read) for read in reads] == reads
    await CHANGES["tombstones below new nodes"](writer)
    for read in reads:
        assert await store.refresh(read) == await writer.load_session(read.scope)


# One revision


@broken_by(Python("session.namespace:Namespace.read", one_by_one, "reads key by key"))
async def test_a_refresh_beside_commits_is_one_revision(open_cache):
    """Of nodes that a script hands over and of more than that."""
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

    async def keep_up(scope):
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
            tasks.create_task(keep_up(scope))


async def test_two_refreshes_of_one_read_do_not_disturb_each_other(open_cache, client):
    """They part where a failover made two histories."""
    store = open_cache().session("chat")
    read = await pieces(store)
    before = await saved(client)
    await store.commit_runtime_state(commit(3, append("d", parent="c"), checkpoint=STATES))
    one = await store.refresh(read)
    await failed_over(client, before)
    await store.commit_runtime_state(commit(3, append("x", "y", parent="c"), checkpoint=STATES))
    other = await store.refresh(read)
    await store.commit_runtime_state(commit(4, append("z", parent="y"), checkpoint=STATES))
    third = await store.refresh(read)
    assert [ids_of(each) for each in (read, one, other, third)] == [
        ["a", "b", "c"], ["a", "b", "c", "d"], ["a", "b", "c", "x", "y"], ["a", "b", "c", "x", "y", "z"],
    ]  # fmt: skip
    assert [each.graph.node_index("c") for each in (read, one, other, third)] == [2, 2, 2, 2]
    assert [each.graph.node_index("x") for each in (read, one, other, third)] == [None, None, 3, 3]


# What it costs


async def long_session(cache: SessionCache, count: int) -> RedisSessionStore:
    """`count` nodes in two commits; ids, times and revisions of one length whatever the count."""
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
async def test_nothing_new_is_one_round_trip_of_a_few_hundred_bytes(scope, through_proxy, proxy, real_server):
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
async def test_new_nodes_cost_their_own_bytes_in_one_round_trip(scope, through_proxy, proxy, real_server):
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
async def test_sixty_four_new_nodes_come_in_one_round_trip_and_more_in_two(through_proxy, proxy):
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


async def test_a_path_that_freed_nodes_cut_is_refreshed_by_what_is_new(through_proxy, proxy):
    """Old ones and new ones."""
    store = through_proxy().session("chat")
    await pieces(store)
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
async def test_a_hundred_reads_of_one_session_hold_its_records_once(scope, store):
    """Each of them kept, each refreshed twice, each of 3,000 nodes: a copy is 24 KB."""
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


async def test_components_are_fetched_once_and_none_that_the_read_holds(through_proxy, proxy):
    """Also where the process keeps none."""
    store, writer = through_proxy(blob_cache_bytes=0).session("chat"), through_proxy().session("chat")
    read = await pieces(writer)
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
    """The handle has learned which components the head holds."""
    writer = through_proxy().session("chat")
    read = await pieces(writer)
    cache = through_proxy()
    await cache.session("chat").load_head()
    store = cache.session("chat")
    await store.refresh(read)
    with proxy.measure() as seen:
        await store.commit_runtime_state(commit(3, append("d", parent="c")))
    assert seen.names() == ["EVALSHA"]


@broken_by(
    Python("session.store:RedisSessionStore._seen", lambda _: lambda self, read: _as_it_is(read), "does not slide")
)
async def test_where_loads_slide_refreshes_slide(open_cache, client):
    store = open_cache(ttl=100, slide_on_load=True).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    read = await store.load_session(FullGraph())
    await client.pexpire(await key_of(client, "log"), 5000)
    assert await store.refresh(read) == read
    assert await client.pttl(await key_of(client, "log")) > 90_000


async def _as_it_is(read):
    return read


def test_a_read_s_origin_is_not_part_of_what_it_says():
    read = PersistedSessionRead("s", 1, PersistedSessionConfig(), SessionGraph())
    assert "_origin" not in repr(read)
    assert "_origin" not in read.to_json()
    with pytest.raises(TypeError):
        PersistedSessionRead("s", 1, PersistedSessionConfig(), SessionGraph(), _origin=1)  # type: ignore[call-arg]
