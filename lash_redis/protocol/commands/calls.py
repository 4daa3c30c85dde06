"""What every command is made of: a call, its reply's first word, and the checks that more than one of them makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from lash_redis.errors import CommitTooLarge, Corrupt, OutcomeUnknown, SessionDeleted, SessionEvicted
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.component_refs import ComponentRefs
from lash_redis.protocol.keys import SessionKeys, ShardKeys

Command: TypeAlias = tuple[Any, ...]

MAX_VALUE_BYTES: Final = 512 * 1024 * 1024 - 1024
"""What one value may hold in Redis (`proto-max-bulk-len`), less our framing; no option raises it."""


@dataclass(frozen=True, slots=True)
class RefsMoved:
    """The head holds other refs than the call said: send again with these."""

    refs: ComponentRefs


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One EVALSHA: a script, its keys, its arguments. The first argument comes back as the reply's second element."""

    script: scripts.Script
    keys: Sequence[str]
    args: Sequence[Any]

    @property
    def echo(self) -> bytes:
        return str(self.args[0]).encode()


def status(call: ScriptCall, reply: Any, keys: SessionKeys | ShardKeys | None = None) -> str:
    """The first word of a script's reply.

    Raises:
        OutcomeUnknown: the reply belongs to another call.
        Corrupt, SessionEvicted: the script found stored bytes that break a law.
        SessionDeleted: the session was deleted.
    """
    if not isinstance(reply, list) or len(reply) < 2 or reply[1] != call.echo:
        raise OutcomeUnknown(f"the reply to {call.script.name} belongs to another call")
    word: str = reply[0].decode()
    if word in ("corrupt", "evicted"):
        family, reason = reply[2].decode(), reply[3].decode()
        shard = getattr(keys, "shard", keys)
        place = getattr(keys, family, None) or getattr(shard, family, None) or f"{keys.prefix if keys else ''}{family}"
        raise (Corrupt if word == "corrupt" else SessionEvicted)(family.partition(":")[0], place, reason)
    if word == "deleted":
        raise SessionDeleted(call.echo.decode())
    return word


def require_size(what: str, size: int, options: StoreOptions) -> None:
    limit = MAX_VALUE_BYTES if options.max_commit_bytes is None else min(options.max_commit_bytes, MAX_VALUE_BYTES)
    if size > limit:
        option = " (StoreOptions.max_commit_bytes)" if limit == options.max_commit_bytes else ""
        raise CommitTooLarge(f"{what}{option}", size, limit)
