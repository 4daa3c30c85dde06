"""The commands for sessions and namespaces: their output, their exit codes, and lossless exports and imports."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

import lash_redis
from lash_redis import (
    Append,
    DocumentWrite,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    RuntimeCommit,
    SessionCache,
    SessionDeleted,
    SessionNodeRecord,
    SessionPolicy,
    SessionStoreCreateRequest,
    StoreOptions,
    ToolState,
    ToolStateEntry,
    Unchanged,
)
from lash_redis.cli import app, connection, sessions
from lash_redis.cli.connection import Connection
from lash_redis.cli.conversations import SHIPPED, conversations_in, message_of, read_conversations
from lash_redis.cli.replay.worker import Settings, play
from lash_redis.cli.sessions import ago
from lash_redis.models.chat_messages import canonical_json
from tests.laws.test_watch import until
from tests.support.blocking import wait_until
from tests.support.command_line import lash_redis_program, meanwhile, within, written
from tests.support.paths import DATA
from tests.support.servers import Server

COMMANDS = ["list", "watch", "fork", "delete", "gc", "audit", "export", "import", "preload", "acl"]

runner = CliRunner(env={"COLUMNS": "160"})


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return runner.invoke(app, [str(argument) for argument in arguments], input=stdin)


def document_of(*arguments: str | Path, code: int = 0, stdin: bytes | None = None) -> dict[str, Any]:
    """The document of a command with `--json` that exits with `code`."""
    ended = run(*arguments, "--json", stdin=stdin)
    assert ended.exit_code == code, ended.output
    document: dict[str, Any] = json.loads(ended.stdout)
    assert document["ok"] is (code == 0)
    return document


def message(node_id: str, parent: str | None, text: str, role: str = "User") -> SessionNodeRecord:
    part = {"id": f"{node_id}.p", "kind": "Text", "content": text, "prune_state": "Intact"}
    event = EventPayload({"Conversation": {"id": node_id, "role": role, "parts": [part]}})
    return SessionNodeRecord(node_id, parent, "2026-01-01T00:00:00+00:00", event)


async def commit_texts(cache: SessionCache, session_id: str, *texts: str, tools: str = "look") -> None:
    """Commit a session with messages of the user, and with a tool state that sessions may share."""
    nodes = [message(f"m{at}", f"m{at - 1}" if at else None, text) for at, text in enumerate(texts)]
    state = ToolState(1, {tools: ToolStateEntry({"name": tools}, "plugins")})
    await cache.session(session_id).commit_runtime_state(
        RuntimeCommit(
            session_id,
            0,
            graph=Append(nodes, nodes[-1].node_id),
            checkpoint=HydratedSessionCheckpoint(tool_state=state, execution_state=session_id.encode()),
        )
    )


async def commit_four_sessions(cache: SessionCache) -> None:
    for name in ("one", "two", "three"):
        await commit_texts(cache, name, f"hello {name}", "and so on")
        await asyncio.sleep(0.002)  # the list is sorted by milliseconds
    await cache.fork("one", "four")


async def sessions_of(cache: SessionCache) -> dict[str, Any]:
    """The read, the meta and the time of the last commit of each session of a namespace."""
    reads = {}
    async for info in cache.sessions():
        store = cache.session(info.session_id)
        read, meta = await store.load_session(FullGraph()), await store.load_session_meta()
        reads[info.session_id] = read and read.to_json(), meta and meta.to_json(), info.last_commit_ms
    return reads


def keys(url: str) -> set[bytes]:
    with redis.Redis.from_url(url) as client:
        return set(client.keys())


# list


@pytest.mark.slow
def test_a_command_connects_to_the_server_of_a_directory_in_use(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path / 'data'}"

    async def list_while_in_use() -> tuple[dict[str, Any], int]:
        async with lash_redis.connect(url) as cache:
            await cache.session("chat").commit_runtime_state(RuntimeCommit("chat", 0, graph=Unchanged(None)))
            shown = await asyncio.to_thread(document_of, "list", "--url", url)
            head = await cache.session("chat").load_head()
            assert head is not None
            return shown, head.head_revision

    shown, revision = asyncio.run(list_while_in_use())
    assert [session["session_id"] for session in shown["sessions"]] == ["chat"]
    assert revision == 1


def test_list_sorts_by_the_latest_commit_and_describes_each_session(url: str) -> None:
    within(url, commit_four_sessions)
    ended = run("list", "--url", url)
    assert ended.exit_code == 0
    header, *lines = ended.stdout.splitlines()
    assert header.split() == ["session", "last", "commit", "rev", "messages", "begins", "parent"]
    assert [line.split()[0] for line in lines] == ["four", "three", "two", "one"]
    assert lines[1].split()[-4:] == ["1", "2", "hello", "three"]
    assert lines[0].split()[-1] == "one"
    assert time.strftime("%Y-") in lines[0]
    assert "after:" not in ended.stdout


def test_list_continues_at_its_cursor_until_the_last_page(url: str) -> None:
    within(url, commit_four_sessions)
    pages, after = [], []
    while True:
        page = document_of("list", "--limit", "3", "--url", url, *after)
        pages.append([session["session_id"] for session in page["sessions"]])
        if page["next"] is None:
            break
        after = ["--after", page["next"]]
    assert pages == [["four", "three", "two"], ["one"]]
    shown = run("list", "--limit", "3", "--url", url).stdout
    (cursor,) = (line for line in shown.splitlines() if "--after" in line)
    assert "one" in run("list", *cursor.removeprefix("next page: ").split(), "--url", url).stdout
    by_id = document_of("list", "--after", "two", "--url", url)["sessions"]
    assert [session["session_id"] for session in by_id] == ["one"]


def test_list_filters_sessions_by_parent(url: str) -> None:
    within(url, commit_four_sessions)
    (session,) = document_of("list", "--parent", "one", "--url", url)["sessions"]
    assert session["session_id"] == "four"
    assert session["parent_session_id"] == "one"
    assert (session["first_user_message"], session["user_message_count"]) == ("hello one", 2)


async def owned(cache: SessionCache) -> None:
    await cache.create(SessionStoreCreateRequest("trip"), owner="alice", title="Rome")
    await commit_texts(cache, "other", "hello")
    await cache.fork("other", "copy")
    await cache.session("trip").commit_runtime_state(RuntimeCommit("trip", 0))


def test_list_and_show_print_the_owner_and_the_title_of_a_session(url: str) -> None:
    within(url, owned)
    (session,) = document_of("list", "--owner", "alice", "--url", url)["sessions"]
    assert (session["session_id"], session["owner"], session["title"]) == ("trip", "alice", "Rome")
    assert document_of("list", "--owner", "bob", "--url", url)["sessions"] == []
    header, first, *_ = run("list", "--url", url).stdout.splitlines()
    assert header.split()[-3:] == ["owner", "title", "parent"]
    assert (first.split()[0], first.split()[-2:]) == ("trip", ["alice", "Rome"])
    assert json.loads(run("show", "trip", "--json", "--url", url).stdout)["owner"] == "alice"
    assert json.loads(run("show", "other", "--json", "--url", url).stdout)["owner"] is None
    (line,) = (line for line in run("show", "trip", "--url", url).stdout.splitlines() if "owner" in line)
    assert "alice" in line


def test_list_shows_the_fault_of_an_unreadable_session(url: str) -> None:
    within(url, commit_four_sessions)
    with redis.Redis.from_url(url) as client:
        (head,) = client.keys("*head:two")
        client.hset(head, "facts", b"nonsense")
    ended = run("list", "--url", url)
    assert ended.exit_code == 0
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("two"))
    assert "facts" in line
    assert "fault" in ended.stdout.splitlines()[0]


def test_list_reports_an_empty_namespace_and_writes_no_key(url: str) -> None:
    assert run("list", "--url", url).stdout == "no sessions on this page of namespace 'default'\n"
    assert document_of("list", "--url", url) == {"ok": True, "sessions": [], "next": None}
    assert keys(url) == set()


def test_list_replaces_control_characters_of_stored_text(url: str) -> None:
    async def body(cache: SessionCache) -> None:
        await commit_texts(cache, "a\x1b[31mb", "one\ntwo\x1b[2J")

    within(url, body)
    shown = run("list", "--url", url).stdout
    assert "\x1b" not in shown
    assert "one two�[2J" in shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "now"),
        (0.4, "now"),
        (59, "59 s ago"),
        (200, "3 min ago"),
        (3600, "1 h ago"),
        (172_799, "47 h ago"),
        (172_800, "2 days ago"),
    ],
)
def test_an_age_is_shown_in_its_largest_unit(seconds: float, words: str) -> None:
    assert ago(seconds) == words


# watch


Printed = Callable[[int], Awaitable[None]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    """`await printed(revision)` returns when `watch` has printed the revision."""
    watch, revisions = sessions.watch, set()

    def noting(url: str, namespace: str, session_id: str, since: int | None, report: Callable[[int], None]) -> Any:
        def report_and_note(revision: int) -> None:
            report(revision)
            revisions.add(revision)

        return watch(url, namespace, session_id, since, report_and_note)

    monkeypatch.setattr(sessions, "watch", noting)
    return lambda revision: until(lambda: revision in revisions, f"revision {revision}")


async def commit_and_delete(cache: SessionCache, printed: Printed) -> None:
    await cache.session("one").update(lambda read: RuntimeCommit("one", graph=Unchanged("m1")))
    await printed(2)
    await cache.delete("one")


def test_watch_prints_each_revision_until_the_session_is_deleted(url: str, printed: Printed) -> None:
    async def body(cache: SessionCache) -> None:
        await printed(1)
        await commit_and_delete(cache, printed)

    within(url, lambda cache: commit_texts(cache, "one", "hello", "and so on"))
    with meanwhile(url, body):
        ended = run("watch", "one", "--since", "0", "--url", url)
    assert ended.exit_code == 1
    assert [line.split("  ")[1] for line in ended.stdout.splitlines()] == ["revision 1", "revision 2"]
    assert ended.stderr == "lash-redis: SessionDeleted: session 'one' was deleted\n"


def test_watch_prints_one_document_per_line(url: str, printed: Printed) -> None:
    within(url, lambda cache: commit_texts(cache, "one", "hello", "and so on"))
    with meanwhile(url, lambda cache: commit_and_delete(cache, printed)):
        ended = run("watch", "one", "--json", "--url", url)
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [
        {"ok": True, "session_id": "one", "head_revision": 2},
        {"ok": False, "exit_code": 1, "error": "SessionDeleted: session 'one' was deleted"},
    ]


def test_watch_of_a_missing_session_exits_with_1(url: str) -> None:
    ended = run("watch", "one", "--since", "3", "--url", url)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == "lash-redis: SessionGone: there is no session 'one'\n"


def test_ctrl_c_ends_a_watch_with_130(url: str) -> None:
    within(url, lambda cache: commit_texts(cache, "one", "hello"))
    with lash_redis_program("watch", "one", "--since", "0", "--url", url, start_new_session=True) as program:
        assert program.stdout is not None
        assert "revision 1" in program.stdout.readline()
        os.killpg(program.pid, signal.SIGINT)
        _, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (130, "lash-redis: interrupted\n")


# fork


def test_fork_creates_a_session_at_the_leaf_or_at_an_earlier_node(url: str) -> None:
    within(url, commit_four_sessions)
    forked = document_of("fork", "one", "late", "--url", url)
    assert forked == {
        "ok": True,
        "session_id": "late",
        "parent_session_id": "one",
        "head_revision": 1,
        "leaf_node_id": "m1",
        "nodes": 2,
    }
    assert (
        "late again: forked from one (1 node, leaf m0)"
        in run(*("fork", "one", "late again", "--leaf", "m0", "--ttl", "60", "--url", url)).stdout
    )
    with redis.Redis.from_url(url) as client:
        (head,) = client.keys("*head:late again")
        assert 50_000 < client.pttl(head) <= 60_000
    shown = shown_document("late again", url)
    assert [each["parts"][0]["text"] for each in shown["messages"]] == ["hello one"]


def shown_document(session: str, url: str, *more: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run("show", session, "--messages", "--json", "--url", url, *more).stdout)
    return document


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["absent", "new"], 1, "no session 'absent' in namespace 'default'"),
        (["one", "two"], 1, "session 'two' exists already, at revision 1; choose another id"),
        (["one", "new", "--leaf", "m9"], 1, "'m9' does not resolve"),
        (["one", "one"], 2, "is the id of the source"),
        (["one", "new", "--ttl", "0"], 2, "ttl: expected seconds above 0"),
        (["one", ""], 2, "must not be empty"),
        (["one"], 2, "NEW_ID"),
    ],
)
def test_a_refused_fork_prints_the_reason_and_writes_nothing(
    url: str, arguments: list[str], code: int, reason: str
) -> None:
    within(url, commit_four_sessions)
    before = keys(url)
    ended = run("fork", *arguments, "--url", url)
    assert (ended.exit_code, ended.stdout) == (code, "")
    assert reason in ended.stderr
    assert keys(url) == before


# delete


def test_delete_reports_each_session_and_exits_with_1_if_one_is_missing(url: str) -> None:
    within(url, commit_four_sessions)
    ended = run("delete", "one", "absent", "two", "--url", url)
    assert ended.exit_code == 1
    assert ended.stdout.splitlines() == [
        "one: deleted (2 nodes, 2 blobs released)",
        "absent: session not found",
        "two: deleted (2 nodes, 2 blobs released)",
    ]
    deleted = document_of("delete", "three", "three", "--yes", "--url", url)
    assert [session["session_id"] for session in deleted["sessions"]] == ["three"]
    assert deleted["sessions"][0]["existed"] is True
    assert [each["session_id"] for each in document_of("list", "--url", url)["sessions"]] == ["four"]
    assert document_of("delete", "three", "--url", url, code=1)["sessions"][0] == {
        "session_id": "three",
        "existed": False,
        "closed": False,
        "node_count": 0,
        "released_blob_count": 0,
    }


@pytest.mark.parametrize("options", [[], ["--reusable"]], ids=str)
def test_the_id_of_a_deletion_with_reusable_can_be_used_again(options: list[str], url: str) -> None:
    within(url, commit_four_sessions)
    ended = run("delete", "one", *options, "--yes", "--url", url)
    assert ended.exit_code == 0
    assert "missing" not in ended.output
    assert ("; its id accepts writes again" in " ".join(ended.output.split())) == bool(options)

    async def begin_again(cache: SessionCache) -> None:
        await cache.session("one").commit_runtime_state(RuntimeCommit("one"))

    with nullcontext() if options else pytest.raises(SessionDeleted):
        within(url, begin_again)


def test_show_and_fork_refuse_the_id_of_a_deleted_session(url: str) -> None:
    within(url, commit_four_sessions)
    assert run("delete", "two", "--url", url).exit_code == 0
    assert run("show", "two", "--url", url).exit_code == 1
    refused = run("fork", "one", "two", "--url", url)
    assert refused.exit_code == 1
    assert "was deleted" in refused.stderr


def test_delete_in_an_unused_namespace_writes_no_key(url: str) -> None:
    assert run("delete", "one", "--url", url).exit_code == 1
    assert keys(url) == set()


def on_a_terminal(answer: str, *arguments: str) -> tuple[int, str]:
    """The exit code and standard error of the program when its standard input is a terminal where `answer` is typed."""
    keyboard, terminal = pty.openpty()
    try:
        with lash_redis_program(*arguments, stdin=terminal) as program:
            os.write(keyboard, answer.encode())
            _, err = program.communicate(timeout=20)
    finally:
        os.close(keyboard)
        os.close(terminal)
    return program.returncode, err


@pytest.mark.slow
def test_delete_on_a_terminal_asks_for_confirmation(url: str) -> None:
    within(url, commit_four_sessions)
    code, err = on_a_terminal("n\n", "delete", "one", "two", "--url", url)
    assert (code, "Delete 2 sessions" in err, "nothing was deleted" in err) == (1, True, True)
    code, err = on_a_terminal("\x04", "delete", "one", "--url", url)
    assert (code, err.splitlines()[-1]) == (130, "lash-redis: interrupted")
    assert len(document_of("list", "--url", url)["sessions"]) == 4
    code, err = on_a_terminal("y\n", "delete", "one", "--url", url)
    assert (code, "Delete session one" in err) == (0, True)
    code, err = on_a_terminal("", "delete", "two", "--yes", "--url", url)
    assert (code, err) == (0, "")
    assert len(document_of("list", "--url", url)["sessions"]) == 2


# gc, audit, preload


def test_gc_deletes_blobs_that_no_session_refers_to(url: str) -> None:
    async def body(cache: SessionCache) -> None:
        await commit_four_sessions(cache)
        store = cache.session("two")
        tools = HydratedSessionCheckpoint(tool_state=ToolState(7))
        await store.commit_runtime_state(RuntimeCommit("two", 1, graph=lash_redis.Unchanged("m1"), checkpoint=tools))
        await store.commit_runtime_state(RuntimeCommit("two", 2, checkpoint=HydratedSessionCheckpoint()))

    within(url, body, shards=3)
    assert document_of("gc", "--url", url) == {
        "ok": True,
        "in_use": True,
        "root_count": 4,
        "retained_blob_count": 0,
        "deleted_blob_count": 1,
    }
    assert run("gc", "--url", url).stdout == ("0 blobs deleted, 0 unused blobs kept until expiry; 4 sessions listed\n")


@pytest.mark.parametrize("command", ["gc", "audit"])
def test_maintenance_reports_an_unused_namespace_and_writes_no_key(url: str, command: str) -> None:
    ended = run(command, "--namespace", "nix", "--url", url)
    assert (ended.exit_code, ended.stdout) == (0, "namespace 'nix' is not in use; nothing to do\n")
    assert document_of(command, "--namespace", "nix", "--url", url)["in_use"] is False
    assert keys(url) == set()


def test_audit_reports_no_problem_in_a_sound_namespace_with_other_shards(url: str) -> None:
    within(url, commit_four_sessions, namespace="few", shards=3)
    report = document_of("audit", "--namespace", "few", "--url", url)
    assert (report["session_count"], report["node_count"], report["problem_count"]) == (4, 8, 0)
    assert "4 sessions, 8 nodes" in run("audit", "--namespace", "few", "--url", url).stdout


def test_audit_reports_problems_that_it_cannot_repair_and_exits_with_1(url: str) -> None:
    within(url, commit_four_sessions)
    with redis.Redis.from_url(url) as client:
        (log,) = client.keys("*log:two")
        client.lset(log, 1, client.lindex(log, 1).replace(b"and so on", b"and so no"))
    ended = run("audit", "--repair", "--url", url)
    assert ended.exit_code == 1
    problem, verdict = ended.stdout.splitlines()
    assert problem.startswith(f"broken    node {log.decode()}: record 1 does not match its checksum")
    assert verdict.endswith("1 problem, 0 repaired")
    report = document_of("audit", "--url", url, code=1)
    assert [(each["key"], each["repaired"]) for each in report["problems"]] == [(log.decode(), False)]


def test_audit_exits_with_0_if_it_repairs_all_problems(url: str) -> None:
    within(url, commit_four_sessions, shards=1)
    with redis.Redis.from_url(url) as client:
        (catalogue,) = client.keys("*:sessions")
        client.zrem(catalogue, "two")
    assert document_of("audit", "--url", url, code=1)["problem_count"] == 1
    assert len(document_of("list", "--url", url)["sessions"]) == 3
    ended = run("audit", "--repair", "--url", url)
    assert ended.exit_code == 0
    assert ended.stdout.splitlines()[0].startswith("repaired  sessions ")
    assert ended.stdout.splitlines()[-1].endswith("1 problem, all repaired")
    assert document_of("audit", "--url", url)["problem_count"] == 0
    assert len(document_of("list", "--url", url)["sessions"]) == 4


def test_preload_loads_every_script(url: str) -> None:
    from lash_redis.protocol import scripts

    with redis.Redis.from_url(url) as client:
        client.script_flush()
        assert document_of("preload", "--url", url) == {"ok": True, "scripts": len(scripts.every())}
        assert all(client.script_exists(*(script.sha for script in scripts.every())))
    assert run("preload", "--url", url).stdout == f"{len(scripts.every())} scripts loaded\n"


# export and import


async def rich_sessions(cache: SessionCache) -> None:
    """Commit conversations with branches, components and usage, a fork, a tombstone, a TTL, and one session of meta."""
    link = cache.shared._backend._connector
    assert isinstance(link, Connection)
    for conversation in read_conversations([SHIPPED]):
        for turn in conversation.turns(conversation.id):
            await play(link, Settings("", cache.namespace, cache.options, None), turn)
    await cache.fork("rising-dough", "fork/ü")
    await commit_four_sessions(cache)
    await cache.session("two").tombstone_nodes(["m1"])
    await cache.session("three").touch(ttl=5000)
    await cache.create(SessionStoreCreateRequest("only meta", SessionPolicy(model="m"), "one"))


@pytest.fixture
def filled_url(url: str) -> str:
    """The URL of a server with `rich_sessions` in the namespace `old`, which has 3 shards."""

    async def fill() -> None:
        link = Connection(url)
        async with SessionCache(link, "old", options=StoreOptions(shards=3)) as cache:
            await rich_sessions(cache)

    asyncio.run(fill())
    return url


@pytest.fixture
def exported(filled_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "all.jsonl"
    assert run("export", "--all", "--namespace", "old", "--output", path, "--url", filled_url).exit_code == 0
    return path


def expect_same(url: str) -> None:
    """Check that the namespaces `old` and `new` contain equal sessions."""
    old = within(url, sessions_of, "old", 3)
    new = within(url, sessions_of, "new")
    assert set(new) == set(old)
    assert len(old) == 8
    for session_id, (read, meta, committed) in old.items():
        assert canonical_json(new[session_id][0]) == canonical_json(read)
        assert new[session_id][1] == meta
        if read is not None:
            assert new[session_id][2] == committed
    assert document_of("audit", "--namespace", "new", "--url", url)["problem_count"] == 0


def test_sessions_read_the_same_after_an_export_and_an_import(filled_url: str, exported: Path) -> None:
    imported = document_of("import", exported, "--namespace", "new", "--url", filled_url)
    assert imported == {
        "ok": True,
        "session_count": 8,
        "present_count": 0,
        "failed_count": 0,
        "failures": [],
        "is_complete": True,
    }
    expect_same(filled_url)
    with redis.Redis.from_url(filled_url) as client:
        (head,) = client.keys("lash2:{new:*head:three")
        assert 4_900_000 < client.pttl(head) <= 5_000_000


def test_a_repeated_import_changes_nothing(filled_url: str, exported: Path) -> None:
    ended = run("import", exported, "--namespace", "new", "--url", filled_url)
    assert (ended.exit_code, ended.stdout) == (0, "8 sessions stored as in the file\n")
    again = run("import", exported, "--namespace", "new", "--url", filled_url)
    assert again.exit_code == 0
    assert again.stdout == "8 sessions stored as in the file, 8 of them were stored before\n"
    expect_same(filled_url)


def test_an_import_of_a_file_cut_between_lines_exits_with_1_and_can_continue(filled_url: str, exported: Path) -> None:
    lines = exported.read_bytes().splitlines(keepends=True)
    half = len(lines) // 2
    part = b"".join(lines[:half])
    ended = run("import", "-", "--namespace", "new", "--url", filled_url, stdin=part)
    assert ended.exit_code == 1
    assert "the file is incomplete: its end line is missing" in ended.stdout
    stored = sum(b'"kind":"session"' in line for line in lines[:half])
    assert 0 < stored < 8
    whole = document_of("import", exported, "--namespace", "new", "--url", filled_url)
    assert (whole["session_count"], whole["present_count"]) == (8, stored)
    expect_same(filled_url)


def test_an_import_of_a_file_cut_within_a_line_exits_with_2_and_can_continue(filled_url: str, exported: Path) -> None:
    lines = exported.read_bytes().splitlines(keepends=True)
    cut = exported.with_name("cut.jsonl")
    cut.write_bytes(b"".join(lines[:-2]) + lines[-2][:-40])
    ended = run("import", cut, "--namespace", "new", "--url", filled_url)
    assert ended.exit_code == 2
    assert f"{cut}: line {len(lines) - 1}: is not JSON" in ended.stderr
    whole = document_of("import", exported, "--namespace", "new", "--url", filled_url)
    assert (whole["session_count"], whole["present_count"]) == (8, 7)
    expect_same(filled_url)


def test_an_import_of_a_damaged_blob_exits_with_2_and_names_its_line(filled_url: str, exported: Path) -> None:
    lines = exported.read_text().splitlines()
    at = next(at for at, line in enumerate(lines) if '"kind":"blob"' in line)
    document = json.loads(lines[at])
    document["base64"] = "AAAA" + document["base64"][4:]
    damaged = written(exported.with_name("damaged"), *lines[:at], document, *lines[at + 1 :])
    refused = document_of("import", damaged, "--namespace", "new", "--url", filled_url, code=2)
    assert refused["error"] == f"{damaged}: line {at + 1}.base64: does not hash to its ref"
    assert within(filled_url, sessions_of, "new") == {}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["{"], "line 1: is not JSON"),
        ([{"kind": "session"}], "line 1: is not the header"),
        (
            [{"kind": "lash-redis", "format": 1}, {"kind": "joke"}],
            "line 2.kind: expected lash-redis, blob, session or end, got 'joke'",
        ),
        ([{"kind": "lash-redis", "format": 1}, {"kind": "end", "session_count": 1, "blob_count": 0}], "line 2: counts"),
    ],
)
def test_an_import_of_an_invalid_line_exits_with_2_and_names_the_line(
    url: str, tmp_path: Path, lines: list[Any], reason: str
) -> None:
    path = written(tmp_path / "bad", *lines)
    ended = run("import", path, "--url", url)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert f"lash-redis: {path}: {reason}" in ended.stderr


def test_an_import_refuses_a_session_with_other_content_and_stores_the_others(filled_url: str, exported: Path) -> None:
    async def body(cache: SessionCache) -> None:
        await commit_texts(cache, "two", "something else")

    within(filled_url, body, "new")
    ended = run("import", exported, "--namespace", "new", "--url", filled_url)
    assert ended.exit_code == 1
    failure, verdict = ended.stdout.splitlines()
    assert failure.startswith("two: SessionExists: ")
    assert verdict == "7 sessions stored as in the file; 1 failed"
    report = document_of("import", exported, "--namespace", "new", "--url", filled_url, code=1)
    assert (report["present_count"], report["failed_count"], len(report["failures"])) == (7, 1, 1)
    (stored,) = shown_document("two", filled_url, "--namespace", "new")["messages"]
    assert stored["parts"][0]["text"] == "something else"


def test_imported_sessions_without_a_ttl_of_their_own_get_the_requested_ttl(filled_url: str, exported: Path) -> None:
    assert run("import", exported, "--ttl", "300", "--namespace", "new", "--url", filled_url).exit_code == 0
    with redis.Redis.from_url(filled_url) as client:
        left = {key.rpartition(b":")[2]: client.pttl(key) for key in client.keys("lash2:{new:*head:*")}
    assert 4_900_000 < left.pop(b"three") <= 5_000_000
    assert len(left) == 7
    assert all(200_000 < ms <= 300_000 for ms in left.values())


def test_an_export_of_named_sessions_contains_each_of_them_once(filled_url: str) -> None:
    ended = run("export", "two", "one", "two", "--namespace", "old", "--url", filled_url)
    assert (ended.exit_code, ended.stderr) == (0, "")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[0] == {"kind": "lash-redis", "format": 1, "namespace": "old"}
    assert [line["session_id"] for line in lines if line["kind"] == "session"] == ["two", "one"]
    assert lines[-1]["session_count"] == 2


def test_an_export_to_a_file_reports_its_content(filled_url: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    report = document_of("export", "--all", "--namespace", "old", "--output", path, "--url", filled_url)
    assert report["session_count"] == 8
    assert report["bytes"] == path.stat().st_size
    ended = run("export", "one", "--namespace", "old", "--output", path, "--url", filled_url)
    assert ended.stdout.startswith(f"1 session and 2 blobs in {path} (")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_does_not_change_an_existing_file(filled_url: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    ended = run("export", "one", "absent", "--namespace", "old", "--output", path, "--url", filled_url)
    assert ended.exit_code == 1
    assert "there is no session 'absent'" in ended.stderr
    assert path.read_text() == "before"
    assert (tmp_path / "out.part").is_file()
    assert run("export", "one", "--namespace", "old", "--output", path, "--url", filled_url).exit_code == 0
    assert json.loads(path.read_text().splitlines()[-1])["kind"] == "end"
    assert not (tmp_path / "out.part").exists()


def test_an_export_of_an_unreadable_session_exits_with_1(filled_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(filled_url) as client:
        (log,) = client.keys("lash2:{old:*log:two")
        client.lset(log, 0, b"nonsense")
    ended = run("export", "--all", "--namespace", "old", "--output", tmp_path / "out", "--url", filled_url)
    assert ended.exit_code == 1
    assert "log:two" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_an_export_of_an_empty_namespace_is_complete_and_can_be_imported(url: str, tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert run("export", "--all", "--output", path, "--url", url).exit_code == 0
    assert document_of("import", path, "--url", url)["session_count"] == 0
    assert keys(url) == set()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export"], "expected either session ids or --all"),
        (["export", "one", "--all"], "expected either session ids or --all"),
        (["export", "--all", "--json"], "--json needs --output"),
        (["export", "--all", "--output", "{tmp}"], "is a directory"),
        (["export", "--all", "--output", "{tmp}/none/out"], "No such file or directory"),
        (["import", "{tmp}/none"], "No such file or directory"),
        (["import", "{tmp}"], "Is a directory"),
        (["import", "--openai", "{tmp}/none"], "No such file or directory"),
        (["import", "a", "b"], "expected one SOURCE"),
        (["import", "-", "--ttl", "-1"], "ttl: expected seconds above 0"),
        (["import"], "SOURCE"),
        (["delete"], "SESSION"),
        (["delete", "", "--yes"], "must not be empty"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "--after", "after:nonsense"], "expected a cursor or the id of a listed session"),
        (["list", "--parent", ""], "parent: must not be empty"),
        (["acl", "--user", "a b"], "expected a name without spaces"),
        (["acl", "--namespace", "{a}"], "namespace"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_the_reason(
    url: str, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    within(url, commit_four_sessions)
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    ended = run(*given, *([] if given[0] == "acl" else ["--url", url]))
    assert ended.exit_code == 2, ended.output
    assert reason in ended.stderr
    assert "Traceback" not in ended.output


# Transcripts


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
CHAT: dict[str, Any] = {
    "id": "weather/1",
    "model": "a-model",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Wie wird das Wetter? 🌦", "timestamp": "2025-05-05T05:05:05Z"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"rain": 0.25}'},
        {"role": "assistant", "content": "Some rain."},
    ],
}
TREE: dict[str, Any] = {
    "id": "tree",
    "messages": [
        {"id": "a", "parent_id": None, "role": "user", "text": "Hello"},
        {"id": "b", "parent_id": "a", "role": "assistant", "text": "Hi"},
        {"id": "c", "parent_id": "a", "role": "assistant", "text": "Hey", "lang": "en"},
    ],
}


def test_a_transcript_is_imported_as_a_session_of_one_commit(url: str, tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", CHAT, "", TREE)
    ended = run("import", "--openai", path, "--url", url)
    assert (ended.exit_code, ended.stdout) == (0, "2 sessions stored as in the file\n")

    async def reads(cache: SessionCache) -> None:
        chat = await cache.session("weather/1").load_session(FullGraph())
        tree = await cache.session("tree").load_session(FullGraph())
        assert chat is not None
        assert tree is not None
        assert (chat.head_revision, chat.config.configured_model, tree.config.configured_model) == (1, "a-model", "")
        stored = [message_of("chat", node.message() or {}) for node in chat.graph.nodes]
        assert canonical_json(stored) == canonical_json(CHAT["messages"])
        assert [node.node_id for node in chat.graph.active_path()] == ["m0", "m1", "m2", "m3", "m4"]
        assert chat.graph.nodes[1].timestamp == "2025-05-05T05:05:05Z"
        assert chat.graph.nodes[0].timestamp > "2026"
        assert [(node.node_id, node.parent_node_id) for node in tree.graph.nodes] == [
            *(("a", None), ("b", "a"), ("c", "a"))
        ]
        assert tree.graph.leaf_node_id == "c"

    within(url, reads)
    shown = shown_document("weather/1", url)
    assert [part["kind"] for each in shown["messages"] for part in each["parts"]] == [
        *("text", "text", "tool_call", "tool_result", "text")
    ]
    (listed,) = (each for each in document_of("list", "--url", url)["sessions"] if each["session_id"] == "weather/1")
    assert listed["first_user_message"] == "Wie wird das Wetter? 🌦"


def test_a_repeated_import_of_transcripts_accepts_sessions_that_have_continued(url: str, tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", CHAT, TREE)
    assert document_of("import", "--openai", path, path, "--url", url)["present_count"] == 2

    async def continue_session(cache: SessionCache) -> None:
        def turn(read: Any) -> RuntimeCommit:
            return RuntimeCommit("tree", graph=Append([message("d", "c", "More")], "d"))

        await cache.session("tree").update(turn)

    within(url, continue_session)
    again = document_of("import", "--openai", path, "--url", url)
    assert (again["session_count"], again["present_count"], again["failed_count"]) == (2, 2, 0)
    assert shown_document("tree", url)["head_revision"] == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda chat: chat["messages"][1].update(content="Something else"),
        lambda chat: chat["messages"].append({"role": "user", "content": "More"}),
        lambda chat: chat["messages"][2]["tool_calls"][0].update(id="c2"),
        lambda chat: chat["messages"].insert(0, {"role": "system", "content": ""}),
    ],
    ids=["a text", "one more", "a call", "one before"],
)
def test_a_transcript_is_refused_if_its_session_has_other_messages(
    url: str, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    assert run("import", "--openai", written(tmp_path / "chats", CHAT), "--url", url).exit_code == 0
    before = within(url, sessions_of)
    other = json.loads(json.dumps(CHAT))
    change(other)
    report = document_of("import", "--openai", written(tmp_path / "chats", other, TREE), "--url", url, code=1)
    assert report["failures"] == ["weather/1: the session exists already, with other messages"]
    assert (report["session_count"], report["failed_count"]) == (1, 1)
    assert within(url, sessions_of)["weather/1"] == before["weather/1"]


def test_a_broken_line_of_transcripts_exits_with_2_after_earlier_lines_are_stored(url: str, tmp_path: Path) -> None:
    bad = {"id": "bad", "messages": [{"role": "king", "content": ""}]}
    path = written(tmp_path / "chats.jsonl", CHAT, bad, TREE)
    ended = run("import", "--openai", path, "--url", url)
    assert ended.exit_code == 2
    assert f"{path}:2: messages[0].role: expected system" in ended.stderr
    assert [each["session_id"] for each in document_of("list", "--url", url)["sessions"]] == ["weather/1"]
    report = document_of("import", "--openai", "-", "--url", url, stdin=written(path, CHAT, TREE).read_bytes())
    assert (report["session_count"], report["present_count"]) == (2, 1)


def test_imported_transcripts_get_the_requested_ttl(url: str, tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", CHAT)
    assert run("import", "--openai", path, "--ttl", "300", "--url", url).exit_code == 0
    with redis.Redis.from_url(url) as client:
        (head,) = client.keys("*head:*")
        assert 200_000 < client.pttl(head) <= 300_000


def test_conversations_are_read_one_at_a_time() -> None:
    endless = (json.dumps({**CHAT, "id": f"c{at}"}).encode() for at in count())
    stream = conversations_in(Path("endless"), endless)
    assert [next(stream).id for _ in range(3)] == ["c0", "c1", "c2"]
    assert next(endless).startswith(b'{"id": "c3"')


@pytest.mark.samples
@pytest.mark.parametrize(("name", "format_"), [("airline_chats.jsonl", "chat"), ("message_trees.jsonl", "tree")])
def test_imported_sample_conversations_equal_their_source(url: str, name: str, format_: Any) -> None:
    path = DATA / name
    source = [json.loads(line) for line in path.read_text().splitlines()]
    report = document_of("import", "--openai", path, "--url", url)
    assert (report["session_count"], report["present_count"]) == (len(source), 0)
    assert document_of("import", "--openai", path, "--url", url)["present_count"] == len(source)

    async def check(cache: SessionCache) -> None:
        for conversation in source:
            read = await cache.session(conversation["id"]).load_session(FullGraph())
            assert read is not None
            stored = [message_of(format_, node.message() or {}) for node in read.graph.nodes]
            assert canonical_json(stored) == canonical_json(conversation["messages"])

    within(url, check)
    assert document_of("audit", "--url", url)["session_count"] == len(source)


# acl

ROLES = ("loader", "runner", "checker", "auditor")


def test_acl_prints_a_command_for_each_role_without_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASH_REDIS_URL", "http://nowhere")
    ended = run("acl", "--namespace", "acme", "--user", "bot")
    assert ended.exit_code == 0
    comments, commands = ended.stdout.splitlines()[::2], ended.stdout.splitlines()[1::2]
    assert [line.partition(":")[0] for line in comments] == [f"# bot-{role}" for role in ROLES]
    assert ["SCAN shows" in line for line in comments] == [False, False, False, True]
    for role, line in zip(ROLES, commands, strict=True):
        assert line.startswith(f"ACL SETUSER bot-{role} reset on ><password> resetkeys ")
        assert "~lash2:{acme:*" in line.split()
    accounts = document_of("acl", "--namespace", "acme")["accounts"]
    assert [(account["role"], account["shows_all_key_names"]) for account in accounts] == [
        ("loader", False), ("runner", False), ("checker", False), ("auditor", True),
    ]  # fmt: skip
    assert [" ".join(account["rules"]) for account in accounts] == [
        line.partition("<password> ")[2] for line in commands
    ]


async def test_the_accounts_of_acl_permit_exactly_the_commands_of_their_role(real_server: Server) -> None:
    admin = real_server.client()

    def work(role: str) -> None:
        url = real_server.tcp_url.replace("redis://", f"redis://lash-default-{role}:secret@")
        assert [each["session_id"] for each in document_of("list", "--url", url)["sessions"]] == [
            *("four", "three", "two", "one")
        ]
        forked = f"by {role}"
        assert document_of("fork", "one", forked, "--url", url)["nodes"] == 2
        assert shown_document(forked, url)["head_revision"] == 1
        assert run("export", forked, "--url", url).exit_code == 0
        assert run("gc", "--url", url).exit_code == 0
        assert document_of("delete", forked, "--url", url)["sessions"][0]["node_count"] == 2
        audited = run("audit", "--url", url)
        assert audited.exit_code == (0 if role == "auditor" else 3), audited.output
        audited = run("audit", "--no-scan", "--url", url)
        assert audited.exit_code == 0, audited.output
        assert "keys that no catalogue names were not checked" in audited.stdout
        assert document_of("audit", "--no-scan", "--url", url)["scanned"] is False
        assert run("preload", "--url", url).exit_code == (0 if role == "loader" else 3)
        assert run("list", "--namespace", "other", "--url", url).exit_code == 3

    names = []
    try:
        for line in run("acl").stdout.splitlines()[1::2]:
            words = line.replace("<password>", "secret").split()
            names.append(words[2])
            assert await admin.execute_command(*words) in (b"OK", "OK", True)
        cache = SessionCache(real_server.client())
        await commit_four_sessions(cache)
        await admin.script_flush()
        for role in ROLES:
            await asyncio.to_thread(work, role)
    finally:
        for name in names:
            await admin.execute_command("ACL", "DELUSER", name)


# The program


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        *(("list",), ("fork", "a", "b"), ("delete", "a"), ("gc",), ("audit",), ("preload",)),
        *(("export", "--all", "--output", "{out}"), ("import", "{in}"), ("import", "--openai", "{in}")),
    ],
    ids=" ".join,
)
def test_an_unreachable_server_exits_with_3(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "StoreOptions", lambda **more: StoreOptions(**{**more, "call_timeout": 0.1}))
    path = written(tmp_path / "in", CHAT)
    given = [word.replace("{in}", str(path)).replace("{out}", str(tmp_path / "out")) for word in command]
    refused = document_of(*given, "--url", f"unix://{tmp_path}/none", code=3)
    assert refused["exit_code"] == 3
    assert refused["error"].startswith("store backend error: ")
    assert not (tmp_path / "out").exists()
    assert run(*given, "--url", "http://x").exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_the_exit_codes(command: str) -> None:
    ended = run(command, "--help")
    assert ended.exit_code == 0
    text = " ".join(ended.stdout.split())
    for code in ("0 success", "1 verification failed", "2 wrong usage", "3 the server could not be reached"):
        assert code in text


@pytest.mark.slow
def test_an_export_to_a_closed_pipe_ends_without_a_message(url: str) -> None:
    async def body(cache: SessionCache) -> None:
        for at in range(200):
            await commit_texts(cache, f"s{at}", "x" * 2000)

    within(url, body)
    with lash_redis_program("export", "--all", "--url", url) as program:
        assert program.stdout is not None
        assert program.stdout.readline().startswith('{"kind":"lash-redis"')
        program.stdout.close()
        assert program.stderr is not None
        assert program.stderr.read() == ""
    assert program.returncode == 1


@pytest.mark.slow
def test_ctrl_c_ends_a_waiting_import_with_130_and_the_import_can_continue(url: str, tmp_path: Path) -> None:
    path = written(tmp_path / "chats", CHAT, TREE)
    read_end, write_end = os.pipe()
    with lash_redis_program("import", "--openai", "-", "--url", url, stdin=read_end, start_new_session=True) as program:
        os.write(write_end, path.read_bytes().splitlines(keepends=True)[0])
        wait_until(lambda: document_of("list", "--url", url)["sessions"])
        time.sleep(0.3)
        os.killpg(program.pid, signal.SIGINT)
        _, err = program.communicate(timeout=60)
    os.close(read_end)
    os.close(write_end)
    assert (program.returncode, err) == (130, "lash-redis: interrupted\n")
    report = document_of("import", "--openai", path, "--url", url)
    assert (report["session_count"], report["present_count"]) == (2, 1)


@pytest.mark.slow
def test_ctrl_c_ends_an_export_with_130_and_leaves_no_output_file(url: str, tmp_path: Path) -> None:
    """The partial file is a pipe that is read only once, so the export blocks halfway."""

    async def body(cache: SessionCache) -> None:
        for at in range(60):
            await commit_texts(cache, f"s{at}", "x" * 5000)

    within(url, body)
    os.mkfifo(tmp_path / "out.part")
    begun = threading.Event()

    def read() -> None:
        with (tmp_path / "out.part").open("rb") as file:
            file.read(10_000)
            begun.set()
            program.wait(timeout=60)

    out = tmp_path / "out"
    with lash_redis_program(
        *("export", "--all", "--output"), str(out), "--url", url, start_new_session=True
    ) as program:
        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(60)
        time.sleep(0.3)
        os.killpg(program.pid, signal.SIGINT)
        _, err = program.communicate(timeout=60)
        reader.join()
    assert (program.returncode, err) == (130, "lash-redis: interrupted\n")
    assert not out.exists()


def test_a_session_with_documents_is_refused_by_the_commands_that_show_a_graph(url: str) -> None:
    async def write() -> None:
        async with lash_redis.connect(url) as cache:
            await cache.documents("thread").write(DocumentWrite(put={b"ca": b"1"}))

    asyncio.run(write())
    for arguments in (("show", "thread"), ("tail", "thread"), ("watch", "thread"), ("fork", "thread", "copy")):
        ended = runner.invoke(app, [*arguments, "--url", url])
        assert ended.exit_code == 1, ended.output
        assert "session 'thread' has documents" in " ".join(ended.output.split())
