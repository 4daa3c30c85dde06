"""The agent of examples/pydantic_ai_agent: each question is answered by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lash_redis.embedded import EmbeddedServer
from tests.support.paths import ROOT


def ask(directory: Path, session_id: str, question: str, **environment: str) -> str:
    program = str(ROOT / "examples" / "pydantic_ai_agent" / "agent.py")
    inherited = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    done = subprocess.run(
        [sys.executable, program, session_id, question],
        cwd=directory,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_agent_continues_its_conversation_in_another_process(tmp_path: Path) -> None:
    with EmbeddedServer() as server:
        url = {"AGENT_REDIS_URL": server.url}
        first = "Oslo, today: rain, 7 degrees (forecast 1 of this conversation)\n"
        assert ask(tmp_path, "chat-1", "Weather?", **url) == first
        assert "forecast 2" in ask(tmp_path, "chat-1", "And tomorrow?", **url)
        assert "forecast 2" in ask(tmp_path, "chat-1", "--again", **url)
        assert "forecast 3" in ask(tmp_path, "chat-1", "And then?", **url)
