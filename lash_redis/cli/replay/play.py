"""`lash-redis replay`: play conversations through several processes, then compare what is stored with the files."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import uuid4

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lash_redis.cache import SessionCache
from lash_redis.cli.bar import Bar, progress_bar
from lash_redis.cli.connection import Connection
from lash_redis.cli.conversations import Conversation, Turn
from lash_redis.cli.messages import message_lines, message_texts
from lash_redis.cli.output import UNFIT, UNREACHABLE, USAGE, CommandError, percentile, plain, shown_bytes, shown_url
from lash_redis.cli.replay.pool import Pool, WorkerDied
from lash_redis.cli.replay.worker import Check, Checked, Failure, Job, Played, Result, Settings
from lash_redis.embedded import EmbeddedServer
from lash_redis.models import ActivePath, ToolState
from lash_redis.options import StoreOptions
from lash_redis.transport.connectors import by_url

TTL = 3600.0
"""Seconds after which the sessions of a run expire, unless `keep` is given."""
SHOWN_FAULTS = 12
SHOWN_MESSAGES = 10


@dataclass(slots=True)
class Session:
    """A conversation that is played as a session."""

    id: str
    conversation: Conversation
    turns: Sequence[Turn]
    played: list[Played] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    own_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "session": self.id,
            "format": self.conversation.format,
            "turns": len(self.turns),
            "messages": len(self.conversation.messages),
            "branches": len(self.conversation.leaves()),
            "bytes": self.own_bytes,
            "verified": not self.faults,
            "faults": self.faults,
        }


@dataclass(slots=True)
class Report:
    """The result of a run."""

    url: str
    namespace: str
    prefix: str
    workers: int
    kept: bool
    outlives: bool
    """Whether the sessions are still stored when the command has ended."""
    sessions: Sequence[Session]
    seconds: float = 0.0
    measure: str = "memory usage"
    blob_bytes: int = 0
    blobs: int = 0
    sample_id: str = ""
    """The session shown at the end: the first that was verified."""
    sample: list[dict[str, Any]] = field(default_factory=list)

    @property
    def played(self) -> list[Played]:
        return [turn for session in self.sessions for turn in session.played]

    @property
    def verified(self) -> int:
        return sum(not session.faults for session in self.sessions)

    @property
    def handovers(self) -> int:
        """Turns played by another process than the turn before them."""
        lines = [[turn.pid for turn in session.played] for session in self.sessions]
        return sum(before != after for line in lines for before, after in pairwise(line))

    def times(self, name: str) -> dict[str, float]:
        values = [1000 * getattr(turn, name) for turn in self.played]
        return {f"p{percent}": round(percentile(values, percent), 3) for percent in (50, 95, 99)}

    def to_json(self) -> dict[str, Any]:
        played = self.played
        return {
            "ok": self.verified == len(self.sessions),
            "url": shown_url(self.url),
            "namespace": self.namespace,
            "prefix": self.prefix,
            "kept": self.kept,
            "ttl_seconds": None if self.kept else TTL,
            "workers": self.workers,
            "sessions": len(self.sessions),
            "verified": self.verified,
            "messages": sum(len(session.conversation.messages) for session in self.sessions),
            "branches": sum(len(session.conversation.leaves()) for session in self.sessions),
            "turns": len(played),
            "handovers": self.handovers,
            "seconds": round(self.seconds, 3),
            "turns_per_second": round(len(played) / self.seconds, 1) if self.seconds else 0.0,
            "resume_ms": self.times("resume"),
            "commit_ms": self.times("commit"),
            "conflicts": sum(turn.conflicts for turn in played),
            "retries": sum(turn.retries for turn in played),
            "bytes": {
                "measure": self.measure,
                "sessions": sum(session.own_bytes for session in self.sessions),
                "session_p50": percentile([session.own_bytes for session in self.sessions], 50),
                "session_max": max(session.own_bytes for session in self.sessions),
                "blobs": self.blob_bytes,
                "blob_count": self.blobs,
            },
            "by_session": [session.to_json() for session in self.sessions],
            "sample": {"session": self.sample_id, "messages": self.sample},
        }


def replay(
    conversations: Sequence[Conversation],
    *,
    url: str,
    namespace: str,
    workers: int = 2,
    keep: bool = False,
    tools: ToolState | None = None,
    between: Callable[[str, Sequence[Session]], None] | None = None,
) -> Report:
    """Play every conversation as a session, turn by turn, then verify all sessions in new processes.

    The turns of a session are played one after the other, each in the next process. Sessions are played concurrently.
    This process only knows which turns are done. `between` is called with the server's URL before the checks.

    Raises:
        CommandError: the server cannot be reached, a worker ended, or `url` is `memory://`.
    """
    if url.startswith("memory:"):
        raise CommandError(
            USAGE, "memory:// is limited to one process, but replay needs several; use embedded:// or a server's URL"
        )
    by_url(url)
    prefix = f"replay-{uuid4().hex[:8]}"
    names = [f"{prefix}/{conversation.id}" for conversation in conversations]
    sessions = [
        Session(name, conversation, conversation.turns(name, tools))
        for name, conversation in zip(names, conversations, strict=True)
    ]
    outlives = not url.startswith("embedded:") or bool(url.removeprefix("embedded://"))
    report = Report(url, namespace, prefix, workers, keep, outlives, sessions)
    with _served(url) as address:
        settings = Settings(address, namespace, _stored_options(address, namespace), None if keep else TTL)
        try:
            with progress_bar() as bar, Pool(workers, settings) as pool:
                report.seconds = _play(pool, sessions, bar)
            if between is not None:
                between(address, sessions)
            with progress_bar() as bar, Pool(workers, settings) as pool:
                _check(pool, report, tools, bar)
        except WorkerDied as error:
            raise CommandError(UNFIT, str(error)) from error
        sound = next((session for session in sessions if not session.faults), None)
        if sound is not None:
            report.sample_id = sound.id
            report.sample = asyncio.run(_sample(settings, sound.id))
    return report


@contextmanager
def _served(url: str) -> Iterator[str]:
    """Yield a URL that other processes can connect to; start a server for `embedded://` without a directory."""
    if url != "embedded://":
        yield url
        return
    with EmbeddedServer() as server:
        yield server.url


def _stored_options(url: str, namespace: str) -> StoreOptions:
    async def ask() -> StoreOptions:
        source = Connection(url)
        try:
            return await source.options_of(namespace)
        finally:
            await source.close()

    return asyncio.run(ask())


def _play(pool: Pool, sessions: Sequence[Session], bar: Bar) -> float:
    """Play all turns; return the seconds from the first turn to the last result, without the start of the processes."""
    by_id = {session.id: (place, session) for place, session in enumerate(sessions)}
    bar.start("playing", sum(len(session.turns) for session in sessions))
    for place, session in enumerate(sessions):
        pool.put(place % len(pool), session.turns[0])
    began = time.perf_counter()
    for job, result in _results(pool):
        assert isinstance(job, Turn)
        place, session = by_id[job.session_id]
        if isinstance(result, Failure):
            session.faults.append(f"turn {job.number} was not played: {result.text}")
            continue
        assert isinstance(result, Played)
        session.played.append(result)
        bar.advance()
        following = job.number + 1
        if following < len(session.turns):
            pool.put((place + following) % len(pool), session.turns[following])
    return time.perf_counter() - began


def _check(pool: Pool, report: Report, tools: ToolState | None, bar: Bar) -> None:
    """Verify and measure every session."""
    by_id = {session.id: session for session in report.sessions}
    blobs: dict[str, int] = {}
    bar.start("verifying", len(report.sessions))
    for place, session in enumerate(report.sessions):
        pool.put(place % len(pool), Check(session.id, session.conversation, tools))
    for job, result in _results(pool):
        session = by_id[job.session_id]
        if isinstance(result, Failure):
            session.faults.append(f"verification failed: {result.text}")
        else:
            assert isinstance(result, Checked)
            session.faults += result.faults
            session.own_bytes = result.own_bytes
            blobs |= result.blob_bytes
            report.measure = result.measure
        bar.advance()
    report.blobs, report.blob_bytes = len(blobs), sum(blobs.values())


def _results(pool: Pool) -> Iterator[tuple[Job, Result]]:
    for job, result in pool.results():
        if isinstance(result, Failure) and result.unreachable:
            raise CommandError(UNREACHABLE, result.text)
        yield job, result


async def _sample(settings: Settings, session_id: str) -> list[dict[str, Any]]:
    """Load the messages of a session's active path."""
    source = Connection(settings.url)
    try:
        cache = SessionCache(source, settings.namespace, options=settings.options)
        read = await cache.session(session_id).load_session(ActivePath())
        return [] if read is None else message_texts(read.graph.active_path())
    finally:
        await source.close()


# The printed report


def print_report(report: Report, screen: Console) -> None:
    facts = report.to_json()
    failed = [session for session in report.sessions if session.faults]
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    for _ in range(3):
        table.add_column(justify="right")
    kinds: Counter[str] = Counter(session.conversation.format for session in report.sessions)
    table.add_row("sessions", str(facts["sessions"]), *(_counted(kinds[kind], kind) for kind in ("chat", "tree")))
    table.add_row("messages", str(facts["messages"]), _counted(facts["branches"], "path"), "")
    table.add_row("turns", str(facts["turns"]), f"{facts['turns_per_second']:g} /s", f"{facts['seconds']:.2f} s")
    table.add_row("handovers", str(facts["handovers"]), f"{report.workers} processes", "")
    table.add_row("conflicts", str(facts["conflicts"]), f"{facts['retries']} retried", "")
    table.add_row()
    table.add_row("milliseconds", *(Text(name, style="dim") for name in ("p50", "p95", "p99")))
    for name in ("resume", "commit"):
        table.add_row(name, *(f"{value:.2f}" for value in facts[f"{name}_ms"].values()))
    table.add_row()
    stored = facts["bytes"]
    table.add_row("bytes", *(Text(name, style="dim") for name in ("total", "median", "largest")))
    table.add_row("sessions", *(shown_bytes(stored[name]) for name in ("sessions", "session_p50", "session_max")))
    table.add_row("blobs", shown_bytes(stored["blobs"]), f"{stored['blob_count']} blobs", "shared")
    measure = {
        "memory usage": "bytes by MEMORY USAGE",
        "record bytes": "bytes of the records, because MEMORY USAGE is refused",
    }
    note = Text(f"\nresume: a cold read, until every node is decoded; {measure[report.measure]}", "dim")
    if failed:
        verdict = Text(f"{len(failed)} of {len(report.sessions)} sessions differ from the files", style="bold red")
    else:
        verdict = Text(f"{report.verified} of {report.verified} sessions verified, message by message", "bold green")
    colour = "red" if failed else "green"
    screen.print(Panel(Group(table, note), title=verdict, border_style=colour, expand=False, padding=(1, 2)))
    for session in failed[:SHOWN_FAULTS]:
        screen.print(plain(f"{session.id}: {session.faults[0]}", "red"), soft_wrap=True)
        if len(session.faults) > 1:
            screen.print(Text(f"  and {len(session.faults) - 1} more faults", "dim"))
    if len(failed) > SHOWN_FAULTS:
        screen.print(Text(f"and {len(failed) - SHOWN_FAULTS} more sessions; --json lists all", "red"))
    _print_sample(report, screen)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}" if count else ""


def _print_sample(report: Report, screen: Console) -> None:
    if not report.sample:
        return
    screen.print()
    screen.print(plain(f"{report.sample_id}, loaded from the server", "bold"), soft_wrap=True)
    screen.rule(style="dim")
    for message in report.sample[:SHOWN_MESSAGES]:
        screen.print(message_lines(message, max_lines=6))
    left = len(report.sample) - SHOWN_MESSAGES
    if left > 0:
        screen.print(Text(f"… {left} more messages", style="dim"))
    screen.rule(style="dim")
    if report.outlives:
        where = f" --namespace {report.namespace}" if report.namespace != "default" else ""
        command = f"lash-redis show --url '{shown_url(report.url)}'{where} --messages '{report.sample_id}'"
        until = "stay stored" if report.kept else f"expire in {TTL / 60:.0f} minutes"
        screen.print(plain(f"The sessions {until}: {command}", "dim"), soft_wrap=True)
    else:
        ended = "The embedded server has ended, and its sessions are deleted."
        screen.print(Text(f"{ended} Use --url redis://… or embedded:///directory to keep sessions.", style="dim"))
