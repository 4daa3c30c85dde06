"""The commits into which an import divides a session of another library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

CHUNK: Final = 1000
"""Maximum number of items in one commit."""
CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Bytes of items after which a commit ends."""

Item = TypeVar("Item")


def chunks_of(items: Iterable[Item], bytes_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield the items of each commit. A larger item than `CHUNK_BYTES` is in a commit of its own."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        added = bytes_of(item)
        if chunk and (len(chunk) == CHUNK or size + added > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += added
    if chunk:
        yield chunk
