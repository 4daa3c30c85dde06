"""`import --from langgraph` stores the threads of LangGraph's savers."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from typer.testing import CliRunner, Result

import lash_redis
from lash_redis.cli import app
from lash_redis.integrations.langgraph import LashCheckpointSaver
from tests.support import graphs
from tests.support.graphs import given, shown, thread

runner = CliRunner(env={"COLUMNS": "80"})


def run(*arguments: str | Path, url: str, code: int = 0) -> Result:
    ended = runner.invoke(app, ["import", *map(str, arguments), "--url", url])
    assert ended.exit_code == code, ended.output
    return ended


async def fill(saver: Any) -> None:
    for name, thread_id in (("asking", "thread-1"), ("nested", "ü/2"), ("chat", "thread-3")):
        await graphs.GRAPHS[name]().compile(checkpointer=saver).ainvoke(given(["hi"]), thread(thread_id))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    async def write() -> None:
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
            await fill(saver)

    asyncio.run(write())
    return tmp_path / "threads.db"


def thread_ids(url: str) -> set[str]:
    async def read() -> set[str]:
        async with lash_redis.connect(url) as cache:
            return {info.session_id async for info in cache.sessions()}

    return asyncio.run(read())


def resumed(url: str, name: str, thread_id: str) -> dict[str, Any]:
    async def resume() -> dict[str, Any]:
        async with lash_redis.connect(url) as cache:
            graph = graphs.GRAPHS[name]().compile(checkpointer=LashCheckpointSaver(cache))
            return shown(await graph.ainvoke(given({"resume": "yes"}), thread(thread_id)))

    return asyncio.run(resume())


def test_the_threads_of_a_file_are_imported_and_resumed(file: Path, url: str) -> None:
    assert "3 sessions stored as in the source" in run("--from", "langgraph", file, url=url).output
    report = json.loads(run("--from", "langgraph", file, "--json", url=url).output)
    assert (report["ok"], report["session_count"], report["present_count"]) == (True, 3, 3)
    assert thread_ids(url) == {"thread-1", "ü/2", "thread-3"}
    assert resumed(url, "asking", "thread-1")["answer"] == "yes"
    assert resumed(url, "nested", "ü/2")["answer"] == "yes"


def test_the_threads_of_a_database_are_imported_and_resumed(database: str, url: str) -> None:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    async def write() -> None:
        async with AsyncPostgresSaver.from_conn_string(database) as saver:
            await saver.setup()
            await fill(saver)

    asyncio.run(write())
    assert "3 sessions stored as in the source" in run("--from", "langgraph", database, url=url).output
    assert resumed(url, "asking", "thread-1")["answer"] == "yes"
    assert resumed(url, "nested", "ü/2")["answer"] == "yes"


def test_named_threads_alone_are_imported(file: Path, url: str) -> None:
    output = run("--from", "langgraph", file, "--thread", "thread-1", "--thread", "never", url=url, code=1).output
    assert "thread 'never': the source has no checkpoint of it" in output
    assert thread_ids(url) == {"thread-1"}


def test_a_ttl_is_that_of_the_threads(file: Path, url: str) -> None:
    run("--from", "langgraph", file, "--thread", "thread-1", "--ttl", "60", url=url)

    async def read() -> int:
        async with lash_redis.connect(url) as cache:
            (deadline,) = await cache.shared.read([("PTTL", cache.layout.session("thread-1").documents)], atomic=False)
            return int(deadline)

    assert 50_000 < asyncio.run(read()) <= 60_000


@pytest.mark.parametrize(
    ("source", "module", "packages"),
    [
        ("threads.db", "langgraph.checkpoint.sqlite.aio", "langgraph-checkpoint-sqlite"),
        ("postgresql://db/threads", "psycopg", "langgraph-checkpoint-postgres 'psycopg[binary]'"),
        ("redis://old:6379", "langgraph.checkpoint.redis.aio", "langgraph-checkpoint-redis"),
    ],
)
def test_a_missing_package_is_named(
    source: str, module: str, packages: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    output = run("--from", "langgraph", source, url=url, code=2).output
    assert f"pip install 'lash-redis[langgraph]' {packages}" in " ".join(output.split())


def test_a_source_that_cannot_be_read_is_reported(tmp_path: Path, file: Path, url: str) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    empty = tmp_path / "empty.db"
    empty.touch()
    for arguments, code, reason in (
        (("--from", "langgraph", tmp_path / "never.db"), 2, "no such file"),
        (("--from", "langgraph", tmp_path / "text"), 2, "text cannot be read: file is not a database"),
        (("--from", "langgraph", empty), 1, "is no database of a LangGraph saver"),
        (("--from", "langgraph", "postgresql://127.0.0.1:1/none"), 2, "the source cannot be read"),
        (("--from", "langgraph", file, "--prefix", "x"), 2, "--prefix needs"),
        (("--from", "redis-session", url, "--thread", "x"), 2, "--thread needs"),
    ):
        assert reason in " ".join(run(*arguments, url=url, code=code).output.split()), arguments
    assert not (tmp_path / "never.db").exists()


def test_a_database_of_another_program_is_reported_and_not_changed(tmp_path: Path, url: str) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE sessions (id TEXT)")
    before = other.read_bytes()
    output = run("--from", "langgraph", other, url=url, code=1).output
    assert "is no database of a LangGraph saver" in " ".join(output.split())
    assert other.read_bytes() == before
