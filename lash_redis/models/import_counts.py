"""The counts of an import in progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from lash_redis.models.reports import ImportReport

MAX_FAILURES: Final = 1000
"""Maximum number of failures that a report describes; all are counted."""


@dataclass(slots=True)
class ImportCounts:
    """What became of the sessions of an import so far."""

    stored: int = 0
    """The number of sessions that are stored now, those that were stored before included."""
    present: int = 0
    """The number of those that were stored before."""
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    """The first refused sessions, each with the reason."""

    def add(self, *, is_present: bool) -> None:
        """Count a session that is stored. `is_present`: it was stored before."""
        self.stored += 1
        self.present += is_present

    def fail(self, name: str, reason: object) -> None:
        """Count a session that was refused. An error without a text is named by its class."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(f"{name}: {str(reason) or type(reason).__name__}")

    def include(self, report: ImportReport) -> None:
        """Add the counts of another import."""
        self.stored += report.session_count
        self.present += report.present_count
        self.failed += report.failed_count
        self.failures += report.failures[: MAX_FAILURES - len(self.failures)]

    def report(self, *, is_complete: bool = True) -> ImportReport:
        return ImportReport(self.stored, self.present, self.failed, tuple(self.failures), is_complete)
