"""A pending input is answered by exactly one commit, in order, and is not lost when a worker dies."""

from __future__ import annotations

import asyncio
import pickle
import re
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack
import pytest

from lash_redis import (
    Append,
    BackendError,
    CommitIdReused,
    CommitTooLarge,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InputIdReused,
    InputNotPending,
    InputsFull,
    InvalidRecord,
    NodeIdCollision,
    OutcomeUnknown,
    OwnerMismatch,
    PendingInput,
    RuntimeCommit,
    SessionDeleted,
    SessionEvicted,
    SessionMeta,
    SessionStoreCreateRequest,
    StoreOptions,
)
from lash_redis.transfer import export_sessions, import_sessions
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit, ids_of, key_of, node, numbered, replace_full
from tests.support.proxy import Action, on
from tests.support.sending import sends_once
from tests.support.servers import snapshot

HELLO = {"role": "user", "content": "hello"}


async def ids_pending(store) -> list[str]:
    return [each.input_id for each in await store.pending_inputs()]


def answer(*consumes: str, expected: int | None = None, node_id: str = "x", **more: Any) -> RuntimeCommit:
    """A commit of one node without a parent that consumes these inputs."""
    return RuntimeCommit("chat", expected, graph=Append([node(node_id)]), consumes=consumes, **more)


# Enqueue


@broken_by(
    Lua("enqueue", "local input = table.concat({string.format('%.0f', inputs.total)", "local input = table.concat({'1'")
)
async def test_inputs_are_pending_in_the_order_of_the_calls_until_a_commit_consumes_them(store, open_cache):
    given = {"c": HELLO, "a": ["x", 1.5, None], "b": "text", "?:\n\0é": {"k": 2**64 - 1}}
    for input_id, item in given.items():
        await store.enqueue_input(item, input_id)
    for reader in (store, open_cache().session("chat")):
        pending = await reader.pending_inputs()
        assert [(each.input_id, each.item) for each in pending] == list(given.items())
        assert sorted(each.enqueued_at for each in pending) == [each.enqueued_at for each in pending]


async def test_an_input_without_an_id_gets_one_and_the_time_of_the_server(store, client):
    first, second = await store.enqueue_input("one"), await store.enqueue_input("one")
    seconds, _ = await client.time()
    assert [await store.pending_inputs()] == [[first, second]]
    assert first.input_id != second.input_id
    assert abs(first.enqueued_at - int(seconds)) < 5


@broken_by(Lua("enqueue", "if pending[2] then", "if false then"))
async def test_an_input_that_is_sent_again_is_pending_once(store, open_cache, keyspace):
    first = await store.enqueue_input({"b": 1, "a": 2}, "i")
    await store.enqueue_input("later", "j")
    before = await keyspace()
    assert await open_cache().session("chat").enqueue_input({"a": 2, "b": 1}, "i") == first
    assert await keyspace() == before
    assert await ids_pending(store) == ["i", "j"]


async def refuses_other_items(store, keyspace) -> None:
    before = await keyspace()
    for item in ("two", 1, ["one"], None):
        with pytest.raises(InputIdReused, match=r"'i'.*give each input its own id") as refused:
            await store.enqueue_input(item, "i")
        assert (refused.value.session_id, refused.value.input_id) == ("chat", "i")
    assert await keyspace() == before


@broken_by(Lua("enqueue", "if known ~= record then return {'reused', session} end", ""))
async def test_the_id_of_another_pending_input_is_refused_and_changes_nothing(store, keyspace):
    await store.enqueue_input("one", "i")
    await refuses_other_items(store, keyspace)


@broken_by(Lua("enqueue", "if found and string.sub(", "if false and string.sub("))
async def test_the_id_of_another_consumed_input_is_refused_and_changes_nothing(store, keyspace):
    await store.enqueue_input("one", "i")
    await store.commit_runtime_state(answer("i"))
    await refuses_other_items(store, keyspace)


@broken_by(
    Lua("enqueue", "if found then return {'consumed', session} end", ""),
    Lua("commit", "inputs.receipts .. table.concat(receipts)", "inputs.receipts"),
)
async def test_an_input_that_is_sent_again_after_it_was_consumed_does_not_come_back(store, keyspace):
    await store.enqueue_input(HELLO, "i")
    await store.commit_runtime_state(answer("i"))
    before = await keyspace()
    again = await store.enqueue_input(HELLO, "i")
    assert (again.input_id, again.item, again.enqueued_at) == ("i", HELLO, None)
    assert await keyspace() == before
    assert await store.pending_inputs() == []


@broken_by(Lua("commit", "table.concat(receipts), -16 * 128)", "table.concat(receipts), -16 * 127)"))
async def test_the_last_128_consumed_inputs_are_remembered(store):
    names = numbered(130)
    await store.enqueue_input("one", names[0])
    await store.commit_runtime_state(answer(names[0]))
    for name in names[1:129]:
        await store.enqueue_input("one", name)
    await store.commit_runtime_state(RuntimeCommit("chat", consumes=names[1:128]))
    for name in names[:128]:
        assert (await store.enqueue_input("one", name)).enqueued_at is None
    await store.commit_runtime_state(RuntimeCommit("chat", consumes=names[128:129]))
    for name in names[1:129]:
        assert (await store.enqueue_input("one", name)).enqueued_at is None
    assert await ids_pending(store) == []
    assert (await store.enqueue_input("one", names[0])).enqueued_at is not None  # 128 others were consumed since


@broken_by(Lua("enqueue", "if inputs.count >= max_count or", "if"))
async def test_a_session_has_at_most_128_pending_inputs(store, keyspace):
    names = numbered(128)
    for name in names:
        await store.enqueue_input(0, name)
    before = await keyspace()
    with pytest.raises(InputsFull, match=r"'chat' has 128 pending inputs \(at most 128\).*after a commit") as refused:
        await store.enqueue_input(0, "one too many")
    assert (refused.value.count, refused.value.max_count) == (128, 128)
    assert (await store.enqueue_input(0, names[5])).input_id == names[5]  # a retry
    assert await keyspace() == before
    await store.commit_runtime_state(answer(names[0]))
    await store.enqueue_input(0, "one too many")
    assert await ids_pending(store) == [*names[1:], "one too many"]
    await store.commit_runtime_state(answer(*names[1:], "one too many", node_id="y"))
    assert await ids_pending(store) == []


@broken_by(Lua("enqueue", "inputs.bytes + #record > max_bytes", "false"))
async def test_the_bytes_of_pending_inputs_are_bounded(open_cache, keyspace):
    store = open_cache(max_pending_input_bytes=10_000).session("chat")
    await store.enqueue_input("x" * 6_000, "i")
    before = await keyspace()
    with pytest.raises(InputsFull, match=r"StoreOptions\.max_pending_input_bytes") as refused:
        await store.enqueue_input("x" * 4_000, "j")
    assert 6_000 < refused.value.size < 6_100
    assert refused.value.max_size == 10_000
    with pytest.raises(CommitTooLarge, match=r"StoreOptions\.max_pending_input_bytes"):
        await store.enqueue_input("x" * 10_000, "j")
    assert await keyspace() == before
    await open_cache(max_pending_input_bytes=20_000).session("chat").enqueue_input("x" * 4_000, "j")
    assert await ids_pending(store) == ["i", "j"]


# Consume


@broken_by(
    Lua("commit", "if #answered > 0 then call('HDEL', head, unpack(answered)) end", ""),
    Lua("commit", "fields[#fields + 1], fields[#fields + 2] = 'inputs', write_inputs(inputs)", ""),
)
async def test_a_commit_consumes_its_inputs_and_leaves_the_others(store):
    for name in "abcd":
        await store.enqueue_input(name, name)
    result = await store.commit_runtime_state(answer("c", "a"))
    assert (result.head_revision, await ids_pending(store)) == (1, ["b", "d"])
    await store.commit_runtime_state(RuntimeCommit("chat", consumes=["d"]))
    await store.commit_runtime_state(answer("b", node_id="y"))
    assert (await ids_pending(store), ids_of(await store.load_session(FullGraph()))) == ([], ["x", "y"])


@broken_by(Lua("replace", "if #answered > 0 then call('HDEL', head, unpack(answered)) end", ""))
async def test_a_replacement_consumes_inputs_too(store):
    for name in "abcd":
        await store.enqueue_input(name, name)
    await store.commit_runtime_state(RuntimeCommit("chat", graph=replace_full("x", "y"), consumes=["a"]))
    assert await ids_pending(store) == ["b", "c", "d"]
    read = await store.load_session(FullGraph())
    await store.commit_runtime_state(commit(1, replace_full("x", "y", "z"), consumes=["b"]))
    assert await ids_pending(store) == ["c", "d"]
    read = await store.load_session(FullGraph())
    grown = replace(replace_full(), graph=read.graph.append_event({"Conversation": {"id": "w"}}))
    await store.commit_runtime_state(commit(2, grown, consumes=["d"]))
    assert await ids_pending(store) == ["c"]


@broken_by(
    *(
        Lua(name, "if not text then return nil, {'unpending', index - 1} end", "text = text or '1 1 0123456789abcdef'")
        for name in ("commit", "replace")
    )
)
async def test_a_commit_with_an_input_that_is_not_pending_is_refused_and_changes_nothing(store, keyspace):
    for name in ("i", "j"):
        await store.enqueue_input(HELLO, name)
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a"), consumes=["i"]))
    before = await keyspace()
    for graph in (append("x", parent="a"), replace_full("x")):
        for consumes, named in ((["i"], "i"), (["j", "i"], "i"), (["unknown", "j"], "unknown")):
            with pytest.raises(InputNotPending, match=r"is not pending.*call pending_inputs") as refused:
                await store.commit_runtime_state(RuntimeCommit("chat", 1, graph=graph, consumes=consumes))
            assert (refused.value.session_id, refused.value.input_id) == ("chat", named)
            assert await keyspace() == before
    assert await ids_pending(store) == ["j"]


@broken_by(
    Lua("commit", "if not text then return nil, {'unpending', index - 1} end", "text = text or '1 1 0123456789abcdef'")
)
async def test_of_workers_that_consume_an_input_exactly_one_succeeds(open_cache):
    await one_of_four_wins(open_cache, None, InputNotPending)


async def test_of_workers_that_consume_an_input_at_one_revision_exactly_one_succeeds(open_cache):
    await one_of_four_wins(open_cache, 0, HeadRevisionConflict)


async def one_of_four_wins(open_cache, expected, error) -> None:
    await open_cache().session("chat").enqueue_input(HELLO, "i")
    commits = [answer("i", expected=expected, node_id=f"n{at}") for at in range(4)]
    results = await asyncio.gather(
        *(open_cache().session("chat").commit_runtime_state(made) for made in commits), return_exceptions=True
    )
    (winner,) = [at for at, result in enumerate(results) if not isinstance(result, Exception)]
    assert [type(result) for result in results if isinstance(result, Exception)] == [error] * 3
    assert ids_of(await open_cache().session("chat").load_session(FullGraph())) == [f"n{winner}"]
    assert await open_cache().session("chat").pending_inputs() == []


async def test_an_update_that_lost_the_input_to_another_worker_raises_instead_of_answering_again(store, open_cache):
    other = open_cache().session("chat")
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a")))
    await store.enqueue_input(HELLO, "i")
    calls = []

    async def turn(read):
        calls.append(read.head_revision)
        if len(calls) == 1:
            await other.update(lambda read: RuntimeCommit("chat", graph=append("b", parent="a"), consumes=["i"]))
        return RuntimeCommit("chat", graph=append("c", parent=read.graph.leaf_node_id), consumes=["i"])

    with pytest.raises(InputNotPending):
        await store.update(turn)
    assert calls == [1, 2]
    assert ids_of(await store.load_session(FullGraph())) == ["a", "b"]


COMPARES_INPUTS_FIRST = Lua(
    "commit",
    "local found, made = find_receipt",
    "if ARGV[26] ~= '0' and redis.call('HEXISTS', head, ARGV[#ARGV]) == 0 then return {'unpending', session, 0} end\n"
    "  local found, made = find_receipt",
)


@broken_by(COMPARES_INPUTS_FIRST)
async def test_a_retried_commit_is_answered_by_its_receipt_before_its_inputs_are_compared(store, open_cache, keyspace):
    await store.enqueue_input(HELLO, "i")
    made = answer("i", expected=0)
    first = await store.commit_runtime_state(made)
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("y", parent="x")))
    before = await keyspace()
    for again in (made, RuntimeCommit.from_json(made.to_json())):
        result = await open_cache().session("chat").commit_runtime_state(again)
        assert (result.head_revision, result.replayed) == (first.head_revision, True)
    assert await keyspace() == before


def without_inputs(meaning):
    return lambda prepared, *values: meaning(replace(prepared, commit=replace(prepared.commit, consumes=())), *values)


@broken_by(Python("protocol.commands.prepared_commit:_meaning", without_inputs, "leaves inputs out of the meaning"))
async def test_the_consumed_inputs_are_part_of_the_meaning_of_a_commit(store):
    for name in ("i", "j", "k"):
        await store.enqueue_input(HELLO, name)
    made = answer("i", "j", commit_id="once")
    await store.commit_runtime_state(made)
    assert (await store.commit_runtime_state(replace(made, consumes=["j", "i"]))).replayed
    for consumes in ((), ("i",), ("i", "j", "k"), ("i", "k")):
        with pytest.raises(CommitIdReused):
            await store.commit_runtime_state(replace(made, consumes=consumes))
    assert await ids_pending(store) == ["k"]


async def test_the_inputs_of_a_commit_survive_json_and_are_left_out_if_there_are_none():
    made = answer("i", "j", commit_id="once")
    assert made.to_json()["consumes"] == ["i", "j"]
    assert RuntimeCommit.from_json(made.to_json()).consumes == ("i", "j")
    assert "consumes" not in RuntimeCommit("chat", consumes=[]).to_json()
    assert RuntimeCommit.from_json(RuntimeCommit("chat").to_json()).consumes == ()
    one = PendingInput("i", HELLO, 1.5)
    assert PendingInput.from_json(one.to_json()) == one == pickle.loads(pickle.dumps(one))
    assert one.to_json() == {"input_id": "i", "item": HELLO, "enqueued_at": 1.5}


async def test_a_refused_commit_leaves_its_inputs_pending(store):
    await store.enqueue_input(HELLO, "i")
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a")))
    for graph, error in ((append("a"), NodeIdCollision), (append("b", parent="a"), HeadRevisionConflict)):
        expected = 0 if error is HeadRevisionConflict else 1
        with pytest.raises(error):
            await store.commit_runtime_state(RuntimeCommit("chat", expected, graph=graph, consumes=["i"]))
        assert await ids_pending(store) == ["i"]


# Bad input


@pytest.mark.parametrize(
    "item", [b"x", {1: 2}, float("nan"), 2**64, {"a": {"b": object()}}, "\ud800", (1, 2), {"x"}, [[b""]]]
)
async def test_an_item_that_is_not_json_is_refused_by_its_name(store, keyspace, item):
    with pytest.raises(InvalidRecord) as refused:
        await store.enqueue_input(item)
    assert refused.value.field.startswith("item")
    assert await keyspace() == {}


async def test_an_item_nested_too_deep_is_refused(store):
    item: Any = "x"
    for _ in range(300):
        item = [item]
    with pytest.raises(InvalidRecord, match="nested more than"):
        await store.enqueue_input(item)


@pytest.mark.parametrize("input_id", ["", 5, b"i", "\ud800", "x" * 65_537, ["i"]])
async def test_an_invalid_input_id_is_refused_by_its_name(store, keyspace, input_id):
    with pytest.raises(InvalidRecord) as refused:
        await store.enqueue_input(HELLO, input_id)
    assert refused.value.field == "input_id"
    assert await keyspace() == {}


@pytest.mark.parametrize("input_id", ["nputs", "inputs", "i:", " ", "\0", "\n", "é" * 100, "x" * 65_536, "facts"])
async def test_an_id_of_any_characters_identifies_its_input(store, open_cache, input_id):
    await store.enqueue_input(HELLO, input_id)
    await store.enqueue_input(HELLO, f"{input_id[:9]}2")
    await store.commit_runtime_state(answer(input_id))
    assert await ids_pending(store) == [f"{input_id[:9]}2"]
    assert (await open_cache(role="auditor").audit()).problems == ()


BAD_CONSUMES: list[tuple[Any, str]] = [
    ("i", "RuntimeCommit.consumes"),
    (b"i", "RuntimeCommit.consumes"),
    (5, "RuntimeCommit.consumes"),
    (None, "RuntimeCommit.consumes"),
    ({"i"}, "RuntimeCommit.consumes"),
    (["i", "i"], "RuntimeCommit.consumes[1]"),
    (["i", ""], "RuntimeCommit.consumes[1]"),
    (["i", 7], "RuntimeCommit.consumes[1]"),
    (["\ud800"], "RuntimeCommit.consumes[0]"),
]


@pytest.mark.parametrize(("consumes", "field"), BAD_CONSUMES)
async def test_invalid_consumes_are_refused_by_their_name(store, keyspace, consumes, field):
    await store.enqueue_input(HELLO, "i")
    before = await keyspace()
    with pytest.raises(InvalidRecord) as refused:
        await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a"), consumes=consumes))
    assert refused.value.field == field
    assert await keyspace() == before


async def test_a_commit_that_consumes_10000_inputs_is_too_large(store, keyspace):
    with pytest.raises(CommitTooLarge, match="expected at most 128, got 10000"):
        await store.commit_runtime_state(RuntimeCommit("chat", consumes=numbered(10_000)))
    assert await keyspace() == {}


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1", None, True, 2**40])
def test_an_invalid_limit_is_refused_by_its_name(limit):
    with pytest.raises(InvalidRecord) as refused:
        StoreOptions(max_pending_input_bytes=limit)
    assert refused.value.field == "options.max_pending_input_bytes"


# Owners


FOREIGN = "if is_foreign(access, stored[8], text) then return nil, {'foreign'} end"


@broken_by(
    Lua("enqueue", FOREIGN, ""),
    Python("protocol.commands.reads:is_foreign", lambda _: lambda *_: False, "reads everyone's"),
)
@pytest.mark.parametrize("owner", ["alice", None])
async def test_the_inputs_of_anothers_session_read_as_absent_and_none_can_be_added(open_cache, keyspace, owner):
    store = open_cache().session("chat", owner=owner)
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a")))
    await store.enqueue_input(HELLO, "i")
    before = await keyspace()
    other = open_cache().session("chat", owner="bob")
    assert await other.pending_inputs() == []
    for input_id in ("i", "j"):
        with pytest.raises(OwnerMismatch) as refused:
            await other.enqueue_input(HELLO, input_id)
        assert "alice" not in f"{refused.value}{refused.value.args}"
    with pytest.raises(OwnerMismatch):
        await other.commit_runtime_state(RuntimeCommit("chat", 1, consumes=["i"]))
    assert await keyspace() == before
    assert await ids_pending(open_cache().session("chat")) == ["i"]


@broken_by(
    Lua(
        "enqueue",
        "if stored.owner ~= stored.next_owner then fields",
        "if false then fields",
    ),
    Lua("enqueue", "list_entry(catalogues, entry, committed, hold_of", "list_entry({}, entry, committed, hold_of"),
)
async def test_the_first_input_of_a_session_makes_it_its_owners(open_cache, keyspace):
    alice, bob = (open_cache().session("chat", owner=owner) for owner in ("alice", "bob"))
    await alice.enqueue_input(HELLO, "i")
    assert [info.session_id async for info in open_cache().sessions(owner="alice")] == ["chat"]
    assert [(info.session_id, info.owner) async for info in open_cache().sessions()] == [("chat", "alice")]
    assert await bob.pending_inputs() == []
    for write in (bob.enqueue_input, lambda _: bob.commit_runtime_state(answer()), lambda _: bob.set_title("mine")):
        with pytest.raises(OwnerMismatch):
            await write(HELLO)
    trusted = open_cache().session("chat")
    await trusted.enqueue_input("more", "j")
    assert await ids_pending(alice) == ["i", "j"]
    assert (await open_cache().delete_owned("alice")).deleted_session_count == 1
    (marker,) = [value for key, (_, value, _) in (await keyspace()).items() if b":head:" in key]
    assert [name for name, _ in marker] == [b"deleted"]
    with pytest.raises(SessionDeleted):
        await trusted.enqueue_input("more", "k")


@broken_by(Lua("prune", "(stored[1] or stored[2] or stored[5])", "(stored[1] or stored[2])"))
async def test_the_entry_of_an_expired_session_is_removed_after_another_owners_input_began_it_again(open_cache, client):
    cache = open_cache()
    await cache.session("chat", owner="alice").commit_runtime_state(RuntimeCommit("chat", graph=append("a")))
    keys = cache.layout.session("chat")
    await client.delete(*keys.own)
    await open_cache().session("chat", owner="bob").enqueue_input(HELLO)
    assert [info.session_id async for info in cache.sessions(owner="alice")] == []
    assert await client.zrange(keys.shard.catalogue("alice").sessions, 0, -1) == []
    assert [info.session_id async for info in cache.sessions(owner="bob")] == ["chat"]


# Lifetime


async def head_ms(client) -> int:
    return await client.pttl(await key_of(client, "head"))


async def test_an_input_does_not_move_the_deadline_of_its_session(open_cache, client, keyspace):
    store = open_cache(ttl=1000).session("chat")
    await store.commit_runtime_state(RuntimeCommit("chat", graph=append("a")))
    await client.pexpire(await key_of(client, "head"), 500_000)
    await store.enqueue_input(HELLO, "i")
    assert 490_000 < await head_ms(client) <= 500_000
    await store.touch()
    assert 990_000 < await head_ms(client) <= 1_000_000
    assert [key for key in await keyspace() if b"i:" in key or b"input" in key] == []  # they are fields of the head


@broken_by(Lua("enqueue", "if deadline > 0 then redis.call('PEXPIREAT', head, deadline)", "if false then return nil"))
async def test_a_session_without_a_commit_expires_after_the_ttl_of_its_last_input(open_cache, client):
    store = open_cache(ttl=1000).session("chat")
    await store.enqueue_input(HELLO, "i")
    assert 990_000 < await head_ms(client) <= 1_000_000
    await client.pexpire(await key_of(client, "head"), 5_000)
    await store.enqueue_input(HELLO, "j")
    assert 990_000 < await head_ms(client) <= 1_000_000
    await open_cache(ttl=None).session("never").enqueue_input(HELLO)
    assert await client.pttl(await key_of(client, "head", "never")) == -1
    assert sorted([info.session_id async for info in open_cache().sessions()]) == ["chat", "never"]


@broken_by(
    Lua("acquire", "stored[1] or stored[2]", "stored[1]"),
    Lua("renew", "is_alone = not (facts or stored[3] or stored[6])", "is_alone = not (facts or stored[3])"),
)
async def test_a_lease_does_not_change_the_deadline_of_a_session_that_has_only_inputs(open_cache, client):
    store = open_cache(ttl=None).session("chat")
    async with await store.acquire_lease(ttl=100) as lease:
        assert await head_ms(client) > 0
        await store.enqueue_input(HELLO, "i")
        assert await head_ms(client) == -1
        await lease.renew()
        assert await head_ms(client) == -1
    async with await store.acquire_lease(ttl=100):
        assert await head_ms(client) == -1
    assert await ids_pending(store) == ["i"]


async def test_a_session_with_meta_keeps_its_own_ttl_when_an_input_arrives(open_cache, client):
    store = await open_cache(ttl=None).create(SessionStoreCreateRequest("chat"), ttl=100)
    await store.enqueue_input(HELLO, "i")
    assert 90_000 < await head_ms(client) <= 100_000
    await store.save_session_meta(SessionMeta("chat", "n", "t", "m"))
    assert await ids_pending(store) == ["i"]
    await store.commit_runtime_state(answer("i"))
    assert (await store.load_session_meta()).session_name == "n"


@broken_by(Lua("touch", "if not (facts or is_begun(head)) then", "if not facts then"))
async def test_a_session_that_has_only_inputs_can_be_touched_and_deleted(open_cache, client):
    store = open_cache(ttl=1000).session("chat")
    await store.enqueue_input(HELLO, "i")
    assert await store.load_session(FullGraph()) is None
    assert await store.load_head() is None
    assert await store.touch(ttl=2000)
    assert 1_990_000 < await head_ms(client) <= 2_000_000
    report = await store.delete()
    assert (report.existed, report.closed) == (True, True)
    assert await store.pending_inputs() == []
    with pytest.raises(SessionDeleted):
        await store.enqueue_input(HELLO, "i")


async def test_forks_and_exports_have_no_pending_inputs(open_cache):
    cache = open_cache()
    await cache.session("chat").enqueue_input(HELLO, "i")
    await cache.session("chat").commit_runtime_state(RuntimeCommit("chat", graph=append("a")))
    assert await (await cache.fork("chat", "copy")).pending_inputs() == []
    lines = [line async for line in export_sessions(cache, ["chat"])]
    other = open_cache(namespace="other")
    assert (await import_sessions(other, lines)).session_count == 1
    assert await other.session("chat").pending_inputs() == []
    assert await ids_pending(cache.session("chat")) == ["i"]


# What is stored


async def test_the_head_has_one_field_for_each_input_and_one_account(store, client):
    await store.enqueue_input({"b": 1, "a": 2}, "i")
    await store.enqueue_input("gone", "j")
    await store.commit_runtime_state(answer("j"))
    fields = await client.hgetall(await key_of(client, "head"))
    assert {name for name in fields if name.startswith(b"i")} == {b"i:i", b"inputs"}
    place, ms, record = re.fullmatch(rb"(\d+) (\d+) (.*)", fields[b"i:i"], re.DOTALL).groups()
    content = msgpack.packb(["i", {"a": 2, "b": 1}])
    receipts = [
        sha256(id_).digest()[:8] + sha256(msgpack.packb([id_.decode(), "gone"])).digest()[:8] for id_ in (b"j",)
    ]
    seconds, _ = await client.time()
    assert (place, abs(int(ms) / 1000 - int(seconds)) < 5) == (b"1", True)
    assert record == sha256(b"i").digest()[:8] + sha256(content).digest()[:8] + content
    assert fields[b"inputs"] == b"2 1 %d " % len(record) + receipts[0]


def set_input(value: bytes):
    return lambda client, head: client.hset(head, "i:i", value)


def change_input(change):
    async def damage(client, head):
        await client.hset(head, "i:i", change(await client.hget(head, "i:i")))

    return damage


def change_account(change):
    async def damage(client, head):
        await client.hset(head, "inputs", change(await client.hget(head, "inputs")))

    return damage


def number(at: int, value: bytes):
    def change(stored: bytes) -> bytes:
        words = stored.split(b" ", 3 if len(stored.split(b" ", 3)) > 3 else 2)
        words[at] = value
        return b" ".join(words)

    return change


ODD = [b"", b"-1", b"+1", b"01", b"1.0", b"x", b"9" * 16, "\u0663".encode(), b" 1", b"0x1"]
ACCOUNT = {
    "total": (0, [*ODD, b"2", b"9"]),
    "count": (1, [*ODD, b"1", b"3"]),
    "bytes": (2, [*ODD, b"1", b"999"]),
}
INPUT = {"place": (0, [*ODD, b"0", b"2", b"4"]), "time": (1, ODD)}
"""The numbers of the account and of input 1 of 3, with values that are wrong."""
DAMAGED = {
    "an input is gone": lambda client, head: client.hdel(head, "i:i"),
    "an input too many": lambda client, head: client.hset(head, "i:k", b"3 1 0123456789abcdef"),
    "the account is gone": lambda client, head: client.hdel(head, "inputs"),
    "the account is empty": lambda client, head: client.hset(head, "inputs", b""),
    "a receipt of the account is gone": change_account(lambda stored: stored[:-16]),
    "half a receipt of the account is gone": change_account(lambda stored: stored[:-8]),
    "the account has a receipt too many": change_account(lambda stored: stored + b"x" * 16),
    "an input is empty": set_input(b""),
    "a record is too short": change_input(lambda stored: stored[:-1]),
    "a record has another byte": change_input(lambda stored: stored[:-1] + b"?"),
    "a record has another tag": change_input(lambda stored: stored.replace(sha256(b"i").digest()[:8], b"x" * 8)),
}
for kind, change, numbers in (("account", change_account, ACCOUNT), ("input", change_input, INPUT)):
    for name, (at, values) in numbers.items():
        for value in values:
            DAMAGED[f"the {name} of the {kind} is {value!r}"] = change(number(at, value))


@pytest.mark.parametrize("name", DAMAGED)
async def test_damage_is_reported_by_the_read_and_the_audit_with_the_key_of_the_head(store, open_cache, client, name):
    for input_id in ("i", "j", "gone"):
        await store.enqueue_input(HELLO, input_id)
    await store.commit_runtime_state(answer("gone"))
    head = await key_of(client, "head")
    await DAMAGED[name](client, head)
    with pytest.raises(Corrupt) as refused:
        await store.pending_inputs()
    assert (refused.value.kind, refused.value.key) == ("head", head.decode())
    report = await open_cache(role="auditor").audit()
    assert {(problem.kind, problem.key) for problem in report.problems} == {("head", head.decode())}
    assert ids_of(await store.load_session(FullGraph())) == ["x"]  # the graph is intact, so it stays readable


def is_unreadable(name: str) -> bool:
    return ("the account" in name and name.endswith(("gone", "empty", "many"))) or any(
        f"account is {odd!r}" in name for odd in ODD
    )


@pytest.mark.parametrize("name", [name for name in DAMAGED if is_unreadable(name)])
async def test_no_input_is_added_to_or_consumed_from_an_unreadable_account(store, client, keyspace, name):
    for input_id in ("i", "j", "gone"):
        await store.enqueue_input(HELLO, input_id)
    await store.commit_runtime_state(answer("gone"))
    await DAMAGED[name](client, await key_of(client, "head"))
    before = await keyspace()
    if name == "the account is gone":
        with pytest.raises(Corrupt):
            await store.commit_runtime_state(RuntimeCommit("chat", 1, consumes=["i"]))
    else:
        with pytest.raises(Corrupt):
            await store.enqueue_input("new")
        with pytest.raises(Corrupt):
            await store.commit_runtime_state(RuntimeCommit("chat", 1, consumes=["i"]))
    assert await keyspace() == before


async def refuses_a_torn_session(store, client, keyspace, family) -> None:
    await store.commit_runtime_state(RuntimeCommit("chat", graph=Append([node("a"), node("b", "a"), node("c", "a")])))
    await store.enqueue_input(HELLO, "i")
    await client.delete(await key_of(client, family))
    before = await keyspace()
    with pytest.raises(SessionEvicted):
        await store.enqueue_input("new")
    with pytest.raises(SessionEvicted):
        await store.pending_inputs()
    assert await keyspace() == before


@broken_by(Lua("enqueue", "local wrong = facts and torn(facts, log, nodes, jumps, dead, state)", "local wrong = false"))
@pytest.mark.parametrize("family", ["log", "nodes", "jumps"])
async def test_a_session_with_an_evicted_key_takes_and_shows_no_input(store, client, keyspace, family):
    await refuses_a_torn_session(store, client, keyspace, family)


@broken_by(Lua("enqueue", "if redis.call('EXISTS', unpack(others)) > 0 then", "if false then"))
async def test_a_session_with_an_evicted_head_takes_and_shows_no_input(store, client, keyspace):
    await refuses_a_torn_session(store, client, keyspace, "head")


@broken_by(
    Lua(
        "enqueue",
        "redis.call('HSET', head, unpack(fields))\n",
        "redis.call('UNLINK', state)\nredis.call('HSET', head, unpack(fields))\n",
    )
)
async def test_a_full_server_refuses_an_input_as_a_whole(real_server, full, open_real_cache):
    cache, client = open_real_cache(), real_server.client()
    for name in ("chat", "new"):
        await cache.session("chat").enqueue_input(HELLO, name)
    await cache.session("chat").commit_runtime_state(
        commit(0, append("a"), checkpoint=HydratedSessionCheckpoint(execution_state=b"1"), consumes=["new"])
    )
    before = await snapshot(client)
    await full()
    for session in ("chat", "fresh"):
        with pytest.raises(BackendError, match="OOM"):
            await cache.session(session).enqueue_input("more")
    with pytest.raises(BackendError, match="OOM"):
        await cache.session("chat").commit_runtime_state(RuntimeCommit("chat", 1, consumes=["chat"]))
    assert await snapshot(client) == before
    assert await ids_pending(cache.session("chat")) == ["chat"]


# Lost replies


async def test_an_input_whose_reply_was_lost_is_pending_once(proxy, open_real_cache, through_proxy):
    store = through_proxy().session("chat")
    await store.pending_inputs()
    for input_id in ("i", None):
        proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
        await store.enqueue_input(HELLO, input_id)
    assert len(await open_real_cache().session("chat").pending_inputs()) == 2


async def test_the_error_of_an_unknown_outcome_has_the_id_to_enqueue_again_with(proxy, open_real_cache, through_proxy):
    cache = through_proxy()
    store = cache.session("chat")
    await store.enqueue_input(HELLO, "i")
    sends_once(cache)
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown) as unknown:
        await store.enqueue_input("more")
    again = await open_real_cache().session("chat").enqueue_input("more", unknown.value.input_id)
    assert [each.input_id for each in await open_real_cache().session("chat").pending_inputs()] == ["i", again.input_id]


async def test_a_consuming_commit_whose_reply_was_lost_is_made_once(proxy, open_real_cache, through_proxy):
    store = through_proxy().session("chat")
    await store.enqueue_input(HELLO, "i")
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    result = await store.commit_runtime_state(answer("i", expected=0))
    assert (result.head_revision, result.replayed) == (1, True)
    assert await open_real_cache().session("chat").pending_inputs() == []


# Cost


async def test_a_commit_without_inputs_runs_the_same_commands_in_a_session_with_pending_inputs(
    proxy, real_server, through_proxy
):
    raw, calls = real_server.client(), []
    cache = through_proxy(shards=1)
    await cache.session("warm").commit_runtime_state(commit(None, session_id="warm"))
    for chat, inputs in (("without", 0), ("with", 100), ("consuming", 100)):
        store = cache.session(chat)
        await store.commit_runtime_state(RuntimeCommit(chat, graph=append("a")))
        for name in numbered(inputs):
            await store.enqueue_input(HELLO, name)
        await raw.config_resetstat()
        consumes = numbered(50) if chat == "consuming" else ()
        with proxy.measure() as seen:
            await store.commit_runtime_state(RuntimeCommit(chat, graph=append("b", parent="a"), consumes=consumes))
        stats = await raw.info("commandstats")
        assert (seen.commands, seen.round_trips) == (1, 1)
        calls.append(
            {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items() if "config" not in name}
        )
    assert calls[0] == calls[1]
    more = {name: calls[2].get(name, 0) - calls[0].get(name, 0) for name in {*calls[0], *calls[2]}}
    assert {name: count for name, count in more.items() if count} == {"hmget": 1, "hdel": 1}


async def test_an_input_and_a_read_of_the_inputs_take_one_round_trip(proxy, through_proxy):
    store = through_proxy().session("chat")
    await store.enqueue_input(HELLO)
    for call in (lambda: store.enqueue_input(HELLO), store.pending_inputs):
        with proxy.measure() as seen:
            await call()
        assert seen.round_trips == 1


# Chats


async def test_a_message_that_arrives_during_a_turn_is_answered_by_the_next_append(chat, open_cache):
    await chat.append({"role": "user", "content": "one", "id": "m1"})
    other = open_cache().chat("chat")
    queued = await other.enqueue_input({"role": "user", "content": "two"})
    assert queued.item == {"role": "user", "content": "two", "id": queued.input_id}
    await chat.append({"role": "assistant", "content": "1", "id": "m2"})
    (pending,) = await chat.pending_inputs()
    await chat.append(pending.item, {"role": "assistant", "content": "2", "id": "m4"}, consumes=[pending.input_id])
    assert [each["id"] for each in await chat.messages()] == ["m1", "m2", queued.input_id, "m4"]
    assert await chat.pending_inputs() == []


async def test_an_append_that_is_sent_again_consumes_its_inputs_once(chat, open_cache):
    await chat.enqueue_input({"role": "user", "content": "two", "id": "m1"})
    (pending,) = await chat.pending_inputs()
    reply = {"role": "assistant", "content": "2", "id": "m2"}
    for again in (chat, chat, open_cache().chat("chat")):
        await again.append(pending.item, reply, consumes=["m1"])
    assert [each["id"] for each in await chat.messages()] == ["m1", "m2"]
    with pytest.raises(InputNotPending):
        await chat.append({"role": "assistant", "content": "again"}, consumes=["m1"])
    with pytest.raises(InputNotPending):
        await chat.append(consumes=["m1"])
    assert len(await chat.messages()) == 2


@pytest.mark.parametrize(
    "message", [{}, "text", {"role": "user", "content": "x", "id": ""}, {"role": "user", "content": "x", "id": 5}]
)
async def test_an_invalid_message_is_refused_as_an_input(chat, keyspace, message):
    with pytest.raises(InvalidRecord, match="message"):
        await chat.enqueue_input(message)
    with pytest.raises(InvalidRecord, match="consumes"):
        await chat.append({"role": "user", "content": "x"}, consumes="m1")
    assert await keyspace() == {}
