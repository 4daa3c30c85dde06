"""The lines of an export as JSON values, and a store of blobs on disk for one transfer."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any, Final

from lash_redis.models import SessionHead, SessionNodeRecord
from lash_redis.protocol.steps import Steps
from lash_redis.transfer.json_steps import dump, dump_in_steps

FORMAT: Final = 1
"""The version of the format; the header names it."""
WINDOW: Final = 16
"""Maximum number of sessions in flight."""

Line = dict[str, Any]
Progress = Callable[[int], None]


def encode_line(line: Line) -> str:
    """Encode a line as JSON without its newline."""
    return dump(line)


def encode_head(head: SessionHead, path: str | None = None) -> Steps[Any]:
    """Encode a head as `head.to_json` does; each node is a step."""
    encoded = replace(head, graph=replace(head.graph, nodes=())).to_json(path)
    nodes = encoded["graph"]["nodes"] = []
    where = f"{path or 'SessionHead'}.graph.nodes"
    for at, node in enumerate(head.graph.nodes):
        nodes.append(node.to_json(f"{where}[{at}]"))
        yield
    return encoded


def decode_head(value: Any, path: str) -> Steps[SessionHead]:
    """Decode a head as `SessionHead.from_json` does; each node is a step."""
    graph = value.get("graph") if isinstance(value, dict) else None
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    if not isinstance(graph, dict) or not isinstance(nodes, list):
        return SessionHead.from_json(value, path)
    head = SessionHead.from_json({**value, "graph": {**graph, "nodes": []}}, path)
    decoded = []
    for at, node in enumerate(nodes):
        decoded.append(SessionNodeRecord.from_json(node, f"{path}.graph.nodes[{at}]"))
        yield
    return replace(head, graph=replace(head.graph, nodes=tuple(decoded)))


def is_encoding_of(head: SessionHead, value: Any, path: str) -> Steps[bool]:
    """Whether a value, from which the head was decoded, has exactly the fields of the head; each node is a step."""
    graph = value["graph"]
    nodes = graph.get("nodes", [])
    bare = {**value, "graph": {**graph, "nodes": []}}
    if len(nodes) != len(head.graph.nodes):
        return False
    if not (yield from are_equal(replace(head, graph=replace(head.graph, nodes=())).to_json(path), bare)):
        return False
    for node, given in zip(head.graph.nodes, nodes, strict=True):
        if dump(node.to_json(path), is_sorted=True) != dump(given, is_sorted=True):
            return False
        yield
    return True


def are_equal(value: Any, other: Any) -> Steps[bool]:
    """Whether two JSON values are equal, in any order of their keys; in steps."""
    text = yield from dump_in_steps(value, is_sorted=True)
    return text == (yield from dump_in_steps(other, is_sorted=True))


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
