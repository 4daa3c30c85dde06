"""The documents of one session: named values that change together, for state that is not a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from lash_redis._validate import require_id, require_int, require_type
from lash_redis.errors import BackendError, InvalidRecord
from lash_redis.models import DocumentsRead, DocumentWrite
from lash_redis.options import StoreOptions
from lash_redis.protocol import commands
from lash_redis.protocol.commands.documents import MAX_IMPORT, MAX_WRITE, is_part
from lash_redis.session.meta import new_meta
from lash_redis.session.namespace import Namespace
from lash_redis.session.reader import MAX_ATTEMPTS

MAX_PAGE: Final = 1_000
PARTS_CHUNK: Final = 2_000
"""Number of parts in one command. It bounds the time for which it occupies the server."""


class Documents:
    """The documents of one session. `SessionCache.documents` makes it, without I/O; the session need not exist.

    A session has either a graph or documents. It is listed, owned, touched and deleted as any other, and its documents
    expire with it. The first write of documents begins the session. A handle is cheap, and tasks can share it.
    """

    def __init__(self, namespace: Namespace, session_id: str, owner: str | None = None) -> None:
        if owner is not None:
            require_id("owner", owner)
        self._namespace = namespace
        self._keys = namespace.layout.session(require_id("session_id", session_id), owner)
        self._owner = owner or ""
        """The owner that the session is expected to have."""

    @property
    def session_id(self) -> str:
        """The id of the session."""
        return self._keys.session_id

    async def write(self, write: DocumentWrite) -> int:
        """Put, add and remove documents together, if the stored ones are as expected; return the new revision.

        One round trip. Without expectations, a write that is sent again has the effect of one.

        Raises:
            DocumentsChanged: the stored documents are not as expected; nothing was written.
            PartTaken: a part of that name has other content; nothing was written.
            SessionExists: the session has a graph; nothing was written.
            OwnerMismatch, SessionDeleted: the session is another's, or was deleted; nothing was written.
            InvalidRecord: a name or a content is invalid, or the write has more than 4,000 names; nothing was sent.
            CommitTooLarge: the contents exceed `StoreOptions.max_commit_bytes`; nothing was sent.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing; nothing was written.
            BackendError: the server failed, or the owner changed during each attempt; nothing was written.
            OutcomeUnknown: the reply was lost; read, and decide.
        """
        require_type("write", write, DocumentWrite)
        return await self._write(write, self._namespace.options, MAX_WRITE)

    async def begin(self, contents: Mapping[bytes, bytes]) -> int:
        """Store all documents of a session that has none, for an import; return their revision.

        One write of up to 250,000 documents, without the limits of `StoreOptions`. It holds the server for some 3 µs
        for each of them. Otherwise as `write`.
        """
        unlimited = replace(self._namespace.options, max_commit_bytes=None)
        return await self._write(DocumentWrite(put=contents, revision=0), unlimited, MAX_IMPORT)

    async def _write(self, write: DocumentWrite, options: StoreOptions, max_count: int) -> int:
        namespace = self._namespace
        meta = commands.lifecycle.encoded_meta(new_meta(self.session_id), namespace.options)
        for _ in range(MAX_ATTEMPTS):
            call = commands.documents.write_call(
                self._keys, write, self._owner, meta, namespace.ttl_ms, options, max_count
            )
            outcome = commands.documents.write_reply(call, self._keys, write, await namespace.run(call, is_large=True))
            if isinstance(outcome, int):
                return outcome
            self._owner = outcome.owner
        raise BackendError(
            f"the owner of session {self.session_id!r} changed during each of {MAX_ATTEMPTS} attempts to write "
            "documents; retry later"
        )

    async def read(self, names: Sequence[bytes], *, children: str = "", alone: Sequence[bytes] = ()) -> DocumentsRead:
        """Read those of the named documents that exist, in this order. One round trip, one moment.

        `children` is the kind of the children to read with each; empty for none. Those of `alone` come first, without
        children. A session that does not exist, was deleted or is another owner's has no documents and the revision 0.

        Raises:
            InvalidRecord: a name is invalid; nothing was sent.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing.
            BackendError: the server refused or could not be reached.
        """
        return await self._read(commands.documents.names_call(self._keys, alone, names, children))

    async def page(self, low: bytes, high: bytes, *, limit: int, children: str = "") -> DocumentsRead:
        """Read listed documents with names from `low` on, below `high`: the last `limit` (1 to 1,000), last one first.

        One round trip, one moment. Otherwise as `read`.
        """
        require_int("limit", limit, 1, MAX_PAGE)
        return await self._read(commands.documents.page_call(self._keys, low, high, limit, children))

    async def pointed(self, pointer: bytes, kind: str, *, children: str = "") -> DocumentsRead:
        """Read a document, the pointer, and the document of a kind that it names. One round trip, one moment.

        The key of that document is the content of the pointer up to two NUL bytes. Otherwise as `read`.
        """
        return await self._read(commands.documents.pointed_call(self._keys, pointer, kind, children))

    async def parts(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return the contents of parts; None for one that does not exist. Parts never change, so a cache stays valid.

        One round trip for every 2,000. It does not compare the owner: names of parts come from documents.

        Raises:
            InvalidRecord: a name is not that of a part; nothing was sent.
            BackendError: the server refused or could not be reached.
        """
        if not all(map(is_part, names)):
            raise InvalidRecord("names", "expected names of parts, which begin with 'p'")
        found: list[bytes | None] = []
        for at in range(0, len(names), PARTS_CHUNK):
            trip = [commands.documents.parts_read(self._keys, names[at : at + PARTS_CHUNK])]
            found += (await self._namespace.read(trip, atomic=False))[0]
        return found

    async def all(self) -> Mapping[bytes, bytes]:
        """Return the content of every document by name, parts included; empty without documents.

        One round trip, one moment, O(bytes of all documents).

        Raises:
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing.
            BackendError: the server refused or could not be reached.
        """
        replies = await self._namespace.read(commands.documents.all_read(self._keys), atomic=True)
        return commands.documents.all_reply(self._keys, replies)

    async def part_names(self) -> list[bytes]:
        """Return the names of all parts. One round trip and one command, O(documents). The owner is not compared."""
        (names,) = await self._namespace.read([commands.documents.part_names_read(self._keys)], atomic=False)
        return [name for name in names if is_part(name)]

    async def _read(self, call: commands.calls.ScriptCall) -> DocumentsRead:
        reply = await self._namespace.run(call, writes=False, is_large=True)
        return commands.documents.read_reply(call, self._keys, reply)
