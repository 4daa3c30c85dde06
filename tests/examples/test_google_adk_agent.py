"""The agent of examples/google_adk_agent: each question is answered by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lash_redis.embedded import EmbeddedServer
from tests.support.paths import ROOT


def ask(directory: Path, user_id: str, session_id: str, url: str) -> str:
    program = str(ROOT / "examples" / "google_adk_agent" / "agent.py")
    inherited = {name: value for name, value in os.environ.items() if name != "GOOGLE_API_KEY"}
    done = subprocess.run(
        [sys.executable, program, user_id, session_id, "Weather?"],
        cwd=directory,
        env={**inherited, "PYTHONPATH": str(ROOT), "AGENT_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_agent_continues_its_session_and_its_users_state_in_another_process(tmp_path: Path) -> None:
    with EmbeddedServer() as server:
        assert ask(tmp_path, "alice", "c1", server.url) == "Oslo: rain, 7 degrees (forecast 1 for you); 3 messages\n"
        assert ask(tmp_path, "alice", "c1", server.url) == "Oslo: rain, 7 degrees (forecast 2 for you); 7 messages\n"
        assert ask(tmp_path, "alice", "c2", server.url) == "Oslo: rain, 7 degrees (forecast 3 for you); 3 messages\n"
        assert "forecast 1" in ask(tmp_path, "bob", "c1", server.url)
