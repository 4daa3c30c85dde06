"""The rights a store needs in Redis, and no more: as rules for ACL SETUSER."""

from __future__ import annotations

import re
from typing import Final, Literal

from lash_redis._validate import require_namespace
from lash_redis.errors import InvalidRecord
from lash_redis.protocol import scripts
from lash_redis.protocol.keys import Layout

Role = Literal["loader", "runner", "auditor"]

ROLES: Final[dict[Role, tuple[str, ...]]] = {
    "loader": ("evalsha", "eval", "script|load"),
    "runner": ("evalsha",),
    "auditor": ("evalsha", "eval", "scan"),
}
"""What each account may do beside the store's own commands.

`loader` sends scripts that the server does not know, and may `preload`. `runner` only runs what a loader has loaded
(`StoreOptions(allow_eval=False)`): a stolen account of it runs no Lua of its own. `auditor` may look for keys too.
"""

NATIVE: Final = (
    "exec", "exists", "get", "hget", "hgetall", "hkeys", "hlen", "hmget", "lindex", "llen", "lrange", "multi", "pttl",
    "set", "subscribe", "time", "unsubscribe", "wait", "zcard", "zrange", "zrangebyscore", "zrevrangebyscore",
    "zscore",
)  # fmt: skip
"""The commands a store sends as they are. HELLO and AUTH need no right; PING is a health check's."""

CLUSTER: Final = ("asking", "cluster|slots", "readonly", "ssubscribe", "sunsubscribe")
"""What finds the nodes of a cluster, follows a moving slot, reads from a replica, and listens to a slot's channels."""

_CALL = re.compile(r"call\('([A-Z]+)'")
_SIZES = ("llen", "hlen")
"""Called by a name that is handed over: `mismatch` in `lua/include/head.lua`."""
_CLUSTERED = {"spublish"}
"""Called in a cluster alone; Redis 6.2 does not even know its name."""


def commands_of(role: Role, *, cluster: bool = False) -> list[str]:
    """Every command the account needs, in lower case, a subcommand behind `|`."""
    inside = {name.lower() for script in scripts.every() for name in _CALL.findall(script.text)}
    called = {*NATIVE, *ROLES[role], *inside, *_SIZES}
    return sorted(called | {*CLUSTER} if cluster else called - _CLUSTERED)


def key_patterns(namespace: str) -> list[str]:
    """Glob patterns of every key of the namespace, and of no other."""
    layout = Layout(require_namespace(namespace), 1)
    return [f"{layout.prefix(0).partition(':0')[0]}:*", layout.key]


def rules(namespace: str, role: Role, *, cluster: bool = False) -> list[str]:
    """The words behind `ACL SETUSER <name> on ><password>`: nothing is allowed but what stands here.

    `cluster`: for a node of a cluster; the account is to be made on every node, replicas too. Under Sentinel it is to
    be made on every data node; the account on the sentinels needs `+sentinel|masters +sentinel|slaves`.

    Redis and Valkey from 6.2 on (a cluster of 6.2 does not know `+spublish`, and does without). A client that selects a
    database other than 0 needs `+select`, one with a `health_check_interval` `+ping`, `Fsync` (Redis 7.2) `+waitaof`.
    """
    if role not in ROLES:
        raise InvalidRecord("role", f"expected one of {', '.join(ROLES)}, got {role!r}")
    patterns = [f"~{pattern}" for pattern in key_patterns(namespace)]
    channels = [f"&{key_patterns(namespace)[0]}"]  # a channel is named like a key
    allowed = (f"+{name}" for name in commands_of(role, cluster=cluster))
    return ["resetkeys", "resetchannels", *patterns, *channels, "-@all", *allowed]
