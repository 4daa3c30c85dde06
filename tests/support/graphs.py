"""Graphs with a scripted model, and a process that runs them: `python -m tests.support.graphs URL GRAPH THREAD INPUT`.

INPUT is JSON: a list of texts of the user, or `{"resume": value}`. The process prints the state as JSON.
"""

from __future__ import annotations

import asyncio
import json
import operator
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt

import lash_redis
from lash_redis.integrations.langgraph import LashCheckpointSaver


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    seen: Annotated[list[str], operator.add]
    answer: str


def echo(state: State) -> State:
    last = state["messages"][-1].content
    return {"messages": [AIMessage(f"echo {last}")], "seen": [f"echo {last}"]}


def approve(state: State) -> State:
    answer = interrupt({"question": "Continue?"})
    return {"answer": answer, "seen": [f"approved {answer}"]}


def chat() -> StateGraph[State]:
    """One turn: the model answers."""
    graph = StateGraph(State)
    graph.add_node("echo", echo)
    graph.add_edge(START, "echo")
    graph.add_edge("echo", END)
    return graph


def asking() -> StateGraph[State]:
    """The model answers, then a person is asked."""
    graph = StateGraph(State)
    graph.add_node("echo", echo)
    graph.add_node("approve", approve)
    graph.add_edge(START, "echo")
    graph.add_edge("echo", "approve")
    graph.add_edge("approve", END)
    return graph


def parallel() -> StateGraph[State]:
    """Ten branches at once, which one node joins."""
    graph = StateGraph(State)
    for number in range(5):
        graph.add_node(f"branch{number}", lambda state, number=number: {"seen": [f"branch {number}"]})
        graph.add_edge(START, f"branch{number}")
        graph.add_edge(f"branch{number}", "join")
    graph.add_node("sent", lambda number: {"seen": [f"sent {number}"]})
    graph.add_conditional_edges(START, lambda state: [Send("sent", number) for number in range(5)])
    graph.add_edge("sent", "join")
    graph.add_node("join", lambda state: {"seen": ["join"], "answer": str(len(state["seen"]))})
    graph.add_edge("join", END)
    return graph


def nested() -> StateGraph[State]:
    """A subgraph in which a person is asked, and one that keeps its own state between calls."""
    keeping = chat().compile(checkpointer=True)
    graph = StateGraph(State)
    graph.add_node("first", chat().compile())
    graph.add_node("asking", asking().compile())
    graph.add_node("keeping", keeping)
    graph.add_edge(START, "first")
    graph.add_edge("first", "keeping")
    graph.add_edge("keeping", "asking")
    graph.add_edge("asking", END)
    return graph


def joined(state: list[Any] | None, writes: Sequence[list[Any]]) -> list[Any]:
    return [*(state or []), *(item for write in writes for item in write)]


class Deltas(TypedDict, total=False):
    items: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=4)]
    rare: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=1000)]
    turn: int


def deltas() -> StateGraph[Deltas]:
    """Two parallel nodes write delta channels, of which one has snapshots."""
    graph = StateGraph(Deltas)
    for name in ("left", "right"):
        graph.add_node(name, lambda state, name=name: {"items": [f"{name}{state['turn']}"], "rare": [name]})
        graph.add_edge(START, name)
        graph.add_edge(name, END)
    return graph


GRAPHS = {"chat": chat, "asking": asking, "parallel": parallel, "nested": nested}


def thread(thread_id: str, checkpoint_id: str | None = None) -> Any:
    return {"configurable": {"thread_id": thread_id, **({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}}


def shown(state: Any) -> dict[str, Any]:
    """The state as JSON."""
    messages = [message.content for message in state.get("messages", ())]
    return {"messages": messages, "seen": state.get("seen", []), "answer": state.get("answer")}


def given(data: Any) -> Any:
    if isinstance(data, dict):
        return Command(resume=data["resume"])
    return {"messages": [HumanMessage(text) for text in data]}


async def run(url: str, graph: str, thread_id: str, data: Any) -> dict[str, Any]:
    async with lash_redis.connect(url) as cache:
        compiled = GRAPHS[graph]().compile(checkpointer=LashCheckpointSaver(cache))
        await compiled.ainvoke(given(data), thread(thread_id))
        state = await compiled.aget_state(thread(thread_id))
    return {**shown(state.values), "next": list(state.next)}


def run_elsewhere(url: str, graph: str, thread_id: str, data: Any) -> dict[str, Any]:
    """`run` in another process."""
    command = [sys.executable, "-m", "tests.support.graphs", url, graph, thread_id, json.dumps(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(*sys.argv[1:4], json.loads(sys.argv[4])))))
