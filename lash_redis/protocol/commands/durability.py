"""The durability of a commit: the command that waits for replicas or disks behind its script, and its reply."""

from __future__ import annotations

from typing import Any

from lash_redis.options import Durability, Replicas
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall
from lash_redis.protocol.keys import SessionKeys


def wait_command(durability: Durability) -> Command:
    if isinstance(durability, Replicas):
        return ("WAIT", durability.n, durability.timeout_ms)
    return ("WAITAOF", 1, durability.replicas, durability.timeout_ms)


def wait_reply(durability: Durability, reply: Any) -> bool:
    """Whether as many replicas or disks confirmed the commit as `durability` requires. False for an error reply."""
    if isinstance(reply, Exception):
        return False
    if isinstance(durability, Replicas):
        return int(reply) >= durability.n
    on_disk, on_replicas = reply
    return int(on_disk) >= 1 and int(on_replicas) >= durability.replicas


def mark_call(keys: SessionKeys) -> ScriptCall:
    return ScriptCall(scripts.MARK, [keys.head], [keys.session_id])
