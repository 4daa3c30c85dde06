"""MessagePack is unpacked to the same values with and without msgspec."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lash_redis.protocol import unpacking

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(scope="module", params=["msgspec", "msgpack"])
def reading(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The unpacking module with msgspec, and without it."""
    if request.param == "msgspec":
        yield unpacking
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "msgspec", None)
        patch.delitem(sys.modules, unpacking.__name__)
        without = importlib.import_module(unpacking.__name__)
        assert without.unpack is msgpack.unpackb
        yield without


@pytest.mark.slow
@given(value=JSON, data=st.binary())
def test_packed_values_unpack_unchanged(reading: ModuleType, value: Any, data: bytes) -> None:
    unpacked = reading.unpack(msgpack.packb([value, data]))
    assert repr(unpacked) == repr([value, data])


@given(data=st.binary())
def test_arbitrary_bytes_unpack_or_are_reported_as_unreadable(reading: ModuleType, data: bytes) -> None:
    try:
        reading.unpack(data)
    except reading.UNREADABLE:
        return


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91", b"\xa1\xff", b"\x01\x01", b"\x91" * 100_000], ids=repr)
def test_invalid_messagepack_is_reported_as_unreadable(reading: ModuleType, data: bytes) -> None:
    with pytest.raises(reading.UNREADABLE):
        reading.unpack(data)


# A node's record


RECORD = ["id", None, None, {"text": [1, "é"]}, "then", 2**32 - 1]


@pytest.mark.parametrize("tag", [None, "notes"])
@pytest.mark.parametrize("parent", [None, "é"])
def test_the_fields_of_a_node_unpack_unchanged(reading: ModuleType, parent: str | None, tag: str | None) -> None:
    fields = ["id", parent, tag, {"text": [1, "é"]}, "then", 2**32 - 1]
    packed = msgpack.packb(fields)
    assert list(reading.unpack_node(packed)) == fields
    node_id, above, plugin, payload, timestamp, checksum = reading.unpack_node_lazily(packed)
    assert [node_id, above, plugin, reading.unpack_payload(payload), timestamp, checksum] == fields


@pytest.mark.parametrize(
    "fields",
    [
        None, 1, "sixsix", {str(key): key for key in range(6)}, [], RECORD[:5], [*RECORD, 1], RECORD[::-1],
        *(
            [*RECORD[:place], wrong, *RECORD[place + 1 :]]
            for place, kinds in enumerate((
                (None, 1, b"id", ["id"], True), (1, b"p", ["p"], {}), (1, b"t", False, {}), (), (None, 1, b"t", 1.5),
                (None, "", b"abcd", 1.0, 2.5, True),
            ))
            for wrong in kinds
        ),
    ],
    ids=repr,
)  # fmt: skip
def test_fields_that_are_not_those_of_a_node_are_reported_as_unreadable(reading: ModuleType, fields: Any) -> None:
    packed = msgpack.packb(fields)
    for unpack in (reading.unpack_node, reading.unpack_node_lazily):
        with pytest.raises(reading.UNREADABLE):
            unpack(packed)


@given(data=st.binary())
def test_arbitrary_bytes_never_unpack_to_a_node_with_fields_of_a_wrong_type(reading: ModuleType, data: bytes) -> None:
    for unpack in (reading.unpack_node, reading.unpack_node_lazily):
        try:
            *_, payload, timestamp, checksum = unpack(b"\x96" + data)
            reading.unpack_payload(payload)
        except reading.UNREADABLE:
            continue
        assert type(timestamp) is str
        assert type(checksum) is int
