"""The stored form of a head: its facts, body, receipts and meta. Decoding raises `Corrupt` for damaged bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.models import BlobRef, PersistedSessionConfig, PersistedTurnState, SessionCheckpoint, SessionMeta
from lash_redis.models.json_values import MAX_I64
from lash_redis.protocol.checksums import crc32
from lash_redis.protocol.component_refs import ComponentRefs, Refs, digests
from lash_redis.protocol.numbers import decode_number
from lash_redis.protocol.packing import pack
from lash_redis.protocol.unpacking import UNREADABLE, unpack

TAG_BYTES: Final = 8
RECEIPT_BYTES: Final = 2 * TAG_BYTES
"""Bytes of a receipt: the tag of the commit, then its meaning."""
RECEIPTS: Final = 32
"""Number of receipts that a head keeps."""


@lru_cache(maxsize=1024)
def tag_of(text: str) -> bytes:
    """Return the 8 bytes by which a receipt identifies a commit id."""
    return sha256(text.encode()).digest()[:TAG_BYTES]


def own_receipts(fields: Mapping[bytes, bytes], revision: int, key: str) -> bytes:
    """Return the receipts of a head, with zeros for those of a former session of its id.

    Raises:
        Corrupt: the record of the former session is unreadable.
    """
    receipts, past = fields.get(b"receipts", b""), fields.get(b"past")
    if past is None:
        return receipts
    try:
        last, _epoch, _receipts = past.split(b" ", 2)
        own = revision - decode_number(last, high=MAX_I64)
    except ValueError as error:
        raise Corrupt("head", key, f"its record of a former session is unreadable: {error}") from error
    former = max(0, len(receipts) - own * RECEIPT_BYTES)
    return bytes(former) + receipts[former:]


@dataclass(frozen=True, slots=True)
class HeadBody:
    """The part of the head that no script reads. Config and turn state are decoded on access."""

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
        """The session's config.

        Raises:
            Corrupt: it is unreadable.
        """
        try:
            return PersistedSessionConfig.from_json(_named(self.stored[0], _CONFIG), "config")
        except (*UNREADABLE, AttributeError, InvalidRecord) as error:
            raise Corrupt("head", self.key, f"its config is unreadable: {error}") from error

    @property
    def checkpoint(self) -> SessionCheckpoint:
        """The manifest.

        Raises:
            Corrupt: its turn state is unreadable.
        """
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
    """Encode the body: a CRC-32, then `[session, commit, leaf, checkpoint ref, config, turn state, revision]`.

    The CRC-32 covers the rest and the refs. `config` and `manifest` are values that MessagePack accepts. Their field
    names are left out, because they would take more room than the values. The manifest's refs are left out, too,
    because the head's `refs` field has them.
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
    """Verify a stored body and decode all of it except config and turn state.

    Raises:
        Corrupt: the body is damaged; names `key`, the key of the head.
    """
    body = data[4:]
    if crc32(digests(components.refs), crc32(body)) != int.from_bytes(data[:4], "big"):
        raise Corrupt("head", key, "its body and refs do not match their checksum")
    try:
        session_id, commit_id, leaf, ref, *stored = unpack(body)
        config, turn, revision = stored
        if not isinstance(session_id, str) or not isinstance(commit_id, str) or not isinstance(leaf, str | None):
            raise TypeError("an id is not a string")
        if not isinstance(revision, int | None):
            raise TypeError("the revision of the plugin snapshot is not an integer")
        checkpoint_ref = BlobRef(ref.hex())
    except (*UNREADABLE, AttributeError) as error:
        raise Corrupt("head", key, f"its body is unreadable: {error}") from error
    return HeadBody(key, session_id, commit_id, leaf, checkpoint_ref, components.refs, (config, turn, revision))


class HeadState(Protocol):
    """The values of a head that stay if a commit leaves them out."""

    @property
    def config(self) -> PersistedSessionConfig: ...
    @property
    def checkpoint(self) -> SessionCheckpoint: ...
    @property
    def leaf_node_id(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class NewHead:
    """The values of a head that a commit made; without arguments, those of a session without a commit."""

    config: PersistedSessionConfig = field(default_factory=PersistedSessionConfig)
    checkpoint: SessionCheckpoint = field(default_factory=SessionCheckpoint)
    leaf_node_id: str | None = None


NO_HEAD: Final = NewHead()
"""What a session without a commit has."""


class Facts(NamedTuple):
    """The numbers of a head that scripts decide on. `lua/include/head.lua` defines their order and meaning."""

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

    @property
    def freed(self) -> int:
        """The number of nodes that were tombstoned and vacuumed."""
        return self.length - self.live - self.dead


_WHOLE: Final = rb"(?:0|[1-9][0-9]{0,14})"
_FACTS: Final = re.compile(
    b" ".join(
        {"revision": rb"(?:0|[1-9][0-9]{0,18})", "leaf": b"(?:-1|%b)" % _WHOLE, "loose": b"[01]"}.get(
            name, b"(?:-[12]|%b)" % _WHOLE if name == "first" else _WHOLE
        )
        for name in Facts._fields
    )
).fullmatch
"""Match facts as scripts read them: see `protocol/numbers.py`, of which each number of the facts is one."""


def decode_facts(data: bytes, key: str) -> Facts:
    """Decode the facts of a head; raises Corrupt for bytes that the scripts refuse, too."""
    facts = Facts._make(map(int, data.split(b" "))) if _FACTS(data) else None
    if facts is None or facts.revision > MAX_I64:
        raise Corrupt("head", key, f"its facts are unreadable: {data[:200]!r}")
    return facts


def decode_ttl(data: bytes | None, key: str) -> int | None:
    """Decode the ttl of a session in ms, 0 for never; None without one. Raises Corrupt if it is unreadable."""
    try:
        return None if data is None else decode_number(data)
    except ValueError as error:
        raise Corrupt("head", key, f"its ttl is unreadable: {error}") from error


def decode_components(data: bytes, key: str) -> ComponentRefs:
    """Decode the head's `refs` field; raises Corrupt if it is unreadable."""
    try:
        return ComponentRefs.from_stored(data)
    except ValueError as error:
        raise Corrupt("head", key, f"its refs are unreadable: {error}") from error


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
