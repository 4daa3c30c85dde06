"""A checkpointer that writes to two savers, for a change of the saver without downtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
)

from lash_redis._validate import require_type
from lash_redis.errors import InvalidRecord
from lash_redis.integrations.langgraph.saver import LashCheckpointSaver


class DualWriteSaver(BaseCheckpointSaver[Any]):
    """Reads from one of two savers, and writes to both, while the workers of a service change from one to the other.

    Workers that read from the old saver and workers that read from the new one can run at the same time: each sees what
    the others stored. Two of their runs on one thread conflict as with `LashCheckpointSaver` alone.

    A write goes to the new saver first. If that raises, such as `CheckpointConflict`, the old one is not written to. If
    the old one raises, the new saver alone has the write, and the run fails. It can be run again.

    `prune`, `copy_thread` and `delete_for_runs` raise NotImplementedError: call them on each of the savers.
    """

    def __init__(
        self,
        new: LashCheckpointSaver,
        old: BaseCheckpointSaver[Any],
        *,
        read_from: Literal["old", "new"] = "old",
    ) -> None:
        """No I/O.

        Raises:
            InvalidRecord: `new` is no `LashCheckpointSaver`, or `read_from` is neither `old` nor `new`.
        """
        require_type("new", new, LashCheckpointSaver)
        if read_from not in ("old", "new"):
            raise InvalidRecord("read_from", f"expected 'old' or 'new', got {read_from!r}")
        super().__init__(serde=new.serde)
        self.new, self.old, self.read_from = new, old, read_from
        self._read: BaseCheckpointSaver[Any] = new if read_from == "new" else old

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint of the saver that is read from; None if it has none. It reads both."""
        stored = await self.new.aget_tuple(config)
        if self._read is self.new:
            return stored
        if stored is None and get_checkpoint_id(config):
            await self.new.aget_tuple(_latest(config))  # so that it takes writes although it may lack the thread
        return _recognised(await self.old.aget_tuple(config), stored)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 (the name is LangGraph's)
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints of the saver that is read from."""
        async for each in self._read.alist(config, filter=filter, before=before, limit=limit):
            yield each

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint in both. It raises what `LashCheckpointSaver.aput` raises, or the old saver."""
        stored = await self.new.aput(config, checkpoint, metadata, new_versions)
        await self.old.aput(_plain(config), checkpoint, metadata, new_versions)
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store pending writes of a task in both. It raises as `aput` does."""
        await self.new.aput_writes(config, writes, task_id, task_path)
        await self.old.aput_writes(_plain(config), writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete a thread from both. After an error, call again."""
        await self.new.adelete_thread(thread_id)
        await self.old.adelete_thread(thread_id)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return the history of the saver that is read from."""
        return await self._read.aget_delta_channel_history(config=config, channels=channels)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """Return the next version of a channel, as the saver that is read from makes it."""
        return self._read.get_next_version(current, channel)

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> DualWriteSaver:
        """Return a saver over both savers with the allowlist."""
        new = self.new.with_allowlist(extra_allowlist)
        assert isinstance(new, LashCheckpointSaver)  # a copy of it
        return DualWriteSaver(new, self.old.with_allowlist(extra_allowlist), read_from=self.read_from)

    # Synchronous

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`aget_tuple`, outside of an event loop."""
        stored = self.new.get_tuple(config)
        if self._read is self.new:
            return stored
        if stored is None and get_checkpoint_id(config):
            self.new.get_tuple(_latest(config))
        return _recognised(self.old.get_tuple(config), stored)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 (the name is LangGraph's)
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """`alist`, outside of an event loop."""
        return self._read.list(config, filter=filter, before=before, limit=limit)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`aput`, outside of an event loop."""
        stored = self.new.put(config, checkpoint, metadata, new_versions)
        self.old.put(_plain(config), checkpoint, metadata, new_versions)
        return stored

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`aput_writes`, outside of an event loop."""
        self.new.put_writes(config, writes, task_id, task_path)
        self.old.put_writes(_plain(config), writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """`adelete_thread`, outside of an event loop."""
        self.new.delete_thread(thread_id)
        self.old.delete_thread(thread_id)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """`aget_delta_channel_history`, outside of an event loop."""
        return self._read.get_delta_channel_history(config=config, channels=channels)


def _recognised(found: CheckpointTuple | None, stored: CheckpointTuple | None) -> CheckpointTuple | None:
    """Return what the old saver found, so that the new one recognises its run if both have the same checkpoint."""
    if found is None or stored is None or found.checkpoint["id"] != stored.checkpoint["id"]:
        return found
    return found._replace(config=stored.config)


def _latest(config: RunnableConfig) -> RunnableConfig:
    configurable = config["configurable"]
    names = ("thread_id", "checkpoint_ns")
    return {"configurable": {name: configurable[name] for name in names if name in configurable}}


def _plain(config: RunnableConfig) -> RunnableConfig:
    """Return the config with the checkpoint id as a plain text, which every database driver takes."""
    configurable = dict(config["configurable"])
    if configurable.get("checkpoint_id"):
        configurable["checkpoint_id"] = str(configurable["checkpoint_id"])
    return {**config, "configurable": configurable}
