"""The checkpointers of LangGraph that the benchmarks compare, and a graph of one node that they serve.

The scripts start a Valkey of their own. A PostgreSQL and a Redis with the modules search and JSON are used if their
URLs are given, and are reported as missing otherwise. Both must be empty: the benchmarks write to them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio as redis

from bench.measure import Wire, wire_to
from lash_redis import connect
from lash_redis.embedded import EmbeddedServer

try:
    import aiosqlite
    from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
    from langgraph.checkpoint.base.id import uuid6
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph import START, StateGraph
    from langgraph.graph.message import add_messages

    from lash_redis.integrations.langgraph import LashCheckpointSaver
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}; run this by .venv-peers/bin/python, which `make bench-peers` installs")

__all__ = [
    "IN_MEMORY",
    "OURS",
    "AIMessage",
    "HumanMessage",
    "Peer",
    "State",
    "add_options",
    "graph_of",
    "peers",
    "place",
    "says",
    "uuid6",
]

OURS = "LashCheckpointSaver"
IN_MEMORY = "InMemorySaver"


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    tools: dict[str, Any]


def graph_of(saver: Any, node: Callable[[State], Any] = lambda state: {"messages": [AIMessage("a" * 500)]}) -> Any:
    graph = StateGraph(State)
    graph.add_node("model", node)
    graph.add_edge(START, "model")
    return graph.compile(checkpointer=saver)


def place(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def says(text: str = "h" * 500) -> Any:
    return {"messages": [HumanMessage(text)]}


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of saver."""

    name: str
    open: Callable[[], Awaitable[Any]]
    """Opens one more saver over the same data, as another worker does."""
    stored: Callable[[], Awaitable[int]] | None = None
    """Returns the bytes of memory or disk that the data take; None if that is unknown."""
    wired: tuple[Callable[[], Awaitable[Any]], Wire] | None = None
    """Opens a saver through a relay, which counts; None if there is no server."""
    cold: Callable[[], Any] | None = None
    """Makes a saver that has seen nothing, over an open connection; None if a saver keeps nothing."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--postgres", metavar="URL", help="an empty database, for LangGraph's Postgres saver")
    parser.add_argument("--redis-stack", metavar="URL", help="an empty Redis with search and JSON, for its Redis saver")


@asynccontextmanager
async def peers(postgres: str | None, redis_stack: str | None) -> AsyncIterator[tuple[list[Peer], list[str]]]:
    """Yield the savers, `InMemorySaver` first, this package's second, and what is missing."""
    missing: list[str] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(EmbeddedServer(port=0))
        memory = InMemorySaver()

        async def same() -> Any:
            return memory

        found = [Peer(IN_MEMORY, same), await _ours(stack, server.url), _sqlite(stack, folder)]
        if postgres is None:
            missing.append("AsyncPostgresSaver: not measured; pass --postgres URL")
        else:
            found.append(await _postgres(stack, postgres))
        if redis_stack is None:
            missing.append("AsyncRedisSaver: not measured; pass --redis-stack URL")
        else:
            found.append(await _redis(stack, redis_stack))
        yield found, missing


async def _ours(stack: AsyncExitStack, url: str) -> Peer:
    admin = await stack.enter_async_context(redis.from_url(url))
    through, wire = await stack.enter_async_context(wire_to(url))

    def opener(to: str) -> Callable[[], Awaitable[Any]]:
        async def open_saver() -> Any:
            return LashCheckpointSaver(await stack.enter_async_context(connect(to)))

        return open_saver

    async def stored() -> int:
        return sum([await admin.memory_usage(key, samples=0) for key in await admin.keys("lash2:*")])

    cache = await stack.enter_async_context(connect(url))
    return Peer(OURS, opener(url), stored, (opener(through), wire), lambda: LashCheckpointSaver(cache))


def _sqlite(stack: AsyncExitStack, folder: Path) -> Peer:
    async def open_saver() -> Any:
        return await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(folder / "threads.db")))

    async def stored() -> int:
        async with aiosqlite.connect(folder / "threads.db") as admin:
            await admin.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # otherwise a log that is used again hides writes
        return sum(entry.stat().st_size for entry in os.scandir(folder))

    return Peer("AsyncSqliteSaver", open_saver, stored)


async def _postgres(stack: AsyncExitStack, url: str) -> Peer:
    import psycopg
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    admin = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
    through, wire = await stack.enter_async_context(wire_to(url))
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()

    def opener(to: str) -> Callable[[], Awaitable[Any]]:
        async def open_saver() -> Any:
            return await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(to))

        return open_saver

    async def stored() -> int:
        await admin.execute("CHECKPOINT")
        row = await (await admin.execute("SELECT pg_database_size(current_database())")).fetchone()
        assert row is not None
        return int(row[0])

    return Peer("AsyncPostgresSaver", opener(url), stored, (opener(_moved(url, through)), wire))


async def _redis(stack: AsyncExitStack, url: str) -> Peer:
    from langgraph.checkpoint.redis.aio import AsyncRedisSaver

    admin = await stack.enter_async_context(redis.from_url(url))
    through, wire = await stack.enter_async_context(wire_to(url))

    def opener(to: str) -> Callable[[], Awaitable[Any]]:
        async def open_saver() -> Any:
            saver = await stack.enter_async_context(AsyncRedisSaver.from_conn_string(to))
            await saver.asetup()
            return saver

        return open_saver

    async def stored() -> int:
        return int((await admin.info("memory"))["used_memory"])

    return Peer("AsyncRedisSaver", opener(url), stored, (opener(through), wire))


def _moved(url: str, to: str) -> str:
    """Return the URL with the host and port of another."""
    parts = urlsplit(url)
    account, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account}@{urlsplit(to).netloc}" if account else urlsplit(to).netloc))
