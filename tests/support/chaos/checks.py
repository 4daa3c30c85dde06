"""What every read must fulfil, at any time and under any fault.

Each node contains a label, and each commit adds a ledger row named for its step, so a read can be checked by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise

from lash_redis import PersistedSessionRead, SessionNodeRecord
from lash_redis.chat import message_of_node


@dataclass(frozen=True)
class Label:
    """What a node is part of."""

    op: str
    """The step that made the node."""
    session: str
    """The session in which it was made. A fork has nodes of its source."""
    at: int
    """The place among the nodes of the step."""
    of: int
    """The number of nodes of the step."""
    has_usage: bool
    """Whether the commit of the node also adds a ledger row."""

    def text(self, size: int) -> str:
        """The label as the text of a message, filled up to a size."""
        text = json.dumps(asdict(self))
        return text + " " * (size - len(text))

    @staticmethod
    def of_node(node: SessionNodeRecord) -> Label:
        message = message_of_node(node)
        assert message is not None, f"node {node.node_id} is no message"
        content = message["content"]
        assert isinstance(content, str), f"node {node.node_id} contains {content!r}"
        return _label_in(content)


@lru_cache(20_000)
def _label_in(text: str) -> Label:
    return Label(**json.loads(text))


@dataclass(frozen=True)
class Problem:
    """What is wrong with a read."""

    kind: str
    """`doubled`, or `wrong read`."""
    text: str
    op: str = ""
    """The step that was counted or stored more than once."""


def ledger_of(read: PersistedSessionRead) -> dict[str, int]:
    """How often each step was counted."""
    return {row.source: row.usage.input_tokens for row in read.token_ledger}


def problems_of(read: PersistedSessionRead, *, is_path: bool = False) -> list[Problem]:
    """What is wrong with a read. `is_path`: its nodes are one path or a page of it."""
    ledger = ledger_of(read)
    labels = {node.node_id: Label.of_node(node) for node in read.graph.nodes}
    found = [*_untied(read, ledger, labels), *(_broken_path(read) if is_path else _broken_graph(read))]
    at = f", at revision {read.head_revision}, commit {read.commit_id}"
    doubled = [Problem("doubled", text + at, op) for op, text in _doubled(ledger, labels)]
    return doubled + [Problem(kind, text + at) for kind, text in found]


def _doubled(ledger: dict[str, int], labels: dict[str, Label]) -> list[tuple[str, str]]:
    """Each step that was counted or stored more than once, and what was."""
    found = [(op, f"{op} was counted {times} times") for op, times in ledger.items() if times != 1]
    places = Counter((label.op, label.at) for label in labels.values())
    return found + [(op, f"node {at} of {op} is stored {n} times") for (op, at), n in places.items() if n > 1]


def _untied(read: PersistedSessionRead, ledger: dict[str, int], labels: dict[str, Label]) -> list[tuple[str, str]]:
    """Parts of one commit of which the read lacks another part."""
    found = [
        ("wrong read", f"node {node_id} of {label.op} is there without its usage")
        for node_id, label in labels.items()
        if label.session == read.session_id and label.has_usage and label.op not in ledger
    ]
    state = None if read.checkpoint is None else read.checkpoint.execution_state
    if state is not None:
        op, session = json.loads(state)
        if session == read.session_id and op not in ledger:
            found.append(("wrong read", f"the state of {op} is there without its usage"))
    return found


def _broken_graph(read: PersistedSessionRead) -> list[tuple[str, str]]:
    place = {node.node_id: at for at, node in enumerate(read.graph.nodes)}
    if len(place) != len(read.graph.nodes):
        return [("wrong read", "a node id occurs twice")]
    return [
        ("wrong read", f"node {node.node_id} precedes its parent {node.parent_node_id}")
        for at, node in enumerate(read.graph.nodes)
        if node.parent_node_id is not None and place.get(node.parent_node_id, -1) > at
    ]


def _broken_path(read: PersistedSessionRead) -> list[tuple[str, str]]:
    nodes = read.graph.nodes
    return [
        ("wrong read", f"node {node.node_id} follows {above.node_id}, and its parent is {node.parent_node_id}")
        for above, node in pairwise(nodes)
        if node.parent_node_id != above.node_id
    ]


def refresh_problems(refreshed: PersistedSessionRead, loaded: PersistedSessionRead) -> list[Problem]:
    """What is wrong if these are one commit: a tombstone, or its loss in a failover, may come in between, no other."""
    if refreshed.commit_id != loaded.commit_id:
        return []
    old = [node.node_id for node in refreshed.graph.nodes]
    new = [node.node_id for node in loaded.graph.nodes]
    both = set(old) & set(new)
    in_order = [each for each in old if each in both] == [each for each in new if each in both]
    if in_order and len(both) in (len(old), len(new)) and ledger_of(refreshed) == ledger_of(loaded):
        return []
    return [Problem("wrong read", f"a refresh and a load of commit {loaded.commit_id} differ: {old} and {new}")]
