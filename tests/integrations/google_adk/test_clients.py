"""Several clients of one session lose, double and overwrite no event and no delta."""

from __future__ import annotations

import asyncio

import pytest
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event
from google.adk.sessions import Session

from lash_redis.integrations.google_adk import LashSessionService, places
from lash_redis.integrations.google_adk.names import UserNames
from tests.support.adk import S1, loaded, said, texts


async def test_a_session_that_another_process_continued_is_refused_as_stale(service, session, open_cache):
    other = LashSessionService(open_cache())
    theirs = await loaded(other)
    await other.append_event(theirs, said("theirs", {"k": 1, "app:k": 1}))
    with pytest.raises(StaleSessionError):
        await service.append_event(session, said("mine", {"k": 2, "app:k": 2}))
    assert session.events == []
    found = await loaded(service)
    assert (texts(found), found.state) == (["theirs"], {"k": 1, "app:k": 1})
    await service.append_event(found, said("mine"))
    assert texts(await loaded(other)) == ["theirs", "mine"]


async def test_of_two_clients_that_append_at_once_exactly_one_succeeds(open_cache):
    services = [LashSessionService(open_cache()) for _ in range(2)]
    await services[0].create_session(**S1)
    for turn in range(20):
        both = [await loaded(service) for service in services]
        results = await asyncio.gather(
            *(
                service.append_event(session, said(f"{turn} {at}", {"k": at, "app:k": [turn, at]}))
                for at, (service, session) in enumerate(zip(services, both, strict=True))
            ),
            return_exceptions=True,
        )
        (winner,) = [at for at, result in enumerate(results) if isinstance(result, Event)]
        assert isinstance(results[1 - winner], StaleSessionError)
        found = await loaded(services[winner])
        assert found.state == {"k": winner, "app:k": [turn, winner]}
        assert texts(found)[turn:] == [f"{turn} {winner}"]


async def test_of_clients_that_create_one_id_at_once_exactly_one_succeeds(open_cache):
    services = [LashSessionService(open_cache()) for _ in range(5)]
    results = await asyncio.gather(
        *(service.create_session(**S1, state={"k": at, "app:k": at}) for at, service in enumerate(services)),
        return_exceptions=True,
    )
    (winner,) = [at for at, result in enumerate(results) if isinstance(result, Session)]
    assert [type(result) for result in results].count(AlreadyExistsError) == 4
    assert (await loaded(services[0])).state == {"k": winner, "app:k": winner}


@pytest.mark.slow
async def test_deltas_of_many_clients_to_shared_states_are_all_applied(open_cache):
    async def work(name: str) -> None:
        service = LashSessionService(open_cache())
        session = await service.create_session(app_name="a", user_id="u", session_id=name)
        for at in range(10):
            await service.append_event(session, said("x", {f"app:{name}{at}": at, f"user:{name}{at}": at}))

    await asyncio.gather(*(work(f"c{number}") for number in range(6)))
    found = await LashSessionService(open_cache()).create_session(app_name="a", user_id="u")
    names = [(f"c{number}{at}", at) for number in range(6) for at in range(10)]
    assert found.state == {f"{scope}:{name}": at for scope in ("app", "user") for name, at in names}


async def test_events_appended_to_one_session_object_at_once_are_all_stored(service, session):
    events = [said(f"t{at}", {f"k{at}": at, f"app:k{at}": at}) for at in range(12)]
    await asyncio.gather(*(service.append_event(session, event) for event in events))
    assert texts(await loaded(service)) == texts(session) == [f"t{at}" for at in range(12)]


async def test_an_event_that_is_appended_again_is_stored_once(service, session, open_cache):
    event = said("a", {"app:n": 1})
    await service.append_event(session, event)
    await service.append_event(session, event)
    await service.append_event(session, said("b"))
    await service.append_event(session, event)
    other = event.model_copy(update={"author": "other"})
    for _ in range(2):
        await service.append_event(session, other)
    found = await loaded(LashSessionService(open_cache()))
    assert [(each.id, each.author) for each in found.events] == [
        (event.id, "user"),
        (found.events[1].id, "user"),
        (event.id, "other"),
    ]
    assert found.events == session.events


async def test_a_session_without_a_marker_is_used_if_it_is_the_stored_one(service, session, open_cache):
    await service.append_event(session, said("a", timestamp=5.0))
    by_hand = Session.model_validate(session.model_dump())
    await LashSessionService(open_cache()).append_event(by_hand, said("b", {"user:x": 1}, timestamp=6.0))
    old = Session.model_validate(session.model_dump())
    with pytest.raises(StaleSessionError):
        await service.append_event(old, said("c"))
    assert texts(await loaded(service)) == ["a", "b"]
    with pytest.raises(SessionNotFoundError):
        await service.append_event(Session(id="none", app_name="a", user_id="u"), said("c"))


async def test_a_delta_of_an_event_that_is_no_longer_the_last_is_not_applied_again(service, session, open_cache):
    await service.append_event(session, said("old", {"app:x": "old", "user:x": "old"}))
    reader, names = LashSessionService(open_cache()), UserNames("a", "u")
    log = reader._log(names, "s1")
    read = await log.load(1)  # and then the reader is slow
    for text in ("new", "newer"):
        await service.append_event(session, said(text, {"app:x": text, "user:x": text}))
    app, user = await reader._deltas.app(names).load(), await reader._deltas.user(names).load()
    app, user = await reader._deltas.with_last(names, log.store.session_id, read, app, user)
    assert (app.state, user.state) == ({"x": "newer"}, {"x": "newer"})
    assert (await loaded(reader)).state == {"app:x": "newer", "user:x": "newer"}


async def test_a_delta_of_a_session_that_the_state_forgot_is_not_applied_again(
    service, session, open_cache, monkeypatch
):
    monkeypatch.setattr(places, "MIN_REACH", 1)
    await service.append_event(session, said("old", {"app:x": "old", "user:x": "old"}))
    reader, names = LashSessionService(open_cache()), UserNames("a", "u")
    log = reader._log(names, "s1")
    read = await log.load(1)  # and then the reader is slow
    writer = await service.create_session(app_name="a", user_id="u", session_id="s2")
    for text in ("new", "newer", "newest"):
        await service.append_event(writer, said(text, {"app:x": text, "user:x": text}))
    states = await reader._deltas.load(names)
    assert log.store.session_id not in states[0].applied | states[1].applied
    app, user = await reader._deltas.with_last(names, log.store.session_id, read, *states)
    assert (app.state, user.state) == ({"x": "newest"}, {"x": "newest"})
    assert (await loaded(reader)).state == {"app:x": "newest", "user:x": "newest"}


async def test_a_delta_that_a_reader_applied_first_is_not_applied_again_by_its_writer(service, session, open_cache):
    await service.append_event(session, said("old", {"app:x": "old", "user:x": "old"}))
    other = await service.create_session(app_name="a", user_id="u", session_id="s2")
    await service.append_event(other, said("new", {"app:x": "new", "user:x": "new"}))
    writer, names = LashSessionService(open_cache()), UserNames("a", "u")
    log = writer._log(names, "s1")
    await writer._deltas.apply(names, log.store.session_id, (await log.load(1)).last, (None, None))
    assert (await loaded(writer)).state == {"app:x": "new", "user:x": "new"}


async def test_events_are_read_from_the_primary_also_if_the_cache_reads_from_replicas(open_cache):
    service = LashSessionService(open_cache(read_from="replica", slide_on_load=True))
    session = await service.create_session(**S1, state={"app:x": 1})
    for at in range(5):
        await service.append_event(session, said("x", {"app:x": at, "k": at}))
        assert (await loaded(service)).state == {"app:x": at, "k": at}
