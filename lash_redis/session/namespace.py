"""What the stores of one namespace share: the connections, the layout, and the caches of this process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, Self

from lash_redis.errors import BackendError, Corrupt, LayoutMismatch, OutcomeUnknown, SessionEvicted
from lash_redis.models import BlobRef
from lash_redis.options import Durability, StoreOptions
from lash_redis.protocol import commands
from lash_redis.protocol.blob_cache import BlobCache, KnownBlobs, WrittenTools
from lash_redis.protocol.blobs import decode_blob, ref_of
from lash_redis.protocol.keys import Layout, SessionKeys, ShardKeys
from lash_redis.protocol.lineage import KnownLogs
from lash_redis.session.in_flight import LARGE_BYTES, BytesInFlight
from lash_redis.session.queues import Queues
from lash_redis.transport.backend import Backend, Connector
from lash_redis.transport.cleanup import clean_up
from lash_redis.transport.failures import Earlier, check_types
from lash_redis.transport.loop_state import states_of_the_running_loop
from lash_redis.transport.node import Listener
from lash_redis.transport.request import Lane, Request, first_key

log = logging.getLogger("lash_redis")


@contextmanager
def continuing(count: int, done: str) -> Iterator[None]:
    """Turn a `BackendError` of a later step of a write into `OutcomeUnknown`, because earlier steps were applied."""
    try:
        yield
    except BackendError as error:
        if not count:
            raise
        raise OutcomeUnknown(f"{error.message}; {count} {done} before that, call again for the rest") from error


BEGINNING = ("commit", "replace", "meta", "enqueue", "put_blob", "stream_open", "document_write")
"""The scripts that can create keys in an empty namespace. The first of them to run stores the layout."""


class Namespace:
    """Runs scripts and reads of one namespace; one for each `SessionCache`.

    The first call compares the stored layout with this client's. `ttl_ms` is the time from a session's last commit
    until it expires; 0 for never.
    """

    def __init__(self, connector: Connector, layout: Layout, options: StoreOptions, ttl_ms: int) -> None:
        self.layout = layout
        self.options = options
        self.ttl_ms = ttl_ms
        self.cached = BlobCache(options.blob_cache_bytes)
        self.known = KnownBlobs()
        self.written = WrittenTools(options.blob_cache_bytes)
        self.logs = KnownLogs()
        self.appends = Queues()
        self.in_flight = BytesInFlight(options.max_bytes_in_flight, options.call_timeout)
        self.sharded = connector.sharded
        self._backend = Backend(connector, options)
        self._laid_out = False
        self._logged: set[str] = set()
        """Refusals to wait that were logged already."""
        self._asks_replicas = False
        self._replicas: Self | None = None

    @property
    def replicas(self) -> Self:
        """The same namespace, read from a replica: without a retry, and possibly stale."""
        if self._replicas is None:
            self._replicas = copy(self)
            self._replicas._asks_replicas = True
        return self._replicas

    def with_options(self, **options: Any) -> Self:
        """Return the same namespace with other options of its reads and commits. Connections and caches are shared.

        Do not follow streams of it: only those of the namespace itself are closed with it.
        """
        other = copy(self)
        other.options = replace(self.options, **options)
        return other

    async def close(self, *, after: BaseException | None = None) -> None:
        hub = states_of_the_running_loop().get(self)  # `stream_hub` makes it
        if hub is not None:
            await clean_up(hub.close, "ending the subscriptions of a cache", after=after)
        await self._backend.close(after=after)

    async def leave(self) -> None:
        """`Backend.leave`."""
        await self._backend.leave()

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
        """Run a script and return its reply. For `writes`, `earlier` and the errors see `Backend.send`.

        `is_large`: the size of the reply depends on the caller's data. A replica runs only scripts that read.
        """
        if not self._laid_out:
            await self._check_layout(writes=call.script.name in BEGINNING)
        request = self._script_request(call)
        request.lane = Lane.LARGE if is_large else Lane.SMALL
        request.replica = self._asks_replicas and not writes
        return (await self._backend.send(request, writes=writes, earlier=earlier))[0]

    async def run_durably(
        self, call: commands.calls.ScriptCall, durability: Durability | None, earlier: Earlier | None = None
    ) -> tuple[Any, bool | None]:
        """Run a script that writes; return its reply, and whether the server confirmed `durability` in time.

        The wait is part of the same round trip. A refusal to wait is logged once.
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
        if isinstance(waited, Exception) and str(waited) not in self._logged:
            self._logged.add(str(waited))
            log.warning("commits are applied, but the server refused %s, so durable is False: %s", wait[0], waited)
        return reply, commands.durability.wait_reply(durability, waited)

    async def confirm(self, keys: SessionKeys, durability: Durability) -> bool:
        """Whether the server confirms `durability` for what earlier calls wrote to a session.

        WAIT covers only the writes of its own connection, so a write that changes nothing precedes it. False if the
        session does not exist, because then nothing can be written.
        """
        call = commands.durability.mark_call(keys)
        try:
            reply, durable = await self.run_durably(call, durability)
        except (BackendError, OutcomeUnknown):
            log.warning("the durability of a write to session %r is unknown", keys.session_id, exc_info=True)
            return False
        return commands.calls.status(call, reply, keys) == "marked" and durable is True

    def _script_request(self, call: commands.calls.ScriptCall) -> Request:
        command = ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        return Request([command], call.keys[0], script=call.script, may_send_text=self.options.allow_eval)

    async def read(
        self, trip: Sequence[commands.calls.Command], *, atomic: bool, faults: bool = False, is_small: bool = False
    ) -> list[Any]:
        """Send native commands that read, and return their replies. For `faults` and the errors see `check_types`.

        `is_small`: the size of the replies does not depend on the caller's data.
        """
        if not trip:
            return []
        if not self._laid_out:
            await self._check_layout(writes=False)
        lane = Lane.SMALL if is_small else Lane.LARGE
        request = Request(trip, first_key(trip), lane=lane, atomic=atomic, replica=self._asks_replicas)
        return check_types(trip, await self._backend.send(request), faults=faults)

    async def listener(self, key: str, *, again: bool = False) -> Listener:
        """`Backend.listener`."""
        return await self._backend.listener(key, again=again)

    def scan(self, count: int) -> AsyncIterator[list[bytes]]:
        """Scan every key of the namespace's shards, see `Backend.scan`. For maintenance only."""
        return self._backend.scan(f"lash2:{{{self.layout.namespace}:*", count)

    async def _check_layout(self, *, writes: bool) -> None:
        """Compare the stored layout with this client's; the first write stores it.

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
            reason = f"expected the layout {value!r}, got {found!r}; pass the StoreOptions.shards it is stored with"
            raise LayoutMismatch(self.layout.namespace, reason)
        self._laid_out = True

    # Blobs

    async def collect(self, shard: ShardKeys) -> int:
        """Delete the blobs of a shard that no session holds and whose grace period is over; return how many.

        It also removes entries of expired sessions from the catalogue. Two round trips, one to read and one to delete,
        for every 500 blobs or 100 entries.
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
        """Return the bytes of those `refs` that this process has, and the other refs."""
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
        self, keys: SessionKeys, refs: Sequence[BlobRef], contents: Sequence[bytes | Corrupt | None]
    ) -> dict[str, bytes]:
        """Verify and cache blobs just read, and return their bytes by ref.

        Raises:
            Corrupt, SessionEvicted: one of them is missing or damaged.
        """
        taken: dict[str, bytes] = {}
        for ref, content in zip(refs, contents, strict=True):
            key = keys.blob(ref)
            if content is None:
                raise SessionEvicted("blob", key, "is missing, but the head names it")
            if isinstance(content, Corrupt):
                raise content
            taken[ref] = decode_blob(ref, content, key)
            self.cached.put(ref, taken[ref])
            self.known.add(key)
        return taken

    async def put_blob(self, data: bytes) -> BlobRef:
        flight = self.in_flight.flight()
        try:
            await flight.begin(lambda: len(data) > LARGE_BYTES)
            await flight.take(len(data))
            ref = ref_of(data)
            shard = self.layout.shard_keys(self.layout.shard_of(ref))
            call = commands.maintenance.put_blob_call(shard, ref, data, self.options)
            commands.calls.status(call, await self.run(call))
        finally:
            flight.end()
        self.cached.put(ref, data)
        return ref

    async def uploaded_blob(self, ref: str) -> bytes | None:
        """Return the bytes of a blob from this process or from the shard that `put_blob` stores it in."""
        return self.cached.get(ref) or await self._blob_in([self.layout.shard_of(ref)], ref)

    async def blob(self, ref: str) -> bytes | None:
        """Return the bytes of a blob: from this process, from the shard that `put_blob` uses, or from any shard."""
        data = await self.uploaded_blob(ref)
        return await self._blob_in(range(self.layout.shards), ref) if data is None else data

    async def _blob_in(self, shards: Sequence[int], ref: str) -> bytes | None:
        keys = [f"{self.layout.prefix(shard)}blob:{ref}" for shard in shards]
        contents = await self.read([("HGET", key, "c") for key in keys], atomic=False)
        for key, content in zip(keys, contents, strict=True):
            if content is not None:
                return decode_blob(ref, content, key)
        return None
