"""Servers that speak TLS, and certificates of an authority that exists for one test run."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import redis
import trustme

from lash_redis.embedded import EmbeddedServer
from tests.support.groups import MEMBER, _free_ports, _SentinelServer, _until
from tests.support.servers import Kind, every

SERVICE = "lash"


@cache
def tls_kind() -> Kind:
    """The newest server that was built with TLS. Without any, the newest server, with the reason as `missing`."""
    kinds = [kind for kind in every() if kind.real and not kind.group]
    newest = max(kinds, key=lambda kind: (_has_tls(kind), kind.product == "Redis", kind.version))
    if newest.missing or _has_tls(newest):
        return newest
    return replace(newest, missing=f"{newest.binary} has no TLS; apt install redis-server")


@cache
def _has_tls(kind: Kind) -> bool:
    """A server without TLS fails at the first of these settings, any other server at the second."""
    if kind.missing:
        return False
    command = [str(kind.binary), "--tls-port", "0", "--no-such-setting", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return "no-such-setting" in ended.stdout + ended.stderr


class Certificates:
    """A certificate authority, and files in `directory` with certificates that it signed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.authority = str(directory / "authority.pem")
        self._authority.cert_pem.write_to_path(self.authority)

    def issue(self, *names: str, **more: Any) -> dict[str, str]:
        """The files of a certificate for these hosts: `cert` and `key`."""
        issued = self._authority.issue_cert(*names, **more)
        stem = "-".join(names).replace(":", "_")
        files = {"cert": self._directory / f"{stem}.pem", "key": self._directory / f"{stem}.key"}
        issued.cert_chain_pems[0].write_to_path(str(files["cert"]))
        issued.private_key_pem.write_to_path(str(files["key"]))
        return {name: str(path) for name, path in files.items()}

    def query(self, **more: str) -> str:
        """URL options that make a client trust the authority."""
        return "?" + urlencode({"ssl_ca_certs": self.authority, **more})

    def context(self, *names: str) -> ssl.SSLContext:
        """The TLS context of a server in this process."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = self.issue(*names)
        context.load_cert_chain(files["cert"], files["key"])
        return context


class TlsServer:
    """A server that the test starts, with TLS on `port`; `admin` connects to its Unix socket, without TLS.

    `is_asking`: the server accepts only clients with a certificate of the authority.
    """

    def __init__(
        self,
        certificates: Certificates,
        files: Mapping[str, str],
        *,
        is_asking: bool = False,
        is_cluster: bool = False,
        primary: int | None = None,
    ) -> None:
        (self.port,) = _free_ports(1, bus=is_cluster)
        options = {
            **MEMBER,
            "tls-port": str(self.port),
            "tls-cert-file": files["cert"],
            "tls-key-file": files["key"],
            "tls-ca-cert-file": certificates.authority,
            "tls-auth-clients": "yes" if is_asking else "no",
            "tls-replication": "yes",
        }
        if is_cluster:
            options |= {"cluster-enabled": "yes", "tls-cluster": "yes", "cluster-announce-ip": "127.0.0.1"}
        kind = _SentinelServer if primary else EmbeddedServer
        self._server = kind(binary=tls_kind().binary, options=options)
        self._is_cluster = is_cluster
        if isinstance(self._server, _SentinelServer):
            self._server.config = Path(certificates.authority).parent / f"{self.port}.conf"
            self._server.config.write_text(f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 1\n")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def admin(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self._server.socket_path))

    def start(self) -> None:
        self._server.start()
        if self._is_cluster:
            with self.admin() as admin:
                admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
                _until(lambda: b"cluster_state:ok" in admin.execute_command("CLUSTER", "INFO"), "the cluster")

    def stop(self) -> None:
        self._server.stop()


class Relay:
    """Forward bytes to another port, and count the connections."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.count = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None] | None] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Start the relay and yield its address; close every connection at the end."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for writer in self._writers:
                writer.close()
            await asyncio.gather(*filter(None, self._tasks))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        self._tasks.add(asyncio.current_task())
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, to_server]
        await asyncio.gather(_pass_on(reader, to_server), _pass_on(from_server, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
