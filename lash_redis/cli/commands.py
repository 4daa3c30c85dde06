"""The three commands: their options, and how each one ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lash_redis.cli import doctor as doctor_module
from lash_redis.cli import replay as replay_module
from lash_redis.cli import show as show_module
from lash_redis.cli.conversations import SHIPPED, InputError, read_conversations, read_tools
from lash_redis.cli.output import (
    EXIT_CODES,
    INTERRUPTED,
    OK,
    UNFIT,
    UNREACHABLE,
    USAGE,
    CommandError,
    print_json,
    screen,
)
from lash_redis.errors import BackendError, InvalidRecord, OutcomeUnknown, StoreError

Url = Annotated[
    str,
    typer.Option(
        envvar="LASH_REDIS_URL",
        help="redis://, rediss://, unix://, or embedded://[directory]: a server that ends with this command.",
    ),
]
Namespace = Annotated[str, typer.Option(help="The namespace of the sessions.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]

app = typer.Typer(
    help="Agent sessions in Redis or Valkey: replay conversations, look at a session, examine a server.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@contextmanager
def _ending(as_json: bool) -> Iterator[None]:
    """Every way a command can end early, as an exit code and a line that says why."""
    try:
        yield
    except KeyboardInterrupt:
        raise _ended(INTERRUPTED, "interrupted", as_json) from None
    except CommandError as error:
        raise _ended(error.code, error.text, as_json) from error
    except (InputError, InvalidRecord) as error:
        raise _ended(USAGE, str(error), as_json) from error
    except (BackendError, OutcomeUnknown) as error:
        raise _ended(UNREACHABLE, str(error), as_json) from error
    except StoreError as error:
        raise _ended(UNFIT, f"{type(error).__name__}: {error}", as_json) from error


def _ended(code: int, text: str, as_json: bool) -> typer.Exit:
    if as_json:
        print_json({"ok": False, "exit_code": code, "error": text})
    sys.stderr.write(f"lash-redis: {text}\n")
    return typer.Exit(code)


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
