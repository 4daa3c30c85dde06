"""The commands replay, show and doctor: their output, their exit codes, and the faults that they find."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

import lash_redis
from lash_redis import (
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    PluginPayload,
    ReplaceFull,
    RuntimeCommit,
    SessionCache,
    SessionGraph,
    SessionNodeRecord,
    StoreOptions,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
    Unchanged,
)
from lash_redis.cli import app
from lash_redis.cli.connection import Connection
from lash_redis.cli.conversations import (
    SHIPPED,
    Conversation,
    InputError,
    message_of,
    read_conversations,
    record_of,
)
from lash_redis.cli.graph_drawing import graph_lines
from lash_redis.cli.output import plain, shown_url
from lash_redis.cli.replay.play import replay
from lash_redis.cli.replay.pool import Pool, WorkerDied
from lash_redis.cli.replay.worker import Settings, faults_of, play
from lash_redis.embedded import EmbeddedServer
from lash_redis.errors import Corrupt
from lash_redis.models import PersistedSessionRead
from lash_redis.models.chat_messages import canonical_json
from tests.support.blocking import wait_until
from tests.support.command_line import lash_redis_program, written
from tests.support.paths import DATA
from tests.support.servers import Server

runner = CliRunner(env={"COLUMNS": "120"})


def run(*arguments: str | Path) -> Result:
    return runner.invoke(app, [str(argument) for argument in arguments])


# Input files


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "user", "content": "", "name": "pat"},
    {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x:"}}]},
    {"role": "assistant", "content": None},
    {"role": "assistant"},
    {"role": "assistant", "content": "a", "refusal": None, "tool_calls": []},
    {"role": "assistant", "content": "a", "tool_calls": None},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {
        "role": "assistant",
        "content": "x",
        "tool_calls": [{"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
    {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"},
    {"role": "tool", "content": [{"type": "text", "text": "42"}], "tool_call_id": 7},
    {"role": "tool", "content": None},
    {"role": "developer", "content": "…", "parts": [], "source": {"role": "user"}, "n": 1.0, "b": True},
]


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_a_chat_message_is_restored_from_its_record(message: dict[str, Any]) -> None:
    record = json.loads(json.dumps(record_of("chat", "m0", message)))
    assert canonical_json(message_of("chat", record)) == canonical_json(message)
    assert record["role"] in ("User", "Assistant", "System")
    assert all(part["kind"] in ("Text", "Image", "ToolCall", "ToolResult") for part in record["parts"])


def test_a_tree_message_is_restored_from_its_record() -> None:
    message = {"id": "a", "parent_id": None, "role": "prompter", "text": "", "lang": "en", "content": 3}
    assert message_of("tree", record_of("tree", "a", message)) == message


def test_a_turn_of_a_chat_ends_before_the_next_user_message() -> None:
    roles = ["system", "assistant", "user", "assistant", "tool", "assistant", "user", "user", "assistant"]
    messages = [{"role": role, "content": role} for role in roles]
    chat = Conversation("c", "chat", messages, [None, *range(8)])
    assert [len(turn.messages) for turn in chat.turns("s")] == [6, 1, 2]
    assert [turn.tools is not None for turn in chat.turns("s")] == [True, False, False]


BAD_LINES: list[tuple[Any, str]] = [
    ("{", "is not JSON"),
    ("[]", "line: expected a JSON object, got a list"),
    ({"messages": []}, "id: expected a string, got NoneType"),
    ({"id": "a"}, "messages: expected a list, got null"),
    ({"id": "a", "messages": []}, "messages: is empty"),
    ({"id": "a", "messages": [3]}, "messages[0]: expected a JSON object, got a number"),
    ({"id": "a", "messages": [{"role": "king", "content": ""}]}, "messages[0].role: expected system"),
    ({"id": "a", "messages": [{"role": "user", "content": 3}]}, "messages[0].content: expected a string"),
    ({"id": "a", "messages": [{"role": "user", "tool_calls": {}}]}, "messages[0].tool_calls: expected a list"),
    ('{"id": "a", "messages": [{"role": "user", "content": NaN}]}', "messages[0].content: is nan"),
    ('{"id": "a", "messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content: is not valid Unicode"),
    (
        {"id": "a", "messages": [{"id": "x", "parent_id": "y", "role": "user", "text": ""}]},
        "messages[0].parent_id: expected the id of an earlier message or null, got 'y'",
    ),
    ({"id": "a", "messages": [{"id": "x", "parent_id": None, "role": "user"}]}, "messages[0].text: expected a string"),
    ({"id": "a", "messages": [{"parent_id": None, "role": "user", "text": ""}]}, "messages[0].id: expected a string"),
    (
        {"id": "a", "messages": 2 * [{"id": "x", "parent_id": None, "role": "user", "text": ""}]},
        "messages[1].id: 'x' is also the id of messages[0]",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_replay_of_a_bad_line_exits_with_2_and_names_file_line_and_field(
    tmp_path: Path, line: Any, reason: str
) -> None:
    good = {"id": "good", "messages": [{"role": "user", "content": "hi"}]}
    path = written(tmp_path / "chats.jsonl", good, "", line)
    ended = run("replay", path)
    assert ended.exit_code == 2
    assert f"{path}:3: " in ended.stderr
    assert reason in ended.stderr
    assert ended.stdout == ""


def test_replay_refuses_a_missing_an_empty_and_a_binary_file(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b'{"id": "\xff"}\n')
    assert run("replay", tmp_path / "none").exit_code == 2
    assert "contains no conversation" in run("replay", written(tmp_path / "empty", "")).stderr
    assert f"{tmp_path / 'bytes'}:1: is not UTF-8" in run("replay", tmp_path / "bytes").stderr


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("{}", "expected a list of tools"),
        ("[\n[", ":3: is not JSON"),
        ('[{"type": "function"}]', "[0].function.name"),
        ('[{"function": {"name": "a"}}, {"function": {"name": "a"}}]', "[1].function.name: 'a' occurs twice"),
    ],
)
def test_replay_of_bad_tools_exits_with_2(tmp_path: Path, tools: str, reason: str) -> None:
    ended = run("replay", "--tools", written(tmp_path / "tools.json", tools))
    assert ended.exit_code == 2
    assert reason in ended.stderr


def test_a_repeated_id_gets_a_number() -> None:
    assert [each.id for each in read_conversations([SHIPPED, SHIPPED, SHIPPED])] == [
        *("night-train", "rising-dough"),
        *("night-train~2", "rising-dough~2"),
        *("night-train~3", "rising-dough~3"),
    ]


# replay


@pytest.mark.slow
def test_replay_plays_and_verifies_the_included_conversations() -> None:
    ended = run("replay")
    assert ended.exit_code == 0, ended.output
    assert "2 of 2 sessions verified" in ended.stdout
    assert "Is there a night train" in ended.stdout
    assert "find_trains" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.slow
def test_replay_runs_each_turn_in_another_process_and_prints_one_document(url: str) -> None:
    ended = run("replay", "--json", "--workers", "3", "--url", url, "--namespace", "acme")
    report = json.loads(ended.stdout)
    assert ended.exit_code == 0
    assert report["ok"] is True
    assert (report["sessions"], report["verified"], report["messages"], report["turns"]) == (2, 2, 20, 11)
    assert report["handovers"] == 9
    assert report["branches"] == 3  # the chat, and two leaves of the tree
    assert report["conflicts"] == report["retries"] == 0
    assert report["bytes"]["measure"] == "memory usage"
    assert report["bytes"]["sessions"] > 1000
    assert [session["turns"] for session in report["by_session"]] == [3, 8]
    assert [message["role"] for message in report["sample"]["messages"][:3]] == ["System", "User", "Assistant"]
    with redis.Redis.from_url(url) as client:
        (head,) = client.keys(f"lash2:{{acme:*head:{report['prefix']}/night-train")
        assert 3_500_000 < client.pttl(head) <= 3_600_000


@pytest.mark.slow
def test_kept_sessions_have_no_deadline_and_can_be_shown(url: str) -> None:
    report = json.loads(run("replay", "--json", "--keep", "--url", url).stdout)
    session = report["by_session"][1]["session"]
    with redis.Redis.from_url(url) as client:
        assert [client.pttl(key) for key in client.keys(f"*head:{session}")] == [-1]
    assert run("show", session, "--url", url).exit_code == 0


@pytest.mark.slow
def test_sessions_in_an_embedded_directory_outlive_the_command(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path / 'data'}"
    ended = run("replay", "--url", url)
    assert ended.exit_code == 0
    command = next(line for line in ended.stdout.splitlines() if "lash-redis show" in line)
    assert run("show", command.split("'")[-2], "--url", url).exit_code == 0


def test_replay_refuses_a_memory_url() -> None:
    ended = run("replay", "--url", "memory://")
    assert ended.exit_code == 2
    assert "one process" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [("replay",), ("show", "chat"), ("doctor",)], ids=lambda command: command[0])
def test_an_unreachable_server_exits_with_3_and_a_wrong_url_with_2(command: tuple[str, ...], tmp_path: Path) -> None:
    unreachable = run(*command, "--json", "--url", f"unix://{tmp_path}/none")
    assert unreachable.exit_code == 3
    assert json.loads(unreachable.stdout)["ok"] is False
    assert "lash-redis: " in unreachable.stderr
    assert "Traceback" not in unreachable.output
    assert run(*command, "--url", "http://x").exit_code == 2
    assert run(*command, "--namespace", "{a}").exit_code == 2


@pytest.mark.slow
def test_replay_reports_a_session_that_changes_before_the_verification(url: str) -> None:
    def tamper(address: str, sessions: Any) -> None:
        with redis.Redis.from_url(address) as client:
            (log,) = client.keys(f"*log:{sessions[0].id}")
            record = client.lindex(log, 4)
            client.lset(log, 4, record.replace(b"22:10", b"22:11"))

    report = replay(read_conversations([SHIPPED]), url=url, namespace="acme", between=tamper)
    (first, second) = report.sessions
    assert first.faults
    assert "record 4 does not match its checksum" in first.faults[0]
    assert second.faults == []
    assert report.to_json()["ok"] is False


@pytest.mark.slow
def test_replay_names_a_failed_session_and_exits_with_1(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lash_redis.cli.replay import play as module

    def tampering(*arguments: Any, **named: Any) -> Any:
        def flush(address: str, sessions: Any) -> None:
            with redis.Redis.from_url(address) as client:
                client.delete(*client.keys(f"*:{sessions[1].id}"))

        return replay(*arguments, **named, between=flush)

    monkeypatch.setattr(module, "replay", tampering)
    ended = run("replay", "--url", url)
    assert ended.exit_code == 1
    assert "1 of 2 sessions differ from the files" in ended.stdout
    assert "rising-dough: the session does not exist" in ended.stdout


@pytest.mark.slow
async def test_a_killed_worker_is_reported_and_its_pool_does_not_block(url: str) -> None:
    turn = read_conversations([SHIPPED])[0].turns("s")[0]
    with Pool(2, Settings(url, "acme", StoreOptions(), None)) as pool:
        os.kill(pool.pids[1], signal.SIGKILL)
        pool.put(1, turn)
        with pytest.raises(WorkerDied, match=f"worker 1 .*{pool.pids[1]}.* ended with code -9"):
            list(pool.results())


@pytest.mark.samples
@pytest.mark.slow
def test_sample_conversations_are_replayed_and_verified() -> None:
    files = [DATA / "airline_chats.jsonl", DATA / "message_trees.jsonl"]
    ended = run("replay", *files, "--tools", DATA / "airline_tools.json", "--workers", "4", "--json")
    report = json.loads(ended.stdout)
    assert ended.exit_code == 0
    assert report["sessions"] == report["verified"] == 130
    assert report["handovers"] == report["turns"] - 130


# The verification


@pytest.fixture
async def link(url: str) -> Any:
    connection = Connection(url)
    yield connection
    await connection.close()


CHAT, TREE = read_conversations([SHIPPED])


async def play_conversation(
    link: Connection, url: str, conversation: Conversation, turns: int | None = None
) -> SessionCache:
    settings = Settings(url, "acme", StoreOptions(), None)
    for turn in conversation.turns("s")[:turns]:
        await play(link, settings, turn)
    return SessionCache(link, "acme")


@pytest.mark.parametrize("conversation", [CHAT, TREE], ids=lambda conversation: conversation.format)
async def test_a_played_session_has_no_faults(link: Connection, url: str, conversation: Conversation) -> None:
    cache = await play_conversation(link, url, conversation)
    assert await faults_of(cache.session("s"), conversation, None) == []


Change = Callable[[PersistedSessionRead], dict[str, Any]]


def _with_event(node: SessionNodeRecord, **fields: Any) -> SessionNodeRecord:
    return replace(node, payload=EventPayload({"Conversation": {**node.message(), **fields}}))  # type: ignore[dict-item]


def _other_message(read: PersistedSessionRead) -> dict[str, Any]:
    nodes = list(read.graph.nodes)
    nodes[1] = _with_event(nodes[1], parts=[])
    return {"graph": ReplaceFull(SessionGraph(nodes, read.graph.leaf_node_id))}


def _lost_role(read: PersistedSessionRead) -> dict[str, Any]:
    nodes = list(read.graph.nodes)
    nodes[0] = _with_event(nodes[0], source={})
    return {"graph": ReplaceFull(SessionGraph(nodes, read.graph.leaf_node_id))}


def _other_parent(read: PersistedSessionRead) -> dict[str, Any]:
    nodes = list(read.graph.nodes)
    nodes[-1] = replace(nodes[-1], parent_node_id=nodes[0].node_id)
    return {"graph": ReplaceFull(SessionGraph(nodes, read.graph.leaf_node_id))}


def _one_more(read: PersistedSessionRead) -> dict[str, Any]:
    leaf = read.graph.leaf_node_id
    return {"graph": Append([SessionNodeRecord("extra", leaf, "", PluginPayload("x", None))], leaf)}


CHANGES: dict[str, tuple[Change, str]] = {
    "only the revision": (lambda read: {}, "the revision is"),
    "a message": (_other_message, "message 1 is"),
    "a field outside of the parts": (_lost_role, "message 0 is"),
    "a parent": (_other_parent, "the parent of node"),
    "a branch": (_other_parent, "the branch that ends at message"),
    "an additional node": (_one_more, "the number of nodes is"),
    "the leaf": (lambda read: {"graph": Unchanged(read.graph.nodes[0].node_id)}, "the leaf is"),
    "the usage": (
        lambda read: {"usage_deltas": [TokenLedgerEntry("turn", "replay", TokenUsage(0, 0, 1))]},
        "the usage is",
    ),
    "the tools": (lambda read: {"tool_state": ToolState(1, {})}, "the tool state is"),
    "the plugin": (lambda read: {"plugin_snapshot": None, "plugin_snapshot_ref": None}, "the plugin snapshot is null"),
    "the plugin's revision": (lambda read: {"plugin_snapshot_revision": 99}, "the plugin snapshot's revision is 99"),
    "the execution state": (lambda read: {"execution_state": b"other"}, "the execution state is"),
    "the config": (lambda read: {"config": replace(read.config, configured_model="other")}, "the config is"),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_the_verification_detects_a_changed_commit(link: Connection, url: str, what: str) -> None:
    change, fault = CHANGES[what]
    conversation = CHAT if what == "the tools" else TREE
    cache = await play_conversation(link, url, conversation)
    store = cache.session("s")
    read = await store.load_session(FullGraph())
    assert read is not None
    assert read.checkpoint is not None
    changed = change(read)
    parts = {name: changed.pop(name) for name in list(changed) if hasattr(HydratedSessionCheckpoint(), name)}
    commit = RuntimeCommit(
        **{
            "session_id": "s",
            "expected_head_revision": read.head_revision,
            "config": read.config,
            "graph": Unchanged(read.graph.leaf_node_id),
            "checkpoint": replace(read.checkpoint, **parts),
            **changed,
        }
    )
    await store.commit_runtime_state(commit)
    assert any(found.startswith(fault) for found in await faults_of(store, conversation, None))


async def test_the_verification_detects_a_missing_turn(link: Connection, url: str) -> None:
    cache = await play_conversation(link, url, CHAT, turns=2)
    faults = await faults_of(cache.session("s"), CHAT, None)
    assert "the revision is 2, expected 3" in faults


async def test_a_turn_that_resumes_at_an_older_revision_is_refused(link: Connection, url: str) -> None:
    settings = Settings(url, "acme", StoreOptions(), None)
    first, _, third = CHAT.turns("s")
    await play(link, settings, first)
    with pytest.raises(Corrupt, match="resumed at revision 1 after 2 committed turns"):
        await play(link, settings, third)


async def test_a_turn_that_conflicts_with_another_resumes_and_commits_again(
    link: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(url, "acme", StoreOptions(), None)
    turns = TREE.turns("s")
    await play(link, settings, turns[0])
    load = lash_redis.RedisSessionStore.load_session
    rival: list[Awaitable[Any]] = [play(link, settings, turns[1])]

    async def overtaken(store: Any, scope: Any) -> Any:
        read = await load(store, scope)
        if rival:
            monkeypatch.setattr(lash_redis.RedisSessionStore, "load_session", load)
            await rival.pop()
        return read

    monkeypatch.setattr(lash_redis.RedisSessionStore, "load_session", overtaken)
    result = await play(link, settings, replace(turns[2], number=1))
    assert (result.conflicts, result.retries) == (1, 1)
    for turn in turns[3:]:
        await play(link, settings, turn)
    assert await faults_of(SessionCache(link, "acme").session("s"), TREE, None) == []


# show


@pytest.mark.slow
def test_show_marks_the_active_path_and_prints_the_conversation(url: str) -> None:
    report = json.loads(run("replay", "--json", "--url", url).stdout)
    session = report["by_session"][1]["session"]
    shown = run("show", session, "--url", url, "--messages")
    assert shown.exit_code == 0
    for text in ("revision", "8 live, 8 in the log", "tool state", "plugin snapshot", "execution state", "1.0 KB"):
        assert text in shown.stdout
    lines = shown.stdout.splitlines()
    assert any("● q4" in line and "◀ leaf" in line for line in lines)
    assert any("○ a1" in line for line in lines)
    assert "You are welcome" not in shown.stdout
    assert "The lamp it is. Thank you!" in shown.stdout.split("active path")[-1]
    assert "It foams." not in shown.stdout.split("active path")[-1]

    document = json.loads(run("show", session, "--url", url, "--messages", "--json").stdout)
    assert document["head_revision"] == 8
    assert document["leaf_node_id"] == "q4"
    assert document["nodes"] == {"live": 8, "total": 8, "active": 5}
    assert [node["node_id"] for node in document["graph"] if node["active"]] == ["q1", "a2", "q3", "a4", "q4"]
    assert [message["node_id"] for message in document["messages"]] == ["q1", "a2", "q3", "a4", "q4"]
    assert document["components"]["execution_state"]["bytes"] > 1024


async def test_show_prints_the_owner_of_the_lease(url: str) -> None:
    async with lash_redis.connect(url) as cache:
        await cache.session("chat").commit_runtime_state(RuntimeCommit("chat"))
        free = await asyncio.to_thread(run, "show", "chat", "--url", url)
        assert re.search(r"lease +free", free.stdout)
        await cache.session("chat").acquire_lease("worker 7", ttl=3600)
    shown = await asyncio.to_thread(run, "show", "chat", "--url", url)
    assert re.search(r"lease +worker 7, generation 1, expires in 60 minutes", shown.stdout)
    document = await asyncio.to_thread(run, "show", "chat", "--url", url, "--json")
    lease = json.loads(document.stdout)["lease"]
    assert (lease["owner"], lease["generation"]) == ("worker 7", 1)
    assert 3000 < lease["ends_in_s"] <= 3600


def test_show_of_a_missing_session_exits_with_1(url: str) -> None:
    ended = run("show", "absent", "--url", url)
    assert ended.exit_code == 1
    assert "no session 'absent'" in ended.stderr
    assert ended.stdout == ""


def test_show_finds_the_sessions_of_a_namespace_with_other_shards(url: str) -> None:
    async def write() -> None:
        async with lash_redis.connect(url, namespace="few", options=StoreOptions(shards=3)) as cache:
            await cache.session("s").commit_runtime_state(RuntimeCommit("s"))

    import asyncio

    asyncio.run(write())
    assert json.loads(run("show", "s", "--url", url, "--namespace", "few", "--json").stdout)["head_revision"] == 1
    assert "3 shards" in run("doctor", "--url", url, "--namespace", "few").stdout


def _line(count: int, parent: Callable[[int], int | None]) -> PersistedSessionRead:
    nodes = [
        SessionNodeRecord(f"n{at}", None if (above := parent(at)) is None else f"n{above}", "", EventPayload({}))
        for at in range(count)
    ]
    return PersistedSessionRead("s", 1, lash_redis.PersistedSessionConfig(), SessionGraph(nodes, f"n{count - 1}"))


def _drawn(read: PersistedSessionRead) -> list[str]:
    return [line.plain for line in graph_lines(read, 120)]


def test_a_chat_of_a_thousand_nodes_is_folded() -> None:
    lines = _drawn(_line(1000, lambda at: at - 1 if at else None))
    assert len(lines) == 6
    assert "996 nodes" in lines[3]
    assert "n999" in lines[5]
    assert "◀ leaf" in lines[5]


def test_a_graph_that_branches_at_every_node_is_folded() -> None:
    lines = _drawn(_line(1000, lambda at: None if at == 0 else at - 1 if at % 2 else max(at - 2, 0)))
    assert len(lines) < 120
    assert max(map(len, lines)) <= 120
    assert any("in branches off them" in line for line in lines)
    assert any("◀ leaf" in line for line in lines)


def test_show_marks_a_node_whose_parent_is_missing() -> None:
    gone = _drawn(_line(2, lambda at: 7 if at == 0 else 0))
    assert any("its parent is missing" in line for line in gone)


def test_control_characters_and_markup_of_stored_text_are_not_interpreted() -> None:
    assert plain("a\x1b[31mb\x9bc\rd").plain == "a�[31mb�c�d"
    assert plain("[bold]x[/]").plain == "[bold]x[/]"


def test_a_password_is_never_shown() -> None:
    assert shown_url("redis://me:secret@host:1/0") == "redis://me:***@host:1/0"
    assert shown_url("redis://:secret@host") == "redis://:***@host"
    assert "secret" not in shown_url("unix:///run/x.sock?db=1&password=secret")
    assert shown_url("embedded:///a") == "embedded:///a"


# doctor


def findings(*arguments: str) -> dict[str, dict[str, str]]:
    ended = run("doctor", "--json", *arguments)
    document = json.loads(ended.stdout)
    assert ended.exit_code == (0 if document["ok"] else 1)
    return {finding["check"]: finding for finding in document["findings"]}


async def test_doctor_finds_no_failure_on_any_real_server(real_server: Server) -> None:
    import asyncio

    found = await asyncio.to_thread(findings, "--url", real_server.url)
    assert {name: finding["state"] for name, finding in found.items()} == {
        "version": "ok",
        "cluster": "ok",
        "replication": "ok",
        "eviction": "ok",
        "persistence": "warn",
        "clock": "ok",
        "layout": "ok",
        "permissions": "ok",
        "latency": "ok",
    }
    assert ".".join(map(str, real_server.version)) in found["version"]["found"]


@pytest.mark.slow
async def test_doctor_reports_checks_that_an_acl_denies_as_unknown(real_server: Server) -> None:
    import asyncio

    user = real_server.client()
    commands = "+@read +@write +@scripting +@transaction +time +ping -info -config -@dangerous"
    patterns = "~lash2:*", "~lash1:layout:*", "&*"
    await user.execute_command("ACL", "SETUSER", "limited", "on", ">pw", *patterns, "-@all", *commands.split())
    try:
        url = real_server.tcp_url.replace("redis://", "redis://limited:pw@")
        found = await asyncio.to_thread(findings, "--url", url)
        states = {name: finding["state"] for name, finding in found.items()}
        denied = {states[name] for name in ("version", "cluster", "replication", "eviction", "persistence")}
        assert denied == {"unknown"}
        assert (states["permissions"], states["latency"], states["layout"]) == ("ok", "ok", "ok")
        ended = await asyncio.to_thread(run, "replay", "--url", url, "--json")
        report = json.loads(ended.stdout)
        assert report["ok"] is True
        await user.execute_command("ACL", "SETUSER", "limited", "-@scripting")
        found = await asyncio.to_thread(findings, "--url", url)
        assert found["permissions"]["state"] == "fail"
        assert "EVALSHA" in found["permissions"]["advice"]
    finally:
        await user.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.slow
async def test_replay_measures_the_records_if_memory_usage_is_denied(real_server: Server) -> None:
    import asyncio

    user = real_server.client()
    await user.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "-memory")
    try:
        url = real_server.tcp_url.replace("redis://", "redis://limited:pw@")
        ended = await asyncio.to_thread(run, "replay", "--url", url, "--json")
        report = json.loads(ended.stdout)
        assert report["bytes"]["measure"] == "record bytes"
        assert report["bytes"]["sessions"] > 1000
        assert report["bytes"]["blobs"] > 100
    finally:
        await user.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.slow
def test_doctor_fails_for_a_replica_and_for_a_cluster_node() -> None:
    with EmbeddedServer(options={"replicaof": "127.0.0.1 1"}) as replica:
        found = findings("--url", replica.url)
        assert found["replication"]["state"] == "fail"
        assert "primary" in found["replication"]["advice"]
    with EmbeddedServer(port=0, options={"cluster-enabled": "yes"}) as node:
        assert findings("--url", node.url)["cluster"]["state"] == "fail"


@pytest.mark.slow
def test_doctor_fails_for_an_unknown_layout(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("lash1:layout:default", "layout=9 shards=64")
    assert findings("--url", url)["layout"]["state"] == "fail"
    assert findings("--url", url, "--namespace", "other")["layout"]["state"] == "ok"


def test_doctor_leaves_no_key_without_a_ttl_except_its_layout(url: str) -> None:
    findings("--url", url)
    with redis.Redis.from_url(url) as client:
        lasting = [key for key in client.scan_iter() if client.pttl(key) < 0]
        assert lasting == [b"lash1:layout:lash-doctor"]


# The program


@pytest.mark.slow
def test_the_program_reads_the_url_from_the_environment(url: str) -> None:
    with lash_redis_program("replay", "--json", env={"LASH_REDIS_URL": url}) as program:
        out, err = program.communicate(timeout=60)
    assert program.returncode == 0
    assert err == ""
    assert json.loads(out)["url"] == url


@pytest.mark.parametrize("command", [(), ("replay",), ("show",), ("doctor",)], ids=" ".join)
def test_help_explains_the_exit_codes(command: tuple[str, ...]) -> None:
    ended = run(*command, "--help")
    assert ended.exit_code == 0
    text = " ".join(ended.stdout.split())
    assert "embedded://[directory]" in text or command == ()
    for code in ("1 verification failed", "2 wrong usage", "3 the server could not be reached"):
        assert code in text


@pytest.mark.slow
def test_ctrl_c_ends_workers_and_server_and_exits_with_130(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": f"message {at}"} for at in range(1500)]
    path = written(tmp_path / "long.jsonl", *({"id": f"c{at}", "messages": messages} for at in range(4)))
    with tempfile.TemporaryDirectory() as folder:  # its path is short enough for that of a unix socket
        temporary = Path(folder)
        with lash_redis_program("replay", str(path), env={"TMPDIR": folder}, start_new_session=True) as program:
            wait_until(lambda: list(temporary.glob("lash-redis-*/socket")))
            time.sleep(1.5)
            os.killpg(program.pid, signal.SIGINT)
            _, err = program.communicate(timeout=60)
        assert program.returncode == 130
        assert err.strip() == "lash-redis: interrupted"
        wait_until(lambda: not list(temporary.glob("lash-redis-*")))


@pytest.mark.slow
@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_cli_extra_the_program_prints_one_line_and_exits_with_2(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import lash_redis.cli; lash_redis.cli.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == f"lash-redis needs {package}: pip install 'lash-redis[cli]'\n"


@pytest.mark.slow
def test_the_package_and_the_workers_import_neither_typer_nor_rich() -> None:
    code = (
        "import sys, lash_redis; assert 'lash_redis.cli' not in sys.modules;"
        "import lash_redis.cli.replay.worker; assert not {'typer', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_input_error_without_a_line_names_the_file_only() -> None:
    assert str(InputError(Path("a.json"), None, "", "is odd")) == "a.json: is odd"
