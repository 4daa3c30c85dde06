"""The commands on a server and on the data of a namespace: replay, doctor, stats, gc, audit, preload, acl."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from lash_redis.cli import doctor as doctor_module
from lash_redis.cli import maintain, rights
from lash_redis.cli import stats as stats_module
from lash_redis.cli.commands.app import (
    NO_URL,
    AsJson,
    Namespace,
    Url,
    command,
    ending,
    require_stored_data,
    warn_of_empty_server,
)
from lash_redis.cli.conversations import SHIPPED, read_conversations, read_tools
from lash_redis.cli.output import OK, UNFIT, print_json, screen
from lash_redis.cli.replay import play as replay_module
from lash_redis.models import AuditReport, GcReport


@command("replay", example="replay chats.jsonl --keep --url embedded:///tmp/demo")
def replay(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Conversations, one JSON object a line. Default: two examples."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Number of processes, 1 to 64.")] = 2,
    tools: Annotated[Path | None, typer.Option(help="OpenAI list of tools: the tool state of every session.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the sessions. Default: they expire in an hour.")] = False,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Play conversations through worker processes, and verify them.

    A line is {"id", "messages"}: OpenAI chat messages, or a tree of {"id", "parent_id", "role", "text", "lang"},
    parents before children. Workers share nothing but the server: each loads the session, appends its turn and
    commits. At the end, new processes compare the stored sessions with the file.
    """
    with ending(as_json):
        conversations = read_conversations(files or [SHIPPED])
        state = None if tools is None else read_tools(tools)
        report = replay_module.replay(
            conversations, url=url, namespace=namespace, workers=workers, keep=keep, tools=state
        )
        if as_json:
            print_json(report.to_json())
        else:
            replay_module.print_report(report, screen())
    raise typer.Exit(OK if report.verified == len(report.sessions) else UNFIT)


@command("doctor", example="doctor --url redis://host")
def doctor(url: Url = NO_URL, namespace: Namespace = "default", as_json: AsJson = False) -> None:
    """Check whether a server is fit to store sessions.

    It checks version, eviction, persistence, clock, permissions and latency. A check is unknown, not failed, if the
    server refuses a command for it. The command also commits, reads and maintains a scratch session in the namespace
    lash-doctor, which expires after a minute.
    """
    with ending(as_json):
        warn_of_empty_server(url)
        findings = asyncio.run(doctor_module.examine(url, namespace))
        fit = all(finding.state != "fail" for finding in findings)
        if as_json:
            print_json({"ok": fit, "findings": [finding.to_json() for finding in findings]})
        else:
            doctor_module.print_findings(url, findings, screen())
    raise typer.Exit(OK if fit else UNFIT)


@command("stats", example="stats --namespace acme --sample 1000")
def stats(
    sample: Annotated[int, typer.Option(min=1, metavar="N", help="Measure at most so many sessions.")] = 100,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Count the sessions and nodes of a namespace, and estimate memory.

    It reads the list of sessions and every head, 1,000 in a round trip. The memory is that of a sample of sessions by
    MEMORY USAGE, which needs the account `checker` of `acl`. Other accounts get the rest of the figures.
    """
    with ending(as_json):
        require_stored_data(url)
        found = asyncio.run(stats_module.measure(url, namespace, sample))
        if as_json:
            print_json({"ok": True, "in_use": found is not None, **(found or stats_module.Stats(namespace)).to_json()})
        elif found is None:
            maintain.print_unused(namespace, screen())
        else:
            stats_module.print_stats(found, screen())


@command("gc", example="gc --namespace acme")
def gc(url: Url = NO_URL, namespace: Namespace = "default", as_json: AsJson = False) -> None:
    """Delete unused blobs and the catalogue entries of expired sessions.

    Without gc, both expire later. Safe during live traffic. If interrupted, run it again for the rest.
    """
    with ending(as_json):
        require_stored_data(url)
        report = asyncio.run(maintain.collect(url, namespace))
        if as_json:
            print_json({"ok": True, "in_use": report is not None, **(report or GcReport()).to_json()})
        elif report is None:
            maintain.print_unused(namespace, screen())
        else:
            maintain.print_collected(report, screen())


@command("audit", example="audit --namespace acme --repair")
def audit(
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair holder counts, leaked blobs and the list; never a session.")
    ] = False,
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Also check keys that no catalogue names, found by SCAN.")
    ] = True,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Check all stored data of a namespace, and print each problem.

    Safe during live traffic. Needs the right to SCAN (the account `auditor` of `acl`), which shows the key names of all
    namespaces. With `--no-scan` any account of `acl` suffices, no other namespace is visible, and blobs are not
    repaired. Exit code 1 if a problem remains that was not repaired.
    """
    with ending(as_json):
        require_stored_data(url)
        found = asyncio.run(maintain.audit(url, namespace, repair=repair, scan=scan))
        report = found or AuditReport()
        if as_json:
            print_json(
                {"ok": maintain.is_sound(report), "in_use": found is not None, "scanned": scan, **report.to_json()}
            )
        elif found is None:
            maintain.print_unused(namespace, screen())
        else:
            maintain.print_audit(found, screen(), scan=scan)
    raise typer.Exit(OK if maintain.is_sound(report) else UNFIT)


@command("preload", example="preload --url redis://loader:password@host")
def preload(url: Url = NO_URL, as_json: AsJson = False) -> None:
    """Load every script into the server.

    Needed for accounts that may not send scripts (`allow_eval=False`). Needs the account `loader` of `acl`. Run it
    again after a restart, a failover or SCRIPT FLUSH.
    """
    with ending(as_json):
        require_stored_data(url)
        count = asyncio.run(maintain.preload(url))
        if as_json:
            print_json({"ok": True, "scripts": count})
        else:
            screen().print(f"{count} scripts loaded")


@command("acl", example="acl --namespace acme")
def acl(
    namespace: Namespace = "default",
    user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Prefix of the account names, as in NAME-loader. Default: lash-NAMESPACE."),
    ] = None,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Print the rules for a cluster. Run the commands on every node."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print ACL SETUSER commands for accounts with the least rights.

    Replace the passwords yourself. `loader` may do every store operation and send scripts. `runner` may only run
    scripts that a loader has sent. `checker` may also measure memory, for `stats`. `auditor` may also SCAN, for
    `audit`. SCAN shows it the key names of all namespaces, but not their values. The command connects to no server.
    """
    with ending(as_json):
        lines = rights.lines(namespace, f"lash-{namespace}" if user is None else user, cluster=cluster)
        if as_json:
            print_json({"ok": True, "accounts": rights.accounts(namespace, cluster=cluster)})
        else:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
