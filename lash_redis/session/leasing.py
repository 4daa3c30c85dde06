"""Acquire, renew and release the lease of one session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import monotonic
from uuid import uuid4

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from lash_redis._validate import require_id, require_seconds, require_type, seconds_to_ms
from lash_redis.errors import LeaseBusy
from lash_redis.models import LeaseClaim, LeaseInfo
from lash_redis.protocol import commands
from lash_redis.protocol.keys import SessionKeys
from lash_redis.session.lease import Lease
from lash_redis.session.namespace import Namespace


class Leasing:
    """The lease operations of one session. `touch` extends a session that would expire before its lease."""

    def __init__(self, namespace: Namespace, keys: SessionKeys, touch: Callable[[], Awaitable[object]]) -> None:
        self._namespace = namespace
        self._keys = keys
        self._touch = touch

    async def acquire(self, owner: str, ttl: float, token: str | None, wait: float) -> Lease:
        """`RedisSessionStore.acquire_lease`."""
        require_id("owner", owner)
        token = commands.lease.checked_token("token", uuid4().hex if token is None else token)
        call = commands.lease.acquire_call(self._keys, owner, token, seconds_to_ms("ttl", ttl))
        retrying = AsyncRetrying(
            stop=stop_after_delay(require_seconds("wait", wait)),
            wait=wait_random_exponential(multiplier=0.02, max=self._namespace.options.retry_max_delay),
            retry=retry_if_exception_type(LeaseBusy),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                asked = monotonic()
                got = commands.lease.acquire_reply(call, self._keys, await self._namespace.run(call))
        await self._outlive(got)
        return Lease(
            self._keys.session_id,
            owner,
            token,
            got.generation,
            got.deadline_ms / 1000,
            ttl=ttl,
            displaced=got.displaced,
            _holder=self,
            _ends=asked + ttl,
        )

    def adopt(self, lease: Lease) -> Lease:
        """`RedisSessionStore.adopt_lease`."""
        require_type("lease", lease, Lease)
        commands.lease.check_lease("lease", lease, self._keys.session_id)
        seconds_to_ms("lease.ttl", lease.ttl)
        return replace(lease, _holder=self)

    async def load(self) -> LeaseInfo | None:
        """`RedisSessionStore.load_lease`."""
        trip = [commands.lease.lease_read(self._keys)]
        return commands.lease.lease_reply(self._keys, *await self._namespace.read(trip, atomic=False, is_small=True))

    async def renew(self, lease: LeaseClaim, ttl: float) -> None:
        """`Lease.renew`."""
        commands.lease.check_lease("lease", lease, self._keys.session_id)
        call = commands.lease.renew_call(self._keys, lease, seconds_to_ms("ttl", ttl))
        got = commands.lease.renew_reply(call, self._keys, lease, await self._namespace.run(call))
        lease.deadline = got.deadline_ms / 1000
        await self._outlive(got)

    async def release(self, lease: LeaseClaim) -> None:
        """`Lease.release`."""
        commands.lease.check_lease("lease", lease, self._keys.session_id)
        call = commands.lease.release_call(self._keys, lease, uuid4().hex[:16])
        commands.lease.release_reply(call, self._keys, lease, await self._namespace.run(call))

    async def _outlive(self, held: commands.lease.Acquired) -> None:
        """Touch the session if it would expire before its lease. It then lives at least as long as the lease."""
        if 0 < held.until_ms < held.deadline_ms:
            await self._touch()
