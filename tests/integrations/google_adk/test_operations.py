"""Each operation happens once or not at all: at once with others, in a dying worker, with lost replies."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from itertools import combinations_with_replacement
from typing import Any

import pytest
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.sessions import BaseSessionService, Session

from lash_redis import StoreError
from lash_redis.integrations.google_adk import LashSessionService
from tests.support.adk import said
from tests.support.proxy import Action, Death, nth_of_all
from tests.support.sending import sends_once

Operation = Callable[[BaseSessionService, dict[str, str], Session], Awaitable[Any]]
REFUSALS = (StaleSessionError, AlreadyExistsError, SessionNotFoundError)


async def append(service: BaseSessionService, names: dict[str, str], session: Session) -> None:
    await service.append_event(session, said("b", {"k": "b", "app:k": "b", "user:k": "b"}))


async def create(service: BaseSessionService, names: dict[str, str], session: Session) -> None:
    await service.create_session(**names, state={"k": "new", "app:new": 1, "user:new": 1})


async def delete(service: BaseSessionService, names: dict[str, str], session: Session) -> None:
    await service.delete_session(**names)


async def read(service: BaseSessionService, names: dict[str, str], session: Session) -> None:
    await service.get_session(**names)
    await service.list_sessions(app_name=names["app_name"])
    await service.get_user_state(app_name=names["app_name"], user_id=names["user_id"])


WRITES: tuple[Operation, ...] = (append, create, delete)
OPERATIONS = (*WRITES, read)
BEGUN = {"k": "a", "app:k": "a", "user:k": "a"}


async def begun(service: BaseSessionService, app_name: str) -> tuple[dict[str, str], Session]:
    names = {"app_name": app_name, "user_id": "u", "session_id": "s1"}
    session = await service.create_session(**names, state=BEGUN)
    await service.append_event(session, said("a"))
    return names, session


async def state(service: BaseSessionService, names: dict[str, str]) -> Any:
    """The session, the sessions of the app, and the states of the app and the user, as another session has them."""
    found = await service.get_session(**names)
    listed = (await service.list_sessions(app_name=names["app_name"])).sessions
    shared = await service.create_session(app_name=names["app_name"], user_id="u")
    await service.delete_session(app_name=names["app_name"], user_id="u", session_id=shared.id)
    return found and ([event.content.parts[0].text for event in found.events], found.state), len(listed), shared.state


def expected(*operations: Operation) -> Any:
    """The state after operations in this order, by plain values. A refused one changes nothing."""
    events, own, shared, loaded = ["a"], {"k": "a"}, {"app:k": "a", "user:k": "a"}, True
    exists = True
    for operation in operations:
        if operation is append and exists and loaded:
            events, own = [*events, "b"], {"k": "b"}
            shared = {**shared, "app:k": "b", "user:k": "b"}
            loaded = False
        elif operation is create and not exists:
            events, own, exists = [], {"k": "new"}, True
            shared = {**shared, "app:new": 1, "user:new": 1}
            loaded = False
        elif operation is delete:
            exists = loaded = False
    return (events, {**own, **shared}) if exists else None, int(exists), shared


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
@pytest.mark.parametrize("operation", WRITES)
async def test_an_operation_of_a_worker_that_died_at_any_command_happened_whole_or_not_at_all(
    proxy, through_proxy, open_real_cache, operation, action
):
    nth, is_dead = 0, True
    while is_dead:
        nth += 1
        rescuer, worker = LashSessionService(open_real_cache()), LashSessionService(sends_once(through_proxy()))
        names, _ = await begun(rescuer, f"a{nth}")
        session = await worker.get_session(**names)
        proxy.on_command = Death(action, nth)
        with contextlib.suppress(StoreError, *REFUSALS):
            await operation(worker, names, session)
        is_dead = proxy.on_command.left <= 0
        proxy.on_command = lambda command: Action.PASS
        assert await state(rescuer, names) in (expected(), expected(operation)), nth
    assert await state(rescuer, names) == expected(operation)
    assert nth > 1


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_one_lost_reply_to_any_command_changes_no_result(
    proxy, through_proxy, open_real_cache, operation, action
):
    for nth in range(1, 12):
        service = LashSessionService(through_proxy())
        names, session = await begun(service, f"a{nth}")
        proxy.on_command = nth_of_all(action, nth)
        with contextlib.suppress(AlreadyExistsError):
            await operation(service, names, session)
        proxy.on_command = lambda command: Action.PASS
        assert await state(LashSessionService(open_real_cache()), names) == expected(operation), nth


@pytest.mark.parametrize(("first", "second"), list(combinations_with_replacement(OPERATIONS, 2)))
async def test_of_two_operations_at_once_each_happens_once_in_some_order_or_is_refused(open_cache, first, second):
    dice = random.Random(f"{first.__name__} {second.__name__}")
    for number in range(4):
        services = [LashSessionService(open_cache()) for _ in range(2)]
        names, _ = await begun(services[0], f"a{number}")
        sessions = [await service.get_session(**names) for service in services]

        async def at_once(operation: Operation, service: BaseSessionService, names: Any, session: Any) -> None:
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.002]))
            await operation(service, names, session)

        calls = zip((first, second), services, sessions, strict=True)
        results = await asyncio.gather(
            *(at_once(operation, service, names, session) for operation, service, session in calls),
            return_exceptions=True,
        )
        assert all(each is None or isinstance(each, REFUSALS) for each in results), results
        possible = expected(first, second), expected(second, first)
        assert await state(LashSessionService(open_cache()), names) in possible, results
