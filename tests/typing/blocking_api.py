"""The blocking client as callers write it. Only type-checked: each `assert_type` is what an editor shows."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, assert_type

import redis
from redis.cluster import RedisCluster

from lash_redis import (
    DeleteOwnedReport,
    DeleteReport,
    FullGraph,
    HydratedSessionCheckpoint,
    LeaseClaim,
    LeaseInfo,
    PendingInput,
    PersistedSessionRead,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionChange,
    SessionHeadMeta,
    SessionNodeRecord,
    SessionPickerInfo,
    SessionStoreCreateRequest,
    SessionUsageReport,
    StoreOptions,
    blocking,
)
from lash_redis.blocking import (
    BlockingChat,
    BlockingLease,
    BlockingSessionCache,
    BlockingSessionStore,
    BlockingSessionWatch,
)


def caches(client: redis.Redis, cluster: RedisCluster) -> None:
    assert_type(blocking.connect("redis://localhost"), BlockingSessionCache)
    assert_type(BlockingSessionCache(client, "acme", ttl=60.0, options=StoreOptions()), BlockingSessionCache)
    assert_type(BlockingSessionCache(cluster), BlockingSessionCache)
    with blocking.connect("memory://", namespace="acme", ttl=None) as cache:
        assert_type(cache, BlockingSessionCache)
        assert_type(cache.namespace, str)
        assert_type(cache.ttl, float | None)
        assert_type(cache.session("chat-42", owner="alice"), BlockingSessionStore)
        assert_type(cache.chat("chat-42"), BlockingChat)
        request = SessionStoreCreateRequest("chat-42")
        assert_type(cache.create(request, owner="alice", title="Trip", ttl=60.0), BlockingSessionStore)
        assert_type(cache.fork("chat-42", "chat-43", owner="alice"), BlockingSessionStore)
        assert_type(cache.delete("chat-42", owner="alice"), DeleteReport)
        assert_type(cache.delete_owned("alice"), DeleteOwnedReport)
        assert_type(cache.sessions(owner="alice", limit=20), Generator[SessionPickerInfo, None, None])
        for info in cache.sessions():
            assert_type(info, SessionPickerInfo)
        cache.gc(lambda done, shards: None)
        cache.audit(repair=True, progress=print)
        assert_type(cache.get_blob(cache.put_blob(b"bytes")), bytes | None)
        cache.close()


def stores(store: BlockingSessionStore, read: PersistedSessionRead) -> None:
    assert_type(store.session_id, str)
    assert_type(store.load_session(FullGraph(), decode=True), PersistedSessionRead | None)
    assert_type(store.refresh(read), PersistedSessionRead | None)
    assert_type(store.load_head(), SessionHeadMeta | None)
    assert_type(store.load_checkpoint(), tuple[SessionHeadMeta, HydratedSessionCheckpoint] | None)
    assert_type(store.load_nodes(["m1"]), list[SessionNodeRecord | None])

    def turn(seen: PersistedSessionRead | None) -> RuntimeCommit:
        return RuntimeCommit("chat-42", expected_head_revision=0 if seen is None else seen.head_revision)

    assert_type(store.update(turn, since=read, attempts=3), RuntimeCommitResult)
    assert_type(store.commit_runtime_state(turn(read), ttl=None), RuntimeCommitResult)
    assert_type(store.touch(ttl=60.0), bool)
    assert_type(store.enqueue_input({"any": "JSON"}, "i1"), PendingInput)
    assert_type(store.pending_inputs(), list[PendingInput])
    for revision in store.watch(read, poll=1.0):
        assert_type(revision, int)


def leases(store: BlockingSessionStore) -> None:
    with store.acquire_lease("worker-7", 10.0, wait=60.0) as lease:
        assert_type(lease, BlockingLease)
        claim: LeaseClaim = lease
        assert_type(lease.remaining, float)
        assert_type(lease.displaced, LeaseInfo | None)
        assert_type(lease.renew(20.0), BlockingLease)
        with lease.renewing(every=2.0) as renewed:
            assert_type(renewed, BlockingLease)
        store.commit_runtime_state(RuntimeCommit("chat-42", lease=claim))
        lease.release()
    assert_type(store.adopt_lease(BlockingLease.from_json({})), BlockingLease)
    assert_type(store.load_lease(), LeaseInfo | None)


def chats(chat: BlockingChat) -> None:
    assert_type(chat.append({"role": "user", "content": "hi"}, usage=(), after=None), list[dict[str, Any]])
    assert_type(chat.messages(limit=20, before="m1"), list[dict[str, Any]])
    assert_type(chat.edit("m1", {"role": "user", "content": "ho"}), dict[str, Any])
    assert_type(chat.branches(), list[str])
    assert_type(chat.usage(), SessionUsageReport)
    assert_type(chat.store, BlockingSessionStore)
    chat.rewind("m1")
    chat.set_title("Trip")
    assert_type(chat.delete(), DeleteReport)


def watches(cache: BlockingSessionCache) -> None:
    with cache.watch(poll=1.0) as watch:
        assert_type(watch, BlockingSessionWatch)
        watch.add("chat-42", 0, owner="alice")
        watch.remove("chat-42")
        for change in watch:
            assert_type(change, SessionChange)
        watch.close()
