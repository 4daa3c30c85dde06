"""Classify errors: may the call be retried, may it have been applied, may the topology be stale.

Errors come from three sources: replies of a server, this package's connections, and the methods of a given client. All
are classes of redis-py or derive from one, so that one module can classify them.
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

# Errors of this package's connections


class NotSent(exceptions.ConnectionError):
    """The request did not leave this process."""


class Unreachable(NotSent):
    """No connection could be opened. The message names the address and the likely cause."""


class Unusable(NotSent):
    """No connection can be opened with these settings: a certificate, a credential or a database is wrong."""


class OutOfTime(NotSent):
    """The deadline of the call passed before the request was sent. The error of an earlier attempt names the cause."""


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
"""The errors that sending raises. asyncio raises RuntimeError for a given client whose event loop has ended."""

# Error replies of servers

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
"""The class of an error reply by its first word. As in redis-py, the message does not contain that word."""

CONNECTION_CLASSES: Final[dict[str, type[exceptions.ConnectionError]]] = {
    "LOADING": exceptions.BusyLoadingError,
    "NOAUTH": exceptions.AuthenticationError,
    "WRONGPASS": exceptions.AuthenticationError,
}
"""The same for replies that redis-py classifies as connection errors."""


def reply_error(text: str) -> Exception:
    """Return the exception for an error reply. The parser of hiredis calls this function."""
    word, _, rest = text.partition(" ")
    known = REPLY_CLASSES.get(word) or CONNECTION_CLASSES.get(word)
    try:
        return exceptions.ResponseError(text) if known is None else known(rest)
    except (ValueError, IndexError):  # a redirect without an address
        return exceptions.ResponseError(text)


DENIED: Final = (exceptions.AuthenticationError, exceptions.AuthorizationError)
"""Subclasses of ConnectionError that are replies: another attempt gets the same reply."""

NOT_NOW: Final = (
    exceptions.BusyLoadingError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
"""The server answered that it cannot do this now. Nothing was applied; a later attempt may succeed."""

NOT_NOW_WORDS: Final = ("READONLY", "NOREPLICAS")
"""Words in error messages of a script whose call was refused for now. redis-py has no class for these errors."""

STARTS_NOT_NOW: Final = ("BUSY ", "UNBLOCKED")
"""Starts of transient replies: the server runs another script, or it ended a wait because its role changed."""

REFUSED_WRITE: Final = ("-OOM", "-READONLY", "MISCONF", "NOREPLICAS")
"""Errors that refuse the first write of a script. A later write never gets them, so nothing was written."""

STALE: Final = (
    exceptions.ClusterDownError,
    exceptions.ConnectionError,
    exceptions.ReadOnlyError,
    exceptions.TimeoutError,
)
"""Errors after which another server may serve the key. LOADING and MASTERDOWN are subclasses of these."""

NOT_SENT_BY_REDIS_PY: Final = (
    "No connection available",
    "The previous master is now a slave",
    "Timeout connecting",
    "Too many connections",
)
"""Starts of messages of redis-py that mean that it sent nothing.

Under Sentinel, "The previous master is now a slave" replaces a READONLY reply.
"""

NOT_CONNECTED: Final = (ConnectionRefusedError, FileNotFoundError, PermissionError, socket.gaierror)
"""Causes of an error that redis-py raises before a connection is open."""


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
    """Whether another server may serve the key now."""
    if isinstance(error, (*DENIED, Unusable)):
        return False
    return isinstance(error, STALE) or (isinstance(error, exceptions.ResponseError) and "NOREPLICAS" in str(error))


def is_no_answer(error: BaseException) -> bool:
    """Whether a transient error is no reply of the server. A request that waits for it may try another server."""
    return is_transient(error) and not isinstance(error, (*NOT_NOW, exceptions.ResponseError))


def may_be_applied(error: BaseException, script: Script | None) -> bool:
    """Whether the request that failed with `error` may have been applied."""
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
    """Whether a script failed at or below its WRITE line. Redis does not undo what the script wrote before."""
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
    """Whether a call may succeed later, or on another server. For callers that retry by themselves, such as watches."""
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


# The outcome of a call


@dataclass(slots=True)
class Earlier:
    """Whether a failed attempt of a call may have been applied."""

    maybe_applied: bool = False

    def note(self, error: BaseException, script: Script | None, *, resends: bool) -> None:
        """Record a failed attempt. `resends`: a given client retries by itself, so an earlier error may be hidden."""
        resent = resends and isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError)
        if may_be_applied(error, script) or (resent and not isinstance(error, NOT_NOW + DENIED)):
            self.maybe_applied = True


def first_error(replies: list[Any]) -> Exception | None:
    """Return the first error among the replies of a read, WRONGTYPE excepted; None if there is none."""
    for reply in replies:
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            return reply
    return None


def check_types(commands: Sequence[Command], replies: list[Any], *, faults: bool = False) -> list[Any]:
    """Return the replies of a read after a check of the types of its keys.

    With `faults`, a `Corrupt` replaces the reply for a key of another type, and nothing is raised.

    Raises:
        Corrupt: a key has another type, and `faults` is False.
    """
    for place, reply in enumerate(replies):
        if isinstance(reply, Exception):
            key = key_of(commands[place])
            fault = Corrupt(family_of(key), key, "holds another type")
            if not faults:
                raise fault from reply
            replies[place] = fault
    return replies
