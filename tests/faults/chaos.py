"""`make chaos`: random work of six processes through unreliable proxies, on servers that fail, and an account of it.

The same seed gives each actor the same sequence of steps, and the servers the same sequence of faults. The moments
are not reproducible: which command a proxy cuts, which worker commits first, and how far each actor gets.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.chaos.account import Finding
from tests.support.chaos.faults import Site
from tests.support.chaos.field import HEADER, Outcome, Plan, damages_of, errors_of, row_of, run
from tests.support.groups import Cluster, SentinelGroup
from tests.support.outages import one_server
from tests.support.servers import table

SHOWN = 10
"""Findings of one kind that are printed. Of the first one of each kind, the history of its session is printed, too."""


@asynccontextmanager
async def site_of(where: str) -> AsyncIterator[tuple[Site, str]]:
    """Start the servers of a run; yields them and their name."""
    if where == "single":
        (kind,) = (kind for kind in table() if kind.name == "valkey-9")
        async with one_server(kind, "always") as member:
            yield member, kind.name
        return
    group = Cluster() if where == "cluster" else SentinelGroup()
    await asyncio.to_thread(group.start)
    try:
        yield group, group.kind.name
    finally:
        await asyncio.to_thread(group.stop)


def show(outcome: Outcome, where: str) -> None:
    """Print what breaks a promise, the history of its sessions, and how to run it again."""
    print(f"\n{outcome.name}, faults of the servers: {damages_of(outcome)}")
    print(f"{outcome.name}, errors that workers received: {errors_of(outcome)}")
    broken = outcome.account.broken
    if not broken:
        return
    by_kind: dict[str, list[Finding]] = {}
    for finding in broken:
        by_kind.setdefault(finding.kind, []).append(finding)
    for kind, findings in by_kind.items():
        print(f"\n{kind}: {len(findings)}, of which at most {SHOWN} are shown")
        for finding in findings[:SHOWN]:
            print(f"  {finding}")
    for session in dict.fromkeys(findings[0].session for findings in by_kind.values()):
        print(f"\nHistory of {session}, seed {outcome.plan.seed}; seconds since the begin of the run:")
        for line in outcome.history(session):
            print(f"    {line}")
    again = f"--seconds {outcome.plan.seconds:g} --seed {outcome.plan.seed} --on {where}"
    print(f"\nRun again: python -m tests.faults.chaos {again}", flush=True)


async def main(arguments: argparse.Namespace) -> int:
    broken = 0
    outcomes = []
    for where in arguments.on.split(","):
        async with site_of(where) as (site, name):
            outcome = await run(site, name, Plan(arguments.seconds, arguments.seed, arguments.steps))
        outcomes.append(outcome)
        broken += len(outcome.account.broken)
        show(outcome, where)
    print(f"\n{HEADER}")
    for outcome in outcomes:
        print(row_of(outcome))
    return 1 if broken else 0


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the workers act, on each kind of site")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100_000, help="the most steps of one actor")
    parser.add_argument("--on", default="cluster,sentinel,single", help="which of cluster, sentinel and single")
    arguments = parser.parse_args(words)
    unknown = set(arguments.on.split(",")) - {"cluster", "sentinel", "single"}
    if unknown:
        parser.error(f"--on: expected cluster, sentinel or single, got {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parsed(sys.argv[1:]))))
