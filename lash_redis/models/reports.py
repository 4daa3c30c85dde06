"""What maintenance did."""

from __future__ import annotations

from collections.abc import Sequence
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
    """`existed` is False where there was nothing to delete; then all else is 0."""

    existed: bool = False
    node_count: U64 = 0
    """Live nodes."""
    released_blob_count: U64 = 0
    """Blobs it held. Those that no other session holds go after a grace."""
    closed: bool = False
    """Whether the id takes no writes for `deletion_marker_ttl`. Not so where a part of the session was missing."""


@dataclass(frozen=True, slots=True)
class AuditProblem(Record):
    """A law of storage that is broken: what kind of thing, at which key, how. `repaired` says that it is mended."""

    kind: str
    key: str
    reason: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class AuditReport(Record):
    """What was looked at, and what is wrong. `problems` has the first 10,000; `problem_count` counts all."""

    session_count: U64 = 0
    node_count: U64 = 0
    """Live nodes."""
    blob_count: U64 = 0
    problem_count: U64 = 0
    repaired_count: U64 = 0
    problems: Sequence[AuditProblem] = ()


@dataclass(frozen=True, slots=True)
class ImportReport(Record):
    """How an import went. `is_complete`: the file's end was there, and counts what was read."""

    session_count: U64 = 0
    """Sessions of the file that are now stored as it says."""
    present_count: U64 = 0
    """Those of them that were there before."""
    failed_count: U64 = 0
    failures: Sequence[str] = ()
    """Which sessions were refused and why, the first 1,000."""
    is_complete: bool = False
