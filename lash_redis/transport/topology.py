"""Choose the server of a request: the one server, the primary under Sentinel, or the cluster node that has the key.

A topology has a node for each server and a map of the slots. It discovers the map before the first request, and again
after a failure that may mean that the map is stale. It follows MOVED, ASK and NOSCRIPT, because a server that replies
with one of them has executed nothing. The backend handles all other retries.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from redis import exceptions

from lash_redis.protocol.keys import slot_of
from lash_redis.transport.cleanup import clean_up
from lash_redis.transport.failures import Closed, NoPrimary, OutOfTime, WrongTopology, may_be_stale
from lash_redis.transport.node import Node
from lash_redis.transport.request import Request, key_of

REDIRECTS: Final = 8
"""The number of times that a request follows MOVED, ASK or NOSCRIPT before it fails as not executed."""

CALL_TIMEOUT: Final = 8.0
"""The time of a call, in seconds, to one server, and to a cluster or Sentinel until it was reached once."""
FAILOVER_CALL_TIMEOUT: Final = 60.0
"""The time of a call, in seconds, to servers that replace a lost primary: after 15 s (cluster) or 30 s (Sentinel)."""


@dataclass(frozen=True, slots=True)
class SlotServers:
    """The server that takes the writes for some slots, and its replicas."""

    primary: Node
    replicas: Sequence[Node] = ()


class Map:
    """The servers of each slot. `by_slot` is None if the first of `parts` has all slots."""

    def __init__(self, parts: Sequence[SlotServers], by_slot: Sequence[SlotServers | None] | None = None) -> None:
        self.parts = parts
        self._by_slot = by_slot

    def nodes(self) -> list[Node]:
        """Return every server, the primaries first."""
        return self.primaries() + [replica for part in self.parts for replica in part.replicas]

    def primaries(self) -> list[Node]:
        return [part.primary for part in self.parts]

    def servers_of(self, key: Any) -> SlotServers | None:
        """Return the servers of a key's slot; those of any slot if the key is None; None if no node serves the slot."""
        if self._by_slot is None:
            return self.parts[0]
        return random.choice(self.parts) if key is None else self._by_slot[slot_of(key)]


class Topology(ABC):
    """Sends requests to the server of their key. One for each process and event loop."""

    sharded: ClassVar[bool] = False
    """Whether keys and channels are distributed over several servers."""
    fails_over: ClassVar[bool] = False
    """Whether a lost primary is replaced by another server."""

    def __init__(self) -> None:
        self._map: Map | None = None
        self._discovering = asyncio.Lock()
        self._was_discovered = False
        self._is_closed = False

    @property
    @abstractmethod
    def seeds(self) -> str:
        """The servers that are asked for the map, as text for messages."""

    @property
    def call_timeout(self) -> float:
        """The time of a call, in seconds, unless `StoreOptions.call_timeout` is given."""
        return FAILOVER_CALL_TIMEOUT if self.fails_over and self._was_discovered else CALL_TIMEOUT

    async def send(self, request: Request, at: Node | None = None) -> list[Any]:
        """Send a request to the server of its key, or to the server `at`, and return the replies.

        Raises:
            redis.exceptions.RedisError: the request failed; `failures` classifies the error.
        """
        request.asked, asked = None, at
        is_asking = with_text = False
        for _ in range(REDIRECTS):
            known = self._map or await self._discovered(request.deadline)
            if at is None and self.sharded and len(request.commands) > 1 and self._has_several_slots(request):
                return await self._spread(request, known)
            request.asked = node = asked or self._choose(known, request)
            try:
                if request.script is None or node.knows(request.script):
                    return await node.exchange(request, asking=is_asking)
                return await node.introduce(request, asking=is_asking, with_text=with_text)
            except exceptions.NoScriptError:
                if not request.may_send_text:
                    raise
                node.forget_scripts()
                with_text = True
            except exceptions.AskError as error:  # MovedError is a subclass
                asked = self._redirected(error, known, node)
                is_asking = asked is not None
            except exceptions.RedisError as error:
                if may_be_stale(error):
                    self._invalidate(known)
                raise
        raise exceptions.TryAgainError(f"redirected {REDIRECTS} times; nothing was executed")

    def _choose(self, known: Map, request: Request) -> Node:
        servers = known.servers_of(request.key)
        if servers is None:
            self._invalidate(known)
            raise NoPrimary("no known server for the slot of the key; nothing was sent; retry later")
        return random.choice(servers.replicas) if request.replica and servers.replicas else servers.primary

    async def nodes(self, deadline: float, *, replicas: bool) -> list[Node]:
        """Discover the topology, and return every server, the primaries first."""
        self.invalidate()
        known = await self._discovered(deadline)
        return known.nodes() if replicas else known.primaries()

    async def node(self, key: Any, deadline: float) -> Node:
        """Return the server of `key`."""
        return self._choose(self._map or await self._discovered(deadline), Request((), key))

    def invalidate(self) -> None:
        """Discover the map again before the next request."""
        self._map = None

    def _invalidate(self, known: Map) -> None:
        """`invalidate`, unless `known` was replaced already."""
        if self._map is known:
            self._map = None

    async def _discovered(self, deadline: float) -> Map:
        if self._is_closed:
            raise Closed("this cache was closed")
        try:
            async with asyncio.timeout_at(deadline), self._discovering:
                known = self._map
                if known is None:
                    known = await self._discover()
                    if self._is_closed:
                        await clean_up(self._close, f"closing the connections to {self.seeds}")
                        raise Closed("this cache was closed")
                    self._map, self._was_discovered = known, True
                    await self._close_all_but(known.nodes())
                return known
        except TimeoutError:
            raise OutOfTime(f"{self.seeds} did not answer before the deadline of the call") from None

    @abstractmethod
    async def _discover(self) -> Map:
        """Ask the servers for the map."""

    @abstractmethod
    async def _close_all_but(self, members: Iterable[Node]) -> None:
        """Close the connections to servers that are not in `members`."""

    def _redirected(self, error: exceptions.AskError, known: Map, by: Node) -> Node | None:
        """Return the node to ask once after ASK. After MOVED, invalidate the map and return None."""
        raise WrongTopology(f"{by.address} is a node of a cluster; use redis+cluster:// ({error})") from error

    # Reads of several slots

    def _has_several_slots(self, request: Request) -> bool:
        if request.atomic or request.script is not None:
            return False
        return len({slot_of(key) for key in map(key_of, request.commands) if key is not None}) > 1

    async def _spread(self, request: Request, known: Map) -> list[Any]:
        """Send each command of a read to the node of its key, concurrently; return the replies in order."""
        places: dict[Node, list[int]] = {}
        for place, command in enumerate(request.commands):
            key = key_of(command)
            node = self._choose(known, request.part([command]) if key is not None else request)
            places.setdefault(node, []).append(place)
        replies: list[Any] = [None] * len(request.commands)
        parts = [self._part(request, node, own, known) for node, own in places.items()]
        for own, part in zip(places.values(), await _all(parts), strict=True):
            for place, reply in zip(own, part, strict=True):
                replies[place] = reply
        return replies

    async def _part(self, request: Request, node: Node, places: Sequence[int], known: Map) -> list[Any]:
        commands = [request.commands[place] for place in places]
        try:
            return await node.exchange(request.part(commands))
        except exceptions.AskError as error:
            self._redirected(error, known, node)
        except exceptions.RedisError as error:
            request.asked = node
            if may_be_stale(error):
                self._invalidate(known)
            raise
        # A slot of the part has moved, so each command is now sent separately and follows its own redirects.
        return [reply for (reply,) in await _all(self.send(request.part([command])) for command in commands)]

    # The end

    async def close(self) -> None:
        """Close the connections that this topology opened. Nothing is sent or retried afterwards."""
        self._is_closed = True
        self._map = None
        await self._close()

    @abstractmethod
    def abandon(self) -> None:
        """Close the connections without waiting, for a cache that was dropped without being closed."""

    @abstractmethod
    async def _close(self) -> None:
        """Close the connections that this topology opened."""


class OneServer(Topology):
    """A topology of one node: one server, or a given client."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    @property
    def seeds(self) -> str:
        return self._node.address

    async def _discover(self) -> Map:
        return Map([SlotServers(self._node)])

    async def _close_all_but(self, members: Iterable[Node]) -> None:
        """Do nothing: the one server is always a member."""

    def abandon(self) -> None:
        self._node.abandon()

    async def _close(self) -> None:
        await self._node.close()


async def _all(sending: Iterable[Awaitable[Any]]) -> list[Any]:
    """Return the results of all; raise the first failure when all have ended."""
    found = await asyncio.gather(*sending, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
