"""Session graphs: the active path, the read model, new nodes, and payloads that are decoded when accessed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from lash_redis.errors import Corrupt
from lash_redis.models import EventPayload, PluginPayload, SessionGraph, SessionNodeRecord
from lash_redis.models.graph import stable_key


def message(message_id: str, role: str = "User", text: str = "hello", **more: Any) -> dict[str, Any]:
    part = {"id": f"{message_id}.p0", "kind": "Text", "content": text, "prune_state": "Intact"}
    return {"id": message_id, "role": role, "parts": [part]} | more


def talk(node_id: str, parent: str | None = None, timestamp: str = "t", **more: Any) -> SessionNodeRecord:
    return SessionNodeRecord(node_id, parent, timestamp, EventPayload({"Conversation": message(node_id, **more)}))


def note(node_id: str, parent: str | None = None) -> SessionNodeRecord:
    return SessionNodeRecord(node_id, parent, "t", PluginPayload("notes", None))


def call(call_id: str, **args: Any) -> dict[str, Any]:
    output = {"outcome": {"status": "success", "payload": None}}
    return {"call_id": call_id, "tool": "lookup", "args": args, "output": output, "duration_ms": 3}


def ids(nodes: Sequence[SessionNodeRecord]) -> list[str]:
    return [node.node_id for node in nodes]


TRANSIENT = {"kind": "plugin", "plugin_id": "p", "transient": True}

BRANCHED = SessionGraph((talk("a"), talk("b", "a"), talk("c", "b"), note("x", "b"), talk("d", "x")), "d")


# The active path


def test_the_active_path_runs_from_the_root_to_the_leaf() -> None:
    assert ids(BRANCHED.active_path()) == ["a", "b", "x", "d"]
    assert ids(BRANCHED.with_leaf("c").active_path()) == ["a", "b", "c"]
    assert BRANCHED.branch_to("c") == BRANCHED.set_leaf_node_id("c") == SessionGraph.from_nodes(BRANCHED.nodes, "c")


@pytest.mark.parametrize("leaf", [None, "unknown"])
def test_a_graph_without_a_known_leaf_has_an_empty_path(leaf: str | None) -> None:
    assert BRANCHED.with_leaf(leaf).active_path() == []


def test_a_path_starts_at_a_node_whose_parent_is_not_in_the_graph() -> None:
    assert ids(SessionGraph((talk("b", "gone"), talk("c", "b")), "c").active_path()) == ["b", "c"]


def test_the_later_of_two_nodes_with_the_same_id_is_found() -> None:
    graph = SessionGraph((talk("a"), talk("b"), talk("a", "b")), "a")
    assert graph.node_index("a") == 2
    assert ids(graph.active_path()) == ["b", "a"]


@pytest.mark.parametrize("nodes", [(talk("a", "a"),), (talk("b", "a"), talk("a", "b"))])
def test_a_parent_cycle_is_reported_as_corruption(nodes: tuple[SessionNodeRecord, ...]) -> None:
    graph = SessionGraph(nodes, "a")
    for access in (graph.active_path, graph.message_tree, graph.read_model, graph.with_leaf(None).message_tree):
        with pytest.raises(Corrupt) as corrupt:
            access()
        assert (corrupt.value.kind, corrupt.value.key, corrupt.value.reason) == ("graph", "a", "parent cycle")


def test_orphans_are_the_nodes_outside_the_active_path_in_list_order() -> None:
    assert BRANCHED.orphaned_node_ids() == ["c"]
    assert BRANCHED.with_leaf("unknown").orphaned_node_ids() == ["a", "b", "c", "x", "d"]


def test_the_active_path_contains_its_nodes_and_no_others() -> None:
    assert BRANCHED.active_path_contains("x")
    assert not BRANCHED.active_path_contains("c")
    assert not BRANCHED.active_path_contains("unknown")


def test_the_last_of_the_first_nodes_is_their_leaf() -> None:
    assert [ids(BRANCHED.first(count).nodes) for count in (2, -1, 0)] == [["a", "b"], ["a", "b", "c", "x"], []]
    assert [BRANCHED.first(count).leaf_node_id for count in (2, -1, 99, 0)] == ["b", "x", "d", None]


def test_a_fork_contains_the_active_path_and_keeps_an_unknown_leaf() -> None:
    fork = BRANCHED.fork_current_path()
    assert (ids(fork.nodes), fork.leaf_node_id) == (["a", "b", "x", "d"], "d")
    assert BRANCHED.with_leaf("unknown").fork_current_path() == SessionGraph((), "unknown")


def test_an_active_path_of_5000_nodes_is_followed() -> None:
    nodes = [talk("n0"), *(talk(f"n{at}", f"n{at - 1}") for at in range(1, 5_000))]
    graph = SessionGraph(nodes, "n4999")
    assert len(graph.active_path()) == 5_000
    assert len(graph.message_tree()) == 1


# Healing


def test_an_unknown_leaf_heals_to_the_last_message_in_the_list() -> None:
    graph = SessionGraph((talk("a"), talk("b", "a"), note("x", "b")), "unknown")
    assert graph.heal_orphaned_leaf().leaf_node_id == "b"
    assert graph.leaf_node_id == "unknown"


def test_an_unknown_leaf_of_a_graph_without_messages_heals_to_none() -> None:
    assert SessionGraph((note("x"),), "unknown").heal_orphaned_leaf() == SessionGraph((note("x"),), None)


@pytest.mark.parametrize("leaf", [None, "c"])
def test_a_known_or_missing_leaf_needs_no_healing(leaf: str | None) -> None:
    graph = BRANCHED.with_leaf(leaf)
    assert graph.heal_orphaned_leaf() is graph


# The read model


def test_the_read_model_drops_transient_messages_and_later_ones_of_the_same_id() -> None:
    graph = (
        SessionGraph()
        .append_message(message("m1", text="first"))
        .append_event({"Conversation": message("m1", text="again")})
        .append_message(message("m2", origin=TRANSIENT))
        .append_plugin("notes", {"v": 1})
        .append_event({"Tool": {"Invocation": {"stable_key": "c", "record": call("c")}}})
        .append_event({"Mode": {"mode_id": "rlm", "payload": None}})
    )
    model = graph.read_model()
    assert [next(iter(event)) for event in model.active_events] == ["Conversation"] * 3 + ["Tool", "Mode"]
    assert model.messages == (message("m1", text="first"),)
    assert model.tool_calls == (call("c"),)


def test_events_of_unknown_form_are_ignored() -> None:
    odd: list[Any] = [None, 1, "Conversation", [], {"Conversation": None}, {"Tool": {"Invocation": []}}, {"Tool": 1}]
    graph = SessionGraph()
    for event in odd:
        graph = graph.append_event(event)
    assert graph.read_model().messages == graph.read_model().tool_calls == ()
    assert (graph.user_message_count(), graph.first_user_message(), graph.message_tree()) == (0, "", [])


def test_user_messages_are_counted_over_all_nodes() -> None:
    graph = SessionGraph((talk("a"), talk("b", "a", role="Assistant"), talk("c"), talk("d", origin=TRANSIENT)), "b")
    assert graph.user_message_count() == 3


def test_the_first_user_message_joins_its_readable_parts_with_blank_lines() -> None:
    parts = [
        {"kind": "Text", "content": "  one "},
        {"kind": "ToolCall", "content": "dropped"},
        {"kind": "Text", "content": " \n"},
        {"kind": "Image", "content": "data"},
        {"kind": "ToolResult", "content": "dropped"},
        {"kind": "Code", "content": "two\n"},
    ]
    graph = SessionGraph((talk("a", role="System"), talk("b", parts=parts), talk("c")), "a")
    assert graph.first_user_message() == "one \n\n[Image attached]\n\ntwo"


def test_the_first_user_message_of_a_graph_without_user_messages_is_empty() -> None:
    assert SessionGraph((talk("a", role="Assistant"),), "a").first_user_message() == ""


def test_the_message_tree_skips_other_nodes_and_sorts_siblings_by_timestamp() -> None:
    graph = SessionGraph((talk("a"), note("x", "a"), talk("late", "x", "t2"), talk("early", "a", "t1")), "late")
    (root,) = graph.message_tree()
    assert [child.node_id for child in root.children] == ["early", "late"]
    assert (root.active, [child.active for child in root.children]) == (True, [False, True])


# New nodes


def test_appending_does_not_change_the_old_graph() -> None:
    old = SessionGraph((talk("a"),), "a")
    new = old.append_message(message("b"))
    assert (ids(old.nodes), old.leaf_node_id) == (["a"], "a")
    assert (ids(new.nodes), new.leaf_node_id) == (["a", "b"], "b")
    assert new.nodes[1].parent_node_id == "a"


def test_two_graphs_that_extend_the_same_graph_are_independent() -> None:
    old = SessionGraph((talk("a"),), "a").append_message(message("b"))
    left, right = old.append_message(message("l")), old.append_message(message("r"))
    assert (left.find_node("r"), right.find_node("l"), old.find_node("l")) == (None, None, None)
    assert ids(right.active_path()) == ["a", "b", "r"]


def test_the_first_node_has_no_parent() -> None:
    assert SessionGraph().append_plugin("notes", 1).nodes[0].parent_node_id is None


def test_the_id_of_a_new_node_starts_with_a_letter_for_its_kind() -> None:
    graph = (
        SessionGraph().append_event({}).append_plugin("p", 1).append_message({"id": "", "role": "User", "parts": []})
    )
    event, plugin, nameless = graph.nodes
    assert re.fullmatch("e[0-9a-f]{32}", event.node_id)
    assert re.fullmatch("x[0-9a-f]{32}", plugin.node_id)
    assert re.fullmatch("m[0-9a-f]{32}", nameless.node_id)
    assert nameless.message() == {"id": nameless.node_id, "role": "User", "parts": []}


def test_a_message_whose_id_is_taken_gets_the_next_free_id() -> None:
    graph = SessionGraph()
    for _ in range(4):
        graph = graph.append_message(message("m"))
    assert ids(graph.nodes) == ["m", "message:m", "message:m:2", "message:m:3"]


def test_new_timestamps_are_utc_with_offset_and_fraction() -> None:
    timestamp = SessionGraph().append_event({}).nodes[0].timestamp
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", timestamp)
    assert datetime.fromisoformat(timestamp).utcoffset() == timedelta(0)


def test_a_delta_adds_only_content_that_the_path_lacks() -> None:
    graph = SessionGraph().append_active_read_delta([message("m1")], [call("c1", flag=True)])
    same = graph.append_active_read_delta([message("m1"), message("t", origin=TRANSIENT)], [call("c1", flag=True)])
    assert same == graph
    more = graph.append_active_read_delta([message("m1"), message("m2"), message("m2")], [call("c1", flag=1)])
    model = more.read_model()
    assert model.messages == (message("m1"), message("m2"))
    assert len(more.nodes) == len(graph.nodes) + 2
    assert [record["args"]["flag"] for record in model.tool_calls] == [True, 1]


def test_replacing_branches_off_after_the_longest_equal_prefix() -> None:
    graph = SessionGraph().append_active_read_delta([message("m1"), message("m2"), message("m3")], [])
    changed = graph.replace_active_read_state([message("m1"), message("m2", text="edited"), message("m4")], [])
    assert ids(changed.active_path()) == ["m1", "message:m2", "m4"]
    assert changed.read_model().messages == (message("m1"), message("m2", text="edited"), message("m4"))
    assert changed.orphaned_node_ids() == ["m2", "m3"]


def test_replacing_with_a_prefix_only_moves_the_leaf() -> None:
    graph = SessionGraph().append_message(message("m1")).append_plugin("notes", 1).append_message(message("m2"))
    shorter = graph.replace_active_read_state([message("m1")], [])
    assert shorter.nodes == graph.nodes
    assert shorter.leaf_node_id == graph.nodes[1].node_id


def test_replacing_with_equal_content_changes_nothing() -> None:
    graph = SessionGraph().append_active_read_delta([message("m1")], [call("c1")])
    assert graph.replace_active_read_state([message("m1")], [call("c1")]) == graph


def test_replacing_with_empty_content_makes_every_node_an_orphan() -> None:
    graph = SessionGraph().append_message(message("m1")).replace_active_read_state([], [])
    assert (graph.leaf_node_id, graph.orphaned_node_ids()) == (None, ["m1"])


def test_a_tool_call_is_identified_by_its_call_id_or_a_hash_of_its_content() -> None:
    assert stable_key(call("c1")) == "c1"
    nameless = {"tool": "lookup", "args": {"b": 1, "a": "é"}, "output": None}
    assert stable_key(nameless) == stable_key({**nameless, "call_id": "", "duration_ms": 9})
    assert re.fullmatch("anon-[0-9a-f]{12}", stable_key(nameless))


# Sequences of nodes


class NodeSequence(Sequence[SessionNodeRecord]):
    """A sequence that is not a tuple and equals any sequence of the same nodes."""

    def __init__(self, *nodes: SessionNodeRecord) -> None:
        self.nodes = nodes

    def __getitem__(self, at: Any) -> Any:
        return self.nodes[at]

    def __len__(self) -> int:
        return len(self.nodes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self.nodes) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def test_a_list_of_nodes_is_copied() -> None:
    nodes = [talk("a")]
    graph = SessionGraph(nodes, "a")
    nodes.append(talk("b"))
    assert graph.nodes == (talk("a"),)


def test_a_custom_sequence_of_nodes_is_kept_and_equals_a_tuple() -> None:
    sequence = NodeSequence(talk("a"), talk("b", "a"))
    lazy, plain = SessionGraph(sequence, "b"), SessionGraph((talk("a"), talk("b", "a")), "b")
    assert lazy.nodes is sequence
    assert lazy == plain
    assert plain == lazy
    assert plain != SessionGraph(NodeSequence(talk("a")), "b")
    assert ids(lazy.append_message(message("c")).active_path()) == ["a", "b", "c"]
    assert lazy.to_json() == plain.to_json()


def test_the_lookup_index_of_a_graph_is_not_part_of_its_value() -> None:
    indexed, fresh = SessionGraph((talk("a"),), "a"), SessionGraph((talk("a"),), "a")
    indexed.find_node("a")
    assert indexed == fresh
    assert repr(indexed) == repr(fresh)
    assert dataclasses.replace(indexed, nodes=()).find_node("a") is None


# Payloads that are decoded when accessed


class Stored:
    """Loads one field at a time and records its name."""

    def __init__(self, body: Any = None) -> None:
        self.values = {"plugin_type": "notes", "body": [1] if body is None else body}
        self.loaded: list[str] = []

    def load(self, record: PluginPayload, name: str) -> Any:
        self.loaded.append(name)
        object.__setattr__(record, name, self.values[name])
        return self.values[name]


NOTES = PluginPayload("notes", [1])
PLAIN = SessionNodeRecord("n", "p", "t", NOTES)


def test_a_stored_payload_loads_each_field_once_on_first_access() -> None:
    stored = Stored()
    payload = PluginPayload.from_stored(stored)
    assert stored.loaded == []
    assert (payload.plugin_type, payload.plugin_type) == ("notes", "notes")
    assert stored.loaded == ["plugin_type"]
    assert SessionNodeRecord("n", "p", "t", payload).plugin_body() == [1]
    assert stored.loaded == ["plugin_type", "body"]


def test_a_stored_payload_equals_a_constructed_payload() -> None:
    built = NOTES
    assert PluginPayload.from_stored(Stored()) == built
    assert built == PluginPayload.from_stored(Stored())
    assert repr(PluginPayload.from_stored(Stored())) == repr(NOTES)
    assert SessionNodeRecord("n", "p", "t", PluginPayload.from_stored(Stored())).to_json() == PLAIN.to_json()
    assert hash(PluginPayload.from_stored(Stored("text"))) == hash(PluginPayload("notes", "text"))


@pytest.mark.parametrize(
    "remake",
    [copy.copy, copy.deepcopy, lambda node: pickle.loads(pickle.dumps(node)), dataclasses.replace],
)
def test_copies_of_a_stored_payload_are_fully_loaded_plain_payloads(remake: Any) -> None:
    payload = remake(PluginPayload.from_stored(Stored()))
    assert payload == NOTES
    assert not hasattr(payload, "_stored")


def test_a_stored_payload_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PluginPayload.from_stored(Stored()).body = "other"  # type: ignore[misc]


def test_an_unknown_attribute_of_a_payload_raises_an_attribute_error() -> None:
    for payload in (NOTES, PluginPayload.from_stored(Stored())):
        with pytest.raises(AttributeError, match="'PluginPayload' object has no attribute 'colour'"):
            payload.colour  # type: ignore[attr-defined]  # noqa: B018


def test_accessing_a_broken_stored_payload_raises_the_error_of_loading() -> None:
    class Broken:
        def load(self, record: PluginPayload, name: str) -> Any:
            raise Corrupt("node", "log:s", "truncated")

    payload = PluginPayload.from_stored(Broken())
    node = SessionNodeRecord("n", "p", "t", payload)
    for access in (lambda: payload.body, node.plugin_body, lambda: payload == NOTES, node.to_json):
        with pytest.raises(Corrupt, match="truncated"):
            access()


def test_the_accessors_of_a_node_return_its_content() -> None:
    spoken = talk("m")
    assert spoken.message() == message("m")
    assert spoken.event() == {"Conversation": message("m")}
    assert (spoken.plugin(), spoken.plugin_body()) == (None, None)
    assert (PLAIN.event(), PLAIN.message()) == (None, None)
    assert PLAIN.plugin() == PluginPayload("notes", [1])
