"""The script call that reads a page of an active path, its reply, and a page that is cut out of a whole path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal

from lash_redis.errors import InvalidRecord
from lash_redis.models import ActivePath, PersistedSessionRead, SessionGraph
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import ScriptCall, mapping, status
from lash_redis.protocol.commands.paths import PathPlan, jump_list
from lash_redis.protocol.commands.reads import (
    check_id,
    check_leaf,
    head_reply,
    is_followed,
    origin_of,
    positions,
    private_components,
)
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.nodes import decode_node

BATCH: Final = 500
"""Maximum number of records that the script returns. More are fetched natively, in a second round trip."""
WORK: Final = 1000
"""Maximum number of jumps, of tombstones and of skipped records that the script reads.

A page that needs more is cut out of the whole path. This bounds the time for which a script blocks the server: one to
two milliseconds.
"""
UNLIMITED: Final = 2**53 - 1
"""The limit of a page without one: the largest integer that Lua represents, and more than a list can hold."""


def call(keys: SessionKeys, scope: ActivePath) -> ScriptCall:
    limit = UNLIMITED if scope.limit is None else min(scope.limit, UNLIMITED)
    args = [keys.session_id, scope.leaf_node_id or "", scope.before or "", limit, BATCH, WORK, keys.access]
    return ScriptCall(scripts.PAGE, keys.own, args)


def plan(call: ScriptCall, keys: SessionKeys, scope: ActivePath, reply: Any) -> PathPlan | Literal["far"] | None:
    """Return the ranges of the log that form the page, with their records if there are up to `BATCH`.

    None without a head; "far" if the page must be cut out of the whole path.

    Raises:
        InvalidRecord: `scope.before` is not a live node of the path.
        Corrupt, SessionEvicted: stored data violates an invariant, or a key of the session is missing.
    """
    word = status(call, reply, keys)
    if word == "absent":
        return None
    if word == "off":
        raise _off_the_path(scope)
    if word == "far":
        return "far"
    _, _, fields, state, dead, jumps, is_partial, bounds, parts, position, record = reply
    head = head_reply(keys, mapping(fields))
    assert head is not None
    check_leaf(keys, head, lambda at: None)
    last = None
    if scope.before is not None:
        check_id(keys, record, position, scope.before)
        last = decode_node(record, keys.log, position).parent_node_id
    return PathPlan(
        head,
        scope,
        list(zip(bounds[::2], bounds[1::2], strict=True)),
        positions(keys, dead, head.facts.length),
        jump_list(keys, jumps),
        private_components(head, mapping(state)),
        is_partial=bool(is_partial),
        last=last,
        parts=parts,
    )


def cut_out(path: PersistedSessionRead, scope: ActivePath) -> PersistedSessionRead:
    """Return the page `scope` of a whole path. A refresh of it reports that nothing is new, or loads the page again.

    Raises:
        InvalidRecord: `scope.before` is not a node of the path.
    """
    nodes, leaf = path.graph.nodes, path.graph.leaf_node_id
    stop = len(nodes)
    if scope.before is not None:
        found = path.graph.node_index(scope.before)
        if found is None:
            raise _off_the_path(scope)
        stop, leaf = found, nodes[found - 1].node_id if found else None
    start = 0 if scope.limit is None else max(0, stop - scope.limit)
    is_partial = start > 0 or is_followed(scope)
    graph = SessionGraph.from_base(path.graph.lineage.base, nodes[start:stop], leaf, 0, is_partial=is_partial)
    origin = origin_of(path)
    assert origin is not None
    return replace(path, graph=graph).from_origin(replace(origin, scope=scope, nodes=None, is_partial=start > 0))


def _off_the_path(scope: ActivePath) -> InvalidRecord:
    return InvalidRecord(
        "ActivePath.before",
        f"expected a live node of the path, got {scope.before!r}; load the last page again, or name the path's leaf",
    )
