"""Lose the latest writes, like a failover to a replica that has not received them."""

from __future__ import annotations

from itertools import groupby

import redis.asyncio
from redis.crc import key_slot

Saved = dict[bytes, tuple[int, bytes]]
"""The remaining milliseconds, or 0, and the dumped value of each key."""


async def saved(client: redis.asyncio.Redis) -> Saved:
    """Every key of the database. They are read one by one, so no client may change their content meanwhile."""
    return {key: (max(0, await client.pttl(key)), await client.dump(key)) for key in await client.keys("*")}


async def fail_over(client: redis.asyncio.Redis, to: Saved) -> None:
    """Restore the keys `to` and delete all others.

    The keys of a slot are restored in one transaction, so no other client reads a mixture of them.
    """
    keys = sorted({*to, *await client.keys("*")}, key=key_slot)
    for _, of_slot in groupby(keys, key=key_slot):
        async with client.pipeline(transaction=True) as transaction:
            for key in of_slot:
                if key in to:
                    transaction.restore(key, *to[key], replace=True)
                else:
                    transaction.delete(key)
            await transaction.execute()
