"""What is the least a careless author could do for the same bytes, with the same client?

A commit is one EVALSHA that writes 34 KB and the nodes without looking at anything; a read is one pipeline of
HGETALL, LRANGE and four GETs. No revision is compared, no retry recognised, no byte checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

import msgpack
import redis.asyncio as redis

from bench import workload
from lash_redis import SessionNodeRecord

COMMIT = """
for index = 3, 6 do redis.call('SET', KEYS[index], ARGV[index + 3]) end
redis.call('HSET', KEYS[1], 'revision', ARGV[1], 'leaf', ARGV[2], 'commit', ARGV[3], 'config', ARGV[4], 'ref', ARGV[5])
redis.call('RPUSH', KEYS[2], unpack(ARGV, 10))
return ARGV[1]
"""
COMMIT_SHA = sha1(COMMIT.encode(), usedforsecurity=False).hexdigest()

_CONFIG = msgpack.packb(workload.CONFIG.to_msgpack())
_MANIFEST = workload.text(workload.MANIFEST_BYTES - 300).encode()


class Session:
    """The same session without any of our care. `turn` makes the arguments of a commit, all of them encoded."""

    def __init__(self, client: redis.Redis, session_id: str, tools: bytes) -> None:
        self.client = client
        self.head, self.log = f"bare:head:{session_id}", f"bare:log:{session_id}"
        self.blobs = [f"bare:{name}:{session_id}" for name in ("tools", "plugin", "execution", "manifest")]
        self.tools = tools
        self.nodes = 0
        self.turns = 0
        self.leaf: str | None = None

    def turn(self, nodes: Sequence[SessionNodeRecord] | None = None) -> list[Any]:
        if nodes is None:
            nodes = workload.line(self.nodes, 2, self.leaf)
        plugin = msgpack.packb(workload.plugin_snapshot(self.turns).to_msgpack())
        self.nodes += len(nodes)
        self.turns += 1
        self.leaf = nodes[-1].node_id
        head: list[Any] = [self.turns, self.leaf, f"{self.turns:032x}", _CONFIG, f"{self.turns:064x}"]
        blobs = [self.tools, plugin, workload.execution_state(self.turns), _MANIFEST]
        return [6, self.head, self.log, *self.blobs, *head, *blobs, *map(workload.packed, nodes)]

    async def begin(self, nodes: Sequence[SessionNodeRecord]) -> None:
        await self.client.script_load(COMMIT)
        for at in range(0, len(nodes), 2000):
            await self.commit(self.turn(nodes[at : at + 2000]))

    async def commit(self, arguments: list[Any]) -> None:
        await self.client.evalsha(COMMIT_SHA, *arguments)

    async def read(self) -> list[Any]:
        pipeline = self.client.pipeline(transaction=False)
        pipeline.hgetall(self.head)
        pipeline.lrange(self.log, 0, -1)
        for blob in self.blobs:
            pipeline.get(blob)
        return await pipeline.execute()

    async def read_decoded(self) -> list[Any]:
        replies = await self.read()
        return [msgpack.unpackb(record) for record in replies[1]]
