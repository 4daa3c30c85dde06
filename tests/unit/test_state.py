"""The state of a session in memory is built from a read, updated by commits and converted to and from JSON."""

from __future__ import annotations

import json
import pickle

import pytest

from lash_redis import (
    load_persisted_session_state,
    load_persisted_session_state_active_path,
    refresh_persisted_session_state,
)
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
from lash_redis.runtime import Refreshing, RuntimePersistence
from tests.support.builders import append, commit, plugins, tools, used

STATES = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot=plugins(), execution_state=b"1")
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


def test_a_read_is_converted_to_a_state() -> None:
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


def test_a_read_without_a_checkpoint_is_converted_to_a_state_of_defaults() -> None:
    state = PersistedSessionState.from_read(PersistedSessionRead("s", 1, PersistedSessionConfig(), SessionGraph()))
    assert (state.turn_index, state.token_usage, state.mode_turn_options) == (0, TokenUsage(), ModeTurnOptions())
    assert state.policy.max_context_tokens is None
    assert (state.tool_state_ref, state.tool_state_generation, state.execution_state_snapshot) == (None, None, None)


def test_a_commit_of_an_unchanged_state_repeats_the_content_of_the_read() -> None:
    commit = RuntimeCommit.persisted_state(PersistedSessionState.from_read(READ), [ENTRY])
    assert commit.session_id == "s"
    assert (commit.expected_head_revision, commit.builds_on) == (5, "c5")
    assert commit.graph == Unchanged("m1")
    assert commit.checkpoint == CHECKPOINT
    assert commit.usage_deltas == (ENTRY,)
    assert commit.config == PersistedSessionConfig("unconfigured", "gpt", 200_000, "rlm", None, "fast")


def test_a_new_state_commits_its_whole_graph_without_an_expected_revision() -> None:
    commit = RuntimeCommit.persisted_state(PersistedSessionState("s", session_graph=GRAPH))
    assert commit.graph == ReplaceFull(GRAPH)
    assert (commit.expected_head_revision, commit.builds_on) == (None, None)
    assert commit.config.context_window == 0


def test_a_state_that_requires_a_replacement_commits_its_whole_graph() -> None:
    state = PersistedSessionState.from_read(READ)
    state.graph_replace_required = True
    assert RuntimeCommit.persisted_state(state).graph == ReplaceFull(GRAPH)


def test_a_commit_contains_the_given_graph_change() -> None:
    delta = Append((NODE,), "m1")
    assert RuntimeCommit.persisted_state_with_graph_commit(PersistedSessionState("s"), delta).graph is delta


def test_the_next_commit_builds_on_the_last_result_and_sends_only_refs() -> None:
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


def test_the_tool_generation_is_kept_exactly_as_long_as_the_tool_ref() -> None:
    state = PersistedSessionState("s", tool_state_generation=7)
    state.apply_persisted_commit_result(RESULT)
    assert state.tool_state_generation == 7
    state.apply_persisted_commit_result(RuntimeCommitResult(7, MANIFEST, SessionCheckpoint()))
    assert state.tool_state_generation is None
    assert state.commit_id is None


def test_none_as_execution_state_clears_its_ref_and_empty_bytes_do_not() -> None:
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


def test_adopting_a_read_keeps_the_policy_fields_that_are_not_stored() -> None:
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


def test_the_usage_report_merges_the_ledger_with_pending_entries() -> None:
    state = PersistedSessionState("s", token_ledger=[ENTRY])
    report = state.usage_report([ENTRY, TokenLedgerEntry("turn", "m", TokenUsage())])
    assert report.entry_count == 1
    assert report.usage.input_tokens == 10
    assert state.token_ledger == [ENTRY]


def test_the_json_of_a_state_omits_its_revision_and_commit_id() -> None:
    state = PersistedSessionState.from_read(READ)
    text = state.to_json()
    assert not {"head_revision", "graph_replace_required", "commit_id"} & set(text)
    again = PersistedSessionState.from_json(json.loads(json.dumps(text)))
    assert (again.head_revision, again.commit_id) == (None, None)
    again.head_revision, again.commit_id = 5, "c5"
    assert again == state


def test_every_field_except_the_session_id_has_a_default_on_read() -> None:
    assert PersistedSessionState.from_json({"session_id": "s"}) == PersistedSessionState("s")


def test_a_new_state_is_named_root_and_its_json_omits_empty_parts() -> None:
    assert list(PersistedSessionState().to_json()) == [
        "session_id",
        "policy",
        "session_graph",
        "turn_index",
        "token_usage",
        "mode_turn_options",
    ]
    assert PersistedSessionState().session_id == "root"


def test_a_state_refuses_unknown_attributes() -> None:
    with pytest.raises(AttributeError):
        PersistedSessionState().colour = 1  # type: ignore[attr-defined]


# Refreshed states


async def commit_two_nodes(store):
    await store.commit_runtime_state(commit(None, append("a", "b"), checkpoint=STATES, usage_deltas=[used(input=1)]))


async def test_a_refreshed_state_equals_a_loaded_state(cache, store):
    await commit_two_nodes(store)
    for load in (load_persisted_session_state, load_persisted_session_state_active_path):
        state = await load(cache.session("chat"))
        head = await store.load_head()
        state.turn_index = 99
        state.graph_replace_required = True
        state.policy = SessionPolicy(model="mine", provider=ProviderHandle("openai"), max_turns=4)
        await refresh_persisted_session_state(store, state)
        assert (state.turn_index, state.graph_replace_required, state.policy.model) == (0, False, "")
        assert (state.policy.provider, state.policy.max_turns) == (ProviderHandle("openai"), 4)
        name = f"c{head.head_revision}"
        await store.commit_runtime_state(commit(None, append(name, parent="a"), usage_deltas=[used(input=1)]))
        await refresh_persisted_session_state(store, state)
        state.policy = SessionPolicy(model="", standard_context_approach=None)
        assert state == await load_persisted_session_state(cache.session("chat"))
        assert [node.node_id for node in state.session_graph.nodes][-1] == name


async def test_a_refresh_without_a_stored_head_does_not_change_the_state(store, client):
    await commit_two_nodes(store)
    state = await load_persisted_session_state(store)
    await client.flushall()
    await refresh_persisted_session_state(store, state)
    assert (state.head_revision, len(state.session_graph.nodes)) == (1, 2)
    fresh = PersistedSessionState("chat")
    await refresh_persisted_session_state(store, fresh)
    assert fresh == PersistedSessionState("chat")


async def test_a_refreshed_state_is_refreshed_again_by_one_script_call(proxy, through_proxy):
    """The first refresh may take more calls, because the state may hold the active path only."""
    store = through_proxy().session("chat")
    await commit_two_nodes(store)
    for load in (load_persisted_session_state, load_persisted_session_state_active_path):
        state = await load(store)
        await refresh_persisted_session_state(store, state)
        with proxy.measure() as seen:
            await refresh_persisted_session_state(store, state)
        assert seen.names() == ["EVALSHA"]
        grown = state.session_graph.append_event({"n": state.head_revision})
        made = RuntimeCommit.persisted_state_with_graph_commit(state, Append(grown.nodes[-1:], grown.leaf_node_id))
        state.apply_persisted_commit_result(await store.commit_runtime_state(made))
        with proxy.measure() as seen:
            await refresh_persisted_session_state(store, state)
        assert seen.names() == ["EVALSHA"]
        assert state.session_graph.nodes == grown.nodes


async def test_a_refresh_from_the_store_of_another_session_loads_that_session(cache, store):
    await commit_two_nodes(store)
    await cache.session("other").commit_runtime_state(commit(None, append("x"), session_id="other"))
    state = await load_persisted_session_state(store)
    await refresh_persisted_session_state(cache.session("other"), state)
    assert (state.session_id, [node.node_id for node in state.session_graph.nodes]) == ("other", ["x"])
    await refresh_persisted_session_state(cache.session("other"), state)
    assert state.session_id == "other"


async def test_a_store_without_refresh_is_loaded_in_full(store):
    class Plain:
        def __getattr__(self, name):
            if name in ("refresh", "session_id"):
                raise AttributeError(name)
            return getattr(store, name)

    assert isinstance(store, Refreshing)
    assert isinstance(Plain(), RuntimePersistence)
    assert not isinstance(Plain(), Refreshing)
    await commit_two_nodes(store)
    state = await load_persisted_session_state(Plain())
    await store.commit_runtime_state(commit(None, append("c", parent="b")))
    await refresh_persisted_session_state(Plain(), state)
    assert state.session_graph.leaf_node_id == "c"


async def test_the_origin_of_a_state_is_not_part_of_its_value(store):
    await commit_two_nodes(store)
    state = await load_persisted_session_state(store)
    again = PersistedSessionState.from_json(state.to_json())
    again.head_revision, again.commit_id = state.head_revision, state.commit_id
    assert again == state
    assert "_read" not in repr(state)
    await refresh_persisted_session_state(store, again)
    await refresh_persisted_session_state(store, pickle.loads(pickle.dumps(state)))
