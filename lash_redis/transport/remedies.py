"""The message of a failed request: the server's address, what the server replied, and the remedy.

`failures` decides what an error means.
"""

from __future__ import annotations

from typing import Final

from redis import exceptions

from lash_redis.transport.failures import DENIED, is_out_of_memory
from lash_redis.transport.request import Server

PASSWORD_IN_URL: Final = "give one as in redis://user:password@host (write %40 for '@' and %2F for '/')"
CREDENTIALS_IN_URL: Final = "check user and password; in a URL write %40 for '@' and %2F for '/'"
DATABASE: Final = "use a lower number, or raise `databases` in the server's configuration"
AUTHORITY: Final = "name the authority that issued it by ssl_ca_certs"
HOST_NAME: Final = "connect by a name that the certificate has"
PRELOAD: Final = "run SessionCache.preload() or lash-redis preload from an account that may SCRIPT LOAD"
RIGHTS: Final = "grant the account what `lash-redis acl` prints for its namespace and role"
MEMORY: Final = "free memory, or raise maxmemory"
PRIMARY: Final = "connect to its primary; redis+sentinel:// and redis+cluster:// follow it"

BY_WORDS: Final = {
    "DB index": DATABASE,
    "MISCONF": "the server cannot write to its disk: check its log",
    "NOREPLICAS": "too few replicas are connected for min-replicas-to-write: check them",
    "READONLY": PRIMARY,
    "can't run this command": RIGHTS,
    "can't access at least one of the keys": RIGHTS,
    "ACL failure in script": RIGHTS,
    "max number of clients": "raise maxclients, or close connections",
}
"""The remedy for an error reply without a class of its own, by words in it. Some are of a command inside a script."""


def message(error: BaseException, request: str, server: Server | None) -> str:
    """Return the message that the caller gets. `server` is the one that was asked, None if none was asked yet."""
    if server is None:
        return f"{request}: {_text(error)}"
    if isinstance(error, exceptions.NoScriptError):
        return f"{server.address} does not have the script {request!r}, and allow_eval is False: {PRELOAD}"
    if isinstance(error, exceptions.NoPermissionError) and "'eval'" in str(error):
        return f"{server.address} does not have the script {request!r}, and this account may not send it: {PRELOAD}"
    return f"{request}: {server.explained(error)}"


def explained(error: BaseException, address: str) -> str:
    """Return the text of an error with the address of the server that was asked, and the remedy."""
    text = _text(error)
    if address not in text:
        is_reply = isinstance(error, (exceptions.ResponseError, exceptions.BusyLoadingError, *DENIED))
        text = f"{address} replied: {text}" if is_reply else f"{address}: {text}"
    advice = remedy(error)
    return f"{text}; {advice}" if advice else text


def explained_of_given(
    error: BaseException, address: str, *, database: int, is_encrypted: bool, was_answered: bool
) -> str:
    """Return the same for a given client, whose own errors name neither the cause nor the client's settings."""
    text = _text(error)
    if isinstance(error, DENIED):
        if "invalid username" in text:
            return f"{address} refused the credentials: {text}; check username= and password= of the client"
        return f"{address} requires a password; make the client with username= and password="
    if isinstance(error, exceptions.ResponseError) and "DB index" in text:
        return f"{address} has no database {database}: {text}; {DATABASE}"
    said = explained(error, address)
    if was_answered or not isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        return said
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{said}; {certificate_remedy(text)}"
    if is_encrypted:
        return f"{said}; if it is a port without TLS, make the client without ssl=True"
    if any(word in text.lower() for word in ("reset", "closed", "connection lost")):
        return f"{said}; if it is a TLS port, make the client with ssl=True"
    return said


def certificate_remedy(text: str) -> str:
    """Return the remedy for a certificate that was not accepted, by the text of OpenSSL."""
    if "mismatch" in text or "not valid for" in text:
        return HOST_NAME
    return "renew the certificate" if "expired" in text else AUTHORITY


def _text(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return f"OOM {text}" if is_out_of_memory(error) and "OOM" not in text else text


def remedy(error: BaseException) -> str | None:
    """Return what to do about an error of the server; None if that is not known."""
    if isinstance(error, exceptions.NoPermissionError):
        return RIGHTS
    if isinstance(error, exceptions.ReadOnlyError):
        return PRIMARY
    if is_out_of_memory(error):
        return MEMORY
    if not isinstance(error, exceptions.ResponseError):
        return None
    return next((remedy for words, remedy in BY_WORDS.items() if words in str(error)), None)
