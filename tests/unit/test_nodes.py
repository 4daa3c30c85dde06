"""Node records: their bytes, how corruption is detected, and when a payload is decoded and counts as accessed."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lash_redis import Corrupt, EventPayload, InvalidRecord, PluginPayload, SessionNodeRecord
from lash_redis._validate import is_plain_id, require_id
from lash_redis.protocol import nodes as records
from lash_redis.protocol import unpacking
from lash_redis.protocol.commands.prepared_commit import encode_record
from lash_redis.protocol.steps import at_once
from lash_redis.protocol.stored_nodes import StoredNodes, decode_in_steps
from tests.support.builders import chain, node
from tests.support.paths import DATA

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
NODES = [*chain("a", "b", "c"), SessionNodeRecord("d", "c", "t", PluginPayload("notes", [1]))]
SAMPLES = DATA / "airline_chats.jsonl"


Decode: TypeAlias = Callable[[bytes, str, int], SessionNodeRecord]


@pytest.fixture(params=["fast", "plain"])
def decoding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The unpacking module with msgspec, and without it."""
    if request.param == "fast":
        return unpacking
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "msgspec", None)
        patch.delitem(sys.modules, unpacking.__name__)
        without = importlib.import_module(unpacking.__name__)
    for name in ("unpack_node", "unpack_node_lazily", "unpack_payload"):
        monkeypatch.setattr(records, name, getattr(without, name))
    return without


def sorted_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_json(value[key]) for key in sorted(value)}
    return [sorted_json(item) for item in value] if isinstance(value, list) else value


def by_hand(each: SessionNodeRecord) -> bytes:
    """The record of a node, written with msgpack and zlib alone."""
    payload = each.payload
    tag, value = (None, payload.event) if isinstance(payload, EventPayload) else (payload.plugin_type, payload.body)
    fields = [each.node_id, each.parent_node_id, tag, sorted_json(value), each.timestamp]
    packed = b"\x96" + b"".join(map(msgpack.packb, fields)) + b"\xce"
    return packed + struct.pack("<I", zlib.crc32(packed))


def encoded(each: SessionNodeRecord) -> bytes:
    return encode_record(each, "node")[0]


def stored(nodes: list[SessionNodeRecord]) -> StoredNodes:
    return StoredNodes([encoded(each) for each in nodes], "log")


def signed(fields: Any, *ends: bytes) -> bytes:
    """Packed fields with a correct checksum. `ends` replaces the array header and adds the marker of the checksum."""
    packed = ends[0] + b"".join(map(msgpack.packb, fields)) + ends[1] if ends else msgpack.packb(fields)
    return packed + struct.pack("<I", zlib.crc32(packed))


# Bytes


def test_a_record_has_the_documented_bytes() -> None:
    assert encoded(SessionNodeRecord("b", "a", "now", EventPayload({"z": 1, "a": [None]}))).hex() == (
        "96" "a162" "a161" "c0" "82a16191c0a17a01" "a36e6f77" "ce" "cc1ce1db"
    )  # fmt: skip
    assert encoded(SessionNodeRecord("b", None, "", PluginPayload("p", 1.5))).hex() == (
        "96" "a162" "c0" "a170" "cb3ff8000000000000" "a0" "ce" "97899300"
    )  # fmt: skip


@pytest.mark.slow
@given(node_id=TEXT, parent=st.none() | TEXT, timestamp=st.text(max_size=300) | TEXT, payload=st.one_of(
    st.builds(EventPayload, JSON), st.builds(PluginPayload, TEXT, JSON)
))  # fmt: skip
def test_a_record_equals_the_output_of_msgpack_and_zlib(
    node_id: str, parent: Any, timestamp: str, payload: Any
) -> None:
    try:
        timestamp.encode()
    except UnicodeEncodeError:
        timestamp = "t"
    each = SessionNodeRecord(node_id, parent, timestamp, payload)
    record, timeless = encode_record(each, "node")
    assert record == by_hand(each)
    assert zlib.crc32(record) == 0x2144DF1C
    assert msgpack.unpackb(record)[:3] == [node_id, parent, getattr(payload, "plugin_type", None)]
    assert record == timeless + msgpack.packb(timestamp) + record[-5:]
    assert records.timeless_part(record, "log", 0) == timeless
    assert records.mark_of(record) == record[-4:]
    assert records.is_record_of(record, node_id)
    assert not records.is_record_of(record, node_id + "x")


@pytest.mark.samples
def test_records_of_sample_messages_equal_the_output_of_msgpack_and_zlib() -> None:
    count = 0
    for line in SAMPLES.read_text().splitlines():
        for message in json.loads(line)["messages"]:
            each = SessionNodeRecord(f"m{count}", None, "2026-11-27T12:00:00+00:00", EventPayload(message))
            assert encoded(each) == by_hand(each)
            assert stored([each])[0] == each
            count += 1
    assert count > 1000


def test_the_timeless_part_of_a_record_excludes_the_timestamp() -> None:
    early, late, other = (node("a", timestamp="early"), node("a", timestamp="x" * 400), node("a", text="other"))
    assert encode_record(early, "")[1] == encode_record(late, "")[1] != encode_record(other, "")[1]


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("each", "path"),
    [
        (node(""), "where.node_id"),
        (node("a" * 65_537), "where.node_id"),
        (node("\ud800"), "where.node_id"),
        (node(1), "where.node_id"),  # type: ignore[arg-type]
        (node("a", ""), "where.parent_node_id"),
        (node("a", b"b"), "where.parent_node_id"),  # type: ignore[arg-type]
        (node("a", timestamp=None), "where.timestamp"),  # type: ignore[arg-type]
        (node("a", timestamp="\udfff"), "where.timestamp"),
        (SessionNodeRecord("a", None, "t", PluginPayload(None, 1)), "where.payload.plugin_type"),  # type: ignore[arg-type]
        (SessionNodeRecord("a", None, "t", PluginPayload("\ud800", 1)), "where.payload.plugin_type"),
        (SessionNodeRecord("a", None, "t", PluginPayload("p", {"x": [b""]})), "where.payload.body.x[0]"),
        (SessionNodeRecord("a", None, "t", EventPayload({"x": float("nan")})), "where.payload.event.x"),
        (SessionNodeRecord("a", None, "t", EventPayload({"x": 2**64})), "where.payload.event.x"),
        (SessionNodeRecord("a", None, "t", EventPayload({"x": (1,)})), "where.payload.event.x"),
        (SessionNodeRecord("a", None, "t", {"x": 1}), "where.payload"),  # type: ignore[arg-type]
        (node(Text("a")), "where.node_id"),
        (node("a", Text("b")), "where.parent_node_id"),
    ],
)
def test_a_node_that_cannot_be_encoded_is_refused_with_the_path_of_the_field(
    each: SessionNodeRecord, path: str
) -> None:
    with pytest.raises(InvalidRecord) as caught:
        encode_record(each, "where")
    assert caught.value.field == path


@given(st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.just("a" * 65_536), st.just("a" * 65_537)))
def test_a_plain_id_is_never_refused(value: Any) -> None:
    if is_plain_id(value):
        assert require_id("field", value) is value
    if value == "a" * 65_536:
        assert is_plain_id(value)


@pytest.mark.parametrize("size", [1, 31, 32, 255, 256, 65_535, 65_536, 2_000_000])
def test_texts_of_every_length_are_decoded_unchanged(decoding: ModuleType, size: int) -> None:
    each = SessionNodeRecord("i" * min(size, 65_536), None, "t" * size, PluginPayload("p" * size, "b" * size))
    record, timeless = encode_record(each, "")
    assert record == by_hand(each)
    assert records.timeless_part(record, "log", 0) == timeless
    assert records.decode_node(record, "log", 0) == each


@pytest.mark.parametrize("depth", [1, 254, 255, 256])
def test_payloads_of_every_depth_are_decoded_unchanged(decoding: ModuleType, depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    each = SessionNodeRecord("a", None, "t", EventPayload(value))
    record = encoded(each)
    assert record == by_hand(each)
    assert records.decode_node(record, "log", 0).event() == value
    assert records.decode_node_accessed(record, "log", 0).event() == value


@pytest.mark.parametrize("were_read", [True, False])
@pytest.mark.parametrize(
    ("now", "is_unchanged"),
    [
        (SessionNodeRecord("a", None, "t", EventPayload({"x": 1, "y": 2})), True),
        (SessionNodeRecord("a", None, "t", EventPayload({"y": 2, "x": 1})), True),
        (SessionNodeRecord("a", None, "tt", EventPayload({"x": 1, "y": 2})), False),
        (SessionNodeRecord("a", "b", "t", EventPayload({"x": 1, "y": 2})), False),
        (SessionNodeRecord("a", None, "t", EventPayload({"x": 1, "y": 2.0})), False),
        (SessionNodeRecord("a", None, "t", EventPayload({"x": 1, "y": {2}})), False),
        (SessionNodeRecord("a", None, "t", PluginPayload("p", {"x": 1, "y": 2})), False),
        (None, False),
    ],
    ids=["the same", "other order", "timestamp", "parent", "type", "no JSON", "a plugin's", "no node"],
)
def test_a_node_is_unchanged_if_it_would_be_encoded_as_its_record(
    now: SessionNodeRecord, is_unchanged: bool, were_read: bool
) -> None:
    kept = [encoded(SessionNodeRecord("a", None, "t", EventPayload({"x": 1, "y": 2})))] * 3
    alike = SessionNodeRecord("a", None, "t", EventPayload({"x": 1, "y": 2}))
    found = records.first_changed(kept, [(0, alike), (2, now)], were_read=were_read)
    assert found == (None if is_unchanged else 2)


# Damage


@pytest.mark.parametrize("decode", [records.decode_node, records.decode_node_accessed])
@pytest.mark.parametrize("each", NODES[-2:], ids=["event", "plugin"])
def test_a_record_that_is_damaged_at_any_byte_is_corrupt(
    decoding: ModuleType, each: SessionNodeRecord, decode: Decode
) -> None:
    record = encoded(each)
    damaged = [
        record[:at] + bytes([record[at] ^ bit]) + record[at + 1 :] for at in range(len(record)) for bit in (1, 128)
    ]
    damaged += [record[:at] for at in range(len(record))]
    damaged += [record[at:] for at in range(1, len(record))]
    damaged += [record + b"\0", b"\0" + record, record + record]
    for raw in damaged:
        with pytest.raises(Corrupt, match=r"record 7 ") as caught:
            decode(raw, "the log", 7)
        assert (caught.value.kind, caught.value.key) == ("node", "the log")
        assert not records.is_record_of(raw, each.node_id)


@pytest.mark.parametrize(
    "raw",
    [
        bytes(4),
        signed(None),
        signed("sixsix"),
        signed({str(key): key for key in range(6)}),
        signed(["a", None, None, 1, "t"]),
        *(
            signed(fields, b"\x96", b"\xce")
            for fields in (
                [1, None, None, 1, "t"], [b"a", None, None, 1, "t"], [None, None, None, 1, "t"], ["a", 1, None, 1, "t"],
                ["a", ["b"], None, 1, "t"], ["a", None, 1, 1, "t"], ["a", None, {}, 1, "t"], ["a", None, None, 1, None],
                ["a", None, None, 1, 5], ["a", None, None, 1, b"t"], ["a", None, None, 1], ["a", None, None, 1, "t", 1],
            )
        ),
        *(signed(["a", None, None, 1, "t"], head, tail) for head in (b"\x95", b"\x97") for tail in (b"", b"\xce")),
        signed(["a", None, None, 1, "t"], b"\x96", b""),
        signed(["a", None, None, 1, "t"], b"\x96", b"\xca"),
        signed(["a", None, None, 1, "t"], b"\x96", b"\xa4"),
    ],
    ids=lambda raw: raw.hex(),
)  # fmt: skip
@pytest.mark.parametrize("decode", [records.decode_node, records.decode_node_accessed])
def test_invalid_content_with_a_correct_checksum_is_corrupt(decoding: ModuleType, raw: bytes, decode: Decode) -> None:
    assert zlib.crc32(raw) == 0x2144DF1C
    with pytest.raises(Corrupt, match="record 7 is not a node"):
        decode(raw, "log", 7)


@pytest.mark.parametrize("payload", ["a1ff", "81c001c1", "c1", "d9ff61", "dd7fffffff"])
def test_an_unreadable_payload_with_a_correct_checksum_is_corrupt(decoding: ModuleType, payload: str) -> None:
    packed = bytes.fromhex("96a161c0c0" + payload + "a174ce")
    raw = packed + struct.pack("<I", zlib.crc32(packed))
    for decode in (records.decode_node, records.decode_node_accessed):
        with pytest.raises(Corrupt, match="record 7 "):
            decode(raw, "log", 7).event()


# When a payload is decoded, and when it counts as accessed


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A record of each decoding: a node without its payload, a whole node, or a payload."""
    seen: list[str] = []

    def watch(name: str, word: str) -> None:
        unpack: Callable[[Any], Any] = getattr(records, name)

        def watched(data: Any) -> Any:
            seen.append(word)
            return unpack(data)

        monkeypatch.setattr(records, name, watched)

    watch("unpack_node_lazily", "node")
    watch("unpack_node", "whole")
    watch("unpack_payload", "payload")
    return seen


def accessed_by(nodes: StoredNodes) -> list[int]:
    return sorted(nodes._accessed())


def test_a_node_that_is_not_accessed_is_not_decoded(decoded: list[str]) -> None:
    nodes = stored(NODES)
    assert len(nodes) == 4
    assert decoded == []
    assert nodes[1].node_id == "b"
    assert decoded == ["node"]


def test_a_payload_is_decoded_once_on_first_access(decoded: list[str]) -> None:
    nodes = stored(NODES)
    assert [each.parent_node_id for each in nodes] == [None, "a", "b", "c"]
    assert [type(each.payload) for each in nodes][-1] is PluginPayload
    assert decoded == ["node"] * 4
    assert accessed_by(nodes) == []
    assert nodes[2].message() == node("c").message()
    assert nodes[2].event() is nodes[2].event()
    assert decoded == ["node"] * 4 + ["payload"]
    assert accessed_by(nodes) == [2]


def test_a_caller_that_accesses_all_payloads_gets_each_node_decoded_in_one_step(decoded: list[str]) -> None:
    nodes = stored(NODES)
    assert [each.event() or each.plugin_body() for each in nodes] == [
        each.event() or each.plugin_body() for each in NODES
    ]
    assert list(nodes) == NODES
    assert decoded == ["node", "payload", "whole", "whole", "whole"]
    assert accessed_by(nodes) == [0, 1, 2, 3]


def test_at_most_one_payload_is_decoded_ahead_after_the_last_access(decoded: list[str]) -> None:
    nodes = stored(chain(*"abcdef"))
    each = iter(nodes)
    next(each).event()
    assert decoded == ["node", "payload"]
    next(each)
    assert decoded == ["node", "payload", "whole"]
    assert nodes[5].node_id == "f"
    assert decoded[3:] == ["node"]
    assert accessed_by(nodes) == [0, 1]


def test_decoding_ahead_ends_at_a_node_that_was_decoded_before(decoded: list[str]) -> None:
    nodes = stored(chain(*"abcd"))
    assert nodes[1].node_id == "b"
    each = iter(nodes)
    next(each).event()
    next(each)
    next(each)
    assert decoded == ["node", "node", "payload", "node"]
    assert accessed_by(nodes) == [0]


@pytest.mark.parametrize("remake", [copy.deepcopy, copy.copy, lambda nodes: pickle.loads(pickle.dumps(nodes))])
@pytest.mark.parametrize("which", [0, 3])
def test_a_copy_of_a_node_is_a_plain_record(decoding: ModuleType, remake: Any, which: int) -> None:
    for decode in (records.decode_node, records.decode_node_accessed):
        each = decode(encoded(NODES[which]), "log", which)
        copied = remake(each)
        assert copied == NODES[which]
        assert copied.to_json() == NODES[which].to_json()


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda nodes: pickle.loads(pickle.dumps(nodes))])
def test_a_copy_of_nodes_keeps_changes_made_in_place(decoding: ModuleType, remake: Any) -> None:
    nodes = stored(NODES)
    nodes[1].payload.event["Conversation"]["id"] = "other"
    assert nodes[2].node_id == "c"
    copied = remake(nodes)
    assert copied[1].payload.event["Conversation"]["id"] == "other"
    assert list(copied) == list(nodes)
    assert [each.node_id for each in copied] == ["a", "b", "c", "d"]
    assert copied == nodes
    assert nodes != stored(NODES)
    assert stored(NODES) != copied


def test_stored_nodes_report_the_nodes_whose_payload_was_accessed(decoding: ModuleType) -> None:
    nodes = stored(NODES)
    assert nodes[0].node_id == "a"
    assert nodes[3].plugin_body() == [1]
    assert [(at, node.node_id) for at, node in nodes.accessed(4)] == [(3, "d")]
    assert list(nodes.accessed(3)) == []


def test_an_id_is_found_without_decoding_a_record(decoded: list[str]) -> None:
    nodes = stored(NODES)
    assert [nodes.has_id(node_id) for node_id in ("a", "d", "e", "", "aa")] == [True, True, False, False, False]
    assert not nodes.has_id(None)  # type: ignore[arg-type]
    assert not nodes.first(2).has_id("d")
    assert decoded == []


def test_equal_nodes_that_were_not_accessed_are_compared_by_their_records(decoded: list[str]) -> None:
    assert stored(NODES) == stored(NODES)
    assert decoded == []


def test_an_access_that_loses_a_race_returns_the_value_of_the_other_thread() -> None:
    """The losing thread found the slot unset, and the stored bytes were already released."""
    payload = stored(NODES)[0].payload
    found = payload.event
    assert EventPayload.__getattr__(payload, "event") is found


def test_a_replaced_payload_counts_as_accessed() -> None:
    nodes = stored(NODES)
    object.__setattr__(nodes[0], "payload", EventPayload({"Mode": 1}))
    assert next(iter(nodes)).event() == {"Mode": 1}
    assert len(list(nodes)) == len(NODES)
    assert nodes != stored(NODES)


# Decoding ahead


def test_a_node_decoded_ahead_is_decoded_once_and_does_not_count_as_accessed(decoded: list[str]) -> None:
    nodes = stored(NODES)
    assert nodes[1].node_id == "b"
    assert nodes[2].event() == node("c").event()
    del decoded[:]
    at_once(decode_in_steps(nodes))
    assert decoded == ["whole", "payload", "whole"]
    assert accessed_by(nodes) == [2]
    at_once(decode_in_steps(nodes))
    assert nodes[0].event() == node("a").event()
    assert nodes[3].plugin_body() == [1]
    assert list(nodes) == NODES
    assert len(decoded) == 3
    assert nodes[3].payload == PluginPayload("notes", [1])


def test_iterating_over_nodes_decoded_ahead_counts_only_accesses_of_the_caller(decoding: ModuleType) -> None:
    nodes = stored(NODES)
    at_once(decode_in_steps(nodes))
    assert [each.node_id for each in nodes] == ["a", "b", "c", "d"]
    assert accessed_by(nodes) == []
    assert [each.event() or each.plugin_body() for each in nodes] == [
        each.event() or each.plugin_body() for each in NODES
    ]
    assert accessed_by(nodes) == [0, 1, 2, 3]


def test_decoding_ahead_decodes_one_node_in_each_step(decoded: list[str]) -> None:
    for nodes in (stored(NODES), tuple(stored(NODES))):
        del decoded[:]
        counts = [len(decoded) for _ in decode_in_steps(nodes)]
        assert counts == [1, 2, 3, 4]


def test_nodes_made_by_the_caller_need_no_decoding(decoded: list[str]) -> None:
    at_once(decode_in_steps(NODES))
    assert decoded == []


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda nodes: pickle.loads(pickle.dumps(nodes))])
def test_a_copy_of_nodes_decoded_ahead_has_the_same_nodes(decoding: ModuleType, remake: Any) -> None:
    nodes = stored(NODES)
    at_once(decode_in_steps(nodes))
    assert remake(nodes) == nodes
    assert list(remake(nodes)) == NODES
    assert remake(nodes[0]) == NODES[0]
