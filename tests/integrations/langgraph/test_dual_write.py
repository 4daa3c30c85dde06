"""Workers change from another saver to this one without downtime, and no turn is lost."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

import lash_redis
from lash_redis import InvalidRecord
from lash_redis.integrations.langgraph import (
    CheckpointConflict,
    DualWriteSaver,
    LashCheckpointSaver,
    import_threads,
)
from tests.support import graphs
from tests.support.checkpoints import config, listed, load, put
from tests.support.graphs import given, shown, thread


class Workers:
    """Each call makes a worker process's saver: of the old release, of the two dual ones, and of the last one."""

    def __init__(self, open_cache: Any, old: Any) -> None:
        self._open_cache, self.old = open_cache, old

    def new(self) -> LashCheckpointSaver:
        return LashCheckpointSaver(self._open_cache())

    def reads_old(self) -> DualWriteSaver:
        return DualWriteSaver(self.new(), self.old)

    def reads_new(self) -> DualWriteSaver:
        return DualWriteSaver(self.new(), self.old, read_from="new")

    @property
    def phases(self) -> list[Any]:
        """The makers of savers that run at the same time, phase by phase."""
        old = lambda: self.old  # noqa: E731 (a maker among makers)
        return [
            (old,),
            (old, self.reads_old),
            (self.reads_old, self.reads_new),
            (self.reads_new, self.new),
            (self.new,),
        ]


@pytest.fixture
def workers(open_cache):
    return Workers(open_cache, InMemorySaver())


async def turn(saver: Any, name: str, data: Any, thread_id: str = "thread") -> Any:
    graph = (graphs.deltas() if name == "deltas" else graphs.GRAPHS[name]()).compile(checkpointer=saver)
    return await graph.ainvoke(data if name == "deltas" else given(data), thread(thread_id))


async def roll(workers: Workers, talk: Any) -> int:
    """Let workers of each phase talk in turn, and import between the second and the third phase."""
    number = 0
    for phase, makers in enumerate(workers.phases):
        if phase == 2:
            report = await import_threads(workers.old, workers.new())
            assert report.failures == ()
        for make in makers * 2:
            await talk(make, number)
            number += 1
    return number


async def test_every_turn_of_a_rolling_change_is_kept(workers):
    async def talk(make, number):
        await turn(make(), "chat", [f"t{number}"])

    count = await roll(workers, talk)
    state = await graphs.chat().compile(checkpointer=workers.new()).aget_state(thread("thread"))
    assert shown(state.values)["messages"] == [text for at in range(count) for text in (f"t{at}", f"echo t{at}")]
    assert len(await listed(workers.new(), config())) == 3 * count


async def test_a_delta_channel_of_a_rolling_change_is_whole(workers):
    async def talk(make, number):
        await turn(make(), "deltas", {"turn": number})

    count = await roll(workers, talk)
    state = await graphs.deltas().compile(checkpointer=workers.new()).aget_state(thread("thread"))
    assert state.values["items"] == [f"{side}{number}" for number in range(count) for side in ("left", "right")]
    assert state.values["rare"] == ["left", "right"] * count


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_thread_is_whole_wherever_the_dual_saver_begins(workers, kind, tmp_path):
    """The savers differ in which values of a channel that did not change they return with a checkpoint."""
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as sqlite:
        if kind == "sqlite":
            workers.old = sqlite
        for before in range(1, 7):
            for number in range(before + 5):
                saver = workers.old if number < before else workers.reads_old()
                await turn(saver, "deltas", {"turn": number}, f"thread-{before}")
            report = await import_threads(workers.old, workers.new())
            assert report.failures == ()
            again = await import_threads(workers.old, workers.new())
            assert (again.present_count, again.failures) == (before, ())
            graph = graphs.deltas().compile(checkpointer=workers.new())
            history = [state.values async for state in graph.aget_state_history(thread(f"thread-{before}"))]
            old = graphs.deltas().compile(checkpointer=workers.old)
            assert history == [state.values async for state in old.aget_state_history(thread(f"thread-{before}"))]
            assert history[0]["rare"] == ["left", "right"] * (before + 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asking", "nested"])
async def test_an_interrupt_is_resumed_by_a_worker_of_another_phase(workers, name):
    async def talk(make, number):
        """Answer the question of the worker before, and leave one for the next."""
        if number:
            result = await turn(make(), name, {"resume": f"yes {number}"}, f"thread-{number - 1}")
            assert result["answer"] == f"yes {number}"
        assert "__interrupt__" in await turn(make(), name, ["hi"], f"thread-{number}")

    await roll(workers, talk)


async def test_the_savers_of_langgraph_take_what_a_dual_saver_writes(workers, tmp_path, database):
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    async with (
        AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as sqlite,
        AsyncPostgresSaver.from_conn_string(database) as postgres,
    ):
        await postgres.setup()
        for old in (sqlite, postgres):
            workers.old = old
            for number, make in enumerate(
                (lambda old=old: old, workers.reads_old, workers.reads_new, workers.reads_old)
            ):
                await turn(make(), "chat", [f"t{number}"], str(type(old)))
            report = await import_threads(old, workers.new(), [str(type(old))])
            assert report.failures == ()
            state = await turn(old, "chat", ["last"], str(type(old)))
            assert len(state["messages"]) == 10


async def test_of_two_runs_on_one_thread_one_is_refused_whatever_they_read(workers):
    await put(workers.reads_old(), "1", {"a": 1})
    number = 1
    for makers in (
        (workers.reads_old, workers.reads_new),
        (workers.reads_new, workers.reads_old),
        (workers.reads_old,) * 2,
    ):
        one, two = makers[0](), makers[1]()
        first, second = await load(one), await load(two)
        number += 1
        own = await put(one, str(number), {"a": number}, on=first.config)
        with pytest.raises(CheckpointConflict):
            await put(two, str(number) + "x", {"a": 0}, on=second.config)
        await put(one, str(number) + "z", {"a": number}, on=own)
        assert (await load(workers.new())).checkpoint == (await load(workers.old)).checkpoint
    assert await listed(workers.old, config()) == await listed(workers.new(), config())


async def test_only_one_of_two_runs_begins_a_thread_whatever_they_read(workers):
    one, two = workers.reads_old(), workers.reads_new()
    assert await one.aget_tuple(config()) is None
    assert await two.aget_tuple(config()) is None
    await put(two, "1", {"a": 1}, source="input", step=-1)
    with pytest.raises(CheckpointConflict):
        await put(one, "2", {"a": 1}, source="input", step=-1)
    assert await listed(workers.old, config()) == ["1"]


async def test_a_run_after_a_failure_of_the_old_saver_continues(workers, monkeypatch):
    await turn(workers.reads_old(), "chat", ["a"])
    put_checkpoint = InMemorySaver.aput

    async def failing(self, *args):
        raise OSError("the disk is full")

    monkeypatch.setattr(InMemorySaver, "aput", failing)
    with pytest.raises(OSError, match="full"):
        await turn(workers.reads_old(), "chat", ["lost"])
    monkeypatch.setattr(InMemorySaver, "aput", put_checkpoint)
    for make in (workers.reads_old, workers.reads_new):
        await turn(make(), "chat", ["b"])
    texts = shown((await graphs.chat().compile(checkpointer=workers.new()).aget_state(thread("thread"))).values)
    assert texts["messages"] == ["a", "echo a", "b", "echo b", "b", "echo b"]


async def test_a_thread_is_deleted_from_both(workers):
    await turn(workers.reads_old(), "chat", ["a"])
    await workers.reads_old().adelete_thread("thread")
    assert await workers.old.aget_tuple(config()) is None
    assert await workers.new().aget_tuple(config()) is None


async def test_wrong_arguments_are_refused(workers):
    with pytest.raises(InvalidRecord, match="new"):
        DualWriteSaver(workers.old, workers.old)
    with pytest.raises(InvalidRecord, match="read_from"):
        DualWriteSaver(workers.new(), workers.old, read_from="both")
    with pytest.raises(NotImplementedError):
        await workers.reads_old().aprune(["thread"])


def test_a_synchronous_graph_writes_to_both(url):
    old, new = InMemorySaver(), LashCheckpointSaver(lash_redis.connect(url))
    for read_from in ("old", "new"):
        saver = DualWriteSaver(new, old, read_from=read_from)
        graph = graphs.asking().compile(checkpointer=saver.with_allowlist([("a", "B")]))
        graph.invoke(given(["hi"]), thread(read_from))
        assert graph.invoke(given({"resume": "yes"}), thread(read_from))["answer"] == "yes"
        assert len(list(graph.get_state_history(thread(read_from)))) == 4
        for each in (old, new):
            assert len(list(each.list(config(read_from)))) == 4
        channels = ["messages"]
        assert set(saver.get_delta_channel_history(config=thread(read_from), channels=channels)) == set(channels)
        saver.delete_thread(read_from)
        assert [each.get_tuple(config(read_from)) for each in (old, new)] == [None, None]


def test_each_method_takes_what_the_base_class_takes():
    from langgraph.checkpoint.base import BaseCheckpointSaver

    for name, method in inspect.getmembers(DualWriteSaver, inspect.isfunction):
        base = getattr(BaseCheckpointSaver, name, None)
        if base is not None and name != "__init__":
            assert list(inspect.signature(method).parameters) == list(inspect.signature(base).parameters), name
