"""The JSON and MessagePack forms of records, declared by annotations and compiled once for each class.

A record is a dataclass that inherits `Record`. The annotation of a field names its shape: `str`, `U64`, `Json`, another
record, `Sequence[...]`, `X | None` and so on. By default a field is written unless it is optional and None. On read, a
missing field gets the default of the constructor. A `Rule` in the annotation changes this for one field.

`to_json` returns JSON values. `to_msgpack` returns the same tree, with byte strings as `bytes` and every free-form
object sorted by key, so that equal content packs to equal bytes. `from_json` reads both.

A record is checked when it is written or read, not when it is constructed. A `Fault` is raised with an empty path. Each
level that it passes prepends its step. So paths cost nothing for a valid record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum, auto
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NamedTuple,
    Protocol,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from lash_redis._validate import require_id
from lash_redis.errors import InvalidRecord
from lash_redis.models.fast_packing import fragment_of
from lash_redis.models.json_values import (
    CONTAINERS,
    MAX_I64,
    MAX_U64,
    MIN_I64,
    Fault,
    canonical,
    plain_text,
    refuse,
    with_plain_keys,
)


class Form(Enum):
    """The form in which a record is written."""

    JSON = auto()
    MSGPACK = auto()
    PACKED = auto()
    """The values of MSGPACK, in which free-form JSON is packed already if `fast_packing` accepts it."""


class Shape(NamedTuple):
    """The functions that encode and decode one kind of value. Both raise `Fault`."""

    encode: Callable[[Any, Form], Any]
    decode: Callable[[Any], Any]
    exact: str = ""
    """A Python condition on `value` under which both functions return `value` itself, so that the call is skipped."""


class Rule(Enum):
    """An exception from the default encoding of a field, written in its annotation: `Annotated[str, Rule.REQUIRED]`."""

    REQUIRED = auto()
    """The field must be present on read, although the constructor has a default."""
    NULLABLE = auto()
    """None is written as null. Without this rule, an optional field that is None is omitted."""
    OMIT_EMPTY = auto()
    """An empty value is omitted."""
    NONE_IF_MISSING = auto()
    """A missing field is read as None, even if the constructor has another default."""
    IN_MEMORY = auto()
    """The field is neither written nor read."""


def _encode_json(value: Any, form: Form) -> Any:
    if form is Form.PACKED and type(value) in CONTAINERS:
        fragment = fragment_of(value)
        if fragment is not None:
            return fragment
    checked = canonical(value, 1)
    return value if form is Form.JSON else checked


def _decode_json(value: Any) -> Any:
    canonical(value, 1)
    return value


def _encode_object(value: Any, form: Form) -> Any:
    return _encode_json(value, form) if isinstance(value, dict) else refuse(value, "a JSON object")


def _decode_object(value: Any) -> Any:
    return _decode_json(value) if isinstance(value, dict) else refuse(value, "a JSON object")


# Scalars


def _integer(low: int, high: int) -> Shape:
    def check(value: Any, form: Form = Form.JSON) -> int:
        if type(value) is not int:
            refuse(value, "an integer")
        if not low <= value <= high:
            raise Fault(f"is an integer outside {low}..{high}")
        return value

    return Shape(check, check, f"type(value) is int and {low} <= value <= {high}")


def _boolean(value: Any, form: Form = Form.JSON) -> bool:
    return value if isinstance(value, bool) else refuse(value, "a boolean")


def _text(value: Any, form: Form = Form.JSON) -> str:
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        refuse(value, "a string")
    return plain_text(value)


def _identifier(value: Any, form: Form = Form.JSON) -> str:
    try:
        return require_id("", value)
    except InvalidRecord as error:
        raise Fault(error.reason) from None


def _encode_bytes(value: Any, form: Form) -> Any:
    if not isinstance(value, (bytes, bytearray)):
        refuse(value, "bytes")
    return list(value) if form is Form.JSON else bytes(value)


def _decode_bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if not isinstance(value, (list, tuple)):
        refuse(value, "a list of bytes")
    for index, item in enumerate(value):
        if type(item) is not int or not 0 <= item <= 255:
            raise Fault("expected an integer from 0 to 255", f"[{index}]")
    return bytes(value)


U64 = Annotated[int, _integer(0, MAX_U64)]
I64 = Annotated[int, _integer(MIN_I64, MAX_I64)]
Id = Annotated[str, Shape(_identifier, _identifier)]
Json = Annotated[Any, Shape(_encode_json, _decode_json)]
JsonObject = Annotated[dict[str, Any], Shape(_encode_object, _decode_object)]

_SCALARS: dict[Any, Shape] = {
    str: Shape(_text, _text, "type(value) is str and value.isascii()"),
    bool: Shape(_boolean, _boolean, "value is True or value is False"),
    bytes: Shape(_encode_bytes, _decode_bytes),
}


# Composite shapes


def _optional(inner: Shape) -> Shape:
    encode, decode, exact = inner
    return Shape(
        lambda value, form: None if value is None else encode(value, form),
        lambda value: None if value is None else decode(value),
        f"value is None or {exact}" if exact else "value is None",
    )


def _text_of(cls: type[str]) -> Shape:
    return Shape(_text, lambda value: cls(_text(value)))


def _none_if_empty(inner: Shape) -> Shape:
    encode = inner.encode
    return Shape(lambda value, form: encode(value, form) or None, inner.decode)


def _sequence_of(inner: Shape, build: Callable[[list[Any]], Any]) -> Shape:
    def each(value: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
        out: list[Any] = []
        try:
            for item in value:
                out.append(convert(item))
        except Fault as fault:
            raise fault.under(f"[{len(out)}]") from None
        return out

    def encode(value: Any, form: Form) -> list[Any]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
            refuse(value, "a list")
        return each(value, lambda item: inner.encode(item, form)) if value else []

    def decode(value: Any) -> Any:
        return build(each(value, inner.decode)) if isinstance(value, (list, tuple)) else refuse(value, "a list")

    return Shape(encode, decode)


def _map_of(inner: Shape) -> Shape:
    def each(value: Any, convert: Callable[[Any], Any]) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            refuse(value, "an object")
        plain = with_plain_keys(value)
        out: dict[str, Any] = {}
        for key in sorted(plain):
            try:
                out[key] = convert(plain[key])
            except Fault as fault:
                raise fault.under(f"[{key!r}]") from None
        return out

    return Shape(
        lambda value, form: each(value, lambda item: inner.encode(item, form)),
        lambda value: each(value, inner.decode),
    )


def _record_of(*classes: type[Record]) -> Shape:
    """Return the shape of one record class, or of a tagged union of several."""
    wanted = "a " + " or ".join(cls.__name__ for cls in classes)

    def encode(value: Any, form: Form) -> Any:
        return value._encode(form) if isinstance(value, classes) else refuse(value, wanted)

    def decode_variant(value: Any) -> Any:
        for cls in classes:
            if value == cls.__name__ or (isinstance(value, dict) and cls.__name__ in value):
                return cls._decode(value)
        raise Fault(f"expected {wanted}, tagged with its name")

    return Shape(encode, decode_variant if len(classes) > 1 else classes[0]._decode)


def _is_default(hint: Any) -> bool:
    """Whether an annotation is the type of a default such as `KEEP`, which is not written."""
    return isinstance(hint, type) and issubclass(hint, Enum)


def shape_of(hint: Any) -> Shape:
    """Return the shape that an annotation names."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((mark for mark in arguments if isinstance(mark, Shape)), None) or shape_of(arguments[0])
    if origin in (Union, UnionType):
        present = [argument for argument in arguments if argument is not NoneType and not _is_default(argument)]
        inner = shape_of(present[0]) if len(present) == 1 else _record_of(*present)
        return _optional(inner) if NoneType in arguments else inner
    if origin in (Sequence, list):
        return _sequence_of(shape_of(arguments[0]), list if origin is list else tuple)
    if origin is Mapping:
        return _map_of(shape_of(arguments[1]))
    if hint in _SCALARS:
        return _SCALARS[hint]
    if issubclass(hint, Record):
        return _record_of(hint)
    if issubclass(hint, str):
        return _text_of(hint)
    raise TypeError(f"{hint!r} has no wire shape")


# Records


class _Written(NamedTuple):
    name: str
    shape: Shape
    omits_none: bool
    """Whether the field is omitted if its encoded value is None."""
    omitted: Enum | None
    """The default for which the field is omitted; None for no such default."""


class _Read(NamedTuple):
    name: str
    shape: Shape
    required: bool
    none_if_missing: bool


class _Fields(NamedTuple):
    """How the fields of a record class are written and read."""

    written: Sequence[_Written]
    read: Sequence[_Read]


@cache
def _fields_of(cls: Any) -> _Fields:
    hints = get_type_hints(cls, include_extras=True)
    written, read = [], []
    for field in fields(cls):
        hint = hints[field.name]
        rules = {mark for mark in get_args(hint) if isinstance(mark, Rule)} if get_origin(hint) is Annotated else set()
        if Rule.IN_MEMORY in rules:
            continue
        shape = _none_if_empty(shape_of(hint)) if Rule.OMIT_EMPTY in rules else shape_of(hint)
        optional = NoneType in get_args(get_args(hint)[0] if get_origin(hint) is Annotated else hint)
        omitted = field.default if isinstance(field.default, Enum) else None
        omits_none = (optional and not omitted and Rule.NULLABLE not in rules) or Rule.OMIT_EMPTY in rules
        written.append(_Written(field.name, shape, omits_none, omitted))
        defaulted = field.default is not MISSING or field.default_factory is not MISSING
        required = Rule.REQUIRED in rules or not (defaulted or optional)
        none_if_missing = Rule.NONE_IF_MISSING in rules or not defaulted
        read.append(_Read(field.name, shape, required, none_if_missing))
    return _Fields(written, read)


def _has_fields(cls: Any) -> bool:
    return bool(_fields_of(cls).written)


@cache
def _encoder(cls: Any) -> Callable[[Any, Form], dict[str, Any]]:
    """Return a function that encodes the fields of a record, in declaration order.

    The function is compiled at first use, as dataclasses compile `__init__`. A loop over the fields takes three times
    as long, and a commit encodes some ten records.
    """
    lines = ["def encode(record, form):", " out, name = {}, ''", " try:", "  pass"]
    scope: dict[str, Any] = {"Fault": Fault}
    for at, (name, shape, omits_none, omitted) in enumerate(_fields_of(cls).written):
        scope[f"encode_{at}"], scope[f"omitted_{at}"] = shape.encode, omitted
        lines.append(f"  value = record.{name}")
        indent = "  "
        if omitted is not None:
            lines.append(f"  if value is not omitted_{at}:")
            indent = "   "
        if shape.exact:
            body = [f"if not ({shape.exact}):", f" name = '{name}'", f" value = encode_{at}(value, form)"]
        else:
            body = [f"name = '{name}'", f"value = encode_{at}(value, form)"]
        body.append(f"{'if value is not None: ' if omits_none else ''}out['{name}'] = value")
        lines += [indent + line for line in body]
    lines += [" except Fault as fault:", "  raise fault.under('.' + name) from None", " return out"]
    exec("\n".join(lines), scope)  # the source contains only the names and conditions of declared fields
    encode: Callable[[Any, Form], dict[str, Any]] = scope["encode"]
    return encode


@cache
def _decoder(cls: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that decodes an object to the keyword arguments of a record. It is compiled at first use."""
    lines = ["def decode(values):", " out, name = {}, ''", " try:", "  pass"]
    scope: dict[str, Any] = {"Fault": Fault}
    for at, (name, shape, required, none_if_missing) in enumerate(_fields_of(cls).read):
        scope[f"decode_{at}"] = shape.decode
        lines += [f"  if '{name}' in values:", f"   value = values['{name}']"]
        if shape.exact:
            lines += [f"   if not ({shape.exact}):", f"    name = '{name}'", f"    value = decode_{at}(value)"]
        else:
            lines += [f"   name = '{name}'", f"   value = decode_{at}(value)"]
        lines.append(f"   out['{name}'] = value")
        if required:
            lines += ["  else:", f"   name = '{name}'", "   raise Fault('is missing')"]
        elif none_if_missing:
            lines += ["  else:", f"   out['{name}'] = None"]
    lines += [" except Fault as fault:", "  raise fault.under('.' + name) from None", " return out"]
    exec("\n".join(lines), scope)  # the source contains only the names and conditions of declared fields
    decode: Callable[[dict[str, Any]], dict[str, Any]] = scope["decode"]
    return decode


def encode_fields(record: Any, form: Form) -> dict[str, Any]:
    """Encode the fields of a record, in declaration order."""
    cls: Any = type(record)
    return _encoder(cls)(record, form)


def decode_fields(cls: Any, value: Any) -> dict[str, Any]:
    """Decode an object to the keyword arguments of `cls`. Unknown keys are ignored."""
    return _decoder(cls)(value) if isinstance(value, dict) else refuse(value, "an object")


class Stored(Protocol):
    """The bytes of a record whose fields are not decoded yet."""

    def load(self, record: Any, name: str) -> Any:
        """Decode field `name`, set it on `record` by `object.__setattr__`, and return its value.

        It may set other fields, too. Once all fields are set, it may set `_stored` to None, which marks the record as
        accessed.
        """


class Unread:
    """A record whose unset fields are decoded from `_stored` at their first access.

    Otherwise it behaves like any record. Copies and pickles of it are plain records. The access raises what `load`
    raises.
    """

    __slots__ = ("_stored",)

    @classmethod
    def from_stored(cls, stored: Stored) -> Self:
        record = object.__new__(cls)
        object.__setattr__(record, "_stored", stored)
        return record

    if not TYPE_CHECKING:  # with this method, a type checker would accept any attribute

        def __getattr__(self, name: str) -> Any:
            # Python calls this only for an unset slot. `_stored` is not a field, so the call cannot recurse.
            if name in type(self).__match_args__:
                stored = self._stored
                if stored is None:  # another thread has decoded the fields since
                    return object.__getattribute__(self, name)
                return stored.load(self, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)


class Record:
    """The base of every record. A record with a special form overrides only `_encode` and `_decode`.

    `path` is the name of the record in errors. The default is the name of its class.
    """

    __slots__ = ()

    def to_json(self, path: str | None = None) -> Any:
        """Encode the record as JSON values. Free-form parts are the record's own objects, not copies.

        Raises:
            InvalidRecord: a field has a value that its shape does not accept.
        """
        return self._written(Form.JSON, path)

    def to_msgpack(self, path: str | None = None) -> Any:
        """Encode the record as a tree for `msgpack.packb`. Equal content packs to equal bytes.

        Raises:
            InvalidRecord: a field has a value that its shape does not accept.
        """
        return self._written(Form.MSGPACK, path)

    def to_packing(self, path: str | None = None) -> Any:
        """Encode the record as a tree for `packing.pack_record`. It raises the same errors as `to_msgpack`."""
        return self._written(Form.PACKED, path)

    @classmethod
    def from_json(cls, value: Any, path: str | None = None) -> Self:
        """Decode a record that `to_json` or `to_msgpack` encoded. Unknown keys are ignored.

        Raises:
            InvalidRecord: a required key is missing, or a value has the wrong type.
        """
        try:
            return cls._decode(value)
        except Fault as fault:
            raise fault.at(cls.__name__ if path is None else path) from None

    def _written(self, form: Form, path: str | None) -> Any:
        try:
            return self._encode(form)
        except Fault as fault:
            raise fault.at(type(self).__name__ if path is None else path) from None

    def _encode(self, form: Form) -> Any:
        return encode_fields(self, form)

    @classmethod
    def _decode(cls, value: Any) -> Self:
        return cls(**decode_fields(cls, value))


class Variant(Record):
    """One case of a union, tagged with its class name: `{"Name": {fields}}`, or `"Name"` if it has no fields."""

    __slots__ = ()

    def _encode(self, form: Form) -> Any:
        name = type(self).__name__
        return {name: encode_fields(self, form)} if _has_fields(type(self)) else name

    @classmethod
    def _decode(cls, value: Any) -> Self:
        if value == cls.__name__ and not _has_fields(cls):
            return cls()
        try:
            return cls(**decode_fields(cls, cls._untagged(value)))
        except Fault as fault:
            raise fault.under(f".{cls.__name__}") from None

    @classmethod
    def _untagged(cls, value: Any) -> Any:
        if not isinstance(value, dict) or cls.__name__ not in value:
            raise Fault(f"expected an object with the key {cls.__name__}")
        return value[cls.__name__]
