"""Streams over the blocking client: a producer, followers in other threads, a stop request, and a finishing commit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lash_redis import StreamFailed, blocking


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
            chat.append({"role": "assistant", "content": "done"}, finishes=out)
            assert out.stop_requested
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
