"""The stores of a service: handles that remember the heads they saw, and the deadlines of shared states."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from lash_redis.cache import SessionCache
from lash_redis.errors import SessionDeleted
from lash_redis.integrations.google_adk.names import UserNames, users_of
from lash_redis.models import SessionStoreCreateRequest
from lash_redis.options import KEEP, Keep
from lash_redis.session.store import RedisSessionStore

MAX_HANDLES: Final = 1024
"""Handles that a service remembers. One that was forgotten costs the next call a round trip."""


@dataclass(slots=True)
class _Handle:
    store: RedisSessionStore
    touched: float | None = None
    """When this service touched the stored session, by the monotonic clock."""


class Stores:
    """Stores by the ids of stored sessions.

    A shared state must not expire before the sessions that use it. So it has twice their ttl, and each use of a session
    touches it if this service has not done so for a quarter of the ttl.

    All of them read from the primary, because a stale read could apply a delta twice.
    """

    def __init__(self, cache: SessionCache) -> None:
        self.cache = cache
        self.namespace = cache.shared.with_options(read_from="primary")
        self._untouched = cache.shared.with_options(read_from="primary", slide_on_load=False)
        self._handles: OrderedDict[str, _Handle] = OrderedDict()

    @property
    def shared_ttl(self) -> float | Keep:
        return KEEP if self.cache.ttl is None else 2 * self.cache.ttl

    def get(self, session_id: str, owner: str | None = None) -> RedisSessionStore:
        return self._handle(session_id, owner).store

    def to_check(self, session_id: str) -> RedisSessionStore:
        """Return a store of any session, whose loads do not extend the session's life."""
        return RedisSessionStore(self._untouched, session_id)

    async def keep_alive(self, session_id: str, owner: str | None) -> bool:
        """Touch a shared state or an entry if that is due; False if it was due and does not exist."""
        handle, ttl, now = self._handle(session_id, owner), self.cache.ttl, time.monotonic()
        if ttl is None or (handle.touched is not None and now - handle.touched < ttl / 4):
            return True
        try:
            exists = await handle.store.touch()
        except SessionDeleted:  # its owner was deleted with all sessions
            exists = True
        handle.touched = now
        return exists

    async def list_user(self, names: UserNames) -> None:
        """Enter a user in the app's list of users. Idempotent."""
        request, owner = SessionStoreCreateRequest(names.user_entry), users_of(names.app_name)
        await self.cache.create(request, owner=owner, ttl=self.shared_ttl)

    def _handle(self, session_id: str, owner: str | None) -> _Handle:
        handle = self._handles.get(session_id)
        if handle is None:
            handle = self._handles[session_id] = _Handle(RedisSessionStore(self.namespace, session_id, owner))
            if len(self._handles) > MAX_HANDLES:
                self._handles.popitem(last=False)
        self._handles.move_to_end(session_id)
        return handle
