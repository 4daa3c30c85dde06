"""The command line `lash-redis`: list, show, fork, delete, transfer and audit sessions; replay; examine a server."""

from __future__ import annotations

import sys
from typing import Any

_PACKAGES = ("typer", "rich")


def main() -> None:
    """Run the command that `sys.argv` names, and exit with its code."""
    try:
        from lash_redis.cli.commands import app
        from lash_redis.cli.output import escape_characters_that_streams_lack
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        sys.stderr.write(f"lash-redis needs {package}: pip install 'lash-redis[cli]'\n")
        sys.exit(2)
    escape_characters_that_streams_lack()
    app(prog_name="lash-redis")


def __getattr__(name: str) -> Any:
    # The worker processes of replay import this package, too, and do not need typer and rich.
    if name == "app":
        from lash_redis.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
