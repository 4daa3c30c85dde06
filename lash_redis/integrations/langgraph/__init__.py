"""The checkpointer of LangGraph on Redis or Valkey: `pip install 'lash-redis[langgraph]'`.

from lash_redis import connect
from lash_redis.integrations.langgraph import LashCheckpointSaver

async with connect("redis://localhost:6379") as cache:
    graph = builder.compile(checkpointer=LashCheckpointSaver(cache))
    await graph.ainvoke(inputs, {"configurable": {"thread_id": "thread-1"}})
"""

from lash_redis.integrations.langgraph.conflicts import CheckpointConflict
from lash_redis.integrations.langgraph.saver import LashCheckpointSaver

__all__ = ["CheckpointConflict", "LashCheckpointSaver"]
