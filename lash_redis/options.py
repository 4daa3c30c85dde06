"""The options of a `SessionCache`, with units and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from lash_redis._validate import require_int, seconds_to_ms
from lash_redis.errors import InvalidRecord

MAX_SHARDS: Final = 1024
"""The largest number of hash tags of a namespace."""


class BlobProfile(Enum):
    """The size from which a blob is compressed (zlib level 1).

    A ref is the hash of the uncompressed bytes, so caches with different profiles can share a namespace.
    """

    LOW_LATENCY = None
    """Never compress."""
    BALANCED = 4096
    """Compress from 4,096 bytes on."""
    COMPACT = 1024
    """Compress from 1,024 bytes on."""


@dataclass(frozen=True, slots=True)
class StoreGcPolicy:
    """When a handle collects garbage on its own."""

    auto_run_every_commits: int = 0
    """Run `gc_unreachable` after this many successful commits of a handle; 0 for never."""

    def __post_init__(self) -> None:
        require_int("gc_policy.auto_run_every_commits", self.auto_run_every_commits, 0)


MAX_WAIT_MS: Final = 5_000
"""The longest wait of a commit for its durability, in ms."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """Wait until replicas have received the commit, by the command WAIT.

    The commit then survives the loss of its primary if one of those replicas is promoted.
    """

    n: int = 1
    """The number of replicas, 1 to 1,000."""
    timeout_ms: int = 1_000
    """The longest wait in ms, 1 to 5,000. The commit is made even if the time ends first."""

    def __post_init__(self) -> None:
        require_int("durability.n", self.n, 1, 1_000)
        require_int("durability.timeout_ms", self.timeout_ms, 1, MAX_WAIT_MS)


@dataclass(frozen=True, slots=True)
class Fsync:
    """Wait until the commit is on disk, by the command WAITAOF.

    The commit then survives the end of those server processes. The server needs an append-only file and must know
    WAITAOF (Redis 7.2, Valkey). Other servers confirm no commit.
    """

    replicas: int = 0
    """The number of replicas, 0 to 1,000, that must have the commit on disk in addition to the primary."""
    timeout_ms: int = 1_000
    """The longest wait in ms, 1 to 5,000. The commit is made even if the time ends first."""

    def __post_init__(self) -> None:
        require_int("durability.replicas", self.replicas, 0, 1_000)
        require_int("durability.timeout_ms", self.timeout_ms, 1, MAX_WAIT_MS)


Durability: TypeAlias = Replicas | Fsync


def require_durability(name: str, durability: Any) -> Durability | None:
    """Return `durability`, or raise `InvalidRecord` if it is not a `Replicas`, a `Fsync` or None."""
    if durability is not None and not isinstance(durability, Replicas | Fsync):
        raise InvalidRecord(name, f"expected Replicas, Fsync or None, got {durability!r}")
    return durability


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The behaviour of a `SessionCache`. All caches of one namespace must have the same `shards`.

    They may differ in every other option.
    """

    graph_checks: Literal["strict", "lenient"] = "strict"
    """Whether unknown parents and leaves are refused (`strict`) or accepted (`lenient`).

    Both refuse a node id that is taken.
    """

    blob_profile: BlobProfile = BlobProfile.LOW_LATENCY
    """The size from which new blobs are compressed. The default is never."""

    gc_policy: StoreGcPolicy = field(default_factory=StoreGcPolicy)
    """When a handle collects garbage on its own. The default is never."""

    shards: int = 64
    """The number of hash tags of the namespace, 1 to 1,024.

    Sessions of one shard can share blobs. The first write of the namespace fixes the number.
    """

    slide_on_load: bool = False
    """Whether `load_session` restarts the ttl of a session, as a commit does. It costs one more round trip."""

    deletion_marker_ttl: float = 86_400.0
    """Seconds for which the id of a deleted session accepts no writes; 0 for none.

    A reusable id accepts writes at once, and refuses late commits for so long.
    """

    durability: Durability | None = None
    """What a commit waits for in its round trip, reported by `RuntimeCommitResult.durable`.

    None: the commit waits for nothing, and a failover may lose it. A client that you pass needs a `socket_timeout`
    longer than the wait.
    """

    read_from: Literal["primary", "replica"] = "primary"
    """The servers that `load_session`, `load_head` and `load_session_meta` ask first.

    `replica`, in a cluster or under Sentinel: a replica of the primary. It returns one whole revision, which may be
    stale; a commit on a stale read is refused. If the replica has no complete answer, the primary is asked. All other
    calls, such as `refresh` and `update`, ask the primary.
    """

    allow_eval: bool = True
    """Whether the client sends the text of a script that the server does not know.

    If False, `SessionCache.preload` must have run, by an account that may load scripts.
    """

    blob_grace: float = 60.0
    """The longest time in seconds that a blob outlives its last holder.

    During the grace, a read that already has the ref still finds the blob. Blobs and the catalogue store deadlines
    rounded up to a multiple of it. With a longer grace, sessions with a sliding ttl write less.
    """

    upload_grace: float = 3600.0
    """Seconds that a blob of `put_blob` waits for a commit that names it."""

    blob_cache_bytes: int = 64 * 1024 * 1024
    """The size in bytes of the cache of blobs in this process; 0 for no cache.

    A process then fetches a tool state that many sessions share only once. A second cache of the same size keeps the
    tool states that this process wrote. An unchanged tool state is then encoded and hashed only once.
    """

    max_commit_bytes: int | None = 64 * 1024 * 1024
    """The largest number of bytes that one commit sends: nodes, bodies, usage and head. None for the limit of Redis.

    It also limits one upload and one meta record. Nodes that a replacement keeps are not sent and do not count.
    """

    max_commit_nodes: int | None = 10_000
    """The largest number of nodes that one commit sends; None for no limit.

    A commit is atomic, so it holds the server, for about 5 µs for each small node. Nodes that a replacement keeps are
    not sent and do not count.
    """

    max_bytes_in_flight: int = 64 * 1024 * 1024
    """The largest number of bytes of large commits that the cache sends at the same time, in one event loop.

    Commits and uploads of more than 64 KiB wait for each other, in the order of their calls. A commit that is larger
    than the limit is sent alone. In this process, a commit in flight takes about three times its bytes. The longest
    wait is `call_timeout`; if that is None, a commit waits as long as those before it are in progress.
    """

    max_pending_input_bytes: int = 1024 * 1024
    """The largest number of bytes of all pending inputs of one session. A session has at most 128 of them.

    Every read of the session transfers its pending inputs with the head.
    """

    call_timeout: float | None = None
    """The longest time of a call in seconds, retries and connection attempts included.

    The wait of `durability` is added. None means 8 s for one server and for servers that were never reached, and 60 s
    in a cluster, under Sentinel and for `embedded:///directory`. A cluster replaces a silent primary after 15 s,
    Sentinel after 30 s. When the time ends, a call raises `BackendError` if nothing was applied, and `OutcomeUnknown`
    if a reply was lost.

    It is also the longest time for which a write is repeated because other workers commit first, and a read because the
    session changed between its round trips: see `contention_seconds`. That time is 8 s if this is None, in a cluster,
    too.
    """

    retry_max_delay: float = 1.0
    """The longest pause between two attempts, in seconds.

    Pauses grow exponentially from 50 ms, with full jitter.
    """

    @property
    def contention_seconds(self) -> float:
        """The longest time in seconds for which a call is repeated because the session changes during it.

        This applies to reads of several round trips, to `Chat.append`, `edit` and `rewind`, and to a commit with
        `expected_head_revision=None`. The last attempt has a `call_timeout` of its own.
        """
        return 8.0 if self.call_timeout is None else self.call_timeout

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
        require_int("options.max_pending_input_bytes", self.max_pending_input_bytes, 1, 512 * 1024 * 1024 - 1024)
        require_int("options.max_bytes_in_flight", self.max_bytes_in_flight, 1)
        for name in ("max_commit_bytes", "max_commit_nodes"):
            if getattr(self, name) is not None:
                require_int(f"options.{name}", getattr(self, name), 1)


class Keep(Enum):
    """The type of `KEEP`, the default of a `ttl` argument and of the fields of a commit: what is stored stays.

    A session without a ttl of its own has the ttl of the cache.
    """

    KEEP = "keep"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP


class SeenRevision(Enum):
    """The type of `SEEN`, the default of a commit's expected revision: the revision that the handle saw last."""

    SEEN = "seen"

    def __repr__(self) -> str:
        return "SEEN"


SEEN: Final = SeenRevision.SEEN


def own_ttl_ms(ttl: float | Keep | None) -> int | None:
    """Convert a `ttl` argument to a session's own ttl in ms: 0 for no expiry, None to keep the present one."""
    if ttl is KEEP:
        return None
    return 0 if ttl is None else seconds_to_ms("ttl", ttl)
