"""Topologies of several servers, whose nodes are opened and closed as members join and leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeAlias

from lash_redis.transport.cleanup import clean_up
from lash_redis.transport.dialer import Dialer, Where
from lash_redis.transport.node import Node, OwnNode
from lash_redis.transport.topology import Topology

Address: TypeAlias = tuple[str, int]

DISCOVERY_TIMEOUT: Final = 2.0
"""The longest wait, in seconds, for the map from one server before the next one is asked."""


def report_of(address: str, error: BaseException) -> str:
    """Return the text of one server's failure, with its address."""
    text = str(error) or f"no answer within {DISCOVERY_TIMEOUT:g} seconds"
    return text if address in text else f"{address}: {text}"


class Group(Topology):
    """Several servers, which are asked for the map one after another."""

    fails_over = True

    def __init__(self, dialer: Dialer) -> None:
        super().__init__()
        self._dialer = dialer
        self._members: dict[tuple[Address | Path, bool], OwnNode] = {}

    def _node_at(self, address: Address | Path, *, replica: bool = False) -> OwnNode:
        """Return the node at an address or at the path of a unix socket. A `replica` receives only reads."""
        node = self._members.get((address, replica))
        if node is None:
            where: Where = (
                {"path": str(address)} if isinstance(address, Path) else {"host": address[0], "port": address[1]}
            )
            node = self._members[address, replica] = OwnNode(self._dialer, where, replica=replica)
        return node

    async def _close_all_but(self, members: Iterable[Node]) -> None:
        """Close the connections to all other servers. A server with requests in flight is closed at a later call."""
        kept = set(members)
        for place, node in list(self._members.items()):
            if node not in kept and not node.is_busy:
                await clean_up(self._members.pop(place).close, f"closing the connections to {node.address}")

    def abandon(self) -> None:
        for node in self._members.values():
            node.abandon()

    async def _close(self) -> None:
        await asyncio.gather(*(node.close() for node in self._members.values()))
