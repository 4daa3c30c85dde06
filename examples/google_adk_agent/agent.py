"""An agent of Google's ADK with a tool, whose sessions and states any process continues.

    python agent.py alice chat-42 "What is the weather in Oslo?"
    python agent.py alice chat-42 "And tomorrow?"

Each call is a process of its own. The model is Gemini if GOOGLE_API_KEY is set, otherwise a scripted one. Without
AGENT_REDIS_URL an embedded server stores the sessions in the directory `sessions`. Install the extras `google-adk` and
`embedded` of lash-redis.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator

from google.adk.agents import LlmAgent
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.adk.runners import Runner
from google.adk.tools import ToolContext
from google.genai import types

import lash_redis
from lash_redis.integrations.google_adk import LashSessionService

APP = "weather"


def forecast(city: str, tool_context: ToolContext) -> str:
    """Return the weather forecast for a city."""
    count = tool_context.state.get("user:forecasts", 0) + 1
    tool_context.state["user:forecasts"] = count  # all sessions of this user see it
    return f"{city}: rain, 7 degrees (forecast {count} for you)"


class ScriptedModel(BaseLlm):
    """A model that calls the tool, and then repeats what it found."""

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        last = (llm_request.contents[-1].parts or [types.Part()])[-1]
        part = types.Part.from_function_call(name="forecast", args={"city": "Oslo"})
        if last.function_response is not None:
            found = (last.function_response.response or {}).get("result")
            part = types.Part(text=f"{found}; {len(llm_request.contents)} messages")
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


async def main(user_id: str, session_id: str, question: str) -> None:
    url = os.environ.get("AGENT_REDIS_URL", "embedded://sessions")
    model = "gemini-2.5-flash" if os.environ.get("GOOGLE_API_KEY") else ScriptedModel(model="scripted")
    agent = LlmAgent(name="weather", model=model, instruction="Answer briefly.", tools=[forecast])
    async with lash_redis.connect(url, namespace="adk-agent", ttl=30 * 86_400) as cache:
        service = LashSessionService(cache)
        runner = Runner(app_name=APP, agent=agent, session_service=service, auto_create_session=True)
        message = types.Content(role="user", parts=[types.Part(text=question)])
        store = service.store(app_name=APP, user_id=user_id, session_id=session_id)
        lease = await store.acquire_lease(wait=60.0)  # one run of this session at a time
        async with runner, lease, lease.renewing():
            async for event in runner.run_async(user_id=user_id, session_id=session_id, new_message=message):
                if event.is_final_response() and event.content and event.content.parts:
                    print(event.content.parts[0].text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
