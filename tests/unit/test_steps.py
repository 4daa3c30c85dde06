"""What is done in steps has the same result as what is done at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lash_redis import Append, EventPayload, HydratedSessionCheckpoint, RuntimeCommit, SessionNodeRecord
from lash_redis.protocol.commands.estimates import is_larger
from lash_redis.protocol.steps import at_once
from lash_redis.protocol.sums import Run
from lash_redis.transfer import json_steps
from lash_redis.transfer.json_steps import JsonTexts, are_equal_in_steps, dump, dump_in_steps, parse_in_steps
from lash_redis.transport.wire import CHUNK, is_long, pack, pack_in_steps
from tests.support.builders import append, node, plugins, tools

VALUES: list[Any] = [
    {}, [], None, 1, "ä\u2028\"\\", {"a": []}, {"a": {}, "b": [1, [2, [3, [4, [5]]]]]}, [{"b": 1, "a": 2}, {}],
    {"head": {"graph": {"nodes": [{"z": 1, "a": {"y": None, "x": True}}] * 3, "leaf": "n"}}, "é": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_sums_in_steps_are_those_at_once(count: int) -> None:
    parts = [b"part %d" % at for at in range(count)]
    assert at_once(Run.of_in_steps(parts)) == Run.of(parts)


@pytest.mark.parametrize("count", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_long_commands_are_packed_to_the_same_bytes_in_steps(count: int) -> None:
    command = ["EVALSHA", *range(count), b"x" * 70_000, "\u00e9"]
    assert at_once(pack_in_steps([command, ("WAIT", 1, 2)])) == pack([command, ("WAIT", 1, 2)])
    assert is_long([command]) == (len(command) > CHUNK)
    steps = sum(1 for _ in pack_in_steps([command]))
    assert steps == -(-len(command) // CHUNK)


@pytest.mark.parametrize("value", VALUES)
def test_json_is_encoded_and_parsed_in_steps_as_at_once(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_steps, "LONG", 0)
    text = at_once(dump_in_steps(value))
    assert text == dump(value)
    for form in (text, f" \n{text}\t ", json.dumps(value, indent=2), text.encode()):
        assert at_once(parse_in_steps(form)) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "{", "[", "[1",
     "[1,", "[1,]", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{1:2}", "{a:1}", "[1 2]",
     '{"a" 1}', '{"a":1 "b":2}', "{} {}", "[]]", "nul", '{"a":[1,{"b":]}]}', '{"a":"\x01"}', "\ufeff{}"],
)  # fmt: skip
def test_what_is_not_json_is_refused_in_steps_as_at_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_steps, "LONG", -1)
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    with pytest.raises(json.JSONDecodeError):
        at_once(parse_in_steps(text))


def test_a_long_list_is_encoded_and_parsed_in_as_many_steps_as_it_has_elements() -> None:
    value = {"head": {"graph": {"nodes": [{"id": f"n{at}", "text": "x" * 100} for at in range(1_000)]}}}
    assert sum(1 for _ in dump_in_steps(value)) >= 1_000
    assert sum(1 for _ in parse_in_steps(dump(value))) >= 1_000


def test_the_elements_of_one_list_stay_texts_that_were_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_steps, "LONG", 0)
    text = '{"nodes":[{"a": 1}], "head":{"nodes":[1],"graph":{"other":[2],"nodes":[ {"b": 1,"a":2.0} , "x"]}}}'
    parsed = at_once(parse_in_steps(text, ("head", "graph", "nodes")))
    kept = parsed["head"]["graph"]["nodes"]
    assert (type(kept), kept) == (JsonTexts, ['{"b": 1,"a":2.0}', '"x"'])
    assert (parsed["nodes"], parsed["head"]["nodes"], parsed["head"]["graph"]["other"]) == ([{"a": 1}], [1], [2])
    assert json.loads(at_once(dump_in_steps(parsed))) == json.loads(text)
    with pytest.raises(json.JSONDecodeError):
        at_once(parse_in_steps('{"nodes":[{"a":]}', ("nodes",)))


@pytest.mark.parametrize(
    ("value", "other", "expected"),
    [
        ({"a": [1, {"b": 2}], "c": None}, {"c": None, "a": [1, {"b": 2}]}, True),
        ({"a": JsonTexts(['{"x": 1, "y": 2}'])}, {"a": [{"y": 2, "x": 1}]}, True),
        ({"a": JsonTexts(['{"x":1}'])}, {"a": JsonTexts(['{ "x":1}'])}, True),
        ({"a": JsonTexts(['{"x":1}'])}, {"a": ['{"x":1}']}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": {"b": {"c": {"d": {"e": 1, "f": 2}}}}}, {"a": {"b": {"c": {"d": {"f": 2, "e": 1}}}}}, True),
        ({"a": {"b": {"c": {"d": {"e": 1, "f": 2}}}}}, {"a": {"b": {"c": {"d": {"f": 2, "e": 1.0}}}}}, False),
        ([1, 2], [1], False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, [1], False),
        ([], {}, False),
    ],
)
def test_json_values_are_equal_in_steps_whatever_the_order_of_their_keys(value: Any, other: Any, expected: Any) -> None:
    assert at_once(are_equal_in_steps(value, other)) is expected
    assert at_once(are_equal_in_steps(other, value)) is expected


TEXT = "x" * 1_000


@pytest.mark.parametrize(
    ("commit", "size"),
    [
        (RuntimeCommit("c", graph=append("a", "b")), 0),
        (RuntimeCommit("c", graph=Append([node("a", text=TEXT)])), 1_000),
        (RuntimeCommit("c", graph=Append([node(f"n{at}", text=TEXT) for at in range(5)])), 5_000),
        (RuntimeCommit("c", checkpoint=HydratedSessionCheckpoint(execution_state=TEXT.encode())), 1_000),
        (RuntimeCommit("c", checkpoint=HydratedSessionCheckpoint(plugin_snapshot=plugins(TEXT))), 1_000),
        (RuntimeCommit("c", checkpoint=HydratedSessionCheckpoint(tool_state=tools(TEXT))), 1_000),
    ],
)
def test_the_estimate_of_a_commit_is_about_its_size(commit: RuntimeCommit, size: int) -> None:
    assert is_larger(commit, size - 1) or size == 0
    assert not is_larger(commit, size + 600)


def test_an_estimate_ends_early_in_a_large_commit() -> None:
    class Endless(list[Any]):
        def __iter__(self) -> Any:
            while True:
                yield "x"

    huge = SessionNodeRecord("a", None, "t", EventPayload({"rows": Endless()}))
    assert is_larger(RuntimeCommit("c", graph=Append([huge])), 10_000)
