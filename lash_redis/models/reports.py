"""What maintenance did."""

from __future__ import annotations

from dataclasses import dataclass

from lash_redis.models.wire import U64, Record


@dataclass(frozen=True, slots=True)
class GcReport(Record):
    root_count: U64 = 0
    retained_blob_count: U64 = 0
    deleted_blob_count: U64 = 0


@dataclass(frozen=True, slots=True)
class VacuumReport(Record):
    """How many tombstoned nodes lost their bytes."""

    removed_node_count: U64 = 0


@dataclass(frozen=True, slots=True)
class DeleteReport(Record):
    """`existed` is False where there was nothing to delete; then both counts are 0."""

    existed: bool = False
    node_count: U64 = 0
    released_blob_count: U64 = 0
