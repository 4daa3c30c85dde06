"""Import: the sessions of an export, stored and compared."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from lash_redis._validate import require_callable, require_ref
from lash_redis.cache import SessionCache
from lash_redis.errors import (
    BackendError,
    Corrupt,
    DocumentsChanged,
    InvalidRecord,
    OutcomeUnknown,
    SessionExists,
    SessionGone,
    StoreError,
)
from lash_redis.models import ImportReport, RuntimeCommit
from lash_redis.models.import_counts import ImportCounts
from lash_redis.protocol import commands
from lash_redis.protocol.blobs import ref_of
from lash_redis.protocol.steps import Steps
from lash_redis.transfer.exporting import read_session
from lash_redis.transfer.json_steps import are_equal_in_steps, parse_in_steps
from lash_redis.transfer.lines import DOCUMENTS, FORMAT, NODES, WINDOW, BlobSpool, Line, Progress, decode_base64
from lash_redis.transfer.records import SessionRecord, decode_session
from lash_redis.transport.turns import in_turns

NOT_COMPARED: Final = {"ttl_ms", "links_by_id"}
"""Fields of a line that no read returns, so that they are not compared after the import."""


async def import_sessions(
    cache: SessionCache, lines: Iterable[str | bytes], progress: Progress | None = None
) -> ImportReport:
    """Store the sessions of an export, each completely or not at all, and read each back to compare.

    Every read of an imported session equals that of the original: revision, commit id, graph, components, ledger. The
    receipts are imported, too, so a commit that was made there and is sent again here returns its first result. The
    session expires after its own ttl, or the cache's, counted from now.

    To resume an interrupted import, run it again. A session that is stored already at the same commit is left as it is.
    One that is stored in another state, or was deleted, is refused and reported, and the import continues.

    `progress(sessions)` is called after each session. Cost: about four round trips for each session, up to 16 sessions
    at the same time. Memory holds at most these sessions; blobs wait on disk.

    Raises:
        InvalidRecord: a line is not part of an export, or names a blob that no earlier line contains. The error names
            line and field. The sessions before it are stored.
        BackendError: the server failed; run the import again.
    """
    if isinstance(lines, str | bytes) or not isinstance(lines, Iterable):
        raise InvalidRecord("lines", f"expected the lines of an export, got {type(lines).__name__}")
    state = _Import(require_callable(progress))
    free = asyncio.Semaphore(WINDOW)
    fault: Exception | None = None
    with BlobSpool.opened() as spool:
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    sessions = _sessions(state, spool, lines)
                    while (record := await in_turns(_next(sessions))) is not None:
                        await free.acquire()
                        tasks.create_task(_import_one(cache, record, state, free))
                except Exception as error:  # noqa: BLE001 (raised below, once the sessions in flight are stored)
                    fault = error
        except* Exception as failures:  # noqa: BLE001 (the first of them is raised, without the group)
            raise failures.exceptions[0] from None
    if fault is not None:
        raise fault
    return state.counts.report(is_complete=state.is_complete)


@dataclass(slots=True)
class _Import:
    """The progress of an import: its counts so far, and the lines that it has read."""

    progress: Progress | None
    counts: ImportCounts = field(default_factory=ImportCounts)
    session_lines: int = 0
    blob_lines: int = 0
    is_complete: bool = False
    """Whether the last line was read, and counts what was read."""


# Reading the lines


def _next(sessions: Iterator[SessionRecord | None]) -> Steps[SessionRecord | None]:
    """Return the next session, None at the end."""
    for found in sessions:
        if found is not None:
            return found
        yield
    return None


def _sessions(state: _Import, spool: BlobSpool, lines: Iterable[str | bytes]) -> Iterator[SessionRecord | None]:
    """Yield the sessions of an export, and None after each other step.

    Put its blobs into the spool, and compare its end with what was read.
    """
    for parsed in _parsed(lines):
        if parsed is None:
            yield None
            continue
        number, line = parsed
        if state.is_complete:
            raise InvalidRecord(f"line {number}", "expected no line after the end")
        match line.get("kind"):
            case "lash-redis":
                continue
            case "blob":
                _spool_blob(spool, number, line)
                state.blob_lines += 1
            case "end":
                _check_end(state, number, line)
                state.is_complete = True
            case "session":
                state.session_lines += 1
                record = yield from decode_session(line, number, spool)
                yield record
            case kind:
                raise InvalidRecord(f"line {number}.kind", f"expected lash-redis, blob, session or end, got {kind!r}")


def _parsed(lines: Iterable[str | bytes]) -> Iterator[tuple[int, Line] | None]:
    """Yield each line that is not blank as a JSON object with its number, and None after each other step.

    The first line must be a header.
    """
    is_first = True
    for number, text in enumerate(lines, 1):
        if not isinstance(text, str | bytes):
            raise InvalidRecord(f"line {number}", f"expected text or bytes, got {type(text).__name__}")
        if not text.strip():
            continue
        try:
            line = yield from parse_in_steps(text, NODES, DOCUMENTS)
        except (ValueError, RecursionError) as error:
            raise InvalidRecord(f"line {number}", f"is not JSON: {error}") from error
        if not isinstance(line, dict):
            raise InvalidRecord(f"line {number}", f"expected a JSON object, got {type(line).__name__}")
        if is_first and (line.get("kind"), line.get("format")) != ("lash-redis", FORMAT):
            raise InvalidRecord(f"line {number}", f"is not the header of an export: expected format {FORMAT}")
        is_first = False
        yield number, line


def _spool_blob(spool: BlobSpool, number: int, line: Line) -> None:
    ref = require_ref(f"line {number}.ref", line.get("ref"))
    data = decode_base64(f"line {number}.base64", line.get("base64"))
    if ref_of(data) != ref:
        raise InvalidRecord(f"line {number}.base64", "does not hash to its ref")
    spool.add(ref, data)


def _check_end(state: _Import, number: int, line: Line) -> None:
    counted = (line.get("session_count"), line.get("blob_count"))
    if counted != (state.session_lines, state.blob_lines):
        read = f"{state.session_lines} sessions and {state.blob_lines} blobs"
        expected = f"{counted[0]} sessions and {counted[1]} blobs"
        raise InvalidRecord(f"line {number}", f"counts {expected}, but {read} were read")


# Storing a session


async def _import_one(cache: SessionCache, record: SessionRecord, state: _Import, free: asyncio.Semaphore) -> None:
    """Store a session and count it. A refusal is reported; a failure of the server ends the import."""
    try:
        await _store(cache, record, state)
    except (BackendError, OutcomeUnknown):
        raise
    except StoreError as error:
        state.counts.fail(record.session_id, f"{type(error).__name__}: {error}")
    finally:
        free.release()
    if state.progress is not None:
        state.progress(state.counts.stored + state.counts.failed)


async def _store(cache: SessionCache, record: SessionRecord, state: _Import) -> None:
    """Store a session, or find it stored already, and compare it with its line.

    Raises:
        SessionExists: another session has this id; nothing was written.
        Corrupt: the stored session differs from its line.
    """
    if record.commit is None or record.origin is None:
        is_present = await _store_without_commit(cache, record)
    else:
        is_present = await _store_commit(cache, record, record.commit, record.origin)
    state.counts.add(is_present=is_present)


async def _store_without_commit(cache: SessionCache, record: SessionRecord) -> bool:
    """Store a session that has only a meta record and perhaps documents; return whether it was stored already."""
    assert record.meta is not None
    store = cache.session(record.session_id, owner=record.owner)
    head, meta = await store.load_head(), await store.load_session_meta()
    documents = cache.documents(record.session_id, owner=record.owner)
    stored = await documents.all()
    if head is not None or meta not in (None, record.meta) or (stored and stored != record.documents):
        raise SessionExists(0, 0 if head is None else head.head_revision)
    await store.create_meta(record.meta, record.ttl)
    if not record.documents:
        return meta is not None
    is_present = bool(stored)
    if not stored:
        try:
            await documents.begin(record.documents)
        except DocumentsChanged:  # by this call, whose reply was lost, or by another client
            if await documents.all() != record.documents:
                raise SessionExists(0, 0) from None
            return True
    if await documents.all() != record.documents:
        raise Corrupt("documents", cache.layout.session(record.session_id).documents, "differs from the imported line")
    return is_present


async def _store_commit(
    cache: SessionCache, record: SessionRecord, commit: RuntimeCommit, origin: commands.commit.Origin
) -> bool:
    """Store a session with a head; return whether it was stored already."""
    store = cache.session(record.session_id, owner=record.owner)
    head = await store.load_head()
    is_present = head is not None and head.commit_id == commit.commit_id
    if not is_present:
        options = replace(
            cache.options,
            max_commit_nodes=None,
            max_commit_bytes=None,
            graph_checks="lenient" if record.is_lenient else "strict",
        )
        result = await store.begin(commit, origin, record.blobs, options=options, ttl=record.ttl)
        is_present = result.replayed
    await _compare(cache, record)
    return is_present


async def _compare(cache: SessionCache, record: SessionRecord) -> None:
    """Compare the stored session with its line, unless it has received commits since.

    Raises:
        Corrupt: a field differs.
    """
    stored = await read_session(cache, record.session_id)
    if stored is None:
        raise SessionGone(None, 0, record.session_id)
    line, _ = stored
    if line.get("commit_id") != record.line["commit_id"]:
        return
    head = cache.layout.session(record.session_id).head
    for name, value in line.items():
        if name not in NOT_COMPARED and not await in_turns(are_equal_in_steps(value, record.line.get(name))):
            raise Corrupt("session", head, f"its {name} differs from the imported line")
