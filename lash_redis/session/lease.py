"""A session's lease in the hands of its holder: renewed, released, kept while a block runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from types import TracebackType
from typing import Annotated, Final, Protocol, Self

from lash_redis._validate import seconds_to_ms
from lash_redis.errors import BackendError, InvalidRecord, LeaseLost, OutcomeUnknown, SessionDeleted, StoreError
from lash_redis.models.lease import LeaseClaim, LeaseInfo, Seconds
from lash_redis.models.wire import Rule
from lash_redis.transport.given import end_if_cancelled

log = logging.getLogger("lash_redis")

RENEWALS: Final = 3
"""How often a lease is renewed within its time, so that one renewal that fails is not the end of it."""


class LeaseHolder(Protocol):
    """What renews and releases a lease on the server: `Leasing`."""

    async def renew(self, lease: LeaseClaim, ttl: float) -> None: ...

    async def release(self, lease: LeaseClaim) -> None: ...


@dataclass(slots=True, eq=False)
class Lease(LeaseClaim):
    """The right to work on a session alone, from `RedisSessionStore.acquire_lease`.

    It puts workers that ask for it one after the other, so that who comes later can see whether the model was called
    already; it is no lock on the session. Who may write is decided by the revision a commit builds on; a commit that
    carries the lease (`RuntimeCommit.lease`) is refused besides once the lease is lost.

    `async with` releases it at the end of the block; where it is lost by then there is nothing left to release, which
    is no error. `renewing` keeps it as long as a block takes.
    """

    ttl: Seconds = 30.0
    """Seconds it lives after it was acquired or renewed."""
    displaced: LeaseInfo | None = None
    """The holder whose time was up when this lease was acquired; None where the lease was free or one's own.

    None, too, where the reply was lost and the claim was sent again: then it was this holder's already.
    """
    _holder: Annotated[LeaseHolder | None, Rule.IN_MEMORY] = field(default=None, repr=False)
    _ends: Annotated[float, Rule.IN_MEMORY] = field(default=0.0, repr=False)

    @property
    def remaining(self) -> float:
        """Seconds it surely still has, 0 if none, by this process's own clock since it asked. Not after `from_json`."""
        return max(0.0, self._ends - monotonic())

    async def renew(self, ttl: float | None = None) -> Self:
        """Let it live `ttl` seconds from now (default: as long as before); never shorter than it would have.

        Raises:
            LeaseLost: its time was up, it was taken over or released; nothing was written.
            SessionDeleted: the session was deleted.
            OutcomeUnknown: the reply was lost; renewing again settles it.
        """
        holder, ttl = self._bound(), self.ttl if ttl is None else ttl
        asked = monotonic()
        await holder.renew(self, ttl)
        self.ttl, self._ends = ttl, max(self._ends, asked + ttl)
        return self

    async def release(self) -> None:
        """Let go of it. Its generation stays with the session, so the next holder's is one higher.

        Raises:
            LeaseLost: it was not held any more; whoever holds it now is left alone.
            SessionDeleted: the session was deleted.
            OutcomeUnknown: the reply was lost; a lease that is still held runs out by itself.
        """
        await self._bound().release(self)
        self._ends = 0.0

    @asynccontextmanager
    async def renewing(self, every: float | None = None) -> AsyncIterator[Self]:
        """Renew it in the background while the block runs; the block ends with `LeaseLost` the moment it is lost.

        One that has no time left by this process's clock, or was adopted, is renewed first.
        `every`: seconds between renewals, at most a third of `ttl`, which is the default. The block is cancelled, as
        `asyncio.timeout` does it, when a renewal is refused, or when no renewal has come through until the lease's time
        is up by this process's clock. A process that was frozen learns of it as soon as it runs again. A block that
        has come to its end is not told any more.

        Raises:
            LeaseLost, SessionDeleted: the lease was lost while the block ran.
            Corrupt, SessionEvicted: so it was, because the session broke.
        """
        interval = seconds_to_ms("every", self.ttl / RENEWALS if every is None else every) / 1000
        if interval > self.ttl / RENEWALS + 0.001:
            raise InvalidRecord("every", f"expected at most a third of the lease's {self.ttl} seconds, got {every!r}")
        if self.remaining == 0:  # the server knows better, above all of one that was adopted
            await self.renew()
        task = asyncio.current_task()
        assert task is not None
        keeper = asyncio.create_task(self._keep(interval, task))
        is_done, cancelling = False, task.cancelling()
        try:
            try:
                yield self
                is_done = True
            finally:
                keeper.cancel()
                await asyncio.wait([keeper])
        except asyncio.CancelledError:
            lost = _result_of(keeper)
            if lost is None or task.uncancel() > cancelling:
                raise
            if not is_done:
                raise lost from None
        except BaseException:
            if _result_of(keeper) is not None:
                task.uncancel()
            raise
        else:
            if _result_of(keeper) is not None:  # the block was cancelled and did not learn of it
                task.uncancel()

    async def _keep(self, interval: float, task: asyncio.Task[object]) -> StoreError:
        """Renew until it is lost; then cancel `task` and say why."""
        lost: StoreError = LeaseLost(self.session_id, self.owner, "expired")
        while self.remaining > 0:
            end_if_cancelled()
            await asyncio.sleep(min(interval, self.remaining))
            if self.remaining == 0:
                break
            try:
                async with asyncio.timeout(self.remaining):
                    await self.renew()
            except (BackendError, OutcomeUnknown, TimeoutError) as error:
                log.warning("the lease of session %r could not be renewed: %s", self.session_id, error)
            except StoreError as error:
                lost = error
                break
        task.cancel()
        return lost

    def __reduce__(self) -> tuple[object, ...]:
        """As it travels by JSON: without its holder, to be adopted elsewhere."""
        return type(self).from_json, (self.to_json(),)

    def __copy__(self) -> Self:
        return replace(self)

    def __deepcopy__(self, memo: object) -> Self:
        return replace(self)

    def _bound(self) -> LeaseHolder:
        if self._holder is None:
            raise InvalidRecord("lease", "belongs to no store; give it to RedisSessionStore.adopt_lease")
        return self._holder

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except (LeaseLost, SessionDeleted):
            log.info("the lease of session %r was lost before it was released", self.session_id)
        except StoreError:
            if error is None:
                raise
            log.warning("the lease of session %r could not be released", self.session_id, exc_info=True)


def _result_of(keeper: asyncio.Task[StoreError]) -> StoreError | None:
    return None if not keeper.done() or keeper.cancelled() else keeper.result()
