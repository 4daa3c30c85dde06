"""A commit finishes a stream in its own round trip, so a follower that sees the end finds the turn."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from lash_redis import (
    BackendError,
    FullGraph,
    HeadRevisionConflict,
    InvalidRecord,
    NodeIdCollision,
    OutcomeUnknown,
    RuntimeCommit,
    SessionBindingMismatch,
    StreamBusy,
    StreamClaim,
    StreamFailed,
)
from lash_redis.session.stream import StreamWriter
from tests.laws.test_streams import data_of, end_signs_of_life, following, lose, produced, state_of
from tests.laws.test_watch import until
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit, numbered, replace_full
from tests.support.lost_writes import fail_over, saved
from tests.support.proxy import Action, on


async def _do_nothing(*_: Any, **__: Any) -> None:
    pass


@broken_by(Lua("commit", "if finished then finish_stream(streams, events, finished, sharded) end", ""))
async def test_a_follower_that_sees_the_end_finds_the_turn(store, other, monkeypatch):
    await finish_by(append("a"), store, other, monkeypatch)


@pytest.mark.parametrize("graph", [replace_full("a"), append(*numbered(501))], ids=["a replacement", "501 nodes"])
@broken_by(Lua("replace", "if finished then finish_stream(streams, events, finished, sharded) end", ""))
async def test_a_follower_that_sees_the_end_finds_the_turn_of_a_large_commit(store, other, graph, monkeypatch):
    await finish_by(graph, store, other, monkeypatch)


async def finish_by(graph: Any, store: Any, follower: Any, monkeypatch: Any) -> None:
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        async with following(follower) as followed:
            await followed.reach(1)
            monkeypatch.setattr(StreamWriter, "_send_batch", _do_nothing)  # only the commit itself can end the stream
            await store.commit_runtime_state(commit(0, graph, finishes=out))
            assert await followed.end() is None
            assert await follower.load_session(FullGraph()) is not None
        with pytest.raises(StreamBusy):
            await out.send("late")
    assert await data_of(follower) == ["a"]
    assert await state_of(store) == "finished"


async def test_no_follower_sees_the_end_before_the_turn(store, open_cache):
    """The turn is read when the follower ends, many times."""
    follower = open_cache().session("chat")

    async def see(generation: str) -> int:
        assert await data_of(follower, generation, wait=10) == ["a", "b"]
        head = await follower.load_head()
        return 0 if head is None else head.head_revision

    for revision in range(1, 21):
        seeing = asyncio.create_task(see(f"g{revision}"))
        async with store.stream(f"g{revision}") as out:
            await out.send("a")
            await out.send("b")
            parent = f"n{revision - 1}" if revision > 1 else None
            await store.commit_runtime_state(commit(revision - 1, append(f"n{revision}", parent=parent), finishes=out))
        assert await seeing == revision


async def test_events_that_were_not_sent_are_sent_before_the_end(store):
    async with store.stream("gen") as out:
        for number in range(2000):
            await out.send(number)
        await store.commit_runtime_state(commit(0, append("a"), finishes=out))
    assert await data_of(store) == list(range(2000))


async def test_a_refused_commit_leaves_the_stream_running(store):
    await store.commit_runtime_state(commit(0, append("a")))
    async with store.stream("gen") as out:
        await out.send("a")
        with pytest.raises(HeadRevisionConflict):
            await store.commit_runtime_state(commit(0, append("b"), finishes=out))
        with pytest.raises(NodeIdCollision):
            await store.commit_runtime_state(commit(1, append("a"), finishes=out))
        assert await state_of(store) == "running"
        await out.send("b")
        await store.commit_runtime_state(commit(1, append("b", parent="a"), finishes=out))
    assert await data_of(store) == ["a", "b"]


@broken_by(Python("session.stream:StreamWriter.finish_after_commit", lambda _: _do_nothing, "does nothing more"))
async def test_a_commit_that_is_sent_again_finishes_the_stream(store):
    made = commit(0, append("a"))
    await store.commit_runtime_state(made)
    async with store.stream("gen") as out:
        await out.send("a")
        again = RuntimeCommit(**{**{name: getattr(made, name) for name in made.__match_args__}, "finishes": out})
        assert (await store.commit_runtime_state(again)).replayed
        assert await state_of(store) == "finished"
        assert (await store.commit_runtime_state(again)).replayed
    assert await data_of(store) == ["a"]


async def test_finishes_is_not_part_of_the_json_or_the_meaning_of_a_commit(store):
    async with store.stream("gen") as out:
        made = commit(0, append("a"), finishes=out)
        assert made.to_json() == commit(0, append("a"), commit_id=made.commit_id).to_json()
        assert RuntimeCommit.from_json(made.to_json()).finishes is None
        await store.commit_runtime_state(made)
    assert (await store.commit_runtime_state(RuntimeCommit.from_json(made.to_json()))).replayed


@broken_by(Lua("commit", "if state == 'r' and deadline + 0 <= now then state = 'l' end", ""))
async def test_a_commit_is_made_although_its_stream_was_lost_and_the_stream_stays_lost(store, open_cache):
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        await lose(out)
        await until(lambda: _is(store, "lost"), "the loss of the stream")
        await store.commit_runtime_state(commit(0, append("a"), finishes=out))
    async with following(open_cache().session("chat")) as followed:
        assert isinstance(await followed.end(), StreamFailed)
    assert (await store.load_head()).head_revision == 1


async def _is(store: Any, state: str) -> bool:
    return await state_of(store) == state


@broken_by(
    Lua("commit", "local is_complete = stream and sent == string.format('%.0f %s', stream.last, stream.token)",
        "local is_complete = stream"),
)  # fmt: skip
async def test_a_commit_does_not_end_a_stream_that_lacks_events(store, client):
    """A failover lost the last events: they are sent again before the end, which the commit's own call then makes."""
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        before = await saved(client)
        await out.send("b")
        await out.flush()
        await end_signs_of_life(out)
        await fail_over(client, before)
        await store.commit_runtime_state(commit(0, append("a"), finishes=out))
        assert await state_of(store) == "finished"
    assert await data_of(store) == ["a", "b"]


async def test_another_process_finishes_a_stream_by_its_claim(store, open_cache):
    other = open_cache().session("chat")
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        claim = pickle.loads(pickle.dumps(out))
        await other.commit_runtime_state(commit(0, append("a"), finishes=claim))
        assert await state_of(store) == "finished"
        await other.finish_stream(claim)
    with pytest.raises(StreamBusy):
        await out.send("b")
    assert await data_of(store) == ["a"]


async def test_a_claim_of_another_producer_finishes_nothing(store):
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        for claim in (
            StreamClaim("chat", "gen", "forged", out.event_count),
            StreamClaim("chat", "unknown", out.token, out.event_count),
            StreamClaim("chat", "gen", out.token, out.event_count + 1),
        ):
            await store.commit_runtime_state(commit(None, finishes=claim))
        assert await state_of(store) == "running"


@pytest.mark.parametrize(
    "bad",
    [
        1,
        "gen",
        StreamClaim("chat", "", "t", 0),
        StreamClaim("chat", "gen", "a b", 0),
        StreamClaim("chat", "gen", "t", -1),
        StreamClaim("chat", "gen", "t", True),
    ],
    ids=str,
)
async def test_an_invalid_claim_is_refused_by_name(store, bad):
    with pytest.raises(InvalidRecord, match=r"RuntimeCommit\.finishes"):
        await store.commit_runtime_state(commit(0, append("a"), finishes=bad))
    with pytest.raises(InvalidRecord):
        await store.commit_runtime_state(commit(0, append("a"), finishes=store.stream("gen")))
    with pytest.raises(SessionBindingMismatch):
        await store.commit_runtime_state(commit(0, append("a"), finishes=StreamClaim("other", "gen", "t", 0)))
    assert await store.load_head() is None


async def test_a_commit_whose_reply_is_lost_finishes_the_stream_once(proxy, through_proxy, open_real_cache):
    store, other = through_proxy(call_timeout=10).session("chat"), open_real_cache().session("chat")
    async with store.stream("gen") as out:
        await out.send("a")
        await out.flush()
        await end_signs_of_life(out)
        proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
        assert (await store.commit_runtime_state(commit(0, append("a"), finishes=out))).head_revision == 1
    assert await data_of(other) == ["a"]
    assert await state_of(other) == "finished"


async def test_an_update_finishes_a_stream(store):
    await store.commit_runtime_state(commit(0, append("a")))
    async with store.stream("gen") as out:
        await out.send("x")
        await store.update(lambda read: RuntimeCommit("chat", graph=append("b", parent="a"), finishes=out))
    assert await state_of(store) == "finished"


# Chats


async def test_a_chat_streams_an_answer_and_appends_it_in_one_round_trip(chat, cache):
    await chat.append({"role": "user", "content": "Hello"})
    reader = cache.chat("chat")
    async with chat.stream("gen") as out:
        for word in ("Hel", "lo"):
            await out.send({"delta": word})
        await chat.append({"role": "assistant", "content": "Hello", "id": "m2"}, finishes=out)
        assert [event.data["delta"] async for event in reader.follow("gen")] == ["Hel", "lo"]
        assert [message["content"] for message in await reader.messages()] == ["Hello", "Hello"]


@broken_by(Python("session.store:RedisSessionStore.finish_stream", lambda _: _do_nothing, "does nothing"))
async def test_an_append_that_is_sent_again_finishes_the_stream(chat):
    answer = {"role": "assistant", "content": "Hello", "id": "m2"}
    await chat.append(answer)
    async with chat.stream("gen") as out:
        await out.send("Hello")
        await chat.append(answer, finishes=out)
        assert await state_of(chat.store) == "finished"


async def test_a_refused_append_leaves_the_stream_running(chat):
    await chat.append({"role": "user", "content": "Hello", "id": "m1"})
    async with chat.stream("gen") as out:
        with pytest.raises(NodeIdCollision):
            await chat.append({"role": "user", "content": "Other", "id": "m1"}, finishes=out)
        assert await state_of(chat.store) == "running"
        await out.send("more")
    assert await data_of(chat.store) == ["more"]


async def test_a_commit_whose_events_cannot_be_sent_is_not_sent(proxy, through_proxy, open_real_cache):
    store, other = through_proxy(call_timeout=0.3).session("chat"), open_real_cache().session("chat")
    with pytest.raises((BackendError, OutcomeUnknown)):
        async with store.stream("gen", ttl=2) as out:
            await proxy.refuse()
            await proxy.sever()
            await out.send("a")
            await store.commit_runtime_state(commit(0, append("a"), finishes=out))
    assert await other.load_head() is None
    await produced(other, generation="next")
