"""`import --from adk` stores the sessions and states of a database that Google's ADK has written."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.adk.sessions import BaseSessionService, DatabaseSessionService, Session
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from typer.testing import CliRunner, Result

import lash_redis
from lash_redis.cli import app
from lash_redis.integrations.google_adk import LashSessionService
from tests.support.adk import said

Write = Callable[[BaseSessionService], Coroutine[Any, Any, None]]

runner = CliRunner(env={"COLUMNS": "80"})


def run(source: str | Path, url: str, *arguments: str, code: int = 0) -> Result:
    ended = runner.invoke(app, ["import", "--from", "adk", str(source), "--url", url, *arguments])
    assert ended.exit_code == code, ended.output
    return ended


def counts(result: Result) -> tuple[int, int, int]:
    report = json.loads(result.output)
    return report["session_count"], report["present_count"], report["failed_count"]


async def write_apps(service: BaseSessionService) -> None:
    """Two apps with two users each, states of every scope, and a user and an app that have states but no session."""
    for at, (app_name, user_id) in enumerate((a, u) for a in ("shop", "a/b") for u in ("alice", "böb")):
        for name in ("s1", "s2"):
            state = {"k": name, f"app:{user_id}{name}": at, "user:plan": [name, None], "temp:t": 1}
            session = await service.create_session(app_name=app_name, user_id=user_id, session_id=name, state=state)
            for number in range(3):
                delta = {"n": number, "app:n": [at, number], "user:n": {"x": number}, "temp:n": number}
                event = said(f"{app_name} {user_id} {name} {number}", delta, timestamp=1000.25 + number)
                await service.append_event(session, event)
    await service.create_session(app_name="shop", user_id="alice", session_id="empty", state={"only": "state"})
    for app_name in ("shop", "gone"):
        await service.create_session(app_name=app_name, user_id="x", session_id="s", state={"app:left": 1, "user:l": 2})
        await service.delete_session(app_name=app_name, user_id="x", session_id="s")


KEYS = [(a, u, s) for a in ("shop", "a/b") for u in ("alice", "böb") for s in ("s1", "s2")]


@pytest.fixture(params=["DatabaseSessionService", "SqliteSessionService"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Write], Path]:
    """`database(write)` lets a service of ADK write to an SQLite file, and returns its path."""
    path = tmp_path / "adk.db"

    def written(write: Write) -> Path:
        async def with_service() -> None:
            if request.param == "SqliteSessionService":
                await write(SqliteSessionService(str(path)))
                return
            async with DatabaseSessionService(f"sqlite+aiosqlite:///{path}") as service:
                await write(service)

        asyncio.run(with_service())
        return path

    return written


def read(url: str, key: tuple[str, str, str]) -> Session | None:
    app_name, user_id, session_id = key

    async def found() -> Session | None:
        async with lash_redis.connect(url) as cache:
            service = LashSessionService(cache)
            return await service.get_session(app_name=app_name, user_id=user_id, session_id=session_id)

    return asyncio.run(found())


def test_sessions_and_states_of_all_apps_are_imported_as_the_database_has_them(
    database: Callable[[Write], Path], url: str
) -> None:
    path = database(write_apps)
    before = path.read_bytes()
    assert counts(run(path, url, "--json")) == (9, 0, 0)
    originals: dict[tuple[str, str, str], Session] = {}

    async def read_originals(service: BaseSessionService) -> None:
        for app_name, user_id, name in [*KEYS, ("shop", "alice", "empty")]:
            session = await service.get_session(app_name=app_name, user_id=user_id, session_id=name)
            assert session is not None
            originals[app_name, user_id, name] = session

    assert path.read_bytes() == before
    database(read_originals)
    for key, original in originals.items():
        found = read(url, key)
        assert found is not None
        assert (found.events, found.state) == (original.events, original.state)
        assert found.last_update_time == pytest.approx(original.last_update_time, abs=1e-5)
    assert found.state["app:alices1"] == 0
    assert not any(key.startswith("temp:") for each in originals.values() for key in each.state)

    async def read_states() -> None:
        async with lash_redis.connect(url) as cache:
            service = LashSessionService(cache)
            assert len((await service.list_sessions(app_name="shop")).sessions) == 5
            assert len((await service.list_sessions(app_name="a/b", user_id="böb")).sessions) == 2
            assert await service.get_user_state(app_name="gone", user_id="x") == {"l": 2}
            made = await service.create_session(app_name="gone", user_id="x")
            assert made.state == {"app:left": 1, "user:l": 2}

    asyncio.run(read_states())


def test_a_second_import_changes_nothing(database: Callable[[Write], Path], url: str) -> None:
    path = database(write_apps)
    run(path, url)
    stored = {key: read(url, key) for key in KEYS}
    assert counts(run(path, url, "--json")) == (9, 9, 0)
    assert {key: read(url, key) for key in KEYS} == stored


def test_a_second_import_adds_what_was_written_meanwhile(database: Callable[[Write], Path], url: str) -> None:
    path = database(write_apps)
    run(path, url)

    async def write_more(service: BaseSessionService) -> None:
        session = await service.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert session is not None
        delta = {"n": "more", "app:n": "more", "user:n": "more"}
        await service.append_event(session, said("more", delta, timestamp=2000.0))
        await service.create_session(app_name="shop", user_id="carol", session_id="s1", state={"user:c": 1})

    database(write_more)
    assert counts(run(path, url, "--json")) == (10, 8, 0)
    found = read(url, ("shop", "alice", "s1"))
    assert found is not None
    assert [event.timestamp for event in found.events] == [1000.25, 1001.25, 1002.25, 2000.0]
    assert (found.state["n"], found.state["app:n"], found.state["user:n"]) == ("more", "more", "more")
    carol = read(url, ("shop", "carol", "s1"))
    assert carol is not None
    assert (carol.state["user:c"], carol.state["app:n"]) == (1, "more")


def test_a_session_and_states_that_differ_are_left_as_they_are_and_reported(
    database: Callable[[Write], Path], url: str
) -> None:
    path = database(write_apps)
    run(path, url)

    async def use() -> None:
        async with lash_redis.connect(url) as cache:
            service = LashSessionService(cache)
            for name in ("s1", "empty"):
                session = await service.get_session(app_name="shop", user_id="alice", session_id=name)
                assert session is not None
                await service.append_event(session, said("here", {"app:n": "here", "user:n": "here", "n": "here"}))

    asyncio.run(use())
    used = read(url, ("shop", "alice", "s1"))
    output = " ".join(run(path, url, code=1).output.split())
    assert "session 's1' of user 'alice' of app 'shop': it is stored already, with other events" in output
    assert "session 'empty' of user 'alice' of app 'shop': it is stored already, with other events" in output
    assert "state of app 'shop': it is stored already, with other values" in output
    assert "state of user 'alice' of app 'shop': it is stored already, with other values" in output
    assert "4 failed" in output
    assert read(url, ("shop", "alice", "s1")) == used


def test_an_imported_session_is_continued(database: Callable[[Write], Path], url: str) -> None:
    run(database(write_apps), url)

    async def use() -> None:
        async with lash_redis.connect(url) as cache:
            service = LashSessionService(cache)
            for number in range(40):
                session = await service.get_session(app_name="shop", user_id="alice", session_id="s2")
                assert session is not None
                await service.append_event(session, said("x", {"n": number, "app:n": number, "user:n": number}))
            assert len(session.events) == 43

    asyncio.run(use())
    for name, own in (("s1", 2), ("s2", 39)):
        found = read(url, ("shop", "alice", name))
        assert found is not None
        assert (found.state["k"], found.state["n"]) == (name, own)
        assert (found.state["app:n"], found.state["user:n"]) == (39, 39)


def test_a_long_session_with_large_events_is_imported_whole(
    database: Callable[[Write], Path], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lash_redis.integrations.import_chunks.CHUNK", 7)
    monkeypatch.setattr("lash_redis.integrations.import_chunks.CHUNK_BYTES", 100_000)

    async def write(service: BaseSessionService) -> None:
        session = await service.create_session(app_name="a", user_id="u", session_id="s")
        for number in range(30):
            text = "\0ü" + "x" * (60_000 if number % 5 == 0 else 10)
            await service.append_event(session, said(text, {"n": number}, timestamp=float(number)))

    path = database(write)
    assert counts(run(path, url, "--json")) == (1, 0, 0)
    found = read(url, ("a", "u", "s"))
    assert found is not None
    assert [event.timestamp for event in found.events] == [float(number) for number in range(30)]
    assert found.state == {"n": 29}
    assert counts(run(path, url, "--json")) == (1, 1, 0)


def test_a_url_of_sqlalchemy_names_the_same_database(tmp_path: Path, url: str) -> None:
    path = tmp_path / "adk.db"

    async def write() -> None:
        async with DatabaseSessionService(f"sqlite+aiosqlite:///{path}") as service:
            await service.create_session(app_name="a", user_id="u", session_id="s", state={"k": 1})

    asyncio.run(write())
    for number, source in enumerate((f"sqlite:///{path}", f"sqlite+aiosqlite:///{path}", str(path))):
        assert counts(run(source, url, "--json")) == (1, int(number > 0), 0)


def test_a_source_that_is_no_database_of_adk_is_reported_and_not_changed(tmp_path: Path, url: str) -> None:
    other, missing, text = tmp_path / "other.db", tmp_path / "missing.db", tmp_path / "text.db"
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE sessions (id TEXT)")
    text.write_text("no database" * 100)
    copy = tmp_path / "copy.db"
    shutil.copy(other, copy)
    assert "is no database of ADK" in run(other, url, code=1).output
    assert other.read_bytes() == copy.read_bytes()
    assert "cannot be read" in run(missing, url, code=2).output
    assert not missing.exists()
    assert "cannot be read" in run(text, url, code=2).output
    assert "invalid" in run("nope://host/db", url, code=2).output


def test_a_missing_sdk_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lash_redis.integrations.google_adk", None)
    output = run("sessions.db", url, code=2).output
    assert "--from adk needs Google's ADK: pip install 'lash-redis[google-adk]'" in " ".join(output.split())
