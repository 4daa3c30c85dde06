"""How MessagePack is unpacked: by msgspec where it is installed (the extra `fast`), in half the time, else by msgpack.

Both give the same values for bytes that this package wrote. What either raises for other bytes is among `UNREADABLE`.
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
    """The fields of a node's record. `UNREADABLE` if one is missing or of another type."""
    unpack_node_lazily: Callable[[bytes], NodeFields] = _unpack_node
    """The same with a payload that is perhaps still packed: `unpack_payload` gives its value."""
    unpack_payload: Callable[[Any], Any] = _identity  # msgpack cannot skip a value, so it is unpacked already

else:
    unpack = msgspec.msgpack.Decoder().decode
    unpack_node = msgspec.msgpack.Decoder(NodeFields).decode
    unpack_node_lazily = msgspec.msgpack.Decoder(tuple[str, str | None, str | None, msgspec.Raw, str, int]).decode
    unpack_payload = unpack
    _FOREIGN = (msgspec.MsgspecError, RecursionError)

UNREADABLE: Final = (ValueError, TypeError, msgpack.UnpackException, *_FOREIGN)
"""What unpacking raises for bytes that are no MessagePack, or hold what cannot be a key."""
