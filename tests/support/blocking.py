"""Support of the tests of the blocking client: its threads and connections, and scripts in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import redis

from lash_redis.blocking import BlockingSessionCache
from lash_redis.transport.connectors import by_url
from tests.support.paths import ROOT
from tests.support.servers import Server

PATIENCE = 30.0
"""Seconds within which an event must happen."""

PREFIX = "lash_redis-"


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def loop_threads() -> list[threading.Thread]:
    """The threads of blocking caches in this process."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(PREFIX)]


def connections(url: str) -> int:
    """The number of connections to a server, without the one that counts them."""
    with redis.Redis.from_url(url) as client:
        return len(client.client_list()) - 1


def blocking_cache(server: Server, namespace: str, **more: Any) -> BlockingSessionCache:
    """Open a blocking cache on a server of any kind, with a connector of its own."""
    if server.kind.real:
        return BlockingSessionCache(by_url(server.url), namespace, **more)
    import fakeredis

    return BlockingSessionCache(fakeredis.FakeRedis(server=server._fake), namespace, **more)


def script(code: str, *arguments: str, warnings: str = "default") -> subprocess.Popen[str]:
    """Start a script. Python reports everything that was not closed or awaited on standard error."""
    command = [sys.executable, "-W", warnings, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def output_of(code: str, *arguments: str, warnings: str = "default") -> str:
    """Run a script to its end, and return what it printed. It must succeed, in time, and without a word on stderr."""
    with script(code, *arguments, warnings=warnings) as process:
        try:
            printed, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert errors == ""
    assert process.returncode == 0
    return printed
