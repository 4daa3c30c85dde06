"""The program that the commands belong to: its options, its help, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from lash_redis import __version__
from lash_redis.cli.input import InputError
from lash_redis.cli.output import (
    EXIT_CODES,
    INTERRUPTED,
    UNFIT,
    UNREACHABLE,
    USAGE,
    CommandError,
    print_json,
)
from lash_redis.errors import BackendError, InvalidRecord, OutcomeUnknown, StoreError
from lash_redis.transport.connectors import directory_of

NO_URL = "embedded://"
"""The default of `--url`: a server that the command starts, that is empty, and that ends with the command."""

Url = Annotated[
    str,
    typer.Option(
        envvar="LASH_REDIS_URL",
        help="redis://host or embedded://[directory]; the guide lists all URLs.",
        show_default=False,
    ),
]
Namespace = Annotated[
    str, typer.Option(envvar="LASH_REDIS_NAMESPACE", metavar="NAME", help="The namespace of the sessions.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")]
SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]

app = typer.Typer(
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"lash-redis {__version__}\n")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Agent sessions in Redis or Valkey."""


_EMPTY = {NO_URL: "an empty embedded server in memory", "memory://": "an empty server in memory"}
_GIVE_URL = "pass --url redis://host or --url embedded:///directory, or set LASH_REDIS_URL"


def require_stored_data(url: str) -> None:
    """Refuse a URL of a server that starts empty. For a command that has nothing to do on an empty server.

    Raises:
        CommandError: the server would be empty; it was not started, and no directory was made.
    """
    require_directory(url)
    if url in _EMPTY:
        raise CommandError(
            USAGE, f"--url: expected a server with stored sessions, got {_EMPTY[url]} ({url}); {_GIVE_URL}"
        )


def require_directory(url: str) -> None:
    """Refuse the URL of an embedded server in a directory that does not exist. For a command that only reads.

    Raises:
        CommandError: the directory does not exist; it was not made.
    """
    directory = directory_of(url)
    if directory is not None and not directory.exists():
        raise CommandError(USAGE, f"--url: expected a directory with stored sessions, but {directory} does not exist")


def warn_of_empty_server(url: str) -> None:
    """Print a line on standard error if the server starts empty and ends with the command."""
    if url in _EMPTY:
        sys.stderr.write(f"lash-redis: using {_EMPTY[url]}, which ends with this command; {_GIVE_URL}\n")


def command(name: str, *, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command. Its help ends with the example and the exit codes."""
    return app.command(name, epilog=f"Example: `lash-redis {example}`\n\n{EXIT_CODES}")


@contextmanager
def ending(as_json: bool, document: Callable[[dict[str, Any]], None] = print_json) -> Iterator[None]:
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
