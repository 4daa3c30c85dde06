"""Connections belong to one event loop, stay below their limit, and deliver each reply to its own call."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import stat
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel
from redis.crc import key_slot

import lash_redis
from lash_redis import (
    ActivePath,
    BackendError,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    OutcomeUnknown,
    Replicas,
    SessionCache,
    SessionHeadMeta,
    SessionMeta,
    StoreOptions,
    Unchanged,
)
from lash_redis.protocol.keys import slot_of
from tests.support.builders import append, commit, ids_of
from tests.support.groups import Cluster, SentinelGroup
from tests.support.paths import ROOT
from tests.support.proxy import Action, Proxy, on
from tests.support.sending import sends_once
from tests.support.servers import Server, any_real

GROUPS = [
    pytest.param("cluster", marks=pytest.mark.group("cluster")),
    pytest.param("sentinel", marks=pytest.mark.group("sentinels")),
]


@pytest.fixture(params=["one server", *GROUPS])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty server, of a cluster, or of a primary under Sentinel."""
    match request.param:
        case "cluster":
            group: Cluster | SentinelGroup = request.getfixturevalue("cluster")
            return group.url
        case "sentinel":
            group = request.getfixturevalue("sentinels")
            return group.url
    server: str = request.getfixturevalue("any_server").tcp_url
    return server


async def commit_first(cache: SessionCache, session_id: str) -> None:
    await cache.session(session_id).commit_runtime_state(commit(None, append(f"{session_id}.0"), session_id=session_id))


# Event loops and processes


def test_two_alternating_event_loops_reuse_their_connections(any_server: Server) -> None:
    cache = lash_redis.connect(f"{any_server.url}?client_name=turns")
    loops = [asyncio.new_event_loop() for _ in range(2)]
    ids: list[set[Any]] = []

    async def turn() -> set[Any]:
        await cache.session("chat").load_head()
        async with redis.Redis.from_url(any_server.url) as admin:
            return {client["id"] for client in await admin.client_list() if client["name"] == "turns"}

    for _ in range(10):
        ids += [loop.run_until_complete(turn()) for loop in loops]
    of_one_loop, of_both, *later = ids
    assert of_one_loop < of_both
    assert all(each == of_both for each in later)
    for loop in loops:
        loop.run_until_complete(cache.aclose())
        loop.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # unclosed connections warn
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_cache_does_not_keep_a_finished_event_loop(is_closed, any_server):
    cache = lash_redis.connect(any_server.url)

    async def turn() -> weakref.ref[asyncio.AbstractEventLoop]:
        await cache.session("chat").load_head()
        if is_closed:
            await cache.aclose()
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(turn())
    gc.collect()
    assert loop() is None


FORKING = """
import asyncio, os, sys
import lash_redis
from lash_redis import FullGraph
from tests.support.builders import append, commit, ids_of

cache = lash_redis.connect(sys.argv[1])

async def turns(name):
    store = cache.session(name)
    for at in range(30):
        parent = f"{name}{at - 1}" if at else None
        await store.commit_runtime_state(commit(at or None, append(f"{name}{at}", parent=parent), session_id=name))
        read = await cache.session(name).load_session(FullGraph())
        assert ids_of(read) == [f"{name}{each}" for each in range(at + 1)]
    await cache.aclose()

if sys.argv[2] == "used before":
    asyncio.run(turns("before"))
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        asyncio.run(turns(f"child{number}"))
        os._exit(0)
    children.append(child)
asyncio.run(turns("parent"))
assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
print("well")
"""


@pytest.mark.parametrize("before", ["new", "used before"])
def test_a_cache_made_before_a_fork_serves_the_children_and_the_parent(before, url):
    ended = subprocess.run(
        [sys.executable, "-c", FORKING, url, before],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("well\n", "")


# Waiting for a connection


@pytest.mark.slow
async def test_2000_concurrent_tasks_wait_for_a_connection(url):
    async with lash_redis.connect(
        url
    ) as cache:  # may retry: a busy loop can miss the handshake timeout of a connection
        await asyncio.gather(*(commit_first(cache, f"s{at}") for at in range(2000)))
        heads = await asyncio.gather(*(cache.session(f"s{at}").load_head() for at in range(2000)))
        assert [head.head_revision for head in heads] == [1] * 2000


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
async def test_requests_of_every_kind_together_open_as_many_connections_as_the_url_allows(limit, any_server):
    """The requests are small, large or wait for replicas. With 3 connections or more, each kind has its own."""
    async with (
        Proxy(any_server.tcp_url) as proxy,
        lash_redis.connect(f"{proxy.url}?max_connections={limit}") as cache,
    ):
        large = HydratedSessionCheckpoint(execution_state=b"x" * 200_000)

        async def work(session_id: str) -> None:
            store = cache.session(session_id)
            await commit_first(cache, session_id)
            made = commit(1, append(f"{session_id}.1", parent=f"{session_id}.0"), session_id=session_id)
            waited = await store.commit_runtime_state(made, durability=Replicas(1, 20))
            assert waited.durable is False
            await store.commit_runtime_state(
                commit(2, Unchanged(made.graph.leaf_node_id), session_id=session_id, checkpoint=large)
            )
            read = await store.load_session(FullGraph())
            assert ids_of(read) == [f"{session_id}.0", f"{session_id}.1"]

        await asyncio.gather(*(work(f"s{at}") for at in range(60)))
        assert proxy.most_at_once == limit


@pytest.mark.slow
async def test_tasks_on_a_given_client_wait_for_its_connections(server):
    client = server.client(max_connections=5)
    cache = sends_once(SessionCache(client))
    await asyncio.gather(*(commit_first(cache, f"s{at}") for at in range(300)))
    heads = await asyncio.gather(*(cache.session(f"s{at}").load_head() for at in range(300)))
    assert [head.head_revision for head in heads] == [1] * 300


# Replies to their own calls


def open_sockets() -> int:
    """The number of open sockets of this process."""
    count = 0
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the descriptor of the listing is closed already
            count += stat.S_ISSOCK(os.fstat(number).st_mode)
    return count


async def test_closing_a_cache_with_calls_in_flight_leaves_no_open_socket(url):
    """Some calls are in flight, and others wait for a connection that is being opened."""
    before = open_sockets()
    cache = lash_redis.connect(url)
    await commit_first(cache, "chat")
    calls = [asyncio.create_task(cache.session("chat").load_head()) for _ in range(40)]
    await asyncio.sleep(0)
    await cache.aclose()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in ended} <= {SessionHeadMeta, BackendError}
    assert BackendError in {type(each) for each in ended}
    for _ in range(10):  # an event loop closes a socket in a later iteration
        await asyncio.sleep(0)
    assert open_sockets() == before


async def test_a_late_reply_is_dropped_with_its_connection(any_server):
    """The waiting call times out, its connection is closed, and the next call uses another connection."""
    async with (
        Proxy(any_server.tcp_url) as proxy,
        sends_once(lash_redis.connect(f"{proxy.url}?socket_timeout=0.9")) as cache,
    ):
        await commit_first(cache, "late")
        late = commit(1, append("late.1", parent="late.0"), session_id="late")
        proxy.on_command = on(Action.HOLD_REPLY, "EVALSHA")
        with pytest.raises(OutcomeUnknown, match=r"no reply from 127\.0\.0\.1:\d+ within 0\.9 seconds"):
            await cache.session("late").commit_runtime_state(late)
        proxy.release()
        assert (await cache.session("late").load_head()).head_revision == 2
        again = await cache.session("late").commit_runtime_state(late)
        assert (again.head_revision, again.replayed) == (2, True)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_call_cancelled_at_any_moment_leaves_no_reply_to_another_call(protocol, url):
    """Six tasks share three connections, and each task must read only the content of its own session."""
    separator = "&" if "?" in url else "?"
    address = f"{url}{separator}max_connections=3&protocol={protocol}"
    dice = random.Random(protocol)
    cancelled = 0
    async with lash_redis.connect(address) as cache:

        async def worker(name: str) -> None:
            nonlocal cancelled
            store = cache.session(name)
            body = HydratedSessionCheckpoint(execution_state=name.encode())
            first = commit(None, append(f"{name}.0"), session_id=name, checkpoint=body)
            await store.commit_runtime_state(first)
            await store.save_session_meta(SessionMeta(name, name, "now", "m"))
            revision = 1
            for _ in range(200):
                leaf = f"{name}.{revision - 1}"
                sent = commit(revision, append(f"{name}.{revision}", parent=leaf), session_id=name, checkpoint=body)

                async def committed(sent: Any = sent) -> Any:
                    return await store.commit_runtime_state(sent)

                calls: list[Callable[[], Awaitable[Any]]] = [
                    committed, store.load_head, store.touch, store.load_session_meta,
                    lambda: store.load_session(FullGraph()), lambda: store.load_session(ActivePath()),
                    lambda leaf=leaf: store.load_node(leaf),
                    lambda: cache.put_blob(name.encode()),
                ]  # fmt: skip
                call = dice.choice(calls)
                try:
                    async with asyncio.timeout(dice.choice([0.0, 0.0001, 0.0002, 0.0005, 0.001, 0.002])):
                        await call()
                except TimeoutError:
                    cancelled += 1
                if call is committed:
                    assert (await committed()).head_revision == revision + 1
                    revision += 1
                head = await store.load_head()
                assert (head.session_id, head.head_revision) == (name, revision)
                meta = await store.load_session_meta()
                assert meta.session_id == name
            read = await cache.session(name).load_session(FullGraph())
            assert ids_of(read) == [f"{name}.{at}" for at in range(revision)]
            assert read.checkpoint.execution_state == name.encode()

        await asyncio.gather(*(worker(f"w{number}") for number in range(6)))
        assert cancelled > 100
        # Every connection is still available for later calls.
        async with asyncio.timeout(60):
            await asyncio.gather(*(cache.session(f"w{at % 6}").load_head() for at in range(60)))


# Slots and URLs


def test_the_slot_of_a_key_equals_the_slot_that_redis_computes():
    for key in (
        "foo",
        "{user1000}.following",
        "foo{}{bar}",
        "foo{{bar}}zap",
        "foo{bar}{zap}",
        "lash2:{a:1.2}:log:{x}",
        "{",
    ):
        assert slot_of(key) == slot_of(key.encode()) == key_slot(key.encode())


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://", "redis+cluster://:secret@", "redis+cluster://h:secret", "redis+cluster://h:1,:2",
        "redis+cluster://h:1,,h:2", "redis+cluster://h:70000", "redis+cluster://h/1", "redis+cluster://h?protocol=secret",
        "redis+cluster://h?nothing=1", "redis+cluster://:secret/x@h", "redis+sentinel://h", "redis+sentinel://h/",
        "redis+sentinel://h/service/secret", "redis+sentinel://h:secret/service", "redis+sentinel:///service",
        "redis+sentinel://h/service?wrong=1", "rediss+sentinel://h", "redis://u:secret/@h", "redis://h:secret",
        "redis://h?wrong=1", "cluster://:secret@h", "redis+cluster://:secret@[h", "redis+cluster://[::1",
        "redis://h?max_connections=-1", "redis+sentinel://h/service?max_connections=-1", "redis://h?retry=secret",
        "redis://h?decode_responses=true", "redis+cluster://h?connection_class=secret",
    ],
)  # fmt: skip
def test_an_invalid_url_is_refused_without_showing_its_password(url):
    with pytest.raises(InvalidRecord, match=r"^url: ") as caught:
        lash_redis.connect(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://h", "redis+cluster://h:1,[::1]:2,[::2]/0?protocol=2", "rediss+cluster://u:p%2Fq@h:1",
        "redis+sentinel://h/service", "rediss+sentinel://h/service", "redis+sentinel://u:p@h:1,[::1]:2/s%2Ft/3?sentinel_password=x&socket_timeout=1",
    ],
)  # fmt: skip
def test_a_valid_url_of_several_servers_is_accepted_without_connecting(url):
    lash_redis.connect(url)


@pytest.mark.parametrize("password", ["[secret", "\u2100secret", "a:b%25%2F"])
async def test_a_password_may_contain_brackets_colons_and_any_letter(password, any_server):
    async with redis.Redis.from_url(any_server.tcp_url) as admin:
        await admin.execute_command("ACL", "SETUSER", "named", "on", f">{unquote(password)}", "~*", "+@all")
        try:
            url = any_server.tcp_url.replace("://", f"://named:{password}@")
            async with lash_redis.connect(url) as cache:
                await commit_first(cache, "chat")
        finally:
            await admin.execute_command("ACL", "DELUSER", "named")


async def test_an_unreachable_group_is_a_backend_error_with_the_address_of_each_server():
    options = StoreOptions(call_timeout=0.5)
    for url in ("redis+cluster://127.0.0.1:1,127.0.0.1:2", "redis+sentinel://127.0.0.1:1,127.0.0.1:2/lash"):
        async with lash_redis.connect(url, options=options) as cache:
            with pytest.raises(
                BackendError, match=r"127\.0\.0\.1:1: .*127\.0\.0\.1:2: |127\.0\.0\.1:2: .*127\.0\.0\.1:1: "
            ):
                await commit_first(cache, "chat")


async def test_a_wrong_password_is_an_immediate_error_that_does_not_show_it(cluster, sentinels):
    """Refused credentials are not retried, unlike a failover, which may take up to 45 seconds."""
    urls = [
        cluster.url.replace("://", "://nobody:wrong@"),
        sentinels.url.replace("://", "://nobody:wrong@"),
    ]
    for url in urls:
        async with asyncio.timeout(20), lash_redis.connect(url) as cache:
            with pytest.raises(BackendError) as caught:
                await commit_first(cache, "chat")
        assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


async def test_an_unknown_service_is_an_immediate_error(sentinels):
    url = sentinels.url.replace("/lash", "/other")
    async with asyncio.timeout(20), lash_redis.connect(url) as cache:
        with pytest.raises(BackendError, match="'other'"):
            await commit_first(cache, "chat")


async def test_the_error_of_a_plain_url_to_a_cluster_node_names_the_cluster_scheme(cluster):
    async with sends_once(lash_redis.connect(cluster.nodes[0].url)) as cache:
        with pytest.raises(BackendError, match=r"redis\+cluster://"):
            await asyncio.gather(*(commit_first(cache, f"s{at}") for at in range(30)))


async def test_a_commit_refused_by_a_replica_is_reported_as_not_applied(sentinels):
    async with sends_once(lash_redis.connect(sentinels.replicas()[0].url)) as cache:
        with pytest.raises(BackendError) as caught:
            await commit_first(cache, "chat")
        assert not isinstance(caught.value, OutcomeUnknown)


# Given clients


async def test_a_given_cluster_client_serves_and_stays_open(cluster):
    client = cluster.client()
    async with SessionCache(client) as cache:
        await commit_first(cache, "chat")
        assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["chat.0"]
    assert await client.ping()
    assert len(await client.keys()) == 5
    await client.aclose()


async def test_a_given_sentinel_client_serves_and_stays_open(sentinels):
    client = sentinels.managed()
    async with SessionCache(client) as cache:
        await commit_first(cache, "chat")
        await cache.preload()
        assert ids_of(await cache.session("chat").load_session(FullGraph())) == ["chat.0"]
    assert await client.ping()
    for opened in (client, *sentinels.opened(client)):
        await opened.aclose()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_responses": True}, "decode_responses=False"),
        ({"encoding": "latin-1"}, "encoding"),
        ({"load_balancing_strategy": redis.cluster.LoadBalancingStrategy.ROUND_ROBIN}, "replicas"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_cluster_client_that_would_not_return_the_stored_bytes_is_refused(settings, message):
    with pytest.raises(InvalidRecord, match=message):
        SessionCache(redis.RedisCluster("127.0.0.1", 1, **settings))


def test_a_sentinel_client_that_decodes_is_refused():
    manager = Sentinel([("127.0.0.1", 1)])
    with pytest.raises(InvalidRecord, match="decode_responses"):
        SessionCache(manager.master_for("lash", decode_responses=True))


@pytest.fixture
def any_server(_running: Any) -> Server:
    """One empty server, for tests that do not depend on its kind."""
    served: Server = _running.emptied(any_real())
    return served


@pytest.mark.parametrize("scheme", ["embedded", "memory", "redis"])
async def test_a_closed_cache_stays_closed(scheme, real_server):
    cache = lash_redis.connect(real_server.tcp_url if scheme == "redis" else f"{scheme}://")
    await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    await cache.aclose()
    with pytest.raises(BackendError, match="closed"):
        await cache.session("chat").load_session(FullGraph())
    await cache.aclose()
