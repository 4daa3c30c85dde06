"""The request of a commit: the change of the graph, the new config and checkpoint, the usage and the leases."""

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
from lash_redis.models.stream import StreamClaim
from lash_redis.models.usage import TokenLedgerEntry
from lash_redis.models.wire import U64, Form, Id, Record, Rule, Variant, encode_fields
from lash_redis.options import KEEP, SEEN, Keep, SeenRevision


@dataclass(frozen=True, slots=True)
class Unchanged(Variant):
    """Keep the stored nodes and move the leaf."""

    leaf_node_id: str | None = None
    """The id of the new leaf. None removes the leaf; strict checks refuse that if the session has nodes."""


@dataclass(frozen=True, slots=True)
class Append(Variant):
    """Add nodes to the stored graph and move the leaf."""

    nodes: Sequence[SessionNodeRecord]
    """The new nodes in the order of the log, each parent before its children."""
    leaf_node_id: str | Keep | None = KEEP
    """The id of the new leaf. Left out, it is the last of `nodes`, or the stored leaf if there are none.

    None removes the leaf; strict checks refuse that if the session has nodes.
    """

    def __post_init__(self) -> None:
        if self.leaf_node_id is KEEP and self.nodes and isinstance(self.nodes, Sequence):
            last = self.nodes[-1]
            if isinstance(last, SessionNodeRecord):  # a commit refuses any other node by name
                object.__setattr__(self, "leaf_node_id", last.node_id)


@dataclass(frozen=True, slots=True)
class ReplaceFull(Variant):
    """Replace every stored node by the nodes of a graph."""

    graph: SessionGraph
    """The whole new graph with its leaf. Stored nodes that it does not contain are dropped.

    The store refuses a graph that is partial (`SessionGraph.is_partial`).
    """

    @property
    def leaf_node_id(self) -> str | None:
        return self.graph.leaf_node_id

    def _encode(self, form: Form) -> Any:
        # A newtype variant of serde: the graph is the value of the tag, without a field name between them.
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
    """One turn of a session, which the server saves atomically.

    What is left out stays as it is stored: the graph, the config, the checkpoint. A config or checkpoint that is given
    is a whole value: an omitted field is reset, and an omitted component is dropped. Start from `read.config` and
    `read.checkpoint`. A ref without a body keeps the stored body.

    To retry a commit, send the same object again. The server finds the receipt of the first attempt by `commit_id`.
    """

    session_id: Id
    """The session to commit to. The store refuses a commit for another session than its own."""
    expected_head_revision: U64 | SeenRevision | None = SEEN
    """The revision that this commit builds on; 0 for a new session.

    Left out, it is the revision that the handle saw last, and 0 for a handle that saw none. None compares nothing, so
    the commit overwrites what other workers stored.
    """
    config: PersistedSessionConfig | Keep = KEEP
    """The config that the head has after the commit. Left out, the stored one stays."""
    graph: GraphCommitDelta | Keep = KEEP
    """The change of the graph. Left out, the nodes and the leaf stay."""
    checkpoint: HydratedSessionCheckpoint | Keep = KEEP
    """The turn state and the components that the head has after the commit. Left out, the stored ones stay."""
    usage_deltas: Sequence[TokenLedgerEntry] = ()
    """Token counts that the server adds to the stored ledger."""
    commit_id: Id = field(default_factory=lambda: uuid4().hex)
    """The id by which the server recognises a retry. The default is a random UUID of 32 hex digits."""
    builds_on: str | None = None
    """The id of the commit that made `expected_head_revision`, or None if unknown.

    After a failover another commit can have the same revision number. The server then refuses this commit.
    """
    lease: Annotated[LeaseClaim | None, Rule.IN_MEMORY] = None
    """A lease that the caller must still hold, or the server refuses the commit. None checks no lease.

    It is not part of the commit's meaning or JSON.
    """
    releases: Annotated[LeaseClaim | None, Rule.IN_MEMORY] = None
    """A lease that the server releases with the commit if the caller still holds it. None releases no lease.

    The commit is made in either case. It cannot be combined with `lease`.
    """
    consumes: Annotated[Sequence[Id], Rule.OMIT_EMPTY] = ()
    """The ids of pending inputs that this commit answers, at most 128. They are pending until the commit is made.

    The server refuses the commit if one of them is not pending. They are part of the commit's meaning.
    """
    finishes: Annotated[StreamClaim | None, Rule.IN_MEMORY] = None
    """A stream that the server finishes with the commit: the `out` of `async with store.stream(...) as out`.

    A follower that sees the end can then load the turn. The commit is made in either case: a stream that was lost or
    has ended stays as it is. If the commit is refused, the stream continues.

    It is not part of the commit's meaning or JSON. A commit that is sent again finishes the stream, too.
    """

    @classmethod
    def persisted_state(cls, state: PersistedSessionState, usage_deltas: Sequence[TokenLedgerEntry] = ()) -> Self:
        """Make a commit of a state: the whole graph if the state is new or `graph_replace_required`, else the leaf.

        For new nodes, set `graph_replace_required`, or pass them to `persisted_state_with_graph_commit`. Otherwise the
        new leaf is not stored, and the server refuses the commit with `InvalidLeaf`.

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
        """Make a commit of a state with the graph change `graph`. `state.session_graph` is not read.

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
