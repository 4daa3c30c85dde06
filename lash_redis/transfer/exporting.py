"""Export: sessions of a namespace as lines of JSON."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lash_redis._validate import require_callable, require_id
from lash_redis.cache import SessionCache
from lash_redis.errors import BackendError, InvalidRecord, SessionGone
from lash_redis.listing import walk_ids
from lash_redis.models import SessionHead
from lash_redis.protocol import commands
from lash_redis.protocol.heads import decode_meta, decode_ttl, own_receipts
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.steps import Steps
from lash_redis.session.reader import MAX_ATTEMPTS, Reader, Snapshot
from lash_redis.transfer.json_steps import dump_in_steps
from lash_redis.transfer.lines import (
    FORMAT,
    WINDOW,
    BlobSpool,
    Line,
    Progress,
    encode_documents,
    encode_head,
    encode_line,
)
from lash_redis.transport.turns import in_turns

Found = TypeVar("Found")


async def export_sessions(
    cache: SessionCache, session_ids: Iterable[str] | None = None, progress: Progress | None = None
) -> AsyncGenerator[str]:
    """Export sessions as lines of JSON without newlines; all sessions of the namespace if no ids are given.

    A session is exported at one revision. A session that receives commits during the export is exported once, at a
    later revision. A session that expires during the export is left out. Pending inputs are not exported. A session
    with documents, such as a thread of LangGraph, has all of them in its line.
    `progress(sessions)` is called after every few sessions. Cost: two round trips for each session, up to 16 sessions
    at the same time. Memory holds at most these sessions; refs of exported blobs are kept on disk.

    Raises:
        SessionGone: a given id has no session.
        Corrupt, SessionEvicted: a session cannot be read. The lines before it are valid; the end is missing.
    """
    require_callable(progress)
    if isinstance(session_ids, str | bytes) or not isinstance(session_ids, Iterable | None):
        raise InvalidRecord("session_ids", f"expected session ids, or None for all, got {type(session_ids).__name__}")

    yield encode_line({"kind": "lash-redis", "format": FORMAT, "namespace": cache.namespace})
    session_count = blob_count = 0
    with BlobSpool.opened() as spool:
        async for batch in batches(cache, session_ids):
            found_of = await read_batch(batch, lambda session_id: read_session(cache, session_id))
            for session_id, found in zip(batch, found_of, strict=True):
                if found is None:
                    if session_ids is None:
                        continue
                    raise SessionGone(None, 0, session_id)
                line, blobs = found
                for ref, data in blobs.items():
                    if spool.add(ref):
                        blob_count += 1
                        yield encode_line({"kind": "blob", "ref": ref, "base64": b64encode(data).decode()})
                session_count += 1
                yield await in_turns(dump_in_steps(line))
            if progress is not None:
                progress(session_count)
    yield encode_line({"kind": "end", "session_count": session_count, "blob_count": blob_count})


async def batches(cache: SessionCache, session_ids: Iterable[str] | None) -> AsyncIterator[list[str]]:
    """Yield the ids to export in batches of at most `WINDOW`, each id once for the whole namespace."""
    if session_ids is not None:
        ids = [require_id("session_ids", session_id) for session_id in session_ids]
        for at in range(0, len(ids), WINDOW):
            yield ids[at : at + WINDOW]
        return
    async for found in walk_ids(cache.shared):
        for at in range(0, len(found), WINDOW):
            yield found[at : at + WINDOW]


async def read_batch(ids: Sequence[str], read: Callable[[str], Coroutine[Any, Any, Found]]) -> list[Found]:
    """Call `read` for each id concurrently. If one call fails, the others are cancelled before the error is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            reading = [tasks.create_task(read(session_id)) for session_id in ids]
    except* Exception as failures:  # noqa: BLE001 (the first of them is raised, without the group)
        raise failures.exceptions[0] from None
    return [task.result() for task in reading]


async def read_session(cache: SessionCache, session_id: str) -> tuple[Line, dict[str, bytes]] | None:
    """Return a session's line and the blobs that it names, by ref; None if the session does not exist.

    Raises:
        Corrupt, SessionEvicted: the session cannot be read.
        BackendError: it was created and lost during each of `MAX_ATTEMPTS` reads.
    """
    keys = cache.layout.session(session_id)
    for _ in range(MAX_ATTEMPTS):
        found = await Reader(cache.shared, keys).snapshot()
        if found is not None:
            return await _line_of(found), found.components
        trip = [commands.catalogue.created_read(keys), *commands.documents.all_read(keys)]
        created, *stored = await cache.shared.read(trip, atomic=True)
        if created[0] is None:  # else the first commit came between the two reads
            _, meta, own_ttl, owner, _ = created
            documents = commands.documents.all_reply(keys, stored)
            return await in_turns(_line_of_created(keys, meta, own_ttl, owner, documents))
    raise BackendError(f"session {session_id!r} changed during each of {MAX_ATTEMPTS} reads; retry later")


async def _line_of(found: Snapshot) -> Line:
    head, read = found.stored.head, found.read()
    fields = head.fields
    stored_meta, ttl = fields.get(b"meta"), fields.get(b"ttl")
    whole = SessionHead(
        read.session_id, read.head_revision, read.graph, read.config, read.checkpoint_ref, read.token_ledger
    )
    return {
        "kind": "session",
        "session_id": read.session_id,
        "head": await in_turns(encode_head(whole)),
        "checkpoint": head.body.checkpoint.to_json(),
        "commit_id": read.commit_id,
        "committed_ms": head.facts.committed,
        "receipts": b64encode(own_receipts(fields, head.facts.revision, head.keys.head)).decode(),
        "links_by_id": bool(head.facts.loose),
        "ttl_ms": decode_ttl(ttl, head.keys.head),
        "meta": None if stored_meta is None else decode_meta(stored_meta, head.keys.head).to_json(),
        "owner": head.owner or None,
    }


def _line_of_created(
    keys: SessionKeys,
    record: bytes | None,
    own_ttl: bytes | None,
    owner: bytes | None,
    documents: Mapping[bytes, bytes],
) -> Steps[tuple[Line, dict[str, bytes]] | None]:
    """Return the line of a session without a commit, in steps; None if it has no meta record either."""
    if record is None:
        return None
    line: Line = {
        "kind": "session",
        "session_id": keys.session_id,
        "head": None,
        "ttl_ms": decode_ttl(own_ttl, keys.head),
        "meta": decode_meta(record, keys.head).to_json(),
        "owner": None if owner is None else owner.decode(errors="replace"),
    }
    if documents:
        line["documents"] = yield from encode_documents(documents)
    return line, {}
