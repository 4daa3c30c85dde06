"""The worker of examples/celery_worker, run by Celery's prefork pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lash_redis import blocking
from lash_redis.embedded import EmbeddedServer
from tests.support.paths import ROOT

FOLDER = ROOT / "examples" / "celery_worker"
LIMIT_SECONDS = 60.0


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with EmbeddedServer(port=0) as server:
        yield {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(FOLDER))),
            "CHAT_REDIS_URL": server.url,
            "CHAT_MODEL_SECONDS": "1",
        }


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[int]:
    """The id of a worker's process, whose pool has one child."""
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency", "1", "--loglevel", "ERROR"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    yield process.pid
    process.terminate()
    process.wait(LIMIT_SECONDS)


def asking(environment: dict[str, str], folder: Path, question: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(FOLDER / "tasks.py"), "chat-42", question]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def child_of(pid: int) -> int | None:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(listed[0]) if listed else None


@pytest.mark.slow
def test_a_task_whose_process_is_killed_is_repeated_and_stores_its_messages_once(
    environment: dict[str, str], tmp_path: Path, worker: int
) -> None:
    with blocking.connect(environment["CHAT_REDIS_URL"], namespace="chat-service") as cache:
        chat = cache.chat("chat-42")
        asked = asking(environment, tmp_path, "Hello")
        deadline = time.monotonic() + LIMIT_SECONDS
        while not chat.messages():  # the question is stored, and the model is called
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child = child_of(worker)
        assert child is not None
        os.kill(child, signal.SIGKILL)

        assert asked.communicate(timeout=LIMIT_SECONDS)[0] == "Echo: Hello\n"
        assert [message["content"] for message in chat.messages()] == ["Hello", "Echo: Hello"]
