"""How a page of an active path is read: natively if it ends the log, by a script, or cut out of a whole path."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final, Literal

from lash_redis.errors import InvalidRecord
from lash_redis.models import ActivePath, PersistedSessionRead, SessionGraph
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall, mapping, status
from lash_redis.protocol.commands.paths import PathPlan, jump_list
from lash_redis.protocol.commands.reads import (
    Jump,
    check_id,
    check_leaf,
    head_reply,
    is_followed,
    origin_of,
    positions,
    private_components,
    size_read,
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


MORE_RECORDS: Final = 10
"""Number of records that are read in addition to the limit, for a path that leaves out some of the last ones."""
LAST_JUMPS: Final = 16
"""Number of jumps that are read with the last records of a log."""


def end_read(keys: SessionKeys, limit: int) -> list[Command]:
    """Read the head and the end of the log, which has the page of a path that has few branches there."""
    return [
        ("HGETALL", keys.head),
        ("LRANGE", keys.log, -min(limit, UNLIMITED) - MORE_RECORDS, -1),
        ("LRANGE", keys.jumps, -LAST_JUMPS, -1),
        ("HGETALL", keys.state),
        *size_read(keys),
    ]


def end_plan(keys: SessionKeys, scope: ActivePath, replies: Sequence[Any]) -> PathPlan | Literal["other"] | None:
    """Return the page `scope` at the head's leaf, cut out of the end of the log; None without a head.

    "other" means that these replies do not determine the page; the script does.

    Raises:
        Corrupt, SessionEvicted: stored data violates an invariant, or a key of the session is missing.
    """
    fields, records, jumps, state, *sizes = replies
    head = head_reply(keys, fields, *sizes)
    if head is None:
        return None
    facts = head.facts
    if facts.loose or facts.live != facts.length:
        return "other"
    links, first = jump_list(keys, jumps), facts.length - len(records)
    found = _spans_behind(first, facts.leaf, scope.limit or 0, links if facts.jumps > len(links) else [(0, -1), *links])
    if found is None:
        return "other"
    spans, is_partial = found
    parts = [records[start - first : stop + 1 - first] for start, stop in spans]
    private = private_components(head, state)
    return PathPlan(head, scope, spans, jumps=links, private=private, is_partial=is_partial, parts=parts)


def _spans_behind(
    first: int, leaf: int, limit: int, links: Sequence[Jump]
) -> tuple[list[tuple[int, int]], bool] | None:
    """Compute the last `limit` nodes of the path to `leaf` as ranges of the log, and whether the path has earlier ones.

    None if the page begins before position `first`, or before the first of `links`.
    """
    spans: list[tuple[int, int]] = []
    at = leaf
    while at >= 0 and limit > 0:
        index = bisect_right(links, at, key=itemgetter(0)) - 1
        if index < 0:
            return None
        start, parent = links[index]
        low = max(start, at - limit + 1)
        if low < first:
            return None
        spans.append((low, at))
        limit -= at - low + 1
        at = low - 1 if low > start else parent
    return spans[::-1], at >= 0


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
