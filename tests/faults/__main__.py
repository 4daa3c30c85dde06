"""`make faults`: run every fault with large counts and print the failover table of docs/guarantees.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from lash_redis.embedded import EmbeddedServer
from tests.support import failovers, outages, workers
from tests.support.accounts import HEADER, Row
from tests.support.boundaries import TURNS, Moment, cut, freeze, kill, sweep
from tests.support.groups import Cluster, SentinelGroup
from tests.support.servers import Kind, table

KINDS = [kind for kind in table() if kind.real and not kind.missing]


async def boundaries_of(kind: Kind, url: str) -> AsyncIterator[Row]:
    name, late = kind.name, [Moment.EXECUTED]
    yield await sweep("worker killed (-9) at each boundary of each method", name, url, kill)
    yield await sweep("the same, no script known to the server", name, url, kill, methods=TURNS, forgetful=True)
    yield await sweep("connection cut or reply dropped there, worker alive", name, url, cut)
    yield await sweep("worker frozen beyond its lease, then resumed", name, url, freeze, methods=TURNS, moments=late)


async def rows() -> AsyncIterator[Row]:
    for kind in KINDS:
        with EmbeddedServer(binary=kind.binary, port=0) as server:
            async for row in boundaries_of(kind, server.url):
                yield row
        with EmbeddedServer(binary=kind.binary, port=0) as server:
            yield await outages.flush_scripts(server.url, kind.name, count=8, turns=200)
        for fsync in ("always", "everysec", None):
            yield await outages.kill_server(kind, fsync, kills=20, count=4, turns=250)
    for group, all_replicas in ((Cluster, 1), (SentinelGroup, 2)):
        for replicas in (0, all_replicas):
            for is_frozen in (False, True):
                lost = {"freeze": is_frozen, "replicas": replicas}
                yield await failovers.lose_primary(group(), **lost, times=5, count=8, turns=250)
    yield await failovers.move_slot(Cluster(), times=50, count=8, turns=250)


COMPETITION = "| 8 workers on one session | server | turns | model calls | wasted | a second |\n" + "| --- " * 6 + "|"


async def competition(kind: Kind) -> AsyncIterator[str]:
    """Compare `update` and leases with model calls of 200 ms."""
    for way in (workers.by_update, workers.by_lease):
        with EmbeddedServer(binary=kind.binary, port=0) as server:
            row, speed = await outages.compete(server.url, kind.name, way, count=8, turns=10, model_seconds=0.2)
        yield f"| {way.__name__} | {kind.name} | {row.landed} | {row.paid} | {row.wasted} | {speed:.1f} |"


async def main(say: Callable[[str], None]) -> None:
    say(HEADER)
    async for row in rows():
        say(str(row))
    say("")
    say(COMPETITION)
    async for line in competition(KINDS[-1]):
        say(line)


if __name__ == "__main__":
    asyncio.run(main(lambda line: print(line, flush=True)))
