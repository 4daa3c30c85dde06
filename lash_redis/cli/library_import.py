"""`lash-redis import --from LIBRARY`: choose the module that reads the store of another library."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from lash_redis.cli import adk_import, langgraph_import, redis_import
from lash_redis.cli.output import USAGE, CommandError
from lash_redis.models import ImportReport


class OtherStore(StrEnum):
    """A store of another library."""

    REDIS_SESSION = "redis-session"
    """`RedisSession` of the OpenAI Agents SDK: the URL of its Redis."""
    LANGCHAIN = "langchain"
    """`RedisChatMessageHistory` of LangChain: the URL of its Redis."""
    LANGGRAPH = "langgraph"
    """A checkpointer of LangGraph: an SQLite file, or the URL of a Postgres or a Redis."""
    ADK = "adk"
    """A session service of Google ADK with a database: its URL, or an SQLite file."""


async def import_from(
    store: OtherStore,
    source: str,
    url: str,
    namespace: str,
    *,
    prefix: str | None = None,
    threads: Sequence[str] | None = None,
    ttl: float | None = None,
) -> ImportReport:
    """Store the sessions of another library's store, and compare both sides.

    Raises:
        CommandError: the source cannot be read or has no sessions, or an option does not belong to it.
        BackendError, OutcomeUnknown: the target failed; run the import again.
    """
    is_redis = source.partition("://")[0] in ("redis", "rediss", "unix")
    if threads and store is not OtherStore.LANGGRAPH:
        raise CommandError(USAGE, "--thread needs --from langgraph")
    if prefix is not None and not is_redis:
        raise CommandError(USAGE, "--prefix needs a SOURCE that is a Redis")
    match store:
        case OtherStore.REDIS_SESSION:
            histories = redis_import.redis_session(prefix)
        case OtherStore.LANGCHAIN:
            histories = redis_import.langchain(prefix)
        case OtherStore.ADK:
            return await adk_import.import_database(url, namespace, source, ttl)
        case OtherStore.LANGGRAPH:
            saver = _saver_of(source, prefix, is_redis=is_redis)
            return await langgraph_import.import_threads(url, namespace, saver, threads or None, ttl)
    return await redis_import.import_histories(url, namespace, histories, source, ttl)


def _saver_of(source: str, prefix: str | None, *, is_redis: bool) -> langgraph_import.Source:
    if is_redis:
        return langgraph_import.redis_saver(source, prefix)
    if source.partition("://")[0] in ("postgres", "postgresql"):
        return langgraph_import.postgres(source)
    return langgraph_import.sqlite(Path(source))
