"""Checkpoints are stored by what changed, and returned as they were put."""

from __future__ import annotations

import pickle
from copy import deepcopy
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT

from lash_redis import CommitTooLarge, InvalidRecord, LeaseBusy, OwnerMismatch, SessionEvicted, SessionExists
from lash_redis.integrations.langgraph import LashCheckpointSaver
from lash_redis.options import StoreOptions
from tests.laws.test_lifetime import is_close_to, remaining_ms
from tests.support.builders import append, commit, key_of
from tests.support.checkpoints import checkpoint, config, listed, load, part_count, put

ODD = ["", "a:b|c", "nul\0inside", "\x01\x02", "\x01\x01", "é\U0001f600", "{}*[]", "x" * 500]


def messages(count: int, size: int = 500) -> list[HumanMessage]:
    return [HumanMessage("m" * size, id=f"m{number}") for number in range(count)]


@pytest.fixture
def saver(cache):
    return LashCheckpointSaver(cache)


async def test_a_list_that_grows_stores_its_new_elements_only(cache, saver, open_cache):
    at = await put(saver, "1", {"messages": messages(300), "tools": {"a": "x" * 5_000}})
    assert await part_count(cache) == 301
    for number in range(1, 11):
        growing = messages(300 + 2 * number)
        made = checkpoint(f"1{number:02}", {"messages": growing, "tools": {"a": "x" * 5_000}}, {"messages": number + 1})
        at = await saver.aput(at, made, {"source": "loop", "step": number}, {"messages": number + 1})
        assert await part_count(cache) == 301 + 2 * number
        for reader in (saver, LashCheckpointSaver(open_cache())):
            found = await load(reader)
            assert found.checkpoint["channel_values"] == {"messages": growing, "tools": {"a": "x" * 5_000}}
    cold = LashCheckpointSaver(open_cache())
    assert [len(found.checkpoint["channel_values"]["messages"]) async for found in cold.alist(config())] == [
        *range(320, 300, -2),
        300,
    ]


async def test_a_process_that_saw_nothing_continues_a_list(cache, saver, open_cache):
    at = await put(saver, "1", {"messages": messages(100)})
    at = await put(LashCheckpointSaver(open_cache()), "2", {"messages": messages(102)}, on=at)
    assert await part_count(cache) == 102
    await put(LashCheckpointSaver(open_cache()), "3", {"messages": messages(104)}, on=at)
    assert await part_count(cache) == 104


async def test_an_edit_in_a_list_shares_what_comes_before_it(cache, saver, open_cache):
    at = await put(saver, "1", {"messages": messages(100)})
    edited = messages(100)
    edited[90] = HumanMessage("edited" * 50, id="m90")
    at = await put(saver, "2", {"messages": edited}, on=at)
    assert await part_count(cache) == 110
    at = await put(saver, "3", {"messages": edited[:50]}, on=at)
    assert await part_count(cache) == 110
    await put(saver, "4", {"messages": edited[50:]}, on=at)
    assert await part_count(cache) == 160
    cold = LashCheckpointSaver(open_cache())
    lists = [found.checkpoint["channel_values"]["messages"] async for found in cold.alist(config())]
    assert lists == [edited[50:], edited[:50], edited, messages(100)]


async def test_branches_that_grow_one_list_do_not_mix(saver, open_cache):
    root = await put(saver, "1", {"messages": messages(50)})
    lists = {"1": messages(50)}
    for branch in ("a", "b", "c"):
        other = LashCheckpointSaver(open_cache())
        lists[branch] = [*messages(50), AIMessage(branch * 300, id=branch)]
        await put(other, branch, {"messages": lists[branch]}, on=root)
    cold = LashCheckpointSaver(open_cache())
    for checkpoint_id, expected in lists.items():
        assert (await load(cold, "thread", "", checkpoint_id)).checkpoint["channel_values"]["messages"] == expected


async def test_a_list_of_many_edits_is_read_in_few_segments(saver, open_cache):
    at, current = config(), messages(60)
    for number in range(30):
        current = [*current[:-1], HumanMessage(f"{number}" * 300, id=f"e{number}"), HumanMessage("x" * 300, id="last")]
        at = await put(saver, f"{number:03}", {"messages": current}, on=at)
    assert (await load(LashCheckpointSaver(open_cache()))).checkpoint["channel_values"]["messages"] == current


async def test_values_that_json_cannot_represent_are_kept(saver, open_cache):
    values = {
        "bytes": b"\0\xff" * 2_000,
        "array": bytearray(b"xy"),
        "none": None,
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "set": {1, 2},
        "decimal": Decimal("1.50"),
        "uuid": UUID(int=7),
        "big": 2**64 - 1,
        "message": AIMessage("hi", id="m", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "t"}]),
        "empty list": [],
        "list of lists": [[n] * 200 for n in range(100)],
        "mixed": [None, b"x" * 300, {"a": "y" * 900}, 3.5, "z" * 2_000],
    }
    await put(saver, "1", values)
    found = await load(LashCheckpointSaver(open_cache()))
    assert found.checkpoint["channel_values"] == values


async def test_names_and_ids_may_have_any_characters(saver, open_cache):
    for ns in ODD:
        for checkpoint_id in ODD[1:]:
            at = await put(saver, checkpoint_id, dict.fromkeys(ODD, checkpoint_id), ns=ns, mark=ns)
            await saver.aput_writes(at, [(channel, ns) for channel in ODD], ns + "task", ns + "path")
    cold = LashCheckpointSaver(open_cache())
    for ns in ODD:
        assert await listed(cold, config(ns=ns)) == sorted(ODD[1:], reverse=True)
        assert await listed(cold, config(ns=ns), before=config(checkpoint_id=ODD[2])) == sorted(
            (each for each in ODD[1:] if each < ODD[2]), reverse=True
        )
        for checkpoint_id in ODD[1:]:
            found = await load(cold, "thread", ns, checkpoint_id)
            assert found.checkpoint["channel_values"] == dict.fromkeys(ODD, checkpoint_id)
            assert found.pending_writes == [(ns + "task", channel, ns) for channel in ODD]
    assert len(await listed(cold, {"configurable": {"thread_id": "thread"}})) == len(ODD) * len(ODD[1:])


@pytest.mark.parametrize("thread_id", ["a:b", "thr\U0001f600ead", "{x}", " ", 7, UUID(int=3)])
async def test_thread_ids_are_session_ids(thread_id, saver, cache):
    await put(saver, "1", {"a": 1}, thread_id=thread_id)
    assert (await load(saver, thread_id)).checkpoint["channel_values"] == {"a": 1}
    assert [info.session_id async for info in cache.sessions()] == [str(thread_id)]
    await saver.adelete_thread(thread_id)
    assert await saver.aget_tuple(config(thread_id)) is None


@pytest.mark.parametrize("thread_id", ["", "x" * 70_000, None])
async def test_an_invalid_thread_id_is_refused_and_named(thread_id, saver, keyspace):
    with pytest.raises(InvalidRecord, match=r"session_id|thread_id"):
        await put(saver, "1", thread_id=thread_id)
    assert await keyspace() == {}


async def test_unknown_and_foreign_ids_are_none(saver):
    at = await put(saver, "1", {"a": 1})
    await put(saver, "5", {"a": 1}, thread_id="other")
    for place in (config(checkpoint_id="5"), config("never"), config(ns="never"), config(checkpoint_id="0")):
        assert await saver.aget_tuple(place) is None
        assert await listed(saver, place) == []
    assert await listed(saver, config(), before=config(checkpoint_id="9")) == ["1"]
    child = await put(saver, "2", {"a": 2}, on=config(checkpoint_id="unknown"))
    assert (await load(saver, "thread", "", "2")).parent_config == config(checkpoint_id="unknown")
    assert child["configurable"]["checkpoint_id"] == "2"
    assert at == config(checkpoint_id="1")


async def test_filters_compare_any_metadata(saver):
    await put(saver, "1", score=1, tags=["a"], user={"name": "x"})
    await put(saver, "2", score=2, tags=["a", "b"], none=None)
    await put(saver, "3", score=1.0)
    assert await listed(saver, config(), filter={"score": 1}) == ["3", "1"]
    assert await listed(saver, config(), filter={"tags": ["a", "b"]}) == ["2"]
    assert await listed(saver, config(), filter={"user": {"name": "x"}, "score": 1}) == ["1"]
    assert await listed(saver, config(), filter={"never": 1}) == []
    assert await listed(saver, config(), filter={}) == ["3", "2", "1"]
    assert await listed(saver, config(), filter={"score": 1}, limit=1) == ["3"]
    assert await listed(saver, config(), limit=0) == []
    with pytest.raises(InvalidRecord, match="limit"):
        await listed(saver, config(), limit=-1)


async def test_a_list_without_a_namespace_or_a_thread_has_all(saver, cache):
    for number, ns in enumerate(["", "child:1", "", "child:2"]):
        await put(saver, str(number), ns=ns)
    await put(saver, "9", thread_id="other")
    await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    assert await listed(saver, {"configurable": {"thread_id": "thread"}}) == ["3", "2", "1", "0"]
    assert await listed(saver, {"configurable": {"thread_id": "thread", "checkpoint_id": "1"}}) == ["1"]
    assert sorted(await listed(saver, None)) == ["0", "1", "2", "3", "9"]
    assert sorted(await listed(saver, None, before=config(checkpoint_id="2"))) == ["0", "1"]


async def test_pending_writes_are_in_the_order_in_which_a_run_applies_them(saver, open_cache):
    at = await put(saver, "1")
    await saver.aput_writes(at, [("a", 1), ("b", 2)], "task-z", "~path~1")
    await saver.aput_writes(at, [("a", 3), ("b", 4)], "task-a", "~path~2")
    await saver.aput_writes(at, [("a", 5)], "task-m")
    await saver.aput_writes(at, [(INTERRUPT, 6), (ERROR, 7)], "task-z", "~path~1")
    found = await load(LashCheckpointSaver(open_cache()))
    assert found.pending_writes == [
        ("task-m", "a", 5),
        ("task-z", INTERRUPT, 6),
        ("task-z", ERROR, 7),
        ("task-z", "a", 1),
        ("task-z", "b", 2),
        ("task-a", "a", 3),
        ("task-a", "b", 4),
    ]
    assert sorted(WRITES_IDX_MAP[each] for each in (INTERRUPT, ERROR)) == [-3, -1]


async def test_a_stored_write_stays_and_a_special_one_is_replaced(saver):
    at = await put(saver, "1")
    await saver.aput_writes(at, [("a", 1), (INTERRUPT, "first")], "task")
    await saver.aput_writes(at, [("a", 2), (INTERRUPT, "second")], "task")
    assert (await load(saver)).pending_writes == [("task", INTERRUPT, "second"), ("task", "a", 1)]


async def test_writes_of_a_run_may_be_stored_before_their_checkpoint(open_cache):
    """A run loads the thread, and stores both at the same time."""
    for checkpoint_id in ("1", "2"):
        saver = LashCheckpointSaver(open_cache())
        found = await saver.aget_tuple(config())
        await saver.aput_writes(config(checkpoint_id=checkpoint_id), [("a", 1)], "task")
        latest = await saver.aget_tuple(config())
        assert (latest and latest.checkpoint["id"]) == (found and found.checkpoint["id"])
        await put(saver, checkpoint_id, on=None if found is None else found.config)
        assert (await load(saver)).pending_writes == [("task", "a", 1)]


async def test_writes_of_a_task_over_a_limit_are_refused_as_a_whole(open_cache, keyspace):
    saver = LashCheckpointSaver(open_cache(max_commit_bytes=1_000_000))
    at = await put(saver, "1", {"a": 1})
    await saver.aput_writes(at, [("a", 1)] * 3_999, "task")
    before = await keyspace()
    with pytest.raises(InvalidRecord, match="at most 4000"):
        await saver.aput_writes(at, [("a", 1)] * 4_000, "another")
    with pytest.raises(CommitTooLarge):
        await saver.aput_writes(at, [("a", "x" * 500_000)] * 3, "another")
    assert await keyspace() == before


async def test_the_session_of_a_thread_is_that_of_the_savers_owner(open_cache):
    alice, bob = (LashCheckpointSaver(open_cache(), owner=owner) for owner in ("alice", "bob"))
    await put(alice, "1", {"a": 1})
    async with await alice.session("thread").acquire_lease() as lease:
        with pytest.raises(LeaseBusy):
            await LashCheckpointSaver(open_cache(), owner="alice").session("thread").acquire_lease()
        assert (await alice.session("thread").load_lease()).generation == lease.generation
        await put(alice, "2", {"a": 2}, on=(await load(alice)).config)
    assert await bob.session("thread").load_lease() is None
    with pytest.raises(OwnerMismatch):
        await bob.session("thread").acquire_lease()
    async with alice.session("thread").stream("gen-1") as out:
        await out.send({"delta": "Hel"})
    assert [event.data async for event in alice.session("thread").follow("gen-1")] == [{"delta": "Hel"}]


async def test_a_channel_without_a_value_stays_without(saver, open_cache):
    at = await saver.aput(
        config(), checkpoint("1", {"a": 1}, {"b": 1}), {"source": "input", "step": -1}, {"a": 1, "b": 1}
    )
    await saver.aput(at, checkpoint("2", {"b": 2}, {"a": 2, "b": 2}), {"source": "loop", "step": 0}, {"a": 2, "b": 2})
    found = await load(LashCheckpointSaver(open_cache()))
    assert found.checkpoint["channel_values"] == {"b": 2}
    assert found.checkpoint["channel_versions"] == {"a": 2, "b": 2}


async def test_an_unchanged_value_costs_nothing_and_follows_its_version(cache, saver, open_cache):
    at = await put(saver, "1", {"tools": {"a": "x" * 50_000}}, version="v1")
    for number in range(2, 12):
        made = checkpoint(f"{number:02}", {"tools": {"a": "x" * 50_000}, "n": number}, {"tools": "v1", "n": number})
        at = await LashCheckpointSaver(open_cache()).aput(at, made, {"source": "loop", "step": number}, {"n": number})
    assert await part_count(cache) == 1
    assert (await load(saver)).checkpoint["channel_values"] == {"tools": {"a": "x" * 50_000}, "n": 11}


async def test_a_put_that_is_sent_again_has_no_effect(saver, keyspace, open_cache):
    at = await put(saver, "1", {"messages": messages(20)})
    again = await put(saver, "2", {"messages": messages(22)}, on=at)
    before = await keyspace()
    assert await put(saver, "2", {"messages": messages(22)}, on=at) == again
    assert await put(saver, "1", {"messages": messages(20)}) == at
    assert await keyspace() == before
    await put(LashCheckpointSaver(open_cache()), "2", {"messages": messages(22)}, on=at)
    assert (await load(saver)).checkpoint["channel_values"] == {"messages": messages(22)}
    assert await listed(saver, config()) == ["2", "1"]


async def test_a_checkpoint_of_50_megabytes_passes(saver, open_cache):
    values = {"a": "x" * 25_000_000, "b": [b"y" * 5_000_000] * 5}
    await put(saver, "1", values)
    assert (await load(LashCheckpointSaver(open_cache()))).checkpoint["channel_values"] == values


async def test_a_value_over_the_limit_is_refused_by_name(open_cache, keyspace):
    saver = LashCheckpointSaver(open_cache(max_commit_bytes=10_000))
    with pytest.raises(CommitTooLarge, match="max_commit_bytes"):
        await put(saver, "1", {"a": "x" * 20_000})
    assert await saver.aget_tuple(config()) is None


async def test_ten_thousand_messages_are_stored_and_loaded(saver, open_cache):
    await put(saver, "1", {"messages": messages(10_000, 80)})
    assert (await load(LashCheckpointSaver(open_cache()))).checkpoint["channel_values"]["messages"] == messages(
        10_000, 80
    )


async def test_a_thread_expires_with_the_ttl_of_the_cache(open_cache, client):
    saver = LashCheckpointSaver(open_cache(ttl=500.0))
    at = await put(saver, "1", {"a": 1})
    await saver.aput_writes(at, [("a", 1)], "task")
    remaining = await remaining_ms(client, "head", "documents", "names", session_id="thread")
    assert all(is_close_to(each, 500) for each in remaining)


async def test_a_thread_belongs_to_the_owner_of_the_saver(open_cache, keyspace):
    alice, bob, trusted = (LashCheckpointSaver(open_cache(), owner=owner) for owner in ("alice", "bob", None))
    at = await put(alice, "1", {"a": 1})
    before = await keyspace()
    assert await bob.aget_tuple(config()) is None
    assert await listed(bob, config()) == []
    assert await listed(bob, None) == []
    for work in (
        lambda: put(bob, "2", {"a": 2}, on=at),
        lambda: bob.aput_writes(at, [("a", 1)], "task"),
        lambda: bob.adelete_thread("thread"),
    ):
        with pytest.raises(OwnerMismatch):
            await work()
    await bob.adelete_for_runs(["run"])
    await bob.aprune(["thread"])
    assert await keyspace() == before
    await put(trusted, "2", {"a": 2}, on=at)
    assert await listed(alice, None) == ["2", "1"]


async def test_a_chat_is_no_thread(cache, saver, keyspace):
    await cache.chat("thread").append({"role": "user", "content": "hi"})
    before = await keyspace()
    assert await saver.aget_tuple(config()) is None
    with pytest.raises(SessionExists):
        await put(saver, "1")
    assert await keyspace() == before


async def test_a_lost_part_is_reported(saver, client, open_cache):
    await put(saver, "1", {"a": "x" * 5_000})
    documents = await key_of(client, "documents", "thread")
    part = next(name for name in await client.hkeys(documents) if name.startswith(b"p"))
    await client.hdel(documents, part)
    await client.hset(documents, b"pother", b"")
    with pytest.raises(SessionEvicted, match="part"):
        await load(LashCheckpointSaver(open_cache()))


async def test_the_serialiser_is_strict_unless_a_class_is_allowed(cache, saver):
    await put(saver, "1", {"a": Own(3)})
    assert (await load(saver)).checkpoint["channel_values"] == {"a": {"number": 3}}
    allowing = saver.with_allowlist([(Own.__module__, "Own")])
    assert (await load(allowing)).checkpoint["channel_values"] == {"a": Own(3)}
    assert isinstance(allowing, LashCheckpointSaver)
    given = LashCheckpointSaver(cache, serde=JsonPlusSerializer(allowed_msgpack_modules=[(Own.__module__, "Own")]))
    assert (await load(given)).checkpoint["channel_values"] == {"a": Own(3)}


async def test_an_encrypting_serialiser_stores_no_plain_text(cache, client):
    saver = LashCheckpointSaver(cache, serde=EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16))
    at = await put(saver, "1", {"messages": messages(20), "secret": "plain-text"}, secret="plain-text")
    await saver.aput_writes(at, [("a", "plain-text")], "task")
    assert (await load(saver)).checkpoint["channel_values"] == {"messages": messages(20), "secret": "plain-text"}
    stored = await client.hgetall(await key_of(client, "documents", "thread"))
    assert not any(b"plain-text" in value for value in stored.values())


async def test_what_is_returned_can_be_pickled_and_copied(saver):
    await put(saver, "1", {"a": 1})
    found = await load(saver)
    for again in (pickle.loads(pickle.dumps(found)), deepcopy(found)):
        assert again == found
    assert found.config == config(checkpoint_id="1")


async def test_versions_sort_as_they_follow_each_other(saver):
    version, versions = None, []
    for _ in range(20):
        version = saver.get_next_version(version, None)
        versions.append(version)
    assert versions == sorted(versions)
    assert saver.get_next_version(7, None) == 8  # LangGraph compares the versions of a channel


def test_a_saver_needs_a_cache():
    with pytest.raises(InvalidRecord, match="cache"):
        LashCheckpointSaver("redis://localhost")  # type: ignore[arg-type]
    assert StoreOptions().blob_cache_bytes > 0


class Own:
    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and other.number == self.number

    def model_dump(self) -> dict[str, int]:
        return {"number": self.number}

    @classmethod
    def model_construct(cls, **fields: int) -> Own:
        return cls(**fields)

    __hash__ = None  # type: ignore[assignment]


async def test_a_checkpoint_that_is_read_by_its_id_comes_without_the_writes_of_others(through_proxy, proxy):
    saver, at, value = LashCheckpointSaver(through_proxy()), None, "x" * 10_000
    for number in range(20):
        at = await put(saver, f"{number:02}", on=at)
        await saver.aput_writes(at, [("m", value)], "task")
    with proxy.measure() as seen:
        found = await load(saver, "thread", "", "07")
    assert found.pending_writes == [("task", "m", value)]
    assert seen.bytes_received < 15_000
