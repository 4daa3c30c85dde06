"""The refs of a head's components, and where the bytes of each component are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Self, TypeAlias

from lash_redis.models import BlobRef

COMPONENTS: Final = ("tool_state", "plugin_snapshot", "execution_state")
"""The components of a checkpoint, in the order in which the head's `refs` lists them."""
STATE_FIELDS: Final = {"plugin_snapshot": "p", "execution_state": "x"}
"""The components that can be private, and the field of the session's `state` that holds their bytes."""

Refs: TypeAlias = tuple[BlobRef | None, ...]

_KINDS: Final = {"-": "2d", "h": "68", "p": "70"}
_NO_REF_HEX: Final = bytes(32).hex()
_NO_REFS: Final = (None,) * len(COMPONENTS)
_PART: Final = 33
"""Bytes of one component in the head's `refs`: its kind, its ref."""


class ComponentRefs(NamedTuple):
    """The refs of a head's components, and the kind of each: `-` absent, `h` held, `p` private.

    A held component is a blob of the shard, which counts its holders. A private component is stored in the session's
    own `state`. It always has one holder, and it is deleted when the head names another one.
    """

    refs: Refs
    kinds: str
    stored: bytes
    """The head's `refs` field: the kind and the ref of each component, zeros for an absent one. Empty without any."""

    @classmethod
    def of(cls, refs: Refs, kinds: str) -> Self:
        if kinds == "---":
            return cls(refs, kinds, b"")
        parts = [_KINDS[kind] + (ref or _NO_REF_HEX) for kind, ref in zip(kinds, refs, strict=True)]
        return cls(refs, kinds, bytes.fromhex("".join(parts)))

    @classmethod
    def guessed(cls, refs: Sequence[str | None]) -> Self:
        """Assume the kinds that a commit with the bytes of all components stores: tools held, the others private."""
        kinds = [kind if ref else "-" for ref, kind in zip(refs, "hpp", strict=True)]
        return cls.of(tuple(BlobRef(ref) if ref else None for ref in refs), "".join(kinds))

    @classmethod
    def from_stored(cls, data: bytes) -> Self:
        """Decode the head's `refs` field.

        Raises:
            ValueError: the field is unreadable.
        """
        if not data:
            return cls(_NO_REFS, "---", b"")
        if len(data) != _PART * len(COMPONENTS):
            raise ValueError(f"expected 0 or {_PART * len(COMPONENTS)} bytes of refs, got {len(data)}")
        kinds = (data[::_PART]).decode("latin-1")
        if not _KINDS.keys() >= set(kinds):
            raise ValueError(f"expected the kinds -, h or p, got {kinds!r}")
        text = data.hex()
        places = range(2, 2 * len(data), 2 * _PART)
        refs = [None if kind == "-" else BlobRef(text[at : at + 64]) for kind, at in zip(kinds, places, strict=True)]
        return cls(tuple(refs), kinds, data)

    @property
    def held(self) -> list[BlobRef]:
        """The refs of the held components, each once."""
        if self.kinds.count("h") < 2:
            at = self.kinds.find("h")
            ref = None if at < 0 else self.refs[at]
            return [] if ref is None else [ref]
        return list(dict.fromkeys(ref for ref, kind in zip(self.refs, self.kinds, strict=True) if ref and kind == "h"))

    @property
    def private(self) -> dict[str, BlobRef]:
        """The ref of each private component, by its field of `state`."""
        fields = zip(STATE_FIELDS.values(), self.refs[1:], self.kinds[1:], strict=True)
        return {field: ref for field, ref, kind in fields if ref and kind == "p"}


NO_REFS: Final = ComponentRefs(_NO_REFS, "---", b"")


def digests(refs: Sequence[str | None]) -> bytes:
    """Return the refs as bytes for a checksum: 32 for each component, zeros for an absent one. Empty without any."""
    return bytes.fromhex("".join([ref or _NO_REF_HEX for ref in refs])) if any(refs) else b""
