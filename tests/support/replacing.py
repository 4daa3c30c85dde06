"""Replacements of a graph by a graph that grew from it, what a handle sends for them, and broken stores."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from lash_redis import FullGraph, PersistedSessionRead, RedisSessionStore, ReplaceFull, SessionGraph, SessionNodeRecord
from tests.support.breaking import Lua, Python


def done(value: Any) -> Generator[None, None, Any]:
    """Work in no steps that has this result."""
    return value
    yield


KEEPS_NOTHING = Python("protocol.lineage:StoredLog.kept_by", lambda _: lambda *_: done(None), "keeps nothing")
KEEPS_ANYTHING = Python(
    "protocol.lineage:StoredLog._common",
    lambda _: lambda log, nodes, _: done(min(len(log), len(nodes))),
    "keeps anything",
)
TRUSTS_THE_HEAD = Lua("replace", "return same and {", "return {")


COUNT, DELTA = 15, 23
"""Positions in ARGV: the number of nodes in both scripts, and the delta in `replace.lua`."""


class Sent:
    """Record the commits that a handle sends: bytes of the arguments, word of the delta, number of dropped nodes."""

    def __init__(self, store: RedisSessionStore) -> None:
        self.bytes: list[int] = []
        self.deltas: list[str] = []
        self.drops: list[int] = []
        run = store._namespace.run_durably

        async def counted(call: Any, *more: Any) -> Any:
            if call.script.name in ("commit", "replace"):
                args = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in call.args]
                self.bytes.append(sum(map(len, args)))
                usual = b"append" if int(args[COUNT]) else b"unchanged"
                delta = args[DELTA] if call.script.name == "replace" else usual
                word, *numbers = delta.split(b" ", 5)
                self.deltas.append(word.decode())
                self.drops.append(int(numbers[3]) if numbers else 0)
            return await run(call, *more)

        store._namespace.run_durably = counted  # type: ignore[method-assign]


def longer(graph: SessionGraph, *added: SessionNodeRecord) -> ReplaceFull:
    """A longer graph, as `append_*` makes it, with given ids and parents."""
    return ReplaceFull(graph._extended(added, added[-1].node_id if added else graph.leaf_node_id))


def by_hand(graph: SessionGraph) -> SessionGraph:
    return SessionGraph(tuple(graph.nodes), graph.leaf_node_id)


async def full(store: RedisSessionStore) -> PersistedSessionRead:
    read = await store.load_session(FullGraph())
    assert read is not None
    return read


def edited(graph: SessionGraph, keeps: int, *others: SessionNodeRecord) -> ReplaceFull:
    """The first nodes of a graph, followed by others."""
    kept = graph.first(keeps)
    return longer(kept, *others)
