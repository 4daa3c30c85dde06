"""The examples of the pages about deployment, on the groups of servers that they are about."""

from __future__ import annotations

from tests.support.doc_examples import run_examples
from tests.support.groups import Cluster, SentinelGroup
from tests.support.paths import ROOT

OPERATIONS = ROOT / "docs" / "operations"


def test_the_example_for_sentinel_waits_for_all_replicas(sentinels: SentinelGroup) -> None:
    assert run_examples(OPERATIONS / "sentinel.md", sentinels.url)["durable"] is True


def test_the_example_for_a_cluster_lists_the_chats_of_all_nodes(cluster: Cluster) -> None:
    names = run_examples(OPERATIONS / "cluster.md", cluster.url)
    assert sorted(names["listed"]) == [f"chat-{number}" for number in range(10)]
