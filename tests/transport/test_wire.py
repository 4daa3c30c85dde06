"""Commands of every size are packed to the same bytes, and invalid arguments are refused."""

from __future__ import annotations

from typing import Any

import pytest

from lash_redis.transport.wire import pack

SIZES = pytest.mark.parametrize("size", [1, 64 * 1024, 64 * 1024 + 1, 1_000_000])


@SIZES
@pytest.mark.parametrize(
    ("argument", "sent"),
    [
        (b"a\r\n", b"$3\r\na\r\n\r\n"), (b"", b"$0\r\n\r\n"), ("\u00e9", b"$2\r\n\xc3\xa9\r\n"), (5, b"$1\r\n5\r\n"),
        (-(2**63), b"$20\r\n-9223372036854775808\r\n"), (0.1, b"$3\r\n0.1\r\n"), (1e22, b"$5\r\n1e+22\r\n"),
        (memoryview(b"view"), b"$4\r\nview\r\n"),
    ],
)  # fmt: skip
def test_an_argument_is_packed_to_the_same_bytes_next_to_arguments_of_every_size(
    argument: Any, sent: bytes, size: int
) -> None:
    large = b"x" * size
    expected = b"*3\r\n$3\r\nSET\r\n%b$%d\r\n%b\r\n" % (sent, size, large)
    assert pack([("SET", argument, large)]) == expected
    assert pack([("SET", argument, large)] * 2) == expected * 2


@SIZES
@pytest.mark.parametrize("argument", [None, True, [], object(), bytearray(b"a")])
def test_an_invalid_argument_is_refused_next_to_arguments_of_every_size(argument: Any, size: int) -> None:
    """Otherwise its `repr` would be stored."""
    with pytest.raises(TypeError):
        pack([("SET", argument, b"x" * size)])
