"""The primitives of the SDK's conversation store for one call, on the sessions of a cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
)

from lash_redis.cache import SessionCache
from lash_redis.errors import Corrupt, HeadRevisionConflict, InvalidLeaf, InvalidParent, InvalidRecord, OwnerMismatch
from lash_redis.integrations.ids import id_of
from lash_redis.integrations.pydantic_ai.messages import message_of_content, payload_of_message
from lash_redis.integrations.pydantic_ai.records import Point, encode_record
from lash_redis.models import (
    ActivePath,
    Append,
    HydratedSessionCheckpoint,
    PersistedSessionRead,
    RuntimeCommit,
    SessionNodeRecord,
    Unchanged,
)
from lash_redis.models.node import timestamp_now
from lash_redis.protocol.commands.commit import Origin
from lash_redis.protocol.steps import Steps
from lash_redis.protocol.stored_nodes import contents_of
from lash_redis.session.meta import new_meta
from lash_redis.session.path_items import PathItems
from lash_redis.session.store import RedisSessionStore
from lash_redis.transport.turns import in_turns

AT_ONCE: Final = 100
"""Sessions that a list or a search reads at the same time."""


class ConversationCall(ConversationStore):
    """The SDK's algorithms for one call, on primitives that remember what the call has read.

    The SDK reads a history by the id of its last entry alone. The call knows the conversation, because it has read the
    record before.

    Private names have two underscores, so that none is a private name of the SDK's class.
    """

    def __init__(self, cache: SessionCache, page: int | None = None) -> None:
        """`page` is the number of entries to read with a record, in the same round trip; None for none."""
        self.__cache = cache
        self.__page = page
        self.__store: RedisSessionStore | None = None
        """The store of the session that was read last."""
        self.__point: Point | None = None
        """The head and the checkpoint of that session; None if it did not exist."""
        self.__read: PersistedSessionRead | None = None
        """The page that was read with it."""

    # Reads

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        return await self.__read_session(id_of(conversation_id))

    async def __read_session(self, session_id: str) -> ConversationRecord | None:
        self.__store = store = self.__cache.session(session_id)
        self.__point = self.__read = None
        if self.__page is None:
            found = await store.load_checkpoint()
            if found is not None:
                head, checkpoint = found
                self.__point = Point(
                    session_id, head.head_revision, head.commit_id or "", head.leaf_node_id, checkpoint
                )
        else:
            self.__read = read = await store.load_session(ActivePath(limit=self.__page))
            if read is not None and read.checkpoint is not None:
                self.__point = Point(
                    session_id, read.head_revision, read.commit_id or "", read.graph.leaf_node_id, read.checkpoint
                )
        return None if self.__point is None else self.__point.record()

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        found: list[ConversationRecord] = []
        async for ids in self.__pages(scope, limit):
            calls = [ConversationCall(self.__cache).__read_session(session_id) for session_id in ids]
            read = await asyncio.gather(*calls)
            found += [record for record in read if record is not None and scope in (None, record.scope)]
            if limit is not None and len(found) >= limit:
                break
        found = found[:limit]
        found.sort(key=lambda record: record.updated_at, reverse=True)
        return found

    async def __pages(self, scope: str | None = None, limit: int | None = None) -> AsyncIterator[list[str]]:
        """Yield the ids of sessions in pages, the most recently committed first."""
        owner, after = None if scope is None else id_of(scope), None
        count = AT_ONCE if limit is None else min(limit, AT_ONCE)
        while count and (page := [each async for each in self.__cache.sessions(owner=owner, limit=count, after=after)]):
            yield [each.session_id for each in page]
            if len(page) < count:
                return
            after = page[-1].cursor

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        if head_id is None or limit == 0:
            return []
        if self.__store is None:
            await self.__find(head_id)
        store, page = self.__store, self.__read
        if store is None:
            raise LookupError(f"no conversation has the entry {head_id!r}")
        path, entries = PathItems(store, _entries_of), list[ConversationEntry]()
        if page is not None and page.graph.leaf_node_id == head_id:
            if limit is None and page.is_partial:
                self.__read = page = await path.load_whole(page, head_id)
            entries = [] if page is None else await in_turns(_entries_of(page))
        if not entries or (limit is not None and page is not None and page.is_partial and len(entries) < limit):
            _, entries = await path.load(limit, leaf=head_id)
        if not entries:
            raise LookupError(f"conversation {store.session_id!r} has no entry {head_id!r} any more")
        return entries if limit is None else entries[-limit:]

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        return (await self.read_history(entry_id, limit=1))[0]

    async def __find(self, node_id: str) -> None:
        """Read a conversation that has the node, if there is one. It asks every session of the namespace."""
        async for ids in self.__pages():
            nodes = await asyncio.gather(*(self.__cache.session(session_id).load_node(node_id) for session_id in ids))
            for session_id, node in zip(ids, nodes, strict=True):
                if node is not None and await self.__read_session(session_id) is not None:
                    return
        self.__store = None

    # Writes

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        nodes = await in_turns(_nodes_of(new_entries))
        try:
            if expected_revision is None:
                await self.__begin(record, nodes)
            else:
                await self.__continue(record, nodes, expected_revision)
        except (HeadRevisionConflict, InvalidLeaf, InvalidParent, OwnerMismatch) as error:
            raise ConversationConflict(record.conversation_id) from error

    async def __begin(self, record: ConversationRecord, nodes: list[SessionNodeRecord]) -> None:
        """Commit the first record of a conversation, behind the history that it shares with another one."""
        session_id = id_of(record.conversation_id)
        store = self.__cache.session(session_id, owner=None if record.scope is None else id_of(record.scope))
        base = nodes[0].parent_node_id if nodes else record.head_id
        path = [] if base is None else await self.__source_path(record, base)
        leaf = record.head_id or (nodes[-1].node_id if nodes else None)
        commit = RuntimeCommit(
            session_id,
            0,
            graph=_delta([*path, *nodes], leaf),
            checkpoint=HydratedSessionCheckpoint(execution_state=encode_record(record, leaf)),
            commit_id=record.revision,
        )
        if record.forked_from is None:
            await store.commit_runtime_state(commit)
            return
        origin = Origin(new_meta(session_id, parent=id_of(record.forked_from)))
        options = replace(self.__cache.options, max_commit_nodes=None, max_commit_bytes=None)
        await store.begin(commit, origin, {}, options=options)

    async def __source_path(self, record: ConversationRecord, base: str) -> Sequence[SessionNodeRecord]:
        """Return the nodes up to `base` of the conversation from which the record was forked.

        Raises:
            ConversationConflict: there is no such conversation, or no such node in it.
        """
        source, read = record.forked_from, self.__read
        if source is None:
            raise ConversationConflict(record.conversation_id)
        if read is not None and read.session_id == id_of(source) and not read.is_partial:
            at = read.graph.node_index(base)
            if at is not None:
                return read.graph.nodes[: at + 1]
        read = await self.__cache.session(id_of(source)).load_session(ActivePath(base))
        if read is None or not read.graph.nodes:
            raise ConversationConflict(record.conversation_id)
        return read.graph.nodes

    async def __continue(self, record: ConversationRecord, nodes: list[SessionNodeRecord], expected: str) -> None:
        """Commit a record and its new nodes on the revision `expected`."""
        session_id = id_of(record.conversation_id)
        if self.__point is None or (self.__point.session_id, self.__point.commit_id) != (session_id, expected):
            await self.__read_session(session_id)
        store, point = self.__store, self.__point
        stored = None if point is None else point.record()
        if store is None or point is None or stored is None or point.commit_id != expected:
            raise ConversationConflict(record.conversation_id)
        if record.scope != stored.scope:
            raise InvalidRecord(
                "record.scope", f"expected {stored.scope!r}, the scope that the conversation began with"
            )
        leaf = record.head_id or (nodes[-1].node_id if nodes else point.leaf)
        commit = RuntimeCommit(
            session_id,
            point.revision,
            graph=_delta(nodes, leaf),
            checkpoint=point.with_record(record, leaf),
            commit_id=record.revision,
            builds_on=expected,
        )
        await store.commit_runtime_state(commit)

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        store = self.__cache.session(id_of(conversation_id))
        try:
            report = await store.delete(reusable=True, builds_on=expected_revision)
        except HeadRevisionConflict as error:
            raise ConversationConflict(conversation_id) from error
        if not report.existed:
            raise ConversationConflict(conversation_id)


def _delta(nodes: Sequence[SessionNodeRecord], leaf: str | None) -> Append | Unchanged:
    return Append(nodes, leaf) if nodes else Unchanged(leaf)


def _nodes_of(entries: Sequence[ConversationEntry]) -> Steps[list[SessionNodeRecord]]:
    """Return the node of each entry; each is a step."""
    now, nodes = timestamp_now(), []
    for at, entry in enumerate(entries):
        payload = payload_of_message(entry.message, entry.id, f"new_entries[{at}].message")
        nodes.append(SessionNodeRecord(entry.id, entry.parent_id, now, payload))
        yield
    return nodes


def _entries_of(read: PersistedSessionRead) -> Steps[list[ConversationEntry]]:
    """Return the entries of the nodes that have a message, each behind the one before it; each node is a step.

    Raises:
        Corrupt: a message is damaged, or was written by a later version of the SDK.
    """
    nodes, entries = read.graph.nodes, list[ConversationEntry]()
    parent_id = nodes[0].parent_node_id if nodes else None
    for at, (node_id, plugin_type, content) in enumerate(contents_of(nodes)):
        try:
            message = message_of_content(plugin_type, content, partial(_timestamp_of, nodes, at))
        except (ValueError, TypeError, LookupError) as error:
            reason = f"the installed Pydantic AI does not read node {node_id!r}: {error}"
            raise Corrupt("message", read.session_id, reason) from error
        if message is not None:
            entries.append(ConversationEntry(id=node_id, parent_id=parent_id, message=message))
            parent_id = node_id
        yield
    return entries


def _timestamp_of(nodes: Sequence[SessionNodeRecord], at: int) -> str:
    return nodes[at].timestamp
