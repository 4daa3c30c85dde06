"""Worker processes under faults, in small counts; `make faults` runs the same with large ones."""

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
"""Seconds until nothing is left of workers whose owner ended."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_what_a_worker_was_doing_when_it_was_killed_is_done_or_not(method: Method, real_server):
    row = await sweep("", "", real_server.tcp_url, kill, methods=[method], every=12)
    assert row.runs > 0
    assert (row.lost, row.doubled) == (0, 0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_worker_that_lost_its_connection_does_what_it_was_doing_once(method: Method, real_server):
    row = await sweep("", "", real_server.tcp_url, cut, methods=[method], every=8)
    assert row.runs > 0
    assert (row.lost, row.doubled, row.errors) == (0, 0, {})


async def test_a_worker_killed_while_the_server_forgets_its_scripts_leaves_a_turn_once_or_not_at_all(real_server):
    row = await sweep("", "", real_server.tcp_url, kill, methods=METHODS[:1], moments=[Moment.HALFWAY], forgetful=True)
    assert row.runs >= 9
    assert (row.lost, row.doubled) == (0, 0)


async def test_a_server_that_forgets_its_scripts_all_the_time_keeps_every_turn(real_server):
    row = await outages.flush_scripts(real_server.url, "", count=4, turns=10)
    assert row.runs > 10
    assert (row.acknowledged, row.lost, row.doubled) == (40, 0, 0)
    assert set(row.errors) <= {"HeadRevisionConflict"}


async def test_a_server_killed_under_load_keeps_what_it_fsyncs_always(real_server):
    row = await outages.kill_server(real_server.kind, "always", kills=2, count=3, turns=15)
    assert (row.runs, row.acknowledged, row.lost, row.doubled) == (2, 45, 0, 0)


async def test_without_persistence_a_killed_server_leaves_nothing_half_and_the_workers_are_told(real_server):
    row = await outages.kill_server(real_server.kind, None, kills=1, count=1, turns=30)
    assert (row.acknowledged, row.doubled) == (30, 0)
    assert row.lost >= 10
    assert row.errors["SessionGone"] == 1


async def test_a_cache_made_before_a_fork_serves_parent_and_children_at_once(real_server):
    row = await outages.fork_under_load(real_server.url, "", processes=3, turns=10)
    assert (row.acknowledged, row.lost, row.doubled) == (40, 0, 0)
    assert set(row.errors) <= {"HeadRevisionConflict"}


async def attempt(work: Work, session: str, node_id: str, at: At) -> tuple[int, int] | str:
    """The commit's id, or what the conflict said."""
    commit = commit_of(session, node_id, node_id, at)
    try:
        await work.cache.session(session).commit_runtime_state(commit)
    except HeadRevisionConflict as conflict:
        return conflict.expected or 0, conflict.actual
    return commit.commit_id


async def test_of_two_processes_on_one_revision_exactly_one_wins_and_the_other_changes_nothing(real_server):
    async with Crew() as crew, looking_at(real_server.url) as (client, cache):
        both = await crew.hire_all(2, real_server.url)
        won: list[str] = []
        builds_on = None
        for revision in range(ROUNDS):
            at = revision, builds_on, won[-1] if won else None
            # Told in turns who comes first, so that neither wins by its place.
            for worker in both if revision % 2 else both[::-1]:
                worker.order(attempt, "chat", f"{worker.name}.{revision}", at)
            told = await answers(both)
            assert [each for each in told if isinstance(each, tuple)] == [(revision, revision + 1)]
            (winner,) = (worker for worker, each in zip(both, told, strict=True) if isinstance(each, str))
            builds_on = next(each for each in told if isinstance(each, str))
            won.append(f"{winner.name}.{revision}")
        assert await stored_turns(client, cache, "chat") == won
        await check_chain(client, cache, "chat")
        assert (await cache.audit()).problems == ()
        assert {name.partition(".")[0] for name in won} == {worker.name for worker in both}


OWNER = """
import asyncio, signal, sys
from tests.support.workers import At, Crew

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it

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
def test_nothing_is_left_of_workers_whose_owner_ended_not_even_of_frozen_ones(end, url):
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
    owner.stdout.close()  # a worker that is left has it open too
    deadline = time.monotonic() + SOON
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.01)
