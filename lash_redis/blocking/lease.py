"""The blocking twin of `session.lease`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any, Self

from lash_redis.blocking.loop_thread import LoopThread
from lash_redis.blocking.twins import call, call_and_wrap, hold, name_methods
from lash_redis.models.wire import Rule
from lash_redis.session.lease import HeldLease, Lease


def _same(_: LoopThread, lease: Any) -> BlockingLease:
    held: BlockingLease = lease
    return held


@dataclass(slots=True, eq=False)
class BlockingLease(HeldLease):
    """The exclusive right to work on a session, from `BlockingSessionStore.acquire_lease`.

    Workers that acquire it run one after the other, so a later one can see whether the model was called already. It
    does not lock the session: the revision that a commit builds on decides whether the commit is applied. A commit that
    carries the lease (`RuntimeCommit.lease`) is also refused once the lease is lost.

    `with` releases it at the end of the block. A lease that is lost by then is not an error. `renewing` keeps it
    renewed while a block runs. It cannot end the block, which runs in a thread: a lease that is lost meanwhile raises
    `LeaseLost` at the end of the block. Check `remaining` before an expensive step.
    """

    _thread: Annotated[LoopThread | None, Rule.IN_MEMORY] = field(default=None, repr=False)
    _process: Annotated[int, Rule.IN_MEMORY] = field(default=0, repr=False)
    """The process that entered `with`. A child that is forked in the block does not release the lease."""

    @property
    def _loops(self) -> LoopThread:
        self._bound()
        assert self._thread is not None
        return self._thread

    @property
    def _inner(self) -> Self:
        return self

    renew = call_and_wrap(Lease.renew, _same)
    release = call(Lease.release)
    renewing = hold(Lease.renewing, _same)

    def __enter__(self) -> Self:
        self._process = os.getpid()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process == os.getpid():
            self._loops.run(Lease.__aexit__, self, kind, error, at)


name_methods(BlockingLease)


def blocking_lease(loops: LoopThread, lease: HeldLease) -> BlockingLease:
    """Return a lease with blocking methods, for one that the store has just acquired or adopted."""
    return BlockingLease(
        lease.session_id,
        lease.owner,
        lease.token,
        lease.generation,
        lease.deadline,
        ttl=lease.ttl,
        displaced=lease.displaced,
        _holder=lease._holder,
        _ends=lease._ends,
        _thread=loops,
    )
