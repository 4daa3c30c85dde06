"""Prune, copy and delete_for_runs keep what they promise, and free what nothing names."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis import Documents, SessionExists
from lash_redis.integrations.langgraph import CheckpointConflict, LashCheckpointSaver
from lash_redis.integrations.langgraph import maintenance as pruning
from lash_redis.transfer import export_sessions, import_sessions
from tests.integrations.langgraph.test_checkpoints import messages
from tests.support.checkpoints import config, listed, load, part_count, put


@pytest.fixture
def saver(cache):
    return LashCheckpointSaver(cache)


async def thread(saver, count: int = 10, thread_id: str = "thread", ns: str = "", run_id: str = "run"):
    at = config(thread_id, ns)
    for number in range(count):
        values = {"messages": messages(20 + number), "state": {"n": number, "x": "x" * 2_000}}
        at = await put(saver, f"{number:03}", values, on=at, ns=ns, step=number, run_id=f"{run_id}-{number}")
        await saver.aput_writes(at, [("a", number)], "task")
    return at


async def test_pruning_keeps_the_latest_and_frees_the_parts_of_the_others(cache, saver, open_cache):
    await thread(saver)
    await thread(saver, 3, ns="child:1")
    assert await part_count(cache) == 29 + 22 + 10  # states are shared by their content
    await saver.aprune(["thread", "never"])
    assert await part_count(cache) == 29 + 22 + 2
    cold = LashCheckpointSaver(open_cache())
    assert await listed(cold, {"configurable": {"thread_id": "thread"}}) == ["009", "002"]
    found = await load(cold)
    assert found.checkpoint["channel_values"]["messages"] == messages(29)
    assert found.pending_writes == [("task", "a", 9)]
    await put(cold, "010", {"messages": messages(30)}, on=found.config)
    assert (await load(saver)).checkpoint["channel_values"] == {"messages": messages(30)}


async def test_pruning_removes_the_writes_of_a_refused_checkpoint_and_keeps_those_of_a_coming_one(cache, saver):
    await put(saver, "1", {"a": 1})
    first, second = LashCheckpointSaver(cache), LashCheckpointSaver(cache)
    mine, own = await load(first), await load(second)
    await first.aput_writes(config(checkpoint_id="2"), [("a", 1)], "refused")
    await put(second, "3", {"a": 3}, on=own.config)
    with pytest.raises(CheckpointConflict):
        await put(first, "2", {"a": 2}, on=mine.config)
    await second.aput_writes(config(checkpoint_id="4"), [("a", 1)], "coming")
    await saver.aprune(["thread"])
    page = await cache.documents("thread").page(b"w", b"x", limit=10)
    assert [document.name for document in page.documents] == [b"w\x004\x00coming\x000"]


async def test_a_run_continues_while_its_thread_is_pruned(cache, saver, open_cache):
    at = await thread(saver, 5)
    pruner = LashCheckpointSaver(open_cache())

    async def prune() -> None:
        for _ in range(10):
            await pruner.aprune(["thread"])

    async def run() -> None:
        place = at
        for number in range(5, 30):
            values = {"messages": messages(20 + number), "state": {"n": number % 3, "x": "x" * 2_000}}
            place = await put(saver, f"{number:03}", values, on=place)

    await asyncio.gather(prune(), run())
    await pruner.aprune(["thread"])
    found = await load(LashCheckpointSaver(open_cache()))
    assert found.checkpoint["channel_values"]["messages"] == messages(49)
    assert await part_count(cache) == 50


async def test_deleting_the_latest_run_leads_back_to_the_one_before(saver, open_cache):
    await thread(saver)
    await saver.adelete_for_runs(["run-9", "run-8", "run-2", "unknown"])
    cold = LashCheckpointSaver(open_cache())
    assert await listed(cold, config()) == ["007", "006", "005", "004", "003", "001", "000"]
    found = await load(cold)
    assert found.checkpoint["channel_values"]["messages"] == messages(27)
    await put(cold, "100", {"messages": messages(28)}, on=found.config)
    await cold.adelete_for_runs([f"run-{number}" for number in range(10)])
    assert await listed(saver, config()) == ["100"]


async def test_a_run_whose_checkpoint_was_deleted_is_refused(saver, open_cache):
    at = await thread(saver, 3)
    await LashCheckpointSaver(open_cache()).adelete_for_runs(["run-2"])
    with pytest.raises(CheckpointConflict):
        await put(saver, "003", {"messages": messages(30)}, on=at)
    with pytest.raises(CheckpointConflict):
        await saver.aput_writes(at, [("a", 1)], "task-2")


async def test_a_copy_has_every_checkpoint_and_is_independent(cache, saver, open_cache):
    await thread(saver, 5)
    await thread(saver, 2, ns="child:1")
    await put(saver, "0001", {"messages": messages(3)}, on=config(checkpoint_id="000"))  # a branch
    await saver.acopy_thread("thread", "copy")
    cold = LashCheckpointSaver(open_cache())
    for ns in ("", "child:1"):
        originals = [each async for each in saver.alist(config("thread", ns))]
        copies = [each async for each in cold.alist(config("copy", ns))]
        for one, two in zip(originals, copies, strict=True):
            assert (one.checkpoint, one.metadata, one.pending_writes) == (
                two.checkpoint,
                two.metadata,
                two.pending_writes,
            )
    await saver.adelete_thread("thread")
    found = await load(cold, "copy")
    await put(cold, "100", {"messages": messages(25)}, on=found.config)
    assert (await load(cold, "copy")).checkpoint["channel_values"]["messages"] == messages(25)
    await cold.acopy_thread("never", "target")
    assert await cold.aget_tuple(config("target")) is None


async def test_a_copy_to_a_thread_with_checkpoints_is_refused(saver, keyspace):
    await thread(saver, 2)
    await put(saver, "9", {"a": 1}, thread_id="other")
    before = await keyspace()
    with pytest.raises(SessionExists):
        await saver.acopy_thread("thread", "other")
    assert await keyspace() == before


async def test_a_string_is_no_list_of_ids(saver):
    for work in (saver.aprune("thread"), saver.adelete_for_runs("run")):
        with pytest.raises(TypeError):
            await work
    with pytest.raises(ValueError, match="strategy"):
        await saver.aprune(["thread"], strategy="keep_some")


@pytest.mark.slow
async def test_ten_thousand_checkpoints_are_listed_in_pages_and_pruned(saver, open_cache):
    at = config()
    for number in range(10_000):
        at = await put(saver, f"{number:05}", {"n": number}, on=at, step=number)
    cold = LashCheckpointSaver(open_cache())
    assert await listed(cold, config()) == [f"{number:05}" for number in range(9_999, -1, -1)]
    assert await listed(cold, config(), before=config(checkpoint_id="05000"), limit=2) == ["04999", "04998"]
    assert await listed(cold, config(), filter={"step": 17}) == ["00017"]
    await cold.aprune(["thread"])
    assert await listed(cold, config()) == ["09999"]


async def test_a_part_that_is_used_again_while_its_thread_is_pruned_stays(saver, open_cache, monkeypatch):
    at = await put(saver, "1", {"state": "A" * 2_000})
    at = await put(saver, "2", {"state": "B" * 2_000}, on=at)
    other, read = LashCheckpointSaver(open_cache()), pruning.read_thread
    reads = 0

    async def overtaken(documents, *args):
        nonlocal reads
        found = await read(documents, *args)
        reads += 1
        if reads == 1:
            await put(other, "3", {"state": "A" * 2_000}, on=at)
        return found

    monkeypatch.setattr(pruning, "read_thread", overtaken)
    await saver.aprune(["thread"])
    assert reads == 2
    assert (await load(LashCheckpointSaver(open_cache()))).checkpoint["channel_values"] == {"state": "A" * 2_000}


async def test_parts_that_are_removed_before_their_checkpoint_is_stored_return(cache, open_cache, monkeypatch):
    """A checkpoint of very many parts is stored in several calls."""
    saver = LashCheckpointSaver(cache)
    at = await put(saver, "1", {"a": 1})
    write, calls = Documents.write, 0

    async def overtaken(self, made):
        nonlocal calls
        result = await write(self, made)
        calls += 1
        if calls == 3:
            monkeypatch.setattr(Documents, "write", write)
            await LashCheckpointSaver(open_cache()).adelete_for_runs(["never"])
        return result

    monkeypatch.setattr(Documents, "write", overtaken)
    await put(saver, "2", {"messages": messages(2_500, 80)}, on=at)
    assert (await load(LashCheckpointSaver(open_cache()))).checkpoint["channel_values"]["messages"] == messages(
        2_500, 80
    )


async def test_an_exported_thread_goes_on_in_another_namespace(saver, cache, open_cache):
    await thread(saver)
    await thread(saver, 3, ns="child:1")
    lines = [line async for line in export_sessions(cache)]
    target = open_cache(namespace="elsewhere", shards=3)
    assert (await import_sessions(target, lines)).session_count == 1
    moved = LashCheckpointSaver(target)
    where = {"configurable": {"thread_id": "thread"}}
    assert await listed(moved, where) == await listed(saver, where)
    found = await load(moved)
    assert found == await load(saver)
    await put(moved, "010", {"messages": messages(30)}, on=found.config)
    assert (await load(moved)).checkpoint["channel_values"] == {"messages": messages(30)}
    assert (await load(saver)).checkpoint["channel_values"]["messages"] == messages(29)
