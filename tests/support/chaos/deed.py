"""The record of one step: what a worker did, when, and with which outcome."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Self

READING = frozenset({"read", "path", "page", "refresh", "list"})
"""Kinds to which a deleted session is an absent one."""
STORING = frozenset(
    {
        "append", "append_bare", "append_after", "edit", "commit", "commit_any", "commit_seen", "update",
        "update_since", "replace", "lease", "answer",
    }
)  # fmt: skip
"""Kinds whose nodes or usage prove that they are stored."""


@dataclass
class Deed:
    """One step of an actor. Times are in seconds of the monotonic clock, which all processes share."""

    op: str
    """The actor and the number of the step."""
    kind: str
    session: str
    begin: float
    end: float = inf
    """Infinite if the worker did not report an end."""
    outcome: str = "unknown"
    """`done`, `nothing` (there was nothing to do), `refused`, `failed` (`BackendError`), `unknown`, `corrupt`, or
    `wrong` (an exception that is no error of the package)."""
    error: str = ""
    """The name of the error."""
    text: str = ""
    """The text of the error."""
    durable: bool | None = None
    unknowns: int = 0
    """Calls of this step whose outcome was unknown. The step then called again."""
    has_usage: bool = False
    """Whether a ledger row proves that the step is stored."""
    count: int = 0
    """The number of nodes that the step adds."""
    hidden: list[str] = field(default_factory=list)
    """The ids that the step hides."""
    made: str = ""
    """The session that a fork makes."""
    answered: list[str] = field(default_factory=list)
    """The steps whose inputs the step consumes."""
    held: tuple[float, float] | None = None
    """When the step certainly held a lease."""
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    """Kind, text and step (or empty) of what was wrong with a read."""

    @property
    def is_acknowledged(self) -> bool:
        return self.outcome == "done"

    @property
    def may_be_applied(self) -> bool:
        """Whether the store did not exclude that the step was applied."""
        return self.outcome in ("done", "unknown", "wrong") or self.unknowns > 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        deed = cls(**json.loads(text))
        deed.problems = [(kind, problem, op) for kind, problem, op in deed.problems]
        return deed

    def line(self, since: float) -> str:
        """The step for a person, with times in seconds since the begin of the run."""
        end = "       ?" if self.end == inf else f"{self.end - since:8.3f}"
        durable = "" if self.durable is None else f" durable={self.durable}"
        unknowns = f" after {self.unknowns} unknown outcomes" if self.unknowns else ""
        more = " ".join(
            filter(None, (",".join(self.hidden), ",".join(self.answered), self.made, self.error, self.text[:300]))
        )
        return (
            f"{self.begin - since:8.3f} to {end} {self.op:9} {self.kind:12} {self.session} "
            f"{self.outcome}{durable}{unknowns} {more}"
        )
