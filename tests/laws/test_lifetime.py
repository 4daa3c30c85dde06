"""A session lives its ttl from its last commit or touch, with all its keys and no longer than that with its blobs."""

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
    plugins,
    tools,
    used,
)

DAY = 86_400.0
STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


async def left(client, *families: str, session_id: str = "chat") -> list[int]:
    """The ms that keys of these families have left; -1 for ever."""
    return [await client.pttl(await key_of(client, family, session_id)) for family in families]


async def blob_left(client) -> list[int]:
    return sorted([await client.pttl(blob) for blob in await blob_keys(client)])


def close(milliseconds: int, seconds: float) -> bool:
    return seconds * 1000 - 5_000 <= milliseconds <= seconds * 1000


# Whose ttl it is


async def test_a_session_created_with_a_ttl_of_its_own_keeps_it_over_the_caches(open_cache, client):
    store = await open_cache(ttl=DAY).create(SessionStoreCreateRequest("chat"), ttl=100)
    assert close((await left(client, "head"))[0], 100)
    await store.commit_runtime_state(commit(None, append("a")))
    assert close((await left(client, "head"))[0], 100)
    await open_cache(ttl=None).session("chat").commit_runtime_state(commit(1, append("b", parent="a")))
    assert all(close(each, 100) for each in await left(client, "head", "log", "nodes"))


@broken_by(Lua("commit", "if own_ttl ~= '' then fields", "if false then fields"))
async def test_a_ttl_given_with_a_commit_is_the_sessions_own_from_then_on(open_cache, client):
    store = open_cache(ttl=DAY).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    assert close((await left(client, "log"))[0], DAY)
    await store.commit_runtime_state(commit(1, append("b", parent="a")), ttl=50)
    await store.commit_runtime_state(commit(2, append("c", parent="b")))
    assert all(close(each, 50) for each in await left(client, "head", "log", "nodes"))


async def test_a_session_of_its_own_without_a_ttl_never_expires_whatever_the_caches_is(open_cache, client):
    store = open_cache(ttl=50).session("chat")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    await store.commit_runtime_state(commit(1, append("b", parent="a"), checkpoint=STATES), ttl=None)
    await store.commit_runtime_state(commit(2, append("c", parent="b"), checkpoint=STATES))
    assert await left(client, "head", "log", "nodes", "state") == [-1] * 4
    assert await blob_left(client) == [-1]


async def test_without_one_of_its_own_a_session_goes_by_the_cache_that_writes(open_cache, client):
    await open_cache(ttl=50).session("chat").commit_runtime_state(commit(None, append("a")))
    await open_cache(ttl=900).session("chat").commit_runtime_state(commit(1, append("b", parent="a")))
    assert all(close(each, 900) for each in await left(client, "head", "log", "nodes"))


@broken_by(
    Lua("touch", "if own_ttl == '' then fields = {} end", "fields = {}"),
    Lua("touch", "local ttl = given ~= '' and given or own", "local ttl = given ~= '' and given"),
)
async def test_a_ttl_given_with_a_touch_is_the_sessions_own_from_then_on(open_cache, client):
    store, other = open_cache(ttl=DAY).session("chat"), open_cache(ttl=900).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    assert await store.touch(ttl=50)
    for slides in (store.touch, other.touch):
        await client.pexpire(await key_of(client, "head"), 9_000)
        assert await slides()
        assert all(close(each, 50) for each in await left(client, "head", "log", "nodes"))
    for revision, writer in enumerate((store, other), 1):
        await writer.commit_runtime_state(commit(revision, append(f"b{revision}", parent="a")))
        assert all(close(each, 50) for each in await left(client, "head", "log", "nodes"))
    assert await other.touch(ttl=None)
    assert await store.touch()
    await store.commit_runtime_state(commit(3, append("c", parent="a")))
    assert await left(client, "head", "log", "nodes") == [-1, -1, -1]


@broken_by(Lua("touch", "if own_ttl == '' then fields = {} end", ""))
async def test_a_plain_touch_gives_a_session_no_ttl_of_its_own(open_cache, client):
    store, other = open_cache(ttl=50).session("chat"), open_cache(ttl=900).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    assert await store.touch()
    assert await other.touch()
    assert all(close(each, 900) for each in await left(client, "head", "log", "nodes"))
    assert await store.touch()
    await other.commit_runtime_state(commit(1, append("b", parent="a")))
    assert all(close(each, 900) for each in await left(client, "head", "log", "nodes"))


async def test_creating_a_session_again_changes_nothing_of_its_ttl(open_cache, client):
    cache = open_cache(ttl=DAY)
    await cache.create(SessionStoreCreateRequest("chat"), ttl=100)
    await cache.create(SessionStoreCreateRequest("chat"), ttl=9)
    assert close((await left(client, "head"))[0], 100)


async def test_a_ttl_is_no_part_of_what_a_commit_means(open_cache, client):
    store = open_cache(ttl=DAY).session("chat")
    made = commit(None, append("a"))
    await store.commit_runtime_state(made, ttl=100)
    assert (await store.commit_runtime_state(made, ttl=7)).replayed
    assert close((await left(client, "head"))[0], 100)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "60", True, 101 * 365 * DAY])
async def test_a_ttl_that_is_none_is_refused_by_name_and_nothing_is_written(ttl, cache, keyspace):
    store = cache.session("chat")
    for call in (
        store.commit_runtime_state(commit(None, append("a")), ttl=ttl),
        cache.create(SessionStoreCreateRequest("chat"), ttl=ttl),
        store.touch(ttl=ttl),
    ):
        with pytest.raises(InvalidRecord, match="ttl"):
            await call
    assert await keyspace() == {}


# Sliding


@broken_by(
    Lua("touch", "redis.call('PEXPIREAT', key, deadline)", "redis.call('EXISTS', key)"),
    Lua("touch", "jumps, dead, state}) do\n  if deadline", "jumps, dead}) do\n  if deadline"),
)
async def test_touch_gives_every_key_one_new_deadline_and_leaves_the_head_where_it_was(open_cache, client):
    store = open_cache(ttl=100).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b"), checkpoint=STATES, usage_deltas=[used(input=1)]))
    await store.commit_runtime_state(commit(1, append("c", parent="a"), checkpoint=STATES))
    await store.tombstone_nodes(["b"])
    before = await store.load_session(FullGraph())
    assert await open_cache(ttl=700).session("chat").touch()
    lives = await left(client, "head", "log", "nodes", "jumps", "dead", "state")
    assert all(close(each, 700) for each in lives)
    assert max(lives) - min(lives) < 1_000
    assert min(await blob_left(client)) >= max(lives) - 1_000
    assert await store.load_session(FullGraph()) == before


async def test_touch_can_give_and_take_a_deadline(open_cache, client):
    store = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    assert await store.touch(ttl=100)
    assert all(close(each, 100) for each in await left(client, "head", "log", "nodes", "state"))
    assert all(100_000 - 5_000 <= each <= 160_000 for each in await blob_left(client))
    assert await store.touch(ttl=None)
    assert await left(client, "head", "log", "nodes", "state") == [-1] * 4
    assert await blob_left(client) == [-1]


async def test_touching_what_is_not_there_says_so_and_writes_nothing(cache, keyspace):
    await cache.session("other").commit_runtime_state(commit(None, session_id="other"))
    before = await keyspace()
    assert await cache.session("chat").touch() is False
    assert await keyspace() == before


async def test_a_session_that_is_only_meta_can_be_touched(open_cache, client):
    store = await open_cache(ttl=50).create(SessionStoreCreateRequest("chat"))
    assert await open_cache(ttl=500).session("chat").touch()
    assert close((await left(client, "head"))[0], 500)
    assert await store.load_session_meta() is not None


@pytest.mark.parametrize("scope", [FullGraph(), ActivePath()], ids=["full", "path"])
async def test_a_load_slides_the_deadline_where_it_is_asked_to_and_only_there(scope, open_cache, client):
    await open_cache(ttl=100).session("chat").commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    await open_cache(ttl=900).session("chat").load_session(scope)
    assert close((await left(client, "log"))[0], 100)
    read = await open_cache(ttl=900, slide_on_load=True).session("chat").load_session(scope)
    assert ids_of(read) == ["a"]
    assert all(close(each, 900) for each in await left(client, "head", "log", "nodes"))


async def test_forking_listing_and_exporting_slide_nothing(open_cache, client):
    cache = open_cache(ttl=900, slide_on_load=True)
    store = open_cache(ttl=100).session("chat")
    message = EventPayload({"Conversation": {"id": "a", "role": "User"}})
    await store.commit_runtime_state(commit(None, Append([SessionNodeRecord("a", None, "t", message)], "a")))
    await store.commit_runtime_state(commit(1, append("b", parent="a")))
    await store.tombstone_nodes(["a"])
    await cache.fork("chat", "other")
    assert len([info async for info in cache.sessions()]) == 2
    assert len([line async for line in export_sessions(cache)]) == 4
    assert close((await left(client, "log"))[0], 100)


async def test_a_touch_of_a_torn_session_tells_what_is_gone(open_cache, client):
    store = open_cache(ttl=100).session("chat")
    state = HydratedSessionCheckpoint(tool_state=tools())
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=state))
    (blob,) = await blob_keys(client)
    await client.delete(blob)
    with pytest.raises(SessionEvicted) as refused:
        await store.touch()
    assert refused.value.key == blob.decode()


# Expiry


async def test_an_expired_session_reads_as_none_and_a_commit_that_builds_on_it_is_session_gone(open_cache, client):
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


async def test_after_a_session_expired_nothing_of_it_stays_and_no_process_has_to_look(open_cache, client):
    cache = open_cache(ttl=0.2, blob_grace=0.1)
    for name in ("one", "two"):
        store = cache.session(name)
        await store.commit_runtime_state(commit(None, append("a", "b"), session_id=name, checkpoint=STATES))
        states = HydratedSessionCheckpoint(plugin_snapshot=plugins(), execution_state=b"2")
        await store.commit_runtime_state(commit(1, append("c", parent="a"), session_id=name, checkpoint=states))
        await store.tombstone_nodes(["b"])
    await asyncio.sleep(0.6)
    assert await client.keys("*") == [b"lash1:layout:laws"]


@broken_by(
    Lua("replace", "if facts.length > 0 then redis.call('PEXPIREAT', log, deadline) end", ""),
    Lua("replace", "if facts.private > 0 then redis.call('PEXPIREAT', state, deadline) end", ""),
)
async def test_a_full_replacement_gives_its_new_keys_the_deadline_too(open_cache, client):
    store = open_cache(ttl=100).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b")))
    graph = SessionGraph(append("x", "y").nodes, "y")
    await store.commit_runtime_state(commit(1, ReplaceFull(graph), checkpoint=STATES))
    assert all(close(each, 100) for each in await left(client, "head", "log", "nodes", "state"))


# Blobs of sessions that expire


@broken_by(
    Lua("commit", "if hold ~= '0' then redis.call('PEXPIREAT', key, hold) end", ""),
    Lua("commit", "math.ceil(deadline / grace) * grace", "math.floor(deadline / grace) * grace"),
)
async def test_a_blob_dies_with_its_last_holder_or_at_most_a_grace_later(open_cache, client):
    for name, ttl in (("short", 100.0), ("long", 1000.0)):
        store = open_cache(ttl=ttl, blob_grace=7, shards=1).session(name)
        await store.commit_runtime_state(
            commit(None, session_id=name, checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
        )
    (life,) = await blob_left(client)
    head = (await left(client, "head", session_id="long"))[0]
    assert head <= life <= head + 7_000


@broken_by(
    Lua("commit", "redis.call('PEXPIREAT', blob, math.max(latest or now + grace, promised))", "redis.call('TIME')"),
    Lua("commit", "latest = math.max(latest or 0, hold)", "latest = 0"),
)
async def test_when_the_holder_that_lives_longest_lets_go_a_blob_dies_with_the_next(open_cache, client):
    short, long = (open_cache(ttl=ttl, blob_grace=7, shards=1).session(name) for name, ttl in (("s", 100), ("l", 1000)))
    for store in (short, long):
        await store.commit_runtime_state(
            commit(None, session_id=store.session_id, checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
        )
    await long.commit_runtime_state(commit(1, session_id="l"))
    (life,) = await blob_left(client)
    head = (await left(client, "head", session_id="s"))[0]
    assert head <= life <= head + 7_000
    assert await holders(client) == [1]


async def test_a_hold_of_a_session_that_expired_does_not_keep_its_blob(open_cache, client):
    """Two held it, one expired without a word: when the other lets go, nobody holds it."""
    gone, other = (open_cache(ttl=ttl, blob_grace=0.1, shards=1).session(name) for name, ttl in (("g", 0.1), ("o", 50)))
    for store in (gone, other):
        await store.commit_runtime_state(
            commit(None, session_id=store.session_id, checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
        )
    await asyncio.sleep(0.3)
    await other.commit_runtime_state(commit(1, session_id="o"))
    await asyncio.sleep(0.3)
    assert await blob_keys(client) == []


async def test_a_session_without_a_deadline_keeps_the_blob_it_shares_with_one_that_has_one(open_cache, client):
    state = HydratedSessionCheckpoint(tool_state=tools())
    for name, ttl in (("brief", 0.1), ("lasting", None)):
        store = open_cache(ttl=ttl, blob_grace=0.05, shards=1).session(name)
        await store.commit_runtime_state(commit(None, session_id=name, checkpoint=state))
    assert await blob_left(client) == [-1]
    await asyncio.sleep(0.3)
    read = await open_cache(shards=1).session("lasting").load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    assert read.checkpoint.tool_state == tools()
    store = open_cache(shards=1, blob_grace=0.05).session("lasting")
    await store.commit_runtime_state(commit(1, session_id="lasting"))
    await asyncio.sleep(0.3)
    assert await blob_keys(client) == []


async def test_a_commit_within_the_grace_leaves_the_holds_as_they_are(open_cache, client):
    store = open_cache(ttl=100, blob_grace=3600).session("chat")
    await store.commit_runtime_state(commit(None, checkpoint=HydratedSessionCheckpoint(tool_state=tools())))
    (blob,) = await blob_keys(client)
    before, hold = await holds(client, blob), (await facts_of(client))["hold"]
    await asyncio.sleep(0.01)
    await store.commit_runtime_state(commit(1, checkpoint=HydratedSessionCheckpoint(tool_state=tools())))
    after = await facts_of(client)
    if after["hold"] == hold:  # else the hour turned between the two commits
        assert await holds(client, blob) == before == {hold: 1}


@pytest.mark.slow
@broken_by(Lua("commit", "hold and hold <= now then", "hold and hold <= -1 then"))
async def test_holds_that_ended_do_not_pile_up_in_a_blob_that_lives_on(open_cache, client):
    """300 sessions of 300 lifetimes hold one blob and expire; the blob forgets them while others come."""
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
async def test_the_list_of_blobs_that_nobody_holds_forgets_those_that_expired(open_cache, client):
    """1,200 blobs are released, and after every 60 three graces go by. No garbage collection runs."""
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


async def test_a_load_that_slides_reads_what_it_can_and_says_none_of_what_was_deleted(open_cache, client):
    cache = open_cache(ttl=100, slide_on_load=True)
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    for blob in await blob_keys(client):
        await client.delete(blob)
    assert ids_of(await store.load_session(FullGraph())) == ["a"]  # this process has the bytes
    await open_cache().delete("chat")
    assert await store.load_session(FullGraph()) is None
