"""`lash-redis acl`: the accounts a store needs, as commands for the server. Nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lash_redis.acl import ROLES, Role, rules
from lash_redis.errors import InvalidRecord

MAY: Mapping[Role, str] = {
    "loader": "everything a store does; sends scripts that the server does not know, and may preload",
    "runner": "everything a store does, with scripts that a loader has preloaded (allow_eval=False); runs no Lua else",
    "auditor": "everything a store does, and looks for keys (SCAN): for audit",
}
"""What the account of each role may do, in the namespace and nowhere else."""


def accounts(namespace: str, *, cluster: bool = False) -> list[dict[str, Any]]:
    return [{"role": role, "rules": rules(namespace, role, cluster=cluster)} for role in ROLES]


def lines(namespace: str, user: str, *, cluster: bool = False) -> list[str]:
    """For each role what it may do, as a comment, and the command that makes the account `<user>-<role>` (anew).

    Raises:
        InvalidRecord: no account can have such a name.
    """
    if not user.isprintable() or not user or any(letter.isspace() or letter in "\"'<>" for letter in user):
        raise InvalidRecord("user", f"{user!r} is no name for an account: it takes no spaces, quotes or brackets")
    found = []
    for role in ROLES:
        words = " ".join(rules(namespace, role, cluster=cluster))
        found.append(f"# {user}-{role}: {MAY[role]}")
        found.append(f"ACL SETUSER {user}-{role} reset on ><password> {words}")
    return found
