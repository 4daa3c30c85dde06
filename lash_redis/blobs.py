"""What this process knows of blobs: the bytes it has seen, and where they are stored."""

from __future__ import annotations

from collections import OrderedDict

from lash_redis.models import BlobRef


class BlobCache:
    """Bytes by ref, least recently used first out. Right for ever: a ref is the hash of its bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._bytes: OrderedDict[str, bytes] = OrderedDict()

    def get(self, ref: str) -> bytes | None:
        data = self._bytes.get(ref)
        if data is not None:
            self._bytes.move_to_end(ref)
        return data

    def put(self, ref: str, data: bytes) -> None:
        if ref in self._bytes or len(data) > self._max_bytes // 4:
            return
        self._bytes[ref] = data
        self._size += len(data)
        while self._size > self._max_bytes:
            _, dropped = self._bytes.popitem(last=False)
            self._size -= len(dropped)


class KnownBlobs:
    """Blob keys that were stored when last seen: a commit names such a blob without sending it.

    A guess, not a truth: a script that finds the blob gone answers `missing`, and its bytes are sent after all.
    """

    LIMIT = 100_000

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self.LIMIT:
            self._keys.popitem(last=False)

    def discard(self, key: str) -> None:
        self._keys.pop(key, None)


class WrittenTools:
    """Tool states as they were written, by their fingerprint (`codec.fingerprint`), least recently used first out.

    A session has the same tools turn after turn, and so have all sessions of an app: they are encoded and hashed once.
    """

    LIMIT = 64

    def __init__(self) -> None:
        self._written: OrderedDict[bytes, tuple[BlobRef, bytes]] = OrderedDict()

    def get(self, fingerprint: bytes) -> tuple[BlobRef, bytes] | None:
        written = self._written.get(fingerprint)
        if written is not None:
            self._written.move_to_end(fingerprint)
        return written

    def put(self, fingerprint: bytes, ref: BlobRef, data: bytes) -> None:
        self._written[fingerprint] = ref, data
        if len(self._written) > self.LIMIT:
            self._written.popitem(last=False)
