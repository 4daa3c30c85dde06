"""Vacuum: find the tombstones of a session and their children, and free them by bounded scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lash_redis.errors import Corrupt
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall
from lash_redis.protocol.commands.maintenance import STEPS
from lash_redis.protocol.commands.paths import jump_list
from lash_redis.protocol.commands.reads import NAMED_ONLY
from lash_redis.protocol.heads import RECEIPT_BYTES, decode_facts
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.steps import Steps, chunks

CHUNK: Final = 500
"""Maximum number of tombstones that one script handles."""


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The tombstones of a session, and the log in which they were read. Without arguments, none."""

    places: Sequence[int] = ()
    """Their positions, ascending. Neighbours are freed by one walk through the log."""
    children: Mapping[int, int] = field(default_factory=dict)
    """The position of a live child, by that of the tombstone."""
    log: Sequence[Any] = (0, 0, 0, b"")
    """The epoch, the length, the number of jumps, and the receipt of the last commit."""


def tombstones_read(keys: SessionKeys) -> list[Command]:
    """Read a session's tombstones and links.

    The order matters, because commits may come between the commands. The jumps are read after the facts and after the
    tombstones. So they include every node of that length, and every child of these tombstones.
    """
    return [
        ("HMGET", keys.head, "facts", "receipts"),
        ("HKEYS", keys.dead),
        ("LRANGE", keys.jumps, 0, -1),
        ("HVALS", keys.nodes),
    ]


def tombstones_reply(keys: SessionKeys, replies: Sequence[Any]) -> Steps[Tombstones]:
    """Find a live child of each tombstone, in steps.

    Raises:
        Corrupt: a tombstone, a jump or an entry of the index is unreadable.
    """
    (stored, receipts), dead, jumps, entries = replies
    if stored is None:
        return Tombstones()  # the script decides what that means
    facts = decode_facts(stored, keys.head)
    hidden = yield from _positions(dead, "dead", keys.dead, facts.length)
    placed = (entry.removesuffix(b"u") for entry in entries if entry != NAMED_ONLY)
    indexed = yield from _positions(placed, "nodes", keys.nodes)
    children: dict[int, int] = {}
    jumped: set[int] = set()
    last = -1
    for chunk in chunks(jumps):
        yield
        for position, parent in jump_list(keys, chunk, last):
            last = position
            jumped.add(position)
            if parent in hidden and position in indexed and position not in hidden:
                children[parent] = position
    places = sorted(hidden)
    for place in places:
        below = place + 1
        if below < facts.length and below not in jumped and below in indexed and below not in hidden:
            children[place] = below
    log = facts.epoch, facts.length, facts.jumps, (receipts or b"")[-RECEIPT_BYTES:]
    return Tombstones(places, children, log)


def _positions(values: Iterable[bytes], family: str, key: str, length: int | None = None) -> Steps[set[int]]:
    """Decode positions, except those behind the log of this `length`, which were added later."""
    found: set[int] = set()
    for chunk in chunks(values):
        yield
        try:
            decoded = [decode_number(value) for value in chunk]
        except ValueError as error:
            raise Corrupt(family, key, f"an entry is not a position: {error}") from error
        found.update(place for place in decoded if length is None or place < length)
    return found


def call(keys: SessionKeys, found: Tombstones, at: int) -> ScriptCall:
    """Free at most `CHUNK` tombstones, from the index `at` on."""
    pairs = [(place, found.children.get(place, "")) for place in found.places[at : at + CHUNK]]
    given = [each for pair in pairs for each in pair]
    return ScriptCall(scripts.VACUUM, keys.own, [keys.session_id, keys.access, STEPS, *found.log, *given])
