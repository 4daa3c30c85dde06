"""`lash-redis list`, `watch`, `fork` and `delete`: commands on the sessions of a namespace."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from lash_redis.cli.connection import opened, opened_if_used
from lash_redis.cli.graph_sessions import require_no_documents
from lash_redis.cli.output import UNFIT, CommandError, counted, no_session, one_line, plain, print_table
from lash_redis.errors import SessionExists, SessionGone
from lash_redis.models import DeleteReport, SessionHeadMeta, SessionPickerInfo
from lash_redis.options import KEEP

MAX_PAGE = 10_000
"""Maximum number of sessions on one page, which are in memory together."""
MIN_BEGINNING = 16
"""Minimum width of the column with the first message. If the terminal is narrower, the time of the last commit is
left out."""


# list


@dataclass(frozen=True, slots=True)
class Page:
    """Some sessions, the most recently committed first. `after` is the cursor of the next page, None on the last."""

    sessions: Sequence[SessionPickerInfo]
    after: str | None

    def to_json(self) -> dict[str, Any]:
        return {"ok": True, "sessions": [info.to_json() for info in self.sessions], "next": self.after}


async def load_page(
    url: str, namespace: str, *, limit: int, after: str | None, parent: str | None, owner: str | None
) -> Page:
    """Load one page of the sessions of the namespace, or of one owner in it; an empty page if there are none.

    Raises:
        InvalidRecord: `after` is neither a cursor nor a listed session.
    """
    async with opened(url, namespace) as cache:
        # One session more than shown, to find whether there is another page.
        page = cache.sessions(owner=owner, limit=limit + 1, after=after, parent=parent)
        found = [info async for info in page]
    shown = found[:limit]
    return Page(shown, shown[-1].cursor if len(found) > limit else None)


def print_page(page: Page, namespace: str, screen: Console) -> None:
    if not page.sessions:
        screen.print(plain(f"no sessions on this page of namespace {namespace!r}", "dim"))
        return
    now = time.time()
    optional = {
        "owner": [info.owner or "" for info in page.sessions],
        "title": ["" if info.title == info.session_id else info.title for info in page.sessions],
        "parent": [info.parent_session_id or "" for info in page.sessions],
        "fault": [info.fault or "" for info in page.sessions],
    }
    optional = {name: cells for name, cells in optional.items() if any(cells)}
    committed = [info.last_commit_ms / 1000 for info in page.sessions]
    columns = {
        "session": [info.session_id for info in page.sessions],
        "last commit": [f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M}" for when in committed],
        "": [ago(now - when) for when in committed],
        "rev": [str(info.head_revision) for info in page.sessions],
        "messages": [str(info.user_message_count) for info in page.sessions],
    }
    taken = sum(2 + max(len(name), *map(len, cells)) for name, cells in (columns | optional).items())
    if screen.width - taken < MIN_BEGINNING:
        columns["last commit"] = columns.pop("")
        taken -= 18
    room = min(72, max(MIN_BEGINNING, screen.width - taken))
    columns |= {"begins": [one_line(info.first_user_message, room) for info in page.sessions], **optional}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right" if name in ("rev", "messages") else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(plain, cells))
    print_table(table, screen)
    if page.after is not None:
        screen.print()
        screen.print(plain(f"next page: --after {page.after}", "dim"), soft_wrap=True)


def ago(seconds: float) -> str:
    """Format an age in its largest unit. A negative age is "now", because the server's clock may be ahead."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= (2 * size if unit == "days" else size):
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago" if seconds >= 1 else "now"


# watch


async def watch(url: str, namespace: str, session_id: str, since: int | None, report: Callable[[int], None]) -> None:
    """Call `report` with each new revision of a session, until the session ends. Several commits may be one call.

    Raises:
        CommandError: the session has documents.
        SessionDeleted, SessionGone, Corrupt, BackendError: as of `RedisSessionStore.watch`.
    """
    async with opened(url, namespace) as cache:
        await require_no_documents(cache, session_id)
        async with aclosing(cache.session(session_id).watch(since)) as revisions:
            async for revision in revisions:
                report(revision)


def print_revision(revision: int) -> None:
    sys.stdout.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  revision {revision}\n")
    sys.stdout.flush()


# fork


async def fork(
    url: str, namespace: str, source: str, new_id: str, leaf: str | None, ttl: float | None
) -> dict[str, Any]:
    """Fork a session; return the new one as a document.

    Raises:
        CommandError: `source` does not exist, or `new_id` exists; nothing was written.
        InvalidLeaf, SessionDeleted, OutcomeUnknown: as of `SessionCache.fork`.
    """
    async with opened(url, namespace) as cache:
        try:
            store = await cache.fork(source, new_id, leaf, ttl=KEEP if ttl is None else ttl)
        except SessionGone as error:
            await require_no_documents(cache, source)
            raise no_session(source, namespace) from error
        except SessionExists as error:
            raise CommandError(
                UNFIT, f"session {new_id!r} exists already, at revision {error.actual}; choose another id"
            ) from error
        head = await store.load_head() or SessionHeadMeta(new_id)
    return {
        "ok": True,
        "session_id": new_id,
        "parent_session_id": source,
        "head_revision": head.head_revision,
        "leaf_node_id": head.leaf_node_id,
        "nodes": head.graph_node_count,
    }


def print_fork(document: dict[str, Any], screen: Console) -> None:
    content = f"{counted(document['nodes'], 'node')}, leaf {document['leaf_node_id'] or 'none'}"
    forked = f"{document['session_id']}: forked from {document['parent_session_id']} ({content})"
    screen.print(plain(forked), soft_wrap=True)


# delete


async def delete(
    url: str, namespace: str, session_ids: Sequence[str], screen: Console | None, *, reusable: bool
) -> dict[str, DeleteReport]:
    """Delete sessions one after the other, and print each deletion on `screen`. An error leaves the rest undeleted."""
    reports: dict[str, DeleteReport] = {}
    async with opened_if_used(url, namespace) as cache:
        for session_id in session_ids:
            deleted = DeleteReport() if cache is None else await cache.delete(session_id, reusable=reusable)
            reports[session_id] = deleted
            if screen is not None:
                _print_deletion(session_id, reports[session_id], screen, reusable=reusable)
    return reports


def named(session_ids: Sequence[str]) -> str:
    """Name the sessions that a command is about to delete, on one line."""
    if len(session_ids) == 1:
        return f"session {one_line(plain(session_ids[0]).plain, 60)}"
    return counted(len(session_ids), "session")


def _print_deletion(session_id: str, report: DeleteReport, screen: Console, *, reusable: bool) -> None:
    if not report.existed:
        screen.print(plain(f"{session_id}: session not found", "yellow"), soft_wrap=True)
        return
    deleted = f"{counted(report.node_count, 'node')}, {counted(report.released_blob_count, 'blob')} released"
    cause = "its id" if reusable else "some of its keys were missing, so its id"
    reuse = "" if report.closed else f"; {cause} accepts writes again"
    screen.print(plain(f"{session_id}: deleted ({deleted}{reuse})"), soft_wrap=True)
