"""A compaction replaces exactly what it read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, Runner
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession
from agents.testing import ModelStep, ScriptedModel, assistant_message

from lash_redis import (
    HeadRevisionConflict,
)
from lash_redis.integrations.openai_agents import LashSession
from tests.support.items import ITEMS, answer, user


async def test_a_compaction_snapshot_replaces_exactly_what_it_read(session, open_cache):
    await session.add_items([user(f"t{at}") for at in range(6)])
    snapshot = await session._get_compaction_snapshot(4)
    assert ([item["content"] for item in snapshot.items], snapshot.complete) == (["t2", "t3", "t4", "t5"], False)
    assert await snapshot.replace_suffix(1, [user("summary"), ITEMS["compaction"]])
    assert await session.get_items() == [user("t0"), user("t1"), user("t2"), user("summary"), ITEMS["compaction"]]
    assert not await snapshot.replace_suffix(1, [user("again")])
    whole = await session._get_compaction_snapshot(100)
    assert whole.complete
    await LashSession("s1", open_cache()).add_items([user("new")])
    assert not await whole.replace_suffix(0, [user("stale")])
    assert (await session.get_items())[-2:] == [ITEMS["compaction"], user("new")]


async def test_a_replacement_of_the_whole_session_drops_the_old_nodes(session, client):
    await session.add_items([user(f"t{at}") for at in range(6)])
    snapshot = await session._get_compaction_snapshot(100)
    assert await snapshot.replace_suffix(0, [user("summary")])
    assert await session.get_items() == [user("summary")]
    assert await client.llen(session.store._keys.log) == 1
    await session.add_items([user("next")])
    assert await session.get_items() == [user("summary"), user("next")]


async def test_expired_items_at_the_beginning_are_pruned_with_a_replacement(session):
    await session.add_items([user(f"t{at}") for at in range(6)])
    snapshot = await session._get_compaction_snapshot(
        2, prune_prefix=lambda item: item["content"] in ("t0", "t1", "t3")
    )
    assert await snapshot.replace_suffix(0, [user("summary")])
    assert [item["content"] for item in await session.get_items()] == ["t2", "t3", "summary"]


def compacting(session: LashSession, before_reply: Callable[[], Any] | None = None) -> OpenAIResponsesCompactionSession:
    """A compaction session whose model answers with one summary."""

    async def compact(**request: Any) -> Any:
        if before_reply is not None:
            await before_reply()
        return SimpleNamespace(output=[{"type": "compaction", "encrypted_content": "summary"}], usage=None)

    model: Any = SimpleNamespace(responses=SimpleNamespace(compact=compact))
    return OpenAIResponsesCompactionSession("s1", session, client=model, compaction_mode="input")


SUMMARY = {"type": "compaction", "encrypted_content": "summary"}


async def test_a_manual_compaction_replaces_the_history(session):
    compaction = compacting(session)
    await compaction.add_items([user("a"), answer("b")])
    await compaction.run_compaction({"force": True})
    assert await session.get_items() == [SUMMARY]
    await compaction.add_items([user("c")])
    await compaction.run_compaction({"force": True})
    assert await session.get_items() == [SUMMARY]


async def test_a_manual_compaction_loses_no_item_that_it_did_not_read(session, open_cache):
    other = LashSession("s1", open_cache())
    compaction = compacting(session, lambda: other.add_items([user("new")]))
    await compaction.add_items([user("a"), answer("b")])
    with pytest.raises(HeadRevisionConflict):
        await compaction.run_compaction({"force": True})
    assert await session.get_items() == [user("a"), answer("b"), user("new")]


async def test_a_compaction_keeps_items_beyond_the_limit_of_its_read(cache):
    session = LashSession("s1", cache, session_settings={"limit": 2})
    compaction = compacting(session)
    await compaction.add_items([user("a"), answer("b"), user("c")])
    await compaction.run_compaction({"force": True})
    assert await session.get_items(10) == [user("a"), SUMMARY]


async def test_a_run_compacts_by_itself_and_beside_another_client(session, open_cache):
    other = LashSession("s1", open_cache())

    async def rival() -> None:
        await other.add_items([user("rival")])

    for before_reply, left in ((None, [SUMMARY]), (rival, None)):
        compaction = compacting(session, before_reply)
        compaction.should_trigger_compaction = lambda _: True
        agent = Agent("a", model=ScriptedModel([ModelStep(output=[assistant_message("answer")], response_id="r1")]))
        await Runner.run(agent, "question", session=compaction)
        found = await session.get_items()
        if left is None:
            assert [item.get("content") for item in found if item.get("role") == "user"] == ["question", "rival"]
        else:
            assert found == left


async def test_an_encrypted_session_stores_ciphertext(session, client):
    encrypted = EncryptedSession("s1", session, encryption_key="0123456789abcdef0123456789abcdef")
    await encrypted.add_items([user("secret"), answer("also secret")])
    assert await encrypted.get_items() == [user("secret"), answer("also secret")]
    records = await client.lrange(session.store._keys.log, 0, -1)
    assert not any(b"secret" in record for record in records)
    assert await encrypted.pop_item() == answer("also secret")
