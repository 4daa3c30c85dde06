"""The blocking twin of `session.stream`."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from lash_redis.blocking.loop_thread import LoopThread
from lash_redis.session.stream import StreamWriter


class BlockingStreamWriter(StreamWriter):
    """The only producer of a stream. `BlockingSessionStore.stream` makes it; it is a context manager.

    The block ends the stream: as finished, or as failed if it raises. Events that were not sent yet are sent before, in
    either case. The thread of the cache gives signs of life while the block runs. Threads can share a writer.
    """

    __slots__ = ("_loops",)

    _loops: LoopThread

    def send(self, data: Any) -> None:  # type: ignore[override]
        """Add an event: any JSON. See `StreamWriter.send`."""
        self._loops.run(StreamWriter._send, self, data)

    def flush(self) -> None:  # type: ignore[override]
        """Send all events that were added, and wait until they are stored. See `StreamWriter.flush`."""
        self._loops.run(StreamWriter._flush, self)

    def __enter__(self) -> Self:
        self._loops.run(StreamWriter.__aenter__, self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loops.run(StreamWriter.__aexit__, self, kind, error, at)


def blocking_writer(loops: LoopThread, writer: StreamWriter) -> BlockingStreamWriter:
    """Return a writer with blocking methods, for one that was not entered yet."""
    blocking = BlockingStreamWriter(writer._namespace, writer._keys, writer._bounds)
    blocking._loops = loops
    return blocking
