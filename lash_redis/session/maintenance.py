"""The maintenance of one session: hide nodes, free them, and collect the blobs of its shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lash_redis.models import GcReport, TombstoneReport, VacuumReport
from lash_redis.options import Durability
from lash_redis.protocol import commands
from lash_redis.protocol.commands.maintenance import TOMBSTONE_CHUNK
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.reader import Reader
from lash_redis.transport.failures import Earlier


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
        removed, left = 0, 1
        while left:
            call = commands.maintenance.vacuum_call(self._keys)
            with continuing(removed, "nodes were freed"):
                reply = await self._namespace.run(call)
                commands.calls.status(call, reply, self._keys)
            removed, left = removed + reply[2], reply[3]
        return VacuumReport(removed_node_count=removed)

    async def collect(self) -> GcReport:
        head = await self._reader.head()
        return GcReport(
            root_count=0 if head is None else 1,
            retained_blob_count=0 if head is None else 1 + len(set(filter(None, head.components.refs))),
            deleted_blob_count=await self._namespace.collect(self._keys.shard),
        )
