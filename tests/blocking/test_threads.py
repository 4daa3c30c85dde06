"""Threads share a cache, functions run in the caller's thread, and `close` ends threads, connections and calls."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lash_redis import (
    Append,
    BackendError,
    FullGraph,
    HeadRevisionConflict,
    InvalidRecord,
    LeaseLost,
    RuntimeCommit,
    StoreError,
    StoreOptions,
    blocking,
)
from lash_redis.blocking import BlockingLease, BlockingSessionCache
from lash_redis.transport.lanes import LARGE_CONNECTIONS
from tests.support.blocking import PATIENCE, connections, loop_threads, wait_until
from tests.support.builders import append, commit, ids_of

Opened = Callable[..., BlockingSessionCache]


@pytest.fixture
def opened(url: str) -> Iterator[Opened]:
    """`opened()` is a cache on the embedded server of the module, closed after the test."""
    made: list[BlockingSessionCache] = []

    def make(url: str = url, **more: Any) -> BlockingSessionCache:
        made.append(blocking.connect(url, **more))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
    assert loop_threads() == []


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


# Threads


def test_a_cache_starts_its_thread_at_the_first_call_and_ends_it_with_close(opened: Opened, url: str) -> None:
    before = connections(url)
    cache = opened()
    chat = cache.chat("chat")
    assert loop_threads() == []
    chat.append(user("hi"))
    assert len(loop_threads()) == 1
    assert connections(url) > before
    cache.close()
    assert loop_threads() == []
    assert connections(url) == before


def test_eight_threads_share_a_cache_its_connections_and_one_order_of_appends(opened: Opened, url: str) -> None:
    cache = opened()
    before = connections(url)
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for at in range(25):
            cache.chat("shared").append({**user(f"{number}"), "id": f"{number}-{at}"})
            own = cache.chat(f"own-{number}")
            own.append(user(f"{at}"))
            assert len(own.messages()) == at + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    ids = [message["id"] for message in cache.chat("shared").messages()]
    assert len(ids) == 200
    for number in range(8):
        assert [each for each in ids if each.startswith(f"{number}-")] == [f"{number}-{at}" for at in range(25)]
    assert connections(url) <= before + 1 + LARGE_CONNECTIONS


def test_threads_that_update_one_session_lose_no_turn(opened: Opened) -> None:
    store = opened().session("chat")

    def work(number: int) -> None:
        def turn(read: Any) -> RuntimeCommit:
            parent = None if read is None else read.graph.leaf_node_id
            return commit(None, append(f"m{number}", parent=parent))

        store.update(turn, attempts=100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    read = store.load_head()
    assert read is not None
    assert read.head_revision == 24


def test_many_caches_that_were_dropped_leave_no_thread_and_no_connection(url: str) -> None:
    before = connections(url)
    for _ in range(20):
        blocking.connect(url).chat("chat").append(user("x"))
    gc.collect()
    wait_until(lambda: loop_threads() == [] and connections(url) == before)


def test_a_handle_keeps_the_cache_that_made_it(url: str) -> None:
    chat = blocking.connect(url).chat("chat")
    gc.collect()
    chat.append(user("x"))
    assert len(chat.messages()) == 1
    del chat
    gc.collect()
    wait_until(lambda: loop_threads() == [])


# Functions of the caller


def test_the_function_of_update_runs_in_the_thread_of_the_caller(opened: Opened) -> None:
    store = opened().session("chat")
    seen = []

    def turn(read: Any) -> RuntimeCommit:
        seen.append((threading.get_ident(), read))
        return commit(None, append("a"))

    assert store.update(turn).head_revision == 1
    assert seen == [(threading.get_ident(), None)]


def test_the_function_of_update_may_call_the_cache(opened: Opened) -> None:
    cache = opened()
    store = cache.session("chat")

    def turn(read: Any) -> RuntimeCommit:
        cache.chat("other").append(user("nested"))
        cache.session("third").update(lambda _: commit(None, append("x"), session_id="third"))
        assert store.load_head() is None
        return commit(None, append("a"))

    assert store.update(turn).head_revision == 1
    assert len(cache.chat("other").messages()) == 1


def test_update_repeats_a_function_whose_own_commit_conflicts(opened: Opened) -> None:
    """As in the async store, a HeadRevisionConflict that the function raises counts as one of the attempt."""
    store, other = opened().session("chat"), opened().session("chat")
    other.commit_runtime_state(commit(0, append("a")))
    calls = []

    def turn(read: Any) -> RuntimeCommit:
        calls.append(read.head_revision)
        if len(calls) == 1:
            other.commit_runtime_state(commit(1, append("b", parent="a")))
        return commit(None, append(f"c{len(calls)}", parent=read.graph.leaf_node_id))

    assert store.update(turn).head_revision == 3
    assert calls == [1, 2]


class Mine(Exception):
    """An error of the caller."""


@pytest.mark.parametrize("raised", [Mine("mine"), StopIteration(1), InvalidRecord("a", "b")], ids=repr)
def test_an_error_of_the_function_of_update_is_raised_and_nothing_is_written(opened: Opened, raised: Exception) -> None:
    store = opened().session("chat")

    def turn(read: Any) -> RuntimeCommit:
        raise raised

    expected = RuntimeError if isinstance(raised, StopIteration) else type(raised)  # as in every coroutine
    with pytest.raises(expected) as found:
        store.update(turn)
    assert found.value is raised or found.value.__cause__ is raised
    assert store.load_head() is None
    if isinstance(raised, Mine):
        frames = [frame.name for frame in traceback.extract_tb(found.value.__traceback__)]
        assert frames[0] == "test_an_error_of_the_function_of_update_is_raised_and_nothing_is_written"
        assert frames[-1] == "turn"


def test_a_function_of_update_may_return_an_awaitable(opened: Opened) -> None:
    async def turn(read: Any) -> RuntimeCommit:
        await asyncio.sleep(0)
        return commit(None, append("a"))

    assert opened().session("chat").update(turn).head_revision == 1


def test_a_function_of_update_that_returns_something_else_is_refused_by_name(opened: Opened) -> None:
    with pytest.raises(InvalidRecord, match="the result of fn"):
        opened().session("chat").update(lambda read: None)  # type: ignore[arg-type,return-value]


def test_progress_is_reported_in_the_thread_of_the_caller_and_may_call_the_cache(opened: Opened) -> None:
    cache = opened(options=StoreOptions(shards=4))
    seen = []

    def progress(done: int, total: int) -> None:
        cache.chat("chat").messages()
        seen.append((threading.get_ident(), done, total))

    cache.gc(progress)
    assert seen == [(threading.get_ident(), at, 4) for at in range(1, 5)]


def test_an_error_of_progress_ends_the_call(opened: Opened) -> None:
    def progress(done: int, total: int) -> None:
        raise Mine

    with pytest.raises(Mine):
        opened().gc(progress)
    with pytest.raises(InvalidRecord, match="progress"):
        opened().gc(3)  # type: ignore[arg-type]


# Errors


def test_an_error_keeps_its_type_and_shows_the_caller_and_the_cause(opened: Opened) -> None:
    store = opened().session("chat")
    store.commit_runtime_state(commit(0, append("a")))
    with pytest.raises(HeadRevisionConflict) as found:
        store.commit_runtime_state(commit(0, append("b")))
    assert (found.value.expected, found.value.actual) == (0, 1)
    frames = [frame.name for frame in traceback.extract_tb(found.value.__traceback__)]
    assert frames[0] == "test_an_error_keeps_its_type_and_shows_the_caller_and_the_cause"
    assert "commit_runtime_state" in frames
    assert found.value.__context__ is None


def test_wrong_arguments_are_a_type_error_of_the_method(opened: Opened) -> None:
    with pytest.raises(TypeError, match=r"load_session\(\).*scope"):
        opened().session("chat").load_session()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="nonsense"):
        opened().session("chat").watch(nonsense=1)  # type: ignore[call-arg]


def test_handles_cannot_be_pickled(opened: Opened) -> None:
    cache = opened()
    for each in (cache, cache.session("chat"), cache.chat("chat"), cache.watch()):
        with pytest.raises(TypeError, match=f"a {type(each).__name__} holds connections"):
            each.__reduce__()


# Leases and watches


def test_a_lease_is_a_record_that_another_process_adopts(opened: Opened) -> None:
    store = opened().session("chat")
    lease = store.acquire_lease("worker", ttl=30.0)
    sent = BlockingLease.from_json(lease.to_json())
    with pytest.raises(InvalidRecord, match="not bound to a store"):
        sent.renew()
    adopted = opened().session("chat").adopt_lease(sent)
    assert adopted.renew() is adopted
    assert adopted.remaining > 0
    store.commit_runtime_state(RuntimeCommit("chat", graph=Append([]), lease=adopted))
    adopted.release()
    with pytest.raises(LeaseLost):
        lease.renew()


def test_a_lease_is_renewed_while_the_block_runs(opened: Opened) -> None:
    store = opened().session("chat")
    with store.acquire_lease(ttl=60.0) as lease, lease.renewing(every=0.1) as same:
        assert same is lease
        first = lease.deadline
        wait_until(lambda: lease.deadline > first + 0.5)
        assert store.load_lease() is not None
    assert store.load_lease() is None


def test_a_lease_that_is_lost_in_a_block_is_raised_at_its_end(opened: Opened) -> None:
    store = opened().session("chat")
    lease = store.acquire_lease("worker", ttl=0.6)

    def work() -> None:
        with lease.renewing():
            store.acquire_lease("worker", reenter=True)
            wait_until(lambda: lease.remaining == 0)

    with pytest.raises(LeaseLost):
        work()


def test_an_error_of_a_block_passes_through_its_context_managers_unchanged(opened: Opened) -> None:
    store = opened().session("chat")
    with pytest.raises(Mine) as found, store.acquire_lease() as lease, lease.renewing():
        raise Mine
    assert [frame.name for frame in traceback.extract_tb(found.value.__traceback__)] == [
        "test_an_error_of_a_block_passes_through_its_context_managers_unchanged"
    ]
    assert store.load_lease() is None


def test_closing_a_watch_early_ends_its_connection(opened: Opened, url: str) -> None:
    cache = opened()
    store = cache.session("chat")
    store.commit_runtime_state(commit(0, append("a")))
    before = connections(url)
    revisions = store.watch(0)
    assert next(revisions) == 1
    assert connections(url) == before + 1
    revisions.close()
    assert connections(url) == before
    for revision in store.watch(0):
        assert revision == 1
        break
    gc.collect()
    wait_until(lambda: connections(url) == before)


def test_a_watch_of_the_cache_reports_sessions_that_another_thread_adds(opened: Opened, url: str) -> None:
    cache = opened()
    cache.chat("chat").append(user("x"))
    before = connections(url)
    with cache.watch() as watch:
        thread = threading.Thread(target=lambda: (time.sleep(0.05), watch.add("chat", 0)))
        thread.start()
        change = next(watch)
        assert (change.session_id, change.revision) == ("chat", 1)
        thread.join()
        closing = threading.Thread(target=watch.close)
        closing.start()
        assert list(watch) == []
        closing.join()
    assert connections(url) == before


# Close


def closed_calls(cache: BlockingSessionCache) -> list[Callable[[], object]]:
    store, chat, watch = cache.session("chat"), cache.chat("chat"), cache.watch()
    return [
        store.load_head,
        chat.messages,
        lambda: chat.append(user("x")),
        lambda: list(cache.sessions()),
        lambda: next(store.watch()),
        lambda: watch.add("chat"),
        watch.__enter__,
        watch.close,
        lambda: store.update(lambda read: commit(None, append("a"))),
        cache.gc,
        store.acquire_lease,
        lambda: cache.put_blob(b"x"),
    ]


@pytest.mark.parametrize("was_used", [True, False])
def test_after_close_every_call_is_refused(opened: Opened, was_used: bool) -> None:
    cache = opened()
    calls = closed_calls(cache)
    if was_used:
        cache.chat("chat").append(user("x"))
    cache.close()
    cache.close()
    for each in calls:
        with pytest.raises(BackendError, match="this cache was closed"):
            each()
    assert loop_threads() == []


def test_close_ends_watches_of_other_threads(opened: Opened, url: str) -> None:
    before = connections(url)
    cache = opened()
    errors: list[BaseException] = []

    def follow() -> None:
        try:
            list(cache.session("chat").watch())
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: connections(url) > before + 3)
    cache.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert [(type(error), str(error)) for error in errors] == [
        (BackendError, "store backend error: this cache was closed")
    ] * 3
    assert connections(url) == before


def test_two_threads_may_close_at_the_same_time(opened: Opened) -> None:
    cache = opened()
    cache.chat("chat").append(user("x"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cache.close(), range(4)))
    assert loop_threads() == []


def test_leaving_a_block_after_the_cache_was_closed_in_it_is_refused_by_name(opened: Opened) -> None:
    cache = opened()
    store = cache.session("chat")
    with pytest.raises(BackendError, match="closed"), store.acquire_lease() as lease, lease.renewing():
        cache.close()
    revisions = opened().session("chat").watch(0)
    revisions.close()


@pytest.mark.slow
def test_closing_in_the_function_of_update_ends_the_update(opened: Opened) -> None:
    cache = opened()

    def turn(read: Any) -> RuntimeCommit:
        cache.close()
        return commit(None, append("a"))

    with pytest.raises(StoreError):
        cache.session("chat").update(turn)


# Misuse


def test_a_call_from_the_thread_of_the_loop_is_refused_by_name(opened: Opened) -> None:
    """A coroutine that the loop runs must not call the cache. A function that update awaits is one."""
    cache = opened()
    found: list[BaseException] = []

    async def turn(read: Any) -> RuntimeCommit:
        for each in (cache.chat("chat").messages, cache.close, lambda: next(cache.sessions())):
            try:
                each()
            except StoreError as error:
                found.append(error)
        return commit(None, append("a"))

    cache.session("chat").update(turn)
    assert [type(error) for error in found] == [BackendError] * 3
    assert "would wait for itself" in str(found[0])
    assert "call it from another thread" in str(found[0])


def test_a_watch_that_is_collected_in_the_thread_of_the_loop_ends(opened: Opened, url: str) -> None:
    cache = opened()
    store = cache.session("chat")
    store.commit_runtime_state(commit(0, append("a")))
    store.update(lambda read: commit(None, append("b", parent="a")))
    before = connections(url)
    revisions = [store.watch(0)]
    next(revisions[0])

    async def turn(read: Any) -> RuntimeCommit:
        revisions.clear()
        return commit(None, append("c", parent="b"))

    store.update(turn)
    wait_until(lambda: connections(url) == before)


# Event loops


async def test_calls_work_in_a_running_loop_and_leave_it_alone(opened: Opened) -> None:
    cache = opened()
    loop = asyncio.get_running_loop()
    tasks, generators = asyncio.all_tasks(), len(loop._asyncgens)  # type: ignore[attr-defined]
    store = cache.session("chat")
    store.commit_runtime_state(commit(0, append("a")))
    revisions = store.watch(0)
    assert next(revisions) == 1
    assert len(loop._asyncgens) == generators  # type: ignore[attr-defined]
    with store.acquire_lease() as lease, lease.renewing():
        assert [info.session_id for info in cache.sessions()] == ["chat"]
    revisions.close()
    assert asyncio.all_tasks() == tasks
    assert asyncio.get_running_loop() is loop
    assert len(loop._asyncgens) == generators  # type: ignore[attr-defined]
    assert not hasattr(loop, "_lash_redis_places") or not loop._lash_redis_places


def test_a_read_is_refreshed_and_decoded_as_in_the_async_store(opened: Opened) -> None:
    store = opened().session("chat")
    store.commit_runtime_state(commit(0, append("a", "b")))
    read = store.load_session(FullGraph(), decode=True)
    assert ids_of(read) == ["a", "b"]
    assert store.refresh(read) is read  # type: ignore[arg-type]
