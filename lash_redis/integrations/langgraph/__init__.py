"""Checkpoints of LangGraph: `builder.compile(checkpointer=LashCheckpointSaver(cache))`.

Install the extra `langgraph`.
"""

try:
    from lash_redis.integrations.langgraph.conflicts import CheckpointConflict
    from lash_redis.integrations.langgraph.dual_write import DualWriteSaver
    from lash_redis.integrations.langgraph.importing import import_threads
    from lash_redis.integrations.langgraph.saver import LashCheckpointSaver
    from lash_redis.integrations.langgraph.verbatim import VerbatimSerializer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("LangGraph is missing: pip install 'lash-redis[langgraph]'") from error

__all__ = ["CheckpointConflict", "DualWriteSaver", "LashCheckpointSaver", "VerbatimSerializer", "import_threads"]
