"""A namespace of sessions on one Redis: what its stores share, and the way to get one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import redis.asyncio as redis

from lash_redis import codec, commands
from lash_redis.backend import Backend
from lash_redis.blobs import BlobCache, KnownBlobs
from lash_redis.connections import Connector, Given, checked_client, connector
from lash_redis.errors import Corrupt, InvalidRecord, LayoutMismatch, SessionEvicted
from lash_redis.keys import Layout, SessionKeys, checked_id, checked_namespace
from lash_redis.models import BlobRef, SessionMeta, SessionStoreCreateRequest
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
        self.options = StoreOptions() if options is None else options
        if not isinstance(self.options, StoreOptions):
            raise InvalidRecord("options", f"takes a StoreOptions, not {type(options).__name__}")
        self.namespace = checked_namespace(namespace)
        self.ttl = ttl
        self.ttl_ms = 0 if ttl is None else seconds_to_ms("ttl", ttl)
        self.layout = Layout(self.namespace, self.options.shards)
        source = client if isinstance(client, Connector) else Given(checked_client(client))
        self.backend = Backend(source, self.options)
        self.blob_cache = BlobCache(self.options.blob_cache_bytes)
        self.known = KnownBlobs()
        self._laid_out = False

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
        await self.backend.close()

    def session(self, session_id: str) -> RedisSessionStore:
        """The store of one session. No I/O; the session need not exist."""
        return RedisSessionStore(self, session_id)

    async def create(self, request: SessionStoreCreateRequest) -> RedisSessionStore:
        """The store of a session that has meta: written now from `request`, or kept as it is if there is some.

        Idempotent. One round trip. Source: SessionStoreFactory::create_store.
        """
        if not isinstance(request, SessionStoreCreateRequest):
            raise InvalidRecord("request", f"takes a SessionStoreCreateRequest, not {type(request).__name__}")
        checked_id("SessionStoreCreateRequest.session_id", request.session_id)
        store = self.session(request.session_id)
        await store.create_meta(
            SessionMeta(
                session_id=request.session_id,
                session_name=request.session_id,
                created_at=f"unix:{int(time.time())}",
                model=request.policy.model,
                cwd=os.getcwd(),
                parent_session_id=request.parent_session_id,
            )
        )
        return store

    # Blobs

    async def put_blob(self, data: bytes) -> BlobRef:
        """Store bytes under the SHA-256 of them; a commit may then name the ref as one of its components.

        Held by no session, they stay for `StoreOptions.upload_grace` seconds. One round trip.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRecord("data", f"takes bytes, not {type(data).__name__}")
        data = bytes(data)
        commands.check_value_size("the bytes of a blob", len(data), self.options)
        ref = codec.ref_of(data)
        call = commands.put_blob_call(self.layout.prefix(self.layout.shard_of(ref)), ref, data, self.options)
        await self.ready(writes=True)
        commands.status(call, await self.backend.run(call))
        self.blob_cache.put(ref, data)
        return ref

    async def get_blob(self, ref: str) -> bytes | None:
        """The bytes of a blob, or None if no shard of the namespace has it.

        A blob that `put_blob` stored is one round trip. A component's blob lies in the shard of the sessions that hold
        it, which a ref does not tell: a second round trip asks every shard. A manifest is part of its head and no blob.

        Raises:
            Corrupt: the stored bytes do not hash to `ref`.
        """
        ref = commands.checked_ref("ref", ref)
        data = self.blob_cache.get(ref) or await self.uploaded_blob(ref)
        if data is None:
            await self.ready(writes=False)
            keys = [f"{self.layout.prefix(shard)}blob:{ref}" for shard in range(self.layout.shards)]
            found = await self.backend.send([("HGET", key, "c") for key in keys], atomic=False)
            for key, content in zip(keys, found, strict=True):
                if content is not None:
                    return codec.decode_blob(ref, content, key)
        return data

    async def uploaded_blob(self, ref: str) -> bytes | None:
        """The bytes of a blob in the shard that `put_blob` puts it in."""
        await self.ready(writes=False)
        key = f"{self.layout.prefix(self.layout.shard_of(ref))}blob:{ref}"
        (content,) = await self.backend.send([("HGET", key, "c")], atomic=False)
        return None if content is None else codec.decode_blob(ref, content, key)

    def known_blobs(self, refs: Sequence[BlobRef | None]) -> tuple[dict[str, bytes], list[BlobRef]]:
        """Of `refs`: the bytes this process has, and the refs it lacks."""
        known: dict[str, bytes] = {}
        unknown: list[BlobRef] = []
        for ref in dict.fromkeys(ref for ref in refs if ref):
            data = self.blob_cache.get(ref)
            if data is None:
                unknown.append(ref)
            else:
                known[ref] = data
        return known, unknown

    def take_blobs(
        self, keys: SessionKeys, refs: Sequence[BlobRef], contents: Sequence[bytes | None], into: dict[str, bytes]
    ) -> SessionEvicted | None:
        """Check and keep blobs just read; the error to raise if one of them stays missing."""
        for ref, content in zip(refs, contents, strict=True):
            key = keys.blob(ref)
            if content is None:
                return SessionEvicted("blob", key, "is gone, the head names it")
            into[ref] = codec.decode_blob(ref, content, key)
            self.blob_cache.put(ref, into[ref])
            self.known.add(key)
        return None

    async def blobs(
        self, keys: SessionKeys, refs: Sequence[BlobRef | None]
    ) -> tuple[Mapping[str, bytes], Corrupt | None]:
        """The bytes of a head's components, from this process or in one round trip; and the error if one is missing."""
        known, unknown = self.known_blobs(refs)
        contents = await self.backend.send(commands.blob_read(keys, unknown), atomic=False)
        return known, self.take_blobs(keys, unknown, contents, known)

    # Layout

    async def ready(self, *, writes: bool) -> None:
        """Make sure, once, that the namespace is laid out as this cache would write it; the first write fixes it.

        Raises:
            LayoutMismatch: it is laid out otherwise; nothing was written.
        """
        if self._laid_out:
            return
        key, value = self.layout.key, self.layout.value
        fix: list[commands.Command] = [("SET", key, value, "NX")] if writes else []
        stored = (await self.backend.send([*fix, ("GET", key)], atomic=False))[-1]
        if stored is None:
            return
        if stored != value.encode():
            found = stored.decode(errors="replace")
            raise LayoutMismatch(self.namespace, f"is stored with {found!r}, this client uses {value!r}")
        self._laid_out = True


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
