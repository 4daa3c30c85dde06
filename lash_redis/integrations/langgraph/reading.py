"""Load checkpoints with their pending writes and values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from langgraph.checkpoint.base import writes_sort_key

from lash_redis.errors import SessionEvicted
from lash_redis.integrations.langgraph import names
from lash_redis.integrations.langgraph.conflicts import Pointer
from lash_redis.integrations.langgraph.records import (
    Blob,
    CheckpointRecord,
    Elements,
    Inline,
    Typed,
    Value,
    WriteRecord,
    decode_pointer,
)
from lash_redis.integrations.langgraph.values import MSGPACK, PartCache, Run, array
from lash_redis.models import Document, DocumentsRead
from lash_redis.session.documents import Documents

PAGE: Final = 100
"""Number of checkpoints in one page."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A stored checkpoint with its pending writes."""

    ns: str
    checkpoint_id: str
    record: CheckpointRecord
    writes: tuple[WriteRecord, ...]
    """In the order in which a run applies them."""


def loaded(document: Document) -> Loaded:
    """Decode a checkpoint with its pending writes. Raises Corrupt if one is damaged."""
    ns, checkpoint_id = names.parts_of(document.name)
    writes = [WriteRecord.decode(name, content) for name, content in document.children]
    writes.sort(key=lambda write: writes_sort_key(write.task_path, write.task_id, write.index))
    return Loaded(ns, checkpoint_id, CheckpointRecord.decode(document.name, document.content), tuple(writes))


@dataclass(slots=True)
class Parts:
    """The parts of some checkpoints."""

    cache: PartCache
    session_id: str
    logs: dict[bytes, Run] = field(default_factory=dict)
    blobs: dict[bytes, bytes] = field(default_factory=dict)

    def typed(self, value: Value) -> Typed:
        match value:
            case Inline():
                return value.typed
            case Blob():
                return value.form, self.blobs[value.part]
            case Elements():
                firsts = [self.logs[log].first(count) for log, count in value.segments]
                if len(firsts) == 1:
                    return MSGPACK, array(firsts[0])
                ends = tuple(end for first in firsts for end in first.ends)  # only their number counts
                return MSGPACK, array(Run(b"".join(first.body for first in firsts), ends))


class ThreadReader:
    """Reads one thread."""

    def __init__(self, documents: Documents, cache: PartCache) -> None:
        self._documents = documents
        self._cache = cache

    async def latest(self, ns: str) -> tuple[Loaded | None, bytes | None]:
        """Return the latest checkpoint of a namespace, and the namespace's pointer. One round trip."""
        return _with_pointer(await self._documents.pointed(names.pointer(ns), "c", children="w"))

    async def exact(self, ns: str, checkpoint_id: str) -> tuple[Loaded | None, bytes | None]:
        """Return a checkpoint, and the namespace's pointer. One round trip."""
        wanted = [names.checkpoint(ns, checkpoint_id)]
        return _with_pointer(await self._documents.read(wanted, children="w", alone=[names.pointer(ns)]))

    async def page(self, ns: str, before: str | None, limit: int) -> list[Loaded]:
        """Return the last checkpoints of a namespace before an id, the last one first. One round trip."""
        low, high = names.checkpoints_of(ns)
        if before is not None:
            high = min(high, names.checkpoint(ns, before))
        read = await self._documents.page(low, high, limit=limit, children="w")
        return [loaded(document) for document in read.documents]

    async def some(self, wanted: Sequence[tuple[str, str]]) -> list[Loaded]:
        """Return those of these checkpoints (namespace and id) that exist. One round trip."""
        read = await self._documents.read([names.checkpoint(*each) for each in wanted], children="w")
        return [loaded(document) for document in read.documents]

    async def ids(self) -> list[tuple[str, str]]:
        """Return the id and namespace of every checkpoint, the last one first."""
        found: list[tuple[str, str]] = []
        async for documents in self.all(b"c"):
            for document in documents:
                ns, checkpoint_id = names.parts_of(document.name)
                found.append((checkpoint_id, ns))
        return sorted(found, reverse=True)

    async def all(self, kind: bytes) -> AsyncIterator[tuple[Document, ...]]:
        """Yield every document of a kind, in pages."""
        high = kind[:-1] + bytes([kind[-1] + 1])
        while documents := (await self._documents.page(kind, high, limit=1_000)).documents:
            yield documents
            high = documents[-1].name

    async def parts(self, values: Iterable[Value]) -> Parts | None:
        """Load what these values need and this process lacks; None if some of it is gone. One round trip, or none."""
        parts, lack, wanted = Parts(self._cache, self._documents.session_id), list[bytes](), dict[bytes, int]()
        for value in values:
            if isinstance(value, Elements):
                for log, count in value.segments:
                    wanted[log] = max(count, wanted.get(log, 0))
            elif isinstance(value, Blob) and value.part not in parts.blobs:
                data = self._cache.blob(value.part)
                parts.blobs[value.part] = data or b""
                if data is None:
                    lack.append(value.part)
        blobs = list(lack)
        for log, count in wanted.items():
            run = parts.logs[log] = self._cache.log(parts.session_id, log)
            lack += [names.element(log, number) for number in range(len(run.ends), count)]
        if not lack:
            return parts
        found = await self._documents.parts(lack)
        contents = [content for content in found if content is not None]
        if len(contents) < len(found):
            return None
        for part, content in zip(blobs, contents, strict=False):
            parts.blobs[part] = content
            self._cache.keep_blob(part, content)
        at = len(blobs)
        for log, count in wanted.items():
            more = max(count - len(parts.logs[log].ends), 0)
            if more:
                parts.logs[log] = parts.logs[log].followed_by(contents[at : at + more])
                self._cache.keep_log(parts.session_id, log, parts.logs[log])
            at += more
        return parts

    def gone(self, ns: str, checkpoint_id: str) -> SessionEvicted:
        return SessionEvicted(
            "documents", repr(names.checkpoint(ns, checkpoint_id)), "a part that this checkpoint names is missing"
        )


def pointer_of(ns: str, content: bytes | None) -> Pointer | None:
    return None if content is None else decode_pointer(names.pointer(ns), content)


def _with_pointer(read: DocumentsRead) -> tuple[Loaded | None, bytes | None]:
    pointer, found = None, None
    for document in read.documents:
        if document.name.startswith(b"l"):
            pointer = document.content
        else:
            found = loaded(document)
    return found, pointer
