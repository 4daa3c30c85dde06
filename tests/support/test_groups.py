"""Groups start, fail over, recover and stop as `groups.py` documents."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.groups import Cluster, Member, SentinelGroup
from tests.support.paths import ROOT
from tests.support.processes import is_alive
from tests.support.servers import Kind, require, table

pytestmark = pytest.mark.slow

KINDS = [kind for kind in table() if kind.real]
SOON = 15.0

OWNER = """
import sys, time
from tests.support.groups import Cluster
from tests.support.servers import table
with Cluster(next(kind for kind in table() if kind.name == sys.argv[1])) as cluster:
    print(cluster.root, *(node.pid for node in cluster.nodes), flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    request.node.user_properties.append(("server", request.param.name))
    require(request.param)
    return request.param


@pytest.fixture
def cluster(kind: Kind) -> Iterator[Cluster]:
    with Cluster(kind) as cluster:
        yield cluster


@pytest.fixture
def sentinels(kind: Kind) -> Iterator[SentinelGroup]:
    with SentinelGroup(kind, password="data pass", sentinel_password="word") as group:
        yield group


def other_primary(cluster: Cluster, than: Member) -> Member:
    return next(node for node in cluster.primaries() if node is not than)


async def test_a_cluster_serves_keys_on_every_primary(cluster):
    client = cluster.client()
    for at in range(20):
        await client.set(f"key{at}", at)
    assert [int(await client.get(f"key{at}")) for at in range(20)] == list(range(20))
    assert len({cluster.primary_of(f"key{at}").port for at in range(20)}) == 3
    await client.aclose()


def test_a_slot_moves_with_its_keys(cluster):
    slot, source = cluster.slot_of("{tag}"), cluster.primary_of("{tag}")
    for at in range(50):
        source.ask("SET", f"{{tag}}{at}", at)
    to = other_primary(cluster, source)
    halves = []
    cluster.migrate_slot(slot, to, moving=lambda: halves.append(source.ask("CLUSTER", "COUNTKEYSINSLOT", slot)))
    assert halves == [20]
    assert cluster.primary_of("{tag}") is to
    assert to.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 50
    if cluster.moves_slots_atomically:
        cluster.migrate_slot_atomically(slot, source)
        assert cluster.primary_of("{tag}") is source
        assert source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 50


def test_a_replica_replaces_a_killed_primary_that_restarts_as_its_replica(cluster):
    primary = cluster.primary_of("key")
    replica = cluster.replica_of(primary)
    primary.ask("SET", "key", "value")
    primary.ask("WAIT", 1, 5000)
    cluster.kill(primary)
    cluster.wait_for_failover(primary)
    assert cluster.primary_of("key") is replica
    assert replica.ask("GET", "key") == b"value"
    cluster.restart(primary)
    cluster.wait_until_ok()
    assert cluster.replica_of(replica) is primary


async def test_sentinels_replace_a_killed_primary(sentinels):
    client = sentinels.managed()
    await client.set("key", "value")
    await client.wait(2, 5000)
    old = sentinels.primary
    sentinels.kill(old)
    sentinels.wait_for_failover(old)
    await client.connection_pool.disconnect()
    assert await client.get("key") == b"value"
    for opened in (client, *sentinels.opened(client)):
        await opened.aclose()
    sentinels.restart(old)
    sentinels.wait_until_ok()
    assert old in sentinels.replicas()


def test_sentinels_replace_a_frozen_primary(sentinels):
    old = sentinels.primary
    sentinels.freeze(old)
    sentinels.wait_for_failover(old)
    sentinels.heal()
    assert sentinels.primary is not old


def test_a_group_leaves_no_processes_or_files_if_its_owner_is_killed(kind):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, kind.name], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    root, *pids = owner.stdout.readline().split()
    assert Path(root).is_dir()
    owner.send_signal(signal.SIGKILL)
    owner.wait(SOON)
    owner.stdout.close()
    deadline = time.monotonic() + SOON
    while Path(root).exists() or any(is_alive(int(pid)) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
