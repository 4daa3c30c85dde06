"""Invalid values are refused with the name of their field, and unusual valid values are accepted.

Every refusal is an error of this package and leaves every key unchanged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lash_redis import (
    ActivePath,
    Append,
    BlobRef,
    CommitTooLarge,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidParent,
    InvalidRecord,
    ModeTurnOptions,
    NodeIdCollision,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginPayload,
    PluginSessionSnapshot,
    PromptUsage,
    RedisSessionStore,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionGraph,
    SessionMeta,
    SessionNodeRecord,
    SessionPolicy,
    SessionStoreCreateRequest,
    StoreError,
    StoreGcPolicy,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    ToolStateEntry,
    Unchanged,
    UnsupportedReadScope,
    connect,
)
from lash_redis.models import PluginArtifact, PluginSnapshotEntry, PluginSnapshotMeta
from tests.support.servers import Server, Snapshot, snapshot

NAMESPACE = "bad-input"


def event_node(node_id: Any, parent: Any = None, event: Any = None) -> SessionNodeRecord:
    return SessionNodeRecord(node_id, parent, "t", EventPayload({"a": 1} if event is None else event))


def full_commit(session_id: str = "chat", **changes: Any) -> RuntimeCommit:
    """A commit with a value in every field of every record."""
    return replace(
        RuntimeCommit(
            session_id,
            expected_head_revision=None,
            config=PersistedSessionConfig("openai", "m", 8000, "standard", {"kind": "rolling_history"}, "mini"),
            graph=Append([event_node("a"), SessionNodeRecord("b", "a", "t", PluginPayload("notes", {"x": [1]}))], "b"),
            checkpoint=HydratedSessionCheckpoint(
                turn_state=PersistedTurnState(3, TokenUsage(1, 2, 3, 4), PromptUsage(1, 2, 3, 4), ModeTurnOptions()),
                tool_state=ToolState(7, {"look": ToolStateEntry({"name": "look"}, "plugins")}),
                plugin_snapshot=PluginSessionSnapshot(
                    {"p": PluginSnapshotEntry(PluginSnapshotMeta("p", "1", 2, {"y": 1}), [PluginArtifact("z", b"z")])}
                ),
                plugin_snapshot_revision=5,
                execution_state=b"state",
            ),
            usage_deltas=(TokenLedgerEntry("turn", "m", TokenUsage(1, 2, 3, 4)),),
            commit_id="first",
        ),
        **changes,
    )


REPLACING = full_commit(graph=ReplaceFull(SessionGraph((event_node("a"), event_node("b", "a")), "b")))
META = SessionMeta("chat", "name", "then", "m", "/", "parent")
REQUEST = SessionStoreCreateRequest("chat", SessionPolicy("m"), "parent")


def planted(record: Any, path: Sequence[str | int], value: Any) -> Any:
    """`record` with `value` at `path`."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if is_dataclass(record):
        assert isinstance(step, str)
        return replace(record, **{step: planted(getattr(record, step), rest, value)})  # type: ignore[type-var]
    if isinstance(record, Mapping):
        return {**record, step: planted(record[step], rest, value)}
    return [planted(item, rest, value) if at == step else item for at, item in enumerate(record)]


@dataclass
class Env:
    """A cache on fakeredis with access to every key. All calls run on one event loop."""

    cache: SessionCache
    store: RedisSessionStore
    run: Callable[[Awaitable[Any]], Any]
    keyspace: Callable[[], Snapshot]

    def reopened(self) -> RedisSessionStore:
        """The session through a cache without any local state."""
        return SessionCache(self.cache_client(), NAMESPACE).session("chat")

    cache_client: Callable[[], Any]


@pytest.fixture
def env() -> Iterator[Env]:
    with asyncio.Runner() as runner:
        fake = fakeredis.FakeServer()
        clients = []

        def client() -> fakeredis.FakeAsyncRedis:
            clients.append(fakeredis.FakeAsyncRedis(server=fake))
            return clients[-1]

        async def awaited(doing: Awaitable[Any]) -> Any:
            return await doing

        raw = client()
        cache = SessionCache(client(), NAMESPACE)
        yield Env(
            cache,
            cache.session("chat"),
            lambda doing: runner.run(awaited(doing)),
            lambda: runner.run(keys_except_layout(raw)),
            client,
        )
        for each in clients:
            runner.run(each.aclose())


async def keys_except_layout(client: Any) -> Snapshot:
    """Every key except the layout of the namespace, which the first attempt at a write stores."""
    return {key: value for key, value in (await snapshot(client)).items() if not key.startswith(b"lash1:layout:")}


# Ids

STRANGE_IDS = (
    "x" * 10_240, "é" * 5_000, "{", "}", "{}", "a{b}c", "{x}:head:a", "a:b", "a", ":", "a\nb", "\n", "\r\n", "a\0b",
    "\0", " ", "a ", "a/b", "a_b", "*", "?", "[a]", "\\", "lash1:layout:x", "head:a", "log:a", "blob:a", "\u202e",
    "\U0001f600",
)  # fmt: skip


async def test_any_text_is_a_valid_session_id_and_sessions_do_not_collide(server: Server) -> None:
    cache, reader = (SessionCache(server.client(), NAMESPACE, options=StoreOptions(shards=2)) for _ in range(2))
    for at, session_id in enumerate(STRANGE_IDS):
        store = cache.session(session_id)
        await store.save_session_meta(SessionMeta(session_id, f"name {at}", "then", "m"))
        for node_id in STRANGE_IDS[:3]:
            event = EventPayload({"at": at})
            graph = Append([SessionNodeRecord(f"{node_id}{at}", None, "t", event)], f"{node_id}{at}")
            await store.commit_runtime_state(RuntimeCommit(session_id, graph=graph))
    for at, session_id in enumerate(STRANGE_IDS):
        store = reader.session(session_id)
        read = await store.load_session(FullGraph())
        assert read is not None
        assert (read.session_id, read.head_revision) == (session_id, 3)
        assert [node.node_id for node in read.graph.nodes] == [f"{node_id}{at}" for node_id in STRANGE_IDS[:3]]
        assert all(node.event() == {"at": at} for node in read.graph.nodes)
        assert await store.load_session_meta() == SessionMeta(session_id, f"name {at}", "then", "m")


@pytest.mark.parametrize("strange", STRANGE_IDS, ids=lambda text: ascii(text[:12]))
def test_any_text_is_a_valid_node_id_commit_id_and_ledger_key(env: Env, strange: str) -> None:
    commit = RuntimeCommit(
        "chat",
        graph=Append([event_node(strange), event_node("after", strange)], strange),
        usage_deltas=[TokenLedgerEntry(strange, strange, TokenUsage(1))],
        commit_id=strange,
    )
    env.run(env.store.commit_runtime_state(commit))
    assert env.run(env.store.commit_runtime_state(commit)).replayed
    read = env.run(env.reopened().load_session(ActivePath()))
    assert [node.node_id for node in read.graph.nodes] == [strange]
    assert (read.commit_id, read.token_ledger[0].source, read.token_ledger[0].model) == (strange, strange, strange)
    assert env.run(env.reopened().load_node("after")).parent_node_id == strange
    env.run(env.store.tombstone_nodes([strange]))
    assert env.run(env.store.load_node(strange)) is None


# Commits

NAN, INFINITY = float("nan"), float("inf")
SURROGATE, ESCAPED = "\ud800", b"\xff".decode(errors="surrogateescape")
LOOP: list[Any] = []
LOOP.append(LOOP)


def deep(depth: int, make: Callable[[Any], Any]) -> Any:
    value: Any = None
    for _ in range(depth):
        value = make(value)
    return value


NOT_TEXT = (1, b"x", ["x"], object(), SURROGATE, ESCAPED, True)
NOT_ID = (*NOT_TEXT, "", "x" * 65_537)
NOT_U64 = (-1, 2**64, True, 1.0, "1", b"1", NAN)
NOT_I64 = (2**63, -(2**63) - 1, True, 1.0, "1", NAN)
NOT_RECORD = (1, "x", b"x", {}, [], object())
NOT_REF = (1, "", "x", "A" * 64, "0" * 63, "0" * 65, b"0" * 64, "é" * 64, "0" * 63 + "\n")
NOT_JSON = (
    {1, 2}, (1, 2), datetime.now(UTC), object(), b"x", bytearray(b"x"), {1: 2}, {None: 1}, {b"a": 1}, NAN, INFINITY,
    -INFINITY, 2**64, -(2**63) - 1, SURROGATE, ESCAPED, {SURROGATE: 1}, 1j, deep(1_000, lambda inner: [inner]),
    deep(100_000, lambda inner: [inner]), deep(1_000, lambda inner: {"a": inner}), LOOP, range(3), StoreError,
)  # fmt: skip
NONE = (None,)

BAD_FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("expected_head_revision", (*NOT_U64, 2**63)),
    ("commit_id", NOT_ID + NONE),
    ("builds_on", NOT_ID),
    ("config", NOT_RECORD + NONE),
    ("config.provider_id", NOT_TEXT + NONE),
    ("config.configured_model", NOT_TEXT + NONE),
    ("config.context_window", NOT_U64 + NONE),
    ("config.execution_mode", NOT_TEXT + NONE),
    ("config.standard_context_approach", (1, "x", [], {}, {"kind": 1}, {"kind": "x", "y": {1}}, {"kind": "x", 1: 1})),
    ("config.model_variant", NOT_TEXT),
    ("graph", NOT_RECORD + NONE),
    ("graph.leaf_node_id", NOT_ID),
    ("graph.nodes", (None, 1, "ab", b"ab", {}, {"a"}, object(), iter([event_node("a")]))),
    ("graph.nodes.0", NOT_RECORD + NONE),
    ("graph.nodes.0.node_id", NOT_ID + NONE),
    ("graph.nodes.1.parent_node_id", NOT_ID),
    ("graph.nodes.0.timestamp", NOT_TEXT + NONE),
    ("graph.nodes.0.payload", NOT_RECORD + NONE),
    ("graph.nodes.0.payload.event", NOT_JSON),
    ("graph.nodes.0.payload.event.a", NOT_JSON),
    ("graph.nodes.1.payload.plugin_type", NOT_TEXT + NONE),
    ("graph.nodes.1.payload.body", NOT_JSON),
    ("graph.nodes.1.payload.body.x.0", NOT_JSON),
    ("checkpoint", NOT_RECORD + NONE),
    ("checkpoint.turn_state", NOT_RECORD + NONE),
    ("checkpoint.turn_state.turn_index", NOT_U64 + NONE),
    ("checkpoint.turn_state.token_usage", NOT_RECORD + NONE),
    ("checkpoint.turn_state.token_usage.input_tokens", NOT_I64 + NONE),
    ("checkpoint.turn_state.token_usage.reasoning_tokens", NOT_I64 + NONE),
    ("checkpoint.turn_state.last_prompt_usage", NOT_RECORD),
    ("checkpoint.turn_state.last_prompt_usage.context_budget_tokens", NOT_U64 + NONE),
    ("checkpoint.turn_state.mode_turn_options", NOT_RECORD + NONE),
    ("checkpoint.turn_state.mode_turn_options.mode_id", NOT_TEXT + NONE),
    ("checkpoint.turn_state.mode_turn_options.payload", NOT_JSON),
    ("checkpoint.tool_state", NOT_RECORD),
    ("checkpoint.tool_state.generation", NOT_U64 + NONE),
    ("checkpoint.tool_state.tools", (None, 1, "x", [], object(), {1: ToolStateEntry({}, "x")})),
    ("checkpoint.tool_state.tools.look", NOT_RECORD + NONE),
    ("checkpoint.tool_state.tools.look.manifest", (*NOT_JSON, None, 1, "x", [])),
    ("checkpoint.tool_state.tools.look.source_id", NOT_TEXT + NONE),
    ("checkpoint.plugin_snapshot", NOT_RECORD),
    ("checkpoint.plugin_snapshot.plugins", (None, 1, "x", [], object())),
    ("checkpoint.plugin_snapshot.plugins.p", NOT_RECORD + NONE),
    ("checkpoint.plugin_snapshot.plugins.p.meta", NOT_RECORD + NONE),
    ("checkpoint.plugin_snapshot.plugins.p.meta.plugin_id", NOT_TEXT + NONE),
    ("checkpoint.plugin_snapshot.plugins.p.meta.revision", NOT_U64 + NONE),
    ("checkpoint.plugin_snapshot.plugins.p.meta.state", NOT_JSON),
    ("checkpoint.plugin_snapshot.plugins.p.artifacts", (None, 1, "x", {}, object())),
    ("checkpoint.plugin_snapshot.plugins.p.artifacts.0.data", (None, 1, "x", [1], object())),
    ("checkpoint.plugin_snapshot_revision", NOT_U64),
    ("checkpoint.execution_state", (1, "x", [1], {}, object())),
    ("usage_deltas", (None, 1, "ab", b"ab", {}, {"a"}, object())),
    ("usage_deltas.0", NOT_RECORD + NONE),
    ("usage_deltas.0.source", NOT_TEXT + NONE),
    ("usage_deltas.0.model", NOT_TEXT + NONE),
    ("usage_deltas.0.usage", NOT_RECORD + NONE),
    ("usage_deltas.0.usage.input_tokens", NOT_I64 + NONE),
    ("usage_deltas.0.usage.output_tokens", NOT_I64 + NONE),
    ("usage_deltas.0.usage.cached_input_tokens", NOT_I64 + NONE),
    ("usage_deltas.0.usage.reasoning_tokens", NOT_I64 + NONE),
)
BAD_REPLACEMENTS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("graph.graph", NOT_RECORD + NONE),
    ("graph.leaf_node_id", NOT_ID),
    ("graph.graph.nodes", (None, 1, "ab", b"ab", {}, {"a"}, object())),
    ("graph.graph.nodes.1", NOT_RECORD + NONE),
    ("graph.graph.nodes.1.node_id", NOT_ID + NONE),
    ("graph.graph.nodes.1.parent_node_id", NOT_ID),
    ("graph.graph.nodes.0.payload.event.a", NOT_JSON),
)
BAD_METAS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("session_name", NOT_TEXT + NONE),
    ("created_at", NOT_TEXT + NONE),
    ("model", NOT_TEXT + NONE),
    ("cwd", NOT_TEXT),
    ("parent_session_id", NOT_TEXT),
)


def steps(path: str) -> list[str | int]:
    return [int(step) if step.isdigit() else step for step in path.split(".")] if path else []


def error_path(record: Any, root: str, path: str) -> str:
    """The path in the notation of errors: attributes, indexes and keys of mappings of records."""
    out = root
    for step in steps(path):
        mapping = isinstance(record, Mapping)
        free_form = out.endswith((".event", ".body")) or ".event." in out or ".body." in out
        out += f"[{step!r}]" if isinstance(step, int) or (mapping and not free_form) else f".{step}"
        record = getattr(record, step) if is_dataclass(record) else record[step]  # type: ignore[arg-type]
    return out


def label(value: Any) -> str:
    try:
        return ascii(value)[:20]
    except RecursionError:
        return f"deep {type(value).__name__}"


def cases(record: Any, root: str, table: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    """One test case for each row of a table: the record, the name of its type, the path and the invalid values."""
    return [pytest.param(record, root, path, values, id=f"{root}.{path}") for path, values in table]


def check_refusal(env: Env, field: str, value: Any, call: Callable[[], Awaitable[Any]]) -> None:
    before = env.keyspace()
    with pytest.raises(InvalidRecord) as caught:
        env.run(call())
    assert caught.value.field.startswith(field), f"{caught.value.field!r} for {label(value)}"
    assert str(caught.value)
    assert env.keyspace() == before


@pytest.mark.parametrize(
    ("record", "root", "path", "values"),
    [
        *cases(full_commit(), "RuntimeCommit", BAD_FIELDS),
        *cases(REPLACING, "RuntimeCommit", BAD_REPLACEMENTS),
    ],
)
def test_an_invalid_commit_field_is_refused_by_its_name(
    env: Env, record: RuntimeCommit, root: str, path: str, values: Sequence[Any]
) -> None:
    env.run(
        env.store.commit_runtime_state(full_commit(graph=Append([event_node("before")], "before"), commit_id="zero"))
    )
    for value in values:
        # The leaf of a replacement is a field of its graph.
        where = "graph.graph.leaf_node_id" if record is REPLACING and path == "graph.leaf_node_id" else path
        commit = planted(record, steps(where), value)
        check_refusal(env, error_path(record, root, path), value, lambda c=commit: env.store.commit_runtime_state(c))
    assert env.run(env.reopened().load_session(FullGraph())).head_revision == 1


@pytest.mark.parametrize("component", ["tool_state", "plugin_snapshot", "execution_state"])
@pytest.mark.parametrize("value", NOT_REF, ids=label)
def test_an_invalid_ref_is_refused_by_the_name_of_its_component(env: Env, component: str, value: Any) -> None:
    checkpoint: Any = HydratedSessionCheckpoint(**{f"{component}_ref": value})
    commit = RuntimeCommit("chat", checkpoint=checkpoint)
    field = f"RuntimeCommit.checkpoint.{component}_ref"
    check_refusal(env, field, value, lambda: env.store.commit_runtime_state(commit))


@pytest.mark.parametrize(("record", "root", "path", "values"), cases(META, "SessionMeta", BAD_METAS))
def test_an_invalid_session_meta_field_is_refused_by_its_name(
    env: Env, record: SessionMeta, root: str, path: str, values: Sequence[Any]
) -> None:
    env.run(env.store.save_session_meta(META))
    for value in values:
        meta = planted(record, steps(path), value)
        check_refusal(env, f"{root}.{path}", value, lambda m=meta: env.store.save_session_meta(m))
    assert env.run(env.reopened().load_session_meta()) == META


@pytest.mark.parametrize("session_id", [1, None, b"chat", "", SURROGATE, "other"], ids=label)
def test_a_record_for_another_session_is_refused(env: Env, session_id: Any) -> None:
    before = env.keyspace()
    for call in (
        env.store.commit_runtime_state(full_commit(session_id=session_id)),
        env.store.save_session_meta(replace(META, session_id=session_id)),
    ):
        with pytest.raises(StoreError) as caught:
            env.run(call)
        assert str(caught.value)
    assert env.keyspace() == before


# Arguments


async def _update(env: Env, *given: Any, **more: Any) -> Any:
    return await env.store.update(*given, **more)


async def _call(make: Callable[[], Any]) -> Any:
    return make()


ARGUMENTS: dict[str, tuple[Callable[[Env, Any], Awaitable[Any]], tuple[Any, ...]]] = {
    "session_id": (lambda env, value: _call(lambda: env.cache.session(value)), NOT_ID + NONE),
    "request": (lambda env, value: env.cache.create(value), NOT_RECORD + NONE),
    "SessionStoreCreateRequest.session_id": (
        lambda env, value: env.cache.create(replace(REQUEST, session_id=value)),
        NOT_ID + NONE,
    ),
    "SessionStoreCreateRequest.policy": (
        lambda env, value: env.cache.create(replace(REQUEST, policy=value)),
        NOT_RECORD + NONE,
    ),
    "SessionStoreCreateRequest.policy.model": (
        lambda env, value: env.cache.create(replace(REQUEST, policy=SessionPolicy(value))),
        NOT_TEXT + NONE,
    ),
    "SessionStoreCreateRequest.parent_session_id": (
        lambda env, value: env.cache.create(replace(REQUEST, parent_session_id=value)),
        NOT_TEXT,
    ),
    "data": (lambda env, value: env.cache.put_blob(value), (1, "x", None, [1], object(), 5.0)),
    "ref": (lambda env, value: env.cache.get_blob(value), NOT_REF + NONE),
    "ActivePath.leaf_node_id": (lambda env, value: env.store.load_session(ActivePath(value)), NOT_ID),
    "ActivePath.limit": (lambda env, value: env.store.load_session(ActivePath(limit=value)), (0, -1, 1.0, "1", True)),
    "ActivePath.before": (lambda env, value: env.store.load_session(ActivePath(before=value)), NOT_ID),
    "node_id": (lambda env, value: env.store.load_node(value), NOT_ID + NONE),
    "commit": (lambda env, value: env.store.commit_runtime_state(value), NOT_RECORD + NONE),
    "meta": (lambda env, value: env.store.save_session_meta(value), NOT_RECORD + NONE),
    "input_id": (lambda env, value: env.store.enqueue_input("x", value), NOT_ID),
    "durability": (lambda env, value: env.store.enqueue_input("x", durability=value), NOT_RECORD),
    "ids": (lambda env, value: env.store.tombstone_nodes(value), ("ab", b"ab", 1, None, {}, {"a"}, iter("ab"))),
    "ids[1]": (lambda env, value: env.store.tombstone_nodes(["a", value]), NOT_ID + NONE),
    "fn": (lambda env, value: _update(env, value), (None, 1, "x", full_commit())),
    "read": (lambda env, value: env.store.refresh(value), NOT_RECORD + NONE),
    "since": (lambda env, value: _update(env, lambda read: full_commit(), since=value), NOT_RECORD),
    "attempts": (
        lambda env, value: _update(env, lambda read: full_commit(), attempts=value),
        (0, -1, True, None, 1.5, "x", NAN),
    ),
    "client": (lambda env, value: _call(lambda: SessionCache(value, NAMESPACE)), (None, 1, "redis://x", object())),
    "namespace": (
        lambda env, value: _call(lambda: SessionCache(env.cache_client(), value)),
        (None, 1, b"x", "", "a b", "{", "}", "a:b", "a\n", "é", "x" * 65, "-a", SURROGATE),
    ),
    "ttl": (
        lambda env, value: _call(lambda: SessionCache(env.cache_client(), NAMESPACE, ttl=value)),
        (0, -1, True, "1", b"1", NAN, INFINITY, 1e12, object()),
    ),
    "options": (
        lambda env, value: _call(lambda: SessionCache(env.cache_client(), NAMESPACE, options=value)),
        NOT_RECORD,
    ),
    "url": (
        lambda env, value: _call(lambda: connect(value)),
        (None, 1, b"redis://x", "", "x", "http://x", "redis://x:port", "redis://x:99999999", "redis://[x"),
    ),
    **{
        f"options.{name}": (lambda env, value, name=name: _call(lambda: StoreOptions(**{name: value})), values)
        for name, values in {
            "graph_checks": (None, 1, "x", b"strict", [], True),
            "blob_profile": (None, 1, "BALANCED", 4096),
            "gc_policy": (None, 1, {}, "x"),
            "shards": (None, 0, -1, 1025, True, 1.0, "1"),
            "blob_grace": (None, 0, -1, True, "1", NAN, INFINITY),
            "upload_grace": (None, 0, -1, True, "1", NAN, INFINITY),
            "retry_max_delay": (None, 0, -1, True, "1", NAN, INFINITY),
            "blob_cache_bytes": (None, -1, True, 1.0, "1"),
            "max_commit_bytes": (0, -1, True, 1.0, "1"),
            "max_commit_nodes": (0, -1, True, 1.0, "1"),
            "max_bytes_in_flight": (None, 0, -1, True, 1.0, "1"),
            "call_timeout": (0, -1, True, "1", NAN, INFINITY),
        }.items()
    },
    "gc_policy.auto_run_every_commits": (
        lambda env, value: _call(lambda: StoreGcPolicy(value)),
        (None, -1, True, 1.0, "1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("field", ARGUMENTS)
def test_an_invalid_argument_is_refused_by_its_name(env: Env, field: str) -> None:
    call, values = ARGUMENTS[field]
    env.run(env.store.commit_runtime_state(full_commit()))
    for value in values:
        check_refusal(env, field, value, lambda v=value: call(env, v))


@pytest.mark.parametrize("scope", [None, 1, "FullGraph", FullGraph, ActivePath, {}, object(), Unchanged()], ids=label)
def test_an_invalid_read_scope_is_refused(env: Env, scope: Any) -> None:
    with pytest.raises(UnsupportedReadScope):
        env.run(env.store.load_session(scope))


@pytest.mark.parametrize("made", [None, 1, "x", {}, Unchanged()], ids=label)
def test_an_update_function_that_returns_no_commit_is_refused(env: Env, made: Any) -> None:
    async def later(_read: Any) -> Any:
        return made

    before = env.keyspace()
    for fn in (lambda _read: made, later):
        with pytest.raises(InvalidRecord):
            env.run(env.store.update(fn))
    assert env.keyspace() == before


# Batches


@pytest.mark.parametrize(
    "wrap",
    [lambda nodes: Append(nodes, "a"), lambda nodes: ReplaceFull(SessionGraph(nodes, "a"))],
    ids=["append", "replace"],
)
def test_duplicate_ids_and_parents_that_do_not_precede_their_children_are_refused(
    env: Env, wrap: Callable[[Any], Any]
) -> None:
    env.run(env.store.commit_runtime_state(full_commit(graph=Append([event_node("zero")], "zero"), commit_id="zero")))
    before = env.keyspace()
    faults: list[tuple[list[SessionNodeRecord], type[StoreError], tuple[Any, ...]]] = [
        ([event_node("a"), event_node("b", "a"), event_node("a")], NodeIdCollision, ("a",)),
        ([event_node("a"), event_node("b", "c"), event_node("c", "a")], InvalidParent, ("b", "c")),
        ([event_node("a"), event_node("b", "b")], InvalidParent, ("b", "b")),
        ([event_node("a", "b"), event_node("b", "a")], InvalidParent, ("a", "b")),
    ]
    for nodes, kind, args in faults:
        with pytest.raises(kind) as caught:
            env.run(env.store.commit_runtime_state(RuntimeCommit("chat", 1, graph=wrap(nodes))))
        assert caught.value.args == args
        assert env.keyspace() == before


@pytest.mark.slow
async def test_a_50_megabyte_execution_state_is_stored_unless_it_exceeds_the_limit(server: Server) -> None:
    state = bytes(range(256)) * (50 * 4096)
    cache = SessionCache(server.client(), NAMESPACE)
    checkpoint = HydratedSessionCheckpoint(execution_state=state)
    await cache.session("chat").commit_runtime_state(RuntimeCommit("chat", checkpoint=checkpoint))
    reader = SessionCache(server.client(), NAMESPACE)
    read = await reader.session("chat").load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    assert read.checkpoint.execution_state == state

    raw = server.client()
    before = await keys_except_layout(raw)
    small = SessionCache(server.client(), NAMESPACE, options=StoreOptions(max_commit_bytes=1_000_000))
    with pytest.raises(CommitTooLarge) as caught:
        await small.session("chat").commit_runtime_state(RuntimeCommit("chat", checkpoint=checkpoint))
    assert caught.value.limit == 1_000_000
    assert caught.value.size > len(state)
    with pytest.raises(CommitTooLarge):
        await small.put_blob(state)
    assert await keys_except_layout(raw) == before


@pytest.mark.slow
async def test_a_replacement_of_20_000_nodes_is_stored_unless_it_exceeds_the_limit(server: Server) -> None:
    nodes = tuple(event_node(f"n{at}", f"n{at - 1}" if at % 1000 else None) for at in range(20_000))
    commit = RuntimeCommit("chat", graph=ReplaceFull(SessionGraph(nodes, "n19999")))
    large = SessionCache(server.client(), NAMESPACE, options=StoreOptions(max_commit_nodes=None))
    await large.session("chat").commit_runtime_state(commit)
    store = SessionCache(server.client(), NAMESPACE).session("chat")
    read = await store.load_session(FullGraph())
    path = await store.load_session(ActivePath())
    assert read is not None
    assert path is not None
    assert tuple(read.graph.nodes) == nodes
    assert tuple(path.graph.nodes) == nodes[19_000:]

    raw = server.client()
    before = await keys_except_layout(raw)
    small = SessionCache(server.client(), NAMESPACE, options=StoreOptions(max_commit_nodes=19_999))
    with pytest.raises(CommitTooLarge) as caught:
        await small.session("chat").commit_runtime_state(commit)
    assert (caught.value.size, caught.value.limit) == (20_000, 19_999)
    assert await keys_except_layout(raw) == before


# Generated values

FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


def as_text(value: Any) -> str:
    """JSON text for comparisons. In Python 1, 1.0 and True are equal, and so are 0.0 and -0.0."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.slow
@FUZZ
@given(value=json_values, event=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values))
def test_any_json_value_is_read_back_unchanged(env: Env, value: Any, event: dict[str, Any]) -> None:
    store = env.cache.session("fuzz")
    nodes = (SessionNodeRecord("a", None, "t", PluginPayload("p", value)), event_node("b", "a", event))
    plugin = PluginSnapshotEntry(PluginSnapshotMeta("p", "1", 1, value))
    env.run(
        store.commit_runtime_state(
            RuntimeCommit(
                "fuzz",
                None,
                graph=ReplaceFull(SessionGraph(nodes, "b")),
                checkpoint=HydratedSessionCheckpoint(plugin_snapshot=PluginSessionSnapshot({"p": plugin})),
            )
        )
    )
    read = env.run(SessionCache(env.cache_client(), NAMESPACE).session("fuzz").load_session(FullGraph()))
    state = read.checkpoint.plugin_snapshot.plugins["p"].meta.state
    assert as_text(read.graph.nodes[0].plugin_body()) == as_text(state) == as_text(value)
    assert as_text(read.graph.nodes[1].event()) == as_text(event)


def every_path(record: Any) -> Iterator[tuple[str | int, ...]]:
    """The path of every field of every record within a record."""
    if is_dataclass(record):
        steps_down: list[tuple[Any, Any]] = [(f.name, getattr(record, f.name)) for f in fields(record) if f.init]
    elif isinstance(record, Mapping):
        steps_down = list(record.items())
    elif isinstance(record, list | tuple):
        steps_down = list(enumerate(record))
    else:
        return
    for step, inner in steps_down:
        yield (step,)
        yield from ((step, *rest) for rest in every_path(inner))


class Other:
    """An object of a type that no field accepts."""


junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.datetimes(), st.complex_numbers(),
    st.builds(Other), st.builds(object), st.just(Other), st.sets(st.integers()), st.tuples(st.integers()), json_values,
    st.lists(st.binary()), st.dictionaries(st.integers() | st.none() | st.text(), st.integers() | st.binary()),
    st.sampled_from([
        SURROGATE, {SURROGATE: 1}, [NAN], 2**64, BlobRef("x"), sha256(b"x").hexdigest(), META, event_node("z"),
    ]),
    st.sampled_from([TokenUsage(1), Unchanged("a"), full_commit(), HydratedSessionCheckpoint(), LOOP]),
)  # fmt: skip


@pytest.mark.slow
@FUZZ
@given(base=st.sampled_from([full_commit(), REPLACING]), data=st.data(), value=junk)
def test_junk_in_any_commit_field_is_stored_or_refused_without_a_write(
    env: Env, base: RuntimeCommit, data: st.DataObject, value: Any
) -> None:
    path = data.draw(st.sampled_from(sorted(every_path(base), key=str)))
    client = env.cache_client()
    env.run(client.flushall())
    store = SessionCache(client, NAMESPACE).session("chat")
    before = full_commit(graph=Append([event_node("before")], "before"), commit_id="zero")
    env.run(store.commit_runtime_state(before))
    stored, result = env.keyspace(), None
    with suppress(StoreError):
        result = env.run(store.commit_runtime_state(planted(base, path, value)))
    if result is None:
        assert env.keyspace() == stored
    read = env.run(env.reopened().load_session(FullGraph()))
    assert read.head_revision == (1 if result is None else 2)
    assert all(node.payload is not None for node in read.graph.nodes)
