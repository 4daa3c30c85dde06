"""Where a session stands, and what a read of it brings."""

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
    head_revision: U64 = 0
    graph: Annotated[SessionGraph, Rule.REQUIRED] = field(default_factory=SessionGraph)
    config: Annotated[PersistedSessionConfig, Rule.REQUIRED] = field(default_factory=PersistedSessionConfig)
    checkpoint_ref: BlobRef | None = None
    token_ledger: Annotated[Sequence[TokenLedgerEntry], Rule.OMIT_EMPTY] = ()


@dataclass(frozen=True, slots=True)
class SessionHeadMeta(Record):
    """A head without its graph. `commit_id` is that of the last commit."""

    session_id: str = "root"
    head_revision: U64 = 0
    config: Annotated[PersistedSessionConfig, Rule.REQUIRED] = field(default_factory=PersistedSessionConfig)
    checkpoint_ref: BlobRef | None = None
    leaf_node_id: str | None = None
    graph_node_count: U64 = 0
    token_ledger: Annotated[Sequence[TokenLedgerEntry], Rule.OMIT_EMPTY] = ()
    commit_id: str | None = None


@dataclass(frozen=True, slots=True)
class FullGraph(Variant):
    """Read every live node."""


@dataclass(frozen=True, slots=True)
class ActivePath(Variant):
    """Read the path from the root to `leaf_node_id`, or to the head's leaf where that is None."""

    leaf_node_id: str | None = None


SessionReadScope: TypeAlias = FullGraph | ActivePath


class ReadOrigin:
    """What a read was made of. The store that made the read continues from it in a refresh."""

    __slots__ = ()

    scope: SessionReadScope


@dataclass(frozen=True, slots=True)
class PersistedSessionRead(Record, Unread):
    """One revision of a session. `commit_id` is that of the commit which made it.

    A read remembers where it came from, so that `RedisSessionStore.refresh` fetches only what is new since, also after
    pickling. One that was made by hand, from JSON or by `dataclasses.replace` does not.
    """

    session_id: str
    head_revision: U64
    config: PersistedSessionConfig
    graph: SessionGraph
    checkpoint_ref: BlobRef | None = None
    checkpoint: HydratedSessionCheckpoint | None = None
    token_ledger: Annotated[Sequence[TokenLedgerEntry], Rule.OMIT_EMPTY] = ()
    commit_id: str | None = None
    _origin: Annotated[ReadOrigin | None, Rule.IN_MEMORY] = field(default=None, init=False, repr=False, compare=False)

    @property
    def scope(self) -> SessionReadScope:
        """What a refresh reads: what was read, and `FullGraph()` where this read does not know."""
        return FullGraph() if self._origin is None else self._origin.scope

    def from_origin(self, origin: ReadOrigin) -> Self:
        """This read, which a refresh continues from `origin` from now on. For stores only."""
        object.__setattr__(self, "_origin", origin)
        return self
