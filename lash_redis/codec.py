"""Stored bytes: what a blob, a head and a ledger row look like in Redis, and what makes them corrupt.

Everything is plain MessagePack under a check: a CRC-32 before the head's body, the SHA-256 that names a blob.
Nothing is ever revived into objects but the records of this package, and bytes that fail their check are `Corrupt`,
never a guess.
"""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from threading import local
from typing import Any, Final, NamedTuple

import msgpack

from lash_redis import packing
from lash_redis.checksums import crc32
from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.keys import SessionKeys, family_of
from lash_redis.models import (
    BlobRef,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginSessionSnapshot,
    SessionCheckpoint,
    SessionMeta,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
)
from lash_redis.models.wire import Record, Unread, check_json
from lash_redis.options import BlobProfile
from lash_redis.protocol.component_refs import COMPONENTS, ComponentRefs, Refs, digests
from lash_redis.unpacking import UNREADABLE, unpack

TAG_BYTES: Final = 8
RECEIPT_BYTES: Final = 2 * TAG_BYTES
"""A receipt: which commit it was, and what it meant."""
RECEIPTS: Final = 32
"""How many receipts a head keeps."""


class _Packer(local):
    """A thread's own packer: making one takes longer than packing most values."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.pack = msgpack.Packer(strict_types=True).pack


packer: Final = _Packer()

LARGE: Final = 1024 * 1024
"""Bytes of a value from which on its packer goes with it: its buffer stays as long as that."""


def pack(value: Any, path: str) -> bytes:
    """MessagePack of `value`; what it cannot hold (an integer beyond 64 bits, a lone surrogate) is refused by name."""
    try:
        data: bytes = packer.pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(path, str(error)) from error
    if len(data) > LARGE:
        packer.renew()
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


@lru_cache(maxsize=1024)
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
            raise Corrupt(family_of(key), key, f"its zlib stream is damaged: {error}") from error
    elif content[:1] == b"\0":
        data = content[1:]
    else:
        raise Corrupt(family_of(key), key, f"its encoding {content[:1]!r} is unknown")
    if sha256(data).hexdigest() != ref:
        raise Corrupt(family_of(key), key, "its bytes do not hash to its ref")
    return data


# Components


class StoredCheckpoint:
    """A manifest and the bytes of its components, each decoded on first access.

    `blobs` are the checked bytes of held components, `private` the stored contents of private ones, both by ref.
    """

    __slots__ = ("blobs", "keys", "manifest", "private")

    def __init__(
        self, manifest: SessionCheckpoint, blobs: Mapping[str, bytes], private: Mapping[str, bytes], keys: SessionKeys
    ) -> None:
        self.manifest = manifest
        self.blobs = blobs
        self.private = private
        self.keys = keys

    def load(self, record: HydratedSessionCheckpoint, name: str) -> Any:
        value = self._component(name) if name in COMPONENTS else getattr(self.manifest, name)
        object.__setattr__(record, name, value)
        return value

    def _component(self, name: str) -> Any:
        ref = getattr(self.manifest, f"{name}_ref")
        if ref is None:
            return None
        content, key = self.private.get(ref), self.keys.state
        if content is None:
            stored = StoredComponent(name, ref, self.blobs[ref], self.keys.blob(ref))
        else:
            stored = StoredComponent(name, ref, decode_blob(ref, content, key), key)
        kind = _RECORDS.get(name)
        return stored.value() if kind is None else kind.from_stored(stored)


class StoredComponent:
    """The stored bytes of a component. A commit of one that no caller accessed names its ref and encodes nothing."""

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
            raise Corrupt(family_of(self.key), self.key, f"holds no {self.name}: {error}") from error
        if self.name != "execution_state" or not isinstance(value, bytes):
            raise Corrupt(family_of(self.key), self.key, f"holds no {self.name} but {type(value).__name__}")
        return value


_RECORDS: Final[Mapping[str, type[ToolState] | type[PluginSessionSnapshot]]] = {
    "tool_state": ToolState,
    "plugin_snapshot": PluginSessionSnapshot,
}
_set_stored: Final = Unread.__dict__["_stored"].__set__
_get_stored: Final = Unread.__dict__["_stored"].__get__


def stored_component(value: ToolState | PluginSessionSnapshot | bytes) -> StoredComponent | None:
    """The stored bytes of a component that came from a read and was not accessed since; else None."""
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


# Heads


@dataclass(frozen=True, slots=True)
class HeadBody:
    """What the client keeps in the head for itself; no script reads it. Config and turn state are decoded on access."""

    key: str
    session_id: str
    commit_id: str
    leaf_node_id: str | None
    checkpoint_ref: BlobRef
    refs: Refs
    stored: tuple[Any, Any, Any]
    """Config, turn state, and revision of the plugin snapshot."""

    @property
    def config(self) -> PersistedSessionConfig:
        """Raises Corrupt where it is unreadable."""
        try:
            return PersistedSessionConfig.from_json(_named(self.stored[0], _CONFIG), "config")
        except (*UNREADABLE, AttributeError, InvalidRecord) as error:
            raise Corrupt("head", self.key, f"its config is unreadable: {error}") from error

    @property
    def checkpoint(self) -> SessionCheckpoint:
        """The manifest. Raises Corrupt where its turn state is unreadable."""
        _, turn, revision = self.stored
        tool_state, plugin_snapshot, execution_state = self.refs
        try:
            index, usage, prompt, (mode_id, payload) = turn
            turn_state = {
                "turn_index": index,
                "token_usage": _named(usage, _USAGE),
                "mode_turn_options": {"mode_id": mode_id, "payload": payload},
            }
            if prompt is not None:
                turn_state["last_prompt_usage"] = _named(prompt, _PROMPT)
            turned = PersistedTurnState.from_json(turn_state, "turn_state")
        except (*UNREADABLE, AttributeError, InvalidRecord) as error:
            raise Corrupt("head", self.key, f"its turn state is unreadable: {error}") from error
        return SessionCheckpoint(turned, tool_state, plugin_snapshot, revision, execution_state)


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
    refs: Sequence[str | None],
) -> bytes:
    """A CRC-32 of the rest and the refs, then `[session, commit, leaf, checkpoint ref, config, turn state, revision]`.

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
    return crc32(digests(refs), crc32(body)).to_bytes(4, "big") + body


def decode_body(data: bytes, components: ComponentRefs, key: str) -> HeadBody:
    body = data[4:]
    if crc32(digests(components.refs), crc32(body)) != int.from_bytes(data[:4], "big"):
        raise Corrupt("head", key, "its body and refs do not match their checksum")
    try:
        session_id, commit_id, leaf, ref, *stored = unpack(body)
        config, turn, revision = stored
        if not isinstance(session_id, str) or not isinstance(commit_id, str) or not isinstance(leaf, str | None):
            raise TypeError("an id is no string")
        if not isinstance(revision, int | None):
            raise TypeError("the revision of the plugin snapshot is no integer")
        checkpoint_ref = BlobRef(ref.hex())
    except (*UNREADABLE, AttributeError) as error:
        raise Corrupt("head", key, f"its body is unreadable: {error}") from error
    return HeadBody(key, session_id, commit_id, leaf, checkpoint_ref, components.refs, (config, turn, revision))


class Facts(NamedTuple):
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
    high: int
    low: int


def decode_facts(data: bytes, key: str) -> Facts:
    try:
        facts = Facts._make(map(int, data.split(b" ")))
    except (ValueError, TypeError) as error:
        raise Corrupt("head", key, f"its facts are unreadable: {data[:200]!r}") from error
    if min(facts.revision, facts.length, facts.live, facts.jumps, facts.dead) < 0 or facts.revision >= 2**63:
        raise Corrupt("head", key, f"its facts are out of range: {data[:200]!r}")
    return facts


def decode_components(data: bytes, key: str) -> ComponentRefs:
    """What the head's `refs` says."""
    try:
        return ComponentRefs.from_stored(data)
    except ValueError as error:
        raise Corrupt("head", key, f"its refs are unreadable: {error}") from error


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
