"""The stored form of the usage ledger: one field of the head for each source and model."""

from __future__ import annotations

from collections.abc import Iterable

from lash_redis.errors import Corrupt
from lash_redis.models import TokenLedgerEntry, TokenUsage
from lash_redis.models.json_values import MAX_I64, MIN_I64
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.packing import pack
from lash_redis.protocol.unpacking import UNREADABLE, unpack


def ledger_field(entry: TokenLedgerEntry) -> bytes:
    """Return the name of a ledger row's field in the head: `u` and the MessagePack of `[source, model]`."""
    return b"u" + pack([entry.source, entry.model], "usage_deltas")


def ledger_key(field: bytes) -> tuple[str, str]:
    """Decode the `(source, model)` of a field that `ledger_field` named."""
    source, model = unpack(field[1:])
    return source, model


def decode_ledger(head: Iterable[tuple[bytes, bytes]], key: str) -> tuple[TokenLedgerEntry, ...]:
    """Decode the ledger from the fields of a head, its rows in the order in which commits added them.

    Raises:
        Corrupt: a row or the order of the rows is unreadable; names `key`, the key of the head.
    """
    rows: list[tuple[int, TokenLedgerEntry]] = []
    for field, value in head:
        if field[:1] != b"u":
            continue
        try:
            source, model = ledger_key(field)
            order, *counters = value.split(b" ")
            if len(counters) != 4:
                raise ValueError(f"expected four counters, got {len(counters)}")
            usage = TokenUsage(*(decode_number(counter, MIN_I64, MAX_I64) for counter in counters))
            rows.append((decode_number(order), TokenLedgerEntry(source, model, usage)))
        except UNREADABLE as error:
            raise Corrupt("ledger", key, f"row {field[:100]!r} is unreadable: {value[:100]!r}") from error
    rows.sort(key=lambda row: row[0])
    if [order for order, _ in rows] != list(range(len(rows))):
        raise Corrupt("ledger", key, "the order of its rows is unreadable")
    return tuple(entry for _, entry in rows)
