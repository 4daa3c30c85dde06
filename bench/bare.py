"""What is the least work that stores and reads the same bytes with the same client? The baseline of the budgets.

A commit is one EVALSHA that writes 34 KB and the nodes, and reads nothing. A read is one pipeline of HGETALL, LRANGE
and four GETs. Neither compares revisions, detects retries or verifies bytes.
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
for index = 3, #KEYS do redis.call('SET', KEYS[index], ARGV[index + 3]) end
redis.call('HSET', KEYS[1], 'revision', ARGV[1], 'leaf', ARGV[2], 'commit', ARGV[3], 'config', ARGV[4], 'ref', ARGV[5])
redis.call('RPUSH', KEYS[2], unpack(ARGV, #KEYS + 4))
return ARGV[1]
"""
COMMIT_SHA = sha1(COMMIT.encode(), usedforsecurity=False).hexdigest()

Command = tuple[Any, ...]

_CONFIG = msgpack.packb(workload.CONFIG.to_msgpack())
_MANIFEST = workload.text(workload.MANIFEST_BYTES - 300).encode()


class Session:
    """A session without any check. `turn` makes the arguments of a commit, already encoded."""

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
            nodes = workload.chain(self.nodes, 2, self.leaf)
        plugin = msgpack.packb(workload.plugin_snapshot(self.head, self.turns).to_msgpack())
        contents = [self.tools, plugin, workload.execution_state(self.head, self.turns)]
        self.nodes += len(nodes)
        self.turns += 1
        self.leaf = nodes[-1].node_id
        keys = [self.head, self.log, *self.blobs]
        head: list[Any] = [self.turns, self.leaf, f"{self.turns:032x}", _CONFIG, f"{self.turns:064x}"]
        return [len(keys), *keys, *head, *contents, _MANIFEST, *map(workload.packed, nodes)]

    async def begin(self, nodes: Sequence[SessionNodeRecord]) -> None:
        await self.client.script_load(COMMIT)
        for at in range(0, len(nodes), 2000):
            await self.commit(self.turn(nodes[at : at + 2000]))

    async def commit(self, arguments: list[Any]) -> None:
        await self.client.evalsha(COMMIT_SHA, *arguments)

    def read_commands(self, spans: Sequence[tuple[int, int]] = ((0, -1),)) -> list[Command]:
        """Return the commands that read the session and these ranges of its log."""
        ranges: list[Command] = [("LRANGE", self.log, first, last) for first, last in spans]
        return [("HGETALL", self.head), *ranges, *(("GET", blob) for blob in self.blobs)]

    async def read(self) -> list[Any]:
        return await pipelined(self.client, self.read_commands())

    async def read_decoded(self) -> list[Any]:
        replies = await self.read()
        return [msgpack.unpackb(record) for record in replies[1]]


async def pipelined(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return await pipeline.execute()
