"""Every operation works on a real cluster, also while slots move and primaries are killed under load."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

import lash_redis
from lash_redis import (
    ActivePath,
    BackendError,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    Replicas,
    SessionCache,
    StoreOptions,
)
from lash_redis.acl import ROLES
from lash_redis.cli.commands import app
from lash_redis.protocol import scripts
from lash_redis.protocol.keys import Layout, slot_of
from lash_redis.transport.request import Request
from tests.laws.test_acl import everything
from tests.support.builders import append, commit, ids_of
from tests.support.groups import Cluster, Member
from tests.support.sending import sends_once
from tests.support.servers import Kind, require, table
from tests.support.writers import Writers

ONE_SHARD = StoreOptions(shards=1)


@pytest.fixture(params=[kind for kind in table() if kind.real], ids=lambda kind: kind.name)
def moving(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of each binary, to move slots in."""
    kind: Kind = request.param
    request.node.user_properties.append(("server", kind.name))
    require(kind)
    with Cluster(kind) as cluster:
        yield cluster


def elsewhere(cluster: Cluster, key: str) -> Member:
    """A primary that does not serve the key."""
    owner = cluster.primary_of(key)
    return next(node for node in cluster.primaries() if node is not owner)


def slot_of_shard(cache: SessionCache, shard: int = 0) -> int:
    return slot_of(cache.layout.prefix(shard))


async def test_every_operation_works_on_a_cluster(cluster):
    async with lash_redis.connect(cluster.url) as cache:
        await everything(cache, audits=True)
        await cache.preload()


@pytest.mark.parametrize("role", ROLES)
async def test_each_acl_role_permits_its_operations_on_a_cluster(role, cluster):
    for node in cluster.nodes:
        words = lash_redis.acl.rules("acme", role, cluster=True)
        node.ask("ACL", "SETUSER", role, "reset", "on", ">pw", *words)
    async with lash_redis.connect(cluster.url, namespace="acme") as admin:
        await admin.preload()
    url = cluster.url.replace("://", f"://{role}:pw@")
    options = StoreOptions(shards=2, allow_eval=role != "runner")
    async with lash_redis.connect(url, namespace="acme", options=options) as cache:
        await everything(cache, audits=role == "auditor")


async def test_sessions_are_stored_on_every_primary_of_a_cluster(cluster):
    async with lash_redis.connect(cluster.url) as cache:
        for at in range(60):
            await cache.session(f"s{at}").commit_runtime_state(commit(None, append("a"), session_id=f"s{at}"))
        assert len({cluster.primary_of(cache.layout.session(f"s{at}").head).port for at in range(60)}) == 3
        assert {info.session_id async for info in cache.sessions()} == {f"s{at}" for at in range(60)}
        assert (await cache.audit()).session_count == 60


async def test_preload_loads_the_scripts_on_every_node_of_a_cluster(cluster):
    async with lash_redis.connect(cluster.url) as cache:
        await cache.preload()
    shas = [script.sha for script in scripts.every()]
    for node in cluster.nodes:
        assert set(node.ask("SCRIPT", "EXISTS", *shas)) == {1}


async def test_a_moved_slot_is_followed_without_a_retry(moving):
    async with lash_redis.connect(moving.url, options=StoreOptions(shards=1)) as cache:
        store = sends_once(cache).session("chat")
        await store.commit_runtime_state(commit(None, append("a")))
        moving.migrate_slot(slot_of_shard(cache), elsewhere(moving, cache.layout.prefix(0)))
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
        assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["a", "b"]


async def test_a_session_that_has_moved_is_read_from_the_target_of_its_moving_slot(moving):
    """The source still owns the slot and replies ASK, because all keys are on the target."""
    options = StoreOptions(shards=1)
    async with lash_redis.connect(moving.url, options=options) as cache:
        store = sends_once(cache).session("chat")
        state = HydratedSessionCheckpoint(execution_state=b"1")
        await store.commit_runtime_state(commit(None, append("a", "b"), checkpoint=state))
        await store.commit_runtime_state(commit(1, append("c", parent="a"), checkpoint=state))
        await store.tombstone_nodes(["b"])

        async def seen() -> tuple[list[str], list[str], bytes]:
            fresh = sends_once(SessionCache(cache.shared._backend._connector, options=options))
            full = await fresh.session("chat").load_session(FullGraph())
            path = await fresh.session("chat").load_session(ActivePath())
            assert (await fresh.session("chat").load_head()).head_revision == 2
            await fresh.shared._backend.close()
            return ids_of(full), ids_of(path), full.checkpoint.execution_state

        seen_before = await seen()
        assert seen_before == (["a", "c"], ["a", "c"], b"1")
        slot, source = slot_of_shard(cache), moving.primary_of(cache.layout.prefix(0))
        to = elsewhere(moving, cache.layout.prefix(0))
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", moving.node_id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", moving.node_id(to))
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)
        source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        assert await seen() == seen_before
        # Some keys of a commit do not exist yet, so the importing node replies TRYAGAIN.
        with pytest.raises(BackendError, match=r"(?i)multiple keys|TRYAGAIN|redirect"):
            await store.commit_runtime_state(commit(2, append("d", parent="c"), checkpoint=state))
        for node in (to, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", moving.node_id(to))
        await store.commit_runtime_state(commit(2, append("d", parent="c"), checkpoint=state))


@pytest.fixture(params=[kind for kind in table() if kind.name.startswith("valkey")], ids=lambda kind: kind.name)
def moving_atomically(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster that can move a slot atomically, such as Valkey 9."""
    kind: Kind = request.param
    request.node.user_properties.append(("server", kind.name))
    require(kind)
    with Cluster(kind) as cluster:
        yield cluster


async def test_a_slot_moved_key_by_key_under_load_loses_no_commit(moving):
    await _move_there_and_back(moving, moving.migrate_slot)


async def test_a_slot_moved_atomically_under_load_loses_no_commit(moving_atomically):
    await _move_there_and_back(moving_atomically, moving_atomically.migrate_slot_atomically)


async def _move_there_and_back(cluster: Cluster, move: Callable[[int, Member], None]) -> None:
    async with lash_redis.connect(cluster.url, options=ONE_SHARD) as cache:
        slot, home = slot_of_shard(cache), cluster.primary_of(cache.layout.prefix(0))
        writers = Writers(cache, [f"s{at}" for at in range(12)])
        async with writers.at_work():
            for to in (elsewhere(cluster, cache.layout.prefix(0)), home):
                await writers.during(move, slot, to)
                await writers.progress(3)
        assert await writers.lost() == {}
        assert set(writers.seen) <= {"HeadRevisionConflict"}
        assert (await cache.audit()).problems == ()


async def test_only_sessions_of_a_killed_primary_can_lose_commits(cluster, record_property):
    async with lash_redis.connect(cluster.url, options=StoreOptions(shards=8)) as cache:
        writers = Writers(cache, [f"s{at}" for at in range(24)])
        killed = cluster.primary_of(cache.layout.session("s0").head)
        there = {each for each in writers.sessions if cluster.primary_of(cache.layout.session(each).head) is killed}
        async with writers.at_work():
            await writers.during(cluster.kill, killed)
            await writers.during(cluster.wait_for_failover, killed)
            await writers.progress(5)
        lost = await writers.lost()
        record_property("lost", sum(lost.values()))
        record_property("acknowledged", sum(map(len, writers.acknowledged.values())))
        record_property("seen", dict(writers.seen))
        assert set(lost) <= there < set(writers.sessions)
        # Calls are retried during a failover. Only a writer that builds on a lost commit gets an error.
        assert set(writers.seen) <= {"HeadRevisionConflict", "SessionGone"}
        assert (await cache.audit()).problems == ()


async def test_a_commit_that_builds_on_a_commit_lost_in_a_failover_is_refused(cluster):
    """The replica misses two acknowledged commits, and then replaces the primary."""
    async with lash_redis.connect(cluster.url) as cache:
        store, other = cache.session("chat"), cache.session("chat")
        await store.commit_runtime_state(commit(None, append("a")), durability=Replicas(1, 5000))
        primary = cluster.primary_of(cache.layout.session("chat").head)
        replica = cluster.replica_of(primary)
        cluster.freeze(replica)
        primary.ask("CLIENT", "KILL", "TYPE", "replica")
        await store.commit_runtime_state(commit(1, append("b", parent="a")))
        lost = await store.commit_runtime_state(commit(2, append("c", parent="b")))
        cluster.kill(primary)
        cluster.thaw(replica)
        await asyncio.to_thread(cluster.wait_for_failover, primary)
        assert ids_of(await other.load_session(FullGraph())) == ["a"]
        with pytest.raises(HeadRevisionConflict, match=r"expected Some\(3\), actual 1"):
            await store.commit_runtime_state(commit(3, append("d", parent="c"), builds_on=lost.commit_id))
        for revision, node in ((1, "x"), (2, "y")):
            await other.commit_runtime_state(commit(revision, append(node, parent={1: "a", 2: "x"}[revision])))
        # Revision 3 exists again with other content, so a check of the number alone would accept the commit.
        with pytest.raises(HeadRevisionConflict, match=r"expected Some\(3\), actual 3"):
            await store.commit_runtime_state(commit(3, append("d", parent="y"), builds_on=lost.commit_id))
        assert ids_of(await other.load_session(FullGraph())) == ["a", "x", "y"]


async def test_calls_on_a_given_cluster_client_survive_a_failover(cluster):
    client = cluster.client(socket_timeout=2)
    cache = SessionCache(client, options=StoreOptions(shards=8))
    writers = Writers(cache, [f"s{at}" for at in range(12)])
    killed = cluster.primary_of(cache.layout.session("s0").head)
    async with writers.at_work():
        await writers.during(cluster.kill, killed)
        await writers.during(cluster.wait_for_failover, killed)
        await writers.progress(5)
    await writers.lost()
    assert set(writers.seen) <= {"HeadRevisionConflict", "SessionGone"}
    await client.aclose()


async def test_no_commit_after_the_failover_of_a_frozen_primary_is_lost(cluster, record_property):
    """A frozen primary keeps its connections, so calls to it time out and are sent again."""
    async with lash_redis.connect(f"{cluster.url}?socket_timeout=2", options=StoreOptions(shards=8)) as cache:
        writers = Writers(cache, [f"s{at}" for at in range(24)])
        frozen = cluster.primary_of(cache.layout.session("s0").head)
        async with writers.at_work():
            await writers.during(cluster.freeze, frozen)
            await writers.during(cluster.wait_for_failover, frozen)
            before = {session: len(nodes) for session, nodes in writers.acknowledged.items()}
            await writers.progress(5)
            await writers.during(cluster.thaw, frozen)
            await writers.during(cluster.wait_until_ok)
            await writers.progress(5)
        record_property("lost", sum((await writers.lost()).values()))
        for session, count in before.items():
            read = await cache.session(session).load_session(FullGraph())
            assert set(writers.acknowledged[session][count:]) <= set(ids_of(read))
        assert set(writers.seen) <= {"HeadRevisionConflict", "SessionGone"}


async def test_a_request_for_a_replica_is_sent_to_a_replica(cluster):
    async with lash_redis.connect(cluster.url) as cache:
        store = cache.session("chat")
        await store.commit_runtime_state(commit(None, append("a")), durability=Replicas(1, 5000))
        head = cache.layout.session("chat").head
        primary = cluster.primary_of(head)
        for is_replica, member in ((False, primary), (True, cluster.replica_of(primary))):
            before = calls_of(member, "hexists")
            request = Request([("HEXISTS", head, "facts")], head, replica=is_replica)
            assert await cache.shared._backend.send(request) == [1]
            assert calls_of(member, "hexists") == before + 1


def calls_of(member: Any, command: str) -> int:
    """The number of times that a server has run a command."""
    stats: Any = member.info("commandstats")
    return stats[f"cmdstat_{command}"]["calls"] if f"cmdstat_{command}" in stats else 0


def test_doctor_checks_every_node_of_a_cluster(cluster):
    cluster.nodes[4].ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        ended = CliRunner().invoke(app, ["doctor", "--url", cluster.url, "--json"])
    finally:
        cluster.nodes[4].ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    found = {each["check"]: (each["state"], each["found"]) for each in json.loads(ended.stdout)["findings"]}
    assert found["cluster"] == ("ok", "3 primaries, 3 replicas")
    assert found["eviction"] == ("fail", "allkeys-lru, no memory limit")
    assert found["permissions"][0] == "ok"


def test_doctor_fails_for_a_plain_url_of_a_cluster_node(cluster):
    ended = CliRunner().invoke(app, ["doctor", "--url", cluster.nodes[0].url, "--json"])
    (found,) = (each for each in json.loads(ended.stdout)["findings"] if each["check"] == "cluster")
    assert (found["state"], found["advice"]) == ("fail", "connect by redis+cluster:// instead")


def test_the_acl_rules_of_a_cluster_add_the_cluster_commands():
    plain = CliRunner().invoke(app, ["acl"]).stdout.split()
    clustered = CliRunner().invoke(app, ["acl", "--cluster"]).stdout.split()
    assert set(clustered) - set(plain) == {
        "+asking", "+cluster|slots", "+readonly", "+spublish", "+ssubscribe", "+sunsubscribe",
    }  # fmt: skip


def spread(shards: int, nodes: int, namespace: str) -> tuple[int, int]:
    """The fewest and the most shards of a node if each node has an equal share of the slots."""
    layout = Layout(namespace, shards)
    served = Counter(slot_of(layout.prefix(shard)) * nodes // 16_384 for shard in range(shards))
    return min(served[node] for node in range(nodes)), max(served.values())


@pytest.mark.parametrize(
    ("shards", "nodes", "fewest", "most"),
    [
        (64, 3, 21, 22), (64, 6, 10, 11), (64, 16, 4, 4), (64, 100, 0, 2),
        (1024, 3, 340, 342), (1024, 6, 170, 172), (1024, 16, 64, 64), (1024, 100, 9, 12),
    ],
)  # fmt: skip
def test_shards_spread_evenly_over_the_nodes_of_a_cluster(shards, nodes, fewest, most):
    for namespace in ("default", "acme", "a", "tenant-7.eu"):
        low, high = spread(shards, nodes, namespace)
        assert fewest <= low <= high <= most
