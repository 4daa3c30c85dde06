"""The one connection of a process, and commands the store itself has no call for."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import redis.asyncio as redis
from redis import exceptions

from lash_redis.backend import Backend
from lash_redis.connections import connector
from lash_redis.errors import InvalidRecord, StoreError
from lash_redis.keys import Layout, checked_namespace
from lash_redis.options import StoreOptions


class Connection:
    """A `Connector` that any number of `SessionCache`s may share: opened once, closed by whoever made it."""

    resends = False

    def __init__(self, url: str) -> None:
        self._source = connector(url)
        self._opening = asyncio.Lock()
        self._client: redis.Redis | None = None
        self._backend = Backend(self, StoreOptions())

    async def open(self) -> redis.Redis:
        async with self._opening:
            if self._client is None:
                self._client = await self._source.open()
            return self._client

    async def close(self) -> None:
        await self._source.close()

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """The replies to some commands.

        Raises:
            BackendError: no answer, or (see `refused`) an error for one.
        """
        return await self._backend.send(commands, atomic=False)

    async def options_of(self, namespace: str) -> StoreOptions:
        """The options to open a namespace with: as many shards as it has, the default if it is new."""
        default = StoreOptions()
        (stored,) = await self.ask(("GET", Layout(checked_namespace(namespace), default.shards).key))
        match = re.search(rb"shards=(\d{1,6})$", stored or b"")
        try:
            shaped = replace(default, shards=int(match[1])) if match else default
        except InvalidRecord:
            return default
        return shaped if Layout(namespace, shaped.shards).value.encode() == stored else default


def refused(error: StoreError) -> bool:
    """Whether the server answered with an error of its own, rather than not at all."""
    return isinstance(error.__cause__, exceptions.ResponseError)
