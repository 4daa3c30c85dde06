"""What happens if two writers continue one thread: the rules, and their error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from lash_redis.errors import Refused


class CheckpointConflict(Refused):
    """The thread was continued, deleted or pruned by another writer since this run loaded it. Nothing was written.

    Load the thread again, and run again. To continue from an older checkpoint on purpose, name it in the config.
    """

    template = (
        "thread {0!r}, namespace {1!r}: a checkpoint on {2!r} was refused, because {3}; load the thread again, and run "
        "again, or name a checkpoint_id to branch off on purpose"
    )

    def __init__(self, thread_id: str, checkpoint_ns: str, parent_id: str | None, reason: str) -> None:
        super().__init__(thread_id, checkpoint_ns, parent_id, reason)
        self.thread_id = thread_id
        self.checkpoint_ns = checkpoint_ns
        self.parent_id = parent_id
        """The checkpoint that the refused one continues; None for the first one of a thread."""
        self.reason = reason


class SeenId(str):
    """The id of a checkpoint that a saver has returned, with what it knew of the thread at that moment.

    The config of a run passes it to the run's first `put`. Other code, copies by pickle included, gets a plain `str`.
    """

    __slots__ = ("is_latest",)
    is_latest: bool

    def __new__(cls, checkpoint_id: str, *, is_latest: bool) -> Self:
        made = super().__new__(cls, checkpoint_id)
        made.is_latest = is_latest
        return made

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class Pointer:
    """The latest checkpoint of a namespace of a thread, and its run."""

    latest: str
    """The id of its latest checkpoint."""
    run: str
    """The id of the first checkpoint of the run that made it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A checkpoint to be stored, and what its run knows of the thread."""

    checkpoint_id: str
    parent: str | None
    """The id of the checkpoint that it continues."""
    run: str | None = None
    """The run that stored the parent in this process; None if none did."""
    begins: bool = False
    """Whether the run began when the namespace had no checkpoint."""

    @property
    def is_latest(self) -> bool:
        """Whether the parent was the latest checkpoint when the run loaded it."""
        return isinstance(self.parent, SeenId) and self.parent.is_latest

    @property
    def is_branch(self) -> bool:
        """Whether the run loaded an older checkpoint on purpose."""
        return isinstance(self.parent, SeenId) and not self.parent.is_latest

    def decide(self, current: Pointer | None) -> tuple[Pointer | None, str | None] | str:
        """Return the new pointer and the run of the checkpoint; or why the checkpoint conflicts with others.

        A checkpoint moves the pointer if it continues the latest one or sorts above it. So a writer whose clock is
        behind does not lose its turn, and checkpoints can be copied in any order. A checkpoint that leaves the pointer
        belongs to no run: the run is on an older branch.
        """
        continued = None if self.is_branch else self.run
        if self.is_latest and (current is None or current.latest != self.parent):
            return "the thread has another latest checkpoint than the one that this run loaded"
        if self.parent is None and self.begins and current is not None:
            return "another run has begun the thread meanwhile"
        if continued is not None and not self.is_latest and (current is None or current.run != continued):
            return "another run has continued the thread meanwhile"
        if current is None or self.parent == current.latest or self.checkpoint_id > current.latest:
            run = continued if continued is not None and not self.is_latest else self.checkpoint_id
            return Pointer(self.checkpoint_id, run), run
        return current, None
