"""Checks of arguments. Each `require_` function returns the value or raises `InvalidRecord`, which names the field."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, TypeGuard

from lash_redis.errors import InvalidRecord

MAX_SECONDS: Final = 100 * 365 * 86_400
"""The longest duration in seconds: 100 years."""
MAX_ID_BYTES: Final = 65_536
"""The largest size of an id, in bytes of UTF-8."""

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def require_type(field: str, value: object, kind: type) -> None:
    """Raise `InvalidRecord` if `value` is not an instance of `kind`."""
    if not isinstance(value, kind):
        raise InvalidRecord(field, f"expected {kind.__name__}, got {type(value).__name__}")


def require_namespace(namespace: object) -> str:
    """Return a namespace that is valid in the hash tag of a key and in an ACL pattern."""
    if type(namespace) is not str or not _NAMESPACE.fullmatch(namespace):
        raise InvalidRecord(
            "namespace",
            "expected 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit, "
            f"got {namespace!r}",
        )
    return namespace


def require_id(field: str, value: object) -> str:
    """Return an id: a non-empty string of at most 65,536 bytes in UTF-8.

    A subclass of str is refused: in an f-string, an Enum member is its name, and not its value.
    """
    if type(value) is not str:
        hint = "; pass str.__str__(id), which is the text of it" if isinstance(value, str) else ""
        raise InvalidRecord(field, f"expected a string, got {type(value).__name__}{hint}")
    if not value:
        raise InvalidRecord(field, "must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidRecord(field, f"is not valid Unicode: {error.reason}") from error
    if size > MAX_ID_BYTES:
        raise InvalidRecord(field, f"expected at most {MAX_ID_BYTES} bytes of UTF-8, got {size}")
    return value


def require_ids(field: str, ids: Any) -> list[str]:
    """Return the node ids of a sequence as a list."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise InvalidRecord(field, f"expected a sequence of node ids, got {type(ids).__name__}")
    for at, node_id in enumerate(ids):
        require_id(f"{field}[{at}]", node_id)
    return list(ids)


def is_plain_id(value: object) -> bool:
    """Whether a value is an ASCII id, which `require_id` accepts.

    This check is cheaper. A value for which it is False may still be a valid id.
    """
    return type(value) is str and value.isascii() and 0 < len(value) <= MAX_ID_BYTES


def is_ref(ref: object) -> TypeGuard[str]:
    """Whether a value is a blob ref: 64 lowercase hex digits."""
    return isinstance(ref, str) and len(ref) == 64 and not ref.strip("0123456789abcdef")


def require_ref(path: str, ref: object) -> str:
    """Return a blob ref, or raise `InvalidRecord`."""
    if not is_ref(ref):
        raise InvalidRecord(path, f"expected the 64 lowercase hex digits of a SHA-256, got {ref!r}")
    return ref


def _shown(value: Any) -> str:
    """Return the text of a value for an error message. Python refuses to convert an int of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} too long to show"


def require_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return an int from `low` to `high`, both included; `high=None` for no upper bound."""
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise InvalidRecord(name, f"expected a whole number, {bounds}, got {_shown(value)}")
    return value


def require_callable(progress: Any) -> Any:
    """Return `progress`, which must be callable or None."""
    if progress is not None and not callable(progress):
        raise InvalidRecord("progress", f"expected a function, got {type(progress).__name__}")
    return progress


def seconds_to_ms(name: str, value: Any) -> int:
    """Convert seconds to whole milliseconds, at least 1. `value` must be above 0 and at most 100 years."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise InvalidRecord(name, f"expected seconds above 0 and at most 100 years, got {_shown(value)}")
    return max(1, round(value * 1000))


def require_seconds(name: str, value: Any) -> float:
    """Return a number of seconds from 0 to 100 years, as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
        raise InvalidRecord(name, f"expected seconds, 0 to 100 years, got {_shown(value)}")
    return float(value)
