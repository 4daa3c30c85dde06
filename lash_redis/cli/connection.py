"""The connection that the commands of one process share, and native commands that the store does not send."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from redis import exceptions

from lash_redis._validate import require_namespace
from lash_redis.cache import SessionCache
from lash_redis.errors import InvalidRecord, StoreError
from lash_redis.options import StoreOptions
from lash_redis.protocol.keys import Layout
from lash_redis.transport.backend import Backend
from lash_redis.transport.cleanup import clean_up
from lash_redis.transport.connectors import by_url
from lash_redis.transport.failures import check_types
from lash_redis.transport.request import Lane, Request, first_key
from lash_redis.transport.topology import Topology

PATIENCE = 5.0
"""Maximum seconds for one call, including the wait for a new primary. A person waits for the result."""


class Connection:
    """A `Connector` that several `SessionCache`s share. It is opened once; its creator closes it."""

    resends = False

    def __init__(self, url: str) -> None:
        self._source = by_url(url)
        self.sharded = self._source.sharded
        self._opening = asyncio.Lock()
        self._topology: Topology | None = None
        self._backend = Backend(self, StoreOptions(call_timeout=PATIENCE))

    async def open(self) -> Topology:
        async with self._opening:
            if self._topology is None:
                self._topology = await self._source.open()
            return self._topology

    async def close(self) -> None:
        """Close the connections, also if the caller is cancelled meanwhile."""
        await clean_up(self._close, "closing the connections")

    async def _close(self) -> None:
        try:
            if self._topology is not None:
                await self._topology.close()
        finally:
            await self._source.close()

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send native commands in one round trip and return the replies.

        Raises:
            BackendError: the server did not answer, or answered with an error (see `is_refused`).
        """
        request = Request(commands, first_key(commands), lane=Lane.LARGE)
        return check_types(commands, await self._backend.send(request))

    async def ask_everywhere(self, *command: Any) -> list[Any]:
        """Send a command without a key to every server, and return the replies, those of the primaries first.

        Raises:
            BackendError: as for `ask`.
        """
        return await self._backend.everywhere(*command)

    @property
    async def is_cluster(self) -> bool:
        return (await self._backend.topology()).sharded

    async def options_of(self, namespace: str) -> StoreOptions:
        """Return options with the namespace's number of shards; the default options for a new namespace."""
        return await self.stored_options(namespace) or StoreOptions()

    async def stored_options(self, namespace: str) -> StoreOptions | None:
        """Return `options_of`; None if the namespace is not in use."""
        default = StoreOptions()
        (stored,) = await self.ask(("GET", Layout(require_namespace(namespace), default.shards).key))
        if stored is None:
            return None
        match = re.search(rb"shards=(\d{1,6})$", stored)
        try:
            shaped = replace(default, shards=int(match[1])) if match else default
        except InvalidRecord:
            return default
        return shaped if Layout(namespace, shaped.shards).value.encode() == stored else default


@asynccontextmanager
async def opened(url: str, namespace: str, *, ttl: float | None = None) -> AsyncIterator[SessionCache]:
    """Open a namespace with its number of shards, and close the connection at the end."""
    source = Connection(url)
    try:
        yield SessionCache(source, namespace, ttl=ttl, options=await source.options_of(namespace))
    finally:
        await source.close()


@asynccontextmanager
async def opened_if_used(url: str, namespace: str) -> AsyncIterator[SessionCache | None]:
    """Open a namespace as `opened` does; yield None if it is not in use, so that the command writes nothing to it."""
    source = Connection(url)
    try:
        options = await source.stored_options(namespace)
        yield None if options is None else SessionCache(source, namespace, options=options)
    finally:
        await source.close()


def is_refused(error: StoreError) -> bool:
    """Whether the server answered, with an error reply. False if it did not answer."""
    return isinstance(error.__cause__, exceptions.ResponseError)
