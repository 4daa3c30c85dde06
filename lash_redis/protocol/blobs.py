"""The stored form of a blob: its bytes, compressed or not, and the ref that names them."""

from __future__ import annotations

import zlib
from hashlib import sha256
from typing import Final

from lash_redis.errors import Corrupt
from lash_redis.models import BlobRef
from lash_redis.options import BlobProfile
from lash_redis.protocol.keys import family_of


def ref_of(data: bytes) -> BlobRef:
    """Return the ref of logical bytes: their SHA-256."""
    return BlobRef(sha256(data).hexdigest())


MAX_BLOB_BYTES: Final = 512 * 1024 * 1024
"""The largest size of a blob's logical bytes: what one value of Redis holds.

A commit without `StoreOptions.max_commit_bytes` can store as much. Few stored bytes may expand to many, so a reader
decompresses no more.
"""


def encode_blob(data: bytes, profile: BlobProfile) -> bytes:
    """Encode a blob as one byte that names the encoding, then the content.

    `0` is followed by the bytes themselves, `1` by a zlib stream. The stream is used only if it is shorter, and for at
    most `MAX_BLOB_BYTES`.
    """
    if profile.value is not None and profile.value <= len(data) <= MAX_BLOB_BYTES:
        packed = zlib.compress(data, 1)
        if len(packed) < len(data):
            return b"\1" + packed
    return b"\0" + data


def decode_blob(ref: str, content: bytes, key: str) -> bytes:
    """Decode a stored blob and verify it against its ref.

    Raises:
        Corrupt: the content does not decode to at most `MAX_BLOB_BYTES`, or does not hash to `ref`; names `key`.
    """
    if content[:1] == b"\1":
        data = _inflated(content[1:], key)
    elif content[:1] == b"\0":
        data = content[1:]
    else:
        raise Corrupt(family_of(key), key, f"expected the encoding byte 0 or 1, got {content[:1]!r}")
    if sha256(data).hexdigest() != ref:
        raise Corrupt(family_of(key), key, "its bytes do not hash to its ref")
    return data


def _inflated(stream: bytes, key: str) -> bytes:
    """Decompress a zlib stream; raises Corrupt if it is damaged, or longer than `MAX_BLOB_BYTES`."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, MAX_BLOB_BYTES + 1)
    except zlib.error as error:
        raise Corrupt(family_of(key), key, f"its zlib stream is damaged: {error}") from error
    if len(data) > MAX_BLOB_BYTES:
        raise Corrupt(family_of(key), key, f"expected at most {MAX_BLOB_BYTES} bytes, its zlib stream has more")
    if not inflater.eof:
        raise Corrupt(family_of(key), key, "its zlib stream is damaged: incomplete or truncated stream")
    return data
