"""A request: the commands of one round trip, the server that gets them, and the time that the caller waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import inf
from typing import Any, Final, Protocol, TypeAlias

from lash_redis.protocol.scripts import Script

Command: TypeAlias = Sequence[Any]

KEYLESS: Final = frozenset(
    {"ACL", "CLUSTER", "CONFIG", "INFO", "PING", "ROLE", "SCAN", "SCRIPT", "SENTINEL", "TIME", "WAIT", "WAITAOF"}
)
"""Commands without a key that this package sends. Any primary may answer them."""

KEY_BEHIND_A_WORD: Final = frozenset({"MEMORY", "OBJECT"})
"""Commands in which the key follows a subcommand."""


class Server(Protocol):
    """What the message of a failure needs of the `Node` that a request was sent to."""

    address: str

    def explained(self, error: BaseException) -> str:
        """The text of an error of a request to this server, with its address and the remedy."""


class Lane(Enum):
    """The group of connections that a request takes. Requests of different lanes do not wait for each other."""

    SMALL = "small"
    """Short commands with short replies: leases, head checks, and scripts with less than 64 KiB of arguments."""
    LARGE = "large"
    """Reads whose size depends on the caller's data, and scripts with more than 64 KiB of arguments."""
    WAITING = "waiting"
    """Requests during which the server blocks the connection: WAIT and WAITAOF."""


@dataclass(slots=True)
class Request:
    """Commands for one server in one round trip.

    All keys of an `atomic` request are in one slot. The commands of any other request may be sent to several nodes of a
    cluster. Commands without a key are then sent to the node of the first key.
    """

    commands: Sequence[Command]
    key: Any = None
    """The key whose server gets the request; None for any primary."""
    lane: Lane = Lane.SMALL
    atomic: bool = False
    """Whether the commands are sent as one MULTI, so that all of them see the same state."""
    script: Script | None = None
    """The script that the first command runs by its SHA-1, or None.

    An error of the script fails the request. Errors of later commands are replies.
    """
    may_send_text: bool = True
    """Whether the text may be sent to a server that does not have the script."""
    replica: bool = False
    """Whether a replica of the key's primary is asked, if there is one. It is asked once, without retries."""
    waits: float = 0.0
    """The timeout of WAIT in seconds, by which the server may delay the reply."""
    deadline: float = inf
    """The deadline of the call, in seconds of the event loop's clock. The backend sets it."""
    asked: Server | None = None
    """The server that was asked last, for the message of a failure. The topology sets it."""

    @property
    def name(self) -> str:
        """The name of the request in error messages: its script, or its first command."""
        return str(self.commands[0][0]) if self.script is None else self.script.name

    def with_text(self) -> Request:
        """Return the same request with the script's text in place of its SHA-1."""
        assert self.script is not None
        (_, _, *arguments), *others = self.commands
        return replace(self, commands=[("EVAL", self.script.text, *arguments), *others])

    def part(self, commands: Sequence[Command]) -> Request:
        """Return a request for some of the commands."""
        return replace(self, commands=commands, key=first_key(commands))


def key_of(command: Command) -> Any:
    """Return the first key of a command; None if it has none."""
    name = command[0]
    if name in ("EVALSHA", "EVAL"):
        return command[3] if command[2] else None
    if name in KEY_BEHIND_A_WORD:
        return command[2]
    return None if name in KEYLESS or len(command) == 1 else command[1]


def first_key(commands: Sequence[Command]) -> Any:
    """Return the first key of the commands; None if they have none."""
    return next((key for key in map(key_of, commands) if key is not None), None)
