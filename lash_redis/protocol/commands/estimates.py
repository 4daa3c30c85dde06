"""Estimate the size of a commit before it is encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from lash_redis.models import Append, ReplaceFull, RuntimeCommit, SessionNodeRecord
from lash_redis.protocol.component_refs import COMPONENTS
from lash_redis.protocol.components import stored_component
from lash_redis.protocol.nodes import stored_size

NODE_BYTES: Final = 64
"""The least size of a node without its payload, in bytes."""
VALUE_BYTES: Final = 4
"""What a value without text counts for, in bytes."""


def is_larger(commit: RuntimeCommit, size: int) -> bool:
    """Estimate whether a commit sends more than `size` bytes. O(size), also for a commit that is much larger.

    No payload and no component counts as accessed afterwards. Nodes that a replacement keeps do not count.
    """
    left = size - NODE_BYTES * len(commit.usage_deltas)
    for name in COMPONENTS:
        value = getattr(commit.checkpoint, name, None)
        if value is not None:
            stored = stored_component(value)
            left = _after(value, left) if stored is None else left - len(stored.data)
    nodes = _nodes_of(commit)
    left -= NODE_BYTES * len(nodes)
    for node in nodes:
        if left < 0:
            return True
        known = stored_size(node)
        left = _after(node.payload, left) if known is None else left - known
    return left < 0


def _nodes_of(commit: RuntimeCommit) -> Sequence[SessionNodeRecord]:
    graph = commit.graph
    if isinstance(graph, ReplaceFull):
        return graph.graph.nodes[graph.graph.lineage.kept :]
    return graph.nodes if isinstance(graph, Append) else ()


def _after(value: Any, left: int) -> int:
    """Return what is left of `left` bytes after a value; a negative number if it is larger."""
    if isinstance(value, str | bytes):
        return left - len(value)
    left -= VALUE_BYTES
    if isinstance(value, Mapping):
        for key, each in value.items():
            if left < 0:
                break
            left = _after(each, _after(key, left))
    elif isinstance(value, list | tuple):
        for each in value:
            if left < 0:
                break
            left = _after(each, left)
    elif is_dataclass(value):
        left = _after([getattr(value, field.name) for field in fields(value)], left)
    return left
