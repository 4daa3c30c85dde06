"""Records have a published JSON and MessagePack form, and refuse an invalid field with its path."""

from __future__ import annotations

import copy
import json
import math
import pickle
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lash_redis.errors import InvalidRecord
from lash_redis.models import (
    ActivePath,
    Append,
    BlobRef,
    DeleteReport,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    ModeTurnOptions,
    PersistedSessionConfig,
    PersistedSessionRead,
    PersistedSessionState,
    PersistedTurnState,
    PluginArtifact,
    PluginPayload,
    PluginSessionSnapshot,
    PluginSnapshotEntry,
    PluginSnapshotMeta,
    ProviderHandle,
    ReplaceFull,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCheckpoint,
    SessionGraph,
    SessionHead,
    SessionHeadMeta,
    SessionMeta,
    SessionNodeRecord,
    SessionPolicy,
    SessionUsageReport,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
    Unchanged,
    merge_token_ledger,
)
from lash_redis.models.json_values import MAX_JSON_DEPTH, check_json

EMPTY_PLUGINS = "b678dd4fc5f9071190cf33cdc965c934ff1b2518b98fc18b843964421d376843"
TOOLS_AT_7 = "ea38ac746041daaf9c00d1f882fc49c489b5f0bad1557627b4a82685a5356d3a"

CONFIG = '{"provider_id":"","configured_model":"","context_window":0,"execution_mode":"standard"}'
TOTALS = (
    '{"input_tokens":11,"output_tokens":7,"cached_input_tokens":3,"reasoning_tokens":5,"total_tokens":23,'
    '"context_total_tokens":26}'
)
LEDGER_ENTRY = (
    '{"source":"turn","model":"mock-model","usage":{"input_tokens":11,"output_tokens":7,"cached_input_tokens":3,'
    '"reasoning_tokens":5}}'
)
NODE = (
    '{"node_id":"m1","timestamp":"2026-01-01T00:00:00+00:00","kind":"event","event":{"Conversation":{"id":"m1",'
    '"role":"User","parts":[]}}}'
)

WIRE_TEXTS: list[tuple[type[Any], str]] = [
    (SessionGraph, '{"nodes":[]}'),
    (SessionGraph, f'{{"nodes":[{NODE}],"leaf_node_id":"m1"}}'),
    (SessionNodeRecord, NODE),
    (
        SessionNodeRecord,
        '{"node_id":"x1","parent_node_id":"m1","timestamp":"2026-01-01T00:00:01+00:00","kind":"plugin",'
        '"plugin_type":"observational_memory","body":{"v":1}}',
    ),
    (
        SessionNodeRecord,
        '{"node_id":"e1","timestamp":"t","kind":"event","event":{"Mode":{"mode_id":"rlm","payload":'
        '{"RlmDiagnostic":{"phase":"p","payload":null}}}}}',
    ),
    (SessionNodeRecord, '{"node_id":"x","timestamp":"t","kind":"plugin","plugin_type":"p","body":null}'),
    (PersistedSessionConfig, CONFIG),
    (
        PersistedSessionConfig,
        '{"provider_id":"openai-compatible","configured_model":"gpt-5.4-mini","context_window":200000,'
        '"execution_mode":"standard","standard_context_approach":{"kind":"rolling_history"}}',
    ),
    (
        PersistedTurnState,
        '{"turn_index":0,"token_usage":{"input_tokens":0,"output_tokens":0,"cached_input_tokens":0,'
        '"reasoning_tokens":0},"mode_turn_options":{"mode_id":"standard","payload":{}}}',
    ),
    (
        PersistedTurnState,
        '{"turn_index":3,"token_usage":{"input_tokens":42,"output_tokens":11,"cached_input_tokens":6,'
        '"reasoning_tokens":8},"last_prompt_usage":{"prompt_context_tokens":48,"input_tokens":42,'
        '"cached_input_tokens":6,"context_budget_tokens":59},"mode_turn_options":{"mode_id":"rlm","payload":{"x":1}}}',
    ),
    (TokenLedgerEntry, LEDGER_ENTRY),
    (
        SessionUsageReport,
        f'{{"entry_count":1,"usage":{TOTALS},"by_source":{{"turn":{TOTALS}}},"by_model":{{"mock-model":{TOTALS}}},'
        f'"by_source_model":[{{"source":"turn","model":"mock-model","usage":{TOTALS}}}]}}',
    ),
    (ToolState, '{"generation":0,"tools":{}}'),
    (
        ToolState,
        '{"generation":7,"tools":{"shell":{"manifest":{"name":"shell","description":"run","execution_mode":"serial"},'
        '"source_id":"plugins"}}}',
    ),
    (PluginSessionSnapshot, '{"plugins":{}}'),
    (
        PluginSessionSnapshot,
        '{"plugins":{"mem":{"meta":{"plugin_id":"mem","plugin_version":"1","revision":2,"state":{"a":1}},'
        '"artifacts":[{"name":"blob","data":[0,255]}]}}}',
    ),
    (
        SessionPolicy,
        '{"model":"","provider":{"type":"unconfigured"},"max_context_tokens":null,"model_variant":null,'
        '"session_id":null,"autonomous":false,"max_turns":null,"execution_mode":"standard",'
        '"standard_context_approach":{"kind":"rolling_history"}}',
    ),
    (
        SessionMeta,
        '{"session_id":"s1","session_name":"calm-otter","created_at":"unix:1760000000","model":"m","cwd":null,'
        '"parent_session_id":null}',
    ),
    (SessionHead, f'{{"session_id":"root","head_revision":0,"graph":{{"nodes":[]}},"config":{CONFIG}}}'),
    (
        SessionHeadMeta,
        f'{{"session_id":"s","head_revision":2,"config":{CONFIG},"checkpoint_ref":"ab","leaf_node_id":"m1",'
        f'"graph_node_count":1,"token_ledger":[{LEDGER_ENTRY}],"commit_id":"c"}}',
    ),
    (Unchanged, '{"Unchanged":{"leaf_node_id":"m1"}}'),
    (Unchanged, '{"Unchanged":{}}'),
    (Append, f'{{"Append":{{"nodes":[{NODE}],"leaf_node_id":"m1"}}}}'),
    (ReplaceFull, f'{{"ReplaceFull":{{"nodes":[{NODE}],"leaf_node_id":"m1"}}}}'),
    (FullGraph, '"FullGraph"'),
    (ActivePath, '{"ActivePath":{"leaf_node_id":"m1"}}'),
    (DeleteReport, '{"existed":true,"node_count":3,"released_blob_count":1,"closed":true}'),
]


def refused_on_write(record: Any) -> str:
    """The path of the field for which writing `record` is refused."""
    with pytest.raises(InvalidRecord) as refused:
        record.to_json()
    return refused.value.field


def refused_on_read(cls: type[Any], value: Any) -> str:
    with pytest.raises(InvalidRecord) as refused:
        cls.from_json(value)
    return refused.value.field


def digest(record: Any) -> str:
    return sha256(msgpack.packb(record.to_msgpack())).hexdigest()


@pytest.mark.parametrize(("cls", "text"), WIRE_TEXTS)
def test_a_wire_text_is_read_and_written_back_byte_for_byte(cls: type[Any], text: str) -> None:
    record = cls.from_json(json.loads(text))
    assert type(record) is cls
    assert json.dumps(record.to_json(), separators=(",", ":"), ensure_ascii=False) == text
    assert cls.from_json(msgpack.unpackb(msgpack.packb(record.to_msgpack()))) == record


@pytest.mark.parametrize(("cls", "text"), WIRE_TEXTS)
def test_a_record_survives_pickle_and_copy(cls: type[Any], text: str) -> None:
    record = cls.from_json(json.loads(text))
    assert pickle.loads(pickle.dumps(record)) == record
    assert copy.deepcopy(record) == record


@pytest.mark.parametrize(
    ("record", "packed"),
    [
        (ToolState(0, {}), "82aa67656e65726174696f6e00a5746f6f6c7380"),
        (ToolState(7, {}), "82aa67656e65726174696f6e07a5746f6f6c7380"),
        (PluginSessionSnapshot(), "81a7706c7567696e7380"),
        (
            SessionCheckpoint(),
            "81aa7475726e5f737461746583aa7475726e5f696e64657800ab746f6b656e5f757361676584ac696e7075745f746f6b656e7300"
            "ad6f75747075745f746f6b656e7300b36361636865645f696e7075745f746f6b656e7300b0726561736f6e696e675f746f6b656e"
            "7300b16d6f64655f7475726e5f6f7074696f6e7382a76d6f64655f6964a87374616e64617264a77061796c6f616480",
        ),
    ],
)
def test_components_and_manifest_pack_to_the_published_bytes(record: Any, packed: str) -> None:
    assert msgpack.packb(record.to_msgpack()).hex() == packed


def test_components_and_manifests_have_the_published_hashes() -> None:
    manifest = SessionCheckpoint(
        turn_state=PersistedTurnState(turn_index=1),
        tool_state_ref=BlobRef(TOOLS_AT_7),
        plugin_snapshot_ref=BlobRef(EMPTY_PLUGINS),
        plugin_snapshot_revision=11,
    )
    assert digest(ToolState(0, {})) == "f6146388b8e2df7aa0b37ab98817f40ceba1e1312d5a1dfcc4d4e35199c70891"
    assert digest(ToolState(7, {})) == TOOLS_AT_7
    assert digest(PluginSessionSnapshot()) == EMPTY_PLUGINS
    assert digest(SessionCheckpoint()) == "921823f2855d89906d6d9668aca7efa308828fc5ce5c9d399403ddbc10963a1b"
    assert digest(manifest) == "8fa693bec39f0d42986ff46cb24cb3faa1c2ca7dcb2470bb0b7b3deeab74a512"


def test_byte_strings_are_lists_in_json_and_bin_in_msgpack() -> None:
    checkpoint = HydratedSessionCheckpoint(execution_state=b"\x00\x7f\x80\xff")
    assert checkpoint.to_json()["execution_state"] == [0, 127, 128, 255]
    assert checkpoint.to_msgpack()["execution_state"] == b"\x00\x7f\x80\xff"
    assert HydratedSessionCheckpoint.from_json(checkpoint.to_json()) == checkpoint
    assert HydratedSessionCheckpoint.from_json({"execution_state": bytearray(b"\x01")}).execution_state == b"\x01"


def test_empty_bytes_are_written() -> None:
    assert HydratedSessionCheckpoint(execution_state=b"").to_json()["execution_state"] == []


def test_the_order_of_keys_does_not_change_the_packed_bytes() -> None:
    one = ToolState(1, {"b": ToolStateEntry({"name": "b", "x": [{"p": 1, "q": 2}]}, "s"), "a": ToolStateEntry({}, "s")})
    two = ToolState(1, {"a": ToolStateEntry({}, "s"), "b": ToolStateEntry({"x": [{"q": 2, "p": 1}], "name": "b"}, "s")})
    assert msgpack.packb(one.to_msgpack()) == msgpack.packb(two.to_msgpack())
    assert list(one.to_json()["tools"]) == ["a", "b"]


def test_keys_are_sorted_by_their_utf8_bytes() -> None:
    """UTF-16 order would put the emoji before U+FFFD."""
    packed = PluginPayload("p", {"\U0001f600": 1, "\ufffd": 2, "a": 3}).to_msgpack()
    assert list(packed["body"]) == ["a", "\ufffd", "\U0001f600"]


def test_sorting_keys_does_not_change_the_objects_of_the_caller() -> None:
    body: dict[str, Any] = {"b": {"d": 1, "c": 2}, "a": 3}
    PluginPayload("p", body).to_msgpack()
    assert list(body) == ["b", "a"]
    assert list(body["b"]) == ["d", "c"]


# Reading


def test_unknown_keys_are_ignored() -> None:
    assert SessionCheckpoint.from_json({"later": 1}) == SessionCheckpoint()


@pytest.mark.parametrize(
    ("cls", "value", "where"),
    [
        (PersistedSessionConfig, {}, "PersistedSessionConfig.provider_id"),
        (PersistedTurnState, {}, "PersistedTurnState.turn_index"),
        (TokenUsage, {"input_tokens": 0, "output_tokens": 0}, "TokenUsage.cached_input_tokens"),
        (ModeTurnOptions, {}, "ModeTurnOptions.mode_id"),
        (ToolState, {"tools": {}}, "ToolState.generation"),
        (ToolState, {"generation": 0, "tools": {"shell": {"source_id": "s"}}}, "ToolState.tools['shell'].manifest"),
        (SessionHead, {"graph": {}}, "SessionHead.config"),
        (SessionHeadMeta, {}, "SessionHeadMeta.config"),
        (SessionMeta, {"session_id": "s"}, "SessionMeta.session_name"),
        (SessionPolicy, {"model": "m"}, "SessionPolicy.provider"),
        (SessionPolicy, {"model": "m", "provider": {}}, "SessionPolicy.provider.type"),
        (PersistedSessionState, {}, "PersistedSessionState.session_id"),
        (SessionNodeRecord, {"node_id": "n", "timestamp": "t"}, "SessionNodeRecord.kind"),
        (
            SessionNodeRecord,
            {"node_id": "n", "timestamp": "t", "kind": "plugin", "plugin_type": "p"},
            "SessionNodeRecord.body",
        ),
        (RuntimeCommit, {}, "RuntimeCommit.session_id"),
    ],
)
def test_a_missing_required_key_is_refused_with_its_path(cls: type[Any], value: Any, where: str) -> None:
    assert refused_on_read(cls, value) == where


@pytest.mark.parametrize(
    ("cls", "value", "where"),
    [
        (
            SessionCheckpoint,
            {
                "turn_state": {
                    "turn_index": 0,
                    "token_usage": {"input_tokens": 1.0, "output_tokens": 0, "cached_input_tokens": 0},
                }
            },
            "SessionCheckpoint.turn_state.token_usage.input_tokens",
        ),
        (SessionCheckpoint, [], "SessionCheckpoint"),
        (SessionCheckpoint, {"plugin_snapshot_revision": -1}, "SessionCheckpoint.plugin_snapshot_revision"),
        (SessionCheckpoint, {"plugin_snapshot_revision": 2**64}, "SessionCheckpoint.plugin_snapshot_revision"),
        (SessionCheckpoint, {"plugin_snapshot_revision": True}, "SessionCheckpoint.plugin_snapshot_revision"),
        (SessionCheckpoint, {"tool_state_ref": b"ab"}, "SessionCheckpoint.tool_state_ref"),
        (ToolState, {"generation": 0, "tools": []}, "ToolState.tools"),
        (
            ToolState,
            {"generation": 0, "tools": {"a b": {"manifest": 1, "source_id": "s"}}},
            "ToolState.tools['a b'].manifest",
        ),
        (PluginArtifact, {"name": "n", "data": [0, 256]}, "PluginArtifact.data[1]"),
        (PluginArtifact, {"name": "n", "data": "text"}, "PluginArtifact.data"),
        (SessionGraph, {"nodes": [json.loads(NODE), {"node_id": 1}]}, "SessionGraph.nodes[1].node_id"),
        (PersistedSessionConfig, {**json.loads(CONFIG), "standard_context_approach": {"kind": 1}},
         "PersistedSessionConfig.standard_context_approach.kind"),
        (RuntimeCommit, {"session_id": "s", "graph": {"Other": {}}}, "RuntimeCommit.graph"),
        (
            RuntimeCommit,
            {"session_id": "s", "graph": {"Append": {"nodes": {}}}},
            "RuntimeCommit.graph.Append.nodes",
        ),
        (PluginPayload, {"plugin_type": "p", "body": {"a": [1, {"b": math.nan}]}}, "PluginPayload.body.a[1].b"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused_with_its_path(cls: type[Any], value: Any, where: str) -> None:
    assert refused_on_read(cls, value) == where


def test_a_given_path_replaces_the_class_name_in_refusals() -> None:
    with pytest.raises(InvalidRecord) as refused:
        ToolState.from_json({"generation": "1"}, "read.checkpoint.tool_state")
    assert str(refused.value) == "read.checkpoint.tool_state.generation: expected an integer, got str"
    with pytest.raises(InvalidRecord) as refused:
        ToolState(-1).to_msgpack("")
    assert refused.value.field == "generation"


def test_a_mode_payload_defaults_to_an_object_when_built_and_to_null_when_read() -> None:
    assert ModeTurnOptions().payload == {}
    assert ModeTurnOptions.from_json({"mode_id": "rlm"}).payload is None


def test_a_policy_read_without_a_context_approach_has_none() -> None:
    text = {"model": "", "provider": {"type": "x"}, "execution_mode": "rlm"}
    policy = SessionPolicy.from_json(text)
    assert policy.standard_context_approach is None
    assert "standard_context_approach" not in policy.to_json()


def test_a_ref_is_read_as_a_blob_ref() -> None:
    read = SessionCheckpoint.from_json({"tool_state_ref": TOOLS_AT_7})
    assert type(read.tool_state_ref) is BlobRef
    assert type(read.to_json()["tool_state_ref"]) is str


def test_sequences_are_read_as_tuples() -> None:
    read = PluginSnapshotEntry.from_json({"meta": {"plugin_id": "p", "plugin_version": "1"}, "artifacts": []})
    assert read.artifacts == ()


def test_a_null_plugin_state_is_read_as_none() -> None:
    meta = PluginSnapshotMeta.from_json({"plugin_id": "p", "plugin_version": "1", "state": None})
    assert meta.to_json() == {"plugin_id": "p", "plugin_version": "1", "revision": 0}


def test_false_and_zero_and_empty_states_are_written() -> None:
    states: list[Any] = [False, 0, "", [], {}]
    for state in states:
        assert PluginSnapshotMeta("p", "1", 0, state).to_json()["state"] == state


# Writing


def test_a_wrong_type_is_refused_when_the_record_is_written() -> None:
    broken = SessionCheckpoint(turn_state=PersistedTurnState(token_usage=TokenUsage(input_tokens=True)))
    assert refused_on_write(broken) == "SessionCheckpoint.turn_state.token_usage.input_tokens"
    assert refused_on_write(SessionCheckpoint(turn_state={})) == "SessionCheckpoint.turn_state"  # type: ignore[arg-type]
    assert refused_on_write(ToolState(0, {1: ToolStateEntry({}, "s")})) == "ToolState.tools"  # type: ignore[dict-item]
    assert refused_on_write(ToolState(0, {"t": ToolStateEntry([], "s")})) == "ToolState.tools['t'].manifest"  # type: ignore[arg-type]
    assert refused_on_write(Append("m1")) == "Append.nodes"  # type: ignore[arg-type]


def test_integer_fields_accept_exactly_the_64_bit_range() -> None:
    ends = TokenUsage(2**63 - 1, -(2**63))
    assert TokenUsage.from_json(ends.to_json()) == ends
    assert refused_on_write(TokenUsage(2**63)) == "TokenUsage.input_tokens"
    assert refused_on_write(TokenUsage(0, -(2**63) - 1)) == "TokenUsage.output_tokens"
    assert ToolState(2**64 - 1).to_json()["generation"] == 18446744073709551615
    assert refused_on_write(ToolState(2**64)) == "ToolState.generation"


def test_a_bad_nested_value_of_a_commit_is_refused_with_its_full_path() -> None:
    event = {"Conversation": {"id": "m", "role": "User", "parts": [{"content": datetime(2026, 1, 1, tzinfo=UTC)}]}}
    node = SessionNodeRecord("m", None, "t", EventPayload(event))
    commit = RuntimeCommit("s", graph=Append([node], "m"))
    assert refused_on_write(commit) == "RuntimeCommit.graph.nodes[0].payload.event.Conversation.parts[0].content"
    with pytest.raises(InvalidRecord) as refused:
        node.to_msgpack("nodes[3]")
    assert refused.value.field == "nodes[3].payload.event.Conversation.parts[0].content"


def test_an_empty_id_is_refused() -> None:
    assert refused_on_write(RuntimeCommit("")) == "RuntimeCommit.session_id"
    assert refused_on_write(SessionNodeRecord("", None, "t", PluginPayload("p", None))) == "SessionNodeRecord.node_id"


def test_a_lone_surrogate_in_a_plain_field_is_refused() -> None:
    assert refused_on_write(SessionMeta("s", "n\ud800", "t", "m")) == "SessionMeta.session_name"


def test_a_provider_is_written_as_its_config_plus_its_kind() -> None:
    provider = ProviderHandle("openai", {"base_url": "u", "a": [1]})
    assert provider.to_json() == {"type": "openai", "base_url": "u", "a": [1]}
    assert list(provider.to_msgpack()) == ["a", "base_url", "type"]
    assert ProviderHandle.from_json(provider.to_json()) == provider
    assert ProviderHandle.from_json({"type": "unconfigured"}) == ProviderHandle()


def test_a_provider_config_that_cannot_be_flattened_is_refused() -> None:
    assert refused_on_write(ProviderHandle("x", [1])) == "ProviderHandle.config"  # type: ignore[arg-type]
    assert refused_on_write(ProviderHandle("x", {"type": "y"})) == "ProviderHandle.config"
    assert refused_on_write(ProviderHandle("x", {"k": {1}})) == "ProviderHandle.config.k"
    assert refused_on_write(ProviderHandle(1)) == "ProviderHandle.kind"  # type: ignore[arg-type]


def test_a_commit_survives_json() -> None:
    commit = RuntimeCommit(
        "s",
        expected_head_revision=4,
        graph=Append((SessionNodeRecord("m", None, "t", PluginPayload("p", [1])),), "m"),
        usage_deltas=(TokenLedgerEntry("turn", "m", TokenUsage(1)),),
        builds_on="before",
    )
    read = RuntimeCommit.from_json(json.loads(json.dumps(commit.to_json())))
    assert read.commit_id == commit.commit_id
    assert read.graph == commit.graph
    assert read.builds_on == "before"


def test_every_commit_has_a_unique_id() -> None:
    assert RuntimeCommit("s").commit_id != RuntimeCommit("s").commit_id


def test_every_delta_has_its_leaf_as_an_attribute() -> None:
    assert Unchanged("a").leaf_node_id == "a"
    assert Append((), "b").leaf_node_id == "b"
    assert ReplaceFull(SessionGraph((), "c")).leaf_node_id == "c"


def test_reads_and_results_survive_json() -> None:
    read = PersistedSessionRead("s", 3, PersistedSessionConfig(), SessionGraph(), BlobRef("ab"), commit_id="c")
    assert PersistedSessionRead.from_json(read.to_json()) == read
    result = RuntimeCommitResult(4, BlobRef("ab"), SessionCheckpoint(), replayed=True, commit_id="c")
    assert RuntimeCommitResult.from_json(result.to_json()) == result


# Free-form JSON

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_accepted_and_read_back_unchanged(value: Any) -> None:
    check_json(value, "value")
    payload = PluginPayload("p", value)
    assert PluginPayload.from_json(payload.to_json()) == payload
    assert PluginPayload.from_json(msgpack.unpackb(msgpack.packb(payload.to_msgpack()))) == payload


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ((1, 2), "is not JSON: tuple"),
        ({1}, "is not JSON: set"),
        (b"x", "is not JSON: bytes"),
        (datetime(2026, 1, 1, tzinfo=UTC), "is not JSON: datetime"),
        (math.nan, "is nan, which is not representable in JSON"),
        (-math.inf, "is -inf, which is not representable in JSON"),
        (2**64, "is an integer outside -2**63..2**64-1"),
        (-(2**63) - 1, "is an integer outside -2**63..2**64-1"),
        ("a\udc00", "is not valid Unicode: surrogates not allowed at 1"),
        ({1: 2}, "is not JSON: its key 1 is not a string"),
        ({"\ud800": 2}, "its key '\\ud800' is not valid Unicode: surrogates not allowed at 0"),
    ],
)
def test_a_value_that_is_not_json_is_refused_with_its_path(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        check_json({"fine": [None, True, "é", {"two words": value}]}, "body")
    assert (refused.value.field, refused.value.reason) == ("body.fine[3]['two words']", reason)


def test_containers_nested_deeper_than_the_limit_are_refused() -> None:
    nested: Any = []
    for _ in range(MAX_JSON_DEPTH - 1):
        nested = [nested]
    check_json(nested, "body")
    with pytest.raises(InvalidRecord, match="nested more than 256 deep"):
        check_json([nested], "body")


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidRecord, match="nested more than 256 deep"):
        check_json(loop, "body")


# Usage


def test_a_ledger_merges_by_source_and_model_in_order_of_first_appearance() -> None:
    merged = merge_token_ledger(
        [
            TokenLedgerEntry("turn", "b", TokenUsage(1, 2, 3, 4)),
            TokenLedgerEntry("turn", "a", TokenUsage(10)),
            TokenLedgerEntry("turn", "b", TokenUsage(5, 6, 7, 8)),
        ]
    )
    assert merged == [
        TokenLedgerEntry("turn", "b", TokenUsage(6, 8, 10, 12)),
        TokenLedgerEntry("turn", "a", TokenUsage(10)),
    ]


def test_only_an_entry_with_all_four_counters_zero_is_dropped() -> None:
    cached, reasoned, nothing = TokenUsage(cached_input_tokens=5), TokenUsage(reasoning_tokens=1), TokenUsage()
    merged = merge_token_ledger(TokenLedgerEntry(str(at), "m", u) for at, u in enumerate((cached, reasoned, nothing)))
    assert [entry.usage for entry in merged] == [cached, reasoned]


def test_counters_that_cancel_out_are_kept() -> None:
    """Entries with zero counters are dropped before the merge, not after it."""
    plus, minus = TokenUsage(5, -2), TokenUsage(-5, 2)
    merged = merge_token_ledger([TokenLedgerEntry("s", "m", plus), TokenLedgerEntry("s", "m", minus)])
    assert merged == [TokenLedgerEntry("s", "m", TokenUsage())]


def test_a_sum_past_64_bits_names_source_model_and_counter() -> None:
    entry = TokenLedgerEntry("turn", "m", TokenUsage(output_tokens=2**63 - 1))
    with pytest.raises(InvalidRecord) as refused:
        merge_token_ledger([entry, TokenLedgerEntry("turn", "m", TokenUsage(output_tokens=1))])
    assert refused.value.field == "token_ledger[source='turn', model='m'].output_tokens"


def test_cached_tokens_are_not_part_of_the_total() -> None:
    assert TokenUsage(11, 7, 3, 5).total() == 23


def test_a_report_adds_up_by_source_and_model_and_keeps_one_row_per_entry() -> None:
    usage = TokenUsage(1, 0, 1)
    report = SessionUsageReport.from_ledger(
        [TokenLedgerEntry("b", "x", usage), TokenLedgerEntry("a", "x", usage), TokenLedgerEntry("b", "x", usage)]
    ).to_json()
    assert report["entry_count"] == 3
    assert report["usage"]["total_tokens"] == 3
    assert report["usage"]["context_total_tokens"] == 6
    assert {source: totals["input_tokens"] for source, totals in report["by_source"].items()} == {"a": 1, "b": 2}
    assert list(report["by_source"]) == ["a", "b"]
    assert report["by_model"]["x"]["input_tokens"] == 3
    assert [row["source"] for row in report["by_source_model"]] == ["b", "a", "b"]
