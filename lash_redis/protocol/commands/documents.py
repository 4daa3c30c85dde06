"""The commands of documents: write some together, read some at one moment, read parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from lash_redis.errors import (
    BackendError,
    Corrupt,
    DocumentsChanged,
    InvalidRecord,
    PartTaken,
    SessionEvicted,
    SessionExists,
)
from lash_redis.models import Document, DocumentsRead, DocumentWrite
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, OwnerMoved, ScriptCall, is_foreign, require_size, status
from lash_redis.protocol.keys import SessionKeys

MAX_NAME_BYTES: Final = 64 * 1024
PART: Final = b"p"
"""The kind of parts."""
MAX_WRITE: Final = 4_000
"""Maximum number of documents in one write. It bounds the time for which a script occupies the server."""
MAX_IMPORT: Final = 250_000
"""Maximum number of documents of an imported session, which are one write. A request has at most 2^20 arguments."""


class Account(NamedTuple):
    """The head's account of a session's documents. `lua/include/documents.lua` describes it."""

    revision: int = 0
    size: int = 0
    listed: int = 0
    hold: int = 0


_ACCOUNT: Final = re.compile(rb"(?:(?:0|[1-9][0-9]{0,14})(?: |$)){4}(?<! )").fullmatch


def decode_account(data: bytes | None, key: str) -> Account:
    """Decode the account; zeros without documents.

    Raises:
        Corrupt: it is unreadable, for the scripts too.
    """
    if data is None:
        return Account()
    if not _ACCOUNT(data):
        raise Corrupt("head", key, f"its account of documents is unreadable: {data[:200]!r}")
    return Account._make(map(int, data.split(b" ")))


def is_part(name: bytes) -> bool:
    return name.startswith(PART)


def require_name(field: str, name: object) -> bytes:
    if not isinstance(name, bytes):
        raise InvalidRecord(field, f"expected the bytes of a name, got {type(name).__name__}")
    if not 0 < len(name) <= MAX_NAME_BYTES:
        raise InvalidRecord(field, f"expected a name of 1 to {MAX_NAME_BYTES} bytes, got {len(name)}")
    return name


def write_call(
    keys: SessionKeys,
    write: DocumentWrite,
    owner: str,
    meta: bytes,
    ttl_ms: int,
    options: StoreOptions,
    max_count: int = MAX_WRITE,
) -> ScriptCall:
    """Make a write. `owner`: the one that the session is expected to have, empty for none. `meta`: a new session's.

    Raises:
        InvalidRecord: a name or a content is invalid, or there are too many.
        CommitTooLarge: the write is over a limit.
    """
    values: list[bytes] = []
    for name, expected in write.expects.items():
        values.append(require_name("DocumentWrite.expects", name))
        values += [b"=", expected] if isinstance(expected, bytes) else [b"+" if expected else b"-", b""]
    size = 0
    for field, contents in (("DocumentWrite.put", write.put), ("DocumentWrite.add", write.add)):
        for name, content in contents.items():
            if not isinstance(content, bytes):
                raise InvalidRecord(field, f"expected bytes as content, got {type(content).__name__}")
            values += [require_name(field, name), content]
            size += len(content)
    require_size("the bytes of a write of documents", size, options)
    values += [require_name("DocumentWrite.remove", name) for name in write.remove]
    count = len(write.expects) + len(write.put) + len(write.add) + len(write.remove)
    if count > max_count:
        raise InvalidRecord(
            "DocumentWrite", f"expected at most {max_count} documents, got {count}; write them in parts"
        )
    return ScriptCall(
        scripts.DOCUMENT_WRITE,
        [*keys.listed(owner), keys.documents, keys.names],
        [
            keys.session_id,
            ttl_ms,
            options.blob_grace_ms,
            keys.access,
            owner,
            meta,
            "" if write.revision is None else write.revision,
            len(write.expects),
            len(write.put),
            len(write.add),
            len(write.remove),
            *values,
        ],
    )


def write_reply(call: ScriptCall, keys: SessionKeys, write: DocumentWrite, reply: Any) -> int | OwnerMoved:
    """Return the new revision, or the owner to send the call with.

    Raises:
        DocumentsChanged: the stored documents are not as expected.
        PartTaken: a part has another content.
        SessionExists: the session has a graph.
    """
    match status(call, reply, keys):
        case "written":
            return int(reply[2])
        case "owner":
            return OwnerMoved(reply[2].decode())
        case "unlike":
            names = list(write.expects)
            rows = zip(reply[3::3], reply[4::3], reply[5::3], strict=True)
            found = {names[at]: content if state == b"=" else None for at, state, content in rows}
            raise DocumentsChanged(keys.session_id, int(reply[2]), found)
        case "stale":
            raise DocumentsChanged(keys.session_id, int(reply[2]), {})
        case "taken":
            raise PartTaken(keys.session_id, reply[2])
        case "graph":
            raise SessionExists(None, 0)
        case word:
            raise BackendError(f"unexpected reply {word!r} of the script document_write")


def names_call(keys: SessionKeys, alone: Sequence[bytes], names: Sequence[bytes], children: str) -> ScriptCall:
    """Read documents by their names; those of `alone` without children."""
    wanted = [require_name("names", name) for name in (*alone, *names)]
    return _read_call(keys, children, "names", len(alone), *wanted)


def page_call(keys: SessionKeys, low: bytes, high: bytes, limit: int, children: str) -> ScriptCall:
    """Read at most `limit` listed documents with names from `low` on, below `high`, the last one first."""
    return _read_call(keys, children, "page", b"(" + high, b"[" + low, limit)


def pointed_call(keys: SessionKeys, pointer: bytes, kind: str, children: str) -> ScriptCall:
    """Read the document that `pointer` names, and the pointer itself."""
    return _read_call(keys, children, "pointed", require_name("pointer", pointer), kind)


def _read_call(keys: SessionKeys, children: str, *query: Any) -> ScriptCall:
    return ScriptCall(
        scripts.DOCUMENT_READ,
        [keys.head, keys.documents, keys.names],
        [keys.session_id, keys.access, children, *query],
    )


def read_reply(call: ScriptCall, keys: SessionKeys, reply: Any) -> DocumentsRead:
    """Return the documents that were found. A deleted session reads as absent."""
    if reply[0] == b"deleted" or status(call, reply, keys) == "absent":
        return DocumentsRead(0)
    found: list[Document] = []
    at = 3
    while at < len(reply):
        name, content, count = reply[at : at + 3]
        flat = reply[at + 3 : at + 3 + 2 * count]
        found.append(Document(name, content, tuple(zip(flat[::2], flat[1::2], strict=True))))
        at += 3 + 2 * count
    return DocumentsRead(int(reply[2]), tuple(found))


def parts_read(keys: SessionKeys, names: Sequence[bytes]) -> Command:
    return ("HMGET", keys.documents, *names)


def part_names_read(keys: SessionKeys) -> Command:
    return ("HKEYS", keys.documents)


def account_read(keys: SessionKeys) -> Command:
    return ("HGET", keys.head, "documents")


def all_read(keys: SessionKeys) -> list[Command]:
    """Read all documents. The commands must be run at one moment."""
    head = ("HMGET", keys.head, "documents", "owner", "facts", "meta")
    return [head, ("HGETALL", keys.documents), ("ZRANGE", keys.names, 0, -1)]


def all_reply(keys: SessionKeys, replies: Sequence[Any]) -> Mapping[bytes, bytes]:
    """Return the content of each document by name. Another owner's session has none.

    Raises:
        Corrupt, SessionEvicted: the account, the documents and their names do not agree.
    """
    (account, owner, facts, meta), documents, names = replies
    if is_foreign(keys, owner, facts or meta):
        return {}
    require_agreement(keys, decode_account(account, keys.head), documents, names)
    contents: Mapping[bytes, bytes] = documents
    return contents


def require_agreement(
    keys: SessionKeys, account: Account, stored: Sequence[bytes] | Mapping[bytes, bytes], names: Sequence[bytes]
) -> None:
    """Require that a session has as many documents and names as its account counts, and the names of its documents.

    Raises:
        Corrupt, SessionEvicted: it does not.
    """
    for family, key, size, expected in (
        ("documents", keys.documents, len(stored), account.size),
        ("names", keys.names, len(names), account.listed),
    ):
        if size == 0 < expected:
            raise SessionEvicted(family, key, f"is gone, expected {expected} entries")
        if size != expected:
            raise Corrupt(family, key, f"has {size} entries, expected {expected}")
    if {name for name in stored if not is_part(name)} != set(names):
        raise Corrupt("names", keys.names, "does not have the names of the documents")
