"""The commands on sessions: list, show, tail, watch, fork, delete."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from lash_redis.cli import sessions
from lash_redis.cli import show as show_module
from lash_redis.cli import tail as tail_module
from lash_redis.cli.commands.app import (
    NO_URL,
    AsJson,
    AsJsonLines,
    Namespace,
    SessionId,
    Url,
    command,
    ending,
    require_directory,
    require_stored_data,
    warn_of_empty_server,
)
from lash_redis.cli.output import OK, UNFIT, CommandError, print_json, print_json_line, screen


@command("list", example="list --limit 50")
def list_sessions(
    limit: Annotated[int, typer.Option(min=1, max=sessions.MAX_PAGE, metavar="N", help="Sessions on the page.")] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Continue after this cursor of a page, or session id.")
    ] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="Only sessions with this parent.")] = None,
    owner: Annotated[str | None, typer.Option(metavar="OWNER", help="Only sessions of this user or tenant.")] = None,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """List a page of sessions, the latest commit first.

    Columns: last commit, revision, number of user messages ("messages") and the beginning of the first of them.
    Owner, title and parent follow if a session of the page has one, and its fault if a session cannot be read.
    """
    with ending(as_json):
        require_directory(url)
        warn_of_empty_server(url)
        page = asyncio.run(sessions.load_page(url, namespace, limit=limit, after=after, parent=parent, owner=owner))
        if as_json:
            print_json(page.to_json())
        else:
            sessions.print_page(page, namespace, screen())


@command("show", example="show chat-42 --messages")
def show(
    session: SessionId,
    messages: Annotated[bool, typer.Option("--messages", help="Print the messages of the active path, too.")] = False,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Show a session: its head, graph, tokens and components."""
    with ending(as_json):
        require_stored_data(url)
        shown = asyncio.run(show_module.load(url, namespace, session))
        if as_json:
            print_json(shown.to_json(messages=messages))
        else:
            show_module.print_session(shown, screen(), messages=messages)


@command("tail", example="tail chat-42 --last 3")
def tail(
    session: SessionId,
    last: Annotated[int, typer.Option(min=0, metavar="N", help="First print so many messages.")] = 10,
    generation: Annotated[
        str | None, typer.Option(metavar="ID", help="Print the events of this generation's stream, until it ends.")
    ] = None,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJsonLines = False,
) -> None:
    """Print each message of a session as it is committed, until ctrl-C.

    It follows the active path: a message on another branch is printed when the session continues there. Exit code 1:
    the session or the stream does not exist, was deleted, expired or cannot be read, or the stream failed. Exit code 3:
    no server for a minute.
    """
    with ending(as_json, print_json_line):
        require_stored_data(url)

        def report(message: dict[str, Any]) -> None:
            if as_json:
                print_json_line({"ok": True, "session_id": session, **message})
            else:
                tail_module.print_message(message, screen())

        def report_event(event: dict[str, Any]) -> None:
            if as_json:
                print_json_line({"ok": True, "session_id": session, "generation_id": generation, **event})
            else:
                tail_module.print_event(event, screen())

        if generation is None:
            asyncio.run(tail_module.tail(url, namespace, session, last, report))
        else:
            asyncio.run(tail_module.tail_stream(url, namespace, session, generation, report_event))


@command("watch", example="watch chat-42 --since 7")
def watch(
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="The session's id; the session need not exist yet.")
    ],
    since: Annotated[
        int | None,
        typer.Option(min=0, metavar="REVISION", help="The last known revision. Default: the current one."),
    ] = None,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJsonLines = False,
) -> None:
    """Print each new revision of a session, until ctrl-C.

    Several commits may share one line. Exit code 1: the session was deleted, expired or cannot be read. Exit code 3:
    no server for a minute.
    """
    with ending(as_json, print_json_line):
        require_stored_data(url)

        def report(revision: int) -> None:
            if as_json:
                print_json_line({"ok": True, "session_id": session, "head_revision": revision})
            else:
                sessions.print_revision(revision)

        asyncio.run(sessions.watch(url, namespace, session, since, report))


@command("fork", example="fork chat-42 chat-43 --leaf m7")
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
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Start a new session with the conversation of another one.

    It has the components of SOURCE, too. SOURCE does not change. Exit code 1, and nothing is written, if SOURCE or NODE
    does not exist, or if NEW_ID exists already.
    """
    with ending(as_json):
        require_stored_data(url)
        forked = asyncio.run(sessions.fork(url, namespace, source, new_id, leaf, ttl))
        if as_json:
            print_json(forked)
        else:
            sessions.print_fork(forked, screen())


@command("delete", example="delete chat-42 chat-43 --yes")
def delete(
    session: Annotated[list[str], typer.Argument(metavar="SESSION", help="The sessions' ids.")],
    reusable: Annotated[
        bool, typer.Option("--reusable", help="Let the ids be used again at once. Late commits are refused.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Without a terminal, the command never asks.")
    ] = False,
    url: Url = NO_URL,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Delete sessions permanently, one after the other.

    Writes to their ids are refused for a day, unless --reusable is given. Exit code 1 if one of the sessions did not
    exist; the others are deleted.
    """
    with ending(as_json):
        require_stored_data(url)
        ids = list(dict.fromkeys(session))
        if not yes and sys.stdin.isatty():
            what = sessions.named(ids)
            if not typer.confirm(f"Delete {what} of namespace {namespace} permanently?", err=True):
                raise CommandError(UNFIT, "nothing was deleted")
        reports = asyncio.run(sessions.delete(url, namespace, ids, None if as_json else screen(), reusable=reusable))
        existed = all(report.existed for report in reports.values())
        if as_json:
            documents = [{"session_id": name, **report.to_json()} for name, report in reports.items()]
            print_json({"ok": existed, "sessions": documents})
    raise typer.Exit(OK if existed else UNFIT)
