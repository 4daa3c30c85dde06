"""Every helper on records returns a value, or raises an error of this package, for any JSON in an event."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lash_redis import (
    Corrupt,
    EventPayload,
    InvalidRecord,
    PersistedSessionRead,
    PersistedSessionState,
    SessionGraph,
    SessionNodeRecord,
    SessionUsageReport,
    StoreError,
    TokenLedgerEntry,
    chat_message_of_record,
)
from lash_redis.models import message_text

WORDS = st.sampled_from(
    ["Conversation", "Tool", "Invocation", "record", "id", "role", "parts", "kind", "content", "origin", "transient",
     "source", "source_is_whole", "text", "type", "tool_calls", "call_id", "tool_call_id", "tool_name", "name", "User",
     "user", "tool", "assistant", "Text", "Image", "ToolCall", "ToolResult", "image_url", "custom", "function", ""]
)  # fmt: skip
ATOMS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False, allow_infinity=False) | WORDS
JSON = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5))
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "role": st.sampled_from(["User", "user", "tool", "assistant", "System"]) | JSON,
        "parts": st.lists(st.fixed_dictionaries({}, optional={"kind": WORDS, "content": JSON}) | JSON, max_size=3)
        | JSON,
        "content": st.lists(JSON, max_size=3) | JSON,
        "tool_calls": st.lists(JSON, max_size=2) | JSON,
        "source": st.dictionaries(WORDS, JSON, max_size=4) | JSON,
        "origin": JSON,
    },
)
EVENT = (
    MESSAGE.map(lambda message: {"Conversation": message})
    | JSON.map(lambda record: {"Tool": {"Invocation": {"record": record}}})
    | JSON
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def graph_of(events: list[Any]) -> SessionGraph:
    """A chain of events, whose node ids are other ids than those of the messages."""
    parents = [None, *(f"n{at}" for at in range(len(events)))]
    nodes = [
        SessionNodeRecord(f"n{at}", parent, "t", EventPayload(event))
        for at, (event, parent) in enumerate(zip(events, parents, strict=False))
    ]
    return SessionGraph(nodes, nodes[-1].node_id if nodes else None)


def refused_by_name(call: Callable[[], Any]) -> Any:
    """The result; None for a refusal."""
    try:
        return call()
    except InvalidRecord:
        return None


ODD = [
    {"Conversation": {"id": []}},
    {"Conversation": {"id": {}, "role": "user", "content": [5]}},
    {"Conversation": {"role": "User", "parts": 5}},
    {"Conversation": {"source": {"content": [5]}, "parts": [{"kind": "ToolResult", "tool_call_id": []}]}},
    {"Conversation": {"source": {}, "source_is_whole": True}},
    {"Tool": {"Invocation": {"record": None}}},
    {"Tool": {"Invocation": {}}},
    {"Tool": {"Invocation": {"record": [1]}}},
]


@pytest.mark.slow
@FUZZ
@given(st.lists(EVENT, max_size=4))
@example(ODD)
def test_every_method_of_a_graph_accepts_any_events(events: list[Any]) -> None:
    graph = graph_of(events)
    model = graph.read_model()
    assert len(graph.active_path()) == len(events)
    assert graph.user_message_count() >= 0
    assert isinstance(graph.first_user_message(), str)
    for tree_node in graph.message_tree():
        assert repr(tree_node)
    assert (graph.orphaned_node_ids(), graph.heal_orphaned_leaf()) == ([], graph)
    assert graph.with_leaf("gone").heal_orphaned_leaf().leaf_node_id in {None, *(f"n{at}" for at in range(9))}
    assert graph.fork_current_path() == graph.first(len(events)) == graph
    assert SessionGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    assert graph.append_active_read_delta(model.messages, model.tool_calls) == graph
    again = graph.replace_active_read_state(model.messages, model.tool_calls)
    assert [node.event() for node in again.active_path()] == events
    refused_by_name(lambda: SessionGraph().append_active_read_delta(model.messages, model.tool_calls))
    for node in graph.nodes:
        assert (node.plugin(), node.plugin_body(), node.event()) == (None, None, node.event())
        message = node.message()
        if message is not None:
            assert isinstance(message_text(message), str)
            assert isinstance(chat_message_of_record(message), dict)
            refused_by_name(lambda message=message: graph.append_message(message))


@pytest.mark.slow
@FUZZ
@given(JSON)
@example([])
@example({"role": "user", "content": 5})
def test_helpers_accept_any_json(value: Any) -> None:
    assert isinstance(message_text(value), str)
    for call in (
        lambda: chat_message_of_record(value),
        lambda: SessionGraph().append_message(value),
        lambda: SessionGraph().append_event(value),
        lambda: SessionGraph().append_active_read_delta([value], [value]),
        lambda: SessionGraph().replace_active_read_state([value], [value]),
        lambda: SessionNodeRecord.from_json(value),
        lambda: PersistedSessionRead.from_json(value),
        lambda: PersistedSessionState.from_json(value),
        lambda: PersistedSessionState.from_read(PersistedSessionRead.from_json(value)),
        lambda: SessionUsageReport.from_json(value),
        lambda: SessionUsageReport.from_ledger([TokenLedgerEntry.from_json(value)]),
    ):
        refused_by_name(call)


def test_a_message_and_its_node_are_identified_by_their_own_ids() -> None:
    graph = graph_of([{"Conversation": {"id": "n1", "role": "User"}}, {"Conversation": {"id": "m", "role": "User"}}])
    branch = SessionNodeRecord("n2", None, "t", EventPayload({"Conversation": {"id": "n0"}}))
    graph = SessionGraph((*graph.nodes, branch), "n1")
    first, other = graph.message_tree()
    assert (first.node_id, first.active, first.children[0].node_id, first.children[0].active) == (
        "n0",
        True,
        "n1",
        True,
    )
    assert (other.node_id, other.active) == ("n2", False)


def test_messages_without_an_id_are_all_read() -> None:
    messages: list[dict[str, Any]] = [{"a": 1}, {"a": 2}, {"id": None}, {"id": ""}, {"id": ""}, {"id": [1]}, {"id": 1}]
    messages += [{"id": True}, {"id": "1"}]
    repeated = [{"id": [1], "later": 1}, {"id": 1, "later": 1}]
    graph = graph_of([{"Conversation": message} for message in [*messages, *repeated]])
    assert graph.read_model().messages == tuple(messages)


def test_a_message_id_that_is_no_text_is_refused_by_name() -> None:
    with pytest.raises(InvalidRecord) as caught:
        SessionGraph().append_message({"id": [7], "role": "User"})
    assert caught.value.field == "message.id"


def test_a_cycle_is_the_only_fault_of_a_graph() -> None:
    nodes = (
        SessionNodeRecord("a", "b", "t", EventPayload({"Conversation": {}})),
        SessionNodeRecord("b", "a", "t", EventPayload({"Conversation": {}})),
    )
    graph = SessionGraph(nodes, "a")
    for call in (graph.active_path, graph.read_model, graph.message_tree, graph.orphaned_node_ids):
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is Corrupt
