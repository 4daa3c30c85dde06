"""A session's lease, as its holder uses it: renew it, release it, or keep it renewed while a block runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Annotated, Final, Protocol, Self
from uuid import uuid4

from lash_redis._validate import seconds_to_ms
from lash_redis.errors import BackendError, InvalidRecord, LeaseLost, OutcomeUnknown, SessionDeleted, StoreError
from lash_redis.models.lease import LeaseClaim, LeaseInfo, Seconds
from lash_redis.models.wire import Rule
from lash_redis.transport.cleanup import clean_up, end_if_cancelled, end_tasks, keep_pending, run_to_end

log = logging.getLogger("lash_redis")

RENEWALS: Final = 3
"""Renewals within one ttl. With three, a lease outlives one failed renewal."""


class LeaseHolder(Protocol):
    """The object that renews and releases a lease on the server: `Leasing`."""

    async def renew(self, lease: LeaseClaim, ttl: float) -> None: ...

    async def release(self, lease: LeaseClaim, request: str | None = None) -> None: ...


@dataclass(slots=True, eq=False)
class HeldLease(LeaseClaim):
    """A lease in the process that holds it: what `Lease` and the lease of the blocking client share."""

    ttl: Seconds = 30.0
    """Seconds from acquiring or renewing the lease until it expires."""
    displaced: LeaseInfo | None = None
    """The holder whose lease had expired when this one was acquired; None if the lease was free or re-entered.

    It is also None if the reply was lost and the claim was sent again, because the claim then held the lease already.
    """
    _holder: Annotated[LeaseHolder | None, Rule.IN_MEMORY] = field(default=None, repr=False)
    _ends: Annotated[float, Rule.IN_MEMORY] = field(default=0.0, repr=False)

    @property
    def remaining(self) -> float:
        """Seconds that the lease has at least left; 0 if it expired.

        This process's clock decides, from the moment it sent the request. After `from_json` it is 0 until a renewal.
        """
        return max(0.0, self._ends - monotonic())

    async def _extend(self, ttl: float | None) -> None:
        """`Lease.renew`."""
        holder, ttl = self._bound(), self.ttl if ttl is None else ttl
        asked = monotonic()
        await holder.renew(self, ttl)
        self.ttl, self._ends = ttl, max(self._ends, asked + ttl)

    async def _keep(self, interval: float, task: asyncio.Task[object]) -> StoreError:
        """Renew the lease until it is lost; then cancel `task` and return the reason."""
        lost: StoreError = LeaseLost(self.session_id, self.owner, "expired")
        while self.remaining > 0:
            end_if_cancelled()
            await asyncio.sleep(min(interval, self.remaining))
            if self.remaining == 0:
                break
            try:
                async with asyncio.timeout(self.remaining):
                    await self._extend(None)
            except (BackendError, OutcomeUnknown, TimeoutError) as error:
                log.warning("renewing the lease of session %r failed and is retried: %s", self.session_id, error)
            except StoreError as error:
                lost = error
                break
        task.cancel()
        return lost

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle like `to_json`: without the holder, to be adopted by another store."""
        return type(self).from_json, (self.to_json(),)

    def __copy__(self) -> Self:
        return replace(self)

    def __deepcopy__(self, memo: object) -> Self:
        return replace(self)

    def _bound(self) -> LeaseHolder:
        if self._holder is None:
            raise InvalidRecord("lease", "is not bound to a store; pass it to RedisSessionStore.adopt_lease first")
        return self._holder

    async def _release_if_held(self, request: str) -> None:
        try:
            await self._bound().release(self, request)
        except (LeaseLost, SessionDeleted):
            log.info("the lease of session %r was lost before it was released", self.session_id)
        self._ends = 0.0


@dataclass(slots=True, eq=False)
class Lease(HeldLease):
    """The exclusive right to work on a session, from `RedisSessionStore.acquire_lease`.

    Workers that acquire it run one after the other, so a later one can see whether the model was called already. It
    does not lock the session: the revision that a commit builds on decides whether the commit is applied. A commit that
    carries the lease (`RuntimeCommit.lease`) is also refused once the lease is lost.

    `async with` releases it at the end of the block, also if a task is cancelled repeatedly or by a scope of anyio. A
    lease that is lost by then is not an error. `renewing` keeps it renewed while a block runs.
    """

    async def renew(self, ttl: float | None = None) -> Self:
        """Extend the lease to `ttl` seconds from now (default: the ttl it has). It never shortens the lease.

        Raises:
            LeaseLost: it expired, was taken over or was released; nothing was written.
            SessionDeleted: the session was deleted.
            OutcomeUnknown: the reply was lost; renew again, the operation is idempotent.
        """
        await self._extend(ttl)
        return self

    async def release(self) -> None:
        """Release the lease. Its generation stays with the session, so the next holder's is one higher.

        The release is sent also if the caller is cancelled meanwhile. The caller then waits for it, for 2 s at most.

        Raises:
            LeaseLost: the caller no longer held it; the lease of another holder is not touched.
            SessionDeleted: the session was deleted.
            OutcomeUnknown: the reply was lost; if the lease is still held, it expires at its deadline.
        """
        await clean_up(partial(self._bound().release, self, uuid4().hex[:16]), releasing(self))
        self._ends = 0.0

    @asynccontextmanager
    async def renewing(self, every: float | None = None) -> AsyncIterator[Self]:
        """Renew the lease in the background while the block runs; cancel the block when the lease is lost.

        `every`: seconds between renewals, at most a third of `ttl`, which is the default. A lease that has no time left
        by this process's clock, or was adopted, is renewed first.

        The block is cancelled, as by `asyncio.timeout`, when a renewal is refused, or when the lease expires by this
        process's clock before a renewal succeeds. A process that was frozen cancels the block as soon as it runs again.
        If the block has already ended, a lost lease raises nothing.

        Raises:
            LeaseLost, SessionDeleted: the lease was lost while the block ran.
            Corrupt, SessionEvicted: the same, because the session's keys are damaged or missing.
        """
        interval = seconds_to_ms("every", self.ttl / RENEWALS if every is None else every) / 1000
        if interval > self.ttl / RENEWALS + 0.001:
            raise InvalidRecord("every", f"expected at most a third of the ttl ({self.ttl} s), got {every!r}")
        if self.remaining == 0:  # the server may still have it, above all if it was adopted
            await self._extend(None)
        task = asyncio.current_task()
        assert task is not None
        keeper = asyncio.create_task(self._keep(interval, task))
        cancelling = task.cancelling()
        try:
            try:
                yield self
            finally:
                _, cancelled = await run_to_end(partial(end_tasks, [keeper]))
                lost = _result_of(keeper)
                is_cancelled_by_others = (task.uncancel() if lost is not None else task.cancelling()) > cancelling
        except asyncio.CancelledError:
            if lost is None or is_cancelled_by_others:
                raise
            raise lost from None
        except BaseException:
            if cancelled is not None and is_cancelled_by_others:
                keep_pending(cancelled)
            raise
        if cancelled is not None and is_cancelled_by_others:
            raise cancelled

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await clean_up(partial(self._release_if_held, uuid4().hex[:16]), releasing(self), after=error)


def releasing(lease: LeaseClaim) -> str:
    """Return the name of a release, for a log record."""
    return f"releasing the lease of session {lease.session_id!r}, which expires at its deadline otherwise,"


def _result_of(keeper: asyncio.Task[StoreError]) -> StoreError | None:
    return None if not keeper.done() or keeper.cancelled() else keeper.result()
