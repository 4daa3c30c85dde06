"""`lash-redis import --from adk`: store the sessions and states that Google's ADK keeps in a database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lash_redis.cli.bar import progress_bar
from lash_redis.cli.connection import opened
from lash_redis.cli.output import UNFIT, USAGE, CommandError
from lash_redis.cli.sqlite_file import sqlite_rows
from lash_redis.models import ImportReport
from lash_redis.models.import_counts import ImportCounts

APPS = "SELECT app_name FROM sessions UNION SELECT app_name FROM app_states UNION SELECT app_name FROM user_states"
APP_STATES = "SELECT app_name, state FROM app_states"
USERS = "SELECT app_name, user_id FROM user_states"

Query = Callable[[str], Awaitable[Sequence[Sequence[Any]]]]
"""Returns the rows of a query to the database."""


async def import_database(url: str, namespace: str, source: str, ttl: float | None) -> ImportReport:
    """Store the sessions and states of all apps. `source` is a URL that ADK takes, or the path of an SQLite file.

    Raises:
        CommandError: the database cannot be read, or is not one of ADK.
        BackendError, OutcomeUnknown: the target failed; run the import again.
    """
    try:
        from lash_redis.integrations.google_adk import import_sessions
    except ModuleNotFoundError as error:
        raise CommandError(USAGE, "--from adk needs Google's ADK: pip install 'lash-redis[google-adk]'") from error
    counts = ImportCounts()
    async with opened(url, namespace, ttl=ttl) as cache, _opened_database(source) as (service, query):
        apps = [row[0] for row in await query(APPS)]
        if not apps:
            raise CommandError(UNFIT, "the source has no sessions and no states")
        states = {app: json.loads(state) if isinstance(state, str) else state for app, state in await query(APP_STATES)}
        users = await query(USERS)
        with progress_bar() as bar:
            for app in sorted(apps):
                bar.start(app, None)
                user_ids = [user for each, user in users if each == app]
                counts.include(
                    await import_sessions(
                        service, cache, app, user_ids=user_ids, app_state=states.get(app, {}), progress=bar.reach
                    )
                )
    return counts.report()


@asynccontextmanager
async def _opened_database(source: str) -> AsyncIterator[tuple[Any, Query]]:
    """Open a database by the service of ADK that has written it.

    Raises:
        CommandError: it cannot be opened or read, or is not one of ADK.
    """
    path = _path_of(source)
    if path is not None and _is_plain_sqlite(path):
        from google.adk.sessions.sqlite_session_service import SqliteSessionService

        async def rows(text: str) -> Sequence[Sequence[Any]]:
            return await asyncio.to_thread(sqlite_rows, path, text)

        yield SqliteSessionService(str(path)), rows
        return
    try:
        from google.adk.sessions import DatabaseSessionService
        from sqlalchemy import exc, inspect, text
    except ImportError as error:
        raise CommandError(USAGE, "this source needs SQLAlchemy: pip install 'google-adk[db]'") from error
    try:
        service = DatabaseSessionService(source if path is None else f"sqlite+aiosqlite:///{path}")
    except ValueError as error:
        raise CommandError(USAGE, f"the source's URL is invalid: {error}") from error

    async def query(sql: str) -> Sequence[Sequence[Any]]:
        async with service.db_engine.connect() as connection:
            return (await connection.execute(text(sql))).all()

    async with service:
        try:
            async with service.db_engine.connect() as connection:
                tables = await connection.run_sync(lambda each: inspect(each).get_table_names())
            if not {"sessions", "events", "app_states", "user_states"} <= set(tables):
                raise CommandError(UNFIT, "the source is no database of ADK: it has no sessions")
            yield service, query
        except (exc.SQLAlchemyError, OSError) as error:
            raise CommandError(USAGE, f"the source cannot be read: {error}") from error


def _path_of(source: str) -> Path | None:
    """Return the path of an SQLite file; None if the source is the URL of another database."""
    scheme, found, rest = source.partition("://")
    if not found:
        return Path(source)
    return Path(rest.partition("?")[0].removeprefix("/")) if scheme in ("sqlite", "sqlite+aiosqlite") else None


def _is_plain_sqlite(path: Path) -> bool:
    """Whether a file was written by ADK's `SqliteSessionService`, and not by its `DatabaseSessionService`.

    Raises:
        CommandError: it cannot be read, or is not one of ADK. The services would create it and its tables.
    """
    tables = {name for (name,) in sqlite_rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"sessions", "events", "app_states", "user_states"} <= tables:
        raise CommandError(UNFIT, f"{path} is no database of ADK: it has no sessions")
    types = {kind for name, kind in sqlite_rows(path, "SELECT name, type FROM pragma_table_info('sessions')")}
    return "REAL" in types
