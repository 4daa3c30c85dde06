"""A cache derives which nodes are stored from a graph's lineage, its unaccessed nodes and the sum of its log."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from itertools import product
from threading import Barrier
from typing import Any

import msgpack
import pytest

from lash_redis import (
    Append,
    CommitIdReused,
    CommitTooLarge,
    EventPayload,
    OutcomeUnknown,
    ReplaceFull,
    SessionGraph,
    SessionNodeRecord,
    StoreOptions,
    Unchanged,
)
from lash_redis.protocol.blob_cache import WrittenTools
from lash_redis.protocol.commands.prepared_commit import log_after, prepare_in_steps
from lash_redis.protocol.lineage import KnownLogs, StoredLog
from lash_redis.protocol.nodes import encode_node, set_stored
from lash_redis.protocol.packing import pack_json
from lash_redis.protocol.scripts import lua_directory
from lash_redis.protocol.steps import at_once
from lash_redis.protocol.stored_nodes import StoredNodes
from lash_redis.protocol.sums import Run, Sum
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, chain, commit, facts_of, key_of, node, numbered
from tests.support.replacing import KEEPS_ANYTHING, KEEPS_NOTHING, Sent, by_hand, full, longer

# Changes in place


def nested(text: str) -> EventPayload:
    return EventPayload({"Conversation": {"id": "b", "parts": [{"kind": "Text", "content": {"deep": [text, 1]}}]}})


def deep(graph: SessionGraph, at: int) -> list[Any]:
    """The innermost list of a `nested` payload."""
    found: list[Any] = graph.nodes[at].payload.event["Conversation"]["parts"][0]["content"]["deep"]
    return found


@broken_by(
    KEEPS_ANYTHING,
    Python("protocol.stored_nodes:StoredNodes.accessed", lambda _: lambda *_: iter(()), "reports no accessed node"),
)
async def test_a_nested_value_changed_to_one_of_equal_length_is_stored_at_every_turn(store, open_cache):
    nodes = [node("a"), replace(node("b", "a"), payload=nested("0000")), node("c", "b"), node("d", "c")]
    await store.commit_runtime_state(commit(None, Append(nodes, "d")))
    worker = open_cache().session("chat")
    sent, graph = Sent(worker), (await full(worker)).graph
    for turn in range(1, 5):
        deep(graph, 1)[0] = f"{turn:04d}"
        await worker.commit_runtime_state(commit(turn, ReplaceFull(graph)))
        assert deep((await full(store)).graph, 1) == [f"{turn:04d}", 1]
    graph = graph.append_event({"text": "x"})
    await worker.commit_runtime_state(commit(5, ReplaceFull(graph)))
    assert sent.deltas == ["replace"] * 4 + ["extend"]  # less than half of the nodes was kept, then all of them
    assert (await full(store)).graph == graph


@broken_by(KEEPS_NOTHING, KEEPS_ANYTHING)
async def test_a_growing_last_message_is_sent_without_the_unchanged_nodes(store, open_cache):
    nodes = [*chain(*numbered(50)), replace(node("b", numbered(50)[-1]), payload=nested(""))]
    await store.commit_runtime_state(commit(None, Append(nodes, "b")))
    worker = open_cache().session("chat")
    sent, graph = Sent(worker), (await full(worker)).graph
    for turn in range(1, 8):
        deep(graph, 50)[0] += "more "
        await worker.commit_runtime_state(commit(turn, ReplaceFull(graph)))
        assert deep((await full(store)).graph, 50) == ["more " * turn, 1]
    assert (sent.deltas, sent.drops) == (["extend"] * 7, [1] * 7)


async def test_a_reverted_change_is_not_sent(store, open_cache):
    await store.commit_runtime_state(commit(None, Append([replace(node("a"), payload=nested("yes"))], "a")))
    worker = open_cache().session("chat")
    sent, graph = Sent(worker), (await full(worker)).graph
    event = graph.nodes[0].payload.event["Conversation"]
    event["parts"] = event.pop("parts")
    event["id"] = event.pop("id")
    deep(graph, 0)[0] = "no"
    deep(graph, 0)[0] = "yes"
    await worker.commit_runtime_state(commit(1, ReplaceFull(graph)))
    assert (sent.deltas, sent.drops) == (["extend"], [0])


@broken_by(KEEPS_ANYTHING)
async def test_a_change_in_place_in_an_older_read_is_stored_with_its_refreshed_read(store, open_cache):
    """A refreshed read shares its decoded nodes with the older read."""
    await store.commit_runtime_state(commit(None, Append([replace(node("a"), payload=nested("old"))], "a")))
    worker = open_cache().session("chat")
    before = await full(worker)
    deep(before.graph, 0)
    await store.commit_runtime_state(commit(1, append("b", parent="a")))
    now = await worker.refresh(before)
    deep(before.graph, 0)[0] = "new"
    await worker.commit_runtime_state(commit(2, ReplaceFull(now.graph.append_event({}))))
    assert deep((await full(store)).graph, 0) == ["new", 1]


async def test_a_changed_timestamp_is_stored(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    graph = (await full(store)).graph
    nodes = (graph.nodes[0], replace(graph.nodes[1], timestamp="later"))
    await store.commit_runtime_state(commit(1, ReplaceFull(SessionGraph(nodes, "b"))))
    assert (await full(store)).graph.nodes[1].timestamp == "later"
    graph = SessionGraph().append_event({})
    await store.commit_runtime_state(commit(2, ReplaceFull(graph)))
    later = graph.first(0)._extended([replace(graph.nodes[0], timestamp="later")], graph.leaf_node_id)
    await store.commit_runtime_state(commit(3, ReplaceFull(later)))
    assert (await full(store)).graph.nodes[0].timestamp == "later"


# Lineage


async def test_a_graph_without_lineage_is_sent_whole(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    worker = open_cache().session("chat")
    sent, graph = Sent(worker), (await full(worker)).graph
    made = [
        SessionGraph(graph.nodes, "b"),
        SessionGraph((*graph.nodes, node("c", "b")), "c"),
        graph.fork_current_path(),
        SessionGraph.from_json(graph.to_json()),
        replace(graph, leaf_node_id="b"),
    ]
    for revision, each in enumerate(made, 1):
        await worker.commit_runtime_state(commit(revision, ReplaceFull(each)))
    assert sent.deltas == ["replace"] * len(made)


@broken_by(KEEPS_NOTHING)
async def test_a_graph_from_json_is_sent_whole_only_in_its_first_commit(store):
    sent, graph = Sent(store), SessionGraph.from_json(SessionGraph(chain("a", "b"), "b").to_json())
    for revision in range(4):
        await store.commit_runtime_state(commit(revision, ReplaceFull(graph)))
        graph = graph.append_message({"id": f"m{revision}", "role": "User", "parts": []})
    assert sent.deltas == ["replace", "extend", "extend", "extend"]


async def test_extending_a_read_decodes_no_node_and_cutting_it_only_the_new_leaf(store):
    await store.commit_runtime_state(commit(None, append(*numbered(100))))
    graph = (await full(store)).graph
    grown = graph.append_message({"id": "x", "role": "User", "parts": []}).append_event({}).with_leaf("x")
    await store.commit_runtime_state(commit(1, ReplaceFull(grown)))
    decoded = graph.lineage.base.nodes._shared.nodes
    assert not any(decoded)
    cut = grown.first(101).first(99)
    assert sum(each is not None for each in decoded) == 1  # the new leaf
    assert (cut.lineage.base, cut.lineage.kept, len(cut.nodes)) == (graph.lineage.base, 99, 99)


async def test_a_message_with_a_stored_id_gets_another_node_id(store):
    taken = ("a", "b", "é", "x" * 300)
    await store.commit_runtime_state(commit(None, append(*taken)))
    for name in taken:
        graph = (await full(store)).graph.append_message({"id": name, "role": "User", "parts": []})
        assert graph.leaf_node_id == f"message:{name}"
        assert graph.append_message({"id": name, "role": "User", "parts": []}).leaf_node_id == f"message:{name}:2"
    graph = (await full(store)).graph
    for free in ("c", "aa", "x" * 299, "\ud800", 7):
        assert graph.append_message({"id": free, "role": "User", "parts": []}).leaf_node_id == free
    assert graph.first(1).append_message({"id": "b", "role": "User", "parts": []}).leaf_node_id == "b"
    await store.commit_runtime_state(commit(1, append("later", parent=taken[-1])))
    read = await store.refresh(await full(store))
    assert read.graph.append_message({"id": "later", "role": "User", "parts": []}).leaf_node_id == "message:later"


async def test_the_nodes_of_an_extended_read_behave_like_a_tuple(store):
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    graph = (await full(store)).graph.append_event({"x": 1}).append_event({"x": 2})
    nodes, plain = graph.nodes, tuple(graph.nodes)
    assert [len(nodes), nodes == plain, plain == nodes, nodes == list(plain)] == [5, True, True, True]
    assert [nodes == plain[:4], nodes == graph.first(4).nodes, nodes == "abcde"] == [False, False, False]
    assert (repr(nodes), pickle.loads(pickle.dumps(nodes)), copy.deepcopy(nodes)) == (repr(plain), nodes, nodes)
    assert list(reversed(nodes)) == list(reversed(plain))
    bounds = [None, *range(-6, 7)]
    for start, stop, step in product(bounds, bounds, (None, 2, -1)):
        assert nodes[start:stop:step] == plain[start:stop:step]
    assert [nodes[at] for at in range(-5, 5)] == [plain[at] for at in range(-5, 5)]
    for at in (-6, 5):
        with pytest.raises(IndexError):
            nodes[at]
    for count in range(-7, 8):
        assert graph.first(count).nodes == plain[:count]


# Limits


@broken_by(KEEPS_NOTHING)
@pytest.mark.parametrize("limits", [{"max_commit_nodes": 10}, {"max_commit_bytes": 3_000}], ids=["nodes", "bytes"])
async def test_commit_limits_apply_to_what_is_sent_and_not_to_the_session(limits, open_cache):
    (option,) = limits
    store, graph = open_cache(**limits).session("chat"), SessionGraph()
    for revision in range(20):
        graph = graph.append_message({"id": f"m{revision}", "role": "User", "parts": ["x" * 300]})
        await store.commit_runtime_state(commit(revision, ReplaceFull(graph)))
    reader = open_cache(**limits).session("chat")
    graph = (await full(reader)).graph.append_event({"text": "x"})
    await reader.commit_runtime_state(commit(20, ReplaceFull(graph)))
    await reader.commit_runtime_state(commit(21, ReplaceFull(graph.first(-2).append_event({"text": "y"}))))
    with pytest.raises(CommitTooLarge, match=option):
        await reader.commit_runtime_state(commit(22, ReplaceFull(by_hand(graph))))
    many = graph
    for _ in range(11):
        many = many.append_event({"text": "x" * 300})
    with pytest.raises(CommitTooLarge, match=option):
        await reader.commit_runtime_state(commit(22, ReplaceFull(many)))
    assert (await full(store)).head_revision == 22


@broken_by(Python("session.publish:Publisher._learn", lambda _: lambda *_: None, "forgets what it committed"))
async def test_retries_after_lost_replies_succeed_in_a_session_above_the_limit(open_cache):
    """A retry leaves the state that the first attempt left."""
    store, graph = open_cache(max_commit_nodes=5).session("chat"), SessionGraph()
    run, replies = store._namespace.run_durably, 0

    async def losing(*arguments: Any) -> Any:
        nonlocal replies
        replies += 1
        answer = await run(*arguments)
        if replies % 3 == 2:
            raise OutcomeUnknown("the reply was lost")
        return answer

    store._namespace.run_durably = losing
    lost = 0
    for revision in range(20):
        graph = graph.append_message({"id": f"m{revision}", "role": "User", "parts": []})
        graph = graph.first(-2).append_event({"again": revision}) if revision % 4 == 3 else graph
        made = commit(revision, ReplaceFull(graph))
        try:
            await store.commit_runtime_state(made)
        except OutcomeUnknown:
            lost += 1
            assert (await store.commit_runtime_state(made)).replayed
        assert (await full(open_cache().session("chat"))).graph == graph
    assert lost > 5


async def test_a_replayed_commit_does_not_mark_its_other_timestamps_as_stored(store):
    first, again = (SessionGraph([replace(node("a"), timestamp=when), node("b", "a")], "b") for when in ("old", "new"))
    made = commit(None, ReplaceFull(first))
    await store.commit_runtime_state(made)
    assert (await store.commit_runtime_state(replace(made, graph=ReplaceFull(again)))).replayed
    await store.commit_runtime_state(commit(1, ReplaceFull(again.append_event({}))))
    assert (await full(store)).graph.nodes[0].timestamp == "new"


# The sum of a log


def value_of(record: bytes) -> tuple[int, int]:
    *_, timestamp, _ = msgpack.unpackb(record)
    digest = sha256(record[: -5 - len(msgpack.packb(timestamp))]).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def sum_of(records: Sequence[bytes]) -> tuple[int, int]:
    """The sum that the head stores, computed from all records of the log."""
    values = [value_of(record) for record in records]
    high = sum((2 * place + 1) * value for place, (value, _) in enumerate(values)) % 2**32
    low = sum((2 * place + 1) * value for place, (_, value) in enumerate(values)) % 2**32
    return high, low


@broken_by(
    Lua("replace", "(high - less_high + run_high", "(high + run_high"),
    Lua("replace", "facts.high, facts.low = 0, -1, 0, 0", "facts.high, facts.low = 0, -1, facts.high, facts.low"),
    Lua("replace", "+ scaled(plain_low + 0, 2 * base)", ""),
)
@pytest.mark.parametrize("seed", range(3))
async def test_the_stored_sum_of_a_log_equals_the_sum_of_its_records(seed, open_cache, client):
    dice = random.Random(seed)
    store, graph, freed, deltas = open_cache().session("chat"), SessionGraph(), dict[int, bytes](), []
    sent = Sent(store)
    for step in range(60):
        for number in range(dice.choice([0, 1, 1, 2, 5])):
            graph = graph.append_event({"step": step, "number": number, "text": "x" * dice.randrange(40)})
        read = await full(store) if step else None
        choices = [*["grown", "cut", "append"] * 5, "whole", "leaf", "hide" if step % 20 > 15 else "whole"]
        delta = "grown" if read is None or not read.graph.nodes or not graph.nodes else dice.choice(choices)
        deltas.append(delta)
        match delta:
            case "grown":
                graph = graph.append_plugin("p", [step])
                made: Any = ReplaceFull(graph)
            case "cut":
                graph = graph.first(-dice.randrange(1, 4)).append_event({"again": step})
                made = ReplaceFull(graph)
            case "append":
                graph = read.graph.append_event({"step": step}).append_plugin("p", [step])
                made = Append(graph.nodes[-2:], graph.leaf_node_id)
            case "whole":
                made = ReplaceFull(SessionGraph(graph.nodes[: dice.randrange(1, 9)], graph.nodes[0].node_id))
            case "leaf":
                made = Unchanged(read.graph.leaf_node_id)
            case "hide":
                records = await client.lrange(await key_of(client, "log"), 0, -1)
                freed |= {place: record for place, record in enumerate(records) if record}
                await store.tombstone_nodes([read.graph.nodes[0].node_id])
                await store.vacuum()
                parent = read.graph.nodes[1].node_id if len(read.graph.nodes) > 1 else None
                graph = read.graph.with_leaf(parent).append_event({"step": step})
                made = Append(graph.nodes[-1:], graph.leaf_node_id)
        await store.commit_runtime_state(commit(0 if read is None else read.head_revision, made))
        records = await client.lrange(await key_of(client, "log"), 0, -1)
        stored = [record or freed[place] for place, record in enumerate(records)]
        facts = await facts_of(client)
        assert (facts["high"], facts["low"]) == sum_of(stored), (step, deltas)
        if dice.random() < 0.5 or delta in ("whole", "hide"):
            graph = (await full(store)).graph
    assert {"extend", "replace", "append"} <= set(sent.deltas)
    assert any(sent.drops)


async def test_scripts_compute_a_sum_exactly_at_any_position(client):
    text = (lua_directory() / "include" / "sums.lua").read_text()
    text += "\nlocal high, low = summed(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))"
    text += "\nreturn {string.format('%.0f', high), string.format('%.0f', low), in_bytes(low)}"
    dice, most = random.Random(1), 2**32 - 1
    for place in (0, 1, 2**19, 2**20 - 1, 2**20, 2**26 + 1, 2**32):
        for _ in range(9):
            high, low, *run = (dice.choice([0, 1, most, dice.randrange(2**32)]) for _ in range(8))
            found = await client.eval(text, 0, high, low, " ".join(map(str, run)), place)
            wanted = [(high - run[4] + run[0] + 2 * place * run[2]), (low - run[5] + run[1] + 2 * place * run[3])]
            assert [int(found[0]), int(found[1]), int.from_bytes(found[2], "big")] == [
                wanted[0] % 2**32, wanted[1] % 2**32, wanted[1] % 2**32,
            ]  # fmt: skip
            assert Sum(high, low).minus(Sum(*run[4:])).plus(Run(*run[:4]), place) == (int(found[0]), int(found[1]))


@broken_by(Lua("replace", "and in_bytes(facts.low) == low", ""))
async def test_a_log_that_differs_only_in_its_middle_is_replaced(store, client):
    """After a failover, the epoch, the lengths and the last record may equal those of the read."""
    await store.commit_runtime_state(commit(None, append("a", "b", "c")))
    graph, sent = (await full(store)).graph, Sent(store)
    await store.commit_runtime_state(
        commit(1, ReplaceFull(SessionGraph([node("a", text="other"), *graph.nodes[1:]], "c")))
    )
    head = await key_of(client, "head")
    facts = (await client.hget(head, "facts")).split()
    facts[1] = str(graph.lineage.base.epoch).encode()
    facts[7] = str(graph.lineage.base.size).encode()
    await client.hset(head, "facts", b" ".join(facts))
    made = longer(graph, node("d", "c"))
    await store.commit_runtime_state(commit(2, made))
    assert (sent.deltas[-1], (await full(store)).graph) == ("replace", made.graph)


def ignoring_order(run: Any) -> Any:
    def of(parts: Any) -> Run:
        runs = [run([part]) for part in parts]
        return Run(*(sum(numbers) % 2**32 for numbers in zip(*runs, strict=True))) if runs else Run()

    return staticmethod(of)


@broken_by(Python("protocol.sums:Run.of", ignoring_order, "ignores the order of nodes"))
async def test_a_commit_id_reused_for_nodes_in_another_order_is_refused(store, open_cache):
    await store.commit_runtime_state(commit(None, append("a")))
    b, c = node("b", "a"), node("c", "a")
    graph = (await full(store)).graph
    deltas = [
        (longer(graph, b, c), ReplaceFull(longer(graph, c, b).graph.with_leaf("c"))),
        (longer(graph, b, c), ReplaceFull(SessionGraph((*graph.nodes, c, b), "c"))),
        (Append([node("d", "a"), node("e", "a")], "e"), Append([node("e", "a"), node("d", "a")], "e")),
    ]
    for number, (made, other) in enumerate(deltas):
        revision = (await full(store)).head_revision
        await store.commit_runtime_state(commit(revision, made, commit_id=f"c{number}"))
        with pytest.raises(CommitIdReused):
            await open_cache().session("chat").commit_runtime_state(commit(revision, other, commit_id=f"c{number}"))


# Threads that share a read


def in_threads(work: Callable[[int], Any], count: int = 4) -> list[Any]:
    """The results of `work` in threads that start together and switch often."""
    barrier, interval = Barrier(count), sys.getswitchinterval()

    def run(number: int) -> Any:
        barrier.wait()
        return work(number)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(run, range(count)))
    finally:
        sys.setswitchinterval(interval)


def publishing_each(_: Any) -> Any:
    def published(self: Any, at: int, decoded: SessionNodeRecord) -> SessionNodeRecord:
        self._shared.nodes[at] = decoded
        return decoded

    return published


def decoding_each(_: Any) -> Any:
    def load(self: Any, payload: Any, name: str) -> Any:
        value = self.unpacked()
        object.__setattr__(payload, name, value)
        set_stored(payload, None)
        return value

    return load


def records_of(nodes: Sequence[SessionNodeRecord]) -> list[bytes]:
    records = []
    for each in nodes:
        payload = pack_json(each.event(), "")
        records.append(encode_node(each.node_id, each.parent_node_id, None, payload, each.timestamp)[0])
    return records


@broken_by(
    Python("protocol.stored_nodes:StoredNodes._published", publishing_each, "publishes what each thread has decoded"),
    Python("protocol.nodes:_PackedPayload.load", decoding_each, "returns another value to each thread"),
)
async def test_all_threads_that_share_a_read_get_the_same_objects():
    """All threads must commit what one of them changes in place. Four rounds make a race more likely."""
    records = records_of(chain(*numbered(5_000)))
    for _ in range(4):
        nodes, kept = StoredNodes(records, "log"), []

        def access(number: int, nodes: StoredNodes = nodes, kept: list[Any] = kept) -> list[tuple[int, int]]:
            events = [(each, each.payload.event) for each in (nodes[at] for at in range(len(nodes)))]
            kept.append(events)  # keeps the objects alive, so that no id is reused
            return [(id(each), id(event)) for each, event in events]

        first, *others = in_threads(access)
        assert all(other == first for other in others)


async def test_threads_that_extend_one_read_each_know_their_own_log():
    nodes = chain(*numbered(200))
    records = records_of(nodes)
    log = StoredLog(StoredNodes(records, "log"), sum(map(len, records)), 7, Sum(*sum_of(records)))
    graph, known = SessionGraph.from_base(log, log.nodes, nodes[-1].node_id), KnownLogs()

    def turns(number: int) -> list[StoredLog]:
        mine, logs = graph, []
        for turn in range(30):
            mine = mine.first(-1) if turn % 5 == 4 else mine
            mine = mine.append_message({"id": f"{number} {turn}", "role": "User", "parts": []})
            newest = known.newest(log, "log")
            made = commit(1, ReplaceFull(mine))
            prepared = at_once(prepare_in_steps(made, StoreOptions(), WrittenTools(0), newest))
            after = log_after(prepared, "log", 7)
            assert after is not None
            known.learn(log, after)
            assert list(after.nodes) == list(mine.nodes)
            logs.append(after)
        return logs

    for each in [log for logs in in_threads(turns) for log in logs]:
        stored = [each.nodes.record(at) for at in range(len(each))]
        assert (each.size, each.sum) == (sum(map(len, stored)), sum_of(stored))
