"""The files that commands read, line by line, and errors that name the file and the line."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from select import select
from typing import IO

from lash_redis.cli.interrupt import interruptible


class InputError(Exception):
    """A file cannot be read or is invalid. Names the file, the line, the field and the reason."""

    def __init__(self, path: Path, line: int | None, field: str, reason: str) -> None:
        super().__init__(path, line, field, reason)
        self.path, self.line, self.field, self.reason = path, line, field, reason

    def __str__(self) -> str:
        place = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.field}: {self.reason}" if self.field else f"{place}: {self.reason}"


class Input:
    """A file, or standard input if the path is `-`. `progress` is called with the number of bytes read so far."""

    def __init__(self, path: Path, progress: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._progress = progress

    @property
    def size(self) -> int | None:
        """Bytes; None if unknown: for a pipe, and for a file that does not exist."""
        try:
            status = os.fstat(sys.stdin.fileno()) if self._is_standard else os.stat(self.path)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    @property
    def may_wait(self) -> bool:
        """Whether reading the next line may block: standard input is a pipe, and no data is available."""
        try:
            return self._is_standard and not select([sys.stdin], [], [], 0)[0]
        except (OSError, ValueError):  # standard input is not a file of the operating system
            return False

    def lines(self) -> Iterator[bytes]:
        """Yield each line with its line end, without a byte order mark. One line is in memory at a time.

        Raises:
            InputError: the file cannot be opened or read.
        """
        done = 0
        try:
            with self._opened() as file:
                while line := _next_line(file):
                    first, done = done == 0, done + len(line)
                    if self._progress is not None:
                        self._progress(done)
                    yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        except OSError as error:
            raise InputError(self.path, None, "", error.strerror or str(error)) from error

    @property
    def _is_standard(self) -> bool:
        return str(self.path) == "-"

    def _opened(self) -> IO[bytes] | nullcontext[IO[bytes]]:
        return nullcontext(sys.stdin.buffer) if self._is_standard else self.path.open("rb")


def _next_line(file: IO[bytes]) -> bytes:
    with interruptible():
        return file.readline()
