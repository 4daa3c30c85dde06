"""The calculator of docs/operations/sizing.md, compared with the memory of real sessions."""

from __future__ import annotations

import os
import random
import string
from collections.abc import Callable
from typing import Any

import pytest
import redis

import lash_redis
from lash_redis import HydratedSessionCheckpoint, RuntimeCommit, StoreOptions
from tests.support.markdown import blocks_of
from tests.support.paths import ROOT


def calculator() -> Callable[..., int]:
    names: dict[str, Any] = {}
    (block,) = [block for block in blocks_of(ROOT / "docs" / "operations" / "sizing.md") if block.language == "python"]
    exec(block.text, names)
    found: Callable[..., int] = names["memory_bytes"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("messages", "size", "state"), [(2, 200, 0), (20, 500, 0), (100, 2_000, 0), (100, 500, 12_000), (20, 500, 100_000)]
)
async def test_the_calculator_is_within_a_sixth_of_the_memory_of_sessions(
    url: str, messages: int, size: int, state: int
) -> None:
    letters, client, count = random.Random(7), redis.Redis.from_url(url), 100
    async with lash_redis.connect(url, options=StoreOptions(shards=1)) as cache:

        async def add(number: int) -> None:
            chat = cache.chat(f"{number:036d}")
            texts = ["".join(letters.choices(string.ascii_lowercase, k=size)) for _ in range(messages)]
            sent = [{"role": "user", "content": text, "id": f"{number:06d}-{at:025d}"} for at, text in enumerate(texts)]
            await chat.append(*sent)
            if state:
                checkpoint = HydratedSessionCheckpoint(execution_state=os.urandom(state))
                await chat.store.commit_runtime_state(RuntimeCommit(chat.session_id, checkpoint=checkpoint))

        await add(0)
        before = client.info("memory")["used_memory"]
        for number in range(1, count + 1):
            await add(number)
        measured = (client.info("memory")["used_memory"] - before) / count
    client.close()
    assert calculator()(1, messages, size, state) / measured == pytest.approx(1, abs=1 / 6)
