"""The blocking classes have every public method of the async ones, with the same parameters, results and docstrings."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable
from typing import Any

import pytest

import lash_redis
from lash_redis import Chat, Documents, Lease, RedisSessionStore, SessionCache, SessionWatch, blocking
from lash_redis.blocking.twins import blocking_signature, blocking_text, blocking_type

PAIRS: dict[type, type] = {
    SessionCache: blocking.BlockingSessionCache,
    RedisSessionStore: blocking.BlockingSessionStore,
    Chat: blocking.BlockingChat,
    Documents: blocking.BlockingDocuments,
    Lease: blocking.BlockingLease,
    SessionWatch: blocking.BlockingSessionWatch,
}

NAMES = {
    "aclose": "close",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
"""The names that differ."""

LEFT_OUT = {
    (RedisSessionStore, "begin"): "for forks and imports, inside of the package",
    (Documents, "begin"): "for imports, inside of the package",
    (RedisSessionStore, "create_meta"): "for SessionCache.create, inside of the package",
}


def public_names(cls: type) -> set[str]:
    """The names of methods and properties that a caller uses, and the protocols of `with` and `for`."""
    defined = {
        name
        for base in cls.__mro__
        if base.__module__.startswith("lash_redis")
        for name, value in vars(base).items()
        if callable(value) or isinstance(value, property | classmethod)
    }
    return {name for name in defined if not name.startswith("_") or name in NAMES or name in NAMES.values()}


def documented(cls: type, name: str) -> Any:
    value = inspect.getattr_static(cls, name)
    return value.__func__ if isinstance(value, classmethod) else value


METHODS = [
    pytest.param(cls, name, id=f"{cls.__name__}.{name}")
    for cls in PAIRS
    for name in sorted(public_names(cls))
    if (cls, name) not in LEFT_OUT
]


@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_both_classes_have_the_same_names(cls: type) -> None:
    """A method that is added to an async class fails here until its twin exists. `ttl` is an attribute of the cache."""
    expected = {NAMES.get(name, name) for name in public_names(cls) if (cls, name) not in LEFT_OUT}
    instance_attributes = {SessionCache: {"ttl"}, SessionWatch: {"poll", "patience"}}.get(cls, set())
    assert public_names(PAIRS[cls]) == expected | instance_attributes


def twin_of(cls: type, name: str) -> Any:
    return documented(PAIRS[cls], NAMES.get(name, name))


@pytest.mark.parametrize(("cls", "name"), METHODS)
def test_a_method_has_the_parameters_of_its_twin(cls: type, name: str) -> None:
    """By name, kind, default and type. Coroutine functions become functions with the type of the awaited result."""
    original, twin = documented(cls, name), twin_of(cls, name)
    if isinstance(original, property):
        assert isinstance(twin, property)
        original, twin = original.fget, twin.fget
    assert not inspect.iscoroutinefunction(twin)
    assert not inspect.isasyncgenfunction(twin)
    expected, actual = inspect.signature(original), inspect.signature(twin)
    assert [(each.name, each.kind, each.default) for each in actual.parameters.values()] == [
        (each.name, each.kind, each.default) for each in expected.parameters.values()
    ]
    if name not in NAMES:
        assert [each.annotation for each in actual.parameters.values()] == [
            blocking_type(each.annotation) for each in expected.parameters.values()
        ]
    if name not in ("__aiter__", "renewing"):
        assert actual.return_annotation == blocking_type(expected.return_annotation)


@pytest.mark.parametrize(("cls", "name"), METHODS)
def test_a_method_has_the_docstring_of_its_twin(cls: type, name: str) -> None:
    original, twin = documented(cls, name), twin_of(cls, name)
    assert original.__doc__ or isinstance(original, property) or name in NAMES, "the async method has no docstring"
    if name in NAMES and (cls, name) != (SessionWatch, "aclose"):  # closing a blocking cache also ends its thread
        return
    assert (twin.__doc__ or "") == blocking_text(original.__doc__ or "")


async def added(self: object, generation_id: str) -> None:
    """Do something new."""


def test_a_new_method_needs_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisSessionStore, "not_mirrored", added, raising=False)
    with pytest.raises(AssertionError):
        test_both_classes_have_the_same_names(RedisSessionStore)


def test_a_method_by_hand_that_lags_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def adopt_lease(self: object) -> None:
        """Bind a lease."""

    monkeypatch.setattr(blocking.BlockingSessionStore, "adopt_lease", adopt_lease)
    with pytest.raises(AssertionError):
        test_a_method_has_the_parameters_of_its_twin(RedisSessionStore, "adopt_lease")
    with pytest.raises(AssertionError):
        test_a_method_has_the_docstring_of_its_twin(RedisSessionStore, "adopt_lease")


def test_the_result_of_renewing_is_a_context_manager_of_the_lease() -> None:
    assert inspect.signature(blocking.BlockingLease.renewing).return_annotation == "BlockingContext[Self]"


def test_connect_has_the_parameters_of_its_twin() -> None:
    assert inspect.signature(blocking.connect) == blocking_signature(lash_redis.connect)
    assert blocking.connect.__doc__ == blocking_text(lash_redis.connect.__doc__ or "")


def test_a_cache_is_made_with_the_same_parameters() -> None:
    expected = inspect.signature(SessionCache).parameters
    actual = inspect.signature(blocking.BlockingSessionCache).parameters
    assert [(each.name, each.kind, each.default) for each in actual.values()] == [
        (each.name, each.kind, each.default) for each in expected.values()
    ]


ASYNC = re.compile(
    r"\basync\b|\bawait|\baclos|\b(?<!Blocking)(RedisSessionStore|SessionCache|SessionWatch)\b|`(Chat|Lease)\b"
)


@pytest.mark.parametrize("cls", PAIRS.values(), ids=lambda cls: cls.__name__)
def test_no_docstring_of_a_method_is_in_terms_of_async(cls: type) -> None:
    found = {
        name: ASYNC.findall(doc)
        for name in public_names(cls)
        if (doc := documented(cls, name).__doc__) and ASYNC.search(doc)
    }
    assert found == {}


@pytest.mark.parametrize("cls", PAIRS.values(), ids=lambda cls: cls.__name__)
def test_help_shows_every_method_with_its_name(cls: type) -> None:
    text = pydoc.plain(pydoc.render_doc(cls))
    for name in public_names(cls):
        assert re.search(rf"\b{name}\b", text), name
        method = documented(cls, name)
        if inspect.isfunction(method):
            assert method.__name__ == name
    assert not re.search(r"\bargs: Any\b|\*args", text)


def test_an_editor_sees_the_class_of_each_type() -> None:
    """What tests/typing/api.py checks statically holds at run time: wrapped results are of the blocking classes."""
    expected: dict[Callable[..., Any], str] = {
        blocking.connect: "BlockingSessionCache",
        blocking.BlockingSessionCache.session: "BlockingSessionStore",
        blocking.BlockingSessionCache.chat: "BlockingChat",
        blocking.BlockingSessionCache.create: "BlockingSessionStore",
        blocking.BlockingSessionCache.fork: "BlockingSessionStore",
        blocking.BlockingSessionCache.watch: "BlockingSessionWatch",
        blocking.BlockingSessionCache.sessions: "Iterator[SessionPickerInfo]",
        blocking.BlockingSessionStore.watch: "Generator[int, None, None]",
        blocking.BlockingSessionStore.acquire_lease: "BlockingLease",
        blocking.BlockingSessionStore.adopt_lease: "BlockingLease",
    }
    assert {method: inspect.signature(method).return_annotation for method in expected} == expected
