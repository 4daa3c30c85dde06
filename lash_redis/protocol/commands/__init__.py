"""The commands of the store, each as a pair of functions: one encodes the request, one decodes the reply.

There is no I/O here. A write is a `ScriptCall`. A read is a list of native commands, because Redis returns a list 7 to
12 times faster natively than through Lua. Callers write `commands.<module>.<function>`. Each module has one subject.
"""

from lash_redis.protocol.commands import (
    audit,
    blob_audit,
    calls,
    catalogue,
    commit,
    documents,
    durability,
    inputs,
    lease,
    lifecycle,
    maintenance,
    pages,
    paths,
    prepared_commit,
    reads,
    refresh,
    stream_audit,
    streams,
    vacuum,
    watching,
)

__all__ = [
    "audit",
    "blob_audit",
    "calls",
    "catalogue",
    "commit",
    "documents",
    "durability",
    "inputs",
    "lease",
    "lifecycle",
    "maintenance",
    "pages",
    "paths",
    "prepared_commit",
    "reads",
    "refresh",
    "stream_audit",
    "streams",
    "vacuum",
    "watching",
]
