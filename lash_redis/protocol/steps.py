"""Long work without I/O, divided into steps. Between two steps a caller can let other tasks run."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Final, TypeAlias, TypeVar

Result = TypeVar("Result")
Item = TypeVar("Item")

Steps: TypeAlias = Generator[None, None, Result]
"""A generator that yields None after each step, and returns the result."""

STEP_ITEMS: Final = 64
"""The largest number of small items, such as links or numbers, in one step. A node is a step of its own."""


def at_once(steps: Steps[Result]) -> Result:
    """Do all steps without a pause, and return the result."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: Result = end.value
        return result


def chunks(items: Iterable[Item], size: int = STEP_ITEMS) -> Iterator[list[Item]]:
    """Divide items into lists of at most `size`, for one step each."""
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
