"""A Redis Cluster, whose slot map any node reports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redis import exceptions

from lash_redis.protocol.keys import SLOTS
from lash_redis.transport.dialer import Dialer
from lash_redis.transport.failures import DENIED, NoPrimary, Unusable, WrongTopology
from lash_redis.transport.group import DISCOVERY_TIMEOUT, Address, Group, report_of
from lash_redis.transport.node import Node, OwnNode
from lash_redis.transport.request import Request
from lash_redis.transport.topology import Map, SlotServers


class Cluster(Group):
    """The nodes of a cluster. `remap` translates an address that a node reports into one that this process can reach.

    The cluster client of redis-py is not used. It sends ASKING on another connection than the command, and closes
    connections that are in use.
    """

    sharded = True

    def __init__(
        self, seeds: Iterable[Address], dialer: Dialer, remap: Callable[[Address], Address] | None = None
    ) -> None:
        super().__init__(dialer)
        self._seeds = list(seeds)
        self._remap = remap
        self._last: list[Address] = []
        self._hinted: Address | None = None

    @property
    def seeds(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self._seeds)

    def _mapped(self, address: Address) -> Address:
        return self._remap(address) if self._remap else address

    def _redirected(self, error: exceptions.AskError, known: Map, by: Node) -> Node | None:
        assert isinstance(by, OwnNode)
        address = self._mapped((error.host or by.host, int(error.port)))
        if not isinstance(error, exceptions.MovedError):
            return self._node_at(address)
        self._hinted = address
        self._invalidate(known)
        return None

    async def _discover(self) -> Map:
        """Ask one node after another: the node of the last redirect, then the last known nodes, then the seeds."""
        known = random.sample(self._last, len(self._last)) + random.sample(self._seeds, len(self._seeds))
        asked = dict.fromkeys([self._hinted, *known] if self._hinted else known)
        self._hinted = None
        reports: list[str] = []
        refused: Exception | None = None
        for address in asked:
            try:
                async with asyncio.timeout(DISCOVERY_TIMEOUT):
                    (ranges,) = await self._node_at(address).exchange(Request([("CLUSTER", "SLOTS")]))
            except (exceptions.RedisError, OSError) as error:
                if "cluster support disabled" in str(error):
                    error = WrongTopology(
                        f"{address[0]}:{address[1]} is not a node of a cluster; use redis:// ({error})"
                    )
                reports.append(report_of(f"{address[0]}:{address[1]}", error))
                refused = error if isinstance(error, (*DENIED, Unusable, exceptions.ResponseError)) else refused
                continue
            if ranges:
                return self._map_of(ranges, address[0])
            reports.append(f"{address[0]}:{address[1]}: its slot map is empty")
        if refused is not None and not isinstance(refused, exceptions.ClusterDownError) and len(reports) == len(asked):
            raise refused
        raise NoPrimary("no node of the cluster returned the slot map: " + "; ".join(reports))

    def _map_of(self, ranges: Sequence[Any], host: str) -> Map:
        """Decode a reply to CLUSTER SLOTS. An entry without a host stands for the node that answered."""
        by_slot: list[SlotServers | None] = [None] * SLOTS
        parts: dict[tuple[Address, ...], SlotServers] = {}
        for low, high, *members in ranges:
            places = tuple(self._mapped((_text(name) or host, int(port))) for name, port, *_ in members)
            if places not in parts:
                primary, *replicas = places
                parts[places] = SlotServers(
                    self._node_at(primary), [self._node_at(place, replica=True) for place in replicas]
                )
            by_slot[low : high + 1] = [parts[places]] * (high + 1 - low)
        self._last = [place for places in parts for place in places]
        return Map(list(parts.values()), by_slot)


def _text(name: Any) -> str:
    text = name.decode() if isinstance(name, bytes) else name or ""
    return "" if text == "?" else text
