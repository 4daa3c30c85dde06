"""The server of a directory that several processes share: one of them runs it, the others connect to it.

When the server has ended, the next request of any process discovers the topology again, and so starts the next server
or finds it. No process polls in the background.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from lash_redis.embedded import START_TIMEOUT, EmbeddedServer
from lash_redis.errors import BackendError
from lash_redis.transport.dialer import Dialer
from lash_redis.transport.failures import Closed, Unreachable, Unusable
from lash_redis.transport.group import Group
from lash_redis.transport.topology import Map, SlotServers

PAUSE: Final = 0.01
"""The time, in seconds, between two checks whether a server that starts or ends is ready."""


class DirectoryServer(Group):
    """The one server that uses a directory at a time. `server` starts it if no other process does."""

    def __init__(self, server: EmbeddedServer, dialer: Dialer) -> None:
        super().__init__(dialer)
        self._server = server
        self._locating: asyncio.Future[Path | None] | None = None

    @property
    def seeds(self) -> str:
        return f"the embedded server of {self._server.directory}"

    async def _discover(self) -> Map:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                return Map([SlotServers(self._node_at(await self._wait_for_socket()))])
        except BackendError as error:
            raise Unusable(str(error)) from error
        except TimeoutError:
            raise Unreachable(
                f"{self.seeds} did not answer within {START_TIMEOUT:g} seconds; if a process of another machine or "
                "container uses the directory, use a redis:// server instead"
            ) from None

    async def _wait_for_socket(self) -> Path:
        while True:
            path = await self._locate()
            if path is not None:
                return path
            await asyncio.sleep(PAUSE)

    async def _locate(self) -> Path | None:
        """Run `EmbeddedServer.locate` in a thread. At most one thread runs it, also if callers are cancelled."""
        if self._is_closed:
            raise Closed("this cache was closed")
        if self._locating is None or self._locating.done():
            self._locating = asyncio.get_running_loop().run_in_executor(None, self._server.locate)
        return await asyncio.shield(self._locating)

    async def _close(self) -> None:
        """Close the connections, and wait for the thread, which may start a server that the connector then ends."""
        if self._locating is not None and not self._locating.done():
            await asyncio.wait([self._locating])
        await super()._close()
