"""The maintenance of one session: hide nodes, free them, and collect the blobs of its shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lash_redis.errors import BackendError
from lash_redis.models import GcReport, TombstoneReport, VacuumReport
from lash_redis.options import Durability
from lash_redis.protocol import commands
from lash_redis.protocol.commands.maintenance import TOMBSTONE_CHUNK
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.reader import MAX_ATTEMPTS, Reader
from lash_redis.transport.failures import Earlier
from lash_redis.transport.turns import in_turns


class Maintenance:
    """`RedisSessionStore` documents each method."""

    def __init__(self, namespace: Namespace, reader: Reader) -> None:
        self._namespace = namespace
        self._reader = reader
        self._keys = reader.keys

    async def tombstone(self, ids: Sequence[str], durability: Durability | None) -> TombstoneReport:
        count, durable = 0, None if durability is None else True
        for at in range(0, len(ids), TOMBSTONE_CHUNK):
            call = commands.maintenance.tombstone_call(self._keys, ids[at : at + TOMBSTONE_CHUNK])
            with continuing(at, f"of {len(ids)} ids were hidden"):
                reply, confirmed = await self._run_durably(call, durability)
            count += reply[2]
            durable = durable and confirmed
        return TombstoneReport(count, durable)

    async def _run_durably(
        self, call: commands.calls.ScriptCall, durability: Durability | None
    ) -> tuple[list[Any], bool | None]:
        """Run `tombstone.lua`. If this attempt hid nothing, confirm what earlier attempts wrote."""
        earlier = Earlier()
        reply, durable = await self._namespace.run_durably(call, durability, earlier)
        commands.calls.status(call, reply, self._keys)
        if durability is not None and (earlier.maybe_applied or reply[2] == 0):
            durable = await self._namespace.confirm(self._keys, durability)
        return reply, durable

    async def vacuum(self) -> VacuumReport:
        removed, left, fruitless = 0, 1, 0
        while left:
            with continuing(removed, "nodes were freed"):
                if fruitless == MAX_ATTEMPTS:
                    session = repr(self._keys.session_id)
                    raise BackendError(f"session {session} changed during each of {MAX_ATTEMPTS} reads; retry later")
                replies = await self._namespace.read(commands.vacuum.tombstones_read(self._keys), atomic=False)
            found = await in_turns(commands.vacuum.tombstones_reply(self._keys, replies))
            freed, left = await self._free(found, removed)
            removed += freed
            fruitless = 0 if freed else fruitless + 1
        return VacuumReport(removed_node_count=removed)

    async def _free(self, found: commands.vacuum.Tombstones, removed: int) -> tuple[int, int]:
        """Free tombstones until the log is another than the one that was read. Return how many, and how many are left.

        `removed` is the number of those that were freed before.
        """
        freed = at = 0
        while True:
            call = commands.vacuum.call(self._keys, found, at)
            with continuing(removed + freed, "nodes were freed"):
                reply = await self._namespace.run(call)
                if commands.calls.status(call, reply, self._keys) == "moved":
                    return freed, 1
            count, left, done = reply[2:]
            freed, at = freed + count, at + done
            if not left or at >= len(found.places):
                return freed, left

    async def collect(self) -> GcReport:
        head = await self._reader.head()
        return GcReport(
            root_count=0 if head is None else 1,
            retained_blob_count=0 if head is None else 1 + len(set(filter(None, head.components.refs))),
            deleted_blob_count=await self._namespace.collect(self._keys.shard),
        )
