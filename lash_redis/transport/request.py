"""What is sent in one round trip: the commands, where they go, and how long the caller waits."""

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
"""Commands of this package that name no key: any primary may answer them."""

KEY_BEHIND_A_WORD: Final = frozenset({"MEMORY", "OBJECT"})
"""Commands whose key follows a subcommand."""


class Server(Protocol):
    """The server that a request was sent to, as far as the message of a failure needs it: a `Node`."""

    address: str

    def explained(self, error: BaseException) -> str:
        """The text of an error of a request to this server, with its address and the remedy."""


class Lane(Enum):
    """Which of a node's connections a request takes, so that requests of different kinds do not wait for each other."""

    SMALL = "small"
    """Short commands with short replies: leases, head checks, and scripts with less than 64 KiB of arguments."""
    LARGE = "large"
    """Reads whose size the caller's data decides, and scripts with more arguments than that."""
    WAITING = "waiting"
    """Requests during which the server blocks the connection: WAIT and WAITAOF."""


@dataclass(slots=True)
class Request:
    """Commands for one server in one round trip.

    All keys of an `atomic` request lie in one slot. The commands of any other request may be spread over the nodes of
    a cluster; commands without a key then go where the first key lives.
    """

    commands: Sequence[Command]
    key: Any = None
    """The key that decides which server is asked; None: any primary."""
    lane: Lane = Lane.SMALL
    atomic: bool = False
    """Send as one MULTI, so that all commands see one moment."""
    script: Script | None = None
    """The script that the first command runs by its SHA-1. Its error fails the request; later ones are replies."""
    may_send_text: bool = True
    """Whether a server that does not have the script may be sent its text."""
    replica: bool = False
    """Ask a replica of the key's primary if there is one. It is asked once, without retries."""
    waits: float = 0.0
    """Seconds for which the server may hold the reply back on purpose: the timeout of WAIT."""
    deadline: float = inf
    """When the call ends, by the event loop's clock. The backend sets it."""
    asked: Server | None = None
    """The server that was asked last, for the message of a failure. The topology sets it."""

    @property
    def name(self) -> str:
        """What error messages call the request: its script, or its first command."""
        return str(self.commands[0][0]) if self.script is None else self.script.name

    def with_text(self) -> Request:
        """The same request with the script's text in place of its SHA-1."""
        assert self.script is not None
        (_, _, *arguments), *others = self.commands
        return replace(self, commands=[("EVAL", self.script.text, *arguments), *others])

    def part(self, commands: Sequence[Command]) -> Request:
        """A request for some of the commands."""
        return replace(self, commands=commands, key=first_key(commands))


def key_of(command: Command) -> Any:
    """The first key that a command names; None if it names none."""
    name = command[0]
    if name in ("EVALSHA", "EVAL"):
        return command[3] if command[2] else None
    if name in KEY_BEHIND_A_WORD:
        return command[2]
    return None if name in KEYLESS or len(command) == 1 else command[1]


def first_key(commands: Sequence[Command]) -> Any:
    """The first key that any of the commands names; None if none names one."""
    return next((key for key in map(key_of, commands) if key is not None), None)
