"""A read returns one revision, changes nothing, and distinguishes absent data from damaged data."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from lash_redis import (
    ActivePath,
    Append,
    Corrupt,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    PersistedSessionConfig,
    PersistedTurnState,
    ReplaceFull,
    SessionEvicted,
    SessionGraph,
    SessionHeadMeta,
    SessionMeta,
    Unchanged,
    UnsupportedReadScope,
    load_persisted_session_state,
    load_persisted_session_state_active_path,
)
from tests.support.breaking import Lua, Python, broken_by, one_by_one
from tests.support.builders import (
    FAMILIES,
    append,
    chain,
    commit,
    facts_of,
    ids_of,
    key_of,
    node,
    plant_fact,
    plugins,
    replace_full,
    tools,
    used,
)

SCOPES = [FullGraph(), ActivePath()]
EVERY_SCOPE = pytest.mark.parametrize("scope", SCOPES, ids=["full", "path"])


async def decoded_payloads(store, scope):
    """Load the session and decode the payload of every node."""
    read = await store.load_session(scope)
    return [each.payload for each in read.graph.nodes]


# Absence


@EVERY_SCOPE
async def test_a_session_without_a_head_reads_as_none(scope, cache, store, keyspace):
    await cache.session("other").commit_runtime_state(commit(None, append("a"), session_id="other"))
    await store.save_session_meta(SessionMeta("chat", "name", "now", "m"))
    before = await keyspace()
    assert await store.load_session(scope) is None
    assert await store.load_head() is None
    assert await store.load_node("a") is None
    assert await keyspace() == before


async def test_reads_of_an_empty_server_leave_it_empty(cache, keyspace):
    store = cache.session("chat")
    for scope in SCOPES:
        assert await store.load_session(scope) is None
    assert await store.load_head() is None
    assert await store.load_node("a") is None
    assert await store.load_session_meta() is None
    assert await cache.get_blob("0" * 64) is None
    assert await keyspace() == {}


# One revision


@broken_by(Python("session.namespace:Namespace.read", one_by_one, "reads key by key"))
async def test_a_read_concurrent_with_commits_returns_one_revision(open_cache):
    last = 40

    def revision(number):
        return commit(
            number - 1,
            append(f"n{number}", parent=f"n{number - 1}" if number > 1 else None),
            config=PersistedSessionConfig("p", f"model {number}"),
            usage_deltas=[used(input=1)],
            checkpoint=HydratedSessionCheckpoint(
                PersistedTurnState(turn_index=number), execution_state=f"state {number}".encode()
            ),
        )

    async def write():
        store = open_cache().session("chat")
        for number in range(2, last + 1):
            await store.commit_runtime_state(revision(number))

    async def read(scope):
        seen = 0
        while seen < last:
            read = await open_reader.session("chat").load_session(scope)
            seen = read.head_revision
            assert ids_of(read) == [f"n{at}" for at in range(1, seen + 1)]
            assert read.graph.leaf_node_id == f"n{seen}"
            assert read.config.configured_model == f"model {seen}"
            assert read.token_ledger == (used(input=seen),)
            assert read.checkpoint.turn_state.turn_index == seen
            assert read.checkpoint.execution_state == f"state {seen}".encode()
            await asyncio.sleep(0)

    open_reader = open_cache()
    await open_cache().session("chat").commit_runtime_state(revision(1))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        for scope in SCOPES:
            tasks.create_task(read(scope))


async def test_a_path_read_concurrent_with_a_replacement_returns_one_of_the_two_graphs(open_cache):
    graphs = [["a", "b", "c"], ["x", "y"], ["b", "a"]]
    writer = open_cache().session("chat")
    await writer.commit_runtime_state(commit(None, replace_full(*graphs[-1])))
    for turn in range(30):
        before, after = graphs[turn % 3 - 1], graphs[turn % 3]
        _, read = await asyncio.gather(
            writer.commit_runtime_state(commit(None, replace_full(*after))),
            open_cache().session("chat").load_session(ActivePath()),
        )
        assert ids_of(read) in (before, after)
        assert read.graph.leaf_node_id == ids_of(read)[-1]


# No change


async def test_no_read_changes_any_key(open_cache, keyspace):
    cache = open_cache()
    state = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")
    store = cache.session("chat")
    await store.commit_runtime_state(
        commit(None, append("a", "b", "c"), checkpoint=state, usage_deltas=[used(input=1)])
    )
    await store.tombstone_nodes(["b"])
    await store.save_session_meta(SessionMeta("chat", "name", "now", "m"))
    ref = await cache.put_blob(b"bytes")
    before = await keyspace()
    reader = open_cache()
    store = reader.session("chat")
    for scope in (*SCOPES, ActivePath("a"), ActivePath("unknown")):
        await store.load_session(scope)
    await store.load_head()
    await store.load_node("a")
    await store.load_session_meta()
    await reader.get_blob(ref)
    await load_persisted_session_state(store)
    await load_persisted_session_state_active_path(store)
    assert await keyspace() == before


# Returned content


async def test_load_head_agrees_with_load_session(store):
    config = PersistedSessionConfig("p", "m", 9)
    made = commit(
        None,
        append("a", "b"),
        config=config,
        checkpoint=HydratedSessionCheckpoint(tool_state=tools()),
        usage_deltas=[used(input=1)],
    )
    result = await store.commit_runtime_state(made)
    assert await store.load_head() == SessionHeadMeta(
        session_id="chat",
        head_revision=1,
        config=config,
        checkpoint_ref=result.checkpoint_ref,
        leaf_node_id="b",
        graph_node_count=2,
        token_ledger=(used(input=1),),
        commit_id=made.commit_id,
    )
    read = await store.load_session(FullGraph())
    assert (read.head_revision, read.config, read.checkpoint_ref, read.commit_id) == (
        1,
        config,
        result.checkpoint_ref,
        made.commit_id,
    )


async def test_every_public_read_returns_the_same_through_a_new_cache(open_cache):
    store = open_cache().session("chat")
    state = HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"1")
    await store.commit_runtime_state(
        commit(None, append("a", "b", "c"), checkpoint=state, usage_deltas=[used(input=1)])
    )
    await store.commit_runtime_state(commit(1, append("d", parent="a"), checkpoint=state))
    await store.tombstone_nodes(["c"])
    await store.save_session_meta(SessionMeta("chat", "name", "now", "m"))
    reopened = open_cache().session("chat")
    for scope in (*SCOPES, ActivePath("b")):
        assert await reopened.load_session(scope) == await store.load_session(scope)
    assert await reopened.load_head() == await store.load_head()
    assert await reopened.load_session_meta() == await store.load_session_meta()
    for node_id in "abcdx":
        assert await reopened.load_node(node_id) == await store.load_node(node_id)


async def test_a_node_is_found_by_its_id_on_and_off_the_active_path(store):
    nodes = [*chain("a", "b"), node("c", "a", text="off the path")]
    await store.commit_runtime_state(commit(None, Append(nodes, "b")))
    await store.tombstone_nodes(["b"])
    assert [await store.load_node(each) for each in ("a", "c", "b", "x")] == [nodes[0], nodes[2], None, None]


@broken_by(Lua("node", "if not entry or entry == '?' then", "if not entry then"))
async def test_an_id_that_occurs_only_as_a_parent_is_not_a_node(store):
    await store.commit_runtime_state(commit(None, append("a", parent="root")))
    assert await store.load_node("root") is None
    assert ids_of(await store.load_session(ActivePath("root"))) == []


async def test_a_read_returns_the_commit_id_that_the_next_commit_builds_on(store):
    first = await store.commit_runtime_state(commit(None, append("a")))
    read = await store.load_session(FullGraph())
    assert read.commit_id == first.commit_id
    await store.commit_runtime_state(commit(read.head_revision, Unchanged("a"), builds_on=read.commit_id))


@pytest.mark.parametrize("scope", [None, "FullGraph", FullGraph, ActivePath, 1])
async def test_an_invalid_read_scope_is_refused(scope, store):
    with pytest.raises(UnsupportedReadScope):
        await store.load_session(scope)


async def test_reads_refuse_invalid_node_ids(store):
    for node_id in ("", None, 5, "\ud800"):
        with pytest.raises(InvalidRecord):
            await store.load_node(node_id)
    with pytest.raises(InvalidRecord):
        await store.load_session(ActivePath(""))


def with_a_ping(run):
    async def extra(self, commands, *, atomic, **more):
        await run(self, [("PING",)], atomic=False)
        return await run(self, commands, atomic=atomic, **more)

    return extra


@broken_by(Python("session.namespace:Namespace.read", with_a_ping, "sends a PING before it reads"))
async def test_a_read_takes_at_most_two_round_trips(proxy, through_proxy):
    cache = through_proxy()
    state = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")
    await cache.session("chat").commit_runtime_state(commit(None, append("a", "b"), checkpoint=state))
    await cache.session("chat").commit_runtime_state(commit(1, append("c", parent="a"), checkpoint=state))
    trips = []
    for scope in SCOPES:
        cold = through_proxy()
        await cold.session("other").load_head()
        for _ in range(2):
            with proxy.measure() as seen:
                await cold.session("chat").load_session(scope)
            trips.append(seen.round_trips)
    assert trips == [2, 1, 2, 2]


async def test_a_first_load_takes_one_round_trip_when_the_tools_are_cached(proxy, through_proxy):
    """Most sessions of an application have the same tools. The other components are stored with the session."""
    cache, cold = through_proxy(), through_proxy()
    for name, state in (("chat", b"1"), ("other", b"2")):
        states = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(name), execution_state=state)
        await cache.session(name).commit_runtime_state(commit(None, append("a"), session_id=name, checkpoint=states))
    await cold.session("other").load_session(FullGraph())
    with proxy.measure() as seen:
        read = await cold.session("chat").load_session(FullGraph())
    checkpoint = read.checkpoint
    assert seen.round_trips == 1
    assert (checkpoint.tool_state, checkpoint.plugin_snapshot, checkpoint.execution_state) == (
        tools(),
        plugins("chat"),
        b"1",
    )


def without_a_comparison(_):
    async def at_one_revision(self, trip, decode):
        replies = await self._namespace.read([*trip, ("HGET", self._keys.head, "facts")], atomic=False)
        return await decode(replies[:-1])

    return at_one_revision


@broken_by(Python("session.reader:Reader._at_one_revision", without_a_comparison, "compares no facts"))
@EVERY_SCOPE
async def test_a_read_interrupted_by_a_commit_returns_one_revision(scope, store, open_cache, monkeypatch):
    states = [HydratedSessionCheckpoint(execution_state=state) for state in (b"1", b"2")]
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=states[0]))
    reader, rival = open_cache().session("chat"), [commit(1, append("b", parent="a"), checkpoint=states[1])]
    read = reader._namespace.read

    async def interrupted(trip, *, atomic, **more):
        if atomic or not rival:
            return await read(trip, atomic=atomic, **more)
        replies = await read(trip[:1], atomic=False, **more)
        await store.commit_runtime_state(rival.pop())
        return replies + await read(trip[1:], atomic=False, **more)

    monkeypatch.setattr(reader._namespace, "read", interrupted)
    found = await reader.load_session(scope)
    assert (found.head_revision, ids_of(found), found.checkpoint.execution_state) == (2, ["a", "b"], b"2")


async def test_loading_a_head_a_node_or_the_meta_takes_one_round_trip(proxy, through_proxy):
    store = through_proxy().session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    await store.load_node("a")
    for call in (store.load_head, lambda: store.load_node("a"), store.load_session_meta):
        with proxy.measure() as seen:
            await call()
        assert seen.round_trips == 1


async def test_reading_a_short_path_costs_the_same_in_a_large_graph(proxy, through_proxy):
    cache = through_proxy(shards=1)
    received = []
    for chat, ballast in (("small", 10), ("large", 5_000)):
        store = cache.session(chat)
        await store.commit_runtime_state(
            commit(None, append("root", *(f"n{at:05}" for at in range(ballast))), session_id=chat, commit_id="1")
        )
        await store.commit_runtime_state(commit(1, append("x", "y", parent="root"), session_id=chat, commit_id="2"))
        with proxy.measure() as seen:
            assert ids_of(await store.load_session(ActivePath())) == ["root", "x", "y"]
        received.append(seen.bytes_received)
    assert received[1] - received[0] < 50


# Damage


async def build_session(store):
    """Store a session with content in each of its five keys."""
    state = HydratedSessionCheckpoint(execution_state=b"1")
    await store.commit_runtime_state(
        commit(None, append("a", "b", "c"), checkpoint=state, usage_deltas=[used(input=1)])
    )
    await store.commit_runtime_state(commit(1, append("d", "e", parent="b"), checkpoint=state))
    await store.tombstone_nodes(["c"])


def calls(store):
    return {
        "full": lambda: store.load_session(FullGraph()),
        "path": lambda: store.load_session(ActivePath()),
        "commit": lambda: store.commit_runtime_state(commit(2, append("f", parent="e"))),
        "blind commit": lambda: store.commit_runtime_state(commit(None, append("f", parent="e"))),
    }


ACCESSED_BY = {
    "head": {"load_head", "load_node", "tombstone", "vacuum", "gc"},
    "log": {"load_node", "vacuum"},
    "nodes": {"load_node", "tombstone", "vacuum"},
    "jumps": {"vacuum"},
    "dead": {"load_node", "tombstone", "vacuum"},
}


def calls_that_access(store, family):
    others = {
        "load_head": store.load_head,
        "load_node": lambda: store.load_node("a"),
        "tombstone": lambda: store.tombstone_nodes(["d"]),
        "vacuum": store.vacuum,
        "gc": store.gc_unreachable,
    }
    return calls(store) | {name: call for name, call in others.items() if name in ACCESSED_BY[family]}


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_call_that_needs_a_missing_key_raises_session_evicted(family, open_cache, client, keyspace):
    store = open_cache().session("chat")
    await build_session(store)
    gone = await key_of(client, family)
    await client.delete(gone)
    before = await keyspace()
    for name, call in calls_that_access(open_cache().session("chat"), family).items():
        with pytest.raises(SessionEvicted) as evicted:
            await call()
        assert evicted.value.key == gone.decode(), name
    assert await keyspace() == before


@broken_by(Lua("commit", "if wrong then return refuse(session, wrong) end", ""))
async def test_a_commit_to_a_session_without_its_log_is_refused(store, client, keyspace):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await client.delete(await key_of(client, "log"))
    before = await keyspace()
    with pytest.raises(SessionEvicted):
        await store.commit_runtime_state(commit(None, append("c", parent="b")))
    assert await keyspace() == before


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_call_that_needs_a_key_of_another_type_raises_corrupt(family, open_cache, client, keyspace):
    store = open_cache().session("chat")
    await build_session(store)
    wrong = await key_of(client, family)
    await client.delete(wrong)
    await client.set(wrong, "text")
    before = await keyspace()
    for name, call in calls_that_access(open_cache().session("chat"), family).items():
        with pytest.raises(Corrupt) as corrupt:
            await call()
        assert corrupt.value.key == wrong.decode(), name
    assert await keyspace() == before


@pytest.mark.parametrize("family", ["log", "nodes", "jumps", "dead"])
async def test_a_key_with_extra_or_missing_entries_is_corrupt(family, open_cache, client):
    store = open_cache().session("chat")
    await build_session(store)
    await store.commit_runtime_state(commit(2, append("g", parent="d")))
    await store.tombstone_nodes(["g"])
    await store.commit_runtime_state(commit(3, Unchanged("e")))
    key = await key_of(client, family)
    listed = family in ("log", "jumps")

    async def more():
        await (client.rpush(key, "0:0") if listed else client.hset(key, "extra", "0"))

    async def fewer():
        if listed:
            await client.rpop(key, 2)
        else:
            fields = await client.hkeys(key)
            await client.hdel(key, "extra", next(field for field in fields if field != b"extra"))

    for change in (more, fewer):
        await change()
        for scope in SCOPES:
            with pytest.raises(Corrupt) as corrupt:
                await open_cache().session("chat").load_session(scope)
            assert corrupt.value.key == key.decode()
        with pytest.raises(Corrupt) as corrupt:
            await open_cache().session("chat").commit_runtime_state(commit(4, append("h", parent="e")))
        assert corrupt.value.key == key.decode()


@pytest.mark.parametrize("field", ["facts", "refs", "body", "receipts"])
@pytest.mark.parametrize("planted", [b"{", b"null", b"\xff\x00", b"1 2 3"])
async def test_an_undecodable_head_is_corrupt_and_never_overwritten(field, planted, open_cache, client, keyspace):
    await build_session(open_cache().session("chat"))
    head = await key_of(client, "head")
    await client.hset(head, field, planted)
    before = await keyspace()
    store = open_cache().session("chat")
    if field != "receipts":
        for call in (
            lambda: store.load_session(FullGraph()),
            lambda: store.load_session(ActivePath()),
            store.load_head,
        ):
            with pytest.raises(Corrupt) as corrupt:
                await call()
            assert corrupt.value.key == head.decode()
    if field in ("facts", "receipts"):
        with pytest.raises(Corrupt) as corrupt:
            await store.commit_runtime_state(commit(None, append("f", parent="e")))
        assert corrupt.value.key == head.decode()
    assert await keyspace() == before


@pytest.mark.parametrize("field", ["facts", "refs", "body", "receipts"])
async def test_a_head_without_one_of_its_fields_is_corrupt(field, open_cache, client, keyspace):
    await build_session(open_cache().session("chat"))
    await client.hdel(await key_of(client, "head"), field)
    before = await keyspace()
    store = open_cache().session("chat")
    if field != "receipts":
        for scope in SCOPES:
            with pytest.raises(Corrupt):
                await store.load_session(scope)
    if field != "body":
        with pytest.raises(Corrupt):
            await store.commit_runtime_state(commit(None, append("f", parent="e")))
    assert await keyspace() == before


async def flip_last_bit(client, key, position):
    record = await client.lindex(key, position)
    await client.lset(key, position, record[:-1] + bytes([record[-1] ^ 1]))


@pytest.mark.parametrize("decode", [False, True], ids=["lazy", "decode"])
@EVERY_SCOPE
async def test_an_eager_read_equals_a_lazy_read_and_marks_no_node_as_accessed(scope, decode, store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    read = await store.load_session(scope, decode=decode)
    assert read == await store.load_session(scope)
    read = await store.load_session(scope, decode=decode)
    assert list(read.graph.nodes.accessed(3)) == []
    assert read.graph.nodes[1].event() == node("b", "a").event()
    assert [at for at, _ in read.graph.nodes.accessed(3)] == [1]
    assert list(read.graph.nodes) == chain("a", "b", "c")


@broken_by(Python("session.reader:decode_in_steps", lambda _: lambda nodes: (_ for _ in ()), "decodes nothing"))
@EVERY_SCOPE
async def test_an_eager_read_reports_a_damaged_record(scope, open_cache, client):
    await open_cache().session("chat").commit_runtime_state(commit(None, append("a", "b", "c")))
    await flip_last_bit(client, await key_of(client, "log"), 1)
    store = open_cache().session("chat")
    with pytest.raises(Corrupt, match="record 1"):
        await store.load_session(scope, decode=True)


async def test_an_eager_read_of_a_path_linked_by_ids_decodes_every_node(open_cache, client):
    store = open_cache(graph_checks="lenient").session("chat")
    await store.commit_runtime_state(commit(None, Append([node("b", "a"), node("a"), node("c", "b")], "c")))
    read = await store.load_session(ActivePath(), decode=True)
    assert ids_of(read) == ["a", "b", "c"]
    await flip_last_bit(client, await key_of(client, "log"), 1)
    with pytest.raises(Corrupt, match="record 1"):
        await open_cache(graph_checks="lenient").session("chat").load_session(ActivePath(), decode=True)


@EVERY_SCOPE
async def test_a_damaged_record_raises_corrupt_on_access(scope, open_cache, client):
    await build_session(open_cache().session("chat"))
    log = await key_of(client, "log")
    await flip_last_bit(client, log, 1)
    store = open_cache().session("chat")
    with pytest.raises(Corrupt) as corrupt:
        await decoded_payloads(store, scope)
    assert corrupt.value.key == log.decode()
    with pytest.raises(Corrupt):
        await store.load_node("b")
    assert await store.load_node("a") == node("a")


@pytest.mark.parametrize("position", ["-1", "4", "-3", "x"])
async def test_a_tombstone_outside_the_log_is_corrupt(position, store, client):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.commit_runtime_state(commit(1, append("d", parent="a")))
    await store.tombstone_nodes(["c"])
    dead = await key_of(client, "dead")
    await client.delete(dead)
    await client.hset(dead, position, "d")
    with pytest.raises(Corrupt) as corrupt:
        await store.load_session(FullGraph())
    assert corrupt.value.key == dead.decode()


@broken_by(Python("protocol.commands.reads:check_id", lambda _: lambda *_: None, "does not check positions"))
async def test_a_record_at_the_position_of_another_is_corrupt(open_cache, client):
    await build_session(open_cache().session("chat"))
    log = await key_of(client, "log")
    records = await client.lrange(log, 0, -1)
    await client.lset(log, 4, records[3])
    await client.lset(log, 3, records[4])
    store = open_cache().session("chat")
    for scope in SCOPES:
        with pytest.raises(Corrupt):
            await decoded_payloads(store, scope)
    with pytest.raises(Corrupt):
        await store.load_node("d")


@pytest.mark.parametrize("jump", ["3:3", "3:9", "x", "3", "3:2", "4:2", "2:0", "3:x"])
async def test_an_invalid_jump_is_corrupt(jump, open_cache, client):
    store = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.commit_runtime_state(commit(1, append("d", "e", parent="b")))
    key = await key_of(client, "jumps")
    assert await client.lrange(key, 0, -1) == [b"3:1"]
    await client.lset(key, 0, jump)
    with pytest.raises(Corrupt):
        await decoded_payloads(open_cache().session("chat"), ActivePath())


@pytest.mark.parametrize("position", [-1, 0, 3, 5, 99])
@EVERY_SCOPE
async def test_a_head_leaf_with_a_wrong_position_is_corrupt(scope, position, open_cache, client):
    await build_session(open_cache().session("chat"))
    assert (await facts_of(client))["leaf"] == 4
    await plant_fact(client, "leaf", position)
    with pytest.raises(Corrupt):
        await decoded_payloads(open_cache().session("chat"), scope)


@pytest.mark.parametrize("planted", ["99", "x", "-1", "1.5", ""])
async def test_an_index_entry_with_an_invalid_position_is_corrupt(planted, open_cache, client, keyspace):
    await build_session(open_cache().session("chat"))
    await client.hset(await key_of(client, "nodes"), "a", planted)
    before = await keyspace()
    store = open_cache().session("chat")
    for call in (
        lambda: store.load_node("a"),
        lambda: store.load_session(ActivePath("a")),
        lambda: store.commit_runtime_state(commit(2, append("f", parent="a"))),
        lambda: store.tombstone_nodes(["a"]),
    ):
        with pytest.raises(Corrupt):
            await call()
    assert await keyspace() == before


def as_unknown(plan):
    def planned(keys, leaf, replies, **more):
        try:
            return plan(keys, leaf, replies, **more)
        except Corrupt:
            return plan(keys, leaf, [*replies[:5], None], **more)

    return planned


@broken_by(
    Lua("node", "return nil, {'corrupt', 'nodes', 'an entry points at no record'}", "return -1, ''"),
    Lua("tombstone", "place >= facts.length", "place > facts.length"),
    Lua("commit", "place >= facts.length", "place > facts.length"),
    Lua("vacuum", "position_of(named, facts) ~= position", "named == false"),
    Python("protocol.commands.paths:path_plan", as_unknown, "treats it as an unknown id"),
)  # fmt: skip
async def test_every_call_reports_an_index_entry_one_past_the_end_of_the_log(open_cache, client, keyspace):
    """The log has positions 0 to 2. The entries of `a` and of the tombstoned `b` point at position 3."""
    store = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    await client.hset(await key_of(client, "nodes"), mapping={"a": 3, "b": 3})
    before = await keyspace()
    full = ReplaceFull(SessionGraph([node("x"), node("y", "a")], "y"))
    methods = {
        "load a node": lambda: store.load_node("a"),
        "load a path": lambda: store.load_session(ActivePath("a")),
        "fork": lambda: open_cache().fork("chat", "new", leaf_node_id="a"),
        "append below it": lambda: store.commit_runtime_state(commit(1, append("d", parent="a"))),
        "replace below it": lambda: store.commit_runtime_state(commit(1, full)),
        "move the leaf to it": lambda: store.commit_runtime_state(commit(1, Unchanged("a"))),
        "tombstone": lambda: store.tombstone_nodes(["a"]),
        "vacuum": store.vacuum,
    }
    for name, method in methods.items():
        with pytest.raises(Corrupt) as corrupt:
            await method()
        assert corrupt.value.kind == ("dead" if name == "vacuum" else "nodes"), name
        assert await keyspace() == before, name
    report = await open_cache(role="auditor").audit()
    assert {problem.kind for problem in report.problems} == {"nodes"}


async def test_an_index_entry_that_points_at_another_node_is_corrupt(open_cache, client):
    await build_session(open_cache().session("chat"))
    await client.hset(await key_of(client, "nodes"), "a", "1")
    store = open_cache().session("chat")
    with pytest.raises(Corrupt):
        await store.load_node("a")
    with pytest.raises(Corrupt):
        await decoded_payloads(store, ActivePath("a"))


async def test_a_head_stored_under_the_key_of_another_session_is_corrupt(open_cache, client):
    cache = open_cache(shards=1)
    await cache.session("other").commit_runtime_state(commit(None, session_id="other"))
    head = await key_of(client, "head", "other")
    await client.rename(head, head.replace(b"other", b"chat"))
    for scope in SCOPES:
        with pytest.raises(Corrupt):
            await cache.session("chat").load_session(scope)


async def test_reads_are_equal_only_when_their_content_is_equal(store):
    await store.commit_runtime_state(commit(None, append("a")))
    one, two = [await store.load_session(FullGraph()) for _ in range(2)]
    assert one == two
    await store.commit_runtime_state(commit(1, append("b", parent="a")))
    assert await store.load_session(FullGraph()) != replace(one, head_revision=2)
