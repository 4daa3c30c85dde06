"""`lash-redis stats`: the numbers of sessions and nodes of a namespace, and their memory by a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rich.console import Console
from rich.text import Text

from lash_redis.cache import SessionCache
from lash_redis.cli.bar import Bar, progress_bar
from lash_redis.cli.connection import is_refused, opened_if_used
from lash_redis.cli.output import counted, plain, shown_bytes
from lash_redis.cli.transfer import listed_count
from lash_redis.errors import BackendError, Corrupt
from lash_redis.listing import walk_ids
from lash_redis.protocol.commands.documents import decode_account
from lash_redis.protocol.heads import decode_components, decode_facts
from lash_redis.protocol.keys import SessionKeys

_Chosen: TypeAlias = tuple[SessionKeys, Sequence[str]]
"""A session of the sample, and the keys of the blobs that it holds."""

CHUNK = 50
"""Sessions of the sample that are measured in one round trip."""


@dataclass(slots=True)
class Sample:
    """The memory of some sessions, evenly distributed over the catalogue, by MEMORY USAGE."""

    session_count: int = 0
    bytes: int = 0
    """Memory of the sessions' own keys."""
    blobs: dict[str, int] = field(default_factory=dict)
    """Memory of the blobs that these sessions hold, by key. Other sessions may hold them, too."""
    refusal: str = ""
    """Why the server refused to measure; "" if it did not."""

    @property
    def mean(self) -> float:
        """Bytes of one session."""
        return self.bytes / self.session_count if self.session_count else 0.0


@dataclass(slots=True)
class Stats:
    """The figures of a namespace."""

    namespace: str
    session_count: int = 0
    node_count: int = 0
    """Nodes of all sessions, without tombstoned ones."""
    record_bytes: int = 0
    """Bytes of the records of all nodes."""
    document_count: int = 0
    """Documents of all sessions, parts included."""
    unreadable_count: int = 0
    """Sessions whose head cannot be read; their nodes are not counted."""
    sample: Sample = field(default_factory=Sample)

    @property
    def estimate(self) -> int:
        """Estimated memory of the own keys of all sessions."""
        return round(self.sample.mean * self.session_count)

    def to_json(self) -> dict[str, Any]:
        sample = self.sample
        memory = {
            "sample_session_count": sample.session_count,
            "sample_bytes": sample.bytes,
            "estimated_bytes": self.estimate,
            "sample_blob_count": len(sample.blobs),
            "sample_blob_bytes": sum(sample.blobs.values()),
        }
        return {
            "namespace": self.namespace,
            "session_count": self.session_count,
            "node_count": self.node_count,
            "record_bytes": self.record_bytes,
            "document_count": self.document_count,
            "unreadable_count": self.unreadable_count,
            "memory": None if sample.refusal else memory,
            "memory_refusal": sample.refusal or None,
        }


async def measure(url: str, namespace: str, sample: int) -> Stats | None:
    """Count the sessions and nodes of a namespace, and measure at most `sample` sessions; None if it is not in use.

    One round trip for every 1,000 sessions, and one for every 50 sessions of the sample. No key is written.

    Raises:
        BackendError: the server failed, or refused a command other than MEMORY.
    """
    async with opened_if_used(url, namespace) as cache:
        if cache is None:
            return None
        stats = Stats(namespace)
        listed = await listed_count(cache)
        with progress_bar() as bar:
            bar.start("sessions", listed)
            chosen = await _count(cache, stats, max(1, -(-listed // sample)), bar)
        await _measure(cache, chosen, stats.sample)
        return stats


async def _count(cache: SessionCache, stats: Stats, step: int, bar: Bar) -> list[_Chosen]:
    """Count every session; return every `step`th for the sample."""
    chosen: list[_Chosen] = []
    async for ids in walk_ids(cache.shared):
        every = [cache.layout.session(session_id) for session_id in ids]
        trip = [("HMGET", keys.head, "facts", "meta", "refs", "documents") for keys in every]
        for keys, head in zip(every, await cache.shared.read(trip, atomic=False, faults=True), strict=True):
            if isinstance(head, Corrupt) or head[0] is not None or head[1] is not None:  # otherwise it expired
                held = _count_one(stats, keys, head)
                if stats.session_count % step == 0:
                    chosen.append((keys, held))
                stats.session_count += 1
        bar.advance(len(ids))
    return chosen


def _count_one(stats: Stats, keys: SessionKeys, head: Sequence[bytes | None] | Corrupt) -> list[str]:
    """Add the figures of a session's head; return the keys of the blobs that it holds."""
    try:
        if isinstance(head, Corrupt):
            raise head
        stored, _, refs, account = head
        if stored is None:  # without a commit
            stats.document_count += decode_account(account, keys.head).size
            return []
        facts = decode_facts(stored, keys.head)
        held = [keys.blob(ref) for ref in decode_components(refs or b"", keys.head).held]
    except Corrupt:
        stats.unreadable_count += 1
        return []
    stats.node_count += facts.live
    stats.record_bytes += facts.bytes
    return held


async def _measure(cache: SessionCache, chosen: Sequence[_Chosen], sample: Sample) -> None:
    """Measure the keys of the chosen sessions; if the server refuses, only note its reason."""
    for at in range(0, len(chosen), CHUNK):
        group = chosen[at : at + CHUNK]
        own = [key for keys, _ in group for key in (*keys.own, keys.documents, keys.names)]
        blobs = list(dict.fromkeys(key for _, held in group for key in held if key not in sample.blobs))
        try:
            sizes = await cache.shared.read([("MEMORY", "USAGE", key) for key in (*own, *blobs)], atomic=False)
        except BackendError as error:
            if not is_refused(error):
                raise
            sample.refusal = str(error)
            return
        sample.session_count += len(group)
        sample.bytes += sum(size or 0 for size in sizes[: len(own)])  # None: the session has no such key
        sample.blobs |= dict(zip(blobs, (size or 0 for size in sizes[len(own) :]), strict=True))


def print_stats(stats: Stats, screen: Console) -> None:
    sample = stats.sample
    rows = [
        ("namespace", stats.namespace),
        ("sessions", f"{stats.session_count:,}"),
        ("nodes", f"{stats.node_count:,}, {shown_bytes(stats.record_bytes)} of records"),
    ]
    if stats.document_count:
        rows.append(("documents", f"{stats.document_count:,}"))
    if sample.refusal:
        rows.append(("memory", f"not measured: {sample.refusal}"))
        rows.append(("", "use an account that may run MEMORY USAGE: the checker of lash-redis acl"))
    else:
        of = f"the mean of a sample of {counted(sample.session_count, 'session')} is {shown_bytes(sample.mean)}"
        rows.append(("memory", f"about {shown_bytes(stats.estimate)} in keys of sessions: {of}"))
        blobs = f"{len(sample.blobs):,} held by the sample, {shown_bytes(sum(sample.blobs.values()))}"
        rows.append(("blobs", f"{blobs}; other sessions may hold the same"))
    if stats.unreadable_count:
        rows.append(("unreadable", f"{counted(stats.unreadable_count, 'session')}; run lash-redis audit"))
    for name, value in rows:
        screen.print(Text(name.ljust(12), "dim").append_text(plain(value)), soft_wrap=True)
