"""`lash-redis doctor`: check whether a server is fit to store sessions.

The account needs no right that a store does not need. A finding is `unknown` if the server refuses the command for it.
One key remains afterwards, the layout of the namespace `lash-doctor`. The scratch session expires after a minute.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import uuid4

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lash_redis._validate import require_namespace
from lash_redis.cache import SessionCache
from lash_redis.cli.connection import Connection, is_refused
from lash_redis.cli.output import counted, percentile, plain, shown_bytes, shown_url
from lash_redis.errors import BackendError, StoreError
from lash_redis.models import (
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    PersistedTurnState,
    RuntimeCommit,
    SessionMeta,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
    ToolState,
)
from lash_redis.options import StoreOptions
from lash_redis.protocol.keys import Layout
from lash_redis.session.store import RedisSessionStore
from lash_redis.transport import remedies

State = Literal["ok", "warn", "fail", "unknown"]
Audience = Literal["operator", "developer"]
Answer = TypeVar("Answer")

NAMESPACE = "lash-doctor"
SCRATCH_TTL = 60.0
ROUNDS = 20
CLOCK_TOLERANCE = 1.0
"""Maximum difference of the clocks, in seconds, without a warning."""

ADMINISTRATOR = "run doctor as an administrator: the accounts of `lash-redis acl` lack this right"
"""The advice for what `lash-redis acl` grants to no account."""

MINIMUM = {"redis": (6, 2), "valkey": (7, 2)}

_BY_WEIGHT: tuple[State, ...] = ("fail", "warn", "unknown", "ok")

_MARKS: Mapping[State, tuple[str, str]] = {
    "ok": ("✔ ok", "green"),
    "warn": ("! warn", "yellow"),
    "fail": ("✘ fail", "bold red"),
    "unknown": ("? unknown", "blue"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `advice` is what the audience should do, "" for nothing.

    An operator changes the server or its accounts, a developer the application that connects to it.
    """

    check: str
    state: State
    found: str
    advice: str = ""
    audience: Audience = "operator"

    def to_json(self) -> dict[str, str | None]:
        return {
            "check": self.check,
            "state": self.state,
            "found": self.found,
            "advice": self.advice,
            "audience": self.audience if self.advice else None,
        }


async def examine(url: str, namespace: str) -> list[Finding]:
    """Examine a server; in a cluster or under Sentinel every server, with the worst finding of each check.

    Raises:
        BackendError: the server cannot be reached, or refuses the credentials.
    """
    source = Connection(url)
    try:
        ping = await _timed(lambda: _ask(source, "PING"))
        if isinstance(ping, BackendError) and not is_refused(ping):
            raise ping
        replies = await _ask_everywhere(source, "INFO")
        infos = replies if isinstance(replies, list) else [None]
        denied = "" if isinstance(replies, list) else _said(replies)
        saves = await _ask_everywhere(source, "CONFIG", "GET", "save")
        snapshots = saves if isinstance(saves, list) else [None] * len(infos)
        primaries = [info for info in infos if info is None or info.get("role") != "slave"] or infos[:1]
        return [
            _worst(_version(info, denied) for info in infos),
            _topology(primaries, denied, is_cluster=await source.is_cluster),
            _worst(_role(info, denied) for info in primaries),
            _worst(_eviction(info, denied) for info in infos),
            _worst(_persistence(info, saved, denied) for info, saved in zip(infos, snapshots, strict=True)),
            await _clock(source),
            await _layout(source, namespace),
            *await _check_operations(source, ping),
        ]
    finally:
        await source.close()


def _worst(findings: Iterable[Finding]) -> Finding:
    """Return the worst of several findings."""
    return min(findings, key=lambda finding: _BY_WEIGHT.index(finding.state))


async def _ask_everywhere(source: Connection, *command: Any) -> list[Any] | BackendError:
    """Send a command to every server; return the replies, or the error if a server refuses it.

    Raises:
        BackendError: a server did not answer.
    """
    try:
        return await source.ask_everywhere(*command)
    except BackendError as error:
        if not is_refused(error):
            raise
        return error


async def _ask(source: Connection, *command: Any) -> Any:
    """Send a command; return the reply, or the error if the server refuses it.

    Raises:
        BackendError: the server did not answer.
    """
    try:
        (reply,) = await source.ask(command)
    except BackendError as error:
        if not is_refused(error):
            raise
        return error
    return reply


async def _timed(action: Callable[[], Awaitable[Any]]) -> list[float] | BackendError:
    """Run an action `ROUNDS` times; return the milliseconds of each run, or the error of the first that failed."""
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        try:
            reply = await action()
        except BackendError as error:
            return error
        if isinstance(reply, BackendError):
            return reply
        times.append(1000 * (time.perf_counter() - began))
    return times


# Checks of what the server reports


def _unknown(check: str, denied: str, field: str, advice: str, audience: Audience = "operator") -> Finding:
    """Return the finding of a check without its field of INFO. `denied` is the server's refusal of INFO, "" if none."""
    if denied:
        return Finding(check, "unknown", denied, ADMINISTRATOR)
    return Finding(check, "unknown", f"INFO has no field {field}", advice, audience)


def _version(info: Mapping[str, Any] | None, denied: str) -> Finding:
    if info is None:
        return Finding("version", "unknown", denied, ADMINISTRATOR)
    product = "valkey" if "valkey_version" in info else "redis"
    text = str(info.get(f"{product}_version", ""))
    numbers = tuple(int(part) for part in text.split(".") if part.isdigit())
    wanted = ".".join(map(str, MINIMUM[product]))
    if not numbers:
        return Finding("version", "unknown", f"{product} reports no version")
    if numbers < MINIMUM[product]:
        return Finding("version", "warn", f"{product} {text}", f"upgrade: tested with {product} {wanted} and later")
    return Finding("version", "ok", f"{product} {text}")


def _topology(primaries: Sequence[Mapping[str, Any] | None], denied: str, *, is_cluster: bool) -> Finding:
    known = [info for info in primaries if info is not None and "cluster_enabled" in info]
    if not known:
        advice = "make sure that redis+cluster:// leads to a cluster, and no other URL to a node of one"
        return _unknown("cluster", denied, "cluster_enabled", advice, "developer")
    if not is_cluster:
        if known[0]["cluster_enabled"]:
            advice = "connect by redis+cluster:// instead"
            return Finding("cluster", "fail", "a node of a cluster", advice, "developer")
        return Finding("cluster", "ok", "one server, no cluster mode")
    replicas = [int(info.get("connected_slaves", 0)) for info in known]
    found = f"{len(known)} primaries, {counted(sum(replicas), 'replica')}"
    if min(replicas) == 0:
        return Finding(
            "cluster",
            "warn",
            found,
            "add a replica to every primary: without one, the loss of a primary loses its sessions",
        )
    return Finding("cluster", "ok", found)


def _role(info: Mapping[str, Any] | None, denied: str) -> Finding:
    if info is None or "role" not in info:
        advice = "make sure that the URL leads to the primary"
        return _unknown("replication", denied, "role", advice, "developer")
    if info["role"] != "master":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        advice = f"connect to its primary, {primary}: a replica takes no commits"
        return Finding("replication", "fail", "a replica", advice, "developer")
    count = int(info.get("connected_slaves", 0))
    return Finding("replication", "ok", f"primary, {counted(count, 'replica')}")


def _eviction(info: Mapping[str, Any] | None, denied: str) -> Finding:
    """Every policy except noeviction is a failure, also without a memory limit: the host may set one later.

    The policies volatile-* evict keys with a deadline. All keys of a session with a ttl have one, and so do its blobs.
    """
    if info is None or "maxmemory_policy" not in info:
        advice = "make sure that maxmemory-policy is noeviction"
        return _unknown("eviction", denied, "maxmemory_policy", advice)
    policy, limit = str(info["maxmemory_policy"]), int(info.get("maxmemory", 0))
    room = f"at most {shown_bytes(limit)}" if limit else "no memory limit"
    if policy == "noeviction":
        return Finding("eviction", "ok", f"noeviction, {room}")
    when = "when memory is full" if limit else "once a memory limit is set"
    which = "live sessions that have a ttl" if policy.startswith("volatile-") else "live sessions"
    advice = f"set maxmemory-policy noeviction: {when}, {policy} drops keys of {which} (SessionEvicted)"
    return Finding("eviction", "fail", f"{policy}, {room}", advice)


def _persistence(info: Mapping[str, Any] | None, saves: Any, denied: str) -> Finding:
    if info is None or "aof_enabled" not in info:
        advice = "make sure that appendonly is yes if sessions must survive a restart"
        return _unknown("persistence", denied, "aof_enabled", advice)
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok":
            return Finding(
                "persistence", "fail", f"the last {what} could not be written", "check the server's disk and log"
            )
    if info["aof_enabled"]:
        return Finding("persistence", "ok", "append-only file")
    advice = "set appendonly yes if sessions must survive a restart of the server"
    if not isinstance(saves, dict):
        return Finding(
            "persistence", "warn", "no append-only file; snapshots unknown, because CONFIG GET is refused", advice
        )
    if saves.get("save"):
        return Finding("persistence", "warn", f"only snapshots ({saves['save']})", f"{advice} to the last second")
    return Finding("persistence", "warn", "none, data is only in memory", advice)


async def _clock(source: Connection) -> Finding:
    before = time.time()
    reply = await _ask(source, "TIME")
    after = time.time()
    if not isinstance(reply, tuple | list):
        return Finding("clock", "unknown", str(reply), "allow this user TIME: scripts compute deadlines from it")
    ahead = int(reply[0]) + int(reply[1]) / 1e6 - (before + after) / 2
    found = f"{abs(ahead) * 1000:.1f} ms {'ahead' if ahead > 0 else 'behind'}"
    if abs(ahead) - (after - before) / 2 <= CLOCK_TOLERANCE:
        return Finding("clock", "ok", found)
    advice = "run NTP on both: deadlines use the server's clock, timestamps of nodes the client's"
    return Finding("clock", "warn", found, advice)


async def _layout(source: Connection, namespace: str) -> Finding:
    layout = Layout(require_namespace(namespace), StoreOptions().shards)
    stored = await _ask(source, "GET", layout.key)
    if stored is None:
        return Finding("layout", "ok", f"namespace {namespace} is not in use yet")
    if not isinstance(stored, bytes):
        return Finding("layout", "unknown", str(stored), f"allow this user the key {layout.key}")
    options = await source.options_of(namespace)
    if Layout(namespace, options.shards).value.encode() != stored:
        found = f"{layout.key} is {stored.decode(errors='replace')!r}"
        advice = "use the version of lash_redis that wrote it, or another namespace"
        return Finding("layout", "fail", found, advice, "developer")
    if options.shards == StoreOptions().shards:
        return Finding("layout", "ok", f"namespace {namespace}: {counted(options.shards, 'shard')}")
    advice = f"open it with StoreOptions(shards={options.shards}); the default raises LayoutMismatch"
    return Finding("layout", "ok", f"namespace {namespace}: {counted(options.shards, 'shard')}", advice, "developer")


# Checks of what a store does


async def _check_operations(source: Connection, ping: list[float] | BackendError) -> list[Finding]:
    """Commit, read and maintain a scratch session; measure the time of commits and reads."""
    options = StoreOptions(shards=1, upload_grace=SCRATCH_TTL)
    cache = SessionCache(source, NAMESPACE, ttl=SCRATCH_TTL, options=options)
    store = cache.session(f"doctor-{uuid4().hex}")
    committing: list[float] | BackendError
    reading: list[float] | BackendError = []
    problems: list[Finding] = []

    async def step(name: str, needs: str, action: Callable[[], Awaitable[Answer]]) -> Answer | None:
        try:
            return await action()
        except StoreError as error:
            problems.append(_problem(name, needs, error))
            return None

    committed = 0

    async def commit() -> None:
        nonlocal committed
        await store.commit_runtime_state(_turn(store, committed))
        committed += 1

    committing = await step("commit", "EVALSHA, EVAL and what commit.lua calls", lambda: _timed_or_raise(commit)) or []
    if committing:

        async def read() -> None:
            cold = SessionCache(source, NAMESPACE, options=options)
            await cold.session(store.session_id).load_session(FullGraph())

        reading = await step("read", "MULTI, HGETALL, LRANGE", lambda: _timed_or_raise(read)) or []
        meta = SessionMeta(store.session_id, "doctor", "", "")
        for name, needs, action in (
            ("node", "what node.lua calls", lambda: store.load_node("n0")),
            ("meta", "what meta.lua calls", lambda: store.save_session_meta(meta)),
            ("tombstone", "what tombstone.lua calls", lambda: store.tombstone_nodes(["n0"])),
            ("vacuum", "what vacuum.lua calls", lambda: store.vacuum()),
            ("blob", "what put_blob.lua calls", lambda: cache.put_blob(store.session_id.encode())),
            ("gc", "what gc.lua calls", lambda: store.gc_unreachable()),
        ):
            await step(name, needs, action)
    if not problems:
        done = "commit, read, node, meta, tombstone, vacuum, blob, gc"
        problems.append(Finding("permissions", "ok", f"every operation works: {done}"))
    timed = [("ping", ping), ("commit", committing), ("resume", reading)]
    parts = [f"{name} {percentile(times, 50):.2f} ms" for name, times in timed if isinstance(times, list) and times]
    if parts:
        return [*problems, Finding("latency", "ok", f"{', '.join(parts)} (p50 of {ROUNDS})")]
    return [*problems, Finding("latency", "unknown", "no operation succeeded")]


async def _timed_or_raise(action: Callable[[], Awaitable[Any]]) -> list[float]:
    times = await _timed(action)
    if isinstance(times, BackendError):
        raise times
    return times


def _problem(name: str, needs: str, error: StoreError) -> Finding:
    """Return the finding of an operation that failed; raise the error if the server did not answer."""
    if isinstance(error, BackendError) and not is_refused(error):
        raise error
    text, remedy = f"{name}: {_said(error)}", _remedy(error)
    if remedy != remedies.RIGHTS:
        return Finding("permissions", "fail", text, remedy or "use a server that supports this operation")
    if "access" in text:  # to a key or a channel
        return Finding("permissions", "unknown", text, ADMINISTRATOR)
    return Finding("permissions", "fail", text, f"allow this user {needs}")


def _said(error: StoreError) -> str:
    """Return the text of an error without its remedy, which is the advice of a finding."""
    return str(error).removesuffix(f"; {_remedy(error)}")


def _remedy(error: StoreError) -> str | None:
    return remedies.remedy(error.__cause__) if error.__cause__ is not None else None


def _turn(store: RedisSessionStore, number: int) -> RuntimeCommit:
    record = {"id": f"n{number}", "role": "User", "parts": []}
    node = SessionNodeRecord(
        f"n{number}", f"n{number - 1}" if number else None, "", EventPayload({"Conversation": record})
    )
    checkpoint = HydratedSessionCheckpoint(
        turn_state=PersistedTurnState(turn_index=number), tool_state=ToolState(), execution_state=b"%d" % number
    )
    usage = TokenLedgerEntry("doctor", "none", TokenUsage(1, 1))
    return RuntimeCommit(
        store.session_id, number, graph=Append([node], node.node_id), checkpoint=checkpoint, usage_deltas=[usage]
    )


def print_findings(url: str, findings: list[Finding], screen: Console) -> None:
    table = Table(box=None, padding=(0, 2), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.state]
        found = plain(finding.found)
        if finding.advice:
            advice = f"\n→ for {finding.audience}s: {finding.advice}"
            found.append_text(plain(advice, style if finding.state != "ok" else "dim"))
        table.add_row(Text(mark, style), finding.check, found)
    screen.print(plain(shown_url(url), "dim"))
    screen.print(table)
    screen.print()
    counts = {state: sum(finding.state == state for finding in findings) for state in _MARKS}
    if counts["fail"]:
        screen.print(Text("unfit: fix the failures before storing sessions here", "bold red"))
    elif counts["unknown"]:
        verdict = f"fit as far as could be checked: {counts['unknown']} unknown, {counted(counts['warn'], 'warning')}"
        screen.print(Text(verdict, "yellow"))
    elif counts["warn"]:
        screen.print(Text(f"fit, with {counted(counts['warn'], 'warning')}", "green"))
    else:
        screen.print(Text("fit", "bold green"))
