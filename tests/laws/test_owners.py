"""A handle with an owner uses that owner's sessions only; a handle without an owner uses all of them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable

import pytest

from lash_redis import (
    ActivePath,
    Append,
    DeleteOwnedReport,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    OutcomeUnknown,
    OwnerMismatch,
    RedisSessionStore,
    Refused,
    RuntimeCommit,
    SessionCache,
    SessionDeleted,
    SessionExists,
    SessionGone,
    SessionMeta,
    SessionNodeRecord,
    SessionStoreCreateRequest,
)
from lash_redis.transfer import export_sessions, import_sessions
from tests.laws.test_watch import next_change
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit, ids_of, key_of, tools
from tests.support.proxy import Action, on
from tests.support.sending import sends_once

STATES = HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"1")
META = SessionMeta("chat", "n", "t", "m")


async def begin(
    cache: SessionCache,
    session_id: str = "chat",
    owner: str | None = "alice",
    states: HydratedSessionCheckpoint = STATES,
) -> RedisSessionStore:
    """A session of two nodes, by default with a blob."""
    store = cache.session(session_id, owner=owner)
    await store.commit_runtime_state(commit(None, append("a", "b"), session_id=session_id, checkpoint=states))
    return store


async def listed(cache: SessionCache, owner: str | None = None, **more: object) -> list[str]:
    return [info.session_id async for info in cache.sessions(owner=owner, **more)]  # type: ignore[arg-type]


def lists_no_owner(script: str) -> Lua:
    return Lua(
        script, "if owner == '' then return {sessions, expiries} end", "if true then return {sessions, expiries} end"
    )


def trusts_any_owner(script: str) -> Lua:
    return Lua(
        script,
        "if before ~= stored.refs or access == '' and owner ~= stored.owner then",
        "if before ~= stored.refs then",
    )


FOREIGN = "if is_foreign(access, stored[8], text) then return nil, {'foreign'} end"

WRITES: dict[str, Callable[[SessionCache, str], Awaitable[object]]] = {
    "commit": lambda cache, owner: cache.session("chat", owner=owner).commit_runtime_state(commit(1, append("z"))),
    "overwrite": lambda cache, owner: cache.session("chat", owner=owner).commit_runtime_state(commit(None)),
    "update": lambda cache, owner: cache.session("chat", owner=owner).update(lambda _: commit(None, append("z"))),
    "meta": lambda cache, owner: cache.session("chat", owner=owner).save_session_meta(META),
    "input": lambda cache, owner: cache.session("chat", owner=owner).enqueue_input("x"),
    "consume": lambda cache, owner: cache.session("chat", owner=owner).commit_runtime_state(commit(1, consumes=["i"])),
    "create": lambda cache, owner: cache.create(SessionStoreCreateRequest("chat"), owner=owner),
    "title": lambda cache, owner: cache.session("chat", owner=owner).set_title("mine"),
    "tombstone": lambda cache, owner: cache.session("chat", owner=owner).tombstone_nodes(["a"]),
    "vacuum": lambda cache, owner: cache.session("chat", owner=owner).vacuum(),
    "touch": lambda cache, owner: cache.session("chat", owner=owner).touch(),
    "lease": lambda cache, owner: cache.session("chat", owner=owner).acquire_lease("worker"),
    "fork": lambda cache, owner: cache.fork("chat", "copy", owner=owner),
    "fork to it": lambda cache, owner: cache.fork("own", "chat", owner=owner),
    "delete": lambda cache, owner: cache.delete("chat", owner=owner),
}


@broken_by(
    *(Lua(name, FOREIGN, "") for name in ("commit", "replace", "meta", "tombstone", "vacuum", "touch", "acquire")),
    Lua("delete", "is_foreign(access, stored[5], stored[1]) or ", ""),
)
@pytest.mark.parametrize("stored_owner", ["alice", None])
async def test_every_write_to_anothers_session_is_refused_and_changes_nothing(open_cache, keyspace, stored_owner):
    cache = open_cache()
    await begin(cache, owner=stored_owner)
    await begin(cache, "own", "bob")
    before = await keyspace()
    for name, write in WRITES.items():
        with pytest.raises(OwnerMismatch) as refused:
            await write(open_cache(), "bob")
        assert (refused.value.session_id, refused.value.owner) == ("chat", "bob"), name
        assert "alice" not in f"{refused.value}{refused.value.args}"
        assert await keyspace() == before, name


@broken_by(
    Lua("renew", "if is_foreign(access, stored[5], stored[2]) then return nil, nil, {'foreign'} end", ""),
    Lua("release", "if is_foreign(access, stored[5], stored[2]) then return nil, nil, {'foreign'} end", ""),
)
async def test_the_lease_of_anothers_session_is_neither_renewed_nor_released(open_cache, keyspace):
    cache = open_cache()
    lease = await (await begin(cache)).acquire_lease("worker", ttl=60)
    stolen = cache.session("chat", owner="bob").adopt_lease(lease)
    before = await keyspace()
    for use in (stolen.renew, stolen.release):
        with pytest.raises(OwnerMismatch):
            await use()
        assert await keyspace() == before
    await lease.renew()
    await lease.release()


@broken_by(
    Python("protocol.commands.reads:is_foreign", lambda _: lambda *_: False, "reads everyone's"),
    Python("protocol.commands.lease:is_foreign", lambda _: lambda *_: False, "shows everyone's leases"),
    Lua("node", FOREIGN, ""),
    Lua("page", FOREIGN, ""),
)
async def test_anothers_session_reads_as_absent(open_cache):
    cache = open_cache()
    for session_id, owner in (("owned", "alice"), ("unowned", None)):
        store = await begin(cache, session_id, owner)
        await store.set_title("secret")
        read = await store.load_session(FullGraph())
        path = await store.load_session(ActivePath())
        async with await store.acquire_lease("worker", ttl=60):
            other = open_cache().session(session_id, owner="bob")
            assert await other.load_session(FullGraph()) is None
            assert await other.load_session(ActivePath()) is None
            assert await other.load_session(ActivePath("b")) is None
            assert await other.load_session(ActivePath(limit=1)) is None
            assert await other.load_session(ActivePath(before="b")) is None
            assert await other.load_head() is None
            assert await other.load_checkpoint() is None
            assert await other.load_node("a") is None
            assert await other.load_nodes(["a", "b"]) == [None, None]
            assert await other.load_session_meta() is None
            assert await other.load_lease() is None
            assert await other.refresh(read) is None
            assert await other.refresh(path) is None
            assert (await other.gc_unreachable()).root_count == 0


async def test_a_chat_with_an_owner_is_that_owners(open_cache):
    cache = open_cache()
    await cache.chat("chat", owner="alice").append({"role": "user", "content": "Hello"})
    await cache.chat("chat", owner="alice").set_title("Trip")
    other = open_cache().chat("chat", owner="bob")
    assert (await other.messages(), await other.branches(), await listed(cache, "bob")) == ([], [], [])
    for write in (
        lambda: other.append({"role": "user", "content": "Mine"}),
        lambda: other.set_title("Mine"),
        lambda: other.rewind("a"),
        lambda: other.delete(),
    ):
        with pytest.raises(OwnerMismatch):
            await write()
    assert [(info.title, info.user_message_count) async for info in cache.sessions(owner="alice")] == [("Trip", 1)]
    assert len(await cache.chat("chat").messages()) == 1


async def test_its_owner_and_a_trusted_caller_use_a_session_alike(open_cache):
    cache = open_cache()
    await begin(cache)
    for number, owner in enumerate(("alice", None), 1):
        store = open_cache().session("chat", owner=owner)
        read = await store.load_session(FullGraph())
        assert ids_of(read)[:2] == ["a", "b"]
        await store.commit_runtime_state(commit(number, append(f"c{number}", parent="b"), checkpoint=STATES))
        await store.save_session_meta(META)
        await store.set_title("Trip")
        assert await store.touch()
        assert ids_of(await store.refresh(read)) == [*ids_of(read), f"c{number}"]
        assert (await store.load_session_meta()).session_name == "Trip"
        async with await store.acquire_lease("worker") as lease:
            await lease.renew()
            assert (await store.load_lease()).owner == "worker"
        await store.tombstone_nodes([f"c{number}"])
        assert (await store.vacuum()).removed_node_count == 1
    assert [(info.session_id, info.owner, info.title) async for info in cache.sessions()] == [("chat", "alice", "Trip")]


@broken_by(
    Lua("commit", "if stored.owner ~= stored.next_owner then fields", "if false then fields"),
    Lua("commit", "stored[8] or '', stored[8] or access", "stored[8] or '', access"),
)
async def test_the_first_commit_or_meta_of_an_owner_claims_a_session_without_a_head(open_cache):
    cache = open_cache()
    await cache.create(SessionStoreCreateRequest("chat"))
    await cache.session("chat", owner="bob").acquire_lease("worker", ttl=0.01)
    await cache.session("chat", owner="bob").touch()
    await begin(cache)
    assert await cache.session("chat", owner="bob").load_head() is None
    await cache.create(SessionStoreCreateRequest("made"), owner="alice")
    with pytest.raises(OwnerMismatch):
        await begin(cache, "made", "bob")
    await begin(cache, "made", None)
    assert await listed(cache, "alice") == ["made", "chat"]
    assert await listed(cache, "bob") == []


async def test_a_deleted_session_stays_deleted_for_every_owner(open_cache):
    cache = open_cache()
    await begin(cache)
    await cache.delete("chat", owner="alice")
    for owner in ("alice", "bob", None):
        with pytest.raises(SessionDeleted):
            await begin(cache, owner=owner)


async def test_an_id_that_was_deleted_without_a_marker_is_free_for_another_owner(open_cache, client):
    cache = open_cache(deletion_marker_ttl=0.05)
    old = await begin(cache)
    await cache.delete("chat")
    await asyncio.sleep(0.1)
    await begin(cache, owner="bob")
    with pytest.raises(OwnerMismatch):
        await old.commit_runtime_state(commit(1, append("c", parent="b")))
    assert (await listed(cache, "alice"), await listed(cache, "bob")) == ([], ["chat"])


@broken_by(Python("protocol.commands.watching:is_foreign", lambda _: lambda *_: False, "watches everyone's"))
async def test_a_watch_of_anothers_session_reports_nothing(open_cache):
    cache = open_cache()
    await begin(cache, "theirs")
    async with cache.watch() as watch:
        for session_id in ("theirs", "new"):
            watch.add(session_id, 0, owner="bob")
        watch.add("own", 0, owner="bob")
        await asyncio.sleep(0.1)
        await begin(cache, "new")
        await cache.session("theirs").commit_runtime_state(commit(1, append("c"), session_id="theirs"))
        await asyncio.sleep(0.15)
        await begin(cache, "own", "bob")
        change = await next_change(watch)
    assert (change.session_id, change.revision, change.ended) == ("own", 1, None)


async def test_the_store_of_an_owner_watches_its_own_session(open_cache):
    store = await begin(open_cache())
    revisions = store.watch(0)
    assert await next_change(revisions) == 1
    await revisions.aclose()


@broken_by(
    trusts_any_owner("commit"),
    trusts_any_owner("touch"),
    Lua("meta", "if access == '' and owner ~= stored.owner then return {'owner', session, stored.owner} end", ""),
)
def with_the_owner_of_the_reply(_: object) -> Callable[..., Awaitable[None]]:
    async def correct(publisher, attempts, outcome):
        attempts.before, attempts.owner = outcome.refs, outcome.owner

    return correct


@broken_by(
    Python("session.publish:Publisher._correct", with_the_owner_of_the_reply, "lists a session without an owner")
)
@pytest.mark.parametrize("way", ["reusable", "expired marker"])
async def test_a_session_that_its_owner_begins_again_is_in_the_owners_list(way, open_cache):
    cache = open_cache(deletion_marker_ttl=0.05)
    store = await begin(cache)  # the handle knows the components of the head
    await cache.delete("chat", reusable=way == "reusable")
    await asyncio.sleep(0.1)
    await store.commit_runtime_state(commit(None, append("c")))
    assert (await store.load_head()).head_revision
    assert await listed(open_cache(), "alice") == ["chat"]
    assert (await open_cache(role="auditor").audit()).problems == ()


async def test_a_trusted_caller_that_does_not_know_the_owner_keeps_the_owners_list(open_cache):
    cache = open_cache(ttl=60, blob_grace=0.001)
    for session_id in ("committed", "touched", "renamed"):
        # Without components, because a wrong guess at refs would reveal the owner.
        await begin(cache, session_id, states=HydratedSessionCheckpoint())
        await asyncio.sleep(0.002)  # a list orders sessions of one millisecond by their ids
    await (
        open_cache(ttl=90, blob_grace=0.001)
        .session("committed")
        .commit_runtime_state(commit(None, append("c", parent="b"), session_id="committed", checkpoint=STATES))
    )
    await open_cache(ttl=90, blob_grace=0.001).session("touched").touch()
    await (
        open_cache().session("renamed").save_session_meta(SessionMeta("renamed", "n", "t", "m", parent_session_id="p"))
    )
    whole = [info async for info in cache.sessions()]
    assert [info async for info in cache.sessions(owner="alice")] == whole
    assert [info.session_id for info in whole] == ["committed", "renamed", "touched"]
    assert (await open_cache(role="auditor").audit()).problems == ()


async def test_a_trusted_handle_that_read_the_session_commits_in_one_round_trip(real_server, through_proxy, proxy):
    cache = through_proxy()
    await begin(cache)
    for owner in ("alice", None):
        store = cache.session("chat", owner=owner)
        read = await store.load_session(FullGraph())
        with proxy.measure() as traffic:
            await store.commit_runtime_state(commit(read.head_revision, read_append(read), checkpoint=STATES))
        assert traffic.round_trips == 1


def read_append(read):
    return append(f"n{read.head_revision}", parent=read.graph.leaf_node_id)


async def test_a_commit_sent_again_by_the_same_owner_is_replayed(real_server, through_proxy, proxy):
    cache = through_proxy()
    await begin(cache)
    made = commit(1, append("c", parent="b"), checkpoint=STATES)
    store = cache.session("chat", owner="alice")
    await store.load_head()
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    result = await store.commit_runtime_state(made)
    assert (result.head_revision, result.replayed) == (2, True)
    again = await through_proxy().session("chat", owner="alice").commit_runtime_state(made)
    assert (again.head_revision, again.replayed) == (2, True)
    with pytest.raises(OwnerMismatch):
        await through_proxy().session("chat", owner="bob").commit_runtime_state(made)


# Lists


@broken_by(
    lists_no_owner("commit"),
    lists_no_owner("replace"),
    lists_no_owner("meta"),
)
async def test_the_list_of_an_owner_has_the_owners_sessions_in_the_order_of_all(open_cache):
    cache = open_cache(ttl=1000)
    for number in range(6):
        owner = ("alice", "bob", None)[number % 3]
        await begin(cache, f"s{number}", owner)
        await asyncio.sleep(0.002)
    await cache.create(SessionStoreCreateRequest("made", parent_session_id="s0"), owner="alice", title="Made")
    await cache.fork("s0", "copy")
    whole = [info async for info in cache.sessions()]
    alice = [info async for info in cache.sessions(owner="alice")]
    assert [info.session_id for info in alice] == ["copy", "made", "s3", "s0"]
    assert alice == [info for info in whole if info.owner == "alice"]
    assert (await listed(cache, "bob"), await listed(cache, "carol")) == (["s4", "s1"], [])
    assert await listed(cache, "alice", limit=2) == ["copy", "made"]
    for after in (alice[1], alice[1].cursor, "made"):
        assert await listed(cache, "alice", after=after) == ["s3", "s0"]
    assert await listed(cache, "alice", parent="s0") == ["copy", "made"]
    with pytest.raises(InvalidRecord, match="after"):
        await listed(cache, "alice", after="s1")


@broken_by(
    lists_no_owner("delete"),
    Lua("delete", "access == '' and owner ~= held_by", "false"),
)
async def test_a_deleted_session_leaves_the_list_of_its_owner(open_cache, client):
    cache = open_cache(blob_grace=0.01)
    for session_id, owner in (("one", "alice"), ("two", None)):
        await begin(cache, session_id, states=HydratedSessionCheckpoint())
        await cache.delete(session_id, owner=owner)
    assert [key for key in await client.keys("*") if b":sessions" in key or b":expiries" in key] == []


@broken_by(
    Lua("prune", "or owner ~= '' and owner ~= stored[4]", ""),
    Python("protocol.commands.catalogue:is_foreign", lambda _: lambda *_: False, "lists everyone's"),
)
async def test_a_list_drops_the_entry_of_a_session_that_another_owner_started(open_cache, client):
    cache = open_cache(ttl=0.05, shards=1)  # the entry outlives its session by up to the grace of a minute
    await begin(open_cache(shards=1), "lasting")
    await begin(cache)
    await asyncio.sleep(0.1)
    await begin(open_cache(shards=1), owner="bob")
    catalogue = cache.layout.shard_keys(0).catalogue("alice").sessions
    assert await client.zcard(catalogue) == 2
    assert (await listed(cache, "alice"), await listed(cache, "bob")) == (["lasting"], ["chat"])
    assert await client.zrange(catalogue, 0, -1) == [b"lasting"]


async def test_the_list_of_an_owner_expires_with_the_owners_last_session(open_cache, client):
    cache = open_cache(ttl=0.1, blob_grace=0.01)
    await begin(cache)
    await begin(cache, "made", "bob")
    await begin(open_cache(), "lasting", None)
    await asyncio.sleep(0.3)
    assert [key for key in await client.keys("*") if b":sessions:" in key or b":expiries:" in key] == []


async def test_all_keys_of_an_owned_session_lie_in_the_slot_of_its_shard(open_cache, client):
    cache = open_cache(ttl=100)
    await begin(cache, owner="{alice}{:")
    keys = [key for key in await client.keys("*") if b"layout" not in key]
    assert {key.partition(b"}:")[0] for key in keys} == {cache.layout.session("chat").prefix[:-2].encode()}
    assert len([key for key in keys if key.endswith(b":{alice}{:")]) == 2
    assert await listed(cache, "{alice}{:") == ["chat"]


@broken_by(
    Python("protocol.commands.audit:_wrong_catalogue", lambda _: lambda *_: "", "checks no times"),
    lists_no_owner("relist"),
)
async def test_an_audit_finds_and_repairs_what_the_list_of_an_owner_lost(open_cache, client):
    cache, auditing = open_cache(ttl=1000), open_cache(role="auditor")
    for session_id in ("one", "two", "three"):
        await begin(cache, session_id)
    whole = [info async for info in cache.sessions(owner="alice")]
    lists = {name: cache.layout.session(name).shard.catalogue("alice") for name in ("one", "two", "three")}
    await client.zrem(lists["one"].sessions, "one")
    await client.zadd(lists["two"].sessions, {"two": 1})
    await client.zrem(lists["three"].expiries, "three")
    found = await auditing.audit()
    assert sorted(problem.key for problem in found.problems) == sorted(each.sessions for each in lists.values())
    assert {(problem.kind, problem.repaired) for problem in found.problems} == {("sessions", False)}
    repaired = await auditing.audit(repair=True)
    assert (repaired.problem_count, repaired.repaired_count) == (3, 3)
    assert (await auditing.audit()).problems == ()
    assert [info async for info in cache.sessions(owner="alice")] == whole


# Titles


async def test_a_title_is_the_name_in_the_meta_record(open_cache):
    cache = open_cache()
    store = await cache.create(SessionStoreCreateRequest("chat", parent_session_id="p"), owner="alice", title="Trip")
    meta = await store.load_session_meta()
    assert (meta.session_name, meta.cwd, meta.parent_session_id) == ("Trip", None, "p")
    await store.set_title("Rome")
    assert await store.load_session_meta() == SessionMeta("chat", "Rome", meta.created_at, meta.model, None, "p")
    assert [info.title async for info in cache.sessions(owner="alice")] == ["Rome"]
    await begin(cache, "bare")
    await cache.session("bare").set_title("New")
    assert [info.title async for info in cache.sessions(owner="alice")] == ["New", "Rome"]
    placed = await cache.create(SessionStoreCreateRequest("placed"), cwd="/srv")
    assert (await placed.load_session_meta()).cwd == "/srv"
    with pytest.raises(InvalidRecord):
        await store.set_title(None)


@broken_by(Lua("meta", "local exists = mode == 'compare' and", "local exists = false and"))
async def test_a_new_title_does_not_undo_a_meta_record_that_is_saved_meanwhile(open_cache, monkeypatch):
    cache = open_cache()
    store = await cache.create(SessionStoreCreateRequest("chat"), owner="alice")
    load, saved = store._reader.stored_meta, SessionMeta("chat", "n", "t", "another model", "/home")

    async def overtaken():
        stored = await load()
        if (await load()).meta.model == "":
            await open_cache().session("chat").save_session_meta(saved)
        return stored

    monkeypatch.setattr(store._reader, "stored_meta", overtaken)
    await store.set_title("Trip")
    assert await store.load_session_meta() == SessionMeta("chat", "Trip", "t", "another model", "/home")


# Fork, export and import


async def test_a_fork_has_the_owner_of_its_source(open_cache):
    cache = open_cache()
    await begin(cache)
    await begin(cache, "unowned", None)
    assert (await cache.fork("chat", "one", owner="alice")).owner == "alice"
    await cache.fork("chat", "two")
    assert (await cache.fork("unowned", "three")).owner is None
    assert [(info.session_id, info.owner) async for info in cache.sessions(limit=3)] == [
        ("three", None),
        ("two", "alice"),
        ("one", "alice"),
    ]
    with pytest.raises(SessionExists):
        await cache.fork("chat", "one", owner="alice")
    with pytest.raises(SessionGone):
        await cache.fork("none", "four", owner="alice")


async def test_an_imported_session_has_its_owner_again(open_cache):
    cache, target = open_cache(), open_cache(namespace="target")
    await begin(cache)
    await begin(cache, "unowned", None)
    await cache.create(SessionStoreCreateRequest("made"), owner="bob", title="Made")
    lines = [line async for line in export_sessions(cache)]
    for present in (0, 3):
        report = await import_sessions(target, lines)
        assert (report.session_count, report.present_count, report.failures) == (3, present, ())
    for owner in ("alice", "bob", None):
        assert sorted(await listed(target, owner)) == sorted(await listed(cache, owner))
    await target.delete_owned("alice")
    assert [line for line in lines if '"owner":"alice"' in line] != []
    taken = open_cache(namespace="taken")
    await begin(taken, owner="bob")
    report = await import_sessions(taken, lines)
    assert (report.session_count, report.failed_count) == (2, 1)
    assert "OwnerMismatch" in report.failures[0]


# Delete all sessions of an owner


@broken_by(
    Python("owner_deletion:prune", lambda _: _nothing, "leaves stale entries"),
)
async def test_deleting_an_owner_deletes_the_owners_sessions_and_no_other(open_cache, client):
    cache = open_cache(shards=2)
    for number in range(20):
        await begin(cache, f"a{number}")
    await begin(cache, "bobs", "bob")
    await begin(cache, "unowned", None)
    await client.unlink(*[await key_of(client, family, "a3") for family in ("head", "log", "nodes", "state")])
    await client.unlink(await key_of(client, "log", "a4"))
    assert (await cache.delete_owned("alice")).deleted_session_count == 19
    assert await cache.delete_owned("alice") == DeleteOwnedReport()
    assert sorted(await listed(cache)) == ["bobs", "unowned"]
    assert [key for key in await client.keys("*") if key.endswith(b":alice")] == []


async def _nothing(*_: object) -> None:
    return None


async def test_a_deletion_of_an_owner_that_fails_half_way_is_continued_by_another_call(
    real_server, through_proxy, proxy
):
    cache = sends_once(through_proxy())
    for number in range(40):
        await begin(cache, f"a{number}")
    seen = 0

    def after_some(command: list[bytes]) -> Action:
        nonlocal seen
        seen += command[0] == b"EVALSHA"
        return Action.CUT_BEFORE if 50 < seen < 60 else Action.PASS

    proxy.on_command = after_some
    with pytest.raises(OutcomeUnknown):
        await cache.delete_owned("alice")
    left = len(await listed(cache, "alice"))
    assert 0 < left < 40
    assert (await cache.delete_owned("alice")).deleted_session_count == left
    assert await listed(cache) == []


# Errors and arguments


def test_the_error_names_the_session_and_the_owner_of_the_handle_alone():
    error = pickle.loads(pickle.dumps(OwnerMismatch("chat", "bob")))
    assert isinstance(error, Refused)
    assert str(error) == "session 'chat' does not belong to owner 'bob'; use another session id"


@pytest.mark.parametrize("owner", ["", 5, "\ud800", "x" * 65_537], ids=["empty", "a number", "no Unicode", "too long"])
async def test_an_invalid_owner_is_refused(open_cache, owner):
    cache = open_cache()
    for make in (
        lambda: cache.session("chat", owner=owner),
        lambda: cache.watch().add("chat", owner=owner),
    ):
        with pytest.raises(InvalidRecord, match="owner"):
            make()
    for call in (
        cache.create(SessionStoreCreateRequest("chat"), owner=owner),
        cache.fork("chat", "new", owner=owner),
        cache.delete("chat", owner=owner),
        cache.delete_owned(owner),
        listed(cache, owner),
    ):
        with pytest.raises(InvalidRecord, match="owner"):
            await call


async def test_a_fork_reveals_nothing_of_another_owners_session(cache):
    store = cache.session("alices", owner="alice")
    await store.commit_runtime_state(commit(0, append("a", "b"), session_id="alices"))
    await store.tombstone_nodes(["b"])
    for leaf in (None, "a", "b", "unknown"):
        with pytest.raises(OwnerMismatch):
            await cache.fork("alices", "copy", leaf, owner="bob")
    with pytest.raises(SessionGone):
        await cache.fork("absent", "copy", owner="bob")


async def test_create_claims_a_session_that_has_only_meta_and_no_owner(cache):
    await cache.create(SessionStoreCreateRequest("c1"), title="First")
    await cache.create(SessionStoreCreateRequest("c1"), owner="alice", title="Second")
    assert [(info.session_id, info.title) async for info in cache.sessions(owner="alice")] == [("c1", "First")]
    with pytest.raises(OwnerMismatch):
        await cache.create(SessionStoreCreateRequest("c1"), owner="bob")
    with pytest.raises(OwnerMismatch):
        await cache.session("c1", owner="bob").commit_runtime_state(commit(0, append("a"), session_id="c1"))


async def test_a_list_shows_no_first_message_of_a_session_that_changed_hands(cache, open_cache, monkeypatch):
    """Between the two round trips of a list, bob's session expires and alice begins one with the same id."""
    message = SessionNodeRecord("m", None, "t", EventPayload({"Conversation": {"role": "user", "content": "secret"}}))
    await cache.session("c1", owner="bob").commit_runtime_state(RuntimeCommit("c1", graph=Append([message])))
    other, read, trips = open_cache(deletion_marker_ttl=0), cache.shared.read, []

    async def swapped(trip, **more):
        trips.append(trip)
        if trip[0][0] == "LINDEX":
            await other.delete("c1")
            await asyncio.sleep(0.002)  # the epoch of a log is its first millisecond
            await other.session("c1", owner="alice").commit_runtime_state(RuntimeCommit("c1", graph=Append([message])))
        return await read(trip, **more)

    monkeypatch.setattr(cache.shared, "read", swapped)
    assert [info.first_user_message async for info in cache.sessions(owner="bob")] in ([], [""])
    assert any(trip[0][0] == "LINDEX" for trip in trips)
