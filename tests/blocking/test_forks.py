"""A cache that was made and used before a fork serves the parent and its children, and each closes only its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, TypeVar

import pytest
import redis

from lash_redis import BackendError, StreamBusy, blocking
from lash_redis.blocking import BlockingSessionCache
from tests.support.blocking import PATIENCE, connections, loop_threads, output_of, wait_until

Result = TypeVar("Result")


def in_child(work: Callable[[], Result]) -> Callable[[], Result]:
    """Fork, and run `work` in the child. The function that is returned waits for its result."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(write_end, "wb") as pipe:
                pickle.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)

    def result() -> Result:
        with open(read_end, "rb") as pipe:
            data = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
        found: Result = pickle.loads(data)
        return found

    return result


@pytest.fixture
def cache(url: str) -> Iterator[BlockingSessionCache]:
    with blocking.connect(url) as made:
        yield made


def say(cache: BlockingSessionCache, text: str, chat: str = "chat") -> int:
    handle = cache.chat(chat)
    handle.append({"role": "user", "content": text})
    return len(handle.messages())


def test_a_cache_that_was_used_before_a_fork_serves_parent_and_child(cache: BlockingSessionCache, url: str) -> None:
    say(cache, "before")
    idle = connections(url)
    children = [in_child(lambda: say(cache, "in a child")) for _ in range(4)]
    say(cache, "in the parent")
    assert max(child() for child in children) >= 2
    assert say(cache, "after") == 7
    wait_until(lambda: connections(url) == idle)


def test_handles_that_were_made_before_a_fork_work_in_the_child(cache: BlockingSessionCache) -> None:
    chat, store = cache.chat("chat"), cache.session("chat")
    chat.append({"role": "user", "content": "a"})

    def work() -> tuple[int, int]:
        chat.append({"role": "user", "content": "b"})
        with store.acquire_lease() as lease, lease.renewing():
            head = store.load_head()
        assert head is not None
        return head.head_revision, len(chat.messages())

    assert in_child(work)() == (2, 2)
    assert len(chat.messages()) == 2


def test_a_child_that_closes_leaves_the_parent_connected(cache: BlockingSessionCache, url: str) -> None:
    say(cache, "before")
    idle = connections(url)

    def work() -> tuple[list[str], str]:
        say(cache, "in the child")
        cache.close()
        try:
            say(cache, "too late")
        except BackendError as error:
            return [thread.name for thread in loop_threads()], str(error)
        return [], "no error"

    assert in_child(work)() == ([], "store backend error: this cache was closed")
    assert connections(url) == idle
    assert say(cache, "after") == 3


def test_a_parent_that_closes_ends_its_connections_while_a_child_lives(cache: BlockingSessionCache, url: str) -> None:
    """The child has copies of the sockets, which would keep the connections open."""
    before = connections(url)
    say(cache, "before")
    go, done = os.pipe()
    child = in_child(lambda: (os.read(go, 1), say(cache, "in the child"))[1])
    try:
        cache.close()
        wait_until(lambda: connections(url) == before)
    finally:  # else the child would wait
        os.write(done, b"x")
        result = child()
        os.close(go)
        os.close(done)
    assert result == 2


def test_calls_in_flight_continue_after_a_fork_in_another_thread(cache: BlockingSessionCache) -> None:
    counts: list[int] = []
    is_over = threading.Event()

    def work(number: int) -> int:
        at = 0
        while not is_over.is_set():
            at += 1
            assert say(cache, "x", f"chat-{number}") == at
        return at

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(work, number) for number in range(4)]
        for at in range(10):
            assert in_child(lambda at=at: say(cache, "child", f"child-{at}"))() == 1
        is_over.set()
        counts = [each.result(PATIENCE) for each in running]
    assert min(counts) > 0


def test_a_watch_and_a_renewed_lease_of_the_parent_survive_forks(cache: BlockingSessionCache) -> None:
    say(cache, "a")
    store = cache.session("chat")
    revisions = store.watch(0)
    assert next(revisions) == 1
    with store.acquire_lease(ttl=60.0) as lease, lease.renewing(every=0.1):
        first = lease.deadline
        assert in_child(lambda: say(cache, "in the child"))() == 2
        assert next(revisions) == 2
        wait_until(lambda: lease.deadline > first + 0.5)
    revisions.close()


def test_a_child_cannot_continue_an_iteration_of_its_parent(cache: BlockingSessionCache) -> None:
    say(cache, "a")
    revisions = cache.session("chat").watch(0)
    assert next(revisions) == 1

    def work() -> str:
        try:
            next(revisions)
        except BackendError as error:
            return str(error)
        return "no error"

    assert "begin another one in the child" in in_child(work)()
    say(cache, "b")
    assert next(revisions) == 2
    revisions.close()


@contextmanager
def held_cache(cache: BlockingSessionCache, url: str) -> Iterator[Callable[[], bool]]:
    with blocking.connect(url) as own:
        own.chat("other").append({"role": "user", "content": "x"})
        yield lambda: len(own.chat("other").messages()) == 1


@contextmanager
def held_lease(cache: BlockingSessionCache, url: str) -> Iterator[Callable[[], bool]]:
    store = cache.session("chat")
    with store.acquire_lease(ttl=30.0):
        yield lambda: store.load_lease() is not None


@contextmanager
def held_renewal(cache: BlockingSessionCache, url: str) -> Iterator[Callable[[], bool]]:
    lease = cache.session("chat").acquire_lease(ttl=60.0)
    with lease.renewing(every=0.1):
        ends = lease.deadline + 0.3

        def is_renewed() -> bool:
            wait_until(lambda: lease.deadline > ends)
            return True

        yield is_renewed


@contextmanager
def held_stream(cache: BlockingSessionCache, url: str) -> Iterator[Callable[[], bool]]:
    chat = cache.chat("chat")
    with chat.stream("gen") as out:
        out.send("before")
        out.flush()

        def is_open() -> bool:
            events = chat.follow("gen")
            out.send("after")
            out.flush()
            return [next(events).data for _ in range(2)] == ["before", "after"]

        yield is_open


@contextmanager
def held_watch(cache: BlockingSessionCache, url: str) -> Iterator[Callable[[], bool]]:
    with cache.watch() as watch:
        watch.add("chat", 0)

        def reports() -> bool:
            say(cache, "news")
            return next(watch).revision == 1

        yield reports


@contextmanager
def held_iteration(cache: BlockingSessionCache, url: str) -> Iterator[Callable[[], bool]]:
    say(cache, "a")
    with closing(cache.session("chat").watch(0)) as revisions:
        assert next(revisions) == 1

        def reports() -> bool:
            say(cache, "b")
            return next(revisions) == 2

        yield reports


HELD = [held_cache, held_lease, held_renewal, held_stream, held_watch, held_iteration]


@pytest.mark.parametrize("held", HELD, ids=lambda held: held.__name__)
def test_a_child_leaves_a_block_of_its_parent_without_an_effect(
    held: Callable[..., AbstractContextManager[Callable[[], bool]]], cache: BlockingSessionCache, url: str
) -> None:
    block = held(cache, url)
    is_held = block.__enter__()
    try:
        assert in_child(lambda: bool(block.__exit__(None, None, None)))() is False
        assert is_held()
    finally:
        block.__exit__(None, None, None)


def test_every_context_manager_of_the_package_is_tested_after_a_fork() -> None:
    """`HELD` has a block of each, and an iteration, which `closing` ends."""
    managers = {name for name in blocking.__all__ if hasattr(getattr(blocking, name), "__exit__")}
    assert managers == {
        "BlockingSessionCache",
        "BlockingLease",
        "BlockingContext",
        "BlockingStreamWriter",
        "BlockingSessionWatch",
    }


def test_a_child_cannot_write_to_a_stream_of_its_parent(cache: BlockingSessionCache) -> None:
    """It would send its events under the numbers of its parent's, which would then be taken for retries."""
    chat = cache.chat("chat")

    def work() -> list[str]:
        refusals = []
        for call in (lambda: out.send("child"), out.flush):
            try:
                call()
            except StreamBusy as error:
                refusals.append(error.state)
        return refusals

    with chat.stream("gen") as out:
        out.send("a")
        out.flush()
        assert in_child(work)() == ["running", "running"]
        out.send("b")
    assert [event.data for event in chat.follow("gen")] == ["a", "b"]


def test_a_child_can_finish_a_stream_of_its_parent_with_a_commit(cache: BlockingSessionCache) -> None:
    """As another process can that got the writer by pickle."""
    chat = cache.chat("chat")
    out = chat.stream("gen")
    out.__enter__()
    out.send("a")
    out.flush()
    assert in_child(lambda: len(chat.append({"role": "assistant", "content": "a"}, finishes=out)))() == 1
    assert [event.data for event in chat.follow("gen")] == ["a"]
    out.send("late")
    with pytest.raises(StreamBusy):
        out.__exit__(None, None, None)


def test_a_child_cannot_continue_a_watch_of_its_parent(cache: BlockingSessionCache) -> None:
    def work() -> str:
        try:
            next(watch)
        except BackendError as error:
            return str(error)
        return "no error"

    with cache.watch() as watch:
        watch.add("chat", 0)
        assert "begin another one in the child" in in_child(work)()


def test_a_grandchild_and_a_process_of_multiprocessing_have_connections_of_their_own(
    cache: BlockingSessionCache, url: str
) -> None:
    say(cache, "a")
    assert in_child(lambda: (say(cache, "b"), in_child(lambda: say(cache, "c"))())[1])() == 3
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2, initializer=_adopt, initargs=(cache,)) as pool:
        assert sorted(pool.map(_say, range(4))) != []
    assert say(cache, "last") == 8


_adopted: list[BlockingSessionCache] = []


def _adopt(cache: BlockingSessionCache) -> None:
    _adopted.append(cache)


def _say(number: int) -> int:
    return say(_adopted[0], str(number))


PREFORK = """
import os, sys, time
from lash_redis import blocking
cache = blocking.connect(sys.argv[1])
chat = cache.chat("chat")
chat.append({"role": "user", "content": "preload"})
workers = []
for number in range(3):
    child = os.fork()
    if child == 0:
        chat.append({"role": "user", "content": f"worker {number}"})
        sys.exit(0)  # the worker ends as a process does, with exit functions
    workers.append(child)
for child in workers:
    assert os.waitpid(child, 0)[1] == 0
print(len(chat.messages()))
"""


def test_workers_that_were_forked_after_a_preload_end_without_a_message(url: str) -> None:
    assert output_of(PREFORK, url) == "4\n"


@pytest.mark.slow
def test_forked_workers_share_the_embedded_server_of_their_parent() -> None:
    """The process of the server is a child of the parent alone, of which Python warns in each worker."""
    assert output_of(PREFORK, "embedded://", warnings="ignore::ResourceWarning") == "4\n"


@pytest.mark.slow
def test_a_fork_does_not_wait_long_for_a_busy_loop(cache: BlockingSessionCache) -> None:
    """A coroutine that blocks the loop delays a fork for a second at most. The child works nevertheless."""
    say(cache, "a")
    blocked = threading.Event()

    async def turn(read: Any) -> Any:
        blocked.set()
        time.sleep(3)  # noqa: ASYNC251 - it blocks the loop on purpose
        return None

    def update() -> None:
        with pytest.raises(ValueError, match="the result of fn"):
            cache.session("chat").update(turn)

    thread = threading.Thread(target=update)
    thread.start()
    blocked.wait(PATIENCE)
    assert in_child(lambda: say(cache, "b"))() == 2
    thread.join()
    assert say(cache, "c") == 3


def test_a_forked_child_shares_no_connection_with_its_parent(cache: BlockingSessionCache, url: str) -> None:
    say(cache, "a")
    with redis.Redis.from_url(url) as client:
        parents = {each["id"] for each in client.client_list()}

        def work() -> int:
            say(cache, "b")
            with redis.Redis.from_url(url) as own:
                return len({each["id"] for each in own.client_list()} - parents)

        assert in_child(work)() >= 2
