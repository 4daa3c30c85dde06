"""`lash-redis export` and `import`: sessions of a namespace to a file of JSON Lines, and back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from lash_redis.cache import SessionCache
from lash_redis.cli.bar import progress_bar
from lash_redis.cli.connection import opened
from lash_redis.cli.input import Input, InputError
from lash_redis.cli.interrupt import interruptible
from lash_redis.cli.output import USAGE, CommandError, counted, plain, shown_bytes
from lash_redis.errors import InvalidRecord
from lash_redis.models import ImportReport
from lash_redis.transfer import export_sessions, import_sessions

SHOWN_FAILURES = 100


# Export


@dataclass(slots=True)
class Exported:
    """The counts of an export."""

    sessions: int = 0
    blobs: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"ok": True, "session_count": self.sessions, "blob_count": self.blobs, "bytes": self.bytes}


async def export(url: str, namespace: str, session_ids: Sequence[str] | None, output: Path | None) -> Exported:
    """Write sessions to a file or to standard output; all sessions if no ids are given.

    The file appears when it is complete. After a failure, the lines written so far are in `<file>.part`.

    Raises:
        CommandError: the file cannot be written.
        SessionGone, Corrupt, SessionEvicted: a session does not exist or cannot be read.
    """
    exported = Exported()
    async with opened(url, namespace) as cache:
        total = len(session_ids) if session_ids is not None else await listed_count(cache)
        # A bar between the lines on one terminal would make both unreadable.
        with progress_bar(hidden=output is None and sys.stdout.isatty()) as bar, destination(output) as file:
            bar.start("sessions", total)
            last = ""
            async for line in export_sessions(cache, session_ids, bar.reach):
                last = line
                with interruptible():
                    exported.bytes += file.write(line.encode() + b"\n")
            end = json.loads(last)
            exported.sessions, exported.blobs = end["session_count"], end["blob_count"]
    return exported


async def listed_count(cache: SessionCache) -> int:
    """Return about how many sessions the namespace lists: some of them may have expired."""
    shards = (cache.layout.shard_keys(shard) for shard in range(cache.layout.shards))
    return sum(await cache.shared.read([("ZCARD", shard.sessions) for shard in shards], atomic=False))


@contextmanager
def destination(output: Path | None) -> Iterator[IO[bytes]]:
    """Open `<output>.part`, and rename it to `output` after a success; yield standard output for None."""
    if output is None:
        yield sys.stdout.buffer
        with interruptible():
            sys.stdout.buffer.flush()
        return
    if output.is_dir():
        raise CommandError(USAGE, f"{output}: is a directory")
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    except OSError as error:
        raise CommandError(USAGE, f"{part}: {error.strerror or error}") from error


def print_exported(exported: Exported, output: Path, screen: Console) -> None:
    what = f"{counted(exported.sessions, 'session')} and {counted(exported.blobs, 'blob')}"
    screen.print(plain(f"{what} in {output} ({shown_bytes(exported.bytes)})"), soft_wrap=True)


# Import


async def import_export(url: str, namespace: str, path: Path, ttl: float | None) -> ImportReport:
    """Store the sessions of an export. They expire after their own ttl, or `ttl` seconds, counted from now.

    Raises:
        InputError: the file cannot be read, or a line is invalid; the sessions before it are stored.
    """
    async with opened(url, namespace, ttl=ttl) as cache:
        with progress_bar("bytes") as bar:
            source = Input(path, bar.reach)
            bar.start("reading", source.size)
            unread: list[InputError] = []

            def lines() -> Iterator[bytes]:
                try:
                    yield from source.lines()
                except InputError as error:
                    unread.append(error)  # raised below, once the sessions in flight are stored

            try:
                report = await import_sessions(cache, lines())
            except InvalidRecord as error:
                raise InputError(path, None, error.field, error.reason) from error
    if unread:
        raise unread[0]
    return report


def is_whole(report: ImportReport) -> bool:
    return report.is_complete and not report.failed_count


def print_imported(report: ImportReport, screen: Console, source: str = "the file") -> None:
    for failure in report.failures[:SHOWN_FAILURES]:
        screen.print(plain(failure, "red"), soft_wrap=True)
    if omitted := report.failed_count - len(report.failures[:SHOWN_FAILURES]):
        screen.print(Text(f"and {omitted} more", "red"))
    present = f", {report.present_count} of them were stored before" if report.present_count else ""
    failed = f"; {report.failed_count} failed" if report.failed_count else ""
    style = "bold green" if is_whole(report) else "bold red"
    screen.print(Text(f"{counted(report.session_count, 'session')} stored as in {source}{present}{failed}", style))
    if not report.is_complete:
        screen.print(Text("the file is incomplete: its end line is missing; export again", "bold red"))
