"""A primary and its replicas, as sentinels report them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from redis import exceptions

from lash_redis.transport.dialer import Dialer
from lash_redis.transport.failures import DENIED, NoPrimary, Unusable, WrongTopology
from lash_redis.transport.group import DISCOVERY_TIMEOUT, Address, Group, report_of
from lash_redis.transport.node import OwnNode
from lash_redis.transport.request import Request
from lash_redis.transport.topology import Map, SlotServers

State = Mapping[bytes, bytes]
"""The state of one server as a sentinel reports it: names and values."""


class Sentinels(Group):
    """The primary of a service and its replicas, as one of the sentinels reports them.

    `minimum_others` is the number of other sentinels that the answering one must know. So the reply of a partitioned
    sentinel is not used. `forced_host` replaces the host that the sentinels report.
    """

    def __init__(
        self,
        sentinels: Sequence[tuple[Address, Dialer]],
        service: str,
        dialer: Dialer,
        *,
        minimum_others: int = 0,
        forced_host: str | None = None,
    ) -> None:
        super().__init__(dialer)
        self._sentinels = [OwnNode(each, {"host": host, "port": port}) for (host, port), each in sentinels]
        self._service = service
        self._minimum_others = minimum_others
        self._forced_host = forced_host

    @property
    def seeds(self) -> str:
        return ", ".join(sentinel.address for sentinel in self._sentinels)

    async def _discover(self) -> Map:
        """Ask one sentinel after another, first the one that answered last."""
        reports: list[str] = []
        refused: Exception | None = None
        for sentinel in list(self._sentinels):
            try:
                async with asyncio.timeout(DISCOVERY_TIMEOUT):
                    found = await self._ask(sentinel)
            except (exceptions.RedisError, OSError) as error:
                if "unknown command" in str(error).lower():
                    error = WrongTopology(f"{sentinel.address} is not a sentinel; use redis:// ({error})")
                reports.append(report_of(sentinel.address, error))
                refused = error if isinstance(error, (*DENIED, Unusable, exceptions.ResponseError)) else refused
                continue
            if found is not None:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return found
            reports.append(f"{sentinel.address}: knows no primary that is up")
        if refused is not None and len(reports) == len(self._sentinels):
            raise refused
        raise NoPrimary(f"no sentinel reports a primary of {self._service!r}: {'; '.join(reports)}")

    async def _ask(self, sentinel: OwnNode) -> Map | None:
        """Ask one sentinel for the map; return None if it knows no primary that is up."""
        (services,) = await sentinel.exchange(Request([("SENTINEL", "MASTERS")]))
        states = {state[b"name"]: state for state in map(_state, services)}
        state = states.get(self._service.encode())
        if state is None:
            raise exceptions.ResponseError(f"the sentinels know no service {self._service!r}")
        if not _is_up(state, b"master") or int(state[b"num-other-sentinels"]) < self._minimum_others:
            return None
        host = self._forced_host or state[b"ip"].decode()
        (replicas,) = await sentinel.exchange(Request([("SENTINEL", "SLAVES", self._service)]))
        up = [each for each in map(_state, replicas) if _is_up(each, b"slave")]
        primary = self._node_at((host, int(state[b"port"])))
        return Map([SlotServers(primary, [self._node_at(_place(each)) for each in up])])

    def abandon(self) -> None:
        super().abandon()
        for sentinel in self._sentinels:
            sentinel.abandon()

    async def _close(self) -> None:
        await super()._close()
        await asyncio.gather(*(sentinel.close() for sentinel in self._sentinels))


def _state(reply: Any) -> State:
    """Decode the state of a server: a dict in RESP3, alternating names and values in RESP2."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _place(state: State) -> Address:
    return state[b"ip"].decode(), int(state[b"port"])


def _is_up(state: State, role: bytes) -> bool:
    flags = state[b"flags"].split(b",")
    return role in flags and b"s_down" not in flags and b"o_down" not in flags
