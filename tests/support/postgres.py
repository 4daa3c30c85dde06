"""A PostgreSQL server for the test session, from the binaries of the system."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tests.support.processes import free_port
from tests.support.servers import report_missing

UNPRIVILEGED = "nobody"
"""The account of the server if the tests run as root, which PostgreSQL refuses."""


def require_postgres() -> Path:
    """Return the folder of the binaries. Without them, the test is skipped, or fails as for any missing server."""
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return debian[-1].parent if debian else report_missing("postgres is not installed: apt-get install postgresql")


@contextmanager
def running_postgres() -> Iterator[str]:
    """Start a server on a free port of the loopback interface, and yield its URL without a database."""
    binaries = require_postgres()
    account = UNPRIVILEGED if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="lash-postgres-") as folder:
        if account is not None:
            shutil.chown(folder, account)
        data = Path(folder, "data")
        initdb = [binaries / "initdb", "-D", data, "-U", "tests", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run([*initdb, "--locale=C"], check=True, capture_output=True, user=account, cwd=folder)
        port = free_port()
        options = ["-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-c", "fsync=off"]
        server = subprocess.Popen(
            [binaries / "postgres", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=account,
            cwd=folder,
        )
        try:
            _await_ready([binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], server)
            yield f"postgresql://tests@127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def new_database(url: str) -> str:
    """Create a database, and return its URL."""
    import psycopg  # its import fails where no libpq is installed

    name = f"tests_{uuid4().hex}"
    with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{url}/{name}"


def _await_ready(probe: list[str | Path], server: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while subprocess.run(probe, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"postgres did not start: exit code {server.poll()}")
        time.sleep(0.05)
