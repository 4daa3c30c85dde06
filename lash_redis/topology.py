"""Where commands go: to the one server, the primary that Sentinel names, the node of a cluster that serves the key.

A topology holds a plain client for each server and a map of who serves what. The map is looked up before the first
command and again after a failure that may mean that it is out of date. MOVED and ASK are followed, because whoever
answers so has executed nothing; nothing else is ever sent again here (that is for `backend.py`).

Plain clients, even over the connections of a given `RedisCluster`: redis-py's own way to send there sends ASKING on
another connection than its command, fails where all connections are in use, and sends a command that may have been
executed again.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Final, TypeVar

import hiredis
import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from lash_redis.keys import SLOTS, slot_of

Command = Sequence[Any]
Reply = TypeVar("Reply")
Address = tuple[str, int]

MAX_CONNECTIONS: Final = 100
"""Commands that are on their way to one server at once; more of them wait. `?max_connections=` overrides it."""

REDIRECTIONS: Final = 8
"""How often a command follows MOVED and ASK until it is given back as not executed."""

LOOK_TIMEOUT: Final = 2.0
"""Seconds a server has to say who serves what until the next one is asked."""

QUIET: dict[str, Any] = {}
"""Without the notices of Redis Enterprise: a pool that expects them does not see that a connection has a reply left."""
if "maint_notifications_config" in signature(AbstractConnection.__init__).parameters:  # newer redis-py
    from redis.maint_notifications import MaintNotificationsConfig

    QUIET["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)

NEVER: Final = Retry(NoBackoff(), 0)

UNBOUNDED: Final = 2**31 - 1

OUT_OF_DATE: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.ReadOnlyError,
)
"""What may mean that another server serves the key by now. LOADING and MASTERDOWN are among them by descent."""

NOREPLICAS: Final = "NOREPLICAS"
"""How a primary refuses writes that too few replicas would get (min-replicas-to-write): perhaps it is none any more."""

DENIED: Final = (exceptions.AuthenticationError, exceptions.AuthorizationError)
"""Connection errors by descent, but an answer: another attempt gets the same one."""

KEYLESS: Final = frozenset(
    {"ACL", "CLUSTER", "CONFIG", "INFO", "PING", "ROLE", "SCAN", "SCRIPT", "TIME", "WAIT", "WAITAOF"}
)
"""Commands without a key, as far as this package sends them: any primary may answer."""


class NotSent(exceptions.ConnectionError):
    """The connections to a server were closed before this was sent; by now another one may serve the key."""


class Closed(NotSent):
    """This topology was closed while a call was under way: nothing was sent, and will not be."""


class NoPrimary(exceptions.MasterDownError):
    """Nobody says at the moment who serves the key, so nothing was sent; soon somebody may."""


def key_of(command: Command) -> Any:
    """The first key a command names, None if it names none."""
    name = command[0]
    if name in ("EVALSHA", "EVAL"):
        return command[3] if command[2] else None
    return None if name in KEYLESS or len(command) == 1 else command[1]


class _Packing:
    """Packs a command in C, as redis-py's blocking connections do. In Python, as its asyncio ones do, the 45 arguments
    of a commit take 38 µs instead of 7."""

    def pack_command(self, *args: Any) -> list[bytes]:
        return [hiredis.pack_command(args)]


async def _as_reader(connection: AbstractConnection) -> None:
    """Greet a node of a cluster so that, being a replica, it answers reads instead of pointing to its primary."""
    await connection.on_connect()
    await connection.send_command("READONLY")
    await connection.read_response()


class _Client(redis.Redis):
    """A client of ours: nobody else wraps it or watches it, so that commands may go past its methods."""


class Clients:
    """How plain clients are made: all with the same settings, none of which sends again by itself."""

    def __init__(self, kind: type[AbstractConnection], settings: Mapping[str, Any]) -> None:
        self._settings = {**settings, **QUIET}
        self.limit: int = self._settings.pop("max_connections", None) or MAX_CONNECTIONS
        self._kind = type(f"Packing{kind.__name__}", (_Packing, kind), {})
        self._kind(**self._settings)  # connects to nothing, but knows a wrong setting

    def client(self, **where: Any) -> redis.Redis:
        pool = redis.ConnectionPool(
            connection_class=self._kind, max_connections=UNBOUNDED, **{**self._settings, "retry": NEVER, **where}
        )
        return _Client.from_pool(pool)

    def node(self, **where: Any) -> Node:
        reader = lambda: self.client(redis_connect_func=_as_reader, **where)  # noqa: E731
        return Node(self.client(**where), self.limit, reader)


class Node:
    """One server, and how many commands are on their way to it at the most: as many as its client has connections.

    Whoever is beyond that waits, where redis-py would fail with "Too many connections".
    """

    def __init__(self, client: redis.Redis, limit: int, reader: Callable[[], redis.Redis] | None = None) -> None:
        self.client: Any = client  # Any, because redis-py leaves execute_command untyped
        self._is_ours = isinstance(client, _Client)
        self.busy = 0
        self._is_closed = False
        self._gate = asyncio.Semaphore(limit)
        self._open_reader = reader
        self._reader: redis.Redis | None = None

    async def __aenter__(self) -> None:
        self.busy += 1
        try:
            await self._gate.acquire()
        except BaseException:
            self.busy -= 1
            raise

    async def __aexit__(self, kind: object, error: object, at: object) -> None:
        self.busy -= 1
        self._gate.release()

    @property
    def reader(self) -> redis.Redis:
        """A client that a replica in a cluster serves reads to."""
        if self._reader is None:
            self._reader = self._open_reader() if self._open_reader else self.client
        return self._reader

    async def execute(self, command: Command, *, asking: bool = False) -> Any:
        if not (asking or self._is_ours):
            return await self.client.execute_command(*command)
        (reply,) = await self.pipeline([command], atomic=False, asking=asking)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def pipeline(self, commands: Sequence[Command], *, atomic: bool, asking: bool = False) -> list[Any]:
        """The replies, errors among them; where a transaction is refused as a whole, its first error is raised.

        `asking`: the node is only just taking over the slot; ASKING holds for one command or transaction.
        """
        if not (asking or self._is_ours):
            return await _pipelined(self.client, commands, atomic=atomic)
        first: list[Command] = [("ASKING",)] if asking else []
        if atomic:
            replies = await self._exchange([*first, ("MULTI",), *commands, ("EXEC",)])
            *queued, executed = replies[len(first) :]
            if not isinstance(executed, list):
                raise next(each for each in [*queued, executed] if isinstance(each, Exception))
            replies = executed
        else:
            replies = (await self._exchange([*first, *commands]))[len(first) :]
        shaped = self.client.response_callbacks
        return [
            reply if isinstance(reply, Exception) or command[0] not in shaped else shaped[command[0]](reply)
            for command, reply in zip(commands, replies, strict=True)
        ]

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The replies as the server gave them, errors among them.

        On a connection of ours, without redis-py's way through a client, which takes as long as a third of a PING. All
        of it is timed at once: redis-py times the sending by a task (before Python 3.12) and each reply by a timer.
        """
        pool = self.client.connection_pool
        connection = await pool.get_connection()
        limit, connection.socket_timeout = connection.socket_timeout, None
        try:
            if self._is_closed:
                raise NotSent("the connections to this server were closed")
            async with asyncio.timeout(limit):
                await connection.send_packed_command([hiredis.pack_command(tuple(command)) for command in commands])
                replies: list[Any] = []
                for _ in commands:
                    try:
                        replies.append(await connection.read_response())
                    except exceptions.ResponseError as error:
                        replies.append(error)
                return replies
        except BaseException as error:
            await connection.disconnect(nowait=True)  # a reply may be left on it
            if isinstance(error, TimeoutError):
                raise exceptions.TimeoutError(f"no reply within {limit:g} seconds") from error
            raise
        finally:
            connection.socket_timeout = limit
            if self._is_closed:
                await connection.disconnect(nowait=True)
            await pool.release(connection)

    async def close(self) -> None:
        """Close the clients; that a connection which is lost cannot be closed in order does not matter.

        What is under way ends; redis-py's closed pool would open a connection for whoever asks, and nobody close it.
        """
        self._is_closed = True
        for client in (self.client, self._reader):
            if client is not None:
                with suppress(exceptions.RedisError, OSError):
                    await client.aclose()


async def _pipelined(client: Any, commands: Sequence[Command], *, atomic: bool) -> list[Any]:
    """The replies, errors among them, by a client's own pipeline."""
    pipeline = client.pipeline(transaction=atomic)
    for command in commands:
        pipeline.execute_command(*command)
    replied: list[Any] = await pipeline.execute(raise_on_error=False)
    return replied


@dataclass(frozen=True, slots=True)
class Owner:
    """The server that writes go to, and those that follow it."""

    primary: Node
    replicas: Sequence[Node] = ()


class Map:
    """Who serves what, as far as is known. `by_slot` is None where one serves all."""

    def __init__(self, owners: Sequence[Owner], by_slot: Sequence[Owner | None] | None = None) -> None:
        self.owners = owners
        self._by_slot = by_slot

    def nodes(self) -> list[Node]:
        """Every server, those that take writes first."""
        return [owner.primary for owner in self.owners] + [each for owner in self.owners for each in owner.replicas]

    def owner(self, key: Any) -> Owner:
        """Who serves the key; for None any owner.

        Raises:
            NoPrimary: nobody does.
        """
        if self._by_slot is None:
            return self.owners[0]
        if key is None:
            return random.choice(self.owners)
        owner = self._by_slot[slot_of(key)]
        if owner is None:
            raise NoPrimary("no node serves the slot of the key")
        return owner


class Topology(ABC):
    """Sends commands where their keys live. One for each process and event loop."""

    sharded: ClassVar[bool] = False
    """Whether keys, and channels with them, are spread over several servers."""

    fails_over: ClassVar[bool] = False
    """Whether a primary that is lost is replaced by another server."""

    def __init__(self) -> None:
        self._map: Map | None = None
        self._looking = asyncio.Lock()
        self._is_closed = False

    @abstractmethod
    async def _look(self) -> Map:
        """Ask who serves what."""

    @abstractmethod
    async def _close_all_but(self, members: Iterable[Node]) -> None:
        """Let go of servers that are no members any more."""

    def _redirected(self, error: exceptions.AskError, known: Map, by: Node) -> Node | None:
        """The node to ask this once, or None where the key has moved for good: then its place is known by now."""
        raise error  # nobody but a cluster's node redirects

    async def _known(self) -> Map:
        if self._is_closed:
            raise Closed("this cache was closed")
        known = self._map
        if known is None:
            async with self._looking:
                known = self._map
                if known is None:
                    known = self._map = await self._look()
                    await self._close_all_but(known.nodes())
        return known

    def _doubt(self, known: Map) -> None:
        if self._map is known:
            self._map = None

    def _owner(self, known: Map, key: Any) -> Owner:
        try:
            return known.owner(key)
        except NoPrimary:
            self._doubt(known)
            raise

    def doubt(self) -> None:
        """Look up who serves what before the next command."""
        self._map = None

    async def execute(self, *command: Any) -> Any:
        """One command where its key lives."""
        return await self._at(key_of(command), lambda node, asking: node.execute(command, asking=asking))

    async def pipeline(self, commands: Sequence[Command], atomic: bool) -> list[Any]:
        """Commands in one round trip; the replies, errors of single commands among them.

        `atomic`: as one transaction; the keys of all of them then lie in one slot. Without, they go to as many servers
        as serve their keys, at the same time. Commands without a key go where the first key lives.

        Raises:
            redis.exceptions.RedisError: a transaction was refused as a whole, or a server did not answer.
        """
        if len(commands) == 1:
            try:
                return [await self.execute(*commands[0])]
            except exceptions.ResponseError as error:
                return [error]
        keys = [key_of(command) for command in commands]
        first = next((key for key in keys if key is not None), None)
        if atomic or not self.sharded:
            return await self._at(first, lambda node, asking: node.pipeline(commands, atomic=atomic, asking=asking))
        return await self._spread(commands, [first if key is None else key for key in keys])

    async def together(self, commands: Sequence[Command]) -> list[Any]:
        """Commands in one round trip on one connection to the server of the first one's key; an error of the first is
        raised, those of the others are among the replies.
        """

        async def send(node: Node, asking: bool) -> list[Any]:
            replies = await node.pipeline(commands, atomic=False, asking=asking)
            if isinstance(replies[0], Exception):
                raise replies[0]
            return replies

        return await self._at(key_of(commands[0]), send)

    async def _at(self, key: Any, send: Callable[[Node, bool], Awaitable[Reply]]) -> Reply:
        """What `send` gets of the server that serves the key."""
        asked: Node | None = None
        redirections = 0
        while True:
            known = await self._known()
            node = asked or self._owner(known, key).primary
            async with node:
                if asked is None and self._map is not known:
                    continue  # the wait was long: by now another server may serve the key
                try:
                    return await send(node, asked is not None)
                except exceptions.AskError as error:  # or MOVED, by descent
                    redirections += 1
                    if redirections > REDIRECTIONS:
                        raise exceptions.TryAgainError(f"redirected {redirections} times: {error}") from error
                    asked = self._redirected(error, known, node)
                except exceptions.RedisError as error:
                    if _is_out_of_date(error):
                        self._doubt(known)
                    raise

    async def pipeline_of_replica(self, commands: Sequence[Command], atomic: bool) -> list[Any]:
        """Reads of one slot in one round trip, asked of a server that follows the one that serves it.

        `pipeline` where there is none. What it answers may be behind; it follows nothing and looks at nothing again.
        """
        key = next(filter(None, map(key_of, commands)), None)
        owner = self._owner(await self._known(), key)
        if not owner.replicas:
            return await self.pipeline(commands, atomic)
        node = random.choice(owner.replicas)
        async with node:
            return await _pipelined(self._reading(node), commands, atomic=atomic)

    def _reading(self, replica: Node) -> redis.Redis:
        client: redis.Redis = replica.reader if self.sharded else replica.client
        return client

    async def _spread(self, commands: Sequence[Command], keys: Sequence[Any]) -> list[Any]:
        known = await self._known()
        by_node: dict[Node, list[int]] = {}
        for at, key in enumerate(keys):
            by_node.setdefault(self._owner(known, key).primary, []).append(at)

        async def part(node: Node, places: Sequence[int]) -> list[Any]:
            async with node:
                if self._map is not known:
                    raise exceptions.TryAgainError("another server may serve the key by now")
                try:
                    replies = await node.pipeline([commands[at] for at in places], atomic=False)
                except exceptions.RedisError as error:
                    if _is_out_of_date(error):
                        self._doubt(known)
                    raise
            if any(map(_is_out_of_date, replies)):
                self._doubt(known)
            return replies

        found: list[Any] = [None] * len(commands)
        for places, replies in zip(
            by_node.values(), await _all(part(node, places) for node, places in by_node.items()), strict=True
        ):
            for at, reply in zip(places, replies, strict=True):
                found[at] = reply
        moved = [at for at, reply in enumerate(found) if isinstance(reply, exceptions.AskError)]
        if moved:
            again = await _all(self.pipeline([commands[at]], atomic=False) for at in moved)
            for at, (reply,) in zip(moved, again, strict=True):
                found[at] = reply
        return found

    async def everywhere(self, *command: Any) -> list[Any]:
        """The replies of every server to a command without a key, the primaries' first."""
        self.doubt()
        return await _all(node.execute(command) for node in (await self._known()).nodes())

    async def primaries(self) -> list[redis.Redis]:
        """A plain client of every server that writes go to."""
        self.doubt()
        return [owner.primary.client for owner in (await self._known()).owners]

    async def node(self, key: Any, replica: bool = False) -> redis.Redis:
        """A plain client of the one server that serves `key`, or of one that follows it where there is one.

        It follows nothing and waits for nothing: after a failure on it call `doubt` and ask for the node again.
        """
        owner = self._owner(await self._known(), key)
        if not replica or not owner.replicas:
            client: redis.Redis = owner.primary.client
            return client
        return self._reading(random.choice(owner.replicas))

    async def close(self) -> None:
        """Close the connections that this topology opened; from here nothing is sent, not even once more."""
        self._is_closed = True
        await self._close()

    @abstractmethod
    async def _close(self) -> None:
        """Close the connections that this topology opened."""


class OneServer(Topology):
    """One server, or whatever a given client takes for one."""

    def __init__(self, client: redis.Redis, *, limit: int, ours: bool) -> None:
        super().__init__()
        self._node = Node(client, limit)
        self._ours = ours

    async def _look(self) -> Map:
        return Map([Owner(self._node)])

    async def _close_all_but(self, members: Iterable[Node]) -> None:
        """There is no other."""

    def _redirected(self, error: exceptions.AskError, known: Map, by: Node) -> Node | None:
        raise _misled(error) from error

    async def pipeline(self, commands: Sequence[Command], atomic: bool) -> list[Any]:
        replies = await super().pipeline(commands, atomic)
        return [_misled(reply) if isinstance(reply, exceptions.AskError) else reply for reply in replies]

    async def _close(self) -> None:
        if self._ours:
            await self._node.close()


class _Several(Topology):
    """Servers of which now this, now that one is asked."""

    fails_over = True

    def __init__(self, clients: Clients) -> None:
        super().__init__()
        self._clients = clients
        self._nodes: dict[Address, Node] = {}

    def _node_at(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            host, port = address
            node = self._nodes[address] = self._clients.node(host=host, port=port)
        return node

    async def _close_all_but(self, members: Iterable[Node]) -> None:
        """Once nothing is on its way to them."""
        kept = set(members)
        for address, node in list(self._nodes.items()):
            if node not in kept and not node.busy:
                await self._nodes.pop(address).close()

    async def _close(self) -> None:
        self._map = None
        while self._nodes:
            await self._nodes.popitem()[1].close()


class Sentinels(_Several):
    """The primary of a service, as Sentinel names it, and its replicas.

    `given` is a client that finds the primary by itself; then it is used, and replicas alone are connected to here.
    """

    def __init__(self, sentinel: Sentinel, service: str, clients: Clients, *, given: Node | None = None) -> None:
        super().__init__(clients)
        self._sentinel = sentinel
        self._service = service
        self._given = given

    async def _look(self) -> Map:
        primary = self._given or self._node_at(await self._primary())
        replicas = await self._sentinel.discover_slaves(self._service)
        return Map([Owner(primary, [self._node_at((str(host), int(port))) for host, port in replicas])])

    async def everywhere(self, *command: Any) -> list[Any]:
        try:
            return await super().everywhere(*command)
        finally:
            if self._given is not None:  # whoever gave a client need not close anything but that
                await self._close_all_but([])

    async def _primary(self) -> Address:
        try:
            host, port = await self._sentinel.discover_master(self._service)
        except exceptions.ConnectionError as error:
            await self._explain(error)
            raise
        return host, port

    async def _explain(self, error: exceptions.ConnectionError) -> None:
        """Say why no sentinel names a primary, without redis-py's text: it may hold a password."""
        said: list[str] = []
        refused: Exception | None = None
        for each in self._sentinel.sentinels:
            where = each.connection_pool.connection_kwargs
            try:
                services = await each.sentinel_masters()
            except (exceptions.RedisError, OSError) as failure:
                said.append(f"{where.get('host')}:{where.get('port')}: {failure}")
                refused = failure if isinstance(failure, (*DENIED, exceptions.ResponseError)) else refused
            else:
                if self._service not in services:
                    raise exceptions.RedisError(f"the sentinels know no service {self._service!r}") from error
        if refused is not None and len(said) == len(self._sentinel.sentinels):
            raise refused
        raise NoPrimary(f"no sentinel names a primary of {self._service!r}; {'; '.join(said)}") from error

    async def _close(self) -> None:
        await super()._close()
        if self._given is None:
            await _all(each.aclose() for each in self._sentinel.sentinels)


class Cluster(_Several):
    """The nodes of a cluster. `remap` turns an address that a node names into one that can be reached from here."""

    sharded = True

    def __init__(
        self, seeds: Iterable[Address], clients: Clients, remap: Callable[[str, int], Address] | None = None
    ) -> None:
        super().__init__(clients)
        self._seeds = list(seeds)
        self._remap = remap
        self._last: list[Address] = []
        self._hinted: Address | None = None

    def _mapped(self, address: Address) -> Address:
        return self._remap(*address) if self._remap else address

    def _node_at(self, address: Address) -> Node:
        return super()._node_at(self._mapped(address))

    def _redirected(self, error: exceptions.AskError, known: Map, by: Node) -> Node | None:
        address = error.host or by.client.connection_pool.connection_kwargs["host"], error.port
        if not isinstance(error, exceptions.MovedError):
            return self._node_at(address)
        self._hinted = self._mapped(address)
        self._doubt(known)
        return None

    async def _look(self) -> Map:
        """Ask one node after another: who was named in a redirection first, then all that were ever known."""
        known = random.sample(self._last, len(self._last)) + random.sample(self._seeds, len(self._seeds))
        asked = dict.fromkeys([self._hinted, *known] if self._hinted else known)
        self._hinted = None
        said: list[str] = []
        refused: Exception | None = None
        for address in asked:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT):
                    ranges = await super()._node_at(address).client.execute_command("CLUSTER", "SLOTS")
            except (exceptions.RedisError, OSError) as error:
                said.append(f"{address[0]}:{address[1]}: {error or type(error).__name__}")
                refused = error if isinstance(error, (*DENIED, exceptions.ResponseError)) else refused
                continue
            if ranges:
                return self._drawn(ranges, address[0])
            said.append(f"{address[0]}:{address[1]}: serves no slots and knows nobody who does")
        if refused is not None and not isinstance(refused, exceptions.ClusterDownError) and len(said) == len(asked):
            raise refused
        raise NoPrimary("; ".join(said))

    def _drawn(self, ranges: Sequence[Any], host: str) -> Map:
        """The map of a reply to CLUSTER SLOTS; a node that names no host is at the host that answered."""
        by_slot: list[Owner | None] = [None] * SLOTS
        owners: dict[tuple[Address, ...], Owner] = {}
        for low, high, *members in ranges:
            places = tuple((_text(name) or host, int(port)) for name, port, *_ in members)
            if places not in owners:
                primary, *replicas = (self._node_at(place) for place in places)
                owners[places] = Owner(primary, replicas)
            by_slot[low : high + 1] = [owners[places]] * (high + 1 - low)
        self._last = [self._mapped(place) for places in owners for place in places]
        return Map(list(owners.values()), by_slot)


class GivenCluster(_Several):
    """The nodes of a `RedisCluster` that the caller made, over its connections; replicas are read over our own.

    `clients` makes those.
    """

    sharded = True

    def __init__(self, client: redis.RedisCluster, clients: Clients) -> None:
        super().__init__(clients)
        self._client = client
        self._members: dict[str, tuple[Any, Node]] = {}
        self._has_looked = False

    def _node_of(self, member: Any) -> Node:
        known = self._members.get(member.name)
        if known is not None and known[0] is member:
            return known[1]

        def reader() -> redis.Redis:
            return self._clients.client(redis_connect_func=_as_reader, host=member.host, port=member.port)

        client = redis.Redis(connection_pool=_NodePool(member))  # type: ignore[arg-type]
        node = Node(client, self._clients.limit, reader)
        self._members[member.name] = member, node
        return node

    async def _look(self) -> Map:
        manager = self._client.nodes_manager
        try:
            await self._client.initialize()
            if self._has_looked:
                await manager.initialize()
        except exceptions.RedisClusterException as error:
            if isinstance(error.__cause__, (*DENIED, exceptions.NoPermissionError)):
                raise error.__cause__ from error
            raise NoPrimary(str(error)) from error
        self._has_looked = True
        owners: dict[tuple[str, ...], Owner] = {}
        by_slot: list[Owner | None] = [None] * SLOTS
        for slot, members in manager.slots_cache.items():
            names = tuple(member.name for member in members)
            if names not in owners:
                primary, *replicas = map(self._node_of, members)
                owners[names] = Owner(primary, replicas)
            by_slot[slot] = owners[names]
        return Map(list(owners.values()), by_slot)

    def _redirected(self, error: exceptions.AskError, known: Map, by: Node) -> Node | None:
        member = self._client.get_node(host=error.host, port=error.port)
        if member is not None and not isinstance(error, exceptions.MovedError):
            return self._node_of(member)
        self._doubt(known)
        return None

    async def _close(self) -> None:
        """Close the readers; the client is the caller's."""
        self._map = None
        while self._members:
            _, (_, node) = self._members.popitem()
            await node.close()


class _NodePool:
    """The connections of one node of a `RedisCluster`, as a pool that a plain client takes them from."""

    def __init__(self, member: Any) -> None:
        self._member = member
        self.connection_kwargs = member.connection_kwargs

    def get_encoder(self) -> Any:
        return self._member.get_encoder()

    def get_protocol(self) -> Any:
        return self.connection_kwargs.get("protocol")

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        connection = self._member.acquire_connection()
        try:
            if hasattr(connection, "should_reconnect") and connection.should_reconnect():  # newer redis-py
                await connection.disconnect()
            await connection.connect()
            try:
                has_data = connection.can_read if hasattr(connection, "can_read") else connection.can_read_destructive
                is_clean = not await has_data()
            except (exceptions.ConnectionError, exceptions.TimeoutError, OSError):
                is_clean = False
            if not is_clean:  # the server has ended it, or a reply was left
                await connection.disconnect()
                await connection.connect()
        except BaseException:
            try:
                await connection.disconnect(nowait=True)
            finally:
                self._member.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        self._member.release(connection)

    async def aclose(self) -> None:
        """The cluster's client closes its connections."""

    disconnect = aclose


def _misled(error: exceptions.AskError) -> exceptions.ResponseError:
    return exceptions.ResponseError(f"this server is a node of a cluster: connect by redis+cluster:// ({error})")


def _is_out_of_date(reply: Any) -> bool:
    """Whether an error may mean that another server serves the key by now."""
    if isinstance(reply, DENIED):
        return False
    return isinstance(reply, OUT_OF_DATE) or (isinstance(reply, exceptions.ResponseError) and NOREPLICAS in str(reply))


async def _all(sending: Iterable[Awaitable[Any]]) -> list[Any]:
    """What all of them give; the first failure is raised when all have come to an end."""
    found = await asyncio.gather(*sending, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found


def _text(name: Any) -> str:
    text = name.decode() if isinstance(name, bytes) else name or ""
    return "" if text == "?" else text
