"""Atomic reads on a server whose memory is full. It refuses a read in MULTI, but accepts the same read in a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lash_redis.protocol import scripts
from lash_redis.transport.request import Command, Request


def in_script(request: Request) -> Request:
    """Return a request for the script that runs the commands of an atomic read."""
    keys: list[Any] = []
    words: list[Any] = []
    for name, *rest in request.commands:
        named = len(rest) if name == "EXISTS" else min(1, len(rest))
        keys += rest[:named]
        words += [name, named, len(rest) - named, *rest[named:]]
    command = ("EVALSHA", scripts.READ.sha, len(keys), *keys, "", *words)
    return replace(request, commands=[command], script=scripts.READ, atomic=False)


def shaped(commands: Sequence[Command], reply: Any) -> list[Any]:
    """Convert the reply of the script to the replies of the commands."""
    _, _, *replies = reply
    return [
        dict(zip(each[::2], each[1::2], strict=True)) if command[0] == "HGETALL" else each
        for command, each in zip(commands, replies, strict=True)
    ]
