"""Free-form JSON: which values are JSON, and the path to the first one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite
from types import NoneType
from typing import Any, Final, NoReturn, Self

from lash_redis.errors import InvalidRecord

MAX_JSON_DEPTH = 256
MAX_U64 = 2**64 - 1
MIN_I64, MAX_I64 = -(2**63), 2**63 - 1


class Fault(Exception):
    """A value that its field does not accept. Each level that the fault passes prepends its step to `path`."""

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason = reason
        self.path = path

    def under(self, step: str) -> Self:
        self.path = step + self.path
        return self

    def at(self, path: str) -> InvalidRecord:
        return InvalidRecord((path + self.path).removeprefix("."), self.reason)


def refuse(value: object, wanted: str) -> NoReturn:
    raise Fault(f"expected {wanted}, got {type(value).__name__}")


def check_json(value: object, path: str) -> Any:
    """Check that a value is JSON, and return an equal value of plain types whose keys are sorted.

    JSON here is None, bool, int from -2**63 to 2**64-1, finite float, str without lone surrogates, list, and dict. The
    keys of a dict are such strings. Containers are nested at most `MAX_JSON_DEPTH` deep. An instance of a subclass,
    such as an Enum member, becomes the value of its base type that `json.dumps` writes.

    Raises:
        InvalidRecord: a value is not JSON; `field` is the path to the first such value.
    """
    try:
        return canonical(value, 1)
    except Fault as fault:
        raise fault.at(path) from None


def canonical(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        return _canonical_object(value, depth)
    if isinstance(value, list):
        return _canonical_array(value, depth)
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        whole = int.__int__(value)
        if not MIN_I64 <= whole <= MAX_U64:
            raise Fault("is an integer outside -2**63..2**64-1")
        return whole
    if isinstance(value, float):
        number = float.__float__(value)
        if not isfinite(number):
            raise Fault(f"is {number}, which is not representable in JSON")
        return number
    raise Fault(f"is not JSON: {type(value).__name__}")


def _canonical_object(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    if depth > MAX_JSON_DEPTH:
        raise Fault(f"is nested more than {MAX_JSON_DEPTH} deep")
    try:
        keys = sorted(value)  # code point order is UTF-8 byte order
    except TypeError:
        keys = list(value)
    out = {}
    for key in keys:
        if type(key) is not str:
            return _canonical_object(with_plain_keys(value), depth)
        if not key.isascii():
            plain_key(key)
        item = value[key]
        kind = type(item)
        # Most values are checked inline, because a function call for each would take longer than all other work.
        if not ((kind is str and item.isascii()) or kind in _ATOMS or (kind is int and MIN_I64 <= item <= MAX_U64)):
            try:
                item = CONTAINERS.get(kind, canonical)(item, depth + 1)
            except Fault as fault:
                raise fault.under(_step(key)) from None
        out[key] = item
    return out


def _canonical_array(value: list[Any], depth: int) -> list[Any]:
    if depth > MAX_JSON_DEPTH:
        raise Fault(f"is nested more than {MAX_JSON_DEPTH} deep")
    out = []
    for at, item in enumerate(value):
        kind = type(item)
        if not ((kind is str and item.isascii()) or kind in _ATOMS or (kind is int and MIN_I64 <= item <= MAX_U64)):
            try:
                item = CONTAINERS.get(kind, canonical)(item, depth + 1)
            except Fault as fault:
                raise fault.under(_step(at)) from None
        out.append(item)
    return out


_ATOMS: Final = frozenset({bool, NoneType})
"""Types of which every value is JSON."""

CONTAINERS: Final[dict[type, Callable[[Any, int], Any]]] = {dict: _canonical_object, list: _canonical_array}


def text_of_json(value: object) -> str | None:
    """Return a value as JSON text that `json.loads` reads as an equal value; None if there is none.

    For values that `check_json` refuses and JSON text can represent: lone surrogates, and integers beyond 64 bits.
    """
    try:
        return json.dumps(value, allow_nan=False) if _is_json(value) else None
    except (TypeError, ValueError, RecursionError):
        return None


def _is_json(value: object, depth: int = 1) -> bool:
    """Whether `json.dumps` writes the value as it is: it would also write tuples, and keys that are not strings."""
    if isinstance(value, dict | list):
        keys, values = (value, value.values()) if isinstance(value, dict) else ((), value)
        is_known = depth <= MAX_JSON_DEPTH and all(isinstance(key, str) for key in keys)
        return is_known and all(_is_json(inner, depth + 1) for inner in values)
    return value is None or isinstance(value, str | int | float)


def plain_text(value: str) -> str:
    """Return a text as a plain str. `str()` of a subclass may differ: that of an Enum member is its name."""
    text = str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Fault(f"is not valid Unicode: {error.reason} at {error.start}") from None
    return text


def plain_key(key: object) -> str:
    """Return the key of an object as a plain str."""
    if not isinstance(key, str):
        raise Fault(f"is not JSON: its key {key!r} is not a string")
    try:
        return plain_text(key)
    except Fault as fault:
        raise Fault(f"its key {str.__str__(key)!a} {fault.reason}") from None


def with_plain_keys(value: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the same items under plain keys, which must differ. Keys of a subclass may differ and have one text."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = plain_key(key)
        if name in out:
            raise Fault(f"its key {name!a} occurs twice")
        out[name] = item
    return out


def _step(key: str | int) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
