"""The state of a session that a runtime keeps in memory between commits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Self

from lash_redis.errors import InvalidRecord
from lash_redis.models.commit_result import RuntimeCommitResult
from lash_redis.models.components import BlobRef, PluginSessionSnapshot, ToolState
from lash_redis.models.graph import SessionGraph
from lash_redis.models.head import ActivePath, FullGraph, PersistedSessionRead
from lash_redis.models.session import ModeTurnOptions, PersistedTurnState, SessionPolicy
from lash_redis.models.usage import PromptUsage, SessionUsageReport, TokenLedgerEntry, TokenUsage, merge_token_ledger
from lash_redis.models.wire import U64, Record, Rule


@dataclass(slots=True)
class PersistedSessionState(Record):
    """The state of a session that a runtime keeps in memory between commits. It is mutable.

    If a component has both a ref and a snapshot, the snapshot is newer.
    """

    session_id: Annotated[str, Rule.REQUIRED] = "root"
    """The id of the session."""
    policy: SessionPolicy = field(default_factory=SessionPolicy)
    """How the live session runs."""
    session_graph: SessionGraph = field(default_factory=SessionGraph)
    """The nodes and the leaf."""
    turn_index: U64 = 0
    """The index of the turn, counted by the runtime; 0 for a new session."""
    token_usage: TokenUsage = field(default_factory=TokenUsage)
    """The token counts that the runtime keeps for the session."""
    last_prompt_usage: PromptUsage | None = None
    """The context window at the last prompt; None before the first."""
    mode_turn_options: ModeTurnOptions = field(default_factory=ModeTurnOptions)
    """What the execution mode keeps from turn to turn."""
    tool_state_ref: BlobRef | None = None
    """The ref of the stored tool state; None if there is none."""
    tool_state_generation: U64 | None = None
    """The generation of the stored tool state; None if there is none."""
    tool_state_snapshot: ToolState | None = None
    """The tool state that the next commit stores; None to keep the one that the ref names."""
    plugin_snapshot_ref: BlobRef | None = None
    """The ref of the stored plugin snapshot; None if there is none."""
    plugin_snapshot_revision: U64 | None = None
    """A fingerprint of the plugin revisions, set by the runtime; None if unset."""
    plugin_snapshot: PluginSessionSnapshot | None = None
    """The plugin snapshot that the next commit stores; None to keep the one that the ref names."""
    execution_state_ref: BlobRef | None = None
    """The ref of the stored execution state; None if there is none."""
    execution_state_snapshot: bytes | None = None
    """The execution state that the next commit stores; None to keep the one that the ref names."""
    token_ledger: Annotated[list[TokenLedgerEntry], Rule.OMIT_EMPTY] = field(default_factory=list)
    """The stored token usage, one entry for each source and model."""
    checkpoint_ref: BlobRef | None = None
    """The SHA-256 of the manifest; None before the first commit."""
    head_revision: Annotated[int | None, Rule.IN_MEMORY] = None
    """The revision that the next commit builds on; None before the first."""
    graph_replace_required: Annotated[bool, Rule.IN_MEMORY] = False
    """Whether the next commit sends the whole graph."""
    commit_id: Annotated[str | None, Rule.IN_MEMORY] = None
    """The id of the commit that made `head_revision`; None if unknown."""
    _read: Annotated[PersistedSessionRead | None, Rule.IN_MEMORY] = field(
        default=None, init=False, repr=False, compare=False
    )
    """The full read from which this state was made. The next refresh continues from it."""

    @classmethod
    def from_read(cls, read: PersistedSessionRead) -> Self:
        """Make a state from a read. The provider is "unconfigured", because it is not stored.

        If the read is a partial page, the store refuses a commit of the state that replaces the graph.

        Raises:
            InvalidRecord: the read is a page that ends before the end of its path. A commit would move the head back.

        Source: persisted_session_state_from_read.
        """
        if isinstance(read.scope, ActivePath) and read.scope.before is not None:
            raise InvalidRecord("read", "expected the end of a path, got an earlier page; load the last page")
        config, checkpoint = read.config, read.checkpoint
        state = cls(
            session_id=read.session_id,
            policy=SessionPolicy(
                model=config.configured_model,
                max_context_tokens=config.context_window or None,
                model_variant=config.model_variant,
                execution_mode=config.execution_mode,
                standard_context_approach=config.standard_context_approach,
            ),
            session_graph=read.graph,
            token_ledger=list(read.token_ledger),
            checkpoint_ref=read.checkpoint_ref,
            head_revision=read.head_revision,
            commit_id=read.commit_id,
        )
        state._read = read if read.scope == FullGraph() else None
        if checkpoint is not None:
            turn: PersistedTurnState = checkpoint.turn_state
            state.turn_index = turn.turn_index
            state.token_usage = turn.token_usage
            state.last_prompt_usage = turn.last_prompt_usage
            state.mode_turn_options = turn.mode_turn_options
            state.tool_state_ref = checkpoint.tool_state_ref
            state.tool_state_generation = None if checkpoint.tool_state is None else checkpoint.tool_state.generation
            state.tool_state_snapshot = checkpoint.tool_state
            state.plugin_snapshot_ref = checkpoint.plugin_snapshot_ref
            state.plugin_snapshot_revision = checkpoint.plugin_snapshot_revision
            state.plugin_snapshot = checkpoint.plugin_snapshot
            state.execution_state_ref = checkpoint.execution_state_ref
            state.execution_state_snapshot = checkpoint.execution_state
        return state

    def adopt(self, read: PersistedSessionRead) -> None:
        """Replace every field by the content of `read`. The parts of the live policy that are not stored stay."""
        live = self.policy
        fresh = type(self).from_read(read)
        fresh.policy = replace(
            fresh.policy,
            provider=live.provider,
            session_id=live.session_id,
            autonomous=live.autonomous,
            max_turns=live.max_turns,
            prompt=live.prompt,
        )
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))

    def apply_persisted_commit_result(self, result: RuntimeCommitResult) -> None:
        """Make the next commit build on `result`. Stored snapshots are released, so the next commit sends only refs."""
        manifest = result.manifest
        if self.tool_state_snapshot is not None:
            self.tool_state_generation = self.tool_state_snapshot.generation
        elif manifest.tool_state_ref is None:
            self.tool_state_generation = None
        self.head_revision = result.head_revision
        self.commit_id = result.commit_id or None
        self.checkpoint_ref = result.checkpoint_ref
        self.tool_state_ref = manifest.tool_state_ref
        self.plugin_snapshot_ref = manifest.plugin_snapshot_ref
        self.plugin_snapshot_revision = manifest.plugin_snapshot_revision
        self.execution_state_ref = manifest.execution_state_ref
        self.tool_state_snapshot = self.plugin_snapshot = self.execution_state_snapshot = None
        self.graph_replace_required = False

    def set_execution_state_snapshot(self, snapshot: bytes | None) -> None:
        """Set the execution state of the next commit. None removes it; empty bytes are a value."""
        self.execution_state_snapshot = snapshot
        if snapshot is None:
            self.execution_state_ref = None

    def heal_orphaned_leaf(self) -> bool:
        """Replace an unknown leaf by the last message; return whether the leaf was replaced.

        After a replacement, the next commit sends the whole graph. See `SessionGraph.heal_orphaned_leaf`.
        """
        healed = self.session_graph.heal_orphaned_leaf()
        if healed is self.session_graph:
            return False
        self.session_graph = healed
        self.graph_replace_required = True
        return True

    def usage_report(self, pending: Iterable[TokenLedgerEntry] = ()) -> SessionUsageReport:
        """Report the sums of the ledger and of `pending`, the entries that are not committed yet."""
        return SessionUsageReport.from_ledger(merge_token_ledger([*self.token_ledger, *pending]))
