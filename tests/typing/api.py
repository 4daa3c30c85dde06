"""The public API as callers write it. Only type-checked: each `assert_type` is what an editor shows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, assert_type

import redis.asyncio

import lash_redis
from lash_redis import (
    ActivePath,
    Append,
    AuditProblem,
    AuditReport,
    BlobProfile,
    BlobRef,
    Chat,
    DeleteOwnedReport,
    DeleteReport,
    Durability,
    EventPayload,
    Fsync,
    FullGraph,
    GcReport,
    GraphCommitDelta,
    HydratedSessionCheckpoint,
    InvalidRecord,
    Keep,
    Lease,
    LeaseBusy,
    LeaseClaim,
    LeaseInfo,
    MessageTreeNode,
    NodePayload,
    OutcomeUnknown,
    PendingInput,
    PersistedSessionConfig,
    PersistedSessionRead,
    PersistedSessionState,
    PluginPayload,
    PluginSessionSnapshot,
    RedisSessionStore,
    ReplaceFull,
    Replicas,
    RuntimeCommit,
    RuntimeCommitResult,
    RuntimePersistence,
    SessionCache,
    SessionChange,
    SessionCheckpoint,
    SessionGraph,
    SessionHeadMeta,
    SessionMeta,
    SessionNodeRecord,
    SessionPickerInfo,
    SessionReadModel,
    SessionReadScope,
    SessionStoreCreateRequest,
    SessionUsageReport,
    SessionWatch,
    Since,
    StoreError,
    StoreGcPolicy,
    StoreOptions,
    StreamClaim,
    StreamEvent,
    StreamGap,
    StreamInfo,
    StreamState,
    StreamWriter,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    Unchanged,
    UsageTotals,
    VacuumReport,
)


def options() -> StoreOptions:
    durability: Durability = Replicas(n=1, timeout_ms=500)
    made = StoreOptions(
        graph_checks="lenient",
        blob_profile=BlobProfile.COMPACT,
        gc_policy=StoreGcPolicy(auto_run_every_commits=10),
        shards=8,
        durability=durability,
        read_from="replica",
        max_commit_bytes=None,
        call_timeout=2.0,
    )
    assert_type(made.durability, Replicas | Fsync | None)
    assert_type(made.call_timeout, float | None)
    assert_type(made.max_commit_nodes, int | None)
    return made


async def caches(client: redis.asyncio.Redis, cluster: redis.asyncio.RedisCluster) -> None:
    assert_type(lash_redis.connect("redis://localhost"), SessionCache)
    assert_type(lash_redis.connect("memory://", namespace="acme", ttl=60.0, options=options()), SessionCache)
    assert_type(SessionCache(client, "acme"), SessionCache)
    assert_type(SessionCache(cluster, "acme", ttl=None), SessionCache)
    async with lash_redis.connect("embedded://") as cache:
        assert_type(cache, SessionCache)
        assert_type(cache.namespace, str)
        assert_type(cache.options, StoreOptions)
        assert_type(cache.session("chat-42"), RedisSessionStore)
        request = SessionStoreCreateRequest("chat-42", parent_session_id=None)
        assert_type(await cache.create(request), RedisSessionStore)
        assert_type(await cache.create(request, ttl=Keep.KEEP), RedisSessionStore)
        assert_type(await cache.create(request, owner="alice", title="Trip", cwd=None), RedisSessionStore)
        assert_type(await cache.fork("chat-42", "chat-43", "m2", ttl=None), RedisSessionStore)
        assert_type(await cache.delete("chat-42"), DeleteReport)
        assert_type(cache.sessions(limit=20, after=None, parent="chat-1"), AsyncIterator[SessionPickerInfo])
        await owners(cache)
        async for info in cache.sessions(after="after:1:YQ=="):
            assert_type(info.cursor, str)
            assert_type(info.fault, str | None)
        audited = await cache.audit(repair=True, progress=lambda done, total: None)
        assert_type(audited, AuditReport)
        assert_type(audited.problems, Sequence[AuditProblem])
        assert_type(await cache.gc(), GcReport)
        assert_type(await cache.put_blob(b"bytes"), BlobRef)
        assert_type(await cache.get_blob("0" * 64), bytes | None)
        await cache.preload()
        await cache.aclose()


async def owners(cache: SessionCache) -> None:
    store = cache.session("chat-42", owner="alice")
    assert_type(store.owner, str | None)
    await store.set_title("Trip")
    assert_type(await cache.fork("chat-42", "chat-43", owner="alice"), RedisSessionStore)
    assert_type(await cache.delete("chat-42", owner="alice"), DeleteReport)
    async for info in cache.sessions(owner="alice", limit=20):
        assert_type(info.owner, str | None)
        assert_type(info.title, str)
    report = await cache.delete_owned("alice")
    assert_type(report, DeleteOwnedReport)
    assert_type(report.deleted_session_count, int)
    async with cache.watch() as watch:
        watch.add("chat-42", owner="alice")


async def reads(store: RedisSessionStore) -> None:
    scope: SessionReadScope = ActivePath("m2", limit=20, before="m1")
    assert_type(await store.load_session(scope), PersistedSessionRead | None)
    read = await store.load_session(FullGraph(), decode=True)
    if read is None:
        return
    assert_type(read, PersistedSessionRead)
    assert_type(read.scope, FullGraph | ActivePath)
    assert_type(read.head_revision, int)
    assert_type(read.config, PersistedSessionConfig)
    assert_type(read.graph, SessionGraph)
    assert_type(read.is_partial, bool)
    assert_type(read.checkpoint, HydratedSessionCheckpoint | None)
    assert_type(read.token_ledger, Sequence[TokenLedgerEntry])
    assert_type(read.to_json(), Any)
    assert_type(PersistedSessionRead.from_json({}), PersistedSessionRead)
    assert_type(await store.refresh(read), PersistedSessionRead | None)
    assert_type(await store.load_head(), SessionHeadMeta | None)
    assert_type(await store.load_checkpoint(), tuple[SessionHeadMeta, HydratedSessionCheckpoint] | None)
    assert_type(await store.load_session_meta(), SessionMeta | None)
    node = await store.load_node("m1")
    assert_type(node, SessionNodeRecord | None)
    assert_type(await store.load_nodes(["m1", "m2"]), list[SessionNodeRecord | None])
    if node is not None:
        payload: NodePayload = node.payload
        assert_type(payload, EventPayload | PluginPayload)
        assert_type(node.parent_node_id, str | None)
        assert_type(node.message(), dict[str, Any] | None)
    if read.checkpoint is not None:
        assert_type(read.checkpoint.tool_state, ToolState | None)
        assert_type(read.checkpoint.plugin_snapshot, PluginSessionSnapshot | None)
        assert_type(read.checkpoint.execution_state, bytes | None)


def graphs(read: PersistedSessionRead) -> GraphCommitDelta:
    graph = read.graph.append_message({"role": "User", "parts": []}).append_event({"Mode": {}})
    assert_type(graph, SessionGraph)
    assert_type(graph.append_plugin("memory", {"a": 1}), SessionGraph)
    assert_type(graph.with_leaf(None), SessionGraph)
    assert_type(graph.first(-1), SessionGraph)
    assert_type(graph.active_path(), list[SessionNodeRecord])
    assert_type(graph.read_model(), SessionReadModel)
    assert_type(graph.read_model().messages, Sequence[Any])
    assert_type(graph.message_tree(), list[MessageTreeNode])
    assert_type(graph.message_tree()[0].children, list[MessageTreeNode])
    delta: GraphCommitDelta = Append(graph.nodes[-1:], graph.leaf_node_id)
    assert_type(ReplaceFull(graph).leaf_node_id, str | None)
    return delta if graph.nodes else Unchanged()


async def commits(store: RedisSessionStore, read: PersistedSessionRead) -> None:
    used = TokenLedgerEntry("turn", "gpt-5", TokenUsage(input_tokens=900, output_tokens=40))
    claim: LeaseClaim = await store.acquire_lease("worker-7")
    commit = RuntimeCommit("chat-42", read.head_revision, graph=graphs(read), usage_deltas=[used], lease=claim)
    assert_type(commit, RuntimeCommit)
    assert_type(commit.commit_id, str)
    assert_type(commit.graph, Unchanged | Append | ReplaceFull | Keep)
    result = await store.commit_runtime_state(commit, ttl=3600.0, durability=Fsync())
    assert_type(result, RuntimeCommitResult)
    assert_type(result.durable, bool | None)
    assert_type(result.manifest, SessionCheckpoint)
    assert_type(result.checkpoint_ref, BlobRef)

    def turn(seen: PersistedSessionRead | None) -> RuntimeCommit:
        return commit if seen is None else RuntimeCommit("chat-42", config=seen.config)

    async def slow_turn(seen: PersistedSessionRead | None) -> RuntimeCommit:
        return turn(seen)

    assert_type(await store.update(turn), RuntimeCommitResult)
    assert_type(await store.update(slow_turn, since=read, attempts=3, ttl=None), RuntimeCommitResult)
    await store.save_session_meta(SessionMeta("chat-42", "Trip", "2026-01-01", "gpt-5"))
    assert_type(await store.enqueue_input({"text": "hello"}), PendingInput)
    assert_type(await store.enqueue_input("hello", "i1", durability=Fsync()), PendingInput)
    assert_type(await store.pending_inputs(), list[PendingInput])
    RuntimeCommit("chat-42", consumes=["i1"])
    await store.tombstone_nodes(["m1"])
    assert_type(await store.touch(ttl=60.0), bool)
    assert_type(await store.vacuum(), VacuumReport)
    assert_type(await store.gc_unreachable(), GcReport)
    assert_type(await store.delete(), DeleteReport)


async def leases(store: RedisSessionStore) -> None:
    async with await store.acquire_lease("worker-7", 10.0, token="secret", wait=60.0) as lease:
        assert_type(lease, Lease)
        assert_type(lease.remaining, float)
        assert_type(lease.generation, int)
        assert_type(lease.displaced, LeaseInfo | None)
        assert_type(await lease.renew(), Lease)
        async with lease.renewing(every=2.0) as renewed:
            assert_type(renewed, Lease)
        await lease.release()
    assert_type(await store.acquire_lease(), Lease)
    assert_type(await store.acquire_lease("worker-7", reenter=True), Lease)
    assert_type(OutcomeUnknown("lost").token, str | None)
    assert_type(LeaseBusy("chat-42", "worker-7").is_own, bool)
    assert_type(store.adopt_lease(Lease.from_json({})), Lease)
    assert_type(await store.load_lease(), LeaseInfo | None)


async def streams(store: RedisSessionStore, chat: Chat) -> None:
    async with store.stream("gen-1", ttl=30.0, keep=120.0, max_events=2048, max_bytes=1_000_000) as out:
        assert_type(out, StreamWriter)
        assert_type(await out.send({"delta": "Hel"}), None)
        assert_type(await out.flush(), None)
        assert_type(out.stop_requested, bool)
        claim: StreamClaim = out
        await store.commit_runtime_state(RuntimeCommit("chat-42", finishes=claim))
    assert_type(store.follow("gen-1", after=None, wait=0.0), AsyncGenerator[StreamEvent, None])
    async for event in chat.follow("gen-1"):
        assert_type(event.cursor, str)
    assert_type(await store.request_stop("gen-1"), bool)
    info = await store.load_stream("gen-1")
    assert_type(info, StreamInfo | None)
    if info is not None:
        state: StreamState = info.state
        del state
    async with chat.stream("gen-2") as answer:
        await chat.append({"role": "assistant", "content": "Hello"}, finishes=answer)
    assert_type(StreamGap("s", "g", "c").oldest, str)


async def watches(cache: SessionCache, store: RedisSessionStore) -> None:
    since: Since = await store.load_head()
    assert_type(store.watch(since, poll=1.0, patience=30.0), AsyncGenerator[int, None])
    async with aclosing(store.watch()) as revisions:
        async for revision in revisions:
            assert_type(revision, int)
    async with cache.watch() as watch:
        assert_type(watch, SessionWatch)
        watch.add("chat-42", 0)
        watch.remove("chat-42")
        async for change in watch:
            assert_type(change, SessionChange)
            assert_type(change.ended, StoreError | None)


async def the_contract(store: RedisSessionStore) -> None:
    """A store is a `RuntimePersistence`, and its state is a record."""
    contract: RuntimePersistence = store
    state = await lash_redis.load_persisted_session_state(contract)
    assert_type(state, PersistedSessionState | None)
    assert_type(await lash_redis.load_persisted_session_state_active_path(store, "m2"), PersistedSessionState | None)
    if state is None:
        return
    await lash_redis.refresh_persisted_session_state(store, state)
    commit = RuntimeCommit.persisted_state(state)
    assert_type(commit, RuntimeCommit)
    state.apply_persisted_commit_result(await contract.commit_runtime_state(commit))
    report = state.usage_report()
    assert_type(report, SessionUsageReport)
    assert_type(report.usage, UsageTotals)
    assert_type(report.by_model, Mapping[str, UsageTotals])


def errors(error: InvalidRecord) -> None:
    as_value_error: ValueError = error
    as_store_error: StoreError = error
    assert_type(error.field, str)
    del as_value_error, as_store_error
