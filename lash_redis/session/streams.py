"""The streams of one session: produce one, follow it, ask its producer to stop, finish it, load its state."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from lash_redis._validate import require_id, require_int, require_seconds, seconds_to_ms
from lash_redis.errors import SessionDeleted
from lash_redis.models import StreamClaim, StreamEvent, StreamInfo
from lash_redis.protocol import commands
from lash_redis.protocol.keys import SessionKeys, StreamKeys
from lash_redis.session.following import follow
from lash_redis.session.namespace import Namespace
from lash_redis.session.stream import StreamWriter, finish_after_commit, held_for_commit
from lash_redis.session.stream_hub import read_stream


class Streams:
    """The streams of one session. `RedisSessionStore` describes the methods."""

    def __init__(self, namespace: Namespace, keys: SessionKeys) -> None:
        self._namespace = namespace
        self._keys = keys

    def stream(self, generation_id: str, ttl: float, keep: float, max_events: int, max_bytes: int) -> StreamWriter:
        bounds = commands.streams.Bounds(
            seconds_to_ms("ttl", ttl),
            seconds_to_ms("keep", keep),
            require_int("max_events", max_events, 1, commands.streams.MAX_EVENTS),
            require_int("max_bytes", max_bytes, 1, commands.calls.MAX_VALUE_BYTES),
        )
        return StreamWriter(self._namespace, self._keys_of(generation_id), bounds)

    def follow(self, generation_id: str, after: str | None, wait: float) -> AsyncGenerator[StreamEvent, None]:
        keys, place = self._keys_of(generation_id), commands.streams.place_of(after)
        return follow(self._namespace, keys, place, require_seconds("wait", wait))

    async def request_stop(self, generation_id: str) -> bool:
        keys = self._keys_of(generation_id)
        call = commands.streams.stop_call(keys, sharded=self._namespace.sharded)
        return commands.streams.stop_reply(call, keys, await self._namespace.run(call))

    async def finish(self, claim: StreamClaim) -> None:
        """`RedisSessionStore.finish_stream`."""
        commands.streams.check_claim(claim, self._keys.session_id)
        async with held_for_commit(claim):
            await self.finish_after_commit(claim, is_finished=False)

    async def finish_after_commit(self, claim: StreamClaim, *, is_finished: bool) -> None:
        """`session.stream.finish_after_commit`. The caller is in `held_for_commit`."""
        await finish_after_commit(self._namespace, self._keys, claim, is_finished=is_finished)

    async def load(self, generation_id: str) -> StreamInfo | None:
        """`RedisSessionStore.load_stream`."""
        try:
            read = await read_stream(self._namespace, self._keys_of(generation_id), None, 0)
        except SessionDeleted:
            return None
        return None if read is None else read.info(generation_id)

    def _keys_of(self, generation_id: str) -> StreamKeys:
        return self._keys.stream(require_id("generation_id", generation_id))
