"""The stored form of a blob: its bytes, compressed or not, and the ref that names them."""

from __future__ import annotations

import zlib
from hashlib import sha256

from lash_redis.errors import Corrupt
from lash_redis.models import BlobRef
from lash_redis.options import BlobProfile
from lash_redis.protocol.keys import family_of


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256(data).hexdigest())


def encode_blob(data: bytes, profile: BlobProfile) -> bytes:
    """One byte that says how, then the bytes: `0` as they are, `1` a zlib stream (kept only where it is shorter)."""
    if profile.value is not None and len(data) >= profile.value:
        packed = zlib.compress(data, 1)
        if len(packed) < len(data):
            return b"\1" + packed
    return b"\0" + data


def decode_blob(ref: str, content: bytes, key: str) -> bytes:
    """The bytes `ref` stands for."""
    if content[:1] == b"\1":
        try:
            data = zlib.decompress(content[1:])
        except zlib.error as error:
            raise Corrupt(family_of(key), key, f"its zlib stream is damaged: {error}") from error
    elif content[:1] == b"\0":
        data = content[1:]
    else:
        raise Corrupt(family_of(key), key, f"its encoding {content[:1]!r} is unknown")
    if sha256(data).hexdigest() != ref:
        raise Corrupt(family_of(key), key, "its bytes do not hash to its ref")
    return data
