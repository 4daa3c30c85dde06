"""The commands: their options, and how each one ends."""

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
        "embedded://[directory]: a server that ends with this command.",
    ),
]
Namespace = Annotated[str, typer.Option(envvar="LASH_REDIS_NAMESPACE", help="The namespace of the sessions.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]

app = typer.Typer(
    help="Agent sessions in Redis or Valkey: list, show, fork, delete, carry and check them; examine a server.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@contextmanager
def _ending(as_json: bool, document: Callable[[dict[str, Any]], None] = print_json) -> Iterator[None]:
    """Every way a command can end early, as an exit code and a line that says why; with `--json` as a document too."""

    def ended(code: int, text: str) -> typer.Exit:
        if as_json:
            document({"ok": False, "exit_code": code, "error": text})
        sys.stderr.write(f"lash-redis: {text}\n")
        return typer.Exit(code)

    try:
        yield
    except typer.Abort:  # ctrl-C or ctrl-D where a question was asked: the line is not at its end
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
        typer.Argument(metavar="FILE", help="Conversations, one JSON object a line; without any, two that ship."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes; a turn goes to the next one each time.")] = 2,
    tools: Annotated[Path | None, typer.Option(help="OpenAI list of tools: the tool state of every session.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the sessions; else they expire after an hour.")] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Play conversations turn by turn, each turn in a process that has never seen the session; then verify them all.

    A line is {"id", "messages"}: OpenAI chat messages, or a tree of {"id", "parent_id", "role", "text", "lang"},
    parents before children. Every turn is read from the server, appended, and committed by compare-and-set. At the
    end other processes compare what is stored with the file: every message, every branch, components, usage, revision.
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
    messages: Annotated[bool, typer.Option("--messages", help="Print the active path's conversation too.")] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Show one session: where it stands, its graph with the active path, its tokens, its components."""
    with _ending(as_json):
        shown = asyncio.run(show_module.look_up(url, namespace, session))
        if as_json:
            print_json(shown.to_json(messages=messages))
        else:
            show_module.print_session(shown, screen(), messages=messages)


@app.command(epilog=EXIT_CODES)
def doctor(url: Url = "embedded://", namespace: Namespace = "default", as_json: AsJson = False) -> None:
    """Ask whether a server is fit to keep sessions: version, eviction, persistence, clock, permissions, latency.

    What the server will not tell is unknown, never a failure. A scratch session in the namespace lash-doctor is
    committed, read and maintained; it is gone after a minute.
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
        str | None, typer.Option(metavar="CURSOR", help="Go on where a page ended: its cursor, or a session's id.")
    ] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="Only sessions with this parent.")] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """List sessions, the most recently committed first, a page at a time.

    Each with its last commit, revision, the number of messages of the user ("said") and the first of them.
    A session that cannot be read is listed with its fault.
    """
    with _ending(as_json):
        page = asyncio.run(sessions.look_through(url, namespace, limit=limit, after=after, parent=parent))
        if as_json:
            print_json(page.to_json())
        else:
            sessions.print_page(page, namespace, screen())


@app.command(epilog=EXIT_CODES)
def watch(
    session: Annotated[str, typer.Argument(help="The session's id; it need not be there yet.")],
    since: Annotated[
        int | None,
        typer.Option(min=0, metavar="REVISION", help="The revision that was seen last; without, where it stands now."),
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document a line.")] = False,
) -> None:
    """Print a session's revision whenever it has moved, until ctrl-C; several commits may be one line.

    Ends with 1 when the session was deleted, has expired or cannot be read, and with 3 after a minute without a server.
    """
    with _ending(as_json, print_json_line):

        def tell(revision: int) -> None:
            if as_json:
                print_json_line({"ok": True, "session_id": session, "head_revision": revision})
            else:
                sessions.print_revision(revision)

        asyncio.run(sessions.watch(url, namespace, session, since, tell))


@app.command(epilog=EXIT_CODES)
def fork(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The id of the session to begin like.")],
    new_id: Annotated[str, typer.Argument(metavar="NEW_ID", help="The id of the new session.")],
    leaf: Annotated[
        str | None, typer.Option(metavar="NODE", help="Begin where SOURCE stood at this node; else where it stands.")
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="What the new one outlives each commit by; else for ever."),
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Begin a new session with the conversation and the components of another, which stays as it is.

    Ends with 1, and writes nothing, where there is no SOURCE, no such NODE, or a session NEW_ID already.
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Only a terminal is asked.")] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Delete sessions for good, one after the other; their ids take no writes for a day.

    Ends with 1 if one of them did not exist; the others are deleted all the same.
    """
    with _ending(as_json):
        ids = list(dict.fromkeys(session))
        if not yes and sys.stdin.isatty():
            what = sessions.named(ids)
            if not typer.confirm(f"Delete {what} of namespace {namespace} for good?", err=True):
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
    """Delete at once the blobs that no session holds, and forget sessions that expired; else both go in their time.

    Safe beside live traffic. Stopped in the middle it has done a part; run it again for the rest.
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
        bool, typer.Option("--repair", help="Mend counts of holders, leaked blobs and the list; never a session.")
    ] = False,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Hold everything the namespace stores against the laws of storage: a line for each problem.

    Safe beside live traffic. Needs the right to SCAN (the account `auditor` of `acl`). Ends with 1 if a problem is
    left that was not repaired.
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
    """Make every script known to the server, for accounts that may not send any (`allow_eval=False`).

    To be done again after a restart, a failover or SCRIPT FLUSH, by the account `loader` of `acl`.
    """
    with _ending(as_json):
        count = asyncio.run(maintain.preload(url))
        if as_json:
            print_json({"ok": True, "scripts": count})
        else:
            screen().print(f"the server knows all {count} scripts")


@app.command(epilog=EXIT_CODES)
def acl(
    namespace: Namespace = "default",
    user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Accounts are NAME-loader and so on; else lash-NAMESPACE-loader."),
    ] = None,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="For the nodes of a cluster: to be run on every one."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print an ACL SETUSER for each account that sessions need, with no right more; put the passwords in yourself.

    `loader` does everything a store does and sends scripts; `runner` runs only those that a loader has sent;
    `auditor` may SCAN, for `audit`. Connects to nothing.
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
        Path | None, typer.Option(metavar="FILE", help="Where to; it appears when it is whole. Else standard output.")
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: Annotated[bool, typer.Option("--json", help="With --output: print one JSON document.")] = False,
) -> None:
    """Write sessions as JSON Lines that `import` reads: each at one revision, with all it holds.

    A failure leaves FILE as it was, and what was written so far in FILE.part.
    """
    with _ending(as_json):
        if bool(session) == every:
            raise CommandError(USAGE, "takes either sessions or --all")
        if as_json and output is None:
            raise CommandError(USAGE, "--json needs --output: the sessions go to standard output")
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
        bool, typer.Option("--openai", help='Transcripts instead, any number of files: a line is {"id", "messages"}.')
    ] = False,
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="What sessions without a ttl of their own outlive this by."),
    ] = None,
    url: Url = "embedded://",
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Store the sessions of an export, or chat transcripts, each whole or not at all.

    Resumable: what is stored already is left as it is, so run it again after whatever stopped it, and it goes on.
    Ends with 1 if a session was refused (there is another of its id, or it was deleted) or the file has no end; with 2
    at a broken line, which it names: the sessions before it are stored.

    With `--openai` each line becomes a session with one commit of all its messages: OpenAI chat messages, or a tree as
    `replay` reads it; the line's "model", if any, is the session's.
    """
    with _ending(as_json):
        if openai:
            report = asyncio.run(transcripts.import_transcripts(url, namespace, files, ttl))
        elif len(files) == 1:
            report = asyncio.run(transfer.import_export(url, namespace, files[0], ttl))
        else:
            raise CommandError(USAGE, "takes one export at a time; several files are for --openai")
        whole = transfer.is_whole(report)
        if as_json:
            print_json({"ok": whole, **report.to_json()})
        else:
            transfer.print_imported(report, screen())
    raise typer.Exit(OK if whole else UNFIT)
