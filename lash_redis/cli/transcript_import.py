"""`lash-redis import --openai`: store chat transcripts as sessions, each in one commit of all its messages."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from lash_redis.cache import SessionCache
from lash_redis.cli.bar import progress_bar
from lash_redis.cli.connection import opened
from lash_redis.cli.conversations import Conversation, conversations_in, message_of, record_of
from lash_redis.cli.input import Input, InputError
from lash_redis.errors import BackendError, CommitIdReused, HeadRevisionConflict, OutcomeUnknown, StoreError
from lash_redis.models import (
    Append,
    EventPayload,
    FullGraph,
    ImportReport,
    PersistedSessionConfig,
    RuntimeCommit,
    SessionNodeRecord,
)
from lash_redis.models.chat_messages import canonical_json
from lash_redis.models.import_counts import ImportCounts
from lash_redis.session.store import RedisSessionStore

WINDOW = 16
"""Maximum number of sessions in flight."""
ATTEMPTS = 8
"""Maximum number of times that a commit is sent because its reply is lost."""


async def import_transcripts(url: str, namespace: str, paths: Sequence[Path], ttl: float | None) -> ImportReport:
    """Store each conversation as a session with the conversation's id.

    A session that has the same messages already is left as it is, so an interrupted import can be run again.

    Raises:
        InputError: a file cannot be read, or a line is invalid; the conversations before it are stored.
        BackendError, OutcomeUnknown: the server failed; run the import again.
    """
    async with opened(url, namespace, ttl=ttl) as cache:
        return await _Import(cache).run(paths)


class _Import:
    """The progress of an import."""

    def __init__(self, cache: SessionCache) -> None:
        self._cache = cache
        self._free = asyncio.Semaphore(WINDOW)
        self._counts = ImportCounts()

    async def run(self, paths: Sequence[Path]) -> ImportReport:
        broken: InputError | None = None
        with progress_bar("bytes") as bar:
            try:
                async with asyncio.TaskGroup() as tasks:
                    try:
                        for path in paths:
                            source = Input(path, bar.reach)
                            bar.start("reading", source.size)
                            for conversation in conversations_in(path, source.lines()):
                                await self._free.acquire()
                                tasks.create_task(self._one(conversation))
                                if source.may_wait:
                                    await self._settled()
                    except InputError as error:
                        broken = error  # raised below, once the sessions in flight are stored
            except* (BackendError, OutcomeUnknown) as failures:
                raise failures.exceptions[0] from None
        if broken is not None:
            raise broken
        return self._counts.report()

    async def _settled(self) -> None:
        """Wait for all sessions in flight: a blocking read of the next line would stop the event loop."""
        for _ in range(WINDOW):
            await self._free.acquire()
        for _ in range(WINDOW):
            self._free.release()

    async def _one(self, conversation: Conversation) -> None:
        try:
            is_present = await _store(self._cache.session(conversation.id), conversation)
        except (BackendError, OutcomeUnknown):
            raise
        except (HeadRevisionConflict, CommitIdReused):
            self._counts.fail(conversation.id, "the session exists already, with other messages")
        except StoreError as error:
            self._counts.fail(conversation.id, f"{type(error).__name__}: {error}")
        else:
            self._counts.add(is_present=is_present)
        finally:
            self._free.release()


async def _store(store: RedisSessionStore, conversation: Conversation) -> bool:
    """Store a conversation; return whether it was stored already.

    Raises:
        HeadRevisionConflict, CommitIdReused: the session exists with other messages; it is left as it is.
    """
    commit = commit_of(conversation)
    try:
        return await _committed(store, commit)
    except (HeadRevisionConflict, CommitIdReused):
        # If the same messages were imported at another time, their nodes have other timestamps.
        if not await _holds(store, conversation):
            raise
        return True


async def _committed(store: RedisSessionStore, commit: RuntimeCommit) -> bool:
    """Send a commit until its outcome is known; return whether it was committed before."""
    for attempt in range(ATTEMPTS):
        try:
            result = await store.commit_runtime_state(commit)
        except OutcomeUnknown:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return result.replayed and attempt == 0
    raise AssertionError("unreachable: the last attempt returns or raises")


def commit_of(conversation: Conversation) -> RuntimeCommit:
    """Return the first commit of a session, with all messages. Its id is a hash of the messages alone."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    nodes = []
    for index, message in enumerate(conversation.messages):
        node_id, given = conversation.node_id(index), message.get("timestamp")
        event = EventPayload({"Conversation": record_of(conversation.format, node_id, message)})
        timestamp = given if isinstance(given, str) else now
        nodes.append(SessionNodeRecord(node_id, conversation.parent_id(index), timestamp, event))
    digest = hashlib.sha256(canonical_json(list(conversation.messages)).encode()).hexdigest()
    return RuntimeCommit(
        conversation.id,
        0,
        config=replace(PersistedSessionConfig(), configured_model=conversation.model),
        graph=Append(nodes, nodes[-1].node_id),
        commit_id=f"import:{digest}",
    )


async def _holds(store: RedisSessionStore, conversation: Conversation) -> bool:
    """Whether the session begins with these messages. It may have later ones, too."""
    read = await store.load_session(FullGraph())
    if read is None or len(read.graph.nodes) < len(conversation.messages):
        return False
    for index, message in enumerate(conversation.messages):
        node = read.graph.nodes[index]
        record = node.message()
        if (node.node_id, node.parent_node_id) != (conversation.node_id(index), conversation.parent_id(index)):
            return False
        if record is None or canonical_json(message_of(conversation.format, record)) != canonical_json(message):
            return False
    return True
