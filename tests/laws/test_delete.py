"""A deletion removes a whole session at once, closes its id for a time, and keeps blobs of other sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lash_redis import (
    Corrupt,
    DeleteReport,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InputNotPending,
    InvalidRecord,
    LeaseLost,
    MissingBlob,
    OwnerMismatch,
    ReplaceFull,
    SessionDeleted,
    SessionEvicted,
    SessionGone,
    SessionMeta,
    SessionStoreCreateRequest,
    StoreOptions,
)
from lash_redis.transfer import export_sessions, import_sessions
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, blob_keys, commit, holders, ids_of, key_of, plugins, tools, used
from tests.support.proxy import Action, on

STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")


async def full_session(cache, name: str = "chat"):
    """Create a session with every kind of key."""
    store = await cache.create(SessionStoreCreateRequest(name, parent_session_id="parent"))
    await store.commit_runtime_state(
        commit(None, append("a", "b"), session_id=name, checkpoint=STATES, usage_deltas=[used(input=1)])
    )
    await store.commit_runtime_state(commit(None, append("c", parent="a"), session_id=name, checkpoint=STATES))
    await store.tombstone_nodes(["b"])
    return store


@broken_by(
    Lua(
        "delete",
        "redis.call('UNLINK', head, log, nodes, jumps, dead, state, documents, names)",
        "redis.call('UNLINK', head, log, nodes)",
    ),
    Lua(
        "delete",
        "'UNLINK', head, log, nodes, jumps, dead, state, documents, names)",
        "'UNLINK', head, log, nodes, jumps, dead)",
    ),
    Lua("delete", "facts and whole and facts.private or 0", "0"),
    Lua("delete", "drop_entry(catalogues, entry_of(session, parent), now)", ""),
    Lua("delete", "drop_holder(KEYS[index], facts.hold", "drop_holder(KEYS[index], facts.hold + 1"),
)
async def test_a_deleted_session_leaves_only_its_deletion_marker(open_cache, client):
    cache = open_cache(blob_grace=0.05)
    await full_session(cache)
    assert await cache.delete("chat") == DeleteReport(True, node_count=2, released_blob_count=3, closed=True)
    await cache.gc()
    await asyncio.sleep(0.15)
    head = await key_of(client, "head")
    assert sorted(await client.keys("*")) == sorted([head, b"lash1:layout:laws"])
    assert list(await client.hgetall(head)) == [b"deleted"]
    assert [info async for info in cache.sessions()] == []


async def test_every_handle_reads_a_deleted_session_as_absent(open_cache):
    cache = open_cache()
    old = await full_session(cache)
    await open_cache().delete("chat")
    for store in (old, open_cache().session("chat")):
        assert await store.load_session(FullGraph()) is None
        assert await store.load_head() is None
        assert await store.load_node("a") is None
        assert await store.load_session_meta() is None
        assert await store.pending_inputs() == []
        assert (await store.vacuum()).removed_node_count == 0
        assert (await store.gc_unreachable()).root_count == 0
        await store.tombstone_nodes(["a"])


WRITES: dict[str, Callable[..., Awaitable[object]]] = {
    "a first commit": lambda cache: cache.session("chat").commit_runtime_state(commit(None, append("z"))),
    "a commit that builds on it": lambda cache: cache.session("chat").commit_runtime_state(commit(2, append("z"))),
    "meta": lambda cache: cache.session("chat").save_session_meta(SessionMeta("chat", "n", "t", "m")),
    "an input": lambda cache: cache.session("chat").enqueue_input("x"),
    "create": lambda cache: cache.create(SessionStoreCreateRequest("chat")),
    "a fork to it": lambda cache: cache.fork("other", "chat"),
    "touch": lambda cache: cache.session("chat").touch(),
    "update": lambda cache: cache.session("chat").update(lambda _: commit(None, append("z"))),
}


@broken_by(
    Lua("commit", "if stored.deleted then return {'deleted', session} end", ""),
    Lua("meta", "if stored.deleted then return {'deleted', session} end", ""),
)
async def test_writes_to_a_deleted_id_are_refused_and_change_nothing(open_cache, keyspace):
    cache = open_cache()
    await full_session(cache)
    await full_session(cache, "other")
    await cache.delete("chat")
    before = await keyspace()
    for name, write in WRITES.items():
        with pytest.raises(SessionDeleted) as refused:
            await write(open_cache())
        assert refused.value.session_id == "chat", name
        assert await keyspace() == before, name


async def test_a_commit_sent_before_a_deletion_is_not_replayed_after_it(open_cache):
    cache = open_cache()
    made = commit(None, append("a"))
    await cache.session("chat").commit_runtime_state(made)
    await cache.delete("chat")
    with pytest.raises(SessionDeleted):
        await cache.session("chat").commit_runtime_state(made)


async def test_the_id_is_free_after_the_marker_expires(open_cache, client):
    cache = open_cache(deletion_marker_ttl=0.1, blob_grace=0.01)
    await full_session(cache)
    await cache.delete("chat")
    await asyncio.sleep(0.2)
    assert await client.keys("*") == [b"lash1:layout:laws"]
    with pytest.raises(SessionGone):
        await cache.session("chat").commit_runtime_state(commit(2, append("z")))
    await cache.session("chat").commit_runtime_state(commit(None, append("z")))
    assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["z"]


async def test_without_a_marker_the_id_is_free_at_once(open_cache):
    cache = open_cache(deletion_marker_ttl=0)
    await full_session(cache)
    assert not (await cache.delete("chat")).closed
    await cache.session("chat").commit_runtime_state(commit(None, append("z")))


async def test_the_marker_lasts_a_day_by_default(open_cache, client):
    cache = open_cache()
    await full_session(cache)
    await cache.delete("chat")
    assert 86_390_000 < await client.pttl(await key_of(client, "head")) <= 86_400_000
    assert StoreOptions().deletion_marker_ttl == 86_400


async def test_deleting_twice_or_an_unknown_id_changes_nothing(open_cache, keyspace):
    cache = open_cache()
    await full_session(cache)
    await cache.delete("chat")
    before = await keyspace()
    assert await cache.delete("chat") == DeleteReport()
    assert await cache.delete("never there") == DeleteReport()
    assert await keyspace() == before
    await cache.session("never there").commit_runtime_state(commit(None, session_id="never there"))


async def test_a_session_with_only_meta_can_be_deleted(open_cache, client):
    cache = open_cache()
    await cache.create(SessionStoreCreateRequest("chat"))
    assert await cache.delete("chat") == DeleteReport(True, closed=True)
    with pytest.raises(SessionDeleted):
        await cache.create(SessionStoreCreateRequest("chat"))
    assert [info async for info in cache.sessions()] == []


async def test_a_deletion_keeps_blobs_that_another_session_holds(open_cache, client):
    cache = open_cache(shards=1, blob_grace=0.05)
    await full_session(cache, "chat")
    await full_session(cache, "twin")
    assert (await cache.delete("chat")).released_blob_count == 3
    assert await holders(client) == [1]
    await asyncio.sleep(0.15)
    read = await open_cache(shards=1).session("twin").load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    assert (read.checkpoint.tool_state, read.checkpoint.execution_state) == (tools(), b"1")
    assert len(await blob_keys(client)) == 1


async def test_committing_a_ref_to_a_collected_blob_raises_missing_blob(open_cache):
    cache = open_cache(shards=1, blob_cache_bytes=0)
    store = await full_session(cache)
    read = await store.load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    await cache.delete("chat")
    await cache.gc()
    for name in ("tool_state_ref", "plugin_snapshot_ref", "execution_state_ref"):
        carried = HydratedSessionCheckpoint(**{name: getattr(read.checkpoint, name)})
        with pytest.raises(MissingBlob):
            await cache.session("new").commit_runtime_state(commit(None, session_id="new", checkpoint=carried))


@pytest.mark.parametrize("family", ["head", "log", "nodes", "jumps", "dead", "state", "blob"])
async def test_deleting_a_session_that_lost_a_key_leaves_no_marker(family, open_cache, client):
    cache = open_cache(blob_cache_bytes=0)
    await full_session(cache)
    lost = (await blob_keys(client))[0] if family == "blob" else await key_of(client, family)
    await client.delete(lost)
    with pytest.raises(SessionEvicted):
        await open_cache(blob_cache_bytes=0).session("chat").load_session(FullGraph())
    report = await open_cache().delete("chat")
    assert (report.existed, report.closed) == (True, False)
    store = open_cache().session("chat")
    assert await store.load_session(FullGraph()) is None
    with pytest.raises(SessionGone):
        await store.commit_runtime_state(commit(2, append("z")))
    await open_cache().create(SessionStoreCreateRequest("chat"))
    await store.commit_runtime_state(commit(None, append("z"), checkpoint=STATES))
    assert ids_of(await open_cache().session("chat").load_session(FullGraph())) == ["z"]


async def test_a_session_with_an_unreadable_head_can_be_deleted(open_cache, client):
    for damage in ("facts", "refs", "retyped"):
        cache = open_cache()
        await full_session(cache)
        head = await key_of(client, "head")
        if damage == "retyped":
            await client.delete(head)
            await client.set(head, "x")
        else:
            await client.hset(head, damage, "x")
        report = await open_cache().delete("chat")
        assert (report.existed, report.closed) == (True, False), damage
        for key in cache.layout.session("chat").own:
            assert not await client.exists(key), (damage, key)


async def test_a_deletion_and_a_concurrent_commit_are_serialized(open_cache):
    for _ in range(20):
        cache = open_cache(deletion_marker_ttl=3600)
        name = f"s{_}"
        await full_session(cache, name)
        made = commit(2, append("z", parent="c"), session_id=name)
        outcome, report = await asyncio.gather(
            open_cache().session(name).commit_runtime_state(made), cache.delete(name), return_exceptions=True
        )
        assert isinstance(report, DeleteReport)
        assert report.existed
        assert report.closed
        assert isinstance(outcome, SessionDeleted) or report.node_count == 3
        assert await cache.session(name).load_session(FullGraph()) is None


@pytest.mark.parametrize("session_id", ["", None, 7, "x" * 70_000, "\ud800"])
async def test_an_invalid_session_id_is_refused_and_named(session_id, cache, keyspace):
    with pytest.raises(InvalidRecord, match="session_id"):
        await cache.delete(session_id)
    assert await keyspace() == {}


@pytest.mark.parametrize("ttl", [-1, float("nan"), "day", True])
def test_an_invalid_marker_lifetime_is_refused_and_named(ttl):
    with pytest.raises(InvalidRecord, match=r"options\.deletion_marker_ttl"):
        StoreOptions(deletion_marker_ttl=ttl)


async def test_maintenance_of_an_empty_namespace_writes_nothing(open_cache, keyspace):
    store = open_cache().session("chat")
    assert await open_cache().delete("chat") == DeleteReport()
    assert await open_cache().session("chat").touch() is False
    await store.tombstone_nodes(["a"])
    await store.vacuum()
    await store.gc_unreachable()
    assert await keyspace() == {}


@broken_by(Lua("delete", "if nodes_before then return", "if false then return"))
async def test_a_retried_deletion_reports_what_the_first_attempt_deleted(proxy, through_proxy):
    cache = through_proxy(retry_max_delay=0.01)
    await full_session(cache)
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA", 2)
    assert await cache.delete("chat") == DeleteReport(True, node_count=2, released_blob_count=3, closed=True)
    assert await cache.delete("chat") == DeleteReport()


async def reused(cache, name: str = "chat"):
    """A handle that saw revision 2 of a session, whose id was deleted as reusable."""
    old = await full_session(cache, name)
    await old.load_head()
    report = await cache.delete(name, reusable=True)
    assert report == DeleteReport(True, node_count=2, released_blob_count=3, closed=False)
    return old


async def test_a_reusable_id_takes_writes_at_once_and_keeps_only_what_late_commits_are_refused_by(open_cache, client):
    cache = open_cache(blob_grace=0.05)
    await reused(cache)
    await cache.gc()
    await asyncio.sleep(0.15)
    head = await key_of(client, "head")
    assert sorted(await client.keys("*")) == sorted([head, b"lash1:layout:laws"])
    assert list(await client.hgetall(head)) == [b"deletions", b"past"]
    assert 86_390_000 < await client.pttl(head) <= 86_400_000
    assert [info async for info in cache.sessions()] == []
    assert await open_cache().session("chat").load_session(FullGraph()) is None
    result = await open_cache().session("chat").commit_runtime_state(commit(0, append("a")))
    assert result.head_revision == 3
    assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["a"]
    assert (await open_cache(role="auditor").audit()).problems == ()


@broken_by(
    Lua("delete", "if is_sound then", "if false then"),
    Lua("commit", "add64(stored.counted, '1')", "add64(actual, '1')"),
)
async def test_no_revision_of_a_deleted_session_is_one_of_the_next(open_cache, keyspace):
    cache = open_cache()
    old = await reused(cache)
    for _ in range(4):
        current = await open_cache().session("chat").load_head()
        revision = current.head_revision if current else 0
        before = await keyspace()
        for late in (old, open_cache().session("chat")):
            for seen in (1, 2):
                with pytest.raises(SessionGone):
                    await late.commit_runtime_state(commit(seen, append("z")))
        assert await keyspace() == before
        await open_cache().session("chat").commit_runtime_state(commit(revision))


@broken_by(Lua("commit", "if is_former(past, made) then", "if false then"))
async def test_a_commit_that_a_deleted_session_made_is_not_made_again(open_cache, keyspace):
    cache = open_cache()
    made = commit(None, append("a"))
    last = commit(1, append("b", parent="a"))
    store = cache.session("chat")
    await store.commit_runtime_state(made)
    await store.commit_runtime_state(last)
    await cache.delete("chat", reusable=True)
    for _ in range(3):
        before = await keyspace()
        for late in (made, last):
            with pytest.raises(SessionDeleted):
                await open_cache().session("chat").commit_runtime_state(late)
        assert await keyspace() == before
        await cache.session("chat").commit_runtime_state(commit(None))


async def test_a_commit_that_builds_on_one_of_a_deleted_session_is_refused(open_cache, keyspace):
    cache = open_cache()
    first = commit(None, append("a"))
    await cache.session("chat").commit_runtime_state(first)
    await cache.delete("chat", reusable=True)
    before = await keyspace()
    for late in (
        commit(None, append("z"), builds_on=first.commit_id),
        commit(1, append("z"), builds_on=first.commit_id),
    ):
        with pytest.raises(HeadRevisionConflict):
            await open_cache().session("chat").commit_runtime_state(late)
    assert await keyspace() == before


@broken_by(
    Lua("delete", "if lease then redis.call('HSET', head, 'lease'", "if false then redis.call('HSET', head, 'lease'")
)
async def test_a_lease_of_a_deleted_session_is_lost_and_its_generation_is_not_used_again(open_cache):
    cache = open_cache()
    store = await full_session(cache)
    lease = await store.acquire_lease(ttl=30.0)
    await cache.delete("chat", reusable=True)
    with pytest.raises(LeaseLost):
        await store.commit_runtime_state(commit(None, append("z"), lease=lease))
    with pytest.raises(LeaseLost):
        await lease.renew()
    again = await cache.session("chat").acquire_lease(ttl=30.0)
    assert again.generation == lease.generation + 1


@broken_by(Lua("acquire", "math.max(deadline + remains, now + redis.call('PTTL', head))", "deadline + remains"))
async def test_a_lease_alone_does_not_shorten_the_refusal_of_late_commits(open_cache, client):
    cache = open_cache(deletion_marker_ttl=200_000)
    await reused(cache)
    async with await cache.session("chat").acquire_lease(ttl=0.05):
        pass
    assert 199_990_000 < await client.pttl(await key_of(client, "head")) <= 200_000_000


async def test_a_reusable_id_is_free_for_any_owner_and_has_the_ttl_of_its_next_session(open_cache, client):
    cache = open_cache(ttl=60.0)
    store = await cache.create(SessionStoreCreateRequest("chat"), owner="alice", ttl=None)
    await store.commit_runtime_state(commit(None, append("a")))
    with pytest.raises(OwnerMismatch):
        await cache.delete("chat", owner="bob", reusable=True)
    await cache.delete("chat", owner="alice", reusable=True)
    await cache.session("chat", owner="bob").commit_runtime_state(commit(0, append("b")))
    assert 50_000 < await client.pttl(await key_of(client, "head")) <= 60_000
    assert [info.owner async for info in cache.sessions()] == ["bob"]
    assert [info async for info in cache.sessions(owner="alice")] == []


async def test_every_way_to_begin_a_session_works_on_a_reusable_id(open_cache):
    cache = open_cache()
    await full_session(cache, "other")
    for name, write in WRITES.items():
        await reused(cache)
        if name == "a commit that builds on it":
            with pytest.raises(SessionGone):
                await write(open_cache())
        else:
            await write(open_cache())
        assert (await open_cache(role="auditor").audit()).problems == (), name
        await cache.delete("chat", reusable=True)


async def test_inputs_and_streams_of_a_deleted_session_do_not_reach_the_next(open_cache):
    cache = open_cache()
    store = await full_session(cache)
    await store.enqueue_input("x", input_id="i")
    async with store.stream("gen") as out:
        await out.send(1)
    await cache.delete("chat", reusable=True)
    assert await store.pending_inputs() == []
    assert await store.load_stream("gen") is None
    with pytest.raises(InputNotPending):
        await store.commit_runtime_state(commit(None, consumes=["i"]))


async def test_a_fork_to_a_reusable_id_continues_its_revisions(open_cache):
    cache = open_cache()
    await full_session(cache, "other")
    await reused(cache)
    fork = await cache.fork("other", "chat")
    head = await fork.load_head()
    assert head is not None
    assert head.head_revision == 3


async def test_a_deletion_as_reusable_removes_a_deletion_marker(open_cache):
    cache = open_cache()
    await full_session(cache)
    await cache.delete("chat")
    assert await cache.delete("chat", reusable=True) == DeleteReport()
    await cache.session("chat").commit_runtime_state(commit(0, append("a")))


async def test_a_reusable_id_can_be_deleted_again_and_again(open_cache):
    cache = open_cache()
    for revision in (2, 4, 6):
        await full_session(cache)
        assert (await cache.delete("chat", reusable=True)).existed
        assert await cache.delete("chat", reusable=True) == DeleteReport()
        assert await cache.delete("chat") == DeleteReport()
        with pytest.raises(SessionGone):
            await cache.session("chat").commit_runtime_state(commit(revision))


async def begin_next(cache, owner: str | None = None) -> None:
    await cache.session("chat", owner=owner).commit_runtime_state(commit(0, append("next")))


async def begin_twice(cache) -> None:
    for _ in range(2):
        await begin_next(cache)
        await cache.delete("chat", reusable=True)
    await begin_next(cache)


async def begin_by_import(cache) -> None:
    await full_session(cache, "other")
    lines = [line.replace('"other"', '"chat"') async for line in export_sessions(cache, ["other"])]
    assert (await import_sessions(cache, lines)).session_count == 1


BEGINNINGS: dict[str, Callable[..., Awaitable[None]]] = {
    "a first commit": begin_next,
    "another owner's commit": lambda cache: begin_next(cache, "bob"),
    "a session that was deleted, too": begin_twice,
    "an import": begin_by_import,
}


@pytest.mark.parametrize("former", ["whole", "incomplete", "marked"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
@broken_by(Lua("delete", "string.match(stored[4] or stored[6] or ''", "string.match(stored[4] or ''"))
async def test_a_retried_deletion_does_not_delete_the_next_session(
    proxy, through_proxy, open_real_cache, real_server, beginning, former
):
    await full_session(open_real_cache())
    if former == "marked":
        await open_real_cache().delete("chat")
    if former == "incomplete":
        await real_server.client().delete(open_real_cache().layout.session("chat").head)
    cache = through_proxy(retry_max_delay=0.01)
    await cache.preload()
    proxy.on_command = on(Action.HALF_REPLY, "EVALSHA", 2 if former == "whole" else 1)
    deletion = asyncio.create_task(cache.delete("chat", reusable=True))
    async with asyncio.timeout(60):
        await proxy.holding()
    await BEGINNINGS[beginning](open_real_cache())
    proxy.release()
    report = await deletion
    assert (
        report
        == {
            "whole": DeleteReport(True, node_count=2, released_blob_count=3),
            "incomplete": DeleteReport(True),
            "marked": DeleteReport(),
        }[former]
    )
    read = await open_real_cache().session("chat").load_session(FullGraph())
    assert ids_of(read) == (["a", "c"] if beginning == "an import" else ["next"])


@pytest.mark.parametrize("reusable", [None, 1, "yes"])
async def test_an_invalid_reusable_is_refused_and_named(reusable, cache):
    with pytest.raises(InvalidRecord, match="reusable"):
        await cache.delete("chat", reusable=reusable)


async def test_an_export_of_a_deleted_session_can_be_imported_again(open_cache):
    cache = open_cache()
    await full_session(cache)
    lines = [line async for line in export_sessions(cache)]
    await cache.delete("chat", reusable=True)
    assert (await import_sessions(cache, lines)).session_count == 1
    assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["a", "c"]
    assert (await import_sessions(cache, lines)).present_count == 1
    assert (await open_cache(role="auditor").audit()).problems == ()


@broken_by(Lua("commit", "if is_former(expected ~= '' and past_of(head), expected) then", "if false then"))
async def test_a_late_append_is_refused_after_the_next_session_began(open_cache):
    cache = open_cache()
    late = open_cache().chat("chat")
    await cache.chat("chat").append({"role": "user", "content": "question"})
    await late.messages()
    await cache.delete("chat", reusable=True)
    await cache.chat("chat").append({"role": "user", "content": "next"})
    with pytest.raises(SessionGone):
        await late.append({"role": "assistant", "content": "answer"})
    assert [message["content"] for message in await late.messages()] == ["next"]


async def test_a_replacement_built_on_a_deleted_session_is_refused_after_the_next_began(open_cache):
    cache = open_cache()
    old = await full_session(cache)
    read = await old.load_session(FullGraph())
    await open_cache().delete("chat", reusable=True)
    await begin_next(open_cache())
    with pytest.raises(SessionGone):
        await old.commit_runtime_state(commit(read.head_revision, ReplaceFull(read.graph)))


@broken_by(Lua("commit", "new_facts(stored.began)", "new_facts(now)"))
async def test_the_log_of_a_reused_id_is_later_than_the_former(open_cache, client):
    cache = open_cache()
    store = await full_session(cache)
    head = await key_of(client, "head")
    facts = (await client.hget(head, "facts")).split()
    facts[1] = b"9%d" % int(facts[1])  # as if the clock had been set back since
    await client.hset(head, "facts", b" ".join(facts))
    await cache.delete("chat", reusable=True)
    await store.commit_runtime_state(commit(0, append("a")))
    assert (await client.hget(head, "facts")).split()[1] == b"%d" % (int(facts[1]) + 1)


@broken_by(
    Lua("delete", "table.concat({deletion, past.revision, epoch}, ' ')", "deletion .. ' 0 0'"),
    Lua("delete", "if lease then redis.call", "if lease and reusable then redis.call"),
)
async def test_a_session_behind_a_removed_marker_continues_revisions_and_generations(open_cache, keyspace):
    cache = open_cache()
    store = await full_session(cache)
    lease = await store.acquire_lease(ttl=30.0)
    await cache.delete("chat")
    await cache.delete("chat", reusable=True)
    before = await keyspace()
    with pytest.raises(SessionGone):
        await open_cache().session("chat").commit_runtime_state(commit(2, append("z")))
    assert await keyspace() == before
    result = await store.commit_runtime_state(commit(0, append("z")))
    assert result.head_revision == 3
    assert (await store.acquire_lease(ttl=30.0)).generation == lease.generation + 1
    assert (await open_cache(role="auditor").audit()).problems == ()


async def test_an_id_whose_revisions_are_used_up_begins_again(open_cache, client):
    cache = open_cache()
    store = await full_session(cache)
    head = await key_of(client, "head")
    facts = (await client.hget(head, "facts")).split()
    await client.hset(head, "facts", b" ".join([b"%d" % (2**63 - 1), *facts[1:]]))
    await client.hset(head, "receipts", bytes(16 * 32))
    await cache.delete("chat", reusable=True)
    assert (await store.commit_runtime_state(commit(0, append("a")))).head_revision == 1


@broken_by(Lua("commit", "if past == nil then return", "if false then return"))
async def test_an_unreadable_record_of_a_former_session_is_damage(open_cache, client):
    cache = open_cache()
    await reused(cache)
    await client.hset(await key_of(client, "head"), "past", "x")
    with pytest.raises(Corrupt):
        await cache.session("chat").commit_runtime_state(commit(0, append("a")))
    assert (await cache.delete("chat", reusable=True)) == DeleteReport()


@broken_by(
    Python("transfer.exporting:own_receipts", lambda _: lambda fields, *_: fields[b"receipts"], "exports all receipts")
)
async def test_an_import_acknowledges_no_commit_of_a_session_that_was_deleted_before_the_export(open_cache):
    cache = open_cache()
    made = commit(None, append("a"))
    await cache.session("chat").commit_runtime_state(made)
    await cache.delete("chat", reusable=True)
    await begin_next(cache)
    lines = [line async for line in export_sessions(cache)]
    await cache.delete("chat", reusable=True)
    assert (await import_sessions(cache, lines)).session_count == 1
    result = await cache.session("chat").commit_runtime_state(made)
    assert not result.replayed


async def test_an_audit_reports_an_unreadable_record_of_a_former_session(open_cache, client):
    cache = open_cache()
    await reused(cache)
    await begin_next(cache)
    assert (await open_cache(role="auditor").audit()).problems == ()
    await client.hset(await key_of(client, "head"), "past", "x")
    (problem,) = (await open_cache(role="auditor").audit()).problems
    assert "former session" in problem.reason


@broken_by(Lua("delete", "builds_on ~= '' and not (stored[8] and is_last(stored[8], builds_on))", "false"))
async def test_a_deletion_that_builds_on_a_commit_leaves_a_session_with_a_later_one(open_cache, keyspace):
    cache = open_cache()
    store = await full_session(cache)
    earlier = (await store.load_head()).commit_id
    await open_cache().session("chat").commit_runtime_state(commit(None, append("d")))
    before = await keyspace()
    for reusable in (False, True):
        with pytest.raises(HeadRevisionConflict) as refused:
            await open_cache().delete("chat", reusable=reusable, builds_on=earlier)
        assert refused.value.actual == 3
    assert await keyspace() == before
    last = (await store.load_head()).commit_id
    assert (await open_cache().delete("chat", reusable=True, builds_on=last)).existed
    assert await open_cache().delete("chat", reusable=True, builds_on=last) == DeleteReport()


async def test_a_deletion_that_builds_on_a_commit_leaves_a_session_without_one(cache, keyspace):
    await cache.create(SessionStoreCreateRequest("chat"))
    before = await keyspace()
    with pytest.raises(HeadRevisionConflict):
        await cache.delete("chat", builds_on="c1")
    assert await keyspace() == before
    with pytest.raises(InvalidRecord, match="builds_on"):
        await cache.delete("chat", builds_on="")


async def test_a_retried_deletion_that_builds_on_a_commit_reports_what_it_deleted(proxy, through_proxy):
    cache = through_proxy(retry_max_delay=0.01)
    last = (await (await full_session(cache)).load_head()).commit_id
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA", 2)
    assert (await cache.delete("chat", builds_on=last)).node_count == 2
