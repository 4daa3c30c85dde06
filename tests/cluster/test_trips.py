"""A replica that lags behind is promoted between the two round trips of a read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

import lash_redis
from lash_redis import ActivePath, Append, FullGraph, HydratedSessionCheckpoint, Replicas, SessionCache, StoreOptions
from tests.support.builders import chain, commit, ids_of, tools
from tests.support.groups import PATIENCE, Cluster, Member
from tests.support.trips import Trips, before

OPTIONS = StoreOptions(shards=1, blob_cache_bytes=0)


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def cut_off_replicas(primary: Member) -> None:
    """End the replication of a primary. Its replicas cannot authenticate again, and clients stay connected."""
    primary.ask("CONFIG", "SET", "requirepass", "changed")
    primary.password = "changed"
    primary.ask("CLIENT", "KILL", "TYPE", "replica")


def admit_replicas(primary: Member) -> None:
    primary.ask("CONFIG", "SET", "requirepass", "")
    primary.password = None


def promote(replica: Member, primary: Member) -> None:
    """Promote the replica with what it has. Return when the former primary follows it."""
    replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
    until(lambda: primary.info("replication")["role"] == "slave")


async def turn(cache: SessionCache, revision: int, graph: Append, label: str, **more: Replicas) -> None:
    state = HydratedSessionCheckpoint(tool_state=tools(label), execution_state=label.encode())
    await cache.session("chat").commit_runtime_state(commit(revision, graph, checkpoint=state), **more)


@pytest.mark.parametrize("scope", [ActivePath(), ActivePath("a"), FullGraph()], ids=["path", "path to a", "graph"])
async def test_a_read_during_the_promotion_of_a_lagging_replica_returns_its_revision(scope, cluster: Cluster):
    async with lash_redis.connect(cluster.url, options=OPTIONS) as cache:
        await turn(cache, 0, Append(chain("a", "b"), "b"), "older", durability=Replicas(1, 5_000))
        primary = cluster.primary_of(cache.layout.session("chat").head)
        replica = cluster.replica_of(primary)
        await cache.session("chat").touch()  # with the read, it opens the connections that are used below
        await cache.session("chat").load_session(ActivePath())
        await asyncio.to_thread(cut_off_replicas, primary)
        try:
            await turn(cache, 1, Append(chain("c", "d", parent="b"), "d"), "ahead")
            assert ids_of(await cache.session("chat").load_session(ActivePath())) == ["a", "b", "c", "d"]
            with Trips(cache, before(2, lambda: asyncio.to_thread(promote, replica, primary))) as trips:
                read = await cache.session("chat").load_session(scope)
        finally:
            await asyncio.to_thread(admit_replicas, primary)
        assert (read.head_revision, read.checkpoint.execution_state) == (1, b"older")
        assert read.checkpoint.tool_state == tools("older")
        assert ids_of(read) == (["a"] if scope == ActivePath("a") else ["a", "b"])
        assert trips.count <= 5
