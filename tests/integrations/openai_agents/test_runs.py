"""A run of an agent continues the history of an earlier run, and a chat shows it."""

from __future__ import annotations

from typing import Any

from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call

from lash_redis.integrations.openai_agents import LashSession
from tests.support.items import CALL, ITEMS, OUTPUT, answer, user

# Runs


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"rain in {city}"


async def test_a_run_resumes_the_history_of_an_earlier_run(open_cache):
    calls = ScriptedModel(
        [[function_call("weather", {"city": "Oslo"}, call_id="c1")], [assistant_message("It rains.")]]
    )
    first = LashSession("s1", open_cache())
    result = await Runner.run(Agent("a", model=calls, tools=[weather]), "Weather?", session=first)
    assert result.final_output == "It rains."
    model = ScriptedModel([[assistant_message("Still.")]])
    second = LashSession("s1", open_cache())
    await Runner.run(Agent("a", model=model, tools=[weather]), "And now?", session=second)
    sent: Any = model.last_call.input
    assert [item.get("type", item.get("role")) for item in sent] == [
        "user",
        "function_call",
        "function_call_output",
        "message",
        "user",
    ]
    assert sent[2]["output"] == "rain in Oslo"
    assert len(await second.get_items()) == 6


async def test_a_streamed_run_stores_the_same_items(session):
    model = ScriptedModel(
        [[function_call("weather", {"city": "Oslo"}, call_id="c1")], [assistant_message("It rains.")]]
    )
    streamed = Runner.run_streamed(Agent("a", model=model, tools=[weather]), "Weather?", session=session)
    async for _ in streamed.stream_events():
        pass
    found = await session.get_items()
    assert [item.get("type", item.get("role")) for item in found] == [
        "user",
        "function_call",
        "function_call_output",
        "message",
    ]


# Other views of the session


async def test_a_chat_shows_the_conversation_of_a_session(session, cache):
    await session.add_items([user("weather?"), ITEMS["reasoning"], CALL, OUTPUT, answer("rain")])
    messages = [
        {key: value for key, value in each.items() if key != "id"} for each in await cache.chat("s1").messages()
    ]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert messages[2] == {"role": "tool", "content": "rain", "tool_call_id": "c1"}
    (info,) = [info async for info in cache.sessions()]
    assert (info.first_user_message, info.user_message_count) == ("weather?", 1)


async def test_messages_of_a_chat_are_items_as_far_as_they_have_a_text(session, cache):
    chat = cache.chat("s1")
    await chat.append(
        user("hi"), {"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": "yes"}
    )
    assert await session.get_items() == [user("hi"), {"role": "assistant", "content": "yes"}]


async def test_a_text_is_stored_once(session, client):
    text = "a rather long text " * 40
    await session.add_items([user(text), answer(text), {**CALL, "arguments": text}, {**OUTPUT, "output": text}])
    records = await client.lrange(session.store._keys.log, 0, -1)
    assert [record.count(text.encode()) for record in records] == [1, 1, 1, 1]
