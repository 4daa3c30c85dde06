"""Everything a host may set, with its unit and its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from lash_redis._validate import require_int, seconds_to_ms
from lash_redis.errors import InvalidRecord

MAX_SHARDS: Final = 1024
"""How many hash tags a namespace can be spread over."""


class BlobProfile(Enum):
    """When a blob is compressed (zlib level 1), by its size. The ref is of the bytes before, so profiles mix."""

    LOW_LATENCY = None
    """Never."""
    BALANCED = 4096
    """From 4,096 bytes on."""
    COMPACT = 1024
    """From 1,024 bytes on."""


@dataclass(frozen=True, slots=True)
class StoreGcPolicy:
    """When a handle collects garbage by itself."""

    auto_run_every_commits: int = 0
    """Run `gc_unreachable` after every so many successful commits of a handle; 0 for never."""

    def __post_init__(self) -> None:
        require_int("gc_policy.auto_run_every_commits", self.auto_run_every_commits, 0)


MAX_WAIT_MS: Final = 5_000
"""A commit waits no longer for its durability."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """A commit is durable when `n` replicas have received it: it survives the loss of its primary, if one of them is
    promoted. It does not wait longer than `timeout_ms`. Source: the command WAIT.
    """

    n: int = 1
    timeout_ms: int = 1_000

    def __post_init__(self) -> None:
        require_int("durability.n", self.n, 1, 1_000)
        require_int("durability.timeout_ms", self.timeout_ms, 1, MAX_WAIT_MS)


@dataclass(frozen=True, slots=True)
class Fsync:
    """A commit is durable when it is on the primary's disk, and on those of `replicas` replicas.

    It then survives the end of these processes. It does not wait longer than `timeout_ms`. Needs an append-only file
    and a server that knows WAITAOF (Redis 7.2, Valkey): on others no commit is confirmed.
    """

    replicas: int = 0
    timeout_ms: int = 1_000

    def __post_init__(self) -> None:
        require_int("durability.replicas", self.replicas, 0, 1_000)
        require_int("durability.timeout_ms", self.timeout_ms, 1, MAX_WAIT_MS)


Durability: TypeAlias = Replicas | Fsync


def require_durability(name: str, durability: Any) -> Durability | None:
    if durability is not None and not isinstance(durability, Replicas | Fsync):
        raise InvalidRecord(name, f"expected Replicas, Fsync or None, got {durability!r}")
    return durability


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a `SessionCache` behaves. Two caches of one namespace may differ in all but `shards`."""

    graph_checks: Literal["strict", "lenient"] = "strict"
    """`lenient` takes any parent and any leaf, as the first lash store did; a taken id is refused either way."""

    blob_profile: BlobProfile = BlobProfile.LOW_LATENCY

    gc_policy: StoreGcPolicy = field(default_factory=StoreGcPolicy)

    shards: int = 64
    """Hash tags the namespace is spread over, 1 to 1,024. Sessions share blobs within one. Fixed at the first write."""

    slide_on_load: bool = False
    """Whether `load_session` lets a session live its ttl anew, as a commit does; then it takes a round trip more."""

    deletion_marker_ttl: float = 86_400.0
    """Seconds for which the id of a deleted session takes no writes; 0 for none."""

    durability: Durability | None = None
    """What a commit waits for before it is answered (`RuntimeCommitResult.durable`), in the same round trip.

    None: for nothing; the primary alone has it, and a failover may lose it. A client that is given needs a
    `socket_timeout` above the wait.
    """

    read_from: Literal["primary", "replica"] = "primary"
    """Who is asked by `load_session`, `load_head` and `load_session_meta`.

    `replica`: one of those that follow the primary, in a cluster or under Sentinel; what it shows is one revision, but
    may not be the newest: a commit that builds on it is then refused. Where it has nothing, or nothing whole, or does
    not answer, the primary is asked after all. `refresh`, `update` and all else ask the primary.
    """

    allow_eval: bool = True
    """Whether a script that the server does not know is sent as text. Without, `SessionCache.preload` must have run."""

    blob_grace: float = 60.0
    """Seconds a blob outlives its last holder at the most, so that a read that has just learned its ref still finds it.

    Deadlines are rounded up to a multiple of it where blobs and the catalogue note them: with a longer grace, sessions
    that slide write less.
    """

    upload_grace: float = 3600.0
    """Seconds a blob stored by `put_blob` waits for a commit that names it."""

    blob_cache_bytes: int = 64 * 1024 * 1024
    """Bytes of blobs kept in this process, so that a tool state many sessions share is fetched once.

    As much again for tool states that were written, so that one which did not change is encoded and hashed once.
    """

    max_commit_bytes: int | None = 64 * 1024 * 1024
    """Limit on what one commit sends (nodes, bodies, usage and head), on an upload and on meta; None for Redis's own.

    Nodes that a replacement keeps are not sent.
    """

    max_commit_nodes: int | None = 50_000
    """Limit on the nodes that one commit sends; None for no limit."""

    call_timeout: float | None = None
    """Seconds for a whole call, its retries and connection attempts included; the wait of `durability` is added to it.

    None: 8 s for one server, and for servers none of which was ever reached; 60 s in a cluster and under Sentinel,
    where a lost primary is replaced (a cluster waits 15 s for a silent primary, Sentinel 30 s). When the time is up, a
    call fails with `BackendError` where nothing was applied, and with `OutcomeUnknown` where a reply was lost.
    """

    retry_max_delay: float = 1.0
    """Longest pause between two attempts, in seconds; pauses grow exponentially from 50 ms, with full jitter."""

    @property
    def blob_grace_ms(self) -> int:
        return max(1, round(self.blob_grace * 1000))

    @property
    def deletion_marker_ms(self) -> int:
        return 0 if self.deletion_marker_ttl == 0 else seconds_to_ms("deletion_marker_ttl", self.deletion_marker_ttl)

    def __post_init__(self) -> None:
        if self.graph_checks not in ("strict", "lenient"):
            raise InvalidRecord("options.graph_checks", f"expected 'strict' or 'lenient', got {self.graph_checks!r}")
        if not isinstance(self.blob_profile, BlobProfile):
            raise InvalidRecord("options.blob_profile", f"expected a BlobProfile, got {self.blob_profile!r}")
        if not isinstance(self.gc_policy, StoreGcPolicy):
            raise InvalidRecord("options.gc_policy", f"expected a StoreGcPolicy, got {self.gc_policy!r}")
        require_durability("options.durability", self.durability)
        if self.read_from not in ("primary", "replica"):
            raise InvalidRecord("options.read_from", f"expected 'primary' or 'replica', got {self.read_from!r}")
        require_int("options.shards", self.shards, 1, MAX_SHARDS)
        for name in ("slide_on_load", "allow_eval"):
            if type(getattr(self, name)) is not bool:
                raise InvalidRecord(f"options.{name}", f"expected True or False, got {getattr(self, name)!r}")
        if self.deletion_marker_ttl != 0:
            seconds_to_ms("options.deletion_marker_ttl", self.deletion_marker_ttl)
        for name in ("blob_grace", "upload_grace", "retry_max_delay"):
            seconds_to_ms(f"options.{name}", getattr(self, name))
        if self.call_timeout is not None:
            seconds_to_ms("options.call_timeout", self.call_timeout)
        require_int("options.blob_cache_bytes", self.blob_cache_bytes, 0)
        for name in ("max_commit_bytes", "max_commit_nodes"):
            if getattr(self, name) is not None:
                require_int(f"options.{name}", getattr(self, name), 1)


class Keep(Enum):
    """What a `ttl` argument says by default."""

    TTL = "keep"
    """The session's own ttl stays, or the cache's where it has none of its own."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.TTL


def own_ttl_ms(ttl: float | Keep | None) -> int | None:
    """A session's own ttl in ms, 0 for never; None where it keeps what it has."""
    if ttl is KEEP:
        return None
    return 0 if ttl is None else seconds_to_ms("ttl", ttl)
