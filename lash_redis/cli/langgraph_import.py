"""`lash-redis import --from langgraph`: store the threads of LangGraph's own savers.

The package of a saver is imported only if the source needs it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from lash_redis.cli.bar import progress_bar
from lash_redis.cli.connection import opened
from lash_redis.cli.output import UNFIT, USAGE, CommandError
from lash_redis.cli.redis_import import keys_with_prefix
from lash_redis.cli.sqlite_file import sqlite_rows
from lash_redis.models import ImportReport

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

CHUNK = 500
"""Number of keys whose thread ids are read in one round trip."""


@dataclass(frozen=True, slots=True)
class Source:
    """A saver of LangGraph from which threads are imported."""

    open: Callable[[], AbstractAsyncContextManager[BaseCheckpointSaver[Any]]]
    failures: tuple[type[Exception], ...]
    """What its methods raise if it cannot be read."""
    thread_ids: Callable[[BaseCheckpointSaver[Any]], Awaitable[list[str]]]


def sqlite(path: Path) -> Source:
    """The file of `SqliteSaver` or `AsyncSqliteSaver`."""
    try:
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        from lash_redis.integrations.langgraph import VerbatimSerializer
        from lash_redis.integrations.langgraph.importing import thread_ids_of
    except ModuleNotFoundError as error:
        raise _missing("langgraph-checkpoint-sqlite") from error
    if not path.is_file():  # SQLite would create it
        raise CommandError(USAGE, f"{path}: no such file")
    # The saver would create its tables in the database of another program.
    tables = {name for (name,) in sqlite_rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"checkpoints", "writes"} <= tables:
        raise CommandError(UNFIT, f"{path} is no database of a LangGraph saver: it has no checkpoints")

    @asynccontextmanager
    async def open_saver() -> AsyncIterator[BaseCheckpointSaver[Any]]:
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            saver.serde = VerbatimSerializer()
            yield saver

    return Source(open_saver, (sqlite3.Error,), thread_ids_of)


def postgres(url: str) -> Source:
    """The database of `PostgresSaver` or `AsyncPostgresSaver`."""
    try:
        import psycopg
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        from lash_redis.integrations.langgraph import VerbatimSerializer
        from lash_redis.integrations.langgraph.importing import thread_ids_of
    except ImportError as error:  # psycopg without its library raises a bare ImportError
        raise _missing("langgraph-checkpoint-postgres 'psycopg[binary]'") from error
    return Source(
        lambda: AsyncPostgresSaver.from_conn_string(url, serde=VerbatimSerializer()), (psycopg.Error,), thread_ids_of
    )


def redis_saver(url: str, prefix: str | None) -> Source:
    """The server of LangGraph's `RedisSaver` or `AsyncRedisSaver`. `prefix` is its `checkpoint_prefix`."""
    try:
        from langgraph.checkpoint.redis.aio import AsyncRedisSaver
        from langgraph.checkpoint.redis.base import CHECKPOINT_PREFIX
        from redisvl.exceptions import RedisVLError
    except ModuleNotFoundError as error:
        raise _missing("langgraph-checkpoint-redis") from error

    base = CHECKPOINT_PREFIX if prefix is None else prefix

    @asynccontextmanager
    async def open_saver() -> AsyncIterator[BaseCheckpointSaver[Any]]:
        names = {"checkpoint_prefix": base, "checkpoint_write_prefix": f"{base}_write"}
        async with AsyncRedisSaver.from_conn_string(url, **names) as saver:
            yield saver

    async def thread_ids(_: BaseCheckpointSaver[Any]) -> list[str]:
        """Return the ids in the documents, because `alist` of that saver returns at most 10,000 checkpoints."""
        found: dict[str, None] = {}
        async with redis.Redis.from_url(url) as client:
            keys = [key async for key in keys_with_prefix(client, f"{base}:", "ReJSON-RL")]
            for at in range(0, len(keys), CHUNK):
                pipeline = client.pipeline(transaction=False)
                for key in keys[at : at + CHUNK]:
                    pipeline.execute_command("JSON.GET", key, "$.thread_id")
                for reply in await pipeline.execute():
                    found |= dict.fromkeys([] if reply is None else json.loads(reply))  # none in another's document
        return list(found)

    return Source(open_saver, (RedisError, RedisVLError), thread_ids)


def _missing(packages: str) -> CommandError:
    return CommandError(USAGE, f"this source needs LangGraph's saver: pip install 'lash-redis[langgraph]' {packages}")


async def import_threads(
    url: str, namespace: str, source: Source, thread_ids: Sequence[str] | None, ttl: float | None
) -> ImportReport:
    """Store threads of the source as threads with the same ids; all threads without `thread_ids`.

    Raises:
        CommandError: the source cannot be read, or has no threads.
        BackendError, OutcomeUnknown: the target failed; run the import again.
    """
    from lash_redis.integrations.langgraph import LashCheckpointSaver, VerbatimSerializer, import_threads

    try:
        async with source.open() as saver, opened(url, namespace, ttl=ttl) as cache:
            wanted = await source.thread_ids(saver) if thread_ids is None else thread_ids
            if not wanted:
                raise CommandError(UNFIT, "the source has no threads; check its address and --prefix")
            target = LashCheckpointSaver(cache, serde=VerbatimSerializer())
            with progress_bar() as bar:
                bar.start("threads", len(wanted))
                return await import_threads(saver, target, wanted, advance=bar.advance)
    except source.failures as error:
        raise CommandError(USAGE, f"the source cannot be read: {error}") from error
