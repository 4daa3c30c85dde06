"""The lines of an export as JSON values, and a store of blobs on disk for one transfer."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Final

FORMAT: Final = 1
"""The version of the format; the header names it."""
WINDOW: Final = 16
"""Maximum number of sessions in flight."""

Line = dict[str, Any]
Progress = Callable[[int], None]


def encode_line(line: Line) -> str:
    """Encode a line as JSON without its newline."""
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def canonical(value: Any) -> str:
    """Encode a JSON value so that equal values have equal texts in any order of their keys."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


class BlobSpool:
    """The blobs of one transfer, on disk, so that memory does not grow with the number of sessions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._rows = connection
        self._rows.execute("CREATE TABLE blobs (ref BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[BlobSpool]:
        """Create a spool in a temporary folder, and delete it at the end."""
        with TemporaryDirectory(prefix="lash-redis-") as folder, closing(sqlite3.connect(f"{folder}/blobs")) as rows:
            rows.execute("PRAGMA journal_mode = OFF")
            rows.execute("PRAGMA synchronous = OFF")
            yield cls(rows)

    def add(self, ref: str, data: bytes | None = None) -> bool:
        """Store a blob, or only its ref; return whether the ref is new."""
        row = (bytes.fromhex(ref), data)
        return self._rows.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", row).rowcount == 1

    def get(self, ref: str) -> bytes | None:
        row = self._rows.execute("SELECT data FROM blobs WHERE ref = ?", (bytes.fromhex(ref),)).fetchone()
        return None if row is None else row[0]
