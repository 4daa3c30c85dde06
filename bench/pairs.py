"""How long do commits and resumes take compared with `RedisSession` of openai-agents, on loopback and with latency?

A pair is two stores that take turns without other contenders. More contenders would evict each other's data from the
processor's caches, which costs most the store that does most in a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product

import redis.asyncio as redis

from bench import peers, report, stores
from bench.network import relay_with_latency
from bench.peer_stores import OpenAI
from lash_redis.cli.conversations import SHIPPED
from lash_redis.embedded import EmbeddedServer


@dataclass(frozen=True, slots=True)
class Pair:
    """A store of this package and `RedisSession`, which take turns in one run without other contenders."""

    what: str
    work: str
    """"commit" or "resume"."""
    ours: stores.Store
    other: stores.Store
    budgets: Mapping[float, Mapping[int, float]] = field(default_factory=dict)
    """Largest ratios, by the added latency in ms, then by the number of messages."""


def measure(server: EmbeddedServer, *, quick: bool) -> list[report.Row]:
    """Compare commits and resumes with `RedisSession`, on a server with a TCP port."""
    known = {0.0: {10: 1.0, 1000: 0.7, 5000: 0.8}, 0.5: {10: 1.0}}
    commit = {0.0: dict.fromkeys(peers.SIZES, 0.5), 0.5: dict.fromkeys(peers.SIZES, 0.4)}
    every = [
        Pair("commit", "commit", stores.LashRedis(has_tools=True), OpenAI(), commit),
        Pair("resume, tool state known", "resume", stores.LashRedis(has_tools=True), OpenAI(), known),
        Pair("resume, nothing known", "resume", stores.LashRedis(), OpenAI()),
    ]
    return measure_rows(server, every, peers.SIZES, quick=quick)


def measure_rows(
    server: EmbeddedServer, every: Sequence[Pair], sizes: Sequence[int], *, quick: bool
) -> list[report.Row]:
    """Measure each pair on loopback, then with 0.5 ms of latency added."""
    messages, rows = peers.load_messages([SHIPPED]), []
    for rtt, pair in product((0.0, 0.5), every):
        with relay_with_latency(server.url, rtt) if rtt else nullcontext(server.url) as url:
            rows += asyncio.run(_measure_pair(url, rtt, pair, messages, sizes, 2.5 if quick else peers.SECONDS))
    return rows


async def _measure_pair(
    url: str, rtt: float, pair: Pair, messages: Sequence[stores.Message], sizes: Sequence[int], seconds: float
) -> list[report.Row]:
    async with redis.from_url(url) as client:
        await client.flushall()
    async with pair.ours.opened(url), pair.other.opened(url):
        lines = await peers.measure_lines([pair.ours, pair.other], messages, seconds, [pair.work], sizes)
    rows = []
    for mine, theirs in zip(lines[::2], lines[1::2], strict=True):
        texts = [f"{line.p50_us:,.0f} / {line.p99_us:,.0f} µs" for line in (mine, theirs)]
        numbers = {"rounds": mine.rounds, "ours_p50_us": mine.p50_us, "other_p50_us": theirs.p50_us}
        name = f"{pair.what}, {mine.messages:,} messages{f', {rtt:g} ms added' * bool(rtt)} / RedisSession"
        budget = pair.budgets.get(rtt, {}).get(mine.messages)
        rows.append(report.Row(name, texts[0], texts[1], 1 / theirs.ratios[1], budget, numbers=numbers))
    return rows
