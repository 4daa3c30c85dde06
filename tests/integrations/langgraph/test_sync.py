"""The synchronous methods work outside of an event loop, and name their twins inside of one."""

from __future__ import annotations

import inspect
import threading

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command

import lash_redis
from lash_redis.integrations.langgraph import CheckpointConflict, LashCheckpointSaver
from tests.support import graphs
from tests.support.checkpoints import checkpoint, config
from tests.support.graphs import shown, thread

SYNCHRONOUS = (
    "get_tuple", "list", "put", "put_writes", "delete_thread", "copy_thread", "prune", "delete_for_runs",
    "get_delta_channel_history",
)  # fmt: skip


@pytest.fixture
def saver(url):
    return LashCheckpointSaver(lash_redis.connect(url))


def test_every_method_of_the_base_class_is_there():
    for name in SYNCHRONOUS:
        for method in (name, f"a{name}"):
            own, base = getattr(LashCheckpointSaver, method), getattr(BaseCheckpointSaver, method)
            assert own is not base, method
            assert list(inspect.signature(own).parameters) == list(inspect.signature(base).parameters), method


def test_every_synchronous_method_works(saver):
    made = checkpoint("1", {"a": ["x" * 500] * 10})
    at = saver.put(config(), made, {"source": "input", "step": -1, "run_id": "run"}, {"a": 1})
    saver.put_writes(at, [("a", 1)], "task")
    found = saver.get_tuple(config())
    assert found is not None
    assert found.checkpoint == made
    assert found.pending_writes == [("task", "a", 1)]
    saver.copy_thread("thread", "copy")
    assert [each.checkpoint["id"] for each in saver.list(None)] == ["1", "1"]
    assert saver.get_delta_channel_history(config=config(), channels=["a"]) == {"a": {"writes": []}}
    saver.prune(["copy"])
    saver.delete_for_runs(["run"])
    assert list(saver.list(config("copy"))) == []
    saver.delete_thread("thread")
    assert saver.get_tuple(config()) is None


def test_a_synchronous_graph_runs_is_interrupted_and_resumed(url):
    first, second = (LashCheckpointSaver(lash_redis.connect(url)) for _ in range(2))
    graphs.asking().compile(checkpointer=first).invoke({"messages": [HumanMessage("hi")]}, thread("thread"))
    graph = graphs.asking().compile(checkpointer=second)
    assert graph.get_state(thread("thread")).next == ("approve",)
    state = graph.invoke(Command(resume="yes"), thread("thread"))
    assert shown(state) == {"messages": ["hi", "echo hi"], "seen": ["echo hi", "approved yes"], "answer": "yes"}
    assert len(list(graph.get_state_history(thread("thread")))) == 4


async def test_a_synchronous_call_in_an_event_loop_names_what_to_call(saver):
    calls = {
        "aget_tuple": lambda: saver.get_tuple(config()),
        "alist": lambda: saver.list(config()),
        "aput": lambda: saver.put(config(), checkpoint("1"), {}, {}),
        "aput_writes": lambda: saver.put_writes(config(), [], "task"),
        "adelete_thread": lambda: saver.delete_thread("thread"),
        "adelete_for_runs": lambda: saver.delete_for_runs(["run"]),
        "acopy_thread": lambda: saver.copy_thread("a", "b"),
        "aprune": lambda: saver.prune(["thread"]),
        "aget_delta_channel_history": lambda: saver.get_delta_channel_history(config=config(), channels=["a"]),
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=name):
            call()


def test_threads_share_a_saver(saver):
    graph = graphs.chat().compile(checkpointer=saver)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                graph.invoke({"messages": [HumanMessage(f"{turn}")]}, thread(f"thread-{number}"))
        except BaseException as error:  # noqa: BLE001 (reported by the test)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    for number in range(8):
        assert len(graph.get_state(thread(f"thread-{number}")).values["messages"]) == 10


async def test_both_kinds_of_calls_share_what_they_know(url):
    async with lash_redis.connect(url) as cache:
        saver = LashCheckpointSaver(cache)
        await graphs.chat().compile(checkpointer=saver).ainvoke({"messages": [HumanMessage("hi")]}, thread("thread"))
        found = await saver.aget_tuple(thread("thread"))
        await saver.aput(found.config, checkpoint("z1"), {"source": "loop"}, {})
        outcome: list[object] = []

        def late() -> None:
            try:
                saver.put(found.config, checkpoint("z2"), {"source": "loop"}, {})
            except CheckpointConflict as error:
                outcome.append(error)

        worker = threading.Thread(target=late)
        worker.start()
        worker.join()
        assert len(outcome) == 1
