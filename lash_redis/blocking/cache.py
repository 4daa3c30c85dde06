"""The entry point for synchronous code: a `BlockingSessionCache` has the sessions of one namespace."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import redis
import redis.cluster

from lash_redis import cache
from lash_redis.blocking.chat import BlockingChat
from lash_redis.blocking.documents import BlockingDocuments
from lash_redis.blocking.loop_thread import LoopThread
from lash_redis.blocking.store import BlockingSessionStore
from lash_redis.blocking.twins import Twin, call, call_and_wrap, function, iterate, make
from lash_redis.blocking.watch import BlockingSessionWatch
from lash_redis.cache import SessionCache
from lash_redis.options import StoreOptions
from lash_redis.protocol.keys import Layout
from lash_redis.transport.backend import Connector
from lash_redis.transport.blocking_clients import like


class BlockingSessionCache(Twin[SessionCache]):
    """The sessions of one namespace, for synchronous code: Django, Celery, notebooks, scripts.

    It has the methods of `SessionCache`, without `await`. They run in the event loop of a thread that the cache starts
    at its first call. Any number of threads can share a cache. So can processes that were forked after it was made:
    each starts a thread and connections of its own. `with` or `close` ends them. Calls work inside of a running event
    loop, and block it.

    `client` is a `redis.Redis` or `redis.RedisCluster`. The cache only takes its settings, and opens connections of its
    own: addresses, database, credentials, TLS and timeouts. It ignores `decode_responses` and `retry`. A client of
    `Sentinel.master_for` leads to the primary that the sentinels report.

    `ttl` is the time from a session's last commit until it expires, in seconds; None for never. Constructing a cache
    does no I/O and starts no thread.
    """

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster | Connector,
        namespace: str = "default",
        *,
        ttl: float | None = None,
        options: StoreOptions | None = None,
    ) -> None:
        connector = client if isinstance(client, Connector) else like(client)
        self._begin(SessionCache(connector, namespace, ttl=ttl, options=options))

    def _begin(self, inner: SessionCache) -> None:
        shared = inner.shared
        name = f"lash_redis-{inner.namespace}"
        super().__init__(LoopThread(name, lambda error: shared.close(after=error), shared.leave), inner)

    @property
    def ttl(self) -> float | None:
        return self._inner.ttl

    @property
    def namespace(self) -> str:
        return self._inner.namespace

    @property
    def layout(self) -> Layout:
        """The names of the keys in which the namespace's sessions are stored."""
        return self._inner.layout

    @property
    def options(self) -> StoreOptions:
        return self._inner.options

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loops.close(after=error)

    def close(self) -> None:
        """Close the connections of this process, end its thread, and stop an embedded server. Idempotent.

        Later calls raise BackendError. Iterations and watches end with BackendError. Calls in flight end, too: a write
        whose reply has not arrived raises OutcomeUnknown. A client that the caller passed stays open. If other
        processes use the server's directory, the next call of one of them starts the next server.

        Without `close`, the interpreter's exit closes the connections, and dropping the cache ends the thread.
        """
        self._loops.close()

    # Sessions

    session = make(SessionCache.session, BlockingSessionStore)
    chat = make(SessionCache.chat, BlockingChat)
    documents = make(SessionCache.documents, BlockingDocuments)
    create = call_and_wrap(SessionCache.create, BlockingSessionStore)
    fork = call_and_wrap(SessionCache.fork, BlockingSessionStore)
    delete = call(SessionCache.delete)
    delete_owned = call(SessionCache.delete_owned)
    sessions = iterate(SessionCache.sessions)
    watch = make(SessionCache.watch, BlockingSessionWatch)

    # Maintenance

    gc = call(SessionCache.gc)
    audit = call(SessionCache.audit)
    preload = call(SessionCache.preload)

    # Blobs

    put_blob = call(SessionCache.put_blob)
    get_blob = call(SessionCache.get_blob)


def _connect(*args: Any, **named: Any) -> BlockingSessionCache:
    made = BlockingSessionCache.__new__(BlockingSessionCache)
    made._begin(cache.connect(*args, **named))
    return made


connect = function(cache.connect, _connect)
