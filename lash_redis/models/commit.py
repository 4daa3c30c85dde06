"""What a commit asks for, and what it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self, TypeAlias
from uuid import uuid4

from lash_redis.models.components import HydratedSessionCheckpoint
from lash_redis.models.graph import SessionGraph
from lash_redis.models.json_values import Fault
from lash_redis.models.lease import LeaseClaim
from lash_redis.models.node import SessionNodeRecord
from lash_redis.models.session import PersistedSessionConfig, PersistedTurnState
from lash_redis.models.state import PersistedSessionState
from lash_redis.models.usage import TokenLedgerEntry
from lash_redis.models.wire import U64, Form, Id, Record, Rule, Variant, encode_fields


@dataclass(frozen=True, slots=True)
class Unchanged(Variant):
    """Keep the nodes and put the leaf where `leaf_node_id` says.

    None takes the leaf away, which strict checks refuse in a session that has nodes.
    """

    leaf_node_id: str | None = None


@dataclass(frozen=True, slots=True)
class Append(Variant):
    """Add `nodes`, parents before children, and put the leaf where `leaf_node_id` says."""

    nodes: Sequence[SessionNodeRecord]
    leaf_node_id: str | None = None


@dataclass(frozen=True, slots=True)
class ReplaceFull(Variant):
    """Put `graph` in the place of every stored node."""

    graph: SessionGraph

    @property
    def leaf_node_id(self) -> str | None:
        return self.graph.leaf_node_id

    def _encode(self, form: Form) -> Any:
        # A newtype variant: the graph stands directly under the tag.
        return {"ReplaceFull": encode_fields(self, form)["graph"]}

    @classmethod
    def _decode(cls, value: Any) -> Self:
        try:
            return cls(SessionGraph._decode(cls._untagged(value)))
        except Fault as fault:
            raise fault.under(".ReplaceFull") from None


GraphCommitDelta: TypeAlias = Unchanged | Append | ReplaceFull


@dataclass(frozen=True, slots=True)
class RuntimeCommit(Record):
    """One turn to be saved, all or nothing.

    `graph` and `usage_deltas` say what changes. `config` and `checkpoint` are whole: what is left out of them is reset
    or dropped, so start from `read.config` and `read.checkpoint` (a component's ref alone keeps what is stored).

    The same object sent again is a retry: its `commit_id` finds the first attempt's receipt.
    """

    session_id: Id
    expected_head_revision: U64 | None = None
    """The revision this commit builds on; None compares nothing."""
    config: PersistedSessionConfig = field(default_factory=PersistedSessionConfig)
    graph: GraphCommitDelta = Unchanged()
    checkpoint: HydratedSessionCheckpoint = field(default_factory=HydratedSessionCheckpoint)
    usage_deltas: Sequence[TokenLedgerEntry] = ()
    """Added to the stored ledger."""
    commit_id: Id = field(default_factory=lambda: uuid4().hex)
    builds_on: str | None = None
    """The `commit_id` behind `expected_head_revision`, where known: a revision number can come round again."""
    lease: Annotated[LeaseClaim | None, Rule.IN_MEMORY] = None
    """Refuse the commit once this lease is lost. No part of its meaning or of its JSON."""
    releases: Annotated[LeaseClaim | None, Rule.IN_MEMORY] = None
    """Let go of this lease with the commit if it is still held, and commit in any case. Not beside `lease`."""

    @classmethod
    def persisted_state(cls, state: PersistedSessionState, usage_deltas: Sequence[TokenLedgerEntry] = ()) -> Self:
        """The whole graph where the state is new or asks for it (`graph_replace_required`), else only the leaf.

        A graph that has grown asks for it, or names what is new by `persisted_state_with_graph_commit`: a leaf that is
        not stored is refused as `InvalidLeaf`.

        Source: RuntimeCommit::persisted_state.
        """
        graph: GraphCommitDelta
        if state.graph_replace_required or state.head_revision is None:
            graph = ReplaceFull(state.session_graph)
        else:
            graph = Unchanged(state.session_graph.leaf_node_id)
        return cls.persisted_state_with_graph_commit(state, graph, usage_deltas)

    @classmethod
    def persisted_state_with_graph_commit(
        cls, state: PersistedSessionState, graph: GraphCommitDelta, usage_deltas: Sequence[TokenLedgerEntry] = ()
    ) -> Self:
        """Everything of `state` but its graph, which changes by `graph`.

        Source: RuntimeCommit::persisted_state_with_graph_commit.
        """
        return cls(
            session_id=state.session_id,
            expected_head_revision=state.head_revision,
            config=PersistedSessionConfig(
                provider_id=state.policy.provider.kind,
                configured_model=state.policy.model,
                context_window=state.policy.max_context_tokens or 0,
                execution_mode=state.policy.execution_mode,
                standard_context_approach=state.policy.standard_context_approach,
                model_variant=state.policy.model_variant,
            ),
            graph=graph,
            checkpoint=HydratedSessionCheckpoint(
                turn_state=PersistedTurnState(
                    state.turn_index, state.token_usage, state.last_prompt_usage, state.mode_turn_options
                ),
                tool_state_ref=state.tool_state_ref,
                tool_state=state.tool_state_snapshot,
                plugin_snapshot_ref=state.plugin_snapshot_ref,
                plugin_snapshot=state.plugin_snapshot,
                plugin_snapshot_revision=state.plugin_snapshot_revision,
                execution_state_ref=state.execution_state_ref,
                execution_state=state.execution_state_snapshot,
            ),
            usage_deltas=tuple(usage_deltas),
            builds_on=state.commit_id,
        )
