"""Runs the program `lash-redis`, writes its input files, and uses a cache before or during a command."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import redis

import lash_redis
from lash_redis import SessionCache, StoreOptions
from tests.support.blocking import wait_until

Answer = TypeVar("Answer")


def within(
    url: str, body: Callable[[SessionCache], Awaitable[Answer]], namespace: str = "default", shards: int = 64
) -> Answer:
    """Run `body` with a cache, and return its result."""

    async def inside() -> Answer:
        async with lash_redis.connect(url, namespace=namespace, options=StoreOptions(shards=shards)) as cache:
            return await body(cache)

    return asyncio.run(inside())


@contextmanager
def meanwhile(url: str, body: Callable[[SessionCache], Awaitable[Any]]) -> Iterator[None]:
    """Run `body` in a thread during the block, once a session is watched."""

    def run_body() -> None:
        with redis.Redis.from_url(url) as client:
            wait_until(client.pubsub_channels)
        within(url, body)

    thread = threading.Thread(target=run_body)
    thread.start()
    yield
    thread.join()


def written(path: Path, *lines: Any) -> Path:
    """Write a file of JSON Lines. A line that is a string is written as it is."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def lash_redis_program(*arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start the program in a process of its own. `env` is added to the environment."""
    path = os.pathsep.join([str(Path(lash_redis.__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-m", "lash_redis.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        **options,
    )
