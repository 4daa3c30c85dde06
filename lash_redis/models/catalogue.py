"""How the catalogue of a shard names a session."""

from __future__ import annotations


def catalogue_entry(session_id: str, parent_session_id: str | None) -> bytes:
    """How the catalogue names a session: its id; where it has a parent, a byte no UTF-8 has and that id follow."""
    entry = session_id.encode()
    return entry + b"\xff" + parent_session_id.encode() if parent_session_id else entry


def entry_ids(entry: bytes) -> tuple[str, str | None]:
    """The session and the parent that a catalogue entry names."""
    session_id, has_parent, parent = entry.partition(b"\xff")
    return session_id.decode(errors="replace"), parent.decode(errors="replace") if has_parent else None
