"""Stored bytes: what a node, a blob, a head and a ledger row look like in Redis, and what makes them corrupt.

Everything is plain MessagePack under a check: a CRC-32 before a node's record and before the head's body, the SHA-256
that names a blob. Nothing is ever revived into objects but the records of this package, and bytes that fail their
check are `Corrupt`, never a guess.
"""

from __future__ import annotations

import marshal
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, repeat
from struct import Struct
from threading import Lock, local
from typing import Any, Final, NamedTuple, overload

import msgpack

from lash_redis import packing
from lash_redis.checksums import crc32
from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.keys import SessionKeys
from lash_redis.models import (
    BlobRef,
    EventPayload,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginPayload,
    PluginSessionSnapshot,
    SessionCheckpoint,
    SessionMeta,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
)
from lash_redis.models.wire import Record, Unread, check_json
from lash_redis.options import BlobProfile
from lash_redis.unpacking import UNREADABLE, unpack

TAG_BYTES: Final = 8
CRC_BYTES: Final = 4
"""The checksum before a node's record."""
RECEIPT_BYTES: Final = 2 * TAG_BYTES
"""A receipt: which commit it was, and what it meant."""
RECEIPTS: Final = 32
"""How many receipts a head keeps."""
COMPONENTS: Final = ("tool_state", "plugin_snapshot", "execution_state")
"""The components of a checkpoint, in the order in which the head's `refs` lists them."""

_NO_REF: Final = bytes(32)
_NO_REF_HEX: Final = _NO_REF.hex()


class _Packer(local):
    """A thread's own packer: making one takes longer than packing most values."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.pack = msgpack.Packer(strict_types=True).pack


_packer: Final = _Packer()

LARGE: Final = 1024 * 1024
"""Bytes of a value from which on its packer goes with it: its buffer stays as long as that."""


def pack(value: Any, path: str) -> bytes:
    """MessagePack of `value`; what it cannot hold (an integer beyond 64 bits, a lone surrogate) is refused by name."""
    try:
        data: bytes = _packer.pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(path, str(error)) from error
    if len(data) > LARGE:
        _packer.renew()
    return data


def pack_json(value: Any, path: str) -> bytes:
    """MessagePack of free-form JSON with sorted keys.

    Raises:
        InvalidRecord: names the path to the first value that is not JSON.
    """
    data = packing.pack_json(value)
    return pack(check_json(value, path), path) if data is None else data


def pack_record(record: Record, path: str) -> bytes:
    """MessagePack of a record: the bytes and the refusals of `pack(record.to_msgpack(path), path)`."""
    data = packing.pack_record(record.to_packing(path))
    return pack(record.to_msgpack(path), path) if data is None else data


def tag_of(text: str) -> bytes:
    """The 8 bytes by which a receipt knows a commit id."""
    return sha256(text.encode()).digest()[:TAG_BYTES]


# Blobs


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256(data).hexdigest())


def encode_blob(data: bytes, profile: BlobProfile) -> bytes:
    """One byte that says how, then the bytes: `0` as they are, `1` a zlib stream (kept only where it is shorter)."""
    if profile.value is not None and len(data) >= profile.value:
        packed = zlib.compress(data, 1)
        if len(packed) < len(data):
            return b"\1" + packed
    return b"\0" + data


def decode_blob(ref: str, content: bytes, key: str) -> bytes:
    """The bytes `ref` stands for."""
    if content[:1] == b"\1":
        try:
            data = zlib.decompress(content[1:])
        except zlib.error as error:
            raise Corrupt("blob", key, f"its zlib stream is damaged: {error}") from error
    elif content[:1] == b"\0":
        data = content[1:]
    else:
        raise Corrupt("blob", key, f"its encoding {content[:1]!r} is unknown")
    if sha256(data).hexdigest() != ref:
        raise Corrupt("blob", key, "its bytes do not hash to its ref")
    return data


def encode_refs(refs: Sequence[str | None]) -> bytes:
    """The head's `refs`: 32 bytes for each of `COMPONENTS`, zeros for an absent one; empty if all are absent."""
    if not any(refs):
        return b""
    return bytes.fromhex("".join([ref or _NO_REF_HEX for ref in refs]))


def decode_refs(data: bytes) -> tuple[BlobRef | None, ...]:
    parts = (data[at : at + 32] for at in range(0, 96, 32))
    return tuple(BlobRef(part.hex()) if part and part != _NO_REF else None for part in parts)


# Components


class StoredCheckpoint:
    """A manifest and the checked bytes of its components, each decoded when it is looked at."""

    __slots__ = ("blobs", "keys", "manifest")

    def __init__(self, manifest: SessionCheckpoint, blobs: Mapping[str, bytes], keys: SessionKeys) -> None:
        self.manifest = manifest
        self.blobs = blobs
        self.keys = keys

    def load(self, record: HydratedSessionCheckpoint, name: str) -> Any:
        value = self._component(name) if name in COMPONENTS else getattr(self.manifest, name)
        object.__setattr__(record, name, value)
        return value

    def _component(self, name: str) -> Any:
        ref = getattr(self.manifest, f"{name}_ref")
        if ref is None:
            return None
        stored = StoredComponent(name, ref, self.blobs[ref], self.keys.blob(ref))
        kind = _RECORDS.get(name)
        return stored.value() if kind is None else kind.from_stored(stored)


class StoredComponent:
    """The bytes behind a component. A commit of one that nobody looked at names its ref, and encodes nothing."""

    __slots__ = ("data", "key", "name", "ref")

    def __init__(self, name: str, ref: BlobRef, data: bytes, key: str) -> None:
        self.name = name
        self.ref = ref
        self.data = data
        self.key = key

    def load(self, record: ToolState | PluginSessionSnapshot, name: str) -> Any:
        """All fields at once: from here on the record may be changed under its frozen surface, like any other."""
        value = self.value()
        for field in record.__match_args__:
            object.__setattr__(record, field, getattr(value, field))
        _set_stored(record, None)
        return getattr(record, name)

    def value(self) -> Any:
        try:
            value = unpack(self.data)
            if self.name == "tool_state":
                return ToolState.from_json(value)
            if self.name == "plugin_snapshot" and "plugins" in value:
                return PluginSessionSnapshot.from_json(value)
        except (*UNREADABLE, InvalidRecord) as error:
            raise Corrupt("blob", self.key, f"holds no {self.name}: {error}") from error
        if self.name != "execution_state" or not isinstance(value, bytes):
            raise Corrupt("blob", self.key, f"holds no {self.name} but {type(value).__name__}")
        return value


_RECORDS: Final[Mapping[str, type[ToolState] | type[PluginSessionSnapshot]]] = {
    "tool_state": ToolState,
    "plugin_snapshot": PluginSessionSnapshot,
}
_set_stored: Final = Unread.__dict__["_stored"].__set__


def stored_component(value: ToolState | PluginSessionSnapshot | bytes) -> StoredComponent | None:
    """What is behind a component that came of a read and was not looked at since."""
    if isinstance(value, bytes):
        return None
    try:
        return _get_stored(value)  # type: ignore[no-any-return]
    except AttributeError:  # not by getattr: it would go on to `Unread.__getattr__`, which costs microseconds
        return None


def stored_blobs(checkpoint: HydratedSessionCheckpoint | None) -> Mapping[str, bytes]:
    """The components' bytes that a checkpoint was read from, by ref; empty for one that was made otherwise."""
    stored = getattr(checkpoint, "_stored", None)
    return stored.blobs if isinstance(stored, StoredCheckpoint) else {}


def fingerprint(tools: ToolState) -> bytes | None:
    """Bytes that two tool states share only where they are written alike; for a fifth of what writing takes.

    None where there are none: a value is of an unusual type, or none that can be written at all.
    """
    try:
        kinds = [type(entry) is ToolStateEntry for entry in tools.tools.values()]
        entries = [(name, entry.manifest, entry.source_id) for name, entry in tools.tools.items()]
        return marshal.dumps((tools.generation, kinds, entries), _EXACT)
    except (ValueError, AttributeError):
        return None


_EXACT: Final = 2
"""The version of marshal's format in which equal values of equal types give equal bytes: it has no references."""


# Nodes


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
        _set_stored(payload, None)
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
    _set_stored(payload, None if whole else _tuple(_StoredPayload, (data, key, place)))
    node = _new(SessionNodeRecord)
    _set_node_id(node, node_id)
    _set_parent_node_id(node, parent)
    _set_timestamp(node, timestamp)
    _set_payload(node, payload)
    return node


def _is_read(node: SessionNodeRecord) -> bool:
    """Whether somebody may hold what the payload says, and may have changed it; so of one that was not decoded here."""
    return getattr(node.payload, "_stored", None) is None


class _Shelf:
    """Records that several reads of a log share. It only grows, and at its end: what a read sees of it is a prefix."""

    __slots__ = ("nodes", "places", "records")

    def __init__(self, records: list[bytes], places: list[int] | None) -> None:
        self.records = records
        self.places = places
        """The positions in the log, ascending; None where the first record is at 0 and none is left out."""
        self.nodes: list[SessionNodeRecord | None] = []
        """What has been looked at; may end before the records do."""

    def pieces(self, ranges: Iterable[tuple[int, int]]) -> _Shelf:
        """Those records alone, on a shelf of their own."""
        records: list[bytes] = []
        places: list[int] = []
        nodes: list[SessionNodeRecord | None] = []
        for start, stop in ranges:
            records += self.records[start:stop]
            places += range(start, stop) if self.places is None else self.places[start:stop]
            looked_at = self.nodes[start:stop]
            nodes += looked_at
            nodes += [None] * (stop - start - len(looked_at))
        shelf = _Shelf(records, None if _is_whole(places) else places)
        shelf.nodes = nodes
        return shelf

    def agrees(self, at: int, records: Sequence[bytes], places: Sequence[int]) -> bool:
        """Whether what stands from index `at` on is `records` at `places`, as far as both go."""
        count = min(len(self.records) - at, len(records))
        known = range(at, at + count) if self.places is None else self.places[at : at + count]
        return self.records[at : at + count] == records[:count] and list(known) == places[:count]

    def grow(self, records: list[bytes], places: list[int]) -> None:
        if not records:
            return
        count = len(self.records)
        if self.places is None and not (places[0] == count and places[-1] == count + len(places) - 1):
            self.places = list(range(count))
        if self.places is not None:
            self.places += places
        self.records += records


def _is_whole(places: Sequence[int]) -> bool:
    return not places or places[-1] == len(places) - 1


_GROWING = Lock()
"""Two threads may bring one read up to date at once."""


class StoredNodes(Sequence[SessionNodeRecord]):
    """The nodes of a read: an immutable sequence that decodes a record when it is looked at.

    Equal to any sequence of equal records. A record that does not match its checksum raises `Corrupt` when looked at.
    `places` are the records' positions in the log, ascending; without, the first is at 0 and none is left out.
    """

    __slots__ = ("_count", "_key", "_shelf")

    def __init__(self, records: Sequence[bytes], key: str, places: Sequence[int] | None = None) -> None:
        whole = places is None or _is_whole(places)
        self._shelf = _Shelf(list(records), None if whole or places is None else list(places))
        self._key = key
        self._count = len(records)

    @classmethod
    def _of(cls, shelf: _Shelf, count: int, key: str) -> StoredNodes:
        nodes = cls.__new__(cls)
        nodes._shelf, nodes._count, nodes._key = shelf, count, key
        return nodes

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SessionNodeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SessionNodeRecord]: ...
    def __getitem__(self, index: int | slice) -> SessionNodeRecord | Sequence[SessionNodeRecord]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(self._count)))
        if not -self._count <= index < self._count:
            raise IndexError("there are not so many nodes")
        at, nodes = index % self._count, self._looked_at()
        if nodes[at] is None:
            nodes[at] = decode_node(self._shelf.records[at], self._key, self.place(at))
        return nodes[at]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[SessionNodeRecord]:
        """Whoever looks at what a node says, and asks for the next one, is taken to look at that, too."""
        nodes, records, places, key = self._looked_at(), self._shelf.records, self._shelf.places, self._key
        reads_on = False
        for at in range(self._count):
            node = nodes[at]
            if node is None:
                place = at if places is None else places[at]
                node = nodes[at] = decode_node(records[at], key, place, reads_on)
            yield node
            reads_on = _is_read(node)

    def _looked_at(self) -> list[SessionNodeRecord | None]:
        shelf = self._shelf
        if len(shelf.nodes) < self._count:
            shelf.nodes += [None] * (len(shelf.records) - len(shelf.nodes))
        return shelf.nodes

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredNodes) and self._records() == other._records():
            if not (self._read() or other._read()):
                return True
        elif not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        places = self._shelf.places
        return _revived, (self._records(), self._key, places and places[: self._count], self._read())

    def _read(self) -> dict[int, SessionNodeRecord]:
        """By their index, the nodes whose payload somebody has looked at, and may have changed since."""
        nodes = self._shelf.nodes[: self._count]
        return {at: node for at, node in enumerate(nodes) if node is not None and _is_read(node)}

    def _records(self) -> list[bytes]:
        records = self._shelf.records
        return records if len(records) == self._count else records[: self._count]

    # What only a refresh asks for

    def place(self, index: int) -> int:
        """The position in the log of the node at `index`, from 0."""
        return index if self._shelf.places is None else self._shelf.places[index]

    def index_of(self, place: int) -> int | None:
        """Where the node is whose record is at `place` of the log, if it is among these."""
        places = self._shelf.places
        if places is None:
            return place if 0 <= place < self._count else None
        index = bisect_left(places, place, 0, self._count)
        return index if index < self._count and places[index] == place else None

    def record(self, index: int) -> bytes:
        return self._shelf.records[index]

    def pieces(self, ranges: Sequence[tuple[int, int]]) -> StoredNodes:
        """The nodes from each start up to each stop, ascending; what was looked at need not be decoded again."""
        if ranges and ranges[0][0] == 0 and len(ranges) == 1:
            return self if ranges[0][1] == self._count else self._of(self._shelf, ranges[0][1], self._key)
        return self._of(self._shelf.pieces(ranges), sum(stop - start for start, stop in ranges), self._key)

    def extended(self, records: list[bytes], places: list[int]) -> StoredNodes:
        """These and more, at `places` behind the last of them. O(records), unless these were extended otherwise before.

        Then what comes of it stands on a copy.
        """
        if not records:
            return self
        with _GROWING:
            shelf = self._shelf
            if not shelf.agrees(self._count, records, places):
                shelf = shelf.pieces([(0, self._count)])
            known = len(shelf.records) - self._count
            shelf.grow(records[known:], places[known:])
        return self._of(shelf, self._count + len(records), self._key)

    # What only a replacement asks for

    @property
    def key(self) -> str:
        return self._key

    def grew_from(self, other: StoredNodes) -> bool:
        """Whether these are `other` and perhaps more, as far as is known without comparing them."""
        return self._shelf is other._shelf and self._count >= other._count

    def doubtful(self, nodes: Sequence[Any]) -> Iterator[tuple[int, Any, bytes]]:
        """Those of the first of `nodes` that may be others than these, each with its index and these' record.

        All but the very records of this read whose payload nobody has looked at: nobody can have changed them.
        """
        shelf, most = self._shelf, min(self._count, len(nodes))
        own = shelf.nodes[:most]
        are_these = isinstance(nodes, StoredNodes) and nodes._shelf is shelf
        given: Sequence[Any] = own if are_these else nodes[:most]
        for at, (node, mine, record) in enumerate(zip(given, chain(own, repeat(None)), shelf.records, strict=False)):
            if node is None and are_these:
                continue
            if node is not mine or node is None or _is_read(node):
                yield at, node, record


def _revived(
    records: Sequence[bytes], key: str, places: Sequence[int] | None, read: Mapping[int, SessionNodeRecord]
) -> StoredNodes:
    """What was pickled, the nodes that were looked at as they were then."""
    nodes = StoredNodes(records, key, places)
    looked_at = nodes._looked_at()
    for at, node in read.items():
        _set_stored(node.payload, None)
        looked_at[at] = node
    return nodes


# Heads


@dataclass(frozen=True, slots=True)
class HeadBody:
    """What the client keeps in the head for itself; no script looks at it."""

    session_id: str
    commit_id: str
    leaf_node_id: str | None
    config: PersistedSessionConfig
    checkpoint_ref: BlobRef
    checkpoint: SessionCheckpoint


_CONFIG: Final = (
    "provider_id", "configured_model", "context_window", "execution_mode", "standard_context_approach", "model_variant",
)  # fmt: skip
_USAGE: Final = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
_PROMPT: Final = ("prompt_context_tokens", "input_tokens", "cached_input_tokens", "context_budget_tokens")
_MODE: Final = ("mode_id", "payload")


def _values(record: Mapping[str, Any] | None, names: Sequence[str]) -> list[Any] | None:
    return None if record is None else [record.get(name) for name in names]


def _named(values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def encode_body(
    session_id: str,
    commit_id: str,
    leaf: str | None,
    config: Mapping[str, Any],
    checkpoint_ref: str,
    manifest: Mapping[str, Any],
    refs: bytes,
) -> bytes:
    """A CRC-32 of the rest and `refs`, then `[session, commit, leaf, checkpoint ref, config, turn state, revision]`.

    `config` and `manifest` are as MessagePack takes them. Their values stand without their names, which would take more
    room than they do, and the manifest's refs stand in the head's `refs` alone.
    """
    turn = manifest["turn_state"]
    turn_values = [
        turn["turn_index"],
        _values(turn["token_usage"], _USAGE),
        _values(turn.get("last_prompt_usage"), _PROMPT),
        _values(turn["mode_turn_options"], _MODE),
    ]
    revision = manifest.get("plugin_snapshot_revision")
    record = [
        session_id, commit_id, leaf, bytes.fromhex(checkpoint_ref), _values(config, _CONFIG), turn_values, revision,
    ]  # fmt: skip
    body = pack(record, "RuntimeCommit")
    return crc32(refs, crc32(body)).to_bytes(4, "big") + body


def decode_body(data: bytes, refs: bytes, key: str) -> HeadBody:
    body = data[4:]
    if crc32(refs, crc32(body)) != int.from_bytes(data[:4], "big"):
        raise Corrupt("head", key, "its body and refs do not match their checksum")
    try:
        session_id, commit_id, leaf, ref, config, turn, revision = unpack(body)
        index, usage, prompt, (mode_id, payload) = turn
        turn_state = {
            "turn_index": index,
            "token_usage": _named(usage, _USAGE),
            "mode_turn_options": {"mode_id": mode_id, "payload": payload},
        }
        if prompt is not None:
            turn_state["last_prompt_usage"] = _named(prompt, _PROMPT)
        tool_state, plugin_snapshot, execution_state = decode_refs(refs)
        return HeadBody(
            session_id,
            commit_id,
            leaf,
            PersistedSessionConfig.from_json(_named(config, _CONFIG), "config"),
            BlobRef(ref.hex()),
            SessionCheckpoint(
                PersistedTurnState.from_json(turn_state, "turn_state"),
                tool_state,
                plugin_snapshot,
                revision,
                execution_state,
            ),
        )
    except (*UNREADABLE, AttributeError, InvalidRecord) as error:
        raise Corrupt("head", key, f"its body is unreadable: {error}") from error


@dataclass(frozen=True, slots=True)
class Facts:
    """The numbers of a head that scripts decide on. Their order and meaning stand in `lua/include/head.lua`."""

    revision: int
    epoch: int
    length: int
    live: int
    jumps: int
    dead: int
    ids: int
    bytes: int
    leaf: int
    usage: int
    loose: int
    deadline: int
    hold: int
    committed: int
    users: int
    first: int


def decode_facts(data: bytes, key: str) -> Facts:
    try:
        facts = Facts(*map(int, data.split(b" ")))
    except (ValueError, TypeError) as error:
        raise Corrupt("head", key, f"its facts are unreadable: {data[:200]!r}") from error
    if min(facts.revision, facts.length, facts.live, facts.jumps, facts.dead) < 0 or facts.revision >= 2**63:
        raise Corrupt("head", key, f"its facts are out of range: {data[:200]!r}")
    return facts


# Meta


def encode_meta(meta: SessionMeta) -> bytes:
    body = pack(meta.to_msgpack("SessionMeta"), "SessionMeta")
    return crc32(body).to_bytes(4, "big") + body


def decode_meta(data: bytes, key: str) -> SessionMeta:
    body = data[4:]
    if crc32(body) != int.from_bytes(data[:4], "big"):
        raise Corrupt("meta", key, "the record does not match its checksum")
    try:
        return SessionMeta.from_json(unpack(body), "meta")
    except (*UNREADABLE, InvalidRecord) as error:
        raise Corrupt("meta", key, f"the record is unreadable: {error}") from error


# Ledger rows


def ledger_field(entry: TokenLedgerEntry) -> bytes:
    """The head's field of a ledger row: `u` and the MessagePack of `[source, model]`."""
    return b"u" + pack([entry.source, entry.model], "usage_deltas")


def ledger_key(field: bytes) -> tuple[str, str]:
    """The `(source, model)` of a ledger field."""
    source, model = unpack(field[1:])
    return source, model


def decode_ledger(head: Iterable[tuple[bytes, bytes]], key: str) -> tuple[TokenLedgerEntry, ...]:
    """The ledger in order of first appearance, from the fields of a head."""
    rows: list[tuple[int, TokenLedgerEntry]] = []
    for field, value in head:
        if field[:1] != b"u":
            continue
        try:
            source, model = ledger_key(field)
            order, *counters = map(int, value.split(b" "))
            if len(counters) != 4 or not all(-(2**63) <= counter < 2**63 for counter in counters):
                raise ValueError("takes four 64-bit counters")
            rows.append((order, TokenLedgerEntry(source, model, TokenUsage(*counters))))
        except UNREADABLE as error:
            raise Corrupt("ledger", key, f"row {field[:100]!r} is unreadable: {value[:100]!r}") from error
    rows.sort(key=lambda row: row[0])
    if [order for order, _ in rows] != list(range(len(rows))):
        raise Corrupt("ledger", key, "the order of its rows is unreadable")
    return tuple(entry for _, entry in rows)
