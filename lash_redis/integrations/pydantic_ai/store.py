"""The conversation store of Pydantic AI on the sessions of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NoReturn

try:
    from pydantic_ai.conversation_store import ConversationEntry, ConversationRecord, ConversationStore
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Pydantic AI 2.66 or newer is missing: pip install 'lash-redis[pydantic-ai]'") from error

from pydantic_ai.conversation import Conversation
from pydantic_ai.run import AgentRunResult

from lash_redis._validate import require_type
from lash_redis.cache import SessionCache
from lash_redis.integrations.ids import id_of
from lash_redis.integrations.pydantic_ai.conversation import ConversationCall
from lash_redis.session.path_items import SHORT
from lash_redis.session.store import RedisSessionStore

MAX_PAGE: Final = 500
"""Entries that are read in the round trip of the record at most."""


class LashConversationStore(ConversationStore):
    """Stores the conversations of Pydantic AI as sessions of a cache: `await store.save(result)`.

    It behaves as the SDK's `InMemoryConversationStore`, across processes. A conversation is one session, with the
    conversation's id and the `ttl` of the cache. A scope is the owner of its sessions, so `cache.delete_owned(scope)`
    deletes all of them. An entry is one node, stored once for all branches of its conversation. A fork copies the
    entries that it keeps, with their ids, and is independent afterwards.

    Make one store for the whole process.
    """

    def __init__(self, cache: SessionCache) -> None:
        """No I/O.

        Raises:
            InvalidRecord: `cache` is no `SessionCache`.
        """
        require_type("cache", cache, SessionCache)
        self.__cache = cache

    def __repr__(self) -> str:
        return f"LashConversationStore({self.__cache!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a LashConversationStore holds connections and cannot be pickled: make one on a cache of the other process"
        )

    def session(self, conversation_id: str) -> RedisSessionStore:
        """Return the store of the conversation's session, which has leases, streams and the rest. No I/O."""
        return self.__cache.session(id_of(conversation_id))

    # The calls of applications. Each has its own ConversationCall, so calls do not see what others have read.

    async def load(
        self, conversation_id: str, *, limit: int | None = None, scope: str | None = None
    ) -> Conversation | None:
        """Load a conversation, or its last `limit` messages; None if there is none, or it has another scope.

        One round trip for up to 100 messages, or up to 500 with a `limit`. Else two, or three if it has branches.

        Raises:
            UserError: `limit` is negative.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of the session is missing.
            BackendError: the server refused or could not be reached.
        """
        return await self.__call(_page_of(limit)).load(conversation_id, limit=limit, scope=scope)

    async def load_entries(
        self, conversation_id: str, *, limit: int | None = None, scope: str | None = None
    ) -> list[ConversationEntry] | None:
        """Load a conversation's entries. Otherwise as `load`."""
        return await self.__call(_page_of(limit)).load_entries(conversation_id, limit=limit, scope=scope)

    async def save(
        self, conversation: Conversation | AgentRunResult[Any], *, scope: str | None = None
    ) -> list[ConversationEntry]:
        """Save what the store does not have yet, all or nothing, and return the new entries.

        Two round trips, for any length of the conversation: one reads the record, one commits. A conversation that does
        not know which of its messages are stored is compared with the stored ones, which are read.

        Raises:
            ConversationConflict: it was saved or deleted since it was loaded, or exists in another scope; nothing was
                written. Load it again.
            OutcomeUnknown: the reply was lost. Load the conversation to see whether it was saved. A further `save`
                stores nothing twice: it raises ConversationConflict if the first one was applied.
            InvalidRecord, CommitTooLarge: a message cannot be stored; the error names it. Nothing was written.
            SessionDeleted: the session was deleted by `cache.delete` without `reusable`.
            Everything else that `load` raises.
        """
        return await self.__call().save(conversation, scope=scope)

    async def branch(
        self,
        conversation_id: str,
        *,
        at: int | None = None,
        from_entry: str | None = None,
        expected_revision: str | None,
        scope: str | None = None,
    ) -> Conversation:
        """Continue a conversation from an earlier point, or from a branch that it left.

        The history that it leaves stays. It is read as by `load`, and one commit follows.

        Raises:
            UserError: the conversation does not exist in the scope, or does not have that point.
            Everything else that `save` raises.
        """
        return await self.__call(SHORT).branch(
            conversation_id, at=at, from_entry=from_entry, expected_revision=expected_revision, scope=scope
        )

    async def fork(
        self,
        conversation_id: str,
        *,
        at: int | None = None,
        from_entry: str | None = None,
        new_conversation_id: str | None = None,
        scope: str | None = None,
        source_scope: str | None = None,
    ) -> Conversation:
        """Start a conversation with the history of another one up to a point. It shares the ids of the entries.

        The entries are copied: O(length of the history). So neither conversation depends on the other, and a deletion
        of one erases its copy alone. `cache.sessions(parent=...)` lists the forks. Errors as those of `branch`.
        """
        return await self.__call(SHORT).fork(
            conversation_id,
            at=at,
            from_entry=from_entry,
            new_conversation_id=new_conversation_id,
            scope=scope,
            source_scope=source_scope,
        )

    # The primitives

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Read the record of a conversation; None if there is none. One round trip.

        The `revision` is the id of the session's last commit. A session that is no conversation reads as None.
        """
        return await self.__call().read_record(conversation_id)

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """Read the records of all conversations, or of those of a scope, by an index. The most recently saved first.

        With a `limit`, the server's clock decides which they are. Three round trips, and one for each conversation. Up
        to 100 of these are sent at once.

        Raises:
            Corrupt, SessionEvicted: one of the sessions is damaged; the error names its key.
        """
        return await self.__call().read_records(scope=scope, limit=limit)

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and its new entries in one commit, if the stored revision is `expected_revision`.

        Raises:
            ConversationConflict: it is another one, or a preceding entry does not exist; nothing was written.
            InvalidRecord: the scope is another one than before. A conversation keeps its scope.
            Everything else that `save` raises.
        """
        await self.__call().write_record(record, new_entries=new_entries, expected_revision=expected_revision)

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation with all of its messages, if its revision is `expected_revision`.

        Its id is free at once. Messages that forks have copied stay with these. Two round trips, O(1).

        Raises:
            ConversationConflict: the conversation has another revision, or does not exist.
            OutcomeUnknown: the reply was lost; call again.
        """
        await self.__call().delete_record(conversation_id, expected_revision=expected_revision)

    async def read_entry(self, entry_id: str, *, conversation_id: str | None = None) -> ConversationEntry:
        """Read an entry. One or two round trips if `conversation_id` is given.

        An entry's id does not contain the conversation, and the entries lie with their conversation. Without a
        `conversation_id` the call therefore asks all sessions of the namespace, 100 at a time.

        Raises:
            LookupError: there is no such entry.
        """
        call = self.__call()
        if conversation_id is not None and await call.read_record(conversation_id) is None:
            raise LookupError(f"there is no conversation {conversation_id!r}")
        return await call.read_entry(entry_id)

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """Read the entries up to `head_id`, or the last `limit` of them. An empty list without a `head_id`.

        It searches for the conversation as `read_entry` does. `load_entries` knows it.

        Raises:
            LookupError: there is no such entry.
            Corrupt, SessionEvicted: stored bytes are damaged, or a key of a session is missing.
        """
        return await self.__call().read_history(head_id, limit=limit)

    def __call(self, page: int | None = None) -> ConversationCall:
        return ConversationCall(self.__cache, page)


def _page_of(limit: int | None) -> int | None:
    """Return how many entries a load reads in the round trip of the record."""
    if limit is None:
        return SHORT
    return min(limit, MAX_PAGE) if limit > 0 else None
