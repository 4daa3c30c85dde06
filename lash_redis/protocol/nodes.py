"""The record of a node: its stored form in the log, and the checks that find a damaged one.

A record is the MessagePack of `[node id, parent id, tag, payload, timestamp, checksum]`. The tag is a plugin type, nil
for an event. The checksum is the CRC-32 of all bytes before it. It is the last four bytes of the record, little-endian.
So the CRC-32 of every intact record is the same number, and a reader verifies it without slicing. To MessagePack those
four bytes are an unsigned integer. The timestamp comes after all fields that belong to a commit's meaning, so those
fields are a prefix of the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, Final, NamedTuple

from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.models import EventPayload, PluginPayload, SessionNodeRecord
from lash_redis.models.wire import Unread
from lash_redis.protocol.checksums import crc32
from lash_redis.protocol.packing import LARGE, pack, pack_json, packer
from lash_redis.protocol.unpacking import UNREADABLE, unpack_node, unpack_node_lazily, unpack_payload

INTACT: Final = 0x2144DF1C
"""The CRC-32 of any bytes that end with their own CRC-32, little-endian."""

MARK_BYTES: Final = 4
"""Bytes of the checksum at the end of a record, by which scripts recognise the record that a client knows."""

_CHECKSUM: Final = b"\xce"
"""MessagePack's type byte of an unsigned integer of 32 bits."""
_CHECKSUM_BYTES: Final = len(_CHECKSUM) + MARK_BYTES
_HEADER: Final = b"\x96"
"""MessagePack's header of an array of six."""


# Encoding


def encode_node(
    node_id: str, parent: str | None, tag: str | None, payload: bytes, timestamp: str
) -> tuple[bytes, bytes]:
    """Encode a node as a record, and return it with its timeless prefix: all of it except timestamp and checksum.

    The prefix belongs to a commit's meaning. `payload` is MessagePack.

    Raises:
        InvalidRecord: one of the texts is not representable in MessagePack.
    """
    own = packer.pack
    try:
        # msgpack writes no parts of an array. Three nil, one byte each, reserve the places of what is appended below.
        timeless = own([node_id, parent, tag, None, None, None])[:-3] + payload
        body = timeless + own(timestamp) + _CHECKSUM
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(f"node {node_id!r}", str(error)) from error
    if len(body) - len(payload) > LARGE:
        packer.renew()
    return body + crc32(body).to_bytes(MARK_BYTES, "little"), timeless


def first_changed(records: Sequence[bytes], nodes: Iterable[tuple[int, Any]], *, were_read: bool) -> int | None:
    """Find the first node whose encoding differs from the record at its index; return the index, or None.

    Equal bytes mean equal values of equal types. A node that cannot be stored differs from every record. `were_read`:
    the payloads were decoded from records, so their keys are in the stored order unless a caller changed them. About
    2 µs for a node of 500 bytes.
    """
    for at, node in nodes:
        try:
            payload = node.payload
            if type(payload) is EventPayload:
                tag, value = None, payload.event
            else:
                tag, value = payload.plugin_type, payload.body
            record = records[at]
            if were_read:
                packed = pack([node.node_id, node.parent_node_id, tag, value, node.timestamp, None], "")
                if len(record) == len(packed) - 1 + _CHECKSUM_BYTES and record.startswith(packed[:-1]):
                    continue
            encoded, _ = encode_node(node.node_id, node.parent_node_id, tag, pack_json(value, ""), node.timestamp)
        except (AttributeError, TypeError, ValueError, OverflowError, InvalidRecord):
            return at
        is_node = isinstance(node, SessionNodeRecord) and isinstance(payload, EventPayload | PluginPayload)
        if not is_node or encoded != record:
            return at
    return None


def mark_of(record: bytes) -> bytes:
    """Return the bytes by which a script recognises a record: its checksum."""
    return record[-MARK_BYTES:]


def timeless_part(record: bytes, key: str, place: int) -> bytes:
    """Return the prefix of a record that belongs to a commit's meaning, as `encode_node` returned it.

    Raises:
        Corrupt: the record is damaged.
    """
    return timeless_before(decode_node(record, key, place).timestamp, record)


def timeless_before(timestamp: str, record: bytes) -> bytes:
    """Return the `timeless_part` of an intact record whose timestamp is known."""
    return record[: -_CHECKSUM_BYTES - len(pack(timestamp, ""))]


def record_prefix(node_id: str) -> bytes | None:
    """Return the bytes with which the record of a node with that id begins; None for an invalid id."""
    try:
        return _HEADER + pack(node_id, "") if isinstance(node_id, str) else None
    except InvalidRecord:
        return None


def is_record_of(record: bytes, node_id: str) -> bool:
    """Whether a record is intact and its node has that id. The record is not decoded."""
    return record.startswith(_HEADER + pack(node_id, "")) and crc32(record) == INTACT


# Decoding


DECODING: Final = Lock()
"""Held while a decoded node or payload is published, so that all threads get the same object.

A commit would not notice a change in place of a second object.
"""


def _published(payload: EventPayload | PluginPayload, name: str, value: Any) -> Any:
    """Publish the decoded value of a payload, and return it; or the value that another thread published first."""
    with DECODING:
        if get_stored(payload) is None:
            return object.__getattribute__(payload, name)
        object.__setattr__(payload, name, value)
        set_stored(payload, None)
    return value


class _PackedPayload(NamedTuple):
    """The bytes of an event or body, decoded when it is accessed."""

    data: Any
    key: str
    place: int

    def load(self, payload: EventPayload | PluginPayload, name: str) -> Any:
        return _published(payload, name, self.unpacked())

    def unpacked(self) -> Any:
        try:
            return unpack_payload(self.data)
        except UNREADABLE as error:
            raise Corrupt("node", self.key, f"record {self.place} has an unreadable payload: {error}") from error


class _DecodedPayload(NamedTuple):
    """An event or body that is decoded and that no caller has accessed yet."""

    value: Any

    def load(self, payload: EventPayload | PluginPayload, name: str) -> Any:
        return _published(payload, name, self.value)


def _draft_of(kind: type) -> Any:
    """Return a class of mutable drafts of a frozen record. Assigning the record's class turns a draft into a record.

    This takes half the time of filling the slots by their descriptors, and a third of the record's own `__init__`.
    """
    plain = {name: getattr(object, name) for name in ("__init__", "__setattr__", "__delattr__")}
    return type(f"{kind.__name__}Draft", (kind,), {"__slots__": (), **plain})


_NodeDraft: Final = _draft_of(SessionNodeRecord)
_EventDraft: Final = _draft_of(EventPayload)
_PluginDraft: Final = _draft_of(PluginPayload)
_tuple: Final = tuple.__new__
_set_event: Final = EventPayload.__dict__["event"].__set__
_set_body: Final = PluginPayload.__dict__["body"].__set__
set_stored: Final = Unread.__dict__["_stored"].__set__
get_stored: Final = Unread.__dict__["_stored"].__get__


def decode_node(raw: bytes, key: str, place: int, *, ahead: bool = False) -> SessionNodeRecord:
    """Decode a record into a node. The payload is decoded on first access, or now if `ahead`.

    Either way, the payload counts as not accessed.

    Raises:
        Corrupt: the record is damaged or not a node; names the key and the record's position.
    """
    if crc32(raw) != INTACT:
        raise _damaged(key, place)
    try:
        node_id, parent, tag, value, timestamp, _ = unpack_node(raw) if ahead else unpack_node_lazily(raw)
    except UNREADABLE as error:
        raise _no_node(key, place, error) from error
    stored = _tuple(_DecodedPayload, (value,)) if ahead else _tuple(_PackedPayload, (value, key, place))
    if tag is None:
        payload = _EventDraft()
        payload._stored = stored
        payload.__class__ = EventPayload
    else:
        payload = _PluginDraft()
        payload.plugin_type = tag
        payload._stored = stored
        payload.__class__ = PluginPayload
    node = _NodeDraft()
    node.node_id = node_id
    node.parent_node_id = parent
    node.timestamp = timestamp
    node.payload = payload
    node.__class__ = SessionNodeRecord
    return node  # type: ignore[no-any-return]


def decode_node_accessed(raw: bytes, key: str, place: int) -> SessionNodeRecord:
    """Decode a record and its payload into a node. The payload counts as accessed.

    This repeats code of `decode_node`, because a further call takes a tenth of the time.

    Raises:
        Corrupt: as `decode_node`; also if the payload is unreadable.
    """
    if crc32(raw) != INTACT:
        raise _damaged(key, place)
    try:
        node_id, parent, tag, value, timestamp, _ = unpack_node(raw)
    except UNREADABLE as error:
        raise _no_node(key, place, error) from error
    if tag is None:
        payload = _EventDraft()
        payload.event = value
        payload._stored = None
        payload.__class__ = EventPayload
    else:
        payload = _PluginDraft()
        payload.plugin_type = tag
        payload.body = value
        payload._stored = None
        payload.__class__ = PluginPayload
    node = _NodeDraft()
    node.node_id = node_id
    node.parent_node_id = parent
    node.timestamp = timestamp
    node.payload = payload
    node.__class__ = SessionNodeRecord
    return node  # type: ignore[no-any-return]


def decode_content(raw: bytes, key: str, place: int) -> tuple[str, str | None, Any]:
    """Decode a record into the id of its node, its plugin type, and its event (no plugin type) or body.

    This takes two thirds of the time of `decode_node_accessed`. The event or body belongs to the caller.

    Raises:
        Corrupt: as `decode_node_accessed`.
    """
    if crc32(raw) != INTACT:
        raise _damaged(key, place)
    try:
        node_id, _, tag, value, _, _ = unpack_node(raw)
    except UNREADABLE as error:
        raise _no_node(key, place, error) from error
    return node_id, tag, value


def _damaged(key: str, place: int) -> Corrupt:
    return Corrupt("node", key, f"record {place} does not match its checksum")


def _no_node(key: str, place: int, error: Exception) -> Corrupt:
    return Corrupt("node", key, f"record {place} is not a node: {error}")


def decode_payload(node: SessionNodeRecord) -> None:
    """Decode the payload of a node if it is still packed. The payload still counts as not accessed.

    Raises:
        Corrupt: the payload is damaged; names the key and the record's position.
    """
    stored = getattr(node.payload, "_stored", None)
    if isinstance(stored, _PackedPayload):
        set_stored(node.payload, _DecodedPayload(stored.unpacked()))


def mark_accessed(node: SessionNodeRecord) -> None:
    """Count a payload as accessed if it is decoded: the caller will access it and finds it in its slot."""
    payload = node.payload
    stored = getattr(payload, "_stored", None)
    if type(stored) is _DecodedPayload:
        (_set_event if type(payload) is EventPayload else _set_body)(payload, stored.value)
        set_stored(payload, None)


def stored_size(node: SessionNodeRecord) -> int | None:
    """Return the bytes of a payload that is still packed; None if it is decoded or was not read from a store."""
    stored = getattr(node.payload, "_stored", None)
    return len(stored.data) if isinstance(stored, _PackedPayload) else None


def is_accessed(node: SessionNodeRecord) -> bool:
    """Whether a caller may have the payload and may have changed it. True for a node that was not read from a store."""
    return getattr(node.payload, "_stored", None) is None
