"""The results of maintenance calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lash_redis.models.wire import U64, Record


@dataclass(frozen=True, slots=True)
class GcReport(Record):
    """The result of a garbage collection."""

    root_count: U64 = 0
    """The number of sessions that were counted."""
    retained_blob_count: U64 = 0
    """The number of blobs that were kept.

    For one session: the blobs that it refers to, its manifest included. For a cache: the blobs without a holder whose
    grace has not ended.
    """
    deleted_blob_count: U64 = 0
    """The number of blobs that were deleted."""


@dataclass(frozen=True, slots=True)
class VacuumReport(Record):
    """The result of a vacuum."""

    removed_node_count: U64 = 0
    """The number of tombstoned nodes whose bytes were freed."""


@dataclass(frozen=True, slots=True)
class TombstoneReport(Record):
    """The result of hiding nodes."""

    tombstoned_node_count: U64 = 0
    """The number of nodes that this call hid."""
    durable: bool | None = None
    """Whether the durability that the call asked for was confirmed in time; None if it asked for none."""


@dataclass(frozen=True, slots=True)
class DeleteReport(Record):
    """The result of a deletion. If there was no session, every other field is 0 or False."""

    existed: bool = False
    """Whether there was a session to delete."""
    node_count: U64 = 0
    """The number of live nodes that were deleted."""
    released_blob_count: U64 = 0
    """The number of blobs that the session held. Blobs without another holder expire after a grace."""
    closed: bool = False
    """Whether the id takes no writes for `deletion_marker_ttl`.

    False if the id is reusable, or if a part of the session was missing.
    """
    durable: bool | None = None
    """Whether the durability that the call asked for was confirmed in time; None if it asked for none.

    False leaves it unknown: the session is deleted, but a failover may undo the deletion. False, too, if there was
    neither a session nor the marker of an earlier deletion.
    """


@dataclass(frozen=True, slots=True)
class DeleteOwnedReport(Record):
    """The result of deleting the sessions of an owner."""

    deleted_session_count: U64 = 0
    """The number of sessions that were deleted."""
    node_count: U64 = 0
    """The number of live nodes that were deleted."""
    released_blob_count: U64 = 0
    """The number of blobs that these sessions held. Blobs without another holder expire after a grace."""
    durable: bool | None = None
    """Whether the durability that the call asked for was confirmed in time for every deletion; None if it asked for
    none."""


@dataclass(frozen=True, slots=True)
class AuditProblem(Record):
    """One broken invariant of storage."""

    kind: str
    """The kind of key or record that is wrong, such as `head`, `log` or `blob`."""
    key: str
    """The name of the key in Redis."""
    reason: str
    """What is wrong with it."""
    repaired: bool = False
    """Whether the audit corrected it."""


@dataclass(frozen=True, slots=True)
class AuditReport(Record):
    """What an audit checked, and the problems that it found."""

    session_count: U64 = 0
    """The number of sessions that were checked."""
    node_count: U64 = 0
    """The number of live nodes that were checked."""
    blob_count: U64 = 0
    """The number of blobs that were checked."""
    problem_count: U64 = 0
    """The number of all problems, repaired ones included."""
    repaired_count: U64 = 0
    """The number of problems that the audit corrected."""
    problems: Sequence[AuditProblem] = ()
    """The first 10,000 problems."""


@dataclass(frozen=True, slots=True)
class ImportReport(Record):
    """The result of an import."""

    session_count: U64 = 0
    """The number of sessions that are now stored with the content of the source."""
    present_count: U64 = 0
    """The number of those sessions that were stored before the import."""
    failed_count: U64 = 0
    """The number of sessions that were refused. States of an app or a user of Google ADK count, too."""
    failures: Sequence[str] = ()
    """The first 1,000 of these, each with the reason."""
    is_complete: bool = False
    """Whether the whole source was read. An export is whole if the counts in its last line match what was read."""
