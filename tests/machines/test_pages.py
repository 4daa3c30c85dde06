"""Pages of random graphs are slices of whole paths, and a refreshed page keeps its beginning.

No model: a page must contain what a slice of the whole path contains, its errors too. That a whole path is right is
what `test_sessions.py` is about. The writes are those of `test_refresh.py`.
"""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from lash_redis import ActivePath, InvalidRecord, PersistedSessionRead, StoreError
from lash_redis.protocol.commands import pages
from tests.machines.test_refresh import Kept, RefreshMachine, chosen, content_of
from tests.machines.test_sessions import PROFILE, RANDOM
from tests.support.servers import Kind, RunningServers

__all__ = ["chosen"]

OPERATIONS = (
    "append", "append", "append", "branch", "branch", "branch", "move_the_leaf", "change_components", "tombstone",
    "tombstone", "vacuum", "touch", "append_a_hundred", "replace", "dump", "fail_over", "delete",
    *("read",) * 12, *("refresh_one",) * 8,
)  # fmt: skip
EVERY_OUTCOME = (
    "vacuum", "a page", "a partial page", "an empty page", "off the path", "cut out", "extended", "loaded", "the same",
    "pickled",
)  # fmt: skip


class PageMachine(RefreshMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bounds = pages.BATCH, pages.WORK

    @initialize(small_batch=st.booleans(), small_work=st.booleans(), order=st.permutations(OPERATIONS))
    def bound(self, small_batch: bool, small_work: bool, order: list[str]) -> None:
        """Small bounds, so that short paths also take the ways of long ones."""
        pages.BATCH, pages.WORK = 2 if small_batch else 500, 0 if small_work else 1000  # type: ignore[misc]
        self.order = list(order)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        operation = self.order.pop()
        self.order.insert(0, operation)
        getattr(self, operation)(data)

    def teardown(self) -> None:
        super().teardown()
        pages.BATCH, pages.WORK = self.bounds  # type: ignore[misc]

    def read(self, data: st.DataObject) -> None:
        head = self.run(self._head())
        ids = ["nowhere"] if head is None else ["nowhere", *(node.node_id for node in head.graph.nodes)]
        leaf = data.draw(st.none() | st.none() | st.sampled_from(ids))
        _, whole = self.run(self._answer(self.other.load_session(ActivePath(leaf))))
        path = [] if whole is None else [node.node_id for node in whole.graph.nodes]
        near = st.sampled_from(path) if path else st.none()
        before = data.draw(st.none() | near | near | st.sampled_from(ids))
        limit = data.draw(st.integers(1, 6) | st.just(200) if before is None else st.none() | st.integers(1, 6))
        scope = ActivePath(leaf, limit, before)
        refusal, read = self.run(self._answer(self.store.load_session(scope)))
        self._compare(scope, refusal, read)
        if refusal is None and read is not None:
            self._keep(read)

    def _compare(self, scope: ActivePath, refusal: type[StoreError] | None, read: PersistedSessionRead | None) -> None:
        """The page is the slice of the whole path as it is now."""
        whole_refusal, whole = self.run(self._answer(self.other.load_session(ActivePath(scope.leaf_node_id))))
        if whole_refusal is not None or whole is None:
            assert (refusal, read) == (whole_refusal, None)
            return
        path = list(whole.graph.nodes)
        ids = [node.node_id for node in path]
        if scope.before is not None and scope.before not in ids:
            assert (refusal, read) == (InvalidRecord, None)
            self.counts["off the path"] += 1
            return
        assert refusal is None
        assert read is not None
        stop = len(path) if scope.before is None else ids.index(scope.before)
        start = 0 if scope.limit is None else max(0, stop - scope.limit)
        self._compare_nodes(read, whole, start, stop)
        assert read.scope == scope
        self.counts["a page"] += 1
        self.counts["a partial page"] += read.is_partial
        self.counts["an empty page"] += start == stop
        self.counts["cut out"] += start < stop and read._origin.nodes is None and scope.before is None  # type: ignore[union-attr]

    def _compare_nodes(self, read: PersistedSessionRead, whole: PersistedSessionRead, start: int, stop: int) -> None:
        nodes = list(whole.graph.nodes)[start:stop]
        assert list(read.graph.nodes) == nodes
        assert read.is_partial == (start > 0)
        if nodes:
            assert read.graph.leaf_node_id == nodes[-1].node_id
        assert content_of(read)[:7] == content_of(whole)[:7]

    async def _check(self, kept: Kept, *, by_pickle: bool) -> None:
        given, scope = kept.read, kept.read.scope
        assert isinstance(scope, ActivePath)
        if by_pickle:
            given = pickled(given)
            self.counts["pickled"] += 1
        loads = self.loads
        refusal, now = await self._answer(self.store.refresh(given))
        loaded_refusal, loaded = await self._answer(self.other.load_session(scope))
        assert refusal == loaded_refusal
        assert (now is None) == (loaded is None)
        assert kept.content is None or content_of(kept.read) == kept.content
        self.counts["loaded"] += self.loads > loads
        self.counts["the same"] += now is given
        if now is None or loaded is None:
            return
        assert now.scope == scope
        assert content_of(now)[:7] == content_of(loaded)[:7]
        if self.loads > loads or scope.before is not None:
            assert (content_of(now), now.is_partial) == (content_of(loaded), loaded.is_partial)
        else:
            whole = await self.other.load_session(ActivePath(scope.leaf_node_id))
            assert whole is not None
            count = len(given.graph.nodes)
            assert list(now.graph.nodes)[:count] == list(given.graph.nodes)
            start = whole.graph.node_index(given.graph.nodes[0].node_id) if count else 0
            assert start is not None
            self._compare_nodes(now, whole, start, len(whole.graph.nodes))
            self.counts["extended"] += len(now.graph.nodes) > count
        if now is not given:
            self.kept = [each for each in self.kept if each is not kept]
            self._keep(now)


def pickled(read: PersistedSessionRead) -> PersistedSessionRead:
    again: PersistedSessionRead = pickle.loads(pickle.dumps(read))
    assert (again, again.is_partial) == (read, read.is_partial)
    return again


@pytest.mark.parametrize("checks", ["strict", "lenient"])
def test_a_page_is_a_slice_of_the_path_and_its_refresh_keeps_its_beginning(
    chosen: tuple[Kind, RunningServers], checks: str
) -> None:
    kind, running = chosen
    counts: Counter[str] = Counter()
    fields = {"kind": kind, "running": running, "lenient": checks == "lenient", "counts": counts}
    run_state_machine_as_test(
        type("Machine", (PageMachine,), fields),
        settings=settings(PROFILE, max_examples=20, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
    )
    never = {outcome for outcome in EVERY_OUTCOME if not counts[outcome]}
    assert RANDOM or not never, f"these never happened: {sorted(never)}"
