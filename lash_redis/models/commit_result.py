"""The result of a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lash_redis.models.components import BlobRef, SessionCheckpoint
from lash_redis.models.wire import U64, Record, Rule


@dataclass(frozen=True, slots=True)
class RuntimeCommitResult(Record):
    """The result of a commit that was made, now or by an earlier attempt."""

    head_revision: U64
    """The revision that the commit made."""
    checkpoint_ref: BlobRef
    """The SHA-256 of the manifest."""
    manifest: SessionCheckpoint
    """The checkpoint as stored, with a ref for each component.

    If the commit left its checkpoint out, was replayed, and other commits followed it, this is a later checkpoint.
    """
    replayed: bool = False
    """True if an earlier attempt made the commit. This call then changed nothing."""
    commit_id: str = ""
    """The id of the commit."""
    durable: Annotated[bool | None, Rule.IN_MEMORY] = None
    """Whether the durability that the call asked for was confirmed in time; None if it asked for none.

    False leaves it unknown: the commit is made, but a failover may lose it.
    """
