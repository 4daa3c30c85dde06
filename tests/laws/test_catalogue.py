"""The session list contains every live session once, the most recent first, and loads no graph."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis import (
    Append,
    EventPayload,
    FullGraph,
    InvalidRecord,
    SessionMeta,
    SessionNodeRecord,
    SessionPickerInfo,
    SessionStoreCreateRequest,
    Unchanged,
)
from lash_redis.listing import walk
from lash_redis.models.catalogue import entry_ids
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit, key_of, replace_full


def message_node(node_id: str, text: str, parent: str | None = None, role: str = "User") -> SessionNodeRecord:
    part = {"id": f"{node_id}.p0", "kind": "Text", "content": text, "prune_state": "Intact"}
    return SessionNodeRecord(
        node_id, parent, "t", EventPayload({"Conversation": {"id": node_id, "role": role, "parts": [part]}})
    )


async def write(cache, *names: str, pause: float = 0.002) -> None:
    """Create sessions of one node each, one after the other."""
    for name in names:
        node = message_node("a", f"hello from {name}")
        await cache.session(name).commit_runtime_state(commit(None, Append([node], "a"), session_id=name))
        await asyncio.sleep(pause)


async def listed(cache, **arguments) -> list[str]:
    return [info.session_id async for info in cache.sessions(**arguments)]


# Order and pages


@broken_by(Lua("commit", "'ZADD', catalogues[at], committed", "'ZADD', catalogues[at], 'NX', committed"))
async def test_the_most_recently_committed_session_is_listed_first(open_cache):
    cache = open_cache()
    await write(cache, "one", "two", "three")
    assert await listed(cache) == ["three", "two", "one"]
    await cache.session("one").commit_runtime_state(commit(1, append("b", parent="a"), session_id="one"))
    assert await listed(cache) == ["one", "three", "two"]


@pytest.mark.parametrize("shards", [1, 64])
@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_pages_contain_every_session_once_and_in_order(shards, limit, open_cache):
    cache = open_cache(shards=shards)
    names = [f"s{number:02}" for number in range(30)]
    await write(cache, *names)
    pages, after = [], None
    while page := [info async for info in cache.sessions(limit=limit, after=after)]:
        assert len(page) <= limit
        pages += page
        after = page[-1].cursor
    assert [info.session_id for info in pages] == names[::-1]
    assert await listed(cache) == names[::-1]


async def test_after_accepts_a_line_a_cursor_or_a_session_id(open_cache):
    cache = open_cache()
    await write(cache, "one", "two:x", "three")
    await cache.create(SessionStoreCreateRequest("four", parent_session_id="one"))
    lines = [info async for info in cache.sessions()]
    for at, line in enumerate(lines):
        rest = [each.session_id for each in lines[at + 1 :]]
        for after in (line, line.cursor, line.session_id, SessionPickerInfo.from_json(line.to_json())):
            assert await listed(cache, after=after) == rest


@pytest.mark.slow
async def test_a_commit_during_paging_neither_repeats_a_session_nor_hides_another(open_cache):
    cache = open_cache(shards=4)
    names = [f"s{number:03}" for number in range(250)]
    await write(cache, *names, pause=0)
    seen: list[str] = []
    async for info in cache.sessions():
        seen.append(info.session_id)
        if len(seen) in (10, 120, 180):
            for moved in (seen[3], "s001"):
                store = cache.session(moved)
                await store.commit_runtime_state(commit(None, session_id=moved, graph=Unchanged("a")))
    assert len(seen) == len(set(seen))
    assert set(names) - set(seen) <= {"s001"}


@pytest.mark.slow
async def test_sessions_with_equal_commit_times_are_all_listed(open_cache, client):
    cache = open_cache(shards=2)
    names = [f"s{number:04}" for number in range(500)]
    for name in names:
        await cache.create(SessionStoreCreateRequest(name))
    for shard in range(2):
        key = cache.layout.shard_keys(shard).sessions
        await client.zadd(key, dict.fromkeys(await client.zrange(key, 0, -1), 1000))
    seen: list[str] = []
    async for info in cache.sessions():
        seen.append(info.session_id)
        if len(seen) == 100:
            for moved in seen[:10]:
                await cache.session(moved).commit_runtime_state(commit(None, session_id=moved))
    assert sorted(seen) == names
    first = [info async for info in cache.sessions(limit=37)]
    rest = await listed(cache, after=first[-1])
    assert sorted([*(info.session_id for info in first), *rest]) == names


@broken_by(
    Python(
        "protocol.commands.catalogue:latest_read", lambda old: lambda *a: (*old(*a)[:-1], 1), "requests one at a time"
    )
)
async def test_listing_100_sessions_of_any_size_takes_at_most_four_round_trips(through_proxy, proxy):
    cache = through_proxy()
    for number in range(120):
        nodes = [message_node(f"n{at}", "x" * 100, f"n{at - 1}" if at else None) for at in range(1 + number % 5 * 40)]
        name = f"s{number}"
        await cache.session(name).commit_runtime_state(commit(None, Append(nodes, nodes[-1].node_id), session_id=name))
    with proxy.measure() as traffic:
        lines = [info async for info in cache.sessions(limit=100)]
    assert len(lines) == 100
    assert all(info.first_user_message == "x" * 100 for info in lines)
    assert traffic.round_trips <= 4  # the fourth if one shard holds more than its share
    assert traffic.bytes_received < 100 * 1500


# Content of a line


async def test_a_line_agrees_with_the_graph_the_head_and_the_meta(open_cache, client):
    cache = open_cache()
    store = await cache.create(SessionStoreCreateRequest("chat", parent_session_id="mother"))
    await store.save_session_meta(SessionMeta("chat", "n", "t", "m", cwd="/here", parent_session_id="mother"))
    nodes = [
        message_node("s", "be kind", role="System"),
        message_node("a", " hello ", "s"),
        message_node("b", "hi", "a", "Assistant"),
    ]
    await store.commit_runtime_state(commit(None, Append(nodes, "b")))
    await store.commit_runtime_state(commit(1, Append([message_node("c", "again", "b")], "c")))
    (line,) = [info async for info in cache.sessions()]
    graph = (await store.load_session(FullGraph())).graph
    assert line == SessionPickerInfo("chat", "/here", "mother", "hello", 2, 2, line.last_commit_ms, title="n")
    assert line.first_user_message == graph.first_user_message()
    assert line.user_message_count == graph.user_message_count()
    now = await client.time()
    assert 0 <= now[0] * 1000 + now[1] // 1000 - line.last_commit_ms < 60_000


@broken_by(
    Lua("tombstone", "if position == facts.first then facts.first = -2 end", ""),
    Lua("tombstone", "if is_user then facts.users = facts.users - 1 end", ""),
    Lua("commit", "if plan.first == -1 then", "if true then"),
)
async def test_counts_and_first_message_follow_every_graph_change(open_cache):
    cache = open_cache()
    store = cache.session("chat")

    async def line() -> tuple[str, int]:
        (info,) = [info async for info in cache.sessions()]
        graph = (await open_cache().session("chat").load_session(FullGraph())).graph
        assert (info.first_user_message, info.user_message_count) == (
            graph.first_user_message(),
            graph.user_message_count(),
        )
        return info.first_user_message, info.user_message_count

    await store.commit_runtime_state(commit(None, append("x")))
    assert await line() == ("", 0)
    await store.commit_runtime_state(
        commit(1, Append([message_node("a", "one", "x"), message_node("b", "two", "a")], "b"))
    )
    assert await line() == ("one", 2)
    await store.commit_runtime_state(commit(2, Append([message_node("c", "three", "x")], "c")))
    assert await line() == ("one", 3)
    await store.tombstone_nodes(["a"])
    assert await line() == ("two", 2)
    await store.vacuum()
    assert await line() == ("two", 2)
    await store.commit_runtime_state(commit(3, Append([message_node("d", "four", "c")], "d")))
    assert await line() == ("two", 3)
    await store.tombstone_nodes(["b", "c", "d"])
    assert await line() == ("", 0)
    await store.commit_runtime_state(commit(4, Append([message_node("e", "five", "x")], "e")))
    assert await line() == ("five", 1)
    await store.commit_runtime_state(commit(5, replace_full("p", "q")))
    assert await line() == ("", 0)


async def test_a_session_without_commits_is_listed_at_its_creation_time(open_cache):
    cache = open_cache()
    await write(cache, "one")
    await cache.create(SessionStoreCreateRequest("two", parent_session_id="one"))
    await asyncio.sleep(0.002)
    await write(cache, "three")
    await cache.session("two").save_session_meta(SessionMeta("two", "n", "t", "m", parent_session_id="one"))
    lines = [info async for info in cache.sessions()]
    assert [line.session_id for line in lines] == ["three", "two", "one"]
    assert (lines[1].head_revision, lines[1].first_user_message, lines[1].user_message_count) == (0, "", 0)
    assert lines[1].last_commit_ms > lines[2].last_commit_ms


@broken_by(Lua("touch", "or redis.call('ZSCORE', sessions, entry) or now", "or now"))
async def test_touching_a_session_without_commits_keeps_its_place_in_the_list(open_cache):
    cache = open_cache(ttl=500)
    await cache.create(SessionStoreCreateRequest("one", parent_session_id="mother"))
    await asyncio.sleep(0.002)
    await write(cache, "two")
    before = [info async for info in cache.sessions()]
    for ttl in (100, None):
        assert await cache.session("one").touch(ttl=ttl)
        assert [info async for info in cache.sessions()] == before
    assert [info.session_id for info in before] == ["two", "one"]


async def test_a_list_by_parent_contains_exactly_the_children(open_cache):
    cache = open_cache(shards=8)
    await write(cache, *(f"s{number}" for number in range(40)), pause=0)
    for number in range(25):
        await cache.fork(f"s{number}", f"child-{number}")
    for number in range(5):
        await cache.fork("s7", f"twin-{number}")
    assert sorted(await listed(cache, parent="s7")) == ["child-7", *(f"twin-{number}" for number in range(5))]
    assert await listed(cache, parent="s30") == []
    await cache.session("twin-1").save_session_meta(SessionMeta("twin-1", "n", "t", "m", parent_session_id="s30"))
    assert await listed(cache, parent="s30") == ["twin-1"]
    assert len(await listed(cache, parent="s7")) == 5
    assert len(await listed(cache)) == 70
    await cache.session("twin-1").save_session_meta(SessionMeta("twin-1", "n", "t", "m"))
    assert await listed(cache, parent="s30") == []
    assert len(await listed(cache)) == 70


# Expired and lost entries


async def test_an_expired_session_is_not_listed_and_its_entry_is_removed(open_cache, client):
    cache = open_cache(shards=1)
    await write(cache, "lasting")
    brief = open_cache(ttl=60, shards=1)
    await write(brief, "brief-1", "brief-2")
    await brief.create(SessionStoreCreateRequest("brief-3"))
    assert len(await listed(cache)) == 4
    for number in (1, 2, 3):
        assert await brief.session(f"brief-{number}").touch(ttl=0.1)
    await asyncio.sleep(0.2)
    assert await listed(cache) == ["lasting"]
    assert await client.zrange(cache.layout.shard_keys(0).sessions, 0, -1) == [b"lasting"]
    assert await client.zrange(cache.layout.shard_keys(0).expiries, 0, -1) == []


async def test_an_expired_session_created_again_with_another_parent_is_listed_once(open_cache, client):
    cache = open_cache(ttl=0.1, shards=1, blob_grace=86_400)  # the entry outlives the session by the grace
    await cache.create(SessionStoreCreateRequest("chat", parent_session_id="aunt"))
    await asyncio.sleep(0.2)
    await open_cache(shards=1).create(SessionStoreCreateRequest("chat", parent_session_id="mother"))
    assert len(await client.zrange(cache.layout.shard_keys(0).sessions, 0, -1)) == 2
    assert (await open_cache(shards=1, role="auditor").audit()).session_count == 1
    assert await listed(cache) == ["chat"]
    assert await client.zrange(cache.layout.shard_keys(0).sessions, 0, -1) == [b"chat\xffmother"]
    assert await listed(cache, parent="mother") == ["chat"]
    assert await listed(cache, parent="aunt") == []


@broken_by(Lua("commit", "redis.call('ZREM', sessions, unpack(ended))", ""))
async def test_a_commit_removes_entries_of_other_expired_sessions(open_cache, client):
    cache = open_cache(ttl=0.1, blob_grace=0.05, shards=1)
    await write(open_cache(shards=1), "lasting")
    await write(cache, *(f"brief-{number}" for number in range(20)), pause=0)
    await asyncio.sleep(0.25)
    await write(open_cache(shards=1), "new")
    assert await client.zrange(cache.layout.shard_keys(0).sessions, 0, -1) == [b"lasting", b"new"]


async def test_a_lost_catalogue_is_rebuilt_by_later_commits_and_touches(open_cache, client):
    cache = open_cache(ttl=500, shards=1)
    await write(cache, "one", "two")
    await client.delete(cache.layout.shard_keys(0).sessions, cache.layout.shard_keys(0).expiries)
    assert await listed(cache) == []
    await cache.session("one").commit_runtime_state(commit(1, Unchanged("a"), session_id="one"))
    await cache.session("two").touch()
    assert await listed(cache) == ["one", "two"]
    assert 0 < await client.pttl(cache.layout.shard_keys(0).sessions) <= 560_000
    assert await client.zcard(cache.layout.shard_keys(0).expiries) == 2


# Unreadable sessions and invalid arguments


@pytest.mark.parametrize("damage", ["head gone", "head retyped", "facts", "log gone", "log retyped", "record"])
async def test_an_unreadable_session_is_listed_with_its_fault_and_hides_no_other(damage, open_cache, client):
    cache = open_cache(shards=1)
    await write(cache, "one", "chat", "two")
    head, log = await key_of(client, "head"), await key_of(client, "log")
    match damage:
        case "head gone":
            await client.delete(head)
        case "head retyped":
            await client.set(head, "x")
        case "facts":
            await client.hset(head, "facts", "x")
        case "log gone":
            await client.delete(log)
        case "log retyped":
            await client.set(log, "x")
        case "record":
            await client.lset(log, 0, b"damaged")
    lines = [info async for info in cache.sessions()]
    assert [line.session_id for line in lines] == ["two", "chat", "one"]
    faults = [line.fault for line in lines]
    assert faults[0] is faults[2] is None
    assert faults[1]
    assert ("evicted" if damage.endswith("gone") else "corrupt") in faults[1]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": "3"}, "limit"),
        ({"limit": True}, "limit"),
        ({"after": 7}, "after"),
        ({"after": ""}, "after"),
        ({"after": "never there"}, "after"),
        ({"after": "after:5:!!!!"}, "after"),
        ({"after": "after:-5:YQ=="}, "after"),
        ({"after": "after:5:"}, "after"),
        ({"parent": ""}, "parent"),
        ({"parent": 7}, "parent"),
    ],
)
async def test_invalid_arguments_of_a_list_are_refused_and_named(arguments, field, cache):
    with pytest.raises(InvalidRecord, match=field):
        await listed(cache, **arguments)


async def test_listing_an_empty_namespace_yields_no_line_and_writes_nothing(cache, keyspace):
    assert await listed(cache) == []
    assert await listed(cache, limit=0) == []
    assert await keyspace() == {}


async def test_a_namespace_lists_only_its_own_sessions(open_cache):
    one, two = open_cache(namespace="one"), open_cache(namespace="one.two")
    await write(one, "a", "b")
    await write(two, "b", "c")
    assert sorted(await listed(one)) == ["a", "b"]
    assert sorted(await listed(two)) == ["b", "c"]
    await one.delete("b")
    assert sorted(await listed(two)) == ["b", "c"]
    assert (await open_cache(namespace="one.two", role="auditor").audit()).session_count == 2


@broken_by(Lua("commit", "if redis.call('ZCARD', sessions) == 1 then redis.call('UNLINK', expiries) end", ""))
async def test_a_session_without_a_ttl_stays_listed_after_the_catalogue_was_lost(open_cache, client):
    cache = open_cache(shards=1, blob_grace=0.1)
    keys = cache.layout.shard_keys(0)
    await cache.session("timed").commit_runtime_state(commit(None, append("a"), session_id="timed"), ttl=0.3)
    await write(cache, "lasting")
    await client.delete(keys.sessions)
    await cache.session("lasting").commit_runtime_state(commit(1, Unchanged("a"), session_id="lasting"))
    await asyncio.sleep(0.6)
    assert await listed(cache) == ["lasting"]
    await cache.delete("lasting")
    await client.delete(cache.layout.session("lasting").head)
    await asyncio.sleep(0.3)
    assert await client.keys("*") == [b"lash1:layout:laws"]


async def test_a_walk_returns_every_session_even_if_all_are_committed_meanwhile(open_cache):
    cache = open_cache(shards=1)
    names = [f"s{number:03}" for number in range(120)]
    await write(cache, *names, pause=0)
    seen: list[str] = []
    async for entries in walk(cache.shared, cache.layout.shard_keys(0), chunk=20):
        if not seen:
            for name in names:  # includes the sessions that the walk has returned
                await cache.session(name).commit_runtime_state(commit(1, Unchanged("a"), session_id=name))
        seen += [entry_ids(entry.entry)[0] for entry in entries]
    assert sorted(seen) == names


async def test_an_empty_parent_is_no_parent_and_paging_terminates(open_cache):
    cache = open_cache()
    await write(cache, "one", "two")
    await cache.session("two").save_session_meta(SessionMeta("two", "n", "t", "m", None, ""))
    pages, after = [], None
    while page := [info async for info in cache.sessions(limit=1, after=after)]:
        pages += [info.session_id for info in page]
        after = page[-1].cursor
        assert len(pages) < 5
    assert pages == ["two", "one"]
    with pytest.raises(InvalidRecord, match="parent_session_id"):
        await cache.session("two").save_session_meta(SessionMeta("two", "n", "t", "m", None, "x" * 70_000))
