"""Caches of this process for blobs: their bytes, and the keys at which they are known to be stored."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from lash_redis.models import BlobRef

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Recent(Generic[Key, Value]):
    """A cache that evicts the least recently used value. A value larger than a quarter of `max_bytes` is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def _keep(self, key: Key, value: Value, size: int) -> None:
        if key in self._kept or size > self._max_bytes // 4:
            return
        self._kept[key] = value, size
        self._size += size
        while self._size > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._size -= freed


class BlobCache(_Recent[str, bytes]):
    """The bytes of blobs, by ref. Entries never become stale, because a ref is the hash of its bytes."""

    def put(self, ref: str, data: bytes) -> None:
        self._keep(ref, data, len(data))


class WrittenTools(_Recent[bytes, tuple[BlobRef, bytes]]):
    """Encoded tool states and their refs, by fingerprint (`components.fingerprint_of`).

    The tools of a session, and of all sessions of an application, rarely change. So they are encoded and hashed once.
    """

    def put(self, fingerprint: bytes, ref: BlobRef, data: bytes) -> None:
        self._keep(fingerprint, (ref, data), len(fingerprint) + len(data))


class KnownBlobs:
    """The keys of blobs that were stored at the last access. A commit names such a blob without sending its bytes.

    An entry may be stale. Then the script answers `missing`, and the client sends the commit again with the bytes.
    """

    LIMIT = 100_000

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self.LIMIT:
            self._keys.popitem(last=False)

    def discard(self, key: str) -> None:
        self._keys.pop(key, None)
