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
    """A packer for each thread, kept because creating one takes longer than packing most values."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Replace the packer, to free its buffer."""
        self.pack = msgpack.Packer(strict_types=True).pack


packer: Final = _Packer()

LARGE: Final = 1024 * 1024
"""Bytes. After a larger value the packer is replaced, because its buffer keeps the size of its largest value."""


def pack(value: Any, path: str) -> bytes:
    """Pack a value as MessagePack.

    Raises:
        InvalidRecord: MessagePack cannot represent the value, such as an integer beyond 64 bits or a lone surrogate.
            The error names `path`.
    """
    try:
        data: bytes = packer.pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(path, str(error)) from error
    if len(data) > LARGE:
        packer.renew()
    return data


def pack_json(value: Any, path: str) -> bytes:
    """Pack free-form JSON as MessagePack with sorted keys.

    Raises:
        InvalidRecord: names the path to the first value that is not JSON.
    """
    data = fast_packing.pack_json(value)
    return pack(check_json(value, path), path) if data is None else data


def pack_record(record: Record, path: str) -> bytes:
    """Pack a record as MessagePack: same bytes and same errors as `pack(record.to_msgpack(path), path)`, but faster."""
    data = fast_packing.pack_record(record.to_packing(path))
    return pack(record.to_msgpack(path), path) if data is None else data
