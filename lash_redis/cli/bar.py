"""A progress bar on standard error if that is a terminal; otherwise nothing is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from lash_redis.cli.output import progress_screen


class Bar:
    """The progress of a command. `total` is None if it is unknown."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def start(self, what: str, total: int | None) -> None:
        self._progress.reset(self._task, description=what, total=total)

    def advance(self, by: int = 1) -> None:
        self._progress.advance(self._task, by)

    def reach(self, done: int, total: int | None = None) -> None:
        """Set the progress to `done`. Set the total, too, if it is given."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(counting: Literal["steps", "bytes"] = "steps", *, hidden: bool = False) -> Iterator[Bar]:
    """Show a bar until the end of the block. `hidden`: draw nothing, as the command prints to the same terminal."""
    screen = progress_screen()
    counted: ProgressColumn = MofNCompleteColumn() if counting == "steps" else DownloadColumn()
    columns = (TextColumn("{task.description:<9}"), BarColumn(), counted, TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=hidden or not screen.is_terminal) as progress:
        yield Bar(progress)
