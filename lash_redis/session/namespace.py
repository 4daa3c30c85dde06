"""What the stores of one namespace share: the connection, the layout, and what this process knows of the blobs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

import redis.asyncio as redis

from lash_redis.errors import BackendError, Corrupt, LayoutMismatch, OutcomeUnknown, SessionEvicted
from lash_redis.models import BlobRef
from lash_redis.options import Durability, StoreOptions
from lash_redis.protocol import commands
from lash_redis.protocol.blob_cache import BlobCache, KnownBlobs, WrittenTools
from lash_redis.protocol.blobs import decode_blob, ref_of
from lash_redis.protocol.keys import Layout, SessionKeys, ShardKeys
from lash_redis.protocol.lineage import KnownLogs
from lash_redis.transport.backend import Backend, Connector
from lash_redis.transport.failures import Earlier, check_types
from lash_redis.transport.request import Lane, Request, first_key

log = logging.getLogger("lash_redis")


@contextmanager
def continuing(count: int, done: str) -> Iterator[None]:
    """A further step of a write: its failure must not deny that earlier ones were applied."""
    try:
        yield
    except BackendError as error:
        if not count:
            raise
        raise OutcomeUnknown(f"{error.message}; {count} {done} before, call again for the rest") from error


BEGINNING = ("commit", "replace", "meta", "put_blob")
"""The scripts that put something where nothing was: the first of them to run fixes the layout."""


class Namespace:
    """One per `SessionCache`. The first call makes sure that the namespace is laid out as this client writes it.

    `ttl_ms` is what a session outlives its last commit by; 0 for ever.
    """

    def __init__(self, connector: Connector, layout: Layout, options: StoreOptions, ttl_ms: int) -> None:
        self.layout = layout
        self.options = options
        self.ttl_ms = ttl_ms
        self.cached = BlobCache(options.blob_cache_bytes)
        self.known = KnownBlobs()
        self.written = WrittenTools(options.blob_cache_bytes)
        self.logs = KnownLogs()
        self.sharded = connector.sharded
        self._backend = Backend(connector, options)
        self._laid_out = False
        self._told: set[str] = set()
        self._asks_replicas = False
        self._replicas: Self | None = None

    @property
    def replicas(self) -> Self:
        """The same namespace, as replicas know it: they are asked for reads, once, and may be behind."""
        if self._replicas is None:
            self._replicas = copy(self)
            self._replicas._asks_replicas = True
        return self._replicas

    async def close(self) -> None:
        await self._backend.close()

    async def preload(self) -> None:
        await self._backend.preload()

    async def run(
        self,
        call: commands.calls.ScriptCall,
        *,
        writes: bool = True,
        is_large: bool = False,
        earlier: Earlier | None = None,
    ) -> Any:
        """The reply to a script. `writes`, `earlier` and what is raised: as for `Backend.send`.

        `is_large`: the size of the reply depends on the caller's data.
        """
        if not self._laid_out:
            await self._check_layout(writes=call.script.name in BEGINNING)
        request = self._script_request(call)
        request.lane = Lane.LARGE if is_large else Lane.SMALL
        return (await self._backend.send(request, writes=writes, earlier=earlier))[0]

    async def run_durably(
        self, call: commands.calls.ScriptCall, durability: Durability | None, earlier: Earlier | None = None
    ) -> tuple[Any, bool | None]:
        """The reply to a script that writes, and whether what it wrote is known to be as safe as `durability` asks.

        Waiting is part of the same round trip. A server that refuses to wait is logged once.
        """
        if not self._laid_out:
            await self._check_layout(writes=call.script.name in BEGINNING)
        request = self._script_request(call)
        if durability is None:
            return (await self._backend.send(request, writes=True, earlier=earlier))[0], None
        wait = commands.durability.wait_command(durability)
        request.commands = [*request.commands, wait]
        request.lane, request.waits = Lane.WAITING, durability.timeout_ms / 1000
        reply, waited = await self._backend.send(request, writes=True, earlier=earlier)
        if isinstance(waited, Exception) and str(waited) not in self._told:
            self._told.add(str(waited))
            log.warning("commits are made, but whether they are durable is unknown: %s: %s", wait[0], waited)
        return reply, commands.durability.wait_reply(durability, waited)

    def _script_request(self, call: commands.calls.ScriptCall) -> Request:
        command = ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        return Request([command], call.keys[0], script=call.script, may_send_text=self.options.allow_eval)

    async def read(
        self, trip: Sequence[commands.calls.Command], *, atomic: bool, faults: bool = False, is_small: bool = False
    ) -> list[Any]:
        """The replies to native commands that read. `faults` and what is raised: as for `check_types`.

        `is_small`: the size of the replies does not depend on the caller's data.
        """
        if not trip:
            return []
        if not self._laid_out:
            await self._check_layout(writes=False)
        lane = Lane.SMALL if is_small else Lane.LARGE
        request = Request(trip, first_key(trip), lane=lane, atomic=atomic, replica=self._asks_replicas)
        return check_types(trip, await self._backend.send(request), faults=faults)

    async def listener(self, key: str, *, again: bool = False) -> redis.Redis:
        """`Backend.listener`."""
        return await self._backend.listener(key, again=again)

    def scan(self, count: int) -> AsyncIterator[list[bytes]]:
        """`Backend.scan` for every key of the namespace's shards. For maintenance only."""
        return self._backend.scan(f"lash2:{{{self.layout.namespace}:*", count)

    async def _check_layout(self, *, writes: bool) -> None:
        """Compare the stored layout with ours; the first write stores it.

        Raises:
            LayoutMismatch: they differ; nothing was written.
        """
        key, value = self.layout.key, self.layout.value
        fix: list[commands.calls.Command] = [("SET", key, value, "NX")] if writes else []
        stored = (await self._backend.send(Request([*fix, ("GET", key)], key)))[-1]
        if stored is None:
            return
        if stored != value.encode():
            found = stored.decode(errors="replace")
            reason = f"is stored with {found!r}, this client uses {value!r} (StoreOptions.shards)"
            raise LayoutMismatch(self.layout.namespace, reason)
        self._laid_out = True

    # Blobs

    async def collect(self, shard: ShardKeys) -> int:
        """Delete the blobs of a shard that nobody holds and whose time has come; returns how many.

        Entries of sessions that expired leave the catalogue. A round trip to look and one to delete for every 500 blobs
        or 100 entries.
        """
        deleted = 0
        while True:
            with continuing(deleted, "blobs were deleted"):
                (refs,) = await self.read(commands.maintenance.orphan_read(shard), atomic=False)
                call = commands.maintenance.gc_call(shard, shard.prefix, [ref.decode(errors="replace") for ref in refs])
                reply = await self.run(call)
                commands.calls.status(call, reply, shard)
            deleted += int(reply[2])
            settled, expired = reply[3:]
            if (not refs or settled < len(refs)) and expired < commands.maintenance.EXPIRED_CHUNK:
                return deleted

    def cached_blobs(self, refs: Sequence[BlobRef]) -> tuple[dict[str, bytes], list[BlobRef]]:
        """Of `refs`: the bytes this process has, and the refs it lacks."""
        have: dict[str, bytes] = {}
        lack: list[BlobRef] = []
        for ref in refs:
            data = self.cached.get(ref)
            if data is None:
                lack.append(ref)
            else:
                have[ref] = data
        return have, lack

    def take_blobs(
        self, keys: SessionKeys, refs: Sequence[BlobRef], contents: Sequence[bytes | None], into: dict[str, bytes]
    ) -> Corrupt | None:
        """Check and keep blobs just read; the error to raise if one of them stays missing."""
        for ref, content in zip(refs, contents, strict=True):
            key = keys.blob(ref)
            if content is None:
                return SessionEvicted("blob", key, "is gone, the head names it")
            into[ref] = decode_blob(ref, content, key)
            self.cached.put(ref, into[ref])
            self.known.add(key)
        return None

    async def blobs(self, keys: SessionKeys, refs: Sequence[BlobRef]) -> tuple[dict[str, bytes], Corrupt | None]:
        """The bytes of blobs, from this process or in one round trip; and the error if one is missing."""
        have, lack = self.cached_blobs(refs)
        contents = await self.read(commands.reads.blob_read(keys, lack), atomic=False) if lack else []
        return have, self.take_blobs(keys, lack, contents, have)

    async def put_blob(self, data: bytes) -> BlobRef:
        ref = ref_of(data)
        call = commands.maintenance.put_blob_call(
            self.layout.shard_keys(self.layout.shard_of(ref)), ref, data, self.options
        )
        commands.calls.status(call, await self.run(call))
        self.cached.put(ref, data)
        return ref

    async def uploaded_blob(self, ref: str) -> bytes | None:
        """The bytes of a blob from this process or from the shard that `put_blob` puts it in."""
        return self.cached.get(ref) or await self._blob_in([self.layout.shard_of(ref)], ref)

    async def blob(self, ref: str) -> bytes | None:
        """The bytes of a blob, wherever it is: in this process, where `put_blob` puts it, in any shard."""
        data = await self.uploaded_blob(ref)
        return await self._blob_in(range(self.layout.shards), ref) if data is None else data

    async def _blob_in(self, shards: Sequence[int], ref: str) -> bytes | None:
        keys = [f"{self.layout.prefix(shard)}blob:{ref}" for shard in shards]
        contents = await self.read([("HGET", key, "c") for key in keys], atomic=False)
        for key, content in zip(keys, contents, strict=True):
            if content is not None:
                return decode_blob(ref, content, key)
        return None
