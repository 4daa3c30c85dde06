"""Processes that are not children of this one: whether they are alive, and how to freeze them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

PATIENCE = 30.0
"""Seconds that a process may take to stop."""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def parent_of(pid: int) -> int:
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout)


def freeze(pid: int) -> None:
    """Send SIGSTOP; return when the process has stopped.

    On a busy machine the process runs on for a while. If its parents die before it stops, it stays stopped for ever:
    the kernel continues and ends the members of an orphaned process group only if they have already stopped.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    while _state(pid) != "T":
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.001)


def _state(pid: int) -> str:
    """One letter, T for a stopped one."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.is_dir():
        return stat.read_text().rpartition(")")[2].split()[0]
    return subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()[:1]


def free_port() -> int:
    """A port of 127.0.0.1 that no process uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
