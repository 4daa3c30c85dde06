"""Which components a head has, and where the bytes of each are."""

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
    """The refs of a head's components, and for each the kind: `-` absent, `h` held, `p` private.

    A held component is a blob of the shard that counts its holders. The bytes of a private one lie in the session's own
    `state`: its count is one by construction, and it goes when the head names another.
    """

    refs: Refs
    kinds: str
    stored: bytes
    """The head's `refs`: for each component its kind and its ref, zeros for an absent one; empty without any."""

    @classmethod
    def of(cls, refs: Refs, kinds: str) -> Self:
        if kinds == "---":
            return cls(refs, kinds, b"")
        parts = [_KINDS[kind] + (ref or _NO_REF_HEX) for kind, ref in zip(kinds, refs, strict=True)]
        return cls(refs, kinds, bytes.fromhex("".join(parts)))

    @classmethod
    def guessed(cls, refs: Sequence[str | None]) -> Self:
        """These refs, as a commit that carried the bodies would have stored them: tools held, the others private."""
        kinds = [kind if ref else "-" for ref, kind in zip(refs, "hpp", strict=True)]
        return cls.of(tuple(BlobRef(ref) if ref else None for ref in refs), "".join(kinds))

    @classmethod
    def from_stored(cls, data: bytes) -> Self:
        """What the head's `refs` says.

        Raises:
            ValueError: it is unreadable.
        """
        if not data:
            return cls(_NO_REFS, "---", b"")
        if len(data) != _PART * len(COMPONENTS):
            raise ValueError(f"{len(data)} bytes of refs")
        kinds = (data[::_PART]).decode("latin-1")
        if not _KINDS.keys() >= set(kinds):
            raise ValueError(f"kinds of components {kinds!r}")
        text = data.hex()
        places = range(2, 2 * len(data), 2 * _PART)
        refs = [None if kind == "-" else BlobRef(text[at : at + 64]) for kind, at in zip(kinds, places, strict=True)]
        return cls(tuple(refs), kinds, data)

    @property
    def held(self) -> list[BlobRef]:
        """The blobs that are counted, each once."""
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
    """The refs as bytes, for a checksum: 32 for each component, zeros for an absent one; empty without any."""
    return bytes.fromhex("".join([ref or _NO_REF_HEX for ref in refs])) if any(refs) else b""
