"""A namespace of sessions on one Redis: what its stores share, and the way to get one."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Self

import redis.asyncio as redis

from lash_redis import commands
from lash_redis.connections import Connector, Given, checked_client, connector
from lash_redis.errors import InvalidRecord
from lash_redis.keys import Layout, checked_id, checked_namespace
from lash_redis.models import BlobRef, SessionMeta, SessionPolicy, SessionStoreCreateRequest
from lash_redis.models.wire import check_json
from lash_redis.namespace import Namespace
from lash_redis.options import StoreOptions, seconds_to_ms
from lash_redis.store import RedisSessionStore


class SessionCache:
    """The sessions of one namespace, on one client.

    `client` is a `redis.asyncio.Redis` that returns bytes; it is used, never configured and never closed. `ttl` is the
    seconds a session outlives its last commit, None for ever. Constructing does no I/O and needs no running loop. One
    cache serves any number of sessions and concurrent tasks of one event loop.
    """

    def __init__(
        self,
        client: redis.Redis | Connector,
        namespace: str = "default",
        *,
        ttl: float | None = None,
        options: StoreOptions | None = None,
    ) -> None:
        options = StoreOptions() if options is None else options
        commands.check_kind("options", options, StoreOptions)
        self.ttl = ttl
        self.shared = Namespace(
            client if isinstance(client, Connector) else Given(checked_client(client)),
            Layout(checked_namespace(namespace), options.shards),
            options,
            0 if ttl is None else seconds_to_ms("ttl", ttl),
        )

    @property
    def namespace(self) -> str:
        return self.shared.layout.namespace

    @property
    def layout(self) -> Layout:
        """Which keys the namespace's sessions have."""
        return self.shared.layout

    @property
    def options(self) -> StoreOptions:
        return self.shared.options

    def __repr__(self) -> str:
        return f"SessionCache(namespace={self.namespace!r}, ttl={self.ttl!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what `connect` opened: the client, and an embedded server. A client that was given stays open."""
        await self.shared.close()

    def session(self, session_id: str) -> RedisSessionStore:
        """The store of one session. No I/O; the session need not exist."""
        return RedisSessionStore(self.shared, session_id)

    async def create(self, request: SessionStoreCreateRequest) -> RedisSessionStore:
        """The store of a session that has meta: written now from `request`, or kept as it is if there is some.

        Idempotent. One round trip. Source: SessionStoreFactory::create_store.
        """
        commands.check_kind("request", request, SessionStoreCreateRequest)
        commands.check_kind("SessionStoreCreateRequest.policy", request.policy, SessionPolicy)
        commands.check_kind("SessionStoreCreateRequest.policy.model", request.policy.model, str)
        check_json(request.policy.model, "SessionStoreCreateRequest.policy.model")
        if request.parent_session_id is not None:
            checked_id("SessionStoreCreateRequest.parent_session_id", request.parent_session_id)
        checked_id("SessionStoreCreateRequest.session_id", request.session_id)
        store = self.session(request.session_id)
        await store.create_meta(
            SessionMeta(
                session_id=request.session_id,
                session_name=request.session_id,
                created_at=f"unix:{int(time.time())}",
                model=request.policy.model,
                cwd=_working_directory(),
                parent_session_id=request.parent_session_id,
            )
        )
        return store

    # Blobs

    async def put_blob(self, data: bytes) -> BlobRef:
        """Store bytes under the SHA-256 of them; a commit may then name the ref as one of its components.

        A component's bytes are MessagePack of its record, an execution state's those of a byte string. Held by no
        session, they stay for `StoreOptions.upload_grace` seconds. One round trip.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRecord("data", f"takes bytes, not {type(data).__name__}")
        commands.check_value_size("the bytes of a blob", len(data), self.options)
        return await self.shared.put_blob(bytes(data))

    async def get_blob(self, ref: str) -> bytes | None:
        """The bytes of a blob, or None if no shard of the namespace has it.

        A blob that `put_blob` stored is one round trip. A component's blob lies in the shard of the sessions that hold
        it, which a ref does not tell: a second round trip asks every shard. A manifest is part of its head and no blob.

        Raises:
            Corrupt: the stored bytes do not hash to `ref`.
        """
        return await self.shared.blob(commands.checked_ref("ref", ref))


def connect(
    url: str, *, namespace: str = "default", ttl: float | None = None, options: StoreOptions | None = None
) -> SessionCache:
    """A `SessionCache` on its own connection, closed by `async with` or `aclose`. Nothing connects before an await.

    `redis://`, `rediss://` and `unix://` take what `redis.asyncio.from_url` takes. `embedded://[directory]` starts a
    server of this process at first use and stops it at the end; with a directory its data stays. `memory://` is
    fakeredis in this process: for tests, no durability, no other process.

    Raises:
        InvalidRecord: names the argument that is wrong.
        BackendError: the package behind `embedded://` or `memory://` is not installed.
    """
    return SessionCache(connector(url), namespace, ttl=ttl, options=options)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed under the process
        return None
