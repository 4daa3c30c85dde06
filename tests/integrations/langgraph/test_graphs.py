"""Real graphs with a scripted model: turns, interrupts, time travel, forks, branches, subgraphs, other processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from lash_redis.integrations.langgraph import CheckpointConflict, LashCheckpointSaver
from tests.support import graphs
from tests.support.graphs import shown, thread


@pytest.fixture
def open_graph(open_cache):
    """`open_graph("chat")` compiles a graph over a cache of its own, as in another process."""
    return lambda name: graphs.GRAPHS[name]().compile(checkpointer=LashCheckpointSaver(open_cache()))


def says(*texts: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text) for text in texts]}


async def test_turns_continue_in_another_process(open_graph):
    for number in range(5):
        state = await open_graph("chat").ainvoke(says(f"t{number}"), thread("thread"))
    assert shown(state)["messages"] == [text for number in range(5) for text in (f"t{number}", f"echo t{number}")]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_every_durability_stores_the_turn(open_graph, durability):
    for number in range(3):
        await open_graph("chat").ainvoke(says(f"t{number}"), thread("thread"), durability=durability)
    state = await open_graph("chat").aget_state(thread("thread"))
    assert len(state.values["messages"]) == 6
    assert state.next == ()


async def test_an_interrupt_is_resumed_elsewhere(open_graph):
    result = await open_graph("asking").ainvoke(says("hi"), thread("thread"))
    assert result["__interrupt__"][0].value == {"question": "Continue?"}
    waiting = await open_graph("asking").aget_state(thread("thread"))
    assert waiting.next == ("approve",)
    assert waiting.tasks[0].interrupts[0].value == {"question": "Continue?"}
    state = await open_graph("asking").ainvoke(Command(resume="yes"), thread("thread"))
    assert shown(state) == {"messages": ["hi", "echo hi"], "seen": ["echo hi", "approved yes"], "answer": "yes"}


async def test_time_travel_replays_and_branches(open_graph):
    for text in ("a", "b", "c"):
        await open_graph("chat").ainvoke(says(text), thread("thread"))
    graph = open_graph("chat")
    history = [state async for state in graph.aget_state_history(thread("thread"))]
    assert len(history) == 9
    after_a = next(state for state in history if len(state.values.get("messages", ())) == 2 and not state.next)
    state = await open_graph("chat").ainvoke(says("B"), after_a.config)
    assert shown(state)["messages"] == ["a", "echo a", "B", "echo B"]
    latest = await open_graph("chat").aget_state(thread("thread"))
    assert shown(latest.values)["messages"] == ["a", "echo a", "B", "echo B"]
    replayed = next(state for state in history if state.next == ("echo",) and len(state.values["messages"]) == 5)
    state = await open_graph("chat").ainvoke(None, replayed.config)
    assert shown(state)["messages"] == ["a", "echo a", "b", "echo b", "c", "echo c"]


async def test_a_state_is_updated_and_a_message_removed(open_graph):
    await open_graph("chat").ainvoke(says("a", "b"), thread("thread"))
    graph = open_graph("chat")
    state = await graph.aget_state(thread("thread"))
    first = state.values["messages"][0]
    forked = await graph.aupdate_state(thread("thread"), {"messages": [RemoveMessage(first.id)]}, as_node="echo")
    assert shown((await graph.aget_state(forked)).values)["messages"] == ["b", "echo b"]
    older = await graph.aupdate_state(state.config, {"answer": "older"}, as_node="echo")
    values = (await open_graph("chat").aget_state(older)).values
    assert (shown(values)["messages"], values["answer"]) == (["a", "b", "echo b"], "older")


async def test_branches_run_in_parallel_and_join(open_graph):
    state = await open_graph("parallel").ainvoke(says("go"), thread("thread"))
    branches = sorted(state["seen"][:10])
    assert branches == sorted([f"branch {number}" for number in range(5)] + [f"sent {number}" for number in range(5)])
    assert (state["seen"][10], state["answer"]) == ("join", "10")


async def test_subgraphs_are_resumed_and_keep_their_state(open_graph):
    await open_graph("nested").ainvoke(says("hi"), thread("thread"))
    waiting = await open_graph("nested").aget_state(thread("thread"), subgraphs=True)
    assert waiting.next == ("asking",)
    assert waiting.tasks[0].state.next == ("approve",)
    state = await open_graph("nested").ainvoke(Command(resume="yes"), thread("thread"))
    assert state["answer"] == "yes"
    await open_graph("nested").ainvoke(says("again"), thread("thread"))
    state = await open_graph("nested").ainvoke(Command(resume="no"), thread("thread"))
    assert state["answer"] == "no"


@pytest.mark.parametrize("name", ["chat", "asking", "parallel", "nested"])
async def test_a_graph_ends_in_the_state_that_it_has_in_memory(open_graph, name):
    states = []
    for compiled in (open_graph(name), graphs.GRAPHS[name]().compile(checkpointer=InMemorySaver())):
        for turn in ("one", "two"):
            result = await compiled.ainvoke(says(turn), thread("thread"))
            if "__interrupt__" in result:
                await compiled.ainvoke(Command(resume=turn), thread("thread"))
        state = await compiled.aget_state(thread("thread"))
        history = [each async for each in compiled.aget_state_history(thread("thread"))]
        states.append((shown(state.values), state.next, [(each.metadata["step"], each.next) for each in history]))
    assert states[0] == states[1]


async def test_of_two_runs_on_one_thread_one_is_refused_and_the_other_is_whole(open_graph):
    await open_graph("chat").ainvoke(says("a"), thread("thread"))
    runs = [open_graph("chat").ainvoke(says(text), thread("thread")) for text in ("left", "right")]
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, CheckpointConflict)]
    texts = shown((await open_graph("chat").aget_state(thread("thread"))).values)["messages"]
    assert len(refused) <= 1
    if refused:
        assert texts in (["a", "echo a", word, f"echo {word}"] for word in ("left", "right"))
    else:  # one began after the other had ended
        assert len(texts) == 6
    await open_graph("chat").ainvoke(says("after"), thread("thread"))


async def test_a_thread_that_is_deleted_while_it_runs_stays_deleted(open_cache):
    saver = LashCheckpointSaver(open_cache())
    await graphs.chat().compile(checkpointer=saver).ainvoke(says("a"), thread("thread"))
    graph = graphs.asking()
    deleted = asyncio.Event()

    async def delete(state: graphs.State) -> graphs.State:
        await LashCheckpointSaver(open_cache()).adelete_thread("thread")
        deleted.set()
        return {"answer": "x"}

    graph.add_node("delete", delete)
    graph.add_edge("echo", "delete")
    with pytest.raises(CheckpointConflict):
        await graph.compile(checkpointer=saver).ainvoke(says("b"), thread("thread"), durability="sync")
    assert deleted.is_set()
    assert await LashCheckpointSaver(open_cache()).aget_tuple(thread("thread")) is None
    state = await graphs.chat().compile(checkpointer=saver).ainvoke(says("new"), thread("thread"))
    assert shown(state)["messages"] == ["new", "echo new"]


@pytest.mark.slow
def test_other_processes_continue_interrupts_and_turns(url):
    assert graphs.run_elsewhere(url, "asking", "thread", ["hi"])["next"] == ["approve"]
    done = graphs.run_elsewhere(url, "asking", "thread", {"resume": "yes"})
    assert done == {"messages": ["hi", "echo hi"], "seen": ["echo hi", "approved yes"], "answer": "yes", "next": []}
    assert graphs.run_elsewhere(url, "nested", "other", ["hi"])["next"] == ["asking"]
    assert graphs.run_elsewhere(url, "nested", "other", {"resume": "yes"})["answer"] == "yes"
