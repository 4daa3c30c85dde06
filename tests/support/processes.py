"""Processes that are not our children: whether they live, and stopping them where they stand."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

PATIENCE = 30.0
"""Seconds that the kernel has to stop a process."""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def freeze(pid: int) -> None:
    """SIGSTOP; returns when the process has stopped.

    Until then it goes on for as long as a busy machine lets it wait. And if its parents die in between, it stops for
    good: the kernel wakes and ends what nobody looks after any more only where it finds it stopped already.
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
