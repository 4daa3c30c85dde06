"""A store is bound to one session of one namespace. Meta is a separate record. A session's keys share one deadline."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from lash_redis import (
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    LayoutMismatch,
    SessionBindingMismatch,
    SessionCache,
    SessionMeta,
    SessionPolicy,
    SessionStoreCreateRequest,
    connect,
)
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import (
    append,
    blob_keys,
    commit,
    facts_of,
    holds,
    ids_of,
    key_of,
    let_all_expire,
    tools,
    used,
)
from tests.support.sending import sends_once

Checkpoint = HydratedSessionCheckpoint

SIMILAR_IDS = [
    "chat",
    "chat ",
    "Chat",
    "chat:1",
    "chat}",
    "{chat}",
    "}:head:chat",
    "head:chat",
    "log:chat",
    "a/b",
    "a_b",
    "a\nb",
    "a\0b",
    "a\tb",
    "*",
    "?",
    "[a-z]",
    "é",
    "e\u0301",
    "你好",
    "😀",
    "..",
    "%s",
    "'",
    '"',
    "x" * 10_000,
    "x" * 9_999 + "y",
]

META = SessionMeta("chat", "My chat", "unix:1", "some-model", cwd="/tmp", parent_session_id="parent")


# Ids


def normalizing(_):
    return property(lambda self: f"{self.prefix}head:{self.session_id.strip().casefold()}")


async def check_that_sessions_are_separate(open_cache, **options):
    cache = open_cache(**options)
    for at, chat in enumerate(SIMILAR_IDS):
        made = commit(0, append(f"n{at}"), session_id=chat, checkpoint=Checkpoint(execution_state=f"{at}".encode()))
        await cache.session(chat).commit_runtime_state(made)
        await cache.session(chat).save_session_meta(SessionMeta(chat, f"name {at}", "now", "m"))
    cache = open_cache(**options)
    for at, chat in enumerate(SIMILAR_IDS):
        store = cache.session(chat)
        read = await store.load_session(FullGraph())
        assert (read.session_id, ids_of(read)) == (chat, [f"n{at}"])
        assert read.checkpoint.execution_state == f"{at}".encode()
        assert (await store.load_session_meta()).session_name == f"name {at}"


@broken_by(Python("protocol.keys:SessionKeys.head", normalizing, "normalizes the id"))
async def test_sessions_with_similar_ids_in_one_shard_are_separate(open_cache):
    await check_that_sessions_are_separate(open_cache, shards=1)


async def test_sessions_with_similar_ids_across_shards_are_separate(open_cache):
    await check_that_sessions_are_separate(open_cache, shards=64)


async def test_similar_node_ids_are_distinct(store):
    await store.commit_runtime_state(commit(None, append(*SIMILAR_IDS, "=a", "@0", "-")))
    assert ids_of(await store.load_session(FullGraph())) == [*SIMILAR_IDS, "=a", "@0", "-"]
    for node_id in SIMILAR_IDS:
        assert (await store.load_node(node_id)).node_id == node_id
    await store.commit_runtime_state(commit(1, append("b", parent="=a")))
    await store.commit_runtime_state(commit(2, append("c", parent="@0")))
    await store.commit_runtime_state(commit(3, append("d", parent="-")))
    assert (await store.load_node("d")).parent_node_id == "-"
    await store.tombstone_nodes(SIMILAR_IDS[1:])
    assert ids_of(await store.load_session(FullGraph())) == ["chat", "=a", "@0", "-", "b", "c", "d"]


@pytest.mark.parametrize("session_id", ["", None, 5, b"chat", "\ud800", "x" * 65_537])
async def test_an_invalid_session_id_is_refused(session_id, cache):
    with pytest.raises(InvalidRecord):
        cache.session(session_id)


@pytest.mark.parametrize("namespace", ["", "a:b", "{a}", "a b", "a*", "-a", "x" * 65, None, "é", "a\n"])
async def test_an_invalid_namespace_is_refused(namespace, client):
    with pytest.raises(InvalidRecord):
        SessionCache(client, namespace)


async def test_namespaces_share_nothing(open_cache, client):
    for namespace in ("a", "b", "a.b", "A"):
        made = commit(0, append(namespace), checkpoint=Checkpoint(tool_state=tools()))
        await open_cache(namespace=namespace).session("chat").commit_runtime_state(made)
    for namespace in ("a", "b", "a.b", "A"):
        assert ids_of(await open_cache(namespace=namespace).session("chat").load_session(FullGraph())) == [namespace]
    assert len(await blob_keys(client)) == 4


async def test_every_key_has_the_prefix_of_its_namespace(open_cache, keyspace):
    cache = open_cache(namespace="acme", shards=3)
    for chat in SIMILAR_IDS:
        state = Checkpoint(tool_state=tools(), execution_state=b"1")
        await cache.session(chat).commit_runtime_state(commit(None, append("a"), session_id=chat, checkpoint=state))
        await cache.session(chat).commit_runtime_state(commit(1, append("b", parent="a"), session_id=chat))
    await cache.put_blob(b"bytes")
    keys = set(await keyspace()) - {b"lash1:layout:acme"}
    assert all(key.startswith(b"lash2:{acme:") for key in keys)
    assert {key.partition(b"}:")[2].partition(b":")[0] for key in keys} <= {
        b"head", b"log", b"nodes", b"jumps", b"dead", b"blob", b"orphans", b"sessions",
        b"expiries",
    }  # fmt: skip


async def test_keys_of_other_programs_are_not_changed(open_cache, client, keyspace):
    await client.set("chat", "theirs")
    await client.hset("lash:head:chat", "facts", "theirs")
    before = await keyspace()
    store = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.tombstone_nodes(["b"])
    await store.vacuum()
    await store.gc_unreachable()
    after = await keyspace()
    assert {key: after[key] for key in before} == before


# Binding


@broken_by(
    Python(
        "session.store:SessionBindingMismatch",
        lambda _: lambda bound, tried: InvalidRecord(bound, tried),
        "raises another error",
    )
)
async def test_a_commit_for_another_session_is_refused(cache, keyspace):
    await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    before = await keyspace()
    for store in (cache.session("chat"), cache.session("fresh")):
        with pytest.raises(SessionBindingMismatch) as refused:
            await store.commit_runtime_state(commit(None, append("b"), session_id="other"))
        assert refused.value.attempted_session_id == "other"
        assert refused.value.bound_session_id == store.session_id
    assert await keyspace() == before


async def test_meta_for_another_session_is_refused(store, keyspace):
    before = await keyspace()
    with pytest.raises(SessionBindingMismatch):
        await store.save_session_meta(SessionMeta("other", "name", "now", "m"))
    assert await keyspace() == before


# Meta


async def test_saved_meta_is_loaded_unchanged(open_cache):
    store = open_cache().session("chat")
    assert await store.load_session_meta() is None
    await store.save_session_meta(META)
    assert await open_cache().session("chat").load_session_meta() == META


async def test_saving_meta_replaces_the_whole_record(store):
    await store.save_session_meta(META)
    bare = SessionMeta("chat", "renamed", "unix:2", "other")
    await store.save_session_meta(bare)
    assert await store.load_session_meta() == bare


async def test_saving_meta_keeps_the_head_and_a_commit_keeps_the_meta(store):
    await store.save_session_meta(META)
    assert await store.load_session(FullGraph()) is None
    await store.commit_runtime_state(commit(0, append("a"), usage_deltas=[used(input=1)]))
    assert await store.load_session_meta() == META
    head = await store.load_head()
    await store.save_session_meta(SessionMeta("chat", "renamed", "unix:2", "other"))
    assert await store.load_head() == head


@broken_by(Lua("meta", "local exists = mode == 'compare' and", "local exists = false and"))
async def test_creating_a_session_again_keeps_its_meta(open_cache):
    request = SessionStoreCreateRequest("chat", SessionPolicy(model="some-model"), parent_session_id="parent")
    store = await open_cache().create(request)
    made = await store.load_session_meta()
    assert (made.session_id, made.model, made.parent_session_id) == ("chat", "some-model", "parent")
    renamed = SessionMeta("chat", "renamed", made.created_at, "opus")
    await store.save_session_meta(renamed)
    again = await open_cache().create(SessionStoreCreateRequest("chat", SessionPolicy(model="other")))
    assert await again.load_session_meta() == renamed
    await again.commit_runtime_state(commit(0, append("a")))


async def test_concurrent_creators_agree_on_one_meta(open_cache):
    requests = [SessionStoreCreateRequest("chat", SessionPolicy(model=f"m{at}")) for at in range(5)]
    stores = await asyncio.gather(*(open_cache().create(request) for request in requests))
    metas = [await store.load_session_meta() for store in stores]
    assert metas == [metas[0]] * 5


# Layout


async def without_check(self, *, writes):
    return None


@broken_by(Python("session.namespace:Namespace._check_layout", lambda _: without_check, "checks nothing"))
async def test_a_namespace_with_another_layout_is_refused_before_any_write(open_cache, keyspace):
    await open_cache(shards=4).session("chat").commit_runtime_state(commit(None, append("a")))
    before = await keyspace()
    store = open_cache(shards=8).session("chat")
    for call in (
        lambda: store.commit_runtime_state(commit(None, append("b"))),
        lambda: store.load_session(FullGraph()),
        lambda: store.save_session_meta(META),
        lambda: store.tombstone_nodes(["a"]),
        store.vacuum,
        store.gc_unreachable,
        store.load_session_meta,
        lambda: open_cache(shards=8).put_blob(b"bytes"),
        lambda: open_cache(shards=8).create(SessionStoreCreateRequest("chat")),
    ):
        with pytest.raises(LayoutMismatch) as refused:
            await call()
        assert refused.value.namespace == "laws"
    assert await keyspace() == before


async def test_a_layout_of_another_version_is_refused(store, client, keyspace):
    await client.set("lash1:layout:laws", "layout=1 shards=64")
    before = await keyspace()
    with pytest.raises(LayoutMismatch, match="layout=1"):
        await store.commit_runtime_state(commit(None, append("a")))
    assert await keyspace() == before


async def test_an_unreadable_layout_is_refused(store, client):
    await client.set("lash1:layout:laws", b"\xff")
    with pytest.raises(LayoutMismatch):
        await store.load_session(FullGraph())


# Clients


async def test_an_injected_client_stays_open(client):
    async with SessionCache(client, "laws") as cache:
        await cache.session("chat").commit_runtime_state(commit(None))
    assert await client.ping()
    await cache.aclose()
    assert await client.ping()


async def test_a_client_with_decode_responses_is_refused(server):
    with pytest.raises(InvalidRecord, match="decode_responses"):
        SessionCache(server.client(decode_responses=True))


@pytest.mark.parametrize("client", [None, "redis://localhost", object(), redis.Redis])
async def test_an_object_that_is_not_an_async_client_is_refused(client):
    with pytest.raises(InvalidRecord):
        SessionCache(client)


@pytest.mark.parametrize("ttl", [0, -1, True, "60", float("nan"), float("inf"), 10**12])
async def test_an_invalid_ttl_of_a_cache_is_refused(ttl, client):
    with pytest.raises(InvalidRecord):
        SessionCache(client, ttl=ttl)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_resp2_and_resp3_clients_read_the_same_data(protocol, real_server):
    writer = SessionCache(real_server.client(protocol=5 - protocol), "laws")
    state = Checkpoint(tool_state=tools(), execution_state=b"1")
    made = commit(None, append("a", "b"), checkpoint=state, usage_deltas=[used(input=1)])
    await writer.session("chat").commit_runtime_state(made)
    await writer.session("chat").tombstone_nodes(["b"])
    reader = SessionCache(real_server.client(protocol=protocol), "laws")
    read = await reader.session("chat").load_session(FullGraph())
    assert (ids_of(read), read.token_ledger, read.checkpoint.tool_state) == (["a"], (used(input=1),), tools())
    assert (await reader.session("chat").load_node("a")).node_id == "a"
    assert (await reader.session("chat").vacuum()).removed_node_count == 1


async def test_a_cache_connected_by_url_writes_and_reads_a_session(real_server):
    async with connect(real_server.url, namespace="acme") as cache:
        sends_once(cache)
        await cache.session("chat").commit_runtime_state(commit(None, append("a")))
        assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["a"]


# Deadlines


async def lifetimes(client, *keys: bytes) -> list[int]:
    """The remaining milliseconds of keys, read in one transaction."""
    async with client.pipeline(transaction=True) as pipe:
        for key in keys:
            pipe.pttl(key)
        return await pipe.execute()


KEYS = ("head", "log", "nodes", "jumps", "dead", "state")


async def full_session(store):
    """Write each of a session's six keys and a blob, in three commits."""
    state = Checkpoint(tool_state=tools(), execution_state=b"1")
    await store.commit_runtime_state(commit(None, append("a", "b", "c"), checkpoint=state))
    await store.commit_runtime_state(commit(1, append("d", parent="a"), checkpoint=state))
    await store.tombstone_nodes(["c"])
    await store.commit_runtime_state(commit(2, append("e", parent="d"), checkpoint=state))


@broken_by(
    Lua("commit", "    redis.call('PEXPIREAT', head, deadline)\n", ""),
    Lua("commit", "if facts.dead > 0 then redis.call('PEXPIREAT', dead, deadline) end", ""),
    Lua("commit", "if facts.private > 0 then redis.call('PEXPIREAT', state, deadline) end", ""),
    Lua("commit", "elseif index < held and counts and had == hold then", "elseif index < held and counts then"),
    Lua("commit", "if moves or added == 1 then", "if added == 1 then"),
)
async def test_the_keys_of_a_session_share_the_deadline_of_its_last_commit(open_cache, client):
    await full_session(open_cache(ttl=1_000).session("chat"))
    last = commit(3, append("f", parent="e"), checkpoint=Checkpoint(tool_state=tools(), execution_state=b"1"))
    await open_cache(ttl=9_000).session("chat").commit_runtime_state(last)
    shared = [*await blob_keys(client), *await client.keys("*:sessions"), *await client.keys("*:expiries")]
    assert len(shared) == 3
    left = await lifetimes(client, *[await key_of(client, family) for family in KEYS], *shared)
    left, of_shared = left[:6], left[6:]
    assert max(left) - min(left) < 1_000
    assert 8_900_000 < min(left) <= max(left) <= 9_000_000
    assert max(left) - 10 <= min(of_shared) <= max(of_shared) <= min(left) + 60_000 + 10
    deadline = (await facts_of(client))["deadline"]
    seconds, micros = await client.time()
    assert abs(deadline - (seconds * 1_000 + micros // 1_000) - left[0]) < 1_000


@broken_by(Lua("tombstone", "if facts.deadline > 0 then redis.call('PEXPIREAT', dead, facts.deadline) end", ""))
async def test_keys_written_by_maintenance_have_the_deadline_of_the_session(open_cache, client):
    store = open_cache(ttl=1_000).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    await store.vacuum()
    await store.tombstone_nodes(["c"])
    left = await lifetimes(client, *[await key_of(client, family) for family in ("head", "log", "nodes", "dead")])
    assert all(0 < each <= 1_000_000 for each in left)


async def test_saving_meta_neither_extends_nor_removes_the_deadline(open_cache, client):
    store = open_cache(ttl=1_000).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    for ttl in (None, 50_000):
        await open_cache(ttl=ttl).session("chat").save_session_meta(META)
        (left,) = await lifetimes(client, await key_of(client, "head"))
        assert 900_000 < left <= 1_000_000


async def test_a_session_with_only_meta_expires(open_cache, client):
    await open_cache(ttl=1_000).create(SessionStoreCreateRequest("chat"))
    (left,) = await lifetimes(client, await key_of(client, "head"))
    assert 0 < left <= 1_000_000


@broken_by(
    Lua("commit", "elseif had then", "elseif false then"),
    Lua("commit", "jumps, dead, state}) do redis.call('PERSIST', key)", "jumps, dead}) do redis.call('PERSIST', key)"),
)
async def test_a_commit_by_a_cache_without_a_ttl_removes_the_deadline(open_cache, client):
    await full_session(open_cache(ttl=1_000).session("chat"))
    last = commit(3, append("f", parent="e"), checkpoint=Checkpoint(tool_state=tools(), execution_state=b"2"))
    await open_cache().session("chat").commit_runtime_state(last)
    keys = [await key_of(client, family) for family in KEYS]
    assert await lifetimes(client, *keys) == [-1] * 6


@broken_by(
    Lua("commit", "if hold ~= '0' then redis.call('PEXPIREAT', key, hold) end", ""),
    Lua("commit", "if hold ~= '0' then redis.call('PEXPIREAT', key, hold) end", "call('PEXPIRE', key, 1000)"),
    Lua("commit", "math.ceil(deadline / grace) * grace", "math.floor(deadline / grace) * grace"),
    Lua("commit", "math.ceil(deadline / grace) * grace", "(math.ceil(deadline / grace) + 1) * grace"),
)
async def test_a_blob_expires_at_most_one_grace_after_the_session_that_holds_it(open_cache, client):
    made = commit(None, checkpoint=Checkpoint(tool_state=tools()))
    await open_cache(ttl=1_000).session("chat").commit_runtime_state(made)
    of_head, of_blob = await lifetimes(client, await key_of(client, "head"), *await blob_keys(client))
    assert 900_000 < of_head <= 1_000_000
    assert of_head <= of_blob + 1 <= of_head + 60_001
    (blob,) = await blob_keys(client)
    facts = await facts_of(client)
    assert await holds(client, blob) == {facts["hold"]: 1}
    assert facts["deadline"] <= facts["hold"] < facts["deadline"] + 60_000
    assert facts["hold"] % 60_000 == 0


@pytest.mark.parametrize("ttls", [(1_000, 9_000), (9_000, 1_000), (None, 1_000), (1_000, None), (9_000, 1_000, 5_000)])
async def test_a_shared_blob_lives_at_least_as_long_as_each_of_its_holders(ttls, open_cache, client):
    for at, ttl in enumerate(ttls):
        made = commit(None, session_id=f"chat{at}", checkpoint=Checkpoint(tool_state=tools()))
        await open_cache(ttl=ttl, shards=1).session(f"chat{at}").commit_runtime_state(made)
    (blob,) = await blob_keys(client)
    heads = [await key_of(client, "head", f"chat{at}") for at in range(len(ttls))]
    of_blob, *of_heads = await lifetimes(client, blob, *heads)
    if None in ttls:
        assert of_blob == -1
    else:
        assert of_blob >= max(of_heads) - 1


@broken_by(Lua("commit", "if left ~= -1 and now + left < hold + 100 then", "if false then"))
async def test_a_session_with_a_longer_ttl_extends_the_deadline_of_a_shared_blob(open_cache, client):
    for chat, ttl in (("short", 1_000), ("long", 9_000)):
        made = commit(None, session_id=chat, checkpoint=Checkpoint(tool_state=tools()))
        await open_cache(ttl=ttl, shards=1).session(chat).commit_runtime_state(made)
    (blob,) = await blob_keys(client)
    of_blob, of_head = await lifetimes(client, blob, await key_of(client, "head", "long"))
    assert of_head <= of_blob + 1 <= of_head + 60_001
    assert sorted((await holds(client, blob)).values()) == [1, 1]


async def test_an_expired_session_leaves_no_keys(open_cache, client, keyspace):
    store = open_cache(ttl=60, blob_grace=0.05).session("chat")
    await full_session(store)
    await let_all_expire(client, within=61)
    assert set(await keyspace()) == {b"lash1:layout:laws"}
    assert await store.load_session(FullGraph()) is None
    assert (await store.commit_runtime_state(commit(0, append("a")))).head_revision == 1
