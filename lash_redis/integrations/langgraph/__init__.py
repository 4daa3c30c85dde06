"""Checkpoints of LangGraph: `builder.compile(checkpointer=LashCheckpointSaver(cache))`.

Install the extra `langgraph`.
"""

from lash_redis.integrations.langgraph.conflicts import CheckpointConflict
from lash_redis.integrations.langgraph.saver import LashCheckpointSaver

__all__ = ["CheckpointConflict", "LashCheckpointSaver"]
