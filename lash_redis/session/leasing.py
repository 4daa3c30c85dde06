"""Acquire, renew and release the lease of one session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TypeVar
from uuid import uuid4

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from lash_redis._validate import require_id, require_seconds, require_type, seconds_to_ms
from lash_redis.errors import (
    BackendError,
    InvalidRecord,
    LeaseBusy,
    LeaseLost,
    OutcomeUnknown,
    Refused,
    SessionDeleted,
)
from lash_redis.models import LeaseClaim, LeaseInfo
from lash_redis.protocol import commands
from lash_redis.protocol.keys import SessionKeys
from lash_redis.session.lease import HeldLease, Lease, releasing
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.transport.cleanup import clean_up

Held = TypeVar("Held", bound=HeldLease)


class Leasing:
    """The lease operations of one session. `touch` extends a session that would expire before its lease."""

    def __init__(self, namespace: Namespace, keys: SessionKeys, touch: Callable[[], Awaitable[object]]) -> None:
        self._namespace = namespace
        self._keys = keys
        self._touch = touch

    async def acquire(self, owner: str | None, ttl: float, token: str | None, wait: float, *, reenter: bool) -> Lease:
        """`RedisSessionStore.acquire_lease`."""
        require_type("reenter", reenter, bool)
        is_new = token is None
        token = commands.lease.checked_token("token", uuid4().hex if token is None else token)
        if owner is None:
            if reenter:
                raise InvalidRecord("reenter", "expected False without an owner; pass the owner that held the lease")
            owner = commands.lease.owner_of(token)
        require_id("owner", owner)
        call = commands.lease.acquire_call(self._keys, owner, token, seconds_to_ms("ttl", ttl), reenter=reenter)
        claim = Lease(self._keys.session_id, owner, token, 1, 0.0, ttl=ttl, _holder=self)
        attempt = self._acquire_or_release if is_new else self._acquire
        try:
            return await self._while_busy(wait)(attempt, call, claim)
        except LeaseBusy as error:
            error.waited = wait
            raise
        except OutcomeUnknown as error:
            error.token = token
            error.args = (f"{error}; call acquire_lease again with the same arguments and token={token!r}",)
            raise

    def _while_busy(self, wait: float) -> AsyncRetrying:
        """Return a retry of attempts that begin within `wait` seconds, with random pauses."""
        wait = require_seconds("wait", wait)
        pause = wait_random_exponential(multiplier=0.02, max=self._namespace.options.retry_max_delay)
        end = monotonic() + wait
        return AsyncRetrying(
            stop=stop_after_delay(wait),
            wait=lambda state: min(pause(state), max(0.0, end - monotonic())),
            retry=retry_if_exception_type(LeaseBusy),
            reraise=True,
        )

    async def _acquire(self, call: commands.calls.ScriptCall, claim: Lease) -> Lease:
        """Make one attempt, and return the lease of the claim."""
        asked = monotonic()
        got = commands.lease.acquire_reply(call, self._keys, claim.owner, await self._namespace.run(call))
        await self._outlive(got, "lease was acquired")
        return replace(
            claim,
            generation=got.generation,
            deadline=got.deadline_ms / 1000,
            displaced=got.displaced,
            _ends=asked + claim.ttl,
        )

    async def _acquire_or_release(self, call: commands.calls.ScriptCall, claim: Lease) -> Lease:
        """Make one attempt. If the caller is cancelled, the attempt ends and the lease that it acquired is released."""
        attempt = asyncio.create_task(self._acquire(call, claim))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError as error:
            await clean_up(partial(self._withdraw, attempt, claim), releasing(claim), after=error)
            raise

    async def _withdraw(self, attempt: asyncio.Task[Lease], claim: Lease) -> None:
        """Wait for the end of an attempt, and release the lease unless the attempt certainly acquired none."""
        try:
            await asyncio.wait([attempt])
        finally:
            attempt.cancel()
        if attempt.cancelled() or not isinstance(attempt.exception(), Refused | BackendError):
            with suppress(LeaseLost, SessionDeleted):
                await self.release(claim)

    def adopt(self, lease: Held) -> Held:
        """`RedisSessionStore.adopt_lease`."""
        require_type("lease", lease, HeldLease)
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
        await self._outlive(got, "renewal was made")

    async def release(self, lease: LeaseClaim, request: str | None = None) -> None:
        """`Lease.release`. A release that is sent again with its `request` succeeds again."""
        commands.lease.check_lease("lease", lease, self._keys.session_id)
        call = commands.lease.release_call(self._keys, lease, request or uuid4().hex[:16])
        commands.lease.release_reply(call, self._keys, lease, await self._namespace.run(call))

    async def _outlive(self, held: commands.lease.Acquired, done: str) -> None:
        """Touch the session if it would expire before its lease. It then lives at least as long as the lease."""
        if 0 < held.until_ms < held.deadline_ms:
            with continuing(1, done):
                await self._touch()
