"""A session expires with all its keys one ttl after its last commit or touch, and its blobs soon afterwards."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis import (
    ActivePath,
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    ReplaceFull,
    SessionEvicted,
    SessionGone,
    SessionGraph,
    SessionNodeRecord,
    SessionStoreCreateRequest,
)
from lash_redis.transfer import export_sessions
from tests.support.breaking import Lua, broken_by
from tests.support.builders import (
    append,
    blob_keys,
    commit,
    facts_of,
    holders,
    holds,
    ids_of,
    key_of,
    let_all_expire,
    plugins,
    tools,
    used,
)

DAY = 86_400.0
STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


async def remaining_ms(client, *families: str, session_id: str = "chat") -> list[int]:
    """The remaining milliseconds of these keys. -1: the key does not expire."""
    return [await client.pttl(await key_of(client, family, session_id)) for family in families]


async def blob_remaining_ms(client) -> list[int]:
    return sorted([await client.pttl(blob) for blob in await blob_keys(client)])


def is_close_to(milliseconds: int, seconds: float) -> bool:
    return seconds * 1000 - 5_000 <= milliseconds <= seconds * 1000


# Which ttl applies


async def test_a_ttl_given_at_creation_overrides_the_ttl_of_every_cache(open_cache, client):
    store = await open_cache(ttl=DAY).create(SessionStoreCreateRequest("chat"), ttl=100)
    assert is_close_to((await remaining_ms(client, "head"))[0], 100)
    await store.commit_runtime_state(commit(None, append("a")))
    assert is_close_to((await remaining_ms(client, "head"))[0], 100)
    await open_cache(ttl=None).session("chat").commit_runtime_state(commit(1, append("b", parent="a")))
    assert all(is_close_to(each, 100) for each in await remaining_ms(client, "head", "log", "nodes"))


@broken_by(Lua("commit", "if own_ttl ~= '' then fields", "if false then fields"))
async def test_a_ttl_given_with_a_commit_applies_to_later_commits(open_cache, client):
    store = open_cache(ttl=DAY).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    assert is_close_to((await remaining_ms(client, "log"))[0], DAY)
    await store.commit_runtime_state(commit(1, append("b", parent="a")), ttl=50)
    await store.commit_runtime_state(commit(2, append("c", parent="b")))
    assert all(is_close_to(each, 50) for each in await remaining_ms(client, "head", "log", "nodes"))


async def test_a_session_with_its_own_ttl_none_never_expires(open_cache, client):
    store = open_cache(ttl=50).session("chat")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES), ttl=None)
    await store.commit_runtime_state(commit(2, append("c", parent="b"), checkpoint=STATES))
    assert await remaining_ms(client, "head", "log", "nodes", "state") == [-1] * 4
    assert await blob_remaining_ms(client) == [-1]


async def test_a_session_without_its_own_ttl_uses_that_of_the_writing_cache(open_cache, client):
    await open_cache(ttl=50).session("chat").commit_runtime_state(commit(None, append("a")))
    await open_cache(ttl=900).session("chat").commit_runtime_state(commit(1, append("b", parent="a")))
    assert all(is_close_to(each, 900) for each in await remaining_ms(client, "head", "log", "nodes"))


@broken_by(
    Lua("touch", "if own_ttl == '' then fields = {} end", "fields = {}"),
    Lua("touch", "local ttl = given ~= '' and given or own", "local ttl = given ~= '' and given"),
)
async def test_a_ttl_given_with_a_touch_applies_to_later_touches_and_commits(open_cache, client):
    store, other = open_cache(ttl=DAY).session("chat"), open_cache(ttl=900).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    assert await store.touch(ttl=50)
    for slides in (store.touch, other.touch):
        await client.pexpire(await key_of(client, "head"), 9_000)
        assert await slides()
        assert all(is_close_to(each, 50) for each in await remaining_ms(client, "head", "log", "nodes"))
    for revision, writer in enumerate((store, other), 1):
        await writer.commit_runtime_state(commit(revision, append(f"b{revision}", parent="a")))
        assert all(is_close_to(each, 50) for each in await remaining_ms(client, "head", "log", "nodes"))
    assert await other.touch(ttl=None)
    assert await store.touch()
    await store.commit_runtime_state(commit(3, append("c", parent="a")))
    assert await remaining_ms(client, "head", "log", "nodes") == [-1, -1, -1]


@broken_by(Lua("touch", "if own_ttl == '' then fields = {} end", ""))
async def test_a_touch_without_a_ttl_gives_the_session_no_ttl_of_its_own(open_cache, client):
    store, other = open_cache(ttl=50).session("chat"), open_cache(ttl=900).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    assert await store.touch()
    assert await other.touch()
    assert all(is_close_to(each, 900) for each in await remaining_ms(client, "head", "log", "nodes"))
    assert await store.touch()
    await other.commit_runtime_state(commit(1, append("b", parent="a")))
    assert all(is_close_to(each, 900) for each in await remaining_ms(client, "head", "log", "nodes"))


async def test_creating_a_session_again_keeps_its_ttl(open_cache, client):
    cache = open_cache(ttl=DAY)
    await cache.create(SessionStoreCreateRequest("chat"), ttl=100)
    await cache.create(SessionStoreCreateRequest("chat"), ttl=9)
    assert is_close_to((await remaining_ms(client, "head"))[0], 100)


async def test_a_retry_with_another_ttl_is_replayed_and_keeps_the_first_ttl(open_cache, client):
    store = open_cache(ttl=DAY).session("chat")
    made = commit(None, append("a"))
    await store.commit_runtime_state(made, ttl=100)
    assert (await store.commit_runtime_state(made, ttl=7)).replayed
    assert is_close_to((await remaining_ms(client, "head"))[0], 100)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "60", True, 101 * 365 * DAY])
async def test_an_invalid_ttl_is_refused_and_nothing_is_written(ttl, cache, keyspace):
    store = cache.session("chat")
    for call in (
        store.commit_runtime_state(commit(None, append("a")), ttl=ttl),
        cache.create(SessionStoreCreateRequest("chat"), ttl=ttl),
        store.touch(ttl=ttl),
    ):
        with pytest.raises(InvalidRecord, match="ttl"):
            await call
    assert await keyspace() == {}


# Touches and sliding loads


@broken_by(
    Lua("touch", "redis.call('PEXPIREAT', key, deadline)", "redis.call('EXISTS', key)"),
    Lua("touch", "jumps, dead, state, documents", "jumps, dead, documents"),
)
async def test_touch_gives_every_key_the_same_deadline_and_keeps_the_content(open_cache, client):
    store = open_cache(ttl=100).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b"), checkpoint=STATES, usage_deltas=[used(input=1)]))
    await store.commit_runtime_state(commit(1, append("c", parent="a"), checkpoint=STATES))
    await store.tombstone_nodes(["b"])
    before = await store.load_session(FullGraph())
    assert await open_cache(ttl=700).session("chat").touch()
    lives = await remaining_ms(client, "head", "log", "nodes", "jumps", "dead", "state")
    assert all(is_close_to(each, 700) for each in lives)
    assert min(await blob_remaining_ms(client)) >= max(lives) - 5_000
    assert await store.load_session(FullGraph()) == before


async def test_touch_can_set_and_remove_a_deadline(open_cache, client):
    store = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    assert await store.touch(ttl=100)
    assert all(is_close_to(each, 100) for each in await remaining_ms(client, "head", "log", "nodes", "state"))
    assert all(100_000 - 5_000 <= each <= 160_000 for each in await blob_remaining_ms(client))
    assert await store.touch(ttl=None)
    assert await remaining_ms(client, "head", "log", "nodes", "state") == [-1] * 4
    assert await blob_remaining_ms(client) == [-1]


async def test_touching_an_unknown_session_returns_false_and_writes_nothing(cache, keyspace):
    await cache.session("other").commit_runtime_state(commit(None, session_id="other"))
    before = await keyspace()
    assert await cache.session("chat").touch() is False
    assert await keyspace() == before


async def test_a_session_with_only_meta_can_be_touched(open_cache, client):
    store = await open_cache(ttl=50).create(SessionStoreCreateRequest("chat"))
    assert await open_cache(ttl=500).session("chat").touch()
    assert is_close_to((await remaining_ms(client, "head"))[0], 500)
    assert await store.load_session_meta() is not None


@pytest.mark.parametrize("scope", [FullGraph(), ActivePath()], ids=["full", "path"])
async def test_a_load_extends_the_deadline_only_with_slide_on_load(scope, open_cache, client):
    await open_cache(ttl=100).session("chat").commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    await open_cache(ttl=900).session("chat").load_session(scope)
    assert is_close_to((await remaining_ms(client, "log"))[0], 100)
    read = await open_cache(ttl=900, slide_on_load=True).session("chat").load_session(scope)
    assert ids_of(read) == ["a"]
    assert all(is_close_to(each, 900) for each in await remaining_ms(client, "head", "log", "nodes"))


async def test_fork_list_and_export_do_not_extend_the_deadline(open_cache, client):
    cache = open_cache(ttl=900, slide_on_load=True)
    store = open_cache(ttl=100).session("chat")
    message = EventPayload({"Conversation": {"id": "a", "role": "User"}})
    await store.commit_runtime_state(commit(None, Append([SessionNodeRecord("a", None, "t", message)], "a")))
    await store.commit_runtime_state(commit(1, append("b", parent="a")))
    await store.tombstone_nodes(["a"])
    await cache.fork("chat", "other")
    assert len([info async for info in cache.sessions()]) == 2
    assert len([line async for line in export_sessions(cache)]) == 4
    assert is_close_to((await remaining_ms(client, "log"))[0], 100)


async def test_touching_a_session_names_its_evicted_blob(open_cache, client):
    store = open_cache(ttl=100).session("chat")
    state = HydratedSessionCheckpoint(tool_state=tools())
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=state))
    (blob,) = await blob_keys(client)
    await client.delete(blob)
    with pytest.raises(SessionEvicted) as refused:
        await store.touch()
    assert refused.value.key == blob.decode()


# Expiry


async def test_an_expired_session_is_absent_and_commits_that_build_on_it_are_refused(open_cache, client):
    store = open_cache(ttl=0.15, blob_grace=0.05).session("chat")
    result = await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    await asyncio.sleep(0.25)
    assert await store.load_session(FullGraph()) is None
    assert await store.load_session(ActivePath()) is None
    assert await store.load_head() is None
    assert await store.load_node("a") is None
    assert await store.touch() is False
    for expected, builds_on in ((1, None), (1, result.commit_id), (None, result.commit_id)):
        with pytest.raises(SessionGone):
            await store.commit_runtime_state(commit(expected, append("b", parent="a"), builds_on=builds_on))
    assert await store.load_session(FullGraph()) is None


async def test_all_keys_of_an_expired_session_expire_without_maintenance(open_cache, client):
    cache = open_cache(ttl=60, blob_grace=0.1)
    for name in ("one", "two"):
        store = cache.session(name)
        await store.commit_runtime_state(commit(None, append("a", "b"), session_id=name, checkpoint=STATES))
        states = HydratedSessionCheckpoint(plugin_snapshot=plugins(), execution_state=b"2")
        await store.commit_runtime_state(commit(1, append("c", parent="a"), session_id=name, checkpoint=states))
        await store.tombstone_nodes(["b"])
    await let_all_expire(client, within=61)


@broken_by(
    Lua("replace", "if facts.length > 0 then redis.call('PEXPIREAT', log, deadline) end", ""),
    Lua("replace", "if facts.private > 0 then redis.call('PEXPIREAT', state, deadline) end", ""),
)
async def test_a_full_replacement_gives_its_new_keys_the_deadline(open_cache, client):
    store = open_cache(ttl=100).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b")))
    graph = SessionGraph(append("x", "y").nodes, "y")
    await store.commit_runtime_state(commit(1, ReplaceFull(graph), checkpoint=STATES))
    assert all(is_close_to(each, 100) for each in await remaining_ms(client, "head", "log", "nodes", "state"))


# Blobs of sessions that expire


@broken_by(
    Lua("commit", "if hold ~= '0' then redis.call('PEXPIREAT', key, hold) end", ""),
    Lua("commit", "math.ceil(deadline / grace) * grace", "math.floor(deadline / grace) * grace"),
)
async def test_a_blob_expires_at_most_one_grace_after_its_last_holder(open_cache, client):
    for name, ttl in (("short", 100.0), ("long", 1000.0)):
        store = open_cache(ttl=ttl, blob_grace=7, shards=1).session(name)
        await store.commit_runtime_state(
            commit(None, session_id=name, checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
        )
    (before,) = await remaining_ms(client, "head", session_id="long")
    (life,) = await blob_remaining_ms(client)
    (after,) = await remaining_ms(client, "head", session_id="long")
    assert after <= life <= before + 7_000


@broken_by(
    Lua("commit", "redis.call('PEXPIREAT', blob, math.max(latest or now + grace, promised))", "redis.call('TIME')"),
    Lua("commit", "latest = math.max(latest or 0, hold)", "latest = 0"),
)
async def test_a_blob_released_by_its_longest_holder_expires_with_the_next_holder(open_cache, client):
    short, long = (open_cache(ttl=ttl, blob_grace=7, shards=1).session(name) for name, ttl in (("s", 100), ("l", 1000)))
    for store in (short, long):
        await store.commit_runtime_state(
            commit(None, session_id=store.session_id, checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
        )
    await long.commit_runtime_state(commit(1, session_id="l"))
    (before,) = await remaining_ms(client, "head", session_id="s")
    (life,) = await blob_remaining_ms(client)
    (after,) = await remaining_ms(client, "head", session_id="s")
    assert after <= life <= before + 7_000
    assert await holders(client) == [1]


async def test_the_hold_of_an_expired_session_does_not_keep_its_blob(open_cache, client):
    """An expired session never releases its holds by a command."""
    gone, other = (open_cache(ttl=ttl, blob_grace=0.1, shards=1).session(name) for name, ttl in (("g", 0.1), ("o", 50)))
    for store in (gone, other):
        await store.commit_runtime_state(
            commit(None, session_id=store.session_id, checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
        )
    await asyncio.sleep(0.3)
    await other.commit_runtime_state(commit(1, session_id="o"))
    await asyncio.sleep(0.3)
    assert await blob_keys(client) == []


async def test_a_session_without_a_deadline_keeps_a_blob_shared_with_an_expiring_one(open_cache, client):
    state = HydratedSessionCheckpoint(tool_state=tools())
    for name, ttl in (("brief", 0.1), ("lasting", None)):
        store = open_cache(ttl=ttl, blob_grace=0.05, shards=1).session(name)
        await store.commit_runtime_state(commit(None, session_id=name, checkpoint=state))
    assert await blob_remaining_ms(client) == [-1]
    await asyncio.sleep(0.3)
    read = await open_cache(shards=1).session("lasting").load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    assert read.checkpoint.tool_state == tools()
    store = open_cache(shards=1, blob_grace=0.05).session("lasting")
    await store.commit_runtime_state(commit(1, session_id="lasting"))
    await asyncio.sleep(0.3)
    assert await blob_keys(client) == []


async def test_a_commit_within_the_same_grace_does_not_change_the_holds(open_cache, client):
    store = open_cache(ttl=100, blob_grace=3600).session("chat")
    await store.commit_runtime_state(commit(None, checkpoint=HydratedSessionCheckpoint(tool_state=tools())))
    (blob,) = await blob_keys(client)
    before, hold = await holds(client, blob), (await facts_of(client))["hold"]
    await asyncio.sleep(0.01)
    await store.commit_runtime_state(commit(1, checkpoint=HydratedSessionCheckpoint(tool_state=tools())))
    after = await facts_of(client)
    if after["hold"] == hold:  # differs if an hour ended between the two commits
        assert await holds(client, blob) == before == {hold: 1}


@pytest.mark.slow
@broken_by(Lua("commit", "hold and hold <= now then", "hold and hold <= -1 then"))
async def test_ended_holds_do_not_accumulate_in_a_live_blob(open_cache, client):
    """300 short-lived sessions hold one blob. Later commits remove the holds that have ended."""
    cache = open_cache(ttl=None, blob_grace=0.001, shards=1)
    state = HydratedSessionCheckpoint(tool_state=tools())
    await cache.session("lasting").commit_runtime_state(commit(None, session_id="lasting", checkpoint=state))
    for number in range(300):
        name = f"brief-{number:03}"
        await cache.session(name).commit_runtime_state(
            commit(None, session_id=name, checkpoint=state), ttl=0.001 + number % 7 / 1000
        )
    (blob,) = await blob_keys(client)
    assert await client.hlen(blob) < 140
    assert (await holds(client, blob))[0] == 1


@pytest.mark.slow
@broken_by(
    Lua("commit", "redis.call('ZREMRANGEBYSCORE', orphans, '-inf', now - 2 * grace)", ""),
    Lua("commit", "redis.call('PEXPIREAT', orphans, latest + 2 * grace)", ""),
)
async def test_the_orphan_list_drops_expired_blobs_without_garbage_collection(open_cache, client):
    """1,200 blobs are released. After every 60, the test ages the list by three grace periods."""
    store, longest = open_cache(blob_grace=3600, shards=1).session("chat"), 0
    orphans = store._keys.shard.orphans
    for revision in range(1201):
        states = HydratedSessionCheckpoint(tool_state=tools(f"{revision}"))
        await store.commit_runtime_state(commit(revision, checkpoint=states))
        if revision and revision % 60 == 0:
            listed = await client.zrange(orphans, 0, -1, withscores=True)
            longest = max(longest, len(listed))
            assert await client.pttl(orphans) > 3_600_000
            await client.zadd(orphans, {ref: due - 3 * 3_600_000 for ref, due in listed})
            await client.pexpire(orphans, 60_000)
    assert 60 <= longest <= 160


async def test_a_sliding_load_uses_cached_blobs_and_returns_none_after_a_deletion(open_cache, client):
    cache = open_cache(ttl=100, slide_on_load=True)
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    for blob in await blob_keys(client):
        await client.delete(blob)
    assert ids_of(await store.load_session(FullGraph())) == ["a"]  # this process has cached the bytes
    await open_cache().delete("chat")
    assert await store.load_session(FullGraph()) is None
