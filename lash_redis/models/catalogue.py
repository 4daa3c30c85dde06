"""Catalogue entries: the member of a shard's sorted set that stands for one session."""

from __future__ import annotations


def catalogue_entry(session_id: str, parent_session_id: str | None) -> bytes:
    """Encode a catalogue entry: the session id, then, if there is a parent, the byte 0xFF and the parent's id.

    UTF-8 never contains 0xFF, so the separator is unambiguous.
    """
    entry = session_id.encode()
    return entry + b"\xff" + parent_session_id.encode() if parent_session_id else entry


def entry_ids(entry: bytes) -> tuple[str, str | None]:
    """Decode a catalogue entry into the session id and the parent's id (None without a parent).

    Bytes that are not UTF-8 become U+FFFD.
    """
    session_id, has_parent, parent = entry.partition(b"\xff")
    return session_id.decode(errors="replace"), parent.decode(errors="replace") if has_parent else None
