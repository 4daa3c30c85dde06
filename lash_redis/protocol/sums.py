"""The sum of a log: a number for its nodes in their order, which grows and shrinks at its end in time O(nodes changed).

A node's value is the first 8 bytes of the SHA-256 of all of the node but its timestamp, as two unsigned 32-bit numbers.
The sum of a log adds the value of each node, times `2 * position + 1`, both halves modulo 2**32. The factor makes the
order of the nodes count. The head holds the sum, so a replacement has the same meaning whether it is sent whole or as
what comes behind the nodes it keeps. `lua/include/sums.lua` computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

_MODULUS: Final = 2**32
_value_of: Final = Struct(">II").unpack_from


class Sum(NamedTuple):
    """The sum of a log."""

    high: int = 0
    low: int = 0

    def plus(self, run: Run, place: int) -> Sum:
        """The sum with the nodes of `run` from position `place` on."""
        return Sum(
            (self.high + run.high + 2 * place * run.plain_high) % _MODULUS,
            (self.low + run.low + 2 * place * run.plain_low) % _MODULUS,
        )

    def minus(self, other: Sum) -> Sum:
        return Sum((self.high - other.high) % _MODULUS, (self.low - other.low) % _MODULUS)


class Run(NamedTuple):
    """Nodes in a row, wherever they stand: their sum if the first is at position 0, and their plain sum."""

    high: int = 0
    low: int = 0
    plain_high: int = 0
    plain_low: int = 0

    @classmethod
    def of(cls, parts: Iterable[bytes]) -> Run:
        """`parts`: each node without its timestamp, as `nodes.timeless_part` packs it. About 1 µs a node."""
        high = low = plain_high = plain_low = 0
        for factor, part in enumerate(parts):
            high_value, low_value = _value_of(sha256(part).digest())
            high += (2 * factor + 1) * high_value
            low += (2 * factor + 1) * low_value
            plain_high += high_value
            plain_low += low_value
        return cls(high % _MODULUS, low % _MODULUS, plain_high % _MODULUS, plain_low % _MODULUS)
