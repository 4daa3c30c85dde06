"""A pool of worker processes with time limits, which never outlive this process.

`multiprocessing` is not used, because each worker needs an operating system session of its own: a Ctrl-C at the
terminal then does not reach it. A worker ends when its connection is closed, however this process ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from lash_redis.cli.replay.worker import Job, Result, Settings

JOB_TIMEOUT = 120.0
"""Maximum seconds without a result from any worker."""
STOP_TIMEOUT = 2.0
"""Maximum seconds for a worker to end; after that it is killed."""

_START = "import sys; from lash_redis.cli.replay.worker import serve; serve(int(sys.argv[1]))"


class WorkerDied(Exception):
    """A worker ended or did not answer in time."""


class Pool:
    """`count` workers. As a context manager, it waits until all have started, and ends them when it is left."""

    def __init__(self, count: int, settings: Settings) -> None:
        self._waiting: list[deque[Job]] = [deque() for _ in range(count)]
        self._busy: dict[int, Job] = {}
        self._lines: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            for _ in range(count):
                line, worker_line = Pipe()
                self._lines.append(line)
                with worker_line:
                    self._processes.append(
                        subprocess.Popen(
                            [sys.executable, "-c", _START, str(worker_line.fileno())],
                            pass_fds=[worker_line.fileno()],
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            env=environment,
                            start_new_session=True,
                        )
                    )
                with suppress(BrokenPipeError):  # the worker has ended, which `results` reports
                    line.send(settings)
        except BaseException:
            self.stop()
            raise

    def __len__(self) -> int:
        return len(self._waiting)

    def __enter__(self) -> Self:
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def _wait_until_ready(self) -> None:
        for worker, line in enumerate(self._lines):
            try:
                if not line.poll(JOB_TIMEOUT):
                    raise WorkerDied(f"worker {worker} has not started within {JOB_TIMEOUT:g} seconds")
                line.recv()
            except (EOFError, OSError):
                raise self._died(worker) from None

    def put(self, worker: int, job: Job) -> None:
        self._waiting[worker].append(job)

    def results(self) -> Iterator[tuple[Job, Result]]:
        """Yield each job with its result, in the order of completion. More jobs may be put during the iteration.

        Raises:
            WorkerDied: a worker ended before it answered, or none answered for `JOB_TIMEOUT` seconds.
        """
        while self._assign_jobs():
            ready = wait([self._lines[worker] for worker in self._busy], JOB_TIMEOUT)
            if not ready:
                raise WorkerDied(f"no worker has answered for {JOB_TIMEOUT:g} seconds")
            for line in ready:
                assert isinstance(line, Connection)
                worker = self._lines.index(line)
                try:
                    result: Result = line.recv()
                except (EOFError, OSError):
                    raise self._died(worker) from None
                yield self._busy.pop(worker), result

    def _assign_jobs(self) -> bool:
        """Send each idle worker its next job; return whether any worker is busy."""
        for worker, waiting in enumerate(self._waiting):
            if waiting and worker not in self._busy:
                self._busy[worker] = waiting.popleft()
                try:
                    self._lines[worker].send(self._busy[worker])
                except OSError:
                    raise self._died(worker) from None
        return bool(self._busy)

    def _died(self, worker: int) -> WorkerDied:
        process = self._processes[worker]
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        job = self._busy.get(worker)
        return WorkerDied(
            f"worker {worker} (process {process.pid}) ended with code {process.returncode}"
            + (f" at a turn of session {job.session_id!r}" if job else "")
        )

    def stop(self) -> None:
        """End every worker. Idempotent. Blocks for about `STOP_TIMEOUT` seconds at most for each worker."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
