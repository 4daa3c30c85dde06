"""The blocking client works on every server, and ends calls in flight when a cache is closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from lash_redis import (
    BackendError,
    HeadRevisionConflict,
    OutcomeUnknown,
    SessionDeleted,
    SessionStoreCreateRequest,
    StoreError,
    blocking,
)
from lash_redis.blocking import BlockingSessionCache
from tests.support.blocking import PATIENCE, blocking_cache, loop_threads
from tests.support.builders import append, commit
from tests.support.proxy import Action, Proxy, on
from tests.support.servers import Server


@pytest.fixture
def cache(server: Server) -> Iterator[BlockingSessionCache]:
    with blocking_cache(server, "blocking", ttl=3600.0) as made:
        yield made
    assert loop_threads() == []


def test_calls_of_every_kind_work(cache: BlockingSessionCache) -> None:
    chat = cache.chat("chat", owner="alice")
    added = chat.append({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
    assert chat.messages() == added
    edited = chat.edit(added[0]["id"], {"role": "user", "content": "ho"})
    assert chat.messages() == [edited]
    assert chat.branches() == [added[1]["id"], edited["id"]]
    store = cache.session("chat")
    head = store.load_head()
    assert head is not None
    with pytest.raises(HeadRevisionConflict):
        store.commit_runtime_state(commit(1, append("x")))
    result = store.update(lambda read: commit(None, append("n", parent=read and read.graph.leaf_node_id)))
    assert result.head_revision == head.head_revision + 1
    assert cache.create(SessionStoreCreateRequest("made"), owner="alice").owner == "alice"
    assert cache.fork("chat", "copy").load_head() is not None
    assert sorted(info.session_id for info in cache.sessions(owner="alice")) == ["chat", "copy", "made"]
    assert cache.get_blob(cache.put_blob(b"bytes")) == b"bytes"
    with store.acquire_lease("worker") as lease, lease.renewing():
        info = store.load_lease()
        assert info is not None
        assert info.owner == "worker"
    assert not cache.audit().problems
    assert cache.delete("copy").existed
    assert cache.delete_owned("alice").deleted_session_count == 2
    with pytest.raises(SessionDeleted):
        chat.append({"role": "user", "content": "late"})


def test_watches_report_commits_of_another_cache(cache: BlockingSessionCache, server: Server) -> None:
    with blocking_cache(server, "blocking") as writer:
        for number in range(4):
            writer.chat(f"c{number}").append({"role": "user", "content": "1"})
        revisions = cache.session("c0").watch(1, poll=0.5)
        writer.chat("c0").append({"role": "user", "content": "2"})
        assert next(revisions) == 2
        revisions.close()
        with cache.watch(poll=0.5) as watch:
            for number in range(4):
                watch.add(f"c{number}", 0)
            assert {next(watch).session_id for _ in range(4)} == {"c0", "c1", "c2", "c3"}


async def test_closing_a_cache_ends_a_write_in_flight_as_unknown(proxy: Proxy) -> None:
    """The server has made the commit, and its reply does not arrive."""
    cache = blocking.connect(proxy.url)
    store = cache.session("chat")
    await asyncio.to_thread(store.load_head)
    proxy.on_command = on(Action.HOLD_REPLY, "EVALSHA")
    outcome = asyncio.create_task(asyncio.to_thread(store.commit_runtime_state, commit(0, append("a"))))
    await asyncio.wait_for(proxy.holding(), PATIENCE)
    await asyncio.to_thread(cache.close)
    with pytest.raises(OutcomeUnknown):
        await outcome
    assert loop_threads() == []


async def test_closing_a_cache_ends_a_read_in_flight(proxy: Proxy) -> None:
    cache = blocking.connect(proxy.url)
    store = cache.session("chat")
    await asyncio.to_thread(store.load_head)
    proxy.on_command = lambda command: Action.HOLD_REPLY
    outcome = asyncio.create_task(asyncio.to_thread(store.load_head))
    await asyncio.wait_for(proxy.holding(), PATIENCE)
    await asyncio.to_thread(cache.close)
    with pytest.raises(BackendError):
        await outcome


async def test_a_call_without_a_server_ends_in_time_and_close_does_not_wait_for_it() -> None:
    cache = blocking.connect("redis://127.0.0.1:1")
    errors: list[StoreError] = []

    def call() -> None:
        try:
            cache.chat("chat").messages()
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    await asyncio.sleep(0.1)
    await asyncio.to_thread(cache.close)
    thread.join(PATIENCE)
    assert [type(error) for error in errors] <= [BackendError, OutcomeUnknown]
    assert len(errors) == 1
