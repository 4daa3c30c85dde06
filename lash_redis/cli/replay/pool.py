"""Worker processes, and jobs handed to them: bounded in time, never left behind.

Not `multiprocessing`: a session of its own keeps a Ctrl-C at the terminal away from a worker, and a closed connection
ends it, whatever became of us.
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
"""Seconds without a word from any worker until they are given up."""
STOP_TIMEOUT = 2.0
"""Seconds a worker has to end by itself before it is killed."""

_START = "import sys; from lash_redis.cli.replay.worker import serve; serve(int(sys.argv[1]))"


class WorkerDied(Exception):
    """A worker ended or fell silent with a job in its hands."""


class Pool:
    """`count` workers. As a context manager it waits until all have started, and ends them when it is left."""

    def __init__(self, count: int, settings: Settings) -> None:
        self._waiting: list[deque[Job]] = [deque() for _ in range(count)]
        self._busy: dict[int, Job] = {}
        self._lines: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            for _ in range(count):
                ours, theirs = Pipe()
                self._lines.append(ours)
                with theirs:
                    self._processes.append(
                        subprocess.Popen(
                            [sys.executable, "-c", _START, str(theirs.fileno())],
                            pass_fds=[theirs.fileno()],
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            env=environment,
                            start_new_session=True,
                        )
                    )
                with suppress(BrokenPipeError):  # found out by `results`
                    ours.send(settings)
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
        """Every result as it comes; more jobs may be put meanwhile.

        Raises:
            WorkerDied: a worker ended before it had answered, or none answered for `JOB_TIMEOUT` seconds.
        """
        while self._hand_out():
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

    def _hand_out(self) -> bool:
        """Give each idle worker its next job; whether any is at work."""
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
        """End every worker. Idempotent; blocks, at most `STOP_TIMEOUT` or so."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
