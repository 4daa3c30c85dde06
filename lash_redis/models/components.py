"""The components of a session (tool state, plugin snapshot, execution state), and the checkpoint with their refs."""

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
    """One tool and its origin."""

    manifest: JsonObject
    """The description of the tool: a JSON object that the store does not interpret."""
    source_id: str
    """The origin of the tool, such as `plugins` or `live:<n>`."""


@dataclass(frozen=True, slots=True)
class ToolState(Record, Unread):
    """The tools of a session, a component that sessions can share."""

    generation: Annotated[U64, Rule.REQUIRED] = 0
    """A counter that the runtime raises when its set of tools changes."""
    tools: Annotated[Mapping[str, ToolStateEntry], Rule.REQUIRED] = field(default_factory=dict)
    """The tools by name. They are stored in the order of their names."""


@dataclass(frozen=True, slots=True)
class PluginSnapshotMeta(Record):
    """The identity, version and state of one plugin."""

    plugin_id: str
    """The id of the plugin."""
    plugin_version: str
    """The version of the plugin that wrote the snapshot."""
    revision: U64 = 0
    """A counter that the plugin raises when its state changes."""
    state: Json | None = None
    """The state of the plugin as free-form JSON; None for no state."""


@dataclass(frozen=True, slots=True)
class PluginArtifact(Record):
    """One file of a plugin."""

    name: str
    """The name of the file within its plugin."""
    data: bytes
    """The content of the file. JSON writes it as a list of integers, 0 to 255."""


@dataclass(frozen=True, slots=True)
class PluginSnapshotEntry(Record):
    """The snapshot of one plugin."""

    meta: PluginSnapshotMeta
    """The identity, version and state of the plugin."""
    artifacts: Sequence[PluginArtifact] = ()
    """The files of the plugin, in the order that the plugin gave them."""


@dataclass(frozen=True, slots=True)
class PluginSessionSnapshot(Record, Unread):
    """The snapshots of all plugins of a session, a component."""

    plugins: Mapping[str, PluginSnapshotEntry] = field(default_factory=dict)
    """The snapshots by plugin id. They are stored in the order of the ids."""


@dataclass(frozen=True, slots=True)
class SessionCheckpoint(Record):
    """The manifest: the turn state and the refs of the components. A component without a ref does not exist."""

    turn_state: PersistedTurnState = field(default_factory=PersistedTurnState)
    """The position of the session in its turns."""
    tool_state_ref: BlobRef | None = None
    """The ref of the tool state; None if the session has none."""
    plugin_snapshot_ref: BlobRef | None = None
    """The ref of the plugin snapshot; None if the session has none."""
    plugin_snapshot_revision: U64 | None = None
    """A fingerprint of the plugin revisions, set by the runtime; None if unset."""
    execution_state_ref: BlobRef | None = None
    """The ref of the execution state; None if the session has none."""


@dataclass(frozen=True, slots=True)
class HydratedSessionCheckpoint(Record, Unread):
    """A checkpoint with the bodies of its components.

    In a commit, a body is stored and its ref is ignored. A ref without a body keeps what is stored. Neither drops the
    component. Empty bytes are a body.
    """

    turn_state: PersistedTurnState = field(default_factory=PersistedTurnState)
    """The position of the session in its turns."""
    tool_state_ref: BlobRef | None = None
    """The ref of the tool state. A commit ignores it if `tool_state` is given."""
    tool_state: ToolState | None = None
    """The tool state; None for none, or in a commit for the one that the ref names."""
    plugin_snapshot_ref: BlobRef | None = None
    """The ref of the plugin snapshot. A commit ignores it if `plugin_snapshot` is given."""
    plugin_snapshot: PluginSessionSnapshot | None = None
    """The plugin snapshot; None for none, or in a commit for the one that the ref names."""
    plugin_snapshot_revision: U64 | None = None
    """A fingerprint of the plugin revisions, set by the runtime; None if unset."""
    execution_state_ref: BlobRef | None = None
    """The ref of the execution state. A commit ignores it if `execution_state` is given."""
    execution_state: bytes | None = None
    """The execution state; None for none, or in a commit for the one that the ref names. `b""` is a value."""
