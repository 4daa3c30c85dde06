"""What holds for worker processes, whatever becomes of them: every acknowledged turn is in the one chain, once."""

from __future__ import annotations

from collections import Counter

import pytest

from lash_redis import HeadRevisionConflict
from tests.support import outages, workers
from tests.support.boundaries import BY_COMMIT, BY_LEASE, BY_UPDATE, Moment, cut, freeze, sweep
from tests.support.breaking import Lua, broken_by

pytestmark = pytest.mark.slow

COMPARES_NOTHING = Lua("commit", "return {'conflict', session, actual}", "")
FORGETS_RETRIES = Lua("commit", "if found then", "if false then")
IGNORES_LEASES = Lua("commit", "if why then return {'lost'", "if false then return {'lost'")
LEASES_TO_ALL = Lua("acquire", "if is_live and lease.owner ~= owner then", "if false then")


@broken_by(FORGETS_RETRIES)
async def test_a_turn_whose_reply_is_lost_at_any_command_lands_once(real_server):
    row = await sweep("", "", real_server.tcp_url, cut, methods=[BY_UPDATE], moments=[Moment.EXECUTED])
    assert row.runs >= 8
    assert (row.lost, row.doubled, row.errors) == (0, 0, {})


@broken_by(COMPARES_NOTHING)
async def test_a_worker_that_was_frozen_at_any_command_and_thawed_writes_over_nobody(real_server):
    row = await sweep("", "", real_server.tcp_url, freeze, methods=[BY_COMMIT], moments=[Moment.EXECUTED], every=2)
    assert row.runs >= 4
    assert (row.lost, row.doubled) == (0, 0)
    assert set(row.errors) == {"HeadRevisionConflict"}


@broken_by(IGNORES_LEASES)
async def test_a_worker_that_was_frozen_beyond_its_lease_is_told_that_it_lost_it(real_server):
    row = await sweep("", "", real_server.tcp_url, freeze, methods=[BY_LEASE], moments=[Moment.EXECUTED], every=2)
    assert (row.lost, row.doubled) == (0, 0)
    assert set(row.errors) == {"LeaseLost"}


@broken_by(COMPARES_NOTHING)
async def test_of_eight_workers_on_one_session_every_turn_lands_once_in_one_chain(real_server):
    row, _ = await outages.compete(real_server.url, "", workers.by_update, count=8, turns=4, model_seconds=0.002)
    assert (row.acknowledged, row.landed, row.lost, row.doubled) == (32, 32, 0, 0)


@broken_by(LEASES_TO_ALL)
async def test_of_eight_workers_with_leases_none_pays_a_model_in_vain(real_server):
    row, _ = await outages.compete(real_server.url, "", workers.by_lease, count=8, turns=4, model_seconds=0.002)
    assert (row.acknowledged, row.landed, row.lost, row.doubled) == (32, 32, 0, 0)
    assert (row.paid, row.wasted, row.errors) == (32, 0, Counter())


FORGETS_WHAT_IT_BUILDS_ON = Lua("commit", " or builds_on ~= '' and not is_last(stored.receipts, builds_on)", "")
A_REPLACEMENT_FORGETS = Lua("replace", " or builds_on ~= '' and not is_last(receipts, builds_on)", "")


@broken_by(FORGETS_WHAT_IT_BUILDS_ON)
async def test_a_worker_that_built_on_a_revision_lost_in_a_failover_is_refused(real_server):
    story = await outages.lose_a_revision(real_server.kind, outages.go_on_by_append)
    assert story.acknowledged == (7, 7)
    assert isinstance(story.seen, HeadRevisionConflict)
    assert (story.seen.expected, story.seen.actual) == (7, 7)
    six = [f"turn{number}" for number in range(1, 7)]
    assert story.stands == (7, [*six, "another7"])
    assert story.in_the_end == (8, [*six, "another7", "turn8"])


@broken_by(A_REPLACEMENT_FORGETS)
async def test_a_compaction_of_a_revision_lost_in_a_failover_overwrites_nobody(real_server):
    story = await outages.lose_a_revision(real_server.kind, outages.go_on_by_replacing)
    assert isinstance(story.seen, HeadRevisionConflict)
    assert story.stands == (7, [*(f"turn{number}" for number in range(1, 7)), "another7"])
