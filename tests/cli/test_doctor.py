"""The findings of `doctor` that decide its exit code, and the reader of each advice."""

from __future__ import annotations

import json

import pytest
import redis
from typer.testing import CliRunner

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
