"""Read a file of SQLite without changing it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from lash_redis.cli.output import USAGE, CommandError


def sqlite_rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query.

    Raises:
        CommandError: the file cannot be read, or is no database.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(sql).fetchall()
    except sqlite3.Error as error:
        raise CommandError(USAGE, f"{path} cannot be read: {error}") from error
