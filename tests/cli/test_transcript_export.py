"""`export --openai`: transcripts that `import --openai` reads, of imported sessions and of those of other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lash_redis import (
    Append,
    EventPayload,
    FullGraph,
    PersistedSessionConfig,
    PluginPayload,
    RuntimeCommit,
    SessionCache,
    SessionNodeRecord,
    SessionPolicy,
    SessionStoreCreateRequest,
)
from lash_redis.cli import app
from tests.support.command_line import within

CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
    {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}, "index": 1},
]
CHAT: dict[str, Any] = {
    "id": "weather/1",
    "model": "a-model",
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Rome?"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": CALLS, "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny \U0001f324"},
        {"role": "tool", "tool_call_id": "c2", "name": "time", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "assistant", "content": "Sunny.", "timestamp": "2025-05-05T05:05:05Z", "cost": 1.0},
    ],
}
PLAIN: dict[str, Any] = {"id": "plain", "messages": [{"role": "user", "content": ""}]}
TREE: dict[str, Any] = {
    "id": "tree",
    "messages": [
        {"id": "a", "role": "prompter", "text": "Hello"},
        {"id": "b", "parent_id": "a", "role": "assistant", "text": "Hi", "lang": "en"},
        {"id": "c", "parent_id": "b", "role": "user", "text": "Bye"},
    ],
}

runner = CliRunner(env={"COLUMNS": "80"})


def run(*arguments: str | Path, url: str, code: int = 0) -> Result:
    ended = runner.invoke(app, [*map(str, arguments), "--url", url])
    assert ended.exit_code == code, ended.output
    return ended


def transcripts(path: Path) -> dict[str, Any]:
    return {line["id"]: line for line in map(json.loads, path.read_text("utf-8").splitlines())}


def imported(url: str, path: Path, *conversations: dict[str, Any], namespace: str = "default") -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in conversations))
    run("import", "--openai", path, "--namespace", namespace, url=url)


async def everything(cache: SessionCache) -> dict[str, Any]:
    """Every session as JSON, without the times of the import."""
    found = {}
    async for info in cache.sessions():
        read = await cache.session(info.session_id).load_session(FullGraph())
        assert read is not None
        document = read.to_json()
        for node in document["graph"]["nodes"]:
            if node["timestamp"] != "2025-05-05T05:05:05Z":
                del node["timestamp"]
        found[info.session_id] = document
    return found


def test_a_round_trip_gives_equal_files_and_equal_sessions(url: str, tmp_path: Path) -> None:
    imported(url, tmp_path / "in", CHAT, PLAIN, TREE)
    ended = run("export", "--all", "--openai", tmp_path / "out", url=url)
    assert ended.stdout.replace(str(tmp_path), "").startswith("3 transcripts with 10 messages in /out (")
    assert transcripts(tmp_path / "out") == {each["id"]: each for each in (CHAT, PLAIN, TREE)}
    run("import", "--openai", tmp_path / "out", "--namespace", "copy", url=url)
    original = within(url, everything)
    assert set(original) == {"weather/1", "plain", "tree"}
    assert within(url, everything, "copy") == original
    again = json.loads(run("import", "--openai", tmp_path / "out", "--json", url=url).stdout)
    assert (again["session_count"], again["present_count"], again["failed_count"]) == (3, 3, 0)


def test_a_transcript_is_the_active_path(url: str, tmp_path: Path) -> None:
    branched = {
        "id": "tree",
        "messages": [*TREE["messages"], {"id": "d", "parent_id": "b", "role": "user", "text": "No"}],
    }
    imported(url, tmp_path / "in", branched)
    run("export", "tree", "--openai", tmp_path / "out", url=url)
    messages = transcripts(tmp_path / "out")["tree"]["messages"]
    assert [message["id"] for message in messages] == ["a", "b", "d"]


def part(kind: str, content: str, **more: str) -> dict[str, str]:
    return {"id": "p", "kind": kind, "content": content, "prune_state": "Intact", **more}


def node(node_id: str, parent: str | None, role: str, *parts: dict[str, str], **more: Any) -> SessionNodeRecord:
    record = {"id": node_id, "role": role, "parts": list(parts), **more}
    return SessionNodeRecord(node_id, parent, "", EventPayload({"Conversation": record}))


async def foreign(cache: SessionCache) -> None:
    """A session of another runtime: nodes that are no messages, several results in one message, reasoning."""
    nodes = [
        node("a", None, "System", part("Text", "Be brief.")),
        SessionNodeRecord("p", "a", "", PluginPayload("notes", {})),
        node("b", "p", "User", part("Text", "Rome?"), part("Text", "And now?"), source={"plugin": "x"}),
        node(
            *("c", "b", "Assistant"),
            *(part("Reasoning", "Hm."), part("Prose", "Let me see.")),
            part("ToolCall", '{"city": "Rome"}', tool_name="weather", tool_call_id="c1"),
            part("ToolCall", "{}", tool_name="time", tool_call_id="c2"),
        ),
        node(
            *("d", "c", "User"),
            *(part("ToolResult", "sunny", tool_call_id="c1"), part("ToolResult", "12:00", tool_call_id="c2")),
        ),
        node("e", "d", "Assistant", part("Text", "Sunny.")),
    ]
    config = PersistedSessionConfig(configured_model="m")
    await cache.session("s").commit_runtime_state(RuntimeCommit("s", 0, config=config, graph=Append(nodes, "e")))


FOREIGN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rome?\n\nAnd now?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
    {"role": "tool", "tool_call_id": "c2", "name": "time", "content": "12:00"},
    {"role": "assistant", "content": "Sunny."},
]


def test_messages_of_another_runtime_are_converted(url: str, tmp_path: Path) -> None:
    within(url, foreign)
    run("export", "s", "--openai", tmp_path / "out", url=url)
    assert transcripts(tmp_path / "out") == {"s": {"id": "s", "model": "m", "messages": FOREIGN}}
    run("import", "--openai", tmp_path / "out", "--namespace", "copy", url=url)
    run("export", "s", "--openai", tmp_path / "again", "--namespace", "copy", url=url)
    assert (tmp_path / "again").read_text() == (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("conversation", "first"),
    [
        (CHAT, CHAT["messages"]),
        (
            TREE,
            [
                {"role": role, "content": text}
                for role, text in (("user", "Hello"), ("assistant", "Hi"), ("user", "Bye"))
            ],
        ),
    ],
    ids=["chat", "tree"],
)
def test_an_imported_session_that_another_runtime_continued_is_a_chat(
    url: str, tmp_path: Path, conversation: dict[str, Any], first: list[dict[str, Any]]
) -> None:
    async def go_on(cache: SessionCache) -> None:
        def turn(read: Any) -> RuntimeCommit:
            added = node("x", read.graph.leaf_node_id, "Assistant", part("Text", "More."))
            return RuntimeCommit(read.session_id, graph=Append([added], "x"))

        await cache.session(conversation["id"]).update(turn)

    imported(url, tmp_path / "in", conversation)
    within(url, go_on)
    run("export", conversation["id"], "--openai", tmp_path / "out", url=url)
    messages = transcripts(tmp_path / "out")[conversation["id"]]["messages"]
    assert messages == [*first, {"role": "assistant", "content": "More."}]


def test_messages_stored_in_the_chat_format_are_exported_as_they_are(url: str, tmp_path: Path) -> None:
    async def write(cache: SessionCache) -> None:
        said = {"role": "user", "content": "Hello", "name": "ann"}
        nodes = [SessionNodeRecord("a", None, "", EventPayload({"Conversation": said}))]
        await cache.session("s").commit_runtime_state(RuntimeCommit("s", 0, graph=Append(nodes, "a")))

    within(url, write)
    run("export", "s", "--openai", tmp_path / "out", url=url)
    assert transcripts(tmp_path / "out")["s"]["messages"] == [{"role": "user", "content": "Hello", "name": "ann"}]


def test_sessions_without_messages_are_left_out_and_counted(url: str, tmp_path: Path) -> None:
    async def write(cache: SessionCache) -> None:
        await cache.session("empty").commit_runtime_state(RuntimeCommit("empty", 0))
        await cache.create(SessionStoreCreateRequest("created", SessionPolicy(model="m")))

    imported(url, tmp_path / "in", PLAIN)
    within(url, write)
    report = json.loads(run("export", "--all", "--openai", tmp_path / "out", "--json", url=url).stdout)
    size = (tmp_path / "out").stat().st_size
    assert report == {"ok": True, "transcript_count": 1, "message_count": 1, "omitted_count": 1, "bytes": size}


def test_transcripts_go_to_standard_output_for_a_dash(url: str, tmp_path: Path) -> None:
    imported(url, tmp_path / "in", PLAIN)
    assert json.loads(run("export", "--all", "--openai", "-", url=url).stdout) == PLAIN


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["nix", "--openai", "{out}"], 1, "no session 'nix' in namespace 'default'"),
        (["--openai", "{out}"], 2, "expected either session ids or --all"),
        (["--all", "--openai", "{out}", "--output", "{out}"], 2, "expected either --output or --openai, got both"),
        (["--all", "--openai", "-", "--json"], 2, "--json needs --output or --openai with a file"),
    ],
)
def test_a_refused_export_creates_no_file(
    url: str, tmp_path: Path, arguments: list[str], code: int, reason: str
) -> None:
    given = [argument.replace("{out}", str(tmp_path / "out")) for argument in arguments]
    ended = run("export", *given, url=url, code=code)
    assert reason in ended.stderr
    assert not (tmp_path / "out").exists()
