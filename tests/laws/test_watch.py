"""A watch reports the newest revision of each session, reports why a session ended, and leaves nothing running."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from inspect import isawaitable
from typing import Any

import pytest
import redis.asyncio

from lash_redis import (
    BackendError,
    Corrupt,
    FullGraph,
    InvalidRecord,
    LayoutMismatch,
    RedisSessionStore,
    SessionBindingMismatch,
    SessionCache,
    SessionChange,
    SessionDeleted,
    SessionEvicted,
    SessionGone,
    SessionMeta,
    SessionWatch,
    StoreError,
    Unchanged,
)
from lash_redis.protocol.commands.watching import HeadMark, HeadPoll, WatchState
from lash_redis.protocol.keys import Layout
from lash_redis.session import subscriber as subscriber_module
from lash_redis.session import watch as watch_module
from lash_redis.transport.connectors import Given
from tests.support.breaking import Python, broken_by
from tests.support.builders import append, commit, key_of, plant_fact
from tests.support.lost_writes import fail_over, saved
from tests.support.proxy import Action, Command, on
from tests.support.sending import sends_once
from tests.support.servers import Server

NEVER = 600.0
"""A `poll` interval longer than any test, so that only messages report changes."""


PATIENCE = 60.0
"""Seconds after which a condition counts as never met. A slow machine only makes a test slower."""


async def until(claim: Callable[[], Any], what: str = "the condition", limit: float | None = None) -> None:
    """Wait until `claim` returns true, or an awaitable of true. Fail after `limit` seconds, by default `PATIENCE`."""
    end = asyncio.get_running_loop().time() + (PATIENCE if limit is None else limit)
    while True:
        held = claim()
        if await held if isawaitable(held) else held:
            return
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"{what} did not occur")
        await asyncio.sleep(0.002)


class Reported(list[int]):
    """The revisions that a watch has reported. `ended` is the error that ended it."""

    ended: BaseException | None = None

    async def reach(self, *revisions: int) -> None:
        await until(lambda: self == list(revisions), f"{list(revisions)}, after {self!r} and {self.ended!r},")

    async def last(self, revision: int) -> None:
        await until(lambda: self[-1:] == [revision], f"{revision}, after {self!r} and {self.ended!r},")

    async def end(self, kind: type[StoreError]) -> StoreError:
        await until(lambda: self.ended is not None, f"an end after {self!r}")
        assert type(self.ended) is kind, repr(self.ended)
        assert isinstance(self.ended, StoreError)
        return self.ended


@asynccontextmanager
async def watching(store: RedisSessionStore, since: Any = None, **settings: Any) -> AsyncIterator[Reported]:
    """Collect the revisions that `store.watch` reports, in a task of its own."""
    reported = Reported()

    async def follow() -> None:
        try:
            async for revision in store.watch(since, **{"poll": NEVER, **settings}):
                reported.append(revision)
        except StoreError as error:
            reported.ended = error

    task = asyncio.create_task(follow())
    try:
        yield reported
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def following(watch: SessionWatch, count: int = 1) -> None:
    """Wait until the watch is subscribed to its `count` sessions and has polled each of them."""

    def is_following() -> bool:
        sessions = watch._sessions.values()
        return sum(each.is_subscribed and each.poll_at > 0 and not each.needs_poll for each in sessions) == count

    await until(is_following, f"a subscription to {count} sessions")


async def listening(client: redis.asyncio.Redis, session_id: str = "chat", count: int = 1) -> None:
    """Wait until `count` connections are subscribed to the session."""

    async def are_subscribed() -> bool:
        _, number = await client.execute_command("PUBSUB", "NUMSUB", channel_of(session_id))
        return int(number) == count

    await until(are_subscribed, f"{count} subscriptions")


def channel_of(session_id: str = "chat") -> str:
    return Layout("laws", 64).session(session_id).head


async def publish(client: redis.asyncio.Redis, message: bytes, session_id: str = "chat") -> None:
    """Publish a message on the channel of a session."""
    command = "SPUBLISH" if isinstance(client, redis.asyncio.RedisCluster) else "PUBLISH"
    await client.execute_command(command, channel_of(session_id), message)


async def next_change(changes: AsyncIterator[Any]) -> Any:
    """Return the next reported change. Fail after `PATIENCE`."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await anext(changes)
    except TimeoutError:
        raise AssertionError("no change was reported") from None


async def commit_revisions(store: RedisSessionStore, *revisions: int) -> None:
    """Make one commit for each of these revisions of the head."""
    for revision in revisions:
        await store.commit_runtime_state(commit(revision - 1, session_id=store.session_id))


# Which revisions are reported, without a server


class History:
    """A session and its watch, with messages, polls and lost connections in random order."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.head = HeadMark(self.chance.randint(0, 2), b"begun....")
        self.commits = 0
        self.is_listed = self.is_confirmed = False
        self.in_flight: list[bytes | None] = []
        """Messages of the connection, in order; None for the confirmation of the subscription."""
        self.reply: HeadPoll | None = None
        self.is_asked = False
        known = self.head.revision and self.chance.choice([HeadMark(0), self.head])
        self.last_reported = known.revision if known else 0
        self.watched = WatchState(Layout("laws", 1).session("chat"), known or HeadMark(0))
        self.begun = self.head

    def commit(self) -> None:
        self.commits += 1
        self.head = HeadMark(self.head.revision + 1, b"%08d" % self.commits)
        if self.is_listed:
            self.in_flight.append(b"committed")

    def fail_over(self) -> None:
        """Lose the last commits and every connection."""
        self.commits += 1
        self.head = HeadMark(self.chance.randint(1, max(1, self.head.revision)), b"old%05d" % self.commits)
        self.cut()
        self.take()
        self.last_reported = 0

    def cut(self) -> None:
        self.is_listed = self.is_confirmed = self.is_asked = False
        self.in_flight, self.reply = [], None

    def subscribe(self) -> None:
        if not self.is_listed:
            self.is_listed = True
            self.in_flight.append(None)

    def deliver(self) -> None:
        if not self.in_flight:
            return
        message = self.in_flight.pop(0)
        if message is None:
            self.is_confirmed = True
            self.watched.on_subscribed()
        elif self.is_confirmed:
            self.watched.on_message(message)

    def ask(self) -> None:
        if self.is_confirmed and self.watched.needs_poll and not self.is_asked:
            self.watched.begin_poll()
            self.is_asked = True

    def answer(self) -> None:
        if self.is_asked and self.reply is None:
            self.reply = HeadPoll(self.head if self.head.revision else None)

    def receive(self) -> None:
        if self.reply is not None:
            reply, self.reply, self.is_asked = self.reply, None, False
            self.watched.end_poll(reply)

    def take(self) -> None:
        if self.watched.pending_revision is not None:
            assert self.watched.pending_revision > self.last_reported, "only a failover may decrease the revision"
            self.last_reported, self.watched.pending_revision = self.watched.pending_revision, None

    def run(self, steps: int) -> None:
        for _ in range(steps):
            weights = {self.commit: 4, self.deliver: 6, self.ask: 4, self.answer: 4, self.receive: 4, self.take: 3}
            weights |= {self.subscribe: 4, self.cut: 1, self.fail_over: 1}
            self.chance.choices(list(weights), list(weights.values()))[0]()

    def settle(self) -> None:
        for _ in range(len(self.in_flight) + 20):
            for step in (self.subscribe, self.deliver, self.ask, self.answer, self.receive):
                step()
        self.take()


NO_POLL_AFTER_SUBSCRIBING = Python(
    "protocol.commands.watching:WatchState.on_subscribed",
    lambda _: lambda self: None,
    "does not poll after subscribing again",
)
COMPARES_REVISIONS_ALONE = Python(
    "protocol.commands.watching:WatchState._is_seen",
    lambda _: lambda self, mark: mark.revision <= self.seen.revision,
    "compares revisions alone",
)


@broken_by(
    NO_POLL_AFTER_SUBSCRIBING,
    COMPARES_REVISIONS_ALONE,
    Python(
        "protocol.commands.watching:WatchState.end_poll",
        lambda end_poll: lambda self, result: (end_poll(self, result), setattr(self, "needs_poll", False)),
        "a poll answers messages that arrived during it",
    ),
)
async def test_the_last_head_is_reported_in_any_order_of_events():
    """After a random history and a quiet time, the last reported revision is the revision of the head."""
    for seed in range(3_000):
        history = History(seed)
        history.run(60)
        history.settle()
        assert history.watched.seen == (history.head if history.head.revision else HeadMark(0)), seed
        if history.head != history.begun:
            assert history.last_reported == history.head.revision, seed


# Reported changes


async def test_every_commit_is_reported_until_the_session_is_deleted(store, cache):
    async with watching(store, 0) as reported:
        for revision in range(1, 6):
            await commit_revisions(store, revision)
            await reported.last(revision)
        await cache.delete("chat")
        assert str(await reported.end(SessionDeleted)) == "session 'chat' was deleted"
        assert reported == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_commits_are_reported_over_both_protocols(protocol, real_server):
    cache = SessionCache(real_server.client(protocol=protocol), "laws")
    store = cache.session("chat")
    async with watching(store, 0) as reported:
        for revision in range(1, 4):
            await commit_revisions(store, revision)
            await reported.last(revision)
        await cache.delete("chat")
        await reported.end(SessionDeleted)


async def test_a_head_other_than_since_is_reported_at_once(store):
    await commit_revisions(store, 1, 2)
    head, read = await store.load_head(), await store.load_session(FullGraph())
    third = await store.commit_runtime_state(commit(2))
    for since in (0, 1, 2, head, read):
        async with watching(store, since) as reported:
            await reported.reach(3)
    for since in (3, third, await store.load_head(), None):
        async with watching(store, since) as reported:
            await asyncio.sleep(0.05)
            assert reported == []


async def test_a_watch_without_since_reports_commits_after_its_first_poll(cache, store):
    await commit_revisions(store, 1, 2)
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat")
        await following(watch)
        await commit_revisions(store, 3)
        assert await next_change(watch) == SessionChange("chat", 3)


async def test_a_watch_waits_for_a_session_that_does_not_exist_yet(cache, store):
    await store.save_session_meta(SessionMeta("chat", "n", "t", "m"))
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat")
        watch.add("other", 0)
        await following(watch, 2)
        await commit_revisions(store, 1)
        assert await next_change(watch) == SessionChange("chat", 1)
        await commit_revisions(cache.session("other"), 1)
        assert await next_change(watch) == SessionChange("other", 1)


async def test_changes_that_keep_the_revision_are_not_reported(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    async with watching(store, 1) as reported:
        await store.save_session_meta(SessionMeta("chat", "n", "t", "m"))
        await store.touch()
        await store.tombstone_nodes(["a"])
        await store.vacuum()
        await store.commit_runtime_state(commit(1, Unchanged("b")))
        await reported.reach(2)


def _believing(on_message: Any) -> Any:
    def believing(self: WatchState, message: bytes) -> None:
        revision = message.split(b" ")[0]
        on_message(self, message)
        if message == b"deleted":
            self.ended = SessionDeleted(self.keys.session_id)
        elif revision.isdigit() and len(revision) < 20:
            self._advance(HeadMark(int(revision), message[-8:]), 0)

    return believing


BELIEVES_MESSAGES = Python("protocol.commands.watching:WatchState.on_message", _believing, "believes messages")
FORGED = (b"2 0 12345678", b"9 0 12345678", b"0 0 12345678", b"", b"committed", b"2", b"9" * 5_000, b"deleted")
"""Messages that no commit and no deletion of the watched session sent."""


@broken_by(BELIEVES_MESSAGES)
async def test_a_message_reports_only_what_is_stored(cache, store, client):
    await commit_revisions(store, 1)
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 1)
        watch.add("absent", 0)
        await following(watch, 2)
        for message in FORGED:
            await publish(client, message)
            await publish(client, message, "absent")
        await commit_revisions(store, 2)
        assert await next_change(watch) == SessionChange("chat", 2)
        await commit_revisions(cache.session("absent"), 1)
        assert await next_change(watch) == SessionChange("absent", 1)
        await commit_revisions(store, 3)
        assert await next_change(watch) == SessionChange("chat", 3)


@broken_by(BELIEVES_MESSAGES)
async def test_a_watch_reports_nothing_of_a_session_in_another_database(real_server):
    """The databases of a server share their channels, and two of them may use one namespace."""
    cache = SessionCache(real_server.client(db=1), "laws")
    other = SessionCache(real_server.client(db=0), "laws")
    await commit_revisions(cache.session("chat"), 1)
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 0)
        watch.add("absent", 0)
        assert await next_change(watch) == SessionChange("chat", 1)
        await following(watch, 2)
        for session_id in ("chat", "absent"):
            await commit_revisions(other.session(session_id), 1, 2, 3)
            await other.delete(session_id)
        await commit_revisions(cache.session("chat"), 2)
        assert await next_change(watch) == SessionChange("chat", 2)
        await commit_revisions(cache.session("absent"), 1)
        assert await next_change(watch) == SessionChange("absent", 1)


async def test_one_check_answers_all_messages_before_it(cache, store, client, monkeypatch):
    await commit_revisions(store, 1)
    read_heads, checks, may_answer = watch_module._read_heads, [0], asyncio.Event()

    async def counted(*args: Any) -> Any:
        checks[0] += 1
        await may_answer.wait()
        return await read_heads(*args)

    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 1)
        await following(watch)
        monkeypatch.setattr(watch_module, "_read_heads", counted)
        await publish(client, b"committed")
        await until(lambda: checks[0] == 1, "a check")
        for _ in range(100):
            await publish(client, b"committed")
        await commit_revisions(store, 2)
        await asyncio.sleep(0.05)
        assert checks == [1]
        may_answer.set()
        assert await next_change(watch) == SessionChange("chat", 2)
        await following(watch)
        assert checks == [2]


async def test_commits_that_are_not_consumed_are_reported_as_one_change(cache, store):
    """The watch keeps one pending revision for each session."""
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 0)
        watch.add("other", 0)
        await following(watch, 2)
        await commit_revisions(store, *range(1, 200))
        await commit_revisions(cache.session("other"), 1)
        await until(lambda: [session.pending_revision for session in watch._pending] == [199, 1], "199 and 1")
        assert [await next_change(watch), await next_change(watch)] == [
            SessionChange("chat", 199),
            SessionChange("other", 1),
        ]
        await commit_revisions(store, 200)
        assert await next_change(watch) == SessionChange("chat", 200)


@pytest.mark.parametrize("since", [-1, True, "7", 1.0, b"7"], ids=repr)
async def test_an_invalid_since_or_session_id_is_refused(since, cache, store):
    with pytest.raises(InvalidRecord, match="since"):
        await next_change(store.watch(since))
    async with cache.watch() as watch:
        with pytest.raises(InvalidRecord, match="since"):
            watch.add("chat", since)
        with pytest.raises(InvalidRecord, match="session_id"):
            watch.add("")


async def test_a_since_of_another_session_is_refused(cache, store):
    await commit_revisions(store, 1)
    with pytest.raises(SessionBindingMismatch):
        await next_change(cache.session("other").watch(await store.load_head()))


@pytest.mark.parametrize("setting", ["poll", "patience"])
async def test_durations_must_be_positive_numbers(setting, cache):
    for value in (0, -1, "1", True, None):
        with pytest.raises(InvalidRecord, match=setting):
            cache.watch(**{setting: value})


async def test_a_watch_refuses_a_namespace_with_another_layout(open_cache, store):
    await commit_revisions(store, 1)
    with pytest.raises(LayoutMismatch):
        await next_change(open_cache(shards=3).session("chat").watch(poll=NEVER))


# The end of a session


async def test_a_watch_of_a_deleted_session_ends_at_once(cache, store):
    await commit_revisions(store, 1)
    await cache.delete("chat")
    for since in (None, 0, 1, 7):
        async with watching(store, since) as reported:
            await reported.end(SessionDeleted)
            assert reported == []


async def test_a_deletion_without_a_marker_is_reported_as_a_deletion(open_cache):
    cache = open_cache(deletion_marker_ttl=0)
    await commit_revisions(cache.session("chat"), 1)
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 1)
        await following(watch)
        await cache.delete("chat")
        assert isinstance((await next_change(watch)).ended, SessionDeleted)


async def test_a_watch_since_a_revision_of_an_absent_session_raises_session_gone(store):
    async with watching(store, 3) as reported:
        gone = await reported.end(SessionGone)
        assert (gone.expected, gone.actual, gone.session_id) == (3, 0, "chat")


def _without_deadlines(schedule: Any) -> Any:
    def without_deadlines(self: Any, session: Any, due: float) -> None:
        deadline, session.deadline_ms = session.deadline_ms, 0
        schedule(self, session, due)
        session.deadline_ms = deadline

    return without_deadlines


IGNORES_DEADLINES = Python("session.subscriber:Subscriber._schedule", _without_deadlines, "ignores deadlines")


@broken_by(IGNORES_DEADLINES)
async def test_a_watch_ends_when_its_session_expires(cache, store, client):
    await commit_revisions(store, 1)
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 1)
        await following(watch)
        await touch_for_a_moment(store, client)
        change = await next_change(watch)
        assert (type(change.ended), str(change.ended)) == (SessionGone, "there is no session 'chat'")


async def touch_for_a_moment(store: RedisSessionStore, client: redis.asyncio.Redis) -> None:
    """Let the session expire soon. A message lets its watches see the new deadline, unless it has passed by then."""
    assert await store.touch(ttl=0.3)
    await publish(client, b"look")


@broken_by(IGNORES_DEADLINES)
async def test_a_commit_moves_the_deadline_that_a_watch_waits_for(open_cache):
    cache = open_cache()
    store = cache.session("chat")
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 0)
        await following(watch)
        await store.commit_runtime_state(commit(0), ttl=600)
        assert await next_change(watch) == SessionChange("chat", 1)
        await store.commit_runtime_state(commit(1), ttl=0.3)
        change = await next_change(watch)
        if change.ended is None:  # else the check came after the deadline, on a busy machine
            assert change == SessionChange("chat", 2)
            change = await next_change(watch)
        assert isinstance(change.ended, SessionGone)


@broken_by(IGNORES_DEADLINES)
async def test_a_watch_continues_if_its_session_still_exists_at_the_deadline(cache, store, client, monkeypatch):
    """A touch publishes nothing, so the watch learns the later deadline by its check at the former one."""
    read_heads, checked = watch_module._read_heads, []

    async def counted(*args: Any) -> Any:
        polls = await read_heads(*args)
        checked.extend(polls)
        return polls

    await store.commit_runtime_state(commit(0), ttl=600)
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 1)
        await following(watch)
        ((_, session),) = watch._sessions.items()
        session.deadline_ms -= 599_700
        monkeypatch.setattr(watch_module, "_read_heads", counted)
        session.subscriber._schedule(session, session.poll_at)
        await until(lambda: checked, "a check at the deadline")
        assert (checked[0].deadline_ms > session.server_ms, session.ended) == (True, None)
        await commit_revisions(store, 2)
        assert await next_change(watch) == SessionChange("chat", 2)


async def test_a_recreated_session_at_the_same_revision_is_reported(open_cache):
    """Only its commit distinguishes it from the deleted session."""
    cache = open_cache(deletion_marker_ttl=0)
    store = cache.session("chat")
    first = await store.commit_runtime_state(commit(0))
    await cache.delete("chat")
    await commit_revisions(store, 1)
    async with watching(store, first) as reported:
        await reported.reach(1)
    async with watching(store, 1) as reported:
        await commit_revisions(store, 2)
        await reported.reach(2)


async def test_an_undecodable_head_ends_its_watch_with_corrupt(cache, store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 1)
        await following(watch)
        await plant_fact(client, "revision", "x")
        await publish(client, b"look")
        assert isinstance((await next_change(watch)).ended, Corrupt)
    with pytest.raises(Corrupt):
        await next_change(store.watch(1))


async def test_a_head_without_facts_or_receipts_or_of_another_type_is_corrupt(store, client):
    await commit_revisions(store, 1)
    head = await key_of(client, "head")
    facts = await client.hget(head, "facts")
    await client.hdel(head, "facts")
    with pytest.raises(Corrupt, match="facts are gone"):
        await next_change(store.watch(1))
    await client.hset(head, "facts", facts)
    await client.hdel(head, "receipts")
    with pytest.raises(Corrupt, match="receipts"):
        await next_change(store.watch(1))
    await client.set(head, b"x")
    with pytest.raises(Corrupt, match="another type"):
        await next_change(store.watch(1))


async def test_an_evicted_head_is_reported_as_evicted_and_not_as_expired(store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    await client.delete(await key_of(client, "head"))
    for since in (None, 0, 1):
        with pytest.raises(SessionEvicted) as refused:
            await next_change(store.watch(since))
        assert refused.value.key.endswith(":head:chat")


async def test_the_end_of_one_session_does_not_end_the_watch_of_others(cache, client):
    for name in ("deleted", "torn", "stays"):
        await cache.session(name).commit_runtime_state(commit(0, append("a"), session_id=name))
    async with cache.watch(poll=NEVER) as watch:
        for name in ("deleted", "torn", "stays", "never"):
            watch.add(name)
        await following(watch, 4)
        await cache.delete("deleted")
        change = await next_change(watch)
        assert (change.session_id, change.revision, type(change.ended)) == ("deleted", 1, SessionDeleted)
        await client.delete(await key_of(client, "head", "torn"))
        await publish(client, b"look", "torn")
        change = await next_change(watch)
        assert (change.session_id, change.revision, type(change.ended)) == ("torn", 1, SessionEvicted)
        await cache.session("stays").commit_runtime_state(commit(1, Unchanged("a"), session_id="stays"))
        assert await next_change(watch) == SessionChange("stays", 2)
        subscribed = {session for subscriber in watch._subscribers.values() for session in subscriber.topics}
        assert subscribed == {channel_of("stays").encode(), channel_of("never").encode()}


async def test_the_last_revision_is_reported_before_the_end_of_its_session(cache, store):
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 0)
        await following(watch)
        await commit_revisions(store, 1, 2)
        await until(lambda: any(session.pending_revision == 2 for session in watch._pending), "the check")
        await cache.delete("chat")
        await until(lambda: any(session.ended for session in watch._pending), "the end")
        assert await next_change(watch) == SessionChange("chat", 2)
        last = await next_change(watch)
        assert (last.session_id, last.revision, type(last.ended)) == ("chat", 2, SessionDeleted)


# Lost connections


async def test_commits_during_a_lost_connection_are_reported(through_proxy, proxy, direct_store):
    await commit_revisions(direct_store, 1)
    async with watching(sends_once(through_proxy()).session("chat"), 1) as reported:
        await until(lambda: b"SUBSCRIBE" in {command[0] for link in proxy.connections for command in link.log})
        await commit_revisions(direct_store, 2)
        await reported.reach(2)
        await proxy.refuse()
        await proxy.sever()
        await commit_revisions(direct_store, 3, 4, 5)
        await proxy.accept()
        await reported.reach(2, 5)
        await commit_revisions(direct_store, 6)
        await reported.reach(2, 5, 6)


@pytest.fixture
def direct_store(real_server: Server) -> RedisSessionStore:
    """The session through a client without a proxy."""
    return SessionCache(real_server.client(), "laws").session("chat")


async def test_a_commit_between_the_subscription_and_the_poll_is_reported(
    real_server, proxy, through_proxy, direct_store
):
    await commit_revisions(direct_store, 1)
    proxy.on_command = on(Action.HOLD_REPLY, "SUBSCRIBE")
    async with watching(through_proxy().session("chat"), 1) as reported:
        await listening(real_server.client())
        await commit_revisions(direct_store, 2)
        proxy.release()
        await reported.reach(2)
        await commit_revisions(direct_store, 3)
        await reported.reach(2, 3)


@broken_by(NO_POLL_AFTER_SUBSCRIBING, COMPARES_REVISIONS_ALONE)
async def test_another_commit_at_a_repeated_revision_is_reported(proxy, through_proxy, real_server):
    """A failover loses the acknowledged revision 2, and another commit becomes revision 2."""
    client = real_server.client()
    store = SessionCache(client, "laws").session("chat")
    await commit_revisions(store, 1)
    before = await saved(client)
    lost = await store.commit_runtime_state(commit(1))

    async def commit_another() -> None:
        await fail_over(client, before)
        await commit_revisions(store, 2)

    cache = sends_once(through_proxy())
    async with watching(cache.session("chat"), lost) as reported:
        await listening(client)
        await proxy.refuse()
        await proxy.sever()
        await commit_another()
        await proxy.accept()
        await reported.reach(2)
        await commit_revisions(store, 3)
        await reported.reach(2, 3)
        await proxy.refuse()
        await proxy.sever()
        await commit_another()
        await proxy.accept()
        await reported.reach(2, 3, 2)
    async with watching(store, lost) as reported:
        await reported.reach(2)


def random_cuts(chance: random.Random) -> Callable[[Command], Action]:
    """Close the connection before or after some of the commands."""
    return lambda command: chance.choices([Action.PASS, Action.CUT_BEFORE, Action.DROP_REPLY], [30, 1, 1])[0]


@pytest.mark.slow
async def test_commits_that_race_with_lost_connections_are_reported(proxy, through_proxy, direct_store):
    """Revisions are reported in order and up to the last, however subscriptions, polls and reconnects interleave."""
    chance = random.Random(7)
    proxy.on_command = random_cuts(chance)
    async with watching(through_proxy(retry_max_delay=0.01).session("chat"), 0) as reported:
        for revision in range(1, 301):
            await commit_revisions(direct_store, revision)
            await asyncio.sleep(chance.choice([0, 0, 0, 0.001, 0.005]))
            if chance.random() < 0.05:
                await proxy.sever()
            if chance.random() < 0.1:
                await reported.last(revision)
        await reported.last(300)
    assert reported == sorted(set(reported))
    assert len(reported) > 30


async def test_an_outage_longer_than_patience_ends_the_watch(proxy, through_proxy, direct_store, monkeypatch):
    await commit_revisions(direct_store, 1)
    seconds = NEVER  # before the outage, so that a slow reply is none
    monkeypatch.setattr(SessionWatch, "patience", property(lambda _: seconds, lambda *_: None), raising=False)
    cache = through_proxy()
    async with watching(cache.session("chat"), 1) as reported, cache.watch(poll=NEVER) as watch:
        watch.add("chat", 1)
        await following(watch)
        await commit_revisions(direct_store, 2)
        await reported.reach(2)
        assert await next_change(watch) == SessionChange("chat", 2)
        await proxy.refuse()
        seconds = 0.3
        await proxy.sever()
        assert "the server was unreachable for 0.3 s" in str(await reported.end(BackendError))
        for _ in range(2):
            with pytest.raises(BackendError, match="111"):
                await next_change(watch)
        assert watch._tasks == set()


async def test_a_watch_limits_its_reconnects_when_every_subscription_is_cut(
    proxy, through_proxy, direct_store, monkeypatch
):
    await commit_revisions(direct_store, 1)
    retry_delay, pauses = SessionWatch._retry_delay, []

    def noted(self: SessionWatch) -> float:
        pauses.append(retry_delay(self))
        return pauses[-1]

    monkeypatch.setattr(SessionWatch, "_retry_delay", noted)
    proxy.on_command = lambda command: Action.CUT_BEFORE if command[0] == b"SUBSCRIBE" else Action.PASS
    async with watching(through_proxy(retry_max_delay=0.2).session("chat"), 1, patience=1) as reported:
        await reported.end(BackendError)
    assert len(pauses) > 0
    assert max(pauses) <= 0.2
    assert len(proxy.connections) <= 60


@broken_by(
    Python(
        "session.subscriber:Subscriber._schedule",
        lambda _: lambda self, session, due: None,
        "polls only after messages",
    ),
)
async def test_a_poll_finds_commits_of_a_writer_that_may_not_publish(real_server):
    account = real_server.account("laws", "loader")
    async with aclosing(real_server.client()) as admin:
        await admin.execute_command("ACL", "SETUSER", "loader-laws", "-publish")
    writer, watcher = (SessionCache(client, "laws").session("chat") for client in (account, real_server.client()))
    await commit_revisions(writer, 1)
    async with watching(watcher, 1, poll=0.2) as reported:
        await commit_revisions(writer, 2)
        await reported.reach(2)
        await commit_revisions(writer, 3)
        await reported.reach(2, 3)


async def test_an_unresponsive_connection_is_replaced(proxy, through_proxy, direct_store, monkeypatch):
    monkeypatch.setattr(subscriber_module, "REPLY_TIMEOUT", 0.2)
    await commit_revisions(direct_store, 1)
    proxy.on_command = on(Action.HOLD_REPLY, "SUBSCRIBE", 2)
    cache = through_proxy()
    async with cache.watch(poll=0.2) as watch:
        watch.add("chat", 1)
        await following(watch)
        (subscriber,) = watch._subscribers.values()
        await until(lambda: list(watch._subscribers.values()) not in ([subscriber], []), "another connection")
        await following(watch)
        await commit_revisions(direct_store, 2)
        assert await next_change(watch) == SessionChange("chat", 2)


async def test_a_watch_without_permission_to_subscribe_raises_a_permission_error(real_server):
    account = real_server.account("laws", "loader")
    async with aclosing(real_server.client()) as admin:
        await admin.execute_command("ACL", "SETUSER", "loader-laws", "-subscribe")
    with pytest.raises(BackendError, match=r"(?i)permission"):
        await next_change(SessionCache(account, "laws").session("chat").watch(0, poll=NEVER))


class Sharded(Given):
    """Treats the server as a cluster, which has sharded channels."""

    sharded = True


async def test_a_watch_uses_sharded_channels_where_the_server_supports_them(real_server):
    """Redis 6.2 has no sharded channels, so the watch uses plain ones there."""
    client = real_server.client()
    cache = SessionCache(Sharded(client), "laws")
    names = [f"chat-{number}" for number in range(300)]
    async with cache.watch(poll=NEVER) as watch:
        for name in names:
            watch.add(name, 0)
        await following(watch, 300)
        for name in names:
            await commit_revisions(cache.session(name), 1)
        changes = [await next_change(watch) for _ in names]
        assert sorted(changes, key=lambda change: change.session_id) == [
            SessionChange(name, 1) for name in sorted(names)
        ]
        watch.remove("chat-0")
        kinds = "SHARDCHANNELS" if real_server.version >= (7,) else "CHANNELS"

        async def one_is_unsubscribed() -> bool:
            return len(await client.execute_command("PUBSUB", kinds)) == 299

        await until(one_is_unsubscribed)


async def test_a_subscription_that_the_server_ends_is_renewed(real_server):
    """A cluster ends the subscriptions of a slot that moves to another server."""
    if real_server.version < (7,):
        return
    cache = SessionCache(Sharded(real_server.client()), "laws")
    store = cache.session("chat")
    async with cache.watch(poll=NEVER) as watch:
        watch.add("chat", 0)
        await following(watch)
        (subscriber,) = watch._subscribers.values()
        subscriber._handle(b"sunsubscribe", watch._sessions["chat"].channel, 0)
        await commit_revisions(store, 1)
        assert await next_change(watch) == SessionChange("chat", 1)
        await following(watch)


# Many sessions


async def test_a_thousand_sessions_are_watched_over_one_connection(real_server):
    client = real_server.client()
    cache = SessionCache(client, "laws")
    names = [f"chat-{number}" for number in range(1_000)]
    async with cache.watch(poll=NEVER) as watch:
        for name in names:
            watch.add(name, 0)
        await following(watch, 1_000)
        assert len(await client.client_list("pubsub")) == 1

        async def write(some: list[str]) -> None:
            for name in some:
                await commit_revisions(cache.session(name), 1, 2)

        writing = asyncio.gather(*(write(names[at::10]) for at in range(10)))
        newest: dict[str, int] = {}
        async with asyncio.timeout(4 * PATIENCE):
            while sum(newest.values()) < 2_000:
                change = await next_change(watch)
                newest[change.session_id] = change.revision
        await writing
        assert newest == dict.fromkeys(names, 2)
        for name in names[10:]:
            watch.remove(name)
        await listening(client, "chat-999", 0)
        for name in names[:10]:
            await cache.delete(name)
        ended = [await next_change(watch) for _ in range(10)]
        assert {change.session_id for change in ended} == set(names[:10])
        await until(lambda: not watch._subscribers, "the end of the connection")
        watch.add("chat-11", 2)
        await commit_revisions(cache.session("chat-11"), 3)
        assert await next_change(watch) == SessionChange("chat-11", 3)


async def test_a_removed_session_is_not_reported_and_can_be_added_again(cache, store):
    async with cache.watch(poll=NEVER) as watch:
        watch.add("other")
        for _ in range(20):
            watch.add("chat", 0)
            watch.remove("chat")
        watch.remove("never watched")
        watch.add("chat", 0)
        await following(watch, 2)
        await commit_revisions(store, 1)
        await until(lambda: len(watch._pending) == 1)
        watch.remove("chat")
        await commit_revisions(store, 2)
        await commit_revisions(cache.session("other"), 1)
        assert await next_change(watch) == SessionChange("other", 1)
        watch.add("chat", 1)
        assert await next_change(watch) == SessionChange("chat", 2)
        watch.add("chat", 2)
        await following(watch, 2)
        assert watch._pending == {}


# Cleanup


async def wait_for_cleanup(client: redis.asyncio.Redis, before: set[Any]) -> None:
    """Wait until the server has no subscriber and this process has no tasks except those of `before`."""

    async def has_no_subscriber() -> bool:
        return not (await client.execute_command("PUBSUB", "CHANNELS") or await client.client_list("pubsub"))

    await until(has_no_subscriber, "the end of the subscriptions")
    await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()}, "the end of the tasks")


async def test_watches_leave_no_task_or_subscription_however_they_end(real_server):
    """Watches end by break, an error, cancellation, a timeout, aclose, and the exit of a with block."""
    client, admin = real_server.client(max_connections=10), real_server.client()
    cache = SessionCache(client, "laws")
    store = cache.session("chat")
    await commit_revisions(store, 1)
    before = asyncio.all_tasks()

    async def leave_by_break() -> None:
        async for _ in store.watch(0, poll=NEVER):
            break

    async def leave_by_error() -> None:
        with suppress(ZeroDivisionError):
            async for revision in store.watch(0, poll=NEVER):
                raise ZeroDivisionError(revision)

    async def leave_by_cancellation() -> None:
        task = asyncio.create_task(next_change(store.watch(1, poll=NEVER)))
        for _ in range(random.randint(0, 30)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def leave_by_timeout() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 0.01)):
                async for _ in store.watch(1, poll=NEVER):
                    raise AssertionError("there is no news")

    async def leave_by_closing() -> None:
        async with aclosing(store.watch(0, poll=NEVER)) as revisions:
            assert await anext(revisions) == 1

    async def leave_many() -> None:
        async with cache.watch(poll=NEVER) as watch:
            for number in range(random.randint(0, 20)):
                watch.add(f"chat-{number}")
            for _ in range(random.randint(0, 50)):
                await asyncio.sleep(0)

    ways = (leave_by_break, leave_by_error, leave_by_cancellation, leave_by_timeout, leave_by_closing, leave_many)
    for at in range(300):
        await ways[at % len(ways)]()
    await wait_for_cleanup(admin, before)
    await asyncio.gather(*(leave_by_cancellation() for _ in range(5)))
    await wait_for_cleanup(admin, before)
    assert len(client.connection_pool._in_use_connections) == 0
    assert await store.load_head() is not None


async def test_a_closed_watch_reports_nothing_and_cannot_be_entered_again(cache, store):
    watch = cache.watch(poll=NEVER)
    assert [change async for change in watch] == []
    async with watch:
        watch.add("chat", 0)
        await commit_revisions(store, 1)
        assert await next_change(watch) == SessionChange("chat", 1)
    assert [change async for change in watch] == []
    with pytest.raises(RuntimeError):
        await watch.__aenter__()


async def test_a_waiting_consumer_stops_when_its_watch_is_closed(cache):
    watch = cache.watch(poll=NEVER)
    async with watch:
        waiting = asyncio.create_task(next_change(watch))
        await asyncio.sleep(0.01)
    with pytest.raises(StopAsyncIteration):
        await waiting
