"""What a handle knows of the session from the last outcome of its own."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import ReferenceType

from lash_redis.models.lineage import Base
from lash_redis.protocol.component_refs import ComponentRefs


@dataclass(frozen=True, slots=True)
class Seen:
    """The head that a handle saw last. It is one value, assigned once for each outcome, so its parts agree."""

    components: ComponentRefs | None = None
    """The components of that head; None if they are not known."""
    head: tuple[int, str] | None = None
    """Its revision, and the id of the commit that made it."""
    epoch: int | None = None
    """Which log it has; None if that is not known."""
    base: ReferenceType[Base] | None = None
    """What its graph grew from, for as long as a graph of that base exists."""
    unsettled: bytes = b""
    """The fingerprint of the last commit if its outcome is unknown."""
