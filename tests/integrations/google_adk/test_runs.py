"""A run of an ADK agent continues what a run of another process stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from google.adk.agents import LlmAgent
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.models import BaseLlm, LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService, InMemorySessionService
from google.adk.tools import ToolContext
from google.genai import types

from lash_redis.integrations.google_adk import LashSessionService
from tests.support.adk import S1, loaded, texts


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
