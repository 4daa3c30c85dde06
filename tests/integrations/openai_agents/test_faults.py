"""Two clients at once, lost replies, dead workers, deletions: each operation happens once or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations_with_replacement
from types import SimpleNamespace
from typing import Any, Literal, NotRequired, Required, get_args, get_origin, get_type_hints

import pytest
from agents.items import TResponseInputItem
from agents.memory import OpenAIResponsesCompactionSession
from typing_extensions import is_typeddict

from lash_redis import HeadRevisionConflict, InvalidRecord, SessionDeleted, SessionGone, StoreError
from lash_redis.integrations.openai_agents import LashSession
from tests.integrations.openai_agents.test_compaction import SUMMARY
from tests.support.items import answer, user
from tests.support.proxy import Action, Death, nth_of_all
from tests.support.sending import sends_once

ITEMS = [user("a"), answer("b"), user("c")]
MORE = [user("d"), answer("d"), user("d")]
Operation = Callable[[LashSession], Awaitable[Any]]


async def add(session: LashSession) -> None:
    await session.add_items(MORE)


async def pop(session: LashSession) -> Any:
    return await session.pop_item()


async def clear(session: LashSession) -> None:
    await session.clear_session()


async def read(session: LashSession) -> Any:
    return await session.get_items()


async def replace(session: LashSession) -> bool:
    """Replace the last two items by a summary."""
    snapshot = await session._get_compaction_snapshot(2)
    return await snapshot.replace_suffix(0, [SUMMARY])


def summary_of(items: Sequence[Any]) -> dict[str, Any]:
    return {"type": "compaction", "encrypted_content": f"{len(items)} items"}


async def compact(session: LashSession) -> None:
    """Compact the session by hand, with a model whose summary has the number of items."""

    async def answer_with_count(**request: Any) -> Any:
        return SimpleNamespace(output=[summary_of(request["input"])], usage=None)

    model: Any = SimpleNamespace(responses=SimpleNamespace(compact=answer_with_count))
    compaction = OpenAIResponsesCompactionSession("s1", session, client=model, compaction_mode="input")
    await compaction.run_compaction({"force": True})


AFTER: dict[Operation, list[Any]] = {
    add: [*ITEMS, *MORE],
    pop: ITEMS[:-1],
    clear: [],
    read: ITEMS,
    replace: [ITEMS[0], SUMMARY],
    compact: [summary_of(ITEMS)],
}
"""The items of a session of ITEMS after each operation."""


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
@pytest.mark.parametrize("operation", AFTER)
async def test_an_operation_of_a_worker_that_died_at_any_command_happened_whole_or_not_at_all(
    proxy, through_proxy, open_real_cache, operation, action
):
    nth, is_dead, happened = 0, True, set()
    while is_dead:
        nth += 1
        await LashSession(f"s{nth}", open_real_cache()).add_items(ITEMS)
        proxy.on_command = Death(action, nth)
        with contextlib.suppress(StoreError):
            await operation(LashSession(f"s{nth}", sends_once(through_proxy())))
        is_dead = proxy.on_command.left <= 0
        proxy.on_command = lambda command: Action.PASS
        other = LashSession(f"s{nth}", open_real_cache())
        left = await other.get_items()
        assert left in (ITEMS, AFTER[operation]), nth
        happened.add(left == AFTER[operation] and is_dead)
        await other.add_items([user("next")])
        assert await other.get_items() == [*left, user("next")]
    assert nth > 1
    assert (True in happened) == (operation is read or action is Action.DROP_REPLY)


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
@pytest.mark.parametrize("operation", AFTER)
async def test_one_lost_reply_to_any_command_changes_no_result(proxy, through_proxy, operation, action):
    results = {add: None, pop: ITEMS[-1], clear: None, read: ITEMS, replace: True, compact: None}
    for nth in range(1, 8):
        session = LashSession(f"s{nth}", through_proxy())
        await session.add_items(ITEMS)
        proxy.on_command = nth_of_all(action, nth)
        assert await operation(session) == results[operation]
        assert await session.get_items() == AFTER[operation]
        proxy.on_command = lambda command: Action.PASS


def applied(operation: Operation, items: list[Any]) -> list[Any]:
    """The items after an operation, by a plain list."""
    if operation is add:
        return [*items, *MORE]
    if operation is replace:
        return [*items[:-2], SUMMARY]
    if operation is compact:
        return [summary_of(items)]
    return {pop: items[:-1], clear: [], read: items}[operation]


REFUSED = "refused"


async def outcome(operation: Operation, session: LashSession, delay: float) -> Any:
    await asyncio.sleep(delay)
    try:
        result = await operation(session)
    except (SessionGone, HeadRevisionConflict):
        return REFUSED
    return REFUSED if operation is replace and result is False else result


@pytest.mark.parametrize(("first", "second"), list(combinations_with_replacement(AFTER, 2)))
async def test_of_two_operations_at_once_each_happens_once_in_some_order_or_is_refused(open_cache, first, second):
    dice = random.Random(f"{first.__name__} {second.__name__}")
    for number in range(4):
        sessions = [LashSession(f"s{number}", open_cache()) for _ in range(2)]
        await sessions[0].add_items(ITEMS)
        for session in sessions:
            await session.get_items()
        pauses = [dice.choice([0, 0, 0.001, 0.002]) for _ in sessions]
        results = await asyncio.gather(*map(outcome, (first, second), sessions, pauses))
        done = [each for each, result in zip((first, second), results, strict=True) if result != REFUSED]
        orders = [done, done[::-1]]
        possible = []
        for order in orders:
            items = ITEMS
            for operation in order:
                items = applied(operation, items)
            possible.append(items)
        assert await LashSession(f"s{number}", open_cache()).get_items() in possible, (number, results)
        assert REFUSED not in results or {first, second} & {add, replace, compact}
        popped = [result for each, result in zip((first, second), results, strict=True) if each is pop and result]
        assert len(popped) < 2 or popped[0] != popped[1]


@pytest.mark.slow
async def test_compactions_beside_appends_lose_and_double_no_item(open_cache):
    """Each summary has the texts that it replaced, so that all texts are found at the end."""
    clients, count, done = 3, 12, asyncio.Event()

    async def append(name: int) -> None:
        session = LashSession("s1", open_cache())
        for at in range(count):
            await session.add_items([user(f"{name} {at}")])
            await asyncio.sleep(0.005)

    async def compact_often() -> int:
        replaced = 0
        while not done.is_set():
            session = LashSession("s1", open_cache())
            snapshot = await session._get_compaction_snapshot(5)
            texts = [text for item in snapshot.items for text in item["content"].split("|")]
            replaced += bool(texts) and await snapshot.replace_suffix(0, [user("|".join(texts))])
            await asyncio.sleep(0.002)
        return replaced

    compacting = [asyncio.create_task(compact_often()) for _ in range(2)]
    await asyncio.gather(*(append(name) for name in range(clients)))
    done.set()
    assert sum(await asyncio.gather(*compacting)) > 0
    found = [text for item in await LashSession("s1", open_cache()).get_items() for text in item["content"].split("|")]
    assert sorted(found) == sorted(f"{name} {at}" for name in range(clients) for at in range(count))
    for name in range(clients):
        assert [text for text in found if text.startswith(f"{name} ")] == [f"{name} {at}" for at in range(count)]


async def test_a_session_deleted_for_good_while_it_is_used_is_not_written_again(cache, open_cache):
    session = LashSession("s1", open_cache())
    await session.add_items(ITEMS)
    snapshot = await session._get_compaction_snapshot(2)
    await cache.delete("s1")
    assert await session.get_items() == []
    assert await session.pop_item() is None
    for _ in range(2):
        with pytest.raises((SessionDeleted, SessionGone)):
            await session.add_items(MORE)
    assert not await snapshot.replace_suffix(0, [SUMMARY])
    assert await LashSession("s1", open_cache()).get_items() == []
    await session.clear_session()
    await session.add_items(MORE)
    assert await LashSession("s1", open_cache()).get_items() == MORE


ODD = [" ", "\0", "a\0b", "{c}", "c}", "a:b", "a/b", "%", "é", "e\u0301", "\U0001f600", "x" * 65_536, "\n", "*", "[*]"]


async def test_sessions_whose_ids_have_any_characters_do_not_mix(open_cache):
    for name in ODD:
        await LashSession(name, open_cache()).add_items([user(name)])
    for name in ODD:
        session = LashSession(name, open_cache())
        assert await session.get_items() == [user(name)]
        await session.clear_session()
    for name in ("", "\ud800", "x" * 65_537, 5):
        with pytest.raises(InvalidRecord) as refused:
            await LashSession(name, open_cache()).get_items()
        assert refused.value.field == "session_id"


TEXTS = {"NUL": "a\0b", "lone surrogate": "\ud800", "base64": "QUJD" * 25_000}


def value_of(hint: Any, text: str, depth: int = 0) -> Any:
    """Return a value of a type of the SDK, with `text` in place of each text."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Required, NotRequired):
        return value_of(arguments[0], text, depth)
    if is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=depth < 1)
        wanted = hints if depth < 1 else {name: each for name, each in hints.items() if name in hint.__required_keys__}
        return {name: value_of(each, text if depth < 2 else "x", depth + 1) for name, each in wanted.items()}
    if origin is Literal:
        return arguments[0]
    if origin in (list, tuple) or getattr(origin, "__name__", "") in ("Iterable", "Sequence"):
        return [value_of(arguments[0], text, depth)]
    if origin is dict:
        return {"key": value_of(arguments[1], text, depth)}
    if arguments:
        return value_of(next(each for each in arguments if each is not type(None)), text, depth)
    return {str: text, int: 3, float: 1.5, bool: True, object: {"any": None}}.get(hint)


KINDS = {each.__name__: each for each in get_args(TResponseInputItem)}


@pytest.mark.parametrize("text", TEXTS)
async def test_items_of_every_kind_of_the_sdk_are_returned_as_they_were_added(open_cache, text):
    assert len(KINDS) > 20
    items = [
        value_of(kind, TEXTS[text] if text != "base64" or at < 2 else "x") for at, kind in enumerate(KINDS.values())
    ]
    assert all(isinstance(item, dict) and item for item in items)
    await LashSession("s1", open_cache()).add_items(items)
    found = await LashSession("s1", open_cache()).get_items()
    for kind, item, stored in zip(KINDS, items, found, strict=True):
        assert json.dumps(stored, sort_keys=True) == json.dumps(item, sort_keys=True), kind
