"""The message graph: nodes in the order in which they were added, each with the id of its parent, and a leaf.

Users see the active path, which leads from a root to the leaf. Nodes off that path are orphans: stored, but not shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, count
from typing import Annotated, Any, Self
from uuid import uuid4

from lash_redis.errors import Corrupt, InvalidRecord
from lash_redis.models.chat_messages import as_record, canonical_json, parts_of
from lash_redis.models.lineage import Base, Lineage, NodeSequence, grown
from lash_redis.models.node import (
    EventPayload,
    NodePayload,
    PluginPayload,
    SessionNodeRecord,
    field_of,
    inside,
    is_transient,
    timestamp_now,
)
from lash_redis.models.wire import Json, Record, Rule


@dataclass(frozen=True, slots=True)
class SessionReadModel(Record):
    """The content of the active path, from the root to the leaf."""

    active_events: Sequence[Json]
    """Every event on the path."""
    messages: Sequence[Json]
    """Every message on the path, without transient ones. Of several with one id it holds the first.

    Messages without an id, or with an empty one, are all kept.
    """
    tool_calls: Sequence[Json]
    """The record of every tool call on the path."""


@dataclass(frozen=True, slots=True, eq=False)
class MessageTreeNode:
    """A message and the messages that follow it."""

    node_id: str
    """The id of the node that holds the message."""
    timestamp: str
    """The timestamp of the node, as text."""
    message: dict[str, Any]
    """The message itself."""
    active: bool
    """Whether the node is on the active path, and the message is not transient."""
    children: list[MessageTreeNode] = field(default_factory=list, repr=False)
    """The messages that follow, in the order of their timestamps as text."""


@dataclass(frozen=True, slots=True)
class SessionGraph(Record):
    """The immutable message graph of a session; a method that changes it returns another graph.

    If an id occurs twice, lookups by id return the later node.

    Raises:
        Corrupt: from each method that follows parents, if they form a cycle.
    """

    nodes: Sequence[SessionNodeRecord] = ()
    """The nodes in the order of the log."""
    leaf_node_id: str | None = None
    """The node at which the active path ends; None for an empty path."""
    is_partial: Annotated[bool, Rule.OMIT_EMPTY] = field(default=False, kw_only=True, repr=False, compare=False)
    """Whether a read left out nodes of the path, before the first node or after the last.

    The store refuses a `ReplaceFull` of such a graph.
    """
    _places: Annotated[dict[str, int] | None, Rule.IN_MEMORY] = field(
        default=None, init=False, repr=False, compare=False
    )
    _lineage: Annotated[Lineage | None, Rule.IN_MEMORY] = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.nodes, list):
            object.__setattr__(self, "nodes", tuple(self.nodes))

    @classmethod
    def from_nodes(cls, nodes: Sequence[SessionNodeRecord], leaf_node_id: str | None = None) -> Self:
        """Make a graph of nodes, unchecked, as the class does. The lash contract has this name."""
        return cls(nodes, leaf_node_id)

    @classmethod
    def from_base(
        cls,
        base: Base,
        nodes: Sequence[SessionNodeRecord],
        leaf_node_id: str | None,
        kept: int | None = None,
        *,
        is_partial: bool = False,
    ) -> Self:
        """Make a graph of nodes that were read from `base`, of which the first `kept` (None: all) are its first."""
        graph = cls(nodes, leaf_node_id, is_partial=is_partial)
        object.__setattr__(graph, "_lineage", Lineage(base, len(nodes) if kept is None else kept))
        return graph

    @property
    def lineage(self) -> Lineage:
        """The base that this graph grew from. A graph that the caller constructed gets a new base."""
        if self._lineage is None:
            object.__setattr__(self, "_lineage", Lineage(Base()))
        assert self._lineage is not None
        return self._lineage

    # Queries

    def node_index(self, node_id: str | None) -> int | None:
        return None if node_id is None else self._index().get(node_id)

    def find_node(self, node_id: str | None) -> SessionNodeRecord | None:
        place = self.node_index(node_id)
        return None if place is None else self.nodes[place]

    def active_path(self) -> list[SessionNodeRecord]:
        """Return the nodes from the root to the leaf; an empty list if the leaf is None or unknown.

        The path begins at the first ancestor whose parent is not in the graph.
        """
        path = [self.nodes[place] for place in self._upwards(self.leaf_node_id)]
        path.reverse()
        return path

    def active_path_contains(self, node_id: str) -> bool:
        return any(self.nodes[place].node_id == node_id for place in self._upwards(self.leaf_node_id))

    def orphaned_node_ids(self) -> list[str]:
        """Return the ids of the nodes off the active path, in list order."""
        active = {node.node_id for node in self.active_path()}
        return [node.node_id for node in self.nodes if node.node_id not in active]

    def read_model(self) -> SessionReadModel:
        events = [node.payload.event for node in self.active_path() if isinstance(node.payload, EventPayload)]
        messages = _distinct(message for event in events if (message := inside(event, "Conversation")) is not None)
        invocations = (inside(event, "Tool", "Invocation") for event in events)
        tool_calls = [field_of(invocation, "record") for invocation in invocations if invocation is not None]
        return SessionReadModel(tuple(events), tuple(messages), tuple(tool_calls))

    def user_message_count(self) -> int:
        """Count the messages of users in the whole graph, orphans included."""
        return sum(1 for _ in self._user_messages())

    def first_user_message(self) -> str:
        """Return the text of the first message of a user in list order, orphans included; "" if there is none."""
        message = next(self._user_messages(), None)
        return "" if message is None else message_text(message)

    def message_tree(self) -> list[MessageTreeNode]:
        """Return every message of the graph as a forest. Its parent is the nearest ancestor that is a message."""
        active = set(self._upwards(self.leaf_node_id))
        placed = {
            place: MessageTreeNode(node.node_id, node.timestamp, message, place in active and not is_transient(message))
            for place, node in enumerate(self.nodes)
            if (message := node.message()) is not None
        }
        roots: list[MessageTreeNode] = []
        for place, tree_node in placed.items():
            ancestors = self._upwards(self.nodes[place].parent_node_id)
            above = next((ancestor for ancestor in ancestors if ancestor in placed), None)
            (roots if above is None else placed[above].children).append(tree_node)
        for siblings in (roots, *(tree_node.children for tree_node in placed.values())):
            siblings.sort(key=lambda tree_node: tree_node.timestamp)
        rooted = list(roots)
        for tree_node in rooted:
            rooted.extend(tree_node.children)
        if len(rooted) < len(placed):
            unrooted = set(placed.values()).difference(rooted)
            raise Corrupt("graph", min(tree_node.node_id for tree_node in unrooted), "parent cycle")
        return roots

    # Changes, each of which returns another graph

    def with_leaf(self, leaf_node_id: str | None) -> SessionGraph:
        """Return a graph with the same nodes and another leaf. The id of the leaf may be unknown."""
        graph = SessionGraph(self.nodes, leaf_node_id, is_partial=self.is_partial)
        object.__setattr__(graph, "_places", self._places)
        object.__setattr__(graph, "_lineage", self.lineage)
        return graph

    set_leaf_node_id = branch_to = with_leaf  # the names of the lash contract

    def first(self, count: int) -> SessionGraph:
        """Return a graph of the first `count` nodes, whose leaf is the last of them.

        A negative `count` drops that many nodes at the end. To keep the later nodes as a branch, use `branch_to`.
        """
        size = len(range(len(self.nodes))[:count])
        nodes = self.nodes.first(size) if isinstance(self.nodes, NodeSequence) else self.nodes[:size]
        graph = SessionGraph(nodes, nodes[-1].node_id if nodes else None, is_partial=self.is_partial)
        object.__setattr__(graph, "_lineage", self.lineage.first(size))
        return graph

    def fork_current_path(self) -> SessionGraph:
        """Return a graph of the nodes of the active path. The leaf id is kept even if no node has it."""
        return SessionGraph(tuple(self.active_path()), self.leaf_node_id, is_partial=self.is_partial)

    def heal_orphaned_leaf(self) -> SessionGraph:
        """Return a graph with a valid leaf: this graph if its leaf is None or known.

        An unknown leaf is replaced by the last message in list order, or by None if there is no message.
        """
        if self.leaf_node_id is None or self.node_index(self.leaf_node_id) is not None:
            return self
        last = next((node for node in reversed(self.nodes) if node.message() is not None), None)
        return self.with_leaf(None if last is None else last.node_id)

    def append_event(self, event: Json) -> SessionGraph:
        return self._grown(self.leaf_node_id, [EventPayload(event)])

    def append_plugin(self, plugin_type: str, body: Json) -> SessionGraph:
        return self._grown(self.leaf_node_id, [PluginPayload(plugin_type, body)])

    def append_message(self, message: dict[str, Any]) -> SessionGraph:
        """Append a message below the leaf; the new node becomes the leaf.

        The message is a record of the contract (`role` "User", "Assistant" or "System", and `parts`) or a message in
        the OpenAI chat format, which is converted. The node gets the id of the message. If that id is taken, the node
        gets `message:<id>`, `message:<id>:2` and so on. A message without an id gets a random one.

        Raises:
            InvalidRecord: the message is neither; the error names the field.
        """
        return self._grown(self.leaf_node_id, [_identified(message, "message")])

    def append_active_read_delta(
        self, messages: Sequence[dict[str, Any]], tool_calls: Sequence[dict[str, Any]]
    ) -> SessionGraph:
        """Append the messages and tool calls that the active path does not contain yet.

        Messages are compared by id, tool calls by content. `append_message` lists the forms of a message.
        """
        present = self.read_model()
        stored = set(map(_compact, present.messages))
        known = set(map(_id_of, present.messages))
        recorded = set(map(_compact, present.tool_calls))
        fresh = [
            message
            for message in _distinct(_all_identified(messages, stored))
            if _id_of(message) not in known and _compact(message) not in stored
        ]
        calls = {text: record for record in tool_calls if (text := _compact(record)) not in recorded}
        return self._grown(self.leaf_node_id, [*fresh, *map(_invocation, calls.values())])

    def replace_active_read_state(
        self, messages: Sequence[dict[str, Any]], tool_calls: Sequence[dict[str, Any]]
    ) -> SessionGraph:
        """Return a graph whose active path contains exactly these messages and tool calls.

        The new path branches off at the first difference from the present path. No node is dropped: nodes that leave
        the path become orphans. Other nodes, such as plugin records, stay on the path up to the first difference.
        `append_message` lists the forms of a message.
        """
        stored = set(map(_compact, self.read_model().messages))
        wanted = deque(_distinct(_all_identified(messages, stored)))
        calls = deque(tool_calls)
        matched: set[str | tuple[str]] = set()
        kept = None
        for node in self.active_path():
            message, invocation = node.message(), inside(node.event(), "Tool", "Invocation")
            if message is not None and not is_transient(message) and _id_of(message) not in matched:
                if not wanted or _compact(wanted[0]) != _compact(message):
                    break
                if (message_id := _id_of(wanted.popleft())) is not None:
                    matched.add(message_id)
            elif invocation is not None:
                if not calls or _compact(calls[0]) != _compact(field_of(invocation, "record")):
                    break
                calls.popleft()
            kept = node.node_id
        return self._grown(kept, [*wanted, *map(_invocation, calls)])

    def _index(self) -> dict[str, int]:
        if self._places is None:
            object.__setattr__(self, "_places", {node.node_id: place for place, node in enumerate(self.nodes)})
        assert self._places is not None
        return self._places

    def _has_id(self, node_id: str) -> bool:
        """Whether a node has this id.

        Stored nodes are searched first, without decoding them. The index of all nodes is built only on a match.
        """
        if self._places is None and isinstance(self.nodes, NodeSequence) and not self.nodes.has_id(node_id):
            return False
        return node_id in self._index()

    def _upwards(self, node_id: str | None) -> Iterator[int]:
        """Yield the indexes of a node and its ancestors, the node first."""
        index, seen = self._index(), set[int]()
        while node_id is not None and (place := index.get(node_id)) is not None:
            if place in seen:
                raise Corrupt("graph", node_id, "parent cycle")
            seen.add(place)
            yield place
            node_id = self.nodes[place].parent_node_id

    def _user_messages(self) -> Iterator[dict[str, Any]]:
        for node in self.nodes:
            message = node.user_message()
            if message is not None:
                yield message

    def _grown(self, leaf: str | None, additions: Sequence[NodePayload | dict[str, Any]]) -> SessionGraph:
        """Append one node for each payload or record of a message, as a chain below `leaf`."""
        nodes: list[SessionNodeRecord] = []
        fresh: dict[str, int] = {}
        for addition in additions:
            if isinstance(addition, dict):
                node_id = _free_id(_own_id(addition), lambda node_id: node_id in fresh or self._has_id(node_id))
                payload: NodePayload = EventPayload({"Conversation": addition})
            else:
                node_id = f"{'e' if isinstance(addition, EventPayload) else 'x'}{uuid4().hex}"
                payload = addition
            fresh[node_id] = len(self.nodes) + len(nodes)
            nodes.append(SessionNodeRecord(node_id, leaf, timestamp_now(), payload))
            leaf = node_id
        if not nodes:
            return self.with_leaf(leaf)
        graph = self._extended(nodes, leaf)
        if self._places is not None:
            object.__setattr__(graph, "_places", {**self._places, **fresh})
        return graph

    def _extended(self, nodes: Sequence[SessionNodeRecord], leaf: str | None) -> SessionGraph:
        graph = SessionGraph(grown(self.nodes, nodes), leaf, is_partial=self.is_partial)
        object.__setattr__(graph, "_lineage", self.lineage)
        return graph


def _identified(message: Any, where: str) -> dict[str, Any]:
    """Return a message as a record with an id."""
    given = field_of(message, "id")
    if given is None or given == "":
        given = _random_id()
    elif not isinstance(given, str | int):
        raise InvalidRecord(f"{where}.id", f"expected a string, got {type(given).__name__}")
    return as_record(message, str.__str__(given) if isinstance(given, str) else given, where)


def _random_id() -> str:
    return f"m{uuid4().hex}"


def _all_identified(messages: Sequence[Any], stored: Collection[str]) -> list[dict[str, Any]]:
    """Return messages as records with ids. One of the messages `stored` is returned as it is, with any id."""
    return [
        message if _compact(message) in stored else _identified(message, f"messages[{at}]")
        for at, message in enumerate(messages)
    ]


def _id_of(message: Mapping[str, Any]) -> str | tuple[str] | None:
    """Return the identity of a message: its id, or the JSON of an id that is no text. None without an id, or for "".

    A commit accepts any event, so any JSON may be an id. The id of the node is another identity.
    """
    message_id = field_of(message, "id")
    if isinstance(message_id, str):
        return str.__str__(message_id) or None
    return None if message_id is None else (_compact(message_id),)


def _own_id(message: Mapping[str, Any]) -> str:
    """Return the id of a message as that of its node; a random one instead of no id, an array or an object.

    A commit refuses any other id that is not valid, and names the node.
    """
    message_id = message.get("id")
    return message_id if message_id and isinstance(message_id, str | int) else _random_id()  # type: ignore[return-value]


def stable_key(record: Any) -> str:
    """Return the key that identifies a tool call: its call id, or a hash of tool, arguments and output."""
    if call_id := field_of(record, "call_id"):
        return str.__str__(call_id) if isinstance(call_id, str) else _compact(call_id)
    named = [field_of(record, name) for name in ("tool", "args", "output")]
    content = _compact(named if isinstance(record, dict) else record)
    return f"anon-{sha256(content.encode(errors='surrogatepass')).hexdigest()[:12]}"


def _compact(value: Any) -> str:
    """Encode JSON so that only equal values have equal texts.

    Raises:
        InvalidRecord: the value is not JSON.
    """
    try:
        return canonical_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecord("graph", f"expected messages and tool calls of JSON values: {error}") from error


def _invocation(record: Any) -> EventPayload:
    return EventPayload({"Tool": {"Invocation": {"stable_key": stable_key(record), "record": record}}})


def _distinct(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages that are not transient, only the first of each id. Messages without an id are all kept."""
    seen: set[str | tuple[str]] = set()
    distinct = []
    for message in messages:
        message_id = _id_of(message)
        if is_transient(message) or message_id in seen:
            continue
        if message_id is not None:
            seen.add(message_id)
        distinct.append(message)
    return distinct


def message_text(message: dict[str, Any]) -> str:
    """Return the readable parts of a message, separated by blank lines; "" for what is not a message.

    An image becomes `[Image attached]`. Tool calls and tool results are omitted.
    """
    texts = []
    for part in parts_of(message):
        kind, content = field_of(part, "kind"), field_of(part, "content")
        if kind == "Image":
            texts.append("[Image attached]")
        elif kind not in ("ToolCall", "ToolResult") and isinstance(content, str) and content.strip():
            texts.append(content)
    return "\n\n".join(texts).strip()


def _free_id(message_id: str, is_taken: Callable[[str], bool]) -> str:
    numbered = (f"message:{message_id}:{number}" for number in count(2))
    candidates = chain((message_id, f"message:{message_id}"), numbered)
    return next(node_id for node_id in candidates if not is_taken(node_id))
