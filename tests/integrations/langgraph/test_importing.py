"""`import_threads` stores the threads of other savers as they are, and compares both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from lash_redis import BackendError, InvalidRecord
from lash_redis.integrations.langgraph import LashCheckpointSaver, VerbatimSerializer, import_threads
from lash_redis.integrations.langgraph.verbatim import EncodedObject
from tests.support import graphs
from tests.support.checkpoints import checkpoint, config, load, put
from tests.support.graphs import given, shown, thread


@dataclass
class Custom:
    """A class of the application, which no allowlist has."""

    number: int


async def run(saver: Any, name: str, thread_id: str, *inputs: Any) -> Any:
    graph = (graphs.deltas() if name == "deltas" else graphs.GRAPHS[name]()).compile(checkpointer=saver)
    for each in inputs:
        result = await graph.ainvoke(each if name == "deltas" else given(each), thread(thread_id))
    return result


async def fill(saver: Any) -> None:
    """Make threads with turns, an open interrupt, a branch, open interrupts in a subgraph, and delta channels."""
    await run(saver, "chat", "turns", ["a"], ["b"], ["c"])
    await run(saver, "asking", "interrupted", ["hi"])
    await run(saver, "parallel", "parallel", ["go"])
    await run(saver, "nested", "nested", ["hi"])
    await run(saver, "deltas", "deltas", *({"turn": turn} for turn in range(7)))
    graph = graphs.chat().compile(checkpointer=saver)
    older = [state async for state in graph.aget_state_history(thread("turns"))][3]
    await graph.ainvoke(given(["branch"]), older.config)


THREADS = {"turns": 12, "interrupted": 3, "parallel": 4, "nested": 13, "deltas": 21}


async def stored(saver: Any, thread_id: str) -> list[Any]:
    """Every checkpoint of a thread, as the serialiser writes its parts."""
    found = [each async for each in saver.alist({"configurable": {"thread_id": thread_id}})]
    dump = VerbatimSerializer().dumps_typed
    return sorted(
        (
            each.config["configurable"]["checkpoint_ns"],
            each.checkpoint["id"],
            (each.parent_config or {}).get("configurable", {}).get("checkpoint_id"),
            sorted((name, dump(value)) for name, value in each.checkpoint["channel_values"].items()),
            each.checkpoint["channel_versions"],
            each.checkpoint["versions_seen"],
            each.metadata,
            [(task, channel, dump(value)) for task, channel, value in each.pending_writes],
        )
        for each in found
    )


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def open_source(request, tmp_path) -> Callable[..., Any]:
    """`open_source()` opens a saver of LangGraph; each call opens the same data."""
    memory = InMemorySaver()

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[BaseCheckpointSaver[Any]]:
        if request.param == "memory":
            memory.serde = options.get("serde", memory.serde)
            yield memory
        elif request.param == "sqlite":
            async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
                saver.serde = options.get("serde", saver.serde)
                yield saver
        else:
            from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

            url = request.getfixturevalue("database")
            async with AsyncPostgresSaver.from_conn_string(url, **options) as saver:
                await saver.setup()
                yield saver

    return opened


async def test_every_checkpoint_of_a_saver_is_stored_as_it_is_and_continues(open_source, open_cache):
    saver = LashCheckpointSaver(open_cache())
    async with open_source() as source:
        await fill(source)
        report = await import_threads(source, saver)
        assert (report.session_count, report.present_count, report.failures) == (5, 0, ())
        for thread_id, count in THREADS.items():
            expected = await stored(source, thread_id)
            assert len(expected) == count
            assert await stored(LashCheckpointSaver(open_cache()), thread_id) == expected
        again = await import_threads(source, LashCheckpointSaver(open_cache()))
        assert (again.session_count, again.present_count, again.failures) == (5, 5, ())
    cold = LashCheckpointSaver(open_cache())
    assert shown(await run(cold, "asking", "interrupted", {"resume": "yes"}))["answer"] == "yes"
    assert shown(await run(cold, "nested", "nested", {"resume": "yes"}))["answer"] == "yes"
    assert (await run(cold, "deltas", "deltas", {"turn": 7}))["items"] == [
        f"{side}{turn}" for turn in range(8) for side in ("left", "right")
    ]
    answered = shown(await run(cold, "chat", "turns", ["d"]))["messages"]
    assert answered == ["a", "echo a", "b", "echo b", "branch", "echo branch", "d", "echo d"]


@pytest.fixture
def saver(cache):
    return LashCheckpointSaver(cache)


@pytest.fixture
def source():
    return InMemorySaver()


async def test_objects_of_unknown_classes_are_copied_byte_for_byte(open_source, open_cache):
    value = [Custom(1), {"nested": Custom(2), "set": {3}}]
    async with open_source() as source:
        await source.aput(
            config(), checkpoint("1", {"a": value, "b": b"bytes", "c": None}), {"step": 0}, dict.fromkeys("abc", 1)
        )
        await source.aput_writes(config(checkpoint_id="1"), [("a", Custom(3))], "task")
    async with open_source(serde=VerbatimSerializer()) as source:
        verbatim = LashCheckpointSaver(open_cache(), serde=VerbatimSerializer())
        assert (await import_threads(source, verbatim, ["thread"])).failures == ()
        found = await load(verbatim)
        assert isinstance(found.checkpoint["channel_values"]["a"][0], EncodedObject)
        await source.adelete_thread("thread")
    module = (Custom.__module__, Custom.__name__)
    found = await load(LashCheckpointSaver(open_cache()).with_allowlist([module]))
    assert found.checkpoint["channel_values"] == {"a": value, "b": b"bytes", "c": None}
    assert found.pending_writes == [("task", "a", Custom(3))]


async def test_a_second_import_adds_what_the_source_got_meanwhile(source, saver, open_cache):
    await fill(source)
    await import_threads(source, saver)
    await run(source, "chat", "turns", ["d"])
    await run(source, "asking", "interrupted", {"resume": "no"})
    await run(source, "chat", "new", ["hi"])
    report = await import_threads(source, LashCheckpointSaver(open_cache()))
    assert (report.session_count, report.present_count, report.failures) == (6, 3, ())
    for thread_id in (*THREADS, "new"):
        assert await stored(saver, thread_id) == await stored(source, thread_id)


async def test_an_interrupted_import_is_continued(source, saver, open_cache, monkeypatch):
    await fill(source)
    put_writes, calls = LashCheckpointSaver.aput_writes, 0

    async def failing(self, *args):
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise BackendError("the server is gone")
        await put_writes(self, *args)

    monkeypatch.setattr(LashCheckpointSaver, "aput_writes", failing)
    failures = 0
    while True:
        try:
            report = await import_threads(source, LashCheckpointSaver(open_cache()))
        except BackendError:
            failures += 1
        else:
            break
    assert failures > 5
    assert (report.session_count, report.failed_count) == (5, 0)
    for thread_id in THREADS:
        assert await stored(saver, thread_id) == await stored(source, thread_id)


async def test_a_thread_that_was_continued_on_the_target_stays(source, saver, open_cache):
    await run(source, "asking", "thread", ["hi"])
    await import_threads(source, saver)
    await run(LashCheckpointSaver(open_cache()), "asking", "thread", {"resume": "yes"})
    expected = await stored(saver, "thread")
    report = await import_threads(source, saver)
    assert (report.present_count, report.failures) == (1, ())
    assert await stored(saver, "thread") == expected


async def test_a_thread_that_was_continued_on_both_sides_is_refused(source, saver, keyspace):
    for way in ("a turn", "a pending write"):
        await run(source, "asking", way, ["hi"])
        await import_threads(source, saver)
        latest = (await load(saver, way)).config
        if way == "a turn":
            await run(saver, "chat", way, ["new"])
        else:
            await saver.aput_writes(latest, [("a", 1)], "another task")
        await run(source, "asking", way, {"resume": "no"})
        before = await keyspace()
        report = await import_threads(source, saver, [way])
        assert report.failures == (f"thread {way!r}: it was continued on both sides; delete it from one of them",)
        assert await keyspace() == before


async def test_a_thread_that_differs_is_refused(source, saver, keyspace):
    at = await put(source, "1", {"a": 1}, step=1)
    at = await put(source, "2", {"a": 2}, on=at, step=2)
    await source.aput_writes(at, [("a", 1)], "task")
    await put(source, "9", {"a": 1}, thread_id="equal")
    for change, reason in (
        (lambda: put(saver, "1", {"a": 7}, step=1), "checkpoint '1' in namespace '' differs in 'channel a'"),
        (lambda: put(saver, "1", {"a": 1}, step=7), "checkpoint '1' in namespace '' differs in 'metadata'"),
        (lambda: put(saver, "2", {"a": 2}, step=2), "checkpoint '2' in namespace '' differs in 'parent'"),
        (lambda: put(saver, "1", {"a": 1, "b": 1}, step=1), "checkpoint '1' in namespace '' differs in"),
        (lambda: put(saver, "3", {"a": 1}), "it was continued on both sides"),
    ):
        await saver.adelete_thread("thread")
        await change()
        before = await keyspace()
        report = await import_threads(source, saver, ["thread"])
        assert (report.session_count, report.failed_count) == (0, 1)
        assert reason in report.failures[0]
        assert await keyspace() == before
    await saver.adelete_thread("thread")
    await import_threads(source, saver)
    await source.adelete_thread("thread")
    at = await put(source, "2", {"a": 2}, on=await put(source, "1", {"a": 1}, step=1), step=2)
    await source.aput_writes(at, [("a", "other")], "task")
    report = await import_threads(source, saver)
    assert (report.present_count, report.failed_count) == (1, 1)
    assert "checkpoint '2' has another pending write of task 'task'" in report.failures[0]


async def test_a_session_that_is_a_chat_is_refused(source, saver, cache):
    await cache.chat("turns").append({"role": "user", "content": "hi"})
    await run(source, "chat", "turns", ["a"])
    await run(source, "chat", "other", ["a"])
    report = await import_threads(source, saver)
    assert (report.session_count, report.failed_count) == (1, 1)
    assert "turns" in report.failures[0]
    assert len(await cache.chat("turns").messages()) == 1


async def test_a_thread_that_is_written_to_on_the_target_meanwhile_is_reported_and_keeps_its_turn(
    source, open_cache, monkeypatch
):
    """Whether the writer begins the thread, or continues what was imported so far."""
    await run(source, "chat", "thread", ["a"], ["b"], ["c"])
    put_checkpoint = LashCheckpointSaver.aput
    for at in (1, 3):
        saver, live, puts = LashCheckpointSaver(open_cache()), LashCheckpointSaver(open_cache()), 0

        async def overtaken(self, *args):
            nonlocal puts
            if self is saver:  # noqa: B023 (used in this turn of the loop only)
                puts += 1
                if puts == at:  # noqa: B023
                    await run(live, "chat", "thread", ["live"])  # noqa: B023
            return await put_checkpoint(self, *args)

        monkeypatch.setattr(LashCheckpointSaver, "aput", overtaken)
        report = await import_threads(source, saver)
        assert report.failed_count == 1, report
        graph = graphs.chat().compile(checkpointer=LashCheckpointSaver(open_cache()))
        assert shown((await graph.aget_state(thread("thread"))).values)["messages"][-2:] == ["live", "echo live"]
        await saver.adelete_thread("thread")


async def test_a_key_that_the_source_adds_to_checkpoints_is_stored_and_is_no_difference(source, saver, open_cache):
    """LangGraph's Redis saver does so."""
    made: Any = {**checkpoint("1", {"a": 1}), "type": "json"}
    await source.aput(config(), made, {"step": 0}, {"a": 1})
    for has_it in (True, False):
        if not has_it:
            await saver.adelete_thread("thread")
            await saver.aput(config(), checkpoint("1", {"a": 1}), {"step": 0}, {"a": 1})
        assert (await import_threads(source, saver)).failures == ()
        assert ("type" in (await load(LashCheckpointSaver(open_cache()))).checkpoint) == has_it


async def test_a_checkpoint_without_its_parent_is_stored(source, saver):
    at = await put(source, "2", {"a": [1] * 500}, on=config(checkpoint_id="1"))
    await put(source, "3", {"a": [1] * 501}, on=at)
    assert (await import_threads(source, saver)).failures == ()
    assert await stored(saver, "thread") == await stored(source, "thread")


async def test_a_thread_whose_versions_are_numbers_continues(saver, monkeypatch):
    """As with a saver that leaves the versions to the base class."""
    monkeypatch.setattr(InMemorySaver, "get_next_version", BaseCheckpointSaver.get_next_version)
    source = InMemorySaver()
    await run(source, "asking", "thread", ["hi"])
    assert (await import_threads(source, saver)).failures == ()
    assert (await run(saver, "asking", "thread", {"resume": "yes"}))["answer"] == "yes"
    assert shown(await run(saver, "chat", "thread", ["b"]))["messages"] == ["hi", "echo hi", "b", "echo b"]


async def test_branches_are_stored_though_another_branch_is_the_latest(source, saver):
    root = await put(source, "1", {"a": 1})
    left = await put(source, "2", {"a": 2}, on=root)
    right = await put(source, "3", {"a": 3}, on=root)
    await put(source, "4", {"a": 4}, on=left)
    await put(source, "5", {"a": 5}, on=right)
    await put(source, "6", {"a": 6})  # a second root
    await put(source, "7", {"a": 7}, on=left)
    assert (await import_threads(source, saver)).failures == ()
    assert await stored(saver, "thread") == await stored(source, "thread")


async def test_pending_writes_keep_their_order_and_special_ones_their_place(source, saver):
    at = await put(source, "1", {"a": 1})
    await source.aput_writes(at, [("x", 1), ("y", 2), ("x", 3)], "b", "path 1")
    await source.aput_writes(at, [("x", 4)], "a", "path 2")
    await source.aput_writes(at, [("__resume__", [5])], "a", "path 2")
    await source.aput_writes(at, [("__interrupt__", 6)], "c", "path 0")
    assert (await import_threads(source, saver)).failures == ()
    expected = (await source.aget_tuple(config())).pending_writes
    assert [write[0] for write in expected] == ["c", "b", "b", "b", "a", "a"]
    assert (await load(saver)).pending_writes == expected
    await saver.aput_writes((await load(saver)).config, [("__resume__", [5, 7])], "a")
    assert (await load(saver)).pending_writes.count(("a", "__resume__", [5, 7])) == 1


async def test_wrong_arguments_are_refused(source, saver):
    with pytest.raises(InvalidRecord, match="target"):
        await import_threads(saver, source)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        await import_threads(BaseCheckpointSaver(), saver)
    report = await import_threads(BaseCheckpointSaver(), saver, ["never"])
    assert report.failures == ("thread 'never': NotImplementedError",)
    report = await import_threads(source, saver, ["never"])
    assert report.failures == ("thread 'never': the source has no checkpoint of it",)
