"""The agents of the folder `examples`: another process continues what one has begun."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.agents import ask
from tests.support.paths import ROOT

FORECAST = "Oslo, today: rain, 7 degrees (forecast 1 of this {})\n"


@pytest.mark.slow
def test_an_openai_agent_continues_its_session_in_another_process(tmp_path: Path, url: str) -> None:
    asked = partial(ask, "openai_agent", tmp_path, AGENT_REDIS_URL=url)
    assert asked("chat-1", "Weather?") == FORECAST.format("session")
    assert "forecast 2" in asked("chat-1", "And tomorrow?")
    assert "forecast 1" in asked("chat-2", "Weather?")


@pytest.mark.slow
def test_a_pydantic_ai_agent_continues_its_conversation_in_another_process(tmp_path: Path, url: str) -> None:
    asked = partial(ask, "pydantic_ai_agent", tmp_path, AGENT_REDIS_URL=url)
    assert asked("chat-1", "Weather?") == FORECAST.format("conversation")
    assert "forecast 2" in asked("chat-1", "And tomorrow?")
    assert "forecast 2" in asked("chat-1", "--again")
    assert "forecast 3" in asked("chat-1", "And then?")


@pytest.mark.slow
def test_an_adk_agent_continues_its_session_and_its_users_state_in_another_process(tmp_path: Path, url: str) -> None:
    asked = partial(ask, "google_adk_agent", tmp_path, AGENT_REDIS_URL=url)
    assert asked("alice", "c1", "Weather?") == "Oslo: rain, 7 degrees (forecast 1 for you); 3 messages\n"
    assert asked("alice", "c1", "Weather?") == "Oslo: rain, 7 degrees (forecast 2 for you); 7 messages\n"
    assert asked("alice", "c2", "Weather?") == "Oslo: rain, 7 degrees (forecast 3 for you); 3 messages\n"
    assert "forecast 1" in asked("bob", "c1", "Weather?")


@pytest.mark.slow
def test_a_langgraph_agent_is_resumed_at_its_question_by_another_process(tmp_path: Path, url: str) -> None:
    asked = partial(ask, "langgraph_agent", tmp_path, url, "trip")
    assert asked("a flight to Oslo") == "approve? {'tool': 'book', 'args': {'request': 'a flight to Oslo'}}\n"
    assert asked("--approve", "yes") == "Done: booked 'a flight to Oslo'\n"
    asked("a hotel")
    assert asked("--approve", "no") == "Done: not approved\n"


PROGRAMS = sorted((ROOT / "examples").glob("*/*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_example_has_less_than_100_lines(program: Path) -> None:
    assert len(program.read_text(encoding="utf-8").splitlines()) < 100
