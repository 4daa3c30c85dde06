"""What a handle remembers of the session from its last call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from weakref import ReferenceType

from lash_redis.models.lineage import Base
from lash_redis.protocol.commands.reads import StoredHead
from lash_redis.protocol.component_refs import ComponentRefs
from lash_redis.protocol.heads import HeadState


@dataclass(frozen=True, slots=True)
class Seen:
    """The head that a handle saw last. It is one immutable value, so its fields always describe the same head."""

    components: ComponentRefs | None = None
    """The components of that head; None if unknown."""
    head: tuple[int, str] | None = None
    """Its revision, and the id of the commit that made it; None if unknown."""
    epoch: int | None = None
    """The epoch of its log; None if unknown."""
    base: ReferenceType[Base] | None = None
    """The base of its graph's lineage, as long as a graph of that base exists."""
    owner: str = ""
    """The owner of the session; empty for none, or if unknown."""
    unsettled: bytes = b""
    """The fingerprint of the last commit if its outcome is unknown."""
    state: HeadState | None = None
    """The values of that head that stay if a commit leaves them out; None if unknown."""

    @classmethod
    def of(cls, head: StoredHead, base: ReferenceType[Base] | None = None) -> Self:
        """Return what a read shows of a head. `base` is that of the graph that was read with it."""
        return cls(
            head.components,
            (head.facts.revision, head.body.commit_id),
            head.facts.epoch,
            base,
            head.owner,
            b"",
            head.body,
        )
