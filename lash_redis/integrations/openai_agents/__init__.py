"""Sessions of the OpenAI Agents SDK: `Runner.run(agent, "Hello", session=LashSession("chat-42", cache))`.

Install the extra `openai-agents`.
"""

from lash_redis.integrations.openai_agents.items import Item
from lash_redis.integrations.openai_agents.session import LashSession

__all__ = ["Item", "LashSession"]
