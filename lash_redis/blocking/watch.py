"""The blocking twin of `session.watch`."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from lash_redis.blocking.calls import Call
from lash_redis.blocking.running import Running
from lash_redis.blocking.twins import END, Twin, call, call_in_loop, next_item
from lash_redis.session.watch import SessionChange, SessionWatch


class BlockingSessionWatch(Twin[SessionWatch]):
    """Watch many sessions over one connection (in a cluster, one for each server).

    `BlockingSessionCache.watch` makes it. It is a context manager and, inside it, an iterator of `SessionChange`, which
    waits while there is no change. `SessionWatch` describes what it reports. Another thread may call `add` and `remove`
    meanwhile, or `close`, which ends the iteration.
    """

    _running: Running | None = None
    """The loop in which the watch was entered."""

    @property
    def poll(self) -> float:
        return self._inner.poll

    @property
    def patience(self) -> float:
        return self._inner.patience

    add = call_in_loop(SessionWatch.add)
    remove = call_in_loop(SessionWatch.remove)
    close = call(SessionWatch.aclose)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SessionChange:
        change = next_item(self._loops, self._running or self._loops.started(), self._inner)
        if change is END:
            raise StopIteration
        made: SessionChange = change
        return made

    def __enter__(self) -> Self:
        running = self._loops.started()
        return self._loops.finish(Call(self._enter(running), undo=self._abandon))  # type: ignore[no-any-return]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        running = self._running
        assert running is not None
        running.note_closed(self._inner)
        self._loops.clean_up(running, self._inner.__aexit__(kind, error, at))

    async def _enter(self, running: Running) -> Self:
        await self._inner.__aenter__()
        running.note_open(self._inner, self._inner.aclose)
        self._running = running
        return self

    async def _abandon(self, _: object) -> None:
        """End a watch whose block does not begin, because the caller was interrupted."""
        assert self._running is not None
        self._running.note_closed(self._inner)
        await self._inner.aclose()
