"""Caches of one directory share its server, and one of them starts the next server when it has ended."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

import lash_redis
from lash_redis import ActivePath, BackendError, FullGraph, InvalidRecord, OutcomeUnknown, SessionCache, StoreOptions
from lash_redis import embedded as servers
from lash_redis.embedded import EmbeddedServer
from lash_redis.transport import embedded as transport
from tests.support.builders import append, commit, ids_of

PATIENCE = 30.0
"""Seconds that a call may take, and seconds until a test that waits for an event fails."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


def opened(directory: Path) -> SessionCache:
    return lash_redis.connect(f"embedded://{directory}", options=StoreOptions(call_timeout=PATIENCE))


def url_of_server(directory: Path) -> str:
    return (directory / "lock").read_text()


def kill_server(directory: Path) -> None:
    with redis.Redis.from_url(url_of_server(directory)) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)


@contextmanager
def held_lock(directory: Path, url: str) -> Iterator[None]:
    """Hold the lock of a directory as another process would, with the address of its server."""
    directory.mkdir(mode=0o700)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(url)
        lock.flush()
        yield


async def test_a_second_cache_connects_to_the_server_of_the_first_one(directory):
    async with opened(directory) as first, opened(directory) as second:
        await first.session("chat").commit_runtime_state(commit(0, append("a")))
        url = url_of_server(directory)
        await second.session("chat").commit_runtime_state(commit(1, append("b", parent="a")))
        assert ids_of(await first.session("chat").load_session(FullGraph())) == ["a", "b"]
        assert url_of_server(directory) == url


async def test_another_cache_takes_over_when_the_cache_with_the_server_closes(directory):
    first = opened(directory)
    await first.session("chat").commit_runtime_state(commit(0, append("a")))
    async with opened(directory) as second:
        store = second.session("chat")
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
        await first.aclose()
        result = await store.commit_runtime_state(commit(2, append("c", parent="b")))
        assert (result.head_revision, result.replayed) == (3, False)
        assert ids_of(await store.load_session(FullGraph())) == ["a", "b", "c"]


async def test_when_all_caches_have_closed_the_directory_keeps_its_sessions(directory):
    async with opened(directory) as first, opened(directory) as second:
        await first.session("chat").commit_runtime_state(commit(0, append("a")))
        assert ids_of(await second.session("chat").load_session(FullGraph())) == ["a"]
    async with opened(directory) as third:
        assert ids_of(await third.session("chat").load_session(FullGraph())) == ["a"]


async def test_the_next_call_starts_a_killed_server_again(directory):
    async with opened(directory) as cache:
        store = cache.session("chat")
        await store.commit_runtime_state(commit(0, append("a")))
        kill_server(directory)
        assert ids_of(await store.load_session(FullGraph())) == ["a"]


async def test_calls_in_flight_during_a_takeover_are_applied_once(directory):
    first = opened(directory)
    await first.session("chat").load_head()
    async with opened(directory) as second:
        stores = [second.session(f"chat-{number}") for number in range(50)]
        calls = [store.commit_runtime_state(commit(0, append("a"), session_id=store.session_id)) for store in stores]
        *results, _ = await asyncio.gather(*calls, first.aclose())
        assert [result.head_revision for result in results] == [1] * 50
        assert [ids_of(await store.load_session(FullGraph())) for store in stores] == [["a"]] * 50


async def test_a_watch_that_makes_no_other_call_starts_the_next_server(directory):
    first = opened(directory)
    await first.session("chat").commit_runtime_state(commit(0, append("a")))
    async with opened(directory) as second, second.watch() as watch, asyncio.timeout(PATIENCE):
        watch.add("chat", since=0)
        assert (await anext(watch)).revision == 1
        url = url_of_server(directory)
        await first.aclose()
        while url_of_server(directory) == url:  # noqa: ASYNC110 - the watch has no event for it
            await asyncio.sleep(0.01)
        async with opened(directory) as third:
            await third.session("chat").commit_runtime_state(commit(1, append("b", parent="a")))
            assert (await anext(watch)).revision == 2


async def test_the_address_of_an_ended_server_is_not_used(directory):
    directory.mkdir(mode=0o700)
    (directory / "lock").write_text(f"unix://{directory}/nowhere")
    async with opened(directory) as cache:
        assert await cache.session("chat").load_session(ActivePath()) is None
        assert url_of_server(directory) != f"unix://{directory}/nowhere"


@pytest.mark.parametrize("address", ["", "nonsense", "unix:///nowhere/socket"])
async def test_a_lock_whose_server_never_answers_is_an_error(address, directory, monkeypatch):
    monkeypatch.setattr(transport, "START_TIMEOUT", 0.2)
    with held_lock(directory, address):
        async with opened(directory) as cache:
            with pytest.raises(
                BackendError, match=r"did not answer within 0\.2 seconds; if a process of another machine"
            ):
                await cache.session("chat").load_head()


async def test_a_server_of_another_user_is_an_error(directory, monkeypatch):
    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(servers, "_ping", denied)
    with held_lock(directory, "unix:///run/theirs/socket"):
        async with opened(directory) as cache:
            with pytest.raises(
                BackendError, match="the server of another user at /run/theirs/socket; run as that user"
            ):
                await cache.session("chat").load_head()


async def test_a_file_system_without_locks_is_an_error(directory, monkeypatch):
    def unsupported(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    async with opened(directory) as cache:
        with pytest.raises(BackendError, match="No locks available; use a directory on a local disk"):
            await cache.session("chat").load_head()


async def test_a_path_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    async with opened(tmp_path / "file") as cache:
        with pytest.raises(BackendError, match=r"cannot create the directory .*file: File exists"):
            await cache.session("chat").load_head()


async def test_a_directory_that_was_deleted_is_an_error_and_not_an_empty_store(directory):
    async with opened(directory) as cache:
        store = cache.session("chat")
        await store.commit_runtime_state(commit(0, append("a")))
        with redis.Redis.from_url(url_of_server(directory)) as client:
            pid = client.info("server")["process_id"]
        shutil.rmtree(directory)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BackendError, match="sessions does not exist; was it deleted while a server used it"):
            await store.load_session(FullGraph())
        assert not directory.exists()


async def test_a_server_that_cannot_read_its_data_is_an_error_with_the_log(directory):
    async with opened(directory) as cache:
        await cache.session("chat").commit_runtime_state(commit(0, append("a")))
    for file in (directory / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"nonsense\r\n" * 100)
    async with opened(directory) as cache:
        with pytest.raises(BackendError, match=r"(?s)ended while starting.*append only file"):
            await cache.session("chat").load_session(FullGraph())


async def test_a_write_whose_server_cannot_be_started_again_is_unknown_only_if_it_was_sent(directory, monkeypatch):
    async with opened(directory) as cache:
        store = cache.session("chat")
        await store.commit_runtime_state(commit(0, append("a")))
        with redis.Redis.from_url(url_of_server(directory)) as client:
            client.client_pause(100_000, all=False)
            sending = asyncio.create_task(store.commit_runtime_state(commit(1, append("b", parent="a"))))
            async with asyncio.timeout(PATIENCE):
                while not client.info("clients")["blocked_clients"]:  # noqa: ASYNC110 - an event of another process
                    await asyncio.sleep(0.001)
            pid = client.info("server")["process_id"]
        shutil.rmtree(directory)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(OutcomeUnknown, match="does not exist"):
            await sending
        with pytest.raises(BackendError, match="does not exist"):
            await store.commit_runtime_state(commit(1, append("b", parent="a")))


async def test_a_cancelled_first_call_leaves_no_server(directory):
    cache = opened(directory)
    call = asyncio.create_task(cache.session("chat").load_head())
    async with asyncio.timeout(PATIENCE):
        while not (directory / "lock").exists():  # noqa: ASYNC110 - the call has no event for it
            await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await cache.aclose()
    with EmbeddedServer(directory) as server:
        assert server.running


async def test_a_relative_path_and_a_home_directory_name_the_same_server(directory, monkeypatch):
    monkeypatch.setenv("HOME", str(directory.parent))
    monkeypatch.chdir(directory.parent)
    async with opened(directory) as cache:
        await cache.session("chat").commit_runtime_state(commit(0, append("a")))
        for url in ("embedded://sessions", "embedded://./sessions", "embedded://~/sessions"):
            async with lash_redis.connect(url) as other:
                assert ids_of(await other.session("chat").load_session(FullGraph())) == ["a"]


def test_the_home_directory_of_an_unknown_user_is_refused():
    with pytest.raises(InvalidRecord, match=r"^url: names the home directory of an unknown user"):
        lash_redis.connect("embedded://~no-such-user/sessions")
