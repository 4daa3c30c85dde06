"""Append nodes to a session behind what other handles append: compare-and-set, repeated after a conflict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from lash_redis.errors import HeadRevisionConflict, InvalidParent, NodeIdCollision, SessionExists, SessionGone
from lash_redis.models import (
    Append,
    LeaseClaim,
    PersistedSessionRead,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionNodeRecord,
    StreamClaim,
    TokenLedgerEntry,
)
from lash_redis.protocol.steps import Steps
from lash_redis.session.contention import repeated_after_conflicts
from lash_redis.session.namespace import Namespace
from lash_redis.session.store import RedisSessionStore
from lash_redis.transport.turns import in_turns


@dataclass(frozen=True, slots=True)
class Tip:
    """The head of a session as a handle saw it: the revision, the commit that made it, and the leaf."""

    revision: int = 0
    commit_id: str | None = None
    leaf: str | None = None

    @classmethod
    def of(cls, read: PersistedSessionRead | None) -> Tip:
        """Return the tip of a read; None means that the session does not exist."""
        return cls() if read is None else cls(read.head_revision, read.commit_id, read.graph.leaf_node_id)

    @classmethod
    def after(cls, result: RuntimeCommitResult, leaf: str | None) -> Tip | None:
        """Return the tip that a commit made; None for a replay, because later commits may have followed it."""
        return None if result.replayed else cls(result.head_revision, result.commit_id, leaf)


@dataclass(frozen=True, slots=True)
class Addition:
    """Nodes to add as a chain, and what is committed with them."""

    nodes: Sequence[SessionNodeRecord]
    """The nodes in order, without parents."""
    parent_of: Callable[[Tip], str | None] = lambda tip: tip.leaf
    """Returns the id of the node that the chain continues."""
    usage: Sequence[TokenLedgerEntry] = ()
    lease: LeaseClaim | None = None
    consumes: Sequence[str] = ()
    finishes: StreamClaim | None = None


class Appender:
    """Appends to one session.

    An addition takes one round trip if no other handle has written since this one read or wrote the session, else two
    or three. Additions of one process follow one another in the order of their calls (`turn`). If other processes
    write at the same time, an addition is repeated behind them, for at most `StoreOptions.contention_seconds`.
    """

    def __init__(
        self,
        store: RedisSessionStore,
        namespace: Namespace,
        is_same: Callable[[SessionNodeRecord, SessionNodeRecord], bool],
    ) -> None:
        """`is_same(stored, added)` decides whether a stored node with the id of an added one has its content."""
        self.store = store
        self.tip: Tip | None = None
        """The head that this handle saw last; None if it must load the head before it appends."""
        self._queues = namespace.appends
        self._patience = namespace.options.contention_seconds
        self._is_same = is_same

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for the additions of this process that were called before; for use with `async with`.

        Raises:
            BackendError: they took `StoreOptions.contention_seconds`; nothing was written.
        """
        return self._queues.turn(self.store.session_id, self._patience)

    async def add(self, addition: Addition) -> None:
        """Commit an addition in the turn of its caller; repeat it after a conflict.

        Raises:
            InvalidParent: the chain continues a node that is not live; nothing was appended.
            NodeIdCollision: a node with an added id and other content is stored; nothing was appended.
            HeadRevisionConflict: other processes wrote first, for `StoreOptions.contention_seconds`; nothing was
                appended. Its subclass SessionGone is raised at the first attempt.
            Everything else that `RedisSessionStore.commit_runtime_state` raises.
        """
        try:
            await self._add_once(addition)
        except (SessionGone, SessionExists):
            raise
        except HeadRevisionConflict:
            # AsyncRetrying takes 60 µs even if nothing is repeated, so the first attempt does without it.
            retrying = repeated_after_conflicts(self._patience, SessionGone, reraise=True)
            await retrying(self._add_once, addition)

    async def _add_once(self, addition: Addition, *, again: bool = True) -> None:
        """Commit an addition, or find that it is stored. `again`: begin again if a collision is not confirmed."""
        tip, nodes = self.tip or await self._load_tip(), addition.nodes
        parent = addition.parent_of(tip)
        if any(node.node_id == parent for node in nodes):
            await self._settle(addition, NodeIdCollision(parent or ""), again=again)
            return
        if parent is not None and tip.revision == 0:  # a new session accepts any parent for its first node
            raise InvalidParent(nodes[0].node_id, parent)
        chain = chained(nodes, parent)
        commit = RuntimeCommit(
            self.store.session_id,
            tip.revision,
            graph=Append(chain),
            usage_deltas=addition.usage,
            builds_on=tip.commit_id,
            lease=addition.lease,
            consumes=addition.consumes,
            finishes=addition.finishes,
        )
        try:
            result = await self.store.commit_runtime_state(commit)
        except HeadRevisionConflict:
            self.tip = None
            raise
        except NodeIdCollision as error:
            await self._settle(addition, error, again=again)
            return
        self.tip = Tip.after(result, chain[-1].node_id if chain else tip.leaf)

    async def _load_tip(self) -> Tip:
        head = await self.store.load_head()
        return Tip() if head is None else Tip(head.head_revision, head.commit_id, head.leaf_node_id)

    async def _settle(self, addition: Addition, collision: NodeIdCollision, *, again: bool) -> None:
        """Return if nodes with these ids and contents are stored, so that this addition is a retry.

        A node that is not there was tombstoned, or a failover lost it after the collision. The addition is then made
        once more, which decides that. A retry ends the stream that it finishes.

        Raises:
            NodeIdCollision: `collision`, or that of the further attempt.
        """
        nodes = addition.nodes
        stored = await self.store.load_nodes([node.node_id for node in nodes])
        if not await in_turns(self._agree(stored, nodes)):
            await self.store.require_owner()
            raise collision
        if None not in stored:
            if addition.finishes is not None:
                await self.store.finish_stream(addition.finishes)
            return
        await self.store.require_owner()
        if not again:
            raise collision
        self.tip = None
        await self._add_once(addition, again=False)

    def _agree(self, stored: Sequence[SessionNodeRecord | None], nodes: Sequence[SessionNodeRecord]) -> Steps[bool]:
        """Whether each node that is stored has the same content; each node is a step."""
        for found, node in zip(stored, nodes, strict=True):
            if found is not None and not self._is_same(found, node):
                return False
            yield
        return True


def chained(nodes: Sequence[SessionNodeRecord], parent: str | None) -> list[SessionNodeRecord]:
    """Return the nodes as a chain: the first one has this parent, each other one the node before it."""
    chain = []
    for node in nodes:
        chain.append(SessionNodeRecord(node.node_id, parent, node.timestamp, node.payload))
        parent = node.node_id
    return chain
