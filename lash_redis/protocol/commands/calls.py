"""The parts that all commands share: the script call, the status of its reply, and common checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from lash_redis.errors import CommitTooLarge, Corrupt, OutcomeUnknown, OwnerMismatch, SessionDeleted, SessionEvicted
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.component_refs import ComponentRefs
from lash_redis.protocol.heads import decode_components
from lash_redis.protocol.keys import SessionKeys, ShardKeys, StreamKeys

Command: TypeAlias = tuple[Any, ...]

MAX_VALUE_BYTES: Final = 512 * 1024 * 1024 - 1024
"""Maximum bytes of one value in Redis (`proto-max-bulk-len`), less the client's framing. No option raises it."""


@dataclass(frozen=True, slots=True)
class RefsMoved:
    """A reply: the head has other refs or another owner than the call expected. The client sends the call again."""

    refs: ComponentRefs
    owner: str
    """The owner of the session; empty for none."""
    generations: Sequence[str] = ()
    """The generations that have a stream; for a deletion only."""


@dataclass(frozen=True, slots=True)
class OwnerMoved:
    """A reply: the session has another owner than the call expected. The client sends the call again with this one."""

    owner: str


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One EVALSHA: a script, its keys, its arguments. The script returns the first argument as the second element."""

    script: scripts.Script
    keys: Sequence[str]
    args: Sequence[Any]

    @property
    def echo(self) -> bytes:
        return str(self.args[0]).encode()


def status(call: ScriptCall, reply: Any, keys: SessionKeys | ShardKeys | StreamKeys | None = None) -> str:
    """Return the first word of a script's reply.

    Raises:
        OutcomeUnknown: the reply belongs to another call.
        Corrupt, SessionEvicted: the script found stored bytes that violate an invariant.
        SessionDeleted: the session was deleted.
        OwnerMismatch: the session is another's than the owner for whom the caller acts.
    """
    if not isinstance(reply, list) or len(reply) < 2 or reply[1] != call.echo:
        raise OutcomeUnknown(f"the reply to {call.script.name} belongs to another call; send the call again")
    word: str = reply[0].decode()
    if word in ("corrupt", "evicted"):
        family, reason = reply[2].decode(), reply[3].decode()
        shard = getattr(keys, "shard", keys)
        place = getattr(keys, family, None) or getattr(shard, family, None) or f"{keys.prefix if keys else ''}{family}"
        raise (Corrupt if word == "corrupt" else SessionEvicted)(family.partition(":")[0], place, reason)
    if word == "deleted":
        raise SessionDeleted(call.echo.decode())
    if word == "foreign":
        raise OwnerMismatch(call.echo.decode(), getattr(keys, "access", ""))
    return word


def mapping(flat: Sequence[bytes]) -> Mapping[bytes, bytes]:
    """Return the fields of a hash from the flat list in which a script returns them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def refs_moved(keys: SessionKeys, reply: Sequence[Any]) -> RefsMoved:
    """Decode the reply `refs`, which the scripts of commits, touches and deletions return."""
    generations = tuple(generation.decode() for generation in reply[4:])
    return RefsMoved(decode_components(reply[2], keys.head), reply[3].decode(), generations)


def is_foreign(keys: SessionKeys, owner: bytes | None, facts: bytes | None) -> bool:
    """Whether the session is another's than the owner for whom the caller acts, by two fields of its head.

    A session without an owner is another's as soon as it has a head, as in `lua/include/head.lua`.
    """
    return bool(keys.access) and (owner or facts) is not None and owner != keys.access.encode()


def require_size(what: str, size: int, options: StoreOptions) -> None:
    """Raise CommitTooLarge if `size` bytes exceed `max_commit_bytes` or the limit of Redis. The error names `what`."""
    limit = MAX_VALUE_BYTES if options.max_commit_bytes is None else min(options.max_commit_bytes, MAX_VALUE_BYTES)
    if size > limit:
        option = " (StoreOptions.max_commit_bytes)" if limit == options.max_commit_bytes else ""
        raise CommitTooLarge(f"{what}{option}", size, limit)
