"""How long does a commit take compared with one that checks nothing, and does it depend on the session's length?"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import bare, workload
from bench.measure import Contender, interleaved, server_costs, traffic, wire_to
from bench.report import Row, is_valkey, server_rows, time_row
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


def commits_of(sessions: list[workload.Session]) -> Contender:
    """Commit turns of these sessions in rotation. Building a commit is not timed; encoding and sending it is."""
    turns = cycle(sessions)

    def make() -> tuple[workload.Session, RuntimeCommit]:
        session = next(turns)
        return session, session.turn()

    async def run(made: tuple[workload.Session, RuntimeCommit]) -> None:
        await made[0].commit(made[1])

    return Contender(run, make)


def replacements_of(session: workload.Session, *, by: SessionCache | None = None, drops: int = 0) -> Contender:
    """Commit turns that replace the whole graph of a session. Each drops the last `drops` nodes and adds 2.

    With a cache `by`, each commit is made by a handle of that cache that has just loaded and decoded the session.
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


def bare_commits_of(session: bare.Session) -> Contender:
    async def run(arguments: list[Any]) -> None:
        await session.commit(arguments)

    return Contender(run, session.turn)


async def begin_session(
    cache: SessionCache, session_id: str, tools: ToolState, nodes: int, *, owner: str | None = None
) -> workload.Session:
    session = workload.Session(cache, session_id, owner)
    await session.begin(tools, workload.chain(0, nodes, None))
    return session


async def measure(client: redis.Redis, url: str, *, quick: bool) -> list[Row]:
    async with connect(url, namespace="bench") as cache, connect(url, namespace="expiring", ttl=86_400) as expiring:
        return await _measure(client, url, cache, expiring, quick=quick)


async def _measure(
    client: redis.Redis, url: str, cache: SessionCache, expiring: SessionCache, *, quick: bool
) -> list[Row]:
    rounds = 300 if quick else 1500
    large = 10_000 if quick else 50_000
    p50_budget, server_budget = (1.2, 1.45) if await is_valkey(client) else (1.1, 1.1)
    tools = workload.tool_state()
    plain = bare.Session(client, "1000", msgpack.packb(tools.to_msgpack()))
    await plain.begin(workload.chain(0, 1000, None))
    thousand = await begin_session(cache, "1000", tools, 1000)
    contenders = {"lash_redis": commits_of([thousand]), "bare": bare_commits_of(plain)}
    given = SessionCache(client, "given")
    extra = {
        "expiring": commits_of([await begin_session(expiring, "1000", tools, 1000)]),
        "given": commits_of([await begin_session(given, "1000", tools, 1000)]),
        "owned": commits_of([await begin_session(cache, "1000-owned", tools, 1000, owner="alice")]),
    }
    times = await interleaved(contenders | extra, rounds)
    rows = [
        time_row("commit of 2 nodes, 1,000 nodes and more / bare", times, "lash_redis", "bare", p50_budget),
        time_row("the same with a ttl / bare without a ttl", times, "expiring", "bare"),
        time_row("the same over a client that the caller passed / bare", times, "given", "bare"),
        time_row("commit to a session with an owner / without", times, "owned", "lash_redis"),
    ]
    costs = await server_costs(client, contenders | {"owned": extra["owned"]}, repeats=50, blocks=8 if quick else 40)
    rows += server_rows("commit of 2 nodes / bare", costs, "lash_redis", "bare", server_budget)
    rows += server_rows("commit to a session with an owner / without", costs, "owned", "lash_redis")
    rows += await _wire_rows(url, tools)
    rows += await _replacement_rows(client, cache, tools, rounds=30 if quick else 150)

    return rows + await _length_rows(client, cache, tools, large, rounds)


async def _length_rows(
    client: redis.Redis, cache: SessionCache, tools: ToolState, large: int, rounds: int
) -> list[Row]:
    """Time commits at each length in one run. Up to 100 nodes, 20 sessions take turns, so that none grows much."""
    lengths = [length for length in LENGTHS if length <= large]
    contenders = {}
    for length in lengths:
        names = [f"length-{length}-{number}" for number in range(20 if length <= 100 else 1)]
        contenders[f"lash_redis {length}"] = commits_of(
            [await begin_session(cache, name, tools, length) for name in names]
        )
        plain = bare.Session(client, f"length-{length}", msgpack.packb(tools.to_msgpack()))
        await plain.begin(workload.chain(0, length, None))
        contenders[f"bare {length}"] = bare_commits_of(plain)
    times = await interleaved(contenders, rounds)
    rows = [
        time_row(f"commit at {length:,} nodes / bare", times, f"lash_redis {length}", f"bare {length}")
        for length in lengths
    ]
    return [time_row(f"commit at {large:,} nodes / at 10", times, f"lash_redis {large}", "lash_redis 10", 1.1), *rows]


async def _replacement_rows(client: redis.Redis, cache: SessionCache, tools: ToolState, *, rounds: int) -> list[Row]:
    """Time a replacement that adds 2 nodes, and one that exchanges the last 2, compared with a bare commit of 2."""
    plain = bare.Session(client, "replaced", msgpack.packb(tools.to_msgpack()))
    await plain.begin(workload.chain(0, 1000, None))
    contenders = {
        "again": replacements_of(await begin_session(cache, "replaced", tools, 1000)),
        "first": replacements_of(await begin_session(cache, "replaced-first", tools, 1000), by=cache),
        "other": replacements_of(await begin_session(cache, "replaced-end", tools, 1000), drops=2),
        "bare": bare_commits_of(plain),
    }
    times = await interleaved(contenders, rounds)
    rows = [
        time_row("ReplaceFull of 1,000 nodes that adds 2 / bare", times, "again", "bare"),
        time_row("the same, the first after a load / bare", times, "first", "bare"),
        time_row("ReplaceFull of 1,000 nodes that exchanges the last 2 / bare", times, "other", "bare"),
    ]
    for each in ("first", "other"):  # each must be built after the one before it is applied
        del contenders[each]
    costs = await server_costs(client, contenders, repeats=10, blocks=4)
    return rows + server_rows("ReplaceFull of 1,000 nodes that adds 2 / bare", costs, "again", "bare")


async def _wire_rows(url: str, tools: ToolState) -> list[Row]:
    """Count the round trips and bytes of one commit by a relay, and its commands by INFO."""
    seen = {}
    async with wire_to(url) as (relay, wire), redis.from_url(relay) as client, redis.from_url(url) as direct:
        session = await begin_session(SessionCache(client, "bench-wire"), "wire", tools, 10)
        plain = bare.Session(client, "wire", msgpack.packb(tools.to_msgpack()))
        await plain.begin(workload.chain(0, 10, None))
        for name, contender in {"lash_redis": commits_of([session]), "bare": bare_commits_of(plain)}.items():
            costs = await traffic(direct, wire, contender, repeats=20)
            scripts = costs.server.calls["evalsha"]
            seen[name] = (costs.round_trips, scripts, costs.commands - scripts, costs.up, costs.down)
    text = {name: f"1 script, {s[2]:.0f} commands in it, {s[3] / 1024:.1f} KB up" for name, s in seen.items()}
    names = ("round_trips", "scripts", "commands_inside", "bytes_up", "bytes_down")
    numbers = {name: dict(zip(names, s, strict=True)) for name, s in seen.items()}
    return [Row("round trips per commit", text["lash_redis"], text["bare"], seen["lash_redis"][0], 1, "", numbers)]
