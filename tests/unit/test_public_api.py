"""The public names of `lash_redis`: types in signatures are exported, fields are documented, errors are usable."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pickle
import re
import sys
from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args

import pytest

import lash_redis
from lash_redis import InvalidRecord

PUBLIC = {name: getattr(lash_redis, name) for name in lash_redis.__all__}

INTERNAL = {
    "Base": "SessionGraph.from_base is for stores",
    "Connector": "made by connect from a URL",
    "Layout": "the names of keys, for the tools of this package",
    "LeaseHolder": "the server behind a lease, a private field",
    "Lineage": "where the nodes of a graph come from, for stores",
    "Namespace": "what the stores of a cache share; SessionCache.session passes it",
    "Origin": "RedisSessionStore.begin is for forks and imports",
    "ReadOrigin": "PersistedSessionRead.from_origin is for stores",
    "Rule": "how a field is written, inside of Annotated",
    "Stored": "from_stored is for reads",
}
"""Names of this package in public signatures that callers neither make nor receive, and why."""


def annotations_of(name: str, public: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each annotation of a function, or of the fields and methods of a class: its place, its text, its globals."""
    if inspect.isfunction(public):
        for parameter, text in public.__annotations__.items():
            yield f"{name}({parameter})", text, public.__globals__
    if not isinstance(public, type):
        return
    for cls in public.__mro__:
        if not cls.__module__.startswith("lash_redis"):
            continue
        # The methods that `dataclass` makes repeat the annotations of the fields.
        generated = {"__init__", "__replace__"} if dataclasses.is_dataclass(cls) else set()
        for field, text in inspect.get_annotations(cls).items():
            if not field.startswith("_"):
                yield f"{name}.{field}", text, vars(sys.modules[cls.__module__])
        for attribute, value in vars(cls).items():
            is_special = attribute.startswith("__") and attribute not in generated
            if attribute.startswith("_") and not is_special:
                continue
            method = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
            if inspect.isfunction(method):
                yield from annotations_of(f"{name}.{attribute}", method)


def is_of_this_package(value: Any) -> bool:
    """Whether a value is a class of this package, or a union of such classes."""
    if isinstance(value, UnionType):
        return any(map(is_of_this_package, get_args(value)))
    return isinstance(value, type) and value.__module__.startswith("lash_redis")


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_type_in_a_public_signature_is_exported(name: str) -> None:
    missing = set()
    for place, text, scope in annotations_of(name, PUBLIC[name]):
        for path in re.findall(r"[A-Za-z_][\w.]*", text):
            first, *rest = path.split(".")
            value = scope.get(first)
            for attribute in rest:
                value = getattr(value, attribute, None)
            named = path.split(".")[-1] if not isinstance(scope.get(first), type) else first
            if is_of_this_package(value) and named not in lash_redis.__all__ and named not in INTERNAL:
                missing.add(f"{place}: {text}")
    assert missing == set()


def test_an_invalid_record_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^options\.shards: expected a whole number") as refused:
        lash_redis.StoreOptions(shards=0)
    assert isinstance(refused.value, InvalidRecord)
    assert isinstance(refused.value, lash_redis.Refused)


def test_an_invalid_record_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(InvalidRecord("SessionMeta.cwd", "expected a string, got int")))
    assert type(error) is InvalidRecord
    assert (error.field, error.reason) == ("SessionMeta.cwd", "expected a string, got int")
    assert str(error) == "SessionMeta.cwd: expected a string, got int"


WITHOUT_FIELD_DOCS = {"SessionChange"}
"""Dataclasses whose fields are described in the class docstring."""
DATACLASSES = sorted(name for name in PUBLIC.keys() - WITHOUT_FIELD_DOCS if dataclasses.is_dataclass(PUBLIC[name]))


def class_definition(cls: type) -> ast.ClassDef:
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


def is_docstring(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize("name", DATACLASSES)
def test_every_field_of_a_public_dataclass_has_a_docstring(name: str) -> None:
    body = class_definition(PUBLIC[name]).body
    undocumented = [
        node.target.id
        for node, below in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(node.annotation)
        and not is_docstring(below)
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", DATACLASSES)
def test_every_public_dataclass_has_a_summary_of_one_paragraph(name: str) -> None:
    docstring = ast.get_docstring(class_definition(PUBLIC[name]))
    assert docstring, f"{name} has no docstring"
    assert "\n" not in docstring.split("\n\n")[0], f"the summary of {name} takes more than one line"
    assert docstring.split("\n\n")[0].endswith(".")
