"""Checkpoints of LangGraph: `builder.compile(checkpointer=LashCheckpointSaver(cache))`.

Install the extra `langgraph`.
"""

try:
    from lash_redis.integrations.langgraph.conflicts import CheckpointConflict
    from lash_redis.integrations.langgraph.saver import LashCheckpointSaver
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("LangGraph is missing: pip install 'lash-redis[langgraph]'") from error

__all__ = ["CheckpointConflict", "LashCheckpointSaver"]
