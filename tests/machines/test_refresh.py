"""After random operations on a session, a refreshed read of any age equals a load.

A refresh must return or raise the same as `load_session`, so there is no model. `test_sessions.py` checks loads.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from lash_redis import (
    ActivePath,
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PersistedSessionRead,
    PluginSessionSnapshot,
    RedisSessionStore,
    ReplaceFull,
    SessionCache,
    SessionGraph,
    SessionNodeRecord,
    SessionReadScope,
    StoreError,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    Unchanged,
)
from tests.machines.test_sessions import PROFILE, RANDOM
from tests.support.builders import commit
from tests.support.lost_writes import Saved, fail_over, saved
from tests.support.servers import Kind, RunningServers, Server, require, table

EVERY_OPERATION = (
    "append", "branch", "move the leaf", "components", "replace", "forty commits", "a hundred nodes", "tombstone",
    "vacuum", "touch", "delete", "lose everything", "fail over", "unchanged",
    "refreshed in part", "loaded", "an error", "gone", "pickled",
)  # fmt: skip
READING = ("read", "read", "read", "read", "refresh_one", "refresh_one", "refresh_all", "refresh_all", "refresh_all")
OPERATIONS = (
    "append", "append", "append", "branch", "branch", "branch", "move_the_leaf", "change_components", "tombstone",
    "tombstone", "vacuum", "touch", "commit_forty_times", "append_a_hundred", "dump", "fail_over", "replace", "delete",
    "lose_everything", *READING, *READING,
)  # fmt: skip
KEPT = 12
Answer = TypeVar("Answer")


@dataclass
class Kept:
    """A read, and the content that it must keep through later refreshes."""

    read: PersistedSessionRead
    content: Any


def content_of(read: PersistedSessionRead | None) -> Any:
    """All content of a read, and the results of lookups in its index."""
    if read is None:
        return None
    nodes = [(node.node_id, node.parent_node_id, node.timestamp, node.payload) for node in read.graph.nodes]
    found = [read.graph.node_index(node_id) for node_id, *_ in nodes]
    checkpoint = read.checkpoint
    assert checkpoint is not None
    components = checkpoint.tool_state, checkpoint.plugin_snapshot, checkpoint.execution_state, checkpoint.turn_state
    return (
        read.session_id, read.head_revision, read.commit_id, read.config, read.checkpoint_ref, read.token_ledger,
        components, read.graph.leaf_node_id, nodes, found, len(read.graph.nodes),
    )  # fmt: skip


class RefreshMachine(RuleBasedStateMachine):
    kind: ClassVar[Kind]
    running: ClassVar[RunningServers]
    lenient: ClassVar[bool]
    counts: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.server: Server = self.running.emptied(self.kind)
        self.raw = self.server.client()
        self.kept: list[Kept] = []
        self.dumps: list[Saved] = []
        self.serial = 0

    def run(self, doing: Coroutine[Any, Any, Answer]) -> Answer:
        return self.loop.run_until_complete(doing)

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                for kept in list(self.kept):
                    self.run(self._check(kept, by_pickle=False))
        finally:
            self.run(self.server.close_clients())
            self.loop.close()

    @initialize(cached=st.booleans(), deck=st.permutations(OPERATIONS))
    def open(self, cached: bool, deck: list[str]) -> None:
        self.deck = list(deck)
        options: dict[str, Any] = {"shards": 1, "deletion_marker_ttl": 0}
        options["graph_checks"] = "lenient" if self.lenient else "strict"
        here = StoreOptions(**options) if cached else StoreOptions(**options, blob_cache_bytes=0)
        self.store = SessionCache(self.server.client(), "machine", options=here).session("chat")
        self.loads, load = 0, self.store._reader.load

        async def counted(scope: SessionReadScope, *, decode: bool = False) -> PersistedSessionRead | None:
            self.loads += 1
            return await load(scope, decode=decode)

        self.store._reader.load = counted  # type: ignore[method-assign]
        self.other = SessionCache(self.server.client(), "machine", options=StoreOptions(**options)).session("chat")
        self.writer = SessionCache(self.server.client(), "machine", ttl=600, options=StoreOptions(**options))

    @rule(operation=st.none() | st.none() | st.none() | st.sampled_from(OPERATIONS), data=st.data())
    def step(self, operation: str | None, data: st.DataObject) -> None:
        """Run a drawn operation, or the next one of the shuffled deck.

        One rule runs all operations, because Hypothesis disables random rules for whole runs.
        """
        if operation is None:
            operation = self.deck.pop()
            self.deck.insert(0, operation)
        getattr(self, operation)(data)

    # Writing

    async def _head(self) -> PersistedSessionRead | None:
        return await self.other.load_session(FullGraph())

    async def _commit(self, graph: Any, **fields: Any) -> None:
        """Commit on any revision. Refusals are only counted, because other tests check them."""
        self.serial += 1
        fields.setdefault("commit_id", f"c{self.serial}")
        try:
            await self.writer.session("chat").commit_runtime_state(commit(None, graph, **fields))
        except StoreError:
            self.counts["refused"] += 1

    def _node(self, node_id: str, parent: str | None) -> SessionNodeRecord:
        self.serial += 1
        return SessionNodeRecord(node_id, parent, f"t{self.serial}", EventPayload({"said": node_id}))

    def _fresh(self, count: int) -> list[str]:
        return [f"n{self.serial}.{at}" for at in range(count)]

    def _line(self, count: int, parent: str | None) -> list[SessionNodeRecord]:
        self.serial += 1
        ids = self._fresh(count)
        return [self._node(each, above) for each, above in zip(ids, [parent, *ids], strict=False)]

    def append(self, data: st.DataObject) -> None:
        read = self.run(self._head())
        nodes = self._line(data.draw(st.integers(1, 4)), read and read.graph.leaf_node_id)
        self.run(self._commit(Append(nodes, nodes[-1].node_id)))
        self.counts["append"] += 1

    def branch(self, data: st.DataObject) -> None:
        """Append nodes with random parents and a random leaf."""
        read = self.run(self._head())
        live = [] if read is None else [node.node_id for node in read.graph.nodes]
        unknown_ids = ["unknown"] if self.lenient else []
        self.serial += 1
        nodes: list[SessionNodeRecord] = []
        for node_id in self._fresh(data.draw(st.integers(1, 3))):
            above = data.draw(st.sampled_from([None, *live, *unknown_ids, *(node.node_id for node in nodes)]))
            nodes.append(self._node(node_id, above))
        leaf = data.draw(st.sampled_from([*(node.node_id for node in nodes), *live, *unknown_ids]))
        self.run(self._commit(Append(nodes, leaf)))
        self.counts["branch"] += 1

    def move_the_leaf(self, data: st.DataObject) -> None:
        read = self.run(self._head())
        if read is not None and read.graph.nodes:
            leaf = data.draw(st.sampled_from([node.node_id for node in read.graph.nodes]))
            self.run(self._commit(Unchanged(leaf)))
            self.counts["move the leaf"] += 1

    def change_components(self, data: st.DataObject) -> None:
        read = self.run(self._head())
        checkpoint = HydratedSessionCheckpoint(
            tool_state=data.draw(st.sampled_from([None, ToolState(), ToolState(2)])),
            plugin_snapshot=data.draw(st.sampled_from([None, PluginSessionSnapshot()])),
            execution_state=data.draw(st.sampled_from([None, b"", b"1", b"2"])),
        )
        rows = [TokenLedgerEntry(data.draw(st.sampled_from("ab")), "m", TokenUsage(1))]
        config = PersistedSessionConfig(configured_model=data.draw(st.sampled_from("xyz")))
        leaf = read and read.graph.leaf_node_id
        self.run(self._commit(Unchanged(leaf), checkpoint=checkpoint, usage_deltas=rows, config=config))
        self.counts["components"] += 1

    def replace(self, data: st.DataObject) -> None:
        nodes = self._line(data.draw(st.integers(0, 4)), None)
        self.run(self._commit(ReplaceFull(SessionGraph(nodes, nodes[-1].node_id if nodes else None))))
        self.counts["replace"] += 1

    def commit_forty_times(self, data: st.DataObject) -> None:
        """Make more commits than a session keeps receipts for."""
        read, grows = self.run(self._head()), data.draw(st.booleans())
        leaf = read and read.graph.leaf_node_id
        for _ in range(40):
            nodes = self._line(1, leaf) if grows else []
            leaf = nodes[-1].node_id if nodes else leaf
            self.run(self._commit(Append(nodes, leaf)))
        self.counts["forty commits"] += 1

    def append_a_hundred(self, _data: st.DataObject) -> None:
        """Append more nodes than a script returns at once."""
        read = self.run(self._head())
        nodes = self._line(100, read and read.graph.leaf_node_id)
        self.run(self._commit(Append(nodes, nodes[-1].node_id)))
        self.counts["a hundred nodes"] += 1

    # Removing

    def tombstone(self, data: st.DataObject) -> None:
        read, most = self.run(self._head()), data.draw(st.sampled_from([1, 2, 3, 3, 90]))
        if read is not None and read.graph.nodes:
            ids = [node.node_id for node in read.graph.nodes]
            first = data.draw(st.integers(0, len(ids) - 1))
            self.run(self.other.tombstone_nodes(ids[first : first + most]))
            self.counts["tombstone"] += 1

    def vacuum(self, _data: st.DataObject) -> None:
        self.counts["vacuum"] += self.run(self.other.vacuum()).removed_node_count > 0

    def touch(self, data: st.DataObject) -> None:
        self.counts["touch"] += self.run(self.other.touch(ttl=data.draw(st.sampled_from([None, 900.0]))))

    def delete(self, _data: st.DataObject) -> None:
        self.counts["delete"] += self.run(self.writer.delete("chat")).existed

    def lose_everything(self, _data: st.DataObject) -> None:
        """Delete every key, like an expiry or an eviction."""
        self.counts["lose everything"] += 1
        self.run(self.raw.flushall())

    def dump(self, _data: st.DataObject) -> None:
        self.dumps.append(self.run(saved(self.raw)))

    def fail_over(self, data: st.DataObject) -> None:
        """Restore an earlier dump, like a failover to a stale replica. The last commit may be sent again."""
        if not self.dumps:
            return

        at = data.draw(st.integers(0, len(self.dumps) - 1))
        last = self.run(self._head())
        self.run(fail_over(self.raw, self.dumps[at]))
        if last is not None and data.draw(st.booleans()):
            # The same commit id with other content: its node has another timestamp.
            parent = self.run(self._head())
            nodes = self._line(1, parent and parent.graph.leaf_node_id)
            self.run(self._commit(Append(nodes, nodes[-1].node_id), commit_id=last.commit_id))
        self.counts["fail over"] += 1

    # Reading

    def read(self, data: st.DataObject) -> None:
        head = self.run(self._head())
        ids = ["nowhere"] if head is None else ["nowhere", *(node.node_id for node in head.graph.nodes)]
        scope = data.draw(
            st.sampled_from([FullGraph(), ActivePath(), ActivePath()]) | st.sampled_from(ids).map(ActivePath)
        )
        refusal, read = self.run(self._answer(self.store.load_session(scope)))
        if refusal is None and read is not None:
            self._keep(read)

    def refresh_one(self, data: st.DataObject) -> None:
        if self.kept:
            kept = self.kept[data.draw(st.integers(0, len(self.kept) - 1))]
            self.run(self._check(kept, by_pickle=data.draw(st.integers(0, 3)) == 0))

    def refresh_all(self, _data: st.DataObject) -> None:
        for kept in list(self.kept):
            self.run(self._check(kept, by_pickle=False))

    def _keep(self, read: PersistedSessionRead) -> None:
        self.kept.append(Kept(read, copy.deepcopy(content_of(read)) if self.serial % 2 else None))
        if len(self.kept) > KEPT:
            self.kept.pop(self.serial % KEPT)

    async def _answer(
        self, reading: Coroutine[Any, Any, PersistedSessionRead | None]
    ) -> tuple[type[StoreError] | None, PersistedSessionRead | None]:
        try:
            return None, await reading
        except StoreError as refusal:
            return type(refusal), None

    async def _check(self, kept: Kept, *, by_pickle: bool) -> None:
        given = pickle.loads(pickle.dumps(kept.read)) if by_pickle else kept.read
        self.counts["pickled"] += by_pickle
        scope: SessionReadScope = kept.read.scope
        assert given.scope == scope
        store: RedisSessionStore = self.store
        loads = self.loads
        refusal, now = await self._answer(store.refresh(given))
        self.counts["loaded"] += self.loads > loads
        self.counts["refreshed in part"] += self.loads == loads and now not in (given, None)
        expected_refusal, expected = await self._answer(self.other.load_session(scope))
        assert (refusal, now) == (expected_refusal, expected)
        assert content_of(now) == content_of(expected)
        assert kept.content is None or content_of(kept.read) == kept.content
        self.counts["unchanged"] += now is given
        self.counts["an error"] += refusal is not None
        self.counts["gone"] += refusal is None and now is None
        if self.loads > loads and any(kept is each for each in self.kept):
            self.kept = [each for each in self.kept if each is not kept]
        if now is not None and now is not given:
            assert now.scope == scope
            self._keep(now)


def _run(kind: Kind, running: RunningServers, *, lenient: bool, examples: int, steps: int) -> None:
    counts: Counter[str] = Counter()
    fields = {"kind": kind, "running": running, "lenient": lenient, "counts": counts}
    run_state_machine_as_test(
        type("Machine", (RefreshMachine,), fields),
        settings=settings(
            PROFILE, max_examples=examples, stateful_step_count=steps, suppress_health_check=list(HealthCheck)
        ),
    )
    never = set(EVERY_OPERATION) - {operation for operation, count in counts.items() if count}
    never -= {"an error"} if lenient else set()
    assert RANDOM or not never, f"these never happened: {sorted(never)}"


@pytest.fixture(params=table(), ids=lambda kind: kind.name)
def chosen(request: pytest.FixtureRequest, _running: RunningServers) -> tuple[Kind, RunningServers]:
    request.node.user_properties.append(("server", request.param.name))
    require(request.param)
    return request.param, _running


@pytest.mark.parametrize("checks", ["strict", "lenient"])
def test_a_refreshed_read_equals_a_load(chosen: tuple[Kind, RunningServers], checks: str) -> None:
    kind, running = chosen
    _run(kind, running, lenient=checks == "lenient", examples=20, steps=50)
