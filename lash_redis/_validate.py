"""Checks of what a caller gives. Each returns the value or raises `InvalidRecord`, which names the field."""

from __future__ import annotations

import re
from typing import Any, Final, TypeGuard

from lash_redis.errors import InvalidRecord

MAX_SECONDS: Final = 100 * 365 * 86_400
"""A hundred years: no duration is longer."""
MAX_ID_BYTES: Final = 65_536
"""Bytes of an id in UTF-8."""

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def require_type(field: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidRecord(field, f"expected {kind.__name__}, got {type(value).__name__}")


def require_namespace(namespace: object) -> str:
    """`namespace`, if it may stand between the braces of a key and in an ACL pattern."""
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise InvalidRecord(
            "namespace",
            f"{namespace!r} is not 1 to 64 letters, digits, dots, dashes or underscores (a letter or digit first)",
        )
    return namespace


def require_id(field: str, value: object) -> str:
    """`value`, if it is a non-empty string of at most 65,536 UTF-8 bytes."""
    if not isinstance(value, str):
        raise InvalidRecord(field, f"expected a string, got {type(value).__name__}")
    if not value:
        raise InvalidRecord(field, "must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidRecord(field, f"is not valid Unicode: {error.reason}") from error
    if size > MAX_ID_BYTES:
        raise InvalidRecord(field, f"is {size} bytes long, over the limit of {MAX_ID_BYTES}")
    return value


def is_plain_id(value: object) -> bool:
    """Whether `require_id` takes a value for sure. Cheaper, and needs no name of a field; False decides nothing."""
    return type(value) is str and value.isascii() and 0 < len(value) <= MAX_ID_BYTES


def is_ref(ref: object) -> TypeGuard[str]:
    return isinstance(ref, str) and len(ref) == 64 and not ref.strip("0123456789abcdef")


def require_ref(path: str, ref: object) -> str:
    if not is_ref(ref):
        raise InvalidRecord(path, f"expected the 64 lowercase hex digits of a SHA-256, got {ref!r}")
    return ref


def _told(value: Any) -> str:
    """`value` as a message shows it; Python writes out no int of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} too long to show"


def require_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value`, if it is an int within bounds."""
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise InvalidRecord(name, f"expected a whole number, {bounds}, got {_told(value)}")
    return value


def require_callable(progress: Any) -> Any:
    """`progress`, if it can be called or is None."""
    if progress is not None and not callable(progress):
        raise InvalidRecord("progress", f"expected a function, got {type(progress).__name__}")
    return progress


def seconds_to_ms(name: str, value: Any) -> int:
    """`value` seconds as whole milliseconds, at least 1; refuses what is not a positive number of at most 100 years."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise InvalidRecord(name, f"expected seconds above 0 and at most 100 years, got {_told(value)}")
    return max(1, round(value * 1000))


def require_seconds(name: str, value: Any) -> float:
    """`value`, if it is a number of seconds from 0 to 100 years."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
        raise InvalidRecord(name, f"expected seconds, 0 to 100 years, got {_told(value)}")
    return float(value)
