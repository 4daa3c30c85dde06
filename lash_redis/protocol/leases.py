"""The stored form of a lease: a field of the head. `lua/include/lease.lua` defines it."""

from __future__ import annotations

import re
from typing import Final

from lash_redis.errors import Corrupt
from lash_redis.models import LeaseInfo
from lash_redis.models.json_values import MAX_I64
from lash_redis.protocol.numbers import decode_number

_LEASE: Final = re.compile(rb"([0-9]+) ([0-9]+) (\S*) (.*)", re.DOTALL).fullmatch


def decode_lease(stored: bytes | None, key: str) -> LeaseInfo | None:
    """Decode the lease: its holder, or its last holder if it expired. None if it was released or never acquired.

    Raises:
        Corrupt: the field is unreadable; names `key`, the key of the head.
    """
    if stored is None:
        return None
    try:
        found = _LEASE(stored)
        if found is None:
            raise ValueError(f"expected generation, deadline, token and owner, got {stored[:100]!r}")
        generation, deadline = decode_number(found[1], high=MAX_I64), decode_number(found[2])
    except ValueError as error:
        raise Corrupt("head", key, f"its lease is unreadable: {error}") from error
    return LeaseInfo(found[4].decode(errors="replace"), generation, deadline / 1000) if found[3] else None
