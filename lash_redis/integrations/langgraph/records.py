"""The stored forms of checkpoints, pending writes and pointers. MessagePack, with the serialiser's bytes inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgpack

from lash_redis.errors import Corrupt
from lash_redis.integrations.langgraph import names
from lash_redis.integrations.langgraph.conflicts import Pointer

VERSION: Final = 1

Typed: TypeAlias = tuple[str, bytes]
"""A value as the serialiser writes it: the name of its form, and its bytes."""


@dataclass(frozen=True, slots=True)
class Inline:
    """A small value, in the checkpoint itself."""

    typed: Typed


@dataclass(frozen=True, slots=True)
class Blob:
    """A value in a part that is named by its hash."""

    form: str
    part: bytes


@dataclass(frozen=True, slots=True)
class Elements:
    """A list whose elements are parts: the first ones of a log, then the first ones of another log, and so on."""

    segments: tuple[tuple[bytes, int], ...]

    def parts(self) -> Iterator[bytes]:
        for log, count in self.segments:
            yield from (names.element(log, number) for number in range(count))

    @property
    def count(self) -> int:
        return sum(count for _, count in self.segments)


Value: TypeAlias = Inline | Blob | Elements


def parts_of(value: Value) -> Iterator[bytes]:
    match value:
        case Blob():
            yield value.part
        case Elements():
            yield from value.parts()


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A stored checkpoint."""

    parent: str | None
    head: Typed
    """The checkpoint without its values."""
    metadata: Typed
    values: Mapping[str, Value] = field(default_factory=dict)
    """By channel."""

    def encode(self) -> bytes:
        values = {channel: _encoded_value(value) for channel, value in self.values.items()}
        return _packed([VERSION, self.parent, *self.head, *self.metadata, values])

    @classmethod
    def decode(cls, name: bytes, content: bytes) -> CheckpointRecord:
        """Decode the checkpoint of that name. Raises Corrupt if it is damaged."""
        _, parent, form, head, metadata_form, metadata, values = _unpacked(name, content, 7)
        try:
            decoded = {channel: _decoded_value(value) for channel, value in values.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise _corrupt(name, error) from error
        return cls(parent, (form, head), (metadata_form, metadata), decoded)


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """A stored pending write."""

    task_id: str
    index: int
    channel: str
    value: Typed
    task_path: str

    def encode(self) -> bytes:
        return _packed([VERSION, self.task_id, self.index, self.channel, *self.value, self.task_path])

    @classmethod
    def decode(cls, name: bytes, content: bytes) -> WriteRecord:
        """Decode the pending write of that name. Raises Corrupt if it is damaged."""
        _, task_id, index, channel, form, data, task_path = _unpacked(name, content, 7)
        return cls(task_id, index, channel, (form, data), task_path)


def encode_pointer(ns: str, pointer: Pointer) -> bytes:
    return names.key(ns, pointer.latest) + b"\0\0" + pointer.run.encode("utf-8", "surrogatepass")


def decode_pointer(name: bytes, content: bytes) -> Pointer:
    """Decode the pointer of that name. Raises Corrupt if it is damaged."""
    key, found, run = content.partition(b"\0\0")
    try:
        _, latest = names.parts_of(b"l" + key)
    except ValueError as error:
        raise _corrupt(name, error) from error
    if not found:
        raise _corrupt(name, "it has no run")
    return Pointer(latest, run.decode("utf-8", "surrogatepass"))


def _encoded_value(value: Value) -> list[Any]:
    match value:
        case Inline():
            return ["i", *value.typed]
        case Blob():
            return ["b", value.form, value.part]
        case Elements():
            return ["e", *(part for segment in value.segments for part in segment)]


def _decoded_value(value: Sequence[Any]) -> Value:
    match value:
        case ["i", str(form), bytes(data)]:
            return Inline((form, data))
        case ["b", str(form), bytes(part)]:
            return Blob(form, part)
        case ["e", *flat] if len(flat) % 2 == 0:
            return Elements(tuple(zip(flat[::2], flat[1::2], strict=True)))
    raise ValueError("a value of a channel is unreadable")


def _packed(record: list[Any]) -> bytes:
    data: bytes = msgpack.packb(record, unicode_errors="surrogatepass")
    return data


def _unpacked(name: bytes, content: bytes, length: int) -> list[Any]:
    try:
        record = msgpack.unpackb(content, unicode_errors="surrogatepass", strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise _corrupt(name, error) from error
    if not isinstance(record, list) or len(record) != length or record[0] != VERSION:
        raise _corrupt(name, f"expected a record of version {VERSION}")
    return record


def _corrupt(name: bytes, reason: object) -> Corrupt:
    return Corrupt("documents", repr(name), f"is unreadable: {reason}")
