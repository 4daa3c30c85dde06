"""A commit is atomic, only one of two concurrent commits succeeds, and it takes one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from lash_redis import (
    ActivePath,
    Append,
    CommitIdReused,
    CommitTooLarge,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    MissingBlob,
    NodeIdCollision,
    PersistedSessionConfig,
    PersistedTurnState,
    RedisSessionStore,
    ReplaceFull,
    RuntimeCommit,
    SessionBindingMismatch,
    SessionGone,
    SessionGraph,
    StoreError,
    Unchanged,
)
from lash_redis.transport.request import Request
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import (
    append,
    chain,
    commit,
    facts_of,
    holders,
    ids_of,
    key_of,
    node,
    numbered,
    plant_fact,
    plugins,
    replace_full,
    tools,
    used,
)

MAX = 2**63 - 1
UNKNOWN_REF = "0" * 64

NO_REVISION_CHECK = Lua("commit", "(expected == '' or expected == actual) and ", "")
WRITES_FIRST = Lua("commit", "-- CHECK", "redis.call('HINCRBY', KEYS[1], 'attempts', 1)")


# Concurrent commits


@broken_by(NO_REVISION_CHECK)
async def test_exactly_one_of_two_concurrent_commits_on_one_revision_succeeds(open_cache):
    stores = [open_cache().session("chat") for _ in range(2)]
    await stores[0].commit_runtime_state(commit(None, append("root")))
    outcomes = await asyncio.gather(
        *(
            store.commit_runtime_state(commit(1, append(name, parent="root"), usage_deltas=[used(input=1)]))
            for store, name in zip(stores, ("left", "right"), strict=True)
        ),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["HeadRevisionConflict", "RuntimeCommitResult"]
    lost = next(each for each in outcomes if isinstance(each, HeadRevisionConflict))
    assert (lost.expected, lost.actual) == (1, 2)
    winner = "left" if outcomes[1] is lost else "right"
    read = await stores[0].load_session(FullGraph())
    assert (read.head_revision, ids_of(read)) == (2, ["root", winner])
    assert read.token_ledger == (used(input=1),)


@broken_by(NO_REVISION_CHECK)
async def test_exactly_one_of_ten_concurrent_first_commits_succeeds(open_cache):
    stores = [open_cache().session("chat") for _ in range(10)]
    outcomes = await asyncio.gather(
        *(store.commit_runtime_state(commit(0, append(f"n{at}"))) for at, store in enumerate(stores)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["HeadRevisionConflict"] * 9 + ["RuntimeCommitResult"]
    assert (await stores[0].load_head()).head_revision == 1


@broken_by(Lua("commit", " and (builds_on == '' or is_last(stored.receipts, builds_on))", ""))
async def test_a_commit_conflicts_when_builds_on_is_not_the_commit_of_the_head(store, keyspace):
    first = await store.commit_runtime_state(commit(None, append("a")))
    before = await keyspace()
    with pytest.raises(HeadRevisionConflict) as lost:
        await store.commit_runtime_state(commit(1, append("b", parent="a"), builds_on="a lost revision 1"))
    assert (lost.value.expected, lost.value.actual) == (1, 1)
    assert await keyspace() == before
    result = await store.commit_runtime_state(commit(1, append("b", parent="a"), builds_on=first.commit_id))
    assert result.head_revision == 2


@pytest.mark.parametrize("expected", [0, 1, 3, MAX])
async def test_a_revision_conflict_reports_the_actual_revision(expected, store):
    for revision in (0, 1):
        await store.commit_runtime_state(commit(revision))
    with pytest.raises(HeadRevisionConflict) as lost:
        await store.commit_runtime_state(commit(expected))
    assert (lost.value.expected, lost.value.actual) == (expected, 2)
    assert not isinstance(lost.value, SessionGone)


# Revisions


@broken_by(
    Lua("replace", "local revision = add64(actual, '1')", "local revision = '1'"),
    Lua(
        "commit",
        "local revision = add64(stored.counted, '1')",
        "local revision = add64(actual, rows > 0 and '2' or '1')",
    ),
    Lua(
        "commit",
        "local revision = add64(stored.counted, '1')",
        "local revision = count == 0 and actual or add64(actual, '1')",
    ),
)
async def test_every_successful_commit_increments_the_revision_by_one(store):
    commits = [
        commit(None, append("a")),
        commit(1, Unchanged("a")),
        commit(2, Append((), "a")),
        commit(3, Unchanged("a"), usage_deltas=[used(input=3)]),
        commit(4, replace_full("a")),
        commit(None, append("b", parent="a")),
        commit(6, Unchanged("b")),
    ]
    revisions = [(await store.commit_runtime_state(each)).head_revision for each in commits]
    assert revisions == [1, 2, 3, 4, 5, 6, 7]
    assert (await store.load_head()).head_revision == 7


async def test_a_commit_without_an_expected_revision_overwrites_any_head(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    result = await store.commit_runtime_state(commit(None, replace_full("x")))
    assert result.head_revision == 2
    assert ids_of(await store.load_session(FullGraph())) == ["x"]


async def test_a_commit_expecting_revision_0_creates_the_first_head(store):
    assert (await store.commit_runtime_state(commit(0, append("a")))).head_revision == 1


@broken_by(
    Lua(
        "commit",
        "if reply then return reply end\n",
        "if reply then return reply end\nif not facts then actual = expected end\n",
    )
)
async def test_a_commit_expecting_a_revision_of_an_absent_session_raises_session_gone(store, keyspace):
    await store.tombstone_nodes([])
    before = await keyspace()
    with pytest.raises(SessionGone) as gone:
        await store.commit_runtime_state(commit(7, append("a")))
    assert (gone.value.expected, gone.value.actual) == (7, 0)
    assert {key: kept for key, kept in (await keyspace()).items() if b":layout:" not in key} == before


async def thirty_two_commits(store: RedisSessionStore) -> None:
    for revision in range(32):
        await store.commit_runtime_state(commit(revision))


@pytest.mark.parametrize("revision", [2**53 - 1, 2**53, 2**53 + 1, MAX - 1])
async def test_revisions_beyond_double_precision_are_exact(revision, store, client):
    await thirty_two_commits(store)
    await plant_fact(client, "revision", revision)
    assert (await store.load_session(FullGraph())).head_revision == revision
    for near in (revision - 1, revision + 1):
        with pytest.raises(HeadRevisionConflict) as lost:
            await store.commit_runtime_state(commit(near))
        assert lost.value.actual == revision
    one_more = commit(revision)
    assert (await store.commit_runtime_state(one_more)).head_revision == revision + 1
    assert (await facts_of(client))["revision"] == revision + 1
    again = await store.commit_runtime_state(one_more)
    assert (again.head_revision, again.replayed) == (revision + 1, True)


@broken_by(
    Lua(
        "commit",
        "local revision = add64(stored.counted, '1')",
        "local revision = string.format('%.0f', tonumber(actual) + 1)",
    ),
    Lua(
        "commit",
        "(expected == '' or expected == actual)",
        "(expected == '' or tonumber(expected) == tonumber(actual))",
    ),
)
async def test_revisions_that_round_to_the_same_double_are_distinguished(store, client):
    await thirty_two_commits(store)
    await plant_fact(client, "revision", 2**53 + 1)
    with pytest.raises(HeadRevisionConflict):
        await store.commit_runtime_state(commit(2**53))
    assert (await store.commit_runtime_state(commit(2**53 + 1))).head_revision == 2**53 + 2


@broken_by(Lua("commit", "local revision = add64(stored.counted, '1')", "local revision = add64(actual, '1') or '0'"))
async def test_the_maximum_revision_can_be_read_but_not_incremented(store, client, keyspace):
    await thirty_two_commits(store)
    await plant_fact(client, "revision", MAX)
    before = await keyspace()
    assert (await store.load_head()).head_revision == MAX
    for expected in (None, MAX):
        with pytest.raises(Corrupt):
            await store.commit_runtime_state(commit(expected))
    assert await keyspace() == before


@pytest.mark.parametrize("planted", ["-1", "abc", "1.0", "", "9223372036854775808", "99999999999999999999", "0x1"])
async def test_an_invalid_stored_revision_is_corrupt_and_never_overwritten(planted, store, client, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    await plant_fact(client, "revision", planted)
    before = await keyspace()
    head = (await key_of(client, "head")).decode()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.load_session(FullGraph()),
        lambda: store.load_session(ActivePath()),
        store.load_head,
        lambda: store.load_node("a"),
        lambda: store.commit_runtime_state(commit(None, append("b", parent="a"))),
        lambda: store.commit_runtime_state(commit(1, append("b", parent="a"))),
        lambda: store.tombstone_nodes(["a"]),
        store.vacuum,
        store.gc_unreachable,
    ]
    for call in calls:
        with pytest.raises(Corrupt) as broken:
            await call()
        assert (broken.value.kind, broken.value.key) == ("head", head)
    assert await keyspace() == before


# Refusals

Refusal = tuple[RuntimeCommit, type[StoreError]]


async def build_session(store: RedisSessionStore) -> RuntimeCommit:
    """Store nodes a-b-c with a tombstoned d below c, tool state and a full counter. Return the commit of the head."""
    await store.commit_runtime_state(
        commit(
            None,
            append("a", "b", "c", "d"),
            checkpoint=HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"state"),
            usage_deltas=[used(input=MAX)],
        )
    )
    await store.tombstone_nodes(["d"])
    second = commit(1, Unchanged("c"), checkpoint=HydratedSessionCheckpoint(tool_state=tools()), commit_id="second")
    await store.commit_runtime_state(second)
    return second


MISSING = HydratedSessionCheckpoint(execution_state_ref=UNKNOWN_REF)

REFUSED_BY_COMMIT: dict[str, Refusal] = {
    "an older revision": (commit(1, append("e", parent="c")), HeadRevisionConflict),
    "a later revision": (commit(3, append("e", parent="c")), HeadRevisionConflict),
    "another commit of that revision": (commit(2, append("e", parent="c"), builds_on="x"), HeadRevisionConflict),
    "a used commit id": (commit(2, append("e", parent="c"), commit_id="second"), CommitIdReused),
    "a live id": (commit(2, Append([*chain("e", parent="c"), node("b", "e")], "b")), NodeIdCollision),
    "a tombstoned id": (commit(2, append("d", parent="c")), NodeIdCollision),
    "an unknown parent": (commit(2, append("e", parent="x")), InvalidParent),
    "a tombstoned parent": (commit(2, append("e", parent="d")), InvalidParent),
    "an unknown leaf": (commit(2, Unchanged("x")), InvalidLeaf),
    "a tombstoned leaf": (commit(2, Unchanged("d")), InvalidLeaf),
    "no leaf": (commit(2, Unchanged()), InvalidLeaf),
    "no leaf after nodes": (commit(2, Append(chain("e", parent="c"), None)), InvalidLeaf),
    "a blob that is not stored": (commit(2, Unchanged("c"), checkpoint=MISSING), MissingBlob),
    "a full counter": (commit(2, Unchanged("c"), usage_deltas=[used(input=1)]), InvalidRecord),
}

REFUSED_BY_REPLACE: dict[str, Refusal] = {
    "a duplicate id": (commit(2, Append([node("e", "c"), node("e", "c")], "e")), NodeIdCollision),
    "a duplicate id in a replacement": (
        commit(2, ReplaceFull(SessionGraph([node("e"), node("e")], "e"))),
        NodeIdCollision,
    ),
    "a later parent": (commit(2, Append([node("e", "f"), node("f", "c")], "f")), InvalidParent),
    "itself as parent": (commit(2, append("e", parent="e")), InvalidParent),
    "an unknown parent in a replacement": (
        commit(2, ReplaceFull(SessionGraph([node("e"), node("f", "x")], "f"))),
        InvalidParent,
    ),
    "an unknown leaf of a replacement": (commit(2, ReplaceFull(SessionGraph([node("e")], "c"))), InvalidLeaf),
    "no leaf in a replacement": (commit(2, ReplaceFull(SessionGraph([node("e")]))), InvalidLeaf),
}
"""`replace.lua` refuses these: replacements, and appends in which the client finds a fault."""

REFUSED_BY_THE_CLIENT: dict[str, Refusal] = {
    "another session": (commit(2, Unchanged("c"), session_id="other"), SessionBindingMismatch),
    "a negative revision": (commit(-1, Unchanged("c")), InvalidRecord),
    "a revision beyond 64 bits": (commit(2**63, Unchanged("c")), InvalidRecord),
    "an empty commit id": (commit(2, Unchanged("c"), commit_id=""), InvalidRecord),
    "an empty node id": (commit(2, append("", parent="c")), InvalidRecord),
    "an invalid ref": (
        commit(2, Unchanged("c"), checkpoint=HydratedSessionCheckpoint(tool_state_ref="abc")),
        InvalidRecord,
    ),
    "a counter beyond 64 bits": (commit(2, Unchanged("c"), usage_deltas=[used(input=2**63)]), InvalidRecord),
    "a payload that is not JSON": (commit(2, append("e", parent="c", text=object())), InvalidRecord),
    "a lone surrogate": (commit(2, append("\ud800", parent="c")), InvalidRecord),
    "an integer beyond 64 bits": (commit(2, append("e", parent="c", text=2**64)), InvalidRecord),
}


@pytest.mark.parametrize("fault", REFUSED_BY_COMMIT)
@broken_by(WRITES_FIRST)
async def test_a_refused_commit_leaves_every_key_unchanged(fault, store, keyspace):
    await build_session(store)
    refused, error = REFUSED_BY_COMMIT[fault]
    before = await keyspace()
    with pytest.raises(error):
        await store.commit_runtime_state(refused)
    assert await keyspace() == before


@pytest.mark.parametrize("fault", REFUSED_BY_REPLACE)
@broken_by(replace(WRITES_FIRST, script="replace"))
async def test_a_refused_replacement_leaves_every_key_unchanged(fault, store, keyspace):
    await build_session(store)
    refused, error = REFUSED_BY_REPLACE[fault]
    before = await keyspace()
    with pytest.raises(error):
        await store.commit_runtime_state(refused)
    assert await keyspace() == before


@pytest.mark.parametrize("fault", REFUSED_BY_THE_CLIENT)
async def test_a_commit_refused_by_the_client_leaves_every_key_unchanged(fault, store, keyspace):
    await build_session(store)
    refused, error = REFUSED_BY_THE_CLIENT[fault]
    before = await keyspace()
    with pytest.raises(error):
        await store.commit_runtime_state(refused)
    assert await keyspace() == before


@pytest.mark.parametrize("limit", [{"max_commit_nodes": 1}, {"max_commit_bytes": 500}], ids=["nodes", "bytes"])
async def test_a_commit_over_a_limit_is_refused_with_its_size_and_changes_no_key(limit, open_cache, keyspace):
    store = open_cache(**limit).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    before = await keyspace()
    with pytest.raises(CommitTooLarge) as refused:
        await store.commit_runtime_state(commit(1, append("b", "c", parent="a", text="x" * 300)))
    assert refused.value.limit in limit.values()
    assert refused.value.size > refused.value.limit
    assert await keyspace() == before


async def test_refs_without_bodies_do_not_count_toward_the_size_limit(open_cache):
    large = HydratedSessionCheckpoint(execution_state=b"x" * 10_000)
    manifest = (await open_cache().session("chat").commit_runtime_state(commit(checkpoint=large))).manifest
    frugal = open_cache(max_commit_bytes=2_000).session("chat")
    carried = HydratedSessionCheckpoint(execution_state_ref=manifest.execution_state_ref)
    assert (await frugal.commit_runtime_state(commit(1, checkpoint=carried))).head_revision == 2
    with pytest.raises(CommitTooLarge):
        await frugal.commit_runtime_state(commit(2, checkpoint=large))


PRECEDENCE: dict[str, Refusal] = {
    "binding before receipt": (
        commit(9, append("e", parent="x"), commit_id="second", session_id="other"),
        SessionBindingMismatch,
    ),
    "binding before an invalid revision": (commit(-1, session_id="other"), SessionBindingMismatch),
    "receipt before revision": (commit(9, append("e", parent="x"), commit_id="second"), CommitIdReused),
    "receipt before a duplicate id": (
        commit(2, Append([node("e", "c"), node("e", "c")], "e"), commit_id="second"),
        CommitIdReused,
    ),
    "revision before a duplicate id": (commit(1, Append([node("e", "c"), node("e", "c")], "e")), HeadRevisionConflict),
    "revision before a taken id": (commit(1, append("a", parent="c")), HeadRevisionConflict),
    "revision before a later parent": (commit(1, append("e", parent="e")), HeadRevisionConflict),
    "revision before an unknown parent": (commit(1, append("e", parent="x")), HeadRevisionConflict),
    "revision before a missing blob": (commit(1, Unchanged("c"), checkpoint=MISSING), HeadRevisionConflict),
    "a duplicate id before an unknown parent": (
        commit(2, Append([node("e", "x"), node("f", "c"), node("f", "c")], "f")),
        NodeIdCollision,
    ),
    "a taken id before an unknown parent": (commit(2, Append([node("e", "x"), node("a", "c")], "a")), NodeIdCollision),
    "an unknown parent before the leaf": (commit(2, Append([node("e", "x")], "y")), InvalidParent),
    "the leaf before a full counter": (commit(2, Unchanged("x"), usage_deltas=[used(input=1)]), InvalidLeaf),
    "the leaf before a missing blob": (commit(2, Unchanged("x"), checkpoint=MISSING), InvalidLeaf),
    "a full counter before a missing blob": (
        commit(2, Unchanged("c"), checkpoint=MISSING, usage_deltas=[used(input=1)]),
        InvalidRecord,
    ),
}


@pytest.mark.parametrize("faults", PRECEDENCE)
async def test_the_fault_of_higher_precedence_is_reported(faults, store, keyspace):
    await build_session(store)
    refused, error = PRECEDENCE[faults]
    before = await keyspace()
    with pytest.raises(error) as raised:
        await store.commit_runtime_state(refused)
    assert type(raised.value) is error
    assert await keyspace() == before


async def test_a_replay_returns_the_stored_result_before_any_new_fault_is_checked(store):
    second = await build_session(store)
    await store.commit_runtime_state(commit(2, replace_full("other")))
    again = await store.commit_runtime_state(replace(second, expected_head_revision=9))
    assert (again.replayed, again.head_revision) == (True, 2)


# Stored content


async def test_a_first_commit_with_every_field_is_read_back_unchanged(open_cache):
    config = PersistedSessionConfig("some-provider", "some-model", 200_000, "rlm", {"kind": "rolling_history"}, "high")
    checkpoint = HydratedSessionCheckpoint(
        turn_state=PersistedTurnState(turn_index=3),
        tool_state=tools(),
        plugin_snapshot=plugins(),
        plugin_snapshot_revision=9,
        execution_state=bytes(range(256)),
    )
    nodes = chain("a", "b", text="grüße 你好 \0 \n")
    made = commit(0, Append(nodes, "b"), config=config, checkpoint=checkpoint, usage_deltas=[used(input=1, cached=2)])
    result = await open_cache().session("chat").commit_runtime_state(made)
    read = await open_cache().session("chat").load_session(FullGraph())
    assert (read.session_id, read.head_revision, read.commit_id) == ("chat", 1, made.commit_id)
    assert read.config == config
    assert list(read.graph.nodes) == nodes
    assert read.graph.leaf_node_id == "b"
    assert read.checkpoint_ref == result.checkpoint_ref
    assert read.checkpoint == replace(
        checkpoint,
        tool_state_ref=result.manifest.tool_state_ref,
        plugin_snapshot_ref=result.manifest.plugin_snapshot_ref,
        execution_state_ref=result.manifest.execution_state_ref,
    )
    assert read.token_ledger == (used(input=1, cached=2),)


async def test_config_and_turn_state_come_from_the_last_commit_only(store):
    state = HydratedSessionCheckpoint(turn_state=PersistedTurnState(turn_index=3), plugin_snapshot_revision=2)
    await store.commit_runtime_state(commit(config=PersistedSessionConfig("p", "m"), checkpoint=state))
    await store.commit_runtime_state(commit(1))
    read = await store.load_session(FullGraph())
    assert read.config == PersistedSessionConfig()
    assert read.checkpoint == HydratedSessionCheckpoint()


# Cost


@pytest.mark.slow
async def test_a_full_replacement_of_20000_nodes_is_one_commit(open_cache):
    store, ids = open_cache(max_commit_nodes=20_000).session("chat"), numbered(20_000)
    await store.commit_runtime_state(commit(None, append("old")))
    await store.commit_runtime_state(commit(1, replace_full(*ids)))
    read = await store.load_session(FullGraph())
    assert ids_of(read) == ids
    assert len((await store.load_session(ActivePath())).graph.nodes) == 20_000


async def test_10000_nodes_are_appended_in_one_commit(store):
    ids = numbered(10_000)
    await store.commit_runtime_state(commit(None, append("root")))
    await store.commit_runtime_state(commit(1, append(*ids, parent="root")))
    assert ids_of(await store.load_session(ActivePath())) == ["root", *ids]


async def test_3000_branches_at_one_node_are_appended_in_one_commit(store):
    await store.commit_runtime_state(commit(None, append("root")))
    leaves = [node(each, "root") for each in numbered(3_000)]
    await store.commit_runtime_state(commit(1, Append(leaves, "n001234")))
    assert ids_of(await store.load_session(ActivePath())) == ["root", "n001234"]
    assert len(ids_of(await store.load_session(FullGraph()))) == 3_001


async def test_1500_ledger_rows_are_added_in_one_commit(store):
    rows = [used(f"plugin{at}", input=at + 1) for at in range(1_500)]
    await store.commit_runtime_state(commit(usage_deltas=rows))
    assert list((await store.load_head()).token_ledger) == rows


async def round_trips(proxy, store: RedisSessionStore, *commits: RuntimeCommit) -> list[tuple[int, list[str]]]:
    seen = []
    for each in commits:
        with proxy.measure() as traffic:
            await store.commit_runtime_state(each)
        seen.append((traffic.round_trips, traffic.names()))
    return seen


def pinging(send):
    async def twice(self, request, **more):
        await send(self, Request([("PING",)]))
        return await send(self, request, **more)

    return twice


@broken_by(Python("transport.backend:Backend.send", pinging, "sends a PING before it writes"))
async def test_a_commit_after_a_load_or_a_commit_is_one_command(proxy, through_proxy):
    cache = through_proxy()
    store = cache.session("chat")
    state = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=state))
    commits = [
        commit(1, append("b", parent="a"), checkpoint=state),
        commit(2, append("c", parent="b"), checkpoint=replace(state, execution_state=b"2")),
        commit(3, Unchanged("c"), checkpoint=replace(state, execution_state=None)),
        commit(4, replace_full("x"), usage_deltas=[used(input=1)]),
    ]
    assert await round_trips(proxy, store, *commits) == [(1, ["EVALSHA"])] * 4
    for scope in (FullGraph(), ActivePath()):
        loaded = cache.session("chat")
        read = await loaded.load_session(scope)
        next_one = commit(read.head_revision, Unchanged("x"), checkpoint=state)
        assert await round_trips(proxy, loaded, next_one) == [(1, ["EVALSHA"])]


async def test_a_commit_by_a_new_handle_that_carries_the_heads_refs_is_one_command(proxy, through_proxy):
    cache = through_proxy()
    state = HydratedSessionCheckpoint(tool_state=tools())
    first = await cache.session("chat").commit_runtime_state(commit(None, append("a"), checkpoint=state))
    carried = HydratedSessionCheckpoint(tool_state_ref=first.manifest.tool_state_ref)
    next_one = commit(1, append("b", parent="a"), checkpoint=carried)
    assert await round_trips(proxy, cache.session("chat"), next_one) == [(1, ["EVALSHA"])]


@broken_by(
    Lua("commit", "local revision = ", "for at = 1, facts.length do call('LINDEX', log, at) end\nlocal revision = ")
)
async def test_a_commit_costs_the_same_with_10_and_with_5000_stored_nodes(proxy, real_server, through_proxy):
    raw = real_server.client()
    cache = through_proxy(shards=1)
    await cache.session("warm").commit_runtime_state(commit(None, session_id="warm"))
    costs = []
    for count, chat in ((10, "small"), (5_000, "large")):
        store = cache.session(chat)
        ids = numbered(count)
        await store.commit_runtime_state(commit(None, replace_full(*ids), session_id=chat))
        made = commit(1, append("x", "y", parent=ids[4]), session_id=chat, commit_id="1", usage_deltas=[used(input=1)])
        await raw.config_resetstat()
        with proxy.measure() as seen:
            await store.commit_runtime_state(made)
        stats = await raw.info("commandstats")
        calls = {name: stat["calls"] for name, stat in stats.items() if "config" not in name}
        costs.append((seen.commands, seen.bytes_sent, seen.bytes_received, calls))
    assert costs[0] == costs[1]


async def test_components_known_to_be_stored_are_not_sent_again(proxy, through_proxy):
    cache = through_proxy()
    state = HydratedSessionCheckpoint(tool_state=tools("x" * 50_000))
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, checkpoint=state))
    with proxy.measure() as seen:
        await store.commit_runtime_state(commit(1, checkpoint=state))
    assert seen.round_trips == 1
    assert seen.bytes_sent < 1_500


async def test_a_blob_deleted_in_the_meantime_is_sent_again(store, client):
    state = HydratedSessionCheckpoint(tool_state=tools("x" * 5_000))
    await store.commit_runtime_state(commit(None, checkpoint=state))
    (blob,) = await client.keys("lash2:*:blob:*")
    await client.delete(blob)
    await store.commit_runtime_state(commit(1, checkpoint=state))
    assert await holders(client) == [1]
    assert (await store.load_session(FullGraph())).checkpoint.tool_state == tools("x" * 5_000)


@broken_by(Python("session.store:RedisSessionStore.load_head", lambda head: _forgetting(head), "remembers no commit"))
async def test_a_commit_builds_on_the_last_commit_its_handle_has_seen_by_default(open_cache, client):
    """After a failover, another commit can have the revision that the handle has read."""
    worker, other = open_cache().session("chat"), open_cache().session("chat")
    await other.commit_runtime_state(commit(None, append("lost")))
    assert (await worker.load_head()).head_revision == 1
    await client.delete(*[await key_of(client, family) for family in ("head", "log", "nodes")])
    await other.commit_runtime_state(commit(None, append("kept")))
    with pytest.raises(HeadRevisionConflict, match="expected Some\\(1\\), actual 1; that revision is another commit"):
        await worker.commit_runtime_state(commit(1, replace_full("mine")))
    assert ids_of(await other.load_session(FullGraph())) == ["kept"]


def _forgetting(load_head):
    async def forgets(self):
        found = await load_head(self)
        self._last = replace(self._last, head=None)
        return found

    return forgets
