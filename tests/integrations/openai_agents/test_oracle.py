"""Random operations agree with the SQLite session of the SDK."""

from __future__ import annotations

import random

import pytest
from agents.memory import SQLiteSession

from lash_redis.integrations.openai_agents import LashSession
from tests.support.items import ITEMS


@pytest.mark.parametrize("seed", range(12))
async def test_random_operations_agree_with_sqlite_session(open_cache, seed):
    dice, oracle = random.Random(seed), SQLiteSession("s1")
    cache = open_cache()
    session = LashSession("s1", cache)
    pool = [ITEMS[name] for name in ITEMS if name != "megabytes"]
    for step in range(40):
        if seed % 2:
            session = LashSession("s1", cache if step % 3 else open_cache())
        match dice.choice(["add", "add", "add", "get", "get", "pop", "clear"] if step % 10 else ["get"]):
            case "add":
                items = dice.choices(pool, k=dice.randrange(5))
                await oracle.add_items(items)
                await session.add_items(items)
            case "get":
                limit = dice.choice([None, 0, 1, 2, 5, 100])
                assert await session.get_items(limit) == await oracle.get_items(limit), step
            case "pop":
                assert await session.pop_item() == await oracle.pop_item(), step
            case "clear" if dice.random() < 0.3:
                await oracle.clear_session()
                await session.clear_session()
    assert await session.get_items() == await oracle.get_items()
    oracle.close()
