"""List the sessions of a namespace in the order of their last commits: in pages for users, or all for maintenance."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from lash_redis.errors import Corrupt
from lash_redis.models import Cursor, SessionPickerInfo
from lash_redis.models.catalogue import catalogue_entry, entry_ids
from lash_redis.protocol import commands
from lash_redis.protocol.keys import CatalogueKeys, ShardKeys
from lash_redis.session.namespace import Namespace
from lash_redis.session.reader import Reader

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


async def place_of(namespace: Namespace, session_id: str, owner: str | None) -> Cursor | None:
    """Return the place of a session in the list (that of an `owner`, if one is given), None if it is not listed.

    Two round trips, because the entry contains the parent's id, which is read first.
    """
    keys = namespace.layout.session(session_id, owner)
    (parent,) = await namespace.read([commands.audit.parent_read(keys)], atomic=False)
    entry = catalogue_entry(session_id, None if parent is None else parent.decode())
    (committed,) = await namespace.read([commands.catalogue.place_read(keys, entry)], atomic=False)
    return None if committed is None else Cursor(commands.catalogue.to_ms(committed), entry)


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
    gone: list[int] = []
    for at, (reply, others) in enumerate(zip(replies[::2], replies[1::2], strict=True)):
        try:
            line = commands.catalogue.line_reply(keys[at], entries[at], reply, others)
        except Corrupt as error:
            lines[at] = commands.catalogue.faulty_line(keys[at], entries[at], error)
            continue
        if line is None:
            gone.append(at)
        else:
            lines[at] = line.info
            if line.first != -1:
                incomplete[at] = line
    await _add_first_messages(namespace, incomplete, lines)
    if gone:
        await prune(namespace, [entries[at].entry for at in gone], owner)
    return lines


async def _add_first_messages(
    namespace: Namespace, incomplete: dict[int, commands.catalogue.Line], lines: list[SessionPickerInfo | None]
) -> None:
    known = {at: line for at, line in incomplete.items() if line.first >= 0}
    trip = [command for line in known.values() for command in commands.catalogue.first_read(line)]
    replies = await namespace.read(trip, atomic=False, faults=True)
    for (at, line), record, facts in zip(known.items(), replies[::2], replies[1::2], strict=True):
        try:
            finished = line.with_record(record, facts)
        except Corrupt as error:
            finished = replace(line.info, fault=commands.catalogue.fault_of(error))
        if finished is not None:
            lines[at] = finished
            del incomplete[at]
    # The first message was tombstoned, or the log was replaced since: read the graph.
    for at, line in incomplete.items():
        try:
            found = await Reader(namespace, line.keys).snapshot()
            if found is None:
                lines[at] = None
            else:
                lines[at] = replace(line.info, first_user_message=found.stored.graph.first_user_message())
        except Corrupt as error:
            lines[at] = replace(line.info, fault=commands.catalogue.fault_of(error))


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
