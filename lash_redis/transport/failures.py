"""What an error means: may the call be retried, may it have been applied, may the topology be stale.

Errors come from three places: replies of a server, our connections, and the methods of a client that the caller gave.
All are classes of redis-py or descend from one, so that one module can judge them all.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError

from lash_redis.errors import BackendError, Corrupt
from lash_redis.protocol.keys import family_of
from lash_redis.protocol.scripts import Script
from lash_redis.transport.request import Command, key_of

# What our own connections raise


class NotSent(exceptions.ConnectionError):
    """The request did not leave this process."""


class Unreachable(NotSent):
    """No connection could be opened. The message names the address and the likely cause."""


class Unusable(NotSent):
    """No connection can be opened with these settings: a certificate, a credential or a database is wrong."""


class OutOfTime(NotSent):
    """The call's time was up before the request was sent. An earlier attempt's error says more."""


class Closed(NotSent):
    """The cache was closed."""


class ConnectionLost(exceptions.ConnectionError):
    """The connection ended before the reply arrived: the request may have been applied."""


class NoReply(exceptions.TimeoutError):
    """The reply did not arrive in time: the request may have been applied."""


class NoPrimary(exceptions.MasterDownError):
    """No known primary serves the key at the moment. Nothing was sent."""


class WrongTopology(exceptions.ResponseError):
    """The server belongs to a topology that the URL does not name."""


FAILURES: Final = (exceptions.RedisError, RuntimeError)
"""What sending raises. A RuntimeError is asyncio's, for a given client whose event loop has ended."""

# What servers reply

REPLY_CLASSES: Final[dict[str, type[exceptions.ResponseError]]] = {
    "ASK": exceptions.AskError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "CROSSSLOT": exceptions.ClusterCrossSlotError,
    "EXECABORT": exceptions.ExecAbortError,
    "MASTERDOWN": exceptions.MasterDownError,
    "MOVED": exceptions.MovedError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "TRYAGAIN": exceptions.TryAgainError,
}
"""The class of an error reply, by its first word. The word is then no part of the message, as in redis-py."""

CONNECTION_CLASSES: Final[dict[str, type[exceptions.ConnectionError]]] = {
    "LOADING": exceptions.BusyLoadingError,
    "NOAUTH": exceptions.AuthenticationError,
    "WRONGPASS": exceptions.AuthenticationError,
}
"""The same for replies that redis-py counts among connection errors."""


def reply_error(text: str) -> Exception:
    """The exception for an error reply. hiredis' parser calls it."""
    word, _, rest = text.partition(" ")
    known = REPLY_CLASSES.get(word) or CONNECTION_CLASSES.get(word)
    try:
        return exceptions.ResponseError(text) if known is None else known(rest)
    except (ValueError, IndexError):  # a redirect without an address
        return exceptions.ResponseError(text)


DENIED: Final = (exceptions.AuthenticationError, exceptions.AuthorizationError)
"""Connection errors by descent, but answers: another attempt gets the same one."""

NOT_NOW: Final = (
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
"""The server answered that it cannot do this now. Nothing was applied; a later attempt may succeed."""

NOT_NOW_WORDS: Final = ("READONLY", "NOREPLICAS")
"""The same inside an error message, where redis-py has no class for it: a script's call was refused."""

STARTS_NOT_NOW: Final = ("BUSY ", "UNBLOCKED")
"""Replies of a server that runs another script, and of one that ended a wait because its role changed."""

REFUSED_WRITE: Final = ("-OOM", "-READONLY", "MISCONF", "NOREPLICAS")
"""Errors that the first write of a script gets or none of them, so that nothing was written."""

STALE: Final = (
    exceptions.ClusterDownError,
    exceptions.ConnectionError,
    exceptions.ReadOnlyError,
    exceptions.TimeoutError,
)
"""Errors that may mean that another server serves the key. LOADING and MASTERDOWN are among them by descent."""

NOT_SENT_BY_REDIS_PY: Final = (
    "No connection available",
    "The previous master is now a slave",
    "Timeout connecting",
    "Too many connections",
)
"""How messages of redis-py begin where it sent nothing. The last but two replaces a READONLY reply under Sentinel."""

NOT_CONNECTED: Final = (ConnectionRefusedError, FileNotFoundError, PermissionError, socket.gaierror)
"""Causes of an error of redis-py before a connection was open."""


def is_transient(error: BaseException) -> bool:
    """Whether a later attempt may succeed."""
    if isinstance(error, NOT_NOW):
        return True
    if isinstance(error, exceptions.ResponseError):
        text = str(error)
        return text.startswith(STARTS_NOT_NOW) or any(word in text for word in NOT_NOW_WORDS)
    if isinstance(error, (*DENIED, Closed, Unusable)) or _has_cause(error, ssl.SSLCertVerificationError):
        return False
    return isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError)


def may_be_stale(error: BaseException) -> bool:
    """Whether the error may mean that another server serves the key by now."""
    if isinstance(error, (*DENIED, Unusable)):
        return False
    return isinstance(error, STALE) or (isinstance(error, exceptions.ResponseError) and "NOREPLICAS" in str(error))


def may_be_applied(error: BaseException, script: Script | None) -> bool:
    """Whether the request that failed with `error` may have been applied all the same."""
    if isinstance(error, RuntimeError):
        return True
    if isinstance(error, NOT_NOW + DENIED):
        return False
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        return not _was_not_sent(error)
    return script is not None and _failed_below_write(error, script)


def _was_not_sent(error: BaseException) -> bool:
    if isinstance(error, NotSent | MasterNotFoundError | exceptions.MaxConnectionsError):
        return True
    return _has_cause(error, NOT_CONNECTED) or str(error).startswith(NOT_SENT_BY_REDIS_PY)


def _failed_below_write(error: BaseException, script: Script) -> bool:
    """Whether a script failed after its first write may have run: Redis does not undo what it wrote."""
    line = re.search(r"user_script:(\d+)", str(error))
    if line is None or int(line[1]) < script.write_line:
        return False
    if is_out_of_memory(error) or isinstance(error, exceptions.ReadOnlyError):
        return False
    return not any(word in str(error) for word in REFUSED_WRITE)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, exceptions.OutOfMemoryError) or "-OOM" in str(error)


def is_wrong_type(error: BaseException) -> bool:
    """Whether a key holds another type than the command expects."""
    return isinstance(error, exceptions.ResponseError) and str(error).startswith("WRONGTYPE")


def is_passing(error: BaseException) -> bool:
    """Whether what failed may succeed a little later, or on another server. For calls that retry on their own."""
    if isinstance(error, BackendError) and error.__cause__ is not None:
        error = error.__cause__
    return is_transient(error) or isinstance(error, exceptions.MovedError | exceptions.AskError | OSError)


def _has_cause(error: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kinds):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


# What a call comes to


@dataclass(slots=True)
class Earlier:
    """Whether an attempt of a call that failed may have been applied all the same."""

    maybe_applied: bool = False

    def note(self, error: BaseException, script: Script | None, *, resends: bool) -> None:
        """Judge a failed attempt. `resends`: a given client sends again by itself, so its last error is not all."""
        resent = resends and isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError)
        if may_be_applied(error, script) or (resent and not isinstance(error, NOT_NOW + DENIED)):
            self.maybe_applied = True


def first_error(replies: list[Any]) -> Exception | None:
    """The first error among the replies of a read that is not about a key's type."""
    for reply in replies:
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            return reply
    return None


def check_types(commands: Sequence[Command], replies: list[Any], *, faults: bool = False) -> list[Any]:
    """The replies of a read. `faults`: a `Corrupt` stands in place of a reply about a key of another type.

    Raises:
        Corrupt: a key holds another type, and `faults` is False.
    """
    for place, reply in enumerate(replies):
        if isinstance(reply, Exception):
            key = key_of(commands[place])
            fault = Corrupt(family_of(key), key, "holds another type")
            if not faults:
                raise fault from reply
            replies[place] = fault
    return replies
