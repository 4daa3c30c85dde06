"""The smallest set of rights that a store needs in Redis, as rules for ACL SETUSER."""

from __future__ import annotations

import re
from typing import Final, Literal

from lash_redis._validate import require_namespace
from lash_redis.errors import InvalidRecord
from lash_redis.protocol import scripts
from lash_redis.protocol.keys import Layout

Role = Literal["loader", "runner", "checker", "auditor"]

ROLES: Final[dict[Role, tuple[str, ...]]] = {
    "loader": ("evalsha", "eval", "script|load"),
    "runner": ("evalsha",),
    "checker": ("evalsha", "eval", "memory|usage"),
    "auditor": ("evalsha", "eval", "scan", "memory|usage"),
}
"""The commands of each role in addition to the store's common ones.

`loader` may send scripts that the server does not know, and may `preload`. `runner` may only run scripts that a loader
has loaded (`StoreOptions(allow_eval=False)`), so a stolen runner account cannot run other Lua. `checker` may also
measure the memory of keys, for `lash-redis stats`. `auditor` may also SCAN, for an audit of keys that no catalogue
names. No rule of Redis limits SCAN to some keys: see `SHOWS_ALL`. Every role may audit with `scan=False`.
"""

SHOWS_ALL: Final[frozenset[Role]] = frozenset({"auditor"})
"""The roles that see the names of all keys of the database, by SCAN: the session ids, owners and blob hashes of every
namespace. They cannot read or change the values of other namespaces.
"""

NATIVE: Final = (
    "exec", "exists", "get", "hget", "hgetall", "hkeys", "hlen", "hmget", "hvals", "lindex", "llen", "lrange", "multi",
    "pttl", "set", "subscribe", "time", "unsubscribe", "wait", "zcard", "zrange", "zrangebyscore", "zrevrangebyscore",
    "zscore",
)  # fmt: skip
"""The native commands that a store sends. HELLO and AUTH need no right. PING is sent only by health checks."""

CLUSTER: Final = ("asking", "cluster|slots", "readonly", "ssubscribe", "sunsubscribe")
"""The commands that discover the nodes of a cluster, follow a migrating slot, read from a replica, and watch sessions.
"""

_CALL = re.compile(r"call\('([A-Z]+)'")
_SIZES = ("llen", "hlen")
"""Commands that a script calls by the value of a variable: `mismatch` in `lua/include/head.lua`."""
_CLUSTERED = {"spublish"}
"""Commands that a script calls only in a cluster. Redis 6.2 does not accept their names in a rule."""


def commands_of(role: Role, *, cluster: bool = False) -> list[str]:
    """Return every command that the role needs, in lower case; a subcommand follows `|`."""
    in_scripts = {name.lower() for script in scripts.every() for name in _CALL.findall(script.text)}
    needed = {*NATIVE, *ROLES[role], *in_scripts, *_SIZES}
    return sorted(needed | {*CLUSTER} if cluster else needed - _CLUSTERED)


def key_patterns(namespace: str) -> list[str]:
    """Return glob patterns that match every key of the namespace and no other key."""
    layout = Layout(require_namespace(namespace), 1)
    return [f"{layout.prefix(0).partition(':0')[0]}:*", layout.key]


def rules(namespace: str, role: Role, *, cluster: bool = False) -> list[str]:
    """Return the rules that follow `ACL SETUSER <name> on ><password>`. They deny everything that they do not name.

    The account can read and change keys of the namespace only. The roles of `SHOWS_ALL` also see the names of the keys
    of other namespaces.

    `cluster`: the account is for a cluster; create it on every node, including replicas. Under Sentinel, create it on
    every data node. The account on the sentinels needs `+sentinel|masters +sentinel|slaves`.

    The rules are valid for Redis and Valkey from 6.2 on, except `+spublish`: omit it in a cluster of Redis 6.2, which
    does not need it. Some clients need more: `+select` for a database other than 0, `+ping` for a
    `health_check_interval`, `+waitaof` for `Fsync` (Redis 7.2).

    Raises:
        InvalidRecord: `namespace` or `role` is invalid.
    """
    if role not in ROLES:
        raise InvalidRecord("role", f"expected one of {', '.join(ROLES)}, got {role!r}")
    patterns = [f"~{pattern}" for pattern in key_patterns(namespace)]
    channels = [f"&{key_patterns(namespace)[0]}"]  # a channel is named like a key
    allowed = (f"+{name}" for name in commands_of(role, cluster=cluster))
    return ["resetkeys", "resetchannels", *patterns, *channels, "-@all", *allowed]
