"""`stats`: exact counts from the heads, memory of a bounded sample, and the rest of the figures without MEMORY."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from lash_redis import (
    Append,
    DocumentWrite,
    EventPayload,
    HydratedSessionCheckpoint,
    RuntimeCommit,
    SessionCache,
    SessionNodeRecord,
    SessionPolicy,
    SessionStoreCreateRequest,
    ToolState,
)
from lash_redis.cli import app
from tests.support.command_line import within

runner = CliRunner(env={"COLUMNS": "80"})


async def sessions(cache: SessionCache) -> None:
    """Seven sessions of three nodes, one of them with a tombstone; one session without a commit; one with documents."""
    for number in range(7):
        name = f"s{number}"
        nodes = [SessionNodeRecord(f"m{at}", f"m{at - 1}" if at else None, "", EventPayload(at)) for at in range(3)]
        state = HydratedSessionCheckpoint(tool_state=ToolState(1), execution_state=b"state")
        await cache.session(name).commit_runtime_state(
            RuntimeCommit(name, 0, graph=Append(nodes, "m2"), checkpoint=state)
        )
    await cache.session("s3").tombstone_nodes(["m1"])
    await cache.create(SessionStoreCreateRequest("created", SessionPolicy(model="m")))
    await cache.documents("thread").write(DocumentWrite(put={b"ca": b"x" * 1000, b"p1": b"y"}))


def measured(url: str, *more: str) -> dict[str, Any]:
    ended = runner.invoke(app, ["stats", "--json", "--url", url, *more])
    assert ended.exit_code == 0, ended.output
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


def test_stats_count_sessions_and_nodes_and_measure_a_sample(url: str) -> None:
    within(url, sessions, shards=3)
    found = measured(url)
    assert (found["session_count"], found["node_count"], found["unreadable_count"]) == (9, 20, 0)
    assert found["document_count"] == 2
    with redis.Redis.from_url(url) as client:
        own = [key for key in client.keys("*") if b":blob:" not in key and key.rpartition(b"}:")[2].count(b":") == 1]
        blobs = client.keys("*:blob:*")
        memory = {
            "sample_session_count": 9,
            "sample_bytes": sum(client.memory_usage(key) or 0 for key in own if b"lash2" in key),
            "sample_blob_count": len(blobs),
            "sample_blob_bytes": sum(client.memory_usage(key) or 0 for key in blobs),
        }
    assert found["memory"] == {**memory, "estimated_bytes": memory["sample_bytes"]}


def test_the_sample_is_bounded_and_its_size_is_named(url: str) -> None:
    within(url, sessions, shards=3)
    memory = measured(url, "--sample", "3")["memory"]
    assert memory["sample_session_count"] == 3
    assert memory["estimated_bytes"] == round(memory["sample_bytes"] / 3 * 9)
    printed = runner.invoke(app, ["stats", "--sample", "3", "--url", url]).stdout
    assert [line[:12].rstrip() for line in printed.splitlines()] == [
        *("namespace", "sessions", "nodes", "documents", "memory", "blobs")
    ]
    assert "the mean of a sample of 3 sessions is" in printed


def test_stats_use_neither_keys_nor_scan_and_write_nothing(url: str) -> None:
    within(url, sessions, shards=3)
    with redis.Redis.from_url(url) as client:
        before = {key: client.dump(key) for key in client.keys("*")}
        client.config_resetstat()
        measured(url)
        called = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
        assert {key: client.dump(key) for key in client.keys("*")} == before
    assert {"get", "zcard", "zrangebyscore", "hmget", "memory|usage"} <= called
    assert not called & {"keys", "scan", "evalsha", "eval", "set"}


def test_an_expired_session_is_not_counted_and_an_unreadable_one_is(url: str) -> None:
    within(url, sessions, shards=3)
    with redis.Redis.from_url(url) as client:
        (broken,) = client.keys("*head:s1")
        client.hset(broken, "facts", b"nonsense")
        client.delete(*client.keys("*:s2"))
    found = measured(url)
    assert (found["session_count"], found["node_count"], found["unreadable_count"]) == (8, 14, 1)
    assert "unreadable  1 session; run lash-redis audit" in runner.invoke(app, ["stats", "--url", url]).stdout


def test_stats_of_a_namespace_that_is_not_in_use(url: str) -> None:
    ended = runner.invoke(app, ["stats", "--url", url])
    assert (ended.exit_code, ended.stdout) == (0, "namespace 'default' is not in use; nothing to do\n")
    assert measured(url)["in_use"] is False


@contextmanager
def account(url: str, role: str) -> Iterator[str]:
    """The URL of an account that `acl` prints for a role."""
    lines = runner.invoke(app, ["acl"]).stdout.splitlines()
    (rule,) = (line for line in lines if line.startswith(f"ACL SETUSER lash-default-{role} "))
    with redis.Redis.from_url(url) as client:
        client.execute_command(*rule.replace("<password>", "secret").split())
        try:
            scheme, _, rest = url.partition("://")
            yield f"{scheme}://lash-default-{role}:secret@{rest}"
        finally:
            client.execute_command("ACL", "DELUSER", f"lash-default-{role}")


@pytest.mark.parametrize(
    ("role", "may_measure"), [("loader", False), ("runner", False), ("checker", True), ("auditor", True)]
)
def test_only_checker_and_auditor_may_measure_and_the_others_get_the_rest(
    url: str, role: str, may_measure: bool
) -> None:
    within(url, sessions, shards=3)
    with account(url, role) as address:
        found = measured(address)
        printed = runner.invoke(app, ["stats", "--url", address]).stdout
    assert (found["session_count"], found["node_count"]) == (9, 20)
    assert (found["memory"] is not None, found["memory_refusal"] is None) == (may_measure, may_measure)
    assert ("memory      not measured: " in printed) is not may_measure
    assert ("use an account that may run MEMORY USAGE: the checker" in printed) is not may_measure
