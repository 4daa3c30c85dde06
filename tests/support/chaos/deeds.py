"""Carry out the steps of an actor in a worker process, and write its journal."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

from lash_redis import (
    ActivePath,
    Durability,
    FullGraph,
    LeaseLost,
    OutcomeUnknown,
    OwnerMismatch,
    PersistedSessionRead,
    ReplaceFull,
    RuntimeCommit,
    SessionStoreCreateRequest,
)
from lash_redis.errors import BackendError, Corrupt, Refused
from tests.support.chaos.actor import (
    Actor,
    chosen,
    commit_on,
    messages_of,
    note_problems,
    publish,
    record_of,
    settled,
    usage_of,
)
from tests.support.chaos.checks import Label, problems_of, refresh_problems
from tests.support.chaos.deed import Deed
from tests.support.chaos.plan import Step, step_of
from tests.support.chaos.streaming import stream
from tests.support.workers import Work

LEASE_TTL = 5.0
PAUSE = 0.02
"""The longest pause of an actor between two steps, in seconds."""
FORK_NODES = 20
"""The longest path that is forked."""


# The kinds of steps. Each returns False if it had nothing to do.


async def append(actor: Actor, step: Step, deed: Deed, **more: Any) -> bool:
    deed.has_usage = step.usage
    messages, usage = messages_of(step, deed, are_named=True), usage_of(deed)
    await settled(deed, lambda: actor.chat(step).append(*messages, usage=usage, **more))
    return True


async def append_after(actor: Actor, step: Step, deed: Deed) -> bool:
    node_id = chosen(step, actor.kept_read(step) or await actor.load(step, deed))
    return node_id is not None and await append(actor, step, deed, after=node_id)


async def append_bare(actor: Actor, step: Step, deed: Deed) -> bool:
    deed.has_usage = step.usage
    messages, usage = messages_of(step, deed, are_named=False), usage_of(deed)
    await _once(actor, step, deed, lambda: actor.chat(step).append(*messages, usage=usage))
    return True


async def edit(actor: Actor, step: Step, deed: Deed) -> bool:
    node_id = chosen(step, actor.kept_read(step) or await actor.load(step, deed))
    if node_id is None:
        return False
    deed.count = 1
    message = {"role": "user", "content": Label(deed.op, step.session, 0, 1, False).text(step.size)}
    await _once(actor, step, deed, lambda: actor.chat(step).edit(node_id, message))
    return True


async def _once(actor: Actor, step: Step, deed: Deed, call: Callable[[], Awaitable[object]]) -> None:
    """Call once, because each call makes a new message. If the outcome is unknown, search for the message."""
    try:
        await call()
    except OutcomeUnknown:
        deed.unknowns += 1
        read = await actor.load(step, deed)
        if read is None or all(Label.of_node(node).op != deed.op for node in read.graph.nodes):
            raise


async def rewind(actor: Actor, step: Step, deed: Deed) -> bool:
    node_id = chosen(step, actor.kept_read(step) or await actor.load(step, deed))
    if node_id is None:
        return False
    await settled(deed, lambda: actor.chat(step).rewind(node_id))
    return True


async def commit(actor: Actor, step: Step, deed: Deed, **more: Any) -> bool:
    read = await actor.see(step, deed)
    at = (0, None) if read is None else (read.head_revision, read.commit_id)
    await publish(actor, step, deed, commit_on(step, deed, read, expected_head_revision=at[0], builds_on=at[1], **more))
    return True


async def commit_any(actor: Actor, step: Step, deed: Deed) -> bool:
    read = await actor.see(step, deed)
    await publish(actor, step, deed, commit_on(step, deed, read, expected_head_revision=None))
    return True


async def commit_seen(actor: Actor, step: Step, deed: Deed) -> bool:
    """Commit on what the handle saw last, and leave out the checkpoint at times."""
    read = actor.kept_read(step) or await actor.load(step, deed)
    made = commit_on(step, deed, read)
    if step.choices[0] < 0.5:
        made = RuntimeCommit(step.session, graph=made.graph, usage_deltas=made.usage_deltas)
    await publish(actor, step, deed, made)
    return True


async def update(actor: Actor, step: Step, deed: Deed, since: PersistedSessionRead | None = None) -> bool:
    attempts = 0

    def turn(read: PersistedSessionRead | None) -> RuntimeCommit:
        nonlocal attempts
        attempts += 1
        return commit_on(step, deed, read, attempt=attempts)

    await _by_update(actor, step, deed, turn, since)
    return True


async def update_since(actor: Actor, step: Step, deed: Deed) -> bool:
    return await update(actor, step, deed, actor.kept_read(step))


async def replace_graph(actor: Actor, step: Step, deed: Deed) -> bool:
    """Drop the last nodes of the log, and continue from the new last one."""
    attempts = 0

    def turn(read: PersistedSessionRead | None) -> RuntimeCommit:
        nonlocal attempts
        attempts += 1
        if read is None:
            return commit_on(step, deed, None, attempt=attempts)
        deed.has_usage, deed.count = True, step.count
        graph = read.graph.first(max(1, len(read.graph.nodes) - int(step.choices[0] * 6)))
        for at in range(step.count):
            graph = graph.append_message(record_of(step, deed, f"{deed.op}.{attempts}.{at}", at))
        return commit_on(step, deed, read, attempt=attempts, graph=ReplaceFull(graph))

    await _by_update(actor, step, deed, turn, None)
    return True


async def _by_update(
    actor: Actor,
    step: Step,
    deed: Deed,
    turn: Callable[[PersistedSessionRead | None], RuntimeCommit],
    since: PersistedSessionRead | None,
) -> None:
    store = actor.store(step)
    try:
        result = await store.update(turn, since=since, durability=actor.durability_of(step))
    except OutcomeUnknown as error:
        deed.unknowns += 1
        await publish(actor, step, deed, error.commit)
    else:
        deed.durable = result.durable


async def tombstone(actor: Actor, step: Step, deed: Deed) -> bool:
    """Hide nodes, mostly off the active path, as a runtime does."""
    read = await actor.see(step, deed)
    if read is None or not read.graph.nodes:
        return False
    orphans = read.graph.orphaned_node_ids()
    ids = orphans if orphans and step.choices[1] < 0.8 else [node.node_id for node in read.graph.nodes]
    first = int(step.choices[0] * len(ids))
    deed.hidden = ids[first : first + step.count]
    store, durability = actor.store(step), actor.durability_of(step)
    report = await settled(deed, lambda: store.tombstone_nodes(deed.hidden, durability=durability))
    deed.durable = report.durable
    return True


async def vacuum(actor: Actor, step: Step, deed: Deed) -> bool:
    await settled(deed, actor.store(step).vacuum)
    return True


async def delete(actor: Actor, step: Step, deed: Deed) -> bool:
    chat, durability = actor.chat(step), actor.durability_of(step)
    report = await settled(deed, lambda: chat.delete(durability=durability))
    deed.durable = report.durable
    return True


async def fork(actor: Actor, step: Step, deed: Deed) -> bool:
    read = actor.kept_read(step) or await actor.load(step, deed)
    path = [] if read is None else read.graph.active_path()
    if not path:
        return False
    deed.made = f"fork-{deed.op}"
    leaf = path[:FORK_NODES][-1].node_id
    try:
        await actor.cache.fork(step.session, deed.made, leaf, owner=step.owner)
    except OutcomeUnknown:
        deed.unknowns += 1
        if await actor.cache.session(deed.made, owner=step.owner).load_head() is None:
            raise
    return True


async def lease(actor: Actor, step: Step, deed: Deed) -> bool:
    """Commit under a lease."""
    store, token = actor.store(step), f"{deed.op}-token"
    asked = monotonic()
    acquired = await settled(deed, lambda: store.acquire_lease(deed.op, LEASE_TTL, token=token, wait=1.0))
    since = monotonic()
    try:
        if step.choices[0] < 0.3:
            await settled(deed, acquired.renew)
        deed.unknowns = 0  # that was about the lease; from here on it is about the commit
        await commit(actor, step, deed, lease=acquired)
    except LeaseLost as error:
        if error.revision is None:  # otherwise an earlier attempt was applied
            raise
    finally:
        deed.held = since, min(monotonic(), asked + LEASE_TTL)
        await _release(acquired.release)
    return True


async def _release(release: Callable[[], Awaitable[None]]) -> None:
    try:
        await release()
    except (LeaseLost, Refused, OutcomeUnknown, BackendError):
        return  # it expires at its deadline


async def touch(actor: Actor, step: Step, deed: Deed) -> bool:
    await settled(deed, lambda: actor.store(step).touch(ttl=3600 if step.usage else None))
    return True


async def title(actor: Actor, step: Step, deed: Deed) -> bool:
    await settled(deed, lambda: actor.store(step).set_title(f"title {deed.op}"))
    return True


async def create(actor: Actor, step: Step, deed: Deed) -> bool:
    request = SessionStoreCreateRequest(step.session)
    await settled(deed, lambda: actor.cache.create(request, owner=step.owner))
    return True


async def intrude(actor: Actor, step: Step, deed: Deed) -> bool:
    """Use another owner's session, which must read as absent and refuse every write."""
    if step.owner is None:
        return False
    other = actor.cache.session(step.session, owner="mallory")
    if await other.load_session(FullGraph()) is not None:
        deed.problems.append(("wrong read", "another owner's session was read", ""))
    node_id = chosen(step, actor.kept_read(step))
    try:
        hidden = (await other.tombstone_nodes([node_id])).tombstoned_node_count if node_id else 0
        if hidden or await other.touch():
            deed.problems.append(("wrong write", "another owner's session was written", ""))
    except OwnerMismatch:
        return True
    return True


async def load(actor: Actor, step: Step, deed: Deed) -> bool:
    return await actor.load(step, deed, decode=step.usage) is not None


async def path(actor: Actor, step: Step, deed: Deed) -> bool:
    read = await actor.store(step).load_session(ActivePath())
    note_problems(deed, [] if read is None else problems_of(read, is_path=True))
    return read is not None


async def page(actor: Actor, step: Step, deed: Deed) -> bool:
    size = 1 + int(step.choices[0] * 12)
    before = None
    for _ in range(2):
        read = await actor.store(step).load_session(ActivePath(limit=size, before=before))
        if read is None:
            return False
        note_problems(deed, problems_of(read, is_path=True))
        if not read.is_partial:
            break
        before = read.graph.nodes[0].node_id
    return True


async def refresh(actor: Actor, step: Step, deed: Deed) -> bool:
    """Refresh the last read, and compare it with a load."""
    kept = actor.kept_read(step)
    if kept is None:
        return await load(actor, step, deed)
    refreshed = await actor.store(step).refresh(kept)
    loaded = await actor.load(step, deed)
    if refreshed is not None:
        note_problems(deed, problems_of(refreshed))
        if loaded is not None:
            note_problems(deed, refresh_problems(refreshed, loaded))
    return True


async def watch(actor: Actor, step: Step, deed: Deed) -> bool:
    """Watch the session for one change, for half a second at most."""
    changes = actor.store(step).watch(0, poll=0.2, patience=5.0)
    try:
        async with asyncio.timeout(0.5):
            if await anext(changes) < 1:
                deed.problems.append(("wrong read", "a watch reported a revision below 1", ""))
    except TimeoutError:
        return False
    finally:
        await changes.aclose()
    return True


async def list_sessions(actor: Actor, step: Step, deed: Deed) -> bool:
    owner = "alice" if step.usage else None
    async for info in actor.cache.sessions(owner=owner, limit=30):
        if info.fault is not None:
            deed.problems.append(("unreadable", f"the list shows {info.session_id} with the fault {info.fault}", ""))
    return True


async def gc(actor: Actor, step: Step, deed: Deed) -> bool:
    await settled(deed, actor.cache.gc)
    return True


async def enqueue(actor: Actor, step: Step, deed: Deed) -> bool:
    store, durability = actor.store(step), actor.durability_of(step)
    pending = await settled(deed, lambda: store.enqueue_input({"op": deed.op}, deed.op, durability=durability))
    deed.durable = pending.durable
    return True


async def answer(actor: Actor, step: Step, deed: Deed) -> bool:
    """Answer the first pending inputs by a commit that consumes them."""
    pending = (await actor.store(step).pending_inputs())[: step.count]
    deed.answered = [each.input_id for each in pending]
    if not pending:
        return False
    await commit(actor, step, deed, consumes=deed.answered)
    return True


KINDS: dict[str, Callable[[Actor, Step, Deed], Awaitable[bool]]] = {
    "append": append, "append_bare": append_bare, "append_after": append_after, "edit": edit, "rewind": rewind,
    "commit": commit, "commit_any": commit_any, "commit_seen": commit_seen, "update": update,
    "update_since": update_since, "replace": replace_graph, "tombstone": tombstone, "vacuum": vacuum, "delete": delete,
    "fork": fork, "lease": lease, "touch": touch, "title": title, "create": create, "intrude": intrude, "read": load,
    "path": path, "page": page, "refresh": refresh, "watch": watch, "list": list_sessions, "gc": gc,
    "enqueue": enqueue, "answer": answer, "stream": stream,
}  # fmt: skip


# The worker


async def act(work: Work, seed: int, actors: Sequence[str], seconds: float, limit: int, durability: Durability) -> int:
    """Let the actors make their steps until the time or the limit of steps is over. Returns the number of steps."""
    logging.getLogger("lash_redis").addHandler(logging.NullHandler())  # the journal has every error
    until = monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(_steps(work, seed, name, until, limit, durability)) for name in actors]
    return sum(task.result() for task in made)


async def _steps(work: Work, seed: int, name: str, until: float, limit: int, durability: Durability) -> int:
    actor, number = Actor(name, work.cache, durability), 0
    while number < limit and monotonic() < until:
        step = step_of(seed, name, number)
        number += 1
        deed = Deed(f"{name}.{step.number}", step.kind, step.session, monotonic())
        work.note("begins", deed.op, deed.to_json())
        task = asyncio.ensure_future(KINDS[step.kind](actor, step, deed))
        await asyncio.wait([task])
        deed.end = monotonic()
        report(deed, task)
        work.note("ends", deed.op, deed.to_json())
        await asyncio.sleep(step.choices[2] * PAUSE)
    return number


def report(deed: Deed, task: asyncio.Future[bool]) -> None:
    """Write the outcome of a step into its record."""
    error = task.exception()
    if error is None:
        deed.outcome = "done" if task.result() else "nothing"
        return
    outcomes = {Refused: "refused", OutcomeUnknown: "unknown", BackendError: "failed", Corrupt: "corrupt"}
    deed.outcome = next((word for family, word in outcomes.items() if isinstance(error, family)), "wrong")
    deed.unknowns += isinstance(error, OutcomeUnknown)
    deed.error = type(error).__name__
    deed.text = str(error)
    if deed.outcome == "wrong":
        deed.text = "".join(traceback.format_exception(error))
