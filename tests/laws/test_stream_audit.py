"""An audit reports damaged streams and nothing else."""

from __future__ import annotations

import pytest

from tests.laws.test_streams import keys_of, produced
from tests.support.breaking import Python, broken_by
from tests.support.builders import append, commit


async def problems_of(open_cache) -> list[tuple[str, str]]:
    report = await open_cache(role="auditor").audit()
    assert report.problem_count == len(report.problems)
    return [(problem.kind, problem.reason) for problem in report.problems]


@broken_by(Python("audit:Audit._streams", lambda _: _report_all, "takes streams for damage"))
async def test_an_audit_of_running_ended_and_expiring_streams_reports_nothing(store, open_cache):
    await produced(store, "a", generation="before")
    await store.commit_runtime_state(commit(None, append("n")), ttl=100)
    await produced(store, *range(50), generation="bounded", max_events=10)
    await produced(open_cache().session("other", owner="alice"), "a")
    await produced(store, generation="empty", keep=0.01)
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        assert await problems_of(open_cache) == []
        report = await open_cache(role="auditor").audit()
        assert (report.session_count, report.problem_count) == (1, 0)


async def _report_all(self, keys, found) -> None:
    from lash_redis import AuditProblem

    self._add(AuditProblem("streams", keys.streams, "is not a key of this package"))


DAMAGES = {
    "no events": (lambda client, keys: client.delete(keys.events), ("events", "evicted: has 0 events")),
    "one event more": (lambda client, keys: client.rpush(keys.events, b"x"), ("events", "has 4 events, the record")),
    "another event": (lambda client, keys: client.lset(keys.events, 1, b"\xa1b0000"), ("events", "event 2 does not")),
    "a shorter event": (lambda client, keys: client.lset(keys.events, 1, b"\xa1b"), ("events", "event 2 does not")),
    "no expiry": (lambda client, keys: client.persist(keys.events), ("deadline", "expires never")),
    "another expiry": (lambda client, keys: client.expire(keys.events, 9000), ("deadline", "expires at")),
    "no expiry of records": (lambda client, keys: client.persist(keys.streams), ("deadline", "never expires")),
    "an odd record": (lambda client, keys: client.hset(keys.streams, "gen", "r 1"), ("streams", "a record is unread")),
    "an odd number": (
        lambda client, keys: client.hset(keys.streams, "gen", "f 03 3 9 9 9 0 t"), ("streams", "a record is unread"),
    ),
    "no record": (lambda client, keys: client.hdel(keys.streams, "gen"), ("streams", "evicted: has events, but")),
    "no records": (lambda client, keys: client.delete(keys.streams), ("streams", "evicted: has events, but")),
    "text for events": (lambda client, keys: client.set(keys.events, b"x"), ("events", "holds another type")),
    "text for records": (lambda client, keys: client.set(keys.streams, b"x"), ("streams", "holds another type")),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
@broken_by(Python("audit:Audit._streams", lambda _: _report_nothing, "checks no streams"))
async def test_an_audit_reports_each_damage_of_a_stream_once(store, client, open_cache, name):
    await produced(store, "a", "b", "c")
    damage, (kind, reason) = DAMAGES[name]
    await damage(client, keys_of())
    problems = await problems_of(open_cache)
    assert [(found, text[: len(reason)]) for found, text in problems] == [(kind, reason)]


@broken_by(Python("audit:Audit._find_streams", lambda _: _report_nothing, "checks no streams without SCAN"))
async def test_an_audit_without_scan_checks_the_streams_of_listed_sessions(store, client, cache):
    await store.commit_runtime_state(commit(None, append("n")))
    await produced(store, "a", "b", "c")
    assert (await cache.audit(scan=False)).problems == ()
    await client.lset(keys_of().events, 1, b"\xa1b0000")
    assert [problem.kind for problem in (await cache.audit(scan=False)).problems] == ["events"]


async def test_an_audit_reports_a_key_that_is_no_stream(client, cache, open_cache):
    await client.set(f"{keys_of().prefix}events:x", b"x")
    await cache.session("other").commit_runtime_state(commit(None, append("n"), session_id="other"))
    assert [kind for kind, _ in await problems_of(open_cache)] == ["events"]


async def _report_nothing(*_) -> None:
    pass
