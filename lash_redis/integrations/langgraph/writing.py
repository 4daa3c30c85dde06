"""Store checkpoints and pending writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langgraph.checkpoint.base import WRITES_IDX_MAP, ChannelVersions, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from lash_redis.errors import BackendError, DocumentsChanged, PartTaken
from lash_redis.integrations.langgraph import names
from lash_redis.integrations.langgraph.conflicts import CheckpointConflict, Claim
from lash_redis.integrations.langgraph.memory import Known, Memory
from lash_redis.integrations.langgraph.reading import ThreadReader, pointer_of
from lash_redis.integrations.langgraph.records import CheckpointRecord, Typed, Value, WriteRecord, encode_pointer
from lash_redis.integrations.langgraph.values import PartCache, Run, encode
from lash_redis.models import DocumentWrite
from lash_redis.session.documents import Documents

MAX_ATTEMPTS: Final = 16
CHUNK_PARTS: Final = 1_000
CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Parts above this number, or these bytes, are written before the checkpoint, in calls of their own."""


@dataclass(frozen=True, slots=True)
class Put:
    """A call of `put`."""

    ns: str
    claim: Claim
    checkpoint: Checkpoint
    metadata: Mapping[str, Any]
    new_versions: ChannelVersions

    @property
    def name(self) -> bytes:
        return names.checkpoint(self.ns, self.claim.checkpoint_id)


@dataclass(slots=True)
class Prepared:
    """A checkpoint as it will be stored."""

    record: CheckpointRecord
    parts: dict[bytes, bytes] = field(default_factory=dict)
    logs: dict[bytes, Run] = field(default_factory=dict)
    needs_parent: bool = False
    """Whether it has values of its parent, which must still be stored."""


class AlreadyStored(Exception):
    """A checkpoint with this id is stored."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = content


class Swept(Exception):
    """Parts that were stored for a checkpoint may have been removed before the checkpoint was stored."""


class ThreadWriter:
    """Writes to one thread."""

    def __init__(
        self, documents: Documents, reader: ThreadReader, memory: Memory, cache: PartCache, serde: SerializerProtocol
    ) -> None:
        self._documents = documents
        self._reader = reader
        self._memory = memory
        self._cache = cache
        self._serde = serde
        self._thread_id = documents.session_id

    async def put(
        self,
        ns: str,
        parent: str | None,
        checkpoint: Checkpoint,
        metadata: Mapping[str, Any],
        new_versions: ChannelVersions,
    ) -> None:
        """Store a checkpoint on its parent, and move the namespace's pointer to it. One round trip."""
        known = None if parent is None else await self._known(ns, parent)
        is_empty = self._memory.empty.get((self._thread_id, ns)) is not None
        begins = parent is None and is_empty and metadata.get("source") != "fork"
        claim = Claim(checkpoint["id"], parent, None if known is None else known.run, begins)
        put, starts_log = Put(ns, claim, checkpoint, metadata, new_versions), False
        for _ in range(MAX_ATTEMPTS):
            try:
                return await self._store(put, self._prepare(put, known, starts_log=starts_log))
            except PartTaken:
                starts_log = True
            except AlreadyStored as found:
                return await self._replace(put, found.content)
            except Swept:
                pass
        raise self._contended(ns)

    async def _known(self, ns: str, checkpoint_id: str) -> Known | None:
        """Return what is known of a checkpoint; read it if nothing is."""
        known = self._memory.checkpoints.get((self._thread_id, ns, checkpoint_id))
        if known is not None:
            return known
        found, pointer = await self._reader.exact(ns, checkpoint_id)
        self._memory.pointers.put((self._thread_id, ns), pointer)
        return None if found is None else await self._known_of(found.record)

    async def _known_of(self, record: CheckpointRecord) -> Known:
        await self._reader.parts(record.values.values())
        return Known(self._serde.loads_typed(record.head)["channel_versions"], record.values)

    def _prepare(self, put: Put, known: Known | None, *, starts_log: bool = False) -> Prepared:
        """Encode a checkpoint. `known` is its parent, or the same checkpoint as it is stored."""
        given, parent = put.checkpoint["channel_values"], put.claim.parent
        head = {name: value for name, value in put.checkpoint.items() if name != "channel_values"}
        values: dict[str, Value] = {}
        record = CheckpointRecord(
            None if parent is None else str(parent), self._typed(head), self._typed(put.metadata), values
        )
        new = Prepared(record)
        for channel, version in put.checkpoint["channel_versions"].items():
            previous = None if known is None else known.values.get(channel)
            is_kept = known is not None and known.versions.get(channel) == version and channel not in put.new_versions
            if previous is not None and is_kept:
                values[channel] = previous
            elif channel in given:
                encoded = encode(
                    self._typed(given[channel]), previous, self._cache, self._thread_id, starts_log=starts_log
                )
                values[channel] = encoded.value
                new.parts.update(encoded.parts)
                new.logs.update(encoded.logs)
            else:
                continue
            new.needs_parent = new.needs_parent or previous is not None
        return new

    def _typed(self, value: Any) -> Typed:
        return self._serde.dumps_typed(value)

    async def _store(self, put: Put, new: Prepared) -> None:
        """Store a checkpoint, and decide which one is the latest.

        Raises:
            PartTaken: another branch has appended to a log that this checkpoint appends to.
            AlreadyStored: a checkpoint with this id is stored.
            Swept: parts of the checkpoint may have been removed; store them again.
            CheckpointConflict: the checkpoint conflicts with what is stored.
        """
        claim, place, pointer_name = put.claim, (self._thread_id, put.ns), names.pointer(put.ns)
        expects: dict[bytes, bytes | bool] = {put.name: False, **await self._store_parts(new.parts)}
        if claim.parent is not None and (new.needs_parent or claim.is_branch):
            expects[names.checkpoint(put.ns, claim.parent)] = True
        current, is_fresh = self._memory.pointers.get(place), False
        for _ in range(MAX_ATTEMPTS):
            decided = claim.decide(pointer_of(put.ns, current))
            if isinstance(decided, str):
                if is_fresh:
                    raise self._conflict(put, decided)
                current, stored = await self._stored(pointer_name, put.name)
                is_fresh = True
                if stored is not None:
                    raise AlreadyStored(stored)
                continue
            pointer, run = None if decided[0] is None else encode_pointer(put.ns, decided[0]), decided[1]
            contents = {**new.parts, put.name: new.record.encode()}
            if pointer is not None:
                contents[pointer_name] = pointer
            try:
                await self._documents.write(
                    DocumentWrite(put=contents, expects={**expects, pointer_name: current or False})
                )
            except DocumentsChanged as changed:
                found = changed.found
                stored = found.get(put.name)
                if stored is not None:
                    raise AlreadyStored(stored) from changed
                if names.SWEPT in found:
                    raise Swept from changed
                if pointer_name not in found:
                    raise self._conflict(put, "its parent was deleted or pruned meanwhile") from changed
                current, is_fresh = found[pointer_name], True
            else:
                return self._learn(put, new, pointer, run)
        raise self._contended(put.ns)

    async def _stored(self, *wanted: bytes) -> list[bytes | None]:
        """Return the contents of documents; None for one that does not exist."""
        found = {each.name: each.content for each in (await self._documents.read(wanted)).documents}
        return [found.get(name) for name in wanted]

    async def _store_parts(self, parts: dict[bytes, bytes]) -> dict[bytes, bytes | bool]:
        """Store parts that are too many or too large for one call, and return what the checkpoint's call must expect.

        The other parts go with the checkpoint.
        """
        if len(parts) <= CHUNK_PARTS and sum(map(len, parts.values())) <= CHUNK_BYTES:
            return {}
        (swept,) = await self._stored(names.SWEPT)
        for chunk in chunks(parts):
            await self._documents.write(DocumentWrite(put=chunk))
        parts.clear()
        return {names.SWEPT: swept or False}

    async def _replace(self, put: Put, stored: bytes) -> None:
        """Store a checkpoint again under its id, as other savers do. The pointer stays."""
        known = await self._known_of(CheckpointRecord.decode(put.name, stored))
        new = self._prepare(put, known)
        content = new.record.encode()
        if content != stored:
            expects = await self._store_parts(new.parts)
            await self._documents.write(
                DocumentWrite(put={**new.parts, put.name: content}, expects={**expects, put.name: True})
            )
        (pointer,) = await self._stored(names.pointer(put.ns))
        current = pointer_of(put.ns, pointer)
        is_latest = current is not None and current.latest == put.claim.checkpoint_id
        self._learn(put, new, pointer, current.run if current is not None and is_latest else None)

    def _learn(self, put: Put, new: Prepared, pointer: bytes | None, run: str | None) -> None:
        place = self._thread_id, put.ns
        known = Known(put.checkpoint["channel_versions"], new.record.values, run)
        self._memory.pointers.put(place, pointer)
        self._memory.checkpoints.put((*place, put.claim.checkpoint_id), known)
        for log, elements in new.logs.items():
            self._cache.keep_log(self._thread_id, log, elements)

    async def put_writes(
        self, ns: str, checkpoint_id: str, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        """Store pending writes of a task. One round trip, and another one if this process has not seen the thread.

        A write that is stored stays, except those of the special channels. The checkpoint may not be stored yet,
        because a run stores both at the same time.
        """
        put: dict[bytes, bytes] = {}
        add: dict[bytes, bytes] = {}
        for at, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, at)
            record = WriteRecord(task_id, index, channel, self._typed(value), task_path)
            (add if index >= 0 else put)[names.write(ns, checkpoint_id, task_id, index)] = record.encode()
        expected = await self._checkpoint_of_the_run(ns, checkpoint_id)
        expects: dict[bytes, bytes | bool] = {} if expected is None else {names.checkpoint(ns, expected): True}
        try:
            await self._documents.write(DocumentWrite(put=put, add=add, expects=expects))
        except DocumentsChanged as changed:
            raise CheckpointConflict(
                self._thread_id, ns, str(checkpoint_id), "that checkpoint was deleted or pruned meanwhile"
            ) from changed

    async def _checkpoint_of_the_run(self, ns: str, checkpoint_id: str) -> str | None:
        """Return a checkpoint that is stored unless the thread was deleted; None if the run has begun the thread.

        Otherwise writes to a deleted thread would make a session that has no checkpoint.
        """
        place = self._thread_id, ns
        if self._memory.checkpoints.get((*place, checkpoint_id)) is not None:
            return checkpoint_id
        stored = pointer_of(ns, self._memory.pointers.get(place))
        if stored is None and self._memory.empty.get(place) is None:
            found, pointer = await self._reader.exact(ns, checkpoint_id)
            self._memory.pointers.put(place, pointer)
            stored = pointer_of(ns, pointer)
            if found is not None or stored is None or checkpoint_id < stored.latest:
                return checkpoint_id
        return None if stored is None else stored.latest  # an earlier one of the run

    def _conflict(self, put: Put, reason: str) -> CheckpointConflict:
        parent = put.claim.parent
        return CheckpointConflict(self._thread_id, put.ns, None if parent is None else str(parent), reason)

    def _contended(self, ns: str) -> BackendError:
        return BackendError(
            f"thread {self._thread_id!r}, namespace {ns!r} changed during each of {MAX_ATTEMPTS} attempts to store a "
            "checkpoint; retry later"
        )


def chunks(parts: Mapping[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    """Divide parts into calls of bounded size."""
    chunk: dict[bytes, bytes] = {}
    size = 0
    for name, content in parts.items():
        if chunk and (len(chunk) >= CHUNK_PARTS or size + len(content) > CHUNK_BYTES):
            yield chunk
            chunk, size = {}, 0
        chunk[name] = content
        size += len(content)
    if chunk:
        yield chunk
