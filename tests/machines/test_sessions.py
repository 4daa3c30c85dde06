"""Random sequences of operations through two caches have the same results as a model in memory.

The model imports only public records and errors of the package. After each step, the sessions are compared through both
caches. At the end, the stored bytes are compared with their heads.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, ClassVar, TypeVar

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lash_redis import (
    ActivePath,
    Append,
    BlobRef,
    CommitIdReused,
    Corrupt,
    EventPayload,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    MissingBlob,
    NodeIdCollision,
    PersistedSessionConfig,
    PersistedSessionRead,
    PersistedTurnState,
    PluginPayload,
    PluginSessionSnapshot,
    RedisSessionStore,
    ReplaceFull,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionBindingMismatch,
    SessionCache,
    SessionGraph,
    SessionMeta,
    SessionNodeRecord,
    StoreError,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
    Unchanged,
)
from lash_redis.models import PluginSnapshotEntry, PluginSnapshotMeta
from lash_redis.options import KEEP
from tests.support.servers import Kind, RunningServers, Server, Snapshot, require, snapshot, table

RANDOM = os.environ.get("LASH_REDIS_HYPOTHESIS") == "random"
"""Make new sequences in every run. Otherwise, as in CI, every run makes the same sequences."""
# The explain phase traces every line of every example, which takes minutes. Shrinking takes minutes, too, so only a
# random run shrinks a failure.
_PHASES = set(Phase) - {Phase.explain}
_COMMON = {"print_blob": True, "deadline": None, "database": None}
settings.register_profile("lash-fixed", derandomize=True, phases=_PHASES - {Phase.shrink}, **_COMMON)
settings.register_profile("lash-random", phases=_PHASES, **_COMMON)
PROFILE = settings.get_profile("lash-random" if RANDOM else "lash-fixed")

SESSIONS = ("one", "two:{x}")
MAX_I64 = 2**63 - 1
GRACE_MS = 60_000
COMPONENTS = ("tool_state", "plugin_snapshot", "execution_state")
BODIES: dict[str, tuple[Any, ...]] = {
    "tool_state": (
        *(ToolState(generation) for generation in range(4)),
        ToolState(7, {"look": ToolStateEntry({"name": "look"}, "plugins")}),
    ),
    "plugin_snapshot": (
        PluginSessionSnapshot(),
        PluginSessionSnapshot({"p": PluginSnapshotEntry(PluginSnapshotMeta("p", "1", 2, {"é": [None]}))}),
    ),
    "execution_state": (b"", bytes(range(256)), b"state"),
}
PAYLOADS = (
    EventPayload({"Conversation": {"id": "m", "role": "User", "parts": []}}),
    EventPayload({}),
    PluginPayload("notes", [1, None, "é", {"deep": [1.5, True]}]),
)
EVERY_OPERATION = (
    "append a chain", "append a branch", "append nothing", "unchanged", "move the leaf", "replace", "usage", "body",
    "ref", "component dropped", "stale revision", "expects nothing", "builds on the head", "builds on another", "retry",
    "retry of a refused commit", "reused id", "collision", "bad parent", "bad leaf", "unknown ref", "overflow",
    "another session", "save meta", "tombstone", "tombstone a leaf", "vacuum", "gc", "gc deletes", "upload", "reload",
    "a read of a dead leaf", "a shared blob", "touch", "touch nothing", "delete", "delete nothing",
)  # fmt: skip

Answer = TypeVar("Answer")


# The model


@dataclass
class Head:
    revision: int
    commit: RuntimeCommit
    checkpoint_ref: str
    refs: tuple[str | None, ...]
    kinds: str
    """A letter for each component: `h` for a shared blob, `p` for private bytes, `-` for none."""

    @property
    def held(self) -> set[str]:
        return {ref for ref, kind in zip(self.refs, self.kinds, strict=True) if ref and kind == "h"}


@dataclass
class Session:
    """The state of one session that the contract specifies."""

    head: Head | None = None
    nodes: dict[str, SessionNodeRecord] = field(default_factory=dict)
    """Live and tombstoned nodes, in the order of their commits."""
    hidden: set[str] = field(default_factory=set)
    reserved: set[str] = field(default_factory=set)
    """Ids without a node that nodes named as their parent when it was vacuumed, or in a dangling root."""
    ledger: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    receipts: dict[str, tuple[Any, RuntimeCommitResult]] = field(default_factory=dict)
    meta: SessionMeta | None = None

    @property
    def revision(self) -> int:
        return 0 if self.head is None else self.head.revision

    @property
    def commit_id(self) -> str | None:
        return None if self.head is None else self.head.commit.commit_id

    @property
    def leaf(self) -> str | None:
        return None if self.head is None else self.head.commit.graph.leaf_node_id

    @property
    def live(self) -> list[SessionNodeRecord]:
        return [node for node_id, node in self.nodes.items() if node_id not in self.hidden]

    @property
    def live_ids(self) -> list[str]:
        return [node.node_id for node in self.live]

    def path(self, leaf: str | None) -> list[SessionNodeRecord] | None:
        """The nodes from the root to `leaf`, or None if the parents form a cycle."""
        by_id = {node.node_id: node for node in self.live}
        path: list[SessionNodeRecord] = []
        while leaf is not None and leaf in by_id:
            if len(path) == len(by_id):
                return None
            path.insert(0, by_id[leaf])
            leaf = by_id[leaf].parent_node_id
        return path


class Model:
    def __init__(self, *, lenient: bool) -> None:
        self.lenient = lenient
        self.sessions = {name: Session() for name in SESSIONS}
        self.content: dict[str, tuple[str, Any]] = {}
        """Component and value by ref, for every component that was ever stored."""
        self.stored: set[str] = set()
        self.waiting: set[str] = set()
        """The refs of uploads. Their grace period is longer than any example, so gc never deletes them."""

    def held(self) -> Counter[str]:
        """The number of sessions that refer to each blob."""
        heads = [session.head for session in self.sessions.values() if session.head is not None]
        return Counter(ref for head in heads for ref in head.held)

    def kinds(self, session: Session, commit: RuntimeCommit, refs: Sequence[str | None]) -> str:
        """The kinds of the components: tools are shared, unchanged ones keep their kind, sent bytes become private."""
        kinds = ""
        for at, (name, ref) in enumerate(zip(COMPONENTS, refs, strict=True)):
            head = session.head
            if ref is None:
                kinds += "-"
            elif head is not None and head.refs[at] == ref:
                kinds += head.kinds[at]
            elif name == "tool_state" or (getattr(commit.checkpoint, name) is None and ref in self.stored):
                kinds += "h"
            else:
                kinds += "p"
        return kinds

    def component(self, commit: RuntimeCommit, name: str) -> Any:
        """The value of a component in a commit, or its ref if the value is unknown."""
        body, ref = getattr(commit.checkpoint, name), getattr(commit.checkpoint, f"{name}_ref")
        if body is not None:
            return body
        return self.content[ref][1] if ref in self.content else ref

    def meaning(self, commit: RuntimeCommit) -> Any:
        delta, nodes = commit.graph, _nodes_of(commit)
        return (
            type(delta),
            delta.leaf_node_id,
            [(node.node_id, node.parent_node_id, node.payload) for node in nodes],
            commit.config,
            commit.checkpoint.turn_state,
            commit.checkpoint.plugin_snapshot_revision,
            [self.component(commit, name) for name in COMPONENTS],
            _added({}, commit.usage_deltas),
        )

    def faults(self, session: Session, commit: RuntimeCommit) -> tuple[set[type[StoreError]], set[type[StoreError]]]:
        """The errors of which the commit must raise one, and further errors that it may raise."""
        must: set[type[StoreError]] = set()
        may: set[type[StoreError]] = set()
        if commit.expected_head_revision not in (None, session.revision):
            return {HeadRevisionConflict}, set()
        if commit.builds_on not in (None, session.commit_id):
            return {HeadRevisionConflict}, set()
        nodes, replaces = _nodes_of(commit), isinstance(commit.graph, ReplaceFull)
        ids = [node.node_id for node in nodes]
        stored = set() if replaces else set(session.nodes)
        if len(set(ids)) < len(ids) or stored & set(ids):
            must.add(NodeIdCollision)
            if not self.lenient:
                # The id of a parent may belong to a stored node and to a later node. It may be resolved to either.
                may.add(InvalidParent)
        live = set() if replaces else set(session.live_ids)
        if not self.lenient:
            if not replaces:
                named = {node.parent_node_id for node in session.live}
                for node_id in session.reserved & set(ids):
                    (must if node_id in named else may).add(NodeIdCollision)
            first_of_all = not stored
            earlier: set[str] = set()
            for at, node in enumerate(nodes):
                parent = node.parent_node_id
                known = parent is None or parent in live or parent in earlier
                # A graph that was read after a tombstone names hidden parents, and may be committed again.
                dangles = parent not in ids and (
                    (at == 0 and first_of_all) or (replaces and parent in session.hidden | session.reserved)
                )
                if not known and not dangles:
                    must.add(InvalidParent)
                earlier.add(node.node_id)
            leaf, after = commit.graph.leaf_node_id, live | set(ids)
            if leaf not in after and not (leaf is None and not after):
                must.add(InvalidLeaf)
        for name in COMPONENTS:
            ref = getattr(commit.checkpoint, f"{name}_ref")
            own = None if session.head is None else session.head.refs[COMPONENTS.index(name)]
            if getattr(commit.checkpoint, name) is None and ref is not None and ref not in {*self.stored, own}:
                # A process that still has the bytes of a collected blob stores them again.
                (may if ref in self.content else must).add(MissingBlob)
        sums = _added(session.ledger, commit.usage_deltas).values()
        if any(abs(counter) > MAX_I64 for counters in sums for counter in counters):
            must.add(InvalidRecord)
        return must, may

    def apply(self, session: Session, commit: RuntimeCommit, result: RuntimeCommitResult) -> None:
        nodes = _nodes_of(commit)
        refs = tuple(getattr(result.manifest, f"{name}_ref") for name in COMPONENTS)
        for name, ref in zip(COMPONENTS, refs, strict=True):
            value = self.component(commit, name)
            assert (ref is None) == (value is None)
            if ref is not None:
                assert self.content.setdefault(ref, (name, value)) == (name, value)
        meaning = self.meaning(commit)
        if isinstance(commit.graph, ReplaceFull):
            session.nodes, session.hidden, session.reserved = {}, set(), set()
        ids = {node.node_id for node in nodes}
        for node in nodes:
            session.nodes[node.node_id] = node
            if node.parent_node_id is not None and node.parent_node_id not in session.nodes.keys() | ids:
                session.reserved.add(node.parent_node_id)
        session.reserved -= ids
        session.ledger = _added(session.ledger, commit.usage_deltas)
        kinds = self.kinds(session, commit, refs)
        session.head = Head(session.revision + 1, commit, result.checkpoint_ref, refs, kinds)
        session.receipts[commit.commit_id] = (meaning, result)
        self.stored |= set(self.held())

    def tombstone(self, session: Session, ids: Iterable[str]) -> None:
        session.hidden |= set(ids) & set(session.nodes)

    def vacuum(self, session: Session) -> int:
        gone = session.hidden
        session.nodes = {node_id: node for node_id, node in session.nodes.items() if node_id not in gone}
        session.reserved |= gone & {node.parent_node_id for node in session.live if node.parent_node_id}
        session.hidden = set()
        return len(gone)

    def upload(self, ref: str, name: str, value: Any) -> None:
        self.content[ref] = (name, value)
        self.stored.add(ref)
        self.waiting.add(ref)

    def collect(self) -> int:
        garbage = self.stored - set(self.held()) - self.waiting
        self.stored -= garbage
        return len(garbage)

    def shown(self, name: str, nodes: Sequence[SessionNodeRecord], leaf: str | None) -> dict[str, Any] | None:
        """The content of a read of the session with these nodes and this leaf."""
        session = self.sessions[name]
        head = session.head
        if head is None:
            return None
        checkpoint = head.commit.checkpoint
        return {
            "session": name,
            "revision": head.revision,
            "commit": head.commit.commit_id,
            "config": head.commit.config,
            "checkpoint ref": head.checkpoint_ref,
            "turn state": checkpoint.turn_state,
            "plugin revision": checkpoint.plugin_snapshot_revision,
            "components": [(ref, self.content[ref][1] if ref else None) for ref in head.refs],
            "ledger": [(*key, *counters) for key, counters in session.ledger.items()],
            "leaf": leaf,
            "nodes": [_node(node) for node in nodes],
        }


def _nodes_of(commit: RuntimeCommit) -> Sequence[SessionNodeRecord]:
    match commit.graph:
        case Append(nodes=nodes):
            return nodes
        case ReplaceFull(graph=graph):
            return graph.nodes
    return ()


def _added(
    ledger: dict[tuple[str, str], list[int]], rows: Iterable[TokenLedgerEntry]
) -> dict[tuple[str, str], list[int]]:
    sums = {key: list(counters) for key, counters in ledger.items()}
    for row in rows:
        added = _counters(row)
        if any(added):
            known = sums.setdefault((row.source, row.model), [0, 0, 0, 0])
            known[:] = [old + new for old, new in zip(known, added, strict=True)]
    return sums


def _counters(row: TokenLedgerEntry) -> tuple[int, ...]:
    usage = row.usage
    return usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens


def _node(node: SessionNodeRecord) -> tuple[Any, ...]:
    payload = node.payload
    if isinstance(payload, EventPayload):
        return node.node_id, node.parent_node_id, node.timestamp, payload.event
    return node.node_id, node.parent_node_id, node.timestamp, payload.plugin_type, payload.body


def _read(read: PersistedSessionRead | None) -> dict[str, Any] | None:
    if read is None:
        return None
    checkpoint = read.checkpoint
    assert checkpoint is not None
    return {
        "session": read.session_id,
        "revision": read.head_revision,
        "commit": read.commit_id,
        "config": read.config,
        "checkpoint ref": read.checkpoint_ref,
        "turn state": checkpoint.turn_state,
        "plugin revision": checkpoint.plugin_snapshot_revision,
        "components": [(getattr(checkpoint, f"{name}_ref"), getattr(checkpoint, name)) for name in COMPONENTS],
        "ledger": [(row.source, row.model, *_counters(row)) for row in read.token_ledger],
        "leaf": read.graph.leaf_node_id,
        "nodes": [_node(node) for node in read.graph.nodes],
    }


# The machine

sessions = st.sampled_from(SESSIONS)
handles = st.integers(0, 2)
some_data = st.data()
OPERATIONS = (
    "append_a_chain", "append_a_chain", "append_branches", "append_branches", "append_nothing", "keep_the_graph",
    "move_the_leaf", "replace_the_graph", "begin_with_a_dangling_root", "commit_on_another_revision",
    "build_on_another_commit", "send_a_commit_again", "send_a_commit_again", "use_a_commit_id_again",
    "commit_an_id_twice", "commit_a_bad_parent", "commit_a_bad_leaf", "commit_an_unknown_ref",
    "overflow_a_counter", "commit_for_another_session", "save_meta", "tombstone", "vacuum", "tombstone_and_vacuum",
    "collect_garbage", "collect_garbage", "upload", "reload", "read_any_node", "touch", "delete",
)  # fmt: skip


class SessionMachine(RuleBasedStateMachine):
    """Handles 0 and 1 are stores of two caches. Handle 2 is a new store of the first cache for every step."""

    kind: ClassVar[Kind]
    running: ClassVar[RunningServers]
    lenient: ClassVar[bool]
    counts: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.server: Server = self.running.emptied(self.kind)
        self.raw = self.server.client()
        self.model = Model(lenient=self.lenient)
        self.made: dict[str, list[RuntimeCommit]] = {name: [] for name in SESSIONS}
        self.serial = 0
        self.ttls: tuple[float | None, ...] = (None, None)
        self.touched = ""
        """The session of the last step. It is read through both caches, the other session through one of them."""

    def run(self, doing: Coroutine[Any, Any, Answer]) -> Answer:
        return self.loop.run_until_complete(doing)

    def teardown(self) -> None:
        try:
            if hasattr(self, "caches"):
                self.run(self.check_every_node())
                self.run(self.check_storage())
        finally:
            self.run(self.server.close_clients())
            self.loop.close()

    @initialize(
        ttls=st.sampled_from([(None, None), (3600.0, 3600.0), (None, 3600.0), (1800.0, 3600.0)]),
        deck=st.permutations(OPERATIONS),
    )
    def open(self, ttls: tuple[float | None, ...], deck: list[str]) -> None:
        self.ttls, self.deck = ttls, list(deck)
        self._open()

    def _open(self) -> None:
        checks: Any = "lenient" if self.lenient else "strict"
        options = StoreOptions(shards=1, graph_checks=checks, deletion_marker_ttl=0)
        self.caches = [SessionCache(self.server.client(), "machine", ttl=ttl, options=options) for ttl in self.ttls]
        self.stores = [{name: cache.session(name) for name in SESSIONS} for cache in self.caches]

    def store(self, handle: int, name: str) -> RedisSessionStore:
        self.touched = name
        return self.caches[0].session(name) if handle == 2 else self.stores[handle][name]

    # Drawing

    def fresh(self, prefix: str) -> str:
        self.serial += 1
        return f"{prefix}{self.serial}"

    def new_ids(self, data: st.DataObject, session: Session, most: int = 4) -> list[str]:
        """Free ids from a pool so small that vacuumed ids are used again."""
        free = [name for at in range(14) if (name := f"n{at}") not in session.nodes.keys() | session.reserved]
        count = min(data.draw(st.integers(1, most)), len(free))
        return data.draw(st.permutations(free))[:count]

    def node(self, data: st.DataObject, node_id: str, parent: str | None) -> SessionNodeRecord:
        return SessionNodeRecord(node_id, parent, self.fresh("t"), data.draw(st.sampled_from(PAYLOADS)))

    def new_nodes(
        self, data: st.DataObject, ids: Sequence[str], parents: Sequence[str | None]
    ) -> tuple[SessionNodeRecord, ...]:
        """Nodes whose parents are in `parents` or among the nodes themselves."""
        nodes: list[SessionNodeRecord] = []
        for at, node_id in enumerate(ids):
            choices = [*parents, *ids[:at]]
            nodes.append(self.node(data, node_id, data.draw(st.sampled_from(choices))))
        return tuple(nodes)

    def commit(self, data: st.DataObject, name: str, graph: Any, **fields: Any) -> RuntimeCommit:
        """A commit without faults other than those of `graph` and `fields`."""
        session = self.model.sessions[name]
        checkpoint: dict[str, Any] = {}
        for component in COMPONENTS:
            refs = sorted(ref for ref, (owner, _) in self.model.content.items() if owner == component)
            how = data.draw(st.sampled_from(["absent", "body", "ref"] if refs else ["absent", "body"]))
            if how == "body":
                checkpoint[component] = data.draw(st.sampled_from(BODIES[component]))
                self.counts["body"] += 1
            elif how == "ref":
                checkpoint[f"{component}_ref"] = data.draw(st.sampled_from(refs))
                self.counts["ref"] += 1
            elif session.head is not None and session.head.refs[COMPONENTS.index(component)]:
                self.counts["component dropped"] += 1
        rows = data.draw(st.lists(usage_rows, max_size=3))
        self.counts["usage"] += bool(rows)
        expected = data.draw(st.sampled_from([session.revision, None]))
        builds_on = data.draw(st.sampled_from([session.commit_id, None]))
        self.counts["expects nothing"] += expected is None and session.head is not None
        self.counts["builds on the head"] += builds_on is not None
        values: dict[str, Any] = {
            "expected_head_revision": expected,
            "builds_on": builds_on,
            "config": PersistedSessionConfig(configured_model=data.draw(st.sampled_from(["m", "n"]))),
            "checkpoint": HydratedSessionCheckpoint(
                turn_state=PersistedTurnState(turn_index=data.draw(st.integers(0, 3))),
                plugin_snapshot_revision=data.draw(st.sampled_from([None, 0, 2**64 - 1])),
                **checkpoint,
            ),
            "usage_deltas": tuple(rows),
            "commit_id": self.fresh("c"),
        }
        return RuntimeCommit(name, graph=graph, **values | fields)

    def stay(self, data: st.DataObject, session: Session) -> Unchanged:
        """A graph change that passes all checks, if there is one."""
        live = session.live_ids
        return Unchanged(session.leaf if session.leaf in live else data.draw(st.sampled_from(live or [None])))

    # Sending

    def send(self, handle: int, commit: RuntimeCommit) -> type[StoreError] | None:
        """Commit, and compare the outcome with the model. Returns the type of the error, if any."""
        self.made[commit.session_id].append(commit)
        return self.run(self._send(self.store(handle, commit.session_id), commit))

    async def _send(self, store: RedisSessionStore, commit: RuntimeCommit) -> type[StoreError] | None:
        model, session = self.model, self.model.sessions[commit.session_id]
        receipt = session.receipts.get(commit.commit_id)
        must: set[type[StoreError]] = set()
        may: set[type[StoreError]] = set()
        if receipt is None:
            must, may = model.faults(session, commit)
        elif receipt[0] != model.meaning(commit):
            must = {CommitIdReused}
        before = await self.stored() if must or may or receipt else None
        refused: StoreError | None = None
        try:
            result = await store.commit_runtime_state(commit)
        except StoreError as error:
            refused = error
        if refused is not None:
            assert isinstance(refused, tuple(must | may)), f"{refused!r}, expected one of {must | may}"
            if isinstance(refused, HeadRevisionConflict):
                assert (refused.expected, refused.actual) == (commit.expected_head_revision, session.revision)
            assert await self.stored() == before
            return type(refused)
        assert not must, f"committed, expected one of {must}"
        assert result.commit_id == commit.commit_id
        if receipt is None:
            assert (result.head_revision, result.replayed) == (session.revision + 1, False)
            model.apply(session, commit, result)
            if any(count > 1 for count in model.held().values()):
                self.counts["a shared blob"] += 1
        else:
            assert result == replace(receipt[1], replayed=True)
            assert await self.stored() == before
        return None

    def count(self, operation: str, error: type[StoreError] | None, *kinds: type[StoreError]) -> None:
        """Count `operation` if it raised one of `kinds`. Without kinds, count it if it raised no error."""
        self.counts[operation] += error is None if not kinds else error is not None and issubclass(error, kinds)

    @rule(name=sessions, handle=handles, data=some_data, operation=st.none() | st.sampled_from(OPERATIONS))
    def step(self, name: str, handle: int, data: st.DataObject, operation: str | None) -> None:
        """Run a drawn operation, or the next one of the shuffled deck.

        One rule runs all operations, because Hypothesis disables random rules for whole runs.
        """
        if operation is None:
            operation = self.deck.pop()
            self.deck.insert(0, operation)
        getattr(self, operation)(name, handle, data)

    # Commits

    def append_a_chain(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        ids = self.new_ids(data, session)
        if not ids:
            return
        # Below the leaf, or as a branch below any live node.
        parents = [data.draw(st.sampled_from([*session.live_ids[::-1], None])), *ids]
        nodes = tuple(self.node(data, node_id, parents[at]) for at, node_id in enumerate(ids))
        self.count("append a chain", self.send(handle, self.commit(data, name, Append(nodes, ids[-1]))))

    def append_branches(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        ids = self.new_ids(data, session)
        if not ids:
            return
        live = session.live_ids
        nodes = self.new_nodes(data, ids, [None, *live])
        leaf = data.draw(st.sampled_from([*ids, *live]))
        self.count("append a branch", self.send(handle, self.commit(data, name, Append(nodes, leaf))))

    def begin_with_a_dangling_root(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        ids = self.new_ids(data, session)
        if session.nodes or not ids:
            return
        nodes = (self.node(data, ids[0], "elsewhere"), *self.new_nodes(data, ids[1:], ids[:1]))
        self.send(handle, self.commit(data, name, Append(nodes, ids[0])))

    def append_nothing(self, name: str, handle: int, data: st.DataObject) -> None:
        leaf = self.stay(data, self.model.sessions[name]).leaf_node_id
        self.count("append nothing", self.send(handle, self.commit(data, name, Append((), leaf))))

    def keep_the_graph(self, name: str, handle: int, data: st.DataObject) -> None:
        self.count("unchanged", self.send(handle, self.commit(data, name, self.stay(data, self.model.sessions[name]))))

    def move_the_leaf(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        others = [node_id for node_id in session.live_ids if node_id != session.leaf]
        if others:
            leaf = data.draw(st.sampled_from(others))
            self.count("move the leaf", self.send(handle, self.commit(data, name, Unchanged(leaf))))

    def replace_the_graph(self, name: str, handle: int, data: st.DataObject) -> None:
        """Replace it by new nodes, by the live nodes (whose parents may be hidden), or by both."""
        session = self.model.sessions[name]
        kept = tuple(session.live) if data.draw(st.booleans()) else ()
        ids = [f"n{at}" for at in range(14) if f"n{at}" not in {node.node_id for node in kept}]
        ids = data.draw(st.permutations(ids))[: data.draw(st.integers(0, 4))]
        nodes = (*kept, *self.new_nodes(data, ids, [None, *(node.node_id for node in kept)]))
        leaf = data.draw(st.sampled_from([node.node_id for node in nodes] or [None]))
        self.count("replace", self.send(handle, self.commit(data, name, ReplaceFull(SessionGraph(nodes, leaf)))))

    def commit_on_another_revision(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        wrong = data.draw(st.sampled_from([session.revision - 1, session.revision + 1, 2**63 - 1]))
        commit = self.commit(data, name, self.stay(data, session), expected_head_revision=max(wrong, 1))
        if commit.expected_head_revision != session.revision:
            self.count("stale revision", self.send(handle, commit), HeadRevisionConflict)

    def build_on_another_commit(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        others = [commit.commit_id for commit in self.made[name] if commit.commit_id != session.commit_id]
        commit = self.commit(
            data, name, self.stay(data, session), builds_on=data.draw(st.sampled_from(["another", *others]))
        )
        self.count("builds on another", self.send(handle, commit), HeadRevisionConflict)

    def send_a_commit_again(self, name: str, handle: int, data: st.DataObject) -> None:
        """Another expected revision, other timestamps, and bodies instead of refs do not change its meaning."""
        receipts, made = self.model.sessions[name].receipts, self.made[name]
        if not made:
            return
        refused = [commit for commit in made if commit.commit_id not in receipts]
        commit = data.draw(st.sampled_from(refused if refused and data.draw(st.booleans()) else made))
        known = commit.commit_id in receipts
        if known:
            commit = replace(commit, expected_head_revision=data.draw(st.sampled_from([None, 0, 1, 99])))
            if isinstance(commit.graph, Append):
                nodes = tuple(replace(node, timestamp=self.fresh("t")) for node in commit.graph.nodes)
                commit = replace(commit, graph=Append(nodes, commit.graph.leaf_node_id))
            for component in COMPONENTS:
                ref = getattr(commit.checkpoint, f"{component}_ref")
                if ref in self.model.content and data.draw(st.booleans()):
                    body = {component: self.model.content[ref][1]}
                    commit = replace(commit, checkpoint=replace(commit.checkpoint, **body))
        error = self.send(handle, commit)
        self.counts["retry" if known else "retry of a refused commit"] += error is None or not known

    def use_a_commit_id_again(self, name: str, handle: int, data: st.DataObject) -> None:
        taken = list(self.model.sessions[name].receipts)
        if taken:
            commit_id = data.draw(st.sampled_from(taken))
            commit = self.commit(
                data,
                name,
                self.stay(data, self.model.sessions[name]),
                commit_id=commit_id,
                usage_deltas=(TokenLedgerEntry("another meaning", "m", TokenUsage(1)),),
            )
            self.count("reused id", self.send(handle, commit), CommitIdReused)
            self.made[name].pop()

    # Commits with a fault

    def commit_an_id_twice(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        ids = self.new_ids(data, session)
        if not ids:
            return
        again = data.draw(st.sampled_from([*ids, *session.nodes, *session.reserved]))
        parents = [None, *session.live_ids]
        nodes = (*self.new_nodes(data, ids, parents), self.node(data, again, data.draw(st.sampled_from(parents))))
        graph: Any = Append(nodes, ids[0])
        if again in ids and data.draw(st.booleans()):
            graph = ReplaceFull(SessionGraph(tuple(replace(node, parent_node_id=None) for node in nodes), ids[0]))
        self.count("collision", self.send(handle, self.commit(data, name, graph)), NodeIdCollision)

    def commit_a_bad_parent(self, name: str, handle: int, data: st.DataObject) -> None:
        """The parent is unknown, hidden, reserved, a later node, or the node itself."""
        session = self.model.sessions[name]
        ids = self.new_ids(data, session)
        if not ids:
            return
        first = self.node(data, self.fresh("first"), None)
        wrong = data.draw(st.sampled_from(["nowhere", *session.hidden, *session.reserved, *ids]))
        nodes = (first, self.node(data, ids[0], wrong), *self.new_nodes(data, ids[1:], [ids[0]]))
        graph: Any = Append(nodes, first.node_id)
        if data.draw(st.booleans()):
            graph = ReplaceFull(SessionGraph(nodes, first.node_id))
        error = self.send(handle, self.commit(data, name, graph))
        self.counts["bad parent"] += self.lenient or (error is not None and issubclass(error, InvalidParent))

    def commit_a_bad_leaf(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        leaf = data.draw(st.sampled_from(["nowhere", None, *session.hidden, *session.reserved]))
        nodes = self.new_nodes(data, self.new_ids(data, session), [None, *session.live_ids])
        replaced = ReplaceFull(SessionGraph(nodes, leaf))
        graph = data.draw(st.sampled_from([Unchanged(leaf), Append((), leaf), Append(nodes, leaf), replaced]))
        error = self.send(handle, self.commit(data, name, graph))
        self.counts["bad leaf"] += self.lenient or (error is not None and issubclass(error, InvalidLeaf))

    def commit_an_unknown_ref(self, name: str, handle: int, data: st.DataObject) -> None:
        component = data.draw(st.sampled_from(COMPONENTS))
        ref = BlobRef(sha256(self.fresh("x").encode()).hexdigest())
        invented = HydratedSessionCheckpoint(**{f"{component}_ref": ref})
        commit = self.commit(data, name, self.stay(data, self.model.sessions[name]), checkpoint=invented)
        self.count("unknown ref", self.send(handle, commit), MissingBlob)

    def overflow_a_counter(self, name: str, handle: int, data: st.DataObject) -> None:
        counters = [0, 0, 0, 0]
        counters[data.draw(st.integers(0, 3))] = data.draw(st.sampled_from([1, -1])) * MAX_I64
        for _ in range(2):
            row = TokenLedgerEntry("endless", "m", TokenUsage(*counters))
            commit = self.commit(data, name, self.stay(data, self.model.sessions[name]), usage_deltas=(row,))
            self.count("overflow", self.send(handle, commit), InvalidRecord)

    def commit_for_another_session(self, name: str, handle: int, data: st.DataObject) -> None:
        commit = self.commit(data, name, Append((), None))
        other = next(other for other in SESSIONS if other != name)
        before = self.run(self.stored())
        with pytest.raises(SessionBindingMismatch):
            self.run(self.store(handle, other).commit_runtime_state(commit))
        assert self.run(self.stored()) == before
        self.counts["another session"] += 1

    # Other operations

    def save_meta(self, name: str, handle: int, data: st.DataObject) -> None:
        cwd = data.draw(st.sampled_from([None, "/", "é"]))
        meta = SessionMeta(name, self.fresh("name"), "then", "m", cwd)
        self.run(self.store(handle, name).save_session_meta(meta))
        self.model.sessions[name].meta = meta
        self.counts["save meta"] += 1

    def tombstone(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        pool = [*session.live_ids, *session.hidden, *session.reserved, "nowhere"]
        ids = data.draw(st.lists(st.sampled_from(pool), max_size=4))
        if session.leaf in session.live_ids and data.draw(st.integers(0, 3)) == 0:
            ids.append(session.leaf)
        self.run(self.store(handle, name).tombstone_nodes(ids))
        self.model.tombstone(session, ids)
        self.counts["tombstone"] += bool(set(ids) & set(session.nodes))
        self.counts["tombstone a leaf"] += session.leaf in ids and session.leaf in session.nodes

    def vacuum(self, name: str, handle: int, _data: st.DataObject) -> None:
        report = self.run(self.store(handle, name).vacuum())
        assert report.removed_node_count == self.model.vacuum(self.model.sessions[name])
        self.counts["vacuum"] += report.removed_node_count > 0

    def tombstone_and_vacuum(self, name: str, handle: int, data: st.DataObject) -> None:
        self.tombstone(name, handle, data)
        self.vacuum(name, 1 - handle % 2, data)

    def collect_garbage(self, name: str, handle: int, _data: st.DataObject) -> None:
        report = self.run(self.store(handle, name).gc_unreachable())
        head, deleted = self.model.sessions[name].head, self.model.collect()
        retained = 0 if head is None else 1 + len({ref for ref in head.refs if ref})
        assert (report.root_count, report.retained_blob_count, report.deleted_blob_count) == (
            0 if head is None else 1,
            retained,
            deleted,
        )
        self.counts["gc"] += 1
        self.counts["gc deletes"] += deleted > 0

    def upload(self, _name: str, handle: int, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from([*BODIES["execution_state"], b"uploaded"]))
        packed = msgpack.packb(value)
        ref = self.run(self.caches[handle % 2].put_blob(packed))
        assert ref == sha256(packed).hexdigest()
        self.model.upload(ref, "execution_state", value)
        assert self.run(self.caches[1 - handle % 2].get_blob(ref)) == packed
        self.counts["upload"] += 1

    def touch(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        ttl = data.draw(st.sampled_from([KEEP, None, 900.0, 7200.0]))
        exists = session.head is not None or session.meta is not None
        before = None if exists else self.run(self.stored())
        assert self.run(self.store(handle, name).touch(ttl=ttl)) is exists
        assert before is None or self.run(self.stored()) == before
        self.counts["touch" if exists else "touch nothing"] += 1

    def delete(self, name: str, handle: int, _data: st.DataObject) -> None:
        """The id of a deleted session can be used again immediately."""
        session = self.model.sessions[name]
        existed = session.head is not None or session.meta is not None
        refs = {ref for ref in session.head.refs if ref} if session.head else set()
        self.touched = name
        report = self.run(self.caches[handle % 2].delete(name))
        assert (report.existed, report.node_count, report.released_blob_count, report.closed) == (
            existed,
            len(session.live),
            len(refs),
            False,
        )
        self.model.sessions[name] = Session()
        self.counts["delete" if existed else "delete nothing"] += 1

    def reload(self, _name: str, _handle: int, _data: st.DataObject) -> None:
        """Replace both caches, so that later steps see only stored data."""
        self._open()
        self.counts["reload"] += 1

    def read_any_node(self, name: str, handle: int, data: st.DataObject) -> None:
        session = self.model.sessions[name]
        pool = ["nowhere", *session.nodes, *session.reserved]
        self.run(self._check_node(self.store(handle, name), name, data.draw(st.sampled_from(pool))))

    # Comparing

    @precondition(lambda self: hasattr(self, "caches"))
    @invariant()
    def every_handle_reads_the_content_of_the_model(self) -> None:
        self.run(self._check_all())

    async def _check_all(self) -> None:
        await self._check_list(self.caches[self.serial % 2])
        for at, name in enumerate(SESSIONS):
            session = self.model.sessions[name]
            ids = [*session.nodes, *session.reserved, "nowhere"]
            for handle, stores in enumerate(self.stores):
                if name != self.touched and (self.serial + handle) % 2:
                    continue
                # Commits must not depend on earlier reads of their handle, so every second check uses a new store.
                store = stores[name] if (self.serial + handle) % 2 else self.caches[handle].session(name)
                shown = self.model.shown(name, session.live, session.leaf)
                assert _read(await store.load_session(FullGraph())) == shown
                await self._check_path(store, name, None)
                any_node = ids[(self.serial + at + handle) % len(ids)]
                await self._check_path(store, name, any_node)
                await self._check_node(store, name, any_node)
                await self._check_head(store, name)
                assert await store.load_session_meta() == session.meta

    async def _check_list(self, cache: SessionCache) -> None:
        expected = {
            name: (session.revision, sum(_node(node)[3] == PAYLOADS[0].event for node in session.live), None)
            for name, session in self.model.sessions.items()
            if session.head is not None or session.meta is not None
        }
        lines = [line async for line in cache.sessions()]
        listed = {line.session_id: (line.head_revision, line.user_message_count, line.fault) for line in lines}
        assert (listed, len(lines)) == (expected, len(expected))

    async def check_every_node(self) -> None:
        for name in SESSIONS:
            session = self.model.sessions[name]
            for node_id in [*session.nodes, *session.reserved]:
                await self._check_path(self.caches[1].session(name), name, node_id)
                await self._check_node(self.caches[0].session(name), name, node_id)

    async def _check_path(self, store: RedisSessionStore, name: str, leaf: str | None) -> None:
        session = self.model.sessions[name]
        wanted = session.leaf if leaf is None else leaf
        path = session.path(wanted)
        unresolved = session.head is not None and wanted is not None and path == []
        expected: type[StoreError] | None = None
        if path is None:
            expected = Corrupt
        elif leaf is None and unresolved and not self.lenient:
            expected = InvalidLeaf
        self.counts["a read of a dead leaf"] += leaf is None and unresolved
        if expected is not None:
            with pytest.raises(expected):
                await store.load_session(ActivePath(leaf))
            return
        assert _read(await store.load_session(ActivePath(leaf))) == self.model.shown(name, path or (), wanted)

    async def _check_node(self, store: RedisSessionStore, name: str, node_id: str) -> None:
        by_id = {node.node_id: node for node in self.model.sessions[name].live}
        node, expected = await store.load_node(node_id), by_id.get(node_id)
        assert (node and _node(node)) == (expected and _node(expected))

    async def _check_head(self, store: RedisSessionStore, name: str) -> None:
        session, head = self.model.sessions[name], await store.load_head()
        shown = self.model.shown(name, (), session.leaf)
        assert (head is None) == (shown is None)
        if head is not None and shown is not None:
            ledger = [(row.source, row.model, *_counters(row)) for row in head.token_ledger]
            assert (head.session_id, head.head_revision, head.commit_id) == (name, shown["revision"], shown["commit"])
            assert (head.config, head.checkpoint_ref) == (shown["config"], shown["checkpoint ref"])
            assert ledger == shown["ledger"]
            assert (head.leaf_node_id, head.graph_node_count) == (session.leaf, len(session.live))

    # The stored bytes

    async def stored(self) -> Snapshot:
        """Every key except the layout of the namespace, which the first attempt to write creates."""
        seen = await snapshot(self.raw)
        return {key: value for key, value in seen.items() if key != b"lash1:layout:machine"}

    async def check_storage(self) -> None:
        """Check the invariants of the stored bytes with a client that knows only the documented layout."""
        stored = await self.stored()
        lifetimes = {key: await self.raw.pttl(key) for key in stored}
        families: dict[str, set[bytes]] = {}
        holders: dict[bytes, Counter[int]] = defaultdict(Counter)
        for key in stored:
            assert key.startswith(b"lash2:{machine:0}:"), key
            families.setdefault(key.partition(b"}:")[2].partition(b":")[0].decode(), set()).add(key)
        assert set(families) <= {*_OF_A_SESSION, "blob", "orphans", "sessions", "expiries"}
        now = await _milliseconds(self.raw)
        listed, expiring = (dict(stored.get(b"lash2:{machine:0}:" + key, (b"zset", []))[1]) for key in _CATALOGUE)
        _check_catalogue(listed, expiring, {key: lifetimes.get(b"lash2:{machine:0}:" + key) for key in _CATALOGUE}, now)
        for name in SESSIONS:
            keys = {family: b"lash2:{machine:0}:%s:%s" % (family.encode(), name.encode()) for family in families}
            head = dict(stored[keys["head"]][1]) if keys.get("head") in stored else {}
            components = _refs(head.get(b"refs", b""))
            held = {ref for kind, ref in components if kind == b"h"}
            private = {
                field: ref for field, (kind, ref) in zip((b"t", b"p", b"x"), components, strict=False) if kind == b"p"
            }
            state = dict(stored[keys["state"]][1]) if keys.get("state") in stored else {}
            assert {field: sha256(content[1:]).hexdigest().encode() for field, content in state.items()} == private
            assert b"t" not in private
            deadline = _check_session(name, head, {family: stored.get(key) for family, key in keys.items()})
            lasting = [lifetimes[key] for family, key in keys.items() if key in stored and family in _OF_A_SESSION]
            entry = name.encode()
            assert (entry in listed) == bool(head), name
            if b"facts" in head:
                facts = _facts(head)
                assert max(lasting) - min(lasting) < 2000
                assert (min(lasting) == -1) == (deadline == 0)
                assert facts["hold"] == -(-deadline // GRACE_MS) * GRACE_MS
                assert (listed[entry], expiring.get(entry)) == (facts["committed"], facts["hold"] or None)
                assert now - 600_000 < facts["committed"] <= now
                for ref in held:
                    holders[ref][facts["hold"]] += 1
            elif head:
                assert (entry not in expiring) == (lasting == [-1])
                assert lasting == [-1] or 0 <= expiring[entry] - now - lasting[0] < GRACE_MS + 2000
        orphans = {ref for key in families.get("orphans", ()) for ref, _ in stored[key][1]}
        for key in families.get("blob", ()):
            ref, fields = key[-64:], dict(stored[key][1])
            content, promised = fields.pop(b"c"), int(fields.pop(b"u", 0))
            assert content, key
            assert {int(hold): int(count) for hold, count in fields.items()} == holders.get(ref, {}), key
            assert (ref in holders) != (ref in orphans), key
            longest = max(holders[ref]) if ref in holders else 0
            if 0 in holders.get(ref, {}):
                assert lifetimes[key] == -1, key
            else:
                assert lifetimes[key] > max(longest, promised) - now - 2000, key
                assert lifetimes[key] > 0, key
        blobs = {key[-64:] for key in families.get("blob", ())}
        assert set(holders) <= blobs
        assert {ref.encode() for ref in self.model.stored} == blobs
        assert {ref.decode(): sum(counts.values()) for ref, counts in holders.items()} == self.model.held()


_OF_A_SESSION = ("head", "log", "nodes", "jumps", "dead", "state")
_CATALOGUE = (b"sessions", b"expiries")
_FACTS = (
    "revision", "epoch", "length", "live", "jumps", "dead", "ids", "bytes", "leaf", "usage", "loose", "deadline",
    "hold", "committed", "users", "first", "high", "low",
)  # fmt: skip


async def _milliseconds(raw: Any) -> int:
    """The time of the server's clock."""
    seconds, micros = await raw.time()
    return int(seconds) * 1000 + int(micros) // 1000


def _facts(head: dict[bytes, bytes]) -> dict[str, int]:
    return dict(zip(_FACTS, map(int, head[b"facts"].split(b" ")), strict=True))


def _check_catalogue(
    listed: dict[bytes, float], expiring: dict[bytes, float], lifetimes: dict[bytes, int | None], now: int
) -> None:
    """The keys of the catalogue expire with their last entry if every entry expires."""
    assert set(expiring) <= set(listed)
    latest = max(expiring.values(), default=0.0)
    for key in _CATALOGUE:
        if expiring and len(expiring) == len(listed):
            left = lifetimes[key]
            assert left is not None
            assert abs(now + left - latest) < 2000, key
        else:
            assert lifetimes[key] in (None, -1), key


def _refs(packed: bytes) -> list[tuple[bytes, bytes | None]]:
    """The kind and the ref of each component."""
    parts = [packed[at : at + 33] for at in range(0, len(packed), 33)]
    assert all((part[:1] == b"-") == (not any(part[1:])) for part in parts)
    return [(part[:1], part[1:].hex().encode() if any(part[1:]) else None) for part in parts]


def _check_session(name: str, head: dict[bytes, bytes], stored: dict[str, Any]) -> int:
    """Check that the keys of a session are consistent. Returns its deadline, or 0 for none."""
    if b"facts" not in head:
        assert not any(stored.get(family) for family in _OF_A_SESSION[1:]), name
        return 0
    facts = _facts(head)
    values = {family: stored[family][1] if stored.get(family) else [] for family in ("log", "nodes", "jumps", "dead")}
    log, nodes, dead = values["log"], dict(values["nodes"]), dict(values["dead"])
    hidden = {int(place) for place in dead}
    jumps = {int(place): int(parent) for place, _, parent in (jump.partition(b":") for jump in values["jumps"])}
    assert [len(log), len(nodes), len(jumps), len(dead)] == [facts[key] for key in ("length", "ids", "jumps", "dead")]
    assert facts["bytes"] == sum(map(len, log))
    assert facts["usage"] == sum(field.startswith(b"u") for field in head)
    assert facts["live"] == sum(bool(record) for record in log) - len(dead)
    assert len(head[b"receipts"]) == 16 * min(32, facts["revision"])
    body = head[b"body"]
    refs = b"".join(head[b"refs"][at + 1 : at + 33] for at in range(0, len(head[b"refs"]), 33))
    assert zlib.crc32(refs, zlib.crc32(body[4:])) == int.from_bytes(body[:4], "big")
    placed: dict[str, int] = {}
    users: list[int] = []
    records = [msgpack.unpackb(record) if record else None for record in log]
    for place, record in enumerate(records):
        if record is not None:
            assert zlib.crc32(log[place][:-4]) == int.from_bytes(log[place][-4:], "little")
            is_user = _is_users_message(record)
            assert nodes.pop(record[0].encode()) == b"%d%s" % (place, b"u" if is_user else b"")
            if is_user and place not in hidden:
                users.append(place)
            placed[record[0]] = place
            assert dead.pop(b"%d" % place, record[0].encode()) == record[0].encode()
    assert set(nodes.values()) <= {b"?"}
    assert not dead
    assert facts["users"] == len(users)
    assert facts["first"] == -2 or facts["first"] == (users[0] if users else -1)
    assert facts["first"] != -2 or (users and (hidden or None in records))
    if not facts["loose"]:
        for place, record in enumerate(records):
            if record is not None and place not in hidden and record[1] is not None:
                # An id that a live node names as its parent is not free.
                assert record[1] in placed or record[1].encode() in nodes
            above = jumps.get(place, place - 1)
            if record is not None and above >= 0:
                assert above < place
                assert records[above] is None or records[above][0] == record[1]
            elif record is not None and record[1] is not None:
                assert record[1] not in placed
    return facts["deadline"]


def _is_users_message(record: list[Any]) -> bool:
    """Whether `[node id, parent id, plugin type, payload, timestamp, checksum]` is a Conversation of the role User."""
    event = record[3] if record[2] is None else None
    message = event.get("Conversation") if isinstance(event, dict) else None
    return isinstance(message, dict) and message.get("role") == "User"


usage_rows = st.builds(
    TokenLedgerEntry,
    st.sampled_from(["turn", "plugin:é", "a b"]),
    st.sampled_from(["m", "n 1"]),
    st.builds(TokenUsage, *[st.sampled_from([0, 0, 1, 5, -3, 2**53 + 1])] * 4),
)


def _run(kind: Kind, running: RunningServers, *, lenient: bool, examples: int, steps: int) -> None:
    counts: Counter[str] = Counter()
    fields = {"kind": kind, "running": running, "lenient": lenient, "counts": counts}
    machine = type("Machine", (SessionMachine,), fields)
    run_state_machine_as_test(
        machine,
        settings=settings(
            PROFILE, max_examples=examples, stateful_step_count=steps, suppress_health_check=list(HealthCheck)
        ),
    )
    never = set(EVERY_OPERATION) - {operation for operation, count in counts.items() if count}
    assert RANDOM or not never, f"these never happened: {sorted(never)}"


@pytest.fixture(params=table(), ids=lambda kind: kind.name)
def chosen(request: pytest.FixtureRequest, _running: RunningServers) -> tuple[Kind, RunningServers]:
    request.node.user_properties.append(("server", request.param.name))
    require(request.param)
    return request.param, _running


def test_every_sequence_of_operations_matches_the_model(chosen: tuple[Kind, RunningServers]) -> None:
    kind, running = chosen
    _run(kind, running, lenient=False, examples=20 if kind.real else 30, steps=25)


def test_every_sequence_of_operations_with_lenient_checks_matches_the_model(
    chosen: tuple[Kind, RunningServers],
) -> None:
    kind, running = chosen
    _run(kind, running, lenient=True, examples=15, steps=25)
