"""Groups of servers: a Redis Cluster, and a primary with replicas under Sentinel.

The members are child processes on free ports of 127.0.0.1, of any binary of `servers.table()`. They end with this
process, even if it is killed. A member persists only what it needs to rejoin the group after a restart.

Everything here blocks except the clients. Under a running event loop, call it through `asyncio.to_thread`.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Self, TypeVar
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel
from redis.crc import key_slot

from lash_redis.embedded import EmbeddedServer
from tests.support import processes
from tests.support.servers import Kind, every, require

SLOTS = 16_384
PATIENCE = 30.0
"""Seconds until a wait for a state of a group fails."""
ANSWER = 5.0
"""Seconds that a member has to reply."""
PORTS = range(11_000, 22_000)
"""Below the ephemeral ports, with room for the ports of a cluster's bus 10,000 above."""

MEMBER = {
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}


def preferred(group: type[_Group]) -> Kind:
    """The kind of server of a group for tests that do not depend on it."""
    (kind,) = (kind for kind in every() if kind.group == group.KIND)
    return kind


class Member:
    """One server of a group, on the same port for the life of the group."""

    def __init__(self, server: EmbeddedServer, *, name: str, password: str | None = None) -> None:
        self.server = server
        self.name = name
        self.password = password
        self.pid = 0
        self.is_frozen = False

    @property
    def port(self) -> int:
        assert self.server.port is not None
        return self.server.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    @property
    def is_up(self) -> bool:
        return self.server.running and not self.is_frozen

    def start(self) -> None:
        self.server.start()
        self.pid = self.info("server")["process_id"]

    def ask(self, *command: Any) -> Any:
        """Return its reply, or its error reply."""
        path = str(self.server.socket_path)
        with redis.Redis(unix_socket_path=path, password=self.password, socket_timeout=ANSWER) as client:
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        return dict(self.ask("INFO", section))

    def kill(self) -> None:
        """Send SIGKILL; return when the process has ended."""
        os.kill(self.pid, signal.SIGKILL)
        self.is_frozen = False
        _until(lambda: not self.server.running, f"{self!r} to end")

    def freeze(self) -> None:
        """Send SIGSTOP. The member keeps its connections and does not reply until `thaw`."""
        processes.freeze(self.pid)
        self.is_frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.is_frozen = False

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"


class _Group(ABC):
    """Members that start and stop together, and their directory."""

    KIND: ClassVar[str]

    def __init__(self, kind: Kind | None) -> None:
        kind = kind or preferred(type(self))
        assert kind.binary is not None
        self.kind = kind
        self.binary = kind.binary
        self._ending = ExitStack()
        self.root = self._directory()

    @property
    @abstractmethod
    def members(self) -> Sequence[Member]:
        """All members."""

    def _directory(self) -> Path:
        """A directory that is removed with the group, or shortly after this process is killed."""
        root = Path(tempfile.mkdtemp(prefix="lash-group-"))
        watch = 'read -r _; sleep 1; rm -rf "$0"'
        janitor = subprocess.Popen(["/bin/sh", "-c", watch, str(root)], stdin=subprocess.PIPE, start_new_session=True)

        def end() -> None:
            janitor.kill()
            janitor.communicate()
            shutil.rmtree(root)

        self._ending.callback(weakref.finalize(self, end))
        return root

    def _member(self, name: str, port: int, options: Mapping[str, str]) -> Member:
        server = EmbeddedServer(binary=self.binary, port=port, options={**MEMBER, **options})
        self._ending.callback(server.stop)
        return Member(server, name=name, password=options.get("requirepass"))

    def kill(self, member: Member) -> None:
        member.kill()

    def restart(self, member: Member) -> None:
        """Start it again, empty, as the same member."""
        member.start()

    def freeze(self, member: Member) -> None:
        member.freeze()

    def thaw(self, member: Member) -> None:
        """Send SIGCONT to a frozen member.

        A former primary acts as primary until it learns of its successor: soon in a cluster, after some ten seconds
        under Sentinel."""
        member.thaw()

    def wait_until_ok(self) -> None:
        """Return when every member is up and all members agree on the group."""
        _until(self._is_ok, f"{self!r} to be well", self._told)

    @abstractmethod
    def _is_ok(self) -> bool:
        """Whether every member is up and all members agree on the group."""

    @abstractmethod
    def _told(self) -> str:
        """The members' views of the group, for an error message."""

    def heal(self) -> None:
        """Thaw and restart the members that a test froze or killed, and wait until the group is complete."""
        for member in self.members:
            if member.is_frozen:
                member.thaw()
            if not member.server.running:
                self.restart(member)
        self.wait_until_ok()

    def start(self) -> None:
        try:
            for member in self.members:
                member.start()
            self.wait_until_ok()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._ending.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.kind.name}: {', '.join(map(repr, self.members))}>"


@dataclass(frozen=True)
class _Line:
    """One line of CLUSTER NODES."""

    node: str
    flags: frozenset[str]
    primary: str | None
    slots: frozenset[int]


class _Door(redis.asyncio.RedisCluster):
    """A raw client that presents the cluster as one server with all keys."""

    async def keys(self, pattern: str = "*", **more: Any) -> list[bytes]:
        await self.initialize()
        keys: list[bytes] = await self.execute_command("KEYS", pattern, target_nodes=self.get_primaries())
        return keys

    async def script_exists(self, *shas: str) -> list[bool]:
        """For each script, whether any node knows it."""
        await self.initialize()
        known = [await self.execute_command("SCRIPT EXISTS", *shas, target_nodes=node) for node in self.get_primaries()]
        return [any(each) for each in zip(*known, strict=True)]


class Cluster(_Group):
    """Three primaries with a third of the slots each, and a replica of each.

    `node_timeout_ms` is how long a member may be silent before the others elect another primary.
    """

    KIND = "cluster"
    PRIMARIES: ClassVar = 3

    def __init__(
        self, kind: Kind | None = None, *, node_timeout_ms: int = 1500, options: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(kind)
        self._ids = [f"{random.getrandbits(160):040x}" for _ in range(2 * self.PRIMARIES)]
        self.nodes: list[Member] = []
        for at, port in enumerate(_free_ports(len(self._ids), bus=True)):
            told = {
                "cluster-enabled": "yes",
                "cluster-config-file": str(self.root / f"{port}.conf"),
                "cluster-node-timeout": str(node_timeout_ms),
                "cluster-announce-ip": "127.0.0.1",
            }
            self.nodes.append(self._member(f"node{at}", port, {**told, **(options or {})}))
        for at, node in enumerate(self.nodes):
            # The state that a restarted member would have, so that no CLUSTER MEET is needed.
            (self.root / f"{node.port}.conf").write_text(self._remembered(at))

    def _remembered(self, myself: int) -> str:
        lines = []
        for at, node in enumerate(self.nodes):
            flags = ("myself," if at == myself else "") + ("master" if at < self.PRIMARIES else "slave")
            epoch, primary, slots = at + 1, "-", ""
            if at >= self.PRIMARIES:
                primary, epoch = self._ids[at - self.PRIMARIES], at - self.PRIMARIES + 1
            else:
                slots = f" {at * SLOTS // self.PRIMARIES}-{(at + 1) * SLOTS // self.PRIMARIES - 1}"
            where = f"{node.address}@{node.port + 10_000}"
            lines.append(f"{self._ids[at]} {where} {flags} {primary} 0 0 {epoch} connected{slots}")
        return "\n".join([*lines, f"vars currentEpoch {len(self.nodes)} lastVoteEpoch 0", ""])

    @property
    def members(self) -> Sequence[Member]:
        return self.nodes

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def client(self, **settings: Any) -> redis.asyncio.RedisCluster:
        """A raw client of the cluster; the caller closes it."""
        startup = [ClusterNode("127.0.0.1", node.port) for node in self.nodes]
        return _Door(startup_nodes=startup, **settings)

    managed = client

    @staticmethod
    def opened(client: redis.asyncio.RedisCluster) -> list[Any]:
        """Further clients to close with `client`: none."""
        return []

    def node_id(self, node: Member) -> str:
        return self._ids[self.nodes.index(node)]

    def primaries(self) -> list[Member]:
        """The members that serve slots, according to a running member."""
        return [self._by_id(line.node) for line in self._view(self._witness()) if line.slots]

    def primary_of(self, key: str | bytes) -> Member:
        """The member that serves the key."""
        return self.primary_of_slot(self.slot_of(key))

    def primary_of_slot(self, slot: int) -> Member:
        (owner,) = (line for line in self._view(self._witness()) if slot in line.slots)
        return self._by_id(owner.node)

    def replica_of(self, primary: Member) -> Member:
        """A replica of `primary` that is up."""
        lines = self._view(self._witness())
        replicas = (self._by_id(line.node) for line in lines if line.primary == self.node_id(primary))
        return next(replica for replica in replicas if replica.is_up)

    @staticmethod
    def slot_of(key: str | bytes) -> int:
        return key_slot(key.encode() if isinstance(key, str) else key)

    def wait_for_failover(self, old: Member) -> None:
        """Return when all slots are served without `old`, and all running members know it."""

        def is_over() -> bool:
            up = [node for node in self.nodes if node.is_up]
            return all(self._serves(node) and self._owners(node).isdisjoint({self.node_id(old)}) for node in up)

        _until(is_over, f"another primary than {old!r}", self._told)

    def migrate_slot(
        self, slot: int, to: Member, *, moving: Callable[[], object] | None = None, chunk: int = 10
    ) -> None:
        """Move a slot key by key, as `redis-cli --cluster reshard` does; `moving` is called when half of it is moved.

        During the move, a command on several keys gets TRYAGAIN if only some of them have moved.
        """
        source = self.primary_of_slot(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))
        left = source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) // 2
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, chunk):
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, int(ANSWER * 1000), "KEYS", *keys)
            if moving is not None and source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) <= left:
                moving()
                moving = None
        for node in (to, source, *(node for node in self.primaries() if node not in (to, source))):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.node_id(to))

    @property
    def moves_slots_atomically(self) -> bool:
        return self.kind.product == "Valkey" and self.kind.version >= (9,)

    def migrate_slot_atomically(self, slot: int, to: Member) -> None:
        """Move a slot atomically (Valkey 9): it is copied as to a replica, and reassigned when the copy is complete."""
        source = self.primary_of_slot(slot)
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.node_id(to))

        def state() -> str:
            (latest, *_) = source.ask("CLUSTER", "GETSLOTMIGRATIONS")
            return _row(latest)["state"]

        _until(lambda: state() in ("success", "failed", "canceled"), f"slot {slot} to move", state)
        if state() != "success":
            raise AssertionError(f"slot {slot} stayed where it was: {source.ask('CLUSTER', 'GETSLOTMIGRATIONS')}")

    def flush(self) -> None:
        """Empty every primary, and with it its replicas."""
        for node in self.primaries():
            node.ask("FLUSHALL")

    def _by_id(self, node_id: str) -> Member:
        return self.nodes[self._ids.index(node_id)]

    def _witness(self) -> Member:
        return next(node for node in self.nodes if node.is_up)

    @staticmethod
    def _view(node: Member) -> list[_Line]:
        lines = []
        for told in _text(node.ask("CLUSTER", "NODES")).splitlines():
            node_id, _, flags, primary, _, _, _, _, *ranges = told.split()
            lines.append(
                _Line(node_id, frozenset(flags.split(",")), None if primary == "-" else primary, _slots(ranges))
            )
        return lines

    def _owners(self, node: Member) -> set[str]:
        return {line.node for line in self._view(node) if line.slots}

    @staticmethod
    def _serves(node: Member) -> bool:
        return "cluster_state:ok" in _text(node.ask("CLUSTER", "INFO"))

    def _is_ok(self) -> bool:
        seen = set()
        for node in self.nodes:
            lines = self._view(node)
            if not self._serves(node) or any(line.flags & {"fail", "fail?", "noaddr", "handshake"} for line in lines):
                return False
            told = node.info("replication")
            if told["role"] == "slave" and told["master_link_status"] != "up":
                return False
            if any(len(members) < 2 for _, _, *members in node.ask("CLUSTER", "SLOTS")):
                return False  # a replica that is not known yet
            seen.add(frozenset((line.node, line.primary, line.slots) for line in lines))
        if len(seen) != 1:
            return False
        replicated = {line[1] for line in next(iter(seen)) if line[1]}
        return len(replicated) == self.PRIMARIES

    def _told(self) -> str:
        return "\n".join(_text(node.ask("CLUSTER", "NODES")) for node in self.nodes if node.is_up)


class _SentinelServer(EmbeddedServer):
    """The same binary, run as a sentinel. It needs a writable file, and takes no options for persistence."""

    config: Path

    def _command(self, process: Any) -> list[str]:
        binary, *options = super()._command(process)
        given = zip(options[::2], options[1::2], strict=True)
        kept = [word for name, value in given if name.removeprefix("--") not in MEMBER for word in (name, value)]
        return [binary, str(self.config), "--sentinel", *kept]


class SentinelGroup(_Group):
    """A primary, two replicas, and three sentinels with a quorum of two.

    `password` is that of the user `default` on the data nodes, `sentinel_password` that of the sentinels.
    """

    KIND = "sentinel"
    SERVICE: ClassVar = "lash"

    def __init__(
        self,
        kind: Kind | None = None,
        *,
        down_after_ms: int = 1000,
        password: str | None = None,
        sentinel_password: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kind)
        self.password = password
        self.sentinel_password = sentinel_password
        first, *others = _free_ports(3, bus=False)
        own = {"requirepass": password, "masterauth": password} if password else {}
        self.nodes = [
            self._member(f"node{at}", port, {**own, **(options or {})}) for at, port in enumerate((first, *others))
        ]
        self.sentinels: list[Member] = []
        ids = {port: f"{random.getrandbits(160):040x}" for port in _free_ports(3, bus=False)}
        for at, port in enumerate(ids):
            lines = [
                f"sentinel myid {ids[port]}",
                f"sentinel monitor {self.SERVICE} 127.0.0.1 {first} 2",
                f"sentinel down-after-milliseconds {self.SERVICE} {down_after_ms}",
                f"sentinel failover-timeout {self.SERVICE} 5000",
                *(f'sentinel auth-pass {self.SERVICE} "{secret}"' for secret in (password,) if secret),
                *(f'requirepass "{secret}"' for secret in (sentinel_password,) if secret),
                *(f'sentinel sentinel-pass "{secret}"' for secret in (sentinel_password,) if secret),
                *(f"sentinel known-replica {self.SERVICE} 127.0.0.1 {other}" for other in others),
                *(f"sentinel known-sentinel {self.SERVICE} 127.0.0.1 {p} {i}" for p, i in ids.items() if p != port),
            ]
            server = _SentinelServer(binary=self.binary, port=port)
            server.config = self.root / f"{port}.conf"
            server.config.write_text("\n".join([*lines, ""]))
            self._ending.callback(server.stop)
            self.sentinels.append(Member(server, name=f"sentinel{at}", password=sentinel_password))

    def start(self) -> None:
        try:
            for member in self.members:
                member.start()
                if member in self.nodes[1:]:
                    member.ask("REPLICAOF", "127.0.0.1", self.nodes[0].port)
            self.wait_until_ok()
        except BaseException:
            self.stop()
            raise

    def restart(self, member: Member) -> None:
        """Start it again; a data node starts empty as a replica of the current primary."""
        primary = self.primary
        member.start()
        if member in self.nodes and member is not primary:
            member.ask("REPLICAOF", "127.0.0.1", primary.port)

    @property
    def members(self) -> Sequence[Member]:
        return [*self.nodes, *self.sentinels]

    @property
    def url(self) -> str:
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        query = f"?sentinel_password={quote(self.sentinel_password, safe='')}" if self.sentinel_password else ""
        sentinels = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{user}{sentinels}/{self.SERVICE}{query}"

    def client(self, **settings: Any) -> redis.asyncio.Redis:
        """A raw client of the current primary; the caller closes it."""
        return redis.asyncio.Redis(host="127.0.0.1", port=self.primary.port, **{"password": self.password, **settings})

    def managed(self, **settings: Any) -> redis.asyncio.Redis:
        """A client that follows the primary; the caller closes it and the clients of `opened`."""
        sentinels = [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]
        manager = Sentinel(sentinels, sentinel_kwargs={"password": self.sentinel_password})
        return manager.master_for(self.SERVICE, **{"password": self.password, **settings})

    @staticmethod
    def opened(client: redis.asyncio.Redis) -> list[redis.asyncio.Redis]:
        """The sentinels' clients behind `client`."""
        return list(client.connection_pool.sentinel_manager.sentinels)

    @property
    def primary(self) -> Member:
        """The node that the sentinels name."""
        _, port = self._witness().ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)
        return next(node for node in self.nodes if node.port == int(port))

    def replicas(self) -> list[Member]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def wait_for_failover(self, old: Member) -> None:
        """Return when every running sentinel names a primary other than `old`, and it accepts writes."""

        def is_over() -> bool:
            named = {self._named_by(sentinel) for sentinel in self.sentinels if sentinel.is_up}
            if len(named) != 1 or old.port in named:
                return False
            return str(self.primary.info("replication")["role"]) == "master"

        _until(is_over, f"another primary than {old!r}", self._told)

    def wait_until_followed(self) -> None:
        """Return when every running replica follows the current primary.

        A replica that still followed the old primary would drop its data when that one restarts empty."""

        def is_followed() -> bool:
            replicas = [node.info("replication") for node in self.replicas() if node.is_up]
            port = self.primary.port
            return all(told.get("master_port") == port and told["master_link_status"] == "up" for told in replicas)

        _until(is_followed, "every replica to follow the new primary", self._told)

    def flush(self) -> None:
        """Empty the primary, and with it its replicas."""
        self.primary.ask("FLUSHALL")

    def _witness(self) -> Member:
        return next(sentinel for sentinel in self.sentinels if sentinel.is_up)

    def _named_by(self, sentinel: Member) -> int:
        return int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)[1])

    def _is_ok(self) -> bool:
        if len({self._named_by(sentinel) for sentinel in self.sentinels}) != 1:
            return False
        primary = self.primary
        told = primary.info("replication")
        if told["role"] != "master" or not _are_fed(told):
            return False
        for node in self.replicas():
            told = node.info("replication")
            if told["role"] != "slave" or told["master_link_status"] != "up" or told["master_port"] != primary.port:
                return False
        return all(self._sees_all(sentinel) for sentinel in self.sentinels)

    def _sees_all(self, sentinel: Member) -> bool:
        flags = [
            set(_row(reply)["flags"].split(","))
            for command in (("REPLICAS", self.SERVICE), ("SENTINELS", self.SERVICE), ("MASTERS",))
            for reply in sentinel.ask("SENTINEL", *command)
        ]
        return len(flags) == 5 and not any(each & {"s_down", "o_down", "disconnected"} for each in flags)

    def _told(self) -> str:
        return "\n".join(repr(each.ask("INFO", "sentinel")) for each in self.sentinels if each.is_up)


def _are_fed(told: Mapping[str, Any]) -> bool:
    """Whether all replicas of a primary receive writes. A new replica is not ready for a second."""
    return all(each["state"] == "online" for name, each in told.items() if re.fullmatch(r"slave\d+", name))


def _row(reply: Any) -> dict[str, str]:
    """Decode a map that RESP2 sends as a list of alternating names and values."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


Group = TypeVar("Group", Cluster, SentinelGroup)


class RunningGroups:
    """One group of each kind for tests that damage it: started on first use, repaired and emptied between tests."""

    def __init__(self) -> None:
        self._groups: dict[type[_Group], _Group] = {}

    def lent(self, request: pytest.FixtureRequest, group: type[Group]) -> Iterator[Group]:
        kind = preferred(group)
        request.node.user_properties.append(("server", kind.name))
        require(kind)
        running = self._groups.get(group)
        if not isinstance(running, group):
            running = group(kind)
            running.start()
            self._groups[group] = running
        running.flush()
        # A replica that lags behind could be promoted with the keys of the test before.
        _until(lambda: all(node.ask("DBSIZE") == 0 for node in running.nodes), "every node to be empty")
        try:
            yield running
        finally:
            running.heal()

    def stop(self) -> None:
        while self._groups:
            self._groups.popitem()[1].stop()


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _slots(ranges: Iterable[str]) -> frozenset[int]:
    """The slots in a line of CLUSTER NODES. Slots in migration are in brackets and not included."""
    found: set[int] = set()
    for each in ranges:
        if not each.startswith("["):
            low, _, high = each.partition("-")
            found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def _free_ports(count: int, *, bus: bool) -> list[int]:
    """Find ports without a listener; with `bus`, the ports 10,000 above are free, too.

    A port stays reserved for this process, because its member may be down when another process searches.
    """
    found: list[int] = []
    for port in PORTS:
        if all(_is_free(each) for each in ((port, port + 10_000) if bus else (port,))) and _reserve(port):
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"no {count} free ports in {PORTS}")


_reserved: list[BinaryIO] = []
"""The locked files of the ports that this process has reserved. The locks end with the process."""


def _reserve(port: int) -> bool:
    """Reserve a port among the processes that run tests on this machine; False if another process has it."""
    folder = Path(tempfile.gettempdir()) / f"lash-redis-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    lock = open(folder / str(port), "ab")  # noqa: SIM115 - kept open
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return False
    _reserved.append(lock)
    return True


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def _until(claim: Callable[[], bool], what: str, told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if claim():
                return
            error = ""
        except redis.RedisError as failure:  # a member that is not up
            error = repr(failure)
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE:g} seconds for {what}; {error}\n{told()}")
        time.sleep(0.02)
