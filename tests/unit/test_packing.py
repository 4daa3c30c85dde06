"""Free-form JSON has the same bytes and the same refusals with and without ormsgpack."""

from __future__ import annotations

import importlib
import json
import sys
from array import array
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lash_redis import PluginSessionSnapshot, ToolState, ToolStateEntry
from lash_redis.models import fast_packing, wire
from lash_redis.models.components import PluginArtifact, PluginSnapshotEntry, PluginSnapshotMeta
from lash_redis.models.json_values import check_json
from lash_redis.models.wire import Record
from lash_redis.protocol import packing
from lash_redis.protocol.packing import pack, pack_json, pack_record
from tests.support.paths import DATA

try:
    import ormsgpack
except ImportError:
    ormsgpack = None

FIELD = "RuntimeCommit.graph.nodes[0].payload.event"

needs_ormsgpack = pytest.mark.skipif(ormsgpack is None, reason="ormsgpack is not installed (extra: fast)")


def packed_in_python(value: Any) -> bytes:
    """The bytes of the Python packer, which the package uses without ormsgpack."""
    return pack(check_json(value, FIELD), FIELD)


def outcome(pack: Callable[[Any], bytes], value: Any) -> bytes | tuple[Any, ...]:
    """The bytes, or the type of the refusal with its field and text."""
    try:
        return pack(value)
    except Exception as refusal:  # noqa: BLE001 - an error of another type is what these tests find
        return type(refusal), refusal.args


def assert_same_outcome(value: Any) -> None:
    assert outcome(lambda given: pack_json(given, FIELD), value) == outcome(packed_in_python, value)


def inside(value: Any) -> list[Any]:
    """The value alone, and nested in arrays and objects."""
    return [value, [value], {"key": value}, {"Conversation": {"id": "m1", "parts": [{"a": 1}, {"b": [0.5, value]}]}}]


def kind_of(value: Any) -> str:
    """A test id that is the same in every process, unlike the `repr` of some objects."""
    return type(value).__name__


# Usual values


@needs_ormsgpack
def test_a_message_is_packed_without_the_python_packer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(packing, "check_json")
    message = {"role": "User", "id": "m1", "parts": [{"content": "hé", "n": 1, "x": 0.5, "ok": True, "none": None}]}
    assert pack_json({"Conversation": message}, FIELD).hex() == (
        "81ac436f6e766572736174696f6e83a26964a26d31a57061727473"
        "9185a7636f6e74656e74a368c3a9a16e01a46e6f6e65c0a26f6bc3a178cb3fe0000000000000a4726f6c65a455736572"
    )


@needs_ormsgpack
@pytest.mark.parametrize("text", ["zażółć gęślą jaźń", "đường phố", "مرحبا", "שלום", "ƀƁ", "\u02ff"])
def test_text_of_any_language_is_packed_without_the_python_packer(text: str) -> None:
    """The UTF-8 of such text contains bytes that start byte strings and extension types in MessagePack."""
    assert fast_packing.pack_json({text: text}) == packed_in_python({text: text})


def test_the_python_packer_is_used_if_ormsgpack_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ormsgpack", None)
    monkeypatch.delitem(sys.modules, fast_packing.__name__)
    without = importlib.import_module(fast_packing.__name__)
    assert without.pack_json({"a": 1}) is None
    monkeypatch.setattr(packing, "fast_packing", without)
    assert pack_json({"b": 2, "a": 1}, FIELD) == b"\x82\xa1a\x01\xa1b\x02"


def test_an_ormsgpack_that_lacks_an_option_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ormsgpack", ModuleType("ormsgpack"))
    monkeypatch.delitem(sys.modules, fast_packing.__name__)
    assert importlib.import_module(fast_packing.__name__).pack_json({"a": 1}) is None


# Sample data


def values_of(name: str) -> list[Any]:
    """Each line of a file, and each object in a line."""
    path = DATA / name
    text = path.read_text()
    whole = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return [*whole, *objects_in(whole)]


def objects_in(value: Any) -> Iterator[Any]:
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            if isinstance(item, dict):
                yield item
            yield from objects_in(item)


@pytest.mark.samples
@pytest.mark.parametrize("name", ["airline_chats.jsonl", "message_trees.jsonl", "airline_tools.json"])
def test_sample_messages_have_the_same_bytes_in_both_packers(name: str) -> None:
    values = values_of(name)
    assert values
    for value in values:
        assert pack_json(value, FIELD) == packed_in_python(value)
        assert ormsgpack is None or fast_packing.pack_json(value) is not None


# Edge cases of JSON

INTEGERS = sorted(
    {
        sign * 2**bits + off
        for bits in (0, 4, 5, 7, 8, 15, 16, 31, 32, 53, 62, 63, 64, 65, 200)
        for sign in (1, -1)
        for off in (-1, 0, 1)
    }
)
FLOATS = [0.0, -0.0, 1.0, 0.1, 1e308, -1e308, 1.7976931348623157e308, 5e-324, 2.2250738585072014e-308, 3.4e38, 1e-45]
FLOATS += [float("nan"), -float("nan"), float("inf"), -float("inf"), 2.0**53, 2.0**1023, -(2.0**-1022)]
LENGTHS = (0, 1, 15, 16, 31, 32, 127, 128, 191, 192, 193, 255, 256, 65_535, 65_536)
TEXTS = ["\0", "a\0b", "\x7f", "\x80", "é", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff", "\ufeff"]
TEXTS += ["\U0001f469\u200d\U0001f467", "e\u0301"]
SURROGATES = ["\ud800", "\udfff", "a\udc80", "\ud83d\ude00", "ok" * 400 + "\ud800"]
NON_FINITE_LOOKALIKES = ["\u02ff\x00", "\u02ff\U000f0000", "x" * 0xCB, [0xCB, 0x7F, 0xF0], {"\u02bf": 0x7FF0}]


@pytest.mark.parametrize("number", [*INTEGERS, *FLOATS], ids=repr)
def test_numbers_have_the_same_outcome_in_both_packers(number: float) -> None:
    for value in inside(number):
        assert_same_outcome(value)


@pytest.mark.parametrize("text", [*TEXTS, *SURROGATES], ids=ascii)
def test_texts_have_the_same_outcome_in_both_packers(text: str) -> None:
    for value in (*inside(text), *inside({text: 1}), {f"a{text}": 1, "a": 2, f"{text}a": 3}):
        assert_same_outcome(value)


@pytest.mark.parametrize("value", NON_FINITE_LOOKALIKES, ids=ascii)
def test_values_whose_bytes_resemble_an_infinity_are_packed(value: Any) -> None:
    assert_same_outcome(value)
    assert isinstance(outcome(packed_in_python, value), bytes)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("unit", ["a", "é", "ş", "€", "😀"])
def test_texts_of_every_length_have_the_same_outcome_in_both_packers(length: int, unit: str) -> None:
    for text in (unit * length, unit * (length // len(unit.encode())), "a" * (length % 4) + unit * (length // 4)):
        assert_same_outcome(text)
        assert_same_outcome({text: text})


@pytest.mark.parametrize("length", LENGTHS)
def test_arrays_and_objects_of_every_length_have_the_same_outcome_in_both_packers(length: int) -> None:
    for item in (None, 1, "x", [], {}):
        assert_same_outcome([item] * length)
        assert_same_outcome({f"k{at}": item for at in reversed(range(length))})


@pytest.mark.parametrize(
    "keys",
    [
        ("\uffff", "\U00010000"),  # the opposite order in UTF-16
        ("\U0010ffff", "\ue000", "\ud7ff", "z"),
        ("é", "e", "e\u0301", "E", ""),
        ("b", "a", "a\0", "a\0\0", "aa", ""),
        ("10", "9", "1", "01"),
    ],
    ids=ascii,
)
def test_both_packers_sort_keys_by_their_utf8_bytes(keys: tuple[str, ...]) -> None:
    forwards, backwards = dict.fromkeys(keys, 1), dict.fromkeys(reversed(keys), 1)
    assert_same_outcome(forwards)
    assert_same_outcome([{"deep": backwards}])
    assert pack_json(forwards, FIELD) == pack_json(backwards, FIELD)
    assert list(msgpack.unpackb(pack_json(forwards, FIELD))) == sorted(keys, key=lambda key: key.encode())


@pytest.mark.parametrize("depth", [1, 2, 127, 253, 254, 255, 256, 257, 258, 510, 511, 512, 513, 1024, 1100])
def test_values_of_every_depth_have_the_same_outcome_in_both_packers(depth: int) -> None:
    for leaf in ("x", 2**64, [], {}, b"", float("nan"), {1: 1}):
        arrays, objects = leaf, leaf
        for at in range(depth):
            arrays = [arrays]
            objects = {"k": objects} if at % 2 else {"a": 1, "k": [objects]}
        assert_same_outcome(arrays)
        assert_same_outcome(objects)


def loops() -> list[Any]:
    array_: list[Any] = []
    array_.append(array_)
    object_: dict[str, Any] = {}
    object_["self"] = object_
    both: dict[str, Any] = {"a": [1, {"b": array_}], "z": 1}
    twice: list[Any] = []
    twice += [twice, twice]
    return [array_, object_, both, twice, [1, object_]]


@pytest.mark.parametrize("at", range(5))
def test_cyclic_values_have_the_same_outcome_in_both_packers(at: int) -> None:
    assert_same_outcome(loops()[at])


def test_a_value_that_occurs_twice_has_the_same_outcome_in_both_packers() -> None:
    part: dict[str, Any] = {"b": [1, 2], "a": {}}
    for _ in range(10):
        part = {"left": part, "right": part}
    assert_same_outcome(part)


# Values without a JSON form


class Text(str):
    """A subclass of str."""


class Whole(int):
    """A subclass of int."""


class Real(float):
    """A subclass of float."""


class Array(list):
    """A subclass of list."""


class Object(dict):
    """A subclass of dict."""


class Longer(dict):
    """A dict that reports a length larger than its own."""

    def __len__(self) -> int:
        return 3


class Twin(str):
    """A key that is equal to itself only."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Pretender:
    """An object that reports dict as its class."""

    __class__ = dict  # type: ignore[assignment]


class Colour(Enum):
    RED = "red"
    ONE = 1


class Number(IntEnum):
    ONE = 1


class Flag(IntFlag):
    ONE = 1


class Word(StrEnum):
    RED = "red"


class Label(str, Enum):  # noqa: UP042 - the older spelling is another type
    RED = "red"


@dataclass
class Pair:
    a: int = 1


@dataclass(frozen=True, slots=True)
class SlottedPair:
    a: int = 1


def views() -> list[memoryview]:
    """A short view, a long one, and views with gaps, with two dimensions, of floats, and released."""
    released = memoryview(b"x")
    released.release()
    plane, floats = memoryview(b"abcd").cast("B", (2, 2)), memoryview(array("d", [1, 2])).toreadonly()
    return [memoryview(b"x"), memoryview(b"x" * 150), memoryview(b"abcdef")[::2], plane, floats, released]


Point = namedtuple("Point", "x y")
DAY = datetime(2026, 1, 1, tzinfo=UTC)

OTHER_VALUES: list[Any] = [
    Text("x"), Text(""), Text("\ud800"), Whole(1), Whole(2**64), Real(0.5), Real("nan"), Real("inf"), Array(),
    Array([b""]), Object(), Object(a=1), Object({1: 1}), Longer(a=1), OrderedDict(b=1, a=2), defaultdict(int, b=1, a=2),
    UserDict(a=1), MappingProxyType({"a": 1}), SimpleNamespace(a=1), Pretender(), Colour.RED, Colour.ONE, Number.ONE,
    Flag.ONE, Word.RED, Label.RED, Pair(), SlottedPair(), Point(1, 2), (), (1,), ("a", b""), {1}, set(), frozenset(),
    b"", b"x", b"\xff" * 200, bytearray(b"x"), *views(), array("b", [1]), DAY,
    DAY.replace(tzinfo=None), date(2026, 1, 1), time(1, 2), timedelta(1), UUID(int=1), Decimal("0.5"), Fraction(1, 2),
    1j, ..., NotImplemented, int, len, object, Colour, range(3), iter("ab"), ModuleType("m"), Path("p"),
    msgpack.ExtType(1, b"x"), msgpack.Timestamp(1),
]  # fmt: skip
if ormsgpack is not None:
    OTHER_VALUES += [ormsgpack.Ext(1, b"x"), ormsgpack.Ext(-1, b"\0\0\0\1"), ormsgpack.Ext(5, b"x" * 300)]
    OTHER_VALUES += [
        ormsgpack.Fragment(b"\xa1x"),
        ormsgpack.Fragment(b"\x82\xa1b\x01\xa1a\x02"),
        ormsgpack.Fragment(b"\xc0"),
    ]
OTHER_KEYS: list[Any] = [
    1, 0, True, None, 0.5, float("nan"), b"k", (), ("k",), frozenset(), Text("k"), Text("\ud800"), "\ud800", Twin("k"),
    Colour.RED, Number.ONE, Word.RED, Label.RED, DAY, UUID(int=1), Decimal(1), int, Point(1, 2), 2**64,
]  # fmt: skip


@pytest.mark.parametrize("value", OTHER_VALUES, ids=kind_of)
def test_values_of_other_types_are_left_to_the_python_packer(value: Any) -> None:
    for placed in inside(value):
        assert_same_outcome(placed)
        assert fast_packing.pack_json(placed) is None, "the value is not left to Python"


@pytest.mark.parametrize("key", OTHER_KEYS, ids=kind_of)
def test_keys_of_other_types_are_left_to_the_python_packer(key: Any) -> None:
    for value in ({key: 1}, {"a": 1, key: 2, "z": 3}, {key: {key: key}}, [{"other": 0, key: 1}]):
        assert_same_outcome(value)
        assert fast_packing.pack_json(value) is None, "the key is not left to Python"


def test_keys_with_equal_text_have_the_same_outcome_in_both_packers() -> None:
    assert_same_outcome({"k": 1, Twin("k"): 2, Twin("k"): 3})
    assert_same_outcome({Text("k"): 1, "k": 2})
    assert_same_outcome({1: "int", 2**64: "long", "1": "text"})


def test_both_packers_report_the_same_one_of_several_faults() -> None:
    assert_same_outcome({"b": (), "a": {"z": b"", "y": 2**64}})
    assert_same_outcome([1, {"k": [float("nan"), set()]}, {1: 1}])


# Arbitrary values

TEXT = st.text() | st.text(st.characters(exclude_categories=[])) | st.sampled_from(TEXTS + SURROGATES)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.sampled_from(INTEGERS)
    | st.floats()
    | st.sampled_from(FLOATS)
    | TEXT
)
JSON = st.recursive(ATOMS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30)
ANY_VALUE = st.recursive(
    ATOMS
    | st.binary()
    | st.integers(0, len(OTHER_VALUES) - 1).map(OTHER_VALUES.__getitem__)
    | st.dates()
    | st.decimals()
    | st.uuids(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(TEXT, inner)
        | st.dictionaries(TEXT | st.integers(0, len(OTHER_KEYS) - 1).map(OTHER_KEYS.__getitem__) | st.integers(), inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(Array)
        | st.dictionaries(TEXT, inner).map(Object)
    ),
    max_leaves=30,
)
MANY_EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
@MANY_EXAMPLES
@given(JSON)
@example({"\uffff": 1, "\U00010000": 2, "": {"b": -0.0, "a": [5e-324, 1e308]}})
@example([2**63, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1])
@example({"a": float("nan"), "\ud800": 1})
@example({f"{at:05}": at for at in reversed(range(65_536))})
@example(["x" * 65_536, "é" * 128, "\0"])
def test_any_json_has_the_same_outcome_in_both_packers(value: Any) -> None:
    assert_same_outcome(value)


@pytest.mark.slow
@MANY_EXAMPLES
@given(ANY_VALUE)
@example({"k": 1, Text("k2"): Whole(3), 5: Real(0.5)})
@example([Number.ONE, Word.RED, Label.RED, Colour.ONE])
@example({"a": memoryview(b""), "b": bytearray()})
def test_any_value_has_the_same_outcome_in_both_packers(value: Any) -> None:
    assert_same_outcome(value)


@pytest.mark.slow
@needs_ormsgpack
@MANY_EXAMPLES
@given(JSON)
def test_ormsgpack_packs_all_json_whose_bytes_cannot_contain_an_infinity(value: Any) -> None:
    """Packed values that contain byte 0xCB may be left to Python, because that byte can start an infinity."""
    expected = outcome(packed_in_python, value)
    if isinstance(expected, bytes) and b"\xcb" not in expected:
        assert fast_packing.pack_json(value) == expected


def test_a_catalogue_of_values_packs_to_bytes_with_a_fixed_digest() -> None:
    """The literal digest detects a change that both packers make."""
    catalogue = [
        [number for number in INTEGERS if -(2**63) <= number < 2**64],
        [number for number in FLOATS if number * 0 == 0],
        {text: text for text in TEXTS},
        {f"{length}": "é" * length for length in LENGTHS},
    ]
    digest = sha256(b"".join(pack_json(value, FIELD) for value in catalogue)).hexdigest()
    assert digest == "04f6645023948b045541a7ae7387e95b2c654c9ee5091d29fba2dc8e5f5ca3fc"


# Records with free-form JSON


def entry(state: Any, plugin_id: Any = "p", revision: Any = 1, data: Any = b"\0\xff") -> PluginSnapshotEntry:
    return PluginSnapshotEntry(PluginSnapshotMeta(plugin_id, "1", revision, state), [PluginArtifact("a", data)])


def snapshots(state: Any) -> list[Record]:
    """Records of every kind that a commit stores as a blob, with `state` in each field of free-form JSON."""
    return [
        ToolState(3, {"b": ToolStateEntry({"z": state, "a": 1}, "plugins"), "a": ToolStateEntry({}, "live:1")}),
        ToolState(3, {"a": ToolStateEntry(state, "plugins")}),
        PluginSessionSnapshot({"q": entry(state), "p": entry({"z": [state], "a": 1})}),
        PluginSessionSnapshot({"p": PluginSnapshotEntry(PluginSnapshotMeta("p", "1", state=state))}),
    ]


def assert_same_outcome_of_records(*records: Any) -> None:
    for record in records:
        expected = outcome(lambda given: pack(given.to_msgpack(FIELD), FIELD), record)
        assert outcome(lambda given: pack_record(given, FIELD), record) == expected


@needs_ormsgpack
def test_a_snapshot_is_packed_without_the_python_packer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(wire, "canonical")
    record = PluginSessionSnapshot({"p": entry({"b": 2, "a": "é"})})
    assert pack_record(record, FIELD).hex() == (
        "81a7706c7567696e7381a17082a46d65746184a9706c7567696e5f6964a170ae706c7567696e5f76657273696f6ea131"
        "a87265766973696f6e01a5737461746582a161a2c3a9a16202a961727469666163747391"
        "82a46e616d65a161a464617461c40200ff"
    )


@pytest.mark.parametrize("value", [*OTHER_VALUES, *FLOATS, *INTEGERS, *TEXTS, *SURROGATES], ids=kind_of)
def test_records_with_any_value_have_the_same_outcome_in_both_packers(value: Any) -> None:
    for placed in inside(value):
        assert_same_outcome_of_records(*snapshots(placed))


@pytest.mark.parametrize("key", OTHER_KEYS, ids=kind_of)
def test_records_with_other_keys_have_the_same_outcome_in_both_packers(key: Any) -> None:
    assert_same_outcome_of_records(*snapshots({key: 1}))
    assert_same_outcome_of_records(
        PluginSessionSnapshot({key: entry(None)}), ToolState(1, {key: ToolStateEntry({}, "p")})
    )


@pytest.mark.parametrize("value", [*OTHER_VALUES, -1, 2**64, 0.5, "\ud800", None, True], ids=kind_of)
def test_records_with_a_wrong_field_have_the_same_outcome_in_both_packers(value: Any) -> None:
    assert_same_outcome_of_records(
        ToolState(value, {}),
        ToolState(1, value),
        ToolState(1, {"a": value}),
        ToolState(1, {"a": ToolStateEntry({}, value)}),
        PluginSessionSnapshot(value),
        PluginSessionSnapshot({"p": value}),
        PluginSessionSnapshot({"p": entry(1, plugin_id=value)}),
        PluginSessionSnapshot({"p": entry(1, revision=value)}),
        PluginSessionSnapshot({"p": entry({1: 1}, data=value)}),
        PluginSessionSnapshot({"p": PluginSnapshotEntry(PluginSnapshotMeta("p", "1"), value)}),
    )


@pytest.mark.parametrize("depth", [1, 250, 254, 255, 256, 257, 1100])
def test_records_with_a_deep_value_have_the_same_outcome_in_both_packers(depth: int) -> None:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    assert_same_outcome_of_records(*snapshots(value))


@given(ANY_VALUE)
def test_records_with_arbitrary_values_have_the_same_outcome_in_both_packers(value: Any) -> None:
    assert_same_outcome_of_records(*snapshots(value))


@pytest.mark.samples
def test_sample_tools_have_the_same_outcome_in_both_packers() -> None:
    tools = [tool for tool in values_of("airline_tools.json") if isinstance(tool, dict)]
    assert_same_outcome_of_records(
        ToolState(1, {f"{at}": ToolStateEntry(tool, "plugins") for at, tool in enumerate(tools)})
    )
