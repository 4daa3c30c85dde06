"""Follows docs/tutorial as a new user does: saves the files, runs the commands, and compares what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.markdown import Block, blocks_of
from tests.support.paths import ROOT
from tests.support.services import Service

FIRST, SERVICE = (ROOT / "docs" / "tutorial" / f"{name}.md" for name in ("first-chat", "chat-service"))
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


def steps_of(page: Path) -> Iterator[tuple[str, str]]:
    """Each command of a page's console blocks, with the output that the page shows below it."""
    for block in blocks_of(page):
        if block.language == "console":
            yield from re.findall(r"^\$ (.+)\n((?:[^$\n].*\n)*)", block.text, re.MULTILINE)


def run(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT)}
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def python_of(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language == "python"]


def test_the_first_tutorial_resumes_its_chat(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(python_of(FIRST)[0].text)
    printed = [run(command, tmp_path) for command, _ in steps_of(FIRST) if not command.startswith("pip")]
    assert printed[:2] == ["user Hello\n", "user Hello\nuser Hello\n"]
    assert "chat-42" in printed[2]
    assert "Hello" in printed[3]


@pytest.mark.slow
def test_the_service_of_the_second_tutorial_prints_what_the_page_shows(
    tmp_path: Path, start: Callable[..., Service]
) -> None:
    (tmp_path / "app.py").write_text("\n".join(block.text for block in python_of(SERVICE)))
    service = start(tmp_path, "--workers", "2")
    steps = [step for step in steps_of(SERVICE) if not step[0].startswith(("pip", "uvicorn"))]
    assert len(steps) == 6
    for command, output in steps:
        printed = run(command.replace("localhost:8000", f"127.0.0.1:{service.port}"), tmp_path)
        assert printed.strip() == output.strip() or (not output and "You wrote: Hello" in printed)
