"""What this process knows of blobs: the bytes it has seen, and where they are stored."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from lash_redis.models import BlobRef

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Recent(Generic[Key, Value]):
    """Values by key, least recently used first out. What would take a quarter of the room by itself is not kept."""

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
    """Bytes by ref. Right for ever: a ref is the hash of its bytes."""

    def put(self, ref: str, data: bytes) -> None:
        self._keep(ref, data, len(data))


class WrittenTools(_Recent[bytes, tuple[BlobRef, bytes]]):
    """Tool states as they were written, by their fingerprint (`components.fingerprint_of`).

    A session has the same tools turn after turn, and so have all sessions of an app: they are encoded and hashed once.
    """

    def put(self, fingerprint: bytes, ref: BlobRef, data: bytes) -> None:
        self._keep(fingerprint, (ref, data), len(fingerprint) + len(data))


class KnownBlobs:
    """Blob keys that were stored when last seen: a commit names such a blob without sending it.

    A guess, not a truth: a script that finds the blob gone answers `missing`, and its bytes are sent after all.
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
