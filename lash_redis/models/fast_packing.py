"""How free-form JSON is packed: in C where ormsgpack and msgspec are installed (the extra `fast`), else by a walk.

A function of this module returns None for a value that it does not decide on. The caller then checks the value with
`check_json` and packs it with msgpack, so stored bytes and refusals are the same with and without the extra.
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
        """None: without the extra the caller decides on every value."""
        return None

    def fragment_of(value: object) -> object | None:
        """None, likewise."""
        return None

    def pack_record(tree: object) -> bytes | None:
        """None, likewise."""
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
    """Refuse whatever is not exactly of a type that MessagePack has."""

    _encode: Final = Encoder().encode

    def pack_json(value: object) -> bytes | None:
        """MessagePack of a JSON value with sorted keys; None if the value is unusual, whether it is JSON or not.

        Unusual are integers beyond 64 bits, keys that are not strings, lone surrogates, NaN, infinities, more than 255
        levels, and every type but dict, list, str, int, float, bool and None; subclasses included.
        """
        try:
            data = packb(value, None, _STRICT | OPT_SORT_KEYS)
            _encode(value)  # refuses ormsgpack's own Ext and Fragment, which packb always takes
        except TypeError:
            return None
        if (0xC4 in data or 0xC5 in data or 0xC6 in data) and not _has_json_types(value):
            return None
        return None if 0xCB in data and _may_hold_non_finite(data) else data

    def fragment_of(value: object) -> object | None:
        """`pack_json` of a value, to stand for it in what `pack_record` takes; None where that is None."""
        data = pack_json(value)
        try:
            return None if data is None else Fragment(data)
        except ValueError:  # Fragment checks what it is given, and takes a level less than packb
            return None

    def pack_record(tree: object) -> bytes | None:
        """MessagePack of a checked record with its keys in their order; None if a value in it is unusual."""
        try:
            return packb(tree, None, _STRICT)
        except TypeError:
            return None


_may_hold_non_finite: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search
"""Match a float of MessagePack whose exponent is all ones. Text and lengths may look like one; that costs a walk."""

_JSON_TYPES: Final = frozenset({dict, list, str, int, float, bool, NoneType})


def _has_json_types(value: object) -> bool:
    """Whether a value and all that it holds are exactly of the types of JSON. It must not hold itself.

    Tells byte strings, which packb always takes, from text whose UTF-8 holds the bytes by which they begin. Level by
    level the work is done in C and takes twice as long as packing.
    """
    level = [value]
    while level:
        if not _JSON_TYPES.issuperset(map(type, level)):
            return False
        level = get_referents(*level)
    return True
