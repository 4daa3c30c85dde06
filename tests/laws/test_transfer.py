"""Sessions exported as JSON Lines are imported elsewhere unchanged, and an import can be repeated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha256

import msgpack
import pytest

from lash_redis import (
    ActivePath,
    Append,
    FullGraph,
    HydratedSessionCheckpoint,
    ImportReport,
    InvalidRecord,
    PersistedSessionConfig,
    PersistedTurnState,
    PluginPayload,
    SessionEvicted,
    SessionGone,
    SessionMeta,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    TokenUsage,
    Unchanged,
)
from lash_redis.models import SessionCheckpoint
from lash_redis.transfer import export_sessions, import_sessions
from tests.support.builders import append, chain, commit, node, plugins, replace_full, tools, used

STATES = HydratedSessionCheckpoint(
    turn_state=PersistedTurnState(7, TokenUsage(1, 2, 3, 4)),
    tool_state=tools("é \u2028 😀"),
    plugin_snapshot=plugins({"float": 1.5, "int": 2**60, "whole": 1.0, "none": None, "é": [True]}),
    plugin_snapshot_revision=5,
    execution_state=bytes(range(256)),
)
NAMES = ("plain", "branched", "tombstoned", "replaced", "lenient", "empty", "long", "dead leaf", "ledger", "é{x}\n")


async def create_sessions(open_cache) -> dict[str, object]:
    """Create a session of every kind. Return the commits of `plain`, so that tests can send them again."""
    cache = open_cache()
    made = commit(None, append("a", "b"), session_id="plain", checkpoint=STATES, usage_deltas=[used(input=3)])
    await cache.session("plain").commit_runtime_state(made)
    config = PersistedSessionConfig("p", "m", 9, "rlm", {"kind": "rolling_history"}, "v")
    event = SessionNodeRecord("x1", "b", "t", PluginPayload("notes", {"z": 1, "a": [None, {"q": "é"}]}))
    graph = Append([event, *chain("c", parent="x1")], "c")
    second = commit(1, graph, session_id="plain", config=config, checkpoint=STATES)
    await cache.session("plain").commit_runtime_state(second)
    store = await cache.create(SessionStoreCreateRequest("branched", parent_session_id="plain"))
    await store.commit_runtime_state(
        commit(None, Append([node("a"), node("b", "a"), node("c", "a"), node("d", "b")], "d"), session_id="branched"),
        ttl=5000,
    )
    store = cache.session("tombstoned")
    await store.commit_runtime_state(
        commit(None, append("a", "b", "c", "d"), session_id="tombstoned", checkpoint=STATES)
    )
    await store.tombstone_nodes(["a", "c"])
    await store.vacuum()
    store = cache.session("replaced")
    await store.commit_runtime_state(commit(None, append("a", "b"), session_id="replaced"))
    await store.commit_runtime_state(commit(1, replace_full("b", "a"), session_id="replaced", checkpoint=STATES))
    lenient = open_cache(graph_checks="lenient").session("lenient")
    await lenient.commit_runtime_state(
        commit(None, Append([node("b", "a"), node("a"), node("c", "zzz")], "nowhere"), session_id="lenient")
    )
    await cache.session("empty").commit_runtime_state(commit(None, Unchanged(None), session_id="empty"))
    store = cache.session("long")
    for turn in range(40):
        parent = f"n{turn - 1}" if turn else None
        await store.commit_runtime_state(commit(turn, append(f"n{turn}", parent=parent), session_id="long"))
    store = cache.session("dead leaf")
    await store.commit_runtime_state(commit(None, append("a", "b"), session_id="dead leaf"))
    await store.tombstone_nodes(["b"])
    rows = [used("a", input=5), used("b", cached=2), used("c", output=2**62), used("d", reasoning=1)]
    store = cache.session("ledger")
    await store.commit_runtime_state(commit(None, session_id="ledger", usage_deltas=rows))
    await store.commit_runtime_state(commit(1, session_id="ledger", usage_deltas=[used("d", reasoning=-1)]))
    await cache.session("é{x}\n").commit_runtime_state(commit(None, append("é"), session_id="é{x}\n"))
    await cache.create(SessionStoreCreateRequest("only meta", parent_session_id="long"))
    return {"first": made, "second": second}


async def lines_of(cache, *names: str) -> list[str]:
    return [line async for line in export_sessions(cache, names or None)]


async def all_reads(cache, name: str) -> object:
    """Everything that reads return of a session, in comparable form."""
    store = cache.session(name)
    reads = [await store.load_session(FullGraph())]
    if name not in ("dead leaf", "lenient"):
        reads.append(await store.load_session(ActivePath()))
    meta = await store.load_session_meta()
    head = await store.load_head()
    every = [None if each is None else each.to_json() for each in (*reads, meta, head)]
    states = [None if read is None or read.checkpoint is None else read.checkpoint.execution_state for read in reads]
    return json.dumps(every, sort_keys=True), states


async def test_a_round_trip_keeps_reads_and_lists_equal_and_the_audit_clean(open_cache):
    await create_sessions(open_cache)
    source = open_cache()
    lines = await lines_of(source)
    target = open_cache(namespace="elsewhere", shards=7, ttl=900)
    report = await import_sessions(target, lines)
    assert report == ImportReport(session_count=11, is_complete=True)
    for name in (*NAMES, "only meta"):
        assert await all_reads(open_cache(namespace="elsewhere", shards=7), name) == await all_reads(source, name), name
    imported = {info.session_id: info async for info in target.sessions() if info.session_id != "only meta"}
    exported = {info.session_id: info async for info in source.sessions() if info.session_id != "only meta"}
    assert imported == exported
    assert (await open_cache(namespace="elsewhere", shards=7, role="auditor").audit()).problems == ()
    again = await lines_of(target)
    assert _without_storage_details(again) == _without_storage_details(lines)


def _without_storage_details(lines: Sequence[str]) -> list[str]:
    records = [json.loads(line) for line in lines[1:]]
    for record in records:
        record.pop("links_by_id", None)
        if record.get("session_id") == "only meta":
            record["meta"].pop("created_at")
    return sorted(json.dumps(record, sort_keys=True) for record in records)


async def test_a_commit_sent_before_the_export_is_replayed_after_the_import(open_cache):
    made = await create_sessions(open_cache)
    target = open_cache(namespace="elsewhere")
    await import_sessions(target, await lines_of(open_cache(), "plain"))
    store = target.session("plain")
    for sent, revision in (("first", 1), ("second", 2)):
        result = await store.commit_runtime_state(made[sent])
        assert (result.replayed, result.head_revision) == (True, revision)
    result = await store.commit_runtime_state(commit(2, append("z", parent="c"), session_id="plain"))
    assert result.head_revision == 3


async def test_an_imported_session_keeps_its_own_ttl_or_takes_that_of_the_cache(open_cache, client):
    await create_sessions(open_cache)
    target = open_cache(namespace="elsewhere", ttl=900)
    await import_sessions(target, await lines_of(open_cache()))
    assert 4_900_000 < await client.pttl(target.layout.session("branched").log) <= 5_000_000
    assert 800_000 < await client.pttl(target.layout.session("plain").log) <= 900_000


async def test_a_blob_is_exported_once_and_before_the_first_session_that_names_it(open_cache):
    await create_sessions(open_cache)
    lines = [json.loads(line) for line in await lines_of(open_cache())]
    refs = [line["ref"] for line in lines if line["kind"] == "blob"]
    assert len(refs) == len(set(refs)) == 3
    seen: set[str] = set()
    for line in lines:
        if line["kind"] == "blob":
            seen.add(line["ref"])
        if line["kind"] == "session" and line["head"]:
            named = {ref for name, ref in line["checkpoint"].items() if name.endswith("_ref")}
            assert named <= seen
    assert (lines[0]["kind"], lines[-1]) == ("lash-redis", {"kind": "end", "session_count": 11, "blob_count": 3})


async def test_an_interrupted_import_can_be_repeated_and_completed(open_cache, client):
    await create_sessions(open_cache)
    lines = await lines_of(open_cache())
    target = open_cache(namespace="elsewhere")
    cut = await import_sessions(target, lines[: len(lines) // 2])
    assert not cut.is_complete
    assert 0 < cut.session_count < 11
    whole = await import_sessions(open_cache(namespace="elsewhere"), lines)
    assert whole == ImportReport(session_count=11, present_count=cut.session_count, is_complete=True)
    again = await import_sessions(open_cache(namespace="elsewhere"), lines)
    assert again == ImportReport(session_count=11, present_count=11, is_complete=True)
    facts = await client.hget(target.layout.session("long").head, "facts")
    assert facts.split()[0] == b"40"


async def test_repeating_an_import_keeps_later_commits(open_cache):
    await create_sessions(open_cache)
    lines = await lines_of(open_cache())
    target = open_cache(namespace="elsewhere")
    await import_sessions(target, lines)
    await target.session("long").commit_runtime_state(commit(40, append("new", parent="n39"), session_id="long"))
    report = await import_sessions(open_cache(namespace="elsewhere"), lines)
    assert (report.session_count, report.failed_count) == (11, 0)
    assert (await target.session("long").load_head()).head_revision == 41


async def test_an_import_refuses_taken_and_deleted_ids_and_stores_the_others(open_cache):
    await create_sessions(open_cache)
    lines = await lines_of(open_cache())
    target = open_cache(namespace="elsewhere")
    await target.session("plain").commit_runtime_state(commit(None, append("mine"), session_id="plain"))
    await target.session("empty").commit_runtime_state(commit(None, session_id="empty"))
    await target.delete("empty")
    report = await import_sessions(target, lines)
    assert (report.session_count, report.failed_count, report.is_complete) == (9, 2, True)
    assert sorted(failure.partition(": ")[0] for failure in report.failures) == ["empty", "plain"]
    assert [each.node_id for each in (await target.session("plain").load_session(FullGraph())).graph.nodes] == ["mine"]


async def test_named_sessions_are_exported_in_the_given_order_and_must_exist(open_cache):
    await create_sessions(open_cache)
    cache = open_cache()
    lines = [json.loads(line) for line in await lines_of(cache, "long", "branched", "only meta")]
    assert [line["session_id"] for line in lines if line["kind"] == "session"] == ["long", "branched", "only meta"]
    with pytest.raises(SessionGone, match="nowhere"):
        await lines_of(cache, "long", "nowhere")


async def test_a_failed_export_leaves_no_task_running(open_cache, client):
    """A read that outlives its cache would open a connection that is never closed."""
    cache, ids = open_cache(), [f"s{number:02d}" for number in range(20)]
    for name in ids:
        await cache.session(name).commit_runtime_state(commit(None, append("a"), session_id=name))
    await client.delete(cache.layout.session("s00").log)
    before = asyncio.all_tasks()
    with pytest.raises(SessionEvicted):
        await lines_of(cache, *ids)
    assert asyncio.all_tasks() == before


async def test_an_export_stops_at_an_evicted_key_and_names_it(open_cache, client):
    await create_sessions(open_cache)
    cache = open_cache()
    await client.delete(cache.layout.session("long").log)
    with pytest.raises(SessionEvicted, match="log"):
        await lines_of(open_cache())


HEADER = '{"kind":"lash-redis","format":1}'


def blob_line(**changes: object) -> str:
    return json.dumps({"kind": "blob", "ref": sha256(b"\x90").hexdigest(), "base64": "kA==", **changes})


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        (["{"], "line 1"),
        (["[]"], "line 1"),
        (['{"kind":"lash-redis","format":2}'], "line 1"),
        (['{"id":"a","messages":[]}'], "line 1"),
        ([HEADER, "nonsense"], "line 2"),
        (["", blob_line(), HEADER], "line 2"),
        ([HEADER, '{"kind":"end","session_count":0,"blob_count":0}', blob_line()], "line 3"),
        ([HEADER, '{"kind":"other"}'], r"line 2\.kind"),
        ([HEADER, blob_line(ref="x")], r"line 2\.ref"),
        ([HEADER, blob_line(base64="kQ==")], r"line 2\.base64"),
        ([HEADER, blob_line(base64="!")], r"line 2\.base64"),
        ([HEADER, blob_line(base64=None)], r"line 2\.base64"),
        ([HEADER, '{"kind":"session"}'], r"line 2\.session_id"),
        ([HEADER, '{"kind":"session","session_id":"s"}'], "line 2"),
        ([HEADER, '{"kind":"end","session_count":1,"blob_count":0}'], "line 2"),
    ],
)
async def test_an_invalid_line_is_refused_with_its_number_and_nothing_is_written(lines, field, cache, keyspace):
    with pytest.raises(InvalidRecord, match=field):
        await import_sessions(cache, lines)
    assert await keyspace() == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"receipts": ""}, "receipts"),
        ({"receipts": 7}, "receipts"),
        ({"committed_ms": "now"}, "committed_ms"),
        ({"ttl_ms": -1}, "ttl_ms"),
        ({"commit_id": ""}, "commit_id"),
        ({"checkpoint": None}, "checkpoint"),
        ({"checkpoint": {"turn_state": {"turn_index": 0}, "tool_state_ref": "0" * 64}}, "tool_state_ref"),
        ({"session_id": "other"}, "session_id"),
        ({"head": {"head_revision": 1}}, "head"),
        ({"committed_ms": 10**14}, "committed_ms"),
        ({"ttl_ms": 10**400}, "ttl_ms"),
        ({"receipts": "eHh4eHh4eHh4eHh4eHh4eA=="}, "receipts"),
        ({"meta": {"session_id": "x"}}, "meta"),
    ],
)
async def test_an_invalid_field_is_refused_and_named(change, field, open_cache):
    await open_cache().session("chat").commit_runtime_state(commit(None, append("a")))
    lines = await lines_of(open_cache(), "chat")
    broken = json.dumps({**json.loads(lines[1]), **change})
    target = open_cache(namespace="elsewhere")
    with pytest.raises(InvalidRecord, match=field) as refused:
        await import_sessions(target, [lines[0], broken])
    assert refused.value.field.startswith("line 2")
    assert await target.session("chat").load_head() is None


async def test_an_error_of_the_iterator_of_lines_is_propagated(cache):
    def broken():
        yield HEADER
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await import_sessions(cache, broken())


def _unknown_field(head: dict) -> None:
    head["graph"]["nodes"][0]["unknown"] = 1


def _doubled_rows(head: dict) -> None:
    head["token_ledger"] *= 2


def _wrong_ref(head: dict) -> None:
    head["checkpoint_ref"] = "0" * 64


def _cyclic(head: dict) -> None:
    head["graph"]["nodes"][0]["parent_node_id"] = "b"


def _missing_counter(head: dict) -> None:
    del head["token_ledger"][0]["usage"]["reasoning_tokens"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_unknown_field, "head"),
        (_doubled_rows, "token_ledger"),
        (_wrong_ref, "checkpoint_ref"),
        (_cyclic, "graph"),
        (_missing_counter, "head"),
    ],
)
async def test_an_inconsistent_head_is_refused_before_any_write(change, field, open_cache):
    made = commit(None, append("a", "b"), usage_deltas=[used(input=1)])
    await open_cache().session("chat").commit_runtime_state(made)
    header, text, _ = await lines_of(open_cache(), "chat")
    line = json.loads(text)
    change(line["head"])
    line["links_by_id"] = True
    target = open_cache(namespace="elsewhere")
    with pytest.raises(InvalidRecord, match=field):
        await import_sessions(target, [header, json.dumps(line)])
    assert await target.session("chat").load_head() is None


async def test_swapped_component_refs_are_refused(open_cache):
    await open_cache().session("chat").commit_runtime_state(commit(None, append("a"), checkpoint=STATES))
    lines = await lines_of(open_cache(), "chat")
    line = json.loads(lines[-2])
    refs = line["checkpoint"]
    refs["tool_state_ref"], refs["execution_state_ref"] = refs["execution_state_ref"], refs["tool_state_ref"]
    manifest = SessionCheckpoint.from_json(refs).to_msgpack()
    line["head"]["checkpoint_ref"] = sha256(msgpack.packb(manifest)).hexdigest()
    with pytest.raises(InvalidRecord, match="_ref"):
        await import_sessions(open_cache(namespace="elsewhere"), [*lines[:-2], json.dumps(line)])


async def test_a_session_with_only_meta_keeps_its_ttl_and_overwrites_no_session(open_cache, client):
    cache = open_cache()
    await cache.create(SessionStoreCreateRequest("chat", parent_session_id="mother"), ttl=3600)
    lines = await lines_of(cache)
    target = open_cache(namespace="elsewhere")
    await import_sessions(target, lines)
    assert 3_500_000 < await client.pttl(target.layout.session("chat").head) <= 3_600_000
    other = open_cache(namespace="third")
    await other.session("chat").commit_runtime_state(commit(None, append("a")))
    assert (await import_sessions(other, lines)).failed_count == 1
    assert await other.session("chat").load_session_meta() is None


async def test_sessions_before_an_invalid_line_are_stored(open_cache):
    await create_sessions(open_cache)
    lines = await lines_of(open_cache())
    target = open_cache(namespace="elsewhere")
    with pytest.raises(InvalidRecord):
        await import_sessions(target, [*lines[:-1], "broken"])
    assert len([info async for info in target.sessions()]) == 11


@pytest.mark.slow
async def test_an_export_during_writes_contains_exactly_one_revision_per_session(open_cache, client):
    cache = open_cache(shards=2)
    names = [f"s{number}" for number in range(60)]

    async def turn(name: str, revision: int) -> None:
        state = HydratedSessionCheckpoint(execution_state=f"{name} {revision}".encode())
        parent = f"n{revision - 1}" if revision else None
        made = commit(revision, append(f"n{revision}", parent=parent), session_id=name, checkpoint=state)
        await cache.session(name).commit_runtime_state(made)

    for name in names:
        await turn(name, 0)

    async def traffic() -> None:
        for revision in range(1, 8):
            for name in names:
                await turn(name, revision)

    writing = asyncio.create_task(traffic())
    lines = await lines_of(open_cache(shards=2))
    await writing
    target = open_cache(namespace="elsewhere")
    report = await import_sessions(target, lines)
    assert report == ImportReport(session_count=60, is_complete=True)
    for name in names:
        read = await target.session(name).load_session(FullGraph())
        assert len(read.graph.nodes) == read.head_revision
        assert read.checkpoint.execution_state == f"{name} {read.head_revision - 1}".encode()


async def test_export_and_import_report_their_progress(open_cache):
    await create_sessions(open_cache)
    out: list[int] = []
    lines = [line async for line in export_sessions(open_cache(), None, out.append)]
    assert out[-1] == 11
    into: list[int] = []
    await import_sessions(open_cache(namespace="elsewhere"), lines, into.append)
    assert into[-1] == len(into) == 11


async def test_an_imported_session_keeps_its_meta(open_cache):
    cache = open_cache()
    store = await cache.create(SessionStoreCreateRequest("chat"))
    meta = SessionMeta("chat", "A name", "then", "m", "/here", "mother")
    await store.save_session_meta(meta)
    await store.commit_runtime_state(commit(None, append("a")))
    target = open_cache(namespace="elsewhere")
    await import_sessions(target, await lines_of(cache))
    assert await target.session("chat").load_session_meta() == meta
    assert [info.session_id async for info in target.sessions(parent="mother")] == ["chat"]
    assert await target.session("chat").load_head() == await cache.session("chat").load_head()
