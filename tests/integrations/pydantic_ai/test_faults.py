"""Dead workers, lost replies and two operations at once: each operation of a store happens once or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from itertools import combinations_with_replacement
from typing import Any

import pytest
from pydantic_ai.conversation_store import ConversationStore, InMemoryConversationStore
from pydantic_ai.exceptions import UserError

from lash_redis import StoreError
from lash_redis.integrations.pydantic_ai import LashConversationStore
from tests.support.conversations import answer, saved, texts_of, user
from tests.support.proxy import Action, Death, nth_of_all
from tests.support.sending import sends_once

Operation = Callable[[ConversationStore], Awaitable[Any]]


async def save(store: ConversationStore) -> None:
    conversation = await store.load("c1")
    if conversation is None:
        raise LookupError("c1")
    conversation.messages += [user("b"), answer("to b")]
    await store.save(conversation)


async def branch(store: ConversationStore) -> None:
    record = await store.read_record("c1")
    await store.branch("c1", at=2, expected_revision=None if record is None else record.revision)


async def fork(store: ConversationStore) -> None:
    await store.fork("c1", new_conversation_id="c2")


async def begin(store: ConversationStore) -> None:
    await saved(store, "c2", "new")


async def delete(store: ConversationStore) -> None:
    await store.delete("c1")


async def read(store: ConversationStore) -> None:
    await store.load("c1")
    await store.list_conversations()
    await store.load_entries("c1", limit=2)


WRITES = (save, branch, fork, begin, delete)
OPERATIONS = (*WRITES, read)


async def state(store: ConversationStore) -> Any:
    """What two conversations contain, without the ids that a store makes."""
    found: list[Any] = []
    for name in ("c1", "c2"):
        conversation, record = await store.load(name), await store.read_record(name)
        if conversation is None or record is None:
            found.append(None)
        else:
            found.append((texts_of(conversation), len(record.branches), record.forked_from))
    return found


async def states(orders: Any) -> list[Any]:
    """The states after each order of operations, by the SDK's own store. A refused one changes nothing."""
    found = []
    for order in orders:
        oracle = InMemoryConversationStore()
        await saved(oracle, "c1", "a", "x")
        for operation in order:
            with contextlib.suppress(UserError, LookupError):
                await operation(oracle)
        found.append(await state(oracle))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
@pytest.mark.parametrize("operation", WRITES)
async def test_an_operation_of_a_worker_that_died_at_any_command_happened_whole_or_not_at_all(
    proxy, through_proxy, open_real_cache, operation, action
):
    nth, is_dead = 0, True
    before, after = await states([(), (operation,)])
    while is_dead:
        nth += 1
        store = LashConversationStore(open_real_cache())
        for name in ("c1", "c2"):
            await store.delete(name)
        await saved(store, "c1", "a", "x")
        proxy.on_command = Death(action, nth)
        with contextlib.suppress(StoreError):
            await operation(LashConversationStore(sends_once(through_proxy())))
        is_dead = proxy.on_command.left <= 0
        proxy.on_command = lambda command: Action.PASS
        assert await state(store) in (before, after), nth
    assert await state(store) == after
    assert nth > 1


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_one_lost_reply_to_any_command_changes_no_result(
    proxy, through_proxy, open_real_cache, operation, action
):
    (after,) = await states([(operation,)])
    for nth in range(1, 10):
        store = LashConversationStore(open_real_cache())
        for name in ("c1", "c2"):
            await store.delete(name)
        await saved(store, "c1", "a", "x")
        proxy.on_command = nth_of_all(action, nth)
        await operation(LashConversationStore(through_proxy()))
        proxy.on_command = lambda command: Action.PASS
        assert await state(store) == after, nth


@pytest.mark.parametrize(("first", "second"), list(combinations_with_replacement(OPERATIONS, 2)))
async def test_of_two_operations_at_once_each_happens_once_in_some_order_or_is_refused(open_cache, first, second):
    dice = random.Random(f"{first.__name__} {second.__name__}")
    possible = await states([(first, second), (second, first), (first,), (second,)])
    for _ in range(3):
        store = LashConversationStore(open_cache())
        for name in ("c1", "c2"):
            await store.delete(name)
        await saved(store, "c1", "a", "x")

        async def at_once(operation: Operation) -> Any:
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.002]))
            await operation(LashConversationStore(open_cache()))

        results = await asyncio.gather(at_once(first), at_once(second), return_exceptions=True)
        refused = [each for each in results if each is not None]
        assert all(isinstance(each, UserError | LookupError) for each in refused), refused
        assert len(refused) < 2
        found = await state(store)
        assert found in (possible if refused else possible[:2]), results
