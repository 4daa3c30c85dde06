"""An agent of the OpenAI Agents SDK with a tool, whose session any process resumes.

    python agent.py chat-42 "What is the weather in Oslo?"
    python agent.py chat-42 "And tomorrow?"

Each call is a process of its own and continues the session. The model is OpenAI's if OPENAI_API_KEY is set, otherwise
a scripted one. Without AGENT_REDIS_URL an embedded server stores the sessions in the directory `sessions`. Install the
extras `openai-agents` and `embedded` of lash-redis.
"""

import asyncio
import os
import sys
from uuid import uuid4

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call

import lash_redis
from lash_redis.integrations.openai_agents import LashSession


@function_tool
def weather(city: str, day: str) -> str:
    """Return the weather forecast for a city."""
    return f"{city}, {day}: rain, 7 degrees"


def scripted_model() -> ScriptedModel:
    """A model that calls the tool, and then reports its result and how many results the session has."""

    def conclude(call: ModelCall) -> ModelStep:
        forecasts = [item for item in call.input if item.get("type") == "function_call_output"]
        text = f"{forecasts[-1]['output']} (forecast {len(forecasts)} of this session)"
        return ModelStep(output=[assistant_message(text)])

    question = function_call("weather", {"city": "Oslo", "day": "today"}, call_id=f"call_{uuid4().hex}")
    return ScriptedModel([[question], ModelStep.respond(conclude)])


async def main(session_id: str, question: str) -> None:
    url = os.environ.get("AGENT_REDIS_URL", "embedded://sessions")
    model = None if os.environ.get("OPENAI_API_KEY") else scripted_model()
    set_tracing_disabled(model is not None)
    agent = Agent("Weather", instructions="Answer briefly.", model=model, tools=[weather])
    async with lash_redis.connect(url, namespace="weather-agent", ttl=30 * 86_400) as cache:
        session = LashSession(session_id, cache)
        lease = await session.store.acquire_lease(wait=60.0)  # one run of this session at a time
        async with lease, lease.renewing():
            result = await Runner.run(agent, question, session=session)
        print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
