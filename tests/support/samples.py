"""Make a value of a type of an SDK from its annotations, so that a test covers each field that the SDK has or gets."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import is_typeddict

PLAIN: dict[Any, Any] = {
    bool: True,
    int: 3,
    float: 1.5,
    bytes: b"\xff\x00",
    datetime: datetime(2026, 11, 28, tzinfo=UTC),
    timedelta: timedelta(seconds=3),
    Any: {"any": [None, 1]},
    object: {"any": [None, 1]},
}


def sample(hint: Any, text: str, depth: int = 0) -> Any:
    """Return a value of a type. Text is `text`. A model has all its fields, its own models those that are required."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is str:
        return text
    if origin is Annotated:
        return sample(arguments[0], text, depth)
    if origin in (Union, types.UnionType):
        return sample(next(each for each in arguments if each is not type(None)), text, depth)
    if origin is Literal:
        return arguments[0]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"key": sample(arguments[1], text, depth)}
    if isinstance(origin, type) and issubclass(origin, Sequence | Iterable):
        made = [sample(arguments[0], text, depth)]
        return origin(made) if origin in (set, tuple) else made
    if isinstance(hint, type) and issubclass(hint, Enum):
        return next(each for each in hint if "UNSPECIFIED" not in each.name)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint(**{
            name: sample(field.annotation, text, depth + 1)
            for name, field in hint.model_fields.items()
            if depth == 0 or field.is_required()
        })  # fmt: skip
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return {name: sample(hints[name], text, depth + 1) for name in sorted(hint.__required_keys__)}
    if is_dataclass(origin or hint):
        return sample_dataclass(origin or hint, text, arguments)
    return PLAIN.get(hint, {} if origin is dict or hint is dict else None)


def sample_dataclass(kind: Any, text: str, arguments: Sequence[Any] = ()) -> Any:
    """Return a value of a dataclass with the fields that have no default, or one that their type does not allow."""
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for each in fields(kind):
        is_required = each.default is MISSING and each.default_factory is MISSING
        is_wrong = each.default is None and type(None) not in get_args(hints[each.name])
        if each.init and (is_required or is_wrong):
            hint = arguments[0] if isinstance(hints[each.name], TypeVar) else hints[each.name]
            values[each.name] = sample(hint, text, 1)
    return kind(**values)
