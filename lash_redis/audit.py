"""The audit of a namespace: check every stored session and blob against the invariants of storage, and repair counts.

The audit reads shard by shard, in bounded steps. It reads each session at one moment, so concurrent traffic causes no
false alarms. It compares a shared blob first with the heads that it read. If they differ, it reads the blob and all
heads of the shard at one moment, and only a difference that remains is a problem. SCAN finds blobs and sessions that no
head or catalogue names. It shows the account the names of all keys of the database, those of other namespaces, too.
An audit without SCAN sends no command that names or returns a key of another namespace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lash_redis.errors import Corrupt
from lash_redis.listing import walk
from lash_redis.models import AuditProblem, AuditReport
from lash_redis.models.catalogue import catalogue_entry, entry_ids
from lash_redis.protocol import commands
from lash_redis.protocol.keys import SessionKeys, ShardKeys, generation_of
from lash_redis.session.namespace import Namespace
from lash_redis.transport.turns import in_turns

STEP_SESSIONS = 50
"""Maximum number of sessions read at one moment."""
STEP_BYTES = 4 * 1024 * 1024
"""Maximum bytes of node records read at one moment, unless a single session has more."""
STEP_BLOBS = 50
"""Maximum number of blobs read at one moment."""
SCAN_COUNT = 1000
"""The COUNT of each SCAN call."""
MAX_PROBLEMS = 10_000
"""Maximum number of problems that a report describes; all are counted."""
GROUP_SESSIONS = 100_000
"""Maximum number of sessions in the shards of one SCAN of the keyspace. Their ids and refs are kept in memory."""
ATTEMPTS = 20
"""Maximum number of recounts of blobs that other clients change during the recount."""

STREAMS_CHUNK = 500
"""Number of sessions whose streams an audit without SCAN finds in one round trip."""

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class _Found:
    """The keys that SCAN found in one shard."""

    session_ids: set[str] = field(default_factory=set)
    refs: set[bytes] = field(default_factory=set)
    generations: dict[str, set[str]] = field(default_factory=dict)
    """The generations whose events were found, by session, also for a session of which only records were found."""


@dataclass(slots=True)
class _Shard:
    """The state of the audit of one shard."""

    keys: ShardKeys
    expected: dict[bytes, Counter[int]]
    """For each ref, the number of sessions that hold it until each time, by the heads that were read."""
    session_ids: set[str] = field(default_factory=set)
    is_sound: bool = True
    """Whether every session could be read. The blobs of an unreadable session are unknown, so no blob is released."""


class Audit:
    """One audit of a namespace. Call `run` once."""

    def __init__(self, namespace: Namespace, *, repair: bool, scan: bool, progress: Progress | None) -> None:
        self._namespace = namespace
        self._layout = namespace.layout
        self._repair = repair
        self._scans = scan
        self._progress = progress
        self._problems: list[AuditProblem] = []
        self._counts: Counter[str] = Counter()
        self._total = 0

    async def run(self) -> AuditReport:
        """Audit every shard. Stored data that cannot be read is a problem in the report, not an exception.

        Raises:
            BackendError: the server failed; repairs that were made stay.
        """
        shards = [self._layout.shard_keys(shard) for shard in range(self._layout.shards)]
        trip = [commands.audit.listed_read(shard) for shard in shards]
        sizes = [
            size if isinstance(size, int) else 0 for size in await self._namespace.read(trip, atomic=False, faults=True)
        ]
        self._total = sum(sizes)
        self._report_progress()
        for group in _groups(shards, sizes):
            found = await self._scan(group) if self._scans else {}
            for shard in group:
                try:
                    await self._shard(shard, found[shard.prefix] if self._scans else await self._orphans(shard))
                except Corrupt as error:  # one of the shard's own lists is damaged; audit the other shards
                    self._add(commands.audit.problem_of(error))
        counts = self._counts
        return AuditReport(
            session_count=counts["sessions"],
            node_count=counts["nodes"],
            blob_count=counts["blobs"],
            problem_count=counts["problems"],
            repaired_count=counts["repaired"],
            problems=tuple(self._problems),
        )

    def _add(self, problem: AuditProblem) -> None:
        self._counts["problems"] += 1
        self._counts["repaired"] += problem.repaired
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)

    def _report_progress(self) -> None:
        if self._progress is not None:
            self._progress(self._counts["sessions"], max(self._total, self._counts["sessions"]))

    async def _scan(self, shards: Sequence[ShardKeys]) -> dict[str, _Found]:
        """Find the sessions and blobs of these shards by SCAN, by the prefix of the shard."""
        found = {shard.prefix: _Found() for shard in shards}
        async for keys in self._namespace.scan(SCAN_COUNT):
            for key in keys:
                prefix, _, rest = key.partition(b"}:")
                family, _, name = rest.partition(b":")
                there = found.get(f"{prefix.decode(errors='replace')}}}:")
                if there is None or not name:
                    continue
                try:
                    if family == b"blob":
                        there.refs.add(bytes.fromhex(name.decode()))
                    elif family == b"streams":
                        there.generations.setdefault(name.decode(), set())
                    elif family == b"events":
                        session_id, generation_id = generation_of(name.decode())
                        there.generations.setdefault(session_id, set()).add(generation_id)
                    elif family not in (b"sessions", b"expiries"):
                        there.session_ids.add(name.decode())
                except ValueError as error:
                    self._add(
                        AuditProblem(
                            family.decode(errors="replace"), repr(key), f"is not a key of this package: {error}"
                        )
                    )
        return found

    async def _orphans(self, shard: ShardKeys) -> _Found:
        """Find the blobs that the shard lists as orphans, which no head needs to name.

        Raises:
            Corrupt: the list of orphans is unreadable.
        """
        found = _Found()
        at, refs = 0, [b""]
        while refs:
            (refs,) = await self._namespace.read([commands.audit.orphans_read(shard, at)], atomic=False)
            at += len(refs)
            try:
                found.refs.update(bytes.fromhex(ref.decode()) for ref in refs)
            except ValueError as error:
                raise Corrupt("orphans", shard.orphans, f"an entry is not a ref: {error}") from error
        return found

    async def _shard(self, keys: ShardKeys, found: _Found) -> None:
        shard = _Shard(keys, {ref: Counter() for ref in found.refs})
        async for entries in walk(self._namespace, keys):
            by_id = {entry_ids(entry.entry)[0]: entry.entry for entry in entries}
            fresh = [entry for session_id, entry in by_id.items() if session_id not in shard.session_ids]
            shard.session_ids.update(by_id)
            await self._sessions(fresh, shard)
        # Sessions that the catalogue does not name: they lost their entry, or only some of their keys are left.
        strays = sorted(found.session_ids - shard.session_ids)
        shard.session_ids.update(strays)
        await self._sessions([await self._entry(session_id) for session_id in strays], shard)
        await self._blobs(shard)
        if not self._scans:
            await self._find_streams(sorted(shard.session_ids), found)
        for session_id, generations in sorted(found.generations.items()):
            await self._streams(self._layout.session(session_id), generations)

    async def _find_streams(self, session_ids: Sequence[str], found: _Found) -> None:
        """Find which of the listed sessions have streams, without a SCAN."""
        for at in range(0, len(session_ids), STREAMS_CHUNK):
            chunk = session_ids[at : at + STREAMS_CHUNK]
            trip = [("EXISTS", self._layout.session(session_id).streams) for session_id in chunk]
            replies = await self._namespace.read(trip, atomic=False)
            found.generations.update({name: set() for name, exists in zip(chunk, replies, strict=True) if exists})

    async def _streams(self, keys: SessionKeys, found: set[str]) -> None:
        """Check the streams of a session, each at one moment. `found`: generations whose events were found."""
        try:
            names, left = await self._namespace.read(commands.stream_audit.names_read(keys), atomic=True)
        except Corrupt as error:
            self._add(commands.audit.problem_of(error))
            return
        generations, problems = commands.stream_audit.names_reply(keys, names, left)
        for generation in sorted(found.union(generations)):
            stream = keys.stream(generation)
            try:
                replies = await self._namespace.read(commands.stream_audit.stream_read(stream), atomic=True)
            except Corrupt as error:
                problems.append(commands.audit.problem_of(error))
            else:
                problems += commands.stream_audit.stream_reply(stream, replies)
        for problem in problems:
            self._add(problem)

    async def _entry(self, session_id: str) -> bytes:
        """Return the catalogue entry that a session should have."""
        trip = [commands.audit.parent_read(self._layout.session(session_id))]
        (parent,) = await self._namespace.read(trip, atomic=False, faults=True)
        return catalogue_entry(session_id, parent.decode() if isinstance(parent, bytes) else None)

    async def _sessions(self, entries: Sequence[bytes], shard: _Shard) -> None:
        for chunk in _chunks(entries, STEP_SESSIONS):
            keys = [self._layout.session(entry_ids(entry)[0]) for entry in chunk]
            for step in await self._steps(list(zip(keys, chunk, strict=True))):
                await self._step(step, shard)
            self._report_progress()

    async def _steps(self, sessions: Sequence[tuple[SessionKeys, bytes]]) -> list[list[commands.audit.Listed]]:
        """Divide sessions into steps of at most about `STEP_BYTES`, each of one shard.

        Only keys of one slot can be read at one moment, and a key may be stored in a shard where it does not belong.
        """
        reads = (commands.reads.facts_read, commands.audit.owner_read, commands.documents.account_read)
        trip = [read(keys) for keys, _ in sessions for read in reads]
        stored = await self._namespace.read(trip, atomic=False, faults=True)
        steps: list[list[commands.audit.Listed]] = [[]]
        room = STEP_BYTES
        for at, (keys, entry) in enumerate(sessions):
            facts, owner, account = stored[3 * at : 3 * at + 3]
            room -= commands.audit.counted_bytes(facts, account)
            if steps[-1] and (room < 0 or keys.prefix != steps[-1][-1].keys.prefix):
                steps.append([])
                room = STEP_BYTES
            owner_id = owner.decode(errors="replace") if isinstance(owner, bytes) else ""
            steps[-1].append(commands.audit.Listed(keys, entry, owner_id))
        return steps

    async def _step(self, sessions: Sequence[commands.audit.Listed], shard: _Shard) -> None:
        """Read and check some sessions at one moment; one by one if one of their keys holds another type."""
        try:
            trip = [command for listed in sessions for command in commands.audit.session_read(listed)]
            replies = await self._namespace.read(trip, atomic=True)
        except Corrupt as error:
            if len(sessions) == 1:
                self._counts["sessions"] += 1
                self._add(commands.audit.problem_of(error))
                shard.is_sound = False
                return
            for session in sessions:
                await self._step([session], shard)
            return
        for at, listed in enumerate(sessions):
            size = commands.audit.SESSION_READS
            audited = await in_turns(commands.audit.session_reply(listed, replies[at * size : (at + 1) * size]))
            if not audited.is_gone:
                await self._count(listed.keys, audited, shard)

    async def _count(self, keys: SessionKeys, audited: commands.audit.Audited, shard: _Shard) -> None:
        """Count a session and its problems, and repair its catalogue entry."""
        self._counts["sessions"] += 1
        self._counts["nodes"] += audited.node_count
        self._counts["blobs"] += audited.private_count
        for (ref, hold), count in audited.holds.items():
            shard.expected.setdefault(ref, Counter())[hold] += count
        shard.is_sound = shard.is_sound and not audited.problems
        for problem in audited.problems:
            self._add(problem)
        wrong = None if audited.listing is None else await self._recheck_listing(audited.listing)
        if wrong is not None and wrong.listing is not None:
            is_repaired = False
            if self._repair:
                call = commands.audit.relist_call(wrong.listing)
                is_repaired = commands.calls.status(call, await self._namespace.run(call), keys) == "relisted"
            reason = f"the entry of {keys.session_id!r} differs from its head"
            self._add(AuditProblem("sessions", wrong.wrong_catalogue, reason, is_repaired))

    async def _recheck_listing(self, listed: commands.audit.Listed) -> commands.audit.Audited | None:
        """Read the head and its entries again; None if they agree.

        The first reading may have used the entry, or the owner, of a former session of this id.
        """
        for _ in range(ATTEMPTS):
            replies = await self._namespace.read(commands.audit.session_read(listed), atomic=True)
            audited = await in_turns(commands.audit.session_reply(listed, replies))
            if audited.listing is None or audited.listing == listed:
                return None if audited.listing is None else audited
            listed = audited.listing
        return None

    async def _blobs(self, shard: _Shard) -> None:
        """Check the blobs of a shard, and recount the holders of those whose counts differ from the heads."""
        doubtful: list[bytes] = []
        for chunk in _chunks(sorted(shard.expected), STEP_BLOBS):
            trip = [commands.audit.time_read()]
            trip += [command for ref in chunk for command in commands.blob_audit.blob_fields_read(shard.keys, ref)]
            time, *stored = await self._namespace.read(trip, atomic=True, faults=True)
            now = int(time[0]) * 1000 + int(time[1]) // 1000
            for ref, fields, left in zip(chunk, stored[::2], stored[1::2], strict=True):
                if isinstance(fields, Corrupt):
                    self._add(commands.audit.problem_of(fields))
                    continue
                self._counts["blobs"] += bool(fields)
                problems, is_doubtful = commands.blob_audit.blob_fields_reply(
                    shard.keys, ref, fields, left, shard.expected[ref], now
                )
                for problem in problems:
                    self._add(problem)
                if is_doubtful:
                    doubtful.append(ref)
        for chunk in _chunks(doubtful, STEP_BLOBS):
            await self._recount(shard, chunk)

    async def _recount(self, shard: _Shard, refs: Sequence[bytes]) -> None:
        """Compare the holders of some blobs with the heads of all sessions of the shard, and repair them.

        These are the listed sessions, and those that SCAN found. Without SCAN nothing is repaired, because a session
        that no catalogue names may hold the blobs.
        """
        options = self._namespace.options
        (entries,) = await self._namespace.read([commands.blob_audit.entries_read(shard.keys)], atomic=False)
        for _ in range(ATTEMPTS):
            sessions = _holdings(shard, entries)
            trip = commands.blob_audit.recount_read(shard.keys, refs, sessions)
            entries, *replies = await self._namespace.read(trip, atomic=True, faults=True)
            recounted = await in_turns(
                commands.blob_audit.recount_reply(shard.keys, refs, sessions, entries, replies, options)
            )
            if recounted is None:
                continue
            repairs = self._repair and self._scans and shard.is_sound and recounted.is_whole
            stored = [miscount for miscount in recounted.miscounts if repairs and b"c" in miscount.fields]
            moved = await self._write_counts(shard, stored)
            for miscount in recounted.miscounts:
                if miscount.ref not in moved:
                    self._add(miscount.problem(shard.keys, repaired=miscount in stored))
            refs = sorted(moved)
            if not refs:
                return
        reason = f"{len(refs)} blobs could not be recounted while other clients change them; audit again"
        self._add(AuditProblem("blob", shard.keys.prefix, reason))

    async def _write_counts(self, shard: _Shard, miscounts: Sequence[commands.blob_audit.Miscount]) -> set[bytes]:
        """Repair the holders of blobs; return the refs of those that must be read again."""
        if not miscounts:
            return set()
        call = commands.blob_audit.repair_call(shard.keys, miscounts, self._namespace.options)
        reply = await self._namespace.run(call)
        return commands.blob_audit.repair_reply(call, shard.keys, miscounts, reply)


def _holdings(shard: _Shard, entries: Sequence[bytes]) -> list[commands.blob_audit.Holding]:
    """Return the sessions that the catalogue lists, and the others that the audit has found."""
    prefix = shard.keys.prefix  # also for a head that is stored in the wrong shard
    listed = [(entry_ids(entry)[0], entry) for entry in entries]
    unlisted = shard.session_ids.difference(session_id for session_id, _ in listed)
    found = [*listed, *((session_id, b"") for session_id in sorted(unlisted))]
    return [commands.blob_audit.Holding(SessionKeys(prefix, session_id), entry) for session_id, entry in found]


def _groups(shards: Sequence[ShardKeys], sizes: Sequence[int]) -> list[list[ShardKeys]]:
    """Divide shards into groups of at most about `GROUP_SESSIONS` sessions."""
    groups: list[list[ShardKeys]] = [[]]
    room = GROUP_SESSIONS
    for shard, size in zip(shards, sizes, strict=True):
        room -= size
        if room < 0 and groups[-1]:
            groups.append([])
            room = GROUP_SESSIONS - size
        groups[-1].append(shard)
    return groups


def _chunks(items: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
