"""`make faults`: run every fault with large counts and print the tables of docs/guarantees/evidence.md.

`python -m tests.faults streams inputs` prints only these tables.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence

from lash_redis.embedded import EmbeddedServer
from tests.support import failovers, outages, stream_faults, workers
from tests.support.accounts import HEADER, Row
from tests.support.boundaries import TURNS, Moment, cut, freeze, kill, sweep
from tests.support.groups import Cluster, SentinelGroup
from tests.support.servers import Kind, table
from tests.support.stream_accounts import INPUT_HEADER, STREAM_HEADER, InputRow, StreamRow

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


async def stream_rows() -> AsyncIterator[StreamRow]:
    """What became of the events of streams."""
    at_each, executed = stream_faults.at_each_command_of_a_producer, (Moment.EXECUTED,)
    for kind in KINDS:
        with EmbeddedServer(binary=kind.binary, port=0) as server:
            url = server.url
            yield await at_each("producer killed (-9) at each command", kind, url, stream_faults.kill_producer)
            yield await at_each("producer's connection cut there", kind, url, stream_faults.cut_producer)
            frozen = "producer frozen there beyond its ttl, then resumed"
            yield await at_each(frozen, kind, url, stream_faults.freeze_producer, moments=executed)
            yield await stream_faults.at_each_command_of_a_follower(kind, url)
        restarted = stream_faults.killed_server(kind)
        load = {"count": 4, "events": 500}
        yield await stream_faults.stream_under("server killed (-9), fsync always", kind, restarted, times=10, **load)
    for name, group in (("cluster", Cluster), ("Sentinel", SentinelGroup)):
        for is_frozen in (False, True):
            made = group()
            done = "frozen until another has taken over, then resumed" if is_frozen else "killed (-9)"
            site = stream_faults.failing_group(made, freeze=is_frozen)
            yield await stream_faults.stream_under(f"{name}: primary {done}", made.kind, site, times=5, **load)


async def input_rows() -> AsyncIterator[InputRow]:
    """What became of pending inputs."""
    load = {"count": 3, "inputs": 150}
    for kind in KINDS:
        fail, site = stream_faults.inputs_under, stream_faults.killed_server
        yield await fail("answering worker killed (-9)", kind, site(kind), times=10, kills_workers=True, **load)
        yield await fail("server killed (-9), fsync always", kind, site(kind), times=10, **load)
    for name, group in (("cluster", Cluster), ("Sentinel", SentinelGroup)):
        made = group()
        site = stream_faults.failing_group(made, freeze=False)
        yield await stream_faults.inputs_under(f"{name}: primary killed (-9)", made.kind, site, times=5, **load)


COMPETITION = "| 8 workers on one session | server | turns | model calls | wasted | a second |\n" + "| --- " * 6 + "|"


async def competition(kind: Kind) -> AsyncIterator[str]:
    """Compare `update` and leases with model calls of 200 ms."""
    for way in (workers.by_update, workers.by_lease):
        with EmbeddedServer(binary=kind.binary, port=0) as server:
            row, speed = await outages.compete(server.url, kind.name, way, count=8, turns=10, model_seconds=0.2)
        yield f"| {way.__name__} | {kind.name} | {row.landed} | {row.paid} | {row.wasted} | {speed:.1f} |"


TABLES: dict[str, tuple[str, Callable[[], AsyncIterator[object]]]] = {
    "turns": (HEADER, rows),
    "streams": (STREAM_HEADER, stream_rows),
    "inputs": (INPUT_HEADER, input_rows),
    "competition": (COMPETITION, lambda: competition(KINDS[-1])),
}


async def main(names: Sequence[str], say: Callable[[str], None]) -> None:
    for name in names or TABLES:
        header, lines = TABLES[name]
        say(header)
        async for line in lines():
            say(str(line))
        say("")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:], lambda line: print(line, flush=True)))
