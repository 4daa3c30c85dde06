"""The files that commands read: line by line, whatever their size, with their names in what is said of them."""

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
    """A file is not what it should be: where, which field, and why."""

    def __init__(self, path: Path, line: int | None, field: str, reason: str) -> None:
        super().__init__(path, line, field, reason)
        self.path, self.line, self.field, self.reason = path, line, field, reason

    def __str__(self) -> str:
        place = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.field}: {self.reason}" if self.field else f"{place}: {self.reason}"


class Input:
    """A file, or standard input where the path is `-`. `told` hears how many bytes of it have been handed out."""

    def __init__(self, path: Path, told: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._told = told

    @property
    def size(self) -> int | None:
        """Bytes; None where only reading tells: of a pipe, and of what is not there."""
        try:
            status = os.fstat(sys.stdin.fileno()) if self._is_standard else os.stat(self.path)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    @property
    def may_wait(self) -> bool:
        """Whether the next line may take its time: standard input is a pipe, and nothing new is in it."""
        try:
            return self._is_standard and not select([sys.stdin], [], [], 0)[0]
        except (OSError, ValueError):  # no file of the system's
            return False

    def lines(self) -> Iterator[bytes]:
        """Each line with its end, without a byte order mark. One line is in memory at a time.

        Raises:
            InputError: the file cannot be opened, or read on.
        """
        done = 0
        try:
            with self._opened() as file:
                while line := _next_line(file):
                    first, done = done == 0, done + len(line)
                    if self._told is not None:
                        self._told(done)
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
