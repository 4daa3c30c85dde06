"""The commands on files of sessions: export, import."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from lash_redis.cli import transcript_export, transcript_import, transfer
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
from lash_redis.cli.library_import import OtherStore, import_from
from lash_redis.cli.output import OK, UNFIT, USAGE, CommandError, print_json, screen


@command("export", example="export --all --output sessions.jsonl")
def export(
    session: Annotated[list[str] | None, typer.Argument(metavar="SESSION", help="The sessions' ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every session of the namespace.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to create. Default: standard output.")
    ] = None,
    openai: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write chat transcripts to this file instead; - is standard output."),
    ] = None,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: Annotated[bool, typer.Option("--json", help="With a FILE: print one JSON document.")] = False,
) -> None:
    """Write sessions to a file of JSON Lines, for `import`.

    Each is written at one revision and with all of its data. FILE appears when it is complete. A failure leaves FILE
    unchanged, and the lines written so far in FILE.part.

    With `--openai`, a line is {"id", "messages"} for `import --openai`: the messages of the active path.
    """
    with ending(as_json):
        if bool(session) == every:
            raise CommandError(USAGE, "expected either session ids or --all")
        if output is not None and openai is not None:
            raise CommandError(USAGE, "expected either --output or --openai, got both; export once for each")
        file = None if openai == Path("-") else openai or output
        if as_json and file is None:
            raise CommandError(
                USAGE, "--json needs --output or --openai with a file, because standard output gets the sessions"
            )
        require_stored_data(url)
        ids = list(dict.fromkeys(session)) if session else None
        module = transfer if openai is None else transcript_export
        exported = asyncio.run(module.export(url, namespace, ids, file))
        if as_json:
            print_json(exported.to_json())
        elif file is not None:
            module.print_exported(exported, file, screen())


@command("import", example="import sessions.jsonl --namespace other")
def import_sessions(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="A file, or a URL with --from; - is standard input.")
    ],
    openai: Annotated[
        bool,
        typer.Option("--openai", help='Transcripts: a line is {"id", "messages"}.'),
    ] = False,
    store: Annotated[
        OtherStore | None,
        typer.Option("--from", metavar="LIBRARY", help="redis-session, langchain, langgraph or adk."),
    ] = None,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="The prefix of the keys in a Redis.")] = None,
    thread: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only this thread of LangGraph.")] = None,
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Expire after this time."),
    ] = None,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Store the sessions of an export, chat transcripts, or the sessions of another library's store.

    Sessions that are stored already are left as they are, so an interrupted import can be run again. Exit code 1 if a
    session was refused or the end of the file is missing. Exit code 2 at an invalid line.

    Imports from another library compare both sides. A second run adds what was written meanwhile.
    """
    with ending(as_json):
        warn_of_empty_server(url)
        if openai and store is not None:
            raise CommandError(USAGE, "expected either --openai or --from, got both")
        if store is None and (thread or prefix is not None):
            raise CommandError(USAGE, "--thread and --prefix need --from")
        if len(sources) > 1 and not openai:
            raise CommandError(USAGE, "expected one SOURCE; only --openai accepts several")
        files = [Path(source) for source in sources]
        if store is not None:
            reading = import_from(store, sources[0], url, namespace, prefix=prefix, threads=thread, ttl=ttl)
        elif openai:
            reading = transcript_import.import_transcripts(url, namespace, files, ttl)
        else:
            reading = transfer.import_export(url, namespace, files[0], ttl)
        report = asyncio.run(reading)
        whole = transfer.is_whole(report)
        if as_json:
            print_json({"ok": whole, **report.to_json()})
        else:
            transfer.print_imported(report, screen(), "the file" if store is None else "the source")
    raise typer.Exit(OK if whole else UNFIT)
