"""The commands of an audit of blobs: check their content, and compare their holders with the heads of their shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lash_redis.errors import Corrupt
from lash_redis.models import AuditProblem
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.blobs import decode_blob
from lash_redis.protocol.commands.audit import problem_of
from lash_redis.protocol.commands.calls import Command, ScriptCall, status
from lash_redis.protocol.heads import decode_components, decode_facts
from lash_redis.protocol.keys import SessionKeys, ShardKeys
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.steps import STEP_ITEMS, Steps

EARLY_MS: Final = 1000
"""A blob expires early if it expires this long before the longest of its holds."""
SHORT_HOLD_MS: Final = 60_000
"""The shortest time for which the holds of an expired session are accepted; the grace, if that is longer."""


def blob_fields_read(shard: ShardKeys, ref: bytes) -> list[Command]:
    key = shard.blob(ref.hex())
    return [("HGETALL", key), ("PTTL", key)]


def blob_fields_reply(
    shard: ShardKeys, ref: bytes, fields: Mapping[bytes, bytes], left: int, expected: Mapping[int, int], now: int
) -> tuple[list[AuditProblem], bool]:
    """Check a blob: return the problems of its content, and whether its holders must be recounted.

    They must be if they differ from `expected`, or if the blob expires too early. `left`: its PTTL in ms.
    """
    key = shard.blob(ref.hex())
    problems: list[AuditProblem] = []
    if fields:
        try:
            decode_blob(ref.hex(), fields.get(b"c", b""), key)
        except Corrupt as error:
            problems.append(problem_of(error))
    try:
        counted = _holders(fields, now, key)
    except Corrupt as error:
        return [*problems, problem_of(error)], False
    wanted = _present(expected, now)
    return problems, counted != wanted or not counted or _is_early(wanted, left, now)


def _holders(fields: Mapping[bytes, bytes], now: int, key: str) -> dict[int, int]:
    """Return the number of holders until each time that is not over.

    Raises:
        Corrupt: a number of the blob is unreadable.
    """
    try:
        decode_number(fields.get(b"u", b"0"))
        holders = {decode_number(hold): decode_number(count) for hold, count in _counts(fields).items() if hold != b"u"}
    except ValueError as error:
        raise Corrupt("blob", key, f"its numbers are unreadable: {error}") from error
    return _present(holders, now)


def _counts(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields of a blob without its content."""
    return {name: value for name, value in fields.items() if name != b"c"}


def _present(holders: Mapping[int, int], now: int) -> dict[int, int]:
    """Return the holders without those whose time is over. 0 is no end."""
    return {hold: count for hold, count in holders.items() if hold == 0 or hold > now}


def _is_early(holders: Mapping[int, int], left: int, now: int) -> bool:
    return left != -1 and any(hold == 0 or now + left < hold - EARLY_MS for hold in holders)


# Recount


@dataclass(frozen=True, slots=True)
class Holding:
    """A session of a shard whose head may hold blobs."""

    keys: SessionKeys
    entry: bytes
    """Its catalogue entry; empty if the catalogue does not list the session."""


@dataclass(frozen=True, slots=True)
class Miscount:
    """A blob whose holders are not those that the heads of its shard count."""

    ref: bytes
    reason: str
    fields: Mapping[bytes, bytes]
    """The blob as it was read; empty if it is not stored."""
    holders: Mapping[int, int]
    """The number of sessions that hold it until each time (ms), by their heads."""

    def problem(self, shard: ShardKeys, *, repaired: bool) -> AuditProblem:
        return AuditProblem("blob", shard.blob(self.ref.hex()), self.reason, repaired)


@dataclass(slots=True)
class Recounted:
    """The comparison of some blobs with all heads of their shard."""

    miscounts: list[Miscount] = field(default_factory=list)
    is_whole: bool = True
    """Whether every head could be read and is listed. Otherwise other heads may hold the blobs, too."""


def entries_read(shard: ShardKeys) -> Command:
    """Read all entries of the catalogue. The server takes 0.1 to 0.2 µs for each."""
    return ("ZRANGE", shard.sessions, 0, -1)


def recount_read(shard: ShardKeys, refs: Sequence[bytes], sessions: Sequence[Holding]) -> list[Command]:
    """Read some blobs and the heads of a shard. The commands must be run at one moment.

    `sessions` are all sessions of the shard. The server works for 1 to 1.7 µs a session.
    """
    return [
        entries_read(shard),
        ("TIME",),
        *(command for ref in refs for command in blob_fields_read(shard, ref)),
        *(("HMGET", session.keys.head, "facts", "refs") for session in sessions),
    ]


def recount_reply(
    shard: ShardKeys,
    refs: Sequence[bytes],
    sessions: Sequence[Holding],
    entries: Any,
    replies: Sequence[Any],
    options: StoreOptions,
) -> Steps[Recounted | None]:
    """Compare the holders of the blobs with the heads. `entries`: the catalogue of that moment.

    None if it lists a session that is not among `sessions`, because it has begun since they were listed. A session that
    has ended since then has no head, and counts as none.

    Raises:
        Corrupt: the catalogue or a blob is unreadable.
    """
    time, *rest = replies
    now = int(time[0]) * 1000 + int(time[1]) // 1000
    blobs, heads = rest[: 2 * len(refs)], rest[2 * len(refs) :]
    for reply in (entries, *blobs):
        if isinstance(reply, Corrupt):
            raise reply
    if not {session.entry for session in sessions}.issuperset(entries):
        return None
    recounted = Recounted()
    counted = yield from _count(refs, sessions, heads, now, recounted)
    for ref, fields, left in zip(refs, blobs[::2], blobs[1::2], strict=True):
        yield
        miscount = _compare(shard, ref, fields, left, counted[ref], now, options)
        if miscount is not None:
            recounted.miscounts.append(miscount)
    return recounted


def _count(
    refs: Sequence[bytes], sessions: Sequence[Holding], heads: Sequence[Any], now: int, recounted: Recounted
) -> Steps[dict[bytes, Counter[int]]]:
    """Count the sessions that hold each blob until each time, in steps.

    A session that was begun again with another parent has two entries for a while. It is counted once.
    """
    counted: dict[bytes, Counter[int]] = {ref: Counter() for ref in refs}
    seen: set[str] = set()
    for at, (session, stored) in enumerate(zip(sessions, heads, strict=True)):
        if at % STEP_ITEMS == STEP_ITEMS - 1:
            yield
        key = session.keys.head
        if key in seen:
            continue
        seen.add(key)
        facts, components = (None, b"") if isinstance(stored, Corrupt) else stored
        if facts is None:
            recounted.is_whole = recounted.is_whole and components is None
            continue
        recounted.is_whole = recounted.is_whole and bool(session.entry)
        try:
            head = decode_facts(facts, key)
            held = decode_components(b"?" if components is None else components, key).held
        except Corrupt:
            recounted.is_whole = False
            continue
        if head.deadline == 0 or head.hold > now:
            for ref in map(bytes.fromhex, held):
                if ref in counted:
                    counted[ref][head.hold] += 1
    return counted


def _compare(
    shard: ShardKeys,
    ref: bytes,
    fields: Mapping[bytes, bytes],
    left: int,
    counted: Counter[int],
    now: int,
    options: StoreOptions,
) -> Miscount | None:
    """Compare the holders of one blob with those that the heads count; None if they agree.

    The holds of an expired session last for less than the grace. Its head is gone, so they cannot be counted, and more
    holders until such a time are accepted.
    """
    stored = _holders(fields, now, shard.blob(ref.hex()))
    shortest = now + max(options.blob_grace_ms, SHORT_HOLD_MS)
    for hold, count in stored.items():
        if 0 < hold <= shortest and count > counted[hold]:
            counted[hold] = count
    wanted = {hold: count for hold, count in counted.items() if count}
    if wanted and not fields:
        reason = f"evicted: is gone, but heads hold it: {_words(wanted)}"
    elif stored != wanted or (fields and _is_early(wanted, left, now)):
        early = " expiring early" if _is_early(wanted, left, now) else ""
        reason = f"counts the holders {_words(stored) or 'none'}{early}, the heads count {_words(wanted) or 'none'}"
    elif fields and not wanted and left == -1:
        reason = "no session holds it, and it does not expire"
    else:
        return None
    return Miscount(ref, reason, fields, wanted)


def _words(holders: Mapping[int, int]) -> str:
    return " ".join(f"{hold}*{count}" for hold, count in sorted(holders.items()))


def repair_call(shard: ShardKeys, miscounts: Sequence[Miscount], options: StoreOptions) -> ScriptCall:
    """Write the holders of stored blobs as the heads count them, unless a blob has changed since it was read.

    A blob without `u` counts as changed: it could be deleted and stored again with the same fields. It gets a `u`.
    """
    values: list[Any] = []
    for each in miscounts:
        counts = _counts(each.fields)
        values += [len(each.fields), len(counts), *(part for pair in counts.items() for part in pair)]
        values += [len(each.holders), *(part for pair in each.holders.items() for part in pair)]
    keys = [shard.orphans, *(shard.blob(each.ref.hex()) for each in miscounts)]
    return ScriptCall(scripts.RECOUNT, keys, [shard.prefix, options.blob_grace_ms, *values])


def repair_reply(call: ScriptCall, shard: ShardKeys, miscounts: Sequence[Miscount], reply: Sequence[Any]) -> set[bytes]:
    """Return the refs of the blobs that must be read again. All others are repaired."""
    status(call, reply, shard)
    return {miscounts[index].ref for index in reply[2:]}
