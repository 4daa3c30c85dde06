"""Lost replies and killed workers leave each event and delta stored once or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import pytest

from lash_redis import StoreError
from lash_redis.integrations.google_adk import LashSessionService
from tests.support.adk import S1, loaded, said, texts
from tests.support.proxy import Action, Death, on
from tests.support.sending import sends_once
from tests.support.workers import Crew, Work, Worker

DELTA = {"k": "old", "app:x": "old", "user:x": "old"}


@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
async def test_an_event_of_a_worker_that_died_at_any_command_is_stored_whole_or_not_at_all(
    proxy, through_proxy, open_real_cache, action
):
    rescuer, is_dead, nth, stored = LashSessionService(open_real_cache()), True, 0, 0
    while is_dead:
        nth += 1
        names = {"app_name": f"a{nth}", "user_id": "u", "session_id": "s1"}
        worker = LashSessionService(sends_once(through_proxy()))
        session = await worker.create_session(**names)
        proxy.on_command = Death(action, nth)
        event = said("died", DELTA)
        with contextlib.suppress(StoreError):
            await worker.append_event(session, event)
        is_dead = proxy.on_command.left <= 0
        proxy.on_command = lambda command: Action.PASS

        found = await rescuer.get_session(**names)
        assert (texts(found), found.state) in [(["died"], DELTA), ([], {})]
        stored += bool(found.events) and is_dead
        second = await rescuer.create_session(**{**names, "session_id": "s2"})
        await rescuer.append_event(second, said("x", {"app:x": "new", "user:x": "new"}))
        again = await rescuer.get_session(**names)
        new = {"app:x": "new", "user:x": "new"}
        assert again.state == {**found.state, **new}
        await rescuer.append_event(found, event)
        assert texts(await rescuer.get_session(**names)) == texts(found) == ["died"]
        assert (await rescuer.get_session(**names)).state == {**DELTA, **(new if again.events else {})}
    assert nth > 3
    assert stored >= 2 + (action is Action.DROP_REPLY)


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
async def test_an_event_whose_reply_was_lost_is_stored_once_when_it_is_appended_again(
    proxy, through_proxy, open_real_cache, action
):
    is_dead, nth = True, 0
    while is_dead:
        nth += 1
        names = {"app_name": f"a{nth}", "user_id": "u", "session_id": "s1"}
        worker = LashSessionService(sends_once(through_proxy()))
        session = await worker.create_session(**names)
        await worker.append_event(session, said("first", {"app:y": 1}))
        proxy.on_command = Death(action, nth)
        event = said("again", DELTA)
        with contextlib.suppress(StoreError):
            await worker.append_event(session, event)
        is_dead = proxy.on_command.left <= 0
        proxy.on_command = lambda command: Action.PASS
        await worker.append_event(session, event)
        await worker.append_event(session, said("next", {"k": "next"}))
        found = await LashSessionService(open_real_cache()).get_session(**names)
        assert texts(found) == texts(session) == ["first", "again", "next"]
        assert found.state == session.state == {**DELTA, "k": "next", "app:y": 1}
    assert nth > 3


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
async def test_a_session_whose_creator_died_at_any_command_exists_whole_or_not_at_all(
    proxy, through_proxy, open_real_cache, action
):
    rescuer, is_dead, nth = LashSessionService(open_real_cache()), True, 0
    while is_dead:
        nth += 1
        names = {"app_name": f"a{nth}", "user_id": "u", "session_id": "s1"}
        proxy.on_command = Death(action, nth)
        with contextlib.suppress(StoreError):
            await LashSessionService(sends_once(through_proxy())).create_session(**names, state=DELTA)
        is_dead = proxy.on_command.left <= 0
        proxy.on_command = lambda command: Action.PASS
        listed = (await rescuer.list_sessions(app_name=f"a{nth}")).sessions
        found = await rescuer.get_session(**names)
        assert [each.state for each in listed] == ([] if found is None else [DELTA])
        if found is None:
            await rescuer.create_session(**names, state=DELTA)
        assert (await rescuer.get_session(**names)).state == DELTA
    assert nth > 5


async def test_a_delta_that_a_dead_worker_left_is_applied_when_its_session_is_deleted(
    proxy, through_proxy, open_real_cache
):
    worker = LashSessionService(sends_once(through_proxy()))
    session = await worker.create_session(**S1)
    proxy.on_command = on(Action.CUT_BEFORE, "EVALSHA", 2)
    with pytest.raises(StoreError):
        await worker.append_event(session, said("died", {"app:x": 1}))
    rescuer = LashSessionService(open_real_cache())
    assert (await rescuer.create_session(app_name="a", user_id="v")).state == {}
    await rescuer.delete_session(**S1)
    assert (await rescuer.create_session(app_name="a", user_id="v")).state == {"app:x": 1}


async def test_a_delta_that_could_not_be_applied_is_applied_before_the_next_event(proxy, through_proxy):
    service = LashSessionService(sends_once(through_proxy()))
    session = await service.create_session(**S1)
    for nth, event in ((2, said("a", {"app:x": 1, "user:x": 1})), (3, said("b", {"app:y": 1, "user:y": 1}))):
        proxy.on_command = on(Action.CUT_BEFORE, "EVALSHA", nth)
        with pytest.raises(StoreError):
            await service.append_event(session, event)
        await service.append_event(session, said("next"))
    assert texts(session) == texts(await loaded(service)) == ["a", "next", "b", "next"]
    assert (await loaded(service)).state == {"app:x": 1, "user:x": 1, "app:y": 1, "user:y": 1}


@pytest.mark.slow
async def test_replies_that_are_lost_once_are_settled_inside_of_each_call(proxy, through_proxy):
    service = LashSessionService(through_proxy())
    for action in (Action.DROP_REPLY, Action.CUT_BEFORE):
        for nth in range(1, 5):
            names = {"app_name": "a", "user_id": f"u{nth}{action}", "session_id": "s1"}
            proxy.on_command = on(action, "EVALSHA", nth)
            session = await service.create_session(**names, state=DELTA)
            proxy.on_command = on(action, "EVALSHA", nth)
            await service.append_event(session, said("a", {**DELTA, "n": nth}))
            proxy.on_command = on(action, "EVALSHA", nth)
            found = await service.get_session(**names)
            assert (texts(found), found.state) == (["a"], {**DELTA, "n": nth})
            proxy.on_command = on(action, "EVALSHA", nth)
            await service.delete_session(**names)
            proxy.on_command = lambda command: Action.PASS
            assert await service.get_session(**names) is None


async def append_orphan(work: Work, names: dict[str, str]) -> None:
    """In a worker process: append an event with deltas to all three states."""
    service = LashSessionService(work.cache)
    session = await service.get_session(**names)
    assert session is not None
    await service.append_event(session, said("died", DELTA))


@pytest.mark.slow
async def test_a_killed_process_loses_no_delta_of_an_event_that_it_stored(proxy, open_real_cache, real_server):
    rescuer, stored = LashSessionService(open_real_cache()), []
    async with Crew() as crew:
        for action in (Action.DROP_REPLY, Action.CUT_BEFORE):
            for nth in (1, 2, 3):
                names = {"app_name": f"{action}{nth}", "user_id": "u", "session_id": "s1"}
                await rescuer.create_session(**names)
                worker = await crew.hire(proxy.url, namespace=rescuer.store(**names)._namespace.layout.namespace)
                choose = on(action, "EVALSHA", nth)  # the session, the app, the user

                def kill(command: list[bytes], worker: Worker = worker, choose: Any = choose) -> Action:
                    chosen = choose(command)
                    if chosen is not Action.PASS:
                        os.kill(worker.pid, signal.SIGKILL)
                    return chosen

                proxy.on_command = kill
                worker.order(append_orphan, names)
                with pytest.raises(EOFError):
                    await worker.answer()
                found = await rescuer.get_session(**names)
                assert (texts(found), found.state) in [(["died"], DELTA), ([], {})]
                stored.append(len(found.events))
    assert stored == [1, 1, 1, 0, 1, 1]
