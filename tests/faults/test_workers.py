"""Worker processes under faults, with small counts. `make faults` runs the same with large counts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from lash_redis import HeadRevisionConflict
from tests.support import outages
from tests.support.accounts import check_chain, looking_at, stored_turns
from tests.support.boundaries import METHODS, Method, Moment, cut, kill, sweep
from tests.support.paths import ROOT
from tests.support.processes import is_alive
from tests.support.workers import At, Crew, Work, answers, commit_of

ROUNDS = 500

SOON = 30.0
"""Seconds within which workers must exit after their owner."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_call_of_a_killed_worker_is_applied_once_or_not_at_all(method: Method, real_server):
    row = await sweep("", "", real_server.tcp_url, kill, methods=[method], every=12)
    assert row.runs > 0
    assert (row.lost, row.doubled) == (0, 0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_call_of_a_worker_that_lost_its_connection_is_applied_once(method: Method, real_server):
    row = await sweep("", "", real_server.tcp_url, cut, methods=[method], every=8)
    assert row.runs > 0
    assert (row.lost, row.doubled, row.errors) == (0, 0, {})


async def test_a_turn_of_a_worker_killed_during_a_script_flush_is_stored_at_most_once(real_server):
    row = await sweep("", "", real_server.tcp_url, kill, methods=METHODS[:1], moments=[Moment.HALFWAY], forgetful=True)
    assert row.runs >= 9
    assert (row.lost, row.doubled) == (0, 0)


async def test_repeated_script_flushes_lose_no_turn(real_server):
    row = await outages.flush_scripts(real_server.url, "", count=4, turns=10)
    assert row.runs >= 10
    assert (row.acknowledged, row.lost, row.doubled) == (40, 0, 0)
    assert set(row.errors) <= {"HeadRevisionConflict"}


async def test_a_killed_server_that_always_fsyncs_loses_no_acknowledged_turn(real_server):
    row = await outages.kill_server(real_server.kind, "always", kills=2, count=3, turns=15)
    assert (row.runs, row.acknowledged, row.lost, row.doubled) == (2, 45, 0, 0)


async def test_a_killed_server_without_persistence_is_reported_as_session_gone(real_server):
    row = await outages.kill_server(real_server.kind, None, kills=1, count=1, turns=30)
    assert (row.acknowledged, row.doubled) == (30, 0)
    assert row.lost >= 10
    assert row.errors["SessionGone"] == 1


async def test_a_cache_made_before_a_fork_serves_parent_and_children_concurrently(real_server):
    row = await outages.fork_under_load(real_server.url, "", processes=3, turns=10)
    assert (row.acknowledged, row.lost, row.doubled) == (40, 0, 0)
    assert set(row.errors) <= {"HeadRevisionConflict"}


async def attempt(work: Work, session: str, node_id: str, at: At) -> tuple[int, int] | str:
    """The id of the commit, or the expected and the actual revision of the conflict."""
    commit = commit_of(session, node_id, node_id, at)
    try:
        await work.cache.session(session).commit_runtime_state(commit)
    except HeadRevisionConflict as conflict:
        return conflict.expected or 0, conflict.actual
    return commit.commit_id


async def test_exactly_one_of_two_processes_commits_on_the_same_revision(real_server):
    async with Crew() as crew, looking_at(real_server.url) as (client, cache):
        both = await crew.hire_all(2, real_server.url)
        won: list[str] = []
        builds_on = None
        for revision in range(ROUNDS):
            at = revision, builds_on, won[-1] if won else None
            # The order alternates, so that neither worker always commits first.
            for worker in both if revision % 2 else both[::-1]:
                worker.order(attempt, "chat", f"{worker.name}.{revision}", at)
            outcomes = await answers(both)
            assert [each for each in outcomes if isinstance(each, tuple)] == [(revision, revision + 1)]
            (winner,) = (worker for worker, each in zip(both, outcomes, strict=True) if isinstance(each, str))
            builds_on = next(each for each in outcomes if isinstance(each, str))
            won.append(f"{winner.name}.{revision}")
        assert await stored_turns(client, cache, "chat") == won
        await check_chain(client, cache, "chat")
        assert (await cache.audit()).problems == ()
        assert {name.partition(".")[0] for name in won} == {worker.name for worker in both}


OWNER = """
import asyncio, signal, sys
from tests.support.workers import At, Crew

signal.signal(signal.SIGINT, signal.default_int_handler)  # the test runner may ignore SIGINT

async def main():
    async with Crew() as crew:
        both = await crew.hire_all(2, sys.argv[1])
        both[0].freeze()
        print(*(worker.pid for worker in both), flush=True)
        await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_exit_after_their_owner_even_if_they_are_frozen(end, url):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.send_signal(end)
    owner.wait(SOON)
    owner.stdout.close()  # a worker that still runs has it open, too
    deadline = time.monotonic() + SOON
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker still runs"
        time.sleep(0.01)
