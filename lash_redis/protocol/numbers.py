"""Stored numbers: decimal digits without sign, leading zero or blank. `lua/include/numbers.lua` accepts the same texts.

`int` accepts more than scripts do, such as `+1`, ` 2`, `0_3` and digits of other alphabets. A session that a reader
accepts and a script refuses could be read, but not written.
"""

from __future__ import annotations

import re
from typing import Final

MAX_WHOLE: Final = 10**15 - 1
"""The largest number that scripts calculate with. Lua's numbers are doubles."""

_DIGITS: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}").fullmatch


def decode_number(data: bytes, low: int = 0, high: int = MAX_WHOLE) -> int:
    """Decode a stored number from `low` to `high`.

    Raises:
        ValueError: the bytes are anything else.
    """
    number = int(data) if _DIGITS(data) else None
    if number is None or not low <= number <= high:
        raise ValueError(f"expected {low} to {high} in decimal digits, got {data[:100]!r}")
    return number
