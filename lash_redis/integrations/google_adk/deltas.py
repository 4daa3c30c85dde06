"""Apply the deltas of sessions to the states of their apps and users."""

from __future__ import annotations

import asyncio

from google.adk.errors.session_not_found_error import SessionNotFoundError

from lash_redis.errors import Corrupt, HeadRevisionConflict
from lash_redis.integrations.google_adk.entries import Entry
from lash_redis.integrations.google_adk.names import UserNames, user_names_of
from lash_redis.integrations.google_adk.places import Place
from lash_redis.integrations.google_adk.session_log import LoadedSession, SessionLog
from lash_redis.integrations.google_adk.shared_state import Change, LoadedState, SharedState
from lash_redis.integrations.google_adk.stores import Stores

Places = tuple[Place | None, Place | None]
"""The places of the states of the app and of the user; None if unknown."""


class Deltas:
    """The states of apps and users, and the deltas of sessions to them."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def app(self, names: UserNames) -> SharedState:
        return SharedState(self._stores.get(names.app_state), self._stores.namespace, self._stores.shared_ttl)

    def user(self, names: UserNames) -> SharedState:
        store = self._stores.get(names.user_state, names.owner)
        return SharedState(store, self._stores.namespace, self._stores.shared_ttl)

    async def load(self, names: UserNames) -> tuple[LoadedState, LoadedState]:
        """Load the states of an app and of a user at the same time."""
        return await asyncio.gather(self.app(names).load(), self.user(names).load())

    async def apply(self, names: UserNames, session: str, entry: Entry, places: Places) -> Places:
        """Apply the delta of an entry that was just appended; return the new places of the states.

        `places` are those before the entry was appended.

        Raises:
            SessionNotFoundError: the session was deleted meanwhile.
            Everything else that `SharedState.apply` raises.
        """
        app, user = places
        if entry.delta.app:
            app = await self.app(names).apply(Change(session, entry.node_id, entry.delta.app), app, self)
        if entry.delta.user:
            user = await self.user(names).apply(Change(session, entry.node_id, entry.delta.user), user, self)
        return app, user

    async def with_last(
        self, names: UserNames, session: str, loaded: LoadedSession, app: LoadedState, user: LoadedState
    ) -> tuple[LoadedState, LoadedState]:
        """Return the states with the delta of the session's last entry. It is applied if its worker died before that.

        Raises:
            As `apply` does.
        """
        if not loaded.is_due:
            return app, user
        entry = loaded.last
        if not app.has(change := Change(session, entry.node_id, entry.delta.app)) and entry.delta.app:
            await self.app(names).apply(change, None, self)
            app = await self.app(names).load()
        if not user.has(change := Change(session, entry.node_id, entry.delta.user)) and entry.delta.user:
            await self.user(names).apply(change, None, self)
            user = await self.user(names).load()
        return app, user

    async def is_due(self, session: str, entry: str) -> bool:
        """`Sessions.is_due`."""
        loaded = await self._log(session).load(1)
        if loaded is None:
            raise SessionNotFoundError(f"Session {session} not found.")
        return loaded.last.node_id == entry and loaded.is_due

    async def settle(self, session: str, entry: str) -> bool:
        """`Sessions.settle`."""
        log = self._log(session)
        try:
            loaded = await log.load(1)
            if loaded is None or loaded.last.node_id != entry or not loaded.is_due:
                return True
            names, delta = user_names_of(session), loaded.last.delta
            app, user = await self.load(names)
            is_missing = delta.app and not app.has(Change(session, entry, delta.app))
            if is_missing or (delta.user and not user.has(Change(session, entry, delta.user))):
                return False
            await log.settle(loaded)
        except (Corrupt, HeadRevisionConflict):  # it is damaged, which must not stop others; or it is being continued
            return False
        return True

    def _log(self, session: str) -> SessionLog:
        return SessionLog(self._stores.to_check(session))
