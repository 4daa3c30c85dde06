"""`import_sessions` copies sessions and states from any session service of ADK, whole and once."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import pytest
from google.adk.sessions import InMemorySessionService, Session

from lash_redis import InvalidRecord, StoreError
from lash_redis.integrations.google_adk import LashSessionService, import_sessions
from tests.support.adk import S1, loaded, said, texts
from tests.support.proxy import Action, on
from tests.support.sending import sends_once


async def source_with(*names: str, count: int = 3, app: str = "a") -> InMemorySessionService:
    source = InMemorySessionService()
    for name in names:
        state = {"k": name, "app:a": 1, "user:u": [name], "temp:t": 1}
        session = await source.create_session(app_name=app, user_id="u", session_id=name, state=state)
        for at in range(count):
            delta = {"n": at, "app:n": at, "user:n": at}
            await source.append_event(session, said(f"{name} {at}", delta, timestamp=float(at)))
    return source


async def test_sessions_of_any_service_are_imported_with_their_states(cache, open_cache):
    source = await source_with("s1", "s2")
    calls: list[tuple[int, int]] = []
    report = await import_sessions(source, cache, "a", progress=lambda done, total: calls.append((done, total)))
    assert (report.session_count, report.present_count, report.failures) == (2, 0, ())
    assert calls == [(1, 2), (2, 2)]
    service = LashSessionService(open_cache())
    for name in ("s1", "s2"):
        found, original = await loaded(service, session_id=name), await loaded(source, session_id=name)
        assert (found.events, found.state) == (original.events, original.state)
    assert [each.id for each in (await service.list_sessions(app_name="a")).sessions] == ["s1", "s2"]
    assert await service.get_user_state(app_name="a", user_id="u") == {"u": ["s2"], "n": 2}
    assert (await open_cache().audit(scan=False)).problems == ()


async def test_the_sessions_of_a_cache_are_imported_into_another_namespace(cache, open_cache):
    service, copy = LashSessionService(cache), open_cache(namespace="copy")
    session = await service.create_session(**S1, state={"app:a": 1, "user:b": 1, "c": 1})
    await service.append_event(session, said("x", {"app:a": 2}))
    assert (await import_sessions(service, copy, "a")).session_count == 1
    assert (await import_sessions(service, copy, "a")).present_count == 1
    found = await loaded(LashSessionService(copy))
    assert (texts(found), found.state) == (["x"], {"app:a": 2, "user:b": 1, "c": 1})


async def test_events_of_one_id_are_all_imported(cache):
    source = await source_with("s1", count=1)
    session = await loaded(source)
    again = deepcopy(session.events[0])
    again.author = "other"
    await source.append_event(session, again)
    assert (await import_sessions(source, cache, "a")).failures == ()
    found = await loaded(LashSessionService(cache))
    assert [event.author for event in found.events] == ["user", "other"]
    assert found.events[0].id == found.events[1].id


async def test_a_state_that_has_no_form_in_json_is_refused_and_the_others_are_imported(cache):
    source = await source_with("s1", "s2")
    source.sessions["a"]["u"]["s2"].state["k"] = object()
    report = await import_sessions(source, cache, "a")
    assert (report.session_count, report.failed_count) == (1, 1)
    assert report.failures[0].startswith("session 's2' of user 'u' of app 'a': state")
    assert await LashSessionService(cache).get_session(**{**S1, "session_id": "s2"}) is None


async def test_shared_states_that_have_no_form_in_json_are_refused_and_the_sessions_are_imported(cache):
    source = await source_with("s1")
    source.app_state["a"]["k"] = source.user_state["a"]["u"]["k"] = object()
    report = await import_sessions(source, cache, "a")
    assert (report.session_count, report.failed_count) == (1, 2)
    assert [failure.partition(":")[0] for failure in report.failures] == [
        "state of app 'a'",
        "state of user 'u' of app 'a'",
    ]
    assert (await loaded(LashSessionService(cache))).state == {"k": "s1", "n": 2}


async def test_a_session_that_was_created_here_is_never_changed(cache, open_cache):
    service = LashSessionService(open_cache())
    mine = await service.create_session(**S1, state={"k": "mine", "app:mine": 1})
    report = await import_sessions(await source_with("s1"), cache, "a")
    assert (report.session_count, report.failed_count) == (0, 2)
    found = await loaded(service)
    assert (found.events, found.state) == ([], {"k": "mine", "app:mine": 1, "user:u": ["s1"], "user:n": 2})
    await service.append_event(mine, said("still mine"))


async def test_a_source_that_changes_during_the_import_is_reported(cache):
    source = await source_with("s1")
    read = source.get_session

    async def read_and_change(**names: Any) -> Session | None:
        found = await read(**names)
        if found is not None and "config" not in names:
            await source.append_event(await read(**names), said("late"))
        return found

    source.get_session = read_and_change
    report = await import_sessions(source, cache, "a")
    assert report.failures == ("session 's1' of user 'u' of app 'a': it changed during the import; run it again",)
    source.get_session = read
    report = await import_sessions(source, cache, "a")
    assert (report.session_count, report.failures) == (1, ())
    assert texts(await loaded(LashSessionService(cache))) == texts(await loaded(source))


@pytest.mark.slow
@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
async def test_an_import_that_died_at_any_command_is_completed_by_the_next(
    proxy, through_proxy, open_real_cache, action, monkeypatch
):
    monkeypatch.setattr("lash_redis.integrations.import_chunks.CHUNK", 2)
    nth, died = 0, True
    while died:
        nth += 1
        app = f"a{nth}"
        source, worker, died = await source_with("s1", app=app), sends_once(through_proxy()), False
        proxy.on_command = on(action, "EVALSHA", nth)
        try:
            await import_sessions(source, worker, app)
        except StoreError:
            died = True
        proxy.on_command = lambda command: Action.PASS
        rescuer = open_real_cache()
        report = await import_sessions(source, rescuer, app)
        assert (report.session_count, report.failures) == (1, ()), nth
        found, original = await loaded(LashSessionService(rescuer), app_name=app), await loaded(source, app_name=app)
        assert (found.events, found.state) == (original.events, original.state)
    assert nth > 5


async def test_two_imports_at_once_store_each_session_once(open_cache):
    source = await source_with(*(f"s{at}" for at in range(20)))
    reports = await asyncio.gather(*(import_sessions(source, open_cache(), "a") for _ in range(3)))
    assert all(report.session_count + report.failed_count >= 20 for report in reports)
    assert (await import_sessions(source, open_cache(), "a")).present_count == 20
    service = LashSessionService(open_cache())
    for at in range(20):
        assert texts(await loaded(service, session_id=f"s{at}")) == [f"s{at} {number}" for number in range(3)]


async def test_names_that_are_no_strings_are_refused(cache):
    with pytest.raises(InvalidRecord):
        await import_sessions(await source_with("s1"), cache, "a", user_ids=[5])
