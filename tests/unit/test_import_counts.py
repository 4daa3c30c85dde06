"""The counts of imports are added up, and a report describes at most 1,000 failures."""

from lash_redis import ImportReport
from lash_redis.models.import_counts import ImportCounts


def test_the_counts_of_several_imports_are_added_and_their_failures_are_limited():
    counts = ImportCounts()
    counts.add(is_present=True)
    for number in range(999):
        counts.fail("session", number)
    counts.include(ImportReport(3, 2, 2, ("last", "one too many"), is_complete=True))
    report = counts.report()
    assert (report.session_count, report.present_count, report.failed_count) == (4, 3, 1001)
    assert report.failures[-2:] == ("session: 998", "last")
    assert len(report.failures) == 1000
