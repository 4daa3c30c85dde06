"""The session in memory: from a read, through commits, to JSON and back."""

from __future__ import annotations

import json

import pytest

from lash_redis.models import (
    Append,
    BlobRef,
    EventPayload,
    HydratedSessionCheckpoint,
    ModeTurnOptions,
    PersistedSessionConfig,
    PersistedSessionRead,
    PersistedSessionState,
    PersistedTurnState,
    PluginSessionSnapshot,
    PromptUsage,
    ProviderHandle,
    ReplaceFull,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCheckpoint,
    SessionGraph,
    SessionNodeRecord,
    SessionPolicy,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    Unchanged,
)

TOOLS, PLUGINS, EXECUTION, MANIFEST = (BlobRef(digit * 64) for digit in "abcd")
ENTRY = TokenLedgerEntry("turn", "m", TokenUsage(5, 1))
NODE = SessionNodeRecord("m1", None, "t", EventPayload({"Conversation": {"id": "m1", "role": "User", "parts": []}}))
GRAPH = SessionGraph((NODE,), "m1")
TURN = PersistedTurnState(3, TokenUsage(1, 2, 3, 4), PromptUsage(9, 8, 7, 6), ModeTurnOptions("rlm", {"x": 1}))
CHECKPOINT = HydratedSessionCheckpoint(
    turn_state=TURN,
    tool_state_ref=TOOLS,
    tool_state=ToolState(7),
    plugin_snapshot_ref=PLUGINS,
    plugin_snapshot=PluginSessionSnapshot(),
    plugin_snapshot_revision=11,
    execution_state_ref=EXECUTION,
    execution_state=b"\x00\xff",
)
READ = PersistedSessionRead(
    session_id="s",
    head_revision=5,
    config=PersistedSessionConfig("openai", "gpt", 200_000, "rlm", None, "fast"),
    graph=GRAPH,
    checkpoint_ref=MANIFEST,
    checkpoint=CHECKPOINT,
    token_ledger=(ENTRY,),
    commit_id="c5",
)
RESULT = RuntimeCommitResult(
    6, BlobRef("e" * 64), SessionCheckpoint(TURN, TOOLS, PLUGINS, 12, EXECUTION), commit_id="c6"
)


def test_a_read_becomes_a_state() -> None:
    state = PersistedSessionState.from_read(READ)
    assert state == PersistedSessionState(
        session_id="s",
        policy=SessionPolicy(
            model="gpt",
            max_context_tokens=200_000,
            model_variant="fast",
            execution_mode="rlm",
            standard_context_approach=None,
        ),
        session_graph=GRAPH,
        turn_index=3,
        token_usage=TokenUsage(1, 2, 3, 4),
        last_prompt_usage=PromptUsage(9, 8, 7, 6),
        mode_turn_options=ModeTurnOptions("rlm", {"x": 1}),
        tool_state_ref=TOOLS,
        tool_state_generation=7,
        tool_state_snapshot=ToolState(7),
        plugin_snapshot_ref=PLUGINS,
        plugin_snapshot_revision=11,
        plugin_snapshot=PluginSessionSnapshot(),
        execution_state_ref=EXECUTION,
        execution_state_snapshot=b"\x00\xff",
        token_ledger=[ENTRY],
        checkpoint_ref=MANIFEST,
        head_revision=5,
        graph_replace_required=False,
        commit_id="c5",
    )


def test_a_read_without_checkpoint_and_window_becomes_a_fresh_state() -> None:
    state = PersistedSessionState.from_read(PersistedSessionRead("s", 1, PersistedSessionConfig(), SessionGraph()))
    assert (state.turn_index, state.token_usage, state.mode_turn_options) == (0, TokenUsage(), ModeTurnOptions())
    assert state.policy.max_context_tokens is None
    assert (state.tool_state_ref, state.tool_state_generation, state.execution_state_snapshot) == (None, None, None)


def test_a_read_s_commit_says_again_what_was_read() -> None:
    commit = RuntimeCommit.persisted_state(PersistedSessionState.from_read(READ), [ENTRY])
    assert commit.session_id == "s"
    assert (commit.expected_head_revision, commit.builds_on) == (5, "c5")
    assert commit.graph == Unchanged("m1")
    assert commit.checkpoint == CHECKPOINT
    assert commit.usage_deltas == (ENTRY,)
    assert commit.config == PersistedSessionConfig("unconfigured", "gpt", 200_000, "rlm", None, "fast")


def test_a_new_state_commits_its_whole_graph_on_no_revision() -> None:
    commit = RuntimeCommit.persisted_state(PersistedSessionState("s", session_graph=GRAPH))
    assert commit.graph == ReplaceFull(GRAPH)
    assert (commit.expected_head_revision, commit.builds_on) == (None, None)
    assert commit.config.context_window == 0


def test_a_state_that_asks_for_it_commits_its_whole_graph() -> None:
    state = PersistedSessionState.from_read(READ)
    state.graph_replace_required = True
    assert RuntimeCommit.persisted_state(state).graph == ReplaceFull(GRAPH)


def test_a_commit_takes_the_graph_change_it_is_given() -> None:
    delta = Append((NODE,), "m1")
    assert RuntimeCommit.persisted_state_with_graph_commit(PersistedSessionState("s"), delta).graph is delta


def test_after_a_commit_the_next_one_builds_on_its_result_with_refs_alone() -> None:
    state = PersistedSessionState.from_read(READ)
    state.tool_state_snapshot = ToolState(8)
    state.graph_replace_required = True
    state.apply_persisted_commit_result(RESULT)
    assert (state.head_revision, state.commit_id, state.checkpoint_ref) == (6, "c6", BlobRef("e" * 64))
    assert state.tool_state_generation == 8
    following = RuntimeCommit.persisted_state(state)
    assert following.graph == Unchanged("m1")
    assert (following.expected_head_revision, following.builds_on) == (6, "c6")
    assert following.checkpoint == HydratedSessionCheckpoint(
        TURN, TOOLS, None, PLUGINS, None, plugin_snapshot_revision=12, execution_state_ref=EXECUTION
    )


def test_a_generation_stays_while_the_tools_are_carried_by_ref_and_goes_with_them() -> None:
    state = PersistedSessionState("s", tool_state_generation=7)
    state.apply_persisted_commit_result(RESULT)
    assert state.tool_state_generation == 7
    state.apply_persisted_commit_result(RuntimeCommitResult(7, MANIFEST, SessionCheckpoint()))
    assert state.tool_state_generation is None
    assert state.commit_id is None


def test_clearing_the_execution_state_clears_its_ref_and_empty_bytes_do_not() -> None:
    state = PersistedSessionState.from_read(READ)
    state.set_execution_state_snapshot(b"")
    assert (state.execution_state_snapshot, state.execution_state_ref) == (b"", EXECUTION)
    state.set_execution_state_snapshot(None)
    assert (state.execution_state_snapshot, state.execution_state_ref) == (None, None)


def test_a_healed_graph_is_committed_whole() -> None:
    state = PersistedSessionState.from_read(READ)
    assert not state.heal_orphaned_leaf()
    assert not state.graph_replace_required
    state.session_graph = GRAPH.with_leaf("unknown")
    assert state.heal_orphaned_leaf()
    assert RuntimeCommit.persisted_state(state).graph == ReplaceFull(GRAPH)


def test_adopting_a_read_keeps_what_the_store_does_not_know_of_the_live_policy() -> None:
    live = SessionPolicy(
        model="old",
        provider=ProviderHandle("openai", {"key": "k"}),
        session_id="live",
        autonomous=True,
        max_turns=4,
        prompt={"template": {}},
    )
    state = PersistedSessionState("s", policy=live, graph_replace_required=True)
    state.adopt(READ)
    assert (state.head_revision, state.session_graph, state.graph_replace_required) == (5, GRAPH, False)
    assert state.policy == SessionPolicy(
        model="gpt",
        provider=ProviderHandle("openai", {"key": "k"}),
        max_context_tokens=200_000,
        model_variant="fast",
        session_id="live",
        autonomous=True,
        max_turns=4,
        execution_mode="rlm",
        standard_context_approach=None,
        prompt={"template": {}},
    )


def test_the_usage_report_counts_the_ledger_and_what_is_pending_merged() -> None:
    state = PersistedSessionState("s", token_ledger=[ENTRY])
    report = state.usage_report([ENTRY, TokenLedgerEntry("turn", "m", TokenUsage())])
    assert report.entry_count == 1
    assert report.usage.input_tokens == 10
    assert state.token_ledger == [ENTRY]


def test_a_state_survives_json_without_its_place_in_the_store() -> None:
    state = PersistedSessionState.from_read(READ)
    text = state.to_json()
    assert not {"head_revision", "graph_replace_required", "commit_id"} & set(text)
    again = PersistedSessionState.from_json(json.loads(json.dumps(text)))
    assert (again.head_revision, again.commit_id) == (None, None)
    again.head_revision, again.commit_id = 5, "c5"
    assert again == state


def test_everything_but_the_session_id_is_defaulted_on_read() -> None:
    assert PersistedSessionState.from_json({"session_id": "s"}) == PersistedSessionState("s")


def test_a_new_state_is_called_root_and_writes_no_empty_parts() -> None:
    assert list(PersistedSessionState().to_json()) == [
        "session_id",
        "policy",
        "session_graph",
        "turn_index",
        "token_usage",
        "mode_turn_options",
    ]
    assert PersistedSessionState().session_id == "root"


def test_a_state_takes_no_fields_it_does_not_have() -> None:
    with pytest.raises(AttributeError):
        PersistedSessionState().colour = 1  # type: ignore[attr-defined]
