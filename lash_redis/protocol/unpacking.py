"""Unpacking of MessagePack, by msgspec if it is installed (the extra `fast`, in half the time), else by msgpack.

Both return the same values for bytes that this package wrote. For other bytes, both raise an error of `UNREADABLE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgpack

NodeFields: TypeAlias = tuple[str, str | None, str | None, Any, str, int]
"""Node id, parent id, plugin type or None for an event, payload, timestamp, checksum."""

try:
    import msgspec
except ImportError:
    unpack: Callable[[bytes], Any] = msgpack.unpackb
    _FOREIGN: tuple[type[Exception], ...] = ()

    def _identity(payload: Any) -> Any:
        return payload

    def _unpack_node(record: bytes) -> NodeFields:
        fields = msgpack.unpackb(record)
        if type(fields) is not list:
            raise ValueError(f"expected an array, got {type(fields).__name__}")
        node_id, parent, tag, _, timestamp, checksum = fields
        if not (
            type(node_id) is type(timestamp) is str
            and (parent is None or type(parent) is str)
            and (tag is None or type(tag) is str)
            and type(checksum) is int
        ):
            raise ValueError("a field is of a wrong type")
        return fields  # type: ignore[return-value]

    unpack_node: Callable[[bytes], NodeFields] = _unpack_node
    """Unpack the fields of a node's record. Raises one of `UNREADABLE` if a field is missing or of a wrong type."""
    unpack_node_lazily: Callable[[bytes], NodeFields] = _unpack_node
    """Unpack the same fields, the payload perhaps still packed: `unpack_payload` returns its value."""
    unpack_payload: Callable[[Any], Any] = _identity  # msgpack cannot skip a value, so the payload is unpacked already

else:
    unpack = msgspec.msgpack.Decoder().decode
    unpack_node = msgspec.msgpack.Decoder(NodeFields).decode
    unpack_node_lazily = msgspec.msgpack.Decoder(tuple[str, str | None, str | None, msgspec.Raw, str, int]).decode
    unpack_payload = unpack
    _FOREIGN = (msgspec.MsgspecError,)

UNREADABLE: Final = (ValueError, TypeError, RecursionError, msgpack.UnpackException, *_FOREIGN)
"""The errors that unpacking raises for bytes that are not MessagePack, or that use an unhashable value as a key."""
