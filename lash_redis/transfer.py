"""Sessions as JSON Lines, out of a namespace and into another: streaming, resumable, verified.

The first line is a header, the last an end that counts the others: a file without it is cut short. A blob is a line
of its own, before the first session that names it and only once. A session's line has the seed's JSON shapes (head with
graph and ledger, manifest, meta) and what makes it the same session elsewhere: the id of its last commit, its receipts,
its own ttl, the time of its last commit. Tombstoned nodes stay behind.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any, Final

from lash_redis._validate import MAX_SECONDS, require_callable, require_id, require_ref
from lash_redis.cache import SessionCache
from lash_redis.errors import (
    BackendError,
    Corrupt,
    InvalidRecord,
    OutcomeUnknown,
    SessionExists,
    SessionGone,
    StoreError,
)
from lash_redis.listing import walk
from lash_redis.models import (
    Append,
    HydratedSessionCheckpoint,
    ImportReport,
    RuntimeCommit,
    SessionCheckpoint,
    SessionGraph,
    SessionHead,
    SessionMeta,
    TokenLedgerEntry,
    TokenUsage,
    Unchanged,
)
from lash_redis.models.catalogue import entry_ids
from lash_redis.options import KEEP, Keep
from lash_redis.protocol import commands
from lash_redis.protocol.blobs import ref_of
from lash_redis.protocol.component_refs import COMPONENTS
from lash_redis.protocol.components import StoredComponent
from lash_redis.protocol.heads import RECEIPT_BYTES, RECEIPTS, TAG_BYTES, decode_meta, tag_of
from lash_redis.protocol.packing import pack
from lash_redis.session.reader import Reader

FORMAT: Final = 1
WINDOW: Final = 16
"""Sessions under way at once."""
FAILURES_TOLD: Final = 1000

HOW_IT_IS_KEPT: Final = {"ttl_ms", "links_by_id"}
"""What a line says beside what reads say."""

Line = dict[str, Any]
Progress = Callable[[int], None]


class Spool:
    """Blobs of one transfer on disk, so that a million sessions need no more memory than one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._rows = connection
        self._rows.execute("CREATE TABLE blobs (ref BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Spool]:
        with TemporaryDirectory(prefix="lash-redis-") as folder, closing(sqlite3.connect(f"{folder}/blobs")) as rows:
            rows.execute("PRAGMA journal_mode = OFF")
            rows.execute("PRAGMA synchronous = OFF")
            yield cls(rows)

    def add(self, ref: str, data: bytes | None = None) -> bool:
        """Whether the blob was not there before."""
        row = (bytes.fromhex(ref), data)
        return self._rows.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", row).rowcount == 1

    def get(self, ref: str) -> bytes | None:
        row = self._rows.execute("SELECT data FROM blobs WHERE ref = ?", (bytes.fromhex(ref),)).fetchone()
        return None if row is None else row[0]


# Out


async def export_sessions(
    cache: SessionCache, session_ids: Iterable[str] | None = None, progress: Progress | None = None
) -> AsyncGenerator[str]:
    """Lines of JSON, each without its newline; all sessions of the namespace where no ids are given.

    A session is exported at one revision. One that is committed to meanwhile is exported once, as it then is; one that
    expires meanwhile is left out. `progress(sessions)` is called after every few. Two round trips a session, some at
    once; memory is bounded by `WINDOW` sessions, refs of blobs are kept on disk.

    Raises:
        SessionGone: there is no session of a given id.
        Corrupt, SessionEvicted: a session cannot be read. What was exported before stands; the end is missing.
    """
    require_callable(progress)
    if isinstance(session_ids, str | bytes) or not isinstance(session_ids, Iterable | None):
        raise InvalidRecord("session_ids", f"expected session ids, or None for all, got {type(session_ids).__name__}")
    yield _text({"kind": "lash-redis", "format": FORMAT, "namespace": cache.namespace})
    session_count = blob_count = 0
    with Spool.opened() as spool:
        async for batch in _batches(cache, session_ids):
            for session_id, found in zip(batch, await _exported_together(cache, batch), strict=True):
                if found is None:
                    if session_ids is None:
                        continue
                    raise SessionGone(None, 0, session_id)
                line, blobs = found
                for ref, data in blobs.items():
                    if spool.add(ref):
                        blob_count += 1
                        yield _text({"kind": "blob", "ref": ref, "base64": b64encode(data).decode()})
                session_count += 1
                yield _text(line)
            if progress is not None:
                progress(session_count)
    yield _text({"kind": "end", "session_count": session_count, "blob_count": blob_count})


async def _batches(cache: SessionCache, session_ids: Iterable[str] | None) -> AsyncIterator[list[str]]:
    if session_ids is not None:
        ids = [require_id("session_ids", session_id) for session_id in session_ids]
        for at in range(0, len(ids), WINDOW):
            yield ids[at : at + WINDOW]
        return
    for shard in range(cache.layout.shards):
        seen: set[str] = set()
        async for entries in walk(cache.shared, cache.layout.shard_keys(shard)):
            ids = [name for name in dict.fromkeys(entry_ids(entry.entry)[0] for entry in entries) if name not in seen]
            seen.update(ids)
            for at in range(0, len(ids), WINDOW):
                yield ids[at : at + WINDOW]


async def _exported_together(cache: SessionCache, ids: Sequence[str]) -> list[Any]:
    """`_exported` of each; where one fails the others are ended, so that nothing is under way once it is told."""
    try:
        async with asyncio.TaskGroup() as tasks:
            exported = [tasks.create_task(_exported(cache, session_id)) for session_id in ids]
    except* Exception as failures:  # noqa: BLE001 (the first of them is raised, without the group)
        raise failures.exceptions[0] from None
    return [task.result() for task in exported]


async def _exported(cache: SessionCache, session_id: str) -> tuple[Line, dict[str, bytes]] | None:
    """A session's line and the blobs it names; None where there is no such session."""
    keys = cache.layout.session(session_id)
    found = await Reader(cache.shared, keys).snapshot()
    if found is None:
        (stored,) = await cache.shared.read([commands.catalogue.created_read(keys)], atomic=False)
        facts, record, own_ttl = stored
        if facts is not None:  # its first commit came in between
            return await _exported(cache, session_id)
        if record is None:
            return None
        return {
            "kind": "session",
            "session_id": session_id,
            "head": None,
            "ttl_ms": None if own_ttl is None else int(own_ttl),
            "meta": decode_meta(record, keys.head).to_json(),
        }, {}
    head, read = found.stored.head, found.read()
    fields = head.fields
    stored_meta, ttl = fields.get(b"meta"), fields.get(b"ttl")
    line = {
        "kind": "session",
        "session_id": session_id,
        "head": SessionHead(
            session_id, read.head_revision, read.graph, read.config, read.checkpoint_ref, read.token_ledger
        ).to_json(),
        "checkpoint": head.body.checkpoint.to_json(),
        "commit_id": read.commit_id,
        "committed_ms": head.facts.committed,
        "receipts": b64encode(fields.get(b"receipts", b"")).decode(),
        "links_by_id": bool(head.facts.loose),
        "ttl_ms": None if ttl is None else int(ttl),
        "meta": None if stored_meta is None else decode_meta(stored_meta, head.keys.head).to_json(),
    }
    return line, found.components


def _text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


# In


@dataclass(slots=True)
class _Import:
    """How far an import has come."""

    progress: Progress | None
    report: ImportReport = field(default_factory=ImportReport)
    session_lines: int = 0
    blob_lines: int = 0

    def count(self, **counts: int) -> None:
        self.report = replace(
            self.report, **{name: getattr(self.report, name) + count for name, count in counts.items()}
        )

    def fail(self, session_id: str, error: StoreError) -> None:
        self.count(failed_count=1)
        if len(self.report.failures) < FAILURES_TOLD:
            text = f"{session_id}: {type(error).__name__}: {error}"
            self.report = replace(self.report, failures=(*self.report.failures, text))


async def import_sessions(
    cache: SessionCache, lines: Iterable[str | bytes], progress: Progress | None = None
) -> ImportReport:
    """Store the sessions of an export, each whole or not at all, and read each back to compare.

    A session that is there already at the same commit is left as it is, so an import that was cut short is simply run
    again. One that is there otherwise, or was deleted, is refused and reported; the others go on. Every read of an
    imported session equals that of the original: revision, commit id, graph, components, ledger; receipts too, so that
    a commit made there and sent again here is known. It lives its own ttl, or the cache's, from now on.

    `progress(sessions)` is called after each. About four round trips a session, `WINDOW` at once; memory is bounded by
    those, blobs wait on disk.

    Raises:
        InvalidRecord: a line is not of an export, or names a blob that no line before it has; names line and field.
            Sessions before it are stored.
        BackendError: the server failed; run it again.
    """
    if isinstance(lines, str | bytes) or not isinstance(lines, Iterable):
        raise InvalidRecord("lines", f"expected the lines of an export, got {type(lines).__name__}")
    state = _Import(require_callable(progress))
    free = asyncio.Semaphore(WINDOW)
    fault: Exception | None = None
    with Spool.opened() as spool:
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    for record in _sessions(state, spool, lines):
                        await free.acquire()
                        tasks.create_task(_import_one(cache, record, state, free))
                except Exception as error:  # noqa: BLE001 (raised below: what is under way is finished all the same)
                    fault = error
        except* Exception as failures:  # noqa: BLE001 (the first of them is raised, without the group)
            raise failures.exceptions[0] from None
    if fault is not None:
        raise fault
    return state.report


def _sessions(state: _Import, spool: Spool, lines: Iterable[str | bytes]) -> Iterator[_Session]:
    for number, line in _parsed(lines):
        if not _take(state, spool, number, line):
            yield _session_of(line, number, spool)


def _parsed(lines: Iterable[str | bytes]) -> Iterator[tuple[int, Line]]:
    is_first = True
    for number, text in enumerate(lines, 1):
        if not isinstance(text, str | bytes):
            raise InvalidRecord(f"line {number}", f"expected text or bytes, got {type(text).__name__}")
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRecord(f"line {number}", f"is not JSON: {error}") from error
        if not isinstance(line, dict):
            raise InvalidRecord(f"line {number}", "expected a JSON object")
        if is_first and (line.get("kind"), line.get("format")) != ("lash-redis", FORMAT):
            raise InvalidRecord(f"line {number}", f"is no header of an export of format {FORMAT}")
        is_first = False
        yield number, line


def _take(state: _Import, spool: Spool, number: int, line: Line) -> bool:
    """Take a line that is no session's."""
    if state.report.is_complete:
        raise InvalidRecord(f"line {number}", "comes after the end")
    match line.get("kind"):
        case "lash-redis":
            return True
        case "blob":
            ref = require_ref(f"line {number}.ref", line.get("ref"))
            data = _bytes(f"line {number}.base64", line.get("base64"))
            if ref_of(data) != ref:
                raise InvalidRecord(f"line {number}.base64", "does not hash to its ref")
            spool.add(ref, data)
            state.blob_lines += 1
            return True
        case "end":
            counted = (line.get("session_count"), line.get("blob_count"))
            if counted != (state.session_lines, state.blob_lines):
                here = f"{state.session_lines} sessions and {state.blob_lines} blobs"
                told = f"{counted[0]} sessions and {counted[1]} blobs"
                raise InvalidRecord(f"line {number}", f"counts {told}, there are {here}")
            state.report = replace(state.report, is_complete=True)
            return True
        case "session":
            state.session_lines += 1
            return False
    raise InvalidRecord(f"line {number}.kind", f"is unknown: {line.get('kind')!r}")


def _bytes(path: str, value: Any) -> bytes:
    try:
        return b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise InvalidRecord(path, f"is not base64: {error}") from error


@dataclass(frozen=True, slots=True)
class _Session:
    """A session's line, checked."""

    session_id: str
    line: Line
    meta: SessionMeta | None
    commit: RuntimeCommit | None = None
    origin: commands.commit.Origin | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    ttl: float | Keep | None = KEEP
    is_lenient: bool = False


def _session_of(line: Line, number: int, spool: Spool) -> _Session:
    where = f"line {number}"
    session_id = require_id(f"{where}.session_id", line.get("session_id"))
    meta = None if line.get("meta") is None else SessionMeta.from_json(line["meta"], f"{where}.meta")
    if meta is not None and meta.session_id != session_id:
        raise InvalidRecord(f"{where}.meta.session_id", f"is not {session_id!r}")
    ttl_ms = line.get("ttl_ms")
    if ttl_ms is not None and (type(ttl_ms) is not int or not 0 <= ttl_ms <= MAX_SECONDS * 1000):
        raise InvalidRecord(f"{where}.ttl_ms", f"expected ms up to 100 years, 0 for never, or null, got {ttl_ms!r}")
    ttl: float | Keep | None = KEEP if ttl_ms is None else None if ttl_ms == 0 else ttl_ms / 1000
    if line.get("head") is None:
        if meta is None:
            raise InvalidRecord(where, "has neither head nor meta")
        _check_shapes(line, where, meta=meta)
        return _Session(session_id, line, meta, ttl=ttl)
    head = SessionHead.from_json(line["head"], f"{where}.head")
    if head.session_id != session_id:
        raise InvalidRecord(f"{where}.head.session_id", f"is not {session_id!r}")
    manifest = SessionCheckpoint.from_json(line.get("checkpoint"), f"{where}.checkpoint")
    receipts = _bytes(f"{where}.receipts", line.get("receipts"))
    if head.head_revision < 1 or len(receipts) != RECEIPT_BYTES * min(RECEIPTS, head.head_revision):
        raise InvalidRecord(f"{where}.receipts", f"does not fit the revision {head.head_revision}")
    committed = line.get("committed_ms")
    if type(committed) is not int or not 0 < committed < 10**14:
        raise InvalidRecord(f"{where}.committed_ms", f"expected ms since 1970, got {committed!r}")
    commit_id = require_id(f"{where}.commit_id", line.get("commit_id"))
    if receipts[-RECEIPT_BYTES:-TAG_BYTES] != tag_of(commit_id):
        raise InvalidRecord(f"{where}.receipts", "its last one is not that of the commit_id")
    blobs: dict[str, bytes] = {}
    for name in COMPONENTS:
        ref = getattr(manifest, f"{name}_ref")
        if ref is None:
            continue
        data = spool.get(require_ref(f"{where}.checkpoint.{name}_ref", ref))
        if data is None:
            raise InvalidRecord(f"{where}.checkpoint.{name}_ref", "is a blob that no line before it has")
        blobs[ref] = data
    _check_shapes(line, where, head=head, checkpoint=manifest, meta=meta)
    _check_manifest(manifest, head.checkpoint_ref, blobs, where)
    if len({(entry.source, entry.model) for entry in head.token_ledger}) < len(head.token_ledger):
        raise InvalidRecord(f"{where}.head.token_ledger", "has two rows of one source and model")
    graph = head.graph
    if _has_cycle(graph):
        raise InvalidRecord(f"{where}.head.graph", "its parents form a cycle")
    resolves = graph.find_node(graph.leaf_node_id) is not None if graph.leaf_node_id else not graph.nodes
    return _Session(
        session_id,
        line,
        meta,
        RuntimeCommit(
            session_id,
            0,
            head.config,
            Append(graph.nodes, graph.leaf_node_id) if graph.nodes else Unchanged(graph.leaf_node_id),
            HydratedSessionCheckpoint(
                turn_state=manifest.turn_state,
                tool_state_ref=manifest.tool_state_ref,
                plugin_snapshot_ref=manifest.plugin_snapshot_ref,
                plugin_snapshot_revision=manifest.plugin_snapshot_revision,
                execution_state_ref=manifest.execution_state_ref,
            ),
            [row for entry in head.token_ledger for row in _rows(entry)],
            commit_id,
        ),
        commands.commit.Origin(
            meta,
            head.head_revision - 1,
            committed,
            history=receipts[:-RECEIPT_BYTES],
            meaning=receipts[-TAG_BYTES:],
        ),
        blobs,
        ttl,
        is_lenient=line.get("links_by_id") is True or not resolves,
    )


def _check_shapes(line: Line, where: str, **records: Any) -> None:
    """What these records say must be all that the line says: no field is dropped, none made up."""
    for name, record in records.items():
        said = None if record is None else record.to_json(f"{where}.{name}")
        if _canonical(said) != _canonical(line.get(name)):
            raise InvalidRecord(f"{where}.{name}", "has a field too many or too few: it would read back otherwise")


def _check_manifest(manifest: SessionCheckpoint, ref: str | None, blobs: dict[str, bytes], where: str) -> None:
    path = f"{where}.checkpoint"
    if ref_of(pack(manifest.to_msgpack(path), path)) != ref:
        raise InvalidRecord(f"{where}.head.checkpoint_ref", "is not the hash of the checkpoint")
    for name in COMPONENTS:
        named = getattr(manifest, f"{name}_ref")
        try:
            if named is not None:
                StoredComponent(name, named, blobs[named], where).value()
        except Corrupt as error:
            raise InvalidRecord(f"{path}.{name}_ref", error.reason) from error


def _has_cycle(graph: SessionGraph) -> bool:
    parents = {node.node_id: node.parent_node_id for node in graph.nodes}
    done: set[str] = set()
    for node_id in parents:
        path: set[str] = set()
        at: str | None = node_id
        while at is not None and at in parents and at not in done:
            if at in path:
                return True
            path.add(at)
            at = parents[at]
        done |= path
    return False


def _rows(entry: TokenLedgerEntry) -> Sequence[TokenLedgerEntry]:
    """The usage that books `entry`: a commit drops a row without tokens, but keeps a sum that comes to none."""
    if not entry.usage.is_zero():
        return [entry]
    return [replace(entry, usage=TokenUsage(1)), replace(entry, usage=TokenUsage(-1))]


async def _import_one(cache: SessionCache, record: _Session, state: _Import, free: asyncio.Semaphore) -> None:
    try:
        await _store(cache, record, state)
    except (BackendError, OutcomeUnknown):
        raise
    except StoreError as error:
        state.fail(record.session_id, error)
    finally:
        free.release()
    if state.progress is not None:
        state.progress(state.report.session_count + state.report.failed_count)


async def _store(cache: SessionCache, record: _Session, state: _Import) -> None:
    store = cache.session(record.session_id)
    there = await store.load_head()
    if record.commit is None or record.origin is None:
        assert record.meta is not None
        meta = await store.load_session_meta()
        if there is not None or meta not in (None, record.meta):
            raise SessionExists(0, 0 if there is None else there.head_revision)
        await store.create_meta(record.meta, record.ttl)
        state.count(present_count=int(meta is not None), session_count=1)
        return
    is_present = there is not None and there.commit_id == record.commit.commit_id
    if not is_present:
        options = replace(
            cache.options,
            max_commit_nodes=None,
            max_commit_bytes=None,
            graph_checks="lenient" if record.is_lenient else "strict",
        )
        result = await store.begin(record.commit, record.origin, record.blobs, options=options, ttl=record.ttl)
        is_present = result.replayed
    await _compare(cache, record)
    state.count(present_count=int(is_present), session_count=1)


async def _compare(cache: SessionCache, record: _Session) -> None:
    """Hold what is stored against the line, unless the session has gone on since.

    Raises:
        Corrupt: it reads other than the line says.
    """
    stored = await _exported(cache, record.session_id)
    if stored is None:
        raise SessionGone(None, 0, record.session_id)
    line, _ = stored
    if line.get("commit_id") != record.line["commit_id"]:
        return
    head = cache.layout.session(record.session_id).head
    for name, value in line.items():
        if name not in HOW_IT_IS_KEPT and _canonical(value) != _canonical(record.line.get(name)):
            raise Corrupt("session", head, f"its {name} is not what the line says")
