"""`lash-redis tail`: the last messages of a session, then each one as it is committed; or the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from rich.console import Console

from lash_redis.cli.connection import opened
from lash_redis.cli.graph_sessions import require_no_documents
from lash_redis.cli.messages import message_lines, message_text_of, tool_names
from lash_redis.cli.output import UNFIT, CommandError, no_session, plain
from lash_redis.errors import SessionDeleted, SessionGone, StreamFailed, StreamGap, StreamGone
from lash_redis.models import FullGraph, PersistedSessionRead
from lash_redis.session.store import RedisSessionStore

Report = Callable[[dict[str, Any]], None]


async def tail(url: str, namespace: str, session_id: str, last: int, report: Report) -> None:
    """Call `report` with the last messages of the active path, then with each new one, until the session ends.

    A message has the fields of `message_text_of`, the id of its node's parent, the revision at which it was read, and
    `branches_off`: whether it does not follow the message reported before it. A message is reported once, at the first
    revision whose active path has it.

    Raises:
        CommandError: the session does not exist, has documents, was deleted, or is gone.
        Corrupt, SessionEvicted, BackendError: as of `RedisSessionStore.watch`.
    """
    async with opened(url, namespace) as cache:
        store = cache.session(session_id)
        read = await store.load_session(FullGraph())
        if read is None:
            await require_no_documents(cache, session_id)
            if await store.load_session_meta() is None:
                raise no_session(session_id, namespace)
        try:
            await _follow(store, read, last, _Reported(report))
        except SessionDeleted as error:
            raise CommandError(UNFIT, f"session {session_id!r} was deleted") from error
        except SessionGone as error:
            raise CommandError(
                UNFIT, f"session {session_id!r} is gone: it expired, was evicted, or was lost in a failover"
            ) from error


async def tail_stream(url: str, namespace: str, session_id: str, generation_id: str, report: Report) -> None:
    """Call `report` with each event of a stream, first with those that are stored, until the stream ends.

    Raises:
        CommandError: the generation has no stream, or its producer failed or was lost.
        SessionDeleted, Corrupt, SessionEvicted, BackendError: as of `RedisSessionStore.follow`.
    """
    async with opened(url, namespace) as cache:
        store = cache.session(session_id)
        after = None
        while True:
            try:
                async for event in store.follow(generation_id, after):
                    report(event.to_json())
            except StreamGap as gap:
                after = gap.oldest
                continue
            except (StreamGone, StreamFailed) as error:
                raise CommandError(UNFIT, str(error)) from error
            return


async def _follow(store: RedisSessionStore, read: PersistedSessionRead | None, last: int, reported: _Reported) -> None:
    if read is not None:
        reported.advance(read, last)
    async with aclosing(store.watch(since=read or 0)) as revisions:
        async for _ in revisions:
            newer = await (store.load_session(FullGraph()) if read is None else store.refresh(read))
            if newer is not None:  # otherwise the session has ended, and the watch raises the reason
                read = newer
                reported.advance(read)


class _Reported:
    """What was reported: the nodes, the last of them, and the tools that they call."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: set[str] = set()
        self._leaf: str | None = None
        self._names: dict[str, str] = {}

    def advance(self, read: PersistedSessionRead, last: int | None = None) -> None:
        """Report the messages of the active path that are new; with `last` only so many of them."""
        path = read.graph.active_path()
        above = dict(zip((node.node_id for node in path), (None, *(node.node_id for node in path)), strict=False))
        fresh = [node for node in path if node.node_id not in self._seen]
        self._names |= tool_names(fresh)
        messages: list[dict[str, Any]] = []
        branches_off = False
        for node in fresh:
            branches_off |= above[node.node_id] != self._leaf
            self._leaf = node.node_id
            self._seen.add(node.node_id)
            text = message_text_of(node, self._names)
            if text is not None:
                place = {"parent_node_id": node.parent_node_id, "head_revision": read.head_revision}
                messages.append({**text, **place, "branches_off": branches_off})
                branches_off = False
        for message in messages if last is None else messages[max(0, len(messages) - last) :]:
            self._report(message)


def print_message(message: dict[str, Any], screen: Console) -> None:
    """Print a message as `show` does, after a line that names its parent if it branches off."""
    if message["branches_off"]:
        above = message["parent_node_id"]
        place = "at a new root" if above is None else f"after {above}"
        screen.print(plain(f"── the conversation continues {place} ──", "dim"), soft_wrap=True)
        screen.print()
    screen.print(message_lines(message))


def print_event(event: dict[str, Any], screen: Console) -> None:
    """Print the data of an event as one line of JSON."""
    screen.print(plain(json.dumps(event["data"], ensure_ascii=False)), soft_wrap=True)
