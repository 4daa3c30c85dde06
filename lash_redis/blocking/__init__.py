"""The store for synchronous code, such as Django, Celery, notebooks and scripts: the same names, without `await`.

    from lash_redis import blocking

    with blocking.connect("redis://localhost:6379") as cache:
        chat = cache.chat("chat-42")
        chat.append({"role": "user", "content": "Hello"})

`connect` returns a `BlockingSessionCache`. Its methods are those of `SessionCache`, with generators instead of async
generators, and `with` instead of `async with`. Records, options and errors are those of `lash_redis`.
"""

from lash_redis.blocking.cache import BlockingSessionCache, connect
from lash_redis.blocking.chat import BlockingChat
from lash_redis.blocking.contexts import BlockingContext
from lash_redis.blocking.documents import BlockingDocuments
from lash_redis.blocking.lease import BlockingLease
from lash_redis.blocking.store import BlockingSessionStore
from lash_redis.blocking.stream import BlockingStreamWriter
from lash_redis.blocking.watch import BlockingSessionWatch

__all__ = [
    "BlockingChat",
    "BlockingContext",
    "BlockingDocuments",
    "BlockingLease",
    "BlockingSessionCache",
    "BlockingSessionStore",
    "BlockingSessionWatch",
    "BlockingStreamWriter",
    "connect",
]
