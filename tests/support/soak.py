"""The worker processes of a soak test: they create, resume, fork, delete and list sessions that live for seconds.

The execution state of a session describes its graph, so each read can be checked by itself.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from multiprocessing.queues import Queue
from time import monotonic

from lash_redis import (
    ActivePath,
    Append,
    FullGraph,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    PluginSessionSnapshot,
    Refused,
    RuntimeCommit,
    SessionCache,
    SessionEvicted,
    SessionNodeRecord,
    StoreError,
    StoreOptions,
    ToolState,
    ToolStateEntry,
    connect,
)
from lash_redis.models import EventPayload, PluginSnapshotEntry, PluginSnapshotMeta

NAMESPACE = "soak"
TTLS = (0.5, 1.0, 2.0, 4.0)
OPTIONS = StoreOptions(shards=4, blob_grace=0.5, upload_grace=1.0, deletion_marker_ttl=2.0, blob_cache_bytes=100_000)
LONGEST = max(TTLS) + 2 * OPTIONS.blob_grace + OPTIONS.upload_grace + OPTIONS.deletion_marker_ttl
"""Seconds after which no key of a soak is left."""
SESSIONS = 200


def node(node_id: str, parent: str | None) -> SessionNodeRecord:
    message = {"id": node_id, "role": "User", "parts": [{"kind": "Text", "content": f"hello {node_id} " * 20}]}
    return SessionNodeRecord(node_id, parent, "t", EventPayload({"Conversation": message}))


def check(read: PersistedSessionRead) -> list[str]:
    """Check a read against its execution state; return the ids of its path.

    Raises:
        AssertionError: the read differs from its execution state.
    """
    path = [each.node_id for each in read.graph.active_path()]
    assert read.checkpoint is not None
    assert read.checkpoint.execution_state is not None
    said = json.loads(read.checkpoint.execution_state)
    assert said["path"] == len(path), (read.session_id, said, path)
    assert said["leaf"] == path[-1] == read.graph.leaf_node_id
    assert read.checkpoint.plugin_snapshot is not None
    assert read.checkpoint.plugin_snapshot.plugins["p"].meta.state == said["leaf"]
    assert read.checkpoint.tool_state is not None
    return path


async def turn(cache: SessionCache, name: str, dice: random.Random, ttl: float | None) -> None:
    store = cache.session(name)
    read = await store.load_session(FullGraph())
    path = [] if read is None else check(read)
    node_id = f"n{dice.getrandbits(64):016x}"
    keep = dice.randrange(len(path)) + 1 if path and dice.random() < 0.2 else len(path)  # sometimes a branch
    parent = path[keep - 1] if path else None
    state = json.dumps({"path": keep + 1, "leaf": node_id}).encode()
    tools = ToolState(1, {"tool": ToolStateEntry({"text": str(dice.randrange(5)) * 3000}, "plugins")})
    commit = RuntimeCommit(
        name,
        0 if read is None else read.head_revision,
        graph=Append([node(node_id, parent)], node_id),
        checkpoint=HydratedSessionCheckpoint(
            tool_state=tools,
            plugin_snapshot=PluginSessionSnapshot({"p": PluginSnapshotEntry(PluginSnapshotMeta("p", "1", 1, node_id))}),
            execution_state=state,
        ),
        builds_on=None if read is None else read.commit_id,
    )
    await store.commit_runtime_state(commit, ttl=ttl)


async def step(cache: SessionCache, dice: random.Random, counts: Counter[str]) -> None:
    name = f"s{dice.randrange(SESSIONS)}"
    what = dice.choices(
        ("turn", "path", "touch", "fork", "delete", "tombstone", "list", "gc", "upload"),
        (60, 15, 5, 6, 4, 4, 1, 1, 1),
    )[0]
    try:
        match what:
            case "turn":
                await turn(cache, name, dice, dice.choice(TTLS))
            case "path":
                read = await cache.session(name).load_session(ActivePath())
                if read is not None:
                    check(read)
            case "touch":
                await cache.session(name).touch(ttl=dice.choice(TTLS))
            case "fork":
                await cache.fork(name, f"s{dice.randrange(SESSIONS)}", ttl=dice.choice(TTLS))
            case "delete":
                await cache.delete(name)
            case "tombstone":  # only nodes off the active path, as a runtime does
                read = await cache.session(name).load_session(FullGraph())
                if read is not None:
                    await cache.session(name).tombstone_nodes(read.graph.orphaned_node_ids())
                    await cache.session(name).vacuum()
            case "list":
                async for info in cache.sessions(limit=50):
                    assert info.fault is None, info
            case "gc":
                await cache.gc()
            case "upload":
                await cache.put_blob(dice.randbytes(50))
        counts[what] += 1
    except Refused as error:
        counts[type(error).__name__] += 1


async def work(url: str, seconds: float, seed: int) -> Counter[str]:
    """Run four tasks on one cache until the time is over; count the steps and the refusals."""
    dice, counts, until = random.Random(seed), Counter[str](), monotonic() + seconds

    async def task(cache: SessionCache) -> None:
        while monotonic() < until:
            await step(cache, dice, counts)

    async with connect(url, namespace=NAMESPACE, ttl=1.0, options=OPTIONS) as cache, asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(task(cache))
    return counts


def worker(url: str, seconds: float, seed: int, told: Queue[Counter[str] | str]) -> None:
    """The body of one process: put its counts, or its error, into the queue."""
    try:
        told.put(asyncio.run(work(url, seconds, seed)))
    except BaseException as error:
        told.put(f"{type(error).__name__}: {error!r}")
        raise


# Eviction


async def evict(url: str, reads: int, seed: int) -> Counter[str]:
    """Write and read until `reads` reads were made. Each is correct, absent or a typed error.

    Raises:
        AssertionError: a read returned a state that was never written.
    """
    dice, counts = random.Random(seed), Counter[str]()
    options = StoreOptions(shards=4, blob_cache_bytes=0)
    async with connect(url, namespace=f"evict-{seed}", options=options) as cache:
        while counts["reads"] < reads:
            name = f"s{dice.randrange(3000)}"
            try:
                if dice.random() < 0.45:
                    await turn(cache, name, dice, None)
                    counts["written"] += 1
                    continue
                counts["reads"] += 1
                read = await cache.session(name).load_session(FullGraph() if dice.random() < 0.5 else ActivePath())
                counts["absent" if read is None else "right"] += 1
                if read is not None:
                    check(read)
            except SessionEvicted:
                counts["evicted"] += 1
                await cache.delete(name)
            except StoreError as error:
                counts[type(error).__name__] += 1
    return counts
