"""Every acknowledged turn of a worker process is stored once and in one chain, under each of these faults."""

from __future__ import annotations

from collections import Counter

import pytest

from lash_redis import HeadRevisionConflict
from tests.support import outages, workers
from tests.support.boundaries import BY_COMMIT, BY_LEASE, BY_UPDATE, Moment, cut, freeze, sweep
from tests.support.breaking import Lua, broken_by

pytestmark = pytest.mark.slow

COMPARES_NO_REVISION = Lua("commit", "return {'conflict', session, actual}", "")
FINDS_NO_RECEIPT = Lua("commit", "if found then", "if false then")
IGNORES_LEASES = Lua("commit", "if why then return {'lost'", "if false then return {'lost'")
GRANTS_EVERY_LEASE = Lua("acquire", "not (is_again or is_own and reenters)", "false")


@broken_by(FINDS_NO_RECEIPT)
async def test_a_turn_is_stored_once_when_the_reply_of_any_command_is_lost(real_server):
    row = await sweep("", "", real_server.tcp_url, cut, methods=[BY_UPDATE], moments=[Moment.EXECUTED])
    assert row.runs >= 8
    assert (row.lost, row.doubled, row.errors) == (0, 0, {})


@broken_by(COMPARES_NO_REVISION)
async def test_a_worker_frozen_at_any_command_gets_a_conflict_and_overwrites_nothing(real_server):
    row = await sweep("", "", real_server.tcp_url, freeze, methods=[BY_COMMIT], moments=[Moment.EXECUTED], every=2)
    assert row.runs >= 4
    assert (row.lost, row.doubled) == (0, 0)
    assert set(row.errors) == {"HeadRevisionConflict"}


@broken_by(IGNORES_LEASES)
async def test_a_worker_frozen_past_the_expiry_of_its_lease_raises_lease_lost(real_server):
    row = await sweep("", "", real_server.tcp_url, freeze, methods=[BY_LEASE], moments=[Moment.EXECUTED], every=2)
    assert (row.lost, row.doubled) == (0, 0)
    assert set(row.errors) == {"LeaseLost"}


@broken_by(COMPARES_NO_REVISION)
async def test_every_turn_of_eight_workers_on_one_session_is_stored_once_in_one_chain(real_server):
    row, _ = await outages.compete(real_server.url, "", workers.by_update, count=8, turns=4, model_seconds=0.002)
    assert (row.acknowledged, row.landed, row.lost, row.doubled) == (32, 32, 0, 0)


@broken_by(GRANTS_EVERY_LEASE)
async def test_eight_workers_with_leases_waste_no_model_call(real_server):
    row, _ = await outages.compete(real_server.url, "", workers.by_lease, count=8, turns=4, model_seconds=0.002)
    assert (row.acknowledged, row.landed, row.lost, row.doubled) == (32, 32, 0, 0)
    assert (row.paid, row.wasted, row.errors) == (32, 0, Counter())


COMMIT_IGNORES_BUILDS_ON = Lua("commit", " and (builds_on == '' or is_last(stored.receipts, builds_on))", "")
REPLACEMENT_IGNORES_BUILDS_ON = Lua("replace", " and (builds_on == '' or is_last(stored.receipts, builds_on))", "")


@broken_by(COMMIT_IGNORES_BUILDS_ON)
async def test_a_commit_that_builds_on_a_revision_lost_in_a_failover_is_refused(real_server):
    story = await outages.lose_a_revision(real_server.kind, outages.go_on_by_append)
    assert story.acknowledged == (7, 7)
    assert isinstance(story.seen, HeadRevisionConflict)
    assert (story.seen.expected, story.seen.actual) == (7, 7)
    six = [f"turn{number}" for number in range(1, 7)]
    assert story.stands == (7, [*six, "another7"])
    assert story.in_the_end == (8, [*six, "another7", "turn8"])


@broken_by(REPLACEMENT_IGNORES_BUILDS_ON)
async def test_a_replacement_of_a_revision_lost_in_a_failover_is_refused(real_server):
    story = await outages.lose_a_revision(real_server.kind, outages.go_on_by_replacing)
    assert isinstance(story.seen, HeadRevisionConflict)
    assert story.stands == (7, [*(f"turn{number}" for number in range(1, 7)), "another7"])
