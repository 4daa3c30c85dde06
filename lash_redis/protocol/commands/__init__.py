"""Every command of the store as a pair: a model turned into what is sent, a reply turned into a model or an error.

No I/O here. A write is a `ScriptCall`; a read is a list of native commands, because Redis returns a list 7 to 12 times
faster natively than through Lua. Callers write `commands.<module>.<function>`; the modules are named by their subject.
"""

from lash_redis.protocol.commands import (
    audit,
    calls,
    catalogue,
    commit,
    durability,
    lease,
    lifecycle,
    maintenance,
    reads,
    refresh,
    watching,
)

__all__ = [
    "audit",
    "calls",
    "catalogue",
    "commit",
    "durability",
    "lease",
    "lifecycle",
    "maintenance",
    "reads",
    "refresh",
    "watching",
]
