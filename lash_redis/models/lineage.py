"""The lineage of a graph: the base that it shares with the graphs derived from it, and sequences of stored nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, overload

from lash_redis.models.node import SessionNodeRecord


class Base:
    """The common origin of graphs that were derived from one another by their own methods. Compared by identity.

    The base of a read is the log that was read. Any other base is an object without content.
    """

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True, eq=False)
class Lineage:
    """A base, and the number of a graph's first nodes that are the first nodes of the base.

    Pickles and deep copies of a graph have no lineage, because their nodes are other objects than those of the base.
    """

    base: Base
    """The base that the graph grew out of."""
    kept: int = 0
    """The number of the graph's first nodes that are the base's own; 0 for none."""

    def first(self, count: int) -> Lineage:
        """Return the lineage of a graph's first `count` nodes."""
        return self if count >= self.kept else Lineage(self.base, count)

    def __reduce__(self) -> tuple[Any, ...]:
        return NoneType, ()


class NodeSequence(Sequence[SessionNodeRecord]):
    """An immutable sequence of nodes that can be sliced and searched without decoding the nodes.

    It equals any sequence of equal nodes.
    """

    __slots__ = ()

    @abstractmethod
    def first(self, count: int) -> NodeSequence:
        """Return the first `count` nodes; `count` is from 0 to the number of nodes."""

    @abstractmethod
    def has_id(self, node_id: str) -> bool:
        """Whether a node has this id. Records are not checked against their checksums."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class GrownNodes(NodeSequence):
    """A sequence of stored nodes, followed by added nodes."""

    __slots__ = ("_added", "_stored")

    def __init__(self, stored: NodeSequence, added: tuple[SessionNodeRecord, ...]) -> None:
        self._stored = stored
        self._added = added

    def __len__(self) -> int:
        return len(self._stored) + len(self._added)

    @overload
    def __getitem__(self, index: int) -> SessionNodeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SessionNodeRecord]: ...
    def __getitem__(self, index: int | slice) -> SessionNodeRecord | Sequence[SessionNodeRecord]:
        stored = len(self._stored)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1 and start >= stored:
                return self._added[start - stored : max(stop, start) - stored]
            return tuple(self[at] for at in range(start, stop, step))
        if not -len(self) <= index < len(self):
            raise IndexError("node index out of range")
        at = index % len(self)
        return self._stored[at] if at < stored else self._added[at - stored]

    def __iter__(self) -> Iterator[SessionNodeRecord]:
        yield from self._stored
        yield from self._added

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GrownNodes) and len(self._stored) == len(other._stored):
            return self._stored == other._stored and self._added == other._added
        return super().__eq__(other)

    __hash__ = NodeSequence.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return GrownNodes, (self._stored, self._added)

    def first(self, count: int) -> NodeSequence:
        stored = len(self._stored)
        if count <= stored:
            return self._stored.first(count)
        return GrownNodes(self._stored, self._added[: count - stored])

    def has_id(self, node_id: str) -> bool:
        return any(node.node_id == node_id for node in self._added) or self._stored.has_id(node_id)

    def grown(self, added: Sequence[SessionNodeRecord]) -> GrownNodes:
        return GrownNodes(self._stored, (*self._added, *added))


def grown(nodes: Sequence[SessionNodeRecord], added: Sequence[SessionNodeRecord]) -> Sequence[SessionNodeRecord]:
    """Return a sequence of `nodes` followed by `added`. Stored nodes are not decoded."""
    if isinstance(nodes, GrownNodes):
        return nodes.grown(added)
    if isinstance(nodes, NodeSequence):
        return GrownNodes(nodes, tuple(added))
    return (*nodes, *added)
