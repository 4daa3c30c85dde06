"""`lash-redis gc`, `audit` and `preload`: free unused blobs, check stored data, load the scripts."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from lash_redis.cache import SessionCache
from lash_redis.cli.bar import progress_bar
from lash_redis.cli.connection import opened_if_used
from lash_redis.cli.output import counted, plain
from lash_redis.models import AuditReport, GcReport
from lash_redis.protocol import scripts
from lash_redis.transport.connectors import by_url


async def collect(url: str, namespace: str) -> GcReport | None:
    """Delete the blobs that no session of the namespace holds; None if the namespace is not in use."""
    async with opened_if_used(url, namespace) as cache:
        if cache is None:
            return None
        with progress_bar() as bar:
            bar.start("shards", cache.options.shards)
            return await cache.gc(bar.reach)


async def audit(url: str, namespace: str, *, repair: bool, scan: bool) -> AuditReport | None:
    """Check the stored data of a namespace against the invariants of storage; None if the namespace is not in use.

    Without `scan`, only keys that a catalogue names are checked.
    """
    async with opened_if_used(url, namespace) as cache:
        if cache is None:
            return None
        with progress_bar() as bar:
            bar.start("sessions", None)
            return await cache.audit(repair=repair, scan=scan, progress=bar.reach)


async def preload(url: str) -> int:
    """Load every script into the server; return the number of scripts."""
    async with SessionCache(by_url(url)) as cache:  # scripts belong to no namespace
        await cache.preload()
    return len(scripts.every())


def is_sound(report: AuditReport) -> bool:
    return report.repaired_count == report.problem_count


def print_unused(namespace: str, screen: Console) -> None:
    screen.print(plain(f"namespace {namespace!r} is not in use; nothing to do"))


def print_collected(report: GcReport, screen: Console) -> None:
    deleted = (
        f"{counted(report.deleted_blob_count, 'blob')} deleted, "
        f"{counted(report.retained_blob_count, 'unused blob')} kept until expiry"
    )
    screen.print(plain(f"{deleted}; {counted(report.root_count, 'session')} listed"), soft_wrap=True)


def print_audit(report: AuditReport, screen: Console, *, scan: bool) -> None:
    for problem in report.problems:
        line = Text("repaired  " if problem.repaired else "broken    ", "yellow" if problem.repaired else "red")
        screen.print(line.append_text(plain(f"{problem.kind} {problem.key}: {problem.reason}", "")), soft_wrap=True)
    if omitted := report.problem_count - len(report.problems):
        screen.print(Text(f"and {counted(omitted, 'more problem')}", "red"))
    counts = ((report.session_count, "session"), (report.node_count, "node"), (report.blob_count, "blob"))
    checked = ", ".join(counted(*each) for each in counts)
    problems = counted(report.problem_count, "problem")
    left = report.problem_count - report.repaired_count
    if left:
        verdict = Text(f"{checked}: {problems}, {report.repaired_count} repaired", "bold red")
    elif report.problem_count:
        verdict = Text(f"{checked}: {problems}, all repaired", "bold yellow")
    else:
        verdict = Text(f"{checked}: no problems", "bold green")
    screen.print(verdict, soft_wrap=True)
    if not scan:
        screen.print(plain("without SCAN: keys that no catalogue names were not checked"), soft_wrap=True)
