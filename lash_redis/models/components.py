"""The parts of a session that are stored as blobs, and the checkpoint that holds them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from lash_redis.models.session import PersistedTurnState
from lash_redis.models.wire import U64, Json, JsonObject, Record, Rule, Unread


class BlobRef(str):
    """The address of a blob: the SHA-256 of its logical bytes, 64 lowercase hex digits."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ToolStateEntry(Record):
    """One tool: its manifest, a free-form object, and where it came from (`plugins` or `live:<n>`)."""

    manifest: JsonObject
    source_id: str


@dataclass(frozen=True, slots=True)
class ToolState(Record, Unread):
    """Every tool by name; written sorted by name."""

    generation: Annotated[U64, Rule.REQUIRED] = 0
    tools: Annotated[Mapping[str, ToolStateEntry], Rule.REQUIRED] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PluginSnapshotMeta(Record):
    """`state` is free-form JSON; null is no state."""

    plugin_id: str
    plugin_version: str
    revision: U64 = 0
    state: Json | None = None


@dataclass(frozen=True, slots=True)
class PluginArtifact(Record):
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PluginSnapshotEntry(Record):
    meta: PluginSnapshotMeta
    artifacts: Sequence[PluginArtifact] = ()


@dataclass(frozen=True, slots=True)
class PluginSessionSnapshot(Record, Unread):
    """Every plugin by id; written sorted by id."""

    plugins: Mapping[str, PluginSnapshotEntry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionCheckpoint(Record):
    """The manifest: the turn state, and the refs of the components. A component without a ref is not there."""

    turn_state: PersistedTurnState = field(default_factory=PersistedTurnState)
    tool_state_ref: BlobRef | None = None
    plugin_snapshot_ref: BlobRef | None = None
    plugin_snapshot_revision: U64 | None = None
    execution_state_ref: BlobRef | None = None


@dataclass(frozen=True, slots=True)
class HydratedSessionCheckpoint(Record, Unread):
    """A checkpoint with the bodies of its components.

    In a commit a body stores that body and its ref is ignored, a ref alone keeps what is stored, and neither drops the
    component. Empty bytes are a body.
    """

    turn_state: PersistedTurnState = field(default_factory=PersistedTurnState)
    tool_state_ref: BlobRef | None = None
    tool_state: ToolState | None = None
    plugin_snapshot_ref: BlobRef | None = None
    plugin_snapshot: PluginSessionSnapshot | None = None
    plugin_snapshot_revision: U64 | None = None
    execution_state_ref: BlobRef | None = None
    execution_state: bytes | None = None
