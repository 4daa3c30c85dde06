"""Encode and parse JSON in steps: an element of a long list, deep in a line, is a step of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from lash_redis.protocol.steps import Steps

DEPTH: Final = 4
"""The levels of a line that are divided: the line, its head, the graph, and the list of nodes."""
LONG: Final = 64 * 1024
"""The length of a text up to which it is one step."""

_skip_space: Final = re.compile(r"[ \t\n\r]*").match
_decoder: Final = json.JSONDecoder()


def dump(value: Any, *, is_sorted: bool = False) -> str:
    """Encode a JSON value as a text without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=is_sorted)


def dump_in_steps(value: Any, *, is_sorted: bool = False) -> Steps[str]:
    """Encode a JSON value as `dump` does."""
    parts: list[str] = []
    yield from _dump(value, parts, DEPTH, is_sorted=is_sorted)
    return "".join(parts)


def _dump(value: Any, parts: list[str], depth: int, *, is_sorted: bool) -> Steps[None]:
    if depth and isinstance(value, Mapping) and value:
        mark = "{"
        for name in sorted(value) if is_sorted else value:
            parts.append(f"{mark}{dump(name)}:")
            yield from _dump(value[name], parts, depth - 1, is_sorted=is_sorted)
            mark = ","
        parts.append("}")
    elif depth and isinstance(value, list) and value:
        mark = "["
        for each in value:
            parts.append(mark)
            yield from _dump(each, parts, depth - 1, is_sorted=is_sorted)
            mark = ","
        parts.append("]")
    else:
        parts.append(dump(value, is_sorted=is_sorted))
        yield


def parse_in_steps(text: str | bytes) -> Steps[Any]:
    """Parse a text as `json.loads` does.

    Raises:
        ValueError, RecursionError: as `json.loads` does.
    """
    if len(text) <= LONG:
        return json.loads(text)
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    value, end = yield from _parse(text, _after_space(text, 0), DEPTH)
    if _after_space(text, end) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _after_space(text: str, at: int) -> int:
    space = _skip_space(text, at)
    assert space is not None
    return space.end()


def _parse(text: str, at: int, depth: int) -> Steps[tuple[Any, int]]:
    """Parse the value at `at`; return it and the index behind it."""
    if depth and text.startswith("{", at):
        return (yield from _parse_object(text, _after_space(text, at + 1), depth - 1))
    if depth and text.startswith("[", at):
        return (yield from _parse_list(text, _after_space(text, at + 1), depth - 1))
    yield
    return _decoder.raw_decode(text, at)


def _parse_object(text: str, at: int, depth: int) -> Steps[tuple[dict[str, Any], int]]:
    found: dict[str, Any] = {}
    if text.startswith("}", at):
        return found, at + 1
    while True:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _decoder.raw_decode(text, at)
        at = _expect(text, ":", _after_space(text, at))
        found[name], at = yield from _parse(text, at, depth)
        at = _after_space(text, at)
        if text.startswith("}", at):
            return found, at + 1
        at = _expect(text, ",", at)


def _parse_list(text: str, at: int, depth: int) -> Steps[tuple[list[Any], int]]:
    found: list[Any] = []
    if text.startswith("]", at):
        return found, at + 1
    while True:
        value, at = yield from _parse(text, at, depth)
        found.append(value)
        at = _after_space(text, at)
        if text.startswith("]", at):
            return found, at + 1
        at = _expect(text, ",", at)


def _expect(text: str, mark: str, at: int) -> int:
    """Return the index of what follows a delimiter."""
    if not text.startswith(mark, at):
        raise json.JSONDecodeError(f"Expecting {mark!r} delimiter", text, at)
    return _after_space(text, at + 1)
