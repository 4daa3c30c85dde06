"""The smaller writes, and the look-up of one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from lash_redis import codec, scripts
from lash_redis.commands.calls import Command, ScriptCall, check_value_size, status
from lash_redis.errors import Corrupt
from lash_redis.keys import SessionKeys
from lash_redis.models import BlobRef, SessionMeta, SessionNodeRecord
from lash_redis.options import StoreOptions

TOMBSTONE_CHUNK: Final = 1000
VACUUM_CHUNK: Final = 500
GC_CHUNK: Final = 500


def tombstone_call(keys: SessionKeys, ids: Sequence[str]) -> ScriptCall:
    return ScriptCall(scripts.TOMBSTONE, [keys.head, keys.nodes, keys.dead], [keys.session_id, *ids])


def vacuum_call(keys: SessionKeys) -> ScriptCall:
    return ScriptCall(
        scripts.VACUUM, [keys.head, keys.log, keys.nodes, keys.jumps, keys.dead], [keys.session_id, VACUUM_CHUNK]
    )


def meta_call(
    keys: SessionKeys, meta: SessionMeta, mode: Literal["save", "create"], ttl_ms: int, options: StoreOptions
) -> ScriptCall:
    record = codec.encode_meta(meta)
    check_value_size("the bytes of a meta record", len(record), options)
    return ScriptCall(scripts.META, [keys.head], [keys.session_id, mode, record, ttl_ms])


def node_call(keys: SessionKeys, node_id: str) -> ScriptCall:
    return ScriptCall(scripts.NODE, [keys.head, keys.log, keys.nodes, keys.dead], [keys.session_id, node_id])


def node_reply(call: ScriptCall, keys: SessionKeys, node_id: str, reply: Any) -> SessionNodeRecord | None:
    if status(call, reply, keys) == "none":
        return None
    node = codec.decode_node(reply[2], keys.log, int(reply[3]))
    if node.node_id != node_id:
        raise Corrupt("nodes", keys.nodes, f"the entry of {node_id!r} points at {node.node_id!r}")
    return node


def put_blob_call(prefix: str, ref: BlobRef, data: bytes, options: StoreOptions) -> ScriptCall:
    return ScriptCall(
        scripts.PUT_BLOB,
        [f"{prefix}blob:{ref}", f"{prefix}orphans"],
        [ref, codec.encode_blob(data, options.blob_profile), max(1, round(options.upload_grace * 1000))],
    )


def gc_call(keys: SessionKeys, refs: Sequence[str]) -> ScriptCall:
    return ScriptCall(scripts.GC, [keys.orphans, *(keys.blob(ref) for ref in refs)], [keys.session_id, *refs])


def orphan_read(keys: SessionKeys) -> list[Command]:
    return [("ZRANGE", keys.orphans, 0, GC_CHUNK - 1)]
