"""Random work of several processes while connections and servers fail. `make chaos` runs it for longer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.chaos import show
from tests.support.chaos.field import Outcome, Plan, row_of, run
from tests.support.chaos.twins import TWINS
from tests.support.groups import Cluster, SentinelGroup
from tests.support.outages import one_server
from tests.support.servers import Kind, table

pytestmark = pytest.mark.slow

SECONDS = 15.0


def check(outcome: Outcome) -> None:
    assert outcome.account.broken == [], outcome.history(outcome.account.broken[0].session)
    assert outcome.damages
    assert outcome.account.acknowledged > outcome.account.durable > 0


async def test_random_work_on_a_failing_cluster_breaks_no_promise(cluster: Cluster):
    check(await run(cluster, cluster.kind.name, Plan(SECONDS, seed=11)))


async def test_random_work_on_failing_servers_under_sentinel_breaks_no_promise(sentinels: SentinelGroup):
    check(await run(sentinels, sentinels.kind.name, Plan(SECONDS, seed=12)))


@pytest.fixture
def kind() -> Kind:
    """A server that knows WAITAOF."""
    (kind,) = (kind for kind in table() if kind.name == "valkey-9")
    return kind


async def test_random_work_on_a_failing_server_that_always_fsyncs_loses_nothing(kind: Kind):
    async with one_server(kind, "always") as member:
        outcome = await run(member, kind.name, Plan(SECONDS, seed=13))
    assert outcome.account.keeps_all
    check(outcome)


SEEDS = range(3, 9)
"""Plans of different steps. Not every plan has a step that meets the breakage, such as a read of another's session."""


@pytest.mark.parametrize("breakage", TWINS, ids=lambda breakage: breakage.__name__)
async def test_the_account_finds_a_store_that_breaks_a_promise(
    breakage: Any, kind: Kind, capsys: pytest.CaptureFixture
):
    seed, outcome = await first_found(breakage, kind)
    show(outcome, "single")
    printed = capsys.readouterr().out
    assert f"--seed {seed} --on single" in printed
    assert str(outcome.account.broken[0]) in printed


async def first_found(breakage: Any, kind: Kind) -> tuple[int, Outcome]:
    """Run plans until the account reports the kind of finding that the breakage causes."""
    rows = []
    for seed in SEEDS:
        plan = Plan(60.0, seed=seed, limit=60, workers=2, act=breakage, has_faults=False)
        async with one_server(kind, "always") as member:
            outcome = await run(member, kind.name, plan)
        if any(finding.kind == TWINS[breakage] for finding in outcome.account.broken):
            return seed, outcome
        rows.append(row_of(outcome))
    pytest.fail("\n".join(rows))


async def test_the_account_of_a_sound_store_without_faults_is_empty(kind: Kind):
    plan = Plan(60.0, seed=3, limit=60, workers=2, has_faults=False)
    async with one_server(kind, "always") as member:
        outcome = await run(member, kind.name, plan)
    assert outcome.account.findings == []
    assert outcome.account.steps == 360
