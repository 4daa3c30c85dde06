"""What a saver remembers of threads, to avoid reads. The server compares each value with what is stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, Generic, TypeVar

from lash_redis.integrations.langgraph.records import Value

MAX_THREADS: Final = 10_000
"""Maximum number of entries in each of the three mappings of a `Memory`."""

Key = TypeVar("Key")
Kept = TypeVar("Kept")


class Recent(Generic[Key, Kept]):
    """A mapping that keeps the entries used last. Threads may share it."""

    def __init__(self, limit: int = MAX_THREADS) -> None:
        self._limit = limit
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> Kept | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Key, value: Kept) -> None:
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)

    def forget(self, key: Key) -> None:
        with self._lock:
            self._kept.pop(key, None)


@dataclass(frozen=True, slots=True)
class Known:
    """A checkpoint that this process stored or loaded."""

    versions: Mapping[str, Any]
    """The version of each channel."""
    values: Mapping[str, Value]
    """The stored value of each channel."""
    run: str | None = None
    """The run that stored it in this process; None if it was loaded."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The checkpoints and pointers that a saver has seen last."""

    checkpoints: Recent[tuple[str, str, str], Known] = field(default_factory=Recent)
    """By thread, namespace and checkpoint id."""
    pointers: Recent[tuple[str, str], bytes | None] = field(default_factory=Recent)
    """The pointer by thread and namespace; None for none."""
    empty: Recent[tuple[str, str], bool] = field(default_factory=Recent)
    """The threads and namespaces that were loaded when they had no checkpoint."""
