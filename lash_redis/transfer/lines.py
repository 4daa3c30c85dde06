"""The lines of an export as JSON values, and a store of blobs on disk for one transfer."""

from __future__ import annotations

import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, Final

from lash_redis.errors import InvalidRecord
from lash_redis.models import SessionHead, SessionNodeRecord
from lash_redis.protocol.commands.prepared_commit import encode_record
from lash_redis.protocol.steps import Steps
from lash_redis.protocol.stored_nodes import StoredNodes
from lash_redis.transfer.json_steps import JsonTexts, are_equal_in_steps, decoded, dump

FORMAT: Final = 1
"""The version of the format; the header names it."""
NODES: Final = ("head", "graph", "nodes")
"""The path of the nodes in the line of a session."""
DOCUMENTS: Final = ("documents",)
"""The path of the documents in the line of a session."""
WINDOW: Final = 16
"""Maximum number of sessions in flight."""

Line = dict[str, Any]
Progress = Callable[[int], None]


def encode_line(line: Line) -> str:
    """Encode a line without nodes as JSON, without its newline."""
    return dump(line)


def encode_head(head: SessionHead) -> Steps[Any]:
    """Encode a head as `head.to_json` does, with the nodes as `JsonTexts`; each node is a step."""
    encoded = replace(head, graph=replace(head.graph, nodes=())).to_json()
    texts = encoded["graph"]["nodes"] = JsonTexts()
    nodes = head.graph.nodes
    for at in range(len(nodes)):
        node = (nodes.unread(at) if isinstance(nodes, StoredNodes) else None) or nodes[at]
        texts.append(dump(node.to_json(f"SessionHead.graph.nodes[{at}]")))
        yield
    return encoded


def encode_documents(documents: Mapping[bytes, bytes]) -> Steps[JsonTexts]:
    """Encode documents as pairs of name and content in base64, in the order of their names; each pair is a step."""
    pairs = JsonTexts()
    for name in sorted(documents):
        pairs.append(dump([b64encode(name).decode(), b64encode(documents[name]).decode()]))
        yield
    return pairs


def decode_documents(value: Any, path: str) -> Steps[dict[bytes, bytes]]:
    """Decode documents; each is a step.

    Raises:
        InvalidRecord: it is not as an export writes it.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRecord(path, f"expected a list of pairs, got {value!r:.100}")
    documents: dict[bytes, bytes] = {}
    for at, pair in enumerate(decoded(value)):
        yield
        if not isinstance(pair, list) or len(pair) != 2:
            raise InvalidRecord(f"{path}[{at}]", f"expected a name and a content, got {pair!r:.100}")
        name, content = (decode_base64(f"{path}[{at}]", each) for each in pair)
        if not name or name in documents:
            raise InvalidRecord(f"{path}[{at}]", f"expected another name than those before it, got {name!r}")
        documents[name] = content
    return documents


def decode_base64(path: str, value: Any) -> bytes:
    try:
        return b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise InvalidRecord(path, f"is not base64: {error}") from error


@dataclass(frozen=True, slots=True)
class DecodedHead:
    """The head of a line. The nodes of its graph are records, as the store would return them."""

    head: SessionHead
    parents: Mapping[str, str | None]
    """The parent of each node, by id."""


def decode_head(value: Any, path: str) -> Steps[DecodedHead]:
    """Decode a head as `SessionHead.from_json` does; each node is a step.

    Raises:
        InvalidRecord: a field is missing, unknown, or not storable.
    """
    graph = value.get("graph") if isinstance(value, dict) else None
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    if not isinstance(graph, dict) or not isinstance(nodes, list):
        SessionHead.from_json(value, path)
        raise InvalidRecord(f"{path}.graph.nodes", f"expected a list, got {type(nodes).__name__}")
    bare = {**value, "graph": {**graph, "nodes": []}}
    head = SessionHead.from_json(bare, path)
    yield from require_same(head.to_json(path), bare, path)
    records: list[bytes] = []
    parents: dict[str, str | None] = {}
    for at, given in enumerate(decoded(nodes)):
        where = f"{path}.graph.nodes[{at}]"
        node = SessionNodeRecord.from_json(given, where)
        yield from require_same(node.to_json(where), given, where)
        records.append(encode_record(node, where)[0])
        parents[node.node_id] = node.parent_node_id
    stored = StoredNodes(records, path)
    return DecodedHead(replace(head, graph=replace(head.graph, nodes=stored)), parents)


def require_same(encoded: Any, given: Any, path: str) -> Steps[None]:
    """Require that a record was decoded from exactly the fields that it has: none was dropped, none was added.

    Raises:
        InvalidRecord: they differ.
    """
    if not (yield from are_equal_in_steps(encoded, given)):
        raise InvalidRecord(path, "has a missing or an unknown field: the session would read back changed")


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
