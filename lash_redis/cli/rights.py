"""`lash-redis acl`: print the server commands that create the accounts of a store. Connects to no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lash_redis.acl import ROLES, SHOWS_ALL, Role, rules
from lash_redis.errors import InvalidRecord

MAY: Mapping[Role, str] = {
    "loader": "every store operation; may send scripts that the server does not know, and may preload",
    "runner": "every store operation, but only with scripts that a loader has preloaded (allow_eval=False)",
    "checker": "every store operation, and MEMORY USAGE, which stats needs; may audit with --no-scan",
    "auditor": "what checker may, and SCAN, which audit needs. SCAN shows this account the names of all keys of the "
    "database: session ids, owners and blob hashes of every namespace",
}
"""The rights of each role. All keys that a role can read or change are those of the namespace."""


def accounts(namespace: str, *, cluster: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "may": MAY[role],
            "shows_all_key_names": role in SHOWS_ALL,
            "rules": rules(namespace, role, cluster=cluster),
        }
        for role in ROLES
    ]


def lines(namespace: str, user: str, *, cluster: bool = False) -> list[str]:
    """Return two lines for each role: a comment, and the command that creates or resets the account `<user>-<role>`.

    Raises:
        InvalidRecord: `user` is not a valid name for an account.
    """
    if not user.isprintable() or not user or any(letter.isspace() or letter in "\"'<>" for letter in user):
        raise InvalidRecord("user", f"expected a name without spaces, quotes and angle brackets, got {user!r}")
    found = []
    for role in ROLES:
        words = " ".join(rules(namespace, role, cluster=cluster))
        found.append(f"# {user}-{role}: {MAY[role]}")
        found.append(f"ACL SETUSER {user}-{role} reset on ><password> {words}")
    return found
