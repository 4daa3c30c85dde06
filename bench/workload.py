"""What does an agent runtime commit, turn after turn? Sessions, messages and states of realistic size.

All content comes from a seeded generator, so two runs write the same bytes except for the ids of commits.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from zlib import crc32

import msgpack

from lash_redis import (
    Append,
    BlobRef,
    EventPayload,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginSessionSnapshot,
    RuntimeCommit,
    SessionCache,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
)
from lash_redis.models.components import PluginSnapshotEntry, PluginSnapshotMeta

EVENT_BYTES = 600
MANIFEST_BYTES = 2_048
TOOLS_BYTES, PLUGIN_BYTES, EXECUTION_BYTES = 20_480, 4_096, 8_192


_WORDS = re.findall(
    r"\w+",
    "the flight leaves at seven and we can change your seat if you like but your fare does not allow a refund "
    "Let me call up the reservation first confirm please baggage insurance passenger economy business card gift "
    "airport cancel book update number user because after before tomorrow thanks would could three two one",
)
_RNG = random.Random(20260)

CONFIG = PersistedSessionConfig("some-provider", "some-model-large", 200_000, "standard", {"kind": "rolling_history"})


def text(size: int) -> str:
    words: list[str] = []
    while size > 0:
        words.append(_RNG.choice(_WORDS))
        size -= len(words[-1]) + 1
    return " ".join(words)


_TEXTS = [text(EVENT_BYTES - 130) for _ in range(64)]


def node(place: int, parent: str | None, node_id: str | None = None) -> SessionNodeRecord:
    """Return a message of about `EVENT_BYTES` of JSON."""
    name = node_id or f"m{place:08x}"
    message = {
        "id": name,
        "role": "User" if place % 2 == 0 else "Assistant",
        "parts": [{"id": f"{name}.p0", "kind": "Text", "content": _TEXTS[place % 64], "prune_state": "Intact"}],
        "origin": None,
    }
    timestamp = f"2026-11-22T10:00:{place % 60:02d}.000Z"
    return SessionNodeRecord(name, parent, timestamp, EventPayload({"Conversation": message}))


def chain(start: int, count: int, parent: str | None) -> list[SessionNodeRecord]:
    """Return `count` messages, each the child of the one before it."""
    nodes: list[SessionNodeRecord] = []
    for place in range(start, start + count):
        nodes.append(node(place, parent))
        parent = nodes[-1].node_id
    return nodes


def forked(total: int, path: int, forks: int) -> list[SessionNodeRecord]:
    """Return a graph of `total` nodes whose last node ends a path of `path` nodes, which lies in `forks` pieces.

    An abandoned branch follows each piece but the last.
    """
    nodes: list[SessionNodeRecord] = []
    tip = None
    for fork in range(forks):
        nodes += chain(len(nodes), path // forks, tip)
        tip = nodes[-1].node_id
        if fork < forks - 1:
            nodes += chain(len(nodes), (total - path) // (forks - 1), tip)
    return nodes


def packed(node: SessionNodeRecord) -> bytes:
    """Encode a message in the fewest bytes: its fields in order, without names, checksum or framing."""
    event = node.event()
    return msgpack.packb([node.node_id, node.parent_node_id, node.timestamp, event])  # type: ignore[no-any-return]


def record_bytes(commit: RuntimeCommit) -> int:
    """Return the number of bytes of the messages that a commit adds, as `packed` encodes them."""
    return sum(map(len, map(packed, commit.graph.nodes))) if isinstance(commit.graph, Append) else 0


def tool_state(size: int = TOOLS_BYTES) -> ToolState:
    tools: dict[str, ToolStateEntry] = {}
    used = 0
    while used < size:
        name = f"tool_{len(tools):02d}"
        parameters = {
            f"argument_{number}": {"type": "string", "description": text(70)} for number in range(1 + len(tools) % 5)
        }
        schema = {"type": "object", "properties": parameters, "required": sorted(parameters)}
        manifest = {"name": name, "description": text(180), "input_schema": schema, "enabled": True}
        tools[name] = ToolStateEntry(manifest, "plugins")
        used += len(msgpack.packb(manifest)) + 40
    return ToolState(1, tools)


@cache
def _filling(size: int) -> str:
    return text(size)


@cache
def _execution(size: int) -> bytes:
    names = range(max(200, size // 40))
    return json.dumps({"variables": {f"name_{n}": text(60) for n in names}}).encode()[:size]


def plugin_snapshot(owner: str, turn: int, size: int = PLUGIN_BYTES) -> PluginSessionSnapshot:
    """Return a snapshot that differs for each session and turn, because equal ones are stored and sent once."""
    state: dict[str, Any] = {
        "owner": owner,
        "turn": turn,
        "notes": _filling(size - 700),
        "seen": [{"step": step, "ok": True, "took_ms": step * 7} for step in range(20)],
    }
    return PluginSessionSnapshot({"memory": PluginSnapshotEntry(PluginSnapshotMeta("memory", "1.0", turn, state))})


def execution_state(owner: str, turn: int, size: int = EXECUTION_BYTES) -> bytes:
    return b"%08x turn %08d" % (crc32(owner.encode()), turn) + _execution(size)[22:]


class Session:
    """A session as a runtime uses it. `turn` makes a commit that builds on the one made before."""

    def __init__(self, cache: SessionCache, session_id: str, owner: str | None = None) -> None:
        # `bench.check` also runs commits whose `session` takes no owner.
        self.store = cache.session(session_id) if owner is None else cache.session(session_id, owner=owner)
        self.nodes = 0
        self.turns = 0
        self.leaf: str | None = None
        self.commit_id: str | None = None
        self.tool_ref: BlobRef | None = None

    def turn(self, nodes: Sequence[SessionNodeRecord] | None = None, *, states: bool = True) -> RuntimeCommit:
        """Two messages, one row of usage and, with `states`, a new plugin snapshot and execution state.

        The commit names the tool state by its ref. Send each commit before you make the next one.
        """
        if nodes is None:
            nodes = chain(self.nodes, 2, self.leaf)
        owner = self.store.session_id
        commit = RuntimeCommit(
            session_id=self.store.session_id,
            expected_head_revision=self.turns,
            config=CONFIG,
            graph=Append(nodes, nodes[-1].node_id),
            checkpoint=HydratedSessionCheckpoint(
                turn_state=PersistedTurnState(self.turns, TokenUsage(1200 + self.turns, 340, 900, 20)),
                tool_state_ref=self.tool_ref,
                plugin_snapshot=plugin_snapshot(owner, self.turns) if states else None,
                plugin_snapshot_revision=self.turns,
                execution_state=execution_state(owner, self.turns) if states else None,
            ),
            usage_deltas=[TokenLedgerEntry("turn", "some-model-large", TokenUsage(1200, 340, 900, 20))],
            builds_on=self.commit_id,
        )
        self.nodes += len(nodes)
        self.turns += 1
        self.leaf, self.commit_id = nodes[-1].node_id, commit.commit_id
        return commit

    async def begin(self, tools: ToolState | None, nodes: Sequence[SessionNodeRecord], *, states: bool = True) -> None:
        """Commit the tool state with the first nodes, then the rest in commits of 2,000."""
        for at in range(0, len(nodes), 2000):
            commit = self.turn(nodes[at : at + 2000], states=states)
            if at == 0:
                commit = replace(commit, checkpoint=replace(commit.checkpoint, tool_state=tools))
            result = await self.store.commit_runtime_state(commit)
            self.tool_ref = result.manifest.tool_state_ref

    async def commit(self, commit: RuntimeCommit) -> None:
        await self.store.commit_runtime_state(commit)
