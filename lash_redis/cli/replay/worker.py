"""A worker process of `replay`: it plays a turn of a session that it loads by its id, or verifies a session.

A worker keeps only its connection. Each job gets a `SessionCache` of its own, so it uses no blob, ref or revision of an
earlier job. Everything that a turn builds on was read from the server.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection as Line
from typing import Any, Literal

from lash_redis.cache import SessionCache
from lash_redis.cli.connection import Connection, is_refused
from lash_redis.cli.conversations import (
    Conversation,
    Message,
    Progress,
    Turn,
    message_of,
    named_tools,
    record_of,
    usage_deltas,
)
from lash_redis.errors import BackendError, Corrupt, HeadRevisionConflict, InvalidRecord, OutcomeUnknown, StoreError
from lash_redis.models import (
    ActivePath,
    Append,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PersistedSessionRead,
    RuntimeCommit,
    SessionNodeRecord,
    SessionPolicy,
    SessionStoreCreateRequest,
    ToolState,
)
from lash_redis.models.chat_messages import canonical_json
from lash_redis.options import StoreOptions
from lash_redis.session.store import RedisSessionStore

ATTEMPTS = 8
"""Maximum attempts at a turn: it is resumed again after a conflict, and sent again after a lost reply."""

CONFIG = PersistedSessionConfig(provider_id="replay", configured_model="replay")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that a worker receives before its first job."""

    url: str
    namespace: str
    options: StoreOptions
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Check:
    """A session to verify, and its expected content."""

    session_id: str
    conversation: Conversation
    tools: ToolState | None


Job = Turn | Check


@dataclass(frozen=True, slots=True)
class Played:
    """The result of a turn: the seconds of a cold read with every node decoded, and those of the successful commit."""

    pid: int
    resume: float
    commit: float
    conflicts: int
    retries: int


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of verifying a session. Without differences, `faults` is empty.

    Bytes are those that the server reports, or those of the records alone.
    """

    faults: Sequence[str]
    measure: Literal["memory usage", "record bytes"]
    own_bytes: int
    blob_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Failure:
    """The job failed. `unreachable`: the server failed, so every other job would fail, too."""

    text: str
    unreachable: bool = False


Result = Played | Checked | Failure


# Playing


async def play(source: Connection, settings: Settings, turn: Turn) -> Played:
    """Resume the session, append the turn, commit by compare-and-set.

    After a conflict the session is resumed again. After a lost reply the commit is sent again.

    Raises:
        Corrupt: the session lacks turns that were committed before this one.
    """
    retries = 0
    for conflicts in range(ATTEMPTS):
        cache = SessionCache(source, settings.namespace, ttl=settings.ttl, options=settings.options)
        store = cache.session(turn.session_id)
        if turn.number == 0:
            await cache.create(SessionStoreCreateRequest(turn.session_id, SessionPolicy(model=CONFIG.configured_model)))
        began = time.perf_counter()
        read = await store.load_session(FullGraph() if turn.parent is None else ActivePath(turn.parent))
        earlier = stored_messages(read, turn)
        resumed = time.perf_counter()
        commit = commit_of(turn, read, earlier)
        sending = time.perf_counter()
        try:
            resent = await _commit(store, commit)
        except HeadRevisionConflict:
            if conflicts == ATTEMPTS - 1:
                raise
            continue
        done = time.perf_counter()
        return Played(os.getpid(), resumed - began, done - sending, conflicts, retries + conflicts + resent)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _commit(store: RedisSessionStore, commit: RuntimeCommit) -> int:
    """Send a commit until its outcome is known; return how many times it was sent again."""
    for resent in range(ATTEMPTS):
        try:
            await store.commit_runtime_state(commit)
        except OutcomeUnknown:
            if resent == ATTEMPTS - 1:
                raise
        else:
            return resent
    raise AssertionError("unreachable: the last attempt returns or raises")


def stored_messages(read: PersistedSessionRead | None, turn: Turn) -> list[Message]:
    """Return the stored messages before this turn.

    Raises:
        Corrupt: the read lacks turns that were committed before, or the parent of this turn.
    """
    revision = 0 if read is None else read.head_revision
    if revision < turn.number:
        raise Corrupt("head", turn.session_id, f"resumed at revision {revision} after {turn.number} committed turns")
    if read is None or (turn.format == "tree" and turn.parent is None):
        return []
    path = read.graph.active_path()
    if turn.parent is not None and turn.format == "tree" and (not path or path[-1].node_id != turn.parent):
        raise Corrupt("graph", turn.session_id, f"the parent message {turn.parent!r} is missing")
    return [message_of(turn.format, record) for node in path if (record := node.message()) is not None]


def commit_of(turn: Turn, read: PersistedSessionRead | None, earlier: Sequence[Message]) -> RuntimeCommit:
    """Return the turn as a commit on a read. Only the first commit sends the tool state; later ones send its ref."""
    parent = turn.parent
    if turn.format == "chat" and read is not None:
        parent = read.graph.leaf_node_id
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    nodes = []
    for node_id, message in zip(turn.node_ids, turn.messages, strict=True):
        event = EventPayload({"Conversation": record_of(turn.format, node_id, message)})
        nodes.append(SessionNodeRecord(node_id, parent, now, event))
        parent = node_id
    before = None if read is None else read.checkpoint
    deltas = usage_deltas(earlier, turn.messages)
    progress = Progress.read(before).after(deltas, turn.messages)
    return RuntimeCommit(
        session_id=turn.session_id,
        expected_head_revision=0 if read is None else read.head_revision,
        builds_on=None if read is None else read.commit_id,
        config=CONFIG,
        graph=Append(nodes, parent),
        checkpoint=HydratedSessionCheckpoint(
            turn_state=progress.turn_state(),
            tool_state=turn.tools,
            tool_state_ref=None if before is None else before.tool_state_ref,
            plugin_snapshot=progress.plugin_snapshot(),
            plugin_snapshot_revision=progress.turns,
            execution_state=progress.image,
        ),
        usage_deltas=deltas,
    )


# Checking


async def check(source: Connection, settings: Settings, wanted: Check) -> Checked:
    """Compare a stored session with the conversation that was played, and measure its size."""
    cache = SessionCache(source, settings.namespace, ttl=settings.ttl, options=settings.options)
    store = cache.session(wanted.session_id)
    try:
        faults = await faults_of(store, wanted.conversation, wanted.tools)
    except (Corrupt, InvalidRecord) as error:
        faults = [str(error)]
    return await _measured(source, cache, wanted.session_id, faults)


async def faults_of(store: RedisSessionStore, conversation: Conversation, tools: ToolState | None) -> list[str]:
    """Return every difference between a stored session and its conversation: messages, branches, components, usage."""
    read = await store.load_session(FullGraph())
    if read is None:
        return ["the session does not exist"]
    faults: list[str] = []

    def compare(what: str, stored: Any, expected: Any) -> None:
        if canonical_json(stored) != canonical_json(expected):
            faults.append(f"{what} is {_brief(stored)}, expected {_brief(expected)}")

    turns = conversation.turns(store.session_id, tools)
    compare("the revision", read.head_revision, len(turns))
    compare("the number of nodes", len(read.graph.nodes), len(conversation.messages))
    compare("the leaf", read.graph.leaf_node_id, conversation.node_id(len(conversation.messages) - 1))
    for index, node in enumerate(read.graph.nodes[: len(conversation.messages)]):
        compare(f"the id of node {index}", node.node_id, conversation.node_id(index))
        compare(f"the parent of node {index}", node.parent_node_id, conversation.parent_id(index))
        compare(f"message {index}", _message(conversation, node), conversation.messages[index])
    for leaf in conversation.leaves():
        path = conversation.path(leaf)
        branch = await store.load_session(ActivePath(conversation.node_id(leaf)))
        stored = [] if branch is None else [_message(conversation, node) for node in branch.graph.nodes]
        compare(f"the branch that ends at message {leaf}", stored, [conversation.messages[index] for index in path])

    expected, ledger = _expected(conversation, turns)
    compare("the config", read.config.to_json(), CONFIG.to_json())
    compare("the usage", [entry.to_json() for entry in read.token_ledger], ledger)
    held = read.checkpoint or HydratedSessionCheckpoint()
    compare("the tool state", _json(held.tool_state), _json(tools or named_tools(conversation)))
    compare("the turn state", held.turn_state.to_json(), expected.turn_state().to_json())
    compare("the plugin snapshot", _json(held.plugin_snapshot), expected.plugin_snapshot().to_json())
    compare("the plugin snapshot's revision", held.plugin_snapshot_revision, expected.turns)
    compare("the execution state", (held.execution_state or b"").hex(), expected.image.hex())
    meta = await store.load_session_meta()
    compare("the meta record's session", meta and meta.session_id, store.session_id)
    return faults


def _expected(conversation: Conversation, turns: Sequence[Turn]) -> tuple[Progress, list[dict[str, Any]]]:
    """Compute the components after the last turn and the ledger from the file alone."""
    progress = Progress()
    ledger: dict[tuple[str, str], dict[str, int]] = {}
    done = 0
    for turn in turns:
        earlier = [conversation.messages[index] for index in conversation.path(conversation.parents[done])]
        deltas = usage_deltas(earlier, turn.messages)
        progress = progress.after(deltas, turn.messages)
        done += len(turn.messages)
        for delta in deltas:
            sums = ledger.setdefault((delta.source, delta.model), dict.fromkeys(delta.usage.to_json(), 0))
            for counter, count in delta.usage.to_json().items():
                sums[counter] += count
    return progress, [{"source": source, "model": model, "usage": usage} for (source, model), usage in ledger.items()]


def _message(conversation: Conversation, node: SessionNodeRecord) -> Message | None:
    record = node.message()
    return None if record is None else message_of(conversation.format, record)


def _json(record: Any) -> Any:
    return None if record is None else record.to_json()


def _brief(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 160 else f"{text[:120]}… ({len(text)} characters)"


async def _measured(source: Connection, cache: SessionCache, session_id: str, faults: Sequence[str]) -> Checked:
    """Measure the bytes of the session's keys and blobs; of the records alone if MEMORY USAGE is refused."""
    keys = cache.layout.session(session_id)
    own = keys.own
    try:
        held = await cache.session(session_id).load_session(ActivePath())
    except StoreError:
        held = None
    checkpoint = held.checkpoint if held and held.checkpoint else HydratedSessionCheckpoint()
    refs = (checkpoint.tool_state_ref, checkpoint.plugin_snapshot_ref, checkpoint.execution_state_ref)
    blobs = dict.fromkeys(keys.blob(ref) for ref in refs if ref)
    try:
        sizes = await source.ask(*(("MEMORY", "USAGE", key, "SAMPLES", 0) for key in (*own, *blobs)))
    except BackendError as error:
        if not is_refused(error):
            raise
        own_reads = ("HGETALL", keys.head), ("LRANGE", keys.log, 0, -1), ("HGETALL", keys.state)
        stored = sum(map(_length, await source.ask(*own_reads)))
        bodies = {keys.blob(ref): len(await cache.get_blob(ref) or b"") for ref in refs if ref}
        return Checked(faults, "record bytes", stored, bodies)
    found = [size or 0 for size in sizes]
    return Checked(faults, "memory usage", sum(found[: len(own)]), dict(zip(blobs, found[len(own) :], strict=True)))


def _length(reply: Any) -> int:
    if isinstance(reply, dict):
        return sum(len(key) + len(value) for key, value in reply.items())
    return sum(map(len, reply))


# The process


def serve(descriptor: int) -> None:
    """Run the jobs that arrive on a connection until it is closed."""
    with Line(descriptor) as line, asyncio.Runner() as runner:
        settings: Settings = line.recv()
        source = Connection(settings.url)
        try:
            line.send(os.getpid())
            while True:
                job: Job = line.recv()
                line.send(runner.run(_run(source, settings, job)))
        except (EOFError, OSError):
            pass  # the dispatcher has ended
        finally:
            runner.run(source.close())


async def _run(source: Connection, settings: Settings, job: Job) -> Result:
    """Run a job; return a `Failure` for any error."""
    try:
        return await (play(source, settings, job) if isinstance(job, Turn) else check(source, settings, job))
    except StoreError as error:
        unreachable = isinstance(error, BackendError | OutcomeUnknown)
        return Failure(f"{type(error).__name__}: {error}", unreachable)
    except Exception:  # noqa: BLE001 (the dispatcher reports it; the other sessions of this process continue)
        return Failure(traceback.format_exc().strip())
