"""List the sessions of a namespace in the order of their last commits: in pages for users, or all for maintenance."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from lash_redis.errors import BackendError, Corrupt
from lash_redis.models import Cursor, SessionPickerInfo
from lash_redis.models.catalogue import catalogue_entry, entry_ids
from lash_redis.protocol import commands
from lash_redis.protocol.keys import CatalogueKeys, SessionKeys, ShardKeys
from lash_redis.session.namespace import Namespace
from lash_redis.session.reader import MAX_ATTEMPTS, Reader

PAGE = 100
"""Sessions fetched at once."""

MAX_CHUNK = 1000
"""Maximum entries of one shard fetched at once. It is exceeded only if more entries have the same time."""


@dataclass(slots=True)
class _Scan:
    """How far the entries of a catalogue have been read, in one direction."""

    keys: CatalogueKeys
    at: Cursor | None
    chunk: int
    descending: bool = True
    is_done: bool = False

    def command(self) -> commands.calls.Command:
        read = commands.catalogue.latest_read if self.descending else commands.catalogue.oldest_read
        return read(self.keys, self.at, self.chunk)

    def take(self, entries: Sequence[Cursor]) -> list[Cursor]:
        """Return the new ones of the entries just read. A chunk begins with the time at which the last one ended."""
        last = self.at
        fresh = [each for each in entries if last is None or (each < last if self.descending else each > last)]
        self.is_done = len(entries) < self.chunk
        if fresh:
            self.at = fresh[-1]
        # If a whole chunk has one time, only a longer one gets past it. Ranks change during the scan, times do not.
        at_one_time = bool(entries) and entries[0].committed_ms == entries[-1].committed_ms
        self.chunk = 2 * self.chunk if at_one_time else min(2 * self.chunk, MAX_CHUNK)
        return fresh


def first_chunk(limit: int | None, shards: int) -> int:
    """Return how many entries to read from each shard first: a few more than its even share of `limit`."""
    share = min(PAGE if limit is None else limit, PAGE) / shards
    return min(MAX_CHUNK, max(4, round(3 * share)))


async def cursor_of(namespace: Namespace, session_id: str, owner: str | None) -> Cursor | None:
    """Return the place of a session in the list (that of an `owner`, if one is given), None if it is not listed.

    Two round trips, because the entry contains the parent's id, which is read first. The second one reads it again.

    Raises:
        BackendError: the session got another parent during each of `MAX_ATTEMPTS` reads.
    """
    keys = namespace.layout.session(session_id, owner)
    parent_read = commands.audit.parent_read(keys)
    (parent,) = await namespace.read([parent_read], atomic=False)
    for _ in range(MAX_ATTEMPTS):
        entry = catalogue_entry(session_id, None if parent is None else parent.decode())
        known = parent
        parent, committed = await namespace.read([parent_read, commands.catalogue.place_read(keys, entry)], atomic=True)
        if parent == known:
            return None if committed is None else Cursor(commands.catalogue.to_ms(committed), entry)
    raise BackendError(f"session {session_id!r} was created again during each of {MAX_ATTEMPTS} reads; retry later")


class Listing:
    """One pass over the sessions of a namespace, or of one owner in it, most recent first. It merges the shards' lists.

    Entries that were read and not returned yet are buffered by shard, so a pass reads every entry once.
    """

    def __init__(
        self,
        namespace: Namespace,
        after: Cursor | None = None,
        parent: str | None = None,
        first_chunk: int = PAGE,
        *,
        owner: str | None = None,
    ) -> None:
        self._namespace = namespace
        self._parent = parent
        self._owner = owner or ""
        shards = map(namespace.layout.shard_keys, range(namespace.layout.shards))
        self._scans = [
            _Scan(commands.catalogue.catalogue_keys(shard, self._owner), after, first_chunk) for shard in shards
        ]
        self._buffered: list[deque[Cursor]] = [deque() for _ in self._scans]

    async def entries(self, count: int) -> list[Cursor]:
        """Return the next entries; fewer than `count` only at the end."""
        found: list[Cursor] = []
        while len(found) < count:
            await self._fill()
            candidates = [(buffer[0], at) for at, buffer in enumerate(self._buffered) if buffer]
            if not candidates:
                break
            while len(found) < count:
                latest, at = max(candidates)
                found.append(latest)
                candidates.remove((latest, at))
                buffer = self._buffered[at]
                buffer.popleft()
                if buffer:
                    candidates.append((buffer[0], at))
                elif not candidates or not self._scans[at].is_done:
                    break
        return found

    async def _fill(self) -> None:
        """Read from every shard whose buffer is empty, until it has an entry or the shard is exhausted."""
        while True:
            empty = [at for at, scan in enumerate(self._scans) if not self._buffered[at] and not scan.is_done]
            if not empty:
                return
            replies = await self._namespace.read([self._scans[at].command() for at in empty], atomic=False)
            for at, reply in zip(empty, replies, strict=True):
                for entry in self._scans[at].take(commands.catalogue.entries_reply(reply)):
                    if self._parent is None or entry_ids(entry.entry)[1] == self._parent:
                        self._buffered[at].append(entry)

    async def lines(self, count: int) -> list[SessionPickerInfo] | None:
        """Return the lines of those of the next `count` entries whose session still exists; None at the end.

        Two round trips. If sessions have expired, a third one removes their entries from the catalogue.
        """
        entries = await self.entries(count)
        if not entries:
            return None
        lines = await lines_of(self._namespace, entries, self._owner)
        return [line for line in lines if line is not None]


async def lines_of(namespace: Namespace, entries: Sequence[Cursor], owner: str) -> list[SessionPickerInfo | None]:
    """Return a line for each entry; None for a session that no longer exists, or is not the `owner`'s any more."""
    layout = namespace.layout
    keys = [layout.session(entry_ids(entry.entry)[0], owner) for entry in entries]
    trip = [command for each in keys for command in commands.catalogue.line_read(each)]
    replies = await namespace.read(trip, atomic=False, faults=True)
    lines: list[SessionPickerInfo | None] = [None] * len(entries)
    incomplete: dict[int, commands.catalogue.Line] = {}
    doubted: dict[int, int] = {}
    """The sessions to read again at one moment, and the known positions of their first user messages."""
    gone: list[int] = []
    for at, (reply, others) in enumerate(zip(replies[::2], replies[1::2], strict=True)):
        try:
            line = commands.catalogue.line_reply(keys[at], entries[at], reply, others)
        except Corrupt:
            doubted[at] = 0
            continue
        if line is None:
            gone.append(at)
        else:
            lines[at] = line.info
            if line.first != -1:
                incomplete[at] = line
    doubted |= await _add_first_messages(namespace, incomplete, lines)
    for at, first in doubted.items():
        lines[at] = await _line_at_one_moment(namespace, keys[at], entries[at], first)
        if lines[at] is None:
            gone.append(at)
    if gone:
        await prune(namespace, [entries[at].entry for at in gone], owner)
    return lines


async def _add_first_messages(
    namespace: Namespace, incomplete: dict[int, commands.catalogue.Line], lines: list[SessionPickerInfo | None]
) -> dict[int, int]:
    """Add the texts of first user messages to `lines`.

    Return the places where that failed, and the known positions of these messages. The session has changed since its
    line was read, its message was tombstoned, or its record is damaged.
    """
    known = {at: line for at, line in incomplete.items() if line.first >= 0}
    trip = [command for line in known.values() for command in commands.catalogue.first_read(line.keys, line.first)]
    replies = await namespace.read(trip, atomic=False, faults=True)
    doubted = {at: max(line.first, 0) for at, line in incomplete.items()}
    for (at, line), record, facts in zip(known.items(), replies[::2], replies[1::2], strict=True):
        with suppress(Corrupt):
            finished = line.with_record(record, facts)
            if finished is not None:
                lines[at] = finished
                del doubted[at]
    return doubted


async def _line_at_one_moment(
    namespace: Namespace, keys: SessionKeys, entry: Cursor, first: int
) -> SessionPickerInfo | None:
    """Return the line of a session, read in one transaction with the record at the position `first`.

    If that is not its first user message, the transaction is repeated with the position that it found, and then the
    whole graph is read. None as `line_reply` does. A line with a `fault` if the transaction shows damage.
    """
    info: SessionPickerInfo | None = None
    try:
        for _ in range(MAX_ATTEMPTS):
            trip = [*commands.catalogue.line_read(keys), *commands.catalogue.first_read(keys, first)]
            reply, others, record, facts = await namespace.read(trip, atomic=True, faults=True)
            line = commands.catalogue.line_reply(keys, entry, reply, others)
            if line is None or line.first == -1:
                return None if line is None else line.info
            info = line.info
            if line.first in (first, -2):
                finished = None if line.first == -2 else line.with_record(record, facts)
                if finished is not None:
                    return finished
                break
            first = line.first
        found = await Reader(namespace, keys).snapshot()
        line = None if found is None else commands.catalogue.line_of_head(keys, entry, found.stored.head.fields)
        if found is None or line is None:
            return None
        return replace(line.info, first_user_message=found.stored.graph.first_user_message())
    except Corrupt as error:
        if info is None:
            return commands.catalogue.faulty_line(keys, entry, error)
        return replace(info, fault=commands.catalogue.fault_of(error))


async def prune(namespace: Namespace, entries: Sequence[bytes], owner: str) -> None:
    """Drop entries without a session from the catalogues of the shards, or from those of an `owner`."""
    by_shard: dict[str, list[bytes]] = {}
    layout = namespace.layout
    for entry in entries:
        by_shard.setdefault(layout.session(entry_ids(entry)[0]).prefix, []).append(entry)
    for prefix, those in by_shard.items():
        call = commands.catalogue.prune_call(ShardKeys(prefix), owner, layout, those)
        commands.calls.status(call, await namespace.run(call), ShardKeys(prefix))


async def walk(namespace: Namespace, shard: CatalogueKeys, chunk: int = MAX_CHUNK) -> AsyncIterator[list[Cursor]]:
    """Yield every entry of a shard, the oldest commits first.

    A session that is committed to during the walk moves ahead of it, so none is missed. An entry is yielded once. A
    session that was created again with another parent may have two entries. A round trip for every `chunk` entries.
    """
    scan, seen = _Scan(shard, None, chunk, descending=False), set[bytes]()
    while not scan.is_done:
        (reply,) = await namespace.read([scan.command()], atomic=False)
        entries = [entry for entry in scan.take(commands.catalogue.entries_reply(reply)) if entry.entry not in seen]
        if entries:
            seen.update(entry.entry for entry in entries)
            yield entries


async def walk_ids(namespace: Namespace) -> AsyncIterator[list[str]]:
    """Yield the id of every listed session of the namespace, each once, shard by shard as `walk` does."""
    for shard in range(namespace.layout.shards):
        seen: set[str] = set()
        async for entries in walk(namespace, namespace.layout.shard_keys(shard)):
            ids = [name for name in dict.fromkeys(entry_ids(entry.entry)[0] for entry in entries) if name not in seen]
            seen.update(ids)
            if ids:
                yield ids
