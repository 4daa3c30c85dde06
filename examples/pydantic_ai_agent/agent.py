"""An agent of Pydantic AI with a tool, whose conversation any process resumes.

    python agent.py chat-42 "What is the weather in Oslo?"
    python agent.py chat-42 "And tomorrow?"
    python agent.py chat-42 --again

Each call is a process of its own and continues the conversation. `--again` answers the last question once more, and the
earlier answer stays as a branch. The model is OpenAI's if OPENAI_API_KEY is set, otherwise a function. Without
AGENT_REDIS_URL an embedded server stores the conversations in the directory `sessions`. Install the extras
`pydantic-ai` and `embedded` of lash-redis, and `pydantic-ai-slim[openai]` for OpenAI's model.
"""

import asyncio
import os
import sys

from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.messages import UserPromptPart as UserPrompt
from pydantic_ai.models.function import AgentInfo, FunctionModel

import lash_redis
from lash_redis.integrations.pydantic_ai import LashConversationStore


def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool, and then report what it found and how many forecasts the conversation has."""
    if not isinstance(messages[-1].parts[-1], ToolReturnPart):
        return ModelResponse(parts=[ToolCallPart("weather", {"city": "Oslo", "day": "today"})])
    forecasts = [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    return ModelResponse(parts=[TextPart(f"{forecasts[-1]} (forecast {len(forecasts)} of this conversation)")])


agent = Agent("openai:gpt-5-mini" if os.environ.get("OPENAI_API_KEY") else FunctionModel(answer))


@agent.tool_plain
def weather(city: str, day: str) -> str:
    """Return the weather forecast for a city."""
    return f"{city}, {day}: rain, 7 degrees"


def last_question(messages: list[ModelMessage]) -> int:
    """Return the index of the last message with a question of the user."""
    asked = [
        at
        for at, message in enumerate(messages)
        if isinstance(message, ModelRequest) and any(isinstance(part, UserPrompt) for part in message.parts)
    ]
    return asked[-1]


async def main(conversation_id: str, question: str) -> None:
    url = os.environ.get("AGENT_REDIS_URL", "embedded://sessions")
    async with lash_redis.connect(url, namespace="weather-conversations", ttl=30 * 86_400) as cache:
        store = LashConversationStore(cache)
        lease = await store.session(conversation_id).acquire_lease(wait=60.0)  # one run of it at a time
        async with lease, lease.renewing():
            conversation = await store.load(conversation_id) or Conversation(conversation_id=conversation_id)
            prompt: str | None = question
            if question == "--again":
                at, prompt = last_question(conversation.messages) + 1, None
                conversation = await store.branch(conversation_id, at=at, expected_revision=conversation.revision)
            result = await agent.run(prompt, conversation=conversation)
            await store.save(result)
        print(result.output)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
