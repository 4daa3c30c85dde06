"""Records have the same checksum with and without ISA-L."""

from __future__ import annotations

import importlib
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lash_redis.protocol import checksums


@pytest.mark.parametrize(("data", "expected"), [(b"", 0), (b"123456789", 0xCBF43926), (b"\0" * 4, 0x2144DF1C)])
def test_a_checksum_is_the_crc_32_of_zlib_and_ethernet(data: bytes, expected: int) -> None:
    assert checksums.crc32(data) == expected


@given(st.binary(max_size=3000), st.binary(), st.integers(0, 2**32 - 1))
def test_checksums_of_arbitrary_bytes_equal_those_of_zlib(data: bytes, more: bytes, start: int) -> None:
    assert checksums.crc32(data) == zlib.crc32(data)
    assert checksums.crc32(data, start) == zlib.crc32(data, start)
    assert checksums.crc32(more, checksums.crc32(data)) == zlib.crc32(data + more)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 1023, 1024, 1025, 65_535, 1_000_003])
def test_checksums_at_every_alignment_equal_those_of_zlib(size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size + 64))
    for offset in range(33):
        assert checksums.crc32(data[offset : offset + size]) == zlib.crc32(data[offset : offset + size])


def test_zlib_computes_checksums_if_isal_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    monkeypatch.delitem(sys.modules, checksums.__name__)
    assert importlib.import_module(checksums.__name__).crc32 is zlib.crc32
