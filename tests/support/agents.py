"""Runs the agents of the folder `examples`, each question in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

MODEL_KEYS = ("GOOGLE_API_KEY", "OPENAI_API_KEY")
"""Variables with which an example asks a real model. Without them it has a scripted one."""


def ask(name: str, directory: Path, *arguments: str, program: str = "agent.py", **environment: str) -> str:
    """Run a program of `examples/<name>` in `directory`, and return what it prints.

    Raises:
        AssertionError: it failed; with what it printed to standard error.
    """
    inherited = {variable: value for variable, value in os.environ.items() if variable not in MODEL_KEYS}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name / program), *arguments],
        cwd=directory,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
