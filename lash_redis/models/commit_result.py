"""What a commit returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lash_redis.models.components import BlobRef, SessionCheckpoint
from lash_redis.models.wire import U64, Record, Rule


@dataclass(frozen=True, slots=True)
class RuntimeCommitResult(Record):
    """The head a commit made. `replayed` says that an earlier attempt made it, and this one changed nothing.

    The commit is made in any case. `durable` says whether it was confirmed in time to be as safe as
    `StoreOptions.durability` asked: False means that nobody knows, None that nothing was asked.
    """

    head_revision: U64
    checkpoint_ref: BlobRef
    manifest: SessionCheckpoint
    replayed: bool = False
    commit_id: str = ""
    durable: Annotated[bool | None, Rule.IN_MEMORY] = None
