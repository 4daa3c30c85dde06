"""`tail`: the last messages, then each new one, on every branch, until the session ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from lash_redis import (
    Append,
    EventPayload,
    PersistedSessionRead,
    PluginPayload,
    RuntimeCommit,
    SessionCache,
    SessionNodeRecord,
    SessionPolicy,
    SessionStoreCreateRequest,
    Unchanged,
)
from lash_redis.cli import app, tail
from tests.laws.test_watch import until
from tests.support.command_line import lash_redis_program, meanwhile, within

runner = CliRunner(env={"COLUMNS": "80"})


def message(node_id: str, parent: str | None, role: str = "User", **part: str) -> SessionNodeRecord:
    stored = {"id": f"{node_id}.p", "kind": "Text", "content": f"text of {node_id}", "prune_state": "Intact", **part}
    return SessionNodeRecord(
        node_id, parent, "", EventPayload({"Conversation": {"id": node_id, "role": role, "parts": [stored]}})
    )


async def add(cache: SessionCache, *nodes: SessionNodeRecord) -> None:
    await cache.session("s").update(lambda read: RuntimeCommit("s", graph=Append(nodes, nodes[-1].node_id)))


async def three(cache: SessionCache) -> None:
    await add(cache, message("m0", None), message("m1", "m0", "Assistant"), message("m2", "m1"))


Shown = Callable[[int], Awaitable[None]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """`await shown(revision)` returns when `tail` has printed what a revision has."""
    advance, revisions = tail._Reported.advance, set()

    def noted(self: tail._Reported, read: PersistedSessionRead, last: int | None = None) -> None:
        advance(self, read, last)
        revisions.add(read.head_revision)

    monkeypatch.setattr(tail._Reported, "advance", noted)
    return lambda revision: until(lambda: revision in revisions, f"revision {revision}")


async def continued_and_deleted(cache: SessionCache, shown: Shown) -> None:
    call = message("m3", "m2", "Assistant", kind="ToolCall", content="{}", tool_name="find", tool_call_id="c1")
    result = message("m4", "m3", "Assistant", kind="ToolResult", content="seen", tool_call_id="c1")
    await add(cache, call, SessionNodeRecord("p", "m3", "", PluginPayload("notes", {})), result)
    await shown(2)
    await add(cache, message("n1", "m0", "Assistant"))
    await shown(3)
    await cache.delete("s")


def lines_of(ended: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_tail_prints_the_last_messages_and_then_each_new_one(url: str, shown: Shown) -> None:
    within(url, three)
    with meanwhile(url, lambda cache: continued_and_deleted(cache, shown)):
        ended = runner.invoke(app, ["tail", "s", "--last", "2", "--url", url])
    assert (ended.exit_code, ended.stderr) == (1, "lash-redis: session 's' was deleted\n")
    assert [line.rstrip() for line in ended.stdout.splitlines() if line.strip()] == [
        *("Assistant", "  text of m1", "User", "  text of m2"),
        *("Assistant", "  calls find (c1)  {}", "Tool", "  from find (c1)  seen"),
        *("── the conversation continues after m0 ──", "Assistant", "  text of n1"),
    ]


def test_tail_prints_a_document_for_each_message(url: str, shown: Shown) -> None:
    within(url, three)
    with meanwhile(url, lambda cache: continued_and_deleted(cache, shown)):
        ended = runner.invoke(app, ["tail", "s", "--last", "1", "--json", "--url", url])
    documents = lines_of(ended)
    assert documents[0] == {
        "ok": True,
        "session_id": "s",
        "node_id": "m2",
        "role": "User",
        "parts": [{"kind": "text", "text": "text of m2"}],
        "parent_node_id": "m1",
        "head_revision": 1,
        "branches_off": False,
    }
    assert [(each["node_id"], each["head_revision"], each["branches_off"]) for each in documents[1:-1]] == [
        *(("m3", 2, False), ("m4", 2, False), ("n1", 3, True))
    ]
    assert documents[-1] == {"ok": False, "exit_code": 1, "error": "session 's' was deleted"}


def test_tail_of_a_session_without_a_commit_waits_for_the_first(url: str, shown: Shown) -> None:
    async def create(cache: SessionCache) -> None:
        await cache.create(SessionStoreCreateRequest("s", SessionPolicy(model="m")))

    async def commit_and_delete(cache: SessionCache) -> None:
        await three(cache)
        await shown(1)
        await cache.delete("s")

    within(url, create)
    with meanwhile(url, commit_and_delete):
        ended = runner.invoke(app, ["tail", "s", "--json", "--url", url])
    assert [each.get("node_id") for each in lines_of(ended)] == ["m0", "m1", "m2", None]


def test_tail_of_a_session_that_does_not_exist_ends_with_1(url: str) -> None:
    ended = runner.invoke(app, ["tail", "s", "--url", url])
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == "lash-redis: no session 's' in namespace 'default'\n"


def test_tail_ends_when_the_session_expires(url: str) -> None:
    async def commit_with_ttl(cache: SessionCache) -> None:
        await cache.session("s").update(lambda read: RuntimeCommit("s", graph=Unchanged("m2")), ttl=0.3)

    within(url, three)
    with meanwhile(url, commit_with_ttl):
        ended = runner.invoke(app, ["tail", "s", "--last", "0", "--url", url])
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == "lash-redis: session 's' is gone: it expired, was evicted, or was lost in a failover\n"


def test_tail_exits_with_130_on_ctrl_c(url: str) -> None:
    within(url, three)
    with lash_redis_program("tail", "s", "--last", "1", "--url", url, start_new_session=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "User\n"
        os.killpg(program.pid, signal.SIGINT)
        _, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (130, "lash-redis: interrupted\n")
