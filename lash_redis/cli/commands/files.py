"""The commands on files of sessions: export, import."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from lash_redis.cli import (
    adk_import,
    langgraph_import,
    redis_import,
    transcript_export,
    transcript_import,
    transfer,
)
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
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="An export; - is standard input.")] = None,
    openai: Annotated[
        bool,
        typer.Option("--openai", help='FILEs of transcripts: a line is {"id", "messages"}.'),
    ] = False,
    redis_session: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server of openai-agents' RedisSession."),
    ] = None,
    langchain: Annotated[str | None, typer.Option(metavar="URL", help="That of RedisChatMessageHistory.")] = None,
    langgraph_sqlite: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The database of LangGraph's SqliteSaver.")
    ] = None,
    langgraph_postgres: Annotated[str | None, typer.Option(metavar="URL", help="That of its PostgresSaver.")] = None,
    langgraph_redis: Annotated[str | None, typer.Option(metavar="URL", help="The server of its RedisSaver.")] = None,
    adk: Annotated[str | None, typer.Option(metavar="URL", help="Google ADK's database: URL or file.")] = None,
    prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The prefix of the keys in that Redis, if changed.")
    ] = None,
    thread: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A thread of LangGraph; all threads without it.")
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Expire after this time, without a ttl of their own."),
    ] = None,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Store the sessions of an export, chat transcripts, or what another library keeps elsewhere.

    Sessions that are stored already are left as they are, so an interrupted import can be run again. Exit code 1 if a
    session was refused or the end of the file is missing. Exit code 2 at an invalid line.

    Imports from another library compare both sides. A second run adds what was written meanwhile.
    """
    with ending(as_json):
        warn_of_empty_server(url)
        libraries = (redis_session, langchain, adk, langgraph_sqlite, langgraph_postgres, langgraph_redis)
        if bool(files) + sum(each is not None for each in libraries) != 1 or (openai and not files):
            raise CommandError(USAGE, "expected a FILE, or one option that names the data of another library")
        is_langgraph = any(each is not None for each in libraries[3:])
        if thread and not is_langgraph:
            raise CommandError(USAGE, "--thread needs --langgraph-sqlite, --langgraph-postgres or --langgraph-redis")
        if prefix is not None and all(each is None for each in (redis_session, langchain, langgraph_redis)):
            raise CommandError(USAGE, "--prefix needs --redis-session, --langchain or --langgraph-redis")
        if is_langgraph:
            threads = _langgraph_source(langgraph_sqlite, langgraph_postgres, langgraph_redis, prefix)
            report = asyncio.run(langgraph_import.import_threads(url, namespace, threads, thread or None, ttl))
        elif redis_session is not None:
            library = redis_import.redis_session(prefix)
            report = asyncio.run(redis_import.import_histories(url, namespace, library, redis_session, ttl))
        elif langchain is not None:
            library = redis_import.langchain(prefix)
            report = asyncio.run(redis_import.import_histories(url, namespace, library, langchain, ttl))
        elif adk is not None:
            report = asyncio.run(adk_import.import_database(url, namespace, adk, ttl))
        elif openai:
            report = asyncio.run(transcript_import.import_transcripts(url, namespace, files or [], ttl))
        elif files is not None and len(files) == 1:
            report = asyncio.run(transfer.import_export(url, namespace, files[0], ttl))
        else:
            raise CommandError(USAGE, "expected one file; only --openai accepts several")
        whole = transfer.is_whole(report)
        if as_json:
            print_json({"ok": whole, **report.to_json()})
        else:
            transfer.print_imported(report, screen(), "the file" if files else "the source")
    raise typer.Exit(OK if whole else UNFIT)


def _langgraph_source(
    sqlite: Path | None, postgres: str | None, redis: str | None, prefix: str | None
) -> langgraph_import.Source:
    """Return the source of the one that is given."""
    if sqlite is not None:
        return langgraph_import.sqlite(sqlite)
    if postgres is not None:
        return langgraph_import.postgres(postgres)
    return langgraph_import.redis_saver(redis or "", prefix)
