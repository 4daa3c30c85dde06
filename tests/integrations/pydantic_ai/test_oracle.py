"""Random operations agree with the in-memory store of the SDK."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic_ai import DeferredToolRequests, RunUsage
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    ModelMessage,
)

from lash_redis.integrations.pydantic_ai import LashConversationStore
from tests.support.conversations import (
    CALL,
    MESSAGES,
    talk,
)


@dataclass
class Both:
    """The SDK's store and the tested one, after the same operations. The ids that the SDK makes are translated."""

    oracle: InMemoryConversationStore
    tested: Callable[[], LashConversationStore]
    ids: dict[str | None, str | None] = field(default_factory=lambda: {None: None})

    async def do(self, call: Callable[[ConversationStore, Callable[[Any], Any]], Awaitable[Any]]) -> tuple[Any, Any]:
        """Run an operation on both, compare the results or the types of the errors, and return the results."""
        expected = await self._result(call, self.oracle, lambda given: given)
        found = await self._result(call, self.tested(), self.ids.__getitem__)
        assert type(found) is type(expected), (expected, found)
        self._compare(expected, found)
        await asyncio.sleep(0.002)  # the list of the server has milliseconds
        return expected, found

    async def _result(self, call: Any, store: ConversationStore, known: Callable[[Any], Any]) -> Any:
        try:
            return await call(store, known)
        except (UserError, LookupError) as error:
            return error

    def _compare(self, expected: Any, found: Any) -> None:
        match expected:
            case Conversation():
                names = ("messages", "usage", "conversation_id", "deferred_tool_requests", "new_message_index")
                assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
                assert (found.revision is None) == (expected.revision is None)
            case ConversationRecord():
                assert [self.ids[each] for each in expected.branches] == found.branches
                assert (self.ids[expected.head_id], self.ids[expected.forked_at]) == (found.head_id, found.forked_at)
                names = ("conversation_id", "usage", "deferred_tool_requests", "scope", "forked_from")
                assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
            case ConversationEntry():
                assert (self.ids[expected.parent_id], expected.message) == (found.parent_id, found.message)
                assert self.ids.setdefault(expected.id, found.id) == found.id
            case list():
                assert len(expected) == len(found)
                for one, other in zip(expected, found, strict=True):
                    self._compare(one, other)


CONVERSATIONS = ("a", "b", "c\0d", "e", "f")
SCOPES = (*(None,) * 7, "alice", "bob")
OPERATIONS = (
    *("begin",) * 2, *("load",) * 2, *("turn",) * 5, "grow", "save_stale", *("rewrite",) * 2, *("branch",) * 4,
    *("fork",) * 2, "list", *("entries",) * 2, "delete",
)  # fmt: skip


class Sequence:
    """A random sequence of operations on both stores, with copies of conversations that have become stale."""

    def __init__(self, both: Both, seed: int) -> None:
        self.both, self.dice = both, random.Random(seed)
        self.held: list[tuple[Conversation, Conversation]] = []
        self.pool = [MESSAGES[name] for name in MESSAGES if "megabyte" not in name]
        self.counts: dict[str, int] = {}

    async def step(self) -> None:
        name = self.dice.choice(OPERATIONS)
        outcome = await getattr(self, name)()
        counted = f"{name}: {type(outcome[0]).__name__}" if outcome else f"{name}: left out"
        self.counts[counted] = self.counts.get(counted, 0) + 1

    def some(self, count: int = 3) -> list[ModelMessage]:
        return self.dice.choices(self.pool, k=self.dice.randrange(count + 1))

    async def begin(self) -> tuple[Any, Any]:
        messages, name, scope = self.some(), self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        usage = RunUsage(requests=self.dice.randrange(9))
        return await self.save((talk(name, *messages, usage=usage), talk(name, *messages, usage=usage)), scope)

    async def save(self, pair: tuple[Conversation, Conversation], scope: str | None) -> tuple[Any, Any]:
        self.held.append(pair)
        pair = deepcopy(pair) if self.dice.random() < 0.2 else pair  # a copy does not know what is stored
        found = await self.both.do(lambda store, _: store.save(pair[store is not self.both.oracle], scope=scope))
        self.both._compare(*pair)
        return found

    async def load(self) -> tuple[Any, Any]:
        name, limit, scope = (
            self.dice.choice(CONVERSATIONS),
            self.dice.choice([None, 0, 1, 3, -1]),
            self.dice.choice(SCOPES),
        )
        pair = await self.both.do(lambda store, _: store.load(name, limit=limit, scope=scope))
        if isinstance(pair[0], Conversation):
            self.held.append(pair)
        return pair

    def pick(self) -> tuple[Conversation, Conversation] | None:
        self.held = self.held[-3:]
        return self.dice.choice(self.held) if self.held else None

    async def turn(self) -> tuple[Any, Any] | None:
        """Load a conversation, or its end, and save it with what a run would add."""
        name, limit = self.dice.choice(CONVERSATIONS), self.dice.choice([None, 2])
        pair = await self.both.do(lambda store, _: store.load(name, limit=limit))
        return None if pair[0] is None else await self.grown(pair)

    async def grow(self) -> tuple[Any, Any] | None:
        pair = self.pick()
        return None if pair is None else await self.grown(pair)

    async def grown(self, pair: tuple[Conversation, Conversation]) -> tuple[Any, Any]:
        messages = self.some()
        requests = self.dice.choice([None, DeferredToolRequests(calls=[CALL])])
        for each in pair:
            each.messages.extend(deepcopy(messages))
            each.usage.incr(RunUsage(requests=1))
            each.deferred_tool_requests = requests
        return await self.save(pair, self.dice.choice(SCOPES))

    async def save_stale(self) -> tuple[Any, Any] | None:
        pair = self.pick()
        return None if pair is None else await self.save(deepcopy(pair), None)

    async def rewrite(self) -> tuple[Any, Any] | None:
        if (pair := self.pick()) is None or not pair[0].messages:
            return None
        at, message = self.dice.randrange(len(pair[0].messages)), self.dice.choice(self.pool)
        for each in pair:
            each.messages[at] = deepcopy(message)
            each.new_message_index = self.dice.choice([each.new_message_index, each.new_message_index])
        return await self.save(pair, None)

    def point(self, record: Any, length: int) -> dict[str, Any]:
        """A point to branch or fork at, that exists or not."""
        if self.dice.random() < 0.5:
            return {"at": self.dice.randrange(-1, length + 2)}
        ids = [each for each in self.both.ids if each is not None]
        recent = [*record.branches, record.head_id] if isinstance(record, ConversationRecord) else []
        known = [each for each in recent if each in self.both.ids and each is not None]
        return {"from_entry": self.dice.choice(known or ids or ["?"])} if ids else {"at": 0}

    async def point_in(self, name: str) -> dict[str, Any]:
        record, _ = await self.both.do(lambda store, _: store.read_record(name))
        entries, _ = await self.both.do(lambda store, _: store.load_entries(name))
        if entries and self.dice.random() < 0.3:
            return {"from_entry": self.dice.choice(entries).id}
        return self.point(record, len(entries or ()))

    async def branch(self) -> tuple[Any, Any]:
        name, scope = self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        point, stale = await self.point_in(name), self.dice.random() < 0.1

        async def call(store: ConversationStore, known: Callable[[Any], Any]) -> Conversation:
            record = await store.read_record(name)
            revision = None if record is None or stale else record.revision
            given = {**point, "from_entry": known(point["from_entry"])} if "from_entry" in point else point
            return await store.branch(name, **given, expected_revision=revision, scope=scope)

        pair = await self.both.do(call)
        if isinstance(pair[0], Conversation):
            self.held.append(pair)
        return pair

    async def fork(self) -> tuple[Any, Any]:
        name, new, scope = self.dice.choice(CONVERSATIONS), self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        point = {} if self.dice.random() < 0.2 else await self.point_in(name)
        source_scope = self.dice.choice(SCOPES)

        async def call(store: ConversationStore, known: Callable[[Any], Any]) -> Conversation:
            given = {**point, "from_entry": known(point["from_entry"])} if "from_entry" in point else point
            return await store.fork(name, **given, new_conversation_id=new, scope=scope, source_scope=source_scope)

        pair = await self.both.do(call)
        if isinstance(pair[0], Conversation):
            self.held.append(pair)
        return pair

    async def list(self) -> tuple[Any, Any]:
        scope, limit = self.dice.choice(SCOPES), self.dice.choice([None, 0, 1, 2, 9, -1])
        return await self.both.do(lambda store, _: store.list_conversations(scope=scope, limit=limit))

    async def entries(self) -> tuple[Any, Any]:
        name, limit, scope = (
            self.dice.choice(CONVERSATIONS),
            self.dice.choice([None, 0, 1, 2]),
            self.dice.choice(SCOPES),
        )
        found = await self.both.do(lambda store, _: store.load_entries(name, limit=limit, scope=scope))
        if found[0]:
            one = self.dice.choice(found[0]).id
            await self.both.do(lambda store, known: store.read_entry(known(one)))
        return found

    async def delete(self) -> tuple[Any, Any]:
        name, scope = self.dice.choice(CONVERSATIONS), self.dice.choice(SCOPES)
        return await self.both.do(lambda store, _: store.delete(name, scope=scope))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_random_operations_agree_with_the_store_of_the_sdk(open_store, seed):
    stores = [open_store() for _ in range(1 + seed % 3)]
    sequence = Sequence(Both(InMemoryConversationStore(), lambda: sequence.dice.choice(stores)), seed)
    for _ in range(120):
        await sequence.step()
    assert sequence.counts["turn: list"] > 2
    for name in CONVERSATIONS:
        await sequence.both.do(lambda store, _, name=name: store.load_entries(name))
