"""The blocking twin of `session.stream`."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from lash_redis.blocking.calls import Call
from lash_redis.blocking.loop_thread import LoopThread
from lash_redis.blocking.running import Running
from lash_redis.errors import BackendError
from lash_redis.session.stream import StreamWriter


class BlockingStreamWriter(StreamWriter):
    """The only producer of a stream. `BlockingSessionStore.stream` makes it; it is a context manager.

    The block ends the stream: as finished, or as failed if it raises. Events that were not sent yet are sent before, in
    either case. The thread of the cache gives signs of life while the block runs. Threads can share a writer. A child
    that is forked in the block can neither write to the stream nor end it, and leaving the block has no effect there.
    Closing the cache in the block fails the stream.
    """

    __slots__ = ("_loops", "_running")

    _loops: LoopThread
    _running: Running

    def send(self, data: Any) -> None:  # type: ignore[override]
        """Add an event: any JSON. See `StreamWriter.send`."""
        self._loops.run(StreamWriter._send, self, data)

    def flush(self) -> None:  # type: ignore[override]
        """Send all events that were added, and wait until they are stored. See `StreamWriter.flush`."""
        self._loops.run(StreamWriter._flush, self)

    def __enter__(self) -> Self:
        self._running = self._loops.started()
        return self._loops.finish(Call(self._enter(self._running), undo=self._abandon))  # type: ignore[no-any-return]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.is_own:  # the block forked, and the parent ends the stream
            return
        self._running.note_closed(self)
        try:
            self._loops.run(StreamWriter.__aexit__, self, kind, error, at)
        except BackendError:
            if not self._running.is_ending or (error is None and self._end != "f"):
                raise

    async def _enter(self, running: Running) -> Self:
        await StreamWriter.__aenter__(self)
        running.note_open(self, self._fail)
        return self

    async def _abandon(self, _: object) -> None:
        """Fail a stream whose block does not begin, because the caller was interrupted."""
        self._running.note_closed(self)
        await self._fail()

    async def _fail(self) -> None:
        """End the stream as failed: the cache is closed in its block, or the block does not begin."""
        await StreamWriter._close(self, "x")


def blocking_writer(loops: LoopThread, writer: StreamWriter) -> BlockingStreamWriter:
    """Return a writer with blocking methods, for one that was not entered yet."""
    blocking = BlockingStreamWriter(writer._namespace, writer._keys, writer._bounds)
    blocking._loops = loops
    return blocking
