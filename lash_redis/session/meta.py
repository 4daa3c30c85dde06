"""Write the meta record of one session: save it, create it, or change its title."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from lash_redis.errors import BackendError
from lash_redis.models import SessionMeta
from lash_redis.protocol import commands
from lash_redis.session.namespace import Namespace
from lash_redis.session.reader import MAX_ATTEMPTS, Reader

NO_RECORD: Final = b""
"""The stored record that a new record replaces: none."""


def new_meta(
    session_id: str, title: str | None = None, *, model: str = "", cwd: str | None = None, parent: str | None = None
) -> SessionMeta:
    """Return the meta record of a session that is made now. Without a title its name is its id."""
    name = session_id if title is None else title
    return SessionMeta(session_id, name, f"unix:{int(time.time())}", model, cwd, parent)


class MetaWriter:
    """The writes of one session's meta record.

    Each method takes the owner that the session is expected to have (empty for none), and returns the one that it has.
    """

    def __init__(self, namespace: Namespace, reader: Reader) -> None:
        self._namespace = namespace
        self._reader = reader
        self._keys = reader.keys

    async def save(self, meta: SessionMeta, owner: str) -> str:
        """`RedisSessionStore.save_session_meta`."""
        _, owner = await self._write(meta, None, owner)
        return owner

    async def create(self, meta: SessionMeta, owner: str, own_ttl: int | None) -> str:
        """Write the record if there is none. `own_ttl`: that of a new session, in ms; None for none."""
        _, owner = await self._write(meta, NO_RECORD, owner, own_ttl)
        return owner

    async def rename(self, title: str, owner: str) -> str:
        """`RedisSessionStore.set_title`."""
        for _ in range(MAX_ATTEMPTS):
            stored = await self._reader.stored_meta()
            if stored is None:
                is_written, owner = await self._write(new_meta(self._keys.session_id, title), NO_RECORD, owner)
            else:
                renamed = replace(stored.meta, session_name=title)
                is_written, owner = await self._write(renamed, stored.record, owner)
            if is_written:
                return owner
        raise self._contended()

    async def _write(
        self, meta: SessionMeta, known: bytes | None, owner: str, own_ttl: int | None = None
    ) -> tuple[bool, str]:
        """Write the record; return whether the stored one was `known` (None: any), and the session's owner."""
        namespace = self._namespace
        for _ in range(MAX_ATTEMPTS):
            call = commands.lifecycle.meta_call(
                self._keys, meta, known, owner, namespace.ttl_ms, namespace.options, own_ttl_ms=own_ttl
            )
            outcome = commands.lifecycle.meta_reply(call, self._keys, await namespace.run(call))
            if not isinstance(outcome, commands.calls.OwnerMoved):
                return outcome, owner
            owner = outcome.owner
        raise self._contended()

    def _contended(self) -> BackendError:
        return BackendError(
            f"the meta record of session {self._keys.session_id!r} changed during each of {MAX_ATTEMPTS} attempts to "
            "write it; retry later"
        )
