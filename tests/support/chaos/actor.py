"""An actor, what it stores, and how it calls again after an unknown outcome."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lash_redis import (
    Append,
    Chat,
    Durability,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    OutcomeUnknown,
    PersistedSessionRead,
    RedisSessionStore,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCache,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
)
from tests.support.builders import plugins, tools
from tests.support.chaos.checks import Label, Problem, problems_of
from tests.support.chaos.deed import Deed
from tests.support.chaos.plan import Step

TRIES = 5
"""How often a step calls again after an unknown outcome."""
HANDLES = 6
"""Sessions of which an actor keeps a handle and its last read."""

Answer = TypeVar("Answer")


class Actor:
    """One sequence of steps. It keeps handles and reads from step to step, as a worker of a service may."""

    def __init__(self, name: str, cache: SessionCache, durability: Durability) -> None:
        self.name = name
        self.cache = cache
        self.durability = durability
        self._chats: dict[str, Chat] = {}
        self._reads: dict[str, PersistedSessionRead] = {}

    def chat(self, step: Step) -> Chat:
        if step.session not in self._chats:
            for forgotten in list(self._chats)[: 1 - HANDLES]:
                del self._chats[forgotten]
                self._reads.pop(forgotten, None)
            self._chats[step.session] = self.cache.chat(step.session, step.owner)
        return self._chats[step.session]

    def store(self, step: Step) -> RedisSessionStore:
        return self.chat(step).store

    def kept_read(self, step: Step) -> PersistedSessionRead | None:
        return self._reads.get(step.session)

    async def load(self, step: Step, deed: Deed, *, decode: bool = False) -> PersistedSessionRead | None:
        """Load the whole session, check it, and keep the read."""
        return self._kept(step, deed, await self.store(step).load_session(FullGraph(), decode=decode))

    async def see(self, step: Step, deed: Deed) -> PersistedSessionRead | None:
        """Refresh the last read, or load the session, and check and keep what is read."""
        kept = self.kept_read(step)
        if kept is None or step.choices[1] < 0.2:
            return await self.load(step, deed)
        return self._kept(step, deed, await self.store(step).refresh(kept))

    def _kept(self, step: Step, deed: Deed, read: PersistedSessionRead | None) -> PersistedSessionRead | None:
        if read is None:
            self._reads.pop(step.session, None)
        else:
            self._reads[step.session] = read
            note_problems(deed, problems_of(read))
        return read

    def durability_of(self, step: Step) -> Durability | None:
        return self.durability if step.durable else None


def note_problems(deed: Deed, problems: Sequence[Problem]) -> None:
    deed.problems += [(problem.kind, problem.text, problem.op) for problem in problems]


async def settled(deed: Deed, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Call again while the outcome is unknown, as the documentation of each method advises."""
    for pause in range(TRIES):
        try:
            return await call()
        except OutcomeUnknown:
            deed.unknowns += 1
            await asyncio.sleep(pause / 10)
    return await call()


# What is stored


def label(step: Step, deed: Deed, at: int) -> str:
    return Label(deed.op, step.session, at, step.count, deed.has_usage).text(step.size)


def messages_of(step: Step, deed: Deed, *, are_named: bool) -> list[dict[str, Any]]:
    deed.count = step.count
    made: list[dict[str, Any]] = [{"role": "user", "content": label(step, deed, at)} for at in range(step.count)]
    return [{**each, "id": f"{deed.op}.{at}"} for at, each in enumerate(made)] if are_named else made


def usage_of(deed: Deed) -> list[TokenLedgerEntry]:
    return [TokenLedgerEntry(deed.op, "m", TokenUsage(1))] if deed.has_usage else []


def record_of(step: Step, deed: Deed, node_id: str, at: int) -> dict[str, Any]:
    return {"id": node_id, "role": "User", "parts": [{"kind": "Text", "content": label(step, deed, at)}]}


def nodes_of(step: Step, deed: Deed, attempt: int, parent: str | None) -> list[SessionNodeRecord]:
    """The nodes of one attempt. Their ids differ between attempts, so that no id prevents a second copy."""
    nodes = []
    deed.count = step.count
    for at in range(step.count):
        node_id = f"{deed.op}.{attempt}.{at}"
        payload = EventPayload({"Conversation": record_of(step, deed, node_id, at)})
        nodes.append(SessionNodeRecord(node_id, parent, "t", payload))
        parent = node_id
    return nodes


def parent_in(read: PersistedSessionRead | None) -> str | None:
    """The last node of the active path, or the last live node if the leaf was hidden."""
    if read is None or not read.graph.nodes:
        return None
    return (read.graph.active_path() or read.graph.nodes)[-1].node_id


def chosen(step: Step, read: PersistedSessionRead | None) -> str | None:
    """The id of a live node."""
    if read is None or not read.graph.nodes:
        return None
    return read.graph.nodes[int(step.choices[0] * len(read.graph.nodes))].node_id


def state_of(step: Step, deed: Deed, read: PersistedSessionRead | None) -> HydratedSessionCheckpoint:
    """A checkpoint that names its step. Sessions share some tool states, and keep those of the read at times."""
    mine = json.dumps([deed.op, step.session]).encode()
    if read is not None and read.checkpoint is not None and step.choices[1] < 0.5:
        return replace(read.checkpoint, execution_state=mine, execution_state_ref=None)
    kind = int(step.choices[2] * 6)
    return HydratedSessionCheckpoint(
        tool_state=tools(f"tools {kind} " * 300), plugin_snapshot=plugins(deed.op), execution_state=mine
    )


def commit_on(
    step: Step, deed: Deed, read: PersistedSessionRead | None, *, attempt: int = 0, **more: Any
) -> RuntimeCommit:
    deed.has_usage = True
    nodes = nodes_of(step, deed, attempt, parent_in(read))
    values = {"graph": Append(nodes), "checkpoint": state_of(step, deed, read), "usage_deltas": usage_of(deed)}
    return RuntimeCommit(step.session, **{**values, **more})


async def publish(actor: Actor, step: Step, deed: Deed, commit: RuntimeCommit) -> RuntimeCommitResult:
    store, durability = actor.store(step), actor.durability_of(step)
    result = await settled(deed, lambda: store.commit_runtime_state(commit, durability=durability))
    deed.durable = result.durable
    return result
