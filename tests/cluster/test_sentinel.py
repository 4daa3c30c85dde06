"""Every operation works on a real primary under Sentinel, also when the primary is lost under load."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import CliRunner

import lash_redis
from lash_redis import FullGraph, InputNotPending, Replicas, RuntimeCommit, StoreOptions
from lash_redis.acl import ROLES
from lash_redis.cli.commands import app
from lash_redis.protocol import scripts
from tests.laws.test_acl import everything
from tests.support.builders import append
from tests.support.groups import SentinelGroup
from tests.support.servers import Kind, require, table
from tests.support.writers import Writers

SESSIONS = [f"s{at}" for at in range(12)]


async def test_every_operation_works_under_sentinel(sentinels):
    async with lash_redis.connect(sentinels.url) as cache:
        await everything(cache, audits=True)


async def test_nodes_and_sentinels_may_have_different_passwords():
    with SentinelGroup(password="data /#?@:", sentinel_password="word &=%") as group:
        async with lash_redis.connect(group.url) as cache:
            await everything(cache, audits=True)
            await cache.preload()


def test_doctor_checks_the_primary_and_shows_no_password():
    with SentinelGroup(password="hidden", sentinel_password="secret") as group:
        ended = CliRunner().invoke(app, ["doctor", "--url", group.url])
    assert "primary, 2 replicas" in ended.stdout
    assert "every operation works" in ended.stdout
    assert "hidden" not in ended.stdout
    assert "secret" not in ended.stdout


async def test_preload_loads_the_scripts_on_every_node_under_sentinel(sentinels):
    async with lash_redis.connect(sentinels.url) as cache:
        await cache.preload()
    shas = [script.sha for script in scripts.every()]
    for node in sentinels.nodes:
        assert set(node.ask("SCRIPT", "EXISTS", *shas)) == {1}


@pytest.mark.parametrize("role", ROLES)
async def test_each_acl_role_permits_its_operations_under_sentinel(role, sentinels):
    for node in sentinels.nodes:
        node.ask("ACL", "SETUSER", role, "reset", "on", ">pw", *lash_redis.acl.rules("acme", role))
    async with lash_redis.connect(sentinels.url, namespace="acme") as admin:
        await admin.preload()
    options = StoreOptions(shards=2, allow_eval=role != "runner")
    url = sentinels.url.replace("://", f"://{role}:pw@")
    async with lash_redis.connect(url, namespace="acme", options=options) as cache:
        await everything(cache, audits=role == "auditor")


@pytest.mark.parametrize("kind", [kind for kind in table() if kind.real], ids=lambda kind: kind.name)
async def test_callers_see_no_error_when_a_primary_is_killed_under_load(kind: Kind, request, record_property):
    request.node.user_properties.append(("server", kind.name))
    require(kind)
    with SentinelGroup(kind) as group:
        async with lash_redis.connect(group.url) as cache:
            writers = Writers(cache, SESSIONS)
            killed = group.primary
            async with writers.at_work():
                await writers.during(group.kill, killed)
                await writers.during(group.wait_for_failover, killed)
                await writers.progress(5)
            record_property("lost", sum((await writers.lost()).values()))
            record_property("acknowledged", sum(map(len, writers.acknowledged.values())))
            assert set(writers.seen) <= {"HeadRevisionConflict", "SessionGone"}
            assert (await cache.audit()).problems == ()


async def test_confirmed_inputs_and_answers_survive_a_failover(sentinels):
    """One input is pending when the primary is killed, the other one was consumed."""
    async with lash_redis.connect(sentinels.url) as cache:
        store = cache.session("chat")
        for name in ("answered", "pending"):
            assert (await store.enqueue_input(name, name, durability=Replicas(2, 2_000))).durable
        made = RuntimeCommit("chat", graph=append("a"), consumes=["answered"])
        assert (await store.commit_runtime_state(made, durability=Replicas(2, 2_000))).durable
        killed = sentinels.primary
        await asyncio.to_thread(sentinels.kill, killed)
        await asyncio.to_thread(sentinels.wait_for_failover, killed)
        assert [each.input_id for each in await store.pending_inputs()] == ["pending"]
        for name, is_consumed in (("answered", True), ("pending", False)):
            assert ((await store.enqueue_input(name, name)).enqueued_at is None) is is_consumed
        assert (await store.commit_runtime_state(made)).replayed
        with pytest.raises(InputNotPending):
            await store.commit_runtime_state(RuntimeCommit("chat", 1, consumes=["answered"]))
        await store.commit_runtime_state(RuntimeCommit("chat", 1, consumes=["pending"]))
        assert await store.pending_inputs() == []


async def test_calls_on_a_given_sentinel_client_survive_a_failover(sentinels):
    client = sentinels.managed(socket_timeout=2)
    cache = lash_redis.SessionCache(client)
    writers = Writers(cache, SESSIONS)
    killed = sentinels.primary
    async with writers.at_work():
        await writers.during(sentinels.kill, killed)
        await writers.during(sentinels.wait_for_failover, killed)
        await writers.progress(5)
    await writers.lost()
    assert set(writers.seen) <= {"HeadRevisionConflict", "SessionGone"}
    for opened in (client, *sentinels.opened(client)):
        await opened.aclose()


SOCKET_TIMEOUT = 2


async def test_no_commit_after_the_failover_of_a_frozen_primary_is_lost(sentinels, record_property):
    async with lash_redis.connect(f"{sentinels.url}?socket_timeout={SOCKET_TIMEOUT}") as cache:
        writers = Writers(cache, SESSIONS)
        frozen = sentinels.primary
        async with writers.at_work():
            await writers.during(sentinels.freeze, frozen)
            await writers.during(sentinels.wait_for_failover, frozen)
            before = {session: len(nodes) for session, nodes in writers.acknowledged.items()}
            await writers.progress(5)
            # Requests that wait for the frozen primary must end before: it would make them and acknowledge them.
            await asyncio.sleep(2 * SOCKET_TIMEOUT)
            await writers.during(sentinels.thaw, frozen)
            await writers.progress(20)
        record_property("lost", sum((await writers.lost()).values()))
        for session, count in before.items():
            read = await cache.session(session).load_session(FullGraph())
            stored = {node.node_id for node in read.graph.nodes}
            assert set(writers.acknowledged[session][count:]) <= stored
        assert set(writers.seen) <= {"HeadRevisionConflict", "SessionGone"}
