"""Shorten or replace the end of a session's active path. Pure functions on graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from lash_redis.integrations.openai_agents.items import Item, item_of_content, payload_of_item
from lash_redis.models import PluginPayload, SessionGraph, SessionNodeRecord
from lash_redis.models.node import inside, new_message_id

START: Final = "openai_agents.start"
"""The plugin type of a node at the root of an active path without items, in a session with other branches."""


def item_of_node(node: SessionNodeRecord) -> Item | None:
    """Return the item of a node; None if it has none."""
    payload = node.payload
    if isinstance(payload, PluginPayload):
        return item_of_content(payload.plugin_type, payload.body)
    return item_of_content(None, payload.event)


def cut(graph: SessionGraph, path: Sequence[SessionNodeRecord], count: int) -> SessionGraph:
    """Return a graph whose active path is the first `count` nodes of `path`, the active path of `graph`.

    The other nodes of the path are dropped, except those to which another branch is attached.
    """
    leaf = path[count - 1].node_id if count else None
    dropped = {node.node_id for node in path[count:]}
    tail = graph.nodes[len(graph.nodes) - len(dropped) :]
    if all(node.node_id in dropped for node in tail):
        return graph.first(len(graph.nodes) - len(dropped)).with_leaf(leaf)
    kept: list[SessionNodeRecord] = []
    parents: set[str | None] = set()
    for node in reversed(graph.nodes):
        if node.node_id not in dropped or node.node_id in parents:
            kept.append(node)
            parents.add(node.parent_node_id)
    return SessionGraph(kept[::-1], leaf)


def rooted(graph: SessionGraph) -> SessionGraph:
    """Return the graph with an empty record as its leaf if it has branches but no leaf, which no graph may have."""
    return graph.append_plugin(START, {}) if graph.nodes and graph.leaf_node_id is None else graph


def grown(graph: SessionGraph, items: Sequence[Item]) -> SessionGraph:
    """Return a graph with the items appended below its leaf.

    Raises:
        InvalidRecord: an item is invalid; the error names it.
    """
    for at, item in enumerate(items):
        payload = payload_of_item(item, new_message_id(), f"items[{at}]")
        if isinstance(payload, PluginPayload):
            graph = graph.append_plugin(payload.plugin_type, payload.body)
        else:
            graph = graph.append_message(inside(payload.event, "Conversation") or {})
    return graph


def without_expired(
    graph: SessionGraph, path: Sequence[SessionNodeRecord], is_expired: Callable[[Item], bool]
) -> SessionGraph:
    """Return the graph without the expired items at the beginning of `path`; the graph itself if it has branches."""
    count = 0
    while count < len(path) and (item := item_of_node(path[count])) is not None and is_expired(item):
        count += 1
    if not count or len(path) != len(graph.nodes):
        return graph
    kept = list(path[count:])
    kept[:1] = [replace(node, parent_node_id=None) for node in kept[:1]]
    return SessionGraph(kept, graph.leaf_node_id if kept else None)
