"""Commands on single nodes and blobs: read, hide and free nodes; store and collect blobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lash_redis._validate import seconds_to_ms
from lash_redis.errors import Corrupt
from lash_redis.models import BlobRef, SessionNodeRecord
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.blobs import encode_blob
from lash_redis.protocol.commands.calls import Command, ScriptCall, status
from lash_redis.protocol.keys import SessionKeys, ShardKeys
from lash_redis.protocol.nodes import decode_node

TOMBSTONE_CHUNK: Final = 1000
NODE_CHUNK: Final = 500
STEPS: Final = 150_000
"""The work of one script that goes to records in the middle of a log, in steps of about 50 ns.

A script stops when it has done that much, and the next one continues. So it holds the server for about 10 ms.
"""
GC_CHUNK: Final = 500
EXPIRED_CHUNK: Final = 100
"""Maximum number of catalogue entries of expired sessions that one script drops (`lua/include/cataloguing.lua`)."""


def tombstone_call(keys: SessionKeys, ids: Sequence[str]) -> ScriptCall:
    return ScriptCall(scripts.TOMBSTONE, keys.own, [keys.session_id, keys.access, *ids])


def nodes_call(keys: SessionKeys, ids: Sequence[str]) -> ScriptCall:
    return ScriptCall(scripts.NODE, keys.own, [keys.session_id, keys.access, STEPS, *ids])


def nodes_reply(call: ScriptCall, keys: SessionKeys, ids: Sequence[str], reply: Any) -> list[SessionNodeRecord | None]:
    """Decode the nodes of the first ids, at least of one; None for an id without a live node.

    The script stops when it has done enough work, so that the caller asks again for the other ids. Raises Corrupt if a
    record is damaged.
    """
    status(call, reply, keys)
    _, _, *found = reply
    nodes = [
        decode_node(record, keys.log, int(position)) if record else None
        for position, record in zip(found[::2], found[1::2], strict=True)
    ]
    for node_id, node in zip(ids, nodes, strict=False):
        if node is not None and node.node_id != node_id:
            raise Corrupt("nodes", keys.nodes, f"the entry of {node_id!r} points at {node.node_id!r}")
    return nodes


def put_blob_call(shard: ShardKeys, ref: BlobRef, data: bytes, options: StoreOptions) -> ScriptCall:
    return ScriptCall(
        scripts.PUT_BLOB,
        [shard.blob(ref), shard.orphans],
        [
            ref,
            encode_blob(data, options.blob_profile),
            seconds_to_ms("options.upload_grace", options.upload_grace),
        ],
    )


def orphan_read(shard: ShardKeys) -> list[Command]:
    return [("ZRANGE", shard.orphans, 0, GC_CHUNK - 1)]


def gc_call(shard: ShardKeys, scope: str, refs: Sequence[str]) -> ScriptCall:
    """Collect the orphans `refs`. The script echoes `scope`, which identifies the reply."""
    keys = [shard.orphans, shard.sessions, shard.expiries, *map(shard.blob, refs)]
    return ScriptCall(scripts.GC, keys, [scope, *refs])


def shard_sizes_read(shard: ShardKeys) -> list[Command]:
    """Read the number of blobs that wait for gc, and the number of listed sessions."""
    return [("ZCARD", shard.orphans), ("ZCARD", shard.sessions)]
