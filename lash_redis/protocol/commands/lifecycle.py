"""The commands of a session's meta and lifetime: meta, touch, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lash_redis._validate import require_id
from lash_redis.errors import HeadRevisionConflict
from lash_redis.models import DeleteReport, SessionMeta
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import OwnerMoved, RefsMoved, ScriptCall, refs_moved, require_size, status
from lash_redis.protocol.component_refs import ComponentRefs
from lash_redis.protocol.heads import encode_meta, tag_of
from lash_redis.protocol.keys import SessionKeys


def encoded_meta(meta: SessionMeta, options: StoreOptions) -> bytes:
    """Encode a meta record.

    Raises:
        InvalidRecord, CommitTooLarge: the record is invalid, or longer than `options` allow.
    """
    record = encode_meta(meta)
    if meta.parent_session_id:
        require_id("SessionMeta.parent_session_id", meta.parent_session_id)
    require_size("the bytes of a meta record", len(record), options)
    return record


def meta_call(
    keys: SessionKeys,
    meta: SessionMeta,
    known: bytes | None,
    owner: str,
    ttl_ms: int,
    options: StoreOptions,
    *,
    own_ttl_ms: int | None = None,
) -> ScriptCall:
    """Write the meta record.

    `known`: the stored record that it replaces, empty for none; None to replace any. `owner`: the one that the session
    is expected to have, empty for none.
    """
    return ScriptCall(
        scripts.META,
        keys.listed(owner),
        [
            keys.session_id,
            "save" if known is None else "compare",
            encoded_meta(meta, options),
            meta.parent_session_id or "",
            ttl_ms,
            "" if own_ttl_ms is None else own_ttl_ms,
            options.blob_grace_ms,
            known or b"",
            keys.access,
            owner,
        ],
    )


def meta_reply(call: ScriptCall, keys: SessionKeys, reply: Any) -> bool | OwnerMoved:
    """Return whether the record is written: False if another one is stored; or the owner to send the call with."""
    word = status(call, reply, keys)
    return OwnerMoved(reply[2].decode()) if word == "owner" else word == "saved"


def touch_call(
    keys: SessionKeys,
    before: ComponentRefs,
    owner: str,
    ttl_ms: int,
    options: StoreOptions,
    *,
    own_ttl_ms: int | None = None,
) -> ScriptCall:
    """Extend the session's deadline. `before` and `owner`: the refs and the owner that the client expects."""
    return ScriptCall(
        scripts.TOUCH,
        [*keys.listed(owner), keys.documents, keys.names, *map(keys.blob, before.held)],
        [
            keys.session_id,
            before.stored,
            ttl_ms,
            "" if own_ttl_ms is None else own_ttl_ms,
            options.blob_grace_ms,
            keys.access,
            owner,
        ],
    )


def touch_reply(call: ScriptCall, keys: SessionKeys, reply: Any) -> bool | RefsMoved:
    """Return whether the session exists; or the refs with which the client must send the call again."""
    word = status(call, reply, keys)
    return refs_moved(keys, reply) if word == "refs" else word == "touched"


def delete_call(
    keys: SessionKeys,
    before: ComponentRefs,
    owner: str,
    request: str,
    options: StoreOptions,
    *,
    generations: Sequence[str] = (),
    sharded: bool = False,
    reusable: bool = False,
    builds_on: str | None = None,
) -> ScriptCall:
    """Delete the session.

    `before`, `owner` and `generations`: the refs, the owner and the streams that the client expects it to have.
    `request`: letters and digits that are unique to this deletion, so that a retry is recognised. `sharded`: the server
    is a cluster. `reusable`: the id takes writes at once. `builds_on`: the commit that must be its last one.
    """
    events = [keys.stream(generation).events for generation in generations]
    return ScriptCall(
        scripts.DELETE,
        [*keys.written(owner), keys.streams, keys.documents, keys.names, *map(keys.blob, before.held), *events],
        [
            keys.session_id,
            before.stored,
            options.blob_grace_ms,
            options.deletion_marker_ms,
            request,
            int(sharded),
            keys.access,
            owner,
            int(reusable),
            "" if builds_on is None else tag_of(builds_on),
            *generations,
        ],
    )


def delete_reply(call: ScriptCall, keys: SessionKeys, reply: Any) -> DeleteReport | RefsMoved:
    """Return what was deleted; or the refs with which the client must send the call again.

    Raises:
        HeadRevisionConflict: the last commit is another one than `builds_on`.
    """
    match status(call, reply, keys):
        case "refs":
            return refs_moved(keys, reply)
        case "conflict":
            raise HeadRevisionConflict(None, int(reply[2]))
        case "absent" | "freed":
            return DeleteReport()
    _, _, nodes, blobs, whole = reply
    return DeleteReport(True, nodes, blobs, whole == 1 and call.args[3] > 0 and not call.args[8])
