"""The findings of `doctor` that decide its exit code, and the reader of each advice."""

from __future__ import annotations

import json

import pytest
import redis
from typer.testing import CliRunner

from lash_redis.acl import rules
from lash_redis.cli import app

runner = CliRunner(env={"COLUMNS": "80"})


def findings(url: str, code: int) -> dict[str, dict[str, str | None]]:
    ended = runner.invoke(app, ["doctor", "--json", "--url", url])
    assert ended.exit_code == code
    document = json.loads(ended.stdout)
    assert document["ok"] is (code == 0)
    return {finding["check"]: finding for finding in document["findings"]}


@pytest.mark.parametrize(
    ("policy", "limit", "advice"),
    [
        ("allkeys-lru", 0, "once a memory limit is set, allkeys-lru drops keys of live sessions (SessionEvicted)"),
        ("allkeys-lfu", 10**9, "when memory is full, allkeys-lfu drops keys of live sessions (SessionEvicted)"),
        (
            "volatile-ttl",
            10**9,
            "when memory is full, volatile-ttl drops keys of live sessions that have a ttl (SessionEvicted)",
        ),
    ],
)
def test_every_policy_that_evicts_is_unfit(url: str, policy: str, limit: int, advice: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory", limit)
        client.config_set("maxmemory-policy", policy)
        try:
            eviction = findings(url, 1)["eviction"]
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
    assert eviction["state"] == "fail"
    assert eviction["advice"] == f"set maxmemory-policy noeviction: {advice}"
    assert eviction["audience"] == "operator"


def test_an_advice_names_its_reader(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("lash1:layout:default", "layout=9 shards=64")
    found = findings(url, 1)
    readers = {name: finding["audience"] for name, finding in found.items() if finding["advice"]}
    assert readers == {"persistence": "operator", "layout": "developer"}
    assert found["version"]["audience"] is None
    printed = runner.invoke(app, ["doctor", "--url", url]).stdout
    assert "→ for operators: set appendonly yes" in printed
    assert "→ for developers: use the version of lash_redis" in printed


def test_a_full_server_gets_the_advice_to_free_memory(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory", 1000)
        try:
            permissions = findings(url, 1)["permissions"]
        finally:
            client.config_set("maxmemory", 0)
    assert (permissions["state"], permissions["advice"]) == ("fail", "free memory, or raise maxmemory")
    assert "OOM" in (permissions["found"] or "")


def test_an_account_of_a_store_is_told_to_run_doctor_as_an_administrator(url: str) -> None:
    """It has every right that `lash-redis acl` prints."""
    with redis.Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules("default", "loader"))
        try:
            found = findings(url.replace("://", "://app:pw@"), 0)
        finally:
            client.execute_command("ACL", "DELUSER", "app")
    advice = {name: finding["advice"] for name, finding in found.items() if finding["state"] == "unknown"}
    administrator = "run doctor as an administrator: the accounts of `lash-redis acl` lack this right"
    denied = ("version", "cluster", "replication", "eviction", "persistence", "permissions")
    assert advice == {**dict.fromkeys(denied, administrator), "latency": ""}
    assert not any("grant the account" in (finding["found"] or "") for finding in found.values())
