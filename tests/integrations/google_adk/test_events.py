"""Events of every kind and names of any characters are stored exactly or refused by name."""

from __future__ import annotations

import pytest
from google.adk.events import Event, EventActions
from google.genai import types

from lash_redis import InvalidRecord
from lash_redis.integrations.google_adk import LashSessionService
from lash_redis.integrations.google_adk.names import UserNames, unescape
from tests.support.adk import S1, loaded, said

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
    assert len({UserNames("a", user).owner for user in ODD}) == len(ODD)
    assert UserNames("a", "alice").owner == "alice"
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


async def test_the_data_of_a_user_of_any_name_is_deleted_and_no_other(service, cache):
    names = [*ODD[:-1], "x" * 20_000]
    for user in names:
        await service.create_session(app_name="a", user_id=user, session_id="s", state={"user:x": 1})
    for user in names:
        report = await cache.delete_owned(UserNames("a", user).owner)
        assert report.deleted_session_count == 2, ascii(user)[:20]  # the session and the state
    assert (await service.list_sessions(app_name="a")).sessions == []
