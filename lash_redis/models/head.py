"""The head of a session, the scope of a read, and the read itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Self, TypeAlias

from lash_redis.models.components import BlobRef, HydratedSessionCheckpoint
from lash_redis.models.graph import SessionGraph
from lash_redis.models.session import PersistedSessionConfig
from lash_redis.models.usage import TokenLedgerEntry
from lash_redis.models.wire import U64, Record, Rule, Unread, Variant


@dataclass(frozen=True, slots=True)
class SessionHead(Record):
    """A head with its whole graph."""

    session_id: str = "root"
    """The id of the session."""
    head_revision: U64 = 0
    """The number of the last commit; 0 before the first."""
    graph: Annotated[SessionGraph, Rule.REQUIRED] = field(default_factory=SessionGraph)
    """The nodes and the leaf."""
    config: Annotated[PersistedSessionConfig, Rule.REQUIRED] = field(default_factory=PersistedSessionConfig)
    """The config that the last commit set."""
    checkpoint_ref: BlobRef | None = None
    """The SHA-256 of the manifest; None before the first commit."""
    token_ledger: Annotated[Sequence[TokenLedgerEntry], Rule.OMIT_EMPTY] = ()
    """The stored token usage, one entry for each source and model."""


@dataclass(frozen=True, slots=True)
class SessionHeadMeta(Record):
    """A head without its graph."""

    session_id: str = "root"
    """The id of the session."""
    head_revision: U64 = 0
    """The number of the last commit; 0 before the first."""
    config: Annotated[PersistedSessionConfig, Rule.REQUIRED] = field(default_factory=PersistedSessionConfig)
    """The config that the last commit set."""
    checkpoint_ref: BlobRef | None = None
    """The SHA-256 of the manifest; None before the first commit."""
    leaf_node_id: str | None = None
    """The node at which the active path ends; None for an empty path."""
    graph_node_count: U64 = 0
    """The number of live nodes in the graph."""
    token_ledger: Annotated[Sequence[TokenLedgerEntry], Rule.OMIT_EMPTY] = ()
    """The stored token usage, one entry for each source and model."""
    commit_id: str | None = None
    """The id of the last commit; None if unknown."""


@dataclass(frozen=True, slots=True)
class FullGraph(Variant):
    """Read every live node."""


@dataclass(frozen=True, slots=True)
class ActivePath(Variant):
    """Read the path from the root to one node, or a page of it."""

    leaf_node_id: str | None = None
    """The node at which the path ends; None for the leaf of the head."""
    limit: U64 | None = None
    """The largest number of nodes to read, at least 1: the last ones. None for all."""
    before: str | None = None
    """A node of the path. Only the nodes before it are read. None for all."""

    @property
    def is_page(self) -> bool:
        """Whether the scope is a page: a part of the path."""
        return self.limit is not None or self.before is not None


SessionReadScope: TypeAlias = FullGraph | ActivePath


class ReadOrigin:
    """The base of a read, from which the store that made the read continues in a refresh."""

    __slots__ = ()

    scope: SessionReadScope
    is_partial: bool


@dataclass(frozen=True, slots=True)
class PersistedSessionRead(Record, Unread):
    """One revision of a session.

    A read remembers its origin, also after pickling, so that `RedisSessionStore.refresh` fetches only what is new. A
    read that was made by hand, from JSON or by `dataclasses.replace` has no origin.
    """

    session_id: str
    """The id of the session."""
    head_revision: U64
    """The revision that was read."""
    config: PersistedSessionConfig
    """The config of that revision."""
    graph: SessionGraph
    """The nodes that the scope asked for, and the leaf."""
    checkpoint_ref: BlobRef | None = None
    """The SHA-256 of the manifest; None if the record names none."""
    checkpoint: HydratedSessionCheckpoint | None = None
    """The turn state and the components with their bodies; None if the record has none."""
    token_ledger: Annotated[Sequence[TokenLedgerEntry], Rule.OMIT_EMPTY] = ()
    """The stored token usage, one entry for each source and model."""
    commit_id: str | None = None
    """The id of the commit that made the revision; None if unknown."""
    _origin: Annotated[ReadOrigin | None, Rule.IN_MEMORY] = field(default=None, init=False, repr=False, compare=False)

    @property
    def is_partial(self) -> bool:
        """Whether the read is a page, and the path has nodes before its first."""
        return self.graph.is_partial if self._origin is None else self._origin.is_partial

    @property
    def scope(self) -> SessionReadScope:
        """The scope that a refresh reads: the scope of this read, or `FullGraph()` if the read has no origin."""
        return FullGraph() if self._origin is None else self._origin.scope

    def from_origin(self, origin: ReadOrigin) -> Self:
        """Set the origin from which a refresh continues, and return this read. For stores only."""
        object.__setattr__(self, "_origin", origin)
        return self
