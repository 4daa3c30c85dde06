"""Store the threads of another checkpointer, and compare both sides.

A thread that both sides have may lack something on one side only: on the target, which then gets it, or on the source,
because the thread was continued on the target. Everything that both have must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import ormsgpack
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointTuple,
    get_serializable_checkpoint_metadata,
)

from lash_redis._validate import require_type
from lash_redis.errors import BackendError, OutcomeUnknown, StoreError
from lash_redis.integrations.langgraph.saver import LashCheckpointSaver
from lash_redis.models import ImportReport
from lash_redis.models.import_counts import ImportCounts

MAX_CHECKPOINTS: Final = 1_000_000
"""Maximum number of checkpoints of a thread. LangGraph's Redis saver lists 10,000 unless it is given a limit."""
NULL_TASK: Final = "00000000-0000-0000-0000-000000000000"
"""The task of writes that come from outside of a run, such as the answer to an interrupt. It has no path."""

Saver: TypeAlias = BaseCheckpointSaver[Any]
Place: TypeAlias = tuple[str, str]
"""The id and the namespace of a checkpoint, which sort from the oldest to the latest."""
Writes: TypeAlias = dict[str, dict[int, list[tuple[str, Any]]]]
"""Pending writes by task, in the order in which a run applies them, and by kind: what one call of `put_writes` stores.

The kind is 0 for the results of the task, and the index of a special channel, which has one write.
"""


async def import_threads(
    source: Saver,
    target: LashCheckpointSaver,
    thread_ids: Iterable[str] | None = None,
    *,
    advance: Callable[[], object] = lambda: None,
) -> ImportReport:
    """Store threads of another saver in `target`: every checkpoint, the oldest first, with its pending writes.

    Ids, parents, metadata and namespaces stay. Each checkpoint is then read from both sides and compared. A second run
    continues an interrupted one, and adds what the source got meanwhile. A thread that was continued on the target
    alone counts as present. One that differs, or was continued on both sides, is left as it is, and is a failure.

    `source` needs asynchronous methods, such as those of `AsyncSqliteSaver`. Without `thread_ids`, every thread that
    `source.alist(None)` lists is stored. `advance` is called after each thread. Memory is bounded by the largest
    checkpoint, the ids of the threads, and those of one thread's checkpoints. Each checkpoint is read about three times
    on either side.

    Both savers need serialisers that return objects as they were stored: with an allowlist of your classes, or
    `VerbatimSerializer`. Metadata of the name `writes`, which older versions of LangGraph stored, is left out. The
    order of the tasks of a checkpoint is kept by paths of their own: the base class does not return `task_path`.

    Raises:
        InvalidRecord: `target` is no `LashCheckpointSaver`.
        BackendError, OutcomeUnknown: the target failed; run the import again.
        NotImplementedError: the source has no asynchronous methods. With `thread_ids`, each thread is a failure.
    """
    require_type("target", target, LashCheckpointSaver)
    counts = ImportCounts()
    for thread_id in await thread_ids_of(source) if thread_ids is None else dict.fromkeys(thread_ids):
        try:
            has_added = await _ThreadImport(source, target, thread_id).run()
        except (BackendError, OutcomeUnknown):
            raise
        except (StoreError, ValueError, NotImplementedError, ormsgpack.MsgpackEncodeError) as error:
            counts.fail(f"thread {thread_id!r}", error)
        else:
            counts.add(is_present=not has_added)
        advance()
    return counts.report()


async def thread_ids_of(source: Saver) -> list[str]:
    """Return the ids of all threads, those that were written to last first. It reads every checkpoint."""
    return list({str(each.config["configurable"]["thread_id"]): None async for each in source.alist(None)})


class _Differs(ValueError):
    """The two sides of a thread differ."""


class _ThreadImport:
    """The import of one thread."""

    def __init__(self, source: Saver, target: LashCheckpointSaver, thread_id: str) -> None:
        self._source, self._target, self._thread_id = source, target, thread_id
        self._serde = target.serde
        self._last: dict[str, CheckpointTuple] = {}
        """The checkpoint that the target stored last, by namespace."""

    async def run(self) -> bool:
        """Store what the target lacks. Return whether it lacked anything.

        Raises:
            ValueError: the source lacks the thread, both sides differ, or either changed meanwhile.
        """
        wanted, stored = await self._places(self._source), await self._places(self._target)
        if not wanted:
            raise _Differs("the source has no checkpoint of it")
        work, is_continued = wanted - stored, bool(stored - wanted)
        for place in sorted(wanted & stored):
            lacks, has_more = await self._compare(place)
            if lacks:
                work.add(place)
            is_continued = is_continued or has_more
        if work and is_continued:
            raise _Differs("it was continued on both sides; delete it from one of them")
        for place in sorted(work):
            await self._store(place)
        for ns in {ns for _, ns in work}:
            latest = await self._target.aget_tuple(self._config(ns))
            if latest is None or (latest.checkpoint["id"], ns) not in wanted:
                raise _Differs("it was continued or deleted on the target during the import")
        return bool(work)

    async def _places(self, saver: Saver) -> set[Place]:
        config: RunnableConfig = {"configurable": {"thread_id": self._thread_id}}
        found = {
            (each.checkpoint["id"], each.config["configurable"].get("checkpoint_ns") or "")
            async for each in saver.alist(config, limit=MAX_CHECKPOINTS)
        }
        if len(found) == MAX_CHECKPOINTS:
            raise _Differs(f"it has {MAX_CHECKPOINTS} checkpoints or more; prune it")
        return found

    async def _store(self, place: Place) -> None:
        """Store a checkpoint, or what the target lacks of it, and compare both sides."""
        checkpoint_id, ns = place
        found, config = await self._read(self._source, place), self._config(ns, checkpoint_id)
        stored = await self._target.aget_tuple(config)
        own = {} if stored is None else stored.checkpoint["channel_values"]
        if stored is None or found.checkpoint["channel_values"].keys() - own.keys():
            parent = await self._parent(ns, _parent_id(found))
            # All channels count as new, so that exactly the values of the source are stored.
            versions = found.checkpoint["channel_versions"]
            await self._target.aput(parent, found.checkpoint, found.metadata, versions)
        # Writes can be stored before their checkpoint, by a `DualWriteSaver` whose old saver alone has the checkpoint.
        wanted, present = _writes(found), _writes(await self._read(self._target, place))
        paths = {
            task_id: f"{position:08}" for position, task_id in enumerate(each for each in wanted if each != NULL_TASK)
        }
        for (task_id, kind), writes in _flat(wanted).items():
            if kind not in present.get(task_id, {}):
                await self._target.aput_writes(config, writes, task_id, paths.get(task_id, ""))
        if any(await self._compare(place)):
            raise _Differs(
                f"the pending writes of checkpoint {checkpoint_id!r} changed meanwhile; run the import again"
            )
        self._last[ns] = await self._read(self._target, place)

    async def _parent(self, ns: str, parent_id: str | None) -> RunnableConfig:
        """Return the config of the parent. If the parent is the latest one, the target refuses another's put on it."""
        if parent_id is None:
            return self._config(ns)
        last = self._last.get(ns)
        if last is None or last.checkpoint["id"] != parent_id:
            last = await self._target.aget_tuple(self._config(ns, parent_id))
        return self._config(ns, parent_id) if last is None else last.config

    async def _compare(self, place: Place) -> tuple[bool, bool]:
        """Read a checkpoint from both sides. Return whether the target lacks something, and whether it has more writes.

        It may lack pending writes, or values of channels that did not change: savers differ in which of these they
        return, so a `DualWriteSaver` that began with this checkpoint has stored it without them.

        Raises:
            ValueError: what both have differs, or is gone.
        """
        found, mine = await self._read(self._source, place), await self._read(self._target, place)
        metadata = get_serializable_checkpoint_metadata(self._config(place[1], place[0]), found.metadata)
        one: dict[str, Any] = {**found.checkpoint, "metadata": metadata, "parent": _parent_id(found)}
        two: dict[str, Any] = {**mine.checkpoint, "metadata": mine.metadata, "parent": _parent_id(mine)}
        values, own_values = one.pop("channel_values"), two.pop("channel_values")
        different = [name for name in one.keys() & two.keys() if not self._is_equal(one[name], two[name])]
        # LangGraph's Redis saver adds a key of its own to a checkpoint, which a `DualWriteSaver` has not seen.
        different += (one.keys() ^ two.keys()) & Checkpoint.__annotations__.keys()
        for name, value in own_values.items():
            expected = [values[name]] if name in values else await self._inherited(found, name)
            if not self._is_equal(expected, [value]):
                different.append(f"channel {name}")
        if different:
            raise _Differs(f"checkpoint {place[0]!r} in namespace {place[1]!r} differs in {different[0]!r}")
        wanted, stored = _writes(found), _writes(mine)
        if [task for task in wanted if task in stored] != [task for task in stored if task in wanted]:
            raise _Differs(f"the tasks of checkpoint {place[0]!r} have another order; delete the thread, and import it")
        left, right = _flat(wanted), _flat(stored)
        for key in left.keys() & right.keys():
            if not self._is_equal(left[key], right[key]):
                raise _Differs(f"checkpoint {place[0]!r} has another pending write of task {key[0]!r}")
        lacks = values.keys() - own_values.keys() or left.keys() - right.keys()
        return bool(lacks), bool(right.keys() - left.keys())

    async def _inherited(self, found: CheckpointTuple, channel: str) -> list[Any]:
        """Return the value that a channel of the source has kept since an ancestor of a checkpoint, or nothing."""
        ns, version = found.config["configurable"].get("checkpoint_ns") or "", found.checkpoint["channel_versions"]
        above: CheckpointTuple | None = found
        while above is not None and above.checkpoint["channel_versions"].get(channel) == version.get(channel):
            if channel in above.checkpoint["channel_values"]:
                return [above.checkpoint["channel_values"][channel]]
            parent = _parent_id(above)
            above = None if parent is None else await self._source.aget_tuple(self._config(ns, parent))
        return []

    async def _read(self, saver: Saver, place: Place) -> CheckpointTuple:
        found = await saver.aget_tuple(self._config(place[1], place[0]))
        if found is None:
            raise _Differs(f"checkpoint {place[0]!r} was deleted during the import")
        return found

    def _is_equal(self, one: Any, other: Any) -> bool:
        return self._serde.dumps_typed(one) == self._serde.dumps_typed(other) or bool(one == other)

    def _config(self, ns: str, checkpoint_id: str | None = None) -> RunnableConfig:
        named = {} if checkpoint_id is None else {"checkpoint_id": checkpoint_id}
        return {"configurable": {"thread_id": self._thread_id, "checkpoint_ns": ns, **named}}


def _parent_id(found: CheckpointTuple) -> str | None:
    """Return the id of a checkpoint's parent. Some savers return an empty id for none."""
    return ((found.parent_config or {}).get("configurable") or {}).get("checkpoint_id") or None


def _writes(found: CheckpointTuple) -> Writes:
    tasks: Writes = {}
    for task_id, channel, value in found.pending_writes or ():
        tasks.setdefault(task_id, {}).setdefault(WRITES_IDX_MAP.get(channel, 0), []).append((channel, value))
    return tasks


def _flat(tasks: Writes) -> dict[tuple[str, int], list[tuple[str, Any]]]:
    return {(task_id, kind): writes for task_id, kinds in tasks.items() for kind, writes in kinds.items()}
