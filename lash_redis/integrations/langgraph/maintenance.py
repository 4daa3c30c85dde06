"""Prune, copy and delete the checkpoints of threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from os import urandom
from typing import Any, Final

from langgraph.checkpoint.serde.base import SerializerProtocol

from lash_redis.errors import BackendError, DocumentsChanged, SessionEvicted, SessionExists
from lash_redis.integrations.langgraph import names
from lash_redis.integrations.langgraph.conflicts import Pointer
from lash_redis.integrations.langgraph.reading import Loaded, loaded, pointer_of
from lash_redis.integrations.langgraph.records import encode_pointer, parts_of
from lash_redis.integrations.langgraph.writing import CHUNK_PARTS, chunks
from lash_redis.models import Document, DocumentWrite
from lash_redis.session.documents import Documents

MAX_ATTEMPTS: Final = 16
PAGE: Final = 1_000
REMOVED: Final = 2_000
"""Number of documents that one call removes."""


@dataclass(slots=True)
class Thread:
    """All documents of a thread at one revision, except the contents of parts."""

    revision: int
    parts: set[bytes]
    pointers: dict[str, bytes] = field(default_factory=dict)
    """By namespace."""
    checkpoints: dict[tuple[str, str], Loaded] = field(default_factory=dict)
    """By namespace and id."""
    contents: dict[bytes, bytes] = field(default_factory=dict)
    """Every listed document."""


async def read_thread(documents: Documents, attempts: int = MAX_ATTEMPTS) -> Thread | None:
    """Read a thread, in pages; None if it does not exist.

    Raises:
        BackendError: it changed during each of the attempts.
    """
    for _ in range(attempts):
        thread = Thread(-1, set(await documents.part_names()))
        high, is_torn = b"\xff", False
        while True:
            read = await documents.page(b"\0", high, limit=PAGE)
            if thread.revision == -1:
                thread.revision = read.revision
            is_torn = read.revision != thread.revision
            thread.contents.update({document.name: document.content for document in read.documents})
            if is_torn or len(read.documents) < PAGE:
                break
            high = read.documents[-1].name
        if not is_torn:
            return _sorted_out(thread) if thread.revision else None
    raise BackendError(f"thread {documents.session_id!r} changed during each of {attempts} reads; retry later")


def _sorted_out(thread: Thread) -> Thread:
    children: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for name, content in thread.contents.items():
        if name.startswith(b"w"):
            children.setdefault(b"c" + b"\0".join(name[1:].split(b"\0")[:2]), []).append((name, content))
    for name, content in thread.contents.items():
        if name.startswith(b"c"):
            found = loaded(Document(name, content, tuple(children.get(name, ()))))
            thread.checkpoints[found.ns, found.checkpoint_id] = found
        elif name.startswith(b"l"):
            thread.pointers[names.parts_of(name)[0]] = content
    return thread


async def keep(documents: Documents, kept_of: Callable[[Thread], Collection[tuple[str, str]]]) -> None:
    """Remove the checkpoints of a thread except those that `kept_of` returns, and the parts that nothing names then.

    A thread that is written to meanwhile is read again.

    Raises:
        BackendError: the thread changed during each of the attempts; run it again.
    """
    for _ in range(MAX_ATTEMPTS):
        thread = await read_thread(documents)
        if thread is None:
            return
        try:
            await _remove(documents, thread, set(kept_of(thread)))
        except DocumentsChanged:
            continue
        return
    raise BackendError(f"thread {documents.session_id!r} changed during each of {MAX_ATTEMPTS} attempts; retry later")


async def _remove(documents: Documents, thread: Thread, kept: set[tuple[str, str]]) -> None:
    gone = [place for place in thread.checkpoints if place not in kept]
    live = {part for place in kept for part in _parts_of(thread.checkpoints[place])}
    removed = [names.checkpoint(*place) for place in gone]
    pointers = {ns: pointer_of(ns, content) for ns, content in thread.pointers.items()}
    for name in thread.contents:
        if name.startswith(b"w"):
            ns, checkpoint_id = names.parts_of(name)[:2]
            current = pointers.get(ns)
            # The checkpoint of later writes may be on its way. Earlier ones whose checkpoint was refused are removed.
            is_early = current is not None and checkpoint_id < current.latest
            if (ns, checkpoint_id) not in kept and ((ns, checkpoint_id) in thread.checkpoints or is_early):
                removed.append(name)
    put: dict[bytes, bytes] = {}
    for ns, current in pointers.items():
        if current is not None and (ns, current.latest) in kept:
            continue
        left = [checkpoint_id for each, checkpoint_id in kept if each == ns]
        if left:
            put[names.pointer(ns)] = encode_pointer(ns, Pointer(max(left), max(left)))
        else:
            removed.append(names.pointer(ns))
    removed += sorted(thread.parts - live)
    put[names.SWEPT] = urandom(8)
    revision = thread.revision
    for at in range(0, len(removed), REMOVED):
        # The pointers move in the first call, so that each leads to a checkpoint at every moment.
        write = DocumentWrite(put=put if at == 0 else {}, remove=removed[at : at + REMOVED], revision=revision)
        revision = await documents.write(write)


def latest_and_what_it_needs(thread: Thread, serde: SerializerProtocol) -> set[tuple[str, str]]:
    """Return the latest checkpoint of each namespace, and the ancestors from which its delta channels are rebuilt."""
    kept: set[tuple[str, str]] = set()
    for ns, content in thread.pointers.items():
        current = pointer_of(ns, content)
        if current is None or (ns, current.latest) not in thread.checkpoints:
            continue
        found = thread.checkpoints[ns, current.latest]
        kept.add((ns, current.latest))
        metadata = serde.loads_typed(found.record.metadata)
        open_channels = set(metadata.get("counters_since_delta_snapshot") or ()) - set(found.record.values)
        parent = found.record.parent
        while open_channels and parent is not None and (ns, parent) in thread.checkpoints:
            kept.add((ns, parent))
            ancestor = thread.checkpoints[ns, parent]
            open_channels -= set(ancestor.record.values)
            parent = ancestor.record.parent
    return kept


def without_runs(thread: Thread, serde: SerializerProtocol, run_ids: Collection[str]) -> set[tuple[str, str]]:
    """Return the checkpoints that none of these runs has made."""
    return {
        place
        for place, found in thread.checkpoints.items()
        if serde.loads_typed(found.record.metadata).get("run_id") not in run_ids
    }


async def copy_thread(source: Documents, target: Documents) -> None:
    """Copy a thread. The pointers are written last, so an unfinished copy has no latest checkpoint.

    Raises:
        SessionExists: the target has checkpoints.
        SessionEvicted: a part of the source is missing.
    """
    thread = await read_thread(source)
    if thread is None:
        return
    if (await target.page(b"l", b"m", limit=1)).documents:
        raise SessionExists(None, 0)
    part_names = sorted({part for found in thread.checkpoints.values() for part in _parts_of(found)})
    for at in range(0, len(part_names), CHUNK_PARTS):
        chunk = part_names[at : at + CHUNK_PARTS]
        contents = await source.parts(chunk)
        parts = {name: content for name, content in zip(chunk, contents, strict=True) if content is not None}
        if len(parts) < len(chunk):
            raise SessionEvicted("documents", repr(chunk), "a part of the thread is missing; it may have been pruned")
        await _put(target, parts)
    pointers = {names.pointer(ns): content for ns, content in thread.pointers.items()}
    await _put(target, {name: content for name, content in thread.contents.items() if name not in pointers})
    try:
        await target.write(DocumentWrite(put=pointers, expects=dict.fromkeys(pointers, False)))
    except DocumentsChanged as changed:
        raise SessionExists(None, 0) from changed


def _parts_of(found: Loaded) -> Iterable[bytes]:
    return (part for value in found.record.values.values() for part in parts_of(value))


async def _put(documents: Documents, contents: Mapping[bytes, bytes]) -> None:
    for chunk in chunks(contents):
        await documents.write(DocumentWrite(put=chunk))


def metadata_matches(metadata: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    return not wanted or all(metadata.get(key) == value for key, value in wanted.items())
