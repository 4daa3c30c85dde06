"""LashSessionService keeps the sessions and states of ADK agents: no lost, doubled or overwritten event or delta."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncGenerator
from copy import deepcopy
from typing import Any

import pytest
from google.adk.agents import LlmAgent
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event, EventActions
from google.adk.models import BaseLlm, LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService, InMemorySessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.tools import ToolContext
from google.genai import types

from lash_redis import InvalidRecord, RedisSessionStore, SessionCache, StoreError
from lash_redis.integrations.google_adk import LashSessionService, places, stored_sessions
from lash_redis.integrations.google_adk.names import UserNames, unescape
from lash_redis.integrations.google_adk.places import MIN_REACH
from lash_redis.listing import Listing
from tests.support.proxy import Action, on
from tests.support.sending import sends_once
from tests.support.workers import Crew, Work, Worker

S1 = {"app_name": "a", "user_id": "u", "session_id": "s1"}


@pytest.fixture
def service(cache: SessionCache) -> LashSessionService:
    return LashSessionService(cache)


@pytest.fixture
async def session(service: LashSessionService) -> Session:
    return await service.create_session(**S1)


def said(text: str, delta: dict[str, Any] | None = None, **more: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", content=content, actions=EventActions(state_delta=delta or {}), **more)


def texts(session: Session | None) -> list[str]:
    assert session is not None
    return [event.content.parts[0].text for event in session.events]


async def loaded(service: BaseSessionService, **names: Any) -> Session:
    found = await service.get_session(**{**S1, **names})
    assert found is not None
    return found


# Sessions and states


async def test_a_session_is_returned_as_it_was_created(service, open_cache):
    state = {"k": 1, "app:a": [1], "user:u": {"x": None}, "temp:t": 1}
    created = await service.create_session(**S1, state=state)
    assert created.state == {"k": 1, "app:a": [1], "user:u": {"x": None}}
    found = await loaded(LashSessionService(open_cache()))
    assert found == created
    assert await service.get_user_state(app_name="a", user_id="u") == {"u": {"x": None}}
    assert await service.get_user_state(app_name="a", user_id="other") == {}
    with pytest.raises(AlreadyExistsError):
        await service.create_session(**S1)
    assert await service.get_session(**{**S1, "session_id": "none"}) is None


async def test_a_session_without_an_id_gets_one_of_its_own(service):
    made = [await service.create_session(app_name="a", user_id="u", session_id=name) for name in (None, "", "  ")]
    assert len({session.id for session in made}) == 3
    named = await service.create_session(app_name="a", user_id="u", session_id=" s1 ")
    assert named.id == "s1"
    assert await service.get_session(**{**S1, "session_id": "s1  "}) == named


async def test_deltas_of_events_reach_the_states_of_session_user_and_app(service, session, open_cache):
    await service.append_event(session, said("a", {"k": 1, "user:x": 2, "app:y": 3, "temp:z": 4}))
    assert session.state == {"k": 1, "user:x": 2, "app:y": 3, "temp:z": 4}
    other = LashSessionService(open_cache())
    found = await loaded(other)
    assert found.state == {"k": 1, "user:x": 2, "app:y": 3}
    assert found.events[0].actions.state_delta == {"k": 1, "user:x": 2, "app:y": 3}
    assert (await other.create_session(app_name="a", user_id="u")).state == {"user:x": 2, "app:y": 3}
    assert (await other.create_session(app_name="a", user_id="v")).state == {"app:y": 3}
    assert (await other.create_session(app_name="b", user_id="u")).state == {}


async def test_a_partial_event_is_not_stored(service, session):
    event = said("a", {"k": 1}, partial=True)
    assert await service.append_event(session, event) is event
    assert (await loaded(service)).events == session.events == []


async def test_a_config_selects_the_last_events_and_the_whole_state(service, session):
    for at in range(6):
        await service.append_event(session, said(f"t{at}", {f"k{at}": at}, timestamp=float(at)))
    for config, expected in [
        ({}, range(6)),
        ({"num_recent_events": 0}, []),
        ({"num_recent_events": 2}, [4, 5]),
        ({"num_recent_events": 9}, range(6)),
        ({"after_timestamp": 4.0}, [4, 5]),
        ({"after_timestamp": 0.0}, range(6)),
        ({"after_timestamp": 99.0}, []),
        ({"num_recent_events": 3, "after_timestamp": 4.5}, [5]),
    ]:
        found = await loaded(service, config=GetSessionConfig(**config))
        assert texts(found) == [f"t{at}" for at in expected]
        assert found.state == {f"k{at}": at for at in range(6)}
        assert found.last_update_time == 5.0


@pytest.mark.slow
async def test_events_after_a_time_are_found_far_back(service, session):
    for at in range(150):
        await service.append_event(session, said(f"t{at}", timestamp=float(at)))
    for after in (0, 1, 100, 140):
        found = await loaded(service, config=GetSessionConfig(after_timestamp=float(after)))
        assert texts(found) == [f"t{at}" for at in range(after, 150)]


# Events of every kind

PARTS: dict[str, list[types.Part]] = {
    "text": [types.Part(text="hi")],
    "thought": [types.Part(text="hm", thought=True, thought_signature=b"\xff\x00")],
    "inline data": [types.Part(inline_data=types.Blob(mime_type="image/png", data=bytes(range(256))))],
    "file": [types.Part(file_data=types.FileData(file_uri="gs://b/o", mime_type="text/plain"))],
    "call": [types.Part(function_call=types.FunctionCall(id="c", name="f", args={"a": [1, None, {"b": 2.5}]}))],
    "response": [types.Part(function_response=types.FunctionResponse(id="c", name="f", response={"a": None}))],
    "code": [types.Part(executable_code=types.ExecutableCode(code="1", language=types.Language.PYTHON))],
    "NUL": [types.Part(text="a\0b")],
    "lone surrogate": [types.Part(text="a\ud800b")],
    "megabytes": [types.Part(inline_data=types.Blob(mime_type="a/b", data=b"\xfe" * 3_000_000))],
    "none": [],
}


@pytest.mark.parametrize("name", PARTS)
async def test_an_event_is_returned_as_it_was_appended(service, session, open_cache, name):
    event = Event(
        author="agent",
        invocation_id="i1",
        branch="a.b",
        content=types.Content(role="model", parts=PARTS[name]),
        actions=EventActions(state_delta={"k": "a\0\ud800", "n": 2**70, "x": None}, transfer_to_agent="other"),
        long_running_tool_ids={"c"},
        usage_metadata=types.GenerateContentResponseUsageMetadata(total_token_count=5),
        custom_metadata={"m": [1]},
        error_code="E",
        turn_complete=True,
    )
    await service.append_event(session, event)
    found = await loaded(LashSessionService(open_cache()))
    assert found.events == [event]
    assert found.state == {"k": "a\0\ud800", "n": 2**70, "x": None}


async def test_a_number_that_is_none_is_kept_in_a_state(service, open_cache):
    session = await service.create_session(**S1, state={"a": float("nan"), "app:a": float("inf")})
    await service.append_event(session, said("x", {"b": float("nan")}))
    found = await loaded(LashSessionService(open_cache()))
    assert repr(found.state) == "{'a': nan, 'b': nan, 'app:a': inf}"


async def test_a_value_that_has_no_form_in_json_is_refused_by_name(service, session):
    with pytest.raises(InvalidRecord) as refused:
        await service.append_event(session, said("a", {"k": {1: lambda: b"\xff", 2: b"\xff"}}))
    assert refused.value.field == "event"
    with pytest.raises(InvalidRecord) as refused:
        await service.create_session(app_name="a", user_id="u", state={"k": object()})
    assert refused.value.field == "state"
    assert (await loaded(service)).events == []


@pytest.mark.parametrize("field", ["app_name", "user_id", "session_id"])
async def test_a_name_that_is_no_string_is_refused_by_name(service, field):
    with pytest.raises(InvalidRecord) as refused:
        await service.get_session(**{**S1, field: 5})
    assert refused.value.field == field
    with pytest.raises(InvalidRecord):
        LashSessionService("redis://")


ODD = [
    "",
    "/",
    "%",
    "a/b",
    "a%2Fb",
    "a",
    "b",
    "\0",
    "\ud800",
    "%ED%A0%80",
    "ü\U0001f600",
    "a\nb",
    "adk/users/a",
    "x" * 900,
]


def test_names_of_any_characters_give_distinct_ids():
    names = [(a, u, s) for a in ODD for u in ODD for s in ODD]
    ids = {UserNames(app, user).session(session_id) for app, user, session_id in names}
    assert len(ids) == len(names)
    assert all(unescape(UserNames("a", user).user_entry.split("/", 3)[3]) == user for user in ODD)


@pytest.mark.slow
async def test_sessions_of_odd_names_do_not_mix(service, open_cache):
    names = [(app, user, f"s{app}") for app in ODD[:9] for user in ODD[:10]]
    for app, user, session_id in names:
        await service.create_session(
            app_name=app, user_id=user, session_id=session_id, state={"k": [app, user], "user:x": user, "app:y": app}
        )
    other = LashSessionService(open_cache())
    for app, user, session_id in names:
        found = await other.get_session(app_name=app, user_id=user, session_id=session_id)
        assert found.state == {"k": [app, user], "user:x": user, "app:y": app}
    for app in ODD[:9]:
        assert {each.user_id for each in (await other.list_sessions(app_name=app)).sessions} == set(ODD[:10])
    for user in ODD[:10]:
        assert [each.app_name for each in (await other.list_sessions(app_name="/", user_id=user)).sessions] == ["/"]


# The SDK's own store as oracle


def plain(session: Session | None) -> Any:
    return session and (
        session.id,
        session.app_name,
        session.user_id,
        session.state,
        session.events,
        session.last_update_time,
    )


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 18))])
async def test_random_operations_agree_with_the_in_memory_service(open_cache, seed, monkeypatch):
    dice, oracle = random.Random(seed), InMemorySessionService()
    now = [0.0]
    monkeypatch.setattr("google.adk.platform.time.get_time", lambda: now[0])
    monkeypatch.setattr(places, "MIN_REACH", [1, 2, MIN_REACH][seed % 3])
    service = LashSessionService(open_cache())
    users, ids = ["u", "v/w"], ["s1", "s2", "s3"]

    def delta() -> dict[str, Any]:
        keys = dice.sample(["a", "b", "app:a", "app:b", "user:a", "user:b", "temp:a"], dice.randrange(4))
        return {key: dice.choice([None, 1, 2.5, "x", [1], {"y": "\ud800"}]) for key in keys}

    for step in range(60):
        now[0] += 1
        if seed % 2 and step % 3 == 0:
            service = LashSessionService(open_cache())
        names = {"app_name": dice.choice(["a", "b"]), "user_id": dice.choice(users)}
        one = {**names, "session_id": dice.choice(ids)}
        match dice.choice(["create", "append", "append", "append", "get", "list", "delete", "user"]):
            case "create":
                state = delta()
                made = []
                for each in (oracle, service):
                    try:
                        made.append(plain(await each.create_session(**one, state=deepcopy(state))))
                    except AlreadyExistsError:
                        made.append("exists")
                assert made[0] == made[1], step
            case "append":
                ours, theirs = await service.get_session(**one), await oracle.get_session(**one)
                if theirs is None:
                    assert ours is None
                    continue
                for _ in range(dice.randrange(1, 5)):
                    now[0] += 1
                    event = said("x", delta(), partial=dice.random() < 0.1)
                    if dice.random() < 0.1 and theirs.events:
                        event = deepcopy(theirs.events[-1])
                    await oracle.append_event(theirs, deepcopy(event))
                    await service.append_event(ours, deepcopy(event))
                    assert plain(ours) == plain(theirs), step
            case "get":
                config = GetSessionConfig(
                    num_recent_events=dice.choice([None, 0, 1, 3, 50]),
                    after_timestamp=dice.choice([None, None, float(dice.randrange(200))]),
                )
                found = [plain(await each.get_session(**one, config=config)) for each in (oracle, service)]
                assert found[0] == found[1], step
            case "list":
                if dice.random() < 0.5:
                    del names["user_id"]
                lists = [(await each.list_sessions(**names)).sessions for each in (oracle, service)]
                assert [plain(each) for each in lists[0]] == [plain(each) for each in lists[1]], step
            case "delete":
                if dice.random() < 0.5:
                    await oracle.delete_session(**one)
                    await service.delete_session(**one)
            case "user":
                states = [await each.get_user_state(**names) for each in (oracle, service)]
                assert states[0] == states[1], step
    assert (await open_cache().audit(scan=False)).problems == ()


# Snapshots of states


@pytest.mark.slow
async def test_states_of_many_events_are_read_from_a_snapshot_and_few_entries(service, session, open_cache):
    for at in range(4 * MIN_REACH):
        await service.append_event(session, said("x", {f"k{at}": at, f"user:k{at % 50}": at, "app:n": at}))
    expected = {f"k{at}": at for at in range(4 * MIN_REACH)} | {"app:n": 4 * MIN_REACH - 1}
    expected |= {f"user:k{at % 50}": at for at in range(4 * MIN_REACH)}
    other = LashSessionService(open_cache())
    for config in (None, GetSessionConfig(num_recent_events=1)):
        found = await loaded(other, config=config)
        assert found.state == session.state == expected
    names = UserNames("a", "u")
    assert len((await other._deltas.app(names).load()).applied) == 1
    head = await other._stores.get(names.app_state).load_head()
    assert head.graph_node_count <= MIN_REACH


@pytest.mark.slow
async def test_a_large_state_is_written_again_only_after_as_many_bytes_of_deltas(service, session, open_cache):
    await service.append_event(session, said("x", {"big": "x" * 100_000}))
    for _ in range(2 * MIN_REACH):
        await service.append_event(session, said("x", {"n": 1}))
    sizes = []
    for _ in range(MIN_REACH):
        await service.append_event(session, said("x", {"n": 1}))
        sizes.append((await LashSessionService(open_cache())._log(UserNames("a", "u"), "s1").load(1)).place.reach)
    assert sizes == list(range(sizes[0], sizes[0] + MIN_REACH))


@pytest.mark.slow
async def test_a_shared_state_forgets_sessions_when_it_gets_a_snapshot(service, open_cache):
    names, sessions = UserNames("a", "u"), []
    for number in range(30):
        session = await service.create_session(app_name="a", user_id="u", session_id=f"s{number}", state={"app:n": 1})
        if number % 3 == 0:
            await service.append_event(session, said("x"))
        elif number % 3 == 1:
            await service.delete_session(app_name="a", user_id="u", session_id=f"s{number}")
        sessions.append(session)
    for _ in range(2 * MIN_REACH):
        await service.append_event(sessions[0], said("x", {"app:n": 2}))
    assert list((await service._deltas.app(names).load()).applied) == [names.session("s0")]
    for number in range(0, 30, 3):
        found = await loaded(LashSessionService(open_cache()), session_id=f"s{number}")
        assert found.state == {"app:n": 2}
    for number in range(2, 30, 3):  # a note that an entry is settled does not make a session stale
        await service.append_event(sessions[number], said("y", {"app:n": number}))
        assert (await loaded(service, session_id=f"s{number}")).state == {"app:n": number}


async def test_a_session_whose_delta_is_missing_in_one_state_is_not_settled(
    proxy, through_proxy, open_real_cache, monkeypatch
):
    monkeypatch.setattr(places, "MIN_REACH", 1)
    worker, rescuer = LashSessionService(sends_once(through_proxy())), LashSessionService(open_real_cache())
    session = await worker.create_session(**S1)
    proxy.on_command = on(Action.CUT_BEFORE, "EVALSHA", 3)
    with pytest.raises(StoreError):
        await worker.append_event(session, said("died", {"app:x": 1, "user:x": 1}))
    other = await rescuer.create_session(app_name="a", user_id="v")
    for _ in range(5):
        await rescuer.append_event(other, said("x", {"app:y": 1}))
    assert UserNames("a", "u").session("s1") in (await rescuer._deltas.app(UserNames("a", "u")).load()).applied
    assert (await loaded(rescuer)).state == {"app:x": 1, "app:y": 1, "user:x": 1}


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_delta_is_never_applied_twice_even_when_the_state_is_written_again(
    service, session, open_cache, monkeypatch, limit
):
    monkeypatch.setattr(places, "MIN_REACH", limit)
    await service.append_event(session, said("old", {"app:x": "old", "user:x": "old"}))
    writer = await service.create_session(app_name="a", user_id="u", session_id="s2")
    for at in range(20):
        await service.append_event(writer, said("new", {"app:x": f"new{at}", "user:x": f"new{at}"}))
        assert (await loaded(LashSessionService(open_cache()))).state == {"app:x": f"new{at}", "user:x": f"new{at}"}


# Several clients


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


# Deletion


async def test_a_deleted_id_is_usable_at_once_and_late_writers_are_refused(service, session, open_cache):
    late = LashSessionService(open_cache())
    before = await loaded(late)
    await service.append_event(before, said("a", {"k": 1, "app:n": 1, "user:n": 1}))
    old = deepcopy(before)
    await service.delete_session(**S1)
    await service.delete_session(**S1)
    assert await late.get_session(**S1) is None
    with pytest.raises(SessionNotFoundError):
        await late.append_event(old, said("late", {"app:n": 2}))
    again = await service.create_session(**S1)
    assert again.state == {"app:n": 1, "user:n": 1}
    with pytest.raises(SessionNotFoundError):
        await late.append_event(old, said("late", {"app:n": 2}))
    await service.append_event(again, said("b"))
    assert texts(await loaded(late)) == ["b"]


async def test_a_delta_that_is_appended_beside_a_deletion_is_not_lost(service, session, open_cache, monkeypatch):
    other = LashSessionService(open_cache())
    theirs, rest = await loaded(other), RedisSessionStore.delete

    async def delete(self: RedisSessionStore, **how: Any) -> Any:
        if not theirs.events:
            await other.append_event(theirs, said("beside", {"app:x": 1}))
        return await rest(self, **how)

    monkeypatch.setattr(RedisSessionStore, "delete", delete)
    await service.delete_session(**S1)
    assert await service.get_session(**S1) is None
    assert (await service.create_session(app_name="a", user_id="v")).state == {"app:x": 1}


async def test_a_session_of_another_owner_is_not_used(service, session, cache):
    assert (await cache.session(UserNames("a", "u").session("s1"), owner="v").load_head()) is None
    report = await cache.delete_owned("u")
    assert report.deleted_session_count == 1
    assert await service.get_session(**S1) is None
    with pytest.raises(SessionNotFoundError):
        await service.append_event(session, said("a"))


async def test_a_user_whose_data_was_deleted_can_begin_again(service, session, cache, open_cache):
    late = await loaded(LashSessionService(open_cache()))
    await service.append_event(session, said("a", {"user:x": 1, "app:x": 1}))
    await cache.delete_owned("u")
    assert await service.get_user_state(app_name="a", user_id="u") == {}
    again = await service.create_session(app_name="a", user_id="u", session_id="s2", state={"user:y": 1})
    await service.append_event(again, said("b", {"user:z": 1}))
    with pytest.raises(SessionNotFoundError):
        await service.append_event(late, said("late", {"user:x": 2}))
    found = await loaded(LashSessionService(open_cache()), session_id="s2")
    assert found.state == {"user:y": 1, "user:z": 1, "app:x": 1}


# Lists


async def test_sessions_are_listed_by_their_times_then_users_and_ids(service):
    for user, name, time in [("v", "s1", 3.0), ("u", "s2", 1.0), ("u", "s3", 3.0), ("u", "s1", 3.0), ("v", "s9", 2.0)]:
        session = await service.create_session(
            app_name="a", user_id=user, session_id=name, state={"k": name, "user:u": user}
        )
        await service.append_event(session, said("x", timestamp=time))
    everyone = (await service.list_sessions(app_name="a")).sessions
    assert [(each.user_id, each.id) for each in everyone] == [
        ("u", "s2"),
        ("v", "s9"),
        ("u", "s1"),
        ("u", "s3"),
        ("v", "s1"),
    ]
    assert all(each.events == [] and each.state == {"k": each.id, "user:u": each.user_id} for each in everyone)
    of_one = (await service.list_sessions(app_name="a", user_id="v")).sessions
    assert of_one == [each for each in everyone if each.user_id == "v"]
    assert (await service.list_sessions(app_name="other")).sessions == []
    assert (await service.list_sessions(app_name="a", user_id="other")).sessions == []
    await service.append_event(of_one[0], said("listed sessions can be continued"))


@pytest.mark.slow
async def test_a_list_of_an_app_does_not_read_other_apps(through_proxy, proxy):
    service = LashSessionService(through_proxy())
    await service.create_session(app_name="small", user_id="u", session_id="s1")
    with proxy.measure() as alone:
        assert len((await service.list_sessions(app_name="small")).sessions) == 1
    for at in range(40):
        await service.create_session(app_name="large", user_id=f"u{at % 4}", session_id=f"s{at}")
    with proxy.measure() as beside:
        assert len((await service.list_sessions(app_name="small")).sessions) == 1
    assert (beside.commands, beside.round_trips) == (alone.commands, alone.round_trips)


async def test_a_list_is_complete_while_sessions_move_to_its_top(open_cache, monkeypatch):
    monkeypatch.setattr(stored_sessions, "PAGE", 5)
    cache = open_cache(shards=1)
    service, other = LashSessionService(cache), LashSessionService(open_cache(shards=1))
    made = [await service.create_session(app_name="a", user_id="u", session_id=f"s{at}") for at in range(40)]
    whole = Listing.entries

    async def entries(self: Listing, count: int) -> Any:
        found = await whole(self, count)
        if made:
            await other.append_event(made.pop(0), said("x"))
        return found

    monkeypatch.setattr(Listing, "entries", entries)
    found = await stored_sessions.stored_sessions(cache.shared, "u", UserNames("a", "u").session_prefix)
    assert set(found) == {f"s{at}" for at in range(40)}


# Expiry


@pytest.mark.slow
async def test_shared_states_outlive_the_sessions_that_use_them(open_cache, client):
    service = LashSessionService(open_cache(ttl=1.0))
    session = await service.create_session(**S1, state={"app:x": 1, "user:x": 1})
    for _ in range(6):
        await asyncio.sleep(0.5)
        await service.append_event(session, said("x"))
    assert (await loaded(service)).state == {"app:x": 1, "user:x": 1}
    assert [each.id for each in (await service.list_sessions(app_name="a")).sessions] == ["s1"]
    await asyncio.sleep(1.2)
    assert await service.get_session(**S1) is None
    assert (await service.list_sessions(app_name="a")).sessions == []
    with pytest.raises(SessionNotFoundError):
        await service.append_event(session, said("x"))
    assert await service.get_user_state(app_name="a", user_id="u") == {"x": 1}
    await asyncio.sleep(2.2)
    assert await service.get_user_state(app_name="a", user_id="u") == {}
    assert [key for key in await client.keys("*") if b"layout" not in key and b"{" in key and b":head:" in key] == []


# Cost


@pytest.mark.slow
async def test_an_append_costs_what_it_adds(through_proxy, proxy):
    service = LashSessionService(through_proxy())
    session = await service.create_session(**S1, state={"big": "x" * 50_000})
    sent = []
    for _ in range(3 * MIN_REACH):
        with proxy.measure() as traffic:
            await service.append_event(session, said("x" * 100, {"n": 1}))
        sent.append((traffic.round_trips, traffic.bytes_sent))
    usual = sorted(sent)[len(sent) // 2]
    assert usual[0] == 1
    assert usual[1] < 3000
    with proxy.measure() as traffic:
        await service.append_event(session, said("x" * 100, {"app:n": 1, "user:n": 1}))
    assert traffic.round_trips == 3


@pytest.mark.slow
async def test_recent_events_of_a_long_session_take_one_round_trip(through_proxy, proxy):
    service = LashSessionService(through_proxy())
    session = await service.create_session(**S1)
    for _ in range(150):
        await service.append_event(session, said("x" * 1000))
    config = GetSessionConfig(num_recent_events=5)
    await loaded(service, config=config)
    with proxy.measure() as traffic:
        await loaded(service, config=config)
    assert traffic.round_trips == 3  # at the same time, over three connections
    assert traffic.bytes_received < 30_000


# Lost replies and killed workers


class Death:
    """From the nth command on, a proxy passes nothing on. That command is executed if the action is DROP_REPLY."""

    def __init__(self, action: Action, nth: int) -> None:
        self.action = action
        self.left = nth

    def __call__(self, command: list[bytes]) -> Action:
        if command[0].upper() in (b"HELLO", b"CLIENT", b"AUTH"):
            return Action.PASS
        self.left -= 1
        if self.left > 0:
            return Action.PASS
        return self.action if self.left == 0 else Action.CUT_BEFORE


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


# Runs


class ScriptedModel(BaseLlm):
    """A model whose answers are given."""

    answers: list[types.Part]
    asked: list[Any]

    async def generate_content_async(self, llm_request: Any, stream: bool = False) -> AsyncGenerator[LlmResponse, None]:
        self.asked.append(llm_request.contents)
        yield LlmResponse(content=types.Content(role="model", parts=[self.answers.pop(0)]))


def weather(city: str, tool_context: ToolContext) -> str:
    """Return the weather of a city."""
    for scope in ("", "user:", "app:", "temp:"):
        tool_context.state[f"{scope}city"] = city
    return f"rain in {city}"


CALL = types.Part.from_function_call(name="weather", args={"city": "Oslo"})


def runner_of(service: BaseSessionService, *answers: types.Part) -> tuple[Runner, ScriptedModel]:
    model = ScriptedModel(model="scripted", answers=list(answers), asked=[])
    agent = LlmAgent(name="agent", model=model, tools=[weather], output_key="user:answer")
    return Runner(app_name="a", agent=agent, session_service=service, auto_create_session=True), model


async def run(runner: Runner, question: str) -> list[str]:
    message = types.Content(role="user", parts=[types.Part(text=question)])
    events = [event async for event in runner.run_async(user_id="u", session_id="s1", new_message=message)]
    return [part.text for event in events for part in event.content.parts if part.text]


async def test_a_run_continues_what_a_run_of_another_process_stored(open_cache):
    first, _ = runner_of(LashSessionService(open_cache()), CALL, types.Part(text="It rains."))
    assert await run(first, "Weather?") == ["It rains."]
    second, model = runner_of(LashSessionService(open_cache()), types.Part(text="Still."))
    assert await run(second, "And now?") == ["Still."]
    assert [content.role for content in model.asked[0]] == ["user", "model", "user", "model", "user"]
    found = await loaded(LashSessionService(open_cache()))
    assert found.state == {"city": "Oslo", "user:city": "Oslo", "app:city": "Oslo", "user:answer": "Still."}
    assert len(found.events) == 6


async def test_a_run_stores_what_the_in_memory_service_stores(service):
    runs = []
    for each in (service, InMemorySessionService()):
        runner, _ = runner_of(each, CALL, types.Part(text="It rains."), types.Part(text="Still."))
        await run(runner, "Weather?")
        await run(runner, "And now?")
        found = await loaded(each)
        kept = [(event.author, event.content, event.actions.state_delta) for event in found.events]
        for _, content, _ in kept:
            for part in content.parts:
                for call in (part.function_call, part.function_response):
                    if call is not None:
                        call.id = None
        runs.append((kept, found.state))
    assert runs[0] == runs[1]


async def test_of_two_runs_of_one_session_at_once_the_later_write_is_refused(open_cache):
    service, other = LashSessionService(open_cache()), LashSessionService(open_cache())
    await service.create_session(**S1)

    class Rival(ScriptedModel):
        async def generate_content_async(self, llm_request: Any, stream: bool = False) -> Any:
            theirs, _ = runner_of(other, types.Part(text="theirs"))
            await run(theirs, "rival")
            yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text="mine")]))

    agent = LlmAgent(name="agent", model=Rival(model="rival", answers=[], asked=[]))
    with pytest.raises(StaleSessionError):
        await run(Runner(app_name="a", agent=agent, session_service=service), "first")
    assert texts(await loaded(service)) == ["first", "rival", "theirs"]
