"""MessagePack of JSON values and records, with the same bytes and refusals with and without the extra `fast`."""

from __future__ import annotations

from threading import local
from typing import Any, Final

import msgpack

from lash_redis.errors import InvalidRecord
from lash_redis.models import fast_packing
from lash_redis.models.json_values import check_json
from lash_redis.models.wire import Record


class _Packer(local):
    """A thread's own packer: making one takes longer than packing most values."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.pack = msgpack.Packer(strict_types=True).pack


packer: Final = _Packer()

LARGE: Final = 1024 * 1024
"""Bytes of a value from which on its packer goes with it: its buffer stays as long as that."""


def pack(value: Any, path: str) -> bytes:
    """MessagePack of `value`; what it cannot hold (an integer beyond 64 bits, a lone surrogate) is refused by name."""
    try:
        data: bytes = packer.pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(path, str(error)) from error
    if len(data) > LARGE:
        packer.renew()
    return data


def pack_json(value: Any, path: str) -> bytes:
    """MessagePack of free-form JSON with sorted keys.

    Raises:
        InvalidRecord: names the path to the first value that is not JSON.
    """
    data = fast_packing.pack_json(value)
    return pack(check_json(value, path), path) if data is None else data


def pack_record(record: Record, path: str) -> bytes:
    """MessagePack of a record: the bytes and the refusals of `pack(record.to_msgpack(path), path)`."""
    data = fast_packing.pack_record(record.to_packing(path))
    return pack(record.to_msgpack(path), path) if data is None else data
