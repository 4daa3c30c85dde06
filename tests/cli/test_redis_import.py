"""`import --from redis-session` and `--from langchain` store the histories that other libraries keep in a Redis."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from agents.extensions.memory import RedisSession
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, message_to_dict
from typer.testing import CliRunner, Result

import lash_redis
from lash_redis.cli import app, redis_import
from lash_redis.integrations.openai_agents import LashSession

CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    CALL,
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    {"role": "user", "content": "hi"},
]
MESSAGES: list[BaseMessage] = [
    SystemMessage("be brief"),
    HumanMessage("weather?"),
    AIMessage("", tool_calls=[{"id": "c1", "name": "weather", "args": {"city": "Oslo"}}]),
    ToolMessage("rain", tool_call_id="c1"),
    AIMessage([{"type": "text", "text": "It rains."}]),
]

runner = CliRunner(env={"COLUMNS": "80"})


def run(*arguments: str | Path, url: str, code: int = 0) -> Result:
    ended = runner.invoke(app, ["import", *map(str, arguments), "--url", url])
    assert ended.exit_code == code, ended.output
    return ended


def write_items(url: str, session_id: str, items: list[dict[str, Any]], **settings: Any) -> None:
    async def write() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            await RedisSession(session_id, redis_client=client, **settings).add_items(items)

    asyncio.run(write())


def items_of(url: str, session_id: str) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        async with lash_redis.connect(url) as cache:
            return await LashSession(session_id, cache).get_items()

    return asyncio.run(read())


def test_the_sessions_of_redis_session_are_imported_item_by_item(url: str) -> None:
    for session_id in ("chat-1", "a:b:messages", "[*]", "ü"):
        write_items(url, session_id, ITEMS)
    write_items(url, "long", ITEMS * 600)
    assert "5 sessions stored as in the source" in run("--from", "redis-session", url, url=url).output
    for session_id in ("chat-1", "a:b:messages", "[*]", "ü"):
        assert items_of(url, session_id) == ITEMS
    assert items_of(url, "long") == ITEMS * 600


def test_a_second_import_adds_what_was_written_meanwhile(url: str) -> None:
    write_items(url, "chat-1", ITEMS)
    run("--from", "redis-session", url, url=url)
    write_items(url, "chat-1", [{"role": "user", "content": "more"}])
    write_items(url, "chat-2", ITEMS)
    report = json.loads(run("--from", "redis-session", url, "--json", url=url).output)
    assert (report["session_count"], report["present_count"], report["failed_count"]) == (2, 0, 0)
    assert items_of(url, "chat-1") == [*ITEMS, {"role": "user", "content": "more"}]
    report = json.loads(run("--from", "redis-session", url, "--json", url=url).output)
    assert (report["session_count"], report["present_count"]) == (2, 2)


def test_a_session_with_other_items_is_left_as_it_is_and_reported(url: str) -> None:
    write_items(url, "chat-1", ITEMS)
    write_items(url, "chat-2", ITEMS)
    run("--from", "redis-session", url, url=url)
    with redis.Redis.from_url(url) as client:
        client.lset("agents:session:chat-1:messages", 0, json.dumps({"role": "user", "content": "other"}))
    output = run("--from", "redis-session", url, url=url, code=1).output
    assert "agents:session:chat-1:messages: the session exists already, with other items" in " ".join(output.split())
    assert items_of(url, "chat-1") == ITEMS


@pytest.mark.parametrize(
    ("element", "reason"), [("no JSON", "Expecting value"), ("[1]", "element 1: expected a JSON object")]
)
def test_an_invalid_element_is_reported_and_the_other_sessions_are_stored(url: str, element: str, reason: str) -> None:
    write_items(url, "chat-1", ITEMS[:1])
    write_items(url, "chat-2", ITEMS)
    with redis.Redis.from_url(url) as client:
        client.rpush("agents:session:chat-1:messages", element)
    output = run("--from", "redis-session", url, url=url, code=1).output
    assert reason in " ".join(output.split())
    assert (items_of(url, "chat-1"), items_of(url, "chat-2")) == ([], ITEMS)


def test_another_prefix_is_imported_alone(url: str) -> None:
    write_items(url, "chat-1", ITEMS)
    write_items(url, "chat-2", ITEMS, key_prefix="my*app")
    run("--from", "redis-session", url, "--prefix", "my*app", url=url)
    assert (items_of(url, "chat-1"), items_of(url, "chat-2")) == ([], ITEMS)


def test_the_histories_of_langchain_are_imported_as_chats(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for message in MESSAGES:  # as RedisChatMessageHistory stores them
            client.lpush("message_store:chat-1", json.dumps(message_to_dict(message)))
    run("--from", "langchain", url, url=url)
    report = json.loads(run("--from", "langchain", url, "--json", url=url).output)
    assert (report["session_count"], report["present_count"]) == (1, 1)

    async def read() -> list[dict[str, Any]]:
        async with lash_redis.connect(url) as cache:
            return await cache.chat("chat-1").messages()

    found = asyncio.run(read())
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool", "assistant"]
    assert found[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert (found[3]["content"], found[3]["tool_call_id"]) == ("rain", "c1")


def test_one_source_is_needed_and_options_that_exclude_each_other_are_refused(url: str) -> None:
    for arguments, reason in (
        ((), "Missing argument 'SOURCE'"),
        (("--from", "redis-session"), "Missing argument 'SOURCE'"),
        (("file", "--openai", "--from", "langchain"), "expected either --openai or --from, got both"),
        (("one", "two"), "expected one SOURCE"),
        ((url, url, "--from", "langchain"), "expected one SOURCE"),
        (("file", "--prefix", "x"), "--thread and --prefix need --from"),
        (("file", "--from", "peewee"), "'redis-session', 'langchain', 'langgraph', 'adk'"),
    ):
        assert reason in " ".join(run(*arguments, url=url, code=2).output.replace("│", "").split()), arguments


def test_a_source_that_does_not_answer_is_reported(url: str) -> None:
    for source in ("redis://127.0.0.1:1", "ftp://host"):
        assert run("--from", "redis-session", source, url=url, code=2).output


def test_a_source_without_histories_is_reported(url: str) -> None:
    write_items(url, "chat-1", ITEMS)
    output = run("--from", "redis-session", url, "--prefix", "nope", url=url, code=1).output
    assert "no list on the source matches 'nope:*:messages'" in " ".join(output.split())


@pytest.mark.parametrize(
    "element",
    ['{"a": 1}', '{"type": "human"}', '{"type": "human", "data": []}', '{"type": "human", "data": {}}',
     '{"type": 7, "data": {}}', '{"type": "human", "data": {"content": [7]}}', "[" * 200_000],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_list_that_is_no_history_of_langchain_is_reported_and_the_others_are_stored(url: str, element: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.lpush("message_store:chat-1", json.dumps(message_to_dict(HumanMessage("hi"))))
        client.lpush("message_store:chat-2", element)
    output = run("--from", "langchain", url, url=url, code=1).output
    assert "message_store:chat-2: " in output
    assert "1 session stored" in " ".join(output.split())


@pytest.mark.parametrize("read_first", [0, 2_500], ids=["begins", "continues"])
def test_two_imports_at_once_store_each_item_once(url: str, read_first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one runs whenever the first one has read the session."""
    items = [{"role": "user", "content": str(at)} for at in range(3_000)]
    if read_first:
        write_items(url, "chat-1", items[:read_first])
        run("--from", "redis-session", url, url=url)
    write_items(url, "chat-1", items[read_first:])
    read, reads = LashSession.get_items, []

    async def late(self: LashSession, *given: Any, **more: Any) -> Any:
        found = await read(self, *given, **more)
        reads.append(len(found))
        if len(reads) == 1:
            monkeypatch.setattr(LashSession, "get_items", read)
            library = redis_import.redis_session(None)
            assert (await redis_import.import_histories(url, "default", library, url, None)).failed_count == 0
        return found

    monkeypatch.setattr(LashSession, "get_items", late)
    assert "changed during the import; run it again" in run("--from", "redis-session", url, url=url, code=1).output
    monkeypatch.setattr(LashSession, "get_items", read)
    assert items_of(url, "chat-1") == items
    run("--from", "redis-session", url, url=url)


@pytest.mark.slow
def test_a_long_history_of_large_items_is_imported_in_parts(url: str) -> None:
    items = [{"role": "user", "content": f"{at}" + "x" * 200_000} for at in range(400)]
    write_items(url, "chat-1", items)
    run("--from", "redis-session", url, url=url)
    assert items_of(url, "chat-1") == items


def test_a_missing_sdk_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lash_redis.integrations.openai_agents", None)
    output = run("--from", "redis-session", "redis://old:6379", url=url, code=2).output
    reason = "--from redis-session needs the OpenAI Agents SDK: pip install 'lash-redis[openai-agents]'"
    assert reason in " ".join(output.split())
