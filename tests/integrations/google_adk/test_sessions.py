"""Sessions and states of ADK are returned as they were stored, and a config selects events."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import pytest
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.sessions.base_session_service import GetSessionConfig

from lash_redis import RedisSessionStore
from lash_redis.integrations.google_adk import LashSessionService, stored_sessions
from lash_redis.integrations.google_adk.names import UserNames
from lash_redis.integrations.google_adk.places import MIN_REACH
from lash_redis.listing import Listing
from tests.support.adk import S1, loaded, said, texts
from tests.support.builders import let_all_expire

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


async def test_shared_states_outlive_the_sessions_that_use_them(open_cache, client):
    def opened() -> LashSessionService:
        return LashSessionService(open_cache(ttl=60, blob_grace=0.1))

    service = opened()
    session = await service.create_session(**S1, state={"app:x": 1, "user:x": 1})
    shared = [key for key in await client.keys("*") if await client.pttl(key) > 61_000]
    for key in shared:
        await client.pexpire(key, 61_000)
    for worker in (opened(), service):  # another worker has touched none of them
        await worker.append_event(session, said("x"))
    assert len([key for key in shared if b":head:" in key and await client.pttl(key) > 100_000]) == 3
    assert (await loaded(service)).state == {"app:x": 1, "user:x": 1}
    assert [each.id for each in (await service.list_sessions(app_name="a")).sessions] == ["s1"]
    for key in await client.keys("*"):
        if 0 < await client.pttl(key) <= 61_000:
            await client.pexpire(key, 1)
    await asyncio.sleep(0.01)
    assert await service.get_session(**S1) is None
    assert (await service.list_sessions(app_name="a")).sessions == []
    with pytest.raises(SessionNotFoundError):
        await service.append_event(session, said("x"))
    assert await service.get_user_state(app_name="a", user_id="u") == {"x": 1}
    await let_all_expire(client, within=121)
    assert await service.get_user_state(app_name="a", user_id="u") == {}


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
