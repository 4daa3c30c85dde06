"""Collect the writes to a delta channel since its last stored value, along the parents of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from langgraph.checkpoint.base import DeltaChannelHistory, PendingWrite
from langgraph.checkpoint.serde.base import SerializerProtocol

from lash_redis.integrations.langgraph.reading import Loaded, ThreadReader

PAGE: Final = 200


class Ancestors:
    """The checkpoints above one, read in pages. Ancestors mostly sort next to each other, so a page has many."""

    def __init__(self, reader: ThreadReader, ns: str) -> None:
        self._reader = reader
        self._ns = ns
        self._page: dict[str, Loaded] = {}

    async def get(self, checkpoint_id: str) -> Loaded | None:
        found = self._page.get(checkpoint_id)
        if found is None:
            found = next(iter(await self._reader.some([(self._ns, checkpoint_id)])), None)
            if found is None:
                return None
            self._page = {each.checkpoint_id: each for each in await self._reader.page(self._ns, checkpoint_id, PAGE)}
        return found


async def delta_history(
    reader: ThreadReader, serde: SerializerProtocol, target: Loaded, channels: Sequence[str]
) -> dict[str, DeltaChannelHistory]:
    """Return for each channel the writes since the nearest ancestor with a stored value, and that value as `seed`."""
    writes: dict[str, list[PendingWrite]] = {channel: [] for channel in channels}
    seeds: dict[str, Loaded] = {}
    ancestors, parent = Ancestors(reader, target.ns), target.record.parent
    while parent is not None and len(seeds) < len(writes):
        found = await ancestors.get(parent)
        if found is None:
            break
        for write in reversed(found.writes):
            if write.channel in writes and write.channel not in seeds:
                value = serde.loads_typed(write.value)
                writes[write.channel].append((write.task_id, write.channel, value))
        seeds.update({name: found for name in writes if name in found.record.values and name not in seeds})
        parent = found.record.parent
    history: dict[str, DeltaChannelHistory] = {name: {"writes": found[::-1]} for name, found in writes.items()}
    stored = {name: found.record.values[name] for name, found in seeds.items()}
    parts = await reader.parts(stored.values())
    if parts is None:
        name, found = next(iter(seeds.items()))
        raise reader.gone(found.ns, found.checkpoint_id)
    for name, value in stored.items():
        history[name]["seed"] = serde.loads_typed(parts.typed(value))
    return history
