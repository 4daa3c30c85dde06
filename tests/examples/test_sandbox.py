"""The sandbox of examples/sandbox, each command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.agents import ask
from tests.support.paths import ROOT


@pytest.mark.slow
def test_a_sandbox_is_resumed_with_its_files_and_without_those_of_a_killed_command(tmp_path: Path, url: str) -> None:
    def run(*arguments: str) -> str:
        return ask("sandbox", tmp_path, *arguments, program="sandbox.py", SANDBOX_REDIS_URL=url)

    assert run("box-1", "echo 'print(6 * 7)' > answer.py") == ""
    assert run("box-1", f"{sys.executable} answer.py") == "42\n"

    program = str(ROOT / "examples" / "sandbox" / "sandbox.py")
    started = tmp_path / "started"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SANDBOX_REDIS_URL": url}
    command = f"rm answer.py; touch {started}; sleep 60"
    killed = subprocess.Popen([sys.executable, program, "box-1", command], env=environment, start_new_session=True)
    deadline = time.monotonic() + 30
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    assert run("box-1", "ls") == "answer.py\n"
    assert run("box-1", "--history").splitlines()[-2:] == ["$ ls", "> answer.py"]
    assert run("box-2", "ls") == ""


@pytest.mark.slow
def test_a_sandbox_is_resumed_whatever_its_command_left(tmp_path: Path, url: str) -> None:
    """Links out of the folder and pipes are left out, because the next process would not unpack them."""

    def run(command: str) -> str:
        return ask("sandbox", tmp_path, "box-1", command, program="sandbox.py", SANDBOX_REDIS_URL=url)

    odd = "echo kept > file; ln -s file inside; ln -s /etc/hosts absolute; ln -s ../../x above; mkfifo pipe"
    assert run(f"{odd}; sleep 9 & printf '\\377'") == "\N{REPLACEMENT CHARACTER}"
    assert run("ls; cat inside") == "file\ninside\nkept\n"


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["box-1"], 2), (["--help"], 0)])
def test_a_sandbox_without_a_command_prints_its_usage(arguments: list[str], code: int) -> None:
    program = str(ROOT / "examples" / "sandbox" / "sandbox.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, program, *arguments], env=environment, capture_output=True, text=True)
    assert ended.returncode == code
    assert "usage: sandbox.py" in ended.stdout + ended.stderr
