"""The record of a node: how it is stored in the log list, and what makes it corrupt."""

from __future__ import annotations

from struct import Struct
from typing import Any, Final, NamedTuple

from lash_redis.checksums import crc32
from lash_redis.codec import pack
from lash_redis.errors import Corrupt
from lash_redis.models import EventPayload, PluginPayload, SessionNodeRecord
from lash_redis.models.wire import Unread
from lash_redis.unpacking import UNREADABLE, unpack

CRC_BYTES: Final = 4
"""The checksum before a node's record."""


def encode_node(node: SessionNodeRecord, payload: bytes, tag: str | None) -> bytes:
    """CRC-32, then `[node id, parent id, timestamp, tag, payload]`; the tag is a plugin type, nil for an event."""
    record = pack_node(node, payload, tag)
    return crc32(record).to_bytes(CRC_BYTES, "big") + record


def pack_node(node: SessionNodeRecord, payload: bytes, tag: str | None) -> bytes:
    """A node's record without its checksum."""
    return pack([node.node_id, node.parent_node_id, node.timestamp, tag, payload], f"node {node.node_id!r}")


def timeless(node_id: str, parent: str | None, tag: str | None, payload: bytes) -> bytes:
    """The part of a node that belongs to a commit's meaning: all but the timestamp."""
    return pack([node_id, parent, tag, payload], f"node {node_id!r}")


def timeless_part(record: bytes, key: str, place: int) -> bytes:
    """`timeless` of the node of a record."""
    node = decode_node(record, key, place)
    payload = node.payload
    stored = _get_stored(payload)
    return timeless(node.node_id, node.parent_node_id, getattr(payload, "plugin_type", None), stored.data)


class _StoredPayload(NamedTuple):
    """The bytes behind an event or body, decoded when it is first asked for."""

    data: bytes
    key: str
    place: int

    def load(self, payload: EventPayload | PluginPayload, name: str) -> Any:
        try:
            value = unpack(self.data)
        except UNREADABLE as error:
            raise Corrupt("node", self.key, f"record {self.place} has an unreadable payload: {error}") from error
        object.__setattr__(payload, name, value)
        set_stored(payload, None)
        return value


_CRC: Final = Struct(">I")
_new: Final = object.__new__
_tuple: Final = tuple.__new__
_set_node_id: Final = SessionNodeRecord.__dict__["node_id"].__set__
_set_parent_node_id: Final = SessionNodeRecord.__dict__["parent_node_id"].__set__
_set_timestamp: Final = SessionNodeRecord.__dict__["timestamp"].__set__
_set_payload: Final = SessionNodeRecord.__dict__["payload"].__set__
_set_event: Final = EventPayload.__dict__["event"].__set__
_set_body: Final = PluginPayload.__dict__["body"].__set__
_set_plugin_type: Final = PluginPayload.__dict__["plugin_type"].__set__
_get_stored: Final = Unread.__dict__["_stored"].__get__
set_stored: Final = Unread.__dict__["_stored"].__set__


def decode_node(raw: bytes, key: str, place: int, whole: bool = False) -> SessionNodeRecord:
    """The node of a record that matches its checksum. What its payload says is decoded when that is looked at.

    `whole`: it is decoded at once, because it will be looked at. Slots are set one by one: a frozen dataclass's
    `__init__` would take longer than all else.
    """
    body = raw[CRC_BYTES:]
    if len(raw) < CRC_BYTES or crc32(body) != _CRC.unpack_from(raw)[0]:
        raise Corrupt("node", key, f"record {place} does not match its checksum")
    try:
        node_id, parent, timestamp, tag, data = unpack(body)
        value = unpack(data) if whole else None
    except UNREADABLE as error:
        raise Corrupt("node", key, f"record {place} is not a node: {error}") from error
    payload: EventPayload | PluginPayload
    if tag is None:
        payload = _new(EventPayload)
        if whole:
            _set_event(payload, value)
    else:
        payload = _new(PluginPayload)
        _set_plugin_type(payload, tag)
        if whole:
            _set_body(payload, value)
    set_stored(payload, None if whole else _tuple(_StoredPayload, (data, key, place)))
    node = _new(SessionNodeRecord)
    _set_node_id(node, node_id)
    _set_parent_node_id(node, parent)
    _set_timestamp(node, timestamp)
    _set_payload(node, payload)
    return node


def is_read(node: SessionNodeRecord) -> bool:
    """Whether somebody may hold what the payload says, and may have changed it; so of one that was not decoded here."""
    return getattr(node.payload, "_stored", None) is None
