"""Conversations of Pydantic AI: `await LashConversationStore(cache).save(result)`.

Install the extra `pydantic-ai`.
"""

from lash_redis.integrations.pydantic_ai.store import LashConversationStore

__all__ = ["LashConversationStore"]
