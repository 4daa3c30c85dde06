"""Streams over the blocking client: a producer, followers in other threads, a stop request, and a finishing commit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lash_redis import BackendError, OutcomeUnknown, StoreError, StreamBusy, StreamFailed, blocking
from tests.support.blocking import wait_until


def test_a_thread_follows_what_another_one_produces_and_finds_the_answer(url: str) -> None:
    with blocking.connect(url) as cache, ThreadPoolExecutor() as threads:

        def follow() -> list[object]:
            return [event.data for event in cache.chat("c").follow("gen", wait=30)]

        followers = [threads.submit(follow) for _ in range(3)]
        chat = cache.chat("c")
        with chat.stream("gen") as out:
            for number in range(5):
                out.send(number)
            out.flush()
            assert chat.store.request_stop("gen")
            wait_until(lambda: out.stop_requested)
            chat.append({"role": "assistant", "content": "done"}, finishes=out)
        assert [follower.result() for follower in followers] == [list(range(5))] * 3
        assert [message["content"] for message in chat.messages()] == ["done"]


def test_a_block_that_raises_fails_its_stream(url: str) -> None:
    with blocking.connect(url) as cache:
        with pytest.raises(LookupError), cache.session("s").stream("gen") as out:
            out.send("partial")
            raise LookupError
        followed = cache.session("s").follow("gen")
        assert next(followed).data == "partial"
        with pytest.raises(StreamFailed):
            next(followed)


def test_closing_the_cache_in_the_block_fails_the_stream(url: str) -> None:
    """The follower learns it at once, and the producer gets a StoreError."""
    with blocking.connect(url) as other:
        cache = blocking.connect(url)
        with (
            pytest.raises(BackendError, match="this cache was closed"),
            cache.session("s").stream("gen", ttl=60) as out,
        ):
            out.send("sent by the close")
            cache.close()
            out.send("too late")
        followed = other.session("s").follow("gen")
        assert next(followed).data == "sent by the close"
        with pytest.raises(StreamFailed, match="failed"):
            next(followed)


def test_a_block_that_only_closes_the_cache_raises_because_the_stream_is_not_finished(url: str) -> None:
    cache = blocking.connect(url)
    with pytest.raises(BackendError, match="this cache was closed"), cache.session("s").stream("gen"):
        cache.close()


def test_a_block_that_closes_the_cache_keeps_its_own_error(url: str) -> None:
    cache = blocking.connect(url)
    with pytest.raises(LookupError), cache.session("s").stream("gen"):
        cache.close()
        raise LookupError


def test_closing_the_cache_after_the_finishing_commit_ends_the_block_without_an_error(url: str) -> None:
    with blocking.connect(url) as other:
        cache = blocking.connect(url)
        with cache.chat("c").stream("gen") as out:
            out.send("a")
            cache.chat("c").append({"role": "assistant", "content": "a"}, finishes=out)
            cache.close()
        assert [event.data for event in other.chat("c").follow("gen")] == ["a"]


def test_closing_the_cache_in_the_block_of_a_watch_ends_it_without_an_error(url: str) -> None:
    cache = blocking.connect(url)
    with cache.watch() as watch:
        watch.add("s", 0)
        cache.close()


def test_closing_the_cache_ends_a_flush_in_another_thread(url: str) -> None:
    cache = blocking.connect(url)
    with ThreadPoolExecutor() as threads, pytest.raises(BackendError), cache.session("s").stream("gen") as out:

        def produce() -> type[Exception]:
            try:
                while True:
                    out.send("x")
                    out.flush()
            except StoreError as error:
                return type(error)

        produced = threads.submit(produce)
        wait_until(lambda: out.event_count > 0)
        cache.close()
        assert produced.result(30) in (BackendError, OutcomeUnknown, StreamBusy)
