"""Delta channels are rebuilt from the writes and snapshots along the parents, as in memory."""

from __future__ import annotations

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from lash_redis.integrations.langgraph import LashCheckpointSaver
from tests.support import graphs
from tests.support.checkpoints import config, put
from tests.support.graphs import thread


@pytest.fixture
def open_saver(open_cache):
    return lambda: LashCheckpointSaver(open_cache())


async def play(saver: BaseCheckpointSaver, turns: int, durability: str = "async"):
    graph = graphs.deltas().compile(checkpointer=saver)
    for turn in range(turns):
        await graph.ainvoke({"turn": turn, "items": [f"in{turn}"]}, thread("thread"), durability=durability)
    return (await graph.aget_state(thread("thread"))).values


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_delta_channels_have_the_values_that_they_have_in_memory(open_saver, durability):
    expected = await play(InMemorySaver(), 6, durability)
    assert await play(open_saver(), 6, durability) == expected
    assert (await graphs.deltas().compile(checkpointer=open_saver()).aget_state(thread("thread"))).values == expected
    assert len(expected["items"]) == 18
    assert expected["rare"] == ["left", "right"] * 6


async def test_every_earlier_state_is_rebuilt(open_saver):
    memory = InMemorySaver()
    await play(memory, 6)
    await play(open_saver(), 6)
    histories = []
    for saver in (memory, open_saver()):
        graph = graphs.deltas().compile(checkpointer=saver)
        histories.append([state.values async for state in graph.aget_state_history(thread("thread"))])
    assert histories[0] == histories[1]
    assert len(histories[0]) == 18


async def test_pruning_keeps_what_delta_channels_are_rebuilt_from(open_saver):
    expected = await play(open_saver(), 6)
    await open_saver().aprune(["thread"])
    graph = graphs.deltas().compile(checkpointer=open_saver())
    assert (await graph.aget_state(thread("thread"))).values == expected
    after = await play(open_saver(), 1)
    assert after["items"] == [*expected["items"], "in0", "left0", "right0"]


async def test_a_copy_rebuilds_its_delta_channels(open_saver):
    expected = await play(open_saver(), 5)
    await open_saver().acopy_thread("thread", "copy")
    await open_saver().adelete_thread("thread")
    graph = graphs.deltas().compile(checkpointer=open_saver())
    assert (await graph.aget_state(thread("copy"))).values == expected


async def test_a_history_has_the_writes_since_the_nearest_stored_value(open_saver):
    """The same answer as that of the base class, which asks for one ancestor after the other."""
    saver = open_saver()
    at = await put(saver, "1", {"plain": ["a"], "delta": _DeltaSnapshot(["s"])})
    await saver.aput_writes(at, [("delta", ["b"]), ("plain", ["x"])], "task-b", "~2")
    await saver.aput_writes(at, [("delta", ["a"])], "task-z", "~1")
    fork = at
    for number in range(2, 40):
        at = await put(saver, f"{number:02}", on=at)
        await saver.aput_writes(at, [("delta", [number])], "task")
    fork = await put(saver, "99", on=fork)
    await saver.aput_writes(fork, [("delta", ["pending"])], "task")
    channels = ["delta", "plain", "never"]
    for target in (at, fork, config(), config(checkpoint_id="1"), config(checkpoint_id="17")):
        cold = open_saver()
        history = await cold.aget_delta_channel_history(config=target, channels=channels)
        base = await BaseCheckpointSaver.aget_delta_channel_history(cold, config=target, channels=channels)
        assert history == base
    history = await open_saver().aget_delta_channel_history(config=fork, channels=["delta"])
    assert history["delta"]["seed"].value == ["s"]
    assert history["delta"]["writes"] == [("task-z", "delta", ["a"]), ("task-b", "delta", ["b"])]
    assert await saver.aget_delta_channel_history(config=config("never"), channels=["delta"]) == {
        "delta": {"writes": []}
    }
    assert await saver.aget_delta_channel_history(config=config(), channels=[]) == {}


async def test_a_long_history_takes_few_round_trips(proxy, through_proxy):
    saver = LashCheckpointSaver(through_proxy())
    at = config()
    for number in range(400):
        at = await put(saver, f"{number:03}", on=at)
        await saver.aput_writes(at, [("delta", [number])], "task")
    with proxy.measure() as traffic:
        history = await saver.aget_delta_channel_history(config=at, channels=["delta"])
    assert len(history["delta"]["writes"]) == 399
    assert traffic.round_trips <= 6
