"""Two workers run one thread at once: which acknowledged turns does each checkpointer of LangGraph lose?

A user sends a second message while the first is being answered. Both workers load the thread, then both answer. A turn
is acknowledged if its run ends without an error. It is lost if the latest state of the thread lacks its message. A run
that is refused runs again. It needs the packages of `peers-requirements.txt`:

    .venv-peers/bin/python -m bench.langgraph_writers [--threads 50] [--postgres URL] [--redis-stack URL]
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import Any

from bench.langgraph_savers import AIMessage, Peer, State, add_options, graph_of, peers, place, says
from lash_redis.integrations.langgraph import CheckpointConflict


@dataclass(slots=True)
class Outcome:
    """What became of the turns of one saver."""

    acknowledged: int = 0
    lost: int = 0
    refused: int = 0
    kept_after_retry: int = 0


async def two_writers(peer: Peer, threads: int) -> Outcome:
    workers, outcome = [await peer.open() for _ in range(2)], Outcome()
    for number in range(threads):
        thread = place(f"writers-{number}")
        await graph_of(workers[0]).ainvoke(says("hello"), thread)
        both = asyncio.Barrier(2)

        async def answer(state: State, both: asyncio.Barrier = both) -> Any:
            async with asyncio.timeout(5):
                await both.wait()  # both workers have loaded the thread
            return {"messages": [AIMessage(f"answer to {state['messages'][-1].content}")]}

        texts = ("first", "second")
        runs = [graph_of(saver, answer).ainvoke(says(text), thread) for saver, text in zip(workers, texts, strict=True)]
        ended = await asyncio.gather(*runs, return_exceptions=True)
        for each in ended:
            if isinstance(each, BaseException) and not isinstance(each, CheckpointConflict):
                raise each
        acknowledged = {text for text, each in zip(texts, ended, strict=True) if not isinstance(each, BaseException)}
        stored = await stored_texts(workers[0], thread)
        outcome.acknowledged += len(acknowledged)
        outcome.lost += len(acknowledged - stored)
        outcome.refused += len(texts) - len(acknowledged)
        for text in set(texts) - acknowledged:
            await graph_of(workers[1]).ainvoke(says(text), thread)
        outcome.kept_after_retry += len(set(texts) & await stored_texts(workers[0], thread))
    return outcome


async def stored_texts(saver: Any, thread: Any) -> set[str]:
    state = await graph_of(saver).aget_state(thread)
    return {str(message.content) for message in state.values["messages"]}


async def compare(threads: int, postgres: str | None, redis_stack: str | None) -> None:
    async with peers(postgres, redis_stack) as (found, missing):
        for each in missing:
            print(each)
        print("| saver | turns sent | acknowledged | of these lost | refused | kept, the refused ones run again |")
        print("|---" * 6 + "|")
        for peer in found:
            made = await two_writers(peer, threads)
            cells = (2 * threads, made.acknowledged, made.lost, made.refused, made.kept_after_retry)
            print("| " + " | ".join([peer.name, *map(str, cells)]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=50)
    add_options(parser)
    args = parser.parse_args()
    asyncio.run(compare(args.threads, args.postgres, args.redis_stack))


if __name__ == "__main__":
    main()
