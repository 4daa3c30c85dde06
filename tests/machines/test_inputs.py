"""Random enqueues, consuming commits, retries and deletions: the pending inputs are those of a plain dict.

After each step the machine also reads the stored bytes with a client that knows only the documented layout.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from hashlib import sha256
from typing import Any, ClassVar, TypeVar

import msgpack
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from lash_redis import (
    Append,
    HeadRevisionConflict,
    InputIdReused,
    InputNotPending,
    InputsFull,
    RedisSessionStore,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionGraph,
    StoreError,
    StoreOptions,
)
from tests.machines.test_refresh import chosen
from tests.machines.test_sessions import PROFILE, RANDOM
from tests.support.builders import node
from tests.support.servers import Kind, RunningServers, Server

__all__ = ["chosen"]

IDS = ("a", "b", "c:{x}", "nputs", "é\n\0")
ITEMS = ("one", "two", {"k": [1, None]})
MAX_BYTES = 80
HEAD = b"lash2:{machine:0}:head:chat"
OPERATIONS = (*("enqueue",) * 8, *("commit",) * 6, *("send_again",) * 2, "delete")
OUTCOMES = (
    "added", "again", "consumed before", "InputIdReused", "InputsFull", "committed", "InputNotPending",
    "HeadRevisionConflict", "replayed", "deleted", "replaced", "first commit consumes",
)  # fmt: skip
Answer = TypeVar("Answer")


def record_of(input_id: str, item: Any) -> bytes:
    content = msgpack.packb([input_id, item])
    return sha256(input_id.encode()).digest()[:8] + sha256(content).digest()[:8] + content


class InputMachine(RuleBasedStateMachine):
    kind: ClassVar[Kind]
    running: ClassVar[RunningServers]
    counts: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.server: Server = self.running.emptied(self.kind)
        self.raw = self.server.client()
        options = StoreOptions(shards=1, deletion_marker_ttl=0, max_pending_input_bytes=MAX_BYTES)
        self.caches = [SessionCache(self.server.client(), "machine", options=options) for _ in range(2)]
        self.commits: list[RuntimeCommit] = []
        self.serial = 0
        self.forget()

    def forget(self) -> None:
        """The session does not exist: nothing is pending, and no handle has seen it."""
        self.stores = [cache.session("chat") for cache in self.caches]
        self.pending: dict[str, Any] = {}
        self.consumed: dict[str, Any] = {}
        self.order: list[str] = []
        self.revision = self.total = 0
        self.made: dict[str, int] = {}

    def run(self, doing: Coroutine[Any, Any, Answer]) -> Answer:
        return self.loop.run_until_complete(doing)

    def teardown(self) -> None:
        self.run(self.server.close_clients())
        self.loop.close()

    async def outcome(self, doing: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await doing
        except StoreError as error:
            return type(error)

    @initialize(deck=st.permutations(OPERATIONS))
    def shuffle(self, deck: list[str]) -> None:
        self.deck = list(deck)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Run the next operation. One rule runs all, because Hypothesis disables random rules for whole runs."""
        operation = self.deck.pop()
        self.deck.insert(0, operation)
        getattr(self, operation)(data, self.stores[data.draw(st.integers(0, 1))])
        self.run(self._check())

    def enqueue(self, data: st.DataObject, store: RedisSessionStore) -> None:
        input_id, item = data.draw(st.sampled_from(IDS)), data.draw(st.sampled_from(ITEMS))
        got = self.run(self.outcome(store.enqueue_input(item, input_id)))
        known = {**self.consumed, **self.pending}
        used = sum(len(record_of(*each)) for each in self.pending.items())
        if input_id in known and known[input_id] != item:
            expected: Any = InputIdReused
        elif input_id in known:
            expected = "again" if input_id in self.pending else "consumed before"
        elif used + len(record_of(input_id, item)) > MAX_BYTES:
            expected = InputsFull
        else:
            expected = "added"
            self.pending[input_id] = item
            self.total += 1
        if isinstance(expected, str):
            assert (got.input_id, got.item) == (input_id, item)
            assert (got.enqueued_at is None) == (expected == "consumed before")
            self.counts[expected] += 1
        else:
            assert got is expected
            self.counts[expected.__name__] += 1

    def commit(self, data: st.DataObject, store: RedisSessionStore) -> None:
        consumes = data.draw(st.lists(st.sampled_from(IDS), unique=True, max_size=3))
        if data.draw(st.booleans()):
            consumes = [*self.pending][: len(consumes)]
        expected, replaces = data.draw(st.sampled_from(["none", "right", "right", "old"])), data.draw(st.booleans())
        self.serial += 1
        new = node(f"n{self.serial}")
        graph = ReplaceFull(SessionGraph([new], new.node_id)) if replaces else Append([new])
        revision = {"none": None, "right": self.revision, "old": max(0, self.revision - 1)}[expected]
        made = RuntimeCommit("chat", revision, graph=graph, consumes=consumes, commit_id=f"c{self.serial}")
        got = self.run(self.outcome(store.commit_runtime_state(made)))
        if revision is not None and revision != self.revision:
            assert got is HeadRevisionConflict
        elif not set(consumes) <= set(self.pending):
            assert got is InputNotPending
        else:
            self.counts["first commit consumes"] += self.revision == 0 and bool(consumes)
            self.counts["replaced"] += replaces and bool(consumes)
            self.revision += 1
            assert (got.head_revision, got.replayed) == (self.revision, False)
            for each in consumes:
                self.consumed[each] = self.pending.pop(each)
                self.order.append(each)
            self.made[made.commit_id] = self.revision
            self.commits.append(made)
        self.counts["committed" if not isinstance(got, type) else got.__name__] += 1

    def send_again(self, data: st.DataObject, store: RedisSessionStore) -> None:
        """One of the last 20 commits is sent again. If the session was deleted since, it is a new one."""
        known = [each for each in self.commits if each.commit_id in self.made][-20:]
        if known:
            made = data.draw(st.sampled_from(known))
            result = self.run(store.commit_runtime_state(made))
            assert (result.head_revision, result.replayed) == (self.made[made.commit_id], True)
            self.counts["replayed"] += bool(made.consumes)

    def delete(self, data: st.DataObject, store: RedisSessionStore) -> None:
        self.run(store.delete())
        self.counts["deleted"] += bool(self.pending)
        self.forget()

    async def _check(self) -> None:
        for store in self.stores:
            pending = await store.pending_inputs()
            assert [(each.input_id, each.item) for each in pending] == list(self.pending.items())
        fields = await self.raw.hgetall(HEAD)
        stored = {name[2:].decode(): value for name, value in fields.items() if name.startswith(b"i:")}
        assert set(stored) == set(self.pending)
        places = []
        for input_id, value in stored.items():
            place, ms, record = value.split(b" ", 2)
            assert record == record_of(input_id, self.pending[input_id])
            assert len(ms) == 13
            places.append(int(place))
        assert len(set(places)) == len(places)
        assert all(1 <= place <= self.total for place in places)
        if self.total:
            total, count, size, receipts = fields[b"inputs"].split(b" ", 3)
            used = sum(len(record_of(*each)) for each in self.pending.items())
            assert (int(total), int(count), int(size)) == (self.total, len(self.pending), used)
            assert receipts == b"".join(record_of(each, self.consumed[each])[:16] for each in self.order)
        else:
            assert b"inputs" not in fields


def test_the_pending_inputs_are_those_of_a_dict(chosen: tuple[Kind, RunningServers]) -> None:
    kind, running = chosen
    counts: Counter[str] = Counter()
    fields = {"kind": kind, "running": running, "counts": counts}
    run_state_machine_as_test(
        type("Machine", (InputMachine,), fields),
        settings=settings(PROFILE, max_examples=30, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )
    never = {outcome for outcome in OUTCOMES if not counts[outcome]}
    assert RANDOM or not never, f"these never happened: {sorted(never)}"
