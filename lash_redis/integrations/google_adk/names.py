"""The ids under which the sessions and states of ADK are stored.

| id of the stored session | content | owner |
| --- | --- | --- |
| `adk/session/<app>/<user>/<session>` | a session of ADK: its events and its own state | the user |
| `adk/user/<app>/<user>` | the `user:` state | the user |
| `adk/app/<app>` | the `app:` state | none |
| `adk/users/<app>/<user>` | an entry of the app's list of users: a meta record alone | `adk/users/<app>` |

In a name, `/`, `%`, control characters and lone surrogates are percent-encoded. So names of any characters give
distinct ids. The names of a list are decoded from its ids, so they are not hashed, unlike the owner (see `ids`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote

from lash_redis.errors import InvalidRecord
from lash_redis.integrations.ids import id_of

USERS: Final = "adk/users/"
"""What the owners of the lists of users begin with."""
_RESERVED = re.compile("[%/\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class UserNames:
    """The ids of one user of an app."""

    app_name: str
    user_id: str

    def __post_init__(self) -> None:
        require_text("app_name", self.app_name)
        require_text("user_id", self.user_id)

    @property
    def owner(self) -> str:
        """The owner of the user's sessions: the user's id, or its hash if it is invalid or begins with `USERS`."""
        return id_of(self.user_id, reserved=USERS)

    @property
    def app_state(self) -> str:
        return f"adk/app/{escape(self.app_name)}"

    @property
    def user_state(self) -> str:
        return f"adk/user/{escape(self.app_name)}/{escape(self.user_id)}"

    @property
    def user_entry(self) -> str:
        return f"{users_of(self.app_name)}/{escape(self.user_id)}"

    @property
    def session_prefix(self) -> str:
        """What the ids of the user's sessions begin with."""
        return f"adk/session/{escape(self.app_name)}/{escape(self.user_id)}/"

    def session(self, session_id: str) -> str:
        return self.session_prefix + escape(session_id)


def user_names_of(session: str) -> UserNames:
    """Return the names of the user to whom a stored session belongs, by its id."""
    _, _, app_name, user_id, _ = session.split("/")
    return UserNames(unescape(app_name), unescape(user_id))


def users_of(app_name: str) -> str:
    """Return the owner of the entries of an app's list of users. An entry's id is this, `/`, and the user's name."""
    require_text("app_name", app_name)
    return f"{USERS}{escape(app_name)}"


def stripped(session_id: str) -> str:
    """Return a session's id without the spaces around it, as the SDK's in-memory service does."""
    require_text("session_id", session_id)
    return session_id.strip()


def escape(name: str) -> str:
    return _RESERVED.sub(lambda found: quote(found[0], safe="", errors="surrogatepass"), name)


def unescape(text: str) -> str:
    return unquote(text, errors="surrogatepass")


def require_text(field: str, value: Any) -> None:
    """Raise `InvalidRecord` if a name is no plain string. An Enum that is a string has two texts."""
    if type(value) is not str:
        raise InvalidRecord(field, f"expected a string, got {type(value).__name__}")
