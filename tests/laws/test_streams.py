"""A stream has one producer. Its followers get every event once and in order, and learn how it ended."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from lash_redis import (
    BackendError,
    CommitTooLarge,
    Corrupt,
    InvalidRecord,
    OwnerMismatch,
    RedisSessionStore,
    SessionDeleted,
    SessionEvicted,
    StoreError,
    StreamBusy,
    StreamClaim,
    StreamEvent,
    StreamFailed,
    StreamGap,
    StreamGone,
    StreamInfo,
    StreamWriter,
)
from lash_redis.protocol.commands.streams import MAX_STREAMS
from lash_redis.protocol.keys import Layout, generation_of
from lash_redis.session import stream, stream_hub
from lash_redis.transport.cleanup import GRACE
from lash_redis.transport.loop_state import states_of_the_running_loop
from tests.laws import test_watch
from tests.laws.test_watch import until
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit
from tests.support.cancelling import WAYS, Way, at_each_step
from tests.support.lost_writes import fail_over, saved

SOON = 60.0
"""Seconds that a follower may take in a test, and that it waits for a stream."""
LONG = 120.0
"""The same if there are 5,000."""


class Failure(Exception):
    """An error of a producer."""


async def events_of(
    store: RedisSessionStore, generation: str = "gen", *, limit: float | None = None, **more: Any
) -> list[StreamEvent]:
    found: list[StreamEvent] = []
    try:
        async with asyncio.timeout(test_watch.PATIENCE if limit is None else limit):
            async for event in store.follow(generation, **more):
                found.append(event)
    except TimeoutError:
        raise AssertionError(f"the follower did not end after {len(found)} events") from None
    return found


async def data_of(store: RedisSessionStore, generation: str = "gen", **more: Any) -> list[Any]:
    return [event.data for event in await events_of(store, generation, **more)]


async def produced(store: RedisSessionStore, *events: Any, generation: str = "gen", **more: Any) -> None:
    """Produce a whole stream."""
    async with store.stream(generation, **more) as out:
        for event in events:
            await out.send(event)


class Followed(list[Any]):
    """What a follower in a task of its own has got, and how it ended."""

    ended: BaseException | None = None
    is_done = False

    async def reach(self, count: int) -> None:
        await until(lambda: len(self) >= count or self.is_done, f"{count} events, after {len(self)},")

    async def end(self) -> BaseException | None:
        await until(lambda: self.is_done, "the end of a follower")
        return self.ended


@asynccontextmanager
async def following(store: RedisSessionStore, generation: str = "gen", **more: Any) -> AsyncIterator[Followed]:
    followed = Followed()

    async def follow() -> None:
        try:
            async for event in store.follow(generation, **more):
                followed.append(event.data)
        except StoreError as error:
            followed.ended = error
        followed.is_done = True

    task = asyncio.create_task(follow())
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def keys_of(generation: str = "gen", session_id: str = "chat") -> Any:
    return Layout("laws", 64).session(session_id).stream(generation)


async def state_of(store: RedisSessionStore, generation: str = "gen") -> str | None:
    info = await store.load_stream(generation)
    return None if info is None else info.state


# Events


@broken_by(
    Lua("stream_send", "local from, size = values + stream.last + 1 - first", "local from, size = values"),
    Python("session.following:_next", lambda _: _never, "gets no news"),
)
async def test_a_follower_gets_what_was_sent_and_then_what_is_sent_in_order_and_once(store, other):
    async with store.stream("gen") as out:
        for number in range(5):
            await out.send(number)
        await out.flush()
        out._outbox.roll_back(2)  # as after a lost reply
        async with following(other) as followed:
            await followed.reach(5)
            for number in range(5, 300):
                await out.send(number)
                if number % 50 == 0:
                    await asyncio.sleep(0.002)
            await followed.reach(300)
            await out.send("last")
            await out.__aexit__(None, None, None)
            assert await followed.end() is None
    assert followed == [*range(300), "last"]
    assert await data_of(other) == followed


async def _never(*_: Any) -> Any:
    await asyncio.Event().wait()


async def test_events_are_any_json_and_come_back_as_json_does(store):
    events = [None, True, 0, -(2**63), 2**64 - 1, 1.5, "", "é\0\n", [], {}, {"b": [1, {"a": None}], "a": "x"}]
    await produced(store, *events)
    assert await data_of(store) == events
    assert json.dumps(await data_of(store)) == json.dumps(
        [{"a": "x", "b": [1, {"a": None}]} if event == events[-1] else event for event in events]
    )


@pytest.mark.parametrize(
    ("event", "path"),
    [
        (b"bytes", "data"),
        ({"delta": {1, 2}}, "data.delta"),
        ([1, {"x": float("nan")}], "data[1].x"),
        ({1: 2}, "data"),
        ("\ud800", "data"),
        (2**64, "data"),
    ],
)
async def test_an_event_that_is_not_json_is_refused_by_name_and_the_stream_continues(store, event, path):
    async with store.stream("gen") as out:
        await out.send("before")
        with pytest.raises(InvalidRecord) as refused:
            await out.send(event)
        await out.send("after")
    assert refused.value.field == path
    assert await data_of(store) == ["before", "after"]


async def test_what_a_follower_changes_in_an_event_no_other_follower_sees(store):
    async with store.stream("gen") as out, following(store) as one, following(store) as two:
        await out.send({"list": [1]})
        await asyncio.gather(one.reach(1), two.reach(1))
        one[0]["list"].append(2)
        await out.send("end")
        await asyncio.gather(one.reach(2), two.reach(2))
    assert two[0] == {"list": [1]}


@broken_by(Python("session.stream:StreamWriter._close", lambda _: _do_nothing, "drops what was not sent yet"))
async def test_leaving_the_block_sends_what_was_added_and_finishes_the_stream(store):
    async with store.stream("gen") as out:
        await out.send("only")
        assert await state_of(store) == "running"
    assert await data_of(store) == ["only"]
    assert await state_of(store) == "finished"


async def _do_nothing(*_: Any, **__: Any) -> None:
    pass


@broken_by(Python("session.stream:StreamWriter.__aexit__", lambda end: _finishes_always(end), "finishes in any case"))
async def test_a_producer_that_raises_leaves_its_events_and_a_failed_stream(store):
    with pytest.raises(Failure):
        async with store.stream("gen") as out:
            await out.send("partial")
            raise Failure
    async with following(store) as followed:
        failed = await followed.end()
    assert followed == ["partial"]
    assert isinstance(failed, StreamFailed)
    assert failed.state == "failed"
    assert await state_of(store) == "failed"


def _finishes_always(end: Any) -> Any:
    async def finish(self: Any, *_: Any) -> None:
        await end(self, None, None, None)

    return finish


async def test_events_of_one_turn_of_the_event_loop_take_one_round_trip(store, monkeypatch):
    calls = []
    exchange = StreamWriter._exchange

    async def counted(self: StreamWriter, ends: Any) -> None:
        calls.append(len(self._outbox.batch()[1]))
        await exchange(self, ends)

    monkeypatch.setattr(StreamWriter, "_exchange", counted)
    async with store.stream("gen") as out:
        for number in range(100):
            await out.send(number)
        await until(lambda: sum(calls) == 100, "a batch")
    assert [count for count in calls if count] == [100]


async def test_flush_sends_now(store, other):
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        info = await other.load_stream("gen")
        assert info is not None
        assert (info.event_count, info.state, info.stop_requested) == (1, "running", False)


@pytest.mark.slow
async def test_100_000_small_events_arrive_in_order(store, other):
    async with following(other, wait=SOON) as followed:
        async with store.stream("gen", max_events=200_000) as out:
            for number in range(100_000):
                await out.send(number)
        assert await followed.end() is None
    assert followed == list(range(100_000))
    assert await data_of(other, after=(await events_of(other))[-3].cursor) == [99_998, 99_999]


@pytest.mark.slow
async def test_an_event_of_8_mb_arrives_between_small_ones(store, other):
    large = "x" * 8 * 1024 * 1024
    async with following(other, wait=SOON) as followed:
        await produced(store, "before", large, "after")
        assert await followed.end() is None
    assert followed == ["before", large, "after"]


async def test_a_follower_slower_than_the_producer_misses_nothing(store, other):
    got = []
    async with store.stream("gen", max_events=10_000) as out, aclosing(other.follow("gen")) as events:
        await out.send(0)
        while "end" not in got[-1:]:
            async with asyncio.timeout(SOON):
                got.append((await anext(events)).data)
            if len(got) % 100 == 1 and len(got) < 3000:
                for number in range(2 * len(got), 2 * len(got) + 200):
                    await out.send(number)
                await out.flush()
            if len(got) == 3000:
                await out.send("end")
    assert len(got) == out.event_count == 6002
    assert got[:-1] == [0, *(number for at in range(1, 3000, 100) for number in range(2 * at, 2 * at + 200))]


@broken_by(
    Lua("stream_send", "if first > stream.last + 1 then return {'behind', session, stream.last} end", ""),
    Python("protocol.outbox:Outbox.roll_back", lambda _: lambda self, last: False, "sends nothing again"),
)
async def test_events_that_a_failover_lost_are_sent_again_and_no_follower_misses_or_repeats_one(store, other, client):
    async with store.stream("gen") as out, following(other) as followed:
        for number in range(10):
            await out.send(number)
        await out.flush()
        before = await saved(client)
        for number in range(10, 20):
            await out.send(number)
        await out.flush()
        await followed.reach(20)
        await fail_over(client, before)
        await out.send(20)
        await followed.reach(21)
    assert followed == list(range(21))
    assert await data_of(other) == list(range(21))


# Cursors


async def test_a_cursor_continues_behind_its_event(store):
    await produced(store, *"abcde")
    events = await events_of(store)
    for at, event in enumerate(events):
        assert await data_of(store, after=event.cursor) == list("abcde")[at + 1 :]
    info = await store.load_stream("gen")
    assert info is not None
    assert info.cursor == events[-1].cursor
    assert len({event.cursor for event in events}) == 5


@broken_by(Python("session.following:_checked", lambda _: lambda keys, place, read: read, "checks no cursor"))
async def test_cursors_of_other_streams_of_the_future_and_malformed_ones_are_refused_by_name(store):
    await produced(store, "a", "b")
    await produced(store, "c", generation="other")
    tag = (await events_of(store))[0].cursor.partition("-")[0]
    foreign = (await events_of(store, "other"))[0].cursor
    bad = [foreign, f"{tag}-3", f"{tag}-{10**14}", f"{tag}-01", f"{tag}--1", "", "1", "x", f"{tag}-1\n", 1, b"1", True]
    for after in bad:
        with pytest.raises(InvalidRecord) as refused:
            await events_of(store, after=after)
        assert refused.value.field == "after", after


async def test_a_cursor_of_the_future_is_awaited_for_the_given_time(store, other):
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        cursor = (await store.load_stream("gen")).cursor.replace("-1", "-2")
        with pytest.raises(InvalidRecord):
            await events_of(other, after=cursor, wait=0.05)
        async with following(other, after=cursor, wait=SOON) as followed:
            await out.send("b")
            await out.send("c")
            await followed.reach(1)
    assert followed[0] == "c"


# Bounds


@broken_by(
    Lua("stream_send", "stream.kept - drop + count <= max_events and", ""),
    Python("session.following:commands.streams.require_no_gap", lambda _: lambda *_: None, "skips what was dropped"),
)
async def test_the_bound_on_events_is_exact_and_a_gap_is_reported_with_the_oldest_cursor(store, client):
    await produced(store, *range(25), max_events=10)
    info = await store.load_stream("gen")
    assert info is not None
    assert (info.event_count, info.dropped_count) == (25, 15)
    assert await client.llen(keys_of().events) == 10
    with pytest.raises(StreamGap) as gap:
        await events_of(store)
    assert await data_of(store, after=gap.value.oldest) == list(range(15, 25))
    with pytest.raises(StreamGap) as again:
        await events_of(store, after=gap.value.oldest.replace("-15", "-14"))
    assert again.value.oldest == gap.value.oldest


async def test_a_follower_that_is_overtaken_gets_a_gap(store, other):
    async with store.stream("gen", max_events=100) as out, aclosing(other.follow("gen")) as events:
        await out.send("first")
        await out.flush()  # the follower reads it from the server, and shares no window yet
        assert (await anext(events)).data == "first"
        for number in range(400):
            await out.send(number)
        await out.flush()
        with pytest.raises(StreamGap):
            async with asyncio.timeout(SOON):
                async for _ in events:
                    pass


@broken_by(Python("protocol.stream_window:StreamWindow.after", lambda _: _raises(LookupError), "has no window"))
async def test_a_follower_gets_events_that_the_server_dropped_and_its_process_still_has(store, other):
    count = 400
    async with (
        store.stream("gen", max_events=100) as out,
        following(other) as companion,
        aclosing(other.follow("gen")) as slow,
    ):
        await out.send(0)
        assert (await anext(slow)).data == 0
        second = asyncio.ensure_future(anext(slow))
        await until(lambda: follower_count(other) == 2, "both followers at the window")
        await out.send(1)
        assert (await second).data == 1
        for number in range(2, count):
            await out.send(number)
            if number % 50 == 0:
                await out.flush()
                await companion.reach(number + 1)
        await out.flush()
        await companion.reach(count)
        info = await store.load_stream("gen")
        assert info is not None
        assert info.dropped_count == count - 100
        async with asyncio.timeout(SOON):
            assert [(await anext(slow)).data for _ in range(2, count)] == list(range(2, count))


def topic_of(store: RedisSessionStore, generation: str = "gen") -> Any:
    """The topic of a stream that this store follows; None for none."""
    return stream_hub.hub_of(store._namespace)._followed.get(store._keys.stream(generation).events.encode())


def has_hub(cache: Any) -> bool:
    """Whether the cache has subscriptions to streams in this event loop."""
    return cache.shared in states_of_the_running_loop()


def follower_count(store: RedisSessionStore) -> int:
    topic = topic_of(store)
    return topic.follower_count if topic is not None else 0


def _raises(error: type[Exception]) -> Any:
    def broken(*_: object) -> None:
        raise error

    return broken


@broken_by(Lua("stream_send", "stream.kept - drop + count - max_events, excess", "1, 1"))
async def test_dropping_many_small_events_for_their_bytes_takes_few_commands(real_server, open_real_cache):
    store = open_real_cache().session("chat")
    client = real_server.client()
    await client.config_resetstat()
    await produced(store, *["x" * 10] * 900, max_bytes=8_000)
    calls = (await client.info("commandstats"))["cmdstat_lrange"]["calls"]
    info = await store.load_stream("gen")
    assert info is not None
    assert info.dropped_count > 300
    assert calls <= 10


@broken_by(Lua("stream_send", "and stream.bytes - freed + size <= max_bytes", ""))
async def test_the_bound_on_bytes_drops_the_oldest_events(store):
    await produced(store, *["x" * 100] * 30, max_bytes=1100)
    info = await store.load_stream("gen")
    assert info is not None
    assert info.stored_bytes <= 1100
    assert info.event_count - info.dropped_count == 1100 // (100 + 2 + 4)


async def test_an_event_larger_than_max_bytes_is_refused_by_name_and_the_stream_continues(store):
    async with store.stream("gen", max_bytes=100) as out:
        await out.send("a")
        with pytest.raises(CommitTooLarge, match="max_bytes") as refused:
            await out.send("x" * 100)
        assert refused.value.limit == 100
        await out.send("b")
    assert await data_of(store) == ["a", "b"]


@pytest.mark.parametrize(
    "bad",
    [
        {"ttl": 0}, {"ttl": -1}, {"ttl": "1"}, {"ttl": float("inf")}, {"keep": 0}, {"keep": None}, {"max_events": 0},
        {"max_events": True}, {"max_events": 10**7}, {"max_bytes": 0}, {"max_bytes": 2**40},
        {"generation_id": ""}, {"generation_id": 1}, {"generation_id": "\ud800"}, {"generation_id": "x" * 65_537},
    ],
    ids=str,
)  # fmt: skip
async def test_bad_arguments_are_refused_by_name_and_nothing_is_sent(store, client, bad):
    with pytest.raises(InvalidRecord) as refused:
        store.stream(**{"generation_id": "gen", **bad})
    assert refused.value.field == next(iter(bad))
    if "generation_id" in bad:
        for call in (store.load_stream, store.request_stop, lambda each: data_of(store, each)):
            with pytest.raises(InvalidRecord):
                await call(bad["generation_id"])
    assert await client.keys("*") == []


async def test_a_session_can_have_64_streams(store):
    for number in range(MAX_STREAMS):
        await produced(store, generation=f"g{number}")
    with pytest.raises(CommitTooLarge, match="the number of streams of a session"):
        await produced(store, generation="more")


async def test_an_expired_stream_makes_room_for_another(store):
    for number in range(MAX_STREAMS):
        await produced(store, generation=f"g{number}", keep=0.2 if number == 5 else 60)
    await until(lambda: _is_none(store.load_stream("g5")), "the expiry of a stream")
    await produced(store, "x", generation="more")
    assert await data_of(store, "more") == ["x"]


async def _is_none(call: Any) -> bool:
    return (await call) is None


async def test_ids_with_colons_do_not_share_keys(open_cache):
    cache = open_cache(shards=1)
    pairs = [("a", "b:c"), ("a:b", "c"), ("1:a", "b"), ("a", "1:b"), ("é:", ":é")]
    for session_id, generation in pairs:
        await produced(cache.session(session_id), [session_id, generation], generation=generation)
    for session_id, generation in pairs:
        assert await data_of(cache.session(session_id), generation) == [[session_id, generation]]
        name = cache.layout.session(session_id).stream(generation).events.partition("}:events:")[2]
        assert generation_of(name) == (session_id, generation)


# One producer


@broken_by(Lua("stream_open", "if stream then return {'busy'", "if false then return {'busy'"))
async def test_a_generation_has_one_producer_and_is_not_used_again(store, other):
    async with store.stream("gen") as out:
        await out.send("a")
        with pytest.raises(StreamBusy) as busy:
            await produced(other, "b")
        assert busy.value.state == "running"
    with pytest.raises(StreamBusy) as busy:
        await produced(other, "b")
    assert busy.value.state == "finished"
    with pytest.raises(Failure):
        async with store.stream("bad"):
            raise Failure
    with pytest.raises(StreamBusy) as busy:
        await produced(other, generation="bad")
    assert busy.value.state == "failed"
    assert await data_of(other) == ["a"]


@broken_by(Lua("stream_open", "if stream then return {'busy'", "if false then return {'busy'"))
async def test_of_many_producers_at_once_exactly_one_opens_the_stream(open_cache):
    stores = [open_cache().session("chat") for _ in range(8)]
    is_over = asyncio.Event()

    async def produce(number: int) -> bool:
        try:
            async with stores[number].stream("gen") as out:
                await out.send(number)
                await is_over.wait()
        except StreamBusy:
            return False
        return True

    tasks = [asyncio.create_task(produce(number)) for number in range(8)]
    await until(lambda: sum(task.done() for task in tasks) == 7, "seven refusals")
    is_over.set()
    won = [number for number, is_won in enumerate(await asyncio.gather(*tasks)) if is_won]
    assert len(won) == 1
    assert await data_of(stores[0]) == won


@broken_by(Python("session.stream:fresh", lambda _: lambda error: error, "raises the stored error"))
async def test_each_call_of_a_writer_that_cannot_send_raises_an_error_of_its_own(store):
    """A stored exception that is raised again collects the traceback of each call, and shares its context."""
    errors: list[SessionDeleted] = []
    with pytest.raises(SessionDeleted):
        async with store.stream("gen") as out:
            await store.delete()
            for _ in range(4):
                with pytest.raises(SessionDeleted) as refused:
                    await out.send("x")
                    await out.flush()
                errors.append(refused.value)
    assert len({id(error) for error in errors}) == 4
    assert {str(error) for error in errors} == {str(errors[0])}
    assert len({_depth(error) for error in errors[1:]}) == 1


def _depth(error: BaseException) -> int:
    return sum(1 for _ in traceback.walk_tb(error.__traceback__))


@broken_by(Python("session.stream_hub:fresh", lambda _: lambda error: error, "raises the stored error"))
async def test_each_follower_of_an_outage_gets_an_error_of_its_own(store, cache):
    async with store.stream("gen") as out:
        await out.send("x")
        await out.flush()
        async with following(store) as first, following(store) as second:
            await first.reach(1)
            await second.reach(1)
            await until(lambda: follower_count(store) == 2, "both followers at the window")
            topic_of(store).fail(BackendError("an outage"))
            ended = [await first.end(), await second.end()]
    assert [str(error) for error in ended] == ["store backend error: an outage"] * 2
    assert ended[0] is not ended[1]


async def test_a_poll_that_fails_leaves_no_other_poll_running(cache, monkeypatch):
    hub = stream_hub.StreamHub(cache.shared)
    ended: list[str] = []

    async def read(_: object, keys: Any, *more: object) -> None:
        if keys.generation_id == "bad":
            raise BackendError("down")
        await asyncio.sleep(0.1)
        ended.append(keys.generation_id)

    monkeypatch.setattr(stream_hub, "read_stream", read)
    topics: list[Any] = [stream_hub.FollowedStream(keys_of(name)) for name in ("bad", "a", "b")]
    with pytest.raises(BackendError, match="down"):
        await hub._read(topics)
    assert ended == ["a", "b"]


async def test_a_writer_is_used_in_its_block_only(store):
    out = store.stream("gen")
    with pytest.raises(InvalidRecord, match="async with"):
        await out.send(1)
    async with out:
        await out.send(1)
    for use in (lambda: out.send(2), out.flush):
        with pytest.raises(StreamBusy):
            await use()
    with pytest.raises(InvalidRecord, match="again"):
        await out.__aenter__()
    assert await data_of(store) == [1]


async def test_a_pickled_writer_is_a_claim(store):
    async with store.stream("gen") as out:
        await out.send(1)
        await out.flush()
        claims = [pickle.loads(pickle.dumps(out)), copy.copy(out), StreamClaim.from_json(out.to_json())]
        for claim in claims:
            assert type(claim) is StreamClaim
            assert (claim.session_id, claim.generation_id, claim.event_count) == ("chat", "gen", 1)
        assert out.token not in repr(out) + repr(claims[0])


# Lost streams


async def end_signs_of_life(out: StreamWriter) -> None:
    """Let the producer give no further sign of life, as a process that is frozen."""
    assert out._pump_task is not None
    async with out._lock:
        out._pump_task.cancel()
        await asyncio.gather(out._pump_task, return_exceptions=True)


async def lose(out: StreamWriter, ttl_ms: int = 100) -> None:
    """Let the producer give a last sign of life, after which the stream counts as lost so many ms later."""
    await end_signs_of_life(out)
    out._bounds = replace(out._bounds, ttl_ms=ttl_ms)
    await out._send_batch()


@broken_by(
    Lua("stream_read", "if state == 'r' and deadline + 0 <= now then state = 'l' end", ""),
    Python("session.subscriber:Subscriber._schedule", lambda _: lambda *_: None, "waits for a message"),
)
async def test_followers_learn_that_a_silent_producer_is_lost(store, other, monkeypatch):
    monkeypatch.setattr(stream_hub, "POLL", 600.0)
    with pytest.raises(StreamFailed):
        async with store.stream("gen") as out:
            await out.send("a")
            await out.flush()
            async with following(other) as followed:
                await followed.reach(1)
                await lose(out, ttl_ms=500)
                lost = await followed.end()
    assert isinstance(lost, StreamFailed)
    assert lost.state == "lost"
    assert followed == ["a"]
    assert await state_of(store) == "lost"


@broken_by(Lua("stream_send", "if state == 'r' and deadline + 0 <= now then state = 'l' end", ""))
async def test_a_producer_that_was_lost_writes_nothing_more(store, other):
    with pytest.raises(StreamFailed) as failed:
        async with store.stream("gen") as out:
            await lose(out)
            await until(lambda: _is_state(other, "lost"), "the loss of the stream")
            for _ in range(2):
                with pytest.raises(StreamFailed):
                    await out.send("late")
                    await out.flush()
    assert failed.value.state == "lost"
    with pytest.raises(StreamBusy):
        await produced(other)
    info = await other.load_stream("gen")
    assert info is not None
    assert (info.state, info.event_count) == ("lost", 0)


async def _is_state(store: RedisSessionStore, state: str) -> bool:
    return await state_of(store) == state


@broken_by(Python("session.stream:StreamWriter._pump", lambda _: _do_nothing, "gives no signs of life"))
async def test_a_producer_without_events_gives_signs_of_life(store, monkeypatch):
    monkeypatch.setattr(stream, "SIGNS_PER_TTL", 300)
    async with store.stream("gen", ttl=30) as out:
        deadline = (await store.load_stream("gen")).deadline
        await until(lambda: _is_later(store, deadline + 0.3), "further signs of life")
        await out.send("late")
    assert await data_of(store) == ["late"]


async def _is_later(store: RedisSessionStore, deadline: float) -> bool:
    info = await store.load_stream("gen")
    assert info is not None
    assert info.state == "running"
    return info.deadline > deadline


@broken_by(Lua("stream_send", "if stream.token ~= token then return {'taken', session} end", ""))
async def test_a_former_producer_cannot_write_to_a_later_stream_of_the_same_generation(store, other):
    with pytest.raises(StreamBusy):
        async with store.stream("gen", keep=0.1) as former:
            await lose(former)
            await until(lambda: _is_none(other.load_stream("gen")), "the expiry of the stream")
            async with other.stream("gen") as out:
                await out.send("new")
                with pytest.raises(StreamBusy):
                    await former.send("old")
                    await former.flush()
    assert await data_of(other) == ["new"]


# Stop


@broken_by(
    Python("session.stream_hub:StopRequest.on_message", lambda _: lambda self, message: None, "ignores messages"),
)
async def test_a_producer_learns_of_a_stop_request_by_a_message(store, other, monkeypatch):
    monkeypatch.setattr(stream_hub, "POLL", 600.0)
    async with store.stream("gen") as out:
        await until(lambda: out._stop.is_subscribed and not out._stop.needs_poll, "the subscription")
        await end_signs_of_life(out)  # so that no reply has the request
        assert not out.stop_requested
        assert await other.request_stop("gen") is True
        assert await other.request_stop("gen") is True
        await until(lambda: out.stop_requested, "the stop request")
        assert (await other.load_stream("gen")).stop_requested
    assert out.stop_requested
    assert await other.request_stop("gen") is False
    assert await other.request_stop("unknown") is False


@broken_by(Lua("stream_send", "tonumber(stream.stop)}", "0}"))
async def test_a_producer_learns_of_a_stop_request_by_the_reply_to_its_events(store, other):
    async with store.stream("gen") as out:
        out._hub.forget_stop(out._stop)
        await other.request_stop("gen")
        await out.send("a")
        await out.flush()
        assert out.stop_requested


# Waiting, expiry, deletion


async def test_a_follower_waits_for_a_stream_that_is_opened_later(store, other):
    with pytest.raises(StreamGone):
        await events_of(other)
    with pytest.raises(StreamGone):
        await events_of(other, wait=0.05)
    async with following(other, wait=SOON) as followed:
        await asyncio.sleep(0.05)
        await produced(store, "a", "b")
        assert await followed.end() is None
    assert followed == ["a", "b"]


@broken_by(Lua("stream_send", "redis.call('PEXPIREAT', events, expires)", "redis.call('PERSIST', events)"))
async def test_a_stream_expires_after_its_end_and_leaves_no_key(store, client):
    await produced(store, "a", keep=0.2)
    await produced(store, "b", generation="other", keep=0.3)
    await until(lambda: _is_none(store.load_stream("gen")), "the expiry")
    with pytest.raises(StreamGone):
        await events_of(store)
    await until(lambda: _is_none(store.load_stream("other")), "the expiry")
    keys = keys_of()
    assert await client.exists(keys.events, keys_of("other").events) == 0
    assert 0 < await client.pttl(keys.streams) <= 45_000


async def test_streams_of_a_session_do_not_shorten_the_life_of_each_other(store, client):
    await produced(store, "a", keep=1000)
    await produced(store, "b", generation="other", keep=0.1)
    await until(lambda: _is_none(store.load_stream("other")), "the expiry")
    assert await client.pttl(keys_of().streams) > 900_000
    assert await data_of(store) == ["a"]


async def test_a_generation_can_be_used_again_after_its_stream_expired_and_old_cursors_are_refused(store):
    await produced(store, "a", keep=0.1)
    cursor = (await events_of(store))[0].cursor
    await until(lambda: _is_none(store.load_stream("gen")), "the expiry")
    await produced(store, "b")
    assert await data_of(store) == ["b"]
    with pytest.raises(InvalidRecord):
        await events_of(store, after=cursor)


async def test_a_stream_needs_no_session_and_makes_none(store, cache):
    await produced(store, "a")
    assert await store.load_head() is None
    assert [info async for info in cache.sessions()] == []


async def test_commits_and_touches_do_not_change_a_stream(store, client):
    await produced(store, "a")
    before = await client.pttl(keys_of().events)
    await store.commit_runtime_state(commit(None, append("n")), ttl=5000)
    await store.touch()
    assert await client.pttl(keys_of().events) <= before
    assert await data_of(store) == ["a"]


async def test_a_fork_has_no_streams(store, cache):
    await store.commit_runtime_state(commit(None, append("n")))
    await produced(store, "a")
    fork = await cache.fork("chat", "fork")
    assert await fork.load_stream("gen") is None


@broken_by(Lua("delete", "redis.call('UNLINK', streams, unpack(KEYS, events))", ""))
@pytest.mark.parametrize("has_head", [True, False])
async def test_a_deletion_removes_streams_ends_their_followers_and_refuses_their_producer(
    store, other, cache, client, has_head
):
    if has_head:
        await store.commit_runtime_state(commit(None, append("n")))
    await produced(store, "old", generation="old")
    with pytest.raises(SessionDeleted):
        async with store.stream("gen") as out:
            await out.send("a")
            async with following(other) as followed:
                await followed.reach(1)
                assert (await cache.delete("chat")).existed
                assert isinstance(await followed.end(), SessionDeleted)
            assert await client.exists(keys_of().streams, keys_of().events, keys_of("old").events) == 0
            with pytest.raises(SessionDeleted):
                await out.send("b")
                await out.flush()
    with pytest.raises(SessionDeleted):
        await produced(other, generation="new")
    assert await other.load_stream("gen") is None


async def test_a_deletion_without_a_marker_ends_followers_with_stream_gone(open_cache):
    cache = open_cache(deletion_marker_ttl=0)
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("n")))
    with pytest.raises(StreamGone):
        async with store.stream("gen") as out:
            await out.send("a")
            async with following(store) as followed:
                await followed.reach(1)
                await cache.delete("chat")
                assert isinstance(await followed.end(), StreamGone)
            await out.flush()
            await out.send("b")


async def test_delete_owned_removes_streams(open_cache, client):
    cache = open_cache()
    store = cache.session("chat", owner="alice")
    await store.commit_runtime_state(commit(None, append("n")))
    await produced(store, "a")
    assert (await cache.delete_owned("alice")).deleted_session_count == 1
    assert await client.exists(keys_of().streams, keys_of().events) == 0


# Owners


@broken_by(
    Lua("stream_read", "if is_foreign(access, stored[2], stored[1]) or is_foreign(access, owner, false)", "if false"),
    Lua("stream_send", "if is_foreign(access, stored[2], stored[1]) or is_foreign(access, owner, false)", "if false"),
    Lua("stream_stop", "if is_foreign(access, stored[2], stored[1]) or is_foreign(access, owner, false)", "if false"),
)
@pytest.mark.parametrize("has_head", [True, False])
async def test_the_streams_of_another_owner_read_as_absent_and_every_write_is_refused(open_cache, has_head):
    cache = open_cache()
    alice, bob, trusted = (cache.session("chat", owner=owner) for owner in ("alice", "bob", None))
    if has_head:
        await alice.commit_runtime_state(commit(None, append("n")))
    async with alice.stream("gen") as out:
        await out.send("secret")
        await out.flush()
        async with following(alice) as followed:
            await followed.reach(1)
            assert await bob.load_stream("gen") is None
            with pytest.raises(StreamGone):
                await events_of(bob)
            for write in (lambda: bob.request_stop("gen"), lambda: produced(bob, generation="bobs")):
                with pytest.raises(OwnerMismatch):
                    await write()
            with pytest.raises(OwnerMismatch):
                async with bob.stream("gen"):
                    pass
            if has_head:
                with pytest.raises(OwnerMismatch):
                    await cache.delete("chat", owner="bob")
        claim = bob.stream("gen")
        claim.token, claim._end = out.token, None
        with pytest.raises(OwnerMismatch):
            await claim.send("forged")
            await claim.flush()
        assert await trusted.request_stop("gen")
    assert await data_of(trusted) == ["secret"]


async def test_a_deletion_by_another_owner_leaves_the_streams_of_a_session_without_a_head(open_cache):
    cache = open_cache()
    alice = cache.session("chat", owner="alice")
    await produced(alice, "a")
    with pytest.raises(OwnerMismatch):
        await cache.delete("chat", owner="bob")
    assert await data_of(alice) == ["a"]
    assert (await cache.delete("chat", owner="alice")).existed


@broken_by(Lua("delete", "not is_owned and is_foreign", "is_foreign"))
async def test_an_owner_can_delete_its_session_in_which_another_streamed_earlier(open_cache):
    cache = open_cache()
    alice, bob = (cache.session("chat", owner=owner) for owner in ("alice", "bob"))
    await produced(alice, "a")
    await bob.commit_runtime_state(commit(None, append("n")))
    with pytest.raises(OwnerMismatch):
        await cache.delete("chat", owner="alice")
    assert (await cache.delete("chat", owner="bob")).existed
    assert await alice.load_stream("gen") is None


async def test_an_owner_cannot_follow_what_was_streamed_in_its_session_for_another(open_cache):
    """bob commits first to an id under which alice streams: both are refused the other's part."""
    cache = open_cache()
    alice, bob = (cache.session("chat", owner=owner) for owner in ("alice", "bob"))
    with pytest.raises(OwnerMismatch):
        async with alice.stream("gen") as out:
            await out.send("secret")
            await out.flush()
            await bob.commit_runtime_state(commit(None, append("n")))
            assert await bob.load_stream("gen") is None
            await out.send("more")
            await out.flush()


# Damage


async def test_missing_and_damaged_keys_are_reported_and_never_read_as_absence(store, client):
    keys = keys_of()
    await produced(store, "a", "b")
    stored = await client.dump(keys.events)
    for kind, break_, restore in [
        (SessionEvicted, lambda: client.delete(keys.events), True),
        (Corrupt, lambda: client.rpush(keys.events, b"more"), True),
        (Corrupt, lambda: client.lset(keys.events, 0, b"\xa1a0000"), True),
        (Corrupt, lambda: client.set(keys.events, b"text"), True),
        (Corrupt, lambda: client.hset(keys.streams, "gen", "r 1 1"), False),
        (SessionEvicted, lambda: client.hdel(keys.streams, "gen"), False),
        (SessionEvicted, lambda: client.delete(keys.streams), False),
        (Corrupt, lambda: client.set(keys.streams, b"text"), False),
    ]:
        await break_()
        with pytest.raises(kind) as raised:
            await events_of(store)
        assert type(raised.value) is kind
        if restore:
            await client.restore(keys.events, 60_000, stored, replace=True)


async def test_a_producer_of_a_stream_whose_keys_are_evicted_gets_the_error(store, client):
    with pytest.raises(SessionEvicted):
        async with store.stream("gen") as out:
            await out.send("a")
            await out.flush()
            await client.delete(keys_of().events)
            with pytest.raises(SessionEvicted):
                await out.send("b")
                await out.flush()


# Cancellation, connections, many followers


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@broken_by(Python("session.stream:StreamWriter._withdraw", lambda _: _do_nothing, "leaves what it opened"))
async def test_a_producer_that_is_cancelled_at_any_step_leaves_no_running_stream(cache, way: Way):
    """Each attempt has a session of its own, which may have 64 streams."""
    number = 0
    before = asyncio.all_tasks()

    async def produce() -> None:
        nonlocal number
        number += 1
        async with cache.session(f"s{number}").stream("gen") as out:
            await out.send("a")
            await out.flush()
            await out.send("b")

    async for _ in at_each_step(produce, way):
        await until(lambda: _is_not_running(cache.session(f"s{number}")), f"the end of the stream of s{number}")
    await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()}, "the end of the tasks")
    assert GRACE < 30  # a stream whose end was cancelled, too, is lost after its ttl of 30 s


async def _is_not_running(store: RedisSessionStore) -> bool:
    return await state_of(store) != "running"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_follower_that_is_cancelled_at_any_step_leaves_nothing_behind(store, cache, way: Way):
    before = asyncio.all_tasks()
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        for step in range(40):
            assert not await way(lambda: data_of(store), step)
        assert not out._hub._followed
    await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()}, "the end of the tasks")
    await until(lambda: not has_hub(cache), "the end of the hub")


async def test_closing_a_cache_ends_its_followers_and_leaves_nothing_running(open_cache):
    writing, reading = open_cache(), open_cache()
    before = asyncio.all_tasks()
    async with writing.session("chat").stream("gen") as out:
        await out.send("a")
        async with following(reading.session("chat"), wait=SOON) as followed:
            await followed.reach(1)
            await reading.aclose()
            assert isinstance(await followed.end(), BackendError)
    await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()}, "the end of the tasks")
    await until(lambda: not has_hub(reading), "the end of the hub")


async def test_a_poll_finds_events_of_a_producer_that_may_not_publish(real_server, monkeypatch):
    from lash_redis import SessionCache

    monkeypatch.setattr(stream_hub, "POLL", 0.1)
    account = real_server.account("laws", "loader")
    async with aclosing(real_server.client()) as admin:
        await admin.execute_command("ACL", "SETUSER", "loader-laws", "-publish")
    writer, reader = (SessionCache(client, "laws").session("chat") for client in (account, real_server.client()))
    async with following(reader, wait=SOON) as followed:
        async with writer.stream("gen") as out:
            await out.send("a")
            await followed.reach(1)
            await reader.request_stop("gen")
            await until(lambda: out.stop_requested, "the stop request")
        assert await followed.end() is None
    assert followed == ["a"]


@pytest.mark.slow
async def test_5_000_followers_of_500_streams_share_few_connections(real_server, open_real_cache):
    import lash_redis

    admin = real_server.client()
    async with lash_redis.connect(real_server.url, namespace="laws") as cache:
        before = len(await admin.client_list())
        is_over, are_open = asyncio.Event(), asyncio.Event()
        writers: list[StreamWriter] = []

        async def produce(number: int) -> None:
            async with cache.session(f"s{number}").stream("gen") as out:
                writers.append(out)
                if len(writers) == 500:
                    are_open.set()
                for event in range(5):
                    await out.send([number, event])
                await is_over.wait()
                await out.send("end")

        async with asyncio.TaskGroup() as group:
            for number in range(500):
                group.create_task(produce(number))
            stores = [cache.session(f"s{at % 500}") for at in range(5_000)]
            followers = [group.create_task(data_of(store, wait=LONG, limit=LONG)) for store in stores]
            await are_open.wait()
            await until(lambda: len(writers[0]._hub._followed) == 500, "500 topics", LONG)
            most = len(await admin.client_list()) - before
            is_over.set()
        for at, follower in enumerate(followers):
            assert follower.result() == [*([at % 500, event] for event in range(5)), "end"]
    assert most <= 12


# Records


def test_the_records_of_a_stream_are_json():
    info = StreamInfo("gen", "finished", 3, 1, 20, False, "0123456789-3", 12.5)
    assert StreamInfo.from_json(info.to_json()) == info
    with pytest.raises(InvalidRecord, match="state"):
        StreamInfo.from_json({**info.to_json(), "state": "odd"})
    event = StreamEvent("0123456789-1", {"a": [1]})
    assert StreamEvent.from_json(event.to_json()) == event


@pytest.mark.parametrize(
    "error", [StreamBusy("s", "g", "running"), StreamGap("s", "g", "c"), StreamFailed("s", "g", "lost"),
              StreamGone("s", "g")],
)  # fmt: skip
def test_the_errors_of_streams_can_be_pickled_and_name_the_generation(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    assert "'g'" in str(error)
