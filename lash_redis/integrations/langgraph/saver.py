"""The checkpointer: LangGraph's threads as sessions with documents."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from lash_redis._validate import require_int, require_type
from lash_redis.cache import SessionCache
from lash_redis.errors import InvalidRecord
from lash_redis.integrations.langgraph import maintenance
from lash_redis.integrations.langgraph.conflicts import SeenId
from lash_redis.integrations.langgraph.history import delta_history
from lash_redis.integrations.langgraph.memory import Known, Memory
from lash_redis.integrations.langgraph.reading import PAGE, Loaded, ThreadReader, pointer_of
from lash_redis.integrations.langgraph.sync import SyncCalls
from lash_redis.integrations.langgraph.values import PartCache
from lash_redis.integrations.langgraph.writing import ThreadWriter
from lash_redis.session.documents import Documents
from lash_redis.session.store import RedisSessionStore

MAX_READS: Final = 3
STRATEGIES: Final = ("keep_latest", "delete")


class LashCheckpointSaver(BaseCheckpointSaver[str]):
    """A checkpointer on Redis or Valkey, for synchronous and asynchronous graphs.

    A thread is a session of the cache, with the `thread_id` as its id. It is listed, owned and touched as any other,
    and expires the cache's `ttl` after its last write. With an `owner`, the saver uses only threads of that owner.

    A checkpoint stores what changed: a list by its new elements, any other value of a channel if it is new.

    If another run has continued the thread, the next `put` of a run raises `CheckpointConflict` and writes nothing. A
    run that names an older checkpoint makes a branch.

    `serde` is by default LangGraph's `JsonPlusSerializer` in its strict mode: a value of an unknown class is returned
    as plain data. For your own classes pass `JsonPlusSerializer(allowed_msgpack_modules=[...])`, or use
    `with_allowlist`.

    The synchronous methods run in the event loop of a thread of the saver's own, and need a cache that
    `lash_redis.connect` made. Inside of a running event loop they raise RuntimeError.
    """

    def __init__(
        self, cache: SessionCache, *, owner: str | None = None, serde: SerializerProtocol | None = None
    ) -> None:
        """No I/O.

        Raises:
            InvalidRecord: `cache` is no `SessionCache`.
        """
        require_type("cache", cache, SessionCache)
        super().__init__(serde=serde or JsonPlusSerializer(allowed_msgpack_modules=None))
        self._cache = cache
        self._owner = owner
        self._memory = Memory()
        self._parts = PartCache(cache.options.blob_cache_bytes)
        self._sync = SyncCalls(cache)

    def session(self, thread_id: str) -> RedisSessionStore:
        """Return the session of a thread, for leases and streams. No I/O; it belongs to the saver's owner, if any.

        Raises:
            InvalidRecord: `thread_id` is no id of a session.
        """
        return self._cache.session(str(thread_id), owner=self._owner)

    # Asynchronous

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the config names, else the latest of the namespace; None if there is none.

        One round trip, and a second one for values that this process has not seen.

        Raises:
            Corrupt, SessionEvicted: it is unreadable, or a part of it is missing.
            BackendError: the server refused or could not be reached.
        """
        thread_id, ns, checkpoint_id = _place(config)
        reader = self._reader(thread_id)
        for _ in range(MAX_READS):
            found, pointer = await (reader.exact(ns, checkpoint_id) if checkpoint_id else reader.latest(ns))
            self._memory.pointers.put((thread_id, ns), pointer)
            if found is None:
                if not checkpoint_id:
                    self._memory.empty.put((thread_id, ns), True)
                return None
            tuples = await self._tuples(reader, thread_id, [found], pointer)
            if tuples is not None:
                return tuples[0]
        raise reader.gone(ns, checkpoint_id or "")

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 (the name is LangGraph's)
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints, the latest first: of a namespace, of a thread, or without a config of every thread in turn.

        `filter` compares values of the metadata. Two round trips for 100 checkpoints; memory is bounded. A thread of
        which no namespace is given has the names of all its checkpoints read first.

        Raises:
            Corrupt, SessionEvicted: a checkpoint is unreadable, or a part of it is missing.
            BackendError: the server refused or could not be reached.
        """
        if limit is not None:
            require_int("limit", limit, 0)
            if limit == 0:
                return
        left = limit
        earlier_than = None if before is None else get_checkpoint_id(before)
        async for thread_id, page in self._pages(config, earlier_than):
            reader = self._reader(thread_id)
            matching = [
                each
                for each in page
                if not filter or maintenance.metadata_matches(self.serde.loads_typed(each.record.metadata), filter)
            ][:left]
            tuples = await self._tuples(reader, thread_id, matching)
            if tuples is None:  # some of them were pruned meanwhile
                tuples = await self._tuples_left(reader, thread_id, matching)
            for each in tuples:
                yield each
            left = None if left is None else left - len(matching)
            if left is not None and left <= 0:
                return

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint on the one that the config names. One round trip. A put that is sent again has no effect.

        Raises:
            CheckpointConflict: another writer has continued, deleted or pruned the thread; nothing was written.
            OwnerMismatch, SessionDeleted, SessionExists: the id belongs to another owner, was deleted with
                `cache.delete` without `reusable`, or is that of a chat; nothing was written.
            CommitTooLarge: a value is over `StoreOptions.max_commit_bytes`.
            OutcomeUnknown: the reply was lost; put it again.
        """
        thread_id, ns, parent = _place(config)
        if not isinstance(checkpoint["id"], str) or not checkpoint["id"]:
            raise InvalidRecord("checkpoint", f"expected an id that is a text, got {checkpoint['id']!r}")
        merged = get_serializable_checkpoint_metadata(config, metadata)
        await self._writer(thread_id).put(ns, parent, checkpoint, merged, new_versions)
        return _config(thread_id, ns, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store pending writes of a task. One round trip. It raises what `aput` raises.

        They may come before their checkpoint if this saver has loaded the thread before, as every run does. Writes to a
        thread without checkpoints that it has not loaded are refused by `CheckpointConflict`.
        """
        thread_id, ns, checkpoint_id = _place(config)
        if not checkpoint_id:
            raise InvalidRecord("config", "expected a checkpoint_id in config['configurable']")
        if writes:
            await self._writer(thread_id).put_writes(ns, checkpoint_id, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete a thread. Its id is usable at once. A run in progress gets `CheckpointConflict`. Two round trips.

        Raises:
            OwnerMismatch: the thread is another owner's; nothing was deleted.
            OutcomeUnknown: the reply was lost; call again.
        """
        await self._cache.delete(str(thread_id), owner=self._owner, reusable=True)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints whose metadata has one of these `run_id`s. It reads every thread, in pages.

        Delta channels of later checkpoints that are rebuilt from deleted ones become incomplete. After an error, call
        again: the threads that were processed before stay changed.

        Raises:
            TypeError: `run_ids` is a str.
            BackendError: the server failed, or a thread changed during each of 16 attempts.
            Corrupt, SessionEvicted: a thread is damaged.
        """
        if isinstance(run_ids, str):
            raise TypeError("run_ids must be a sequence of run ids, not a str")
        if not run_ids:
            return
        kept_of = partial(maintenance.without_runs, serde=self.serde, run_ids=set(run_ids))
        async for thread_id in self._thread_ids():
            await maintenance.keep(self._documents(thread_id), kept_of)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy every checkpoint, branch and pending write of a thread to another id, which must have none.

        O(thread), in pages and calls of bounded size. After an error, call again: an unfinished copy has no latest
        checkpoint, and does not count as one.

        Raises:
            SessionExists: the target has checkpoints or a graph.
            SessionEvicted: a part of the source is missing.
            BackendError: the server failed, or the source changed during each of 16 attempts.
        """
        await maintenance.copy_thread(self._documents(str(source_thread_id)), self._documents(str(target_thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune threads: keep the latest checkpoint of each namespace (`keep_latest`), or nothing (`delete`).

        The ancestors from which delta channels of a kept checkpoint are rebuilt stay, too. It reads each thread, in
        pages. After an error, threads that were pruned before stay pruned; call again.

        Raises:
            TypeError, ValueError: `thread_ids` is a str, or `strategy` is unknown.
            BackendError: the server failed, or a thread changed during each of 16 attempts.
            Corrupt, SessionEvicted: a thread is damaged.
        """
        if isinstance(thread_ids, str):
            raise TypeError("thread_ids must be a sequence of thread ids, not a str")
        if strategy not in STRATEGIES:
            raise ValueError(f"expected a strategy of {STRATEGIES}, got {strategy!r}")
        for thread_id in thread_ids:
            if strategy == "delete":
                await self.adelete_thread(thread_id)
            else:
                kept_of = partial(maintenance.latest_and_what_it_needs, serde=self.serde)
                await maintenance.keep(self._documents(str(thread_id)), kept_of)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return the writes to each channel since its last stored value, along the parents of a checkpoint.

        About one round trip for 200 ancestors.

        Raises:
            Corrupt, SessionEvicted: an ancestor is unreadable, or a part of it is missing.
        """
        if not channels:
            return {}
        thread_id, ns, checkpoint_id = _place(config)
        reader = self._reader(thread_id)
        found, _ = await (reader.exact(ns, checkpoint_id) if checkpoint_id else reader.latest(ns))
        if found is None:
            return {channel: {"writes": []} for channel in channels}
        return await delta_history(reader, self.serde, found, channels)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """Return the next version of a channel: a number that sorts as text, and random digits.

        A thread of another saver whose versions are numbers continues with numbers, because LangGraph compares them.
        """
        if isinstance(current, int | float):
            return current + 1
        number = 0 if current is None else int(current.split(".")[0])
        return f"{number + 1:032}.{random.random():016}"

    # Synchronous

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`aget_tuple`, outside of an event loop."""
        return self._sync.run("aget_tuple", self.aget_tuple, config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 (the name is LangGraph's)
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """`alist`, outside of an event loop."""
        return self._sync.iterate("alist", self.alist(config, filter=filter, before=before, limit=limit))

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`aput`, outside of an event loop."""
        return self._sync.run("aput", self.aput, config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`aput_writes`, outside of an event loop."""
        self._sync.run("aput_writes", self.aput_writes, config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """`adelete_thread`, outside of an event loop."""
        self._sync.run("adelete_thread", self.adelete_thread, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`adelete_for_runs`, outside of an event loop."""
        self._sync.run("adelete_for_runs", self.adelete_for_runs, run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`acopy_thread`, outside of an event loop."""
        self._sync.run("acopy_thread", self.acopy_thread, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """`aprune`, outside of an event loop."""
        self._sync.run("aprune", self.aprune, thread_ids, strategy=strategy)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """`aget_delta_channel_history`, outside of an event loop."""
        call = self.aget_delta_channel_history
        return self._sync.run("aget_delta_channel_history", call, config=config, channels=channels)

    # Parts of the methods above

    def _documents(self, thread_id: str) -> Documents:
        return self._cache.documents(thread_id, owner=self._owner)

    def _reader(self, thread_id: str) -> ThreadReader:
        return ThreadReader(self._documents(thread_id), self._parts)

    def _writer(self, thread_id: str) -> ThreadWriter:
        documents = self._documents(thread_id)
        return ThreadWriter(documents, ThreadReader(documents, self._parts), self._memory, self._parts, self.serde)

    async def _thread_ids(self) -> AsyncIterator[str]:
        async for info in self._cache.sessions(owner=self._owner):
            if not info.head_revision:  # else it has a graph
                yield info.session_id

    async def _pages(
        self, config: RunnableConfig | None, before: str | None
    ) -> AsyncIterator[tuple[str, Sequence[Loaded]]]:
        """Yield checkpoints in pages, each with the id of its thread."""
        if config is None:
            async for thread_id in self._thread_ids():
                async for page in self._pages_of(thread_id, None, None, before):
                    yield thread_id, page
            return
        thread_id, _, checkpoint_id = _place(config)
        async for page in self._pages_of(thread_id, config["configurable"].get("checkpoint_ns"), checkpoint_id, before):
            yield thread_id, page

    async def _pages_of(
        self, thread_id: str, ns: str | None, checkpoint_id: str | None, before: str | None
    ) -> AsyncIterator[Sequence[Loaded]]:
        reader = self._reader(thread_id)
        if ns is not None and checkpoint_id is None:
            while page := await reader.page(ns, before, PAGE):
                yield page
                before = page[-1].checkpoint_id
            return
        places = [
            (each, found)
            for found, each in ([(checkpoint_id, ns)] if ns is not None and checkpoint_id else await reader.ids())
            if (before is None or found < before) and checkpoint_id in (None, found)
        ]
        for at in range(0, len(places), PAGE):
            yield await reader.some(places[at : at + PAGE])

    async def _tuples(
        self, reader: ThreadReader, thread_id: str, found: Sequence[Loaded], pointer: bytes | None = None
    ) -> Sequence[CheckpointTuple] | None:
        """Decode checkpoints; None if a part of one is gone. Remember them for the puts that continue them."""
        parts = await reader.parts(value for each in found for value in each.record.values.values())
        if parts is None:
            return None
        loads = self.serde.loads_typed
        tuples = []
        for each in found:
            head: dict[str, Any] = loads(each.record.head)
            values = {channel: loads(parts.typed(value)) for channel, value in each.record.values.items()}
            checkpoint: Any = {**head, "channel_values": values}
            place = thread_id, each.ns, each.checkpoint_id
            if self._memory.checkpoints.get(place) is None:
                self._memory.checkpoints.put(place, Known(head["channel_versions"], each.record.values))
            current = pointer_of(each.ns, pointer)
            seen = SeenId(each.checkpoint_id, is_latest=current is not None and current.latest == each.checkpoint_id)
            parent = each.record.parent
            tuples.append(
                CheckpointTuple(
                    _config(thread_id, each.ns, seen),
                    checkpoint,
                    loads(each.record.metadata),
                    None if parent is None else _config(thread_id, each.ns, SeenId(parent, is_latest=False)),
                    [(write.task_id, write.channel, loads(write.value)) for write in each.writes],
                )
            )
        return tuples

    async def _tuples_left(
        self, reader: ThreadReader, thread_id: str, found: Sequence[Loaded]
    ) -> Sequence[CheckpointTuple]:
        """Decode those of these checkpoints that still exist."""
        tuples: list[CheckpointTuple] = []
        for each in found:
            for again in await reader.some([(each.ns, each.checkpoint_id)]):
                made = await self._tuples(reader, thread_id, [again])
                if made is None:
                    raise reader.gone(each.ns, each.checkpoint_id)
                tuples += made
        return tuples


def _place(config: RunnableConfig) -> tuple[str, str, str | None]:
    """Return the thread id, the namespace and the checkpoint id in a config.

    Raises:
        InvalidRecord: the config has no thread id.
    """
    configurable = config.get("configurable") or {}
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise InvalidRecord("config", "expected a thread_id in config['configurable']")
    return str(thread_id), configurable.get("checkpoint_ns") or "", get_checkpoint_id(config) or None


def _config(thread_id: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}
