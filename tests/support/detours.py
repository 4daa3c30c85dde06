"""Connect to each server of a group by another address, such as that of a proxy in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lash_redis.transport.backend import Connector
from lash_redis.transport.cluster import Cluster
from lash_redis.transport.connectors import ByCluster, BySentinel, by_url
from lash_redis.transport.group import Address
from lash_redis.transport.node import OwnNode
from lash_redis.transport.sentinel import Sentinels
from lash_redis.transport.topology import Topology

Detours = Mapping[Address, Address]
"""The address to connect to, by the address that the group reports."""


def by_detours(url: str, detours: Detours) -> Connector:
    """Return the connector of a URL. A server that is not in `detours` is reached by its own address."""
    match url.partition("://")[0] if detours else "":
        case "redis+cluster":
            return _ByCluster(url, detours)
        case "redis+sentinel":
            return _BySentinel(url, detours)
    return by_url(url)


class _ByCluster(ByCluster):
    def __init__(self, url: str, detours: Detours) -> None:
        super().__init__(url)
        self._detours = detours

    async def open(self) -> Topology:
        def remap(address: Address) -> Address:
            return self._detours.get(address, address)

        return Cluster([remap(seed) for seed in self._seeds], self._dialer, remap)


class _Sentinels(Sentinels):
    detours: Detours

    def _node_at(self, address: Address | Path, **more: Any) -> OwnNode:
        return super()._node_at(address if isinstance(address, Path) else self.detours.get(address, address), **more)


class _BySentinel(BySentinel):
    def __init__(self, url: str, detours: Detours) -> None:
        super().__init__(url)
        self._detours = detours

    async def open(self) -> Topology:
        sentinels = [(self._detours.get(address, address), self._sentinel_dialer) for address in self._sentinels]
        topology = _Sentinels(sentinels, self._service, self._dialer)
        topology.detours = self._detours
        return topology
