"""A serialiser that copies objects of any class without making them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

OPTIONS: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)
"""The options with which `JsonPlusSerializer` encodes."""


@dataclass(frozen=True, slots=True)
class EncodedObject:
    """An object as `JsonPlusSerializer` has encoded it."""

    code: int
    data: bytes


class VerbatimSerializer(JsonPlusSerializer):
    """A serialiser for a saver whose threads are copied: it decodes an object to an `EncodedObject`, and back.

    The classes of the objects need not be importable, and no code of theirs runs. What it writes is what
    `JsonPlusSerializer` would write, so another saver with that serialiser reads it. Encrypted values are refused by
    `NotImplementedError`. Not for graphs: nodes would get the encoded objects.
    """

    def __init__(self) -> None:
        super().__init__(allowed_msgpack_modules=None, __unpack_ext_hook__=EncodedObject)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Encode a value, with the encoded objects in it as they are.

        Raises:
            TypeError: it has an object that `JsonPlusSerializer` cannot encode.
        """
        if obj is None or isinstance(obj, bytes | bytearray):
            return super().dumps_typed(obj)
        return "msgpack", ormsgpack.packb(obj, default=self._extension, option=OPTIONS)

    def _extension(self, obj: Any) -> ormsgpack.Ext:
        encoded = obj if isinstance(obj, EncodedObject) else self.loads_typed(super().dumps_typed(obj))
        return ormsgpack.Ext(encoded.code, encoded.data)
