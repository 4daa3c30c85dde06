"""Watching: every revision is seen at least as "something newer", ends have their reason, and nothing stays behind."""

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
from lash_redis.transport.connectors import Given
from tests.support.breaking import Python, broken_by
from tests.support.builders import append, commit, key_of, plant_fact
from tests.support.proxy import Action, Command, on
from tests.support.sending import sends_once
from tests.support.servers import Server

SLOW = 600.0
"""Seconds of `poll` that no test lives to see: what is told was told, not found."""


async def until(claim: Callable[[], Any], what: str = "what was to come") -> None:
    """Return when `claim` holds (or what it awaits is true); it is an error if that does not come in some seconds."""
    end = asyncio.get_running_loop().time() + 10
    while True:
        held = claim()
        if await held if isawaitable(held) else held:
            return
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"{what} did not come")
        await asyncio.sleep(0.002)


class Told(list[int]):
    """What a watch told so far; `ended` is the error that it ended with."""

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
async def watching(store: RedisSessionStore, since: Any = None, **settings: Any) -> AsyncIterator[Told]:
    """What `store.watch` tells, in a task of its own."""
    told = Told()

    async def follow() -> None:
        try:
            async for revision in store.watch(since, **{"poll": SLOW, **settings}):
                told.append(revision)
        except StoreError as error:
            told.ended = error

    task = asyncio.create_task(follow())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def following(watch: SessionWatch, count: int = 1) -> None:
    """Return when the watch hears all of its sessions, `count` of them."""

    def is_following() -> bool:
        sessions = watch._sessions.values()
        heard = [each for each in sessions if each.is_subscribed and each.seen is not None]
        return len(heard) == count and not any(each.needs_poll or each._is_polling for each in heard)

    await until(is_following, f"a subscription to {count} sessions")


async def listening(client: redis.asyncio.Redis, session_id: str = "chat", count: int = 1) -> None:
    """Return when `count` connections are subscribed to the session."""

    async def are_subscribed() -> bool:
        _, number = await client.execute_command("PUBSUB", "NUMSUB", channel_of(session_id))
        return int(number) == count

    await until(are_subscribed, f"{count} subscriptions")


def channel_of(session_id: str = "chat") -> str:
    return Layout("laws", 64).session(session_id).head


async def announce(client: redis.asyncio.Redis, message: bytes, session_id: str = "chat") -> None:
    """Say something on a session's channel."""
    word = "SPUBLISH" if isinstance(client, redis.asyncio.RedisCluster) else "PUBLISH"
    await client.execute_command(word, channel_of(session_id), message)


async def first(changes: AsyncIterator[Any]) -> Any:
    """What is told next; it is an error if nothing is in some seconds."""
    try:
        async with asyncio.timeout(10):
            return await anext(changes)
    except TimeoutError:
        raise AssertionError("nothing was told") from None


async def say(store: RedisSessionStore, *revisions: int) -> None:
    """Commit so that the head comes to each of these revisions in turn."""
    for revision in revisions:
        await store.commit_runtime_state(commit(revision - 1, session_id=store.session_id))


# What is news, without a server


class History:
    """A session and its watcher, with everything between them in some order: messages, looks, lost connections."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.head = HeadMark(self.chance.randint(0, 2), b"begun....")
        self.commits = 0
        self.is_listed = self.is_confirmed = False
        self.on_its_way: list[bytes | None] = []
        """Messages of the connection, in order; None for the confirmation of the subscription."""
        self.look: HeadPoll | None = None
        self.is_asked = False
        known = self.head.revision and self.chance.choice([HeadMark(0), self.head])
        self.last_told = known.revision if known else 0
        self.watched = WatchState(Layout("laws", 1).session("chat"), known or HeadMark(0))
        self.begun = self.head

    def commit(self) -> None:
        self.commits += 1
        self.head = HeadMark(self.head.revision + 1, b"%08d" % self.commits)
        if self.is_listed:
            self.on_its_way.append(b"%d 0 %s" % (self.head.revision, self.head.tag))

    def fail_over(self) -> None:
        """The last commits are lost, and every connection."""
        self.commits += 1
        self.head = HeadMark(self.chance.randint(1, max(1, self.head.revision)), b"old%05d" % self.commits)
        self.cut()
        self.take()
        self.last_told = 0

    def cut(self) -> None:
        self.is_listed = self.is_confirmed = self.is_asked = False
        self.on_its_way, self.look = [], None
        self.watched.on_disconnected()

    def subscribe(self) -> None:
        if not self.is_listed:
            self.is_listed = True
            self.on_its_way.append(None)

    def deliver(self) -> None:
        if not self.on_its_way:
            return
        message = self.on_its_way.pop(0)
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
        if self.is_asked and self.look is None:
            self.look = HeadPoll(self.head if self.head.revision else None)

    def receive(self) -> None:
        if self.look is not None:
            look, self.look, self.is_asked = self.look, None, False
            self.watched.end_poll(look)

    def take(self) -> None:
        if self.watched.pending_revision is not None:
            assert self.watched.pending_revision > self.last_told, "only a failover leads back"
            self.last_told, self.watched.pending_revision = self.watched.pending_revision, None

    def run(self, steps: int) -> None:
        for _ in range(steps):
            weights = {self.commit: 4, self.deliver: 6, self.ask: 4, self.answer: 4, self.receive: 4, self.take: 3}
            weights |= {self.subscribe: 4, self.cut: 1, self.fail_over: 1}
            self.chance.choices(list(weights), list(weights.values()))[0]()

    def settle(self) -> None:
        for _ in range(len(self.on_its_way) + 20):
            for step in (self.subscribe, self.deliver, self.ask, self.answer, self.receive):
                step()
        self.take()


def _believes(hear: Any) -> Any:
    def believes(self: WatchState, said: Any) -> None:
        if said is not None:
            self._advance(said.mark, said.deadline_ms)

    return believes


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
    Python("protocol.commands.watching:WatchState._apply", _believes, "believes every message"),
    Python(
        "protocol.commands.watching:WatchState.begin_poll",
        lambda _: lambda self: setattr(self, "needs_poll", False),
        "a poll that is older than a message wins",
    ),
)
async def test_in_any_order_of_events_the_last_head_is_told():
    """Thousands of histories; each ends at peace, and then what was told last is where the head stands."""
    for seed in range(3_000):
        history = History(seed)
        history.run(60)
        history.settle()
        assert history.watched.seen == (history.head if history.head.revision else HeadMark(0)), seed
        if history.head != history.begun:
            assert history.last_told == history.head.revision, seed


# What is told


async def test_every_commit_is_told_until_the_session_is_deleted(store, cache):
    async with watching(store, 0) as told:
        for revision in range(1, 6):
            await say(store, revision)
            await told.last(revision)
        await cache.delete("chat")
        assert str(await told.end(SessionDeleted)) == "session 'chat' was deleted"
        assert told == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_commits_are_told_on_either_protocol(protocol, real_server):
    cache = SessionCache(real_server.client(protocol=protocol), "laws")
    store = cache.session("chat")
    async with watching(store, 0) as told:
        for revision in range(1, 4):
            await say(store, revision)
            await told.last(revision)
        await cache.delete("chat")
        await told.end(SessionDeleted)


async def test_a_head_that_is_not_the_one_seen_is_told_at_once_and_the_one_seen_is_not(store):
    await say(store, 1, 2)
    head, read = await store.load_head(), await store.load_session(FullGraph())
    third = await store.commit_runtime_state(commit(2))
    for since in (0, 1, 2, head, read):
        async with watching(store, since) as told:
            await told.reach(3)
    for since in (3, third, await store.load_head(), None):
        async with watching(store, since) as told:
            await asyncio.sleep(0.05)
            assert told == []


async def test_without_since_what_comes_after_the_first_look_is_told(cache, store):
    await say(store, 1, 2)
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat")
        await following(watch)
        await say(store, 3)
        assert await first(watch) == SessionChange("chat", 3)


async def test_a_session_that_is_not_there_yet_is_waited_for(cache, store):
    await store.save_session_meta(SessionMeta("chat", "n", "t", "m"))
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat")
        watch.add("other", 0)
        await following(watch, 2)
        await say(store, 1)
        assert await first(watch) == SessionChange("chat", 1)
        await say(cache.session("other"), 1)
        assert await first(watch) == SessionChange("other", 1)


async def test_what_moves_no_revision_is_no_news(store):
    await store.commit_runtime_state(commit(None, append("a", "b")))
    async with watching(store, 1) as told:
        await store.save_session_meta(SessionMeta("chat", "n", "t", "m"))
        await store.touch()
        await store.tombstone_nodes(["a"])
        await store.vacuum()
        await store.commit_runtime_state(commit(1, Unchanged("b")))
        await told.reach(2)


@broken_by(Python("protocol.commands.watching:WatchState._apply", _believes, "believes every message"))
async def test_a_message_that_is_no_plain_step_forward_is_not_taken_at_its_word(cache, store, client):
    await say(store, 1)
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat", 1)
        await following(watch)
        for junk in (b"9 0 12345678", b"1 0 87654321", b"0 0 12345678", b"", b"gone", b"2", b"9" * 5_000, b"deleted"):
            await announce(client, junk)
        await say(store, 2)
        assert await first(watch) == SessionChange("chat", 2)


async def test_commits_that_nobody_takes_are_told_as_one(cache, store):
    """However many there are, the watch keeps one number of a session."""
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat", 0)
        watch.add("other", 0)
        await following(watch, 2)
        await say(store, *range(1, 200))
        await say(cache.session("other"), 1)
        await until(lambda: [session.pending_revision for session in watch._pending] == [199, 1], "199 and 1")
        assert [await first(watch), await first(watch)] == [SessionChange("chat", 199), SessionChange("other", 1)]
        await say(store, 200)
        assert await first(watch) == SessionChange("chat", 200)


@pytest.mark.parametrize("since", [-1, True, "7", 1.0, b"7"], ids=repr)
async def test_since_takes_a_head_that_somebody_has_seen(since, cache, store):
    with pytest.raises(InvalidRecord, match="since"):
        await first(store.watch(since))
    async with cache.watch() as watch:
        with pytest.raises(InvalidRecord, match="since"):
            watch.add("chat", since)
        with pytest.raises(InvalidRecord, match="session_id"):
            watch.add("")


async def test_since_is_a_head_of_the_same_session(cache, store):
    await say(store, 1)
    with pytest.raises(SessionBindingMismatch):
        await first(cache.session("other").watch(await store.load_head()))


@pytest.mark.parametrize("setting", ["poll", "patience"])
async def test_durations_are_seconds_above_zero(setting, cache):
    for value in (0, -1, "1", True, None):
        with pytest.raises(InvalidRecord, match=setting):
            cache.watch(**{setting: value})


async def test_a_watch_refuses_a_namespace_that_is_laid_out_otherwise(open_cache, store):
    await say(store, 1)
    with pytest.raises(LayoutMismatch):
        await first(open_cache(shards=3).session("chat").watch(poll=SLOW))


# How a session ends


async def test_a_session_that_was_deleted_before_is_told_at_once(cache, store):
    await say(store, 1)
    await cache.delete("chat")
    for since in (None, 0, 1, 7):
        async with watching(store, since) as told:
            await told.end(SessionDeleted)
            assert told == []


async def test_a_deletion_that_leaves_no_marker_is_told_as_one(open_cache):
    cache = open_cache(deletion_marker_ttl=0)
    await say(cache.session("chat"), 1)
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat", 1)
        await following(watch)
        await cache.delete("chat")
        assert isinstance((await first(watch)).ended, SessionDeleted)


async def test_a_session_that_was_there_and_is_not_is_gone(store):
    async with watching(store, 3) as told:
        gone = await told.end(SessionGone)
        assert (gone.expected, gone.actual, gone.session_id) == (3, 0, "chat")


def _blind(schedule: Any) -> Any:
    def blind(self: Any, session: Any, due: float) -> None:
        deadline, session.deadline_ms = session.deadline_ms, 0
        schedule(self, session, due)
        session.deadline_ms = deadline

    return blind


BLIND = Python("session.subscriber:Subscriber._schedule", _blind, "looks by no deadline")


@broken_by(BLIND)
async def test_a_session_that_expires_ends_its_watch(open_cache):
    store = open_cache(ttl=0.3).session("chat")
    await say(store, 1)
    async with watching(store, 1) as told:
        assert str(await told.end(SessionGone)) == "there is no session 'chat'"
        assert told == []


@broken_by(BLIND)
async def test_a_deadline_that_a_commit_brings_is_known_from_its_message(open_cache):
    cache = open_cache()
    store = cache.session("chat")
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat", 0)
        await following(watch)
        await store.commit_runtime_state(commit(0), ttl=0.3)
        assert await first(watch) == SessionChange("chat", 1)
        assert isinstance((await first(watch)).ended, SessionGone)


async def test_a_session_that_is_touched_lives_on_in_its_watch(open_cache):
    store = open_cache(ttl=0.4).session("chat")
    await say(store, 1)
    async with watching(store, 1) as told:
        for _ in range(8):
            await asyncio.sleep(0.1)
            assert await store.touch()
        assert told.ended is None
        await say(store, 2)
        await told.reach(2)
        await told.end(SessionGone)


async def test_a_session_that_begins_anew_is_told(open_cache):
    """By another commit at the same revision: nothing else tells it from the one before."""
    cache = open_cache(deletion_marker_ttl=0)
    store = cache.session("chat")
    first = await store.commit_runtime_state(commit(0))
    await cache.delete("chat")
    await say(store, 1)
    async with watching(store, first) as told:
        await told.reach(1)
    async with watching(store, 1) as told:
        await say(store, 2)
        await told.reach(2)


async def test_a_head_that_cannot_be_read_ends_its_watch_as_corrupt(cache, store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat", 1)
        await following(watch)
        await plant_fact(client, "revision", "x")
        await announce(client, b"look")
        assert isinstance((await first(watch)).ended, Corrupt)
    with pytest.raises(Corrupt):
        await first(store.watch(1))


async def test_a_head_that_lost_its_receipts_or_its_type_is_corrupt(store, client):
    await say(store, 1)
    head = await key_of(client, "head")
    facts = await client.hget(head, "facts")
    await client.hdel(head, "facts")
    with pytest.raises(Corrupt, match="facts are gone"):
        await first(store.watch(1))
    await client.hset(head, "facts", facts)
    await client.hdel(head, "receipts")
    with pytest.raises(Corrupt, match="receipts"):
        await first(store.watch(1))
    await client.set(head, b"x")
    with pytest.raises(Corrupt, match="another type"):
        await first(store.watch(1))


async def test_a_head_that_was_evicted_is_told_apart_from_one_that_expired(store, client):
    await store.commit_runtime_state(commit(None, append("a")))
    await client.delete(await key_of(client, "head"))
    for since in (None, 0, 1):
        with pytest.raises(SessionEvicted) as refused:
            await first(store.watch(since))
        assert refused.value.key.endswith(":head:chat")


async def test_one_session_that_ends_leaves_the_others_watched(cache, client):
    for name in ("deleted", "torn", "stays"):
        await cache.session(name).commit_runtime_state(commit(0, append("a"), session_id=name))
    async with cache.watch(poll=SLOW) as watch:
        for name in ("deleted", "torn", "stays", "never"):
            watch.add(name)
        await following(watch, 4)
        await cache.delete("deleted")
        change = await first(watch)
        assert (change.session_id, change.revision, type(change.ended)) == ("deleted", 1, SessionDeleted)
        await client.delete(await key_of(client, "head", "torn"))
        await announce(client, b"look", "torn")
        change = await first(watch)
        assert (change.session_id, change.revision, type(change.ended)) == ("torn", 1, SessionEvicted)
        await cache.session("stays").commit_runtime_state(commit(1, Unchanged("a"), session_id="stays"))
        assert await first(watch) == SessionChange("stays", 2)
        heard = {session for line in watch._subscribers.values() for session in line.sessions}
        assert heard == {channel_of("stays").encode(), channel_of("never").encode()}


async def test_what_a_session_came_to_before_its_end_is_told_before_it(cache, store):
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat", 0)
        await following(watch)
        await say(store, 1, 2)
        await cache.delete("chat")
        await until(lambda: any(session.ended for session in watch._pending), "the end")
        assert await first(watch) == SessionChange("chat", 2)
        last = await first(watch)
        assert (last.session_id, last.revision, type(last.ended)) == ("chat", 2, SessionDeleted)


# Lost connections


async def test_what_was_committed_while_the_connection_was_gone_is_told(through_proxy, proxy, store_beside):
    await say(store_beside, 1)
    async with watching(sends_once(through_proxy()).session("chat"), 1) as told:
        await until(lambda: b"SUBSCRIBE" in {command[0] for link in proxy.connections for command in link.log})
        await say(store_beside, 2)
        await told.reach(2)
        await proxy.refuse()
        await proxy.sever()
        await say(store_beside, 3, 4, 5)
        await proxy.accept()
        await told.reach(2, 5)
        await say(store_beside, 6)
        await told.reach(2, 5, 6)


@pytest.fixture
def store_beside(real_server: Server) -> RedisSessionStore:
    """The session, by a client that no proxy stands before."""
    return SessionCache(real_server.client(), "laws").session("chat")


async def test_a_commit_between_the_subscription_and_the_look_is_told(real_server, proxy, through_proxy, store_beside):
    await say(store_beside, 1)
    proxy.on_command = on(Action.HOLD_REPLY, "SUBSCRIBE")
    async with watching(through_proxy().session("chat"), 1) as told:
        await listening(real_server.client())
        await say(store_beside, 2)
        proxy.release()
        await told.reach(2)
        await say(store_beside, 3)
        await told.reach(2, 3)


@broken_by(NO_POLL_AFTER_SUBSCRIBING, COMPARES_REVISIONS_ALONE)
async def test_a_revision_that_comes_round_again_with_another_commit_is_told(proxy, through_proxy, real_server):
    """As after a failover: revision 2 was acknowledged and lost, and another revision 2 took its place."""
    client = real_server.client()
    store = SessionCache(client, "laws").session("chat")
    await say(store, 1)
    kept = {key: await client.dump(key) for key in await client.keys("*")}
    lost = await store.commit_runtime_state(commit(1))

    async def fail_over() -> None:
        await client.flushall()
        for key, value in kept.items():
            await client.restore(key, 0, value)
        await say(store, 2)

    cache = sends_once(through_proxy())
    async with watching(cache.session("chat"), lost) as told:
        await listening(client)
        await proxy.refuse()
        await proxy.sever()
        await fail_over()
        await proxy.accept()
        await told.reach(2)
        await say(store, 3)
        await told.reach(2, 3)
        await proxy.refuse()
        await proxy.sever()
        await fail_over()
        await proxy.accept()
        await told.reach(2, 3, 2)
    async with watching(store, lost) as told:
        await told.reach(2)


def random_cuts(chance: random.Random) -> Callable[[Command], Action]:
    """Connections end before or after a command, now and then."""
    return lambda command: chance.choices([Action.PASS, Action.CUT_BEFORE, Action.DROP_REPLY], [30, 1, 1])[0]


@pytest.mark.slow
async def test_commits_raced_against_lost_connections_are_told(proxy, through_proxy, store_beside):
    """Hundreds of commits at any moment of subscribing, looking and losing the connection; in order, to the last."""
    chance = random.Random(7)
    proxy.on_command = random_cuts(chance)
    async with watching(through_proxy(retry_max_delay=0.01).session("chat"), 0) as told:
        for revision in range(1, 301):
            await say(store_beside, revision)
            await asyncio.sleep(chance.choice([0, 0, 0, 0.001, 0.005]))
            if chance.random() < 0.05:
                await proxy.sever()
            if chance.random() < 0.1:
                await told.last(revision)
        await told.last(300)
    assert told == sorted(set(told))
    assert len(told) > 30


async def test_an_outage_longer_than_patience_ends_the_watch(proxy, through_proxy, store_beside):
    await say(store_beside, 1)
    cache = through_proxy(call_timeout=0.1)
    async with watching(cache.session("chat"), 1, patience=0.3) as told, cache.watch(poll=SLOW, patience=0.3) as watch:
        watch.add("chat", 1)
        await following(watch)
        await say(store_beside, 2)
        await told.reach(2)
        assert await first(watch) == SessionChange("chat", 2)
        await proxy.refuse()
        await proxy.sever()
        assert "the server was unreachable for 0.3 s" in str(await told.end(BackendError))
        for _ in range(2):
            with pytest.raises(BackendError, match="111"):
                await first(watch)
        assert watch._tasks == set()


async def test_a_server_that_cuts_every_subscription_is_not_asked_all_the_time(proxy, through_proxy, store_beside):
    await say(store_beside, 1)
    proxy.on_command = lambda command: Action.CUT_BEFORE if command[0] == b"SUBSCRIBE" else Action.PASS
    async with watching(through_proxy(retry_max_delay=0.2).session("chat"), 1, patience=1) as told:
        await told.end(BackendError)
    assert 5 <= len(proxy.connections) <= 60


@broken_by(
    Python(
        "session.subscriber:Subscriber._schedule", lambda _: lambda self, session, due: None, "looks only when told to"
    ),
)
async def test_what_a_writer_without_the_right_to_publish_commits_is_found(real_server):
    account = real_server.account("laws", "loader")
    async with aclosing(real_server.client()) as admin:
        await admin.execute_command("ACL", "SETUSER", "loader-laws", "-publish")
    writer, watcher = (SessionCache(client, "laws").session("chat") for client in (account, real_server.client()))
    await say(writer, 1)
    async with watching(watcher, 1, poll=0.2) as told:
        await say(writer, 2)
        await told.reach(2)
        await say(writer, 3)
        await told.reach(2, 3)


async def test_a_connection_that_died_silently_is_replaced(proxy, through_proxy, store_beside, monkeypatch):
    monkeypatch.setattr(subscriber_module, "REPLY_TIMEOUT", 0.2)
    await say(store_beside, 1)
    proxy.on_command = on(Action.HOLD_REPLY, "SUBSCRIBE", 2)
    cache = through_proxy()
    async with cache.watch(poll=0.2) as watch:
        watch.add("chat", 1)
        await following(watch)
        (line,) = watch._subscribers.values()
        await until(lambda: list(watch._subscribers.values()) not in ([line], []), "another connection")
        await following(watch)
        await say(store_beside, 2)
        assert await first(watch) == SessionChange("chat", 2)


async def test_an_account_that_may_not_subscribe_is_told_so(real_server):
    account = real_server.account("laws", "loader")
    async with aclosing(real_server.client()) as admin:
        await admin.execute_command("ACL", "SETUSER", "loader-laws", "-subscribe")
    with pytest.raises(BackendError, match=r"(?i)permission"):
        await first(SessionCache(account, "laws").session("chat").watch(0, poll=SLOW))


class Sharded(Given):
    """As if the server were a cluster: channels of its own slots."""

    sharded = True


async def test_sharded_channels_or_where_there_are_none_plain_ones(real_server):
    """Redis 6.2 knows no sharded channels."""
    client = real_server.client()
    cache = SessionCache(Sharded(client), "laws")
    names = [f"chat-{number}" for number in range(300)]
    async with cache.watch(poll=SLOW) as watch:
        for name in names:
            watch.add(name, 0)
        await following(watch, 300)
        for name in names:
            await say(cache.session(name), 1)
        told = [await first(watch) for _ in names]
        assert sorted(told, key=lambda change: change.session_id) == [SessionChange(name, 1) for name in sorted(names)]
        watch.remove("chat-0")
        kinds = "SHARDCHANNELS" if real_server.version >= (7,) else "CHANNELS"

        async def one_is_gone() -> bool:
            return len(await client.execute_command("PUBSUB", kinds)) == 299

        await until(one_is_gone)


async def test_a_subscription_that_the_server_ends_is_taken_up_again(real_server):
    """As when a slot moves to another server."""
    if real_server.version < (7,):
        return
    cache = SessionCache(Sharded(real_server.client()), "laws")
    store = cache.session("chat")
    async with cache.watch(poll=SLOW) as watch:
        watch.add("chat", 0)
        await following(watch)
        (line,) = watch._subscribers.values()
        line._handle(b"sunsubscribe", watch._sessions["chat"].channel, 0)
        await say(store, 1)
        assert await first(watch) == SessionChange("chat", 1)
        await following(watch)


# Many sessions


async def test_a_thousand_sessions_are_watched_over_one_connection(real_server):
    client = real_server.client()
    cache = SessionCache(client, "laws")
    names = [f"chat-{number}" for number in range(1_000)]
    async with cache.watch(poll=SLOW) as watch:
        for name in names:
            watch.add(name, 0)
        await following(watch, 1_000)
        assert len(await client.client_list("pubsub")) == 1

        async def write(some: list[str]) -> None:
            for name in some:
                await say(cache.session(name), 1, 2)

        writing = asyncio.gather(*(write(names[at::10]) for at in range(10)))
        newest: dict[str, int] = {}
        async with asyncio.timeout(60):
            while sum(newest.values()) < 2_000:
                change = await first(watch)
                newest[change.session_id] = change.revision
        await writing
        assert newest == dict.fromkeys(names, 2)
        for name in names[10:]:
            watch.remove(name)
        await listening(client, "chat-999", 0)
        for name in names[:10]:
            await cache.delete(name)
        ended = [await first(watch) for _ in range(10)]
        assert {change.session_id for change in ended} == set(names[:10])
        await until(lambda: not watch._subscribers, "the end of the connection")
        watch.add("chat-11", 2)
        await say(cache.session("chat-11"), 3)
        assert await first(watch) == SessionChange("chat-11", 3)


async def test_a_session_that_is_removed_is_told_no_more_and_may_come_again(cache, store):
    async with cache.watch(poll=SLOW) as watch:
        watch.add("other")
        for _ in range(20):
            watch.add("chat", 0)
            watch.remove("chat")
        watch.remove("never watched")
        watch.add("chat", 0)
        await following(watch, 2)
        await say(store, 1)
        await until(lambda: len(watch._pending) == 1)
        watch.remove("chat")
        await say(store, 2)
        await say(cache.session("other"), 1)
        assert await first(watch) == SessionChange("other", 1)
        watch.add("chat", 1)
        assert await first(watch) == SessionChange("chat", 2)
        watch.add("chat", 2)
        await following(watch, 2)
        assert watch._pending == {}


# What stays behind


async def leave_nothing(client: redis.asyncio.Redis, before: set[Any]) -> None:
    """The server has no subscriber, and this process no task that was not there before."""

    async def hears_nobody() -> bool:
        return not (await client.execute_command("PUBSUB", "CHANNELS") or await client.client_list("pubsub"))

    await until(hears_nobody, "the end of the subscriptions")
    await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()}, "the end of the tasks")


async def test_hundreds_of_watches_left_in_any_way_leave_nothing_behind(real_server):
    """By break, by cancellation at any moment, by an error in the loop, by aclose, at a deletion."""
    client, admin = real_server.client(max_connections=10), real_server.client()
    cache = SessionCache(client, "laws")
    store = cache.session("chat")
    await say(store, 1)
    before = asyncio.all_tasks()

    async def leave_by_break() -> None:
        async for _ in store.watch(0, poll=SLOW):
            break

    async def leave_by_error() -> None:
        with suppress(ZeroDivisionError):
            async for revision in store.watch(0, poll=SLOW):
                raise ZeroDivisionError(revision)

    async def leave_by_cancellation() -> None:
        task = asyncio.create_task(first(store.watch(1, poll=SLOW)))
        for _ in range(random.randint(0, 30)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def leave_by_timeout() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 0.01)):
                async for _ in store.watch(1, poll=SLOW):
                    raise AssertionError("there is no news")

    async def leave_by_closing() -> None:
        async with aclosing(store.watch(0, poll=SLOW)) as revisions:
            assert await anext(revisions) == 1

    async def leave_many() -> None:
        async with cache.watch(poll=SLOW) as watch:
            for number in range(random.randint(0, 20)):
                watch.add(f"chat-{number}")
            for _ in range(random.randint(0, 50)):
                await asyncio.sleep(0)

    ways = (leave_by_break, leave_by_error, leave_by_cancellation, leave_by_timeout, leave_by_closing, leave_many)
    for at in range(300):
        await ways[at % len(ways)]()
    await leave_nothing(admin, before)
    await asyncio.gather(*(leave_by_cancellation() for _ in range(5)))
    await leave_nothing(admin, before)
    assert len(client.connection_pool._in_use_connections) == 0
    assert await store.load_head() is not None


async def test_a_watch_that_was_left_tells_nothing_and_can_be_entered_once(cache, store):
    watch = cache.watch(poll=SLOW)
    assert [change async for change in watch] == []
    async with watch:
        watch.add("chat", 0)
        await say(store, 1)
        assert await first(watch) == SessionChange("chat", 1)
    assert [change async for change in watch] == []
    with pytest.raises(RuntimeError):
        await watch.__aenter__()


async def test_a_consumer_that_waits_while_its_watch_is_left_is_let_go(cache):
    watch = cache.watch(poll=SLOW)
    async with watch:
        waiting = asyncio.create_task(first(watch))
        await asyncio.sleep(0.01)
    with pytest.raises(StopAsyncIteration):
        await waiting
