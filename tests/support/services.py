"""Services of the folder `examples`, run by real server processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.paths import ROOT
from tests.support.processes import free_port

START_SECONDS = 30.0


class Service:
    """One uvicorn with its workers, of the example or the absolute folder `name`. Its files are in `directory`."""

    def __init__(self, name: str | Path, directory: Path, *options: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        folder = ROOT / "examples" / name  # an absolute path replaces the others
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments(folder), *options],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def arguments(self, folder: Path) -> list[str]:
        """The arguments of Python that start the service of `folder` on its port."""
        return ["-m", "uvicorn", "app:app", "--app-dir", str(folder), "--port", str(self.port)]

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/openapi.json")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the service did not start")

    def kill(self) -> None:
        """End the workers as a crash does, without a chance to release anything."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(30)


class DjangoService(Service):
    """One process of Django's development server, of the example `name`."""

    def arguments(self, folder: Path) -> list[str]:
        return [str(folder / "app.py"), "runserver", "--noreload", f"127.0.0.1:{self.port}"]
