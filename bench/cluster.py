"""How long does an event take from the producer to its followers over a cluster, compared with plain pub/sub?

The cluster has three primaries and three replicas, which the program starts. Pub/sub uses one of its nodes.
"""

from __future__ import annotations

import asyncio

from bench.report import git_commit, table
from bench.streams import time_rows
from tests.support.groups import Cluster


def main() -> None:
    with Cluster() as cluster:
        rows = asyncio.run(time_rows(cluster.url, cluster.nodes[0].url, quick=False))
    print(f"{cluster.kind.name}, 3 primaries, 3 replicas, loopback TCP, commit {git_commit()}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
