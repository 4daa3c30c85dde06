"""What does our commit cost beside one that checks nothing, and does it depend on the session's length?"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import bare, workload
from bench.measure import Contender, interleaved, server_costs, traffic, wire_to
from bench.report import Row, is_valkey, served, timed
from lash_redis import (
    Append,
    FullGraph,
    RedisSessionStore,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionGraph,
    ToolState,
    connect,
)

LENGTHS = (10, 100, 1000, 10_000, 50_000)


def ours(sessions: list[workload.Session]) -> Contender:
    """Turns of these sessions one after the other: building a commit is not timed, encoding and sending it is."""
    turns = cycle(sessions)

    def make() -> tuple[workload.Session, RuntimeCommit]:
        session = next(turns)
        return session, session.turn()

    async def run(made: tuple[workload.Session, RuntimeCommit]) -> None:
        await made[0].take(made[1])

    return Contender(run, make)


def replacing(session: workload.Session, *, by: SessionCache | None = None, drops: int = 0) -> Contender:
    """Turns of a session that replace its whole graph by one without its last `drops` nodes, and of 2 nodes more.

    With another cache `by` each comes from a process that has just loaded the session and looked at all of it.
    """
    graph = SessionGraph()

    async def make() -> tuple[RedisSessionStore, RuntimeCommit]:
        nonlocal graph
        store = session.store if by is None else by.session(session.store.session_id)
        if by is not None or not graph.nodes:
            read = await store.load_session(FullGraph())
            assert read is not None
            read.graph.read_model()
            graph = read.graph
        commit = session.turn()
        assert isinstance(commit.graph, Append)
        if drops:
            graph = graph.first(-drops)
        for node in commit.graph.nodes:
            graph = graph.append_message(node.message() or {})
        return store, replace(commit, graph=ReplaceFull(graph))

    async def run(made: tuple[RedisSessionStore, RuntimeCommit]) -> None:
        await made[0].commit_runtime_state(made[1])

    return Contender(run, make)


def bared(session: bare.Session) -> Contender:
    async def run(arguments: list[Any]) -> None:
        await session.commit(arguments)

    return Contender(run, session.turn)


async def begun(
    cache: SessionCache, session_id: str, tools: ToolState, nodes: int, *, owner: str | None = None
) -> workload.Session:
    session = workload.Session(cache, session_id, owner)
    await session.begin(tools, workload.line(0, nodes, None))
    return session


async def measured(client: redis.Redis, url: str, *, quick: bool) -> list[Row]:
    async with connect(url, namespace="bench") as cache, connect(url, namespace="expiring", ttl=86_400) as expiring:
        return await _measured(client, url, cache, expiring, quick=quick)


async def _measured(
    client: redis.Redis, url: str, cache: SessionCache, expiring: SessionCache, *, quick: bool
) -> list[Row]:
    rounds = 300 if quick else 1500
    large = 10_000 if quick else 50_000
    p50_budget, server_budget = (1.2, 1.45) if await is_valkey(client) else (1.1, 1.1)
    tools = workload.tool_state()
    plain = bare.Session(client, "1000", msgpack.packb(tools.to_msgpack()))
    await plain.begin(workload.line(0, 1000, None))
    thousand = await begun(cache, "1000", tools, 1000)
    contenders = {"ours": ours([thousand]), "bare": bared(plain)}
    given = SessionCache(client, "given")
    extra = {
        "expiring": ours([await begun(expiring, "1000", tools, 1000)]),
        "given": ours([await begun(given, "1000", tools, 1000)]),
        "owned": ours([await begun(cache, "1000-owned", tools, 1000, owner="alice")]),
    }
    times = await interleaved(contenders | extra, rounds)
    rows = [
        timed("commit of 2 nodes, N from 1,000 / bare", times, "ours", "bare", p50_budget),
        timed("the same with a ttl / bare without", times, "expiring", "bare"),
        timed("the same on a client that is given / bare", times, "given", "bare"),
        timed("commit to a session with an owner / without", times, "owned", "ours"),
    ]
    costs = await server_costs(client, contenders | {"owned": extra["owned"]}, repeats=50, blocks=8 if quick else 40)
    rows += served("commit of 2 nodes / bare", costs, "ours", "bare", server_budget)
    rows += served("commit to a session with an owner / without", costs, "owned", "ours")
    rows += await _wired(url, tools)
    rows += await _replaced(client, cache, tools, rounds=30 if quick else 150)

    return rows + await _by_length(client, cache, tools, large, rounds)


async def _by_length(client: redis.Redis, cache: SessionCache, tools: ToolState, large: int, rounds: int) -> list[Row]:
    """Sessions of each length in one run. Of the short ones 20 take turns, so that none grows much."""
    lengths = [length for length in LENGTHS if length <= large]
    contenders = {}
    for length in lengths:
        names = [f"length-{length}-{number}" for number in range(20 if length <= 100 else 1)]
        contenders[f"ours {length}"] = ours([await begun(cache, name, tools, length) for name in names])
        plain = bare.Session(client, f"length-{length}", msgpack.packb(tools.to_msgpack()))
        await plain.begin(workload.line(0, length, None))
        contenders[f"bare {length}"] = bared(plain)
    times = await interleaved(contenders, rounds)
    rows = [
        timed(f"commit at {length:,} nodes / bare", times, f"ours {length}", f"bare {length}") for length in lengths
    ]
    return [timed(f"commit at {large:,} nodes / at 10", times, f"ours {large}", "ours 10", 1.1), *rows]


async def _replaced(client: redis.Redis, cache: SessionCache, tools: ToolState, *, rounds: int) -> list[Row]:
    """A replacement of a graph by itself and 2 nodes, and by 2 others at its end, beside a bare commit of these 2."""
    plain = bare.Session(client, "replaced", msgpack.packb(tools.to_msgpack()))
    await plain.begin(workload.line(0, 1000, None))
    contenders = {
        "again": replacing(await begun(cache, "replaced", tools, 1000)),
        "first": replacing(await begun(cache, "replaced-first", tools, 1000), by=cache),
        "other": replacing(await begun(cache, "replaced-end", tools, 1000), drops=2),
        "bare": bared(plain),
    }
    times = await interleaved(contenders, rounds)
    rows = [
        timed("ReplaceFull of 1,000 nodes that adds 2 / bare", times, "again", "bare"),
        timed("the same, the first after a load / bare", times, "first", "bare"),
        timed("ReplaceFull of 1,000 nodes whose last 2 are others / bare", times, "other", "bare"),
    ]
    for each in ("first", "other"):  # which can only be made when the one before it is done
        del contenders[each]
    costs = await server_costs(client, contenders, repeats=10, blocks=4)
    return rows + served("ReplaceFull of 1,000 nodes that adds 2 / bare", costs, "again", "bare")


async def _wired(url: str, tools: ToolState) -> list[Row]:
    """Round trips, commands and bytes of one commit, counted on the wire and by INFO."""
    seen = {}
    async with wire_to(url) as (relay, wire), redis.from_url(relay) as client, redis.from_url(url) as direct:
        session = await begun(SessionCache(client, "bench-wire"), "wire", tools, 10)
        plain = bare.Session(client, "wire", msgpack.packb(tools.to_msgpack()))
        await plain.begin(workload.line(0, 10, None))
        for name, contender in {"ours": ours([session]), "bare": bared(plain)}.items():
            costs = await traffic(direct, wire, contender, repeats=20)
            scripts = costs.server.calls["evalsha"]
            seen[name] = (costs.round_trips, scripts, costs.commands - scripts, costs.up, costs.down)
    text = {name: f"1 script, {s[2]:.0f} commands in it, {s[3] / 1024:.1f} KB up" for name, s in seen.items()}
    names = ("round_trips", "scripts", "commands_inside", "bytes_up", "bytes_down")
    numbers = {name: dict(zip(names, s, strict=True)) for name, s in seen.items()}
    return [Row("round trips per commit", text["ours"], text["bare"], seen["ours"][0], 1, "", numbers)]
