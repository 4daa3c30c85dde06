"""A read that takes several round trips returns one revision, also if the stored data changes in between.

A failover may put a replica that lags behind in the place of the primary, between two round trips. Other clients
commit, replace, vacuum, delete and create again. Only what one transaction confirms is damage.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgpack
import pytest

from lash_redis import (
    ActivePath,
    Append,
    BackendError,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    NodeIdCollision,
    OutcomeUnknown,
    PersistedSessionRead,
    PluginPayload,
    ReplaceFull,
    SessionCache,
    SessionEvicted,
    SessionGone,
    SessionGraph,
    SessionHead,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    StoreOptions,
    ToolState,
)
from lash_redis.protocol import commands
from lash_redis.protocol.commands.prepared_commit import prepare_in_steps
from lash_redis.protocol.component_refs import NO_REFS
from lash_redis.protocol.steps import at_once
from lash_redis.session.publish import _Attempts
from lash_redis.transfer import export_sessions
from lash_redis.transport.failures import Earlier
from tests.support.breaking import Python, broken_by
from tests.support.builders import append, blob_keys, chain, commit, ids_of, key_of, node, tools
from tests.support.servers import snapshot
from tests.support.trips import State, Trips, alternating, before, capture, restore

pytestmark = pytest.mark.slow

MOST_TRIPS = 40
"""More round trips than any read takes. A read that exceeds it repeats for ever."""

Shown = tuple[int, str, dict[str, str]] | None
"""The revision, the label of its components, and the text of each node by id. None for no session."""


def tools_of(label: str) -> ToolState:
    """Labels that differ by their last apostrophes have the same tool state."""
    return tools(label.rstrip("'"))


def state_of(label: str) -> HydratedSessionCheckpoint:
    return HydratedSessionCheckpoint(tool_state=tools_of(label), execution_state=label.encode())


def shown(read: PersistedSessionRead | None) -> Shown:
    """What a read returns. Its tool state and its execution state have the same label."""
    if read is None:
        return None
    checkpoint = read.checkpoint
    assert checkpoint is not None
    assert checkpoint.execution_state is not None
    label = checkpoint.execution_state.decode()
    assert checkpoint.tool_state == tools_of(label)
    return read.head_revision, label, {node.node_id: text_of(node) for node in read.graph.nodes}


def text_of(node: Any) -> str:
    return str(node.event()["Conversation"]["text"])


def views(revision: int, label: str, path: str, **texts: str) -> dict[str, Shown]:
    """What each scope shows of a state: `texts` are the nodes in their order, `path` the ids of the active path."""
    chosen = {
        "full": list(texts),
        "path": list(path),
        "page": list(path)[-2:],
        "longer page": list(path)[-3:],
        "to b": ["a", "b"],
    }
    return {
        view: (revision, label, {each: texts[each] for each in ids if each in texts}) if "b" in texts or view != "to b"
        else (revision, label, {})
        for view, ids in chosen.items()
    }  # fmt: skip


ABSENT: dict[str, Shown] = dict.fromkeys(("full", "path", "page", "longer page", "to b"))


async def histories(open_cache: Callable[..., SessionCache], client: Any) -> dict[str, State]:
    """States of one session. `ahead` is what a read finds first; each other one is what it may find next."""
    found: dict[str, State] = {}

    async def turn(revision: int, graph: Any, label: str) -> None:
        made = commit(revision, graph, checkpoint=state_of(label))
        await open_cache().session("chat").commit_runtime_state(made)

    async def keep(name: str, seen: dict[str, Shown]) -> None:
        found[name] = await capture(client, name, seen)

    one = {"a": "one", "b": "one"}
    two, three = {**one, "c": "two"}, {"d": "three", "e": "three"}
    await turn(0, Append(chain("a", "b", text="one"), "b"), "one")
    await turn(1, Append(chain("c", parent="a", text="two"), "c"), "two")
    await keep("older", views(2, "two", "ac", **two))
    await turn(2, Append(chain("d", "e", parent="b", text="three"), "e"), "three")
    await keep("ahead", views(3, "three", "abde", **two, **three))
    await turn(3, Append(chain("f", parent="e", text="four"), "f"), "four")
    await keep("newer", views(4, "four", "abdef", **two, **three, f="four"))
    await restore(client, found["ahead"])
    await open_cache().session("chat").tombstone_nodes(["d"])
    await open_cache().session("chat").vacuum()
    await keep("vacuumed", views(3, "three", "e", **two, e="three"))
    await restore(client, found["ahead"])
    await turn(3, ReplaceFull(SessionGraph(chain("p", "b", "q", text="new"), "q")), "new")
    replaced = views(4, "new", "pbq", p="new", b="new", q="new")
    await keep("replaced", replaced | {"to b": (4, "new", {"p": "new", "b": "new"})})
    await restore(client, found["older"])
    await turn(2, Append(chain("d", "e", parent="b", text="rival"), "e"), "three'")
    await keep("rival", views(3, "three'", "abde", **two, d="rival", e="rival"))
    await restore(client, None)
    await turn(0, Append(chain("a", "b", text="again"), "b"), "again")
    await turn(1, Append(chain("d", "e", parent="b", text="again"), "e"), "again")
    await keep("created again", views(2, "again", "abde", a="again", b="again", d="again", e="again"))
    layout = {key: value for key, value in found["ahead"].stored.items() if b"layout" in key}
    found["gone"] = State("gone", layout, ABSENT)
    await restore(client, found["ahead"])
    return found


# Reads of one session


Read = Callable[[SessionCache, SessionCache], Awaitable[Shown]]
"""A read by a cache whose round trips are disturbed. What the read stored is then read by the other cache."""


def load(scope: Any) -> Read:
    async def loaded(cache: SessionCache, _: SessionCache) -> Shown:
        return shown(await cache.session("chat").load_session(scope))

    return loaded


def refresh(scope: Any) -> Read:
    async def refreshed(cache: SessionCache, _: SessionCache) -> Shown:
        return shown(await cache.session("chat").refresh(KNOWN[scope]))

    return refreshed


async def fork(cache: SessionCache, other: SessionCache) -> Shown:
    try:
        await cache.fork("chat", "new")
    except SessionGone:
        return None
    read = shown(await other.session("new").load_session(FullGraph()))
    assert read is not None
    return read


async def export(cache: SessionCache, _: SessionCache) -> Shown:
    lines = [json.loads(line) async for line in export_sessions(cache)]
    blobs = {line["ref"]: b64decode(line["base64"]) for line in lines if line["kind"] == "blob"}
    sessions = [line for line in lines if line["kind"] == "session"]
    if not sessions:
        return None
    head = SessionHead.from_json(sessions[0]["head"])
    checkpoint = sessions[0]["checkpoint"]
    assert checkpoint["tool_state_ref"] in blobs
    label = str(msgpack.unpackb(blobs[checkpoint["execution_state_ref"]]), "utf-8")
    return head.head_revision, label, {node.node_id: text_of(node) for node in head.graph.nodes}


KNOWN: dict[Any, PersistedSessionRead] = {}
"""The reads that are refreshed, of the state `older`."""


async def know(state: State, open_cache: Callable[..., SessionCache], client: Any) -> None:
    await restore(client, state)
    for scope in (FullGraph(), ActivePath()):
        read = await open_cache().session("chat").load_session(scope)
        assert read is not None
        KNOWN[scope] = read


READS: dict[str, tuple[str, Read]] = {
    "the graph": ("full", load(FullGraph())),
    "the path": ("path", load(ActivePath())),
    "a path to a node": ("to b", load(ActivePath("b"))),
    "a page": ("page", load(ActivePath(limit=2))),
    "a page by the script": ("longer page", load(ActivePath(limit=3))),
    "a refresh of the graph": ("full", refresh(FullGraph())),
    "a refresh of the path": ("path", refresh(ActivePath())),
    "a fork": ("path", fork),
    "an export": ("full", export),
}


@pytest.fixture
def open_cache(open_cache: Callable[..., SessionCache]) -> Callable[..., SessionCache]:
    """Caches of a namespace of two shards, so that a list of its sessions takes few round trips."""
    return partial(open_cache, shards=2)


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits, so that short sessions take as many round trips as long ones do."""
    monkeypatch.setattr(commands.paths, "SPAN_COST", 0)
    monkeypatch.setattr(commands.pages, "BATCH", 1)
    monkeypatch.setattr(commands.pages, "LAST_JUMPS", 1)
    monkeypatch.setattr(commands.refresh, "LIMIT", 1)
    monkeypatch.setattr(commands.maintenance, "NODE_CHUNK", 1)


async def cold(open_cache: Callable[..., SessionCache]) -> SessionCache:
    """A cache that has read the layout and caches no blob."""
    cache = open_cache(blob_cache_bytes=0)
    await cache.session("other").load_head()
    return cache


def expected(view: str, read: str, *states: State) -> list[Shown]:
    """What the read may return: what it shows of one of the states. A fork begins at revision 1."""
    found = [state.shown[view] for state in states]
    return [each and (1, *each[1:]) for each in found] if read == "a fork" else found


def compares_the_epoch_only(_):
    def has_same_log(head, stored, receipts):
        return stored is not None and int(stored.split()[1]) == head.facts.epoch

    return has_same_log


@broken_by(Python("protocol.commands.paths:_has_same_log", compares_the_epoch_only, "compares the epoch only"))
async def test_a_path_across_a_change_between_two_trips_is_of_one_revision(open_cache, client, monkeypatch):
    in_pieces(monkeypatch)
    await between_any_two_trips("the path", open_cache, client)


@broken_by(Python("protocol.commands.reads:is_holder", lambda _: lambda *_: True, "takes every head for the same"))
async def test_a_graph_across_a_change_between_two_trips_is_of_one_revision(open_cache, client, monkeypatch):
    in_pieces(monkeypatch)
    await between_any_two_trips("the graph", open_cache, client)


@pytest.mark.parametrize("read", [read for read in READS if read not in ("the path", "the graph")])
async def test_a_read_across_a_change_between_any_two_trips_returns_one_revision(read, open_cache, client, monkeypatch):
    in_pieces(monkeypatch)
    await between_any_two_trips(read, open_cache, client)


async def between_any_two_trips(read, open_cache, client):
    view, call = READS[read]
    states = await histories(open_cache, client)
    await know(states["older"], open_cache, client)
    for name, state in states.items():
        number = 2
        while True:
            await restore(client, states["ahead"])
            cache = await cold(open_cache)
            with Trips(cache, before(number, lambda state=state: restore(client, state))) as trips:
                found = await call(cache, open_cache())
            assert found in expected(view, read, states["ahead"], state), (name, number)
            assert trips.count <= MOST_TRIPS
            if trips.count <= number:
                break
            number += 1


@pytest.mark.slow
@pytest.mark.parametrize("read", READS)
async def test_a_read_from_two_servers_in_turns_reports_no_damage(read, open_cache, client, monkeypatch):
    """It returns one of the two states, or fails because they changed during each attempt."""
    in_pieces(monkeypatch)
    view, call = READS[read]
    states = await histories(open_cache, client)
    await know(states["older"], open_cache, client)
    for state in states.values():
        for pair in ((states["ahead"], state), (state, states["ahead"])):
            cache = await cold(open_cache)
            found: Shown | str
            with Trips(cache, alternating(client, pair)) as trips:
                try:
                    found = await call(cache, open_cache())
                except BackendError as error:
                    found = error.message
            is_sound = found in expected(view, read, *pair)
            assert is_sound or "changed during" in str(found), (state.name, found)
            assert trips.count <= MOST_TRIPS


DAMAGES: dict[str, tuple[str, Callable[[Any, Any], Awaitable[object]]]] = {
    "a log that is gone": ("log", lambda client, key: client.delete(key)),
    "a log that lost its end": ("log", lambda client, key: client.ltrim(key, 0, 2)),
    "a record of another node": ("log", lambda client, key: _copy_record(client, key)),
    "jumps that are gone": ("jumps", lambda client, key: client.delete(key)),
    "a head that is gone": ("head", lambda client, key: client.delete(key)),
    "a tool state that is gone": ("blob", lambda client, key: client.delete(key)),
    "a tool state that is damaged": ("blob", lambda client, key: client.hset(key, "c", b"\0damaged")),
    "a tool state of another type": ("blob", lambda client, key: _set(client, key)),
    "a log of another type": ("log", lambda client, key: _set(client, key)),
}


async def _copy_record(client: Any, key: Any) -> None:
    """Store the first record of the log, which is intact, in place of the last one."""
    await client.lset(key, -1, await client.lindex(key, 0))


async def _set(client: Any, key: Any) -> None:
    await client.delete(key)
    await client.set(key, b"x")


@broken_by(Python("protocol.commands.paths:check_path", lambda _: lambda *_, **__: None, "does not compare the links"))
async def test_damage_of_a_path_that_appears_between_two_trips_is_reported(open_cache, client, monkeypatch):
    in_pieces(monkeypatch)
    await damaged_before_any_trip("the path", open_cache, client)


@pytest.mark.parametrize(
    "read", ["the graph", "a page", "a page by the script", "a fork", "an export", "a refresh of the path"]
)
async def test_damage_that_appears_between_two_trips_is_reported_with_its_key(read, open_cache, client, monkeypatch):
    in_pieces(monkeypatch)
    await damaged_before_any_trip(read, open_cache, client)


async def damaged_before_any_trip(read, open_cache, client):
    view, call = READS[read]
    states = await histories(open_cache, client)
    await know(states["older"], open_cache, client)
    await restore(client, states["ahead"])
    held = (await open_cache().session("chat").load_session(FullGraph())).checkpoint.tool_state_ref
    for name, (family, damage) in DAMAGES.items():
        for number in (1, 2, 3):
            await restore(client, states["ahead"])
            if family == "blob":
                (key,) = [key for key in await blob_keys(client) if key.endswith(held.encode())]
            else:
                key = await key_of(client, family)
            cache = await cold(open_cache)
            found: Shown | Corrupt
            with Trips(cache, before(number, partial(damage, client, key))) as trips:
                try:
                    found = await call(cache, open_cache())
                except Corrupt as error:
                    found = error
            if isinstance(found, Corrupt):
                assert found.key == key.decode(), (name, number)
            else:  # it came too late, or the read does not touch what is damaged
                assert found in expected(view, read, states["ahead"]), (name, number)
                assert number > 1 or "record of another" in name, (name, number)
            assert trips.count <= MOST_TRIPS


async def test_a_log_lost_between_two_trips_is_evicted_after_one_more_trip(open_cache, client):
    states = await histories(open_cache, client)
    lost = await key_of(client, "log")
    cache = await cold(open_cache)
    assert states["ahead"].shown["path"] is not None
    with Trips(cache, before(2, lambda: client.delete(lost))) as trips, pytest.raises(SessionEvicted) as refused:
        await cache.session("chat").load_session(ActivePath())
    assert refused.value.key == lost.decode()
    assert trips.count == 3


async def test_an_audit_across_a_change_between_any_two_trips_finds_no_problem(open_cache, client, monkeypatch):
    in_pieces(monkeypatch)
    states = await histories(open_cache, client)
    for state in states.values():
        number = 2
        while True:
            await restore(client, states["ahead"])
            cache = open_cache(role="auditor")
            with Trips(cache, before(number, lambda state=state: restore(client, state))) as trips:
                report = await cache.audit()
            assert report.problems == (), (state.name, number)
            if trips.count <= number:
                break
            number += 8 if trips.count - number > 16 else 1
    assert await snapshot(client)


async def test_a_read_begins_no_further_attempt_after_the_time_of_a_call(open_cache, client, monkeypatch):
    states = await histories(open_cache, client)
    monkeypatch.setattr(StoreOptions, "contention_seconds", 0.0)
    cache = await cold(open_cache)
    with (
        Trips(cache, before(2, lambda: restore(client, states["older"]))) as trips,
        pytest.raises(BackendError, match="changed during"),
    ):
        await cache.session("chat").load_session(FullGraph())
    assert trips.count == 3


# Lists


async def chats(open_cache: Callable[..., SessionCache], client: Any) -> dict[str, State]:
    """States of one chat, each with its line in the list: the revision and the first user message."""
    found: dict[str, State] = {}

    async def say(*texts: str) -> None:
        messages = [{"role": "user", "content": text, "id": f"m{at}"} for at, text in enumerate(texts, 1)]
        await open_cache().chat("chat").append(*messages)

    await open_cache().chat("chat").append({"role": "system", "content": "be kind", "id": "m0"})
    found["older"] = await capture(client, "older", (1, ""))
    await say("hello")
    found["ahead"] = await capture(client, "ahead", (2, "hello"))
    await open_cache().chat("chat").append({"role": "user", "content": "more", "id": "m2"})
    found["newer"] = await capture(client, "newer", (3, "hello"))
    await open_cache().session("chat").tombstone_nodes(["m1"])
    found["tombstoned"] = await capture(client, "tombstoned", (3, "more"))
    await restore(client, found["older"])
    await say("hi")
    found["rival"] = await capture(client, "rival", (2, "hi"))
    found["gone"] = State("gone", {}, None)
    return found


async def line(cache: SessionCache) -> tuple[int, str] | str | None:
    infos = [info async for info in cache.sessions()]
    if not infos:
        return None
    (info,) = infos
    return info.fault or (info.head_revision, info.first_user_message)


def of_the_same_log(_):
    def with_record(self, record, facts):
        message = commands.catalogue.decode_node(record, self.keys.log, self.first).user_message() if record else None
        return message and replace(self.info, first_user_message=commands.catalogue.message_text(message))

    return with_record


@broken_by(Python("protocol.commands.catalogue:Line.with_record", of_the_same_log, "compares no facts"))
async def test_a_line_of_the_list_is_of_one_revision_across_a_change_between_two_trips(open_cache, client):
    states = await chats(open_cache, client)
    for first in states.values():
        for then in states.values():
            for number in (2, 3, 4):
                await restore(client, first)
                cache = await cold(open_cache)
                with Trips(cache, before(number, partial(restore, client, then))) as trips:
                    assert await line(cache) in (first.shown, then.shown), (first.name, then.name, number)
                assert trips.count <= MOST_TRIPS
            cache = await cold(open_cache)
            with Trips(cache, alternating(client, (first, then))) as trips:
                assert await line(cache) in (first.shown, then.shown), (first.name, then.name)
            assert trips.count <= MOST_TRIPS


@broken_by(Python("listing:_line_at_one_moment", lambda _: always_faulty, "believes the first reading"))
async def test_a_session_that_ends_or_begins_while_its_line_is_read_has_no_fault(open_cache, client, monkeypatch):
    """Other clients' commands may run between the two commands that read one line."""
    states = await chats(open_cache, client)
    for first, then in ((states["ahead"], states["gone"]), (states["gone"], states["ahead"])):
        await restore(client, states["ahead"])
        cache = await cold(open_cache)
        read = cache.shared.read

        async def torn(trip, *, atomic, first=first, then=then, read=read, **more):
            if atomic or len(trip) != 2 or trip[0][0] != "HMGET":
                return await read(trip, atomic=atomic, **more)
            await restore(client, first)
            replies = await read(trip[:1], atomic=False, **more)
            await restore(client, then)
            return replies + await read(trip[1:], atomic=False, **more)

        monkeypatch.setattr(cache.shared, "read", torn)
        assert await line(cache) in (first.shown, then.shown), first.name


async def always_faulty(_namespace, keys, entry, _first):
    return commands.catalogue.faulty_line(keys, entry, Corrupt("head", keys.head, "doubted"))


async def test_a_list_continues_after_a_session_that_was_created_again_between_two_trips(open_cache, client):
    layout, states = open_cache().layout, []
    for parent in ("one", "two"):
        await restore(client, None)
        await open_cache().create(SessionStoreCreateRequest("chat", parent_session_id=parent))
        states.append(await capture(client, parent, parent))
    assert layout.session("chat").head.encode() in states[0].stored
    for number in (1, 2, 3):
        await restore(client, states[0])
        cache = await cold(open_cache)
        with Trips(cache, before(number, partial(restore, client, states[1]))):
            assert [info async for info in cache.sessions(after="chat")] == []
    cache = await cold(open_cache)
    with Trips(cache, alternating(client, states)) as trips, pytest.raises(BackendError, match="created again"):
        assert [info async for info in cache.sessions(after="chat")] == []
    assert trips.count <= MOST_TRIPS


# Chats


@broken_by(
    Python(
        "session.path_items:PathItems._earlier",
        lambda _: lambda self, scope: self._store.load_session(scope),
        "trusts pages",
    )
)
async def test_a_page_of_messages_that_takes_several_reads_is_of_one_history(open_cache, client):
    """Between two messages lie nodes that are no messages, so that the first page does not suffice."""
    plain = Append([node(f"x{at}", "m1" if at == 0 else f"x{at - 1}") for at in range(4)], "x3")
    await open_cache().chat("chat").append({"role": "user", "content": "start", "id": "m0"})
    older, ends = await capture(client, "older", ["start"]), []
    for text in ("ahead", "rival"):
        await restore(client, older)
        await open_cache().chat("chat").append({"role": "user", "content": text, "id": "m1"})
        await open_cache().session("chat").commit_runtime_state(commit(2, without_messages(plain)))
        await open_cache().chat("chat").append({"role": "user", "content": f"{text} 2", "id": "m2"})
        ends.append(await capture(client, text, ["start", text, f"{text} 2"]))
    ahead, rival = ends
    for then in (older, rival):
        for number in (2, 3, 4):
            await restore(client, ahead)
            cache = await cold(open_cache)
            with Trips(cache, before(number, partial(restore, client, then))):
                found = [message["content"] for message in await cache.chat("chat").messages(limit=3)]
            assert found in (ahead.shown, then.shown), (then.name, number)


def without_messages(graph: Append) -> Append:
    plugin = [SessionNodeRecord(each.node_id, each.parent_node_id, "t", PluginPayload("x", {})) for each in graph.nodes]
    return Append(plugin, graph.leaf_node_id)


@broken_by(Python("session.appender:Appender._settle", lambda _: refuse_collision, "believes the first refusal"))
async def test_an_append_whose_collision_a_failover_undid_is_stored(open_cache, client):
    await open_cache().chat("chat").append({"role": "user", "content": "start", "id": "m0"})
    older = await capture(client, "older", None)
    await open_cache().chat("chat").append({"role": "user", "content": "mine", "id": "m1"})
    ahead = await capture(client, "ahead", None)
    for number in (1, 2, 3):
        await restore(client, ahead)
        cache = await cold(open_cache)
        with Trips(cache, before(number, partial(restore, client, older))) as trips:
            await cache.chat("chat").append({"role": "user", "content": "mine", "id": "m1"})
        assert trips.count < MOST_TRIPS
        found = await open_cache().chat("chat").messages()
        assert [message["content"] for message in found][:1] == ["start"]
    await open_cache().session("chat").tombstone_nodes(["m1"])
    with pytest.raises(NodeIdCollision):
        await open_cache().chat("chat").append({"role": "user", "content": "mine", "id": "m1"})


async def refuse_collision(_chat, _addition, collision, **_):
    raise collision


async def test_a_load_that_slides_reads_a_session_of_another_owner_as_absent(open_cache, client):
    await open_cache().session("chat", owner="bob").commit_runtime_state(commit(None, append("a")))
    bob = await capture(client, "bob", None)
    await restore(client, None)
    await open_cache().session("chat", owner="ann").commit_runtime_state(commit(None, append("a")))
    cache = open_cache(ttl=100, slide_on_load=True)
    store = cache.session("chat", owner="ann")
    assert ids_of(await store.load_session(FullGraph())) == ["a"]
    with Trips(cache, before(2, partial(restore, client, bob))):
        assert await store.load_session(FullGraph()) is None


@broken_by(Python("session.reader:Reader.head_and_index", lambda _: head_only, "does not read the index entry"))
async def test_a_commit_that_appears_between_two_trips_is_not_reported_as_refused(open_cache, client):
    """Its receipt was displaced. The first trip does not find its node, the second one finds the head that has it."""
    cache = open_cache()
    store = cache.session("chat")
    await store.commit_runtime_state(commit(None, append("a")))
    head = await store._reader.head()
    lagging = await capture(client, "lagging", None)
    made = commit(1, append("mine", parent="a"))
    await store.commit_runtime_state(made)
    current = await capture(client, "current", None)
    await restore(client, lagging)
    shared = store._namespace
    prepared = at_once(prepare_in_steps(made, shared.options, shared.written))
    flight = shared.in_flight.flight()
    attempts = _Attempts(prepared, NO_REFS, shared.options, "", None, None, flight, earlier=Earlier(True))
    conflict = HeadRevisionConflict(1, 40)
    with (
        Trips(cache, before(2, partial(restore, client, current))),
        pytest.raises(OutcomeUnknown, match="load the session"),
    ):
        await store._publisher._result_behind(conflict, attempts, head.facts.epoch)


async def head_only(self, _node_id):
    return await self.head(), False
