"""Worker processes that share an embedded directory: one serves, the others take over when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import redis

import lash_redis
from lash_redis.embedded import EmbeddedServer
from tests.support import workers
from tests.support.accounts import SHARED, Row, looking_at, settle_accounts
from tests.support.paths import ROOT
from tests.support.processes import parent_of
from tests.support.workers import NAMESPACE, PATIENCE, Crew, Work, Worker, answers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


def url_of(directory: Path) -> str:
    return f"embedded://{directory}"


def pid_of_server(directory: Path) -> int:
    with redis.Redis.from_url((directory / "lock").read_text()) as client:
        pid: int = client.info("server")["process_id"]
        return pid


async def serving(directory: Path, crew: Crew) -> Worker:
    """The worker whose process runs the server. A server whose worker was killed serves until it is ended.

    The server's parent is its guard, whose parent is the worker.
    """
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(redis.ConnectionError, subprocess.SubprocessError, ValueError):  # it ends, or starts
                pid = parent_of(parent_of(pid_of_server(directory)))
                for worker in crew.workers:
                    if worker.pid == pid:
                        return worker
            await asyncio.sleep(0.01)


@asynccontextmanager
async def settled(directory: Path, crew: Crew, sessions: Sequence[str] = (SHARED,)) -> AsyncIterator[Row]:
    """Compare what is stored with the journals of the workers. This process starts a server if no worker has one."""
    async with lash_redis.connect(url_of(directory), namespace=NAMESPACE) as cache:
        await cache.session(SHARED).load_head()
        async with looking_at((directory / "lock").read_text()) as (client, cold):
            yield await settle_accounts(Row("", ""), crew, client, cold, chains=sessions)


async def close_cache(work: Work) -> None:
    await work.cache.aclose()


async def test_workers_take_over_from_killed_workers_and_lose_no_turn(directory):
    async with Crew() as crew:
        left = await crew.hire_all(4, url_of(directory), model_seconds=0.005)
        for kills in (1, 2):
            for worker in left:
                worker.order(workers.take_turns, SHARED, workers.by_update, 20)
            await crew.reaches(30 * kills)
            killed = await serving(directory, crew)
            killed.kill()
            left.remove(killed)
            await answers(left)
        async with settled(directory, crew) as row:
            assert (row.lost, row.doubled) == (0, 0)
            assert row.acknowledged >= 2 * 40
            assert set(row.errors) <= {"HeadRevisionConflict"}


async def test_workers_take_over_from_a_worker_that_closes_its_cache(directory):
    async with Crew() as crew:
        first, *others = await crew.hire_all(3, url_of(directory), model_seconds=0.005)
        assert await serving(directory, crew) is first
        for worker in others:
            worker.order(workers.take_turns, SHARED, workers.by_update, 40)
        await crew.reaches(20)
        await first.do(close_cache)
        await answers(others)
        for worker in others:
            await worker.do(workers.take_turns, SHARED, workers.by_update, 1)
        assert await serving(directory, crew) in others
        async with settled(directory, crew) as row:
            assert (row.acknowledged, row.lost, row.doubled) == (82, 0, 0)
            assert set(row.errors) <= {"HeadRevisionConflict"}


async def test_a_server_that_is_killed_is_started_again_with_every_turn_that_was_on_disk(directory):
    async with Crew() as crew:
        hired = await crew.hire_all(3, url_of(directory))
        for number in range(3):
            for worker in hired:
                worker.order(workers.take_turns, SHARED, workers.by_update, 10)
            await answers(hired)
            await asyncio.sleep(1.5)  # appendfsync everysec: until the turns are on disk
            if number < 2:
                os.kill(pid_of_server(directory), signal.SIGKILL)
        async with settled(directory, crew) as row:
            assert (row.acknowledged, row.lost, row.doubled) == (90, 0, 0)
            assert set(row.errors) <= {"HeadRevisionConflict"}


async def test_of_four_workers_that_start_at_once_one_starts_the_server(directory):
    async with Crew() as crew:
        hired = await asyncio.gather(*(crew.hire(url_of(directory)) for _ in range(4)))
        pid = pid_of_server(directory)
        for worker in hired:
            worker.order(workers.take_turns, SHARED, workers.by_update, 10)
        await answers(hired)
        assert pid_of_server(directory) == pid
        async with settled(directory, crew) as row:
            assert (row.acknowledged, row.lost, row.doubled) == (40, 0, 0)


async def test_a_worker_waits_for_a_server_that_loads_its_data(directory):
    directory.mkdir(mode=0o700)
    with EmbeddedServer(directory) as server, redis.Redis.from_url(server.url) as client:
        client.mset({f"key-{number}": number for number in range(1000)})
    loading = EmbeddedServer(directory, options={"key-load-delay": "2000"})  # microseconds for each command or key
    assert loading.locate() is None
    async with Crew() as crew:
        try:
            async with asyncio.timeout(PATIENCE):
                worker = await crew.hire(url_of(directory))
            await worker.do(workers.take_turns, SHARED, workers.by_update, 1)
            assert loading.locate() is not None
            assert parent_of(parent_of(pid_of_server(directory))) == os.getpid()
        finally:
            await asyncio.to_thread(loading.stop)


async def test_forked_workers_share_the_server_of_their_parent(directory):
    async with Crew() as crew:
        worker = await crew.hire(url_of(directory))
        await worker.do(workers.fork_processes, SHARED, 3, 10)
        assert await serving(directory, crew) is worker
        async with settled(directory, crew) as row:
            assert (row.acknowledged, row.lost, row.doubled) == (40, 0, 0)
            assert set(row.errors) <= {"HeadRevisionConflict"}


OUTLIVED_PARENT = """
import asyncio, os, sys
import lash_redis
from tests.support.builders import append, commit

cache = lash_redis.connect(sys.argv[1])

async def turn(expected, parent, node):
    await cache.session("chat").commit_runtime_state(commit(expected, append(node, parent=parent)))

asyncio.run(turn(0, None, "a"))
read_end, write_end = os.pipe()
if os.fork():
    os._exit(0)
os.close(write_end)
os.read(read_end, 1)  # until the parent has ended
asyncio.run(turn(1, "a", "b"))
print("committed", flush=True)
"""


def test_a_forked_worker_takes_over_from_its_parent(directory):
    ended = subprocess.run(
        [sys.executable, "-c", OUTLIVED_PARENT, url_of(directory)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )
    assert (ended.stdout, ended.stderr) == ("committed\n", "")
