"""What the commands share: exit codes, output streams, and the format of texts and numbers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

OK, UNFIT, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = (
    "Exit codes: 0 success; 1 verification failed, server unfit, session not found, refused or unreadable; "
    "2 wrong usage or invalid input file; 3 the server could not be reached, or refused the command; 130 interrupted."
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SECRET = re.compile(r"((?:^|&)(?:sentinel_)?password=)[^&]*")


class CommandError(Exception):
    """Ends the command with a message and an exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def no_session(session_id: str, namespace: str) -> CommandError:
    return CommandError(UNFIT, f"no session {session_id!r} in namespace {namespace!r}")


def escape_characters_that_streams_lack() -> None:
    """Let both output streams write an escape, such as `\\u2713`, for a character that their encoding lacks.

    Otherwise a command that has succeeded would end with an error, because its report could not be written.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def screen() -> Console:
    """Return a console on standard output. A new one each time, because tests and pipes replace `sys.stdout`."""
    return Console(file=sys.stdout, highlight=False)


def progress_screen() -> Console:
    """Return a console on standard error."""
    return Console(file=sys.stderr, highlight=False)


def print_table(table: Table, screen: Console) -> None:
    """Print a table with complete cells. On a narrow screen its lines are longer than the screen."""
    table.width = screen.measure(table, options=screen.options.update(max_width=sys.maxsize)).maximum
    screen.print(table, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Print the only document of a command with `--json`."""
    sys.stdout.write(f"{json.dumps(document, ensure_ascii=not _has_all_characters(), indent=2)}\n")


def print_json_line(document: dict[str, Any]) -> None:
    """Print one of the documents of a command that runs on, and flush it, so that a reader gets it immediately."""
    sys.stdout.write(f"{json.dumps(document, ensure_ascii=not _has_all_characters())}\n")
    sys.stdout.flush()


def _has_all_characters() -> bool:
    """Whether standard output can write every character. The escapes of other streams are not always JSON."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def plain(text: str, style: str = "") -> Text:
    """Return stored text without interpreting it as markup, and with control characters replaced."""
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n")), style=style)


def one_line(text: str, width: int) -> str:
    """Return the beginning of `text` on one line of at most `width` characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def shown_url(url: str) -> str:
    """Return `url` with `***` in place of its password."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user:
        user = user.partition(":")[0] + ":***"
    query = _SECRET.sub(r"\1***", parts.query)
    return urlunsplit(parts._replace(netloc=user + at + host, query=query)) if parts.netloc or query else url


def counted(count: int, noun: str) -> str:
    """Return a number with a noun, such as `1 session` or `1,200 sessions`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shown_bytes(count: int | float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile by the nearest-rank method: the smallest value that at least `percent` % do not exceed.

    0 if there are no values.
    """
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0.0
