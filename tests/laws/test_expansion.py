"""Stored bytes that claim to be small expand to a bounded size, or are damage that names the key."""

from __future__ import annotations

import tracemalloc
import zlib
from hashlib import sha256

import msgpack
import pytest

from lash_redis import (
    BlobProfile,
    Corrupt,
    FullGraph,
    HydratedSessionCheckpoint,
    RuntimeCommit,
    SessionCache,
    StoreOptions,
)
from lash_redis.protocol import blobs
from lash_redis.protocol.nodes import decode_node, decode_node_accessed
from lash_redis.protocol.unpacking import UNREADABLE, unpack, unpack_node, unpack_node_lazily
from tests.support.breaking import Python, broken_by

LIMIT = 100_000
PREFIX = b"lash2:{laws:0}:"


def _without_limit(_: object) -> object:
    return lambda stream, key: zlib.decompress(stream)


WITHOUT_LIMIT = Python("protocol.blobs:_inflated", _without_limit, "decompresses without a limit")


@broken_by(WITHOUT_LIMIT)
async def test_a_blob_that_expands_beyond_the_limit_is_damage(open_cache, client):
    """The bomb hashes to its ref, so that only its size is wrong."""
    data = bytes(50 * LIMIT)
    ref = sha256(data).hexdigest()
    key = PREFIX + b"blob:" + ref.encode()
    cache = open_cache(shards=1)
    await client.hset(key, "c", b"\1" + zlib.compress(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "MAX_BLOB_BYTES", LIMIT)
        tracemalloc.start()
        try:
            with pytest.raises(Corrupt, match="expected at most 100000 bytes") as caught:
                await cache.get_blob(ref)
            assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
        finally:
            tracemalloc.stop()
    assert caught.value.key == key.decode()


@broken_by(WITHOUT_LIMIT)
async def test_a_private_component_that_expands_beyond_the_limit_is_damage(open_cache, client):
    store = open_cache(shards=1).session("chat")
    await store.commit_runtime_state(
        RuntimeCommit("chat", checkpoint=HydratedSessionCheckpoint(execution_state=b"small"))
    )
    await client.hset(PREFIX + b"state:chat", "x", b"\1" + zlib.compress(bytes(50 * LIMIT)))
    read = await store.load_session(FullGraph())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "MAX_BLOB_BYTES", LIMIT)
        with pytest.raises(Corrupt, match="expected at most 100000 bytes"):
            assert read.checkpoint.execution_state


async def test_bytes_beyond_the_limit_are_stored_without_compression_and_can_be_read(server, monkeypatch):
    monkeypatch.setattr(blobs, "MAX_BLOB_BYTES", LIMIT)
    cache = SessionCache(server.client(), "laws", options=StoreOptions(blob_profile=BlobProfile.BALANCED))
    for size in (LIMIT, LIMIT + 1):
        ref = await cache.put_blob(bytes(size))
        assert await SessionCache(server.client(), "laws").get_blob(ref) == bytes(size)


def test_the_limit_is_the_size_of_a_value_of_redis():
    assert blobs.MAX_BLOB_BYTES == 512 * 1024 * 1024


CLAIMS = {
    "an array of 2**32 items": b"\xdd\xff\xff\xff\xff",
    "a map of 2**32 items": b"\xdf\xff\xff\xff\xff",
    "text of 2**32 bytes": b"\xdb\xff\xff\xff\xff",
    "bytes of 2**32 bytes": b"\xc6\xff\xff\xff\xff",
    "an extension of 2**32 bytes": b"\xc9\xff\xff\xff\xff\1",
    "a million levels": b"\x91" * 1_000_000,
    "a million levels of maps": b"\x81\xa1a" * 1_000_000,
    "large arrays in large arrays": b"\xdd\x00\x0f\x42\x40" * 10_000,
}
"""MessagePack that declares much and contains little."""


@pytest.mark.parametrize("name", CLAIMS)
def test_messagepack_that_declares_more_than_it_has_is_unreadable(name):
    data = CLAIMS[name]
    node = b"\x96\xa1a\xc0\xc0" + data + b"\xa1t\xce\0\0\0\0"
    for read, bytes_ in ((unpack, data), (msgpack.unpackb, data), (unpack_node, node), (unpack_node_lazily, node)):
        with pytest.raises(UNREADABLE):
            read(bytes_)
    for decode in (decode_node, decode_node_accessed):
        with pytest.raises(Corrupt):
            assert decode(node, "log", 0).event()
