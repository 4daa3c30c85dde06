"""Fast packing of free-form JSON, in C if ormsgpack and msgspec are installed (the extra `fast`).

A function of this module returns None for a value that it cannot pack or cannot judge. The caller then checks the
value with `check_json` and packs it with msgpack. So stored bytes and errors are the same with and without the extra.
"""

from __future__ import annotations

import re
from gc import get_referents
from types import NoneType
from typing import Final

try:
    from msgspec.msgpack import Encoder
    from ormsgpack import (
        OPT_PASSTHROUGH_DATACLASS,
        OPT_PASSTHROUGH_DATETIME,
        OPT_PASSTHROUGH_ENUM,
        OPT_PASSTHROUGH_SUBCLASS,
        OPT_PASSTHROUGH_TUPLE,
        OPT_PASSTHROUGH_UUID,
        OPT_SORT_KEYS,
        Fragment,
        packb,
    )
except ImportError:

    def pack_json(value: object) -> bytes | None:
        """Return None: without the extra, the caller checks and packs every value."""
        return None

    def fragment_of(value: object) -> object | None:
        """Return None, as `pack_json` does."""
        return None

    def pack_record(tree: object) -> bytes | None:
        """Return None, as `pack_json` does."""
        return None

else:
    _STRICT: Final = (
        OPT_PASSTHROUGH_DATACLASS
        | OPT_PASSTHROUGH_DATETIME
        | OPT_PASSTHROUGH_ENUM
        | OPT_PASSTHROUGH_SUBCLASS
        | OPT_PASSTHROUGH_TUPLE
        | OPT_PASSTHROUGH_UUID
    )
    """Options by which ormsgpack refuses every value that is not exactly of a type that MessagePack has."""

    _encode: Final = Encoder().encode

    def pack_json(value: object) -> bytes | None:
        """Pack a JSON value with sorted keys; return None if the value is unusual, whether it is JSON or not.

        Unusual are integers beyond 64 bits, keys that are not strings, lone surrogates, NaN, infinities and more than
        255 levels. So is every type except dict, list, str, int, float, bool and None; subclasses are unusual, too.
        """
        try:
            data = packb(value, None, _STRICT | OPT_SORT_KEYS)
            _encode(value)  # refuses Ext and Fragment of ormsgpack, which packb always accepts
        except TypeError:
            return None
        if (0xC4 in data or 0xC5 in data or 0xC6 in data) and not _has_json_types(value):
            return None
        return None if 0xCB in data and _may_hold_non_finite(data) else data

    def fragment_of(value: object) -> object | None:
        """Pack a value with `pack_json`, as a part of a tree for `pack_record`; return None where that is None."""
        data = pack_json(value)
        try:
            return None if data is None else Fragment(data)
        except ValueError:  # Fragment accepts one level less than packb
            return None

    def pack_record(tree: object) -> bytes | None:
        """Pack a checked record, its keys in their given order; return None if a value in it is unusual."""
        try:
            return packb(tree, None, _STRICT)
        except TypeError:
            return None


_may_hold_non_finite: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search
"""Match a MessagePack float whose exponent is all ones. Text and lengths may match, too, which only costs time."""

_JSON_TYPES: Final = frozenset({dict, list, str, int, float, bool, NoneType})


def _has_json_types(value: object) -> bool:
    """Whether a value and everything in it are exactly of the types of JSON. The value must not contain itself.

    This finds byte strings, which packb always accepts. A search in the packed bytes cannot, because text may contain
    the bytes that begin a byte string. Each level is checked in C; the check takes twice as long as packing.
    """
    level = [value]
    while level:
        if not _JSON_TYPES.issuperset(map(type, level)):
            return False
        level = get_referents(*level)
    return True
