"""The check of commands that need a session with a graph of messages."""

from __future__ import annotations

from lash_redis.cache import SessionCache
from lash_redis.cli.output import UNFIT, CommandError


async def require_no_documents(cache: SessionCache, session_id: str) -> None:
    """Refuse a session that has documents instead of a graph. One round trip.

    Raises:
        CommandError: it has documents.
    """
    if (await cache.documents(session_id).read([])).revision:
        raise CommandError(
            UNFIT, f"session {session_id!r} has documents, such as a thread of LangGraph, and no graph of messages"
        )
