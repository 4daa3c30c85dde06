"""Many processes use sessions with short lifetimes, and reads run on a server that evicts keys.

`make soak` runs for five minutes, and makes 100,000 reads under eviction.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections import Counter
from typing import Any

import pytest
import redis.asyncio

from lash_redis import SessionCache
from lash_redis.embedded import EmbeddedServer
from tests.support import soak
from tests.support.servers import table

SECONDS = float(os.environ.get("LASH_REDIS_SOAK_SECONDS", "6"))
READS = int(os.environ.get("LASH_REDIS_EVICTION_READS", "3000"))
PROCESSES = 4


async def test_a_soak_causes_no_problems_and_all_its_keys_expire(real_server, capsys):
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    workers = [
        context.Process(target=soak.worker, args=(real_server.url, SECONDS, seed, queue)) for seed in range(PROCESSES)
    ]
    for each in workers:
        each.start()
    auditor = SessionCache(real_server.client(), soak.NAMESPACE, options=soak.OPTIONS)
    audits = 0
    try:
        while any(each.is_alive() for each in workers):
            await asyncio.sleep(1)
            report = await auditor.audit(repair=audits % 2 == 1)
            assert report.problems == ()
            audits += 1
    finally:
        for each in workers:
            each.join(SECONDS + 60)
    results = [queue.get(timeout=60) for _ in workers]
    assert all(isinstance(each, Counter) for each in results), results
    counts = sum(results, Counter[str]())
    assert min(counts[name] for name in ("turn", "path", "touch", "fork", "delete", "tombstone")) > 0, counts
    assert (await auditor.audit()).problems == ()
    await asyncio.sleep(soak.LONGEST)
    client = real_server.client()
    assert await client.keys("*") == [f"lash1:layout:{soak.NAMESPACE}".encode()]
    with capsys.disabled():
        print(f"\nsoak {real_server.name}: {SECONDS:g} s, {audits} audits, {dict(counts)}")


@pytest.fixture(params=[kind for kind in table() if kind.real and not kind.missing], ids=lambda kind: kind.name)
async def evicting(request):
    """A separate server that evicts random keys above its memory limit."""
    with EmbeddedServer(binary=request.param.binary) as server:
        async with redis.asyncio.Redis.from_url(server.url) as admin:
            limit = 64_000_000 if READS > 10_000 else 5_000_000
            await admin.config_set("maxmemory-policy", "allkeys-random")
            await admin.config_set("maxmemory", limit)
            yield server.url, admin


async def test_no_read_under_eviction_is_wrong(evicting, request, capsys):
    url, admin = evicting
    counts = await soak.evict(url, READS, seed=1)
    evicted = (await admin.info("stats"))["evicted_keys"]
    assert counts["reads"] == READS
    assert min(counts["right"], counts["evicted"], evicted) > 0, counts
    with capsys.disabled():
        print(f"\neviction {request.node.callspec.id}: {evicted} keys evicted, {dict(counts)}")
