"""Two writers of one thread never fork it silently, and a deleted thread takes no late writes."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis.integrations.langgraph import CheckpointConflict, LashCheckpointSaver
from lash_redis.integrations.langgraph.conflicts import Claim, Pointer, SeenId
from tests.support.checkpoints import config, listed, load, put


@pytest.fixture
def open_saver(open_cache):
    return lambda: LashCheckpointSaver(open_cache())


async def test_the_second_of_two_runs_on_one_checkpoint_is_refused(open_saver, keyspace):
    await put(open_saver(), "1", {"a": 1})
    for one, two in ((open_saver(), open_saver()), (open_saver(),) * 2):
        latest = (await load(one)).checkpoint["id"]
        first, second = await load(one), await load(two)
        await put(one, latest + "a", {"a": 2}, on=first.config)
        before = await keyspace()
        with pytest.raises(CheckpointConflict) as refused:
            await put(two, latest + "b", {"a": 3}, on=second.config)
        assert (refused.value.thread_id, refused.value.checkpoint_ns, refused.value.parent_id) == ("thread", "", latest)
        assert await keyspace() == before
    assert await listed(open_saver(), config()) == ["1aa", "1a", "1"]


async def test_a_run_that_is_overtaken_between_two_puts_is_refused(open_saver):
    """A user sends the next message while the first run is in progress."""
    for one, two in ((open_saver(), open_saver()), (open_saver(),) * 2):
        await one.adelete_thread("thread")
        await put(one, "1", {"a": 1})
        own = await put(one, "2", {"a": 2}, on=(await load(one)).config)
        await put(two, "3", {"a": 3}, on=(await load(two)).config)
        with pytest.raises(CheckpointConflict):
            await put(one, "4", {"a": 4}, on=own)
        assert await listed(one, config()) == ["3", "2", "1"]


async def test_only_one_of_two_runs_begins_a_thread(open_saver):
    for one, two in ((open_saver(), open_saver()), (open_saver(),) * 2):
        await one.adelete_thread("thread")
        assert await one.aget_tuple(config()) is None
        assert await two.aget_tuple(config()) is None
        own = await put(one, "1", {"a": 1}, step=-1, source="input")
        with pytest.raises(CheckpointConflict):
            await put(two, "2", {"a": 1}, step=-1, source="input")
        await put(one, "3", {"a": 2}, on=own)
        assert await listed(one, config()) == ["3", "1"]


async def test_of_many_concurrent_runs_exactly_one_continues(open_saver):
    await put(open_saver(), "1", {"a": 1})
    savers = [open_saver() for _ in range(8)]
    loaded = [await load(saver) for saver in savers]
    puts = [
        put(saver, f"2{at}", {"a": at}, on=found.config)
        for at, (saver, found) in enumerate(zip(savers, loaded, strict=True))
    ]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(outcome, CheckpointConflict) for outcome in outcomes) == 7
    assert len(await listed(open_saver(), config())) == 2


async def test_a_run_that_names_an_older_checkpoint_makes_a_branch(open_saver):
    saver = open_saver()
    at = await put(saver, "1", {"a": 1})
    for number in ("2", "3"):
        at = await put(saver, number, {"a": int(number)}, on=at)
    older = await load(saver, "thread", "", "1")
    branch = await put(saver, "4", {"a": 4}, on=older.config)
    branch = await put(saver, "5", {"a": 5}, on=branch)
    assert (await load(open_saver())).checkpoint["id"] == "5"
    parents = {each.checkpoint["id"]: each.parent_config async for each in saver.alist(config())}
    assert parents == {
        "5": config(checkpoint_id="4"),
        "4": config(checkpoint_id="1"),
        "3": config(checkpoint_id="2"),
        "2": config(checkpoint_id="1"),
        "1": None,
    }


async def test_a_branch_refuses_the_run_that_it_overtook(open_saver):
    one, two = open_saver(), open_saver()
    root = await put(one, "1", {"a": 1})
    own = await put(one, "2", {"a": 2}, on=root)
    await put(two, "3", {"a": 3}, on=(await load(two, "thread", "", "1")).config)
    with pytest.raises(CheckpointConflict):
        await put(one, "4", {"a": 4}, on=own)


async def test_a_writer_whose_clock_is_behind_does_not_lose_its_turn(open_saver):
    await put(open_saver(), "5", {"a": 5})
    slow = open_saver()
    at = await put(slow, "2", {"a": 2}, on=(await load(slow)).config)
    assert (await load(open_saver())).checkpoint["channel_values"] == {"a": 2}
    await put(slow, "3", {"a": 3}, on=at)
    assert (await load(open_saver())).checkpoint["channel_values"] == {"a": 3}


async def test_checkpoints_can_be_put_in_any_order(open_saver):
    """As a migration does."""
    for number in ("3", "1", "2"):
        parent = config(checkpoint_id=str(int(number) - 1)) if number != "1" else None
        await put(open_saver(), number, {"a": number}, on=parent)
    assert (await load(open_saver())).checkpoint["id"] == "3"
    assert await listed(open_saver(), config()) == ["3", "2", "1"]


async def test_a_deleted_thread_is_usable_at_once_and_takes_no_late_writes(open_saver, keyspace):
    one, two = open_saver(), open_saver()
    at = await put(one, "1", {"a": 1})
    found = await load(one)
    own = await put(one, "2", {"a": 2}, on=found.config)
    await two.adelete_thread("thread")
    assert await two.aget_tuple(config()) is None
    for begins in (False, True):
        if begins:
            await put(two, "7", {"a": 7})
        before = await keyspace()
        for work in (
            lambda: put(one, "3", {"a": 3}, on=own),
            lambda: put(one, "3", {"a": 3}, on=found.config),
            lambda: one.aput_writes(own, [("a", 1)], "task"),
            lambda: one.aput_writes(at, [("a", 1)], "task"),
            lambda: one.aput_writes(config(checkpoint_id="3"), [("a", 1)], "task"),
        ):
            with pytest.raises(CheckpointConflict):
                await work()
        assert await keyspace() == before
    assert await listed(two, config()) == ["7"]


async def test_writes_of_a_process_that_has_not_seen_a_deleted_thread_are_refused(open_saver, keyspace):
    """They would make a session without a checkpoint, which nothing removes if the cache has no ttl."""
    at = await put(open_saver(), "1", {"a": 1})
    await open_saver().aput_writes(at, [("a", 1)], "task")
    await open_saver().adelete_thread("thread")
    for begins in (False, True):
        if begins:
            await put(open_saver(), "7", {"a": 7})
        before = await keyspace()
        with pytest.raises(CheckpointConflict):
            await open_saver().aput_writes(at, [("a", 1)], "task")
        assert await keyspace() == before


async def test_runs_in_different_namespaces_and_threads_do_not_conflict(open_saver):
    saver = open_saver()
    await put(saver, "1", {"a": 1})
    root = await load(saver)
    for number in range(5):
        ns = f"child:{number}"
        assert await saver.aget_tuple(config(ns=ns)) is None
        at = await put(saver, f"2{number}", {"a": number}, ns=ns)
        await put(saver, f"3{number}", {"a": number}, on=at)
    await put(saver, "2", {"a": 2}, on=root.config)


LATEST, OLDER = SeenId("p", is_latest=True), SeenId("p", is_latest=False)


@pytest.mark.parametrize(
    ("claim", "current", "decided"),
    [
        (Claim("c", None), None, (Pointer("c", "c"), "c")),
        (Claim("c", None, begins=True), None, (Pointer("c", "c"), "c")),
        (Claim("c", LATEST), Pointer("p", "r"), (Pointer("c", "c"), "c")),
        (Claim("c", LATEST, "r"), Pointer("p", "r"), (Pointer("c", "c"), "c")),
        (Claim("c", "p", "r"), Pointer("p", "r"), (Pointer("c", "r"), "r")),
        (Claim("z", OLDER), Pointer("q", "r"), (Pointer("z", "z"), "z")),
        (Claim("c", OLDER, "r"), Pointer("q", "s"), (Pointer("q", "s"), None)),
        (Claim("z", "p"), Pointer("q", "r"), (Pointer("z", "z"), "z")),
        (Claim("c", "p"), Pointer("q", "r"), (Pointer("q", "r"), None)),
    ],
)
def test_a_claim_moves_the_pointer_or_makes_a_branch(claim, current, decided):
    assert claim.decide(current) == decided


@pytest.mark.parametrize(
    ("claim", "current"),
    [
        (Claim("c", None, begins=True), Pointer("p", "r")),
        (Claim("c", LATEST), Pointer("q", "r")),
        (Claim("c", LATEST), None),
        (Claim("c", "p", "r"), Pointer("q", "s")),
        (Claim("c", "p", "r"), Pointer("p", "s")),
        (Claim("c", "p", "r"), None),
    ],
)
def test_a_claim_conflicts_with_another_run(claim, current):
    assert isinstance(claim.decide(current), str)
