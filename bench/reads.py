"""How long does a read of a session take compared with one pipeline that fetches the same bytes and decodes none?

Every read is made by a new handle, as a worker makes one for a request. In a `warm` read this process has the session's
blobs cached. In a `cold` read it caches no blobs (`blob_cache_bytes=0`), so each read fetches them in a second round
trip. Both caches have checked the layout of the namespace before, as every cache has from its second read on.
"""

from __future__ import annotations

import msgpack
import redis.asyncio as redis

from bench import bare, workload
from bench.measure import Contender, interleaved, server_costs, traffic, wire_to
from bench.report import Row, server_rows, time_row
from lash_redis import ActivePath, FullGraph, PersistedSessionRead, SessionCache, StoreOptions, ToolState, connect

NAMESPACE = "bench-reads"


def full(cache: SessionCache, session_id: str) -> Contender:
    return Contender(lambda: cache.session(session_id).load_session(FullGraph()))


def path(cache: SessionCache, session_id: str) -> Contender:
    return Contender(lambda: cache.session(session_id).load_session(ActivePath()))


def page(cache: SessionCache, session_id: str, before: str | None = None) -> Contender:
    return Contender(lambda: cache.session(session_id).load_session(ActivePath(limit=20, before=before)))


def decoded(cache: SessionCache, session_id: str) -> Contender:
    async def run() -> tuple[PersistedSessionRead | None, list[object]]:
        read = await cache.session(session_id).load_session(FullGraph())
        assert read is not None
        return read, [node.event() for node in read.graph.nodes]

    return Contender(run)


async def measure(client: redis.Redis, url: str, *, quick: bool) -> list[Row]:
    uncached = StoreOptions(blob_cache_bytes=0)
    async with connect(url, namespace=NAMESPACE) as warm, connect(url, namespace=NAMESPACE, options=uncached) as cold:
        return await _measure(client, url, warm, cold, quick=quick)


async def _measure(client: redis.Redis, url: str, warm: SessionCache, cold: SessionCache, *, quick: bool) -> list[Row]:
    rounds = 60 if quick else 400
    tools = workload.tool_state()
    plain = {}
    for nodes in (10, 1000):
        plain[nodes] = bare.Session(client, f"read-{nodes}", msgpack.packb(tools.to_msgpack()))
        await plain[nodes].begin(workload.chain(0, nodes, None))
        await workload.Session(warm, f"{nodes}").begin(tools, workload.chain(0, nodes, None))

    thousand = {"warm": full(warm, "1000"), "cold": full(cold, "1000"), "bare": Contender(plain[1000].read)}
    times = await interleaved(thousand, rounds)
    rows = [
        time_row("full read of 1,000 nodes, warm / bare", times, "warm", "bare", 1.0),
        time_row("full read of 1,000 nodes, cold / bare", times, "cold", "bare", 1.0),
    ]
    costs = await server_costs(client, thousand, repeats=20, blocks=5 if quick else 20)
    rows += server_rows("full read of 1,000 nodes, warm / bare", costs, "warm", "bare", 1.1)
    rows += server_rows("full read of 1,000 nodes, cold / bare", costs, "cold", "bare", 1.1)
    rows += await _wire_rows(url)

    times = await interleaved(
        {"lash_redis": decoded(warm, "1000"), "bare": Contender(plain[1000].read_decoded)}, rounds // 2
    )
    rows.append(time_row("full read, every payload decoded / bare + unpackb", times, "lash_redis", "bare", 1.2))
    few = {"warm": full(warm, "10"), "cold": full(cold, "10"), "bare": Contender(plain[10].read)}
    times = await interleaved(few, rounds * 3)
    rows.append(time_row("resume of 10 nodes, warm / bare", times, "warm", "bare"))
    rows.append(time_row("resume of 10 nodes, cold / bare", times, "cold", "bare"))
    return rows + await _path_rows(warm, tools, rounds * 3) + await _page_rows(warm, tools, rounds * 3)


async def _path_rows(cache: SessionCache, tools: ToolState, rounds: int) -> list[Row]:
    """Time paths of 100 nodes: alone in a graph, and in 10 and in 100 pieces among 10,000 nodes."""
    for name, total, forks in (("alone", 100, 1), ("forked", 10_000, 10), ("shattered", 10_000, 100)):
        await workload.Session(cache, name).begin(tools, workload.forked(total, 100, forks))
    times = await interleaved({name: path(cache, name) for name in ("alone", "forked", "shattered")}, rounds)
    return [
        time_row("path of 100 nodes, 10 pieces in 10,000 / 100 in 100", times, "forked", "alone", 1.3),
        time_row("path of 100 nodes, 100 pieces in 10,000 / 100 in 100", times, "shattered", "alone", 2),
    ]


async def _page_rows(cache: SessionCache, tools: ToolState, rounds: int) -> list[Row]:
    """Time pages of 20 nodes: the last ones, those before the middle, and the last ones compared with a full read."""
    for nodes in (50, 50_000):
        await workload.Session(cache, f"line-{nodes}").begin(tools, workload.chain(0, nodes, None))
    contenders = {
        "short": page(cache, "line-50"),
        "long": page(cache, "line-50000"),
        "middle": page(cache, "line-50000", workload.node(25_000, None).node_id),
        "page": page(cache, "1000"),
        "whole": full(cache, "1000"),
    }
    times = await interleaved(contenders, rounds)
    return [
        time_row("page of 20 of 50,000 nodes / of 50", times, "long", "short", 1.1),
        time_row("page of 20 before the middle of 50,000 nodes / the last 20 of 50", times, "middle", "short", 1.1),
        time_row("page of 20 of 1,000 nodes / full read of 1,000", times, "page", "whole"),
    ]


async def _wire_rows(url: str) -> list[Row]:
    """Count the round trips and bytes of one full read by a relay, and its commands by INFO."""
    rows = []
    async with wire_to(url) as (relay, wire), redis.from_url(relay) as client, redis.from_url(url) as direct:
        plain = bare.Session(client, "read-1000", b"")
        contenders = {
            "warm": full(SessionCache(client, NAMESPACE), "1000"),
            "cold": full(SessionCache(client, NAMESPACE, options=StoreOptions(blob_cache_bytes=0)), "1000"),
            "bare": Contender(plain.read),
        }
        text, numbers = {}, {}
        for name, contender in contenders.items():
            costs = await traffic(direct, wire, contender, repeats=10)
            text[name] = f"{costs.commands:.0f} commands, {costs.down / 1024:,.0f} KB down"
            numbers[name] = {
                "round_trips": costs.round_trips,
                "commands": costs.commands,
                "up": costs.up,
                "down": costs.down,
            }
        for name, budget in (("warm", 1), ("cold", 2)):
            trips = numbers[name]["round_trips"]
            rows.append(Row(f"round trips per full read, {name}", text[name], text["bare"], trips, budget, "", numbers))
    return rows
