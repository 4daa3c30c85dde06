"""What `show` and `list` print: complete ids, branches as siblings, tool calls and results by name and call id."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lash_redis
from lash_redis import Append, EventPayload, RuntimeCommit, SessionGraph, SessionNodeRecord
from lash_redis.cli import app
from lash_redis.cli.graph_drawing import graph_lines
from lash_redis.models import PersistedSessionConfig, PersistedSessionRead

LONG = "tenant-7/" + "0123456789abcdef" * 6
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CHAT: dict[str, Any] = {
    "id": LONG,
    "messages": [
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ],
}

runner = CliRunner(env={"COLUMNS": "80"})


def node(node_id: str, parent: str | None) -> SessionNodeRecord:
    part = {
        "id": f"{node_id}.p",
        "kind": "Text",
        "content": f"text of {node_id} " + 20 * "word ",
        "prune_state": "Intact",
    }
    return SessionNodeRecord(
        node_id, parent, "", EventPayload({"Conversation": {"id": node_id, "role": "User", "parts": [part]}})
    )


def drawn(*links: tuple[str, str | None], leaf: str, width: int = 80) -> list[str]:
    graph = SessionGraph([node(name, parent) for name, parent in links], leaf)
    return [line.plain for line in graph_lines(PersistedSessionRead("s", 1, PersistedSessionConfig(), graph), width)]


@pytest.fixture
def imported(url: str, tmp_path: Path) -> str:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(CHAT) + "\n")
    assert runner.invoke(app, ["import", "--openai", str(path), "--url", url]).exit_code == 0
    return url


def printed(*arguments: str) -> str:
    ended = runner.invoke(app, list(arguments))
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def test_ids_are_complete_at_80_columns(imported: str) -> None:
    assert printed("fork", LONG, f"{LONG}-fork", "--url", imported).startswith(f"{LONG}-fork: forked from {LONG} (")
    _, fork, original = printed("list", "--url", imported).splitlines()
    assert (fork.split()[0], fork.split()[-1], original.split()[0]) == (f"{LONG}-fork", LONG, LONG)
    lines = printed("show", LONG, "--url", imported).splitlines()
    document = json.loads(printed("show", LONG, "--url", imported, "--json"))
    assert lines[0] == LONG
    for label, field in (("commit", "commit_id"), ("leaf", "leaf_node_id"), ("checkpoint", "checkpoint_ref")):
        assert f"{label:<12}{document[field]}" in lines


def test_component_refs_are_complete_at_80_columns(url: str) -> None:
    async def write() -> None:
        async with lash_redis.connect(url) as cache:
            state = lash_redis.HydratedSessionCheckpoint(execution_state=b"state")
            await cache.session("s").commit_runtime_state(
                RuntimeCommit("s", 0, graph=Append([node("n" * 90, None)], "n" * 90), checkpoint=state)
            )

    asyncio.run(write())
    text = printed("show", "s", "--url", url)
    ref = json.loads(printed("show", "s", "--url", url, "--json"))["components"]["execution_state"]["ref"]
    assert len(ref) == 64
    assert f"\nexecution state      7 B\n  {ref}\n" in text
    assert f"\n● {'n' * 90}  User: text of nnn" in text
    assert "tool state" not in text


def test_a_session_without_components_has_no_section_for_them(imported: str) -> None:
    assert "component" not in printed("show", LONG, "--url", imported)


def test_pending_inputs_are_listed_in_their_order(url: str) -> None:
    async def write() -> None:
        async with lash_redis.connect(url) as cache:
            store = cache.session("s")
            await store.commit_runtime_state(RuntimeCommit("s", graph=Append([node("n", None)])))
            await store.enqueue_input({"content": "wait"}, "i2")
            await store.enqueue_input("x" * 500 + "\x1b[31m", "i1")

    asyncio.run(write())
    lines = printed("show", "s", "--url", url).splitlines()
    assert "inputs      2 pending" in lines
    at = lines.index("pending inputs")
    assert lines[at + 1] == 'i2  {"content": "wait"}'
    assert lines[at + 2] == f'i1  "{"x" * 199}...'
    document = json.loads(printed("show", "s", "--url", url, "--json"))
    assert [(each["input_id"], each["item"]) for each in document["pending_inputs"]] == [
        ("i2", {"content": "wait"}),
        ("i1", "x" * 500 + "\x1b[31m"),
    ]


def test_branches_are_drawn_as_siblings() -> None:
    links = [
        ("q1", None),
        ("a1", "q1"),
        ("q2", "a1"),
        ("a2", "q1"),
        ("a3", "q1"),
        ("q3", "a3"),
        ("q4", "a3"),
        ("q5", "q4"),
    ]
    lines = drawn(*links, leaf="q5")
    assert [line.partition("  ")[0] if line[0] == "●" else line.partition("  User")[0] for line in lines[1:]] == [
        "● q1",
        "├─ ○ a2",
        "├─ ○ a1",
        "│  ○ q2",
        "└─ ● a3",
        "   ├─ ○ q3",
        "   └─ ● q4",
        "      ● q5",
    ]
    assert [len(line) for line in lines[1:]] == [80] * 8
    assert lines[-1].endswith("…  ◀ leaf")


def test_roots_are_siblings() -> None:
    assert [line[:6] for line in drawn(("a", None), ("b", None), ("c", "a"), leaf="c")[1:]] == [
        *("├─ ○ b", "└─ ● a", "   ● c")
    ]


def test_a_tool_result_has_the_name_and_the_call_id_of_its_call(imported: str) -> None:
    text = printed("show", LONG, "--messages", "--url", imported)
    for line in (
        '● m1  Assistant: [calls weather (call_1)] {"city": "Rome"}',
        "● m2  Tool: [from weather (call_1)] sunny  ◀ leaf",
        '  calls weather (call_1)  {"city": "Rome"}',
        "  from weather (call_1)  sunny",
    ):
        assert line in [each.rstrip() for each in text.splitlines()]
    document = json.loads(printed("show", LONG, "--messages", "--json", "--url", imported))
    assert [message["parts"] for message in document["messages"]] == [
        [{"kind": "text", "text": "Weather in Rome?"}],
        [{"kind": "tool_call", "text": '{"city": "Rome"}', "tool": "weather", "call_id": "call_1"}],
        [{"kind": "tool_result", "text": "sunny", "tool": "weather", "call_id": "call_1"}],
    ]
