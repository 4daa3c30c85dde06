"""Large work is done in bounded parts: scripts, turns of the event loop, and bytes in flight."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, TypeVar

import pytest

from lash_redis import (
    ActivePath,
    Append,
    BackendError,
    CommitTooLarge,
    FullGraph,
    HeadRevisionConflict,
    NodeIdCollision,
    RedisSessionStore,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionGraph,
    StoreOptions,
)
from lash_redis.protocol.commands import maintenance, prepared_commit, vacuum
from lash_redis.session import maintenance as session_maintenance
from lash_redis.session import store as store_module
from lash_redis.transfer import export_sessions, import_sessions, json_steps
from lash_redis.transport import turns
from lash_redis.transport.loop_state import state_of
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, chain, commit, ids_of, node, numbered
from tests.support.lost_writes import Saved, fail_over, saved


class Replies:
    """The replies of the scripts of one name that a store's namespace ran. `before(count)` runs before each call."""

    def __init__(
        self, store: RedisSessionStore, script: str, before: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        self.replies: list[list[Any]] = []
        self.args: list[list[Any]] = []
        run = store._namespace.run

        async def recorded(call: Any, **more: Any) -> Any:
            if call.script.name != script:
                return await run(call, **more)
            if before is not None:
                await before(len(self.replies))
            self.args.append(list(call.args))
            self.replies.append(await run(call, **more))
            return self.replies[-1]

        store._namespace.run = recorded  # type: ignore[method-assign]


async def tombstoned(store: RedisSessionStore, count: int) -> list[str]:
    """Store `count` nodes below a live root and above a live leaf, and tombstone them."""
    ids = list(numbered(count))
    await store.commit_runtime_state(commit(None, Append([*chain("root", *ids), node("leaf", "root")], "leaf")))
    assert (await store.tombstone_nodes(ids)).tombstoned_node_count == count
    return ids


async def assert_clean(cache: SessionCache) -> None:
    audited = await cache.audit()
    assert (audited.problem_count, audited.problems) == (0, ())


# Scripts


def _only_reads_again(vacuum_session: Any) -> Any:
    async def endless(self: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session_maintenance, "MAX_ATTEMPTS", -1)
            return await vacuum_session(self)

    return endless


def _all_at_once(call: Any) -> Any:
    def every(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vacuum, "CHUNK", 10**9)
            return call(*args)

    return every


@broken_by(Python("protocol.commands.vacuum:call", _all_at_once, "sends all tombstones to one script"))
async def test_a_vacuum_frees_a_bounded_number_of_nodes_with_each_script(store, open_cache):
    await tombstoned(store, 1_300)
    seen = Replies(store, "vacuum")
    assert (await store.vacuum()).removed_node_count == 1_300
    freed = [reply[2] for reply in seen.replies]
    assert max(freed) <= 500
    assert [reply[3] for reply in seen.replies][-1] == 0
    assert sum(freed) == 1_300
    await assert_clean(open_cache(role="auditor"))


@broken_by(Lua("vacuum", "if done > 0 and steps <= 0 then break end", ""))
async def test_a_vacuum_does_a_bounded_amount_of_work_with_each_script(store, open_cache, monkeypatch):
    """A walk to the middle of 1,000 nodes counts for about 60 steps, with the fixed costs 80."""
    monkeypatch.setattr(vacuum, "STEPS", 400)
    await tombstoned(store, 1_000)
    seen = Replies(store, "vacuum")
    assert (await store.vacuum()).removed_node_count == 1_000
    freed = [reply[2] for reply in seen.replies]
    assert max(freed) <= 400 // 20 + 1
    await assert_clean(open_cache(role="auditor"))


@broken_by(Lua("vacuum", "if done > 0 and steps <= 0 then break end", ""))
async def test_a_vacuum_frees_at_least_one_node_with_each_script(store, monkeypatch):
    monkeypatch.setattr(vacuum, "STEPS", 0)
    await tombstoned(store, 9)
    limited = Replies(store, "vacuum", _stop_after(20))
    assert (await store.vacuum()).removed_node_count == 9
    assert [reply[2] for reply in limited.replies] == [1] * 9


def _stop_after(count: int) -> Callable[[int], Awaitable[None]]:
    async def stop(done: int) -> None:
        assert done < count, "the work does not end"

    return stop


async def test_a_vacuum_that_ends_between_two_scripts_leaves_a_sound_session_and_continues(store, open_cache):
    await tombstoned(store, 1_200)

    async def die(done: int) -> None:
        if done == 1:
            raise asyncio.CancelledError

    Replies(store, "vacuum", die)
    with pytest.raises(asyncio.CancelledError):
        await store.vacuum()
    await assert_clean(open_cache(role="auditor"))
    other = open_cache().session("chat")
    assert ids_of(await other.load_session(FullGraph())) == ["root", "leaf"]
    left = (await other.vacuum()).removed_node_count
    assert 0 < left < 1_200
    assert ids_of(await other.load_session(FullGraph())) == ["root", "leaf"]
    await assert_clean(open_cache(role="auditor"))


async def test_commits_between_the_scripts_of_a_vacuum_are_kept(store, open_cache):
    ids = await tombstoned(store, 1_200)
    other, made = open_cache().session("chat"), ["root", "leaf"]

    async def commit_between(done: int) -> None:
        if done:
            await other.commit_runtime_state(commit(None, append(f"new-{done}", parent=made[-1])))
            made.append(f"new-{done}")

    Replies(store, "vacuum", commit_between)
    assert (await store.vacuum()).removed_node_count == 1_200
    assert len(made) > 3
    assert ids_of(await other.load_session(FullGraph())) == made
    assert ids_of(await other.load_session(ActivePath())) == made
    await other.commit_runtime_state(commit(None, append(ids[5], parent=made[-1])))  # a freed id
    await assert_clean(open_cache(role="auditor"))


async def branched(store: RedisSessionStore, count: int) -> list[str]:
    """Store a root with `count` children, and tombstone all of them except the last."""
    ids = list(numbered(count))
    await store.commit_runtime_state(commit(None, Append([node("root"), *(node(each, "root") for each in ids)])))
    await store.tombstone_nodes(ids[:-1])
    return ids


@broken_by(Lua("vacuum", "redis.call('LRANGE', jumps, known, -1)", "redis.call('LRANGE', jumps, 0, -1)"))
async def test_a_script_of_a_vacuum_reads_only_the_jumps_that_are_new(store, client, open_cache):
    """An element of the list that no script may read is unreadable when the script runs."""
    await branched(store, 40)
    key = store._keys.jumps
    first = await client.lindex(key, 0)

    async def damage(done: int) -> None:
        await client.lset(key, 0, "unreadable")

    Replies(store, "vacuum", damage)
    assert (await store.vacuum()).removed_node_count == 39
    await client.lset(key, 0, first)
    await assert_clean(open_cache(role="auditor"))


@broken_by(
    Lua("vacuum", "and (not reserved or is_live(child))", ""),
    Lua("vacuum", "if facts.epoch ~= epoch", "if false and facts.epoch ~= epoch"),
)
async def test_a_vacuum_reads_again_what_changed_before_its_script(store, open_cache):
    """The live child is tombstoned before the script of the first vacuum, the log is replaced before the second."""
    other = open_cache().session("chat")
    await store.commit_runtime_state(commit(None, Append(chain("a", "b", "c", "d"), "d")))
    await store.tombstone_nodes(["b"])

    async def hide_the_child(done: int) -> None:
        if done == 0:
            await other.tombstone_nodes(["c"])

    Replies(store, "vacuum", hide_the_child)
    assert (await store.vacuum()).removed_node_count == 2
    await store.commit_runtime_state(commit(None, append("b", parent="d")))  # its id is free
    await assert_clean(open_cache(role="auditor"))

    await store.tombstone_nodes(["b"])

    async def replace_the_log(done: int) -> None:
        if done == 0:
            nodes = [node("x"), node("y", "x"), node("z", "y"), node("u", "z"), node("v", "u")]
            await other.commit_runtime_state(commit(None, ReplaceFull(SessionGraph(nodes, "v"))))
            await other.tombstone_nodes(["v"])

    again = open_cache().session("chat")
    seen = Replies(again, "vacuum", replace_the_log)
    assert (await again.vacuum()).removed_node_count == 1
    assert [reply[0] for reply in seen.replies] == [b"moved", b"vacuumed"]
    assert ids_of(await other.load_session(FullGraph())) == ["x", "y", "z", "u"]
    await assert_clean(open_cache(role="auditor"))


@broken_by(
    Lua("vacuum", "and not has_new_child[position]", ""),
    Lua("vacuum", "if facts.length > length and not jumped[length] then has_new_child[length - 1] = true end", ""),
)
async def test_a_tombstone_that_a_failover_undid_and_that_got_a_child_keeps_its_id(client, open_cache):
    """The new primary lacks the tombstone. A child is appended to the node, and then the tombstone is made again.

    The child of `b` is linked by a jump. That of `c` is the next record.
    """
    for parent in ("b", "c"):
        store, other = open_cache().session(parent), open_cache().session(parent)
        nodes = [node("a"), node("b", "a"), node("c", "a")]
        await store.commit_runtime_state(commit(None, Append(nodes, "c"), session_id=parent))
        before = await saved(client)
        await store.tombstone_nodes([parent])
        replay = partial(_fail_over_and_append, client, before, other, parent)
        Replies(store, "vacuum", replay)
        assert (await store.vacuum()).removed_node_count == 1
        with pytest.raises(NodeIdCollision):
            await other.commit_runtime_state(commit(None, append(parent, parent="d"), session_id=parent))
    await assert_clean(open_cache(role="auditor"))


async def _fail_over_and_append(client: Any, to: Saved, other: RedisSessionStore, parent: str, done: int) -> None:
    if done == 0:
        await fail_over(client, to)
        await other.commit_runtime_state(commit(None, append("d", parent=parent), session_id=parent))
        await other.tombstone_nodes([parent])


@broken_by(Python("session.maintenance:Maintenance.vacuum", _only_reads_again, "reads again without an end"))
async def test_a_vacuum_ends_although_the_session_changes_before_each_script(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    await store.tombstone_nodes(["b"])
    other = open_cache().session("chat")

    async def replace_the_log(done: int) -> None:
        assert done < 20, "it does not end"
        nodes = [node("a"), node(f"b{done}", "a"), node("c", f"b{done}")]
        await other.commit_runtime_state(commit(None, ReplaceFull(SessionGraph(nodes, "c"))))
        await other.tombstone_nodes([f"b{done}"])

    Replies(store, "vacuum", replace_the_log)
    with pytest.raises(BackendError, match="changed during each of 8 reads"):
        await store.vacuum()


async def test_scattered_tombstones_are_all_freed(store, open_cache):
    ids = list(numbered(900))
    await store.commit_runtime_state(commit(None, Append(chain(*ids), ids[-1])))
    await store.tombstone_nodes(ids[3::7])
    assert (await store.vacuum()).removed_node_count == len(ids[3::7])
    assert set(ids_of(await store.load_session(FullGraph()))) == set(ids) - set(ids[3::7])
    await assert_clean(open_cache(role="auditor"))


async def test_tombstones_are_written_by_scripts_of_at_most_1000_ids(store):
    ids = list(numbered(2_500))
    await store.commit_runtime_state(commit(None, Append(chain(*ids), ids[-1])))
    sizes: list[int] = []
    run = store._namespace.run_durably

    async def recorded(call: Any, *more: Any) -> Any:
        if call.script.name == "tombstone":
            sizes.append(len(call.args) - 2)
        return await run(call, *more)

    store._namespace.run_durably = recorded
    assert (await store.tombstone_nodes(ids)).tombstoned_node_count == 2_500
    assert sizes == [1_000, 1_000, 500]


@broken_by(Lua("node", "if steps <= 0 then break end", ""))
async def test_load_nodes_finds_a_bounded_part_of_the_ids_with_each_script(store, monkeypatch):
    monkeypatch.setattr(maintenance, "STEPS", 1)
    ids = list(numbered(20))
    await store.commit_runtime_state(commit(None, Append(chain(*ids), ids[-1])))
    await store.tombstone_nodes([ids[4]])
    seen = Replies(store, "node", _stop_after(40))
    asked = [*ids, "unknown", ids[0]]
    found = await store.load_nodes(asked)
    assert [each and each.node_id for each in found] == [
        None if each in ("unknown", ids[4]) else each for each in asked
    ]
    assert [len(reply) for reply in seen.replies] == [4] * len(asked)


def test_the_default_limit_of_nodes_is_what_one_script_stores_in_less_than_100_ms():
    """`python -m bench.large` measures 5 µs for each node."""
    assert StoreOptions().max_commit_nodes == 10_000


async def test_a_commit_of_more_nodes_than_the_default_limit_is_refused(store, keyspace):
    before = await keyspace()
    with pytest.raises(CommitTooLarge) as refused:
        await store.commit_runtime_state(commit(None, Append(chain(*numbered(10_001)), "1")))
    assert (refused.value.size, refused.value.limit) == (10_001, 10_000)
    assert await keyspace() == before


# Turns of the event loop


async def _at_once(self: Any, *, is_new: bool) -> float:
    return inf


HOLDS_THE_LOOP = Python("transport.turns:Turns.wait", lambda _: _at_once, "never waits")

COUNT = 150


async def _stored(cache: SessionCache) -> Any:
    await cache.session("chat").commit_runtime_state(commit(None, Append(chain(*numbered(COUNT)), numbered(COUNT)[-1])))


async def _commit(cache: SessionCache) -> None:
    await cache.session("new").commit_runtime_state(RuntimeCommit("new", graph=Append(chain(*numbered(COUNT)))))


async def _replace(cache: SessionCache) -> None:
    read = await cache.session("chat").load_session(FullGraph())
    assert read is not None
    nodes = [node.event() for node in read.graph.nodes]
    assert len(nodes) == COUNT
    graph = read.graph.append_message({"role": "user", "content": "x"})
    for at in range(0, COUNT, 10):  # changed in place, so that the whole graph is compared or sent
        read.graph.nodes[at].event()["changed"] = True
    await cache.session("chat").commit_runtime_state(commit(1, ReplaceFull(graph)))


async def _decode(cache: SessionCache) -> None:
    await cache.session("chat").load_session(FullGraph(), decode=True)


async def _fork(cache: SessionCache) -> None:
    await cache.fork("chat", "copy")


async def _audit(cache: SessionCache) -> None:
    await assert_clean(cache)


async def _messages(cache: SessionCache) -> None:
    await cache.chat("chat").messages()


async def _branches(cache: SessionCache) -> None:
    await cache.chat("chat").branches()


async def _append(cache: SessionCache) -> None:
    await cache.chat("new").append(*({"role": "user", "content": "x"} for _ in range(COUNT)))


async def _export(cache: SessionCache) -> list[str]:
    return [line async for line in export_sessions(cache)]


async def _import(cache: SessionCache) -> None:
    lines = await _export(cache)
    assert (await import_sessions(cache, lines)).failed_count == 0


WORK = {
    "commit": _commit, "replacement": _replace, "read": _decode, "fork": _fork, "audit": _audit, "messages": _messages,
    "branches": _branches, "append": _append, "export": _export, "import": _import,
}  # fmt: skip


class Ticker:
    """Another task of the event loop, which counts its turns."""

    turns = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turns += 1


AnyTicker = TypeVar("AnyTicker", bound=Ticker)


@asynccontextmanager
async def ticking(ticker: AnyTicker) -> AsyncIterator[AnyTicker]:
    task = asyncio.create_task(ticker.run())
    try:
        yield ticker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@broken_by(HOLDS_THE_LOOP)
@pytest.mark.parametrize("name", WORK)
async def test_another_task_gets_a_turn_between_the_steps_of_large_work(name, open_cache, monkeypatch):
    """Slices of no time end after each step. So another task has a turn for each node at least."""
    cache = open_cache(role="auditor" if name == "audit" else None, shards=1)
    await _stored(open_cache(shards=1))
    monkeypatch.setattr(turns, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(store_module, "ENCODE_SECONDS", 0.0)
    async with ticking(Ticker()) as ticker:
        before = ticker.turns
        await WORK[name](cache)
        assert ticker.turns - before >= COUNT


class TrackedObjects(Ticker):
    """The largest number of new objects that Python's garbage collector has to traverse, seen at every tenth turn."""

    most = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turns += 1
            if self.turns % 10 == 0:
                self.most = max(self.most, len(gc.get_objects()))


def _values(text: Any, *keep: Any) -> Any:
    """Parse a line at once, so that its nodes do not stay texts."""
    yield
    return json.loads(text)


def _kept(self: Any, index: int) -> None:
    """Find no unread node, so that a pass over all nodes keeps each of them."""
    self[index]


KEEPS_NODES = Python("protocol.stored_nodes:StoredNodes.unread", lambda _: _kept, "keeps the decoded nodes")


async def _most_tracked(work: Awaitable[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Do some work in slices of no time; return the largest number of objects that it left to the collector."""
    monkeypatch.setattr(turns, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(store_module, "ENCODE_SECONDS", 0.0)
    gc.collect()
    gc.freeze()
    try:
        async with ticking(TrackedObjects()) as tracked:
            await work
    finally:
        gc.unfreeze()
    assert tracked.turns >= MANY
    return tracked.most


MANY = 600


async def _stored_many(cache: SessionCache) -> None:
    nodes = chain(*numbered(MANY))
    await cache.session("chat").commit_runtime_state(commit(None, Append(nodes, nodes[-1].node_id)))


@broken_by(KEEPS_NODES)
@pytest.mark.parametrize("name", ["export", "fork"])
async def test_a_copy_of_a_session_keeps_no_decoded_nodes(name, open_cache, monkeypatch):
    """A node, its payload and the values of its message are at least five objects."""
    cache = open_cache(shards=1)
    await _stored_many(cache)
    assert await _most_tracked(WORK[name](cache), monkeypatch) < 2 * MANY


@broken_by(
    Python("transfer.importing:parse_in_steps", lambda _: _values, "keeps the values of all nodes of a line"),
    KEEPS_NODES,
)
async def test_an_import_keeps_no_decoded_nodes(open_cache, monkeypatch):
    monkeypatch.setattr(json_steps, "LONG", 0)
    cache = open_cache(shards=1)
    await _stored_many(cache)
    lines = await _export(cache)
    assert await _most_tracked(import_sessions(open_cache(namespace="elsewhere"), lines), monkeypatch) < 2 * MANY


@broken_by(HOLDS_THE_LOOP)
async def test_a_short_call_does_not_wait_for_the_end_of_long_ones(open_cache, monkeypatch):
    monkeypatch.setattr(turns, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(store_module, "ENCODE_SECONDS", 0.0)
    cache = open_cache()
    await cache.session("short").load_head()
    done: list[str] = []

    async def save(session_id: str, count: int) -> None:
        graph = Append(chain(*numbered(count)))
        await cache.session(session_id).commit_runtime_state(RuntimeCommit(session_id, graph=graph))
        done.append(session_id)

    long = [asyncio.create_task(save(f"long-{at}", 2_000)) for at in range(3)]
    await asyncio.sleep(0)
    await save("short", 2)
    assert done == ["short"]
    await asyncio.gather(*long)


# Bytes in flight

SIZE = 90_000
LIMIT = 300_000


class Sent:
    """Hold back each commit until it is released; count the bytes that are in flight."""

    def __init__(self, cache: SessionCache) -> None:
        self.started: list[str] = []
        self.in_flight = self.most = self.bytes = 0
        self.open = asyncio.Event()
        run = cache.shared.run_durably

        async def counted(call: Any, *more: Any) -> Any:
            size = sum(len(arg) for arg in call.args if isinstance(arg, bytes) and len(arg) > 1_000)
            self.started.append(call.args[0])
            self.in_flight += size
            self.most = max(self.most, self.in_flight)
            try:
                if size:
                    await self.open.wait()
                return await run(call, *more)
            finally:
                self.in_flight -= size

        cache.shared.run_durably = counted  # type: ignore[method-assign]


def large(session_id: str, size: int = SIZE) -> RuntimeCommit:
    return RuntimeCommit(session_id, 0, graph=Append([node("a", text="x" * size)]))


def save_all(cache: SessionCache, ids: list[str], size: int = SIZE) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(cache.session(each).commit_runtime_state(large(each, size))) for each in ids]


@asynccontextmanager
async def ends() -> AsyncIterator[None]:
    """Fail if the block waits for ever."""
    try:
        async with asyncio.timeout(30):
            yield
    except TimeoutError:
        pytest.fail("it waits for ever")


async def settle() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


async def _no_wait(self: Any, size: int) -> None:
    return


NO_ROOM = Python("session.in_flight:_Commits.wait_for_room", lambda _: _no_wait, "never waits for room")


@broken_by(NO_ROOM)
async def test_the_bytes_of_large_commits_in_flight_never_exceed_the_limit(open_cache):
    cache = open_cache(max_bytes_in_flight=LIMIT)
    sent, ids = Sent(cache), list(numbered(12))
    await cache.session("other").load_head()
    saving = save_all(cache, ids)
    await settle()
    assert (len(sent.started), LIMIT - SIZE < sent.in_flight <= LIMIT) == (3, True)
    sent.open.set()
    await asyncio.gather(*saving)
    assert sent.most <= LIMIT
    assert sent.started == ids, "commits are sent in the order of their calls"


@broken_by(Python("session.in_flight:Flight.begin", lambda _: _no_wait, "encodes at once"))
async def test_commits_that_wait_are_not_encoded(open_cache, monkeypatch):
    cache = open_cache(max_bytes_in_flight=LIMIT)
    sent, encoded = Sent(cache), 0
    encode = prepared_commit.encode_record

    def counted(*args: Any) -> Any:
        nonlocal encoded
        encoded += 1
        return encode(*args)

    monkeypatch.setattr(prepared_commit, "encode_record", counted)
    await cache.session("other").load_head()
    saving = save_all(cache, list(numbered(12)))
    await settle()
    assert encoded == 4, "three are in flight, and one waits for room"
    sent.open.set()
    await asyncio.gather(*saving)


async def test_a_commit_larger_than_the_limit_is_sent_alone(open_cache):
    cache = open_cache(max_bytes_in_flight=LIMIT)
    sent = Sent(cache)
    await cache.session("other").load_head()
    saving = [*save_all(cache, ["one"]), *save_all(cache, ["huge"], 2 * LIMIT), *save_all(cache, ["two"])]
    await settle()
    assert sent.started == ["one"]
    sent.open.set()
    await asyncio.gather(*saving)
    assert sent.started == ["one", "huge", "two"]
    assert 2 * LIMIT <= sent.most < 2 * LIMIT + SIZE


@broken_by(Python("session.store:is_larger", lambda _: lambda *_: True, "takes every commit for a large one"))
async def test_small_commits_do_not_wait_for_large_ones(open_cache):
    cache = open_cache(max_bytes_in_flight=LIMIT)
    sent = Sent(cache)
    await cache.session("other").load_head()
    saving = save_all(cache, list(numbered(12)))
    await settle()
    async with ends():
        await cache.session("small").commit_runtime_state(RuntimeCommit("small", 0, graph=append("a", "b")))
    assert not any(task.done() for task in saving)
    sent.open.set()
    await asyncio.gather(*saving)


@broken_by(Python("session.in_flight:Flight.end", lambda _: lambda _: None, "keeps its share"))
@pytest.mark.parametrize("first", [0, 3, 4], ids=["in flight", "with the turn", "behind the turn"])
async def test_cancelled_commits_give_up_their_share(first, open_cache):
    cache = open_cache(max_bytes_in_flight=LIMIT)
    sent, ids = Sent(cache), list(numbered(12))
    await cache.session("other").load_head()
    saving = save_all(cache, ids)
    await settle()
    for task in saving[first::2]:
        task.cancel()
    await settle()
    sent.open.set()
    async with ends():
        outcomes = await asyncio.gather(*saving, return_exceptions=True)
    cancelled = {at for at, outcome in enumerate(outcomes) if isinstance(outcome, asyncio.CancelledError)}
    assert cancelled == set(range(first, 12, 2))
    assert sent.most <= LIMIT
    async with ends():
        await asyncio.gather(*save_all(cache, ["later"], 2 * LIMIT))


async def test_refused_commits_give_up_their_share(open_cache):
    cache = open_cache(max_bytes_in_flight=LIMIT)
    await cache.session("chat").commit_runtime_state(large("chat"))
    store = open_cache(max_bytes_in_flight=LIMIT).session("chat")
    refused = await asyncio.gather(
        *(store.commit_runtime_state(large("chat")) for _ in range(9)), return_exceptions=True
    )
    assert {type(each) for each in refused} == {HeadRevisionConflict}
    async with ends():
        await store.commit_runtime_state(
            RuntimeCommit("chat", 1, graph=Append([node("b", "a", text="x" * 2 * LIMIT)], "b"))
        )


@broken_by(Python("session.namespace:BytesInFlight", lambda made: lambda limit, _: made(limit, None), "waits for ever"))
async def test_a_commit_waits_no_longer_than_the_time_of_a_call(open_cache):
    cache = open_cache(max_bytes_in_flight=LIMIT, call_timeout=0.3)
    cache.shared._backend._options = replace(cache.options, call_timeout=None)  # a slow reply fails no call
    sent = Sent(cache)
    await cache.session("other").load_head()
    first = save_all(cache, ["one"], LIMIT)
    await settle()
    async with ends():
        with pytest.raises(BackendError, match="max_bytes_in_flight"):
            await cache.session("two").commit_runtime_state(large("two"))
    assert sent.started == ["one"]
    sent.open.set()
    await asyncio.gather(*first)
    await asyncio.gather(*save_all(cache, ["two"]))


@broken_by(NO_ROOM)
async def test_uploads_count_as_commits_do(open_cache):
    cache = open_cache(max_bytes_in_flight=LIMIT)
    await cache.session("other").load_head()
    run, in_flight, most = cache.shared.run, 0, 0

    async def counted(call: Any, **more: Any) -> Any:
        nonlocal in_flight, most
        in_flight += SIZE
        most = max(most, in_flight)
        try:
            await asyncio.sleep(0)
            return await run(call, **more)
        finally:
            in_flight -= SIZE

    cache.shared.run = counted
    await asyncio.gather(*(cache.put_blob(b"%d" % at + b"x" * SIZE) for at in range(12)))
    assert LIMIT - 2 * SIZE < most <= LIMIT


async def test_a_replacement_that_is_sent_whole_in_a_second_attempt_counts_its_bytes(open_cache):
    """The handle expects another log than the stored one, so the script answers `unlike`."""
    cache, other = open_cache(max_bytes_in_flight=LIMIT), open_cache()
    await other.session("chat").commit_runtime_state(
        commit(None, Append(chain(*numbered(5), text="x" * 30_000), numbered(5)[-1]))
    )
    read = await cache.session("chat").load_session(FullGraph())
    assert read is not None
    await other.session("chat").commit_runtime_state(
        commit(None, ReplaceFull(read.graph.append_message({"role": "user", "content": "y"})))
    )
    shorter = read.graph.first(4).append_message({"role": "user", "content": "z"})
    await cache.session("chat").commit_runtime_state(commit(None, ReplaceFull(shorter)))
    commits = state_of(cache.shared.in_flight, lambda: None)
    assert commits is not None
    assert (commits.used, commits.is_idle) == (0, True)
