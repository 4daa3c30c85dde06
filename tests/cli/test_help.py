"""The help and the version of the program: every command's help is short, has an example, and is found by -h, too."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from lash_redis.cli import app

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)

runner = CliRunner(env={"COLUMNS": "80"})


def test_the_version_is_printed() -> None:
    ended = runner.invoke(app, ["--version"])
    assert (ended.exit_code, ended.stdout) == (0, "lash-redis 0.1.0\n")


def test_every_command_is_listed_on_one_line() -> None:
    listed = re.findall(r"^│ ([a-z]+)  ", runner.invoke(app, ["-h"]).stdout, re.MULTILINE)
    assert sorted(listed) == COMMANDS


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_h_is_help_and_fits_on_one_screen(command: list[str]) -> None:
    short, long = (runner.invoke(app, [*command, option]) for option in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    lines = short.stdout.rstrip().splitlines()
    assert 20 <= len(lines) <= 40
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_one_example_that_is_valid(name: str) -> None:
    (example,) = re.findall(r"Example: lash-redis (.+)", runner.invoke(app, [name, "-h"]).stdout)
    command, *words = shlex.split(example)
    assert command == name
    options = {option for parameter in GROUP.commands[name].params for option in parameter.opts}
    assert [word for word in words if word.startswith("-") and word not in options] == []
