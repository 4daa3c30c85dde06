"""The stored form of pending inputs, which are fields of a head. `lua/include/inputs.lua` defines the fields.

The record of an input is 8 bytes of the SHA-256 of its id, 8 bytes of the SHA-256 of its content, and the content: the
MessagePack array `[input id, item]`, with sorted keys. The first 16 bytes are its receipt, which outlives the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

from lash_redis._validate import require_id
from lash_redis.errors import CommitTooLarge, Corrupt, InvalidRecord
from lash_redis.models import PendingInput
from lash_redis.protocol.heads import RECEIPT_BYTES, TAG_BYTES, tag_of
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.packing import pack, pack_json
from lash_redis.protocol.unpacking import UNREADABLE, unpack

MAX_PENDING_INPUTS: Final = 128
"""The largest number of pending inputs of a session, and of the inputs that one commit consumes.

As many consumed inputs are remembered. So an `enqueue_input` that is sent again after one commit never brings back an
input that this commit consumed.
"""


def require_consumed(field: str, consumes: Any) -> None:
    """Raise `InvalidRecord` or `CommitTooLarge` unless `consumes` are ids of inputs that one commit can consume."""
    if type(consumes) is tuple and not consumes:
        return
    if isinstance(consumes, str | bytes) or not isinstance(consumes, Sequence):
        raise InvalidRecord(field, f"expected a sequence of input ids, got {type(consumes).__name__}")
    if len(consumes) > MAX_PENDING_INPUTS:
        raise CommitTooLarge(
            f"the number of inputs that a commit consumes ({field})", len(consumes), MAX_PENDING_INPUTS
        )
    known = set[str]()
    for at, input_id in enumerate(consumes):
        require_id(f"{field}[{at}]", input_id)
        if input_id in known:
            raise InvalidRecord(f"{field}[{at}]", f"expected ids that differ, got {input_id!r} twice")
        known.add(input_id)


_PREFIX: Final = b"i:"
_ACCOUNT: Final = re.compile(rb"(\d+) (\d+) (\d+) (.*)", re.DOTALL).fullmatch
_INPUT: Final = re.compile(rb"(\d+) (\d+) (.*)", re.DOTALL).fullmatch


def input_field(input_id: str) -> str:
    """Return the field of the head that stores a pending input."""
    return f"i:{input_id}"


def encode_input(input_id: str, item: Any, path: str) -> bytes:
    """Encode the record of an input.

    Raises:
        InvalidRecord: the item is not JSON; names `path`.
    """
    # msgpack writes no parts of an array. The nil, one byte, reserves the place of the item.
    content = pack([input_id, None], path)[:-1] + pack_json(item, path)
    return tag_of(input_id) + sha256(content).digest()[:TAG_BYTES] + content


class _Placed(NamedTuple):
    place: int
    input: PendingInput
    size: int


def decode_record(record: bytes, key: str) -> tuple[str, Any]:
    """Verify a record, and return the id and the item of the input.

    Raises:
        Corrupt: the record is damaged; names `key`, the key of the head.
    """
    content = record[RECEIPT_BYTES:]
    if sha256(content).digest()[:TAG_BYTES] != record[TAG_BYTES:RECEIPT_BYTES]:
        raise Corrupt("head", key, "a pending input does not match its hash")
    try:
        input_id, item = unpack(content)
        if type(input_id) is not str:
            raise TypeError("its id is not a string")
    except UNREADABLE as error:
        raise Corrupt("head", key, f"a pending input is unreadable: {error}") from error
    if tag_of(input_id) != record[:TAG_BYTES]:
        raise Corrupt("head", key, f"pending input {input_id!r} has the tag of another id")
    return input_id, item


def _decode_input(name: bytes, stored: bytes, key: str) -> _Placed:
    found = _INPUT(stored)
    try:
        if found is None:
            raise ValueError(f"expected a number, a time and a record, got {stored[:100]!r}")
        place, enqueued_ms = decode_number(found[1], 1), decode_number(found[2])
    except ValueError as error:
        raise Corrupt("head", key, f"pending input {name!r} is unreadable: {error}") from error
    input_id, item = decode_record(found[3], key)
    if name != _PREFIX + input_id.encode():
        raise Corrupt("head", key, f"field {name!r} has pending input {input_id!r}")
    return _Placed(place, PendingInput(input_id, item, enqueued_ms / 1000), len(found[3]))


def decode_inputs(fields: Mapping[bytes, bytes], key: str) -> list[PendingInput]:
    """Decode the pending inputs of a head, in the order in which they were enqueued. `fields` are those of the head.

    Raises:
        Corrupt: an input is damaged, or their number or sizes are not those that the head counts; names `key`.
    """
    found = _ACCOUNT(fields.get(b"inputs", b"0 0 0 "))
    try:
        if found is None:
            raise ValueError("expected three numbers and receipts")
        total, count, size = (decode_number(found[at]) for at in (1, 2, 3))
    except ValueError as error:
        raise Corrupt("head", key, f"its account of pending inputs is unreadable: {error}") from error
    remembered = min(MAX_PENDING_INPUTS, total - count)
    if len(found[4]) != RECEIPT_BYTES * remembered:
        raise Corrupt("head", key, f"{len(found[4])} bytes of receipts of {total - count} consumed inputs")
    inputs = [_decode_input(name, stored, key) for name, stored in fields.items() if name.startswith(_PREFIX)]
    if (len(inputs), sum(each.size for each in inputs)) != (count, size):
        text = f"{len(inputs)} pending inputs, {sum(each.size for each in inputs)} bytes"
        raise Corrupt("head", key, f"{text}, the head counts {count}, {size} bytes")
    inputs.sort(key=lambda each: each.place)
    places = [each.place for each in inputs]
    if len(set(places)) < count or (places and places[-1] > total):
        raise Corrupt("head", key, f"pending inputs have the numbers {places}, of {total}")
    return [each.input for each in inputs]
