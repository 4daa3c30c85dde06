"""Count what became of events of streams and of pending inputs: rows of the tables in docs/guarantees/evidence.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

STREAM_HEADER = (
    "| fault | server | runs | events | lost | doubled | out of order | ends mistaken | errors the workers saw |\n"
    + "| --- " * 9
    + "|"
)
INPUT_HEADER = (
    "| fault | server | runs | inputs | answered twice | never answered | errors the workers saw |\n"
    + "| --- " * 7
    + "|"
)


@dataclass
class Produced:
    """What the producer of a stream knows. The data of its events are the numbers from 0."""

    confirmed: int = 0
    """Events that `flush` confirmed."""
    began_to_finish: bool = False
    """Whether the producer reached the end of its block."""
    has_finished: bool = False
    """Whether it left the block without an error."""
    state: str = ""
    """The state of the stream that is stored at the end."""


@dataclass
class Followed:
    """What a follower got, and how it ended: `finished`, `failed`, `lost`, or the name of an error."""

    numbers: list[int] = field(default_factory=list)
    end: str = ""


@dataclass
class StreamRow:
    """The outcome of streams under one fault."""

    fault: str
    server: str
    runs: int = 0
    """How often the fault was injected."""
    events: int = 0
    """Events that the server confirmed to a producer, for each of its followers."""
    lost: int = 0
    """Of them, those that a follower did not get before its end."""
    doubled: int = 0
    """Events that a follower got more than once."""
    misplaced: int = 0
    """Events that a follower got after a later one."""
    mistaken: int = 0
    """Ends that a follower saw and that were not those of the stream."""
    errors: Counter[str] = field(default_factory=Counter)

    def settle(self, produced: Produced, followed: Iterable[Followed]) -> None:
        """Compare what followers got with what the producer sent and how the stream ended."""
        for each in followed:
            known = set(each.numbers)
            self.events += produced.confirmed
            self.lost += len(set(range(produced.confirmed)) - known)
            self.doubled += len(each.numbers) - len(known)
            self.misplaced += sum(later < earlier for earlier, later in pairwise(each.numbers))
            self.mistaken += self._is_mistaken(produced, each.end)

    @staticmethod
    def _is_mistaken(produced: Produced, end: str) -> bool:
        if produced.has_finished:
            return end != "finished"
        return end != produced.state or (end == "finished" and not produced.began_to_finish)

    @property
    def is_sound(self) -> bool:
        return (self.lost, self.doubled, self.misplaced, self.mistaken) == (0, 0, 0, 0)

    def __str__(self) -> str:
        numbers = (self.runs, self.events, self.lost, self.doubled, self.misplaced, self.mistaken)
        return (
            f"| {self.fault} | {self.server} | {' | '.join(f'{each:,}' for each in numbers)} | {named(self.errors)} |"
        )


@dataclass
class InputRow:
    """The outcome of pending inputs under one fault."""

    fault: str
    server: str
    runs: int = 0
    inputs: int = 0
    """Inputs whose enqueuing was acknowledged."""
    twice: int = 0
    """Inputs that more than one stored turn answers."""
    never: int = 0
    """Acknowledged inputs that no stored turn answers."""
    errors: Counter[str] = field(default_factory=Counter)

    def settle(self, enqueued: Iterable[str], answered: Sequence[str]) -> None:
        """Compare the inputs that were acknowledged with those that the stored turns answer."""
        asked, times = set(enqueued), Counter(answered)
        self.inputs += len(asked)
        self.twice += sum(count > 1 for count in times.values())
        self.never += len(asked - times.keys())

    @property
    def is_sound(self) -> bool:
        return (self.twice, self.never) == (0, 0)

    def __str__(self) -> str:
        numbers = (self.runs, self.inputs, self.twice, self.never)
        return (
            f"| {self.fault} | {self.server} | {' | '.join(f'{each:,}' for each in numbers)} | {named(self.errors)} |"
        )


def named(errors: Counter[str]) -> str:
    return ", ".join(f"{name} {times:,}" for name, times in sorted(errors.items())) or "none"
