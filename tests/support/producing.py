"""Orders of worker processes that produce and follow streams, and that enqueue and answer inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lash_redis import (
    Append,
    BackendError,
    EventPayload,
    FullGraph,
    HeadRevisionConflict,
    InputNotPending,
    InputsFull,
    OutcomeUnknown,
    PendingInput,
    PersistedSessionRead,
    RedisSessionStore,
    RuntimeCommit,
    SessionNodeRecord,
    StoreError,
    StreamFailed,
)
from tests.support.stream_accounts import Followed
from tests.support.workers import Work, base_of


async def produce(work: Work, session: str, generation: str, count: int, ttl: float, pause: float) -> None:
    """Produce the numbers below `count`, each in a round trip of its own, with a pause after each."""
    async with work.cache.session(session).stream(generation, ttl=ttl) as out:
        for number in range(count):
            await out.send(number)
            await flushed(out)
            await asyncio.sleep(pause)


async def flushed(out: object) -> None:
    """Flush, and flush again while the server is unreachable."""
    while True:
        try:
            await out.flush()  # type: ignore[attr-defined]
        except (BackendError, OutcomeUnknown):
            await asyncio.sleep(0.05)
        else:
            return


async def follow(work: Work, session: str, generation: str, wait: float) -> list[object]:
    return [event.data async for event in work.cache.session(session).follow(generation, wait=wait)]


# With a journal


async def produce_noting(work: Work, session: str, generation: str, count: int, ttl: float, pause: float) -> None:
    """`produce`, and note what the server confirmed and how the stream ended."""
    try:
        async with work.cache.session(session).stream(generation, ttl=ttl) as out:
            for number in range(count):
                await out.send(number)
                await flushed(out)
                work.note("acknowledged", generation, str(number + 1))
                await asyncio.sleep(pause)
            work.note("finishing", generation)
    except StoreError as error:
        work.note("error", generation, type(error).__name__)
    else:
        work.note("finished", generation)


async def follow_to_the_end(
    store: RedisSessionStore, generation: str, wait: float, followed: Followed | None = None
) -> Followed:
    """Follow a stream, and follow it again after an outage. `followed` gets each event when it arrives."""
    followed, cursor = followed or Followed(), None
    while True:
        try:
            async for event in store.follow(generation, after=cursor, wait=wait):
                cursor = event.cursor
                followed.numbers.append(event.data)
            followed.end = "finished"
        except BackendError:
            await asyncio.sleep(0.05)
            continue
        except StreamFailed as error:
            followed.end = error.state
        except StoreError as error:
            followed.end = type(error).__name__
        return followed


async def follow_noting(work: Work, session: str, generation: str, wait: float) -> Followed:
    return await follow_to_the_end(work.cache.session(session), generation, wait)


async def enqueue_noting(work: Work, session: str, count: int, pause: float) -> None:
    """Enqueue inputs, each again until it is acknowledged."""
    store = work.cache.session(session)
    for number in range(count):
        input_id = f"{work.name}.{number}"
        while True:
            try:
                await store.enqueue_input({"turn": input_id}, input_id)
            except (BackendError, InputsFull, OutcomeUnknown) as error:
                work.note("error", input_id, type(error).__name__)
                await asyncio.sleep(0.05)
            else:
                work.note("acknowledged", input_id)
                break
        await asyncio.sleep(pause)


async def answer_until(work: Work, session: str, count: int) -> None:
    """Answer pending inputs, up to three in a turn, until the session has this many answers.

    After an unknown outcome the pending inputs show whether the turn was stored.
    """
    store = work.cache.session(session)
    while True:
        try:
            read = await store.load_session(FullGraph())
            if read is not None and len(read.graph.nodes) >= count:
                return
            asked = (await store.pending_inputs())[:3]
            if asked:
                await store.commit_runtime_state(_answers(work, session, asked, read))
        except (HeadRevisionConflict, InputNotPending, OutcomeUnknown, BackendError) as error:
            work.note("error", session, type(error).__name__)
        await asyncio.sleep(0.02)


def _answers(
    work: Work, session: str, asked: Sequence[PendingInput], read: PersistedSessionRead | None
) -> RuntimeCommit:
    """A turn with one node for each input. Its id differs between attempts, so that no id prevents a second answer."""
    revision, builds_on, parent = base_of(read)
    nodes: list[SessionNodeRecord] = []
    for each in asked:
        node_id = f"{each.input_id}#{work.name}{next(work.attempts)}"
        nodes.append(SessionNodeRecord(node_id, parent, "t", EventPayload(each.item)))
        parent = node_id
    consumes = [each.input_id for each in asked]
    return RuntimeCommit(session, revision, graph=Append(nodes, parent), builds_on=builds_on, consumes=consumes)
