"""MessagePack is read alike with and without msgspec; what a node says, only when that is looked at."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgpack
import pytest
from builders import chain, node
from hypothesis import given
from hypothesis import strategies as st

from lash_redis import EventPayload, PluginPayload, SessionNodeRecord, codec, unpacking
from lash_redis.protocol import nodes as protocol_nodes
from lash_redis.protocol.nodes import encode_node
from lash_redis.protocol.stored_nodes import StoredNodes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(scope="module", params=["msgspec", "msgpack"])
def reading(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The module as it is where msgspec is installed, and where it is not."""
    if request.param == "msgspec":
        yield unpacking
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "msgspec", None)
        patch.delitem(sys.modules, unpacking.__name__)
        without = importlib.import_module(unpacking.__name__)
        assert without.unpack is msgpack.unpackb
        yield without


@given(value=JSON, data=st.binary())
def test_what_was_packed_comes_back(reading: ModuleType, value: Any, data: bytes) -> None:
    came = reading.unpack(msgpack.packb([value, data]))
    assert repr(came) == repr([value, data])


@given(data=st.binary())
def test_other_bytes_are_unreadable_or_some_value(reading: ModuleType, data: bytes) -> None:
    try:
        reading.unpack(data)
    except reading.UNREADABLE:
        return


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91", b"\xa1\xff", b"\x01\x01", b"\x91" * 100_000], ids=repr)
def test_what_is_no_messagepack_is_unreadable(reading: ModuleType, data: bytes) -> None:
    with pytest.raises(reading.UNREADABLE):
        reading.unpack(data)


# What a node says


def stored(nodes: list[SessionNodeRecord]) -> StoredNodes:
    packed = [(each, codec.pack(each.event() or each.plugin_body(), "payload")) for each in nodes]
    tags = [each.plugin() and each.plugin().plugin_type for each in nodes]
    records = [encode_node(each, data, tag) for (each, data), tag in zip(packed, tags, strict=True)]
    return StoredNodes(records, "log")


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was unpacked since the test began."""
    seen: list[bytes] = []

    def unpack(data: bytes) -> Any:
        seen.append(data)
        return msgpack.unpackb(data)

    monkeypatch.setattr(protocol_nodes, "unpack", unpack)
    return seen


NODES = [*chain("a", "b", "c"), SessionNodeRecord("d", "c", "t", PluginPayload("notes", [1]))]


def test_a_node_that_nobody_looks_at_is_not_unpacked(unpacked: list[bytes]) -> None:
    nodes = stored(NODES)
    assert len(nodes) == 4
    assert unpacked == []
    assert nodes[1].node_id == "b"
    assert len(unpacked) == 1


def test_what_a_node_says_is_unpacked_once_and_when_it_is_looked_at(unpacked: list[bytes]) -> None:
    nodes = stored(NODES)
    assert [each.parent_node_id for each in nodes] == [None, "a", "b", "c"]
    assert [type(each.payload) for each in nodes][-1] is PluginPayload
    assert len(unpacked) == 4
    assert nodes[2].message() == node("c").message()
    assert nodes[2].event() is nodes[2].event()
    assert len(unpacked) == 5


def test_whoever_looks_at_what_nodes_say_gets_each_unpacked_once(unpacked: list[bytes]) -> None:
    nodes = stored(NODES)
    assert [each.event() or each.plugin_body() for each in nodes] == [
        each.event() or each.plugin_body() for each in NODES
    ]
    assert list(nodes) == NODES
    assert len(unpacked) == 2 * len(NODES)


def test_whoever_stops_looking_at_what_nodes_say_is_not_read_ahead_for(unpacked: list[bytes]) -> None:
    nodes = stored(chain(*"abcdef"))
    each = iter(nodes)
    next(each).event()
    assert len(unpacked) == 2
    next(each)
    assert len(unpacked) == 4, "it is taken to be looked at, as the one before"
    assert nodes[5].node_id == "f"
    assert len(unpacked) == 5


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda nodes: pickle.loads(pickle.dumps(nodes))])
def test_a_copy_of_nodes_has_what_was_changed_in_place(remake: Any) -> None:
    nodes = stored(NODES)
    nodes[1].payload.event["Conversation"]["id"] = "other"
    copied = remake(nodes)
    assert copied[1].payload.event["Conversation"]["id"] == "other"
    assert list(copied) == list(nodes)
    assert [each.node_id for each in copied] == ["a", "b", "c", "d"]
    assert copied == nodes
    assert nodes != stored(NODES)
    assert stored(NODES) != copied


def test_equal_nodes_that_nobody_looked_at_are_compared_by_their_records(unpacked: list[bytes]) -> None:
    assert stored(NODES) == stored(NODES)
    assert unpacked == []


def test_a_look_that_another_thread_was_faster_with_gets_what_that_found() -> None:
    """It found the slot unset, and the bytes behind it already gone."""
    payload = stored(NODES)[0].payload
    found = payload.event
    assert EventPayload.__getattr__(payload, "event") is found


def test_a_payload_that_was_put_in_the_place_of_a_stored_one_counts_as_looked_at() -> None:
    nodes = stored(NODES)
    object.__setattr__(nodes[0], "payload", EventPayload({"Mode": 1}))
    assert next(iter(nodes)).event() == {"Mode": 1}
    assert len(list(nodes)) == len(NODES)
    assert nodes != stored(NODES)
