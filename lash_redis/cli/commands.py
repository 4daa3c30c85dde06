"""The commands, with their options, help texts and exit codes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lash_redis.cli import doctor as doctor_module
from lash_redis.cli import maintain, rights, sessions, transcripts, transfer
from lash_redis.cli import show as show_module
from lash_redis.cli.conversations import SHIPPED, read_conversations, read_tools
from lash_redis.cli.input import InputError
from lash_redis.cli.output import (
    EXIT_CODES,
    INTERRUPTED,
    OK,
    UNFIT,
    UNREACHABLE,
    USAGE,
    CommandError,
    print_json,
    print_json_line,
    screen,
)
from lash_redis.cli.replay import play as replay_module
from lash_redis.errors import BackendError, InvalidRecord, OutcomeUnknown, StoreError
from lash_redis.models import AuditReport, GcReport

Url = Annotated[
    str,
    typer.Option(
        envvar="LASH_REDIS_URL",
        help="redis://, rediss://, unix://, redis+cluster://host:port,host:port, "
        "redis+sentinel://host:port,host:port/service, or "
        "embedded://[directory], a server that ends with this command.",
    ),
]
Namespace = Annotated[str, typer.Option(envvar="LASH_REDIS_NAMESPACE", help="The namespace of the sessions.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]

app = typer.Typer(
    help="Agent sessions in Redis or Valkey: list, show, fork, delete, transfer and audit them; examine a server.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@contextmanager
def _ending(as_json: bool, document: Callable[[dict[str, Any]], None] = print_json) -> Iterator[None]:
    """Turn every error of a command into an exit code and a line on standard error; with `--json` also a document."""

    def ended(code: int, text: str) -> typer.Exit:
        if as_json:
            document({"ok": False, "exit_code": code, "error": text})
        sys.stderr.write(f"lash-redis: {text}\n")
        return typer.Exit(code)

    try:
        yield
    except typer.Abort:  # ctrl-C or ctrl-D at a question, whose line has no line end yet
        sys.stderr.write("\n")
        raise ended(INTERRUPTED, "interrupted") from None
    except KeyboardInterrupt:
        raise ended(INTERRUPTED, "interrupted") from None
    except CommandError as error:
        raise ended(error.code, error.text) from error
    except (InputError, InvalidRecord) as error:
        raise ended(USAGE, str(error)) from error
    except (BackendError, OutcomeUnknown) as error:
        raise ended(UNREACHABLE, str(error)) from error
    except StoreError as error:
        raise ended(UNFIT, f"{type(error).__name__}: {error}") from error


@app.command(epilog=EXIT_CODES)
def replay(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Conversations, one JSON object a line. Default: two examples."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of processes, which play turns in rotation.")] = 2,
    tools: Annotated[Path | None, typer.Option(help="OpenAI list of tools: the tool state of every session.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the sessions. Default: they expire in an hour.")] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Play conversations turn by turn through worker processes, then verify what is stored.

    A line is {"id", "messages"}: OpenAI chat messages, or a tree of {"id", "parent_id", "role", "text", "lang"},
    parents before children. For every turn, a worker that knows nothing of the session loads it, appends the turn and
    commits by compare-and-set. At the end, new processes compare the stored sessions with the file: every message,
    every branch, components, usage, revision.
    """
    with _ending(as_json):
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


@app.command(epilog=EXIT_CODES)
def show(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    messages: Annotated[bool, typer.Option("--messages", help="Print the messages of the active path, too.")] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Show one session: its head, its graph with the active path, its tokens, its components."""
    with _ending(as_json):
        shown = asyncio.run(show_module.load(url, namespace, session))
        if as_json:
            print_json(shown.to_json(messages=messages))
        else:
            show_module.print_session(shown, screen(), messages=messages)


@app.command(epilog=EXIT_CODES)
def doctor(url: Url = "embedded://", namespace: Namespace = "default", as_json: AsJson = False) -> None:
    """Check whether a server is fit to store sessions: version, eviction, persistence, clock, permissions, latency.

    A check is unknown, not failed, if the server refuses a command for it. The command also commits, reads and
    maintains a scratch session in the namespace lash-doctor, which expires after a minute.
    """
    with _ending(as_json):
        findings = asyncio.run(doctor_module.examine(url, namespace))
        fit = all(finding.state != "fail" for finding in findings)
        if as_json:
            print_json({"ok": fit, "findings": [finding.to_json() for finding in findings]})
        else:
            doctor_module.print_findings(url, findings, screen())
    raise typer.Exit(OK if fit else UNFIT)


# Sessions


@app.command("list", epilog=EXIT_CODES)
def list_sessions(
    limit: Annotated[int, typer.Option(min=1, max=sessions.MAX_PAGE, help="Sessions on the page.")] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Continue after this cursor of a page, or session id.")
    ] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="Only sessions with this parent.")] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """List one page of sessions, the most recently committed first.

    Columns: last commit, revision, number of user messages ("messages") and the beginning of the first of them.
    A session that cannot be read is listed with its fault.
    """
    with _ending(as_json):
        page = asyncio.run(sessions.load_page(url, namespace, limit=limit, after=after, parent=parent))
        if as_json:
            print_json(page.to_json())
        else:
            sessions.print_page(page, namespace, screen())


@app.command(epilog=EXIT_CODES)
def watch(
    session: Annotated[str, typer.Argument(help="The session's id; the session need not exist yet.")],
    since: Annotated[
        int | None,
        typer.Option(min=0, metavar="REVISION", help="The last known revision. Default: the current one."),
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")] = False,
) -> None:
    """Print each new revision of a session, until ctrl-C. Several commits may share one line.

    Exit code 1: the session was deleted, expired or cannot be read. Exit code 3: no server for a minute.
    """
    with _ending(as_json, print_json_line):

        def report(revision: int) -> None:
            if as_json:
                print_json_line({"ok": True, "session_id": session, "head_revision": revision})
            else:
                sessions.print_revision(revision)

        asyncio.run(sessions.watch(url, namespace, session, since, report))


@app.command(epilog=EXIT_CODES)
def fork(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The id of the session to fork.")],
    new_id: Annotated[str, typer.Argument(metavar="NEW_ID", help="The id of the new session.")],
    leaf: Annotated[
        str | None, typer.Option(metavar="NODE", help="Fork at this node. Default: the leaf of SOURCE.")
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Expire the new session this long after a commit. Default: never."),
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Start a new session with the conversation and the components of another session, which does not change.

    Exit code 1, and nothing is written, if SOURCE or NODE does not exist, or if NEW_ID exists already.
    """
    with _ending(as_json):
        forked = asyncio.run(sessions.fork(url, namespace, source, new_id, leaf, ttl))
        if as_json:
            print_json(forked)
        else:
            sessions.print_fork(forked, screen())


@app.command(epilog=EXIT_CODES)
def delete(
    session: Annotated[list[str], typer.Argument(metavar="SESSION", help="The sessions' ids.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Without a terminal, the command never asks.")
    ] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Delete sessions permanently, one after the other. Writes to their ids are refused for a day.

    Exit code 1 if one of the sessions did not exist; the others are deleted.
    """
    with _ending(as_json):
        ids = list(dict.fromkeys(session))
        if not yes and sys.stdin.isatty():
            what = sessions.named(ids)
            if not typer.confirm(f"Delete {what} of namespace {namespace} permanently?", err=True):
                raise CommandError(UNFIT, "nothing was deleted")
        reports = asyncio.run(sessions.delete(url, namespace, ids, None if as_json else screen()))
        existed = all(report.existed for report in reports.values())
        if as_json:
            documents = [{"session_id": name, **report.to_json()} for name, report in reports.items()]
            print_json({"ok": existed, "sessions": documents})
    raise typer.Exit(OK if existed else UNFIT)


# Maintenance


@app.command(epilog=EXIT_CODES)
def gc(url: Url = "embedded://", namespace: Namespace = "default", as_json: AsJson = False) -> None:
    """Delete blobs that no session holds, and catalogue entries of expired sessions. Without gc, both expire later.

    Safe during live traffic. If interrupted, run it again for the rest.
    """
    with _ending(as_json):
        report = asyncio.run(maintain.collect(url, namespace))
        if as_json:
            print_json({"ok": True, "in_use": report is not None, **(report or GcReport()).to_json()})
        elif report is None:
            maintain.print_unused(namespace, screen())
        else:
            maintain.print_collected(report, screen())


@app.command(epilog=EXIT_CODES)
def audit(
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair holder counts, leaked blobs and the list; never a session.")
    ] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Check all stored data of the namespace against the invariants of storage, and print a line for each problem.

    Safe during live traffic. Needs the right to SCAN (the account `auditor` of `acl`). Exit code 1 if a problem
    remains that was not repaired.
    """
    with _ending(as_json):
        found = asyncio.run(maintain.audit(url, namespace, repair=repair))
        report = found or AuditReport()
        if as_json:
            print_json({"ok": maintain.is_sound(report), "in_use": found is not None, **report.to_json()})
        elif found is None:
            maintain.print_unused(namespace, screen())
        else:
            maintain.print_audit(found, screen())
    raise typer.Exit(OK if maintain.is_sound(report) else UNFIT)


@app.command(epilog=EXIT_CODES)
def preload(url: Url = "embedded://", as_json: AsJson = False) -> None:
    """Load every script into the server, for accounts that may not send scripts (`allow_eval=False`).

    Needs the account `loader` of `acl`. Run it again after a restart, a failover or SCRIPT FLUSH.
    """
    with _ending(as_json):
        count = asyncio.run(maintain.preload(url))
        if as_json:
            print_json({"ok": True, "scripts": count})
        else:
            screen().print(f"{count} scripts loaded")


@app.command(epilog=EXIT_CODES)
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
    """Print an ACL SETUSER command for each role, with the smallest set of rights. Replace the passwords yourself.

    `loader` may do every store operation and send scripts. `runner` may only run scripts that a loader has sent.
    `auditor` may also SCAN, for `audit`. The command connects to no server.
    """
    with _ending(as_json):
        lines = rights.lines(namespace, f"lash-{namespace}" if user is None else user, cluster=cluster)
        if as_json:
            print_json({"ok": True, "accounts": rights.accounts(namespace, cluster=cluster)})
        else:
            sys.stdout.write("".join(f"{line}\n" for line in lines))


# Files


@app.command(epilog=EXIT_CODES)
def export(
    session: Annotated[list[str] | None, typer.Argument(metavar="SESSION", help="The sessions' ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every session of the namespace.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to create. Default: standard output.")
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: Annotated[bool, typer.Option("--json", help="With --output: print one JSON document.")] = False,
) -> None:
    """Write sessions as JSON Lines for `import`, each at one revision and with all of its data.

    FILE appears when it is complete. A failure leaves FILE unchanged, and the lines written so far in FILE.part.
    """
    with _ending(as_json):
        if bool(session) == every:
            raise CommandError(USAGE, "expected either session ids or --all")
        if as_json and output is None:
            raise CommandError(
                USAGE, "--json needs --output, because the sessions are written to standard output without it"
            )
        ids = list(dict.fromkeys(session)) if session else None
        exported = asyncio.run(transfer.export(url, namespace, ids, output))
        if as_json:
            print_json(exported.to_json())
        elif output is not None:
            transfer.print_exported(exported, output, screen())


@app.command("import", epilog=EXIT_CODES)
def import_sessions(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="An export; - is standard input.")],
    openai: Annotated[
        bool,
        typer.Option("--openai", help='Import transcripts from any number of files: a line is {"id", "messages"}.'),
    ] = False,
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Expire sessions without a ttl of their own after this time."),
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Store the sessions of an export, or chat transcripts, each completely or not at all.

    To resume an interrupted import, run it again: sessions that are stored already are left as they are.

    Exit code 1 if a session was refused (its id belongs to another session, or was deleted), or if the end of the file
    is missing. Exit code 2 at an invalid line, which the error names; the sessions before it are stored.

    With `--openai`, each line becomes a session with one commit of all its messages: OpenAI chat messages, or a tree as
    for `replay`. The line's "model" becomes the model of the session.
    """
    with _ending(as_json):
        if openai:
            report = asyncio.run(transcripts.import_transcripts(url, namespace, files, ttl))
        elif len(files) == 1:
            report = asyncio.run(transfer.import_export(url, namespace, files[0], ttl))
        else:
            raise CommandError(USAGE, "expected one file; only --openai accepts several")
        whole = transfer.is_whole(report)
        if as_json:
            print_json({"ok": whole, **report.to_json()})
        else:
            transfer.print_imported(report, screen())
    raise typer.Exit(OK if whole else UNFIT)
