"""What an actor does in each step: a function of the seed, the actor and the number of the step alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from zlib import crc32

ERA = 60
"""Steps of an actor until it leaves its sessions for the next ones, so that sessions stay small."""
LARGE = 20_000
"""Characters of a large message."""

WEIGHTS = {
    "append": 13, "append_bare": 4, "append_after": 3, "edit": 4, "rewind": 4,
    "commit": 9, "commit_any": 6, "commit_seen": 8, "update": 9, "update_since": 5, "replace": 4,
    "tombstone": 5, "vacuum": 2, "delete": 1, "fork": 1, "lease": 5, "touch": 2, "title": 1, "create": 1,
    "intrude": 2, "read": 6, "path": 4, "page": 4, "refresh": 6, "watch": 1, "list": 1, "gc": 1,
    "enqueue": 6, "answer": 6, "stream": 4,
}  # fmt: skip
"""How often each kind of step occurs."""
DESTRUCTIVE = frozenset({"replace", "delete"})
"""Kinds that occur only in sessions that may be deleted or replaced."""


@dataclass(frozen=True)
class Step:
    """One step of an actor."""

    number: int
    kind: str
    session: str
    durable: bool
    """Whether the step asks for durability, if its method can."""
    usage: bool
    """Whether the step counts usage, if its method can do without."""
    count: int
    """How many nodes or messages the step adds or hides."""
    size: int
    """Characters of each."""
    choices: tuple[float, ...]
    """Numbers from 0 to 1, with which the step chooses among what it finds."""

    @property
    def owner(self) -> str | None:
        return owner_of(self.session)


def step_of(seed: int, actor: str, number: int) -> Step:
    """The step with this number, from 0."""
    dice = random.Random(f"{seed}/{actor}/{number}")
    (kind,) = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
    fate, which = dice.random(), dice.randrange(3)
    if kind in DESTRUCTIVE or 0.55 < fate < 0.8:
        place = f"open{which}"
    else:
        place = f"kept{which % 2}" if fate < 0.8 else f"own-{actor}"
    return Step(
        number=number,
        kind=kind,
        session=f"{place}.{number // ERA}",
        durable=dice.random() < 0.6,
        usage=dice.random() < 0.7,
        count=dice.choice((1, 1, 2, 3)),
        size=dice.choices((20, 2_000, LARGE), (80, 18, 2))[0],
        choices=tuple(dice.random() for _ in range(3)),
    )


def is_kept(session: str) -> bool:
    """Whether no step deletes the session or replaces its graph."""
    return not session.startswith("open")


def owner_of(session: str) -> str | None:
    """The user to whom the session belongs; None for some sessions."""
    return "alice" if crc32(session.encode()) % 3 == 0 else None
