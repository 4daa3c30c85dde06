"""Random operations agree with the in-memory service of the SDK."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import pytest
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.sessions import InMemorySessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig

from lash_redis.integrations.google_adk import LashSessionService, places
from lash_redis.integrations.google_adk.places import MIN_REACH
from tests.support.adk import said


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
