"""Groups of servers that lose a primary or move a slot under load, with small counts."""

from __future__ import annotations

import pytest

from tests.support.failovers import lose_primary, move_slot
from tests.support.groups import Cluster, SentinelGroup, preferred


def replicas_of(group: Cluster | SentinelGroup) -> int:
    """The number of replicas of a primary. With fewer confirmations, a replica without the commit could be promoted."""
    return 1 if isinstance(group, Cluster) else 2


@pytest.fixture(params=[Cluster, SentinelGroup])
def group(request: pytest.FixtureRequest) -> Cluster | SentinelGroup:
    kind = preferred(request.param)
    request.node.user_properties.append(("server", kind.name))
    group: Cluster | SentinelGroup = request.param(kind)
    return group


async def test_no_turn_is_stored_twice_if_a_primary_is_killed_under_load(group):
    row = await lose_primary(group, freeze=False, times=1, count=4, turns=40)
    assert (row.runs, row.acknowledged, row.doubled) == (1, 160, 0)


async def test_a_turn_confirmed_by_every_replica_survives_a_killed_primary(group):
    row = await lose_primary(group, freeze=False, times=1, count=4, turns=40, replicas=replicas_of(group))
    assert row.acknowledged + row.unconfirmed == 160
    assert row.acknowledged > 30
    assert (row.lost, row.doubled) == (0, 0)


async def test_a_turn_confirmed_by_every_replica_survives_a_frozen_primary(group):
    row = await lose_primary(group, freeze=True, times=1, count=4, turns=40, replicas=replicas_of(group))
    assert row.acknowledged + row.unconfirmed == 160
    assert (row.lost, row.doubled) == (0, 0)


@pytest.mark.parametrize("group", [Cluster], indirect=True)
async def test_no_turn_is_lost_or_stored_twice_if_a_slot_moves_under_load(group):
    row = await move_slot(group, times=4, count=4, turns=40)
    assert (row.runs, row.acknowledged, row.lost, row.doubled) == (4, 160, 0, 0)
