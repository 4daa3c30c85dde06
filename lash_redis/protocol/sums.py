"""The sum of a log: a checksum of its nodes in their order, which can be updated in O(nodes appended or dropped).

A node's value is the first 8 bytes of a SHA-256, as two unsigned 32-bit numbers. The SHA-256 covers all of the node
except its timestamp. The sum of a log adds the value of each node times `2 * position + 1`, both halves modulo 2**32.
The factor makes the sum depend on the order of the nodes. The head stores the sum, so a replacement has the same
meaning whether the client sends the whole graph or only the nodes behind those it keeps. `lua/include/sums.lua`
computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

from lash_redis.protocol.steps import Steps, chunks

_MODULUS: Final = 2**32
_value_of: Final = Struct(">II").unpack_from


class Sum(NamedTuple):
    """The sum of a log, in two halves of 32 bits."""

    high: int = 0
    low: int = 0

    def plus(self, run: Run, place: int) -> Sum:
        """Add the nodes of `run`, the first of them at position `place`."""
        return Sum(
            (self.high + run.high + 2 * place * run.plain_high) % _MODULUS,
            (self.low + run.low + 2 * place * run.plain_low) % _MODULUS,
        )

    def minus(self, other: Sum) -> Sum:
        """Subtract the share of some nodes, computed at the positions they have in the log."""
        return Sum((self.high - other.high) % _MODULUS, (self.low - other.low) % _MODULUS)


class Run(NamedTuple):
    """The sums of consecutive nodes, from which the sum at any position follows.

    `high` and `low` are their sum if the first node is at position 0. The plain halves add the values without a factor.
    """

    high: int = 0
    low: int = 0
    plain_high: int = 0
    plain_low: int = 0

    @classmethod
    def of(cls, parts: Iterable[bytes]) -> Run:
        """Compute the sums of nodes, each given as its `nodes.timeless_part`. About 1 µs for each node."""
        high = low = plain_high = plain_low = 0
        for factor, part in enumerate(parts):
            high_value, low_value = _value_of(sha256(part).digest())
            high += (2 * factor + 1) * high_value
            low += (2 * factor + 1) * low_value
            plain_high += high_value
            plain_low += low_value
        return cls(high % _MODULUS, low % _MODULUS, plain_high % _MODULUS, plain_low % _MODULUS)

    @classmethod
    def of_in_steps(cls, parts: Iterable[bytes]) -> Steps[Run]:
        """Compute the sums as `of` does, in steps."""
        run, count = cls(), 0
        for chunk in chunks(parts):
            run = run.followed_by(cls.of(chunk), count)
            count += len(chunk)
            yield
        return run

    def followed_by(self, run: Run, count: int) -> Run:
        """Return the sums of these nodes, of which there are `count`, and of the nodes of `run` behind them."""
        high, low = Sum(self.high, self.low).plus(run, count)
        return Run(
            high, low, (self.plain_high + run.plain_high) % _MODULUS, (self.plain_low + run.plain_low) % _MODULUS
        )
