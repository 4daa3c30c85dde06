"""The commands of the catalogue: the sessions of a shard, most recent first, each with a summary without its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

from lash_redis.errors import Corrupt, SessionEvicted
from lash_redis.models import Cursor, SessionPickerInfo, message_text
from lash_redis.models.catalogue import entry_ids
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall, is_foreign
from lash_redis.protocol.heads import decode_facts, decode_meta
from lash_redis.protocol.keys import CatalogueKeys, Layout, SessionKeys, ShardKeys
from lash_redis.protocol.nodes import decode_node


def latest_read(catalogue: CatalogueKeys, below: Cursor | None, count: int) -> Command:
    """Read `count` entries from the time of `below` on, the most recent first."""
    top = "+inf" if below is None else below.committed_ms
    return ("ZREVRANGEBYSCORE", catalogue.sessions, top, "-inf", "WITHSCORES", "LIMIT", 0, count)


def oldest_read(catalogue: CatalogueKeys, above: Cursor | None, count: int) -> Command:
    """Read `count` entries from the time of `above` on, the oldest first."""
    bottom = "-inf" if above is None else above.committed_ms
    return ("ZRANGEBYSCORE", catalogue.sessions, bottom, "+inf", "WITHSCORES", "LIMIT", 0, count)


def entries_reply(reply: Sequence[Any]) -> list[Cursor]:
    """Decode entries and their times: a flat list in RESP2, pairs in RESP3."""
    flat = list(chain.from_iterable(reply)) if reply and isinstance(reply[0], list | tuple) else list(reply)
    return [Cursor(to_ms(committed), entry) for entry, committed in zip(flat[::2], flat[1::2], strict=True)]


def to_ms(score: Any) -> int:
    """Return a score as milliseconds, limited to 0 to 2**53: a damaged score may be infinite or negative."""
    return int(min(max(float(score), 0.0), 2.0**53))


def created_read(keys: SessionKeys) -> Command:
    return ("HMGET", keys.head, "facts", "meta", "ttl", "owner", "documents")


def catalogue_keys(shard: ShardKeys, access: str) -> CatalogueKeys:
    """Return the catalogue that an owner lists; for a trusted caller, that of the shard."""
    return shard.catalogue(access) if access else shard


def place_read(keys: SessionKeys, entry: bytes) -> Command:
    return ("ZSCORE", catalogue_keys(keys.shard, keys.access).sessions, entry)


@dataclass(frozen=True, slots=True)
class Line:
    """The summary of a session for the list, as its head has it.

    `first` is the position of the first user message: see `lua/include/head.lua`. `facts` are those of the head.
    """

    keys: SessionKeys
    info: SessionPickerInfo
    first: int = -1
    facts: bytes | None = None

    def with_record(self, record: bytes | Corrupt | None, facts: bytes | Corrupt | None) -> SessionPickerInfo | None:
        """Add the text of the first user message, stored in `record`. None if `record` is not such a message.

        None also if `facts`, read behind it, are not those of this line: the id may have another owner by now.

        Raises:
            Corrupt: `record` is damaged, or is the error of reading it.
        """
        if isinstance(record, Corrupt):
            raise record
        if not record or facts != self.facts:
            return None
        message = decode_node(record, self.keys.log, self.first).user_message()
        return None if message is None else replace(self.info, first_user_message=message_text(message))


_LINE: Final = ("facts", "meta", "parent", "owner", "inputs")
"""The fields of a head that its line shows."""


def line_read(keys: SessionKeys) -> list[Command]:
    return [
        ("HMGET", keys.head, *_LINE),
        ("EXISTS", keys.log, keys.nodes, keys.jumps, keys.dead),
    ]


def line_reply(keys: SessionKeys, at: Cursor, reply: Sequence[bytes | None] | Corrupt, others: int) -> Line | None:
    """Decode the summary of a session.

    None if the session has no key any more, or is another's than the owner for whom it is listed. None also if it was
    started again with another parent, because that one has its own entry. `others`: the number of the session's other
    keys that exist.

    Raises:
        Corrupt, SessionEvicted: the head is unreadable, or a key is missing.
    """
    if isinstance(reply, Corrupt):
        raise reply
    facts, meta, stored_parent, owner, inputs = reply
    is_begun = not (facts is None and meta is None and inputs is None)
    if is_foreign(keys, owner, facts or meta or inputs):
        return None
    if not is_begun and others:
        raise SessionEvicted("head", keys.head, "is gone, other keys of the session remain")
    _, parent = entry_ids(at.entry)
    if not is_begun or (stored_parent or b"").decode(errors="replace") != (parent or ""):
        return None
    info = SessionPickerInfo(
        keys.session_id,
        parent_session_id=parent,
        last_commit_ms=at.committed_ms,
        owner=None if owner is None else owner.decode(errors="replace"),
    )
    if meta is not None:
        record = decode_meta(meta, keys.head)
        if record.session_id != keys.session_id:
            raise Corrupt("meta", keys.head, f"it belongs to session {record.session_id!r}")
        info = replace(info, cwd=record.cwd, parent_session_id=record.parent_session_id, title=record.session_name)
    if facts is None:
        return Line(keys, info)
    known = decode_facts(facts, keys.head)
    if others < sum(map(bool, (known.length, known.ids, known.jumps, known.dead))):
        raise SessionEvicted("session", keys.log, "this key, or the nodes, jumps or dead key of the session, is gone")
    counted = replace(
        info, user_message_count=known.users, head_revision=known.revision, last_commit_ms=known.committed
    )
    return Line(keys, counted, known.first, facts)


def line_of_head(keys: SessionKeys, at: Cursor, fields: Mapping[bytes, bytes]) -> Line | None:
    """Return the summary of a session whose keys were all read; None as `line_reply` does."""
    families = 4
    return line_reply(keys, at, [fields.get(name.encode()) for name in _LINE], families)


def first_read(keys: SessionKeys, first: int) -> list[Command]:
    """Read the first user message, and the facts behind it, which show whether it is still of the same revision."""
    return [("LINDEX", keys.log, first), ("HGET", keys.head, "facts")]


def faulty_line(keys: SessionKeys, at: Cursor, error: Corrupt) -> SessionPickerInfo:
    _, parent = entry_ids(at.entry)
    return SessionPickerInfo(
        keys.session_id,
        parent_session_id=parent,
        last_commit_ms=at.committed_ms,
        fault=fault_of(error),
        owner=keys.access or None,
    )


def fault_of(error: Corrupt) -> str:
    kind = "evicted" if isinstance(error, SessionEvicted) else "corrupt"
    return f"{kind}: {error}"


def prune_call(shard: ShardKeys, access: str, layout: Layout, entries: Iterable[bytes]) -> ScriptCall:
    """Drop those of `entries` whose sessions have no key any more.

    They are entries of the catalogue of the owner `access`; for an empty one, of the shard's.
    """
    listed, catalogue = list(entries), catalogue_keys(shard, access)
    keys = [key for entry in listed for key in layout.session(entry_ids(entry)[0]).own]
    return ScriptCall(scripts.PRUNE, [catalogue.sessions, catalogue.expiries, *keys], [shard.prefix, access, *listed])
