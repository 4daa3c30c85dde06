"""Documents: named values that a session keeps instead of a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """Changes to the documents of a session, which are made together or not at all.

    A name is bytes: one letter, the kind of the document, and its key. Documents of the kind `p` are parts: they are
    not listed, and their content never changes. Another content under the name of a part is refused. One write has at
    most 4,000 names: those to put, to add, to remove and to expect.
    """

    put: Mapping[bytes, bytes] = field(default_factory=dict)
    """Content by name. It replaces what is stored under the name."""
    add: Mapping[bytes, bytes] = field(default_factory=dict)
    """Content by name. It is stored only if nothing is stored under the name."""
    remove: Collection[bytes] = ()
    """Names. Names that do not exist are skipped."""
    expects: Mapping[bytes, bytes | bool] = field(default_factory=dict)
    """What must be stored under a name: this content; True for any content; False for none."""
    revision: int | None = None
    """The revision that the documents must have; None for any. Each write increments it."""


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document."""

    name: bytes
    """Its kind, one letter, and its key."""
    content: bytes
    """The content as it was written."""
    children: tuple[tuple[bytes, bytes], ...] = ()
    """Name and content of each child that the read asked for, in the order of their names.

    The children of a document are those of another kind whose key begins with its key and a NUL.
    """


@dataclass(frozen=True, slots=True)
class DocumentsRead:
    """Documents of one session at one moment."""

    revision: int
    """The number of writes to the documents; 0 if there are none."""
    documents: tuple[Document, ...] = ()
    """Those that were found, in the order that the read describes."""
