"""A command ends with the exit code of what it did, also on a terminal that cannot show every character."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from lash_redis import connect

TITLE = "Zażółć \N{PARTY POPPER} caf\xe9"


@pytest.fixture
def stored(url: str) -> str:
    """The URL of a server with one session, whose texts no ASCII terminal can show."""

    async def store() -> None:
        async with connect(url, namespace="odd") as cache:
            chat = cache.chat("\N{SNOWMAN}")
            await chat.append({"role": "user", "content": TITLE}, {"role": "assistant", "content": TITLE})
            await chat.set_title(TITLE)

    asyncio.run(store())
    return url


def run(url: str, *words: str, encoding: str = "ascii") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lash_redis.cli", *words, "--url", url, "--namespace", "odd"]
    env = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    return subprocess.run(command, env=env, capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_command_succeeds_on_a_terminal_that_lacks_characters(stored: str, encoding: str) -> None:
    for words in (
        ["list"],
        ["show", "\N{SNOWMAN}"],
        ["stats"],
        ["audit"],
        ["gc"],
        ["doctor"],
        ["fork", "\N{SNOWMAN}", "2"],
    ):
        ended = run(stored, *words, encoding=encoding)
        assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), (words, ended.stderr)
    assert b"\\u2603" in run(stored, "list", encoding=encoding).stdout


@pytest.mark.slow
def test_json_is_valid_on_a_terminal_that_lacks_characters(stored: str) -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        ended = run(stored, "list", "--json", encoding=encoding)
        assert (ended.returncode, ended.stderr) == (0, b"")
        document = json.loads(ended.stdout.decode(encoding))
        assert TITLE in json.dumps(document, ensure_ascii=False)


@pytest.mark.slow
def test_a_refusal_keeps_its_exit_code_on_a_terminal_that_lacks_characters(stored: str) -> None:
    ended = run(stored, "show", "caf\xe9 \N{SNOWMAN}")
    assert ended.returncode == 1
    assert ended.stderr == b"lash-redis: no session 'caf\\xe9 \\u2603' in namespace 'odd'\n"


@pytest.mark.slow
def test_a_deletion_succeeds_on_a_terminal_that_lacks_characters(stored: str) -> None:
    ended = run(stored, "delete", "\N{SNOWMAN}", "--yes")
    assert (ended.returncode, b"\\u2603" in ended.stdout) == (0, True), ended
    assert run(stored, "list", "--json").stdout.count(b"u2603") == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "tail", "delete", "fork"])
def test_an_id_of_bytes_that_are_no_text_is_wrong_usage(stored: str, command: str) -> None:
    more = {"delete": ["--yes"], "fork": ["copy"]}.get(command, [])
    ended = run(stored, command, os.fsdecode(b"\xff"), *more)
    assert (ended.returncode, b"is not valid Unicode" in ended.stderr) == (2, True), ended.stderr
