"""Encode and parse JSON in steps: an element of a long list, deep in a line, is a step of its own.

The elements of two lists stay texts: the nodes and the documents of a session. Python's garbage collector does not
traverse texts. The values of 50,000 nodes are a million objects, and one pass over them holds the event loop for 0.2 s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from lash_redis.protocol.steps import Steps

DEPTH: Final = 4
"""The levels of a line that are divided: the line, its head, the graph, and the list of nodes."""
LONG: Final = 64 * 1024
"""The length of a text up to which it is one step."""

_skip_space: Final = re.compile(r"[ \t\n\r]*").match
_decoder: Final = json.JSONDecoder()


class JsonTexts(list[str]):
    """A list of JSON values, each of them as its text."""


def decoded(values: list[Any]) -> Iterator[Any]:
    """Iterate over the values of a list, and decode those of `JsonTexts`."""
    return map(json.loads, values) if isinstance(values, JsonTexts) else iter(values)


def dump(value: Any) -> str:
    """Encode a JSON value as a text without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def are_equal(value: Any, other: Any) -> bool:
    """Whether two JSON values are equal, in any order of their keys; 1, 1.0 and true are three values."""
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def dump_in_steps(value: Any) -> Steps[str]:
    """Encode a JSON value as `dump` does. It may contain `JsonTexts` above `DEPTH`."""
    parts: list[str] = []
    yield from _dump(value, parts, DEPTH)
    return "".join(parts)


def _dump(value: Any, parts: list[str], depth: int) -> Steps[None]:
    if depth and isinstance(value, Mapping) and value:
        mark = "{"
        for name in value:
            parts.append(f"{mark}{dump(name)}:")
            yield from _dump(value[name], parts, depth - 1)
            mark = ","
        parts.append("}")
    elif depth and isinstance(value, list) and value:
        mark = "["
        for each in value:
            parts.append(mark)
            if isinstance(value, JsonTexts):
                parts.append(each)
                yield
            else:
                yield from _dump(each, parts, depth - 1)
            mark = ","
        parts.append("]")
    else:
        parts.append(dump(value))
        yield


def are_equal_in_steps(value: Any, other: Any, depth: int = DEPTH) -> Steps[bool]:
    """Compare two JSON values as `are_equal` does. They may contain `JsonTexts` above `depth`."""
    if depth and isinstance(value, Mapping) and isinstance(other, Mapping):
        if value.keys() != other.keys():
            return False
        for name in value:
            if not (yield from are_equal_in_steps(value[name], other[name], depth - 1)):
                return False
        return True
    if depth and isinstance(value, list) and isinstance(other, list):
        if len(value) != len(other):
            return False
        for pair in zip(decoded(value), decoded(other), strict=True):
            if not (yield from are_equal_in_steps(*pair, depth - 1)):
                return False
        return True
    yield
    return are_equal(value, other)


def parse_in_steps(text: str | bytes, *keep: Sequence[str]) -> Steps[Any]:
    """Parse a text as `json.loads` does, except that the elements of the lists at the paths `keep` may stay texts.

    They do if the whole text is long. The text of each element is checked.

    Raises:
        ValueError, RecursionError: as `json.loads` does.
    """
    if len(text) <= LONG:
        return json.loads(text)
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    value, end = yield from _parse(text, _after_space(text, 0), DEPTH, keep)
    if _after_space(text, end) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _after_space(text: str, at: int) -> int:
    space = _skip_space(text, at)
    assert space is not None
    return space.end()


def _parse(text: str, at: int, depth: int, keep: Sequence[Sequence[str]]) -> Steps[tuple[Any, int]]:
    """Parse the value at `at`; return it and the index behind it. `keep`: the paths of the lists from here on."""
    if depth and text.startswith("{", at):
        return (yield from _parse_object(text, _after_space(text, at + 1), depth - 1, keep))
    if depth and text.startswith("[", at):
        return (yield from _parse_list(text, _after_space(text, at + 1), depth - 1, keep))
    yield
    return _decoder.raw_decode(text, at)


def _parse_object(text: str, at: int, depth: int, keep: Sequence[Sequence[str]]) -> Steps[tuple[dict[str, Any], int]]:
    found: dict[str, Any] = {}
    if text.startswith("}", at):
        return found, at + 1
    while True:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _decoder.raw_decode(text, at)
        at = _expect(text, ":", _after_space(text, at))
        below = [path[1:] for path in keep if path and path[0] == name]
        found[name], at = yield from _parse(text, at, depth, below)
        at = _after_space(text, at)
        if text.startswith("}", at):
            return found, at + 1
        at = _expect(text, ",", at)


def _parse_list(text: str, at: int, depth: int, keep: Sequence[Sequence[str]]) -> Steps[tuple[list[Any], int]]:
    keeps_texts = any(not path for path in keep)
    found: list[Any] = JsonTexts() if keeps_texts else []
    if text.startswith("]", at):
        return found, at + 1
    while True:
        start = at
        value, at = yield from _parse(text, at, depth, ())
        found.append(text[start:at] if keeps_texts else value)
        at = _after_space(text, at)
        if text.startswith("]", at):
            return found, at + 1
        at = _expect(text, ",", at)


def _expect(text: str, mark: str, at: int) -> int:
    """Return the index of what follows a delimiter."""
    if not text.startswith(mark, at):
        raise json.JSONDecodeError(f"Expecting {mark!r} delimiter", text, at)
    return _after_space(text, at + 1)
