"""States of apps and users are stored as snapshots and deltas, each applied exactly once."""

from __future__ import annotations

import pytest
from google.adk.sessions.base_session_service import GetSessionConfig

from lash_redis import StoreError
from lash_redis.integrations.google_adk import LashSessionService, places
from lash_redis.integrations.google_adk.names import UserNames
from lash_redis.integrations.google_adk.places import MIN_REACH
from tests.support.adk import S1, loaded, said
from tests.support.proxy import Action, on
from tests.support.sending import sends_once


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
