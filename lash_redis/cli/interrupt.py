"""Ctrl-C during a blocking read or write of a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Let ctrl-C interrupt a read or write that waits for a pipe.

    A running event loop defers the first ctrl-C to the next await, so a system call that blocks would continue.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
