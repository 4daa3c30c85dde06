"""The LangGraph example stops at its question, and another process resumes it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # each of its processes imports LangGraph


def run(*args: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / "langgraph_agent" / "agent.py"), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_another_process_resumes_the_agent_at_its_question(url):
    asked = run(url, "trip", "a flight to Oslo")
    assert asked == "approve? {'tool': 'book', 'args': {'request': 'a flight to Oslo'}}"
    assert run(url, "trip", "--approve", "yes") == "Done: booked 'a flight to Oslo'"
    run(url, "trip", "a hotel")
    assert run(url, "trip", "--approve", "no") == "Done: not approved"


def test_the_example_has_less_than_100_lines():
    assert len((ROOT / "examples" / "langgraph_agent" / "agent.py").read_text(encoding="utf-8").splitlines()) < 100
