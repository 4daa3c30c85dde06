"""A commit that any client sends again is a retry and takes effect once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from lash_redis import (
    Append,
    BackendError,
    CommitIdReused,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    OutcomeUnknown,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginPayload,
    RedisSessionStore,
    ReplaceFull,
    SessionCache,
    SessionNodeRecord,
    Unchanged,
)
from lash_redis.protocol import scripts
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, chain, commit, holders, ids_of, key_of, node, replace_full, tools, used
from tests.support.proxy import Action, Command, Proxy, on
from tests.support.sending import sends_once

NO_RECEIPTS = Lua("commit", "local found = string.find(receipts, tag, 1, true)", "local found = nil")
CHECKS_REVISION_FIRST = Lua(
    "commit",
    "local found, made = find_receipt",
    "if ARGV[2] ~= '' and ARGV[2] ~= actual then return {'conflict', session, actual} end\n"
    "local found, made = find_receipt",
)


@broken_by(NO_RECEIPTS)
async def test_a_retry_returns_the_result_of_the_first_attempt(store, keyspace):
    once = commit(
        None,
        append("a", "b"),
        checkpoint=HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"1"),
        usage_deltas=[used(input=5)],
    )
    first = await store.commit_runtime_state(once)
    before = await keyspace()
    again = await store.commit_runtime_state(once)
    assert (first.replayed, again.replayed) == (False, True)
    assert again == replace(first, replayed=True)
    assert await keyspace() == before


@broken_by(NO_RECEIPTS, CHECKS_REVISION_FIRST)
async def test_a_retry_returns_the_first_result_after_later_commits(store, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    once = commit(1, append("b", parent="a"), usage_deltas=[used(input=5)])
    first = await store.commit_runtime_state(once)
    await store.commit_runtime_state(commit(2, append("c", parent="b")))
    await store.commit_runtime_state(commit(3, replace_full("x")))
    before = await keyspace()
    assert await store.commit_runtime_state(once) == replace(first, replayed=True)
    assert await keyspace() == before


@broken_by(CHECKS_REVISION_FIRST)
async def test_a_retry_may_expect_another_revision(store, keyspace):
    once = commit(None, append("a"))
    first = await store.commit_runtime_state(once)
    before = await keyspace()
    for expected in (0, 1, 5, None):
        again = await store.commit_runtime_state(replace(once, expected_head_revision=expected, builds_on="another"))
        assert again == replace(first, replayed=True)
    assert await keyspace() == before


def with_timestamp(encode):
    def whole(*node):
        record, _ = encode(*node)
        return record, record

    return whole


@broken_by(
    Python("protocol.commands.prepared_commit:encode_record", with_timestamp, "includes the timestamp in the meaning")
)
async def test_a_retry_may_have_other_timestamps(store):
    once = commit(None, Append(chain("a", "b", timestamp="yesterday"), "b"))
    first = await store.commit_runtime_state(once)
    again = await store.commit_runtime_state(replace(once, graph=Append(chain("a", "b", timestamp="today"), "b")))
    assert again == replace(first, replayed=True)
    assert [each.timestamp for each in (await store.load_session(FullGraph())).graph.nodes] == ["yesterday"] * 2


async def test_a_retry_may_replace_a_body_by_its_ref_and_a_ref_by_its_body(store):
    body = HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"1")
    once = commit(None, checkpoint=body)
    first = await store.commit_runtime_state(once)
    refs = HydratedSessionCheckpoint(
        tool_state_ref=first.manifest.tool_state_ref, execution_state_ref=first.manifest.execution_state_ref
    )
    assert (await store.commit_runtime_state(replace(once, checkpoint=refs))).replayed
    by_ref = commit(1, checkpoint=refs)
    await store.commit_runtime_state(by_ref)
    assert (await store.commit_runtime_state(replace(by_ref, checkpoint=body))).replayed


ORIGINAL = commit(
    1,
    Append(chain("b", "c", parent="a"), "c"),
    commit_id="once",
    checkpoint=HydratedSessionCheckpoint(PersistedTurnState(turn_index=1), tool_state=tools()),
    config=PersistedSessionConfig("p", "m"),
    usage_deltas=[used(input=5)],
)
CHANGED = {
    "a payload": replace(ORIGINAL, graph=Append(chain("b", "c", parent="a", text="goodbye"), "c")),
    "a kind of payload": replace(
        ORIGINAL,
        graph=Append([node("b", "a"), SessionNodeRecord("c", "b", "t", PluginPayload("p", {"text": "hello"}))], "c"),
    ),
    "a parent": replace(ORIGINAL, graph=Append([node("b", "a"), node("c", "a")], "c")),
    "an id": replace(ORIGINAL, graph=Append(chain("b", "d", parent="a"), "d")),
    "the order": replace(ORIGINAL, graph=Append([node("c", "b"), node("b", "a")], "c")),
    "fewer nodes": replace(ORIGINAL, graph=Append(chain("b", parent="a"), "b")),
    "no nodes": replace(ORIGINAL, graph=Unchanged("a")),
    "a replacement": replace(ORIGINAL, graph=replace_full("b", "c")),
    "the leaf": replace(ORIGINAL, graph=Append(chain("b", "c", parent="a"), "b")),
    "the turn index": replace(
        ORIGINAL, checkpoint=replace(ORIGINAL.checkpoint, turn_state=PersistedTurnState(turn_index=2))
    ),
    "a component": replace(ORIGINAL, checkpoint=replace(ORIGINAL.checkpoint, tool_state=tools("other"))),
    "fewer components": replace(ORIGINAL, checkpoint=replace(ORIGINAL.checkpoint, tool_state=None)),
    "more components": replace(ORIGINAL, checkpoint=replace(ORIGINAL.checkpoint, execution_state=b"")),
    "the snapshot revision": replace(ORIGINAL, checkpoint=replace(ORIGINAL.checkpoint, plugin_snapshot_revision=1)),
    "the config": replace(ORIGINAL, config=PersistedSessionConfig("p", "other")),
    "a usage row": replace(ORIGINAL, usage_deltas=[used(input=6)]),
    "a counter": replace(ORIGINAL, usage_deltas=[used(output=5)]),
    "a source": replace(ORIGINAL, usage_deltas=[used("plugin", input=5)]),
    "no usage": replace(ORIGINAL, usage_deltas=[]),
}


@pytest.mark.parametrize("changed", CHANGED)
@broken_by(
    NO_RECEIPTS,
    Lua("commit", "~= meaning then return {'reused', session}", "== meaning then return {'reused', session}"),
)
async def test_a_commit_id_reused_for_another_commit_is_refused(changed, store, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    first = await store.commit_runtime_state(ORIGINAL)
    before = await keyspace()
    with pytest.raises(CommitIdReused) as refused:
        await store.commit_runtime_state(CHANGED[changed])
    assert (refused.value.session_id, refused.value.commit_id) == ("chat", "once")
    assert await keyspace() == before
    assert await store.commit_runtime_state(ORIGINAL) == replace(first, replayed=True)


async def test_the_same_commit_id_in_two_sessions_is_two_commits(cache):
    for chat in ("one", "two"):
        made = commit(None, append(chat), session_id=chat, commit_id="same")
        assert not (await cache.session(chat).commit_runtime_state(made)).replayed


@broken_by(NO_RECEIPTS)
async def test_concurrent_sends_of_one_commit_apply_once_and_return_the_same_result(open_cache):
    stores = [open_cache().session("chat") for _ in range(5)]
    await stores[0].commit_runtime_state(commit(None, append("a")))
    once = commit(1, append("b", parent="a"), usage_deltas=[used(input=5)])
    results = await asyncio.gather(*(each.commit_runtime_state(once) for each in stores))
    assert sorted(each.replayed for each in results) == [False, True, True, True, True]
    assert [replace(each, replayed=False) for each in results] == [replace(results[0], replayed=False)] * 5
    read = await stores[0].load_session(FullGraph())
    assert (read.head_revision, ids_of(read), read.token_ledger) == (2, ["a", "b"], (used(input=5),))


async def test_a_receipt_survives_vacuum_gc_and_a_new_process(open_cache):
    store = open_cache().session("chat")
    once = commit(None, append("a", "b"), checkpoint=HydratedSessionCheckpoint(tool_state=tools()))
    first = await store.commit_runtime_state(once)
    await store.commit_runtime_state(commit(1, append("c", parent="a")))
    await store.tombstone_nodes(["b"])
    await store.vacuum()
    await store.gc_unreachable()
    assert await open_cache().session("chat").commit_runtime_state(once) == replace(first, replayed=True)


@broken_by(
    Lua(
        "commit", "if not found then return nil end", "if not found or #receipts - found > 16 * 31 then return nil end"
    ),
    Lua("commit", "'%.0f', 1 - (", "'%.0f', 2 - ("),
)
async def test_the_last_32_commits_of_a_session_can_be_retried(store):
    made = [commit(revision, usage_deltas=[used(input=1)]) for revision in range(40)]
    for each in made:
        await store.commit_runtime_state(each)
    for revision, each in enumerate(made[-32:], 9):
        again = await store.commit_runtime_state(each)
        assert (again.head_revision, again.replayed) == (revision, True)
    assert (await store.load_head()).token_ledger == (used(input=40),)


@broken_by(Lua("commit", "(expected == '' or expected == actual) and ", ""))
async def test_a_retry_of_the_33rd_last_commit_is_a_conflict(store, keyspace):
    made = [commit(revision, usage_deltas=[used(input=1)]) for revision in range(33)]
    for each in made:
        await store.commit_runtime_state(each)
    before = await keyspace()
    with pytest.raises(HeadRevisionConflict) as lost:
        await store.commit_runtime_state(made[0])
    assert (lost.value.expected, lost.value.actual) == (0, 33)
    assert await keyspace() == before


async def test_the_size_of_a_receipt_does_not_depend_on_the_commit(store, client):
    large = HydratedSessionCheckpoint(execution_state=b"x" * 1_000_000)
    await store.commit_runtime_state(commit(None, append("a", text="y" * 100_000), checkpoint=large))
    head = await client.hgetall(await key_of(client, "head"))
    assert sum(map(len, head.values())) < 1_000


async def test_similar_commit_ids_are_distinct(store):
    ids = ["a", "a ", "A", "a\0", "a\n", "é", "e\u0301", "x" * 10_000, "x" * 10_001]
    for revision, commit_id in enumerate(ids):
        result = await store.commit_runtime_state(commit(revision, commit_id=commit_id))
        assert (result.head_revision, result.replayed) == (revision + 1, False)


async def test_a_replayed_commit_holds_its_blobs_once(open_cache, client):
    uploaded = await open_cache(shards=1).put_blob(b"\xc4\x011")
    once = commit(None, checkpoint=HydratedSessionCheckpoint(tool_state=tools(), execution_state_ref=uploaded))
    for _ in range(3):
        await open_cache(shards=1).session("chat").commit_runtime_state(once)
    assert await holders(client) == [1, 1]


@broken_by(NO_RECEIPTS)
async def test_a_replayed_commit_keeps_the_private_components_of_a_later_commit(store, open_cache):
    once = commit(None, checkpoint=HydratedSessionCheckpoint(execution_state=b"1"))
    await store.commit_runtime_state(once)
    await store.commit_runtime_state(commit(1, checkpoint=HydratedSessionCheckpoint(execution_state=b"2")))
    assert (await store.commit_runtime_state(once)).replayed
    read = await open_cache().session("chat").load_session(FullGraph())
    assert (read.head_revision, read.checkpoint.execution_state) == (2, b"2")


# Lost replies


async def stored_state(store) -> tuple[int, list[str], tuple]:
    read = await store.load_session(FullGraph())
    return read.head_revision, ids_of(read), tuple(read.token_ledger)


LOST = commit(1, append("b", parent="a"), usage_deltas=[used(input=5)], commit_id="lost")


@broken_by(NO_RECEIPTS, CHECKS_REVISION_FIRST)
async def test_the_store_retries_a_commit_whose_reply_is_lost(proxy, through_proxy):
    store = through_proxy(retry_max_delay=0.01).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    result = await store.commit_runtime_state(LOST)
    assert (result.head_revision, result.replayed) == (2, True)
    assert await stored_state(store) == (2, ["a", "b"], (used(input=5),))


async def test_a_commit_without_an_expected_revision_applies_once_if_its_reply_is_lost(proxy, through_proxy):
    store = through_proxy(retry_max_delay=0.01).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    result = await store.commit_runtime_state(replace(LOST, expected_head_revision=None))
    assert (result.head_revision, result.replayed) == (2, True)
    assert await stored_state(store) == (2, ["a", "b"], (used(input=5),))


@broken_by(
    Python(
        "transport.backend:_Attempts.error",
        lambda _: lambda self: BackendError(str(self.cause)),
        "reports it as not applied",
    )
)
async def test_resending_resolves_the_unknown_outcome_of_a_lost_reply(proxy, through_proxy):
    store = sends_once(through_proxy()).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    unknown = False
    try:
        await store.commit_runtime_state(LOST)
    except OutcomeUnknown:
        unknown = True
    except BackendError as error:
        raise AssertionError("it was applied") from error
    assert unknown
    result = await store.commit_runtime_state(LOST)
    assert (result.head_revision, result.replayed) == (2, True)
    assert await stored_state(store) == (2, ["a", "b"], (used(input=5),))


async def test_resending_applies_a_commit_that_never_reached_the_server(proxy, through_proxy):
    store = sends_once(through_proxy()).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.CUT_BEFORE, "EVALSHA")
    with pytest.raises(OutcomeUnknown):
        await store.commit_runtime_state(LOST)
    result = await store.commit_runtime_state(LOST)
    assert (result.head_revision, result.replayed) == (2, False)
    assert await stored_state(store) == (2, ["a", "b"], (used(input=5),))


async def test_the_store_retries_a_commit_that_never_reached_the_server(proxy, through_proxy):
    store = through_proxy(retry_max_delay=0.01).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.CUT_BEFORE, "EVALSHA")
    result = await store.commit_runtime_state(LOST)
    assert (result.head_revision, result.replayed) == (2, False)
    assert await stored_state(store) == (2, ["a", "b"], (used(input=5),))


async def test_a_read_whose_reply_is_lost_is_retried(proxy, through_proxy):
    store = through_proxy(retry_max_delay=0.01).session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    proxy.on_command = on(Action.DROP_REPLY, "EXEC")
    assert ids_of(await store.load_session(FullGraph())) == ["a"]


@pytest.mark.slow
async def test_an_unreachable_server_is_a_backend_error_and_not_an_absent_session(real_server, proxy, through_proxy):
    await through_proxy().session("chat").commit_runtime_state(commit(None, append("a")))
    cache = through_proxy(call_timeout=0.5, retry_max_delay=0.01)  # only for calls that must fail
    store = cache.session("chat")
    await proxy.refuse()
    await proxy.sever()
    for call in (
        lambda: store.load_session(FullGraph()),
        store.load_head,
        store.load_session_meta,
        lambda: cache.get_blob("0" * 64),
    ):
        with pytest.raises(BackendError):
            await call()
    with pytest.raises(BackendError):
        await store.commit_runtime_state(LOST)
    await proxy.accept()
    patient = through_proxy().session("chat")
    assert await stored_state(patient) == (1, ["a"], ())
    assert not (await patient.commit_runtime_state(LOST)).replayed


async def test_a_first_commit_without_a_server_is_a_backend_error(proxy, through_proxy):
    store = through_proxy(call_timeout=0.5, retry_max_delay=0.01).session("chat")
    await proxy.refuse()
    with pytest.raises(BackendError):
        await store.commit_runtime_state(commit(None, append("a")))


async def test_scripts_that_the_server_lost_are_loaded_again(open_cache, client):
    store = open_cache(role="loader").session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    await client.script_flush()
    assert (await store.commit_runtime_state(commit(1, append("b", parent="a")))).head_revision == 2
    await client.script_flush()
    assert (await store.load_node("b")).node_id == "b"


async def test_a_tombstone_retried_after_a_lost_reply_takes_effect_once(proxy, through_proxy):
    store = through_proxy(retry_max_delay=0.01).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["x"])
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    await store.tombstone_nodes(["b", "c"])
    assert (await store.vacuum()).removed_node_count == 2
    assert ids_of(await store.load_session(FullGraph())) == ["a"]


# More commits of other clients between two attempts than the head has receipts


class Overtaken:
    """Drops the first commit or its reply, and blocks later attempts until `overtake` has finished."""

    def __init__(self, proxy: Proxy, store: RedisSessionStore, first: Action = Action.DROP_REPLY) -> None:
        self._store = store
        self._first = first
        self._sent = 0
        self._again = asyncio.Event()
        self._is_past = False
        proxy.on_command = self._command

    def _command(self, command: Command) -> Action:
        if command[0] != b"EVALSHA" or command[1].decode() not in (scripts.COMMIT.sha, scripts.REPLACE.sha):
            return Action.PASS
        self._sent += 1
        if self._sent == 1:
            return self._first
        self._again.set()
        return Action.PASS if self._is_past else Action.CUT_BEFORE

    async def overtake(self, leaf: str, begin: Callable[[], Awaitable[object]] | None = None) -> int:
        """Call `begin`, then commit until the receipt of the first commit is dropped. Return the last revision."""
        async with asyncio.timeout(60):
            await self._again.wait()
        if begin is not None:
            await begin()
        head = await self._store.load_head()
        for _ in range(33):
            made = commit(head.head_revision, append(f"o{head.head_revision}", parent=leaf))
            leaf = made.graph.leaf_node_id
            await self._store.commit_runtime_state(made)
            head = await self._store.load_head()
        self._is_past = True
        return head.head_revision


RAISES_EVERY_CONFLICT = Python(
    "session.publish:Publisher._result_behind",
    lambda _: _raise_conflict,
    "raises every conflict",
)


async def _raise_conflict(self, conflict, *_):
    raise conflict


@broken_by(RAISES_EVERY_CONFLICT)
async def test_a_turn_is_stored_once_even_if_its_receipt_is_dropped_before_the_retry(proxy, through_proxy, real_server):
    other = SessionCache(real_server.client(), "laws").session("chat")
    await other.commit_runtime_state(commit(None, append("a")))
    store = through_proxy(retry_max_delay=0.2, call_timeout=60).session("chat")
    read = await store.load_session(FullGraph())
    overtaken, revisions = Overtaken(proxy, other), []

    def turn(read):
        revisions.append(read.head_revision)
        return commit(read.head_revision, append("mine", parent=read.graph.leaf_node_id))

    result, last = await asyncio.gather(store.update(turn, since=read), overtaken.overtake("mine"))
    assert (result.head_revision, result.replayed, revisions) == (2, True, [1])
    assert last == 35
    assert ids_of(await other.load_session(FullGraph())).count("mine") == 1


@broken_by(
    Python(
        "session.publish:first_new_node",
        lambda _: lambda prepared: next(iter(prepared.nodes), None),
        "returns the first node, new or not",
    )
)
async def test_a_moved_node_does_not_prove_that_a_replacement_was_applied(proxy, through_proxy, real_server):
    """The replacement drops a branch and moves a node that was stored before, so it stores no new node."""
    other = SessionCache(real_server.client(), "laws").session("chat")
    begun = [*chain("a", "b", "c"), node("d", "b")]
    await other.commit_runtime_state(commit(None, Append(begun, "d")))
    store = through_proxy(retry_max_delay=0.2, call_timeout=60).session("chat")
    read = await store.load_session(FullGraph())
    overtaken = Overtaken(proxy, other, Action.CUT_BEFORE)
    made = commit(1, ReplaceFull(read.graph.fork_current_path()))
    unknown, _ = await asyncio.gather(store.commit_runtime_state(made), overtaken.overtake("d"), return_exceptions=True)
    assert isinstance(unknown, OutcomeUnknown)
    assert ids_of(await other.load_session(FullGraph()))[:4] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("first", [Action.DROP_REPLY, Action.CUT_BEFORE], ids=["applied", "not applied"])
@pytest.mark.parametrize("others", ["replace", "tombstone"])
async def test_the_outcome_is_unknown_if_other_clients_dropped_nodes_meanwhile(
    others, first, proxy, through_proxy, real_server
):
    other = SessionCache(real_server.client(), "laws").session("chat")
    await other.commit_runtime_state(commit(None, append("a", "b", "c", "d")))
    store = through_proxy(retry_max_delay=0.2, call_timeout=60).session("chat")
    await store.load_session(FullGraph())
    overtaken, revisions = Overtaken(proxy, other, first), []

    async def drop() -> None:
        read = await other.load_session(FullGraph())
        if others == "replace":
            await other.commit_runtime_state(commit(read.head_revision, ReplaceFull(read.graph.first(3))))
        else:
            await other.commit_runtime_state(commit(read.head_revision, append("x", parent="c")))
            await other.tombstone_nodes(["d", "mine"])
            await other.vacuum()
        await store.load_head()  # a later read must not resolve the outcome

    def turn(read):
        revisions.append(read.head_revision)
        return commit(read.head_revision, append("mine", parent="d"))

    unknown, _ = await asyncio.gather(store.update(turn), overtaken.overtake("c", drop), return_exceptions=True)
    assert isinstance(unknown, OutcomeUnknown)
    assert revisions == [1]


async def test_update_repeats_a_turn_that_was_not_applied_after_many_other_commits(proxy, through_proxy, real_server):
    other = SessionCache(real_server.client(), "laws").session("chat")
    await other.commit_runtime_state(commit(None, append("a")))
    store = through_proxy(retry_max_delay=0.2, call_timeout=60).session("chat")
    overtaken, revisions = Overtaken(proxy, other, Action.CUT_BEFORE), []

    def turn(read):
        revisions.append(read.head_revision)
        return commit(read.head_revision, append("mine", parent="a"))

    result, last = await asyncio.gather(store.update(turn), overtaken.overtake("a"))
    assert (revisions, result.head_revision, result.replayed) == ([1, last], last + 1, False)


async def test_a_commit_without_nodes_has_an_unknown_outcome_if_its_receipt_is_dropped(
    proxy, through_proxy, real_server
):
    other = SessionCache(real_server.client(), "laws").session("chat")
    await other.commit_runtime_state(commit(None, append("a")))
    store = through_proxy(retry_max_delay=0.2, call_timeout=60).session("chat")
    await store.load_head()
    overtaken = Overtaken(proxy, other)
    made = commit(1, Unchanged("a"), usage_deltas=[used(input=1)])
    unknown, _ = await asyncio.gather(store.commit_runtime_state(made), overtaken.overtake("a"), return_exceptions=True)
    assert isinstance(unknown, OutcomeUnknown)
