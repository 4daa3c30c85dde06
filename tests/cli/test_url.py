"""A command without a URL: those that need stored sessions refuse it, the others report the empty server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lash_redis.cli import app

EMPTY = "an empty embedded server in memory"
REMEDY = "pass --url redis://host or --url embedded:///directory, or set LASH_REDIS_URL"

NEEDS_DATA = [
    *(["show", "one"], ["tail", "one"], ["watch", "one"], ["fork", "one", "two"], ["delete", "one"]),
    *(["export", "--all"], ["export", "one"], ["stats"], ["gc"], ["audit"], ["preload"]),
]

runner = CliRunner(env={"COLUMNS": "80", "LASH_REDIS_URL": None})


@pytest.mark.parametrize("arguments", NEEDS_DATA, ids=" ".join)
def test_a_command_on_stored_sessions_needs_a_url(arguments: list[str]) -> None:
    ended = runner.invoke(app, arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"lash-redis: --url: expected a server with stored sessions, got {EMPTY} (embedded://); {REMEDY}\n"
    )
    in_process = runner.invoke(app, [*arguments, "--url", "memory://"])
    assert (in_process.exit_code, "memory://" in in_process.stderr) == (2, True)


def test_the_refusal_is_a_document_with_json() -> None:
    ended = runner.invoke(app, ["show", "one", "--json"])
    document = json.loads(ended.stdout)
    assert (document["ok"], document["exit_code"], REMEDY in document["error"]) == (False, 2, True)


def test_list_and_import_report_the_empty_server(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"id": "one", "messages": [{"role": "user", "content": "Hello"}]}\n')
    listed = runner.invoke(app, ["list", "--json"])
    imported = runner.invoke(app, ["import", "--openai", str(path)])
    assert (listed.exit_code, json.loads(listed.stdout)["sessions"]) == (0, [])
    assert (imported.exit_code, imported.stdout) == (0, "1 session stored as in the file\n")
    for ended in (listed, imported):
        assert f"lash-redis: using {EMPTY}, which ends with this command; {REMEDY}\n" in ended.stderr


@pytest.mark.parametrize("arguments", [*NEEDS_DATA, ["list"]], ids=" ".join)
def test_a_command_that_reads_makes_no_directory(arguments: list[str], tmp_path: Path) -> None:
    ended = runner.invoke(app, [*arguments, "--url", f"embedded://{tmp_path}/mistyped"])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert f"{tmp_path}/mistyped does not exist" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_not_an_empty_server(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    ended = runner.invoke(app, ["list", "--url", f"embedded://{tmp_path}/db"])
    assert (ended.exit_code, ended.stderr) == (0, "")
